/* SPDX-License-Identifier: MIT
 * os.c: the operating system as src/kvm sees it (os.h): system calls in, negative errno out. */
#include "os.h"
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

void *os_alloc_pages(size_t n)
{
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

void os_free_pages(void *p, size_t n)
{
    if (p)
        munmap(p, n);
}

/* FUTEX_WAIT_BITSET takes an absolute CLOCK_MONOTONIC time, so an interrupted wait loses nothing. */
int os_futex_wait(_Atomic uint32_t *word, uint32_t expected, uint64_t deadline_ns)
{
    struct timespec ts = {.tv_sec = (time_t)(deadline_ns / 1000000000), .tv_nsec = (long)(deadline_ns % 1000000000)};
    const int saved = errno;
    long r = syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, expected, deadline_ns == UINT64_MAX ? NULL : &ts, NULL,
                     FUTEX_BITSET_MATCH_ANY);

    r = r < 0 ? -errno : 0;
    errno = saved;
    return (int)r;
}

void os_futex_wake(_Atomic uint32_t *word, int n)
{
    const int saved = errno;

    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
    errno = saved;
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec ts;

    clock_gettime(clock, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

uint64_t os_clock_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

uint64_t os_clock_boot_ns(void)
{
    return clock_ns(CLOCK_BOOTTIME);
}

uint64_t os_clock_real_ns(void)
{
    return clock_ns(CLOCK_REALTIME);
}

/* sigpending() shows signals that the thread's mask holds back: those that KVM_SET_SIGNAL_MASK would let through. What
 * the mask does not hold back has run its handler already. */
bool os_signal_pending(const sigset_t *blocked_in_run)
{
    sigset_t pending;

    if (sigpending(&pending))
        return false;
    for (int sig = 1; sig < _NSIG; sig++)
        if (sigismember(&pending, sig) == 1 && sigismember(blocked_in_run, sig) != 1)
            return true;
    return false;
}

int os_memfd(const char *name, size_t size, bool cloexec)
{
    const int fd = memfd_create(name, cloexec ? MFD_CLOEXEC : 0);

    if (fd < 0)
        return -errno;
    if (size && ftruncate(fd, (off_t)size)) {
        const int err = -errno;

        close(fd);
        return err;
    }
    return fd;
}

static _Atomic bool never_open;

bool os_may_open(void)
{
    return !atomic_load_explicit(&never_open, memory_order_relaxed);
}

void os_never_open(void)
{
    atomic_store(&never_open, true);
}

/* Our threads take no signal of the client's: all are blocked before the thread exists. */
int os_thread_start(const char *name, void *(*fn)(void *), void *arg, void *handle)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, old;
    int r;

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 256 * 1024);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    r = pthread_create(&thread, &attr, fn, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (r)
        return -r;
    pthread_setname_np(thread, name);
    *(pthread_t *)handle = thread;
    return 0;
}

void os_thread_join(void *handle)
{
    pthread_join(*(pthread_t *)handle, NULL);
}

/* <linux/sched/types.h> and <sched.h> cannot be had together */
struct os_sched_attr {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
};

/* A thread that mostly sleeps and must run at its deadline beside busy vCPU threads. Each step may be refused. */
void os_thread_low_latency(void)
{
    /* sched_runtime of SCHED_OTHER is the slice since Linux 6.12: a short one gives an early virtual deadline */
    struct os_sched_attr attr = {.size = sizeof(attr), .policy = SCHED_OTHER, .nice = -10, .runtime_ns = 100 * 1000};

    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    if (syscall(SYS_sched_setattr, 0, &attr, 0)) {
        attr.nice = 0; /* not root */
        syscall(SYS_sched_setattr, 0, &attr, 0);
    }
}
