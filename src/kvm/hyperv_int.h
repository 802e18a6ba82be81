/* SPDX-License-Identifier: MIT
 * hyperv_int.h: shared by hyperv.c, hyperv_call.c and hyperv_synic.c. Bits are those of the TLFS, "Hypervisor
 * Discovery".
 */
#ifndef KVM_HYPERV_INT_H
#define KVM_HYPERV_INT_H

#include "x86.h"

/* leaf 0x40000003 */
#define HV_EAX_ALL    0x2affu /* runtime, counter, SynIC, timers, APIC, hypercalls, index, reset, TSC, 11, 13 */
#define HV_EBX_POST   (1u << 4)
#define HV_EBX_SIGNAL (1u << 5)
#define HV_EBX_DEBUG  (1u << 11)
#define HV_EBX_ALL    (HV_EBX_POST | HV_EBX_SIGNAL | HV_EBX_DEBUG)
#define HV_EDX_XMM    (1u << 4)
#define HV_EDX_DIRECT (1u << 19)
#define HV_EDX_ALL    (HV_EDX_XMM | HV_EDX_DIRECT | 1u << 8 | 1u << 10 | 1u << 11)
/* leaf 0x40000004 */
#define HV_TLB_FLUSH          (1u << 2)
#define HV_CLUSTER_IPI        (1u << 10)
#define HV_EX_MASKS           (1u << 11)
#define HV_ENLIGHTENMENTS_ALL (HV_TLB_FLUSH | 1u << 3 | 1u << 5 | HV_CLUSTER_IPI | HV_EX_MASKS)
/* leaf 0x40000082 */
#define HV_SYNDBG_ALLOWED (1u << 1)

#define HV_MSR_SYNDBG_CONTROL 0x400000f1u
#define HV_MSR_SYNDBG_OPTIONS 0x400000ffu

uint64_t kvm_hv_reference_time(struct kvm *);
/* hyperv_eventfd.c: false: no eventfd has this connection */
bool kvm_hv_signal_eventfd(struct kvm *, uint32_t conn_id);
uint32_t kvm_hv_vp_index(const struct kvm_vcpu *);
/* hyperv_synic.c */
int kvm_hv_synic_get(struct kvm_vcpu *, uint32_t index, uint64_t *data, bool host);
int kvm_hv_synic_set(struct kvm_vcpu *, uint32_t index, uint64_t data, bool host);
int kvm_hv_apic_read(struct kvm_vcpu *, uint32_t index, uint64_t *data);
int kvm_hv_apic_write(struct kvm_vcpu *, uint32_t index, uint64_t data);
void kvm_hv_process_stimers(struct kvm_vcpu *);

#endif
