/* SPDX-License-Identifier: MIT
 * tr_str.c: MOVS, STOS and LODS upwards; repeated MOVS and STOS where each operand lies in one page, for kernels make
 * most of their copies and fills by them, and these are short. All else is the interpreter's. */
#include "tr.h"

static unsigned ef(unsigned size)
{
    return size == 8 ? EF_W : size == 2 ? EF_O16 : size == 1 ? EF_B8 : 0;
}

/* DF is clear, or the interpreter goes downwards. Flags are untouched. */
static void check_upwards(struct tr *t)
{
    struct emit *e = &t->e;

    tr_islands(t, false, 110);
    e_mov_load(e, T0, rm_cpu(CPU(s.rflags_sys)));
    e_mov_imm32(e, T1, F_DF);
    e_pext(e, T1, T0, rm_reg(T1));
    e1(e, 0xe3); /* jrcxz over the jump */
    e1(e, 5);
    tr_jmp_stub(t, tr_slow(t));
}

static void forward(struct tr *t, unsigned g, unsigned size)
{
    e_lea(&t->e, tr_host_reg[g], rm_mem(tr_host_reg[g], (int32_t)size));
}

static void load(struct tr *t, unsigned size, uint8_t reg)
{
    const struct rm rm = tr_at(t, R_RSI, size, false, false);

    tr_site(t);
    e_op(&t->e, ef(size), 0, size == 1 ? 0x8a : 0x8b, reg, rm);
}

static void store(struct tr *t, unsigned size, bool from_temp)
{
    const struct rm rm = tr_at(t, R_RDI, size, true, from_temp);

    if (from_temp)
        e_mov_load(&t->e, T1, rm_cpu(CPU(s.rip)));
    tr_site(t);
    e_op(&t->e, ef(size), 0, size == 1 ? 0x88 : 0x89, from_temp ? T1 : H_RAX, rm);
}

/* ---- repeated ---- */

#define COUNT_BITS 13 /* a larger count is more than a page */
#define RDI_WAS    CPU(bounce_gva)
#define RSI_WAS    CPU(s.rip)

/* T1 >> n is 0, or the interpreter does it. T0 is lost. */
static void check_below(struct tr *t, unsigned n)
{
    struct emit *e = &t->e;

    e_mov_imm32(e, T0, n);
    e_vex(e, 2, 3, true, 0xf7, T1, T0, rm_reg(T1)); /* shrx */
    e1(e, 0xe3);                                    /* jrcxz over the jump */
    e1(e, 5);
    tr_jmp_stub(t, tr_slow(t));
}

static struct rm at_count(uint8_t reg, unsigned size, int32_t disp)
{
    return (struct rm){
        .mem = true, .reg = reg, .index = tr_host_reg[R_RCX], .scale = (uint8_t)__builtin_ctz(size), .disp = disp};
}

/* The operand ends in the page that it begins in. */
static void check_page(struct tr *t, unsigned g, unsigned size)
{
    struct emit *e = &t->e;

    e_mov_imm32(e, T1, PAGE_SIZE - 1);
    e_pext(e, T1, tr_host_reg[g], rm_reg(T1));
    e_lea(e, T1, at_count(T1, size, -1));
    check_below(t, PAGE_SHIFT);
}

/* T1 = the table's word of the page that g is in, which is there. */
static void word_of(struct tr *t, unsigned g, bool write)
{
    struct emit *e = &t->e;

    e_pext(e, T1, tr_host_reg[g], rm_cpu(CPU_HOT(HOT_MASK)));
    e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = T1});
    e_mov_load(e, T1,
               (struct rm){.mem = true,
                           .reg = H_R15,
                           .index = T1,
                           .scale = 3,
                           .disp = (int32_t)CPU_SPAN - FLAT_BASE + (write ? 8 : 0)});
    e1(e, 0xe3); /* jrcxz over a jump over the jump */
    e1(e, 2);
    e1(e, 0xeb);
    e1(e, 5);
    tr_jmp_stub(t, tr_slow(t));
}

/* reg is the page's host address, its old value is kept. */
static void to_host(struct tr *t, uint8_t from, uint8_t to, int32_t was)
{
    e_mov_store(&t->e, rm_cpu(was), from);
    e_lea(&t->e, to, (struct rm){.mem = true, .reg = from, .index = T1, .disp = -1});
}

static void moved(struct emit *e, unsigned g, int32_t was, struct rm to)
{
    e_mov_load(e, T0, rm_cpu(was));
    e_lea(e, tr_host_reg[g], to);
}

/* A host fault in the middle: what is done is done, the interpreter goes on. T1 is what is left of the count. */
void tr_string_stub(struct tr *t, const struct tr_stub *s)
{
    const uint8_t count = tr_host_reg[R_RCX];
    struct rm done = at_count(T0, s->size, 0);
    struct emit *e = &t->e;

    done.index = T1;
    e_op(e, EF_W, 0, 0xf7, 2, rm_reg(T1)); /* not */
    e_lea(e, T1, (struct rm){.mem = true, .reg = count, .index = T1, .disp = 1});
    moved(e, R_RDI, RDI_WAS, done);
    if (s->write)
        moved(e, R_RSI, RSI_WAS, done);
    e_op(e, EF_W, 0, 0xf7, 2, rm_reg(T1));
    e_lea(e, count, (struct rm){.mem = true, .reg = count, .index = T1, .disp = 1});
    tr_slow_exit(t, s->desc);
}

static void site(struct tr *t, unsigned size, bool copies)
{
    struct tr_stub *s = tr_stub_new(t, tr_slow(t)->desc);
    struct jit *j = t->j;

    s->kind = STUB_STRING;
    s->size = size;
    s->write = copies;
    j->site[j->nsite++] = (struct jit_site){.rip = t->e.w - j->rw, .stub = s - t->stub};
}

static bool repeated(struct tr *t, unsigned size, bool copies)
{
    struct emit *e = &t->e;

    tr_islands(t, false, 1000); /* none waits over so much */
    check_upwards(t);
    e_op(e, EF_W, 0, 0x8b, T1, rm_reg(tr_host_reg[R_RCX]));
    check_below(t, COUNT_BITS);
    check_page(t, R_RDI, size);
    if (copies) {
        check_page(t, R_RSI, size);
        word_of(t, R_RSI, false);
        to_host(t, tr_host_reg[R_RSI], T0, RSI_WAS);
    }
    word_of(t, R_RDI, true);
    to_host(t, tr_host_reg[R_RDI], tr_host_reg[R_RDI], RDI_WAS);
    if (copies)
        e_op(e, EF_W, 0, 0x8b, tr_host_reg[R_RSI], rm_reg(T0));
    e_op(e, EF_W, 0, 0x8b, T1, rm_reg(tr_host_reg[R_RCX]));
    site(t, size, copies);
    e1(e, 0xf3);
    if (size == 2)
        e1(e, 0x66);
    else if (size == 8)
        e1(e, 0x48);
    e1(e, (copies ? 0xa4 : 0xaa) + (size != 1));
    moved(e, R_RDI, RDI_WAS, at_count(T0, size, 0));
    if (copies)
        moved(e, R_RSI, RSI_WAS, at_count(T0, size, 0));
    e_mov_imm32(e, tr_host_reg[R_RCX], 0);
    return true;
}

bool tr_string(struct tr *t)
{
    const struct insn *in = t->in;
    const unsigned size = in->opsize;
    const bool loads = in->op >= OP_LODSB && in->op <= OP_LODSQ, stores = in->op >= OP_STOSB && in->op <= OP_STOSQ;

    if ((in->pfx & PFX_LOCK) || in->asize != 8 || in->seg == SEG_FS || in->seg == SEG_GS)
        return false;
    if (in->pfx & (PFX_REP | PFX_REPNE))
        return !loads && !t->j->hardened && repeated(t, size, !stores);
    check_upwards(t);
    if (loads) {
        load(t, size, H_RAX);
    } else if (!stores) {
        load(t, size, T1);
        e_mov_store(&t->e, rm_cpu(CPU(s.rip)), T1); /* exact only after a spill: free here */
    }
    if (!loads) {
        store(t, size, !stores);
        forward(t, R_RDI, size);
    }
    if (!stores)
        forward(t, R_RSI, size);
    return true;
}
