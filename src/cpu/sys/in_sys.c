/* SPDX-License-Identifier: MIT
 * in_sys.c: HLT, interrupt flag, time, MSRs, caches, TLB invalidation, XCR0 and VMX instructions. Faults by privilege
 * and #UD come before the exit, all others after it (SDM 3C, "Relative Priority of Faults and VM Exits"). */
#include "sys/in_sys_int.h"
#include "mem/mem.h"

int sys_gp0(struct cpu *cpu)
{
    return cpu_raise_err(cpu, VEC_GP, 0);
}

int sys_cpl0(struct cpu *cpu)
{
    return cpu->s.cpl ? sys_gp0(cpu) : CPU_OK;
}

gva_t sys_linear(const struct cpu *cpu, enum seg_reg seg, gva_t ea)
{
    const struct cpu_state *s = &cpu->s;

    if (s->mode == MODE_64)
        return seg == SEG_FS || seg == SEG_GS ? ea + s->seg[seg].base : ea;
    return (uint32_t)(ea + s->seg[seg].base);
}

static void set_edx_eax(struct cpu *cpu, uint64_t v)
{
    cpu->s.gpr[R_RAX] = (uint32_t)v;
    cpu->s.gpr[R_RDX] = v >> 32;
}

static uint64_t get_edx_eax(const struct cpu *cpu)
{
    return (uint32_t)cpu->s.gpr[R_RAX] | cpu->s.gpr[R_RDX] << 32;
}

/* ---- HLT, interrupt flag, AC ---- */
int in_hlt(struct cpu *cpu, const struct insn *in)
{
    int st;

    if ((st = sys_cpl0(cpu)) || (st = vmx_intercept(cpu, in, EXIT_REASON_HLT, 0)))
        return st;
    cpu->s.activity = ACTIVITY_HLT; /* cpu_poll() sleeps */
    cpu_attend(cpu, ATT_WINDOW);
    return CPU_RESCAN;
}

/* CLI, STI: CPL <= IOPL; IOPL 3 in virtual-8086 mode, for neither VME nor PVI is offered. */
static bool may_change_if(const struct cpu *cpu)
{
    return cpu->s.mode == MODE_REAL || cpu->s.cpl <= (cpu->s.rflags_sys & F_IOPL) >> 12;
}

int in_cli(struct cpu *cpu, const struct insn *in)
{
    if (!may_change_if(cpu))
        return sys_gp0(cpu);
    cpu->s.rflags_sys &= ~F_IF;
    return CPU_OK;
}

int in_sti(struct cpu *cpu, const struct insn *in)
{
    struct cpu_state *s = &cpu->s;

    if (!may_change_if(cpu))
        return sys_gp0(cpu);
    if (s->rflags_sys & F_IF)
        return CPU_OK;
    s->rflags_sys |= F_IF;
    s->interruptibility |= INTR_BLOCK_STI;
    cpu_step_changed(cpu);
    return CPU_RESCAN;
}

static int change_ac(struct cpu *cpu, bool set)
{
    if (cpu->s.cpl || cpu->s.mode == MODE_V86)
        return cpu_raise(cpu, VEC_UD);
    if (set)
        cpu->s.rflags_sys |= F_AC;
    else
        cpu->s.rflags_sys &= ~F_AC;
    if (cpu->s.mode == MODE_64) { /* nothing else depends on AC at CPL 0 */
        cpu->s.acc_mode = (cpu->s.cr4 & CR4_SMAP) && !set ? AM_SUPER : AM_SUPER_USER;
        tlb_select_access(cpu);
        return CPU_OK;
    }
    cpu_mode_changed(cpu);
    return CPU_RESCAN;
}

int in_clac(struct cpu *cpu, const struct insn *in)
{
    return change_ac(cpu, false);
}

int in_stac(struct cpu *cpu, const struct insn *in)
{
    return change_ac(cpu, true);
}

int in_pause(struct cpu *cpu, const struct insn *in)
{
    return vmx_intercept(cpu, in, EXIT_REASON_PAUSE_INSTRUCTION, 0);
}

/* SDM 2B: #UD outside of CPL 0. Where they do not exit, waiting may end at once: it is a hint. */
int in_monitor(struct cpu *cpu, const struct insn *in)
{
    return cpu->s.cpl ? cpu_raise(cpu, VEC_UD) : vmx_intercept(cpu, in, EXIT_REASON_MONITOR_INSTRUCTION, 0);
}

int in_mwait(struct cpu *cpu, const struct insn *in)
{
    return cpu->s.cpl ? cpu_raise(cpu, VEC_UD) : vmx_intercept(cpu, in, EXIT_REASON_MWAIT_INSTRUCTION, 0);
}

int in_cpuid(struct cpu *cpu, const struct insn *in)
{
    return vmx_intercept(cpu, in, EXIT_REASON_CPUID, 0); /* always exits */
}

/* ---- time, counters, MSRs ---- */
static bool tsc_denied(const struct cpu *cpu)
{
    return cpu->s.cpl && (cpu->s.cr4 & CR4_TSD);
}

int in_rdtsc(struct cpu *cpu, const struct insn *in)
{
    int st;

    if (tsc_denied(cpu))
        return sys_gp0(cpu);
    if ((st = vmx_intercept(cpu, in, EXIT_REASON_RDTSC, 0)))
        return st;
    set_edx_eax(cpu, vmx_guest_tsc(cpu));
    return CPU_OK;
}

int in_rdtscp(struct cpu *cpu, const struct insn *in)
{
    int st;

    if (tsc_denied(cpu))
        return sys_gp0(cpu);
    if ((st = vmx_intercept(cpu, in, EXIT_REASON_RDTSCP, 0)))
        return st;
    set_edx_eax(cpu, vmx_guest_tsc(cpu));
    cpu->s.gpr[R_RCX] = (uint32_t)cpu->s.tsc_aux;
    return CPU_OK;
}

int in_rdpid(struct cpu *cpu, const struct insn *in)
{
    cpu->s.gpr[in->o[0].reg] = (uint32_t)cpu->s.tsc_aux;
    return CPU_OK;
}

/* There are no performance counters: each number is reserved. */
int in_rdpmc(struct cpu *cpu, const struct insn *in)
{
    int st;

    if (cpu->s.cpl && !(cpu->s.cr4 & CR4_PCE))
        return sys_gp0(cpu);
    if ((st = vmx_intercept(cpu, in, EXIT_REASON_RDPMC, 0)))
        return st;
    return sys_gp0(cpu);
}

int in_rdmsr(struct cpu *cpu, const struct insn *in)
{
    const uint32_t msr = (uint32_t)cpu->s.gpr[R_RCX];
    uint64_t value;
    int st;

    if ((st = sys_cpl0(cpu)) || (st = vmx_intercept_msr(cpu, in, msr, false)) || (st = msr_read(cpu, msr, &value)))
        return st;
    set_edx_eax(cpu, value);
    return CPU_OK;
}

int in_wrmsr(struct cpu *cpu, const struct insn *in)
{
    const uint32_t msr = (uint32_t)cpu->s.gpr[R_RCX];
    int st;

    if ((st = sys_cpl0(cpu)) || (st = vmx_intercept_msr(cpu, in, msr, true)) ||
        (st = msr_write(cpu, msr, get_edx_eax(cpu))))
        return st;
    return CPU_RESCAN;
}

/* ---- caches and TLB ---- */
int in_invd(struct cpu *cpu, const struct insn *in)
{
    int st = sys_cpl0(cpu);

    return st ? st : vmx_intercept(cpu, in, EXIT_REASON_INVD, 0); /* always exits */
}

int in_wbinvd(struct cpu *cpu, const struct insn *in)
{
    int st = sys_cpl0(cpu);

    return st ? st : vmx_intercept(cpu, in, EXIT_REASON_WBINVD, 0); /* caches are coherent */
}

static uint16_t current_pcid(const struct cpu *cpu)
{
    return cpu->s.cr4 & CR4_PCIDE ? cpu->s.cr3 & 0xfff : 0;
}

int in_invlpg(struct cpu *cpu, const struct insn *in)
{
    const gva_t gva = sys_linear(cpu, in->seg, insn_ea(cpu, in));
    int st;

    if ((st = sys_cpl0(cpu)) || (st = vmx_intercept(cpu, in, EXIT_REASON_INVLPG, gva)))
        return st;
    if (cpu_canonical(gva))
        tlb_flush(cpu, TLB_PAGE, vmx_vpid(cpu), current_pcid(cpu), gva);
    return CPU_RESCAN;
}

enum { INVPCID_ADDR, INVPCID_CONTEXT, INVPCID_ALL, INVPCID_ALL_NONGLOBAL };

int in_invpcid(struct cpu *cpu, const struct insn *in)
{
    static const uint8_t scopes[] = {TLB_PAGE, TLB_PCID, TLB_VPID, TLB_VPID_NONGLOBAL};
    const uint64_t type = reg_read(cpu, in->o[0].reg, cpu->s.mode == MODE_64 ? 8 : 4);
    uint64_t desc[2];
    int st;

    if ((st = sys_cpl0(cpu)) || (st = vmx_intercept(cpu, in, EXIT_REASON_INVPCID, 0)))
        return st;
    if (type > INVPCID_ALL_NONGLOBAL)
        return sys_gp0(cpu);
    if ((st = mem_read(cpu, in->seg, insn_ea(cpu, in), desc, sizeof(desc), ACC_READ)))
        return st;
    if (desc[0] >> 12 || (type <= INVPCID_CONTEXT && desc[0] && !(cpu->s.cr4 & CR4_PCIDE)) ||
        (type == INVPCID_ADDR && !cpu_canonical(desc[1])))
        return sys_gp0(cpu);
    tlb_flush(cpu, scopes[type], vmx_vpid(cpu), (uint16_t)desc[0], desc[1]);
    return CPU_RESCAN;
}

/* ---- extended control register ---- */
int in_xgetbv(struct cpu *cpu, const struct insn *in)
{
    const uint32_t n = (uint32_t)cpu->s.gpr[R_RCX];

    if (!(cpu->s.cr4 & CR4_OSXSAVE))
        return cpu_raise(cpu, VEC_UD);
    /* 1: XCR0 & XINUSE; a component may be told in use while it is initial */
    if (n > 1 || (n == 1 && !cpu_has_feature(FEAT_XGETBV1)))
        return sys_gp0(cpu);
    set_edx_eax(cpu, cpu->s.xcr0);
    return CPU_OK;
}

int in_xsetbv(struct cpu *cpu, const struct insn *in)
{
    int st;

    if (!(cpu->s.cr4 & CR4_OSXSAVE))
        return cpu_raise(cpu, VEC_UD);
    if ((st = sys_cpl0(cpu)))
        return st;
    return vmx_intercept(cpu, in, EXIT_REASON_XSETBV, 0); /* always exits */
}

/* ---- VMX: a guest's own instructions exit, unless it may be a hypervisor ---- */
int in_vmcall(struct cpu *cpu, const struct insn *in)
{
    return vmx_intercept(cpu, in, EXIT_REASON_VMCALL, 0);
}

int in_vmx(struct cpu *cpu, const struct insn *in)
{
    static const uint8_t reasons[OP_COUNT] = {
        [OP_VMCLEAR] = EXIT_REASON_VMCLEAR, [OP_VMLAUNCH] = EXIT_REASON_VMLAUNCH, [OP_VMPTRLD] = EXIT_REASON_VMPTRLD,
        [OP_VMPTRST] = EXIT_REASON_VMPTRST, [OP_VMREAD] = EXIT_REASON_VMREAD,     [OP_VMRESUME] = EXIT_REASON_VMRESUME,
        [OP_VMWRITE] = EXIT_REASON_VMWRITE, [OP_VMXOFF] = EXIT_REASON_VMOFF,      [OP_VMXON] = EXIT_REASON_VMON,
        [OP_INVEPT] = EXIT_REASON_INVEPT,   [OP_INVVPID] = EXIT_REASON_INVVPID,
    };

    if (long_mode(cpu) && cpu->s.mode != MODE_64)
        return cpu_raise(cpu, VEC_UD);
    return vmx_runs_vmx(cpu) ? vmx_insn(cpu, in) : vmx_intercept(cpu, in, reasons[in->op], 0);
}
