/* SPDX-License-Identifier: MIT
 * fuzz_canary.c: the pages around a guest, and the machine of the isolation tests. */
#include "fuzz_isolation.h"

struct canary canaries[CANARIES];
unsigned ncanaries;
static uint8_t *region; /* canary, RAM, canary */

#define MAGIC 0x5ec2e7c0ffee5ec2ull

void iso_put_return(uint8_t *at, uint32_t ok)
{
    static const uint8_t code[] = {0xb8, 0, 0, 0, 0, 0xff, 0xe0};

    memcpy(at, code, sizeof(code));
    memcpy(at + 1, &ok, 4);
}

/* Its middle is code that would count as a success. */
static void fill_canary(uint8_t *page)
{
    for (unsigned i = 0; i < 512; i++)
        ((uint64_t *)page)[i] = MAGIC;
    for (unsigned i = 0; i < 2; i++)
        iso_put_return(page + EXEC_OFFSET + 0x40 * i, LOOP_GVA);
}

static void add_canary(const char *name, uint64_t where)
{
    void *p = (void *)(where & ~0xfffull);

    if (ncanaries == CANARIES)
        return;
    if (region && (uint8_t *)p >= region && (uint8_t *)p <= region + RAM_SIZE + 4096)
        mprotect(p, 4096, PROT_READ | PROT_WRITE);
    else if (mmap(p, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) ==
             MAP_FAILED)
        return; /* something is there already */
    fill_canary(p);
    canaries[ncanaries++] = (struct canary){name, p};
}

static void place_canaries(void)
{
    uint8_t *heap = aligned_alloc(4096, 4096);
    uint64_t ram;

    region = mmap(NULL, RAM_SIZE + 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fuzz_check(region != MAP_FAILED && heap, "no memory");
    ram = (uint64_t)region + 4096;
    mprotect((void *)ram, RAM_SIZE, PROT_READ | PROT_WRITE);
    add_canary("before RAM", ram - 4096);
    add_canary("behind RAM", ram + RAM_SIZE);
    add_canary("4 GiB above RAM", ram + WINDOW_GPA + (1ull << 32));
    add_canary("4 GiB below RAM", ram + WINDOW_GPA - (1ull << 32));
    add_canary("the window's low half", (ram + WINDOW_GPA) & 0xffffffff);
    add_canary("low", 0x20000000);
    add_canary("below 4 GiB", 0xfffff000);
    add_canary("high", 0x7f0000000000);
    add_canary("the guest's own addresses", WINDOW_LOW);
    fill_canary(heap);
    canaries[ncanaries++] = (struct canary){"heap", heap};
}

/* No canary changed, and none of its words is in the guest's memory. */
void iso_check_canaries(const struct iso *g)
{
    uint8_t good[4096];

    fill_canary(good);
    for (unsigned i = 0; i < ncanaries; i++)
        fuzz_check(memcmp(canaries[i].page, good, 4096) == 0, "%s: canary %s was written", g->what, canaries[i].name);
    for (uint64_t i = 0; i < RAM_SIZE; i += 8)
        fuzz_check(*(uint64_t *)(g->ram + i) != MAGIC, "%s: the guest holds a canary's word at %#llx", g->what,
                   (unsigned long long)i);
}

/* ---- the machine ---- */
void iso_must(long result, const char *what)
{
    if (result < 0)
        fuzz_fail("%s: %s", what, strerror(errno));
}

void iso_create(struct iso *g)
{
    struct kvm_userspace_memory_region m = {.memory_size = RAM_SIZE};
    struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 256 * sizeof(c->entries[0]));
    struct kvm_xcrs x = {.nr_xcrs = 1, .xcrs[0].value = 7};

    if (!region)
        place_canaries();
    *g = (struct iso){.ram = region + 4096};
    memset(g->ram, 0, RAM_SIZE);
    iso_must(g->sys = anykvm_open("/dev/kvm", O_RDWR | O_CLOEXEC), "open");
    iso_must(g->vm = anykvm_ioctl(g->sys, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    m.userspace_addr = (uintptr_t)g->ram;
    iso_must(anykvm_ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &m), "slot");
    iso_must(g->vcpu = anykvm_ioctl(g->vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    g->run_size = (size_t)anykvm_ioctl(g->sys, KVM_GET_VCPU_MMAP_SIZE, 0);
    g->run = anykvm_mmap(NULL, g->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu, 0);
    fuzz_check(g->run != MAP_FAILED, "kvm_run");
    c->nent = 256;
    iso_must(anykvm_ioctl(g->sys, KVM_GET_SUPPORTED_CPUID, c), "KVM_GET_SUPPORTED_CPUID");
    iso_must(anykvm_ioctl(g->vcpu, KVM_SET_CPUID2, c), "KVM_SET_CPUID2");
    free(c);
    iso_must(anykvm_ioctl(g->vcpu, KVM_SET_XCRS, &x), "KVM_SET_XCRS");
}

void iso_destroy(struct iso *g)
{
    munmap(g->run, g->run_size);
    anykvm_close(g->vcpu);
    anykvm_close(g->vm);
    anykvm_close(g->sys);
}

bool iso_run(struct iso *g, uint64_t answer, uint64_t gpa, uint64_t size, unsigned *mmio)
{
    struct kvm_run *run = g->run;

    fuzz_alarm(run, 20 * 1000000);
    for (unsigned n = 0; n < 100000 && !fuzz_alarm_rang; n++) {
        if (anykvm_ioctl(g->vcpu, KVM_RUN, 0) < 0) {
            fuzz_check(errno == EINTR || errno == EFAULT, "%s: KVM_RUN: %s", g->what, strerror(errno));
            break;
        }
        if (run->exit_reason == KVM_EXIT_IO) {
            fuzz_alarm_off();
            return true;
        }
        if (run->exit_reason != KVM_EXIT_MMIO)
            break;
        fuzz_check(run->mmio.phys_addr >= gpa && run->mmio.phys_addr + run->mmio.len <= gpa + size,
                   "%s: MMIO at %#llx, not in %#llx + %#llx", g->what, (unsigned long long)run->mmio.phys_addr,
                   (unsigned long long)gpa, (unsigned long long)size);
        if (!run->mmio.is_write)
            memcpy(run->mmio.data, &answer, 8);
        ++*mmio;
    }
    fuzz_check(!fuzz_alarm_rang, "%s: hangs", g->what);
    fuzz_alarm_off();
    return false;
}
