/* SPDX-License-Identifier: MIT
 * eventfd.c: irqfds (an eventfd's signal is an interrupt; api.rst, KVM_IRQFD) and ioeventfds (a guest's write is an
 * eventfd's signal; KVM_IOEVENTFD). One epoll thread a VM, started with the first irqfd. The client's eventfds are held
 * by duplicates and known by the kernel's own id, so that a client may close or reuse its number. */
#include "kvm_host.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_IRQFDS 4096
#define STOP_TAG   UINT64_MAX

struct fd_set_ { /* resample eventfds of one GSI; immutable, read under kvm->srcu */
    unsigned count;
    int fd[];
};

/* All level irqfds of a GSI share one line: it falls at the EOI, and all are told (virt/kvm: irqfd resampling). */
struct resampler {
    struct kvm_irq_ack_notifier ack;
    struct kvm *kvm;
    _Atomic(struct fd_set_ *) fds;
    struct resampler *next;
};

struct irqfd {
    struct kvm *kvm;
    int fd, resample_fd; /* our duplicates; -1 */
    uint64_t id;         /* eventfd-id of the kernel */
    uint32_t gsi, generation;
    struct resampler *resampler;
};

struct ioeventfd {
    struct kvm_io_device dev;
    int fd;
    uint64_t id, addr, datamatch;
    uint32_t length;
    bool wildcard;
    enum kvm_bus bus;
    struct ioeventfd *next;
};

struct kvm_eventfds {
    pthread_mutex_t lock; /* all below; the epoll thread holds it while it raises an interrupt */
    struct irqfd **slot;  /* [MAX_IRQFDS], by index of the epoll tag */
    unsigned used;        /* slots that were ever taken */
    uint32_t generation;
    struct resampler *resamplers;
    struct ioeventfd *ioeventfds;
    int epoll, stop; /* -1 until the thread runs */
    pthread_t thread;
};

/* ---- eventfds ---- */
/* "eventfd-id:" of /proc/self/fdinfo/N: -EBADF, -EINVAL (no eventfd), 0. Without /proc the number must do. */
int eventfd_id(int fd, uint64_t *id)
{
    char path[64], text[512], *at;
    ssize_t n;
    int info;

    if (fd < 0 || fcntl(fd, F_GETFD) < 0)
        return -EBADF;
    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
    info = os_may_open() ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (info < 0) {
        *id = (uint64_t)fd << 32;
        return 0;
    }
    n = read(info, text, sizeof(text) - 1);
    close(info);
    text[n > 0 ? n : 0] = 0;
    if (!strstr(text, "eventfd-count:"))
        return -EINVAL;
    at = strstr(text, "eventfd-id:");
    *id = at ? strtoull(at + 11, NULL, 0) : (uint64_t)fd << 32;
    return 0;
}

void signal_eventfd(int fd)
{
    const uint64_t one = 1;
    ssize_t r;

    do
        r = write(fd, &one, sizeof(one));
    while (r < 0 && errno == EINTR);
}

/* Takes the count without ever blocking (another reader may have been faster). true: there was one. */
static bool take_eventfd(int fd)
{
    uint64_t count;
    struct iovec iov = {.iov_base = &count, .iov_len = sizeof(count)};
    ssize_t r = preadv2(fd, &iov, 1, -1, RWF_NOWAIT);

    if (r < 0 && errno == EOPNOTSUPP) /* before Linux 5.7: epoll just said that there is one */
        r = read(fd, &count, sizeof(count));
    return r == sizeof(count);
}

/* ---- resampling ---- */
/* A vCPU's EOI, in a section of kvm->srcu; no lock may be taken here that kvm_irqfd() holds while it waits for readers.
 */
static void resample(struct kvm_irq_ack_notifier *n)
{
    struct resampler *r = container_of(n, struct resampler, ack);
    const struct fd_set_ *fds = atomic_load(&r->fds);

    kvm_set_irq(r->kvm, KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, n->gsi, 0, false);
    for (unsigned i = 0; fds && i < fds->count; i++)
        signal_eventfd(fds->fd[i]);
}

/* Publishes the GSI's set with fd added or taken away. */
static int resampler_change(struct resampler *r, int fd, bool add)
{
    struct fd_set_ *old = atomic_load(&r->fds), *new;
    const unsigned n = old ? old->count : 0;

    new = calloc(1, sizeof(*new) + (n + 1) * sizeof(new->fd[0]));
    if (!new)
        return -ENOMEM;
    for (unsigned i = 0; i < n; i++)
        if (add || old->fd[i] != fd)
            new->fd[new->count++] = old->fd[i];
    if (add)
        new->fd[new->count++] = fd;
    atomic_store(&r->fds, new);
    pthread_mutex_lock(&r->kvm->irq_lock);
    srcu_synchronize(&r->kvm->srcu);
    pthread_mutex_unlock(&r->kvm->irq_lock);
    free(old);
    return 0;
}

static struct resampler *resampler_get(struct kvm *kvm, uint32_t gsi)
{
    struct kvm_eventfds *e = kvm->eventfds;
    struct resampler *r;

    for (r = e->resamplers; r; r = r->next)
        if (r->ack.gsi == gsi)
            return r;
    r = calloc(1, sizeof(*r));
    if (!r)
        return NULL;
    *r = (struct resampler){.kvm = kvm, .ack = {.gsi = gsi, .irq_acked = resample}, .next = e->resamplers};
    e->resamplers = r;
    kvm_register_irq_ack_notifier(kvm, &r->ack);
    return r;
}

static void resampler_put(struct resampler *r)
{
    struct fd_set_ *fds = atomic_load(&r->fds);
    struct resampler **at = &r->kvm->eventfds->resamplers;

    if (fds && fds->count)
        return;
    kvm_unregister_irq_ack_notifier(r->kvm, &r->ack);
    kvm_set_irq(r->kvm, KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, r->ack.gsi, 0, false);
    while (*at != r)
        at = &(*at)->next;
    *at = r->next;
    free(fds);
    free(r);
}

/* ---- the epoll thread ---- */
static void inject(struct irqfd *f)
{
    if (!take_eventfd(f->fd))
        return;
    f->kvm->stat[VM_STAT_irqfd_signals]++; /* by this thread alone */
    if (f->resampler) {
        kvm_set_irq(f->kvm, KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, f->gsi, 1, false);
        return;
    }
    kvm_set_irq(f->kvm, KVM_USERSPACE_IRQ_SOURCE_ID, f->gsi, 1, false);
    kvm_set_irq(f->kvm, KVM_USERSPACE_IRQ_SOURCE_ID, f->gsi, 0, false);
}

static uint64_t tag_of(unsigned index, uint32_t generation)
{
    return (uint64_t)generation << 32 | index;
}

static void *epoll_thread(void *arg)
{
    struct kvm_eventfds *e = arg;
    struct epoll_event events[16];

    os_thread_low_latency();
    for (;;) {
        const int n = epoll_wait(e->epoll, events, 16, -1);

        if (n < 0 && errno != EINTR)
            return NULL;
        for (int i = 0; i < n; i++) {
            const uint64_t tag = events[i].data.u64;
            struct irqfd *f;

            if (tag == STOP_TAG)
                return NULL;
            pthread_mutex_lock(&e->lock);
            f = e->slot[(uint32_t)tag];
            if (f && f->generation == tag >> 32) /* else deassigned meanwhile */
                inject(f);
            pthread_mutex_unlock(&e->lock);
        }
    }
}

static int start_thread(struct kvm_eventfds *e)
{
    struct epoll_event stop = {.events = EPOLLIN, .data.u64 = STOP_TAG};
    int err = 0;

    if (e->epoll >= 0)
        return 0;
    e->slot = calloc(MAX_IRQFDS, sizeof(*e->slot));
    e->epoll = epoll_create1(EPOLL_CLOEXEC);
    e->stop = eventfd(0, EFD_CLOEXEC);
    if (!e->slot)
        err = -ENOMEM;
    else if (e->epoll < 0 || e->stop < 0 || epoll_ctl(e->epoll, EPOLL_CTL_ADD, e->stop, &stop))
        err = -errno;
    if (!err)
        err = os_thread_start("kvm-irqfd", epoll_thread, e, &e->thread);
    if (err) {
        close(e->epoll);
        close(e->stop);
        free(e->slot);
        e->epoll = e->stop = -1;
        e->slot = NULL;
    }
    return err;
}

/* ---- KVM_IRQFD ---- */
static int free_slot(struct kvm_eventfds *e)
{
    for (unsigned i = 0; i < MAX_IRQFDS; i++)
        if (!e->slot[i])
            return (int)i;
    return -1;
}

static void irqfd_free(struct irqfd *f)
{
    if (f->resampler) {
        resampler_change(f->resampler, f->resample_fd, false);
        resampler_put(f->resampler);
    }
    if (f->resample_fd >= 0)
        close(f->resample_fd);
    if (f->fd >= 0)
        close(f->fd);
    free(f);
}

static int add_resampler(struct irqfd *f, int fd)
{
    uint64_t id;
    int err = eventfd_id(fd, &id);

    if (err)
        return err;
    f->resample_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (f->resample_fd < 0)
        return -errno;
    f->resampler = resampler_get(f->kvm, f->gsi);
    if (!f->resampler)
        return -ENOMEM;
    err = resampler_change(f->resampler, f->resample_fd, true);
    if (err) {
        resampler_put(f->resampler);
        f->resampler = NULL;
    }
    return err;
}

/* With the lock held. An eventfd that was signalled before is an interrupt at once: epoll reports it. */
static int assign(struct kvm *kvm, const struct kvm_irqfd *args, uint64_t id)
{
    struct kvm_eventfds *e = kvm->eventfds;
    struct epoll_event event = {.events = EPOLLIN};
    struct irqfd *f;
    int err = start_thread(e), i;

    if (err)
        return err;
    for (unsigned k = 0; k < e->used; k++)
        if (e->slot[k] && e->slot[k]->id == id)
            return -EBUSY;
    i = free_slot(e);
    f = i < 0 ? NULL : calloc(1, sizeof(*f));
    if (!f)
        return i < 0 ? -ENOSPC : -ENOMEM;
    *f = (struct irqfd){.kvm = kvm, .resample_fd = -1, .id = id, .gsi = args->gsi, .generation = ++e->generation};
    f->fd = fcntl((int)args->fd, F_DUPFD_CLOEXEC, 0);
    if (f->fd < 0)
        err = -errno;
    else if (args->flags & KVM_IRQFD_FLAG_RESAMPLE)
        err = add_resampler(f, (int)args->resamplefd);
    event.data.u64 = tag_of((unsigned)i, f->generation);
    if (!err) {
        e->slot[i] = f;
        if (e->used <= (unsigned)i)
            e->used = (unsigned)i + 1;
        if (epoll_ctl(e->epoll, EPOLL_CTL_ADD, f->fd, &event))
            err = -errno;
    }
    if (err) {
        e->slot[i] = NULL;
        irqfd_free(f);
    }
    return err;
}

static void deassign_slot(struct kvm_eventfds *e, unsigned i)
{
    struct irqfd *f = e->slot[i];

    epoll_ctl(e->epoll, EPOLL_CTL_DEL, f->fd, NULL);
    e->slot[i] = NULL;
    irqfd_free(f);
}

static void deassign(struct kvm_eventfds *e, uint64_t id, uint32_t gsi)
{
    for (unsigned i = 0; i < e->used; i++)
        if (e->slot[i] && e->slot[i]->id == id && e->slot[i]->gsi == gsi)
            deassign_slot(e, i);
}

int kvm_irqfd(struct kvm *kvm, const struct kvm_irqfd *args)
{
    struct kvm_eventfds *e = kvm->eventfds;
    uint64_t id;
    int err;

    if (args->flags & ~(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE))
        return -EINVAL;
    if (!(args->flags & KVM_IRQFD_FLAG_DEASSIGN)) {
        if (!kvm_arch_can_set_irq(kvm))
            return -EAGAIN;
        if (args->flags & KVM_IRQFD_FLAG_RESAMPLE && !kvm->arch.irqchip_kernel)
            return -EINVAL;
    }
    err = e ? eventfd_id((int)args->fd, &id) : -ENOMEM;
    if (err)
        return err;
    pthread_mutex_lock(&e->lock);
    if (args->flags & KVM_IRQFD_FLAG_DEASSIGN)
        deassign(e, id, args->gsi);
    else
        err = assign(kvm, args, id);
    pthread_mutex_unlock(&e->lock);
    return err;
}

/* ---- KVM_IOEVENTFD ---- */
/* A write of the right length and value; -EOPNOTSUPP: the next device, at last the monitor. */
static int ioeventfd_write(struct kvm_vcpu *vcpu, struct kvm_io_device *dev, gpa_t gpa, int len, const void *val)
{
    const struct ioeventfd *p = container_of(dev, struct ioeventfd, dev);
    uint64_t value = 0;

    if (gpa != p->addr)
        return -EOPNOTSUPP;
    if (p->length) {
        if ((uint32_t)len != p->length)
            return -EOPNOTSUPP;
        memcpy(&value, val, (size_t)len);
        if (!p->wildcard && value != p->datamatch)
            return -EOPNOTSUPP;
    }
    __atomic_fetch_add(&vcpu->kvm->stat[VM_STAT_ioeventfd_signals], 1, __ATOMIC_RELAXED);
    signal_eventfd(p->fd);
    return 0;
}

static void ioeventfd_free(struct kvm_io_device *dev)
{
    struct ioeventfd *p = container_of(dev, struct ioeventfd, dev);

    close(p->fd);
    free(p);
}

static const struct kvm_io_device_ops ioeventfd_ops = {.write = ioeventfd_write, .destructor = ioeventfd_free};

static bool collides(const struct ioeventfd *a, const struct ioeventfd *b)
{
    return a->bus == b->bus && a->addr == b->addr &&
           (!a->length || !b->length ||
            (a->length == b->length && (a->wildcard || b->wildcard || a->datamatch == b->datamatch)));
}

static int ioeventfd_assign(struct kvm *kvm, struct ioeventfd *p, int fd)
{
    struct kvm_eventfds *e = kvm->eventfds;
    int err;

    for (struct ioeventfd *o = e->ioeventfds; o; o = o->next)
        if (collides(o, p))
            return -EEXIST;
    p->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (p->fd < 0)
        return -errno;
    err = kvm_io_bus_register_dev(kvm, p->bus, p->addr, (int)p->length, &p->dev);
    if (err) {
        close(p->fd);
        return err;
    }
    p->next = e->ioeventfds;
    e->ioeventfds = p;
    return 0;
}

static int ioeventfd_deassign(struct kvm *kvm, const struct ioeventfd *like)
{
    for (struct ioeventfd **at = &kvm->eventfds->ioeventfds; *at; at = &(*at)->next) {
        struct ioeventfd *p = *at, *next = p->next;
        int err;

        if (p->bus != like->bus || p->id != like->id || p->addr != like->addr || p->length != like->length ||
            p->wildcard != like->wildcard || (!p->wildcard && p->datamatch != like->datamatch))
            continue;
        err = kvm_io_bus_unregister_dev(kvm, p->bus, &p->dev); /* frees it */
        if (!err)
            *at = next;
        return err;
    }
    return -ENOENT;
}

static int ioeventfd_check(const struct kvm_ioeventfd *args)
{
    if (args->len != 0 && args->len != 1 && args->len != 2 && args->len != 4 && args->len != 8)
        return -EINVAL;
    if (args->addr + args->len < args->addr)
        return -EINVAL;
    if (args->flags & ~(KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DEASSIGN))
        return -EINVAL;
    if (!args->len && args->flags & KVM_IOEVENTFD_FLAG_DATAMATCH)
        return -EINVAL;
    return 0;
}

int kvm_ioeventfd(struct kvm *kvm, const struct kvm_ioeventfd *args)
{
    struct ioeventfd *p = calloc(1, sizeof(*p));
    int err = ioeventfd_check(args);

    if (!p || !kvm->eventfds) {
        free(p);
        return -ENOMEM;
    }
    *p = (struct ioeventfd){
        .dev.ops = &ioeventfd_ops,
        .addr = args->addr,
        .length = args->len,
        .datamatch = args->datamatch,
        .wildcard = !(args->flags & KVM_IOEVENTFD_FLAG_DATAMATCH),
        .bus = args->flags & KVM_IOEVENTFD_FLAG_PIO ? KVM_PIO_BUS : KVM_MMIO_BUS,
    };
    if (!err)
        err = eventfd_id(args->fd, &p->id);
    if (!err) {
        pthread_mutex_lock(&kvm->eventfds->lock);
        err =
            args->flags & KVM_IOEVENTFD_FLAG_DEASSIGN ? ioeventfd_deassign(kvm, p) : ioeventfd_assign(kvm, p, args->fd);
        pthread_mutex_unlock(&kvm->eventfds->lock);
    }
    if (err || args->flags & KVM_IOEVENTFD_FLAG_DEASSIGN)
        free(p);
    return err;
}

/* ---- a VM's life ---- */
int kvm_irqfd_init(void)
{
    return 0; /* threads are the VMs' own, nothing is shared */
}

int kvm_eventfd_init(struct kvm *kvm)
{
    kvm->eventfds = calloc(1, sizeof(*kvm->eventfds));
    if (!kvm->eventfds)
        return -ENOMEM;
    kvm->eventfds->epoll = kvm->eventfds->stop = -1;
    pthread_mutex_init(&kvm->eventfds->lock, NULL);
    return 0;
}

int kvm_irqfd_start(struct kvm *kvm)
{
    struct kvm_eventfds *e = kvm->eventfds;
    int err;

    pthread_mutex_lock(&e->lock);
    err = start_thread(e);
    pthread_mutex_unlock(&e->lock);
    return err;
}

/* All irqfds end and the thread with them; ioeventfds go with the buses. No ioctl is running any more. */
void kvm_irqfd_release(struct kvm *kvm)
{
    struct kvm_eventfds *e = kvm->eventfds;

    kvm_free_pit(kvm);
    if (!e)
        return;
    if (e->epoll >= 0) {
        signal_eventfd(e->stop);
        os_thread_join(&e->thread);
        for (unsigned i = 0; i < e->used; i++)
            if (e->slot[i])
                deassign_slot(e, i);
        close(e->epoll);
        close(e->stop);
        free(e->slot);
    }
    pthread_mutex_destroy(&e->lock);
    free(e);
    kvm->eventfds = NULL;
}
