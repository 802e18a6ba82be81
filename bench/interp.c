/* SPDX-License-Identifier: MIT
 * interp.c (bench): speed of an engine on flat 64-bit code, beside the same functions run natively. */
#include <stdio.h>
#include <time.h>
#include "../tests/unit/guest_code.h"

static GUEST_FN uint64_t k_sort(uint8_t *data, uint64_t n) /* shell sort of 8K words: compares, loads, stores */
{
    uint32_t *v = (uint32_t *)data, x = 12345;
    uint64_t sum = 0;

    for (uint64_t round = 0; round < n; round++) {
        for (int i = 0; i < 8192; i++)
            v[i] = x = x * 1103515245u + 12345u;
        for (int gap = 4096; gap; gap /= 2)
            for (int i = gap; i < 8192; i++) {
                const uint32_t t = v[i];
                int j = i;
                for (; j >= gap && v[j - gap] > t; j -= gap)
                    v[j] = v[j - gap];
                v[j] = t;
            }
        sum += v[round & 8191];
    }
    return sum;
}

static GUEST_FN uint64_t k_fib_step(uint64_t n)
{
    return n < 2 ? n : k_fib_step(n - 1) + k_fib_step(n - 2);
}

static GUEST_FN uint64_t k_fib(uint8_t *data, uint64_t n) /* calls, returns, pushes */
{
    return k_fib_step(n);
}

static GUEST_FN uint64_t k_list(uint8_t *data, uint64_t n) /* pointers and fields, as kernels do */
{
    struct node {
        struct node *next;
        uint32_t flags, count;
        uint64_t val;
    } *v = (struct node *)data;
    uint64_t sum = 0;

    for (unsigned i = 0; i < 1024; i++) {
        v[i].next = &v[(i * 389 + 1) & 1023];
        v[i].flags = i;
        v[i].count = 0;
        v[i].val = i * 3;
    }
    for (struct node *p = v; n--; p = p->next) {
        if (p->flags & 4)
            p->count++;
        else if (!(p->flags & 1))
            p->val ^= p->count;
        sum += p->val;
    }
    return sum;
}

static GUEST_FN uint64_t k_bytes(uint8_t *data, uint64_t n) /* a byte parser: movzx, cmp, jcc */
{
    uint64_t words = 0;

    for (int i = 0; i < 4096; i++)
        data[i] = (i * 7) & 63 ? 'a' + i % 26 : ' ';
    while (n--)
        for (int i = 0, in_word = 0; i < 4096; i++) {
            const bool space = data[i] == ' ' || data[i] == '\n' || data[i] == '\t';
            words += !space && !in_word;
            in_word = !space;
        }
    return words;
}

static double seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        guest_fn *fn;
        uint64_t n;
    } kernels[] = {{"sort", k_sort, 20}, {"fib", k_fib, 30}, {"list", k_list, 8000000}, {"bytes", k_bytes, 3000}};
    static uint8_t data[1 << 20] __attribute__((aligned(4096)));
    const char *engine = argc > 1 ? argv[1] : "interp";
    struct guest g;
    int bad = 0;

    guest_create(&g, engine);
    printf("%-8s %12s %10s %10s %8s\n", engine, "instructions", "M/s", "ns/insn", "x native");
    for (unsigned i = 0; i < sizeof(kernels) / sizeof(kernels[0]); i++) {
        const uint64_t before = cpu_counters(g.cpu)[CC_insns];
        double t = seconds(), native, soft;
        uint64_t want, got, insns;

        want = kernels[i].fn(data, kernels[i].n);
        native = seconds() - t;
        t = seconds();
        got = guest_call(&g, kernels[i].fn, kernels[i].n);
        soft = seconds() - t;
        insns = cpu_counters(g.cpu)[CC_insns] - before;
        printf("%-8s %12lu %10.1f %10.2f %8.1f%s\n", kernels[i].name, insns, insns / soft / 1e6, soft * 1e9 / insns,
               soft / native, want != got ? "  WRONG RESULT" : "");
        bad |= want != got;
    }
    guest_destroy(&g);
    return bad;
}
