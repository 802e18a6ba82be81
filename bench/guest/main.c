/* SPDX-License-Identifier: MIT
 * main.c: PROGRAM [-p PORT] [SCALE]: runs the program of bench.h (SCALE in percent) and prints its name, checksum and
 * milliseconds. With -p the bytes S and E go to that I/O port (0xe9) around the timed part, for who measures outside.
 */
#include "bench.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <time.h>
#include <unistd.h>

int (*bench_child)(int argc, char **argv);

void bench_fail(const char *what)
{
    perror(what);
    exit(1);
}

void *bench_alloc(size_t size)
{
    void *p = calloc(1, size);

    if (!p)
        bench_fail("calloc");
    return p;
}

static double now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec * 1e-6;
}

int main(int argc, char **argv)
{
    unsigned long scale = 100, port = 0;
    uint64_t sum;
    double ms;
    int opt;

    if (argc > 1 && !strcmp(argv[1], "--child"))
        return bench_child ? bench_child(argc, argv) : 0;
    while ((opt = getopt(argc, argv, "p:")) != -1) {
        if (opt != 'p') {
            fprintf(stderr, "usage: %s [-p PORT] [SCALE]\n", argv[0]);
            return 2;
        }
        port = strtoul(optarg, NULL, 0);
    }
    if (optind < argc)
        scale = strtoul(argv[optind], NULL, 0);
    if (port && ioperm(port, 1, 1))
        bench_fail("ioperm");
    bench_setup(scale);
    ms = now_ms();
    if (port)
        outb('S', (unsigned short)port);
    sum = bench_run(scale);
    if (port)
        outb('E', (unsigned short)port);
    ms = now_ms() - ms;
    printf("%-8s %016llx %10.3f ms\n", bench_name, (unsigned long long)sum, ms);
    return 0;
}
