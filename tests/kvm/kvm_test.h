/* SPDX-License-Identifier: MIT
 * kvm_test.h: programs that speak only the KVM API: against libanykvm, or with KVM_TEST_REAL=1 against a real /dev/kvm.
 * Guest code is assembled with the test: GUEST16, GUEST32 and GUEST64 define a blob by its name. */
#ifndef KVM_TEST_H
#define KVM_TEST_H

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#define PAGE 4096ul

struct kvm_functions {
    int (*open)(const char *path, int flags);
    int (*close)(int fd);
    int (*ioctl)(int fd, unsigned long request, ...);
    void *(*mmap)(void *addr, size_t len, int prot, int flags, int fd, off_t off);
};
extern const struct kvm_functions *const kvm; /* set before main() */
extern const bool kvm_is_real;

struct vm {
    int sys, fd, vcpu;
    struct kvm_run *run;
    size_t run_size;
    uint8_t *ram;
    size_t ram_size;
};

/* An ioctl's errno, 0 when it succeeded. */
int err(int fd, unsigned long request, ...);
#define assert_ok(fd, request, ...)       assert_int_equal(err(fd, request, __VA_ARGS__), 0)
#define assert_errno(e, fd, request, ...) assert_int_equal(err(fd, request, __VA_ARGS__), e)

enum { VM_IRQCHIP = 1, VM_CPUID = 2, VM_DIRTY_RING = 4 /* of a page */ };
struct vm *vm_new(unsigned flags);                      /* 1 MiB of RAM at 0, vCPU 0 */
struct vm vm_vcpu(const struct vm *, unsigned id);      /* one more, with CPUID: the VM as its thread sees it */
int vm_enable(struct vm *, unsigned cap, uint64_t arg); /* KVM_ENABLE_CAP on the VM: errno */
void vm_free(struct vm *);
int vm_slot(struct vm *, unsigned slot, uint64_t gpa, uint64_t size, void *memory, unsigned flags); /* errno */
void vm_regs(struct vm *, struct kvm_regs *);
uint64_t vm_reg_rip(struct vm *);
/* vCPU at 0:ip in real mode, flat data segments, stack at 0x8000 */
void vm_real_mode(struct vm *, uint16_t ip);
/* vCPU in 64-bit mode at rip, CPL 0; page tables from 0x10000 map the first 1 GiB to itself; GDT and IDT at 0x9000 */
void vm_long_mode(struct vm *, uint64_t rip);
void vm_load(struct vm *, uint64_t gpa, const void *code, const void *end);
int vm_run(struct vm *);                        /* 0 or errno; vm->run tells the exit */
void assert_exit(struct vm *, unsigned reason); /* runs, expects success and that exit */
void assert_out(struct vm *, uint16_t port, unsigned size, uint32_t value);
uint64_t vm_get_msr(struct vm *, uint32_t index);
int vm_set_msr(struct vm *, uint32_t index, uint64_t value); /* 1: taken, 0: refused */

#define GUEST_(name, bits, text)                                                                                  \
    __asm__(".pushsection .rodata\n.code" bits "\n" #name ":\n" text "\n" #name "_end:\n.code64\n.popsection\n"); \
    extern const uint8_t name[], name##_end[]
#define GUEST16(name, text) GUEST_(name, "16", text)
#define GUEST32(name, text) GUEST_(name, "32", text)
#define GUEST64(name, text) GUEST_(name, "64", text)
#define LOAD(vm, gpa, name) vm_load(vm, gpa, name, name##_end)

#endif
