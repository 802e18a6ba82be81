/* SPDX-License-Identifier: MIT
 * kvm_io_bus.c: the buses of iodev.h: arrays sorted by start, replaced as a whole, read under kvm->srcu. */
#include "kvm_host.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define KVM_MAX_IO_RANGES 5000 /* ioeventfds included */

struct kvm_io_range {
    gpa_t start, end; /* end == start: an ioeventfd of any length, matched by its start */
    gpa_t reach;      /* the furthest end of this and all ranges before */
    struct kvm_io_device *dev;
};
struct kvm_io_bus {
    unsigned count;
    struct kvm_io_range range[];
};

/* ---- look-up ---- */
/* The number of ranges that start at or below gpa. */
static unsigned upper_bound(const struct kvm_io_bus *bus, gpa_t gpa)
{
    unsigned low = 0, high = bus->count;

    while (low < high) {
        const unsigned middle = (low + high) / 2;

        if (bus->range[middle].start <= gpa)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool covers(const struct kvm_io_range *r, gpa_t gpa, int len)
{
    return r->start == r->end ? r->start == gpa : gpa + (unsigned)len <= r->end;
}

/* Ranges may overlap (an ioeventfd in a coalesced zone): those that start nearest are asked first, until one takes it.
 */
static int bus_access(struct kvm_vcpu *vcpu, enum kvm_bus nr, gpa_t gpa, int len, void *in, const void *out)
{
    struct srcu *srcu = &vcpu->kvm->srcu;
    const unsigned token = srcu_read_lock(srcu);
    const struct kvm_io_bus *bus = atomic_load(&vcpu->kvm->buses[nr]);
    int r = -EOPNOTSUPP;

    for (unsigned i = bus ? upper_bound(bus, gpa) : 0; i-- > 0 && r == -EOPNOTSUPP && bus->range[i].reach >= gpa;) {
        struct kvm_io_device *dev = bus->range[i].dev;

        if (!covers(&bus->range[i], gpa, len))
            continue;
        if (in)
            r = dev->ops->read ? dev->ops->read(vcpu, dev, gpa, len, in) : -EOPNOTSUPP;
        else
            r = dev->ops->write ? dev->ops->write(vcpu, dev, gpa, len, out) : -EOPNOTSUPP;
    }
    srcu_read_unlock(srcu, token);
    if (!r)
        kvm_stat_io(vcpu, nr == KVM_MMIO_BUS, gpa, out != NULL, false);
    return r;
}

int kvm_io_bus_write(struct kvm_vcpu *vcpu, enum kvm_bus nr, gpa_t gpa, int len, const void *val)
{
    return bus_access(vcpu, nr, gpa, len, NULL, val);
}

int kvm_io_bus_read(struct kvm_vcpu *vcpu, enum kvm_bus nr, gpa_t gpa, int len, void *val)
{
    return bus_access(vcpu, nr, gpa, len, val, NULL);
}

/* ---- changes, under kvm->bus_lock ---- */
static void set_reach(struct kvm_io_bus *bus)
{
    gpa_t reach = 0;

    for (unsigned i = 0; i < bus->count; i++) {
        if (bus->range[i].end > reach)
            reach = bus->range[i].end;
        bus->range[i].reach = reach;
    }
}

static struct kvm_io_bus *bus_alloc(unsigned count)
{
    struct kvm_io_bus *bus = calloc(1, sizeof(*bus) + count * sizeof(bus->range[0]));

    if (bus)
        bus->count = count;
    return bus;
}

static void publish(struct kvm *kvm, enum kvm_bus nr, struct kvm_io_bus *new)
{
    struct kvm_io_bus *old;

    set_reach(new);
    old = atomic_exchange(&kvm->buses[nr], new);
    srcu_synchronize(&kvm->srcu);
    free(old);
}

int kvm_io_bus_register_dev(struct kvm *kvm, enum kvm_bus nr, gpa_t gpa, int len, struct kvm_io_device *dev)
{
    const struct kvm_io_bus *old;
    struct kvm_io_bus *new;
    unsigned at, count;
    int err = 0;

    pthread_mutex_lock(&kvm->bus_lock);
    old = atomic_load(&kvm->buses[nr]);
    count = old ? old->count : 0;
    new = count < KVM_MAX_IO_RANGES ? bus_alloc(count + 1) : NULL;
    if (!new) {
        err = count < KVM_MAX_IO_RANGES ? -ENOMEM : -ENOSPC;
    } else {
        at = old ? upper_bound(old, gpa) : 0;
        if (old) {
            memcpy(new->range, old->range, at * sizeof(new->range[0]));
            memcpy(new->range + at + 1, old->range + at, (count - at) * sizeof(new->range[0]));
        }
        new->range[at] = (struct kvm_io_range){.start = gpa, .end = gpa + (unsigned)len, .dev = dev};
        publish(kvm, nr, new);
    }
    pthread_mutex_unlock(&kvm->bus_lock);
    return err;
}

int kvm_io_bus_unregister_dev(struct kvm *kvm, enum kvm_bus nr, struct kvm_io_device *dev)
{
    const struct kvm_io_bus *old;
    struct kvm_io_bus *new;
    int err = 0;

    pthread_mutex_lock(&kvm->bus_lock);
    old = atomic_load(&kvm->buses[nr]);
    new = old ? bus_alloc(old->count) : NULL;
    if (old && !new) {
        err = -ENOMEM;
    } else if (old) {
        new->count = 0;
        for (unsigned i = 0; i < old->count; i++)
            if (old->range[i].dev != dev)
                new->range[new->count++] = old->range[i];
        publish(kvm, nr, new);
    }
    pthread_mutex_unlock(&kvm->bus_lock);
    if (!err && dev->ops->destructor)
        dev->ops->destructor(dev);
    return err;
}

/* The VM goes: no thread is in it any more. A device with several ranges is destroyed once. */
void kvm_io_bus_destroy(struct kvm *kvm)
{
    for (unsigned nr = 0; nr < KVM_NR_BUSES; nr++) {
        struct kvm_io_bus *bus = atomic_exchange(&kvm->buses[nr], NULL);

        for (unsigned i = 0; bus && i < bus->count; i++) {
            struct kvm_io_device *dev = bus->range[i].dev;

            if (!dev)
                continue;
            for (unsigned j = i + 1; j < bus->count; j++)
                if (bus->range[j].dev == dev)
                    bus->range[j].dev = NULL;
            if (dev->ops->destructor)
                dev->ops->destructor(dev);
        }
        free(bus);
    }
}
