/* SPDX-License-Identifier: MIT
 * cpuid_client.c: a KVM client that refuses to start unless its own CPUID, executed inline as lkvm does, shows VMX or
 * SVM; then it runs a guest. Around it: what the replaced instructions must leave alone. Status 0, 1, or 2: refused. */
#include "client.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

struct leaf {
    uint32_t a, b, c, d;
};

static struct leaf cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct leaf r;

    __asm__ volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(subleaf));
    return r;
}

static bool cpu_supports_vm(void)
{
    switch (cpuid(0, 0).b) {
    case 0x756e6547: /* GenuineIntel */
        return cpuid(1, 0).c & 1 << 5;
    case 0x68747541: /* AuthenticAMD */
    case 0x6f677948: /* HygonGenuine */
        return cpuid(0x80000000, 0).a > 0x80000000 && cpuid(0x80000001, 0).c & 1 << 2;
    }
    return false;
}

/* ---- a guest: hlt ---- */
static void run_guest(void)
{
    struct kvm_userspace_memory_region region = {.guest_phys_addr = 0x1000, .memory_size = 0x1000};
    struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};
    struct kvm_sregs sregs;
    struct kvm_run *run;
    uint8_t *ram = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int sys = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm, vcpu;

    CHECK(ram != MAP_FAILED && sys >= 0);
    ram[0] = 0xf4;
    vm = ioctl(sys, KVM_CREATE_VM, 0);
    CHECK(vm >= 0);
    region.userspace_addr = (uintptr_t)ram;
    CHECK(!ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
    vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    CHECK(vcpu >= 0);
    run = mmap(NULL, (size_t)ioctl(sys, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    CHECK(run != MAP_FAILED);
    CHECK(!ioctl(vcpu, KVM_GET_SREGS, &sregs));
    sregs.cs.base = sregs.cs.selector = 0;
    CHECK(!ioctl(vcpu, KVM_SET_SREGS, &sregs));
    CHECK(!ioctl(vcpu, KVM_SET_REGS, &regs));
    CHECK(!ioctl(vcpu, KVM_RUN, 0) && run->exit_reason == KVM_EXIT_HLT);
}

/* ---- what must stay as it was ---- */
static void other_answers(void)
{
    static const uint8_t code[] = {0x53, 0x49, 0x89, 0xd0, 0x89, 0xf8, 0x89, 0xf1, 0x0f, 0xa2, 0x41, 0x89, 0x00, 0x41,
                                   0x89, 0x58, 0x04, 0x41, 0x89, 0x48, 0x08, 0x41, 0x89, 0x50, 0x0c, 0x5b, 0xc3};
    static const uint32_t leaves[] = {0, 2, 4, 7, 0xb, 0xd, 0x80000000, 0x80000002, 0x80000008};
    void (*own)(uint32_t, uint32_t, struct leaf *); /* CPUID in memory that nobody has looked at */
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(page != MAP_FAILED);
    memcpy(page, code, sizeof(code));
    CHECK(!mprotect(page, 4096, PROT_READ | PROT_EXEC));
    own = (void (*)(uint32_t, uint32_t, struct leaf *))page;
    for (unsigned i = 0; i < sizeof(leaves) / sizeof(leaves[0]); i++) {
        for (uint32_t sub = 0; sub < 3; sub++) {
            struct leaf real, seen = cpuid(leaves[i], sub);

            own(leaves[i], sub, &real);
            if (leaves[i] == 0xb)
                seen.d = real.d; /* the processor's own number: this thread may move */
            CHECK(!memcmp(&real, &seen, sizeof(real)));
        }
    }
}

/* The two bytes inside of other instructions */
static void not_instructions(void)
{
    uint64_t a, b;

    __asm__ volatile("movabs $0x0ba20fa20fa20fa2, %0\n mov $0x0fa20fa2, %k1" : "=r"(a), "=r"(b));
    CHECK(a == 0x0ba20fa20fa20fa2 && b == 0x0fa20fa2);
}

static sigjmp_buf back;
static volatile int ills;

static void on_ill(int sig, siginfo_t *si, void *uc)
{
    ills++;
    CHECK(cpu_supports_vm()); /* in its own handler too */
    siglongjmp(back, 1);
}

static void *with_all_blocked(void *arg)
{
    sigset_t all;

    sigfillset(&all);
    CHECK(!pthread_sigmask(SIG_SETMASK, &all, NULL));
    CHECK(cpu_supports_vm());
    return NULL;
}

static void signals(void)
{
    struct sigaction act = {.sa_sigaction = on_ill, .sa_flags = SA_SIGINFO}, old;
    pthread_t thread;
    int status;
    pid_t pid;

    ills = 0;
    CHECK(!sigaction(SIGILL, NULL, &old) && old.sa_handler == SIG_DFL);
    pid = fork();
    if (pid == 0) {
        signal(SIGILL, SIG_DFL);
        __asm__ volatile("ud2");
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGILL);
    sigfillset(&act.sa_mask);
    CHECK(!sigaction(SIGILL, &act, &old) && old.sa_handler == SIG_DFL);
    CHECK(cpu_supports_vm() && ills == 0);
    if (!sigsetjmp(back, 1))
        __asm__ volatile("ud2");
    CHECK(ills == 1);
    CHECK(!sigaction(SIGILL, NULL, &old) && old.sa_sigaction == on_ill);
    CHECK(signal(SIGILL, SIG_IGN) != SIG_ERR && cpu_supports_vm());
    CHECK(!raise(SIGILL));
    CHECK(!pthread_create(&thread, NULL, with_all_blocked, NULL) && !pthread_join(thread, NULL));
}

int main(int argc, char **argv)
{
    if (!cpu_supports_vm()) {
        fputs("the CPU does not support hardware virtualization\n", stderr);
        return 2;
    }
    not_instructions();
    other_answers();
    signals();
    run_guest();
    signal(SIGILL, SIG_DFL);
    signals(); /* once more with anykvm's handlers below */
    return 0;
}
