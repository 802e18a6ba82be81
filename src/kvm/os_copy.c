/* SPDX-License-Identifier: MIT
 * os_copy.c: a client's memory, by pointers that may be anything. A system call that fails where a copy would fault
 * (process_vm_readv) costs a hundred times as much as the copy, and a client's own seccomp filter would have to know
 * it. */
#include "os.h"
#include "../cpu/cpu.h"
#include <errno.h>

int os_copy_from_user(void *dst, const void *user, size_t n)
{
    return cpu_copy_user(dst, user, n) ? -EFAULT : 0;
}

int os_copy_to_user(void *user, const void *src, size_t n)
{
    return cpu_copy_user(user, src, n) ? -EFAULT : 0;
}
