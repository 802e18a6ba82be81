/* SPDX-License-Identifier: MIT
 * test_smm.c: system management mode by API programs: KVM_SMI, a handler in an address space of its own, RSM, SMBASE,
 * the state that KVM_GET_VCPU_EVENTS carries. */
#include "vm.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define RAM           (4ull << 20)
#define SMRAM         0x30000ull /* the reset value of SMBASE; in address space 1 memory of its own */
#define SMRAM_SIZE    0x40000ull
#define MOVED         0x50000ull
#define MSR_SMBASE    0x9e
#define AREA64_SMBASE 0xff00
#define AREA64_CR0    0xff58
#define AREA32_SMBASE 0xfef8
#define AREA_REVISION 0xfefc

static uint8_t *smram;

static void expect_port(struct vm *vm, uint16_t port, bool in_smm)
{
    assert_int_equal(vm_run(vm, 0), 0);
    if (vm->run[0]->exit_reason != KVM_EXIT_IO)
        print_error("exit %u, rip %#llx\n", vm->run[0]->exit_reason, (unsigned long long)vm_regs(vm, 0).rip);
    assert_int_equal(vm->run[0]->exit_reason, KVM_EXIT_IO);
    assert_int_equal(vm->run[0]->io.port, port);
    assert_int_equal(!!(vm->run[0]->flags & KVM_RUN_X86_SMM), in_smm);
}

static struct kvm_vcpu_events events(struct vm *vm)
{
    struct kvm_vcpu_events e;

    VM_MUST(vm_ioctl(vm->vcpu[0], KVM_GET_VCPU_EVENTS, &e));
    return e;
}

static uint64_t smbase(struct vm *vm)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } msrs = {{.nmsrs = 1}, {.index = MSR_SMBASE}};

    assert_int_equal(vm_ioctl(vm->vcpu[0], KVM_GET_MSRS, &msrs), 1);
    return msrs.entry.data;
}

/* The handler spoils registers, writes where both address spaces have memory, and tells its SMBASE by the port. */
VM_ASM(smi_handler, 16,
       "mov $0xdead, %bx\n xor %esp, %esp\n movb $0x77, %cs:0x4000\n out %al, $0x80\n .byte 0x0f, 0xaa\n hlt\n");
VM_ASM(smi_move_64, 16, "movl $0x50000, %cs:0xff00\n out %al, $0x81\n .byte 0x0f, 0xaa\n");
VM_ASM(smi_move_32, 16, "movl $0x50000, %cs:0xfef8\n out %al, $0x81\n .byte 0x0f, 0xaa\n");
/* Over 64 KiB from its base a 16-bit handler goes on without a jump and with one of 32 bits. */
VM_ASM(smi_high, 16, "mov $0x12345, %ebp\n jmp *%ebp\n");
VM_ASM(smi_high_2, 16,
       "mov $0x80000001, %eax\n cpuid\n mov %edx, %ebx\n out %al, $0x82\n .byte 0x66, 0xe9\n .long 1f - . - 4\n hlt\n "
       "1: out %al, $0x83\n"
       ".byte 0x0f, 0xaa\n");
VM_ASM(guest_64, 64, "1: out %al, $0x10\n out %al, $0x11\n jmp 1b\n");
VM_ASM(guest_16, 16, "1: out %al, $0x10\n out %al, $0x11\n jmp 1b\n");
VM_ASM(guest_rsm, 64, ".byte 0x0f, 0xaa\n");
VM_ASM(on_ud, 64, "out %al, $0x66\n");

#define PUT(at, code) memcpy(smram + ((at)-SMRAM) + 0x8000, code, (size_t)(code##_end - code))

static struct vm smm_vm(void)
{
    struct vm vm = vm_create(RAM);

    smram = mmap(NULL, SMRAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    vm_slot(&vm, 1u << 16 | 1, SMRAM, SMRAM_SIZE, smram, 0);
    vm_add_vcpu(&vm, 0);
    return vm;
}

static void end(struct vm *vm)
{
    vm_destroy(vm);
    munmap(smram, SMRAM_SIZE);
}

static void capabilities(void **state)
{
    struct vm vm = vm_create(RAM);

    assert_int_equal(vm_ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_X86_SMM), 1);
    assert_int_equal(vm_ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_MULTI_ADDRESS_SPACE), 2);
    vm_destroy(&vm);
}

static void handler_runs_in_its_own_memory(void **state)
{
    struct vm vm = smm_vm();
    struct kvm_sregs before, after;
    struct kvm_regs regs;

    extern const uint8_t smi_handler[], smi_handler_end[];
    vm_load(&vm, guest_64);
    PUT(SMRAM, smi_handler);
    vm_start_long(&vm, 0);
    expect_port(&vm, 0x10, false);
    regs = vm_regs(&vm, 0);
    regs.rbx = 0x1122334455667788;
    regs.r15 = 0x99aabbccddeeff00;
    vm_set_regs(&vm, 0, regs);
    before = vm_sregs(&vm, 0);
    VM_MUST(vm_ioctl(vm.vcpu[0], KVM_SMI, 0));
    assert_int_equal(events(&vm).smi.pending, 1);
    expect_port(&vm, 0x80, true);
    assert_int_equal(events(&vm).smi.smm, 1);
    assert_int_equal(events(&vm).nmi.masked, 1);
    after = vm_sregs(&vm, 0);
    assert_int_equal(after.cr0 & 0x80000001, 0);
    assert_int_equal(after.cr4 | after.efer | after.idt.limit, 0);
    assert_int_equal(after.cs.base, SMRAM);
    assert_int_equal(after.cs.limit, 0xffffffff);
    assert_int_equal(*(uint32_t *)(smram + AREA_REVISION), 0x20064);
    expect_port(&vm, 0x11, false);
    assert_int_equal(smram[0x4000], 0x77);
    assert_int_equal(vm.ram[SMRAM + 0x4000], 0);
    assert_int_equal(vm_regs(&vm, 0).rbx, regs.rbx);
    assert_int_equal(vm_regs(&vm, 0).r15, regs.r15);
    assert_int_equal(vm_regs(&vm, 0).rsp, regs.rsp);
    after = vm_sregs(&vm, 0);
    assert_memory_equal(&before, &after, sizeof(before));
    assert_int_equal(events(&vm).smi.smm | events(&vm).nmi.masked, 0);
    end(&vm);
}

static void handler_beyond_64k(void **state)
{
    struct vm vm = smm_vm();

    extern const uint8_t smi_high[], smi_high_end[], smi_high_2[], smi_high_2_end[];
    vm_load(&vm, guest_64);
    PUT(SMRAM, smi_high);
    memcpy(smram + 0x12345, smi_high_2, (size_t)(smi_high_2_end - smi_high_2));
    vm_start_long(&vm, 0);
    expect_port(&vm, 0x10, false);
    VM_MUST(vm_ioctl(vm.vcpu[0], KVM_SMI, 0));
    expect_port(&vm, 0x82, true);
    assert_in_range(vm_regs(&vm, 0).rip, 0x12345, 0x12365);
    expect_port(&vm, 0x83, true);
    expect_port(&vm, 0x11, false);
    end(&vm);
}

/* Both layouts of the save area: with long mode in the guest's CPUID, and without */
static void smbase_moves(void **state)
{
    for (int wide = 0; wide < 2; wide++) {
        struct vm vm = smm_vm();
        struct kvm_cpuid2 none = {.nent = 0};

        extern const uint8_t smi_handler[], smi_handler_end[], smi_move_64[], smi_move_64_end[], smi_move_32[],
            smi_move_32_end[];
        if (wide) {
            vm_load(&vm, guest_64);
            PUT(SMRAM, smi_move_64);
            vm_start_long(&vm, 0);
        } else {
            VM_MUST(vm_ioctl(vm.vcpu[0], KVM_SET_CPUID2, &none));
            vm_load(&vm, guest_16);
            PUT(SMRAM, smi_move_32);
            vm_start_real(&vm, 0);
        }
        PUT(MOVED, smi_handler);
        assert_int_equal(smbase(&vm), SMRAM);
        expect_port(&vm, 0x10, false);
        VM_MUST(vm_ioctl(vm.vcpu[0], KVM_SMI, 0));
        expect_port(&vm, 0x81, true);
        assert_int_equal(*(uint32_t *)(smram + AREA_REVISION), wide ? 0x20064 : 0x20000);
        expect_port(&vm, 0x11, false);
        assert_int_equal(smbase(&vm), MOVED);
        VM_MUST(vm_ioctl(vm.vcpu[0], KVM_SMI, 0));
        expect_port(&vm, 0x80, true);
        VM_MUST(vm_ioctl(vm.vcpu[0], KVM_SMI, 0)); /* one that comes meanwhile waits for RSM */
        expect_port(&vm, 0x80, true);
        assert_int_equal(vm_sregs(&vm, 0).cs.base, MOVED);
        expect_port(&vm, 0x10, false);
        assert_int_equal(smram[MOVED - SMRAM + 0x4000], 0x77);
        end(&vm);
    }
}

static void bad_saved_state_shuts_down(void **state)
{
    struct vm vm = smm_vm();

    extern const uint8_t smi_handler[], smi_handler_end[];
    vm_load(&vm, guest_64);
    PUT(SMRAM, smi_handler);
    vm_start_long(&vm, 0);
    expect_port(&vm, 0x10, false);
    VM_MUST(vm_ioctl(vm.vcpu[0], KVM_SMI, 0));
    expect_port(&vm, 0x80, true);
    *(uint64_t *)(smram + AREA64_CR0) &= ~1ull; /* paging without protection */
    assert_int_equal(vm_run(&vm, 0), 0);
    assert_int_equal(vm.run[0]->exit_reason, KVM_EXIT_SHUTDOWN);
    end(&vm);
}

/* A client that moves a vCPU to another VM carries the mode in its events. */
static void events_carry_the_mode(void **state)
{
    struct vm vm = smm_vm();
    struct kvm_vcpu_events e;
    struct kvm_sregs sregs;
    struct kvm_regs regs;

    extern const uint8_t smi_handler[], smi_handler_end[];
    vm_load(&vm, guest_64);
    PUT(SMRAM, smi_handler);
    vm_start_long(&vm, 0);
    expect_port(&vm, 0x10, false);
    VM_MUST(vm_ioctl(vm.vcpu[0], KVM_SMI, 0));
    expect_port(&vm, 0x80, true);
    vm.run[0]->immediate_exit = 1;
    assert_int_equal(vm_run(&vm, 0), -1);
    assert_int_equal(errno, EINTR);
    vm.run[0]->immediate_exit = 0;
    e = events(&vm);
    sregs = vm_sregs(&vm, 0);
    regs = vm_regs(&vm, 0);
    e.flags = KVM_VCPUEVENT_VALID_SMM;
    e.smi.smm = 0;
    VM_MUST(vm_ioctl(vm.vcpu[0], KVM_SET_VCPU_EVENTS, &e));
    vm_start_long(&vm, 0);
    expect_port(&vm, 0x10, false);
    vm_set_sregs(&vm, 0, sregs);
    vm_set_regs(&vm, 0, regs);
    e.smi.smm = 1;
    VM_MUST(vm_ioctl(vm.vcpu[0], KVM_SET_VCPU_EVENTS, &e));
    expect_port(&vm, 0x11, false); /* RSM found the area in address space 1 */
    end(&vm);
}

static void rsm_elsewhere_is_ud(void **state)
{
    struct vm vm = smm_vm();

    extern const uint8_t on_ud[], on_ud_end[];
    vm_load(&vm, guest_rsm);
    memcpy(vm.ram + VM_CODE + 0x800, on_ud, (size_t)(on_ud_end - on_ud));
    vm_start_long(&vm, 0);
    vm_gate(&vm, 6, VM_CODE + 0x800);
    expect_port(&vm, 0x66, false);
    end(&vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(capabilities),
        cmocka_unit_test(handler_runs_in_its_own_memory),
        cmocka_unit_test(handler_beyond_64k),
        cmocka_unit_test(smbase_moves),
        cmocka_unit_test(bad_saved_state_shuts_down),
        cmocka_unit_test(events_carry_the_mode),
        cmocka_unit_test(rsm_elsewhere_is_ud),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
