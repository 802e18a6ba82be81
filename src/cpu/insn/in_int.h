/* SPDX-License-Identifier: MIT
 * in_int.h: what the interpreter's integer files (in_*.c) share: the host's flags, effective addresses, stack accesses
 * and read-modify-write operands. */
#ifndef CPU_IN_INT_H
#define CPU_IN_INT_H

#include "sys/in_sys.h"
#include "insn/insn.h"
#include "mem/mem.h"
#include "vmx/vmx_int.h"

/* ---- flags: the host's own instruction computes them, undefined ones too ----
 * FLAGS_SAVE leaves SF ZF AF PF CF in AH and OF in AL; FLAGS_LOAD is its inverse (0x7f + OF overflows when OF is 1). */
#define FLAGS_SAVE "lahf\n\tseto %%al\n\t"
#define FLAGS_LOAD "addb $0x7f, %%al\n\tsahf\n\t"

static inline uint64_t flags_of_ax(uint32_t ax)
{
    return (ax >> 8 & 0xd5) | (ax & 1) << 11;
}

static inline uint32_t ax_of_flags(uint64_t flags)
{
    return (flags & 0xd5) << 8 | (flags >> 11 & 1);
}

/* Condition codes 0-15 by encoding (SDM 1, "EFLAGS Condition Codes"). */
static inline bool flags_cond(uint64_t f, unsigned cc)
{
    bool v;

    switch (cc >> 1) {
    case 0:
        v = f & F_OF;
        break;
    case 1:
        v = f & F_CF;
        break;
    case 2:
        v = f & F_ZF;
        break;
    case 3:
        v = f & (F_CF | F_ZF);
        break;
    case 4:
        v = f & F_SF;
        break;
    case 5:
        v = f & F_PF;
        break;
    case 6:
        v = (f >> 11 ^ f >> 7) & 1;
        break;
    default:
        v = ((f >> 11 ^ f >> 7) & 1) || (f & F_ZF);
        break;
    }
    return v ^ (cc & 1);
}

/* ---- addresses ---- */
#define IN_WORD_RIP  16 /* cpu_state as an array of words: gpr[16], then rip */
#define IN_WORD_ZERO 31
_Static_assert(offsetof(struct cpu_state, rip) == IN_WORD_RIP * 8, "rip follows gpr");
_Static_assert(offsetof(struct cpu_state, zero) == IN_WORD_ZERO * 8, "the last hot word");

/* 64-bit mode with 64-bit addresses: the linear address of the memory operand, without a branch on its form. */
static inline gva_t in_lin64(const struct cpu *cpu, const struct insn *in)
{
    const uint64_t *word = (const uint64_t *)&cpu->s;
    gva_t gva = (uint64_t)in->fdisp + word[in->fbase] + (word[in->findex] << in->scale);

    if (unlikely(in->seg == SEG_FS || in->seg == SEG_GS))
        gva += cpu->s.seg[in->seg].base;
    return gva;
}

/* Values of 1, 2, 4, 8 bytes by size. */
static inline int mem_ld(struct cpu *cpu, enum seg_reg seg, gva_t ea, unsigned size, uint64_t *v)
{
    uint8_t b;
    uint16_t w;
    uint32_t d;
    int st;

    switch (size) {
    case 8:
        return mem_ld64(cpu, seg, ea, v);
    case 4:
        st = mem_ld32(cpu, seg, ea, &d);
        *v = d;
        return st;
    case 2:
        st = mem_ld16(cpu, seg, ea, &w);
        *v = w;
        return st;
    default:
        st = mem_ld8(cpu, seg, ea, &b);
        *v = b;
        return st;
    }
}

static inline int mem_st(struct cpu *cpu, enum seg_reg seg, gva_t ea, unsigned size, uint64_t v)
{
    switch (size) {
    case 8:
        return mem_st64(cpu, seg, ea, v);
    case 4:
        return mem_st32(cpu, seg, ea, v);
    case 2:
        return mem_st16(cpu, seg, ea, v);
    default:
        return mem_st8(cpu, seg, ea, v);
    }
}

static inline uint64_t size_mask(unsigned size)
{
    return ~0ull >> (64 - 8 * size);
}

static inline uint64_t sign_extend(uint64_t v, unsigned size)
{
    const unsigned shift = 64 - 8 * size;

    return (uint64_t)((int64_t)(v << shift) >> shift);
}

/* ---- stack ---- */
static inline unsigned stack_size(const struct cpu *cpu) /* address size of the stack: 2, 4, 8 */
{
    return cpu->s.mode == MODE_64 ? 8 : cpu->s.insn_key & KEY_SS32 ? 4 : 2;
}

/* rSP + delta, wrapped to the stack's width: the offset in SS. */
static inline gva_t stack_at(const struct cpu *cpu, int64_t delta)
{
    return (cpu->s.gpr[R_RSP] + (uint64_t)delta) & size_mask(stack_size(cpu));
}

static inline void stack_set(struct cpu *cpu, gva_t offset)
{
    const unsigned size = stack_size(cpu);

    /* a 32-bit stack pointer is written like any 32-bit register, a 16-bit one leaves the upper bits */
    reg_write(cpu, R_RSP, size, offset);
}

/* Write first, then move rSP. */
static inline int stack_push(struct cpu *cpu, unsigned size, uint64_t v)
{
    const gva_t sp = stack_at(cpu, -(int64_t)size);
    const int st = mem_st(cpu, SEG_SS, sp, size, v);

    if (likely(st == CPU_OK))
        stack_set(cpu, sp);
    return st;
}

/* ---- branches ---- */
/* A near branch goes there: 64-bit: canonical; else within CS's limit, which may be checked as a fetch's #GP. */
static inline int branch_check(struct cpu *cpu, gva_t rip)
{
    if (likely(cpu->s.mode == MODE_64 ? cpu_canonical(rip) : rip <= cpu->s.seg[SEG_CS].limit))
        return CPU_OK;
    return cpu_raise_err(cpu, VEC_GP, 0);
}

/* ---- read-modify-write of operand 0 ----
 * fn computes the new value; *flags holds the old flags at first. Locked memory forms use a compare-exchange loop on
 * the guest's memory: atomic and a full barrier as the locked instruction is, with one function for each operation. */
typedef uint64_t rmw_fn(uint64_t a, uint64_t b, uint64_t c, uint64_t *flags);

struct rmw_op {
    rmw_fn *fn;
    uint64_t b, c;
    uint64_t old; /* out */
};
/* Register or memory operand 0; flags are committed. */
int in_rmw(struct cpu *, const struct insn *, struct rmw_op *);
/* Memory at ea. flags: out, not yet committed. */
int in_rmw_mem(struct cpu *, const struct insn *, gva_t ea, unsigned size, bool locked, struct rmw_op *,
               uint64_t *flags);

/* Index of a table by operand size 1, 2, 4, 8. */
static inline unsigned size_index(unsigned size)
{
    return __builtin_ctz(size);
}

/* One primitive of the form "op b, a" with all six flags loaded before and saved after it. */
#define PRIM_BINARY(name, op, bits, sfx)                                                           \
    static uint64_t name##bits(uint64_t a_, uint64_t b_, uint64_t c, uint64_t *flags)              \
    {                                                                                              \
        uint##bits##_t a = a_, b = b_;                                                             \
        uint32_t ax = ax_of_flags(*flags);                                                         \
        __asm__(FLAGS_LOAD op sfx " %2, %1\n\t" FLAGS_SAVE : "+&a"(ax), "+&q"(a) : "q"(b) : "cc"); \
        *flags = flags_of_ax(ax);                                                                  \
        return a;                                                                                  \
    }
#define PRIM_UNARY(name, op, bits, sfx)                                                 \
    static uint64_t name##bits(uint64_t a_, uint64_t b, uint64_t c, uint64_t *flags)    \
    {                                                                                   \
        uint##bits##_t a = a_;                                                          \
        uint32_t ax = ax_of_flags(*flags);                                              \
        __asm__(FLAGS_LOAD op sfx " %1\n\t" FLAGS_SAVE : "+&a"(ax), "+&q"(a) : : "cc"); \
        *flags = flags_of_ax(ax);                                                       \
        return a;                                                                       \
    }
#define PRIM_CL(name, op, bits, sfx)                                                                     \
    static uint64_t name##bits(uint64_t a_, uint64_t b_, uint64_t c, uint64_t *flags)                    \
    {                                                                                                    \
        uint##bits##_t a = a_;                                                                           \
        uint8_t count = b_;                                                                              \
        uint32_t ax = ax_of_flags(*flags);                                                               \
        __asm__(FLAGS_LOAD op sfx " %%cl, %1\n\t" FLAGS_SAVE : "+&a"(ax), "+&q"(a) : "c"(count) : "cc"); \
        *flags = flags_of_ax(ax);                                                                        \
        return a;                                                                                        \
    }
#define PRIM_SIZES(PRIM, name, op) \
    PRIM(name, op, 8, "b")         \
    PRIM(name, op, 16, "w")        \
    PRIM(name, op, 32, "l")        \
    PRIM(name, op, 64, "q")
#define PRIM_TABLE(name)                      \
    {                                         \
        name##8, name##16, name##32, name##64 \
    }

/* ---- functions by row (ops_int.def) ---- */
#define OP(mnemonic, interp, trans, rd, must, may, undef, attrs, feature) insn_fn interp;
#include "insn/ops_int.def"
#undef OP
insn_fn in_too_long; /* #GP: longer than 15 bytes */

/* Choosers of specialised forms: NULL where there is none. */
insn_fn *in_select_alu(const struct insn *);
insn_fn *in_select_mov(const struct insn *);
insn_fn *in_select_shift(const struct insn *);
insn_fn *in_select_stack(const struct insn *);
insn_fn *in_select_branch(struct insn *);

#endif
