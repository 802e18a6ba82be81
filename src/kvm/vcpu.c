/* SPDX-License-Identifier: MIT
 * vcpu.c: requests to a vCPU, and getting its attention: out of guest mode (cpu_kick) or awake (futex).
 *
 * The protocol is Linux's: a sender sets its flag or request, then looks at vcpu->mode; the vCPU sets mode to
 * IN_GUEST_MODE, then looks at requests and flags. Both are sequentially consistent, so one of them sees the other. The
 * same holds between the flag and vcpu->blocked. */
#include "x86.h"
#include <errno.h>
#include <string.h>

void kvm_make_request(int req, struct kvm_vcpu *vcpu)
{
    atomic_fetch_or(&vcpu->requests, 1ull << req);
}

bool kvm_check_request(int req, struct kvm_vcpu *vcpu)
{
    const uint64_t bit = 1ull << req;

    if (!(atomic_load_explicit(&vcpu->requests, memory_order_relaxed) & bit))
        return false;
    return atomic_fetch_and(&vcpu->requests, ~bit) & bit;
}

bool kvm_request_pending(struct kvm_vcpu *vcpu)
{
    return atomic_load(&vcpu->requests) != 0;
}

/* The word changes first: a vCPU that is about to sleep finds it changed. */
void kvm_vcpu_wake_up(struct kvm_vcpu *vcpu)
{
    atomic_fetch_add(&vcpu->wake, 1);
    if (atomic_load(&vcpu->blocked))
        os_futex_wake(&vcpu->wake, 1);
}

void kvm_vcpu_kick(struct kvm_vcpu *vcpu)
{
    kvm_vcpu_wake_up(vcpu);
    if (atomic_load(&vcpu->mode) == IN_GUEST_MODE)
        cpu_kick(vcpu->arch.cpu);
}

/* wait: when it returns, each vCPU has left guest mode since, or passed a safepoint where the kick was seen. Not from
 * within guest mode, and without a lock that a vCPU's thread takes. */
bool kvm_make_all_cpus_request(struct kvm *kvm, int req, bool wait)
{
    struct kvm_vcpu *vcpu;
    bool called = false;
    int i;

    kvm_for_each_vcpu(i, vcpu, kvm)
    {
        kvm_make_request(req, vcpu);
        if (atomic_load(&vcpu->mode) == IN_GUEST_MODE) {
            cpu_kick(vcpu->arch.cpu);
            called = true;
        }
    }
    if (called && wait)
        cpu_epoch_wait(kvm->domain);
    return called;
}

void kvm_flush_remote_tlbs(struct kvm *kvm)
{
    kvm_make_all_cpus_request(kvm, KVM_REQ_TLB_FLUSH, true);
}

/* ---- KVM_SET_SIGNAL_MASK ----
 * In Linux the mask is in force during KVM_RUN, and a signal that it lets through ends the call and is still pending
 * after it, for the thread's own mask blocks it. Here a signal that the thread blocks is never let through: its
 * handler, or its default action, would run inside of the call. It is looked for instead, at each exit, and a timer
 * makes an exit every two milliseconds. What the mask blocks and the thread does not is blocked for the length of the
 * call. */
#define SIGNAL_POLL_NS 2000000ull

static sigset_t sigset_of(struct kvm_vcpu *vcpu)
{
    sigset_t set;

    sigemptyset(&set);
    memcpy(&set, &vcpu->sigset, sizeof(vcpu->sigset));
    return set;
}

bool kvm_sigset_pending(struct kvm_vcpu *vcpu)
{
    const sigset_t set = sigset_of(vcpu);

    return os_signal_pending(&set);
}

static void signal_poll(struct ktimer *timer)
{
    struct kvm_vcpu *vcpu = timer->opaque;

    kvm_vcpu_kick(vcpu);
    ktimer_start(timer, os_clock_ns() + SIGNAL_POLL_NS);
}

/* 0, or -EINTR: such a signal is there already */
int kvm_sigset_activate(struct kvm_vcpu *vcpu, sigset_t *saved)
{
    static const int never_blocked[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP}; /* faults of guest accesses */
    struct ktimer_thread *timers = kvm_timer_thread(vcpu->kvm);
    sigset_t set = sigset_of(vcpu);

    if (!timers)
        return -ENOMEM;
    for (unsigned i = 0; i < ARRAY_SIZE(never_blocked); i++)
        sigdelset(&set, never_blocked[i]);
    pthread_sigmask(SIG_BLOCK, &set, saved);
    if (!vcpu->signal_poll.fn)
        ktimer_init(&vcpu->signal_poll, timers, signal_poll, vcpu);
    ktimer_start(&vcpu->signal_poll, os_clock_ns() + SIGNAL_POLL_NS);
    if (!kvm_sigset_pending(vcpu))
        return 0;
    kvm_sigset_deactivate(vcpu, saved);
    return -EINTR;
}

void kvm_sigset_deactivate(struct kvm_vcpu *vcpu, const sigset_t *saved)
{
    ktimer_cancel_sync(&vcpu->signal_poll);
    pthread_sigmask(SIG_SETMASK, saved, NULL);
}
