/* SPDX-License-Identifier: MIT
 * in_alu.c: ADD OR ADC SBB AND SUB XOR CMP TEST, INC DEC NEG NOT, XADD, CMPXCHG and ADCX/ADOX: a general function for
 * every form, and specialised ones for registers and for memory in 64-bit mode. */
#include "insn/in_int.h"

enum alu { ALU_ADD, ALU_OR, ALU_ADC, ALU_SBB, ALU_AND, ALU_SUB, ALU_XOR, ALU_CMP, ALU_TEST, ALU_COUNT };

PRIM_SIZES(PRIM_BINARY, g_add, "add")
PRIM_SIZES(PRIM_BINARY, g_or, "or")
PRIM_SIZES(PRIM_BINARY, g_adc, "adc")
PRIM_SIZES(PRIM_BINARY, g_sbb, "sbb")
PRIM_SIZES(PRIM_BINARY, g_and, "and")
PRIM_SIZES(PRIM_BINARY, g_sub, "sub")
PRIM_SIZES(PRIM_BINARY, g_xor, "xor")
PRIM_SIZES(PRIM_BINARY, g_cmp, "cmp")
PRIM_SIZES(PRIM_BINARY, g_test, "test")
PRIM_SIZES(PRIM_UNARY, g_inc, "inc")
PRIM_SIZES(PRIM_UNARY, g_dec, "dec")
PRIM_SIZES(PRIM_UNARY, g_neg, "neg")
PRIM_SIZES(PRIM_UNARY, g_not, "not")

static rmw_fn *const alu_fns[ALU_COUNT][4] = {
    [ALU_ADD] = PRIM_TABLE(g_add), [ALU_OR] = PRIM_TABLE(g_or),   [ALU_ADC] = PRIM_TABLE(g_adc),
    [ALU_SBB] = PRIM_TABLE(g_sbb), [ALU_AND] = PRIM_TABLE(g_and), [ALU_SUB] = PRIM_TABLE(g_sub),
    [ALU_XOR] = PRIM_TABLE(g_xor), [ALU_CMP] = PRIM_TABLE(g_cmp), [ALU_TEST] = PRIM_TABLE(g_test),
};

static const uint8_t alu_of_op[OP_COUNT] = {
    [OP_ADD] = ALU_ADD, [OP_OR] = ALU_OR,   [OP_ADC] = ALU_ADC, [OP_SBB] = ALU_SBB,   [OP_AND] = ALU_AND,
    [OP_SUB] = ALU_SUB, [OP_XOR] = ALU_XOR, [OP_CMP] = ALU_CMP, [OP_TEST] = ALU_TEST,
};

int in_alu(struct cpu *cpu, const struct insn *in)
{
    struct rmw_op op = {.fn = alu_fns[alu_of_op[in->op]][size_index(in->o[0].size)]};
    const int st = insn_read(cpu, in, 1, &op.b);

    return st != CPU_OK ? st : in_rmw(cpu, in, &op);
}

/* CMP and TEST only read. */
int in_cmp(struct cpu *cpu, const struct insn *in)
{
    rmw_fn *const fn = alu_fns[alu_of_op[in->op]][size_index(in->o[0].size)];
    uint64_t a, b;
    int st = insn_read(cpu, in, 0, &a);

    if (st == CPU_OK)
        st = insn_read(cpu, in, 1, &b);
    if (st == CPU_OK)
        fn(a, b, 0, &cpu->s.flags);
    return st;
}

static int unary(struct cpu *cpu, const struct insn *in, rmw_fn *const fns[4])
{
    struct rmw_op op = {.fn = fns[size_index(in->o[0].size)]};

    return in_rmw(cpu, in, &op);
}

#define UNARY(name, prim)                               \
    int name(struct cpu *cpu, const struct insn *in)    \
    {                                                   \
        static rmw_fn *const fns[4] = PRIM_TABLE(prim); \
                                                        \
        return unary(cpu, in, fns);                     \
    }
UNARY(in_inc, g_inc)
UNARY(in_dec, g_dec)
UNARY(in_neg, g_neg)
UNARY(in_not, g_not)

int in_xadd(struct cpu *cpu, const struct insn *in)
{
    static rmw_fn *const fns[4] = PRIM_TABLE(g_add);
    struct rmw_op op = {.fn = fns[size_index(in->o[0].size)]};
    uint64_t sum, flags = cpu->s.flags;
    int st;

    insn_read(cpu, in, 1, &op.b);
    if (in->o[0].kind == OPK_MEM) {
        st = in_rmw(cpu, in, &op);
        if (st == CPU_OK)
            insn_write(cpu, in, 1, op.old);
        return st;
    }
    /* the source gets the old value first: XADD of a register with itself doubles it */
    insn_read(cpu, in, 0, &op.old);
    sum = op.fn(op.old, op.b, 0, &flags);
    insn_write(cpu, in, 1, op.old);
    insn_write(cpu, in, 0, sum);
    cpu->s.flags = flags;
    return CPU_OK;
}

/* a = what is there, b = the accumulator, c = the new value. */
#define CMPXCHG_PRIM(bits)                                                               \
    static uint64_t g_cmpxchg##bits(uint64_t a, uint64_t b, uint64_t c, uint64_t *flags) \
    {                                                                                    \
        g_cmp##bits(b, a, 0, flags);                                                     \
        return *flags & F_ZF ? c : a;                                                    \
    }
CMPXCHG_PRIM(8)
CMPXCHG_PRIM(16)
CMPXCHG_PRIM(32)
CMPXCHG_PRIM(64)

/* The destination is written in any case (its old value when the comparison fails); the accumulator only then. */
int in_cmpxchg(struct cpu *cpu, const struct insn *in)
{
    static rmw_fn *const fns[4] = PRIM_TABLE(g_cmpxchg);
    const unsigned size = in->o[0].size;
    struct rmw_op op = {.fn = fns[size_index(size)], .b = reg_read(cpu, R_RAX, size)};
    int st;

    insn_read(cpu, in, 1, &op.c);
    if (in->o[0].kind == OPK_MEM) {
        st = in_rmw(cpu, in, &op);
    } else {
        uint64_t flags = cpu->s.flags;
        uint64_t val;

        insn_read(cpu, in, 0, &op.old);
        val = op.fn(op.old, op.b, op.c, &flags);
        if (flags & F_ZF) /* a 32-bit destination keeps its upper half when nothing was exchanged: as hosts do */
            insn_write(cpu, in, 0, val);
        cpu->s.flags = flags;
        st = CPU_OK;
    }
    if (st == CPU_OK && !(cpu->s.flags & F_ZF))
        reg_write(cpu, R_RAX, size, op.old);
    return st;
}

/* ADCX and ADOX: an addition whose carry lives in CF or OF alone. */
static int add_with(struct cpu *cpu, const struct insn *in, uint64_t carry_flag)
{
    const unsigned size = in->o[0].size;
    uint64_t a, b, flags;
    unsigned __int128 sum;
    int st;

    insn_read(cpu, in, 0, &a);
    st = insn_read(cpu, in, 1, &b);
    if (st != CPU_OK)
        return st;
    sum = (unsigned __int128)a + b + !!(cpu->s.flags & carry_flag);
    flags = cpu->s.flags & ~carry_flag;
    if (sum >> (8 * size))
        flags |= carry_flag;
    insn_write(cpu, in, 0, (uint64_t)sum);
    cpu->s.flags = flags;
    return CPU_OK;
}

int in_adcx(struct cpu *cpu, const struct insn *in)
{
    return add_with(cpu, in, F_CF);
}

int in_adox(struct cpu *cpu, const struct insn *in)
{
    return add_with(cpu, in, F_OF);
}

/* ---- specialised forms ----
 * x_OP_BITS_FORM: rr ri rm mr mi (m: 64-bit mode). Those without a carry input need not load the flags first. */
#define FAST_PRIM(name, op, bits, sfx)                                                               \
    static inline uint##bits##_t f_##name##bits(uint##bits##_t a, uint##bits##_t b, uint64_t *flags) \
    {                                                                                                \
        uint32_t ax;                                                                                 \
        __asm__(op sfx " %2, %1\n\t" FLAGS_SAVE : "=&a"(ax), "+&q"(a) : "q"(b) : "cc");              \
        *flags = flags_of_ax(ax);                                                                    \
        return a;                                                                                    \
    }
#define FAST_PRIM_CARRY(name, op, bits, sfx)                                                                           \
    static inline uint##bits##_t f_##name##bits(uint##bits##_t a, uint##bits##_t b, uint64_t *flags)                   \
    {                                                                                                                  \
        uint32_t ax;                                                                                                   \
        __asm__("btq $0, %3\n\t" op sfx " %2, %1\n\t" FLAGS_SAVE : "=&a"(ax), "+&q"(a) : "q"(b), "rm"(*flags) : "cc"); \
        *flags = flags_of_ax(ax);                                                                                      \
        return a;                                                                                                      \
    }

#define REG(bits, n) ((uint##bits##_t)cpu->s.gpr[in->o[n].reg])

/* Forms that write operand 0 ... */
#define FAST_WRITING(name, bits)                                                                   \
    static int x_##name##bits##_rr(struct cpu *cpu, const struct insn *in)                         \
    {                                                                                              \
        const uint##bits##_t r = f_##name##bits(REG(bits, 0), REG(bits, 1), &cpu->s.flags);        \
        reg_write(cpu, in->o[0].reg, bits / 8, r);                                                 \
        return CPU_OK;                                                                             \
    }                                                                                              \
    static int x_##name##bits##_ri(struct cpu *cpu, const struct insn *in)                         \
    {                                                                                              \
        const uint##bits##_t r = f_##name##bits(REG(bits, 0), in->imm, &cpu->s.flags);             \
        reg_write(cpu, in->o[0].reg, bits / 8, r);                                                 \
        return CPU_OK;                                                                             \
    }                                                                                              \
    static int x_##name##bits##_rm(struct cpu *cpu, const struct insn *in)                         \
    {                                                                                              \
        uint##bits##_t b;                                                                          \
        const void *p = tlb_lookup(cpu, in_lin64(cpu, in), bits / 8, TLB_READ);                    \
        if (unlikely(!p) || unlikely(host_ld##bits(p, &b)))                                        \
            return in_alu(cpu, in);                                                                \
        reg_write(cpu, in->o[0].reg, bits / 8, f_##name##bits(REG(bits, 0), b, &cpu->s.flags));    \
        return CPU_OK;                                                                             \
    }                                                                                              \
    static inline int x_##name##bits##_m(struct cpu *cpu, const struct insn *in, uint##bits##_t b) \
    {                                                                                              \
        uint64_t flags = cpu->s.flags;                                                             \
        uint##bits##_t a;                                                                          \
        void *p = tlb_lookup(cpu, in_lin64(cpu, in), bits / 8, TLB_WRITE);                         \
        if (unlikely(!p) || unlikely(host_ld##bits(p, &a)))                                        \
            return in_alu(cpu, in);                                                                \
        a = f_##name##bits(a, b, &flags);                                                          \
        if (unlikely(host_st##bits(p, a)))                                                         \
            return in_alu(cpu, in);                                                                \
        cpu->s.flags = flags;                                                                      \
        return CPU_OK;                                                                             \
    }                                                                                              \
    static int x_##name##bits##_mr(struct cpu *cpu, const struct insn *in)                         \
    {                                                                                              \
        return x_##name##bits##_m(cpu, in, REG(bits, 1));                                          \
    }                                                                                              \
    static int x_##name##bits##_mi(struct cpu *cpu, const struct insn *in)                         \
    {                                                                                              \
        return x_##name##bits##_m(cpu, in, in->imm);                                               \
    }

/* ... and CMP and TEST, which do not. */
#define FAST_READING(name, bits)                                                \
    static int x_##name##bits##_rr(struct cpu *cpu, const struct insn *in)      \
    {                                                                           \
        f_##name##bits(REG(bits, 0), REG(bits, 1), &cpu->s.flags);              \
        return CPU_OK;                                                          \
    }                                                                           \
    static int x_##name##bits##_ri(struct cpu *cpu, const struct insn *in)      \
    {                                                                           \
        f_##name##bits(REG(bits, 0), in->imm, &cpu->s.flags);                   \
        return CPU_OK;                                                          \
    }                                                                           \
    static int x_##name##bits##_rm(struct cpu *cpu, const struct insn *in)      \
    {                                                                           \
        uint##bits##_t b;                                                       \
        const void *p = tlb_lookup(cpu, in_lin64(cpu, in), bits / 8, TLB_READ); \
        if (unlikely(!p) || unlikely(host_ld##bits(p, &b)))                     \
            return in_cmp(cpu, in);                                             \
        f_##name##bits(REG(bits, 0), b, &cpu->s.flags);                         \
        return CPU_OK;                                                          \
    }                                                                           \
    static int x_##name##bits##_mr(struct cpu *cpu, const struct insn *in)      \
    {                                                                           \
        uint##bits##_t a;                                                       \
        const void *p = tlb_lookup(cpu, in_lin64(cpu, in), bits / 8, TLB_READ); \
        if (unlikely(!p) || unlikely(host_ld##bits(p, &a)))                     \
            return in_cmp(cpu, in);                                             \
        f_##name##bits(a, REG(bits, 1), &cpu->s.flags);                         \
        return CPU_OK;                                                          \
    }                                                                           \
    static int x_##name##bits##_mi(struct cpu *cpu, const struct insn *in)      \
    {                                                                           \
        uint##bits##_t a;                                                       \
        const void *p = tlb_lookup(cpu, in_lin64(cpu, in), bits / 8, TLB_READ); \
        if (unlikely(!p) || unlikely(host_ld##bits(p, &a)))                     \
            return in_cmp(cpu, in);                                             \
        f_##name##bits(a, in->imm, &cpu->s.flags);                              \
        return CPU_OK;                                                          \
    }

#define FAST_ALU(KIND, PRIM, name, op) \
    PRIM(name, op, 8, "b")             \
    PRIM(name, op, 16, "w")            \
    PRIM(name, op, 32, "l")            \
    PRIM(name, op, 64, "q")            \
    KIND(name, 8) KIND(name, 16) KIND(name, 32) KIND(name, 64)

FAST_ALU(FAST_WRITING, FAST_PRIM, add, "add")
FAST_ALU(FAST_WRITING, FAST_PRIM, or, "or")
FAST_ALU(FAST_WRITING, FAST_PRIM_CARRY, adc, "adc")
FAST_ALU(FAST_WRITING, FAST_PRIM_CARRY, sbb, "sbb")
FAST_ALU(FAST_WRITING, FAST_PRIM, and, "and")
FAST_ALU(FAST_WRITING, FAST_PRIM, sub, "sub")
FAST_ALU(FAST_WRITING, FAST_PRIM, xor, "xor")
FAST_ALU(FAST_READING, FAST_PRIM, cmp, "cmp")
FAST_ALU(FAST_READING, FAST_PRIM, test, "test")

enum form { FORM_RR, FORM_RI, FORM_RM, FORM_MR, FORM_MI, FORMS };

#define FORM_ROW(name, bits)                                                                                    \
    {                                                                                                           \
        x_##name##bits##_rr, x_##name##bits##_ri, x_##name##bits##_rm, x_##name##bits##_mr, x_##name##bits##_mi \
    }
#define FORM_TABLE(name)                                                              \
    {                                                                                 \
        FORM_ROW(name, 8), FORM_ROW(name, 16), FORM_ROW(name, 32), FORM_ROW(name, 64) \
    }
static insn_fn *const fast_alu[ALU_COUNT][4][FORMS] = {
    [ALU_ADD] = FORM_TABLE(add), [ALU_OR] = FORM_TABLE(or),   [ALU_ADC] = FORM_TABLE(adc),
    [ALU_SBB] = FORM_TABLE(sbb), [ALU_AND] = FORM_TABLE(and), [ALU_SUB] = FORM_TABLE(sub),
    [ALU_XOR] = FORM_TABLE(xor), [ALU_CMP] = FORM_TABLE(cmp), [ALU_TEST] = FORM_TABLE(test),
};

/* INC, DEC, NEG and NOT of whole registers. INC and DEC leave CF alone, NOT all flags. */
#define FAST_UNARY(name, bits)                                                                     \
    static int x_##name##bits##_r(struct cpu *cpu, const struct insn *in)                          \
    {                                                                                              \
        reg_write(cpu, in->o[0].reg, bits / 8, g_##name##bits(REG(bits, 0), 0, 0, &cpu->s.flags)); \
        return CPU_OK;                                                                             \
    }
FAST_UNARY(inc, 32)
FAST_UNARY(inc, 64)
FAST_UNARY(dec, 32)
FAST_UNARY(dec, 64)
FAST_UNARY(neg, 32)
FAST_UNARY(neg, 64)

static int x_not32_r(struct cpu *cpu, const struct insn *in)
{
    cpu->s.gpr[in->o[0].reg] = (uint32_t)~cpu->s.gpr[in->o[0].reg];
    return CPU_OK;
}

static int x_not64_r(struct cpu *cpu, const struct insn *in)
{
    cpu->s.gpr[in->o[0].reg] = ~cpu->s.gpr[in->o[0].reg];
    return CPU_OK;
}

static int x_zero_r(struct cpu *cpu, const struct insn *in) /* xor r,r and sub r,r are the idioms; xor alone is here */
{
    cpu->s.gpr[in->o[0].reg] = 0;
    cpu->s.flags = F_ZF | F_PF; /* as every host has it: AF, which is undefined, is 0 on AMD and Intel */
    return CPU_OK;
}

static insn_fn *select_unary(const struct insn *in)
{
    const bool wide = in->o[0].size == 8;

    if (in->o[0].kind != OPK_REG || in->o[0].size < 4)
        return NULL;
    switch (in->op) {
    case OP_INC:
        return wide ? x_inc64_r : x_inc32_r;
    case OP_DEC:
        return wide ? x_dec64_r : x_dec32_r;
    case OP_NEG:
        return wide ? x_neg64_r : x_neg32_r;
    case OP_NOT:
        return wide ? x_not64_r : x_not32_r;
    default:
        return NULL;
    }
}

insn_fn *in_select_alu(const struct insn *in)
{
    const struct opnd *a = &in->o[0], *b = &in->o[1];
    const bool flat = in->mode == MODE_64 && in->asize == 8;
    enum form form;

    if (in->nops == 1)
        return select_unary(in);
    if (in->pfx & PFX_LOCK)
        return NULL;
    if (a->kind == OPK_REG && b->kind == OPK_REG)
        form = FORM_RR;
    else if (a->kind == OPK_REG && b->kind == OPK_IMM)
        form = FORM_RI;
    else if (a->kind == OPK_REG && b->kind == OPK_MEM && flat)
        form = FORM_RM;
    else if (a->kind == OPK_MEM && b->kind == OPK_REG && flat)
        form = FORM_MR;
    else if (a->kind == OPK_MEM && b->kind == OPK_IMM && flat)
        form = FORM_MI;
    else
        return NULL;
    if (in->op == OP_XOR && form == FORM_RR && a->reg == b->reg && a->size >= 4)
        return x_zero_r;
    return fast_alu[alu_of_op[in->op]][size_index(a->size)][form];
}
