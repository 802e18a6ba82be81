/* SPDX-License-Identifier: MIT
 * test_ktimer.c: the timer thread: order, re-arming, cancelling against a running callback, precision. */
#include "irq_vm.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MANY 200

struct probe {
    struct ktimer t;
    _Atomic unsigned fired;
    _Atomic uint64_t at_ns, rearm_ns;
};
static _Atomic unsigned sequence;
static _Atomic uint64_t order[MANY];

static void fn(struct ktimer *t)
{
    struct probe *p = t->opaque;

    atomic_store(&p->at_ns, os_clock_ns());
    if (atomic_load(&p->rearm_ns))
        ktimer_start(t, os_clock_ns() + atomic_load(&p->rearm_ns));
    atomic_fetch_add(&p->fired, 1);
}

static bool fired(void *arg)
{
    return atomic_load(&((struct probe *)arg)->fired) > 0;
}

static void in_order_fn(struct ktimer *t)
{
    struct probe *p = t->opaque;

    order[atomic_fetch_add(&sequence, 1) % MANY] = t->deadline_ns;
    atomic_fetch_add(&p->fired, 1);
}

static bool all_fired(void *arg)
{
    return atomic_load(&sequence) == MANY;
}

static void deadlines_in_order(void **state)
{
    struct ktimer_thread *tt = ktimer_thread_create();
    struct probe *p = calloc(MANY, sizeof(*p));
    const uint64_t base_ns = os_clock_ns() + 500000000; /* all are armed by then */
    unsigned seed = 1;

    sequence = 0;
    for (unsigned i = 0; i < MANY; i++) {
        ktimer_init(&p[i].t, tt, in_order_fn, &p[i]);
        seed = seed * 1103515245 + 12345;
        assert_int_equal(ktimer_start(&p[i].t, base_ns + seed % 10000000), 0);
    }
    for (unsigned i = 0; i < MANY; i += 3) { /* moved while armed */
        seed = seed * 1103515245 + 12345;
        ktimer_start(&p[i].t, base_ns + seed % 10000000);
    }
    assert_true(wait_until(all_fired, NULL, 5000));
    for (unsigned i = 1; i < MANY; i++)
        assert_true(order[i - 1] <= order[i]);
    for (unsigned i = 0; i < MANY; i++)
        assert_int_equal(p[i].fired, 1);
    ktimer_thread_destroy(tt);
    free(p);
}

static void never_early_and_cancelled(void **state)
{
    struct ktimer_thread *tt = ktimer_thread_create();
    struct probe p = {0};
    uint64_t deadline_ns;

    ktimer_init(&p.t, tt, fn, &p);
    ktimer_cancel_sync(&p.t); /* never armed, no thread yet */
    deadline_ns = os_clock_ns() + 100000000;
    ktimer_start(&p.t, deadline_ns);
    assert_true(ktimer_active(&p.t));
    assert_true(wait_until(fired, &p, 5000));
    assert_true(p.at_ns >= deadline_ns);
    p.fired = 0;
    ktimer_start(&p.t, os_clock_ns() + 100000000);
    ktimer_cancel_sync(&p.t);
    assert_false(ktimer_active(&p.t));
    assert_false(wait_until(fired, &p, 110));
    ktimer_start(&p.t, 0); /* past: at once */
    assert_true(wait_until(fired, &p, 5000));
    p.fired = 0;
    ktimer_start(&p.t, os_clock_ns() + 3600000000000ull); /* an earlier one wakes the thread */
    ktimer_start(&p.t, os_clock_ns() + 1000000);
    assert_true(wait_until(fired, &p, 5000));
    ktimer_thread_destroy(tt);
}

/* cancel_sync against a callback that arms itself again and again: none is running, and none is armed, after it. */
static void cancel_races(void **state)
{
    struct ktimer_thread *tt = ktimer_thread_create();
    struct probe p = {0};
    unsigned total = 0;

    ktimer_init(&p.t, tt, fn, &p);
    for (int i = 0; i < 500; i++) {
        unsigned seen;

        atomic_store(&p.rearm_ns, 1000);
        ktimer_start(&p.t, 0);
        for (int spin = 0; spin < i % 50 * 100; spin++)
            __asm__ volatile("pause");
        ktimer_cancel_sync(&p.t);
        seen = p.fired;
        assert_int_equal(p.t.heap_index, -1);
        total += seen;
        if (i % 50 == 0) {
            struct timespec ts = {.tv_nsec = 1000000};

            nanosleep(&ts, NULL);
            assert_int_equal(p.fired, seen);
        }
    }
    assert_true(total > 0);
    ktimer_thread_destroy(tt);
}

struct arming {
    struct ktimer_thread *tt;
    unsigned failed;
};

static void *arm_many(void *arg)
{
    struct arming *a = arg;
    struct probe p = {0};

    ktimer_init(&p.t, a->tt, fn, &p);
    for (int i = 0; i < 2000; i++) {
        ktimer_start(&p.t, os_clock_ns() + (unsigned)i % 7 * 100000);
        if (i % 3 == 0)
            ktimer_cancel_sync(&p.t);
    }
    p.fired = 0;
    ktimer_start(&p.t, os_clock_ns() + 1000);
    a->failed += !wait_until(fired, &p, 5000);
    ktimer_cancel_sync(&p.t);
    return NULL;
}

static void threads_arm_side_by_side(void **state)
{
    struct ktimer_thread *tt = ktimer_thread_create();
    struct arming a[3];
    pthread_t thread[3];

    for (int i = 0; i < 3; i++) {
        a[i] = (struct arming){.tt = tt};
        os_thread_start("arming", arm_many, &a[i], &thread[i]);
    }
    for (int i = 0; i < 3; i++) {
        os_thread_join(&thread[i]);
        assert_int_equal(a[i].failed, 0);
    }
    ktimer_thread_destroy(tt);
}

static void pending_signals(void **state)
{
    sigset_t usr1, run, old;

    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigemptyset(&run);
    pthread_sigmask(SIG_BLOCK, &usr1, &old);
    assert_false(os_signal_pending(&run));
    raise(SIGUSR1);
    assert_true(os_signal_pending(&run));
    assert_false(os_signal_pending(&usr1)); /* blocked over KVM_RUN too */
    assert_int_equal(sigtimedwait(&usr1, NULL, &(struct timespec){0}), SIGUSR1);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(deadlines_in_order), cmocka_unit_test(never_early_and_cancelled),
        cmocka_unit_test(cancel_races),       cmocka_unit_test(threads_arm_side_by_side),
        cmocka_unit_test(pending_signals),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
