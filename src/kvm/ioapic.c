/* SPDX-License-Identifier: MIT
 * ioapic.c: the I/O APIC (Intel 82093AA datasheet), 24 pins, as KVM shows it (version 0x11). Level-triggered pins are
 * delivered again at the EOI while their line is up. */
#include "iodev.h"
#include "irq.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define IOAPIC_BASE      0xfec00000ull
#define IOAPIC_LENGTH    0x100
#define IOAPIC_REGSEL    0x00
#define IOAPIC_WINDOW    0x10
#define IOAPIC_REG_ID    0
#define IOAPIC_REG_VER   1
#define IOAPIC_REG_ARB   2
#define IOAPIC_REG_REDIR 0x10
#define IOAPIC_VERSION   (0x11u | (KVM_IRQCHIP_NUM_PINS - 1) << 16)
#define DM_EXTINT        7
#define RTC_GSI          8

typedef __typeof__(((struct kvm_ioapic_state *)0)->redirtbl[0]) redir_t;
/* bits of a redirection entry that only the chip writes: delivery status and remote IRR */
#define REDIR_READ_ONLY (1ull << 12 | 1ull << 14)
#define REDIR_MASK      (1ull << 16)

struct kvm_ioapic {
    struct kvm_io_device dev;
    struct kvm *kvm;
    pthread_mutex_t lock;
    struct kvm_ioapic_state s; /* base, regsel, id, irr (lines as latched), entries */
    uint32_t irr_delivered;    /* edges of irr that went out */
    _Atomic uint32_t lines[KVM_IRQCHIP_NUM_PINS];
    _Atomic uint64_t handled[4]; /* vectors whose EOI we want */
    /* KVM_IRQ_LINE_STATUS of the RTC: an interrupt is coalesced until every target has ended the one before */
    struct kvm_dest_map rtc;
    unsigned rtc_pending_eoi;
};

/* ---- delivery; all with the lock held ---- */
static int service(struct kvm_ioapic *io, unsigned pin, bool line_status)
{
    redir_t *e = &io->s.redirtbl[pin];
    const struct kvm_lapic_irq irq = {
        .vector = e->fields.vector,
        .delivery_mode = (uint32_t)e->fields.delivery_mode << 8,
        .dest_mode = e->fields.dest_mode ? 1u << 11 : 0,
        .dest_id = e->fields.dest_id,
        .trig_mode = e->fields.trig_mode,
        .level = 1,
    };
    const bool rtc = pin == RTC_GSI && line_status;
    int r;

    if (e->fields.mask || (e->fields.trig_mode && e->fields.remote_irr) || e->fields.delivery_mode == DM_EXTINT)
        return -1;
    if (!e->fields.trig_mode)
        io->irr_delivered |= 1u << pin;
    if (rtc)
        memset(&io->rtc, 0, sizeof(io->rtc));
    r = kvm_irq_delivery_to_apic(io->kvm, NULL, &irq, rtc ? &io->rtc : NULL);
    if (rtc)
        io->rtc_pending_eoi = r > 0 ? (unsigned)r : 0;
    if (r > 0 && e->fields.trig_mode)
        e->fields.remote_irr = 1;
    return r;
}

static int set_line(struct kvm_ioapic *io, unsigned pin, bool level, bool line_status)
{
    const uint32_t bit = 1u << pin;
    const bool edge = !io->s.redirtbl[pin].fields.trig_mode;
    const uint32_t old = io->s.irr;

    if (!level) {
        io->s.irr &= ~bit;
        return 1;
    }
    if (pin == RTC_GSI && line_status && io->rtc_pending_eoi)
        return 0;
    io->s.irr |= bit;
    if (edge) {
        io->irr_delivered &= ~bit;
        if (old & bit)
            return 0;
    }
    return service(io, pin, line_status);
}

static void rescan(struct kvm_ioapic *io)
{
    uint64_t handled[4] = {0};

    for (unsigned pin = 0; pin < KVM_IRQCHIP_NUM_PINS; pin++) {
        const redir_t *e = &io->s.redirtbl[pin];

        if (e->fields.trig_mode || pin == RTC_GSI || kvm_irq_has_notifier(io->kvm, KVM_IRQCHIP_IOAPIC, pin))
            handled[e->fields.vector / 64] |= 1ull << e->fields.vector % 64;
    }
    for (unsigned i = 0; i < 4; i++)
        atomic_store(&io->handled[i], handled[i]);
}

int kvm_ioapic_set_irq(struct kvm_ioapic *io, int irq, int source, int level)
{
    return kvm_ioapic_set_irq_status(io, irq, source, level, false);
}

/* -1: masked or not accepted, 0: coalesced, > 0: delivered. The lines are changed under the lock, so that two sources
 * of one pin are seen in one order. */
int kvm_ioapic_set_irq_status(struct kvm_ioapic *io, int irq, int source, int level, bool line_status)
{
    int r;

    if (irq < 0 || irq >= KVM_IRQCHIP_NUM_PINS)
        return -1;
    pthread_mutex_lock(&io->lock);
    r = set_line(io, (unsigned)irq, kvm_irq_line_state(&io->lines[irq], source, level), line_status);
    pthread_mutex_unlock(&io->lock);
    return r;
}

bool kvm_ioapic_handles_vector(struct kvm *kvm, int vector)
{
    struct kvm_ioapic *io = *kvm_chips(kvm).ioapic;

    return io && atomic_load_explicit(&io->handled[(unsigned)vector / 64], memory_order_relaxed) >> vector % 64 & 1;
}

void kvm_ioapic_rescan(struct kvm *kvm)
{
    struct kvm_ioapic *io = *kvm_chips(kvm).ioapic;

    if (!io)
        return;
    pthread_mutex_lock(&io->lock);
    rescan(io);
    pthread_mutex_unlock(&io->lock);
}

static void rtc_eoi(struct kvm_ioapic *io, struct kvm_vcpu *vcpu, int vector)
{
    const unsigned i = (unsigned)vcpu_index_of(vcpu);
    const uint64_t bit = 1ull << i % 64;

    if (!(io->rtc.vcpus[i / 64] & bit) || io->rtc.vector != vector)
        return;
    io->rtc.vcpus[i / 64] &= ~bit;
    if (io->rtc_pending_eoi)
        io->rtc_pending_eoi--;
}

/* A vCPU's EOI. Notifiers run unlocked (they lower and raise lines), before remote IRR goes: a line that they raise
 * again is delivered once, below. */
void kvm_ioapic_update_eoi(struct kvm_vcpu *vcpu, int vector, int trigger_mode)
{
    struct kvm *kvm = vcpu_kvm(vcpu);
    struct kvm_ioapic *io = *kvm_chips(kvm).ioapic;

    pthread_mutex_lock(&io->lock);
    rtc_eoi(io, vcpu, vector);
    for (unsigned pin = 0; pin < KVM_IRQCHIP_NUM_PINS; pin++) {
        redir_t *e = &io->s.redirtbl[pin];

        if (e->fields.vector != vector)
            continue;
        pthread_mutex_unlock(&io->lock);
        kvm_notify_acked_irq(kvm, KVM_IRQCHIP_IOAPIC, pin);
        pthread_mutex_lock(&io->lock);
        if (!trigger_mode || !e->fields.trig_mode || e->fields.vector != vector)
            continue;
        e->fields.remote_irr = 0;
        if (!e->fields.mask && io->s.irr & 1u << pin)
            service(io, pin, false);
    }
    pthread_mutex_unlock(&io->lock);
}

/* ---- registers ---- */
static uint32_t read_window(struct kvm_ioapic *io)
{
    const uint32_t reg = io->s.ioregsel, pin = (reg - IOAPIC_REG_REDIR) / 2;

    switch (reg) {
    case IOAPIC_REG_VER:
        return IOAPIC_VERSION;
    case IOAPIC_REG_ID:
    case IOAPIC_REG_ARB:
        return (io->s.id & 0xf) << 24;
    default:
        if (reg < IOAPIC_REG_REDIR || pin >= KVM_IRQCHIP_NUM_PINS)
            return reg < IOAPIC_REG_REDIR ? 0 : ~0u;
        return (uint32_t)(io->s.redirtbl[pin].bits >> (reg & 1 ? 32 : 0));
    }
}

static void write_redir(struct kvm_ioapic *io, unsigned pin, bool high, uint32_t value)
{
    redir_t *e = &io->s.redirtbl[pin];
    const uint64_t kept = e->bits & REDIR_READ_ONLY;

    if (high)
        e->bits = (e->bits & 0xffffffff) | (uint64_t)value << 32;
    else
        e->bits = (e->bits & ~0xffffffffull) | (value & 0x1ffff & ~REDIR_READ_ONLY) | kept;
    if (!e->fields.trig_mode) /* an OS without a directed EOI frees a stuck remote IRR so */
        e->fields.remote_irr = 0;
    if (pin == RTC_GSI)
        io->rtc_pending_eoi = 0;
    rescan(io);
    if (e->fields.trig_mode && io->s.irr & 1u << pin)
        service(io, pin, false); /* it checks mask and remote IRR */
}

static void write_window(struct kvm_ioapic *io, uint32_t value)
{
    const uint32_t reg = io->s.ioregsel, pin = (reg - IOAPIC_REG_REDIR) / 2;

    if (reg == IOAPIC_REG_ID)
        io->s.id = value >> 24 & 0xf;
    else if (reg >= IOAPIC_REG_REDIR && pin < KVM_IRQCHIP_NUM_PINS)
        write_redir(io, pin, reg & 1, value);
}

static bool in_range(const struct kvm_ioapic *io, uint64_t gpa)
{
    return gpa >= io->s.base_address && gpa - io->s.base_address < IOAPIC_LENGTH;
}

static int mmio_read(struct kvm_vcpu *vcpu, struct kvm_io_device *dev, uint64_t gpa, int len, void *val)
{
    struct kvm_ioapic *io = (struct kvm_ioapic *)dev;
    uint64_t value = 0;

    if (!in_range(io, gpa))
        return -EOPNOTSUPP;
    pthread_mutex_lock(&io->lock);
    if ((gpa & 0xff) == IOAPIC_REGSEL)
        value = io->s.ioregsel;
    else if ((gpa & 0xff) == IOAPIC_WINDOW)
        value = read_window(io);
    pthread_mutex_unlock(&io->lock);
    memset(val, 0, (size_t)len);
    memcpy(val, &value, len > 8 ? 8 : (size_t)len);
    return 0;
}

static int mmio_write(struct kvm_vcpu *vcpu, struct kvm_io_device *dev, uint64_t gpa, int len, const void *val)
{
    struct kvm_ioapic *io = (struct kvm_ioapic *)dev;
    uint32_t value = 0;

    if (!in_range(io, gpa))
        return -EOPNOTSUPP;
    memcpy(&value, val, len > 4 ? 4 : (size_t)len);
    pthread_mutex_lock(&io->lock);
    if ((gpa & 0xff) == IOAPIC_REGSEL)
        io->s.ioregsel = value & 0xff;
    else if ((gpa & 0xff) == IOAPIC_WINDOW)
        write_window(io, value);
    pthread_mutex_unlock(&io->lock);
    return 0;
}

static const struct kvm_io_device_ops ioapic_ops = {.read = mmio_read, .write = mmio_write};

/* ---- creation and state ---- */
static void reset(struct kvm_ioapic *io)
{
    memset(&io->s, 0, sizeof(io->s));
    io->s.base_address = IOAPIC_BASE;
    for (unsigned pin = 0; pin < KVM_IRQCHIP_NUM_PINS; pin++)
        io->s.redirtbl[pin].bits = REDIR_MASK;
    io->irr_delivered = 0;
}

int kvm_ioapic_init(struct kvm *kvm)
{
    struct kvm_ioapic *io = calloc(1, sizeof(*io));
    int err;

    if (!io)
        return -ENOMEM;
    io->dev.ops = &ioapic_ops;
    io->kvm = kvm;
    pthread_mutex_init(&io->lock, NULL);
    reset(io);
    rescan(io);
    err = kvm_io_bus_register_dev(kvm, KVM_MMIO_BUS, IOAPIC_BASE, IOAPIC_LENGTH, &io->dev);
    if (err) {
        pthread_mutex_destroy(&io->lock);
        free(io);
        return err;
    }
    *kvm_chips(kvm).ioapic = io;
    return 0;
}

void kvm_ioapic_destroy(struct kvm *kvm)
{
    struct kvm_ioapic *io = *kvm_chips(kvm).ioapic;

    if (!io)
        return;
    kvm_io_bus_unregister_dev(kvm, KVM_MMIO_BUS, &io->dev);
    *kvm_chips(kvm).ioapic = NULL;
    pthread_mutex_destroy(&io->lock);
    free(io);
}

int kvm_get_ioapic(struct kvm *kvm, struct kvm_ioapic_state *state)
{
    struct kvm_ioapic *io = *kvm_chips(kvm).ioapic;

    if (!io)
        return -ENXIO;
    pthread_mutex_lock(&io->lock);
    *state = io->s;
    state->irr &= ~io->irr_delivered; /* an edge that went out is not delivered again by the new owner */
    pthread_mutex_unlock(&io->lock);
    return 0;
}

int kvm_set_ioapic(struct kvm *kvm, const struct kvm_ioapic_state *state)
{
    struct kvm_ioapic *io = *kvm_chips(kvm).ioapic;

    if (!io)
        return -ENXIO;
    pthread_mutex_lock(&io->lock);
    io->s = *state;
    io->s.irr = 0;
    io->irr_delivered = 0;
    io->rtc_pending_eoi = 0;
    rescan(io);
    for (unsigned pin = 0; pin < KVM_IRQCHIP_NUM_PINS; pin++)
        if (state->irr & 1u << pin)
            set_line(io, pin, true, false);
    pthread_mutex_unlock(&io->lock);
    return 0;
}
