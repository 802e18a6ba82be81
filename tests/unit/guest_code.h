/* SPDX-License-Identifier: MIT
 * guest_code.h: C functions that run in the test's guest and, for comparison, natively. They are copied to GUEST_CODE,
 * so they must be self-contained: no calls outside of the section, no data but their argument. */
#ifndef TEST_GUEST_CODE_H
#define TEST_GUEST_CODE_H

#include "guest.h"

#define GUEST_FN                                                                                     \
    __attribute__((noinline, noclone, aligned(16), section("guest_fn"), target("general-regs-only"), \
                   no_sanitize("address", "undefined"), optimize("no-tree-loop-distribute-patterns")))
extern const uint8_t __start_guest_fn[], __stop_guest_fn[];

#define GUEST_RETURN 0x8000u /* UD2: the return address of a called function */

typedef uint64_t guest_fn(uint8_t *data, uint64_t n);

/* Call a GUEST_FN in the guest with data at GUEST_DATA: runs to the UD2 that it returns to. Result: rAX. */
static inline uint64_t guest_call(struct guest *g, guest_fn *fn, uint64_t n)
{
    const size_t size = (size_t)(__stop_guest_fn - __start_guest_fn);
    const uint64_t ret = GUEST_RETURN;

    assert_true(size < GUEST_DATA - GUEST_CODE);
    memcpy(g->ram + GUEST_CODE, __start_guest_fn, size);
    memcpy(g->ram + GUEST_RETURN, "\x0f\x0b", 2);
    memcpy(g->ram + GUEST_STACK - 8, &ret, 8);
    cpu_code_unverify(g->cpu);
    guest_w(g, EXCEPTION_BITMAP, ~0u);
    guest_w(g, GUEST_RSP, GUEST_STACK - 8);
    guest_w(g, GUEST_RIP, GUEST_CODE + (uint64_t)((const uint8_t *)fn - __start_guest_fn));
    guest_w(g, GUEST_RFLAGS, F_RESERVED);
    *guest_gpr(g, R_RDI) = GUEST_DATA;
    *guest_gpr(g, R_RSI) = n;
    assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
    assert_int_equal(guest_r(g, VM_EXIT_INTR_INFO) & 0xff, VEC_UD);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_RETURN);
    return *guest_gpr(g, R_RAX);
}

#endif
