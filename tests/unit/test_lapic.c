/* SPDX-License-Identifier: MIT
 * test_lapic.c: the local APIC (SDM 3A, "Advanced Programmable Interrupt Controller (APIC)"). */
#include "irq_vm.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LOGICAL (1u << 11)
#define ASSERT_ (1u << 14)

static void enable_all(struct kvm *kvm)
{
    for (int i = 0; i < atomic_load(&kvm->online_vcpus); i++)
        apic_on(kvm->vcpus[i]);
}

static int take(struct kvm_vcpu *vcpu)
{
    return kvm_cpu_get_interrupt(vcpu);
}

static void reset_state(void **state)
{
    struct kvm *kvm = vm_new(2);
    struct kvm_vcpu *ap = kvm->vcpus[1];

    assert_int_equal(apic_r(ap, APIC_ID), 1u << 24);
    assert_int_equal(apic_r(ap, APIC_LVR), 0x50014);
    assert_int_equal(apic_r(ap, APIC_DFR), 0xffffffff);
    assert_int_equal(apic_r(ap, APIC_SPIV), 0xff);
    assert_int_equal(apic_r(ap, APIC_LVTT), APIC_LVT_MASKED);
    assert_int_equal(apic_r(ap, APIC_LVT0), APIC_LVT_MASKED);
    assert_int_equal(apic_r(kvm->vcpus[0], APIC_LVT0), APIC_DM_EXTINT);
    assert_true(*vcpu_apic_base(kvm->vcpus[0]) & MSR_IA32_APICBASE_BSP);
    assert_false(*vcpu_apic_base(ap) & MSR_IA32_APICBASE_BSP);
    vm_free(kvm);
}

static void disabled_takes_nothing_and_masks(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];

    apic_ipi(v, 0, 0x40 | ASSERT_);
    assert_false(apic_bit(v, APIC_IRR, 0x40));
    apic_w(v, APIC_LVTT, 0x31);
    assert_int_equal(apic_r(v, APIC_LVTT), 0x31 | APIC_LVT_MASKED);
    apic_on(v);
    apic_w(v, APIC_LVTT, 0x31);
    assert_int_equal(apic_r(v, APIC_LVTT), 0x31);
    apic_w(v, APIC_SPIV, 0xff);
    assert_int_equal(apic_r(v, APIC_LVTT), 0x31 | APIC_LVT_MASKED);
    vm_free(kvm);
}

static void priorities(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];

    apic_on(v);
    apic_ipi(v, 0, 0x45 | ASSERT_);
    apic_ipi(v, 0, 0x61 | ASSERT_);
    apic_w(v, APIC_TASKPRI, 0x60); /* class 6 and below wait */
    assert_int_equal(kvm_apic_has_interrupt(v), -1);
    kvm_lapic_set_tpr(v, 5);
    assert_int_equal(kvm_lapic_get_cr8(v), 5);
    assert_int_equal(take(v), 0x61);
    assert_true(apic_bit(v, APIC_ISR, 0x61));
    assert_false(apic_bit(v, APIC_IRR, 0x61));
    assert_int_equal(apic_r(v, APIC_PROCPRI), 0x60);
    kvm_lapic_set_tpr(v, 0);
    assert_int_equal(take(v), -1);  /* 0x45 waits for the EOI of 0x61 */
    apic_ipi(v, 0, 0x6f | ASSERT_); /* same class: waits as well */
    assert_int_equal(take(v), -1);
    apic_ipi(v, 0, 0x70 | ASSERT_); /* nests */
    assert_int_equal(take(v), 0x70);
    apic_w(v, APIC_EOI, 0);
    assert_int_equal(apic_r(v, APIC_PROCPRI), 0x60);
    apic_w(v, APIC_EOI, 0);
    assert_int_equal(take(v), 0x6f);
    apic_w(v, APIC_EOI, 0);
    assert_int_equal(take(v), 0x45);
    apic_w(v, APIC_EOI, 0);
    assert_int_equal(take(v), -1);
    vm_free(kvm);
}

static void every_vector(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];

    apic_on(v);
    for (unsigned vector = 16; vector < 256; vector++)
        apic_ipi(v, 0, vector | ASSERT_);
    for (int vector = 255; vector >= 16; vector--) {
        assert_int_equal(take(v), vector);
        apic_w(v, APIC_EOI, 0);
    }
    assert_int_equal(take(v), -1);
    vm_free(kvm);
}

static void shorthands(void **state)
{
    static const struct {
        uint32_t shorthand;
        bool got[3];
    } rows[] = {
        {APIC_DEST_SELF, {false, true, false}},
        {APIC_DEST_ALLINC, {true, true, true}},
        {APIC_DEST_ALLBUT, {true, false, true}},
    };

    for (int x2 = 0; x2 < 2; x2++)
        for (unsigned r = 0; r < ARRAY_SIZE(rows); r++) {
            struct kvm *kvm = vm_new(3);

            enable_all(kvm);
            for (int i = 0; i < 3 && x2; i++)
                to_x2apic(kvm->vcpus[i]);
            apic_ipi(kvm->vcpus[1], 77, 0x51 | ASSERT_ | rows[r].shorthand);
            for (int i = 0; i < 3; i++)
                assert_int_equal(apic_bit(kvm->vcpus[i], APIC_IRR, 0x51), rows[r].got[i]);
            vm_free(kvm);
        }
}

static uint32_t who_got(struct kvm *kvm, unsigned vector)
{
    uint32_t bits = 0;

    for (int i = 0; i < atomic_load(&kvm->online_vcpus); i++) {
        bits |= (uint32_t)apic_bit(kvm->vcpus[i], APIC_IRR, vector) << i;
        if (bits >> i & 1)
            assert_int_equal(kvm_get_apic_interrupt(kvm->vcpus[i]), vector);
        if (bits >> i & 1)
            apic_w(kvm->vcpus[i], APIC_EOI, 0);
    }
    return bits;
}

static void destinations(void **state)
{
    struct kvm *kvm = vm_new(4);
    struct kvm_vcpu *v0 = kvm->vcpus[0];

    enable_all(kvm);
    apic_ipi(v0, 2, 0x51 | ASSERT_);
    assert_int_equal(who_got(kvm, 0x51), 1 << 2);
    apic_ipi(v0, 9, 0x51 | ASSERT_);
    assert_int_equal(who_got(kvm, 0x51), 0);
    apic_ipi(v0, 0xff, 0x51 | ASSERT_);
    assert_int_equal(who_got(kvm, 0x51), 0xf);
    for (int i = 0; i < 4; i++)
        apic_w(kvm->vcpus[i], APIC_LDR, 1u << (24 + i)); /* flat */
    apic_ipi(v0, 0x0a, 0x52 | ASSERT_ | LOGICAL);
    assert_int_equal(who_got(kvm, 0x52), 0xa);
    for (int i = 0; i < 4; i++) { /* cluster model: two clusters of two */
        apic_w(kvm->vcpus[i], APIC_DFR, 0x0fffffff);
        apic_w(kvm->vcpus[i], APIC_LDR, (uint32_t)(i / 2) << 28 | 1u << (24 + i % 2));
    }
    apic_ipi(v0, 0x13, 0x52 | ASSERT_ | LOGICAL);
    assert_int_equal(who_got(kvm, 0x52), 0xc);
    apic_ipi(v0, 0x02, 0x52 | ASSERT_ | LOGICAL);
    assert_int_equal(who_got(kvm, 0x52), 0x2);
    apic_ipi(v0, 0xff, 0x52 | ASSERT_ | LOGICAL);
    assert_int_equal(who_got(kvm, 0x52), 0xf);
    vm_free(kvm);
}

static void destinations_x2apic(void **state)
{
    struct kvm *kvm = vm_new(20);
    struct kvm_vcpu *v0 = kvm->vcpus[0];

    enable_all(kvm);
    for (int i = 0; i < 20; i++)
        to_x2apic(kvm->vcpus[i]);
    assert_int_equal(apic_r(kvm->vcpus[18], APIC_ID), 18);
    assert_int_equal(apic_r(kvm->vcpus[18], APIC_LDR), 1 << 16 | 1 << 2);
    apic_ipi(v0, 1 << 16 | 0x5, 0x53 | ASSERT_ | LOGICAL);
    assert_int_equal(who_got(kvm, 0x53), 1 << 16 | 1 << 18);
    apic_ipi(v0, 19, 0x53 | ASSERT_);
    assert_int_equal(who_got(kvm, 0x53), 1 << 19);
    apic_ipi(v0, 0xffffffff, 0x53 | ASSERT_);
    assert_int_equal(who_got(kvm, 0x53), 0xfffff);
    apic_ipi(v0, 0xff, 0x53 | ASSERT_); /* from a CPU 0xff is an ID like any other */
    assert_int_equal(who_got(kvm, 0x53), 0);
    assert_int_equal(kvm_x2apic_msr_write(v0, 0x83f, 0x54), 0); /* self IPI */
    assert_int_equal(who_got(kvm, 0x54), 1);
    vm_free(kvm);
}

static void id_that_the_guest_changed(void **state)
{
    struct kvm *kvm = vm_new(2);

    enable_all(kvm);
    apic_w(kvm->vcpus[1], APIC_ID, 7u << 24);
    apic_ipi(kvm->vcpus[0], 7, 0x51 | ASSERT_);
    assert_int_equal(who_got(kvm, 0x51), 2);
    apic_ipi(kvm->vcpus[0], 1, 0x51 | ASSERT_);
    assert_int_equal(who_got(kvm, 0x51), 0);
    vm_free(kvm);
}

static void lowest_priority_takes_turns(void **state)
{
    struct kvm *kvm = vm_new(3);
    int got[3] = {0};

    enable_all(kvm);
    apic_w(kvm->vcpus[2], APIC_SPIV, 0xff); /* disabled: never chosen */
    for (int i = 0; i < 3; i++)
        apic_w(kvm->vcpus[i], APIC_LDR, 1u << (24 + i));
    for (int n = 0; n < 6; n++) {
        apic_ipi(kvm->vcpus[0], 7, 0x51 | ASSERT_ | LOGICAL | APIC_DM_LOWEST);
        got[__builtin_ctz(who_got(kvm, 0x51))]++;
    }
    assert_int_equal(got[0], 3);
    assert_int_equal(got[1], 3);
    vm_free(kvm);
}

static void nmi_and_local_pins(void **state)
{
    struct kvm *kvm = vm_new(2);
    struct kvm_vcpu *v = kvm->vcpus[0];

    enable_all(kvm);
    apic_ipi(v, 1, ASSERT_ | APIC_DM_NMI);
    assert_int_equal(mock_nmis, 1);
    assert_int_equal(kvm->vcpus[1]->arch.nmi_queued, 1);
    apic_w(v, APIC_LVT0, APIC_DM_NMI);
    kvm_apic_nmi_wd_deliver(v);
    assert_int_equal(v->arch.nmi_queued, 1);
    assert_false(kvm_apic_accept_pic_intr(v));
    apic_w(v, APIC_LVT0, APIC_DM_EXTINT);
    assert_true(kvm_apic_accept_pic_intr(v));
    apic_w(v, APIC_LVT0, APIC_DM_EXTINT | APIC_LVT_MASKED);
    assert_false(kvm_apic_accept_pic_intr(v));
    vm_free(kvm);
}

static void init_and_sipi(void **state)
{
    struct kvm *kvm = vm_new(2);
    struct kvm_vcpu *ap = kvm->vcpus[1];

    apic_on(kvm->vcpus[0]);
    apic_on(ap);
    apic_ipi(kvm->vcpus[0], 1, APIC_DM_STARTUP | 0x9a); /* before INIT: kept, then forgotten */
    assert_true(kvm_apic_pending_init_sipi(ap));
    assert_int_equal(kvm_apic_accept_events(ap), 0);
    assert_int_equal(ap->arch.mp_state, KVM_MP_STATE_UNINITIALIZED);
    apic_ipi(kvm->vcpus[0], 1, APIC_DM_INIT | ASSERT_ | APIC_INT_LEVELTRIG);
    apic_ipi(kvm->vcpus[0], 1, APIC_DM_INIT | APIC_INT_LEVELTRIG); /* de-assert does nothing */
    assert_true(atomic_load(&ap->requests) >> KVM_REQ_UNBLOCK & 1);
    kvm_apic_accept_events(ap);
    assert_int_equal(ap->arch.mp_state, KVM_MP_STATE_INIT_RECEIVED);
    assert_int_equal(apic_r(ap, APIC_SPIV), 0xff);
    assert_int_equal(apic_r(ap, APIC_ID), 1u << 24);
    apic_ipi(kvm->vcpus[0], 1, APIC_DM_STARTUP | 0x9a);
    apic_ipi(kvm->vcpus[0], 1, APIC_DM_STARTUP | 0x9a);
    kvm_apic_accept_events(ap);
    assert_int_equal(ap->arch.mp_state, KVM_MP_STATE_RUNNABLE);
    assert_int_equal(ap->arch.smbase, 0x9a000);
    assert_false(kvm_apic_pending_init_sipi(ap));
    apic_ipi(kvm->vcpus[0], 1, APIC_DM_STARTUP | 0x9b); /* a SIPI that an INIT overtakes */
    apic_ipi(kvm->vcpus[0], 1, APIC_DM_INIT | ASSERT_);
    kvm_apic_accept_events(ap);
    assert_int_equal(ap->arch.mp_state, KVM_MP_STATE_INIT_RECEIVED);
    vm_free(kvm);
}

static void errors(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];

    apic_on(v);
    apic_w(v, APIC_LVTERR, 0xfe);
    apic_ipi(v, 0, 0x05 | ASSERT_);
    assert_int_equal(take(v), 0xfe);
    assert_int_equal(apic_r(v, APIC_ESR), 0); /* shown by a write only */
    apic_w(v, APIC_ESR, 0);
    assert_int_equal(apic_r(v, APIC_ESR), APIC_ESR_SEND_ILLEGAL);
    apic_w(v, APIC_ESR, 0);
    assert_int_equal(apic_r(v, APIC_ESR), 0);
    apic_w(v, APIC_LVTERR, 0x03); /* an error vector that is an error: no endless loop */
    apic_ipi(v, 0, 0x05 | ASSERT_);
    vm_free(kvm);
}

static void base_transitions(void **state)
{
    enum { OFF, X1, X2, BAD };
    static const uint64_t bits[] = {0, 1u << 11, 3u << 10, 1u << 10};
    static const int ok[4][4] = {
        {1, 1, 0, 0}, /* from disabled: x2APIC only by way of xAPIC */
        {1, 1, 1, 0},
        {1, 0, 1, 0},
        {0, 0, 0, 0},
    };
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];

    for (int from = OFF; from <= X2; from++)
        for (int to = OFF; to <= BAD; to++) {
            assert_int_equal(kvm_set_apic_base(v, APIC_DEFAULT_PHYS_BASE | bits[from], true), 0);
            assert_int_equal(kvm_lapic_set_base(v, APIC_DEFAULT_PHYS_BASE | bits[to]), !ok[from][to]);
            assert_int_equal(*vcpu_apic_base(v) & (3u << 10), bits[ok[from][to] ? to : from]);
        }
    assert_int_equal(kvm_lapic_set_base(v, 1ull << 41 | 1u << 11), 1); /* above MAXPHYADDR */
    mock_x2apic = false;
    assert_int_equal(kvm_set_apic_base(v, APIC_DEFAULT_PHYS_BASE | bits[X2], true), 1);
    mock_x2apic = true;
    vm_free(kvm);
}

static void mmio_odds(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];
    uint32_t value = 0x12345678, old;
    uint8_t byte;

    assert_int_equal(kvm_lapic_mmio_read(v, 0xfee01000, 4, &value), 1); /* not ours */
    assert_int_equal(kvm_lapic_mmio_read(v, APIC_DEFAULT_PHYS_BASE + APIC_LVR + 2, 1, &byte), 0);
    assert_int_equal(byte, 5);
    old = apic_r(v, APIC_TASKPRI);
    value = 0x55;
    kvm_lapic_mmio_write(v, APIC_DEFAULT_PHYS_BASE + APIC_TASKPRI + 4, 4, &value);
    kvm_lapic_mmio_write(v, APIC_DEFAULT_PHYS_BASE + APIC_TASKPRI, 1, &value);
    assert_int_equal(apic_r(v, APIC_TASKPRI), old);
    for (unsigned off = 0; off < 0x1000; off += 4) { /* no offset does harm */
        kvm_lapic_mmio_read(v, APIC_DEFAULT_PHYS_BASE + off, 4, &value);
        value = 0;
        kvm_lapic_mmio_write(v, APIC_DEFAULT_PHYS_BASE + off, 4, &value);
    }
    to_x2apic(v);
    assert_int_equal(kvm_lapic_mmio_read(v, APIC_DEFAULT_PHYS_BASE + APIC_ID, 4, &value), 0);
    assert_int_equal(value, 0xffffffff); /* the page is a hole now */
    vm_free(kvm);
}

static void x2apic_gp(void **state)
{
    static const struct {
        uint32_t msr;
        int read, write_zero, write_one, write_high;
    } rows[] = {
        {0x802, 0, 1, 1, 1}, {0x803, 0, 1, 1, 1}, {0x808, 0, 0, 0, 1}, {0x80a, 0, 1, 1, 1}, {0x80b, 1, 0, 1, 1},
        {0x80d, 0, 1, 1, 1}, {0x80e, 1, 1, 1, 1}, {0x80f, 0, 0, 0, 1}, {0x828, 0, 0, 1, 1}, {0x831, 1, 1, 1, 1},
        {0x832, 0, 0, 0, 1}, {0x839, 0, 1, 1, 1}, {0x83e, 0, 0, 0, 1}, {0x83f, 1, 0, 0, 1}, {0x840, 1, 1, 1, 1},
        {0x801, 1, 1, 1, 1}, {0x809, 1, 1, 1, 1}, {0x82f, 1, 1, 1, 1},
    };
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];
    uint64_t data;

    assert_int_equal(kvm_x2apic_msr_read(v, 0x802, &data), 1); /* in xAPIC mode there are no MSRs */
    to_x2apic(v);
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        assert_int_equal(kvm_x2apic_msr_read(v, rows[i].msr, &data), rows[i].read);
        assert_int_equal(kvm_x2apic_msr_write(v, rows[i].msr, 0), rows[i].write_zero);
        assert_int_equal(kvm_x2apic_msr_write(v, rows[i].msr, 1), rows[i].write_one);
        assert_int_equal(kvm_x2apic_msr_write(v, rows[i].msr, 1ull << 40), rows[i].write_high);
    }
    assert_int_equal(kvm_x2apic_msr_write(v, 0x830, 5ull << 32 | APIC_LVT_MASKED), 0);
    assert_int_equal(kvm_x2apic_msr_read(v, 0x830, &data), 0);
    assert_int_equal(data, 5ull << 32 | APIC_LVT_MASKED);
    vm_free(kvm);
}

static void state_round_trip(void **state)
{
    struct kvm *a = vm_new(2), *b = vm_new(2);
    struct kvm_lapic_state s, t;

    apic_on(a->vcpus[1]);
    apic_w(a->vcpus[1], APIC_LDR, 2u << 24);
    apic_w(a->vcpus[1], APIC_LVT1, APIC_DM_NMI);
    apic_w(a->vcpus[1], APIC_TASKPRI, 0x20);
    apic_ipi(a->vcpus[1], 1, 0x61 | ASSERT_);
    assert_int_equal(kvm_get_apic_interrupt(a->vcpus[1]), 0x61);
    apic_ipi(a->vcpus[1], 1, 0x52 | ASSERT_);
    apic_ipi(a->vcpus[1], 1, 0x75 | ASSERT_);
    assert_int_equal(kvm_apic_get_state(a->vcpus[1], &s), 0);
    assert_int_equal(kvm_apic_set_state(b->vcpus[1], &s), 0);
    assert_int_equal(kvm_apic_get_state(b->vcpus[1], &t), 0);
    assert_memory_equal(&s, &t, sizeof(s));
    assert_int_equal(take(b->vcpus[1]), 0x75);
    apic_w(b->vcpus[1], APIC_EOI, 0);
    assert_int_equal(take(b->vcpus[1]), -1); /* 0x61 is in service there too */
    apic_w(b->vcpus[1], APIC_EOI, 0);
    assert_int_equal(take(b->vcpus[1]), 0x52);
    vm_free(a);
    vm_free(b);
}

static void x2apic_state_formats(void **state)
{
    struct kvm *kvm = vm_new(2);
    struct kvm_vcpu *v = kvm->vcpus[1];
    struct kvm_lapic_state s;
    uint32_t id = 0;

    to_x2apic(v);
    assert_int_equal(kvm_apic_get_state(v, &s), 0);
    memcpy(&id, s.regs + APIC_ID, 4);
    assert_int_equal(id, 1u << 24);
    assert_int_equal(kvm_apic_set_state(v, &s), 0);
    assert_int_equal(apic_r(v, APIC_ID), 1);
    kvm->arch.x2apic_format = true;
    assert_int_equal(kvm_apic_set_state(v, &s), -EINVAL); /* 1 << 24 is not its ID */
    assert_int_equal(kvm_apic_get_state(v, &s), 0);
    memcpy(&id, s.regs + APIC_ID, 4);
    assert_int_equal(id, 1);
    assert_int_equal(kvm_apic_set_state(v, &s), 0);
    vm_free(kvm);
}

/* ---- timer ---- */
static bool has_irr(void *arg)
{
    return kvm_apic_has_interrupt(arg) >= 0;
}

static void timer_one_shot_and_periodic(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];
    uint64_t start_ns;

    apic_on(v);
    apic_w(v, APIC_TDCR, 0xb); /* by 1: 1 GHz */
    apic_w(v, APIC_LVTT, 0x31);
    apic_w(v, APIC_TMICT, 4000000000u); /* long enough for a busy host to look at it */
    assert_in_range(apic_r(v, APIC_TMCCT), 1, 4000000000u);
    assert_int_equal(take(v), -1);
    start_ns = os_clock_ns();
    apic_w(v, APIC_TMICT, 20000000);
    assert_true(wait_until(has_irr, v, 1000));
    assert_true(os_clock_ns() - start_ns >= 20000000);
    assert_int_equal(take(v), 0x31);
    apic_w(v, APIC_EOI, 0);
    assert_int_equal(apic_r(v, APIC_TMCCT), 0);
    assert_false(wait_until(has_irr, v, 12)); /* once */
    apic_w(v, APIC_LVTT, 0x32 | APIC_TIMER_PERIODIC);
    start_ns = os_clock_ns();
    apic_w(v, APIC_TMICT, 2000000);
    for (int i = 0; i < 5; i++) {
        assert_true(wait_until(has_irr, v, 1000));
        assert_int_equal(take(v), 0x32);
        apic_w(v, APIC_EOI, 0);
    }
    assert_true(os_clock_ns() - start_ns >= 10000000);
    assert_in_range(apic_r(v, APIC_TMCCT), 1, 2000000);
    apic_w(v, APIC_TMICT, 0);
    take(v);
    apic_w(v, APIC_EOI, 0);
    assert_false(wait_until(has_irr, v, 6));
    vm_free(kvm);
}

static void timer_divides(void **state)
{
    static const uint8_t codes[] = {0xb, 0, 1, 2, 3, 8, 9, 0xa};
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];

    apic_on(v);
    apic_w(v, APIC_LVTT, 0x31 | APIC_LVT_MASKED);
    for (unsigned i = 0; i < ARRAY_SIZE(codes); i++) {
        const uint64_t ticks = (1ull << i) * 100000000; /* ns in 10^8 ticks */
        uint64_t start_ns, used;

        apic_w(v, APIC_TDCR, codes[i]);
        start_ns = os_clock_ns();
        apic_w(v, APIC_TMICT, 100000000);
        while (os_clock_ns() - start_ns < 300000)
            ;
        used = (100000000ull - apic_r(v, APIC_TMCCT)) * (ticks / 100000000);
        assert_true(used >= 290000 && used <= os_clock_ns() - start_ns + 1000);
    }
    vm_free(kvm);
}

static void timer_tsc_deadline(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];
    uint64_t deadline;

    apic_on(v);
    kvm_set_lapic_tscdeadline_msr(v, 1); /* ignored in another mode */
    assert_int_equal(kvm_get_lapic_tscdeadline_msr(v), 0);
    apic_w(v, APIC_LVTT, 0x33);
    apic_w(v, APIC_TMICT, 50000000); /* entering the mode stops the count */
    apic_w(v, APIC_LVTT, 0x33 | APIC_TIMER_TSCDEADLINE);
    assert_int_equal(apic_r(v, APIC_TMICT), 0);
    assert_false(wait_until(has_irr, v, 110));
    apic_w(v, APIC_TMICT, 1000); /* ignored in this mode */
    assert_int_equal(apic_r(v, APIC_TMICT), 0);
    kvm_set_lapic_tscdeadline_msr(v, 1); /* past: at once */
    assert_int_equal(take(v), 0x33);
    apic_w(v, APIC_EOI, 0);
    deadline = kvm_read_l1_tsc_now(v) + 100 * mock_tsc_khz; /* 100 ms */
    kvm_set_lapic_tscdeadline_msr(v, deadline);
    assert_int_equal(kvm_get_lapic_tscdeadline_msr(v), deadline);
    assert_true(wait_until(has_irr, v, 1000));
    assert_true(kvm_read_l1_tsc_now(v) >= deadline);
    assert_int_equal(kvm_get_lapic_tscdeadline_msr(v), 0);
    assert_int_equal(take(v), 0x33);
    apic_w(v, APIC_EOI, 0);
    kvm_set_lapic_tscdeadline_msr(v, kvm_read_l1_tsc_now(v) + 3600000 * mock_tsc_khz);
    v->arch.tsc_offset += 3600001 * mock_tsc_khz; /* the guest's TSC jumps past it */
    kvm_lapic_tsc_changed(v);
    assert_int_equal(take(v), 0x33);
    apic_w(v, APIC_EOI, 0);
    kvm_set_lapic_tscdeadline_msr(v, kvm_read_l1_tsc_now(v) + 100 * mock_tsc_khz);
    apic_w(v, APIC_LVTT, 0x33); /* leaving the mode disarms */
    assert_false(wait_until(has_irr, v, 110));
    kvm_set_lapic_tscdeadline_msr(v, ~0ull); /* no overflow */
    mock_tsc_deadline = false;
    apic_w(v, APIC_LVTT, 0x33 | APIC_TIMER_TSCDEADLINE); /* without the CPUID bit the mode bit is reserved */
    assert_int_equal(apic_r(v, APIC_LVTT) & APIC_TIMER_MASK, 0);
    mock_tsc_deadline = true;
    vm_free(kvm);
}

static void pv_eoi(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];

    apic_on(v);
    memset(mock_ram, 0, sizeof(mock_ram));
    assert_int_equal(kvm_lapic_set_pv_eoi(v, 0x100 | 2), 1);
    assert_int_equal(kvm_lapic_set_pv_eoi(v, 0x100 | 1), 0);
    apic_ipi(v, 0, 0x51 | ASSERT_);
    assert_int_equal(take(v), 0x51);
    kvm_lapic_sync_to_vapic(v);
    assert_int_equal(mock_ram[0x100], 1);
    mock_ram[0x100] = 0; /* the guest's EOI */
    kvm_lapic_sync_from_vapic(v);
    assert_false(apic_bit(v, APIC_ISR, 0x51));
    apic_ipi(v, 0, 0x51 | ASSERT_);
    assert_int_equal(take(v), 0x51);
    kvm_lapic_sync_to_vapic(v);
    kvm_lapic_sync_from_vapic(v); /* an exit before its EOI: the flag is taken back */
    assert_int_equal(mock_ram[0x100], 0);
    assert_true(apic_bit(v, APIC_ISR, 0x51));
    apic_ipi(v, 0, 0x41 | ASSERT_); /* one waits for the EOI: it must be a real one */
    kvm_lapic_sync_to_vapic(v);
    assert_int_equal(mock_ram[0x100], 0);
    vm_free(kvm);
}

static void userspace_interrupt(void **state)
{
    struct kvm *kvm = calloc(1, sizeof(*kvm));
    struct kvm_vcpu v = {.kvm = kvm};

    assert_int_equal(kvm_vcpu_ioctl_interrupt(&v, 256), -EINVAL);
    assert_int_equal(kvm_vcpu_ioctl_interrupt(&v, 0x20), 0);
    assert_true(kvm_cpu_has_interrupt(&v));
    assert_int_equal(kvm_cpu_get_interrupt(&v), 0x20);
    free(kvm);
    kvm = vm_new(1);
    assert_int_equal(kvm_vcpu_ioctl_interrupt(kvm->vcpus[0], 0x20), -ENXIO);
    vm_free(kvm);
}

static void one_kick_per_interrupt(void **state)
{
    struct kvm *kvm = vm_new(2);

    enable_all(kvm);
    atomic_store(&mock_kicks, 0);
    kvm->vcpus[1]->requests = 0;
    apic_ipi(kvm->vcpus[0], 1, 0x51 | ASSERT_);
    assert_int_equal(mock_kicks, 1);
    assert_true(kvm->vcpus[1]->requests >> KVM_REQ_EVENT & 1);
    vm_free(kvm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reset_state),
        cmocka_unit_test(disabled_takes_nothing_and_masks),
        cmocka_unit_test(priorities),
        cmocka_unit_test(every_vector),
        cmocka_unit_test(shorthands),
        cmocka_unit_test(destinations),
        cmocka_unit_test(destinations_x2apic),
        cmocka_unit_test(id_that_the_guest_changed),
        cmocka_unit_test(lowest_priority_takes_turns),
        cmocka_unit_test(nmi_and_local_pins),
        cmocka_unit_test(init_and_sipi),
        cmocka_unit_test(errors),
        cmocka_unit_test(base_transitions),
        cmocka_unit_test(mmio_odds),
        cmocka_unit_test(x2apic_gp),
        cmocka_unit_test(state_round_trip),
        cmocka_unit_test(x2apic_state_formats),
        cmocka_unit_test(timer_one_shot_and_periodic),
        cmocka_unit_test(timer_divides),
        cmocka_unit_test(timer_tsc_deadline),
        cmocka_unit_test(pv_eoi),
        cmocka_unit_test(userspace_interrupt),
        cmocka_unit_test(one_kick_per_interrupt),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
