/* SPDX-License-Identifier: MIT
 * sort.c: quicksort of 1 MB, heap sort, and the C library's qsort with its indirect calls. */
#include "bench.h"
#include <stdlib.h>
#include <string.h>

#define COUNT (1u << 18)

const char bench_name[] = "sort";
static uint32_t *input, *data;

void bench_setup(unsigned long scale)
{
    uint64_t random = 42;

    input = bench_alloc(COUNT * sizeof(*input));
    data = bench_alloc(COUNT * sizeof(*data));
    for (unsigned i = 0; i < COUNT; i++)
        input[i] = (uint32_t)(bench_random(&random) >> 32);
}

static void quick(uint32_t *a, long low, long high)
{
    while (low < high) {
        const uint32_t pivot = a[low + (high - low) / 2];
        long i = low, j = high;

        while (i <= j) {
            while (a[i] < pivot)
                i++;
            while (a[j] > pivot)
                j--;
            if (i <= j) {
                const uint32_t t = a[i];

                a[i++] = a[j];
                a[j--] = t;
            }
        }
        if (j - low < high - i) { /* the smaller part by recursion: the stack stays small */
            quick(a, low, j);
            low = i;
        } else {
            quick(a, i, high);
            high = j;
        }
    }
}

static void sift(uint32_t *a, unsigned i, unsigned n)
{
    const uint32_t v = a[i];

    for (unsigned child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && a[child + 1] > a[child])
            child++;
        if (a[child] <= v)
            break;
        a[i] = a[child];
    }
    a[i] = v;
}

static void heap(uint32_t *a, unsigned n)
{
    for (unsigned i = n / 2; i-- > 0;)
        sift(a, i, n);
    while (n > 1) {
        const uint32_t t = a[0];

        a[0] = a[--n];
        a[n] = t;
        sift(a, 0, n);
    }
}

static int compare(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

static uint64_t check(unsigned n)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < n; i++) {
        if (i && data[i - 1] > data[i])
            bench_fail("not sorted");
        sum = sum * 31 + data[i];
    }
    return sum;
}

uint64_t bench_run(unsigned long scale)
{
    uint64_t sum = 0;

    for (unsigned long round = 0; round < 4 * scale / 100; round++) {
        memcpy(data, input, COUNT * sizeof(*data));
        quick(data, 0, COUNT - 1);
        sum = bench_mix(sum, check(COUNT));
        memcpy(data, input, COUNT / 4 * sizeof(*data));
        heap(data, COUNT / 4);
        sum = bench_mix(sum, check(COUNT / 4));
        memcpy(data, input + COUNT / 2, COUNT / 4 * sizeof(*data));
        qsort(data, COUNT / 4, sizeof(*data), compare);
        sum = bench_mix(sum, check(COUNT / 4));
    }
    return sum;
}
