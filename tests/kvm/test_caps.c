/* SPDX-License-Identifier: MIT
 * test_caps.c: capabilities that a client enables: HLT without an exit, emulation failures of user code, hypercalls and
 * Hyper-V events that the client gets, a clock pair, single steps without interrupts, devices that are not there. */
#include "kvm_test.h"
#include <anykvm.h>
#include <linux/kvm_para.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <time.h>

static int setup(void **state)
{
    *state = vm_new(VM_CPUID);
    return 0;
}

static int teardown(void **state)
{
    vm_free(*state);
    return 0;
}

static long extension(int fd, unsigned cap)
{
    return kvm->ioctl(fd, KVM_CHECK_EXTENSION, (unsigned long)cap);
}

static void set_gate(struct vm *vm, unsigned vector, uint32_t handler)
{
    uint64_t *gate = (uint64_t *)(vm->ram + 0xa000) + vector * 2;

    gate[0] = (handler & 0xffff) | 8ull << 16 | 0x8e00ull << 32 | (uint64_t)(handler >> 16) << 48;
    gate[1] = 0;
}

static void set_sregs(struct vm *vm, void (*change)(struct kvm_sregs *))
{
    struct kvm_sregs s;

    assert_ok(vm->vcpu, KVM_GET_SREGS, &s);
    change(&s);
    assert_ok(vm->vcpu, KVM_SET_SREGS, &s);
}

/* ---- KVM_CAP_X86_DISABLE_EXITS ---- */
static struct vm bare_vm(void)
{
    struct vm vm = {.sys = kvm->open("/dev/kvm", O_RDWR | O_CLOEXEC), .ram_size = 1 << 20};

    vm.fd = kvm->ioctl(vm.sys, KVM_CREATE_VM, 0ul);
    assert_true(vm.fd >= 0);
    vm.run_size = (size_t)kvm->ioctl(vm.sys, KVM_GET_VCPU_MMAP_SIZE, 0ul);
    vm.ram = mmap(NULL, vm.ram_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_int_equal(vm_slot(&vm, 0, 0, vm.ram_size, vm.ram, 0), 0);
    return vm;
}

static void bare_free(struct vm *vm)
{
    munmap(vm->run, vm->run_size);
    kvm->close(vm->vcpu);
    kvm->close(vm->fd);
    kvm->close(vm->sys);
    munmap(vm->ram, vm->ram_size);
}

static uint64_t statistic(struct vm *vm, const char *name)
{
    const int fd = kvm->ioctl(vm->vcpu, KVM_GET_STATS_FD, 0ul);
    struct kvm_stats_header head;
    uint64_t value = ~0ull;

    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &head, sizeof(head), 0), sizeof(head));
    for (unsigned i = 0; i < head.num_desc; i++) {
        char buf[sizeof(struct kvm_stats_desc) + 64];
        struct kvm_stats_desc *d = (void *)buf;
        const size_t size = sizeof(*d) + head.name_size;

        assert_int_equal(pread(fd, buf, size, head.desc_offset + (off_t)(i * size)), size);
        if (!strcmp(d->name, name))
            assert_int_equal(pread(fd, &value, 8, head.data_offset + d->offset), 8);
    }
    close(fd);
    return value;
}

struct poke {
    int vm;
    _Atomic bool stop;
};

/* Interrupts by MSI, to APIC 0 */
static void *send_msis(void *arg)
{
    struct poke *p = arg;
    struct kvm_msi msi = {.address_lo = 0xfee00000, .data = 0x40};

    while (!atomic_load(&p->stop)) {
        usleep(20000);
        kvm->ioctl(p->vm, KVM_SIGNAL_MSI, &msi);
    }
    return NULL;
}

/* Ten halts, each ended by an interrupt, which is counted. */
GUEST64(g_halts, "mov $0x1b, %ecx; rdmsr; mov $0xfee000f0, %ebx; movl $0x1ff, (%rbx)\n"
                 "mov $10, %ebp; xor %esi, %esi; 1: sti; hlt; cmp %ebp, %esi; jb 1b; cli; out %al, $0x10");
GUEST64(g_count, "inc %esi; mov $0xfee000b0, %edi; movl $0, (%rdi); iretq");

static double seconds(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* cpu: the share of the time that this thread was on a processor */
static void halts(unsigned disabled, uint64_t *exits, double *cpu)
{
    const double wall = seconds(CLOCK_MONOTONIC), used = seconds(CLOCK_THREAD_CPUTIME_ID);
    struct vm vm = bare_vm();
    struct poke p = {.vm = vm.fd};
    pthread_t thread;
    struct vm v;

    assert_ok(vm.fd, KVM_CREATE_IRQCHIP, 0ul);
    assert_int_equal(vm_enable(&vm, KVM_CAP_X86_DISABLE_EXITS, disabled), 0);
    v = vm_vcpu(&vm, 0);
    LOAD(&v, 0x1000, g_halts);
    LOAD(&v, 0x2000, g_count);
    vm_long_mode(&v, 0x1000);
    *(uint64_t *)(v.ram + 0x11000 + 3 * 8) = 0x13000 | 7; /* the APIC's page, below 4 GiB */
    for (unsigned i = 0; i < 512; i++)
        ((uint64_t *)(v.ram + 0x13000))[i] = 0xc0000000 + ((uint64_t)i << 21) + 0x83;
    set_gate(&v, 0x40, 0x2000);
    pthread_create(&thread, NULL, send_msis, &p);
    assert_exit(&v, KVM_EXIT_IO);
    *cpu = (seconds(CLOCK_THREAD_CPUTIME_ID) - used) / (seconds(CLOCK_MONOTONIC) - wall);
    atomic_store(&p.stop, true);
    pthread_join(thread, NULL);
    *exits = statistic(&v, "exits_HLT");
    bare_free(&v);
}

static void hlt_without_exit(void **state)
{
    struct vm *vm = *state;
    const long offered = extension(vm->fd, KVM_CAP_X86_DISABLE_EXITS);
    uint64_t exits;
    double cpu;

    assert_true(offered & KVM_X86_DISABLE_EXITS_HLT);
    assert_int_equal(vm_enable(vm, KVM_CAP_X86_DISABLE_EXITS, 1u << 31), EINVAL);
    assert_int_equal(vm_enable(vm, KVM_CAP_X86_DISABLE_EXITS, KVM_X86_DISABLE_EXITS_HLT), EINVAL); /* vCPUs exist */
    halts(KVM_X86_DISABLE_EXITS_PAUSE & (unsigned)offered, &exits, &cpu);
    assert_in_range(exits, 3, 30); /* an interrupt may come before the next HLT */
    halts((unsigned)offered, &exits, &cpu);
    assert_int_equal(exits, 0);
    assert_true(cpu < 0.5); /* ten waits of 20 ms: it slept */
}

/* What ends a halt in guest mode: an SMI, whose handler runs, and a NMI. The halt goes on when KVM_RUN is left. */
GUEST64(g_halt, "cli; hlt; out %al, $0x10; hlt; out %al, $0x11");
GUEST64(g_nmi, "out %al, $0x12; iretq");
GUEST16(g_smi, "out %al, $0x80; .byte 0x0f, 0xaa");

static void *interrupt_soon(void *arg)
{
    usleep(20000);
    anykvm_interrupt(*(int *)arg);
    return NULL;
}

static void halted_in_guest_mode(struct vm *vm)
{
    pthread_t thread;

    pthread_create(&thread, NULL, interrupt_soon, &vm->vcpu);
    assert_int_equal(vm_run(vm), EINTR);
    pthread_join(thread, NULL);
}

static void smi_and_nmi_end_a_halt(void **state)
{
    struct vm vm = bare_vm();
    struct vm v;

    if (kvm_is_real)
        skip();
    assert_int_equal(vm_enable(&vm, KVM_CAP_X86_DISABLE_EXITS, KVM_X86_DISABLE_EXITS_HLT), 0);
    assert_int_equal(vm_slot(&vm, 1 << 16, 0, vm.ram_size, vm.ram, 0), 0);
    v = vm_vcpu(&vm, 0);
    LOAD(&v, 0x1000, g_halt);
    LOAD(&v, 0x2000, g_nmi);
    LOAD(&v, 0x38000, g_smi);
    vm_long_mode(&v, 0x1000);
    set_gate(&v, 2, 0x2000);
    halted_in_guest_mode(&v);
    halted_in_guest_mode(&v);
    assert_ok(v.vcpu, KVM_SMI, 0ul);
    assert_out(&v, 0x80, 1, 0);
    assert_exit(&v, KVM_EXIT_IO);
    assert_int_equal(v.run->io.port, 0x10); /* RSM goes on behind the HLT */
    halted_in_guest_mode(&v);
    assert_ok(v.vcpu, KVM_NMI, 0ul);
    assert_exit(&v, KVM_EXIT_IO);
    assert_int_equal(v.run->io.port, 0x12);
    assert_exit(&v, KVM_EXIT_IO);
    assert_int_equal(v.run->io.port, 0x11);
    bare_free(&v);
}

/* ---- KVM_CAP_EXIT_ON_EMULATION_FAILURE ---- */
GUEST64(g_user, "mov $0x40000000, %ebx; mov (%rbx), %eax");
GUEST64(g_told_ud, "out %al, $0x66");

static void to_ring_3(struct kvm_sregs *s)
{
    s->cs.dpl = s->ss.dpl = s->ds.dpl = s->es.dpl = 3;
    s->cs.selector |= 3;
    s->ss.selector |= 3;
    s->tr.base = 0xb000;
    s->tr.limit = 0x67;
}

/* User code, and the page table for what it reads is at an address that is no RAM: nobody can say what it read. */
static void user_reads_nowhere(struct vm *vm)
{
    LOAD(vm, 0x1000, g_user);
    LOAD(vm, 0x2000, g_told_ud);
    vm_long_mode(vm, 0x1000);
    *(uint64_t *)(vm->ram + 0x11000 + 8) = 0x7000000 | 7;
    *(uint64_t *)(vm->ram + 0xb004) = 0x8000;
    set_sregs(vm, to_ring_3);
    set_gate(vm, 6, 0x2000);
}

static void emulation_failure(void **state)
{
    struct vm *vm = *state;

    assert_int_equal(extension(vm->fd, KVM_CAP_EXIT_ON_EMULATION_FAILURE), 1);
    user_reads_nowhere(vm);
    assert_out(vm, 0x66, 1, 0x00); /* #UD is the guest's own affair */
    assert_int_equal(vm_enable(vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 2), EINVAL);
    assert_int_equal(vm_enable(vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1), 0);
    user_reads_nowhere(vm);
    assert_exit(vm, KVM_EXIT_INTERNAL_ERROR);
    assert_int_equal(vm->run->emulation_failure.suberror, KVM_INTERNAL_ERROR_EMULATION);
    assert_true(vm->run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
    assert_memory_equal(vm->run->emulation_failure.insn_bytes, "\x8b\x03", 2);
    assert_int_equal(vm_reg_rip(vm), 0x1005); /* and no exception is on its way */
    assert_int_equal(vm_enable(vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 0), 0);
    user_reads_nowhere(vm);
    assert_out(vm, 0x66, 1, 0x00);
}

/* ---- hypercalls ---- */
GUEST64(g_call, "1: vmcall; out %al, $0x10; out %al, $0x11; jmp 1b");

static void intel(struct vm *vm)
{
    struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 256 * sizeof(c->entries[0]));

    c->nent = 256;
    assert_ok(vm->sys, KVM_GET_SUPPORTED_CPUID, c);
    for (unsigned i = 0; i < c->nent; i++)
        if (c->entries[i].function == 0)
            c->entries[i].ebx = 0x756e6547, c->entries[i].edx = 0x49656e69, c->entries[i].ecx = 0x6c65746e;
    assert_ok(vm->vcpu, KVM_SET_CPUID2, c);
    free(c);
}

static void set_call(struct vm *vm, uint64_t nr, uint64_t a0, uint64_t a1, uint64_t a2)
{
    struct kvm_regs r;

    vm_regs(vm, &r);
    r.rax = nr;
    r.rbx = a0;
    r.rcx = a1;
    r.rdx = a2;
    assert_ok(vm->vcpu, KVM_SET_REGS, &r);
}

/* The call's result */
static int64_t call(struct vm *vm, uint64_t nr, uint64_t a0, uint64_t a1, uint64_t a2)
{
    struct kvm_regs r;

    set_call(vm, nr, a0, a1, a2);
    assert_exit(vm, KVM_EXIT_IO);
    assert_int_equal(vm->run->io.port, 0x10);
    vm_regs(vm, &r);
    assert_exit(vm, KVM_EXIT_IO);
    return (int64_t)r.rax;
}

static struct vm *caller(void **state)
{
    struct vm *vm = *state;

    intel(vm);
    LOAD(vm, 0x1000, g_call);
    vm_long_mode(vm, 0x1000);
    return vm;
}

static void map_gpa_range(void **state)
{
    struct vm *vm = caller(state);
    struct kvm_regs r;

    assert_int_equal(extension(vm->fd, KVM_CAP_EXIT_HYPERCALL), 1 << KVM_HC_MAP_GPA_RANGE);
    assert_int_equal(vm_enable(vm, KVM_CAP_EXIT_HYPERCALL, 1), EINVAL);
    assert_int_equal(call(vm, KVM_HC_MAP_GPA_RANGE, 0x1000, 1, 0), -KVM_ENOSYS);
    assert_int_equal(vm_enable(vm, KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE), 0);
    assert_int_equal(call(vm, KVM_HC_MAP_GPA_RANGE, 0x1001, 1, 0), -KVM_EINVAL);
    assert_int_equal(call(vm, KVM_HC_MAP_GPA_RANGE, 0x1000, 0, 0), -KVM_EINVAL);
    assert_int_equal(call(vm, KVM_HC_MAP_GPA_RANGE, 0x1000, ~0ull, 0), -KVM_EINVAL);
    set_call(vm, KVM_HC_MAP_GPA_RANGE, 0x5000, 3, 1 << 4);
    assert_exit(vm, KVM_EXIT_HYPERCALL);
    assert_int_equal(vm->run->hypercall.nr, KVM_HC_MAP_GPA_RANGE);
    assert_int_equal(vm->run->hypercall.args[0], 0x5000);
    assert_int_equal(vm->run->hypercall.args[1], 3);
    assert_int_equal(vm->run->hypercall.args[2], 1 << 4);
    assert_int_equal(vm->run->hypercall.longmode, 1);
    vm->run->hypercall.ret = (uint64_t)-7;
    assert_exit(vm, KVM_EXIT_IO);
    vm_regs(vm, &r);
    assert_int_equal(r.rax, -7);
}

static uint64_t ns_now(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Two pairs tell the TSC's frequency and the host's time. */
static void clock_pairing(void **state)
{
    struct vm *vm = caller(state);
    struct kvm_clock_pairing pair[2];
    const uint64_t before = ns_now(CLOCK_REALTIME);
    const int khz = kvm->ioctl(vm->vcpu, KVM_GET_TSC_KHZ, 0ul);
    double ns, ticks;

    for (int i = 0; i < 2; i++) {
        assert_int_equal(call(vm, KVM_HC_CLOCK_PAIRING, 0x60000, KVM_CLOCK_PAIRING_WALLCLOCK, 0), 0);
        memcpy(&pair[i], vm->ram + 0x60000, sizeof(pair[i]));
        usleep(50000);
    }
    ns = (double)(pair[1].sec - pair[0].sec) * 1e9 + (double)(pair[1].nsec - pair[0].nsec);
    ticks = (double)(pair[1].tsc - pair[0].tsc);
    assert_in_range((uint64_t)pair[0].sec * 1000000000 + (uint64_t)pair[0].nsec, before, ns_now(CLOCK_REALTIME));
    assert_in_range((uint64_t)(ticks / ns * 1e6), (uint64_t)khz * 99 / 100, (uint64_t)khz * 101 / 100);
    assert_int_equal(call(vm, KVM_HC_CLOCK_PAIRING, 0x60000, 1, 0), -KVM_EOPNOTSUPP);
    assert_int_equal(call(vm, KVM_HC_CLOCK_PAIRING, 0x7000000, KVM_CLOCK_PAIRING_WALLCLOCK, 0), -KVM_EFAULT);
}

/* ---- KVM_GUESTDBG_BLOCKIRQ ---- */
GUEST64(g_nop_loop, "1: nop; nop; nop; nop; jmp 1b");
GUEST64(g_irq, "out %al, $0x40");

static void steps_without_interrupts(void **state)
{
    struct vm *vm = *state;
    struct kvm_guest_debug dbg = {.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ};
    struct kvm_regs r;

    assert_true(extension(vm->fd, KVM_CAP_SET_GUEST_DEBUG2) & KVM_GUESTDBG_BLOCKIRQ);
    LOAD(vm, 0x1000, g_nop_loop);
    LOAD(vm, 0x2000, g_irq);
    vm_long_mode(vm, 0x1000);
    set_gate(vm, 2, 0x2000);
    vm_regs(vm, &r);
    r.rflags |= 0x200;
    assert_ok(vm->vcpu, KVM_SET_REGS, &r);
    assert_ok(vm->vcpu, KVM_SET_GUEST_DEBUG, &dbg);
    assert_ok(vm->vcpu, KVM_NMI, 0ul);
    for (unsigned i = 1; i < 10; i++) { /* the NMI waits */
        assert_exit(vm, KVM_EXIT_DEBUG);
        assert_int_equal(vm_reg_rip(vm), 0x1000 + i % 5);
    }
    dbg.control = 0;
    assert_ok(vm->vcpu, KVM_SET_GUEST_DEBUG, &dbg);
    assert_out(vm, 0x40, 1, 0);
}

/* ---- KVM_HYPERV_EVENTFD ---- */
static void hyperv_eventfd(void **state)
{
    struct vm *vm = *state;
    const int fd = eventfd(0, EFD_NONBLOCK), other = eventfd(0, EFD_NONBLOCK);
    struct kvm_hyperv_eventfd e = {.conn_id = 0x1234, .fd = fd};

    assert_int_equal(extension(vm->fd, KVM_CAP_HYPERV_EVENTFD), 1);
    assert_ok(vm->fd, KVM_HYPERV_EVENTFD, &e);
    assert_errno(EEXIST, vm->fd, KVM_HYPERV_EVENTFD, &e);
    e.conn_id = 0x1000000;
    assert_errno(EINVAL, vm->fd, KVM_HYPERV_EVENTFD, &e);
    e.conn_id = 7;
    e.flags = 2;
    assert_errno(EINVAL, vm->fd, KVM_HYPERV_EVENTFD, &e);
    e.flags = KVM_HYPERV_EVENTFD_DEASSIGN;
    assert_errno(ENOENT, vm->fd, KVM_HYPERV_EVENTFD, &e);
    e.flags = 0;
    e.fd = 9999;
    assert_errno(EBADF, vm->fd, KVM_HYPERV_EVENTFD, &e);
    e.fd = open("/dev/null", O_RDONLY);
    assert_errno(EINVAL, vm->fd, KVM_HYPERV_EVENTFD, &e);
    close(e.fd);
    e.fd = other;
    assert_ok(vm->fd, KVM_HYPERV_EVENTFD, &e);
    e = (struct kvm_hyperv_eventfd){.conn_id = 0x1234, .flags = KVM_HYPERV_EVENTFD_DEASSIGN};
    assert_ok(vm->fd, KVM_HYPERV_EVENTFD, &e);
    assert_errno(ENOENT, vm->fd, KVM_HYPERV_EVENTFD, &e);
    close(fd);
    close(other);
}

static void no_devices(void **state)
{
    struct vm *vm = *state;
    struct kvm_create_device d = {.type = KVM_DEV_TYPE_VFIO, .flags = KVM_CREATE_DEVICE_TEST};

    assert_errno(ENODEV, vm->fd, KVM_CREATE_DEVICE, &d);
    d.type = 1000;
    assert_errno(ENODEV, vm->fd, KVM_CREATE_DEVICE, &d);
    assert_errno(EFAULT, vm->fd, KVM_CREATE_DEVICE, 8ul);
    assert_int_equal(extension(vm->fd, KVM_CAP_DEVICE_CTRL), 0);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(hlt_without_exit), T(smi_and_nmi_end_a_halt),   T(emulation_failure), T(map_gpa_range),
        T(clock_pairing),    T(steps_without_interrupts), T(hyperv_eventfd),    T(no_devices),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
