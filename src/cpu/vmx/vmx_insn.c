/* SPDX-License-Identifier: MIT
 * vmx_insn.c: VMX instructions that a guest executes as level 1: who may, their operands, and what RFLAGS says of the
 * result (SDM 3C, "VMX Instruction Reference", "Conventions"). */
#include "vmx/nested_int.h"
#include "sys/in_sys.h"

#define FEATURE_CONTROL_LOCK 1u
#define FEATURE_CONTROL_VMX  4u /* outside of SMX operation */

/* CPU_OK with RFLAGS as the result says; everything that depends on VMX operation is looked at anew. */
static int result(struct cpu *cpu, enum vmx_result r)
{
    cpu->s.flags = r == VMX_OK ? 0 : r == VMX_FAIL_INVALID ? F_CF : F_ZF;
    return CPU_RESCAN;
}

static unsigned operand_size(const struct cpu *cpu)
{
    return cpu->s.mode == MODE_64 ? 8 : 4;
}

static int mem_operand(struct cpu *cpu, const struct insn *in, void *buf, unsigned size)
{
    return mem_read(cpu, in->seg, insn_ea(cpu, in), buf, size, ACC_READ);
}

/* ---- VMXON, VMXOFF, VMCLEAR, VMPTRLD, VMPTRST ---- */

static bool fixed_bits(const struct cpu *cpu)
{
    const struct cpu_state *s = &cpu->s;
    const uint64_t cr0 = vmx_cap(cpu, 1, MSR_IA32_VMX_CR0_FIXED0), cr4 = vmx_cap(cpu, 1, MSR_IA32_VMX_CR4_FIXED0);

    return (s->cr0 & cr0) == cr0 && (s->cr4 & cr4) == cr4;
}

static int do_vmxon(struct cpu *cpu, const struct insn *in)
{
    const uint64_t want = FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX;
    uint64_t pa;
    int st;

    if (!cpu->vmx->level[1].on && (!fixed_bits(cpu) || (cpu->vmx->nested->feature_control & want) != want))
        return cpu_raise_err(cpu, VEC_GP, 0);
    st = mem_operand(cpu, in, &pa, sizeof(pa));
    return st ? st : result(cpu, vmx_on(cpu, 1, pa));
}

static int do_vmxoff(struct cpu *cpu, const struct insn *in)
{
    return result(cpu, vmx_off(cpu, 1));
}

static int do_vmclear(struct cpu *cpu, const struct insn *in)
{
    uint64_t pa;
    int st = mem_operand(cpu, in, &pa, sizeof(pa));

    return st ? st : result(cpu, vmx_clear(cpu, 1, pa));
}

static int do_vmptrld(struct cpu *cpu, const struct insn *in)
{
    uint64_t pa;
    int st = mem_operand(cpu, in, &pa, sizeof(pa));

    return st ? st : result(cpu, vmx_ptrld(cpu, 1, pa));
}

static int do_vmptrst(struct cpu *cpu, const struct insn *in)
{
    const struct vmx_level *l = &cpu->vmx->level[1];
    const uint64_t pa = l->cur ? l->cur_pa : ~0ull;
    int st = mem_write(cpu, in->seg, insn_ea(cpu, in), &pa, sizeof(pa), ACC_WRITE);

    return st ? st : result(cpu, VMX_OK);
}

/* ---- VMREAD, VMWRITE ---- */

static int do_vmread(struct cpu *cpu, const struct insn *in)
{
    const unsigned size = operand_size(cpu);
    const uint64_t field = reg_read(cpu, in->o[1].reg, size);
    uint64_t value = 0;
    enum vmx_result r;
    int st = CPU_OK;

    if (field >> 32)
        return result(cpu, vmx_fail(cpu, 1, VMXERR_BAD_FIELD));
    r = vmx_read(cpu, 1, (uint32_t)field, &value);
    if (r == VMX_OK && in->mem == 0xff)
        reg_write(cpu, in->o[0].reg, size, value);
    else if (r == VMX_OK)
        st = mem_write(cpu, in->seg, insn_ea(cpu, in), &value, size, ACC_WRITE);
    return st ? st : result(cpu, r);
}

static int do_vmwrite(struct cpu *cpu, const struct insn *in)
{
    const unsigned size = operand_size(cpu);
    const uint64_t field = reg_read(cpu, in->o[0].reg, size);
    uint64_t value = 0;
    int st = CPU_OK;

    if (in->mem == 0xff)
        value = reg_read(cpu, in->o[1].reg, size);
    else if (cpu->vmx->level[1].cur)
        st = mem_operand(cpu, in, &value, size);
    if (st)
        return st;
    if (field >> 32)
        return result(cpu, vmx_fail(cpu, 1, VMXERR_BAD_FIELD));
    return result(cpu, vmx_write(cpu, 1, (uint32_t)field, value));
}

/* ---- VMLAUNCH, VMRESUME ---- */

static int enter(struct cpu *cpu, bool launch)
{
    enum vmx_result r;

    if (!cpu->vmx->level[1].cur)
        return result(cpu, VMX_FAIL_INVALID);
    if (cpu->s.interruptibility & INTR_BLOCK_MOVSS)
        return result(cpu, vmx_fail(cpu, 1, VMXERR_ENTRY_MOVSS));
    r = vmx_launch_check(cpu, 1, launch);
    if (r != VMX_OK)
        return result(cpu, r);
    cpu->s.interruptibility &= ~INTR_BLOCK_STI;
    return vmx_exit_at(cpu, EXIT_TO_NESTED_ENTRY, NULL, 0, 0);
}

static int do_vmlaunch(struct cpu *cpu, const struct insn *in)
{
    return enter(cpu, true);
}

static int do_vmresume(struct cpu *cpu, const struct insn *in)
{
    return enter(cpu, false);
}

/* ---- INVEPT, INVVPID ---- */

static int do_invept(struct cpu *cpu, const struct insn *in)
{
    const uint64_t type = reg_read(cpu, in->o[0].reg, operand_size(cpu));
    uint64_t desc[2];
    int st = mem_operand(cpu, in, desc, sizeof(desc));

    return st ? st : result(cpu, vmx_invept(cpu, 1, type, desc[0]));
}

static int do_invvpid(struct cpu *cpu, const struct insn *in)
{
    const uint64_t type = reg_read(cpu, in->o[0].reg, operand_size(cpu));
    uint64_t desc[2];
    int st = mem_operand(cpu, in, desc, sizeof(desc));

    return st ? st : result(cpu, vmx_invvpid(cpu, 1, type, desc[0], desc[1]));
}

/* ---- all of them ---- */

static const struct row {
    insn_fn *fn;
    uint32_t cap; /* what IA32_VMX_EPT_VPID_CAP must have: the bit's number; 0: nothing */
} rows[OP_COUNT] = {
    [OP_VMXON] = {do_vmxon},       [OP_VMXOFF] = {do_vmxoff},       [OP_VMCLEAR] = {do_vmclear},
    [OP_VMPTRLD] = {do_vmptrld},   [OP_VMPTRST] = {do_vmptrst},     [OP_VMREAD] = {do_vmread},
    [OP_VMWRITE] = {do_vmwrite},   [OP_VMLAUNCH] = {do_vmlaunch},   [OP_VMRESUME] = {do_vmresume},
    [OP_INVEPT] = {do_invept, 20}, [OP_INVVPID] = {do_invvpid, 32},
};

/* Not in real, virtual-8086 or compatibility mode: the caller has seen to that. */
int vmx_insn(struct cpu *cpu, const struct insn *in)
{
    const struct row *row = &rows[in->op];

    if (in->op == OP_VMXON ? !(vmx_visible_cr(cpu, 4) & CR4_VMXE) : !cpu->vmx->level[1].on)
        return cpu_raise(cpu, VEC_UD);
    if (row->cap && !(vmx_cap(cpu, 1, MSR_IA32_VMX_EPT_VPID_CAP) >> row->cap & 1))
        return cpu_raise(cpu, VEC_UD);
    if (cpu->s.cpl)
        return cpu_raise_err(cpu, VEC_GP, 0);
    return row->fn(cpu, in);
}
