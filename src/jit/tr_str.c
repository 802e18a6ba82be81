/* SPDX-License-Identifier: MIT
 * tr_str.c: MOVS, STOS and LODS without a repeat prefix, upwards. Repeated ones are the interpreter's, in chunks. */
#include "tr.h"

static unsigned ef(unsigned size)
{
    return size == 8 ? EF_W : size == 2 ? EF_O16 : size == 1 ? EF_B8 : 0;
}

/* DF is clear, or the interpreter goes downwards. Flags are untouched. */
static void check_upwards(struct tr *t)
{
    struct emit *e = &t->e;

    tr_islands(t, false, 100);
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

bool tr_string(struct tr *t)
{
    const struct insn *in = t->in;
    const unsigned size = in->opsize;
    const bool loads = in->op >= OP_LODSB && in->op <= OP_LODSQ, stores = in->op >= OP_STOSB && in->op <= OP_STOSQ;

    if ((in->pfx & (PFX_LOCK | PFX_REP | PFX_REPNE)) || in->asize != 8 || in->seg == SEG_FS || in->seg == SEG_GS)
        return false;
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
