/* SPDX-License-Identifier: MIT
 * dirty_ring.c: KVM_CAP_DIRTY_LOG_RING (api.rst 8.29): a ring of dirtied pages a vCPU, in its memfd from page 64 on.
 *
 * The ring is the client's memory too: what it writes there is read once and checked. dirty_index belongs to the thread
 * that runs the vCPU, reset_index to KVM_RESET_DIRTY_RINGS under slots_lock. Some entries are kept back (RESERVED): a
 * vCPU is not entered when only those are left, and what KVM itself writes between two entries needs them. */
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>
#include "ioctl.h"

#define MAX_ENTRIES 65536u
#define RESERVED    64u

long kvm_dirty_ring_max_size(struct kvm *kvm)
{
    return (long)(MAX_ENTRIES * sizeof(struct kvm_dirty_gfn));
}

int kvm_vm_ioctl_enable_dirty_log_ring(struct kvm *kvm, uint64_t size)
{
    int r = 0;

    if (!size || (size & (size - 1)))
        return because(-EINVAL, "%llu bytes are no power of two", (unsigned long long)size);
    if (size < PAGE_SIZE)
        return because(-EINVAL, "%llu bytes, at least a page", (unsigned long long)size);
    if (size > (uint64_t)kvm_dirty_ring_max_size(kvm))
        return because(-E2BIG, "%llu bytes, at most %ld", (unsigned long long)size, kvm_dirty_ring_max_size(kvm));
    if (kvm->dirty_ring_size)
        return because(-EINVAL, "the rings have %u bytes already", kvm->dirty_ring_size);
    pthread_mutex_lock(&kvm->lock);
    if (kvm->created_vcpus)
        r = because(-EINVAL, "vCPUs exist");
    else
        kvm->dirty_ring_size = (uint32_t)size;
    pthread_mutex_unlock(&kvm->lock);
    return r;
}

/* fd: the vCPU's memfd, which has room for it */
int kvm_dirty_ring_alloc(struct kvm_vcpu *vcpu, int fd)
{
    struct kvm_dirty_ring *ring = &vcpu->dirty_ring;
    const size_t bytes = vcpu->kvm->dirty_ring_size;
    void *gfns;

    pthread_mutex_init(&ring->lock, NULL);
    if (!bytes)
        return 0;
    gfns = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, KVM_DIRTY_LOG_PAGE_OFFSET * (off_t)PAGE_SIZE);
    if (gfns == MAP_FAILED)
        return -errno;
    ring->size = (uint32_t)(bytes / sizeof(ring->gfns[0]));
    ring->gfns = gfns;
    return 0;
}

void kvm_dirty_ring_free(struct kvm_vcpu *vcpu)
{
    struct kvm_dirty_ring *ring = &vcpu->dirty_ring;

    if (ring->gfns)
        munmap(ring->gfns, ring->size * sizeof(ring->gfns[0]));
    pthread_mutex_destroy(&ring->lock);
}

static uint32_t ring_used(struct kvm_dirty_ring *ring)
{
    return atomic_load(&ring->dirty_index) - atomic_load(&ring->reset_index);
}

bool kvm_dirty_ring_soft_full(struct kvm_vcpu *vcpu)
{
    return vcpu->dirty_ring.gfns && ring_used(&vcpu->dirty_ring) >= vcpu->dirty_ring.size - RESERVED;
}

/* The page was written by this thread's vCPU, or, where none runs here (KVM_SET_CLOCK), it goes to the first one's. */
void kvm_dirty_ring_push(struct kvm *kvm, const struct kvm_memory_slot *slot, uint64_t offset)
{
    struct kvm_vcpu *running = kvm_get_running_vcpu();
    struct kvm_vcpu *vcpu = running && running->kvm == kvm ? running : kvm->vcpus[0];
    struct kvm_dirty_ring *ring;
    struct kvm_dirty_gfn *e;

    if (!vcpu || !vcpu->dirty_ring.gfns)
        return; /* nothing has run */
    ring = &vcpu->dirty_ring;
    pthread_mutex_lock(&ring->lock);
    if (ring_used(ring) < ring->size) {
        e = &ring->gfns[atomic_load(&ring->dirty_index) & (ring->size - 1)];
        e->slot = (uint32_t)slot->as_id << 16 | slot->id;
        e->offset = offset;
        __atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_DIRTY, __ATOMIC_RELEASE);
        atomic_fetch_add(&ring->dirty_index, 1);
    } else {
        kvm_trace(TRACE_MMU, "vcpu %d: the dirty ring is full: page %#llx of slot %u is lost", vcpu->vcpu_id,
                  (unsigned long long)offset, slot->id);
    }
    pthread_mutex_unlock(&ring->lock);
    if (kvm_dirty_ring_soft_full(vcpu))
        kvm_make_request(KVM_REQ_DIRTY_RING_SOFT_FULL, vcpu);
}

/* true: to user space, which has to empty the ring first */
bool kvm_dirty_ring_check_request(struct kvm_vcpu *vcpu)
{
    if (!kvm_check_request(KVM_REQ_DIRTY_RING_SOFT_FULL, vcpu) || !kvm_dirty_ring_soft_full(vcpu))
        return false;
    kvm_make_request(KVM_REQ_DIRTY_RING_SOFT_FULL, vcpu);
    vcpu->run->exit_reason = KVM_EXIT_DIRTY_RING_FULL;
    return true;
}

/* ---- KVM_RESET_DIRTY_RINGS: 64 neighbours of a slot are protected at once ---- */
struct reset {
    struct kvm *kvm;
    uint32_t slot; /* the window: pages of a slot from offset on */
    uint64_t offset;
    unsigned long mask;
    hva_t from, to; /* what lost its write access */
};

/* The slot may have gone, and the entry may be the client's invention. */
static void protect_window(struct reset *r)
{
    const unsigned as_id = r->slot >> 16, id = r->slot & 0xffff;
    struct kvm_memory_slot *slot;
    hva_t hva;

    if (!r->mask || as_id >= KVM_ADDRESS_SPACE_NUM || id >= KVM_USER_MEM_SLOTS)
        return;
    slot = id_to_memslot(r->kvm, as_id, id);
    if (!slot || r->offset >= slot->npages || 63u - (unsigned)__builtin_clzl(r->mask) >= slot->npages - r->offset)
        return;
    if (!kvm_mmu_protect_window(r->kvm, slot, r->offset, r->mask))
        return;
    hva = slot->userspace_addr + (r->offset << PAGE_SHIFT);
    r->from = hva < r->from ? hva : r->from;
    r->to = hva + 64 * PAGE_SIZE > r->to ? hva + 64 * PAGE_SIZE : r->to;
}

/* The number of entries that were taken */
static int ring_reset(struct reset *r, struct kvm_dirty_ring *ring)
{
    const uint32_t end = atomic_load(&ring->dirty_index);
    uint32_t at = atomic_load(&ring->reset_index);
    int count = 0;

    for (; at != end; at++, count++) {
        struct kvm_dirty_gfn *e = &ring->gfns[at & (ring->size - 1)];
        const uint32_t flags = __atomic_load_n(&e->flags, __ATOMIC_ACQUIRE);
        const uint32_t slot = *(volatile __u32 *)&e->slot;
        const uint64_t offset = *(volatile __u64 *)&e->offset;

        if (!(flags & KVM_DIRTY_GFN_F_RESET))
            break;
        __atomic_store_n(&e->flags, 0, __ATOMIC_RELEASE);
        if (slot != r->slot || offset < r->offset || offset - r->offset >= 64) {
            protect_window(r);
            r->slot = slot;
            r->offset = offset;
            r->mask = 0;
        }
        r->mask |= 1ul << (offset - r->offset);
        atomic_store(&ring->reset_index, at + 1);
    }
    protect_window(r);
    r->mask = 0;
    return count;
}

/* When it returns, a write to a page that was taken shows up in a ring again. */
int kvm_vm_ioctl_reset_dirty_pages(struct kvm *kvm)
{
    struct reset r = {.kvm = kvm, .from = ~0ull};
    struct kvm_vcpu *vcpu;
    int i, count = 0;

    if (!kvm->dirty_ring_size)
        return because(-EINVAL, "no dirty rings: KVM_CAP_DIRTY_LOG_RING was not enabled");
    pthread_mutex_lock(&kvm->slots_lock);
    kvm_for_each_vcpu(i, vcpu, kvm)
    {
        count += ring_reset(&r, &vcpu->dirty_ring);
    }
    if (r.to)
        cpu_drop_host_range(kvm->domain, r.from, r.to - r.from, ACC_WRITE);
    pthread_mutex_unlock(&kvm->slots_lock);
    return count;
}
