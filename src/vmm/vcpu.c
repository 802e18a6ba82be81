/* SPDX-License-Identifier: MIT
 * vcpu.c: a vCPU is a thread that calls KVM_RUN and serves its exits. */
#include "vmm.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define SIG_KICK SIGUSR1

static _Thread_local struct vcpu *self;
static const struct kvm_api *signal_api;

static void on_kick(int sig)
{
    (void)sig;
    if (self)
        self->run->immediate_exit = 1;
    if (signal_api && signal_api->signal_arrived)
        signal_api->signal_arrived();
}

void vcpu_init_signals(const struct kvm_api *api)
{
    struct sigaction sa = {.sa_handler = on_kick};

    signal_api = api;
    sigaction(SIG_KICK, &sa, NULL);
}

/* All of KVM_GET_SUPPORTED_CPUID, with this vCPU's APIC id and the number of vCPUs as one package of single-thread
 * cores. */
static int set_cpuid(struct vcpu *v)
{
    struct accel *a = &v->machine->accel;
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entries[256];
    } c = {.head.nent = 256};
    unsigned cpus = v->machine->config.cpus, width = cpus > 1 ? 32 - __builtin_clz(cpus - 1) : 0;

    if (a->api->ioctl(a->kvm_fd, KVM_GET_SUPPORTED_CPUID, &c) < 0)
        return vmm_error("KVM_GET_SUPPORTED_CPUID: %s", strerror(errno));
    for (unsigned i = 0; i < c.head.nent; i++) {
        struct kvm_cpuid_entry2 *e = &c.entries[i];
        switch (e->function) {
        case 1:
            e->ebx = (e->ebx & 0x0000ffff) | v->id << 24 | cpus << 16;
            e->edx = cpus > 1 ? e->edx | 1u << 28 : e->edx & ~(1u << 28); /* HTT: EBX[23:16] is valid */
            e->ecx |= 1u << 24 | 1u << 31;                                /* TSC deadline timer, hypervisor */
            break;
        case 4: /* cores per package; each cache of a core but the last level */
            if (e->eax & 31)
                e->eax = (e->eax & 0x00003fff) | (cpus - 1) << 26 | ((e->eax >> 5 & 7) == 3 ? cpus - 1 : 0) << 14;
            break;
        case 0xb:
        case 0x1f: /* level 0: threads (one a core); level 1: cores; then an end */
            e->eax = e->index == 0 ? 0 : e->index == 1 ? width : 0;
            e->ebx = e->index == 0 ? 1 : e->index == 1 ? cpus : 0;
            e->ecx = e->index | (e->index == 0 ? 1 : e->index == 1 ? 2 : 0) << 8;
            e->edx = v->id;
            break;
        case 0x80000008: /* AMD: core count and APIC id size */
            e->ecx = (e->ecx & ~0xf0ffu) | (cpus - 1) | width << 12;
            break;
        case 0x8000001e:
            e->eax = v->id;
            e->ebx = v->id;
            e->ecx = 0;
            break;
        }
    }
    if (a->api->ioctl(v->fd, KVM_SET_CPUID2, &c) < 0)
        return vmm_error("KVM_SET_CPUID2: %s", strerror(errno));
    return 0;
}

int vcpu_create(struct machine *m, unsigned id)
{
    struct vcpu *v = &m->vcpus[id];

    v->machine = m;
    v->id = id;
    v->fd = m->accel.api->ioctl(m->accel.vm_fd, KVM_CREATE_VCPU, (unsigned long)id);
    if (v->fd < 0)
        return vmm_error("KVM_CREATE_VCPU %u: %s", id, strerror(errno));
    v->run = m->accel.api->mmap(NULL, m->accel.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
    if (v->run == MAP_FAILED)
        return vmm_error("mmap of vCPU %u: %s", id, strerror(errno));
    return set_cpuid(v);
}

static void print_segment(const char *name, const struct kvm_segment *s)
{
    fprintf(stderr, "%s=%04x base=%016llx limit=%08x type=%x s=%u dpl=%u p=%u l=%u db=%u g=%u\n", name, s->selector,
            (unsigned long long)s->base, s->limit, s->type, s->s, s->dpl, s->present, s->l, s->db, s->g);
}

void vcpu_dump(struct vcpu *v)
{
    const struct kvm_api *api = v->machine->accel.api;
    struct kvm_regs r;
    struct kvm_sregs s;

    if (api->ioctl(v->fd, KVM_GET_REGS, &r) < 0 || api->ioctl(v->fd, KVM_GET_SREGS, &s) < 0)
        return;
#define X(x) (unsigned long long)(x)
    fprintf(stderr, "vCPU %u\nRAX=%016llx RBX=%016llx RCX=%016llx RDX=%016llx\n", v->id, X(r.rax), X(r.rbx), X(r.rcx),
            X(r.rdx));
    fprintf(stderr, "RSI=%016llx RDI=%016llx RBP=%016llx RSP=%016llx\n", X(r.rsi), X(r.rdi), X(r.rbp), X(r.rsp));
    fprintf(stderr, "R8 =%016llx R9 =%016llx R10=%016llx R11=%016llx\n", X(r.r8), X(r.r9), X(r.r10), X(r.r11));
    fprintf(stderr, "R12=%016llx R13=%016llx R14=%016llx R15=%016llx\n", X(r.r12), X(r.r13), X(r.r14), X(r.r15));
    fprintf(stderr, "RIP=%016llx RFLAGS=%08llx\n", X(r.rip), X(r.rflags));
    print_segment("CS", &s.cs);
    print_segment("SS", &s.ss);
    print_segment("DS", &s.ds);
    print_segment("ES", &s.es);
    print_segment("FS", &s.fs);
    print_segment("GS", &s.gs);
    print_segment("TR", &s.tr);
    fprintf(stderr, "GDT=%016llx %08x IDT=%016llx %08x\n", X(s.gdt.base), s.gdt.limit, X(s.idt.base), s.idt.limit);
    fprintf(stderr, "CR0=%08llx CR2=%016llx CR3=%016llx CR4=%08llx EFER=%08llx\n", X(s.cr0), X(s.cr2), X(s.cr3),
            X(s.cr4), X(s.efer));
#undef X
}

static void handle_io(struct vcpu *v)
{
    struct kvm_run *run = v->run;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;

    for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size)
        bus_access(v->machine, PIO, run->io.port, run->io.size, run->io.direction == KVM_EXIT_IO_OUT, data);
}

/* 0: run again; 1: the machine was asked to do something, park. */
static int handle_exit(struct vcpu *v)
{
    struct kvm_run *run = v->run;
    struct machine *m = v->machine;

    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        handle_io(v);
        return 0;
    case KVM_EXIT_MMIO:
        bus_access(m, MMIO, run->mmio.phys_addr, run->mmio.len, run->mmio.is_write, run->mmio.data);
        return 0;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_UNKNOWN:
        return 0;
    case KVM_EXIT_SHUTDOWN:
        vcpu_dump(v);
        machine_fail(m, "vCPU %u: triple fault", v->id);
        return 1;
    case KVM_EXIT_SYSTEM_EVENT:
        machine_request(m, run->system_event.type == KVM_SYSTEM_EVENT_RESET ? REQ_RESET : REQ_SHUTDOWN);
        return 1;
    case KVM_EXIT_FAIL_ENTRY:
        vcpu_dump(v);
        machine_fail(m, "vCPU %u: VM entry failed, hardware reason %#llx", v->id,
                     (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
        return 1;
    case KVM_EXIT_INTERNAL_ERROR:
        vcpu_dump(v);
        machine_fail(m, "vCPU %u: KVM internal error, suberror %u", v->id, run->internal.suberror);
        return 1;
    default:
        vcpu_dump(v);
        machine_fail(m, "vCPU %u: unexpected exit reason %u", v->id, run->exit_reason);
        return 1;
    }
}

/* Wait while the machine is being reset. false: the thread ends. */
static bool park_if_asked(struct vcpu *v)
{
    struct machine *m = v->machine;
    bool go_on;

    pthread_mutex_lock(&m->lock);
    while (m->request != REQ_NONE && !m->stop) {
        if (!v->parked) {
            v->parked = true;
            m->parked++;
            pthread_cond_broadcast(&m->cond);
        }
        pthread_cond_wait(&m->cond, &m->lock);
    }
    if (v->parked) {
        v->parked = false;
        m->parked--;
    }
    go_on = !m->stop;
    pthread_mutex_unlock(&m->lock);
    return go_on;
}

static void *vcpu_thread(void *opaque)
{
    struct vcpu *v = opaque;
    struct machine *m = v->machine;
    char name[16];

    self = v;
    snprintf(name, sizeof(name), "CPU %u/KVM", v->id);
    pthread_setname_np(pthread_self(), name);
    for (;;) {
        int ret;

        v->run->immediate_exit = 0;
        atomic_thread_fence(memory_order_seq_cst); /* a kick after this line sets it again */
        if (!park_if_asked(v))
            break;
        ret = m->accel.api->ioctl(v->fd, KVM_RUN, 0);
        if (ret < 0 && errno != EINTR && errno != EAGAIN) {
            int err = errno;
            vcpu_dump(v);
            machine_fail(m, "vCPU %u: KVM_RUN: %s", v->id, strerror(err));
            continue;
        }
        if (ret == 0)
            handle_exit(v);
    }
    self = NULL;
    return NULL;
}

int vcpu_start(struct vcpu *v)
{
    int err = pthread_create(&v->thread, NULL, vcpu_thread, v);

    return err ? vmm_error("vCPU %u: no thread: %s", v->id, strerror(err)) : 0;
}

void vcpu_kick_all(struct machine *m)
{
    for (unsigned i = 0; i < m->config.cpus; i++)
        if (m->vcpus[i].thread)
            pthread_kill(m->vcpus[i].thread, SIG_KICK);
}

void vcpu_join(struct vcpu *v)
{
    struct timespec deadline;

    if (!v->thread)
        return;
    do { /* a kick may come just before KVM_RUN looks: again until the thread is gone */
        pthread_kill(v->thread, SIG_KICK);
        clock_gettime(CLOCK_REALTIME, &deadline);
        deadline.tv_nsec += 50 * 1000000;
        if (deadline.tv_nsec >= 1000000000) {
            deadline.tv_nsec -= 1000000000;
            deadline.tv_sec++;
        }
    } while (pthread_timedjoin_np(v->thread, NULL, &deadline) != 0);
    v->thread = 0;
}
