/* SPDX-License-Identifier: MIT
 * script.h: an engine whose guest is a C function, for tests of VM entries and exits without guest code. */
#ifndef TEST_SCRIPT_H
#define TEST_SCRIPT_H

#include "guest.h"
#include <signal.h>
#include "../../src/cpu/engine.h"
#include "../../src/cpu/mem/mem.h"
#include "../../src/cpu/vmx/vmx_unit.h"

static int (*script)(struct cpu *); /* what the guest does, until CPU_VMEXIT */
static unsigned script_runs;

static int script_run(struct cpu *cpu)
{
    script_runs++;
    return script(cpu);
}

static const struct engine script_engine = {.name = "script", .run = script_run};

static struct sigaction host_segv; /* host.c's handler: cmocka puts its own in its place before each test */

/* A two-byte instruction with register operands only. */
static const struct insn insn2 = {.len = 2, .mem = 0xff, .base = REG_NONE, .index = REG_NONE, .bytes = {0x0f, 0x00}};

static inline int script_hlt(struct cpu *cpu)
{
    return vmx_intercept(cpu, &insn2, EXIT_REASON_HLT, 0);
}

static inline int script_setup(void **state)
{
    static struct guest g;

    if (!cpu_engine_exists("script"))
        engine_register(&script_engine);
    guest_create(&g, "script");
    if (!host_segv.sa_handler)
        sigaction(SIGSEGV, NULL, &host_segv);
    script = script_hlt;
    script_runs = 0;
    *state = &g;
    return 0;
}

static inline int script_teardown(void **state)
{
    guest_destroy(*state);
    return 0;
}

#define SCRIPT_TEST(f) cmocka_unit_test_setup_teardown(f, script_setup, script_teardown)

#endif
