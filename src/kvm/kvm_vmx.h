/* SPDX-License-Identifier: MIT
 * kvm_vmx.h: the vendor module's inside (vmx.c, vmx_segment.c, vmx_exit.c): what a vCPU has beside its VMCS. */
#ifndef KVM_VMX_H
#define KVM_VMX_H

#include "kvm_host.h"

struct vmcs_config { /* what hardware_setup() made of the capability MSRs */
    uint32_t revision;
    uint32_t pin, cpu, cpu2, exit, entry;
    uint64_t cr0_fixed0, cr0_fixed1, cr4_fixed0, cr4_fixed1;
    bool ept_2m, vpid, tsc_scaling;
};
extern struct vmcs_config vmcs_config;

struct vcpu_vmx {
    void *vmcs, *vmxon, *msr_bitmap; /* pages */
    uint16_t vpid;                   /* 0: none */
    bool fail;                       /* the last VMLAUNCH or VMRESUME did not run */
    uint32_t cpu_ctl, cpu2_ctl;      /* copies of the controls, to write only changes */
    uint32_t exit_reason, idt_vectoring_info, exit_intr_info;
    uint32_t event_exit_inst_len; /* of a software interrupt or exception that is injected again */
};

static inline uint64_t vmcs_read(struct kvm_vcpu *vcpu, uint32_t field)
{
    uint64_t value = 0;

    cpu_vmread(vcpu->arch.cpu, field, &value);
    return value;
}

void vmcs_write_error(struct kvm_vcpu *vcpu, uint32_t field, uint64_t value);

static inline void vmcs_write(struct kvm_vcpu *vcpu, uint32_t field, uint64_t value)
{
    if (unlikely(cpu_vmwrite(vcpu->arch.cpu, field, value) != VMX_OK))
        vmcs_write_error(vcpu, field, value);
}

static inline void vmcs_set_cpu_ctl(struct kvm_vcpu *vcpu, uint32_t ctl)
{
    if (vcpu->arch.vmx->cpu_ctl != ctl)
        vmcs_write(vcpu, CPU_BASED_VM_EXEC_CONTROL, vcpu->arch.vmx->cpu_ctl = ctl);
}

/* vmx_segment.c */
void vmx_get_segment(struct kvm_vcpu *, struct kvm_segment *, int seg);
void vmx_set_segment(struct kvm_vcpu *, const struct kvm_segment *, int seg);
int vmx_get_cpl(struct kvm_vcpu *);
void vmx_get_gdt(struct kvm_vcpu *, struct kvm_dtable *), vmx_set_gdt(struct kvm_vcpu *, const struct kvm_dtable *);
void vmx_get_idt(struct kvm_vcpu *, struct kvm_dtable *), vmx_set_idt(struct kvm_vcpu *, const struct kvm_dtable *);
void vmx_reset_segments(struct kvm_vcpu *);
/* vmx_cr.c */
void vmx_set_cr0(struct kvm_vcpu *, uint64_t), vmx_set_cr3(struct kvm_vcpu *, uint64_t);
void vmx_set_cr4(struct kvm_vcpu *, uint64_t);
uint64_t vmx_get_cr3(struct kvm_vcpu *);
void vmx_set_pdptrs(struct kvm_vcpu *, const uint64_t *), vmx_get_pdptrs(struct kvm_vcpu *, uint64_t *);
void vmx_decache_cr0_cr4(struct kvm_vcpu *);
int vmx_set_efer(struct kvm_vcpu *, uint64_t);
/* vmx_inject.c */
void vmx_inject_exception(struct kvm_vcpu *), vmx_inject_irq(struct kvm_vcpu *), vmx_inject_nmi(struct kvm_vcpu *);
void vmx_cancel_injection(struct kvm_vcpu *), vmx_clear_hlt(struct kvm_vcpu *);
bool vmx_interrupt_allowed(struct kvm_vcpu *), vmx_nmi_allowed(struct kvm_vcpu *);
void vmx_enable_irq_window(struct kvm_vcpu *), vmx_enable_nmi_window(struct kvm_vcpu *);
uint32_t vmx_get_interrupt_shadow(struct kvm_vcpu *);
void vmx_set_interrupt_shadow(struct kvm_vcpu *, uint32_t);
bool vmx_get_nmi_mask(struct kvm_vcpu *);
void vmx_set_nmi_mask(struct kvm_vcpu *, bool);
void vmx_complete_interrupts(struct kvm_vcpu *);
/* vmx_nested.c */
int vmx_nested_create(struct kvm_vcpu *);
void vmx_nested_changed(struct kvm_vcpu *), vmx_nested_sync(struct kvm_vcpu *);
int vmx_nested_check_events(struct kvm_vcpu *);
bool vmx_nested_triple_fault(struct kvm_vcpu *);
bool vmx_nested_wants_exception(struct kvm_vcpu *, unsigned vector, uint32_t error);
bool vmx_nested_in_guest(struct kvm_vcpu *), vmx_nested_wants_interrupt(struct kvm_vcpu *);
bool vmx_nested_cr_allowed(struct kvm_vcpu *, unsigned cr, uint64_t);
void vmx_nested_smm(struct kvm_vcpu *, bool in_smm);
int vmx_nested_get_msr(struct kvm_vcpu *, uint32_t msr, uint64_t *);
int vmx_nested_set_msr(struct kvm_vcpu *, uint32_t msr, uint64_t);
uint32_t vmx_nested_state_size(void);
void vmx_get_nested_state(struct kvm_vcpu *, struct kvm_nested_state *);
int vmx_set_nested_state(struct kvm_vcpu *, const struct kvm_nested_state *);
/* vmx_exit.c: 1: resume the guest, 0: to user space, < 0: errno */
int vmx_handle_exit(struct kvm_vcpu *);
void dump_vmcs(struct kvm_vcpu *);
const char *vmx_exit_name(unsigned basic_reason);

#endif
