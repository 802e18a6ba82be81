/* SPDX-License-Identifier: MIT
 * vm.h: small virtual machines for the API programs of tests/kvm and bench: only <linux/kvm.h> and anykvm.h. With
 * KVM_TEST_REAL=1 the same programs run on the host's /dev/kvm, which is then the judge. */
#ifndef TESTS_KVM_VM_H
#define TESTS_KVM_VM_H

#include <anykvm.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define VM_VCPUS 4
#define VM_PAGE  4096ull
/* Where things lie in a VM's RAM */
#define VM_CODE  0x10000ull
#define VM_STACK 0x80000ull /* grows down; 0x1000 less for each vCPU */
#define VM_PML4  0x1000ull  /* identity map of the first 4 GiB by 2 MiB pages */
#define VM_GDT   0x8000ull
#define VM_IDT   0x9000ull

struct vm {
    int sys, fd;
    uint8_t *ram;
    size_t ram_size;
    int vcpu[VM_VCPUS];
    struct kvm_run *run[VM_VCPUS];
    size_t run_size;
};

static inline int vm_on_host(void)
{
    return getenv("KVM_TEST_REAL") != NULL;
}

#define vm_ioctl(fd, request, arg) \
    (vm_on_host() ? ioctl(fd, request, (unsigned long)(arg)) : anykvm_ioctl(fd, request, (unsigned long)(arg)))

static inline void vm_die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    abort();
}

#define VM_MUST(call)                 \
    ({                                \
        const long r_ = (long)(call); \
        if (r_ < 0)                   \
            vm_die(#call);            \
        r_;                           \
    })

static inline void vm_slot(struct vm *vm, unsigned slot, uint64_t gpa, uint64_t size, void *hva, unsigned flags)
{
    struct kvm_userspace_memory_region region = {
        .slot = slot, .flags = flags, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (uint64_t)hva};

    VM_MUST(vm_ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region));
}

static inline struct vm vm_create(size_t ram_size)
{
    struct vm vm = {.ram_size = ram_size};

    vm.sys = (int)VM_MUST(vm_on_host() ? open("/dev/kvm", O_RDWR) : anykvm_open("/dev/kvm", O_RDWR));
    vm.fd = (int)VM_MUST(vm_ioctl(vm.sys, KVM_CREATE_VM, 0));
    vm.run_size = (size_t)VM_MUST(vm_ioctl(vm.sys, KVM_GET_VCPU_MMAP_SIZE, 0));
    vm.ram = mmap(NULL, ram_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (vm.ram == MAP_FAILED)
        vm_die("RAM");
    vm_slot(&vm, 0, 0, ram_size, vm.ram, 0);
    for (int i = 0; i < VM_VCPUS; i++)
        vm.vcpu[i] = -1;
    return vm;
}

static inline void vm_set_cpuid(struct vm *vm, int i)
{
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 256 * sizeof(struct kvm_cpuid_entry2));

    cpuid->nent = 256;
    VM_MUST(vm_ioctl(vm->sys, KVM_GET_SUPPORTED_CPUID, cpuid));
    VM_MUST(vm_ioctl(vm->vcpu[i], KVM_SET_CPUID2, cpuid));
    free(cpuid);
}

static inline void vm_add_vcpu(struct vm *vm, int i)
{
    vm->vcpu[i] = (int)VM_MUST(vm_ioctl(vm->fd, KVM_CREATE_VCPU, i));
    vm->run[i] = vm_on_host() ? mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu[i], 0)
                              : anykvm_mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu[i], 0);
    if (vm->run[i] == MAP_FAILED)
        vm_die("kvm_run");
    vm_set_cpuid(vm, i);
}

static inline void vm_destroy(struct vm *vm)
{
    for (int i = 0; i < VM_VCPUS; i++)
        if (vm->vcpu[i] >= 0) {
            munmap(vm->run[i], vm->run_size);
            vm_on_host() ? close(vm->vcpu[i]) : anykvm_close(vm->vcpu[i]);
        }
    vm_on_host() ? close(vm->fd) : anykvm_close(vm->fd);
    vm_on_host() ? close(vm->sys) : anykvm_close(vm->sys);
    munmap(vm->ram, vm->ram_size);
}

static inline struct kvm_regs vm_regs(struct vm *vm, int i)
{
    struct kvm_regs regs;

    VM_MUST(vm_ioctl(vm->vcpu[i], KVM_GET_REGS, &regs));
    return regs;
}

static inline void vm_set_regs(struct vm *vm, int i, struct kvm_regs regs)
{
    VM_MUST(vm_ioctl(vm->vcpu[i], KVM_SET_REGS, &regs));
}

static inline struct kvm_sregs vm_sregs(struct vm *vm, int i)
{
    struct kvm_sregs sregs;

    VM_MUST(vm_ioctl(vm->vcpu[i], KVM_GET_SREGS, &sregs));
    return sregs;
}

static inline void vm_set_sregs(struct vm *vm, int i, struct kvm_sregs sregs)
{
    VM_MUST(vm_ioctl(vm->vcpu[i], KVM_SET_SREGS, &sregs));
}

/* Code between two labels of an asm block, to VM_CODE */
#define vm_load(vm, name)                                               \
    do {                                                                \
        extern const uint8_t name[], name##_end[];                      \
        memcpy((vm)->ram + VM_CODE, name, (size_t)(name##_end - name)); \
    } while (0)
#define VM_ASM(name, mode, text)                                                                                  \
    __asm__(".pushsection .rodata\n.code" #mode "\n.globl " #name ", " #name "_end\n" #name ":\n" text "\n" #name \
            "_end:\n.code64\n.popsection\n")

/* Real mode at VM_CODE (CS base 0x10000, IP 0) */
static inline void vm_start_real(struct vm *vm, int i)
{
    struct kvm_sregs s = vm_sregs(vm, i);

    s.cs.selector = (uint16_t)(VM_CODE >> 4);
    s.cs.base = VM_CODE;
    vm_set_sregs(vm, i, s);
    vm_set_regs(vm, i, (struct kvm_regs){.rip = 0, .rsp = 0x8000, .rflags = 2});
}

/* 64-bit mode at VM_CODE, ring 0, memory mapped one to one, a GDT with code 0x08 and data 0x10, an empty IDT */
static inline void vm_start_long(struct vm *vm, int i)
{
    const struct kvm_segment code = {.limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    const struct kvm_segment data = {.limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    const uint64_t gdt[] = {0, 0x00af9b000000ffffull, 0x00cf93000000ffffull};
    uint64_t *pml4 = (uint64_t *)(vm->ram + VM_PML4), *pdpt = pml4 + 512, *pd = pml4 + 1024;
    struct kvm_sregs s = vm_sregs(vm, i);

    memcpy(vm->ram + VM_GDT, gdt, sizeof(gdt));
    pml4[0] = (VM_PML4 + VM_PAGE) | 7;
    for (unsigned n = 0; n < 4; n++)
        pdpt[n] = (VM_PML4 + (2 + n) * VM_PAGE) | 7;
    for (uint64_t n = 0; n < 4 * 512; n++)
        pd[n] = n << 21 | 0x87;
    s.cs = code;
    s.ds = s.es = s.ss = s.fs = s.gs = data;
    s.gdt.base = VM_GDT;
    s.gdt.limit = sizeof(gdt) - 1;
    s.idt.base = VM_IDT;
    s.idt.limit = 0xfff;
    s.cr3 = VM_PML4;
    s.cr4 = 0x620; /* PAE, OSFXSR, OSXMMEXCPT */
    s.cr0 = 0x80050033;
    s.efer = 0x500; /* LME, LMA */
    vm_set_sregs(vm, i, s);
    vm_set_regs(vm, i, (struct kvm_regs){.rip = VM_CODE, .rsp = VM_STACK - 0x1000ull * (unsigned)i, .rflags = 2});
}

/* A 64-bit interrupt gate to gpa */
static inline void vm_gate(struct vm *vm, unsigned vector, uint64_t gpa)
{
    uint64_t *gate = (uint64_t *)(vm->ram + VM_IDT) + vector * 2;

    gate[0] = (gpa & 0xffff) | 8ull << 16 | 0x8e00ull << 32 | (gpa >> 16 & 0xffff) << 48;
    gate[1] = gpa >> 32;
}

static inline int vm_run(struct vm *vm, int i)
{
    return vm_ioctl(vm->vcpu[i], KVM_RUN, 0);
}

#endif
