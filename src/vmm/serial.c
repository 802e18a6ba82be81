/* SPDX-License-Identifier: MIT
 * serial.c: a 16550A UART (National Semiconductor's data sheet PC16550D): the console. */
#include "vmm.h"
#include <string.h>

#define FIFO 16
enum { REG_DATA, REG_IER, REG_IIR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCR };
#define IER_RX          0x01
#define IER_TX          0x02
#define IER_LINE        0x04
#define IIR_NONE        0x01
#define IIR_TX          0x02
#define IIR_RX          0x04
#define IIR_TIMEOUT     0x0c
#define IIR_FIFO        0xc0
#define FCR_ENABLE      0x01
#define FCR_RX_CLEAR    0x02
#define LCR_DLAB        0x80
#define MCR_OUT2        0x08
#define MCR_LOOP        0x10
#define LSR_READY       0x01
#define LSR_OVERRUN     0x02
#define LSR_THRE        0x20
#define LSR_TEMT        0x40
#define MSR_CTS_DSR_DCD 0xb0

struct serial {
    struct device dev;
    uint8_t ier, lcr, mcr, scr, fcr, dll, dlm, lsr;
    bool tx_pending; /* THR-empty interrupt is due */
    uint8_t fifo[FIFO];
    uint8_t head, count;
    uint8_t irq_level;
};

static void update_irq(struct serial *s)
{
    bool rx = (s->ier & IER_RX) && s->count;
    bool tx = (s->ier & IER_TX) && s->tx_pending;
    bool line = (s->ier & IER_LINE) && (s->lsr & LSR_OVERRUN);
    uint8_t level = (rx || tx || line) && (s->mcr & MCR_OUT2) && !(s->mcr & MCR_LOOP);

    if (level != s->irq_level) {
        s->irq_level = level;
        machine_set_irq(s->dev.machine, s->dev.irq, level);
    }
}

static void push(struct serial *s, uint8_t c)
{
    unsigned size = s->fcr & FCR_ENABLE ? FIFO : 1;

    if (s->count == size) {
        s->lsr |= LSR_OVERRUN;
        return;
    }
    s->fifo[(s->head + s->count++) % FIFO] = c;
}

static uint8_t pop(struct serial *s)
{
    uint8_t c;

    if (!s->count)
        return 0;
    c = s->fifo[s->head];
    s->head = (s->head + 1) % FIFO;
    s->count--;
    if (!s->count)
        console_room();
    return c;
}

/* A driver clears the FIFO while it sets the port up. On a line the bytes would be lost; ours came from a file or a
 * person and the guest has not read them: they go back and come again. */
static void clear_fifo(struct serial *s)
{
    uint8_t unread[FIFO];

    for (unsigned i = 0; i < s->count; i++)
        unread[i] = s->fifo[(s->head + i) % FIFO];
    if (!(s->mcr & MCR_LOOP))
        console_unread(unread, s->count);
    s->count = 0;
}

static uint8_t read_iir(struct serial *s)
{
    uint8_t fifo = s->fcr & FCR_ENABLE ? IIR_FIFO : 0;

    if ((s->ier & IER_LINE) && (s->lsr & LSR_OVERRUN))
        return fifo | 0x06;
    if ((s->ier & IER_RX) && s->count)
        return fifo | IIR_RX;
    if ((s->ier & IER_TX) && s->tx_pending) {
        s->tx_pending = false; /* reading IIR acknowledges it */
        return fifo | IIR_TX;
    }
    return fifo | IIR_NONE;
}

static uint64_t serial_read(struct device *dev, uint64_t off, unsigned size)
{
    struct serial *s = container_of(dev, struct serial, dev);
    uint8_t v = 0;

    switch (off) {
    case REG_DATA:
        v = s->lcr & LCR_DLAB ? s->dll : pop(s);
        break;
    case REG_IER:
        v = s->lcr & LCR_DLAB ? s->dlm : s->ier;
        break;
    case REG_IIR:
        v = read_iir(s);
        break;
    case REG_LCR:
        v = s->lcr;
        break;
    case REG_MCR:
        v = s->mcr;
        break;
    case REG_LSR:
        v = s->lsr | LSR_THRE | LSR_TEMT | (s->count ? LSR_READY : 0);
        s->lsr &= ~LSR_OVERRUN;
        break;
    case REG_MSR: /* in loopback the modem control outputs come back: DTR RTS OUT1 OUT2 -> DSR CTS RI DCD */
        v = s->mcr & MCR_LOOP ? (s->mcr & 1) << 5 | (s->mcr & 2) << 3 | (s->mcr & 4) << 4 | (s->mcr & 8) << 4
                              : MSR_CTS_DSR_DCD;
        break;
    case REG_SCR:
        v = s->scr;
        break;
    }
    update_irq(s);
    return v;
}

static void write_data(struct serial *s, uint8_t c)
{
    if (s->mcr & MCR_LOOP)
        push(s, c);
    else
        console_write(&c, 1);
    s->tx_pending = true; /* sent at once: the holding register is empty again */
}

static void serial_write(struct device *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct serial *s = container_of(dev, struct serial, dev);
    uint8_t v = value, old = s->ier;

    switch (off) {
    case REG_DATA:
        if (s->lcr & LCR_DLAB)
            s->dll = v;
        else
            write_data(s, v);
        break;
    case REG_IER:
        if (s->lcr & LCR_DLAB) {
            s->dlm = v;
            break;
        }
        s->ier = v & 0x0f;
        if ((s->ier & IER_TX) && !(old & IER_TX))
            s->tx_pending = true;
        if ((s->ier & IER_RX) && !(old & IER_RX))
            console_room();
        break;
    case REG_IIR: /* FCR */
        if ((v ^ s->fcr) & FCR_ENABLE || v & FCR_RX_CLEAR)
            clear_fifo(s);
        s->fcr = v & 0xc9;
        break;
    case REG_LCR:
        s->lcr = v;
        break;
    case REG_MCR:
        s->mcr = v & 0x1f;
        console_room();
        break;
    case REG_SCR:
        s->scr = v;
        break;
    }
    update_irq(s);
}

static void serial_reset(struct device *dev)
{
    struct serial *s = container_of(dev, struct serial, dev);

    clear_fifo(s);
    s->ier = s->lcr = s->mcr = s->scr = s->fcr = s->lsr = 0;
    s->dll = 12; /* 9600 baud */
    s->dlm = 0;
    s->tx_pending = false;
    s->head = s->count = 0;
    update_irq(s);
}

unsigned serial_can_receive(struct device *dev)
{
    struct serial *s = container_of(dev, struct serial, dev);
    unsigned room;

    pthread_mutex_lock(&dev->lock);
    /* A probing driver sets all of IER for a moment; one that listens has OUT2 (the interrupt's gate) on too. */
    room = (s->ier & IER_RX) && (s->mcr & (MCR_OUT2 | MCR_LOOP)) == MCR_OUT2 && !s->count
               ? (s->fcr & FCR_ENABLE ? FIFO : 1)
               : 0;
    pthread_mutex_unlock(&dev->lock);
    return room;
}

void serial_receive(struct device *dev, const uint8_t *data, unsigned n)
{
    struct serial *s = container_of(dev, struct serial, dev);

    pthread_mutex_lock(&dev->lock);
    for (unsigned i = 0; i < n; i++)
        push(s, data[i]);
    update_irq(s);
    pthread_mutex_unlock(&dev->lock);
}

static const struct state_field serial_state[] = {
    STATE(struct serial, ier),       STATE(struct serial, lcr),
    STATE(struct serial, mcr),       STATE(struct serial, scr),
    STATE(struct serial, fcr),       STATE(struct serial, dll),
    STATE(struct serial, dlm),       STATE(struct serial, lsr),
    STATE(struct serial, fifo),      STATE(struct serial, head),
    STATE(struct serial, count),     STATE(struct serial, tx_pending),
    STATE(struct serial, irq_level), {NULL, 0, 0},
};
const struct device_type serial_type = {.name = "serial",
                                        .size = sizeof(struct serial),
                                        .widths = W8,
                                        .reset = serial_reset,
                                        .read = serial_read,
                                        .write = serial_write,
                                        .state = serial_state};
