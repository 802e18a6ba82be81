/* SPDX-License-Identifier: MIT
 * far.c: far jumps, calls and returns, call gates and IRET in each mode (SDM 2A/2B, "JMP", "CALL", "RET", "IRET"). */
#include "sys/cpu_sys.h"
#include "mem/mem.h"
#include "vmx/vmx_int.h"

/* ---- targets ---- */
struct target {
    struct segment cs;
    uint64_t ip, desc;
    unsigned cpl;
};

static int gp0(struct cpu *cpu)
{
    return cpu_raise_err(cpu, VEC_GP, 0);
}

static bool real_like(const struct cpu *cpu)
{
    return cpu->s.mode == MODE_REAL || cpu->s.mode == MODE_V86;
}

static int target_ip(struct cpu *cpu, const struct target *t)
{
    if (long_mode(cpu) && (t->cs.attr & AR_L))
        return cpu_canonical(t->ip) ? CPU_OK : gp0(cpu);
    return t->ip > t->cs.limit ? gp0(cpu) : CPU_OK;
}

/* A code segment's descriptor for a jump or call without a gate. */
static int target_direct(struct cpu *cpu, uint16_t sel, uint64_t d, uint64_t ip, struct target *t)
{
    const unsigned cpl = cpu->s.cpl, dpl = desc_dpl(d);
    int st;

    if (!desc_code(d) || (long_mode(cpu) && desc_l(d) && desc_db(d)))
        return seg_error(cpu, VEC_GP, sel);
    if (desc_conforming(d) ? dpl > cpl : sel_rpl(sel) > cpl || dpl != cpl)
        return seg_error(cpu, VEC_GP, sel);
    if (!desc_p(d))
        return seg_error(cpu, VEC_NP, sel);
    *t = (struct target){.ip = ip, .desc = d, .cpl = cpl};
    seg_from_desc(&t->cs, (uint16_t)((sel & ~3) | cpl), d | 1ull << 40);
    st = target_ip(cpu, t);
    return st ? st : seg_set_accessed(cpu, sel, d);
}

static int jump_to(struct cpu *cpu, const struct segment *cs, uint64_t ip)
{
    cpu->s.seg[SEG_CS] = *cs;
    cpu->s.rip = ip;
    cpu_privilege_changed(cpu);
    return CPU_JUMP;
}

static int far_real(struct cpu *cpu, uint16_t sel, uint64_t ip)
{
    if (ip > cpu->s.seg[SEG_CS].limit)
        return gp0(cpu);
    seg_load_real(cpu, SEG_CS, sel);
    cpu->s.rip = ip;
    cpu_mode_changed(cpu);
    return CPU_JUMP;
}

/* ---- gates ---- */
/* What a system descriptor in a far jump or call means. */
enum system_target { BY_GATE, BY_TASK, NOT_A_TARGET };

static enum system_target system_target(const struct cpu *cpu, uint64_t d)
{
    switch (desc_type(d)) {
    case SYS_CALL32:
        return BY_GATE;
    case SYS_CALL16:
        return long_mode(cpu) ? NOT_A_TARGET : BY_GATE;
    case SYS_TASK:
    case SYS_TSS16:
    case SYS_TSS32:
        return long_mode(cpu) ? NOT_A_TARGET : BY_TASK;
    default:
        return NOT_A_TARGET;
    }
}

/* The code segment behind a call gate. jump: no change of privilege. */
static int gate_target(struct cpu *cpu, uint16_t gate_sel, const uint64_t g[2], bool jump, struct target *t)
{
    const unsigned cpl = cpu->s.cpl;
    const bool lm = long_mode(cpu);
    const uint16_t sel = (uint16_t)(g[0] >> 16);
    uint64_t d;
    int st;

    if (desc_dpl(g[0]) < cpl || desc_dpl(g[0]) < sel_rpl(gate_sel) || (lm && (g[1] >> 40 & 0x1f)))
        return seg_error(cpu, VEC_GP, gate_sel);
    if (!desc_p(g[0]))
        return seg_error(cpu, VEC_NP, gate_sel);
    if (sel_null(sel))
        return gp0(cpu);
    if ((st = seg_read_desc8(cpu, sel, &d, VEC_GP)))
        return st;
    if (!desc_code(d) || desc_dpl(d) > cpl || (lm && (!desc_l(d) || desc_db(d))))
        return seg_error(cpu, VEC_GP, sel);
    if (jump && !desc_conforming(d) && desc_dpl(d) != cpl)
        return seg_error(cpu, VEC_GP, sel);
    if (!desc_p(d))
        return seg_error(cpu, VEC_NP, sel);
    *t = (struct target){.ip = (g[0] & 0xffff) | (g[0] >> 48) << 16 | g[1] << 32, .desc = d};
    if (!(desc_type(g[0]) & 8))
        t->ip &= 0xffff;
    t->cpl = desc_conforming(d) || jump ? cpl : desc_dpl(d);
    seg_from_desc(&t->cs, (uint16_t)((sel & ~3) | t->cpl), d | 1ull << 40);
    st = target_ip(cpu, t);
    return st ? st : seg_set_accessed(cpu, sel, d);
}

static int task_target(struct cpu *cpu, const struct insn *in, uint16_t sel, uint64_t d, int source)
{
    if (desc_dpl(d) < cpu->s.cpl || desc_dpl(d) < sel_rpl(sel))
        return seg_error(cpu, VEC_GP, sel);
    if (!desc_p(d))
        return seg_error(cpu, VEC_NP, sel);
    if (desc_type(d) == SYS_TASK)
        sel = (uint16_t)(d >> 16);
    cpu->task_insn = in;
    int st = task_switch(cpu, sel, source, false, 0);
    cpu->task_insn = NULL;
    return st;
}

int far_jump(struct cpu *cpu, const struct insn *in, uint16_t sel, uint64_t off)
{
    struct target t;
    uint64_t d[2];
    int st;

    if (real_like(cpu))
        return far_real(cpu, sel, off);
    if (sel_null(sel))
        return gp0(cpu);
    if ((st = seg_read_desc(cpu, sel, d, VEC_GP)))
        return st;
    if (desc_s(d[0])) {
        st = target_direct(cpu, sel, d[0], off, &t);
        return st ? st : jump_to(cpu, &t.cs, t.ip);
    }
    switch (system_target(cpu, d[0])) {
    case BY_GATE:
        st = gate_target(cpu, sel, d, true, &t);
        return st ? st : jump_to(cpu, &t.cs, t.ip);
    case BY_TASK:
        return task_target(cpu, in, sel, d[0], 2);
    default:
        return seg_error(cpu, VEC_GP, sel);
    }
}

/* ---- calls ---- */
static int push_return(struct cpu *cpu, const struct insn *in, struct stack *stack, unsigned width)
{
    const uint64_t next = (cpu->s.rip + in->len) & cpu->s.ip_mask;
    int st = stack_push(cpu, stack, width, cpu->s.seg[SEG_CS].sel);

    return st ? st : stack_push(cpu, stack, width, next);
}

/* Through a gate to a more privileged level: a new stack, to which SS, rSP and the parameters go. */
static int call_inner(struct cpu *cpu, const struct insn *in, const struct target *t, unsigned width, unsigned params)
{
    struct cpu_state *s = &cpu->s;
    struct segment ss;
    struct stack stack, old;
    uint64_t rsp, values[32];
    uint16_t sel;
    uint32_t esp;
    int st;

    stack_current(cpu, &old);
    if (long_mode(cpu)) {
        if ((st = tss_read_rsp(cpu, t->cpl, false, &rsp)))
            return st;
        seg_make_null(&ss, (uint16_t)t->cpl);
        ss.attr |= t->cpl << 5;
        params = 0;
    } else {
        if ((st = tss_read_stack(cpu, t->cpl, &sel, &esp)) || (st = seg_check_stack(cpu, sel, t->cpl, VEC_TS, &ss)))
            return st;
        rsp = esp;
    }
    stack_new(cpu, &stack, &ss, rsp, long_mode(cpu), true);
    for (unsigned i = 0; i < params; i++)
        if ((st = stack_pop(cpu, &old, width, &values[i])))
            return st;
    if ((st = stack_push(cpu, &stack, width, s->seg[SEG_SS].sel)) ||
        (st = stack_push(cpu, &stack, width, s->gpr[R_RSP])))
        return st;
    for (unsigned i = params; i-- > 0;)
        if ((st = stack_push(cpu, &stack, width, values[i])))
            return st;
    if ((st = push_return(cpu, in, &stack, width)))
        return st;
    s->seg[SEG_SS] = ss;
    stack_commit_sp(cpu, &stack);
    return jump_to(cpu, &t->cs, t->ip);
}

static int call_same(struct cpu *cpu, const struct insn *in, const struct target *t, unsigned width)
{
    struct stack stack;
    int st;

    stack_current(cpu, &stack);
    if (long_mode(cpu) && (t->cs.attr & AR_L) && !stack.is64) { /* from compatibility mode through a gate */
        stack.is64 = true;
        stack.mask = ~0ull;
    }
    if ((st = push_return(cpu, in, &stack, width)))
        return st;
    stack_commit_sp(cpu, &stack);
    return jump_to(cpu, &t->cs, t->ip);
}

int far_call(struct cpu *cpu, const struct insn *in, uint16_t sel, uint64_t off)
{
    struct target t;
    struct stack stack;
    uint64_t d[2];
    int st;

    if (real_like(cpu)) {
        if (off > cpu->s.seg[SEG_CS].limit)
            return gp0(cpu);
        stack_current(cpu, &stack);
        if ((st = push_return(cpu, in, &stack, in->opsize)))
            return st;
        stack_commit_sp(cpu, &stack);
        return far_real(cpu, sel, off);
    }
    if (sel_null(sel))
        return gp0(cpu);
    if ((st = seg_read_desc(cpu, sel, d, VEC_GP)))
        return st;
    if (desc_s(d[0])) {
        /* SDM 2A, "CALL": a direct call pushes on the current stack, in the current mode's way. */
        if ((st = target_direct(cpu, sel, d[0], off, &t)))
            return st;
        stack_current(cpu, &stack);
        if ((st = push_return(cpu, in, &stack, in->opsize)))
            return st;
        stack_commit_sp(cpu, &stack);
        return jump_to(cpu, &t.cs, t.ip);
    }
    const enum system_target how = system_target(cpu, d[0]);
    if (how == BY_TASK)
        return task_target(cpu, in, sel, d[0], 0);
    if (how != BY_GATE)
        return seg_error(cpu, VEC_GP, sel);
    if ((st = gate_target(cpu, sel, d, false, &t)))
        return st;
    const unsigned width = long_mode(cpu) ? 8 : desc_type(d[0]) & 8 ? 4 : 2;
    return t.cpl < cpu->s.cpl ? call_inner(cpu, in, &t, width, d[0] >> 32 & 0x1f) : call_same(cpu, in, &t, width);
}

/* ---- returns ---- */
/* The code segment that RET or IRET goes back to. */
static int return_target(struct cpu *cpu, uint16_t sel, uint64_t ip, struct target *t)
{
    const unsigned rpl = sel_rpl(sel);
    uint64_t d;
    int st;

    if (sel_null(sel))
        return gp0(cpu);
    if ((st = seg_read_desc8(cpu, sel, &d, VEC_GP)))
        return st;
    if (rpl < cpu->s.cpl || !desc_code(d) || (long_mode(cpu) && desc_l(d) && desc_db(d)))
        return seg_error(cpu, VEC_GP, sel);
    if (desc_conforming(d) ? desc_dpl(d) > rpl : desc_dpl(d) != rpl)
        return seg_error(cpu, VEC_GP, sel);
    if (!desc_p(d))
        return seg_error(cpu, VEC_NP, sel);
    *t = (struct target){.ip = ip, .desc = d, .cpl = rpl};
    seg_from_desc(&t->cs, sel, d | 1ull << 40);
    st = target_ip(cpu, t);
    return st ? st : seg_set_accessed(cpu, sel, d);
}

/* The stack segment that goes with it. A null one only for 64-bit code of levels 0-2. */
static int return_ss(struct cpu *cpu, const struct target *t, uint16_t sel, struct segment *ss)
{
    if (sel_null(sel) && long_mode(cpu) && (t->cs.attr & AR_L) && t->cpl != 3 && sel_rpl(sel) == t->cpl) {
        seg_make_null(ss, sel);
        ss->attr |= t->cpl << 5;
        return CPU_OK;
    }
    return seg_check_stack(cpu, sel, t->cpl, VEC_GP, ss);
}

/* Data segments that the outer level may not use are made null. Bases stay: in long mode they are FS.base's and
 * GS.base's MSRs, which a null selector leaves to the outer level. */
static void drop_inner_segments(struct cpu *cpu, unsigned cpl)
{
    static const uint8_t regs[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};

    for (unsigned i = 0; i < ARRAY_SIZE(regs); i++) {
        struct segment *seg = &cpu->s.seg[regs[i]];
        const bool conforming = (AR_TYPE(seg->attr) & 0xc) == 0xc;

        if (seg->attr & AR_UNUSABLE) {
            seg->sel = 0;
        } else if (sel_null(seg->sel) || (AR_DPL(seg->attr) < cpl && !conforming)) {
            seg->sel = 0;
            seg->attr = AR_UNUSABLE;
        }
    }
}

/* To the outer level with the new stack pointer sp (+ extra bytes of parameters); cs and ss are checked already. */
static int return_outer(struct cpu *cpu, const struct target *t, const struct segment *ss, uint64_t sp, unsigned extra)
{
    const bool is64 = long_mode(cpu) && (t->cs.attr & AR_L);
    struct stack stack;

    stack_new(cpu, &stack, ss, sp, is64, false);
    stack.sp = (stack.sp + extra) & stack.mask;
    cpu->s.seg[SEG_SS] = *ss;
    if (stack.mask == 0xffff) /* the upper half is the popped one's */
        cpu->s.gpr[R_RSP] = sp & 0xffffffff;
    stack_commit_sp(cpu, &stack);
    drop_inner_segments(cpu, t->cpl);
    return jump_to(cpu, &t->cs, t->ip);
}

int far_ret(struct cpu *cpu, const struct insn *in, unsigned pop_bytes)
{
    const unsigned width = in->opsize;
    struct target t;
    struct stack stack;
    struct segment ss;
    uint64_t ip, cs, sp, ss_sel;
    int st;

    stack_current(cpu, &stack);
    if ((st = stack_pop(cpu, &stack, width, &ip)) || (st = stack_pop(cpu, &stack, width, &cs)))
        return st;
    if (real_like(cpu)) {
        if (ip > cpu->s.seg[SEG_CS].limit)
            return gp0(cpu);
        stack.sp = (stack.sp + pop_bytes) & stack.mask;
        stack_commit_sp(cpu, &stack);
        return far_real(cpu, (uint16_t)cs, ip);
    }
    if ((st = return_target(cpu, (uint16_t)cs, ip, &t)))
        return st;
    stack.sp = (stack.sp + pop_bytes) & stack.mask;
    if (t.cpl == cpu->s.cpl) {
        stack_commit_sp(cpu, &stack);
        return jump_to(cpu, &t.cs, t.ip);
    }
    if ((st = stack_pop(cpu, &stack, width, &sp)) || (st = stack_pop(cpu, &stack, width, &ss_sel)) ||
        (st = return_ss(cpu, &t, (uint16_t)ss_sel, &ss)))
        return st;
    return return_outer(cpu, &t, &ss, sp, pop_bytes);
}

/* ---- IRET ---- */
#define F_BY_IRET (F_OSZAPC | F_TF | F_DF | F_NT)

/* Flags that IRET at level cpl with this operand size may change; the rest stays. */
static void load_flags(struct cpu *cpu, uint64_t value, unsigned width)
{
    struct cpu_state *s = &cpu->s;
    const uint64_t old = cpu_get_rflags(s);
    uint64_t mask = F_BY_IRET;

    if (s->mode == MODE_REAL)
        mask |= F_IF | F_IOPL;
    else if (s->cpl == 0)
        mask |= F_IOPL;
    if (s->cpl <= (old & F_IOPL) >> 12)
        mask |= F_IF;
    if (width > 2) {
        mask |= F_RF | F_AC | F_ID;
        if (s->cpl == 0 && s->mode != MODE_V86)
            mask |= F_VIF | F_VIP;
    }
    cpu_put_rflags(s, (old & ~mask) | (value & mask));
    cpu->rf_before = false; /* RF is as it was popped */
}

static int iret_real(struct cpu *cpu, const struct insn *in)
{
    const unsigned width = in->opsize;
    struct stack stack;
    uint64_t ip, cs, flags;
    int st;

    if (cpu->s.mode == MODE_V86 && (cpu->s.rflags_sys & F_IOPL) != F_IOPL)
        return gp0(cpu);
    stack_current(cpu, &stack);
    if ((st = stack_pop(cpu, &stack, width, &ip)) || (st = stack_pop(cpu, &stack, width, &cs)) ||
        (st = stack_pop(cpu, &stack, width, &flags)))
        return st;
    if (ip > cpu->s.seg[SEG_CS].limit)
        return gp0(cpu);
    stack_commit_sp(cpu, &stack);
    load_flags(cpu, flags, width);
    return far_real(cpu, (uint16_t)cs, ip);
}

static int iret_to_v86(struct cpu *cpu, struct stack *stack, uint64_t ip, uint64_t cs, uint64_t flags)
{
    static const uint8_t order[] = {SEG_SS, SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    struct cpu_state *s = &cpu->s;
    uint64_t esp, sels[ARRAY_SIZE(order)];
    int st;

    if ((st = stack_pop(cpu, stack, 4, &esp)))
        return st;
    for (unsigned i = 0; i < ARRAY_SIZE(order); i++)
        if ((st = stack_pop(cpu, stack, 4, &sels[i])))
            return st;
    if (ip > 0xffff)
        return gp0(cpu);
    cpu_put_rflags(s,
                   flags & (F_OSZAPC | F_TF | F_IF | F_DF | F_IOPL | F_NT | F_RF | F_VM | F_AC | F_VIF | F_VIP | F_ID));
    cpu->rf_before = false;
    s->mode = MODE_V86; /* seg_load_real() asks for it */
    for (unsigned i = 0; i < ARRAY_SIZE(order); i++)
        seg_load_real(cpu, order[i], (uint16_t)sels[i]);
    seg_load_real(cpu, SEG_CS, (uint16_t)cs);
    s->gpr[R_RSP] = esp & 0xffffffff;
    s->rip = ip;
    cpu_mode_changed(cpu);
    return CPU_JUMP;
}

static int iret_protected(struct cpu *cpu, const struct insn *in)
{
    const unsigned width = in->opsize;
    const bool from64 = cpu->s.mode == MODE_64;
    enum { IP, CS, FLAGS, SP, SS };
    uint64_t v[5];
    struct target t;
    struct stack stack;
    struct segment ss;
    int st;

    stack_current(cpu, &stack);
    if ((st = stack_pop_many(cpu, &stack, width, v, from64 ? 5 : 3))) /* 64-bit code always pops rSP and SS */
        return st;
    if (!long_mode(cpu) && width == 4 && (v[FLAGS] & F_VM) && cpu->s.cpl == 0)
        return iret_to_v86(cpu, &stack, v[IP], (uint16_t)v[CS], v[FLAGS]);
    if ((st = return_target(cpu, (uint16_t)v[CS], v[IP], &t)))
        return st;
    if (!from64 && t.cpl == cpu->s.cpl) {
        stack_commit_sp(cpu, &stack);
        load_flags(cpu, v[FLAGS], width);
        return jump_to(cpu, &t.cs, t.ip);
    }
    if (!from64 && (st = stack_pop_many(cpu, &stack, width, &v[SP], 2)))
        return st;
    if ((st = return_ss(cpu, &t, (uint16_t)v[SS], &ss)))
        return st;
    load_flags(cpu, v[FLAGS], width);
    if (t.cpl != cpu->s.cpl)
        return return_outer(cpu, &t, &ss, v[SP], 0);
    cpu->s.seg[SEG_SS] = ss;
    stack_new(cpu, &stack, &ss, v[SP], t.cs.attr & AR_L, false);
    stack_commit_sp(cpu, &stack);
    return jump_to(cpu, &t.cs, t.ip);
}

/* Back to the task whose selector the current TSS links to. */
static int iret_task(struct cpu *cpu, const struct insn *in)
{
    uint16_t link;
    int st = mem_read(cpu, SEG_NONE, (uint32_t)cpu->s.tr.base, &link, 2, ACC_READ | ACCF_SUPER);

    if (st)
        return st;
    cpu->task_insn = in;
    st = task_switch(cpu, link, 1, false, 0);
    cpu->task_insn = NULL;
    return st;
}

static int iret_any(struct cpu *cpu, const struct insn *in)
{
    if (real_like(cpu))
        return iret_real(cpu, in);
    if (cpu->s.rflags_sys & F_NT)
        return long_mode(cpu) ? gp0(cpu) : iret_task(cpu, in);
    return iret_protected(cpu, in);
}

/* IRET ends blocking by NMI even when it faults (SDM 3A, "Handling Multiple NMIs"); the hypervisor is told, so that it
 * can run it again with blocking (SDM 3C, "Information for VM Exits Due to Vectored Events"). Emulation may replay it.
 */
int far_iret(struct cpu *cpu, const struct insn *in)
{
    struct cpu_state *s = &cpu->s;
    int st;

    if (!cpu->emul) {
        cpu->nmi_unblocked = s->interruptibility & INTR_BLOCK_NMI;
        s->interruptibility &= ~INTR_BLOCK_NMI;
    }
    st = iret_any(cpu, in);
    if (st == CPU_JUMP) {
        s->interruptibility &= ~INTR_BLOCK_NMI;
        cpu->nmi_unblocked = false;
        vmx_check_windows(cpu);
        cpu_step_changed(cpu);
    }
    return st;
}
