/* SPDX-License-Identifier: MIT
 * fd.c: the descriptors. Each one is a real memfd, so that dup, poll, fork and SCM_RIGHTS keep their meaning. A table
 * by descriptor number gives the object without a system call; an unknown number is settled by one fstat.
 *
 * A look-up takes no lock: struct kvm_file is never freed, only recycled, so a reader may take a reference on a stale
 * pointer and then see that the table has changed. */
#include <anykvm.h>
#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "ioctl.h"

#define CHUNK_FDS 1024
#define CHUNKS    1024 /* NR_OPEN's usual limit: 1,048,576 descriptors */
#define BUCKETS   256

typedef _Atomic(struct kvm_file *) file_slot;
static _Atomic(file_slot *) table[CHUNKS];
static struct kvm_file *by_identity[BUCKETS]; /* under table_lock */
static struct kvm_file *recycled;
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic int *mm_word; /* in a page that fork wipes */

static void fork_prepare(void)
{
    pthread_mutex_lock(&table_lock);
}

static void fork_done(void)
{
    pthread_mutex_unlock(&table_lock);
}

static void fork_child(void)
{
    pthread_mutex_unlock(&table_lock);
    kvm_mm_id(); /* now, lest a vfork child of this one be the first to ask */
}

static void mm_word_init(void)
{
    void *page = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    pthread_atfork(fork_prepare, fork_done, fork_child);
    if (page == MAP_FAILED || madvise(page, PAGE_SIZE, MADV_WIPEONFORK)) {
        static _Atomic int fallback; /* fork is then not told apart */
        mm_word = &fallback;
        return;
    }
    mm_word = page;
}

int kvm_mm_id(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    int id;

    pthread_once(&once, mm_word_init);
    id = atomic_load_explicit(mm_word, memory_order_relaxed);
    if (unlikely(id == 0)) {
        int none = 0;

        id = getpid();
        if (!atomic_compare_exchange_strong(mm_word, &none, id))
            id = none;
    }
    return id;
}

/* ---- the table ---- */
static file_slot *slot_of(int fd, bool make)
{
    file_slot *chunk;

    if (fd < 0 || fd >= CHUNKS * CHUNK_FDS)
        return NULL;
    chunk = atomic_load_explicit(&table[fd / CHUNK_FDS], memory_order_acquire);
    if (!chunk && make) { /* under table_lock */
        chunk = calloc(CHUNK_FDS, sizeof(*chunk));
        atomic_store_explicit(&table[fd / CHUNK_FDS], chunk, memory_order_release);
    }
    return chunk ? &chunk[fd % CHUNK_FDS] : NULL;
}

static bool file_tryget(struct kvm_file *f)
{
    int refs = atomic_load_explicit(&f->refs, memory_order_relaxed);

    while (refs > 0)
        if (atomic_compare_exchange_weak(&f->refs, &refs, refs + 1))
            return true;
    return false;
}

static void file_put(struct kvm_file *f)
{
    struct kvm *kvm = f->kvm;
    struct kvm_vcpu *vcpu = f->vcpu;
    bool copied;

    if (atomic_fetch_sub(&f->refs, 1) != 1)
        return;
    copied = f->mm_owner != kvm_mm_id(); /* fork copied the table; the VM stayed where it was, some of it not copied */
    pthread_mutex_lock(&table_lock);
    f->type = FILE_NONE;
    f->kvm = NULL;
    f->vcpu = NULL;
    f->next = recycled;
    recycled = f;
    pthread_mutex_unlock(&table_lock);
    if (copied)
        return;
    if (vcpu)
        kvm_vcpu_release(vcpu);
    else if (kvm)
        kvm_put_kvm(kvm);
}

static unsigned bucket_of(uint64_t ino)
{
    return (unsigned)(ino * 0x9e3779b97f4a7c15ull >> 56) % BUCKETS;
}

/* A number that came by dup, fcntl or a socket: its identity tells. Returns a reference or NULL. */
static struct kvm_file *file_by_identity(int fd)
{
    struct stat st;
    struct kvm_file *f;
    file_slot *slot;

    if (fd < 0 || fstat(fd, &st))
        return NULL;
    pthread_mutex_lock(&table_lock);
    for (f = by_identity[bucket_of(st.st_ino)]; f; f = f->next)
        if (f->ino == st.st_ino && f->dev == st.st_dev)
            break;
    if (f && !file_tryget(f))
        f = NULL;
    slot = f ? slot_of(fd, true) : NULL;
    if (slot && !atomic_load(slot)) {
        f->numbers++;
        atomic_store(slot, f);
    }
    pthread_mutex_unlock(&table_lock);
    return f;
}

static struct kvm_file *file_get(int fd)
{
    file_slot *slot = slot_of(fd, false);
    struct kvm_file *f = slot ? atomic_load_explicit(slot, memory_order_acquire) : NULL;

    while (f) {
        if (file_tryget(f)) {
            if (likely(atomic_load_explicit(slot, memory_order_acquire) == f))
                return f;
            file_put(f);
        }
        f = atomic_load_explicit(slot, memory_order_acquire);
    }
    return file_by_identity(fd);
}

static struct kvm_file *file_alloc(void)
{
    struct kvm_file *f;

    pthread_mutex_lock(&table_lock);
    f = recycled;
    if (f)
        recycled = f->next;
    pthread_mutex_unlock(&table_lock);
    return f ? f : calloc(1, sizeof(*f));
}

/* Forget what a number meant: the client closed it by other means and the system gave it out again. */
static struct kvm_file *number_forget(file_slot *slot)
{
    struct kvm_file *f = atomic_exchange(slot, NULL), **link;

    if (!f || --f->numbers > 0)
        return NULL;
    for (link = &by_identity[bucket_of(f->ino)]; *link && *link != f;)
        link = &(*link)->next;
    if (*link)
        *link = f->next;
    return f; /* its last number: the caller drops the reference of being open */
}

int kvm_file_install(int fd, enum kvm_file_type type, struct kvm *kvm, struct kvm_vcpu *vcpu)
{
    struct kvm_file *f, *stale = NULL;
    struct stat st;
    file_slot *slot;

    if (fstat(fd, &st))
        return -errno;
    f = file_alloc();
    if (!f)
        return -ENOMEM;
    f->type = type;
    f->numbers = 1;
    f->mm_owner = kvm_mm_id();
    f->dev = st.st_dev;
    f->ino = st.st_ino;
    f->kvm = kvm;
    f->vcpu = vcpu;
    pthread_mutex_lock(&table_lock);
    slot = slot_of(fd, true);
    if (slot) {
        stale = number_forget(slot);
        f->next = by_identity[bucket_of(f->ino)];
        by_identity[bucket_of(f->ino)] = f;
        atomic_store(&f->refs, 1);
        atomic_store_explicit(slot, f, memory_order_release);
    }
    pthread_mutex_unlock(&table_lock);
    if (stale)
        file_put(stale);
    if (!slot) {
        f->type = FILE_NONE;
        return -EMFILE;
    }
    return fd;
}

/* The last number that we know is being closed. Is there another that we were never shown (dup by libc)? Rare and
 * slow: closing a VM is not a hot path. Returns its number or -1. */
static int other_number(uint64_t dev, uint64_t ino, int but)
{
    DIR *dir = os_may_open() ? opendir("/proc/self/fd") : NULL;
    struct dirent *e;
    int found = -1;

    while (dir && found < 0 && (e = readdir(dir))) {
        int fd = e->d_name[0] == '.' ? -1 : atoi(e->d_name);
        struct stat st;

        if (fd >= 0 && fd != but && fd != dirfd(dir) && !fstat(fd, &st) && st.st_ino == ino && st.st_dev == dev)
            found = fd;
    }
    if (dir)
        closedir(dir);
    return found;
}

void anykvm_forget(int fd)
{
    struct kvm_file *f = file_get(fd), *last = NULL;
    file_slot *slot = slot_of(fd, false);
    int other = -1;

    /* a vfork child shares our memory, but its descriptors are its own */
    if (!f || getpid() != kvm_mm_id()) {
        if (f)
            file_put(f);
        return;
    }
    if (f->numbers == 1)
        other = other_number(f->dev, f->ino, fd);
    pthread_mutex_lock(&table_lock);
    if (other >= 0 && slot_of(other, true)) {
        file_slot *o = slot_of(other, true);

        if (!atomic_load(o)) {
            f->numbers++;
            atomic_store(o, f);
        }
    }
    if (slot && atomic_load(slot) == f)
        last = number_forget(slot);
    pthread_mutex_unlock(&table_lock);
    if (last)
        file_put(last);
    file_put(f);
}

int anykvm_close(int fd)
{
    anykvm_forget(fd);
    return close(fd);
}

bool anykvm_known(int fd)
{
    file_slot *slot = slot_of(fd, false);

    return slot && atomic_load_explicit(slot, memory_order_relaxed);
}

void anykvm_sandbox_ahead(void)
{
    for (int fd = anykvm_next(0); fd >= 0; fd = anykvm_next(fd + 1)) {
        struct kvm_file *f = file_get(fd);

        if (f && f->type == FILE_VM && f->mm_owner == kvm_mm_id())
            kvm_sandbox_ahead(f->kvm);
        if (f)
            file_put(f);
    }
    os_never_open();
}

bool anykvm_is_device(int fd)
{
    struct kvm_file *f = anykvm_known(fd) ? file_get(fd) : NULL;
    const bool device = f && f->type == FILE_SYSTEM;

    if (f)
        file_put(f);
    return device;
}

int anykvm_next(int fd)
{
    for (fd = fd < 0 ? 0 : fd; fd < CHUNKS * CHUNK_FDS; fd++) {
        if (!atomic_load_explicit(&table[fd / CHUNK_FDS], memory_order_relaxed))
            fd |= CHUNK_FDS - 1; /* the loop goes on behind the chunk */
        else if (anykvm_known(fd))
            return fd;
    }
    return -1;
}

void anykvm_duplicated(int fd, int made)
{
    struct kvm_file *f = anykvm_known(fd) ? file_get(fd) : NULL, *stale = NULL;
    file_slot *slot;

    if (!f)
        return;
    pthread_mutex_lock(&table_lock);
    slot = getpid() == kvm_mm_id() ? slot_of(made, true) : NULL;
    if (slot && atomic_load(slot) != f) {
        stale = number_forget(slot);
        f->numbers++;
        atomic_store(slot, f);
    }
    pthread_mutex_unlock(&table_lock);
    if (stale)
        file_put(stale);
    file_put(f);
}

int anykvm_open(const char *path, int flags)
{
    static pthread_mutex_t init_lock = PTHREAD_MUTEX_INITIALIZER;
    static int init_result = 1;
    int fd = -1, r;

    if (!path || strcmp(path, "/dev/kvm")) {
        errno = path ? ENOENT : EFAULT;
        return -1;
    }
    pthread_mutex_lock(&init_lock);
    if (init_result > 0)
        init_result = kvm_init();
    r = init_result;
    pthread_mutex_unlock(&init_lock);
    if (!r)
        r = fd = os_memfd("anykvm", 0, flags & O_CLOEXEC);
    if (r >= 0) {
        r = kvm_file_install(fd, FILE_SYSTEM, NULL, NULL);
        if (r < 0)
            close(fd);
    }
    if (r < 0) {
        errno = -r;
        return -1;
    }
    return r;
}

int anykvm_ioctl(int fd, unsigned long request, ...)
{
    struct kvm_file *f;
    unsigned long arg;
    va_list ap;
    long r;

    va_start(ap, request);
    arg = va_arg(ap, unsigned long);
    va_end(ap);
    request = (uint32_t)request; /* as the system call's unsigned int */
    if (request == FIOCLEX || request == FIONCLEX || request == FIONBIO || request == FIOASYNC)
        return ioctl(fd, request, arg);
    f = file_get(fd);
    if (!f)
        return ioctl(fd, request, arg);
    r = kvm_ioctl(f, request, arg);
    file_put(f);
    if (r < 0 && r >= -4095) { /* as a system call's result: KVM_GET_NR_MMU_PAGES returns any word it was given */
        errno = (int)-r;
        return -1;
    }
    return (int)r;
}

void anykvm_interrupt(int fd)
{
    struct kvm_file *f = file_get(fd);

    if (f && f->type == FILE_VCPU) {
        atomic_store(&f->vcpu->interrupted, true);
        kvm_vcpu_kick(f->vcpu);
    }
    if (f)
        file_put(f);
}

/* The ring of coalesced writes is the VM's, one page that each vCPU's mapping shows: mremap with an old size of 0 maps
 * a shared page once more, without its descriptor, which the client may have closed. */
static int map_coalesced_ring(struct kvm *kvm, char *base, size_t len, int prot, int flags, off_t off)
{
    const off_t at = KVM_COALESCED_PAGE * (off_t)PAGE_SIZE;

    if (!(flags & MAP_SHARED) || off > at || off + (off_t)len < at + (off_t)PAGE_SIZE || !kvm->coalesced_ring)
        return 0;
    if (mremap(kvm->coalesced_ring, 0, PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, base + (at - off)) == MAP_FAILED)
        return -1;
    return mprotect(base + (at - off), PAGE_SIZE, prot);
}

/* As in Linux: the first or last page in the dirty ring, then shared and not executable. */
static bool bad_ring_mapping(const struct kvm *kvm, size_t len, int prot, int flags, off_t off)
{
    const uint64_t from = KVM_DIRTY_LOG_PAGE_OFFSET, to = from + kvm->dirty_ring_size / PAGE_SIZE;
    const uint64_t first = (uint64_t)off / PAGE_SIZE, last = ((uint64_t)off + len - 1) / PAGE_SIZE;

    return ((first >= from && first < to) || (last >= from && last < to)) &&
           ((prot & PROT_EXEC) || (flags & MAP_TYPE) == MAP_PRIVATE);
}

void *anykvm_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
    struct kvm_file *f = flags & MAP_ANONYMOUS ? NULL : file_get(fd);
    void *p = MAP_FAILED;

    if (!f)
        return mmap(addr, len, prot, flags, fd, off);
    if (f->type != FILE_VCPU) {
        errno = ENODEV;
    } else if (bad_ring_mapping(f->kvm, len, prot, flags, off)) {
        errno = EINVAL;
    } else {
        p = mmap(addr, len, prot, flags, fd, off);
        if (p != MAP_FAILED && map_coalesced_ring(f->kvm, p, len, prot, flags, off)) {
            int e = errno;

            munmap(p, len);
            p = MAP_FAILED;
            errno = e;
        }
    }
    file_put(f);
    return p;
}

bool anykvm_owns(int fd)
{
    struct kvm_file *f = file_get(fd);

    if (f)
        file_put(f);
    return f != NULL;
}
