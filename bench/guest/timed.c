/* SPDX-License-Identifier: MIT
 * timed.c: timed NAME PORT PROGRAM [ARGUMENT...]: a program that was not written for the bench, from its start to its
 * end. The bytes S and E go to the I/O port (0: none) around it. Prints NAME, a checksum of what the program wrote to
 * its standard output, and milliseconds. */
#include "bench.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/io.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static double now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec * 1e-6;
}

static int run(char **argv, int out)
{
    const pid_t pid = fork();
    int status;

    if (pid < 0)
        fail("fork");
    if (pid == 0) {
        dup2(out, 1);
        execvp(argv[0], argv);
        perror(argv[0]);
        _exit(127);
    }
    if (waitpid(pid, &status, 0) < 0)
        fail("waitpid");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static uint64_t checksum(int fd)
{
    static uint8_t buf[65536];
    uint64_t sum = 0;
    ssize_t n;

    lseek(fd, 0, SEEK_SET);
    while ((n = read(fd, buf, sizeof(buf))) > 0)
        for (ssize_t i = 0; i < n; i++)
            sum = bench_mix(sum, buf[i]);
    return sum;
}

int main(int argc, char **argv)
{
    char path[] = "/tmp/timed.XXXXXX";
    unsigned short port;
    double ms;
    int out, status;

    if (argc < 4) {
        fprintf(stderr, "usage: %s NAME PORT PROGRAM [ARGUMENT...]\n", argv[0]);
        return 2;
    }
    port = (unsigned short)strtoul(argv[2], NULL, 0);
    if (port && ioperm(port, 1, 1))
        fail("ioperm");
    out = mkostemp(path, O_CLOEXEC);
    if (out < 0)
        fail(path);
    unlink(path);
    ms = now_ms();
    if (port)
        outb('S', port);
    status = run(argv + 3, out);
    if (port)
        outb('E', port);
    ms = now_ms() - ms;
    printf("%-8s %016llx %10.3f ms\n", argv[1], (unsigned long long)checksum(out), ms);
    return status;
}
