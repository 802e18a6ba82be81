/* SPDX-License-Identifier: MIT
 * in_sys_reg.c: control, debug and descriptor-table registers, FS and GS bases (SDM 2A-2C under each name). */
#include "sys/in_sys_int.h"
#include "mem/mem.h"

static int ud(struct cpu *cpu)
{
    return cpu_raise(cpu, VEC_UD);
}

static unsigned native_size(const struct cpu *cpu)
{
    return cpu->s.mode == MODE_64 ? 8 : 4;
}

static bool umip_denies(const struct cpu *cpu)
{
    return cpu->s.cpl && (cpu->s.cr4 & CR4_UMIP);
}

/* ---- MOV CRn, DRn ---- */
static int cr_read(struct cpu *cpu, const struct insn *in, unsigned cr, unsigned gpr)
{
    uint64_t value;
    int st;

    if ((cr == 3 || cr == 8) && (st = vmx_intercept_cr_read(cpu, in, cr, gpr)))
        return st;
    switch (cr) {
    case 2:
        value = cpu->s.cr2;
        break;
    case 3:
        value = cpu->s.cr3;
        break;
    case 8:
        value = cpu->s.cr8;
        break;
    default:
        value = vmx_visible_cr(cpu, cr);
    }
    reg_write(cpu, gpr, native_size(cpu), value);
    return CPU_OK;
}

int in_mov_cr(struct cpu *cpu, const struct insn *in)
{
    const bool write = in->o[0].kind == OPK_CR;
    const unsigned cr = in->o[write ? 0 : 1].reg, gpr = in->o[write ? 1 : 0].reg;
    uint64_t value;
    int st;

    if (cr > 8 || !(1u << cr & 0x11d)) /* 0 2 3 4 8 */
        return ud(cpu);
    if ((st = sys_cpl0(cpu)))
        return st;
    if (!write)
        return cr_read(cpu, in, cr, gpr);
    value = reg_read(cpu, gpr, native_size(cpu));
    if (cr != 2 && (st = vmx_intercept_cr_write(cpu, in, cr, gpr, &value)))
        return st;
    st = cr_write(cpu, cr, value);
    return st ? st : CPU_RESCAN;
}

#define DR6_WRITABLE 0x0000e00full
#define DR7_WRITABLE 0xffff23ffull

static int dr_write(struct cpu *cpu, unsigned dr, uint64_t value)
{
    struct cpu_state *s = &cpu->s;

    if (dr < 4) {
        s->dr[dr] = value;
        return CPU_RESCAN;
    }
    if (value >> 32)
        return sys_gp0(cpu);
    if (dr == 6) {
        s->dr6 = (value & DR6_WRITABLE) | DR6_FIXED;
        return CPU_RESCAN;
    }
    s->dr7 = (value & DR7_WRITABLE) | DR7_FIXED;
    cpu_step_changed(cpu);
    tlb_select(cpu); /* data breakpoints make every access take the slow path */
    return CPU_RESCAN;
}

/* The exit has priority even over the privilege check (SDM 3C, "Instructions That Cause VM Exits Conditionally"). */
int in_mov_dr(struct cpu *cpu, const struct insn *in)
{
    const bool write = in->o[0].kind == OPK_DR;
    const unsigned number = in->o[write ? 0 : 1].reg, gpr = in->o[write ? 1 : 0].reg;
    const struct cpu_state *s = &cpu->s;
    int st;

    if (number > 7)
        return ud(cpu);
    if ((st = vmx_intercept_dr(cpu, in, number, write, gpr)))
        return st;
    if ((number == 4 || number == 5) && (s->cr4 & CR4_DE))
        return ud(cpu);
    if ((st = sys_cpl0(cpu)))
        return st;
    if (s->dr7 & DR7_GD)
        return cpu_raise_db(cpu, DR6_BD);
    const unsigned dr = number == 4 || number == 5 ? number + 2 : number;
    if (write)
        return dr_write(cpu, dr, reg_read(cpu, gpr, native_size(cpu)));
    reg_write(cpu, gpr, native_size(cpu), dr < 4 ? s->dr[dr] : dr == 6 ? s->dr6 : s->dr7);
    return CPU_OK;
}

int in_clts(struct cpu *cpu, const struct insn *in)
{
    int st;

    if ((st = sys_cpl0(cpu)) || (st = vmx_intercept_clts(cpu, in)))
        return st;
    cpu->s.cr0 &= ~CR0_TS;
    cpu_mode_changed(cpu);
    return CPU_RESCAN;
}

static int read_word(struct cpu *cpu, const struct insn *in, unsigned n, uint16_t *v)
{
    if (in->o[n].kind == OPK_MEM)
        return mem_ld16(cpu, in->seg, insn_ea(cpu, in), v);
    *v = (uint16_t)cpu->s.gpr[in->o[n].reg];
    return CPU_OK;
}

/* Selectors and the like: 16 bits to memory, zero-extended to the operand size in a register. */
static int write_word(struct cpu *cpu, const struct insn *in, uint64_t v)
{
    if (in->o[0].kind == OPK_MEM)
        return mem_st16(cpu, in->seg, insn_ea(cpu, in), (uint16_t)v);
    reg_write(cpu, in->o[0].reg, in->opsize, v);
    return CPU_OK;
}

int in_lmsw(struct cpu *cpu, const struct insn *in)
{
    const bool memory = in->o[0].kind == OPK_MEM;
    uint64_t cr0;
    uint16_t value;
    int st;

    if ((st = sys_cpl0(cpu)) || (st = read_word(cpu, in, 0, &value)))
        return st;
    const gva_t linear = memory ? sys_linear(cpu, in->seg, insn_ea(cpu, in)) : ~0ull;
    if ((st = vmx_intercept_lmsw(cpu, in, value, linear, &cr0)) || (st = cr_write(cpu, 0, cr0)))
        return st;
    return CPU_RESCAN;
}

int in_smsw(struct cpu *cpu, const struct insn *in)
{
    return umip_denies(cpu) ? sys_gp0(cpu) : write_word(cpu, in, vmx_visible_cr(cpu, 0));
}

/* ---- GDTR, IDTR ---- */
static int load_table(struct cpu *cpu, const struct insn *in, struct dtable *table)
{
    const unsigned size = native_size(cpu);
    const gva_t ea = insn_ea(cpu, in);
    uint64_t base = 0;
    uint16_t limit;
    int st;

    if ((st = sys_cpl0(cpu)) || (st = vmx_intercept(cpu, in, EXIT_REASON_GDTR_IDTR, 0)) ||
        (st = mem_read(cpu, in->seg, ea, &limit, 2, ACC_READ)) ||
        (st = mem_read(cpu, in->seg, ea + 2, &base, size, ACC_READ)))
        return st;
    if (size == 8 && !cpu_canonical(base))
        return sys_gp0(cpu);
    if (size == 4 && in->opsize == 2)
        base &= 0xffffff;
    *table = (struct dtable){.base = base, .limit = limit};
    return CPU_RESCAN;
}

int in_lgdt(struct cpu *cpu, const struct insn *in)
{
    return load_table(cpu, in, &cpu->s.gdtr);
}

int in_lidt(struct cpu *cpu, const struct insn *in)
{
    return load_table(cpu, in, &cpu->s.idtr);
}

static int store_table(struct cpu *cpu, const struct insn *in, const struct dtable *table)
{
    const unsigned size = native_size(cpu);
    const gva_t ea = insn_ea(cpu, in);
    const uint16_t limit = (uint16_t)table->limit;
    int st;

    if (umip_denies(cpu))
        return sys_gp0(cpu);
    if ((st = vmx_intercept(cpu, in, EXIT_REASON_GDTR_IDTR, 0)) ||
        (st = mem_probe(cpu, in->seg, ea, 2 + size, ACC_WRITE)) ||
        (st = mem_write(cpu, in->seg, ea, &limit, 2, ACC_WRITE)))
        return st;
    return mem_write(cpu, in->seg, ea + 2, &table->base, size, ACC_WRITE);
}

int in_sgdt(struct cpu *cpu, const struct insn *in)
{
    return store_table(cpu, in, &cpu->s.gdtr);
}

int in_sidt(struct cpu *cpu, const struct insn *in)
{
    return store_table(cpu, in, &cpu->s.idtr);
}

/* ---- LDTR, TR ---- */
static int system_segment(struct cpu *cpu, uint16_t sel, const uint64_t d[2], struct segment *seg)
{
    if (!desc_p(d[0]))
        return seg_error(cpu, VEC_NP, sel);
    seg_from_desc(seg, sel, d[0]);
    if (long_mode(cpu)) {
        seg->base |= d[1] << 32;
        if (!cpu_canonical(seg->base))
            return seg_error(cpu, VEC_GP, sel);
    }
    return CPU_OK;
}

/* LLDT and LTR: the selector, and the descriptor that it names (of a null one: none). */
static int load_system_desc(struct cpu *cpu, const struct insn *in, uint16_t *sel, uint64_t d[2])
{
    int st;

    if ((st = sys_cpl0(cpu)) || (st = vmx_intercept(cpu, in, EXIT_REASON_LDTR_TR, 0)) ||
        (st = read_word(cpu, in, 0, sel)) || sel_null(*sel))
        return st;
    return *sel & 4 ? seg_error(cpu, VEC_GP, *sel) : seg_read_desc(cpu, *sel, d, VEC_GP);
}

int in_lldt(struct cpu *cpu, const struct insn *in)
{
    struct segment seg;
    uint64_t d[2];
    uint16_t sel;
    int st = load_system_desc(cpu, in, &sel, d);

    if (st)
        return st;
    if (sel_null(sel)) {
        seg_make_null(&cpu->s.ldtr, sel);
        return CPU_RESCAN;
    }
    if (desc_s(d[0]) || desc_type(d[0]) != SYS_LDT)
        return seg_error(cpu, VEC_GP, sel);
    if ((st = system_segment(cpu, sel, d, &seg)))
        return st;
    cpu->s.ldtr = seg;
    return CPU_RESCAN;
}

int in_ltr(struct cpu *cpu, const struct insn *in)
{
    struct segment seg;
    uint64_t d[2];
    uint16_t sel;
    int st = load_system_desc(cpu, in, &sel, d);

    if (st)
        return st;
    if (sel_null(sel))
        return sys_gp0(cpu);
    if (desc_s(d[0]) || (desc_type(d[0]) != SYS_TSS32 && (long_mode(cpu) || desc_type(d[0]) != SYS_TSS16)))
        return seg_error(cpu, VEC_GP, sel);
    if ((st = system_segment(cpu, sel, d, &seg)) || (st = seg_set_type(cpu, sel, 0, 2)))
        return st;
    seg.attr |= 2; /* busy */
    cpu->s.tr = seg;
    return CPU_RESCAN;
}

static int store_selector(struct cpu *cpu, const struct insn *in, uint16_t sel)
{
    int st;

    if (umip_denies(cpu))
        return sys_gp0(cpu);
    st = vmx_intercept(cpu, in, EXIT_REASON_LDTR_TR, 0);
    return st ? st : write_word(cpu, in, sel);
}

int in_sldt(struct cpu *cpu, const struct insn *in)
{
    return store_selector(cpu, in, cpu->s.ldtr.sel);
}

int in_str(struct cpu *cpu, const struct insn *in)
{
    return store_selector(cpu, in, cpu->s.tr.sel);
}

/* ---- FS and GS bases ---- */
int in_swapgs(struct cpu *cpu, const struct insn *in)
{
    struct cpu_state *s = &cpu->s;
    const uint64_t base = s->seg[SEG_GS].base;
    int st;

    if (s->mode != MODE_64)
        return ud(cpu);
    if ((st = sys_cpl0(cpu)))
        return st;
    s->seg[SEG_GS].base = s->gs_base_hot = s->kernel_gs_base;
    s->kernel_gs_base = base;
    return CPU_OK;
}

static bool base_insns_enabled(const struct cpu *cpu)
{
    return cpu->s.mode == MODE_64 && (cpu->s.cr4 & CR4_FSGSBASE);
}

static int read_base(struct cpu *cpu, const struct insn *in, enum seg_reg seg)
{
    if (!base_insns_enabled(cpu))
        return ud(cpu);
    reg_write(cpu, in->o[0].reg, in->o[0].size, cpu->s.seg[seg].base);
    return CPU_OK;
}

static int write_base(struct cpu *cpu, const struct insn *in, enum seg_reg seg, uint64_t *hot)
{
    if (!base_insns_enabled(cpu))
        return ud(cpu);
    const uint64_t base = reg_read(cpu, in->o[0].reg, in->o[0].size);
    if (!cpu_canonical(base))
        return sys_gp0(cpu);
    cpu->s.seg[seg].base = *hot = base;
    return CPU_OK;
}

int in_rdfsbase(struct cpu *cpu, const struct insn *in)
{
    return read_base(cpu, in, SEG_FS);
}

int in_rdgsbase(struct cpu *cpu, const struct insn *in)
{
    return read_base(cpu, in, SEG_GS);
}

int in_wrfsbase(struct cpu *cpu, const struct insn *in)
{
    return write_base(cpu, in, SEG_FS, &cpu->s.fs_base_hot);
}

int in_wrgsbase(struct cpu *cpu, const struct insn *in)
{
    return write_base(cpu, in, SEG_GS, &cpu->s.gs_base_hot);
}
