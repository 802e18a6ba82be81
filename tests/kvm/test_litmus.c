/* SPDX-License-Identifier: MIT
 * test_litmus.c: the memory model of x86-64 (SDM 3A, "Memory Ordering") between vCPUs on threads of the host: outcomes
 * that it forbids never appear, and locked accesses are atomic, also over a page's end. Each vCPU goes through the same
 * arrays of locations at its own pace; a barrier parts the rounds. What is allowed may or may not be seen: SB's is
 * printed, for a host that never shows it proves nothing. IRIW needs four threads; where the host has two processors
 * they run in turns, and each switch drains a store buffer: it then finds copies of guest memory that we would keep per
 * vCPU, not what a store buffer shared by two threads would show. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include "vm.h"

#define TRIALS  256u /* of a round */
#define SHARED  0x100000ull
#define THREADS 4

struct shared { /* in the guest's memory; its address is the same in the guest as SHARED */
    uint32_t arrived, pad0[31], phase, pad1[31];
    uint64_t end; /* TSC; 0: over */
    uint64_t rounds;
    uint64_t pad2[14];
    struct {
        uint32_t x[16], pad0[16], y[16], pad1[16];
    } at[TRIALS] __attribute__((aligned(4096)));
    uint32_t r[THREADS][TRIALS][2];
    uint64_t seen[16]; /* outcomes of two threads by their bits; [0] alone counts for four: the forbidden one */
    uint8_t counters[3 * 4096] __attribute__((aligned(4096)));
};

/* ---- the guest ---- */
#define GUEST                           \
    __attribute__((                     \
        section("litmus_fn"), noinline, \
        optimize("no-jump-tables", "no-tree-loop-distribute-patterns", "no-tree-vectorize", "no-stack-protector")))
#define INLINE static inline __attribute__((always_inline))
extern const uint8_t __start_litmus_fn[], __stop_litmus_fn[];

enum { SB, SB_MFENCE, SB_LOCK, SB_XCHG, MP, MP_BYTE, MP_VECTOR, MP_REP, LB, W22, IRIW, ATOMIC, TESTS };

#define STORE(p, v) __asm__ volatile("movl %1, %0" : "=m"(*(p)) : "r"((uint32_t)(v)) : "memory")
#define LOAD(p)                                                            \
    ({                                                                     \
        uint32_t v_;                                                       \
        __asm__ volatile("movl %1, %0" : "=r"(v_) : "m"(*(p)) : "memory"); \
        v_;                                                                \
    })

INLINE uint64_t tsc(void)
{
    uint32_t lo, hi;

    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (uint64_t)hi << 32 | lo;
}

INLINE void barrier(struct shared *s, uint32_t threads)
{
    const uint32_t phase = __atomic_load_n(&s->phase, __ATOMIC_SEQ_CST);

    if (__atomic_add_fetch(&s->arrived, 1, __ATOMIC_SEQ_CST) == threads) {
        s->arrived = 0;
        __atomic_store_n(&s->phase, phase + 1, __ATOMIC_SEQ_CST);
    }
    while (__atomic_load_n(&s->phase, __ATOMIC_SEQ_CST) == phase)
        __asm__ volatile("pause");
}

/* Thread 0 and 1 of the tests with two; x and y change places where both do the same. */
INLINE void two(unsigned test, unsigned id, uint32_t *x, uint32_t *y, uint32_t *r)
{
    uint32_t *mine = id ? y : x, *other = id ? x : y;
    uint32_t one = 1, local = 0;

    if (test <= SB_XCHG) {
        if (test == SB_XCHG)
            __asm__ volatile("xchg %0, %1" : "+r"(one), "+m"(*mine) : : "memory");
        else
            STORE(mine, 1);
        if (test == SB_MFENCE)
            __asm__ volatile("mfence" : : : "memory");
        if (test == SB_LOCK)
            __asm__ volatile("lock addl $0, %0" : "+m"(local) : : "memory", "cc");
        r[0] = LOAD(other);
    } else if (test <= MP_REP && id) {
        r[0] = LOAD(y);
        if (test == MP_VECTOR)
            __asm__ volatile("movups %1, %%xmm1; movd %%xmm1, %0" : "=r"(r[1]) : "m"(*x) : "memory", "xmm1");
        else
            r[1] = LOAD(x);
    } else if (test <= MP_REP) {
        if (test == MP_REP)
            __asm__ volatile("rep stosl" : "+D"(x), "+c"(one) : "a"(1) : "memory");
        else if (test == MP_VECTOR)
            __asm__ volatile("movd %1, %%xmm0; movups %%xmm0, %0" : "=m"(*x) : "r"(1) : "memory", "xmm0");
        else
            STORE(x, 1);
        if (test == MP_BYTE)
            __asm__ volatile("movb $1, %0" : "=m"(*y) : : "memory");
        else
            STORE(y, 1);
    } else if (test == LB) {
        r[0] = LOAD(other);
        STORE(mine, 1);
    } else {
        STORE(mine, 1);
        STORE(other, 2);
    }
}

INLINE void four(unsigned id, uint32_t *x, uint32_t *y, uint32_t *r)
{
    if (id < 2) {
        STORE(id ? y : x, 1);
    } else {
        r[0] = LOAD(id == 2 ? x : y);
        r[1] = LOAD(id == 2 ? y : x);
    }
}

INLINE void count(struct shared *s, unsigned test)
{
    for (unsigned i = 0; i < TRIALS; i++) {
        const uint32_t x = s->at[i].x[0], y = s->at[i].y[0];
        unsigned n;

        if (test <= SB_XCHG || test == LB)
            n = s->r[0][i][0] | s->r[1][i][0] << 1;
        else if (test <= MP_REP)
            n = s->r[1][i][0] | s->r[1][i][1] << 1;
        else if (test == W22)
            n = (x == 1) | (y == 1) << 1;
        else
            n = !(s->r[2][i][0] && !s->r[2][i][1] && s->r[3][i][0] && !s->r[3][i][1]);
        s->seen[n & 3]++;
        s->at[i].x[0] = s->at[i].y[0] = 0;
    }
    s->rounds++;
}

/* Counters of 1, 2, 4 and 8 bytes over each other's page ends, by three locked instructions */
INLINE void count_locked(struct shared *s)
{
    for (unsigned i = 0; i < TRIALS; i++) {
        uint32_t *a = (uint32_t *)(s->counters + 256), *b = (uint32_t *)(s->counters + 4096 - 2);
        uint64_t *c = (uint64_t *)(s->counters + 512), *d = (uint64_t *)(s->counters + 8192 - 3), one = 1, old, new;

        __asm__ volatile("lock incl %0; lock addl $1, %1" : "+m"(*a), "+m"(*b) : : "memory", "cc");
        __asm__ volatile("lock xaddq %0, %1" : "+r"(one), "+m"(*d) : : "memory", "cc");
        do {
            old = __atomic_load_n(c, __ATOMIC_RELAXED);
            new = old + 1;
            __asm__ volatile("lock cmpxchgq %2, %1" : "+a"(old), "+m"(*c) : "r"(new) : "memory", "cc");
        } while (old + 1 != new);
    }
}

GUEST static void guest(struct shared *s, uint64_t id, uint64_t test)
{
    const uint32_t threads = test == IRIW ? 4 : 2;
    bool go = true;

    while (go) {
        barrier(s, threads);
        if (test == ATOMIC) {
            count_locked(s);
        } else {
            for (unsigned i = 0; i < TRIALS; i++) {
                uint32_t r[2] = {0, 0};

                if (test == IRIW)
                    four((unsigned)id, s->at[i].x, s->at[i].y, r);
                else
                    two((unsigned)test, (unsigned)id, s->at[i].x, s->at[i].y, r);
                s->r[id][i][0] = r[0];
                s->r[id][i][1] = r[1];
            }
        }
        barrier(s, threads);
        if (!id) {
            if (test == ATOMIC)
                s->rounds++;
            else
                count(s, (unsigned)test);
            if (tsc() > s->end)
                s->end = 0;
        }
        barrier(s, threads);
        go = __atomic_load_n(&s->end, __ATOMIC_SEQ_CST) != 0;
    }
    for (;;)
        __asm__ volatile("out %al, $0x10");
}

/* ---- the host ---- */
static struct vm vm;

struct thread {
    pthread_t thread;
    int vcpu;
    uint32_t reason;
};

static void *run_vcpu(void *arg)
{
    struct thread *t = arg;

    while (vm_run(&vm, t->vcpu) < 0 && errno == EINTR)
        ;
    t->reason = vm.run[t->vcpu]->exit_reason;
    return NULL;
}

static void start(int i, unsigned ring, unsigned test)
{
    struct kvm_sregs s;
    struct kvm_regs r;

    vm_start_long(&vm, i);
    if (ring) {
        struct kvm_segment *segs[] = {&s.cs, &s.ds, &s.es, &s.ss, &s.fs, &s.gs};

        s = vm_sregs(&vm, i);
        for (unsigned n = 0; n < 6; n++) {
            segs[n]->dpl = 3;
            segs[n]->selector |= 3;
        }
        vm_set_sregs(&vm, i, s);
    }
    r = vm_regs(&vm, i);
    r.rip = VM_CODE + (uint64_t)((const uint8_t *)guest - __start_litmus_fn);
    r.rflags = 0x3002; /* port access from ring 3 */
    r.rsp -= 8;
    r.rdi = SHARED;
    r.rsi = (uint64_t)i;
    r.rdx = test;
    vm_set_regs(&vm, i, r);
}

/* Milliseconds that each test lasts */
static unsigned duration(void)
{
    const char *ms = getenv("LITMUS_MS");

    return ms ? (unsigned)strtoul(ms, NULL, 0) : 150;
}

static struct shared *run(unsigned test, unsigned ring)
{
    struct shared *s = (struct shared *)(vm.ram + SHARED);
    const int threads = test == IRIW ? 4 : 2;
    struct thread t[THREADS];
    const long khz = VM_MUST(vm_ioctl(vm.vcpu[0], KVM_GET_TSC_KHZ, 0));
    struct kvm_msrs *tsc = calloc(1, sizeof(*tsc) + sizeof(struct kvm_msr_entry));

    memset(s, 0, sizeof(*s));
    tsc->nmsrs = 1;
    tsc->entries[0].index = 0x10;
    VM_MUST(vm_ioctl(vm.vcpu[0], KVM_GET_MSRS, tsc));
    s->end = tsc->entries[0].data + (uint64_t)khz * duration();
    free(tsc);
    for (int i = 0; i < threads; i++) {
        start(i, ring, test);
        t[i] = (struct thread){.vcpu = i};
        assert_int_equal(pthread_create(&t[i].thread, NULL, run_vcpu, &t[i]), 0);
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(t[i].thread, NULL);
        assert_int_equal(t[i].reason, KVM_EXIT_IO);
    }
    assert_true(s->rounds > 0);
    return s;
}

static int setup(void **state)
{
    vm = vm_create(8 << 20);
    memcpy(vm.ram + VM_CODE, __start_litmus_fn, (size_t)(__stop_litmus_fn - __start_litmus_fn));
    for (int i = 0; i < THREADS; i++)
        vm_add_vcpu(&vm, i);
    return 0;
}

static int teardown(void **state)
{
    vm_destroy(&vm);
    return 0;
}

static void forbidden_outcomes(void **state)
{
    static const struct {
        unsigned test, forbidden; /* of the four outcomes; 4: none */
        const char *name;
    } rows[] = {
        {SB, 4, "SB"},
        {SB_MFENCE, 0, "SB+mfence"},
        {SB_LOCK, 0, "SB+lock add"},
        {SB_XCHG, 0, "SB+xchg"},
        {MP, 1, "MP"},
        {MP_BYTE, 1, "MP, bytes"},
        {LB, 3, "LB"},
        {MP_VECTOR, 1, "MP, 16 bytes"},
        {MP_REP, 1, "MP, rep stos"},
        {W22, 3, "2+2W"},
        {IRIW, 0, "IRIW"},
    };

    for (unsigned ring = 0; ring < 4; ring += 3)
        for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
            const struct shared *s = run(rows[i].test, ring);

            print_message("ring %u %-14s %8llu rounds, outcomes %llu %llu %llu %llu\n", ring, rows[i].name,
                          (unsigned long long)s->rounds, (unsigned long long)s->seen[0], (unsigned long long)s->seen[1],
                          (unsigned long long)s->seen[2], (unsigned long long)s->seen[3]);
            if (rows[i].forbidden < 4)
                assert_int_equal(s->seen[rows[i].forbidden], 0);
            assert_int_equal(s->seen[0] + s->seen[1] + s->seen[2] + s->seen[3], s->rounds * TRIALS);
        }
}

static void locked_accesses(void **state)
{
    for (unsigned ring = 0; ring < 4; ring += 3) {
        const struct shared *s = run(ATOMIC, ring);
        const uint64_t want = s->rounds * TRIALS * 2;
        uint32_t a, b;
        uint64_t c, d;

        memcpy(&a, s->counters + 256, 4);
        memcpy(&b, s->counters + 4096 - 2, 4);
        memcpy(&c, s->counters + 512, 8);
        memcpy(&d, s->counters + 8192 - 3, 8);
        assert_int_equal(a, want);
        assert_int_equal(b, want);
        assert_int_equal(c, want);
        assert_int_equal(d, want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(forbidden_outcomes, setup, teardown),
        cmocka_unit_test_setup_teardown(locked_accesses, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
