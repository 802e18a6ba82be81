/* SPDX-License-Identifier: MIT
 * ept.c: guest-physical to host-physical (SDM 3C, "The Extended Page Table Mechanism"). The tables of level 0 hold
 * addresses of this process; those of level 1 lie in its own memory and hold its physical addresses, which go through
 * level 0's. A small cache of whole translations is in front of each walk; it holds only what the entries allow, so an
 * entry that allows more than before is found by the walk, as on hardware. */
#include "mem/mem_int.h"

#define EPT_RWX        7u
#define EPT_LEVELS     4
#define EPT_MEMTYPE(e) ((e) >> 3 & 7)

struct ept_walk {
    struct mem_unit *m;
    unsigned level;
    uint64_t gpa;
    unsigned acc;
    bool ad;
    unsigned n; /* entries used */
    struct {
        hva_t hva;
        uint64_t val;
    } used[EPT_LEVELS];
    uint64_t allowed;
    uint64_t page; /* a physical page of the hypervisor's: at level 0 a host address */
};

/* SDM 3C, "EPT Misconfigurations". The capability MSR offers execute-only pages. */
static bool ept_misconfigured(const struct ept_walk *w, uint64_t e, int level, bool leaf)
{
    const uint64_t rwx = e & EPT_RWX;

    if ((rwx & EPT_W) && !(rwx & EPT_R))
        return true;
    if (w->level && (e & PHYS_MASK) >> w->m->cpu->guest_maxphyaddr)
        return true;
    if (leaf) {
        const unsigned type = EPT_MEMTYPE(e);

        if (type == 2 || type == 3 || type == 7)
            return true;
        return level > 0 && (e & PHYS_MASK & ((1ull << (PAGE_SHIFT + 9 * level)) - 1));
    }
    /* bits 6:3, and bit 7 where a large page is impossible (PML4E) */
    return (e & 0x78) || (level == 3 && (e & EPT_LARGE));
}

static int ept_fail(const struct ept_walk *w, struct ept_fault *fault, uint32_t reason, uint64_t allowed)
{
    *fault = (struct ept_fault){
        .reason = reason, .ent = (uint32_t)(allowed & EPT_RWX) << 3, .level = w->level, .acc = w->acc, .gpa = w->gpa};
    return -1;
}

/* Where an entry is; with accessed and dirty flags, reading one counts as writing it. */
static int entry_host(const struct ept_walk *w, uint64_t at, hva_t *hva, struct ept_fault *fault)
{
    unsigned perms;

    *hva = at;
    if (!w->level)
        return 0;
    if (ept_translate_level0(w->m, at, w->ad ? ACC_READ | ACC_WRITE : ACC_READ, hva, &perms, fault)) {
        fault->table = true;
        return -1;
    }
    *hva |= at & ~PAGE_MASK;
    return 0;
}

/* The host's memory behind an entry is gone. */
static int entry_gone(const struct ept_walk *w, uint64_t at, struct ept_fault *fault)
{
    ept_fail(w, fault, EXIT_REASON_EPT_VIOLATION, 0);
    if (!w->level)
        return -1;
    fault->level = 0;
    fault->table = true;
    fault->acc = ACC_READ;
    fault->gpa = at & PAGE_MASK;
    return -1;
}

/* Read the entries from the root to the leaf. */
static int ept_descend(struct ept_walk *w, uint64_t root, struct ept_fault *fault)
{
    uint64_t table = root & PHYS_MASK;

    w->n = 0;
    w->allowed = EPT_RWX;
    if (w->gpa >> 48) /* beyond a 4-level walk (SDM 3C, "EPT Violations") */
        return ept_fail(w, fault, EXIT_REASON_EPT_VIOLATION, 0);
    for (int level = EPT_LEVELS - 1; level >= 0; level--) {
        const unsigned shift = PAGE_SHIFT + 9 * level;
        const uint64_t at = table + (w->gpa >> shift & 511) * 8;
        hva_t hva;
        uint64_t e;
        bool leaf;

        if (entry_host(w, at, &hva, fault))
            return -1;
        if (host_ld64((void *)hva, &e))
            return entry_gone(w, at, fault);
        if (!(e & EPT_RWX))
            return ept_fail(w, fault, EXIT_REASON_EPT_VIOLATION, 0);
        leaf = level == 0 || (level < 3 && (e & EPT_LARGE));
        if (ept_misconfigured(w, e, level, leaf))
            return ept_fail(w, fault, EXIT_REASON_EPT_MISCONFIG, 0);
        w->used[w->n].hva = hva;
        w->used[w->n++].val = e;
        w->allowed &= e;
        if (leaf) {
            w->page = (e & PHYS_MASK & ~((1ull << shift) - 1)) | (w->gpa & ((1ull << shift) - 1) & PAGE_MASK);
            return 0;
        }
        table = e & PHYS_MASK;
    }
    return -1; /* not reached: level 0 is a leaf */
}

/* Accessed and dirty flags (SDM 3C, "Accessed and Dirty Flags for EPT"). 0; 1: an entry changed, walk again; -1: the
 * table's memory is gone. */
static int ept_set_ad(struct ept_walk *w)
{
    for (unsigned i = 0; i < w->n; i++) {
        const bool last = i + 1 == w->n;
        const uint64_t want = EPT_ACCESSED | (last && (w->acc & ACC_WRITE) ? EPT_DIRTY : 0);
        uint64_t old = w->used[i].val;
        int r;

        if ((old & want) == want)
            continue;
        r = host_cmpxchg64((void *)w->used[i].hva, &old, old | want);
        if (r)
            return r;
        w->used[i].val |= want;
        if (w->level && code_page_present(w->m->cpu->domain, w->used[i].hva & PAGE_MASK))
            code_written(w->m->cpu, w->used[i].hva, 8);
    }
    return 0;
}

/* The whole walk of one level, with its flags. 0 or -1. */
static int ept_walk(struct ept_walk *w, uint64_t root, struct ept_fault *fault)
{
    int r;

    w->m->cpu->counters[CC_ept_walks]++;
    do {
        if (ept_descend(w, root, fault))
            return -1;
        if ((w->allowed & w->acc) != w->acc) /* ACC_* and EPT_R, W, X are the same bits */
            return ept_fail(w, fault, EXIT_REASON_EPT_VIOLATION, w->allowed);
        r = w->ad ? ept_set_ad(w) : 0;
    } while (r > 0);
    return r < 0 ? ept_fail(w, fault, EXIT_REASON_EPT_VIOLATION, w->allowed) : 0;
}

/* What may be cached: the first write has to set the dirty flag. */
static unsigned ept_cacheable(const struct ept_walk *w)
{
    const unsigned perms = w->allowed & EPT_RWX;

    return w->ad && !(w->used[w->n - 1].val & EPT_DIRTY) ? perms & ~(unsigned)ACC_WRITE : perms;
}

int ept_translate_level0(struct mem_unit *m, gpa_t gpa, unsigned acc, hva_t *page, unsigned *perms,
                         struct ept_fault *fault)
{
    struct ept_cached *c = &m->ept[gpa >> PAGE_SHIFT & (EPT_CACHE - 1)];
    struct ept_walk w;

    if (likely(c->gpa == (gpa & PAGE_MASK) && c->generation == m->ept_generation && (c->perms & acc) == acc)) {
        *page = c->hva;
        *perms = c->perms;
        return 0;
    }
    w.m = m;
    w.level = 0;
    w.gpa = gpa & PAGE_MASK;
    w.acc = acc;
    w.ad = m->ept_ad;
    if (ept_walk(&w, m->eptp, fault))
        return -1;
    *c = (struct ept_cached){w.gpa, w.page, m->ept_generation, ept_cacheable(&w), w.gpa};
    *page = c->hva;
    *perms = c->perms;
    return 0;
}

/* Level 1's EPT, then level 0's. */
static int ept_translate_nested(struct mem_unit *m, gpa_t gpa, unsigned acc, hva_t *page, unsigned *perms,
                                struct ept_fault *fault)
{
    struct ept_cached *c = &m->nested[gpa >> PAGE_SHIFT & (EPT_CACHE - 1)];
    struct ept_walk w = {.m = m, .level = 1, .gpa = gpa & PAGE_MASK, .acc = acc, .ad = m->eptp12 & EPTP_AD};

    if (likely(c->gpa == w.gpa && c->generation == m->nested_generation && (c->perms & acc) == acc)) {
        *page = c->hva;
        *perms = c->perms;
        return 0;
    }
    if (ept_walk(&w, m->eptp12, fault) || ept_translate_level0(m, w.page, acc, page, perms, fault))
        return -1;
    *perms &= ept_cacheable(&w);
    *c = (struct ept_cached){w.gpa, *page, m->nested_generation, *perms, w.page};
    return 0;
}

gpa_t ept_level0_gpa(const struct mem_unit *m, gpa_t gpa)
{
    const struct ept_cached *c = &m->nested[gpa >> PAGE_SHIFT & (EPT_CACHE - 1)];

    return m->eptp12 && c->gpa == (gpa & PAGE_MASK) ? c->level0 | (gpa & ~PAGE_MASK) : gpa;
}

int ept_translate(struct mem_unit *m, gpa_t gpa, unsigned acc, hva_t *page, unsigned *perms, struct ept_fault *fault)
{
    return likely(!m->eptp12) ? ept_translate_level0(m, gpa, acc, page, perms, fault)
                              : ept_translate_nested(m, gpa, acc, page, perms, fault);
}

_Static_assert(ACC_READ == EPT_R && ACC_WRITE == EPT_W && ACC_EXEC == EPT_X, "access bits are the EPT's");
