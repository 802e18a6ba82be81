/* SPDX-License-Identifier: MIT
 * cancel.c: a thread that asked for asynchronous cancellation and is in an ioctl of KVM. On Linux the call ends with
 * EINTR and the thread goes; here it would go amid guest code, with the vCPU's lock. So cancellation waits until the
 * call has returned, and the one who cancels ends a KVM_RUN. */
#include "shim.h"
#include <pthread.h>

struct call {
    pthread_t thread;
    int fd;
    struct call *next;
};
static struct call *calls; /* those of threads with asynchronous cancellation alone: a stack node each */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void enter(struct call *c)
{
    pthread_mutex_lock(&lock);
    c->next = calls;
    calls = c;
    pthread_mutex_unlock(&lock);
}

static void leave(struct call *c)
{
    struct call **link;

    pthread_mutex_lock(&lock);
    for (link = &calls; *link != c;)
        link = &(*link)->next;
    *link = c->next;
    pthread_mutex_unlock(&lock);
}

int shim_kvm_ioctl(int fd, unsigned long request, void *arg)
{
    struct call c = {.thread = pthread_self(), .fd = fd};
    int type, r, saved;

    pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &type);
    if (__builtin_expect(type == PTHREAD_CANCEL_DEFERRED, 1))
        return anykvm_ioctl(fd, request, arg);
    enter(&c);
    r = anykvm_ioctl(fd, request, arg);
    saved = errno;
    leave(&c);
    pthread_setcanceltype(type, NULL); /* does not return where the thread was cancelled meanwhile */
    errno = saved;
    return r;
}

EXPORT int pthread_cancel(pthread_t thread)
{
    const int r = REAL(pthread_cancel)(thread);
    struct call *c;

    pthread_mutex_lock(&lock);
    for (c = calls; c; c = c->next)
        if (pthread_equal(c->thread, thread))
            anykvm_interrupt(c->fd);
    pthread_mutex_unlock(&lock);
    return r;
}
