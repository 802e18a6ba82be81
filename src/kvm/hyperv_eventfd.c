/* SPDX-License-Identifier: MIT
 * hyperv_eventfd.c: KVM_HYPERV_EVENTFD (api.rst 4.113): the eventfd that a guest's SIGNAL_EVENT hypercall signals. The
 * set is immutable, a change publishes a new one; writers hold kvm->slots_lock, readers are in a section of kvm->srcu.
 */
#include "hyperv_int.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct hv_eventfds {
    unsigned count;
    struct hv_eventfd {
        uint32_t conn_id;
        int fd; /* ours, a duplicate */
    } at[];
};

static const struct hv_eventfd *find(const struct hv_eventfds *set, uint32_t conn_id)
{
    for (unsigned i = 0; set && i < set->count; i++)
        if (set->at[i].conn_id == conn_id)
            return &set->at[i];
    return NULL;
}

bool kvm_hv_signal_eventfd(struct kvm *kvm, uint32_t conn_id)
{
    const unsigned token = srcu_read_lock(&kvm->srcu);
    const struct hv_eventfd *e = find(atomic_load(&kvm->arch.hv.eventfds), conn_id);

    if (e)
        signal_eventfd(e->fd);
    srcu_read_unlock(&kvm->srcu, token);
    return e != NULL;
}

/* The set without `gone` and with `added`, both may be NULL; the old one is freed when nobody reads it. */
static int publish(struct kvm *kvm, const struct hv_eventfd *gone, const struct hv_eventfd *added)
{
    struct hv_eventfds *old = atomic_load(&kvm->arch.hv.eventfds);
    struct hv_eventfds *new = calloc(1, sizeof(*new) + ((old ? old->count : 0) + 1) * sizeof(new->at[0]));

    if (!new)
        return -ENOMEM;
    for (unsigned i = 0; old && i < old->count; i++)
        if (&old->at[i] != gone)
            new->at[new->count++] = old->at[i];
    if (added)
        new->at[new->count++] = *added;
    atomic_store(&kvm->arch.hv.eventfds, new);
    srcu_synchronize(&kvm->srcu);
    if (gone)
        close(gone->fd);
    free(old);
    return 0;
}

static int assign(struct kvm *kvm, const struct kvm_hyperv_eventfd *args)
{
    struct hv_eventfd added = {.conn_id = args->conn_id};
    uint64_t id;
    int r = eventfd_id(args->fd, &id);

    if (r)
        return r;
    if (find(atomic_load(&kvm->arch.hv.eventfds), args->conn_id))
        return -EEXIST;
    added.fd = fcntl(args->fd, F_DUPFD_CLOEXEC, 0);
    r = added.fd < 0 ? -errno : publish(kvm, NULL, &added);
    if (r && added.fd >= 0)
        close(added.fd);
    return r;
}

int kvm_vm_ioctl_hv_eventfd(struct kvm *kvm, const struct kvm_hyperv_eventfd *args)
{
    const struct hv_eventfd *gone;
    int r;

    if ((args->flags & ~KVM_HYPERV_EVENTFD_DEASSIGN) || (args->conn_id & ~KVM_HYPERV_CONN_ID_MASK))
        return -EINVAL;
    pthread_mutex_lock(&kvm->slots_lock);
    if (args->flags & KVM_HYPERV_EVENTFD_DEASSIGN) {
        gone = find(atomic_load(&kvm->arch.hv.eventfds), args->conn_id);
        r = gone ? publish(kvm, gone, NULL) : -ENOENT;
    } else {
        r = assign(kvm, args);
    }
    pthread_mutex_unlock(&kvm->slots_lock);
    return r;
}

void kvm_hv_vm_free(struct kvm *kvm)
{
    struct hv_eventfds *set = atomic_load(&kvm->arch.hv.eventfds);

    for (unsigned i = 0; set && i < set->count; i++)
        close(set->at[i].fd);
    free(set);
}
