/* SPDX-License-Identifier: MIT
 * in_sys_call.c: SYSCALL, SYSENTER and their returns, INT n and IRET. Where Intel and AMD differ the guest's CPUID
 * vendor decides. */
#include "sys/in_sys_int.h"

#define CODE_ATTR   0xa09bu /* 64-bit code, level 0; as 32-bit code CODE32_ATTR */
#define CODE32_ATTR 0xc09bu
#define DATA_ATTR   0xc093u
#define ATTR_DPL3   0x60u

static int ud(struct cpu *cpu)
{
    return cpu_raise(cpu, VEC_UD);
}

static struct segment flat(uint16_t sel, uint32_t attr)
{
    return (struct segment){.limit = 0xffffffff, .attr = attr, .sel = sel};
}

/* CS and SS of a level, flat, and where to go. */
static int enter(struct cpu *cpu, struct segment cs, struct segment ss, uint64_t rip)
{
    cpu->s.seg[SEG_CS] = cs;
    cpu->s.seg[SEG_SS] = ss;
    cpu->s.rip = rip;
    cpu_privilege_changed(cpu);
    return CPU_JUMP;
}

static bool syscall_allowed(const struct cpu *cpu)
{
    const struct cpu_state *s = &cpu->s;

    if (!(s->efer & EFER_SCE) || s->mode == MODE_REAL || s->mode == MODE_V86)
        return false;
    return s->mode == MODE_64 || cpu->guest_amd;
}

/* Single-stepping looks at TF as SYSCALL leaves it: a kernel whose mask clears TF is not trapped in. */
static void step_by_new_tf(struct cpu *cpu)
{
    if (!(cpu->s.rflags_sys & F_TF))
        cpu->step_taken = true;
}

int in_syscall(struct cpu *cpu, const struct insn *in)
{
    struct cpu_state *s = &cpu->s;
    const uint64_t next = (s->rip + in->len) & s->ip_mask, flags = cpu_get_rflags(s);
    const uint16_t sel = (uint16_t)(s->star >> 32) & 0xfffc;

    if (!syscall_allowed(cpu))
        return ud(cpu);
    if (!long_mode(cpu)) { /* AMD, legacy mode */
        s->gpr[R_RCX] = (uint32_t)next;
        cpu_put_rflags(s, flags & ~(F_VM | F_IF | F_RF));
        return enter(cpu, flat(sel, CODE32_ATTR), flat((uint16_t)(sel + 8), DATA_ATTR), (uint32_t)s->star);
    }
    const uint64_t target = s->mode == MODE_64 ? s->lstar : s->cstar;
    s->gpr[R_RCX] = next;
    s->gpr[R_R11] = flags & ~F_RF;
    cpu_put_rflags(s, flags & ~(s->sfmask | F_RF));
    step_by_new_tf(cpu);
    return enter(cpu, flat(sel, CODE_ATTR), flat((uint16_t)(sel + 8), DATA_ATTR), target);
}

#define F_BY_SYSRET 0x3c7fd7ull

/* SS is loaded whole, as Intel does it. AMD leaves its attributes alone; their kernels reload SS themselves. */
int in_sysret(struct cpu *cpu, const struct insn *in)
{
    struct cpu_state *s = &cpu->s;
    const uint16_t base = (uint16_t)(s->star >> 48);
    const bool to64 = in->pfx & PFX_REX_W;
    const struct segment ss = flat((uint16_t)(base + 8) | 3, DATA_ATTR | ATTR_DPL3);

    if (!syscall_allowed(cpu))
        return ud(cpu);
    if (s->cpl)
        return sys_gp0(cpu);
    if (!long_mode(cpu)) {
        s->rflags_sys |= F_IF;
        return enter(cpu, flat(base | 3, CODE32_ATTR | ATTR_DPL3), ss, (uint32_t)s->gpr[R_RCX]);
    }
    if (to64 && !cpu->guest_amd && !cpu_canonical(s->gpr[R_RCX]))
        return sys_gp0(cpu); /* AMD faults at the fetch, in user mode */
    cpu_put_rflags(s, s->gpr[R_R11] & F_BY_SYSRET);
    if (to64)
        return enter(cpu, flat((uint16_t)(base + 16) | 3, CODE_ATTR | ATTR_DPL3), ss, s->gpr[R_RCX]);
    return enter(cpu, flat(base | 3, CODE32_ATTR | ATTR_DPL3), ss, (uint32_t)s->gpr[R_RCX]);
}

int in_sysenter(struct cpu *cpu, const struct insn *in)
{
    struct cpu_state *s = &cpu->s;
    const bool lm = long_mode(cpu);
    const uint16_t sel = s->sysenter_cs & 0xfffc;

    if (lm && cpu->guest_amd)
        return ud(cpu);
    if (s->mode == MODE_REAL || !sel)
        return sys_gp0(cpu);
    s->rflags_sys &= ~(F_VM | F_IF | F_RF);
    s->gpr[R_RSP] = lm ? s->sysenter_esp : (uint32_t)s->sysenter_esp;
    return enter(cpu, flat(sel, lm ? CODE_ATTR : CODE32_ATTR), flat((uint16_t)(sel + 8), DATA_ATTR),
                 lm ? s->sysenter_eip : (uint32_t)s->sysenter_eip);
}

int in_sysexit(struct cpu *cpu, const struct insn *in)
{
    struct cpu_state *s = &cpu->s;
    const bool to64 = in->pfx & PFX_REX_W;
    const uint16_t sel = s->sysenter_cs & 0xfffc;
    uint64_t rip = s->gpr[R_RDX], rsp = s->gpr[R_RCX];

    if (long_mode(cpu) && cpu->guest_amd)
        return ud(cpu);
    if (s->mode == MODE_REAL || !sel || s->cpl || (to64 && (!cpu_canonical(rip) || !cpu_canonical(rsp))))
        return sys_gp0(cpu);
    if (!to64) {
        rip = (uint32_t)rip;
        rsp = (uint32_t)rsp;
    }
    const uint16_t cs = (uint16_t)(sel + (to64 ? 32 : 16)) | 3, ss = (uint16_t)(sel + (to64 ? 40 : 24)) | 3;
    s->gpr[R_RSP] = rsp;
    return enter(cpu, flat(cs, (to64 ? CODE_ATTR : CODE32_ATTR) | ATTR_DPL3), flat(ss, DATA_ATTR | ATTR_DPL3), rip);
}

/* ---- INT, IRET ---- */
int in_iret(struct cpu *cpu, const struct insn *in)
{
    return far_iret(cpu, in);
}

int in_int(struct cpu *cpu, const struct insn *in)
{
    return cpu_soft_interrupt(cpu, in, (uint8_t)in->imm, INTR_SOFT_INT);
}

int in_int1(struct cpu *cpu, const struct insn *in)
{
    return cpu_soft_interrupt(cpu, in, VEC_DB, INTR_PRIV_SW_EXC);
}

int in_int3(struct cpu *cpu, const struct insn *in)
{
    return cpu_soft_interrupt(cpu, in, VEC_BP, INTR_SOFT_EXC);
}

int in_into(struct cpu *cpu, const struct insn *in)
{
    return cpu->s.flags & F_OF ? cpu_soft_interrupt(cpu, in, VEC_OF, INTR_SOFT_EXC) : CPU_OK;
}
