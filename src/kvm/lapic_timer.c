/* SPDX-License-Identifier: MIT
 * lapic_timer.c: the local APIC's timer: one-shot, periodic and TSC deadline (SDM 3A, "APIC Timer"), on ktimer. It
 * counts at 1 GHz before the divider, as KVM's. The vCPU thread writes its settings only while the ktimer is cancelled.
 */
#include "lapic.h"
#include "os.h"

#define MIN_PERIOD_NS 200000 /* a guest cannot ask more of the host: KVM's min_timer_period_us */

static void expire(struct kvm_lapic *apic)
{
    apic_local_deliver(apic, APIC_LVTT);
}

/* The host's clock and TSC drift against the calibration: what is left is slept again, never fired early. */
static uint64_t tsc_deadline_ns(struct kvm_lapic *apic, uint64_t deadline)
{
    const uint64_t now_ns = os_clock_ns(), now_tsc = kvm_read_l1_tsc_now(apic->vcpu);
    const uint64_t khz = vcpu_tsc_khz(apic->vcpu);
    unsigned __int128 ns;

    if (deadline <= now_tsc || khz == 0)
        return 0;
    ns = ((unsigned __int128)(deadline - now_tsc) * 1000000 + khz - 1) / khz;
    return ns > INT64_MAX ? INT64_MAX : now_ns + (uint64_t)ns;
}

static void start_tsc_deadline(struct kvm_lapic *apic)
{
    const uint64_t deadline = apic->t.tscdeadline;
    uint64_t ns;

    if (!deadline)
        return;
    ns = tsc_deadline_ns(apic, deadline);
    if (ns) {
        ktimer_start(&apic->t.timer, ns);
        return;
    }
    apic->t.tscdeadline = 0;
    expire(apic);
}

static void timer_fn(struct ktimer *timer)
{
    struct kvm_lapic *apic = timer->opaque;
    const uint64_t period_ns = apic->t.period_ns;

    if (apic->t.tscdeadline) {
        start_tsc_deadline(apic); /* expires, or sleeps the rest */
        return;
    }
    if (period_ns) {
        const uint64_t now_ns = os_clock_ns();
        uint64_t next_ns = apic->t.expires_ns + period_ns;

        if (next_ns <= now_ns) /* the missed ones cannot be told apart in IRR */
            next_ns += (now_ns - next_ns) / period_ns * period_ns + period_ns;
        apic->t.expires_ns = next_ns;
        ktimer_start(timer, next_ns);
    } else {
        apic->t.expires_ns = 0;
    }
    expire(apic);
}

static void stop_counting(struct kvm_lapic *apic)
{
    ktimer_cancel_sync(&apic->t.timer);
    apic->t.period_ns = apic->t.expires_ns = apic->t.tscdeadline = 0;
}

/* Counts from `count` (in divided ticks) now. */
static void start_counting(struct kvm_lapic *apic, uint64_t count)
{
    const uint64_t reload_ns = (uint64_t)apic_get(apic, APIC_TMICT) * apic->t.divide;
    uint64_t first_ns = count * apic->t.divide;

    if (!reload_ns || !count)
        return;
    if (apic->t.mode == APIC_TIMER_PERIODIC) {
        apic->t.period_ns = reload_ns < MIN_PERIOD_NS ? MIN_PERIOD_NS : reload_ns;
        if (count == apic_get(apic, APIC_TMICT))
            first_ns = apic->t.period_ns;
    }
    apic->t.expires_ns = os_clock_ns() + first_ns;
    ktimer_start(&apic->t.timer, apic->t.expires_ns);
}

/* SDM 3A, "APIC Timer": a change of mode to or from TSC deadline disarms the timer. */
void apic_timer_write_lvtt(struct kvm_lapic *apic, uint32_t value)
{
    const uint32_t mode = value & APIC_TIMER_MASK, old = apic->t.mode;

    if (mode == old)
        return;
    if (mode == APIC_TIMER_TSCDEADLINE || old == APIC_TIMER_TSCDEADLINE) {
        stop_counting(apic);
        apic_set(apic, APIC_TMICT, 0);
        apic->t.mode = mode;
    } else { /* the count goes on; what happens at its end changes */
        const uint32_t left = apic_timer_tmcct(apic);

        stop_counting(apic);
        apic->t.mode = mode;
        start_counting(apic, left);
    }
}

void apic_timer_write_tmict(struct kvm_lapic *apic, uint32_t value)
{
    if (apic->t.mode == APIC_TIMER_TSCDEADLINE)
        return;
    stop_counting(apic);
    apic_set(apic, APIC_TMICT, value);
    start_counting(apic, value);
}

static uint32_t divide_of(uint32_t tdcr)
{
    const uint32_t code = (tdcr & 3) | (tdcr & 8) >> 1;

    return code == 7 ? 1 : 2u << code;
}

void apic_timer_write_tdcr(struct kvm_lapic *apic, uint32_t value)
{
    const uint32_t divide = divide_of(value);
    uint32_t left;

    apic_set(apic, APIC_TDCR, value & 0xb);
    if (divide == apic->t.divide)
        return;
    left = apic_timer_tmcct(apic);
    if (apic->t.mode != APIC_TIMER_TSCDEADLINE)
        stop_counting(apic);
    apic->t.divide = divide;
    if (apic->t.mode != APIC_TIMER_TSCDEADLINE)
        start_counting(apic, left);
}

uint32_t apic_timer_tmcct(struct kvm_lapic *apic)
{
    const uint64_t expires_ns = apic->t.expires_ns, period_ns = apic->t.period_ns;
    const uint64_t now_ns = os_clock_ns();
    uint64_t left_ns;

    if (apic->t.mode == APIC_TIMER_TSCDEADLINE || !expires_ns)
        return 0;
    if (expires_ns > now_ns)
        left_ns = expires_ns - now_ns;
    else if (period_ns) /* the timer thread is late */
        left_ns = period_ns - (now_ns - expires_ns) % period_ns;
    else
        return 0;
    return (uint32_t)((left_ns + apic->t.divide - 1) / apic->t.divide);
}

uint64_t kvm_get_lapic_tscdeadline_msr(struct kvm_vcpu *vcpu)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);

    return apic && apic->t.mode == APIC_TIMER_TSCDEADLINE ? apic->t.tscdeadline : 0;
}

void kvm_set_lapic_tscdeadline_msr(struct kvm_vcpu *vcpu, uint64_t guest_tsc)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);

    if (!apic || apic->t.mode != APIC_TIMER_TSCDEADLINE)
        return;
    ktimer_cancel_sync(&apic->t.timer);
    apic->t.tscdeadline = guest_tsc;
    start_tsc_deadline(apic);
}

void kvm_lapic_tsc_changed(struct kvm_vcpu *vcpu)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);

    if (!apic || !apic->t.tscdeadline)
        return;
    ktimer_cancel_sync(&apic->t.timer);
    start_tsc_deadline(apic);
}

int apic_timer_init(struct kvm_lapic *apic)
{
    struct ktimer_thread *timers = kvm_timer_thread(apic->kvm);

    if (!timers)
        return -1;
    ktimer_init(&apic->t.timer, timers, timer_fn, apic);
    apic->t.divide = 2;
    return 0;
}

void apic_timer_stop(struct kvm_lapic *apic)
{
    stop_counting(apic);
}

void apic_timer_reset(struct kvm_lapic *apic)
{
    stop_counting(apic);
    apic->t.mode = apic_get(apic, APIC_LVTT) & APIC_TIMER_MASK;
    apic->t.divide = divide_of(apic_get(apic, APIC_TDCR));
}

void apic_timer_restore(struct kvm_lapic *apic, uint32_t tmcct)
{
    const uint64_t deadline = apic->t.tscdeadline; /* an MSR, not in the registers: kept */

    apic_timer_reset(apic);
    if (apic->t.mode != APIC_TIMER_TSCDEADLINE) {
        start_counting(apic, tmcct);
    } else {
        apic->t.tscdeadline = deadline;
        start_tsc_deadline(apic);
    }
}
