/* SPDX-License-Identifier: MIT
 * kvm_test.c: what the API tests share. */
#include "kvm_test.h"
#include <anykvm.h>
#include <signal.h>
#include <sys/ioctl.h>

static int real_open(const char *path, int flags)
{
    return open(path, flags);
}

static int real_ioctl(int fd, unsigned long request, ...)
{
    unsigned long arg;
    va_list ap;

    va_start(ap, request);
    arg = va_arg(ap, unsigned long);
    va_end(ap);
    return ioctl(fd, request, arg);
}

/* cmocka sets handlers of its own for each test, behind anykvm's back: as a client of the library anykvm's must stay.
 */
static int soft_ioctl(int fd, unsigned long request, ...)
{
    struct sigaction act;
    unsigned long arg;
    va_list ap;

    if (!sigaction(SIGSEGV, NULL, &act) && !(act.sa_flags & SA_SIGINFO))
        anykvm_sigaction(SIGSEGV, &act, NULL);
    va_start(ap, request);
    arg = va_arg(ap, unsigned long);
    va_end(ap);
    return anykvm_ioctl(fd, request, arg);
}

static const struct kvm_functions real = {real_open, close, real_ioctl, mmap};
static const struct kvm_functions soft = {anykvm_open, anykvm_close, soft_ioctl, anykvm_mmap};
static const struct kvm_functions *chosen = &soft;
static bool is_real;
extern const struct kvm_functions *const kvm __attribute__((alias("chosen")));
extern const bool kvm_is_real __attribute__((alias("is_real")));

__attribute__((constructor)) static void choose(void)
{
    if (getenv("KVM_TEST_REAL")) {
        chosen = &real;
        is_real = true;
    }
}

int err(int fd, unsigned long request, ...)
{
    unsigned long arg;
    va_list ap;

    va_start(ap, request);
    arg = va_arg(ap, unsigned long);
    va_end(ap);
    return kvm->ioctl(fd, request, arg) < 0 ? errno : 0;
}

int vm_slot(struct vm *vm, unsigned slot, uint64_t gpa, uint64_t size, void *memory, unsigned flags)
{
    struct kvm_userspace_memory_region m = {
        .slot = slot,
        .flags = flags,
        .guest_phys_addr = gpa,
        .memory_size = size,
        .userspace_addr = (uintptr_t)memory,
    };

    return err(vm->fd, KVM_SET_USER_MEMORY_REGION, &m);
}

static void set_supported_cpuid(struct vm *vm)
{
    struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 256 * sizeof(c->entries[0]));

    c->nent = 256;
    assert_ok(vm->sys, KVM_GET_SUPPORTED_CPUID, c);
    assert_ok(vm->vcpu, KVM_SET_CPUID2, c);
    free(c);
}

struct vm *vm_new(unsigned flags)
{
    struct vm *vm = calloc(1, sizeof(*vm));

    vm->sys = kvm->open("/dev/kvm", O_RDWR | O_CLOEXEC);
    assert_true(vm->sys >= 0);
    vm->fd = kvm->ioctl(vm->sys, KVM_CREATE_VM, 0ul);
    assert_true(vm->fd >= 0);
    assert_ok(vm->fd, KVM_SET_TSS_ADDR, 0xfffbd000ul);
    if (flags & VM_IRQCHIP)
        assert_ok(vm->fd, KVM_CREATE_IRQCHIP, 0ul);
    if (flags & VM_DIRTY_RING)
        assert_int_equal(vm_enable(vm, KVM_CAP_DIRTY_LOG_RING, PAGE), 0);
    vm->ram_size = 1 << 20;
    vm->ram = mmap(NULL, vm->ram_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_int_equal(vm_slot(vm, 0, 0, vm->ram_size, vm->ram, 0), 0);
    vm->vcpu = kvm->ioctl(vm->fd, KVM_CREATE_VCPU, 0ul);
    assert_true(vm->vcpu >= 0);
    vm->run_size = (size_t)kvm->ioctl(vm->sys, KVM_GET_VCPU_MMAP_SIZE, 0ul);
    vm->run = kvm->mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu, 0);
    assert_ptr_not_equal(vm->run, MAP_FAILED);
    if (flags & VM_CPUID)
        set_supported_cpuid(vm);
    return vm;
}

int vm_enable(struct vm *vm, unsigned cap, uint64_t arg)
{
    struct kvm_enable_cap c = {.cap = cap, .args = {arg}};

    return err(vm->fd, KVM_ENABLE_CAP, &c);
}

struct vm vm_vcpu(const struct vm *first, unsigned id)
{
    struct vm vm = *first;

    vm.vcpu = kvm->ioctl(vm.fd, KVM_CREATE_VCPU, (unsigned long)id);
    assert_true(vm.vcpu >= 0);
    vm.run = kvm->mmap(NULL, vm.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm.vcpu, 0);
    assert_ptr_not_equal(vm.run, MAP_FAILED);
    set_supported_cpuid(&vm);
    return vm;
}

void vm_free(struct vm *vm)
{
    munmap(vm->run, vm->run_size);
    kvm->close(vm->vcpu);
    kvm->close(vm->fd);
    kvm->close(vm->sys);
    munmap(vm->ram, vm->ram_size);
    free(vm);
}

void vm_regs(struct vm *vm, struct kvm_regs *regs)
{
    assert_ok(vm->vcpu, KVM_GET_REGS, regs);
}

uint64_t vm_reg_rip(struct vm *vm)
{
    struct kvm_regs regs;

    vm_regs(vm, &regs);
    return regs.rip;
}

void vm_load(struct vm *vm, uint64_t gpa, const void *code, const void *end)
{
    memcpy(vm->ram + gpa, code, (size_t)((const char *)end - (const char *)code));
}

void vm_real_mode(struct vm *vm, uint16_t ip)
{
    struct kvm_regs regs = {.rip = ip, .rflags = 2, .rsp = 0x8000};
    struct kvm_sregs s;

    assert_ok(vm->vcpu, KVM_GET_SREGS, &s);
    s.cs.base = s.cs.selector = 0;
    s.ds.base = s.es.base = s.ss.base = 0;
    s.ds.selector = s.es.selector = s.ss.selector = 0;
    assert_ok(vm->vcpu, KVM_SET_SREGS, &s);
    assert_ok(vm->vcpu, KVM_SET_REGS, &regs);
}

void vm_long_mode(struct vm *vm, uint64_t rip)
{
    struct kvm_regs regs = {.rip = rip, .rflags = 2, .rsp = 0x8000};
    struct kvm_segment code = {.limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    struct kvm_segment data = {.limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    uint64_t *pml4 = (uint64_t *)(vm->ram + 0x10000), *pdpt = pml4 + 512, *pd = pdpt + 512;
    uint64_t *gdt = (uint64_t *)(vm->ram + 0x9000);
    struct kvm_sregs s;
    unsigned i;

    pml4[0] = 0x11000 | 7;
    pdpt[0] = 0x12000 | 7;
    for (i = 0; i < 512; i++)
        pd[i] = i << 21 | 0x87;
    gdt[1] = 0x00af9b000000ffff;
    gdt[2] = 0x00cf93000000ffff;
    assert_ok(vm->vcpu, KVM_GET_SREGS, &s);
    s.cs = code;
    s.ds = s.es = s.ss = s.fs = s.gs = data;
    s.gdt.base = 0x9000;
    s.gdt.limit = 0x7f;
    s.idt.base = 0xa000;
    s.idt.limit = 0xfff;
    s.cr3 = 0x10000;
    s.cr4 = 1 << 5;
    s.cr0 = 0x80000011;
    s.efer = 0x500;
    assert_ok(vm->vcpu, KVM_SET_SREGS, &s);
    assert_ok(vm->vcpu, KVM_SET_REGS, &regs);
}

int vm_run(struct vm *vm)
{
    return err(vm->vcpu, KVM_RUN, 0ul);
}

void assert_exit(struct vm *vm, unsigned reason)
{
    assert_int_equal(vm_run(vm), 0);
    if (vm->run->exit_reason != reason)
        print_message("exit %u at rip 0x%llx\n", vm->run->exit_reason, (unsigned long long)vm_reg_rip(vm));
    assert_int_equal(vm->run->exit_reason, reason);
}

void assert_out(struct vm *vm, uint16_t port, unsigned size, uint32_t value)
{
    uint32_t got = 0;

    assert_exit(vm, KVM_EXIT_IO);
    assert_int_equal(vm->run->io.direction, KVM_EXIT_IO_OUT);
    assert_int_equal(vm->run->io.port, port);
    assert_int_equal(vm->run->io.size, size);
    assert_int_equal(vm->run->io.count, 1);
    memcpy(&got, (char *)vm->run + vm->run->io.data_offset, size);
    assert_int_equal(got, value);
}

uint64_t vm_get_msr(struct vm *vm, uint32_t index)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry e;
    } m = {.head.nmsrs = 1, .e.index = index};

    assert_int_equal(kvm->ioctl(vm->vcpu, KVM_GET_MSRS, &m), 1);
    return m.e.data;
}

int vm_set_msr(struct vm *vm, uint32_t index, uint64_t value)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry e;
    } m = {.head.nmsrs = 1, .e = {.index = index, .data = value}};

    return kvm->ioctl(vm->vcpu, KVM_SET_MSRS, &m);
}
