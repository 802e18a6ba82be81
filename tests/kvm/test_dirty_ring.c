/* SPDX-License-Identifier: MIT
 * test_dirty_ring.c: KVM_CAP_DIRTY_LOG_RING and KVM_RESET_DIRTY_RINGS: each errno, what an entry says, a ring that is
 * full, and two vCPUs whose memory is mirrored while they write. */
#include "kvm_test.h"
#include <anykvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#define ENTRIES   (PAGE / sizeof(struct kvm_dirty_gfn))
#define RING_PAGE (KVM_DIRTY_LOG_PAGE_OFFSET * PAGE)

struct ring {
    struct kvm_dirty_gfn *gfns;
    unsigned next;
};

static struct ring ring_map(struct vm *vm)
{
    struct ring ring = {kvm->mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu, RING_PAGE), 0};

    assert_ptr_not_equal(ring.gfns, MAP_FAILED);
    return ring;
}

/* The oldest entry that is dirty, or NULL; it is harvested. */
static const struct kvm_dirty_gfn *harvest(struct ring *ring)
{
    struct kvm_dirty_gfn *e = &ring->gfns[ring->next % ENTRIES];

    if ((__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_MASK) != KVM_DIRTY_GFN_F_DIRTY)
        return NULL;
    __atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
    ring->next++;
    return e;
}

/* Everything, without a look: how many */
static unsigned drain(struct vm *vm, struct ring *ring)
{
    unsigned n = 0;

    while (harvest(ring))
        n++;
    assert_int_equal(kvm->ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, 0ul), n);
    return n;
}

static int setup(void **state)
{
    *state = vm_new(VM_CPUID | VM_DIRTY_RING);
    return 0;
}

static int teardown(void **state)
{
    vm_free(*state);
    return 0;
}

static void errnos(void **state)
{
    struct vm plain = {.sys = kvm->open("/dev/kvm", O_RDWR)};
    const long max = kvm->ioctl(plain.sys, KVM_CHECK_EXTENSION, (unsigned long)KVM_CAP_DIRTY_LOG_RING);
    uint64_t bits[4];
    struct kvm_dirty_log log = {.slot = 0, .dirty_bitmap = bits};
    struct kvm_clear_dirty_log clear = {.slot = 0, .num_pages = 64, .dirty_bitmap = bits};
    struct vm *vm = *state;
    int vcpu;

    assert_true(max >= (long)PAGE && (max & (max - 1)) == 0);
    plain.fd = kvm->ioctl(plain.sys, KVM_CREATE_VM, 0ul);
    assert_int_equal(kvm->ioctl(plain.fd, KVM_CHECK_EXTENSION, (unsigned long)KVM_CAP_DIRTY_LOG_RING_ACQ_REL), max);
    assert_errno(EINVAL, plain.fd, KVM_RESET_DIRTY_RINGS, 0ul); /* not enabled */
    assert_errno(ENOENT, plain.fd, KVM_GET_DIRTY_LOG, &log);
    assert_int_equal(vm_enable(&plain, KVM_CAP_DIRTY_LOG_RING, 0), EINVAL);
    assert_int_equal(vm_enable(&plain, KVM_CAP_DIRTY_LOG_RING, 3 * PAGE), EINVAL);
    assert_int_equal(vm_enable(&plain, KVM_CAP_DIRTY_LOG_RING, PAGE / 2), EINVAL);
    assert_int_equal(vm_enable(&plain, KVM_CAP_DIRTY_LOG_RING, (uint64_t)max * 2), E2BIG);
    assert_int_equal(vm_enable(&plain, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, (uint64_t)max), 0);
    assert_int_equal(vm_enable(&plain, KVM_CAP_DIRTY_LOG_RING, (uint64_t)max), EINVAL); /* once */
    assert_int_equal(kvm->ioctl(plain.fd, KVM_RESET_DIRTY_RINGS, 0ul), 0);
    kvm->close(plain.fd);
    plain.fd = kvm->ioctl(plain.sys, KVM_CREATE_VM, 0ul);
    vcpu = kvm->ioctl(plain.fd, KVM_CREATE_VCPU, 0ul);
    assert_int_equal(vm_enable(&plain, KVM_CAP_DIRTY_LOG_RING, PAGE), EINVAL); /* vCPUs exist */
    kvm->close(vcpu);
    kvm->close(plain.fd);
    kvm->close(plain.sys);

    assert_errno(ENXIO, vm->fd, KVM_GET_DIRTY_LOG, &log);
    assert_errno(ENXIO, vm->fd, KVM_CLEAR_DIRTY_LOG, &clear);
    assert_ptr_equal(kvm->mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, vm->vcpu, RING_PAGE), MAP_FAILED);
    assert_int_equal(errno, EINVAL);
    assert_ptr_equal(kvm->mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, vm->vcpu, RING_PAGE), MAP_FAILED);
    assert_int_equal(errno, EINVAL);
}

/* Writes a byte to the page that EBX names, says so, again. */
GUEST64(g_writer, "1: in $0x10, %eax; mov %eax, %ebx; movb $1, (%rbx); jmp 1b");

static void guest_writes(struct vm *vm, uint32_t gpa)
{
    memcpy((char *)vm->run + vm->run->io.data_offset, &gpa, 4);
    assert_exit(vm, KVM_EXIT_IO);
}

static struct ring logged(struct vm *vm)
{
    struct ring ring = ring_map(vm);

    LOAD(vm, 0x1000, g_writer);
    vm_long_mode(vm, 0x1000);
    assert_exit(vm, KVM_EXIT_IO);
    guest_writes(vm, 0x50000); /* the dirty bits of the guest's own page table are writes too: done now */
    assert_null(harvest(&ring));
    assert_int_equal(vm_slot(vm, 0, 0, vm->ram_size, vm->ram, KVM_MEM_LOG_DIRTY_PAGES), 0);
    return ring;
}

static void assert_entry(struct ring *ring, uint32_t slot, uint64_t offset)
{
    const struct kvm_dirty_gfn *e = harvest(ring);

    assert_non_null(e);
    assert_int_equal(e->slot, slot);
    assert_int_equal(e->offset, offset);
}

static void entries(void **state)
{
    struct vm *vm = *state;
    struct ring ring = logged(vm);

    guest_writes(vm, 0x50000);
    guest_writes(vm, 0x50800); /* the same page: one entry */
    guest_writes(vm, 0xff000);
    guest_writes(vm, 0x51000);
    assert_entry(&ring, 0, 0x50);
    assert_entry(&ring, 0, 0xff);
    assert_int_equal(kvm->ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, 0ul), 2); /* what was harvested, no more */
    assert_int_equal(kvm->ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, 0ul), 0);
    guest_writes(vm, 0x51000); /* still in the ring, not reset: no second entry */
    guest_writes(vm, 0xff000); /* was reset */
    assert_entry(&ring, 0, 0x51);
    assert_entry(&ring, 0, 0xff);
    assert_null(harvest(&ring));
    assert_int_equal(kvm->ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, 0ul), 2);

    /* a slot beside it, whose number and first page count */
    assert_int_equal(vm_slot(vm, 9, 0x100000, 4 * PAGE, vm->ram, KVM_MEM_LOG_DIRTY_PAGES), 0);
    guest_writes(vm, 0x102000);
    assert_entry(&ring, 9, 2);
    assert_int_equal(vm_slot(vm, 9, 0x100000, 0, vm->ram, 0), 0); /* gone before its reset */
    assert_int_equal(kvm->ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, 0ul), 1);
    /* logging that ends and begins again */
    assert_int_equal(vm_slot(vm, 0, 0, vm->ram_size, vm->ram, 0), 0);
    guest_writes(vm, 0x60000);
    assert_int_equal(vm_slot(vm, 0, 0, vm->ram_size, vm->ram, KVM_MEM_LOG_DIRTY_PAGES), 0);
    assert_null(harvest(&ring));
    guest_writes(vm, 0x60000);
    assert_entry(&ring, 0, 0x60);
    munmap(ring.gfns, PAGE);
}

/* What stands in a harvested entry is the client's: nonsense there must hurt nobody. */
static void nonsense_in_entries(void **state)
{
    static const struct kvm_dirty_gfn bad[] = {{0, ~0u, ~0ull}, {0, 0, ~0ull}, {0, 0, 256}, {0, 0, ~0ull - 10},
                                               {0, 1 << 16, 0}, {0, 77, 3},    {0, 0, 255}};
    struct vm *vm = *state;
    struct ring ring = logged(vm);

    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        guest_writes(vm, 0x50000 + i * (uint32_t)PAGE);
        ring.gfns[ring.next % ENTRIES].slot = bad[i].slot;
        ring.gfns[ring.next % ENTRIES].offset = bad[i].offset;
        assert_non_null(harvest(&ring));
    }
    assert_int_equal(kvm->ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, 0ul), sizeof(bad) / sizeof(bad[0]));
    guest_writes(vm, 0x90000);
    assert_entry(&ring, 0, 0x90);
    munmap(ring.gfns, PAGE);
}

/* One byte in each of RCX pages from RBX on, and so again when it was told. */
GUEST64(g_sweep,
        "1: mov $0x80000, %ebx; mov $128, %ecx; 2: incb (%rbx); add $4096, %rbx; loop 2b; out %al, $0x20; jmp 1b");

static void full_ring(void **state)
{
    struct vm *vm = *state;
    struct ring ring = ring_map(vm);
    unsigned n = 0, full = 0, sweeps = 0;

    LOAD(vm, 0x1000, g_sweep);
    vm_long_mode(vm, 0x1000);
    assert_exit(vm, KVM_EXIT_IO);
    assert_int_equal(vm_slot(vm, 0, 0, vm->ram_size, vm->ram, KVM_MEM_LOG_DIRTY_PAGES), 0);
    while (sweeps < 20) {
        assert_int_equal(vm_run(vm), 0);
        if (vm->run->exit_reason == KVM_EXIT_IO) {
            sweeps++;
            if (sweeps % 2 == 0)
                n += drain(vm, &ring);
            else /* written, but not protected anew: the pages must be seen again */
                assert_int_equal(vm_slot(vm, 0, 0, vm->ram_size, vm->ram, 0) |
                                     vm_slot(vm, 0, 0, vm->ram_size, vm->ram, KVM_MEM_LOG_DIRTY_PAGES),
                                 0);
            continue;
        }
        assert_int_equal(vm->run->exit_reason, KVM_EXIT_DIRTY_RING_FULL);
        assert_exit(vm, KVM_EXIT_DIRTY_RING_FULL); /* until there is room */
        full++;
        n += drain(vm, &ring);
    }
    assert_in_range(n, 20 * 128, 20 * 130);
    assert_in_range(full, 5, 20);
    munmap(ring.gfns, PAGE);
}

/* ---- two vCPUs write, a third thread mirrors ---- */
/* RBX: a region of 100 pages; a counter goes round them, in a word that depends on the counter. */
GUEST64(g_hammer, "1: mov %rbx, %rdi; mov $100, %ecx\n"
                  "2: inc %rax; mov %rax, %rdx; and $0x1ff, %edx; mov %rax, (%rdi, %rdx, 8)\n"
                  "add $4096, %rdi; loop 2b; jmp 1b");

struct mirror {
    struct vm vm[2];
    struct ring ring[2];
    uint8_t *copy;
    unsigned entries;
    _Atomic int stop, running;
};

struct writer {
    struct mirror *m;
    int i;
};

static void *writer_thread(void *arg)
{
    struct writer *w = arg;
    struct vm *vm = &w->m->vm[w->i];

    while (!atomic_load(&w->m->stop)) {
        const int e = vm_run(vm);

        if (e && e != EINTR)
            break;
        if (!e && vm->run->exit_reason != KVM_EXIT_DIRTY_RING_FULL)
            break;
        if (!e)
            usleep(100);
    }
    atomic_fetch_sub(&w->m->running, 1);
    return NULL;
}

/* As a migration does: harvest, protect anew, then copy. */
static void mirror_round(struct mirror *m)
{
    static uint64_t page[2 * ENTRIES];
    unsigned n = 0;

    for (int i = 0; i < 2; i++) {
        const struct kvm_dirty_gfn *e;

        while (n < (unsigned)(i + 1) * ENTRIES && (e = harvest(&m->ring[i]))) {
            assert_int_equal(e->slot, 0);
            assert_in_range(e->offset, 0, m->vm[0].ram_size / PAGE - 1);
            page[n++] = e->offset;
        }
    }
    assert_int_equal(kvm->ioctl(m->vm[0].fd, KVM_RESET_DIRTY_RINGS, 0ul), n);
    for (unsigned i = 0; i < n; i++)
        memcpy(m->copy + page[i] * PAGE, m->vm[0].ram + page[i] * PAGE, PAGE);
    m->entries += n;
}

static void arrived(int sig)
{
    anykvm_signal_arrived();
}

static void two_vcpus_mirrored(void **state)
{
    struct sigaction act = {.sa_handler = arrived};
    struct mirror m = {.vm = {*(struct vm *)*state}, .running = 2};
    struct writer w[2] = {{&m, 0}, {&m, 1}};
    pthread_t thread[2];

    sigaction(SIGUSR1, &act, NULL);
    m.vm[1] = vm_vcpu(&m.vm[0], 1);
    LOAD(&m.vm[0], 0x1000, g_hammer);
    for (int i = 0; i < 2; i++) {
        struct kvm_regs regs;

        vm_long_mode(&m.vm[i], 0x1000);
        vm_regs(&m.vm[i], &regs);
        regs.rbx = 0x20000 + (i ? 88 * PAGE : 0); /* 12 pages are of both */
        regs.rax = (uint64_t)i << 40;
        assert_ok(m.vm[i].vcpu, KVM_SET_REGS, &regs);
        m.ring[i] = ring_map(&m.vm[i]);
    }
    m.copy = malloc(m.vm[0].ram_size);
    assert_int_equal(vm_slot(&m.vm[0], 0, 0, m.vm[0].ram_size, m.vm[0].ram, KVM_MEM_LOG_DIRTY_PAGES), 0);
    memcpy(m.copy, m.vm[0].ram, m.vm[0].ram_size);
    for (int i = 0; i < 2; i++)
        pthread_create(&thread[i], NULL, writer_thread, &w[i]);
    for (unsigned rounds = 0; (rounds < 300 || m.entries < 20000) && atomic_load(&m.running) == 2; rounds++)
        mirror_round(&m);
    assert_int_equal(atomic_load(&m.running), 2);
    atomic_store(&m.stop, 1);
    for (; atomic_load(&m.running); usleep(1000))
        for (int i = 0; i < 2; i++)
            pthread_kill(thread[i], SIGUSR1);
    for (int i = 0; i < 2; i++) {
        pthread_join(thread[i], NULL);
    }
    mirror_round(&m);
    mirror_round(&m);
    assert_memory_equal(m.copy, m.vm[0].ram, m.vm[0].ram_size);
    free(m.copy);
    for (int i = 0; i < 2; i++)
        munmap(m.ring[i].gfns, PAGE);
    munmap(m.vm[1].run, m.vm[1].run_size);
    kvm->close(m.vm[1].vcpu);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(errnos, setup, teardown),
        cmocka_unit_test_setup_teardown(entries, setup, teardown),
        cmocka_unit_test_setup_teardown(nonsense_in_entries, setup, teardown),
        cmocka_unit_test_setup_teardown(full_ring, setup, teardown),
        cmocka_unit_test_setup_teardown(two_vcpus_mirrored, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
