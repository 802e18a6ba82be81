/* SPDX-License-Identifier: MIT
 * test_quirks.c: what KVM_CAP_DISABLE_QUIRKS2 turns off, hypercalls by vendor and by the features that a client grants,
 * registers that a client changes amid string I/O, page tables that are no RAM, many vCPUs, KVM_RUN ended from
 * another thread. */
#include "vm.h"
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <linux/kvm_para.h>

#define RAM (4ull << 20)

/* #UD: RAX = -14, past the three bytes */
VM_ASM(on_ud, 64, "mov $-14, %rax\n addq $3, (%rsp)\n iretq\n");
VM_ASM(call_vmcall, 64, "vmcall\n out %al, $0x10\n");
VM_ASM(call_vmmcall, 64, "vmmcall\n out %al, $0x10\n");
VM_ASM(wait_monitor, 64, "mov $0x10000, %rax\n xor %ecx, %ecx\n xor %edx, %edx\n monitor\n mwait\n out %al, $0x10\n");

#define START(vm, code)                                                          \
    do {                                                                         \
        extern const uint8_t on_ud[], on_ud_end[];                               \
        vm_load(vm, code);                                                       \
        memcpy((vm)->ram + VM_CODE + 0x800, on_ud, (size_t)(on_ud_end - on_ud)); \
        vm_start_long(vm, 0);                                                    \
        vm_gate(vm, 6, VM_CODE + 0x800);                                         \
    } while (0)

static void expect_port(struct vm *vm, uint16_t port)
{
    assert_int_equal(vm_run(vm, 0), 0);
    assert_int_equal(vm->run[0]->exit_reason, KVM_EXIT_IO);
    assert_int_equal(vm->run[0]->io.port, port);
}

static void disable(struct vm *vm, uint64_t quirks)
{
    struct kvm_enable_cap cap = {.cap = KVM_CAP_DISABLE_QUIRKS2, .args = {quirks}};

    VM_MUST(vm_ioctl(vm->fd, KVM_ENABLE_CAP, &cap));
}

/* leaf 1 ECX bit 3 and the vendor */
static void set_cpuid(struct vm *vm, const char vendor[12], bool mwait)
{
    struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 256 * sizeof(struct kvm_cpuid_entry2));

    c->nent = 256;
    VM_MUST(vm_ioctl(vm->sys, KVM_GET_SUPPORTED_CPUID, c));
    for (unsigned i = 0; i < c->nent; i++) {
        struct kvm_cpuid_entry2 *e = &c->entries[i];

        if (e->function == 0) {
            memcpy(&e->ebx, vendor, 4);
            memcpy(&e->edx, vendor + 4, 4);
            memcpy(&e->ecx, vendor + 8, 4);
        } else if (e->function == 1) {
            e->ecx = mwait ? e->ecx | 8 : e->ecx & ~8u;
        }
    }
    VM_MUST(vm_ioctl(vm->vcpu[0], KVM_SET_CPUID2, c));
    free(c);
}

static void hypercall_of_the_other_vendor(void **state)
{
    static const uint8_t vmcall[] = {0x0f, 0x01, 0xc1}, vmmcall[] = {0x0f, 0x01, 0xd9};

    for (int amd = 0; amd < 2; amd++)
        for (int other = 0; other < 2; other++)
            for (int fix = 0; fix < 2; fix++) {
                struct vm vm = vm_create(RAM);
                struct kvm_regs regs;

                vm_add_vcpu(&vm, 0);
                set_cpuid(&vm, amd ? "AuthenticAMD" : "GenuineIntel", false);
                if (!fix)
                    disable(&vm, KVM_X86_QUIRK_FIX_HYPERCALL_INSN);
                if (amd ^ other)
                    START(&vm, call_vmmcall);
                else
                    START(&vm, call_vmcall);
                regs = vm_regs(&vm, 0);
                regs.rax = KVM_HC_VAPIC_POLL_IRQ;
                vm_set_regs(&vm, 0, regs);
                expect_port(&vm, 0x10);
                assert_int_equal(vm_regs(&vm, 0).rax, other && !fix ? (uint64_t)-14 : 0);
                assert_memory_equal(vm.ram + VM_CODE, amd ^ (other && !fix) ? vmmcall : vmcall, 3);
                vm_destroy(&vm);
            }
}

static void monitor_and_mwait(void **state)
{
    for (int quirk = 0; quirk < 2; quirk++)
        for (int mwait = 0; mwait < 2; mwait++) {
            struct vm vm = vm_create(RAM);

            vm_add_vcpu(&vm, 0);
            set_cpuid(&vm, "GenuineIntel", mwait);
            if (!quirk)
                disable(&vm, KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS);
            START(&vm, wait_monitor);
            expect_port(&vm, 0x10);
            assert_int_equal(vm_regs(&vm, 0).rax, quirk || mwait ? 0x10000 : (uint64_t)-14);
            vm_destroy(&vm);
        }
}

VM_ASM(call_yield, 64, "mov $11, %eax\n xor %ebx, %ebx\n vmcall\n out %al, $0x10\n"); /* KVM_HC_SCHED_YIELD */

static void features_that_are_not_granted(void **state)
{
    static const uint32_t msrs[] = {MSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_STEAL_TIME, MSR_KVM_PV_EOI_EN,
                                    MSR_KVM_POLL_CONTROL};

    for (int enforce = 0; enforce < 2; enforce++) {
        struct kvm_enable_cap cap = {.cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID, .args = {1}};
        struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 256 * sizeof(struct kvm_cpuid_entry2));
        struct vm vm = vm_create(RAM);

        vm_add_vcpu(&vm, 0);
        c->nent = 256;
        VM_MUST(vm_ioctl(vm.sys, KVM_GET_SUPPORTED_CPUID, c));
        for (unsigned i = 0; i < c->nent; i++) {
            if (c->entries[i].function == 0) /* VMCALL is the call */
                c->entries[i].ebx = 0x756e6547, c->entries[i].edx = 0x49656e69, c->entries[i].ecx = 0x6c65746e;
            if (c->entries[i].function == 0x40000001)
                c->entries[i].eax = 0;
        }
        VM_MUST(vm_ioctl(vm.vcpu[0], KVM_SET_CPUID2, c));
        if (enforce)
            VM_MUST(vm_ioctl(vm.vcpu[0], KVM_ENABLE_CAP, &cap));
        START(&vm, call_yield);
        expect_port(&vm, 0x10);
        assert_int_equal((int64_t)vm_regs(&vm, 0).rax, enforce ? -KVM_ENOSYS : 0);
        for (unsigned i = 0; i < sizeof(msrs) / sizeof(msrs[0]); i++) { /* the client itself always may */
            struct {
                struct kvm_msrs head;
                struct kvm_msr_entry entry;
            } m = {{.nmsrs = 1}, {.index = msrs[i]}};

            assert_int_equal(vm_ioctl(vm.vcpu[0], KVM_GET_MSRS, &m), 1);
        }
        free(c);
        vm_destroy(&vm);
    }
}

VM_ASM(read_string, 64, "cld\n mov $0x20000, %edi\n mov $5, %ecx\n mov $0x80, %edx\n rep insb\n out %al, $0x10\n");

/* What a client makes of RCX amid a REP INS is the count from there on, and no more is stored. */
static void string_count_is_the_clients(void **state)
{
    static const struct {
        uint64_t rcx, end;
    } cases[] = {{5, 0x20005}, {2, 0x20002}, {9, 0x20009}};

    for (unsigned i = 0; i < 3; i++) {
        struct vm vm = vm_create(RAM);
        struct kvm_regs regs;

        vm_add_vcpu(&vm, 0);
        START(&vm, read_string);
        expect_port(&vm, 0x80);
        assert_int_equal(vm.run[0]->io.count, 5);
        regs = vm_regs(&vm, 0);
        regs.rcx = cases[i].rcx;
        vm_set_regs(&vm, 0, regs);
        do {
            memset((uint8_t *)vm.run[0] + vm.run[0]->io.data_offset, 0xaa, 16);
            assert_int_equal(vm_run(&vm, 0), 0);
        } while (vm.run[0]->io.port == 0x80);
        assert_int_equal(vm_regs(&vm, 0).rcx, 0);
        assert_int_equal(vm_regs(&vm, 0).rdi, cases[i].end);
        for (uint64_t at = 0x20000; at < 0x20010; at++)
            assert_int_equal(vm.ram[at], at < cases[i].end ? 0xaa : 0);
        vm_destroy(&vm);
    }
}

VM_ASM(touch, 64, "1: mov 0x200000, %eax\n out %al, $0x10\n jmp 1b\n");

static void tables_that_are_no_ram(void **state)
{
    struct vm vm = vm_create(RAM);

    vm_add_vcpu(&vm, 0);
    START(&vm, touch);
    expect_port(&vm, 0x10);
    *(uint64_t *)(vm.ram + VM_PML4 + VM_PAGE) = 0x80000000ull | 7; /* a page directory where no slot is */
    struct kvm_sregs s = vm_sregs(&vm, 0);
    vm_set_sregs(&vm, 0, s);
    assert_int_equal(vm_run(&vm, 0), 0);
    assert_int_equal(vm.run[0]->exit_reason, KVM_EXIT_INTERNAL_ERROR);
    assert_int_equal(vm.run[0]->internal.suberror, KVM_INTERNAL_ERROR_EMULATION);
    vm_destroy(&vm);
}

static void cr4_before_cpuid(void **state)
{
    struct vm vm = vm_create(RAM);
    struct kvm_sregs s;

    vm.vcpu[1] = (int)VM_MUST(vm_ioctl(vm.fd, KVM_CREATE_VCPU, 1)); /* no KVM_SET_CPUID2 */
    vm.run[1] = mmap(NULL, vm.run_size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    s = vm_sregs(&vm, 1);
    s.cr4 |= 1u << 20 | 1u << 16; /* SMEP, FSGSBASE */
    vm_set_sregs(&vm, 1, s);
    s.cr4 |= 1u << 12; /* LA57 */
    assert_int_equal(vm_ioctl(vm.vcpu[1], KVM_SET_SREGS, &s), -1);
    vm_destroy(&vm);
}

static void as_many_vcpus_as_offered(void **state)
{
    struct vm vm = vm_create(RAM);
    const int max = (int)vm_ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
    int *fds = calloc((size_t)max, sizeof(int));

    for (int i = 0; i < max; i++)
        fds[i] = (int)VM_MUST(vm_ioctl(vm.fd, KVM_CREATE_VCPU, i));
    for (int i = 0; i < max; i++)
        vm_on_host() ? close(fds[i]) : anykvm_close(fds[i]);
    free(fds);
    vm_destroy(&vm);
}

VM_ASM(spin, 64, "1: jmp 1b\n");

static void *interrupt_soon(void *fd)
{
    usleep(20000);
    anykvm_interrupt(*(int *)fd);
    return NULL;
}

static void another_thread_ends_run(void **state)
{
    struct vm vm = vm_create(RAM);
    pthread_t other;

    if (vm_on_host())
        skip();
    vm_add_vcpu(&vm, 0);
    START(&vm, spin);
    anykvm_interrupt(vm.vcpu[0]); /* before the call */
    assert_int_equal(vm_run(&vm, 0), -1);
    assert_int_equal(errno, EINTR);
    pthread_create(&other, NULL, interrupt_soon, &vm.vcpu[0]);
    assert_int_equal(vm_run(&vm, 0), -1);
    assert_int_equal(errno, EINTR);
    assert_int_equal(vm.run[0]->exit_reason, KVM_EXIT_INTR);
    pthread_join(other, NULL);
    vm_destroy(&vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hypercall_of_the_other_vendor), cmocka_unit_test(monitor_and_mwait),
        cmocka_unit_test(features_that_are_not_granted), cmocka_unit_test(string_count_is_the_clients),
        cmocka_unit_test(tables_that_are_no_ram),        cmocka_unit_test(cr4_before_cpuid),
        cmocka_unit_test(as_many_vcpus_as_offered),      cmocka_unit_test(another_thread_ends_run),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
