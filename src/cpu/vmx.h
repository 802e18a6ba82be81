/* SPDX-License-Identifier: MIT
 * vmx.h: VMX operations as the hypervisor of level 0 (src/kvm) executes them (SDM 3C, "VMX Instruction Reference").
 * An hpa is an address of this process. Each call belongs to the thread that runs the cpu. */
#ifndef CPU_VMX_H
#define CPU_VMX_H

#include "state.h"
#include "vmcs.h"

/* SDM 3C, "Conventions": VMsucceed, VMfailInvalid, VMfailValid (then VM_INSTRUCTION_ERROR holds the number). */
enum vmx_result { VMX_OK, VMX_FAIL_INVALID, VMX_FAIL_VALID };

enum vmx_result cpu_vmxon(struct cpu *, hpa_t region);
enum vmx_result cpu_vmxoff(struct cpu *);
enum vmx_result cpu_vmclear(struct cpu *, hpa_t vmcs);
enum vmx_result cpu_vmptrld(struct cpu *, hpa_t vmcs);
hpa_t cpu_vmptrst(struct cpu *);
enum vmx_result cpu_vmread(struct cpu *, uint32_t field, uint64_t *value);
enum vmx_result cpu_vmwrite(struct cpu *, uint32_t field, uint64_t value);
/* Run the guest until a VM exit. VMX_OK: it exited (or entry failed after the state checks: bit 31 of VM_EXIT_REASON).
 * Otherwise the instruction failed and nothing ran. */
enum vmx_result cpu_vmlaunch(struct cpu *);
enum vmx_result cpu_vmresume(struct cpu *);
enum { INVEPT_CONTEXT = 1, INVEPT_GLOBAL = 2 };
enum { INVVPID_ADDR, INVVPID_CONTEXT, INVVPID_ALL, INVVPID_CONTEXT_KEEP_GLOBAL };
enum vmx_result cpu_invept(struct cpu *, int type, uint64_t eptp);
enum vmx_result cpu_invvpid(struct cpu *, int type, uint16_t vpid, gva_t);

/* -------- VMX that the guest itself executes --------
 * Its VMX instructions run on the same unit, with a VMCS and guest of their own: level 1's. While that guest runs, the
 * current VMCS of level 0 shows it: guest-state area and cpu_state are its. What level 1 intercepts goes to it without
 * an exit; exits that level 0 sees are level 0's to handle. */
struct cpu_nested_ops { /* what the processor asks while it serves level 1; 0, or -1 */
    int (*read)(void *opaque, gpa_t, void *, size_t);
    int (*write)(void *opaque, gpa_t, const void *, size_t);
    int (*rdmsr)(void *opaque, uint32_t msr, uint64_t *); /* MSRs that the processor does not hold, in MSR lists */
    int (*wrmsr)(void *opaque, uint32_t msr, uint64_t);
};
/* Once, before the first entry; -1: no memory. Without it, and while not allowed, VMX instructions exit. */
int cpu_nested_init(struct cpu *, const struct cpu_nested_ops *, void *opaque);
void cpu_nested_allow(struct cpu *, bool vmx_in_cpuid, uint64_t feature_control);
/* IA32_VMX_* as the guest sees them; to be set before VMXON. -1: no such MSR. The caller judges values. */
int cpu_nested_cap(const struct cpu *, uint32_t msr, uint64_t *);
int cpu_nested_set_cap(struct cpu *, uint32_t msr, uint64_t);
int cpu_nested_default_cap(uint32_t msr, uint64_t *);
bool cpu_nested_vmxon(const struct cpu *);
bool cpu_nested_in_guest(const struct cpu *); /* level 1's guest runs */
/* Since the last call CR0, CR4, EFER, DR7 ... may have become others without an exit: what the hypervisor keeps of them
 * is to be read anew from the VMCS and cpu_state. */
bool cpu_nested_moved(struct cpu *);
/* May CR0 or CR4 have this value, with VMX operation of level 1? */
bool cpu_nested_cr_allowed(const struct cpu *, unsigned cr, uint64_t value);
/* What of an event of level 0's own goes to level 1 instead of its guest. An event that is injected again is not asked
 * about. */
enum { NESTED_INTR = 1, NESTED_INTR_ACK = 2, NESTED_NMI = 4, NESTED_NMI_BLOCKED = 8 };
unsigned cpu_nested_wants(const struct cpu *);
bool cpu_nested_wants_exception(const struct cpu *, unsigned vector, uint32_t error);
/* A VM exit of level 1's guest to level 1, outside of guest mode. -1: VMX abort, the guest is to be shut down. */
int cpu_nested_exit(struct cpu *, uint32_t reason, uint64_t qualification, uint32_t intr_info, uint32_t intr_error);
/* System management mode: level 1's VMX operation is put aside, and taken up again. */
void cpu_nested_suspend(struct cpu *, bool);

#define CPU_NESTED_VMCS_SIZE 4096
#define CPU_NESTED_REVISION  0x11e57ed0u
#define CPU_NESTED_NONE      (~0ull)
struct cpu_nested_state {
    uint64_t vmxon, vmcs; /* guest-physical, or CPU_NESTED_NONE */
    bool in_guest, smm_vmxon, smm_in_guest;
    bool run_pending;        /* set: the event in the VM-entry interruption information is still to be injected */
    uint64_t timer_deadline; /* guest TSC; 0: no VMX-preemption timer runs */
};
/* vmcs: the current VMCS in the layout of KVM's vmcs12 (CPU_NESTED_VMCS_SIZE bytes), with the guest's state where
 * in_guest. cpu_nested_set(): 0, or -1: what is in vmcs is not valid. All that was there before is left first. */
void cpu_nested_get(struct cpu *, struct cpu_nested_state *, uint8_t *vmcs);
int cpu_nested_set(struct cpu *, const struct cpu_nested_state *, const uint8_t *vmcs);

#endif
