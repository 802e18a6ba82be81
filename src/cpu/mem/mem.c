/* SPDX-License-Identifier: MIT
 * mem.c: accesses to guest memory that the inline paths of mem.h leave: segment and canonical checks, TLB misses, pages
 * with decoded code, accesses over two pages, alignment checks, breakpoints, and MMIO under emulation.
 *
 * An access resolves every page that it touches, for all the rights it needs, before it moves a byte. */
#include "mem/flat.h"
#include "mem/mem_int.h"
#include "vmx/vmx_int.h"

#define AR_TYPE_CODE     8u
#define AR_TYPE_DOWN     4u /* data: expand-down */
#define AR_TYPE_WRITABLE 2u /* data; code: readable */

struct span { /* the part of an access that lies in one page */
    gva_t gva;
    gpa_t gpa; /* where hva is 0: MMIO under emulation */
    hva_t hva;
    unsigned len;
    bool code; /* decoded code lies on the page: code.c is told of writes */
};

/* ---- segments (SDM 3A, "Limit Checking", "Type Checking"; 64-bit mode: canonical addresses) ---- */

static int seg_violation(struct cpu *cpu, enum seg_reg seg)
{
    return cpu_raise_err(cpu, seg == SEG_SS ? VEC_SS : VEC_GP, 0);
}

static bool seg_allows(const struct cpu_state *s, const struct segment *sg, gva_t ea, unsigned size, unsigned acc)
{
    const uint64_t last = ea + size - 1;
    const unsigned type = AR_TYPE(sg->attr);
    const bool typed = s->mode != MODE_REAL && s->mode != MODE_V86;

    if (typed) {
        if ((sg->attr & AR_UNUSABLE) || !(sg->attr & AR_P))
            return false;
        if ((acc & ACC_WRITE) && ((type & AR_TYPE_CODE) || !(type & AR_TYPE_WRITABLE)))
            return false;
        if ((acc & ACC_READ) && (type & AR_TYPE_CODE) && !(type & AR_TYPE_WRITABLE))
            return false;
    }
    if ((type & (AR_TYPE_CODE | AR_TYPE_DOWN)) == AR_TYPE_DOWN)
        return ea > sg->limit && last <= (sg->attr & AR_DB ? 0xffffffffu : 0xffffu);
    return last <= sg->limit;
}

int seg_linear_slow(struct cpu *cpu, enum seg_reg seg, gva_t ea, unsigned size, unsigned acc, gva_t *gva)
{
    const struct cpu_state *s = &cpu->s;

    if (s->mode == MODE_64 || (seg == SEG_NONE && (s->efer & EFER_LMA))) {
        *gva = seg == SEG_FS || seg == SEG_GS ? ea + s->seg[seg].base : ea;
        if (unlikely(!cpu_canonical(*gva) || !cpu_canonical(*gva + size - 1)))
            return seg_violation(cpu, seg);
        return CPU_OK;
    }
    ea = (uint32_t)ea;
    if (seg == SEG_NONE) {
        *gva = ea;
        return CPU_OK;
    }
    if (unlikely(!seg_allows(s, &s->seg[seg], ea, size, acc)))
        return seg_violation(cpu, seg);
    *gva = (uint32_t)(s->seg[seg].base + ea);
    return CPU_OK;
}

/* ---- resolving ---- */

static enum acc_mode mode_of(const struct cpu_state *s, unsigned acc)
{
    if (unlikely(acc & ACCF_USER))
        return AM_USER;
    if (unlikely(acc & ACCF_SUPER)) /* EFLAGS.AC does not open user pages to implicit accesses */
        return s->cr4 & CR4_SMAP ? AM_SUPER : AM_SUPER_USER;
    return s->acc_mode;
}

/* One page, with rights for acc; hva 0 only under emulation. A read that is to be followed by a write (ACC_READ and
 * ACC_WRITE) faults as a write does. */
static int resolve(struct cpu *cpu, gva_t gva, unsigned len, unsigned acc, struct span *sp)
{
    struct mem_unit *m = cpu->mem;
    const enum acc_mode am = mode_of(&cpu->s, acc);
    const struct tlb_entry *e = tlb_slot(m, gva, am, TLB_READ);
    const enum tlb_kind kind = acc & (ACC_WRITE | ACCF_RMW) ? TLB_WRITE : TLB_READ;
    uint64_t word;
    struct xlat x;
    int st;

    *sp = (struct span){.gva = gva, .len = len};
    if (e->tag[kind] == ((gva & PAGE_MASK) | tlb_real_tag(m, am))) {
        sp->hva = gva + e->delta;
        return CPU_OK;
    }
    if ((word = flat_peek(cpu, gva, am, kind == TLB_WRITE))) { /* another space, or page, took the entry's place */
        sp->hva = gva + word - 1;
        return CPU_OK;
    }
    cpu->counters[CC_tlb_misses]++;
    if (acc & ACCF_RMW)
        acc |= ACC_WRITE;
    if (unlikely((st = mem_io_page(cpu, gva, acc & 7u, am)) != CPU_OK))
        return st;
    st = mem_walk(cpu, gva, acc & 7u, am, 0, &x, NULL);
    if (unlikely(st != CPU_OK))
        return st;
    sp->gpa = x.gpa | (gva & ~PAGE_MASK);
    if (likely(x.hva))
        sp->hva = tlb_fill(cpu, gva, am, &x, acc, &sp->code) | (gva & ~PAGE_MASK);
    return CPU_OK;
}

/* The host's memory went away behind a cached translation: forget it and say which guest page it was. */
static int gone(struct cpu *cpu, gva_t gva, unsigned acc)
{
    struct mem_unit *m = cpu->mem;
    struct xlat x;
    int st;

    tlb_drop_page(m, gva);
    st = mem_walk(cpu, gva, acc & 7u, mode_of(&cpu->s, acc), 0, &x, NULL);
    return st != CPU_OK ? st : mem_host_gone(cpu, gva, x.gpa | (gva & ~PAGE_MASK), acc, true);
}

/* Linear address, alignment check, spans: at most two. */
static int prepare(struct cpu *cpu, enum seg_reg seg, gva_t ea, unsigned size, unsigned acc, struct span sp[2],
                   unsigned *n)
{
    const struct cpu_state *s = &cpu->s;
    unsigned first;
    gva_t gva, next;
    int st = seg_linear_slow(cpu, seg, ea, size, acc, &gva);

    if (unlikely(st != CPU_OK))
        return st;
    cpu->counters[CC_slow_accesses]++;
    if (unlikely(cpu->mem->slow) && s->cpl == 3 && (s->rflags_sys & F_AC) && (s->cr0 & CR0_AM) && !(acc & ACCF_SUPER) &&
        size <= 8 && (gva & (size - 1)))
        return cpu_raise_err(cpu, VEC_AC, 0);
    first = PAGE_SIZE - (gva & ~PAGE_MASK);
    *n = size > first ? 2 : 1;
    st = resolve(cpu, gva, *n == 2 ? first : size, acc, &sp[0]);
    if (likely(*n == 1) || st != CPU_OK)
        return st;
    next = gva + first;
    if (s->mode != MODE_64 && !(s->efer & EFER_LMA))
        next = (uint32_t)next;
    st = resolve(cpu, next, size - first, acc, &sp[1]);
    if (unlikely(cpu->emul) && st == CPU_OK &&
        sp[0].hva) /* a callback ran perhaps: host memory may have been dropped */
        return resolve(cpu, gva, first, acc, &sp[0]);
    return st;
}

/* ---- moving ---- */

static int span_read(struct cpu *cpu, const struct span *sp, void *buf)
{
    const void *p = (const void *)sp->hva;
    int r;

    if (unlikely(!sp->hva))
        return emul_mmio_read(cpu, sp->gpa, buf, sp->len);
    switch (sp->len) {
    case 1:
        r = host_ld8(p, buf);
        break;
    case 2:
        r = host_ld16(p, buf);
        break;
    case 4:
        r = host_ld32(p, buf);
        break;
    case 8:
        r = host_ld64(p, buf);
        break;
    default:
        r = host_copy(buf, p, sp->len);
    }
    return likely(r == 0) ? CPU_OK : CPU_AGAIN;
}

static int span_write(struct cpu *cpu, const struct span *sp, const void *buf)
{
    void *p = (void *)sp->hva;
    int r;

    if (unlikely(!sp->hva))
        return emul_mmio_write(cpu, sp->gpa, buf, sp->len);
    switch (sp->len) {
    case 1:
        r = host_st8(p, *(const uint8_t *)buf);
        break;
    case 2:
        r = host_st16(p, *(const uint16_t *)buf);
        break;
    case 4:
        r = host_st32(p, *(const uint32_t *)buf);
        break;
    case 8:
        r = host_st64(p, *(const uint64_t *)buf);
        break;
    default:
        r = host_copy(p, buf, sp->len);
    }
    if (unlikely(r))
        return CPU_AGAIN;
    if (unlikely(sp->code))
        code_written(cpu, sp->hva, sp->len);
    return CPU_OK;
}

/* Memory before MMIO: a callback may let host memory go, and what it leaves to user space is done again. */
static int spans_move(struct cpu *cpu, const struct span *sp, unsigned n, void *buf, unsigned acc)
{
    const bool second_first = n == 2 && !sp[0].hva && sp[1].hva;

    for (unsigned i = 0; i < n; i++) {
        const struct span *s = &sp[i ^ second_first];
        uint8_t *p = (uint8_t *)buf + (s == sp ? 0 : sp[0].len);
        int st = acc & ACC_WRITE ? span_write(cpu, s, p) : span_read(cpu, s, p);

        if (unlikely(st == CPU_AGAIN))
            return gone(cpu, s->gva, acc);
        if (unlikely(st != CPU_OK))
            return st;
    }
    return CPU_OK;
}

/* ---- the accessors ---- */

static int move(struct cpu *cpu, enum seg_reg seg, gva_t ea, void *buf, unsigned size, unsigned acc)
{
    struct span sp[2];
    unsigned n;
    int st = prepare(cpu, seg, ea, size, acc, sp, &n);

    if (unlikely(st != CPU_OK))
        return st;
    st = spans_move(cpu, sp, n, buf, acc);
    if (unlikely(cpu->mem->slow) && st == CPU_OK)
        cpu_data_access(cpu, sp[0].gva, size, acc);
    return st;
}

int mem_read(struct cpu *cpu, enum seg_reg seg, gva_t ea, void *buf, unsigned size, unsigned acc)
{
    return move(cpu, seg, ea, buf, size, (acc | ACC_READ) & ~ACC_WRITE);
}

int mem_write(struct cpu *cpu, enum seg_reg seg, gva_t ea, const void *buf, unsigned size, unsigned acc)
{
    return move(cpu, seg, ea, (void *)buf, size, (acc | ACC_WRITE) & ~ACC_READ);
}

int mem_probe(struct cpu *cpu, enum seg_reg seg, gva_t ea, unsigned size, unsigned acc)
{
    struct span sp[2];
    unsigned n;

    /* longer than a page: each page, the last address included */
    while (size > PAGE_SIZE) {
        int st = prepare(cpu, seg, ea, 1, acc, sp, &n);
        if (st != CPU_OK)
            return st;
        ea += PAGE_SIZE;
        size -= PAGE_SIZE;
    }
    return size ? prepare(cpu, seg, ea, size, acc, sp, &n) : CPU_OK;
}

/* ---- read-modify-write, native operands ---- */

static int rmw_bounce(struct cpu *cpu, const struct span *sp, unsigned n, struct rmw *r)
{
    uint8_t *p = r->buf + (r->gva & 63);

    r->bounce = true;
    r->ptr = p;
    return r->acc & ACC_READ ? spans_move(cpu, sp, n, p, r->acc & ~ACC_WRITE) : CPU_OK;
}

static int rmw_slow(struct cpu *cpu, struct rmw *r)
{
    struct span sp[2];
    unsigned n;
    int st = prepare(cpu, r->seg, r->ea, r->size, r->acc, sp, &n);

    if (unlikely(st != CPU_OK))
        return st;
    r->gva = sp[0].gva;
    if (n == 2 && (r->acc & ACCF_LOCK) && !r->exclusive) {
        cpu_exclusive_begin(cpu); /* may have served flushes: resolve again */
        r->exclusive = true;
        st = rmw_slow(cpu, r);
        if (st != CPU_OK)
            cpu_exclusive_end(cpu);
        return st;
    }
    if (n == 2 || !sp[0].hva)
        return rmw_bounce(cpu, sp, n, r);
    r->ptr = (void *)sp[0].hva;
    r->code = sp[0].code && (r->acc & ACC_WRITE);
    if (r->code)
        code_written(cpu, sp[0].hva, r->size);
    return CPU_OK;
}

int mem_rmw_begin(struct cpu *cpu, enum seg_reg seg, gva_t ea, unsigned size, unsigned acc, struct rmw *r)
{
    gva_t gva;

    r->bounce = r->code = r->exclusive = false;
    r->size = size;
    r->acc = acc;
    r->seg = seg;
    r->ea = ea;
    if (likely(seg_linear_fast(cpu, seg, ea, &gva)) && likely(!(acc & (ACCF_SUPER | ACCF_USER)))) {
        r->gva = gva;
        r->ptr = tlb_lookup(cpu, gva, size, acc & (ACC_WRITE | ACCF_RMW) ? TLB_WRITE : TLB_READ);
        if (likely(r->ptr))
            return CPU_OK;
    }
    return rmw_slow(cpu, r);
}

int mem_rmw_end(struct cpu *cpu, struct rmw *r)
{
    struct span sp[2];
    unsigned n;
    int st = CPU_OK;

    if (likely(!r->bounce && !r->code && !cpu->mem->slow))
        return CPU_OK;
    if (r->bounce && (r->acc & ACC_WRITE)) {
        st = prepare(cpu, r->seg, r->ea, r->size, r->acc & ~ACC_READ, sp, &n);
        if (st == CPU_OK)
            st = spans_move(cpu, sp, n, r->ptr, ACC_WRITE);
    }
    if (r->code)
        code_written(cpu, (hva_t)r->ptr, r->size);
    if (r->exclusive)
        cpu_exclusive_end(cpu);
    if (unlikely(cpu->mem->slow) && st == CPU_OK)
        cpu_data_access(cpu, r->gva, r->size, r->acc);
    return st;
}

/* ---- chunks, instruction bytes ---- */

/* Where a chunk begins, for whoever walks through more memory than the tagged TLB holds: the flat tables are asked, and
 * told. NULL: not plain memory. */
static int chunk_resolve(struct cpu *cpu, gva_t gva, unsigned acc, void **ptr)
{
    const bool write = acc & ACC_WRITE;
    const uint64_t word = flat_find(cpu, gva, write);
    struct span sp;
    int st;

    *ptr = (void *)(gva + word - 1);
    if (likely(word))
        return CPU_OK;
    st = resolve(cpu, gva, 1, acc, &sp);
    *ptr = st == CPU_OK && !sp.code ? (void *)sp.hva : NULL;
    if (*ptr && cpu->flatu)
        flat_fill(cpu, gva);
    return st;
}

int mem_chunk(struct cpu *cpu, enum seg_reg seg, gva_t ea, unsigned acc, void **ptr, size_t *len)
{
    gva_t gva;
    size_t room;
    int st;

    *ptr = NULL;
    *len = 0;
    if (cpu->mem->slow)
        return CPU_OK;
    st = seg_linear_slow(cpu, seg, ea, 1, acc, &gva);
    if (st != CPU_OK)
        return st;
    room = PAGE_SIZE - (gva & ~PAGE_MASK);
    if (cpu->s.mode != MODE_64 && seg != SEG_NONE) {
        const struct segment *sg = &cpu->s.seg[seg];

        if ((AR_TYPE(sg->attr) & (AR_TYPE_CODE | AR_TYPE_DOWN)) == AR_TYPE_DOWN)
            return CPU_OK;
        if (room > (uint64_t)sg->limit - (uint32_t)ea + 1)
            room = (uint64_t)sg->limit - (uint32_t)ea + 1;
    }
    st = chunk_resolve(cpu, gva, acc, ptr);
    *len = *ptr ? room : 0;
    return st;
}

int mem_exec_page_slow(struct cpu *cpu, gva_t gva, hva_t *page)
{
    struct mem_unit *m = cpu->mem;
    const enum acc_mode am = cpu->s.acc_mode;
    const struct tlb_entry *e = tlb_slot(m, gva, am, TLB_EXEC);
    struct xlat x;
    bool code;
    int st;

    if (e->tag[TLB_EXEC] == ((gva & PAGE_MASK) | tlb_real_tag(m, am))) { /* slow mode matches nothing inline */
        *page = (gva & PAGE_MASK) + e->delta;
        return CPU_OK;
    }
    if (!cpu_canonical(gva))
        return cpu_raise_err(cpu, VEC_GP, 0);
    if (tlb_fill_global_exec(cpu, gva, am, page))
        return CPU_OK;
    cpu->counters[CC_tlb_misses]++;
    st = mem_walk(cpu, gva, ACC_EXEC, am, 0, &x, NULL);
    if (unlikely(st != CPU_OK))
        return st;
    if (!x.hva)
        return CPU_VMEXIT; /* emulation only: no code there */
    *page = tlb_fill(cpu, gva, am, &x, ACC_EXEC, &code);
    code_page_filled(cpu, gva, *page);
    return CPU_OK;
}

int mem_fetch(struct cpu *cpu, gva_t gva, uint8_t *buf, unsigned n, unsigned *got)
{
    const unsigned first = PAGE_SIZE - (gva & ~PAGE_MASK);
    const unsigned part = n < first ? n : first;
    hva_t page;
    int st = mem_exec_page(cpu, gva, &page);

    *got = 0;
    if (st != CPU_OK)
        return st;
    if (host_copy(buf, (void *)(page | (gva & ~PAGE_MASK)), part))
        return gone(cpu, gva, ACC_EXEC);
    *got = part;
    gva += part;
    if (part == n)
        return CPU_OK;
    if (cpu->s.mode != MODE_64)
        gva = (uint32_t)gva;
    /* not executable: it faults when its bytes are asked for by address */
    if (mem_exec_page(cpu, gva, &page) == CPU_OK && host_copy(buf + part, (void *)page, n - part) == 0)
        *got = n;
    return CPU_OK;
}

/* ---- physical and linear addresses for the rest of the processor ---- */

void *cpu_guest_phys(struct cpu *cpu, gpa_t gpa, size_t size, unsigned acc)
{
    struct mem_unit *m = cpu->mem;
    struct ept_fault fault;
    unsigned perms;
    hva_t page;

    if (!(cpu->in_guest_mode || cpu->emul) || !m->eptp)
        return (void *)gpa;
    if ((gpa & ~PAGE_MASK) + size > PAGE_SIZE)
        return NULL;
    if (ept_translate(m, gpa, acc & 7u, &page, &perms, &fault)) {
        if (!cpu->emul) {
            const uint64_t rights = (fault.table ? fault.acc : acc & 7u) | fault.ent;

            if (m->eptp12 && !fault.level)
                gpa = fault.gpa | (fault.table ? 0 : gpa & ~PAGE_MASK);
            vmx_exit_ept(cpu, fault.reason, fault.reason == EXIT_REASON_EPT_VIOLATION ? rights : 0, 0, gpa);
            cpu->exit.level = (uint8_t)fault.level;
        }
        return NULL;
    }
    return (void *)(page | (gpa & ~PAGE_MASK));
}

int mem_translate(struct cpu *cpu, gva_t gva, unsigned acc, struct xlat *x)
{
    return mem_walk(cpu, gva, acc & 7u, mode_of(&cpu->s, acc), 0, x, NULL);
}
