/* SPDX-License-Identifier: MIT
 * x86.h: shared by the run loop's files (x86.c, x86_events.c, x86_regs.c, x86_emulate.c, vmx_exit.c). */
#ifndef KVM_X86_H
#define KVM_X86_H

#include "kvm_host.h"

static inline bool is_protmode(struct kvm_vcpu *vcpu)
{
    return kvm_read_cr0(vcpu) & CR0_PE;
}

static inline bool is_long_mode(struct kvm_vcpu *vcpu)
{
    return vcpu->arch.efer & EFER_LMA;
}

static inline bool is_64_bit_mode(struct kvm_vcpu *vcpu)
{
    struct kvm_segment cs;

    if (!is_long_mode(vcpu))
        return false;
    kvm_x86_ops->get_segment(vcpu, &cs, SEG_CS);
    return cs.l;
}

static inline bool lapic_in_kernel(struct kvm_vcpu *vcpu)
{
    return vcpu->arch.apic != NULL;
}

static inline bool guest_cpuid_has(struct kvm_vcpu *vcpu, uint32_t leaf, char reg, unsigned bit)
{
    const struct kvm_cpuid_entry2 *e = kvm_find_cpuid_entry(vcpu, leaf, 0);

    return e && ((reg == 'a' ? e->eax : reg == 'b' ? e->ebx : reg == 'c' ? e->ecx : e->edx) >> bit & 1);
}

/* vcpu.c: KVM_SET_SIGNAL_MASK for the length of a KVM_RUN */
int kvm_sigset_activate(struct kvm_vcpu *, sigset_t *saved);
void kvm_sigset_deactivate(struct kvm_vcpu *, const sigset_t *saved);
bool kvm_sigset_pending(struct kvm_vcpu *);
/* x86_events.c */
int inject_pending_event(struct kvm_vcpu *);
bool kvm_event_needs_reinjection(struct kvm_vcpu *);
bool kvm_is_exception_pending(struct kvm_vcpu *);
bool kvm_cpu_has_injectable_intr(struct kvm_vcpu *);
void process_nmi(struct kvm_vcpu *);
void process_smi(struct kvm_vcpu *);
void kvm_clear_queues(struct kvm_vcpu *);
int kvm_vcpu_do_singlestep(struct kvm_vcpu *);
uint64_t kvm_get_linear_rip(struct kvm_vcpu *);
/* x86_emulate.c */
int kvm_complete_insn_gp(struct kvm_vcpu *, int err);
int kvm_emulate_rdmsr(struct kvm_vcpu *);
int kvm_emulate_wrmsr(struct kvm_vcpu *);
int kvm_emulate_xsetbv(struct kvm_vcpu *);
bool guest_pv_has(struct kvm_vcpu *, unsigned feature); /* KVM_CAP_ENFORCE_PV_FEATURE_CPUID */
int kvm_skip_hypercall(struct kvm_vcpu *);
int kvm_handle_ud(struct kvm_vcpu *);
int kvm_emulation_failure(struct kvm_vcpu *);
int kvm_internal_error(struct kvm_vcpu *, uint32_t suberror, unsigned ndata, const uint64_t *data);

/* task.c: error: to be pushed on the new stack, or NULL */
int kvm_task_switch(struct kvm_vcpu *, uint16_t sel, int source, const uint32_t *error);
/* mmu.c: kvm_mmu_gva_to_gpa() with the exception; fault->vector 0: a table is no RAM. access may have ACC_SYSTEM */
int kvm_mmu_gva_to_gpa_fault(struct kvm_vcpu *, gva_t, unsigned access, gpa_t *, struct cpu_exception *fault);

#endif
