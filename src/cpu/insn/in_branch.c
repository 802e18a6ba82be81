/* SPDX-License-Identifier: MIT
 * in_branch.c: near branches. All return CPU_JUMP with rip set, not-taken ones too. The target is checked before
 * anything is committed: a fault is the branch's own (SDM 2, "JMP", "CALL", "RET"). */
#include "insn/in_int.h"

/* rip of the next instruction, and of a relative target: wrapped to 16 bits with a 16-bit operand size. */
static inline gva_t next_rip(const struct cpu *cpu, const struct insn *in)
{
    return (cpu->s.rip + in->len) & cpu->s.ip_mask;
}

static inline gva_t target_rip(const struct cpu *cpu, const struct insn *in)
{
    const gva_t rip = cpu->s.rip + in->len + in->imm;

    return in->opsize == 8 ? rip : in->opsize == 4 ? (uint32_t)rip : (uint16_t)rip;
}

static inline int jump(struct cpu *cpu, gva_t rip)
{
    if (unlikely(branch_check(cpu, rip) != CPU_OK))
        return CPU_FAULT;
    cpu->s.rip = rip;
    return CPU_JUMP;
}

static inline int jump_if(struct cpu *cpu, const struct insn *in, bool taken)
{
    if (taken)
        return jump(cpu, target_rip(cpu, in));
    cpu->s.rip = next_rip(cpu, in);
    return CPU_JUMP;
}

/* The target of JMP and CALL: relative, or in a register or memory. */
static int near_target(struct cpu *cpu, const struct insn *in, gva_t *rip)
{
    if (in->o[0].kind == OPK_REL) {
        *rip = target_rip(cpu, in);
        return CPU_OK;
    }
    return insn_read(cpu, in, 0, rip);
}

int in_jmp(struct cpu *cpu, const struct insn *in)
{
    gva_t rip;
    const int st = near_target(cpu, in, &rip);

    return st != CPU_OK ? st : jump(cpu, rip);
}

int in_call(struct cpu *cpu, const struct insn *in)
{
    gva_t rip;
    int st = near_target(cpu, in, &rip);

    if (st == CPU_OK)
        st = branch_check(cpu, rip);
    if (st == CPU_OK)
        st = stack_push(cpu, in->opsize, next_rip(cpu, in));
    if (st != CPU_OK)
        return st;
    cpu->s.rip = rip;
    return CPU_JUMP;
}

int in_ret(struct cpu *cpu, const struct insn *in)
{
    const unsigned drop = in->nops ? (uint16_t)in->imm : 0;
    gva_t rip;
    int st = mem_ld(cpu, SEG_SS, stack_at(cpu, 0), in->opsize, &rip);

    if (st == CPU_OK)
        st = branch_check(cpu, rip);
    if (st != CPU_OK)
        return st;
    stack_set(cpu, stack_at(cpu, in->opsize + drop));
    cpu->s.rip = rip;
    return CPU_JUMP;
}

int in_jcc(struct cpu *cpu, const struct insn *in)
{
    return jump_if(cpu, in, flags_cond(cpu->s.flags, in->aux));
}

int in_jcxz(struct cpu *cpu, const struct insn *in)
{
    return jump_if(cpu, in, (cpu->s.gpr[R_RCX] & size_mask(in->asize)) == 0);
}

/* The count has the address size; it is committed only when the branch cannot fault. */
static int loop(struct cpu *cpu, const struct insn *in, bool cond)
{
    const uint64_t count = (cpu->s.gpr[R_RCX] - 1) & size_mask(in->asize);
    const int st = jump_if(cpu, in, count != 0 && cond);

    if (st == CPU_JUMP)
        reg_write(cpu, R_RCX, in->asize, count);
    return st;
}

int in_loop(struct cpu *cpu, const struct insn *in)
{
    return loop(cpu, in, true);
}

/* AMD's processors let a repeat prefix choose the condition, whatever the opcode is (measured; no manual says so). */
static bool loop_wants_zf(const struct cpu *cpu, const struct insn *in, bool zf)
{
    return cpu->guest_amd && in->pfx & (PFX_REP | PFX_REPNE) ? in->pfx & PFX_REP : zf;
}

int in_loope(struct cpu *cpu, const struct insn *in)
{
    return loop(cpu, in, !!(cpu->s.flags & F_ZF) == loop_wants_zf(cpu, in, true));
}

int in_loopne(struct cpu *cpu, const struct insn *in)
{
    return loop(cpu, in, !!(cpu->s.flags & F_ZF) == loop_wants_zf(cpu, in, false));
}

/* #BR when the index is outside of the two signed bounds in memory (SDM 2, "BOUND"). */
int in_bound(struct cpu *cpu, const struct insn *in)
{
    const unsigned size = in->opsize;
    const int64_t index = (int64_t)sign_extend(cpu->s.gpr[in->o[0].reg], size);
    const gva_t ea = insn_ea(cpu, in);
    uint64_t low, high;
    int st = mem_ld(cpu, in->seg, ea, size, &low);

    if (st == CPU_OK)
        st = mem_ld(cpu, in->seg, (ea + size) & size_mask(in->asize), size, &high);
    if (st != CPU_OK)
        return st;
    if (index < (int64_t)sign_extend(low, size) || index > (int64_t)sign_extend(high, size))
        return cpu_raise(cpu, VEC_BR);
    return CPU_OK;
}

/* ---- 64-bit mode: relative targets of canonical addresses need a check only near the hole; a cheap one covers all
 * ---- */
static inline int jump64(struct cpu *cpu, gva_t rip)
{
    if (unlikely(!cpu_canonical(rip)))
        return cpu_raise_err(cpu, VEC_GP, 0);
    cpu->s.rip = rip;
    return CPU_JUMP;
}

#define JCC64(cc)                                                   \
    static int x_jcc64_##cc(struct cpu *cpu, const struct insn *in) \
    {                                                               \
        const gva_t next = cpu->s.rip + in->len;                    \
        if (flags_cond(cpu->s.flags, cc))                           \
            return jump64(cpu, next + in->imm);                     \
        cpu->s.rip = next;                                          \
        return CPU_JUMP;                                            \
    }
#define FOR_CC(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
FOR_CC(JCC64)
#define JCC64_NAME(cc) x_jcc64_##cc,
static insn_fn *const jcc64[16] = {FOR_CC(JCC64_NAME)};

static int x_jmp64_rel(struct cpu *cpu, const struct insn *in)
{
    return jump64(cpu, cpu->s.rip + in->len + in->imm);
}

static int x_jmp64_r(struct cpu *cpu, const struct insn *in)
{
    return jump64(cpu, cpu->s.gpr[in->o[0].reg]);
}

static inline int call64(struct cpu *cpu, const struct insn *in, gva_t target)
{
    const gva_t sp = cpu->s.gpr[R_RSP] - 8, next = cpu->s.rip + in->len;
    void *p = tlb_lookup(cpu, sp, 8, TLB_WRITE);

    if (unlikely(!cpu_canonical(target)) || unlikely(!p) || unlikely(host_st64(p, next)))
        return in_call(cpu, in);
    cpu->s.gpr[R_RSP] = sp;
    cpu->s.rip = target;
    return CPU_JUMP;
}

static int x_call64_rel(struct cpu *cpu, const struct insn *in)
{
    return call64(cpu, in, cpu->s.rip + in->len + in->imm);
}

static int x_call64_r(struct cpu *cpu, const struct insn *in)
{
    return call64(cpu, in, cpu->s.gpr[in->o[0].reg]);
}

static int x_ret64(struct cpu *cpu, const struct insn *in)
{
    const gva_t sp = cpu->s.gpr[R_RSP];
    const void *p = tlb_lookup(cpu, sp, 8, TLB_READ);
    gva_t rip;

    if (unlikely(!p) || unlikely(host_ld64(p, &rip)) || unlikely(!cpu_canonical(rip)))
        return in_ret(cpu, in);
    cpu->s.gpr[R_RSP] = sp + 8;
    cpu->s.rip = rip;
    return CPU_JUMP;
}

/* Sets aux where the row needs it; far forms are the system instructions'. */
insn_fn *in_select_branch(struct insn *in)
{
    const bool flat = in->mode == MODE_64 && in->opsize == 8;

    switch (in->op) {
    case OP_JMP:
        return in->aux                    ? in_jmp_far
               : !flat                    ? NULL
               : in->o[0].kind == OPK_REL ? x_jmp64_rel
               : in->o[0].kind == OPK_REG ? x_jmp64_r
                                          : NULL;
    case OP_CALL:
        return in->aux                    ? in_call_far
               : !flat                    ? NULL
               : in->o[0].kind == OPK_REL ? x_call64_rel
               : in->o[0].kind == OPK_REG ? x_call64_r
                                          : NULL;
    case OP_RET:
        return in->aux ? in_ret_far : flat && !in->nops ? x_ret64 : NULL;
    default:
        return flat ? jcc64[in->aux] : NULL;
    }
}
