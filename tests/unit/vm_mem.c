/* SPDX-License-Identifier: MIT
 * vm_mem.c: the small machine of the memory unit's tests. */
#include "test_mem.h"
#include <signal.h>

hva_t code_page, code_write_hva;
unsigned code_writes, code_fills, code_drops;

/* ---- the other rooms ---- */
bool __wrap_code_page_present(struct cpu_domain *d, hva_t page);
bool __wrap_code_page_present(struct cpu_domain *d, hva_t page)
{
    return page == __atomic_load_n(&code_page, __ATOMIC_SEQ_CST);
}

void __wrap_code_written(struct cpu *cpu, hva_t hva, unsigned size);
void __wrap_code_written(struct cpu *cpu, hva_t hva, unsigned size)
{
    code_writes++;
    code_write_hva = hva;
}

void __wrap_code_page_filled(struct cpu *cpu, gva_t gva, hva_t page);
void __wrap_code_page_filled(struct cpu *cpu, gva_t gva, hva_t page)
{
    code_fills++;
}

void __wrap_code_drop_host_range(struct cpu_domain *d, hva_t hva, size_t size);
void __wrap_code_drop_host_range(struct cpu_domain *d, hva_t hva, size_t size)
{
    code_drops++;
}

int __wrap_cpu_raise_err(struct cpu *cpu, unsigned vector, uint32_t error);
int __wrap_cpu_raise_err(struct cpu *cpu, unsigned vector, uint32_t error)
{
    cpu->pending = (struct event){.vector = (uint8_t)vector, .has_error = true, .valid = true, .error = error};
    return CPU_FAULT;
}

int __wrap_cpu_raise_pf(struct cpu *cpu, gva_t gva, uint32_t error);
int __wrap_cpu_raise_pf(struct cpu *cpu, gva_t gva, uint32_t error)
{
    __wrap_cpu_raise_err(cpu, VEC_PF, error);
    cpu->pending.payload = gva;
    return CPU_FAULT;
}

void __wrap_host_fpu_save(struct cpu *cpu);
void __wrap_host_fpu_save(struct cpu *cpu) {}

/* ---- the machine ---- */
static void *pages(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_true(p != MAP_FAILED);
    return p;
}

static void add_cpu(struct vm *vm, unsigned n)
{
    struct cpu *cpu = vm->cpu[n] =
        mmap(NULL, CPU_SPAN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0); /* as flat_init() wants it */

    assert_true(cpu != MAP_FAILED);
    cpu->id = n;
    cpu->domain = &vm->domain;
    cpu->vmx = &vm->vmx[n];
    vm->vmx[n] = (struct vmx_unit){
        .level[0] = {.cur = &vm->vmcs, .exec = CPU_SECONDARY_CONTROLS, .exec2 = CPU2_ENABLE_EPT | CPU2_ENABLE_VPID}};
    cpu->guest_maxphyaddr = 40;
    cpu->guest_ext1.edx = 1u << 26; /* 1 GB pages */
    cpu->in_guest_mode = true;
    assert_int_equal(mem_cpu_init(cpu), 0);
    for (unsigned i = 0; i < 6; i++)
        cpu->s.seg[i] = (struct segment){.limit = 0xffffffff, .attr = AR_P | AR_S | AR_G | AR_DB | 3};
    cpu->s.cr0 = CR0_PE | CR0_ET;
    cpu->s.mode = MODE_PROT32;
    cpu->s.rflags_sys = F_RESERVED;
    vm_changed(cpu);
}

/* cmocka takes SIGSEGV for each test: the processor's handlers go in front of it, as they do with any client's. */
static void on_fault(int sig, siginfo_t *si, void *uc)
{
    if (!host_fault(sig, si, uc))
        abort();
}

void vm_catch_faults(void)
{
    const struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};

    sigaction(SIGSEGV, &sa, NULL);
    sigaction(SIGBUS, &sa, NULL);
}

struct vm *vm_new(void)
{
    struct vm *vm = calloc(1, sizeof(*vm));

    host_init();
    code_page = code_write_hva = 0;
    code_writes = code_fills = code_drops = 0;
    vm->ram = pages(RAM_SIZE);
    vm->ept = pages(EPT_POOL);
    vm->ept_used = PAGE_SIZE;
    vm->table_gpa = 0x100000;
    assert_int_equal(mem_domain_init(&vm->domain), 0);
    vm->vmcs.EPT_POINTER = (uint64_t)vm->ept | EPTP_WB | EPTP_WALK4;
    vm->vmcs.VIRTUAL_PROCESSOR_ID = 1;
    for (gpa_t gpa = 0; gpa < RAM_SIZE; gpa += PAGE_SIZE)
        vm_ept_map(vm, gpa, (hva_t)vm->ram + gpa, EPT_R | EPT_W | EPT_X, 0);
    add_cpu(vm, 0);
    add_cpu(vm, 1);
    return vm;
}

void vm_free(struct vm *vm)
{
    for (unsigned i = 0; i < 2; i++) {
        mem_cpu_destroy(vm->cpu[i]);
        munmap(vm->cpu[i], CPU_SPAN);
    }
    mem_domain_destroy(&vm->domain);
    munmap(vm->ram, RAM_SIZE);
    munmap(vm->ept, EPT_POOL);
    free(vm);
}

uint64_t *vm_ept_entry(struct vm *vm, gpa_t gpa, int level)
{
    uint64_t *table = (uint64_t *)vm->ept;

    for (int l = 3; l > level; l--) {
        uint64_t *e = &table[gpa >> (12 + 9 * l) & 511];

        if (!*e) {
            assert_true(vm->ept_used < EPT_POOL);
            *e = ((uint64_t)vm->ept + vm->ept_used) | EPT_R | EPT_W | EPT_X;
            vm->ept_used += PAGE_SIZE;
        }
        table = (uint64_t *)(*e & PHYS_MASK);
    }
    return &table[gpa >> (12 + 9 * level) & 511];
}

void vm_ept_map(struct vm *vm, gpa_t gpa, hva_t hva, uint64_t flags, int level)
{
    *vm_ept_entry(vm, gpa, level) = hva | flags | EPT_MEMTYPE_WB | (level ? EPT_LARGE : 0);
}

gpa_t vm_table(struct vm *vm)
{
    const gpa_t gpa = vm->table_gpa;

    vm->table_gpa += PAGE_SIZE;
    memset(vm->ram + gpa, 0, PAGE_SIZE);
    return gpa;
}

uint64_t *vm_pte(struct vm *vm, gpa_t root, int top, gva_t gva, int level, uint64_t flags)
{
    gpa_t table = root;

    for (int l = top; l > level; l--) {
        uint64_t *e = (uint64_t *)(vm->ram + table) + (gva >> (12 + 9 * l) & 511);

        if (!(*e & P))
            *e = vm_table(vm) | flags;
        table = *e & PHYS_MASK;
    }
    return (uint64_t *)(vm->ram + table) + (gva >> (12 + 9 * level) & 511);
}

uint32_t *vm_pte32(struct vm *vm, gpa_t root, gva_t gva, int level, uint32_t flags)
{
    uint32_t *pde = (uint32_t *)(vm->ram + root) + (gva >> 22);

    if (level)
        return pde;
    if (!(*pde & P))
        *pde = (uint32_t)vm_table(vm) | flags;
    return (uint32_t *)(vm->ram + (*pde & 0xfffff000)) + (gva >> 12 & 1023);
}

void vm_changed(struct cpu *cpu)
{
    struct cpu_state *s = &cpu->s;

    if (s->mode != MODE_V86 && s->mode != MODE_REAL)
        s->mode = s->efer & EFER_LMA ? MODE_64 : MODE_PROT32;
    s->acc_mode = s->cpl == 3 ? AM_USER : s->cr4 & CR4_SMAP && !(s->rflags_sys & F_AC) ? AM_SUPER : AM_SUPER_USER;
    s->paging = !(s->cr0 & CR0_PG)    ? PAGING_NONE
                : !(s->cr4 & CR4_PAE) ? PAGING_32
                : s->efer & EFER_LMA  ? PAGING_4LEVEL
                                      : PAGING_PAE;
    s->ip_mask = s->mode == MODE_64 ? ~0ull : 0xffffffff;
    s->seg_flat = 0;
    tlb_select(cpu);
}

void vm_mode64(struct cpu *cpu, gpa_t cr3, unsigned cpl)
{
    cpu->s.cr0 = CR0_PE | CR0_ET | CR0_PG | CR0_WP;
    cpu->s.cr4 = CR4_PAE | CR4_PGE;
    cpu->s.efer = EFER_LME | EFER_LMA | EFER_NXE;
    cpu->s.cr3 = cr3;
    cpu->s.cpl = (uint8_t)cpl;
    vm_changed(cpu);
}

void vm_flush(struct cpu *cpu)
{
    tlb_flush(cpu, TLB_ALL, 0, 0, 0);
}
