/* SPDX-License-Identifier: MIT
 * test_mem_flat.c: the flat tables of translations over changes of address space: entries come back with their PCID,
 * and whatever drops a translation drops those that are put aside too. */
#include "test_mem.h"
#include "mem/flat.h"

#define VA    0x400000ull
#define VPID  1
#define PCID0 7u
#define PCID1 8u

static int setup(void **state)
{
    struct vm *vm = vm_new();

    *state = vm;
    for (unsigned i = 0; i < 2; i++)
        if (flat_init(vm->cpu[i]) < 0)
            return -1;
    return 0;
}

static int teardown(void **state)
{
    struct vm *vm = *state;

    for (unsigned i = 0; i < 2; i++)
        flat_destroy(vm->cpu[i]);
    vm_free(vm);
    return 0;
}

static void select_pcid(struct cpu *cpu, gpa_t root, unsigned pcid) /* MOV CR3 with bit 63 */
{
    cpu->s.cr3 = root | pcid;
    tlb_select(cpu);
}

/* What an access by translated code leaves. */
static uint64_t touch(struct cpu *cpu, gva_t gva)
{
    uint64_t v;

    assert_int_equal(mem_ld64(cpu, SEG_NONE, gva, &v), CPU_OK);
    assert_int_equal(mem_st64(cpu, SEG_NONE, gva, v), CPU_OK);
    flat_looked_at(cpu, gva);
    flat_fill(cpu, gva);
    assert_int_not_equal(flat_word(cpu, gva, true), 0);
    return flat_word(cpu, gva, false);
}

/* Two pages at VA under PCID 7, known; PCID 8 of the same tables is selected. */
static gpa_t aside(struct vm *vm, struct cpu *cpu, uint64_t flags)
{
    const gpa_t root = vm_table(vm);

    *vm_pte(vm, root, 3, VA, 0, P | RW | US) = 0x9000 | P | RW | US | flags;
    *vm_pte(vm, root, 3, VA + PAGE_SIZE, 0, P | RW | US) = 0x5000 | P | RW | US;
    vm_mode64(cpu, root, 0);
    cpu->s.cr4 |= CR4_PCIDE | CR4_PGE;
    cpu->s.cr3 = root | PCID0;
    vm_changed(cpu);
    touch(cpu, VA);
    touch(cpu, VA + PAGE_SIZE);
    select_pcid(cpu, root, PCID1);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(flat_word(cpu, VA + i * PAGE_SIZE, false) | flat_word(cpu, VA + i * PAGE_SIZE, true), 0);
    return root;
}

static bool known(struct cpu *cpu, gva_t gva)
{
    return flat_word(cpu, gva, false) | flat_word(cpu, gva, true);
}

static void comes_back(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = aside(vm, cpu, 0);

    for (unsigned i = 0; i < 3; i++) {
        select_pcid(cpu, root, PCID0);
        assert_true(known(cpu, VA) && known(cpu, VA + PAGE_SIZE));
        assert_true(flat_word(cpu, VA, false) == (uint64_t)vm->ram + 0x9000 - VA + 1);
        assert_true(flat_word(cpu, VA + PAGE_SIZE, true) == (uint64_t)vm->ram + 0x5000 - VA - PAGE_SIZE + 1);
        select_pcid(cpu, root, PCID1);
        assert_false(known(cpu, VA) || known(cpu, VA + PAGE_SIZE));
    }
}

/* While PCID 8 is selected: what is left of PCID 7 afterwards, page by page. */
static void flushes(void **state)
{
    static const struct {
        enum tlb_scope scope;
        uint32_t vpid;
        uint16_t pcid;
        gva_t gva;
        uint64_t flags; /* of VA's page */
        bool first, second;
    } rows[] = {
        {TLB_PAGE, VPID, PCID0, VA + 8, 0, false, true},   /* INVPCID type 0 */
        {TLB_PCID, VPID, PCID0, 0, 0, false, false},       /* ... 1; MOV CR3 without bit 63 */
        {TLB_VPID, VPID, 0, 0, 0, false, false},           /* ... 2 */
        {TLB_VPID_NONGLOBAL, VPID, 0, 0, 0, false, false}, /* ... 3 */
        {TLB_PAGE, VPID, PCID1, VA, G, false, true},       /* INVLPG of a global page: in every PCID */
        {TLB_PAGE, VPID, PCID1, VA + 0x100000, 0, true, true},
        {TLB_PCID, VPID, PCID1, 0, 0, true, true},
        {TLB_PCID, VPID, PCID1 + 1, 0, 0, true, true},
        {TLB_PCID, VPID + 1, PCID0, 0, 0, true, true},
        {TLB_ALL, 0, 0, 0, 0, false, false}, /* INVEPT */
    };

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        struct vm *vm = *state;
        struct cpu *cpu = vm->cpu[0];
        const gpa_t root = aside(vm, cpu, rows[i].flags);

        tlb_flush(cpu, rows[i].scope, rows[i].vpid, rows[i].pcid, rows[i].gva);
        select_pcid(cpu, root, PCID0);
        if (known(cpu, VA) != rows[i].first || known(cpu, VA + PAGE_SIZE) != rows[i].second)
            fail_msg("row %u: %d %d", i, known(cpu, VA), known(cpu, VA + PAGE_SIZE));
        teardown(state);
        setup(state);
    }
}

static unsigned generation(const struct cpu *cpu)
{
    return cpu->tlb_tag >> 2;
}

/* The numbers of spaces begin anew: that of the entries put aside is another's then, or the same space's. */
static void generations_run_out(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = aside(vm, cpu, 0);
    const unsigned now = generation(cpu);
    unsigned before = now;

    do {
        before = generation(cpu);
        tlb_flush(cpu, TLB_PCID, VPID, PCID1, 0);
    } while (generation(cpu) > before);
    while (generation(cpu) < now - 2)
        tlb_flush(cpu, TLB_PCID, VPID, PCID1, 0);
    assert_int_equal(generation(cpu), now - 2);
    select_pcid(cpu, root, PCID0);
    assert_int_equal(generation(cpu), now - 1); /* as it was when the entries were filled */
    assert_false(known(cpu, VA));
}

/* What a translation depends on besides the tables' root selects another space. */
static void other_worlds(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = aside(vm, cpu, 0);

    select_pcid(cpu, root, PCID0);
    assert_true(known(cpu, VA));
    vm->vmcs.VIRTUAL_PROCESSOR_ID = VPID + 1;
    tlb_select(cpu);
    assert_false(known(cpu, VA));
    vm->vmcs.VIRTUAL_PROCESSOR_ID = VPID;
    tlb_select(cpu);
    touch(cpu, VA);
    cpu->s.cr4 ^= CR4_SMEP;
    tlb_select(cpu);
    assert_false(known(cpu, VA));
}

/* Any address of a large page drops all of it. */
static void large_page(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = vm_table(vm);

    *vm_pte(vm, root, 3, 0x40400000, 1, P | RW) = 0x400000 | P | RW | PS;
    vm_mode64(cpu, root, 0);
    cpu->s.cr4 |= CR4_PCIDE;
    for (unsigned i = 0; i < 2; i++) {
        cpu->s.cr3 = root | PCID0;
        vm_changed(cpu);
        touch(cpu, 0x40400000);
        select_pcid(cpu, root, PCID1);
        if (i)
            tlb_flush(cpu, TLB_PAGE, VPID, PCID0, 0x40512345);
        select_pcid(cpu, root, PCID0);
        assert_int_equal(known(cpu, 0x40400000), !i);
    }
}

/* More spaces than are kept, and more entries than one keeps: each has its own, or none. */
static void many_spaces(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    gpa_t root[20];

    for (unsigned i = 0; i < ARRAY_SIZE(root); i++) {
        root[i] = vm_table(vm);
        for (unsigned k = 0; k < 8; k++)
            *vm_pte(vm, root[i], 3, VA + k * PAGE_SIZE, 0, P | RW) = (0x400000 + (i * 8 + k) * PAGE_SIZE) | P | RW;
    }
    vm_mode64(cpu, root[0], 0);
    cpu->s.cr4 |= CR4_PCIDE;
    vm_changed(cpu);
    for (unsigned turn = 0; turn < 200; turn++) {
        const unsigned i = turn < 100 ? turn % 20 : turn * turn % 20;

        select_pcid(cpu, root[i], i + 1);
        for (unsigned k = 0; k < 8; k++) {
            const gva_t gva = VA + k * PAGE_SIZE;
            const uint64_t right = (uint64_t)vm->ram + 0x400000 + (i * 8 + k) * PAGE_SIZE - gva + 1;

            assert_true(!known(cpu, gva) || flat_word(cpu, gva, false) == right);
            if ((turn + k) % 3)
                assert_true(touch(cpu, gva) == right);
        }
    }
}

static void many_entries(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = vm_table(vm);
    unsigned n = 0;

    for (unsigned k = 0; k < 400; k++)
        *vm_pte(vm, root, 3, VA + k * PAGE_SIZE, 0, P | RW) = (0x400000 + k * PAGE_SIZE) | P | RW;
    vm_mode64(cpu, root, 0);
    cpu->s.cr4 |= CR4_PCIDE;
    cpu->s.cr3 = root | PCID0;
    vm_changed(cpu);
    for (unsigned k = 0; k < 400; k++)
        touch(cpu, VA + k * PAGE_SIZE);
    select_pcid(cpu, root, PCID1);
    for (unsigned k = 0; k < 400; k++)
        assert_false(known(cpu, VA + k * PAGE_SIZE));
    tlb_flush(cpu, TLB_PAGE, VPID, PCID0, VA + 399 * PAGE_SIZE);
    select_pcid(cpu, root, PCID0);
    for (unsigned k = 0; k < 400; k++)
        n += known(cpu, VA + k * PAGE_SIZE);
    assert_true(n >= 16 && n < 400); /* the youngest */
    assert_true(known(cpu, VA + 398 * PAGE_SIZE));
    assert_false(known(cpu, VA + 399 * PAGE_SIZE));
}

/* ---- by host page ---- */

/* Code is found on the page: nobody may write there unseen, through whatever space. */
static void code_is_protected(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0], *other = vm->cpu[1];
    const gpa_t root = aside(vm, cpu, 0);

    code_page = (hva_t)vm->ram + 0x9000;
    mem_protect_host_page(&vm->domain, cpu, code_page);
    select_pcid(cpu, root, PCID0);
    assert_int_equal(flat_word(cpu, VA, true), 0);
    assert_int_not_equal(flat_word(cpu, VA, false), 0);
    assert_int_not_equal(flat_word(cpu, VA + PAGE_SIZE, true), 0);
    select_pcid(cpu, root, PCID1);
    code_page = (hva_t)vm->ram + 0x5000; /* by another cpu, which waits for this one's safepoint */
    mem_protect_host_page(&vm->domain, other, code_page);
    mem_guest_enter(cpu);
    select_pcid(cpu, root, PCID0);
    assert_int_equal(flat_word(cpu, VA + PAGE_SIZE, true), 0);
    assert_int_not_equal(flat_word(cpu, VA + PAGE_SIZE, false), 0);
    mem_guest_leave(cpu);
}

/* A slot goes, or its dirty log begins anew. */
static void memory_is_dropped(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = aside(vm, cpu, 0);

    cpu_drop_host_range(&vm->domain, (hva_t)vm->ram + 0x9000, PAGE_SIZE, ACC_WRITE);
    mem_guest_enter(cpu);
    select_pcid(cpu, root, PCID0);
    assert_false(known(cpu, VA));
    mem_guest_leave(cpu);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(comes_back),  T(flushes),      T(generations_run_out), T(other_worlds),      T(large_page),
        T(many_spaces), T(many_entries), T(code_is_protected),   T(memory_is_dropped),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
