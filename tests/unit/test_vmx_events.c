/* SPDX-License-Identifier: MIT
 * test_vmx_events.c: injection, windows, kicks, the preemption timer, debug exceptions that wait, MSR areas, and the
 * halted state: what happens at the boundaries between instructions. */
#include "script.h"
#include <pthread.h>
#include <unistd.h>

static void controls(struct guest *g, uint32_t pin, uint32_t exec, uint32_t drop)
{
    guest_w(g, PIN_BASED_VM_EXEC_CONTROL, guest_r(g, PIN_BASED_VM_EXEC_CONTROL) | pin);
    guest_w(g, CPU_BASED_VM_EXEC_CONTROL, (guest_r(g, CPU_BASED_VM_EXEC_CONTROL) | exec) & ~(uint64_t)drop);
}

static uint64_t stack_word(struct guest *g, unsigned n)
{
    return ((uint64_t *)(g->ram + guest_r(g, GUEST_RSP)))[n];
}

/* ---- injection ---- */

static const struct injection {
    unsigned type, vector;
    bool has_error;
    unsigned len;
    uint64_t pushed_rf;
} injections[] = {
    {INTR_EXT, 0x31, false, 0, 0},           {INTR_NMI, VEC_NMI, false, 0, 0},
    {INTR_HARD_EXC, VEC_GP, true, 0, F_RF},  {INTR_HARD_EXC, VEC_PF, true, 0, F_RF},
    {INTR_HARD_EXC, VEC_UD, false, 0, F_RF}, {INTR_SOFT_INT, 0x80, false, 2, 0},
    {INTR_SOFT_EXC, VEC_BP, false, 1, 0},    {INTR_PRIV_SW_EXC, VEC_DB, false, 1, 0},
};

/* Each type arrives at its handler with the right frame, and the valid bit is cleared by the exit. */
static void each_type_is_injected(void **state)
{
    struct guest *g = *state;

    for (size_t i = 0; i < ARRAY_SIZE(injections); i++) {
        const struct injection *in = &injections[i];
        unsigned n = 0;

        guest_vmcs_state(g);
        guest_w(g, GUEST_RFLAGS, F_RESERVED | F_IF | F_CF);
        guest_w(g, VM_ENTRY_INTR_INFO_FIELD,
                INTR_INFO_VALID | in->type << 8 | in->vector | (in->has_error ? INTR_INFO_ERROR_CODE : 0));
        guest_w(g, VM_ENTRY_EXCEPTION_ERROR_CODE, 0x7b);
        guest_w(g, VM_ENTRY_INSTRUCTION_LEN, in->len);
        cpu_state(g->cpu)->cr2 = 0x1234;
        assert_int_equal(guest_run(g), EXIT_REASON_HLT);
        assert_int_equal(guest_r(g, GUEST_RIP), GUEST_HANDLER + 16 * in->vector);
        assert_int_equal(guest_r(g, VM_ENTRY_INTR_INFO_FIELD) & INTR_INFO_VALID, 0);
        assert_int_equal(guest_r(g, IDT_VECTORING_INFO_FIELD), 0);
        if (in->has_error)
            assert_int_equal(stack_word(g, n++), 0x7b);
        assert_int_equal(stack_word(g, n), GUEST_CODE + in->len);
        assert_int_equal(stack_word(g, n + 1), GUEST_SEL_CS0);
        assert_int_equal(stack_word(g, n + 2), F_RESERVED | F_IF | F_CF | in->pushed_rf);
        assert_int_equal(stack_word(g, n + 3), GUEST_STACK);
        assert_int_equal(cpu_state(g->cpu)->cr2, 0x1234); /* the hypervisor's to set */
        assert_int_equal(guest_r(g, GUEST_INTERRUPTIBILITY_INFO), in->type == INTR_NMI ? INTR_BLOCK_NMI : 0);
        assert_int_equal(guest_r(g, GUEST_RFLAGS) & F_IF, 0);
    }
}

/* The IDT's page is not mapped by the EPT: the exit tells what was on its way, and RIP has not moved. */
static void an_exit_during_delivery_reports_the_event(void **state)
{
    struct guest *g = *state;

    for (size_t i = 0; i < ARRAY_SIZE(injections); i++) {
        const struct injection *in = &injections[i];
        const uint32_t info = INTR_INFO_VALID | in->type << 8 | in->vector | (in->has_error ? INTR_INFO_ERROR_CODE : 0);

        guest_vmcs_state(g);
        guest_w(g, GUEST_RFLAGS, F_RESERVED | F_IF);
        guest_w(g, VM_ENTRY_INTR_INFO_FIELD, info);
        guest_w(g, VM_ENTRY_EXCEPTION_ERROR_CODE, 0x7b);
        guest_w(g, VM_ENTRY_INSTRUCTION_LEN, in->len);
        *guest_ept_entry(g, GUEST_IDT) &= ~7ull;
        guest_invept(g);
        assert_int_equal(guest_run(g), EXIT_REASON_EPT_VIOLATION);
        assert_int_equal(script_runs, 0);
        assert_int_equal(guest_r(g, GUEST_PHYSICAL_ADDRESS) & ~0xfffull, GUEST_IDT);
        assert_int_equal(guest_r(g, EXIT_QUALIFICATION) & (EPTQ_READ | EPTQ_GLA_VALID), EPTQ_READ | EPTQ_GLA_VALID);
        assert_int_equal(guest_r(g, IDT_VECTORING_INFO_FIELD), info);
        if (in->has_error)
            assert_int_equal(guest_r(g, IDT_VECTORING_ERROR_CODE), 0x7b);
        if (in->len)
            assert_int_equal(guest_r(g, VM_EXIT_INSTRUCTION_LEN), in->len);
        assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE);
        assert_int_equal(guest_r(g, GUEST_RSP), GUEST_STACK);
        assert_int_equal(guest_r(g, VM_ENTRY_INTR_INFO_FIELD) & INTR_INFO_VALID, 0);
        *guest_ept_entry(g, GUEST_IDT) |= 7;
    }
}

static void a_pending_mtf_exits_at_once(void **state)
{
    struct guest *g = *state;

    guest_inject(g, INTR_OTHER, 0);
    assert_int_equal(guest_run(g), EXIT_REASON_MONITOR_TRAP_FLAG);
    assert_int_equal(script_runs, 0);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE);
    assert_int_equal(guest_run(g), EXIT_REASON_HLT);
}

/* An injected exception whose handler cannot be reached: double fault, then triple fault. */
static void nested_faults_end_in_a_triple_fault(void **state)
{
    struct guest *g = *state;

    guest_w(g, GUEST_IDTR_LIMIT, 0);
    guest_w(g, VM_ENTRY_INTR_INFO_FIELD, INTR_INFO_VALID | INTR_INFO_ERROR_CODE | INTR_HARD_EXC << 8 | VEC_GP);
    guest_w(g, VM_ENTRY_EXCEPTION_ERROR_CODE, 0);
    assert_int_equal(guest_run(g), EXIT_REASON_TRIPLE_FAULT);
    assert_int_equal(guest_r(g, IDT_VECTORING_INFO_FIELD), 0);
}

/* ---- windows ---- */

static void an_open_window_exits_before_any_instruction(void **state)
{
    struct guest *g = *state;

    controls(g, 0, CPU_INTR_WINDOW_EXITING, 0);
    guest_w(g, GUEST_RFLAGS, F_RESERVED | F_IF);
    assert_int_equal(guest_run(g), EXIT_REASON_INTERRUPT_WINDOW);
    controls(g, 0, CPU_NMI_WINDOW_EXITING, 0);
    assert_int_equal(guest_run(g), EXIT_REASON_NMI_WINDOW); /* before the interrupt window */
    assert_int_equal(script_runs, 0);
}

/* STI with its shadow, then the boundary after the next instruction. */
static int script_sti(struct cpu *cpu)
{
    cpu->s.rflags_sys |= F_IF;
    cpu->s.interruptibility |= INTR_BLOCK_STI;
    vmx_check_windows(cpu);
    if (cpu_poll(cpu) == CPU_VMEXIT)
        return CPU_VMEXIT; /* wrong: in the shadow */
    cpu->s.rip++;
    cpu->s.interruptibility &= ~INTR_BLOCK_STI;
    return atomic_load(&cpu->attention) & ATT_WINDOW ? cpu_poll(cpu) : script_hlt(cpu);
}

static void the_window_opens_after_the_shadow(void **state)
{
    struct guest *g = *state;

    controls(g, 0, CPU_INTR_WINDOW_EXITING, 0);
    script = script_sti;
    assert_int_equal(guest_run(g), EXIT_REASON_INTERRUPT_WINDOW);
    assert_int_equal(script_runs, 1);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE + 1);
    assert_int_equal(guest_r(g, GUEST_INTERRUPTIBILITY_INFO), 0);
}

static void closed_windows_do_not_exit(void **state)
{
    struct guest *g = *state;

    controls(g, 0, CPU_INTR_WINDOW_EXITING | CPU_NMI_WINDOW_EXITING, 0);
    guest_w(g, GUEST_INTERRUPTIBILITY_INFO, INTR_BLOCK_NMI);
    assert_int_equal(guest_run(g), EXIT_REASON_HLT);
    guest_w(g, GUEST_INTERRUPTIBILITY_INFO, INTR_BLOCK_MOVSS);
    guest_w(g, GUEST_RFLAGS, F_RESERVED | F_IF);
    assert_int_equal(guest_run(g), EXIT_REASON_HLT);
}

/* ---- kicks ---- */

static int script_spin(struct cpu *cpu)
{
    while (!(atomic_load(&cpu->attention) & ~ATT_STEP))
        __builtin_ia32_pause();
    return cpu_poll(cpu);
}

static void *kicker(void *cpu)
{
    usleep(20000);
    cpu_kick(cpu);
    return NULL;
}

static void a_kick_exits_now_or_at_the_next_entry(void **state)
{
    struct guest *g = *state;
    pthread_t thread;

    cpu_kick(g->cpu);
    assert_int_equal(guest_run(g), EXIT_REASON_EXTERNAL_INTERRUPT);
    assert_int_equal(script_runs, 0);
    assert_int_equal(guest_run(g), EXIT_REASON_HLT); /* one kick, one exit */
    script = script_spin;
    pthread_create(&thread, NULL, kicker, g->cpu);
    assert_int_equal(guest_run(g), EXIT_REASON_EXTERNAL_INTERRUPT);
    pthread_join(thread, NULL);
    assert_int_equal(guest_r(g, VM_EXIT_INTR_INFO), 0);
}

/* HLT that does not exit: the cpu sleeps until it is kicked, and is still halted then. */
static int script_sleep(struct cpu *cpu)
{
    if (vmx_intercept(cpu, &insn2, EXIT_REASON_HLT, 0) == CPU_VMEXIT)
        return CPU_VMEXIT;
    cpu->s.rip += 2;
    cpu->s.activity = ACTIVITY_HLT;
    cpu_attend(cpu, ATT_WINDOW);
    return cpu_poll(cpu);
}

static void a_halted_cpu_sleeps_until_kicked(void **state)
{
    struct guest *g = *state;
    pthread_t thread;

    controls(g, 0, 0, CPU_HLT_EXITING);
    script = script_sleep;
    for (unsigned i = 0; i < 3; i++) {
        guest_vmcs_state(g);
        pthread_create(&thread, NULL, kicker, g->cpu);
        assert_int_equal(guest_run(g), EXIT_REASON_EXTERNAL_INTERRUPT);
        pthread_join(thread, NULL);
        assert_int_equal(guest_r(g, GUEST_ACTIVITY_STATE), ACTIVITY_HLT);
        assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE + 2);
    }
    cpu_kick(g->cpu); /* entered halted: nothing runs */
    script_runs = 0;
    assert_int_equal(guest_run(g), EXIT_REASON_EXTERNAL_INTERRUPT);
    assert_int_equal(script_runs, 0);
    controls(g, 0, CPU_INTR_WINDOW_EXITING, 0); /* a window wakes it */
    guest_w(g, GUEST_RFLAGS, F_RESERVED | F_IF);
    assert_int_equal(guest_run(g), EXIT_REASON_INTERRUPT_WINDOW);
    assert_int_equal(guest_r(g, GUEST_ACTIVITY_STATE), ACTIVITY_HLT);
    guest_inject(g, INTR_EXT, 0x40); /* an event too */
    controls(g, 0, CPU_HLT_EXITING, CPU_INTR_WINDOW_EXITING);
    script = script_hlt;
    assert_int_equal(guest_run(g), EXIT_REASON_HLT);
    assert_int_equal(guest_r(g, GUEST_ACTIVITY_STATE), ACTIVITY_ACTIVE);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_HANDLER + 16 * 0x40);
}

/* ---- the preemption timer ---- */

static void the_preemption_timer_exits(void **state)
{
    struct guest *g = *state;
    const uint64_t tick_hz = cpu_tsc_khz() * 1000 >> VMX_TIMER_SHIFT;
    uint64_t start;

    controls(g, PIN_PREEMPTION_TIMER, 0, 0);
    guest_w(g, VM_EXIT_CONTROLS, guest_r(g, VM_EXIT_CONTROLS) | EXIT_SAVE_PREEMPTION_TIMER);
    guest_w(g, VMX_PREEMPTION_TIMER_VALUE, 0);
    assert_int_equal(guest_run(g), EXIT_REASON_PREEMPTION_TIMER);
    assert_int_equal(script_runs, 0);
    script = script_spin;
    for (unsigned i = 0; i < 3; i++) {
        guest_w(g, VMX_PREEMPTION_TIMER_VALUE, tick_hz / 100); /* 10 ms */
        start = cpu_rdtsc();
        assert_int_equal(guest_run(g), EXIT_REASON_PREEMPTION_TIMER);
        assert_true(cpu_rdtsc() - start >= (tick_hz / 100) << VMX_TIMER_SHIFT);
        assert_int_equal(guest_r(g, VMX_PREEMPTION_TIMER_VALUE), 0);
    }
    script = script_hlt;
    guest_w(g, VMX_PREEMPTION_TIMER_VALUE, 0xffffffff);
    assert_int_equal(guest_run(g), EXIT_REASON_HLT);
    assert_in_range(guest_r(g, VMX_PREEMPTION_TIMER_VALUE), 0xf0000000, 0xfffffffe);
}

/* ---- debug exceptions ---- */

static void a_pending_debug_exception_is_delivered(void **state)
{
    struct guest *g = *state;

    cpu_state(g->cpu)->dr6 = DR6_FIXED;
    guest_w(g, GUEST_PENDING_DBG_EXCEPTIONS, DR6_BS);
    assert_int_equal(guest_run(g), EXIT_REASON_HLT);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_HANDLER + 16 * VEC_DB);
    assert_int_equal(cpu_state(g->cpu)->dr6, DR6_FIXED | DR6_BS);
    guest_vmcs_state(g);
    guest_w(g, EXCEPTION_BITMAP, 1u << VEC_DB);
    guest_w(g, GUEST_PENDING_DBG_EXCEPTIONS, DR6_BS);
    assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), DR6_BS);
    assert_int_equal(guest_r(g, VM_EXIT_INTR_INFO), INTR_INFO_VALID | INTR_HARD_EXC << 8 | VEC_DB);
}

/* ---- state round trip ---- */

static int script_change_all(struct cpu *cpu)
{
    struct cpu_state *s = &cpu->s;

    for (unsigned i = 0; i < 6; i++)
        if (i != SEG_CS && i != SEG_SS)
            s->seg[i].base += 0x1000 * (i + 1);
    s->rip += 5;
    s->gpr[R_RSP] -= 8;
    s->cr3 += 0x1000;
    s->sysenter_esp = 0x77;
    s->pat = 0x0606060606060606;
    s->efer &= ~EFER_SCE;
    s->dr7 = DR7_FIXED | 2;
    s->idtr.limit = 0x123;
    s->rflags_sys |= F_ID;
    s->flags |= F_ZF;
    return script_hlt(cpu);
}

static void guest_state_is_saved(void **state)
{
    struct guest *g = *state;

    script = script_change_all;
    assert_int_equal(guest_run(g), EXIT_REASON_HLT);
    assert_int_equal(guest_r(g, GUEST_FS_BASE), 0x1000 * (SEG_FS + 1));
    assert_int_equal(guest_r(g, GUEST_ES_BASE), 0x1000 * (SEG_ES + 1));
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE + 5);
    assert_int_equal(guest_r(g, GUEST_RSP), GUEST_STACK - 8);
    assert_int_equal(guest_r(g, GUEST_CR3), GUEST_PML4 + 0x1000);
    assert_int_equal(guest_r(g, GUEST_SYSENTER_ESP), 0x77);
    assert_int_equal(guest_r(g, GUEST_IA32_PAT), 0x0606060606060606);
    assert_int_equal(guest_r(g, GUEST_IA32_EFER), EFER_LME | EFER_LMA | EFER_NXE);
    assert_int_equal(guest_r(g, GUEST_DR7), DR7_FIXED | 2);
    assert_int_equal(guest_r(g, GUEST_IDTR_LIMIT), 0x123);
    assert_int_equal(guest_r(g, GUEST_RFLAGS), F_RESERVED | F_ID | F_ZF);
    assert_int_equal(guest_r(g, VM_EXIT_INSTRUCTION_LEN), 2);
    guest_w(g, VM_EXIT_CONTROLS, guest_r(g, VM_EXIT_CONTROLS) & ~(uint64_t)(EXIT_SAVE_PAT | EXIT_SAVE_EFER));
    guest_w(g, GUEST_IA32_PAT, 0x0007040600070406);
    assert_int_equal(guest_run(g), EXIT_REASON_HLT); /* changed again, not saved */
    assert_int_equal(guest_r(g, GUEST_IA32_PAT), 0x0007040600070406);
}

/* ---- MSR areas ---- */

static struct {
    uint32_t index, reserved;
    uint64_t data;
} __attribute__((aligned(16))) msrs[3];

static void msr_areas_are_loaded_and_stored(void **state)
{
    struct guest *g = *state;

    memset(msrs, 0, sizeof(msrs));
    msrs[0].index = 0xc0000082; /* LSTAR */
    msrs[0].data = 0xffffffff81000000;
    msrs[1].index = 0xc0000103; /* TSC_AUX */
    msrs[1].data = 7;
    guest_w(g, VM_ENTRY_MSR_LOAD_ADDR, (uint64_t)msrs);
    guest_w(g, VM_ENTRY_MSR_LOAD_COUNT, 2);
    assert_int_equal(guest_run(g), EXIT_REASON_HLT);
    assert_int_equal(cpu_state(g->cpu)->lstar, 0xffffffff81000000);
    assert_int_equal(cpu_state(g->cpu)->tsc_aux, 7);
    guest_w(g, VM_ENTRY_MSR_LOAD_COUNT, 0);
    guest_w(g, VM_EXIT_MSR_STORE_ADDR, (uint64_t)msrs);
    guest_w(g, VM_EXIT_MSR_STORE_COUNT, 2);
    msrs[0].data = msrs[1].data = 0;
    assert_int_equal(guest_run(g), EXIT_REASON_HLT);
    assert_int_equal(msrs[0].data, 0xffffffff81000000);
    assert_int_equal(msrs[1].data, 7);
}

static void a_bad_msr_fails_the_entry_by_its_number(void **state)
{
    static const struct {
        uint32_t index, reserved;
        uint64_t data;
    } bad[] = {{0xc0000100, 0, 0}, {0xc0000082, 1, 0}, {0xc0000082, 0, 0x800000000000}, {0x808, 0, 0}, {0x1, 0, 0}};
    struct guest *g = *state;

    memset(msrs, 0, sizeof(msrs));
    msrs[0].index = 0xc0000103;
    guest_w(g, VM_ENTRY_MSR_LOAD_ADDR, (uint64_t)msrs);
    guest_w(g, VM_ENTRY_MSR_LOAD_COUNT, 2);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        memcpy(&msrs[1], &bad[i], sizeof(msrs[1]));
        assert_int_equal(guest_run(g), EXIT_REASON_FAILED_VMENTRY | EXIT_REASON_MSR_LOAD_FAIL);
        assert_int_equal(guest_r(g, EXIT_QUALIFICATION), 2);
        assert_int_equal(script_runs, 0);
    }
}

/* ---- INVEPT, INVVPID ---- */

static void invalidations_check_their_operands(void **state)
{
    struct guest *g = *state;

    assert_int_equal(cpu_invept(g->cpu, INVEPT_GLOBAL, 0), VMX_OK);
    assert_int_equal(cpu_invept(g->cpu, INVEPT_CONTEXT, guest_eptp(g)), VMX_OK);
    assert_int_equal(cpu_invept(g->cpu, INVEPT_CONTEXT, guest_eptp(g) | 0x80), VMX_FAIL_VALID);
    assert_int_equal(guest_r(g, VM_INSTRUCTION_ERROR), VMXERR_INV_OPERAND);
    assert_int_equal(cpu_invept(g->cpu, 3, guest_eptp(g)), VMX_FAIL_VALID);
    assert_int_equal(cpu_invvpid(g->cpu, INVVPID_ALL, 0, 0), VMX_OK);
    assert_int_equal(cpu_invvpid(g->cpu, INVVPID_CONTEXT, 1, 0), VMX_OK);
    assert_int_equal(cpu_invvpid(g->cpu, INVVPID_CONTEXT_KEEP_GLOBAL, 1, 0), VMX_OK);
    assert_int_equal(cpu_invvpid(g->cpu, INVVPID_ADDR, 1, 0x1000), VMX_OK);
    assert_int_equal(cpu_invvpid(g->cpu, INVVPID_CONTEXT, 0, 0), VMX_FAIL_VALID);
    assert_int_equal(cpu_invvpid(g->cpu, INVVPID_ADDR, 1, 0x800000000000), VMX_FAIL_VALID);
    assert_int_equal(cpu_invvpid(g->cpu, 4, 1, 0), VMX_FAIL_VALID);
    assert_int_equal(guest_r(g, VM_INSTRUCTION_ERROR), VMXERR_INV_OPERAND);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        SCRIPT_TEST(each_type_is_injected),
        SCRIPT_TEST(an_exit_during_delivery_reports_the_event),
        SCRIPT_TEST(a_pending_mtf_exits_at_once),
        SCRIPT_TEST(nested_faults_end_in_a_triple_fault),
        SCRIPT_TEST(an_open_window_exits_before_any_instruction),
        SCRIPT_TEST(the_window_opens_after_the_shadow),
        SCRIPT_TEST(closed_windows_do_not_exit),
        SCRIPT_TEST(a_kick_exits_now_or_at_the_next_entry),
        SCRIPT_TEST(a_halted_cpu_sleeps_until_kicked),
        SCRIPT_TEST(the_preemption_timer_exits),
        SCRIPT_TEST(a_pending_debug_exception_is_delivered),
        SCRIPT_TEST(guest_state_is_saved),
        SCRIPT_TEST(msr_areas_are_loaded_and_stored),
        SCRIPT_TEST(a_bad_msr_fails_the_entry_by_its_number),
        SCRIPT_TEST(invalidations_check_their_operands),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
