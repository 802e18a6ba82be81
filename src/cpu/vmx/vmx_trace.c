/* SPDX-License-Identifier: MIT
 * vmx_trace.c: CPU_TRACE_VMCS: VMX instructions; all of a VMCS when it is launched; what an entry injects; what an exit
 * says, fields by name; and the entry check that failed, by its text. */
#include "vmx/vmx_unit.h"

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

static void trace_field(struct cpu *cpu, struct vmcs *v, uint32_t encoding)
{
    unsigned index;

    if (vmcs_lookup(encoding, &index) && *vmcs_slot(v, index))
        cpu_trace(cpu, "    %s %#llx", vmcs_field_name(index), (unsigned long long)*vmcs_slot(v, index));
}

void vmx_trace_exit_slow(struct cpu *cpu, unsigned level)
{
    struct vmcs *v = cpu->vmx->level[level].cur;

    cpu_trace(cpu, "vmexit%s %s%s GUEST_RIP %#llx", level ? " to level 1" : "", vmx_reason_name(v->VM_EXIT_REASON),
              v->VM_EXIT_REASON & EXIT_REASON_FAILED_VMENTRY ? " (failed entry)" : "",
              (unsigned long long)v->GUEST_RIP);
    for (unsigned i = 0; i < ARRAY_SIZE(shown); i++)
        trace_field(cpu, v, shown[i]);
}

static const struct {
    const char *area;
    uint32_t encoding;
} fields[] = {
#define VMCS_FIELD(name, encoding, bits, area, access) {#area, encoding},
#include "vmcs.def"
#undef VMCS_FIELD
};

static const struct {
    const char *area, *title;
} areas[] = {
    {"GUEST", "guest-state area"},
    {"HOST", "host-state area"},
    {"CONTROL", "VM-execution control fields"},
    {"EXITCTL", "VM-exit control fields"},
    {"ENTRYCTL", "VM-entry control fields"},
};

static bool same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

/* The first entry shows every field that is not 0, area by area (SDM 3C, "Organization of VMCS Data"). */
void vmx_trace_entry_slow(struct cpu *cpu, unsigned level, bool launch)
{
    struct vmcs *v = cpu->vmx->level[level].cur;

    cpu_trace(cpu, "%s%s GUEST_RIP %#llx", launch ? "VMLAUNCH" : "VMRESUME", level ? " by level 1" : "",
              (unsigned long long)v->GUEST_RIP);
    for (unsigned a = 0; launch && a < ARRAY_SIZE(areas); a++) {
        cpu_trace(cpu, "  %s:", areas[a].title);
        for (unsigned i = 0; i < ARRAY_SIZE(fields); i++)
            if (same(fields[i].area, areas[a].area))
                trace_field(cpu, v, fields[i].encoding);
    }
    if (!launch && v->VM_ENTRY_INTR_INFO_FIELD & INTR_INFO_VALID) {
        trace_field(cpu, v, VM_ENTRY_INTR_INFO_FIELD);
        trace_field(cpu, v, VM_ENTRY_EXCEPTION_ERROR_CODE);
    }
}

void vmx_trace_insn_slow(struct cpu *cpu, const char *name, hpa_t operand)
{
    cpu_trace(cpu, "%s %#llx", name, (unsigned long long)operand);
}

void vmx_trace_failed_check(struct cpu *cpu, const char *text)
{
    if (unlikely(cpu_trace_mask & CPU_TRACE_VMCS))
        cpu_trace(cpu, "vmentry check failed: %s", text);
}
