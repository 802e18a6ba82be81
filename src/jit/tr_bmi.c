/* SPDX-License-Identifier: MIT
 * tr_bmi.c: integer instructions with encodings of their own: BMI, ADX, CRC32, MOVBE, MOVNTI, CMPXCHG8B and 16B. */
#include "tr.h"

static unsigned ef(unsigned size)
{
    return size == 8 ? EF_W : size == 2 ? EF_O16 : 0;
}

/* Guest register g in a register: its own, or other, loaded with it. */
static uint8_t reg_in(struct tr *t, unsigned g, uint8_t other)
{
    if (tr_pinned(g))
        return tr_host_reg[g];
    e_mov_load(&t->e, other, tr_reg_rm(g));
    return other;
}

static uint8_t reg_for(unsigned g, uint8_t other)
{
    return tr_pinned(g) ? tr_host_reg[g] : other;
}

static void reg_out(struct tr *t, unsigned g, uint8_t other)
{
    if (!tr_pinned(g))
        e_mov_store(&t->e, tr_reg_rm(g), other);
}

/* Operand n, a register or memory: *rm. T1 is free behind it. The site is the caller's, who may load registers first.
 */
static bool operand(struct tr *t, unsigned n, bool write, struct rm *rm)
{
    const struct insn *in = t->in;

    if (in->o[n].kind == OPK_REG) {
        *rm = tr_reg_rm(in->o[n].reg);
        return true;
    }
    return in->o[n].kind == OPK_MEM && tr_access(t, in->o[n].size, write, 0, true, rm);
}

static void site(struct tr *t, const struct rm *rm)
{
    if (rm->mem && rm->reg != H_R15)
        tr_site(t);
}

/* ---- BMI1 and BMI2: which operand is in which field ---- */
static const struct bmi {
    uint16_t op;
    uint8_t map, pp, opcode;
    uint8_t vvvv, rm; /* operand numbers; the destination is operand 0 */
    uint8_t group;    /* /n in ModRM.reg: the destination is vvvv */
} bmi[] = {
    {OP_ANDN, 2, 0, 0xf2, 1, 2, 0}, {OP_PDEP, 2, 3, 0xf5, 1, 2, 0},   {OP_PEXT, 2, 2, 0xf5, 1, 2, 0},
    {OP_BZHI, 2, 0, 0xf5, 2, 1, 0}, {OP_BEXTR, 2, 0, 0xf7, 2, 1, 0},  {OP_SHLX, 2, 1, 0xf7, 2, 1, 0},
    {OP_SARX, 2, 2, 0xf7, 2, 1, 0}, {OP_SHRX, 2, 3, 0xf7, 2, 1, 0},   {OP_BLSR, 2, 0, 0xf3, 0, 1, 1},
    {OP_BLSI, 2, 0, 0xf3, 0, 1, 3}, {OP_BLSMSK, 2, 0, 0xf3, 0, 1, 2},
};

bool tr_bmi(struct tr *t)
{
    const struct insn *in = t->in;
    const struct bmi *b = bmi;
    uint8_t dst, vvvv;
    struct rm rm;

    while (b->op != in->op)
        b++;
    if (!operand(t, b->rm, false, &rm))
        return false;
    dst = reg_for(in->o[0].reg, T1);
    vvvv = b->group ? dst : reg_in(t, in->o[b->vvvv].reg, T1);
    site(t, &rm);
    e_vex(&t->e, b->map, b->pp, in->o[0].size == 8, b->opcode, b->group ? b->group : dst, vvvv, rm);
    reg_out(t, in->o[0].reg, T1);
    return true;
}

bool tr_rorx(struct tr *t)
{
    const struct insn *in = t->in;
    struct rm rm;

    if (!operand(t, 1, false, &rm))
        return false;
    site(t, &rm);
    e_vex(&t->e, 3, 3, in->o[0].size == 8, 0xf0, reg_for(in->o[0].reg, T1), 0, rm);
    e1(&t->e, in->imm);
    reg_out(t, in->o[0].reg, T1);
    return true;
}

/* rdx times operand 2: the high half to operand 0, the low one to operand 1; the high one where they are the same */
bool tr_mulx(struct tr *t)
{
    const struct insn *in = t->in;
    struct rm rm;

    if (!operand(t, 2, false, &rm))
        return false;
    site(t, &rm);
    e_vex(&t->e, 2, 3, in->o[0].size == 8, 0xf6, reg_for(in->o[0].reg, T1), reg_for(in->o[1].reg, T0), rm);
    reg_out(t, in->o[1].reg, T0);
    reg_out(t, in->o[0].reg, T1);
    return true;
}

/* adcx adox */
bool tr_adx(struct tr *t)
{
    const struct insn *in = t->in;
    uint8_t dst;
    struct rm rm;

    if (!operand(t, 1, false, &rm))
        return false;
    dst = reg_in(t, in->o[0].reg, T1);
    site(t, &rm);
    e_op(&t->e, (in->op == OP_ADCX ? EF_O16 : EF_F3) | (in->o[0].size == 8 ? EF_W : 0), 2, 0xf6, dst, rm);
    reg_out(t, in->o[0].reg, T1);
    return true;
}

bool tr_crc32(struct tr *t)
{
    const struct insn *in = t->in;
    const unsigned size = in->o[1].size;
    unsigned f = EF_F2 | (in->o[0].size == 8 ? EF_W : size == 2 ? EF_O16 : 0);
    uint8_t dst;
    struct rm rm;

    if (!operand(t, 1, false, &rm))
        return false;
    if (size == 1)
        f |= EF_B8;
    dst = reg_in(t, in->o[0].reg, T1);
    site(t, &rm);
    e_op(&t->e, f, 2, size == 1 ? 0xf0 : 0xf1, dst, rm);
    reg_out(t, in->o[0].reg, T1);
    return true;
}

bool tr_movbe(struct tr *t)
{
    const struct insn *in = t->in;
    const bool store = in->o[0].kind == OPK_MEM;
    const unsigned reg = in->o[store].reg;
    uint8_t host;
    struct rm rm;

    if (!operand(t, !store, store, &rm))
        return false;
    host = reg_in(t, reg, T1); /* a load of 16 bits leaves the rest */
    site(t, &rm);
    e_op(&t->e, ef(in->o[0].size), 2, store ? 0xf1 : 0xf0, host, rm);
    if (!store)
        reg_out(t, reg, T1);
    return true;
}

bool tr_movnti(struct tr *t)
{
    const struct insn *in = t->in;
    uint8_t host;
    struct rm rm;

    if (!operand(t, 0, true, &rm))
        return false;
    host = reg_in(t, in->o[1].reg, T1);
    site(t, &rm);
    e_op(&t->e, ef(in->o[0].size), 1, 0xc3, host, rm);
    return true;
}

/* rdx:rax and rbx are the host's own; rcx is put into its place. A misaligned CMPXCHG16B faults on the host too. */
bool tr_cmpxchg8b(struct tr *t)
{
    const struct insn *in = t->in;
    const bool wide = in->op == OP_CMPXCHG16B;
    struct rm rm;

    if (in->o[0].kind != OPK_MEM || !operand(t, 0, true, &rm))
        return false;
    e_mov_load(&t->e, T1, tr_reg_rm(R_RCX));
    site(t, &rm);
    e_op(&t->e, (in->pfx & PFX_LOCK ? EF_LOCK : 0) | (wide ? EF_W : 0), 1, 0xc7, 1, rm);
    return true;
}
