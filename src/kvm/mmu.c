/* SPDX-License-Identifier: MIT
 * mmu.c: guest-physical memory: the EPT tables of a VM (SDM 3C, "EPT Translation Mechanism"), made on demand from the
 * memory slots. The processor's host-physical addresses are addresses of this process, so an entry maps a page of the
 * guest to the client's own memory, and a page that the client unmaps later is found by the access that meets it.
 *
 * Tables are written under mmu_lock by one aligned store each and read by the processors at any time. A page of tables
 * stays in its place until the VM goes. */
#include "x86.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define LEVELS      4u
#define PTES        512u
#define RUN_PAGES   64u /* pages that one fault makes at once: 0.6 us a page against 10 us by a fault each */
#define LARGE_PAGES 512u
#define CHUNK_PAGES 64u /* pages of tables that are allocated at once */
#define EPT_ADDR    0x000ffffffffff000ull
#define EPT_PRESENT (EPT_R | EPT_W | EPT_X)
#define ACC_ALL     (ACC_READ | ACC_WRITE | ACC_EXEC)
/* slot->populate */
enum slot_populate { POPULATE_UNKNOWN, POPULATE_ANONYMOUS, POPULATE_RUNS, POPULATE_PAGE };

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ  22
#define MADV_POPULATE_WRITE 23
#endif

/* ---- tables ---- */
static uint64_t *alloc_table(struct kvm *kvm)
{
    struct kvm_arch *a = &kvm->arch;
    const size_t used = a->mmu_pages % CHUNK_PAGES;

    if (used == 0) {
        void **grown = realloc(a->mmu_chunk, (a->mmu_chunks + 1) * sizeof(*grown));

        if (!grown)
            return NULL;
        a->mmu_chunk = grown;
        grown[a->mmu_chunks] = os_alloc_pages(CHUNK_PAGES * PAGE_SIZE);
        if (!grown[a->mmu_chunks])
            return NULL;
        a->mmu_chunks++;
    }
    a->mmu_pages++;
    return (uint64_t *)((char *)a->mmu_chunk[a->mmu_chunks - 1] + used * PAGE_SIZE);
}

int kvm_mmu_init_vm(struct kvm *kvm)
{
    for (unsigned as_id = 0; as_id < KVM_ADDRESS_SPACE_NUM; as_id++) {
        kvm->arch.ept_root[as_id] = (uint64_t)(uintptr_t)alloc_table(kvm);
        if (!kvm->arch.ept_root[as_id])
            return -ENOMEM;
    }
    return 0;
}

void kvm_mmu_uninit_vm(struct kvm *kvm)
{
    for (size_t i = 0; i < kvm->arch.mmu_chunks; i++)
        os_free_pages(kvm->arch.mmu_chunk[i], CHUNK_PAGES * PAGE_SIZE);
    free(kvm->arch.mmu_chunk);
    kvm->arch.mmu_chunk = NULL;
    kvm->arch.mmu_chunks = kvm->arch.mmu_pages = 0;
    memset(kvm->arch.ept_root, 0, sizeof(kvm->arch.ept_root));
}

static unsigned level_shift(unsigned level) /* in pages: level 1 is the last */
{
    return (level - 1) * 9;
}

static uint64_t *entry_of(uint64_t *table, gfn_t gfn, unsigned level)
{
    return &table[gfn >> level_shift(level) & (PTES - 1)];
}

static uint64_t read_entry(const uint64_t *e)
{
    return __atomic_load_n(e, __ATOMIC_RELAXED);
}

static void write_entry(uint64_t *e, uint64_t value)
{
    __atomic_store_n(e, value, __ATOMIC_RELEASE);
}

/* The entry of a gfn at a level; with make, tables on the way are made. NULL: none (or no memory, or a larger page). */
static uint64_t *walk(struct kvm *kvm, unsigned as_id, gfn_t gfn, unsigned level, bool make)
{
    uint64_t *table = (uint64_t *)(uintptr_t)kvm->arch.ept_root[as_id];

    for (unsigned at = LEVELS; at > level; at--) {
        uint64_t *e = entry_of(table, gfn, at), value = read_entry(e);

        if (value & EPT_LARGE)
            return NULL;
        if (!(value & EPT_PRESENT)) {
            uint64_t *child = make ? alloc_table(kvm) : NULL;

            if (!child)
                return NULL;
            write_entry(e, value = (uint64_t)(uintptr_t)child | EPT_PRESENT);
        }
        table = (uint64_t *)(uintptr_t)(value & EPT_ADDR);
    }
    return entry_of(table, gfn, level);
}

static uint64_t leaf(hva_t hva, bool writable)
{
    return hva | EPT_MEMTYPE_WB | EPT_IGNORE_PAT | EPT_R | EPT_X | (writable ? EPT_W : 0);
}

/* ---- zap and write-protect: every leaf of a slot ---- */
enum leaf_action { LEAF_ZAP, LEAF_PROTECT };

static void act_on(uint64_t *e, enum leaf_action action, bool large)
{
    if (action == LEAF_ZAP || large) /* a large page that is logged comes back as small ones */
        write_entry(e, 0);
    else
        __atomic_fetch_and(e, ~EPT_W, __ATOMIC_RELEASE);
}

/* true: an entry was changed. mask: of the n gfns from start on, or NULL for all. */
static bool for_leaves(struct kvm *kvm, const struct kvm_memory_slot *slot, gfn_t start, uint64_t n,
                       enum leaf_action action, const unsigned long *mask)
{
    const gfn_t end = start + n;
    bool changed = false;
    gfn_t gfn = start;

    while (gfn < end) {
        uint64_t *table = (uint64_t *)(uintptr_t)kvm->arch.ept_root[slot->as_id], *e, value;
        unsigned level = LEVELS;

        if (mask && !(mask[(gfn - start) / 64] >> ((gfn - start) % 64) & 1)) {
            gfn++;
            continue;
        }
        for (;; level--) {
            e = entry_of(table, gfn, level);
            value = read_entry(e);
            if (!(value & EPT_PRESENT) || level == 1 || (value & EPT_LARGE))
                break;
            table = (uint64_t *)(uintptr_t)(value & EPT_ADDR);
        }
        if (value & EPT_PRESENT && (action == LEAF_ZAP || value & EPT_W)) {
            act_on(e, action, level > 1);
            changed = true;
        }
        gfn = mask ? gfn + 1 : ((gfn >> level_shift(level)) + 1) << level_shift(level);
    }
    return changed;
}

bool kvm_mmu_zap_slot(struct kvm *kvm, struct kvm_memory_slot *slot)
{
    bool changed;

    pthread_mutex_lock(&kvm->arch.mmu_lock);
    changed = for_leaves(kvm, slot, slot->base_gfn, slot->npages, LEAF_ZAP, NULL);
    pthread_mutex_unlock(&kvm->arch.mmu_lock);
    kvm_trace(TRACE_MMU, "zap slot %u: gfn %#llx, %llu pages", slot->id, (unsigned long long)slot->base_gfn,
              (unsigned long long)slot->npages);
    if (changed)
        cpu_drop_ask(kvm->domain);
    return changed;
}

void kvm_mmu_zap_wait(struct kvm *kvm, struct kvm_memory_slot *slot)
{
    cpu_drop_wait(kvm->domain, slot->userspace_addr, slot->npages << PAGE_SHIFT, ACC_ALL);
}

void kvm_mmu_write_protect_slot(struct kvm *kvm, struct kvm_memory_slot *slot, const unsigned long *mask)
{
    bool changed;

    pthread_mutex_lock(&kvm->arch.mmu_lock);
    changed = for_leaves(kvm, slot, slot->base_gfn, slot->npages, LEAF_PROTECT, mask);
    pthread_mutex_unlock(&kvm->arch.mmu_lock);
    if (changed)
        cpu_drop_host_range(kvm->domain, slot->userspace_addr, slot->npages << PAGE_SHIFT, ACC_WRITE);
}

bool kvm_mmu_protect_window(struct kvm *kvm, struct kvm_memory_slot *slot, uint64_t offset, unsigned long mask)
{
    const uint64_t left = slot->npages - offset;
    bool changed;

    pthread_mutex_lock(&kvm->arch.mmu_lock);
    changed = for_leaves(kvm, slot, slot->base_gfn + offset, left < 64 ? left : 64, LEAF_PROTECT, &mask);
    pthread_mutex_unlock(&kvm->arch.mmu_lock);
    return changed;
}

/* ---- host memory ---- */
/* Anonymous memory and memfds may be made in runs; a file's pages are not dirtied before the guest asks. */
static struct host_mapping ask_kind(hva_t hva)
{
    FILE *f = os_may_open() ? fopen("/proc/self/maps", "re") : NULL;
    struct host_mapping m = {.kind = POPULATE_PAGE};
    char line[512];

    while (f && fgets(line, sizeof(line), f)) {
        unsigned long long from, to, inode;
        int path = 0;

        if (sscanf(line, "%llx-%llx %*s %*s %*s %llu %n", &from, &to, &inode, &path) != 3 || hva < from || hva >= to)
            continue;
        m.from = from;
        m.to = to;
        if (inode == 0)
            m.kind = POPULATE_ANONYMOUS;
        else if (strstr(line + path, "/memfd:") == line + path || strstr(line + path, "/dev/zero") == line + path)
            m.kind = POPULATE_RUNS;
        break;
    }
    if (f)
        fclose(f);
    return m;
}

/* Slots come and go in the same mappings (a ROM's shadow, a BAR), and a question takes 50 us and more. An answer that
 * has become old costs time, or space in a sparse file. */
static uint8_t known_kind(struct kvm *kvm, hva_t hva)
{
    struct kvm_arch *a = &kvm->arch;
    struct host_mapping answer;
    uint8_t kind = POPULATE_UNKNOWN;

    pthread_mutex_lock(&a->mmu_lock);
    for (unsigned i = 0; i < ARRAY_SIZE(a->mappings) && kind == POPULATE_UNKNOWN; i++) {
        const struct host_mapping *m = &a->mappings[i];

        kind = hva >= m->from && hva < m->to ? m->kind : POPULATE_UNKNOWN;
    }
    pthread_mutex_unlock(&a->mmu_lock);
    if (kind != POPULATE_UNKNOWN)
        return kind;
    answer = ask_kind(hva);
    pthread_mutex_lock(&a->mmu_lock);
    a->mappings[a->next_mapping++ % ARRAY_SIZE(a->mappings)] = answer;
    pthread_mutex_unlock(&a->mmu_lock);
    return answer.kind;
}

static uint8_t populate_kind(struct kvm *kvm, struct kvm_memory_slot *slot)
{
    uint8_t kind = atomic_load_explicit(&slot->populate, memory_order_relaxed);

    if (kind == POPULATE_UNKNOWN) {
        kind = known_kind(kvm, slot->userspace_addr);
        atomic_store_explicit(&slot->populate, kind, memory_order_relaxed);
    }
    return kind;
}

void kvm_mmu_ask_slots(struct kvm *kvm)
{
    const unsigned token = srcu_read_lock(&kvm->srcu);

    for (unsigned as = 0; as < KVM_ADDRESS_SPACE_NUM; as++) {
        struct kvm_memslots *slots = atomic_load(&kvm->memslots[as]);

        for (unsigned i = 0; slots && i < slots->used; i++)
            populate_kind(kvm, slots->slot[i]);
    }
    srcu_read_unlock(&kvm->srcu, token);
}

/* What the host has of the 2 MiB around a page (memory that the client touched, or a huge page): n gfns from start on,
 * 0: not known. */
struct resident {
    gfn_t start, n;
    hva_t hva;
    unsigned char page[LARGE_PAGES];
};

static void ask_resident(const struct kvm_memory_slot *slot, gfn_t gfn, struct resident *res)
{
    const gfn_t table = gfn & ~(gfn_t)(LARGE_PAGES - 1), last = slot->base_gfn + slot->npages;
    const gfn_t end = table + LARGE_PAGES > last ? last : table + LARGE_PAGES;

    res->start = table < slot->base_gfn ? slot->base_gfn : table;
    res->hva = slot->userspace_addr + ((res->start - slot->base_gfn) << PAGE_SHIFT);
    res->n = end - res->start;
    if (kvm_slot_dirty_track_enabled(slot) || (slot->flags & KVM_MEM_READONLY) ||
        mincore((void *)res->hva, res->n << PAGE_SHIFT, res->page))
        res->n = 0;
}

/* Is the page there, with the access that is wanted? 1: writable, 0: readable only, -EFAULT: gone. The run
 * [*first, *first + *n) of gfns around it that was made with it is what may be mapped. Pages that are there are not
 * made once more: half a microsecond each, in which a slot that goes waits for the fault. */
static int make_pages(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn, bool write, const struct resident *res,
                      gfn_t *first, gfn_t *n)
{
    const hva_t hva = slot->userspace_addr + ((gfn - slot->base_gfn) << PAGE_SHIFT);
    const uint8_t kind = populate_kind(kvm, slot);
    const bool logged = write && kvm_slot_dirty_track_enabled(slot); /* map_run() makes this page alone writable */
    const bool there = kind == POPULATE_ANONYMOUS && res->n && res->page[gfn - res->start] & 1;

    if (kind != POPULATE_PAGE && !(slot->flags & KVM_MEM_READONLY) && !logged && !there) {
        gfn_t start = gfn & ~(gfn_t)(RUN_PAGES - 1), end = start + RUN_PAGES;

        start = start < slot->base_gfn ? slot->base_gfn : start;
        end = end > slot->base_gfn + slot->npages ? slot->base_gfn + slot->npages : end;
        if (madvise((void *)(slot->userspace_addr + ((start - slot->base_gfn) << PAGE_SHIFT)),
                    (end - start) << PAGE_SHIFT, MADV_POPULATE_WRITE) == 0) {
            *first = start;
            *n = end - start;
            return 1;
        }
    }
    *first = gfn;
    *n = 1;
    if ((write || kind != POPULATE_PAGE) && madvise((void *)hva, PAGE_SIZE, MADV_POPULATE_WRITE) == 0)
        return 1;
    if (!write && madvise((void *)hva, PAGE_SIZE, MADV_POPULATE_READ) == 0)
        return 0;
    return -EFAULT;
}

/* After make_pages: what else is resident is mapped by the same fault, against a fault for each run of pages. True: all
 * of it, at the distance of a 2 MiB page. A page that the host takes back meanwhile is its own fault later. */
static bool add_resident(const struct resident *res, gfn_t *first, gfn_t *n)
{
    const gfn_t start = res->start, end = start + res->n;

    if (!res->n)
        return false;
    while (*first > start && res->page[*first - 1 - start] & 1)
        --*first, ++*n;
    while (*first + *n < end && res->page[*first + *n - start] & 1)
        ++*n;
    return *n == LARGE_PAGES && !(res->hva & (LARGE_PAGES * PAGE_SIZE - 1));
}

/* ---- EPT violations ---- */
/* Under mmu_lock. 1 or -ENOMEM */
static int map_run(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn, bool write, bool writable, gfn_t first,
                   gfn_t n, bool large)
{
    const bool log = kvm_slot_dirty_track_enabled(slot), readonly = slot->flags & KVM_MEM_READONLY;
    uint64_t *e = walk(kvm, slot->as_id, gfn, 2, true);

    if (!e) /* nothing in these tables is larger than 2 MiB */
        return -ENOMEM;
    if (large && !(read_entry(e) & EPT_PRESENT)) {
        const gfn_t start = gfn & ~(gfn_t)(LARGE_PAGES - 1);

        write_entry(e, leaf(slot->userspace_addr + ((start - slot->base_gfn) << PAGE_SHIFT), writable) | EPT_LARGE);
        return 1;
    }
    if (read_entry(e) & EPT_LARGE) {
        if (!log && (!write || read_entry(e) & EPT_W))
            return 1; /* another vCPU was faster */
        write_entry(e, 0);
    }
    for (gfn_t at = first; at < first + n; at++) {
        /* Logged: only the page that is written becomes writable; the rest reports its first write later. */
        const bool w = writable && !readonly && (!log || (at == gfn && write));

        e = walk(kvm, slot->as_id, at, 1, true);
        if (!e)
            return -ENOMEM;
        if (!(read_entry(e) & EPT_PRESENT) || (w && !(read_entry(e) & EPT_W)))
            write_entry(e, leaf(slot->userspace_addr + ((at - slot->base_gfn) << PAGE_SHIFT), w));
    }
    return 1;
}

static int fault_in_slot(struct kvm_vcpu *vcpu, struct kvm_memory_slot *slot, gfn_t gfn, bool write)
{
    struct kvm *kvm = vcpu->kvm;
    struct resident res;
    gfn_t first, n;
    bool large;
    int r;

    if (write && (slot->flags & KVM_MEM_READONLY))
        return 0; /* the monitor gets the write */
    ask_resident(slot, gfn, &res);
    r = make_pages(kvm, slot, gfn, write, &res, &first, &n);
    if (r < 0)
        return r;
    large = r == 1 && add_resident(&res, &first, &n);
    pthread_mutex_lock(&kvm->arch.mmu_lock);
    /* The slot may have gone meanwhile: who takes it away publishes first, then zaps under the lock. */
    if (gfn_to_memslot(kvm, slot->as_id, gfn) == slot)
        r = map_run(kvm, slot, gfn, write, r == 1, first, n, large);
    else
        r = 1;
    pthread_mutex_unlock(&kvm->arch.mmu_lock);
    return r;
}

/* 1: mapped, run the instruction again; 0: no RAM, or not writable; < 0: errno */
int kvm_tdp_page_fault(struct kvm_vcpu *vcpu, gpa_t gpa, uint64_t qualification)
{
    const gfn_t gfn = gpa >> PAGE_SHIFT;
    const unsigned as_id = kvm_arch_vcpu_memslots_id(vcpu);
    const bool write = qualification & EPTQ_WRITE;
    struct kvm *kvm = vcpu->kvm;
    const uint64_t changes = atomic_load(&kvm->memslots_changes);
    struct kvm_memory_slot *slot;
    unsigned idx;
    int r = 0;

    if (vcpu->arch.mmio_gfn == (gfn << 1 | as_id) && vcpu->arch.mmio_changes == changes)
        return 0; /* a device's page, as Linux's cache of MMIO */
    idx = srcu_read_lock(&kvm->srcu);
    slot = gfn_to_memslot(kvm, as_id, gfn);
    if (slot) {
        r = fault_in_slot(vcpu, slot, gfn, write);
        if (r == 1 && write && kvm_slot_dirty_track_enabled(slot))
            mark_page_dirty(kvm, as_id, gfn);
    } else {
        vcpu->arch.mmio_gfn = gfn << 1 | as_id;
        vcpu->arch.mmio_changes = changes;
    }
    srcu_read_unlock(&kvm->srcu, idx);
    kvm_trace(TRACE_MMU, "vcpu %d: EPT violation gpa %#llx qualification %#llx: %d", vcpu->vcpu_id,
              (unsigned long long)gpa, (unsigned long long)qualification, r);
    return r;
}

/* 0, or -1 with the exception; fault->vector 0: a table of the guest's is not in RAM. A table's page without an EPT
 * entry gets one first. */
int kvm_mmu_gva_to_gpa_fault(struct kvm_vcpu *vcpu, gva_t gva, unsigned access, gpa_t *gpa, struct cpu_exception *fault)
{
    int r = 1;

    for (unsigned level = 0; r == 1 && level < 5; level++) {
        r = cpu_translate(vcpu->arch.cpu, gva, access, gpa, fault);
        if (r == 1 && kvm_tdp_page_fault(vcpu, *gpa, EPTQ_READ) != 1)
            break;
    }
    if (r == 1)
        *fault = (struct cpu_exception){0};
    return r ? -1 : 0;
}

/* access: ACC_*. 0, or -1: the guest's tables do not allow it. */
int kvm_mmu_gva_to_gpa(struct kvm_vcpu *vcpu, gva_t gva, unsigned access, gpa_t *gpa)
{
    struct cpu_exception fault;

    return kvm_mmu_gva_to_gpa_fault(vcpu, gva, access, gpa, &fault);
}
