/* SPDX-License-Identifier: MIT
 * os.h: the operating system as src/kvm sees it: memory, wait and wake, clocks. Errors are negative errno. */
#ifndef KVM_OS_H
#define KVM_OS_H

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void *os_alloc_pages(size_t n); /* zeroed, page aligned; NULL: no memory */
void os_free_pages(void *, size_t n);
/* Sleep while *word == expected, until deadline_ns (CLOCK_MONOTONIC; ~0: none). 0, -EINTR, -ETIMEDOUT, -EAGAIN. */
int os_futex_wait(_Atomic uint32_t *word, uint32_t expected, uint64_t deadline_ns);
void os_futex_wake(_Atomic uint32_t *word, int n);
uint64_t os_clock_ns(void);      /* CLOCK_MONOTONIC */
uint64_t os_clock_boot_ns(void); /* CLOCK_BOOTTIME */
uint64_t os_clock_real_ns(void);
bool os_signal_pending(const sigset_t *blocked_in_run);       /* a signal that KVM_RUN must return for */
int os_copy_from_user(void *dst, const void *user, size_t n); /* -EFAULT on a bad pointer */
int os_copy_to_user(void *user, const void *src, size_t n);
int os_memfd(const char *name, size_t size, bool cloexec);
int os_thread_start(const char *name, void *(*fn)(void *), void *arg, void *handle /* pthread_t * */);
void os_thread_join(void *handle);
/* False once the client restricts its system calls (anykvm_sandbox_ahead): nothing is opened by name any more. */
bool os_may_open(void);
void os_never_open(void);
void os_thread_low_latency(void); /* the calling thread: no timer slack, short slice, priority if allowed */

#endif
