/* SPDX-License-Identifier: MIT
 * in_select.c: the function that executes a decoded instruction: the row's, or a form of it specialised by operand
 * kinds, size and mode. Also the table of rows itself. */
#include "insn/in_int.h"

#define OP(mnemonic, interp, trans, rd, must, may, undef, attrs, feature) insn_fn interp;
#include "insn/ops.def"
#undef OP

const struct op_row op_rows[OP_COUNT] = {
    [OP_INVALID] = {.name = "(bad)", .interp = in_ud},
#define OP(mnemonic, interp, trans, rd, must, may, undef, attrs, feature) \
    [OP_##mnemonic] = {#mnemonic, interp, rd, must, may, undef, attrs, FEAT_##feature},
#include "insn/ops.def"
#undef OP
};

/* Condition codes by row: rows of one family stand in the order of their encoding in ops_int.def. */
static bool condition_of(const struct insn *in, uint8_t *cc)
{
    if (in->op >= OP_JO && in->op <= OP_JNLE)
        *cc = in->op - OP_JO;
    else if (in->op >= OP_SETO && in->op <= OP_SETNLE)
        *cc = in->op - OP_SETO;
    else if (in->op >= OP_CMOVO && in->op <= OP_CMOVNLE)
        *cc = in->op - OP_CMOVO;
    else
        return false;
    return true;
}

/* MOV, PUSH and POP with system registers belong to the system instructions (in_sys.h). */
static insn_fn *select_system(const struct insn *in)
{
    const uint8_t a = in->o[0].kind, b = in->o[1].kind;

    switch (in->op) {
    case OP_MOV:
        if (a == OPK_SEG || b == OPK_SEG)
            return in_mov_sreg;
        if (a == OPK_CR || b == OPK_CR)
            return in_mov_cr;
        return a == OPK_DR || b == OPK_DR ? in_mov_dr : NULL;
    case OP_PUSH:
        return a == OPK_SEG ? in_push_sreg : NULL;
    case OP_POP:
        return a == OPK_SEG ? in_pop_sreg : NULL;
    default:
        return NULL;
    }
}

static insn_fn *select_special(struct insn *in)
{
    insn_fn *const general = op_rows[in->op].interp;
    insn_fn *fn = select_system(in);

    if (fn)
        return fn;
    if (general == in_alu || general == in_cmp || general == in_inc || general == in_dec || general == in_neg ||
        general == in_not)
        return in_select_alu(in);
    if (general == in_shl || general == in_shr || general == in_sar)
        return in_select_shift(in);
    if (general == in_push || general == in_pop)
        return in_select_stack(in);
    if (general == in_jmp || general == in_call || general == in_ret || general == in_jcc)
        return in_select_branch(in);
    if (in->op == OP_MOV || in->op == OP_MOVZX || in->op == OP_MOVSX || in->op == OP_MOVSXD || in->op == OP_LEA ||
        general == in_setcc || general == in_cmov)
        return in_select_mov(in);
    return NULL;
}

void in_select(struct insn *in)
{
    const bool flat = in->mode == MODE_64 && in->asize == 8;
    insn_fn *fn;

    in->fn = op_rows[in->op].interp;
    in->fdisp = in->disp + (in->base == REG_RIP ? in->len : 0);
    in->fbase = in->base < 16 ? in->base : in->base == REG_RIP ? IN_WORD_RIP : IN_WORD_ZERO;
    in->findex = in->index < 16 ? in->index : IN_WORD_ZERO;
    if (op_rows[in->op].attrs & (A_VEC | A_X87)) {
        if (native_prepare(in))
            in->fn = in_ud;
        return;
    }
    condition_of(in, &in->aux);
    /* in 64-bit mode the bases of ES CS SS DS are 0 whatever the override says */
    if (flat && in->mem != 0xff && in->seg < SEG_FS && in->seg != SEG_SS)
        in->seg = SEG_DS;
    fn = select_special(in);
    if (fn)
        in->fn = fn;
}
