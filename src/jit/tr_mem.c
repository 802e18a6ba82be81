/* SPDX-License-Identifier: MIT
 * tr_mem.c: memory operands: linear address, the check against the flat table, accesses over two pages.
 *
 * The table's word authorises every access. A read where flags are free compares it with a prediction (struct jit_slot)
 * and goes to address + prediction: the table load is not in the address's dependency chain. Forms:
 *   near   T0 = prediction or word, in the operand beside the base register; T1 holds the index, then it is free
 *   far    T0 = address, to which that is added; for addresses with several words of the state in them
 *   plain  T0 = address, T1 = word, both in the operand; where flags are live
 * Out of line, where the word is not the prediction: 0 goes to the slow path, else it becomes the prediction. Writes,
 * which nothing waits for, and reads that predictions fail take the word itself. */
#include "tr.h"

#define TABLE(write) ((int32_t)CPU_SPAN - FLAT_BASE + ((write) ? 8 : 0))
#define SEG_BASE(n)                                                                                                    \
    ((int32_t)(offsetof(struct cpu, s.seg) + (n) * sizeof(struct segment)) + (int32_t)offsetof(struct segment, base) - \
     FLAT_BASE)

/* ---- addresses ---- */

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

bool tr_address_ok(const struct insn *in)
{
    if (in->asize == 2 || in->disp != (int32_t)in->disp || (in->base == REG_RIP && in->disp > 0x7fff0000))
        return false;
    return !(in->base == H_NONE && in->index == H_NONE && in->disp < 0 && in->asize == 4);
}

bool tr_address(struct tr *t)
{
    const struct insn *in = t->in;

    if (!tr_address_ok(in))
        return false;
    address_offset(t, in);
    if (t->element) {
        e_mov_load(&t->e, T1, rm_cpu(CPU(s.rip)));
        e_lea(&t->e, T0, (struct rm){.mem = true, .reg = T0, .index = T1, .scale = (uint8_t)(t->element == 8 ? 3 : 2)});
    }
    if (in->seg == SEG_FS || in->seg == SEG_GS) {
        e_mov_load(&t->e, T1, rm_cpu(SEG_BASE(in->seg)));
        e_lea(&t->e, T0, (struct rm){.mem = true, .reg = T0, .index = T1});
    }
    return true;
}

/* Which prediction an operand shares: by what its address starts from. */
static unsigned slot_key(const struct insn *in)
{
    if (in->seg == SEG_FS || in->seg == SEG_GS)
        return TR_KEY_SEG + in->seg - SEG_FS;
    if (in->base == R_RSP && (in->index < 16 || in->asize != 8)) /* groups know the stack's word by rsp alone */
        return TR_KEY_NONE;
    return in->base < 16 ? in->base : in->base == REG_RIP ? TR_KEY_RIP : TR_KEY_NONE;
}

/* The operand as host registers and at most one word of the state. */
static struct tr_ea near_ea(const struct tr *t, const struct insn *in)
{
    struct tr_ea a = {.near = in->asize == 8 && !t->element, .key = t->element ? TR_KEY_NONE : slot_key(in)};
    int64_t disp = in->disp;
    unsigned words = 0;

    a.rm = (struct rm){.mem = true, .reg = H_NONE, .index = H_NONE};
    if (in->index < 16) {
        a.rm.index = tr_host_reg[in->index];
        a.rm.scale = in->scale;
        a.near &= tr_pinned(in->index);
    }
    if (in->base == REG_RIP) {
        a.word = CPU_HOT(HOT_PAGE);
        words++;
        disp += (int32_t)t->next_off;
    } else if (in->base < 16 && tr_pinned(in->base)) {
        a.rm.reg = tr_host_reg[in->base];
    } else if (in->base < 16) {
        a.word = CPU_GPR(in->base);
        words++;
    }
    if (in->seg == SEG_FS || in->seg == SEG_GS) {
        a.word = SEG_BASE(in->seg);
        words++;
    }
    a.has_word = words;
    a.rm.disp = (int32_t)disp;
    a.near &= disp > -0x7fffff00 && disp < 0x7fffff00 && words + (a.rm.index != H_NONE) < 2;
    return a;
}

/* reg = the address + more; one register is enough */
static void emit_near(struct tr *t, const struct tr_ea *a, uint8_t reg, int32_t more)
{
    struct rm rm = a->rm;

    rm.disp += more;
    if (a->has_word) {
        e_mov_load(&t->e, reg, rm_cpu(a->word));
        if (rm.reg == H_NONE && !rm.disp)
            return;
        rm.index = reg; /* no index where there is a word */
        rm.scale = 0;
        if (rm.reg == H_NONE) {
            rm.reg = reg;
            rm.index = H_NONE;
        }
    }
    e_lea(&t->e, reg, rm);
}

/* ---- accesses over two pages ---- */

static unsigned round_up2(unsigned n)
{
    return n & (n - 1) ? 2u << (31 - __builtin_clz(n)) : n;
}

static uint64_t slot_address(const struct tr *t, uint32_t slot, unsigned offset)
{
    return (uint64_t)&t->j->slots[slot] + offset;
}

/* A merged check that fails leads to the block's careful form, where it has one. */
static void gives_up(struct tr *t, struct tr_stub *s, bool group)
{
    s->careful = group && t->two[t->cur];
    t->gives_up |= s->careful;
    s->block = t->cur;
    s->insn = t->i;
}

static struct tr_stub *slow_or_careful(struct tr *t, bool group)
{
    struct tr_stub *s;

    if (!group || !t->two[t->cur])
        return tr_slow(t);
    s = tr_stub_new(t, 0);
    s->kind = STUB_CAREFUL;
    gives_up(t, s, true);
    return s;
}

/* Without flags: T0 is the address of the last byte; in a page's first bytes it is looked at out of line. */
static void check_crossing_no_flags(struct tr *t, unsigned size, bool write, bool group)
{
    const unsigned bits = 31 - __builtin_clz(round_up2(size));
    struct tr_stub *s;

    if (size == 1)
        return;
    s = tr_stub_new(t, tr_slow(t)->desc);
    s->kind = STUB_CROSS_FLAGS;
    gives_up(t, s, group);
    t->crossing = group ? NULL : s;
    s->size = size;
    s->write = write;
    e_pext_rip(&t->e, T1, T0, slot_address(t, 1 + bits, offsetof(struct jit_slot, word)));
    tr_jrcxz_stub(t, s);
    s->back = t->e.w;
}

/* The address is aligned, or one in T1 is of its last byte: reg = where to take the page from. */
static uint8_t check_crossing(struct tr *t, const struct tr_ea *a, unsigned size, bool write, bool group)
{
    const bool plain_base = a->near && !a->has_word && a->rm.index == H_NONE && !a->rm.disp && a->rm.reg != H_NONE;
    struct emit *e = &t->e;
    struct tr_stub *s;
    uint8_t reg = T1;

    if (size == 1 && plain_base)
        return a->rm.reg;
    if (size == 1 && !a->near)
        return T0;
    if (size == 1) {
        emit_near(t, a, T1, 0);
        return T1;
    }
    s = tr_stub_new(t, tr_slow(t)->desc);
    s->kind = STUB_CROSS;
    gives_up(t, s, group);
    t->crossing = group ? NULL : s;
    s->size = size;
    s->write = write;
    s->ea = *a;
    if (plain_base && size <= 8) {
        reg = a->rm.reg;
        e_test_reg_imm8(e, reg, round_up2(size) - 1);
        tr_jcc_stub(t, 5, s);
    } else {
        if (a->near)
            emit_near(t, a, T1, (int32_t)size - 1);
        else
            e_lea(e, T1, rm_mem(T0, (int32_t)size - 1));
        e_op(e, 0, 0, 0xf7, 0, rm_reg(T1)); /* test ecx, imm32: a page's first bytes end no access that begins in it */
        e4(e, (PAGE_SIZE - 1) & ~(round_up2(size) - 1));
        tr_jcc_stub(t, 4, s);
    }
    s->back_reg = reg;
    s->back = e->w;
    return reg;
}

static void check_alignment(struct tr *t, const struct tr_ea *a, unsigned mask)
{
    struct emit *e = &t->e;

    if (t->flags_live) {
        if (a->near)
            emit_near(t, a, T0, 0);
        else
            tr_address(t);
        e_mov_imm32(e, T1, mask);
        e_pext(e, T1, T0, rm_reg(T1));
        e1(e, 0xe3); /* jrcxz over the jump */
        e1(e, 5);
        tr_jmp_stub(t, tr_slow(t));
        return;
    }
    if (a->near)
        emit_near(t, a, T1, 0);
    e_test_reg_imm8(e, a->near ? T1 : T0, mask);
    tr_jcc_stub(t, 5, tr_slow(t));
}

/* ---- predictions ---- */

static uint32_t slot_of(struct tr *t, unsigned key)
{
    if (!t->slot[key]) {
        t->slot[key] = t->j->nslot++;
        t->j->slots[t->slot[key]] = (struct jit_slot){.word = SLOT_COLD, .left = SLOT_PERIOD};
    }
    return t->slot[key];
}

/* An instruction with the site's prediction as its memory operand. */
static void e_op_slot(struct tr *t, unsigned flags, uint8_t opcode, uint8_t reg, const struct tr_stub *s)
{
    if (s->hot)
        e_op(&t->e, flags, 0, opcode, reg, rm_cpu(s->hot));
    else
        e_op_rip(&t->e, flags, opcode, reg, slot_address(t, s->slot, offsetof(struct jit_slot, word)), 0);
}

static int32_t stack_word(const struct tr *t)
{
    return CPU_HOT(t->jb->key & KEY_CPL3 ? HOT_STACK_USER : HOT_STACK_SUPER);
}

static struct tr_stub *miss_stub(struct tr *t, const struct tr_ea *a, const struct tr_group *g, bool write,
                                 const uint8_t *start)
{
    struct tr_stub *slow = slow_or_careful(t, g), *s = tr_stub_new(t, 0);

    s->kind = STUB_MISS;
    s->slow = slow - t->stub;
    s->write = write;
    s->ea = *a;
    if (g && !g->stack) {
        s->slot = g->slot;
    } else if (g || a->key == R_RSP) {
        s->hot = stack_word(t);
        tr_groups_stack(t);
    } else {
        s->slot = slot_of(t, a->key);
        s->desc = tr_desc(t, DESC_MISS, (int32_t)s->slot);
        t->j->desc[s->desc].size = a->near;
        t->j->desc[s->desc].resume = start - t->j->rw;
    }
    return s;
}

/* The near operand: T0 is what to add to the address, plus 1. */
static struct rm near_operand(struct tr *t, const struct tr_ea *a)
{
    struct rm rm = a->rm;

    if (a->has_word && t->flags_live) {
        e_mov_load(&t->e, T1, rm_cpu(a->word));
        e_lea(&t->e, T0, (struct rm){.mem = true, .reg = T0, .index = T1});
    } else if (a->has_word) {
        e_op(&t->e, EF_W, 0, 0x03, T0, rm_cpu(a->word));
    }
    rm.disp--;
    if (rm.index != H_NONE && rm.reg != H_NONE) {
        e_lea(&t->e, T0, (struct rm){.mem = true, .reg = rm.reg, .index = T0, .disp = rm.disp});
        rm.reg = T0;
        rm.disp = 0;
    } else if (rm.reg != H_NONE) {
        rm.index = T0;
        rm.scale = 0;
    } else {
        rm.reg = T0;
    }
    return rm;
}

/* The group's range as an address, where it is one. */
static struct tr_ea range_of(const struct tr *t, const struct tr_ea *a, const struct tr_group *g, unsigned *size)
{
    struct tr_ea range = *a;

    if (g) {
        range.rm.disp += g->lo - t->lo;
        *size = g->hi - g->lo;
    }
    return range;
}

/* T1 is the index, T0 the address of a far operand: by the table's word, behind which the access waits. */
static struct rm word_operand(struct tr *t, const struct tr_ea *a, bool write)
{
    const struct rm word = {.mem = true, .reg = H_R15, .index = T1, .disp = TABLE(write)};
    const uint8_t reg = a->near ? T0 : T1;
    struct emit *e = &t->e;

    e_mov_load(e, reg, word);
    e_test_reg(e, reg);
    tr_jcc_stub(t, 4, tr_slow(t));
    if (a->near)
        return near_operand(t, a);
    e_op(e, EF_W, 0, 0x03, T0, rm_reg(T1));
    return rm_mem(T0, -1);
}

/* Nothing waits for what a write leaves: a prediction would gain nothing. */
static struct rm check_flags_free(struct tr *t, const struct tr_ea *a, unsigned size, bool write, unsigned align,
                                  struct tr_group *g)
{
    const struct rm word = {.mem = true, .reg = H_R15, .index = T1, .disp = TABLE(write)};
    const struct tr_ea range = range_of(t, a, g, &size);
    uint8_t *start = t->e.w, *at, reg = a->near ? T1 : T0;
    struct emit *e = &t->e;
    struct tr_stub *s;

    if (!a->near)
        tr_address(t);
    if (align)
        check_alignment(t, a, align);
    if (!align || g)
        reg = check_crossing(t, &range, size, write, g);
    e_rorx(e, T1, reg, 8);
    e_op(e, EF_W, 0, 0x23, T1, rm_cpu(CPU_HOT(HOT_MASK_ROR))); /* and: the index times 16 */
    if (!g && write)
        return word_operand(t, a, write);
    s = miss_stub(t, a, g, write, start);
    at = e->w;
    if (a->near) {
        e_op_slot(t, EF_W, 0x8b, T0, s);
        e_op(e, EF_W, 0, 0x3b, T0, word);
    } else {
        e_mov_load(e, T1, word);
        at = e->w;
        e_op_slot(t, EF_W, 0x3b, T1, s);
    }
    t->j->desc[s->desc].patch = s->desc ? at - t->j->rw : 0;
    tr_jcc_stub(t, 5, s);
    s->back = e->w;
    if (a->near)
        return near_operand(t, a);
    e_op_slot(t, EF_W, 0x03, T0, s);
    return rm_mem(T0, -1);
}

/* ---- sites that adapt ----
 * patch of a site's descriptor: mov r14, [slot] (7); cmp r14, [r15 + rcx + table] (8); jne (6)
 * ... of a far one:             cmp rcx, [slot] (7); jne (6); add r14, [slot] (7) */

static uint8_t *site_jump(struct jit *j, const struct jit_desc *d)
{
    return j->rw + d->patch + (d->size ? 7 + 8 : 7);
}

/* Every execution goes out of line, where hits and misses are counted, or misses alone do. */
void tr_sample(struct jit *j, const struct jit_desc *d, bool on)
{
    uint8_t *jump = site_jump(j, d);

    jump[0] = on ? 0x90 : 0x0f; /* nop; jmp for jne: its displacement stays */
    jump[1] = on ? 0xe9 : 0x85;
}

bool tr_sampled(struct jit *j, const struct jit_desc *d)
{
    return site_jump(j, d)[0] == 0x90;
}

/* A site whose prediction fails often: the table's word is used itself, in the same bytes. */
void tr_make_plain(struct jit *j, const struct jit_desc *d)
{
    struct emit e = {.w = j->rw + d->patch, .bias = (uint64_t)(j->rx - j->rw)};
    uint8_t *const at = e.w;

    tr_sample(j, d, false);
    if (d->size) {
        int32_t table;

        memcpy(&table, at + 7 + 4, 4);
        e_mov_load(&e, T0, (struct rm){.mem = true, .reg = H_R15, .index = T1, .disp = table});
        e_test_reg(&e, T0);
        e4(&e, 0x00401f0f); /* nop */
        assert(e.w == at + 15 && e.w[0] == 0x0f);
        e.w[1] = 0x84;
    } else {
        e_test_reg(&e, T1);
        e4(&e, 0x00401f0f);
        assert(e.w == at + 7 && e.w[0] == 0x0f);
        e.w[1] = 0x84;
        e.w += 6;
        e_op(&e, EF_W, 0, 0x03, T0, rm_reg(T1));
        e4(&e, 0x00401f0f);
    }
}

/* T1 = the table's word, not 0; T0 = the last byte's address. */
static void check_plain(struct tr *t, const struct tr_ea *a, unsigned size, bool write, bool group)
{
    const struct rm word = {.mem = true, .reg = H_R15, .index = T1, .scale = 3, .disp = TABLE(write)};
    struct emit *e = &t->e;

    tr_islands(t, false, 110);
    if (a->near)
        emit_near(t, a, T0, (int32_t)size - 1);
    else
        tr_address(t);
    if (!a->near && size > 1)
        e_lea(e, T0, rm_mem(T0, (int32_t)size - 1));
    check_crossing_no_flags(t, size, write, group);
    e_pext(e, T1, T0, rm_cpu(CPU_HOT(HOT_MASK)));
    e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = T1});
    e_mov_load(e, T1, word);
    tr_jrcxz_stub(t, slow_or_careful(t, group));
}

/* The group's check where flags are live: its word in memory and in T0. */
static struct rm lead_plain(struct tr *t, const struct tr_ea *a, struct tr_group *g)
{
    unsigned size = 0;
    const struct tr_ea range = range_of(t, a, g, &size);
    const struct tr_stub to = {.slot = g->slot, .hot = g->stack ? stack_word(t) : 0};

    check_plain(t, &range, size, g->write, true);
    if (g->stack)
        tr_groups_stack(t);
    e_op_slot(t, EF_W, 0x89, T1, &to);
    e_op(&t->e, EF_W, 0, 0x8b, T0, rm_reg(T1));
    return near_operand(t, a);
}

static struct rm group_operand(struct tr *t, const struct tr_ea *a, unsigned align, struct tr_group *g)
{
    struct rm rm;

    if (g->checked) {
        const struct tr_stub from = {.slot = g->slot, .hot = g->stack ? stack_word(t) : 0};

        if (align)
            check_alignment(t, a, align);
        e_op_slot(t, EF_W, 0x8b, T0, &from);
        return near_operand(t, a);
    }
    if (!g->stack && !g->slot) {
        g->slot = t->j->nslot++;
        t->j->slots[g->slot].word = SLOT_COLD;
    }
    if (!t->flags_live) {
        rm = check_flags_free(t, a, 0, g->write, align, g);
    } else {
        tr_islands(t, false, 110);
        if (align)
            check_alignment(t, a, align);
        rm = lead_plain(t, a, g);
    }
    g->checked = true;
    return rm;
}

static struct rm keep(struct tr *t, struct rm rm, bool keep_t1)
{
    if (!keep_t1 || (rm.reg != T1 && rm.index != T1))
        return rm;
    e_lea(&t->e, T0, rm);
    return rm_mem(T0, 0);
}

/* ... hardened: T0 = host address, or one that no access reaches: data, not a branch, decides that, so that no access
 * runs ahead with an address of the guest's choice. The branch to the slow path is for what happens in the end. */
static struct rm check_hardened(struct tr *t, const struct tr_ea *a, unsigned size, bool write, unsigned align)
{
    const struct rm word = {.mem = true, .reg = H_R15, .index = T1, .disp = TABLE(write)};
    struct tr_ea far = *a; /* T0 has it */
    struct emit *e = &t->e;

    if (a->near)
        emit_near(t, a, T0, 0);
    else
        tr_address(t);
    far.near = false;
    if (align)
        check_alignment(t, &far, align);
    else
        check_crossing(t, &far, size, write, false);
    t->crossing = NULL;
    e_rorx(e, T1, T0, 8);
    e_op(e, EF_W, 0, 0x23, T1, rm_cpu(CPU_HOT(HOT_MASK_ROR)));
    e_mov_load(e, T1, word);
    e_lea(e, T0, (struct rm){.mem = true, .reg = T0, .index = T1, .disp = -1});
    e_test_reg(e, T1);
    e_op_rip_0f(e, EF_W, 0x44, T0, slot_address(t, 0, offsetof(struct jit_slot, word))); /* cmovz: slot 0 is cold */
    tr_jcc_stub(t, 4, tr_slow(t));
    return rm_mem(T0, 0);
}

/* Flags are live: T1's bit 0 says whether the entry is there, and makes a mask of all bits or none. */
static struct rm harden_plain(struct tr *t, unsigned size)
{
    struct emit *e = &t->e;

    e_lea(e, T0, (struct rm){.mem = true, .reg = T0, .index = T1, .disp = -(int32_t)size});
    e_rorx(e, T1, T1, 1);
    e_push(e, H_RAX);
    e_mov_imm32(e, H_RAX, 63);
    e_vex(e, 2, 2, true, 0xf7, T1, H_RAX, rm_reg(T1)); /* sarx */
    e_pop(e, H_RAX);
    e_pext(e, T0, T0, rm_reg(T1));
    return rm_mem(T0, 0);
}

/* The operand, by the check that suits it. */
static struct rm check(struct tr *t, const struct tr_ea *a, const struct tr_member *m, unsigned align, bool keep_t1)
{
    struct tr_group *g = a->near && m->base < 16 ? tr_group_of(t, m) : NULL;
    struct rm rm;

    tr_islands(t, false, 80);
    if (g)
        t->lo = tr_member_lo(&t->values, m);
    if (g)
        return group_operand(t, a, align, g);
    if (!t->flags_live && t->j->hardened)
        return check_hardened(t, a, m->size, m->write, align);
    if (!t->flags_live)
        return check_flags_free(t, a, align ? 1 : m->size, m->write, align, NULL);
    tr_islands(t, false, 110);
    if (align)
        check_alignment(t, a, align);
    check_plain(t, a, align ? 1 : m->size, m->write, false);
    if (t->j->hardened)
        return harden_plain(t, align ? 1 : m->size);
    rm = (struct rm){.mem = true, .reg = T0, .index = T1, .disp = align ? -1 : -(int32_t)m->size};
    return keep(t, rm, keep_t1);
}

bool tr_access(struct tr *t, unsigned size, bool write, unsigned align, bool keep_t1, struct rm *rm)
{
    const struct insn *in = t->in;
    const bool simple = in->base < 16 && in->asize == 8 && in->seg != SEG_FS && in->seg != SEG_GS;
    const struct tr_member m = {.base = simple ? in->base : REG_NONE,
                                .index = in->index,
                                .scale = in->scale,
                                .size = size,
                                .write = write,
                                .disp = (int32_t)in->disp};
    struct tr_ea a;

    t->crossing = NULL;
    if (!tr_address_ok(in))
        return false;
    a = near_ea(t, in);
    if (t->trace && tr_loop_operand(t, &a, &m, align, rm))
        return true;
    *rm = check(t, &a, &m, align, keep_t1);
    return true;
}

struct rm tr_access_element(struct tr *t, unsigned size, bool write)
{
    struct rm rm;

    t->element = size;
    tr_access(t, size, write, 0, true, &rm);
    t->element = 0;
    return rm;
}

bool tr_mem(struct tr *t, unsigned size, bool write, struct rm *rm)
{
    if (!tr_access(t, size, write, 0, false, rm))
        return false;
    tr_site(t);
    return true;
}

struct rm tr_stack(struct tr *t, unsigned guest_reg, int32_t disp, bool write, bool keep_t1)
{
    const struct tr_ea a = {.rm = rm_mem(tr_host_reg[guest_reg], disp), .near = true, .key = guest_reg};
    const struct tr_member m = {
        .base = guest_reg, .index = REG_NONE, .size = 8, .write = write, .stack = true, .disp = disp};
    struct rm rm;

    if (t->trace && tr_loop_operand(t, &a, &m, 0, &rm))
        return rm;
    return check(t, &a, &m, 0, keep_t1);
}

struct rm tr_at(struct tr *t, unsigned guest_reg, unsigned size, bool write, bool keep_t1)
{
    const struct tr_ea a = {.rm = rm_mem(tr_host_reg[guest_reg], 0), .near = true, .key = guest_reg};
    const struct tr_member m = {.base = REG_NONE, .index = REG_NONE, .size = size, .write = write};

    t->crossing = NULL;
    return check(t, &a, &m, 0, keep_t1);
}

/* ---- out of line ---- */

static void jcc_to(struct tr *t, unsigned cc, unsigned stub)
{
    struct tr_stub *to = &t->stub[stub];

    if (to->placed)
        e_fix32(&t->e, e_jcc_later(&t->e, cc), to->placed);
    else
        tr_jcc_stub(t, cc, to);
}

static void call(struct tr *t, uint32_t trampoline)
{
    e1(&t->e, 0xe8);
    e4(&t->e, (uint32_t)((uint64_t)(t->j->rx + trampoline) - (e_here(&t->e) + 4)));
}

static void call_keeping(struct tr *t, uint32_t trampoline, bool flags)
{
    if (flags)
        e1(&t->e, 0x9c); /* pushfq */
    call(t, trampoline);
    if (flags)
        e1(&t->e, 0x9d);
}

static void call_neighbours(struct tr *t, const struct tr_stub *s)
{
    struct emit *e = &t->e;

    e_mov_imm32(e, T1, s->size - 1);
    call(t, t->j->neighbours[s->write]);
}

static void give_up(struct tr *t, const struct tr_stub *s)
{
    if (s->careful)
        e_jmp(&t->e, tr_careful(t, s));
    else
        tr_slow_exit(t, s->desc);
}

/* T0 = linear address of an access to two pages that are no neighbours: it is made to a copy, or given up. */
static void by_copy(struct tr *t, const struct tr_stub *s, bool flags)
{
    struct emit *e = &t->e;
    uint8_t *copied, *done;

    if (!s->bounced) {
        give_up(t, s);
        return;
    }
    call_keeping(t, t->j->bounce[s->write], flags);
    copied = e_jrcxz_later(e);
    give_up(t, s);
    e_fix8(copied, e->w);
    if (!s->write) {
        e_jmp(e, (uint64_t)s->bounced + e->bias);
        return;
    }
    memcpy(e->w, s->bounced, (size_t)(s->behind - s->bounced));
    e->w += s->behind - s->bounced;
    e_mov_imm32(e, T1, s->size);
    call_keeping(t, t->j->bounce_out, flags);
    done = e_jrcxz_later(e);
    tr_slow_exit(t, s->desc);
    e_fix8(done, e->w);
    e_jmp(e, (uint64_t)s->behind + e->bias);
}

/* T0 is the last byte's address; flags are untouched. */
static void cross_flags(struct tr *t, const struct tr_stub *s)
{
    struct emit *e = &t->e;
    uint8_t *same;

    e_lea(e, T0, rm_mem(T0, -(int32_t)s->size + 1));
    call_neighbours(t, s);
    same = e_jrcxz_later(e);
    by_copy(t, s, true);
    e_fix8(same, e->w);
    e_lea(e, T0, rm_mem(T0, (int32_t)s->size - 1));
    e_jmp(e, (uint64_t)s->back + e->bias);
}

/* An access that may cross pages goes back where it does not, or where both pages are neighbours in host memory too. */
static void cross(struct tr *t, const struct tr_stub *s)
{
    struct emit *e = &t->e;
    uint8_t *inside, *same;

    if (s->ea.near)
        emit_near(t, &s->ea, T0, 0);
    e_lea(e, T1, rm_mem(T0, (int32_t)s->size - 1));
    e_op(e, 0, 0, 0x81, 4, rm_reg(T1)); /* and ecx, 0xfff */
    e4(e, PAGE_SIZE - 1);
    e_op(e, 0, 0, 0x81, 7, rm_reg(T1)); /* cmp ecx, size - 1 */
    e4(e, s->size - 1);
    inside = e_jcc_later(e, 3); /* not below: its last byte lies in the page of its first */
    call_neighbours(t, s);
    same = e_jrcxz_later(e);
    by_copy(t, s, false);
    e_fix32(e, inside, e->w);
    e_fix8(same, e->w);
    if (s->back_reg == T1)
        e_op(e, EF_W, 0, 0x8b, T1, rm_reg(T0));
    e_jmp(e, (uint64_t)s->back + e->bias);
}

static void miss(struct tr *t, const struct tr_stub *s)
{
    const uint8_t reg = s->ea.near ? T0 : T1;
    struct emit *e = &t->e;
    uint8_t *hit = NULL, *adapt;

    if (t->j->count) {
        e_op(e, EF_W, 0, 0x83, 0, rm_cpu(CPU(counters) + 8 * CC_mispredicted)); /* add, 1 */
        e1(e, 1);
    }
    if (s->ea.near)
        e_mov_load(e, T0, (struct rm){.mem = true, .reg = H_R15, .index = T1, .disp = TABLE(s->write)});
    e_test_reg(e, reg); /* first of all: a site that is plain by now comes here with nothing else */
    jcc_to(t, 4, s->slow);
    if (s->desc) {
        e_op_slot(t, EF_W, 0x3b, reg, s);
        hit = e_jcc_later(e, 4);
    }
    e_op_slot(t, EF_W, 0x89, reg, s);
    if (!s->desc) {
        e_jmp(e, (uint64_t)s->back + e->bias);
        return;
    }
    e_op_rip(e, 0, 0x83, 5, slot_address(t, s->slot, offsetof(struct jit_slot, left)), 1); /* sub dword, 1 */
    e1(e, 1);
    e_fix32(e, e_jcc_later(e, 5), s->back);
    adapt = e->w;
    tr_slow_exit(t, s->desc);
    e_fix32(e, hit, e->w);
    e_op_rip(e, 0, 0x83, 5, slot_address(t, s->slot, offsetof(struct jit_slot, since)), 1);
    e1(e, 1);
    e_fix32(e, e_jcc_later(e, 4), adapt);
    e_jmp(e, (uint64_t)s->back + e->bias);
}

void tr_mem_stub(struct tr *t, const struct tr_stub *s)
{
    if (s->kind == STUB_CROSS)
        cross(t, s);
    else if (s->kind == STUB_CROSS_FLAGS)
        cross_flags(t, s);
    else if (s->kind == STUB_MISS)
        miss(t, s);
    else
        give_up(t, s);
}
