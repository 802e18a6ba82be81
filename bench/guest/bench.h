/* SPDX-License-Identifier: MIT
 * bench.h: a guest program of the bench: setup is not timed, run is and returns a checksum that depends on all of its
 * work, so that a wrong machine shows and nothing can be left out. main.c does the rest. */
#ifndef BENCH_GUEST_BENCH_H
#define BENCH_GUEST_BENCH_H

#include <stddef.h>
#include <stdint.h>

extern const char bench_name[];
void bench_setup(unsigned long scale); /* scale 100: about 0.2 s on a host of 2023 */
uint64_t bench_run(unsigned long scale);
extern int (*bench_child)(int argc, char **argv); /* set by a program that executes itself; NULL */

void *bench_alloc(size_t size); /* zeroed, or the program ends */
void bench_fail(const char *what) __attribute__((noreturn));

/* xorshift64*: the same numbers everywhere */
static inline uint64_t bench_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1dull;
}

static inline uint64_t bench_mix(uint64_t sum, uint64_t value)
{
    sum = (sum ^ value) * 0x9e3779b97f4a7c15ull;
    return sum ^ sum >> 29;
}

#endif
