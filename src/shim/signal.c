/* SPDX-License-Identifier: MIT
 * signal.c: a client's handler that runs on a thread in KVM_RUN must make KVM_RUN return EINTR, and it may run amid
 * translated code: every handler is wrapped. SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGTRAP stay anykvm's, which passes on
 * what is not its own. */
#include "shim.h"
#include <pthread.h>
#include <string.h>

/* Two versions of each: one in force while its successor is written, for a handler may be running. */
static struct sigaction client[_NSIG][2];
static _Atomic unsigned in_force[_NSIG];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic pid_t owner; /* a vfork child shares this memory but not the handlers */

static bool synchronous(int sig)
{
    return sig == SIGSEGV || sig == SIGBUS || sig == SIGFPE || sig == SIGILL || sig == SIGTRAP;
}

static void on_signal(int sig, siginfo_t *si, void *uc)
{
    const struct sigaction *act = &client[sig][__atomic_load_n(&in_force[sig], __ATOMIC_ACQUIRE)];

    anykvm_signal_arrived();
    if (act->sa_flags & SA_SIGINFO)
        act->sa_sigaction(sig, si, uc);
    else if (act->sa_handler != SIG_DFL && act->sa_handler != SIG_IGN)
        act->sa_handler(sig);
}

static bool is_handler(const struct sigaction *act)
{
    return (act->sa_flags & SA_SIGINFO) || (act->sa_handler != SIG_DFL && act->sa_handler != SIG_IGN);
}

static int system_sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
    return synchronous(sig) ? anykvm_sigaction(sig, act, old) : REAL(sigaction)(sig, act, old);
}

/* SIGILL where CPUID instructions were replaced: stays installed whatever the client sets. */
static void on_sigill(int sig, siginfo_t *si, void *uc)
{
    const struct sigaction *act = &client[sig][__atomic_load_n(&in_force[sig], __ATOMIC_ACQUIRE)];
    struct sigaction dfl = {.sa_handler = SIG_DFL};

    if (si->si_code > 0 && shim_cpuid_answer(uc))
        return;
    if (is_handler(act)) {
        on_signal(sig, si, uc);
    } else if (act->sa_handler == SIG_DFL || si->si_code > 0) {
        system_sigaction(sig, &dfl, NULL); /* the instruction comes again, with its cause */
        if (si->si_code <= 0)
            raise(sig);
    }
}

void shim_claim_sigill(void)
{
    struct sigaction act = {.sa_sigaction = on_sigill, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART};
    sigset_t ill;

    sigemptyset(&act.sa_mask);
    REAL(sigaction)(SIGILL, &act, NULL);
    sigemptyset(&ill);
    sigaddset(&ill, SIGILL);
    REAL(pthread_sigmask)(SIG_UNBLOCK, &ill, NULL);
}

static bool vfork_child(void)
{
    const pid_t pid = getpid();
    pid_t none = 0;

    return !__atomic_compare_exchange_n(&owner, &none, pid, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED) && none != pid;
}

static void fork_child(void)
{
    __atomic_store_n(&owner, 0, __ATOMIC_RELAXED);
}

static void fork_prepare(void)
{
    pthread_mutex_lock(&lock);
}

static void fork_parent(void)
{
    pthread_mutex_unlock(&lock);
}

static void fork_child_unlock(void)
{
    fork_child();
    pthread_mutex_unlock(&lock);
}

static void init_fork(void)
{
    pthread_atfork(fork_prepare, fork_parent, fork_child_unlock);
}

EXPORT int sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    const bool claimed = sig == SIGILL && shim_cpuid_active();
    struct sigaction wrapped, before, earlier;
    sigset_t all, mask;
    int r;

    if (sig <= 0 || sig >= _NSIG || vfork_child())
        return REAL(sigaction)(sig, act, old);
    pthread_once(&once, init_fork);
    sigfillset(&all);
    REAL(pthread_sigmask)(SIG_SETMASK, &all, &mask); /* a handler of ours that calls sigaction() finds no lock held */
    pthread_mutex_lock(&lock);
    earlier = client[sig][in_force[sig]];
    if (act && (is_handler(act) || claimed)) {
        client[sig][!in_force[sig]] = *act;
        __atomic_store_n(&in_force[sig], !in_force[sig], __ATOMIC_RELEASE);
        wrapped = *act;
        wrapped.sa_sigaction = claimed ? on_sigill : on_signal;
        wrapped.sa_flags |= SA_SIGINFO;
        if (claimed)
            wrapped.sa_flags = (wrapped.sa_flags & ~SA_RESETHAND) | SA_NODEFER;
        if (shim_cpuid_active())
            sigdelset(&wrapped.sa_mask, SIGILL);
        r = system_sigaction(sig, &wrapped, &before);
    } else {
        r = system_sigaction(sig, act, &before);
    }
    if (!r && (before.sa_sigaction == on_signal || before.sa_sigaction == on_sigill))
        before = earlier;
    pthread_mutex_unlock(&lock);
    REAL(pthread_sigmask)(SIG_SETMASK, &mask, NULL);
    if (!r && old)
        *old = before;
    return r;
}

EXPORT int __sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
    return sigaction(sig, act, old);
}

static __sighandler_t set_handler(int sig, __sighandler_t handler, int flags)
{
    struct sigaction act = {.sa_handler = handler, .sa_flags = flags}, old;

    if (handler == SIG_ERR) {
        errno = EINVAL;
        return SIG_ERR;
    }
    sigemptyset(&act.sa_mask);
    if (!(flags & SA_NODEFER))
        sigaddset(&act.sa_mask, sig);
    return sigaction(sig, &act, &old) ? SIG_ERR : old.sa_handler;
}

EXPORT __sighandler_t signal(int sig, __sighandler_t handler)
{
    return set_handler(sig, handler, SA_RESTART);
}

EXPORT __sighandler_t bsd_signal(int sig, __sighandler_t handler)
{
    return set_handler(sig, handler, SA_RESTART);
}

EXPORT __sighandler_t __sysv_signal(int sig, __sighandler_t handler)
{
    return set_handler(sig, handler, SA_RESETHAND | SA_NODEFER);
}

EXPORT __sighandler_t sysv_signal(int sig, __sighandler_t handler)
{
    return set_handler(sig, handler, SA_RESETHAND | SA_NODEFER);
}

/* SIGILL stays open where CPUID instructions were replaced. */
static const sigset_t *open_for_us(int how, const sigset_t *set, sigset_t *copy)
{
    if (!set || how == SIG_UNBLOCK || !shim_cpuid_active())
        return set;
    *copy = *set;
    sigdelset(copy, SIGILL);
    return copy;
}

EXPORT int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
    sigset_t copy;
    const int r = REAL(pthread_sigmask)(how, open_for_us(how, set, &copy), old);

    if (set)
        anykvm_sigmask_changed();
    return r;
}

EXPORT int sigprocmask(int how, const sigset_t *set, sigset_t *old)
{
    sigset_t copy;
    const int r = REAL(sigprocmask)(how, open_for_us(how, set, &copy), old);

    if (set)
        anykvm_sigmask_changed();
    return r;
}
