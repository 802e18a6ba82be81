/* SPDX-License-Identifier: MIT
 * test_calls.c: calls and returns of guests that do not come in pairs, or that go deep. Whatever a translator believes
 * about them, a return goes where the guest's stack says, to what is there by then. */
#include "guest_code.h"
#include "../../src/cpu/run/code.h"

#define STACK 0x400000u
#define OTHER 0x500000u /* another stack */
#define TURNS 2000u

/* Runs code at a place, with rdi = n, to its VMCALL; returns rax. */
static uint64_t run_at(struct guest *g, uint64_t gpa, const uint8_t *code, const uint8_t *end, uint64_t n)
{
    memcpy(g->ram + gpa, code, end - code);
    *guest_gpr(g, R_RDI) = n;
    *guest_gpr(g, R_RAX) = 0;
    guest_w(g, GUEST_RIP, gpa);
    guest_w(g, GUEST_RSP, STACK);
    assert_int_equal(guest_run(g), EXIT_REASON_VMCALL);
    assert_int_equal(guest_r(g, GUEST_RSP), STACK);
    return *guest_gpr(g, R_RAX);
}

#define RUN(g, name, n) run_at(g, GUEST_CODE, name, name##_end, n)

/* Deeper than there are frames, and than a return's look reaches. */
GUEST_ASM(recursive, "call 1f; vmcall; 1: test %rdi, %rdi; jz 2f; dec %rdi; call 1b; inc %rax; 2: ret");

static void deep_recursion(void **state)
{
    for (unsigned turn = 0; turn < 8; turn++)
        assert_int_equal(RUN(*state, recursive, 20000), 20000);
}

/* A return to another place than behind the call: the address is changed, a frame is left out, or pushed. */
GUEST_ASM(elsewhere,
          "1: call 2f; jmp 9f; add $1, %rax; call 3f; jmp 9f; add $2, %rax; lea 5f(%rip), %rcx; push %rcx; ret;"
          "2: addq $2, (%rsp); ret;"
          "3: call 4f; jmp 9f;"
          "4: add $8, %rsp; addq $2, (%rsp); ret;"
          "5: dec %rdi; jnz 1b; vmcall; 9: ud2");

static void returns_to_elsewhere(void **state)
{
    assert_int_equal(RUN(*state, elsewhere, TURNS), 3 * TURNS);
}

/* Two stacks in turn, each some calls deep: the frames that are on top are the other's. */
GUEST_ASM(coroutines, "mov $0x500000, %rbx; lea 7f(%rip), %rcx; sub $8, %rbx; mov %rcx, (%rbx);"
                      "1: call 2f; dec %rdi; jnz 1b; vmcall;"
                      "2: call 3f; add $1, %rax; ret;"
                      "3: call 4f; add $1, %rax; ret;"
                      "4: xchg %rsp, %rbx; ret;" /* to the other */
                      "7: call 8f; jmp 7b;"      /* the other one's life */
                      "8: call 9f; add $16, %rax; ret;"
                      "9: call 4b; add $16, %rax; ret");

static void two_stacks_in_turn(void **state)
{
    assert_int_equal(RUN(*state, coroutines, TURNS), 2 * TURNS + 32 * (TURNS - 1));
}

/* The called one changes what its caller goes on with. */
GUEST_ASM(changed, "xor %esi, %esi; 1: inc %esi; call 2f; 3: mov $0, %ecx; cmp %esi, %ecx; jne 9f; inc %rax; dec %rdi;"
                   "jnz 1b; vmcall; 2: mov %esi, 3b+1(%rip); ret; 9: ud2");

static void the_caller_is_written(void **state)
{
    assert_int_equal(RUN(*state, changed, TURNS), TURNS);
}

/* What is behind the call lies in the next page. */
static void a_call_at_a_pages_end(void **state)
{
    static const uint8_t code[] = {0xe8, 8,    0,    0,    0, /* call */
                                   0x48, 0xff, 0xcf,          /* dec rdi */
                                   0x75, 0xf6,                /* jnz */
                                   0x0f, 0x01, 0xc1,          /* vmcall: over it */
                                   0x48, 0xff, 0xc0, 0xc3,    /* inc rax; ret */
                                   0x90};

    for (unsigned n = 0; n < 16; n++) /* each in pages of its own */
        assert_int_equal(run_at(*state, GUEST_DATA + 0x2000 * (n + 1) - n, code, code + sizeof(code), TURNS), TURNS);
}

/* One page shows another frame each turn (PTE, INVLPG): a call, an indirect one and a return into it find that. rbx:
 * the page, rsi: its PTE, r12, r13: values of that, r15d: what the shown frame's code returns. */
#define PAGE   0x800000u
#define FRAMES 0x600000u
#define PT     0x700000u
GUEST_ASM(exchange, "1: call 8f; call *%rbx; cmp %eax, %r15d; jne 9f;"
                    ".byte 0xe8; .long 0x800000 - 0x10000 - (2f - exchange); 2: cmp %eax, %r15d; jne 9f;"
                    "lea 8f(%rip), %r8; lea 64(%rbx), %rcx; call *%rcx; cmp %eax, %r15d; jne 9f;"
                    "call 8f; dec %rdi; jnz 1b; mov $1, %eax; vmcall;"
                    "8: xchg %r12, %r13; xor $3, %r15d; mov %r12, (%rsi); invlpg (%rbx); ret; 9: ud2");
GUEST_ASM(frame_one, "mov $1, %eax; ret; .fill 58, 1, 0x90; call *%r8; mov $1, %eax; ret");
GUEST_ASM(frame_two, "mov $2, %eax; ret; .fill 58, 1, 0x90; call *%r8; mov $2, %eax; ret");

static void a_page_shows_frames_in_turn(void **state)
{
    struct guest *g = *state;
    uint64_t *pt = (uint64_t *)(g->ram + PT), *pd = (uint64_t *)(g->ram + GUEST_PD);

    memcpy(g->ram + FRAMES, frame_one, frame_one_end - frame_one);
    memcpy(g->ram + FRAMES + PAGE_SIZE, frame_two, frame_two_end - frame_two);
    pd[PAGE >> 21] = PT | 7;
    pt[0] = FRAMES | 7;
    *guest_gpr(g, R_RBX) = PAGE;
    *guest_gpr(g, R_RSI) = PT;
    *guest_gpr(g, R_R12) = FRAMES | 7;
    *guest_gpr(g, R_R13) = (FRAMES + PAGE_SIZE) | 7;
    *guest_gpr(g, R_R15) = 1;
    assert_int_equal(RUN(g, exchange, TURNS), 1);
}

/* A return to an address that is not canonical faults, whatever the calls before it came from: here they were made
 * under another address space, and the distance may be what a translator tells those by. */
GUEST_ASM(forged, "lea 3f(%rip), %rcx; add %rdi, %rcx; call 2f; 3: mov $1, %eax; vmcall;"
                  "2: mov %rbx, %cr3; mov (%rsp), %rdx; mov %rcx, (%rsp); ret");

static void returns_to_no_address(void **state)
{
    struct guest *g = *state;

    memcpy(g->ram + GUEST_CODE, forged, forged_end - forged);
    memcpy(g->ram + PT, g->ram + GUEST_PML4, PAGE_SIZE); /* another root of the same tables */
    *guest_gpr(g, R_RBX) = PT;
    guest_w(g, GUEST_RIP, GUEST_CODE + 15); /* what is behind the call is known when that is translated */
    assert_int_equal(guest_run(g), EXIT_REASON_VMCALL);
    for (unsigned turn = 0; turn < 600; turn++) { /* each makes the distance of the two another one, or the same */
        static const int distance[] = {-1, 1, -100, 100};

        const int n = distance[turn / 150];

        *guest_gpr(g, R_RDI) = (uint64_t)n << 48;
        guest_w(g, GUEST_RIP, GUEST_CODE);
        guest_w(g, GUEST_RSP, STACK);
        guest_w(g, GUEST_CR3, GUEST_PML4);
        assert_int_equal(guest_run(g), EXIT_REASON_VMCALL);
        assert_int_equal(guest_r(g, GUEST_RIP), GUEST_HANDLER + 16 * 13);
    }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, guest_setup, guest_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(deep_recursion),        TEST(returns_to_elsewhere),  TEST(two_stacks_in_turn),
        TEST(the_caller_is_written), TEST(a_call_at_a_pages_end), TEST(a_page_shows_frames_in_turn),
        TEST(returns_to_no_address),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
