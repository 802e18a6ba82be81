/* SPDX-License-Identifier: MIT
 * epoch.c: threads that change what other cpus have cached: a request to the cpu, then a wait until it has passed a
 * safepoint, where it serves the request. cpu->epoch is odd in guest mode and changes at each safepoint; a cpu outside
 * of guest mode counts as passed, for mem_guest_enter() first makes the epoch odd and then looks at requests. A
 * safepoint too changes the epoch first and then serves: a request that comes between the two is either served or finds
 * the changed epoch and waits for the next one.
 *
 * Two cpus may protect pages at the same time, each waiting for the other: a cpu that waits in mem_protect_host_page()
 * stands at an instruction boundary and holds no pointer for writing, so it counts as passed for the other's protection
 * (not for cpu_drop_host_range(), whose callers wait for the real thing); it serves its requests before it goes on.
 *
 * No libc here between entry and exit of guest mode: system calls are made directly. */
#include "mem/mem_int.h"
#include <linux/futex.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>

static long sys4(long nr, long a, long b, long c, long d)
{
    register long r10 __asm__("r10") = d;
    long ret;

    __asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return ret;
}

static long sys2(long nr, long a, long b)
{
    return sys4(nr, a, b, 0, 0);
}

/* The other side polls at block ends, so it is here within microseconds unless it does not have a host cpu. */
static void back_off(unsigned *tries)
{
    const unsigned n = (*tries)++;

    if (n < 64) {
        __asm__ volatile("pause");
    } else if (n < 256) {
        sys2(SYS_sched_yield, 0, 0);
    } else {
        const struct timespec ts = {.tv_nsec = 20000};
        sys2(SYS_nanosleep, (long)&ts, 0);
    }
}

/* ---- waiting ---- */

/* A cpu that has not passed after microseconds has lost its host core, perhaps to this very thread: sleep, which lets
 * it run, and be woken. */
static void sleep_until_passed(struct mem_unit *m, uint64_t epoch, bool protect)
{
    const struct timespec limit = {.tv_nsec = 1000000};

    atomic_store(&m->waited, 1);
    if (atomic_load(&m->cpu->epoch) == epoch && !(protect && atomic_load(&m->waiting)))
        sys4(SYS_futex, (long)&m->waited, FUTEX_WAIT_PRIVATE, 1, (long)&limit);
}

/* The other side, after a change of the epoch. Who waits has little left to do and is to run now, not when this
 * thread's slice is over. */
static void wake_waiters(struct mem_unit *m)
{
    if (likely(!atomic_load(&m->waited)))
        return;
    if (atomic_exchange(&m->waited, 0)) {
        sys4(SYS_futex, (long)&m->waited, FUTEX_WAKE_PRIVATE, CPU_MAX, 0);
        sys2(SYS_sched_yield, 0, 0);
    }
}

/* Until m's cpu has passed a safepoint since it was at that epoch, or is outside of guest mode. protect: waiting in a
 * protection counts too. */
static void wait_since(struct mem_unit *m, uint64_t epoch, bool protect)
{
    unsigned tries = 0;
    uint64_t from = 0;

    while ((epoch & 1) && atomic_load(&m->cpu->epoch) == epoch) {
        if (protect && atomic_load(&m->waiting))
            return;
        cpu_attend(m->cpu, ATT_EPOCH);
        if (tries++ < 64) {
            __asm__ volatile("pause");
            continue;
        }
        from = from ?: __builtin_ia32_rdtsc();
        if (atomic_load(&m->core) == cpu_host_core() || __builtin_ia32_rdtsc() - from > CPU_LOOK_CYCLES)
            sleep_until_passed(m, epoch, protect);
        else
            __asm__ volatile("pause");
    }
}

/* With the lock held. All are asked before the first is waited for, and pass while others are. asked: only who has not
 * yet served a request for all of its translations. */
static void wait_for_all(struct mem_shared *sh, bool asked)
{
    const unsigned n = atomic_load(&sh->nunits);

    for (unsigned i = 0; i < n; i++) {
        struct mem_unit *m = atomic_load(&sh->unit[i]);

        sh->since[i] = 0;
        if (!m || (asked && !atomic_load(&m->req.all)))
            continue;
        sh->since[i] = atomic_load(&m->cpu->epoch);
        if (sh->since[i] & 1)
            cpu_attend(m->cpu, ATT_EPOCH);
    }
    for (unsigned i = 0; i < n; i++) {
        struct mem_unit *m = atomic_load(&sh->unit[i]);

        if (m)
            wait_since(m, sh->since[i], false);
    }
}

/* ---- the list of cpus ---- */

void mem_registry_add(struct mem_unit *m)
{
    struct mem_shared *sh = m->cpu->domain->mem;
    unsigned i = 0;

    pthread_mutex_lock(&sh->lock);
    while (i < CPU_MAX - 1 && atomic_load(&sh->unit[i]))
        i++;
    m->index = i;
    atomic_store(&sh->unit[i], m);
    if (i >= atomic_load(&sh->nunits))
        atomic_store(&sh->nunits, i + 1);
    pthread_mutex_unlock(&sh->lock);
}

void mem_registry_remove(struct mem_unit *m)
{
    struct mem_shared *sh = m->cpu->domain->mem;

    pthread_mutex_lock(&sh->lock);
    atomic_store(&sh->unit[m->index], NULL);
    wait_for_all(sh, false); /* cpus in guest mode may have read the list before */
    pthread_mutex_unlock(&sh->lock);
}

int mem_domain_init(struct cpu_domain *d)
{
    d->mem = calloc(1, sizeof(*d->mem));
    if (!d->mem)
        return -1;
    pthread_mutex_init(&d->mem->lock, NULL);
    return 0;
}

void mem_domain_destroy(struct cpu_domain *d)
{
    if (d->mem)
        pthread_mutex_destroy(&d->mem->lock);
    free(d->mem);
    d->mem = NULL;
}

/* ---- requests ---- */

static void requests_lock(struct mem_requests *r)
{
    unsigned tries = 0;

    while (atomic_exchange_explicit(&r->lock, 1, memory_order_acquire))
        back_off(&tries);
}

static void requests_unlock(struct mem_requests *r)
{
    atomic_store_explicit(&r->lock, 0, memory_order_release);
}

/* page 0: all translations */
static void post(struct mem_unit *m, hva_t page)
{
    struct mem_requests *r = &m->req;

    requests_lock(r);
    if (!page)
        atomic_store(&r->all, true);
    else if (r->npages == REQUESTS)
        r->writes = true;
    else
        r->page[r->npages++] = page;
    requests_unlock(r);
    cpu_attend(m->cpu, ATT_FLUSH | ATT_EPOCH);
}

/* Not at a safepoint: only what other cpus' protections ask. */
static bool serve_protects(struct cpu *cpu)
{
    struct mem_requests *r = &cpu->mem->req;
    hva_t page[REQUESTS];
    unsigned n;
    bool all, writes;

    requests_lock(r);
    n = r->npages;
    all = atomic_load(&r->all);
    writes = r->writes;
    memcpy(page, r->page, n * sizeof(page[0]));
    r->npages = 0;
    r->writes = false;
    requests_unlock(r);
    if (writes)
        tlb_drop_writes(cpu->mem, 0);
    for (unsigned i = 0; i < n && !writes; i++)
        tlb_drop_writes(cpu->mem, page[i]);
    return all;
}

static void serve(struct cpu *cpu)
{
    struct mem_requests *r = &cpu->mem->req;

    if (!serve_protects(cpu))
        return;
    atomic_store(&r->all, false);
    tlb_flush(cpu, TLB_ALL, 0, 0, 0); /* what was asked since then is served with it, or asks again */
}

/* ---- safepoints ---- */

static void wait_for_exclusive(struct cpu *cpu)
{
    struct mem_shared *sh = cpu->domain->mem;
    unsigned tries = 0;
    struct cpu *owner;

    while ((owner = atomic_load(&sh->exclusive)) && owner != cpu)
        back_off(&tries);
}

void mem_guest_enter(struct cpu *cpu)
{
    struct mem_shared *sh = cpu->domain->mem;
    struct cpu *owner;

    atomic_store_explicit(&cpu->mem->core, cpu_host_core(), memory_order_relaxed);
    for (;;) {
        atomic_fetch_add(&cpu->epoch, 1);
        owner = atomic_load(&sh->exclusive);
        if (likely(!owner || owner == cpu))
            break;
        atomic_fetch_add(&cpu->epoch, 1);
        wait_for_exclusive(cpu);
    }
    if (atomic_load(&cpu->attention) & (ATT_FLUSH | ATT_EPOCH)) {
        atomic_fetch_and(&cpu->attention, ~(ATT_FLUSH | ATT_EPOCH));
        serve(cpu);
    }
}

void mem_guest_leave(struct cpu *cpu)
{
    atomic_fetch_add(&cpu->epoch, 1);
    wake_waiters(cpu->mem);
}

void mem_poll(struct cpu *cpu)
{
    struct mem_shared *sh = cpu->domain->mem;
    struct cpu *owner;

    atomic_store_explicit(&cpu->mem->core, cpu_host_core(), memory_order_relaxed);
    atomic_fetch_and(&cpu->attention, ~(ATT_FLUSH | ATT_EPOCH));
    atomic_fetch_add(&cpu->epoch, 2);
    serve(cpu);
    wake_waiters(cpu->mem);
    owner = atomic_load(&sh->exclusive);
    if (unlikely(owner && owner != cpu)) {
        mem_guest_leave(cpu);
        wait_for_exclusive(cpu);
        mem_guest_enter(cpu);
    }
}

void cpu_epoch_wait(struct cpu_domain *d)
{
    pthread_mutex_lock(&d->mem->lock); /* no unit is freed now; guest mode never takes this lock */
    wait_for_all(d->mem, false);
    pthread_mutex_unlock(&d->mem->lock);
}

void cpu_drop_ask(struct cpu_domain *d)
{
    struct mem_shared *sh = d->mem;

    pthread_mutex_lock(&sh->lock);
    for (unsigned i = 0; i < atomic_load(&sh->nunits); i++) {
        struct mem_unit *m = atomic_load(&sh->unit[i]);

        if (m)
            post(m, 0);
    }
    pthread_mutex_unlock(&sh->lock);
}

void cpu_drop_wait(struct cpu_domain *d, hva_t hva, size_t size, unsigned what)
{
    pthread_mutex_lock(&d->mem->lock);
    wait_for_all(d->mem, true);
    pthread_mutex_unlock(&d->mem->lock);
    if (what & ACC_EXEC)
        code_drop_host_range(d, hva, size);
}

void cpu_drop_host_range(struct cpu_domain *d, hva_t hva, size_t size, unsigned what)
{
    cpu_drop_ask(d);
    cpu_drop_wait(d, hva, size, what);
}

/* The code bit of the page is set already: nobody fills a write entry any more. */
void mem_protect_host_page(struct cpu_domain *d, struct cpu *self, hva_t page)
{
    struct mem_shared *sh = d->mem;
    const uint64_t holders = atomic_load(&sh->wfilter[wfilter_slot(page)]);
    const unsigned n = atomic_load(&sh->nunits);

    if (!holders)
        return;
    if (self) {
        self->counters[CC_code_protects]++;
        if (holders & 1ull << (self->mem->index & 63))
            tlb_drop_writes(self->mem, page);
        atomic_store(&self->mem->waiting, true);
        wake_waiters(self->mem);
    }
    for (unsigned i = 0; i < n; i++) {
        struct mem_unit *m = atomic_load(&sh->unit[i]);

        if (m && m->cpu != self && (holders & 1ull << (m->index & 63))) {
            post(m, page);
            wait_since(m, atomic_load(&m->cpu->epoch), true);
        }
    }
    if (!self)
        return;
    atomic_store(&self->mem->waiting, false);
    if (atomic_load(&self->attention) & ATT_FLUSH)
        serve_protects(self);
}

/* ---- one cpu alone ---- */

/* This cpu is between two instructions, or before the first access of one: it may leave and enter. */
void cpu_exclusive_begin(struct cpu *cpu)
{
    struct mem_shared *sh = cpu->domain->mem;
    const bool guest = atomic_load(&cpu->epoch) & 1;
    struct cpu *none = NULL;
    unsigned tries = 0;

    if (guest)
        mem_guest_leave(cpu);
    while (!atomic_compare_exchange_strong(&sh->exclusive, &none, cpu)) {
        none = NULL;
        back_off(&tries);
    }
    for (unsigned i = 0; i < atomic_load(&sh->nunits); i++) {
        struct mem_unit *m = atomic_load(&sh->unit[i]);

        if (!m || m->cpu == cpu)
            continue;
        for (tries = 0; atomic_load(&m->cpu->epoch) & 1; back_off(&tries))
            cpu_attend(m->cpu, ATT_EPOCH);
    }
    if (guest)
        mem_guest_enter(cpu);
}

void cpu_exclusive_end(struct cpu *cpu)
{
    atomic_store(&cpu->domain->mem->exclusive, NULL);
}
