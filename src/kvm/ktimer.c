/* SPDX-License-Identifier: MIT
 * ktimer.c: the timers of a VM: a min-heap of absolute CLOCK_MONOTONIC times and one thread, started with the first
 * timer, that sleeps until the earliest. Callbacks run on that thread with no lock held. Arming a timer costs a system
 * call only when it becomes the earliest while the thread sleeps. */
#include "irq.h"
#include "os.h"
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#define NEVER UINT64_MAX

struct ktimer_thread {
    pthread_mutex_t lock;
    struct ktimer **heap;
    unsigned count, capacity;
    struct ktimer *running;  /* its callback is being called */
    uint64_t sleeping_until; /* 0: awake, it will look at the heap by itself */
    bool started, stop;
    unsigned waiters;            /* in ktimer_cancel_sync() */
    _Atomic uint32_t wake, done; /* futex words: heap changed; a callback returned */
    pthread_t thread;
};

/* ---- heap: children of i are 2i + 1 and 2i + 2 ---- */
static void heap_put(struct ktimer_thread *tt, unsigned i, struct ktimer *t)
{
    tt->heap[i] = t;
    t->heap_index = (int)i;
}

static void heap_up(struct ktimer_thread *tt, unsigned i)
{
    struct ktimer *t = tt->heap[i];

    for (; i > 0 && tt->heap[(i - 1) / 2]->deadline_ns > t->deadline_ns; i = (i - 1) / 2)
        heap_put(tt, i, tt->heap[(i - 1) / 2]);
    heap_put(tt, i, t);
}

static void heap_down(struct ktimer_thread *tt, unsigned i)
{
    struct ktimer *t = tt->heap[i];

    for (;;) {
        unsigned child = 2 * i + 1;

        if (child + 1 < tt->count && tt->heap[child + 1]->deadline_ns < tt->heap[child]->deadline_ns)
            child++;
        if (child >= tt->count || tt->heap[child]->deadline_ns >= t->deadline_ns)
            break;
        heap_put(tt, i, tt->heap[child]);
        i = child;
    }
    heap_put(tt, i, t);
}

static void heap_remove(struct ktimer_thread *tt, struct ktimer *t)
{
    const unsigned i = (unsigned)t->heap_index;
    struct ktimer *last = tt->heap[--tt->count];

    t->heap_index = -1;
    if (last == t)
        return;
    heap_put(tt, i, last);
    heap_up(tt, i);
    heap_down(tt, (unsigned)last->heap_index);
}

/* ---- the thread ---- */
static void run_one(struct ktimer_thread *tt, struct ktimer *t)
{
    heap_remove(tt, t);
    tt->running = t;
    pthread_mutex_unlock(&tt->lock);
    t->fn(t);
    pthread_mutex_lock(&tt->lock);
    tt->running = NULL;
    atomic_fetch_add(&tt->done, 1);
    if (tt->waiters)
        os_futex_wake(&tt->done, INT32_MAX);
}

static void *timer_thread(void *arg)
{
    struct ktimer_thread *tt = arg;

    os_thread_low_latency();
    pthread_mutex_lock(&tt->lock);
    while (!tt->stop) {
        const uint64_t deadline = tt->count ? tt->heap[0]->deadline_ns : NEVER;
        uint32_t seen;

        if (tt->count && deadline <= os_clock_ns()) {
            run_one(tt, tt->heap[0]);
            continue;
        }
        tt->sleeping_until = deadline;
        seen = atomic_load(&tt->wake);
        pthread_mutex_unlock(&tt->lock);
        os_futex_wait(&tt->wake, seen, deadline);
        pthread_mutex_lock(&tt->lock);
        tt->sleeping_until = 0;
    }
    pthread_mutex_unlock(&tt->lock);
    return NULL;
}

static void wake_thread(struct ktimer_thread *tt)
{
    tt->sleeping_until = 0; /* once is enough */
    atomic_fetch_add(&tt->wake, 1);
    os_futex_wake(&tt->wake, 1);
}

struct ktimer_thread *ktimer_thread_create(void)
{
    struct ktimer_thread *tt = calloc(1, sizeof(*tt));

    if (tt)
        pthread_mutex_init(&tt->lock, NULL);
    return tt;
}

void ktimer_thread_destroy(struct ktimer_thread *tt)
{
    bool started;

    if (!tt)
        return;
    pthread_mutex_lock(&tt->lock);
    tt->stop = true;
    started = tt->started;
    wake_thread(tt);
    pthread_mutex_unlock(&tt->lock);
    if (started)
        os_thread_join(&tt->thread);
    pthread_mutex_destroy(&tt->lock);
    free(tt->heap);
    free(tt);
}

/* ---- timers ---- */
void ktimer_init(struct ktimer *t, struct ktimer_thread *tt, void (*fn)(struct ktimer *), void *opaque)
{
    *t = (struct ktimer){.fn = fn, .opaque = opaque, .thread = tt, .heap_index = -1};
}

static int make_room(struct ktimer_thread *tt)
{
    struct ktimer **heap;

    if (tt->count < tt->capacity)
        return 0;
    heap = realloc(tt->heap, (tt->capacity + 64) * sizeof(*heap));
    if (!heap)
        return -ENOMEM;
    tt->heap = heap;
    tt->capacity += 64;
    return 0;
}

static int start_thread(struct ktimer_thread *tt)
{
    const int err = tt->started ? 0 : os_thread_start("kvm-timers", timer_thread, tt, &tt->thread);

    tt->started |= !err;
    return err;
}

int ktimer_thread_start(struct ktimer_thread *tt)
{
    int err;

    pthread_mutex_lock(&tt->lock);
    err = start_thread(tt);
    pthread_mutex_unlock(&tt->lock);
    return err;
}

/* Arms, or moves a timer that is armed already. From any thread, its own callback too. */
int ktimer_start(struct ktimer *t, uint64_t deadline_ns)
{
    struct ktimer_thread *tt = t->thread;
    int err;

    pthread_mutex_lock(&tt->lock);
    err = start_thread(tt);
    if (!err && t->heap_index < 0) {
        err = make_room(tt);
        if (!err) {
            t->deadline_ns = NEVER;
            heap_put(tt, tt->count++, t);
        }
    }
    if (!err) {
        t->deadline_ns = deadline_ns;
        heap_up(tt, (unsigned)t->heap_index);
        heap_down(tt, (unsigned)t->heap_index);
        if (tt->sleeping_until > tt->heap[0]->deadline_ns)
            wake_thread(tt);
    }
    pthread_mutex_unlock(&tt->lock);
    return err;
}

/* The caller holds no lock that the callback takes. */
void ktimer_cancel_sync(struct ktimer *t)
{
    struct ktimer_thread *tt = t->thread;

    if (!tt)
        return;
    pthread_mutex_lock(&tt->lock);
    for (;;) {
        uint32_t seen;

        if (t->heap_index >= 0)
            heap_remove(tt, t); /* the thread finds out when it wakes: no system call here */
        if (tt->running != t || pthread_equal(pthread_self(), tt->thread))
            break;
        seen = atomic_load(&tt->done);
        tt->waiters++;
        pthread_mutex_unlock(&tt->lock);
        os_futex_wait(&tt->done, seen, NEVER);
        pthread_mutex_lock(&tt->lock);
        tt->waiters--;
    }
    pthread_mutex_unlock(&tt->lock);
}

/* A hint: armed, or about to be called. */
bool ktimer_active(struct ktimer *t)
{
    struct ktimer_thread *tt = t->thread;
    bool active;

    if (!tt)
        return false;
    pthread_mutex_lock(&tt->lock);
    active = t->heap_index >= 0;
    pthread_mutex_unlock(&tt->lock);
    return active;
}
