/* SPDX-License-Identifier: MIT
 * platform.c: small devices of the board: keyboard controller (no keyboard: it answers its self-test and resets the
 * machine), reset port 0xcf9, ACPI power management, debug port. */
#include "vmm.h"
#include <stdio.h>
#include <time.h>

/* ---- i8042: ports 0x60 and 0x64 ---- */
#define KBD_STATUS_OUT      0x01
#define KBD_STATUS_SYS      0x04
#define KBD_STATUS_CMD      0x08
#define KBD_STATUS_UNLOCKED 0x10

struct i8042 {
    struct device dev;
    uint8_t status, ctr, out, cmd;
};

static void reply(struct i8042 *k, uint8_t v)
{
    k->out = v;
    k->status |= KBD_STATUS_OUT;
}

static uint64_t i8042_read(struct device *dev, uint64_t off, unsigned size)
{
    struct i8042 *k = container_of(dev, struct i8042, dev);

    if (off == 4)
        return k->status;
    if (off != 0)
        return 0xff;
    k->status &= ~KBD_STATUS_OUT;
    return k->out;
}

static void i8042_command(struct i8042 *k, uint8_t v)
{
    k->cmd = 0;
    switch (v) {
    case 0x20: /* read the command byte */
        reply(k, k->ctr);
        break;
    case 0x60: /* write it: the data byte follows */
    case 0xd1: /* output port */
    case 0xd2: /* write keyboard output buffer */
    case 0xd3:
    case 0xd4: /* to the mouse */
        k->cmd = v;
        break;
    case 0xa9: /* test the mouse's port */
    case 0xab: /* test the keyboard's port */
        reply(k, 0);
        break;
    case 0xaa: /* self-test */
        reply(k, 0x55);
        break;
    case 0xd0:
        reply(k, 0x03);
        break;
    case 0xf0 ... 0xff: /* pulse output lines; bit 0 low is the reset line */
        if (!(v & 1))
            machine_request(k->dev.machine, REQ_RESET);
        break;
    }
}

static void i8042_write(struct device *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct i8042 *k = container_of(dev, struct i8042, dev);

    if (off == 4) {
        k->status |= KBD_STATUS_CMD;
        i8042_command(k, value);
    } else if (off == 0) {
        uint8_t cmd = k->cmd;
        k->status &= ~KBD_STATUS_CMD;
        k->cmd = 0;
        if (cmd == 0x60)
            k->ctr = value;
        else if (cmd == 0xd1 && !(value & 1))
            machine_request(k->dev.machine, REQ_RESET);
        else if (cmd == 0xd2 || cmd == 0xd3)
            reply(k, value);
        /* other bytes go to a keyboard or mouse: none is there, none answers */
    }
}

static void i8042_reset(struct device *dev)
{
    struct i8042 *k = container_of(dev, struct i8042, dev);

    k->status = KBD_STATUS_SYS | KBD_STATUS_UNLOCKED;
    k->ctr = 0x74; /* ports disabled, no interrupts */
    k->out = k->cmd = 0;
}

static const struct state_field i8042_state[] = {STATE(struct i8042, status),
                                                 STATE(struct i8042, ctr),
                                                 STATE(struct i8042, out),
                                                 STATE(struct i8042, cmd),
                                                 {NULL, 0, 0}};
const struct device_type i8042_type = {.name = "i8042",
                                       .size = sizeof(struct i8042),
                                       .widths = W8,
                                       .reset = i8042_reset,
                                       .read = i8042_read,
                                       .write = i8042_write,
                                       .state = i8042_state};

/* ---- port 0xcf9 and ACPI's reset register ---- */
struct reset_port {
    struct device dev;
    uint8_t value;
};

static uint64_t reset_read(struct device *dev, uint64_t off, unsigned size)
{
    return container_of(dev, struct reset_port, dev)->value;
}

static void reset_write(struct device *dev, uint64_t off, unsigned size, uint64_t value)
{
    container_of(dev, struct reset_port, dev)->value = value & ~4;
    if (value & 4)
        machine_request(dev->machine, REQ_RESET);
}

static const struct state_field reset_state[] = {STATE(struct reset_port, value), {NULL, 0, 0}};
const struct device_type reset_type = {.name = "reset",
                                       .size = sizeof(struct reset_port),
                                       .widths = W8,
                                       .read = reset_read,
                                       .write = reset_write,
                                       .state = reset_state};

/* ---- ACPI power management (ACPI 6.4, "ACPI Hardware Specification"): PM1 event at 0, control at 4, timer at 8 ----
 */
#define PM1_SCI_EN     0x0001
#define PM1_SLP_EN     0x2000
#define PM1_SLP_TYP(v) ((v) >> 10 & 7)

#define PM_TIMER_HZ 3579545ull

struct acpi_pm {
    struct device dev;
    uint16_t status, enable, control;
};

static uint64_t acpi_pm_read(struct device *dev, uint64_t off, unsigned size)
{
    struct acpi_pm *p = container_of(dev, struct acpi_pm, dev);
    struct timespec t;

    switch (off) {
    case 0:
        return size == 4 ? p->status | (uint32_t)p->enable << 16 : p->status;
    case 2:
        return p->enable;
    case 4:
        return p->control;
    case 8: /* 24 bits */
        clock_gettime(CLOCK_MONOTONIC, &t);
        return ((uint64_t)t.tv_sec * PM_TIMER_HZ + (uint64_t)t.tv_nsec * PM_TIMER_HZ / 1000000000) & 0xffffff;
    default:
        return 0;
    }
}

static void acpi_pm_write(struct device *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct acpi_pm *p = container_of(dev, struct acpi_pm, dev);

    switch (off) {
    case 0:
        p->status &= ~value; /* write one to clear */
        if (size == 4)
            p->enable = value >> 16;
        break;
    case 2:
        p->enable = value;
        break;
    case 4:
        p->control = (value & ~PM1_SLP_EN) | PM1_SCI_EN;
        if ((value & PM1_SLP_EN) && PM1_SLP_TYP(value) == SLP_TYP_S5)
            machine_request(dev->machine, REQ_SHUTDOWN);
        break;
    }
}

static void acpi_pm_reset(struct device *dev)
{
    struct acpi_pm *p = container_of(dev, struct acpi_pm, dev);

    p->status = p->enable = 0;
    p->control = PM1_SCI_EN; /* ACPI mode from the start: there is no SMI command port */
}

static const struct state_field acpi_pm_state[] = {
    STATE(struct acpi_pm, status), STATE(struct acpi_pm, enable), STATE(struct acpi_pm, control), {NULL, 0, 0}};
const struct device_type acpi_pm_type = {.name = "acpi-pm",
                                         .size = sizeof(struct acpi_pm),
                                         .widths = W16 | W32,
                                         .reset = acpi_pm_reset,
                                         .read = acpi_pm_read,
                                         .write = acpi_pm_write,
                                         .state = acpi_pm_state};

/* ---- debug port 0xe9: reads 0xe9 when it is there, writes go to stderr (Bochs's and QEMU's convention) ---- */
static uint64_t debugcon_read(struct device *dev, uint64_t off, unsigned size)
{
    return 0xe9;
}

static void debugcon_write(struct device *dev, uint64_t off, unsigned size, uint64_t value)
{
    fputc((int)value, stderr);
}

const struct device_type debugcon_type = {
    .name = "debugcon", .size = sizeof(struct device), .widths = W8, .read = debugcon_read, .write = debugcon_write};
