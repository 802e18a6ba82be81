/* SPDX-License-Identifier: MIT
 * seccomp.c: a client that restricts its own system calls knows nothing of those that anykvm makes in its place, where
 * it would make an ioctl. In front of a filter of a process that has opened /dev/kvm goes a list of calls that are
 * allowed: memory, waiting, signals and the client's own descriptors, none of which opens a file or starts a program.
 * anykvm's threads are started before the filter is in force. */
#include "shim.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static const uint16_t allowed[] = {
    SYS_mmap,
    SYS_munmap,
    SYS_mremap,
    SYS_mprotect,
    SYS_madvise,
    SYS_mincore,
    SYS_brk,
    SYS_memfd_create,
    SYS_ftruncate,
    SYS_futex,
    SYS_sched_yield,
    SYS_nanosleep,
    SYS_clock_nanosleep,
    SYS_clock_gettime,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_rt_sigpending,
    SYS_sigaltstack,
    SYS_read,
    SYS_write,
    SYS_preadv2,
    SYS_close,
    SYS_dup,
    SYS_fcntl,
    SYS_fstat,
    SYS_newfstatat,
    SYS_lseek,
    SYS_eventfd2,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_wait,
    SYS_epoll_pwait,
    SYS_getpid,
    SYS_gettid,
    SYS_getrandom,
    SYS_arch_prctl,
    SYS_exit,
    SYS_restart_syscall,
};
#define ALLOWED (sizeof(allowed) / sizeof(allowed[0]))
#define HEAD    (ALLOWED + 5)
_Static_assert(ALLOWED < 250, "a jump's distance has 8 bits");

/* to: room for HEAD + n. Behind the head the accumulator is 0, as at the start of every filter. */
static void prepend(struct sock_filter *to, const struct sock_filter *filter, unsigned n)
{
    unsigned i = 0;

    to[i++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    to[i++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, ALLOWED + 2);
    to[i++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (unsigned k = 0; k < ALLOWED; k++) {
        const uint8_t next = k + 1 < ALLOWED ? 0 : 1; /* the last one jumps over the RET */

        to[i++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[k], (uint8_t)(ALLOWED - 1 - k), next);
    }
    to[i++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    to[i++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_IMM, 0);
    memcpy(to + i, filter, n * sizeof(*to));
}

/* The program in force of *p: *p itself, or `mine` with the list in front. NULL: there is no memory for it. */
static struct sock_fprog *with_ours(struct sock_fprog *p, struct sock_fprog *mine)
{
    struct sock_filter *filter;

    if (!p || !p->filter || p->len == 0 || anykvm_next(0) < 0 || p->len + HEAD > BPF_MAXINSNS)
        return p;
    filter = malloc((HEAD + p->len) * sizeof(*filter));
    if (!filter)
        return NULL;
    anykvm_sandbox_ahead();
    prepend(filter, p->filter, p->len);
    *mine = (struct sock_fprog){.len = (unsigned short)(HEAD + p->len), .filter = filter};
    return mine;
}

static void drop(const struct sock_fprog *p, const struct sock_fprog *mine)
{
    const int saved = errno;

    if (p == mine)
        free(p->filter);
    errno = saved;
}

EXPORT int prctl(int option, ...)
{
    unsigned long a[4];
    struct sock_fprog mine, *p;
    va_list ap;
    int r;

    va_start(ap, option);
    for (int i = 0; i < 4; i++)
        a[i] = va_arg(ap, unsigned long);
    va_end(ap);
    if (option != PR_SET_SECCOMP || a[0] != SECCOMP_MODE_FILTER)
        return REAL(prctl)(option, a[0], a[1], a[2], a[3]);
    p = with_ours((struct sock_fprog *)a[1], &mine);
    r = REAL(prctl)(option, a[0], p, a[2], a[3]);
    drop(p, &mine);
    return r;
}

EXPORT long syscall(long number, ...)
{
    struct sock_fprog mine, *p;
    long a[6], r;
    va_list ap;

    va_start(ap, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(ap, long);
    va_end(ap);
    if (number != SYS_seccomp || a[0] != SECCOMP_SET_MODE_FILTER)
        return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    p = with_ours((struct sock_fprog *)a[2], &mine);
    r = REAL(syscall)(number, a[0], a[1], p, a[3], a[4], a[5]);
    drop(p, &mine);
    return r;
}
