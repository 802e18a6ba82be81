/* SPDX-License-Identifier: MIT
 * client.c: what a KVM client pays, by a program that knows <linux/kvm.h> alone, run under `anykvm exec` (or on a true
 * /dev/kvm): a port exit's round trip through ioctl, exits that KVM answers itself (APIC timer register, MSR, CPUID),
 * and adding and deleting a memory slot while two vCPUs run. Times of exits are the thread's own, the least of ten
 * turns; slot changes are by the clock: client [rounds] [changes]. */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define RAM   (16ul << 20)
#define CODE  0x10000ul
#define PML4  0x1000ul
#define VCPUS 2
#define SLOT  0x4000000ul /* where slots come and go */
#define MUST(call)                                               \
    ({                                                           \
        const long r_ = (long)(call);                            \
        if (r_ < 0) {                                            \
            fprintf(stderr, "%s: %s\n", #call, strerror(errno)); \
            exit(1);                                             \
        }                                                        \
        r_;                                                      \
    })

/* Each loop ends in a port write after rbx rounds of one exit that KVM answers. */
#define LOOP(name, text)                                                               \
    __asm__(".pushsection .rodata\n" #name ": " text "\n" #name "_end:\n.popsection"); \
    extern const uint8_t name[], name##_end[]
LOOP(port, "1: out %al, $0x10\n jmp 1b");
LOOP(apic, "mov $0xfee00380, %esi\n 1: mov (%rsi), %eax\n dec %rbx\n jnz 1b\n out %al, $0x10");
LOOP(msr, "mov $0x1b, %ecx\n 1: rdmsr\n dec %rbx\n jnz 1b\n out %al, $0x10");
LOOP(leaf, "1: xor %eax, %eax\n push %rbx\n cpuid\n pop %rbx\n dec %rbx\n jnz 1b\n out %al, $0x10");
LOOP(nothing, "1: dec %rbx\n jnz 1b\n out %al, $0x10");
/* works on its own memory, and reads where the slot is or is not */
LOOP(busy, "1: mov $0x4000000, %edi\n mov (%rdi), %edx\n mov $0x200000, %edi\n mov $512, %ecx\n"
           "2: add %rax, (%rdi)\n add $4096, %rdi\n dec %ecx\n jnz 2b\n jmp 1b");

static int sys, vm, vcpu[VCPUS];
static struct kvm_run *run[VCPUS];
static uint8_t *ram;

static double clock_of(clockid_t id)
{
    struct timespec ts;

    clock_gettime(id, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static int slot(unsigned n, uint64_t gpa, uint64_t size, void *hva)
{
    struct kvm_userspace_memory_region region = {
        .slot = n, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (uintptr_t)hva};

    return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

/* 64-bit mode, ring 0, 4 GiB mapped one to one */
static void start(int i, const uint8_t *code, const uint8_t *end, uint64_t rounds)
{
    const struct kvm_segment cs = {.limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    const struct kvm_segment ds = {.limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    struct kvm_regs regs = {.rip = CODE, .rsp = 0x80000 - 0x1000u * (unsigned)i, .rbx = rounds, .rflags = 2};
    uint64_t *pml4 = (uint64_t *)(ram + PML4), *pdpt = pml4 + 512, *pd = pml4 + 1024;
    struct kvm_sregs s;

    run[i]->immediate_exit = 1; /* what the last exit has begun is completed, and nothing else */
    ioctl(vcpu[i], KVM_RUN, 0);
    run[i]->immediate_exit = 0;
    memcpy(ram + CODE, code, (size_t)(end - code));
    pml4[0] = (PML4 + 4096) | 7;
    for (unsigned n = 0; n < 4; n++)
        pdpt[n] = (PML4 + (2 + n) * 4096) | 7;
    for (uint64_t n = 0; n < 4 * 512; n++)
        pd[n] = n << 21 | 0x87;
    MUST(ioctl(vcpu[i], KVM_GET_SREGS, &s));
    s.cs = cs;
    s.ds = s.es = s.ss = s.fs = s.gs = ds;
    s.cr3 = PML4;
    s.cr4 = 0x20;
    s.cr0 = 0x80050033;
    s.efer = 0x500;
    MUST(ioctl(vcpu[i], KVM_SET_SREGS, &s));
    MUST(ioctl(vcpu[i], KVM_SET_REGS, &regs));
    MUST(ioctl(vcpu[i], KVM_SET_MP_STATE, &(struct kvm_mp_state){.mp_state = KVM_MP_STATE_RUNNABLE}));
}

static void run_to_exit(void)
{
    MUST(ioctl(vcpu[0], KVM_RUN, 0));
    if (run[0]->exit_reason != KVM_EXIT_IO) {
        fprintf(stderr, "exit reason %u\n", run[0]->exit_reason);
        exit(1);
    }
}

static void make_vm(void)
{
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 256 * sizeof(cpuid->entries[0]));
    size_t size;

    sys = (int)MUST(open("/dev/kvm", O_RDWR | O_CLOEXEC));
    vm = (int)MUST(ioctl(sys, KVM_CREATE_VM, 0));
    MUST(ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000));
    MUST(ioctl(vm, KVM_CREATE_IRQCHIP, 0));
    ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(ram == MAP_FAILED ? -1 : slot(0, 0, RAM, ram));
    size = (size_t)MUST(ioctl(sys, KVM_GET_VCPU_MMAP_SIZE, 0));
    cpuid->nent = 256;
    MUST(ioctl(sys, KVM_GET_SUPPORTED_CPUID, cpuid));
    for (int i = 0; i < VCPUS; i++) {
        vcpu[i] = (int)MUST(ioctl(vm, KVM_CREATE_VCPU, i));
        run[i] = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu[i], 0);
        MUST(run[i] == MAP_FAILED ? -1 : 0);
        MUST(ioctl(vcpu[i], KVM_SET_CPUID2, cpuid));
    }
    free(cpuid);
}

/* ---- exits: the least of some turns, for a core that others use is slower ---- */
#define TURNS 10

static double to_the_client(long rounds)
{
    double least = 1e9;

    start(0, port, port_end, 0);
    for (int i = 0; i < 1000; i++)
        run_to_exit();
    for (int turn = 0; turn < TURNS; turn++) {
        const double from = clock_of(CLOCK_THREAD_CPUTIME_ID);
        double took;

        for (long i = 0; i < rounds / TURNS; i++)
            run_to_exit();
        took = clock_of(CLOCK_THREAD_CPUTIME_ID) - from;
        least = took < least ? took : least;
    }
    return least / (double)(rounds / TURNS) * 1e9;
}

static double in_kvm(const uint8_t *code, const uint8_t *end, long rounds)
{
    double least = 1e9;

    start(0, code, end, 1000);
    run_to_exit();
    for (int turn = 0; turn < TURNS; turn++) {
        double from, took;

        start(0, code, end, (uint64_t)(rounds / TURNS));
        from = clock_of(CLOCK_THREAD_CPUTIME_ID);
        run_to_exit();
        took = clock_of(CLOCK_THREAD_CPUTIME_ID) - from;
        least = took < least ? took : least;
    }
    return least / (double)(rounds / TURNS) * 1e9;
}

/* ---- slots ---- */
static _Atomic int stop;
static long seen[VCPUS]; /* reads that found no slot */

static void *runner(void *arg)
{
    const int i = (int)(intptr_t)arg;

    while (!stop) {
        if (ioctl(vcpu[i], KVM_RUN, 0) < 0 && errno != EINTR)
            exit(1);
        seen[i] += run[i]->exit_reason == KVM_EXIT_MMIO;
    }
    return NULL;
}

static void on_signal(int sig) {}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static void slots(long changes)
{
    double *took = calloc((size_t)changes, sizeof(*took));
    void *hva = mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_t thread[VCPUS];
    long within = 0;

    for (int i = 0; i < VCPUS; i++) {
        start(i, busy, busy_end, 0);
        MUST(-pthread_create(&thread[i], NULL, runner, (void *)(intptr_t)i));
    }
    usleep(100000);
    for (long n = 0; n < changes; n++) {
        const double from = clock_of(CLOCK_MONOTONIC);

        MUST(slot(1, SLOT, n & 1 ? 0 : 2 << 20, hva));
        took[n] = (clock_of(CLOCK_MONOTONIC) - from) * 1e6;
        within += took[n] <= 100;
        usleep(20); /* the vCPUs run, and use it */
    }
    stop = 1;
    for (int i = 0; i < VCPUS; i++)
        run[i]->immediate_exit = 1;
    for (int i = 0; i < VCPUS; i++) {
        pthread_kill(thread[i], SIGUSR1);
        pthread_join(thread[i], NULL);
    }
    qsort(took, (size_t)changes, sizeof(*took), by_value);
    printf("slot changes, %d vCPUs running: %.2f %% of %ld within 100 us; median %.1f us, 99 %% %.1f us, max %.0f us; "
           "%ld reads found none\n",
           VCPUS, 100.0 * (double)within / (double)changes, changes, took[changes / 2], took[changes * 99 / 100],
           took[changes - 1], seen[0] + seen[1]);
    free(took);
}

/* ---- what the host makes of it: as many busy threads that look at a word, and one that asks them all and waits,
 * sleeping where one does not answer soon, without any KVM ---- */
static _Atomic uint32_t asked, answered[VCPUS], waited[VCPUS];

static long futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *limit)
{
    return syscall(SYS_futex, word, op, value, limit, NULL, 0);
}

static void *answerer(void *arg)
{
    const int i = (int)(intptr_t)arg;

    while (!stop) {
        for (volatile int n = 0; n < 500; n++)
            ;
        if (answered[i] == asked)
            continue;
        answered[i] = asked;
        if (atomic_exchange(&waited[i], 0)) {
            futex(&waited[i], FUTEX_WAKE_PRIVATE, 1, NULL);
            sched_yield();
        }
    }
    return NULL;
}

static void ask(void)
{
    const struct timespec limit = {.tv_nsec = 1000000};
    const uint32_t n = ++asked;

    for (int i = 0; i < VCPUS; i++)
        for (unsigned tries = 0; answered[i] != n; tries++) {
            if (tries < 64) {
                __asm__ volatile("pause");
                continue;
            }
            waited[i] = 1;
            if (answered[i] != n)
                futex(&waited[i], FUTEX_WAIT_PRIVATE, 1, &limit);
        }
}

static void handshakes(long changes)
{
    double *took = calloc((size_t)changes, sizeof(*took));
    pthread_t thread[VCPUS];
    long within = 0;

    stop = 0;
    for (int i = 0; i < VCPUS; i++)
        MUST(-pthread_create(&thread[i], NULL, answerer, (void *)(intptr_t)i));
    usleep(100000);
    for (long n = 0; n < changes; n++) {
        const double from = clock_of(CLOCK_MONOTONIC);

        ask();
        took[n] = (clock_of(CLOCK_MONOTONIC) - from) * 1e6;
        within += took[n] <= 100;
        usleep(20);
    }
    stop = 1;
    for (int i = 0; i < VCPUS; i++)
        pthread_join(thread[i], NULL);
    qsort(took, (size_t)changes, sizeof(*took), by_value);
    printf("bare handshakes of %d threads: %.2f %% within 100 us; median %.1f us, 99 %% %.1f us, max %.0f us\n", VCPUS,
           100.0 * (double)within / (double)changes, took[changes / 2], took[changes * 99 / 100], took[changes - 1]);
    free(took);
}

int main(int argc, char **argv)
{
    const long rounds = argc > 1 ? atol(argv[1]) : 200000, changes = argc > 2 ? atol(argv[2]) : 10000;
    double loop;

    signal(SIGUSR1, on_signal);
    make_vm();
    printf("port exit to the client and back: %.0f ns\n", to_the_client(rounds));
    loop = in_kvm(nothing, nothing_end, rounds);
    printf("exit answered in KVM: APIC timer read %.0f ns, RDMSR %.0f ns, CPUID %.0f ns\n",
           in_kvm(apic, apic_end, rounds) - loop, in_kvm(msr, msr_end, rounds) - loop,
           in_kvm(leaf, leaf_end, rounds) - loop);
    fflush(stdout);
    slots(changes);
    handshakes(changes);
    return 0;
}
