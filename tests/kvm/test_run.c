/* SPDX-License-Identifier: MIT
 * test_run.c: KVM_RUN by API programs: halting, port and memory-mapped I/O, debugging, errors, interrupts. */
#include "vm.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <cmocka.h>
#include <linux/kvm_para.h>

#define RAM (4ull << 20)

static void expect_exit(struct vm *vm, uint32_t reason)
{
    const int r = vm_run(vm, 0);

    if (r < 0)
        print_error("KVM_RUN: %s\n", strerror(errno));
    assert_int_equal(r, 0);
    if (vm->run[0]->exit_reason != reason)
        print_error("exit %u, expected %u, rip %#llx suberror %u entry failure %#llx\n", vm->run[0]->exit_reason,
                    reason, (unsigned long long)vm_regs(vm, 0).rip, vm->run[0]->internal.suberror,
                    (unsigned long long)vm->run[0]->fail_entry.hardware_entry_failure_reason);
    assert_int_equal(vm->run[0]->exit_reason, reason);
}

static void *pio_data(struct vm *vm)
{
    return (uint8_t *)vm->run[0] + vm->run[0]->io.data_offset;
}

static void expect_out(struct vm *vm, uint16_t port, unsigned size, uint32_t value)
{
    uint32_t got = 0;

    expect_exit(vm, KVM_EXIT_IO);
    assert_int_equal(vm->run[0]->io.direction, KVM_EXIT_IO_OUT);
    assert_int_equal(vm->run[0]->io.port, port);
    assert_int_equal(vm->run[0]->io.size, size);
    assert_int_equal(vm->run[0]->io.count, 1);
    memcpy(&got, pio_data(vm), size);
    assert_int_equal(got, value);
}

/* ---- real mode ---- */
VM_ASM(real_hlt, 16, "mov $42, %ax\n hlt\n mov $43, %bx\n hlt\n");

static void halts_in_real_mode(void **state)
{
    struct vm vm = vm_create(RAM);

    vm_add_vcpu(&vm, 0);
    vm_load(&vm, real_hlt);
    vm_start_real(&vm, 0);
    expect_exit(&vm, KVM_EXIT_HLT);
    assert_int_equal(vm_regs(&vm, 0).rax, 42);
    assert_int_equal(vm_regs(&vm, 0).rip, 4);
    expect_exit(&vm, KVM_EXIT_HLT);
    assert_int_equal(vm_regs(&vm, 0).rbx, 43);
    vm_destroy(&vm);
}

VM_ASM(real_pio, 16,
       "mov $0x3f8, %dx\n mov $3, %cx\n 1: mov %cl, %al\n out %al, (%dx)\n loop 1b\n"
       "in (%dx), %ax\n add $1, %ax\n mov %ax, %bx\n in $0x60, %al\n mov $0xffffffff, %eax\n in $0x61, %al\n hlt\n");

static void reads_and_writes_ports(void **state)
{
    struct vm vm = vm_create(RAM);

    vm_add_vcpu(&vm, 0);
    vm_load(&vm, real_pio);
    vm_start_real(&vm, 0);
    for (unsigned i = 3; i; i--)
        expect_out(&vm, 0x3f8, 1, i);
    expect_exit(&vm, KVM_EXIT_IO);
    assert_int_equal(vm.run[0]->io.direction, KVM_EXIT_IO_IN);
    assert_int_equal(vm.run[0]->io.size, 2);
    memcpy(pio_data(&vm), &(uint16_t){0x1234}, 2);
    expect_exit(&vm, KVM_EXIT_IO);
    assert_int_equal(vm.run[0]->io.port, 0x60);
    assert_int_equal(vm_regs(&vm, 0).rbx, 0x1235);
    expect_exit(&vm, KVM_EXIT_IO);
    *(uint8_t *)pio_data(&vm) = 0x5a;
    expect_exit(&vm, KVM_EXIT_HLT);
    assert_int_equal(vm_regs(&vm, 0).rax, 0xffffff5a);
    vm_destroy(&vm);
}

VM_ASM(real_string, 16,
       "cld\n mov $0x100, %si\n mov $600, %cx\n mov $0x3f8, %dx\n rep outsb\n"
       "mov $0x200, %di\n mov $4, %cx\n rep insw\n hlt\n");

static void moves_strings_through_ports(void **state)
{
    struct vm vm = vm_create(RAM);
    unsigned total = 0;

    vm_add_vcpu(&vm, 0);
    vm_load(&vm, real_string);
    vm_start_real(&vm, 0);
    for (unsigned i = 0; i < 600; i++)
        vm.ram[0x100 + i] = (uint8_t)(i * 7);
    while (total < 600) {
        expect_exit(&vm, KVM_EXIT_IO);
        assert_int_equal(vm.run[0]->io.direction, KVM_EXIT_IO_OUT);
        for (unsigned i = 0; i < vm.run[0]->io.count; i++, total++)
            assert_int_equal(((uint8_t *)pio_data(&vm))[i], (uint8_t)(total * 7));
    }
    assert_int_equal(total, 600);
    for (unsigned got = 0; got < 4;) {
        expect_exit(&vm, KVM_EXIT_IO);
        assert_int_equal(vm.run[0]->io.direction, KVM_EXIT_IO_IN);
        assert_int_equal(vm.run[0]->io.size, 2);
        for (unsigned i = 0; i < vm.run[0]->io.count; i++)
            ((uint16_t *)pio_data(&vm))[i] = (uint16_t)(0x1000 + got++);
    }
    expect_exit(&vm, KVM_EXIT_HLT);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(((uint16_t *)(vm.ram + 0x200))[i], 0x1000 + i);
    assert_int_equal(vm_regs(&vm, 0).rdi, 0x208);
    assert_int_equal(vm_regs(&vm, 0).rcx, 0);
    vm_destroy(&vm);
}

/* Both ends in pages that nobody touched and no entry maps: each element is an access of KVM's. */
VM_ASM(real_string_far, 16,
       "cld\n mov $0x9000, %ax\n mov %ax, %ds\n mov %ax, %es\n mov $0x3f8, %dx\n"
       "mov $0x200, %di\n mov $3000, %cx\n rep insb\n mov $0x4100, %si\n mov $3000, %cx\n rep outsb\n hlt\n");

static void strings_of_unmapped_memory(void **state)
{
    struct vm vm = vm_create(RAM);
    unsigned total = 0, exits = 0;

    vm_add_vcpu(&vm, 0);
    vm_load(&vm, real_string_far);
    vm_start_real(&vm, 0);
    vm.ram[0x94100] = 1;
    while (total < 6000) {
        const bool in = total < 3000;

        expect_exit(&vm, KVM_EXIT_IO);
        assert_int_equal(vm.run[0]->io.direction, in ? KVM_EXIT_IO_IN : KVM_EXIT_IO_OUT);
        for (unsigned i = 0; i < vm.run[0]->io.count; i++, total++)
            if (in)
                ((uint8_t *)pio_data(&vm))[i] = (uint8_t)(total * 7);
            else
                assert_int_equal(((uint8_t *)pio_data(&vm))[i], total == 3000);
        exits++;
    }
    assert_int_equal(total, 6000);
    assert_in_range(exits, 6, 600);
    expect_exit(&vm, KVM_EXIT_HLT);
    for (unsigned i = 0; i < 3000; i++)
        assert_int_equal(vm.ram[0x90200 + i], (uint8_t)(i * 7));
    vm_destroy(&vm);
}

/* ---- 64-bit mode and MMIO ---- */
static struct vm long_vm(void)
{
    struct vm vm = vm_create(RAM);

    vm_add_vcpu(&vm, 0);
    return vm;
}

#define MMIO 0xd0000000ull

static void expect_mmio(struct vm *vm, uint64_t gpa, unsigned len, int write)
{
    expect_exit(vm, KVM_EXIT_MMIO);
    assert_int_equal(vm->run[0]->mmio.phys_addr, gpa);
    assert_int_equal(vm->run[0]->mmio.len, len);
    assert_int_equal(vm->run[0]->mmio.is_write, write);
}

VM_ASM(long_mmio, 64,
       "mov $0xd0000000, %ebx\n movabs $0x1122334455667788, %rax\n"
       "mov %al, (%rbx)\n mov %ax, 2(%rbx)\n mov %eax, 4(%rbx)\n mov %rax, 8(%rbx)\n"
       "mov 16(%rbx), %rcx\n movzbl 24(%rbx), %edx\n addl $5, 32(%rbx)\n cmpw $7, 40(%rbx)\n sete %sil\n"
       "movups 48(%rbx), %xmm0\n movups %xmm0, 64(%rbx)\n hlt\n");

static void moves_through_mmio(void **state)
{
    struct vm vm = long_vm();
    struct kvm_regs regs;

    vm_load(&vm, long_mmio);
    vm_start_long(&vm, 0);
    expect_mmio(&vm, MMIO, 1, 1);
    assert_int_equal(vm.run[0]->mmio.data[0], 0x88);
    expect_mmio(&vm, MMIO + 2, 2, 1);
    expect_mmio(&vm, MMIO + 4, 4, 1);
    expect_mmio(&vm, MMIO + 8, 8, 1);
    assert_memory_equal(vm.run[0]->mmio.data, &(uint64_t){0x1122334455667788}, 8);
    expect_mmio(&vm, MMIO + 16, 8, 0);
    memcpy(vm.run[0]->mmio.data, &(uint64_t){0xa5a5000012345678}, 8);
    expect_mmio(&vm, MMIO + 24, 1, 0);
    vm.run[0]->mmio.data[0] = 0x9c;
    expect_mmio(&vm, MMIO + 32, 4, 0); /* read, then write of one instruction */
    memcpy(vm.run[0]->mmio.data, &(uint32_t){100}, 4);
    expect_mmio(&vm, MMIO + 32, 4, 1);
    assert_memory_equal(vm.run[0]->mmio.data, &(uint32_t){105}, 4);
    expect_mmio(&vm, MMIO + 40, 2, 0);
    memcpy(vm.run[0]->mmio.data, &(uint16_t){7}, 2);
    expect_mmio(&vm, MMIO + 48, 8, 0); /* 16 bytes: two exits each */
    memcpy(vm.run[0]->mmio.data, "abcdefgh", 8);
    expect_mmio(&vm, MMIO + 56, 8, 0);
    memcpy(vm.run[0]->mmio.data, "ijklmnop", 8);
    expect_mmio(&vm, MMIO + 64, 8, 1);
    assert_memory_equal(vm.run[0]->mmio.data, "abcdefgh", 8);
    expect_mmio(&vm, MMIO + 72, 8, 1);
    assert_memory_equal(vm.run[0]->mmio.data, "ijklmnop", 8);
    expect_exit(&vm, KVM_EXIT_HLT);
    regs = vm_regs(&vm, 0);
    assert_int_equal(regs.rcx, 0xa5a5000012345678);
    assert_int_equal(regs.rdx, 0x9c);
    assert_int_equal(regs.rsi & 0xff, 1);
    vm_destroy(&vm);
}

/* Moves are done by what the EPT violation left behind, the rest by the whole of emulation: both, and that a changed
 * entry of the guest's tables is seen without INVLPG, for nothing is cached of an address that met an EPT violation. */
VM_ASM(long_moves, 64,
       "mov $0xd0000000, %ebx\n mov $0x1234, %eax\n mov $-1, %rcx\n mov $-1, %rdx\n mov $-1, %rsi\n"
       "movsbq 1(%rbx), %rcx\n movswl 2(%rbx), %edx\n movzwq 4(%rbx), %rsi\n mov %ah, 6(%rbx)\n mov 7(%rbx), %ah\n"
       "movl $0x12345678, 12(%rbx)\n movq $-2, 16(%rbx)\n mov %rsp, 24(%rbx)\n mov 32(%rbx), %rsp\n"
       "mov 0xffe(%rbx), %edi\n movslq 40(%rbx), %r8\n"
       "movl $0xe0000087, 0x6400\n mov (%rbx), %r9b\n nop\n hlt\n");

static void expect_read(struct vm *vm, uint64_t gpa, unsigned len, uint64_t value)
{
    expect_mmio(vm, gpa, len, 0);
    memcpy(vm->run[0]->mmio.data, &value, len);
}

static void expect_written(struct vm *vm, uint64_t gpa, unsigned len, uint64_t value)
{
    expect_mmio(vm, gpa, len, 1);
    assert_memory_equal(vm->run[0]->mmio.data, &value, len);
}

static void moves_of_all_kinds(void **state)
{
    struct kvm_guest_debug step = {.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP};
    struct vm vm = long_vm();
    struct kvm_regs regs;
    uint64_t rip;

    vm_load(&vm, long_moves);
    vm_start_long(&vm, 0);
    expect_read(&vm, MMIO + 1, 1, 0x80);
    expect_read(&vm, MMIO + 2, 2, 0x8001);
    expect_read(&vm, MMIO + 4, 2, 0x8002);
    expect_written(&vm, MMIO + 6, 1, 0x12);
    expect_read(&vm, MMIO + 7, 1, 0x77);
    expect_written(&vm, MMIO + 12, 4, 0x12345678);
    expect_written(&vm, MMIO + 16, 8, -2ull);
    expect_written(&vm, MMIO + 24, 8, VM_STACK);
    expect_read(&vm, MMIO + 32, 8, 0x7000);
    expect_read(&vm, MMIO + 0xffe, 2, 0xaaaa);
    expect_read(&vm, MMIO + 0x1000, 2, 0xbbbb);
    expect_read(&vm, MMIO + 40, 4, 0x80000000);
    VM_MUST(vm_ioctl(vm.vcpu[0], KVM_SET_GUEST_DEBUG, &(struct kvm_guest_debug){0}));
    expect_read(&vm, 0xe0000000, 1, 0x99);
    rip = vm_regs(&vm, 0).rip;
    VM_MUST(vm_ioctl(vm.vcpu[0], KVM_SET_GUEST_DEBUG, &step));
    expect_exit(&vm, KVM_EXIT_DEBUG);
    regs = vm_regs(&vm, 0);
    assert_true(regs.rip == rip + 3 || regs.rip == rip + 4); /* the move's end, or the step behind it */
    assert_int_equal(regs.rcx, -128ull);
    assert_int_equal(regs.rdx, 0xffff8001);
    assert_int_equal(regs.rsi, 0x8002);
    assert_int_equal(regs.rax, 0x7734);
    assert_int_equal(regs.rsp, 0x7000);
    assert_int_equal(regs.rdi, 0xbbbbaaaa);
    assert_int_equal(regs.r8, 0xffffffff80000000);
    assert_int_equal(regs.r9 & 0xff, 0x99);
    vm_destroy(&vm);
}

VM_ASM(long_step, 64, "mov $0xd0000000, %ebx\n mov (%rbx), %eax\n mov %eax, 4(%rbx)\n hlt\n");

static void moves_are_single_steps(void **state)
{
    struct kvm_guest_debug step = {.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP};
    struct vm vm = long_vm();

    vm_load(&vm, long_step);
    vm_start_long(&vm, 0);
    VM_MUST(vm_ioctl(vm.vcpu[0], KVM_SET_GUEST_DEBUG, &step));
    expect_exit(&vm, KVM_EXIT_DEBUG);
    expect_read(&vm, MMIO, 4, 5);
    expect_exit(&vm, KVM_EXIT_DEBUG);
    assert_int_equal(vm_regs(&vm, 0).rip, VM_CODE + 7);
    expect_written(&vm, MMIO + 4, 4, 5);
    expect_exit(&vm, KVM_EXIT_DEBUG);
    assert_int_equal(vm_regs(&vm, 0).rip, VM_CODE + 10);
    vm_destroy(&vm);
}

/* ---- memory slots ---- */
VM_ASM(
    long_touch, 64,
    "mov $0x200000, %ebx\n mov (%rbx), %eax\n movb $0x5a, (%rbx)\n mov (%rbx), %ecx\n hlt\n mov (%rbx), %edx\n hlt\n");

static void readonly_slot_write_exits(void **state)
{
    struct vm vm = vm_create(RAM / 2);
    uint8_t *rom = mmap(NULL, VM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    vm_add_vcpu(&vm, 0);
    memcpy(rom, &(uint32_t){0x11223344}, 4);
    vm_slot(&vm, 1, 0x200000, VM_PAGE, rom, KVM_MEM_READONLY);
    vm_load(&vm, long_touch);
    vm_start_long(&vm, 0);
    expect_mmio(&vm, 0x200000, 1, 1);
    assert_int_equal(vm.run[0]->mmio.data[0], 0x5a);
    assert_int_equal(vm_regs(&vm, 0).rax, 0x11223344);
    expect_exit(&vm, KVM_EXIT_HLT);
    assert_int_equal(vm_regs(&vm, 0).rcx, 0x11223344);
    vm_destroy(&vm);
    munmap(rom, VM_PAGE);
}

static void moved_and_deleted_slots_are_seen(void **state)
{
    struct vm vm = vm_create(RAM / 2);
    uint32_t *a = mmap(NULL, VM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    vm_add_vcpu(&vm, 0);
    *a = 0x1000;
    vm_slot(&vm, 1, 0x200000, VM_PAGE, a, 0);
    vm_load(&vm, long_touch);
    vm_start_long(&vm, 0);
    expect_exit(&vm, KVM_EXIT_HLT);
    assert_int_equal(vm_regs(&vm, 0).rax, 0x1000);
    assert_int_equal(*a, 0x105a);
    vm_slot(&vm, 1, 0x200000, 0, NULL, 0);
    expect_mmio(&vm, 0x200000, 4, 0);
    memcpy(vm.run[0]->mmio.data, &(uint32_t){77}, 4);
    expect_exit(&vm, KVM_EXIT_HLT);
    assert_int_equal(vm_regs(&vm, 0).rdx, 77);
    vm_destroy(&vm);
    munmap(a, VM_PAGE);
}

static void host_memory_gone_is_efault(void **state)
{
    struct vm vm = vm_create(RAM / 2);
    uint8_t *a = mmap(NULL, VM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    vm_add_vcpu(&vm, 0);
    vm_slot(&vm, 1, 0x200000, VM_PAGE, a, 0);
    munmap(a, VM_PAGE);
    vm_load(&vm, long_touch);
    vm_start_long(&vm, 0);
    assert_int_equal(vm_run(&vm, 0), -1);
    assert_int_equal(errno, EFAULT);
    vm_destroy(&vm);
}

VM_ASM(
    long_dirty, 64,
    "mov $0x200000, %ebx\n 1: mov 0x3000(%rbx), %eax\n movb $1, 0x1000(%rbx)\n movb $1, 0x5000(%rbx)\n hlt\n jmp 1b\n");

static void dirty_log_has_written_pages_alone(void **state)
{
    struct vm vm = vm_create(RAM / 2);
    uint8_t *a = mmap(NULL, 16 * VM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t bits = 0;
    struct kvm_dirty_log log = {.slot = 1, .dirty_bitmap = &bits};

    vm_add_vcpu(&vm, 0);
    vm_slot(&vm, 1, 0x200000, 16 * VM_PAGE, a, 0);
    vm_load(&vm, long_dirty);
    vm_start_long(&vm, 0);
    expect_exit(&vm, KVM_EXIT_HLT);
    vm_slot(&vm, 1, 0x200000, 16 * VM_PAGE, a, KVM_MEM_LOG_DIRTY_PAGES); /* mapped writable until now */
    for (unsigned round = 0; round < 3; round++) {
        expect_exit(&vm, KVM_EXIT_HLT);
        VM_MUST(vm_ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log));
        assert_int_equal(bits, 1 << 1 | 1 << 5);
        VM_MUST(vm_ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log)); /* reading has cleared it */
        assert_int_equal(bits, 0);
    }
    vm_destroy(&vm);
    munmap(a, 16 * VM_PAGE);
}

/* ---- task switches ---- */
#define TSS(n) (0x30000u + (n)*0x100u)

VM_ASM(prot_main, 32,
       "mov $1, %ebx\n lcall $0x20, $0\n out %al, $0x20\n lcall $0x20, $0\n out %al, $0x21\n"
       "mov $0x1000, %eax\n mov %eax, %ds\n");
VM_ASM(prot_task, 32, "1: inc %ebx\n mov %ebx, 0x500\n iret\n jmp 1b\n");
VM_ASM(prot_gate, 32, "pop %eax\n mov %eax, 0x504\n str %ecx\n hlt\n");

static void put_tss(struct vm *vm, unsigned n, uint32_t eip)
{
    uint32_t *tss = (uint32_t *)(vm->ram + TSS(n)), *gdt = (uint32_t *)(vm->ram + VM_GDT) + 6 + 2 * n;
    static const uint16_t seg[] = {16, 8, 16, 16, 16, 16};

    memset(tss, 0, 104);
    tss[8] = eip;
    tss[9] = 2;
    tss[13] = 100;                             /* ebx */
    tss[14] = (uint32_t)VM_STACK - 0x1000 * n; /* esp */
    for (unsigned i = 0; i < 6; i++)
        tss[18 + i] = seg[i];
    gdt[0] = TSS(n) << 16 | 103;
    gdt[1] = (TSS(n) >> 16 & 0xff) | 0x8900;
}

static void start_protected(struct vm *vm)
{
    const struct kvm_segment code = {.limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .db = 1, .g = 1};
    const struct kvm_segment data = {.limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    const uint64_t gdt[] = {0, 0x00cf9b000000ffffull, 0x00cf93000000ffffull, 0, 0, 0};
    struct kvm_sregs s = vm_sregs(vm, 0);

    memcpy(vm->ram + VM_GDT, gdt, sizeof(gdt));
    put_tss(vm, 0, 0);
    ((uint32_t *)(vm->ram + VM_GDT))[7] |= 0x200; /* TR's is busy */
    put_tss(vm, 1, 0x20000);
    put_tss(vm, 2, 0x21000);
    memcpy(vm->ram + VM_IDT + 13 * 8, &(uint64_t){0x28ull << 16 | 0x8500ull << 32}, 8); /* task gate */
    s.cs = code;
    s.ds = s.es = s.ss = s.fs = s.gs = data;
    s.tr = (struct kvm_segment){.base = TSS(0), .limit = 103, .selector = 0x18, .type = 11, .present = 1};
    s.gdt.base = VM_GDT;
    s.gdt.limit = sizeof(gdt) - 1;
    s.idt.base = VM_IDT;
    s.idt.limit = 0xff;
    s.cr0 = 0x11;
    vm_set_sregs(vm, 0, s);
    vm_set_regs(vm, 0, (struct kvm_regs){.rip = VM_CODE, .rsp = VM_STACK, .rflags = 2});
}

static void tasks_are_switched(void **state)
{
    struct vm vm = long_vm();
    extern const uint8_t prot_task[], prot_task_end[], prot_gate[], prot_gate_end[];
    const uint32_t *ram = (const uint32_t *)vm.ram;

    vm_load(&vm, prot_main);
    memcpy(vm.ram + 0x20000, prot_task, (size_t)(prot_task_end - prot_task));
    memcpy(vm.ram + 0x21000, prot_gate, (size_t)(prot_gate_end - prot_gate));
    start_protected(&vm);
    expect_out(&vm, 0x20, 1, 0);
    assert_int_equal(vm_regs(&vm, 0).rbx, 1); /* each task has its registers */
    assert_int_equal(ram[0x500 / 4], 101);
    assert_int_equal(vm_sregs(&vm, 0).tr.selector, 0x18);
    assert_true(vm_sregs(&vm, 0).cr0 & 8);                   /* TS */
    assert_int_equal(ram[VM_GDT / 4 + 9] >> 8 & 0xff, 0x89); /* B is not busy, A is */
    assert_int_equal(ram[VM_GDT / 4 + 7] >> 8 & 0xff, 0x8b);
    assert_int_equal(((uint16_t *)(vm.ram + TSS(1)))[0], 0x18); /* back link */
    expect_out(&vm, 0x21, 1, 0);
    assert_int_equal(ram[0x500 / 4], 102); /* it went on after its IRET */
    expect_exit(&vm, KVM_EXIT_HLT);
    assert_int_equal(ram[0x504 / 4], 0x1000); /* #GP's error code, by the task gate */
    assert_int_equal(vm_regs(&vm, 0).rcx, 0x28);
    assert_true(vm_regs(&vm, 0).rflags & 1 << 14); /* NT */
    vm_destroy(&vm);
}

/* ---- errors ---- */
VM_ASM(long_ud, 64, "ud2\n");

static void fault_without_handlers_shuts_down(void **state)
{
    struct vm vm = long_vm();

    vm_load(&vm, long_ud);
    vm_start_long(&vm, 0);
    expect_exit(&vm, KVM_EXIT_SHUTDOWN);
    vm_destroy(&vm);
}

static void bad_guest_state_fails_entry(void **state)
{
    struct vm vm = vm_create(RAM);
    struct kvm_sregs s;

    vm_add_vcpu(&vm, 0);
    vm_load(&vm, real_hlt);
    vm_start_real(&vm, 0);
    s = vm_sregs(&vm, 0);
    s.tr.type = 9; /* SDM 3C, "Checks on Guest Segment Registers": TR is a busy TSS */
    s.tr.s = 1;
    vm_set_sregs(&vm, 0, s);
    expect_exit(&vm, KVM_EXIT_FAIL_ENTRY);
    assert_int_equal(vm.run[0]->fail_entry.hardware_entry_failure_reason, 0x80000021);
    vm_destroy(&vm);
}

static void immediate_exit_completes_io(void **state)
{
    struct vm vm = vm_create(RAM);

    vm_add_vcpu(&vm, 0);
    vm_load(&vm, real_pio);
    vm_start_real(&vm, 0);
    expect_out(&vm, 0x3f8, 1, 3);
    vm.run[0]->immediate_exit = 1;
    assert_int_equal(vm_run(&vm, 0), -1);
    assert_int_equal(errno, EINTR);
    assert_int_equal(vm_regs(&vm, 0).rip, 9); /* past the OUT */
    vm.run[0]->immediate_exit = 0;
    expect_out(&vm, 0x3f8, 1, 2);
    vm_destroy(&vm);
}

/* ---- signals ---- */
VM_ASM(long_spin, 64, "1: inc %rax\n jmp 1b\n");

static void on_signal(int sig)
{
    if (!vm_on_host())
        anykvm_signal_arrived();
}

static void *signal_soon(void *target)
{
    usleep(30000);
    pthread_kill(*(pthread_t *)target, SIGUSR1);
    return NULL;
}

static void *signal_blocked(void *target)
{
    usleep(30000);
    pthread_kill(*(pthread_t *)target, SIGUSR2);
    return NULL;
}

static void run_is_interrupted(struct vm *vm)
{
    const struct sigaction action = {.sa_handler = on_signal};
    pthread_t self = pthread_self(), other;

    sigaction(SIGUSR1, &action, NULL);
    pthread_create(&other, NULL, signal_soon, &self);
    assert_int_equal(vm_run(vm, 0), -1);
    assert_int_equal(errno, EINTR);
    assert_int_equal(vm->run[0]->exit_reason, KVM_EXIT_INTR);
    pthread_join(other, NULL);
}

static void signal_ends_a_loop(void **state)
{
    struct vm vm = long_vm();

    vm_load(&vm, long_spin);
    vm_start_long(&vm, 0);
    run_is_interrupted(&vm);
    run_is_interrupted(&vm);
    assert_true(vm_regs(&vm, 0).rax > 1000);
    vm_destroy(&vm);
}

/* KVM_SET_SIGNAL_MASK: a signal that the thread blocks and the mask lets through ends KVM_RUN and stays pending */
static void masked_signal_stays_pending(void **state)
{
    struct vm vm = long_vm();
    struct {
        struct kvm_signal_mask head;
        uint64_t set;
    } __attribute__((packed)) mask = {{.len = 8}, 0};
    const struct sigaction fatal = {.sa_handler = SIG_DFL};
    pthread_t self = pthread_self(), other;
    sigset_t block, old, pending;
    int sig;

    sigaction(SIGUSR2, &fatal, NULL);
    sigemptyset(&block);
    sigaddset(&block, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &block, &old);
    memcpy(&mask.set, &old, 8);
    VM_MUST(vm_ioctl(vm.vcpu[0], KVM_SET_SIGNAL_MASK, &mask));
    vm_load(&vm, long_spin);
    vm_start_long(&vm, 0);
    pthread_create(&other, NULL, signal_blocked, &self);
    for (int round = 0; round < 2; round++) { /* it is pending before the second call */
        assert_int_equal(vm_run(&vm, 0), -1);
        assert_int_equal(errno, EINTR);
        assert_int_equal(vm.run[0]->exit_reason, KVM_EXIT_INTR);
    }
    pthread_join(other, NULL);
    sigpending(&pending);
    assert_int_equal(sigismember(&pending, SIGUSR2), 1);
    sigwait(&block, &sig);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    vm_destroy(&vm);
}

VM_ASM(long_hlt, 64, "1: hlt\n jmp 1b\n");

static void signal_ends_a_halt(void **state)
{
    struct vm vm = vm_create(RAM);

    VM_MUST(vm_ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
    vm_add_vcpu(&vm, 0);
    vm_load(&vm, long_hlt);
    vm_start_long(&vm, 0);
    run_is_interrupted(&vm);
    vm_destroy(&vm);
}

/* ---- guest debug ---- */
VM_ASM(long_debug, 64, "xor %eax, %eax\n inc %rax\n int3\n inc %rax\n inc %rax\n hlt\n");

static void set_debug(struct vm *vm, struct kvm_guest_debug debug)
{
    VM_MUST(vm_ioctl(vm->vcpu[0], KVM_SET_GUEST_DEBUG, &debug));
}

static void breakpoints_and_steps_exit(void **state)
{
    struct vm vm = long_vm();
    struct kvm_regs regs;

    vm_load(&vm, long_debug);
    vm_start_long(&vm, 0);
    set_debug(&vm, (struct kvm_guest_debug){.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP});
    expect_exit(&vm, KVM_EXIT_DEBUG);
    assert_int_equal(vm.run[0]->debug.arch.exception, 3);
    assert_int_equal(vm.run[0]->debug.arch.pc, VM_CODE + 5);
    regs = vm_regs(&vm, 0);
    regs.rip++;
    vm_set_regs(&vm, 0, regs);
    set_debug(&vm, (struct kvm_guest_debug){.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP});
    expect_exit(&vm, KVM_EXIT_DEBUG);
    assert_int_equal(vm.run[0]->debug.arch.exception, 1);
    assert_int_equal(vm.run[0]->debug.arch.pc, VM_CODE + 9);
    assert_true(vm.run[0]->debug.arch.dr6 & 1 << 14);
    assert_int_equal(vm_regs(&vm, 0).rax, 2);
    assert_int_equal(vm_regs(&vm, 0).rflags & 1 << 8, 0); /* the guest's own TF stays out of sight */
    set_debug(&vm, (struct kvm_guest_debug){.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP,
                                            .arch.debugreg = {[0] = VM_CODE + 12, [7] = 0x402}});
    expect_exit(&vm, KVM_EXIT_DEBUG);
    assert_int_equal(vm.run[0]->debug.arch.pc, VM_CODE + 12);
    assert_int_equal(vm.run[0]->debug.arch.dr6 & 15, 1);
    set_debug(&vm, (struct kvm_guest_debug){0});
    expect_exit(&vm, KVM_EXIT_HLT);
    assert_int_equal(vm_regs(&vm, 0).rax, 3);
    vm_destroy(&vm);
}

/* ---- interrupts without an in-kernel controller ---- */
VM_ASM(long_irq_main, 64, "cli\n out %al, $0x10\n sti\n nop\n out %al, $0x11\n hlt\n");
VM_ASM(long_irq_handler, 64, "inc %rbx\n iretq\n");

static void client_injects_an_interrupt(void **state)
{
    struct vm vm = long_vm();
    extern const uint8_t long_irq_handler[], long_irq_handler_end[];

    vm_load(&vm, long_irq_main);
    memcpy(vm.ram + 0x20000, long_irq_handler, (size_t)(long_irq_handler_end - long_irq_handler));
    vm_gate(&vm, 0x41, 0x20000);
    vm_start_long(&vm, 0);
    expect_out(&vm, 0x10, 1, 0);
    assert_int_equal(vm.run[0]->if_flag, 0);
    assert_int_equal(vm.run[0]->ready_for_interrupt_injection, 0);
    vm.run[0]->request_interrupt_window = 1;
    expect_exit(&vm, KVM_EXIT_IRQ_WINDOW_OPEN);
    assert_int_equal(vm.run[0]->ready_for_interrupt_injection, 1);
    vm.run[0]->request_interrupt_window = 0;
    VM_MUST(vm_ioctl(vm.vcpu[0], KVM_INTERRUPT, &(struct kvm_interrupt){.irq = 0x41}));
    expect_out(&vm, 0x11, 1, 0);
    assert_int_equal(vm_regs(&vm, 0).rbx, 1);
    expect_exit(&vm, KVM_EXIT_HLT);
    vm_destroy(&vm);
}

/* ---- the in-kernel APIC ---- */
VM_ASM(long_timer, 64,
       "mov $0xfee00000, %edi\n movl $0x1ff, 0xf0(%rdi)\n movl $0xb, 0x3e0(%rdi)\n movl $0x41, 0x320(%rdi)\n"
       "movl $100000, 0x380(%rdi)\n sti\n hlt\n out %al, $0x12\n");
VM_ASM(long_timer_handler, 64, "inc %rbx\n movl $0, 0xb0(%rdi)\n iretq\n");

static void apic_timer_ends_a_halt(void **state)
{
    struct vm vm = vm_create(RAM);
    extern const uint8_t long_timer_handler[], long_timer_handler_end[];

    VM_MUST(vm_ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
    vm_add_vcpu(&vm, 0);
    vm_load(&vm, long_timer);
    memcpy(vm.ram + 0x20000, long_timer_handler, (size_t)(long_timer_handler_end - long_timer_handler));
    vm_gate(&vm, 0x41, 0x20000);
    vm_start_long(&vm, 0);
    expect_out(&vm, 0x12, 1, 0);
    assert_int_equal(vm_regs(&vm, 0).rbx, 1);
    vm_destroy(&vm);
}

/* INIT and SIPI by the ICR: vCPU 1 starts in real mode at 0x30000 and writes a word that vCPU 0 polls */
VM_ASM(long_sipi, 64,
       "mov $0xfee00000, %edi\n movl $0x1ff, 0xf0(%rdi)\n movl $0x01000000, 0x310(%rdi)\n movl $0x4500, 0x300(%rdi)\n"
       "movl $0x4630, 0x300(%rdi)\n 1: pause\n cmpl $0x5a, 0x500\n jne 1b\n out %al, $0x13\n");
VM_ASM(real_ap, 16, "xor %ax, %ax\n mov %ax, %ds\n movl $0x5a, 0x500\n cli\n hlt\n");

static void *run_second(void *opaque)
{
    struct vm *vm = opaque;
    int r;

    do
        r = vm_run(vm, 1);
    while (r == 0 || errno == EAGAIN); /* EINTR ends it */
    return NULL;
}

static void sipi_starts_the_second(void **state)
{
    struct vm vm = vm_create(RAM);
    extern const uint8_t real_ap[], real_ap_end[];
    const struct sigaction action = {.sa_handler = on_signal};
    struct kvm_mp_state mp;
    pthread_t other;

    sigaction(SIGUSR1, &action, NULL);
    VM_MUST(vm_ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
    vm_add_vcpu(&vm, 0);
    vm_add_vcpu(&vm, 1);
    VM_MUST(vm_ioctl(vm.vcpu[1], KVM_GET_MP_STATE, &mp));
    assert_int_equal(mp.mp_state, KVM_MP_STATE_UNINITIALIZED);
    vm_load(&vm, long_sipi);
    memcpy(vm.ram + 0x30000, real_ap, (size_t)(real_ap_end - real_ap));
    vm_start_long(&vm, 0);
    pthread_create(&other, NULL, run_second, &vm);
    expect_out(&vm, 0x13, 1, 0);
    usleep(20000);
    pthread_kill(other, SIGUSR1);
    pthread_join(other, NULL);
    VM_MUST(vm_ioctl(vm.vcpu[1], KVM_GET_MP_STATE, &mp));
    assert_int_equal(mp.mp_state, KVM_MP_STATE_HALTED);
    vm_destroy(&vm);
}

/* ---- instructions that KVM completes ---- */
VM_ASM(long_hypercall, 64, "mov $99, %eax\n vmcall\n mov %rax, %rbx\n mov $99, %eax\n vmmcall\n hlt\n");

static void unknown_hypercalls_are_enosys(void **state)
{
    struct vm vm = long_vm();

    vm_load(&vm, long_hypercall);
    vm_start_long(&vm, 0);
    expect_exit(&vm, KVM_EXIT_HLT);
    assert_int_equal(vm_regs(&vm, 0).rbx, (uint64_t)-KVM_ENOSYS);
    assert_int_equal(vm_regs(&vm, 0).rax, (uint64_t)-KVM_ENOSYS);
    vm_destroy(&vm);
}

VM_ASM(long_registers, 64,
       "mov $0xc0000101, %ecx\n mov $0x12345678, %eax\n mov $0xffff8000, %edx\n wrmsr\n xor %eax, %eax\n rdmsr\n"
       "mov %eax, %esi\n mov %cr4, %rax\n or $0x80, %rax\n mov %rax, %cr4\n mov %cr4, %rbx\n"
       "mov $0x1234, %eax\n mov %rax, %dr2\n mov %dr2, %r8\n clts\n mov %cr0, %r9\n hlt\n");

static void control_registers_and_msrs(void **state)
{
    struct vm vm = long_vm();
    struct kvm_sregs s;
    struct kvm_regs regs;

    vm_load(&vm, long_registers);
    vm_start_long(&vm, 0);
    s = vm_sregs(&vm, 0);
    s.cr0 |= 8;
    vm_set_sregs(&vm, 0, s);
    expect_exit(&vm, KVM_EXIT_HLT);
    regs = vm_regs(&vm, 0);
    s = vm_sregs(&vm, 0);
    assert_int_equal(s.gs.base, 0xffff800012345678);
    assert_int_equal(regs.rsi, 0x12345678);
    assert_int_equal(regs.rbx, 0x6a0);
    assert_int_equal(s.cr4, 0x6a0);
    assert_int_equal(regs.r8, 0x1234);
    assert_int_equal(regs.r9, 0x80050033);
    assert_int_equal(s.cr0, 0x80050033);
    vm_destroy(&vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(halts_in_real_mode),
        cmocka_unit_test(reads_and_writes_ports),
        cmocka_unit_test(moves_strings_through_ports),
        cmocka_unit_test(strings_of_unmapped_memory),
        cmocka_unit_test(moves_through_mmio),
        cmocka_unit_test(moves_of_all_kinds),
        cmocka_unit_test(moves_are_single_steps),
        cmocka_unit_test(readonly_slot_write_exits),
        cmocka_unit_test(moved_and_deleted_slots_are_seen),
        cmocka_unit_test(host_memory_gone_is_efault),
        cmocka_unit_test(dirty_log_has_written_pages_alone),
        cmocka_unit_test(tasks_are_switched),
        cmocka_unit_test(fault_without_handlers_shuts_down),
        cmocka_unit_test(bad_guest_state_fails_entry),
        cmocka_unit_test(immediate_exit_completes_io),
        cmocka_unit_test(signal_ends_a_loop),
        cmocka_unit_test(signal_ends_a_halt),
        cmocka_unit_test(masked_signal_stays_pending),
        cmocka_unit_test(breakpoints_and_steps_exit),
        cmocka_unit_test(client_injects_an_interrupt),
        cmocka_unit_test(apic_timer_ends_a_halt),
        cmocka_unit_test(sipi_starts_the_second),
        cmocka_unit_test(unknown_hypercalls_are_enosys),
        cmocka_unit_test(control_registers_and_msrs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
