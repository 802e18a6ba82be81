/* SPDX-License-Identifier: MIT
 * test_ioapic.c: the I/O APIC (82093AA datasheet) with local APICs behind it. */
#include "irq_vm.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int line(struct kvm *kvm, unsigned pin, int level)
{
    return kvm_ioapic_set_irq(kvm->arch.vioapic, (int)pin, KVM_USERSPACE_IRQ_SOURCE_ID, level);
}

static bool remote_irr(struct kvm_vcpu *v, unsigned pin)
{
    return io_r(v, 0x10 + 2 * pin) >> 14 & 1;
}

static void registers(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];
    uint64_t wide = 0;

    assert_int_equal(io_r(v, 1), 0x170011);
    io_w(v, 0, 0x0f000000);
    assert_int_equal(io_r(v, 0), 0x0f000000);
    assert_int_equal(io_r(v, 2), 0x0f000000);
    for (unsigned pin = 0; pin < 24; pin++)
        assert_int_equal(io_r(v, 0x10 + 2 * pin), 0x10000);
    io_w(v, 0x10, 0xffffffff);
    assert_int_equal(io_r(v, 0x10), 0x1ffff & ~0x5000u); /* delivery status and remote IRR are the chip's */
    for (unsigned reg = 3; reg < 0x100; reg++)           /* no index does harm */
        if (reg < 0x10 || reg > 0x3f) {
            io_w(v, reg, 0xffffffff);
            io_r(v, reg);
        }
    assert_int_equal(kvm_io_bus_read(v, KVM_MMIO_BUS, 0xfec00000, 8, &wide), 0);
    assert_int_equal(kvm_io_bus_read(v, KVM_MMIO_BUS, 0xfec00100, 4, &wide), -EOPNOTSUPP);
    vm_free(kvm);
}

static void edge(void **state)
{
    struct kvm *kvm = vm_new(2);
    struct kvm_vcpu *v = kvm->vcpus[1];

    apic_on(v);
    assert_int_equal(line(kvm, 5, 1), -1); /* masked */
    line(kvm, 5, 0);
    io_redir(v, 5, 0x41 | REDIR_DEST(1));
    assert_false(apic_bit(v, APIC_IRR, 0x41)); /* an edge that met a mask is lost */
    assert_int_equal(line(kvm, 5, 1), 1);
    assert_int_equal(line(kvm, 5, 1), 0); /* no edge */
    assert_int_equal(kvm_get_apic_interrupt(v), 0x41);
    assert_false(apic_bit(v, APIC_TMR, 0x41));
    apic_w(v, APIC_EOI, 0);
    assert_int_equal(kvm_apic_has_interrupt(v), -1);
    line(kvm, 5, 0);
    assert_int_equal(line(kvm, 5, 1), 1);
    vm_free(kvm);
}

static void level_is_delivered_again(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];

    apic_on(v);
    io_redir(v, 5, 0x41 | REDIR_LEVEL);
    assert_true(kvm_ioapic_handles_vector(kvm, 0x41));
    assert_false(kvm_ioapic_handles_vector(kvm, 0x42));
    line(kvm, 5, 1);
    assert_true(remote_irr(v, 5));
    assert_int_equal(kvm_get_apic_interrupt(v), 0x41);
    assert_true(apic_bit(v, APIC_TMR, 0x41));
    assert_int_equal(kvm_apic_has_interrupt(v), -1);
    apic_w(v, APIC_EOI, 0); /* still up */
    assert_int_equal(kvm_get_apic_interrupt(v), 0x41);
    assert_true(remote_irr(v, 5));
    line(kvm, 5, 0);
    apic_w(v, APIC_EOI, 0);
    assert_false(remote_irr(v, 5));
    assert_int_equal(kvm_apic_has_interrupt(v), -1);
    vm_free(kvm);
}

static unsigned acks;
static void acked(struct kvm_irq_ack_notifier *n)
{
    acks++;
}

/* Only a restored APIC has the bit beside our IOAPIC, whose version has no EOI register. */
static void directed_eoi(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];
    struct kvm_irq_ack_notifier n = {.gsi = 5, .irq_acked = acked};

    apic_on(v);
    kvm_register_irq_ack_notifier(kvm, &n);
    io_redir(v, 5, 0x41 | REDIR_LEVEL);
    apic_set(v->arch.apic, APIC_SPIV, apic_r(v, APIC_SPIV) | APIC_SPIV_DIRECTED_EOI);
    line(kvm, 5, 1);
    assert_int_equal(kvm_get_apic_interrupt(v), 0x41);
    apic_w(v, APIC_EOI, 0);
    assert_int_equal(acks, 1);
    assert_true(remote_irr(v, 5));
    assert_int_equal(kvm_apic_has_interrupt(v), -1);
    kvm_unregister_irq_ack_notifier(kvm, &n);
    vm_free(kvm);
}

static void level_masked_then_unmasked(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];

    apic_on(v);
    io_redir(v, 5, 0x41 | REDIR_LEVEL | REDIR_MASKED);
    line(kvm, 5, 1);
    assert_int_equal(kvm_apic_has_interrupt(v), -1);
    io_redir(v, 5, 0x41 | REDIR_LEVEL);
    assert_int_equal(kvm_get_apic_interrupt(v), 0x41);
    io_redir(v, 5, 0x41); /* to edge: remote IRR is freed */
    assert_false(remote_irr(v, 5));
    vm_free(kvm);
}

static void sources_share_a_line(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];

    apic_on(v);
    io_redir(v, 9, 0x49 | REDIR_LEVEL);
    kvm_ioapic_set_irq(kvm->arch.vioapic, 9, KVM_USERSPACE_IRQ_SOURCE_ID, 1);
    kvm_ioapic_set_irq(kvm->arch.vioapic, 9, KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, 1);
    assert_int_equal(kvm_get_apic_interrupt(v), 0x49);
    kvm_ioapic_set_irq(kvm->arch.vioapic, 9, KVM_USERSPACE_IRQ_SOURCE_ID, 0);
    apic_w(v, APIC_EOI, 0); /* the other source holds it */
    assert_int_equal(kvm_get_apic_interrupt(v), 0x49);
    kvm_ioapic_set_irq(kvm->arch.vioapic, 9, KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, 0);
    apic_w(v, APIC_EOI, 0);
    assert_int_equal(kvm_apic_has_interrupt(v), -1);
    vm_free(kvm);
}

static void modes(void **state)
{
    struct kvm *kvm = vm_new(3);
    struct kvm_vcpu *v = kvm->vcpus[0];

    for (int i = 0; i < 3; i++) {
        apic_on(kvm->vcpus[i]);
        apic_w(kvm->vcpus[i], APIC_LDR, 1u << (24 + i));
    }
    io_redir(v, 3, 4u << 8 | REDIR_DEST(2)); /* NMI */
    line(kvm, 3, 1);
    assert_int_equal(kvm->vcpus[2]->arch.nmi_queued, 1);
    io_redir(v, 4, 0x44 | 1u << 8 | 1u << 11 | REDIR_DEST(6)); /* lowest of 1 and 2 */
    for (int n = 0; n < 4; n++) {
        line(kvm, 4, 1);
        line(kvm, 4, 0);
        assert_int_equal(kvm_get_apic_interrupt(kvm->vcpus[1 + n % 2]), 0x44);
        apic_w(kvm->vcpus[1 + n % 2], APIC_EOI, 0);
    }
    io_redir(v, 6, 7u << 8); /* ExtINT is not a message */
    assert_int_equal(line(kvm, 6, 1), -1);
    io_redir(v, 7, 0x47 | 1u << 11 | REDIR_DEST(0xff));
    assert_int_equal(line(kvm, 7, 1), 3);
    vm_free(kvm);
}

static void rtc_reports_coalescing(void **state)
{
    struct kvm *kvm = vm_new(2);
    struct kvm_vcpu *v = kvm->vcpus[0];

    apic_on(v);
    io_redir(v, 8, 0x48);
    assert_int_equal(kvm_ioapic_set_irq_status(kvm->arch.vioapic, 8, 0, 1, true), 1);
    kvm_ioapic_set_irq_status(kvm->arch.vioapic, 8, 0, 0, true);
    assert_int_equal(kvm_ioapic_set_irq_status(kvm->arch.vioapic, 8, 0, 1, true), 0);
    kvm_ioapic_set_irq_status(kvm->arch.vioapic, 8, 0, 0, true);
    assert_int_equal(kvm_get_apic_interrupt(v), 0x48);
    apic_w(v, APIC_EOI, 0);
    assert_int_equal(kvm_ioapic_set_irq_status(kvm->arch.vioapic, 8, 0, 1, true), 1);
    vm_free(kvm);
}

static void state_round_trip(void **state)
{
    struct kvm *a = vm_new(1), *b = vm_new(1);
    struct kvm_irqchip s = {.chip_id = KVM_IRQCHIP_IOAPIC}, t = {.chip_id = KVM_IRQCHIP_IOAPIC};
    struct kvm_vcpu *v = b->vcpus[0];

    apic_on(v);
    io_redir(a->vcpus[0], 5, 0x41 | REDIR_LEVEL | REDIR_MASKED);
    io_redir(a->vcpus[0], 6, 0x42);
    apic_on(a->vcpus[0]);
    line(a, 5, 1);
    line(a, 6, 1); /* delivered there, not again here */
    assert_int_equal(kvm_vm_ioctl_get_irqchip(a, &s), 0);
    assert_int_equal(s.chip.ioapic.base_address, 0xfec00000);
    assert_int_equal(s.chip.ioapic.irr, 1 << 5);
    assert_int_equal(kvm_vm_ioctl_set_irqchip(b, &s), 0);
    assert_int_equal(kvm_vm_ioctl_get_irqchip(b, &t), 0);
    assert_memory_equal(&s.chip.ioapic, &t.chip.ioapic, sizeof(s.chip.ioapic));
    assert_int_equal(kvm_apic_has_interrupt(v), -1);
    io_redir(v, 5, 0x41 | REDIR_LEVEL);
    assert_int_equal(kvm_get_apic_interrupt(v), 0x41);
    s.chip_id = 3;
    assert_int_equal(kvm_vm_ioctl_get_irqchip(a, &s), -EINVAL);
    a->arch.irqchip_kernel = false;
    assert_int_equal(kvm_vm_ioctl_get_irqchip(a, &t), -ENXIO);
    vm_free(a);
    vm_free(b);
}

/* A device thread raises and lowers a level line at its own pace while the guest takes and ends interrupts: each time
 * the line is up and the guest has unmasked it, an interrupt comes; none comes for ever after the line fell. */
#define ROUNDS 5000
struct race {
    struct kvm *kvm;
    _Atomic uint32_t work, done;
};

static void *device(void *arg)
{
    struct race *r = arg;

    for (uint32_t i = 1; i <= ROUNDS; i++) {
        uint32_t seen;

        atomic_store(&r->work, i);
        line(r->kvm, 5, 1);
        while ((seen = atomic_load(&r->done)) != i)
            os_futex_wait(&r->done, seen, UINT64_MAX);
        line(r->kvm, 5, 0);
    }
    return NULL;
}

static void level_race_with_eoi(void **state)
{
    struct race r = {.kvm = vm_new(1)};
    struct kvm_vcpu *v = r.kvm->vcpus[0];
    pthread_t thread;

    apic_on(v);
    io_redir(v, 5, 0x41 | REDIR_LEVEL);
    assert_int_equal(os_thread_start("device", device, &r, &thread), 0);
    while (atomic_load(&r.done) < ROUNDS) {
        const uint32_t seen = atomic_load(&v->wake);
        const int vector = kvm_get_apic_interrupt(v);

        if (vector < 0) { /* a lost interrupt would hang both */
            assert_int_not_equal(os_futex_wait(&v->wake, seen, os_clock_ns() + 5000000000ull), -ETIMEDOUT);
            continue;
        }
        assert_int_equal(vector, 0x41);
        atomic_store(&r.done, atomic_load(&r.work)); /* may be spurious, as on hardware */
        os_futex_wake(&r.done, 1);
        apic_w(v, APIC_EOI, 0);
    }
    os_thread_join(&thread);
    while (kvm_get_apic_interrupt(v) >= 0)
        apic_w(v, APIC_EOI, 0);
    assert_int_equal(kvm_apic_has_interrupt(v), -1);
    assert_false(remote_irr(v, 5));
    vm_free(r.kvm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(registers),
        cmocka_unit_test(edge),
        cmocka_unit_test(level_is_delivered_again),
        cmocka_unit_test(directed_eoi),
        cmocka_unit_test(level_masked_then_unmasked),
        cmocka_unit_test(sources_share_a_line),
        cmocka_unit_test(modes),
        cmocka_unit_test(rtc_reports_coalescing),
        cmocka_unit_test(state_round_trip),
        cmocka_unit_test(level_race_with_eoi),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
