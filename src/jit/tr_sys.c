/* SPDX-License-Identifier: MIT
 * tr_sys.c: system instructions that stay in translated code. Where controls or control registers would have a say, a
 * word of cpu->plain answers; a 0 there, another privilege level or an unusual state is the interpreter's. */
#include "tr.h"

/* CPL 0, or the interpreter decides. */
static void check_cpl0(struct tr *t)
{
    e_op(&t->e, 0, 1, 0xb6, T1, rm_cpu(CPU(s.cpl))); /* movzx ecx, byte */
    e1(&t->e, 0xe3);                                 /* jrcxz over the jump */
    e1(&t->e, 5);
    tr_jmp_stub(t, tr_slow(t));
}

static void check_plain(struct tr *t, enum cpu_plain what)
{
    tr_islands(t, false, 100);
    e_mov_load(&t->e, T1, rm_cpu(CPU(plain) + 8 * (int32_t)what));
    tr_jrcxz_stub(t, tr_slow(t));
}

/* One bit of RFLAGS that is not the host's; none is above bit 31. */
static void system_flag(struct tr *t, uint32_t bit, bool set)
{
    const struct rm flags = rm_cpu(CPU(s.rflags_sys));
    struct emit *e = &t->e;

    if (!t->flags_live) {
        e_op(e, 0, 0, 0x81, set ? 1 : 4, flags); /* or, and dword, imm32 */
        e4(e, set ? bit : ~bit);
        return;
    }
    e_mov_imm32(e, T0, ~bit);
    e_mov_load(e, T1, flags);
    e_pext(e, T1, T1, rm_reg(T0));
    e_pdep(e, T1, T1, rm_reg(T0));
    if (set)
        e_lea(e, T1, rm_mem(T1, (int32_t)bit));
    e_mov_store(e, flags, T1);
}

bool tr_cli(struct tr *t)
{
    if (t->in->pfx & PFX_LOCK)
        return false;
    check_cpl0(t);
    system_flag(t, F_IF, false);
    return true;
}

/* Neither faults nor exits, and ends in line: its shadow, if it has one, is over before anything could look. */
static bool harmless(const struct insn *in)
{
    static const uint16_t ops[] = {OP_NOP, OP_MOV, OP_MOVZX, OP_MOVSXD, OP_LEA,  OP_ADD, OP_SUB,
                                   OP_AND, OP_OR,  OP_XOR,   OP_CMP,    OP_TEST, OP_INC, OP_DEC,
                                   OP_SHL, OP_SHR, OP_SAR,   OP_MOVSX,  OP_BT,   OP_NOT, OP_NEG};

    if (in->pfx & PFX_LOCK || (in->mem != 0xff && in->op != OP_LEA && in->op != OP_NOP))
        return false;
    for (unsigned n = 0; n < in->nops; n++)
        if (in->o[n].kind != OPK_REG && in->o[n].kind != OPK_IMM && in->o[n].kind != OPK_MEM)
            return false;
    for (unsigned i = 0; i < ARRAY_SIZE(ops); i++)
        if (in->op == ops[i])
            return true;
    return false;
}

/* The shadow covers the next instruction (SDM 2B, "STI"): emitted where that one is harmless, for translated code is
 * left at polls only, and none is between the two. Everywhere else the run loop takes one step. */
bool tr_sti(struct tr *t)
{
    if (t->in->pfx & PFX_LOCK || t->i + 1 >= t->b->n || !harmless(&t->b->insn[t->i + 1]))
        return false;
    check_cpl0(t);
    check_plain(t, PLAIN_STI);
    system_flag(t, F_IF, true);
    return true;
}

/* STAC, CLAC: the tables of the other view. */
bool tr_ac(struct tr *t)
{
    const bool set = t->in->op == OP_STAC;
    const int32_t view = CPU(view) + set * (int32_t)sizeof(struct access_view);
    struct emit *e = &t->e;

    if (t->in->pfx & PFX_LOCK)
        return false;
    tr_islands(t, false, 110);
    check_cpl0(t);
    system_flag(t, F_AC, set);
    e_mov_load(e, T1, rm_cpu(view + (int32_t)offsetof(struct access_view, acc_mode)));
    e_op(e, 0, 0, 0x88, T1, rm_cpu(CPU(s.acc_mode))); /* mov byte */
    e_mov_load(e, T1, rm_cpu(view + (int32_t)offsetof(struct access_view, tlb_tag)));
    e_mov_store(e, rm_cpu(CPU(tlb_tag)), T1);
    e_mov_load(e, T1, rm_cpu(view + (int32_t)offsetof(struct access_view, tlb)));
    e_mov_store(e, rm_cpu(CPU(tlb)), T1);
    e_mov_load(e, T1, rm_cpu(view + (int32_t)offsetof(struct access_view, flat)));
    e_mov_store(e, rm_cpu(CPU(flat)), T1);
    e_mov_load(e, H_R15, rm_reg(T1)); /* from another mapping of the same words */
    return true;
}

bool tr_direction(struct tr *t)
{
    if (t->in->pfx & PFX_LOCK)
        return false;
    system_flag(t, F_DF, t->in->op == OP_STD);
    return true;
}

bool tr_swapgs(struct tr *t)
{
    const struct rm base = rm_cpu(CPU(s.seg[SEG_GS].base)), other = rm_cpu(CPU(s.kernel_gs_base));

    if (t->in->pfx & PFX_LOCK)
        return false;
    check_cpl0(t);
    e_mov_load(&t->e, T0, base);
    e_mov_load(&t->e, T1, other);
    e_mov_store(&t->e, other, T0);
    e_mov_store(&t->e, base, T1);
    e_mov_store(&t->e, rm_cpu(CPU(s.gs_base_hot)), T1);
    return true;
}

/* The guest's rax and rdx are the host's: edx:eax plus the offset, without flags. */
bool tr_rdtsc(struct tr *t)
{
    const bool p = t->in->op == OP_RDTSCP;
    struct emit *e = &t->e;

    if (t->in->pfx & PFX_LOCK)
        return false;
    check_plain(t, p ? PLAIN_TSCP : PLAIN_TSC);
    e1(e, 0x0f);
    e1(e, p ? 0x01 : 0x31); /* rdtscp, which writes rcx: scratch */
    if (p)
        e1(e, 0xf9);
    e_rorx(e, H_RDX, H_RDX, 32);
    e_lea(e, H_RAX, (struct rm){.mem = true, .reg = H_RAX, .index = H_RDX});
    e_mov_load(e, T1, rm_cpu(CPU(s.tsc_offset)));
    e_lea(e, H_RAX, (struct rm){.mem = true, .reg = H_RAX, .index = T1});
    e_rorx(e, H_RDX, H_RAX, 32);
    e_mov_load32(e, H_RDX, rm_reg(H_RDX));
    e_mov_load32(e, H_RAX, rm_reg(H_RAX));
    if (p)
        e_mov_load32(e, tr_host_reg[R_RCX], rm_cpu(CPU(s.tsc_aux)));
    return true;
}

bool tr_pause(struct tr *t)
{
    if (t->in->pfx & PFX_LOCK)
        return false;
    check_plain(t, PLAIN_PAUSE);
    e1(&t->e, 0xf3);
    e1(&t->e, 0x90);
    return true;
}

/* RDFSBASE RDGSBASE WRFSBASE WRGSBASE. A base that is not canonical is #GP: bits 63:47 are all alike where adding bit
 * 47 and shifting them out leaves nothing. */
bool tr_base(struct tr *t)
{
    const struct insn *in = t->in;
    const bool gs = in->op == OP_RDGSBASE || in->op == OP_WRGSBASE;
    const struct rm base = gs ? rm_cpu(CPU(s.seg[SEG_GS].base)) : rm_cpu(CPU(s.seg[SEG_FS].base));
    const struct rm hot = gs ? rm_cpu(CPU(s.gs_base_hot)) : rm_cpu(CPU(s.fs_base_hot));
    const bool wide = in->o[0].size == 8;
    struct emit *e = &t->e;

    if (in->pfx & PFX_LOCK || in->o[0].kind != OPK_REG)
        return false;
    check_plain(t, PLAIN_FSGS);
    if (in->op == OP_RDFSBASE || in->op == OP_RDGSBASE) {
        e_op(e, wide ? EF_W : 0, 0, 0x8b, T1, base);
        e_mov_store(e, tr_reg_rm(in->o[0].reg), T1);
        return true;
    }
    e_op(e, wide ? EF_W : 0, 0, 0x8b, T0, tr_reg_rm(in->o[0].reg));
    if (wide) {
        e_mov_imm64(e, T1, 1ull << 47);
        e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = T0});
        e_rorx(e, T1, T1, 48);
        e_op(e, 0, 1, 0xb7, T1, rm_reg(T1)); /* movzx ecx, cx: what was above bit 47 */
        e1(e, 0xe3);
        e1(e, 5);
        tr_jmp_stub(t, tr_slow(t));
    }
    e_mov_store(e, base, T0);
    e_mov_store(e, hot, T0);
    return true;
}
