/* SPDX-License-Identifier: MIT
 * in_sys_seg.c: moves of segment registers, LDS and its kin, and the instructions that look at descriptors. */
#include "sys/in_sys_int.h"
#include "mem/mem.h"

/* ---- MOV, PUSH, POP Sreg; LDS LES LFS LGS LSS ---- */
/* MOV SS and POP SS hold back interrupts and debug exceptions for one instruction (SDM 3A, "Masking Exceptions and
 * Interrupts When Switching Stacks"). */
static void shadow_after_ss(struct cpu *cpu)
{
    cpu->s.interruptibility = (cpu->s.interruptibility & ~INTR_BLOCK_STI) | INTR_BLOCK_MOVSS;
    cpu_step_changed(cpu);
}

int in_mov_sreg(struct cpu *cpu, const struct insn *in)
{
    const bool load = in->o[0].kind == OPK_SEG;
    const unsigned reg = in->o[load ? 0 : 1].reg;
    const struct opnd *other = &in->o[load ? 1 : 0];
    uint16_t sel;
    int st;

    if (reg > SEG_GS || (load && reg == SEG_CS))
        return cpu_raise(cpu, VEC_UD);
    if (!load) {
        sel = cpu->s.seg[reg].sel;
        if (other->kind == OPK_MEM)
            return mem_st16(cpu, in->seg, insn_ea(cpu, in), sel);
        reg_write(cpu, other->reg, other->size, sel);
        return CPU_OK;
    }
    if (other->kind != OPK_MEM)
        sel = (uint16_t)cpu->s.gpr[other->reg];
    else if ((st = mem_ld16(cpu, in->seg, insn_ea(cpu, in), &sel)))
        return st;
    if ((st = seg_load(cpu, reg, sel)))
        return st;
    if (reg == SEG_SS)
        shadow_after_ss(cpu);
    return CPU_RESCAN;
}

int in_push_sreg(struct cpu *cpu, const struct insn *in)
{
    struct stack stack;
    int st;

    stack_current(cpu, &stack);
    if ((st = stack_push(cpu, &stack, in->opsize, cpu->s.seg[in->o[0].reg].sel)))
        return st;
    stack_commit_sp(cpu, &stack);
    return CPU_OK;
}

int in_pop_sreg(struct cpu *cpu, const struct insn *in)
{
    const unsigned reg = in->o[0].reg;
    struct stack stack;
    uint64_t sel;
    int st;

    stack_current(cpu, &stack); /* the stack's width is that before the load */
    if ((st = stack_pop(cpu, &stack, in->opsize, &sel)) || (st = seg_load(cpu, reg, (uint16_t)sel)))
        return st;
    stack_commit_sp(cpu, &stack);
    if (reg == SEG_SS)
        shadow_after_ss(cpu);
    return CPU_RESCAN;
}

static int read_far(struct cpu *cpu, const struct insn *in, uint16_t *sel, uint64_t *off)
{
    const gva_t ea = insn_ea(cpu, in);
    int st;

    *off = 0;
    st = mem_read(cpu, in->seg, ea, off, in->opsize, ACC_READ);
    return st ? st : mem_read(cpu, in->seg, ea + in->opsize, sel, 2, ACC_READ);
}

int in_lseg(struct cpu *cpu, const struct insn *in)
{
    static const uint8_t regs[OP_COUNT] = {
        [OP_LDS] = SEG_DS, [OP_LES] = SEG_ES, [OP_LFS] = SEG_FS, [OP_LGS] = SEG_GS, [OP_LSS] = SEG_SS};
    uint64_t off;
    uint16_t sel;
    int st;

    if ((st = read_far(cpu, in, &sel, &off)) || (st = seg_load(cpu, regs[in->op], sel)))
        return st;
    reg_write(cpu, in->o[0].reg, in->opsize, off);
    return CPU_RESCAN;
}

/* ---- far transfers ---- */
static int far_operand(struct cpu *cpu, const struct insn *in, uint16_t *sel, uint64_t *off)
{
    if (in->o[0].kind != OPK_FAR)
        return read_far(cpu, in, sel, off);
    *sel = (uint16_t)in->imm2;
    *off = in->opsize == 2 ? in->imm & 0xffff : in->imm & 0xffffffff;
    return CPU_OK;
}

int in_jmp_far(struct cpu *cpu, const struct insn *in)
{
    uint64_t off;
    uint16_t sel;
    int st = far_operand(cpu, in, &sel, &off);

    return st ? st : far_jump(cpu, in, sel, off);
}

int in_call_far(struct cpu *cpu, const struct insn *in)
{
    uint64_t off;
    uint16_t sel;
    int st = far_operand(cpu, in, &sel, &off);

    return st ? st : far_call(cpu, in, sel, off);
}

int in_ret_far(struct cpu *cpu, const struct insn *in)
{
    return far_ret(cpu, in, in->nops && in->o[0].kind == OPK_IMM ? in->imm & 0xffff : 0);
}

/* ---- LAR, LSL, VERR, VERW, ARPL ---- */
static int set_zf(struct cpu *cpu, bool zf)
{
    cpu->s.flags = (cpu->s.flags & ~F_ZF) | (zf ? F_ZF : 0);
    return CPU_OK;
}

static int selector_operand(struct cpu *cpu, const struct insn *in, unsigned n, uint16_t *sel)
{
    if (in->o[n].kind == OPK_MEM)
        return mem_ld16(cpu, in->seg, insn_ea(cpu, in), sel);
    *sel = (uint16_t)cpu->s.gpr[in->o[n].reg];
    return CPU_OK;
}

/* The descriptor that operand n selects, 0 where it is not in its table or not visible from CPL and RPL. Only memory
 * can fault. */
static int visible_descriptor(struct cpu *cpu, const struct insn *in, unsigned n, uint64_t *desc)
{
    uint16_t sel = 0;
    int st = selector_operand(cpu, in, n, &sel);
    const unsigned cpl = cpu->s.cpl, rpl = sel_rpl(sel);

    *desc = 0;
    if (st || sel_null(sel) || !seg_in_table(cpu, sel, 8))
        return st;
    if ((st = seg_read_desc8(cpu, sel, desc, VEC_GP)))
        return st;
    if (!(desc_code(*desc) && desc_conforming(*desc)) && (desc_dpl(*desc) < cpl || desc_dpl(*desc) < rpl))
        *desc = 0;
    return CPU_OK;
}

/* System types that LAR and LSL accept (SDM 2A, "LAR", "LSL"): a bit each. */
#define T(n)           (1u << (n))
#define LAR_TYPES      (T(1) | T(2) | T(3) | T(4) | T(5) | T(9) | T(11) | T(12))
#define LAR_TYPES_LONG (T(2) | T(9) | T(11) | T(12))
#define LSL_TYPES      (T(1) | T(2) | T(3) | T(9) | T(11))
#define LSL_TYPES_LONG (T(2) | T(9) | T(11))

static bool type_in(const struct cpu *cpu, uint64_t desc, unsigned types, unsigned types_long)
{
    return desc_s(desc) || ((long_mode(cpu) ? types_long : types) >> desc_type(desc) & 1);
}

/* What LAR and LSL put into their destination, for a descriptor of these types. */
static int descriptor_part(struct cpu *cpu, const struct insn *in, bool of_type, uint64_t value)
{
    if (of_type)
        reg_write(cpu, in->o[0].reg, in->opsize, value);
    return set_zf(cpu, of_type);
}

int in_lar(struct cpu *cpu, const struct insn *in)
{
    uint64_t desc;
    const int st = visible_descriptor(cpu, in, 1, &desc);

    return st ? st : descriptor_part(cpu, in, type_in(cpu, desc, LAR_TYPES, LAR_TYPES_LONG), desc >> 32 & 0x00f0ff00);
}

int in_lsl(struct cpu *cpu, const struct insn *in)
{
    uint64_t desc;
    const int st = visible_descriptor(cpu, in, 1, &desc);

    return st ? st : descriptor_part(cpu, in, type_in(cpu, desc, LSL_TYPES, LSL_TYPES_LONG), desc_limit(desc));
}

int in_verr(struct cpu *cpu, const struct insn *in)
{
    uint64_t desc;
    const int st = visible_descriptor(cpu, in, 0, &desc);

    return st ? st : set_zf(cpu, desc_s(desc) && (desc_data(desc) || (desc_type(desc) & 2)));
}

int in_verw(struct cpu *cpu, const struct insn *in)
{
    uint64_t desc;
    const int st = visible_descriptor(cpu, in, 0, &desc);

    return st ? st : set_zf(cpu, desc_writable_data(desc));
}

int in_arpl(struct cpu *cpu, const struct insn *in)
{
    const uint16_t source = (uint16_t)cpu->s.gpr[in->o[1].reg];
    uint16_t sel;
    int st;

    if ((st = selector_operand(cpu, in, 0, &sel)))
        return st;
    if (sel_rpl(sel) >= sel_rpl(source))
        return set_zf(cpu, false);
    sel = (uint16_t)((sel & ~3) | sel_rpl(source));
    if (in->o[0].kind != OPK_MEM)
        reg_write(cpu, in->o[0].reg, 2, sel);
    else if ((st = mem_st16(cpu, in->seg, insn_ea(cpu, in), sel)))
        return st;
    return set_zf(cpu, true);
}
