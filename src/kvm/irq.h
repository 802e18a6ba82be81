/* SPDX-License-Identifier: MIT
 * irq.h: KVM's interrupt controllers, timers and routing. No header of src/cpu comes in here; the models are tested
 * alone (tests/unit). Locks: irq_lock > pic/ioapic/pit locks > apic; any thread may raise an interrupt. */
#ifndef KVM_IRQ_H
#define KVM_IRQ_H

#include <linux/kvm.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kvm;
struct kvm_vcpu;
struct kvm_pic;
struct kvm_ioapic;
struct kvm_lapic;
struct kvm_pit;

#define KVM_IRQCHIP_NUM_PINS             24
#define KVM_MAX_IRQ_ROUTES               4096
#define KVM_USERSPACE_IRQ_SOURCE_ID      0 /* who drives a line; a pin's level is the OR over its sources */
#define KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID 1
#define KVM_PIT_IRQ_SOURCE_ID            2
#define APIC_DEFAULT_PHYS_BASE           0xfee00000ull
#define MSR_IA32_APICBASE_BSP            (1ull << 8)
#define MSR_IA32_APICBASE_X2APIC         (1ull << 10)
#define MSR_IA32_APICBASE_ENABLE         (1ull << 11)

/* ---- timers (ktimer.c): one thread a VM, min-heap, absolute CLOCK_MONOTONIC ns, lazily started ---- */
struct ktimer_thread;
struct ktimer {
    uint64_t deadline_ns;
    void (*fn)(struct ktimer *); /* on the timer thread, no lock held; may call ktimer_start on itself */
    void *opaque;
    struct ktimer_thread *thread;
    int heap_index; /* -1: not armed */
};
struct ktimer_thread *ktimer_thread_create(void);
int ktimer_thread_start(struct ktimer_thread *); /* now, not with the first timer */
void ktimer_thread_destroy(struct ktimer_thread *);
void ktimer_init(struct ktimer *, struct ktimer_thread *, void (*fn)(struct ktimer *), void *opaque);
int ktimer_start(struct ktimer *, uint64_t deadline_ns);
bool ktimer_active(struct ktimer *);
void ktimer_cancel_sync(struct ktimer *); /* not running anywhere when it returns */

/* ---- LAPIC (lapic.c) ---- */
struct kvm_lapic_irq {
    uint32_t vector, delivery_mode /* 0 fixed 1 lowest 2 smi 4 nmi 5 init 6 sipi 7 extint, << 8 as in the ICR */;
    uint32_t dest_mode /* 0 physical, 1 << 11 logical */, level, trig_mode, shorthand, dest_id;
    bool msi_redir_hint;
};
int kvm_create_lapic(struct kvm_vcpu *);
void kvm_free_lapic(struct kvm_vcpu *);
void kvm_lapic_reset(struct kvm_vcpu *, bool init_event);
int kvm_lapic_set_base(struct kvm_vcpu *, uint64_t base); /* IA32_APIC_BASE; 1: #GP */
bool kvm_apic_hw_enabled(const struct kvm_lapic *);
bool apic_x2apic_mode(const struct kvm_lapic *);
/* register access by MMIO offset (0x000-0x3f0) and by x2APIC MSR; 0 or 1 (bad register: #GP / not handled) */
int kvm_lapic_mmio_read(struct kvm_vcpu *, uint64_t gpa, int len, void *data);
int kvm_lapic_mmio_write(struct kvm_vcpu *, uint64_t gpa, int len, const void *data);
int kvm_x2apic_msr_read(struct kvm_vcpu *, uint32_t msr, uint64_t *data);
int kvm_x2apic_msr_write(struct kvm_vcpu *, uint32_t msr, uint64_t data);
void kvm_lapic_set_tpr(struct kvm_vcpu *, unsigned long cr8);
uint64_t kvm_lapic_get_cr8(struct kvm_vcpu *);
uint64_t kvm_get_lapic_tscdeadline_msr(struct kvm_vcpu *);
void kvm_set_lapic_tscdeadline_msr(struct kvm_vcpu *, uint64_t guest_tsc);
int kvm_apic_has_interrupt(struct kvm_vcpu *); /* highest vector above PPR, or -1 */
int kvm_get_apic_interrupt(struct kvm_vcpu *); /* takes it: IRR -> ISR */
bool kvm_apic_accept_pic_intr(struct kvm_vcpu *);
bool kvm_apic_pending_init_sipi(struct kvm_vcpu *);
int kvm_apic_accept_events(struct kvm_vcpu *); /* INIT and SIPI: changes mp_state, resets the vCPU; 0 or errno */
int kvm_apic_set_irq(struct kvm_vcpu *, const struct kvm_lapic_irq *, void *dest_map); /* 0 coalesced, 1 delivered */
int kvm_apic_get_state(struct kvm_vcpu *, struct kvm_lapic_state *);
int kvm_apic_set_state(struct kvm_vcpu *, const struct kvm_lapic_state *);
struct kvm_vcpu *kvm_apic_with_id(struct kvm *, uint32_t apic_id); /* NULL: none */
bool kvm_apic_match_dest(struct kvm_vcpu *, struct kvm_lapic *source, int shorthand, uint32_t dest, int dest_mode);
int kvm_lapic_set_pv_eoi(struct kvm_vcpu *, uint64_t msr_value); /* MSR_KVM_PV_EOI_EN */
void kvm_lapic_sync_from_vapic(struct kvm_vcpu *);               /* after an exit: PV EOI cleared by the guest? */
void kvm_lapic_sync_to_vapic(struct kvm_vcpu *);                 /* before an entry */
int kvm_set_apic_base(struct kvm_vcpu *, uint64_t base, bool host_initiated); /* as Linux's: KVM_SET_SREGS, _SET_MSRS */
void kvm_apic_nmi_wd_deliver(struct kvm_vcpu *);                              /* PIT ticks to an LVT0 in NMI mode */
void kvm_lapic_set_vapic_addr(struct kvm_vcpu *, uint64_t gpa);               /* KVM_SET_VAPIC_ADDR; 0: off */
void kvm_lapic_tsc_changed(struct kvm_vcpu *); /* offset or frequency: a TSC deadline is armed anew */
/* The timer interrupt is put into IRR by the timer thread itself: there is no pending count for KVM_RUN to look at. */
bool kvm_apic_init_pending(struct kvm_vcpu *); /* KVM_GET_VCPU_EVENTS: smi.latched_init */
uint8_t kvm_apic_sipi_vector(struct kvm_vcpu *);
void kvm_apic_set_events(struct kvm_vcpu *, bool init, bool sipi,
                         uint8_t sipi_vector); /* SET_MP_STATE, SET_VCPU_EVENTS */
bool kvm_lapic_enabled(struct kvm_vcpu *);     /* by hardware and software */
/* What lapic.c needs of the vCPU (x86.c provides; unit tests bring their own): */
struct kvm_lapic *vcpu_apic(struct kvm_vcpu *);
uint64_t kvm_read_l1_tsc_now(struct kvm_vcpu *); /* guest TSC now */
uint64_t vcpu_tsc_khz(struct kvm_vcpu *);
uint64_t *vcpu_apic_base(struct kvm_vcpu *);
bool vcpu_cpuid_x2apic(struct kvm_vcpu *);
bool vcpu_cpuid_tsc_deadline(struct kvm_vcpu *); /* irq.c */
bool vcpu_is_bsp(struct kvm_vcpu *);
int vcpu_id_of(struct kvm_vcpu *);
int vcpu_index_of(struct kvm_vcpu *); /* irq.c */
struct kvm *vcpu_kvm(struct kvm_vcpu *);
/* ... and what irq.c provides over kvm_host.h: */
int *vcpu_mp_state(struct kvm_vcpu *);
void vcpu_set_apic(struct kvm_vcpu *, struct kvm_lapic *);
unsigned vcpu_maxphyaddr(struct kvm_vcpu *);
void vcpu_event(struct kvm_vcpu *);      /* any thread: KVM_REQ_EVENT and kvm_vcpu_kick() */
void vcpu_unblock(struct kvm_vcpu *);    /* any thread: INIT, SIPI: awake and out of guest mode */
void vcpu_inject_nmi(struct kvm_vcpu *); /* any thread */
void vcpu_inject_smi(struct kvm_vcpu *);
bool vcpu_in_smm(const struct kvm_vcpu *);
void vcpu_init_reset(struct kvm_vcpu *);                   /* kvm_vcpu_reset(vcpu, true) */
void vcpu_deliver_sipi(struct kvm_vcpu *, uint8_t vector); /* CS = vector << 8, RIP = 0 */
void vcpu_ioapic_eoi_exit(struct kvm_vcpu *, int vector);  /* split irqchip: KVM_EXIT_IOAPIC_EOI is due */
int kvm_vcpus_online(struct kvm *);
struct kvm_vcpu *kvm_vcpu_at(struct kvm *, int i);
struct kvm_vcpu *kvm_vcpu_with_id(struct kvm *, uint32_t id); /* fast; NULL: none */
struct kvm_chips {                                            /* what a VM has */
    struct kvm_pic **pic;
    struct kvm_ioapic **ioapic;
    struct kvm_pit **pit;
    bool x2apic_format, split;
    uint64_t disabled_quirks;     /* KVM_X86_QUIRK_* */
    _Atomic bool *apic_ids_moved; /* a guest wrote an APIC ID: physical look-ups loop */
};
struct kvm_chips kvm_chips(struct kvm *);
struct ktimer_thread *kvm_timer_thread(struct kvm *); /* NULL: no memory */
int kvm_read_guest(struct kvm *, uint64_t gpa, void *data, size_t len);
int kvm_write_guest(struct kvm *, uint64_t gpa, const void *data, size_t len);

/* ---- PIC, IOAPIC, PIT ---- */
int kvm_pic_init(struct kvm *);
void kvm_pic_destroy(struct kvm *);
int kvm_pic_set_irq(struct kvm_pic *, int irq, int source, int level);
int kvm_pic_read_irq(struct kvm *); /* INTA cycle: vector */
bool kvm_pic_output(struct kvm *);  /* INTR line */
int kvm_get_pic(struct kvm *, int chip, struct kvm_pic_state *);
int kvm_set_pic(struct kvm *, int chip, const struct kvm_pic_state *);
int kvm_ioapic_init(struct kvm *);
void kvm_ioapic_destroy(struct kvm *);
int kvm_ioapic_set_irq(struct kvm_ioapic *, int irq, int source, int level);
int kvm_ioapic_set_irq_status(struct kvm_ioapic *, int irq, int source, int level, bool line_status);
void kvm_ioapic_update_eoi(struct kvm_vcpu *, int vector, int trigger_mode);
bool kvm_ioapic_handles_vector(struct kvm *, int vector);
void kvm_ioapic_rescan(struct kvm *); /* ack notifiers or routes changed */
int kvm_get_ioapic(struct kvm *, struct kvm_ioapic_state *);
int kvm_set_ioapic(struct kvm *, const struct kvm_ioapic_state *);
struct kvm_pit *kvm_create_pit(struct kvm *, uint32_t flags); /* also ports 0x40-43 and 0x61 (flags: SPEAKER_DUMMY) */
void kvm_free_pit(struct kvm *);
int kvm_get_pit2(struct kvm *, struct kvm_pit_state2 *);
int kvm_set_pit2(struct kvm *, const struct kvm_pit_state2 *);
int kvm_pit_set_reinject(struct kvm *, bool);

/* ---- routing (irq_comm.c), eventfds (eventfd.c), coalesced zones (coalesced_mmio.c) ---- */
int kvm_set_irq(struct kvm *, int source, uint32_t gsi, int level,
                bool line_status); /* -1, 0 coalesced, >0 delivered */
int kvm_set_irq_routing(struct kvm *, const struct kvm_irq_routing_entry *, unsigned n, unsigned flags);
int kvm_setup_default_irq_routing(struct kvm *);
int kvm_setup_empty_irq_routing(struct kvm *);
void kvm_free_irq_routing(struct kvm *);
int kvm_send_userspace_msi(struct kvm *, const struct kvm_msi *);
int kvm_irq_delivery_to_apic(struct kvm *, struct kvm_lapic *source, const struct kvm_lapic_irq *, void *dest_map);
/* Who is told that the guest ended the interrupt of a GSI (EOI): resamplers, PIT reinjection. On the vCPU's thread, no
 * lock of a chip is held. */
struct kvm_irq_ack_notifier {
    uint32_t gsi;
    void (*irq_acked)(struct kvm_irq_ack_notifier *);
    struct kvm_irq_ack_notifier *next;
};
void kvm_register_irq_ack_notifier(struct kvm *, struct kvm_irq_ack_notifier *);
void kvm_unregister_irq_ack_notifier(struct kvm *, struct kvm_irq_ack_notifier *); /* not running when it returns */
void kvm_notify_acked_irq(struct kvm *, unsigned irqchip, unsigned pin);
void kvm_notify_acked_gsi(struct kvm *, uint32_t gsi);
bool kvm_irq_has_notifier(struct kvm *, unsigned irqchip, unsigned pin);
/* A pin's level is the OR of its sources; `states` has a bit a source. Returns the pin's new level. */
static inline bool kvm_irq_line_state(_Atomic uint32_t *states, int source, int level)
{
    const uint32_t bit = 1u << source;

    return level ? (atomic_fetch_or(states, bit) | bit) != 0 : (atomic_fetch_and(states, ~bit) & ~bit) != 0;
}
struct kvm_dest_map {  /* where an interrupt went to: vCPUs by index, and the vector */
    uint64_t vcpus[5]; /* KVM_MAX_VCPUS = 288 */
    uint8_t vector;
};
void kvm_dest_map_add(void *dest_map, struct kvm_vcpu *, uint8_t vector);
int eventfd_id(int fd, uint64_t *id); /* the same for all duplicates; -EBADF, -EINVAL: no eventfd */
void signal_eventfd(int fd);
int kvm_irqfd(struct kvm *, const struct kvm_irqfd *);
int kvm_ioeventfd(struct kvm *, const struct kvm_ioeventfd *);
int kvm_eventfd_init(struct kvm *);
int kvm_irqfd_start(struct kvm *); /* the thread now, not with the first irqfd */
void kvm_irqfd_release(
    struct kvm *); /* before the vCPUs go: irqfds and the PIT, which raise interrupts by themselves, end */
void kvm_irq_routing_update(struct kvm *);
int kvm_coalesced_mmio_init(struct kvm *);
void kvm_coalesced_mmio_free(struct kvm *);
int kvm_vm_ioctl_register_coalesced_mmio(struct kvm *, const struct kvm_coalesced_mmio_zone *);
int kvm_vm_ioctl_unregister_coalesced_mmio(struct kvm *, const struct kvm_coalesced_mmio_zone *);
bool kvm_split_handles_vector(struct kvm *, int vector); /* split irqchip: the monitor's IOAPIC awaits this EOI */
bool kvm_arch_can_set_irq(struct kvm *);                 /* an irqchip, in the kernel or split */
/* ---- what the CPU side asks (irq.c) ---- */
int kvm_vm_ioctl_get_irqchip(struct kvm *, struct kvm_irqchip *); /* 0, -ENXIO (none), -EINVAL (chip_id) */
int kvm_vm_ioctl_set_irqchip(struct kvm *, const struct kvm_irqchip *);
void kvm_irq_destroy(struct kvm *);                            /* after the vCPUs: chips, routing, the timer thread */
int kvm_vcpu_ioctl_interrupt(struct kvm_vcpu *, uint32_t irq); /* KVM_INTERRUPT: -EINVAL, -ENXIO, -EEXIST */
int kvm_cpu_has_interrupt(struct kvm_vcpu *);                  /* APIC, PIC (ExtINT) or a userspace interrupt */
int kvm_cpu_get_interrupt(struct kvm_vcpu *);                  /* takes it: vector or -1 */
int kvm_cpu_has_extint(struct kvm_vcpu *);

#endif
