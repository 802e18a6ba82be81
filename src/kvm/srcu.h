/* SPDX-License-Identifier: MIT
 * srcu.h: sleepable RCU, as KVM's own kvm->srcu: a reader (any thread, outside of guest mode) marks a section in which
 * it uses a published pointer (slots, buses, routing); a writer publishes a new one, calls srcu_synchronize() and frees
 * the old. A section costs two uncontended locked instructions. No section may wait for a writer. */
#ifndef KVM_SRCU_H
#define KVM_SRCU_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include "../cpu/cpu.h"

#define SRCU_SLOTS 16

struct srcu { /* all zero is its initial state */
    pthread_mutex_t writer;
    _Atomic uint32_t phase;
    _Atomic uint32_t waited; /* futex word: token + 1 of the sections whose end a writer sleeps for */
    struct {
        _Atomic uint32_t readers[2], core; /* core: of the host, where the last one began */
        char pad[52];                      /* a cache line a slot: vCPU threads do not share one */
    } slot[SRCU_SLOTS];
};

void srcu_wake(struct srcu *, uint32_t token);

/* Threads differ in their stack's address: a cheap number that needs no thread-local storage. */
static inline unsigned srcu_read_lock(struct srcu *s)
{
    const uintptr_t stack = (uintptr_t)__builtin_frame_address(0) >> 16;
    const unsigned slot = (stack ^ stack >> 4 ^ stack >> 9) % SRCU_SLOTS;
    const unsigned phase = atomic_load_explicit(&s->phase, memory_order_relaxed) & 1;

    atomic_store_explicit(&s->slot[slot].core, cpu_host_core(), memory_order_relaxed);
    atomic_fetch_add(&s->slot[slot].readers[phase], 1);
    return slot * 2 + phase;
}

static inline void srcu_read_unlock(struct srcu *s, unsigned token)
{
    const uint32_t before = atomic_fetch_sub(&s->slot[token / 2].readers[token & 1], 1);

    if (__builtin_expect(before == 1 && atomic_load(&s->waited) == token + 1, 0))
        srcu_wake(s, token);
}

/* Every section that began before the call has ended when it returns. Not to be called in a section, nor with a lock
 * held that a reader takes inside of one. Callers wait for each other: slots, buses and routing have a mutex each. */
void srcu_synchronize(struct srcu *);

#endif
