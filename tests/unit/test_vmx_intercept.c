/* SPDX-License-Identifier: MIT
 * test_vmx_intercept.c: which controls make which instruction exit, and what the exit then tells. The instructions are
 * played by the script engine; that they ask at the right moment is tested where they are executed. */
#include "script.h"

static struct insn an_insn;
static uint32_t want_reason;

static int script_insn(struct cpu *cpu)
{
    int status;

    if (cpu->s.rip != GUEST_CODE) /* a handler */
        return script_hlt(cpu);
    status = vmx_intercept(cpu, &an_insn, want_reason, 0x5150);
    return status == CPU_OK ? script_hlt(cpu) : status == CPU_FAULT ? cpu_exception(cpu) : status;
}

static void exec(struct guest *g, uint32_t on, uint32_t on2)
{
    guest_w(g, CPU_BASED_VM_EXEC_CONTROL,
            guest_controls(MSR_IA32_VMX_TRUE_PROCBASED_CTLS, CPU_SECONDARY_CONTROLS | CPU_HLT_EXITING | on));
    guest_w(g, SECONDARY_VM_EXEC_CONTROL, CPU2_ENABLE_EPT | CPU2_ENABLE_VPID | CPU2_UNRESTRICTED_GUEST | on2);
}

static const struct {
    uint32_t reason, exec, exec2;
    bool always;
    uint32_t needs; /* #UD without it */
} rows[] = {
    {EXIT_REASON_CPUID, .always = true},
    {EXIT_REASON_INVD, .always = true},
    {EXIT_REASON_XSETBV, .always = true},
    {EXIT_REASON_VMCALL, .always = true},
    {EXIT_REASON_VMLAUNCH, .always = true},
    {EXIT_REASON_VMOFF, .always = true},
    {EXIT_REASON_INVLPG, CPU_INVLPG_EXITING},
    {EXIT_REASON_RDPMC, CPU_RDPMC_EXITING},
    {EXIT_REASON_RDTSC, CPU_RDTSC_EXITING},
    {EXIT_REASON_RDTSCP, CPU_RDTSC_EXITING, .needs = CPU2_ENABLE_RDTSCP},
    {EXIT_REASON_MWAIT_INSTRUCTION, CPU_MWAIT_EXITING},
    {EXIT_REASON_MONITOR_INSTRUCTION, CPU_MONITOR_EXITING},
    {EXIT_REASON_PAUSE_INSTRUCTION, CPU_PAUSE_EXITING},
    {EXIT_REASON_WBINVD, 0, CPU2_WBINVD_EXITING},
    {EXIT_REASON_RDRAND, 0, CPU2_RDRAND_EXITING},
    {EXIT_REASON_RDSEED, 0, CPU2_RDSEED_EXITING},
    {EXIT_REASON_GDTR_IDTR, 0, CPU2_DESC_EXITING},
    {EXIT_REASON_LDTR_TR, 0, CPU2_DESC_EXITING},
    {EXIT_REASON_INVPCID, CPU_INVLPG_EXITING, .needs = CPU2_ENABLE_INVPCID},
};

static uint32_t run_with(struct guest *g, uint32_t on, uint32_t on2)
{
    guest_vmcs_state(g);
    exec(g, on, on2);
    return guest_run(g);
}

static void instructions_exit_by_their_control(void **state)
{
    struct guest *g = *state;

    script = script_insn;
    an_insn = insn2;
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        want_reason = rows[i].reason;
        if (rows[i].needs) {
            assert_int_equal(run_with(g, 0, 0), EXIT_REASON_HLT);
            assert_int_equal(guest_r(g, GUEST_RIP), GUEST_HANDLER + 16 * VEC_UD);
        }
        assert_int_equal(run_with(g, 0, rows[i].needs), rows[i].always ? rows[i].reason : EXIT_REASON_HLT);
        if (!rows[i].always) {
            assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE);
            assert_int_equal(run_with(g, rows[i].exec, rows[i].exec2 | rows[i].needs), rows[i].reason);
        }
        assert_int_equal(guest_r(g, VM_EXIT_INSTRUCTION_LEN), 2);
        assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE);
    }
    want_reason = EXIT_REASON_INVLPG;
    assert_int_equal(run_with(g, CPU_INVLPG_EXITING, 0), EXIT_REASON_INVLPG);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), 0x5150);
}

/* lgdt [fs:r9*4+rbx+0x1234], 4-byte operands in 64-bit mode are 8+2: operand size bit is 1 */
static void instruction_information_names_the_operands(void **state)
{
    struct guest *g = *state;

    script = script_insn;
    an_insn = (struct insn){.len = 9,
                            .mem = 0,
                            .nops = 1,
                            .base = R_RBX,
                            .index = R_R9,
                            .scale = 2,
                            .asize = 8,
                            .opsize = 8,
                            .seg = SEG_FS,
                            .disp = 0x1234,
                            .o = {{.kind = OPK_MEM}},
                            .bytes = {0x64, 0x42, 0x0f, 0x01, 0x94, 0x8b, 0x34, 0x12, 0}};
    want_reason = EXIT_REASON_GDTR_IDTR;
    assert_int_equal(run_with(g, 0, CPU2_DESC_EXITING), EXIT_REASON_GDTR_IDTR);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), 0x1234);
    assert_int_equal(guest_r(g, VMX_INSTRUCTION_INFO),
                     2 | 2 << 7 | 1 << 11 | SEG_FS << 15 | R_R9 << 18 | R_RBX << 23 | 2u << 28);
    an_insn = (struct insn){.len = 3,
                            .mem = 0xff,
                            .nops = 1,
                            .base = REG_NONE,
                            .index = REG_NONE,
                            .opsize = 2,
                            .o = {{.kind = OPK_REG, .reg = R_RDX}},
                            .bytes = {0x0f, 0x00, 0xda}}; /* ltr dx */
    want_reason = EXIT_REASON_LDTR_TR;
    assert_int_equal(run_with(g, 0, CPU2_DESC_EXITING), EXIT_REASON_LDTR_TR);
    assert_int_equal(guest_r(g, VMX_INSTRUCTION_INFO), R_RDX << 3 | 1 << 10 | 3u << 28);
    an_insn = (struct insn){.len = 4,
                            .mem = 0xff,
                            .nops = 1,
                            .base = REG_NONE,
                            .index = REG_NONE,
                            .opsize = 8,
                            .o = {{.kind = OPK_REG, .reg = R_R11}},
                            .bytes = {0x49, 0x0f, 0xc7, 0xf3}};
    want_reason = EXIT_REASON_RDRAND;
    assert_int_equal(run_with(g, 0, CPU2_RDRAND_EXITING), EXIT_REASON_RDRAND);
    assert_int_equal(guest_r(g, VMX_INSTRUCTION_INFO), R_R11 << 3 | 2 << 11);
    an_insn = (struct insn){.len = 5,
                            .mem = 1,
                            .nops = 2,
                            .base = R_RCX,
                            .index = REG_NONE,
                            .asize = 8,
                            .opsize = 8,
                            .seg = SEG_DS,
                            .disp = -8,
                            .o = {{.kind = OPK_REG, .reg = R_RSI}, {.kind = OPK_MEM}},
                            .bytes = {0x66, 0x0f, 0x38, 0x82, 0x71}}; /* invpcid rsi, [rcx-8] */
    want_reason = EXIT_REASON_INVPCID;
    assert_int_equal(run_with(g, CPU_INVLPG_EXITING, CPU2_ENABLE_INVPCID), EXIT_REASON_INVPCID);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), -8ull);
    assert_int_equal(guest_r(g, VMX_INSTRUCTION_INFO),
                     2 << 7 | SEG_DS << 15 | 1 << 22 | R_RCX << 23 | (unsigned)R_RSI << 28);
}

/* ---- I/O ---- */

static struct {
    uint16_t port;
    unsigned size;
    bool in, string, rep, imm;
} io;

static int script_io(struct cpu *cpu)
{
    const int status = vmx_intercept_io(cpu, &an_insn, io.port, io.size, io.in, io.string, io.rep, io.imm, 0xabc);

    return status == CPU_OK ? script_hlt(cpu) : status;
}

static void io_bitmaps_choose_ports(void **state)
{
    struct guest *g = *state;

    script = script_io;
    an_insn = insn2;
    io.port = 0x3f8, io.size = 1;
    assert_int_equal(run_with(g, 0, 0), EXIT_REASON_HLT);
    assert_int_equal(run_with(g, CPU_UNCOND_IO_EXITING, 0), EXIT_REASON_IO_INSTRUCTION);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), 0x3f80000);
    assert_int_equal(run_with(g, CPU_UNCOND_IO_EXITING | CPU_USE_IO_BITMAPS, 0), EXIT_REASON_HLT);
    g->pages->io_a[0x3fb >> 3] = 1 << 3;
    g->pages->io_b[0x7fff >> 3] = 0;
    assert_int_equal(run_with(g, CPU_USE_IO_BITMAPS, 0), EXIT_REASON_HLT);
    io.size = 4, io.in = true, io.imm = true; /* the last of four ports */
    assert_int_equal(run_with(g, CPU_USE_IO_BITMAPS, 0), EXIT_REASON_IO_INSTRUCTION);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), 0x3f80000 | 1 << 6 | 1 << 3 | 3);
    io.port = 0xfffe; /* wraps around: exits whatever the bitmap says */
    assert_int_equal(run_with(g, CPU_USE_IO_BITMAPS, 0), EXIT_REASON_IO_INSTRUCTION);
    io.size = 2;
    assert_int_equal(run_with(g, CPU_USE_IO_BITMAPS, 0), EXIT_REASON_HLT);
    g->pages->io_b[4095] = 0x80;
    assert_int_equal(run_with(g, CPU_USE_IO_BITMAPS, 0), EXIT_REASON_IO_INSTRUCTION);
    io.in = false, io.imm = false, io.string = true, io.rep = true;
    an_insn.seg = SEG_GS;
    an_insn.asize = 4;
    assert_int_equal(run_with(g, CPU_USE_IO_BITMAPS, 0), EXIT_REASON_IO_INSTRUCTION);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), 0xfffe0000 | 1 << 5 | 1 << 4 | 1);
    assert_int_equal(guest_r(g, GUEST_LINEAR_ADDRESS), 0xabc);
    assert_int_equal(guest_r(g, VMX_INSTRUCTION_INFO), 1 << 7 | SEG_GS << 15);
}

/* ---- MSRs ---- */

static uint32_t msr;
static bool msr_write_access;

static int script_msr(struct cpu *cpu)
{
    const int status = vmx_intercept_msr(cpu, &insn2, msr, msr_write_access);

    return status == CPU_OK ? script_hlt(cpu) : status;
}

static void msr_bitmaps_choose_msrs(void **state)
{
    static const struct {
        uint32_t msr;
        bool write;
        unsigned byte, bit;
    } bits[] = {{0x10, false, 2, 0},       {0x1fff, false, 1023, 7},    {0xc0000080, false, 1024 + 16, 0},
                {0x10, true, 2048 + 2, 0}, {0xc0001fff, true, 4095, 7}, {0xc0000101, true, 3072 + 32, 1}};
    struct guest *g = *state;

    script = script_msr;
    for (size_t i = 0; i < ARRAY_SIZE(bits); i++) {
        msr = bits[i].msr;
        msr_write_access = bits[i].write;
        memset(g->pages->msr_bitmap, 0, 4096);
        assert_int_equal(run_with(g, CPU_USE_MSR_BITMAPS, 0), EXIT_REASON_HLT);
        g->pages->msr_bitmap[bits[i].byte] = 1u << bits[i].bit;
        assert_int_equal(run_with(g, CPU_USE_MSR_BITMAPS, 0),
                         bits[i].write ? EXIT_REASON_MSR_WRITE : EXIT_REASON_MSR_READ);
        memset(g->pages->msr_bitmap, 0xff, 4096);
        g->pages->msr_bitmap[bits[i].byte] &= ~(1u << bits[i].bit);
        assert_int_equal(run_with(g, CPU_USE_MSR_BITMAPS, 0), EXIT_REASON_HLT);
        assert_int_equal(run_with(g, 0, 0), bits[i].write ? EXIT_REASON_MSR_WRITE : EXIT_REASON_MSR_READ);
    }
    memset(g->pages->msr_bitmap, 0, 4096);
    for (msr = 0x2000; msr; msr = msr == 0x2000 ? 0x4b564d00 : msr == 0x4b564d00 ? 0xc0002000 : 0)
        assert_int_equal(run_with(g, CPU_USE_MSR_BITMAPS, 0), EXIT_REASON_MSR_WRITE); /* beyond both ranges */
}

/* ---- control and debug registers ---- */

static struct {
    unsigned cr;
    uint64_t value, result;
    enum { MOV_TO, MOV_FROM, CLTS, LMSW, DR_READ, DR_WRITE } what;
    int status;
} acc;

static int script_cr(struct cpu *cpu)
{
    acc.result = acc.value;
    acc.status = acc.what == MOV_TO     ? vmx_intercept_cr_write(cpu, &insn2, acc.cr, R_RDI, &acc.result)
                 : acc.what == MOV_FROM ? vmx_intercept_cr_read(cpu, &insn2, acc.cr, R_RSI)
                 : acc.what == CLTS     ? vmx_intercept_clts(cpu, &insn2)
                 : acc.what == LMSW     ? vmx_intercept_lmsw(cpu, &insn2, acc.value, 0x777, &acc.result)
                                        : vmx_intercept_dr(cpu, &insn2, acc.cr, acc.what == DR_WRITE, R_R8);
    if (acc.what == MOV_FROM)
        acc.result = acc.cr == 8 ? cpu->s.cr8 : vmx_visible_cr(cpu, acc.cr);
    return acc.status == CPU_VMEXIT ? CPU_VMEXIT : script_hlt(cpu);
}

static uint32_t access_cr(struct guest *g, unsigned what, unsigned cr, uint64_t value, uint32_t on)
{
    script = script_cr;
    acc.what = what;
    acc.cr = cr;
    acc.value = value;
    return run_with(g, on, 0);
}

static void host_owned_bits_exit_when_the_guest_changes_them(void **state)
{
    const uint64_t cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_ET | CR0_MP | CR0_WP; /* guest_vmcs_state */
    struct guest *g = *state;

    guest_w(g, CR0_GUEST_HOST_MASK, CR0_NE | CR0_CD | CR0_TS);
    guest_w(g, CR0_READ_SHADOW, CR0_TS);
    assert_int_equal(access_cr(g, MOV_TO, 0, CR0_PE | CR0_PG | CR0_TS, 0), EXIT_REASON_HLT);
    assert_int_equal(acc.result, CR0_PE | CR0_PG | CR0_NE); /* NE is the host's 1, TS the host's 0 */
    assert_int_equal(access_cr(g, MOV_TO, 0, CR0_PE | CR0_PG | CR0_TS | CR0_CD, 0), EXIT_REASON_CR_ACCESS);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), R_RDI << 8);
    assert_int_equal(access_cr(g, MOV_FROM, 0, 0, 0), EXIT_REASON_HLT);
    assert_int_equal(acc.result, (cr0 & ~(uint64_t)CR0_NE) | CR0_TS);
    assert_int_equal(access_cr(g, CLTS, 0, 0, 0), EXIT_REASON_CR_ACCESS);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), 2 << 4);
    guest_w(g, CR0_READ_SHADOW, 0);
    assert_int_equal(access_cr(g, CLTS, 0, 0, 0), EXIT_REASON_HLT);
    assert_int_equal(acc.status, CPU_RESCAN); /* does nothing */
    guest_w(g, CR0_GUEST_HOST_MASK, 0);
    assert_int_equal(access_cr(g, CLTS, 0, 0, 0), EXIT_REASON_HLT);
    assert_int_equal(acc.status, CPU_OK);
    guest_w(g, CR4_GUEST_HOST_MASK, CR4_VMXE | CR4_SMEP);
    guest_w(g, CR4_READ_SHADOW, CR4_SMEP);
    assert_int_equal(access_cr(g, MOV_TO, 4, CR4_PAE, 0), EXIT_REASON_CR_ACCESS);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), R_RDI << 8 | 4);
    assert_int_equal(access_cr(g, MOV_TO, 4, CR4_PAE | CR4_SMEP, 0), EXIT_REASON_HLT);
    assert_int_equal(acc.result, CR4_PAE | CR4_VMXE);
}

static void lmsw_sets_four_bits(void **state)
{
    struct guest *g = *state;

    guest_w(g, CR0_GUEST_HOST_MASK, CR0_TS);
    guest_w(g, CR0_READ_SHADOW, 0);
    assert_int_equal(access_cr(g, LMSW, 0, 0xfff0 | CR0_TS, 0), EXIT_REASON_CR_ACCESS);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), 0xfff80000 | 1 << 6 | 3 << 4);
    assert_int_equal(guest_r(g, GUEST_LINEAR_ADDRESS), 0x777);
    assert_int_equal(access_cr(g, LMSW, 0, CR0_EM, 0), EXIT_REASON_HLT);
    assert_int_equal(acc.result, CR0_PE | CR0_PG | CR0_NE | CR0_ET | CR0_WP | CR0_EM); /* MP cleared, PE stays */
}

static void cr3_targets_and_cr8(void **state)
{
    struct guest *g = *state;

    assert_int_equal(access_cr(g, MOV_TO, 3, 0x5000, 0), EXIT_REASON_HLT);
    assert_int_equal(access_cr(g, MOV_TO, 3, 0x5000, CPU_CR3_LOAD_EXITING), EXIT_REASON_CR_ACCESS);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), R_RDI << 8 | 3);
    guest_w(g, CR3_TARGET_VALUE1, 0x5000);
    guest_w(g, CR3_TARGET_COUNT, 1);
    assert_int_equal(access_cr(g, MOV_TO, 3, 0x5000, CPU_CR3_LOAD_EXITING), EXIT_REASON_CR_ACCESS);
    guest_w(g, CR3_TARGET_COUNT, 2);
    assert_int_equal(access_cr(g, MOV_TO, 3, 0x5000, CPU_CR3_LOAD_EXITING), EXIT_REASON_HLT);
    assert_int_equal(access_cr(g, MOV_FROM, 3, 0, CPU_CR3_STORE_EXITING), EXIT_REASON_CR_ACCESS);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), R_RSI << 8 | 1 << 4 | 3);
    assert_int_equal(access_cr(g, MOV_TO, 8, 5, CPU_CR8_LOAD_EXITING), EXIT_REASON_CR_ACCESS);
    assert_int_equal(access_cr(g, MOV_FROM, 8, 5, CPU_CR8_STORE_EXITING), EXIT_REASON_CR_ACCESS);
    assert_int_equal(access_cr(g, MOV_TO, 8, 5, CPU_TPR_SHADOW), EXIT_REASON_HLT);
    assert_int_equal(g->pages->virtual_apic[0x80], 0x50);
    guest_w(g, TPR_THRESHOLD, 4);
    assert_int_equal(access_cr(g, MOV_TO, 8, 3, CPU_TPR_SHADOW), EXIT_REASON_TPR_BELOW_THRESHOLD);
    assert_int_equal(guest_r(g, GUEST_RIP), GUEST_CODE + 2); /* after the instruction */
    guest_w(g, TPR_THRESHOLD, 0);
    assert_int_equal(access_cr(g, MOV_FROM, 8, 0, CPU_TPR_SHADOW), EXIT_REASON_HLT);
    assert_int_equal(acc.result, 3);
}

static void debug_registers_exit(void **state)
{
    struct guest *g = *state;

    assert_int_equal(access_cr(g, DR_READ, 6, 0, 0), EXIT_REASON_HLT);
    assert_int_equal(access_cr(g, DR_READ, 6, 0, CPU_MOV_DR_EXITING), EXIT_REASON_DR_ACCESS);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), R_R8 << 8 | 1 << 4 | 6);
    assert_int_equal(access_cr(g, DR_WRITE, 7, 0, CPU_MOV_DR_EXITING), EXIT_REASON_DR_ACCESS);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), R_R8 << 8 | 7);
}

/* ---- exceptions ---- */

static unsigned raise_vector;
static uint32_t raise_error;

static int script_raise(struct cpu *cpu)
{
    if (cpu->s.rip != GUEST_CODE)
        return script_hlt(cpu);
    if (raise_vector == VEC_PF)
        cpu_raise_pf(cpu, 0x123456, raise_error);
    else
        cpu_raise(cpu, raise_vector);
    return cpu_exception(cpu);
}

static uint32_t raise_with(struct guest *g, unsigned vector, uint32_t error, uint32_t bitmap, uint32_t mask,
                           uint32_t match)
{
    script = script_raise;
    raise_vector = vector;
    raise_error = error;
    guest_w(g, EXCEPTION_BITMAP, bitmap);
    guest_w(g, PAGE_FAULT_ERROR_CODE_MASK, mask);
    guest_w(g, PAGE_FAULT_ERROR_CODE_MATCH, match);
    return run_with(g, 0, 0);
}

static void the_exception_bitmap_with_page_fault_filter(void **state)
{
    struct guest *g = *state;

    assert_int_equal(raise_with(g, VEC_UD, 0, 0, 0, 0), EXIT_REASON_HLT);
    assert_int_equal(raise_with(g, VEC_UD, 0, 1u << VEC_UD, 0, 0), EXIT_REASON_EXCEPTION_NMI);
    assert_int_equal(guest_r(g, VM_EXIT_INTR_INFO), INTR_INFO_VALID | INTR_HARD_EXC << 8 | VEC_UD);
    assert_int_equal(guest_r(g, GUEST_RFLAGS) & F_RF, F_RF);
    cpu_state(g->cpu)->cr2 = 1;
    assert_int_equal(raise_with(g, VEC_PF, PF_W, 1u << VEC_PF, 0, 0), EXIT_REASON_EXCEPTION_NMI);
    assert_int_equal(guest_r(g, VM_EXIT_INTR_INFO),
                     INTR_INFO_VALID | INTR_INFO_ERROR_CODE | INTR_HARD_EXC << 8 | VEC_PF);
    assert_int_equal(guest_r(g, VM_EXIT_INTR_ERROR_CODE), PF_W);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), 0x123456);
    assert_int_equal(cpu_state(g->cpu)->cr2, 1); /* not loaded: the fault was not delivered */
    assert_int_equal(raise_with(g, VEC_PF, PF_W, 1u << VEC_PF, PF_P, PF_P), EXIT_REASON_HLT);
    assert_int_equal(cpu_state(g->cpu)->cr2, 0x123456);
    assert_int_equal(raise_with(g, VEC_PF, PF_W, 0, PF_P, PF_P), EXIT_REASON_EXCEPTION_NMI);
    assert_int_equal(raise_with(g, VEC_PF, PF_P, 0, PF_P, PF_P), EXIT_REASON_HLT);
}

/* ---- TSC ---- */

static uint64_t tsc_seen;

static int script_tsc(struct cpu *cpu)
{
    tsc_seen = vmx_guest_tsc(cpu);
    return script_hlt(cpu);
}

static void the_guest_tsc_is_offset_and_scaled(void **state)
{
    struct guest *g = *state;
    uint64_t before;

    script = script_tsc;
    guest_w(g, TSC_OFFSET, 1ull << 60);
    guest_w(g, TSC_MULTIPLIER, 3ull << 47); /* 1.5 */
    before = cpu_rdtsc();
    run_with(g, 0, 0);
    assert_in_range(tsc_seen - before, 0, 1u << 31);
    run_with(g, CPU_USE_TSC_OFFSETTING, 0);
    assert_in_range(tsc_seen - before - (1ull << 60), 0, 1u << 31);
    run_with(g, CPU_USE_TSC_OFFSETTING, CPU2_TSC_SCALING);
    assert_in_range(tsc_seen - before / 2 * 3 - (1ull << 60), 0, 1u << 31);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        SCRIPT_TEST(instructions_exit_by_their_control),
        SCRIPT_TEST(instruction_information_names_the_operands),
        SCRIPT_TEST(io_bitmaps_choose_ports),
        SCRIPT_TEST(msr_bitmaps_choose_msrs),
        SCRIPT_TEST(host_owned_bits_exit_when_the_guest_changes_them),
        SCRIPT_TEST(lmsw_sets_four_bits),
        SCRIPT_TEST(cr3_targets_and_cr8),
        SCRIPT_TEST(debug_registers_exit),
        SCRIPT_TEST(the_exception_bitmap_with_page_fault_filter),
        SCRIPT_TEST(the_guest_tsc_is_offset_and_scaled),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
