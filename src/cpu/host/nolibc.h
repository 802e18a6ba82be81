/* SPDX-License-Identifier: MIT
 * nolibc.h: included before every file that may run while the guest's vector state is live in the host's registers.
 * libc's string functions use vector registers, and the compiler calls them for structure copies: these names go to
 * host.c's versions, which do not. */
#ifndef CPU_NOLIBC_H
#define CPU_NOLIBC_H

#include <stddef.h>

void *memcpy(void *, const void *, size_t) __asm__("cpu_memcpy");
void *memmove(void *, const void *, size_t) __asm__("cpu_memmove");
void *memset(void *, int, size_t) __asm__("cpu_memset");
int memcmp(const void *, const void *, size_t) __asm__("cpu_memcmp");

#endif
