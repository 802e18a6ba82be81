/* SPDX-License-Identifier: MIT
 * x86.c: start of the architecture part, vCPUs, and the run loop: KVM_RUN -> vcpu_run -> vcpu_enter_guest -> the vendor
 * module's VM entry and exit handlers; halting. */
#include "x86.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

const struct kvm_x86_ops *kvm_x86_ops;

/* ---- start ---- */
int kvm_arch_init(void)
{
    kvm_x86_ops = &vmx_x86_ops;
    return 0;
}

int kvm_arch_hardware_setup(void)
{
    return kvm_x86_ops->hardware_setup();
}

int kvm_arch_check_processor_compat(void)
{
    return kvm_x86_ops->check_processor_compat();
}

int kvm_arch_init_vm(struct kvm *kvm, unsigned long type)
{
    if (type)
        return -EINVAL;
    pthread_mutex_init(&kvm->arch.mmu_lock, NULL);
    pthread_mutex_init(&kvm->arch.tsc_lock, NULL);
    kvm->arch.guest_can_read_msr_platform_info = true;
    kvm->arch.default_tsc_khz = cpu_tsc_khz();
    kvm->arch.master_cycle_now = cpu_rdtsc();
    kvm->arch.master_kernel_ns = os_clock_boot_ns();
    kvm->arch.kvmclock_offset = -(int64_t)kvm->arch.master_kernel_ns; /* kvmclock starts at 0 */
    return kvm_mmu_init_vm(kvm);
}

void kvm_arch_destroy_vm(struct kvm *kvm)
{
    kvm_irq_destroy(kvm);
    kvm_mmu_uninit_vm(kvm);
    pthread_mutex_destroy(&kvm->arch.tsc_lock);
    pthread_mutex_destroy(&kvm->arch.mmu_lock);
}

int kvm_arch_vcpu_create(struct kvm_vcpu *vcpu)
{
    const char *engine = kvm_params.engine[0] ? kvm_params.engine : NULL;
    int r;

    __atomic_store_n(&cpu_hardened, kvm_params.hardened, __ATOMIC_RELAXED);
    vcpu->arch.cpu = cpu_create(vcpu->kvm->domain, (unsigned)vcpu->vcpu_id, engine);
    if (!vcpu->arch.cpu)
        return -ENOMEM;
    vcpu->arch.mp_state =
        !kvm_arch_can_set_irq(vcpu->kvm) || vcpu_is_bsp(vcpu) ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_UNINITIALIZED;
    if (!vcpu->arch.maxphyaddr)
        vcpu->arch.maxphyaddr = 36; /* as a processor without leaf 0x80000008 */
    vcpu->arch.apic_base =
        APIC_DEFAULT_PHYS_BASE | (vcpu_is_bsp(vcpu) ? MSR_IA32_APICBASE_BSP : 0) | MSR_IA32_APICBASE_ENABLE;
    vcpu->arch.tsc_khz = vcpu->kvm->arch.default_tsc_khz;
    r = kvm_x86_ops->vcpu_create(vcpu);
    if (!r && (vcpu->kvm->arch.irqchip_kernel || vcpu->kvm->arch.irqchip_split))
        r = kvm_create_lapic(vcpu);
    if (r) {
        kvm_arch_vcpu_destroy(vcpu);
        return r;
    }
    kvm_set_tsc_khz(vcpu, vcpu->arch.tsc_khz);
    kvm_vcpu_reset(vcpu, false);
    kvm_synchronize_tsc(vcpu, 0);
    return 0;
}

void kvm_arch_vcpu_destroy(struct kvm_vcpu *vcpu)
{
    if (!vcpu->arch.cpu)
        return;
    kvm_hv_vcpu_free(vcpu);
    if (vcpu->arch.apic)
        kvm_free_lapic(vcpu);
    kvm_x86_ops->vcpu_free(vcpu);
    cpu_destroy(vcpu->arch.cpu);
    vcpu->arch.cpu = NULL;
    free(vcpu->arch.cpuid);
    vcpu->arch.cpuid = NULL;
}

/* ---- what lapic.c asks ---- */
struct kvm_lapic *vcpu_apic(struct kvm_vcpu *vcpu)
{
    return vcpu->arch.apic;
}

uint64_t *vcpu_apic_base(struct kvm_vcpu *vcpu)
{
    return &vcpu->arch.apic_base;
}

bool vcpu_cpuid_x2apic(struct kvm_vcpu *vcpu)
{
    return guest_cpuid_has(vcpu, 1, 'c', 21);
}

bool vcpu_is_bsp(struct kvm_vcpu *vcpu)
{
    return vcpu->vcpu_id == vcpu->kvm->arch.bsp_vcpu_id;
}

int vcpu_id_of(struct kvm_vcpu *vcpu)
{
    return vcpu->vcpu_id;
}

struct kvm *vcpu_kvm(struct kvm_vcpu *vcpu)
{
    return vcpu->kvm;
}

/* ---- halting ---- */
static bool kvm_vcpu_running(struct kvm_vcpu *vcpu)
{
    return vcpu->arch.mp_state == KVM_MP_STATE_RUNNABLE;
}

static bool kvm_vcpu_has_events(struct kvm_vcpu *vcpu)
{
    if (lapic_in_kernel(vcpu) && !vcpu->arch.in_smm && kvm_apic_pending_init_sipi(vcpu))
        return true;
    if (kvm_is_exception_pending(vcpu))
        return true;
    if (atomic_load(&vcpu->arch.nmi_queued) || (vcpu->arch.nmi_pending && kvm_x86_ops->nmi_allowed(vcpu)))
        return true;
    if (atomic_load(&vcpu->requests) & 1ull << KVM_REQ_HV_STIMER)
        return true;
    if ((vcpu->arch.smi_pending || (atomic_load(&vcpu->requests) & 1ull << KVM_REQ_SMI)) && !vcpu->arch.in_smm)
        return true;
    return kvm_x86_ops->interrupt_allowed(vcpu) && kvm_cpu_has_interrupt(vcpu);
}

bool kvm_arch_vcpu_runnable(struct kvm_vcpu *vcpu)
{
    return kvm_vcpu_running(vcpu) || kvm_vcpu_has_events(vcpu);
}

static bool signal_pending(struct kvm_vcpu *vcpu)
{
    if (atomic_load(&vcpu->signal_arrived) || atomic_load(&vcpu->interrupted) ||
        *(volatile uint8_t *)&vcpu->run->immediate_exit)
        return true;
    return unlikely(vcpu->sigset_active) && kvm_sigset_pending(vcpu);
}

static bool kvm_vcpu_check_block(struct kvm_vcpu *vcpu)
{
    return kvm_arch_vcpu_runnable(vcpu) || signal_pending(vcpu) || kvm_check_request(KVM_REQ_UNBLOCK, vcpu);
}

/* Sleep until there is a reason not to. A signal whose handler ran is a reason: KVM_RUN then answers EINTR. */
int kvm_vcpu_halt(struct kvm_vcpu *vcpu)
{
    kvm_stat_time(vcpu, STAT_kernel_cycles);
    kvm_stat_sync(vcpu);
    for (;;) {
        const uint32_t word = atomic_load(&vcpu->wake);
        int r;

        atomic_store(&vcpu->blocked, true);
        if (kvm_vcpu_check_block(vcpu))
            break;
        r = os_futex_wait(&vcpu->wake, word, ~0ull);
        if (r == -EINTR) {
            atomic_store(&vcpu->signal_arrived, true);
            break;
        }
    }
    atomic_store(&vcpu->blocked, false);
    kvm_stat_time(vcpu, STAT_halt_cycles);
    return 0;
}

/* 1: runnable or to be asked again; 0 and less: as vcpu_enter_guest */
static int vcpu_block(struct kvm_vcpu *vcpu)
{
    if (!kvm_arch_vcpu_runnable(vcpu)) {
        kvm_vcpu_halt(vcpu);
        if (!kvm_arch_vcpu_runnable(vcpu))
            return 1;
    }
    if (lapic_in_kernel(vcpu) && kvm_apic_accept_events(vcpu) < 0)
        return 0;
    switch (vcpu->arch.mp_state) {
    case KVM_MP_STATE_HALTED:
    case KVM_MP_STATE_AP_RESET_HOLD:
        vcpu->arch.mp_state = KVM_MP_STATE_RUNNABLE;
        return 1;
    case KVM_MP_STATE_RUNNABLE:
    case KVM_MP_STATE_INIT_RECEIVED:
        return 1;
    }
    return -EINTR;
}

int kvm_emulate_halt(struct kvm_vcpu *vcpu)
{
    const int r = kvm_skip_emulated_instruction(vcpu);

    if (lapic_in_kernel(vcpu)) {
        vcpu->arch.mp_state = KVM_MP_STATE_HALTED;
        return r;
    }
    vcpu->run->exit_reason = KVM_EXIT_HLT;
    return 0;
}

/* ---- interrupts that the monitor injects ---- */
static bool kvm_cpu_accept_dm_intr(struct kvm_vcpu *vcpu)
{
    if (kvm_cpu_has_extint(vcpu))
        return false;
    return !lapic_in_kernel(vcpu) || kvm_apic_accept_pic_intr(vcpu);
}

static bool kvm_vcpu_ready_for_interrupt_injection(struct kvm_vcpu *vcpu)
{
    return kvm_x86_ops->interrupt_allowed(vcpu) && kvm_cpu_accept_dm_intr(vcpu) && !kvm_event_needs_reinjection(vcpu) &&
           !kvm_is_exception_pending(vcpu);
}

static bool dm_request_for_irq_injection(struct kvm_vcpu *vcpu)
{
    return !vcpu->kvm->arch.irqchip_kernel && *(volatile uint8_t *)&vcpu->run->request_interrupt_window;
}

static void post_kvm_run_save(struct kvm_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;

    run->if_flag = (kvm_x86_ops->get_rflags(vcpu) & F_IF) != 0;
    run->flags = vcpu->arch.in_smm ? KVM_RUN_X86_SMM : 0;
    run->cr8 = kvm_get_cr8(vcpu);
    run->apic_base = vcpu->arch.apic_base;
    run->ready_for_interrupt_injection = vcpu->kvm->arch.irqchip_kernel || kvm_vcpu_ready_for_interrupt_injection(vcpu);
}

/* ---- one VM entry and its exit ---- */
static int vcpu_ioapic_eoi_request(struct kvm_vcpu *vcpu)
{
    vcpu->run->exit_reason = KVM_EXIT_IOAPIC_EOI;
    vcpu->run->eoi.vector = vcpu->arch.pending_ioapic_eoi;
    return 0;
}

/* 1: go on; 0: to user space; < 0: errno */
static int vcpu_handle_requests(struct kvm_vcpu *vcpu)
{
    if (kvm_check_request(KVM_REQ_VM_DEAD, vcpu))
        return -EIO;
    if (kvm_dirty_ring_check_request(vcpu))
        return 0;
    if (kvm_check_request(KVM_REQ_GLOBAL_CLOCK_UPDATE, vcpu))
        kvm_make_all_cpus_request(vcpu->kvm, KVM_REQ_CLOCK_UPDATE, false);
    if (kvm_check_request(KVM_REQ_CLOCK_UPDATE, vcpu))
        kvm_guest_time_update(vcpu);
    kvm_check_request(KVM_REQ_MMU_RELOAD, vcpu);
    if (kvm_check_request(KVM_REQ_TLB_FLUSH, vcpu))
        kvm_x86_ops->flush_tlb_all(vcpu);
    if (kvm_check_request(KVM_REQ_TRIPLE_FAULT, vcpu) && !kvm_x86_ops->nested_triple_fault(vcpu)) {
        vcpu->run->exit_reason = KVM_EXIT_SHUTDOWN;
        return 0;
    }
    if (kvm_check_request(KVM_REQ_STEAL_UPDATE, vcpu))
        record_steal_time(vcpu);
    if (kvm_check_request(KVM_REQ_NMI, vcpu))
        process_nmi(vcpu);
    if (kvm_check_request(KVM_REQ_SMI, vcpu))
        process_smi(vcpu);
    if (kvm_check_request(KVM_REQ_MSR_FILTER_CHANGED, vcpu))
        kvm_x86_ops->update_msr_intercepts(vcpu);
    if (!kvm_hv_requests(vcpu))
        return 0;
    kvm_check_request(KVM_REQ_SCAN_IOAPIC, vcpu);
    kvm_check_request(KVM_REQ_UNBLOCK, vcpu);
    if (kvm_check_request(KVM_REQ_IOAPIC_EOI_EXIT, vcpu))
        return vcpu_ioapic_eoi_request(vcpu);
    return 1;
}

/* Events before the entry. 1: go on, 2: the vCPU is not to be entered (INIT), 0 and less: leave */
static int vcpu_prepare_events(struct kvm_vcpu *vcpu, bool req_int_win)
{
    int r;

    if (lapic_in_kernel(vcpu)) {
        r = kvm_apic_accept_events(vcpu);
        if (r < 0)
            return 0;
        if (vcpu->arch.mp_state == KVM_MP_STATE_INIT_RECEIVED)
            return 2;
    }
    r = inject_pending_event(vcpu);
    if (r < 0)
        return 0;
    if (req_int_win)
        kvm_x86_ops->enable_irq_window(vcpu);
    if (lapic_in_kernel(vcpu)) {
        kvm_x86_ops->update_cr8_intercept(vcpu);
        kvm_lapic_sync_to_vapic(vcpu);
    }
    if (kvm_check_request(KVM_REQ_TRIPLE_FAULT, vcpu) && /* a fault on a double fault, found just now */
        !kvm_x86_ops->nested_triple_fault(vcpu)) {
        vcpu->run->exit_reason = KVM_EXIT_SHUTDOWN;
        return 0;
    }
    return 1;
}

/* Guest debug or the guest's own breakpoints: the debug-address registers are live only where DR7 enables one. */
static void load_debug_registers(struct kvm_vcpu *vcpu)
{
    struct cpu_state *s = cpu_state(vcpu->arch.cpu);

    memcpy(s->dr, vcpu->arch.eff_db, sizeof(s->dr));
    s->dr6 = vcpu->arch.dr6;
}

int vcpu_enter_guest(struct kvm_vcpu *vcpu)
{
    const bool req_int_win = dm_request_for_irq_injection(vcpu) && kvm_cpu_accept_dm_intr(vcpu);
    int r;

    if (kvm_request_pending(vcpu)) {
        r = vcpu_handle_requests(vcpu);
        if (r <= 0)
            return r;
    }
    if (kvm_check_request(KVM_REQ_EVENT, vcpu) || req_int_win) {
        r = vcpu_prepare_events(vcpu, req_int_win);
        if (r != 1)
            return r == 2 ? 1 : r;
    }
    load_debug_registers(vcpu);

    atomic_store(&vcpu->mode, IN_GUEST_MODE); /* before requests are looked at once more: see vcpu.c */
    if (unlikely(kvm_request_pending(vcpu) || signal_pending(vcpu))) {
        atomic_store(&vcpu->mode, OUTSIDE_GUEST_MODE);
        kvm_x86_ops->cancel_injection(vcpu);
        return 1;
    }
    kvm_stat_time(vcpu, STAT_kernel_cycles);
    r = kvm_x86_ops->vcpu_run(vcpu);
    kvm_stat_time(vcpu, STAT_guest_cycles);
    vcpu->stat[STAT_exits]++;
    atomic_store_explicit(&vcpu->mode, OUTSIDE_GUEST_MODE, memory_order_release); /* seen late: a kick too many */
    if (unlikely(r < 0))
        return r;
    if (lapic_in_kernel(vcpu))
        kvm_lapic_sync_from_vapic(vcpu);
    return kvm_x86_ops->handle_exit(vcpu);
}

static int vcpu_run(struct kvm_vcpu *vcpu)
{
    for (;;) {
        int r;

        vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
        r = kvm_vcpu_running(vcpu) ? vcpu_enter_guest(vcpu) : vcpu_block(vcpu);
        if (r <= 0)
            return r;
        kvm_check_request(KVM_REQ_UNBLOCK, vcpu);
        if (dm_request_for_irq_injection(vcpu) && kvm_vcpu_ready_for_interrupt_injection(vcpu)) {
            vcpu->run->exit_reason = KVM_EXIT_IRQ_WINDOW_OPEN;
            return 0;
        }
        if (signal_pending(vcpu)) {
            atomic_store(&vcpu->signal_arrived, false);
            atomic_store(&vcpu->interrupted, false);
            vcpu->run->exit_reason = KVM_EXIT_INTR;
            return -EINTR;
        }
    }
}

/* Not started yet: KVM_RUN sleeps until INIT, SIPI or a signal, and has the client call again (api.rst, KVM_RUN). */
static int run_uninitialized(struct kvm_vcpu *vcpu)
{
    if (*(volatile uint8_t *)&vcpu->run->immediate_exit)
        return -EINTR;
    kvm_vcpu_halt(vcpu);
    if (lapic_in_kernel(vcpu) && kvm_apic_accept_events(vcpu) < 0)
        return 0;
    kvm_check_request(KVM_REQ_UNBLOCK, vcpu);
    if (atomic_exchange(&vcpu->signal_arrived, false) | atomic_exchange(&vcpu->interrupted, false) ||
        *(volatile uint8_t *)&vcpu->run->immediate_exit) {
        vcpu->run->exit_reason = KVM_EXIT_INTR;
        return -EINTR;
    }
    return -EAGAIN;
}

/* The client's request word for CR8, and I/O that it has answered meanwhile. 1: go on */
static int vcpu_prepare_run(struct kvm_vcpu *vcpu)
{
    const uint32_t exit_reason = vcpu->run->exit_reason;
    int (*complete)(struct kvm_vcpu *) = vcpu->arch.complete_userspace_io;

    if (!lapic_in_kernel(vcpu) && kvm_set_cr8(vcpu, *(volatile uint64_t *)&vcpu->run->cr8))
        return -EINVAL;
    if (complete) {
        int r;

        vcpu->arch.complete_userspace_io = NULL;
        vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
        r = complete(vcpu);
        if (r <= 0)
            return r;
    }
    if (!*(volatile uint8_t *)&vcpu->run->immediate_exit)
        return 1;
    vcpu->run->exit_reason = exit_reason; /* clients finish an exit so, and look at it afterwards */
    return -EINTR;
}

static int run_vcpu(struct kvm_vcpu *vcpu)
{
    int r;

    vcpu->run->flags = 0;
    if (vcpu->arch.steal_msr & 1)
        kvm_make_request(KVM_REQ_STEAL_UPDATE, vcpu);
    if (unlikely(vcpu->arch.mp_state == KVM_MP_STATE_UNINITIALIZED))
        return run_uninitialized(vcpu);
    r = vcpu_prepare_run(vcpu);
    return r > 0 ? vcpu_run(vcpu) : r;
}

int kvm_arch_vcpu_ioctl_run(struct kvm_vcpu *vcpu)
{
    const bool mask = vcpu->sigset_active;
    sigset_t saved;
    int r = mask ? kvm_sigset_activate(vcpu, &saved) : 0;

    if (!r) {
        r = run_vcpu(vcpu);
        if (mask)
            kvm_sigset_deactivate(vcpu, &saved);
        post_kvm_run_save(vcpu);
    } else if (r == -EINTR) {
        vcpu->run->exit_reason = KVM_EXIT_INTR;
    }
    if (r == -EINTR) /* the client may change code before it calls again */
        cpu_code_unverify(vcpu->arch.cpu);
    return r;
}
