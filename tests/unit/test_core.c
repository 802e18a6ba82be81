/* SPDX-License-Identifier: MIT
 * test_core.c: state, CPUID, event delivery, segmentation, debug exceptions and system instructions, by guest code on
 * the raw VMX operations. Code is assembled here; a VMCALL ends each step. */
#include "guest.h"
#include "../../src/cpu/insn/insn.h"

#define VMCALL "\n.byte 0x0f, 0x01, 0xc1\n"

static void put(struct guest *g, const uint8_t *code, const uint8_t *end)
{
    guest_code(g, code, (size_t)(end - code));
}
#define PUT(g, name) put(g, name, name##_end)

static uint64_t rip(struct guest *g)
{
    return guest_r(g, GUEST_RIP);
}

/* Run to the next VMCALL, which is at `where`, and step over it. */
static void run_to(struct guest *g, uint64_t where)
{
    assert_int_equal(guest_run(g), EXIT_REASON_VMCALL);
    assert_int_equal(rip(g), where);
    guest_skip(g);
}

static uint64_t handler(unsigned vector)
{
    return GUEST_HANDLER + 16 * vector;
}

static const uint64_t *frame(struct guest *g)
{
    return (const uint64_t *)(g->ram + guest_r(g, GUEST_RSP));
}

static uint64_t end_of(const uint8_t *code, const uint8_t *end)
{
    return GUEST_CODE + (uint64_t)(end - code);
}
#define END(name) end_of(name, name##_end)

/* ---- state ---- */
static void snapshot_round_trip(void **state)
{
    struct cpu_state a = {0}, b;
    uint8_t buf[sizeof(struct cpu_state) + 64];
    char why[80];
    const size_t size = cpu_state_save(&a, NULL, 0);

    assert_in_range(size, 600, sizeof(buf));
    for (size_t i = 0; i < sizeof(a); i++)
        ((uint8_t *)&a)[i] = (uint8_t)(i * 7 + 3);
    memset(&b, 0, sizeof(b));
    assert_false(cpu_state_equal(&a, &b, 0, why, sizeof(why)));
    assert_int_equal(cpu_state_save(&a, buf, sizeof(buf)), size);
    assert_int_equal(cpu_state_restore(&b, buf, size), 0);
    assert_true(cpu_state_equal(&a, &b, 0, why, sizeof(why)));
    assert_int_not_equal(b.mode, a.mode); /* derived: not in the snapshot */
    assert_int_equal(cpu_state_restore(&b, buf, size - 1), -1);
    buf[0] ^= 1;
    assert_int_equal(cpu_state_restore(&b, buf, size), -1);
    b.flags ^= F_AF;
    assert_true(cpu_state_equal(&a, &b, F_AF, why, sizeof(why)));
    assert_false(cpu_state_equal(&a, &b, F_CF, why, sizeof(why)));
    b = a;
    b.gpr[R_RBX] = 5;
    assert_false(cpu_state_equal(&a, &b, 0, why, sizeof(why)));
    assert_memory_equal(why, "rbx: ", 5);
}

static void reset_and_init(void **state)
{
    struct guest *g = *state;
    struct cpu_state *s = cpu_state(g->cpu);

    s->star = 0x1234;
    s->cr2 = 5;
    s->cr0 |= CR0_CD;
    cpu_reset(g->cpu, true);
    assert_int_equal(s->star, 0x1234);
    assert_int_equal(s->cr2, 0);
    assert_int_equal(s->cr0, CR0_ET | CR0_CD | CR0_NW);
    cpu_reset(g->cpu, false);
    assert_int_equal(s->star, 0);
    assert_int_equal(s->cr0, CR0_ET | CR0_CD | CR0_NW);
    assert_int_equal(s->rip, 0xfff0);
    assert_int_equal(s->seg[SEG_CS].base, 0xffff0000);
    assert_int_equal(s->mode, MODE_REAL);
}

/* ---- CPUID ---- */
static void host(uint32_t leaf, uint32_t sub, struct cpuid_regs *r)
{
    __asm__("cpuid" : "=a"(r->eax), "=b"(r->ebx), "=c"(r->ecx), "=d"(r->edx) : "a"(leaf), "c"(sub));
}

static void cpuid_offers_no_more_than_is_allowed(void **state)
{
    struct cpuid_regs r, h;

    cpu_cpuid(1, 0, &r);
    host(1, 0, &h);
    assert_int_equal(r.eax, h.eax);
    assert_int_equal(r.ecx & (1u << 3 | 1u << 6), 0); /* MONITOR, SMX */
    assert_int_equal(r.edx & ~h.edx, 0);
    assert_int_not_equal(r.edx & 1u << 15, 0);
    cpu_cpuid(7, 0, &r);
    assert_int_equal(r.ebx & (1u << 4 | 1u << 11), 0); /* HLE, RTM */
    assert_int_equal(r.ecx & (1u << 3 | 1u << 5 | 1u << 7 | 1u << 16 | 1u << 29),
                     0);                                                     /* PKU WAITPKG SHSTK LA57 ENQCMD */
    assert_int_equal(r.edx & (1u << 5 | 1u << 20 | 1u << 22 | 1u << 24), 0); /* UINTR IBT AMX */
    cpu_cpuid(0xd, 1, &r);
    assert_int_equal(r.eax & 1u << 3, 0); /* XSAVES */
    cpu_cpuid(0x80000001, 0, &r);
    assert_int_equal(r.ecx & 1u << 2, 0); /* SVM */
    cpu_cpuid(0x80000008, 0, &r);
    assert_int_equal(r.eax >> 8 & 0xff, 48);
    assert_int_equal(r.ebx & 1u << 4, 0); /* RDPRU */
    cpu_cpuid(0x12345678, 0, &r);
    assert_int_equal(r.eax | r.ebx | r.ecx | r.edx, 0);
}

/* Each host-backed feature that is offered, the host has: asked of the host again, not of our tables. */
static void cpuid_host_features_are_the_hosts(void **state)
{
    static const struct {
        uint32_t leaf, sub;
        unsigned reg, bit, own;
    } rows[] = {
#define REGNO_EAX                               0
#define REGNO_EBX                               1
#define REGNO_ECX                               2
#define REGNO_EDX                               3
#define FEATURE(name, leaf, sub, reg, bit, own) {leaf, sub, REGNO_##reg, bit, own},
#include "../../src/cpu/features.def"
#undef FEATURE
    };
    unsigned offered = 0;

    for (unsigned i = 1; i < FEAT_COUNT; i++) {
        struct cpuid_regs r, h;
        cpu_cpuid(rows[i].leaf, rows[i].sub, &r);
        host(rows[i].leaf, rows[i].sub, &h);
        const bool have = (&r.eax)[rows[i].reg] >> rows[i].bit & 1;

        assert_int_equal(have, cpu_has_feature(i));
        offered += have;
        if (have && (rows[i].own == 0 || rows[i].own == 3))
            assert_true((&h.eax)[rows[i].reg] >> rows[i].bit & 1);
    }
    assert_in_range(offered, 40, FEAT_COUNT);
}

static void guest_cpuid_decides_reserved_bits(void **state)
{
    struct guest *g = *state;
    struct cpuid_regs one, seven, ext;

    cpu_cpuid(1, 0, &one);
    cpu_cpuid(7, 0, &seven);
    cpu_cpuid(0x80000001, 0, &ext);
    seven.ebx &= ~(1u << 7);
    ext.edx &= ~(1u << 20);
    cpu_set_guest_cpuid(g->cpu, &one, &seven, &ext, 40, false);
    assert_int_equal(g->cpu->guest_cr4_valid & CR4_SMEP, 0);
    assert_int_equal(g->cpu->guest_cr4_valid & (CR4_SMAP | CR4_PAE | CR4_PGE), CR4_SMAP | CR4_PAE | CR4_PGE);
    assert_int_equal(g->cpu->guest_efer_valid, EFER_SCE | EFER_LME | EFER_LMA);
}

/* ---- exceptions in long mode ---- */
GUEST_ASM(code_ud2, "ud2");
static void fault_pushes_rf_and_its_own_rip(void **state)
{
    struct guest *g = *state;

    PUT(g, code_ud2);
    guest_w(g, GUEST_RFLAGS, F_RESERVED | F_IF | F_CF);
    run_to(g, handler(VEC_UD));
    const uint64_t *f = frame(g);
    assert_int_equal(f[0], GUEST_CODE);
    assert_int_equal(f[1], GUEST_SEL_CS0);
    assert_int_equal(f[2], F_RESERVED | F_IF | F_CF | F_RF);
    assert_int_equal(f[3], GUEST_STACK);
    assert_int_equal(f[4], GUEST_SEL_SS0);
    assert_int_equal(guest_r(g, GUEST_RFLAGS), F_RESERVED | F_CF); /* an interrupt gate */
    assert_int_equal(guest_r(g, GUEST_SS_SELECTOR), GUEST_SEL_SS0);
}

GUEST_ASM(code_pf, "mov 0x7fffffff, %al\n mov $0x12345678000, %rbx\n mov %eax, 8(%rbx)");
static void page_fault_has_cr2_and_error(void **state)
{
    struct guest *g = *state;

    PUT(g, code_pf);
    run_to(g, handler(VEC_PF));
    assert_int_equal(cpu_state(g->cpu)->cr2, 0x7fffffff);
    assert_int_equal(frame(g)[0], 0);
    assert_int_equal(frame(g)[1], GUEST_CODE);
    assert_int_equal(frame(g)[4] & 15, GUEST_STACK & 15);
    guest_w(g, GUEST_RSP, GUEST_STACK);
    guest_w(g, GUEST_RIP, GUEST_CODE + 7);
    run_to(g, handler(VEC_PF));
    assert_int_equal(cpu_state(g->cpu)->cr2, 0x12345678008);
    assert_int_equal(frame(g)[0], PF_W);
}

static void break_gate(struct guest *g, unsigned vector)
{
    g->ram[GUEST_IDT + 16 * vector + 5] &= 0x7f; /* not present */
}

static void nested_faults(void **state)
{
    struct guest *g = *state;

    PUT(g, code_pf);
    break_gate(g, VEC_PF);
    guest_w(g, EXCEPTION_BITMAP, 1u << VEC_NP);
    assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
    assert_int_equal(guest_r(g, VM_EXIT_INTR_INFO) & ~INTR_INFO_NMI_UNBLOCK,
                     INTR_INFO_VALID | INTR_INFO_ERROR_CODE | INTR_HARD_EXC << 8 | VEC_NP);
    assert_int_equal(guest_r(g, VM_EXIT_INTR_ERROR_CODE), VEC_PF << 3 | 3);
    assert_int_equal(guest_r(g, IDT_VECTORING_INFO_FIELD),
                     INTR_INFO_VALID | INTR_INFO_ERROR_CODE | INTR_HARD_EXC << 8 | VEC_PF);
    assert_int_equal(rip(g), GUEST_CODE);
    guest_w(g, EXCEPTION_BITMAP, 0);
    run_to(g, handler(VEC_DF));
    assert_int_equal(frame(g)[0], 0);
    assert_int_equal(frame(g)[1], GUEST_CODE);
    break_gate(g, VEC_DF);
    guest_w(g, GUEST_RIP, GUEST_CODE);
    assert_int_equal(guest_run(g), EXIT_REASON_TRIPLE_FAULT);
    assert_int_equal(guest_r(g, IDT_VECTORING_INFO_FIELD) & INTR_INFO_VALID, 0);
    /* the #DF itself may be intercepted; that exit is not during a delivery */
    guest_w(g, GUEST_ACTIVITY_STATE, ACTIVITY_ACTIVE);
    guest_w(g, EXCEPTION_BITMAP, 1u << VEC_DF);
    assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
    assert_int_equal(guest_r(g, VM_EXIT_INTR_INFO) & 0xff, VEC_DF);
    assert_int_equal(guest_r(g, IDT_VECTORING_INFO_FIELD) & INTR_INFO_VALID, 0);
}

/* A benign first exception: the second is handled by itself. */
static void benign_then_contributory_is_serial(void **state)
{
    struct guest *g = *state;

    PUT(g, code_ud2);
    break_gate(g, VEC_UD);
    run_to(g, handler(VEC_NP));
    assert_int_equal(frame(g)[0], VEC_UD << 3 | 3);
    assert_int_equal(frame(g)[1], GUEST_CODE);
}

static void ist_switches_the_stack(void **state)
{
    struct guest *g = *state;
    const uint64_t ist = 0x38007;

    PUT(g, code_ud2);
    guest_gate(g, VEC_UD, handler(VEC_UD), 3, 0x8f);
    memcpy(g->ram + GUEST_TSS + 36 + 2 * 8, &ist, 8);
    guest_w(g, GUEST_RFLAGS, F_RESERVED | F_IF);
    run_to(g, handler(VEC_UD));
    assert_int_equal(guest_r(g, GUEST_RSP), 0x38000 - 40);
    assert_int_equal(frame(g)[3], GUEST_STACK);
    assert_int_equal(guest_r(g, GUEST_RFLAGS) & F_IF, F_IF); /* a trap gate */
}

/* ---- user mode ---- */
GUEST_ASM(code_user,
          "pushq $0x23\n pushq $0x28000\n pushfq\n orl $0x200, (%rsp)\n pushq $0x1b\n lea 1f(%rip), %rax\n push %rax\n"
          "iretq\n"
          "1: int $0x80\n mov %cs, %ecx\n int $0x81\n");
static void user_mode_and_back(void **state)
{
    struct guest *g = *state;

    PUT(g, code_user);
    guest_gate(g, 0x80, handler(0x80), 0, 0xee);
    run_to(g, handler(0x80));
    const uint64_t *f = frame(g);
    assert_int_equal(guest_r(g, GUEST_RSP), GUEST_STACK0 - 40);
    assert_int_equal(guest_r(g, GUEST_SS_SELECTOR), 0);
    assert_int_equal(guest_r(g, GUEST_CS_SELECTOR), GUEST_SEL_CS0);
    assert_int_equal(f[1], GUEST_SEL_CS3);
    assert_int_equal(f[2] & ~F_OSZAPC, F_RESERVED | F_IF);
    assert_int_equal(f[3], 0x28000);
    assert_int_equal(f[4], GUEST_SEL_SS3);
    /* iretq of the handler, then a gate that user code may not use */
    run_to(g, handler(VEC_GP));
    assert_int_equal(*guest_gpr(g, R_RCX), GUEST_SEL_CS3);
    assert_int_equal(frame(g)[0], 0x81 << 3 | 2);
    assert_int_equal(frame(g)[1], end_of(code_user, code_user_end) - 2);
}

GUEST_ASM(code_syscall,
          "mov $0xc0000081, %ecx\n mov $0x0008, %edx\n shl $16, %edx\n or $0x8, %edx\n xor %eax, %eax\n wrmsr\n"
          "mov $0xc0000082, %ecx\n xor %edx, %edx\n lea 2f(%rip), %rax\n wrmsr\n"
          "mov $0xc0000084, %ecx\n mov $0x200, %eax\n wrmsr\n"
          "pushq $0x23\n pushq $0x28000\n pushq $0x202\n pushq $0x1b\n lea 1f(%rip), %rax\n push %rax\n iretq\n"
          "1: syscall\n 3: ud2\n"
          "2: mov %rcx, %rbx\n mov %rsp, %rbp\n pushfq\n pop %rdx\n mov $0x28000, %rsp\n" VMCALL
          "lea 3b(%rip), %rcx\n mov $0x246, %r11\n sysretq\n");
static void syscall_and_sysret(void **state)
{
    struct guest *g = *state;

    PUT(g, code_syscall);
    assert_int_equal(guest_run(g), EXIT_REASON_VMCALL);
    assert_int_equal(guest_r(g, GUEST_CS_SELECTOR), 8);
    assert_int_equal(guest_r(g, GUEST_SS_SELECTOR), 16);
    assert_int_equal(guest_r(g, GUEST_CS_AR_BYTES), 0xa09b);
    assert_int_equal(*guest_gpr(g, R_RBP), 0x28000);
    assert_int_equal(*guest_gpr(g, R_RDX) & F_IF, 0);
    assert_int_equal(*guest_gpr(g, R_R11) & F_IF, F_IF);
    const uint64_t next = *guest_gpr(g, R_RBX);
    guest_skip(g);
    run_to(g, handler(VEC_UD)); /* STAR 63:48 is 8: CS 24|3, SS 16|3 as selectors, flat whatever the table says */
    assert_int_equal(frame(g)[0], next);
    assert_int_equal(frame(g)[1], 0x1b);
    assert_int_equal(frame(g)[2], 0x246 | F_RF);
    assert_int_equal(frame(g)[4], 0x13);
}

/* ---- debug ---- */
GUEST_ASM(code_step, "pushfq\n orl $0x100, (%rsp)\n popfq\n nop\n inc %ecx\n");
static void single_step(void **state)
{
    struct guest *g = *state;
    const uint64_t after_popf = END(code_step) - 3;

    PUT(g, code_step);
    run_to(g, handler(VEC_DB)); /* the first trap is after the instruction that follows popf */
    assert_int_equal(frame(g)[0], after_popf + 1);
    assert_int_equal(cpu_state(g->cpu)->dr6, DR6_FIXED | DR6_BS);
    assert_int_equal(frame(g)[2] & (F_TF | F_RF), F_TF);
    assert_int_equal(guest_r(g, GUEST_RFLAGS) & F_TF, 0);
    run_to(g, handler(VEC_DB)); /* iretq restores TF; inc runs, then the next trap */
    assert_int_equal(frame(g)[0], after_popf + 3);
}

GUEST_ASM(code_bp, "nop\n nop\n movl $5, 0x20010\n movw $6, 0x20004\n nop\n");
static void breakpoints(void **state)
{
    struct guest *g = *state;
    struct cpu_state *s = cpu_state(g->cpu);

    PUT(g, code_bp);
    s->dr[0] = GUEST_CODE + 1;
    s->dr[1] = 0x20013;
    s->dr[2] = 0x20002; /* four bytes from 0x20000: not met */
    guest_w(g, GUEST_DR7, DR7_FIXED | 0x3f | 0x1ull << 20 | 0xfull << 24);
    run_to(g, handler(VEC_DB));
    assert_int_equal(frame(g)[0], GUEST_CODE + 1); /* a fault: on the instruction */
    assert_int_equal(s->dr6, DR6_FIXED | 1);
    assert_int_equal(frame(g)[2] & F_RF, 0);
    *(uint64_t *)(g->ram + guest_r(g, GUEST_RSP) + 16) |= F_RF;
    s->dr6 = DR6_FIXED;
    run_to(g, handler(VEC_DB)); /* not again: RF; a trap after the write */
    assert_int_equal(s->dr6, DR6_FIXED | 2);
    assert_int_equal(frame(g)[0], GUEST_CODE + 2 + 11);
    assert_int_equal(frame(g)[2] & F_RF, 0);
    run_to(g, END(code_bp));
    assert_int_equal(*(uint32_t *)(g->ram + 0x20010), 5);
}

GUEST_ASM(code_shadow, "sti\n nop\n nop\n");
static void sti_shadow(void **state)
{
    struct guest *g = *state;

    PUT(g, code_shadow);
    guest_w(g, CPU_BASED_VM_EXEC_CONTROL, guest_r(g, CPU_BASED_VM_EXEC_CONTROL) | CPU_INTR_WINDOW_EXITING);
    assert_int_equal(guest_run(g), EXIT_REASON_INTERRUPT_WINDOW);
    assert_int_equal(rip(g), GUEST_CODE + 2);
    assert_int_equal(guest_r(g, GUEST_INTERRUPTIBILITY_INFO), 0);
}

GUEST_ASM(code_movss, "mov %ss, %eax\n pushfq\n orl $0x100, (%rsp)\n popfq\n mov %eax, %ss\n nop\n nop\n");
static void mov_ss_holds_back_the_step(void **state)
{
    struct guest *g = *state;

    PUT(g, code_movss);
    run_to(g, handler(VEC_DB));
    assert_int_equal(frame(g)[0], END(code_movss) - 1);
}

/* ---- registers ---- */
GUEST_ASM(code_cr, "mov %cr4, %rax\n or $0x80, %rax\n mov %rax, %cr4\n mov %cr4, %rbx\n"
                   "mov $0x8000000000001000, %rcx\n mov %rcx, %cr3\n");
static void control_registers(void **state)
{
    struct guest *g = *state;

    PUT(g, code_cr);
    run_to(g, handler(VEC_GP)); /* bit 63 of CR3 without PCIDE */
    assert_int_equal(frame(g)[1], END(code_cr) - 3);
    assert_int_equal(*guest_gpr(g, R_RBX) & 0x80, 0x80);
    assert_int_equal(*guest_gpr(g, R_RBX) & CR4_VMXE, 0); /* the shadow */
    assert_int_equal(guest_r(g, GUEST_CR4) & CR4_VMXE, CR4_VMXE);
}

GUEST_ASM(code_msr, "mov $0xc0000102, %ecx\n mov $0x1234, %eax\n mov $5, %edx\n wrmsr\n swapgs\n rdmsr\n"
                    "mov $0xc0000101, %ecx\n rdmsr\n mov $0x80000000, %edx\n wrmsr\n");
static void msrs_and_swapgs(void **state)
{
    struct guest *g = *state;
    uint64_t v;

    PUT(g, code_msr);
    run_to(g, handler(VEC_GP)); /* not canonical */
    assert_int_equal(*guest_gpr(g, R_RAX), 0x1234);
    assert_int_equal(guest_r(g, GUEST_GS_BASE), 0x500001234);
    assert_int_equal(cpu_guest_rdmsr(g->cpu, 0xc0000101, &v), 0);
    assert_int_equal(v, 0x500001234);
    assert_int_equal(cpu_guest_wrmsr(g->cpu, 0xc0000101, 0x1000), 0);
    assert_int_equal(guest_r(g, GUEST_GS_BASE), 0x1000);
    assert_int_equal(cpu_guest_wrmsr(g->cpu, 0xc0000101, 1ull << 63), -1);
    assert_int_equal(cpu_guest_rdmsr(g->cpu, 0x12345, &v), -1);
    assert_int_equal(cpu_guest_wrmsr(g->cpu, 0x277, 0x0200000000000000), -1);
    assert_int_equal(cpu_guest_wrmsr(g->cpu, 0x277, 0x0007040600070406), 0);
}

GUEST_ASM(code_look, "mov $0x1b, %eax\n lar %eax, %ebx\n setz %r8b\n lsl %eax, %ecx\n setz %r9b\n"
                     "mov $0x38, %eax\n lar %eax, %edx\n setz %r10b\n mov $0x10, %eax\n verw %ax\n setz %r11b\n"
                     "mov $0x1b, %eax\n verw %ax\n setz %r12b\n verr %ax\n setz %r13b\n str %r14d\n sldt %r15d\n");
static void descriptors_looked_at(void **state)
{
    struct guest *g = *state;

    PUT(g, code_look);
    for (unsigned i = 8; i < 16; i++)
        *guest_gpr(g, i) = 0x77;
    run_to(g, END(code_look));
    assert_int_equal(*guest_gpr(g, R_RBX), 0x00affb00 & 0x00f0ff00);
    assert_int_equal(*guest_gpr(g, R_RCX), 0xffffffff);
    assert_int_equal(*guest_gpr(g, R_R8), 1);
    assert_int_equal(*guest_gpr(g, R_R9), 1);
    assert_int_equal(*guest_gpr(g, R_R10), 0); /* the upper half of the TSS descriptor: no descriptor */
    assert_int_equal(*guest_gpr(g, R_R11), 1);
    assert_int_equal(*guest_gpr(g, R_R12), 0);
    assert_int_equal(*guest_gpr(g, R_R13), 1);
    assert_int_equal(*guest_gpr(g, R_R14), GUEST_SEL_TR);
    assert_int_equal(*guest_gpr(g, R_R15), 0);
}

/* ---- ports ---- */
GUEST_ASM(code_io, "mov $0x3f8, %edx\n mov $0x20000, %esi\n mov $3, %ecx\n cld\n rep outsw\n in $0x71, %al\n");
static void port_exits(void **state)
{
    struct guest *g = *state;

    PUT(g, code_io);
    assert_int_equal(guest_run(g), EXIT_REASON_IO_INSTRUCTION);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), 0x3f8u << 16 | 1u << 5 | 1u << 4 | 1);
    assert_int_equal(guest_r(g, GUEST_LINEAR_ADDRESS), 0x20000);
    assert_int_equal(*guest_gpr(g, R_RCX), 3);
    guest_skip(g);
    assert_int_equal(guest_run(g), EXIT_REASON_IO_INSTRUCTION);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), 0x71u << 16 | 1u << 6 | 1u << 3);
}

GUEST_ASM(code_user_io,
          "pushq $0x23\n pushq $0x28000\n pushq $2\n pushq $0x1b\n lea 1f(%rip), %rax\n push %rax\n iretq\n"
          "1: mov $0x61, %edx\n in %dx, %al\n mov $0x62, %edx\n in %dx, %ax\n");
static void io_permission_bitmap(void **state)
{
    struct guest *g = *state;
    const uint16_t map = 104;

    PUT(g, code_user_io);
    memcpy(g->ram + GUEST_TSS + 102, &map, 2);
    memset(g->ram + GUEST_TSS + map, 0, 32);
    g->ram[GUEST_TSS + map + 0x63 / 8] = 1 << (0x63 & 7);
    guest_w(g, GUEST_TR_LIMIT, map + 31);
    assert_int_equal(guest_run(g), EXIT_REASON_IO_INSTRUCTION);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION) >> 16, 0x61);
    guest_skip(g);
    run_to(g, handler(VEC_GP));
    assert_int_equal(frame(g)[0], 0);
    guest_w(g, GUEST_RIP, frame(g)[1]); /* a bitmap that ends before the port */
}

/* ---- from real mode to long mode ---- */
GUEST_ASM(code_boot,
          ".code16\n"
          "boot16: xor %ax, %ax\n mov %ax, %ss\n mov $0x7000, %sp\n mov %ax, %ds\n int $0x21\n" VMCALL
          "lgdtl %cs:(gdtr16 - boot16)\n mov %cr0, %eax\n or $1, %eax\n mov %eax, %cr0\n"
          "ljmpl $0x28, $(0x10000 + boot32 - boot16)\n"
          ".code32\n"
          "boot32: mov $0x10, %eax\n mov %eax, %ss\n mov %eax, %ds\n mov %eax, %es\n mov $0x9000, %esp\n" VMCALL
          "mov %cr4, %eax\n or $0x20, %eax\n mov %eax, %cr4\n mov $0x1000, %eax\n mov %eax, %cr3\n"
          "mov $0xc0000080, %ecx\n rdmsr\n or $0x100, %eax\n wrmsr\n"
          "mov %cr0, %eax\n or $0x80000000, %eax\n mov %eax, %cr0\n" VMCALL "ljmp $0x08, $(0x10000 + boot64 - boot16)\n"
          ".code64\n"
          "boot64: mov $0x1122334455667788, %rax\n lcall *farptr(%rip)\n" VMCALL "jmp 9f\n"
          "farfn: push %rax\n pop %rbx\n lret\n"
          "farptr: .long 0x10000 + farfn - boot16\n .word 8\n"
          "gdtr16: .word 63\n .long 0x4000\n"
          "9:\n");

static void real_mode_state(struct guest *g, uint16_t cs)
{
    for (unsigned n = 0; n < 6; n++)
        guest_seg(g, n, 0, 0, 0xffff, 0x93);
    guest_seg(g, SEG_CS, cs, (uint64_t)cs << 4, 0xffff, 0x9b);
    guest_w(g, GUEST_CR0, CR0_NE | CR0_ET);
    guest_w(g, GUEST_CR4, CR4_VMXE);
    guest_w(g, GUEST_IA32_EFER, 0);
    guest_w(g, VM_ENTRY_CONTROLS, guest_r(g, VM_ENTRY_CONTROLS) & ~ENTRY_IA32E_MODE);
    guest_w(g, GUEST_IDTR_BASE, 0);
    guest_w(g, GUEST_IDTR_LIMIT, 0x3ff);
    guest_w(g, GUEST_RIP, 0);
}

static void boot_from_real_mode(void **state)
{
    struct guest *g = *state;
    const uint32_t ivt = 0x00000a00u << 16 | 0x30; /* 0a00:0030 = 0xa030: vmcall; iret */

    PUT(g, code_boot);
    real_mode_state(g, 0x1000);
    memcpy(g->ram + 4 * 0x21, &ivt, 4);
    memcpy(g->ram + 0xa030, "\x0f\x01\xc1\xcf", 4);
    guest_w(g, GUEST_RFLAGS, F_RESERVED | F_IF);
    run_to(g, 0x30); /* INT 21h by the IVT */
    assert_int_equal(guest_r(g, GUEST_CS_BASE), 0xa000);
    assert_int_equal(guest_r(g, GUEST_RFLAGS) & F_IF, 0);
    const uint16_t *f = (const uint16_t *)(g->ram + guest_r(g, GUEST_RSP));
    assert_int_equal(guest_r(g, GUEST_RSP), 0x7000 - 6);
    assert_int_equal(f[1], 0x1000);
    assert_int_equal(f[2] & F_IF, F_IF);
    assert_int_equal(guest_run(g), EXIT_REASON_VMCALL);
    assert_int_equal(guest_r(g, GUEST_CS_BASE), 0x10000);
    assert_int_equal(guest_r(g, GUEST_RFLAGS) & F_IF, F_IF);
    guest_skip(g);
    assert_int_equal(guest_run(g), EXIT_REASON_VMCALL);
    assert_int_equal(guest_r(g, GUEST_CS_AR_BYTES), 0xc09b);
    assert_int_equal(guest_r(g, GUEST_CR0) & CR0_PE, CR0_PE);
    guest_skip(g);
    assert_int_equal(guest_run(g), EXIT_REASON_VMCALL); /* in compatibility mode */
    assert_int_equal(guest_r(g, GUEST_IA32_EFER), EFER_LME | EFER_LMA);
    assert_int_equal(guest_r(g, VM_ENTRY_CONTROLS) & ENTRY_IA32E_MODE, ENTRY_IA32E_MODE);
    guest_skip(g);
    assert_int_equal(guest_run(g), EXIT_REASON_VMCALL);
    assert_int_equal(guest_r(g, GUEST_CS_AR_BYTES), 0xa09b);
    assert_int_equal(*guest_gpr(g, R_RBX), 0x1122334455667788);
    assert_int_equal(guest_r(g, GUEST_RSP), 0x9000);
}

/* ---- protected mode: call gate, virtual-8086 mode ---- */
GUEST_ASM(code_prot,
          ".code32\n"
          "prot32: pushl $0x23\n pushl $0x28000\n pushl $2\n pushl $0x3b\n pushl $(0x10000 + ring3 - prot32)\n iretl\n"
          "ring3: pushl $0x1111\n pushl $0x2222\n lcall $0x43, $0\n" VMCALL
          "gate0: mov (%esp), %eax\n mov 8(%esp), %ebx\n mov 12(%esp), %ecx\n mov 16(%esp), %edx\n" VMCALL "lretl $8\n"
          "tov86: pushl $0x60\n pushl $0x50\n pushl $0x40\n pushl $0x30\n pushl $0\n pushl $0x8000\n"
          "pushl $0x20002\n pushl $0x2800\n pushl $0\n iretl\n");

static void protected_state(struct guest *g)
{
    const uint64_t user_code = 0x00cffb000000ffff;
    /* 0x38: user code; 0x40: a call gate for level 3 with two parameters */
    uint64_t *gdt = (uint64_t *)(g->ram + GUEST_GDT);
    extern const uint8_t gate0[], prot32[];
    const uint32_t target = GUEST_CODE + (uint32_t)(gate0 - prot32);
    gdt[7] = user_code;
    gdt[8] = (target & 0xffff) | (uint64_t)GUEST_SEL_CS32 << 16 | 0xec02ull << 32 | (uint64_t)(target >> 16) << 48;
    guest_w(g, GUEST_GDTR_LIMIT, 9 * 8 - 1);
    guest_w(g, GUEST_CR0, CR0_PE | CR0_NE | CR0_ET);
    guest_w(g, GUEST_CR4, CR4_VMXE);
    guest_w(g, GUEST_IA32_EFER, 0);
    guest_w(g, VM_ENTRY_CONTROLS, guest_r(g, VM_ENTRY_CONTROLS) & ~ENTRY_IA32E_MODE);
    guest_seg(g, SEG_CS, GUEST_SEL_CS32, 0, 0xffffffff, 0xc09b);
    const uint32_t tss[] = {GUEST_STACK0, GUEST_SEL_SS0};
    memcpy(g->ram + GUEST_TSS + 4, tss, 8);
    for (unsigned v = 0; v < 32; v++) {
        const uint32_t at = GUEST_HANDLER + 16 * v;
        const uint64_t d =
            (at & 0xffff) | (uint64_t)GUEST_SEL_CS32 << 16 | 0x8e00ull << 32 | (uint64_t)(at >> 16) << 48;
        memcpy(g->ram + GUEST_IDT + 8 * v, &d, 8);
    }
}

static void call_gate(void **state)
{
    struct guest *g = *state;
    extern const uint8_t prot32[], gate0[];

    PUT(g, code_prot);
    protected_state(g);
    assert_int_equal(guest_run(g), EXIT_REASON_VMCALL);
    assert_int_equal(guest_r(g, GUEST_CS_SELECTOR), GUEST_SEL_CS32);
    assert_int_equal(guest_r(g, GUEST_SS_SELECTOR), GUEST_SEL_SS0);
    assert_int_equal(guest_r(g, GUEST_RSP), GUEST_STACK0 - 24);
    assert_int_equal(*guest_gpr(g, R_RAX), GUEST_CODE + (uint64_t)(gate0 - prot32) - 3);
    assert_int_equal(*guest_gpr(g, R_RBX), 0x2222);
    assert_int_equal(*guest_gpr(g, R_RCX), 0x1111);
    assert_int_equal(*guest_gpr(g, R_RDX), 0x28000 - 8);
    guest_skip(g);
    run_to(g, GUEST_CODE + (uint64_t)(gate0 - prot32) - 3);
    assert_int_equal(guest_r(g, GUEST_CS_SELECTOR), 0x3b);
    assert_int_equal(guest_r(g, GUEST_SS_SELECTOR), 0x23);
    assert_int_equal(guest_r(g, GUEST_RSP), 0x28000);
    assert_int_equal(guest_r(g, GUEST_DS_SELECTOR), 0); /* level 0 data was dropped */
}

static void virtual_8086(void **state)
{
    struct guest *g = *state;
    extern const uint8_t prot32[], tov86[];

    PUT(g, code_prot);
    protected_state(g);
    memcpy(g->ram + 0x28000, "\xb8\x34\x12\xcd\x21", 5); /* mov ax, 0x1234; int 21h: IOPL 0, so #GP */
    guest_w(g, GUEST_RIP, GUEST_CODE + (uint64_t)(tov86 - prot32));
    run_to(g, handler(VEC_GP));
    const uint32_t *f = (const uint32_t *)(g->ram + guest_r(g, GUEST_RSP));
    assert_int_equal(guest_r(g, GUEST_RSP), GUEST_STACK0 - 40);
    assert_int_equal(f[0], 0);
    assert_int_equal(f[1], 3);
    assert_int_equal(f[2], 0x2800);
    assert_int_equal(f[3], F_RESERVED | F_VM | F_RF);
    assert_int_equal(f[4], 0x8000);
    assert_int_equal(f[5], 0);
    assert_int_equal(f[6], 0x30); /* ES DS FS GS */
    assert_int_equal(f[7], 0x40);
    assert_int_equal(f[8], 0x50);
    assert_int_equal(f[9], 0x60);
    assert_int_equal(*guest_gpr(g, R_RAX), 0x1234);
    assert_int_equal(guest_r(g, GUEST_RFLAGS) & F_VM, 0);
    assert_int_equal(guest_r(g, GUEST_DS_AR_BYTES) & AR_UNUSABLE, AR_UNUSABLE);
}

/* ---- task gates exit ---- */
GUEST_ASM(code_prot_ud, ".code32\n ud2\n");
static void task_gate_exits(void **state)
{
    struct guest *g = *state;
    const uint64_t gate = (uint64_t)0x40 << 16 | 0x8500ull << 32;
    uint64_t *gdt = (uint64_t *)(g->ram + GUEST_GDT);

    PUT(g, code_prot_ud);
    protected_state(g);
    gdt[8] = 0x0000890070000067; /* an available 32-bit TSS */
    memcpy(g->ram + GUEST_IDT + 8 * VEC_UD, &gate, 8);
    assert_int_equal(guest_run(g), EXIT_REASON_TASK_SWITCH);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), 0x40 | 3u << 30);
    assert_int_equal(guest_r(g, IDT_VECTORING_INFO_FIELD) & 0x800007ff, INTR_INFO_VALID | INTR_HARD_EXC << 8 | VEC_UD);
    gdt[8] = 0x00008b0070000067; /* busy: #GP(selector + EXT) */
    run_to(g, handler(VEC_GP));
    assert_int_equal(*(uint32_t *)(g->ram + guest_r(g, GUEST_RSP)), 0x41);
}

GUEST_ASM(code_sreg,
          "mov $0x23, %eax\n mov %eax, %ds\n push %fs\n mov $0x10, %ecx\n push %rcx\n pop %fs\n mov %fs, %edx\n"
          "movl $0x1000, 0x20000\n movw $0x10, 0x20004\n lss 0x20000, %esp\n mov %ss, 0x20008\n"
          "mov $0x23, %esi\n mov %esi, %ss\n");
static void segment_registers(void **state)
{
    struct guest *g = *state;

    PUT(g, code_sreg);
    guest_seg(g, SEG_FS, 0, 0x1234567890, 0, AR_UNUSABLE);
    run_to(g, handler(VEC_GP)); /* SS of level 3 at CPL 0 */
    assert_int_equal(frame(g)[0], 0x20);
    assert_int_equal(frame(g)[4], 0x1000);
    assert_int_equal(*guest_gpr(g, R_RDX), 0x10);
    assert_int_equal(guest_r(g, GUEST_FS_BASE), 0);
    assert_int_equal(guest_r(g, GUEST_FS_LIMIT), 0xffffffff);
    assert_int_equal(guest_r(g, GUEST_DS_AR_BYTES), 0xc0f3);
    assert_int_equal(*(uint16_t *)(g->ram + 0x20008), 0x10);
    assert_int_equal(*(uint64_t *)(g->ram + GUEST_STACK - 16), 0x10);
}

GUEST_ASM(code_int3, "nop\n int3\n nop\n");
static void int3_is_intercepted_or_trapped(void **state)
{
    struct guest *g = *state;
    FILE *f = tmpfile();
    char text[512];

    PUT(g, code_int3);
    guest_w(g, EXCEPTION_BITMAP, 1u << VEC_BP);
    assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
    assert_int_equal(guest_r(g, VM_EXIT_INTR_INFO), INTR_INFO_VALID | INTR_SOFT_EXC << 8 | VEC_BP);
    assert_int_equal(guest_r(g, VM_EXIT_INSTRUCTION_LEN), 1);
    assert_int_equal(rip(g), GUEST_CODE + 1);
    cpu_insn_text(g->cpu, text, sizeof(text));
    assert_string_equal(text, "int3");
    cpu_dump(g->cpu, f);
    rewind(f);
    assert_non_null(fgets(text, sizeof(text), f));
    assert_non_null(strstr(text, "rip 0000000000010001"));
    fclose(f);
    guest_w(g, EXCEPTION_BITMAP, 0);
    guest_w(g, GUEST_RFLAGS, F_RESERVED | F_RF);
    run_to(g, handler(VEC_BP));
    assert_int_equal(frame(g)[0], GUEST_CODE + 2);
    assert_int_equal(frame(g)[2], F_RESERVED); /* a trap: no RF */
}

GUEST_ASM(code_ins, "mov $0x20000, %edi\n mov $5, %ecx\n mov $0x1f0, %edx\n cld\n rep insw\n in %dx, %eax\n");
static void ports_without_intercept_float(void **state)
{
    struct guest *g = *state;

    PUT(g, code_ins);
    guest_w(g, CPU_BASED_VM_EXEC_CONTROL, guest_r(g, CPU_BASED_VM_EXEC_CONTROL) & ~CPU_UNCOND_IO_EXITING);
    run_to(g, END(code_ins));
    assert_int_equal(*guest_gpr(g, R_RCX), 0);
    assert_int_equal(*guest_gpr(g, R_RDI), 0x2000a);
    assert_int_equal(*guest_gpr(g, R_RAX), 0xffffffff);
    assert_int_equal(*(uint64_t *)(g->ram + 0x20008), 0xffff);
}

/* A frame over two pages of which one is not there: the fault is the hardware's, by element. */
GUEST_ASM(code_bad_stack, "mov $0x3fffffff8, %rsp\n ud2\n");
static void stack_fault_names_the_push(void **state)
{
    struct guest *g = *state;
    const uint64_t ist = 0x38000;

    PUT(g, code_bad_stack);
    guest_gate(g, VEC_DF, handler(VEC_DF), 1, 0x8e);
    guest_gate(g, VEC_PF, handler(VEC_PF), 1, 0x8e);
    memcpy(g->ram + GUEST_TSS + 36, &ist, 8);
    run_to(g, handler(VEC_PF)); /* #UD is benign: the #PF of its delivery is handled by itself */
    assert_int_equal(cpu_state(g->cpu)->cr2, 0x3fffffff0 - 8);
    assert_int_equal(frame(g)[0], PF_W);
}

static void tsc_frequency(void **state)
{
    const uint64_t khz = cpu_tsc_khz();

    assert_in_range(khz, 100000, 20000000);
    assert_int_equal(cpu_tsc_khz(), khz);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, guest_setup, guest_teardown)
    const struct CMUnitTest tests[] = {
        T(snapshot_round_trip),
        T(reset_and_init),
        T(cpuid_offers_no_more_than_is_allowed),
        T(cpuid_host_features_are_the_hosts),
        T(guest_cpuid_decides_reserved_bits),
        T(fault_pushes_rf_and_its_own_rip),
        T(page_fault_has_cr2_and_error),
        T(nested_faults),
        T(benign_then_contributory_is_serial),
        T(ist_switches_the_stack),
        T(user_mode_and_back),
        T(syscall_and_sysret),
        T(single_step),
        T(breakpoints),
        T(sti_shadow),
        T(mov_ss_holds_back_the_step),
        T(control_registers),
        T(msrs_and_swapgs),
        T(descriptors_looked_at),
        T(port_exits),
        T(io_permission_bitmap),
        T(boot_from_real_mode),
        T(call_gate),
        T(virtual_8086),
        T(task_gate_exits),
        T(segment_registers),
        T(int3_is_intercepted_or_trapped),
        T(ports_without_intercept_float),
        T(stack_fault_names_the_push),
        T(tsc_frequency),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
