/* SPDX-License-Identifier: MIT
 * vmx_inject.c: events into the guest by the VM-entry interruption-information field, and back out of the
 * IDT-vectoring information when an exit interrupted their delivery (SDM 3C, "Event Injection", "Information for VM
 * Exits That Occur During Event Delivery"). */
#include "kvm_vmx.h"

static bool is_soft_exception(unsigned vector)
{
    return vector == VEC_BP || vector == VEC_OF;
}

/* A guest that halted without an exit: what is injected ends it. Some types of event could not be injected otherwise
 * (SDM 3C, "Checks on Guest Non-Register State"). */
void vmx_clear_hlt(struct kvm_vcpu *vcpu)
{
    if (unlikely(vcpu->kvm->arch.disabled_exits & KVM_X86_DISABLE_EXITS_HLT))
        vmcs_write(vcpu, GUEST_ACTIVITY_STATE, ACTIVITY_ACTIVE);
}

void vmx_inject_exception(struct kvm_vcpu *vcpu)
{
    const struct kvm_queued_exception *ex = &vcpu->arch.exception;
    uint32_t info = ex->vector | INTR_INFO_VALID;

    if (ex->has_error_code) {
        vmcs_write(vcpu, VM_ENTRY_EXCEPTION_ERROR_CODE, (uint16_t)ex->error_code);
        info |= INTR_INFO_ERROR_CODE;
    }
    if (is_soft_exception(ex->vector)) {
        vmcs_write(vcpu, VM_ENTRY_INSTRUCTION_LEN, vcpu->arch.vmx->event_exit_inst_len);
        info |= INTR_SOFT_EXC << 8;
    } else {
        info |= INTR_HARD_EXC << 8;
    }
    kvm_trace(TRACE_INJECT, "vcpu %d: inject exception %u error %#x", vcpu->vcpu_id, ex->vector,
              ex->has_error_code ? ex->error_code : 0);
    vmcs_write(vcpu, VM_ENTRY_INTR_INFO_FIELD, info);
    vmx_clear_hlt(vcpu);
}

void vmx_inject_irq(struct kvm_vcpu *vcpu)
{
    const struct kvm_queued_interrupt *irq = &vcpu->arch.interrupt;
    uint32_t info = irq->nr | INTR_INFO_VALID;

    if (irq->soft) {
        vmcs_write(vcpu, VM_ENTRY_INSTRUCTION_LEN, vcpu->arch.vmx->event_exit_inst_len);
        info |= INTR_SOFT_INT << 8;
    }
    kvm_trace(TRACE_INJECT, "vcpu %d: inject interrupt %#x", vcpu->vcpu_id, irq->nr);
    vmcs_write(vcpu, VM_ENTRY_INTR_INFO_FIELD, info);
    vmx_clear_hlt(vcpu);
}

void vmx_inject_nmi(struct kvm_vcpu *vcpu)
{
    kvm_trace(TRACE_INJECT, "vcpu %d: inject NMI", vcpu->vcpu_id);
    vmcs_write(vcpu, VM_ENTRY_INTR_INFO_FIELD, VEC_NMI | INTR_NMI << 8 | INTR_INFO_VALID);
    vmx_clear_hlt(vcpu);
}

bool vmx_get_nmi_mask(struct kvm_vcpu *vcpu)
{
    return vmcs_read(vcpu, GUEST_INTERRUPTIBILITY_INFO) & INTR_BLOCK_NMI;
}

void vmx_set_nmi_mask(struct kvm_vcpu *vcpu, bool masked)
{
    const uint64_t now = vmcs_read(vcpu, GUEST_INTERRUPTIBILITY_INFO);

    vmcs_write(vcpu, GUEST_INTERRUPTIBILITY_INFO, masked ? now | INTR_BLOCK_NMI : now & ~(uint64_t)INTR_BLOCK_NMI);
}

/* An interrupt or NMI that a hypervisor in the guest takes is never blocked by that hypervisor's guest. */
bool vmx_interrupt_allowed(struct kvm_vcpu *vcpu)
{
    if (unlikely(cpu_nested_wants(vcpu->arch.cpu) & NESTED_INTR))
        return true;
    return (vmcs_read(vcpu, GUEST_RFLAGS) & F_IF) &&
           !(vmcs_read(vcpu, GUEST_INTERRUPTIBILITY_INFO) & (INTR_BLOCK_STI | INTR_BLOCK_MOVSS));
}

bool vmx_nmi_allowed(struct kvm_vcpu *vcpu)
{
    const unsigned wants = cpu_nested_wants(vcpu->arch.cpu);

    if (unlikely(wants & NESTED_NMI))
        return !(wants & NESTED_NMI_BLOCKED);
    return !(vmcs_read(vcpu, GUEST_INTERRUPTIBILITY_INFO) & (INTR_BLOCK_STI | INTR_BLOCK_MOVSS | INTR_BLOCK_NMI));
}

void vmx_enable_irq_window(struct kvm_vcpu *vcpu)
{
    vmcs_set_cpu_ctl(vcpu, vcpu->arch.vmx->cpu_ctl | CPU_INTR_WINDOW_EXITING);
}

void vmx_enable_nmi_window(struct kvm_vcpu *vcpu)
{
    /* An NMI window is not open in the shadow of STI, an interrupt window opens right after it. */
    if (vmcs_read(vcpu, GUEST_INTERRUPTIBILITY_INFO) & INTR_BLOCK_STI) {
        vmx_enable_irq_window(vcpu);
        return;
    }
    vmcs_set_cpu_ctl(vcpu, vcpu->arch.vmx->cpu_ctl | CPU_NMI_WINDOW_EXITING);
}

/* In the API's terms: KVM_X86_SHADOW_INT_*. */
uint32_t vmx_get_interrupt_shadow(struct kvm_vcpu *vcpu)
{
    const uint64_t info = vmcs_read(vcpu, GUEST_INTERRUPTIBILITY_INFO);

    return (info & INTR_BLOCK_STI ? KVM_X86_SHADOW_INT_STI : 0) |
           (info & INTR_BLOCK_MOVSS ? KVM_X86_SHADOW_INT_MOV_SS : 0);
}

void vmx_set_interrupt_shadow(struct kvm_vcpu *vcpu, uint32_t shadow)
{
    const uint64_t old = vmcs_read(vcpu, GUEST_INTERRUPTIBILITY_INFO);
    uint64_t info = old & ~(uint64_t)(INTR_BLOCK_STI | INTR_BLOCK_MOVSS);

    if (shadow & KVM_X86_SHADOW_INT_MOV_SS)
        info |= INTR_BLOCK_MOVSS;
    else if (shadow & KVM_X86_SHADOW_INT_STI)
        info |= INTR_BLOCK_STI;
    if (info != old)
        vmcs_write(vcpu, GUEST_INTERRUPTIBILITY_INFO, info);
}

/* What was on its way becomes what is injected again; both formats are the same. */
static void requeue_event(struct kvm_vcpu *vcpu, uint32_t info, uint32_t len_field, uint32_t error_field)
{
    const uint8_t vector = info & INTR_INFO_VECTOR;
    const unsigned type = (info & INTR_INFO_TYPE) >> 8;

    vcpu->arch.nmi_injected = false;
    vcpu->arch.exception.pending = vcpu->arch.exception.pending && !(info & INTR_INFO_VALID);
    vcpu->arch.exception.injected = false;
    vcpu->arch.interrupt.injected = false;
    if (!(info & INTR_INFO_VALID))
        return;
    kvm_make_request(KVM_REQ_EVENT, vcpu);
    switch (type) {
    case INTR_NMI:
        vcpu->arch.nmi_injected = true;
        vmx_set_nmi_mask(vcpu, false); /* SDM 3C, "Virtual NMIs": the injection blocks them again */
        break;
    case INTR_PRIV_SW_EXC:
    case INTR_SOFT_EXC:
        vcpu->arch.vmx->event_exit_inst_len = (uint32_t)vmcs_read(vcpu, len_field);
        /* fall through */
    case INTR_HARD_EXC:
        kvm_requeue_exception(vcpu, vector, info & INTR_INFO_ERROR_CODE, (uint32_t)vmcs_read(vcpu, error_field));
        break;
    case INTR_SOFT_INT:
        vcpu->arch.vmx->event_exit_inst_len = (uint32_t)vmcs_read(vcpu, len_field);
        /* fall through */
    case INTR_EXT:
        kvm_queue_interrupt(vcpu, vector, type == INTR_SOFT_INT);
        break;
    }
}

/* "NMI unblocking due to IRET": the IRET that faulted had unblocked NMIs already; it will run again. */
static void recover_nmi_blocking(struct kvm_vcpu *vcpu, uint32_t exit_intr_info)
{
    if (vcpu->arch.vmx->idt_vectoring_info & INTR_INFO_VALID)
        return;
    if ((exit_intr_info & INTR_INFO_VALID) && (exit_intr_info & INTR_INFO_NMI_UNBLOCK) &&
        (exit_intr_info & INTR_INFO_VECTOR) != VEC_DF)
        vmx_set_nmi_mask(vcpu, true);
}

void vmx_complete_interrupts(struct kvm_vcpu *vcpu)
{
    struct vcpu_vmx *vmx = vcpu->arch.vmx;

    vmx->idt_vectoring_info = (uint32_t)vmcs_read(vcpu, IDT_VECTORING_INFO_FIELD);
    if (vmx->exit_reason == EXIT_REASON_EXCEPTION_NMI) {
        vmx->exit_intr_info = (uint32_t)vmcs_read(vcpu, VM_EXIT_INTR_INFO);
        recover_nmi_blocking(vcpu, vmx->exit_intr_info);
    }
    if (likely(!(vmx->idt_vectoring_info & INTR_INFO_VALID))) { /* what was injected has arrived */
        vcpu->arch.nmi_injected = vcpu->arch.exception.injected = vcpu->arch.interrupt.injected = false;
        return;
    }
    requeue_event(vcpu, vmx->idt_vectoring_info, VM_EXIT_INSTRUCTION_LEN, IDT_VECTORING_ERROR_CODE);
}

/* VM entry did not take place after all: the event goes back into the queue. */
void vmx_cancel_injection(struct kvm_vcpu *vcpu)
{
    const uint32_t info = (uint32_t)vmcs_read(vcpu, VM_ENTRY_INTR_INFO_FIELD);

    if (!(info & INTR_INFO_VALID))
        return;
    requeue_event(vcpu, info, VM_ENTRY_INSTRUCTION_LEN, VM_ENTRY_EXCEPTION_ERROR_CODE);
    vmcs_write(vcpu, VM_ENTRY_INTR_INFO_FIELD, 0);
}
