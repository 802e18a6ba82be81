/* SPDX-License-Identifier: MIT
 * kvm_memslots.c: guest-physical memory: slots, the dirty log, KVM's own accesses.
 *
 * The array of slots is immutable: a change publishes a new one. Readers outside of guest mode are in a section of
 * kvm->srcu; the processor's cached translations go by kvm_mmu_zap_slot() and kvm_mmu_zap_wait(), which waits for the
 * vCPUs in guest mode. So for a slot that goes: publish without it, drop the EPT entries and ask the vCPUs, wait for
 * the readers and for the vCPUs, free. Writers hold slots_lock.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "ioctl.h"

#define KVM_MEM_MAX_NR_PAGES ((1ull << 31) - 1)
#define USER_SPACE_END       ((1ull << 47) - PAGE_SIZE)
#define LONG_BITS            64
#define KVM_MAX_GFN          ((1ull << (52 - PAGE_SHIFT)) - 1)

static size_t bitmap_bytes(uint64_t npages)
{
    return (size_t)((npages + LONG_BITS - 1) / LONG_BITS * sizeof(unsigned long));
}

/* ---- look-up ---- */
/* The index of the first slot that begins above gfn */
static unsigned slot_above(const struct kvm_memslots *slots, gfn_t gfn)
{
    unsigned lo = 0, hi = slots->used;

    while (lo < hi) {
        const unsigned mid = (lo + hi) / 2;

        if (slots->slot[mid]->base_gfn <= gfn)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

struct kvm_memory_slot *gfn_to_memslot(struct kvm *kvm, unsigned as_id, gfn_t gfn)
{
    struct kvm_memslots *slots = atomic_load_explicit(&kvm->memslots[as_id], memory_order_acquire);
    unsigned lo, hint = atomic_load_explicit(&slots->last, memory_order_relaxed);
    struct kvm_memory_slot *s;

    if (hint < slots->used && gfn - slots->slot[hint]->base_gfn < slots->slot[hint]->npages)
        return slots->slot[hint];
    lo = slot_above(slots, gfn);
    if (!lo)
        return NULL;
    s = slots->slot[lo - 1];
    if (gfn - s->base_gfn >= s->npages)
        return NULL;
    atomic_store_explicit(&slots->last, lo - 1, memory_order_relaxed);
    return s;
}

struct kvm_memory_slot *id_to_memslot(struct kvm *kvm, unsigned as_id, unsigned id)
{
    return kvm->slot_by_id[as_id] ? kvm->slot_by_id[as_id][id] : NULL;
}

static _Atomic unsigned long *bitmap_word(const struct kvm_memory_slot *s, uint64_t page)
{
    return (_Atomic unsigned long *)&s->dirty_bitmap[page / LONG_BITS];
}

void mark_page_dirty(struct kvm *kvm, unsigned as_id, gfn_t gfn)
{
    const struct kvm_memory_slot *s = gfn_to_memslot(kvm, as_id, gfn);
    const uint64_t page = s ? gfn - s->base_gfn : 0;
    const unsigned long bit = 1ul << page % LONG_BITS;

    if (!s || !kvm_slot_dirty_track_enabled(s))
        return;
    if (kvm->dirty_ring_size)
        kvm_dirty_ring_push(kvm, s, page);
    else if (!(atomic_load(bitmap_word(s, page)) & bit))
        atomic_fetch_or(bitmap_word(s, page), bit);
}

/* ---- KVM's own accesses ---- */
static int access_page(struct kvm *kvm, unsigned as_id, gpa_t gpa, void *data, size_t len, bool write)
{
    const struct kvm_memory_slot *s = gfn_to_memslot(kvm, as_id, gpa >> PAGE_SHIFT);
    hva_t hva;
    int r;

    if (!s || (write && (s->flags & KVM_MEM_READONLY)))
        return -EFAULT;
    hva = s->userspace_addr + (gpa - (s->base_gfn << PAGE_SHIFT));
    r = write ? os_copy_to_user((void *)hva, data, len) : os_copy_from_user(data, (const void *)hva, len);
    if (!r && write)
        mark_page_dirty(kvm, as_id, gpa >> PAGE_SHIFT);
    return r;
}

static int access_guest(struct kvm *kvm, unsigned as_id, gpa_t gpa, void *data, size_t len, bool write)
{
    const unsigned token = srcu_read_lock(&kvm->srcu);
    char *p = data;
    int r = 0;

    while (len && !r) {
        size_t n = PAGE_SIZE - (gpa & ~PAGE_MASK);

        n = n < len ? n : len;
        r = access_page(kvm, as_id, gpa, p, n, write);
        gpa += n;
        p += n;
        len -= n;
    }
    srcu_read_unlock(&kvm->srcu, token);
    return r;
}

int kvm_read_guest(struct kvm *kvm, gpa_t gpa, void *data, size_t len)
{
    return access_guest(kvm, 0, gpa, data, len, false);
}

int kvm_write_guest(struct kvm *kvm, gpa_t gpa, const void *data, size_t len)
{
    return access_guest(kvm, 0, gpa, (void *)data, len, true);
}

int kvm_vcpu_read_guest(struct kvm_vcpu *vcpu, gpa_t gpa, void *data, size_t len)
{
    return access_guest(vcpu->kvm, kvm_arch_vcpu_memslots_id(vcpu), gpa, data, len, false);
}

int kvm_vcpu_write_guest(struct kvm_vcpu *vcpu, gpa_t gpa, const void *data, size_t len)
{
    return access_guest(vcpu->kvm, kvm_arch_vcpu_memslots_id(vcpu), gpa, (void *)data, len, true);
}

/* ---- slots and arrays ---- */
static void slot_free(struct kvm_memory_slot *s, const struct kvm_memory_slot *heir)
{
    if (!s)
        return;
    if (!heir || heir->dirty_bitmap != s->dirty_bitmap)
        free(s->dirty_bitmap);
    free(s);
}

static struct kvm_memslots *slots_alloc(unsigned room)
{
    struct kvm_memslots *slots = malloc(sizeof(*slots) + room * sizeof(slots->slot[0]));

    if (slots) {
        slots->generation = 0;
        slots->used = 0;
        slots->room = room;
        atomic_init(&slots->last, 0);
    }
    return slots;
}

/* A copy of the array without `gone` and with `added`, both may be NULL. */
static struct kvm_memslots *slots_changed(struct kvm *kvm, unsigned as_id, const struct kvm_memory_slot *gone,
                                          struct kvm_memory_slot *added)
{
    const struct kvm_memslots *old = atomic_load(&kvm->memslots[as_id]);
    struct kvm_memslots *new = kvm->memslots_spare[as_id];
    const unsigned from = gone ? slot_above(old, gone->base_gfn) - 1 : old->used;
    const unsigned to = added ? slot_above(old, added->base_gfn) : old->used;
    unsigned i, n = 0;

    kvm->memslots_spare[as_id] = NULL;
    if (!new || new->room <= old->used) {
        free(new);
        new = slots_alloc(old->used < 32 ? 64 : old->used * 2);
    }
    if (!new)
        return NULL;
    for (i = 0; i < old->used; i++) {
        if (i == to && added)
            new->slot[n++] = added;
        if (i != from)
            new->slot[n++] = old->slot[i];
    }
    if (i == to && added)
        new->slot[n++] = added;
    new->used = n;
    new->generation = old->generation + 1;
    atomic_init(&new->last, 0);
    return new;
}

static int slot_ids(struct kvm *kvm, unsigned as_id)
{
    if (!kvm->slot_by_id[as_id])
        kvm->slot_by_id[as_id] = calloc(KVM_USER_MEM_SLOTS, sizeof(*kvm->slot_by_id[0]));
    return kvm->slot_by_id[as_id] ? 0 : -ENOMEM;
}

/* Returns the old array, for retire(): there may be readers of it, and of a slot that is not in the new one. */
static struct kvm_memslots *publish(struct kvm *kvm, unsigned as_id, struct kvm_memslots *new)
{
    struct kvm_memslots *old = atomic_exchange(&kvm->memslots[as_id], new);

    atomic_fetch_add(&kvm->memslots_changes, 1);
    return old;
}

/* No thread uses the old array when this returns. */
static void retire(struct kvm *kvm, unsigned as_id, struct kvm_memslots *old)
{
    srcu_synchronize(&kvm->srcu);
    free(kvm->memslots_spare[as_id]);
    kvm->memslots_spare[as_id] = old;
}

int kvm_memslots_init(struct kvm *kvm)
{
    bool ok = true;

    for (unsigned as_id = 0; as_id < KVM_ADDRESS_SPACE_NUM; as_id++) {
        struct kvm_memslots *none = slots_alloc(0);

        atomic_store(&kvm->memslots[as_id], none);
        atomic_fetch_add(&kvm->memslots_changes, 1);
        ok &= none != NULL;
    }
    return ok ? 0 : -ENOMEM;
}

void kvm_memslots_free(struct kvm *kvm)
{
    for (unsigned as_id = 0; as_id < KVM_ADDRESS_SPACE_NUM; as_id++) {
        struct kvm_memslots *slots = atomic_load(&kvm->memslots[as_id]);

        for (unsigned i = 0; slots && i < slots->used; i++)
            slot_free(slots->slot[i], NULL);
        free(slots);
        free(kvm->memslots_spare[as_id]);
        free(kvm->slot_by_id[as_id]);
    }
}

/* ---- KVM_SET_USER_MEMORY_REGION ---- */
static bool bad_user_range(uint64_t start, uint64_t size)
{
    return start + size < start || start + size > USER_SPACE_END;
}

/* The order of the checks is Linux's (api.rst 4.35). */
static int check_region(const struct kvm_userspace_memory_region *m)
{
    const unsigned as_id = m->slot >> 16, id = m->slot & 0xffff;

    if (id >= KVM_USER_MEM_SLOTS)
        return because(-EINVAL, "slot %u, there are %u", id, KVM_USER_MEM_SLOTS);
    if (m->flags & ~(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY))
        return because(-EINVAL, "slot %u: unknown flags 0x%x", id, m->flags);
    if (m->memory_size & ~PAGE_MASK)
        return because(-EINVAL, "slot %u: size 0x%llx is not a multiple of the page size", id, m->memory_size);
    if (m->guest_phys_addr & ~PAGE_MASK)
        return because(-EINVAL, "slot %u: guest address 0x%llx is not page aligned", id, m->guest_phys_addr);
    if ((m->userspace_addr & ~PAGE_MASK) || bad_user_range(m->userspace_addr, m->memory_size))
        return because(-EINVAL, "slot %u: user address 0x%llx, size 0x%llx", id, m->userspace_addr, m->memory_size);
    if (as_id >= KVM_ADDRESS_SPACE_NUM)
        return because(-EINVAL, "slot %u: address space %u, there are two", id, as_id);
    if (m->guest_phys_addr + m->memory_size < m->guest_phys_addr)
        return because(-EINVAL, "slot %u: 0x%llx + 0x%llx wraps", id, m->guest_phys_addr, m->memory_size);
    if (m->memory_size >> PAGE_SHIFT > KVM_MEM_MAX_NR_PAGES)
        return because(-EINVAL, "slot %u: 0x%llx bytes are too many", id, m->memory_size);
    return 0;
}

static const struct kvm_memory_slot *overlapping(const struct kvm_memslots *slots, const struct kvm_memory_slot *but,
                                                 gfn_t base, uint64_t npages)
{
    unsigned i = slot_above(slots, base);

    for (i -= i > 0; i < slots->used && slots->slot[i]->base_gfn < base + npages; i++) {
        const struct kvm_memory_slot *s = slots->slot[i];

        if (s != but && base < s->base_gfn + s->npages && s->base_gfn < base + npages)
            return s;
    }
    return NULL;
}

static int delete_slot(struct kvm *kvm, struct kvm_memory_slot *old)
{
    struct kvm_memslots *slots = slots_changed(kvm, old->as_id, old, NULL);
    bool mapped;

    if (!slots)
        return -ENOMEM;
    kvm->slot_by_id[old->as_id][old->id] = NULL;
    slots = publish(kvm, old->as_id, slots);
    mapped = kvm_mmu_zap_slot(kvm, old); /* a fault that is on its way looks at the array again before it maps */
    retire(kvm, old->as_id, slots);
    if (mapped)
        kvm_mmu_zap_wait(kvm, old);
    slot_free(old, NULL);
    return 0;
}

static struct kvm_memory_slot *slot_new(struct kvm *kvm, const struct kvm_userspace_memory_region *m,
                                        const struct kvm_memory_slot *same_pages)
{
    struct kvm_memory_slot *s = calloc(1, sizeof(*s));

    if (!s)
        return NULL;
    s->base_gfn = m->guest_phys_addr >> PAGE_SHIFT;
    s->npages = m->memory_size >> PAGE_SHIFT;
    s->userspace_addr = m->userspace_addr;
    s->flags = m->flags;
    s->id = m->slot & 0xffff;
    s->as_id = (uint16_t)(m->slot >> 16);
    if (same_pages)
        atomic_init(&s->populate, atomic_load(&same_pages->populate));
    if (m->flags & KVM_MEM_LOG_DIRTY_PAGES && !kvm->dirty_ring_size) {
        s->dirty_bitmap = same_pages ? same_pages->dirty_bitmap : NULL;
        if (!s->dirty_bitmap) {
            s->dirty_bitmap = calloc(1, bitmap_bytes(s->npages));
            if (s->dirty_bitmap && kvm->dirty_log_initially_set)
                memset(s->dirty_bitmap, 0xff, bitmap_bytes(s->npages));
        }
    }
    if ((m->flags & KVM_MEM_LOG_DIRTY_PAGES) && !s->dirty_bitmap && !kvm->dirty_ring_size) {
        slot_free(s, same_pages);
        return NULL;
    }
    return s;
}

/* A slot that was there with the same pages: only its flags change. Logging that begins needs all pages protected. */
static int change_flags(struct kvm *kvm, struct kvm_memory_slot *old, const struct kvm_userspace_memory_region *m)
{
    struct kvm_memory_slot *new = slot_new(kvm, m, old);
    struct kvm_memslots *slots = new ? slots_changed(kvm, old->as_id, old, new) : NULL;

    if (!slots) {
        slot_free(new, old);
        return -ENOMEM;
    }
    kvm->slot_by_id[new->as_id][new->id] = new;
    retire(kvm, new->as_id, publish(kvm, new->as_id, slots));
    if (kvm_slot_dirty_track_enabled(new) && !kvm_slot_dirty_track_enabled(old) &&
        (kvm->dirty_ring_size || !kvm->dirty_log_initially_set))
        kvm_mmu_write_protect_slot(kvm, new, NULL);
    slot_free(old, new);
    return 0;
}

static int create_slot(struct kvm *kvm, const struct kvm_userspace_memory_region *m)
{
    struct kvm_memory_slot *new = slot_new(kvm, m, NULL);
    struct kvm_memslots *slots = new ? slots_changed(kvm, new->as_id, NULL, new) : NULL;

    if (!slots) {
        slot_free(new, NULL);
        return -ENOMEM;
    }
    kvm->slot_by_id[new->as_id][new->id] = new;
    retire(kvm, new->as_id, publish(kvm, new->as_id, slots));
    return 0;
}

static int move_slot(struct kvm *kvm, struct kvm_memory_slot *old, const struct kvm_userspace_memory_region *m)
{
    const int r = delete_slot(kvm, old);

    return r ? r : create_slot(kvm, m);
}

static int set_region_locked(struct kvm *kvm, const struct kvm_userspace_memory_region *m)
{
    const unsigned id = m->slot & 0xffff, as_id = m->slot >> 16;
    struct kvm_memory_slot *old = id_to_memslot(kvm, as_id, id);
    const gfn_t base = m->guest_phys_addr >> PAGE_SHIFT;
    const uint64_t npages = m->memory_size >> PAGE_SHIFT;
    const struct kvm_memory_slot *other;

    if (slot_ids(kvm, as_id))
        return -ENOMEM;
    if (!npages)
        return old ? delete_slot(kvm, old) : because(-EINVAL, "slot %u: nothing to delete", id);
    if (old && (m->userspace_addr != old->userspace_addr || npages != old->npages ||
                ((m->flags ^ old->flags) & KVM_MEM_READONLY)))
        return because(-EINVAL, "slot %u exists: its size, user address and KVM_MEM_READONLY cannot change", id);
    if (old && base == old->base_gfn)
        return m->flags == old->flags ? 0 : change_flags(kvm, old, m);
    other = overlapping(atomic_load(&kvm->memslots[as_id]), old, base, npages);
    if (other)
        return because(-EEXIST, "slot %u overlaps slot %u", id, other->id);
    if (base + npages - 1 > KVM_MAX_GFN)
        return because(-EINVAL, "slot %u ends above 2^52", id);
    return old ? move_slot(kvm, old, m) : create_slot(kvm, m);
}

int kvm_set_memory_region(struct kvm *kvm, const struct kvm_userspace_memory_region *m)
{
    int r = check_region(m);

    if (r)
        return r;
    pthread_mutex_lock(&kvm->slots_lock);
    r = set_region_locked(kvm, m);
    kvm->stat[VM_STAT_memslot_changes]++;
    pthread_mutex_unlock(&kvm->slots_lock);
    return r;
}

/* ---- the dirty log ---- */
static struct kvm_memory_slot *logged_slot(struct kvm *kvm, uint32_t slot, int *err)
{
    struct kvm_memory_slot *s;

    *err = -EINVAL;
    if (slot >> 16 >= KVM_ADDRESS_SPACE_NUM || (slot & 0xffff) >= KVM_USER_MEM_SLOTS)
        return NULL;
    s = id_to_memslot(kvm, slot >> 16, slot & 0xffff);
    *err = -ENOENT;
    return s && s->dirty_bitmap ? s : NULL;
}

/* Take the bits and protect the pages again before the bits are shown: a write after that sets its bit anew. */
static int get_dirty_log(struct kvm *kvm, const struct kvm_dirty_log *log)
{
    int r;
    struct kvm_memory_slot *s = logged_slot(kvm, log->slot, &r);
    unsigned long *taken;
    size_t words, i;

    if (!s)
        return because(r, "slot 0x%x has no dirty log", log->slot);
    words = bitmap_bytes(s->npages) / sizeof(*taken);
    taken = malloc(words * sizeof(*taken));
    if (!taken)
        return -ENOMEM;
    for (i = 0; i < words; i++)
        taken[i] = kvm->manual_dirty_log_protect ? atomic_load(bitmap_word(s, i * LONG_BITS))
                                                 : atomic_exchange(bitmap_word(s, i * LONG_BITS), 0);
    if (s->npages % LONG_BITS)
        taken[words - 1] &= (1ul << s->npages % LONG_BITS) - 1;
    if (!kvm->manual_dirty_log_protect)
        kvm_mmu_write_protect_slot(kvm, s, taken);
    r = os_copy_to_user(log->dirty_bitmap, taken, words * sizeof(*taken));
    free(taken);
    return r;
}

int kvm_vm_ioctl_get_dirty_log(struct kvm *kvm, const struct kvm_dirty_log *log)
{
    int r;

    if (kvm->dirty_ring_size)
        return because(-ENXIO, "dirty pages are in rings");
    pthread_mutex_lock(&kvm->slots_lock);
    r = get_dirty_log(kvm, log);
    kvm->stat[VM_STAT_dirty_log_reads]++;
    pthread_mutex_unlock(&kvm->slots_lock);
    return r;
}

static int check_clear(const struct kvm_memory_slot *s, const struct kvm_clear_dirty_log *log)
{
    if (log->first_page > s->npages || log->num_pages > s->npages - log->first_page)
        return -EINVAL;
    if (log->num_pages % LONG_BITS && log->num_pages != s->npages - log->first_page)
        return -EINVAL;
    return 0;
}

static int clear_dirty_log(struct kvm *kvm, const struct kvm_clear_dirty_log *log)
{
    int r;
    struct kvm_memory_slot *s = logged_slot(kvm, log->slot, &r);
    unsigned long *mask;
    size_t words, first, i;

    if (!s)
        return because(r, "slot 0x%x has no dirty log", log->slot);
    r = check_clear(s, log);
    if (r)
        return because(r, "pages %llu + %u of %llu", (unsigned long long)log->first_page, log->num_pages,
                       (unsigned long long)s->npages);
    first = log->first_page / LONG_BITS;
    words = bitmap_bytes(log->num_pages) / sizeof(*mask);
    mask = calloc(1, bitmap_bytes(s->npages));
    if (!mask)
        return -ENOMEM;
    r = os_copy_from_user(mask + first, log->dirty_bitmap, words * sizeof(*mask));
    if (!r) {
        if (log->num_pages % LONG_BITS)
            mask[first + words - 1] &= (1ul << log->num_pages % LONG_BITS) - 1;
        for (i = first; i < first + words; i++)
            mask[i] &= atomic_fetch_and(bitmap_word(s, i * LONG_BITS), ~mask[i]);
        kvm_mmu_write_protect_slot(kvm, s, mask);
    }
    free(mask);
    return r;
}

int kvm_vm_ioctl_clear_dirty_log(struct kvm *kvm, const struct kvm_clear_dirty_log *log)
{
    int r;

    if (kvm->dirty_ring_size)
        return because(-ENXIO, "dirty pages are in rings");
    if (log->first_page % LONG_BITS)
        return because(-EINVAL, "first page %llu is not a multiple of 64", (unsigned long long)log->first_page);
    pthread_mutex_lock(&kvm->slots_lock);
    r = clear_dirty_log(kvm, log);
    pthread_mutex_unlock(&kvm->slots_lock);
    return r;
}
