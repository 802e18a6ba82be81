/* SPDX-License-Identifier: MIT
 * srcu.c: the writer's side of srcu.h. */
#include "srcu.h"
#include "os.h"
#include <sched.h>
#include <time.h>

static void wait_for_readers(struct srcu *s, unsigned phase)
{
    const struct timespec pause = {.tv_nsec = 50 * 1000};

    for (unsigned i = 0; i < SRCU_SLOTS; i++)
        for (unsigned spin = 0; atomic_load(&s->slot[i].readers[phase]); spin++) {
            if (spin < 64)
                __asm__ volatile("pause"); /* a section is shorter than a system call */
            else if (spin < 80)
                sched_yield();
            else
                nanosleep(&pause, NULL);
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
