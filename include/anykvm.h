/* SPDX-License-Identifier: MIT
 * anykvm.h: KVM in user space. The only public header: libc's signatures and errno rules, so that a table
 * {open, ioctl, mmap, close} holds either libc's functions (a real /dev/kvm) or these. The ioctl numbers and structures
 * are those of <linux/kvm.h>. */
#ifndef ANYKVM_H
#define ANYKVM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/types.h>

#define ANYKVM_API __attribute__((visibility("default")))

/* Open "/dev/kvm". Returns a descriptor (a real memfd, CLOEXEC as flags ask) or -1 with errno. */
ANYKVM_API int anykvm_open(const char *path, int flags);
ANYKVM_API int anykvm_close(int fd);
/* An ioctl on a system, VM, vCPU or device descriptor: errno as Linux's KVM (Documentation/virt/kvm/api.rst). */
ANYKVM_API int anykvm_ioctl(int fd, unsigned long request, ...);
/* mmap of a vCPU descriptor: struct kvm_run, PIO page, coalesced ring. Other descriptors go to libc's mmap. */
ANYKVM_API void *anykvm_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off);
/* True when fd is one of anykvm's descriptors in this process. */
ANYKVM_API bool anykvm_owns(int fd);
/* Async-signal-safe. A signal handler of the client ran on this thread: its vCPU, if any, leaves KVM_RUN with EINTR. */
ANYKVM_API void anykvm_signal_arrived(void);
/* Any thread: the vCPU leaves KVM_RUN with EINTR, now or, where it is about to enter, at once. */
ANYKVM_API void anykvm_interrupt(int vcpu_fd);
/* ---- for a caller that stands where libc stands (src/shim) ----
 * True when fd is in this process's table; no system call, async-signal-safe. Numbers that came by ways that nobody
 * told of (dup by system call, a socket) are not in it until anykvm_ioctl() or anykvm_owns() sees them. */
ANYKVM_API bool anykvm_known(int fd);
/* ... and when it is /dev/kvm itself, not a VM or vCPU. */
ANYKVM_API bool anykvm_is_device(int fd);
/* The lowest number >= fd that is in the table, or -1. */
ANYKVM_API int anykvm_next(int fd);
/* made is a duplicate of fd. Without effect where fd is not known. */
ANYKVM_API void anykvm_duplicated(int fd, int made);
/* The number is about to be given out again (dup2): forget it as anykvm_close() would, but leave it open. */
ANYKVM_API void anykvm_forget(int fd);
struct sigaction;
/* sigaction() for SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGTRAP: after the first anykvm_open() the handlers that the
 * kernel knows are anykvm's, and these are what it passes on to. Other signals: libc's sigaction. */
ANYKVM_API int anykvm_sigaction(int sig, const struct sigaction *act, struct sigaction *old);
/* The process is about to restrict its system calls (seccomp): threads that anykvm would start later are started, and
 * from now on it opens nothing by name. */
ANYKVM_API void anykvm_sandbox_ahead(void);
/* The calling thread changed its signal mask: the five above must not stay blocked in KVM_RUN. */
ANYKVM_API void anykvm_sigmask_changed(void);

/* "anykvm 0.1" and the vendor, engine and parameters in force, one "name=value" a line, for `anykvm check`.
 * Returns the length that the text has (snprintf's rule). */
ANYKVM_API int anykvm_describe(char *buf, size_t size);
ANYKVM_API const char *anykvm_version(void);
/* Counters of a VM or vCPU as text: fd is a descriptor of KVM_GET_STATS_FD, or a memfd "anykvm-stats" opened through
 * /proc/PID/fd of another process. Returns 0, or -1: it is none. */
ANYKVM_API int anykvm_stat_print(int fd, FILE *out);
/* Parameters, as of a module: "ept=0,vpid=0,engine=interp"; the same as ANYKVM_PARAMS. Before the first anykvm_open.
 * Returns 0, or -1 with errno EINVAL and *bad at the offending name (bad may be NULL). */
ANYKVM_API int anykvm_set_params(const char *params, const char **bad);

#endif
