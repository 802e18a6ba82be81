/* SPDX-License-Identifier: MIT
 * fp.c: vectorised float: a matrix product, a polynomial over an array, n bodies in double. Nothing is contracted or
 * reordered, so every machine gives the same bits, whatever vectors it has. */
#include "bench.h"
#include <string.h>

#define N      192
#define LENGTH 65536
#define BODIES 64

#if defined(__x86_64__)
#define VECTORS __attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3")))
#else
#define VECTORS
#endif

const char bench_name[] = "fp";
static float *a, *b, *c, *x, *y;
static double pos[BODIES][3], vel[BODIES][3];

void bench_setup(unsigned long scale)
{
    uint64_t random = 7;

    a = bench_alloc(N * N * sizeof(float));
    b = bench_alloc(N * N * sizeof(float));
    c = bench_alloc(N * N * sizeof(float));
    x = bench_alloc(LENGTH * sizeof(float));
    y = bench_alloc(LENGTH * sizeof(float));
    for (unsigned i = 0; i < N * N; i++) {
        a[i] = (float)(bench_random(&random) >> 40) / (1 << 24);
        b[i] = (float)(bench_random(&random) >> 40) / (1 << 24) - 0.5f;
    }
    for (unsigned i = 0; i < LENGTH; i++)
        x[i] = (float)i / LENGTH;
    for (unsigned i = 0; i < BODIES; i++)
        for (unsigned k = 0; k < 3; k++)
            pos[i][k] = (double)(bench_random(&random) >> 11) / (1ull << 53);
}

VECTORS static void product(void)
{
    memset(c, 0, N * N * sizeof(float));
    for (unsigned i = 0; i < N; i++)
        for (unsigned k = 0; k < N; k++) {
            const float f = a[i * N + k];

            for (unsigned j = 0; j < N; j++)
                c[i * N + j] += f * b[k * N + j];
        }
}

VECTORS static void polynomial(void)
{
    for (unsigned i = 0; i < LENGTH; i++) {
        const float v = x[i];
        float p = 0.3f;

        p = p * v + 0.7f;
        p = p * v - 1.1f;
        p = p * v + 0.01f;
        p = p / (v * v + 1.0f);
        y[i] = __builtin_sqrtf(p * p + y[i] * 0.25f);
    }
}

static void step(double dt)
{
    for (unsigned i = 0; i < BODIES; i++) {
        double acc[3] = {0};

        for (unsigned j = 0; j < BODIES; j++) {
            const double dx = pos[j][0] - pos[i][0], dy = pos[j][1] - pos[i][1], dz = pos[j][2] - pos[i][2];
            const double d2 = dx * dx + dy * dy + dz * dz + 0.01;
            const double f = 1.0 / (d2 * __builtin_sqrt(d2));

            acc[0] += dx * f;
            acc[1] += dy * f;
            acc[2] += dz * f;
        }
        for (unsigned k = 0; k < 3; k++)
            vel[i][k] += acc[k] * dt;
    }
    for (unsigned i = 0; i < BODIES; i++)
        for (unsigned k = 0; k < 3; k++)
            pos[i][k] += vel[i][k] * dt;
}

static uint64_t bits_of(const void *p, size_t size)
{
    const uint8_t *bytes = p;
    uint64_t sum = 0, word;

    for (size_t i = 0; i + 8 <= size; i += 8) {
        memcpy(&word, bytes + i, 8);
        sum = sum * 31 + word;
    }
    return sum;
}

uint64_t bench_run(unsigned long scale)
{
    uint64_t sum = 0;

    for (unsigned long round = 0; round < 100 * scale / 100; round++) {
        product();
        sum = bench_mix(sum, bits_of(c, N * N * sizeof(float)));
        for (int i = 0; i < 16; i++)
            polynomial();
        sum = bench_mix(sum, bits_of(y, LENGTH * sizeof(float)));
        for (int i = 0; i < 40; i++)
            step(1e-4);
        sum = bench_mix(sum, bits_of(pos, sizeof(pos)));
    }
    return sum;
}
