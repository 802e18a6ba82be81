/* SPDX-License-Identifier: MIT
 * tlb.c: cached translations (SDM 3A, "Caching Translation Information"; SDM 3C, "Caching Translation Information" for
 * VPIDs and EPT). Entries are found by linear page and a 12-bit tag: the generation of an address space and the access
 * mode. A flush of one space is a new generation; when they run out the arrays are wiped. Global pages are cached under
 * the tag of the PCID that used them, so a flush of a PCID drops more than it must, never less; INVLPG looks at the one
 * slot of each mode where the page can be, whatever its space, so it drops globals of other PCIDs too. */
#include "engine.h"
#include "mem/flat.h"
#include "mem/mem_int.h"
#include "vmx/vmx_int.h"
#include <stdlib.h>

#define CTL_CR4 (CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP)

struct tlb_entry *tlb_slot(struct mem_unit *m, gva_t gva, enum acc_mode am, enum tlb_kind kind)
{
    struct tlb_entry *array = &m->arrays[am * TLB_ARRAY];
    const uint64_t n = gva >> PAGE_SHIFT;

    return kind == TLB_EXEC ? &array[TLB_ENTRIES + (n & (ITLB_ENTRIES - 1))] : &array[n & (TLB_ENTRIES - 1)];
}

/* ---- filling ---- */

static void entry_set(struct tlb_entry *e, uint64_t tag, uint64_t delta, unsigned kinds)
{
    for (unsigned k = 0; k < TLB_KINDS; k++) {
        if (kinds & 1u << k)
            e->tag[k] = tag;
        else if (e->tag[k] != tag || e->delta != delta)
            e->tag[k] = 0;
    }
    e->delta = delta;
}

static uint64_t hash(uint64_t n)
{
    return n * 0x9e3779b97f4a7c15ull >> 52; /* 12 bits */
}

static void large_page_mark(struct mem_unit *m, gva_t gva, uint64_t page_size)
{
    const uint64_t first = (gva & ~(page_size - 1)) >> 21;

    if (page_size > 1ull << 22) {
        m->huge |= 1ull << (hash(gva >> 30) & 63);
        return;
    }
    for (uint64_t n = first; n < first + (page_size >> 21); n++)
        m->large[hash(n) >> 6] |= 1ull << (hash(n) & 63);
}

/* The filter's bit stands before the code bit is read: whoever sets a code bit afterwards finds this cpu there and
 * waits for its safepoint; whoever set it before is seen here. */
static bool page_may_be_written(struct cpu *cpu, hva_t page)
{
    _Atomic uint64_t *slot = &cpu->domain->mem->wfilter[wfilter_slot(page)];
    const uint64_t bit = 1ull << (cpu->mem->index & 63);

    if (!(atomic_load_explicit(slot, memory_order_relaxed) & bit))
        atomic_fetch_or_explicit(slot, bit, memory_order_seq_cst);
    return !code_page_present(cpu->domain, page);
}

hva_t tlb_fill(struct cpu *cpu, gva_t gva, enum acc_mode am, const struct xlat *x, unsigned acc, bool *code)
{
    struct mem_unit *m = cpu->mem;
    const uint64_t tag = (gva & PAGE_MASK) | tlb_real_tag(m, am);
    const uint64_t delta = x->hva - (gva & PAGE_MASK);

    if (unlikely(x->page_size > PAGE_SIZE))
        large_page_mark(m, gva, x->page_size);
    flat_note_global(cpu, gva, am, x->global);
    if (acc & ACC_EXEC) {
        flat_note_exec_fill(cpu, gva, x->global);
        if (x->global)
            flat_global_exec_set(cpu, gva, am, x->hva);
        entry_set(tlb_slot(m, gva, am, TLB_EXEC), tag, delta, 1u << TLB_EXEC);
    } else {
        unsigned kinds = x->perms & ACC_READ ? 1u << TLB_READ : 0;

        if (x->perms & ACC_WRITE) {
            if (page_may_be_written(cpu, x->hva))
                kinds |= 1u << TLB_WRITE;
            else
                *code = true;
        } else if (acc & ACC_WRITE) {
            *code = code_page_present(cpu->domain, x->hva);
        }
        entry_set(tlb_slot(m, gva, am, TLB_READ), tag, delta, kinds);
    }
    return x->hva;
}

/* An exec entry of a global page that another address space left: still valid, so nothing is walked or compared. */
bool tlb_fill_global_exec(struct cpu *cpu, gva_t gva, enum acc_mode am, hva_t *page)
{
    struct mem_unit *m = cpu->mem;
    const hva_t hva = flat_global_exec(cpu, gva, am);

    if (!hva)
        return false;
    entry_set(tlb_slot(m, gva, am, TLB_EXEC), (gva & PAGE_MASK) | tlb_real_tag(m, am), hva - (gva & PAGE_MASK),
              1u << TLB_EXEC);
    *page = hva;
    return true;
}

/* ---- dropping ---- */

void tlb_drop_writes(struct mem_unit *m, hva_t page)
{
    const unsigned slot = wfilter_slot(page);

    flat_drop_writes(m->cpu, page);
    for (unsigned am = 0; am < AM_COUNT; am++) {
        struct tlb_entry *e = &m->arrays[am * TLB_ARRAY];

        for (unsigned i = 0; i < TLB_ENTRIES; i++, e++) {
            const uint64_t tag = e->tag[TLB_WRITE];
            if (tag && (!page || wfilter_slot((tag & PAGE_MASK) + e->delta) == slot))
                e->tag[TLB_WRITE] = 0;
        }
    }
    if (page && atomic_load(&m->cpu->domain->mem->nunits) <= 64) /* else the bit is shared */
        atomic_fetch_and(&m->cpu->domain->mem->wfilter[slot], ~(1ull << (m->index & 63)));
}

static void entry_drop(struct tlb_entry *e, gva_t first, uint64_t mask)
{
    for (unsigned k = 0; k < TLB_KINDS; k++) {
        if ((e->tag[k] & mask) == first)
            e->tag[k] = 0;
    }
}

static void drop_region(struct mem_unit *m, gva_t gva, uint64_t size)
{
    const uint64_t mask = ~(size - 1);

    flat_drop_all(m->cpu);
    for (unsigned i = 0; i < AM_COUNT * TLB_ARRAY; i++)
        entry_drop(&m->arrays[i], gva & mask, mask);
}

/* Any address of a large page drops all of it. A tag of 0 is dropped again where gva lies in page 0: harmless. */
void tlb_drop_page(struct mem_unit *m, gva_t gva)
{
    const uint64_t h = hash(gva >> 21);

    flat_drop_page(m->cpu, gva);
    memset(m->io, 0, sizeof(m->io)); /* they do not say how large the page is */
    if (unlikely(m->huge & 1ull << (hash(gva >> 30) & 63)))
        drop_region(m, gva, 1ull << 30);
    else if (m->large[h >> 6] & 1ull << (h & 63))
        drop_region(m, gva, 1ull << 22); /* 4 MB: covers a 2 MB page as well */
    for (unsigned am = 0; am < AM_COUNT; am++) {
        entry_drop(tlb_slot(m, gva, am, TLB_READ), gva & PAGE_MASK, PAGE_MASK);
        entry_drop(tlb_slot(m, gva, am, TLB_EXEC), gva & PAGE_MASK, PAGE_MASK);
    }
}

static void wipe(struct mem_unit *m)
{
    memset(m->arrays, 0, sizeof(*m->arrays) * AM_COUNT * TLB_ARRAY);
    memset(m->io, 0, sizeof(m->io));
    memset(m->large, 0, sizeof(m->large));
    m->huge = 0;
    m->generations = 0;
    for (unsigned i = 0; i < SPACES; i++)
        m->spaces[i].generation = 0;
    flat_drop_all(m->cpu);
}

static void space_drop(struct space *s)
{
    s->generation = 0;
    s->psc_id = 0;
}

void tlb_flush_all(struct mem_unit *m)
{
    for (unsigned i = 0; i < SPACES; i++)
        space_drop(&m->spaces[i]);
    flat_world_flushed(m->cpu);
    ept_forget(m);
}

/* Level 1's guests: what depends on its EPTs, and with VPIDs off on any. */
static void flush_nested(struct mem_unit *m)
{
    for (unsigned i = 0; i < SPACES; i++)
        if (m->spaces[i].key.vpid & TLB_TAG_NESTED)
            space_drop(&m->spaces[i]);
    flat_world_flushed(m->cpu);
    m->nested_generation++;
}

void tlb_flush(struct cpu *cpu, enum tlb_scope scope, uint32_t vpid, uint16_t pcid, gva_t gva)
{
    struct mem_unit *m = cpu->mem;

    cpu->counters[scope == TLB_PAGE ? CC_tlb_flush_pages : CC_tlb_flushes]++;
    if (scope == TLB_ALL)
        tlb_flush_all(m);
    if (scope == TLB_NESTED)
        flush_nested(m);
    if (scope == TLB_PAGE) {
        tlb_drop_page(m, gva);
        if (cpu->s.cr4 & CR4_PCIDE && pcid != (cpu->s.cr3 & 0xfff))
            flat_forget_spaces(cpu);
    }
    for (unsigned i = 0; i < SPACES; i++) {
        struct space *s = &m->spaces[i];

        if (s->key.vpid != vpid)
            continue;
        if (scope == TLB_PAGE)
            s->psc_id = ++m->clock; /* INVLPG empties the paging-structure cache, whatever the address */
        else if (scope == TLB_VPID)
            flat_world_flushed(cpu);
        if (scope == TLB_VPID || scope == TLB_VPID_NONGLOBAL || (scope == TLB_PCID && s->key.pcid == pcid))
            space_drop(s);
    }
    tlb_select(cpu);
    if (cpu->engine && cpu->engine->flush)
        cpu->engine->flush(cpu);
}

/* ---- choosing ---- */

static bool key_equal(const struct space_key *a, const struct space_key *b)
{
    return a->eptp == b->eptp && a->eptp12 == b->eptp12 && a->ctl == b->ctl && a->vpid == b->vpid && a->pcid == b->pcid;
}

static struct space *space_find(struct mem_unit *m, const struct space_key *key)
{
    struct space *victim = &m->spaces[0];

    for (unsigned i = 0; i < SPACES; i++) {
        struct space *s = &m->spaces[i];

        if (key_equal(&s->key, key))
            return s;
        if (s->last_used < victim->last_used)
            victim = s;
    }
    victim->key = *key;
    space_drop(victim);
    return victim;
}

static void take_reserved_bits(struct mem_unit *m, const struct cpu *cpu)
{
    /* without EPT the tables are KVM's own and hold addresses of this process */
    const unsigned width = m->eptp && cpu->guest_maxphyaddr ? cpu->guest_maxphyaddr : 52;

    m->maxphyaddr = width;
    m->rsvd = width < 52 ? PHYS_MASK & ~((1ull << width) - 1) : 0;
    if (!(cpu->s.efer & EFER_NXE))
        m->rsvd |= 1ull << 63;
    if (cpu->s.paging == PAGING_PAE)
        m->rsvd |= 0x7ffull << 52;
}

static bool slow_mode(const struct cpu_state *s)
{
    if (unlikely(s->dr7 & 0xff)) {
        for (unsigned n = 0; n < 4; n++) {
            if ((s->dr7 >> (2 * n) & 3) && (s->dr7 >> (16 + 4 * n) & 1)) /* enabled, data write (01) or access (11) */
                return true;
        }
    }
    return unlikely(s->cpl == 3 && (s->rflags_sys & F_AC) && (s->cr0 & CR0_AM));
}

/* Kept for STAC and CLAC, which are emitted: the views of CPL 0. */
static void views_select(struct cpu *cpu)
{
    struct mem_unit *m = cpu->mem;

    for (unsigned ac = 0; ac < 2; ac++) {
        const enum acc_mode am = ac || !(cpu->s.cr4 & CR4_SMAP) ? AM_SUPER_USER : AM_SUPER;

        cpu->view[ac] = (struct access_view){.acc_mode = am,
                                             .tlb_tag = m->slow ? TLB_TAG_SLOW : tlb_real_tag(m, am),
                                             .flat = flat_base(cpu, am, m->slow),
                                             .tlb = &m->arrays[am * TLB_ARRAY]};
    }
}

/* After space, access mode or slow mode: what the inline paths look at. */
static void select_view(struct cpu *cpu)
{
    struct mem_unit *m = cpu->mem;
    const enum acc_mode am = cpu->s.acc_mode;

    cpu->tlb = &m->arrays[am * TLB_ARRAY];
    cpu->tlb_tag = m->slow ? TLB_TAG_SLOW : tlb_real_tag(m, am);
    cpu->flat = flat_base(cpu, am, m->slow);
    if (am != AM_USER)
        views_select(cpu);
}

void tlb_select(struct cpu *cpu)
{
    struct mem_unit *m = cpu->mem;
    const struct cpu_state *s = &cpu->s;
    const bool paged = s->cr0 & CR0_PG;
    const struct space_key key = {
        .eptp = vmx_ept_enabled(cpu) ? vmx_eptp(cpu) : 0,
        .eptp12 = vmx_nested_eptp(cpu),
        .ctl = (s->cr0 & (CR0_PG | CR0_WP)) | (s->cr4 & CTL_CR4) << 32 | (s->efer & (EFER_LMA | EFER_NXE)) << 52,
        .vpid = vmx_vpid(cpu),
        .pcid = paged && (s->cr4 & CR4_PCIDE) ? s->cr3 & 0xfff : 0,
    };
    struct space *sp = m->space;

    if (!key_equal(&sp->key, &key))
        sp = m->space = space_find(m, &key);
    if (unlikely(m->eptp != key.eptp)) {
        m->eptp = key.eptp;
        m->ept_ad = key.eptp & EPTP_AD;
        ept_forget(m);
    }
    m->eptp12 = key.eptp12;
    if (unlikely(key.eptp12) && key.eptp12 != m->nested_eptp) {
        m->nested_eptp = key.eptp12;
        m->nested_generation++;
    }
    take_reserved_bits(m, cpu);
    if (unlikely(!sp->generation)) {
        if (m->generations == GENERATION_MAX)
            wipe(m);
        sp->generation = ++m->generations;
        sp->psc_id = ++m->clock;
    }
    sp->last_used = ++m->clock;
    m->slow = slow_mode(s);
    flat_select(cpu, sp, sp->generation, (const uint64_t[]){key.eptp, key.ctl, key.vpid, key.eptp12});
    select_view(cpu);
}

/* Privilege or AC changed in the same address space. */
void tlb_select_access(struct cpu *cpu)
{
    cpu->mem->slow = slow_mode(&cpu->s);
    select_view(cpu);
}

int mem_cpu_init(struct cpu *cpu)
{
    struct mem_unit *m = calloc(1, sizeof(*m));

    if (!m)
        return -1;
    m->arrays = aligned_alloc(64, sizeof(*m->arrays) * AM_COUNT * TLB_ARRAY);
    if (!m->arrays) {
        free(m);
        return -1;
    }
    m->cpu = cpu;
    m->space = &m->spaces[0];
    m->ept_generation = m->nested_generation = 1; /* what the empty caches do not have */
    wipe(m);
    cpu->mem = m;
    cpu->tlb = m->arrays;
    cpu->tlb_tag = TLB_TAG_SLOW;
    mem_registry_add(m);
    return 0;
}

void mem_cpu_destroy(struct cpu *cpu)
{
    struct mem_unit *m = cpu->mem;

    if (!m)
        return;
    mem_registry_remove(m);
    emul_destroy(m);
    free(m->arrays);
    free(m);
    cpu->mem = NULL;
}
