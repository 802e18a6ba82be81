/* SPDX-License-Identifier: MIT
 * in_stack.c: PUSH POP PUSHA POPA PUSHF POPF ENTER LEAVE. The write comes first, then rSP: a fault changes nothing. */
#include "insn/in_int.h"

int in_push(struct cpu *cpu, const struct insn *in)
{
    uint64_t v;
    const int st = insn_read(cpu, in, 0, &v);

    return st != CPU_OK ? st : stack_push(cpu, in->opsize, v);
}

/* POP m: the address is computed with rSP already moved (SDM 2, "POP"); nothing is committed before the write. */
int in_pop(struct cpu *cpu, const struct insn *in)
{
    const uint64_t old = cpu->s.gpr[R_RSP];
    uint64_t v;
    int st = mem_ld(cpu, SEG_SS, stack_at(cpu, 0), in->opsize, &v);

    if (st != CPU_OK)
        return st;
    stack_set(cpu, stack_at(cpu, in->opsize));
    st = insn_write(cpu, in, 0, v); /* POP rSP: the value read wins */
    if (unlikely(st != CPU_OK))
        cpu->s.gpr[R_RSP] = old;
    return st;
}

/* rAX rCX rDX rBX, the old rSP, rBP rSI rDI: all writes are probed first, for the eighth may fault. */
int in_pusha(struct cpu *cpu, const struct insn *in)
{
    const unsigned size = in->opsize;
    int st = CPU_OK;

    /* the area may wrap around in a 16-bit stack: probe by element */
    for (unsigned i = 0; i < 8 && st == CPU_OK; i++)
        st = mem_probe(cpu, SEG_SS, stack_at(cpu, -(int64_t)((i + 1) * size)), size, ACC_WRITE);
    for (unsigned i = 0; i < 8 && st == CPU_OK; i++)
        st = mem_st(cpu, SEG_SS, stack_at(cpu, -(int64_t)((i + 1) * size)), size, cpu->s.gpr[i]);
    if (st == CPU_OK)
        stack_set(cpu, stack_at(cpu, -(int64_t)(8 * size)));
    return st;
}

int in_popa(struct cpu *cpu, const struct insn *in)
{
    const unsigned size = in->opsize;
    uint64_t v[8];

    for (unsigned i = 0; i < 8; i++) {
        const int st = mem_ld(cpu, SEG_SS, stack_at(cpu, (7 - i) * size), size, &v[i]);

        if (st != CPU_OK)
            return st;
    }
    stack_set(cpu, stack_at(cpu, 8 * size));
    for (unsigned i = 0; i < 8; i++)
        if (i != R_RSP) /* its slot is skipped */
            reg_write(cpu, i, size, v[i]);
    return CPU_OK;
}

/* Virtual-8086 mode with IOPL < 3: #GP, but for 16-bit forms under CR4.VME, which use VIF (SDM 2, "PUSHF", "POPF"). */
static bool v86_restricted(const struct cpu *cpu)
{
    return cpu->s.mode == MODE_V86 && (cpu->s.rflags_sys & F_IOPL) != F_IOPL;
}

int in_pushf(struct cpu *cpu, const struct insn *in)
{
    uint64_t f = cpu_get_rflags(&cpu->s) & ~(F_VM | F_RF);

    if (v86_restricted(cpu)) {
        if (in->opsize != 2 || !(cpu->s.cr4 & CR4_VME))
            return cpu_raise_err(cpu, VEC_GP, 0);
        f = (f & ~F_IF) | F_IOPL | (f & F_VIF ? F_IF : 0);
    }
    return stack_push(cpu, in->opsize, f);
}

/* Which bits POPF may change: IOPL only at CPL 0, IF only with CPL <= IOPL; VM, RF, VIF, VIP never from the stack. */
static uint64_t popf_mask(const struct cpu *cpu, unsigned size)
{
    const unsigned iopl = (cpu->s.rflags_sys & F_IOPL) >> 12;
    uint64_t mask = F_OSZAPC | F_TF | F_DF | F_NT | (size == 2 ? 0 : F_AC | F_ID);

    if (cpu->s.cpl == 0)
        mask |= F_IOPL;
    if (cpu->s.cpl <= iopl)
        mask |= F_IF;
    return mask;
}

/* New RFLAGS by POPF's rules. IF, TF and AC have effects elsewhere: the block ends, and windows are looked at. */
static int commit_flags(struct cpu *cpu, uint64_t f)
{
    const uint64_t old = cpu_get_rflags(&cpu->s), changed = old ^ f;

    cpu_put_rflags(&cpu->s, f);
    if (changed & F_AC)
        cpu_mode_changed(cpu);
    if (changed & (F_TF | F_RF))
        cpu_step_changed(cpu);
    if (changed & f & F_IF)
        vmx_check_windows(cpu);
    return changed & (F_IF | F_TF | F_RF | F_AC) ? CPU_RESCAN : CPU_OK;
}

int in_popf(struct cpu *cpu, const struct insn *in)
{
    const unsigned size = in->opsize;
    uint64_t v, mask = popf_mask(cpu, size), f = cpu_get_rflags(&cpu->s);
    int st;

    if (v86_restricted(cpu)) {
        if (size != 2 || !(cpu->s.cr4 & CR4_VME))
            return cpu_raise_err(cpu, VEC_GP, 0);
        mask &= ~(F_IF | F_IOPL);
    }
    st = mem_ld(cpu, SEG_SS, stack_at(cpu, 0), size, &v);
    if (st != CPU_OK)
        return st;
    if (v86_restricted(cpu)) {
        if ((v & F_TF) || ((v & F_IF) && (f & F_VIP)))
            return cpu_raise_err(cpu, VEC_GP, 0);
        f = (f & ~F_VIF) | (v & F_IF ? F_VIF : 0);
    }
    stack_set(cpu, stack_at(cpu, size));
    return commit_flags(cpu, (f & ~(mask | F_RF)) | (v & mask));
}

/* SDM 2, "ENTER": the copied frame pointers and the new frame are probed before anything moves. */
int in_enter(struct cpu *cpu, const struct insn *in)
{
    const unsigned size = in->opsize, level = in->imm2 & 31, width = stack_size(cpu);
    const uint16_t alloc = in->imm;
    uint64_t v, bp = cpu->s.gpr[R_RBP];
    const gva_t frame = stack_at(cpu, -(int64_t)size);
    const unsigned pushes = 1 + level;
    int st = CPU_OK;

    for (unsigned i = 1; i < level && st == CPU_OK; i++)
        st = mem_probe(cpu, SEG_SS, (bp - i * size) & size_mask(width), size, ACC_READ);
    for (unsigned i = 1; i <= pushes && st == CPU_OK; i++)
        st = mem_probe(cpu, SEG_SS, stack_at(cpu, -(int64_t)(i * size)), size, ACC_WRITE);
    /* the new top of the stack must be writable as well */
    if (st == CPU_OK)
        st = mem_probe(cpu, SEG_SS, stack_at(cpu, -(int64_t)(pushes * size + alloc)), size, ACC_WRITE);
    if (st == CPU_OK)
        st = mem_st(cpu, SEG_SS, frame, size, bp);
    for (unsigned i = 1; i < level && st == CPU_OK; i++) { /* one by one: the display may lie where it is copied to */
        st = mem_ld(cpu, SEG_SS, (bp - i * size) & size_mask(width), size, &v);
        if (st == CPU_OK)
            st = mem_st(cpu, SEG_SS, stack_at(cpu, -(int64_t)((i + 1) * size)), size, v);
    }
    if (level && st == CPU_OK)
        st = mem_st(cpu, SEG_SS, stack_at(cpu, -(int64_t)(pushes * size)), size, frame);
    if (st != CPU_OK)
        return st;
    reg_write(cpu, R_RBP, size, frame);
    stack_set(cpu, stack_at(cpu, -(int64_t)(pushes * size + alloc)));
    return CPU_OK;
}

int in_leave(struct cpu *cpu, const struct insn *in)
{
    const unsigned width = stack_size(cpu);
    const gva_t frame = cpu->s.gpr[R_RBP] & size_mask(width);
    uint64_t bp;
    const int st = mem_ld(cpu, SEG_SS, frame, in->opsize, &bp);

    if (st != CPU_OK)
        return st;
    stack_set(cpu, (frame + in->opsize) & size_mask(width));
    reg_write(cpu, R_RBP, in->opsize, bp);
    return CPU_OK;
}

/* ---- 64-bit mode, 8 bytes ---- */
static inline int push64(struct cpu *cpu, uint64_t v)
{
    const gva_t sp = cpu->s.gpr[R_RSP] - 8;
    void *p = tlb_lookup(cpu, sp, 8, TLB_WRITE);

    if (unlikely(!p) || unlikely(host_st64(p, v)))
        return stack_push(cpu, 8, v);
    cpu->s.gpr[R_RSP] = sp;
    return CPU_OK;
}

static int x_push64_r(struct cpu *cpu, const struct insn *in)
{
    return push64(cpu, cpu->s.gpr[in->o[0].reg]);
}

static int x_push64_i(struct cpu *cpu, const struct insn *in)
{
    return push64(cpu, in->imm);
}

static int x_pop64_r(struct cpu *cpu, const struct insn *in)
{
    const gva_t sp = cpu->s.gpr[R_RSP];
    const void *p = tlb_lookup(cpu, sp, 8, TLB_READ);
    uint64_t v;

    if (unlikely(!p) || unlikely(host_ld64(p, &v)))
        return in_pop(cpu, in);
    cpu->s.gpr[R_RSP] = sp + 8;
    cpu->s.gpr[in->o[0].reg] = v;
    return CPU_OK;
}

insn_fn *in_select_stack(const struct insn *in)
{
    if (in->mode != MODE_64 || in->opsize != 8)
        return NULL;
    if (in->op == OP_POP)
        return in->o[0].kind == OPK_REG ? x_pop64_r : NULL;
    return in->o[0].kind == OPK_REG ? x_push64_r : in->o[0].kind == OPK_IMM ? x_push64_i : NULL;
}
