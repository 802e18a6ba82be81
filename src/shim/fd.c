/* SPDX-License-Identifier: MIT
 * fd.c: calls on descriptors. A number that is not anykvm's costs one look into a table. */
#include "shim.h"
#include <limits.h>
#include <linux/close_range.h>
#include <linux/kvm.h>

EXPORT int ioctl(int fd, unsigned long request, ...)
{
    va_list ap;
    void *arg;

    va_start(ap, request);
    arg = va_arg(ap, void *);
    va_end(ap);
    return _IOC_TYPE(request) == KVMIO ? shim_kvm_ioctl(fd, request, arg) : REAL(ioctl)(fd, request, arg);
}

EXPORT void *mmap(void *at, size_t len, int prot, int flags, int fd, off_t off)
{
    if (fd >= 0 && !(flags & MAP_ANONYMOUS) && anykvm_known(fd))
        return anykvm_mmap(at, len, prot, flags, fd, off);
    return REAL(mmap)(at, len, prot, flags, fd, off);
}

EXPORT void *mmap64(void *at, size_t len, int prot, int flags, int fd, off64_t off)
{
    return mmap(at, len, prot, flags, fd, off);
}

/* ---- close ---- */
EXPORT int close(int fd)
{
    return anykvm_known(fd) ? anykvm_close(fd) : REAL(close)(fd);
}

static void forget_range(unsigned first, unsigned last)
{
    int fd = first > INT_MAX ? -1 : anykvm_next((int)first);

    for (; fd >= 0 && (unsigned)fd <= last; fd = anykvm_next(fd + 1))
        anykvm_forget(fd);
}

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
    if (first <= last && !(flags & ~CLOSE_RANGE_UNSHARE))
        forget_range(first, last);
    return REAL(close_range)(first, last, flags);
}

EXPORT void closefrom(int lowest)
{
    forget_range(lowest < 0 ? 0 : (unsigned)lowest, INT_MAX);
    REAL(closefrom)(lowest);
}

/* ---- duplicates ---- */
static int made(int fd, int r)
{
    if (r >= 0 && r != fd && anykvm_known(fd))
        anykvm_duplicated(fd, r);
    return r;
}

EXPORT int dup(int fd)
{
    return made(fd, REAL(dup)(fd));
}

/* dup2 closes `to` only where it succeeds, and it fails only for numbers that are none. */
static void dup_over(int fd, int to)
{
    if (fd != to && anykvm_known(to) && REAL(fcntl)(fd, F_GETFD) >= 0)
        anykvm_forget(to);
}

EXPORT int dup2(int fd, int to)
{
    dup_over(fd, to);
    return made(fd, REAL(dup2)(fd, to));
}

EXPORT int dup3(int fd, int to, int flags)
{
    if (!(flags & ~O_CLOEXEC))
        dup_over(fd, to);
    return made(fd, REAL(dup3)(fd, to, flags));
}

#define FCNTL(name)                                                        \
    EXPORT int name(int fd, int cmd, ...)                                  \
    {                                                                      \
        va_list ap;                                                        \
        void *arg;                                                         \
        int r;                                                             \
                                                                           \
        va_start(ap, cmd);                                                 \
        arg = va_arg(ap, void *);                                          \
        va_end(ap);                                                        \
        r = REAL(name)(fd, cmd, arg);                                      \
        return cmd == F_DUPFD || cmd == F_DUPFD_CLOEXEC ? made(fd, r) : r; \
    }
FCNTL(fcntl)
FCNTL(fcntl64)
