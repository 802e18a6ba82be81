/* SPDX-License-Identifier: MIT
 * fork.c: fork, a write in the child, its exit and wait. */
#include "bench.h"
#include <sys/wait.h>
#include <unistd.h>

const char bench_name[] = "fork";
static volatile uint8_t *heap;

void bench_setup(unsigned long scale)
{
    heap = bench_alloc(1 << 20);
    for (unsigned i = 0; i < 1 << 20; i += 4096)
        heap[i] = 1;
}

uint64_t bench_run(unsigned long scale)
{
    uint64_t sum = 0;

    for (unsigned long i = 0; i < 200 * scale / 100; i++) {
        const pid_t pid = fork();
        int status;

        if (pid == 0) {
            heap[i % 256 * 4096] = (uint8_t)i;
            _exit(heap[i % 256 * 4096] & 0x7f);
        }
        if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
            bench_fail("fork");
        sum = bench_mix(sum, (uint64_t)WEXITSTATUS(status));
    }
    return sum;
}
