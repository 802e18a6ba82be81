/* SPDX-License-Identifier: MIT
 * i8259.c: the two cascaded interrupt controllers of a PC (Intel 8259A datasheet; ELCR: 82371SB datasheet), state in
 * KVM's struct kvm_pic_state. */
#include "iodev.h"
#include "irq.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define CASCADE 2

struct kvm_pic {
    struct kvm_io_device dev;
    struct kvm *kvm;
    pthread_mutex_t lock;
    struct kvm_pic_state s[2]; /* master, slave */
    _Atomic uint32_t lines[16];
    _Atomic bool output; /* INTR */
};

/* ---- priorities ---- */
/* 0 ... 7: the rank of the first set bit, counted from the one of highest priority; 8: none */
static unsigned rank(const struct kvm_pic_state *s, uint8_t bits)
{
    unsigned r = 0;

    while (r < 8 && !(bits >> ((r + s->priority_add) & 7) & 1))
        r++;
    return r;
}

/* The input that would be acknowledged now, or -1. */
static int pending_irq(const struct kvm_pic *pic, unsigned chip)
{
    const struct kvm_pic_state *s = &pic->s[chip];
    const unsigned want = rank(s, s->irr & ~s->imr);
    uint8_t in_service = s->isr;

    if (s->special_mask)
        in_service &= ~s->imr;
    if (s->special_fully_nested_mode && chip == 0) /* the slave may interrupt itself */
        in_service &= ~(1u << CASCADE);
    return want < 8 && want < rank(s, in_service) ? (int)((want + s->priority_add) & 7) : -1;
}

/* 1: a new request, 0: it was pending already (coalesced), -1: masked */
static int set_input(struct kvm_pic_state *s, unsigned irq, bool level)
{
    const uint8_t bit = 1u << irq;
    int r = 1;

    if (!level) {
        s->last_irr &= ~bit;
        if (s->elcr & bit)
            s->irr &= ~bit;
    } else {
        if (s->elcr & bit || !(s->last_irr & bit)) {
            r = !(s->irr & bit);
            s->irr |= bit;
        }
        s->last_irr |= bit;
    }
    return s->imr & bit ? -1 : r;
}

static void update(struct kvm_pic *pic)
{
    if (pending_irq(pic, 1) >= 0) {
        set_input(&pic->s[0], CASCADE, true);
        set_input(&pic->s[0], CASCADE, false);
    }
    atomic_store(&pic->output, pending_irq(pic, 0) >= 0);
}

/* INTR's rise is told once the lock is free. */
static void unlock(struct kvm_pic *pic, bool was)
{
    const bool rose = !was && atomic_load(&pic->output);

    pthread_mutex_unlock(&pic->lock);
    for (int i = 0; rose && i < kvm_vcpus_online(pic->kvm); i++) {
        struct kvm_vcpu *vcpu = kvm_vcpu_at(pic->kvm, i);

        if (vcpu && kvm_apic_accept_pic_intr(vcpu))
            vcpu_event(vcpu);
    }
}

static bool lock(struct kvm_pic *pic)
{
    pthread_mutex_lock(&pic->lock);
    return atomic_load(&pic->output);
}

/* Ends an interrupt; who waits for that is called without the lock. */
static void clear_isr(struct kvm_pic *pic, unsigned chip, unsigned irq)
{
    pic->s[chip].isr &= ~(1u << irq);
    pthread_mutex_unlock(&pic->lock);
    kvm_notify_acked_irq(pic->kvm, chip ? KVM_IRQCHIP_PIC_SLAVE : KVM_IRQCHIP_PIC_MASTER, irq + chip * 8);
    pthread_mutex_lock(&pic->lock);
}

int kvm_pic_set_irq(struct kvm_pic *pic, int irq, int source, int level)
{
    bool was;
    int r;

    if (irq < 0 || irq > 15)
        return -1;
    was = lock(pic);
    r = set_input(&pic->s[irq >> 3], irq & 7, kvm_irq_line_state(&pic->lines[irq], source, level));
    update(pic);
    unlock(pic, was);
    return r;
}

static void acknowledge(struct kvm_pic *pic, unsigned chip, unsigned irq)
{
    struct kvm_pic_state *s = &pic->s[chip];

    s->isr |= 1u << irq;
    if (!(s->elcr >> irq & 1))
        s->irr &= ~(1u << irq);
    if (s->auto_eoi) {
        if (s->rotate_on_auto_eoi)
            s->priority_add = (irq + 1) & 7;
        clear_isr(pic, chip, irq);
    }
}

/* The INTA cycles. A request that went away is vector 7 of its chip (8259A datasheet, "Interrupt Sequence"). */
int kvm_pic_read_irq(struct kvm *kvm)
{
    struct kvm_pic *pic = *kvm_chips(kvm).pic;
    bool was;
    int irq, vector;

    if (!pic)
        return -1;
    was = lock(pic);
    irq = pending_irq(pic, 0);
    if (irq >= 0)
        acknowledge(pic, 0, (unsigned)irq);
    if (irq == CASCADE) {
        const int irq2 = pending_irq(pic, 1);

        if (irq2 >= 0)
            acknowledge(pic, 1, (unsigned)irq2);
        vector = pic->s[1].irq_base + (irq2 < 0 ? 7 : irq2);
    } else {
        vector = pic->s[0].irq_base + (irq < 0 ? 7 : irq);
    }
    update(pic);
    unlock(pic, was);
    return vector;
}

bool kvm_pic_output(struct kvm *kvm)
{
    struct kvm_pic *pic = *kvm_chips(kvm).pic;

    return pic && atomic_load(&pic->output);
}

/* ---- ports ---- */
static void icw1(struct kvm_pic *pic, unsigned chip, uint8_t val)
{
    struct kvm_pic_state *s = &pic->s[chip];
    const uint8_t forgotten = s->isr | (s->irr & ~s->elcr);

    s->init4 = val & 1;
    s->last_irr = 0;
    s->irr &= s->elcr;
    s->imr = s->isr = 0;
    s->priority_add = 0;
    s->special_mask = s->read_reg_select = 0;
    if (!s->init4)
        s->special_fully_nested_mode = s->auto_eoi = 0;
    s->init_state = 1;
    for (unsigned irq = 0; irq < 8; irq++) /* nobody waits for an EOI that will not come */
        if (forgotten >> irq & 1)
            clear_isr(pic, chip, irq);
}

static void ocw2(struct kvm_pic *pic, unsigned chip, uint8_t val)
{
    struct kvm_pic_state *s = &pic->s[chip];
    const unsigned command = val >> 5, first = rank(s, s->isr);
    const bool specific = command == 3 || command == 7, rotate = command == 5 || command == 7;
    unsigned irq = val & 7;

    switch (command) {
    case 0: /* rotate in automatic EOI mode, clear and set */
    case 4:
        s->rotate_on_auto_eoi = command >> 2;
        break;
    case 1: /* EOI, and rotate; of the highest in service or of the one named */
    case 5:
    case 3:
    case 7:
        if (!specific && first == 8)
            break;
        if (!specific)
            irq = (first + s->priority_add) & 7;
        if (rotate)
            s->priority_add = (irq + 1) & 7;
        clear_isr(pic, chip, irq);
        break;
    case 6:
        s->priority_add = (irq + 1) & 7;
        break;
    default: /* 2: no operation */
        break;
    }
}

static void ocw3(struct kvm_pic_state *s, uint8_t val)
{
    if (val & 4)
        s->poll = 1;
    if (val & 2)
        s->read_reg_select = val & 1;
    if (val & 0x40)
        s->special_mask = val >> 5 & 1;
}

static void write_data(struct kvm_pic_state *s, uint8_t val)
{
    switch (s->init_state) {
    case 1: /* ICW2 */
        s->irq_base = val & 0xf8;
        s->init_state = 2;
        break;
    case 2: /* ICW3: the cascade is wired as it is */
        s->init_state = s->init4 ? 3 : 0;
        break;
    case 3: /* ICW4 */
        s->special_fully_nested_mode = val >> 4 & 1;
        s->auto_eoi = val >> 1 & 1;
        s->init_state = 0;
        break;
    default: /* OCW1 */
        s->imr = val;
    }
}

static void write_port(struct kvm_pic *pic, unsigned chip, bool data, uint8_t val)
{
    struct kvm_pic_state *s = &pic->s[chip];

    if (data)
        write_data(s, val);
    else if (val & 0x10)
        icw1(pic, chip, val);
    else if (val & 0x08)
        ocw3(s, val);
    else
        ocw2(pic, chip, val);
    update(pic);
}

/* 8259A datasheet, "Poll Command": the read is the acknowledge. */
static uint8_t poll(struct kvm_pic *pic, unsigned chip)
{
    const int irq = pending_irq(pic, chip);

    pic->s[chip].poll = 0;
    if (irq < 0)
        return 7;
    acknowledge(pic, chip, (unsigned)irq);
    update(pic);
    return 0x80 | (uint8_t)irq;
}

static uint8_t read_port(struct kvm_pic *pic, unsigned chip, bool data)
{
    const struct kvm_pic_state *s = &pic->s[chip];

    if (s->poll)
        return poll(pic, chip);
    if (data)
        return s->imr;
    return s->read_reg_select ? s->isr : s->irr;
}

static int pic_read(struct kvm_vcpu *vcpu, struct kvm_io_device *dev, uint64_t port, int len, void *val)
{
    struct kvm_pic *pic = (struct kvm_pic *)dev;
    bool was;

    memset(val, 0xff, (size_t)len);
    if (len != 1)
        return 0;
    was = lock(pic);
    if (port >= 0x4d0)
        *(uint8_t *)val = pic->s[port & 1].elcr;
    else
        *(uint8_t *)val = read_port(pic, port >> 7 & 1, port & 1);
    unlock(pic, was);
    return 0;
}

static int pic_write(struct kvm_vcpu *vcpu, struct kvm_io_device *dev, uint64_t port, int len, const void *val)
{
    struct kvm_pic *pic = (struct kvm_pic *)dev;
    const uint8_t byte = *(const uint8_t *)val;
    bool was;

    if (len != 1)
        return 0;
    was = lock(pic);
    if (port >= 0x4d0)
        pic->s[port & 1].elcr = byte & pic->s[port & 1].elcr_mask;
    else
        write_port(pic, port >> 7 & 1, port & 1, byte);
    unlock(pic, was);
    return 0;
}

static const struct kvm_io_device_ops pic_ops = {.read = pic_read, .write = pic_write};

/* ---- creation and state ---- */
int kvm_pic_init(struct kvm *kvm)
{
    static const uint16_t ports[] = {0x20, 0xa0, 0x4d0};
    struct kvm_pic *pic = calloc(1, sizeof(*pic));
    int err = 0;

    if (!pic)
        return -ENOMEM;
    pic->dev.ops = &pic_ops;
    pic->kvm = kvm;
    pthread_mutex_init(&pic->lock, NULL);
    pic->s[0].elcr_mask = 0xf8;
    pic->s[1].elcr_mask = 0xde;
    for (unsigned i = 0; i < 3 && !err; i++)
        err = kvm_io_bus_register_dev(kvm, KVM_PIO_BUS, ports[i], 2, &pic->dev);
    *kvm_chips(kvm).pic = pic;
    if (err)
        kvm_pic_destroy(kvm);
    return err;
}

void kvm_pic_destroy(struct kvm *kvm)
{
    struct kvm_pic *pic = *kvm_chips(kvm).pic;

    if (!pic)
        return;
    kvm_io_bus_unregister_dev(kvm, KVM_PIO_BUS, &pic->dev);
    *kvm_chips(kvm).pic = NULL;
    pthread_mutex_destroy(&pic->lock);
    free(pic);
}

int kvm_get_pic(struct kvm *kvm, int chip, struct kvm_pic_state *state)
{
    struct kvm_pic *pic = *kvm_chips(kvm).pic;

    if (!pic)
        return -ENXIO;
    pthread_mutex_lock(&pic->lock);
    *state = pic->s[chip];
    pthread_mutex_unlock(&pic->lock);
    return 0;
}

int kvm_set_pic(struct kvm *kvm, int chip, const struct kvm_pic_state *state)
{
    struct kvm_pic *pic = *kvm_chips(kvm).pic;

    if (!pic)
        return -ENXIO;
    pthread_mutex_lock(&pic->lock);
    pic->s[chip] = *state;
    pic->s[chip].elcr_mask = chip ? 0xde : 0xf8;
    pic->s[chip].priority_add &= 7;
    update(pic);
    unlock(pic, false); /* whatever it was: vCPUs look again */
    return 0;
}
