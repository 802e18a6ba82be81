/* SPDX-License-Identifier: MIT
 * test_memslots.c: KVM_SET_USER_MEMORY_REGION and the dirty log: each errno, and slots that change while vCPUs run. */
#include "kvm_test.h"
#include <pthread.h>
#include <stdatomic.h>

static int setup(void **state)
{
    *state = vm_new(VM_CPUID);
    return 0;
}

static int teardown(void **state)
{
    vm_free(*state);
    return 0;
}

static void errnos(void **state)
{
    struct vm *vm = *state;
    char *mem = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    const int slots = kvm->ioctl(vm->fd, KVM_CHECK_EXTENSION, (unsigned long)KVM_CAP_NR_MEMSLOTS);
    const uint64_t high = 1ull << 32;

    assert_int_equal(vm_slot(vm, 1, high, 4 * PAGE, mem, 0), 0);
    assert_int_equal(vm_slot(vm, 1, high, 4 * PAGE, mem, 0), 0);             /* the same again */
    assert_int_equal(vm_slot(vm, 1, high, 5 * PAGE, mem, 0), EINVAL);        /* another size */
    assert_int_equal(vm_slot(vm, 1, high, 4 * PAGE, mem + PAGE, 0), EINVAL); /* other memory */
    assert_int_equal(vm_slot(vm, 1, high, 4 * PAGE, mem, KVM_MEM_READONLY), EINVAL);
    assert_int_equal(vm_slot(vm, 2, high + 3 * PAGE, PAGE, mem, 0), EEXIST); /* overlaps */
    assert_int_equal(vm_slot(vm, 2, high - PAGE, 2 * PAGE, mem, 0), EEXIST);
    assert_int_equal(vm_slot(vm, 2, high + 4 * PAGE, PAGE, mem, 0), 0);          /* touches */
    assert_int_equal(vm_slot(vm, 2, high + 2 * PAGE, PAGE, mem, 0), EEXIST);     /* a move onto another */
    assert_int_equal(vm_slot(vm, 2, high + 9 * PAGE, PAGE, mem, 0), 0);          /* a move */
    assert_int_equal(vm_slot(vm, 2, high + 9 * PAGE + 1, PAGE, mem, 0), EINVAL); /* alignment */
    assert_int_equal(vm_slot(vm, 3, high * 2, PAGE + 1, mem, 0), EINVAL);
    assert_int_equal(vm_slot(vm, 3, high * 2, PAGE, mem + 1, 0), EINVAL);
    assert_int_equal(vm_slot(vm, 3, high * 2, PAGE, (void *)0xffff800000000000, 0), EINVAL);
    assert_int_equal(vm_slot(vm, 3, -PAGE, 2 * PAGE, mem, 0), EINVAL); /* wraps */
    assert_int_equal(vm_slot(vm, 3, 1ull << 60, PAGE, mem, 0), EINVAL);
    assert_int_equal(vm_slot(vm, 3, high * 2, PAGE, mem, 1 << 7), EINVAL); /* flags */
    assert_int_equal(vm_slot(vm, 3, high * 2, 0, mem, 0), EINVAL);         /* nothing to delete */
    assert_int_equal(vm_slot(vm, slots, high * 2, PAGE, mem, 0), EINVAL);
    assert_int_equal(vm_slot(vm, slots - 1, high * 2, PAGE, mem, 0), 0);
    assert_int_equal(vm_slot(vm, 9 << 16, high * 3, PAGE, mem, 0), EINVAL); /* address space */
    assert_int_equal(vm_slot(vm, 1, high, 0, NULL, 0), 0);
    assert_int_equal(vm_slot(vm, 1, high, 0, NULL, 0), EINVAL);
    munmap(mem, 16 * PAGE);
}

static void dirty_log_errnos(void **state)
{
    struct vm *vm = *state;
    uint64_t bits[8];
    struct kvm_dirty_log log = {.slot = 0, .dirty_bitmap = bits};
    struct kvm_clear_dirty_log clear = {.slot = 0, .num_pages = 64, .dirty_bitmap = bits};

    assert_errno(ENOENT, vm->fd, KVM_GET_DIRTY_LOG, &log); /* not logged */
    log.slot = 5;
    assert_errno(ENOENT, vm->fd, KVM_GET_DIRTY_LOG, &log);
    log.slot = 1 << 16;
    assert_errno(ENOENT, vm->fd, KVM_GET_DIRTY_LOG, &log);
    log.slot = 2 << 16;
    assert_errno(EINVAL, vm->fd, KVM_GET_DIRTY_LOG, &log);
    assert_int_equal(vm_slot(vm, 0, 0, vm->ram_size, vm->ram, KVM_MEM_LOG_DIRTY_PAGES), 0);
    log.slot = 0;
    log.dirty_bitmap = (void *)8;
    assert_errno(EFAULT, vm->fd, KVM_GET_DIRTY_LOG, &log);
    clear.first_page = 1;
    assert_errno(EINVAL, vm->fd, KVM_CLEAR_DIRTY_LOG, &clear);
    clear.first_page = 0;
    clear.num_pages = 63;
    assert_errno(EINVAL, vm->fd, KVM_CLEAR_DIRTY_LOG, &clear);
    clear.num_pages = 320;
    assert_errno(EINVAL, vm->fd, KVM_CLEAR_DIRTY_LOG, &clear);
    clear.num_pages = 64;
    memset(bits, 0, sizeof(bits));
    assert_ok(vm->fd, KVM_CLEAR_DIRTY_LOG, &clear);
}

/* Writes a byte to the page that BX names, says so, again. */
GUEST64(g_writer, "1: in $0x10, %eax; mov %eax, %ebx; movb $1, (%rbx); jmp 1b");

static void guest_writes(struct vm *vm, uint32_t gpa)
{
    memcpy((char *)vm->run + vm->run->io.data_offset, &gpa, 4);
    assert_exit(vm, KVM_EXIT_IO);
}

static struct vm *writer(void **state)
{
    struct vm *vm = *state;

    LOAD(vm, 0x1000, g_writer);
    vm_long_mode(vm, 0x1000);
    assert_exit(vm, KVM_EXIT_IO);
    return vm;
}

static unsigned dirty_pages(struct vm *vm, uint64_t bits[4])
{
    struct kvm_dirty_log log = {.slot = 0, .dirty_bitmap = bits};
    unsigned n = 0, i;

    assert_ok(vm->fd, KVM_GET_DIRTY_LOG, &log);
    for (i = 0; i < 4; i++)
        n += (unsigned)__builtin_popcountll(bits[i]);
    return n;
}

static void dirty_log_by_get(void **state)
{
    struct vm *vm = writer(state);
    uint64_t bits[4];

    guest_writes(vm, 0x50000); /* before logging: no trace */
    assert_int_equal(vm_slot(vm, 0, 0, vm->ram_size, vm->ram, KVM_MEM_LOG_DIRTY_PAGES), 0);
    assert_int_equal(dirty_pages(vm, bits), 0);
    guest_writes(vm, 0x50000);
    guest_writes(vm, 0x50800);
    guest_writes(vm, 0xff000);
    assert_int_equal(dirty_pages(vm, bits), 2);
    assert_true(bits[1] == 1ull << 0x10 && bits[3] == 1ull << 63);
    assert_int_equal(dirty_pages(vm, bits), 0); /* taken */
    guest_writes(vm, 0x50000);                  /* logged anew although its translation was cached */
    assert_int_equal(dirty_pages(vm, bits), 1);
    assert_int_equal(vm_slot(vm, 0, 0, vm->ram_size, vm->ram, 0), 0);
    guest_writes(vm, 0x60000);
    assert_int_equal(vm_slot(vm, 0, 0, vm->ram_size, vm->ram, KVM_MEM_LOG_DIRTY_PAGES), 0);
    assert_int_equal(dirty_pages(vm, bits), 0);
}

static void dirty_log_by_clear(void **state)
{
    struct vm *vm = writer(state);
    struct kvm_enable_cap cap = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = {1}};
    uint64_t bits[4], mask[4] = {0};
    struct kvm_clear_dirty_log clear = {.slot = 0, .first_page = 64, .num_pages = 64, .dirty_bitmap = mask};

    assert_ok(vm->fd, KVM_ENABLE_CAP, &cap);
    guest_writes(vm, 0x50000); /* sets the dirty bit of the guest's own page table: a write too */
    assert_int_equal(vm_slot(vm, 0, 0, vm->ram_size, vm->ram, KVM_MEM_LOG_DIRTY_PAGES), 0);
    guest_writes(vm, 0x50000);
    guest_writes(vm, 0x51000);
    assert_int_equal(dirty_pages(vm, bits), 2);
    assert_int_equal(dirty_pages(vm, bits), 2); /* reading takes nothing now */
    mask[0] = 1ull << 0x10;                     /* of page 64 + 16 */
    assert_ok(vm->fd, KVM_CLEAR_DIRTY_LOG, &clear);
    assert_int_equal(dirty_pages(vm, bits), 1);
    assert_true(bits[1] == 1ull << 0x11);
    guest_writes(vm, 0x50000);
    assert_int_equal(dirty_pages(vm, bits), 2);
}

/* ---- a slot that goes and comes while the guest writes to it ---- */
GUEST64(g_hammer, "mov $0x40000000, %rbx; 1: incq (%rbx); jmp 1b");

struct churn {
    struct vm *vm;
    void *memory;
    _Atomic bool stop;
    unsigned rounds;
};

static void *churn_thread(void *arg)
{
    struct churn *c = arg;

    while (!atomic_load(&c->stop)) {
        if (vm_slot(c->vm, 7, 0x40000000, 0, NULL, 0) || vm_slot(c->vm, 7, 0x40000000, PAGE, c->memory, 0))
            break;
        c->rounds++;
    }
    return NULL;
}

static void slot_comes_and_goes(void **state)
{
    struct vm *vm = *state;
    uint64_t *pdpt;
    struct churn c = {.vm = vm};
    pthread_t thread;
    unsigned mmio = 0, i;

    c.memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    LOAD(vm, 0x1000, g_hammer);
    vm_long_mode(vm, 0x1000);
    pdpt = (uint64_t *)(vm->ram + 0x11000);
    pdpt[1] = 0x40000000 | 0x83; /* a page of 1 GiB */
    assert_int_equal(vm_slot(vm, 7, 0x40000000, PAGE, c.memory, 0), 0);
    pthread_create(&thread, NULL, churn_thread, &c);
    for (i = 0; i < 300; i++) { /* each time that the slot is away, the access is the client's */
        assert_exit(vm, KVM_EXIT_MMIO);
        assert_true(vm->run->mmio.phys_addr == 0x40000000);
        memset(vm->run->mmio.data, 0, 8);
        mmio++;
    }
    atomic_store(&c.stop, true);
    pthread_join(thread, NULL);
    assert_int_equal(mmio, 300);
    assert_true(c.rounds > 0);
    munmap(c.memory, PAGE);
}

/* Two vCPUs read a number at 0x3000, then one in a slot, which is never older: when a change is done, no access goes to
 * the memory that was there before. A slot that is away reads as all ones. */
GUEST64(g_compare,
        "mov $0x40000000, %rdi; 1: mov 0x3000, %rax; mov (%rdi), %rbx; cmp %rax, %rbx; jae 1b; out %al, $0x10; jmp 1b");
struct comparer {
    struct vm vm;
    _Atomic bool stop;
    unsigned old, away;
};

static void *compare_thread(void *arg)
{
    struct comparer *c = arg;
    struct kvm_run *run = c->vm.run;

    while (!atomic_load(&c->stop)) {
        if (vm_run(&c->vm))
            continue;
        if (run->exit_reason != KVM_EXIT_MMIO) {
            c->old++;
            continue;
        }
        memset(run->mmio.data, 0xff, 8);
        c->away++;
    }
    return NULL;
}

static void memory_of_a_slot_changes(void **state)
{
    struct vm *vm = *state;
    struct comparer c[2] = {{.vm = *vm}, {.vm = vm_vcpu(vm, 1)}};
    uint64_t *page[2], *number = (uint64_t *)(vm->ram + 0x3000);
    pthread_t thread[2];

    for (unsigned i = 0; i < 2; i++)
        page[i] = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    LOAD(vm, 0x1000, g_compare);
    for (unsigned i = 0; i < 2; i++)
        vm_long_mode(&c[i].vm, 0x1000);
    ((uint64_t *)(vm->ram + 0x11000))[1] = 0x40000000 | 0x83;
    for (unsigned i = 0; i < 2; i++)
        pthread_create(&thread[i], NULL, compare_thread, &c[i]);
    for (uint64_t n = 1; n <= 4000; n++) {
        *(volatile uint64_t *)page[n & 1] = n;
        assert_int_equal(vm_slot(vm, 7, 0x40000000, PAGE, page[n & 1], 0), 0);
        __atomic_store_n(number, n, __ATOMIC_SEQ_CST);
        if (n % 4 == 0)
            usleep(20);
        assert_int_equal(vm_slot(vm, 7, 0x40000000, 0, NULL, 0), 0);
        *(volatile uint64_t *)page[n & 1] = 0; /* who still looks here is seen */
    }
    for (unsigned i = 0; i < 2; i++) {
        atomic_store(&c[i].stop, true);
        pthread_join(thread[i], NULL);
        assert_int_equal(c[i].old, 0);
        assert_true(c[i].away > 0);
    }
    kvm->close(c[1].vm.vcpu);
    for (unsigned i = 0; i < 2; i++)
        munmap(page[i], PAGE);
}

/* 2,000 slots: look-up by binary search, each page its own memory. */
GUEST64(g_sum_slots, "mov $0x40000000, %rbx; mov $2000, %ecx; xor %eax, %eax; 1: add (%rbx), %rax; add $0x2000, %rbx;"
                     "dec %ecx; jnz 1b; mov %rax, 0x2000; hlt");
static void many_slots(void **state)
{
    struct vm *vm = *state;
    const unsigned n = 2000;
    uint8_t *mem = mmap(NULL, n * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t want = 0;
    unsigned i;

    for (i = 0; i < n; i++) {
        *(uint64_t *)(mem + i * PAGE) = i + 1;
        want += i + 1;
        assert_int_equal(vm_slot(vm, 1 + i, 0x40000000 + i * 2 * PAGE, PAGE, mem + i * PAGE, 0), 0);
    }
    LOAD(vm, 0x1000, g_sum_slots);
    vm_long_mode(vm, 0x1000);
    ((uint64_t *)(vm->ram + 0x11000))[1] = 0x40000000 | 0x83;
    assert_exit(vm, KVM_EXIT_HLT);
    assert_true(*(uint64_t *)(vm->ram + 0x2000) == want);
    munmap(mem, n * PAGE);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {T(errnos),
                                       T(dirty_log_errnos),
                                       T(dirty_log_by_get),
                                       T(dirty_log_by_clear),
                                       T(slot_comes_and_goes),
                                       T(memory_of_a_slot_changes),
                                       T(many_slots)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
