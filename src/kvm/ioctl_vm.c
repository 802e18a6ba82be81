/* SPDX-License-Identifier: MIT
 * ioctl_vm.c: the ioctls of a VM's descriptor. */
#include <errno.h>
#include <string.h>
#include "ioctl.h"

static bool irqchip_in_kernel(const struct kvm *kvm)
{
    return kvm->arch.irqchip_kernel || kvm->arch.irqchip_split;
}

/* ---- memory, vCPUs ---- */
static long vm_create_vcpu(struct ioctl_call *c)
{
    return kvm_vm_ioctl_create_vcpu(c->kvm, (uint32_t)c->arg);
}

static long vm_check_extension(struct ioctl_call *c)
{
    return kvm_check_extension(c->kvm, (long)c->arg);
}

static long vm_set_user_memory_region(struct ioctl_call *c)
{
    return kvm_set_memory_region(c->kvm, c->data);
}

static long vm_get_dirty_log(struct ioctl_call *c)
{
    return kvm_vm_ioctl_get_dirty_log(c->kvm, c->data);
}

static long vm_clear_dirty_log(struct ioctl_call *c)
{
    return kvm_vm_ioctl_clear_dirty_log(c->kvm, c->data);
}

static long vm_reset_dirty_rings(struct ioctl_call *c)
{
    return kvm_vm_ioctl_reset_dirty_pages(c->kvm);
}

/* Three pages for a real-mode TSS that VMX without "unrestricted guest" needs. */
static long vm_set_tss_addr(struct ioctl_call *c)
{
    if (c->arg > 0xffffffffull - 3 * PAGE_SIZE + 1)
        return because(-EINVAL, "0x%lx: three pages do not fit below 4G", c->arg);
    c->kvm->arch.tss_addr = c->arg;
    return 0;
}

static long vm_set_identity_map_addr(struct ioctl_call *c)
{
    const uint64_t addr = *(uint64_t *)c->data;
    long r = 0;

    pthread_mutex_lock(&c->kvm->lock);
    if (c->kvm->created_vcpus)
        r = because(-EINVAL, "vCPUs exist");
    else
        c->kvm->arch.identity_map_addr = addr ? addr : 0xfffbc000;
    pthread_mutex_unlock(&c->kvm->lock);
    return r;
}

/* The size of shadow paging's cache; api.rst: at least 64. */
static long vm_set_nr_mmu_pages(struct ioctl_call *c)
{
    if (c->arg < 64)
        return because(-EINVAL, "%lu pages, at least 64", c->arg);
    c->kvm->arch.n_max_mmu_pages = c->arg;
    return 0;
}

static long vm_get_nr_mmu_pages(struct ioctl_call *c)
{
    return (long)c->kvm->arch.n_max_mmu_pages;
}

/* ---- interrupt controllers ---- */
static int create_irqchip(struct kvm *kvm)
{
    int r;

    if (irqchip_in_kernel(kvm))
        return because(-EEXIST, "there is one");
    if (kvm->created_vcpus)
        return because(-EINVAL, "vCPUs exist");
    r = kvm_pic_init(kvm);
    if (r)
        return r;
    r = kvm_ioapic_init(kvm);
    if (!r) {
        r = kvm_setup_default_irq_routing(kvm);
        if (r)
            kvm_ioapic_destroy(kvm);
    }
    if (r)
        kvm_pic_destroy(kvm);
    else
        kvm->arch.irqchip_kernel = true;
    return r;
}

static long vm_create_irqchip(struct ioctl_call *c)
{
    int r;

    pthread_mutex_lock(&c->kvm->lock);
    r = create_irqchip(c->kvm);
    pthread_mutex_unlock(&c->kvm->lock);
    return r;
}

static long vm_get_irqchip(struct ioctl_call *c)
{
    return kvm_vm_ioctl_get_irqchip(c->kvm, c->data);
}

static long vm_set_irqchip(struct ioctl_call *c)
{
    return kvm_vm_ioctl_set_irqchip(c->kvm, c->data);
}

static long vm_irq_line_status(struct ioctl_call *c)
{
    struct kvm_irq_level *e = c->data;

    if (!irqchip_in_kernel(c->kvm))
        return because(-ENXIO, "no interrupt controller");
    e->status = kvm_set_irq(c->kvm, KVM_USERSPACE_IRQ_SOURCE_ID, e->irq, (int)e->level, true);
    return 0;
}

static long vm_signal_msi(struct ioctl_call *c)
{
    return kvm_send_userspace_msi(c->kvm, c->data);
}

static long vm_set_gsi_routing(struct ioctl_call *c)
{
    const struct kvm_irq_routing *routing = c->data;

    if (!irqchip_in_kernel(c->kvm))
        return because(-EINVAL, "no interrupt controller");
    if (routing->flags)
        return because(-EINVAL, "unknown flags 0x%x", routing->flags);
    return kvm_set_irq_routing(c->kvm, c->tail, c->tail_count, routing->flags);
}

static long vm_irqfd(struct ioctl_call *c)
{
    return kvm_irqfd(c->kvm, c->data);
}

static long vm_ioeventfd(struct ioctl_call *c)
{
    return kvm_ioeventfd(c->kvm, c->data);
}

static long vm_register_coalesced(struct ioctl_call *c)
{
    return kvm_vm_ioctl_register_coalesced_mmio(c->kvm, c->data);
}

static long vm_unregister_coalesced(struct ioctl_call *c)
{
    return kvm_vm_ioctl_unregister_coalesced_mmio(c->kvm, c->data);
}

static long vm_set_boot_cpu_id(struct ioctl_call *c)
{
    long r = 0;

    pthread_mutex_lock(&c->kvm->lock);
    if (c->kvm->created_vcpus)
        r = because(-EBUSY, "vCPUs exist");
    else
        c->kvm->arch.bsp_vcpu_id = (int)c->arg;
    pthread_mutex_unlock(&c->kvm->lock);
    return r;
}

/* ---- PIT ---- */
static long create_pit(struct kvm *kvm, uint32_t flags)
{
    long r = 0;

    pthread_mutex_lock(&kvm->lock);
    if (kvm->arch.vpit) {
        r = because(-EEXIST, "there is one");
    } else if (!kvm->arch.irqchip_kernel) {
        r = because(-ENOENT, "no interrupt controller for its line 0");
    } else {
        kvm->arch.vpit = kvm_create_pit(kvm, flags);
        if (!kvm->arch.vpit)
            r = -ENOMEM;
    }
    pthread_mutex_unlock(&kvm->lock);
    return r;
}

static long vm_create_pit(struct ioctl_call *c)
{
    return create_pit(c->kvm, KVM_PIT_SPEAKER_DUMMY);
}

static long vm_create_pit2(struct ioctl_call *c)
{
    return create_pit(c->kvm, ((struct kvm_pit_config *)c->data)->flags);
}

static long with_pit(struct ioctl_call *c, int (*fn)(struct kvm *, void *))
{
    long r;

    pthread_mutex_lock(&c->kvm->lock);
    r = c->kvm->arch.vpit ? fn(c->kvm, c->data) : because(-ENXIO, "no PIT");
    pthread_mutex_unlock(&c->kvm->lock);
    return r;
}

static int pit_get2(struct kvm *kvm, void *data)
{
    return kvm_get_pit2(kvm, data);
}

static int pit_set2(struct kvm *kvm, void *data)
{
    return kvm_set_pit2(kvm, data);
}

/* The older structure is the channels alone. */
static int pit_get(struct kvm *kvm, void *data)
{
    struct kvm_pit_state2 state;
    const int r = kvm_get_pit2(kvm, &state);

    memcpy(data, state.channels, sizeof(struct kvm_pit_state));
    return r;
}

static int pit_set(struct kvm *kvm, void *data)
{
    struct kvm_pit_state2 state;
    const int r = kvm_get_pit2(kvm, &state);

    memcpy(state.channels, data, sizeof(struct kvm_pit_state));
    return r ? r : kvm_set_pit2(kvm, &state);
}

static int pit_reinject(struct kvm *kvm, void *data)
{
    return kvm_pit_set_reinject(kvm, ((struct kvm_reinject_control *)data)->pit_reinject);
}

static long vm_get_pit(struct ioctl_call *c)
{
    return with_pit(c, pit_get);
}

static long vm_set_pit(struct ioctl_call *c)
{
    return with_pit(c, pit_set);
}

static long vm_get_pit2(struct ioctl_call *c)
{
    return with_pit(c, pit_get2);
}

static long vm_set_pit2(struct ioctl_call *c)
{
    return with_pit(c, pit_set2);
}

static long vm_reinject_control(struct ioctl_call *c)
{
    return with_pit(c, pit_reinject);
}

/* ---- clock and TSC ---- */
static long vm_get_clock(struct ioctl_call *c)
{
    kvm_get_clock(c->kvm, c->data);
    return 0;
}

static long vm_set_clock(struct ioctl_call *c)
{
    return kvm_set_clock(c->kvm, c->data);
}

static long vm_set_tsc_khz(struct ioctl_call *c)
{
    const uint32_t khz = (uint32_t)c->arg;

    if (khz >= KVM_MAX_GUEST_TSC_KHZ)
        return because(-EINVAL, "%u kHz are too many", khz);
    c->kvm->arch.default_tsc_khz = khz ? khz : cpu_tsc_khz();
    return 0;
}

static long vm_get_tsc_khz(struct ioctl_call *c)
{
    return (long)c->kvm->arch.default_tsc_khz;
}

static long vm_set_msr_filter(struct ioctl_call *c)
{
    return kvm_set_msr_filter(c->kvm, c->data);
}

static long vm_hyperv_eventfd(struct ioctl_call *c)
{
    return kvm_vm_ioctl_hv_eventfd(c->kvm, c->data);
}

/* No type of device that a client could ask for is there: VFIO's is the only one on x86. */
static long vm_create_device(struct ioctl_call *c)
{
    return because(-ENODEV, "no device of type %u", ((struct kvm_create_device *)c->data)->type);
}

static long vm_get_stats_fd(struct ioctl_call *c)
{
    return kvm_vm_stats_fd(c->kvm);
}

#define ROUTING_TAIL TAIL(kvm_irq_routing, nr, struct kvm_irq_routing_entry, KVM_MAX_IRQ_ROUTES, -EINVAL, IN)

const struct ioctl_row vm_ioctls[] = {
    /* number, copied, structure, variable tail, handler, capability */
    ROW(KVM_IRQ_LINE, IN, struct kvm_irq_level, vm_irq_line_status, KVM_CAP_IRQCHIP),
    ROW(KVM_IRQ_LINE_STATUS, INOUT, struct kvm_irq_level, vm_irq_line_status, KVM_CAP_IRQ_INJECT_STATUS),
    ROW(KVM_SIGNAL_MSI, IN, struct kvm_msi, vm_signal_msi, KVM_CAP_SIGNAL_MSI),
    ROW0(KVM_CREATE_VCPU, vm_create_vcpu, CAP_ALWAYS),
    ROW0(KVM_CHECK_EXTENSION, vm_check_extension, KVM_CAP_CHECK_EXTENSION_VM),
    ROW(KVM_ENABLE_CAP, IN, struct kvm_enable_cap, kvm_vm_enable_cap, KVM_CAP_ENABLE_CAP_VM),
    ROW(KVM_SET_USER_MEMORY_REGION, IN, struct kvm_userspace_memory_region, vm_set_user_memory_region,
        KVM_CAP_USER_MEMORY),
    ROW(KVM_GET_DIRTY_LOG, IN, struct kvm_dirty_log, vm_get_dirty_log, CAP_ALWAYS),
    ROW(KVM_CLEAR_DIRTY_LOG, IN, struct kvm_clear_dirty_log, vm_clear_dirty_log, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2),
    ROW0(KVM_RESET_DIRTY_RINGS, vm_reset_dirty_rings, KVM_CAP_DIRTY_LOG_RING),
    ROW0(KVM_SET_TSS_ADDR, vm_set_tss_addr, KVM_CAP_SET_TSS_ADDR),
    ROW(KVM_SET_IDENTITY_MAP_ADDR, IN, uint64_t, vm_set_identity_map_addr, KVM_CAP_SET_IDENTITY_MAP_ADDR),
    ROW0(KVM_SET_NR_MMU_PAGES, vm_set_nr_mmu_pages, KVM_CAP_MMU_SHADOW_CACHE_CONTROL),
    ROW0(KVM_GET_NR_MMU_PAGES, vm_get_nr_mmu_pages, KVM_CAP_MMU_SHADOW_CACHE_CONTROL),
    ROW0(KVM_CREATE_IRQCHIP, vm_create_irqchip, KVM_CAP_IRQCHIP),
    ROW(KVM_GET_IRQCHIP, INOUT, struct kvm_irqchip, vm_get_irqchip, KVM_CAP_IRQCHIP),
    ROW(KVM_SET_IRQCHIP, IN, struct kvm_irqchip, vm_set_irqchip, KVM_CAP_IRQCHIP),
    ROW0(KVM_CREATE_PIT, vm_create_pit, KVM_CAP_PIT),
    ROW(KVM_CREATE_PIT2, IN, struct kvm_pit_config, vm_create_pit2, KVM_CAP_PIT2),
    ROW(KVM_GET_PIT, OUT, struct kvm_pit_state, vm_get_pit, KVM_CAP_PIT),
    ROW(KVM_SET_PIT, IN, struct kvm_pit_state, vm_set_pit, KVM_CAP_PIT),
    ROW(KVM_GET_PIT2, OUT, struct kvm_pit_state2, vm_get_pit2, KVM_CAP_PIT_STATE2),
    ROW(KVM_SET_PIT2, IN, struct kvm_pit_state2, vm_set_pit2, KVM_CAP_PIT_STATE2),
    ROW(KVM_REINJECT_CONTROL, IN, struct kvm_reinject_control, vm_reinject_control, KVM_CAP_REINJECT_CONTROL),
    ROW_TAIL(KVM_SET_GSI_ROUTING, IN, struct kvm_irq_routing, ROUTING_TAIL, vm_set_gsi_routing, KVM_CAP_IRQ_ROUTING),
    ROW(KVM_IRQFD, IN, struct kvm_irqfd, vm_irqfd, KVM_CAP_IRQFD),
    ROW(KVM_IOEVENTFD, IN, struct kvm_ioeventfd, vm_ioeventfd, KVM_CAP_IOEVENTFD),
    ROW(KVM_REGISTER_COALESCED_MMIO, IN, struct kvm_coalesced_mmio_zone, vm_register_coalesced, KVM_CAP_COALESCED_MMIO),
    ROW(KVM_UNREGISTER_COALESCED_MMIO, IN, struct kvm_coalesced_mmio_zone, vm_unregister_coalesced,
        KVM_CAP_COALESCED_MMIO),
    ROW0(KVM_SET_BOOT_CPU_ID, vm_set_boot_cpu_id, KVM_CAP_SET_BOOT_CPU_ID),
    ROW(KVM_GET_CLOCK, OUT, struct kvm_clock_data, vm_get_clock, KVM_CAP_ADJUST_CLOCK),
    ROW(KVM_SET_CLOCK, IN, struct kvm_clock_data, vm_set_clock, KVM_CAP_ADJUST_CLOCK),
    ROW0(KVM_SET_TSC_KHZ, vm_set_tsc_khz, KVM_CAP_VM_TSC_CONTROL),
    ROW0(KVM_GET_TSC_KHZ, vm_get_tsc_khz, KVM_CAP_VM_TSC_CONTROL),
    ROW(KVM_X86_SET_MSR_FILTER, IN, struct kvm_msr_filter, vm_set_msr_filter, KVM_CAP_X86_MSR_FILTER),
    ROW(KVM_HYPERV_EVENTFD, IN, struct kvm_hyperv_eventfd, vm_hyperv_eventfd, KVM_CAP_HYPERV_EVENTFD),
    ROW(KVM_CREATE_DEVICE, INOUT, struct kvm_create_device, vm_create_device, CAP_ALWAYS),
    ROW0(KVM_GET_STATS_FD, vm_get_stats_fd, KVM_CAP_BINARY_STATS_FD),
};
const unsigned vm_ioctls_count = ARRAY_SIZE(vm_ioctls);
