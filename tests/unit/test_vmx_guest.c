/* SPDX-License-Identifier: MIT
 * test_vmx_guest.c: VM exits of real guest code, run by the interpreter: that each instruction asks for its intercept
 * at the right moment and that the exit tells what the manual says. Machine code in the comments' words. */
#include "guest.h"
#include <pthread.h>
#include <unistd.h>

static void exec(struct guest *g, uint32_t on, uint32_t on2)
{
    guest_w(g, CPU_BASED_VM_EXEC_CONTROL,
            guest_controls(MSR_IA32_VMX_TRUE_PROCBASED_CTLS, CPU_SECONDARY_CONTROLS | CPU_USE_MSR_BITMAPS | on));
    guest_w(g, SECONDARY_VM_EXEC_CONTROL,
            CPU2_ENABLE_EPT | CPU2_ENABLE_VPID | CPU2_UNRESTRICTED_GUEST | CPU2_ENABLE_RDTSCP | CPU2_ENABLE_INVPCID |
                on2);
}

static uint32_t run(struct guest *g, const char *code, size_t n)
{
    guest_vmcs_state(g);
    guest_code(g, code, n);
    return guest_run(g);
}
#define RUN(g, code) run(g, code, sizeof(code) - 1)

/* ---- one instruction, one exit ---- */

#define ANY ~0ull

static const struct row {
    const char *text, *code;
    unsigned len;
    uint32_t reason, exec, exec2;
    uint64_t qualification;
    bool always; /* exits with all controls 0 too */
} rows[] = {
    {"cpuid", "\x0f\xa2", 2, EXIT_REASON_CPUID, .always = true},
    {"hlt", "\xf4", 1, EXIT_REASON_HLT, CPU_HLT_EXITING},
    {"invlpg [0x20000]", "\x0f\x01\x3c\x25\x00\x00\x02\x00", 8, EXIT_REASON_INVLPG, CPU_INVLPG_EXITING, 0, 0x20000},
    {"rdtsc", "\x0f\x31", 2, EXIT_REASON_RDTSC, CPU_RDTSC_EXITING},
    {"rdtscp", "\x0f\x01\xf9", 3, EXIT_REASON_RDTSCP, CPU_RDTSC_EXITING},
    {"pause", "\xf3\x90", 2, EXIT_REASON_PAUSE_INSTRUCTION, CPU_PAUSE_EXITING},
    {"wbinvd", "\x0f\x09", 2, EXIT_REASON_WBINVD, 0, CPU2_WBINVD_EXITING},
    {"invd", "\x0f\x08", 2, EXIT_REASON_INVD, .always = true},
    {"vmcall", "\x0f\x01\xc1", 3, EXIT_REASON_VMCALL, .always = true},
    {"mov cr3, rax", "\x0f\x22\xd8", 3, EXIT_REASON_CR_ACCESS, CPU_CR3_LOAD_EXITING, 0, 3},
    {"mov rbx, cr3", "\x0f\x20\xdb", 3, EXIT_REASON_CR_ACCESS, CPU_CR3_STORE_EXITING, 0, 3 | 1 << 4 | R_RBX << 8},
    {"mov cr8, rdi", "\x44\x0f\x22\xc7", 4, EXIT_REASON_CR_ACCESS, CPU_CR8_LOAD_EXITING, 0, 8 | R_RDI << 8},
    {"mov rdi, cr8", "\x44\x0f\x20\xc7", 4, EXIT_REASON_CR_ACCESS, CPU_CR8_STORE_EXITING, 0, 8 | 1 << 4 | R_RDI << 8},
    {"mov rsi, dr7", "\x0f\x21\xfe", 3, EXIT_REASON_DR_ACCESS, CPU_MOV_DR_EXITING, 0, 7 | 1 << 4 | R_RSI << 8},
    {"mov dr6, rsi", "\x0f\x23\xf6", 3, EXIT_REASON_DR_ACCESS, CPU_MOV_DR_EXITING, 0, 6 | R_RSI << 8},
    {"in al, 0x60", "\xe4\x60", 2, EXIT_REASON_IO_INSTRUCTION, CPU_UNCOND_IO_EXITING, 0, 0x60 << 16 | 1 << 6 | 1 << 3},
    {"out dx, eax", "\xef", 1, EXIT_REASON_IO_INSTRUCTION, CPU_UNCOND_IO_EXITING, 0, 0x3f8 << 16 | 3},
    {"rep outsb", "\xf3\x6e", 2, EXIT_REASON_IO_INSTRUCTION, CPU_UNCOND_IO_EXITING, 0, 0x3f8 << 16 | 1 << 5 | 1 << 4},
    {"insw", "\x66\x6d", 2, EXIT_REASON_IO_INSTRUCTION, CPU_UNCOND_IO_EXITING, 0, 0x3f8 << 16 | 1 << 4 | 1 << 3 | 1},
    {"sgdt [0x20000]", "\x0f\x01\x04\x25\x00\x00\x02\x00", 8, EXIT_REASON_GDTR_IDTR, 0, CPU2_DESC_EXITING, 0x20000},
    {"lidt [0x20000]", "\x0f\x01\x1c\x25\x00\x00\x02\x00", 8, EXIT_REASON_GDTR_IDTR, 0, CPU2_DESC_EXITING, 0x20000},
    {"str eax", "\x0f\x00\xc8", 3, EXIT_REASON_LDTR_TR, 0, CPU2_DESC_EXITING},
    {"rdrand eax", "\x0f\xc7\xf0", 3, EXIT_REASON_RDRAND, 0, CPU2_RDRAND_EXITING},
    {"rdseed ecx", "\x0f\xc7\xf9", 3, EXIT_REASON_RDSEED, 0, CPU2_RDSEED_EXITING},
    {"invpcid rdx, [0x20000]", "\x66\x0f\x38\x82\x14\x25\x00\x00\x02\x00", 10, EXIT_REASON_INVPCID, CPU_INVLPG_EXITING,
     0, 0x20000},
    {"rdmsr", "\x0f\x32", 2, EXIT_REASON_MSR_READ, .always = true}, /* ECX = 0x4000: in neither bitmap */
    {"wrmsr", "\x0f\x30", 2, EXIT_REASON_MSR_WRITE, .always = true},
};

static void registers(struct guest *g)
{
    *guest_gpr(g, R_RAX) = GUEST_PML4;
    *guest_gpr(g, R_RCX) = 0x4000;
    *guest_gpr(g, R_RDX) = 0x3f8;
    *guest_gpr(g, R_RDI) = 0;
    *guest_gpr(g, R_RSI) = GUEST_DATA;
}

static bool offered(struct guest *g, const struct row *row)
{
    struct cpuid_regs leaf7, leaf1;

    cpu_cpuid(1, 0, &leaf1);
    cpu_cpuid(7, 0, &leaf7);
    return row->reason == EXIT_REASON_RDRAND ? leaf1.ecx >> 30 & 1
                                             : row->reason != EXIT_REASON_RDSEED || leaf7.ebx >> 18 & 1;
}

static void each_instruction_exits_when_asked_to(void **state)
{
    struct guest *g = *state;

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        const struct row *row = &rows[i];
        uint32_t reason;

        if (!offered(g, row))
            continue;
        registers(g);
        exec(g, row->exec, row->exec2);
        reason = run(g, row->code, row->len);
        if (reason != row->reason)
            fail_msg("%s: exit %u instead of %u (qualification %#llx, interruption %#llx)", row->text, reason,
                     row->reason, (unsigned long long)guest_r(g, EXIT_QUALIFICATION),
                     (unsigned long long)guest_r(g, VM_EXIT_INTR_INFO));
        assert_int_equal(guest_r(g, VM_EXIT_INSTRUCTION_LEN), row->len);
        assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE);
        if (guest_r(g, EXIT_QUALIFICATION) != row->qualification)
            fail_msg("%s: qualification %#llx", row->text, (unsigned long long)guest_r(g, EXIT_QUALIFICATION));
        if (row->always || row->reason == EXIT_REASON_HLT)
            continue;
        registers(g);
        exec(g, 0, 0);
        reason = run(g, row->code, row->len);
        if (row->reason == EXIT_REASON_INVPCID) {
            assert_int_equal(guest_r(g, GUEST_RIP), GUEST_HANDLER + 16 * VEC_GP); /* executed: no such type */
            continue;
        }
        if (reason != EXIT_REASON_VMCALL || guest_r(g, GUEST_RIP) != GUEST_CODE + row->len)
            fail_msg("%s: exit %u at %#llx without its control", row->text, reason,
                     (unsigned long long)guest_r(g, GUEST_RIP));
    }
}

/* In 64-bit mode at CPL 3: #GP comes before the exit of a privileged instruction, and VMCALL exits all the same. */
static void faults_come_before_exits(void **state)
{
    static const struct {
        const char *code;
        unsigned len, vector;
    } user[] = {{"\xf4", 1, VEC_GP},     {"\x0f\x22\xd8", 3, VEC_GP}, {"\x0f\x01\x3c\x25\x00\x00\x02\x00", 8, VEC_GP},
                {"\x0f\x32", 2, VEC_GP}, {"\xe4\x60", 2, VEC_GP},     {"\x0f\x08", 2, VEC_GP},
                {"\x0f\x0b", 2, VEC_UD}};
    struct guest *g = *state;

    for (size_t i = 0; i < ARRAY_SIZE(user); i++) {
        exec(g, CPU_HLT_EXITING | CPU_CR3_LOAD_EXITING | CPU_INVLPG_EXITING | CPU_UNCOND_IO_EXITING, 0);
        guest_w(g, EXCEPTION_BITMAP, 1u << VEC_GP | 1u << VEC_UD);
        registers(g);
        guest_vmcs_state(g);
        guest_seg(g, SEG_CS, GUEST_SEL_CS3, 0, 0xffffffff, 0xa0fb);
        guest_seg(g, SEG_SS, GUEST_SEL_SS3, 0, 0xffffffff, 0xc0f3);
        guest_code(g, user[i].code, user[i].len);
        assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
        assert_int_equal(guest_r(g, VM_EXIT_INTR_INFO) & 0xff, user[i].vector);
        assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE);
        assert_int_equal(guest_r(g, GUEST_RFLAGS) & F_RF, F_RF);
    }
}

/* ---- events ---- */

static void software_exceptions_tell_their_length(void **state)
{
    struct guest *g = *state;

    guest_w(g, EXCEPTION_BITMAP, 1u << VEC_BP | 1u << VEC_DB);
    assert_int_equal(RUN(g, "\xcc"), EXIT_REASON_EXCEPTION_NMI); /* int3 */
    assert_int_equal(guest_r(g, VM_EXIT_INTR_INFO), INTR_INFO_VALID | INTR_SOFT_EXC << 8 | VEC_BP);
    assert_int_equal(guest_r(g, VM_EXIT_INSTRUCTION_LEN), 1);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE);
    assert_int_equal(RUN(g, "\xf1"), EXIT_REASON_EXCEPTION_NMI); /* int1 */
    assert_int_equal(guest_r(g, VM_EXIT_INTR_INFO), INTR_INFO_VALID | INTR_PRIV_SW_EXC << 8 | VEC_DB);
    assert_int_equal(RUN(g, "\xcd\x03"), EXIT_REASON_VMCALL); /* int 3 by number: not subject to the bitmap */
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_HANDLER + 16 * VEC_BP);
}

static void an_int_n_that_meets_the_ept_is_reported(void **state)
{
    struct guest *g = *state;

    *guest_ept_entry(g, GUEST_IDT) &= ~7ull;
    guest_invept(g);
    assert_int_equal(RUN(g, "\x90\xcd\x80"), EXIT_REASON_EPT_VIOLATION);
    assert_int_equal(guest_r(g, IDT_VECTORING_INFO_FIELD), INTR_INFO_VALID | INTR_SOFT_INT << 8 | 0x80);
    assert_int_equal(guest_r(g, VM_EXIT_INSTRUCTION_LEN), 2);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE + 1);
    *guest_ept_entry(g, GUEST_IDT) |= 7;
    guest_w(g, VM_ENTRY_INTR_INFO_FIELD, guest_r(g, IDT_VECTORING_INFO_FIELD)); /* as KVM re-injects it */
    guest_w(g, VM_ENTRY_INSTRUCTION_LEN, 2);
    assert_int_equal(guest_run(g), EXIT_REASON_VMCALL);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_HANDLER + 16 * 0x80);
    assert_int_equal(*(uint64_t *)(g->ram + guest_r(g, GUEST_RSP)), GUEST_CODE + 3);
}

/* sti; nop; nop: the window opens behind the instruction after STI. popf opens it at once. */
static void interrupt_windows_open_where_the_manual_says(void **state)
{
    struct guest *g = *state;

    exec(g, CPU_INTR_WINDOW_EXITING, 0);
    assert_int_equal(RUN(g, "\xfb\x90\x90"), EXIT_REASON_INTERRUPT_WINDOW);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE + 2);
    assert_int_equal(RUN(g, "\x68\x02\x02\x00\x00\x9d\x90\x90"), EXIT_REASON_INTERRUPT_WINDOW); /* push 0x202; popf */
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE + 6);
    assert_int_equal(RUN(g, "\xfb\xfa\x90"), EXIT_REASON_VMCALL); /* sti; cli: never open */
    guest_vmcs_state(g);
    guest_code(g, "\xfb\x8e\xd0\x90\x90", 5); /* sti; mov ss, eax; nop: two shadows in a row */
    *guest_gpr(g, R_RAX) = GUEST_SEL_SS0;
    assert_int_equal(guest_run(g), EXIT_REASON_INTERRUPT_WINDOW);
    assert_in_range(guest_r(g, GUEST_RIP), GUEST_CODE + 3, GUEST_CODE + 4);
}

static void iret_opens_the_nmi_window(void **state)
{
    struct guest *g = *state;

    exec(g, CPU_NMI_WINDOW_EXITING, 0);
    memcpy(g->ram + GUEST_HANDLER + 16 * VEC_NMI, "\x90\x48\xcf", 3); /* nop; iretq */
    guest_vmcs_state(g);
    guest_code(g, "\x90\x90", 2);
    guest_inject(g, INTR_NMI, VEC_NMI);
    assert_int_equal(guest_run(g), EXIT_REASON_NMI_WINDOW);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE);
    assert_int_equal(guest_r(g, GUEST_INTERRUPTIBILITY_INFO), 0);
}

/* IRET's stack is not mapped: blocking by NMI is over, and the exit says that it was. */
static void an_iret_that_exits_reports_nmi_unblocking(void **state)
{
    struct guest *g = *state;

    guest_vmcs_state(g);
    guest_code(g, "\x48\xcf", 2);
    guest_w(g, GUEST_INTERRUPTIBILITY_INFO, INTR_BLOCK_NMI);
    *guest_ept_entry(g, GUEST_STACK) &= ~7ull;
    guest_invept(g);
    assert_int_equal(guest_run(g), EXIT_REASON_EPT_VIOLATION);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION) & EPTQ_NMI_UNBLOCK, EPTQ_NMI_UNBLOCK);
    assert_int_equal(guest_r(g, GUEST_INTERRUPTIBILITY_INFO), 0);
    assert_int_equal(guest_r(g, IDT_VECTORING_INFO_FIELD), 0);
}

/* ---- single steps ---- */

static void the_monitor_trap_flag_exits_after_each_instruction(void **state)
{
    struct guest *g = *state;

    exec(g, CPU_MONITOR_TRAP_FLAG, 0);
    assert_int_equal(RUN(g, "\x90\x31\xc0\xeb\x00\x90"), EXIT_REASON_MONITOR_TRAP_FLAG); /* nop; xor; jmp +0; nop */
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE + 1);
    assert_int_equal(guest_run(g), EXIT_REASON_MONITOR_TRAP_FLAG);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE + 3);
    assert_int_equal(guest_run(g), EXIT_REASON_MONITOR_TRAP_FLAG);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE + 5);
    exec(g, 0, 0);
    assert_int_equal(guest_run(g), EXIT_REASON_VMCALL);
}

static void the_trap_flag_raises_db_after_one_instruction(void **state)
{
    struct guest *g = *state;

    guest_w(g, EXCEPTION_BITMAP, 1u << VEC_DB);
    guest_vmcs_state(g);
    guest_code(g, "\x90\x90", 2);
    guest_w(g, GUEST_RFLAGS, F_RESERVED | F_TF);
    assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), DR6_BS);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE + 1);
}

/* ---- EPT ---- */

static void ept_exits_describe_the_access(void **state)
{
    struct guest *g = *state;

    *guest_ept_entry(g, GUEST_DATA) &= ~7ull;
    guest_invept(g);
    assert_int_equal(RUN(g, "\x8a\x04\x25\x08\x00\x02\x00"), EXIT_REASON_EPT_VIOLATION); /* mov al, [0x20008] */
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), EPTQ_READ | EPTQ_GLA_VALID | EPTQ_GLA_XLAT);
    assert_int_equal(guest_r(g, GUEST_PHYSICAL_ADDRESS), GUEST_DATA + 8);
    assert_int_equal(guest_r(g, GUEST_LINEAR_ADDRESS), GUEST_DATA + 8);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE);
    *guest_ept_entry(g, GUEST_DATA) |= EPT_R | EPT_X;
    assert_int_equal(RUN(g, "\x88\x04\x25\x08\x00\x02\x00"), EXIT_REASON_EPT_VIOLATION); /* mov [0x20008], al */
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION),
                     EPTQ_WRITE | EPTQ_ENT_READ | EPTQ_ENT_EXEC | EPTQ_GLA_VALID | EPTQ_GLA_XLAT);
    *guest_ept_entry(g, GUEST_DATA) |= EPT_W;
    assert_int_equal(guest_run(g), EXIT_REASON_VMCALL); /* rights that were added need no INVEPT */
    *guest_ept_entry(g, GUEST_DATA) &= ~(uint64_t)EPT_R;
    guest_invept(g);
    assert_int_equal(RUN(g, "\x88\x04\x25\x08\x00\x02\x00"), EXIT_REASON_EPT_MISCONFIG); /* W without R */
    assert_int_equal(guest_r(g, GUEST_PHYSICAL_ADDRESS), GUEST_DATA + 8);
    assert_int_equal(RUN(g, "\x8a\x04\x25\x00\x00\x00\x02"), EXIT_REASON_EPT_VIOLATION); /* beyond RAM */
    assert_int_equal(guest_r(g, GUEST_PHYSICAL_ADDRESS), 0x2000000);
}

static void a_triple_fault_exits(void **state)
{
    struct guest *g = *state;

    guest_vmcs_state(g);
    guest_code(g, "\x0f\x0b", 2); /* ud2 */
    guest_w(g, GUEST_IDTR_LIMIT, 0);
    assert_int_equal(guest_run(g), EXIT_REASON_TRIPLE_FAULT);
}

/* ---- kicks ---- */

static void *kicker(void *cpu)
{
    usleep(20000);
    cpu_kick(cpu);
    return NULL;
}

static void endless_loops_are_left(void **state)
{
    static const char *const loops[] = {"\xeb\xfe\x90\x90", "\xf3\xa6\xeb\xfc",
                                        "\xff\xe0\x90\x90"}; /* jmp $; repe cmpsb; jmp rax */
    struct guest *g = *state;
    pthread_t thread;

    for (size_t i = 0; i < ARRAY_SIZE(loops); i++) {
        *guest_gpr(g, R_RAX) = GUEST_CODE;
        *guest_gpr(g, R_RCX) = 1u << 30;
        *guest_gpr(g, R_RSI) = *guest_gpr(g, R_RDI) = GUEST_DATA;
        pthread_create(&thread, NULL, kicker, g->cpu);
        assert_int_equal(run(g, loops[i], 4), EXIT_REASON_EXTERNAL_INTERRUPT);
        pthread_join(thread, NULL);
    }
    exec(g, 0, 0); /* HLT that does not exit */
    pthread_create(&thread, NULL, kicker, g->cpu);
    assert_int_equal(RUN(g, "\xf4"), EXIT_REASON_EXTERNAL_INTERRUPT);
    pthread_join(thread, NULL);
    assert_int_equal(guest_r(g, GUEST_ACTIVITY_STATE), ACTIVITY_HLT);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE + 1);
}

static void the_preemption_timer_ends_a_loop(void **state)
{
    struct guest *g = *state;

    guest_w(g, PIN_BASED_VM_EXEC_CONTROL, guest_r(g, PIN_BASED_VM_EXEC_CONTROL) | PIN_PREEMPTION_TIMER);
    guest_w(g, VMX_PREEMPTION_TIMER_VALUE, cpu_tsc_khz() * 10 >> 5); /* 10 ms */
    assert_int_equal(RUN(g, "\xeb\xfe"), EXIT_REASON_PREEMPTION_TIMER);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, guest_setup, guest_teardown)
    static const struct CMUnitTest tests[] = {
        TEST(each_instruction_exits_when_asked_to),
        TEST(faults_come_before_exits),
        TEST(software_exceptions_tell_their_length),
        TEST(an_int_n_that_meets_the_ept_is_reported),
        TEST(interrupt_windows_open_where_the_manual_says),
        TEST(iret_opens_the_nmi_window),
        TEST(an_iret_that_exits_reports_nmi_unblocking),
        TEST(the_monitor_trap_flag_exits_after_each_instruction),
        TEST(the_trap_flag_raises_db_after_one_instruction),
        TEST(ept_exits_describe_the_access),
        TEST(a_triple_fault_exits),
        TEST(endless_loops_are_left),
        TEST(the_preemption_timer_ends_a_loop),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
