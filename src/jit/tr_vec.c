/* SPDX-License-Identifier: MIT
 * tr_vec.c: vector and x87 instructions: the guest's own encoding with its general registers renamed and its memory
 * operand at a checked host address (native_recode()). What needs more than that stays with the interpreter's
 * functions: gathers, whole-state saves, FNINIT. */
#include "../cpu/insn/fpu.h"
#include "tr.h"

/* Can be emitted in blocks of this key: control registers allow it, and no bookkeeping is beyond x87_pointers(). */
bool tr_vec_wanted(const struct insn *in, uint32_t key)
{
    const struct native *n = in->native;

    return n && n->run && op_rows[in->op].interp == in_native && (key & n->key_mask) == n->key_want &&
           !(n->x87 & NX_INIT) && !(n->acc && in->asize == 2);
}

/* Last-instruction pointers (SDM 1, "x87 FPU Instruction and Data (Operand) Pointers"): by then T0 and T1 are free
 * again, and the registers of the operand's address are as they were. */
#define UNIT(field) rm_mem(T1, offsetof(struct fpu_unit, field))
static void x87_pointers(struct tr *t, const struct native *n)
{
    const struct insn *in = t->in;
    const int32_t sel = (int32_t)(offsetof(struct cpu, s.seg) + offsetof(struct segment, sel)) - FLAT_BASE;
    const enum seg_reg data = in->seg < SEG_NONE ? in->seg : SEG_DS;
    struct emit *e = &t->e;

    if (n->x87 & NX_MEM) {
        tr_ea(t);
        e_mov_load(e, T1, rm_cpu(CPU(fpu)));
        e_mov_store(e, UNIT(fdp), T0);
        e_op(e, 0, 1, 0xb7, T0, rm_cpu(sel + data * (int32_t)sizeof(struct segment))); /* movzx */
        e_op(e, EF_O16, 0, 0x89, T0, UNIT(fds));
    } else {
        e_mov_load(e, T1, rm_cpu(CPU(fpu)));
    }
    e_op(e, 0, 1, 0xb7, T0, rm_cpu(sel + SEG_CS * (int32_t)sizeof(struct segment)));
    e_op(e, EF_O16, 0, 0x89, T0, UNIT(fcs));
    e_op(e, EF_O16, 0, 0xc7, 0, UNIT(fop));
    e1(e, (uint8_t)x87_opcode(in));
    e1(e, x87_opcode(in) >> 8);
    e_mov_load(e, T0, rm_cpu(CPU_HOT(HOT_PAGE)));
    e_lea(e, T0, rm_mem(T0, (int32_t)t->off));
    e_mov_store(e, UNIT(fip), T0);
}

/* All of the operand is written, by something that raises nothing of its own. */
static bool whole_write(const struct native *n)
{
    return n->acc == ACC_WRITE && n->mask == NM_NONE && !n->vsib && !n->traps;
}

/* T0 = host address. A masked operand is taken as a whole: where it lies in one page that is there and allows the
 * access, what the mask says does not matter; everything else is the interpreter's. */
static bool operand(struct tr *t, const struct native *n)
{
    const bool write = n->acc & ACC_WRITE;
    struct rm rm;

    /* misaligned where that matters: the slow path knows whether it is #GP */
    if (!tr_access(t, n->align ? 1 : n->mem_size, write, n->align, true, &rm))
        return false;
    if (rm.reg != T0 || rm.index != H_NONE || rm.disp)
        e_lea(&t->e, T0, rm);
    if (t->crossing && n->mem_size <= sizeof(t->j->cpu->bounce) / 2 && (!write || whole_write(n)))
        t->crossing->bounced = t->e.w;
    return true;
}

bool tr_vec(struct tr *t)
{
    const struct insn *in = t->in;
    const struct native *n = in->native;
    struct native_map map = {.scratch = T1, .base = T0};
    struct native_code code;

    memcpy(map.host, tr_host_reg, sizeof(map.host));
    if (!tr_vec_wanted(in, t->jb->key) || native_recode(in, &map, &code) < 0 || (n->acc && !operand(t, n)))
        return false;
    if (code.load != REG_NONE)
        e_mov_load(&t->e, T1, tr_reg_rm(code.load));
    if (n->acc || n->traps)
        tr_site(t);
    memcpy(t->e.w, code.b, code.n);
    t->e.w += code.n;
    if (n->acc && t->crossing)
        t->crossing->behind = t->e.w;
    if (code.store != REG_NONE)
        e_mov_store(&t->e, tr_reg_rm(code.store), T1);
    if (n->x87 & NX_POINTERS) {
        tr_islands(t, false, 85);
        x87_pointers(t, n);
    }
    return true;
}
