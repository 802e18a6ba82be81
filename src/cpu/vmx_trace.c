/* SPDX-License-Identifier: MIT
 * vmx_trace.c: CPU_TRACE_VMCS: what an exit says, fields by name, and the entry check that failed, by its text. */
#include "vmx_unit.h"

static const struct {
    uint32_t reason;
    const char *name;
} names[] = {
#define EXIT(name, number) {number, #name},
#include "exits.def"
#undef EXIT
};

const char *vmx_reason_name(uint32_t reason)
{
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        if (names[i].reason == (reason & 0xffff))
            return names[i].name;
    return "?";
}

static const uint32_t shown[] = {
    /* where not 0 */
    EXIT_QUALIFICATION,
    VM_EXIT_INTR_INFO,
    VM_EXIT_INTR_ERROR_CODE,
    IDT_VECTORING_INFO_FIELD,
    IDT_VECTORING_ERROR_CODE,
    VM_EXIT_INSTRUCTION_LEN,
    VMX_INSTRUCTION_INFO,
    GUEST_LINEAR_ADDRESS,
    GUEST_PHYSICAL_ADDRESS,
    GUEST_RSP,
    GUEST_RFLAGS,
    GUEST_CR0,
    GUEST_CR3,
    GUEST_CR4,
    GUEST_INTERRUPTIBILITY_INFO,
    GUEST_ACTIVITY_STATE,
};

void vmx_trace_exit_slow(struct cpu *cpu)
{
    struct vmcs *v = cpu->vmx->cur;

    cpu_trace(cpu, "vmexit %s%s GUEST_RIP %#llx", vmx_reason_name(v->VM_EXIT_REASON),
              v->VM_EXIT_REASON & EXIT_REASON_FAILED_VMENTRY ? " (failed entry)" : "",
              (unsigned long long)v->GUEST_RIP);
    for (unsigned i = 0; i < ARRAY_SIZE(shown); i++) {
        unsigned index;

        if (vmcs_lookup(shown[i], &index) && *vmcs_slot(v, index))
            cpu_trace(cpu, "    %s %#llx", vmcs_field_name(index), (unsigned long long)*vmcs_slot(v, index));
    }
}

void vmx_trace_failed_check(struct cpu *cpu, const char *text)
{
    if (unlikely(cpu_trace_mask & CPU_TRACE_VMCS))
        cpu_trace(cpu, "vmentry check failed: %s", text);
}
