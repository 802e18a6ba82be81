/* SPDX-License-Identifier: MIT
 * ept.c: guest-physical to host-physical (SDM 3C, "The Extended Page Table Mechanism"). The tables of level 0 hold
 * addresses of this process. A small cache of whole translations is in front of the walk; it holds only what the
 * entries allow, so an entry that allows more than before is found by the walk, as on hardware. */
#include "mem/mem_int.h"

#define EPT_RWX        7u
#define EPT_LEVELS     4
#define EPT_MEMTYPE(e) ((e) >> 3 & 7)

struct ept_walk {
    uint64_t gpa;
    unsigned acc;
    bool ad;
    unsigned n; /* entries used */
    struct {
        hva_t hva;
        uint64_t val;
    } used[EPT_LEVELS];
    uint64_t allowed;
    hva_t page;
};

/* SDM 3C, "EPT Misconfigurations". The capability MSR offers execute-only pages. */
static bool ept_misconfigured(uint64_t e, int level, bool leaf)
{
    const uint64_t rwx = e & EPT_RWX;

    if ((rwx & EPT_W) && !(rwx & EPT_R))
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

static int ept_fail(struct ept_fault *fault, uint32_t reason, uint64_t allowed)
{
    fault->reason = reason;
    fault->ent = (uint32_t)(allowed & EPT_RWX) << 3;
    return -1;
}

/* Read the entries from the root to the leaf. */
static int ept_descend(struct mem_unit *m, struct ept_walk *w, struct ept_fault *fault)
{
    hva_t table = m->eptp & PHYS_MASK;

    w->n = 0;
    w->allowed = EPT_RWX;
    if (w->gpa >> 48) /* beyond a 4-level walk (SDM 3C, "EPT Violations") */
        return ept_fail(fault, EXIT_REASON_EPT_VIOLATION, 0);
    for (int level = EPT_LEVELS - 1; level >= 0; level--) {
        const unsigned shift = PAGE_SHIFT + 9 * level;
        const hva_t at = table + (w->gpa >> shift & 511) * 8;
        uint64_t e;
        bool leaf;

        if (host_ld64((void *)at, &e))
            return ept_fail(fault, EXIT_REASON_EPT_VIOLATION, 0);
        if (!(e & EPT_RWX))
            return ept_fail(fault, EXIT_REASON_EPT_VIOLATION, 0);
        leaf = level == 0 || (level < 3 && (e & EPT_LARGE));
        if (ept_misconfigured(e, level, leaf))
            return ept_fail(fault, EXIT_REASON_EPT_MISCONFIG, 0);
        w->used[w->n].hva = at;
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
    }
    return 0;
}

int ept_translate(struct mem_unit *m, gpa_t gpa, unsigned acc, hva_t *page, unsigned *perms, struct ept_fault *fault)
{
    struct ept_cached *c = &m->ept[gpa >> PAGE_SHIFT & (EPT_CACHE - 1)];
    struct ept_walk w = {.gpa = gpa & PAGE_MASK, .acc = acc, .ad = m->ept_ad};
    int r;

    if (likely(c->gpa == w.gpa && c->generation == m->ept_generation && (c->perms & acc) == acc)) {
        *page = c->hva;
        *perms = c->perms;
        return 0;
    }
    m->cpu->counters[CC_ept_walks]++;
    do {
        if (ept_descend(m, &w, fault))
            return -1;
        if ((w.allowed & acc) != acc) /* ACC_* and EPT_R, W, X are the same bits */
            return ept_fail(fault, EXIT_REASON_EPT_VIOLATION, w.allowed);
        r = w.ad ? ept_set_ad(&w) : 0;
    } while (r > 0);
    if (r < 0)
        return ept_fail(fault, EXIT_REASON_EPT_VIOLATION, w.allowed);
    c->gpa = w.gpa;
    c->hva = w.page;
    c->generation = m->ept_generation;
    c->perms = w.allowed & EPT_RWX;
    if (w.ad && !(w.used[w.n - 1].val & EPT_DIRTY))
        c->perms &= ~ACC_WRITE; /* the first write has to set the dirty flag */
    *page = c->hva;
    *perms = c->perms;
    return 0;
}

_Static_assert(ACC_READ == EPT_R && ACC_WRITE == EPT_W && ACC_EXEC == EPT_X, "access bits are the EPT's");
