/* SPDX-License-Identifier: MIT
 * test_clock.c: a guest's time: TSC offset and frequency, kvmclock, wall clock, KVM_GET/SET_CLOCK. */
#include "vm.h"
#include <asm/kvm_para.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <time.h>
#include <cmocka.h>

#define RAM    (4ull << 20)
#define CLOCK  0x40000ull
#define WALL   0x41000ull
#define STEAL  0x42000ull
#define SECOND 1000000000ull

struct time_info { /* msr.rst, MSR_KVM_SYSTEM_TIME_NEW */
    uint32_t version, pad0;
    uint64_t tsc_timestamp, system_time;
    uint32_t mul;
    int8_t shift;
    uint8_t flags, pad[2];
};

/* Registers the clocks, then answers each exit with its TSC in rbx. */
VM_ASM(clock_guest, 64,
       "xor %edx, %edx\n mov $0x40001, %eax\n mov $0x4b564d01, %ecx\n wrmsr\n"
       "mov $0x41000, %eax\n mov $0x4b564d00, %ecx\n wrmsr\n"
       "1: rdtsc\n shl $32, %rdx\n or %rdx, %rax\n mov %rax, %rbx\n out %al, $0x10\n jmp 1b\n");

static struct vm clock_vm(int vcpus, uint32_t tsc_khz)
{
    struct vm vm = vm_create(RAM);

    for (int i = 0; i < vcpus; i++) {
        vm_add_vcpu(&vm, i);
        if (tsc_khz)
            VM_MUST(vm_ioctl(vm.vcpu[i], KVM_SET_TSC_KHZ, tsc_khz));
        vm_load(&vm, clock_guest);
        vm_start_long(&vm, i);
    }
    return vm;
}

static uint64_t guest_tsc(struct vm *vm, int i)
{
    VM_MUST(vm_run(vm, i));
    assert_int_equal(vm->run[i]->exit_reason, KVM_EXIT_IO);
    return vm_regs(vm, i).rbx;
}

static uint64_t now_ns(clockid_t clock)
{
    struct timespec ts;

    clock_gettime(clock, &ts);
    return (uint64_t)ts.tv_sec * SECOND + (uint64_t)ts.tv_nsec;
}

/* As a guest does it */
static uint64_t kvmclock_ns(struct vm *vm, uint64_t tsc)
{
    const struct time_info *t = (const struct time_info *)(vm->ram + CLOCK);
    uint64_t delta = tsc - t->tsc_timestamp;

    delta = t->shift >= 0 ? delta << t->shift : delta >> -t->shift;
    return t->system_time + (uint64_t)((unsigned __int128)delta * t->mul >> 32);
}

static uint64_t vm_clock(struct vm *vm)
{
    struct kvm_clock_data data;

    VM_MUST(vm_ioctl(vm->fd, KVM_GET_CLOCK, &data));
    return data.clock;
}

static void assert_between(uint64_t low, uint64_t value, uint64_t high)
{
    if (value < low || value > high)
        print_error("%llu <= %llu <= %llu does not hold\n", (unsigned long long)low, (unsigned long long)value,
                    (unsigned long long)high);
    assert_true(value >= low && value <= high);
}

/* Time by the guest's clock lies between two readings of the VM's clock around it. */
static void check_kvmclock(struct vm *vm)
{
    const struct time_info *t = (const struct time_info *)(vm->ram + CLOCK);

    guest_tsc(vm, 0); /* the MSRs are written, the structure is filled at the next entry */
    for (int i = 0; i < 100; i++) {
        const uint64_t before = vm_clock(vm), tsc = guest_tsc(vm, 0), after = vm_clock(vm);

        assert_between(before - 200, kvmclock_ns(vm, tsc), after + 200);
    }
    assert_int_equal(t->version & 1, 0);
    assert_true(t->version != 0);
    assert_true(t->flags & 1); /* PVCLOCK_TSC_STABLE_BIT */
}

static void kvmclock_is_the_vm_clock(void **state)
{
    struct vm vm = clock_vm(1, 0);

    check_kvmclock(&vm);
    vm_destroy(&vm);
}

static void kvmclock_follows_a_scaled_tsc(void **state)
{
    static const uint32_t khz[] = {500000, 1000000, 3700000, 9000000};

    for (unsigned i = 0; i < sizeof(khz) / sizeof(khz[0]); i++) {
        struct vm vm = clock_vm(1, khz[i]);

        assert_int_equal(vm_ioctl(vm.vcpu[0], KVM_GET_TSC_KHZ, 0), khz[i]);
        check_kvmclock(&vm);
        vm_destroy(&vm);
    }
}

static void scaled_tsc_has_its_frequency(void **state)
{
    struct vm vm = clock_vm(1, 1000000); /* a tick is a nanosecond */
    const uint64_t before = now_ns(CLOCK_MONOTONIC), first = guest_tsc(&vm, 0), mid = now_ns(CLOCK_MONOTONIC);
    uint64_t late, last, after;

    usleep(200000);
    late = now_ns(CLOCK_MONOTONIC);
    last = guest_tsc(&vm, 0);
    after = now_ns(CLOCK_MONOTONIC);
    assert_between((late - mid) * 998 / 1000, last - first, (after - before) * 1002 / 1000);
    vm_destroy(&vm);
}

static void tscs_of_vcpus_agree(void **state)
{
    struct vm vm = clock_vm(2, 0);

    for (int i = 0; i < 100; i++) {
        const uint64_t a = guest_tsc(&vm, 0), b = guest_tsc(&vm, 1), c = guest_tsc(&vm, 0);

        assert_true(a < b && b < c);
    }
    vm_destroy(&vm);
}

static void written_tsc_counts_on(void **state)
{
    struct vm vm = clock_vm(2, 0);
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry tsc;
    } msrs = {{.nmsrs = 1}, {.index = 0x10, .data = 1ull << 50}};
    uint64_t a, b, c;

    for (int i = 0; i < 2; i++) /* one after the other with one value: they agree all the same */
        assert_int_equal(vm_ioctl(vm.vcpu[i], KVM_SET_MSRS, &msrs), 1);
    a = guest_tsc(&vm, 0);
    b = guest_tsc(&vm, 1);
    c = guest_tsc(&vm, 0);
    assert_between(1ull << 50, a, b);
    assert_between(b, c, (1ull << 50) + (1ull << 36));
    vm_destroy(&vm);
}

static void set_clock_moves_the_guest(void **state)
{
    struct vm vm = clock_vm(1, 0);
    const uint64_t wanted = 5000 * SECOND;
    struct kvm_clock_data data = {.clock = wanted};
    uint64_t tsc;

    guest_tsc(&vm, 0);
    guest_tsc(&vm, 0);
    VM_MUST(vm_ioctl(vm.fd, KVM_SET_CLOCK, &data));
    tsc = guest_tsc(&vm, 0);
    assert_between(wanted, kvmclock_ns(&vm, tsc), wanted + 10 * SECOND);
    assert_between(kvmclock_ns(&vm, tsc), vm_clock(&vm), wanted + 10 * SECOND);
    data = (struct kvm_clock_data){.clock = wanted, .flags = 1u << 20};
    assert_int_equal(vm_ioctl(vm.fd, KVM_SET_CLOCK, &data), -1);
    assert_int_equal(errno, EINVAL);
    vm_destroy(&vm);
}

static void wall_clock_plus_kvmclock_is_now(void **state)
{
    struct vm vm = clock_vm(1, 0);
    uint32_t wall[3];
    uint64_t now;

    guest_tsc(&vm, 0);
    guest_tsc(&vm, 0);
    memcpy(wall, vm.ram + WALL, sizeof(wall));
    assert_int_equal(wall[0] & 1, 0);
    now = wall[1] * SECOND + wall[2] + vm_clock(&vm);
    assert_between(now_ns(CLOCK_REALTIME) - SECOND / 10, now, now_ns(CLOCK_REALTIME) + SECOND / 10);
    vm_destroy(&vm);
}

static void paused_guest_is_told_once(void **state)
{
    struct vm vm = clock_vm(1, 0);
    const struct time_info *t = (const struct time_info *)(vm.ram + CLOCK);

    assert_int_equal(vm_ioctl(vm.vcpu[0], KVM_KVMCLOCK_CTRL, 0), -1); /* no kvmclock yet */
    assert_int_equal(errno, EINVAL);
    guest_tsc(&vm, 0);
    VM_MUST(vm_ioctl(vm.vcpu[0], KVM_KVMCLOCK_CTRL, 0));
    guest_tsc(&vm, 0);
    assert_true(t->flags & 2);
    vm_destroy(&vm);
}

/* ---- steal time ---- */
static const struct kvm_steal_time *with_steal_time(struct vm *vm)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry steal;
    } msrs = {{.nmsrs = 1}, {.index = MSR_KVM_STEAL_TIME, .data = STEAL | 1}};

    if (vm_ioctl(vm->vcpu[0], KVM_SET_MSRS, &msrs) != 1)
        skip();
    return (const struct kvm_steal_time *)(vm->ram + STEAL);
}

/* A guest tells by it that the vCPU was away: by an even number at each KVM_RUN, however soon it is. */
static void steal_version_goes_up_at_each_run(void **state)
{
    struct vm vm = clock_vm(1, 0);
    const struct kvm_steal_time *st = with_steal_time(&vm);
    uint32_t version;

    guest_tsc(&vm, 0);
    for (int i = 0; i < 50; i++) {
        version = st->version;
        if (i % 10 == 9)
            usleep(6000);
        guest_tsc(&vm, 0);
        assert_true(st->version > version);
        assert_int_equal(st->version & 1, 0);
        assert_int_equal(st->preempted, 0);
    }
    vm_destroy(&vm);
}

/* The nanoseconds that this thread was ready to run and did not, by the scheduler */
static uint64_t waited_for_a_processor(void)
{
    FILE *f = fopen("/proc/thread-self/schedstat", "re");
    unsigned long long ran, waited;
    const bool ok = f && fscanf(f, "%llu %llu", &ran, &waited) == 2;

    if (f)
        fclose(f);
    if (!ok)
        skip();
    return waited;
}

static void *hog(void *arg)
{
    for (const atomic_bool *stop = arg; !atomic_load(stop);)
        ;
    return NULL;
}

/* What the vCPU's thread waited between two KVM_RUNs is there when the guest next looks, and no more than that. */
static void steal_time_is_what_was_waited(void **state)
{
    struct vm vm = clock_vm(1, 0);
    const struct kvm_steal_time *st = with_steal_time(&vm);
    uint64_t before[2], after[2], steal, until;
    atomic_bool stop = false;
    cpu_set_t all, one;
    pthread_t thread;

    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    if (sched_getaffinity(0, sizeof(all), &all) || sched_setaffinity(0, sizeof(one), &one))
        skip();
    before[0] = waited_for_a_processor();
    guest_tsc(&vm, 0);
    after[0] = waited_for_a_processor();
    steal = st->steal;
    pthread_create(&thread, NULL, hog, &stop); /* on the same core */
    for (until = now_ns(CLOCK_MONOTONIC) + SECOND / 10; now_ns(CLOCK_MONOTONIC) < until;)
        ;
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    before[1] = waited_for_a_processor();
    guest_tsc(&vm, 0);
    after[1] = waited_for_a_processor();
    sched_setaffinity(0, sizeof(all), &all);
    assert_true(before[1] - after[0] > 1000000); /* there was something to see */
    assert_true(st->steal - steal >= before[1] - after[0]);
    assert_true(st->steal - steal <= after[1] - before[0]);
    vm_destroy(&vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kvmclock_is_the_vm_clock),
        cmocka_unit_test(kvmclock_follows_a_scaled_tsc),
        cmocka_unit_test(scaled_tsc_has_its_frequency),
        cmocka_unit_test(tscs_of_vcpus_agree),
        cmocka_unit_test(written_tsc_counts_on),
        cmocka_unit_test(set_clock_moves_the_guest),
        cmocka_unit_test(wall_clock_plus_kvmclock_is_now),
        cmocka_unit_test(paused_guest_is_told_once),
        cmocka_unit_test(steal_version_goes_up_at_each_run),
        cmocka_unit_test(steal_time_is_what_was_waited),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
