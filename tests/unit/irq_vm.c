/* SPDX-License-Identifier: MIT
 * irq_vm.c: the mocks of irq_vm.h. */
#include "irq_vm.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

_Atomic int mock_kicks, mock_nmis;
bool mock_x2apic = true, mock_tsc_deadline = true;
uint64_t mock_tsc_khz = 2000000;
uint8_t mock_ram[4096];
unsigned kvm_trace_mask;

/* ---- what x86.c and the rest of src/kvm give ---- */
void kvm_trace_write(const char *format, ...) {}
void kvm_stat_io(struct kvm_vcpu *vcpu, bool mmio, uint64_t gpa, bool write, bool user) {}

struct kvm_lapic *vcpu_apic(struct kvm_vcpu *vcpu)
{
    return vcpu->arch.apic;
}

uint64_t kvm_read_l1_tsc_now(struct kvm_vcpu *vcpu)
{
    return (uint64_t)((unsigned __int128)os_clock_ns() * mock_tsc_khz / 1000000) + vcpu->arch.tsc_offset;
}

uint64_t vcpu_tsc_khz(struct kvm_vcpu *vcpu)
{
    return mock_tsc_khz;
}

uint64_t *vcpu_apic_base(struct kvm_vcpu *vcpu)
{
    return &vcpu->arch.apic_base;
}

bool vcpu_cpuid_x2apic(struct kvm_vcpu *vcpu)
{
    return mock_x2apic;
}

bool vcpu_is_bsp(struct kvm_vcpu *vcpu)
{
    return vcpu->vcpu_id == 0;
}

int vcpu_id_of(struct kvm_vcpu *vcpu)
{
    return vcpu->vcpu_id;
}

struct kvm *vcpu_kvm(struct kvm_vcpu *vcpu)
{
    return vcpu->kvm;
}

void kvm_make_request(int req, struct kvm_vcpu *vcpu)
{
    atomic_fetch_or(&vcpu->requests, 1ull << req);
}

void kvm_vcpu_kick(struct kvm_vcpu *vcpu)
{
    atomic_fetch_add(&mock_kicks, 1);
    atomic_fetch_add(&vcpu->wake, 1);
    os_futex_wake(&vcpu->wake, 1);
}

void kvm_inject_nmi(struct kvm_vcpu *vcpu)
{
    atomic_fetch_add(&mock_nmis, 1);
    atomic_fetch_add(&vcpu->arch.nmi_queued, 1);
}

void kvm_vcpu_reset(struct kvm_vcpu *vcpu, bool init_event)
{
    kvm_lapic_reset(vcpu, init_event);
}

void kvm_queue_interrupt(struct kvm_vcpu *vcpu, uint8_t vector, bool soft)
{
    vcpu->arch.interrupt = (struct kvm_queued_interrupt){.injected = true, .soft = soft, .nr = vector};
}

struct kvm_cpuid_entry2 *kvm_find_cpuid_entry(struct kvm_vcpu *vcpu, uint32_t function, uint32_t index)
{
    static struct kvm_cpuid_entry2 leaf1 = {.function = 1};

    leaf1.ecx = mock_tsc_deadline ? 1u << 24 : 0;
    return function == 1 ? &leaf1 : NULL;
}

static struct kvm_segment mock_cs;

static void get_segment(struct kvm_vcpu *vcpu, struct kvm_segment *seg, int nr)
{
    *seg = mock_cs;
}

static void set_segment(struct kvm_vcpu *vcpu, const struct kvm_segment *seg, int nr)
{
    mock_cs = *seg;
    vcpu->arch.smbase = seg->base; /* where the test looks for it */
}

static const struct kvm_x86_ops ops = {.get_segment = get_segment, .set_segment = set_segment};
const struct kvm_x86_ops *kvm_x86_ops = &ops;

void kvm_rip_write(struct kvm_vcpu *vcpu, uint64_t rip)
{
    vcpu->arch.singlestep_rip = rip;
}

int kvm_read_guest(struct kvm *kvm, gpa_t gpa, void *data, size_t len)
{
    if (gpa + len > sizeof(mock_ram))
        return -14;
    memcpy(data, mock_ram + gpa, len);
    return 0;
}

int kvm_write_guest(struct kvm *kvm, gpa_t gpa, const void *data, size_t len)
{
    if (gpa + len > sizeof(mock_ram))
        return -14;
    memcpy(mock_ram + gpa, data, len);
    return 0;
}

/* ---- the VM ---- */
struct kvm *vm_new(int vcpus)
{
    static uint64_t counted[VM_STAT_COUNT];
    struct kvm *kvm = calloc(1, sizeof(*kvm));

    kvm->stat = counted;
    pthread_mutex_init(&kvm->lock, NULL);
    pthread_mutex_init(&kvm->irq_lock, NULL);
    pthread_mutex_init(&kvm->bus_lock, NULL);
    assert_int_equal(kvm_eventfd_init(kvm), 0);
    assert_int_equal(kvm_coalesced_mmio_init(kvm), 0);
    kvm->arch.irqchip_kernel = true;
    assert_int_equal(kvm_pic_init(kvm), 0);
    assert_int_equal(kvm_ioapic_init(kvm), 0);
    assert_int_equal(kvm_setup_default_irq_routing(kvm), 0);
    for (int i = 0; i < vcpus; i++) {
        struct kvm_vcpu *vcpu = calloc(1, sizeof(*vcpu));

        vcpu->kvm = kvm;
        vcpu->vcpu_id = vcpu->vcpu_idx = i;
        vcpu->arch.maxphyaddr = 40;
        vcpu->arch.mp_state = i ? KVM_MP_STATE_UNINITIALIZED : KVM_MP_STATE_RUNNABLE;
        assert_int_equal(kvm_create_lapic(vcpu), 0);
        kvm_lapic_reset(vcpu, false);
        kvm->vcpus[i] = vcpu;
        atomic_store(&kvm->online_vcpus, i + 1);
    }
    atomic_store(&mock_kicks, 0);
    atomic_store(&mock_nmis, 0);
    return kvm;
}

void vm_free(struct kvm *kvm)
{
    kvm_irqfd_release(kvm);
    kvm_io_bus_destroy(kvm);
    kvm_coalesced_mmio_free(kvm);
    for (int i = 0; i < atomic_load(&kvm->online_vcpus); i++) {
        kvm_free_lapic(kvm->vcpus[i]);
        free(kvm->vcpus[i]);
    }
    kvm_irq_destroy(kvm);
    free(kvm);
}

/* ---- registers ---- */
uint32_t apic_r(struct kvm_vcpu *vcpu, unsigned reg)
{
    uint32_t value = 0;
    uint64_t data = 0;

    if (apic_x2apic_mode(vcpu_apic(vcpu))) {
        assert_int_equal(kvm_x2apic_msr_read(vcpu, 0x800 + reg / 16, &data), 0);
        return (uint32_t)data;
    }
    assert_int_equal(kvm_lapic_mmio_read(vcpu, APIC_DEFAULT_PHYS_BASE + reg, 4, &value), 0);
    return value;
}

void apic_w(struct kvm_vcpu *vcpu, unsigned reg, uint32_t value)
{
    if (apic_x2apic_mode(vcpu_apic(vcpu)))
        assert_int_equal(kvm_x2apic_msr_write(vcpu, 0x800 + reg / 16, value), 0);
    else
        assert_int_equal(kvm_lapic_mmio_write(vcpu, APIC_DEFAULT_PHYS_BASE + reg, 4, &value), 0);
}

void apic_on(struct kvm_vcpu *vcpu)
{
    apic_w(vcpu, APIC_SPIV, 0x1ff);
}

void apic_ipi(struct kvm_vcpu *vcpu, uint32_t dest, uint32_t low)
{
    if (apic_x2apic_mode(vcpu_apic(vcpu))) {
        assert_int_equal(kvm_x2apic_msr_write(vcpu, 0x830, (uint64_t)dest << 32 | low), 0);
        return;
    }
    apic_w(vcpu, APIC_ICR2, dest << 24);
    apic_w(vcpu, APIC_ICR, low);
}

bool apic_bit(struct kvm_vcpu *vcpu, unsigned base, unsigned vector)
{
    return apic_r(vcpu, base + vector / 32 * 16) >> vector % 32 & 1;
}

void to_x2apic(struct kvm_vcpu *vcpu)
{
    assert_int_equal(kvm_lapic_set_base(vcpu, *vcpu_apic_base(vcpu) | MSR_IA32_APICBASE_X2APIC), 0);
}

uint32_t io_r(struct kvm_vcpu *vcpu, unsigned reg)
{
    const uint32_t select = reg;
    uint32_t value = 0;

    assert_int_equal(kvm_io_bus_write(vcpu, KVM_MMIO_BUS, 0xfec00000, 4, &select), 0);
    assert_int_equal(kvm_io_bus_read(vcpu, KVM_MMIO_BUS, 0xfec00010, 4, &value), 0);
    return value;
}

void io_w(struct kvm_vcpu *vcpu, unsigned reg, uint32_t value)
{
    const uint32_t select = reg;

    assert_int_equal(kvm_io_bus_write(vcpu, KVM_MMIO_BUS, 0xfec00000, 4, &select), 0);
    assert_int_equal(kvm_io_bus_write(vcpu, KVM_MMIO_BUS, 0xfec00010, 4, &value), 0);
}

void io_redir(struct kvm_vcpu *vcpu, unsigned pin, uint64_t entry)
{
    io_w(vcpu, 0x10 + 2 * pin + 1, (uint32_t)(entry >> 32));
    io_w(vcpu, 0x10 + 2 * pin, (uint32_t)entry);
}

uint8_t in8(struct kvm_vcpu *vcpu, uint16_t port)
{
    uint8_t value = 0;

    assert_int_equal(kvm_io_bus_read(vcpu, KVM_PIO_BUS, port, 1, &value), 0);
    return value;
}

void out8(struct kvm_vcpu *vcpu, uint16_t port, uint8_t value)
{
    assert_int_equal(kvm_io_bus_write(vcpu, KVM_PIO_BUS, port, 1, &value), 0);
}

bool wait_until(bool (*done)(void *), void *arg, unsigned timeout_ms)
{
    const struct timespec pause = {.tv_nsec = 200000};
    const uint64_t end_ns = os_clock_ns() + timeout_ms * 1000000ull;

    while (!done(arg)) {
        if (os_clock_ns() > end_ns)
            return false;
        nanosleep(&pause, NULL);
    }
    return true;
}
