/* SPDX-License-Identifier: MIT
 * seg.c: descriptors, segment loads and the stacks of the TSS (SDM 3A, "Protected-Mode Memory Management"). */
#include "sys/cpu_sys.h"
#include "mem/mem.h"

uint64_t desc_base(uint64_t d)
{
    return (d >> 16 & 0xffffff) | (d >> 56 & 0xff) << 24;
}

uint32_t desc_limit(uint64_t d)
{
    const uint32_t limit = (uint32_t)(d & 0xffff) | (uint32_t)(d >> 48 & 0xf) << 16;

    return d >> 55 & 1 ? limit << 12 | 0xfff : limit;
}

void seg_from_desc(struct segment *seg, uint16_t sel, uint64_t desc)
{
    *seg = (struct segment){
        .base = desc_base(desc), .limit = desc_limit(desc), .attr = (uint32_t)(desc >> 40) & 0xf0ff, .sel = sel};
}

void seg_make_null(struct segment *seg, uint16_t sel)
{
    *seg = (struct segment){.sel = sel, .attr = AR_UNUSABLE};
}

int seg_error(struct cpu *cpu, unsigned vector, uint16_t sel)
{
    return cpu_raise_err(cpu, vector, sel & 0xfffc);
}

/* ---- descriptor tables ---- */
bool seg_in_table(const struct cpu *cpu, uint16_t sel, unsigned size)
{
    const struct cpu_state *s = &cpu->s;
    const bool local = sel & 4;

    return !(local && (s->ldtr.attr & AR_UNUSABLE)) &&
           (sel & ~7u) + size - 1 <= (local ? s->ldtr.limit : s->gdtr.limit);
}

static int desc_linear(struct cpu *cpu, uint16_t sel, unsigned size, unsigned vector, gva_t *gva)
{
    if (!seg_in_table(cpu, sel, size))
        return seg_error(cpu, vector, sel);
    *gva = (sel & 4 ? cpu->s.ldtr.base : cpu->s.gdtr.base) + (sel & ~7u);
    if (!long_mode(cpu))
        *gva = (uint32_t)*gva;
    return CPU_OK;
}

int seg_read_desc8(struct cpu *cpu, uint16_t sel, uint64_t *desc, unsigned vector)
{
    gva_t gva = 0;
    int st = desc_linear(cpu, sel, 8, vector, &gva);

    return st ? st : mem_read(cpu, SEG_NONE, gva, desc, 8, ACC_READ | ACCF_SUPER);
}

/* In long mode system descriptors have 16 bytes: desc[1] is the upper half, else 0. */
int seg_read_desc(struct cpu *cpu, uint16_t sel, uint64_t desc[2], unsigned vector)
{
    gva_t gva = 0;
    int st = seg_read_desc8(cpu, sel, &desc[0], vector);

    desc[1] = 0;
    if (st || !long_mode(cpu) || desc_s(desc[0]))
        return st;
    st = desc_linear(cpu, sel, 16, vector, &gva);
    return st ? st : mem_read(cpu, SEG_NONE, gva + 8, &desc[1], 8, ACC_READ | ACCF_SUPER);
}

/* The type byte of a descriptor is changed with a locked access, as by the processor. */
int seg_set_type(struct cpu *cpu, uint16_t sel, unsigned clear, unsigned set)
{
    struct rmw rmw;
    gva_t gva = 0;
    int st = desc_linear(cpu, sel, 8, VEC_GP, &gva);

    if (st)
        return st;
    st = mem_rmw_begin(cpu, SEG_NONE, gva + 4, 4, ACC_READ | ACC_WRITE | ACCF_SUPER | ACCF_LOCK, &rmw);
    if (st)
        return st;
    uint32_t old, wanted;
    if (host_ld32(rmw.ptr, &old))
        return mem_read(cpu, SEG_NONE, gva + 4, &old, 4, ACC_READ | ACCF_SUPER);
    do
        wanted = (old & ~(clear << 8)) | set << 8;
    while (host_cmpxchg32(rmw.ptr, &old, wanted) > 0);
    return mem_rmw_end(cpu, &rmw);
}

int seg_set_accessed(struct cpu *cpu, uint16_t sel, uint64_t desc)
{
    return desc_type(desc) & 1 ? CPU_OK : seg_set_type(cpu, sel, 0, 1);
}

/* ---- loads ---- */
void seg_load_real(struct cpu *cpu, enum seg_reg reg, uint16_t sel)
{
    struct segment *seg = &cpu->s.seg[reg];

    if (cpu->s.mode == MODE_V86) {
        *seg = (struct segment){.base = (uint64_t)sel << 4, .limit = 0xffff, .attr = 0xf3, .sel = sel};
        return;
    }
    /* Real mode keeps limit and sizes ("unreal mode"). */
    if (seg->attr & AR_UNUSABLE)
        seg->limit = 0xffff;
    seg->base = (uint64_t)sel << 4;
    seg->sel = sel;
    seg->attr =
        (seg->attr & (reg == SEG_CS ? AR_G | AR_AVL : AR_DB | AR_G | AR_AVL)) | AR_P | AR_S | (reg == SEG_CS ? 11 : 3);
}

static int load_null(struct cpu *cpu, enum seg_reg reg, uint16_t sel)
{
    struct segment *seg = &cpu->s.seg[reg];

    if (reg == SEG_SS && (cpu->s.mode != MODE_64 || cpu->s.cpl == 3 || sel_rpl(sel) != cpu->s.cpl))
        return cpu_raise_err(cpu, VEC_GP, 0);
    seg_make_null(seg, sel);
    if (reg == SEG_SS)
        seg->attr |= (uint32_t)cpu->s.cpl << 5;
    return CPU_OK;
}

/* The checks of SDM 2B, "MOV", for a selector that is not null; the descriptor is read already. */
static int check_data(struct cpu *cpu, enum seg_reg reg, uint16_t sel, uint64_t d)
{
    const unsigned cpl = cpu->s.cpl, dpl = desc_dpl(d), rpl = sel_rpl(sel);

    if (reg == SEG_SS) {
        if (rpl != cpl || dpl != cpl || !desc_writable_data(d))
            return seg_error(cpu, VEC_GP, sel);
        return desc_p(d) ? CPU_OK : seg_error(cpu, VEC_SS, sel);
    }
    if (!desc_s(d) || (desc_code(d) && !(desc_type(d) & 2)))
        return seg_error(cpu, VEC_GP, sel);
    if (!(desc_code(d) && desc_conforming(d)) && (rpl > dpl || cpl > dpl))
        return seg_error(cpu, VEC_GP, sel);
    return desc_p(d) ? CPU_OK : seg_error(cpu, VEC_NP, sel);
}

int seg_load(struct cpu *cpu, enum seg_reg reg, uint16_t sel)
{
    struct segment seg;
    uint64_t desc;
    int st;

    if (cpu->s.mode == MODE_REAL || cpu->s.mode == MODE_V86) {
        seg_load_real(cpu, reg, sel);
        cpu_mode_changed(cpu);
        return CPU_OK;
    }
    if (sel_null(sel)) {
        st = load_null(cpu, reg, sel);
    } else {
        if ((st = seg_read_desc8(cpu, sel, &desc, VEC_GP)) || (st = check_data(cpu, reg, sel, desc)) ||
            (st = seg_set_accessed(cpu, sel, desc)))
            return st;
        seg_from_desc(&seg, sel, desc | 1ull << 40);
        cpu->s.seg[reg] = seg;
    }
    if (!st)
        cpu_mode_changed(cpu);
    return st;
}

int seg_check_stack(struct cpu *cpu, uint16_t sel, unsigned dpl, unsigned vector, struct segment *seg)
{
    uint64_t desc;
    int st;

    if (sel_null(sel))
        return vector == VEC_TS ? seg_error(cpu, vector, sel) : cpu_raise_err(cpu, vector, 0);
    if ((st = seg_read_desc8(cpu, sel, &desc, vector)))
        return st;
    if (sel_rpl(sel) != dpl || desc_dpl(desc) != dpl || !desc_writable_data(desc))
        return seg_error(cpu, vector, sel);
    if (!desc_p(desc))
        return seg_error(cpu, VEC_SS, sel);
    if ((st = seg_set_accessed(cpu, sel, desc)))
        return st;
    seg_from_desc(seg, sel, desc | 1ull << 40);
    return CPU_OK;
}

/* ---- the TSS (SDM 3A, "Task Management") ---- */
static int tss_read(struct cpu *cpu, uint32_t offset, void *buf, unsigned size)
{
    const struct segment *tr = &cpu->s.tr;

    if ((tr->attr & AR_UNUSABLE) || offset + size - 1 > tr->limit)
        return seg_error(cpu, VEC_TS, tr->sel);
    return mem_read(cpu, SEG_NONE, long_mode(cpu) ? tr->base + offset : (uint32_t)(tr->base + offset), buf, size,
                    ACC_READ | ACCF_SUPER);
}

int tss_read_stack(struct cpu *cpu, unsigned dpl, uint16_t *ss, uint32_t *esp)
{
    uint16_t sp16;
    int st;

    if (AR_TYPE(cpu->s.tr.attr) & 8) {
        st = tss_read(cpu, 4 + dpl * 8, esp, 4);
        return st ? st : tss_read(cpu, 8 + dpl * 8, ss, 2);
    }
    if ((st = tss_read(cpu, 2 + dpl * 4, &sp16, 2)))
        return st;
    *esp = sp16;
    return tss_read(cpu, 4 + dpl * 4, ss, 2);
}

int tss_read_rsp(struct cpu *cpu, unsigned n, bool ist, uint64_t *rsp)
{
    return tss_read(cpu, ist ? 36 + (n - 1) * 8 : 4 + n * 8, rsp, 8);
}

/* ---- stacks ---- */
void stack_current(struct cpu *cpu, struct stack *st)
{
    const struct cpu_state *s = &cpu->s;

    *st = (struct stack){.ss = s->seg[SEG_SS], .is64 = s->mode == MODE_64};
    st->mask = st->is64 ? ~0ull : s->seg[SEG_SS].attr & AR_DB ? 0xffffffff : 0xffff;
    st->sp = s->gpr[R_RSP] & st->mask;
}

/* inner: a stack of a more privileged level, whose pages are looked at as a supervisor's. */
void stack_new(struct cpu *cpu, struct stack *st, const struct segment *ss, uint64_t sp, bool is64, bool inner)
{
    *st = (struct stack){.ss = *ss, .is64 = is64};
    st->mask = is64 ? ~0ull : ss->attr & AR_DB ? 0xffffffff : 0xffff;
    st->sp = sp & st->mask;
    st->acc = inner ? ACCF_SUPER : 0;
    st->vector_sel = ss->sel & 0xfffc;
}

static bool in_limit(const struct segment *seg, uint64_t off, unsigned size)
{
    const uint64_t last = off + size - 1;

    if (seg->attr & AR_UNUSABLE)
        return false;
    if ((AR_TYPE(seg->attr) & 0xc) == 4) /* expand-down data */
        return off > seg->limit && last <= (seg->attr & AR_DB ? 0xffffffff : 0xffff);
    return last <= seg->limit;
}

static int stack_linear(struct cpu *cpu, const struct stack *st, uint64_t sp, unsigned size, gva_t *gva)
{
    if (st->is64) {
        *gva = sp;
        if (cpu_canonical(sp) && cpu_canonical(sp + size - 1))
            return CPU_OK;
    } else {
        *gva = (uint32_t)(st->ss.base + sp);
        if (in_limit(&st->ss, sp, size))
            return CPU_OK;
    }
    return cpu_raise_err(cpu, VEC_SS, st->vector_sel);
}

int stack_push(struct cpu *cpu, struct stack *st, unsigned size, uint64_t v)
{
    const uint64_t sp = (st->sp - size) & st->mask;
    gva_t gva = 0;
    int status = stack_linear(cpu, st, sp, size, &gva);

    if (!status)
        status = mem_write(cpu, SEG_NONE, gva, &v, size, ACC_WRITE | st->acc);
    if (!status)
        st->sp = sp;
    return status;
}

int stack_pop(struct cpu *cpu, struct stack *st, unsigned size, uint64_t *v)
{
    gva_t gva = 0;
    int status = stack_linear(cpu, st, st->sp, size, &gva);

    *v = 0;
    if (!status)
        status = mem_read(cpu, SEG_NONE, gva, v, size, ACC_READ | st->acc);
    if (!status)
        st->sp = (st->sp + size) & st->mask;
    return status;
}

/* Values in the order of the pushes (pops); in 64-bit mode and one page by a single access. Where that does not
 * succeed each goes by itself, so that a fault or exit names the address it has on hardware. */
static bool one_access(const struct cpu *cpu, const struct stack *st, uint64_t low, unsigned n)
{
    return st->is64 && !cpu->emul && n <= STACK_BLOCK && ((low ^ (low + n * 8 - 1)) & PAGE_MASK) == 0 &&
           cpu_canonical(low);
}

int stack_push_many(struct cpu *cpu, struct stack *st, unsigned size, const uint64_t *v, unsigned n)
{
    const uint64_t low = st->sp - n * 8;
    uint64_t block[STACK_BLOCK] = {0};
    int status;

    if (size == 8 && one_access(cpu, st, low, n)) {
        for (unsigned i = 0; i < n; i++)
            block[n - 1 - i] = v[i];
        if (mem_write(cpu, SEG_NONE, low, block, n * 8, ACC_WRITE | st->acc) == CPU_OK) {
            st->sp = low;
            return CPU_OK;
        }
    }
    for (unsigned i = 0; i < n; i++)
        if ((status = stack_push(cpu, st, size, v[i])))
            return status;
    return CPU_OK;
}

int stack_pop_many(struct cpu *cpu, struct stack *st, unsigned size, uint64_t *v, unsigned n)
{
    int status;

    if (size == 8 && one_access(cpu, st, st->sp, n) &&
        mem_read(cpu, SEG_NONE, st->sp, v, n * 8, ACC_READ | st->acc) == CPU_OK) {
        st->sp += n * 8;
        return CPU_OK;
    }
    for (unsigned i = 0; i < n; i++)
        if ((status = stack_pop(cpu, st, size, &v[i])))
            return status;
    return CPU_OK;
}

void stack_commit_sp(struct cpu *cpu, const struct stack *st)
{
    uint64_t *rsp = &cpu->s.gpr[R_RSP];

    if (st->mask == 0xffff)
        *rsp = (*rsp & ~0xffffull) | (st->sp & 0xffff);
    else
        *rsp = st->sp & st->mask;
}
