/* SPDX-License-Identifier: MIT
 * real.c: libc's own functions, found on first use (no constructor: others' run before ours), and the names by which
 * the rest of this library calls them. */
#include "shim.h"
#include <dlfcn.h>

void *shim_real[REAL_COUNT];

static const char *const names[REAL_COUNT] = {
#define X(name) #name,
    REAL_NAMES(X)
#undef X
};

void *shim_find(enum real_name which)
{
    const int saved = errno;
    void *p = dlsym(RTLD_NEXT, names[which]);

    if (!p) /* an older libc without the name: nobody can have called it */
        abort();
    __atomic_store_n(&shim_real[which], p, __ATOMIC_RELAXED);
    errno = saved;
    return p;
}

/* ---- what --wrap makes of the calls in libanykvm's objects ---- */
int __wrap_close(int), __wrap_ioctl(int, unsigned long, ...), __wrap_fcntl64(int, int, ...);
int __wrap_open64(const char *, int, ...), __wrap_fstat64(int, struct stat64 *);
int __wrap_sigaction(int, const struct sigaction *, struct sigaction *);
int __wrap_pthread_sigmask(int, const sigset_t *, sigset_t *);
void *__wrap_mmap64(void *, size_t, int, int, int, off64_t);

int __wrap_prctl(int, unsigned long, unsigned long, unsigned long, unsigned long);
long __wrap_syscall(long, long, long, long, long, long, long);

#define ARGUMENT(type, last)    \
    ({                          \
        va_list ap_;            \
        type a_;                \
        va_start(ap_, last);    \
        a_ = va_arg(ap_, type); \
        va_end(ap_);            \
        a_;                     \
    })

int __wrap_close(int fd)
{
    return REAL(close)(fd);
}

int __wrap_ioctl(int fd, unsigned long request, ...)
{
    return REAL(ioctl)(fd, request, ARGUMENT(void *, request));
}

int __wrap_fcntl64(int fd, int cmd, ...)
{
    return REAL(fcntl64)(fd, cmd, ARGUMENT(void *, cmd));
}

int __wrap_open64(const char *path, int flags, ...)
{
    return REAL(open64)(path, flags, flags & (O_CREAT | O_TMPFILE) ? ARGUMENT(mode_t, flags) : 0);
}

int __wrap_fstat64(int fd, struct stat64 *st)
{
    return REAL(fstat64)(fd, st);
}

int __wrap_sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
    return REAL(sigaction)(sig, act, old);
}

int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
    return REAL(pthread_sigmask)(how, set, old);
}

void *__wrap_mmap64(void *at, size_t len, int prot, int flags, int fd, off64_t off)
{
    return REAL(mmap64)(at, len, prot, flags, fd, off);
}

/* A variadic call's arguments lie where these would. */
int __wrap_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
{
    return REAL(prctl)(option, a, b, c, d);
}

long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f)
{
    return REAL(syscall)(number, a, b, c, d, e, f);
}
