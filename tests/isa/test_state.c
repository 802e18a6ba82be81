/* SPDX-License-Identifier: MIT
 * test_state.c: what the host cannot be asked: #NM and #UD by control bits, formats of other modes, the border between
 * the guest's vector state and C code. */
#include <stdarg.h>
#include <setjmp.h>
#include <stdlib.h>
#include <cmocka.h>
#include "isa.h"

static struct outcome out;
static struct regs regs;

static void start(void)
{
    struct cpu_state *s = cpu_state(guest_cpu());

    host_signals_init(); /* cmocka puts its own in place before each test */
    s->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    s->xcr0 = cpu_fpu_xcr0_mask();
    guest_mode(MODE_64);
    memset(regs.fpu, 0, cpu_fpu_area_size());
    fpu_area_init(regs.fpu, fpu_layout()->mask);
    regs.fpu->mxcsr = MXCSR_INIT;
    memset(regs.gpr, 0, sizeof(regs.gpr));
    regs.gpr[R_RAX] = ARENA + PG_RW0 * PAGE_SIZE;
    regs.rip = ARENA + 64;
}

static int execute(enum cpu_mode mode, const void *bytes, unsigned n)
{
    struct insn in;
    uint8_t buf[15] = {0};

    memcpy(buf, bytes, n);
    host_fpu_save(guest_cpu());
    insn_decode(buf, sizeof(buf), mode, &in);
    guest_run(&in, &regs, &out);
    return out.vector;
}

/* SDM 3A, "Emulation of the FPU/SIMD Instructions"; SDM 2A, "SIMD Floating-Point Exceptions" tables. */
#define X87  "\xd9\xe8" /* fld1 */
#define WAIT "\x9b"
#define MMX  "\x0f\xfc\xc0"             /* paddb mm0, mm0 */
#define SSE  "\x66\x0f\xfc\xc0"         /* paddb xmm0, xmm0 */
#define VEX  "\xc5\xf9\xfc\xc0"         /* vpaddb xmm0, xmm0, xmm0 */
#define EVEX "\x62\xf1\x7d\x48\xfe\xc0" /* vpaddd zmm0, zmm0, zmm0 */
#define KOP  "\xc5\xfc\x47\xc0"         /* kxorw k0, k0, k0 */
#define FXS  "\x0f\xae\x00"             /* fxsave [rax] */
#define XSV  "\x0f\xae\x20"             /* xsave [rax] */
#define LDM  "\x0f\xae\x10"             /* ldmxcsr [rax] */
#define GATH "\xc4\xe2\x69\x90\x04\x08" /* vpgatherdd xmm0, [rax+xmm1], xmm2 */

static const struct control_case {
    const char *bytes;
    unsigned len;
    uint64_t cr0_set, cr0_clear, cr4_clear, xcr0;
    int vector;
} control_cases[] = {
#define CASE(bytes, set, clear, cr4, xcr0, vector)              \
    {                                                           \
        bytes, sizeof(bytes) - 1, set, clear, cr4, xcr0, vector \
    }
    CASE(X87, 0, 0, 0, 7, -1),
    CASE(X87, CR0_TS, 0, 0, 7, VEC_NM),
    CASE(X87, CR0_EM, 0, 0, 7, VEC_NM),
    CASE(WAIT, CR0_TS, 0, 0, 7, VEC_NM),
    CASE(WAIT, CR0_TS, CR0_MP, 0, 7, -1),
    CASE(WAIT, CR0_EM, 0, 0, 7, -1),
    CASE(MMX, 0, 0, CR4_OSFXSR, 7, -1),
    CASE(MMX, CR0_EM, 0, 0, 7, VEC_UD),
    CASE(MMX, CR0_TS, 0, 0, 7, VEC_NM),
    CASE(SSE, 0, 0, CR4_OSXSAVE, 7, -1),
    CASE(SSE, 0, 0, CR4_OSFXSR, 7, VEC_UD),
    CASE(SSE, CR0_EM | CR0_TS, 0, 0, 7, VEC_UD),
    CASE(SSE, CR0_TS, 0, 0, 7, VEC_NM),
    CASE(VEX, CR0_EM, 0, CR4_OSFXSR, 7, -1),
    CASE(VEX, 0, 0, CR4_OSXSAVE, 7, VEC_UD),
    CASE(VEX, 0, 0, 0, 3, VEC_UD),
    CASE(VEX, CR0_TS, 0, 0, 7, VEC_NM),
    CASE(GATH, 0, 0, 0, 3, VEC_UD),
    CASE(GATH, CR0_TS, 0, 0, 7, VEC_NM),
    CASE(EVEX, 0, 0, 0, 7, VEC_UD),
    CASE(KOP, 0, 0, 0, 7, VEC_UD),
    CASE(FXS, CR0_TS, 0, 0, 7, VEC_NM),
    CASE(FXS, CR0_EM, 0, 0, 7, VEC_NM),
    CASE(XSV, 0, 0, CR4_OSXSAVE, 7, VEC_UD),
    CASE(XSV, CR0_TS, 0, 0, 7, VEC_NM),
    CASE(LDM, 0, 0, CR4_OSFXSR, 7, VEC_UD),
    CASE(LDM, CR0_TS, 0, 0, 7, VEC_NM),
};

static void control_bits(void **state)
{
    struct cpu_state *s = cpu_state(guest_cpu());

    if (!cpu_has_feature(FEAT_AVX2))
        skip();
    for (unsigned i = 0; i < ARRAY_SIZE(control_cases); i++) {
        const struct control_case *c = &control_cases[i];

        start();
        s->cr0 = (s->cr0 | c->cr0_set) & ~c->cr0_clear;
        s->cr4 &= ~c->cr4_clear;
        s->xcr0 = c->xcr0;
        cpu_mode_changed(guest_cpu());
        if (execute(MODE_64, c->bytes, c->len) != c->vector)
            fail_msg("case %u: vector %d, not %d", i, out.vector, c->vector);
    }
}

/* An unmasked SIMD exception is #XM, or #UD where the system does not take it (SDM 3A, "Interrupt 19"). */
static void simd_exceptions(void **state)
{
    start();
    regs.fpu->mxcsr = MXCSR_INIT & ~0x200u; /* divide by zero unmasked */
    ((float *)regs.fpu->xmm[1])[0] = 1;
    ((float *)regs.fpu->xmm[1])[1] = ((float *)regs.fpu->xmm[1])[2] = ((float *)regs.fpu->xmm[1])[3] = 1;
    assert_int_equal(execute(MODE_64, "\x0f\x5e\xc8", 3), VEC_XM); /* divps xmm1, xmm0 */
    cpu_state(guest_cpu())->cr4 &= ~CR4_OSXMMEXCPT;
    assert_int_equal(execute(MODE_64, "\x0f\x5e\xc8", 3), VEC_UD);
}

/* VEX and EVEX are LDS, LES and BOUND, or nothing, in real mode. */
static void no_vex_in_real_mode(void **state)
{
    struct insn in;

    assert_int_equal(insn_decode((const uint8_t *)VEX, 4, MODE_REAL, &in), -1);
    assert_int_equal(insn_decode((const uint8_t *)EVEX, 6, MODE_V86, &in), -1);
    assert_int_equal(insn_decode((const uint8_t *)SSE, 4, MODE_REAL, &in), 0);
}

/* FNSTENV's real-address format (SDM 1, figure "Real Mode x87 FPU State Image in Memory, 16-Bit Format"). Paging is
 * off: linear addresses are this process's, where the host's side of the arena lies. */
static void environment_in_real_mode(void **state)
{
    struct cpu_state *s = cpu_state(guest_cpu());
    const uint16_t *env = (const uint16_t *)(ARENA + PG_RW0 * PAGE_SIZE);
    struct insn in;

    start();
    s->cr0 &= ~(CR0_PE | CR0_PG);
    s->efer = 0;
    for (unsigned i = 0; i < 6; i++)
        s->seg[i] = (struct segment){.sel = 0x1234, .base = ARENA + PG_RW0 * PAGE_SIZE, .limit = 0xffff, .attr = 0x93};
    cpu_mode_changed(guest_cpu());
    assert_int_equal(s->mode, MODE_REAL);
    regs.rip = 0x5678;
    regs.gpr[R_RBX] = 0x40;
    assert_int_equal(execute(MODE_REAL, "\xd9\x47\x02", 3), -1); /* fld dword [bx+2] */
    assert_int_equal(insn_decode((const uint8_t *)"\xd9\x37\0\0\0\0\0\0\0\0\0\0\0\0", 15, MODE_REAL, &in), 0);
    s->gpr[R_RBX] = 0;
    assert_int_equal(in.fn(guest_cpu(), &in), CPU_OK); /* fnstenv [bx] */
    assert_int_equal(env[0], FCW_INIT);
    assert_int_equal(env[2], 0x7fff | (1 << 14)); /* ST7 holds a zero, all else empty */
    assert_int_equal(env[3], (0x12340 + 0x5678) & 0xffff);
    assert_int_equal(env[4], (0x12340 + 0x5678) >> 16 << 12 | 0x147); /* opcode D9 47 */
    assert_int_equal(env[5], (0x12340 + 0x42) & 0xffff);
    assert_int_equal(env[6], (0x12340 + 0x42) >> 16 << 12);
    s->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
}

/* C code finds its own control words and an empty x87 stack, whatever the guest did; the guest finds its state again.
 */
static void border(void **state)
{
    uint32_t mxcsr = MXCSR_INIT | 0x6000, after = 0;
    uint16_t fcw = 0x27f, fcw_after = 0;
    uint32_t env[7];
    struct cpu *cpu = guest_cpu();

    start();
    __asm__ volatile("ldmxcsr %0\n fldcw %1" : : "m"(mxcsr), "m"(fcw));
    assert_int_equal(execute(MODE_64, X87, 2), -1); /* guest_run() saves at its end */
    __asm__ volatile("stmxcsr %0\n fnstcw %1\n fnstenv %2" : "=m"(after), "=m"(fcw_after), "=m"(env));
    mxcsr = MXCSR_INIT;
    fcw = FCW_INIT;
    __asm__ volatile("ldmxcsr %0\n fldcw %1" : : "m"(mxcsr), "m"(fcw));
    assert_int_equal(after, MXCSR_INIT | 0x6000);
    assert_int_equal(fcw_after, 0x27f);
    assert_int_equal(env[2] & 0xffff, 0xffff); /* all empty */
    assert_int_equal(out.r.fpu->ftw, 0x80);    /* the guest's ST0 */
    assert_false(cpu->fpu_live);
}

/* The hypervisor may write anything to the area: XRSTOR must not fault on it. */
static void hostile_area(void **state)
{
    struct xsave_area *a = cpu_fpu_area(guest_cpu());

    start();
    memset(a, 0xff, cpu_fpu_area_size());
    host_fpu_load(guest_cpu());
    host_fpu_save(guest_cpu());
    assert_int_equal(a->xstate_bv & ~fpu_layout()->mask, 0);
    assert_int_equal(a->mxcsr & ~fpu_layout()->mxcsr_mask, 0);
    fpu_cpu_reset(guest_cpu());
    assert_int_equal(a->fcw, FCW_INIT);
    assert_int_equal(a->mxcsr, MXCSR_INIT);
    assert_int_equal(a->xstate_bv, 0);
}

/* Vector instructions decoded twice share their copy, whatever registers their addresses use. */
static void copies_are_shared(void **state)
{
    struct insn a, b, c;

    assert_int_equal(insn_decode((const uint8_t *)"\x66\x0f\xfc\x00", 4, MODE_64, &a), 0);
    assert_int_equal(insn_decode((const uint8_t *)"\x66\x41\x0f\xfc\x44\x8b\x10", 7, MODE_64, &b), 0);
    assert_int_equal(insn_decode((const uint8_t *)"\x66\x0f\xfc\x08", 4, MODE_64, &c), 0);
    assert_non_null(a.native);
    assert_ptr_not_equal(a.native, c.native);
    assert_int_equal(((struct native *)a.native)->align, 15);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(control_bits),
        cmocka_unit_test(simd_exceptions),
        cmocka_unit_test(no_vex_in_real_mode),
        cmocka_unit_test(environment_in_real_mode),
        cmocka_unit_test(border),
        cmocka_unit_test(hostile_area),
        cmocka_unit_test(copies_are_shared),
    };
    const size_t size = (cpu_fpu_area_size() + 63) & ~63ul;

    host_side_init();
    guest_side_init("interp");
    host_signals_init();
    regs.fpu = aligned_alloc(64, size);
    out.r.fpu = aligned_alloc(64, size);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
