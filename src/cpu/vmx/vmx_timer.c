/* SPDX-License-Identifier: MIT
 * vmx_timer.c: the alarm of the VMX-preemption timer (SDM 3C, "VMX-Preemption Timer"). Engines look at the clock only
 * at safepoints, so a thread sets ATT_TIMER when a deadline has passed. One thread for all cpus, started by the first
 * entry that uses the timer; entries come much oftener than alarms, so an entry writes its deadline and wakes the
 * thread only where it sleeps beyond it. Early alarms are harmless: cpu_poll() compares with the TSC itself. */
#include "vmx/vmx_unit.h"
#include <time.h>

#define NEVER ~0ull

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed;
static struct vmx_unit *armed; /* units that ever used the timer */
static bool started;
static _Atomic uint64_t sleeps_until; /* host TSC */

static void sleep_until(uint64_t tsc)
{
    const uint64_t now = cpu_rdtsc();
    struct timespec ts;
    uint64_t ns;

    if (tsc == NEVER) {
        pthread_cond_wait(&changed, &lock);
        return;
    }
    ns = tsc > now ? (unsigned __int128)(tsc - now) * 1000000 / cpu_tsc_khz() : 0;
    if (!ns)
        return;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    ns += ts.tv_nsec;
    ts.tv_sec += ns / 1000000000;
    ts.tv_nsec = ns % 1000000000;
    pthread_cond_timedwait(&changed, &lock, &ts);
}

/* Raise what is due; the earliest of the rest. */
static uint64_t raise_due(void)
{
    uint64_t next = NEVER;

    for (struct vmx_unit *u = armed; u; u = u->alarm_next) {
        uint64_t at = atomic_load(&u->alarm);

        if (at == NEVER)
            continue;
        if (at <= cpu_rdtsc()) {
            if (atomic_compare_exchange_strong(&u->alarm, &at, NEVER))
                cpu_attend(u->alarm_cpu, ATT_TIMER);
            else if (at < next)
                next = at;
        } else if (at < next) {
            next = at;
        }
    }
    return next;
}

static void *alarm_thread(void *unused)
{
    pthread_mutex_lock(&lock);
    for (;;) {
        uint64_t next;

        atomic_store(&sleeps_until, 0); /* looking: an entry that comes now need not wait for the lock's holder */
        next = raise_due();
        atomic_store(&sleeps_until, next);
        if (raise_due() < next)
            continue; /* a deadline was written in between */
        sleep_until(next);
    }
    return NULL;
}

static void start(void)
{
    pthread_condattr_t attr;
    pthread_attr_t detached;
    pthread_t thread;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&changed, &attr);
    pthread_condattr_destroy(&attr);
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    started = pthread_create(&thread, &detached, alarm_thread, NULL) == 0;
    pthread_attr_destroy(&detached);
}

void vmx_timer_arm(struct cpu *cpu, uint64_t deadline)
{
    struct vmx_unit *u = cpu->vmx;

    if (unlikely(!u->alarm_cpu)) {
        pthread_mutex_lock(&lock);
        u->alarm_cpu = cpu;
        atomic_store(&u->alarm, NEVER);
        u->alarm_next = armed;
        armed = u;
        if (!started)
            start();
        pthread_mutex_unlock(&lock);
    }
    atomic_store(&u->alarm, deadline);
    if (atomic_load(&sleeps_until) <= deadline)
        return;
    pthread_mutex_lock(&lock);
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
}

void vmx_timer_disarm(struct cpu *cpu)
{
    struct vmx_unit *u = cpu->vmx, **at = &armed;

    if (!u->alarm_cpu)
        return;
    pthread_mutex_lock(&lock);
    while (*at && *at != u)
        at = &(*at)->alarm_next;
    if (*at)
        *at = u->alarm_next;
    pthread_mutex_unlock(&lock);
    u->alarm_cpu = NULL;
}
