/* SPDX-License-Identifier: MIT
 * state.h: the register file of one processor and its bit names (SDM 3A, "System Architecture Overview"). */
#ifndef CPU_STATE_H
#define CPU_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint64_t gva_t; /* guest-virtual (linear) address */
typedef uint64_t gpa_t; /* guest-physical address */
typedef uint64_t hva_t; /* an address of this process: what the processor calls host-physical */
typedef uint64_t hpa_t; /* = hva_t at level 0 */

enum { R_RAX, R_RCX, R_RDX, R_RBX, R_RSP, R_RBP, R_RSI, R_RDI, R_R8, R_R9, R_R10, R_R11, R_R12, R_R13, R_R14, R_R15 };
enum seg_reg { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_NONE };

/* attr has the format of the VMCS access rights (SDM 3C, "Guest Register State"): type 3:0, S 4, DPL 6:5, P 7, AVL 12,
 * L 13, D/B 14, G 15, unusable 16. limit is in bytes, already scaled by G. */
struct segment {
    uint64_t base;
    uint32_t limit;
    uint32_t attr;
    uint16_t sel;
    uint16_t pad[3];
};
#define AR_TYPE(a)  ((a)&15u)
#define AR_S        (1u << 4)
#define AR_DPL(a)   (((a) >> 5) & 3u)
#define AR_P        (1u << 7)
#define AR_AVL      (1u << 12)
#define AR_L        (1u << 13)
#define AR_DB       (1u << 14)
#define AR_G        (1u << 15)
#define AR_UNUSABLE (1u << 16)

struct dtable {
    uint64_t base;
    uint32_t limit;
    uint32_t pad;
};

#define F_CF       (1ull << 0)
#define F_PF       (1ull << 2)
#define F_AF       (1ull << 4)
#define F_ZF       (1ull << 6)
#define F_SF       (1ull << 7)
#define F_TF       (1ull << 8)
#define F_IF       (1ull << 9)
#define F_DF       (1ull << 10)
#define F_OF       (1ull << 11)
#define F_IOPL     (3ull << 12)
#define F_NT       (1ull << 14)
#define F_RF       (1ull << 16)
#define F_VM       (1ull << 17)
#define F_AC       (1ull << 18)
#define F_VIF      (1ull << 19)
#define F_VIP      (1ull << 20)
#define F_ID       (1ull << 21)
#define F_OSZAPC   (F_CF | F_PF | F_AF | F_ZF | F_SF | F_OF)
#define F_RESERVED 2ull

#define CR0_PE (1ull << 0)
#define CR0_MP (1ull << 1)
#define CR0_EM (1ull << 2)
#define CR0_TS (1ull << 3)
#define CR0_ET (1ull << 4)
#define CR0_NE (1ull << 5)
#define CR0_WP (1ull << 16)
#define CR0_AM (1ull << 18)
#define CR0_NW (1ull << 29)
#define CR0_CD (1ull << 30)
#define CR0_PG (1ull << 31)

#define CR4_VME        (1ull << 0)
#define CR4_PVI        (1ull << 1)
#define CR4_TSD        (1ull << 2)
#define CR4_DE         (1ull << 3)
#define CR4_PSE        (1ull << 4)
#define CR4_PAE        (1ull << 5)
#define CR4_MCE        (1ull << 6)
#define CR4_PGE        (1ull << 7)
#define CR4_PCE        (1ull << 8)
#define CR4_OSFXSR     (1ull << 9)
#define CR4_OSXMMEXCPT (1ull << 10)
#define CR4_UMIP       (1ull << 11)
#define CR4_VMXE       (1ull << 13)
#define CR4_FSGSBASE   (1ull << 16)
#define CR4_PCIDE      (1ull << 17)
#define CR4_OSXSAVE    (1ull << 18)
#define CR4_SMEP       (1ull << 20)
#define CR4_SMAP       (1ull << 21)

#define EFER_SCE   (1ull << 0)
#define EFER_LME   (1ull << 8)
#define EFER_LMA   (1ull << 10)
#define EFER_NXE   (1ull << 11)
#define EFER_AIBRS (1ull << 21)

#define INTR_BLOCK_STI   1u
#define INTR_BLOCK_MOVSS 2u
#define INTR_BLOCK_SMI   4u
#define INTR_BLOCK_NMI   8u
enum { ACTIVITY_ACTIVE, ACTIVITY_HLT, ACTIVITY_SHUTDOWN, ACTIVITY_WAIT_SIPI };

#define DR6_FIXED 0xffff0ff0ull
#define DR6_BD    (1ull << 13)
#define DR6_BS    (1ull << 14)
#define DR6_BT    (1ull << 15)
#define DR7_FIXED 0x400ull
#define DR7_GD    (1ull << 13)

enum {
    VEC_DE,
    VEC_DB,
    VEC_NMI,
    VEC_BP,
    VEC_OF,
    VEC_BR,
    VEC_UD,
    VEC_NM,
    VEC_DF,
    VEC_TS = 10,
    VEC_NP,
    VEC_SS,
    VEC_GP,
    VEC_PF,
    VEC_MF = 16,
    VEC_AC,
    VEC_MC,
    VEC_XM
};

#define PF_P  1u
#define PF_W  2u
#define PF_U  4u
#define PF_RS 8u
#define PF_I  16u

/* MODE_REAL and MODE_V86 run 16-bit code with 8086 segments; PROT16/32 by CS.D; COMPAT by EFER.LMA with CS.L = 0. */
enum cpu_mode { MODE_REAL, MODE_V86, MODE_PROT16, MODE_PROT32, MODE_COMPAT16, MODE_COMPAT32, MODE_64 };
enum paging_mode { PAGING_NONE, PAGING_32, PAGING_PAE, PAGING_4LEVEL };
/* USER: CPL 3. SUPER: CPL < 3, user pages not readable (SMAP on, AC = 0). SUPER_USER: CPL < 3, user pages allowed. */
enum acc_mode { AM_USER, AM_SUPER, AM_SUPER_USER, AM_COUNT };

#define KEY_MODE     0x00fu /* enum cpu_mode */
#define KEY_SS32     0x010u /* stack width 32 (SS.B) where not 64-bit */
#define KEY_CPL3     0x020u
#define KEY_TS_EM    0x040u /* CR0.TS or CR0.EM set */
#define KEY_OSFXSR   0x080u
#define KEY_OSXSAVE  0x100u
#define KEY_XCR0_AVX 0x200u /* XCR0 has SSE and AVX */
#define KEY_XCR0_512 0x400u /* ... and the three AVX-512 components */

struct cpu_state {
#define S(type, name, count, group) S_FIELD_##count(type, name)
#define S_FIELD_1(type, name)       type name;
#define S_FIELD_4(type, name)       type name[4];
#define S_FIELD_6(type, name)       type name[6];
#define S_FIELD_10(type, name)      type name[10];
#define S_FIELD_16(type, name)      type name[16];
#include "state.def"
#undef S
};
_Static_assert(offsetof(struct cpu_state, seg) == 256, "state.def: HOT is 256 bytes");

static inline uint64_t cpu_get_rflags(const struct cpu_state *s)
{
    return s->flags | s->rflags_sys;
}

static inline void cpu_put_rflags(struct cpu_state *s, uint64_t rflags)
{
    s->flags = rflags & F_OSZAPC;
    s->rflags_sys = (rflags & ~F_OSZAPC) | F_RESERVED;
}

struct cpu;
struct cpu_state *cpu_state(struct cpu *);
/* Power-on reset (init = false) or INIT (init = true: FPU, XCR0, CR0.CD/NW and most MSRs stay; SDM 3A, "Processor State
 * After Reset"). */
void cpu_reset(struct cpu *, bool init);
/* Recompute the DER fields after a change of CR0, CR3, CR4, EFER, XCR0, RFLAGS.VM/AC, CS or SS. */
void cpu_mode_changed(struct cpu *);
/* Compare ARCH and HOT fields; the first difference is printed to why ("rbx: 1 != 2"). undefined_flags are ignored. */
bool cpu_state_equal(const struct cpu_state *, const struct cpu_state *, uint64_t undefined_flags, char *why, size_t);
/* Copy the ARCH and HOT fields in a fixed layout (a snapshot); returns the size. buf may be NULL. */
size_t cpu_state_save(const struct cpu_state *, void *buf, size_t size);
int cpu_state_restore(struct cpu_state *, const void *buf, size_t size);

#endif
