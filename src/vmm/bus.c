/* SPDX-License-Identifier: MIT
 * bus.c: port and memory-mapped regions: finds the device, enforces widths, answers absent reads with ones. */
#include "vmm.h"
#include <stdlib.h>
#include <string.h>

int bus_add(struct machine *m, const struct device_row *row)
{
    struct device *dev = calloc(1, row->type->size);

    if (!dev || m->ndevices == ARRAY_SIZE(m->devices)) {
        free(dev);
        return vmm_error("%s: no memory", row->type->name);
    }
    dev->type = row->type;
    dev->machine = m;
    dev->bus = row->bus;
    dev->base = row->base;
    dev->len = row->len;
    dev->irq = row->irq;
    pthread_mutex_init(&dev->lock, NULL);
    if (dev->type->init && dev->type->init(dev) < 0) {
        free(dev);
        return -1;
    }
    if (dev->type->reset)
        dev->type->reset(dev);
    m->devices[m->ndevices++] = dev;
    return 0;
}

static struct device *find(struct machine *m, enum bus bus, uint64_t where)
{
    for (unsigned i = 0; i < m->ndevices; i++) {
        struct device *dev = m->devices[i];
        if (dev->bus == bus && where - dev->base < dev->len)
            return dev;
    }
    return NULL;
}

struct device *bus_find(struct machine *m, const char *name)
{
    for (unsigned i = 0; i < m->ndevices; i++)
        if (strcmp(m->devices[i]->type->name, name) == 0)
            return m->devices[i];
    return NULL;
}

/* One access, or one byte at a time where the device has no such width but takes bytes (as an ISA bus splits them). */
static void device_access(struct device *dev, uint64_t off, unsigned size, bool write, uint8_t *data)
{
    const bool takes = !(size & (size - 1)) && (dev->type->widths & size); /* W8 to W64 are the sizes themselves */
    uint64_t value = 0;

    if (off + size > dev->len || !takes) {
        if (size == 1 || !(dev->type->widths & W8)) {
            if (!write)
                memset(data, 0xff, size);
            return;
        }
        for (unsigned i = 0; i < size; i++)
            bus_access(dev->machine, dev->bus, dev->base + off + i, 1, write, data + i);
        return;
    }
    pthread_mutex_lock(&dev->lock);
    if (write) {
        memcpy(&value, data, size);
        if (dev->type->write)
            dev->type->write(dev, off, size, value);
    } else {
        value = dev->type->read ? dev->type->read(dev, off, size) : ~0ull;
        memcpy(data, &value, size);
    }
    pthread_mutex_unlock(&dev->lock);
}

void bus_access(struct machine *m, enum bus bus, uint64_t where, unsigned size, bool write, void *data)
{
    struct device *dev = find(m, bus, where);

    if (dev)
        device_access(dev, where - dev->base, size, write, data);
    else if (!write)
        memset(data, 0xff, size);
}

void bus_reset(struct machine *m)
{
    for (unsigned i = 0; i < m->ndevices; i++) {
        struct device *dev = m->devices[i];
        pthread_mutex_lock(&dev->lock);
        if (dev->type->reset)
            dev->type->reset(dev);
        pthread_mutex_unlock(&dev->lock);
    }
}
