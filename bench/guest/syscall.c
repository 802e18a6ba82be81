/* SPDX-License-Identifier: MIT
 * syscall.c: short system calls: getppid, and one-byte reads and writes of a file without a page. */
#include "bench.h"
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

const char bench_name[] = "syscall";
static int zero, null;

void bench_setup(unsigned long scale)
{
    zero = open("/dev/zero", O_RDONLY);
    null = open("/dev/null", O_WRONLY);
    if (zero < 0 || null < 0)
        bench_fail("/dev/zero, /dev/null");
}

uint64_t bench_run(unsigned long scale)
{
    uint64_t sum = 0;
    char c = 1;

    for (unsigned long i = 0; i < 200000 * scale / 100; i++)
        sum += syscall(SYS_getppid) >= 0;
    for (unsigned long i = 0; i < 50000 * scale / 100; i++) {
        sum += (uint64_t)read(zero, &c, 1) + (unsigned char)c;
        sum += (uint64_t)write(null, &c, 1);
    }
    return sum;
}
