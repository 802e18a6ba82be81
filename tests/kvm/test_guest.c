/* SPDX-License-Identifier: MIT
 * test_guest.c: guests of a few instructions: exits, I/O of all widths, MMIO, interrupts, signals, CPUID and MSRs. */
#include "kvm_test.h"
#include <anykvm.h>
#include <pthread.h>
#include <signal.h>

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

static struct vm *real_mode(void **state, const uint8_t *code, const uint8_t *end)
{
    struct vm *vm = *state;

    vm_load(vm, 0x1000, code, end);
    vm_real_mode(vm, 0x1000);
    return vm;
}
#define REAL(state, name) real_mode(state, name, name##_end)

static struct vm *long_mode(void **state, const uint8_t *code, const uint8_t *end)
{
    struct vm *vm = *state;

    vm_load(vm, 0x1000, code, end);
    vm_long_mode(vm, 0x1000);
    return vm;
}
#define LONG(state, name) long_mode(state, name, name##_end)

/* ---- HLT, PIO ---- */
GUEST16(g_hlt, "hlt; hlt");
static void hlt_in_real_mode(void **state)
{
    struct vm *vm = REAL(state, g_hlt);

    assert_exit(vm, KVM_EXIT_HLT);
    assert_int_equal(vm_reg_rip(vm), 0x1001);
    assert_exit(vm, KVM_EXIT_HLT);
    assert_int_equal(vm_reg_rip(vm), 0x1002);
}

GUEST16(g_out,
        "mov $0x12345678, %eax; mov $0x3f8, %dx; outb %al, %dx; outw %ax, %dx; outl %eax, %dx; outb %al, $0x80; hlt");
static void out_of_each_width(void **state)
{
    struct vm *vm = REAL(state, g_out);

    assert_out(vm, 0x3f8, 1, 0x78);
    assert_out(vm, 0x3f8, 2, 0x5678);
    assert_out(vm, 0x3f8, 4, 0x12345678);
    assert_out(vm, 0x80, 1, 0x78);
    assert_exit(vm, KVM_EXIT_HLT);
}

/* IN writes AL, AX or EAX and leaves the rest (EAX zero-extends into RAX). */
GUEST64(g_in, "mov $0x1111111122222222, %rax; mov $0x60, %dx; inb %dx, %al; mov %rax, 0x2000;"
              "inw %dx, %ax; mov %rax, 0x2008; inl %dx, %eax; mov %rax, 0x2010; hlt");
static void in_of_each_width(void **state)
{
    struct vm *vm = LONG(state, g_in);
    const uint64_t want[] = {0x11111111222222ab, 0x111111112222abcd, 0x00000000deadbeef};
    const uint32_t give[] = {0xab, 0xabcd, 0xdeadbeef};
    unsigned i;

    for (i = 0; i < 3; i++) {
        assert_exit(vm, KVM_EXIT_IO);
        assert_int_equal(vm->run->io.direction, KVM_EXIT_IO_IN);
        assert_int_equal(vm->run->io.size, 1 << i);
        memcpy((char *)vm->run + vm->run->io.data_offset, &give[i], 4);
    }
    assert_exit(vm, KVM_EXIT_HLT);
    assert_memory_equal(vm->ram + 0x2000, want, sizeof(want));
}

GUEST16(g_outs, "cld; mov $0x2000, %si; mov $5, %cx; mov $0x3f8, %dx; rep outsb;"
                "mov $0x3000, %di; mov $3, %cx; mov $0x1f0, %dx; rep insw; hlt");
static void string_io(void **state)
{
    struct vm *vm = REAL(state, g_outs);
    char out[6] = "";
    const uint16_t in[] = {0x1122, 0x3344, 0x5566};
    unsigned n = 0;

    memcpy(vm->ram + 0x2000, "hello", 5);
    while (n < 5) { /* in as many exits as KVM likes */
        assert_exit(vm, KVM_EXIT_IO);
        assert_int_equal(vm->run->io.size, 1);
        assert_in_range(vm->run->io.count, 1, 5 - n);
        memcpy(out + n, (char *)vm->run + vm->run->io.data_offset, vm->run->io.count);
        n += vm->run->io.count;
    }
    assert_string_equal(out, "hello");
    for (n = 0; n < 3; n += vm->run->io.count) {
        assert_exit(vm, KVM_EXIT_IO);
        assert_int_equal(vm->run->io.port, 0x1f0);
        assert_int_equal(vm->run->io.size, 2);
        assert_in_range(vm->run->io.count, 1, 3 - n);
        memcpy((char *)vm->run + vm->run->io.data_offset, in + n, 2 * vm->run->io.count);
    }
    assert_exit(vm, KVM_EXIT_HLT);
    assert_memory_equal(vm->ram + 0x3000, in, sizeof(in));
}

GUEST64(g_pio_loop, "mov $1000, %ecx; 1: mov %ecx, %eax; out %eax, $0x10; dec %ecx; jnz 1b; hlt");
static void pio_loop(void **state)
{
    struct vm *vm = LONG(state, g_pio_loop);
    uint32_t i;

    for (i = 1000; i; i--)
        assert_out(vm, 0x10, 4, i);
    assert_exit(vm, KVM_EXIT_HLT);
}

/* ---- MMIO ---- */
static void assert_mmio(struct vm *vm, bool write, uint64_t gpa, unsigned len, uint64_t data)
{
    uint64_t got = 0;

    assert_exit(vm, KVM_EXIT_MMIO);
    assert_int_equal(vm->run->mmio.is_write, write);
    assert_true(vm->run->mmio.phys_addr == gpa);
    assert_int_equal(vm->run->mmio.len, len);
    if (write) {
        memcpy(&got, vm->run->mmio.data, len);
        assert_true(got == data);
    } else {
        memcpy(vm->run->mmio.data, &data, 8);
    }
}

GUEST64(g_mmio, "mov $0x10000000, %rbx; mov $0x1122334455667788, %rax; movb %al, (%rbx); movw %ax, 2(%rbx);"
                "movl %eax, 4(%rbx); movq %rax, 8(%rbx); movzbl (%rbx), %ecx; mov %rcx, 0x2000;"
                "movq 8(%rbx), %rcx; mov %rcx, 0x2008; movswq 16(%rbx), %rcx; mov %rcx, 0x2010;"
                "addl $5, (%rbx); xchg %eax, (%rbx); mov %rax, 0x2018; push (%rbx); pop 0x2020; hlt");
static void mmio_of_each_width(void **state)
{
    struct vm *vm = LONG(state, g_mmio);
    const uint64_t want[] = {0x5a, 0x0102030405060708, 0xffffffffffff8001, 0x77, 0xcafe};

    assert_mmio(vm, true, 0x10000000, 1, 0x88);
    assert_mmio(vm, true, 0x10000002, 2, 0x7788);
    assert_mmio(vm, true, 0x10000004, 4, 0x55667788);
    assert_mmio(vm, true, 0x10000008, 8, 0x1122334455667788);
    assert_mmio(vm, false, 0x10000000, 1, 0x5a);
    assert_mmio(vm, false, 0x10000008, 8, 0x0102030405060708);
    assert_mmio(vm, false, 0x10000010, 2, 0x8001);
    assert_mmio(vm, false, 0x10000000, 4, 100); /* read-modify-write */
    assert_mmio(vm, true, 0x10000000, 4, 105);
    assert_mmio(vm, false, 0x10000000, 4, 0x77);
    assert_mmio(vm, true, 0x10000000, 4, 0x55667788);
    assert_mmio(vm, false, 0x10000000, 8, 0xcafe);
    assert_exit(vm, KVM_EXIT_HLT);
    assert_memory_equal(vm->ram + 0x2000, want, sizeof(want));
}

/* 16 bytes are two exits; an access over the end of RAM is RAM and an exit. */
GUEST64(g_mmio_wide, "mov $0x10000000, %rbx; movups 0x3000, %xmm0; movups %xmm0, (%rbx); movups 0x20(%rbx), %xmm1;"
                     "movups %xmm1, 0x3010; mov $0x1122334455667788, %rax; mov %rax, 0xffffc; mov 0xffffc, %rcx;"
                     "mov %rcx, 0x3020; hlt");
static void mmio_wide_and_crossing(void **state)
{
    struct vm *vm = LONG(state, g_mmio_wide);
    struct kvm_sregs s;
    uint64_t got[3];

    assert_ok(vm->vcpu, KVM_GET_SREGS, &s);
    s.cr4 |= 3 << 9; /* OSFXSR, OSXMMEXCPT */
    assert_ok(vm->vcpu, KVM_SET_SREGS, &s);
    memcpy(vm->ram + 0x3000, "0123456789abcdef", 16);
    assert_mmio(vm, true, 0x10000000, 8, 0x3736353433323130);
    assert_mmio(vm, true, 0x10000008, 8, 0x6665646362613938);
    assert_mmio(vm, false, 0x10000020, 8, 0xaaaaaaaaaaaaaaaa);
    assert_mmio(vm, false, 0x10000028, 8, 0xbbbbbbbbbbbbbbbb);
    assert_mmio(vm, true, 0x100000, 4, 0x11223344);
    assert_mmio(vm, false, 0x100000, 4, 0x99887766);
    assert_exit(vm, KVM_EXIT_HLT);
    memcpy(got, vm->ram + 0x3010, sizeof(got));
    assert_true(got[0] == 0xaaaaaaaaaaaaaaaa && got[1] == 0xbbbbbbbbbbbbbbbb);
    assert_true(got[2] == 0x9988776655667788);
}

/* ---- long mode, exceptions ---- */
GUEST64(g_sum, "xor %eax, %eax; mov $100, %ecx; 1: add %rcx, %rax; loop 1b; mov %rax, 0x2000; hlt");
static void flat_64_bit_guest(void **state)
{
    struct vm *vm = LONG(state, g_sum);

    assert_exit(vm, KVM_EXIT_HLT);
    assert_int_equal(*(uint64_t *)(vm->ram + 0x2000), 5050);
}

GUEST64(g_ud, "ud2");
GUEST16(g_nops, "nop\n nop");
GUEST16(g_told, "out %al, $0x33");

/* IP does not wrap: the fetch behind the last byte of a segment of 64 KiB is a #GP. */
static void end_of_the_segment(void **state)
{
    struct vm *vm = *state;

    LOAD(vm, 0xfffe, g_nops);
    LOAD(vm, 0x500, g_told);
    *(uint32_t *)(vm->ram + 13 * 4) = 0x500;
    vm_real_mode(vm, 0xfffe);
    assert_exit(vm, KVM_EXIT_IO);
    assert_int_equal(vm->run->io.port, 0x33);
}

static void triple_fault_is_shutdown(void **state)
{
    struct vm *vm = LONG(state, g_ud); /* the IDT is all zero: #UD, #NP, #DF, shutdown */

    assert_exit(vm, KVM_EXIT_SHUTDOWN);
}

static void set_gate(struct vm *vm, unsigned vector, uint32_t handler)
{
    uint64_t *gate = (uint64_t *)(vm->ram + 0xa000 + 16 * vector);

    gate[0] = (handler & 0xffff) | 8ull << 16 | 0x8eull << 40 | (uint64_t)(handler >> 16) << 48;
    gate[1] = 0;
}

GUEST64(g_fault, "mov $0x7fffff000000, %rbx; mov (%rbx), %rax; hlt");
GUEST64(g_pf, "pop %rax; out %eax, $0x20; mov %cr2, %rbx; mov %rbx, 0x2000; addq $3, (%rsp); iretq");
static void page_fault_is_the_guests_own(void **state)
{
    struct vm *vm = LONG(state, g_fault);

    LOAD(vm, 0x5000, g_pf);
    set_gate(vm, 14, 0x5000);
    assert_out(vm, 0x20, 4, 0);
    assert_exit(vm, KVM_EXIT_HLT);
    assert_true(*(uint64_t *)(vm->ram + 0x2000) == 0x7fffff000000);
}

/* ---- interrupts from user space ---- */
GUEST64(g_irq, "sti; 1: nop; jmp 1b");
GUEST64(g_handler, "out %al, $0x21; hlt");
static void interrupt_and_window(void **state)
{
    struct vm *vm = LONG(state, g_irq);
    struct kvm_interrupt irq = {.irq = 0x31};

    LOAD(vm, 0x5000, g_handler);
    set_gate(vm, 0x31, 0x5000);
    vm->run->request_interrupt_window = 1;
    assert_exit(vm, KVM_EXIT_IRQ_WINDOW_OPEN);
    assert_int_equal(vm->run->ready_for_interrupt_injection, 1);
    assert_int_equal(vm->run->if_flag, 1);
    vm->run->request_interrupt_window = 0;
    assert_ok(vm->vcpu, KVM_INTERRUPT, &irq);
    assert_exit(vm, KVM_EXIT_IO);
    assert_int_equal(vm->run->io.port, 0x21);
    irq.irq = 256;
    assert_errno(EINVAL, vm->vcpu, KVM_INTERRUPT, &irq);
}

static void nmi(void **state)
{
    struct vm *vm = LONG(state, g_hlt);

    LOAD(vm, 0x5000, g_handler);
    set_gate(vm, 2, 0x5000);
    assert_ok(vm->vcpu, KVM_NMI, 0ul);
    assert_exit(vm, KVM_EXIT_IO);
    assert_int_equal(vm->run->io.port, 0x21);
}

static void exception_by_vcpu_events(void **state)
{
    struct vm *vm = LONG(state, g_hlt);
    struct kvm_vcpu_events e;

    LOAD(vm, 0x5000, g_pf);
    set_gate(vm, 13, 0x5000);
    assert_ok(vm->vcpu, KVM_GET_VCPU_EVENTS, &e);
    e.exception.injected = 1;
    e.exception.nr = 13;
    e.exception.has_error_code = 1;
    e.exception.error_code = 0x1238;
    assert_ok(vm->vcpu, KVM_SET_VCPU_EVENTS, &e);
    assert_out(vm, 0x20, 4, 0x1238);
}

/* ---- leaving KVM_RUN ---- */
static void immediate_exit(void **state)
{
    struct vm *vm = LONG(state, g_in);

    assert_exit(vm, KVM_EXIT_IO);
    *((uint8_t *)vm->run + vm->run->io.data_offset) = 0xab;
    vm->run->immediate_exit = 1;
    assert_int_equal(vm_run(vm), EINTR);                 /* but the IN is completed */
    assert_int_equal(vm->run->exit_reason, KVM_EXIT_IO); /* of the exit that was finished */
    vm->run->immediate_exit = 0;
    struct kvm_regs regs;
    vm_regs(vm, &regs);
    assert_true(regs.rax == 0x11111111222222ab);
    assert_exit(vm, KVM_EXIT_IO);
    assert_int_equal(vm->run->io.size, 2);
}

static void on_signal(int sig)
{
    if (!kvm_is_real)
        anykvm_signal_arrived(); /* as the shim does around a client's handler */
}

static void *kick_later(void *target)
{
    usleep(50 * 1000);
    pthread_kill(*(pthread_t *)target, SIGUSR1);
    return NULL;
}

static void signal_leaves(void **state, struct vm *vm)
{
    struct sigaction sa = {.sa_handler = on_signal};
    pthread_t self = pthread_self(), thread;

    sigaction(SIGUSR1, &sa, NULL);
    pthread_create(&thread, NULL, kick_later, &self);
    assert_int_equal(vm_run(vm), EINTR);
    assert_int_equal(vm->run->exit_reason, KVM_EXIT_INTR);
    pthread_join(thread, NULL);
}

GUEST64(g_loop, "1: jmp 1b");
static void signal_leaves_a_running_guest(void **state)
{
    struct vm *vm = LONG(state, g_loop);

    signal_leaves(state, vm);
    signal_leaves(state, vm);
    assert_int_equal(vm_reg_rip(vm), 0x1000);
}

static void signal_mask(void **state)
{
    struct vm *vm = LONG(state, g_loop);
    struct {
        struct kvm_signal_mask head;
        uint8_t set[8];
    } __attribute__((packed)) m = {.head.len = 4};
    sigset_t block, pending;

    assert_errno(EINVAL, vm->vcpu, KVM_SET_SIGNAL_MASK, &m);
    m.head.len = 8; /* nothing is blocked in KVM_RUN */
    assert_ok(vm->vcpu, KVM_SET_SIGNAL_MASK, &m);
    sigemptyset(&block);
    sigaddset(&block, SIGUSR2);
    sigprocmask(SIG_BLOCK, &block, NULL);
    raise(SIGUSR2);
    assert_int_equal(vm_run(vm), EINTR);
    sigpending(&pending);
    assert_int_equal(sigismember(&pending, SIGUSR2), 1); /* it stays pending for the client */
    signal(SIGUSR2, SIG_IGN);
    sigprocmask(SIG_UNBLOCK, &block, NULL);
    assert_ok(vm->vcpu, KVM_SET_SIGNAL_MASK, NULL);
}

/* ---- CPUID, MSRs ---- */
GUEST64(g_cpuid, "mov $0x40000000, %eax; cpuid; mov %ebx, 0x2000; mov %ecx, 0x2004; mov %edx, 0x2008;"
                 "xor %eax, %eax; cpuid; mov %ebx, 0x200c; mov $1, %eax; cpuid; mov %ecx, 0x2010;"
                 "mov %cr4, %rax; or $0x40000, %rax; mov %rax, %cr4; mov $1, %eax; cpuid; mov %ecx, 0x2014; hlt");
static void cpuid_in_the_guest(void **state)
{
    struct vm *vm = LONG(state, g_cpuid);
    uint32_t host, eax = 0, ecx, edx, one[2];

    __asm__("cpuid" : "+a"(eax), "=b"(host), "=c"(ecx), "=d"(edx));
    assert_exit(vm, KVM_EXIT_HLT);
    assert_memory_equal(vm->ram + 0x2000, "KVMKVMKVM\0\0\0", 12);
    assert_memory_equal(vm->ram + 0x200c, &host, 4); /* the host's vendor */
    memcpy(one, vm->ram + 0x2010, 8);
    assert_int_equal(one[0] >> 27 & 1, 0);
    assert_int_equal(one[1] >> 27 & 1, 1); /* OSXSAVE follows CR4 */
}

/* All vectors 0, which XSAVE may call initial: MXCSR must not go with them. */
GUEST64(g_mxcsr, "mov %cr4, %rax; or $0x40600, %rax; mov %rax, %cr4; xor %ecx, %ecx; xor %edx, %edx; mov $3, %eax;"
                 "xsetbv; xrstor 0x3000; ldmxcsr 0x2000; hlt; stmxcsr 0x2004; hlt; stmxcsr 0x2008; hlt");
static void mxcsr_beside_initial_vectors(void **state)
{
    struct vm *vm = LONG(state, g_mxcsr);
    struct kvm_xsave *x = calloc(1, sizeof(*x));
    uint32_t *word = (uint32_t *)(vm->ram + 0x2000);

    word[0] = 0x9fc0;
    *(uint32_t *)(vm->ram + 0x3018) = 0x1f80;
    assert_exit(vm, KVM_EXIT_HLT);
    assert_ok(vm->vcpu, KVM_GET_XSAVE, x);
    assert_int_equal(x->region[6], 0x9fc0);
    assert_true(x->region[128] & 2); /* or who reads the area would skip it */
    assert_ok(vm->vcpu, KVM_SET_XSAVE, x);
    assert_exit(vm, KVM_EXIT_HLT);
    assert_int_equal(word[1], 0x9fc0);
    memset(x, 0, sizeof(*x)); /* all initial: the field does not count */
    assert_ok(vm->vcpu, KVM_SET_XSAVE, x);
    assert_exit(vm, KVM_EXIT_HLT);
    assert_int_equal(word[2], 0x1f80);
    free(x);
}

GUEST64(g_msr, "mov $0xc0000082, %ecx; mov $0x81000000, %eax; mov $0xffffffff, %edx; wrmsr; xor %eax, %eax; rdmsr;"
               "mov %eax, 0x2000; mov $0xdead0000, %ecx; rdmsr; hlt");
GUEST64(g_gp, "pop %rax; out %eax, $0x22; hlt");
static void msrs_in_the_guest(void **state)
{
    struct vm *vm = LONG(state, g_msr);

    LOAD(vm, 0x5000, g_gp);
    set_gate(vm, 13, 0x5000);
    assert_out(vm, 0x22, 4, 0); /* #GP for the one that is none */
    assert_int_equal(*(uint32_t *)(vm->ram + 0x2000), 0x81000000);
    assert_true(vm_get_msr(vm, 0xc0000082) == 0xffffffff81000000);
}

static void msr_exits(void **state)
{
    struct vm *vm = LONG(state, g_msr);
    struct kvm_enable_cap cap = {.cap = KVM_CAP_X86_USER_SPACE_MSR,
                                 .args = {KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER}};
    uint8_t none[8] = {0};
    struct kvm_msr_filter filter = {
        .ranges[0] = {.flags = KVM_MSR_FILTER_WRITE, .nmsrs = 1, .base = 0xc0000082, .bitmap = none}};

    LOAD(vm, 0x5000, g_gp);
    set_gate(vm, 13, 0x5000);
    assert_ok(vm->fd, KVM_ENABLE_CAP, &cap);
    assert_ok(vm->fd, KVM_X86_SET_MSR_FILTER, &filter);
    assert_exit(vm, KVM_EXIT_X86_WRMSR);
    assert_int_equal(vm->run->msr.reason, KVM_MSR_EXIT_REASON_FILTER);
    assert_int_equal(vm->run->msr.index, 0xc0000082);
    assert_true(vm->run->msr.data == 0xffffffff81000000);
    vm->run->msr.error = 0;
    assert_exit(vm, KVM_EXIT_X86_RDMSR);
    assert_int_equal(vm->run->msr.reason, KVM_MSR_EXIT_REASON_UNKNOWN);
    assert_int_equal(vm->run->msr.index, 0xdead0000);
    vm->run->msr.error = 1;
    assert_out(vm, 0x22, 4, 0);
    filter.flags = 0x80000000;
    assert_errno(EINVAL, vm->fd, KVM_X86_SET_MSR_FILTER, &filter);
}

GUEST64(g_tsc, "rdtsc; mov %eax, 0x2000; mov %edx, 0x2004; rdtsc; mov %eax, 0x2008; mov %edx, 0x200c; hlt");
static void tsc(void **state)
{
    struct vm *vm = LONG(state, g_tsc);
    const int khz = kvm->ioctl(vm->vcpu, KVM_GET_TSC_KHZ, 0ul);
    uint64_t t[2];

    assert_in_range(khz, 100 * 1000, 10 * 1000 * 1000);
    assert_int_equal(vm_set_msr(vm, 0x10, 1ull << 40), 1);
    assert_exit(vm, KVM_EXIT_HLT);
    memcpy(t, vm->ram + 0x2000, sizeof(t));
    assert_true(t[0] >= 1ull << 40 && t[1] > t[0]);
    assert_true(t[1] < (1ull << 40) + (uint64_t)khz * 10000); /* within ten seconds */
}

/* ---- registers in struct kvm_run ---- */
GUEST64(g_sync, "out %al, $0x30; add $1, %rbx; out %al, $0x30; hlt");
static void registers_in_kvm_run(void **state)
{
    struct vm *vm = LONG(state, g_sync);

    if (!kvm->ioctl(vm->sys, KVM_CHECK_EXTENSION, (unsigned long)KVM_CAP_SYNC_REGS))
        skip();
    vm->run->kvm_valid_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
    assert_exit(vm, KVM_EXIT_IO);
    assert_true(vm->run->s.regs.sregs.cr3 == 0x10000);
    vm->run->s.regs.regs.rbx = 0x1000;
    vm->run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
    assert_exit(vm, KVM_EXIT_IO);
    assert_int_equal(vm->run->s.regs.regs.rbx, 0x1001);
    assert_int_equal(vm->run->kvm_dirty_regs, 0);
    vm->run->kvm_dirty_regs = 1ull << 40;
    assert_int_equal(vm_run(vm), EINVAL);
    vm->run->kvm_dirty_regs = 0;
    assert_exit(vm, KVM_EXIT_HLT);
}

/* ---- address translation ---- */
static void translate(void **state)
{
    struct vm *vm = LONG(state, g_hlt);
    struct kvm_translation t = {.linear_address = 0x1234567};

    assert_ok(vm->vcpu, KVM_TRANSLATE, &t);
    assert_int_equal(t.valid, 1);
    assert_true(t.physical_address == 0x1234567);
    t.linear_address = 1ull << 40;
    assert_ok(vm->vcpu, KVM_TRANSLATE, &t);
    assert_int_equal(t.valid, 0);
}

/* ---- code that the client changes between two runs ---- */
GUEST64(g_first, "mov $1, %eax; out %eax, $0x40; jmp g_first");
static void client_replaces_code(void **state)
{
    struct vm *vm = LONG(state, g_first);
    struct kvm_regs regs;

    assert_out(vm, 0x40, 4, 1);
    assert_out(vm, 0x40, 4, 1);
    vm_regs(vm, &regs);
    vm->ram[0x1001] = 2; /* the immediate */
    assert_ok(vm->vcpu, KVM_SET_REGS, &regs);
    assert_out(vm, 0x40, 4, 2);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(hlt_in_real_mode),
        T(out_of_each_width),
        T(in_of_each_width),
        T(string_io),
        T(pio_loop),
        T(mmio_of_each_width),
        T(mmio_wide_and_crossing),
        T(flat_64_bit_guest),
        T(end_of_the_segment),
        T(triple_fault_is_shutdown),
        T(page_fault_is_the_guests_own),
        T(interrupt_and_window),
        T(nmi),
        T(exception_by_vcpu_events),
        T(immediate_exit),
        T(signal_leaves_a_running_guest),
        T(signal_mask),
        T(cpuid_in_the_guest),
        T(mxcsr_beside_initial_vectors),
        T(msrs_in_the_guest),
        T(msr_exits),
        T(tsc),
        T(registers_in_kvm_run),
        T(translate),
        T(client_replaces_code),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
