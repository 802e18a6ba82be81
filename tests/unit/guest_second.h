/* SPDX-License-Identifier: MIT
 * guest_second.h: a second vCPU of a test's guest, on a thread of its own. */
#ifndef TEST_GUEST_SECOND_H
#define TEST_GUEST_SECOND_H

#include "guest.h"
#include <pthread.h>

/* A second vCPU that runs beside the first from `gpa` with RBX and RDI, up to its VMCALL. */
struct guest_second {
    struct guest g;
    pthread_t thread;
};

static inline void *guest_second_run(void *guest)
{
    return (void *)(uintptr_t)guest_enter(guest);
}

static inline void guest_second_start(struct guest_second *s, uint64_t gpa, uint64_t rbx, uint64_t rdi)
{
    *guest_gpr(&s->g, R_RBX) = rbx;
    *guest_gpr(&s->g, R_RDI) = rdi;
    guest_w(&s->g, GUEST_RIP, gpa);
    guest_w(&s->g, GUEST_RSP, GUEST_STACK + 0x40000);
    assert_int_equal(pthread_create(&s->thread, NULL, guest_second_run, &s->g), 0);
}

static inline void guest_second_wait(struct guest_second *s)
{
    pthread_join(s->thread, NULL);
    assert_int_equal(guest_r(&s->g, VM_EXIT_REASON), EXIT_REASON_VMCALL);
}

static inline void guest_second_destroy(struct guest_second *s)
{
    cpu_destroy(s->g.cpu);
    free(s->g.pages);
}

#endif
