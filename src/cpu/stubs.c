/* SPDX-License-Identifier: MIT
 * stubs.c: weak bodies that abort, so that each room links and is tested alone until the others are filled. Gone with
 * the last of them. */
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#pragma GCC diagnostic ignored "-Wbuiltin-declaration-mismatch"
void abort(void) __attribute__((noreturn));
int puts(const char *);
#define STUB(name)                                                                                                     \
    __attribute__((weak)) void name(void);                                                                             \
    void name(void)                                                                                                    \
    {                                                                                                                  \
        puts("not there yet: " #name);                                                                                 \
        abort();                                                                                                       \
    }
