/* SPDX-License-Identifier: MIT
 * pipe.c: context switches: a byte goes to another process and back by pipes; then 64 KB blocks go one way. */
#include "bench.h"
#include <sys/wait.h>
#include <unistd.h>

#define BLOCK 65536

const char bench_name[] = "pipe";
static int there[2], back[2];
static uint8_t block[BLOCK];

void bench_setup(unsigned long scale)
{
    if (pipe(there) || pipe(back))
        bench_fail("pipe");
}

static void all(ssize_t (*io)(int, void *, size_t), int fd, uint8_t *p, size_t n)
{
    while (n) {
        const ssize_t r = io(fd, p, n);

        if (r <= 0)
            bench_fail("pipe");
        p += r;
        n -= (size_t)r;
    }
}

static ssize_t put(int fd, void *p, size_t n)
{
    return write(fd, p, n);
}

static void other(unsigned long rounds, unsigned long blocks)
{
    uint8_t c;

    for (unsigned long i = 0; i < rounds; i++) {
        all(read, there[0], &c, 1);
        c++;
        all(put, back[1], &c, 1);
    }
    for (unsigned long i = 0; i < blocks; i++) {
        for (unsigned k = 0; k < BLOCK; k += 64)
            block[k] = (uint8_t)(i + k / 64);
        all(put, back[1], block, BLOCK);
    }
    _exit(0);
}

uint64_t bench_run(unsigned long scale)
{
    const unsigned long rounds = 20000 * scale / 100, blocks = 400 * scale / 100;
    const pid_t pid = fork();
    uint64_t sum = 0;
    uint8_t c = 0;

    if (pid < 0)
        bench_fail("fork");
    if (pid == 0)
        other(rounds, blocks);
    for (unsigned long i = 0; i < rounds; i++) {
        all(put, there[1], &c, 1);
        all(read, back[0], &c, 1);
        sum += c;
    }
    for (unsigned long i = 0; i < blocks; i++) {
        all(read, back[0], block, BLOCK);
        for (unsigned k = 0; k < BLOCK; k += 64)
            sum = sum * 31 + block[k];
    }
    waitpid(pid, NULL, 0);
    return sum;
}
