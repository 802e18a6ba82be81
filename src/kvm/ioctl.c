/* SPDX-License-Identifier: MIT
 * ioctl.c: the one dispatcher. It finds the row, copies the structure and its array in and out (so EFAULT is decided
 * here, once), takes the vCPU's lock, and traces. The order of all other errors is the handler's. */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include "ioctl.h"

static __thread char reason[160];

void kvm_reason(const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    vsnprintf(reason, sizeof(reason), format, ap);
    va_end(ap);
}

/* What differs by the kind of descriptor: its rows, the answer to a number without a row, its name in the trace. */
static const struct {
    const struct ioctl_row *rows;
    const unsigned *count;
    int unknown;
    const char *name;
} kinds[FILE_TYPES] = {
    [FILE_SYSTEM] = {system_ioctls, &system_ioctls_count, -EINVAL, "system"},
    [FILE_VM] = {vm_ioctls, &vm_ioctls_count, -ENOTTY, "vm"},
    [FILE_VCPU] = {vcpu_ioctls, &vcpu_ioctls_count, -EINVAL, "vcpu"},
};

const struct ioctl_row *ioctl_find(enum kvm_file_type type, unsigned long request)
{
    unsigned i;

    for (i = 0; i < *kinds[type].count; i++)
        if (kinds[type].rows[i].number == request)
            return &kinds[type].rows[i];
    return NULL;
}

static const char *errno_name(long r)
{
    const char *name = strerrorname_np((int)-r);

    return name ? name : "?";
}

static void trace_result(const struct kvm_file *f, const char *name, unsigned long request, long r)
{
    char who[32], number[32];

    if (f->type == FILE_VCPU)
        snprintf(who, sizeof(who), "vcpu %d", f->vcpu->vcpu_id);
    else
        snprintf(who, sizeof(who), "%s", kinds[f->type].name);
    snprintf(number, sizeof(number), "ioctl 0x%lx", request);
    if (r >= 0)
        kvm_trace_write("api: %s %s = %ld", who, name ? name : number, r);
    else
        kvm_trace_write("api: %s %s = %s%s%s", who, name ? name : number, errno_name(r), reason[0] ? ": " : "", reason);
}

static size_t tail_bytes(const struct ioctl_row *row, const struct ioctl_call *c)
{
    return (size_t)c->tail_count * row->tail.element;
}

/* The structure, then its array, into memory of ours. 0 or a negative errno. */
static int copy_in(const struct ioctl_row *row, struct ioctl_call *c)
{
    const struct ioctl_tail *t = &row->tail;
    const char *user = (const char *)c->arg;
    size_t room;

    if ((row->copy == IN || row->copy == INOUT) && os_copy_from_user(c->data, user, row->size))
        return because(-EFAULT, "cannot read %u bytes at 0x%lx", row->size, c->arg);
    if (!t->element)
        return 0;
    memcpy(&c->tail_count, (char *)c->data + t->count_at, sizeof(c->tail_count));
    if (c->tail_count > t->max) {
        if (t->too_many)
            return because(t->too_many, "%u elements, at most %u", c->tail_count, t->max);
        c->tail_count = t->max;
        memcpy((char *)c->data + t->count_at, &c->tail_count, sizeof(c->tail_count));
    }
    room = tail_bytes(row, c);
    c->tail = calloc(1, room ? room : 1);
    if (!c->tail)
        return -ENOMEM;
    if ((t->copy == IN || t->copy == INOUT) && room && os_copy_from_user(c->tail, user + row->size, room))
        return because(-EFAULT, "cannot read the array of %u elements behind 0x%lx", c->tail_count, c->arg);
    return 0;
}

static long copy_out(const struct ioctl_row *row, struct ioctl_call *c, long r)
{
    char *user = (char *)c->arg;

    if ((row->copy == OUT || row->copy == INOUT) && (r >= 0 || c->always_out) &&
        os_copy_to_user(user, c->data, row->size))
        return because(-EFAULT, "cannot write %u bytes at 0x%lx", row->size, c->arg);
    if (r >= 0 && (row->tail.copy == OUT || row->tail.copy == INOUT) && c->tail_count &&
        os_copy_to_user(user + row->size, c->tail, tail_bytes(row, c)))
        return because(-EFAULT, "cannot write the array behind 0x%lx", c->arg);
    return r;
}

static long run_row(const struct ioctl_row *row, struct ioctl_call *c)
{
    _Alignas(16) char small[2048];
    long r;

    c->data = small;
    if (row->size > sizeof(small) && !(c->data = malloc(row->size)))
        return -ENOMEM;
    if (row->size)
        memset(c->data, 0, row->size);
    r = copy_in(row, c);
    if (r == 0) {
        r = row->handler(c);
        r = copy_out(row, c, r);
    }
    free(c->tail);
    if (c->data != small)
        free(c->data);
    return r;
}

static long vcpu_ioctl(const struct ioctl_row *row, struct ioctl_call *c)
{
    struct kvm_vcpu *vcpu = c->vcpu;
    long r;

    pthread_mutex_lock(&vcpu->mutex);
    vcpu_load(vcpu);
    r = run_row(row, c);
    vcpu_put(vcpu);
    pthread_mutex_unlock(&vcpu->mutex);
    return r;
}

long kvm_ioctl(struct kvm_file *f, unsigned long request, unsigned long arg)
{
    const struct ioctl_row *row = NULL;
    struct ioctl_call c = {.kvm = f->kvm, .vcpu = f->vcpu, .arg = arg};
    long r;

    if (unlikely(kvm_trace_mask & TRACE_IOCTL))
        reason[0] = 0;
    if (f->type != FILE_SYSTEM && f->mm_owner != kvm_mm_id()) {
        r = because(-EIO, "the VM belongs to process %d", f->mm_owner);
    } else if (f->kvm && atomic_load_explicit(&f->kvm->vm_bugged, memory_order_relaxed)) {
        r = because(-EIO, "the VM is dead");
    } else {
        row = ioctl_find(f->type, request);
        if (!row)
            r = because(kinds[f->type].unknown, "no such ioctl on a %s descriptor", kinds[f->type].name);
        else if (f->type == FILE_VCPU)
            r = vcpu_ioctl(row, &c);
        else
            r = run_row(row, &c);
    }
    if (unlikely(kvm_trace_mask & TRACE_IOCTL) && request != KVM_RUN)
        trace_result(f, row ? row->name : NULL, request, r);
    return r;
}
