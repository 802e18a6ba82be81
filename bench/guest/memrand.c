/* SPDX-License-Identifier: MIT
 * memrand.c: 16 MB at random: one chain of dependent loads, then independent loads and stores. */
#include "bench.h"

#define COUNT (1u << 22) /* of 4 bytes */

const char bench_name[] = "memrand";
static uint32_t *next;

/* One cycle through all elements (Sattolo). */
void bench_setup(unsigned long scale)
{
    uint64_t random = 99;

    next = bench_alloc(COUNT * sizeof(*next));
    for (uint32_t i = 0; i < COUNT; i++)
        next[i] = i;
    for (uint32_t i = COUNT - 1; i > 0; i--) {
        const uint32_t j = (uint32_t)((bench_random(&random) >> 32) * i >> 32), t = next[i];

        next[i] = next[j];
        next[j] = t;
    }
}

uint64_t bench_run(unsigned long scale)
{
    uint64_t sum = 0, random = 5;
    uint32_t at = 0;

    for (unsigned long i = 0; i < 2000000 * scale / 100; i++)
        at = next[at];
    sum = bench_mix(sum, at);
    for (unsigned long i = 0; i < 4000000 * scale / 100; i++)
        sum += next[bench_random(&random) >> 42];
    for (unsigned long i = 0; i < 2000000 * scale / 100; i++)
        next[bench_random(&random) >> 42] ^= (uint32_t)i;
    for (uint32_t i = 0; i < COUNT; i++)
        sum = sum * 31 + next[i];
    return sum;
}
