/* SPDX-License-Identifier: MIT
 * test_routing.c: GSIs and messages to local APICs (api.rst, KVM_SET_GSI_ROUTING, KVM_SIGNAL_MSI), the I/O buses and
 * coalesced zones. */
#include "irq_vm.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MSI_ADDRESS(dest) (0xfee00000u | (dest) << 12)

static struct kvm_irq_routing_entry irqchip(unsigned gsi, unsigned chip, unsigned pin)
{
    return (struct kvm_irq_routing_entry){
        .gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = {.irqchip = chip, .pin = pin}};
}

static struct kvm_irq_routing_entry msi(unsigned gsi, uint32_t address_lo, uint32_t data)
{
    return (struct kvm_irq_routing_entry){
        .gsi = gsi, .type = KVM_IRQ_ROUTING_MSI, .u.msi = {.address_lo = address_lo, .data = data}};
}

static void default_routes(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];

    apic_on(v);
    io_redir(v, 4, 0x44);
    io_redir(v, 20, 0x54);
    assert_int_equal(kvm_set_irq(kvm, 0, 4, 1, false), 2); /* PIC and IOAPIC */
    assert_true(kvm_pic_output(kvm));
    assert_true(apic_bit(v, APIC_IRR, 0x44));
    assert_int_equal(kvm_set_irq(kvm, 0, 20, 1, false), 1);
    assert_int_equal(kvm_set_irq(kvm, 0, 24, 1, false), -1);
    assert_int_equal(kvm_set_irq(kvm, 0, ~0u, 1, false), -1);
    vm_free(kvm);
}

static void bad_tables(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_irq_routing_entry sint = {.gsi = 1, .type = KVM_IRQ_ROUTING_HV_SINT};
    struct kvm_irq_routing_entry flags = msi(1, MSI_ADDRESS(0), 0x41);
    struct {
        struct kvm_irq_routing_entry e[2];
        unsigned n;
    } rows[] = {
        {{irqchip(4096, 2, 0)}, 1}, /* GSI too high */
        {{irqchip(1, 0, 8)}, 1},    /* no such pin */
        {{irqchip(1, 2, 24)}, 1},
        {{irqchip(1, 3, 0)}, 1},                   /* no such chip */
        {{irqchip(1, 2, 0), irqchip(1, 2, 1)}, 2}, /* two pins of one chip */
        {{irqchip(1, 2, 0), msi(1, MSI_ADDRESS(0), 0x41)}, 2},
        {{msi(1, MSI_ADDRESS(0), 0x41), msi(1, MSI_ADDRESS(0), 0x42)}, 2},
        {{sint}, 1},
        {{flags}, 1},
    };

    rows[8].e[0].flags = KVM_MSI_VALID_DEVID;
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        assert_int_equal(kvm_set_irq_routing(kvm, rows[i].e, rows[i].n, 0), -EINVAL);
    assert_int_equal(kvm_set_irq_routing(kvm, rows[0].e, 0, 1), -EINVAL);
    apic_on(kvm->vcpus[0]); /* the table before is in force */
    io_redir(kvm->vcpus[0], 4, 0x44);
    assert_int_equal(kvm_set_irq(kvm, 0, 4, 1, false), 2);
    vm_free(kvm);
}

static void messages(void **state)
{
    struct kvm *kvm = vm_new(2);
    struct kvm_irq_routing_entry e[] = {msi(30, MSI_ADDRESS(1), 0x51), irqchip(3, KVM_IRQCHIP_IOAPIC, 7)};
    struct kvm_msi m = {.address_lo = MSI_ADDRESS(1), .data = 0x61};

    apic_on(kvm->vcpus[1]);
    assert_int_equal(kvm_set_irq_routing(kvm, e, 2, 0), 0);
    assert_int_equal(kvm_set_irq(kvm, 0, 30, 1, false), 1);
    assert_int_equal(kvm_set_irq(kvm, 0, 30, 0, false), -1);
    assert_int_equal(kvm_get_apic_interrupt(kvm->vcpus[1]), 0x51);
    apic_w(kvm->vcpus[1], APIC_EOI, 0);
    assert_int_equal(kvm_send_userspace_msi(kvm, &m), 1);
    assert_int_equal(kvm_get_apic_interrupt(kvm->vcpus[1]), 0x61);
    apic_w(kvm->vcpus[1], APIC_EOI, 0);
    m.address_lo = MSI_ADDRESS(0); /* disabled there */
    assert_int_equal(kvm_send_userspace_msi(kvm, &m), 0);
    m.address_lo = MSI_ADDRESS(5); /* nobody */
    assert_int_equal(kvm_send_userspace_msi(kvm, &m), -1);
    m.flags = 1;
    assert_int_equal(kvm_send_userspace_msi(kvm, &m), -EINVAL);
    m = (struct kvm_msi){.address_lo = MSI_ADDRESS(0xff), .data = 0x61};
    to_x2apic(kvm->vcpus[1]); /* a device's 0xff is everybody */
    assert_int_equal(kvm_send_userspace_msi(kvm, &m), 1);
    m.address_hi = 1;
    kvm->arch.x2apic_format = true;
    assert_int_equal(kvm_send_userspace_msi(kvm, &m), -EINVAL);
    m.address_hi = 0x100;
    assert_int_equal(kvm_send_userspace_msi(kvm, &m), -1); /* 0x1ff */
    vm_free(kvm);
}

static void split_irqchip(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];
    struct kvm_irq_routing_entry chip = irqchip(1, 2, 1);
    struct kvm_irq_routing_entry e[] = {msi(5, MSI_ADDRESS(0), 0x45 | 1 << 15), msi(6, MSI_ADDRESS(0), 0x46),
                                        msi(30, MSI_ADDRESS(0), 0x47 | 1 << 15)};

    kvm_pic_destroy(kvm);
    kvm_ioapic_destroy(kvm);
    kvm->arch.irqchip_kernel = false;
    kvm->arch.irqchip_split = true;
    kvm->arch.nr_irqs_reserved = 24;
    apic_on(v);
    assert_int_equal(kvm_set_irq_routing(kvm, &chip, 1, 0), -EINVAL);
    assert_int_equal(kvm_set_irq_routing(kvm, e, 3, 0), 0);
    for (unsigned gsi = 5; gsi < 7; gsi++) {
        assert_int_equal(kvm_set_irq(kvm, 0, gsi, 1, false), 1);
        assert_int_equal(kvm_get_apic_interrupt(v), 0x40 + gsi);
        v->requests = 0;
        apic_w(v, APIC_EOI, 0);
        assert_int_equal(v->requests >> KVM_REQ_IOAPIC_EOI_EXIT & 1, gsi == 5); /* edges are not reported */
    }
    assert_int_equal(v->arch.pending_ioapic_eoi, 0x45);
    kvm_lapic_reset(
        v, true); /* the version register tells of directed EOIs now: with them the guest tells the IOAPIC itself */
    assert_true(apic_r(v, APIC_LVR) & APIC_LVR_DIRECTED_EOI);
    apic_w(v, APIC_SPIV, 0x1ff | APIC_SPIV_DIRECTED_EOI);
    assert_int_equal(kvm_set_irq(kvm, 0, 5, 1, false), 1);
    assert_int_equal(kvm_get_apic_interrupt(v), 0x45);
    v->requests = 0;
    apic_w(v, APIC_EOI, 0);
    assert_false(v->requests >> KVM_REQ_IOAPIC_EOI_EXIT & 1);
    assert_false(kvm_split_handles_vector(kvm, 0x47)); /* not one of the reserved GSIs */
    assert_int_equal(kvm_vcpu_ioctl_interrupt(v, 0x30), 0);
    assert_int_equal(kvm_vcpu_ioctl_interrupt(v, 0x31), -EEXIST);
    apic_w(v, APIC_LVT0, APIC_DM_EXTINT);
    assert_int_equal(kvm_cpu_get_interrupt(v), 0x30);
    assert_false(kvm_cpu_has_interrupt(v));
    vm_free(kvm);
}

/* ---- buses ---- */
struct probe {
    struct kvm_io_device dev;
    int answer, hits, gone;
};

static int probe_write(struct kvm_vcpu *v, struct kvm_io_device *dev, gpa_t gpa, int len, const void *val)
{
    struct probe *p = container_of(dev, struct probe, dev);

    p->hits++;
    return p->answer;
}

static void probe_gone(struct kvm_io_device *dev)
{
    container_of(dev, struct probe, dev)->gone++;
}

static const struct kvm_io_device_ops probe_ops = {.write = probe_write, .destructor = probe_gone};

static void bus_look_up(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];
    struct probe wide = {{&probe_ops}}, inner = {{&probe_ops}, -EOPNOTSUPP}, other = {{&probe_ops}};
    uint64_t data = 0;

    kvm_io_bus_register_dev(kvm, KVM_MMIO_BUS, 0x1000, 0x1000, &wide.dev);
    kvm_io_bus_register_dev(kvm, KVM_MMIO_BUS, 0x1800, 4, &inner.dev);
    kvm_io_bus_register_dev(kvm, KVM_MMIO_BUS, 0x1810, 0, &other.dev); /* any length */
    assert_int_equal(kvm_io_bus_write(v, KVM_MMIO_BUS, 0x1800, 4, &data), 0);
    assert_int_equal(inner.hits, 1); /* asked first, declined */
    assert_int_equal(wide.hits, 1);
    assert_int_equal(kvm_io_bus_write(v, KVM_MMIO_BUS, 0x1810, 8, &data), 0);
    assert_int_equal(other.hits, 1);
    assert_int_equal(kvm_io_bus_write(v, KVM_MMIO_BUS, 0x1ff8, 8, &data), 0);
    assert_int_equal(wide.hits, 2);
    assert_int_equal(kvm_io_bus_write(v, KVM_MMIO_BUS, 0x1ffc, 8, &data), -EOPNOTSUPP); /* crosses its end */
    assert_int_equal(kvm_io_bus_write(v, KVM_MMIO_BUS, 0xfff, 1, &data), -EOPNOTSUPP);
    assert_int_equal(kvm_io_bus_write(v, KVM_PIO_BUS, 0x1800, 4, &data), -EOPNOTSUPP);
    assert_int_equal(kvm_io_bus_read(v, KVM_MMIO_BUS, 0x1800, 4, &data), -EOPNOTSUPP);
    kvm_io_bus_unregister_dev(kvm, KVM_MMIO_BUS, &wide.dev);
    assert_int_equal(wide.gone, 1);
    assert_int_equal(kvm_io_bus_write(v, KVM_MMIO_BUS, 0x1800, 4, &data), -EOPNOTSUPP);
    vm_free(kvm);
    assert_int_equal(inner.gone + other.gone, 2);
}

struct bus_race {
    struct kvm *kvm;
    _Atomic bool stop;
};

static void *bus_reader(void *arg)
{
    struct bus_race *r = arg;
    uint32_t data = 0;

    while (!atomic_load(&r->stop))
        kvm_io_bus_write(r->kvm->vcpus[0], KVM_MMIO_BUS, 0x2000, 4, &data);
    return NULL;
}

/* Devices come and go under a reader: each is freed when nobody is in it (ASan and TSan watch). */
static void bus_changes_under_readers(void **state)
{
    struct bus_race r = {.kvm = vm_new(1)};
    pthread_t thread;

    os_thread_start("reader", bus_reader, &r, &thread);
    for (int i = 0; i < 300; i++) {
        struct probe *p = calloc(1, sizeof(*p));

        p->dev.ops = &probe_ops;
        kvm_io_bus_register_dev(r.kvm, KVM_MMIO_BUS, 0x2000, 4, &p->dev);
        kvm_io_bus_unregister_dev(r.kvm, KVM_MMIO_BUS, &p->dev);
        assert_int_equal(p->gone, 1);
        free(p);
    }
    atomic_store(&r.stop, true);
    os_thread_join(&thread);
    vm_free(r.kvm);
}

/* ---- coalesced zones ---- */
static void coalesced_ring_fills(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];
    struct kvm_coalesced_mmio_ring *ring = calloc(1, PAGE_SIZE);
    struct kvm_coalesced_mmio_zone zone = {.addr = 0xa0000, .size = 0x100}, ports = {.addr = 0x70, .size = 1, .pio = 1};
    uint32_t data = 0x11223344, n = 0;

    assert_int_equal(kvm_vm_ioctl_register_coalesced_mmio(kvm, &zone), 0);
    assert_int_equal(kvm_io_bus_write(v, KVM_MMIO_BUS, 0xa0000, 4, &data), -EOPNOTSUPP); /* no ring yet */
    kvm->coalesced_ring = ring;
    while (kvm_io_bus_write(v, KVM_MMIO_BUS, 0xa0000 + n % 64 * 4, 4, &data) == 0)
        n++;
    assert_int_equal(n, KVM_COALESCED_MMIO_MAX - 1);
    assert_int_equal(ring->coalesced_mmio[5].phys_addr, 0xa0014);
    assert_int_equal(ring->coalesced_mmio[5].len, 4);
    assert_memory_equal(ring->coalesced_mmio[5].data, &data, 4);
    ring->first = 1; /* the client took one */
    assert_int_equal(kvm_io_bus_write(v, KVM_MMIO_BUS, 0xa0000, 4, &data), 0);
    assert_int_equal(kvm_io_bus_write(v, KVM_MMIO_BUS, 0xa0000, 4, &data), -EOPNOTSUPP);
    ring->last = 0xffffffff; /* a hostile one */
    assert_int_equal(kvm_io_bus_write(v, KVM_MMIO_BUS, 0xa0000, 4, &data), -EOPNOTSUPP);
    ring->first = ring->last = 0;
    assert_int_equal(kvm_io_bus_write(v, KVM_MMIO_BUS, 0xa00fe, 4, &data), -EOPNOTSUPP); /* crosses the end */
    assert_int_equal(kvm_vm_ioctl_register_coalesced_mmio(kvm, &ports), 0);
    assert_int_equal(kvm_io_bus_write(v, KVM_PIO_BUS, 0x70, 1, &data), 0);
    assert_int_equal(ring->coalesced_mmio[0].pio, 1);
    assert_int_equal(kvm_vm_ioctl_unregister_coalesced_mmio(kvm, &zone), 0);
    assert_int_equal(kvm_vm_ioctl_unregister_coalesced_mmio(kvm, &zone), 0);
    assert_int_equal(kvm_io_bus_write(v, KVM_MMIO_BUS, 0xa0000, 4, &data), -EOPNOTSUPP);
    assert_int_equal(kvm_io_bus_write(v, KVM_PIO_BUS, 0x70, 1, &data), 0);
    zone.pio = 2;
    assert_int_equal(kvm_vm_ioctl_register_coalesced_mmio(kvm, &zone), -EINVAL);
    vm_free(kvm);
    free(ring);
}

/* Tables are replaced while interrupts go through them. */
static void *router(void *arg)
{
    struct bus_race *r = arg;

    while (!atomic_load(&r->stop))
        kvm_set_irq(r->kvm, 0, 30, 1, false);
    return NULL;
}

static void routing_changes_under_interrupts(void **state)
{
    struct bus_race r = {.kvm = vm_new(1)};
    struct kvm_irq_routing_entry a = msi(30, MSI_ADDRESS(0), 0x51), b = msi(30, MSI_ADDRESS(0), 0x52);
    pthread_t thread;

    apic_on(r.kvm->vcpus[0]);
    os_thread_start("router", router, &r, &thread);
    for (int i = 0; i < 300; i++)
        assert_int_equal(kvm_set_irq_routing(r.kvm, i & 1 ? &a : &b, 1, 0), 0);
    while (kvm_get_apic_interrupt(r.kvm->vcpus[0]) != 0x51) /* the last one serves */
        apic_w(r.kvm->vcpus[0], APIC_EOI, 0);
    atomic_store(&r.stop, true);
    os_thread_join(&thread);
    vm_free(r.kvm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(default_routes),
        cmocka_unit_test(bad_tables),
        cmocka_unit_test(messages),
        cmocka_unit_test(split_irqchip),
        cmocka_unit_test(bus_look_up),
        cmocka_unit_test(bus_changes_under_readers),
        cmocka_unit_test(coalesced_ring_fills),
        cmocka_unit_test(routing_changes_under_interrupts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
