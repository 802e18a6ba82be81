/* SPDX-License-Identifier: MIT
 * kvm_host.h: KVM's own structures: struct kvm (a VM), struct kvm_vcpu, memory slots, requests, the vendor's ops table.
 * Names and roles as in Linux's KVM. Lock order: docs/locking.md. Inside, errors are negative errno. */
#ifndef KVM_HOST_H
#define KVM_HOST_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include "../cpu/cpu.h"
#include "../cpu/emulate.h"
#include "../cpu/vmx.h"
#include "../cpu/vmcs.h"
#include "iodev.h"
#include "hyperv.h"
#include "irq.h"
#include "os.h"
#include "srcu.h"
#include "stat.h"

typedef uint64_t gfn_t;
#define PAGE_SHIFT                      12
#define PAGE_SIZE                       4096ull
#define PAGE_MASK                       (~(PAGE_SIZE - 1))
#define likely(x)                       __builtin_expect(!!(x), 1)
#define unlikely(x)                     __builtin_expect(!!(x), 0)
#define ARRAY_SIZE(a)                   (sizeof(a) / sizeof((a)[0]))
#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define KVM_MAX_VCPUS         288
#define KVM_SOFT_MAX_VCPUS    64
#define KVM_MAX_VCPU_IDS      1024
#define KVM_USER_MEM_SLOTS    32764
#define KVM_ADDRESS_SPACE_NUM 2 /* 1: what a processor in system management mode sees */
#define KVM_MAX_CPUID_ENTRIES 256
#define KVM_VCPU_MMAP_PAGES   3 /* struct kvm_run, PIO data, coalesced ring; the dirty ring follows from page 64 */
#define KVM_PIO_PAGE_OFFSET   1
#define KVM_COALESCED_PAGE    2

/* ---- module parameters (params.c): names as of kvm and kvm_intel ---- */
struct kvm_params {
    bool ept, vpid, nested, unrestricted_guest, hardened;
    char engine[16]; /* "" = the best */
};
extern struct kvm_params kvm_params;
int kvm_params_set(const char *text, const char **bad);

/* ---- memory slots ---- */
struct kvm_memory_slot {
    gfn_t base_gfn;
    uint64_t npages;
    hva_t userspace_addr;
    uint32_t flags; /* KVM_MEM_* */
    uint16_t id, as_id;
    unsigned long *dirty_bitmap; /* atomic bits; NULL when not logged, or logged in rings */
    _Atomic uint8_t populate;    /* enum slot_populate (mmu.c): may pages be made in runs? 0: not asked yet */
};
static inline bool kvm_slot_dirty_track_enabled(const struct kvm_memory_slot *slot)
{
    return slot->flags & KVM_MEM_LOG_DIRTY_PAGES;
}
struct kvm_memslots { /* immutable once published; swapped by pointer, freed when no reader of kvm->srcu is left */
    uint64_t generation;
    unsigned used, room;
    _Atomic unsigned last;          /* index of the slot that was found last: a hint */
    struct kvm_memory_slot *slot[]; /* sorted by base_gfn */
};
struct kvm;
struct kvm_vcpu;
struct kvm_memory_slot *gfn_to_memslot(struct kvm *, unsigned as_id, gfn_t);
struct kvm_memory_slot *id_to_memslot(struct kvm *, unsigned as_id, unsigned id); /* under slots_lock */
int kvm_set_memory_region(struct kvm *, const struct kvm_userspace_memory_region *);
void mark_page_dirty(struct kvm *, unsigned as_id, gfn_t);
/* KVM's own accesses to guest memory (kvmclock, PV EOI ...): -EFAULT where no slot is or the host page is gone */
int kvm_read_guest(struct kvm *, gpa_t, void *data, size_t len);
int kvm_write_guest(struct kvm *, gpa_t, const void *data, size_t len);
/* In the address space that the vCPU is in now */
int kvm_vcpu_read_guest(struct kvm_vcpu *, gpa_t, void *data, size_t len);
int kvm_vcpu_write_guest(struct kvm_vcpu *, gpa_t, const void *data, size_t len);

/* ---- requests to a vCPU (bits), handled at the top of vcpu_enter_guest ---- */
enum kvm_request {
    KVM_REQ_TLB_FLUSH,
    KVM_REQ_EVENT,
    KVM_REQ_NMI,
    KVM_REQ_TRIPLE_FAULT,
    KVM_REQ_CLOCK_UPDATE,
    KVM_REQ_MMU_RELOAD,
    KVM_REQ_UNBLOCK,
    KVM_REQ_STEAL_UPDATE,
    KVM_REQ_SCAN_IOAPIC,
    KVM_REQ_IOAPIC_EOI_EXIT,
    KVM_REQ_SMI,
    KVM_REQ_GLOBAL_CLOCK_UPDATE,
    KVM_REQ_HV_CRASH,
    KVM_REQ_HV_RESET,
    KVM_REQ_HV_EXIT,
    KVM_REQ_HV_STIMER,
    KVM_REQ_VM_DEAD,
    KVM_REQ_MSR_FILTER_CHANGED,
    KVM_REQ_DIRTY_RING_SOFT_FULL,
    KVM_REQ_COUNT
};
void kvm_make_request(int req, struct kvm_vcpu *);  /* no kick */
bool kvm_check_request(int req, struct kvm_vcpu *); /* tests and clears */
bool kvm_request_pending(struct kvm_vcpu *);
bool kvm_make_all_cpus_request(struct kvm *, int req, bool wait);
void kvm_flush_remote_tlbs(struct kvm *);
void kvm_vcpu_kick(struct kvm_vcpu *); /* out of guest mode, or awake when halted; no system call if neither */
void kvm_vcpu_wake_up(struct kvm_vcpu *);

/* ---- queued events (x86.c, as struct kvm_queued_exception/interrupt) ---- */
struct kvm_queued_exception {
    bool pending, injected, has_error_code, has_payload;
    uint8_t vector;
    uint32_t error_code;
    uint64_t payload;
};
struct kvm_queued_interrupt {
    bool injected, soft;
    uint8_t nr;
};

/* dirty_ring.c: indices run on, modulo size they are places */
struct kvm_dirty_ring {
    struct kvm_dirty_gfn *gfns; /* of the client too; NULL: dirty pages are in bitmaps */
    uint32_t size;
    _Atomic uint32_t dirty_index, reset_index;
    pthread_mutex_t lock; /* writers */
};

enum kvm_vcpu_mode { OUTSIDE_GUEST_MODE, IN_GUEST_MODE };

struct kvm_vcpu_arch {
    struct cpu *cpu;        /* the software VT-x processor */
    struct vcpu_vmx *vmx;   /* the vendor module's part (kvm_vmx.h) */
    struct kvm_lapic *apic; /* NULL without in-kernel irqchip */
    uint64_t apic_base;
    uint64_t cr0, cr3, cr4, efer; /* as the guest sees them; kept by kvm_set_cr0 ... and SET_SREGS */
    uint64_t cr8;                 /* TPR without an in-kernel APIC */
    uint64_t cr0_guest_owned_bits, cr4_guest_owned_bits;
    int mp_state;
    bool exception_payload_enabled;
    struct kvm_queued_exception exception;
    struct kvm_queued_interrupt interrupt;
    _Atomic unsigned nmi_queued; /* asked for, from other threads */
    unsigned nmi_pending;
    bool nmi_injected;
    bool smi_pending, triple_fault_pending;
    bool in_smm, smm_inside_nmi; /* system management mode; NMIs were blocked when it was entered */
    uint64_t smi_count;
    struct kvm_cpuid_entry2 *cpuid;
    int cpuid_nent;
    unsigned maxphyaddr;
    uint64_t guest_supported_xcr0;
    /* MSRs that KVM itself keeps (table rows in msr.c) */
    uint64_t ia32_misc_enable, mtrr_def, mtrr_fixed[11], mtrr_var[16], mcg_cap, mcg_status, mcg_ctl, mce_banks[32 * 4];
    uint64_t smbase, power_ctl, microcode, arch_capabilities, feature_control, platform_info, tsc_adjust,
        msr_misc_features;
    uint64_t amd_hwcr, amd_de_cfg, amd_patch;
    uint64_t kvmclock_msr, wall_clock_msr, steal_msr, pv_eoi_msr, poll_control, async_pf_en, async_pf_int, async_pf_ack;
    /* TSC */
    uint64_t tsc_khz, tsc_offset, tsc_deadline;
    uint64_t tsc_multiplier;        /* 48 bits of fraction; 0: the host's frequency */
    bool pvclock_set_guest_stopped; /* KVM_KVMCLOCK_CTRL */
    uint64_t steal_run_delay, steal_checked_ns, steal_entered_ns;
    /* guest debug (KVM_SET_GUEST_DEBUG) */
    uint32_t guest_debug;
    uint64_t db[4], eff_db[4], dr6, dr7, guest_debug_dr7;
    uint64_t singlestep_rip;
    /* MMIO and PIO in progress */
    int (*complete_userspace_io)(struct kvm_vcpu *);
    struct {
        bool active, in, string;
        uint16_t port;
        uint8_t size;
        uint32_t count;
        uint64_t linear_rip;
    } pio;
    struct {
        bool needed, is_write, completed;
        gpa_t gpa;
        unsigned len;
    } mmio;
    gfn_t mmio_gfn; /* << 1 | address space: no slot had it when slots had changed that many times */
    uint64_t mmio_changes;
    bool user_msr_pending, user_msr_read;
    struct kvm_vcpu_hv hv;
    bool pv_cpuid_enforce; /* KVM_CAP_ENFORCE_PV_FEATURE_CPUID */
    bool has_run;          /* KVM_RUN was called: CPUID is fixed */
    bool tpr_access_reporting;
    uint64_t vapic_addr;
    unsigned pending_extint;    /* KVM_INTERRUPT with a split irqchip: vector + 1 */
    uint8_t pending_ioapic_eoi; /* vector, with KVM_REQ_IOAPIC_EOI_EXIT (split irqchip) */
};

struct kvm_vcpu {
    struct kvm *kvm;
    int vcpu_id, vcpu_idx;
    int fd;              /* memfd number in this process, for diagnostics only */
    struct kvm_run *run; /* our mapping of the memfd */
    size_t run_size;
    pthread_mutex_t mutex; /* held over KVM_RUN and other vCPU ioctls */
    _Atomic int mode;      /* enum kvm_vcpu_mode */
    _Atomic uint64_t requests;
    _Atomic uint32_t wake;       /* futex word: halted vCPUs sleep on it (os.h) */
    _Atomic bool blocked;        /* sleeping in kvm_vcpu_halt() */
    _Atomic bool signal_arrived; /* anykvm_signal_arrived() */
    _Atomic bool interrupted;    /* anykvm_interrupt(): from another thread, so it may come before KVM_RUN */
    bool sigset_active;          /* KVM_SET_SIGNAL_MASK (vcpu.c) */
    uint64_t sigset;
    struct ktimer signal_poll;
    bool launched; /* VMRESUME instead of VMLAUNCH */
    struct kvm_dirty_ring dirty_ring;
    struct kvm_vcpu_arch arch;
    uint64_t *stat;     /* enum kvm_vcpu_stat, in the file that stats names */
    uint64_t stat_mark; /* TSC at the last change between guest mode, kernel part and sleep */
    struct kvm_stats *stats;
};

struct kvm_arch {
    struct kvm_pic *vpic;
    struct kvm_ioapic *vioapic;
    struct kvm_pit *vpit;
    _Atomic bool apic_ids_moved; /* some APIC ID is not its vcpu_id */
    _Atomic bool irqchip_kernel, irqchip_split;
    _Atomic int nr_irqs_reserved;
    uint64_t ept_root[KVM_ADDRESS_SPACE_NUM]; /* hva of the PML4 page (mmu.c) */
    pthread_mutex_t mmu_lock;
    uint64_t tss_addr, identity_map_addr, n_max_mmu_pages;
    int bsp_vcpu_id;
    _Atomic uint64_t default_tsc_khz;
    /* master clock (pvclock.c): kvmclock = kvmclock_offset + master_kernel_ns + ticks since master_cycle_now; one pair
     * for all vCPUs. Under tsc_lock. */
    pthread_mutex_t tsc_lock;
    int64_t kvmclock_offset;
    uint64_t master_kernel_ns, master_cycle_now;
    uint64_t last_tsc_nsec, last_tsc_write, last_tsc_khz, cur_tsc_offset;
    size_t mmu_pages, mmu_chunks; /* EPT tables in use, and what holds them */
    void **mmu_chunk;
    struct host_mapping { /* of the client: what mmu.c knows of some, under mmu_lock */
        hva_t from, to;
        uint8_t kind; /* enum slot_populate */
    } mappings[8];
    unsigned next_mapping;
    uint32_t disabled_exits; /* KVM_X86_DISABLE_EXITS_* */
    struct kvm_vm_hv hv;
    _Atomic uint64_t disabled_quirks; /* KVM_CAP_DISABLE_QUIRKS2 */
    _Atomic bool x2apic_format, x2apic_broadcast_quirk_disabled, guest_can_read_msr_platform_info;
    bool exception_payload_enabled, triple_fault_event;
    uint32_t user_space_msr_mask;
    _Atomic(struct kvm_msr_filter_set *) msr_filter;
    uint32_t max_vcpu_ids;
    uint32_t hypercall_exit_enabled; /* bits by hypercall number */
    bool exit_on_emulation_error;
};

struct kvm {
    struct cpu_domain *domain;
    struct srcu srcu;  /* readers of memslots, buses, irq_routing outside of guest mode */
    _Atomic int users; /* descriptors and vCPUs */
    int fd, owner_pid;
    pthread_mutex_t lock; /* vCPU creation, irqchip creation, buses */
    pthread_mutex_t slots_lock;
    _Atomic(struct kvm_memslots *) memslots[KVM_ADDRESS_SPACE_NUM];
    _Atomic uint64_t memslots_changes;                          /* of all address spaces, from 1 on */
    struct kvm_memslots *memslots_spare[KVM_ADDRESS_SPACE_NUM]; /* the array before: room for the next */
    struct kvm_memory_slot **slot_by_id[KVM_ADDRESS_SPACE_NUM]; /* under slots_lock; NULL until there is a slot */
    pthread_mutex_t irq_lock;                                   /* routing, irqfds */
    _Atomic(struct kvm_irq_routing_table *) irq_routing;
    _Atomic(struct kvm_irq_ack_notifier *) irq_ack_notifiers;
    struct kvm_vcpu *vcpus[KVM_MAX_VCPUS];
    _Atomic int online_vcpus;
    int created_vcpus;
    pthread_mutex_t bus_lock; /* writers of buses */
    _Atomic(struct kvm_io_bus *) buses[KVM_NR_BUSES];
    struct kvm_coalesced_mmio_ring *coalesced_ring; /* in vCPU 0's memfd */
    struct kvm_coalesced *coalesced;                /* coalesced_mmio.c */
    struct kvm_eventfds *eventfds;                  /* eventfd.c */
    _Atomic(struct ktimer_thread *) timers;         /* one thread, lazy (ktimer.c) */
    bool manual_dirty_log_protect, dirty_log_initially_set;
    uint32_t dirty_ring_size;
    _Atomic bool vm_bugged;
    struct kvm_arch arch;
    uint64_t *stat; /* enum kvm_vm_stat */
    struct kvm_stats *stats;
};

#define KVM_X86_VALID_QUIRKS                                                                                \
    (KVM_X86_QUIRK_LINT0_REENABLED | KVM_X86_QUIRK_CD_NW_CLEARED | KVM_X86_QUIRK_LAPIC_MMIO_HOLE |          \
     KVM_X86_QUIRK_OUT_7E_INC_RIP | KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT | KVM_X86_QUIRK_FIX_HYPERCALL_INSN | \
     KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS)

static inline bool kvm_check_has_quirk(const struct kvm *kvm, uint64_t quirk)
{
    return !(kvm->arch.disabled_quirks & quirk);
}
static inline struct kvm_vcpu *kvm_get_vcpu(struct kvm *kvm, int i)
{
    return kvm->vcpus[i];
}
/* The time since the last call belongs to `mode` (STAT_guest_cycles, _kernel_cycles, _halt_cycles). */
static inline void kvm_stat_time(struct kvm_vcpu *vcpu, enum kvm_vcpu_stat mode)
{
    const uint64_t now = cpu_rdtsc();

    vcpu->stat[mode] += now - vcpu->stat_mark;
    vcpu->stat_mark = now;
}
static inline unsigned kvm_arch_vcpu_memslots_id(const struct kvm_vcpu *vcpu)
{
    return vcpu->arch.in_smm;
}
struct kvm_vcpu *kvm_get_vcpu_by_id(struct kvm *, int id);
struct kvm_vcpu *kvm_get_running_vcpu(void); /* of this thread, or NULL */
/* kvm_main.c: the calling thread runs the vCPU from now on: its VMCS is current. Around each vCPU ioctl. */
void vcpu_load(struct kvm_vcpu *);
void vcpu_put(struct kvm_vcpu *);
#define kvm_for_each_vcpu(i, v, kvm) \
    for ((i) = 0; (i) < atomic_load(&(kvm)->online_vcpus) && ((v) = (kvm)->vcpus[i]) != NULL; (i)++)

/* ---- run loop (x86.c) ---- */
int kvm_arch_vcpu_ioctl_run(struct kvm_vcpu *); /* 0 or -EINTR ...; run->exit_reason is set */
int vcpu_enter_guest(struct kvm_vcpu *);        /* 1: again, 0: to user space, < 0: errno */
int kvm_vcpu_halt(struct kvm_vcpu *);           /* sleep until kvm_arch_vcpu_runnable() or a signal */
bool kvm_arch_vcpu_runnable(struct kvm_vcpu *);
int kvm_emulate_halt(struct kvm_vcpu *);
int kvm_emulate_cpuid(struct kvm_vcpu *);
int kvm_emulate_hypercall(struct kvm_vcpu *);
int kvm_skip_emulated_instruction(struct kvm_vcpu *);
int kvm_set_cr0(struct kvm_vcpu *, uint64_t); /* 1: #GP is due */
int kvm_set_cr3(struct kvm_vcpu *, uint64_t);
int kvm_set_cr4(struct kvm_vcpu *, uint64_t);
int kvm_set_cr8(struct kvm_vcpu *, uint64_t);
uint64_t kvm_get_cr8(struct kvm_vcpu *);
int kvm_set_xcr(struct kvm_vcpu *, uint32_t index, uint64_t);
void kvm_queue_exception(struct kvm_vcpu *, unsigned nr);
void kvm_queue_exception_e(struct kvm_vcpu *, unsigned nr, uint32_t error);
void kvm_queue_exception_p(struct kvm_vcpu *, unsigned nr, uint64_t payload);
void kvm_inject_gp(struct kvm_vcpu *, uint32_t error);
void kvm_inject_nmi(struct kvm_vcpu *);
void kvm_queue_interrupt(struct kvm_vcpu *, uint8_t vector, bool soft);
void kvm_vcpu_reset(struct kvm_vcpu *, bool init_event);
uint64_t kvm_rip_read(struct kvm_vcpu *);
void kvm_rip_write(struct kvm_vcpu *, uint64_t);
uint64_t kvm_get_rflags(struct kvm_vcpu *);
void kvm_set_rflags(struct kvm_vcpu *, uint64_t);
uint64_t kvm_register_read(struct kvm_vcpu *, unsigned reg); /* RSP comes from the VMCS */
void kvm_register_write(struct kvm_vcpu *, unsigned reg, uint64_t);
/* PIO and MMIO: 1 handled in the kernel part, 0 to user space */
int kvm_fast_pio(struct kvm_vcpu *, int size, uint16_t port, bool in);
int x86_emulate_instruction(struct kvm_vcpu *, gpa_t mmio_gpa);
/* msr.c: 0, 1 = #GP (guest) / not taken (ioctl) */
int kvm_get_msr(struct kvm_vcpu *, uint32_t index, uint64_t *data, bool host_initiated);
int kvm_set_msr(struct kvm_vcpu *, uint32_t index, uint64_t data, bool host_initiated);
void kvm_msr_vcpu_init(struct kvm_vcpu *);
bool kvm_msr_allowed(struct kvm *, uint32_t index, bool write); /* KVM_X86_SET_MSR_FILTER */
/* cpuid.c */
bool kvm_guest_vendor_amd(struct kvm_vcpu *);
bool kvm_cpuid(struct kvm_vcpu *, uint32_t *eax, uint32_t *ebx, uint32_t *ecx, uint32_t *edx);
struct kvm_cpuid_entry2 *kvm_find_cpuid_entry(struct kvm_vcpu *, uint32_t function, uint32_t index);
int kvm_vcpu_ioctl_set_cpuid2(struct kvm_vcpu *, const struct kvm_cpuid_entry2 *, int nent);
void kvm_update_cpuid_runtime(
    struct kvm_vcpu *); /* OSXSAVE, APIC bit, XCR0's size after CR4, APIC base, XCR0 changes */
int kvm_dev_ioctl_get_cpuid(struct kvm_cpuid_entry2 *, int *nent, bool emulated);
/* Debug registers: arch.db, dr6, dr7 changed */
void kvm_update_dr0123(struct kvm_vcpu *);
void kvm_update_dr7(struct kvm_vcpu *);
int kvm_set_dr(struct kvm_vcpu *, int dr, uint64_t); /* 1: #GP is due */
uint64_t kvm_get_dr(struct kvm_vcpu *, int dr);
uint64_t kvm_read_cr0(struct kvm_vcpu *); /* with the guest-owned bits as they are now */
uint64_t kvm_read_cr4(struct kvm_vcpu *);
uint64_t kvm_read_cr3(struct kvm_vcpu *);
uint64_t kvm_valid_cr4_bits(struct kvm_vcpu *); /* what the guest's CPUID allows */
bool kvm_is_valid_cr4(struct kvm_vcpu *, uint64_t);
/* PAE paging: the four PDPTEs that cr3 points at, into the VMCS. 0: not readable or reserved bits set. */
bool load_pdptrs(struct kvm_vcpu *, uint64_t cr3);
void kvm_queue_exception_e_p(struct kvm_vcpu *, unsigned nr, uint32_t error, uint64_t payload);
void kvm_requeue_exception(struct kvm_vcpu *, unsigned nr, bool has_error, uint32_t error);
void kvm_deliver_exception_payload(struct kvm_vcpu *, struct kvm_queued_exception *);
void kvm_vcpu_emulation_cancel(struct kvm_vcpu *); /* SET_SREGS, INIT, reset: I/O in progress is void */
/* kvm_get_msr and kvm_set_msr may also answer these, which KVM_CAP_X86_USER_SPACE_MSR tells apart */
#define KVM_MSR_RET_INVALID  2 /* no such MSR */
#define KVM_MSR_RET_FILTERED 3 /* KVM_X86_SET_MSR_FILTER denies it */
/* TSC (pvclock.c) */
uint64_t kvm_scale_tsc(struct kvm_vcpu *, uint64_t host_tsc);
uint64_t kvm_read_l1_tsc(struct kvm_vcpu *, uint64_t host_tsc);
void kvm_synchronize_tsc(struct kvm_vcpu *,
                         uint64_t guest_tsc); /* IA32_TSC by KVM_SET_MSRS: vCPUs written together agree */
void kvm_vcpu_write_tsc_offset(struct kvm_vcpu *, uint64_t offset);
int kvm_set_tsc_khz(struct kvm_vcpu *, uint64_t khz); /* KVM_SET_TSC_KHZ: 0 or -EINVAL */
void kvm_get_clock(struct kvm *, struct kvm_clock_data *);
int kvm_set_clock(struct kvm *, const struct kvm_clock_data *);
int kvm_set_guest_paused(struct kvm_vcpu *); /* KVM_KVMCLOCK_CTRL: -EINVAL without kvmclock */
/* hyperv.c, hyperv_call.c, hyperv_synic.c */
int kvm_get_hv_cpuid(struct kvm_cpuid_entry2 *, int *nent); /* 0, or -E2BIG */
void kvm_hv_cpuid_changed(struct kvm_vcpu *);
void kvm_hv_clock_changed(struct kvm *);                                          /* kvmclock was set */
int kvm_hv_get_msr(struct kvm_vcpu *, uint32_t index, uint64_t *data, bool host); /* 1: #GP */
int kvm_hv_set_msr(struct kvm_vcpu *, uint32_t index, uint64_t data, bool host);
int kvm_hv_requests(struct kvm_vcpu *); /* KVM_REQ_HV_*: 1: go on; 0: to user space */
bool kvm_hv_hypercall_enabled(struct kvm_vcpu *);
int kvm_hv_hypercall(struct kvm_vcpu *);
void kvm_hv_interrupt_taken(struct kvm_vcpu *, int vector);
int kvm_hv_activate_synic(struct kvm_vcpu *, bool dont_zero_pages);
void kvm_hv_vcpu_free(struct kvm_vcpu *);
int kvm_vm_ioctl_hv_eventfd(struct kvm *, const struct kvm_hyperv_eventfd *);
void kvm_hv_vm_free(struct kvm *);
/* smm.c */
void enter_smm(struct kvm_vcpu *);
int kvm_emulate_rsm(struct kvm_vcpu *);                   /* 1: go on */
void kvm_smm_changed(struct kvm_vcpu *, bool in_smm);     /* the mode alone: address space, latched INIT */
int kvm_set_sregs(struct kvm_vcpu *, struct kvm_sregs *); /* vcpu_state.c: KVM_SET_SREGS but for the interrupt */
void kvm_get_sregs(struct kvm_vcpu *, struct kvm_sregs *);
/* pvclock.c */
int kvm_guest_time_update(struct kvm_vcpu *);
uint64_t get_kvmclock_ns(struct kvm *);
void kvm_write_wall_clock(struct kvm *, gpa_t);
void record_steal_time(struct kvm_vcpu *);
/* mmu.c */
int kvm_mmu_init_vm(struct kvm *);
void kvm_mmu_uninit_vm(struct kvm *);
int kvm_tdp_page_fault(struct kvm_vcpu *, gpa_t, uint64_t ept_qualification); /* 1: mapped; 0: MMIO; <0 errno */
bool kvm_mmu_zap_slot(struct kvm *, struct kvm_memory_slot *); /* drop EPT entries, ask for flushes: true: then wait */
void kvm_mmu_zap_wait(struct kvm *, struct kvm_memory_slot *);
void kvm_mmu_write_protect_slot(struct kvm *, struct kvm_memory_slot *, const unsigned long *mask);
/* Up to 64 pages from offset on; true: some was writable, and cpu_drop_host_range() is left to the caller */
bool kvm_mmu_protect_window(struct kvm *, struct kvm_memory_slot *, uint64_t offset, unsigned long mask);
/* dirty_ring.c */
void kvm_dirty_ring_push(struct kvm *, const struct kvm_memory_slot *, uint64_t offset);
bool kvm_dirty_ring_check_request(struct kvm_vcpu *);
/* Guest-virtual to guest-physical by the guest's tables (KVM_TRANSLATE, hypercalls): -1 if it faults */
int kvm_mmu_gva_to_gpa(struct kvm_vcpu *, gva_t, unsigned access, gpa_t *);

/* ---- the vendor module's operations (kvm-x86-ops.h lists them; vmx.c fills them) ---- */
struct kvm_x86_ops {
    const char *name; /* "kvm_intel" */
#define KVM_X86_OP(ret, name, ...) ret (*name)(__VA_ARGS__);
#include "kvm-x86-ops.h"
#undef KVM_X86_OP
};
extern const struct kvm_x86_ops vmx_x86_ops;
extern const struct kvm_x86_ops *kvm_x86_ops; /* set by kvm_arch_init */

/* ---- start of KVM (kvm_main.c, x86.c, vmx.c) ---- */
int kvm_init(void);
void kvm_exit(void);
int kvm_arch_init(void);
int kvm_arch_hardware_setup(void);
int kvm_arch_check_processor_compat(void);
int kvm_irqfd_init(void);
int kvm_async_pf_init(void);
struct kvm *kvm_create_vm(unsigned long type, int *err);
void kvm_sandbox_ahead(struct kvm *);
void kvm_mmu_ask_slots(struct kvm *); /* mmu.c: what needs /proc is found out now */
void kvm_get_kvm(struct kvm *);
void kvm_put_kvm(struct kvm *);
int kvm_arch_init_vm(struct kvm *, unsigned long type);
void kvm_arch_destroy_vm(struct kvm *);
int kvm_arch_vcpu_create(struct kvm_vcpu *);
void kvm_arch_vcpu_destroy(struct kvm_vcpu *);

/* ---- trace and statistics (trace.c, stat.c) ---- */
enum kvm_trace_class {
    TRACE_INIT = 1,
    TRACE_IOCTL = 2,
    TRACE_EXIT = 4,
    TRACE_INJECT = 8,
    TRACE_VMCS = 16,
    TRACE_MMU = 32,
    TRACE_IRQ = 64
};
extern unsigned kvm_trace_mask; /* ANYKVM_TRACE=init,ioctl,exit,inject,vmcs,mmu,irq; to stderr or ANYKVM_TRACE_FILE */
void kvm_trace_write(const char *format, ...) __attribute__((format(printf, 1, 2)));
void kvm_trace_call(const char *function); /* call chains: indented by depth */
void kvm_trace_return(void);
#define kvm_trace(class, ...)                   \
    do {                                        \
        if (unlikely(kvm_trace_mask & (class))) \
            kvm_trace_write(__VA_ARGS__);       \
    } while (0)

#endif
