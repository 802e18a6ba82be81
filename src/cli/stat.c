/* SPDX-License-Identifier: MIT
 * stat.c: anykvm stat: counters of a machine: of one that it starts (printed at its end), or of a running one (-p PID).
 */
#include "cli.h"
#include <anykvm.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int stat_usage(void)
{
    fputs("usage: anykvm stat run ...     run it, print the counters at its end\n"
          "       anykvm stat -p PID      print those of a running process\n",
          stderr);
    return 2;
}

/* The counters of a VM and of each vCPU lie in memfds of this name, found among the process's descriptors. */
static int print_of(const char *pid)
{
    char path[300], target[300];
    struct dirent *e;
    DIR *dir;
    ssize_t n;
    int found = 1;

    snprintf(path, sizeof(path), "/proc/%s/fd", pid);
    dir = opendir(path);
    if (!dir) {
        fprintf(stderr, "anykvm stat: process %s: %s\n", pid, strerror(errno));
        return 1;
    }
    while ((e = readdir(dir))) {
        snprintf(path, sizeof(path), "/proc/%s/fd/%s", pid, e->d_name);
        n = readlink(path, target, sizeof(target) - 1);
        if (n < 0)
            continue;
        target[n] = 0;
        if (!strstr(target, "memfd:anykvm-stats"))
            continue;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            anykvm_stat_print(fd, stdout);
            close(fd);
        }
        found = 0;
    }
    closedir(dir);
    if (found)
        fprintf(stderr, "anykvm stat: process %s runs no machine on the software processor\n", pid);
    return found;
}

int cmd_stat(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "-p") == 0)
        return print_of(argv[2]);
    if (argc < 2 || strcmp(argv[1], "run") != 0)
        return stat_usage();
    setenv("ANYKVM_STAT", "1", 1);
    return cmd_run(argc - 1, argv + 1);
}
