/* SPDX-License-Identifier: MIT
 * test_bounds.c: what a guest can make an engine remember is bounded: tables of translations, the host's page tables
 * under them, generations of mappings. */
#include "guest.h"
#include <stdio.h>
#include <time.h>

/* kB of a line of /proc/self/status */
static long status_kb(const char *name)
{
    FILE *f = fopen("/proc/self/status", "re");
    char line[128];
    long kb = -1;

    assert_non_null(f);
    while (kb < 0 && fgets(line, sizeof(line), f))
        if (!strncmp(line, name, strlen(name)))
            sscanf(line + strlen(name) + 1, "%ld", &kb);
    fclose(f);
    assert_true(kb >= 0);
    return kb;
}

/* mov eax, [rsi]: a page fault in each of many 512 MB, then in each of as many MB */
static void addresses_without_memory(void **state)
{
    struct guest *g = *state;
    const long before = status_kb("VmPTE"), rss = status_kb("VmRSS");

    guest_w(g, EXCEPTION_BITMAP, 1u << VEC_PF);
    guest_code(g, "\x8b\x06", 2);
    for (uint64_t n = 2; n < 60000; n++) {
        guest_w(g, GUEST_RIP, GUEST_CODE);
        *guest_gpr(g, R_RSI) = n < 30000 ? n << 29 : n << 20;
        assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
    }
    assert_in_range(status_kb("VmPTE") - before, 0, 40 << 10);
    assert_in_range(status_kb("VmRSS") - rss, 0, 72 << 10);
}

/* Any GiB shows the same memory. mov cr3, rax; mov eax, [rsi]; vmcall */
static void address_spaces_that_were(void **state)
{
    struct guest *g = *state;
    uint64_t *pml4 = (uint64_t *)(g->ram + GUEST_PML4), *pdpt = (uint64_t *)(g->ram + GUEST_PDPT);
    long before = 0;

    for (unsigned i = 1; i < 512; i++)
        pdpt[i] = pdpt[0];
    for (unsigned i = 1; i < 256; i++)
        pml4[i] = pml4[0];
    memcpy(g->ram + GUEST_DATA, "\x21\x43\x65\x87", 4);
    guest_code(g, "\x0f\x22\xd8\x8b\x06", 5);
    for (uint64_t n = 0; n < 1800; n++) {
        guest_w(g, GUEST_RIP, GUEST_CODE);
        *guest_gpr(g, R_RAX) = GUEST_PML4;
        *guest_gpr(g, R_RSI) = (n * 0x9e3779b1 % 0x1ffff) << 30 | GUEST_DATA;
        assert_int_equal(guest_run(g), EXIT_REASON_VMCALL);
        assert_int_equal(*guest_gpr(g, R_RAX), 0x87654321);
        if (n == 100)
            before = status_kb("VmRSS");
    }
    assert_in_range(status_kb("VmRSS") - before + (4 << 10), 0, 16 << 10);
}

/* Two pages that jump to each other, ecx times; then vmcall. With generations near the end of what a link can hold, it
 * must not take the long way each time, now or ever after. */
static void generations_begin_anew(void **state)
{
    struct guest *g = *state;
    struct timespec t[2];

    memcpy(g->ram + GUEST_CODE + 0x1000, "\xff\xc9\x0f\x85\xf8\xef\xff\xff\x0f\x01\xc1", 11); /* dec ecx; jnz; vmcall */
    guest_code(g, "\xe9\xfb\x0f\x00\x00", 5);                                                 /* jmp */
    for (unsigned turn = 0; turn < 3; turn++) {
        uint64_t *gen = g->cpu->exec_gen;

        if (turn)
            gen[0] = gen[1] = (1ull << 31) - 128 + turn * (1ull << 33);
        guest_w(g, GUEST_RIP, GUEST_CODE);
        *guest_gpr(g, R_RCX) = 3000000;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t[0]);
        assert_int_equal(guest_run(g), EXIT_REASON_VMCALL);
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t[1]);
        assert_int_equal(*guest_gpr(g, R_RCX) & 0xffffffff, 0);
        if (g->cpu->flatu)
            assert_true(gen[0] >> 31 == 0 && gen[1] >> 31 == 0);
        print_message("%ld ms\n", (t[1].tv_sec - t[0].tv_sec) * 1000 + (t[1].tv_nsec - t[0].tv_nsec) / 1000000);
    }
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, guest_setup, guest_teardown)
    static const struct CMUnitTest tests[] = {
        TEST(addresses_without_memory),
        TEST(address_spaces_that_were),
        TEST(generations_begin_anew),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
