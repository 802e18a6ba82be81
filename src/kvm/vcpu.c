/* SPDX-License-Identifier: MIT
 * vcpu.c: requests to a vCPU, and getting its attention: out of guest mode (cpu_kick) or awake (futex).
 *
 * The protocol is Linux's: a sender sets its flag or request, then looks at vcpu->mode; the vCPU sets mode to
 * IN_GUEST_MODE, then looks at requests and flags. Both are sequentially consistent, so one of them sees the other. The
 * same holds between the flag and vcpu->blocked. */
#include "x86.h"

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
