/* SPDX-License-Identifier: MIT
 * hyperv_synic.c: Hyper-V's synthetic interrupt controller and timers (TLFS, "Virtual Interrupt Control", "Timers"): 16
 * sources, each a vector and a slot for a message; four timers that post messages or interrupt directly. */
#include "hyperv_int.h"
#include "lapic.h"
#include <errno.h>
#include <string.h>

#define SINT_MASKED       (1ull << 16)
#define SINT_AUTO_EOI     (1ull << 17)
#define PAGE_ENABLE       1ull
#define CONTROL_ENABLE    1ull
#define STIMER_ENABLE     1ull
#define STIMER_PERIODIC   2ull
#define STIMER_AUTOENABLE 8ull
#define STIMER_VECTOR(c)  ((uint8_t)((c) >> 4))
#define STIMER_DIRECT     (1ull << 12)
#define STIMER_SINT(c)    ((unsigned)((c) >> 16 & 15))
#define MSG_TIMER         0x80000010u
#define MSG_SLOT          256u
#define MSG_PENDING       1u /* flags: there is more, write EOM */

struct timer_message {
    uint32_t type;
    uint8_t size, flags;
    uint16_t reserved;
    uint64_t sender;
    uint32_t index, reserved2;
    uint64_t expired, delivered;
};
_Static_assert(sizeof(struct timer_message) == 40, "TLFS, HV_TIMER_MESSAGE_PAYLOAD");

/* ---- the APIC's registers by MSR ---- */
static uint64_t apic_gpa(struct kvm_vcpu *vcpu, unsigned reg)
{
    return (vcpu->arch.apic_base & PAGE_MASK) + reg;
}

int kvm_hv_apic_read(struct kvm_vcpu *vcpu, uint32_t index, uint64_t *data)
{
    const unsigned reg = index == 0x40000071 ? APIC_ICR : APIC_TASKPRI;

    if (!vcpu->arch.apic)
        return 1;
    *data = apic_get(vcpu->arch.apic, reg);
    if (reg == APIC_ICR)
        *data |= (uint64_t)apic_get(vcpu->arch.apic, APIC_ICR2) << 32;
    return 0;
}

/* EOI, ICR, TPR: also in x2APIC mode, whose MSRs do the same */
int kvm_hv_apic_write(struct kvm_vcpu *vcpu, uint32_t index, uint64_t data)
{
    const unsigned reg = index == 0x40000070 ? APIC_EOI : index == 0x40000071 ? APIC_ICR : APIC_TASKPRI;
    const uint32_t low = (uint32_t)data, high = (uint32_t)(data >> 32);

    if (!vcpu->arch.apic)
        return 1;
    if (apic_x2apic_mode(vcpu->arch.apic))
        return kvm_x2apic_msr_write(vcpu, 0x800 + reg / 16, reg == APIC_EOI ? 0 : data);
    if (reg == APIC_ICR)
        kvm_lapic_mmio_write(vcpu, apic_gpa(vcpu, APIC_ICR2), 4, &high);
    kvm_lapic_mmio_write(vcpu, apic_gpa(vcpu, reg), 4, &low);
    return 0;
}

/* ---- sources ---- */
static int raise_vector(struct kvm_vcpu *vcpu, uint8_t vector)
{
    const struct kvm_lapic_irq irq = {.vector = vector, .level = 1};

    return vcpu->arch.apic ? kvm_apic_set_irq(vcpu, &irq, NULL) : 0;
}

static void raise_sint(struct kvm_vcpu *vcpu, unsigned sint)
{
    const uint64_t value = vcpu->arch.hv.sint[sint];

    if (!(value & SINT_MASKED) && (value & 0xff) >= 16)
        raise_vector(vcpu, (uint8_t)value);
}

static void update_auto_eoi(struct kvm_vcpu_hv *hv)
{
    memset(hv->auto_eoi, 0, sizeof(hv->auto_eoi));
    for (unsigned i = 0; i < HV_SINTS; i++)
        if (!(hv->sint[i] & SINT_MASKED) && (hv->sint[i] & SINT_AUTO_EOI))
            hv->auto_eoi[(hv->sint[i] & 0xff) / 64] |= 1ull << hv->sint[i] % 64;
}

/* The processor's acknowledge cycle of such a vector is its end as well. */
void kvm_hv_interrupt_taken(struct kvm_vcpu *vcpu, int vector)
{
    const struct kvm_vcpu_hv *hv = &vcpu->arch.hv;

    if (unlikely(hv->synic_active) && hv->auto_eoi[vector / 64] >> vector % 64 & 1)
        apic_set_eoi(vcpu->arch.apic);
}

/* 0; -EAGAIN: the slot is full, the guest will write EOM; others: no page */
static int post_message(struct kvm_vcpu *vcpu, unsigned sint, const struct timer_message *m)
{
    const gpa_t gpa = (vcpu->arch.hv.simp & PAGE_MASK) + sint * MSG_SLOT;
    struct {
        uint32_t type;
        uint8_t size, flags;
    } there;

    if (!(vcpu->arch.hv.simp & PAGE_ENABLE) || kvm_read_guest(vcpu->kvm, gpa, &there, sizeof(there)) < 0)
        return -EFAULT;
    if (there.type) {
        there.flags |= MSG_PENDING;
        kvm_write_guest(vcpu->kvm, gpa + 5, &there.flags, 1);
        return -EAGAIN;
    }
    kvm_write_guest(vcpu->kvm, gpa + 4, (const char *)m + 4, sizeof(*m) - 4);
    atomic_thread_fence(memory_order_seq_cst);
    return kvm_write_guest(vcpu->kvm, gpa, &m->type, sizeof(m->type));
}

/* ---- timers: the thread of timers says when, the vCPU's own does what is due ---- */
static void stimer_due(struct hv_stimer *t)
{
    atomic_fetch_or(&t->vcpu->arch.hv.stimers_due, 1u << t->index);
    kvm_make_request(KVM_REQ_HV_STIMER, t->vcpu);
    kvm_vcpu_kick(t->vcpu);
}

static void stimer_fn(struct ktimer *timer)
{
    stimer_due(timer->opaque);
}

static void stimer_stop(struct hv_stimer *t)
{
    if (t->timer.fn)
        ktimer_cancel_sync(&t->timer);
    atomic_fetch_and(&t->vcpu->arch.hv.stimers_due, ~(1u << t->index));
    t->msg_pending = false;
    t->expires = 0;
}

static void stimer_start(struct hv_stimer *t)
{
    const uint64_t now = kvm_hv_reference_time(t->vcpu->kvm);
    uint64_t wait;

    if (t->config & STIMER_PERIODIC) {
        if (!t->expires)
            t->expires = now + t->count;
        else if (t->expires <= now) /* periods that were missed are not made up for */
            t->expires += ((now - t->expires) / t->count + 1) * t->count;
    } else {
        t->expires = t->count;
    }
    wait = t->expires > now ? t->expires - now : 0;
    if (!t->timer.fn) {
        struct ktimer_thread *timers = kvm_timer_thread(t->vcpu->kvm);

        if (!timers)
            return;
        ktimer_init(&t->timer, timers, stimer_fn, t);
    }
    if (wait > 1ull << 53) /* centuries */
        wait = 1ull << 53;
    ktimer_start(&t->timer, os_clock_ns() + wait * 100);
}

static int stimer_send(struct hv_stimer *t)
{
    const struct timer_message m = {.type = MSG_TIMER,
                                    .size = 24,
                                    .index = t->index,
                                    .expired = t->expires,
                                    .delivered = kvm_hv_reference_time(t->vcpu->kvm)};
    int r;

    if (t->config & STIMER_DIRECT) {
        raise_vector(t->vcpu, STIMER_VECTOR(t->config));
        return 0;
    }
    r = post_message(t->vcpu, STIMER_SINT(t->config), &m);
    if (!r)
        raise_sint(t->vcpu, STIMER_SINT(t->config));
    return r;
}

static void stimer_expired(struct hv_stimer *t)
{
    t->msg_pending = stimer_send(t) == -EAGAIN;
    if (!t->msg_pending && !(t->config & STIMER_PERIODIC))
        t->config &= ~STIMER_ENABLE;
}

void kvm_hv_process_stimers(struct kvm_vcpu *vcpu)
{
    uint32_t due = atomic_exchange(&vcpu->arch.hv.stimers_due, 0);

    for (unsigned i = 0; i < HV_STIMERS; i++) {
        struct hv_stimer *t = &vcpu->arch.hv.stimer[i];

        if (!(due >> i & 1) || !(t->config & STIMER_ENABLE))
            continue;
        if (t->expires && kvm_hv_reference_time(vcpu->kvm) >= t->expires)
            stimer_expired(t);
        if ((t->config & STIMER_ENABLE) && t->count && !t->msg_pending)
            stimer_start(t);
    }
}

static int set_stimer_config(struct hv_stimer *t, uint64_t config, bool host)
{
    const struct kvm_vcpu_hv *hv = &t->vcpu->arch.hv;

    if (!hv->synic_active && (!host || config))
        return 1;
    if (!host && (config & STIMER_DIRECT) && hv->enforce && !(hv->features_edx & HV_EDX_DIRECT))
        return 1;
    stimer_stop(t);
    if (!(config & STIMER_DIRECT) && !STIMER_SINT(config))
        config &= ~STIMER_ENABLE;
    t->config = config;
    if (config & STIMER_ENABLE)
        stimer_due(t);
    return 0;
}

static int set_stimer_count(struct hv_stimer *t, uint64_t count, bool host)
{
    if (!t->vcpu->arch.hv.synic_active && (!host || count))
        return 1;
    stimer_stop(t);
    t->count = count;
    if (!host && !count)
        t->config &= ~STIMER_ENABLE;
    else if (!host && (t->config & STIMER_AUTOENABLE))
        t->config |= STIMER_ENABLE;
    if (t->config & STIMER_ENABLE)
        stimer_due(t);
    return 0;
}

/* ---- MSRs ---- */
static struct hv_stimer *stimer_of(struct kvm_vcpu *vcpu, uint32_t index)
{
    struct hv_stimer *t = &vcpu->arch.hv.stimer[(index - 0x400000b0) / 2];

    t->vcpu = vcpu;
    t->index = (index - 0x400000b0) / 2;
    return t;
}

static int set_page(struct kvm_vcpu *vcpu, uint64_t *page, uint64_t data, bool host)
{
    static const char zero[4096];

    if ((data & PAGE_ENABLE) && !host && !vcpu->arch.hv.dont_zero_pages &&
        kvm_write_guest(vcpu->kvm, data & PAGE_MASK, zero, sizeof(zero)) < 0)
        return 1;
    *page = data;
    return 0;
}

static int set_sint(struct kvm_vcpu *vcpu, uint32_t index, uint64_t data, bool host)
{
    if ((data & 0xff) < 16 && !host && !(data & SINT_MASKED))
        return 1;
    vcpu->arch.hv.sint[index - 0x40000090] = data;
    update_auto_eoi(&vcpu->arch.hv);
    return 0;
}

static int end_of_message(struct kvm_vcpu *vcpu)
{
    for (unsigned i = 0; i < HV_STIMERS; i++) {
        struct hv_stimer *t = &vcpu->arch.hv.stimer[i];

        if (t->msg_pending && (t->config & STIMER_ENABLE))
            stimer_due(t);
    }
    return 0;
}

int kvm_hv_synic_get(struct kvm_vcpu *vcpu, uint32_t index, uint64_t *data, bool host)
{
    const struct kvm_vcpu_hv *hv = &vcpu->arch.hv;

    if (index >= 0x400000b0) {
        const struct hv_stimer *t = stimer_of(vcpu, index);

        *data = index & 1 ? t->count : t->config;
        return 0;
    }
    if (!hv->synic_active && !host)
        return 1;
    switch (index) {
    case 0x40000080:
        *data = hv->scontrol;
        return 0;
    case 0x40000081:
        *data = 1;
        return 0;
    case 0x40000082:
        *data = hv->siefp;
        return 0;
    case 0x40000083:
        *data = hv->simp;
        return 0;
    case 0x40000084:
        return 0;
    case 0x40000090 ... 0x4000009f:
        *data = hv->sint[index - 0x40000090];
        return 0;
    }
    return 1;
}

static void synic_exit(struct kvm_vcpu *vcpu, uint32_t index)
{
    const struct kvm_vcpu_hv *hv = &vcpu->arch.hv;

    vcpu->run->hyperv.type = KVM_EXIT_HYPERV_SYNIC;
    vcpu->run->hyperv.u.synic.msr = index;
    vcpu->run->hyperv.u.synic.control = hv->scontrol;
    vcpu->run->hyperv.u.synic.evt_page = hv->siefp;
    vcpu->run->hyperv.u.synic.msg_page = hv->simp;
    kvm_make_request(KVM_REQ_HV_EXIT, vcpu);
}

int kvm_hv_synic_set(struct kvm_vcpu *vcpu, uint32_t index, uint64_t data, bool host)
{
    struct kvm_vcpu_hv *hv = &vcpu->arch.hv;
    int r = 0;

    if (index >= 0x400000b0)
        return index & 1 ? set_stimer_count(stimer_of(vcpu, index), data, host)
                         : set_stimer_config(stimer_of(vcpu, index), data, host);
    if (!hv->synic_active && (!host || data))
        return !host || index != 0x40000081;
    switch (index) {
    case 0x40000080:
        hv->scontrol = data;
        break;
    case 0x40000081: /* version: a client may put it back */
        return !host;
    case 0x40000082:
        r = set_page(vcpu, &hv->siefp, data, host);
        break;
    case 0x40000083:
        r = set_page(vcpu, &hv->simp, data, host);
        break;
    case 0x40000084:
        return host ? 0 : end_of_message(vcpu);
    case 0x40000090 ... 0x4000009f:
        return set_sint(vcpu, index, data, host);
    default:
        return 1;
    }
    if (!r && !host)
        synic_exit(vcpu, index);
    return r;
}

/* KVM_CAP_HYPERV_SYNIC, and SYNIC2, which leaves the guest's pages as they are */
int kvm_hv_activate_synic(struct kvm_vcpu *vcpu, bool dont_zero_pages)
{
    vcpu->arch.hv.synic_active = true;
    vcpu->arch.hv.dont_zero_pages = dont_zero_pages;
    vcpu->arch.hv.scontrol = CONTROL_ENABLE;
    for (unsigned i = 0; i < HV_SINTS; i++)
        vcpu->arch.hv.sint[i] = SINT_MASKED;
    return 0;
}

void kvm_hv_vcpu_free(struct kvm_vcpu *vcpu)
{
    for (unsigned i = 0; i < HV_STIMERS; i++)
        if (vcpu->arch.hv.stimer[i].timer.fn)
            ktimer_cancel_sync(&vcpu->arch.hv.stimer[i].timer);
}
