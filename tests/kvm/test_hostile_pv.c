/* SPDX-License-Identifier: MIT
 * test_hostile_pv.c: a guest that registers its paravirtual structures (kvmclock, wall clock, steal time, async page
 * faults, PV EOI, Hyper-V's pages and timers) anywhere and fills them with anything, while interrupts come and slots
 * go. KVM writes into the guest's writable memory only: what lies beside it and what is read-only stays as it was. */
#include "vm.h"
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <cmocka.h>
#include <linux/kvm_para.h>

#define RAM       (4ull << 20)
#define TABLE     0x20000ull /* of MSRs: index, eax, edx, unused */
#define AREA      0x10000000ull
#define AREA_SIZE 0x4000ull
#define ROM       0x10008000ull
#define VMS       40
#define ROUNDS    100
#define CANARY    0xc5

/* A fault of WRMSR or RDMSR goes on behind it; an interrupt is acknowledged. */
VM_ASM(pv_guest, 64,
       "1: mov $0x20000, %esi\n 2: mov (%rsi), %ecx\n test %ecx, %ecx\n jz 3f\n mov 4(%rsi), %eax\n mov 8(%rsi), %edx\n"
       "wrmsr\n rdmsr\n add $16, %rsi\n jmp 2b\n 3: sti\n nop\n nop\n cli\n out %al, $0x10\n jmp 1b\n");
VM_ASM(pv_skip, 64, "addq $2, 8(%rsp)\n add $8, %rsp\n iretq\n");
VM_ASM(pv_eoi, 64, "push %rdi\n mov $0xfee000b0, %edi\n movl $0, (%rdi)\n pop %rdi\n iretq\n");

static uint64_t seed;

static uint64_t any(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

struct msrs {
    uint32_t first, n;
};
static const struct msrs of_kvm[] = {{0x11, 2}, {0x4b564d00, 9}, {0x4b564d00, 9}, {0x830, 16}, {0x1b, 1}, {0, 0}};
static const struct msrs of_hyperv[] = {{0x40000000, 2}, {0x40000021, 1}, {0x40000070, 4},  {0x40000080, 5},
                                        {0x40000090, 4}, {0x400000b0, 8}, {0x40000000, 64}, {0, 0}};
static const struct msrs *msrs;

static uint32_t any_msr(void)
{
    unsigned n = 0, i;

    while (msrs[n].n)
        n++;
    i = (unsigned)(any() % n);
    return msrs[i].first + (uint32_t)(any() % msrs[i].n);
}

/* At the edges of what is there, far outside, and low bits that mean something to some MSR */
static uint64_t any_value(void)
{
    static const uint64_t places[] = {AREA,    AREA + AREA_SIZE, ROM,        ROM + AREA_SIZE, RAM,        0x20000,
                                      0x20ffc, 1ull << 32,       1ull << 46, 1ull << 51,      1ull << 52, ~0ull - 4095};
    const uint64_t place = places[any() % (sizeof(places) / sizeof(places[0]))];

    switch (any() % 4) {
    case 0:
        return any() >> any() % 64;
    case 1:
        return (place - any() % 80) | 1;
    case 2:
        return place | 1;
    default:
        return (place & ~4095ull) + any() % 8192;
    }
}

/* memory of AREA_SIZE with as much of canaries on both sides */
static uint8_t *guarded(void)
{
    uint8_t *p = mmap(NULL, 3 * AREA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_true(p != MAP_FAILED);
    memset(p, CANARY, 3 * AREA_SIZE);
    return p + AREA_SIZE;
}

static void assert_untouched(const uint8_t *p, uint64_t size)
{
    for (uint64_t i = 0; i < size; i++)
        if (p[i] != CANARY)
            fail_msg("byte %#llx was written", (unsigned long long)i);
}

static void on_alarm(int sig) {}

static void start_guest(struct vm *vm)
{
    extern const uint8_t pv_skip[], pv_skip_end[], pv_eoi[], pv_eoi_end[];

    memcpy(vm->ram + 0x11000, pv_skip, (size_t)(pv_skip_end - pv_skip));
    memcpy(vm->ram + 0x12000, pv_eoi, (size_t)(pv_eoi_end - pv_eoi));
    vm_load(vm, pv_guest);
    vm_gate(vm, 13, 0x11000);
    for (unsigned vector = 32; vector < 256; vector++)
        vm_gate(vm, vector, 0x12000);
    vm_start_long(vm, 0);
}

/* What the client does meanwhile */
static void meddle(struct vm *vm, uint8_t *area)
{
    struct kvm_msi msi = {.address_lo = 0xfee00000, .data = (uint32_t)(32 + any() % 224)};
    struct kvm_clock_data clock = {.clock = any() >> any() % 64};

    vm_ioctl(vm->fd, KVM_SIGNAL_MSI, &msi);
    if (any() % 4 == 0)
        vm_ioctl(vm->vcpu[0], KVM_KVMCLOCK_CTRL, 0);
    if (any() % 16 == 0)
        vm_ioctl(vm->fd, KVM_SET_CLOCK, &clock);
    if (any() % 8 == 0) { /* also under structures that are registered */
        vm_slot(vm, 1, AREA, 0, NULL, 0);
        if (any() % 2)
            vm_ioctl(vm->vcpu[0], KVM_RUN, 0);
        vm_slot(vm, 1, AREA, AREA_SIZE, area, 0);
    }
    if (any() % 2)
        for (unsigned i = 0; i < 64; i++)
            area[any() % AREA_SIZE] = (uint8_t)any();
}

/* false: the guest has overwritten itself, or stopped */
static bool round_of(struct vm *vm)
{
    uint32_t *table = (uint32_t *)(vm->ram + TABLE);
    const unsigned n = 1 + (unsigned)(any() % 12);
    bool goes_on = true;

    for (unsigned i = 0; i < n; i++, table += 4) {
        const uint64_t value = any_value();

        table[0] = any_msr();
        table[1] = (uint32_t)value;
        table[2] = (uint32_t)(value >> 32);
    }
    table[0] = 0;
    alarm(2);
    for (unsigned exits = 0; exits < 20 && goes_on; exits++) {
        const uint32_t reason = vm_run(vm, 0) < 0 ? KVM_EXIT_SHUTDOWN : vm->run[0]->exit_reason;

        if (reason == KVM_EXIT_IO)
            break;
        goes_on = reason == KVM_EXIT_MMIO || reason == KVM_EXIT_HYPERV || reason == KVM_EXIT_SYSTEM_EVENT;
    }
    alarm(0);
    return goes_on;
}

/* Hyper-V's leaves instead of KVM's */
static void set_hyperv_cpuid(struct vm *vm)
{
    struct kvm_cpuid2 *all = calloc(2, sizeof(*all) + 256 * sizeof(struct kvm_cpuid_entry2)), *hv;
    unsigned n = 0;

    all->nent = 256;
    VM_MUST(vm_ioctl(vm->sys, KVM_GET_SUPPORTED_CPUID, all));
    for (unsigned i = 0; i < all->nent; i++)
        if (all->entries[i].function >> 28 != 4)
            all->entries[n++] = all->entries[i];
    hv = (struct kvm_cpuid2 *)&all->entries[256];
    hv->nent = 64;
    VM_MUST(vm_ioctl(vm->sys, KVM_GET_SUPPORTED_HV_CPUID, hv));
    memmove(&all->entries[n], hv->entries, hv->nent * sizeof(hv->entries[0]));
    all->nent = n + hv->nent;
    VM_MUST(vm_ioctl(vm->vcpu[0], KVM_SET_CPUID2, all));
    free(all);
}

static unsigned one_vm(uint8_t *area, uint8_t *rom, bool hyperv)
{
    struct vm vm = vm_create(RAM);
    uint8_t before[AREA_SIZE];
    unsigned written = 0;
    bool goes_on = true;

    VM_MUST(vm_ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
    vm_slot(&vm, 1, AREA, AREA_SIZE, area, 0);
    vm_slot(&vm, 2, ROM, AREA_SIZE, rom, KVM_MEM_READONLY);
    vm_add_vcpu(&vm, 0);
    if (hyperv) {
        set_hyperv_cpuid(&vm);
        VM_MUST(vm_ioctl(vm.vcpu[0], KVM_ENABLE_CAP, &(struct kvm_enable_cap){.cap = KVM_CAP_HYPERV_SYNIC2}));
    }
    start_guest(&vm);
    for (unsigned i = 0; i < ROUNDS && goes_on; i++) {
        meddle(&vm, area);
        memcpy(before, area, AREA_SIZE);
        goes_on = round_of(&vm);
        written += memcmp(before, area, AREA_SIZE) != 0;
    }
    vm_destroy(&vm);
    return written;
}

static void structures_anywhere(bool hyperv)
{
    uint8_t *area = guarded(), *rom = guarded();
    struct sigaction act = {.sa_handler = on_alarm};
    unsigned written = 0;

    seed = 0x9e3779b97f4a7c15ull;
    msrs = hyperv ? of_hyperv : of_kvm;
    sigaction(SIGALRM, &act, NULL);
    for (unsigned i = 0; i < VMS; i++) {
        written += one_vm(area, rom, hyperv);
        assert_untouched(area - AREA_SIZE, AREA_SIZE);
        assert_untouched(area + AREA_SIZE, AREA_SIZE);
        assert_untouched(rom - AREA_SIZE, 3 * AREA_SIZE);
    }
    print_message("%u rounds wrote\n", written);
    assert_true(written > VMS); /* the guest itself writes nothing there */
    munmap(area - AREA_SIZE, 3 * AREA_SIZE);
    munmap(rom - AREA_SIZE, 3 * AREA_SIZE);
}

static void kvm_structures(void **state)
{
    structures_anywhere(false);
}

static void hyperv_structures(void **state)
{
    structures_anywhere(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(kvm_structures), cmocka_unit_test(hyperv_structures)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
