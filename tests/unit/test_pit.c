/* SPDX-License-Identifier: MIT
 * test_pit.c: the interval timer (8254 datasheet): counting modes, latches, gate, interrupts and their reinjection. */
#include "irq_vm.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HZ_ 1193182ull

static void sleep_ns(long ns)
{
    const struct timespec ts = {.tv_nsec = ns};

    nanosleep(&ts, NULL);
}

static struct kvm *pit_vm(void)
{
    struct kvm *kvm = vm_new(1);

    assert_non_null(kvm_create_pit(kvm, KVM_PIT_SPEAKER_DUMMY));
    return kvm;
}

static void program(struct kvm_vcpu *v, unsigned ch, unsigned mode, unsigned count)
{
    out8(v, 0x43, (uint8_t)(ch << 6 | 0x30 | mode << 1));
    out8(v, 0x40 + ch, count & 0xff);
    out8(v, 0x40 + ch, count >> 8 & 0xff);
}

static unsigned latched(struct kvm_vcpu *v, unsigned ch)
{
    unsigned low;

    out8(v, 0x43, (uint8_t)(ch << 6));
    low = in8(v, 0x40 + ch);
    return low | (unsigned)in8(v, 0x40 + ch) << 8;
}

static uint8_t status(struct kvm_vcpu *v, unsigned ch)
{
    out8(v, 0x43, (uint8_t)(0xe0 | 2u << ch)); /* read-back of the status alone */
    return in8(v, 0x40 + ch);
}

/* Ticks that the counter says have gone by, against the clock. */
static void counting_modes(void **state)
{
    struct kvm *kvm = pit_vm();
    struct kvm_vcpu *v = kvm->vcpus[0];

    for (unsigned mode = 0; mode < 6; mode++) {
        const unsigned per_tick = mode == 3 ? 2 : 1;
        uint64_t before_ns, after_ns, low, high;
        unsigned gone;

        out8(v, 0x61, 1);
        before_ns = os_clock_ns();
        program(v, 2, mode, 60000);
        after_ns = os_clock_ns();
        assert_int_equal(status(v, 2) & 0x7f, 0x30 | mode << 1);
        sleep_ns(2000000);
        low = (os_clock_ns() - after_ns) * HZ_ / 1000000000 * per_tick;
        gone = latched(v, 2);
        high = (os_clock_ns() - before_ns) * HZ_ / 1000000000 * per_tick + 2;
        if (high < 60000) { /* else the host slept through it */
            gone = 60000 - gone;
            assert_in_range(gone, low > 2 ? low - 2 : 0, high + 2);
        }
    }
    vm_free(kvm);
}

static void terminal_count(void **state)
{
    struct kvm *kvm = pit_vm();
    struct kvm_vcpu *v = kvm->vcpus[0];
    uint64_t start_ns;
    unsigned left;

    out8(v, 0x61, 1);
    start_ns = os_clock_ns();
    program(v, 2, 0, 6000); /* 5 ms: OUT is low until then */
    if (os_clock_ns() - start_ns < 4000000)
        assert_false(in8(v, 0x61) & 0x20);
    while (!(in8(v, 0x61) & 0x20))
        assert_true(os_clock_ns() - start_ns < 5000000000ull);
    assert_true(os_clock_ns() - start_ns >= 6000 * 1000000000ull / HZ_);
    left = latched(v, 2);
    if (os_clock_ns() - start_ns < 40000000) /* it goes on through zero; else the host slept */
        assert_true(left == 0 || left >= 0x10000 - 48000 + 6000);
    vm_free(kvm);
}

/* Mode 3: OUT is high for the first half of each period. Where the half is the same before and after the look, it is
 * known. */
static void square_wave(void **state)
{
    struct kvm *kvm = pit_vm();
    struct kvm_vcpu *v = kvm->vcpus[0];
    const uint64_t half_ns = 5965 * 1000000000ull / HZ_;
    unsigned seen[2] = {0};
    uint64_t start_ns;

    out8(v, 0x61, 1);
    do {
        start_ns = os_clock_ns();
        program(v, 2, 3, 2 * 5965);
    } while (os_clock_ns() - start_ns > 100000);
    while (seen[0] + seen[1] < 1000 && os_clock_ns() - start_ns < 5000000000ull) {
        const uint64_t before = (os_clock_ns() - start_ns - 100000) / half_ns; /* the start is known to 0.1 ms */
        const bool out = in8(v, 0x61) >> 5 & 1;

        if (before == (os_clock_ns() - start_ns + 100000) / half_ns && os_clock_ns() - start_ns > 200000) {
            assert_int_equal(out, !(before & 1));
            seen[out]++;
        }
        sleep_ns(100000);
    }
    assert_true(seen[0] > 0 && seen[1] > 0);
    vm_free(kvm);
}

static void gate(void **state)
{
    struct kvm *kvm = pit_vm();
    struct kvm_vcpu *v = kvm->vcpus[0];
    uint64_t start_ns, gone;
    unsigned a, b;

    out8(v, 0x61, 1);
    program(v, 2, 0, 60000);
    out8(v, 0x61, 0);
    a = latched(v, 2);
    sleep_ns(3000000);
    assert_int_equal(latched(v, 2), a); /* a low gate holds it */
    out8(v, 0x61, 3);
    assert_int_equal(in8(v, 0x61) & 3, 3);
    b = latched(v, 2);
    assert_true(b <= a || b > 60000); /* on from where it was */
    program(v, 2, 2, 60000);
    sleep_ns(3000000);
    out8(v, 0x61, 0);
    start_ns = os_clock_ns();
    out8(v, 0x61, 1); /* a rising gate starts mode 2 anew: the 3 ms before are forgotten */
    a = latched(v, 2);
    gone = (os_clock_ns() - start_ns) * HZ_ / 1000000000 + 2;
    if (gone < 60000)
        assert_in_range(a, 60000 - gone, 60000);
    vm_free(kvm);
}

static void latches_and_bytes(void **state)
{
    struct kvm *kvm = pit_vm();
    struct kvm_vcpu *v = kvm->vcpus[0];
    uint64_t start_ns;
    unsigned low, high, first;

    out8(v, 0x61, 0); /* held: values stand still */
    out8(v, 0x43, 0xb0);
    assert_int_equal(status(v, 2) & 0x40, 0x40); /* null count */
    out8(v, 0x42, 0x34);
    out8(v, 0x42, 0x12);
    assert_int_equal(status(v, 2), 0x30);
    assert_int_equal(latched(v, 2), 0x1234);
    low = in8(v, 0x42); /* unlatched: low, then high */
    high = in8(v, 0x42);
    assert_int_equal(low | high << 8, 0x1234);
    out8(v, 0x43, 0xc0 | 8); /* read-back of status and count: status first */
    assert_int_equal(in8(v, 0x42), 0x30);
    assert_int_equal(in8(v, 0x42), 0x34);
    assert_int_equal(in8(v, 0x42), 0x12);
    out8(v, 0x61, 1);
    start_ns = os_clock_ns();
    out8(v, 0x43, 0xb0);
    out8(v, 0x42, 0xff);
    out8(v, 0x42, 0xff);
    out8(v, 0x43, 0x80); /* a latch holds until it is read, a second does nothing */
    first = (unsigned)((os_clock_ns() - start_ns) * HZ_ / 1000000000) + 2;
    sleep_ns(2000000);
    out8(v, 0x43, 0x80);
    low = in8(v, 0x42);
    high = in8(v, 0x42);
    if (first < 0xffff)
        assert_in_range(low | high << 8, 0xffff - first, 0xffff);
    out8(v, 0x43, 0xa0); /* MSB only */
    out8(v, 0x61, 0);
    out8(v, 0x42, 0x56);
    out8(v, 0x43, 0x80);
    assert_int_equal(in8(v, 0x42), 0x56);
    out8(v, 0x43, 0xb1); /* BCD */
    out8(v, 0x42, 0x99);
    out8(v, 0x42, 0x12);
    assert_int_equal(latched(v, 2), 0x1299);
    assert_int_equal(in8(v, 0x43), 0);
    vm_free(kvm);
}

static bool irq0(void *arg)
{
    return kvm_cpu_has_interrupt(arg);
}

static void pic_on(struct kvm_vcpu *v)
{
    out8(v, 0x20, 0x11);
    out8(v, 0x21, 0x20);
    out8(v, 0x21, 4);
    out8(v, 0x21, 1);
}

static void interrupts(void **state)
{
    struct kvm *kvm = pit_vm();
    struct kvm_vcpu *v = kvm->vcpus[0];
    uint64_t start_ns;

    pic_on(v);
    start_ns = os_clock_ns();
    program(v, 0, 2, 1193); /* 1 kHz */
    for (int i = 0; i < 10; i++) {
        assert_true(wait_until(irq0, v, 5000));
        assert_int_equal(kvm_cpu_get_interrupt(v), 0x20);
        out8(v, 0x20, 0x20);
    }
    assert_true(os_clock_ns() - start_ns >= 9900000);
    out8(v, 0x43, 0x30); /* a control word stops it */
    sleep_ns(20000000);  /* the one under way, and what waits for reinjection */
    while (kvm_cpu_get_interrupt(v) >= 0)
        out8(v, 0x20, 0x20);
    assert_false(wait_until(irq0, v, 5));
    out8(v, 0x40, 0xe8); /* mode 0: once */
    out8(v, 0x40, 0x03);
    assert_true(wait_until(irq0, v, 5000));
    assert_int_equal(kvm_cpu_get_interrupt(v), 0x20);
    out8(v, 0x20, 0x20);
    assert_false(wait_until(irq0, v, 5));
    program(v, 0, 4, 1000); /* Linux' one-shot mode */
    assert_true(wait_until(irq0, v, 5000));
    vm_free(kvm);
}

/* Ticks that come while the guest has not ended the one before are made up for by its EOIs, or lost. */
static void reinjection(void **state)
{
    for (int on = 0; on < 2; on++) {
        struct kvm *kvm = pit_vm();
        struct kvm_vcpu *v = kvm->vcpus[0];
        int got = 0;

        assert_int_equal(kvm_pit_set_reinject(kvm, on), 0);
        assert_int_equal(kvm_irq_has_notifier(kvm, KVM_IRQCHIP_PIC_MASTER, 0), on);
        pic_on(v);
        program(v, 0, 2, 1193);
        assert_true(wait_until(irq0, v, 5000));
        assert_int_equal(kvm_cpu_get_interrupt(v), 0x20);
        sleep_ns(20000000);  /* about 20 ticks */
        out8(v, 0x43, 0x34); /* no more of them */
        sleep_ns(1000000);
        for (out8(v, 0x20, 0x20); kvm_cpu_get_interrupt(v) == 0x20; out8(v, 0x20, 0x20))
            got++;
        assert_true(on ? got >= 15 : got <= 2);
        vm_free(kvm);
    }
}

static void by_ioapic_and_nmi(void **state)
{
    struct kvm *kvm = pit_vm();
    struct kvm_vcpu *v = kvm->vcpus[0];

    apic_on(v);
    apic_w(v, APIC_LVT0, APIC_DM_NMI);
    io_redir(v, 0, 0x40);
    program(v, 0, 2, 1193);
    for (int i = 0; i < 5; i++) {
        assert_true(wait_until(irq0, v, 5000));
        assert_int_equal(kvm_cpu_get_interrupt(v), 0x40);
        apic_w(v, APIC_EOI, 0);
    }
    assert_true(v->arch.nmi_queued >= 5);
    vm_free(kvm);
}

static void state_round_trip(void **state)
{
    struct kvm *a = pit_vm(), *b = pit_vm();
    struct kvm_pit_state2 s, t;
    int64_t load_time;

    out8(a->vcpus[0], 0x61, 3);
    program(a->vcpus[0], 2, 2, 0x4321);
    program(a->vcpus[0], 0, 4, 0xfff0);
    out8(a->vcpus[0], 0x43, 0x84 | 0x30); /* a write half way: low byte only */
    out8(a->vcpus[0], 0x42, 0x11);
    assert_int_equal(kvm_get_pit2(a, &s), 0);
    assert_int_equal(s.flags, KVM_PIT_FLAGS_SPEAKER_DATA_ON);
    assert_int_equal(kvm_set_pit2(b, &s), 0);
    assert_int_equal(kvm_get_pit2(b, &t), 0);
    load_time = t.channels[0].count_load_time; /* counter 0 starts anew, as KVM's */
    assert_true(load_time >= s.channels[0].count_load_time);
    t.channels[0].count_load_time = s.channels[0].count_load_time;
    assert_memory_equal(&s, &t, sizeof(s));
    out8(b->vcpus[0], 0x42, 0x22);
    assert_int_equal(kvm_get_pit2(b, &t), 0);
    assert_int_equal(t.channels[2].count, 0x2211);
    memset(&s, 0xff, sizeof(s)); /* a hostile client */
    assert_int_equal(kvm_set_pit2(b, &s), 0);
    for (unsigned port = 0x40; port < 0x44; port++)
        in8(b->vcpus[0], (uint16_t)port);
    memset(&s, 0, sizeof(s));
    assert_int_equal(kvm_set_pit2(b, &s), 0);
    latched(b->vcpus[0], 0);
    vm_free(a);
    vm_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counting_modes), cmocka_unit_test(terminal_count),    cmocka_unit_test(square_wave),
        cmocka_unit_test(gate),           cmocka_unit_test(latches_and_bytes), cmocka_unit_test(interrupts),
        cmocka_unit_test(reinjection),    cmocka_unit_test(by_ioapic_and_nmi), cmocka_unit_test(state_round_trip),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
