/* SPDX-License-Identifier: MIT
 * vmx_exit.c: VM exits, a function for each basic exit reason (SDM 3D, "VMX Basic Exit Reasons"). */
#include "kvm_vmx.h"
#include "x86.h"
#include <errno.h>
#include <sched.h>
#include <stdio.h>

static uint64_t exit_qualification(struct kvm_vcpu *vcpu)
{
    return vmcs_read(vcpu, EXIT_QUALIFICATION);
}

/* A debug exception or breakpoint that KVM_SET_GUEST_DEBUG asked for. */
static int exit_debug(struct kvm_vcpu *vcpu, unsigned vector, uint64_t dr6, uint64_t dr7)
{
    struct kvm_run *run = vcpu->run;

    vcpu->arch.vmx->event_exit_inst_len = (uint32_t)vmcs_read(vcpu, VM_EXIT_INSTRUCTION_LEN);
    run->exit_reason = KVM_EXIT_DEBUG;
    run->debug.arch.pc = kvm_get_linear_rip(vcpu);
    run->debug.arch.exception = vector;
    run->debug.arch.dr6 = dr6;
    run->debug.arch.dr7 = dr7;
    return 0;
}

static int handle_db(struct kvm_vcpu *vcpu)
{
    const uint64_t dr6 = exit_qualification(vcpu);

    if (!(vcpu->arch.guest_debug & (KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP))) {
        /* INT1 is a trap whose instruction the processor has not skipped. */
        if ((vcpu->arch.vmx->exit_intr_info & INTR_INFO_TYPE) == INTR_PRIV_SW_EXC << 8)
            kvm_x86_ops->skip_emulated_instruction(vcpu);
        kvm_queue_exception_p(vcpu, VEC_DB, dr6);
        return 1;
    }
    return exit_debug(vcpu, VEC_DB, dr6 | DR6_FIXED, vmcs_read(vcpu, GUEST_DR7));
}

/* Exit 0. With EPT #PF is the guest's alone; the host's own NMIs and machine checks do not exist in a process. */
static int handle_exception_nmi(struct kvm_vcpu *vcpu)
{
    const uint32_t info = vcpu->arch.vmx->exit_intr_info;
    const unsigned vector = info & INTR_INFO_VECTOR;
    const uint32_t error = (uint32_t)vmcs_read(vcpu, VM_EXIT_INTR_ERROR_CODE);

    if ((info & INTR_INFO_TYPE) == INTR_NMI << 8)
        return 1;
    switch (vector) {
    case VEC_UD:
        return kvm_handle_ud(vcpu);
    case VEC_DB:
        return handle_db(vcpu);
    case VEC_BP:
        return exit_debug(vcpu, VEC_BP, DR6_FIXED, vmcs_read(vcpu, GUEST_DR7));
    case VEC_AC:
        kvm_queue_exception_e(vcpu, VEC_AC, error);
        return 1;
    case VEC_MC:
        kvm_queue_exception(vcpu, VEC_MC);
        return 1;
    }
    vcpu->run->exit_reason = KVM_EXIT_EXCEPTION;
    vcpu->run->ex.exception = vector;
    vcpu->run->ex.error_code = error;
    return 0;
}

/* Exit 1: cpu_kick(); what it was for is a request or a flag that the run loop looks at. */
static int handle_external_interrupt(struct kvm_vcpu *vcpu)
{
    if (unlikely(cpu_nested_in_guest(vcpu->arch.cpu))) /* what waited for an event that went in first */
        kvm_make_request(KVM_REQ_EVENT, vcpu);
    return 1;
}

static int handle_triple_fault(struct kvm_vcpu *vcpu)
{
    vcpu->run->exit_reason = KVM_EXIT_SHUTDOWN;
    return 0;
}

static int handle_interrupt_window(struct kvm_vcpu *vcpu)
{
    vmcs_set_cpu_ctl(vcpu, vcpu->arch.vmx->cpu_ctl & ~CPU_INTR_WINDOW_EXITING);
    kvm_make_request(KVM_REQ_EVENT, vcpu);
    return 1;
}

static int handle_nmi_window(struct kvm_vcpu *vcpu)
{
    vmcs_set_cpu_ctl(vcpu, vcpu->arch.vmx->cpu_ctl & ~CPU_NMI_WINDOW_EXITING);
    kvm_make_request(KVM_REQ_EVENT, vcpu);
    return 1;
}

/* Exit 28 (SDM 3C, "Exit Qualification for Control-Register Accesses") */
static int handle_mov_to_cr(struct kvm_vcpu *vcpu, unsigned cr, uint64_t value)
{
    switch (cr) {
    case 0:
        return kvm_complete_insn_gp(vcpu, kvm_set_cr0(vcpu, value));
    case 3:
        return kvm_complete_insn_gp(vcpu, kvm_set_cr3(vcpu, value));
    case 4:
        return kvm_complete_insn_gp(vcpu, kvm_set_cr4(vcpu, value));
    case 8: {
        const uint64_t before = kvm_get_cr8(vcpu);
        const int r = kvm_complete_insn_gp(vcpu, kvm_set_cr8(vcpu, value));

        if (lapic_in_kernel(vcpu) || before <= value)
            return r;
        vcpu->run->exit_reason = KVM_EXIT_SET_TPR; /* a lower TPR may let the monitor's interrupt through */
        return 0;
    }
    }
    return -EINVAL;
}

static int handle_cr(struct kvm_vcpu *vcpu)
{
    const uint64_t qual = exit_qualification(vcpu);
    const unsigned cr = qual & 15, reg = qual >> 8 & 15;
    uint64_t value;

    switch (qual >> 4 & 3) {
    case 0: /* MOV to CR */
        value = kvm_register_read(vcpu, reg);
        return handle_mov_to_cr(vcpu, cr, is_64_bit_mode(vcpu) ? value : (uint32_t)value);
    case 1: /* MOV from CR: only CR3 and CR8 exit */
        value = cr == 3 ? kvm_read_cr3(vcpu) : kvm_get_cr8(vcpu);
        kvm_register_write(vcpu, reg, is_64_bit_mode(vcpu) ? value : (uint32_t)value);
        return kvm_skip_emulated_instruction(vcpu);
    case 2: /* CLTS */
        vmx_set_cr0(vcpu, kvm_read_cr0(vcpu) & ~CR0_TS);
        return kvm_skip_emulated_instruction(vcpu);
    default: /* LMSW: cannot clear PE */
        value = (kvm_read_cr0(vcpu) & ~0xeull) | (qual >> 16 & 15);
        return kvm_complete_insn_gp(vcpu, kvm_set_cr0(vcpu, value));
    }
}

/* Exit 29: every access to a debug register (SDM 3C, "Exit Qualification for MOV DR") */
static int handle_dr(struct kvm_vcpu *vcpu)
{
    const uint64_t qual = exit_qualification(vcpu);
    const int dr = qual & 7;
    const unsigned reg = qual >> 8 & 15;
    const uint64_t dr7 = vmcs_read(vcpu, GUEST_DR7);
    uint64_t value;

    if ((dr == 4 || dr == 5) && (kvm_read_cr4(vcpu) & CR4_DE)) {
        kvm_queue_exception(vcpu, VEC_UD);
        return 1;
    }
    if (vmx_get_cpl(vcpu)) {
        kvm_inject_gp(vcpu, 0);
        return 1;
    }
    if (dr7 & DR7_GD) {
        if (vcpu->arch.guest_debug & KVM_GUESTDBG_USE_HW_BP)
            return exit_debug(vcpu, VEC_DB, DR6_BD | DR6_FIXED, dr7);
        kvm_queue_exception_p(vcpu, VEC_DB, DR6_BD);
        return 1;
    }
    if (qual & 16) {
        value = kvm_get_dr(vcpu, dr);
        kvm_register_write(vcpu, reg, is_64_bit_mode(vcpu) ? value : (uint32_t)value);
        return kvm_skip_emulated_instruction(vcpu);
    }
    value = kvm_register_read(vcpu, reg);
    return kvm_complete_insn_gp(vcpu, kvm_set_dr(vcpu, dr, is_64_bit_mode(vcpu) ? value : (uint32_t)value));
}

/* Exit 30 (SDM 3C, "Exit Qualification for I/O Instructions") */
static int handle_io(struct kvm_vcpu *vcpu)
{
    const uint64_t qual = exit_qualification(vcpu);

    if (qual & 16) /* INS, OUTS */
        return x86_emulate_instruction(vcpu, 0);
    return kvm_fast_pio(vcpu, (int)(qual & 7) + 1, (uint16_t)(qual >> 16), qual & 8);
}

static int handle_rdpmc(struct kvm_vcpu *vcpu)
{
    kvm_inject_gp(vcpu, 0); /* CPUID offers no counter */
    return 1;
}

static int handle_vmx_instruction(struct kvm_vcpu *vcpu)
{
    kvm_queue_exception(vcpu, VEC_UD);
    return 1;
}

static int handle_skip(struct kvm_vcpu *vcpu) /* INVD, WBINVD: memory is coherent */
{
    return kvm_skip_emulated_instruction(vcpu);
}

/* MONITOR and MWAIT are no-ops, or #UD where the guest's CPUID lacks them and the client asked for that. */
static int handle_monitor(struct kvm_vcpu *vcpu)
{
    if (!kvm_check_has_quirk(vcpu->kvm, KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS) && !guest_cpuid_has(vcpu, 1, 'c', 3)) {
        kvm_queue_exception(vcpu, VEC_UD);
        return 1;
    }
    return kvm_skip_emulated_instruction(vcpu);
}

static int handle_pause(struct kvm_vcpu *vcpu)
{
    sched_yield();
    return kvm_skip_emulated_instruction(vcpu);
}

/* Exit 9 (SDM 3C, "Exit Qualification for Task Switches"). An event that goes through a task gate has arrived with the
 * switch: it is not injected again. RIP goes past an instruction that caused it, INT n among them. */
static int handle_task_switch(struct kvm_vcpu *vcpu)
{
    const uint64_t qual = exit_qualification(vcpu);
    const uint32_t info = vcpu->arch.vmx->idt_vectoring_info;
    const unsigned type = (info & INTR_INFO_TYPE) >> 8;
    const bool gate = (qual >> 30 & 3) == 3 && (info & INTR_INFO_VALID);
    const bool has_error = gate && type == INTR_HARD_EXC && (info & INTR_INFO_ERROR_CODE);
    const uint32_t error = (uint32_t)vmcs_read(vcpu, IDT_VECTORING_ERROR_CODE);

    if (gate) {
        if (type == INTR_NMI)
            vmx_set_nmi_mask(vcpu, true);
        kvm_clear_queues(vcpu);
    }
    if (!gate || (type != INTR_HARD_EXC && type != INTR_EXT && type != INTR_NMI))
        kvm_x86_ops->skip_emulated_instruction(vcpu);
    return kvm_task_switch(vcpu, (uint16_t)qual, (int)(qual >> 30 & 3), has_error ? &error : NULL);
}

/* A fault on the way to a handler cannot be MMIO: the stack or the IDT would be a device. */
static int delivery_error(struct kvm_vcpu *vcpu)
{
    const struct vcpu_vmx *vmx = vcpu->arch.vmx;
    const uint64_t data[] = {vmx->idt_vectoring_info, vmx->exit_reason, exit_qualification(vcpu),
                             vmcs_read(vcpu, GUEST_PHYSICAL_ADDRESS)};

    return kvm_internal_error(vcpu, KVM_INTERNAL_ERROR_DELIVERY_EV, ARRAY_SIZE(data), data);
}

static int handle_mmio(struct kvm_vcpu *vcpu, gpa_t gpa)
{
    if (vcpu->arch.vmx->idt_vectoring_info & INTR_INFO_VALID)
        return delivery_error(vcpu);
    return x86_emulate_instruction(vcpu, gpa);
}

/* Exit 48: RAM is mapped and the access retried; everything else belongs to a device. */
static int handle_ept_violation(struct kvm_vcpu *vcpu)
{
    const uint64_t qual = exit_qualification(vcpu);
    const gpa_t gpa = vmcs_read(vcpu, GUEST_PHYSICAL_ADDRESS);
    int r;

    if (!(vcpu->arch.vmx->idt_vectoring_info & INTR_INFO_VALID) && (qual & EPTQ_NMI_UNBLOCK))
        vmx_set_nmi_mask(vcpu, true);
    r = kvm_tdp_page_fault(vcpu, gpa, qual);
    if (!r && (qual & EPTQ_GLA_VALID) && !(qual & EPTQ_GLA_XLAT)) /* the guest's page tables are no RAM: as in Linux */
        return kvm_emulation_failure(vcpu);
    return r ?: handle_mmio(vcpu, gpa);
}

/* Exit 49: no entry is ever made so; the tables are damaged. */
static int handle_ept_misconfig(struct kvm_vcpu *vcpu)
{
    vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
    vcpu->run->hw.hardware_exit_reason = EXIT_REASON_EPT_MISCONFIG;
    dump_vmcs(vcpu);
    return 0;
}

static const struct exit_row {
    int (*handler)(struct kvm_vcpu *);
    bool delivery; /* may interrupt the delivery of an event: what was on its way is injected again */
} exit_handlers[] = {
    [EXIT_REASON_EXCEPTION_NMI] = {handle_exception_nmi, true},
    [EXIT_REASON_EXTERNAL_INTERRUPT] = {handle_external_interrupt, true},
    [EXIT_REASON_TRIPLE_FAULT] = {handle_triple_fault, true},
    [EXIT_REASON_INTERRUPT_WINDOW] = {handle_interrupt_window},
    [EXIT_REASON_NMI_WINDOW] = {handle_nmi_window},
    [EXIT_REASON_TASK_SWITCH] = {handle_task_switch, true},
    [EXIT_REASON_CPUID] = {kvm_emulate_cpuid},
    [EXIT_REASON_HLT] = {kvm_emulate_halt},
    [EXIT_REASON_INVD] = {handle_skip},
    [EXIT_REASON_RDPMC] = {handle_rdpmc},
    [EXIT_REASON_VMCALL] = {kvm_emulate_hypercall},
    [EXIT_REASON_VMCLEAR] = {handle_vmx_instruction},
    [EXIT_REASON_VMLAUNCH] = {handle_vmx_instruction},
    [EXIT_REASON_VMPTRLD] = {handle_vmx_instruction},
    [EXIT_REASON_VMPTRST] = {handle_vmx_instruction},
    [EXIT_REASON_VMREAD] = {handle_vmx_instruction},
    [EXIT_REASON_VMRESUME] = {handle_vmx_instruction},
    [EXIT_REASON_VMWRITE] = {handle_vmx_instruction},
    [EXIT_REASON_VMOFF] = {handle_vmx_instruction},
    [EXIT_REASON_VMON] = {handle_vmx_instruction},
    [EXIT_REASON_CR_ACCESS] = {handle_cr},
    [EXIT_REASON_DR_ACCESS] = {handle_dr},
    [EXIT_REASON_IO_INSTRUCTION] = {handle_io},
    [EXIT_REASON_MSR_READ] = {kvm_emulate_rdmsr},
    [EXIT_REASON_MSR_WRITE] = {kvm_emulate_wrmsr},
    [EXIT_REASON_MWAIT_INSTRUCTION] = {handle_monitor},
    [EXIT_REASON_MONITOR_INSTRUCTION] = {handle_monitor},
    [EXIT_REASON_PAUSE_INSTRUCTION] = {handle_pause},
    [EXIT_REASON_EPT_VIOLATION] = {handle_ept_violation, true},
    [EXIT_REASON_EPT_MISCONFIG] = {handle_ept_misconfig, true},
    [EXIT_REASON_INVEPT] = {handle_vmx_instruction},
    [EXIT_REASON_INVVPID] = {handle_vmx_instruction},
    [EXIT_REASON_WBINVD] = {handle_skip},
    [EXIT_REASON_XSETBV] = {kvm_emulate_xsetbv},
    [EXIT_REASON_RDRAND] = {handle_vmx_instruction}, /* exits only where the guest's CPUID lacks it */
    [EXIT_REASON_RDSEED] = {handle_vmx_instruction},
    [EXIT_REASON_INVPCID] = {handle_vmx_instruction},
    [EXIT_REASON_VMFUNC] = {handle_vmx_instruction},
};

static const char *const exit_names[] = {
#define EXIT(name, number) [number] = #name,
#include "../cpu/exits.def"
#undef EXIT
};

const char *vmx_exit_name(unsigned basic_reason)
{
    return basic_reason < ARRAY_SIZE(exit_names) && exit_names[basic_reason] ? exit_names[basic_reason] : "?";
}

/* The guest-state area, or what VMLAUNCH wants, is not right: the client's registers or ours. */
static int entry_failed(struct kvm_vcpu *vcpu, uint64_t reason)
{
    kvm_trace(TRACE_EXIT, "vcpu %d: VM entry failed: %#llx", vcpu->vcpu_id, (unsigned long long)reason);
    if (kvm_trace_mask & (TRACE_VMCS | TRACE_EXIT))
        dump_vmcs(vcpu);
    vcpu->run->exit_reason = KVM_EXIT_FAIL_ENTRY;
    vcpu->run->fail_entry.hardware_entry_failure_reason = reason;
    vcpu->run->fail_entry.cpu = 0;
    return 0;
}

int vmx_handle_exit(struct kvm_vcpu *vcpu)
{
    struct vcpu_vmx *vmx = vcpu->arch.vmx;
    const uint32_t reason = vmx->exit_reason & 0xffff;

    if (likely(reason < STAT_CPU - STAT_EXIT_REASONS))
        vcpu->stat[STAT_EXIT_REASONS + reason]++;
    if (unlikely(vmx->fail))
        return entry_failed(vcpu, vmcs_read(vcpu, VM_INSTRUCTION_ERROR));
    if (unlikely(vmx->exit_reason & EXIT_REASON_FAILED_VMENTRY) && vmx_nested_triple_fault(vcpu))
        return 1; /* a hypervisor's guest with a state that cannot be */
    if (unlikely(vmx->exit_reason & EXIT_REASON_FAILED_VMENTRY))
        return entry_failed(vcpu, vmx->exit_reason);
    kvm_trace(TRACE_EXIT, "vcpu %d: exit %s rip %#llx qualification %#llx", vcpu->vcpu_id, vmx_exit_name(reason),
              (unsigned long long)vmcs_read(vcpu, GUEST_RIP), (unsigned long long)exit_qualification(vcpu));
    if (unlikely(reason >= ARRAY_SIZE(exit_handlers) || !exit_handlers[reason].handler)) {
        const uint64_t data[] = {vmx->exit_reason, 0};

        dump_vmcs(vcpu);
        return kvm_internal_error(vcpu, KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, ARRAY_SIZE(data), data);
    }
    if (unlikely((vmx->idt_vectoring_info & INTR_INFO_VALID) && !exit_handlers[reason].delivery))
        return delivery_error(vcpu);
    return exit_handlers[reason].handler(vcpu);
}

static const struct {
    const char *name;
    uint32_t encoding;
} vmcs_fields[] = {
#define VMCS_FIELD(name, encoding, bits, area, access) {#name, encoding},
#include "../cpu/vmcs.def"
#undef VMCS_FIELD
};

void dump_vmcs(struct kvm_vcpu *vcpu)
{
    fprintf(stderr, "anykvm: vcpu %d: VMCS\n", vcpu->vcpu_id);
    for (unsigned i = 0; i < ARRAY_SIZE(vmcs_fields); i++) {
        uint64_t value;

        if (cpu_vmread(vcpu->arch.cpu, vmcs_fields[i].encoding, &value) == VMX_OK && value)
            fprintf(stderr, "  %-32s %#llx\n", vmcs_fields[i].name, (unsigned long long)value);
    }
}
