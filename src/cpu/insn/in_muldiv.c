/* SPDX-License-Identifier: MIT
 * in_muldiv.c: MUL IMUL DIV IDIV and the decimal adjustments. */
#include "insn/in_int.h"

/* Widening products by the host's instruction: SF ZF AF PF, which are undefined, are the host's. Result in *hi:*lo; for
 * bytes in *lo alone. */
typedef void widen_fn(uint64_t *lo, uint64_t *hi, uint64_t b, uint64_t *flags);

#define PRIM_WIDEN(name, op, bits, sfx)                                                               \
    static void name##bits(uint64_t *lo, uint64_t *hi, uint64_t b_, uint64_t *flags)                  \
    {                                                                                                 \
        uint##bits##_t b = b_, d;                                                                     \
        uint32_t ax = ax_of_flags(*flags), saved;                                                     \
        __asm__(FLAGS_LOAD "mov %[a64], %%rax\n\t" op sfx " %[b]\n\tmov %%rax, %[a64]\n\t" FLAGS_SAVE \
                : [ax] "=&a"(saved), [a64] "+&r"(*lo), "=&d"(d)                                       \
                : [b] "r"(b), "0"(ax)                                                                 \
                : "cc");                                                                              \
        *flags = flags_of_ax(saved);                                                                  \
        *hi = d;                                                                                      \
    }
#define PRIM_WIDEN8(name, op)                                                                      \
    static void name##8(uint64_t * lo, uint64_t * hi, uint64_t b_, uint64_t * flags)               \
    {                                                                                              \
        uint8_t b = b_;                                                                            \
        uint32_t ax = ax_of_flags(*flags), saved;                                                  \
        __asm__(FLAGS_LOAD "mov %[a64], %%rax\n\t" op "b %[b]\n\tmov %%rax, %[a64]\n\t" FLAGS_SAVE \
                : [ax] "=&a"(saved), [a64] "+&r"(*lo)                                              \
                : [b] "r"(b), "0"(ax)                                                              \
                : "cc");                                                                           \
        *flags = flags_of_ax(saved);                                                               \
    }
PRIM_WIDEN8(g_mul, "mul")
PRIM_WIDEN(g_mul, "mul", 16, "w")
PRIM_WIDEN(g_mul, "mul", 32, "l")
PRIM_WIDEN(g_mul, "mul", 64, "q")
PRIM_WIDEN8(g_imul, "imul")
PRIM_WIDEN(g_imul, "imul", 16, "w")
PRIM_WIDEN(g_imul, "imul", 32, "l")
PRIM_WIDEN(g_imul, "imul", 64, "q")
PRIM_BINARY(g_imul2_, "imul", 16, "w")
PRIM_BINARY(g_imul2_, "imul", 32, "l")
PRIM_BINARY(g_imul2_, "imul", 64, "q")

static int widen(struct cpu *cpu, const struct insn *in, widen_fn *const fns[4])
{
    const unsigned size = in->o[0].size;
    uint64_t lo = cpu->s.gpr[R_RAX], hi = 0, b;
    const int st = insn_read(cpu, in, 0, &b);

    if (st != CPU_OK)
        return st;
    fns[size_index(size)](&lo, &hi, b, &cpu->s.flags);
    reg_write(cpu, R_RAX, size == 1 ? 2 : size, lo);
    if (size > 1)
        reg_write(cpu, R_RDX, size, hi);
    return CPU_OK;
}

int in_mul(struct cpu *cpu, const struct insn *in)
{
    static widen_fn *const fns[4] = PRIM_TABLE(g_mul);

    return widen(cpu, in, fns);
}

/* One, two or three operands. */
int in_imul(struct cpu *cpu, const struct insn *in)
{
    static widen_fn *const wide[4] = PRIM_TABLE(g_imul);
    static rmw_fn *const fns[4] = {NULL, g_imul2_16, g_imul2_32, g_imul2_64};
    const unsigned src = in->nops - 2;
    uint64_t a, b;
    int st;

    if (in->nops == 1)
        return widen(cpu, in, wide);
    st = insn_read(cpu, in, src, &a);
    if (st == CPU_OK)
        st = insn_read(cpu, in, src + 1, &b);
    if (st != CPU_OK)
        return st;
    return insn_write(cpu, in, 0, fns[size_index(in->o[0].size)](a, b, 0, &cpu->s.flags));
}

struct quotient {
    uint64_t lo, hi; /* the dividend; then quotient and remainder */
    uint64_t divisor;
};

/* 0, or -1 for #DE: checked beforehand, so that the host's instruction, which sets the flags, never traps. hi, lo: the
 * halves of the dividend. */
static int check_div(uint64_t hi, uint64_t divisor)
{
    return hi >= divisor ? -1 : 0; /* the quotient has more than size bits, or the divisor is 0 */
}

static int check_idiv(__int128 dividend, int64_t divisor, unsigned size)
{
    const __int128 max = size_mask(size) >> 1;
    const __int128 min = -max - 1;
    __int128 q;

    if (divisor == 0)
        return -1;
    if (dividend == (int64_t)dividend) /* the usual case, without the library's long division */
        q = divisor == -1 ? -dividend : (int64_t)dividend / divisor;
    else if (divisor == -1) /* 2^63 to -2^63 is the one that fits */
        return dividend == -min ? 0 : -1;
    else
        q = dividend / divisor;
    return q > max || q < min ? -1 : 0;
}

#define DIV_HOST(name, op, bits, sfx)                                                                     \
    static void name##bits(struct quotient *q, uint64_t *flags)                                           \
    {                                                                                                     \
        const uint##bits##_t divisor = q->divisor;                                                        \
        uint64_t lo = q->lo;                                                                              \
        uint32_t ax = ax_of_flags(*flags);                                                                \
        __asm__(FLAGS_LOAD "mov %[lo], %%rax\n\t" op sfx " %[divisor]\n\tmov %%rax, %[lo]\n\t" FLAGS_SAVE \
                : "+&a"(ax), [lo] "+&r"(lo), "+&d"(q->hi)                                                 \
                : [divisor] "r"(divisor)                                                                  \
                : "cc");                                                                                  \
        q->lo = lo;                                                                                       \
        *flags = flags_of_ax(ax);                                                                         \
    }
DIV_HOST(h_div, "div", 8, "b")
DIV_HOST(h_div, "div", 16, "w")
DIV_HOST(h_div, "div", 32, "l")
DIV_HOST(h_div, "div", 64, "q")
DIV_HOST(h_idiv, "idiv", 8, "b")
DIV_HOST(h_idiv, "idiv", 16, "w")
DIV_HOST(h_idiv, "idiv", 32, "l")
DIV_HOST(h_idiv, "idiv", 64, "q")

typedef void div_fn(struct quotient *, uint64_t *flags);

static void commit_quotient(struct cpu *cpu, unsigned size, const struct quotient *q)
{
    if (size == 1) {
        reg_write(cpu, R_RAX, 2, q->lo); /* AL and AH */
        return;
    }
    reg_write(cpu, R_RAX, size, q->lo);
    reg_write(cpu, R_RDX, size, q->hi);
}

int in_div(struct cpu *cpu, const struct insn *in)
{
    static div_fn *const fns[4] = PRIM_TABLE(h_div);
    const unsigned size = in->o[0].size;
    struct quotient q = {.lo = cpu->s.gpr[R_RAX], .hi = cpu->s.gpr[R_RDX]};
    const int st = insn_read(cpu, in, 0, &q.divisor);

    if (st != CPU_OK)
        return st;
    if (check_div(size == 1 ? q.lo >> 8 & 0xff : q.hi & size_mask(size), q.divisor))
        return cpu_raise(cpu, VEC_DE);
    fns[size_index(size)](&q, &cpu->s.flags);
    commit_quotient(cpu, size, &q);
    return CPU_OK;
}

int in_idiv(struct cpu *cpu, const struct insn *in)
{
    static div_fn *const fns[4] = PRIM_TABLE(h_idiv);
    const unsigned size = in->o[0].size, bits = 8 * size;
    struct quotient q = {.lo = cpu->s.gpr[R_RAX], .hi = cpu->s.gpr[R_RDX]};
    __int128 dividend;
    const int st = insn_read(cpu, in, 0, &q.divisor);

    if (st != CPU_OK)
        return st;
    if (size == 1)
        dividend = (int16_t)q.lo;
    else
        dividend = (__int128)((unsigned __int128)(__int128)(int64_t)sign_extend(q.hi, size) << bits) |
                   (q.lo & size_mask(size));
    if (check_idiv(dividend, (int64_t)sign_extend(q.divisor, size), size))
        return cpu_raise(cpu, VEC_DE);
    fns[size_index(size)](&q, &cpu->s.flags);
    commit_quotient(cpu, size, &q);
    return CPU_OK;
}

/* ---- decimal adjustments (not in 64-bit mode): the host's 64-bit mode lacks them, so the manual's pseudo-code ---- */
static uint64_t szp_of_al(uint8_t al)
{
    return (al ? 0 : F_ZF) | (al & 0x80 ? F_SF : 0) | (__builtin_parity(al) ? 0 : F_PF);
}

static void set_al(struct cpu *cpu, uint8_t al)
{
    reg_write(cpu, R_RAX, 1, al);
}

/* SDM 2, "DAA", "DAS": OF is undefined and cleared, as processors do. */
static int adjust_packed(struct cpu *cpu, int sign)
{
    const uint8_t old = cpu->s.gpr[R_RAX];
    const uint64_t f = cpu->s.flags;
    uint64_t cf = 0, af = 0;
    uint8_t al = old;

    if ((old & 15) > 9 || (f & F_AF)) {
        cf = sign < 0 && old < 6 ? F_CF : 0;
        al += sign * 6;
        af = F_AF;
    }
    if (sign > 0)
        cf = 0;
    if (old > 0x99 || (f & F_CF)) {
        al += sign * 0x60;
        cf = F_CF;
    }
    set_al(cpu, al);
    cpu->s.flags = cf | af | szp_of_al(al);
    return CPU_OK;
}

int in_daa(struct cpu *cpu, const struct insn *in)
{
    return adjust_packed(cpu, 1);
}

int in_das(struct cpu *cpu, const struct insn *in)
{
    return adjust_packed(cpu, -1);
}

/* SDM 2, "AAA", "AAS". */
static int adjust_unpacked(struct cpu *cpu, int sign)
{
    uint16_t ax = cpu->s.gpr[R_RAX];
    uint64_t carry = 0;

    if ((ax & 15) > 9 || (cpu->s.flags & F_AF)) {
        ax += sign * 0x106;
        carry = F_AF | F_CF;
    }
    ax &= 0xff0f;
    reg_write(cpu, R_RAX, 2, ax);
    cpu->s.flags = carry | szp_of_al(ax);
    return CPU_OK;
}

int in_aaa(struct cpu *cpu, const struct insn *in)
{
    return adjust_unpacked(cpu, 1);
}

int in_aas(struct cpu *cpu, const struct insn *in)
{
    return adjust_unpacked(cpu, -1);
}

int in_aam(struct cpu *cpu, const struct insn *in)
{
    const uint8_t base = in->imm, al = cpu->s.gpr[R_RAX];

    if (!base)
        return cpu_raise(cpu, VEC_DE);
    reg_write(cpu, R_RAX, 2, (al / base) << 8 | al % base);
    cpu->s.flags = szp_of_al(al % base);
    return CPU_OK;
}

int in_aad(struct cpu *cpu, const struct insn *in)
{
    const uint16_t ax = cpu->s.gpr[R_RAX];
    const uint8_t al = ax + (ax >> 8) * (uint8_t)in->imm;

    reg_write(cpu, R_RAX, 2, al);
    cpu->s.flags = szp_of_al(al);
    return CPU_OK;
}
