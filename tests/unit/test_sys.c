/* SPDX-License-Identifier: MIT
 * test_sys.c: system instructions that an engine may run without its run loop (src/jit/tr_sys.c): shadows, views of
 * memory by AC, time, bases, privilege changes. Guest code on the raw VMX operations, by every engine. */
#include "guest.h"
#include <pthread.h>
#include <unistd.h>

#define PUT(g, name) guest_code(g, name, (size_t)(name##_end - name))
#define END(name)    (GUEST_CODE + (uint64_t)(name##_end - name))

static uint64_t rip(struct guest *g)
{
    return guest_r(g, GUEST_RIP);
}

static void run_to(struct guest *g, uint64_t where)
{
    assert_int_equal(guest_run(g), EXIT_REASON_VMCALL);
    assert_int_equal(rip(g), where);
    guest_skip(g);
}

static void controls(struct guest *g, uint32_t exec)
{
    guest_w(g, CPU_BASED_VM_EXEC_CONTROL, guest_r(g, CPU_BASED_VM_EXEC_CONTROL) | exec);
}

static void cr4(struct guest *g, uint64_t bits)
{
    guest_w(g, GUEST_CR4, guest_r(g, GUEST_CR4) | bits);
}

/* ---- STI ---- */
static void sti_and(struct guest *g, const char *then, size_t n, uint64_t flags, uint64_t at, uint32_t shadow)
{
    uint8_t code[16] = {0xfb};

    memcpy(code + 1, then, n);
    guest_vmcs_state(g);
    guest_w(g, GUEST_RFLAGS, F_RESERVED | flags);
    guest_code(g, code, n + 1);
    *guest_gpr(g, R_RBX) = GUEST_RAM; /* nothing there */
    assert_int_equal(guest_run(g), EXIT_REASON_EPT_VIOLATION);
    assert_int_equal(rip(g), GUEST_CODE + at);
    assert_int_equal(guest_r(g, GUEST_INTERRUPTIBILITY_INFO), shadow);
    assert_int_equal(guest_r(g, GUEST_RFLAGS) & F_IF, F_IF);
}

#define LOAD "\x48\x8b\x03" /* mov (%rbx), %rax */
static void an_exit_shows_the_shadow(void **state)
{
    struct guest *g = *state;

    for (unsigned i = 0; i < 3; i++) { /* again: linked, cached */
        sti_and(g, LOAD, 3, 0, 1, INTR_BLOCK_STI);
        sti_and(g, "\x90" LOAD, 4, 0, 2, 0);
        sti_and(g, "\x48\x01\xc8" LOAD, 6, 0, 4, 0); /* add %rcx, %rax */
        sti_and(g, LOAD, 3, F_IF, 1, 0);             /* it was on: no shadow */
    }
}

static _Atomic bool stop;

static void *kicker(void *cpu)
{
    while (!atomic_load(&stop)) {
        cpu_kick(cpu);
        usleep(50);
    }
    return NULL;
}

GUEST_ASM(code_sti_loop,
          "1: inc %rcx\n sti\n nop\n cli\n sti\n mov %rax, %rdx\n cli\n sti\n push %rax\n pop %rax\n cli\n"
          " jmp 1b\n");
static void a_kick_never_comes_unseen_into_the_shadow(void **state)
{
    struct guest *g = *state;
    pthread_t thread;
    unsigned kicks = 0;

    atomic_store(&stop, false);
    PUT(g, code_sti_loop);
    assert_int_equal(pthread_create(&thread, NULL, kicker, g->cpu), 0);
    for (; kicks < 500; kicks++) {
        uint8_t before;

        assert_int_equal(guest_run(g), EXIT_REASON_EXTERNAL_INTERRUPT);
        before = g->ram[rip(g) - 1];
        if (before == 0xfb) /* right behind STI */
            assert_int_equal(guest_r(g, GUEST_INTERRUPTIBILITY_INFO), INTR_BLOCK_STI);
        else
            assert_int_equal(guest_r(g, GUEST_INTERRUPTIBILITY_INFO), 0);
    }
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    assert_true(*guest_gpr(g, R_RCX) > 1000);
}

GUEST_ASM(code_window, "sti\n add %rax, %rbx\n nop\n");
static void a_window_opens_behind_the_shadow(void **state)
{
    struct guest *g = *state;

    for (unsigned i = 0; i < 3; i++) {
        guest_vmcs_state(g);
        PUT(g, code_window);
        guest_w(g, CPU_BASED_VM_EXEC_CONTROL, guest_r(g, CPU_BASED_VM_EXEC_CONTROL) & ~CPU_INTR_WINDOW_EXITING);
        run_to(g, END(code_window)); /* translated without a window */
        guest_vmcs_state(g);
        controls(g, CPU_INTR_WINDOW_EXITING);
        assert_int_equal(guest_run(g), EXIT_REASON_INTERRUPT_WINDOW);
        assert_int_equal(rip(g), GUEST_CODE + 4);
        assert_int_equal(guest_r(g, GUEST_INTERRUPTIBILITY_INFO), 0);
    }
}

/* ---- AC ---- */
/* All pages are the user's: with SMAP each data access of CPL 0 needs AC. Flags pass through. */
GUEST_ASM(code_ac, "mov $0x20000, %esi\n mov $1000, %ecx\n"
                   "1: stc\n stac\n adc (%rsi), %rax\n mov %rax, 8(%rsi)\n clc\n clac\n adc $0, %rbx\n stac\n"
                   " pushfq\n pop %rdx\n clac\n dec %ecx\n jnz 1b\n mov (%rsi), %rdi\n");
static void ac_opens_user_pages(void **state)
{
    struct guest *g = *state;

    *(uint64_t *)(g->ram + GUEST_DATA) = 5;
    *guest_gpr(g, R_RAX) = *guest_gpr(g, R_RBX) = 0;
    cr4(g, CR4_SMAP);
    guest_w(g, EXCEPTION_BITMAP, 1u << VEC_PF);
    PUT(g, code_ac);
    assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
    assert_int_equal(rip(g), END(code_ac) - 3);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), GUEST_DATA);
    assert_int_equal(guest_r(g, VM_EXIT_INTR_ERROR_CODE), PF_P);
    assert_int_equal(*guest_gpr(g, R_RAX), 6000);
    assert_int_equal(*(uint64_t *)(g->ram + GUEST_DATA + 8), 6000);
    assert_int_equal(*guest_gpr(g, R_RBX), 0);
    assert_int_equal(*guest_gpr(g, R_RDX) & F_AC, F_AC);
    assert_int_equal(guest_r(g, GUEST_RFLAGS) & F_AC, 0);
}

/* Amid accesses by one base: what was checked with AC says nothing without it. */
GUEST_ASM(code_ac_again,
          "mov $0x20000, %esi\n stac\n mov (%rsi), %rax\n mov 8(%rsi), %rbx\n clac\n mov 16(%rsi), %rcx\n"
          " mov 24(%rsi), %rdx\n");
static void ac_closes_them_again(void **state)
{
    struct guest *g = *state;

    guest_w(g, EXCEPTION_BITMAP, 1u << VEC_PF);
    for (unsigned i = 0; i < 4; i++) {
        guest_vmcs_state(g);
        cr4(g, CR4_SMAP);
        PUT(g, code_ac_again);
        assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
        assert_int_equal(rip(g), END(code_ac_again) - 8);
        assert_int_equal(guest_r(g, EXIT_QUALIFICATION), GUEST_DATA + 16);
    }
}

GUEST_ASM(code_ac_user,
          "push $0x23\n push $0x28000\n push $2\n push $0x1b\n lea 1f(%rip), %rax\n push %rax\n iretq\n1: stac\n");
static void ac_is_for_the_supervisor(void **state)
{
    struct guest *g = *state;

    guest_w(g, EXCEPTION_BITMAP, 1u << VEC_UD);
    PUT(g, code_ac_user);
    assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
    assert_int_equal(guest_r(g, VM_EXIT_INTR_INFO) & 0xff, VEC_UD);
    assert_int_equal(rip(g), END(code_ac_user) - 3);
}

/* ---- time ---- */
GUEST_ASM(code_tsc, "stc\n rdtsc\n mov %rax, %rsi\n mov %rdx, %rdi\n rdtscp\n setc %bl\n");
static void time_has_its_offset(void **state)
{
    struct guest *g = *state;
    uint64_t first, second;

    controls(g, CPU_USE_TSC_OFFSETTING);
    for (unsigned i = 1; i < 4; i++) {
        const uint64_t offset = (uint64_t)i << 60, before = cpu_rdtsc() + offset;

        guest_vmcs_state(g);
        guest_w(g, TSC_OFFSET, offset);
        cpu_state(g->cpu)->tsc_aux = 0x1234567;
        *guest_gpr(g, R_RAX) = *guest_gpr(g, R_RDX) = ~0ull;
        PUT(g, code_tsc);
        run_to(g, END(code_tsc));
        first = *guest_gpr(g, R_RDI) << 32 | *guest_gpr(g, R_RSI);
        second = *guest_gpr(g, R_RDX) << 32 | *guest_gpr(g, R_RAX);
        assert_in_range(first, before, cpu_rdtsc() + offset);
        assert_in_range(second, first, cpu_rdtsc() + offset);
        assert_int_equal(*guest_gpr(g, R_RSI) >> 32 | *guest_gpr(g, R_RAX) >> 32, 0);
        assert_int_equal(*guest_gpr(g, R_RCX), 0x1234567);
        assert_int_equal(*guest_gpr(g, R_RBX) & 0xff, 1);
    }
    controls(g, CPU_RDTSC_EXITING); /* what was translated asks anew */
    guest_vmcs_state(g);
    assert_int_equal(guest_run(g), EXIT_REASON_RDTSC);
    assert_int_equal(rip(g), GUEST_CODE + 1);
}

GUEST_ASM(code_pause, "pause\n nop\n");
static void pause_exits_when_asked_to(void **state)
{
    struct guest *g = *state;

    PUT(g, code_pause);
    run_to(g, END(code_pause));
    controls(g, CPU_PAUSE_EXITING);
    guest_vmcs_state(g);
    assert_int_equal(guest_run(g), EXIT_REASON_PAUSE_INSTRUCTION);
}

/* ---- flags, bases, stack ---- */
GUEST_ASM(code_df,
          "stc\n std\n pushfq\n pop %rax\n mov $0x20007, %esi\n lodsb\n mov %rsi, %rdx\n cld\n pushfq\n pop %rbx\n"
          " lodsb\n sbb %ecx, %ecx\n");
static void direction(void **state)
{
    struct guest *g = *state;

    PUT(g, code_df);
    run_to(g, END(code_df));
    assert_int_equal(*guest_gpr(g, R_RBX) & (F_DF | F_CF), F_CF);
    assert_int_equal(*guest_gpr(g, R_RDX), 0x20006);
    assert_int_equal(*guest_gpr(g, R_RSI), 0x20007);
    assert_int_equal(*guest_gpr(g, R_RCX), 0xffffffff);
}

GUEST_ASM(code_bases, "mov $0x1122334455667788, %rax\n wrfsbase %eax\n rdfsbase %rbx\n mov $0xffff800000020000, %rcx\n"
                      "wrgsbase %rcx\n rdgsbase %rdx\n rdgsbase %esi\n mov $0x20000, %edi\n wrfsbase %rdi\n"
                      "mov %fs:8, %r8\n mov $0x7fffffffffff, %r9\n wrfsbase %r9\n mov $0x800000000000, %r9\n"
                      "wrgsbase %r9\n");
static void bases(void **state)
{
    struct guest *g = *state;

    *(uint64_t *)(g->ram + GUEST_DATA + 8) = 77;
    guest_w(g, EXCEPTION_BITMAP, 1u << VEC_GP | 1u << VEC_UD);
    PUT(g, code_bases);
    assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
    assert_int_equal(guest_r(g, VM_EXIT_INTR_INFO) & 0xff, VEC_UD); /* without CR4.FSGSBASE */
    assert_int_equal(rip(g), GUEST_CODE + 10);
    cr4(g, CR4_FSGSBASE);
    PUT(g, code_bases);
    assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
    assert_int_equal(guest_r(g, VM_EXIT_INTR_INFO) & 0xff, VEC_GP);
    assert_int_equal(rip(g), END(code_bases) - 5);
    assert_int_equal(*guest_gpr(g, R_RBX), 0x55667788);
    assert_int_equal(*guest_gpr(g, R_RDX), 0xffff800000020000);
    assert_int_equal(*guest_gpr(g, R_RSI), 0x20000);
    assert_int_equal(*guest_gpr(g, R_R8), 77);
    assert_int_equal(guest_r(g, GUEST_FS_BASE), 0x7fffffffffff);
    assert_int_equal(guest_r(g, GUEST_GS_BASE), 0xffff800000020000);
}

GUEST_ASM(code_pop_rsp, "push $0x7000\n pop %rsp\n push %rax\n");
static void pop_rsp(void **state)
{
    struct guest *g = *state;

    PUT(g, code_pop_rsp);
    run_to(g, END(code_pop_rsp));
    assert_int_equal(guest_r(g, GUEST_RSP), 0x7000 - 8);
}

/* ---- privilege ---- */
/* User code at 1 calls the kernel at 2 a thousand times; both write memory of their own and count. */
GUEST_ASM(code_syscall, "lea 2f(%rip), %rax\n mov %rax, %rdx\n shr $32, %rdx\n mov $0xc0000082, %ecx\n wrmsr\n"
                        "mov $0x00100008, %edx\n xor %eax, %eax\n mov $0xc0000081, %ecx\n wrmsr\n"
                        "mov $0x200, %eax\n xor %edx, %edx\n mov $0xc0000084, %ecx\n wrmsr\n"
                        "mov $1000, %ebx\n lea 1f(%rip), %rcx\n mov $0x202, %r11d\n sysretq\n"
                        "1: incq 0x20000\n stc\n syscall\n adc $0, %rbp\n dec %ebx\n jnz 1b\n"
                        "ud2\n"
                        "2: incq 0x21000\n clc\n swapgs\n swapgs\n sysretq\n");
static void calls_and_returns(void **state)
{
    struct guest *g = *state;

    *guest_gpr(g, R_RBP) = 0;
    guest_w(g, EXCEPTION_BITMAP, 1u << VEC_UD);
    PUT(g, code_syscall);
    assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
    assert_int_equal(*(uint64_t *)(g->ram + 0x20000), 1000);
    assert_int_equal(*(uint64_t *)(g->ram + 0x21000), 1000);
    assert_int_equal(*guest_gpr(g, R_RBP), 1000); /* RFLAGS went through R11 */
    assert_int_equal(AR_DPL(guest_r(g, GUEST_SS_AR_BYTES)), 3);
    assert_int_equal(guest_r(g, GUEST_RFLAGS) & F_IF, F_IF);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, guest_setup, guest_teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(an_exit_shows_the_shadow),
        TEST(a_kick_never_comes_unseen_into_the_shadow),
        TEST(a_window_opens_behind_the_shadow),
        TEST(ac_opens_user_pages),
        TEST(ac_closes_them_again),
        TEST(ac_is_for_the_supervisor),
        TEST(time_has_its_offset),
        TEST(pause_exits_when_asked_to),
        TEST(direction),
        TEST(bases),
        TEST(pop_rsp),
        TEST(calls_and_returns),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
