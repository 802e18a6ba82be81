/* SPDX-License-Identifier: MIT
 * stat.h: counters, in memory that a KVM_GET_STATS_FD and `anykvm stat -p PID` read (the binary format of api.rst). The
 * vCPU's thread alone writes its own. */
#ifndef KVM_STAT_H
#define KVM_STAT_H

#include <stdbool.h>
#include <stdint.h>

struct kvm;
struct kvm_vcpu;

enum kvm_vcpu_stat {
#define VCPU_STAT(name, unit) STAT_##name,
#include "stat.def"
#undef VCPU_STAT
    STAT_EXIT_REASONS,                /* one for each basic exit reason */
    STAT_CPU = STAT_EXIT_REASONS + 72 /* the processor's counters */
};
enum kvm_vm_stat {
    VM_STAT_vcpus,
    VM_STAT_memslot_changes,
    VM_STAT_dirty_log_reads,
    VM_STAT_irqfd_signals,     /* taken off an irqfd's descriptor */
    VM_STAT_ioeventfd_signals, /* writes that an ioeventfd answered */
    VM_STAT_COUNT
};

struct kvm_stats; /* one stats file */

void kvm_stat_vm_new(struct kvm *);
void kvm_stat_vm_gone(struct kvm *); /* ANYKVM_STAT=1: printed now */
void kvm_stat_vcpu_new(struct kvm_vcpu *);
void kvm_stat_vcpu_gone(struct kvm_vcpu *);
int kvm_vm_stats_fd(struct kvm *); /* KVM_GET_STATS_FD: a new descriptor or a negative errno */
int kvm_vcpu_stats_fd(struct kvm_vcpu *);
void kvm_stat_sync(struct kvm_vcpu *); /* the processor's counters into the file */
/* One access to a port or to MMIO: by address, direction and who answered. */
void kvm_stat_io(struct kvm_vcpu *, bool mmio, uint64_t gpa, bool write, bool user);

#endif
