/* SPDX-License-Identifier: MIT
 * test_api.c: the API without a guest: versions, descriptors, lists, and the errno of each mistake (api.rst). */
#include "kvm_test.h"
#include <anykvm.h>
#include <sys/wait.h>

#define BAD_POINTER   ((void *)0x10)
#define NO_SUCH_IOCTL _IO(KVMIO, 0xfe)

static int setup(void **state)
{
    *state = vm_new(0);
    return 0;
}

static int teardown(void **state)
{
    vm_free(*state);
    return 0;
}

static void version_and_sizes(void **state)
{
    struct vm *vm = *state;

    assert_int_equal(kvm->ioctl(vm->sys, KVM_GET_API_VERSION, 0ul), 12);
    assert_errno(EINVAL, vm->sys, KVM_GET_API_VERSION, 1ul);
    assert_errno(EINVAL, vm->sys, KVM_GET_VCPU_MMAP_SIZE, 1ul);
    assert_true(vm->run_size >= 3 * PAGE && vm->run_size % PAGE == 0);
    assert_errno(EINVAL, vm->sys, KVM_CREATE_VM, 0x1234567ul);
}

static void only_dev_kvm_is_opened(void **state)
{
    if (kvm_is_real)
        skip();
    assert_int_equal(kvm->open("/dev/null", O_RDWR), -1);
    assert_int_equal(errno, ENOENT);
    assert_int_equal(kvm->open(NULL, O_RDWR), -1);
    assert_int_equal(errno, EFAULT);
}

static void unknown_numbers(void **state)
{
    struct vm *vm = *state;

    assert_errno(EINVAL, vm->sys, NO_SUCH_IOCTL, 0ul);
    assert_errno(ENOTTY, vm->fd, NO_SUCH_IOCTL, 0ul);
    assert_errno(EINVAL, vm->vcpu, NO_SUCH_IOCTL, 0ul);
    assert_errno(ENOTTY, vm->fd, KVM_RUN, 0ul); /* a vCPU's ioctl on a VM */
    assert_errno(EINVAL, vm->vcpu, KVM_CREATE_VCPU, 1ul);
    assert_errno(EINVAL, vm->sys, KVM_GET_REGS, 0ul);
    assert_errno(EINVAL, vm->vcpu, KVM_RUN, 1ul);
    assert_errno(ENOTTY, vm->fd, _IO('T', 1), 0ul);
    assert_errno(EINVAL, vm->vcpu, _IO('T', 1), 0ul);
}

static void bad_pointers(void **state)
{
    struct vm *vm = *state;
    static const unsigned long on_vm[] = {
        KVM_SET_USER_MEMORY_REGION,
        KVM_GET_DIRTY_LOG,
        KVM_ENABLE_CAP,
        KVM_SET_IDENTITY_MAP_ADDR,
        KVM_IRQFD,
        KVM_IOEVENTFD,
        KVM_REGISTER_COALESCED_MMIO,
        KVM_SET_CLOCK,
        KVM_GET_CLOCK,
        KVM_SIGNAL_MSI,
        KVM_CREATE_PIT2,
    };
    static const unsigned long on_vcpu[] = {
        KVM_GET_REGS,        KVM_SET_REGS,        KVM_GET_SREGS,       KVM_SET_SREGS,     KVM_GET_FPU,
        KVM_SET_FPU,         KVM_GET_MSRS,        KVM_SET_MSRS,        KVM_SET_CPUID2,    KVM_GET_CPUID2,
        KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, KVM_GET_DEBUGREGS,   KVM_SET_DEBUGREGS, KVM_GET_XCRS,
        KVM_SET_XCRS,        KVM_GET_XSAVE,       KVM_SET_XSAVE,       KVM_GET_MP_STATE,  KVM_SET_MP_STATE,
        KVM_TRANSLATE,       KVM_INTERRUPT,       KVM_SET_GUEST_DEBUG, KVM_X86_SETUP_MCE, KVM_SET_SIGNAL_MASK,
    };
    static const unsigned long on_sys[] = {KVM_GET_MSR_INDEX_LIST, KVM_GET_MSR_FEATURE_INDEX_LIST, KVM_GET_MSRS,
                                           KVM_GET_SUPPORTED_CPUID, KVM_X86_GET_MCE_CAP_SUPPORTED};
    unsigned i;

    for (i = 0; i < sizeof(on_vm) / sizeof(on_vm[0]); i++)
        assert_errno(EFAULT, vm->fd, on_vm[i], BAD_POINTER);
    for (i = 0; i < sizeof(on_vcpu) / sizeof(on_vcpu[0]); i++)
        assert_errno(EFAULT, vm->vcpu, on_vcpu[i], BAD_POINTER);
    for (i = 0; i < sizeof(on_sys) / sizeof(on_sys[0]); i++)
        assert_errno(EFAULT, vm->sys, on_sys[i], BAD_POINTER);
}

static void extensions(void **state)
{
    struct vm *vm = *state;
    static const unsigned long must[] = {
        KVM_CAP_USER_MEMORY,
        KVM_CAP_DESTROY_MEMORY_REGION_WORKS,
        KVM_CAP_JOIN_MEMORY_REGIONS_WORKS,
        KVM_CAP_SET_TSS_ADDR,
        KVM_CAP_EXT_CPUID,
        KVM_CAP_MP_STATE,
        KVM_CAP_IRQ_ROUTING,
        KVM_CAP_IRQCHIP,
        KVM_CAP_HLT,
        KVM_CAP_COALESCED_MMIO,
        KVM_CAP_PIT2,
        KVM_CAP_IRQ_INJECT_STATUS,
        KVM_CAP_IMMEDIATE_EXIT,
    };
    unsigned i;

    for (i = 0; i < sizeof(must) / sizeof(must[0]); i++) {
        assert_true(kvm->ioctl(vm->sys, KVM_CHECK_EXTENSION, must[i]) > 0);
        assert_true(kvm->ioctl(vm->fd, KVM_CHECK_EXTENSION, must[i]) > 0);
    }
    assert_int_equal(kvm->ioctl(vm->sys, KVM_CHECK_EXTENSION, 99999ul), 0);
    assert_int_equal(kvm->ioctl(vm->sys, KVM_CHECK_EXTENSION, -1l), 0);
    assert_int_equal(kvm->ioctl(vm->sys, KVM_CHECK_EXTENSION, (unsigned long)KVM_CAP_COALESCED_MMIO), 2);
}

static void msr_lists(void **state)
{
    struct vm *vm = *state;
    struct kvm_msr_list *list = calloc(1, sizeof(*list) + 1000 * sizeof(uint32_t));
    struct kvm_msr_list none = {.nmsrs = 0};
    unsigned i, n;

    assert_errno(E2BIG, vm->sys, KVM_GET_MSR_INDEX_LIST, &none);
    n = none.nmsrs;
    assert_in_range(n, 10, 1000);
    list->nmsrs = n;
    assert_ok(vm->sys, KVM_GET_MSR_INDEX_LIST, list);
    assert_int_equal(list->nmsrs, n);
    for (i = 0; i < n; i++) { /* QEMU asserts that each one can be read and written back */
        const uint64_t value = vm_get_msr(vm, list->indices[i]);

        if (vm_set_msr(vm, list->indices[i], value) != 1)
            fail_msg("MSR 0x%x does not take back 0x%llx", list->indices[i], (unsigned long long)value);
    }
    none.nmsrs = 0;
    assert_errno(E2BIG, vm->sys, KVM_GET_MSR_FEATURE_INDEX_LIST, &none);
    list->nmsrs = none.nmsrs;
    assert_ok(vm->sys, KVM_GET_MSR_FEATURE_INDEX_LIST, list);
    for (i = 0; i < list->nmsrs; i++) {
        struct {
            struct kvm_msrs head;
            struct kvm_msr_entry e;
        } m = {.head.nmsrs = 1, .e.index = list->indices[i]};

        assert_int_equal(kvm->ioctl(vm->sys, KVM_GET_MSRS, &m), 1);
    }
    free(list);
}

static void msr_counts(void **state)
{
    struct vm *vm = *state;
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry e[3];
    } m = {.head.nmsrs = 3, .e = {{.index = 0x174}, {.index = 0xdead0000}, {.index = 0x175}}};

    assert_int_equal(kvm->ioctl(vm->vcpu, KVM_GET_MSRS, &m), 1);
    assert_int_equal(kvm->ioctl(vm->vcpu, KVM_SET_MSRS, &m), 1);
    m.head.nmsrs = 0;
    assert_int_equal(kvm->ioctl(vm->vcpu, KVM_GET_MSRS, &m), 0);
    m.head.nmsrs = 256;
    assert_errno(E2BIG, vm->vcpu, KVM_GET_MSRS, &m);
    m.head.nmsrs = ~0u;
    assert_errno(E2BIG, vm->vcpu, KVM_SET_MSRS, &m);
    assert_int_equal(vm_set_msr(vm, 0xc0000082, 0x8000000000000000), 0); /* LSTAR: not canonical */
    assert_int_equal(vm_set_msr(vm, 0xc0000082, 0xffffffff81000000), 1);
    assert_true(vm_get_msr(vm, 0xc0000082) == 0xffffffff81000000);
}

static void supported_cpuid(void **state)
{
    struct vm *vm = *state;
    struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 300 * sizeof(c->entries[0]));
    const struct kvm_cpuid_entry2 *zero = NULL, *sig = NULL, *one = NULL;
    unsigned i, n;

    c->nent = 0;
    assert_errno(E2BIG, vm->sys, KVM_GET_SUPPORTED_CPUID, c);
    c->nent = 3;
    assert_errno(E2BIG, vm->sys, KVM_GET_SUPPORTED_CPUID, c);
    c->nent = 300; /* more than there can be: clamped */
    assert_ok(vm->sys, KVM_GET_SUPPORTED_CPUID, c);
    n = c->nent;
    for (i = 0; i < n; i++) {
        zero = c->entries[i].function == 0 ? &c->entries[i] : zero;
        one = c->entries[i].function == 1 ? &c->entries[i] : one;
        sig = c->entries[i].function == 0x40000000 ? &c->entries[i] : sig;
    }
    assert_non_null(zero);
    assert_non_null(one);
    assert_non_null(sig);
    assert_memory_equal(&sig->ebx, "KVMKVMKVM\0\0\0", 12);
    assert_true(one->ecx >> 31 & 1); /* hypervisor */
    assert_true(one->ecx >> 21 & 1); /* x2APIC, by KVM itself */
    assert_ok(vm->vcpu, KVM_SET_CPUID2, c);
    c->nent = 1;
    assert_errno(E2BIG, vm->vcpu, KVM_GET_CPUID2, c);
    c->nent = 300;
    assert_ok(vm->vcpu, KVM_GET_CPUID2, c);
    assert_int_equal(c->nent, n);
    c->nent = 257;
    assert_errno(E2BIG, vm->vcpu, KVM_SET_CPUID2, c);
    free(c);
}

static void vcpu_ids(void **state)
{
    struct vm *vm = *state;
    int second;

    assert_errno(EEXIST, vm->fd, KVM_CREATE_VCPU, 0ul);
    assert_errno(EINVAL, vm->fd, KVM_CREATE_VCPU, 1ul << 20);
    second = kvm->ioctl(vm->fd, KVM_CREATE_VCPU, 5ul);
    assert_true(second >= 0);
    assert_errno(EEXIST, vm->fd, KVM_CREATE_VCPU, 5ul);
    kvm->close(second);
    assert_errno(EEXIST, vm->fd, KVM_CREATE_VCPU, 5ul); /* it lives as long as the VM */
    assert_errno(EBUSY, vm->fd, KVM_SET_BOOT_CPU_ID, 0ul);
}

static void irqchip_order(void **state)
{
    struct vm *vm = *state;
    struct kvm_irqchip chip = {.chip_id = KVM_IRQCHIP_IOAPIC};
    struct kvm_irq_level level = {.irq = 4, .level = 1};
    struct kvm_pit_state2 pit;
    struct kvm_lapic_state lapic;
    int fd;

    assert_errno(EINVAL, vm->fd, KVM_CREATE_IRQCHIP, 0ul); /* a vCPU exists */
    assert_errno(ENXIO, vm->fd, KVM_GET_IRQCHIP, &chip);
    assert_errno(ENXIO, vm->fd, KVM_IRQ_LINE, &level);
    assert_errno(ENXIO, vm->fd, KVM_GET_PIT2, &pit);
    assert_errno(EINVAL, vm->vcpu, KVM_GET_LAPIC, &lapic);
    fd = kvm->ioctl(vm->sys, KVM_CREATE_VM, 0ul);
    assert_ok(fd, KVM_CREATE_IRQCHIP, 0ul);
    assert_errno(EEXIST, fd, KVM_CREATE_IRQCHIP, 0ul);
    assert_ok(fd, KVM_GET_IRQCHIP, &chip);
    chip.chip_id = 7;
    assert_errno(EINVAL, fd, KVM_GET_IRQCHIP, &chip);
    assert_ok(fd, KVM_IRQ_LINE, &level);
    kvm->close(fd);
}

static void sregs_checks(void **state)
{
    struct vm *vm = *state;
    struct kvm_sregs good, s;

    assert_ok(vm->vcpu, KVM_GET_SREGS, &good);
    assert_int_equal(good.cs.selector, 0xf000); /* reset: SDM 3A, "Processor State After Reset" */
    assert_true(good.cs.base == 0xffff0000);
    assert_true((good.cr0 & ~(1ull << 4)) == 0x60000000);
    s = good;
    s.efer = 0x500; /* LMA without paging */
    assert_errno(EINVAL, vm->vcpu, KVM_SET_SREGS, &s);
    s = good;
    s.efer = 0x500;
    s.cr0 |= 0x80000001; /* long mode without PAE */
    assert_errno(EINVAL, vm->vcpu, KVM_SET_SREGS, &s);
    s = good;
    s.cr4 = 1ull << 31;
    assert_errno(EINVAL, vm->vcpu, KVM_SET_SREGS, &s);
    s = good;
    s.cs.l = 1;
    assert_errno(EINVAL, vm->vcpu, KVM_SET_SREGS, &s);
    assert_ok(vm->vcpu, KVM_SET_SREGS, &good);
    assert_ok(vm->vcpu, KVM_GET_SREGS, &s);
    assert_memory_equal(&s, &good, sizeof(s));
}

static void registers_round_trip(void **state)
{
    struct vm *vm = *state;
    struct kvm_regs in, out;
    uint64_t *words = (uint64_t *)&in;
    unsigned i;

    for (i = 0; i < sizeof(in) / 8; i++)
        words[i] = 0x1111111111111111ull * i;
    in.rflags = 0x246;
    in.rip = 0xfff0;
    assert_ok(vm->vcpu, KVM_SET_REGS, &in);
    assert_ok(vm->vcpu, KVM_GET_REGS, &out);
    assert_memory_equal(&in, &out, sizeof(in));
}

static void fpu_round_trip(void **state)
{
    struct vm *vm = *state;
    struct kvm_fpu in, out;
    struct kvm_xsave *x = calloc(1, sizeof(*x)), *y = calloc(1, sizeof(*y));

    assert_ok(vm->vcpu, KVM_GET_FPU, &in);
    assert_int_equal(in.fcw, 0x37f);
    memset(in.xmm, 0x5a, sizeof(in.xmm));
    in.fcw = 0x27f;
    assert_ok(vm->vcpu, KVM_SET_FPU, &in);
    assert_ok(vm->vcpu, KVM_GET_FPU, &out);
    assert_memory_equal(in.xmm, out.xmm, sizeof(in.xmm));
    assert_int_equal(out.fcw, 0x27f);
    assert_ok(vm->vcpu, KVM_GET_XSAVE, x);
    assert_memory_equal((char *)x + 160, in.xmm, 256);
    memset((char *)x + 160, 0xa5, 256);
    assert_ok(vm->vcpu, KVM_SET_XSAVE, x);
    assert_ok(vm->vcpu, KVM_GET_XSAVE, y);
    assert_memory_equal(x, y, 576);
    x->region[6] = ~0u; /* MXCSR */
    assert_errno(EINVAL, vm->vcpu, KVM_SET_XSAVE, x);
    x->region[6] = 0x1f80;
    x->region[128] |= 1u << 30; /* a component that does not exist */
    assert_errno(EINVAL, vm->vcpu, KVM_SET_XSAVE, x);
    free(x);
    free(y);
}

static void events_and_debug_registers(void **state)
{
    struct vm *vm = *state;
    struct kvm_vcpu_events e;
    struct kvm_debugregs d;

    assert_ok(vm->vcpu, KVM_GET_VCPU_EVENTS, &e);
    e.exception.injected = 1;
    e.exception.nr = 32;
    assert_errno(EINVAL, vm->vcpu, KVM_SET_VCPU_EVENTS, &e);
    e.exception.nr = 2; /* NMI is no exception */
    assert_errno(EINVAL, vm->vcpu, KVM_SET_VCPU_EVENTS, &e);
    e.exception.injected = 0;
    e.flags = 1u << 31;
    assert_errno(EINVAL, vm->vcpu, KVM_SET_VCPU_EVENTS, &e);
    e.flags = KVM_VCPUEVENT_VALID_PAYLOAD; /* not enabled */
    assert_errno(EINVAL, vm->vcpu, KVM_SET_VCPU_EVENTS, &e);
    assert_ok(vm->vcpu, KVM_GET_DEBUGREGS, &d);
    assert_true(d.dr6 == 0xffff0ff0 && d.dr7 == 0x400);
    d.db[2] = 0x123456;
    assert_ok(vm->vcpu, KVM_SET_DEBUGREGS, &d);
    memset(&d, 0, sizeof(d));
    assert_ok(vm->vcpu, KVM_GET_DEBUGREGS, &d);
    assert_true(d.db[2] == 0x123456);
    d.dr7 = 1ull << 32;
    assert_errno(EINVAL, vm->vcpu, KVM_SET_DEBUGREGS, &d);
    d.dr7 = 0x400;
    d.flags = 1;
    assert_errno(EINVAL, vm->vcpu, KVM_SET_DEBUGREGS, &d);
}

static void mp_state_and_mce(void **state)
{
    struct vm *vm = *state;
    struct kvm_mp_state mp;
    uint64_t cap;

    assert_ok(vm->vcpu, KVM_GET_MP_STATE, &mp);
    assert_int_equal(mp.mp_state, KVM_MP_STATE_RUNNABLE);
    mp.mp_state = KVM_MP_STATE_HALTED; /* needs an irqchip in KVM */
    assert_errno(EINVAL, vm->vcpu, KVM_SET_MP_STATE, &mp);
    mp.mp_state = 77;
    assert_errno(EINVAL, vm->vcpu, KVM_SET_MP_STATE, &mp);
    assert_ok(vm->sys, KVM_X86_GET_MCE_CAP_SUPPORTED, &cap);
    cap |= 10;
    assert_ok(vm->vcpu, KVM_X86_SETUP_MCE, &cap);
    assert_true(vm_get_msr(vm, 0x179) == cap);
    cap = 200; /* banks */
    assert_errno(EINVAL, vm->vcpu, KVM_X86_SETUP_MCE, &cap);
    cap = 0;
    assert_errno(EINVAL, vm->vcpu, KVM_X86_SETUP_MCE, &cap);
}

static void capabilities_to_enable(void **state)
{
    struct vm *vm = *state;
    struct kvm_enable_cap cap = {.cap = KVM_CAP_EXCEPTION_PAYLOAD, .args = {1}};

    assert_ok(vm->fd, KVM_ENABLE_CAP, &cap);
    cap.flags = 1;
    assert_errno(EINVAL, vm->fd, KVM_ENABLE_CAP, &cap);
    cap.flags = 0;
    cap.cap = 99999;
    assert_errno(EINVAL, vm->fd, KVM_ENABLE_CAP, &cap);
    assert_errno(EINVAL, vm->vcpu, KVM_ENABLE_CAP, &cap);
    cap.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
    cap.args[0] = 2;
    assert_errno(EINVAL, vm->fd, KVM_ENABLE_CAP, &cap);
    cap.args[0] = 1;
    assert_ok(vm->fd, KVM_ENABLE_CAP, &cap);
}

static void descriptors_live_by_reference(void **state)
{
    struct vm *vm = *state;
    struct kvm_regs regs;
    int copy = dup(vm->vcpu), other = dup(vm->fd);

    assert_ok(copy, KVM_GET_REGS, &regs); /* a number that the library was never shown */
    kvm->close(vm->fd);                   /* the vCPU keeps the VM */
    assert_ok(vm->vcpu, KVM_GET_REGS, &regs);
    kvm->close(vm->vcpu);
    assert_ok(copy, KVM_GET_REGS, &regs);
    assert_int_equal(kvm->ioctl(other, KVM_CHECK_EXTENSION, (unsigned long)KVM_CAP_HLT),
                     1); /* dup, never used before */
    vm->fd = other;
    vm->vcpu = copy;
    assert_int_equal(fcntl(kvm->open("/dev/kvm", O_RDWR | O_CLOEXEC), F_GETFD), FD_CLOEXEC);
    assert_int_equal(fcntl(vm->run ? kvm->open("/dev/kvm", O_RDWR) : -1, F_GETFD), 0);
    assert_errno(EBADF, 12345, KVM_RUN, 0ul);
}

static void another_process_gets_eio(void **state)
{
    struct vm *vm = *state;
    int status;
    const pid_t pid = fork();

    if (pid == 0) {
        struct kvm_regs regs;
        const int a = err(vm->vcpu, KVM_GET_REGS, &regs), b = err(vm->fd, KVM_CREATE_VCPU, 7ul);
        const int c = kvm->ioctl(vm->sys, KVM_GET_API_VERSION, 0ul);

        kvm->close(vm->vcpu);
        kvm->close(vm->fd);
        _exit(a == EIO && b == EIO && c == 12 ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_int_equal(vm_run(vm) == EIO, 0); /* the child's close was the child's */
}

/* api.rst 4.133: header, id, descriptors, data; the sizes agree and the file ends where the data does. */
static void statistics(void **state)
{
    struct vm *vm = *state;
    const int fds[] = {vm->fd, vm->vcpu};
    unsigned i, n;

    for (i = 0; i < 2; i++) {
        const int fd = kvm->ioctl(fds[i], KVM_GET_STATS_FD, 0ul);
        struct kvm_stats_header h;
        char id[64] = "";

        assert_true(fd >= 0);
        assert_int_equal(pread(fd, &h, sizeof(h), 0), sizeof(h));
        assert_in_range(h.num_desc, 1, 1000);
        assert_true(pread(fd, id, 20, h.id_offset) > 0);
        assert_memory_equal(id, "kvm-", 4);
        for (n = 0; n < h.num_desc; n++) {
            char raw[sizeof(struct kvm_stats_desc) + 256];
            const struct kvm_stats_desc *d = (const void *)raw;
            const size_t size = sizeof(*d) + h.name_size;
            uint64_t value;

            assert_true(size <= sizeof(raw));
            assert_int_equal(pread(fd, raw, size, (off_t)(h.desc_offset + n * size)), size);
            assert_in_range(strnlen(d->name, h.name_size), 1, h.name_size - 1);
            assert_true(d->size >= 1);
            assert_int_equal(pread(fd, &value, 8, h.data_offset + d->offset + 8 * (d->size - 1)), 8);
        }
        close(fd);
    }
}

static void parameters(void **state)
{
    const char *bad = NULL, *text = "ept=1,colour=red";

    if (kvm_is_real)
        skip();
    assert_int_equal(anykvm_set_params(text, &bad), -1);
    assert_int_equal(errno, EINVAL);
    assert_ptr_equal(bad, text + 6);
    assert_int_equal(anykvm_set_params("ept=2", NULL), -1);
    assert_int_equal(anykvm_set_params("ept", NULL), -1);
    assert_int_equal(anykvm_set_params("engine=none-such", NULL), -1);
    assert_int_equal(anykvm_set_params("engine=interp,vpid=1", NULL), 0);
    assert_int_equal(anykvm_set_params("", NULL), 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(version_and_sizes),
        T(only_dev_kvm_is_opened),
        T(unknown_numbers),
        T(bad_pointers),
        T(extensions),
        T(msr_lists),
        T(msr_counts),
        T(supported_cpuid),
        T(vcpu_ids),
        T(irqchip_order),
        T(sregs_checks),
        T(registers_round_trip),
        T(fpu_round_trip),
        T(events_and_debug_registers),
        T(mp_state_and_mce),
        T(capabilities_to_enable),
        T(descriptors_live_by_reference),
        T(another_process_gets_eio),
        T(statistics),
        T(parameters),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
