/* SPDX-License-Identifier: MIT
 * test_pic.c: the two 8259A of a PC (8259A datasheet). */
#include "irq_vm.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void init_pics(struct kvm_vcpu *v, uint8_t icw4)
{
    static const uint16_t base[] = {0x20, 0xa0};

    for (int i = 0; i < 2; i++) {
        out8(v, base[i], 0x11);
        out8(v, base[i] + 1, i ? 0x28 : 0x20);
        out8(v, base[i] + 1, i ? 2 : 4);
        out8(v, base[i] + 1, icw4);
    }
}

static struct kvm *pic_vm(uint8_t icw4)
{
    struct kvm *kvm = vm_new(1);

    init_pics(kvm->vcpus[0], icw4);
    return kvm;
}

static int line(struct kvm *kvm, int irq, int level)
{
    return kvm_pic_set_irq(kvm->arch.vpic, irq, KVM_USERSPACE_IRQ_SOURCE_ID, level);
}

static void pulse(struct kvm *kvm, int irq)
{
    line(kvm, irq, 1);
    line(kvm, irq, 0);
}

static int take(struct kvm *kvm)
{
    return kvm_cpu_get_interrupt(kvm->vcpus[0]);
}

static void vectors_and_priorities(void **state)
{
    struct kvm *kvm = pic_vm(1);
    struct kvm_vcpu *v = kvm->vcpus[0];

    assert_int_equal(take(kvm), -1);
    pulse(kvm, 4);
    pulse(kvm, 1);
    pulse(kvm, 12);
    assert_int_equal(in8(v, 0x20), 1 << 4 | 1 << 1 | 1 << 2); /* IRR */
    assert_int_equal(take(kvm), 0x21);
    assert_int_equal(take(kvm), -1); /* in service */
    out8(v, 0x20, 0x0b);
    assert_int_equal(in8(v, 0x20), 1 << 1); /* ISR */
    out8(v, 0x20, 0x20);                    /* EOI */
    assert_int_equal(take(kvm), 0x2c);      /* by the cascade, before 4 */
    out8(v, 0xa0, 0x20);
    out8(v, 0x20, 0x20);
    assert_int_equal(take(kvm), 0x24);
    pulse(kvm, 0); /* nests */
    assert_int_equal(take(kvm), 0x20);
    out8(v, 0x20, 0x64); /* specific EOI of 4 */
    out8(v, 0x20, 0x0b);
    assert_int_equal(in8(v, 0x20), 1);
    vm_free(kvm);
}

static void mask_and_spurious(void **state)
{
    struct kvm *kvm = pic_vm(1);
    struct kvm_vcpu *v = kvm->vcpus[0];

    out8(v, 0x21, 0x08);
    assert_int_equal(in8(v, 0x21), 0x08);
    assert_int_equal(line(kvm, 3, 1), -1);
    assert_false(kvm_cpu_has_interrupt(v));
    out8(v, 0x21, 0);
    assert_true(kvm_cpu_has_interrupt(v));
    out8(v, 0x4d0, 0x08); /* level: it may go away */
    line(kvm, 3, 0);
    line(kvm, 3, 1);
    line(kvm, 3, 0);
    assert_int_equal(kvm_pic_read_irq(kvm), 0x27);
    pulse(kvm, 10);
    out8(v, 0xa1, 0xff); /* the slave takes its request back between the INTAs */
    assert_int_equal(kvm_pic_read_irq(kvm), 0x2f);
    vm_free(kvm);
}

static void level_triggered(void **state)
{
    struct kvm *kvm = pic_vm(1);
    struct kvm_vcpu *v = kvm->vcpus[0];

    out8(v, 0x4d0, 0xff);
    assert_int_equal(in8(v, 0x4d0), 0xf8); /* 0-2 are edge */
    out8(v, 0x4d1, 0xff);
    assert_int_equal(in8(v, 0x4d1), 0xde);
    line(kvm, 5, 1);
    assert_int_equal(take(kvm), 0x25);
    assert_int_equal(take(kvm), -1);
    out8(v, 0x20, 0x20);
    assert_int_equal(take(kvm), 0x25); /* still up */
    line(kvm, 5, 0);
    out8(v, 0x20, 0x20);
    assert_int_equal(take(kvm), -1);
    vm_free(kvm);
}

static void auto_eoi_and_rotation(void **state)
{
    struct kvm *kvm = pic_vm(3);
    struct kvm_vcpu *v = kvm->vcpus[0];

    pulse(kvm, 3);
    assert_int_equal(take(kvm), 0x23);
    out8(v, 0x20, 0x0b);
    assert_int_equal(in8(v, 0x20), 0);
    init_pics(v, 1);
    pulse(kvm, 3);
    assert_int_equal(take(kvm), 0x23);
    out8(v, 0x20, 0xa0); /* rotate on EOI: 3 is lowest now, 4 highest */
    pulse(kvm, 3);
    pulse(kvm, 4);
    pulse(kvm, 1);
    assert_int_equal(take(kvm), 0x24);
    out8(v, 0x20, 0x20);
    assert_int_equal(take(kvm), 0x21);
    out8(v, 0x20, 0x20);
    assert_int_equal(take(kvm), 0x23);
    out8(v, 0x20, 0x20);
    out8(v, 0x20, 0xc0 | 6); /* set priority: 7 highest */
    pulse(kvm, 0);
    pulse(kvm, 7);
    assert_int_equal(take(kvm), 0x27);
    vm_free(kvm);
}

static void special_mask_and_poll(void **state)
{
    struct kvm *kvm = pic_vm(1);
    struct kvm_vcpu *v = kvm->vcpus[0];

    pulse(kvm, 1);
    assert_int_equal(take(kvm), 0x21);
    pulse(kvm, 5);
    assert_int_equal(take(kvm), -1);
    out8(v, 0x21, 1 << 1); /* special mask mode: a masked one in service holds nobody up */
    out8(v, 0x20, 0x68);
    assert_int_equal(take(kvm), 0x25);
    init_pics(v, 1);
    out8(v, 0x20, 0x0c);
    assert_int_equal(in8(v, 0x20), 7); /* nothing */
    pulse(kvm, 6);
    out8(v, 0x20, 0x0c);
    assert_int_equal(in8(v, 0x20), 0x86);
    out8(v, 0x20, 0x0b);
    assert_int_equal(in8(v, 0x20), 1 << 6);
    vm_free(kvm);
}

static void lint0_decides(void **state)
{
    struct kvm *kvm = pic_vm(1);
    struct kvm_vcpu *v = kvm->vcpus[0];

    atomic_store(&mock_kicks, 0);
    pulse(kvm, 4);
    assert_int_equal(mock_kicks, 1);
    apic_w(v, APIC_LVT0, APIC_LVT_MASKED | APIC_DM_EXTINT);
    assert_false(kvm_cpu_has_interrupt(v));
    apic_on(v);
    apic_w(v, APIC_LVT0, APIC_DM_EXTINT);
    assert_true(kvm_cpu_has_interrupt(v));
    assert_int_equal(kvm_lapic_set_base(v, APIC_DEFAULT_PHYS_BASE | MSR_IA32_APICBASE_BSP), 0); /* APIC off: a wire */
    assert_true(kvm_cpu_has_interrupt(v));
    assert_int_equal(take(kvm), 0x24);
    vm_free(kvm);
}

static void state_round_trip(void **state)
{
    struct kvm *a = pic_vm(1), *b = vm_new(1);

    pulse(a, 4);
    pulse(a, 9);
    out8(a->vcpus[0], 0x21, 0x40);
    out8(a->vcpus[0], 0x4d1, 0x04);
    assert_int_equal(take(a), 0x29);
    for (unsigned chip = 0; chip < 2; chip++) {
        struct kvm_irqchip s = {.chip_id = chip}, t = {.chip_id = chip};

        assert_int_equal(kvm_vm_ioctl_get_irqchip(a, &s), 0);
        assert_int_equal(kvm_vm_ioctl_set_irqchip(b, &s), 0);
        assert_int_equal(kvm_vm_ioctl_get_irqchip(b, &t), 0);
        assert_memory_equal(&s.chip.pic, &t.chip.pic, sizeof(s.chip.pic));
    }
    assert_int_equal(take(b), -1);
    out8(b->vcpus[0], 0xa0, 0x20);
    out8(b->vcpus[0], 0x20, 0x20);
    assert_int_equal(take(b), 0x24);
    vm_free(a);
    vm_free(b);
}

static void odd_accesses(void **state)
{
    struct kvm *kvm = pic_vm(1);
    struct kvm_vcpu *v = kvm->vcpus[0];
    uint16_t word = 0;

    assert_int_equal(kvm_io_bus_read(v, KVM_PIO_BUS, 0x20, 2, &word), 0); /* bytes only: nothing there */
    assert_int_equal(word, 0xffff);
    assert_int_equal(kvm_io_bus_write(v, KVM_PIO_BUS, 0x20, 2, &word), 0);
    assert_int_equal(kvm_io_bus_read(v, KVM_PIO_BUS, 0x21, 2, &word), -EOPNOTSUPP);
    assert_int_equal(line(kvm, 16, 1), -1);
    assert_int_equal(line(kvm, -1, 1), -1);
    vm_free(kvm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vectors_and_priorities), cmocka_unit_test(mask_and_spurious),
        cmocka_unit_test(level_triggered),        cmocka_unit_test(auto_eoi_and_rotation),
        cmocka_unit_test(special_mask_and_poll),  cmocka_unit_test(lint0_decides),
        cmocka_unit_test(state_round_trip),       cmocka_unit_test(odd_accesses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
