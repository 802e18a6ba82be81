/* SPDX-License-Identifier: MIT
 * vmxon.c: VMX operation and the current VMCS: VMXON, VMXOFF, VMCLEAR, VMPTRLD, VMPTRST (SDM 3C, "VMX Instruction
 * Reference"), and INVEPT, INVVPID, for level 0 and its guest alike. Level 0's addresses are this process's: a region
 * that the hypervisor passes must be mapped. */
#include "vmx/nested_int.h"
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
    if (cpu->vmx) {
        vmx_timer_disarm(cpu);
        free(cpu->vmx->nested);
    }
    free(cpu->vmx);
    cpu->vmx = NULL;
}

enum vmx_result vmx_fail(struct cpu *cpu, unsigned level, enum vmx_error error)
{
    struct vmcs *v = cpu->vmx->level[level].cur;

    if (!v)
        return VMX_FAIL_INVALID;
    v->VM_INSTRUCTION_ERROR = error;
    return VMX_FAIL_VALID;
}

uint64_t vmx_phys_limit(const struct cpu *cpu, unsigned level)
{
    return level ? 1ull << cpu->guest_maxphyaddr : HPA_LIMIT;
}

static bool region_ok(const struct cpu *cpu, unsigned level, uint64_t pa)
{
    return (pa || level) && !(pa & ~PAGE_MASK) && pa < vmx_phys_limit(cpu, level);
}

static uint32_t revision_of(const struct cpu *cpu, unsigned level)
{
    return vmx_cap(cpu, level, MSR_IA32_VMX_BASIC) & 0x7fffffff;
}

enum vmx_result vmx_on(struct cpu *cpu, unsigned level, uint64_t region)
{
    struct vmx_level *l = &cpu->vmx->level[level];
    uint32_t revision;

    vmx_trace_insn(cpu, "VMXON", region);
    if (l->on)
        return vmx_fail(cpu, level, VMXERR_VMXON_IN_ROOT);
    if (!region_ok(cpu, level, region) || vmx_phys_read(cpu, level, region, &revision, sizeof(revision)) ||
        revision != revision_of(cpu, level))
        return VMX_FAIL_INVALID;
    l->on = true;
    l->vmxon = region;
    l->cur = NULL;
    return VMX_OK;
}

enum vmx_result vmx_off(struct cpu *cpu, unsigned level)
{
    struct vmx_level *l = &cpu->vmx->level[level];

    if (!l->on)
        return VMX_FAIL_INVALID;
    if (level)
        vmcs12_put(cpu);
    l->on = false;
    l->vmxon = 0;
    l->cur = NULL;
    return VMX_OK;
}

enum vmx_result vmx_clear(struct cpu *cpu, unsigned level, uint64_t pa)
{
    struct vmx_level *l = &cpu->vmx->level[level];
    const uint32_t clear = VMCS_CLEAR;

    vmx_trace_insn(cpu, "VMCLEAR", pa);
    if (!l->on)
        return VMX_FAIL_INVALID;
    if (!region_ok(cpu, level, pa))
        return vmx_fail(cpu, level, VMXERR_VMCLEAR_BAD_ADDR);
    if (pa == l->vmxon)
        return vmx_fail(cpu, level, VMXERR_VMCLEAR_VMXON_PTR);
    if (l->cur && pa == l->cur_pa && level)
        vmcs12_put(cpu);
    if (vmx_phys_write(cpu, level, pa + offsetof(struct vmcs, launch_state), &clear, sizeof(clear)) && !level)
        return vmx_fail(cpu, level, VMXERR_VMCLEAR_BAD_ADDR);
    if (l->cur && pa == l->cur_pa)
        l->cur = NULL;
    return VMX_OK;
}

enum vmx_result vmx_ptrld(struct cpu *cpu, unsigned level, uint64_t pa)
{
    struct vmx_level *l = &cpu->vmx->level[level];
    uint32_t revision = ~0u; /* what is read where there is no memory */

    vmx_trace_insn(cpu, "VMPTRLD", pa);
    if (!l->on)
        return VMX_FAIL_INVALID;
    if (!region_ok(cpu, level, pa))
        return vmx_fail(cpu, level, VMXERR_VMPTRLD_BAD_ADDR);
    if (pa == l->vmxon)
        return vmx_fail(cpu, level, VMXERR_VMPTRLD_VMXON_PTR);
    if (vmx_phys_read(cpu, level, pa, &revision, sizeof(revision)) && !level)
        return vmx_fail(cpu, level, VMXERR_VMPTRLD_BAD_ADDR);
    if (revision != revision_of(cpu, level))
        return vmx_fail(cpu, level, VMXERR_VMPTRLD_BAD_REVISION);
    if (l->cur && l->cur_pa == pa)
        return VMX_OK;
    if (level) {
        vmcs12_put(cpu);
        if (vmcs12_get(cpu, pa))
            return vmx_fail(cpu, level, VMXERR_VMPTRLD_BAD_REVISION);
    } else {
        l->cur = (struct vmcs *)pa;
    }
    l->cur_pa = pa;
    l->stale = STALE_ALL;
    return VMX_OK;
}

/* An EPTP that VM entry would take (SDM 3C, "INVEPT"). */
static bool eptp_ok(const struct cpu *cpu, unsigned level, uint64_t eptp)
{
    return (eptp & 7) == EPTP_WB && (eptp >> 3 & 7) == 3 && !(eptp & 0xf80) && eptp < vmx_phys_limit(cpu, level);
}

enum vmx_result vmx_invept(struct cpu *cpu, unsigned level, uint64_t type, uint64_t eptp)
{
    vmx_trace_insn(cpu, "INVEPT", eptp);
    if (!cpu->vmx->level[level].on)
        return VMX_FAIL_INVALID;
    if (type != INVEPT_GLOBAL && (type != INVEPT_CONTEXT || !eptp_ok(cpu, level, eptp)))
        return vmx_fail(cpu, level, VMXERR_INV_OPERAND);
    tlb_flush(cpu, level ? TLB_NESTED : TLB_ALL, 0, 0,
              0); /* translations are combined ones: no list of those of one EPTP is kept */
    return VMX_OK;
}

/* A VPID of level 1's is a tag of its guest's translations alone. */
enum vmx_result vmx_invvpid(struct cpu *cpu, unsigned level, uint64_t type, uint64_t vpid, gva_t gva)
{
    const uint32_t tag = level ? TLB_TAG_NESTED | (uint16_t)vpid : (uint16_t)vpid;

    if (!cpu->vmx->level[level].on)
        return VMX_FAIL_INVALID;
    if (type > INVVPID_CONTEXT_KEEP_GLOBAL || vpid >> 16 || (type != INVVPID_ALL && !vpid) ||
        (type == INVVPID_ADDR && !cpu_canonical(gva)))
        return vmx_fail(cpu, level, VMXERR_INV_OPERAND);
    switch (type) {
    case INVVPID_ADDR: /* every PCID of the VPID: more than one page of the current PCID */
    case INVVPID_CONTEXT:
        tlb_flush(cpu, TLB_VPID, tag, 0, 0);
        break;
    case INVVPID_CONTEXT_KEEP_GLOBAL:
        tlb_flush(cpu, TLB_VPID_NONGLOBAL, tag, 0, 0);
        break;
    default:
        tlb_flush(cpu, level ? TLB_NESTED : TLB_ALL, 0, 0, 0);
    }
    return VMX_OK;
}

/* ---- as level 0 executes them ---- */
enum vmx_result cpu_vmxon(struct cpu *cpu, hpa_t region)
{
    return vmx_on(cpu, 0, region);
}

enum vmx_result cpu_vmxoff(struct cpu *cpu)
{
    return vmx_off(cpu, 0);
}

enum vmx_result cpu_vmclear(struct cpu *cpu, hpa_t vmcs)
{
    return vmx_clear(cpu, 0, vmcs);
}

enum vmx_result cpu_vmptrld(struct cpu *cpu, hpa_t vmcs)
{
    return vmx_ptrld(cpu, 0, vmcs);
}

hpa_t cpu_vmptrst(struct cpu *cpu)
{
    return cpu->vmx->level[0].cur ? cpu->vmx->level[0].cur_pa : ~0ull;
}

enum vmx_result cpu_invept(struct cpu *cpu, int type, uint64_t eptp)
{
    return vmx_invept(cpu, 0, (unsigned)type, eptp);
}

enum vmx_result cpu_invvpid(struct cpu *cpu, int type, uint16_t vpid, gva_t gva)
{
    return vmx_invvpid(cpu, 0, (unsigned)type, vpid, gva);
}
