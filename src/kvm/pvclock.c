/* SPDX-License-Identifier: MIT
 * pvclock.c: time for the guest: its TSC (offset and scaling), kvmclock, wall clock and steal time
 * (Documentation/virt/kvm/x86/msr.rst).
 *
 * The host's TSC is the master clock: all vCPUs count from one pair (master_cycle_now, master_kernel_ns), so that
 * kvmclock is the same on each and the guest may rely on it across them (PVCLOCK_TSC_STABLE_BIT). */
#include "x86.h"
#include <asm/kvm_para.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NSEC_PER_SEC           1000000000ull
#define PVCLOCK_TSC_STABLE_BIT (1u << 0)
#define PVCLOCK_GUEST_STOPPED  (1u << 1)
#define STEAL_INTERVAL_NS      4000000ull /* reading the scheduler's account is three system calls ... */
#define STEAL_WORTH_NS         200000ull  /* ... that a KVM_RUN so long after the last one makes all the same */

struct pvclock_vcpu_time_info { /* ABI: msr.rst, MSR_KVM_SYSTEM_TIME_NEW */
    uint32_t version, pad0;
    uint64_t tsc_timestamp, system_time;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags, pad[2];
};
struct pvclock_wall_clock {
    uint32_t version, sec, nsec;
};
_Static_assert(sizeof(struct pvclock_vcpu_time_info) == 32 && sizeof(struct pvclock_wall_clock) == 12, "guest ABI");

/* ---- the guest's TSC ---- */
uint64_t kvm_scale_tsc(struct kvm_vcpu *vcpu, uint64_t host_tsc)
{
    const uint64_t multiplier = vcpu->arch.tsc_multiplier;

    return multiplier ? (uint64_t)((unsigned __int128)host_tsc * multiplier >> 48) : host_tsc;
}

uint64_t kvm_read_l1_tsc(struct kvm_vcpu *vcpu, uint64_t host_tsc)
{
    return kvm_scale_tsc(vcpu, host_tsc) + vcpu->arch.tsc_offset;
}

uint64_t kvm_read_l1_tsc_now(struct kvm_vcpu *vcpu)
{
    return kvm_read_l1_tsc(vcpu, cpu_rdtsc());
}

uint64_t vcpu_tsc_khz(struct kvm_vcpu *vcpu)
{
    return vcpu->arch.tsc_khz;
}

void kvm_vcpu_write_tsc_offset(struct kvm_vcpu *vcpu, uint64_t offset)
{
    vcpu->arch.tsc_offset = offset;
    kvm_x86_ops->write_tsc_offset(vcpu, offset);
    kvm_make_request(KVM_REQ_CLOCK_UPDATE, vcpu);
    kvm_lapic_tsc_changed(vcpu);
}

/* A frequency within 250 ppm of the host's is the host's (as in Linux): no scaling then. */
int kvm_set_tsc_khz(struct kvm_vcpu *vcpu, uint64_t khz)
{
    const uint64_t host = cpu_tsc_khz(), tolerance = host / 4000;

    if (!khz)
        return -EINVAL;
    if (khz + tolerance >= host && khz <= host + tolerance) {
        vcpu->arch.tsc_multiplier = 0;
    } else {
        const unsigned __int128 ratio = ((unsigned __int128)khz << 48) / host;

        if (ratio == 0 || ratio >> 64)
            return -EINVAL;
        vcpu->arch.tsc_multiplier = (uint64_t)ratio;
    }
    vcpu->arch.tsc_khz = khz;
    kvm_x86_ops->write_tsc_multiplier(vcpu, vcpu->arch.tsc_multiplier);
    kvm_make_request(KVM_REQ_CLOCK_UPDATE, vcpu);
    kvm_lapic_tsc_changed(vcpu);
    return 0;
}

static uint64_t ticks_to_ns(uint64_t ticks, uint64_t khz)
{
    return (uint64_t)((unsigned __int128)ticks * 1000000 / khz);
}

/* A write of IA32_TSC by the client. vCPUs that are written (or created) within a second of each other with what the
 * first one's TSC would show now are meant to agree, and do exactly (as in Linux). */
void kvm_synchronize_tsc(struct kvm_vcpu *vcpu, uint64_t data)
{
    struct kvm_arch *a = &vcpu->kvm->arch;
    const uint64_t now = os_clock_ns(), khz = vcpu->arch.tsc_khz;
    uint64_t offset = data - kvm_scale_tsc(vcpu, cpu_rdtsc());
    bool matched = false;

    pthread_mutex_lock(&a->tsc_lock);
    if (a->last_tsc_khz == khz) {
        const uint64_t expected =
            a->last_tsc_write + (uint64_t)((unsigned __int128)(now - a->last_tsc_nsec) * khz / 1000000);
        const uint64_t second = khz * 1000;

        matched = data == 0 ? a->last_tsc_write == 0 : data + second > expected && data < expected + second;
    }
    if (matched) {
        offset = a->cur_tsc_offset;
    } else {
        a->cur_tsc_offset = offset;
        a->last_tsc_nsec = now;
        a->last_tsc_write = data;
        a->last_tsc_khz = khz;
    }
    pthread_mutex_unlock(&a->tsc_lock);
    kvm_vcpu_write_tsc_offset(vcpu, offset);
}

/* ---- kvmclock ---- */
static uint64_t kvmclock_at(struct kvm_arch *a, uint64_t host_tsc) /* under tsc_lock */
{
    return a->master_kernel_ns + (uint64_t)a->kvmclock_offset +
           ticks_to_ns(host_tsc - a->master_cycle_now, cpu_tsc_khz());
}

uint64_t get_kvmclock_ns(struct kvm *kvm)
{
    uint64_t ns;

    pthread_mutex_lock(&kvm->arch.tsc_lock);
    ns = kvmclock_at(&kvm->arch, cpu_rdtsc());
    pthread_mutex_unlock(&kvm->arch.tsc_lock);
    return ns;
}

void kvm_get_clock(struct kvm *kvm, struct kvm_clock_data *data)
{
    memset(data, 0, sizeof(*data));
    pthread_mutex_lock(&kvm->arch.tsc_lock);
    data->host_tsc = cpu_rdtsc();
    data->realtime = os_clock_real_ns();
    data->clock = kvmclock_at(&kvm->arch, data->host_tsc);
    pthread_mutex_unlock(&kvm->arch.tsc_lock);
    data->flags = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
}

int kvm_set_clock(struct kvm *kvm, const struct kvm_clock_data *data)
{
    uint64_t wanted = data->clock;

    if (data->flags & ~(uint32_t)KVM_CLOCK_REALTIME)
        return -EINVAL;
    pthread_mutex_lock(&kvm->arch.tsc_lock);
    kvm->arch.master_cycle_now = cpu_rdtsc();
    kvm->arch.master_kernel_ns = os_clock_boot_ns();
    if (data->flags & KVM_CLOCK_REALTIME) { /* the clock went on while the VM was saved */
        const uint64_t real = os_clock_real_ns();

        if (real > data->realtime)
            wanted += real - data->realtime;
    }
    kvm->arch.kvmclock_offset = (int64_t)(wanted - kvm->arch.master_kernel_ns);
    pthread_mutex_unlock(&kvm->arch.tsc_lock);
    kvm_hv_clock_changed(kvm);
    kvm_make_all_cpus_request(kvm, KVM_REQ_CLOCK_UPDATE, false);
    return 0;
}

/* ns = (ticks << shift) * mul >> 32, with mul as large as it goes (msr.rst, tsc_to_system_mul) */
static void get_time_scale(uint64_t khz, int8_t *shift, uint32_t *mul)
{
    uint64_t ticks = khz * 1000, ns = NSEC_PER_SEC;
    int s = 0;

    while (ticks > ns * 2 || ticks >> 32) {
        ticks >>= 1;
        s--;
    }
    while (ticks <= ns || ns >> 32) {
        if (ns >> 32 || ticks >> 31)
            ns >>= 1;
        else
            ticks <<= 1;
        s++;
    }
    *shift = (int8_t)s;
    *mul = (uint32_t)(((unsigned __int128)ns << 32) / ticks);
}

/* The vCPU's copy. The guest reads version, fields, version: odd means that it is being written. */
int kvm_guest_time_update(struct kvm_vcpu *vcpu)
{
    const gpa_t gpa = vcpu->arch.kvmclock_msr & ~1ull;
    struct pvclock_vcpu_time_info info = {0};
    struct kvm *kvm = vcpu->kvm;
    uint32_t version;

    if (!(vcpu->arch.kvmclock_msr & 1) || kvm_read_guest(kvm, gpa, &version, sizeof(version)) < 0)
        return 0;
    pthread_mutex_lock(&kvm->arch.tsc_lock);
    info.tsc_timestamp = kvm_read_l1_tsc(vcpu, kvm->arch.master_cycle_now);
    info.system_time = kvm->arch.master_kernel_ns + (uint64_t)kvm->arch.kvmclock_offset;
    pthread_mutex_unlock(&kvm->arch.tsc_lock);
    get_time_scale(vcpu->arch.tsc_multiplier ? vcpu->arch.tsc_khz : cpu_tsc_khz(), &info.tsc_shift,
                   &info.tsc_to_system_mul);
    info.flags = PVCLOCK_TSC_STABLE_BIT;
    if (vcpu->arch.pvclock_set_guest_stopped) {
        info.flags |= PVCLOCK_GUEST_STOPPED;
        vcpu->arch.pvclock_set_guest_stopped = false;
    }
    version |= 1;
    kvm_write_guest(kvm, gpa, &version, sizeof(version));
    atomic_thread_fence(memory_order_seq_cst);
    info.version = version;
    kvm_write_guest(kvm, gpa, &info, sizeof(info));
    atomic_thread_fence(memory_order_seq_cst);
    version++;
    kvm_write_guest(kvm, gpa, &version, sizeof(version));
    return 0;
}

int kvm_set_guest_paused(struct kvm_vcpu *vcpu)
{
    if (!(vcpu->arch.kvmclock_msr & 1))
        return -EINVAL;
    vcpu->arch.pvclock_set_guest_stopped = true;
    kvm_make_request(KVM_REQ_CLOCK_UPDATE, vcpu);
    return 0;
}

/* MSR_KVM_WALL_CLOCK: the time of day when kvmclock was 0 */
void kvm_write_wall_clock(struct kvm *kvm, gpa_t gpa)
{
    struct pvclock_wall_clock wall = {0};
    uint32_t version;
    uint64_t ns;

    if (!gpa || kvm_read_guest(kvm, gpa, &version, sizeof(version)) < 0)
        return;
    version |= 1;
    if (kvm_write_guest(kvm, gpa, &version, sizeof(version)) < 0)
        return;
    ns = os_clock_real_ns() - get_kvmclock_ns(kvm);
    wall.version = version;
    wall.sec = (uint32_t)(ns / NSEC_PER_SEC);
    wall.nsec = (uint32_t)(ns % NSEC_PER_SEC);
    atomic_thread_fence(memory_order_seq_cst);
    kvm_write_guest(kvm, gpa, &wall, sizeof(wall));
    atomic_thread_fence(memory_order_seq_cst);
    version++;
    kvm_write_guest(kvm, gpa, &version, sizeof(version));
}

/* ---- steal time: what the vCPU's thread waited for a processor ---- */
static int64_t thread_run_delay(void)
{
    char text[96];
    unsigned long long on_cpu, delay;
    const int fd = os_may_open() ? open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC) : -1;
    const ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return -1;
    text[n] = 0;
    return sscanf(text, "%llu %llu", &on_cpu, &delay) == 2 ? (int64_t)delay : -1;
}

/* Linux's version goes up at each KVM_RUN, and so does this one: by an even number, for nothing else is written. */
static void record_no_steal(struct kvm_vcpu *vcpu, gpa_t version_gpa)
{
    uint32_t version;

    if (kvm_read_guest(vcpu->kvm, version_gpa, &version, sizeof(version)) < 0)
        return;
    version += 2;
    kvm_write_guest(vcpu->kvm, version_gpa, &version, sizeof(version));
}

/* Called at each KVM_RUN (the thread may be another one: then the count starts anew). */
void record_steal_time(struct kvm_vcpu *vcpu)
{
    const gpa_t gpa = vcpu->arch.steal_msr & ~63ull;
    const uint64_t now = os_clock_ns();
    struct kvm_steal_time st;
    int64_t delay;
    bool soon;

    if (!(vcpu->arch.steal_msr & KVM_MSR_ENABLED))
        return;
    soon = now - vcpu->arch.steal_checked_ns < STEAL_INTERVAL_NS && now - vcpu->arch.steal_entered_ns < STEAL_WORTH_NS;
    vcpu->arch.steal_entered_ns = now;
    if (soon) {
        record_no_steal(vcpu, gpa + offsetof(struct kvm_steal_time, version));
        return;
    }
    vcpu->arch.steal_checked_ns = now;
    delay = thread_run_delay();
    if (delay < 0 || kvm_read_guest(vcpu->kvm, gpa, &st, sizeof(st)) < 0)
        return;
    if ((uint64_t)delay > vcpu->arch.steal_run_delay && vcpu->arch.steal_run_delay)
        st.steal += (uint64_t)delay - vcpu->arch.steal_run_delay;
    vcpu->arch.steal_run_delay = (uint64_t)delay;
    st.preempted = 0;
    st.version = (st.version | 1);
    kvm_write_guest(vcpu->kvm, gpa + offsetof(struct kvm_steal_time, version), &st.version, sizeof(st.version));
    atomic_thread_fence(memory_order_seq_cst);
    kvm_write_guest(vcpu->kvm, gpa + offsetof(struct kvm_steal_time, steal), &st.steal, sizeof(st.steal));
    kvm_write_guest(vcpu->kvm, gpa + offsetof(struct kvm_steal_time, preempted), &st.preempted, sizeof(st.preempted));
    atomic_thread_fence(memory_order_seq_cst);
    st.version++;
    kvm_write_guest(vcpu->kvm, gpa + offsetof(struct kvm_steal_time, version), &st.version, sizeof(st.version));
}
