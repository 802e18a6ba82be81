/* SPDX-License-Identifier: MIT
 * stat.c: the counters' files: memfds in the binary format of KVM_GET_STATS_FD (api.rst 4.133), written in place, so
 * that another process can read them, and their text form. */
#include <anykvm.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "ioctl.h"

#define NAME_SIZE 48
#define ID_SIZE   48
#define IO_SLOTS  256 /* a power of two */
#define IO_PROBES 16
#define IO_TABLE  "io_addresses"

struct kvm_stats {
    int fd;
    void *base;
    size_t size;
    uint64_t *data;
    struct kvm_stats *next;
};
struct io_slot { /* two words of the table */
    uint64_t key, count;
};
#define IO_VALID (1ull << 63)
#define IO_MMIO  (1ull << 62)
#define IO_WRITE (1ull << 61)
#define IO_USER  (1ull << 60)
#define IO_GPA   ((1ull << 60) - 1)

struct desc {
    struct kvm_stats_desc head;
    char name[NAME_SIZE];
};
_Static_assert(sizeof(struct desc) == sizeof(struct kvm_stats_desc) + NAME_SIZE, "no padding before the name");

static struct kvm_stats *live; /* under live_lock */
static pthread_mutex_t live_lock = PTHREAD_MUTEX_INITIALIZER;
static bool print_at_end;

/* ---- a file ---- */
static void add_desc(struct desc *d, unsigned *n, uint32_t *offset, const char *name, uint32_t flags, uint16_t words)
{
    d[*n].head.flags = flags;
    d[*n].head.size = words;
    d[*n].head.offset = *offset;
    snprintf(d[*n].name, NAME_SIZE, "%s", name);
    *offset += words * 8u;
    ++*n;
}

/* Layout: header, id, descriptors, data. Returns NULL without memory: then nothing is counted by file. */
static struct kvm_stats *stats_new(const char *id, const struct desc *descs, unsigned n, uint32_t data_bytes)
{
    const size_t desc_at = sizeof(struct kvm_stats_header) + ID_SIZE,
                 data_at = (desc_at + n * sizeof(*descs) + 63) & ~63ul;
    struct kvm_stats *s = calloc(1, sizeof(*s));
    struct kvm_stats_header *h;

    if (!s)
        return NULL;
    s->size = (data_at + data_bytes + PAGE_SIZE - 1) & PAGE_MASK;
    s->fd = os_memfd("anykvm-stats", s->size, true);
    s->base = s->fd < 0 ? MAP_FAILED : mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
    if (s->base == MAP_FAILED) {
        if (s->fd >= 0)
            close(s->fd);
        free(s);
        return NULL;
    }
    h = s->base;
    *h = (struct kvm_stats_header){.name_size = NAME_SIZE,
                                   .num_desc = n,
                                   .id_offset = sizeof(*h),
                                   .desc_offset = (uint32_t)desc_at,
                                   .data_offset = (uint32_t)data_at};
    snprintf((char *)s->base + h->id_offset, ID_SIZE, "%s", id);
    memcpy((char *)s->base + desc_at, descs, n * sizeof(*descs));
    s->data = (uint64_t *)((char *)s->base + data_at);
    pthread_mutex_lock(&live_lock);
    s->next = live;
    live = s;
    pthread_mutex_unlock(&live_lock);
    return s;
}

static void stats_free(struct kvm_stats *s)
{
    struct kvm_stats **link;

    if (!s)
        return;
    pthread_mutex_lock(&live_lock);
    for (link = &live; *link && *link != s;)
        link = &(*link)->next;
    if (*link)
        *link = s->next;
    pthread_mutex_unlock(&live_lock);
    if (print_at_end)
        anykvm_stat_print(s->fd, stderr);
    munmap(s->base, s->size);
    close(s->fd);
    free(s);
}

/* The client gets a file of its own: its position is not shared. */
static int stats_fd(const struct kvm_stats *s)
{
    char path[32];
    int fd;

    if (!s)
        return -ENOMEM;
    snprintf(path, sizeof(path), "/proc/self/fd/%d", s->fd);
    fd = os_may_open() ? open(path, O_RDONLY | O_CLOEXEC) : fcntl(s->fd, F_DUPFD_CLOEXEC, 0);
    return fd < 0 ? -errno : fd;
}

int kvm_vm_stats_fd(struct kvm *kvm)
{
    return stats_fd(kvm->stats);
}

int kvm_vcpu_stats_fd(struct kvm_vcpu *vcpu)
{
    kvm_stat_sync(vcpu);
    return stats_fd(vcpu->stats);
}

/* ---- what is in it ---- */
static const struct {
    const char *name;
    uint32_t flags;
} vcpu_stats[] = {
#define VCPU_STAT(name, unit) {#name, KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_##unit | KVM_STATS_BASE_POW10},
#include "stat.def"
#undef VCPU_STAT
};
static const struct {
    unsigned reason;
    const char *name;
} exit_reasons[] = {
#define EXIT(name, number) {number, "exits_" #name},
#include "../cpu/exits.def"
#undef EXIT
};

static unsigned vcpu_descs(struct desc *d, uint32_t *bytes)
{
    const uint32_t count = KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10;
    uint32_t at = 0;
    unsigned n = 0, i;

    for (i = 0; i < ARRAY_SIZE(vcpu_stats); i++)
        add_desc(d, &n, &at, vcpu_stats[i].name, vcpu_stats[i].flags, 1);
    for (i = 0; i < ARRAY_SIZE(exit_reasons); i++) {
        uint32_t where = (STAT_EXIT_REASONS + exit_reasons[i].reason) * 8;

        add_desc(d, &n, &where, exit_reasons[i].name, count, 1);
    }
    at = STAT_CPU * 8;
    for (i = 0; i < CC_COUNT; i++)
        add_desc(d, &n, &at, cpu_counter_names[i], count, 1);
    add_desc(d, &n, &at, IO_TABLE, KVM_STATS_TYPE_INSTANT | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10, 2 * IO_SLOTS);
    *bytes = at;
    return n;
}

void kvm_stat_vcpu_new(struct kvm_vcpu *vcpu)
{
    static uint64_t nowhere[STAT_CPU + CC_COUNT + 2 * IO_SLOTS];
    struct desc *d = calloc(ARRAY_SIZE(vcpu_stats) + ARRAY_SIZE(exit_reasons) + CC_COUNT + 1, sizeof(*d));
    char id[ID_SIZE];
    uint32_t bytes;
    unsigned n;

    vcpu->stat = nowhere;
    if (!d)
        return;
    snprintf(id, sizeof(id), "kvm-%d/vcpu-%d", getpid(), vcpu->vcpu_id);
    n = vcpu_descs(d, &bytes);
    vcpu->stats = stats_new(id, d, n, bytes);
    if (vcpu->stats)
        vcpu->stat = vcpu->stats->data;
    free(d);
}

void kvm_stat_vcpu_gone(struct kvm_vcpu *vcpu)
{
    stats_free(vcpu->stats);
}

void kvm_stat_vm_new(struct kvm *kvm)
{
    static uint64_t nowhere[VM_STAT_COUNT];
    static const char *const names[VM_STAT_COUNT] = {"vcpus", "memslot_changes", "dirty_log_reads", "irqfd_signals",
                                                     "ioeventfd_signals"};
    struct desc d[VM_STAT_COUNT] = {0};
    char id[ID_SIZE];
    uint32_t at = 0;
    unsigned n = 0;

    while (n < VM_STAT_COUNT)
        add_desc(d, &n, &at, names[n], KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10, 1);
    snprintf(id, sizeof(id), "kvm-%d", getpid());
    kvm->stats = stats_new(id, d, n, at);
    kvm->stat = kvm->stats ? kvm->stats->data : nowhere;
}

void kvm_stat_vm_gone(struct kvm *kvm)
{
    stats_free(kvm->stats);
}

void kvm_stat_sync(struct kvm_vcpu *vcpu)
{
    memcpy(&vcpu->stat[STAT_CPU], cpu_counters(vcpu->arch.cpu), CC_COUNT * sizeof(uint64_t));
}

/* ---- I/O by address: open addressing, never emptied ---- */
void kvm_stat_io(struct kvm_vcpu *vcpu, bool mmio, uint64_t gpa, bool write, bool user)
{
    struct io_slot *slots = (struct io_slot *)(vcpu->stat + STAT_CPU + CC_COUNT);
    const uint64_t key =
        (gpa & IO_GPA) | IO_VALID | (mmio ? IO_MMIO : 0) | (write ? IO_WRITE : 0) | (user ? IO_USER : 0);
    unsigned i, at = (unsigned)(key * 0x9e3779b97f4a7c15ull >> 56);

    for (i = 0; i < IO_PROBES; i++, at++) {
        struct io_slot *s = &slots[at % IO_SLOTS];

        if (s->key == key || !s->key) {
            s->key = key;
            s->count++;
            return;
        }
    }
    vcpu->stat[STAT_io_lost]++;
}

/* ---- the text form ---- */
static int by_count(const void *a, const void *b)
{
    const struct io_slot *x = a, *y = b;

    return x->count < y->count ? 1 : x->count > y->count ? -1 : 0;
}

static void print_io(FILE *out, const uint64_t *words, unsigned n)
{
    struct io_slot slots[IO_SLOTS];
    unsigned i;

    n = n / 2 < IO_SLOTS ? n / 2 : IO_SLOTS;
    memcpy(slots, words, n * sizeof(slots[0]));
    qsort(slots, n, sizeof(slots[0]), by_count);
    for (i = 0; i < n && slots[i].count; i++)
        fprintf(out, "  %-5s %-6s %#14" PRIx64 " %-7s %14" PRIu64 "\n", slots[i].key & IO_MMIO ? "mmio" : "port",
                slots[i].key & IO_WRITE ? "write" : "read", (uint64_t)(slots[i].key & IO_GPA),
                slots[i].key & IO_USER ? "user" : "kernel", slots[i].count);
}

/* The file may be another process's: nothing in it is trusted. */
static bool plausible(const struct kvm_stats_header *h, size_t size)
{
    return size >= sizeof(*h) && h->name_size == NAME_SIZE && h->num_desc < 4096 && h->id_offset <= size - ID_SIZE &&
           h->desc_offset <= size && h->num_desc * sizeof(struct desc) <= size - h->desc_offset &&
           h->data_offset <= size;
}

static void print_file(const char *base, size_t size, FILE *out)
{
    const struct kvm_stats_header *h = (const void *)base;
    unsigned i;

    if (!plausible(h, size))
        return;
    fprintf(out, "%.*s\n", ID_SIZE, base + h->id_offset);
    for (i = 0; i < h->num_desc; i++) {
        struct desc d;
        uint64_t value;

        memcpy(&d, base + h->desc_offset + i * sizeof(d), sizeof(d));
        d.name[NAME_SIZE - 1] = 0;
        if (d.head.offset > size - h->data_offset || d.head.size * 8ul > size - h->data_offset - d.head.offset)
            continue;
        memcpy(&value, base + h->data_offset + d.head.offset, sizeof(value));
        if (!strcmp(d.name, IO_TABLE))
            print_io(out, (const uint64_t *)(base + h->data_offset + d.head.offset), d.head.size);
        else if (value)
            fprintf(out, "  %-40s %20" PRIu64 "\n", d.name, value);
    }
}

int anykvm_stat_print(int fd, FILE *out)
{
    struct stat st;
    char *copy;
    ssize_t n;

    if (fstat(fd, &st) || st.st_size > 1 << 20)
        return -1;
    copy = malloc((size_t)st.st_size + 1);
    n = copy ? pread(fd, copy, (size_t)st.st_size, 0) : -1;
    if (n > 0)
        print_file(copy, (size_t)n, out);
    free(copy);
    return n > 0 ? 0 : -1;
}

static void print_live(void)
{
    const struct kvm_stats *s;

    for (s = live; s; s = s->next) /* the process ends: other threads may still count */
        anykvm_stat_print(s->fd, stderr);
}

void kvm_stat_init(void)
{
    const char *wish = getenv("ANYKVM_STAT");

    print_at_end = wish && *wish && strcmp(wish, "0");
    if (print_at_end)
        atexit(print_live);
}
