/* SPDX-License-Identifier: MIT
 * exec.c: executes itself again and again: posix_spawn (vfork and execve), exit, wait. */
#include "bench.h"
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

const char bench_name[] = "exec";

static int child(int argc, char **argv)
{
    return argc > 2 ? atoi(argv[2]) & 0x7f : 0;
}

__attribute__((constructor)) static void init(void)
{
    bench_child = child;
}

void bench_setup(unsigned long scale) {}

uint64_t bench_run(unsigned long scale)
{
    char number[24], *const argv[] = {"exec", "--child", number, NULL}, *const env[] = {NULL};
    uint64_t sum = 0;

    for (unsigned long i = 0; i < 100 * scale / 100; i++) {
        pid_t pid;
        int status;

        snprintf(number, sizeof(number), "%lu", i);
        if (posix_spawn(&pid, "/proc/self/exe", NULL, NULL, argv, env))
            bench_fail("posix_spawn");
        if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != (i & 0x7f))
            bench_fail("execve");
        sum = bench_mix(sum, (uint64_t)WEXITSTATUS(status));
    }
    return sum;
}
