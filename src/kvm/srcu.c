/* SPDX-License-Identifier: MIT
 * srcu.c: the writer's side of srcu.h. */
#include "srcu.h"
#include "os.h"
#include <sched.h>

/* A section that lasts longer has lost its core, perhaps to the writer: sleep, which lets it run. */
#define SPINS   64u
#define LOOK_NS 1000000ull

static void sleep_for_reader(struct srcu *s, uint32_t token, _Atomic uint32_t *readers)
{
    atomic_store(&s->waited, token + 1);
    if (atomic_load(readers))
        os_futex_wait(&s->waited, token + 1, os_clock_ns() + LOOK_NS);
    atomic_store(&s->waited, 0);
}

/* The writer has little left to do and is to run now, not when this thread's slice is over. */
void srcu_wake(struct srcu *s, uint32_t token)
{
    uint32_t waited = token + 1;

    if (atomic_compare_exchange_strong(&s->waited, &waited, 0)) {
        os_futex_wake(&s->waited, 1);
        sched_yield();
    }
}

static void wait_for_readers(struct srcu *s, unsigned phase)
{
    for (unsigned i = 0; i < SRCU_SLOTS; i++) {
        const uint64_t from = __builtin_ia32_rdtsc();

        for (unsigned spin = 0; atomic_load(&s->slot[i].readers[phase]); spin++) {
            const bool here = atomic_load(&s->slot[i].core) == cpu_host_core();

            if (spin < SPINS || (!here && __builtin_ia32_rdtsc() - from < CPU_LOOK_CYCLES))
                __asm__ volatile("pause"); /* a section is a system call or two */
            else
                sleep_for_reader(s, i * 2 + phase, &s->slot[i].readers[phase]);
        }
    }
}

/* New readers are sent to the other counter, so that the wait ends under load; a reader that took the old phase late is
 * caught by the second half. One that counted after our look loads the new pointer. */
void srcu_synchronize(struct srcu *s)
{
    pthread_mutex_lock(&s->writer);
    atomic_thread_fence(memory_order_seq_cst);
    for (int half = 0; half < 2; half++)
        wait_for_readers(s, atomic_fetch_add(&s->phase, 1) & 1);
    pthread_mutex_unlock(&s->writer);
}
