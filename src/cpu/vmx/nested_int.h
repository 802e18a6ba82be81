/* SPDX-License-Identifier: MIT
 * nested_int.h: VMX that the guest itself executes: what level 1 has beside its struct vmx_level, and the transitions
 * between it and its guest. */
#ifndef CPU_NESTED_INT_H
#define CPU_NESTED_INT_H

#include "vmx/vmx_unit.h"

#define VMCS12_REVISION CPU_NESTED_REVISION /* of the layout in vmcs12.c */
#define VMCS12_SIZE     CPU_NESTED_VMCS_SIZE
#define NESTED_CAPS     (MSR_IA32_VMX_TRUE_ENTRY_CTLS - MSR_IA32_VMX_BASIC + 1)

struct vmx_nested {
    bool allowed; /* the guest's CPUID has VMX */
    bool moved;   /* a transition, or a write of CR0 or CR4 by level 1's guest, that level 0 has not looked at */
    bool suspended, suspended_on, suspended_in_guest; /* by system management mode */
    bool nmi_blocked;                                 /* for level 1 itself, while its guest runs with virtual NMIs */
    uint64_t feature_control;
    uint64_t cap[NESTED_CAPS];
    const struct cpu_nested_ops *ops;
    void *opaque;
    struct vmcs copy;         /* of level 1's current VMCS */
    uint8_t raw[VMCS12_SIZE]; /* the region that it was read from: what has no field here stays as it is */
};

/* ---- vmcs12.c ---- */
int vmcs12_get(struct cpu *, uint64_t pa); /* the region becomes the copy, and the copy current. -1: no memory */
void vmcs12_put(struct cpu *);             /* the current VMCS, if any, goes back to its region */
void vmcs12_decode(struct vmcs *, const uint8_t *raw);
void vmcs12_encode(uint8_t *raw, const struct vmcs *);

/* ---- nested.c: in guest mode; CPU_OK, or CPU_VMEXIT to level 0 ---- */
int vmx_nested_transition(struct cpu *); /* as cpu->exit says: level 1 enters its guest, or its guest exits to it */
/* ---- vmx_host.c ---- */
int vmx_load_host_state(struct cpu *);                  /* of level 1's VMCS, after its guest's exit; -1: VMX abort */
static inline bool vmx_nested_on(const struct cpu *cpu) /* VMX instructions of the guest are executed here */
{
    const struct vmx_nested *n = cpu->vmx->nested;

    return n && n->allowed && !n->suspended && cpu->vmx->level[0].exec2 & CPU2_ENABLE_EPT;
}

#endif
