/* SPDX-License-Identifier: MIT
 * int.c: integer loops and branches: a sieve, Collatz chains, greatest common divisors, an unpredictable state machine.
 */
#include "bench.h"
#include <string.h>

#define SIEVE 200000

const char bench_name[] = "int";
static uint8_t *composite;

void bench_setup(unsigned long scale)
{
    composite = bench_alloc(SIEVE);
}

static uint64_t sieve(void)
{
    uint64_t sum = 0;

    memset(composite, 0, SIEVE);
    for (unsigned i = 2; i < SIEVE; i++) {
        if (composite[i])
            continue;
        sum += i;
        for (unsigned j = 2 * i; j < SIEVE; j += i)
            composite[j] = 1;
    }
    return sum;
}

static uint64_t collatz(uint64_t from, uint64_t to)
{
    uint64_t steps = 0;

    for (uint64_t n = from; n < to; n++)
        for (uint64_t x = n; x != 1; steps++)
            x = x & 1 ? 3 * x + 1 : x / 2;
    return steps;
}

static uint32_t gcd(uint32_t a, uint32_t b)
{
    while (b) {
        const uint32_t t = a % b;

        a = b;
        b = t;
    }
    return a;
}

static uint64_t states(uint64_t seed, unsigned n)
{
    uint64_t random = seed, sum = 0;
    unsigned state = 0;

    while (n--) {
        const unsigned bits = bench_random(&random) >> 60;

        if (bits < 4)
            state = (state + 1) & 7;
        else if (bits & 1)
            state ^= bits >> 1;
        else if (state > bits)
            state -= bits;
        else
            sum += state * bits;
        state &= 15;
    }
    return sum;
}

uint64_t bench_run(unsigned long scale)
{
    uint64_t sum = 1;

    for (unsigned long round = 0; round < 10 * scale / 100; round++) {
        sum = bench_mix(sum, sieve());
        sum = bench_mix(sum, collatz(1 + round * 10000, 1 + (round + 1) * 10000));
        for (uint32_t i = 1; i < 20000; i++)
            sum += gcd(i * 7919, (uint32_t)sum | 1);
        sum = bench_mix(sum, states(sum | 1, 500000));
    }
    return sum;
}
