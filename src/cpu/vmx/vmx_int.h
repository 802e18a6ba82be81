/* SPDX-License-Identifier: MIT
 * vmx_int.h: VMX inside the processor: intercepts that instructions ask, exits, the current VMCS. */
#ifndef CPU_VMX_INT_H
#define CPU_VMX_INT_H

#include "insn/insn.h"

/* Record a VM exit; returns CPU_VMEXIT. in gives the instruction length (NULL: none). */
int vmx_exit(struct cpu *, const struct insn *in, uint32_t reason, uint64_t qualification); /* to level 0 */
int vmx_exit_at(struct cpu *, unsigned level, const struct insn *in, uint32_t reason, uint64_t qualification);
/* EPT violation or misconfiguration (reason 48, 49); linear is valid when qualification has EPTQ_GLA_VALID. */
int vmx_exit_ept(struct cpu *, uint32_t reason, uint64_t qualification, gva_t linear, gpa_t gpa);

/* Outside of guest mode: is the current VMCS at an EPT violation of an access to gpa by the instruction at rip, and did
 * no event's delivery make it? And the end of that instruction, when it was emulated. */
bool vmx_stopped_by_access(const struct cpu *, gva_t rip, gpa_t gpa);
void vmx_retire(struct cpu *, gva_t next_rip);

/* Intercepts: CPU_OK = not intercepted, execute it; CPU_VMEXIT. All faults with priority over the exit (#UD, CPL) are
 * the caller's to raise first (SDM 3C, "Relative Priority of Faults and VM Exits"). */
/* HLT, INVD, INVLPG (qual = linear), RDPMC, RDTSC, RDTSCP, CPUID, MWAIT, MONITOR, PAUSE, WBINVD, XSETBV, RDRAND,
 * RDSEED, INVPCID, GDTR_IDTR, LDTR_TR, VMCALL, VMX instructions: by exit reason. */
int vmx_intercept(struct cpu *, const struct insn *, uint32_t reason, uint64_t qualification);
/* string: DX-addressed memory form; linear = its memory operand. */
int vmx_intercept_io(struct cpu *, const struct insn *, uint16_t port, unsigned size, bool in, bool string, bool rep,
                     bool imm_port, gva_t linear);
int vmx_intercept_msr(struct cpu *, const struct insn *, uint32_t msr, bool write);
int vmx_intercept_dr(struct cpu *, const struct insn *, unsigned dr, bool write, unsigned gpr);
/* MOV to CR0/3/4/8, CLTS (clts = true), LMSW (lmsw = true, with its memory operand's linear address or ~0): applies the
 * guest/host mask. CPU_OK: *value is what to load into the register with host-owned bits kept. */
int vmx_intercept_cr_write(struct cpu *, const struct insn *, unsigned cr, unsigned gpr, uint64_t *value);
int vmx_intercept_clts(struct cpu *, const struct insn *);
int vmx_intercept_lmsw(struct cpu *, const struct insn *, uint16_t source, gva_t linear, uint64_t *cr0);
int vmx_intercept_cr_read(struct cpu *, const struct insn *, unsigned cr, unsigned gpr); /* CR3, CR8 */
uint64_t vmx_visible_cr(struct cpu *, unsigned cr); /* CR0, CR4 through the read shadows */
/* Exception bitmap, #PF mask and match. CPU_OK or CPU_VMEXIT. */
int vmx_intercept_exception(struct cpu *, const struct event *);
int vmx_intercept_task_switch(struct cpu *, const struct insn *, uint16_t sel,
                              int source); /* always exits in non-root */
int vmx_triple_fault(struct cpu *);
uint64_t vmx_guest_tsc(struct cpu *); /* with offset and scaling */
bool vmx_unrestricted(const struct cpu *);
bool vmx_ept_enabled(const struct cpu *);
uint64_t vmx_eptp(const struct cpu *);
uint64_t vmx_nested_eptp(const struct cpu *); /* of level 1, whose guest runs now; 0: none */
uint32_t vmx_vpid(const struct cpu *);        /* 0 when VPIDs are off; TLB_TAG_NESTED for the guest of level 1 */
#define TLB_TAG_NESTED 0x10000u
unsigned vmx_depth(const struct cpu *); /* 1: the guest of level 1 runs */
/* Bits of CR0/CR4 that are fixed in VMX operation: a MOV that violates them is #GP. */
bool vmx_cr_allowed(const struct cpu *, unsigned cr, uint64_t value);
/* After IRET, STI, POPF, MOV SS ...: windows may be open now: sets ATT_WINDOW when one was asked for. */
void vmx_check_windows(struct cpu *);
bool vmx_mtf(const struct cpu *);      /* the monitor trap flag is set: cpu_after_step() exits with reason 37 */
int vmx_exit_mtf(struct cpu *);        /* that exit, to who set it */
bool vmx_runs_vmx(const struct cpu *); /* VMX instructions are level 1's own: vmx_insn(), not an exit */
int vmx_insn(struct cpu *, const struct insn *);
void vmx_nested_reset(struct cpu *); /* INIT, power-on: out of VMX operation */
int vmx_cpu_init(struct cpu *);
void vmx_cpu_destroy(struct cpu *);
/* Guest-state area <-> cpu_state, for cpu_emulate(): without entry checks. */
void vmx_load_guest_state(struct cpu *);
void vmx_save_guest_state(struct cpu *);
void vmx_forget_state(struct cpu *); /* cpu_state was changed by other means than the guest */

#endif
