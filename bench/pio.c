/* SPDX-License-Identifier: MIT
 * pio.c: the round trip of a port write to the monitor: a guest loop of `out`, seen by a KVM API program. Prints the
 * time an exit and, beside it, what the host charges for a system call, a signal and a page fault. */
#include "../tests/kvm/vm.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

VM_ASM(pio_loop, 64, "1: out %al, $0x10\n jmp 1b\n");

#define SIGNALS 20000
#define PAGES   4096

static void on_signal(int sig)
{
    (void)sig;
}

static double signal_cost(void);
static double fault_cost(void);

/* Time of this thread: other programs on the machine do not count. */
static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
    const long rounds = argc > 1 ? atol(argv[1]) : 200000;
    struct vm vm = vm_create(4 << 20);
    double start, exits, calls;

    vm_add_vcpu(&vm, 0);
    vm_load(&vm, pio_loop);
    vm_start_long(&vm, 0);
    for (int i = 0; i < 1000; i++)
        VM_MUST(vm_run(&vm, 0));
    start = now();
    for (long i = 0; i < rounds; i++)
        if (vm_run(&vm, 0) < 0 || vm.run[0]->exit_reason != KVM_EXIT_IO)
            vm_die("KVM_RUN");
    exits = now() - start;
    start = now();
    for (long i = 0; i < rounds; i++)
        syscall(SYS_getppid);
    calls = now() - start;
    printf(
        "PIO exit to the monitor and back: %.0f ns; a system call: %.0f ns, a signal: %.0f ns, a page fault: %.0f ns\n",
        exits * 1e9 / (double)rounds, calls * 1e9 / (double)rounds, signal_cost() * 1e9, fault_cost() * 1e9);
    vm_destroy(&vm);
    return 0;
}

/* Seconds: a signal that this thread sends to itself, handled. */
static double signal_cost(void)
{
    struct sigaction sa = {.sa_handler = on_signal};
    double start;

    sigaction(SIGUSR2, &sa, NULL);
    start = now();
    for (int i = 0; i < SIGNALS; i++)
        raise(SIGUSR2);
    return (now() - start) / SIGNALS;
}

/* Seconds: the first touch of an anonymous page. */
static double fault_cost(void)
{
    volatile char *p = mmap(NULL, PAGES * 4096ul, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    double start = now();

    if (p == MAP_FAILED)
        return 0;
    madvise((void *)p, PAGES * 4096ul, MADV_NOHUGEPAGE);
    for (int i = 0; i < PAGES; i++)
        p[i * 4096ul] = 1;
    return (now() - start) / PAGES;
}
