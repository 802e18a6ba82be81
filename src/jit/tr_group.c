/* SPDX-License-Identifier: MIT
 * tr_group.c: merged checks. Accesses of a block by one base value (pushes and pops, fields of one object, a frame) are
 * found before it is emitted; the first of them checks the range of all, and the others use what it found.
 *
 * Streams of memory go over pages now and then, and a range of theirs lies in two. A block whose checks failed like
 * that a few times is translated in two forms: a check that fails leads to the same instruction of the second, careful
 * one, which has no merged checks. Then ranges may be larger too.
 *
 * Why that is right: between two safepoints an entry of the table goes away only by what this cpu does itself, which is
 * a slow path. Behind each slow path amid a group its range is looked at again (struct jit_held, held_ok() in jit.c);
 * where it does not lie in pages as far from each other as in the host that allow what the group does, the block is
 * left there, or goes on in its careful form. Base values are followed through instructions whose effects on general
 * registers are known here; any other ends all groups. */
#include "../cpu/insn/fpu.h"
#include "tr.h"

/* ---- what general registers hold: a value and an offset ---- */

static void value_new(struct tr_values *v, unsigned g)
{
    v->value[g] = ++v->next;
    v->offset[g] = 0;
}

static void values_forget(struct tr_values *v)
{
    for (unsigned g = 0; g < 16; g++)
        value_new(v, g);
}

static void value_move(struct tr_values *v, unsigned to, unsigned from, int64_t more)
{
    const int64_t offset = v->offset[from] + more;

    v->value[to] = v->value[from];
    v->offset[to] = (int32_t)offset;
    if (offset < -0x10000 || offset > 0x10000)
        value_new(v, to);
}

enum effect { UNKNOWN, EXPLICIT, VECTOR, PUSH, POP, WIDE, SIGN_RAX, SIGN_RDX };

/* EXPLICIT: writes no general register but its visible operands that are written; WIDE: rax and rdx too; SIGN: that
 * one. */
#define ROW(op)  [OP_##op] = EXPLICIT,
#define COND(cc) [OP_SET##cc] = EXPLICIT, [OP_CMOV##cc] = EXPLICIT, [OP_J##cc] = EXPLICIT,
/* clang-format off */
static const uint8_t effects[OP_COUNT] = {
    ROW(MOV) ROW(MOVZX) ROW(MOVSX) ROW(MOVSXD) ROW(LEA) ROW(BSWAP) ROW(NOP) ROW(JMP)
    ROW(ADD) ROW(OR) ROW(ADC) ROW(SBB) ROW(AND) ROW(SUB) ROW(XOR) ROW(CMP) ROW(TEST) ROW(INC) ROW(DEC) ROW(NOT) ROW(NEG)
    ROW(ROL) ROW(ROR) ROW(RCL) ROW(RCR) ROW(SHL) ROW(SHR) ROW(SAR) ROW(SHLD) ROW(SHRD)
    ROW(BSF) ROW(BSR) ROW(TZCNT) ROW(LZCNT) ROW(POPCNT) ROW(BT) ROW(BTS) ROW(BTR) ROW(BTC)
    ROW(ANDN) ROW(BZHI) ROW(BEXTR) ROW(SHLX) ROW(SARX) ROW(SHRX) ROW(RORX) ROW(BLSR) ROW(BLSI) ROW(BLSMSK)
    COND(O) COND(NO) COND(B) COND(NB) COND(Z) COND(NZ) COND(BE) COND(NBE)
    COND(S) COND(NS) COND(P) COND(NP) COND(L) COND(NL) COND(LE) COND(NLE)
    ROW(CMC) ROW(CLC) ROW(STC) ROW(PDEP) ROW(PEXT) ROW(MULX)
    [OP_MUL] = WIDE, [OP_DIV] = WIDE, [OP_IDIV] = WIDE,
    [OP_CBW] = SIGN_RAX, [OP_CWDE] = SIGN_RAX, [OP_CDQE] = SIGN_RAX,
    [OP_CWD] = SIGN_RDX, [OP_CDQ] = SIGN_RDX, [OP_CQO] = SIGN_RDX,
    [OP_PUSH] = PUSH, [OP_CALL] = PUSH, [OP_POP] = POP, [OP_RET] = POP,
};
/* clang-format on */
#undef ROW
#undef COND

static enum effect effect_of(const struct insn *in)
{
    const enum effect effect = effects[in->op];

    if (in->native)
        return VECTOR;
    if (in->op == OP_IMUL)
        return in->nops > 1 ? EXPLICIT : WIDE;
    if (effect == PUSH || effect == POP)
        return in->opsize == 2 || in->aux == 1 ? UNKNOWN : effect;
    return effect;
}

static bool is_reg8(const struct insn *in, unsigned n)
{
    return in->nops > n && in->o[n].kind == OPK_REG && in->o[n].size == 8;
}

/* reg = another + constant: false where it is something else */
static bool value_follow(struct tr_values *v, const struct insn *in)
{
    if (!is_reg8(in, 0))
        return false;
    if (in->op == OP_MOV && is_reg8(in, 1))
        value_move(v, in->o[0].reg, in->o[1].reg, 0);
    else if ((in->op == OP_ADD || in->op == OP_SUB) && in->o[1].kind == OPK_IMM && (int64_t)in->imm == (int32_t)in->imm)
        value_move(v, in->o[0].reg, in->o[0].reg, in->op == OP_ADD ? (int64_t)in->imm : -(int64_t)in->imm);
    else if (in->op == OP_LEA && in->asize == 8 && in->base < 16 && in->index >= 16 && in->disp == (int32_t)in->disp)
        value_move(v, in->o[0].reg, in->base, in->disp);
    else if (in->op == OP_INC || in->op == OP_DEC)
        value_move(v, in->o[0].reg, in->o[0].reg, in->op == OP_INC ? 1 : -1);
    else
        return false;
    return true;
}

bool tr_values_known(const struct insn *in)
{
    return effect_of(in) != UNKNOWN && !(in->pfx & PFX_LOCK);
}

void tr_values_start(struct tr_values *v)
{
    v->next = 0;
    values_forget(v);
}

void tr_values_step(struct tr_values *v, const struct insn *in)
{
    const enum effect effect = effect_of(in);

    if (effect == UNKNOWN || (in->pfx & PFX_LOCK)) {
        values_forget(v);
        return;
    }
    if (value_follow(v, in))
        return;
    for (unsigned n = 0; n < in->nops; n++)
        if ((in->o[n].kind == OPK_REG || in->o[n].kind == OPK_REG8H) && (in->o[n].rw & OPND_W))
            value_new(v, in->o[n].reg & 15);
    if (effect == WIDE || effect == SIGN_RAX)
        value_new(v, R_RAX);
    if (effect == WIDE || effect == SIGN_RDX)
        value_new(v, R_RDX);
    if (in->op == OP_PCMPESTRI || in->op == OP_PCMPISTRI || in->op == OP_VPCMPESTRI || in->op == OP_VPCMPISTRI)
        value_new(v, R_RCX); /* hidden */
    else if (in->op == OP_FNSTSW)
        value_new(v, R_RAX);
    else if (effect == PUSH)
        value_move(v, R_RSP, R_RSP, -8);
    else if (effect == POP && !(in->nops && in->o[0].kind == OPK_REG && in->o[0].reg == R_RSP))
        value_move(v, R_RSP, R_RSP, 8);
}

/* ---- accesses ---- */

/* The explicit one: false where it has no simple address, is none, or is not known. */
static bool explicit_access(const struct insn *in, struct tr_member *m)
{
    const struct native *n = in->native;

    if (in->mem == 0xff || in->base >= 16 || (in->base == R_RSP && in->index < 16) || in->asize != 8 ||
        in->seg == SEG_FS || in->seg == SEG_GS || in->disp < -0x8000 || in->disp > 0x8000 || (in->pfx & PFX_LOCK))
        return false;
    *m = (struct tr_member){.base = in->base, .index = in->index, .scale = in->scale, .disp = (int32_t)in->disp};
    if (n) {
        m->size = n->mem_size;
        m->write = n->acc & ACC_WRITE;
        return n->acc && n->mem_size && n->mask == NM_NONE && !n->vsib;
    }
    m->size = in->o[in->mem].size;
    m->write = in->o[in->mem].rw & OPND_W;
    return effect_of(in) != UNKNOWN && in->op != OP_LEA && in->op != OP_NOP && m->size && m->size <= 8 &&
           !(in->op >= OP_BT && in->op <= OP_BTC);
}

static bool stack_access(const struct insn *in, struct tr_member *m)
{
    const enum effect effect = effect_of(in);

    *m = (struct tr_member){.base = R_RSP,
                            .index = REG_NONE,
                            .disp = effect == PUSH ? -8 : 0,
                            .size = 8,
                            .write = effect == PUSH,
                            .stack = true};
    return effect == PUSH || effect == POP;
}

/* An access by rsp alone takes its prediction from a word that all such accesses share: groups that hold it end. */
static void close_stack(struct tr *t, unsigned but)
{
    for (unsigned i = 0; i < t->ngroups; i++)
        if (t->group[i].stack && i != but)
            t->group[i].closed = true;
}

static uint32_t index_value(const struct tr_values *v, const struct tr_member *m)
{
    return m->index < 16 ? v->value[m->index] : 0;
}

/* Where it begins, from the values that its registers hold. */
int32_t tr_member_lo(const struct tr_values *v, const struct tr_member *m)
{
    return v->offset[m->base] + (m->index < 16 ? v->offset[m->index] * (1 << m->scale) : 0) + m->disp;
}

static bool same_values(const struct tr_group *g, const struct tr_values *v, const struct tr_member *m)
{
    return g->value == v->value[m->base] && g->index == index_value(v, m) && (!g->index || g->scale == m->scale);
}

static void join(struct tr *t, const struct tr_values *v, unsigned i, const struct tr_member *m)
{
    const int32_t lo = tr_member_lo(v, m), hi = lo + m->size, span = t->two[t->cur] ? TR_TWO_SPAN : TR_GROUP_SPAN;
    unsigned n;

    for (n = 0; n < t->ngroups; n++) {
        struct tr_group *g = &t->group[n];
        const int32_t new_lo = lo < g->lo ? lo : g->lo, new_hi = hi > g->hi ? hi : g->hi;

        if (g->closed || !same_values(g, v, m) || new_hi - new_lo > span)
            continue;
        g->lo = new_lo;
        g->hi = new_hi;
        g->write |= m->write;
        g->last = i;
        g->n++;
        break;
    }
    if (m->base == R_RSP && !(n < t->ngroups && t->group[n].stack))
        close_stack(t, n);
    if (n == t->ngroups) {
        if (n == TR_GROUPS)
            return;
        t->group[t->ngroups++] = (struct tr_group){.value = v->value[m->base],
                                                   .index = index_value(v, m),
                                                   .scale = m->scale,
                                                   .lo = lo,
                                                   .hi = hi,
                                                   .write = m->write,
                                                   .stack = m->base == R_RSP,
                                                   .first = i,
                                                   .last = i,
                                                   .n = 1};
    }
    t->member[i][m->stack] = n + 1;
}

void tr_groups_find(struct tr *t)
{
    struct tr_values v;
    struct tr_member m;

    t->ngroups = 0;
    memset(t->member, 0, sizeof(t->member));
    tr_values_start(&v);
    t->values = v;
    if (t->j->hardened || t->careful)
        return;
    for (unsigned i = 0; i < t->b->n; i++) {
        const struct insn *in = &t->b->insn[i];

        if (explicit_access(in, &m))
            join(t, &v, i, &m);
        else if (in->mem != 0xff && in->base == R_RSP)
            close_stack(t, TR_GROUPS);
        if (stack_access(in, &m))
            join(t, &v, i, &m);
        if (effect_of(in) == UNKNOWN)
            for (unsigned n = 0; n < t->ngroups; n++)
                t->group[n].closed = true;
        tr_values_step(&v, in);
    }
}

/* ---- while emitting ---- */

/* The group of this access of the current instruction, if it is what was seen before. */
struct tr_group *tr_group_of(struct tr *t, const struct tr_member *m)
{
    const unsigned n = t->member[t->i][m->stack];
    const int32_t lo = tr_member_lo(&t->values, m);
    struct tr_group *g = n ? &t->group[n - 1] : NULL;

    if (!g || g->n < 2 || !same_values(g, &t->values, m) || lo < g->lo || lo + m->size > g->hi ||
        (m->write && !g->write) || (!g->checked && g->last == t->i))
        return NULL;
    return g;
}

void tr_groups_stack(struct tr *t)
{
    for (unsigned n = 0; n < t->ngroups; n++)
        if (t->group[n].stack)
            t->group[n].checked = false;
}

/* A register that holds a value, 16: none. */
static unsigned holder(const struct tr_values *v, uint32_t value)
{
    unsigned g = 0;

    while (g < 16 && v->value[g] != value)
        g++;
    return g;
}

/* A slow path of the current instruction resumes behind it: which groups go on there. Called when it is emitted. */
void tr_groups_hold(struct tr *t, struct jit_desc *d)
{
    struct jit *j = t->j;

    d->held = j->nheld;
    d->nheld = 0;
    for (unsigned n = 0; n < t->ngroups; n++) {
        const struct tr_group *g = &t->group[n];
        const unsigned base = holder(&t->values, g->value), index = g->index ? holder(&t->values, g->index) : REG_NONE;
        const int32_t scaled = index < 16 ? t->values.offset[index] * (1 << g->scale) : 0;

        if (!g->checked || g->last <= t->i)
            continue;
        if (base == 16 || index == 16) /* no register is left that leads there */
            continue;
        j->held[j->nheld++] = (struct jit_held){.lo = g->lo - t->values.offset[base] - scaled,
                                                .span = g->hi - g->lo,
                                                .base = base,
                                                .index = index,
                                                .scale = g->scale,
                                                .write = g->write,
                                                .slot = g->slot};
        d->nheld++;
    }
}
