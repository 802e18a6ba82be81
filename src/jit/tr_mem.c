/* SPDX-License-Identifier: MIT
 * tr_mem.c: memory operands: linear address, look-up in the flat table, the check for accesses over two pages. */
#include "tr.h"

/* base + index * scale + disp, with guest registers wherever they live */
static void address_offset(struct tr *t, const struct insn *in)
{
    struct rm ea = {.mem = true, .reg = H_NONE, .index = H_NONE, .disp = (int32_t)in->disp};
    const bool wide = in->asize == 8;

    if (in->index < 16) {
        ea.scale = in->scale;
        if (tr_pinned(in->index)) {
            ea.index = tr_host_reg[in->index];
        } else {
            e_mov_load(&t->e, T1, tr_reg_rm(in->index));
            ea.index = T1;
        }
    }
    if (in->base == REG_RIP) {
        e_mov_load(&t->e, T0, rm_cpu(CPU_HOT(HOT_PAGE)));
        ea.reg = T0;
        ea.disp = (int32_t)in->disp + (int32_t)t->next_off;
    } else if (in->base < 16) {
        if (tr_pinned(in->base)) {
            ea.reg = tr_host_reg[in->base];
        } else {
            e_mov_load(&t->e, T0, tr_reg_rm(in->base));
            ea.reg = T0;
        }
    }
    e_op(&t->e, wide ? EF_W : 0, 0, 0x8d, T0, ea); /* lea: a 32-bit one zero-extends, as 32-bit addresses do */
}

void tr_ea(struct tr *t)
{
    address_offset(t, t->in);
}

bool tr_address(struct tr *t)
{
    const struct insn *in = t->in;

    if (in->asize == 2 || in->disp != (int32_t)in->disp || (in->base == REG_RIP && in->disp > 0x7fff0000))
        return false;
    if (in->base == H_NONE && in->index == H_NONE && in->disp < 0 && in->asize == 4)
        return false;
    address_offset(t, in);
    if (in->seg == SEG_FS || in->seg == SEG_GS) {
        e_mov_load(&t->e, T1,
                   rm_cpu((int32_t)(offsetof(struct cpu, s.seg) + in->seg * sizeof(struct segment)) +
                          (int32_t)offsetof(struct segment, base) - FLAT_BASE));
        e_lea(&t->e, T0, (struct rm){.mem = true, .reg = T0, .index = T1});
    }
    return true;
}

/* Without flags: the last size bytes of a page (for sizes that are no power of two, the last 16) are looked at again
 * out of line, where an aligned access is sent back. */
static void check_crossing_no_flags(struct tr *t, unsigned size, struct tr_stub *s)
{
    const unsigned align = size & (size - 1) ? 15 : size - 1;
    const unsigned mask = (PAGE_SIZE - 1) & ~align;
    struct emit *e = &t->e;

    e_mov_imm32(e, T1, mask);
    e_pext(e, T1, T0, rm_reg(T1));
    e_lea(e, T1, rm_mem(T1, -(int32_t)(mask / (align + 1))));
    tr_jrcxz_stub(t, s);
    s->align = align;
}

/* An access over two pages: out of line (recheck() in translate.c), and to the slow path where that does not help. */
static void check_crossing(struct tr *t, unsigned size, bool write)
{
    struct tr_stub *s;
    struct emit *e = &t->e;

    if (size == 1)
        return;
    s = tr_stub_new(t, tr_slow(t)->desc);
    s->size = size;
    s->write = write;
    if (t->flags_live) {
        check_crossing_no_flags(t, size, s);
    } else if (size <= 8 && !(size & (size - 1))) {
        e_test_reg_imm8(e, T0, size - 1);
        tr_jcc_stub(t, 5, s);
        s->unaligned = true;
    } else {
        e_op(e, 0, 0, 0x8d, T1, rm_mem(T0, (int32_t)size - 1)); /* lea ecx, [r14d + size - 1] */
        e_op(e, 0, 0, 0x31, T0, rm_reg(T1));                    /* xor ecx, r14d */
        e_op(e, 0, 0, 0xf7, 0, rm_reg(T1));                     /* test ecx, 0x1000 */
        e4(e, PAGE_SIZE);
        tr_jcc_stub(t, 5, s);
    }
    s->back = e->w;
}

/* T1 = the table's word, not 0. T0 stays the linear address. */
static void check_word(struct tr *t, unsigned size, bool write)
{
    struct emit *e = &t->e;
    struct rm word = {.mem = true, .reg = H_R15, .index = T1, .disp = (int32_t)CPU_SPAN - FLAT_BASE + (write ? 8 : 0)};

    tr_islands(t, false, 75);
    check_crossing(t, size, write);
    if (t->flags_live) {
        word.scale = 3;
        e_pext(e, T1, T0, rm_cpu(CPU_HOT(HOT_MASK)));
        e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = T1});
        e_mov_load(e, T1, word);
        tr_jrcxz_stub(t, tr_slow(t));
    } else {
        e_rorx(e, T1, T0, 8);
        e_op(e, EF_W, 0, 0x23, T1, rm_cpu(CPU_HOT(HOT_MASK_ROR))); /* and: the index times 16 */
        e_mov_load(e, T1, word);
        e_test_reg(e, T1);
        tr_jcc_stub(t, 4, tr_slow(t));
    }
}

struct rm tr_checked(struct tr *t, unsigned size, bool write, bool keep_t1)
{
    const struct rm host = {.mem = true, .reg = T0, .index = T1, .disp = -1};

    check_word(t, size, write);
    if (!keep_t1)
        return host;
    e_lea(&t->e, T0, host);
    return rm_mem(T0, 0);
}

void tr_check(struct tr *t, unsigned size, bool write)
{
    tr_checked(t, size, write, true);
}

bool tr_mem(struct tr *t, unsigned size, bool write, struct rm *rm)
{
    if (!tr_address(t))
        return false;
    *rm = tr_checked(t, size, write, false);
    tr_site(t);
    return true;
}
