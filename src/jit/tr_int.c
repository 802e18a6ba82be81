/* SPDX-License-Identifier: MIT
 * tr_int.c: integer instructions: the same instruction on host registers or on a checked address. What may fault comes
 * first, what is visible after it; the flags are the host's own. Guest registers that live in the state go through T1.
 */
#include "tr.h"

static unsigned ef(unsigned size)
{
    return size == 8 ? EF_W : size == 2 ? EF_O16 : size == 1 ? EF_B8 : 0;
}

static bool is_reg(const struct insn *in, unsigned n)
{
    return in->o[n].kind == OPK_REG;
}

static bool is_mem(const struct insn *in, unsigned n)
{
    return in->o[n].kind == OPK_MEM;
}

/* LOCK belongs to memory destinations; elsewhere it is #UD, which the interpreter raises. */
static bool lock_ok(const struct insn *in)
{
    return !(in->pfx & PFX_LOCK) || is_mem(in, 0);
}

static void e_imm(struct emit *e, unsigned size, uint64_t v)
{
    if (size == 1)
        e1(e, v);
    else if (size == 2)
        memcpy((e->w += 2) - 2, &v, 2);
    else
        e4(e, v);
}

static struct rm r(const struct insn *in, unsigned n)
{
    return tr_reg_rm(in->o[n].reg);
}

/* A register operand that must be in a register: T1 holds one that lives in the state. */
static uint8_t in_reg(struct tr *t, unsigned n)
{
    const unsigned g = t->in->o[n].reg;

    if (tr_pinned(g))
        return tr_host_reg[g];
    e_mov_load(&t->e, T1, tr_reg_rm(g));
    return T1;
}

/* The checked memory operand; register operand n (if it is one, and in the state) is going to be in T1 meanwhile. */
static bool checked(struct tr *t, unsigned size, bool write, unsigned n, struct rm *rm)
{
    return tr_access(t, size, write, 0, is_reg(t->in, n) && !tr_pinned(t->in->o[n].reg), rm);
}

/* ... and back after it was written. 32-bit results are zero-extended in T1 already. */
static void out_reg(struct tr *t, unsigned n)
{
    const unsigned g = t->in->o[n].reg;

    if (!tr_pinned(g))
        e_mov_store(&t->e, tr_reg_rm(g), T1);
}

/* ---- ah ch dh bh ---- */

static bool is_high(const struct insn *in, unsigned n)
{
    return in->nops > n && in->o[n].kind == OPK_REG8H;
}

/* T1 = a register operand's byte: ah dh bh have the host's numbers without REX, ch lives elsewhere. Flags untouched. */
static void byte_to_t1(struct tr *t, unsigned n)
{
    const unsigned g = t->in->o[n].reg;

    if (!is_high(t->in, n)) {
        e_mov_load32(&t->e, T1, tr_reg_rm(g));
    } else if (g == R_RCX) {
        e_rorx(&t->e, T1, tr_host_reg[g], 8);
        e_op(&t->e, EF_B8, 1, 0xb6, T1, rm_reg(T1));
    } else {
        e_op(&t->e, 0, 1, 0xb6, T1, rm_reg(4 + g));
    }
}

/* A high byte as an operand that may be written, from here to high_end(): ch is brought to the low byte meanwhile. */
static struct rm high_begin(struct tr *t, unsigned n, unsigned *f)
{
    const unsigned g = t->in->o[n].reg;

    *f = 0;
    if (g != R_RCX)
        return rm_reg(4 + g);
    *f = EF_B8;
    e_rorx(&t->e, tr_host_reg[g], tr_host_reg[g], 8);
    return rm_reg(tr_host_reg[g]);
}

static void high_end(struct tr *t, unsigned n)
{
    const unsigned g = t->in->o[n].reg;

    if (g == R_RCX)
        e_rorx(&t->e, tr_host_reg[g], tr_host_reg[g], 56);
}

/* op r/m8, r8 where one or both are high bytes. reg: its opcode with the register first; imm: its opcode with an
 * immediate, n is then the number in ModRM. */
static bool high_byte(struct tr *t, uint8_t reg, uint8_t imm, unsigned n, bool write)
{
    const struct insn *in = t->in;
    struct emit *e = &t->e;
    struct rm rm;
    unsigned f;

    if (in->pfx & PFX_LOCK)
        return false;
    if (is_mem(in, 0)) {
        if (!tr_access(t, 1, write, 0, true, &rm))
            return false;
        byte_to_t1(t, 1);
        tr_site(t);
        e_op(e, 0, 0, reg == 0x84 ? reg : reg - 2, T1, rm); /* T1 is cl; TEST has no other direction */
        return true;
    }
    if (!is_high(in, 0)) { /* from a high byte */
        byte_to_t1(t, 1);
        e_op(e, EF_B8, 0, reg, tr_host_reg[in->o[0].reg], rm_reg(T1));
        return true;
    }
    if (in->o[1].kind == OPK_IMM) {
        rm = high_begin(t, 0, &f);
        e_op(e, f, 0, imm, n, rm);
        e1(e, in->imm);
        high_end(t, 0);
        return true;
    }
    if (is_mem(in, 1)) {
        if (!tr_access(t, 1, false, 0, true, &rm))
            return false;
        tr_site(t);
        e_op(e, 0, 1, 0xb6, T1, rm);
    } else {
        byte_to_t1(t, 1);
    }
    rm = high_begin(t, 0, &f);
    e_op(e, f, 0, reg, rm.reg, rm_reg(T1));
    high_end(t, 0);
    return true;
}

/* ---- add or adc sbb and sub xor cmp ---- */
static int alu_index(unsigned op)
{
    switch (op) {
    case OP_ADD:
        return 0;
    case OP_OR:
        return 1;
    case OP_ADC:
        return 2;
    case OP_SBB:
        return 3;
    case OP_AND:
        return 4;
    case OP_SUB:
        return 5;
    case OP_XOR:
        return 6;
    default:
        return 7;
    }
}

static bool tr_alu(struct tr *t)
{
    const struct insn *in = t->in;
    const unsigned size = in->o[0].size, a = alu_index(in->op), f = ef(size), byte = size == 1;
    struct emit *e = &t->e;
    struct rm rm;

    if (is_high(in, 0) || is_high(in, 1))
        return high_byte(t, a * 8 + 2, 0x80, a, a != 7);
    if (!lock_ok(in))
        return false;
    if (is_mem(in, 0)) {
        const unsigned lock = in->pfx & PFX_LOCK ? EF_LOCK : 0;
        uint8_t src = T1;

        if (!checked(t, size, a != 7, 1, &rm))
            return false;
        if (in->o[1].kind == OPK_REG)
            src = in_reg(t, 1);
        tr_site(t);
        if (in->o[1].kind == OPK_IMM) {
            e_op(e, f | lock, 0, byte ? 0x80 : 0x81, a, rm);
            e_imm(e, size, in->imm);
        } else {
            e_op(e, f | lock, 0, a * 8 + (byte ? 0 : 1), src, rm);
        }
        return true;
    }
    if (!is_reg(in, 0))
        return false;
    if (is_mem(in, 1)) {
        uint8_t dst;
        if (!checked(t, size, false, 0, &rm))
            return false;
        dst = in_reg(t, 0);
        tr_site(t);
        e_op(e, f, 0, a * 8 + (byte ? 2 : 3), dst, rm);
    } else if (in->o[1].kind == OPK_IMM) {
        const uint8_t dst = in_reg(t, 0);
        const bool short_imm = !byte && (int64_t)in->imm == (int8_t)in->imm;
        e_op(e, f, 0, byte ? 0x80 : short_imm ? 0x83 : 0x81, a, rm_reg(dst));
        e_imm(e, short_imm ? 1 : size, in->imm);
    } else if (is_reg(in, 1)) {
        const uint8_t dst = in_reg(t, 0);
        e_op(e, f, 0, a * 8 + (byte ? 2 : 3), dst, r(in, 1));
    } else {
        return false;
    }
    if (a != 7)
        out_reg(t, 0);
    return true;
}

static bool tr_test(struct tr *t)
{
    const struct insn *in = t->in;
    const unsigned size = in->o[0].size, f = ef(size), byte = size == 1;
    struct rm rm;

    if (is_high(in, 0) || is_high(in, 1))
        return high_byte(t, 0x84, 0xf6, 0, false);
    if (in->pfx & PFX_LOCK)
        return false;
    if (is_mem(in, 0)) {
        uint8_t src = T1;
        if (!checked(t, size, false, 1, &rm))
            return false;
        if (in->o[1].kind == OPK_REG)
            src = in_reg(t, 1);
        tr_site(t);
        if (in->o[1].kind != OPK_IMM) {
            e_op(&t->e, f, 0, byte ? 0x84 : 0x85, src, rm);
            return true;
        }
    } else if (is_reg(in, 0)) {
        rm = r(in, 0);
        if (is_reg(in, 1)) {
            e_op(&t->e, f, 0, byte ? 0x84 : 0x85, in_reg(t, 1), rm);
            return true;
        }
    } else {
        return false;
    }
    if (in->o[1].kind != OPK_IMM)
        return false;
    e_op(&t->e, f, 0, byte ? 0xf6 : 0xf7, 0, rm);
    e_imm(&t->e, size, in->imm);
    return true;
}

/* inc dec not neg: group 3 and 5 */
static bool tr_unary(struct tr *t)
{
    const struct insn *in = t->in;
    const unsigned size = in->o[0].size, byte = size == 1;
    const unsigned group = in->op == OP_INC || in->op == OP_DEC ? 0xfe : 0xf6;
    const unsigned n = in->op == OP_INC ? 0 : in->op == OP_DEC ? 1 : in->op == OP_NOT ? 2 : 3;

    if (!lock_ok(in))
        return false;
    if (is_mem(in, 0)) {
        struct rm rm;
        if (!tr_mem(t, size, true, &rm))
            return false;
        e_op(&t->e, ef(size) | (in->pfx & PFX_LOCK ? EF_LOCK : 0), 0, group + !byte, n, rm);
        return true;
    }
    if (is_high(in, 0)) {
        unsigned f;
        const struct rm rm = high_begin(t, 0, &f);

        e_op(&t->e, f, 0, group, n, rm);
        high_end(t, 0);
        return true;
    }
    if (!is_reg(in, 0))
        return false;
    e_op(&t->e, ef(size), 0, group + !byte, n, rm_reg(in_reg(t, 0)));
    out_reg(t, 0);
    return true;
}

/* ---- moves ---- */
#define SEG_SEL(n)                                                                                                    \
    ((int32_t)(offsetof(struct cpu, s.seg) + (n) * sizeof(struct segment)) + (int32_t)offsetof(struct segment, sel) - \
     FLAT_BASE)

static bool mov_to_mem(struct tr *t)
{
    const struct insn *in = t->in;
    const unsigned size = in->o[0].size, byte = size == 1;
    uint8_t src = T1;
    struct rm rm;

    if (in->o[1].kind == OPK_SEG) {
        if (!tr_access(t, 2, true, 0, true, &rm))
            return false;
        e_op(&t->e, 0, 1, 0xb7, T1, rm_cpu(SEG_SEL(in->o[1].reg)));
        tr_site(t);
        e_op(&t->e, EF_O16, 0, 0x89, T1, rm);
        return true;
    }
    if (in->o[1].kind != OPK_REG && in->o[1].kind != OPK_IMM)
        return false;
    if (!checked(t, size, true, 1, &rm))
        return false;
    if (in->o[1].kind == OPK_REG)
        src = in_reg(t, 1);
    tr_site(t);
    if (in->o[1].kind == OPK_REG) {
        e_op(&t->e, ef(size), 0, byte ? 0x88 : 0x89, src, rm);
    } else {
        e_op(&t->e, ef(size), 0, byte ? 0xc6 : 0xc7, 0, rm);
        e_imm(&t->e, size, in->imm);
    }
    return true;
}

static bool tr_mov(struct tr *t)
{
    const struct insn *in = t->in;
    const unsigned size = in->o[0].size, byte = size == 1;
    struct emit *e = &t->e;

    if (is_high(in, 0) || is_high(in, 1))
        return high_byte(t, 0x8a, 0xc6, 0, true);
    if (in->pfx & PFX_LOCK)
        return false;
    if (is_mem(in, 0))
        return mov_to_mem(t);
    if (!is_reg(in, 0))
        return false;
    if (is_mem(in, 1)) {
        const bool merges = size < 4 && !tr_pinned(in->o[0].reg);
        struct rm rm;
        uint8_t dst;
        if (!tr_access(t, size, false, 0, merges, &rm))
            return false;
        if (merges) { /* through T1, which must have the old value */
            dst = in_reg(t, 0);
        } else {
            dst = tr_pinned(in->o[0].reg) ? tr_host_reg[in->o[0].reg] : T1;
        }
        tr_site(t);
        e_op(e, ef(size), 0, byte ? 0x8a : 0x8b, dst, rm);
        out_reg(t, 0);
    } else if (in->o[1].kind == OPK_IMM) {
        if (size == 8 || size == 4) {
            const uint64_t v = size == 4 ? (uint32_t)in->imm : in->imm;
            e_mov_imm64(e, tr_pinned(in->o[0].reg) ? tr_host_reg[in->o[0].reg] : T1, v);
            out_reg(t, 0);
        } else {
            e_op(e, ef(size), 0, byte ? 0xc6 : 0xc7, 0, r(in, 0));
            e_imm(e, size, in->imm);
        }
    } else if (is_reg(in, 1)) {
        if (size >= 4 && tr_pinned(in->o[0].reg)) {
            e_op(e, ef(size), 0, 0x8b, tr_host_reg[in->o[0].reg], r(in, 1));
        } else {
            const uint8_t dst = size >= 4 ? T1 : in_reg(t, 0);
            e_op(e, ef(size), 0, byte ? 0x8a : 0x8b, dst, r(in, 1));
            out_reg(t, 0);
        }
    } else if (in->o[1].kind == OPK_SEG) { /* an exception's entry and a scheduler look at them */
        e_op(e, 0, 1, 0xb7, T1, rm_cpu(SEG_SEL(in->o[1].reg)));
        e_op(e, size == 2 ? EF_O16 : EF_W, 0, 0x89, T1, r(in, 0));
    } else {
        return false;
    }
    return true;
}

/* movzx movsx movsxd: the source is smaller */
static bool tr_movx(struct tr *t)
{
    const struct insn *in = t->in;
    const unsigned size = in->o[0].size, from = in->o[1].size;
    const unsigned opcode = in->op == OP_MOVSXD ? 0x63 : (in->op == OP_MOVZX ? 0xb6 : 0xbe) + (from == 2);
    const unsigned map = in->op == OP_MOVSXD ? 0 : 1;
    unsigned f = ef(size);
    struct rm rm;
    uint8_t dst;

    if (!is_reg(in, 0) || size < 4)
        return false;
    if (is_mem(in, 1)) {
        if (!tr_access(t, from, false, 0, false, &rm))
            return false;
        tr_site(t);
    } else if (is_reg(in, 1)) {
        rm = r(in, 1);
        if (from == 1)
            f |= EF_B8;
    } else if (is_high(in, 1)) {
        if (in->op == OP_MOVZX && in->o[1].reg != R_RCX && tr_pinned(in->o[0].reg) && tr_host_reg[in->o[0].reg] < 8) {
            e_op(&t->e, 0, 1, 0xb6, tr_host_reg[in->o[0].reg], rm_reg(4 + in->o[1].reg));
            return true;
        }
        byte_to_t1(t, 1);
        rm = rm_reg(T1);
        f |= EF_B8;
    } else {
        return false;
    }
    dst = tr_pinned(in->o[0].reg) ? tr_host_reg[in->o[0].reg] : T1;
    e_op(&t->e, f, map, opcode, dst, rm);
    out_reg(t, 0);
    return true;
}

static bool tr_lea(struct tr *t)
{
    const struct insn *in = t->in;
    const unsigned size = in->o[0].size;
    struct insn plain = *in;

    if (size < 4 || !is_reg(in, 0))
        return false;
    if (in->asize == 8 && in->disp == (int32_t)in->disp && (in->base < 16 ? tr_pinned(in->base) : in->base == H_NONE) &&
        (in->index >= 16 || tr_pinned(in->index))) {
        const struct rm ea = {.mem = true,
                              .reg = in->base < 16 ? tr_host_reg[in->base] : H_NONE,
                              .index = in->index < 16 ? tr_host_reg[in->index] : H_NONE,
                              .scale = in->scale,
                              .disp = (int32_t)in->disp};
        e_op(&t->e, ef(size), 0, 0x8d, tr_pinned(in->o[0].reg) ? tr_host_reg[in->o[0].reg] : T1, ea);
        out_reg(t, 0);
        return true;
    }
    plain.seg = SEG_DS;
    t->in = &plain;
    if (!tr_address(t)) {
        t->in = in;
        return false;
    }
    t->in = in;
    if (tr_pinned(in->o[0].reg))
        e_op(&t->e, ef(size), 0, 0x8b, tr_host_reg[in->o[0].reg], rm_reg(T0));
    else {
        e_op(&t->e, ef(size), 0, 0x8b, T1, rm_reg(T0));
        out_reg(t, 0);
    }
    return true;
}

static void byte_from_t1(struct tr *t, unsigned n)
{
    struct rm rm;
    unsigned f;

    if (!is_high(t->in, n)) {
        e_op(&t->e, EF_B8, 0, 0x88, T1, r(t->in, n));
        return;
    }
    rm = high_begin(t, n, &f);
    e_op(&t->e, f, 0, 0x88, T1, rm);
    high_end(t, n);
}

/* Two registers of 1 or 2 bytes, with no other bytes changed. */
static bool xchg_part(struct tr *t)
{
    struct emit *e = &t->e;

    if (t->in->o[0].size == 2) {
        e_mov_load32(e, T0, r(t->in, 0));
        e_mov_load32(e, T1, r(t->in, 1));
        e_op(e, EF_O16, 0, 0x89, T1, r(t->in, 0));
        e_op(e, EF_O16, 0, 0x89, T0, r(t->in, 1));
        return true;
    }
    byte_to_t1(t, 0);
    e_mov_load32(e, T0, rm_reg(T1));
    byte_to_t1(t, 1);
    byte_from_t1(t, 0);
    e_mov_load32(e, T1, rm_reg(T0));
    byte_from_t1(t, 1);
    return true;
}

static bool tr_xchg(struct tr *t)
{
    const struct insn *in = t->in;
    const unsigned size = in->o[0].size;
    const bool first = is_mem(in, 0);
    const unsigned n = first ? 1 : 0;
    struct rm rm;
    uint8_t reg;

    if (!first && !is_mem(in, 1) && size < 4 && !(in->pfx & PFX_LOCK))
        return xchg_part(t);
    if (!first && !is_mem(in, 1)) {
        if (!is_reg(in, 0) || !is_reg(in, 1) || (in->pfx & PFX_LOCK) || size < 4)
            return false;
        e_op(&t->e, EF_W, 0, 0x8b, T0, r(in, 1)); /* through T0 and T1: either may live in the state */
        e_op(&t->e, EF_W, 0, 0x8b, T1, r(in, 0));
        if (size == 4) {
            e_op(&t->e, 0, 0, 0x8b, T0, rm_reg(T0));
            e_op(&t->e, 0, 0, 0x8b, T1, rm_reg(T1));
        }
        e_mov_store(&t->e, r(in, 0), T0);
        e_mov_store(&t->e, r(in, 1), T1);
        return true;
    }
    if (in->o[n].kind != OPK_REG || !checked(t, size, true, n, &rm))
        return false;
    reg = in_reg(t, n);
    tr_site(t);
    e_op(&t->e, ef(size), 0, size == 1 ? 0x86 : 0x87, reg, rm);
    if (size == 4 && reg == T1)
        e_op(&t->e, 0, 0, 0x8b, T1, rm_reg(T1));
    out_reg(t, n);
    return true;
}

/* cmpxchg, xadd with memory: the register operand is the second */
static bool tr_cmpxchg(struct tr *t)
{
    const struct insn *in = t->in;
    const unsigned size = in->o[0].size, base = in->op == OP_XADD ? 0xc0 : 0xb0;
    struct rm rm;
    uint8_t reg;

    if (!is_mem(in, 0) || !is_reg(in, 1) || !checked(t, size, true, 1, &rm))
        return false;
    reg = in_reg(t, 1);
    tr_site(t);
    e_op(&t->e, ef(size) | (in->pfx & PFX_LOCK ? EF_LOCK : 0), 1, base + (size != 1), reg, rm);
    if (in->op == OP_XADD)
        out_reg(t, 1);
    return true;
}

static void shift_high(struct tr *t, unsigned n, bool by_cl)
{
    struct rm rm;
    unsigned f;

    if (by_cl)
        e_mov_load32(&t->e, T1, rm_reg(tr_host_reg[R_RCX]));
    rm = high_begin(t, 0, &f);
    e_op(&t->e, f, 0, by_cl ? 0xd2 : 0xc0, n, rm);
    if (!by_cl)
        e1(&t->e, t->in->imm);
    high_end(t, 0);
}

/* ---- shifts ---- */
static bool tr_shift(struct tr *t)
{
    const struct insn *in = t->in;
    const unsigned size = in->o[0].size, byte = size == 1;
    unsigned n;
    bool by_cl;
    struct rm rm;

    switch (in->op) {
    case OP_ROL:
        n = 0;
        break;
    case OP_ROR:
        n = 1;
        break;
    case OP_RCL:
        n = 2;
        break;
    case OP_RCR:
        n = 3;
        break;
    case OP_SHL:
        n = 4;
        break;
    case OP_SHR:
        n = 5;
        break;
    default:
        n = 7;
        break;
    }
    by_cl = in->o[1].kind == OPK_REG;
    if ((!by_cl && in->o[1].kind != OPK_IMM) || (in->pfx & PFX_LOCK))
        return false;
    if (is_high(in, 0)) {
        shift_high(t, n, by_cl);
        return true;
    }
    if (is_mem(in, 0)) {
        if (!tr_access(t, size, true, 0, by_cl, &rm))
            return false;
    } else if (is_reg(in, 0)) {
        rm = rm_reg(T0);
        if (tr_pinned(in->o[0].reg))
            rm = r(in, 0);
        else
            e_mov_load(&t->e, T0, r(in, 0));
    } else {
        return false;
    }
    if (by_cl)
        e_mov_load32(&t->e, T1, rm_reg(tr_host_reg[R_RCX]));
    if (is_mem(in, 0))
        tr_site(t);
    e_op(&t->e, ef(size), 0, (by_cl ? 0xd2 : 0xc0) + !byte, n, rm);
    if (!by_cl)
        e1(&t->e, in->imm);
    if (is_reg(in, 0) && !tr_pinned(in->o[0].reg)) {
        if (size == 4) /* a count of 0 leaves the upper half: the guest's is cleared */
            e_mov_load32(&t->e, T0, rm_reg(T0));
        e_mov_store(&t->e, r(in, 0), T0);
    } else if (is_reg(in, 0) && size == 4 && by_cl) {
        e_mov_load32(&t->e, rm.reg, rm_reg(rm.reg));
    }
    return true;
}

/* shld shrd: reg, reg, imm8 or cl */
static bool tr_shift2(struct tr *t)
{
    const struct insn *in = t->in;
    const bool by_cl = in->o[2].kind == OPK_REG;
    uint8_t dst;

    if (!is_reg(in, 0) || !is_reg(in, 1) || in->o[0].size < 4 || !tr_pinned(in->o[1].reg))
        return false;
    dst = tr_pinned(in->o[0].reg) ? tr_host_reg[in->o[0].reg] : T0;
    if (dst == T0)
        e_mov_load(&t->e, T0, r(in, 0));
    if (by_cl)
        e_mov_load32(&t->e, T1, rm_reg(tr_host_reg[R_RCX]));
    e_op(&t->e, ef(in->o[0].size), 1, (in->op == OP_SHLD ? 0xa4 : 0xac) + by_cl, tr_host_reg[in->o[1].reg],
         rm_reg(dst));
    if (!by_cl)
        e1(&t->e, in->imm);
    if (in->o[0].size == 4)
        e_mov_load32(&t->e, dst, rm_reg(dst));
    if (dst == T0)
        e_mov_store(&t->e, r(in, 0), T0);
    return true;
}

/* ---- multiply and divide ---- */
static bool tr_imul(struct tr *t);

/* one operand: rax and rdx are the host's own. A divide error comes as SIGFPE: the interpreter raises it. */
static bool tr_muldiv(struct tr *t)
{
    const struct insn *in = t->in;
    const unsigned size = in->o[0].size;
    unsigned n;
    struct rm rm;

    if (in->op == OP_IMUL && in->o[1].kind != OPK_NONE && in->nops > 1 && is_reg(in, 0) &&
        (is_reg(in, 1) || is_mem(in, 1)))
        return tr_imul(t);
    n = in->op == OP_MUL ? 4 : in->op == OP_IMUL ? 5 : in->op == OP_DIV ? 6 : 7;
    if (is_mem(in, 0)) {
        if (!tr_mem(t, size, false, &rm))
            return false;
    } else if (is_reg(in, 0)) {
        rm = r(in, 0);
        tr_site(t);
    } else {
        return false;
    }
    e_op(&t->e, ef(size), 0, size == 1 ? 0xf6 : 0xf7, n, rm);
    return true;
}

static bool tr_imul(struct tr *t)
{
    const struct insn *in = t->in;
    const unsigned size = in->o[0].size;
    const bool three = in->nops > 2 && in->o[2].kind == OPK_IMM;
    struct rm rm;
    uint8_t dst;

    if (is_mem(in, 1)) {
        if (!checked(t, size, false, 0, &rm))
            return false;
    } else {
        rm = r(in, 1);
    }
    dst = three && size >= 4 ? (tr_pinned(in->o[0].reg) ? tr_host_reg[in->o[0].reg] : T1) : in_reg(t, 0);
    if (is_mem(in, 1))
        tr_site(t);
    if (three) {
        e_op(&t->e, ef(size), 0, 0x69, dst, rm);
        e_imm(&t->e, size, in->imm);
    } else {
        e_op(&t->e, ef(size), 1, 0xaf, dst, rm);
    }
    out_reg(t, 0);
    return true;
}

/* ---- bits ---- */
static bool tr_bit_scan(struct tr *t)
{
    const struct insn *in = t->in;
    const unsigned size = in->o[0].size;
    const unsigned rep = in->op == OP_BSF || in->op == OP_BSR ? 0 : EF_F3;
    const unsigned opcode = in->op == OP_POPCNT ? 0xb8 : in->op == OP_BSF || in->op == OP_TZCNT ? 0xbc : 0xbd;
    struct rm rm;
    uint8_t dst;

    if (!is_reg(in, 0))
        return false;
    if (is_mem(in, 1)) {
        if (!checked(t, size, false, 0, &rm))
            return false;
    } else if (is_reg(in, 1)) {
        rm = r(in, 1);
    } else {
        return false;
    }
    dst = in_reg(t, 0); /* bsf and bsr of 0 leave it */
    if (is_mem(in, 1))
        tr_site(t);
    e_op(&t->e, ef(size) | rep, 1, opcode, dst, rm);
    out_reg(t, 0);
    return true;
}

/* bt bts btr btc on memory by a register, whose value moves the address by whole operands. */
static bool bit_string(struct tr *t, unsigned n)
{
    const struct insn *in = t->in;
    const unsigned size = in->o[0].size;
    const struct rm temp = rm_cpu(CPU(s.rip));
    struct emit *e = &t->e;
    struct rm rm;
    uint8_t reg;

    if (size < 4 || in->asize != 8 || !tr_address_ok(in))
        return false;
    reg = in_reg(t, 1);
    e_mov_imm32(e, T0, size == 8 ? 6 : 5);
    e_vex(e, 2, 2, size == 8, 0xf7, T0, T0, rm_reg(reg)); /* sarx */
    if (size == 4)
        e_op(e, EF_W, 0, 0x63, T0, rm_reg(T0));
    e_mov_store(e, temp, T0);
    rm = tr_access_element(t, size, n != 4);
    e_op(e, EF_W, 0, 0xc7, 0, temp); /* mov qword, imm32 */
    e4(e, 8 * size - 1);
    reg = in_reg(t, 1);
    e_pext(e, T1, reg, temp);
    tr_site(t);
    if (n == 4) {
        e_op(e, ef(size), 0, 0x8b, T0, rm);
        e_op(e, ef(size), 1, 0xa3, T1, rm_reg(T0));
    } else {
        e_op(e, ef(size) | (in->pfx & PFX_LOCK ? EF_LOCK : 0), 1, 0x83 + 8 * n, T1, rm);
    }
    return true;
}

/* bt bts btr btc: on registers by register or immediate, on memory by immediate */
static bool tr_bt(struct tr *t)
{
    const struct insn *in = t->in;
    const unsigned size = in->o[0].size;
    const unsigned n = in->op == OP_BT ? 4 : in->op == OP_BTS ? 5 : in->op == OP_BTR ? 6 : 7;
    struct rm rm;
    uint8_t dst = H_NONE;

    if (!lock_ok(in))
        return false;
    if (in->o[1].kind != OPK_IMM && is_mem(in, 0))
        return bit_string(t, n);
    if (is_mem(in, 0)) {
        if (!tr_mem(t, size, n != 4, &rm))
            return false;
        e_op(&t->e, ef(size) | (in->pfx & PFX_LOCK ? EF_LOCK : 0), 1, 0xba, n, rm);
        e1(&t->e, in->imm & (8 * size - 1));
        return true;
    }
    if (!is_reg(in, 0))
        return false;
    dst = tr_pinned(in->o[0].reg) ? tr_host_reg[in->o[0].reg] : T0;
    if (dst == T0)
        e_mov_load(&t->e, T0, r(in, 0));
    if (in->o[1].kind == OPK_IMM) {
        e_op(&t->e, ef(size), 1, 0xba, n, rm_reg(dst));
        e1(&t->e, in->imm);
    } else {
        e_op(&t->e, ef(size), 1, 0x83 + 8 * n, in_reg(t, 1), rm_reg(dst));
    }
    if (dst == T0 && n != 4)
        e_mov_store(&t->e, r(in, 0), T0);
    return true;
}

static bool tr_bswap(struct tr *t)
{
    const struct insn *in = t->in;
    uint8_t dst;

    if (in->o[0].size < 4)
        return false;
    dst = in_reg(t, 0);
    e1(&t->e, 0x40 | (in->o[0].size == 8 ? 8 : 0) | (dst & 8) >> 3);
    e1(&t->e, 0x0f);
    e1(&t->e, 0xc8 | (dst & 7));
    out_reg(t, 0);
    return true;
}

/* ---- rax and rdx alone, and flags: the very bytes ---- */
static bool tr_bytes(struct tr *t)
{
    if (t->in->pfx & (PFX_LOCK | PFX_REP | PFX_REPNE))
        return false;
    memcpy(t->e.w, t->in->bytes, t->in->len);
    t->e.w += t->in->len;
    return true;
}

/* CLFLUSH and its kin touch the line as a read does, and the host's caches are coherent. */
static bool tr_clflush(struct tr *t)
{
    struct rm rm;

    if ((t->in->pfx & PFX_LOCK) || !tr_mem(t, 1, false, &rm))
        return false;
    e_op(&t->e, 0, 1, 0xb6, T1, rm); /* movzx ecx, byte */
    return true;
}

static bool tr_nop(struct tr *t)
{
    return !(t->in->pfx & PFX_LOCK);
}

/* ---- conditions ---- */
int tr_cond(unsigned op)
{
    switch (op) {
#define CC(n, name)     \
    case OP_J##name:    \
    case OP_SET##name:  \
    case OP_CMOV##name: \
        return n;
        CC(0, O)
        CC(1, NO)
        CC(2, B)
        CC(3, NB)
        CC(4, Z)
        CC(5, NZ)
        CC(6, BE)
        CC(7, NBE)
        CC(8, S)
        CC(9, NS)
        CC(10, P)
        CC(11, NP)
        CC(12, L) CC(13, NL) CC(14, LE) CC(15, NLE)
#undef CC
            default : return -1;
    }
}

static bool tr_cmov(struct tr *t)
{
    const struct insn *in = t->in;
    const unsigned size = in->o[0].size;
    struct rm rm;
    uint8_t dst;

    if (is_mem(in, 1)) {
        if (!checked(t, size, false, 0, &rm))
            return false;
    } else {
        rm = r(in, 1);
    }
    dst = in_reg(t, 0);
    if (is_mem(in, 1))
        tr_site(t);
    e_op(&t->e, ef(size), 1, 0x40 | tr_cond(in->op), dst, rm);
    out_reg(t, 0);
    return true;
}

static bool tr_setcc(struct tr *t)
{
    const struct insn *in = t->in;
    unsigned f = EF_B8;
    struct rm rm;

    if (is_mem(in, 0)) {
        if (!tr_mem(t, 1, true, &rm))
            return false;
    } else if (is_reg(in, 0)) {
        rm = r(in, 0);
    } else if (is_high(in, 0)) {
        rm = high_begin(t, 0, &f);
    } else {
        return false;
    }
    e_op(&t->e, f, 1, 0x90 | tr_cond(in->op), 0, rm);
    if (is_high(in, 0))
        high_end(t, 0);
    return true;
}

/* ---- branches ---- */
/* Page offset of a relative target; false: beyond 32 bits, or cut to the operand size. */
static bool relative(const struct tr *t, int32_t *disp)
{
    const int64_t d = (int64_t)t->next_off + (int64_t)t->in->imm;

    *disp = (int32_t)d;
    return d == (int32_t)d && t->in->opsize == 8;
}

static bool tr_jcc(struct tr *t)
{
    int32_t disp;

    if (!relative(t, &disp))
        return false;
    tr_goto_if(t, tr_cond(t->in->op), disp);
    tr_goto_next(t);
    t->ended = true;
    return true;
}

/* JECXZ JRCXZ LOOP: the host's jrcxz, over a jump to what comes next. */
static bool tr_jrcxz(struct tr *t)
{
    const uint8_t rcx = tr_host_reg[R_RCX];
    const bool loop = t->in->op == OP_LOOP, wide = t->in->asize == 8;
    struct emit *e = &t->e;
    uint8_t *zero, *over;
    int32_t disp;

    /* a LOOP that faults at its target has not counted */
    if (t->in->asize < 4 || !relative(t, &disp) || (loop && t->jb->key & KEY_EDGE))
        return false;
    tr_islands(t, false, 110);
    if (loop)
        e_op(e, wide ? EF_W : 0, 0, 0x8d, rcx, rm_mem(rcx, -1));
    e_op(e, wide ? EF_W : 0, 0, 0x8b, T1, rm_reg(rcx));
    zero = e_jrcxz_later(e);
    over = e_jmp_later(e);
    e_fix8(zero, e->w);
    tr_goto(t, loop ? (int32_t)t->next_off : disp);
    e_fix32(e, over, e->w);
    if (loop)
        tr_goto(t, disp);
    else
        tr_goto_next(t);
    t->ended = true;
    return true;
}

static bool tr_jmp(struct tr *t)
{
    const struct insn *in = t->in;
    int32_t disp;

    if (in->o[0].kind == OPK_REL) {
        if (!relative(t, &disp))
            return false;
        tr_goto(t, disp);
    } else if (is_reg(in, 0) && in->o[0].size == 8) {
        e_mov_load(&t->e, T0, r(in, 0));
        tr_goto_reg(t);
    } else if (is_mem(in, 0) && in->o[0].size == 8 && in->aux != 1) {
        struct rm rm;
        if (!tr_mem(t, 8, false, &rm))
            return false;
        e_mov_load(&t->e, T0, rm);
        tr_goto_reg(t);
    } else {
        return false;
    }
    t->ended = true;
    return true;
}

/* Where the guest's push goes, checked. */
static struct rm push_check(struct tr *t, bool keep_t1)
{
    return tr_stack(t, R_RSP, -8, true, keep_t1);
}

static void push_done(struct tr *t)
{
    const uint8_t sp = tr_host_reg[R_RSP];

    e_lea(&t->e, sp, rm_mem(sp, -8));
}

/* T0, where a call goes, is canonical, or the interpreter raises the fault: behind the push it would be too
 * late. Flags are untouched; T1 is lost. */
static void check_target(struct tr *t)
{
    struct emit *e = &t->e;
    const int32_t likely_sign = t->jb->key & KEY_UPPER ? -1 : 0;
    uint8_t *likely_ok, *ok;

    e_mov_imm32(e, T1, 47);
    e_vex(e, 2, 2, true, 0xf7, T1, T1, rm_reg(T0)); /* sarx: 0 or -1 */
    if (likely_sign)
        e_lea(e, T1, rm_mem(T1, 1));
    likely_ok = e_jrcxz_later(e);
    e_lea(e, T1, rm_mem(T1, likely_sign ? -1 : 1));
    ok = e_jrcxz_later(e);
    tr_jmp_stub(t, tr_slow(t));
    e_fix8(likely_ok, e->w);
    e_fix8(ok, e->w);
}

static bool tr_call(struct tr *t)
{
    const struct insn *in = t->in;
    const int32_t temp = CPU(s.rip); /* exact only after a spill: free here */
    struct rm to;
    int32_t disp = 0;

    if (in->opsize == 2 || in->aux == 1 || (in->o[0].kind == OPK_REL ? !relative(t, &disp) : in->o[0].size != 8))
        return false;
    if (is_mem(in, 0)) {
        struct rm rm;
        if (!tr_mem(t, 8, false, &rm))
            return false;
        e_mov_load(&t->e, T0, rm);
        e_mov_store(&t->e, rm_cpu(temp), T0);
        check_target(t);
    } else if (is_reg(in, 0)) {
        e_mov_load(&t->e, T0, r(in, 0)); /* call rsp jumps to the old one */
        e_mov_store(&t->e, rm_cpu(temp), T0);
        check_target(t);
    } else if (in->o[0].kind != OPK_REL) {
        return false;
    } else if (t->jb->key & KEY_EDGE) {
        e_mov_load(&t->e, T0, rm_cpu(CPU_HOT(HOT_PAGE)));
        e_lea(&t->e, T0, rm_mem(T0, disp));
        check_target(t);
    }
    to = push_check(t, true);
    tr_pair_room(t);
    e_mov_load(&t->e, T1, rm_cpu(CPU_HOT(HOT_PAGE)));
    e_lea(&t->e, T1, rm_mem(T1, t->next_off));
    tr_site(t);
    e_mov_store(&t->e, to, T1);
    push_done(t);
    if (in->o[0].kind == OPK_REL)
        tr_pair_direct(t, disp);
    else
        tr_pair_indirect(t);
    t->ended = true;
    return true;
}

static bool tr_ret(struct tr *t)
{
    const struct insn *in = t->in;
    const uint8_t sp = tr_host_reg[R_RSP];
    const int32_t pop = in->nops && in->o[0].kind == OPK_IMM ? (int32_t)(uint16_t)in->imm : 0;
    struct rm rm;

    if (in->opsize == 2 || in->aux == 1)
        return false;
    rm = tr_stack(t, R_RSP, 0, false, false);
    tr_site(t);
    e_mov_load(&t->e, T0, rm);
    e_lea(&t->e, sp, rm_mem(sp, 8 + pop));
    tr_pair_return(t);
    t->ended = true;
    return true;
}

/* ---- stack ---- */
static bool tr_push(struct tr *t)
{
    const struct insn *in = t->in;
    const int32_t temp = CPU(s.rip);
    uint8_t src = T1;
    struct rm to;

    if (in->opsize == 2)
        return false;
    if (is_mem(in, 0)) {
        struct rm rm;
        if (!tr_mem(t, 8, false, &rm))
            return false;
        e_mov_load(&t->e, T0, rm);
        e_mov_store(&t->e, rm_cpu(temp), T0);
    } else if (in->o[0].kind != OPK_IMM && !is_reg(in, 0)) {
        return false;
    }
    to = push_check(t, is_mem(in, 0) || (is_reg(in, 0) && !tr_pinned(in->o[0].reg)));
    if (is_mem(in, 0))
        e_mov_load(&t->e, T1, rm_cpu(temp));
    else if (is_reg(in, 0))
        src = in_reg(t, 0);
    tr_site(t);
    if (in->o[0].kind == OPK_IMM) {
        e_op(&t->e, EF_W, 0, 0xc7, 0, to);
        e4(&t->e, in->imm);
    } else {
        e_mov_store(&t->e, to, src);
    }
    push_done(t);
    return true;
}

static bool tr_pop(struct tr *t)
{
    const struct insn *in = t->in;
    const uint8_t sp = tr_host_reg[R_RSP];
    struct rm rm;

    if (in->opsize == 2 || !is_reg(in, 0))
        return false;
    rm = tr_stack(t, R_RSP, 0, false, false);
    tr_site(t);
    e_mov_load(&t->e, tr_pinned(in->o[0].reg) ? tr_host_reg[in->o[0].reg] : T1, rm);
    out_reg(t, 0);
    if (in->o[0].reg != R_RSP) /* else the value read wins */
        e_lea(&t->e, sp, rm_mem(sp, 8));
    return true;
}

/* The arithmetic flags are the host's: the bits between go away without touching them (pext, pdep). RF and VM are never
 * set in translated code. */
static bool tr_pushf(struct tr *t)
{
    const int32_t temp = CPU(s.rip);
    struct emit *e = &t->e;
    struct rm to;

    if (t->in->opsize != 8)
        return false;
    e1(e, 0x9c); /* pushfq */
    e_pop(e, T1);
    e_mov_imm32(e, T0, F_OSZAPC);
    e_pext(e, T1, T1, rm_reg(T0));
    e_pdep(e, T1, T1, rm_reg(T0));
    e_mov_load(e, T0, rm_cpu(CPU(s.rflags_sys)));
    e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = T0});
    e_mov_store(e, rm_cpu(temp), T1);
    to = push_check(t, true);
    e_mov_load(e, T1, rm_cpu(temp));
    tr_site(t);
    e_mov_store(e, to, T1);
    push_done(t);
    return true;
}

static bool tr_leave(struct tr *t)
{
    const uint8_t sp = tr_host_reg[R_RSP], bp = tr_host_reg[R_RBP];
    struct rm rm;

    if (t->in->opsize == 2)
        return false;
    rm = tr_stack(t, R_RBP, 0, false, false);
    tr_site(t);
    e_mov_load(&t->e, T1, rm);
    e_lea(&t->e, sp, rm_mem(bp, 8));
    e_op(&t->e, EF_W, 0, 0x8b, bp, rm_reg(T1));
    return true;
}

tr_fn *const tr_table[OP_COUNT] = {
    [OP_ADD] = tr_alu,
    [OP_OR] = tr_alu,
    [OP_ADC] = tr_alu,
    [OP_SBB] = tr_alu,
    [OP_AND] = tr_alu,
    [OP_SUB] = tr_alu,
    [OP_XOR] = tr_alu,
    [OP_CMP] = tr_alu,
    [OP_TEST] = tr_test,
    [OP_INC] = tr_unary,
    [OP_DEC] = tr_unary,
    [OP_NOT] = tr_unary,
    [OP_NEG] = tr_unary,
    [OP_MOV] = tr_mov,
    [OP_MOVZX] = tr_movx,
    [OP_MOVSX] = tr_movx,
    [OP_MOVSXD] = tr_movx,
    [OP_LEA] = tr_lea,
    [OP_XCHG] = tr_xchg,
    [OP_CMPXCHG] = tr_cmpxchg,
    [OP_XADD] = tr_cmpxchg,
    [OP_ROL] = tr_shift,
    [OP_ROR] = tr_shift,
    [OP_RCL] = tr_shift,
    [OP_RCR] = tr_shift,
    [OP_SHL] = tr_shift,
    [OP_SHR] = tr_shift,
    [OP_SAR] = tr_shift,
    [OP_SHLD] = tr_shift2,
    [OP_SHRD] = tr_shift2,
    [OP_MUL] = tr_muldiv,
    [OP_IMUL] = tr_muldiv,
    [OP_DIV] = tr_muldiv,
    [OP_IDIV] = tr_muldiv,
    [OP_BSF] = tr_bit_scan,
    [OP_BSR] = tr_bit_scan,
    [OP_TZCNT] = tr_bit_scan,
    [OP_LZCNT] = tr_bit_scan,
    [OP_POPCNT] = tr_bit_scan,
    [OP_BT] = tr_bt,
    [OP_BTS] = tr_bt,
    [OP_BTR] = tr_bt,
    [OP_BTC] = tr_bt,
    [OP_BSWAP] = tr_bswap,
    [OP_CBW] = tr_bytes,
    [OP_CWDE] = tr_bytes,
    [OP_CDQE] = tr_bytes,
    [OP_CWD] = tr_bytes,
    [OP_CDQ] = tr_bytes,
    [OP_CQO] = tr_bytes,
    [OP_CLC] = tr_bytes,
    [OP_STC] = tr_bytes,
    [OP_CMC] = tr_bytes,
    [OP_LAHF] = tr_bytes,
    [OP_SAHF] = tr_bytes,
    [OP_MFENCE] = tr_bytes,
    [OP_LFENCE] = tr_bytes,
    [OP_SFENCE] = tr_bytes,
    [OP_NOP] = tr_nop,
    [OP_PREFETCHT0] = tr_nop,
    [OP_PREFETCHNTA] = tr_nop,
#define CC(name) [OP_J##name] = tr_jcc, [OP_SET##name] = tr_setcc, [OP_CMOV##name] = tr_cmov,
    CC(O) CC(NO) CC(B) CC(NB) CC(Z) CC(NZ) CC(BE) CC(NBE) CC(S) CC(NS) CC(P) CC(NP) CC(L) CC(NL) CC(LE) CC(NLE)
#undef CC
        [OP_JMP] = tr_jmp,
    [OP_CALL] = tr_call,
    [OP_RET] = tr_ret,
    [OP_PUSH] = tr_push,
    [OP_POP] = tr_pop,
    [OP_ANDN] = tr_bmi,
    [OP_PDEP] = tr_bmi,
    [OP_PEXT] = tr_bmi,
    [OP_BZHI] = tr_bmi,
    [OP_BEXTR] = tr_bmi,
    [OP_SHLX] = tr_bmi,
    [OP_SARX] = tr_bmi,
    [OP_SHRX] = tr_bmi,
    [OP_BLSR] = tr_bmi,
    [OP_BLSI] = tr_bmi,
    [OP_BLSMSK] = tr_bmi,
    [OP_RORX] = tr_rorx,
    [OP_MULX] = tr_mulx,
    [OP_ADCX] = tr_adx,
    [OP_ADOX] = tr_adx,
    [OP_CRC32] = tr_crc32,
    [OP_MOVBE] = tr_movbe,
    [OP_MOVNTI] = tr_movnti,
    [OP_CMPXCHG8B] = tr_cmpxchg8b,
    [OP_CMPXCHG16B] = tr_cmpxchg8b,
    [OP_PREFETCHT1] = tr_nop,
    [OP_PREFETCHT2] = tr_nop,
    [OP_PREFETCH] = tr_nop,
    [OP_PREFETCHW] = tr_nop,
    [OP_PREFETCHWT1] = tr_nop,
    [OP_LEAVE] = tr_leave,
    [OP_CLFLUSH] = tr_clflush,
    [OP_CLFLUSHOPT] = tr_clflush,
    [OP_CLWB] = tr_clflush,
    [OP_JECXZ] = tr_jrcxz,
    [OP_JRCXZ] = tr_jrcxz,
    [OP_LOOP] = tr_jrcxz,
    [OP_MOVSB] = tr_string,
    [OP_MOVSW] = tr_string,
    [OP_MOVSD_STR] = tr_string,
    [OP_MOVSQ] = tr_string,
    [OP_STOSB] = tr_string,
    [OP_STOSW] = tr_string,
    [OP_STOSD] = tr_string,
    [OP_STOSQ] = tr_string,
    [OP_LODSB] = tr_string,
    [OP_LODSW] = tr_string,
    [OP_LODSD] = tr_string,
    [OP_LODSQ] = tr_string,
    [OP_PUSHFQ] = tr_pushf,
    [OP_CLI] = tr_cli,
    [OP_STI] = tr_sti,
    [OP_STAC] = tr_ac,
    [OP_CLAC] = tr_ac,
    [OP_CLD] = tr_direction,
    [OP_STD] = tr_direction,
    [OP_SWAPGS] = tr_swapgs,
    [OP_RDTSC] = tr_rdtsc,
    [OP_RDTSCP] = tr_rdtsc,
    [OP_PAUSE] = tr_pause,
    [OP_RDFSBASE] = tr_base,
    [OP_RDGSBASE] = tr_base,
    [OP_WRFSBASE] = tr_base,
    [OP_WRGSBASE] = tr_base,
};
