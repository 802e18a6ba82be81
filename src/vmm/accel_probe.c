/* SPDX-License-Identifier: MIT
 * accel_probe.c: does a /dev/kvm run 64-bit guests? Some machines have one on which a stock kernel hangs. A guest of a
 * few instructions turns paging and long mode on, runs in a 64-bit segment and halts. */
#include "accel.h"
#include "vmm.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PROBE_MS   200
#define PROBE_RAM  0x10000
#define PROBE_MARK 0x5aa55aa5u

/* At 0x1000, 32-bit protected mode: CR4.PAE, CR3, EFER.LME, CR0.PG, far jump to 64-bit code, which stores a mark. */
static const uint8_t probe_code[] = {
    0x0f, 0x20, 0xe0, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0,       /* mov eax,cr4; or eax,0x20; mov cr4,eax */
    0xb8, 0x00, 0x20, 0x00, 0x00, 0x0f, 0x22, 0xd8,             /* mov eax,0x2000; mov cr3,eax */
    0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32,                   /* mov ecx,0xc0000080; rdmsr */
    0x0d, 0x00, 0x01, 0x00, 0x00, 0x0f, 0x30,                   /* or eax,0x100; wrmsr */
    0x0f, 0x20, 0xc0, 0x0d, 0x00, 0x00, 0x00, 0x80,             /* mov eax,cr0; or eax,0x80000000 */
    0x0f, 0x22, 0xc0,                                           /* mov cr0,eax */
    0xea, 0x31, 0x10, 0x00, 0x00, 0x10, 0x00,                   /* jmp 0x10:0x1031 */
    0x48, 0xb8, 0xa5, 0x5a, 0xa5, 0x5a, 0x01, 0x00, 0x00, 0x00, /* mov rax,0x15aa55aa5 (64-bit only) */
    0x89, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00,                   /* mov [0x5000],eax */
    0xf4,                                                       /* hlt */
};
_Static_assert(sizeof(probe_code) == 0x31 + 18, "the far jump's target is the first 64-bit instruction");

static void fill_memory(uint8_t *ram)
{
    static const uint64_t gdt[] = {0, 0x00cf9b000000ffff, 0x00af9b000000ffff, 0x00cf93000000ffff};
    const uint64_t pml4 = 0x3003, pdpt = 0x4003, pd = 0x83;

    memcpy(ram + 0x1000, probe_code, sizeof(probe_code));
    memcpy(ram + 0x500, gdt, sizeof(gdt));
    memcpy(ram + 0x2000, &pml4, 8);
    memcpy(ram + 0x3000, &pdpt, 8);
    memcpy(ram + 0x4000, &pd, 8);
}

/* Without CPUID the guest has no long mode. */
static int set_cpuid(const struct kvm_api *api, int kvm_fd, int vcpu)
{
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entries[256];
    } c = {.head.nent = 256};

    if (api->ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, &c) < 0)
        return -1;
    return api->ioctl(vcpu, KVM_SET_CPUID2, &c);
}

static int set_registers(const struct kvm_api *api, int vcpu)
{
    struct kvm_sregs s;
    struct kvm_regs r = {.rip = 0x1000, .rflags = 2};
    struct kvm_segment code = {.selector = 8, .limit = ~0u, .type = 11, .present = 1, .s = 1, .g = 1, .db = 1};
    struct kvm_segment data = {.selector = 24, .limit = ~0u, .type = 3, .present = 1, .s = 1, .g = 1, .db = 1};

    if (api->ioctl(vcpu, KVM_GET_SREGS, &s) < 0)
        return -1;
    s.cs = code;
    s.ds = s.es = s.fs = s.gs = s.ss = data;
    s.cr0 |= 1;
    s.gdt.base = 0x500;
    s.gdt.limit = 31;
    if (api->ioctl(vcpu, KVM_SET_SREGS, &s) < 0)
        return -1;
    return api->ioctl(vcpu, KVM_SET_REGS, &r);
}

static void on_alarm(int sig)
{
    (void)sig;
}

static const char *run_limited(const struct kvm_api *api, int vcpu, struct kvm_run *run, const uint8_t *ram)
{
    struct sigaction sa = {.sa_handler = on_alarm}, old;
    struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
    /* repeats: a signal that comes just before KVM_RUN is not lost */
    struct itimerspec limit = {.it_value.tv_nsec = PROBE_MS * 1000000l, .it_interval.tv_nsec = 10 * 1000000l};
    const char *why = NULL;
    uint32_t mark;
    timer_t timer;
    int ret, err;

    sigaction(SIGALRM, &sa, &old);
    if (timer_create(CLOCK_MONOTONIC, &ev, &timer) < 0)
        return "no timer for its probe";
    timer_settime(timer, 0, &limit, NULL);
    ret = api->ioctl(vcpu, KVM_RUN, 0);
    err = errno;
    timer_delete(timer);
    sigaction(SIGALRM, &old, NULL);
    memcpy(&mark, ram + 0x5000, 4);
    if (ret < 0 && err == EINTR)
        why = "its 64-bit paging probe made no progress in 200 ms";
    else if (ret < 0)
        why = "its 64-bit paging probe failed: KVM_RUN gave an error";
    else if (run->exit_reason != KVM_EXIT_HLT || mark != PROBE_MARK)
        why = "its 64-bit paging probe did not run as it should";
    return why;
}

const char *accel_probe(const struct kvm_api *api, int kvm_fd)
{
    const char *why = "it cannot create a VM";
    int vm = api->ioctl(kvm_fd, KVM_CREATE_VM, 0ul), vcpu = -1;
    int size = api->ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    uint8_t *ram = mmap(NULL, PROBE_RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region region = {.memory_size = PROBE_RAM, .userspace_addr = (uintptr_t)ram};
    struct kvm_run *run = MAP_FAILED;

    if (vm >= 0 && size > 0 && ram != MAP_FAILED) {
        fill_memory(ram);
        if (api->ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0)
            vcpu = api->ioctl(vm, KVM_CREATE_VCPU, 0ul);
    }
    if (vcpu >= 0)
        run = api->mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run != MAP_FAILED) {
        if (set_cpuid(api, kvm_fd, vcpu) < 0 || set_registers(api, vcpu) < 0)
            why = "it refuses a protected-mode state";
        else
            why = run_limited(api, vcpu, run, ram);
        munmap(run, size);
    }
    if (vcpu >= 0)
        api->close(vcpu);
    if (vm >= 0)
        api->close(vm);
    if (ram != MAP_FAILED)
        munmap(ram, PROBE_RAM);
    return why;
}
