/* SPDX-License-Identifier: MIT
 * emit.h: encodes host instructions. Knows no guest. A form that does not touch flags says so; nothing checks room: the
 * translator stops a block before the buffer ends. */
#ifndef JIT_EMIT_H
#define JIT_EMIT_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum host_reg {
    H_RAX,
    H_RCX,
    H_RDX,
    H_RBX,
    H_RSP,
    H_RBP,
    H_RSI,
    H_RDI,
    H_R8,
    H_R9,
    H_R10,
    H_R11,
    H_R12,
    H_R13,
    H_R14,
    H_R15,
    H_NONE = 0xff
};

struct emit {
    uint8_t *w;    /* writable view of the next byte */
    uint64_t bias; /* executable address = (uint64_t)w + bias */
};

/* A register or memory operand. */
struct rm {
    bool mem;
    uint8_t reg;          /* register, or base (H_NONE: none) */
    uint8_t index, scale; /* index H_NONE: none; scale is log2 */
    int32_t disp;
};

#define EF_W    1u /* REX.W */
#define EF_O16  2u /* 66 */
#define EF_B8   4u /* byte registers: spl bpl sil dil need a REX */
#define EF_F2   8u
#define EF_F3   16u
#define EF_LOCK 32u

static inline struct rm rm_reg(uint8_t reg)
{
    return (struct rm){.reg = reg, .index = H_NONE};
}

static inline struct rm rm_mem(uint8_t base, int32_t disp)
{
    return (struct rm){.mem = true, .reg = base, .index = H_NONE, .disp = disp};
}

/* A field of the cpu: r15 points 128 bytes into it. */
static inline struct rm rm_cpu(int32_t disp)
{
    return (struct rm){.mem = true, .reg = H_R15, .index = H_NONE, .disp = disp};
}

static inline void e1(struct emit *e, uint8_t v)
{
    *e->w++ = v;
}

static inline void e4(struct emit *e, uint32_t v)
{
    memcpy(e->w, &v, 4);
    e->w += 4;
}

static inline void e8(struct emit *e, uint64_t v)
{
    memcpy(e->w, &v, 8);
    e->w += 8;
}

static inline uint64_t e_here(const struct emit *e)
{
    return (uint64_t)e->w + e->bias;
}

/* ModRM, SIB and displacement: all the special cases of rsp, rbp, r12, r13 and absolute addresses are here. */
static inline void e_modrm(struct emit *e, uint8_t reg, const struct rm *rm)
{
    const uint8_t r = (reg & 7) << 3;

    if (!rm->mem) {
        e1(e, 0xc0 | r | (rm->reg & 7));
        return;
    }
    if (rm->reg == H_NONE) { /* absolute: SIB without base; with an index too */
        e1(e, r | 4);
        e1(e, rm->scale << 6 | (rm->index == H_NONE ? 4 : rm->index & 7) << 3 | 5);
        e4(e, rm->disp);
        return;
    }
    const bool sib = rm->index != H_NONE || (rm->reg & 7) == 4;
    const uint8_t mod = rm->disp == 0 && (rm->reg & 7) != 5 ? 0 : rm->disp == (int8_t)rm->disp ? 0x40 : 0x80;

    e1(e, mod | r | (sib ? 4 : rm->reg & 7));
    if (sib)
        e1(e, rm->scale << 6 | (rm->index == H_NONE ? 4 : rm->index & 7) << 3 | (rm->reg & 7));
    if (mod == 0x40)
        e1(e, rm->disp);
    else if (mod == 0x80)
        e4(e, rm->disp);
}

/* map: 0 one byte, 1 0F, 2 0F38, 3 0F3A */
static inline void e_op(struct emit *e, unsigned flags, unsigned map, uint8_t opcode, uint8_t reg, struct rm rm)
{
    uint8_t rex = flags & EF_W ? 8 : 0;

    if (flags & EF_LOCK)
        e1(e, 0xf0);
    if (flags & EF_O16)
        e1(e, 0x66);
    if (flags & EF_F2)
        e1(e, 0xf2);
    if (flags & EF_F3)
        e1(e, 0xf3);
    rex |= (reg & 8) >> 1;
    if (rm.reg != H_NONE)
        rex |= (rm.reg & 8) >> 3;
    if (rm.mem && rm.index != H_NONE)
        rex |= (rm.index & 8) >> 2;
    if ((flags & EF_B8) && ((reg >= 4 && reg < 8) || (!rm.mem && rm.reg >= 4 && rm.reg < 8)))
        rex |= 0x40;
    if (rex)
        e1(e, 0x40 | rex);
    if (map)
        e1(e, 0x0f);
    if (map == 2)
        e1(e, 0x38);
    if (map == 3)
        e1(e, 0x3a);
    e1(e, opcode);
    e_modrm(e, reg, &rm);
}

/* One-byte opcode with a rip-relative operand at an executable address within 2 GB; imm: bytes that follow it. */
static inline void e_op_rip(struct emit *e, unsigned flags, uint8_t opcode, uint8_t reg, uint64_t target, unsigned imm)
{
    const uint8_t rex = (flags & EF_W ? 8 : 0) | (reg & 8) >> 1;

    if (rex)
        e1(e, 0x40 | rex);
    e1(e, opcode);
    e1(e, (reg & 7) << 3 | 5);
    e4(e, (uint32_t)(target - (e_here(e) + 4 + imm)));
}

/* ... with a two-byte opcode */
static inline void e_op_rip_0f(struct emit *e, unsigned flags, uint8_t opcode, uint8_t reg, uint64_t target)
{
    e1(e, 0x40 | (flags & EF_W ? 8 : 0) | (reg & 8) >> 1);
    e1(e, 0x0f);
    e1(e, opcode);
    e1(e, (reg & 7) << 3 | 5);
    e4(e, (uint32_t)(target - (e_here(e) + 4)));
}

/* VEX form of a BMI instruction: pp 0 none, 1 66, 2 F3, 3 F2 */
static inline void e_vex(struct emit *e, unsigned map, unsigned pp, bool w, uint8_t opcode, uint8_t reg, uint8_t vvvv,
                         struct rm rm)
{
    e1(e, 0xc4);
    e1(e, (reg & 8 ? 0 : 0x80) | (rm.mem && rm.index != H_NONE && (rm.index & 8) ? 0 : 0x40) |
              (rm.reg != H_NONE && (rm.reg & 8) ? 0 : 0x20) | map);
    e1(e, (w ? 0x80 : 0) | ((~vvvv & 15) << 3) | pp);
    e1(e, opcode);
    e_modrm(e, reg, &rm);
}

/* ---- flags untouched ---- */
static inline void e_mov_load(struct emit *e, uint8_t reg, struct rm rm) /* mov r64, r/m64 */
{
    e_op(e, EF_W, 0, 0x8b, reg, rm);
}
static inline void e_mov_load32(struct emit *e, uint8_t reg, struct rm rm)
{
    e_op(e, 0, 0, 0x8b, reg, rm);
}
static inline void e_mov_store(struct emit *e, struct rm rm, uint8_t reg) /* mov r/m64, r64 */
{
    e_op(e, EF_W, 0, 0x89, reg, rm);
}
static inline void e_lea(struct emit *e, uint8_t reg, struct rm rm)
{
    e_op(e, EF_W, 0, 0x8d, reg, rm);
}
static inline void e_mov_imm32(struct emit *e, uint8_t reg, uint32_t v) /* zero-extends */
{
    if (reg & 8)
        e1(e, 0x41);
    e1(e, 0xb8 | (reg & 7));
    e4(e, v);
}
static inline void e_mov_imm64(struct emit *e, uint8_t reg, uint64_t v)
{
    if (v == (uint32_t)v) {
        e_mov_imm32(e, reg, v);
    } else if (v == (uint64_t)(int64_t)(int32_t)v) {
        e_op(e, EF_W, 0, 0xc7, 0, rm_reg(reg));
        e4(e, v);
    } else {
        e1(e, 0x48 | (reg & 8) >> 3);
        e1(e, 0xb8 | (reg & 7));
        e8(e, v);
    }
}
static inline void e_pext(struct emit *e, uint8_t dst, uint8_t src, struct rm mask)
{
    e_vex(e, 2, 2, true, 0xf5, dst, src, mask);
}
/* ... with its mask at an executable address within 2 GB */
static inline void e_pext_rip(struct emit *e, uint8_t dst, uint8_t src, uint64_t target)
{
    const struct rm rm = rm_mem(H_RBP, 0); /* of its ModRM the addressing mode changes */

    e_vex(e, 2, 2, true, 0xf5, dst, src, rm);
    e->w[-2] &= 0x3f;
    e->w--;
    e4(e, (uint32_t)(target - (e_here(e) + 4)));
}
static inline void e_pdep(struct emit *e, uint8_t dst, uint8_t src, struct rm mask)
{
    e_vex(e, 2, 3, true, 0xf5, dst, src, mask);
}
static inline void e_rorx(struct emit *e, uint8_t dst, uint8_t src, uint8_t n)
{
    e_vex(e, 3, 3, true, 0xf0, dst, 0, rm_reg(src));
    e1(e, n);
}
static inline void e_jmp(struct emit *e, uint64_t target)
{
    e1(e, 0xe9);
    e4(e, (uint32_t)(target - (e_here(e) + 4)));
}
static inline void e_jmp_reg(struct emit *e, uint8_t reg)
{
    if (reg & 8)
        e1(e, 0x41);
    e1(e, 0xff);
    e1(e, 0xe0 | (reg & 7));
}
static inline void e_jmp_rm(struct emit *e, struct rm rm)
{
    e_op(e, 0, 0, 0xff, 4, rm);
}
static inline void e_call_rm(struct emit *e, struct rm rm)
{
    e_op(e, 0, 0, 0xff, 2, rm);
}
static inline void e_push(struct emit *e, uint8_t reg)
{
    if (reg & 8)
        e1(e, 0x41);
    e1(e, 0x50 | (reg & 7));
}
static inline void e_pop(struct emit *e, uint8_t reg)
{
    if (reg & 8)
        e1(e, 0x41);
    e1(e, 0x58 | (reg & 7));
}
/* A branch whose 32-bit (8-bit) displacement is filled in later; returns where it is. */
static inline uint8_t *e_jcc_later(struct emit *e, unsigned cc)
{
    e1(e, 0x0f);
    e1(e, 0x80 | cc);
    e4(e, 0);
    return e->w - 4;
}
static inline uint8_t *e_jmp_later(struct emit *e)
{
    e1(e, 0xe9);
    e4(e, 0);
    return e->w - 4;
}
static inline uint8_t *e_jrcxz_later(struct emit *e)
{
    e1(e, 0xe3);
    e1(e, 0);
    return e->w - 1;
}
static inline void e_fix32(const struct emit *e, uint8_t *at, const uint8_t *target)
{
    const int32_t d = (int32_t)(target - (at + 4));
    (void)e;
    memcpy(at, &d, 4);
}
static inline void e_fix8(uint8_t *at, const uint8_t *target)
{
    const long d = target - (at + 1);
    assert(d >= -128 && d <= 127);
    *at = (uint8_t)d;
}
/* ---- flags written ---- */
static inline void e_test_reg_imm8(struct emit *e, uint8_t reg, uint8_t imm) /* test r8, imm8 */
{
    e_op(e, EF_B8, 0, 0xf6, 0, rm_reg(reg));
    e1(e, imm);
}
static inline void e_test_reg(struct emit *e, uint8_t reg)
{
    e_op(e, EF_W, 0, 0x85, reg, rm_reg(reg));
}

#endif
