/* SPDX-License-Identifier: MIT
 * test_mem_paging.c: every form of guest paging, rights, accessed and dirty bits, reserved bits; EPT walks and their
 * exits. The rights' oracle is written from the manual's sentences, not from the code. */
#include "test_mem.h"

#define VA 0x40201000ull

static int setup(void **state)
{
    *state = vm_new();
    return 0;
}

static int teardown(void **state)
{
    vm_free(*state);
    return 0;
}

static uint64_t *word(struct vm *vm, gpa_t gpa)
{
    return (uint64_t *)(vm->ram + gpa);
}

static void no_paging(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    uint64_t v = 0;

    *word(vm, 0x3008) = 0x1122334455667788;
    assert_int_equal(mem_ld64(cpu, SEG_NONE, 0x3008, &v), CPU_OK);
    assert_true(v == 0x1122334455667788);
    assert_int_equal(mem_st32(cpu, SEG_NONE, 0x300c, 7), CPU_OK);
    assert_true(*word(vm, 0x3008) == 0x0000000755667788);
}

static void long_mode_pages(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = vm_table(vm);
    uint64_t *pte = vm_pte(vm, root, 3, VA, 0, P | RW | US);
    uint64_t v;

    vm_mode64(cpu, root, 3);
    *word(vm, 0x5010) = 42;
    assert_pf(cpu, mem_ld64(cpu, SEG_DS, VA + 0x10, &v), VA + 0x10, PF_U);
    *pte = 0x5000 | P | RW | US;
    assert_int_equal(mem_ld64(cpu, SEG_DS, VA + 0x10, &v), CPU_OK);
    assert_int_equal(v, 42);
    assert_int_equal(*pte, 0x5000 | P | RW | US | A);
    for (int level = 1; level <= 3; level++)
        assert_true(*vm_pte(vm, root, 3, VA, level, 0) & A);
    assert_null(tlb_lookup(cpu, VA, 8, TLB_WRITE)); /* D is clear: the first write walks */
    assert_int_equal(mem_st64(cpu, SEG_DS, VA + 0x10, 43), CPU_OK);
    assert_int_equal(*pte, 0x5000 | P | RW | US | A | D);
    assert_int_equal(*word(vm, 0x5010), 43);
    assert_ptr_equal(tlb_lookup(cpu, VA, 8, TLB_WRITE), vm->ram + 0x5000);
}

static void large_pages(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = vm_table(vm);
    uint64_t *pde = vm_pte(vm, root, 3, 0x40200000, 1, P | RW), *pdpte = vm_pte(vm, root, 3, 0x80000000, 2, P | RW);
    uint64_t v;

    vm_mode64(cpu, root, 0);
    *word(vm, 0x212340) = 11;
    *pde = 0x200000 | 0x1000 | P | RW | PS; /* bit 12 is PAT */
    assert_int_equal(mem_ld64(cpu, SEG_DS, 0x40212340, &v), CPU_OK);
    assert_int_equal(v, 11);
    *pdpte = P | RW | PS;
    assert_int_equal(mem_ld64(cpu, SEG_DS, 0x80212340, &v), CPU_OK);
    assert_int_equal(v, 11);
    assert_int_equal(mem_st8(cpu, SEG_DS, 0x80212340, 12), CPU_OK);
    assert_int_equal(*pdpte, P | RW | PS | A | D);
    *pdpte = P | RW | PS | 1ull << 20;
    vm_flush(cpu);
    assert_pf(cpu, mem_ld64(cpu, SEG_DS, 0x80212340, &v), 0x80212340, PF_P | PF_RS);
    *pdpte = P | RW | PS;
    cpu->guest_ext1.edx = 0;
    assert_pf(cpu, mem_ld64(cpu, SEG_DS, 0x80212340, &v), 0x80212340, PF_P | PF_RS);
}

static void reserved_bits(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = vm_table(vm);
    uint64_t *pte = vm_pte(vm, root, 3, VA, 0, P | RW | US);
    uint64_t v;

    vm_mode64(cpu, root, 0);
    for (unsigned bit = 40; bit < 52; bit++) { /* MAXPHYADDR is 40 */
        *pte = 0x5000 | P | RW | 1ull << bit;
        assert_pf(cpu, mem_ld64(cpu, SEG_DS, VA, &v), VA, PF_P | PF_RS);
    }
    *pte = 0x5000 | P | RW | 0x7ffull << 52; /* ignored */
    assert_int_equal(mem_ld64(cpu, SEG_DS, VA, &v), CPU_OK);
    *pte = 0x5000 | P | RW | NX;
    cpu->s.efer &= ~EFER_NXE;
    vm_changed(cpu);
    assert_pf(cpu, mem_ld64(cpu, SEG_DS, VA, &v), VA, PF_P | PF_RS);
    *pte = 0x5000 | P | RW;
    for (int level = 3; level > 0; level--) {
        uint64_t *e = vm_pte(vm, root, 3, VA, level, 0), old = *e;

        *e |= 1ull << 45;
        assert_pf(cpu, mem_st64(cpu, SEG_DS, VA, 0), VA, PF_P | PF_RS | PF_W);
        *e = old;
    }
    *vm_pte(vm, root, 3, VA, 3, 0) |= PS;
    assert_pf(cpu, mem_ld64(cpu, SEG_DS, VA, &v), VA, PF_P | PF_RS);
}

static void pae_pages(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t pd = vm_table(vm);
    uint64_t *pte = vm_pte(vm, pd, 1, 0xc0403000, 0, P | RW | US), *pde = vm_pte(vm, pd, 1, 0xc0800000, 1, 0), v;

    cpu->s.cr0 |= CR0_PG | CR0_WP;
    cpu->s.cr4 = CR4_PAE;
    cpu->s.efer = EFER_NXE;
    cpu->s.pdpte[3] = pd | P;
    vm_changed(cpu);
    *pte = 0x6000 | P | RW | NX;
    *word(vm, 0x6020) = 5;
    assert_int_equal(mem_ld64(cpu, SEG_NONE, 0xc0403020, &v), CPU_OK);
    assert_int_equal(v, 5);
    assert_true(*pte == (0x6000 | P | RW | NX | A));
    *pde = 0x200000 | P | RW | PS;
    assert_int_equal(mem_st64(cpu, SEG_NONE, 0xc0900008, 9), CPU_OK);
    assert_int_equal(*word(vm, 0x300008), 9);
    assert_int_equal(*pde, 0x200000 | P | RW | PS | A | D);
    assert_pf(cpu, mem_ld64(cpu, SEG_NONE, 0x1000, &v), 0x1000, 0); /* PDPTE 0 is not present */
    for (unsigned bit = 52; bit < 63; bit++) {
        *pte = 0x6000 | P | RW | 1ull << bit;
        vm_flush(cpu);
        assert_pf(cpu, mem_ld64(cpu, SEG_NONE, 0xc0403020, &v), 0xc0403020, PF_P | PF_RS);
    }
}

static void legacy_pages(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t pd = vm_table(vm);
    uint32_t *pte = vm_pte32(vm, pd, 0x08049000, 0, P | RW | US), *pde = vm_pte32(vm, pd, 0xc0000000, 1, 0);
    uint64_t v;

    cpu->s.cr0 |= CR0_PG | CR0_WP;
    cpu->s.cr3 = pd;
    vm_changed(cpu);
    *pte = 0x7000 | P | RW;
    *word(vm, 0x7008) = 77;
    assert_int_equal(mem_ld64(cpu, SEG_NONE, 0x08049008, &v), CPU_OK);
    assert_int_equal(v, 77);
    assert_int_equal(*pte, 0x7000 | P | RW | A);
    assert_int_equal(mem_st16(cpu, SEG_NONE, 0x08049008, 1), CPU_OK);
    assert_int_equal(*pte, 0x7000 | P | RW | A | D);
    *pde = 0x400000 | P | RW | PS; /* CR4.PSE off: PS is ignored, it names a table at 4 MB */
    assert_pf(cpu, mem_ld64(cpu, SEG_NONE, 0xc0000000, &v), 0xc0000000, 0);
    cpu->s.cr4 = CR4_PSE;
    vm_changed(cpu);
    *word(vm, 0x7fff00) = 78;
    assert_int_equal(mem_ld64(cpu, SEG_NONE, 0xc03fff00, &v), CPU_OK);
    assert_int_equal(v, 78);
    /* PSE-36: bits 20:13 are address bits 39:32; bit 21 is reserved */
    *pde = 0x400000 | P | RW | PS | 1u << 13;
    vm_flush(cpu);
    assert_ept_exit(cpu, mem_ld64(cpu, SEG_NONE, 0xc0000008, &v), EXIT_REASON_EPT_VIOLATION,
                    EPTQ_READ | EPTQ_GLA_VALID | EPTQ_GLA_XLAT, 0x100400008);
    *pde = 0x400000 | P | RW | PS | 1u << 21;
    assert_pf(cpu, mem_ld64(cpu, SEG_NONE, 0xc0000008, &v), 0xc0000008, PF_P | PF_RS);
}

/* SDM 3A, "Determination of Access Rights", as sentences. */
struct rights {
    bool us, rw, nx, wp, smep, smap, ac, nxe;
    unsigned cpl, acc, flags;
};

static bool oracle(const struct rights *r, uint32_t *error)
{
    const bool user = (r->flags & ACCF_SUPER) ? false : r->cpl == 3;
    bool ok;

    if (r->acc == ACC_EXEC) {
        ok = user ? r->us : !(r->us && r->smep);
        ok = ok && !(r->nx && r->nxe);
    } else if (user) {
        ok = r->us && (r->rw || r->acc != ACC_WRITE);
    } else {
        ok = r->rw || r->acc != ACC_WRITE || !r->wp;
        if (r->us && r->smap && (!r->ac || (r->flags & ACCF_SUPER)))
            ok = false;
    }
    *error = PF_P | (r->acc == ACC_WRITE ? PF_W : 0) | (user ? PF_U : 0) |
             (r->acc == ACC_EXEC && (r->smep || r->nxe) ? PF_I : 0);
    return ok;
}

static int try_access(struct cpu *cpu, const struct rights *r)
{
    uint64_t v = 0;
    hva_t page;

    if (r->acc == ACC_EXEC)
        return mem_exec_page(cpu, VA, &page);
    if (r->acc == ACC_WRITE)
        return mem_write(cpu, SEG_NONE, VA, &v, 8, r->flags);
    return mem_read(cpu, SEG_NONE, VA, &v, 8, r->flags);
}

static void permission_matrix(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = vm_table(vm);
    unsigned allowed = 0, denied = 0;

    for (unsigned i = 0; i < 1u << 12; i++) {
        struct rights r = {i & 1, i & 2, i & 4, i & 8, i & 16, i & 32, i & 64, i & 128};
        const int level = i >> 9 & 3; /* which entry takes the right away */
        uint64_t *e, deny, error_want;
        uint32_t error;

        r.cpl = i & 256 ? 3 : 0;
        r.flags = (i >> 11) && r.cpl == 0 ? ACCF_SUPER : 0;
        if (r.nx && !r.nxe)
            continue; /* reserved */
        memset(vm->ram + root, 0, PAGE_SIZE);
        vm->table_gpa = root + PAGE_SIZE;
        *vm_pte(vm, root, 3, VA, 0, P | RW | US) = 0x5000 | P | RW | US;
        e = vm_pte(vm, root, 3, VA, level, 0);
        deny = (r.us ? 0 : US) | (r.rw ? 0 : RW);
        *e = (*e & ~deny) | (r.nx ? NX : 0);
        vm_mode64(cpu, root, r.cpl);
        cpu->s.cr0 = (cpu->s.cr0 & ~CR0_WP) | (r.wp ? CR0_WP : 0);
        cpu->s.cr4 |= (r.smep ? CR4_SMEP : 0) | (r.smap ? CR4_SMAP : 0);
        cpu->s.efer &= r.nxe ? ~0ull : ~EFER_NXE;
        cpu->s.rflags_sys = F_RESERVED | (r.ac ? F_AC : 0);
        for (unsigned a = 0; a < 6; a++) { /* twice: the second time from what the first has cached */
            r.acc = 1u << a % 3;
            if (a == 0) {
                vm_changed(cpu);
                tlb_flush(cpu, TLB_ALL, 0, 0, 0);
            }
            if (oracle(&r, &error)) {
                assert_int_equal(try_access(cpu, &r), CPU_OK);
                allowed++;
            } else {
                error_want = error;
                assert_pf(cpu, try_access(cpu, &r), VA, error_want);
                denied++;
            }
        }
    }
    assert_true(allowed > 5000 && denied > 5000);
}

static void ept_final_access(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = vm_table(vm);
    hva_t page;
    uint64_t v;

    vm_mode64(cpu, root, 0);
    *vm_pte(vm, root, 3, VA, 0, P | RW) = 0x5000 | P | RW;
    vm_ept_map(vm, 0x5000, (hva_t)vm->ram + 0x5000, EPT_R, 0);
    assert_int_equal(mem_ld64(cpu, SEG_NONE, VA + 8, &v), CPU_OK);
    assert_ept_exit(cpu, mem_st64(cpu, SEG_NONE, VA + 8, v), EXIT_REASON_EPT_VIOLATION,
                    EPTQ_WRITE | EPTQ_ENT_READ | EPTQ_GLA_VALID | EPTQ_GLA_XLAT, 0x5008);
    assert_true(cpu->exit.linear == VA + 8);
    assert_ept_exit(cpu, mem_exec_page(cpu, VA + 8, &page), EXIT_REASON_EPT_VIOLATION,
                    EPTQ_EXEC | EPTQ_ENT_READ | EPTQ_GLA_VALID | EPTQ_GLA_XLAT, 0x5008);
    vm_ept_map(vm, 0x5000, (hva_t)vm->ram + 0x5000, EPT_R | EPT_W, 0); /* more rights need no INVEPT */
    assert_int_equal(mem_st64(cpu, SEG_NONE, VA + 8, v), CPU_OK);
    *vm_ept_entry(vm, 0x5000, 0) = 0;
    vm_flush(cpu);
    assert_ept_exit(cpu, mem_ld64(cpu, SEG_NONE, VA + 8, &v), EXIT_REASON_EPT_VIOLATION,
                    EPTQ_READ | EPTQ_GLA_VALID | EPTQ_GLA_XLAT, 0x5008);
    vm_ept_map(vm, 0x5000, (hva_t)vm->ram + 0x5000, EPT_X, 0);
    assert_int_equal(mem_exec_page(cpu, VA, &page), CPU_OK);
    assert_true(page == (hva_t)vm->ram + 0x5000);
    assert_ept_exit(cpu, mem_ld64(cpu, SEG_NONE, VA + 8, &v), EXIT_REASON_EPT_VIOLATION,
                    EPTQ_READ | EPTQ_ENT_EXEC | EPTQ_GLA_VALID | EPTQ_GLA_XLAT, 0x5008);
}

static void ept_structure_access(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = vm_table(vm);
    uint64_t *pte = vm_pte(vm, root, 3, VA, 0, P | RW | A), v;
    const gpa_t pte_gpa = (uint8_t *)pte - vm->ram, table = pte_gpa & PAGE_MASK;

    vm_mode64(cpu, root, 0);
    *pte = 0x5000 | P | RW | A;
    *vm_ept_entry(vm, table, 0) = 0;
    vm_flush(cpu);
    assert_ept_exit(cpu, mem_ld64(cpu, SEG_NONE, VA, &v), EXIT_REASON_EPT_VIOLATION, EPTQ_READ | EPTQ_GLA_VALID,
                    pte_gpa);
    /* read-only: reading works, setting A or D is a write */
    vm_ept_map(vm, table, (hva_t)vm->ram + table, EPT_R | EPT_X, 0);
    assert_int_equal(mem_ld64(cpu, SEG_NONE, VA, &v), CPU_OK);
    assert_ept_exit(cpu, mem_st64(cpu, SEG_NONE, VA, 0), EXIT_REASON_EPT_VIOLATION,
                    EPTQ_WRITE | EPTQ_ENT_READ | EPTQ_ENT_EXEC | EPTQ_GLA_VALID, pte_gpa);
    assert_int_equal(*pte, 0x5000 | P | RW | A);
    /* with EPT A/D flags the read itself counts as a write, and the exit says both */
    vm->vmcs.EPT_POINTER |= EPTP_AD;
    vm_changed(cpu);
    assert_ept_exit(cpu, mem_ld64(cpu, SEG_NONE, VA, &v), EXIT_REASON_EPT_VIOLATION,
                    EPTQ_READ | EPTQ_WRITE | EPTQ_ENT_READ | EPTQ_ENT_EXEC | EPTQ_GLA_VALID, pte_gpa);
}

static void ept_accessed_dirty(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    uint64_t *leaf = vm_ept_entry(vm, 0x5000, 0), v;

    assert_int_equal(mem_ld64(cpu, SEG_NONE, 0x5000, &v), CPU_OK);
    assert_false(*leaf & (EPT_ACCESSED | EPT_DIRTY));
    vm->vmcs.EPT_POINTER |= EPTP_AD;
    vm_changed(cpu);
    assert_int_equal(mem_ld64(cpu, SEG_NONE, 0x5000, &v), CPU_OK);
    assert_int_equal(*leaf & (EPT_ACCESSED | EPT_DIRTY), EPT_ACCESSED);
    assert_true(*vm_ept_entry(vm, 0x5000, 3) & EPT_ACCESSED);
    assert_int_equal(mem_st64(cpu, SEG_NONE, 0x5000, v), CPU_OK);
    assert_int_equal(*leaf & (EPT_ACCESSED | EPT_DIRTY), EPT_ACCESSED | EPT_DIRTY);
}

static void ept_misconfigurations(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const uint64_t rwx = EPT_R | EPT_W | EPT_X, at = (uint64_t)vm->ram & ~0x3fffffffull;
    const struct {
        int level;
        uint64_t value;
    } rows[] = {
        {0, EPT_W | EPT_MEMTYPE_WB},
        {0, EPT_W | EPT_X | EPT_MEMTYPE_WB}, /* KVM's mark of MMIO */
        {0, rwx | 2 << 3},
        {0, rwx | 3 << 3},
        {0, rwx | 7 << 3},
        {1, rwx | EPT_LARGE | EPT_MEMTYPE_WB | 0x1000},
        {2, rwx | EPT_LARGE | EPT_MEMTYPE_WB | 0x200000},
        {1, rwx | 0x08},
        {2, rwx | 0x40},
        {3, rwx | EPT_LARGE},
    };
    uint64_t v;

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        uint64_t *e = vm_ept_entry(vm, 0x5000, rows[i].level), old = *e;

        *e = rows[i].value | (rows[i].value & EPT_LARGE ? at : old & PHYS_MASK);
        vm_flush(cpu);
        assert_ept_exit(cpu, mem_ld64(cpu, SEG_NONE, 0x5010, &v), EXIT_REASON_EPT_MISCONFIG, 0, 0x5010);
        *e = old;
    }
    assert_int_equal(mem_ld64(cpu, SEG_NONE, 0x5010, &v), CPU_OK);
}

static void ept_large_pages(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const hva_t aligned = ((hva_t)vm->ram + 0x1fffff) & ~0x1fffffull;
    uint64_t v;

    vm_ept_map(vm, 0x40000000, aligned, EPT_R | EPT_W, 1);
    *(uint64_t *)(aligned + 0x123450) = 99;
    assert_int_equal(mem_ld64(cpu, SEG_NONE, 0x40123450, &v), CPU_OK);
    assert_int_equal(v, 99);
    vm_ept_map(vm, 0x80000000, aligned & ~0x3fffffffull, EPT_R | EPT_W, 2);
    assert_int_equal(mem_ld64(cpu, SEG_NONE, 0x80000000 + (aligned & 0x3fffffff) + 0x123450, &v), CPU_OK);
    assert_int_equal(v, 99);
}

/* EPT off: tables and pages are addresses of this process (shadow paging by the hypervisor). */
static void shadow_paging(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const uint64_t ram = (uint64_t)vm->ram;
    uint64_t *pml4 = (uint64_t *)vm->ram, v;

    memset(vm->ram, 0, 4 * PAGE_SIZE);
    pml4[0] = (ram + 0x1000) | P | RW;
    pml4[512 + (VA >> 30)] = (ram + 0x2000) | P | RW;
    pml4[1024 + (VA >> 21 & 511)] = (ram + 0x3000) | P | RW;
    pml4[1536 + (VA >> 12 & 511)] = (ram + 0x5000) | P | RW;
    *word(vm, 0x5000) = 1234;
    vm->vmx[0].level[0].exec2 &= ~CPU2_ENABLE_EPT;
    vm_mode64(cpu, ram, 0);
    assert_int_equal(mem_ld64(cpu, SEG_NONE, VA, &v), CPU_OK);
    assert_int_equal(v, 1234);
    assert_int_equal(cpu_guest_phys(cpu, ram + 0x5000, 8, ACC_READ), ram + 0x5000);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(no_paging),
        T(long_mode_pages),
        T(large_pages),
        T(reserved_bits),
        T(pae_pages),
        T(legacy_pages),
        T(permission_matrix),
        T(ept_final_access),
        T(ept_structure_access),
        T(ept_accessed_dirty),
        T(ept_misconfigurations),
        T(ept_large_pages),
        T(shadow_paging),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
