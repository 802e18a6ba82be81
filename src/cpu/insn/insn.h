/* SPDX-License-Identifier: MIT
 * insn.h: decoded instructions and the table of opcode rows (ops.def). Decoding is Zydis's; it happens once per
 * instruction and block. Not to be called with a live guest FPU (host_fpu_save() first): Zydis uses vector registers.
 */
#ifndef CPU_INSN_H
#define CPU_INSN_H

#include "cpu_int.h"
#include <signal.h> /* its REG_RIP comes first, then ours */

typedef int insn_fn(struct cpu *, const struct insn *); /* returns enum cpu_status */

enum opnd_kind {
    OPK_NONE,
    OPK_REG,   /* general register, reg 0-15, of size bytes */
    OPK_REG8H, /* AH CH DH BH: reg 0-3 */
    OPK_MEM,   /* insn->seg, base, index, scale, disp, asize */
    OPK_IMM,   /* insn->imm (the second immediate, of ENTER, EXTRQ and far pointers' selector: insn->imm2) */
    OPK_REL,   /* insn->imm is the signed displacement from the next instruction */
    OPK_FAR,   /* ptr16:16/32: insn->imm offset, imm2 selector */
    OPK_SEG,
    OPK_CR,
    OPK_DR,
    OPK_MMX,
    OPK_ST,
    OPK_VEC,
    OPK_MASK /* size: 8, 10, 16/32/64, 8 */
};

struct opnd {
    uint8_t kind, reg, size, rw; /* size in bytes; rw: 1 read, 2 written */
};
#define OPND_R 1
#define OPND_W 2

#define PFX_LOCK   1u
#define PFX_REP    2u /* F3 */
#define PFX_REPNE  4u /* F2 */
#define PFX_OPSIZE 8u
#define PFX_REX_W  16u

#define REG_NONE 0xff
#undef REG_RIP
#define REG_RIP 0x10 /* base of a rip-relative operand: next instruction's address + disp */

struct insn {
    /* the first 64 bytes are what the common functions read */
    insn_fn *fn;   /* the row's function, or a form of it specialised at decode time (in_select) */
    uint64_t imm;  /* sign-extended to 64 bits as the instruction uses it */
    int64_t fdisp; /* in_ea64(): disp, plus len where rip-relative */
    void *native;  /* native.c: host code of this instruction; shared, never freed while a block uses it */
    uint8_t len;
    uint8_t seg;           /* enum seg_reg of the memory operand (defaults and overrides applied) */
    uint8_t fbase, findex; /* in_ea64(): words of cpu_state: a register, rip, or one that is always 0 */
    uint8_t scale;         /* log2 */
    uint8_t opsize;        /* effective operand size in bytes: 2, 4, 8 (1 for byte forms) */
    uint8_t asize;         /* effective address size: 2, 4, 8 */
    uint8_t aux; /* a row's own: condition code, ALU operation ... set by in_select. From the decoder: 1 = far */
    struct opnd o[5];
    uint16_t op; /* enum op: row of op_rows[] */
    uint8_t pfx; /* PFX_* */
    uint8_t mem; /* index of the memory operand in o[], or 0xff */
    /* ... and the rest */
    int64_t disp;
    uint32_t imm2;
    uint8_t base, index; /* REG_NONE if absent */
    uint8_t nops;        /* visible operands in o[] (Zydis's order: destination first; CL of a shift is one) */
    uint8_t mode;        /* enum cpu_mode it was decoded for */
    uint8_t vl;          /* vector length in bytes, 0 if none */
    uint8_t bytes[15];
};

enum op {
    OP_INVALID,
#define OP(mnemonic, interp, trans, rd, must, may, undef, attrs, feature) OP_##mnemonic,
#include "insn/ops.def"
#undef OP
    OP_COUNT
};

/* attributes */
#define A_LOCKABLE 0x0001u /* LOCK allowed with a memory destination */
#define A_BRANCH   0x0002u /* ends a block */
#define A_SYS      0x0004u /* may change mode, mappings or interruptibility: ends a block */
#define A_PRIV     0x0008u /* CPL 0 only (the row's function raises #GP) */
#define A_SENS     0x0010u /* sensitive: behaves differently or reveals state without trapping (docs table) */
#define A_VMX      0x0020u /* may cause a VM exit */
#define A_STRING   0x0040u
#define A_VEC      0x0080u /* vector or x87 state: run natively */
#define A_STACK    0x0100u /* implicit use of rSP */
#define A_NO64     0x0200u /* #UD in 64-bit mode */
#define A_NOREAL   0x0400u /* #UD in real and virtual-8086 mode */
#define A_ALIGN    0x0800u /* memory operand must be aligned to its size: #GP */
#define A_X87      0x1000u

/* CPUID features that a row belongs to: cpuid.c offers a bit when its rows exist and the host has it. */
enum feature {
#define FEATURE(name, leaf, sub, reg, bit, own) FEAT_##name,
#include "features.def"
#undef FEATURE
    FEAT_COUNT
};
bool cpu_has_feature(enum feature); /* offered by this processor */

struct op_row {
    const char *name;
    insn_fn *interp;
    uint32_t rd, must, may, undef; /* RFLAGS bits read, always written, perhaps written, undefined afterwards */
    uint32_t attrs;
    uint16_t feature;
};
extern const struct op_row op_rows[OP_COUNT];

/* Decode at most n bytes for a mode. 0; or -1: not an instruction that the rows have (#UD, or #GP where longer than 15
 * bytes: *in is then filled so that running in->fn raises it); or 1: n bytes were not enough. */
int insn_decode(const uint8_t *bytes, unsigned n, enum cpu_mode mode, struct insn *in);
int insn_print(const struct insn *, gva_t rip, char *buf, size_t size);
/* Choose a specialised function for a decoded instruction (in_select.c): sets in->fn and in->aux. */
void in_select(struct insn *);
insn_fn in_ud;     /* raises #UD */
insn_fn in_native; /* native.c */
/* Prepare in->native: 0; -1: this form is not on the allow-list (-> in_ud). */
int native_prepare(struct insn *);

/* The effective address (offset in in->seg, wrapped to in->asize). */
static inline gva_t insn_ea(const struct cpu *cpu, const struct insn *in)
{
    const struct cpu_state *s = &cpu->s;
    uint64_t ea = (uint64_t)in->disp;

    if (in->base < 16)
        ea += s->gpr[in->base];
    else if (in->base == REG_RIP)
        ea += s->rip + in->len;
    if (in->index < 16)
        ea += s->gpr[in->index] << in->scale; /* scale: log2 */
    return likely(in->asize == 8) ? ea : in->asize == 4 ? (uint32_t)ea : (uint16_t)ea;
}

static inline uint64_t reg_read(const struct cpu *cpu, unsigned reg, unsigned size)
{
    const uint64_t v = cpu->s.gpr[reg];
    return size == 8 ? v : size == 4 ? (uint32_t)v : size == 2 ? (uint16_t)v : (uint8_t)v;
}

static inline void reg_write(struct cpu *cpu, unsigned reg, unsigned size, uint64_t v)
{
    uint64_t *r = &cpu->s.gpr[reg];
    if (size == 8)
        *r = v;
    else if (size == 4)
        *r = (uint32_t)v; /* 32-bit results are zero-extended */
    else if (size == 2)
        *r = (*r & ~0xffffull) | (uint16_t)v;
    else
        *r = (*r & ~0xffull) | (uint8_t)v;
}

/* Explicit operand n of up to 8 bytes, by its kind (REG, REG8H, IMM, MEM). */
int insn_read(struct cpu *, const struct insn *, unsigned n, uint64_t *v);
int insn_write(struct cpu *, const struct insn *, unsigned n, uint64_t v); /* may fault only for MEM, before commit */

#endif
