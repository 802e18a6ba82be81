/* SPDX-License-Identifier: MIT
 * memcpy.c: the C library's copies, moves and fills, and rep movsb and stosq: 64 bytes to 8 MB. */
#include "bench.h"
#include <string.h>

#define SIZE (8u << 20)

const char bench_name[] = "memcpy";
static uint8_t *from, *to;

void bench_setup(unsigned long scale)
{
    uint64_t random = 3;

    from = bench_alloc(SIZE + 4096);
    to = bench_alloc(SIZE + 4096);
    for (unsigned i = 0; i < SIZE; i++)
        from[i] = (uint8_t)(bench_random(&random) >> 56);
    memset(to, 1, SIZE);
}

static void rep_movsb(void *d, const void *s, size_t n)
{
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
}

static void rep_stosq(void *d, uint64_t v, size_t n)
{
    __asm__ volatile("rep stosq" : "+D"(d), "+c"(n) : "a"(v) : "memory");
}

static uint64_t sum_of(void)
{
    uint64_t sum = 0, word;

    for (unsigned i = 0; i < SIZE; i += 64) {
        memcpy(&word, to + i, 8);
        sum = sum * 31 + word;
    }
    return sum;
}

uint64_t bench_run(unsigned long scale)
{
    static const unsigned sizes[] = {64, 256, 4096, 65536, 1u << 20, SIZE};
    uint64_t sum = 0;

    for (unsigned long round = 0; round < 30 * scale / 100; round++) {
        for (unsigned k = 0; k < 6; k++)
            for (unsigned done = 0; done < SIZE; done += sizes[k])
                memcpy(to + done, from + ((done * 7 + round) & (SIZE - sizes[k])), sizes[k]);
        sum = bench_mix(sum, sum_of());
        memmove(to + 13, to, SIZE - 13);
        for (unsigned done = 0; done < SIZE; done += 65536)
            rep_movsb(to + done, from + (SIZE - 65536 - done), 65536);
        rep_stosq(to + SIZE / 2, sum, SIZE / 32);
        memset(to + SIZE / 4, (int)round, SIZE / 8);
        sum = bench_mix(sum, sum_of());
    }
    return sum;
}
