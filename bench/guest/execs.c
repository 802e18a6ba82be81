/* SPDX-License-Identifier: MIT
 * execs.c: execs COUNT PROGRAM [ARGS]: executes the program COUNT times, its output dropped, and prints the time of the
 * first, the second and the last (minimum of the last ten, for what a busy host adds). */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec * 1e-3;
}

static double once(char **argv, int null)
{
    const double start = now_us();
    const pid_t pid = vfork();
    int status;

    if (pid == 0) {
        dup2(null, 1);
        execv(argv[0], argv);
        _exit(127);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status) {
        fprintf(stderr, "execs: %s failed\n", argv[0]);
        exit(1);
    }
    return now_us() - start;
}

int main(int argc, char **argv)
{
    const long count = argc > 2 ? atol(argv[1]) : 0;
    const int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    double first, second, last = 1e12;

    if (count < 12 || null < 0) {
        fprintf(stderr, "usage: execs COUNT PROGRAM [ARGS] (at least 12)\n");
        return 2;
    }
    first = once(argv + 2, null);
    second = once(argv + 2, null);
    for (long i = 2; i < count; i++) {
        const double us = once(argv + 2, null);

        if (i >= count - 10 && us < last)
            last = us;
    }
    printf("execs %ld: first %.0f us, second %.0f us, last %.0f us\n", count, first, second, last);
    return 0;
}
