/* SPDX-License-Identifier: MIT
 * vmxon.c: VMX operation and the current VMCS: VMXON, VMXOFF, VMCLEAR, VMPTRLD, VMPTRST (SDM 3C, "VMX Instruction
 * Reference"), and INVEPT, INVVPID. Addresses are this process's: a region that the hypervisor passes must be mapped.
 */
#include "vmx/vmx_unit.h"
#include <errno.h>
#include <stdlib.h>

#define HPA_LIMIT (1ull << 47)

int vmx_cpu_init(struct cpu *cpu)
{
    cpu->vmx = calloc(1, sizeof(*cpu->vmx));
    return cpu->vmx ? 0 : -ENOMEM;
}

void vmx_cpu_destroy(struct cpu *cpu)
{
    if (cpu->vmx)
        vmx_timer_disarm(cpu);
    free(cpu->vmx);
    cpu->vmx = NULL;
}

enum vmx_result vmx_fail(struct cpu *cpu, enum vmx_error error)
{
    if (!cpu->vmx->cur)
        return VMX_FAIL_INVALID;
    cpu->vmx->cur->VM_INSTRUCTION_ERROR = error;
    return VMX_FAIL_VALID;
}

static bool region_ok(hpa_t hpa)
{
    return hpa && !(hpa & ~PAGE_MASK) && hpa < HPA_LIMIT;
}

enum vmx_result cpu_vmxon(struct cpu *cpu, hpa_t region)
{
    struct vmx_unit *vmx = cpu->vmx;
    uint32_t revision;

    vmx_trace_insn(cpu, "VMXON", region);
    if (vmx->on)
        return vmx_fail(cpu, VMXERR_VMXON_IN_ROOT);
    if (!region_ok(region) || host_ld32((void *)region, &revision) || revision != VMCS_REVISION)
        return VMX_FAIL_INVALID;
    vmx->on = true;
    vmx->vmxon = region;
    vmx->cur = NULL;
    return VMX_OK;
}

enum vmx_result cpu_vmxoff(struct cpu *cpu)
{
    if (!cpu->vmx->on)
        return VMX_FAIL_INVALID;
    cpu->vmx->on = false;
    cpu->vmx->vmxon = 0;
    cpu->vmx->cur = NULL;
    return VMX_OK;
}

enum vmx_result cpu_vmclear(struct cpu *cpu, hpa_t hpa)
{
    struct vmx_unit *vmx = cpu->vmx;
    struct vmcs *v = (struct vmcs *)hpa;

    vmx_trace_insn(cpu, "VMCLEAR", hpa);
    if (!vmx->on)
        return VMX_FAIL_INVALID;
    if (!region_ok(hpa))
        return vmx_fail(cpu, VMXERR_VMCLEAR_BAD_ADDR);
    if (hpa == vmx->vmxon)
        return vmx_fail(cpu, VMXERR_VMCLEAR_VMXON_PTR);
    if (host_st32(&v->launch_state, VMCS_CLEAR))
        return vmx_fail(cpu, VMXERR_VMCLEAR_BAD_ADDR);
    if (v == vmx->cur)
        vmx->cur = NULL;
    return VMX_OK;
}

enum vmx_result cpu_vmptrld(struct cpu *cpu, hpa_t hpa)
{
    struct vmx_unit *vmx = cpu->vmx;
    uint32_t revision;

    vmx_trace_insn(cpu, "VMPTRLD", hpa);
    if (!vmx->on)
        return VMX_FAIL_INVALID;
    if (!region_ok(hpa))
        return vmx_fail(cpu, VMXERR_VMPTRLD_BAD_ADDR);
    if (hpa == vmx->vmxon)
        return vmx_fail(cpu, VMXERR_VMPTRLD_VMXON_PTR);
    if (host_ld32((void *)hpa, &revision))
        return vmx_fail(cpu, VMXERR_VMPTRLD_BAD_ADDR);
    if (revision != VMCS_REVISION)
        return vmx_fail(cpu, VMXERR_VMPTRLD_BAD_REVISION);
    if (vmx->cur != (struct vmcs *)hpa) {
        vmx->cur = (struct vmcs *)hpa;
        vmx->stale = STALE_ALL;
    }
    return VMX_OK;
}

hpa_t cpu_vmptrst(struct cpu *cpu)
{
    return cpu->vmx->cur ? (hpa_t)cpu->vmx->cur : ~0ull;
}

/* An EPTP that VM entry would take (SDM 3C, "INVEPT"). */
static bool eptp_ok(uint64_t eptp)
{
    return (eptp & 7) == EPTP_WB && (eptp >> 3 & 7) == 3 && !(eptp & 0xf80) && eptp < HPA_LIMIT;
}

enum vmx_result cpu_invept(struct cpu *cpu, int type, uint64_t eptp)
{
    vmx_trace_insn(cpu, "INVEPT", eptp);
    if (!cpu->vmx->on)
        return VMX_FAIL_INVALID;
    if (type != INVEPT_GLOBAL && (type != INVEPT_CONTEXT || !eptp_ok(eptp)))
        return vmx_fail(cpu, VMXERR_INV_OPERAND);
    tlb_flush(cpu, TLB_ALL, 0, 0, 0); /* translations are combined ones: no list of those of one EPTP is kept */
    return VMX_OK;
}

enum vmx_result cpu_invvpid(struct cpu *cpu, int type, uint16_t vpid, gva_t gva)
{
    if (!cpu->vmx->on)
        return VMX_FAIL_INVALID;
    if (type < INVVPID_ADDR || type > INVVPID_CONTEXT_KEEP_GLOBAL || (type != INVVPID_ALL && !vpid) ||
        (type == INVVPID_ADDR && !cpu_canonical(gva)))
        return vmx_fail(cpu, VMXERR_INV_OPERAND);
    switch (type) {
    case INVVPID_ADDR: /* every PCID of the VPID: more than one page of the current PCID */
    case INVVPID_CONTEXT:
        tlb_flush(cpu, TLB_VPID, vpid, 0, 0);
        break;
    case INVVPID_CONTEXT_KEEP_GLOBAL:
        tlb_flush(cpu, TLB_VPID_NONGLOBAL, vpid, 0, 0);
        break;
    default:
        tlb_flush(cpu, TLB_ALL, 0, 0, 0);
    }
    return VMX_OK;
}
