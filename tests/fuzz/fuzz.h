/* SPDX-License-Identifier: MIT
 * fuzz.h: what the fuzzers share: a printed seed for each case, the list of engines, a child process that is watched,
 * and limits on the time of a case, the memory and the descriptors of the process.
 *
 * A fuzzer is a function that runs one case from its seed. Case i of a run has seed + i, so a failing one is repeated
 * by fuzz_NAME --engine E --seed N --count 1 Options: --engine NAME (default: each that this build has), --seed N
 * (default: fixed), --seconds N (default: the fuzzer's; FUZZ_SECONDS), --count N (cases). */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <anykvm.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FUZZ_SANITIZED 1
#else
#define FUZZ_SANITIZED 0
#endif

struct fuzzer {
    const char *name;
    unsigned seconds;           /* of each engine, when nothing else is asked for */
    unsigned count;             /* at most that many cases; 0: as many as the time allows */
    unsigned case_seconds;      /* a case that takes longer hangs */
    void (*one)(uint64_t seed); /* fails by fuzz_fail() */
    bool once;                  /* it sets the engine itself: one run */
    void (*report)(void);       /* at the end: counters, and whether enough was reached */
};
int fuzz_main(const struct fuzzer *, int argc, char **argv);

/* Prints and ends the process: the parent adds how the case is repeated. */
void fuzz_fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
#define fuzz_check(condition, ...)  \
    do {                            \
        if (!(condition))           \
            fuzz_fail(__VA_ARGS__); \
    } while (0)

/* ---- random numbers: splitmix64 ---- */
struct rng {
    uint64_t s;
};
static inline uint64_t rnd(struct rng *r)
{
    uint64_t z = r->s += 0x9e3779b97f4a7c15ull;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}
static inline uint64_t rnd_below(struct rng *r, uint64_t n)
{
    return rnd(r) % n;
}
static inline bool one_in(struct rng *r, unsigned n)
{
    return rnd(r) % n == 0;
}
#define rnd_of(r, array) ((array)[rnd_below((r), sizeof(array) / sizeof((array)[0]))])
uint64_t rnd_value(struct rng *); /* likes the edges: powers of two, canonical borders, small and negative numbers */
void rnd_bytes(struct rng *, void *, size_t);

uint64_t fuzz_now_ns(void);

/* ---- a limit for one KVM_RUN: the thread leaves it with EINTR. One at a time. ---- */
void fuzz_alarm(struct kvm_run *, unsigned us);
void fuzz_alarm_check(void); /* after KVM_RUN: had the alarm rung, it came back at once */
void fuzz_alarm_off(void);
extern volatile int fuzz_alarm_rang;

#endif
