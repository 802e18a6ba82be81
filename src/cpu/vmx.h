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

#endif
