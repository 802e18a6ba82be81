/* SPDX-License-Identifier: MIT
 * paging.c: the guest's own page tables (SDM 3A, "Paging"): none, 32-bit, PAE, 4-level. A walk first reads, then checks
 * rights, then sets accessed and dirty flags by a locked compare-exchange of the entry's width; an entry that changed
 * in between sends it back to the start. Paging structures are read through the EPT, with the EPT's own rights. */
#include "mem/mem_int.h"
#include "vmx/vmx_int.h"

#define PTE_P       1ull
#define PTE_RW      2ull
#define PTE_US      4ull
#define PTE_A       0x20ull
#define PTE_D       0x40ull
#define PTE_PS      0x80ull
#define PTE_G       0x100ull
#define PTE_NX      (1ull << 63)
#define EXT1_EDX_1G (1u << 26)

struct pt_ref { /* a paging-structure entry that was used */
    hva_t hva;
    gpa_t gpa;
    uint64_t val;
    bool writable; /* its page, by the EPT */
};

struct walk {
    struct cpu *cpu;
    struct mem_unit *m;
    gva_t gva;
    unsigned acc, flags;
    enum acc_mode am;
    unsigned size; /* of an entry: 4 or 8 */
    unsigned n;
    struct pt_ref ref[4];
    unsigned wperms; /* WPERM_*, combined over the levels */
    unsigned above;  /* the same without the leaf: for the paging-structure cache */
    bool cached;     /* it started from the paging-structure cache */
    uint32_t error;
    gpa_t missing; /* what an EPT does not map */
    gpa_t gpa;     /* of the page */
    uint64_t page_size;
    bool global, dirty;
};

/* ---- exits and exceptions ---- */

static int walk_ept_exit(struct walk *w, const struct ept_fault *fault, unsigned acc, gpa_t gpa, bool translated)
{
    uint64_t qual = 0;

    w->missing = unlikely(w->m->eptp12) && !fault->level ? fault->gpa : gpa;
    if (w->flags & WALK_QUIET)
        return CPU_VMEXIT;
    if (unlikely(w->m->eptp12) && !fault->level) { /* level 0's, on the way through level 1's */
        gpa = fault->gpa | (fault->table ? 0 : gpa & ~PAGE_MASK);
        translated = translated && !fault->table;
        acc = fault->table ? fault->acc : acc;
    }
    if (fault->reason == EXIT_REASON_EPT_VIOLATION)
        qual = (acc & 7u) | fault->ent | EPTQ_GLA_VALID | (translated ? EPTQ_GLA_XLAT : 0);
    vmx_exit_ept(w->cpu, fault->reason, qual, w->gva, gpa);
    w->cpu->exit.level = (uint8_t)fault->level;
    return CPU_VMEXIT;
}

int mem_host_gone(struct cpu *cpu, gva_t gva, gpa_t gpa, unsigned acc, bool translated)
{
    if (!cpu->mem->eptp) /* shadow paging: KVM intercepts #PF, finds the mapping in order and probes the memory */
        return cpu_raise_pf(cpu, gva, (acc & ACC_WRITE ? PF_W : 0) | (cpu->s.cpl == 3 ? PF_U : 0));
    return vmx_exit_ept(cpu, EXIT_REASON_EPT_VIOLATION, (acc & 7u) | EPTQ_GLA_VALID | (translated ? EPTQ_GLA_XLAT : 0),
                        gva, gpa);
}

static int walk_fault(struct walk *w, uint32_t error)
{
    const struct cpu_state *s = &w->cpu->s;

    if (w->cached) /* a page fault drops what the caches hold of the address (SDM 3A, "Operations that Invalidate TLBs")
                    */
        return CPU_AGAIN;
    if (w->acc & ACC_WRITE)
        error |= PF_W;
    if (w->am == AM_USER)
        error |= PF_U;
    if ((w->acc & ACC_EXEC) && ((s->cr4 & CR4_SMEP) || ((s->cr4 & CR4_PAE) && (s->efer & EFER_NXE))))
        error |= PF_I;
    w->error = error;
    if (w->flags & WALK_QUIET)
        return CPU_FAULT;
    return cpu_raise_pf(w->cpu, w->gva, error);
}

/* ---- paging-structure entries ---- */

static int pt_read(void *p, unsigned size, uint64_t *v)
{
    uint32_t v32;

    if (likely(size == 8))
        return host_ld64(p, v);
    if (host_ld32(p, &v32))
        return -1;
    *v = v32;
    return 0;
}

/* An entry where the EPT maps nothing, under emulation: KVM reads it (or says that user space must). */
static int pt_load_emul(struct walk *w, struct pt_ref *ref)
{
    ref->hva = 0;
    ref->val = 0;
    ref->writable = false;
    return emul_table_read(w->cpu, ref->gpa, &ref->val, w->size);
}

/* With EPT accessed and dirty flags on, these reads count as writes and violations say both (SDM 3C, "EPT Violations").
 */
static int pt_load(struct walk *w, gpa_t gpa)
{
    struct mem_unit *m = w->m;
    struct pt_ref *ref = &w->ref[w->n++];
    const unsigned acc = m->ept_ad ? ACC_READ | ACC_WRITE : ACC_READ;
    struct ept_fault fault;
    unsigned perms;
    hva_t page;

    ref->gpa = gpa;
    if (!m->eptp) {
        ref->hva = gpa;
        ref->writable = true;
    } else {
        if (unlikely(ept_translate(m, gpa, acc, &page, &perms, &fault)))
            return w->cpu->emul && !(w->flags & WALK_QUIET) && !m->eptp12 ? pt_load_emul(w, ref)
                                                                          : walk_ept_exit(w, &fault, acc, gpa, false);
        ref->hva = page + (gpa & ~PAGE_MASK);
        ref->writable = perms & ACC_WRITE;
    }
    if (likely(pt_read((void *)ref->hva, w->size, &ref->val) == 0))
        return CPU_OK;
    if (w->flags & WALK_QUIET)
        return CPU_VMEXIT;
    return w->cpu->emul && !m->eptp12 ? pt_load_emul(w, ref)
                                      : mem_host_gone(w->cpu, w->gva, ept_level0_gpa(m, gpa), ACC_READ, false);
}

/* Set bits of one entry. CPU_OK; CPU_AGAIN: it changed. */
static int pt_set_bits(struct walk *w, struct pt_ref *ref, uint64_t bits)
{
    struct ept_fault fault;
    unsigned perms;
    hva_t page;
    int r;

    if (likely((ref->val & bits) == bits))
        return CPU_OK;
    if (!ref->hva) {
        ref->val |= bits;
        return emul_table_write(w->cpu, ref->gpa, &ref->val, w->size);
    }
    if (!ref->writable) {
        if (w->cached)
            return CPU_AGAIN;
        if (ept_translate(w->m, ref->gpa, ACC_WRITE, &page, &perms, &fault)) {
            if (w->cpu->emul && !w->m->eptp12)
                return emul_table_write(w->cpu, ref->gpa, &(uint64_t){ref->val | bits}, w->size);
            return walk_ept_exit(w, &fault, ACC_WRITE, ref->gpa, false);
        }
        ref->hva = page + (ref->gpa & ~PAGE_MASK);
        ref->writable = true;
    }
    if (w->size == 8) {
        uint64_t old = ref->val;
        r = host_cmpxchg64((void *)ref->hva, &old, old | bits);
    } else {
        uint32_t old = (uint32_t)ref->val;
        r = host_cmpxchg32((void *)ref->hva, &old, old | (uint32_t)bits);
    }
    if (r < 0)
        return mem_host_gone(w->cpu, w->gva, ept_level0_gpa(w->m, ref->gpa), ACC_WRITE, false);
    if (r > 0)
        return CPU_AGAIN;
    if (code_page_present(w->cpu->domain, ref->hva & PAGE_MASK))
        code_written(w->cpu, ref->hva, w->size);
    ref->val |= bits;
    return CPU_OK;
}

/* ---- rights (SDM 3A, "Determination of Access Rights") ---- */

static bool right(const struct walk *w, unsigned acc)
{
    const struct cpu_state *s = &w->cpu->s;
    const bool user_page = w->wperms & WPERM_U;

    if (acc & ACC_EXEC) {
        if (w->wperms & WPERM_NX)
            return false;
        return w->am == AM_USER ? user_page : !(user_page && (s->cr4 & CR4_SMEP));
    }
    if (w->am == AM_USER)
        return user_page && (!(acc & ACC_WRITE) || (w->wperms & WPERM_W));
    if (user_page && w->am == AM_SUPER)
        return false;
    return !(acc & ACC_WRITE) || (w->wperms & WPERM_W) || !(s->cr0 & CR0_WP);
}

static bool all_rights(const struct walk *w)
{
    for (unsigned a = ACC_READ; a <= ACC_EXEC; a <<= 1) {
        if ((w->acc & a) && !right(w, a))
            return false;
    }
    return true;
}

static unsigned cacheable(const struct walk *w)
{
    unsigned perms = right(w, ACC_READ) ? ACC_READ : 0;

    if (right(w, ACC_EXEC))
        perms |= ACC_EXEC;
    if (w->dirty && right(w, ACC_WRITE))
        perms |= ACC_WRITE;
    return perms;
}

static void combine(struct walk *w, uint64_t e)
{
    if (!(e & PTE_US))
        w->wperms &= ~WPERM_U;
    if (!(e & PTE_RW))
        w->wperms &= ~WPERM_W;
    if (e & PTE_NX) /* where NXE is off the bit is reserved, or does not exist */
        w->wperms |= WPERM_NX;
}

/* ---- the forms ---- */

/* Rights, then accessed and dirty flags from the root to the leaf. */
static int walk_finish(struct walk *w, uint64_t leaf)
{
    int st;

    if (!all_rights(w))
        return walk_fault(w, PF_P);
    w->dirty = leaf & PTE_D;
    w->global = (leaf & PTE_G) && (w->cpu->s.cr4 & CR4_PGE);
    if (w->flags & WALK_NO_AD)
        return CPU_OK;
    for (unsigned i = 0; i < w->n; i++) {
        const bool last = i + 1 == w->n;
        st = pt_set_bits(w, &w->ref[i], PTE_A | (last && (w->acc & ACC_WRITE) ? PTE_D : 0));
        if (unlikely(st != CPU_OK))
            return st;
    }
    if (w->acc & ACC_WRITE)
        w->dirty = true;
    return CPU_OK;
}

static bool entry_reserved(const struct walk *w, uint64_t e, int level)
{
    const struct cpu *cpu = w->cpu;

    if (e & w->m->rsvd)
        return true;
    if (level == 0 || !(e & PTE_PS))
        return false;
    if (level == 3)
        return true;
    if (level == 2 && !(cpu->guest_ext1.edx & EXT1_EDX_1G))
        return true;
    return e & ((1ull << (PAGE_SHIFT + 9 * level)) - 1) & PHYS_MASK & ~PAGE_SIZE; /* bit 12 is PAT */
}

static struct psc_entry *psc_slot(struct mem_unit *m, gva_t gva)
{
    return &m->psc[(gva >> 21 ^ gva >> 28) & (PSC_ENTRIES - 1)];
}

static void psc_fill(struct walk *w)
{
    struct psc_entry *p = psc_slot(w->m, w->gva);
    const struct pt_ref *pte = &w->ref[w->n - 1];

    if (!pte->hva)
        return;
    *p = (struct psc_entry){w->m->space->psc_id,  w->gva >> 21, pte->hva & PAGE_MASK,
                            pte->gpa & PAGE_MASK, w->above,     pte->writable};
}

/* 4-level, and PAE below its four PDPTEs. */
static int walk_64(struct walk *w, gpa_t table, int level)
{
    for (;; level--) {
        const unsigned shift = PAGE_SHIFT + 9 * level;
        uint64_t e;
        bool leaf;
        int st = pt_load(w, table + (w->gva >> shift & 511) * 8);

        if (unlikely(st != CPU_OK))
            return st;
        e = w->ref[w->n - 1].val;
        leaf = level == 0 || (e & PTE_PS);
        if (!(e & PTE_P))
            return walk_fault(w, 0);
        if (entry_reserved(w, e, level))
            return walk_fault(w, PF_P | PF_RS);
        w->above = w->wperms;
        combine(w, e);
        if (leaf) {
            const uint64_t offset = (1ull << shift) - 1;

            w->page_size = offset + 1;
            w->gpa = (e & PHYS_MASK & ~offset) | (w->gva & offset & PAGE_MASK);
            st = walk_finish(w, e);
            if (st == CPU_OK && level == 0 && !(w->flags & WALK_NO_AD) && !w->cached)
                psc_fill(w);
            return st;
        }
        table = e & PHYS_MASK;
    }
}

/* Only the last level: its table's address and the combined rights are cached, and all accessed flags above are set. */
static int walk_cached(struct walk *w, const struct psc_entry *p)
{
    struct pt_ref *ref = &w->ref[w->n++];
    const unsigned offset = (w->gva >> PAGE_SHIFT & 511) * 8;
    uint64_t e;

    w->cached = true;
    w->wperms = w->above = p->perms;
    *ref = (struct pt_ref){p->table + offset, p->table_gpa + offset, 0, p->writable};
    if (host_ld64((void *)ref->hva, &e))
        return CPU_AGAIN;
    ref->val = e;
    if (!(e & PTE_P) || (e & w->m->rsvd))
        return CPU_AGAIN;
    combine(w, e);
    w->page_size = PAGE_SIZE;
    w->gpa = e & PHYS_MASK;
    return walk_finish(w, e);
}

/* 32-bit entries; 4 MB pages with PSE, their addresses up to 40 bits (SDM 3A, "32-Bit Paging"). */
static int walk_32(struct walk *w)
{
    const struct cpu_state *s = &w->cpu->s;
    int st = pt_load(w, (s->cr3 & 0xfffff000u) + (w->gva >> 22 & 1023) * 4);
    uint64_t e;

    if (st != CPU_OK)
        return st;
    e = w->ref[0].val;
    if (!(e & PTE_P))
        return walk_fault(w, 0);
    combine(w, e);
    if ((e & PTE_PS) && (s->cr4 & CR4_PSE)) {
        const unsigned bits = w->m->maxphyaddr < 40 ? w->m->maxphyaddr : 40;
        const uint64_t high = e >> 13 & 0x1ff; /* address bits 40:32; bit 40 is always reserved */

        if (high >> (bits > 32 ? bits - 32 : 0))
            return walk_fault(w, PF_P | PF_RS);
        w->page_size = 1ull << 22;
        w->gpa = high << 32 | (e & 0xffc00000u) | (w->gva & 0x3ff000u);
        return walk_finish(w, e);
    }
    st = pt_load(w, (e & 0xfffff000u) + (w->gva >> PAGE_SHIFT & 1023) * 4);
    if (st != CPU_OK)
        return st;
    e = w->ref[1].val;
    if (!(e & PTE_P))
        return walk_fault(w, 0);
    combine(w, e);
    w->page_size = PAGE_SIZE;
    w->gpa = e & 0xfffff000u;
    return walk_finish(w, e);
}

static int walk_form(struct walk *w, bool use_cache)
{
    const struct cpu_state *s = &w->cpu->s;
    const struct psc_entry *p;

    w->n = 0;
    w->wperms = WPERM_U | WPERM_W;
    w->cached = false;
    w->size = s->paging == PAGING_32 ? 4 : 8;
    if (use_cache && s->paging >= PAGING_PAE) {
        p = psc_slot(w->m, w->gva);
        if (p->id == w->m->space->psc_id && p->prefix == w->gva >> 21)
            return walk_cached(w, p);
    }
    switch (s->paging) {
    case PAGING_32:
        return walk_32(w);
    case PAGING_PAE: {
        const uint64_t pdpte = s->pdpte[w->gva >> 30 & 3]; /* checked when CR3 was loaded */

        return pdpte & PTE_P ? walk_64(w, pdpte & PHYS_MASK, 1) : walk_fault(w, 0);
    }
    case PAGING_4LEVEL:
        return walk_64(w, s->cr3 & PHYS_MASK, 3);
    default: /* no paging: identity, all rights */
        w->gpa = w->gva & PAGE_MASK;
        w->page_size = PAGE_SIZE;
        w->dirty = true;
        w->global = false;
        return CPU_OK;
    }
}

static struct io_page *io_slot(struct mem_unit *m, gva_t gva)
{
    return &m->io[gva >> PAGE_SHIFT & (IO_PAGES - 1)];
}

static void io_fill(struct walk *w, unsigned perms)
{
    const struct pt_ref *pte = w->n ? &w->ref[w->n - 1] : NULL;

    if (pte && !pte->hva)
        return;
    *io_slot(w->m, w->gva) = (struct io_page){.tag = (w->gva & PAGE_MASK) | tlb_real_tag(w->m, w->am),
                                              .gpa = w->gpa,
                                              .pte = pte ? pte->hva : 0,
                                              .val = pte ? pte->val : 0,
                                              .pte_size = (uint8_t)w->size,
                                              .perms = perms};
}

int mem_io_page(struct cpu *cpu, gva_t gva, unsigned acc, enum acc_mode am)
{
    struct mem_unit *m = cpu->mem;
    struct io_page *io = io_slot(m, gva);
    struct walk w = {.cpu = cpu, .m = m, .gva = gva};
    struct ept_fault fault;
    uint64_t val;
    unsigned perms;
    hva_t page;

    if (likely(io->tag != ((gva & PAGE_MASK) | tlb_real_tag(m, am))) || (io->perms & acc) != acc || cpu->emul)
        return CPU_OK;
    if (io->pte && (pt_read((void *)io->pte, io->pte_size, &val) || val != io->val)) {
        io->tag = 0;
        return CPU_OK;
    }
    if (ept_translate(m, io->gpa, acc, &page, &perms, &fault))
        return walk_ept_exit(&w, &fault, acc, io->gpa | (gva & ~PAGE_MASK), true);
    io->tag = 0; /* KVM has mapped it */
    return CPU_OK;
}

/* An EPT does not have the page. Under emulation, and for a quiet walk, level 0 is told where it looked for it. */
static int walk_page_missing(struct walk *w, struct xlat *x, const struct ept_fault *fault)
{
    const bool level0 = !w->m->eptp12 || (!fault->level && !fault->table);

    if (!(w->flags & (WALK_QUIET | WALK_NO_AD)) && !w->m->eptp12)
        io_fill(w, x->perms);
    x->hva = 0;
    x->perms = 0;
    x->gpa = w->m->eptp12 ? fault->gpa & PAGE_MASK : w->gpa;
    if (level0 && (w->cpu->emul || (w->flags & WALK_QUIET)))
        return CPU_OK;
    return walk_ept_exit(w, fault, w->acc, w->gpa | (w->gva & ~PAGE_MASK), true);
}

/* The page itself: through the EPT, or as it is. */
static int walk_page(struct walk *w, struct xlat *x)
{
    struct ept_fault fault;
    unsigned perms;
    uint8_t touch;

    x->gpa = w->gpa;
    x->page_size = w->page_size;
    x->global = w->global;
    x->perms = w->cpu->s.paging == PAGING_NONE ? ACC_READ | ACC_WRITE | ACC_EXEC : cacheable(w);
    if (!w->m->eptp) {
        x->hva = w->gpa;
    } else {
        if (unlikely(ept_translate(w->m, w->gpa, w->acc, &x->hva, &perms, &fault)))
            return walk_page_missing(w, x, &fault);
        x->gpa = ept_level0_gpa(w->m, w->gpa);
        x->perms &= perms;
    }
    if (w->flags & WALK_QUIET)
        return CPU_OK;
    if (unlikely(host_ld8((void *)x->hva, &touch))) { /* also: the host's own fault comes now, not in a store */
        x->hva = 0;
        x->perms = 0;
        if (!w->cpu->emul)
            return mem_host_gone(w->cpu, w->gva, x->gpa | (w->gva & ~PAGE_MASK), w->acc, true);
    }
    return CPU_OK;
}

int mem_walk(struct cpu *cpu, gva_t gva, unsigned acc, enum acc_mode am, unsigned flags, struct xlat *x,
             uint32_t *error)
{
    struct walk w = {.cpu = cpu, .m = cpu->mem, .gva = gva, .acc = acc & 7u, .flags = flags, .am = am};
    int st = walk_form(&w, !(flags & WALK_QUIET)); /* quiet: what the tables say now */

    while (st == CPU_AGAIN)
        st = walk_form(&w, false);
    if (error)
        *error = w.error;
    if (unlikely(st != CPU_OK)) {
        x->gpa = w.missing;
        return st;
    }
    return walk_page(&w, x);
}
