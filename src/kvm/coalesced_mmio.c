/* SPDX-License-Identifier: MIT
 * coalesced_mmio.c: zones whose writes wait in a ring for the next exit (api.rst, KVM_REGISTER_COALESCED_MMIO). The
 * ring is shared with the client: nothing that is read from it is trusted. */
#include "kvm_host.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct zone {
    struct kvm_io_device dev;
    struct kvm *kvm;
    struct kvm_coalesced_mmio_zone zone;
    struct zone *next;
};
struct kvm_coalesced {
    pthread_mutex_t lock;      /* the list of zones */
    pthread_mutex_t ring_lock; /* writers of the ring */
    struct zone *zones;
};

static bool in_zone(const struct kvm_coalesced_mmio_zone *z, gpa_t gpa, uint64_t len)
{
    return gpa >= z->addr && gpa - z->addr <= z->size && len <= z->size - (gpa - z->addr);
}

/* -EOPNOTSUPP: the ring is full, or not there yet; the access becomes an exit, which empties the ring. */
static int zone_write(struct kvm_vcpu *vcpu, struct kvm_io_device *dev, gpa_t gpa, int len, const void *val)
{
    struct zone *z = container_of(dev, struct zone, dev);
    struct kvm_coalesced_mmio_ring *ring = z->kvm->coalesced_ring;
    uint32_t last, next;
    int r = -EOPNOTSUPP;

    if (!ring || len > 8 || !in_zone(&z->zone, gpa, (unsigned)len))
        return -EOPNOTSUPP;
    pthread_mutex_lock(&z->kvm->coalesced->ring_lock);
    last = __atomic_load_n(&ring->last, __ATOMIC_RELAXED);
    next = (last + 1) % KVM_COALESCED_MMIO_MAX;
    if (last < KVM_COALESCED_MMIO_MAX && next != __atomic_load_n(&ring->first, __ATOMIC_ACQUIRE)) {
        struct kvm_coalesced_mmio *e = &ring->coalesced_mmio[last];

        e->phys_addr = gpa;
        e->len = (uint32_t)len;
        e->pio = z->zone.pio;
        memcpy(e->data, val, (size_t)len);
        __atomic_store_n(&ring->last, next, __ATOMIC_RELEASE);
        r = 0;
    }
    pthread_mutex_unlock(&z->kvm->coalesced->ring_lock);
    return r;
}

static void zone_free(struct kvm_io_device *dev)
{
    free(container_of(dev, struct zone, dev));
}

static const struct kvm_io_device_ops zone_ops = {.write = zone_write, .destructor = zone_free};

int kvm_coalesced_mmio_init(struct kvm *kvm)
{
    kvm->coalesced = calloc(1, sizeof(*kvm->coalesced));
    if (!kvm->coalesced)
        return -ENOMEM;
    pthread_mutex_init(&kvm->coalesced->lock, NULL);
    pthread_mutex_init(&kvm->coalesced->ring_lock, NULL);
    return 0;
}

/* The zones went with the buses. */
void kvm_coalesced_mmio_free(struct kvm *kvm)
{
    free(kvm->coalesced);
    kvm->coalesced = NULL;
}

int kvm_vm_ioctl_register_coalesced_mmio(struct kvm *kvm, const struct kvm_coalesced_mmio_zone *zone)
{
    struct zone *z;
    int err;

    if (zone->pio > 1)
        return -EINVAL;
    z = calloc(1, sizeof(*z));
    if (!z)
        return -ENOMEM;
    *z = (struct zone){.dev.ops = &zone_ops, .kvm = kvm, .zone = *zone};
    pthread_mutex_lock(&kvm->coalesced->lock);
    err = kvm_io_bus_register_dev(kvm, zone->pio ? KVM_PIO_BUS : KVM_MMIO_BUS, zone->addr, (int)zone->size, &z->dev);
    if (err) {
        free(z);
    } else {
        z->next = kvm->coalesced->zones;
        kvm->coalesced->zones = z;
    }
    pthread_mutex_unlock(&kvm->coalesced->lock);
    return err;
}

/* Every zone that holds the range goes; that none does is no error. */
int kvm_vm_ioctl_unregister_coalesced_mmio(struct kvm *kvm, const struct kvm_coalesced_mmio_zone *zone)
{
    struct zone **at;
    int err = 0;

    if (zone->pio > 1)
        return -EINVAL;
    pthread_mutex_lock(&kvm->coalesced->lock);
    for (at = &kvm->coalesced->zones; *at;) {
        struct zone *z = *at, *next = z->next;

        if (z->zone.pio == zone->pio && in_zone(&z->zone, zone->addr, zone->size)) {
            err = kvm_io_bus_unregister_dev(kvm, zone->pio ? KVM_PIO_BUS : KVM_MMIO_BUS, &z->dev); /* frees it */
            if (err)
                break;
            *at = next;
        } else {
            at = &z->next;
        }
    }
    pthread_mutex_unlock(&kvm->coalesced->lock);
    return err;
}
