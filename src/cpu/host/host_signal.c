/* SPDX-License-Identifier: MIT
 * host_signal.c: synchronous signals (SEGV BUS FPE ILL TRAP): recovery by the exception table, by the engine and by the
 * native vector rows; all else goes on to the client's earlier handler. And the border of a run: TLS pointer, signal
 * mask, control words. */
#include "engine.h"
#include "host/host.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <ucontext.h>
#include <unistd.h>

/* HOST_EXTABLE() emits pairs of distances from the word itself (host.h). */
struct extable_row {
    int32_t insn, fixup;
};
extern const struct extable_row __start_ak_extable[] __attribute__((visibility("hidden")));
extern const struct extable_row __stop_ak_extable[] __attribute__((visibility("hidden")));

struct extable_sorted {
    uintptr_t insn, fixup;
};

static const int sync_signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
static struct sigaction earlier[ARRAY_SIZE(sync_signals)][2]; /* the client's, and room for its successor */
static _Atomic unsigned earlier_index[ARRAY_SIZE(sync_signals)];
static pthread_mutex_t earlier_lock = PTHREAD_MUTEX_INITIALIZER;
static bool installed; /* under earlier_lock */
static struct extable_sorted *extable;
static size_t extable_rows;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static __thread struct cpu *current __attribute__((tls_model("initial-exec")));
static __thread uint64_t mask_checked __attribute__((tls_model("initial-exec"))); /* TSC of the last time */
static __thread unsigned entries __attribute__((tls_model("initial-exec")));      /* since this thread began */
static __thread uint32_t client_mxcsr __attribute__((tls_model("initial-exec")));
static __thread uint16_t client_fcw __attribute__((tls_model("initial-exec")));

struct cpu *host_current(void)
{
    return current;
}

__attribute__((weak)) int native_fault(struct cpu *cpu, int sig, void *siginfo, void *ucontext)
{
    return 0; /* a build without the native rows */
}

static int extable_compare(const void *a, const void *b)
{
    const struct extable_sorted *x = a, *y = b;

    return x->insn < y->insn ? -1 : x->insn > y->insn;
}

static void extable_init(void)
{
    const struct extable_row *row = __start_ak_extable;

    extable_rows = __stop_ak_extable - __start_ak_extable;
    extable = calloc(extable_rows + 1, sizeof(*extable));
    if (!extable)
        abort(); /* at start, nothing runs yet */
    for (size_t i = 0; i < extable_rows; i++, row++) {
        extable[i].insn = (uintptr_t)&row->insn + (intptr_t)row->insn;
        extable[i].fixup = (uintptr_t)&row->fixup + (intptr_t)row->fixup;
    }
    qsort(extable, extable_rows, sizeof(*extable), extable_compare);
}

static uintptr_t extable_find(uintptr_t rip)
{
    size_t lo = 0, hi = extable_rows;

    while (lo < hi) {
        const size_t mid = (lo + hi) / 2;
        if (extable[mid].insn < rip)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < extable_rows && extable[lo].insn == rip ? extable[lo].fixup : 0;
}

int host_fault(int sig, void *siginfo, void *ucontext)
{
    const siginfo_t *si = siginfo;
    ucontext_t *uc = ucontext;
    struct cpu *cpu = current;
    uintptr_t fixup;

    if (si->si_code <= 0) /* sent by somebody, not raised by an instruction */
        return 0;
    if ((sig == SIGSEGV || sig == SIGBUS) && (fixup = extable_find((uintptr_t)uc->uc_mcontext.gregs[REG_RIP]))) {
        uc->uc_mcontext.gregs[REG_RIP] = (greg_t)fixup;
        if (cpu)
            cpu->counters[CC_host_faults]++;
        return 1;
    }
    if (!cpu)
        return 0;
    if (cpu->engine && cpu->engine->fault && cpu->engine->fault(cpu, sig, siginfo, uc))
        return 1;
    return native_fault(cpu, sig, siginfo, uc);
}

/* Not ours: what would have happened without us. */
static void chain(unsigned slot, int sig, siginfo_t *si, void *uc)
{
    const struct sigaction copy = earlier[slot][atomic_load(&earlier_index[slot])], *old = &copy;
    sigset_t block, mask;

    if (!(old->sa_flags & SA_SIGINFO) && old->sa_handler == SIG_IGN && si->si_code <= 0)
        return;
    if (!(old->sa_flags & SA_SIGINFO) && (old->sa_handler == SIG_DFL || old->sa_handler == SIG_IGN)) {
        struct sigaction dfl = {.sa_handler = SIG_DFL};

        sigaction(sig, &dfl, NULL);
        if (si->si_code <= 0 || sig == SIGTRAP) /* the others come again, from the same instruction, with their cause */
            raise(sig);
        return;
    }
    block = old->sa_mask;
    if (!(old->sa_flags & SA_NODEFER))
        sigaddset(&block, sig);
    pthread_sigmask(SIG_BLOCK, &block, &mask);
    if (old->sa_flags & SA_SIGINFO)
        old->sa_sigaction(sig, si, uc);
    else
        old->sa_handler(sig);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

/* Runs on the interrupted stack unless the client asked for its alternate one. The kernel saved the interrupted
 * vector state in the frame and puts it back, so the guest's is safe here. */
static void on_signal(int sig, siginfo_t *si, void *uc)
{
    if (host_fault(sig, si, uc))
        return;
    for (unsigned i = 0; i < ARRAY_SIZE(sync_signals); i++) {
        if (sync_signals[i] == sig)
            chain(i, sig, si, uc);
    }
}

/* The client's wish for an alternate stack is honoured: its handler may be there for an overflown one. */
static int install(int sig, int client_flags, struct sigaction *old)
{
    struct sigaction sa = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART};

    sigemptyset(&sa.sa_mask);
    sa.sa_flags |= client_flags & SA_ONSTACK;
    return sigaction(sig, &sa, old);
}

static void init_once(void)
{
    extable_init();
    pthread_mutex_lock(&earlier_lock);
    for (unsigned i = 0; i < ARRAY_SIZE(sync_signals); i++) {
        sigaction(sync_signals[i], NULL, &earlier[i][0]);
        install(sync_signals[i], earlier[i][0].sa_flags, NULL);
    }
    installed = true;
    pthread_mutex_unlock(&earlier_lock);
}

int cpu_sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
    struct sigaction before;
    unsigned i = 0;
    int r = 0;

    while (i < ARRAY_SIZE(sync_signals) && sync_signals[i] != sig)
        i++;
    pthread_mutex_lock(&earlier_lock);
    if (i == ARRAY_SIZE(sync_signals) || !installed) {
        r = sigaction(sig, act, old);
    } else {
        const unsigned now = atomic_load(&earlier_index[i]);

        before = earlier[i][now];
        if (act) {
            earlier[i][!now] = *act;
            atomic_store(&earlier_index[i], !now);
            r = install(sig, act->sa_flags, NULL);
        }
        if (old)
            *old = before;
    }
    pthread_mutex_unlock(&earlier_lock);
    return r;
}

void host_init(void)
{
    pthread_once(&once, init_once);
}

/* A blocked synchronous signal kills the process, and clients block most signals in their vCPU threads. They do so
 * before the first run; asking the kernel at each of many entries a millisecond would cost as much as the entry, so the
 * mask is looked at on a thread's first run and then every 2^22 cycles (about a millisecond); the TSC, which costs a
 * tenth of an entry, is read at every eighth. */
void cpu_sigmask_changed(void)
{
    mask_checked = 0;
}

static void unblock_sync_signals(void)
{
    uint64_t now;
    sigset_t set;

    if (likely(mask_checked && ++entries & 7))
        return;
    now = __builtin_ia32_rdtsc();
    if (likely(mask_checked && now - mask_checked < 1u << 22))
        return;
    mask_checked = now | 1;
    sigemptyset(&set);
    for (unsigned i = 0; i < ARRAY_SIZE(sync_signals); i++)
        sigaddset(&set, sync_signals[i]);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

void host_enter(struct cpu *cpu)
{
    unblock_sync_signals();
    __asm__ volatile("stmxcsr %0\n fnstcw %1" : "=m"(client_mxcsr), "=m"(client_fcw));
    current = cpu;
}

void host_leave(struct cpu *cpu)
{
    host_fpu_save(cpu);
    __asm__ volatile("ldmxcsr %0\n fldcw %1" : : "m"(client_mxcsr), "m"(client_fcw));
    current = NULL;
}
