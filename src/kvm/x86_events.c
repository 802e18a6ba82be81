/* SPDX-License-Identifier: MIT
 * x86_events.c: exceptions, NMIs and interrupts of the guest: their queues, and what of them the next VM entry injects.
 */
#include "x86.h"

enum exception_class { EXCPT_BENIGN, EXCPT_CONTRIBUTORY, EXCPT_PF };

/* SDM 3A, "Interrupt 8 - Double Fault Exception": the table of classes */
static enum exception_class exception_class(unsigned vector)
{
    switch (vector) {
    case VEC_PF:
        return EXCPT_PF;
    case VEC_DE:
    case VEC_TS:
    case VEC_NP:
    case VEC_SS:
    case VEC_GP:
        return EXCPT_CONTRIBUTORY;
    }
    return EXCPT_BENIGN;
}

/* Faults restart their instruction and set RF in the pushed RFLAGS; traps and aborts do not. */
static bool exception_is_fault(unsigned vector)
{
    if (vector > 31 || vector == VEC_NMI)
        return false;
    return !((1u << vector) & ((1u << VEC_DB) | (1u << VEC_BP) | (1u << VEC_OF) | (1u << VEC_DF) | (1u << VEC_MC)));
}

bool kvm_event_needs_reinjection(struct kvm_vcpu *vcpu)
{
    return vcpu->arch.exception.injected || vcpu->arch.interrupt.injected || vcpu->arch.nmi_injected;
}

bool kvm_is_exception_pending(struct kvm_vcpu *vcpu)
{
    return vcpu->arch.exception.pending;
}

void kvm_clear_queues(struct kvm_vcpu *vcpu)
{
    vcpu->arch.exception = (struct kvm_queued_exception){0};
    vcpu->arch.interrupt = (struct kvm_queued_interrupt){0};
    vcpu->arch.nmi_injected = false;
}

/* CR2 and DR6 get what the exception says (SDM 3B, "Debug Status Register (DR6)"). */
void kvm_deliver_exception_payload(struct kvm_vcpu *vcpu, struct kvm_queued_exception *ex)
{
    if (!ex->has_payload)
        return;
    if (ex->vector == VEC_DB) {
        vcpu->arch.dr6 &= ~15ull; /* B0-B3 are of this exception alone; BD, BS, BT stick */
        vcpu->arch.dr6 |= DR6_FIXED | ex->payload;
        vcpu->arch.dr6 &= ~(1ull << 12);
    } else if (ex->vector == VEC_PF) {
        cpu_state(vcpu->arch.cpu)->cr2 = ex->payload;
    }
    ex->has_payload = false;
    ex->payload = 0;
}

static void kvm_multiple_exception(struct kvm_vcpu *vcpu, struct kvm_queued_exception new, bool reinject)
{
    struct kvm_queued_exception *ex = &vcpu->arch.exception;
    enum exception_class first, second;

    kvm_make_request(KVM_REQ_EVENT, vcpu);
    if (!ex->pending && !ex->injected) {
        *ex = new;
        ex->pending = !reinject;
        ex->injected = reinject;
        if (reinject || !kvm_x86_ops->nested_wants_exception(vcpu, ex->vector, ex->error_code))
            kvm_deliver_exception_payload(vcpu, ex);
        return;
    }
    if (ex->vector == VEC_DF) { /* triple fault: shutdown */
        kvm_make_request(KVM_REQ_TRIPLE_FAULT, vcpu);
        return;
    }
    first = exception_class(ex->vector);
    second = exception_class(new.vector);
    if ((first == EXCPT_CONTRIBUTORY && second == EXCPT_CONTRIBUTORY) ||
        (first == EXCPT_PF && second != EXCPT_BENIGN)) {
        *ex = (struct kvm_queued_exception){.pending = true, .has_error_code = true, .vector = VEC_DF};
        return;
    }
    /* A benign pair: the second is raised, the first comes again when its instruction is restarted. */
    *ex = new;
    ex->pending = true;
    kvm_deliver_exception_payload(vcpu, ex);
}

void kvm_queue_exception(struct kvm_vcpu *vcpu, unsigned nr)
{
    kvm_multiple_exception(vcpu, (struct kvm_queued_exception){.vector = (uint8_t)nr}, false);
}

void kvm_queue_exception_e(struct kvm_vcpu *vcpu, unsigned nr, uint32_t error)
{
    kvm_multiple_exception(
        vcpu, (struct kvm_queued_exception){.vector = (uint8_t)nr, .has_error_code = true, .error_code = error}, false);
}

void kvm_queue_exception_p(struct kvm_vcpu *vcpu, unsigned nr, uint64_t payload)
{
    kvm_multiple_exception(
        vcpu, (struct kvm_queued_exception){.vector = (uint8_t)nr, .has_payload = true, .payload = payload}, false);
}

void kvm_queue_exception_e_p(struct kvm_vcpu *vcpu, unsigned nr, uint32_t error, uint64_t payload)
{
    kvm_multiple_exception(vcpu,
                           (struct kvm_queued_exception){.vector = (uint8_t)nr,
                                                         .has_error_code = true,
                                                         .error_code = error,
                                                         .has_payload = true,
                                                         .payload = payload},
                           false);
}

void kvm_requeue_exception(struct kvm_vcpu *vcpu, unsigned nr, bool has_error, uint32_t error)
{
    kvm_multiple_exception(
        vcpu, (struct kvm_queued_exception){.vector = (uint8_t)nr, .has_error_code = has_error, .error_code = error},
        true);
}

void kvm_inject_gp(struct kvm_vcpu *vcpu, uint32_t error)
{
    kvm_queue_exception_e(vcpu, VEC_GP, error);
}

/* Any thread: KVM_NMI, an APIC's NMI message. */
void kvm_inject_nmi(struct kvm_vcpu *vcpu)
{
    atomic_fetch_add(&vcpu->arch.nmi_queued, 1);
    kvm_make_request(KVM_REQ_NMI, vcpu);
    kvm_vcpu_kick(vcpu);
}

/* One NMI is latched while another is served (SDM 3A, "Handling Multiple NMIs"): two at most, the rest is lost. */
void process_nmi(struct kvm_vcpu *vcpu)
{
    const unsigned limit = kvm_x86_ops->get_nmi_mask(vcpu) || vcpu->arch.nmi_injected ? 1 : 2;

    vcpu->arch.nmi_pending += atomic_exchange(&vcpu->arch.nmi_queued, 0);
    if (vcpu->arch.nmi_pending > limit)
        vcpu->arch.nmi_pending = limit;
    kvm_make_request(KVM_REQ_EVENT, vcpu);
}

void process_smi(struct kvm_vcpu *vcpu)
{
    vcpu->arch.smi_pending = true;
    kvm_make_request(KVM_REQ_EVENT, vcpu);
}

void kvm_queue_interrupt(struct kvm_vcpu *vcpu, uint8_t vector, bool soft)
{
    vcpu->arch.interrupt = (struct kvm_queued_interrupt){.injected = true, .soft = soft, .nr = vector};
}

/* Without an in-kernel APIC there is none: KVM_INTERRUPT has queued it as one to be injected again. */
bool kvm_cpu_has_injectable_intr(struct kvm_vcpu *vcpu)
{
    return lapic_in_kernel(vcpu) && kvm_cpu_has_interrupt(vcpu) > 0;
}

static void kvm_inject_exception(struct kvm_vcpu *vcpu)
{
    if (vcpu->arch.exception.has_error_code && !is_protmode(vcpu)) /* real mode pushes none */
        vcpu->arch.exception.has_error_code = false;
    kvm_x86_ops->inject_exception(vcpu);
}

static void inject_new_exception(struct kvm_vcpu *vcpu)
{
    struct kvm_queued_exception *ex = &vcpu->arch.exception;

    if (exception_is_fault(ex->vector))
        kvm_x86_ops->set_rflags(vcpu, kvm_x86_ops->get_rflags(vcpu) | F_RF);
    kvm_deliver_exception_payload(vcpu, ex);
    if (ex->vector == VEC_DB && (vcpu->arch.dr7 & DR7_GD)) { /* SDM 3B, "Debug Control Register (DR7)" */
        vcpu->arch.dr7 &= ~DR7_GD;
        kvm_update_dr7(vcpu);
    }
    kvm_inject_exception(vcpu);
    ex->pending = false;
    ex->injected = true;
}

static void inject_nmi_or_window(struct kvm_vcpu *vcpu, bool *can_inject)
{
    if (*can_inject && kvm_x86_ops->nmi_allowed(vcpu)) {
        vcpu->arch.nmi_pending--;
        vcpu->arch.nmi_injected = true;
        kvm_x86_ops->inject_nmi(vcpu);
        *can_inject = false;
    }
    if (vcpu->arch.nmi_pending)
        kvm_x86_ops->enable_nmi_window(vcpu);
}

static void inject_interrupt_or_window(struct kvm_vcpu *vcpu, bool can_inject)
{
    if (can_inject && kvm_x86_ops->interrupt_allowed(vcpu) && !kvm_x86_ops->nested_wants_interrupt(vcpu)) {
        const int vector = kvm_cpu_get_interrupt(vcpu);

        if (vector >= 0) {
            kvm_hv_interrupt_taken(vcpu, vector);
            kvm_queue_interrupt(vcpu, (uint8_t)vector, false);
            kvm_x86_ops->inject_irq(vcpu);
        }
    }
    if (kvm_cpu_has_injectable_intr(vcpu) && !kvm_x86_ops->nested_wants_interrupt(vcpu))
        kvm_x86_ops->enable_irq_window(vcpu);
}

/* Named kvm_check_and_inject_events in Linux 6.1, inject_pending_event before: what the VM-entry
 * interruption-information field gets. What an exit interrupted goes first, then a new exception, an NMI, an interrupt;
 * one event an entry, windows for the rest. */
int inject_pending_event(struct kvm_vcpu *vcpu)
{
    bool can_inject;

    if (unlikely(kvm_x86_ops->nested_in_guest(vcpu)) && kvm_x86_ops->nested_check_events(vcpu) < 0)
        return 0; /* KVM_REQ_TRIPLE_FAULT */
    if (vcpu->arch.exception.injected)
        kvm_inject_exception(vcpu);
    else if (kvm_is_exception_pending(vcpu))
        ; /* it was raised by the instruction at RIP and is older than what could be injected below */
    else if (vcpu->arch.nmi_injected)
        kvm_x86_ops->inject_nmi(vcpu);
    else if (vcpu->arch.interrupt.injected)
        kvm_x86_ops->inject_irq(vcpu);
    can_inject = !kvm_event_needs_reinjection(vcpu);
    if (vcpu->arch.exception.pending) {
        inject_new_exception(vcpu);
        can_inject = false;
    }
    if (vcpu->arch.guest_debug & KVM_GUESTDBG_BLOCKIRQ)
        return 0;
    if (vcpu->arch.smi_pending && can_inject && !vcpu->arch.in_smm) { /* RSM looks here again */
        vcpu->arch.smi_pending = false;
        vcpu->arch.smi_count++;
        enter_smm(vcpu);
        can_inject = false;
    }
    if (vcpu->arch.nmi_pending)
        inject_nmi_or_window(vcpu, &can_inject);
    if (kvm_cpu_has_injectable_intr(vcpu))
        inject_interrupt_or_window(vcpu, can_inject);
    return 0;
}

/* ---- single step ---- */
uint64_t kvm_get_linear_rip(struct kvm_vcpu *vcpu)
{
    struct kvm_segment cs;

    if (is_64_bit_mode(vcpu))
        return kvm_rip_read(vcpu);
    kvm_x86_ops->get_segment(vcpu, &cs, SEG_CS);
    return (uint32_t)(cs.base + kvm_rip_read(vcpu));
}

/* An instruction that KVM completed with RFLAGS.TF set: the trap is due. 1, or 0: to user space */
int kvm_vcpu_do_singlestep(struct kvm_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;

    if (!(vcpu->arch.guest_debug & KVM_GUESTDBG_SINGLESTEP)) {
        kvm_queue_exception_p(vcpu, VEC_DB, DR6_BS);
        return 1;
    }
    run->debug.arch.dr6 = DR6_BS | DR6_FIXED;
    run->debug.arch.dr7 = vcpu->arch.dr7;
    run->debug.arch.pc = kvm_get_linear_rip(vcpu);
    run->debug.arch.exception = VEC_DB;
    run->exit_reason = KVM_EXIT_DEBUG;
    return 0;
}
