/* SPDX-License-Identifier: MIT
 * iodev.h: the I/O buses of a VM: what answers MMIO and PIO inside of KVM (ioeventfd, coalesced zones, PIC, PIT,
 * IOAPIC). A look-up is a binary search in an immutable array under kvm->srcu. */
#ifndef KVM_IODEV_H
#define KVM_IODEV_H

#include <stdint.h>

struct kvm;
struct kvm_vcpu;
enum kvm_bus { KVM_MMIO_BUS, KVM_PIO_BUS, KVM_NR_BUSES };
struct kvm_io_device;
struct kvm_io_device_ops { /* 0: handled; -EOPNOTSUPP: not mine */
    int (*read)(struct kvm_vcpu *, struct kvm_io_device *, uint64_t gpa, int len, void *val);
    int (*write)(struct kvm_vcpu *, struct kvm_io_device *, uint64_t gpa, int len, const void *val);
    void (*destructor)(struct kvm_io_device *);
};
struct kvm_io_device {
    const struct kvm_io_device_ops *ops;
};
/* 0: a device took it; -EOPNOTSUPP: nobody did */
int kvm_io_bus_write(struct kvm_vcpu *, enum kvm_bus, uint64_t gpa, int len, const void *val);
int kvm_io_bus_read(struct kvm_vcpu *, enum kvm_bus, uint64_t gpa, int len, void *val);
/* 0, -ENOSPC (too many) or -ENOMEM; kvm->lock is not needed. A device may be registered at several ranges. */
int kvm_io_bus_register_dev(struct kvm *, enum kvm_bus, uint64_t gpa, int len, struct kvm_io_device *);
/* Takes all of a device's ranges away; no thread is in the device when it returns. The destructor is then called. */
int kvm_io_bus_unregister_dev(struct kvm *, enum kvm_bus, struct kvm_io_device *);
void kvm_io_bus_destroy(struct kvm *); /* both buses, with destructors: the VM goes */

#endif
