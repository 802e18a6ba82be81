/* SPDX-License-Identifier: MIT
 * in_shift.c: SHL SHR SAR ROL ROR RCL RCR SHLD SHRD by the host's own instruction, so that OF and AF are the host's
 * too. A masked count of 0 leaves all flags alone: they are loaded before and saved after. */
#include "insn/in_int.h"

PRIM_SIZES(PRIM_CL, g_shl, "shl")
PRIM_SIZES(PRIM_CL, g_shr, "shr")
PRIM_SIZES(PRIM_CL, g_sar, "sar")
PRIM_SIZES(PRIM_CL, g_rol, "rol")
PRIM_SIZES(PRIM_CL, g_ror, "ror")
PRIM_SIZES(PRIM_CL, g_rcl, "rcl")
PRIM_SIZES(PRIM_CL, g_rcr, "rcr")

/* The D0/D1 forms (shift by 1) define OF where the general form with a count of 1 does as well: one function does. */
#define SHIFT(name, prim)                                          \
    int name(struct cpu *cpu, const struct insn *in)               \
    {                                                              \
        static rmw_fn *const fns[4] = PRIM_TABLE(prim);            \
        struct rmw_op op = {.fn = fns[size_index(in->o[0].size)]}; \
                                                                   \
        insn_read(cpu, in, 1, &op.b);                              \
        return in_rmw(cpu, in, &op);                               \
    }
SHIFT(in_shl, g_shl)
SHIFT(in_shr, g_shr)
SHIFT(in_sar, g_sar)
SHIFT(in_rol, g_rol)
SHIFT(in_ror, g_ror)
SHIFT(in_rcl, g_rcl)
SHIFT(in_rcr, g_rcr)

/* Double shifts: b = the second operand, c = the count. */
#define PRIM_DOUBLE(name, op, bits, sfx)                                                                             \
    static uint64_t name##bits(uint64_t a_, uint64_t b_, uint64_t c, uint64_t *flags)                                \
    {                                                                                                                \
        uint##bits##_t a = a_, b = b_;                                                                               \
        uint8_t count = c;                                                                                           \
        uint32_t ax = ax_of_flags(*flags);                                                                           \
        __asm__(FLAGS_LOAD op sfx " %%cl, %2, %1\n\t" FLAGS_SAVE : "+&a"(ax), "+&r"(a) : "r"(b), "c"(count) : "cc"); \
        *flags = flags_of_ax(ax);                                                                                    \
        return a;                                                                                                    \
    }
PRIM_DOUBLE(g_shld, "shld", 16, "w")
PRIM_DOUBLE(g_shld, "shld", 32, "l")
PRIM_DOUBLE(g_shld, "shld", 64, "q")
PRIM_DOUBLE(g_shrd, "shrd", 16, "w")
PRIM_DOUBLE(g_shrd, "shrd", 32, "l")
PRIM_DOUBLE(g_shrd, "shrd", 64, "q")

static int double_shift(struct cpu *cpu, const struct insn *in, rmw_fn *const fns[4])
{
    struct rmw_op op = {.fn = fns[size_index(in->o[0].size)]};

    insn_read(cpu, in, 1, &op.b);
    insn_read(cpu, in, 2, &op.c);
    return in_rmw(cpu, in, &op);
}

int in_shld(struct cpu *cpu, const struct insn *in)
{
    static rmw_fn *const fns[4] = {NULL, g_shld16, g_shld32, g_shld64};

    return double_shift(cpu, in, fns);
}

int in_shrd(struct cpu *cpu, const struct insn *in)
{
    static rmw_fn *const fns[4] = {NULL, g_shrd16, g_shrd32, g_shrd64};

    return double_shift(cpu, in, fns);
}

/* Whole registers by an immediate or CL. */
#define SHIFT_FORMS(name, bits)                                                                                      \
    static int x_##name##bits##_i(struct cpu *cpu, const struct insn *in)                                            \
    {                                                                                                                \
        reg_write(cpu, in->o[0].reg, bits / 8, g_##name##bits(cpu->s.gpr[in->o[0].reg], in->imm, 0, &cpu->s.flags)); \
        return CPU_OK;                                                                                               \
    }                                                                                                                \
    static int x_##name##bits##_c(struct cpu *cpu, const struct insn *in)                                            \
    {                                                                                                                \
        const uint64_t count = cpu->s.gpr[R_RCX];                                                                    \
        reg_write(cpu, in->o[0].reg, bits / 8, g_##name##bits(cpu->s.gpr[in->o[0].reg], count, 0, &cpu->s.flags));   \
        return CPU_OK;                                                                                               \
    }
SHIFT_FORMS(shl, 32)
SHIFT_FORMS(shl, 64)
SHIFT_FORMS(shr, 32)
SHIFT_FORMS(shr, 64)
SHIFT_FORMS(sar, 32)
SHIFT_FORMS(sar, 64)

insn_fn *in_select_shift(const struct insn *in)
{
    const bool cl = in->o[1].kind == OPK_REG, wide = in->o[0].size == 8;

    if (in->o[0].kind != OPK_REG || in->o[0].size < 4)
        return NULL;
    switch (in->op) {
    case OP_SHL:
        return wide ? (cl ? x_shl64_c : x_shl64_i) : cl ? x_shl32_c : x_shl32_i;
    case OP_SHR:
        return wide ? (cl ? x_shr64_c : x_shr64_i) : cl ? x_shr32_c : x_shr32_i;
    case OP_SAR:
        return wide ? (cl ? x_sar64_c : x_sar64_i) : cl ? x_sar32_c : x_sar32_i;
    default:
        return NULL;
    }
}
