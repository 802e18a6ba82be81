/* SPDX-License-Identifier: MIT
 * fault.c: page faults: map 16 MB, touch each page, unmap; and copy on write after fork-like private file maps. */
#include "bench.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE (16u << 20)

const char bench_name[] = "fault";
static int file;

void bench_setup(unsigned long scale)
{
    file = memfd_create("bench", 0);
    if (file < 0 || ftruncate(file, SIZE / 4))
        bench_fail("memfd_create");
}

static uint64_t touch(int fd, size_t size)
{
    uint8_t *p = mmap(NULL, size, PROT_READ | PROT_WRITE, fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_PRIVATE, fd, 0);
    uint64_t sum = 0;

    if (p == MAP_FAILED)
        bench_fail("mmap");
    madvise(p, size, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < size; i += 4096) {
        sum += p[i];
        p[i] = (uint8_t)(i >> 12);
    }
    for (size_t i = 0; i < size; i += 4096)
        sum += p[i];
    munmap(p, size);
    return sum;
}

uint64_t bench_run(unsigned long scale)
{
    uint64_t sum = 0;

    for (unsigned long i = 0; i < 4 * scale / 100; i++) {
        sum = bench_mix(sum, touch(-1, SIZE));
        sum = bench_mix(sum, touch(file, SIZE / 4));
    }
    return sum;
}
