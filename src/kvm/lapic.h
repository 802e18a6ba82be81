/* SPDX-License-Identifier: MIT
 * lapic.h: the local APIC's own structure (lapic.c, lapic_timer.c, lapic_pv.c); nobody else looks inside. Registers are
 * the vCPU thread's, but IRR, TMR, the pending events and ESR's latch are set by any thread, atomically. */
#ifndef KVM_LAPIC_H
#define KVM_LAPIC_H

#include "irq.h"

enum apic_reg { /* SDM 3A, "The Local APIC Block Diagram", table "Local APIC Register Address Map" */
                APIC_ID = 0x20,
                APIC_LVR = 0x30,
                APIC_TASKPRI = 0x80,
                APIC_ARBPRI = 0x90,
                APIC_PROCPRI = 0xa0,
                APIC_EOI = 0xb0,
                APIC_LDR = 0xd0,
                APIC_DFR = 0xe0,
                APIC_SPIV = 0xf0,
                APIC_ISR = 0x100,
                APIC_TMR = 0x180,
                APIC_IRR = 0x200,
                APIC_ESR = 0x280,
                APIC_ICR = 0x300,
                APIC_ICR2 = 0x310,
                APIC_LVTT = 0x320,
                APIC_LVTTHMR = 0x330,
                APIC_LVTPC = 0x340,
                APIC_LVT0 = 0x350,
                APIC_LVT1 = 0x360,
                APIC_LVTERR = 0x370,
                APIC_TMICT = 0x380,
                APIC_TMCCT = 0x390,
                APIC_TDCR = 0x3e0,
                APIC_SELF_IPI = 0x3f0,
};
#define APIC_VECTOR_MASK       0xffu
#define APIC_MODE_MASK         0x700u
#define APIC_DM_FIXED          0x000u
#define APIC_DM_LOWEST         0x100u
#define APIC_DM_SMI            0x200u
#define APIC_DM_REMRD          0x300u
#define APIC_DM_NMI            0x400u
#define APIC_DM_INIT           0x500u
#define APIC_DM_STARTUP        0x600u
#define APIC_DM_EXTINT         0x700u
#define APIC_DEST_LOGICAL      (1u << 11)
#define APIC_ICR_BUSY          (1u << 12)
#define APIC_INT_ASSERT        (1u << 14)
#define APIC_INT_LEVELTRIG     (1u << 15)
#define APIC_SHORT_MASK        (3u << 18)
#define APIC_DEST_SELF         (1u << 18)
#define APIC_DEST_ALLINC       (2u << 18)
#define APIC_DEST_ALLBUT       (3u << 18)
#define APIC_LVT_POLARITY      (1u << 13)
#define APIC_LVT_MASKED        (1u << 16)
#define APIC_TIMER_MASK        (3u << 17)
#define APIC_TIMER_ONESHOT     (0u << 17)
#define APIC_TIMER_PERIODIC    (1u << 17)
#define APIC_TIMER_TSCDEADLINE (2u << 17)
#define APIC_SPIV_ENABLED      (1u << 8)
#define APIC_SPIV_DIRECTED_EOI (1u << 12)
#define APIC_LVR_DIRECTED_EOI  (1u << 24)
#define APIC_DFR_FLAT          0xffffffffu
#define APIC_ESR_SEND_ILLEGAL  0x20u
#define APIC_ESR_RECV_ILLEGAL  0x40u
#define XAPIC_BROADCAST        0xffu
#define X2APIC_BROADCAST       0xffffffffu

#define APIC_EVENT_INIT 1u
#define APIC_EVENT_SIPI 2u

struct kvm_lapic {
    struct kvm_vcpu *vcpu;
    struct kvm *kvm;
    uint8_t *regs; /* a page: registers at their MMIO offsets, as KVM_GET_LAPIC gives them */
    uint64_t base_gpa;
    _Atomic bool sw_enabled;         /* SPIV bit 8 */
    _Atomic bool irr_pending;        /* false: no bit of IRR is set */
    int highest_isr;                 /* -1: none in service */
    _Atomic uint32_t esr_pending;    /* shown by ESR after the next write to it */
    _Atomic uint32_t arb_prio;       /* lowest-priority deliveries so far */
    _Atomic uint32_t pending_events; /* APIC_EVENT_* */
    _Atomic uint32_t sipi_vector;
    struct apic_timer {
        struct ktimer timer;
        uint32_t mode;                /* of LVTT */
        uint32_t divide;              /* 1 ... 128 */
        _Atomic uint64_t period_ns;   /* 0: one shot */
        _Atomic uint64_t expires_ns;  /* 0: not counting */
        _Atomic uint64_t tscdeadline; /* guest TSC; 0: disarmed */
    } t;
    uint64_t pv_eoi_gpa; /* 0: off */
    uint64_t vapic_gpa;  /* KVM_SET_VAPIC_ADDR; 0: off */
    bool pv_eoi_pending; /* the flag was set at the last entry */
};

static inline uint32_t *apic_reg_at(const struct kvm_lapic *apic, unsigned reg)
{
    return (uint32_t *)(apic->regs + reg);
}
static inline uint32_t apic_get(const struct kvm_lapic *apic, unsigned reg)
{
    return __atomic_load_n(apic_reg_at(apic, reg), __ATOMIC_RELAXED);
}
static inline void apic_set(struct kvm_lapic *apic, unsigned reg, uint32_t value)
{
    __atomic_store_n(apic_reg_at(apic, reg), value, __ATOMIC_RELAXED);
}
static inline bool apic_enabled(const struct kvm_lapic *apic)
{
    return apic->sw_enabled && kvm_apic_hw_enabled(apic);
}

int apic_local_deliver(struct kvm_lapic *, unsigned lvt); /* any thread; 1: accepted */
int apic_set_eoi(struct kvm_lapic *);                     /* the vector that ended, or -1 */
int apic_highest_irr(struct kvm_lapic *);
void apic_update_ppr(struct kvm_lapic *);
/* ---- lapic_timer.c ---- */
int apic_timer_init(struct kvm_lapic *);
void apic_timer_stop(struct kvm_lapic *);
void apic_timer_reset(struct kvm_lapic *);
void apic_timer_write_lvtt(struct kvm_lapic *, uint32_t value);
void apic_timer_write_tmict(struct kvm_lapic *, uint32_t value);
void apic_timer_write_tdcr(struct kvm_lapic *, uint32_t value);
uint32_t apic_timer_tmcct(struct kvm_lapic *);
void apic_timer_restore(struct kvm_lapic *, uint32_t tmcct); /* from the registers */

#endif
