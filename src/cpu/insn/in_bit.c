/* SPDX-License-Identifier: MIT
 * in_bit.c: BT BTS BTR BTC, BSF BSR TZCNT LZCNT POPCNT, BMI1, BMI2, CRC32. */
#include "insn/in_int.h"

/* ---- bit tests: b = the bit offset within the operand ---- */
#define PRIM_BT(name, op)          \
    PRIM_BINARY(name, op, 16, "w") \
    PRIM_BINARY(name, op, 32, "l") \
    PRIM_BINARY(name, op, 64, "q")
PRIM_BT(g_bt, "bt")
PRIM_BT(g_bts, "bts")
PRIM_BT(g_btr, "btr")
PRIM_BT(g_btc, "btc")
#define BT_TABLE(name)                     \
    {                                      \
        NULL, name##16, name##32, name##64 \
    }

/* A register offset is signed and moves the address by whole operands (SDM 2, "BT"); an immediate one is masked. */
static gva_t bit_address(struct cpu *cpu, const struct insn *in, uint64_t *offset)
{
    const unsigned size = in->o[0].size, shift = size == 8 ? 6 : size == 4 ? 5 : 4;
    gva_t ea = insn_ea(cpu, in);

    insn_read(cpu, in, 1, offset);
    if (in->o[1].kind == OPK_REG)
        ea = (ea + ((uint64_t)((int64_t)sign_extend(*offset, size) >> shift) * size)) & size_mask(in->asize);
    *offset &= 8 * size - 1;
    return ea;
}

static int bit_modify(struct cpu *cpu, const struct insn *in, rmw_fn *const fns[4])
{
    struct rmw_op op = {.fn = fns[size_index(in->o[0].size)]};
    uint64_t flags;
    gva_t ea;
    int st;

    if (in->o[0].kind != OPK_MEM) {
        insn_read(cpu, in, 1, &op.b);
        return in_rmw(cpu, in, &op);
    }
    ea = bit_address(cpu, in, &op.b);
    st = in_rmw_mem(cpu, in, ea, in->o[0].size, in->pfx & PFX_LOCK, &op, &flags);
    if (st == CPU_OK)
        cpu->s.flags = flags;
    return st;
}

int in_bt(struct cpu *cpu, const struct insn *in)
{
    static rmw_fn *const fns[4] = BT_TABLE(g_bt);
    const unsigned size = in->o[0].size;
    uint64_t v, offset;
    int st;

    if (in->o[0].kind == OPK_MEM) {
        const gva_t ea = bit_address(cpu, in, &offset);

        st = mem_ld(cpu, in->seg, ea, size, &v);
        if (st != CPU_OK)
            return st;
    } else {
        insn_read(cpu, in, 0, &v);
        insn_read(cpu, in, 1, &offset);
    }
    fns[size_index(size)](v, offset, 0, &cpu->s.flags);
    return CPU_OK;
}

#define BIT_MODIFY(name, prim)                        \
    int name(struct cpu *cpu, const struct insn *in)  \
    {                                                 \
        static rmw_fn *const fns[4] = BT_TABLE(prim); \
                                                      \
        return bit_modify(cpu, in, fns);              \
    }
BIT_MODIFY(in_bts, g_bts)
BIT_MODIFY(in_btr, g_btr)
BIT_MODIFY(in_btc, g_btc)

/* ---- scans and counts: "op b, a", a = the old destination (kept by BSF and BSR of 0) ---- */
PRIM_BT(g_bsf, "bsf")
PRIM_BT(g_bsr, "bsr")
PRIM_BT(g_tzcnt, "tzcnt")
PRIM_BT(g_lzcnt, "lzcnt")
PRIM_BT(g_popcnt, "popcnt")

static int scan(struct cpu *cpu, const struct insn *in, rmw_fn *const fns[4])
{
    const unsigned size = in->o[0].size;
    uint64_t b, flags = cpu->s.flags, r;
    const int st = insn_read(cpu, in, 1, &b);

    if (st != CPU_OK)
        return st;
    r = fns[size_index(size)](cpu->s.gpr[in->o[0].reg], b, 0, &flags);
    cpu->s.flags = flags;
    reg_write(cpu, in->o[0].reg, size, r);
    return CPU_OK;
}

/* BSF and BSR of 0 leave the whole destination alone, also the upper half of a 32-bit one. */
static int bit_scan(struct cpu *cpu, const struct insn *in, rmw_fn *const fns[4])
{
    const uint64_t old = cpu->s.gpr[in->o[0].reg];
    const int st = scan(cpu, in, fns);

    if (st == CPU_OK && (cpu->s.flags & F_ZF))
        cpu->s.gpr[in->o[0].reg] = old;
    return st;
}

int in_bsf(struct cpu *cpu, const struct insn *in)
{
    static rmw_fn *const fns[4] = BT_TABLE(g_bsf);

    return bit_scan(cpu, in, fns);
}

int in_bsr(struct cpu *cpu, const struct insn *in)
{
    static rmw_fn *const fns[4] = BT_TABLE(g_bsr);

    return bit_scan(cpu, in, fns);
}

#define COUNT(name, prim)                             \
    int name(struct cpu *cpu, const struct insn *in)  \
    {                                                 \
        static rmw_fn *const fns[4] = BT_TABLE(prim); \
                                                      \
        return scan(cpu, in, fns);                    \
    }
COUNT(in_tzcnt, g_tzcnt)
COUNT(in_lzcnt, g_lzcnt)
COUNT(in_popcnt, g_popcnt)

/* ---- BMI1 and BMI2: VEX forms of the host's own; rows exist only where the host has them ---- */
#define PRIM_VEX3(name, op, bits, sfx) /* a = first source, b = second source; result returned */              \
    static uint64_t name##bits(uint64_t a_, uint64_t b_, uint64_t c, uint64_t *flags)                          \
    {                                                                                                          \
        uint##bits##_t a = a_, b = b_, r;                                                                      \
        uint32_t ax = ax_of_flags(*flags);                                                                     \
        __asm__(FLAGS_LOAD op sfx " %3, %2, %1\n\t" FLAGS_SAVE : "+&a"(ax), "=&r"(r) : "r"(a), "r"(b) : "cc"); \
        *flags = flags_of_ax(ax);                                                                              \
        return r;                                                                                              \
    }
#define PRIM_VEX2(name, op, bits, sfx)                                                             \
    static uint64_t name##bits(uint64_t a_, uint64_t b, uint64_t c, uint64_t *flags)               \
    {                                                                                              \
        uint##bits##_t a = a_, r;                                                                  \
        uint32_t ax = ax_of_flags(*flags);                                                         \
        __asm__(FLAGS_LOAD op sfx " %2, %1\n\t" FLAGS_SAVE : "+&a"(ax), "=&r"(r) : "r"(a) : "cc"); \
        *flags = flags_of_ax(ax);                                                                  \
        return r;                                                                                  \
    }
#define PRIM_VEX(PRIM, name, op) PRIM(name, op, 32, "l") PRIM(name, op, 64, "q")
/* In Intel's order ANDN, PDEP and PEXT are "op dest, src1, src2/m"; BEXTR, BZHI and the shifts "op dest, src1/m, src2".
 * Here a is always Intel's first source; AT&T order is reversed. */
PRIM_VEX(PRIM_VEX3, g_andn, "andn")
PRIM_VEX(PRIM_VEX3, g_pdep, "pdep")
PRIM_VEX(PRIM_VEX3, g_pext, "pext")
PRIM_VEX(PRIM_VEX3, g_bextr, "bextr")
PRIM_VEX(PRIM_VEX3, g_bzhi, "bzhi")
PRIM_VEX(PRIM_VEX3, g_sarx, "sarx")
PRIM_VEX(PRIM_VEX3, g_shlx, "shlx")
PRIM_VEX(PRIM_VEX3, g_shrx, "shrx")
PRIM_VEX(PRIM_VEX2, g_blsi, "blsi")
PRIM_VEX(PRIM_VEX2, g_blsr, "blsr")
PRIM_VEX(PRIM_VEX2, g_blsmsk, "blsmsk")

/* Destination, one or two sources (any of them memory). */
static int vex(struct cpu *cpu, const struct insn *in, rmw_fn *fn32, rmw_fn *fn64)
{
    uint64_t a, b = 0;
    int st = insn_read(cpu, in, 1, &a);

    if (st == CPU_OK && in->nops > 2)
        st = insn_read(cpu, in, 2, &b);
    if (st != CPU_OK)
        return st;
    reg_write(cpu, in->o[0].reg, in->o[0].size, (in->o[0].size == 8 ? fn64 : fn32)(a, b, 0, &cpu->s.flags));
    return CPU_OK;
}

#define VEX(name)                                         \
    int in_##name(struct cpu *cpu, const struct insn *in) \
    {                                                     \
        return vex(cpu, in, g_##name##32, g_##name##64);  \
    }
VEX(andn)
VEX(pdep)
VEX(pext)
VEX(bextr)
VEX(bzhi)
VEX(sarx)
VEX(shlx)
VEX(shrx)
VEX(blsi)
VEX(blsr)
VEX(blsmsk)

int in_rorx(struct cpu *cpu, const struct insn *in)
{
    const unsigned size = in->o[0].size, bits = 8 * size, n = in->imm & (bits - 1);
    uint64_t v;
    const int st = insn_read(cpu, in, 1, &v);

    if (st == CPU_OK)
        reg_write(cpu, in->o[0].reg, size, n ? v >> n | v << (bits - n) : v);
    return st;
}

/* dest_hi, dest_lo, src: with one register for both the high half wins. */
int in_mulx(struct cpu *cpu, const struct insn *in)
{
    const unsigned size = in->o[0].size;
    unsigned __int128 product;
    uint64_t b;
    const int st = insn_read(cpu, in, 2, &b);

    if (st != CPU_OK)
        return st;
    product = (unsigned __int128)reg_read(cpu, R_RDX, size) * b;
    reg_write(cpu, in->o[1].reg, size, (uint64_t)product);
    reg_write(cpu, in->o[0].reg, size, (uint64_t)(product >> (8 * size)));
    return CPU_OK;
}

int in_crc32(struct cpu *cpu, const struct insn *in)
{
    uint64_t crc = (uint32_t)cpu->s.gpr[in->o[0].reg], v;
    const int st = insn_read(cpu, in, 1, &v);

    if (st != CPU_OK)
        return st;
    switch (in->o[1].size) {
    case 1:
        __asm__("crc32b %b1, %k0" : "+r"(crc) : "q"(v));
        break;
    case 2:
        __asm__("crc32w %w1, %k0" : "+r"(crc) : "r"(v));
        break;
    case 4:
        __asm__("crc32l %k1, %k0" : "+r"(crc) : "r"(v));
        break;
    default:
        __asm__("crc32q %1, %0" : "+r"(crc) : "r"(v));
    }
    cpu->s.gpr[in->o[0].reg] = (uint32_t)crc; /* zero-extended with a 64-bit destination too */
    return CPU_OK;
}
