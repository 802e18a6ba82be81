/* SPDX-License-Identifier: MIT
 * sandbox_client.c: a KVM client whose vCPU thread allows itself ioctl, write and exit alone, as strict monitors do:
 * the kernel kills it for any other call. In the guest a timer interrupt wakes a hlt, and ports are written. Then a
 * VM's descriptor goes over a socket to its own process. */
#include "client.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Real mode at 0x1000: the PIT's channel 0 every 10 ms by the 8259's vector 0x20, five hlts with a port write each,
 * then for ever */
__asm__(".pushsection .rodata\n.code16\nguest:\n"
        "xor %ax, %ax\n mov %ax, %ds\n mov %ax, %ss\n mov $0x900, %sp\n"
        "movw $(handler - guest + 0x1000), 0x80\n movw $0, 0x82\n"
        "mov $0x11, %al\n out %al, $0x20\n mov $0x20, %al\n out %al, $0x21\n"
        "mov $4, %al\n out %al, $0x21\n mov $1, %al\n out %al, $0x21\n mov $0xfe, %al\n out %al, $0x21\n"
        "mov $0x34, %al\n out %al, $0x43\n mov $0x9c, %al\n out %al, $0x40\n mov $0x2e, %al\n out %al, $0x40\n"
        "1: sti\n hlt\n mov $0x42, %al\n out %al, $0x10\n jmp 1b\n"
        "handler: push %ax\n mov $0x20, %al\n out %al, $0x20\n pop %ax\n iret\n"
        "guest_end:\n.code64\n.popsection");
extern const uint8_t guest[], guest_end[];

static int sys, vm, vcpu;
static struct kvm_run *run;

static void make_vm(void)
{
    struct kvm_userspace_memory_region region = {.memory_size = 0x10000};
    struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};
    struct kvm_pit_config pit = {0};
    struct kvm_sregs sregs;
    uint8_t *ram = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    sys = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    CHECK(ram != MAP_FAILED && sys >= 0);
    vm = ioctl(sys, KVM_CREATE_VM, 0);
    CHECK(vm >= 0);
    CHECK(!ioctl(vm, KVM_CREATE_IRQCHIP, 0) && !ioctl(vm, KVM_CREATE_PIT2, &pit));
    memcpy(ram + 0x1000, guest, (size_t)(guest_end - guest));
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
}

static void restrict_to(int by_syscall, const unsigned *calls, unsigned n)
{
    struct sock_filter filter[32] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    };
    struct sock_fprog prog = {.filter = filter};
    unsigned i = 1;

    for (unsigned k = 0; k < n; k++)
        filter[i++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[k], (uint8_t)(n - k), 0);
    filter[i++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    filter[i++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    prog.len = (unsigned short)i;
    CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (by_syscall)
        CHECK(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog));
    else
        CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog));
}

static void *vcpu_thread(void *by_syscall)
{
    static const unsigned calls[] = {SYS_ioctl, SYS_write, SYS_exit, SYS_exit_group, SYS_rt_sigprocmask, SYS_madvise};
    struct kvm_regs regs;

    restrict_to(by_syscall != NULL, calls, sizeof(calls) / sizeof(calls[0]));
    for (int i = 0; i < 5; i++) {
        CHECK(!ioctl(vcpu, KVM_RUN, 0) && run->exit_reason == KVM_EXIT_IO && run->io.port == 0x10);
        CHECK(!ioctl(vcpu, KVM_GET_REGS, &regs));
    }
    return NULL;
}

/* Does the filter still hold? Status 0: killed by SIGSYS. */
static int killed(void)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        static const unsigned calls[] = {SYS_ioctl, SYS_exit_group};

        restrict_to(0, calls, 2);
        open("/etc/passwd", O_RDONLY);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    return !(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
}

static void over_a_socket(void)
{
    char byte = 0, control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    int pair[2], got;

    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &vm, sizeof(int));
    CHECK(sendmsg(pair[0], &msg, 0) == 1);
    memset(control, 0, sizeof(control));
    msg.msg_controllen = sizeof(control);
    CHECK(recvmsg(pair[1], &msg, 0) == 1);
    memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
    CHECK(got != vm && ioctl(got, KVM_CHECK_EXTENSION, KVM_CAP_IRQCHIP) == 1);
    close(vm);
    CHECK(ioctl(got, KVM_CHECK_EXTENSION, KVM_CAP_IRQCHIP) == 1); /* the other number keeps the VM */
    close(got);
}

int main(void)
{
    for (intptr_t by_syscall = 0; by_syscall < 2; by_syscall++) {
        pthread_t thread;

        make_vm();
        CHECK(!pthread_create(&thread, NULL, vcpu_thread, (void *)by_syscall) && !pthread_join(thread, NULL));
        CHECK(!killed());
    }
    over_a_socket();
    return 0;
}
