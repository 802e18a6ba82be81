/* SPDX-License-Identifier: MIT
 * kvm-x86-ops.h: the border between the core and the vendor module. KVM_X86_OP(return type, name, parameters) */
KVM_X86_OP(int, check_processor_compat, void)
KVM_X86_OP(int, hardware_setup, void)
KVM_X86_OP(int, hardware_enable, struct kvm_vcpu *)   /* CR4.VMXE, VMXON, when a processor was created */
KVM_X86_OP(void, hardware_disable, struct kvm_vcpu *) /* VMXOFF */
KVM_X86_OP(int, vcpu_create, struct kvm_vcpu *)
KVM_X86_OP(void, vcpu_free, struct kvm_vcpu *)
KVM_X86_OP(void, vcpu_reset, struct kvm_vcpu *, bool init_event)
KVM_X86_OP(void, vcpu_load, struct kvm_vcpu *) /* VMPTRLD */
KVM_X86_OP(void, vcpu_put, struct kvm_vcpu *)
KVM_X86_OP(int, vcpu_run, struct kvm_vcpu *)    /* VMLAUNCH/VMRESUME: 0, or a negative errno when entry failed */
KVM_X86_OP(int, handle_exit, struct kvm_vcpu *) /* 1: resume the guest, 0: to user space, < 0: errno */
KVM_X86_OP(void, get_segment, struct kvm_vcpu *, struct kvm_segment *, int seg /* enum seg_reg; 6 = TR, 7 = LDTR */)
KVM_X86_OP(void, set_segment, struct kvm_vcpu *, const struct kvm_segment *, int seg)
KVM_X86_OP(int, get_cpl, struct kvm_vcpu *)
KVM_X86_OP(void, get_gdt, struct kvm_vcpu *, struct kvm_dtable *)
KVM_X86_OP(void, set_gdt, struct kvm_vcpu *, const struct kvm_dtable *)
KVM_X86_OP(void, get_idt, struct kvm_vcpu *, struct kvm_dtable *)
KVM_X86_OP(void, set_idt, struct kvm_vcpu *, const struct kvm_dtable *)
KVM_X86_OP(void, set_cr0, struct kvm_vcpu *, uint64_t) /* writes GUEST_CR0 and the read shadow */
KVM_X86_OP(void, set_cr4, struct kvm_vcpu *, uint64_t)
KVM_X86_OP(void, set_cr3, struct kvm_vcpu *, uint64_t)
KVM_X86_OP(uint64_t, get_cr3, struct kvm_vcpu *) /* the guest's, which it may have loaded without an exit */
KVM_X86_OP(void, set_pdptrs, struct kvm_vcpu *, const uint64_t *) /* four, PAE paging */
KVM_X86_OP(void, get_pdptrs, struct kvm_vcpu *, uint64_t *)
KVM_X86_OP(void, decache_cr0_cr4, struct kvm_vcpu *) /* arch.cr0/cr4: guest-owned bits from the VMCS */
KVM_X86_OP(int, set_efer, struct kvm_vcpu *, uint64_t)
KVM_X86_OP(void, set_dr7, struct kvm_vcpu *, uint64_t)
KVM_X86_OP(uint64_t, get_rip, struct kvm_vcpu *)
KVM_X86_OP(void, set_rip, struct kvm_vcpu *, uint64_t)
KVM_X86_OP(uint64_t, get_rsp, struct kvm_vcpu *)
KVM_X86_OP(void, set_rsp, struct kvm_vcpu *, uint64_t)
KVM_X86_OP(uint64_t, get_rflags, struct kvm_vcpu *)
KVM_X86_OP(void, set_rflags, struct kvm_vcpu *, uint64_t)
KVM_X86_OP(bool, skip_emulated_instruction, struct kvm_vcpu *)
KVM_X86_OP(void, inject_exception, struct kvm_vcpu *)
KVM_X86_OP(void, inject_irq, struct kvm_vcpu *)
KVM_X86_OP(void, inject_nmi, struct kvm_vcpu *)
KVM_X86_OP(void, cancel_injection, struct kvm_vcpu *)
KVM_X86_OP(bool, interrupt_allowed, struct kvm_vcpu *)
KVM_X86_OP(bool, nmi_allowed, struct kvm_vcpu *)
KVM_X86_OP(void, enable_irq_window, struct kvm_vcpu *)
KVM_X86_OP(void, enable_nmi_window, struct kvm_vcpu *)
KVM_X86_OP(uint32_t, get_interrupt_shadow, struct kvm_vcpu *)
KVM_X86_OP(void, set_interrupt_shadow, struct kvm_vcpu *, uint32_t)
KVM_X86_OP(bool, get_nmi_mask, struct kvm_vcpu *)
KVM_X86_OP(void, set_nmi_mask, struct kvm_vcpu *, bool)
KVM_X86_OP(void, clear_hlt, struct kvm_vcpu *) /* KVM_X86_DISABLE_EXITS_HLT: the guest is awake */
KVM_X86_OP(void, load_mmu_pgd, struct kvm_vcpu *)  /* the EPT pointer of the address space that the vCPU is in */
KVM_X86_OP(void, flush_tlb_all, struct kvm_vcpu *) /* INVEPT global and INVVPID of this vCPU */
KVM_X86_OP(void, write_tsc_offset, struct kvm_vcpu *, uint64_t)
KVM_X86_OP(void, write_tsc_multiplier, struct kvm_vcpu *, uint64_t)
KVM_X86_OP(void, update_exception_bitmap, struct kvm_vcpu *)
KVM_X86_OP(void, update_cpuid, struct kvm_vcpu *) /* secondary controls, cpu_set_guest_cpuid() */
KVM_X86_OP(void, update_msr_intercepts, struct kvm_vcpu *)
KVM_X86_OP(int, get_msr, struct kvm_vcpu *, uint32_t index,
           uint64_t *) /* those in the VMCS or the processor; 1: none */
KVM_X86_OP(int, set_msr, struct kvm_vcpu *, uint32_t index, uint64_t)
KVM_X86_OP(void, update_cr8_intercept, struct kvm_vcpu *)
/* VMX inside of the guest (struct kvm_x86_nested_ops in Linux) */
KVM_X86_OP(void, nested_changed, struct kvm_vcpu *) /* CPUID, IA32_FEATURE_CONTROL */
KVM_X86_OP(int, nested_check_events, struct kvm_vcpu *)
KVM_X86_OP(bool, nested_triple_fault, struct kvm_vcpu *) /* false: the guest itself is shut down */
KVM_X86_OP(bool, nested_wants_exception, struct kvm_vcpu *, unsigned vector, uint32_t error)
KVM_X86_OP(bool, nested_in_guest, struct kvm_vcpu *)
KVM_X86_OP(bool, nested_wants_interrupt, struct kvm_vcpu *)
KVM_X86_OP(bool, nested_cr_allowed, struct kvm_vcpu *, unsigned cr, uint64_t)
KVM_X86_OP(void, nested_smm, struct kvm_vcpu *, bool in_smm)
KVM_X86_OP(int, nested_get_msr, struct kvm_vcpu *, uint32_t msr, uint64_t *)
KVM_X86_OP(int, nested_set_msr, struct kvm_vcpu *, uint32_t msr, uint64_t)
KVM_X86_OP(uint32_t, nested_state_size, void)
KVM_X86_OP(void, get_nested_state, struct kvm_vcpu *, struct kvm_nested_state *)
KVM_X86_OP(int, set_nested_state, struct kvm_vcpu *, const struct kvm_nested_state *)
KVM_X86_OP(void, dump_vmcs, struct kvm_vcpu *)
