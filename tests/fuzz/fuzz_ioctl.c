/* SPDX-License-Identifier: MIT
 * fuzz_ioctl.c: every ioctl of KVM with arguments that are random, nearly right, at a page's edge or no memory at all,
 * by several threads on the same VMs, whose descriptors are closed while they are in use. Nothing crashes or hangs, and
 * an errno is one that Linux's KVM gives.
 *
 * Memory that the process itself needs is never offered: slots and buffers lie in an arena amid reserved addresses. */
#include "fuzz.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>

#define THREADS 3
#define CALLS   250u /* of a thread in a case */
#define FDS     24
#define ARENA   (1ull << 20)
#define RESERVE (1ull << 33)
#define RUNS    8
#define BUF     8192u
/* What ends a KVM_RUN. ThreadSanitizer holds signals back until the thread makes a system call that it knows. */
#ifdef __SANITIZE_THREAD__
#define BY_SIGNAL 0
#else
#define BY_SIGNAL 1
#endif

#define I(name, shape)     \
    {                      \
        name, #name, shape \
    }
enum shape {
    WORD,
    BYTES,
    MSRS,
    CPUID,
    REGION,
    DIRTY,
    CLEAR,
    ATTR,
    FILTER,
    IRQFD,
    IOEVENT,
    HVEVENT,
    ROUTING,
    SIGMASK,
    CAP,
    RUN,
    MAKE
};
static const struct {
    unsigned long request;
    const char *name;
    enum shape shape;
} calls[] = {
    I(KVM_GET_API_VERSION, WORD),
    I(KVM_CREATE_VM, MAKE),
    I(KVM_CHECK_EXTENSION, WORD),
    I(KVM_GET_VCPU_MMAP_SIZE, WORD),
    I(KVM_GET_MSR_INDEX_LIST, BYTES),
    I(KVM_GET_MSR_FEATURE_INDEX_LIST, BYTES),
    I(KVM_GET_MSRS, MSRS),
    I(KVM_GET_SUPPORTED_CPUID, CPUID),
    I(KVM_GET_EMULATED_CPUID, CPUID),
    I(KVM_X86_GET_MCE_CAP_SUPPORTED, BYTES),
    I(KVM_GET_DEVICE_ATTR, ATTR),
    I(KVM_SET_DEVICE_ATTR, ATTR),
    I(KVM_HAS_DEVICE_ATTR, ATTR),
    I(KVM_RUN, RUN),
    I(KVM_RUN, RUN),
    I(KVM_RUN, RUN),
    I(KVM_GET_REGS, BYTES),
    I(KVM_SET_REGS, BYTES),
    I(KVM_GET_SREGS, BYTES),
    I(KVM_SET_SREGS, BYTES),
    I(KVM_GET_SREGS2, BYTES),
    I(KVM_SET_SREGS2, BYTES),
    I(KVM_GET_FPU, BYTES),
    I(KVM_SET_FPU, BYTES),
    I(KVM_GET_XSAVE, BYTES),
    I(KVM_GET_XSAVE2, BYTES),
    I(KVM_SET_XSAVE, BYTES),
    I(KVM_GET_XCRS, BYTES),
    I(KVM_SET_XCRS, BYTES),
    I(KVM_SET_MSRS, MSRS),
    I(KVM_SET_CPUID, CPUID),
    I(KVM_SET_CPUID2, CPUID),
    I(KVM_GET_CPUID2, CPUID),
    I(KVM_GET_LAPIC, BYTES),
    I(KVM_SET_LAPIC, BYTES),
    I(KVM_INTERRUPT, BYTES),
    I(KVM_NMI, WORD),
    I(KVM_SMI, WORD),
    I(KVM_SET_SIGNAL_MASK, SIGMASK),
    I(KVM_TPR_ACCESS_REPORTING, BYTES),
    I(KVM_SET_VAPIC_ADDR, BYTES),
    I(KVM_GET_MP_STATE, BYTES),
    I(KVM_SET_MP_STATE, BYTES),
    I(KVM_GET_VCPU_EVENTS, BYTES),
    I(KVM_SET_VCPU_EVENTS, BYTES),
    I(KVM_GET_DEBUGREGS, BYTES),
    I(KVM_SET_DEBUGREGS, BYTES),
    I(KVM_SET_GUEST_DEBUG, BYTES),
    I(KVM_TRANSLATE, BYTES),
    I(KVM_X86_SETUP_MCE, BYTES),
    I(KVM_X86_SET_MCE, BYTES),
    I(KVM_SET_TSC_KHZ, WORD),
    I(KVM_GET_TSC_KHZ, WORD),
    I(KVM_KVMCLOCK_CTRL, WORD),
    I(KVM_ENABLE_CAP, CAP),
    I(KVM_GET_STATS_FD, MAKE),
    I(KVM_IRQ_LINE, BYTES),
    I(KVM_IRQ_LINE_STATUS, BYTES),
    I(KVM_SIGNAL_MSI, BYTES),
    I(KVM_CREATE_VCPU, MAKE),
    I(KVM_SET_USER_MEMORY_REGION, REGION),
    I(KVM_SET_USER_MEMORY_REGION, REGION),
    I(KVM_GET_DIRTY_LOG, DIRTY),
    I(KVM_CLEAR_DIRTY_LOG, CLEAR),
    I(KVM_SET_TSS_ADDR, WORD),
    I(KVM_SET_IDENTITY_MAP_ADDR, BYTES),
    I(KVM_SET_NR_MMU_PAGES, WORD),
    I(KVM_GET_NR_MMU_PAGES, WORD),
    I(KVM_CREATE_IRQCHIP, WORD),
    I(KVM_GET_IRQCHIP, BYTES),
    I(KVM_SET_IRQCHIP, BYTES),
    I(KVM_CREATE_PIT, WORD),
    I(KVM_CREATE_PIT2, BYTES),
    I(KVM_GET_PIT, BYTES),
    I(KVM_SET_PIT, BYTES),
    I(KVM_GET_PIT2, BYTES),
    I(KVM_SET_PIT2, BYTES),
    I(KVM_REINJECT_CONTROL, BYTES),
    I(KVM_SET_GSI_ROUTING, ROUTING),
    I(KVM_IRQFD, IRQFD),
    I(KVM_IOEVENTFD, IOEVENT),
    I(KVM_REGISTER_COALESCED_MMIO, BYTES),
    I(KVM_UNREGISTER_COALESCED_MMIO, BYTES),
    I(KVM_SET_BOOT_CPU_ID, WORD),
    I(KVM_GET_CLOCK, BYTES),
    I(KVM_SET_CLOCK, BYTES),
    I(KVM_X86_SET_MSR_FILTER, FILTER),
    I(KVM_GET_NESTED_STATE, BYTES),
    I(KVM_SET_NESTED_STATE, BYTES),
    I(KVM_SET_PMU_EVENT_FILTER, BYTES),
    I(KVM_RESET_DIRTY_RINGS, WORD),
    I(KVM_CREATE_DEVICE, BYTES),
    I(KVM_HYPERV_EVENTFD, HVEVENT),
    I(KVM_GET_ONE_REG, BYTES),
    I(KVM_XEN_HVM_CONFIG, WORD),
    I(_IO(KVMIO, 0xfe), WORD),
    I(_IO('T', 1), WORD),
};
static const int errnos[] = {EFAULT, EINVAL, ENOTTY, EBADF, ENOMEM,     EEXIST, ENOENT, ENXIO, E2BIG,
                             EBUSY,  EINTR,  EAGAIN, EPERM, EOPNOTSUPP, ENOSPC, EMFILE, ENODEV};

struct shared {
    _Atomic int fds[FDS]; /* -1: none; the first 4 last through the case */
    _Atomic(struct kvm_run *) runs[RUNS];
    _Atomic unsigned nruns;
    _Atomic int left;
    int event[2];
    uint64_t seed;
};
struct worker {
    struct shared *sh;
    struct rng r;
    uint8_t *buf; /* BUF bytes, and behind them no memory */
    pthread_t thread;
};

static uint8_t *reserve, *arena, *readonly;
static size_t run_size;
static _Atomic uint64_t done, succeeded[sizeof(calls) / sizeof(calls[0])];

/* ---- arguments ---- */
static void *safe_pointer(struct rng *r)
{
    switch (rnd_below(r, 8)) {
    case 0:
        return NULL;
    case 1:
        return (void *)0x10;
    case 2:
        return (void *)(0xffff800000000000 + rnd_below(r, 1 << 20));
    case 3:
        return reserve + 0x1000; /* reserved, not there */
    case 4:
        return (void *)(0x8000000000000000 | rnd(r));
    default:
        return arena + (rnd(r) & (ARENA - 1) & ~7ull);
    }
}

static void fill_words(struct rng *r, void *buf, size_t size)
{
    uint32_t *p = buf;

    for (size_t i = 0; i + 4 <= size; i += 4)
        *p++ = (uint32_t)(one_in(r, 3) ? rnd_value(r) : one_in(r, 2) ? rnd_below(r, 16) : 0);
}

static void fill_region(struct rng *r, void *buf)
{
    struct kvm_userspace_memory_region *m = buf;
    const uint64_t page = (rnd_below(r, ARENA / 4096)) * 4096;

    *m =
        (struct kvm_userspace_memory_region){.slot = (uint32_t)(one_in(r, 8) ? rnd_value(r) : rnd_below(r, 4)),
                                             .flags = (uint32_t)(one_in(r, 8) ? rnd_value(r) : rnd_below(r, 4)),
                                             .guest_phys_addr = one_in(r, 4) ? rnd_value(r) : rnd_below(r, 64) * 0x4000,
                                             .memory_size = one_in(r, 4) ? 0 : (1 + rnd_below(r, 64)) * 4096,
                                             .userspace_addr = (uintptr_t)(arena + page)};
    switch (rnd_below(r, 10)) {
    case 0: /* reaches over the arena into reserved addresses */
        m->memory_size = RESERVE / 4;
        break;
    case 1: /* no memory at all */
        m->userspace_addr = (uintptr_t)reserve;
        break;
    case 2: /* absurd */
        m->memory_size = (1ull << 52) + rnd(r);
        break;
    case 3:
        m->userspace_addr = 0xffff800000000000 | rnd(r);
        break;
    case 4:
        m->userspace_addr += 1 + rnd_below(r, 4095);
        break;
    }
}

static void fill_filter(struct rng *r, void *buf)
{
    struct kvm_msr_filter *f = buf;

    for (unsigned i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++) {
        f->ranges[i].flags &= one_in(r, 8) ? ~0u : 3;
        f->ranges[i].nmsrs = one_in(r, 3) ? 0 : (uint32_t)(one_in(r, 8) ? rnd_value(r) : rnd_below(r, 0x600));
        f->ranges[i].bitmap = safe_pointer(r);
    }
}

static void fill_msrs(struct rng *r, void *buf)
{
    static const uint32_t known[] = {0x10,       0x1b,       0x3a,       0x174,      0x175,      0x176,      0x1a0,
                                     0x277,      0x2ff,      0x200,      0x400,      0x6e0,      0x800,      0x830,
                                     0x17a,      0xc0000080, 0xc0000081, 0xc0000082, 0xc0000100, 0xc0000101, 0xc0000102,
                                     0xc0000103, 0x4b564d00, 0x4b564d01, 0x4b564d02, 0x4b564d03, 0x4b564d04, 0x11,
                                     0x12,       0x480,      0x48b,      0xda0,      0xc0010015, 0xc001001f, 0x8b};
    struct kvm_msrs *m = buf;

    m->nmsrs = one_in(r, 10) ? (uint32_t)rnd_value(r) : (uint32_t)rnd_below(r, 20);
    for (unsigned i = 0; i < 20; i++) {
        m->entries[i].index = one_in(r, 6) ? (uint32_t)rnd(r) : rnd_of(r, known);
        m->entries[i].data = one_in(r, 2) ? rnd_value(r) : (rnd_below(r, 0x200000) | rnd_below(r, 2));
    }
}

static void fill(struct worker *w, enum shape shape, void *buf, size_t size)
{
    struct rng *r = &w->r;
    uint32_t *u = buf;

    fill_words(r, buf, size);
    switch (shape) {
    case REGION:
        fill_region(r, buf);
        break;
    case DIRTY:
        u[0] = (uint32_t)rnd_below(r, 5);
        ((struct kvm_dirty_log *)buf)->dirty_bitmap = safe_pointer(r);
        break;
    case CLEAR:
        u[0] = (uint32_t)rnd_below(r, 5);
        u[1] = (uint32_t)(one_in(r, 4) ? rnd_value(r) : rnd_below(r, 3) * 64);
        ((struct kvm_clear_dirty_log *)buf)->dirty_bitmap = safe_pointer(r);
        break;
    case ATTR:
        ((struct kvm_device_attr *)buf)->addr = (uintptr_t)safe_pointer(r);
        break;
    case FILTER:
        fill_filter(r, buf);
        break;
    case MSRS:
        fill_msrs(r, buf);
        break;
    case CPUID:
    case ROUTING:
        u[0] = one_in(r, 8) ? (uint32_t)rnd_value(r) : (uint32_t)rnd_below(r, 64);
        if (shape == ROUTING && !one_in(r, 8))
            u[1] = 0;
        break;
    case IRQFD:
        u[0] = (uint32_t)w->sh->event[rnd_below(r, 2)];
        u[1] = (uint32_t)rnd_below(r, 32);
        u[2] = (uint32_t)rnd_below(r, 4);
        u[3] = (uint32_t)w->sh->event[rnd_below(r, 2)];
        break;
    case IOEVENT: {
        struct kvm_ioeventfd *e = buf;

        e->addr = one_in(r, 4) ? rnd_value(r) : rnd_below(r, 8) * 8;
        e->len = (uint32_t)rnd_below(r, 9);
        e->fd = w->sh->event[rnd_below(r, 2)];
        e->flags = (uint32_t)rnd_below(r, 16);
        break;
    }
    case HVEVENT:
        u[0] = (uint32_t)rnd_below(r, 4);
        u[1] = (uint32_t)w->sh->event[rnd_below(r, 2)];
        u[2] = (uint32_t)rnd_below(r, 3);
        break;
    case SIGMASK: /* the test's own signal stays open, or nothing would end a KVM_RUN */
        u[0] = one_in(r, 4) ? (uint32_t)rnd_value(r) : 8;
        u[1] &= ~(1u << (SIGUSR1 - 1));
        break;
    case CAP:
        u[0] = (uint32_t)rnd_below(r, 240);
        u[1] = one_in(r, 8);
        break;
    default:
        break;
    }
}

/* What a GET of the same structure gives, a little changed: passes the first checks */
static bool fill_from_get(struct worker *w, int fd, unsigned long set, void *buf)
{
    static const struct {
        unsigned long set, get;
        unsigned size;
    } pairs[] = {{KVM_SET_REGS, KVM_GET_REGS, sizeof(struct kvm_regs)},
                 {KVM_SET_SREGS, KVM_GET_SREGS, sizeof(struct kvm_sregs)},
                 {KVM_SET_SREGS2, KVM_GET_SREGS2, sizeof(struct kvm_sregs2)},
                 {KVM_SET_XSAVE, KVM_GET_XSAVE, 4096},
                 {KVM_SET_FPU, KVM_GET_FPU, sizeof(struct kvm_fpu)},
                 {KVM_SET_XCRS, KVM_GET_XCRS, sizeof(struct kvm_xcrs)},
                 {KVM_SET_LAPIC, KVM_GET_LAPIC, 1024},
                 {KVM_SET_VCPU_EVENTS, KVM_GET_VCPU_EVENTS, sizeof(struct kvm_vcpu_events)},
                 {KVM_SET_DEBUGREGS, KVM_GET_DEBUGREGS, sizeof(struct kvm_debugregs)},
                 {KVM_SET_MP_STATE, KVM_GET_MP_STATE, sizeof(struct kvm_mp_state)},
                 {KVM_SET_PIT2, KVM_GET_PIT2, sizeof(struct kvm_pit_state2)},
                 {KVM_SET_IRQCHIP, KVM_GET_IRQCHIP, sizeof(struct kvm_irqchip)},
                 {KVM_SET_CLOCK, KVM_GET_CLOCK, sizeof(struct kvm_clock_data)}};

    for (unsigned i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++)
        if (pairs[i].set == set && anykvm_ioctl(fd, pairs[i].get, buf) == 0) {
            for (unsigned n = (unsigned)rnd_below(&w->r, 3); n; n--)
                ((uint8_t *)buf)[rnd_below(&w->r, pairs[i].size)] ^= (uint8_t)(1u << rnd_below(&w->r, 8));
            return true;
        }
    return false;
}

static unsigned long argument(struct worker *w, int fd, unsigned long request, enum shape shape)
{
    struct rng *r = &w->r;
    uint8_t *buf = w->buf;

    if (shape == RUN)
        return one_in(r, 20) ? rnd_value(r) : 0;
    if (shape == WORD || shape == MAKE)
        return one_in(r, 3) ? rnd_value(r) : rnd_below(r, 8);
    switch (rnd_below(r, 24)) {
    case 0:
        return (unsigned long)safe_pointer(r);
    case 1:
        return (unsigned long)readonly;
    case 2: /* ends too early */
        return (unsigned long)(buf + BUF - rnd_below(r, 64));
    }
    if (!(one_in(r, 2) && fill_from_get(w, fd, request, buf)))
        fill(w, shape, buf, BUF);
    return (unsigned long)buf;
}

/* ---- descriptors ---- */
static void keep(struct shared *sh, int fd)
{
    for (unsigned i = 4; i < FDS; i++) {
        int none = -1;

        if (atomic_compare_exchange_strong(&sh->fds[i], &none, fd))
            return;
    }
    anykvm_close(fd);
}

static void map_run(struct worker *w, int fd)
{
    const unsigned i = atomic_fetch_add(&w->sh->nruns, 1);
    struct kvm_run *run;

    if (i >= RUNS) {
        atomic_store(&w->sh->nruns, RUNS);
        return;
    }
    run = anykvm_mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    atomic_store(&w->sh->runs[i], run == MAP_FAILED ? NULL : run);
}

static void close_one(struct worker *w)
{
    const int fd = atomic_exchange(&w->sh->fds[rnd_below(&w->r, FDS)], -1);

    if (fd >= 0) {
        if (!BY_SIGNAL) /* nobody finds it any more, and a thread may be in its KVM_RUN */
            anykvm_interrupt(fd);
        anykvm_close(fd);
    }
}

/* What a hostile writer does to the shared page, and a strange mapping */
static void meddle(struct worker *w)
{
    const unsigned i = (unsigned)rnd_below(&w->r, RUNS);
    struct kvm_run *run = atomic_load(&w->sh->runs[i]);
    const uint64_t one = 1;
    void *p;

    if (run && one_in(&w->r, 2)) {
        ((volatile uint8_t *)run)[rnd_below(&w->r, 3 * 4096)] = (uint8_t)rnd(&w->r);
        run->kvm_dirty_regs = rnd(&w->r) & 7;
    }
    if (write(w->sh->event[rnd_below(&w->r, 2)], &one, sizeof(one)) < 0)
        return;
    if (one_in(&w->r, 16)) {
        const size_t size = 4096u << rnd_below(&w->r, 4);

        p = anykvm_mmap(NULL, size, PROT_READ, MAP_SHARED, w->sh->fds[rnd_below(&w->r, FDS)],
                        (off_t)rnd_below(&w->r, 70) * 4096);
        if (p != MAP_FAILED)
            munmap(p, size);
    }
}

static void call(struct worker *w)
{
    const unsigned c = (unsigned)rnd_below(&w->r, sizeof(calls) / sizeof(calls[0]));
    const int fd = w->sh->fds[rnd_below(&w->r, one_in(&w->r, 3) ? FDS : 4)];
    const unsigned long arg = argument(w, fd, calls[c].request, calls[c].shape);
    const int ret = anykvm_ioctl(fd, calls[c].request, arg);
    const int e = errno;

    done++;
    if (ret >= 0) {
        succeeded[c]++;
        if (calls[c].shape == MAKE) {
            fuzz_check(ret > 2, "%s = %d", calls[c].name, ret);
            if (calls[c].request == KVM_CREATE_VCPU)
                map_run(w, ret);
            keep(w->sh, ret);
        }
        return;
    }
    if (calls[c].request == KVM_GET_NR_MMU_PAGES) /* Linux too: a number of 32 bits comes back as an int */
        return;
    fuzz_check(ret == -1, "%s = %d", calls[c].name, ret);
    for (unsigned i = 0; i < sizeof(errnos) / sizeof(errnos[0]); i++)
        if (errnos[i] == e)
            return;
    fuzz_fail("%s: errno %d (%s) is none of KVM's", calls[c].name, e, strerror(e));
}

static void *worker(void *opaque)
{
    struct worker *w = opaque;

    for (unsigned i = 0; i < CALLS; i++) {
        call(w);
        if (one_in(&w->r, 16))
            meddle(w);
        if (one_in(&w->r, 64))
            close_one(w);
    }
    atomic_fetch_sub(&w->sh->left, 1);
    return NULL;
}

static void end_runs(struct shared *sh, struct worker *w)
{
    for (unsigned i = 0; BY_SIGNAL && i < THREADS; i++)
        pthread_kill(w[i].thread, SIGUSR1);
    for (unsigned i = 0; !BY_SIGNAL && i < FDS; i++)
        if (sh->fds[i] >= 0)
            anykvm_interrupt(sh->fds[i]);
}

/* ---- a case ---- */
static void on_signal(int sig)
{
    anykvm_signal_arrived();
}

static void setup(struct shared *sh, struct worker *w)
{
    struct kvm_enable_cap ring = {.cap = KVM_CAP_DIRTY_LOG_RING, .args = {4096u << rnd_below(&w->r, 3)}};
    int vm, vcpu;

    for (unsigned i = 0; i < FDS; i++)
        sh->fds[i] = -1;
    sh->event[0] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    sh->event[1] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    sh->fds[0] = anykvm_open("/dev/kvm", O_RDWR | O_CLOEXEC);
    sh->fds[1] = vm = anykvm_ioctl(sh->fds[0], KVM_CREATE_VM, 0);
    fuzz_check(vm >= 0, "KVM_CREATE_VM: %s", strerror(errno));
    if (one_in(&w->r, 2))
        anykvm_ioctl(vm, KVM_CREATE_IRQCHIP, 0);
    if (one_in(&w->r, 3))
        anykvm_ioctl(vm, KVM_ENABLE_CAP, &ring);
    for (int i = 0; i < 2; i++) {
        sh->fds[2 + i] = vcpu = anykvm_ioctl(vm, KVM_CREATE_VCPU, i);
        fuzz_check(vcpu >= 0, "KVM_CREATE_VCPU: %s", strerror(errno));
        map_run(w, vcpu);
    }
    rnd_bytes(&w->r, arena, 0x10000);
}

static void one(uint64_t seed)
{
    static uint8_t *bufs[THREADS];
    struct shared sh = {.seed = seed, .left = THREADS};
    struct worker w[THREADS];
    const uint64_t start = fuzz_now_ns();

    for (unsigned i = 0; i < THREADS; i++) {
        if (!bufs[i]) {
            bufs[i] = mmap(NULL, BUF + 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            mprotect(bufs[i], BUF, PROT_READ | PROT_WRITE);
        }
        w[i] = (struct worker){.sh = &sh, .r = {seed * 0x2545f4914f6cdd1dull + i}, .buf = bufs[i]};
    }
    setup(&sh, &w[0]);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_create(&w[i].thread, NULL, worker, &w[i]);
    while (sh.left > 0) {
        usleep(500);
        end_runs(&sh, w);
        fuzz_check(fuzz_now_ns() - start < 60ull * 1000000000, "threads hang");
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(w[i].thread, NULL);
    for (unsigned i = 0; i < RUNS; i++)
        if (sh.runs[i])
            munmap(sh.runs[i], run_size);
    for (unsigned i = FDS; i-- > 0;)
        if (sh.fds[i] >= 0)
            anykvm_close(sh.fds[i]);
    close(sh.event[0]);
    close(sh.event[1]);
}

static void report(void)
{
    unsigned never = 0;

    printf("fuzz_ioctl: %llu ioctls; none succeeded of:", (unsigned long long)done);
    for (unsigned i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
        if (!succeeded[i]) {
            printf(" %s", calls[i].name);
            never++;
        }
    printf("\n");
    fuzz_check(never < 30 || done < 20000, "%u kinds of ioctl never got through: the arguments are too wild", never);
}

static void init(void)
{
    const struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    int sys;

    if (arena)
        return;
    sigaction(SIGUSR1, &sa, NULL);
    reserve = mmap(NULL, RESERVE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    fuzz_check(reserve != MAP_FAILED, "no addresses");
    arena = reserve + RESERVE / 2;
    mprotect(arena, ARENA, PROT_READ | PROT_WRITE);
    readonly = mmap(NULL, BUF, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sys = anykvm_open("/dev/kvm", O_RDWR | O_CLOEXEC);
    run_size = (size_t)anykvm_ioctl(sys, KVM_GET_VCPU_MMAP_SIZE, 0);
    anykvm_close(sys);
}

static void one_case(uint64_t seed)
{
    init();
    one(seed);
}

int main(int argc, char **argv)
{
    static const struct fuzzer fuzzer = {
        .name = "fuzz_ioctl", .seconds = 6, .case_seconds = 30, .one = one_case, .report = report};

    return fuzz_main(&fuzzer, argc, argv);
}
