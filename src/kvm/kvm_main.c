/* SPDX-License-Identifier: MIT
 * kvm_main.c: the start of KVM, the life of VMs and vCPUs: the part that knows no vendor and no processor. A VM lives
 * while its descriptor or one of its vCPUs' is open. */
#include <anykvm.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "ioctl.h"

/* ---- start ---- */
static int kvm_check_processor_compat(void)
{
    int r;

    kvm_trace_call("kvm_arch_check_processor_compat");
    r = kvm_arch_check_processor_compat();
    kvm_trace_return();
    return r;
}

int kvm_async_pf_init(void)
{
    /* Linux makes the cache of its asynchronous page faults here. A missing page of guest memory is the host kernel's
     * fault here, taken by the thread that touches it, so there is nothing to keep; docs/architecture.md. */
    return 0;
}

/* The device: nothing is registered with the system, for it is this library's open that answers. */
static int misc_register(void)
{
    kvm_trace(TRACE_INIT, "/dev/kvm is open for business: vendor module %s", kvm_x86_ops->name);
    return 0;
}

static const struct {
    const char *name;
    int (*fn)(void);
} init_steps[] = {
    {"kvm_arch_init", kvm_arch_init},
    {"kvm_irqfd_init", kvm_irqfd_init},
    {"kvm_arch_hardware_setup", kvm_arch_hardware_setup},
    {"kvm_check_processor_compat", kvm_check_processor_compat},
    {"kvm_async_pf_init", kvm_async_pf_init},
    {"misc_register", misc_register},
};

int kvm_init(void)
{
    unsigned i;
    int r = kvm_params_init();

    if (r)
        return r;
    kvm_trace_init();
    kvm_stat_init();
    kvm_trace_call("kvm_init");
    for (i = 0; i < ARRAY_SIZE(init_steps) && !r; i++) {
        kvm_trace_call(init_steps[i].name);
        r = init_steps[i].fn();
        kvm_trace_return();
    }
    kvm_trace_return();
    if (r)
        fprintf(stderr, "anykvm: kvm_init: %s: %s%s\n", init_steps[i - 1].name, strerror(-r),
                kvm_params.ept && kvm_params.unrestricted_guest ? "" : " (ept=0, unrestricted_guest=0: not there yet)");
    return r;
}

void kvm_exit(void)
{
    kvm_trace(TRACE_INIT, "kvm_exit");
}

/* ---- VMs ---- */
void kvm_get_kvm(struct kvm *kvm)
{
    atomic_fetch_add(&kvm->users, 1);
}

static void vcpu_free(struct kvm_vcpu *vcpu)
{
    kvm_stat_vcpu_gone(vcpu);
    kvm_dirty_ring_free(vcpu);
    munmap(vcpu->run, vcpu->run_size);
    pthread_mutex_destroy(&vcpu->mutex);
    free(vcpu);
}

static void destroy_vcpus(struct kvm *kvm)
{
    int i;

    for (i = 0; i < atomic_load(&kvm->online_vcpus); i++) {
        struct kvm_vcpu *vcpu = kvm->vcpus[i];

        kvm->vcpus[i] = NULL;
        kvm_stat_sync(vcpu);
        kvm_arch_vcpu_destroy(vcpu);
        vcpu_free(vcpu);
    }
    atomic_store(&kvm->online_vcpus, 0);
}

static void kvm_free_vm(struct kvm *kvm)
{
    kvm_stat_vm_gone(kvm);
    if (kvm->coalesced_ring)
        munmap(kvm->coalesced_ring, PAGE_SIZE);
    pthread_mutex_destroy(&kvm->lock);
    pthread_mutex_destroy(&kvm->slots_lock);
    pthread_mutex_destroy(&kvm->irq_lock);
    free(kvm);
}

static void kvm_destroy_vm(struct kvm *kvm)
{
    kvm_trace(TRACE_INIT, "kvm_destroy_vm");
    kvm_irqfd_release(kvm);
    kvm_io_bus_destroy(kvm);
    kvm_coalesced_mmio_free(kvm);
    destroy_vcpus(kvm);
    kvm_arch_destroy_vm(kvm);
    cpu_domain_destroy(kvm->domain);
    kvm_msr_filter_free(kvm);
    kvm_hv_vm_free(kvm);
    kvm_memslots_free(kvm);
    kvm_free_vm(kvm);
}

void kvm_put_kvm(struct kvm *kvm)
{
    if (atomic_fetch_sub(&kvm->users, 1) == 1)
        kvm_destroy_vm(kvm);
}

/* fd: the memfd that becomes the VM's descriptor; its only page is the ring of coalesced writes. */
static int kvm_map_ring(struct kvm *kvm)
{
    void *ring = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, kvm->fd, 0);

    if (ring == MAP_FAILED)
        return -errno;
    kvm->coalesced_ring = ring;
    return 0;
}

static struct kvm *kvm_create_vm_fd(unsigned long type, int fd, int *err)
{
    struct kvm *kvm = calloc(1, sizeof(*kvm));
    int r = -ENOMEM;

    if (!kvm)
        goto out;
    atomic_store(&kvm->users, 1);
    kvm->fd = fd;
    kvm->owner_pid = kvm_mm_id();
    pthread_mutex_init(&kvm->lock, NULL);
    pthread_mutex_init(&kvm->slots_lock, NULL);
    pthread_mutex_init(&kvm->irq_lock, NULL);
    kvm_stat_vm_new(kvm);
    r = kvm_map_ring(kvm);
    if (!r)
        r = kvm_memslots_init(kvm);
    if (r)
        goto out_free;
    kvm->domain = cpu_domain_create();
    if (!kvm->domain) {
        r = -ENOMEM;
        goto out_slots;
    }
    kvm_eventfd_init(kvm);
    kvm_trace_call("kvm_arch_init_vm");
    r = kvm_arch_init_vm(kvm, type);
    kvm_trace_return();
    if (r)
        goto out_eventfd;
    kvm_trace_call("kvm_coalesced_mmio_init");
    r = kvm_coalesced_mmio_init(kvm);
    kvm_trace_return();
    if (r)
        goto out_arch;
    *err = 0;
    return kvm;

out_arch:
    kvm_arch_destroy_vm(kvm);
out_eventfd:
    kvm_irqfd_release(kvm);
out_slots:
    if (kvm->domain)
        cpu_domain_destroy(kvm->domain);
    kvm_memslots_free(kvm);
out_free:
    kvm_free_vm(kvm);
out:
    *err = r;
    return NULL;
}

struct kvm *kvm_create_vm(unsigned long type, int *err)
{
    int fd = os_memfd("kvm-vm", PAGE_SIZE, true);
    struct kvm *kvm;

    if (fd < 0) {
        *err = fd;
        return NULL;
    }
    kvm_trace_call("kvm_create_vm");
    kvm = kvm_create_vm_fd(type, fd, err);
    kvm_trace_return();
    if (!kvm)
        close(fd);
    return kvm;
}

int kvm_dev_ioctl_create_vm(unsigned long type)
{
    struct kvm *kvm;
    int r;

    kvm_trace_call("kvm_dev_ioctl_create_vm");
    kvm = kvm_create_vm(type, &r);
    if (kvm) {
        kvm_trace_call("anon_inode_getfd");
        r = kvm_file_install(kvm->fd, FILE_VM, kvm, NULL);
        kvm_trace_return();
        if (r < 0) {
            close(kvm->fd);
            kvm_put_kvm(kvm);
        }
    }
    kvm_trace_return();
    return r;
}

/* ---- vCPUs ---- */
static __thread struct kvm_vcpu *running_vcpu __attribute__((tls_model("initial-exec")));

struct kvm_vcpu *kvm_get_running_vcpu(void)
{
    return running_vcpu;
}

void vcpu_load(struct kvm_vcpu *vcpu)
{
    atomic_store(&vcpu->signal_arrived, false); /* first: from the next line on a handler's flag counts */
    running_vcpu = vcpu;
    kvm_x86_ops->vcpu_load(vcpu);
}

void vcpu_put(struct kvm_vcpu *vcpu)
{
    kvm_x86_ops->vcpu_put(vcpu);
    running_vcpu = NULL;
}

/* In a client's signal handler: atomics and a kick alone. The word changes so that a restarted futex wait ends. */
void anykvm_signal_arrived(void)
{
    struct kvm_vcpu *vcpu = running_vcpu;

    if (!vcpu)
        return;
    atomic_store(&vcpu->signal_arrived, true);
    atomic_fetch_add(&vcpu->wake, 1);
    cpu_kick(vcpu->arch.cpu);
}

/* No thread can be started and nothing opened by name later on. */
void kvm_sandbox_ahead(struct kvm *kvm)
{
    struct ktimer_thread *timers = kvm_timer_thread(kvm);

    if (timers)
        ktimer_thread_start(timers);
    kvm_irqfd_start(kvm);
    kvm_mmu_ask_slots(kvm);
}

int anykvm_sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
    return cpu_sigaction(sig, act, old);
}

void anykvm_sigmask_changed(void)
{
    cpu_sigmask_changed();
}

struct kvm_vcpu *kvm_get_vcpu_by_id(struct kvm *kvm, int id)
{
    const int n = atomic_load(&kvm->online_vcpus);
    int i;

    if (id >= 0 && id < n && kvm->vcpus[id] && kvm->vcpus[id]->vcpu_id == id)
        return kvm->vcpus[id];
    for (i = 0; i < n; i++)
        if (kvm->vcpus[i] && kvm->vcpus[i]->vcpu_id == id)
            return kvm->vcpus[i];
    return NULL;
}

void kvm_vcpu_release(struct kvm_vcpu *vcpu)
{
    kvm_put_kvm(vcpu->kvm); /* the vCPU itself goes with the VM */
}

static struct kvm_vcpu *vcpu_alloc(struct kvm *kvm, int id, int fd)
{
    struct kvm_vcpu *vcpu = aligned_alloc(64, (sizeof(*vcpu) + 63) & ~63ul);

    if (!vcpu)
        return NULL;
    memset(vcpu, 0, sizeof(*vcpu));
    vcpu->kvm = kvm;
    vcpu->vcpu_id = id;
    vcpu->fd = fd;
    vcpu->run_size = KVM_VCPU_MMAP_PAGES * PAGE_SIZE;
    vcpu->run = mmap(NULL, vcpu->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (vcpu->run == MAP_FAILED) {
        free(vcpu);
        return NULL;
    }
    if (kvm_dirty_ring_alloc(vcpu, fd)) {
        munmap(vcpu->run, vcpu->run_size);
        pthread_mutex_destroy(&vcpu->dirty_ring.lock);
        free(vcpu);
        return NULL;
    }
    pthread_mutex_init(&vcpu->mutex, NULL);
    kvm_msr_vcpu_init(vcpu);
    kvm_stat_vcpu_new(vcpu);
    return vcpu;
}

/* Under kvm->lock. On success the vCPU is visible. */
static int vcpu_publish(struct kvm *kvm, struct kvm_vcpu *vcpu)
{
    int r;

    if (kvm_get_vcpu_by_id(kvm, vcpu->vcpu_id))
        return because(-EEXIST, "vCPU %d exists", vcpu->vcpu_id);
    vcpu->vcpu_idx = atomic_load(&kvm->online_vcpus);
    kvm_get_kvm(kvm);
    r = kvm_file_install(vcpu->fd, FILE_VCPU, kvm, vcpu);
    if (r < 0) {
        atomic_fetch_sub(&kvm->users, 1);
        return r;
    }
    kvm->vcpus[vcpu->vcpu_idx] = vcpu;
    atomic_store(&kvm->online_vcpus, vcpu->vcpu_idx + 1);
    kvm->stat[VM_STAT_vcpus]++;
    return r;
}

static int create_vcpu(struct kvm *kvm, uint32_t id)
{
    const size_t ring = kvm->dirty_ring_size, pages = ring ? KVM_DIRTY_LOG_PAGE_OFFSET : KVM_VCPU_MMAP_PAGES;
    struct kvm_vcpu *vcpu;
    int r, fd = os_memfd("kvm-vcpu", pages * PAGE_SIZE + ring, true);

    if (fd < 0)
        return fd;
    vcpu = vcpu_alloc(kvm, (int)id, fd);
    if (!vcpu) {
        close(fd);
        return -ENOMEM;
    }
    pthread_mutex_lock(&kvm->lock);
    vcpu->vcpu_idx = atomic_load(&kvm->online_vcpus);
    pthread_mutex_unlock(&kvm->lock);
    r = kvm_arch_vcpu_create(vcpu);
    if (!r) {
        pthread_mutex_lock(&kvm->lock);
        r = vcpu_publish(kvm, vcpu);
        pthread_mutex_unlock(&kvm->lock);
        if (r < 0)
            kvm_arch_vcpu_destroy(vcpu);
    }
    if (r < 0) {
        vcpu_free(vcpu);
        close(fd);
    }
    return r;
}

int kvm_vm_ioctl_create_vcpu(struct kvm *kvm, uint32_t id)
{
    int r;

    if (id >= KVM_MAX_VCPU_IDS)
        return because(-EINVAL, "vCPU id %u, below %u are allowed", id, KVM_MAX_VCPU_IDS);
    pthread_mutex_lock(&kvm->lock);
    if (kvm->created_vcpus >= KVM_MAX_VCPUS)
        r = because(-EINVAL, "%d vCPUs exist, that is the limit", kvm->created_vcpus);
    else if (kvm->arch.max_vcpu_ids && id >= kvm->arch.max_vcpu_ids)
        r = because(-EINVAL, "vCPU id %u, KVM_CAP_MAX_VCPU_ID was set to %u", id, kvm->arch.max_vcpu_ids);
    else
        r = 0, kvm->created_vcpus++;
    pthread_mutex_unlock(&kvm->lock);
    if (r)
        return r;
    kvm_trace_call("kvm_vm_ioctl_create_vcpu");
    r = create_vcpu(kvm, id);
    kvm_trace_return();
    if (r < 0) {
        pthread_mutex_lock(&kvm->lock);
        kvm->created_vcpus--;
        pthread_mutex_unlock(&kvm->lock);
    }
    return r;
}
