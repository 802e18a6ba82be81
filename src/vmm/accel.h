/* SPDX-License-Identifier: MIT
 * accel.h: the accelerator: where the monitor finds KVM. It speaks nothing but the KVM API, through struct kvm_api:
 * libc's functions (a real /dev/kvm) or anykvm's (the software VT-x processor). */
#ifndef VMM_ACCEL_H
#define VMM_ACCEL_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct kvm_api {
    const char *name; /* "kvm" or "soft" */
    int (*open)(const char *path, int flags);
    int (*ioctl)(int fd, unsigned long request, ...);
    void *(*mmap)(void *addr, size_t len, int prot, int flags, int fd, off_t off);
    int (*close)(int fd);
    void (*signal_arrived)(void); /* NULL where the operating system does it itself */
};
extern const struct kvm_api kvm_api_kernel, kvm_api_soft;

enum accel_choice { ACCEL_AUTO, ACCEL_KVM, ACCEL_SOFT };

struct accel {
    const struct kvm_api *api;
    int kvm_fd, vm_fd;
    size_t run_size; /* KVM_GET_VCPU_MMAP_SIZE, bytes */
    bool verbose;
    bool immediate_exit;
};

/* Choose an accelerator, open /dev/kvm and create a VM. 0; or -1 after a message on stderr. */
int configure_accelerator(struct accel *, enum accel_choice);
int kvm_check_extension(struct accel *, int cap);
void accel_close(struct accel *);
/* Does this /dev/kvm run 64-bit guests with paging? Runs a few instructions for at most 200 ms. NULL: yes; else why
 * not. */
const char *accel_probe(const struct kvm_api *, int kvm_fd);

#endif
