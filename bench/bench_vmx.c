/* SPDX-License-Identifier: MIT
 * bench_vmx.c: what a VM entry and exit cost without a guest: the budget of a port access is 1 us for the whole way
 * through KVM and the monitor, so this part should stay below 250 ns. Prints ns a round trip; judges nothing. */
#include "../tests/unit/script.h"
#include <stdio.h>
#include <time.h>

#define ROUNDS 200000u

static int script_out(struct cpu *cpu)
{
    return vmx_intercept_io(cpu, &insn2, 0x3f8, 1, false, false, false, false, 0);
}

static double now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1e9 + ts.tv_nsec;
}

static void round_plain(struct guest *g)
{
    cpu_vmresume(g->cpu);
}

/* What KVM does at each port exit: reads the exit, moves RIP. */
static void round_pio(struct guest *g)
{
    uint64_t reason, qualification, rip, len;

    cpu_vmresume(g->cpu);
    cpu_vmread(g->cpu, VM_EXIT_REASON, &reason);
    cpu_vmread(g->cpu, EXIT_QUALIFICATION, &qualification);
    cpu_vmread(g->cpu, GUEST_RIP, &rip);
    cpu_vmread(g->cpu, VM_EXIT_INSTRUCTION_LEN, &len);
    cpu_vmwrite(g->cpu, GUEST_RIP, rip + len);
}

static void round_all_stale(struct guest *g)
{
    g->cpu->vmx->level[0].stale = STALE_ALL;
    cpu_vmresume(g->cpu);
}

static void measure(struct guest *g, const char *name, void (*round)(struct guest *))
{
    double best = 1e30;

    for (unsigned pass = 0; pass < 5; pass++) {
        const double start = now_ns();

        guest_w(g, GUEST_RIP, GUEST_CODE);
        for (unsigned i = 0; i < ROUNDS; i++)
            round(g);
        if (now_ns() - start < best)
            best = now_ns() - start;
    }
    printf("%-28s %7.1f ns\n", name, best / ROUNDS);
}

int main(void)
{
    static struct guest g;

    engine_register(&script_engine);
    guest_create(&g, "script");
    script = script_out;
    if (guest_run(&g) != EXIT_REASON_IO_INSTRUCTION)
        return 1;
    measure(&g, "vmresume, port exit", round_plain);
    measure(&g, "... with KVM's accesses", round_pio);
    measure(&g, "... every check made anew", round_all_stale);
    guest_destroy(&g);
    return 0;
}
