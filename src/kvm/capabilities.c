/* SPDX-License-Identifier: MIT
 * capabilities.c: KVM_CHECK_EXTENSION says yes only to what works; KVM_ENABLE_CAP. A row a capability. */
#include <errno.h>
#include <unistd.h>
#include "ioctl.h"

/* ---- values that are not constants ---- */
static long nr_vcpus(struct kvm *kvm)
{
    static _Atomic long online = 1;
    long n;

    if (os_may_open())
        online = sysconf(_SC_NPROCESSORS_ONLN);
    n = online;
    return n < 1 ? 1 : n > KVM_MAX_VCPUS ? KVM_MAX_VCPUS : n;
}

static long max_vcpu_id(struct kvm *kvm)
{
    return kvm && kvm->arch.max_vcpu_ids ? (long)kvm->arch.max_vcpu_ids : KVM_MAX_VCPU_IDS;
}

static long xsave2_size(struct kvm *kvm)
{
    const size_t size = cpu_fpu_area_size();

    return size < sizeof(struct kvm_xsave) ? (long)sizeof(struct kvm_xsave) : (long)size;
}

static long nested_state_size(struct kvm *kvm)
{
    return kvm_params.nested ? (long)kvm_x86_ops->nested_state_size() : 0;
}

static const struct capability {
    int number;
    const char *name;
    long value;
    long (*get)(struct kvm *); /* instead of value */
} capabilities[] = {
#define CAP(name, value)                   \
    {                                      \
        KVM_CAP_##name, #name, value, NULL \
    }
#define CAP_FN(name, fn)             \
    {                                \
        KVM_CAP_##name, #name, 0, fn \
    }
    CAP(ADJUST_CLOCK, KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC),
    CAP(BINARY_STATS_FD, 1),
    CAP(CHECK_EXTENSION_VM, 1),
    CAP(CLOCKSOURCE, 1),
    CAP(COALESCED_MMIO, KVM_COALESCED_PAGE),
    CAP(COALESCED_PIO, 1),
    CAP(DEBUGREGS, 1),
    CAP(DESTROY_MEMORY_REGION_WORKS, 1),
    CAP_FN(DIRTY_LOG_RING, kvm_dirty_ring_max_size),
    CAP_FN(DIRTY_LOG_RING_ACQ_REL, kvm_dirty_ring_max_size),
    CAP(DISABLE_QUIRKS, 1),
    CAP(DISABLE_QUIRKS2, KVM_X86_VALID_QUIRKS),
    CAP(ENABLE_CAP, 1),
    CAP(ENABLE_CAP_VM, 1),
    CAP(ENFORCE_PV_FEATURE_CPUID, 1),
    CAP(EXCEPTION_PAYLOAD, 1),
    CAP(EXIT_HYPERCALL, KVM_EXIT_HYPERCALL_VALID_MASK),
    CAP(EXIT_ON_EMULATION_FAILURE, 1),
    CAP(EXT_CPUID, 1),
    CAP(EXT_EMUL_CPUID, 1),
    CAP(GET_MSR_FEATURES, 1),
    CAP(GET_TSC_KHZ, 1),
    CAP(HLT, 1),
    CAP(HYPERV, 1),
    CAP(HYPERV_CPUID, 1),
    CAP(HYPERV_ENFORCE_CPUID, 1),
    CAP(HYPERV_EVENTFD, 1),
    CAP(HYPERV_SEND_IPI, 1),
    CAP(HYPERV_SPIN, 1),
    CAP(HYPERV_SYNIC, 1),
    CAP(HYPERV_SYNIC2, 1),
    CAP(HYPERV_TIME, 1),
    CAP(HYPERV_TLBFLUSH, 1),
    CAP(HYPERV_VAPIC, 1),
    CAP(HYPERV_VP_INDEX, 1),
    CAP(IMMEDIATE_EXIT, 1),
    CAP(INTERNAL_ERROR_DATA, 1),
    CAP(INTR_SHADOW, 1),
    CAP(IOAPIC_POLARITY_IGNORED, 1),
    CAP(IOEVENTFD, 1),
    CAP(IOEVENTFD_ANY_LENGTH, 1),
    CAP(IOEVENTFD_NO_LENGTH, 1),
    CAP(IRQCHIP, 1),
    CAP(IRQFD, 1),
    CAP(IRQFD_RESAMPLE, 1),
    CAP(IRQ_INJECT_STATUS, 1),
    CAP(IRQ_ROUTING, KVM_MAX_IRQ_ROUTES),
    CAP(JOIN_MEMORY_REGIONS_WORKS, 1),
    CAP(KVMCLOCK_CTRL, 1),
    CAP(MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET),
    CAP(MAX_VCPUS, KVM_MAX_VCPUS),
    CAP_FN(MAX_VCPU_ID, max_vcpu_id),
    CAP(MCE, KVM_MAX_MCE_BANKS),
    CAP(MMU_SHADOW_CACHE_CONTROL, 1),
    CAP(MP_STATE, 1),
    CAP(MSR_PLATFORM_INFO, 1),
    CAP(MULTI_ADDRESS_SPACE, KVM_ADDRESS_SPACE_NUM),
    CAP_FN(NESTED_STATE, nested_state_size),
    CAP(NOP_IO_DELAY, 1),
    CAP(NR_MEMSLOTS, KVM_USER_MEM_SLOTS),
    CAP_FN(NR_VCPUS, nr_vcpus),
    CAP(PIT, 1),
    CAP(PIT2, 1),
    CAP(PIT_STATE2, 1),
    CAP(READONLY_MEM, 1),
    CAP(REINJECT_CONTROL, 1),
    CAP(SET_BOOT_CPU_ID, 1),
    CAP(SET_GUEST_DEBUG, 1),
    CAP(SET_GUEST_DEBUG2, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_SW_BP |
                              KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP |
                              KVM_GUESTDBG_BLOCKIRQ),
    CAP(SET_IDENTITY_MAP_ADDR, 1),
    CAP(SET_TSS_ADDR, 1),
    CAP(SIGNAL_MSI, 1),
    CAP(SPLIT_IRQCHIP, 1),
    CAP(SREGS2, 1),
    CAP(STEAL_TIME, 1),
    CAP(SYNC_MMU, 1),
    CAP(SYNC_REGS, KVM_SYNC_X86_VALID_FIELDS),
    CAP(SYSTEM_EVENT_DATA, 1),
    CAP(SYS_ATTRIBUTES, 1),
    CAP(SYS_HYPERV_CPUID, 1),
    CAP(TSC_CONTROL, 1),
    CAP(TSC_DEADLINE_TIMER, 1),
    CAP(USER_MEMORY, 1),
    CAP(USER_NMI, 1),
    CAP(VAPIC, 1),
    CAP(VCPU_ATTRIBUTES, 1),
    CAP(VCPU_EVENTS, 1),
    CAP(VM_TSC_CONTROL, 1),
    CAP(X2APIC_API, KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK),
    CAP(X86_DISABLE_EXITS, KVM_X86_DISABLE_EXITS_OFFERED),
    CAP(X86_MSR_FILTER, 1),
    CAP(X86_ROBUST_SINGLESTEP, 1),
    CAP(X86_SMM, 1),
    CAP(X86_TRIPLE_FAULT_EVENT, 1),
    CAP(X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_FILTER),
    CAP(XCRS, 1),
    CAP(XSAVE, 1),
    CAP_FN(XSAVE2, xsave2_size),
};

long kvm_check_extension(struct kvm *kvm, long number)
{
    unsigned i;

    for (i = 0; i < ARRAY_SIZE(capabilities); i++)
        if (capabilities[i].number == number)
            return capabilities[i].get ? capabilities[i].get(kvm) : capabilities[i].value;
    return 0;
}

/* ---- KVM_ENABLE_CAP on a VM: arg 0 within a mask, then a store ---- */
static int set_dirty_log_protect(struct kvm *kvm, uint64_t arg)
{
    if ((arg & KVM_DIRTY_LOG_INITIALLY_SET) && !(arg & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE))
        return because(-EINVAL, "KVM_DIRTY_LOG_INITIALLY_SET alone");
    kvm->manual_dirty_log_protect = arg & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
    kvm->dirty_log_initially_set = arg & KVM_DIRTY_LOG_INITIALLY_SET;
    return 0;
}

static int set_disabled_quirks(struct kvm *kvm, uint64_t arg)
{
    kvm->arch.disabled_quirks = arg;
    return 0;
}

static int set_split_irqchip(struct kvm *kvm, uint64_t arg)
{
    int r;

    if (arg > KVM_MAX_IRQ_ROUTES)
        return because(-EINVAL, "%llu reserved routes", (unsigned long long)arg);
    pthread_mutex_lock(&kvm->lock);
    if (kvm->arch.irqchip_kernel || kvm->arch.irqchip_split)
        r = because(-EEXIST, "there is an interrupt controller");
    else if (kvm->created_vcpus)
        r = because(-EINVAL, "vCPUs exist");
    else
        r = kvm_setup_empty_irq_routing(kvm);
    if (!r) {
        kvm->arch.irqchip_split = true;
        atomic_store(&kvm->arch.nr_irqs_reserved, (int)arg);
    }
    pthread_mutex_unlock(&kvm->lock);
    return r;
}

static int set_x2apic_api(struct kvm *kvm, uint64_t arg)
{
    kvm->arch.x2apic_format |= !!(arg & KVM_X2APIC_API_USE_32BIT_IDS);
    kvm->arch.x2apic_broadcast_quirk_disabled |= !!(arg & KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK);
    return 0;
}

static int set_platform_info(struct kvm *kvm, uint64_t arg)
{
    kvm->arch.guest_can_read_msr_platform_info = arg;
    return 0;
}

static int set_exception_payload(struct kvm *kvm, uint64_t arg)
{
    kvm->arch.exception_payload_enabled = arg;
    return 0;
}

static int set_exit_hypercall(struct kvm *kvm, uint64_t arg)
{
    kvm->arch.hypercall_exit_enabled = (uint32_t)arg;
    return 0;
}

static int set_exit_on_emulation_failure(struct kvm *kvm, uint64_t arg)
{
    kvm->arch.exit_on_emulation_error = arg;
    return 0;
}

/* Bits add up. A vCPU's controls are set when it is made. */
static int set_disabled_exits(struct kvm *kvm, uint64_t arg)
{
    int r = 0;

    pthread_mutex_lock(&kvm->lock);
    if (kvm->created_vcpus)
        r = because(-EINVAL, "vCPUs exist");
    else
        kvm->arch.disabled_exits |= (uint32_t)arg;
    pthread_mutex_unlock(&kvm->lock);
    return r;
}

static int set_triple_fault_event(struct kvm *kvm, uint64_t arg)
{
    kvm->arch.triple_fault_event = arg;
    return 0;
}

static int set_user_space_msr(struct kvm *kvm, uint64_t arg)
{
    kvm->arch.user_space_msr_mask = (uint32_t)arg;
    return 0;
}

static int set_max_vcpu_id(struct kvm *kvm, uint64_t arg)
{
    int r = -EINVAL;

    if (arg > KVM_MAX_VCPU_IDS)
        return because(-EINVAL, "%llu, at most %u", (unsigned long long)arg, KVM_MAX_VCPU_IDS);
    pthread_mutex_lock(&kvm->lock);
    if (kvm->arch.max_vcpu_ids == arg) {
        r = 0;
    } else if (!kvm->arch.max_vcpu_ids) {
        kvm->arch.max_vcpu_ids = (uint32_t)arg;
        r = 0;
    }
    pthread_mutex_unlock(&kvm->lock);
    return r;
}

static const struct vm_cap {
    int number;
    uint64_t allowed; /* bits of arg 0 */
    int (*set)(struct kvm *, uint64_t arg);
} vm_caps[] = {
    {KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET,
     set_dirty_log_protect},
    {KVM_CAP_DIRTY_LOG_RING, ~0ull, kvm_vm_ioctl_enable_dirty_log_ring},
    {KVM_CAP_DIRTY_LOG_RING_ACQ_REL, ~0ull, kvm_vm_ioctl_enable_dirty_log_ring},
    {KVM_CAP_DISABLE_QUIRKS, ~0ull, set_disabled_quirks},
    {KVM_CAP_DISABLE_QUIRKS2, KVM_X86_VALID_QUIRKS, set_disabled_quirks},
    {KVM_CAP_SPLIT_IRQCHIP, ~0ull, set_split_irqchip},
    {KVM_CAP_X2APIC_API, KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, set_x2apic_api},
    {KVM_CAP_MSR_PLATFORM_INFO, ~0ull, set_platform_info},
    {KVM_CAP_EXCEPTION_PAYLOAD, ~0ull, set_exception_payload},
    {KVM_CAP_EXIT_HYPERCALL, KVM_EXIT_HYPERCALL_VALID_MASK, set_exit_hypercall},
    {KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1, set_exit_on_emulation_failure},
    {KVM_CAP_X86_DISABLE_EXITS, KVM_X86_DISABLE_EXITS_OFFERED, set_disabled_exits},
    {KVM_CAP_X86_TRIPLE_FAULT_EVENT, ~0ull, set_triple_fault_event},
    {KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_FILTER,
     set_user_space_msr},
    {KVM_CAP_MAX_VCPU_ID, ~0ull, set_max_vcpu_id},
};

long kvm_vm_enable_cap(struct ioctl_call *c)
{
    const struct kvm_enable_cap *cap = c->data;
    unsigned i;

    if (cap->flags)
        return because(-EINVAL, "unknown flags 0x%x", cap->flags);
    for (i = 0; i < ARRAY_SIZE(vm_caps); i++) {
        if (vm_caps[i].number != (int)cap->cap)
            continue;
        if (cap->args[0] & ~vm_caps[i].allowed)
            return because(-EINVAL, "capability %u: 0x%llx, allowed are 0x%llx", cap->cap,
                           (unsigned long long)cap->args[0], (unsigned long long)vm_caps[i].allowed);
        return vm_caps[i].set(c->kvm, cap->args[0]);
    }
    return because(-EINVAL, "capability %u cannot be enabled on a VM", cap->cap);
}

long kvm_vcpu_enable_cap(struct ioctl_call *c)
{
    const struct kvm_enable_cap *cap = c->data;

    if (cap->flags)
        return because(-EINVAL, "unknown flags 0x%x", cap->flags);
    switch (cap->cap) {
    case KVM_CAP_ENFORCE_PV_FEATURE_CPUID:
        c->vcpu->arch.pv_cpuid_enforce = cap->args[0];
        return 0;
    case KVM_CAP_HYPERV_ENFORCE_CPUID:
        c->vcpu->arch.hv.enforce = cap->args[0];
        return 0;
    case KVM_CAP_HYPERV_SYNIC:
    case KVM_CAP_HYPERV_SYNIC2:
        if (cap->cap == KVM_CAP_HYPERV_SYNIC2 && cap->args[0])
            return because(-EINVAL, "argument 0x%llx, must be 0", (unsigned long long)cap->args[0]);
        if (!kvm_arch_can_set_irq(c->kvm))
            return because(-EINVAL, "no interrupt controller");
        return kvm_hv_activate_synic(c->vcpu, cap->cap == KVM_CAP_HYPERV_SYNIC2);
    }
    return because(-EINVAL, "capability %u cannot be enabled on a vCPU", cap->cap);
}
