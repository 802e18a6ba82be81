/* SPDX-License-Identifier: MIT
 * ioctl.h: descriptors, and the tables that map an ioctl's number to its handler. Private to the API's files (fd.c,
 * ioctl.c, ioctl_system.c, ioctl_vm.c, ioctl_vcpu.c). */
#ifndef KVM_IOCTL_H
#define KVM_IOCTL_H

#include <linux/kvm_para.h>
#include "kvm_host.h"
#include "params.h"

/* ---- descriptors (fd.c) ---- */
enum kvm_file_type { FILE_NONE, FILE_SYSTEM, FILE_VM, FILE_VCPU, FILE_TYPES };
struct kvm_file {
    _Atomic int refs; /* calls under way, and one for being open; the memory itself is never given back to malloc */
    enum kvm_file_type type;
    int numbers;       /* descriptor numbers of this process that name it (under the table's lock) */
    int mm_owner;      /* address space that made it, see kvm_mm_id() */
    uint64_t dev, ino; /* the memfd's identity: survives dup, fcntl, SCM_RIGHTS */
    struct kvm *kvm;   /* FILE_VM, FILE_VCPU */
    struct kvm_vcpu *vcpu;
    struct kvm_file *next; /* identity chain, or free list */
};
/* Put a memfd in the table. Takes the reference on the VM that the caller holds. Returns fd or a negative errno. */
int kvm_file_install(int fd, enum kvm_file_type type, struct kvm *kvm, struct kvm_vcpu *vcpu);
/* A number that differs between address spaces: fork gives a new one, vfork and threads do not. Linux compares mm. */
int kvm_mm_id(void);

/* ---- ioctl rows (ioctl.c) ---- */
enum ioctl_copy { NONE, IN, OUT, INOUT };
struct ioctl_tail {    /* an array behind the structure */
    uint16_t count_at; /* offset of its 32-bit element count */
    uint16_t element;  /* bytes */
    uint32_t max;
    int too_many; /* errno of a count above max; 0: clamp it */
    enum ioctl_copy copy;
};
struct ioctl_call {
    struct kvm *kvm;
    struct kvm_vcpu *vcpu;
    unsigned long arg;   /* as the client gave it */
    void *data;          /* the structure, copied in */
    void *tail;          /* its array, room for tail_max elements */
    uint32_t tail_count; /* elements that came in; a handler that returns the array sets how many go out */
    bool always_out;     /* the structure (not the array) goes back although the handler failed (E2BIG protocols) */
};
struct ioctl_row {
    uint32_t number;
    enum ioctl_copy copy;
    uint16_t size; /* bytes of the structure */
    struct ioctl_tail tail;
    long (*handler)(struct ioctl_call *);
    int capability; /* KVM_CAP_* that says it is there; -1: always */
    const char *name;
};
#define CAP_ALWAYS (-1)
#define ROW(number, copy, type, handler, cap)                  \
    {                                                          \
        number, copy, sizeof(type), {0}, handler, cap, #number \
    }
#define ROW0(number, handler, cap)                  \
    {                                               \
        number, NONE, 0, {0}, handler, cap, #number \
    }
#define ROW_TAIL(number, copy, type, tail, handler, cap)        \
    {                                                           \
        number, copy, sizeof(type), tail, handler, cap, #number \
    }
#define TAIL(type, count, element_type, max, errno_, dir)                    \
    {                                                                        \
        offsetof(struct type, count), sizeof(element_type), max, errno_, dir \
    }

#define KVM_MAX_IO_MSRS 256
/* Machine-check banks and IA32_MCG_CAP: MCG_CTL_P, MCG_SER_P; no LMCE */
#define KVM_MAX_MCE_BANKS     32
#define MCG_CTL_P             (1ull << 8)
#define MCG_SER_P             (1ull << 24)
#define KVM_MCE_CAP_SUPPORTED (MCG_CTL_P | MCG_SER_P)
#define KVM_MAX_GUEST_TSC_KHZ 0x7fffffffu

extern const struct ioctl_row system_ioctls[], vm_ioctls[], vcpu_ioctls[];
extern const unsigned system_ioctls_count, vm_ioctls_count, vcpu_ioctls_count;
const struct ioctl_row *ioctl_find(enum kvm_file_type, unsigned long request);
/* Runs one ioctl on an object: >= 0 or a negative errno. */
long kvm_ioctl(struct kvm_file *, unsigned long request, unsigned long arg);

/* A reason in words for the trace; returns err. Used as: return because(-EINVAL, "slot %u: ...", id). */
#define because(err, ...) (unlikely(kvm_trace_mask & TRACE_IOCTL) ? (kvm_reason(__VA_ARGS__), (err)) : (err))
void kvm_reason(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* MONITOR and MWAIT are no-ops, and there are no C-state MSRs to let through. */
#define KVM_X86_DISABLE_EXITS_OFFERED (KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_PAUSE)
#define KVM_EXIT_HYPERCALL_VALID_MASK (1u << KVM_HC_MAP_GPA_RANGE)

/* ioctl_system.c: KVM_GET_SUPPORTED_HV_CPUID of both descriptors */
long ioctl_get_hv_cpuid(struct ioctl_call *);

/* ---- capabilities (capabilities.c) ---- */
long kvm_check_extension(struct kvm *, long cap); /* kvm NULL: on the system descriptor */
long kvm_vm_enable_cap(struct ioctl_call *);
long kvm_vcpu_enable_cap(struct ioctl_call *);

/* ---- kvm_main.c ---- */
int kvm_dev_ioctl_create_vm(unsigned long type); /* the descriptor, or a negative errno */
int kvm_vm_ioctl_create_vcpu(struct kvm *, uint32_t id);
void kvm_vcpu_release(struct kvm_vcpu *);

/* ---- kvm_memslots.c ---- */
int kvm_memslots_init(struct kvm *);
void kvm_memslots_free(struct kvm *);
int kvm_vm_ioctl_get_dirty_log(struct kvm *, const struct kvm_dirty_log *);
int kvm_vm_ioctl_clear_dirty_log(struct kvm *, const struct kvm_clear_dirty_log *);

/* ---- dirty_ring.c ---- */
long kvm_dirty_ring_max_size(struct kvm *);
int kvm_vm_ioctl_enable_dirty_log_ring(struct kvm *, uint64_t size);
int kvm_vm_ioctl_reset_dirty_pages(struct kvm *);
int kvm_dirty_ring_alloc(struct kvm_vcpu *, int fd);
void kvm_dirty_ring_free(struct kvm_vcpu *);
bool kvm_dirty_ring_soft_full(struct kvm_vcpu *);

/* ---- msr.c ---- */
unsigned kvm_msr_index_list(const uint32_t **list);
unsigned kvm_msr_feature_index_list(const uint32_t **list);
int kvm_get_msr_feature(uint32_t index, uint64_t *data);
int kvm_set_msr_filter(struct kvm *, const struct kvm_msr_filter *);
void kvm_msr_filter_free(struct kvm *);

/* ---- vcpu_state.c: registers of a vCPU in the API's form ---- */
long vcpu_get_regs(struct ioctl_call *), vcpu_set_regs(struct ioctl_call *);
long vcpu_get_sregs(struct ioctl_call *), vcpu_set_sregs(struct ioctl_call *);
long vcpu_get_sregs2(struct ioctl_call *), vcpu_set_sregs2(struct ioctl_call *);
long vcpu_get_fpu(struct ioctl_call *), vcpu_set_fpu(struct ioctl_call *);
long vcpu_get_xsave(struct ioctl_call *), vcpu_set_xsave(struct ioctl_call *), vcpu_get_xsave2(struct ioctl_call *);
long vcpu_get_xcrs(struct ioctl_call *), vcpu_set_xcrs(struct ioctl_call *);
long vcpu_get_events(struct ioctl_call *), vcpu_set_events(struct ioctl_call *);
long vcpu_get_debugregs(struct ioctl_call *), vcpu_set_debugregs(struct ioctl_call *);
long vcpu_set_guest_debug(struct ioctl_call *);

#endif
