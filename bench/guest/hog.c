/* SPDX-License-Identifier: MIT
 * hog.c: hog SECONDS: keeps a processor busy and prints how many rounds of work that was. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
    const double end = now() + (argc > 1 ? atof(argv[1]) : 1);
    uint64_t x = 1, rounds = 0;

    while (now() < end) {
        for (unsigned i = 0; i < 10000; i++)
            x = x * 6364136223846793005ull + (x >> 33 & 1 ? 1442695040888963407ull : 1);
        rounds++;
    }
    printf("hog %llu rounds %llx\n", (unsigned long long)rounds, (unsigned long long)(x & 1));
    return 0;
}
