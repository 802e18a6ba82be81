/* SPDX-License-Identifier: MIT
 * client.c: a KVM client that knows nothing of anykvm, run under the preload library: what programs do with
 * descriptors, signals and children around /dev/kvm. */
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
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static int sys, vm, vcpu;
static struct kvm_run *run;
static uint8_t *ram;

static void make_vm(void)
{
    struct kvm_userspace_memory_region region = {.guest_phys_addr = 0x1000, .memory_size = 0x1000};
    struct kvm_sregs sregs;
    struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};
    int size;

    vm = ioctl(sys, KVM_CREATE_VM, 0);
    CHECK(vm >= 0);
    ram = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(ram != MAP_FAILED);
    memcpy(ram, "\xeb\xfe", 2); /* jmp . */
    region.userspace_addr = (uintptr_t)ram;
    CHECK(!ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
    vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    size = ioctl(sys, KVM_GET_VCPU_MMAP_SIZE, 0);
    CHECK(vcpu >= 0 && size > 0);
    run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    CHECK(run != MAP_FAILED);
    CHECK(!ioctl(vcpu, KVM_GET_SREGS, &sregs));
    sregs.cs.base = sregs.cs.selector = 0;
    CHECK(!ioctl(vcpu, KVM_SET_SREGS, &sregs));
    CHECK(!ioctl(vcpu, KVM_SET_REGS, &regs));
}

/* ---- the device ---- */
static void device(void)
{
    struct stat st;
    FILE *file;

    CHECK(!stat("/dev/kvm", &st) && S_ISCHR(st.st_mode) && st.st_rdev == makedev(10, 232));
    CHECK(!access("/dev/kvm", R_OK | W_OK));
    CHECK(access("/dev/kvm", X_OK) && errno == EACCES);
    CHECK(open("/dev/kvm", O_RDWR | O_CREAT | O_EXCL, 0600) < 0 && errno == EEXIST);
    sys = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    CHECK(sys >= 0);
    CHECK(ioctl(sys, KVM_GET_API_VERSION, 0) == 12);
    CHECK(!fstat(sys, &st) && S_ISCHR(st.st_mode) && st.st_rdev == makedev(10, 232));
    CHECK(!fstatat(sys, "", &st, AT_EMPTY_PATH) && S_ISCHR(st.st_mode));
    file = fopen("/dev/kvm", "r+e");
    CHECK(file && ioctl(fileno(file), KVM_GET_API_VERSION, 0) == 12 && !fclose(file));
    file = fopen("/proc/self/exe", "r"); /* the same number, another meaning */
    CHECK(file && !fstat(fileno(file), &st) && S_ISREG(st.st_mode));
    CHECK(mmap(NULL, 1, PROT_READ, MAP_PRIVATE, fileno(file), 0) != MAP_FAILED && !fclose(file));
    CHECK(ioctl(0, KVM_GET_API_VERSION, 0) < 0 && errno == ENOTTY);
}

/* ---- descriptors ---- */
static bool alive(int fd)
{
    struct kvm_regs regs;

    return ioctl(fd, KVM_GET_REGS, &regs) == 0;
}

static void descriptors(void)
{
    const int one = dup(vcpu), two = fcntl(one, F_DUPFD_CLOEXEC, 100);
    pid_t pid;
    int status;

    CHECK(one >= 0 && two >= 100 && alive(two));
    CHECK(dup2(two, one) == one && alive(one));
    CHECK(!close_range(100, ~0u, 0) && alive(one));
    CHECK(dup2(0, one) == one && !alive(one) && alive(vcpu)); /* the number now means something else */
    close(one);
    pid = vfork(); /* shares our memory: its closing must leave ours alone */
    if (pid == 0) {
        close(vcpu);
        close(vm);
        close(sys);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0 && alive(vcpu));
    pid = fork();
    if (pid == 0) {
        struct kvm_regs regs;
        const bool refused = ioctl(vcpu, KVM_GET_REGS, &regs) < 0 && errno == EIO;

        close(vcpu);
        close(vm);
        sys = open("/dev/kvm", O_RDWR); /* a VM of its own */
        make_vm();
        _exit(!(refused && alive(vcpu)));
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0 && alive(vcpu));
}

/* ---- signals ---- */
static volatile sig_atomic_t alarms;
static sigjmp_buf after_fault;
static void *volatile fault_at, *volatile bad_pointer = (void *)0x10;

static void on_alarm(int sig)
{
    alarms++;
}

static void on_fault(int sig, siginfo_t *si, void *uc)
{
    fault_at = si->si_addr;
    siglongjmp(after_fault, 1);
}

static void alarm_ends_run(int flags)
{
    struct sigaction act = {.sa_handler = on_alarm, .sa_flags = flags}, old;
    struct itimerval in = {.it_value.tv_usec = 20000};

    CHECK(!sigaction(SIGALRM, &act, NULL));
    CHECK(!sigaction(SIGALRM, NULL, &old) && old.sa_handler == on_alarm && !(old.sa_flags & SA_SIGINFO));
    alarms = 0;
    CHECK(!setitimer(ITIMER_REAL, &in, NULL));
    CHECK(ioctl(vcpu, KVM_RUN, 0) < 0 && errno == EINTR && run->exit_reason == KVM_EXIT_INTR && alarms == 1);
}

static void faults_are_the_clients(void)
{
    struct sigaction act = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO}, old;

    CHECK(!sigaction(SIGSEGV, &act, NULL));
    CHECK(!sigaction(SIGSEGV, NULL, &old) && old.sa_sigaction == on_fault);
    if (!sigsetjmp(after_fault, 1))
        *(volatile int *)bad_pointer = 1;
    CHECK(fault_at == (void *)0x10);
}

static void *kick(void *thread)
{
    usleep(20000);
    run->immediate_exit = 1;
    pthread_kill(*(pthread_t *)thread, SIGUSR1);
    return NULL;
}

/* As QEMU: everything is blocked but the kick. The guest's first accesses fault in the host, which must not kill. */
static void kicked_with_all_blocked(void)
{
    pthread_t self = pthread_self(), other;
    sigset_t all, before;

    CHECK(signal(SIGUSR1, on_alarm) == SIG_DFL);
    sigfillset(&all);
    sigdelset(&all, SIGUSR1);
    CHECK(!pthread_sigmask(SIG_SETMASK, &all, &before));
    alarms = 0;
    CHECK(!pthread_create(&other, NULL, kick, &self));
    while (ioctl(vcpu, KVM_RUN, 0) == 0)
        CHECK(run->exit_reason == KVM_EXIT_INTR);
    CHECK(errno == EINTR && alarms == 1);
    pthread_join(other, NULL);
    run->immediate_exit = 0;
    CHECK(!pthread_sigmask(SIG_SETMASK, &before, NULL));
}

/* ---- children ---- */
static void children(const char *self)
{
    char *argv[] = {(char *)self, "child", NULL}, *env[] = {NULL};
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        execve(self, argv, env); /* no LD_PRELOAD from us */
        _exit(127);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "status"))
        return 37;
    device();
    if (argc == 2 && !strcmp(argv[1], "child"))
        return 0;
    make_vm();
    descriptors();
    alarm_ends_run(0);
    alarm_ends_run(SA_RESTART);
    faults_are_the_clients();
    kicked_with_all_blocked();
    alarm_ends_run(0);
    children(argv[0]);
    return 0;
}
