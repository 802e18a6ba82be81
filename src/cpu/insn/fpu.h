/* SPDX-License-Identifier: MIT
 * fpu.h: the guest's x87, SSE and AVX state: its XSAVE area in memory, or live in the host's registers (fpu.c), and the
 * native copies of vector instructions (native.c, native_encode.c). */
#ifndef CPU_FPU_H
#define CPU_FPU_H

#include "insn/insn.h"
#include "host/host.h"

#define XFEATURE_X87    (1u << 0)
#define XFEATURE_SSE    (1u << 1)
#define XFEATURE_AVX    (1u << 2)
#define XFEATURE_OPMASK (1u << 5)
#define XFEATURE_HI256  (1u << 6)
#define XFEATURE_HI16   (1u << 7)
#define XFEATURE_512    (XFEATURE_OPMASK | XFEATURE_HI256 | XFEATURE_HI16)
#define XFEATURES       8u /* components 0-7: all that we offer are below */

#define MXCSR_INIT 0x1f80u
#define MXCSR_MM   (1u << 17) /* AMD: misaligned operands allowed */
#define FCW_INIT   0x37fu
#define FSW_ES     0x80u
#define FSW_B      0x8000u

/* Legacy region and header of an XSAVE area (SDM 1, "XSAVE Area"). */
struct xsave_area {
    uint16_t fcw, fsw;
    uint8_t ftw, reserved0;
    uint16_t fop;
    uint64_t fip, fdp;
    uint32_t mxcsr, mxcsr_mask;
    uint8_t st[8][16];
    uint8_t xmm[16][16];
    uint8_t reserved1[96];
    uint64_t xstate_bv, xcomp_bv;
    uint64_t reserved2[6];
    uint8_t extended[];
};
_Static_assert(sizeof(struct xsave_area) == 576, "XSAVE area: legacy region and header");

struct fpu_unit {
    struct xsave_area *area; /* 64-byte aligned, cpu_fpu_area_size() bytes; the truth while not cpu->fpu_live */
    /* x87 last-instruction pointers: always here, for the host's own are addresses of our copies. The area shows what
     * this processor saves of them. */
    uint64_t fip, fdp;
    uint16_t fop, fcs, fds;
    uint16_t client_fcw; /* what host_fpu_save() puts back */
    uint32_t client_mxcsr;
    unsigned slot; /* native_encode.c: for copies that are not shared; 0: none yet */
};

struct xfeature {
    uint16_t offset, size;
    bool align64; /* in the compacted format */
};
struct fpu_layout {
    uint64_t mask; /* components of the host that a guest may have */
    uint32_t size, mxcsr_mask;
    bool xsave;
    bool saves_pointers; /* FXSAVE and XSAVE save FOP, FIP and FDP without a pending exception too (not AMD's) */
    struct xfeature comp[XFEATURES];
};
const struct fpu_layout *fpu_layout(void);
/* The area is made current, every component filled in (initial values where XSTATE_BV says so); live state stays live.
 */
struct xsave_area *fpu_sync(struct cpu *);
/* The unit's instruction pointers as the area shows them. */
void fpu_show_pointers(struct fpu_unit *);
/* The initial value of the components of mask, in an area; XSTATE_BV is not touched. */
void fpu_area_init(struct xsave_area *, uint64_t mask);

/* ---- native.c ---- */
enum native_class { NC_NONE, NC_X87, NC_WAIT, NC_MMX, NC_SSE, NC_VEX, NC_EVEX, NC_COUNT };
/* What a copy returns: 0, or what native_fault() made of a host signal. */
enum native_result { NR_OK, NR_MF, NR_XM, NR_UD, NR_GP, NR_HOST };
typedef int native_fn(struct cpu_state *, void *mem);

enum native_mask { NM_NONE, NM_ELEMENTS, NM_COMPRESS };
#define NX_POINTERS 1u /* x87: updates FOP, FIP */
#define NX_MEM      2u /* ... and FDP */
#define NX_INIT     4u /* clears them */

struct native {
    native_fn *run;
    uint32_t key_mask, key_want; /* of cpu_state.insn_key: nothing to check where they agree */
    uint8_t class;               /* enum native_class */
    uint8_t acc;                 /* of the memory operand: ACC_*, 0 without one */
    uint8_t mem_size;
    uint8_t align;            /* mask of the address bits that must be 0 */
    uint8_t mask;             /* enum native_mask: masked-off elements of the memory operand do not fault */
    bool mask_whole;          /* ... but they do fault */
    uint8_t elems, elem_size; /* ... elements in memory */
    uint8_t mask_elems;       /* ... and bits of the mask, folded on them */
    uint8_t x87;              /* NX_* */
    bool traps;               /* #MF or #XM may come from it, whatever its operands are */
    bool waits;               /* a pending x87 exception comes first */
    native_fn *get_mask;      /* stores 8 bytes to mem */
    struct native_vsib *vsib; /* gathers, scatters and MASKMOV: in_vsib.c */
};

struct native_vsib {
    uint8_t index_size, elem_size, elems, vl;
    bool vector_mask; /* AVX2: the mask is a vector register, sign bits count */
    native_fn *get_index, *get_data, *put_data, *get_mask, *put_mask; /* whole registers, to and from 64 bytes at mem */
};

/* #UD and #NM by CR0, CR4 and XCR0. CPU_OK or CPU_FAULT. */
int native_allowed(struct cpu *, enum native_class);
/* #GP where the linear address has bits of mask set, after the segment's own violation. CPU_OK or CPU_FAULT. */
int native_check_aligned(struct cpu *, enum seg_reg, gva_t ea, unsigned mask, unsigned size, unsigned acc);
/* A copy's result as a status. */
int native_raise(struct cpu *, int result);
/* ---- native_encode.c ---- */
bool native_owns(uint64_t host_rip);
extern unsigned native_copies_max; /* shared copies; tests lower it */
/* A copy in the cpu's slot, until the next one; NULL: no slot. Not with a live guest FPU. */
const struct native *native_in_slot(struct cpu *, const struct insn *);
void native_release_slot(struct cpu *);
insn_fn in_native_unshared; /* native.c: makes its copy and does what the row's function does with it */

/* The instruction for a translator: with the guest's general registers in host registers of the translator's choice and
 * the memory operand at [base]. Register numbers are those of encodings. */
struct native_map {
    uint8_t host[16]; /* by guest register; above 15: in scratch */
    uint8_t scratch, base;
};
struct native_code {
    uint8_t b[20], n;
    uint8_t load, store; /* guest register that scratch holds before, and that gets it afterwards; REG_NONE */
};
int native_recode(const struct insn *, const struct native_map *, struct native_code *); /* 0; -1: not possible */

/* FOP: low bits of the opcode and ModRM as the guest wrote them. No prefix is in D8-DF. */
static inline uint16_t x87_opcode(const struct insn *in)
{
    const uint8_t *b = in->bytes;

    while ((*b & 0xf8) != 0xd8)
        b++;
    return (b[0] & 7) << 8 | b[1];
}
static inline void fpu_done(struct cpu *cpu)
{
#ifdef ANYKVM_FPU_EAGER
    host_fpu_save(cpu);
#else
    (void)cpu;
#endif
}

insn_fn in_gather, in_scatter, in_maskmov, in_movdir64b, in_clzero;
insn_fn in_fxsave, in_fxrstor, in_xsave, in_xrstor, in_ldmxcsr, in_fldenv, in_fnstenv, in_frstor, in_fnsave;

#endif
