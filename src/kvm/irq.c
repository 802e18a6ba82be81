/* SPDX-License-Identifier: MIT
 * irq.c: what the run loop asks about interrupts, the irqchip ioctls, and the models' view of a VM (the models know no
 * header of src/cpu; here kvm_host.h comes in). */
#include "kvm_host.h"
#include <errno.h>

/* ---- the models' view ---- */
struct kvm_chips kvm_chips(struct kvm *kvm)
{
    return (struct kvm_chips){
        .pic = &kvm->arch.vpic,
        .ioapic = &kvm->arch.vioapic,
        .pit = &kvm->arch.vpit,
        .x2apic_format = kvm->arch.x2apic_format,
        .split = kvm->arch.irqchip_split,
        .disabled_quirks = kvm->arch.disabled_quirks,
        .apic_ids_moved = &kvm->arch.apic_ids_moved,
    };
}

struct ktimer_thread *kvm_timer_thread(struct kvm *kvm)
{
    struct ktimer_thread *timers = atomic_load(&kvm->timers), *new;

    if (timers)
        return timers;
    new = ktimer_thread_create();
    if (new && !atomic_compare_exchange_strong(&kvm->timers, &timers, new)) {
        ktimer_thread_destroy(new); /* another vCPU was faster */
        return timers;
    }
    return new;
}

int kvm_vcpus_online(struct kvm *kvm)
{
    return atomic_load_explicit(&kvm->online_vcpus, memory_order_acquire);
}

struct kvm_vcpu *kvm_vcpu_at(struct kvm *kvm, int i)
{
    return kvm->vcpus[i];
}

struct kvm_vcpu *kvm_vcpu_with_id(struct kvm *kvm, uint32_t id)
{
    const int online = kvm_vcpus_online(kvm);

    if (id < (uint32_t)online && kvm->vcpus[id] && kvm->vcpus[id]->vcpu_id == (int)id)
        return kvm->vcpus[id];
    for (int i = 0; i < online; i++)
        if (kvm->vcpus[i] && (uint32_t)kvm->vcpus[i]->vcpu_id == id)
            return kvm->vcpus[i];
    return NULL;
}

void vcpu_set_apic(struct kvm_vcpu *vcpu, struct kvm_lapic *apic)
{
    __atomic_store_n(&vcpu->arch.apic, apic, __ATOMIC_RELEASE);
}

int *vcpu_mp_state(struct kvm_vcpu *vcpu)
{
    return &vcpu->arch.mp_state;
}

int vcpu_index_of(struct kvm_vcpu *vcpu)
{
    return vcpu->vcpu_idx;
}

unsigned vcpu_maxphyaddr(struct kvm_vcpu *vcpu)
{
    return vcpu->arch.maxphyaddr ? vcpu->arch.maxphyaddr : 36; /* before KVM_SET_CPUID2, as KVM */
}

bool vcpu_cpuid_tsc_deadline(struct kvm_vcpu *vcpu)
{
    const struct kvm_cpuid_entry2 *e = kvm_find_cpuid_entry(vcpu, 1, 0);

    return e && e->ecx >> 24 & 1;
}

void vcpu_event(struct kvm_vcpu *vcpu)
{
    kvm_make_request(KVM_REQ_EVENT, vcpu);
    kvm_vcpu_kick(vcpu);
}

void vcpu_unblock(struct kvm_vcpu *vcpu)
{
    kvm_make_request(KVM_REQ_UNBLOCK, vcpu);
    vcpu_event(vcpu);
}

void vcpu_inject_nmi(struct kvm_vcpu *vcpu)
{
    kvm_inject_nmi(vcpu);
    kvm_vcpu_kick(vcpu);
}

bool vcpu_in_smm(const struct kvm_vcpu *vcpu)
{
    return vcpu->arch.in_smm;
}

void vcpu_inject_smi(struct kvm_vcpu *vcpu)
{
    kvm_make_request(KVM_REQ_SMI, vcpu);
    kvm_vcpu_kick(vcpu);
}

void vcpu_init_reset(struct kvm_vcpu *vcpu)
{
    kvm_vcpu_reset(vcpu, true);
}

void vcpu_deliver_sipi(struct kvm_vcpu *vcpu, uint8_t vector)
{
    struct kvm_segment cs;

    kvm_x86_ops->get_segment(vcpu, &cs, SEG_CS);
    cs.selector = (uint16_t)(vector << 8);
    cs.base = (uint64_t)vector << 12;
    kvm_x86_ops->set_segment(vcpu, &cs, SEG_CS);
    kvm_rip_write(vcpu, 0);
}

void vcpu_ioapic_eoi_exit(struct kvm_vcpu *vcpu, int vector)
{
    vcpu->arch.pending_ioapic_eoi = (uint8_t)vector;
    kvm_make_request(KVM_REQ_IOAPIC_EOI_EXIT, vcpu);
}

/* ---- the run loop's questions ---- */
/* Without an APIC in the kernel KVM_INTERRUPT's vector waits in arch.interrupt, to be injected as it is. */
int kvm_cpu_has_extint(struct kvm_vcpu *vcpu)
{
    if (!vcpu->arch.apic)
        return vcpu->arch.interrupt.injected;
    if (!kvm_apic_accept_pic_intr(vcpu))
        return 0;
    return vcpu->kvm->arch.irqchip_split ? vcpu->arch.pending_extint != 0 : kvm_pic_output(vcpu->kvm);
}

int kvm_cpu_has_interrupt(struct kvm_vcpu *vcpu)
{
    return kvm_cpu_has_extint(vcpu) || kvm_apic_has_interrupt(vcpu) >= 0;
}

static int take_extint(struct kvm_vcpu *vcpu)
{
    int vector;

    if (!kvm_cpu_has_extint(vcpu))
        return -1;
    if (!vcpu->arch.apic)
        return vcpu->arch.interrupt.nr;
    if (!vcpu->kvm->arch.irqchip_split)
        return kvm_pic_read_irq(vcpu->kvm);
    vector = (int)vcpu->arch.pending_extint - 1;
    vcpu->arch.pending_extint = 0;
    return vector;
}

int kvm_cpu_get_interrupt(struct kvm_vcpu *vcpu)
{
    const int vector = take_extint(vcpu);

    return vector >= 0 ? vector : kvm_get_apic_interrupt(vcpu);
}

int kvm_vcpu_ioctl_interrupt(struct kvm_vcpu *vcpu, uint32_t irq)
{
    if (irq > 255)
        return -EINVAL;
    if (!vcpu->kvm->arch.irqchip_kernel && !vcpu->kvm->arch.irqchip_split) {
        kvm_queue_interrupt(vcpu, (uint8_t)irq, false);
        kvm_make_request(KVM_REQ_EVENT, vcpu);
        return 0;
    }
    if (vcpu->kvm->arch.vpic)
        return -ENXIO;
    if (vcpu->arch.pending_extint)
        return -EEXIST;
    vcpu->arch.pending_extint = irq + 1;
    kvm_make_request(KVM_REQ_EVENT, vcpu);
    return 0;
}

/* ---- KVM_GET_IRQCHIP, KVM_SET_IRQCHIP ---- */
int kvm_vm_ioctl_get_irqchip(struct kvm *kvm, struct kvm_irqchip *chip)
{
    if (!kvm->arch.irqchip_kernel)
        return -ENXIO;
    switch (chip->chip_id) {
    case KVM_IRQCHIP_PIC_MASTER:
    case KVM_IRQCHIP_PIC_SLAVE:
        return kvm_get_pic(kvm, (int)chip->chip_id, &chip->chip.pic);
    case KVM_IRQCHIP_IOAPIC:
        return kvm_get_ioapic(kvm, &chip->chip.ioapic);
    default:
        return -EINVAL;
    }
}

int kvm_vm_ioctl_set_irqchip(struct kvm *kvm, const struct kvm_irqchip *chip)
{
    if (!kvm->arch.irqchip_kernel)
        return -ENXIO;
    switch (chip->chip_id) {
    case KVM_IRQCHIP_PIC_MASTER:
    case KVM_IRQCHIP_PIC_SLAVE:
        return kvm_set_pic(kvm, (int)chip->chip_id, &chip->chip.pic);
    case KVM_IRQCHIP_IOAPIC:
        return kvm_set_ioapic(kvm, &chip->chip.ioapic);
    default:
        return -EINVAL;
    }
}

/* ---- the end of a VM: after its vCPUs, kvm_irqfd_release() and the buses ---- */
void kvm_irq_destroy(struct kvm *kvm)
{
    kvm_pic_destroy(kvm);
    kvm_ioapic_destroy(kvm);
    kvm_free_irq_routing(kvm);
    ktimer_thread_destroy(atomic_exchange(&kvm->timers, NULL));
}
