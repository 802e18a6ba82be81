/* SPDX-License-Identifier: MIT
 * pio.c: the round trip of a port write to the monitor: a guest loop of `out`, seen by a KVM API program. Prints the
 * time an exit and, beside it, what the host charges for a system call. */
#include "../tests/kvm/vm.h"
#include <sys/syscall.h>
#include <time.h>

VM_ASM(pio_loop, 64, "1: out %al, $0x10\n jmp 1b\n");

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
    printf("PIO exit to the monitor and back: %.0f ns; a system call: %.0f ns\n", exits * 1e9 / (double)rounds,
           calls * 1e9 / (double)rounds);
    vm_destroy(&vm);
    return 0;
}
