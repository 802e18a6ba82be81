/* SPDX-License-Identifier: MIT
 * test_hyperv.c: Hyper-V's interface by API programs: leaves, the hypercall and TSC pages, IPIs and flushes of other
 * processors, the synthetic interrupt controller's timers, what the client gets. */
#include "vm.h"
#include <setjmp.h>
#include <stdarg.h>
#include <sys/eventfd.h>
#include <time.h>
#include <cmocka.h>

#define RAM        (4ull << 20)
#define PAGE_CALL  0x100000ull
#define PAGE_TSC   0x101000ull
#define PAGE_MSG   0x102000ull
#define PAGE_INPUT 0x103000ull

static void set_hv_cpuid(struct vm *vm, int vcpu, bool intel)
{
    struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 256 * sizeof(struct kvm_cpuid_entry2));
    struct kvm_cpuid2 *hv = calloc(1, sizeof(*hv) + 256 * sizeof(struct kvm_cpuid_entry2));
    unsigned n = 0;

    c->nent = hv->nent = 128;
    VM_MUST(vm_ioctl(vm->sys, KVM_GET_SUPPORTED_CPUID, c));
    VM_MUST(vm_ioctl(vm->vcpu[vcpu], KVM_GET_SUPPORTED_HV_CPUID, hv));
    for (unsigned i = 0; i < c->nent; i++) {
        if (c->entries[i].function >> 8 == 0x400000)
            continue;
        c->entries[n] = c->entries[i];
        if (intel && c->entries[n].function == 0)
            c->entries[n].ebx = 0x756e6547, c->entries[n].edx = 0x49656e69, c->entries[n].ecx = 0x6c65746e;
        n++;
    }
    memcpy(c->entries + n, hv->entries, hv->nent * sizeof(hv->entries[0]));
    c->nent = n + hv->nent;
    VM_MUST(vm_ioctl(vm->vcpu[vcpu], KVM_SET_CPUID2, c));
    free(c);
    free(hv);
}

static struct vm hv_vm(int vcpus)
{
    struct kvm_enable_cap synic = {.cap = KVM_CAP_HYPERV_SYNIC2};
    struct vm vm = vm_create(RAM);

    VM_MUST(vm_ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
    for (int i = 0; i < vcpus; i++) {
        vm_add_vcpu(&vm, i);
        set_hv_cpuid(&vm, i, true);
        VM_MUST(vm_ioctl(vm.vcpu[i], KVM_ENABLE_CAP, &synic));
    }
    return vm;
}

static void expect_port(struct vm *vm, uint16_t port)
{
    assert_int_equal(vm_run(vm, 0), 0);
    if (vm->run[0]->exit_reason != KVM_EXIT_IO)
        print_error("exit %u, rip %#llx\n", vm->run[0]->exit_reason, (unsigned long long)vm_regs(vm, 0).rip);
    assert_int_equal(vm->run[0]->exit_reason, KVM_EXIT_IO);
    assert_int_equal(vm->run[0]->io.port, port);
}

static uint64_t msr(struct vm *vm, uint32_t index)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } m = {{.nmsrs = 1}, {.index = index}};

    assert_int_equal(vm_ioctl(vm->vcpu[0], KVM_GET_MSRS, &m), 1);
    return m.entry.data;
}

#define WRMSR(index, value)                                                         \
    "mov $" #index ", %ecx\n mov $(" #value ") & 0xffffffff, %eax\n mov $((" #value \
    ") >> 32) & 0xffffffff, %edx\n wrmsr\n"
#define IDENTIFY WRMSR(0x40000000, 0x0100000000000000) WRMSR(0x40000001, 0x100001)

static void leaves(void **state)
{
    struct vm vm = vm_create(RAM);
    struct kvm_cpuid2 *hv = calloc(1, sizeof(*hv) + 16 * sizeof(struct kvm_cpuid_entry2));

    hv->nent = 9;
    assert_int_equal(vm_ioctl(vm.sys, KVM_GET_SUPPORTED_HV_CPUID, hv), -1);
    assert_int_equal(errno, E2BIG);
    hv->nent = 16;
    VM_MUST(vm_ioctl(vm.sys, KVM_GET_SUPPORTED_HV_CPUID, hv));
    assert_int_equal(hv->nent, 10);
    assert_int_equal(hv->entries[1].eax, 0x31237648);
    free(hv);
    vm_destroy(&vm);
}

/* The page has the call of the guest's vendor; POST_MESSAGE goes to the client and comes back with its answer. */
VM_ASM(calls, 64,
       IDENTIFY "mov $0x100000, %ebx\n mov $0xbeef, %ecx\n call *%rbx\n out %al, $0x10\n"
                "mov $0x5c, %ecx\n mov $0x103000, %edx\n mov $7, %r8d\n call *%rbx\n out %al, $0x11\n");

static void hypercalls(void **state)
{
    struct vm vm = hv_vm(1);

    vm_load(&vm, calls);
    vm_start_long(&vm, 0);
    expect_port(&vm, 0x10);
    assert_memory_equal(vm.ram + PAGE_CALL, "\x0f\x01\xc1\xc3", 4);
    assert_int_equal(vm_regs(&vm, 0).rax, 2); /* no such call */
    assert_int_equal(vm_run(&vm, 0), 0);
    assert_int_equal(vm.run[0]->exit_reason, KVM_EXIT_HYPERV);
    assert_int_equal(vm.run[0]->hyperv.type, KVM_EXIT_HYPERV_HCALL);
    assert_int_equal(vm.run[0]->hyperv.u.hcall.input, 0x5c);
    assert_int_equal(vm.run[0]->hyperv.u.hcall.params[0], PAGE_INPUT);
    assert_int_equal(vm.run[0]->hyperv.u.hcall.params[1], 7);
    vm.run[0]->hyperv.u.hcall.result = 0x12;
    expect_port(&vm, 0x11);
    assert_int_equal(vm_regs(&vm, 0).rax, 0x12);
    vm_destroy(&vm);
}

/* SIGNAL_EVENT of a connection that has an eventfd: no exit; of another, or with an event flag, the client is asked. */
VM_ASM(signals, 64,
       IDENTIFY "mov $0x100000, %ebx\n mov $0x1005d, %ecx\n mov $0x4321, %edx\n call *%rbx\n out %al, $0x10\n"
                "mov $0x1005d, %ecx\n mov $0x4322, %edx\n call *%rbx\n out %al, $0x11\n"
                "mov $0x1005d, %ecx\n mov $0x100004321, %rdx\n call *%rbx\n out %al, $0x12\n"
                "mov $0x1005d, %ecx\n mov $0x1004321, %edx\n call *%rbx\n out %al, $0x13\n"
                "movq $0x4321, 0x103000\n mov $0x5d, %ecx\n mov $0x103000, %edx\n call *%rbx\n out %al, $0x14\n");

static void expect_call(struct vm *vm, uint64_t param)
{
    assert_int_equal(vm_run(vm, 0), 0);
    assert_int_equal(vm->run[0]->exit_reason, KVM_EXIT_HYPERV);
    assert_int_equal(vm->run[0]->hyperv.type, KVM_EXIT_HYPERV_HCALL);
    assert_int_equal(vm->run[0]->hyperv.u.hcall.params[0], param);
    vm->run[0]->hyperv.u.hcall.result = 0x12;
}

static void events_signal_eventfds(void **state)
{
    const int fd = eventfd(0, EFD_NONBLOCK);
    struct kvm_hyperv_eventfd e = {.conn_id = 0x4321, .fd = fd};
    struct vm vm = hv_vm(1);
    uint64_t count = 0;

    VM_MUST(vm_ioctl(vm.fd, KVM_HYPERV_EVENTFD, &e));
    vm_load(&vm, signals);
    vm_start_long(&vm, 0);
    expect_port(&vm, 0x10);
    assert_int_equal(vm_regs(&vm, 0).rax, 0);
    assert_int_equal(read(fd, &count, sizeof(count)), sizeof(count));
    assert_int_equal(count, 1);
    expect_call(&vm, 0x4322);
    expect_port(&vm, 0x11);
    expect_call(&vm, 0x100004321);
    expect_port(&vm, 0x12);
    expect_port(&vm, 0x13);
    assert_int_equal(vm_regs(&vm, 0).rax, 3); /* reserved bits */
    expect_port(&vm, 0x14);
    assert_int_equal(vm_regs(&vm, 0).rax, 0);
    assert_int_equal(read(fd, &count, sizeof(count)), sizeof(count));
    assert_int_equal(count, 1);
    vm_destroy(&vm);
    close(fd);
}

/* The guest's reading of the page agrees with the MSR, before and after the client sets the clock. */
VM_ASM(tsc_page, 64,
       IDENTIFY WRMSR(0x40000021, 0x101001) /* on */
       "1: mov $0x40000020, %ecx\n rdmsr\n shl $32, %rdx\n or %rdx, %rax\n mov %rax, %rsi\n"
       "rdtsc\n shl $32, %rdx\n or %rdx, %rax\n mulq 0x101008\n add 0x101010, %rdx\n mov %rdx, %rdi\n"
       "out %al, $0x10\n jmp 1b\n");

static void reference_time(void **state)
{
    struct vm vm = hv_vm(1);

    vm_load(&vm, tsc_page);
    vm_start_long(&vm, 0);
    for (int round = 0; round < 3; round++) {
        struct kvm_clock_data clock = {.clock = (uint64_t)round * 3600000000000};
        const uint64_t low = (uint64_t)round * 36000000000;
        struct kvm_regs regs;

        if (round)
            VM_MUST(vm_ioctl(vm.fd, KVM_SET_CLOCK, &clock));
        expect_port(&vm, 0x10);
        regs = vm_regs(&vm, 0);
        assert_true(*(uint32_t *)(vm.ram + PAGE_TSC) != 0);
        assert_true(regs.rsi >= low && regs.rsi < low + 100000000); /* ten seconds */
        assert_true(regs.rdi >= regs.rsi && regs.rdi < regs.rsi + 10000000);
    }
    vm_destroy(&vm);
}

/* Timer 0, a message to source 2 (vector 0x50): a period of 5 ms. Timer 1: direct, vector 0x51, once. */
VM_ASM(timers, 64,
       IDENTIFY WRMSR(0x1b, 0xfee00900) /* the APIC, as it is */
       "mov $0xfee000f0, %r15d\n movl $0x1ff, (%r15)\n" WRMSR(0x40000083, 0x102001)
           WRMSR(0x40000092, 0x20050) /* auto EOI */
       WRMSR(0x400000b1, 50000)
           WRMSR(0x400000b0, 0x20003) "mov $0x40000020, %ecx\n rdmsr\n add $100000, %eax\n adc $0, %edx\n mov "
                                      "$0x400000b3, %ecx\n wrmsr\n" WRMSR(0x400000b2,
                                                                          0x1511) "1: sti\n hlt\n jmp 1b\n");
VM_ASM(on_message, 64,
       "push %rax\n push %rcx\n push %rdx\n out %al, $0x50\n movl $0, 0x102200\n" WRMSR(
           0x40000084, 0) "pop %rdx\n pop %rcx\n pop %rax\n iretq\n");
VM_ASM(on_direct, 64, "out %al, $0x51\n mov $0xfee000b0, %r14d\n movl $0, (%r14)\n iretq\n");

static void synthetic_timers(void **state)
{
    extern const uint8_t on_message[], on_message_end[], on_direct[], on_direct_end[];
    struct vm vm = hv_vm(1);
    unsigned messages = 0, directs = 0;
    uint64_t last = 0;

    vm_load(&vm, timers);
    memcpy(vm.ram + VM_CODE + 0x800, on_message, (size_t)(on_message_end - on_message));
    memcpy(vm.ram + VM_CODE + 0x900, on_direct, (size_t)(on_direct_end - on_direct));
    vm_start_long(&vm, 0);
    vm_gate(&vm, 0x50, VM_CODE + 0x800);
    vm_gate(&vm, 0x51, VM_CODE + 0x900);
    assert_int_equal(vm_run(&vm, 0), 0);
    assert_int_equal(vm.run[0]->exit_reason, KVM_EXIT_HYPERV); /* the message page is the client's to know */
    assert_int_equal(vm.run[0]->hyperv.type, KVM_EXIT_HYPERV_SYNIC);
    assert_int_equal(vm.run[0]->hyperv.u.synic.msg_page, 0x102001);
    while (messages < 4) {
        const uint8_t *slot = vm.ram + PAGE_MSG + 2 * 256;

        assert_int_equal(vm_run(&vm, 0), 0);
        assert_int_equal(vm.run[0]->exit_reason, KVM_EXIT_IO);
        if (vm.run[0]->io.port == 0x51) {
            directs++;
            continue;
        }
        messages++;
        assert_int_equal(*(const uint32_t *)slot, 0x80000010);
        assert_int_equal(slot[4], 24);
        assert_int_equal(*(const uint32_t *)(slot + 16), 0); /* of timer 0 */
        assert_true(*(const uint64_t *)(slot + 24) >= last + 50000 || !last);
        assert_true(*(const uint64_t *)(slot + 32) >= *(const uint64_t *)(slot + 24));
        last = *(const uint64_t *)(slot + 24);
    }
    assert_int_equal(directs, 1);
    assert_int_equal(msr(&vm, 0x400000b2) & 1, 0); /* done */
    assert_int_equal(msr(&vm, 0x400000b0) & 1, 1);
    vm_destroy(&vm);
}

/* A fast call with the vector in RDX and the processors in R8, and one whose input is in memory, sparse */
VM_ASM(ipis, 64,
       IDENTIFY "mov $0xfee000f0, %r15d\n movl $0x1ff, (%r15)\n mov $0x100000, %ebx\n sti\n"
                "mov $0x1000b, %ecx\n mov $0x50, %edx\n mov $1, %r8d\n call *%rbx\n out %al, $0x10\n"
                "movq $0x50, 0x103000\n movq $0, 0x103008\n movq $1, 0x103010\n movq $1, 0x103018\n"
                "mov $0x20015, %ecx\n mov $0x103000, %edx\n xor %r8d, %r8d\n call *%rbx\n out %al, $0x11\n"
                "mov $0x20015, %ecx\n movq $3, 0x103010\n call *%rbx\n out %al, $0x12\n"
                "mov $0x10002, %ecx\n xor %edx, %edx\n mov $1, %r8d\n call *%rbx\n out %al, $0x13\n");
VM_ASM(on_ipi, 64, "out %al, $0x50\n mov $0xfee000b0, %r14d\n movl $0, (%r14)\n iretq\n");

static void ipis_and_flushes(void **state)
{
    extern const uint8_t on_ipi[], on_ipi_end[];
    struct vm vm = hv_vm(1);

    vm_load(&vm, ipis);
    memcpy(vm.ram + VM_CODE + 0x800, on_ipi, (size_t)(on_ipi_end - on_ipi));
    vm_start_long(&vm, 0);
    vm_gate(&vm, 0x50, VM_CODE + 0x800);
    for (uint16_t port = 0x10; port < 0x12; port++) {
        expect_port(&vm, 0x50);
        expect_port(&vm, port);
        assert_int_equal(vm_regs(&vm, 0).rax, 0);
    }
    expect_port(&vm, 0x12);
    assert_int_equal(vm_regs(&vm, 0).rax, 3); /* two banks are named, one is said to come */
    expect_port(&vm, 0x13);
    assert_int_equal(vm_regs(&vm, 0).rax, 0);
    vm_destroy(&vm);
}

VM_ASM(crash, 64,
       IDENTIFY WRMSR(0x40000100,
                      0x1234) "mov $0x40000105, %ecx\n xor %eax, %eax\n mov $0x80000000, %edx\n wrmsr\n hlt\n");

static void crash_is_told(void **state)
{
    struct vm vm = hv_vm(1);

    vm_load(&vm, crash);
    vm_start_long(&vm, 0);
    assert_int_equal(vm_run(&vm, 0), 0);
    assert_int_equal(vm.run[0]->exit_reason, KVM_EXIT_SYSTEM_EVENT);
    assert_int_equal(vm.run[0]->system_event.type, KVM_SYSTEM_EVENT_CRASH);
    assert_int_equal(vm.run[0]->system_event.data[0], 0x1234);
    vm_destroy(&vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(leaves),         cmocka_unit_test(hypercalls),       cmocka_unit_test(events_signal_eventfds),
        cmocka_unit_test(reference_time), cmocka_unit_test(synthetic_timers), cmocka_unit_test(ipis_and_flushes),
        cmocka_unit_test(crash_is_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
