/* SPDX-License-Identifier: MIT
 * test_smc.c: guests that compile and patch their own code: what they run is what they wrote, and nothing that is hot
 * stays interpreted where a page holds code and data, or is written and run in turn. */
#include "guest_code.h"
#include "guest_second.h"
#include <stdio.h>
#include "../../src/cpu/run/code.h"

#define PUT(g, gpa, name) memcpy((g)->ram + (gpa), name, name##_end - name)

/* The translator ran it, but for a small part. */
static void assert_translated(struct guest *g, uint64_t insns, uint64_t before)
{
    if (!strcmp(guest_engine(), "jit"))
        assert_true(guest_counter(g, CC_insns) - before < insns / 8);
}

/* A compiler and what it makes in one page: one slot is written a turn, all of them are called. */
#define CALLS    8u
#define SLOTS(n) ((uint64_t)(n) << 32)
GUEST_FN static uint64_t compile_and_run(uint8_t *data, uint64_t arg)
{
    const uint64_t n = (uint32_t)arg, slots = arg >> 32;
    uint64_t sum = 0;

    for (uint64_t turn = 0; turn < n + slots; turn++) {
        volatile uint8_t *code = data + 64 * (turn % slots);

        code[0] = 0xb8; /* mov $turn, %eax; ret */
        *(volatile uint32_t *)(code + 1) = (uint32_t)turn;
        code[5] = 0xc3;
        if (turn < slots)
            continue;
        for (unsigned slot = 0; slot < slots; slot++)
            for (unsigned i = 0; i < CALLS; i++)
                sum += ((uint32_t(*)(void))(data + 64 * slot))();
    }
    return sum;
}

/* The one that is written anew dies, the others stay. */
static void functions_written_beside_others_are_translated(void **state)
{
    struct guest *g = *state;
    const uint64_t n = 2000, before = guest_counter(g, CC_insns);
    uint64_t sum = 0;

    for (uint64_t turn = 4; turn < n + 4; turn++)
        sum += CALLS * (4 * turn - 6);
    assert_int_equal(guest_call(g, compile_and_run, SLOTS(4) | n), sum);
    assert_translated(g, n * 4 * CALLS * 2, before);
    assert_int_equal(guest_counter(g, CC_selfchecks), 0);
}

/* Nothing stays: the page is compared from then on. */
static void a_page_that_is_written_and_run_in_turn_is_translated(void **state)
{
    struct guest *g = *state;
    const uint64_t n = 2000, before = guest_counter(g, CC_insns);
    uint64_t sum = 0;

    for (uint64_t turn = 1; turn < n + 1; turn++)
        sum += CALLS * turn;
    assert_int_equal(guest_call(g, compile_and_run, SLOTS(1) | n), sum);
    assert_translated(g, n * CALLS * 2, before);
    assert_int_equal(guest_counter(g, CC_selfchecks), 1);
}

/* Who does not tell, a device or a debugger, is seen where a page is compared at each entry. */
#define CALLER 0x40000u
GUEST_ASM(call_rbx, "call *%rbx; vmcall");

static void a_page_that_is_compared_shows_what_others_write(void **state)
{
    struct guest *g = *state;

    guest_call(g, compile_and_run, SLOTS(1) | 100);
    assert_int_equal(guest_counter(g, CC_selfchecks), 1);
    PUT(g, CALLER, call_rbx);
    for (unsigned v = 1; v < 5; v++) {
        g->ram[GUEST_DATA + 1] = (uint8_t)v;
        *guest_gpr(g, R_RBX) = GUEST_DATA;
        guest_to_vmcall(g, CALLER);
        assert_int_equal(*guest_gpr(g, R_RAX) & 0xff, v);
    }
}

/* A counter in the line of the code that counts. */
GUEST_ASM(count_here, "incq 1f(%rip); mov 1f(%rip), %rax; ret; .balign 8; 1: .quad 0");
/* ... and one in another line of the page. */
GUEST_ASM(count_there, "incq 1f(%rip); mov 1f(%rip), %rax; ret; .balign 512; 1: .quad 0");

GUEST_FN static uint64_t call_often(uint8_t *data, uint64_t n)
{
    uint64_t last = 0;

    for (uint64_t i = 0; i < n; i++)
        last += ((uint64_t(*)(void))data)();
    return last;
}

static void count(struct guest *g, const uint8_t *code, const uint8_t *end)
{
    const uint64_t n = 20000, before = guest_counter(g, CC_insns);

    memcpy(g->ram + GUEST_DATA, code, end - code);
    assert_int_equal(guest_call(g, call_often, n), n * (n + 1) / 2);
    assert_translated(g, n * 3, before);
}

static void code_and_data_in_one_line(void **state)
{
    count(*state, count_here, count_here_end);
}

static void code_and_data_in_one_page(void **state)
{
    count(*state, count_there, count_there_end);
}

/* The next instruction changes at each turn: rax = the sum of what it loaded. */
GUEST_ASM(change_next,
          "xor %eax, %eax; 1: movb %cl, 2f+1(%rip); 2: mov $0, %edx; add %rdx, %rax; dec %ecx; jnz 1b; vmcall");

static void an_instruction_that_the_one_before_writes(void **state)
{
    struct guest *g = *state;

    PUT(g, GUEST_CODE, change_next);
    *guest_gpr(g, R_RCX) = 250;
    guest_to_vmcall(g, GUEST_CODE);
    assert_int_equal(*guest_gpr(g, R_RAX), 250 * 251 / 2);
    assert_true(guest_counter(g, CC_selfchecks) == 1);
}

/* ... into one that reads flags which the old one did not: add or adc by turns. */
GUEST_ASM(change_reader,
          "xor %eax, %eax; 1: mov %ecx, %edx; and $1, %edx; shl $4, %edx; add $0xc0, %edx; cmp $100, %ecx;"
          "movb %dl, 2f+1(%rip); 2: add $0, %eax; dec %ecx; jnz 1b; vmcall");

static void a_flag_that_the_next_instruction_did_not_read(void **state)
{
    struct guest *g = *state;

    for (unsigned i = 0; i < 2; i++) {
        PUT(g, GUEST_CODE, change_reader);
        *guest_gpr(g, R_RCX) = 250;
        guest_to_vmcall(g, GUEST_CODE);
        assert_int_equal(*guest_gpr(g, R_RAX), 50); /* the odd ones below 100 */
    }
}

/* ---- cross-modifying code as Linux does it: a breakpoint first, then the rest, then the first byte ---- */

struct poke {
    volatile uint64_t turns, value, bad, stop, traps;
};
#define POKE_AT   (GUEST_DATA + 64 - 3) /* the patched instruction lies in two lines */
#define POKE_DATA (GUEST_DATA + 0x2000)
#define POKE_BP   (GUEST_DATA + 0x3000)

/* rbx: the function; rdi: struct poke. MOV to CR2 serializes. */
GUEST_ASM(poke_reader, "1: mov %rax, %cr2; call *%rbx; mov %rax, 8(%rdi); cmp $1, %eax; je 2f; cmp $2, %eax; je 2f;"
                       "incq 16(%rdi); 2: incq (%rdi); cmpq $0, 24(%rdi); je 1b; vmcall");
GUEST_ASM(poke_site, ".byte 0x0f, 0x1f, 0x44, 0, 0; mov $1, %eax; ret; mov $2, %eax; ret"); /* the jump: over 6 bytes */
GUEST_ASM(poke_trap, "incq 32(%rdi); decq (%rsp); iretq");

GUEST_FN static uint64_t poke_writer(uint8_t *data, uint64_t n)
{
    struct poke *p = (struct poke *)(data + (POKE_DATA - GUEST_DATA));
    volatile uint8_t *site = data + (POKE_AT - GUEST_DATA);
    uint64_t wrong = 0;

    for (uint64_t turn = 0; turn < n; turn++) {
        const uint64_t bytes = turn & 1 ? 0x0000441f0f : 0x00000006e9;

        for (unsigned step = 0; step < 3; step++) {
            const uint64_t seen = p->turns;

            if (step == 0)
                site[0] = 0xcc;
            for (unsigned i = 1; step == 1 && i < 5; i++)
                site[i] = (uint8_t)(bytes >> 8 * i);
            if (step == 2)
                site[0] = (uint8_t)bytes;
            /* the reader is at the breakpoint until the last step */
            while (step == 2 ? p->turns < seen + 3 : p->turns == seen && !p->traps)
                __asm__ volatile("pause");
        }
        p->traps = 0;
        wrong += p->value != (turn & 1 ? 1 : 2);
    }
    p->stop = 1;
    return wrong;
}

static void a_breakpoint_stands_in_while_another_vcpu_patches(void **state)
{
    struct guest *g = *state;
    struct guest_second g2;
    const struct poke *p = (const struct poke *)(g->ram + POKE_DATA);

    guest_create_second(&g2.g, g, guest_engine());
    PUT(g, GUEST_CODE + 0x8000, poke_reader);
    PUT(g, POKE_AT, poke_site);
    PUT(g, POKE_BP, poke_trap);
    guest_gate(g, VEC_BP, POKE_BP, 0, 0x8e);
    guest_second_start(&g2, GUEST_CODE + 0x8000, POKE_AT, POKE_DATA);
    assert_int_equal(guest_call(g, poke_writer, 60), 0);
    guest_second_wait(&g2);
    guest_second_destroy(&g2);
    assert_int_equal(p->bad, 0);
    assert_true(p->turns >= 60);
}

/* ---- an instruction over a page's end: what its second page holds, and which page that is ---- */
#define OVER      (GUEST_DATA + 0x1000 - 3) /* mov $imm, %eax: two bytes of imm and the ret in the second page */
#define OVER_PT   (GUEST_DATA + 0x8000)
#define OVER_PAGE (GUEST_DATA + 0x4000) /* two pages that are the second one by turns */
#define OVER_HERE 0x1234u               /* imm's low half */

static void put_over(struct guest *g)
{
    memcpy(g->ram + OVER - 3, "\x0f\x1f\x00\xb8\x34\x12\x00\x00\xc3", 9); /* a NOP leads into it */
    memcpy(g->ram + OVER_PAGE, "\x00\x00\xc3", 3);
    memcpy(g->ram + OVER_PAGE + 0x1000, "\x00\x00\xc3", 3);
    cpu_code_unverify(g->cpu);
}

/* 2 MiB by pages of 4 KiB; the guest changes its table at OVER_PT. */
static void over_page_table(struct guest *g)
{
    for (uint64_t i = 0; i < 512; i++)
        ((uint64_t *)(g->ram + OVER_PT))[i] = i << 12 | 7;
    *(uint64_t *)(g->ram + GUEST_PD) = OVER_PT | 7;
    guest_invept(g);
}

#define CALL_OVER(data, back) ((uint32_t(*)(void))((data) + 0x1000 - 3 - (back)))()
GUEST_FN static uint64_t write_second_page(uint8_t *data, uint64_t n)
{
    uint64_t sum = 0;

    for (uint64_t turn = 0; turn < n; turn++) {
        *(volatile uint16_t *)(data + 0x1000) = (uint16_t)turn;
        for (unsigned i = 0; i < 4; i++)
            sum += (CALL_OVER(data, i & 1 ? 3 : 0)) >> 16;
    }
    return sum;
}

/* The other bytes of the second page are data */
GUEST_FN static uint64_t write_beside(uint8_t *data, uint64_t n)
{
    uint64_t sum = 0;

    for (uint64_t turn = 0; turn < n; turn++) {
        *(volatile uint64_t *)(data + 0x1800) = turn;
        if (turn % 64 == 0)
            *(volatile uint16_t *)(data + 0x1000) = (uint16_t)turn;
        sum += CALL_OVER(data, 3) >> 16;
    }
    return sum;
}

GUEST_FN static uint64_t map_second_page(uint8_t *data, uint64_t n)
{
    volatile uint64_t *pte = (uint64_t *)(data + 0x8000) + ((GUEST_DATA >> 12) + 1);
    uint64_t sum = 0;

    for (uint64_t turn = 0; turn < n; turn++) {
        const uint64_t page = OVER_PAGE + (turn / 3 & 1) * 0x1000;

        *(volatile uint16_t *)page = (uint16_t)turn;
        *pte = page | 7;
        __asm__ volatile("invlpg (%0)" : : "r"(data + 0x1000) : "memory");
        for (unsigned i = 0; i < 4; i++)
            sum += (CALL_OVER(data, i & 1 ? 3 : 0)) >> 16;
    }
    return sum;
}

static void the_second_page_is_written(void **state)
{
    struct guest *g = *state;

    put_over(g);
    assert_int_equal(guest_call(g, write_second_page, 3000), 4 * (3000 * 2999 / 2));
}

static void the_second_page_is_dropped(void **state)
{
    struct guest *g = *state;
    uint64_t sum = 0;

    put_over(g);
    for (uint64_t turn = 0; turn < 20000; turn++)
        sum += turn / 64 * 64;
    assert_int_equal(guest_call(g, write_beside, 20000), sum);
    assert_true(guest_counter(g, CC_page_drops) > 0);
}

static void the_second_page_is_another(void **state)
{
    struct guest *g = *state;

    put_over(g);
    over_page_table(g);
    assert_int_equal(guest_call(g, map_second_page, 3000), 4 * (3000 * 2999 / 2));
}

/* A page that is not there any more: the fault is the fetch's, at the second page. */
GUEST_FN static uint64_t call_over(uint8_t *data, uint64_t n)
{
    uint64_t sum = 0;

    for (uint64_t i = 0; i < n; i++)
        sum += CALL_OVER(data, 3);
    return sum;
}

static void the_second_page_goes_away(void **state)
{
    struct guest *g = *state;
    uint64_t *pte = (uint64_t *)(g->ram + OVER_PT) + (GUEST_DATA >> 12) + 1;

    put_over(g);
    over_page_table(g);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(guest_call(g, call_over, 100), 100 * OVER_HERE);
        *pte &= ~1ull;
        guest_invept(g);
        guest_w(g, GUEST_RIP, OVER - 3);
        assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
        assert_int_equal(guest_r(g, VM_EXIT_INTR_INFO) & 0xff, VEC_PF);
        assert_int_equal(guest_r(g, EXIT_QUALIFICATION), GUEST_DATA + 0x1000);
        assert_int_equal(guest_r(g, GUEST_RIP), OVER);
        *pte |= 1;
    }
    for (unsigned i = 1; i < 5; i++) { /* a device writes into it */
        g->ram[GUEST_DATA + 0x1000] = (uint8_t)i;
        cpu_code_unverify(g->cpu);
        assert_int_equal(guest_call(g, call_over, 100), 100 * (i << 16 | OVER_HERE));
    }
}

/* ---- another vCPU writes what this one executes: what was announced before a serializing instruction is there ---- */
struct announced {
    volatile uint64_t value, stop, bad, calls, seen;
};
#define ANNOUNCED (GUEST_DATA + 0x2000)

/* rbx: the function; rdi: struct announced; rsi: the last result. */
GUEST_ASM(announced_reader,
          "xor %esi, %esi; 1: mov (%rdi), %rdx; mov %rax, %cr2; call *%rbx; shr $16, %eax; cmp %rdx, %rax;"
          "jb 2f; cmp %rsi, %rax; jae 3f; 2: incq 16(%rdi); 3: mov %rax, %rsi; mov %rax, 32(%rdi);"
          "incq 24(%rdi); cmpq $0, 8(%rdi); je 1b; vmcall");

GUEST_FN static uint64_t announce(uint8_t *data, uint64_t n)
{
    struct announced *a = (struct announced *)(data + (ANNOUNCED - GUEST_DATA));

    for (uint64_t v = 1; v <= n; v++) {
        const uint64_t calls = a->calls;

        *(volatile uint16_t *)(data + 0x1000) = (uint16_t)v;
        a->value = v;
        while (v % 4 == 0 ? a->seen != v : v % 4 == 1 && a->calls < calls + 20) /* else: writes follow each other */
            __asm__ volatile("pause");
    }
    a->stop = 1;
    return 0;
}

static void another_vcpu_writes_what_this_one_executes(void **state)
{
    struct guest *g = *state;
    struct guest_second g2;
    const struct announced *a = (const struct announced *)(g->ram + ANNOUNCED);

    guest_create_second(&g2.g, g, guest_engine());
    put_over(g);
    PUT(g, GUEST_CODE + 0x8000, announced_reader);
    guest_second_start(&g2, GUEST_CODE + 0x8000, OVER - 3, ANNOUNCED);
    guest_call(g, announce, 400);
    guest_second_wait(&g2);
    guest_second_destroy(&g2);
    assert_int_equal(a->bad, 0);
    assert_true(a->calls >= 2000);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, guest_setup, guest_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(functions_written_beside_others_are_translated),
        TEST(a_page_that_is_written_and_run_in_turn_is_translated),
        TEST(a_page_that_is_compared_shows_what_others_write),
        TEST(code_and_data_in_one_line),
        TEST(code_and_data_in_one_page),
        TEST(an_instruction_that_the_one_before_writes),
        TEST(a_flag_that_the_next_instruction_did_not_read),
        TEST(a_breakpoint_stands_in_while_another_vcpu_patches),
        TEST(the_second_page_is_written),
        TEST(the_second_page_is_dropped),
        TEST(the_second_page_is_another),
        TEST(the_second_page_goes_away),
        TEST(another_vcpu_writes_what_this_one_executes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
