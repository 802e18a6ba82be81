/* SPDX-License-Identifier: MIT
 * test_mem_access.c: accesses (segments, crossing, host memory that is gone), what flushes drop, code pages and the
 * handshake between threads, MMIO with replay. */
#include "test_mem.h"
#include "insn/insn.h"
#include <pthread.h>
#include <unistd.h>

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

/* Two pages at VA, scattered in memory, writable, in cpu's space. */
static gpa_t two_pages(struct vm *vm, struct cpu *cpu)
{
    const gpa_t root = vm_table(vm);

    *vm_pte(vm, root, 3, VA, 0, P | RW | US) = 0x9000 | P | RW | US;
    *vm_pte(vm, root, 3, VA + 0x1000, 0, P | RW | US) = 0x5000 | P | RW | US;
    vm_mode64(cpu, root, 0);
    return root;
}

/* ---- accesses ---- */

static void crossing(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = two_pages(vm, cpu);
    uint64_t v;
    uint8_t wide[64], back[64];

    for (unsigned off = 0xff9; off < 0x1000; off++) {
        assert_int_equal(mem_st64(cpu, SEG_NONE, VA + off, 0x0102030405060708ull * off), CPU_OK);
        assert_int_equal(mem_ld64(cpu, SEG_NONE, VA + off, &v), CPU_OK);
        assert_true(v == 0x0102030405060708ull * off);
        assert_memory_equal(vm->ram + 0x9000 + off, &v, 0x1000 - off);
        assert_memory_equal(vm->ram + 0x5000, (uint8_t *)&v + 0x1000 - off, off - 0xff8);
    }
    for (unsigned i = 0; i < 64; i++)
        wide[i] = (uint8_t)(i * 7 + 1);
    assert_int_equal(mem_write(cpu, SEG_NONE, VA + 0xfe1, wide, 64, ACC_WRITE), CPU_OK);
    assert_int_equal(mem_read(cpu, SEG_NONE, VA + 0xfe1, back, 64, ACC_READ), CPU_OK);
    assert_memory_equal(wide, back, 64);
    /* the second page refuses: nothing of the first is written, the address is the second page's */
    *vm_pte(vm, root, 3, VA + 0x1000, 0, 0) = 0x5000 | P | US;
    tlb_flush(cpu, TLB_PAGE, 1, 0, VA + 0x1000);
    memset(vm->ram + 0x9ff0, 0xaa, 16);
    assert_pf(cpu, mem_st64(cpu, SEG_NONE, VA + 0xffc, 0), VA + 0x1000, PF_P | PF_W);
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(vm->ram[0x9ff0 + i], 0xaa);
    assert_int_equal(mem_ld64(cpu, SEG_NONE, VA + 0xffc, &v), CPU_OK);
    *vm_pte(vm, root, 3, VA + 0x1000, 0, 0) = 0;
    tlb_flush(cpu, TLB_PAGE, 1, 0, VA + 0x1000);
    assert_pf(cpu, mem_ld64(cpu, SEG_NONE, VA + 0xffc, &v), VA + 0x1000, 0);
}

static void non_canonical(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    struct rmw r;
    uint64_t v;
    hva_t page;

    two_pages(vm, cpu);
    assert_int_equal(mem_st64(cpu, SEG_NONE, VA, 1), CPU_OK);
    assert_int_equal(mem_exec_page(cpu, VA, &page), CPU_OK);
    for (unsigned top = 1; top < 1u << 17; top++) { /* every top of an address whose page is cached, bit 47 too */
        const gva_t gva = VA | (uint64_t)top << 47;

        if (top == 0x1ffff) /* the upper half, where nothing is mapped */
            assert_pf(cpu, mem_ld64(cpu, SEG_DS, gva, &v), gva, 0);
        else
            assert_int_equal(mem_ld64(cpu, SEG_DS, gva, &v), CPU_FAULT);
        if (top != 0x1ffff)
            assert_int_equal(cpu->pending.vector, VEC_GP);
        assert_int_equal(mem_st8(cpu, SEG_DS, gva, 1), CPU_FAULT);
        assert_int_equal(mem_rmw_begin(cpu, SEG_DS, gva, 4, ACC_WRITE, &r), CPU_FAULT);
        assert_int_equal(mem_exec_page(cpu, gva, &page), CPU_FAULT);
    }
    assert_int_equal(mem_st64(cpu, SEG_SS, 0x7ffffffffffc, 0), CPU_FAULT);
    assert_int_equal(cpu->pending.vector, VEC_SS);
    assert_int_equal(mem_exec_page(cpu, 0x800000000000, &page), CPU_FAULT);
    assert_int_equal(cpu->pending.vector, VEC_GP);
    cpu->s.seg[SEG_GS].base = VA;
    assert_int_equal(mem_ld64(cpu, SEG_GS, 8, &v), CPU_OK);
}

static void segments(void **state)
{
    struct cpu *cpu = ((struct vm *)*state)->cpu[0];
    struct segment *ds = &cpu->s.seg[SEG_DS], *ss = &cpu->s.seg[SEG_SS];
    uint32_t v;

    *ds = (struct segment){.base = 0x2000, .limit = 0xfff, .attr = AR_P | AR_S | AR_DB | 3};
    assert_int_equal(mem_st32(cpu, SEG_DS, 0xffc, 5), CPU_OK);
    assert_int_equal(*(uint32_t *)(((struct vm *)*state)->ram + 0x2ffc), 5);
    assert_int_equal(mem_st32(cpu, SEG_DS, 0xffd, 5), CPU_FAULT);
    assert_int_equal(cpu->pending.vector, VEC_GP);
    ds->attr = AR_P | AR_S | AR_DB | 1; /* read-only */
    assert_int_equal(mem_ld32(cpu, SEG_DS, 0, &v), CPU_OK);
    assert_int_equal(mem_st32(cpu, SEG_DS, 0, 5), CPU_FAULT);
    ds->attr = AR_P | AR_S | AR_DB | 9; /* execute-only code */
    assert_int_equal(mem_ld32(cpu, SEG_DS, 0, &v), CPU_FAULT);
    ds->attr = AR_UNUSABLE;
    assert_int_equal(mem_ld32(cpu, SEG_DS, 0, &v), CPU_FAULT);
    *ss = (struct segment){.base = 0x2000, .limit = 0xfff, .attr = AR_P | AR_S | AR_DB | 7}; /* expand-down */
    assert_int_equal(mem_ld32(cpu, SEG_SS, 0xfff, &v), CPU_FAULT);
    assert_int_equal(cpu->pending.vector, VEC_SS);
    assert_int_equal(mem_ld32(cpu, SEG_SS, 0x1000, &v), CPU_OK);
    assert_int_equal(mem_ld32(cpu, SEG_SS, 0xfffffffe, &v), CPU_FAULT);
}

static void alignment_check(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    uint64_t v;

    vm_mode64(cpu, two_pages(vm, cpu), 3);
    assert_int_equal(mem_ld64(cpu, SEG_NONE, VA + 4, &v), CPU_OK);
    cpu->s.cr0 |= CR0_AM;
    cpu->s.rflags_sys |= F_AC;
    vm_changed(cpu);
    assert_int_equal(mem_ld64(cpu, SEG_NONE, VA + 8, &v), CPU_OK);
    assert_int_equal(mem_ld64(cpu, SEG_NONE, VA + 4, &v), CPU_FAULT);
    assert_int_equal(cpu->pending.vector, VEC_AC);
    assert_int_equal(mem_ld8(cpu, SEG_NONE, VA + 5, (uint8_t *)&v), CPU_OK);
    assert_int_equal(mem_read(cpu, SEG_NONE, VA + 4, &v, 8, ACC_READ | ACCF_SUPER), CPU_OK);
}

static void data_breakpoint(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    uint64_t v;

    two_pages(vm, cpu);
    assert_int_equal(mem_ld64(cpu, SEG_NONE, VA, &v), CPU_OK);
    cpu->s.dr[1] = VA + 8;
    cpu->s.dr7 = DR7_FIXED | 1 << 2 | 1u << 20 | 3u << 22; /* L1, write, 4 bytes */
    vm_changed(cpu);
    assert_int_equal(mem_st64(cpu, SEG_NONE, VA, 1), CPU_OK);
    assert_int_equal(cpu->data_hits, 0);
    assert_int_equal(mem_ld64(cpu, SEG_NONE, VA + 8, &v), CPU_OK);
    assert_int_equal(cpu->data_hits, 0);
    assert_int_equal(mem_st8(cpu, SEG_NONE, VA + 11, 1), CPU_OK);
    assert_int_equal(cpu->data_hits, 2);
}

static void host_memory_gone(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    void *area = mmap(NULL, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t v;
    uint8_t buf[4];
    unsigned got;

    vm_catch_faults();
    two_pages(vm, cpu);
    vm_ept_map(vm, 0x9000, (hva_t)area, EPT_R | EPT_W | EPT_X, 0);
    vm_flush(cpu);
    assert_int_equal(mem_st64(cpu, SEG_NONE, VA + 8, 1), CPU_OK);
    assert_int_equal(mem_fetch(cpu, VA, buf, 4, &got), CPU_OK);
    munmap(area, 2 * PAGE_SIZE); /* without telling anybody */
    assert_ept_exit(cpu, mem_ld64(cpu, SEG_NONE, VA + 8, &v), EXIT_REASON_EPT_VIOLATION,
                    EPTQ_READ | EPTQ_GLA_VALID | EPTQ_GLA_XLAT, 0x9008);
    assert_ept_exit(cpu, mem_st32(cpu, SEG_NONE, VA + 8, 0), EXIT_REASON_EPT_VIOLATION,
                    EPTQ_WRITE | EPTQ_GLA_VALID | EPTQ_GLA_XLAT, 0x9008);
    assert_ept_exit(cpu, mem_fetch(cpu, VA, buf, 4, &got), EXIT_REASON_EPT_VIOLATION,
                    EPTQ_EXEC | EPTQ_GLA_VALID | EPTQ_GLA_XLAT, 0x9000);
    assert_int_equal(host_copy(buf, area, 4), -1);
    assert_int_equal(host_set(area, 0, 4), -1);
    assert_int_equal(host_cmpxchg64(area, &v, 1), -1);
}

static void rmw_and_chunks(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = two_pages(vm, cpu);
    struct rmw r;
    void *p;
    size_t len;

    assert_int_equal(mem_rmw_begin(cpu, SEG_NONE, VA + 16, 8, ACC_READ | ACC_WRITE, &r), CPU_OK);
    assert_ptr_equal(r.ptr, vm->ram + 0x9010);
    assert_int_equal(mem_rmw_end(cpu, &r), CPU_OK);
    *(uint64_t *)(vm->ram + 0x9ffc) = 100;
    assert_int_equal(mem_rmw_begin(cpu, SEG_NONE, VA + 0xffc, 8, ACC_READ | ACC_WRITE | ACCF_LOCK, &r), CPU_OK);
    assert_true(r.bounce && r.exclusive);
    assert_int_equal((uintptr_t)r.ptr & 63, 0x3c);
    *(uint32_t *)r.ptr += 11;
    assert_int_equal(mem_rmw_end(cpu, &r), CPU_OK);
    assert_int_equal(*(uint32_t *)(vm->ram + 0x9ffc), 111);
    assert_null(atomic_load(&vm->domain.mem->exclusive));
    /* read-only: faults as a write, before anything is read */
    *vm_pte(vm, root, 3, VA, 0, 0) = 0x9000 | P;
    vm_flush(cpu);
    assert_pf(cpu, mem_rmw_begin(cpu, SEG_NONE, VA + 16, 8, ACC_READ | ACC_WRITE, &r), VA + 16, PF_P | PF_W);
    assert_int_equal(mem_chunk(cpu, SEG_NONE, VA + 0x123, ACC_READ, &p, &len), CPU_OK);
    assert_ptr_equal(p, vm->ram + 0x9123);
    assert_int_equal(len, 0x1000 - 0x123);
    assert_pf(cpu, mem_chunk(cpu, SEG_NONE, VA + 0x123, ACC_WRITE, &p, &len), VA + 0x123, PF_P | PF_W);
}

static void fetching(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = two_pages(vm, cpu);
    uint8_t buf[15];
    unsigned got;

    for (unsigned i = 0; i < 15; i++)
        *(i < 5 ? vm->ram + 0x9ffb + i : vm->ram + 0x5000 + i - 5) = (uint8_t)(i + 1);
    assert_int_equal(mem_fetch(cpu, VA + 0xffb, buf, 15, &got), CPU_OK);
    assert_int_equal(got, 15);
    for (unsigned i = 0; i < 15; i++)
        assert_int_equal(buf[i], i + 1);
    assert_int_equal(code_fills, 2);
    *vm_pte(vm, root, 3, VA + 0x1000, 0, 0) |= NX;
    vm_flush(cpu);
    assert_int_equal(mem_fetch(cpu, VA + 0xffb, buf, 15, &got), CPU_OK);
    assert_int_equal(got, 5);
    assert_pf(cpu, mem_fetch(cpu, VA + 0x1000, buf, 15, &got), VA + 0x1000, PF_P | PF_I);
    assert_int_equal(got, 0);
}

/* ---- flushes ---- */

/* Does the cpu still use what it has cached for VA? The tables say 0x5000 meanwhile. */
static bool still_cached(struct vm *vm, struct cpu *cpu)
{
    uint64_t v;

    *(uint64_t *)(vm->ram + 0x9000) = 9;
    *(uint64_t *)(vm->ram + 0x5000) = 5;
    assert_int_equal(mem_ld64(cpu, SEG_NONE, VA, &v), CPU_OK);
    return v == 9;
}

static void prime(struct vm *vm, struct cpu *cpu, uint64_t *pte)
{
    *pte = 0x9000 | P | RW | US;
    vm_flush(cpu);
    assert_true(still_cached(vm, cpu));
    *pte = 0x5000 | P | RW | US;
    assert_true(still_cached(vm, cpu)); /* a stale entry is the proof that it was cached */
}

static void flush_scopes(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = two_pages(vm, cpu);
    uint64_t *pte = vm_pte(vm, root, 3, VA, 0, 0);

    cpu->s.cr4 |= CR4_PCIDE;
    cpu->s.cr3 = root | 7;
    vm_changed(cpu);
    prime(vm, cpu, pte);
    tlb_flush(cpu, TLB_PCID, 1, 8, 0);
    assert_true(still_cached(vm, cpu));
    tlb_flush(cpu, TLB_PCID, 2, 7, 0);
    assert_true(still_cached(vm, cpu));
    tlb_flush(cpu, TLB_PCID, 1, 7, 0);
    assert_false(still_cached(vm, cpu));
    prime(vm, cpu, pte);
    tlb_flush(cpu, TLB_PAGE, 1, 7, VA + 0x1000);
    assert_true(still_cached(vm, cpu));
    tlb_flush(cpu, TLB_PAGE, 1, 7, VA + 0xfff);
    assert_false(still_cached(vm, cpu));
    prime(vm, cpu, pte);
    tlb_flush(cpu, TLB_VPID, 2, 0, 0);
    assert_true(still_cached(vm, cpu));
    tlb_flush(cpu, TLB_VPID, 1, 0, 0);
    assert_false(still_cached(vm, cpu));
    prime(vm, cpu, pte);
    cpu->s.cr3 = root | 8; /* another PCID sees nothing of it, and the first still has it when it comes back */
    vm_changed(cpu);
    assert_false(still_cached(vm, cpu));
    cpu->s.cr3 = root | 7;
    vm_changed(cpu);
    prime(vm, cpu, pte);
    vm->vmcs.VIRTUAL_PROCESSOR_ID = 2;
    vm_changed(cpu);
    assert_false(still_cached(vm, cpu));
    vm->vmcs.VIRTUAL_PROCESSOR_ID = 1;
    vm_changed(cpu);
    cpu->s.cpl = 3; /* other rights, other tags */
    vm_changed(cpu);
    assert_false(still_cached(vm, cpu));
}

static void generations_run_out(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    uint64_t *pte = vm_pte(vm, two_pages(vm, cpu), 3, VA, 0, 0);

    for (unsigned i = 0; i < 3000; i++) {
        *pte = (i & 1 ? 0x9000 : 0x5000) | P | RW;
        tlb_flush(cpu, TLB_PCID, 1, 0, 0);
        assert_int_equal(still_cached(vm, cpu), i & 1);
        assert_true((cpu->tlb_tag & 0xfff) == cpu->tlb_tag && cpu->tlb_tag && cpu->tlb_tag != TLB_TAG_SLOW);
    }
}

static void invlpg_of_large_and_global(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = vm_table(vm);
    uint64_t *pde = vm_pte(vm, root, 3, 0x40400000, 1, P | RW), *pdpte = vm_pte(vm, root, 3, 0x80000000, 2, P | RW), v;
    const uint64_t sizes[] = {1ull << 21, 1ull << 30}, bases[] = {0x40400000, 0x80000000};

    vm_mode64(cpu, root, 0);
    cpu->s.cr4 |= CR4_PCIDE;
    cpu->s.cr3 = root | 1;
    for (unsigned i = 0; i < 2; i++) {
        uint64_t *e = i ? pdpte : pde;

        *e = 0 | P | RW | PS | G;
        vm_changed(cpu);
        assert_int_equal(mem_ld64(cpu, SEG_NONE, bases[i] + 0x1000, &v), CPU_OK);
        assert_int_equal(mem_ld64(cpu, SEG_NONE, bases[i] + 0x5000, &v), CPU_OK);
        cpu->s.cr3 = root | 2;
        vm_changed(cpu);
        assert_int_equal(mem_ld64(cpu, SEG_NONE, bases[i] + 0x5000, &v), CPU_OK);
        *e = 0;
        tlb_flush(cpu, TLB_PAGE, 1, 2, bases[i] + sizes[i] / 2 + 0x1234);
        assert_int_equal(mem_ld64(cpu, SEG_NONE, bases[i] + 0x5000, &v), CPU_FAULT);
        cpu->s.cr3 = root | 1; /* global: gone in the other PCID as well */
        vm_changed(cpu);
        assert_int_equal(mem_ld64(cpu, SEG_NONE, bases[i] + 0x5000, &v), CPU_FAULT);
        assert_int_equal(mem_ld64(cpu, SEG_NONE, bases[i] + 0x1000, &v), CPU_FAULT);
    }
}

/* A cached table must not outlive an INVLPG of any address, nor hide more rights after a fault. */
static void paging_structure_cache(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = two_pages(vm, cpu), other = vm_table(vm);
    uint64_t *pde = vm_pte(vm, root, 3, VA, 1, 0), v;

    assert_true(still_cached(vm, cpu));
    ((uint64_t *)(vm->ram + other))[(VA >> 12 & 511) + 2] = 0x5000 | P | RW;
    *pde = other | P | RW | US;
    assert_int_equal(mem_ld64(cpu, SEG_NONE, VA + 0x2000, &v), CPU_OK); /* the old table says no: walked anew */
    assert_int_equal(v, 5);
    *pde = (*pde & ~PHYS_MASK) | vm_table(vm);
    tlb_flush(cpu, TLB_PAGE, 1, 0, 0x12345000);
    assert_int_equal(mem_ld64(cpu, SEG_NONE, VA + 0x2000, &v), CPU_OK); /* its entry stays */
    tlb_flush(cpu, TLB_PAGE, 1, 0, VA + 0x2000);
    assert_pf(cpu, mem_ld64(cpu, SEG_NONE, VA + 0x2000, &v), VA + 0x2000, 0);
}

/* ---- code pages and other threads ---- */

static void code_page_writes(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    struct rmw r;

    two_pages(vm, cpu);
    assert_int_equal(mem_st64(cpu, SEG_NONE, VA + 8, 1), CPU_OK);
    assert_non_null(tlb_lookup(cpu, VA, 8, TLB_WRITE));
    code_page = (hva_t)vm->ram + 0x9000;
    mem_protect_host_page(&vm->domain, cpu, code_page);
    assert_null(tlb_lookup(cpu, VA, 8, TLB_WRITE));
    assert_non_null(tlb_lookup(cpu, VA, 8, TLB_READ));
    for (unsigned i = 1; i < 4; i++) {
        assert_int_equal(mem_st64(cpu, SEG_NONE, VA + 8 * i, i), CPU_OK);
        assert_int_equal(code_writes, i);
        assert_true(code_write_hva == code_page + 8 * i);
    }
    assert_null(tlb_lookup(cpu, VA, 8, TLB_WRITE));
    assert_int_equal(mem_rmw_begin(cpu, SEG_NONE, VA + 8, 8, ACC_READ | ACC_WRITE, &r), CPU_OK);
    assert_ptr_equal(r.ptr, vm->ram + 0x9008); /* memory itself: locked operations stay atomic */
    assert_int_equal(mem_rmw_end(cpu, &r), CPU_OK);
    assert_true(code_writes >= 5);
    code_page = 0;
    assert_int_equal(mem_st64(cpu, SEG_NONE, VA + 8, 1), CPU_OK);
    assert_non_null(tlb_lookup(cpu, VA, 8, TLB_WRITE));
}

struct runner {
    struct vm *vm;
    struct cpu *cpu;
    _Atomic bool stop;
    _Atomic uint64_t steps;
    int (*step)(struct runner *);
    uint64_t n;
};

/* A guest thread: steps, with a safepoint whenever attention asks. */
static void *guest_thread(void *arg)
{
    struct runner *r = arg;

    mem_guest_enter(r->cpu);
    while (!atomic_load(&r->stop)) {
        if (r->step(r))
            break;
        if (atomic_load(&r->cpu->attention) & (ATT_FLUSH | ATT_EPOCH))
            mem_poll(r->cpu);
        atomic_fetch_add(&r->steps, 1);
    }
    mem_guest_leave(r->cpu);
    return NULL;
}

static int count_up(struct runner *r)
{
    return mem_st64(r->cpu, SEG_NONE, VA, ++r->n) != CPU_OK;
}

static void wait_steps(struct runner *r, uint64_t n)
{
    const uint64_t from = atomic_load(&r->steps);

    while (atomic_load(&r->steps) < from + n)
        usleep(50);
}

/* After protect returns, each store of the other cpu is reported: the last value that went in unreported is older. */
static void protect_against_a_running_cpu(void **state)
{
    struct vm *vm = *state;
    struct runner r = {.vm = vm, .cpu = vm->cpu[1], .step = count_up};
    pthread_t t;

    two_pages(vm, vm->cpu[0]);
    vm_mode64(vm->cpu[1], vm->cpu[0]->s.cr3, 0);
    pthread_create(&t, NULL, guest_thread, &r);
    for (unsigned i = 0; i < 200; i++) {
        unsigned writes;

        wait_steps(&r, 50);
        assert_int_equal(__atomic_load_n(&code_writes, __ATOMIC_SEQ_CST), i == 0 ? 0 : code_writes);
        __atomic_store_n(&code_page, (hva_t)vm->ram + 0x9000, __ATOMIC_SEQ_CST);
        mem_protect_host_page(&vm->domain, vm->cpu[0], (hva_t)vm->ram + 0x9000);
        const uint64_t seen = __atomic_load_n((uint64_t *)(vm->ram + 0x9000), __ATOMIC_SEQ_CST);
        wait_steps(&r, 20);
        writes = __atomic_load_n(&code_writes, __ATOMIC_SEQ_CST);
        assert_true(writes > 0);
        assert_true(__atomic_load_n((uint64_t *)(vm->ram + 0x9000), __ATOMIC_SEQ_CST) > seen);
        __atomic_store_n(&code_page, 0, __ATOMIC_SEQ_CST);
        wait_steps(&r, 20);
        writes = __atomic_load_n(&code_writes, __ATOMIC_SEQ_CST);
        wait_steps(&r, 20);
        assert_int_equal(__atomic_load_n(&code_writes, __ATOMIC_SEQ_CST), writes); /* it has its entry again */
    }
    atomic_store(&r.stop, true);
    pthread_join(t, NULL);
}

static int protect_something(struct runner *r)
{
    r->n++;
    if (mem_st64(r->cpu, SEG_NONE, VA + (r->n & 1 ? 0x1000 : 0), r->n) != CPU_OK)
        return 1;
    mem_protect_host_page(&r->vm->domain, r->cpu, (hva_t)r->vm->ram + (r->n & 1 ? 0x9000 : 0x5000));
    return 0;
}

/* Both wait for each other all the time; a third thread drops ranges; one takes the exclusive right. */
static void no_deadlock(void **state)
{
    struct vm *vm = *state;
    struct runner r[2] = {{.vm = vm, .cpu = vm->cpu[0], .step = protect_something},
                          {.vm = vm, .cpu = vm->cpu[1], .step = protect_something}};
    pthread_t t[2];

    two_pages(vm, vm->cpu[0]);
    vm_mode64(vm->cpu[1], vm->cpu[0]->s.cr3, 0);
    for (unsigned i = 0; i < 2; i++)
        pthread_create(&t[i], NULL, guest_thread, &r[i]);
    for (unsigned i = 0; i < 300; i++) {
        cpu_drop_host_range(&vm->domain, (hva_t)vm->ram, RAM_SIZE, ACC_READ | (i & 1 ? ACC_EXEC : 0));
        cpu_epoch_wait(&vm->domain);
    }
    wait_steps(&r[0], 200);
    wait_steps(&r[1], 200);
    assert_int_equal(code_drops, 150);
    for (unsigned i = 0; i < 2; i++)
        atomic_store(&r[i].stop, true);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(t[i], NULL);
}

static int split_add(struct runner *r)
{
    struct rmw m;

    if (mem_rmw_begin(r->cpu, SEG_NONE, VA + 0xffc, 8, ACC_READ | ACC_WRITE | ACCF_LOCK, &m) != CPU_OK)
        return 1;
    ++*(uint64_t *)m.ptr;
    mem_rmw_end(r->cpu, &m);
    return ++r->n == 3000;
}

static void split_locks_are_atomic(void **state)
{
    struct vm *vm = *state;
    struct runner r[2] = {{.vm = vm, .cpu = vm->cpu[0], .step = split_add},
                          {.vm = vm, .cpu = vm->cpu[1], .step = split_add}};
    pthread_t t[2];
    uint64_t v;

    two_pages(vm, vm->cpu[0]);
    vm_mode64(vm->cpu[1], vm->cpu[0]->s.cr3, 0);
    for (unsigned i = 0; i < 2; i++)
        pthread_create(&t[i], NULL, guest_thread, &r[i]);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(t[i], NULL);
    assert_int_equal(mem_ld64(vm->cpu[0], SEG_NONE, VA + 0xffc, &v), CPU_OK);
    assert_int_equal(v, 6000);
}

static int read_both(struct runner *r)
{
    uint64_t v;

    return mem_ld64(r->cpu, SEG_NONE, 0x40, &v) != CPU_OK;
}

/* When the drop returns, the old page is not looked at any more: it can be unmapped, and nobody faults. */
static void dropped_range_is_not_used(void **state)
{
    struct vm *vm = *state;
    struct runner r = {.vm = vm, .cpu = vm->cpu[1], .step = read_both};
    pthread_t t;

    for (unsigned i = 0; i < 2; i++)
        vm_changed(vm->cpu[i]);
    pthread_create(&t, NULL, guest_thread, &r);
    for (unsigned i = 0; i < 200; i++) {
        void *page = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        hva_t old = *vm_ept_entry(vm, 0, 0) & PHYS_MASK;

        vm_ept_map(vm, 0, (hva_t)page, EPT_R | EPT_W, 0);
        cpu_drop_host_range(&vm->domain, old, PAGE_SIZE, ACC_READ | ACC_WRITE | ACC_EXEC);
        if (i)
            munmap((void *)old, PAGE_SIZE);
        wait_steps(&r, 5);
    }
    atomic_store(&r.stop, true);
    pthread_join(t, NULL);
    assert_int_equal(r.cpu->counters[CC_host_faults], 0);
    assert_true(r.steps > 200);
}

static _Atomic uint64_t published;

static int poll_and_read(struct runner *r)
{
    mem_poll(r->cpu);                    /* one safepoint after the other */
    for (unsigned i = 0; i < 100; i++) { /* the other side needs a while to see that it has passed */
        const uint64_t want = atomic_load(&published);
        uint64_t v = 0;

        if (mem_ld64(r->cpu, SEG_NONE, 0x40, &v) != CPU_OK || v < want)
            r->n++;
    }
    return 0;
}

/* A drop that is asked in the middle of a safepoint: either that safepoint serves it, or the drop waits for the next.
 */
static void drop_during_a_safepoint(void **state)
{
    struct vm *vm = *state;
    struct runner r = {.vm = vm, .cpu = vm->cpu[1], .step = poll_and_read};
    pthread_t t;

    vm_changed(vm->cpu[1]);
    atomic_store(&published, 0);
    pthread_create(&t, NULL, guest_thread, &r);
    for (unsigned i = 1; i <= 50000; i++) {
        uint64_t *page = (uint64_t *)(vm->ram + (i & 1 ? 0x9000 : 0x5000));
        const hva_t old = *vm_ept_entry(vm, 0, 0) & PHYS_MASK;

        page[8] = i;
        for (unsigned n = 0; n < i % 127; n++)
            __asm__ volatile("pause"); /* at any time of the other side's round */
        vm_ept_map(vm, 0, (hva_t)page, EPT_R | EPT_W, 0);
        if (i % 2) {
            cpu_drop_host_range(&vm->domain, old, PAGE_SIZE, ACC_READ | ACC_WRITE);
        } else {
            cpu_drop_ask(&vm->domain);
            cpu_drop_wait(&vm->domain, old, PAGE_SIZE, ACC_READ | ACC_WRITE);
        }
        atomic_store(&published, i);
    }
    wait_steps(&r, 5);
    atomic_store(&r.stop, true);
    pthread_join(t, NULL);
    assert_int_equal(r.n, 0);
}

/* ---- emulation ---- */

static insn_fn *decoded_fn;

int __wrap_insn_decode(const uint8_t *bytes, unsigned n, enum cpu_mode mode, struct insn *in);
int __wrap_insn_decode(const uint8_t *bytes, unsigned n, enum cpu_mode mode, struct insn *in)
{
    memset(in, 0, sizeof(*in));
    in->fn = decoded_fn;
    in->len = 3;
    return n < 3;
}

struct mmio_log {
    unsigned reads, writes;
    enum emul_answer answer;
    struct {
        gpa_t gpa;
        unsigned size;
        uint64_t data;
    } write[16], read[16];
};

static enum emul_answer on_read(void *opaque, gpa_t gpa, void *data, unsigned size)
{
    struct mmio_log *log = opaque;

    memset(data, 0x5a, size);
    log->read[log->reads % 16].gpa = gpa;
    log->read[log->reads++ % 16].size = size;
    return log->answer;
}

static enum emul_answer on_write(void *opaque, gpa_t gpa, const void *data, unsigned size)
{
    struct mmio_log *log = opaque;

    log->write[log->writes % 16].gpa = gpa;
    log->write[log->writes % 16].size = size;
    memcpy(&log->write[log->writes++ % 16].data, data, size);
    return log->answer;
}

static enum emul_answer on_in(void *opaque, uint16_t port, unsigned size, void *data, unsigned count, unsigned *done)
{
    *done = count > 3 ? 3 : count;
    return ((struct mmio_log *)opaque)->answer;
}

static const struct emul_ops ops = {.mmio_read = on_read, .mmio_write = on_write, .pio_in = on_in};

/* add [VA + 0x2008], rcx */
static int add_mmio(struct cpu *cpu, const struct insn *in)
{
    struct rmw r;
    int st = mem_rmw_begin(cpu, SEG_NONE, VA + 0x2008, 8, ACC_READ | ACC_WRITE, &r);

    if (st != CPU_OK)
        return st;
    *(uint64_t *)r.ptr += cpu->s.gpr[R_RCX];
    return mem_rmw_end(cpu, &r);
}

static void emul_machine(struct vm *vm, insn_fn *fn)
{
    struct cpu *cpu = vm->cpu[0];
    const gpa_t root = two_pages(vm, cpu);
    struct vmcs *v = &vm->vmcs;

    *vm_pte(vm, root, 3, VA + 0x2000, 0, 0) = 0x40000000 | P | RW | US; /* nothing there */
    decoded_fn = fn;
    cpu->in_guest_mode = false;
    v->CPU_BASED_VM_EXEC_CONTROL = CPU_SECONDARY_CONTROLS;
    v->SECONDARY_VM_EXEC_CONTROL = CPU2_ENABLE_EPT | CPU2_ENABLE_VPID;
    cpu->s.rip = VA + 0x100;
    cpu->s.seg[SEG_CS].attr = AR_P | AR_S | AR_L | 11;
    cpu->s.seg[SEG_SS].attr = AR_P | AR_S | AR_DB | 3;
    vmx_save_guest_state(cpu);
    v->GUEST_RFLAGS = F_RESERVED;
}

static void emulation_replays(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    struct mmio_log log = {.answer = EA_USER};
    const uint64_t answer = 1000;

    emul_machine(vm, add_mmio);
    cpu->s.gpr[R_RCX] = 11;
    assert_int_equal(cpu_emulate(cpu, &ops, &log), EMUL_USER);
    assert_int_equal(log.reads, 1);
    assert_true(log.read[0].gpa == 0x40000008 && log.read[0].size == 8);
    assert_true(vm->vmcs.GUEST_RIP == VA + 0x100);
    assert_int_equal(cpu_emulate_resume(cpu, &ops, &log, &answer, 8), EMUL_USER);
    assert_int_equal(log.reads, 1);
    assert_int_equal(log.writes, 1);
    assert_int_equal(log.write[0].data, 1011);
    assert_true(cpu_emulate_pending(cpu));
    assert_int_equal(cpu_emulate_resume(cpu, &ops, &log, NULL, 0), EMUL_DONE);
    assert_int_equal(log.writes, 1);
    assert_true(vm->vmcs.GUEST_RIP == VA + 0x103);
    assert_false(cpu_emulate_pending(cpu));
    log.answer = EA_DONE;
    vm->vmcs.GUEST_RIP = VA + 0x100;
    assert_int_equal(cpu_emulate(cpu, &ops, &log), EMUL_DONE);
    assert_true(log.write[1].data == 0x5a5a5a5a5a5a5a5a + 11);
    assert_null(cpu->emul);
    assert_false(atomic_load(&cpu->epoch) & 1);
}

/* 32 bytes from the middle of memory over a page end into MMIO */
static int wide_crossing(struct cpu *cpu, const struct insn *in)
{
    static uint8_t data[32] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18};

    return mem_write(cpu, SEG_NONE, VA + 0x1ff1, data, 32, ACC_WRITE);
}

static void emulation_of_wide_crossing(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    struct mmio_log log = {.answer = EA_USER};
    unsigned runs = 0;
    enum emul r;

    emul_machine(vm, wide_crossing);
    r = cpu_emulate(cpu, &ops, &log);
    while (r == EMUL_USER && runs++ < 10)
        r = cpu_emulate_resume(cpu, &ops, &log, NULL, 0);
    assert_int_equal(r, EMUL_DONE);
    assert_int_equal(log.writes, 3); /* 17 bytes: 8 + 8 + 1 */
    assert_true(log.write[0].gpa == 0x40000000 && log.write[0].size == 8);
    assert_int_equal(log.write[0].data & 0xff, 16);
    assert_true(log.write[2].gpa == 0x40000010 && log.write[2].size == 1);
    assert_int_equal(vm->ram[0x5ff1], 1);
    assert_int_equal(vm->ram[0x5fff], 15);
}

static int port_in(struct cpu *cpu, const struct insn *in)
{
    uint16_t buf[8];
    unsigned done;
    int st = emul_pio(cpu, 0x1f0, 2, true, buf, 8, &done);

    if (st != CPU_OK)
        return st;
    cpu->s.gpr[R_RAX] = buf[2];
    cpu->s.gpr[R_RCX] = done;
    return CPU_AGAIN;
}

static void emulation_of_ports(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    struct mmio_log log = {.answer = EA_USER};
    const uint16_t data[3] = {7, 8, 9};

    emul_machine(vm, port_in);
    assert_int_equal(cpu_emulate(cpu, &ops, &log), EMUL_USER);
    assert_int_equal(cpu_emulate_resume(cpu, &ops, &log, data, sizeof(data)), EMUL_DONE);
    assert_int_equal(cpu->s.gpr[R_RAX], 9);
    assert_int_equal(cpu->s.gpr[R_RCX], 3);
    assert_true(vm->vmcs.GUEST_RIP == VA + 0x100); /* an unfinished rep */
}

static int faults(struct cpu *cpu, const struct insn *in)
{
    return mem_st8(cpu, SEG_NONE, VA + 0x5000, 1);
}

static void emulation_of_faults(void **state)
{
    struct vm *vm = *state;
    struct cpu *cpu = vm->cpu[0];
    struct mmio_log log = {.answer = EA_ERROR};
    struct cpu_exception ex;
    gpa_t gpa;

    emul_machine(vm, faults);
    assert_int_equal(cpu_emulate(cpu, &ops, &log), EMUL_FAULT);
    assert_int_equal(cpu_emulate_fault(cpu)->vector, VEC_PF);
    assert_int_equal(cpu_emulate_fault(cpu)->error, PF_W);
    assert_true(cpu_emulate_fault(cpu)->payload == VA + 0x5000);
    decoded_fn = add_mmio;
    assert_int_equal(cpu_emulate(cpu, &ops, &log), EMUL_FAIL);
    assert_int_equal(cpu_translate(cpu, VA + 0x2123, ACC_READ, &gpa, &ex), 0);
    assert_true(gpa == 0x40000123);
    assert_int_equal(cpu_translate(cpu, VA + 0x5000, ACC_WRITE, &gpa, &ex), -1);
    assert_int_equal(ex.vector, VEC_PF);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(crossing),
        T(non_canonical),
        T(segments),
        T(alignment_check),
        T(data_breakpoint),
        T(host_memory_gone),
        T(rmw_and_chunks),
        T(fetching),
        T(flush_scopes),
        T(generations_run_out),
        T(invlpg_of_large_and_global),
        T(paging_structure_cache),
        T(code_page_writes),
        T(protect_against_a_running_cpu),
        T(no_deadlock),
        T(split_locks_are_atomic),
        T(dropped_range_is_not_used),
        T(drop_during_a_safepoint),
        T(emulation_replays),
        T(emulation_of_wide_crossing),
        T(emulation_of_ports),
        T(emulation_of_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
