/* SPDX-License-Identifier: MIT
 * hyperv.h: Hyper-V's interface for guests (hyperv.c): what a VM and a vCPU have of it. */
#ifndef KVM_HYPERV_H
#define KVM_HYPERV_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include "irq.h"

#define HV_SINTS   16
#define HV_STIMERS 4

struct kvm_vm_hv {
    uint64_t guest_os_id, hypercall, tsc_page, crash_param[5], crash_ctl;
    uint64_t reenlightenment_control, tsc_emulation_control, tsc_emulation_status;
    uint64_t syndbg[5], syndbg_options; /* control, status, send, receive, pending */
    uint32_t tsc_sequence;
    _Atomic(struct hv_eventfds *) eventfds; /* hyperv_eventfd.c: immutable, readers in kvm->srcu */
    uint64_t tsc_scale, tsc_offset;         /* what the page says: 0, 0 while it is not in use */
};

struct hv_stimer {
    struct ktimer timer;
    struct kvm_vcpu *vcpu;
    uint64_t config, count, expires; /* in units of 100 ns of the reference counter */
    unsigned index;
    bool msg_pending; /* the message slot was full */
};

struct kvm_vcpu_hv {
    bool enabled, enforce; /* the guest's CPUID says Hv#1; KVM_CAP_HYPERV_ENFORCE_CPUID */
    uint32_t features_eax, features_ebx, features_edx, enlightenments_eax, enlightenments_ebx, syndbg_eax;
    uint32_t vp_index;
    bool vp_index_set;
    uint64_t runtime_offset, vp_assist;
    bool synic_active, dont_zero_pages;
    uint64_t scontrol, siefp, simp, sint[HV_SINTS];
    uint64_t auto_eoi[4]; /* a bit a vector */
    struct hv_stimer stimer[HV_STIMERS];
    _Atomic uint32_t stimers_due;
};

#endif
