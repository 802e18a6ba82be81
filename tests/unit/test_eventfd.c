/* SPDX-License-Identifier: MIT
 * test_eventfd.c: irqfds and ioeventfds (api.rst, KVM_IRQFD, KVM_IOEVENTFD), end to end with the epoll thread. */
#include "irq_vm.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static void ring(int fd)
{
    const uint64_t one = 1;

    assert_int_equal(write(fd, &one, 8), 8);
}

static uint64_t count_of(int fd)
{
    uint64_t count = 0;

    return read(fd, &count, 8) == 8 ? count : 0; /* EFD_NONBLOCK */
}

static bool has_interrupt(void *arg)
{
    return kvm_apic_has_interrupt(arg) >= 0;
}

static bool readable(void *arg)
{
    struct pollfd p = {.fd = *(int *)arg, .events = POLLIN};

    return poll(&p, 1, 0) == 1;
}

static int take(struct kvm_vcpu *v)
{
    if (!wait_until(has_interrupt, v, 5000))
        return -1;
    return kvm_get_apic_interrupt(v);
}

static struct kvm *irqfd_vm(void)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_irq_routing_entry e[] = {
        {.gsi = 30, .type = KVM_IRQ_ROUTING_MSI, .u.msi = {.address_lo = 0xfee00000, .data = 0x51}},
        {.gsi = 10, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = {.irqchip = KVM_IRQCHIP_IOAPIC, .pin = 10}},
    };

    assert_int_equal(kvm_set_irq_routing(kvm, e, 2, 0), 0);
    apic_on(kvm->vcpus[0]);
    return kvm;
}

static void irqfd_end_to_end(void **state)
{
    struct kvm *kvm = irqfd_vm();
    struct kvm_vcpu *v = kvm->vcpus[0];
    const int fd = eventfd(0, 0); /* a blocking one */
    struct kvm_irqfd args = {.fd = (uint32_t)fd, .gsi = 30};

    ring(fd); /* before it is assigned: an interrupt at once */
    assert_int_equal(kvm_irqfd(kvm, &args), 0);
    assert_int_equal(kvm_irqfd(kvm, &args), -EBUSY);
    assert_int_equal(take(v), 0x51);
    apic_w(v, APIC_EOI, 0);
    for (int i = 0; i < 50; i++) {
        ring(fd);
        assert_int_equal(take(v), 0x51);
        apic_w(v, APIC_EOI, 0);
    }
    args.flags = KVM_IRQFD_FLAG_DEASSIGN;
    args.gsi = 31;
    assert_int_equal(kvm_irqfd(kvm, &args), 0); /* another GSI: nothing happens */
    args.gsi = 30;
    args.fd = (uint32_t)dup(fd); /* the same eventfd by another number */
    assert_int_equal(kvm_irqfd(kvm, &args), 0);
    ring(fd);
    assert_false(wait_until(has_interrupt, v, 20));
    close((int)args.fd);
    close(fd);
    vm_free(kvm);
}

static void irqfd_errors(void **state)
{
    struct kvm *kvm = irqfd_vm();
    int fds[2], fd = eventfd(0, 0);
    struct kvm_irqfd args = {.fd = 9999, .gsi = 30};

    assert_int_equal(kvm_irqfd(kvm, &args), -EBADF);
    assert_int_equal(pipe(fds), 0);
    args.fd = (uint32_t)fds[0];
    assert_int_equal(kvm_irqfd(kvm, &args), -EINVAL);
    args.fd = (uint32_t)fd;
    args.flags = 4;
    assert_int_equal(kvm_irqfd(kvm, &args), -EINVAL);
    args.flags = KVM_IRQFD_FLAG_RESAMPLE;
    args.resamplefd = (uint32_t)fds[0];
    assert_int_equal(kvm_irqfd(kvm, &args), -EINVAL);
    args.resamplefd = 9999;
    assert_int_equal(kvm_irqfd(kvm, &args), -EBADF);
    kvm_pic_destroy(kvm);
    kvm_ioapic_destroy(kvm);
    args.flags = 0;
    assert_int_equal(kvm_irqfd(kvm, &args), -EAGAIN);
    close(fds[0]);
    close(fds[1]);
    close(fd);
    vm_free(kvm);
}

/* Two level interrupts on one line: it falls at the EOI, both devices are told, one raises it again. */
static void resampling(void **state)
{
    struct kvm *kvm = irqfd_vm();
    struct kvm_vcpu *v = kvm->vcpus[0];
    int fd[2], re[2];

    io_redir(v, 10, 0x4a | REDIR_LEVEL);
    for (int i = 0; i < 2; i++) {
        fd[i] = eventfd(0, EFD_NONBLOCK);
        re[i] = eventfd(0, EFD_NONBLOCK);
        struct kvm_irqfd args = {
            .fd = (uint32_t)fd[i], .resamplefd = (uint32_t)re[i], .gsi = 10, .flags = KVM_IRQFD_FLAG_RESAMPLE};
        assert_int_equal(kvm_irqfd(kvm, &args), 0);
    }
    ring(fd[0]);
    assert_int_equal(take(v), 0x4a);
    apic_w(v, APIC_EOI, 0);
    assert_int_equal(count_of(re[0]), 1);
    assert_int_equal(count_of(re[1]), 1);
    assert_false(has_interrupt(v)); /* the line fell */
    ring(fd[1]);
    assert_int_equal(take(v), 0x4a);
    apic_w(v, APIC_EOI, 0);
    assert_int_equal(count_of(re[0]), 1);
    assert_int_equal(count_of(re[1]), 1);
    struct kvm_irqfd off = {.fd = (uint32_t)fd[0], .gsi = 10, .flags = KVM_IRQFD_FLAG_DEASSIGN};
    assert_int_equal(kvm_irqfd(kvm, &off), 0);
    ring(fd[1]);
    assert_int_equal(take(v), 0x4a);
    apic_w(v, APIC_EOI, 0);
    assert_int_equal(count_of(re[0]), 0);
    assert_int_equal(count_of(re[1]), 1);
    off.fd = (uint32_t)fd[1];
    ring(fd[1]);
    assert_int_equal(take(v), 0x4a);
    assert_int_equal(kvm_irqfd(kvm, &off), 0); /* the last one lowers the line that it held */
    apic_w(v, APIC_EOI, 0);
    assert_false(has_interrupt(v));
    assert_false(kvm_irq_has_notifier(kvm, KVM_IRQCHIP_IOAPIC, 10));
    for (int i = 0; i < 2; i++) {
        close(fd[i]);
        close(re[i]);
    }
    vm_free(kvm);
}

/* Many devices ring while irqfds come and go; at the end each ring of the one that stays arrives. */
struct ringer {
    int fd;
    _Atomic bool stop;
};

static void *ringing(void *arg)
{
    struct ringer *r = arg;

    while (!atomic_load(&r->stop)) {
        ring(r->fd);
        usleep(50);
    }
    return NULL;
}

static void deassign_races(void **state)
{
    struct kvm *kvm = irqfd_vm();
    struct kvm_vcpu *v = kvm->vcpus[0];
    struct ringer r = {.fd = eventfd(0, 0)};
    pthread_t thread;

    os_thread_start("ringer", ringing, &r, &thread);
    for (int i = 0; i < 200; i++) {
        struct kvm_irqfd args = {.fd = (uint32_t)r.fd, .gsi = 30};

        assert_int_equal(kvm_irqfd(kvm, &args), 0);
        if (i % 20 == 0) {
            assert_int_equal(take(v), 0x51);
            apic_w(v, APIC_EOI, 0);
        }
        args.flags = KVM_IRQFD_FLAG_DEASSIGN;
        assert_int_equal(kvm_irqfd(kvm, &args), 0);
        while (kvm_get_apic_interrupt(v) >= 0)
            apic_w(v, APIC_EOI, 0);
        assert_int_equal(kvm_apic_has_interrupt(v), -1); /* none comes after a deassign has returned */
    }
    atomic_store(&r.stop, true);
    os_thread_join(&thread);
    close(r.fd);
    vm_free(kvm);
}

static void ioeventfds(void **state)
{
    struct kvm *kvm = vm_new(1);
    struct kvm_vcpu *v = kvm->vcpus[0];
    const int any = eventfd(0, EFD_NONBLOCK), one = eventfd(0, EFD_NONBLOCK), two = eventfd(0, EFD_NONBLOCK);
    struct kvm_ioeventfd a = {.fd = any, .addr = 0x1000};
    struct kvm_ioeventfd b = {.fd = one,
                              .addr = 0x510,
                              .len = 2,
                              .datamatch = 7,
                              .flags = KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DATAMATCH};
    struct kvm_ioeventfd c = b;
    uint64_t value = 7;

    c.fd = two;
    assert_int_equal(kvm_ioeventfd(kvm, &a), 0);
    assert_int_equal(kvm_ioeventfd(kvm, &b), 0);
    assert_int_equal(kvm_ioeventfd(kvm, &c), -EEXIST);
    c.datamatch = 8;
    assert_int_equal(kvm_ioeventfd(kvm, &c), 0);
    for (int len = 1; len <= 8; len *= 2)
        assert_int_equal(kvm_io_bus_write(v, KVM_MMIO_BUS, 0x1000, len, &value), 0);
    assert_int_equal(count_of(any), 4);
    assert_int_equal(kvm_io_bus_write(v, KVM_MMIO_BUS, 0x1001, 1, &value), -EOPNOTSUPP);
    assert_int_equal(kvm_io_bus_read(v, KVM_MMIO_BUS, 0x1000, 1, &value), -EOPNOTSUPP);
    value = 7;
    assert_int_equal(kvm_io_bus_write(v, KVM_PIO_BUS, 0x510, 2, &value), 0);
    assert_int_equal(count_of(one), 1);
    assert_int_equal(count_of(two), 0);
    value = 8;
    assert_int_equal(kvm_io_bus_write(v, KVM_PIO_BUS, 0x510, 2, &value), 0);
    assert_int_equal(count_of(two), 1);
    assert_int_equal(kvm_io_bus_write(v, KVM_PIO_BUS, 0x510, 1, &value), -EOPNOTSUPP); /* another width */
    value = 9;
    assert_int_equal(kvm_io_bus_write(v, KVM_PIO_BUS, 0x510, 2, &value), -EOPNOTSUPP);
    b.flags |= KVM_IOEVENTFD_FLAG_DEASSIGN;
    c.flags |= KVM_IOEVENTFD_FLAG_DEASSIGN;
    assert_int_equal(kvm_ioeventfd(kvm, &b), 0);
    assert_int_equal(kvm_ioeventfd(kvm, &b), -ENOENT);
    value = 7;
    assert_int_equal(kvm_io_bus_write(v, KVM_PIO_BUS, 0x510, 2, &value), -EOPNOTSUPP);
    assert_int_equal(kvm_ioeventfd(kvm, &c), 0);
    a = (struct kvm_ioeventfd){.fd = any, .addr = 0x2000, .len = 3};
    assert_int_equal(kvm_ioeventfd(kvm, &a), -EINVAL);
    a.len = 8;
    a.addr = ~3ull;
    assert_int_equal(kvm_ioeventfd(kvm, &a), -EINVAL);
    a = (struct kvm_ioeventfd){.fd = any, .addr = 0x2000, .flags = KVM_IOEVENTFD_FLAG_DATAMATCH};
    assert_int_equal(kvm_ioeventfd(kvm, &a), -EINVAL);
    a.flags = 0x80;
    assert_int_equal(kvm_ioeventfd(kvm, &a), -EINVAL);
    a = (struct kvm_ioeventfd){.fd = 9999, .addr = 0x2000, .len = 4};
    assert_int_equal(kvm_ioeventfd(kvm, &a), -EBADF);
    close(any); /* the one at 0x1000 is held by the VM */
    assert_int_equal(kvm_io_bus_write(v, KVM_MMIO_BUS, 0x1000, 4, &value), 0);
    close(one);
    close(two);
    vm_free(kvm);
}

/* A device thread answers each doorbell by an interrupt: ioeventfd to irqfd and back. */
struct echo {
    int doorbell, irq;
};

static void *echo_thread(void *arg)
{
    struct echo *e = arg;

    for (int i = 0; i < 200; i++) {
        uint64_t n;

        if (read(e->doorbell, &n, 8) != 8)
            return NULL;
        ring(e->irq);
    }
    return NULL;
}

static void doorbell_and_interrupt(void **state)
{
    struct kvm *kvm = irqfd_vm();
    struct kvm_vcpu *v = kvm->vcpus[0];
    struct echo e = {.doorbell = eventfd(0, 0), .irq = eventfd(0, 0)};
    struct kvm_ioeventfd io = {.fd = e.doorbell, .addr = 0xd000, .len = 2};
    struct kvm_irqfd irq = {.fd = (uint32_t)e.irq, .gsi = 30};
    const uint16_t queue = 1;
    pthread_t thread;

    assert_int_equal(kvm_ioeventfd(kvm, &io), 0);
    assert_int_equal(kvm_irqfd(kvm, &irq), 0);
    os_thread_start("echo", echo_thread, &e, &thread);
    for (int i = 0; i < 200; i++) {
        assert_int_equal(kvm_io_bus_write(v, KVM_MMIO_BUS, 0xd000, 2, &queue), 0);
        assert_int_equal(take(v), 0x51);
        apic_w(v, APIC_EOI, 0);
    }
    os_thread_join(&thread);
    assert_false(readable(&e.doorbell));
    vm_free(kvm); /* with both still assigned */
    close(e.doorbell);
    close(e.irq);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(irqfd_end_to_end), cmocka_unit_test(irqfd_errors), cmocka_unit_test(resampling),
        cmocka_unit_test(deassign_races),   cmocka_unit_test(ioeventfds),   cmocka_unit_test(doorbell_and_interrupt),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
