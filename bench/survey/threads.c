/* SPDX-License-Identifier: MIT
 * threads.c: threads mutex|cond|futex|spin|atomic|barrier|sem|rwlock COUNT: two threads that hand work to each other.
 */
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static pthread_rwlock_t rw = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t barrier;
static sem_t sem[2];
static atomic_int turn, spin;
static atomic_long total;
static long count, plain, shown[2];

static void by_mutex(int me)
{
    for (long i = 0; i < count; i++) {
        pthread_mutex_lock(&lock);
        plain += i ^ me;
        pthread_mutex_unlock(&lock);
    }
}

static void by_cond(int me)
{
    for (long i = 0; i < count; i++) {
        pthread_mutex_lock(&lock);
        while (atomic_load(&turn) != me)
            pthread_cond_wait(&cond, &lock);
        plain = plain * 3 + i;
        atomic_store(&turn, !me);
        pthread_cond_signal(&cond);
        pthread_mutex_unlock(&lock);
    }
}

static void by_futex(int me)
{
    for (long i = 0; i < count; i++) {
        while (atomic_load(&turn) != me)
            syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, !me, NULL, NULL, 0);
        plain = plain * 3 + i;
        atomic_store(&turn, !me);
        syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
}

static void by_spin(int me)
{
    for (long i = 0; i < count; i++) {
        while (atomic_exchange_explicit(&spin, 1, memory_order_acquire))
            sched_yield();
        plain += i ^ me;
        atomic_store_explicit(&spin, 0, memory_order_release);
    }
}

static void by_atomic(int me)
{
    for (long i = 0; i < count; i++) {
        long old = atomic_fetch_add(&total, i);
        while (!atomic_compare_exchange_weak(&total, &old, old + me))
            ;
        atomic_fetch_xor(&turn, 1);
    }
}

static void by_barrier(int me)
{
    for (long i = 0; i < count; i++) {
        shown[me] = i;
        pthread_barrier_wait(&barrier);
        if (shown[!me] != i)
            abort();
        pthread_barrier_wait(&barrier);
    }
}

static void by_sem(int me)
{
    for (long i = 0; i < count; i++) {
        sem_wait(&sem[me]);
        plain = plain * 3 + i;
        sem_post(&sem[!me]);
    }
}

static void by_rwlock(int me)
{
    for (long i = 0; i < count; i++) {
        pthread_rwlock_rdlock(&rw);
        if (shown[0] != shown[1])
            abort();
        pthread_rwlock_unlock(&rw);
        if (i % 8 == me) {
            pthread_rwlock_wrlock(&rw);
            shown[0]++;
            shown[1]++;
            pthread_rwlock_unlock(&rw);
        }
    }
}

static const struct {
    const char *name;
    void (*run)(int me);
} ways[] = {
    {"mutex", by_mutex},   {"cond", by_cond},       {"futex", by_futex}, {"spin", by_spin},
    {"atomic", by_atomic}, {"barrier", by_barrier}, {"sem", by_sem},     {"rwlock", by_rwlock},
};
static void (*way)(int me);

static void *thread(void *me)
{
    way((int)(long)me);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t t[2];

    for (unsigned i = 0; argc == 3 && i < sizeof(ways) / sizeof(*ways); i++)
        if (!strcmp(argv[1], ways[i].name))
            way = ways[i].run;
    if (!way) {
        fprintf(stderr, "usage: threads WAY COUNT\n");
        return 2;
    }
    count = atol(argv[2]);
    pthread_barrier_init(&barrier, NULL, 2);
    sem_init(&sem[0], 0, 1);
    sem_init(&sem[1], 0, 0);
    for (long i = 0; i < 2; i++)
        if (pthread_create(&t[i], NULL, thread, (void *)i))
            return 1;
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], NULL);
    printf("%s %ld %ld %ld %ld\n", argv[1], plain, atomic_load(&total), shown[0], shown[1]);
    return 0;
}
