/* SPDX-License-Identifier: MIT
 * test_interp.c: code that changes (by the guest, by others, under the running block), code over page ends, eviction,
 * and partly done instructions. */
#include "guest_second.h"
#include <stdio.h>
#include "../../src/cpu/run/code.h"

static void put(struct guest *g, uint64_t gpa, const uint8_t *code, const uint8_t *end)
{
    memcpy(g->ram + gpa, code, end - code);
}
#define PUT(g, gpa, name) put(g, gpa, name, name##_end)

/* SDM 3A, "Self-Modifying Code": the next instruction of the same block changes. */
GUEST_ASM(smc_next, "movb $42, 1f+1(%rip); 1: mov $1, %eax; vmcall");

static void a_block_that_changes_itself_stops(void **state)
{
    struct guest *g = *state;

    for (unsigned i = 0; i < 3; i++) {
        PUT(g, GUEST_CODE, smc_next);
        cpu_code_unverify(g->cpu);
        guest_to_vmcall(g, GUEST_CODE);
        assert_int_equal(*guest_gpr(g, R_RAX), 42);
    }
    assert_true(guest_counter(g, CC_smc_stops) >= 1);
    assert_true(guest_counter(g, CC_code_writes) >= 1);
}

/* A loop that rewrites the immediate of a function and calls it: rcx times; rax = the sum of what it returned. */
GUEST_ASM(smc_loop, "xor %eax, %eax; 1: mov %ecx, 3f+1(%rip); call 3f; add %rdx, %rax; dec %ecx; jnz 1b; vmcall;"
                    ".balign 64; 3: mov $0, %edx; ret");

static void code_written_and_run_in_turn_is_right_and_does_not_thrash(void **state)
{
    struct guest *g = *state;
    const uint64_t n = 20000;
    uint64_t decoded;

    PUT(g, GUEST_CODE, smc_loop);
    *guest_gpr(g, R_RCX) = n;
    guest_to_vmcall(g, GUEST_CODE);
    assert_int_equal(*guest_gpr(g, R_RAX), n * (n + 1) / 2);
    /* each turn changes one function of two instructions: it is decoded anew, the loop around it is not */
    decoded = guest_counter(g, CC_insns_decoded);
    assert_true(decoded < n * 4);
}

GUEST_ASM(fn_one, "mov $1, %eax; vmcall");
GUEST_ASM(flush_and_run, "mov %cr3, %rdx; mov %rdx, %cr3; jmp *%rbx");

/* DMA is unseen; what is entered after the guest's TLB was flushed is compared. */
static void code_written_by_others_is_compared_when_its_page_is_entered_anew(void **state)
{
    struct guest *g = *state;
    const uint64_t page = GUEST_DATA;
    uint64_t decoded;

    PUT(g, GUEST_CODE, flush_and_run);
    PUT(g, page, fn_one);
    *guest_gpr(g, R_RBX) = page;
    guest_to_vmcall(g, GUEST_CODE);
    assert_int_equal(*guest_gpr(g, R_RAX), 1);
    decoded = guest_counter(g, CC_insns_decoded);
    guest_to_vmcall(g, GUEST_CODE);
    assert_int_equal(guest_counter(g, CC_insns_decoded), decoded); /* unchanged bytes are not decoded twice */
    g->ram[page + 1] = 7;                                          /* a device's DMA */
    guest_to_vmcall(g, GUEST_CODE);
    assert_int_equal(*guest_gpr(g, R_RAX), 7);
    g->ram[page + 1] = 9; /* a debugger, who says so */
    cpu_code_unverify(g->cpu);
    guest_to_vmcall(g, page);
    assert_int_equal(*guest_gpr(g, R_RAX), 9);
    assert_true(guest_counter(g, CC_blocks_stale) >= 2);
}

/* The same physical page at another linear address, written there: the alias's write kills the block. */
GUEST_ASM(alias, "call *%rbx; mov %eax, %esi; movb $5, 1(%rdi); call *%rbx; vmcall");
GUEST_ASM(fn_ret, "mov $1, %eax; ret");

static void writes_through_an_alias_are_seen(void **state)
{
    struct guest *g = *state;
    uint64_t *pd = (uint64_t *)(g->ram + GUEST_PD);

    pd[256] = 0x87; /* 512 MiB: the first 2 MiB again */
    PUT(g, GUEST_CODE, alias);
    PUT(g, GUEST_DATA, fn_ret);
    *guest_gpr(g, R_RBX) = GUEST_DATA;
    *guest_gpr(g, R_RDI) = (512ull << 20) + GUEST_DATA;
    guest_to_vmcall(g, GUEST_CODE);
    assert_int_equal(*guest_gpr(g, R_RSI), 1);
    assert_int_equal(*guest_gpr(g, R_RAX), 5);
}

static void an_instruction_over_a_page_end_runs_and_changes(void **state)
{
    struct guest *g = *state;
    const uint64_t at = GUEST_DATA + 0x1000 - 2;

    for (uint8_t v = 1; v < 4; v++) {
        const uint8_t code[] = {0xb8, v, 0, 0, 0, 0x0f, 0x01, 0xc1}; /* mov $v, %eax over the end; vmcall */

        memcpy(g->ram + at, code, sizeof(code));
        g->ram[at + 2] = v; /* in the second page */
        cpu_code_unverify(g->cpu);
        guest_to_vmcall(g, at);
        assert_int_equal(*guest_gpr(g, R_RAX), v | v << 8);
    }
    /* the second page goes: the fault is of its address */
    *guest_ept_entry(g, at + 2) = 0;
    guest_invept(g);
    guest_w(g, GUEST_RIP, at);
    assert_int_equal(guest_run(g), EXIT_REASON_EPT_VIOLATION);
    assert_int_equal(guest_r(g, GUEST_PHYSICAL_ADDRESS), GUEST_DATA + 0x1000);
    assert_int_equal(guest_r(g, GUEST_RIP), at);
}

/* A hot loop over a page's end: rcx times eax += an immediate whose low byte is the first page's last. */
GUEST_ASM(over_end, "1: .byte 5, 0, 0, 0, 0; dec %ecx; jnz 1b; ret"); /* add $0, %eax */
/* rsi times: the loop; then its immediate changes by writes to the second page, at rdi, and to the first */
GUEST_ASM(over_writes, "1: mov $100, %ecx; call *%rbx; incb (%rdi); incb -1(%rdi); dec %esi; jnz 1b; vmcall");

static void hot_code_over_a_page_end_sees_writes_to_both_pages(void **state)
{
    const uint64_t end = GUEST_DATA + 0x1000, n = 60;
    struct guest *g = *state;

    PUT(g, end - 2, over_end);
    PUT(g, GUEST_CODE, over_writes);
    *guest_gpr(g, R_RBX) = end - 2;
    *guest_gpr(g, R_RDI) = end;
    *guest_gpr(g, R_RSI) = n;
    *guest_gpr(g, R_RAX) = 0;
    guest_to_vmcall(g, GUEST_CODE);
    assert_int_equal(*guest_gpr(g, R_RAX), 100 * 257 * (n * (n - 1) / 2));
}

/* rsi times: the loop at two addresses (rbx, rbp) where its first page is the same and the second is not; then the
 * second page at rbx becomes another, by its table entry at rdi. */
GUEST_ASM(over_maps, "1: mov $100, %ecx; call *%rbx; mov $100, %ecx; call *%rbp; xorl $0x3000, (%rdi); invlpg 16(%rbx);"
                     "dec %esi; jnz 1b; vmcall");

static void hot_code_over_a_page_end_sees_where_its_second_page_lies(void **state)
{
    const uint64_t pt = GUEST_DATA, first = GUEST_DATA + 0x2000, one = first + 0x2000, two = one ^ 0x3000;
    const uint64_t n = 50, at = 512ull << 20;
    struct guest *g = *state;
    uint64_t *pte = (uint64_t *)(g->ram + pt);

    ((uint64_t *)(g->ram + GUEST_PD))[256] = pt | 7;
    pte[0] = pte[2] = first | 7;
    pte[1] = one | 7;
    pte[3] = two | 7;
    PUT(g, GUEST_CODE, over_maps);
    for (unsigned i = 0; i < 2; i++) {
        memcpy(g->ram + first + 0xffe, over_end, 2);
        memcpy(g->ram + (i ? two : one), over_end + 2, over_end_end - over_end - 2);
        g->ram[i ? two : one] = i + 1; /* 0x100, 0x200 */
    }
    *guest_gpr(g, R_RBX) = at + 0xffe;
    *guest_gpr(g, R_RBP) = at + 0x2ffe;
    *guest_gpr(g, R_RDI) = pt + 8;
    *guest_gpr(g, R_RSI) = n;
    *guest_gpr(g, R_RAX) = 0;
    guest_to_vmcall(g, GUEST_CODE);
    assert_int_equal(*guest_gpr(g, R_RAX), n * 100 * 0x200 + n / 2 * 100 * 0x300);
}

/* ecx times: xmm0 += 16 bytes at rbx */
GUEST_ASM(over_reads, "pxor %xmm0, %xmm0; 1: movdqu (%rbx), %xmm1; paddb %xmm1, %xmm0; sub $1, %ecx; jnz 1b;"
                      "movq %xmm0, %rax; psrldq $8, %xmm0; movq %xmm0, %rdx; vmcall");

/* ... over the end of a page whose neighbour lies elsewhere in memory */
static void a_read_over_two_distant_pages_is_translated(void **state)
{
    const uint64_t pt = GUEST_DATA, first = GUEST_DATA + 0x2000, second = first + 0x3000, at = 512ull << 20, n = 200;
    struct guest *g = *state;
    uint64_t *pte = (uint64_t *)(g->ram + pt), want[2], before;

    ((uint64_t *)(g->ram + GUEST_PD))[256] = pt | 7;
    pte[0] = first | 7;
    pte[1] = second | 7;
    PUT(g, GUEST_CODE, over_reads);
    guest_w(g, GUEST_CR4, guest_r(g, GUEST_CR4) | CR4_OSFXSR);
    for (unsigned in_first = 1; in_first < 16; in_first++) {
        for (unsigned i = 0; i < 16; i++) {
            const uint8_t v = (uint8_t)(13 * i + in_first);

            g->ram[i < in_first ? first + 0x1000 - in_first + i : second + i - in_first] = v;
            ((uint8_t *)want)[i] = (uint8_t)(n * v);
        }
        *guest_gpr(g, R_RBX) = at + 0x1000 - in_first;
        *guest_gpr(g, R_RCX) = n;
        before = guest_counter(g, CC_insns);
        guest_to_vmcall(g, GUEST_CODE);
        assert_int_equal(*guest_gpr(g, R_RAX), want[0]);
        assert_int_equal(*guest_gpr(g, R_RDX), want[1]);
        if (!strcmp(guest_engine(), "jit") && !getenv("ANYKVM_JIT_HARDENED") && in_first > 1) /* hardened: slow paths */
            assert_true(guest_counter(g, CC_insns) - before < n / 4);
    }
}

/* ecx times each: 16 bytes of xmm0 to rbx, flags free; the same between what sets flags and what reads them */
GUEST_ASM(vector_writes,
          "movq %rax, %xmm0; pshufd $0x44, %xmm0, %xmm0; mov %ecx, %edx; 1: movdqu %xmm0, (%rbx); sub $1, %ecx;"
          "jnz 1b; paddb %xmm0, %xmm0; 2: sub $1, %edx; movdqu %xmm0, (%rbx); jnz 2b; vmcall");

static void a_write_over_two_distant_pages_is_translated(void **state)
{
    const uint64_t pt = GUEST_DATA, first = GUEST_DATA + 0x2000, second = first + 0x3000, at = 512ull << 20, n = 200;
    struct guest *g = *state;
    uint64_t *pte = (uint64_t *)(g->ram + pt), before;

    ((uint64_t *)(g->ram + GUEST_PD))[256] = pt | 7;
    pte[0] = first | 7;
    pte[1] = second | 7;
    PUT(g, GUEST_CODE, vector_writes);
    guest_w(g, GUEST_CR4, guest_r(g, GUEST_CR4) | CR4_OSFXSR);
    for (unsigned in_first = 1; in_first < 16; in_first++) {
        memset(g->ram + first, 0xee, 0x1000);
        memset(g->ram + second, 0xee, 0x1000);
        *guest_gpr(g, R_RAX) = 0x0102030405060708ull * in_first;
        *guest_gpr(g, R_RBX) = at + 0x1000 - in_first;
        *guest_gpr(g, R_RCX) = n;
        before = guest_counter(g, CC_insns);
        guest_to_vmcall(g, GUEST_CODE);
        for (unsigned i = 0; i < 18; i++) { /* and one byte on either side */
            const uint8_t *p = g->ram + (i <= in_first ? first + 0x1000 - in_first + i - 1 : second + i - in_first - 1);
            const uint64_t v = 0x0102030405060708ull * in_first;

            assert_int_equal(*p, i == 0 || i == 17 ? 0xee : (uint8_t)(2 * (uint8_t)(v >> (i - 1) % 8 * 8)));
        }
        if (!strcmp(guest_engine(), "jit") && !getenv("ANYKVM_JIT_HARDENED") && in_first > 1) /* hardened: slow paths */
            assert_true(guest_counter(g, CC_insns) - before < n / 4);
    }
}

/* ecx times: 8 bytes at rbx + 0x30 += those at rbx and rbx + 0x18; on by 0x28 */
GUEST_ASM(stream,
          "1: mov (%rbx), %rax; add 0x18(%rbx), %rax; add %rax, 0x30(%rbx); add $0x28, %rbx; sub $1, %ecx; jnz 1b;"
          "vmcall");

/* ... through pages that lie the other way round in memory: now and then the three are in two of them */
static void a_stream_over_scattered_pages_is_exact(void **state)
{
    enum { PAGES = 16, STEPS = (PAGES * 0x1000 - 0x40) / 0x28 };
    const uint64_t pt = GUEST_DATA, top = GUEST_DATA + 0x1000 + PAGES * 0x1000, at = 512ull << 20;
    static uint8_t want[PAGES * 0x1000];
    struct guest *g = *state;
    uint64_t *pte = (uint64_t *)(g->ram + pt);

    ((uint64_t *)(g->ram + GUEST_PD))[256] = pt | 7;
    for (unsigned i = 0; i < PAGES; i++)
        pte[i] = (top - i * 0x1000) | 7;
    PUT(g, GUEST_CODE, stream);
    for (unsigned from = 0; from < 8; from++) {
        for (unsigned i = 0; i < sizeof(want); i++)
            g->ram[top - i / 0x1000 * 0x1000 + i % 0x1000] = want[i] = (uint8_t)(i * 7 + from);
        for (unsigned i = 0; i < STEPS; i++) {
            uint64_t v[3];

            for (unsigned k = 0; k < 3; k++)
                memcpy(&v[k], want + from + 0x28 * i + 0x18 * k, 8);
            v[2] += v[0] + v[1];
            memcpy(want + from + 0x28 * i + 0x30, &v[2], 8);
        }
        *guest_gpr(g, R_RBX) = at + from;
        *guest_gpr(g, R_RCX) = STEPS;
        guest_to_vmcall(g, GUEST_CODE);
        for (unsigned i = 0; i < PAGES; i++)
            assert_memory_equal(g->ram + top - i * 0x1000, want + i * 0x1000, 0x1000);
    }
}

/* 8 MiB of NOPs, twice: more decoded code than the limit. */
static void decoded_code_is_bounded(void **state)
{
    struct guest *g = *state;
    const uint64_t from = 4u << 20, size = 8u << 20;

    memset(g->ram + from, 0x90, size);
    memcpy(g->ram + from + size, "\x0f\x01\xc1", 3);
    for (unsigned i = 0; i < 2; i++) {
        const uint64_t before = guest_counter(g, CC_insns) + guest_counter(g, CC_insns_translated);

        guest_to_vmcall(g, from);
        /* a translated block counts all of its instructions when it is entered: the VMCALL too */
        assert_in_range(guest_counter(g, CC_insns) + guest_counter(g, CC_insns_translated) - before, size, size + 1);
    }
    assert_true(g->domain->code->bytes <= CODE_LIMIT + (1 << 20));
    assert_true(g->domain->code->dead_bytes <= CODE_LIMIT + (1 << 20));
}

GUEST_ASM(rep_movsb, "rep movsb; vmcall");
GUEST_ASM(push_all, "push %rax; push %rax; push %rax; vmcall");
GUEST_ASM(xchg_mem, "xchg %rax, (%rdi); vmcall");
GUEST_ASM(pop_mem, "pop (%rdi); vmcall");

GUEST_ASM(store_sregs,
          "mov $-1, %rax; mov $-1, %rbx; mov %rbx, (%rdi); mov %rbx, %r10; mov %cs, %eax; mov %ss, %bx; mov %cs, "
          "(%rdi); mov %ds, %r10; vmcall");

static void selectors_are_stored(void **state)
{
    struct guest *g = *state;

    PUT(g, GUEST_CODE, store_sregs);
    for (unsigned i = 0; i < 3; i++) {
        *guest_gpr(g, R_RDI) = GUEST_DATA;
        guest_to_vmcall(g, GUEST_CODE);
        assert_int_equal(*guest_gpr(g, R_RAX), guest_r(g, GUEST_CS_SELECTOR));
        assert_int_equal(*guest_gpr(g, R_RBX), ~0xffffull | guest_r(g, GUEST_SS_SELECTOR));
        assert_int_equal(*guest_gpr(g, R_R10), guest_r(g, GUEST_DS_SELECTOR));
        assert_int_equal(*(uint64_t *)(g->ram + GUEST_DATA), ~0xffffull | guest_r(g, GUEST_CS_SELECTOR));
    }
}

static void partly_done_instructions_are_exact(void **state)
{
    struct guest *g = *state;
    const uint64_t hole = GUEST_DATA + 0x3000;

    memset(g->ram + GUEST_DATA, 0x5a, 0x3000);
    *guest_ept_entry(g, hole) = 0;
    PUT(g, GUEST_CODE, rep_movsb);
    *guest_gpr(g, R_RSI) = GUEST_DATA;
    *guest_gpr(g, R_RDI) = hole - 100;
    *guest_gpr(g, R_RCX) = 500;
    guest_w(g, GUEST_RIP, GUEST_CODE);
    assert_int_equal(guest_run(g), EXIT_REASON_EPT_VIOLATION);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE);
    assert_int_equal(*guest_gpr(g, R_RCX), 400);
    assert_int_equal(*guest_gpr(g, R_RDI), hole);
    assert_int_equal(*guest_gpr(g, R_RSI), GUEST_DATA + 100);

    PUT(g, GUEST_CODE, push_all);
    cpu_code_unverify(g->cpu);
    guest_w(g, GUEST_RSP, hole + 0x1010);
    guest_w(g, GUEST_RIP, GUEST_CODE);
    assert_int_equal(guest_run(g), EXIT_REASON_EPT_VIOLATION);
    assert_int_equal(guest_r(g, GUEST_RSP), hole + 0x1000);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE + 2);

    PUT(g, GUEST_CODE, xchg_mem);
    cpu_code_unverify(g->cpu);
    *guest_gpr(g, R_RAX) = 77;
    *guest_gpr(g, R_RDI) = hole - 4;
    guest_w(g, GUEST_RIP, GUEST_CODE);
    assert_int_equal(guest_run(g), EXIT_REASON_EPT_VIOLATION);
    assert_int_equal(*guest_gpr(g, R_RAX), 77);
    assert_int_equal(*(uint32_t *)(g->ram + hole - 4), 0x5a5a5a5a);

    PUT(g, GUEST_CODE, pop_mem);
    cpu_code_unverify(g->cpu);
    guest_w(g, GUEST_RSP, GUEST_STACK - 8);
    guest_w(g, GUEST_RIP, GUEST_CODE);
    assert_int_equal(guest_run(g), EXIT_REASON_EPT_VIOLATION);
    assert_int_equal(guest_r(g, GUEST_RSP), GUEST_STACK - 8);
}

/* LOCK where it is not allowed, over-long instructions, unknown bytes: the exception, at the instruction. */
static void what_is_no_instruction_faults(void **state)
{
    static const struct {
        uint8_t bytes[16];
        uint8_t vector;
    } bad[] = {
        {{0xf0, 0x01, 0xc0}, VEC_UD},       /* lock add %eax, %eax */
        {{0xf0, 0x8b, 0x07}, VEC_UD},       /* lock mov (%rdi), %eax */
        {{0xf0, 0x39, 0x07}, VEC_UD},       /* lock cmp %eax, (%rdi) */
        {{0x0f, 0x0b}, VEC_UD},             /* ud2 */
        {{0x0f, 0xff, 0xc0}, VEC_UD},       /* ud0 */
        {{0x27}, VEC_UD},                   /* daa: not in 64-bit mode */
        {{0x06}, VEC_UD},                   /* push %es */
        {{0x62, 0xf1, 0xff, 0xff}, VEC_UD}, /* no EVEX encoding */
        {{0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90}, VEC_GP},
    };
    struct guest *g = *state;

    guest_w(g, EXCEPTION_BITMAP, ~0u);
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        guest_code(g, bad[i].bytes, sizeof(bad[i].bytes));
        assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
        assert_int_equal(guest_r(g, VM_EXIT_INTR_INFO) & 0xff, bad[i].vector);
        assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE);
    }
}

/* A near branch to a non-canonical address is the branch's own #GP, before anything is pushed. */
GUEST_ASM(bad_call, "mov $0x800000000000, %rax; call *%rax");

static void branches_check_their_target(void **state)
{
    struct guest *g = *state;

    guest_w(g, EXCEPTION_BITMAP, ~0u);
    guest_code(g, bad_call, bad_call_end - bad_call);
    guest_w(g, GUEST_RSP, GUEST_STACK);
    assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
    assert_int_equal(guest_r(g, VM_EXIT_INTR_INFO) & 0xff, VEC_GP);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE + 10);
    assert_int_equal(guest_r(g, GUEST_RSP), GUEST_STACK);
}

/* The same of a direct call out of either half: the memory of the return address stays as it was. */
GUEST_ASM(call_up, ".byte 0xe8, 0, 0, 0, 0x40");
GUEST_ASM(call_down, ".byte 0xe8, 0, 0, 0, 0xc0");

static void direct_calls_check_their_target(void **state)
{
    static const struct {
        uint64_t base;
        const uint8_t *code;
    } edges[] = {{0x7fffc0000000, call_up}, {0xffff800000000000, call_down}};
    struct guest *g = *state;
    uint64_t *pml4 = (uint64_t *)(g->ram + GUEST_PML4), *pdpt = (uint64_t *)(g->ram + GUEST_PDPT), stack;

    pml4[255] = pml4[256] = pml4[0];
    pdpt[511] = pdpt[0];
    guest_w(g, EXCEPTION_BITMAP, ~0u);
    for (unsigned i = 0; i < 2 * ARRAY_SIZE(edges); i++) {
        guest_code(g, edges[i / 2].code, 5);
        memset(g->ram + GUEST_STACK - 8, 0x5a, 8);
        guest_w(g, GUEST_RIP, edges[i / 2].base + GUEST_CODE);
        guest_w(g, GUEST_RSP, GUEST_STACK);
        assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
        assert_int_equal(guest_r(g, VM_EXIT_INTR_INFO) & 0xff, VEC_GP);
        assert_int_equal(guest_r(g, GUEST_RIP), edges[i / 2].base + GUEST_CODE);
        assert_int_equal(guest_r(g, GUEST_RSP), GUEST_STACK);
        memcpy(&stack, g->ram + GUEST_STACK - 8, 8);
        assert_int_equal(stack, 0x5a5a5a5a5a5a5a5a);
    }
}

/* ---- two vCPUs: one rewrites a function that both call ---- */
/* writer: rcx = 1 ... rsi stored into the immediate, the function called after each store */
GUEST_ASM(writer,
          "mov $1, %ecx; 1: mov %ecx, (%rdi); call *%rbx; cmp %ecx, %eax; jne 2f; inc %ecx; cmp %esi, %ecx; jbe 1b;"
          "2: vmcall");
/* reader: until it returns rsi; it never goes back */
GUEST_ASM(reader,
          "xor %edx, %edx; 1: call *%rbx; cmp %edx, %eax; jb 2f; mov %eax, %edx; inc %rbp; cmp %esi, %eax; jne 1b;"
          "2: vmcall");
GUEST_ASM(patched, ".byte 0x0f, 0x1f, 0; mov $0, %eax; ret"); /* the immediate is aligned: stores are atomic */

static void a_vcpu_sees_what_another_writes_into_code(void **state)
{
    const uint64_t n = 3000, at = GUEST_DATA;
    struct guest *g = *state;
    struct guest_second g2;

    guest_create_second(&g2.g, g, guest_engine());
    PUT(g, GUEST_CODE, writer);
    PUT(g, GUEST_CODE + 0x1000, reader);
    PUT(g, at, patched);
    *guest_gpr(g, R_RBX) = at;
    *guest_gpr(g, R_RDI) = at + 4;
    *guest_gpr(g, R_RSI) = *guest_gpr(&g2.g, R_RSI) = n;
    guest_second_start(&g2, GUEST_CODE + 0x1000, at, at + 4);
    guest_to_vmcall(g, GUEST_CODE);
    guest_second_wait(&g2);
    assert_int_equal(*guest_gpr(g, R_RCX), n + 1); /* each of its own stores was seen at once */
    assert_int_equal(*guest_gpr(&g2.g, R_RAX), n);
    guest_second_destroy(&g2);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, guest_setup, guest_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_block_that_changes_itself_stops),
        TEST(code_written_and_run_in_turn_is_right_and_does_not_thrash),
        TEST(code_written_by_others_is_compared_when_its_page_is_entered_anew),
        TEST(writes_through_an_alias_are_seen),
        TEST(an_instruction_over_a_page_end_runs_and_changes),
        TEST(hot_code_over_a_page_end_sees_writes_to_both_pages),
        TEST(hot_code_over_a_page_end_sees_where_its_second_page_lies),
        TEST(a_read_over_two_distant_pages_is_translated),
        TEST(a_write_over_two_distant_pages_is_translated),
        TEST(a_stream_over_scattered_pages_is_exact),
        TEST(decoded_code_is_bounded),
        TEST(selectors_are_stored),
        TEST(partly_done_instructions_are_exact),
        TEST(what_is_no_instruction_faults),
        TEST(branches_check_their_target),
        TEST(direct_calls_check_their_target),
        TEST(a_vcpu_sees_what_another_writes_into_code),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
