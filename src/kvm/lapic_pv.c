/* SPDX-License-Identifier: MIT
 * lapic_pv.c: what the guest and the local APIC share in guest memory: the PV EOI flag
 * (Documentation/virt/kvm/x86/msr.rst, MSR_KVM_PV_EOI_EN) and the TPR page of KVM_SET_VAPIC_ADDR. */
#include "lapic.h"

#define PV_EOI_ENABLED 1u

/* 0, or 1 for #GP */
int kvm_lapic_set_pv_eoi(struct kvm_vcpu *vcpu, uint64_t msr_value)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);

    if (msr_value & 2) /* 4 bytes, aligned */
        return 1;
    if (!apic) /* the client's LAPIC sets no flag: every EOI reaches it */
        return 0;
    apic->pv_eoi_gpa = msr_value & PV_EOI_ENABLED ? msr_value & ~3ull : 0;
    apic->pv_eoi_pending = false;
    return 0;
}

void kvm_lapic_set_vapic_addr(struct kvm_vcpu *vcpu, uint64_t gpa)
{
    if (vcpu_apic(vcpu))
        vcpu_apic(vcpu)->vapic_gpa = gpa;
}

static void pv_eoi_from_guest(struct kvm_lapic *apic)
{
    uint8_t flag;

    apic->pv_eoi_pending = false;
    if (kvm_read_guest(apic->kvm, apic->pv_eoi_gpa, &flag, 1))
        return;
    if (!(flag & PV_EOI_ENABLED)) { /* the guest cleared it: that was its EOI */
        apic_set_eoi(apic);
        return;
    }
    flag = 0;
    kvm_write_guest(apic->kvm, apic->pv_eoi_gpa, &flag, 1);
}

void kvm_lapic_sync_from_vapic(struct kvm_vcpu *vcpu)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);
    uint32_t tpr;

    if (!apic)
        return;
    if (apic->pv_eoi_pending)
        pv_eoi_from_guest(apic);
    if (apic->vapic_gpa && !kvm_read_guest(apic->kvm, apic->vapic_gpa, &tpr, 4) &&
        (tpr & 0xff) != apic_get(apic, APIC_TASKPRI)) {
        apic_set(apic, APIC_TASKPRI, tpr & 0xff);
        apic_update_ppr(apic);
        vcpu_event(vcpu);
    }
}

/* The guest may skip its EOI when nothing waits for it: no other vector is pending, and no IOAPIC awaits this one. */
static bool pv_eoi_may_skip(struct kvm_lapic *apic)
{
    const int vector = apic->highest_isr;

    return vector >= 0 && !atomic_load(&apic->irr_pending) &&
           !(apic_get(apic, APIC_TMR + ((unsigned)vector >> 5) * 16) >> (vector & 31) & 1) &&
           !kvm_ioapic_handles_vector(apic->kvm, vector) && !kvm_split_handles_vector(apic->kvm, vector);
}

void kvm_lapic_sync_to_vapic(struct kvm_vcpu *vcpu)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);

    if (!apic)
        return;
    if (apic->pv_eoi_gpa && !apic->pv_eoi_pending && pv_eoi_may_skip(apic)) {
        const uint8_t flag = PV_EOI_ENABLED;

        apic->pv_eoi_pending = !kvm_write_guest(apic->kvm, apic->pv_eoi_gpa, &flag, 1);
    }
    if (apic->vapic_gpa) {
        const int irr = apic_highest_irr(apic), isr = apic->highest_isr;
        const uint32_t data = (apic_get(apic, APIC_TASKPRI) & 0xff) | (isr < 0 ? 0u : (uint32_t)isr & 0xf0) << 8 |
                              (irr < 0 ? 0u : (uint32_t)irr) << 24;

        kvm_write_guest(apic->kvm, apic->vapic_gpa, &data, 4);
    }
}
