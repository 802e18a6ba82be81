/* SPDX-License-Identifier: MIT
 * client.h: what the test clients share. */
#ifndef TESTS_CLIENT_H
#define TESTS_CLIENT_H

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* _exit: a child of fork() runs none of its parent's exit functions. */
#define CHECK(x)                                                                                \
    do {                                                                                        \
        if (!(x)) {                                                                             \
            fprintf(stderr, "%s:%d: %s (errno %s)\n", __FILE__, __LINE__, #x, strerror(errno)); \
            _exit(1);                                                                           \
        }                                                                                       \
    } while (0)

#endif
