/* SPDX-License-Identifier: MIT
 * lapic.c: the local APIC, xAPIC and x2APIC: registers, acceptance of interrupts, priorities, EOI, IPIs, INIT and SIPI,
 * state as of KVM_GET_LAPIC (SDM 3A, "Advanced Programmable Interrupt Controller (APIC)"). */
#include "lapic.h"
#include "os.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define APIC_REGS_SIZE 4096
#define APIC_VERSION   (0x14u | 5u << 16) /* integrated, LVT entries 0-5; as KVM's */

/* ---- 256-bit vectors: ISR, TMR, IRR: 8 registers, 16 bytes apart ---- */
static uint32_t *vec_word(struct kvm_lapic *apic, unsigned base, unsigned vector)
{
    return apic_reg_at(apic, base + (vector >> 5) * 16);
}

static bool vec_test(struct kvm_lapic *apic, unsigned base, unsigned vector)
{
    return __atomic_load_n(vec_word(apic, base, vector), __ATOMIC_ACQUIRE) >> (vector & 31) & 1;
}

static void vec_set(struct kvm_lapic *apic, unsigned base, unsigned vector)
{
    __atomic_fetch_or(vec_word(apic, base, vector), 1u << (vector & 31), __ATOMIC_SEQ_CST);
}

static void vec_clear(struct kvm_lapic *apic, unsigned base, unsigned vector)
{
    __atomic_fetch_and(vec_word(apic, base, vector), ~(1u << (vector & 31)), __ATOMIC_SEQ_CST);
}

static int vec_highest(struct kvm_lapic *apic, unsigned base)
{
    for (int word = 7; word >= 0; word--) {
        const uint32_t bits = __atomic_load_n(vec_word(apic, base, (unsigned)word * 32), __ATOMIC_SEQ_CST);

        if (bits)
            return word * 32 + 31 - __builtin_clz(bits);
    }
    return -1;
}

static void vec_zero(struct kvm_lapic *apic, unsigned base)
{
    for (unsigned word = 0; word < 8; word++)
        apic_set(apic, base + word * 16, 0);
}

/* Its vCPU's thread writes it, senders of interrupts read it. */
static uint64_t read_apic_base(const struct kvm_lapic *apic)
{
    return __atomic_load_n(vcpu_apic_base(apic->vcpu), __ATOMIC_RELAXED);
}

/* ---- modes and identity ---- */
bool kvm_apic_hw_enabled(const struct kvm_lapic *apic)
{
    return read_apic_base(apic) & MSR_IA32_APICBASE_ENABLE;
}

bool kvm_lapic_enabled(struct kvm_vcpu *vcpu)
{
    return vcpu_apic(vcpu) && apic_enabled(vcpu_apic(vcpu));
}

bool apic_x2apic_mode(const struct kvm_lapic *apic)
{
    return read_apic_base(apic) & MSR_IA32_APICBASE_X2APIC;
}

/* SDM 3A, "Logical Destination Mode in x2APIC Mode" */
static uint32_t x2apic_ldr(uint32_t id)
{
    return (id >> 4) << 16 | 1u << (id & 15);
}

static void set_xapic_id(struct kvm_lapic *apic, uint32_t id)
{
    apic_set(apic, APIC_ID, id << 24);
    if (id != (uint32_t)vcpu_id_of(apic->vcpu))
        *kvm_chips(apic->kvm).apic_ids_moved = true;
}

static void set_x2apic_id(struct kvm_lapic *apic)
{
    const uint32_t id = (uint32_t)vcpu_id_of(apic->vcpu);

    apic_set(apic, APIC_ID, id);
    apic_set(apic, APIC_LDR, x2apic_ldr(id));
}

/* What the base MSR's new value changes; its validity was checked. */
static void base_changed(struct kvm_lapic *apic, uint64_t old, uint64_t new)
{
    const uint64_t changed = old ^ new;

    apic->base_gpa = new & ~0xfffull;
    if (changed & MSR_IA32_APICBASE_ENABLE) {
        if (new &MSR_IA32_APICBASE_ENABLE)
            set_xapic_id(apic, (uint32_t)vcpu_id_of(apic->vcpu));
        else
            apic_timer_stop(apic);
    }
    if ((changed & (MSR_IA32_APICBASE_X2APIC | MSR_IA32_APICBASE_ENABLE)) && (new &MSR_IA32_APICBASE_X2APIC))
        set_x2apic_id(apic);
    else if (changed & MSR_IA32_APICBASE_X2APIC && new &MSR_IA32_APICBASE_ENABLE)
        set_xapic_id(apic, (uint32_t)vcpu_id_of(apic->vcpu));
    if (new &MSR_IA32_APICBASE_ENABLE)
        vcpu_event(apic->vcpu);
}

/* SDM 3A, "x2APIC State Transitions": x2APIC is entered from xAPIC only and left by disabling only. The host may jump.
 */
int kvm_set_apic_base(struct kvm_vcpu *vcpu, uint64_t base, bool host_initiated)
{
    const uint64_t mode = MSR_IA32_APICBASE_ENABLE | MSR_IA32_APICBASE_X2APIC;
    const uint64_t old = *vcpu_apic_base(vcpu);
    uint64_t reserved = ~0ull << vcpu_maxphyaddr(vcpu) | 0x2ff;

    if (!vcpu_cpuid_x2apic(vcpu))
        reserved |= MSR_IA32_APICBASE_X2APIC;
    if ((base & reserved) || (base & mode) == MSR_IA32_APICBASE_X2APIC)
        return 1;
    if (!host_initiated && (((old & mode) == mode && (base & mode) == MSR_IA32_APICBASE_ENABLE) ||
                            ((old & mode) == 0 && (base & mode) == mode)))
        return 1;
    __atomic_store_n(vcpu_apic_base(vcpu), base, __ATOMIC_RELAXED);
    if (vcpu_apic(vcpu))
        base_changed(vcpu_apic(vcpu), old, base);
    return 0;
}

int kvm_lapic_set_base(struct kvm_vcpu *vcpu, uint64_t base)
{
    return kvm_set_apic_base(vcpu, base, false);
}

/* ---- priorities ---- */
int apic_highest_irr(struct kvm_lapic *apic)
{
    return atomic_load(&apic->irr_pending) ? vec_highest(apic, APIC_IRR) : -1;
}

/* The flag goes down before the last look, and senders set the bit before the flag: none is lost. */
static void clear_irr(struct kvm_lapic *apic, unsigned vector)
{
    atomic_store(&apic->irr_pending, false);
    vec_clear(apic, APIC_IRR, vector);
    if (vec_highest(apic, APIC_IRR) >= 0)
        atomic_store(&apic->irr_pending, true);
}

/* SDM 3A, "Task and Processor Priorities" */
void apic_update_ppr(struct kvm_lapic *apic)
{
    const uint32_t tpr = apic_get(apic, APIC_TASKPRI);
    const uint32_t isr = apic->highest_isr < 0 ? 0 : (uint32_t)apic->highest_isr;
    const uint32_t ppr = (tpr & 0xf0) >= (isr & 0xf0) ? tpr & 0xff : isr & 0xf0;

    if (apic_get(apic, APIC_PROCPRI) != ppr)
        apic_set(apic, APIC_PROCPRI, ppr);
}

static void set_tpr(struct kvm_lapic *apic, uint32_t tpr)
{
    const uint32_t old_ppr = apic_get(apic, APIC_PROCPRI);

    apic_set(apic, APIC_TASKPRI, tpr & 0xff);
    apic_update_ppr(apic);
    if (apic_get(apic, APIC_PROCPRI) < old_ppr && apic_highest_irr(apic) >= 0)
        vcpu_event(apic->vcpu);
}

void kvm_lapic_set_tpr(struct kvm_vcpu *vcpu, unsigned long cr8)
{
    set_tpr(vcpu_apic(vcpu), (cr8 & 0xf) << 4);
}

uint64_t kvm_lapic_get_cr8(struct kvm_vcpu *vcpu)
{
    return (apic_get(vcpu_apic(vcpu), APIC_TASKPRI) & 0xf0) >> 4;
}

int kvm_apic_has_interrupt(struct kvm_vcpu *vcpu)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);
    int irr;

    if (!apic || !kvm_apic_hw_enabled(apic))
        return -1;
    irr = apic_highest_irr(apic);
    if (irr < 0)
        return -1;
    apic_update_ppr(apic);
    return ((uint32_t)irr & 0xf0) > (apic_get(apic, APIC_PROCPRI) & 0xf0) ? irr : -1;
}

/* ISR first: whoever looks between the two must not miss the vector. */
int kvm_get_apic_interrupt(struct kvm_vcpu *vcpu)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);
    const int vector = kvm_apic_has_interrupt(vcpu);

    if (vector < 0)
        return -1;
    vec_set(apic, APIC_ISR, (unsigned)vector);
    if (vector > apic->highest_isr)
        apic->highest_isr = vector;
    clear_irr(apic, (unsigned)vector);
    apic_update_ppr(apic);
    return vector;
}

/* SDM 3A, "EOI Register": level-triggered vectors are broadcast, unless software took that on itself. Our IOAPIC hears
 * of those too, as KVM's does: remote IRR stays, but who waits for the acknowledgement is told. */
int apic_set_eoi(struct kvm_lapic *apic)
{
    const int vector = apic->highest_isr;
    bool level, directed;

    if (vector < 0)
        return -1;
    level = vec_test(apic, APIC_TMR, (unsigned)vector);
    directed = level && apic_get(apic, APIC_SPIV) & APIC_SPIV_DIRECTED_EOI;
    vec_clear(apic, APIC_ISR, (unsigned)vector);
    apic->highest_isr = vec_highest(apic, APIC_ISR);
    apic_update_ppr(apic);
    if (*kvm_chips(apic->kvm).ioapic) {
        if (level || kvm_ioapic_handles_vector(apic->kvm, vector))
            kvm_ioapic_update_eoi(apic->vcpu, vector, level && !directed);
    } else if (kvm_chips(apic->kvm).split && !directed && kvm_split_handles_vector(apic->kvm, vector)) {
        vcpu_ioapic_eoi_exit(apic->vcpu, vector);
    }
    vcpu_event(apic->vcpu);
    return vector;
}

/* ---- acceptance ---- */
static void raise_error(struct kvm_lapic *apic, uint32_t esr_bit)
{
    const uint32_t lvt = apic_get(apic, APIC_LVTERR);

    atomic_fetch_or(&apic->esr_pending, esr_bit);
    if ((lvt & APIC_VECTOR_MASK) >= 16) /* else it would be an error of its own, for ever */
        apic_local_deliver(apic, APIC_LVTERR);
}

static int accept_fixed(struct kvm_lapic *apic, uint32_t vector, bool level, bool trig_mode)
{
    if ((trig_mode && !level) || !apic_enabled(apic))
        return 0;
    if (vector < 16) {
        raise_error(apic, APIC_ESR_RECV_ILLEGAL);
        return 0;
    }
    if (vec_test(apic, APIC_TMR, vector) != trig_mode) {
        if (trig_mode)
            vec_set(apic, APIC_TMR, vector);
        else
            vec_clear(apic, APIC_TMR, vector);
    }
    vec_set(apic, APIC_IRR, vector);
    atomic_store(&apic->irr_pending, true);
    vcpu_event(apic->vcpu);
    return 1;
}

/* Any thread. 1: accepted, 0: not. */
static int accept_irq(struct kvm_lapic *apic, uint32_t mode, uint32_t vector, bool level, bool trig_mode)
{
    switch (mode) {
    case APIC_DM_LOWEST:
        atomic_fetch_add(&apic->arb_prio, 1);
        return accept_fixed(apic, vector, level, trig_mode);
    case APIC_DM_FIXED:
        return accept_fixed(apic, vector, level, trig_mode);
    case APIC_DM_SMI:
        vcpu_inject_smi(apic->vcpu);
        return 1;
    case APIC_DM_NMI:
        vcpu_inject_nmi(apic->vcpu);
        return 1;
    case APIC_DM_INIT:
        if (trig_mode && !level) /* INIT level de-assert: only old processors */
            return 0;
        atomic_store(&apic->pending_events, APIC_EVENT_INIT); /* a SIPI before it is forgotten */
        vcpu_unblock(apic->vcpu);
        return 1;
    case APIC_DM_STARTUP:
        atomic_store(&apic->sipi_vector, vector);
        atomic_fetch_or(&apic->pending_events, APIC_EVENT_SIPI);
        vcpu_unblock(apic->vcpu);
        return 1;
    default: /* remote read is not there; ExtINT comes by LVT0 only */
        return 0;
    }
}

int kvm_apic_set_irq(struct kvm_vcpu *vcpu, const struct kvm_lapic_irq *irq, void *dest_map)
{
    const int r =
        accept_irq(vcpu_apic(vcpu), irq->delivery_mode, irq->vector & APIC_VECTOR_MASK, irq->level, irq->trig_mode);

    if (r && dest_map)
        kvm_dest_map_add(dest_map, vcpu, irq->vector & APIC_VECTOR_MASK);
    return r;
}

int apic_local_deliver(struct kvm_lapic *apic, unsigned lvt)
{
    const uint32_t value = apic_get(apic, lvt);
    const bool lint = lvt == APIC_LVT0 || lvt == APIC_LVT1;
    uint32_t mode = value & APIC_MODE_MASK;

    if (!kvm_apic_hw_enabled(apic) || value & APIC_LVT_MASKED)
        return 0;
    if (lvt == APIC_LVTT || lvt == APIC_LVTERR)
        mode = APIC_DM_FIXED;
    return accept_irq(apic, mode, value & APIC_VECTOR_MASK, true, lint && value & APIC_INT_LEVELTRIG);
}

bool kvm_apic_accept_pic_intr(struct kvm_vcpu *vcpu)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);
    uint32_t lvt0;

    if (!apic)
        return false;
    if (!kvm_apic_hw_enabled(
            apic)) /* the pins are INTR and NMI then (SDM 3A, "Enabling or Disabling the Local APIC") */
        return vcpu_is_bsp(vcpu);
    lvt0 = apic_get(apic, APIC_LVT0);
    return !(lvt0 & APIC_LVT_MASKED) && (lvt0 & APIC_MODE_MASK) == APIC_DM_EXTINT;
}

void kvm_apic_nmi_wd_deliver(struct kvm_vcpu *vcpu)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);

    if (apic && (apic_get(apic, APIC_LVT0) & APIC_MODE_MASK) == APIC_DM_NMI)
        apic_local_deliver(apic, APIC_LVT0);
}

/* ---- INIT and SIPI (SDM 3A, "MP Initialization Protocol") ---- */
bool kvm_apic_pending_init_sipi(struct kvm_vcpu *vcpu)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);

    return apic && atomic_load(&apic->pending_events);
}

int kvm_apic_accept_events(struct kvm_vcpu *vcpu)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);

    if (!apic || !atomic_load(&apic->pending_events))
        return 0;
    if (vcpu_in_smm(vcpu)) { /* INIT is latched until RSM; a SIPI is lost */
        atomic_fetch_and(&apic->pending_events, ~APIC_EVENT_SIPI);
        return 0;
    }
    if (atomic_fetch_and(&apic->pending_events, ~APIC_EVENT_INIT) & APIC_EVENT_INIT) {
        vcpu_init_reset(vcpu);
        *vcpu_mp_state(vcpu) = vcpu_is_bsp(vcpu) ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_INIT_RECEIVED;
    }
    if (atomic_fetch_and(&apic->pending_events, ~APIC_EVENT_SIPI) & APIC_EVENT_SIPI &&
        *vcpu_mp_state(vcpu) == KVM_MP_STATE_INIT_RECEIVED) {
        vcpu_deliver_sipi(vcpu, (uint8_t)atomic_load(&apic->sipi_vector));
        *vcpu_mp_state(vcpu) = KVM_MP_STATE_RUNNABLE;
    }
    return 0;
}

/* KVM_SET_MP_STATE (SIPI_RECEIVED) and KVM_SET_VCPU_EVENTS */
void kvm_apic_set_events(struct kvm_vcpu *vcpu, bool init, bool sipi, uint8_t sipi_vector)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);

    if (!apic)
        return;
    atomic_store(&apic->sipi_vector, sipi_vector);
    atomic_store(&apic->pending_events, (init ? APIC_EVENT_INIT : 0) | (sipi ? APIC_EVENT_SIPI : 0));
}

uint8_t kvm_apic_sipi_vector(struct kvm_vcpu *vcpu)
{
    return vcpu_apic(vcpu) ? (uint8_t)atomic_load(&vcpu_apic(vcpu)->sipi_vector) : 0;
}

bool kvm_apic_init_pending(struct kvm_vcpu *vcpu)
{
    return vcpu_apic(vcpu) && atomic_load(&vcpu_apic(vcpu)->pending_events) & APIC_EVENT_INIT;
}

/* ---- IPIs ---- */
static void send_ipi(struct kvm_lapic *apic, uint32_t low, uint32_t dest)
{
    const struct kvm_lapic_irq irq = {
        .vector = low & APIC_VECTOR_MASK,
        .delivery_mode = low & APIC_MODE_MASK,
        .dest_mode = low & APIC_DEST_LOGICAL,
        .level = !!(low & APIC_INT_ASSERT),
        .trig_mode = !!(low & APIC_INT_LEVELTRIG),
        .shorthand = low & APIC_SHORT_MASK,
        .dest_id = dest,
    };

    if ((irq.delivery_mode == APIC_DM_FIXED || irq.delivery_mode == APIC_DM_LOWEST) && irq.vector < 16) {
        raise_error(apic, APIC_ESR_SEND_ILLEGAL);
        return;
    }
    kvm_irq_delivery_to_apic(apic->kvm, apic, &irq, NULL);
}

/* ---- registers: a row each ---- */
enum access { R = 1, W = 2, XR = 4, XW = 8 }; /* xAPIC and x2APIC (SDM 3A, "x2APIC Register Address Space") */

static void write_id(struct kvm_lapic *apic, unsigned reg, uint32_t value)
{
    set_xapic_id(apic, value >> 24);
}

static void write_tpr(struct kvm_lapic *apic, unsigned reg, uint32_t value)
{
    set_tpr(apic, value);
}

static void write_eoi(struct kvm_lapic *apic, unsigned reg, uint32_t value)
{
    apic_set_eoi(apic);
}

static void write_ldr(struct kvm_lapic *apic, unsigned reg, uint32_t value)
{
    apic_set(apic, reg, value & 0xff000000);
}

static void write_dfr(struct kvm_lapic *apic, unsigned reg, uint32_t value)
{
    apic_set(apic, reg, value | 0x0fffffff);
}

/* SDM 3A, "Spurious Interrupt": while the APIC is disabled by software all LVT entries stay masked. */
static void write_spiv(struct kvm_lapic *apic, unsigned reg, uint32_t value)
{
    uint32_t mask = 0x3ff;

    if (apic_get(apic, APIC_LVR) & APIC_LVR_DIRECTED_EOI)
        mask |= APIC_SPIV_DIRECTED_EOI;
    apic_set(apic, reg, value & mask);
    apic->sw_enabled = value & APIC_SPIV_ENABLED;
    if (!apic->sw_enabled)
        for (unsigned lvt = APIC_LVTT; lvt <= APIC_LVTERR; lvt += 0x10)
            apic_set(apic, lvt, apic_get(apic, lvt) | APIC_LVT_MASKED);
    else
        vcpu_event(apic->vcpu);
}

/* SDM 3A, "Error Handling": a write shows what came since the write before. */
static void write_esr(struct kvm_lapic *apic, unsigned reg, uint32_t value)
{
    apic_set(apic, reg, atomic_exchange(&apic->esr_pending, 0));
}

static void write_icr(struct kvm_lapic *apic, unsigned reg, uint32_t value)
{
    const uint32_t high = apic_get(apic, APIC_ICR2);

    value &= ~APIC_ICR_BUSY;
    apic_set(apic, reg, value);
    send_ipi(apic, value, apic_x2apic_mode(apic) ? high : high >> 24);
}

static void write_icr2(struct kvm_lapic *apic, unsigned reg, uint32_t value)
{
    apic_set(apic, reg, value & 0xff000000);
}

static void write_lvt(struct kvm_lapic *apic, unsigned reg, uint32_t value)
{
    static const uint32_t writable[] = {
        APIC_LVT_MASKED | APIC_VECTOR_MASK, /* timer: and its mode, below */
        APIC_LVT_MASKED | APIC_MODE_MASK | APIC_VECTOR_MASK,
        APIC_LVT_MASKED | APIC_MODE_MASK | APIC_VECTOR_MASK,
        APIC_LVT_MASKED | APIC_MODE_MASK | APIC_VECTOR_MASK | APIC_LVT_POLARITY | APIC_INT_LEVELTRIG,
        APIC_LVT_MASKED | APIC_MODE_MASK | APIC_VECTOR_MASK | APIC_LVT_POLARITY | APIC_INT_LEVELTRIG,
        APIC_LVT_MASKED | APIC_VECTOR_MASK,
    };
    uint32_t mask = writable[(reg - APIC_LVTT) / 0x10];

    if (reg == APIC_LVTT)
        mask |= APIC_TIMER_PERIODIC | (vcpu_cpuid_tsc_deadline(apic->vcpu) ? APIC_TIMER_TSCDEADLINE : 0);
    value &= mask;
    if (!apic->sw_enabled)
        value |= APIC_LVT_MASKED;
    apic_set(apic, reg, value);
    if (reg == APIC_LVTT)
        apic_timer_write_lvtt(apic, value);
    if (reg == APIC_LVT0)
        vcpu_event(apic->vcpu); /* the PIC may have been waiting for it */
}

static void write_tmict(struct kvm_lapic *apic, unsigned reg, uint32_t value)
{
    apic_timer_write_tmict(apic, value);
}

static void write_tdcr(struct kvm_lapic *apic, unsigned reg, uint32_t value)
{
    apic_timer_write_tdcr(apic, value);
}

static void write_self_ipi(struct kvm_lapic *apic, unsigned reg, uint32_t value)
{
    send_ipi(apic, APIC_DEST_SELF | APIC_INT_ASSERT | (value & APIC_VECTOR_MASK), 0);
}

#define VECTOR_ROWS(base)                                                                                   \
    [(base) / 16] = {R | XR, NULL}, [(base) / 16 + 1] = {R | XR, NULL}, [(base) / 16 + 2] = {R | XR, NULL}, \
              [(base) / 16 + 3] = {R | XR, NULL}, [(base) / 16 + 4] = {R | XR, NULL},                       \
              [(base) / 16 + 5] = {R | XR, NULL}, [(base) / 16 + 6] = {R | XR, NULL},                       \
              [(base) / 16 + 7] = {R | XR, NULL}

static const struct apic_reg_row {
    uint8_t access;
    void (*write)(struct kvm_lapic *, unsigned reg, uint32_t value);
} apic_rows[64] = {
    [APIC_ID / 16] = {R | W | XR, write_id},
    [APIC_LVR / 16] = {R | XR, NULL},
    [APIC_TASKPRI / 16] = {R | W | XR | XW, write_tpr},
    [APIC_ARBPRI / 16] = {R, NULL},
    [APIC_PROCPRI / 16] = {R | XR, NULL},
    [APIC_EOI / 16] = {W | XW, write_eoi},
    [APIC_LDR / 16] = {R | W | XR, write_ldr},
    [APIC_DFR / 16] = {R | W, write_dfr},
    [APIC_SPIV / 16] = {R | W | XR | XW, write_spiv},
    VECTOR_ROWS(APIC_ISR),
    VECTOR_ROWS(APIC_TMR),
    VECTOR_ROWS(APIC_IRR),
    [APIC_ESR / 16] = {R | W | XR | XW, write_esr},
    [APIC_ICR / 16] = {R | W | XR | XW, write_icr},
    [APIC_ICR2 / 16] = {R | W, write_icr2},
    [APIC_LVTT / 16] = {R | W | XR | XW, write_lvt},
    [APIC_LVTTHMR / 16] = {R | W | XR | XW, write_lvt},
    [APIC_LVTPC / 16] = {R | W | XR | XW, write_lvt},
    [APIC_LVT0 / 16] = {R | W | XR | XW, write_lvt},
    [APIC_LVT1 / 16] = {R | W | XR | XW, write_lvt},
    [APIC_LVTERR / 16] = {R | W | XR | XW, write_lvt},
    [APIC_TMICT / 16] = {R | W | XR | XW, write_tmict},
    [APIC_TMCCT / 16] = {R | XR, NULL},
    [APIC_TDCR / 16] = {R | W | XR | XW, write_tdcr},
    [APIC_SELF_IPI / 16] = {XW, write_self_ipi},
};

/* The row's access was checked. */
static uint32_t reg_read(struct kvm_lapic *apic, unsigned reg)
{
    switch (reg) {
    case APIC_TMCCT:
        return apic_timer_tmcct(apic);
    case APIC_PROCPRI:
        apic_update_ppr(apic);
        return apic_get(apic, reg);
    case APIC_ARBPRI: /* not on processors with an xAPIC */
        return 0;
    default:
        return apic_get(apic, reg);
    }
}

static bool in_mmio_range(const struct kvm_lapic *apic, uint64_t gpa)
{
    return gpa >= apic->base_gpa && gpa - apic->base_gpa < 4096;
}

static bool mmio_is_hole(const struct kvm_lapic *apic)
{
    return !kvm_apic_hw_enabled(apic) || apic_x2apic_mode(apic);
}

static bool mmio_is_the_clients(const struct kvm_lapic *apic)
{
    return mmio_is_hole(apic) && kvm_chips(apic->kvm).disabled_quirks & KVM_X86_QUIRK_LAPIC_MMIO_HOLE;
}

/* Reads within one register. A disabled APIC's page reads as ones (KVM_X86_QUIRK_LAPIC_MMIO_HOLE), or is no APIC's. */
int kvm_lapic_mmio_read(struct kvm_vcpu *vcpu, uint64_t gpa, int len, void *data)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);
    const unsigned offset = gpa & 0xfff, reg = offset & ~15u, byte = offset & 15;
    uint32_t value = 0;

    if (!apic || !in_mmio_range(apic, gpa) || mmio_is_the_clients(apic))
        return 1;
    memset(data, 0, (size_t)len);
    if (mmio_is_hole(apic)) {
        memset(data, 0xff, (size_t)len);
        return 0;
    }
    if (reg >= 0x400 || byte + (unsigned)len > 4 || !(apic_rows[reg / 16].access & R))
        return 0;
    value = reg_read(apic, reg);
    memcpy(data, (uint8_t *)&value + byte, (size_t)len);
    return 0;
}

/* SDM 3A, "Local APIC Register Address Map": 32-bit aligned accesses; what others do is undefined, here nothing. */
int kvm_lapic_mmio_write(struct kvm_vcpu *vcpu, uint64_t gpa, int len, const void *data)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);
    const unsigned offset = gpa & 0xfff;
    uint32_t value;

    if (!apic || !in_mmio_range(apic, gpa))
        return 1;
    if (mmio_is_hole(apic) || len != 4 || offset & 15 || offset >= 0x400 || !(apic_rows[offset / 16].access & W))
        return 0;
    memcpy(&value, data, 4);
    apic_rows[offset / 16].write(apic, offset, value);
    return 0;
}

int kvm_x2apic_msr_read(struct kvm_vcpu *vcpu, uint32_t msr, uint64_t *data)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);
    const unsigned reg = (msr - 0x800) << 4;

    if (!apic || !apic_x2apic_mode(apic) || msr < 0x800 || msr > 0x83f || !(apic_rows[reg / 16].access & XR))
        return 1;
    *data = reg_read(apic, reg);
    if (reg == APIC_ICR)
        *data |= (uint64_t)apic_get(apic, APIC_ICR2) << 32;
    return 0;
}

int kvm_x2apic_msr_write(struct kvm_vcpu *vcpu, uint32_t msr, uint64_t data)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);
    const unsigned reg = (msr - 0x800) << 4;

    if (!apic || !apic_x2apic_mode(apic) || msr < 0x800 || msr > 0x83f || !(apic_rows[reg / 16].access & XW))
        return 1;
    if (reg == APIC_ICR)
        apic_set(apic, APIC_ICR2, (uint32_t)(data >> 32));
    else if (data >> 32 || ((reg == APIC_EOI || reg == APIC_ESR) && data) || (reg == APIC_SELF_IPI && data > 0xff))
        return 1;
    apic_rows[reg / 16].write(apic, reg, (uint32_t)data);
    return 0;
}

/* ---- creation, reset, state ---- */
int kvm_create_lapic(struct kvm_vcpu *vcpu)
{
    struct kvm_lapic *apic = calloc(1, sizeof(*apic));

    if (!apic)
        return -ENOMEM;
    apic->vcpu = vcpu;
    apic->kvm = vcpu_kvm(vcpu);
    apic->highest_isr = -1;
    apic->base_gpa = APIC_DEFAULT_PHYS_BASE;
    apic->regs = os_alloc_pages(APIC_REGS_SIZE);
    if (!apic->regs || apic_timer_init(apic)) {
        os_free_pages(apic->regs, APIC_REGS_SIZE);
        free(apic);
        return -ENOMEM;
    }
    vcpu_set_apic(vcpu, apic);
    return 0;
}

void kvm_free_lapic(struct kvm_vcpu *vcpu)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);

    if (!apic)
        return;
    apic_timer_stop(apic);
    vcpu_set_apic(vcpu, NULL);
    os_free_pages(apic->regs, APIC_REGS_SIZE);
    free(apic);
}

static void set_version(struct kvm_lapic *apic)
{
    const bool directed =
        !*kvm_chips(apic->kvm).ioapic && vcpu_cpuid_x2apic(apic->vcpu); /* as KVM: our IOAPIC has no EOIR */

    apic_set(apic, APIC_LVR, APIC_VERSION | (directed ? APIC_LVR_DIRECTED_EOI : 0));
}

/* SDM 3A, "Local APIC State After Power-Up or Reset" and "... After an INIT Reset": INIT keeps ID and mode. */
void kvm_lapic_reset(struct kvm_vcpu *vcpu, bool init_event)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);

    if (!init_event)
        *vcpu_apic_base(vcpu) = APIC_DEFAULT_PHYS_BASE | MSR_IA32_APICBASE_ENABLE;
    if (vcpu_is_bsp(vcpu))
        *vcpu_apic_base(vcpu) |= MSR_IA32_APICBASE_BSP;
    if (!apic)
        return;
    apic_timer_stop(apic);
    if (!init_event) {
        apic->base_gpa = APIC_DEFAULT_PHYS_BASE;
        set_xapic_id(apic, (uint32_t)vcpu_id_of(vcpu));
    }
    set_version(apic);
    for (unsigned lvt = APIC_LVTT; lvt <= APIC_LVTERR; lvt += 0x10)
        apic_set(apic, lvt, APIC_LVT_MASKED);
    if (vcpu_is_bsp(vcpu) && /* as KVM and firmware: the 8259 works from the start */
        !(kvm_chips(apic->kvm).disabled_quirks & KVM_X86_QUIRK_LINT0_REENABLED))
        apic_set(apic, APIC_LVT0, APIC_DM_EXTINT);
    apic_set(apic, APIC_DFR, APIC_DFR_FLAT);
    apic_set(apic, APIC_SPIV, 0xff);
    apic->sw_enabled = false;
    if (!apic_x2apic_mode(apic))
        apic_set(apic, APIC_LDR, 0);
    static const uint16_t zero[] = {APIC_TASKPRI, APIC_PROCPRI, APIC_ESR, APIC_ICR, APIC_ICR2, APIC_TDCR, APIC_TMICT};
    for (unsigned i = 0; i < sizeof(zero) / sizeof(zero[0]); i++)
        apic_set(apic, zero[i], 0);
    vec_zero(apic, APIC_ISR);
    vec_zero(apic, APIC_TMR);
    vec_zero(apic, APIC_IRR);
    atomic_store(&apic->irr_pending, false);
    apic->highest_isr = -1;
    atomic_store(&apic->esr_pending, 0);
    atomic_store(&apic->arb_prio, 0);
    apic_timer_reset(apic);
    apic->pv_eoi_gpa = 0;
    apic->pv_eoi_pending = false;
}

/* KVM's layout: the register page's first KiB. ICR2 at 0x310; the ID in x2APIC mode is 32 bits wide with
 * KVM_CAP_X2APIC_API's KVM_X2APIC_API_USE_32BIT_IDS, else in bits 31:24 as in xAPIC mode. */
int kvm_apic_get_state(struct kvm_vcpu *vcpu, struct kvm_lapic_state *s)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);
    uint32_t id, tmcct;

    if (!apic)
        return -EINVAL;
    apic_update_ppr(apic);
    memcpy(s->regs, apic->regs, sizeof(s->regs));
    tmcct = apic_timer_tmcct(apic);
    memcpy(s->regs + APIC_TMCCT, &tmcct, 4);
    if (apic_x2apic_mode(apic) && !kvm_chips(apic->kvm).x2apic_format) {
        id = apic_get(apic, APIC_ID) << 24;
        memcpy(s->regs + APIC_ID, &id, 4);
    }
    return 0;
}

static int check_state_id(struct kvm_lapic *apic, struct kvm_lapic_state *s)
{
    const uint32_t own = (uint32_t)vcpu_id_of(apic->vcpu), ldr = x2apic_ldr(own);
    uint32_t id;

    if (!apic_x2apic_mode(apic))
        return 0;
    memcpy(&id, s->regs + APIC_ID, 4);
    if (kvm_chips(apic->kvm).x2apic_format) {
        if (id != own)
            return -EINVAL;
    } else {
        id >>= 24;
    }
    memcpy(s->regs + APIC_ID, &id, 4);
    memcpy(s->regs + APIC_LDR, &ldr, 4);
    return 0;
}

int kvm_apic_set_state(struct kvm_vcpu *vcpu, const struct kvm_lapic_state *state)
{
    struct kvm_lapic *apic = vcpu_apic(vcpu);
    struct kvm_lapic_state s = *state;
    uint32_t tmcct, word;
    int err;

    if (!apic)
        return -EINVAL;
    err = check_state_id(apic, &s);
    if (err)
        return err;
    ktimer_cancel_sync(&apic->t.timer);
    for (unsigned reg = 0; reg < sizeof(s.regs); reg += sizeof(word)) { /* others look at single registers meanwhile */
        memcpy(&word, s.regs + reg, sizeof(word));
        apic_set(apic, reg, word);
    }
    if (!apic_x2apic_mode(apic))
        set_xapic_id(apic, apic_get(apic, APIC_ID) >> 24);
    set_version(apic);
    apic->sw_enabled = apic_get(apic, APIC_SPIV) & APIC_SPIV_ENABLED;
    apic->highest_isr = vec_highest(apic, APIC_ISR);
    atomic_store(&apic->irr_pending, true);
    apic_update_ppr(apic);
    memcpy(&tmcct, s.regs + APIC_TMCCT, 4);
    apic_timer_restore(apic, tmcct);
    vcpu_event(vcpu);
    return 0;
}
