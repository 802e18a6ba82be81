/* SPDX-License-Identifier: MIT
 * shim.h: the preload library. Its files define libc's names (shim.map lists them); REAL(name) is libc's own. The
 * linker's
 * --wrap sends every other reference in this library to libc's (real.c), so anykvm's own calls never come back here. */
#ifndef SHIM_SHIM_H
#define SHIM_SHIM_H

/* open and open64, mmap and mmap64 ... are different names here */
#undef _FILE_OFFSET_BITS
#undef _FORTIFY_SOURCE
#include <anykvm.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <ucontext.h>
#include <unistd.h>

#define KVM_INO 232 /* of /dev/kvm; any number serves */
#define EXPORT  __attribute__((visibility("default")))

/* Names that libc's headers do not declare: fortified and pre-2.33 entries. */
int __open_2(const char *, int), __open64_2(const char *, int);
int __openat_2(int, const char *, int), __openat64_2(int, const char *, int);
int __xstat(int, const char *, struct stat *), __xstat64(int, const char *, struct stat64 *);
int __lxstat(int, const char *, struct stat *), __lxstat64(int, const char *, struct stat64 *);
int __fxstat(int, int, struct stat *), __fxstat64(int, int, struct stat64 *);
int __fxstatat(int, int, const char *, struct stat *, int), __fxstatat64(int, int, const char *, struct stat64 *, int);
int __fcntl(int, int, ...), __close(int), __sigaction(int, const struct sigaction *, struct sigaction *);
__sighandler_t __sysv_signal(int, __sighandler_t), bsd_signal(int, __sighandler_t);

#define REAL_NAMES(X)                                                                                                  \
    X(mmap)                                                                                                            \
    X(mmap64)                                                                                                          \
    X(close)                                                                                                           \
    X(close_range)                                                                                                     \
    X(closefrom)                                                                                                       \
    X(dup)                                                                                                             \
    X(dup2)                                                                                                            \
    X(dup3) X(fcntl) X(fcntl64) X(ioctl) X(open) X(open64) X(openat) X(openat64) X(__open_2) X(__open64_2)             \
        X(__openat_2) X(__openat64_2) X(access) X(eaccess) X(faccessat) X(stat) X(stat64) X(lstat) X(lstat64) X(fstat) \
            X(fstat64) X(fstatat) X(fstatat64) X(statx) X(__xstat) X(__xstat64) X(__lxstat) X(__lxstat64)              \
                X(__fxstatat) X(__fxstatat64) X(sigaction) X(pthread_sigmask) X(sigprocmask) X(execve) X(execvpe)      \
                    X(pthread_cancel) X(posix_spawn) X(posix_spawnp) X(fopen) X(fopen64) X(fclose) X(prctl) X(syscall) \
                        X(__fxstat) X(__fxstat64) X(opendir) X(closedir) X(readdir) X(readdir64) X(rewinddir)          \
                            X(seekdir) X(getxattr) X(lgetxattr) X(listxattr) X(llistxattr)

enum real_name {
#define X(name) REAL_##name,
    REAL_NAMES(X)
#undef X
        REAL_COUNT
};
extern void *shim_real[REAL_COUNT];
void *shim_find(enum real_name);

static inline void *shim_function(enum real_name which)
{
    return __builtin_expect(shim_real[which] != NULL, 1) ? shim_real[which] : shim_find(which);
}
#define REAL(name) ((__typeof__(&name))shim_function(REAL_##name))

int shim_kvm_ioctl(int fd, unsigned long request, void *arg); /* cancel.c */
/* Does the path, seen from dirfd, name /dev/kvm? */
bool shim_same_path(const char *path, const char *plain);
bool shim_is_kvm(int dirfd, const char *path);

/* ---- other files of KVM's (files.c) ---- */
enum shim_file { FILE_OTHER, FILE_OURS, FILE_FOLDER, FILE_CHANGED /* the system's, with something added */ };
enum shim_file shim_file(const char *path);
int shim_file_open(const char *path, int flags);
bool shim_cpuid_has_bit(void); /* cpuid.c: the processor itself says VMX or SVM */
bool shim_vendor_is_amd(void);

/* ---- CPUID instructions of the client that we answer for (cpuid.c) ---- */
bool shim_cpuid_active(void);
bool shim_cpuid_answer(ucontext_t *); /* in a SIGILL handler: was it one of them? Then it has been executed. */
void shim_claim_sigill(void);         /* SIGILL is ours from now on, and never blocked (signal.c) */

#endif
