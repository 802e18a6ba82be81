/* SPDX-License-Identifier: MIT
 * tr_flags.c: which flags must survive the checks of memory accesses, and how those that need not are made again.
 *
 * Flags are dead where they are written before an instruction reads them. Who sees dead ones all the same is an
 * exception's frame, a VM exit, code that changed: whatever leaves the block there. At each place that may be left
 * either EFLAGS is right (no check in front of it may touch it), or it has a recipe: what computed the flags last, from
 * values that registers still hold (struct jit_recipe, jit_flags_again()). */
#include "../cpu/insn/fpu.h"
#include "tr.h"

/* ---- places that may be left ---- */

/* Emitted for operands in registers without a way out. */
#define ROW(op)  [OP_##op] = true,
#define COND(cc) [OP_SET##cc] = true, [OP_CMOV##cc] = true, [OP_J##cc] = true,
/* clang-format off */
static const bool stays[OP_COUNT] = {
    ROW(MOV) ROW(MOVZX) ROW(MOVSX) ROW(MOVSXD) ROW(LEA) ROW(BSWAP) ROW(NOP) ROW(XCHG)
    ROW(ADD) ROW(OR) ROW(ADC) ROW(SBB) ROW(AND) ROW(SUB) ROW(XOR) ROW(CMP) ROW(TEST) ROW(INC) ROW(DEC) ROW(NOT) ROW(NEG)
    ROW(ROL) ROW(ROR) ROW(RCL) ROW(RCR) ROW(SHL) ROW(SHR) ROW(SAR) ROW(SHLD) ROW(SHRD) ROW(MUL) ROW(IMUL)
    ROW(BSF) ROW(BSR) ROW(TZCNT) ROW(LZCNT) ROW(POPCNT) ROW(BT) ROW(BTS) ROW(BTR) ROW(BTC)
    ROW(ANDN) ROW(BZHI) ROW(BEXTR) ROW(SHLX) ROW(SARX) ROW(SHRX) ROW(RORX) ROW(BLSR) ROW(BLSI) ROW(BLSMSK) ROW(MULX)
    ROW(PDEP) ROW(PEXT) ROW(CBW) ROW(CWDE) ROW(CDQE) ROW(CWD) ROW(CDQ) ROW(CQO)
    COND(O) COND(NO) COND(B) COND(NB) COND(Z) COND(NZ) COND(BE) COND(NBE)
    COND(S) COND(NS) COND(P) COND(NP) COND(L) COND(NL) COND(LE) COND(NLE)
};
/* clang-format on */
#undef ROW
#undef COND

bool tr_may_leave(const struct insn *in, uint32_t key)
{
    const struct native *n = in->native;

    if (n)
        return !tr_vec_wanted(in, key) || n->acc || n->traps || n->x87;
    if (!stays[in->op] || (in->pfx & PFX_LOCK) || (in->mem != 0xff && in->op != OP_LEA && in->op != OP_NOP))
        return true;
    for (unsigned i = 0; i < in->nops; i++)
        if (in->o[i].kind != OPK_REG && in->o[i].kind != OPK_REG8H && in->o[i].kind != OPK_IMM &&
            in->o[i].kind != OPK_MEM && in->o[i].kind != OPK_REL)
            return true;
    return false;
}

/* ---- what computes flags ---- */

/* Flags that it writes, whatever its operands are. */
static uint32_t writes(const struct insn *in)
{
    const struct op_row *row = &op_rows[in->op];
    const bool shift = in->op == OP_SHL || in->op == OP_SHR || in->op == OP_SAR;

    if (shift && in->o[1].kind == OPK_IMM && (in->imm & (in->o[0].size == 8 ? 63 : 31)))
        return row->must | row->may;
    return row->must;
}

struct source { /* a value that a register holds, plus an offset; no register: a constant */
    uint32_t value;
    int32_t offset;
    bool constant;
};
struct producer {
    uint8_t kind, size;
    uint8_t carry_kind, carry_size; /* INC, DEC: what computed CF */
    struct source a, b, carry_a, carry_b;
};

static struct source source_of(const struct tr_values *v, const struct insn *in, unsigned n)
{
    if (in->o[n].kind == OPK_IMM)
        return (struct source){.constant = true, .offset = (int32_t)in->imm};
    return (struct source){.value = v->value[in->o[n].reg], .offset = v->offset[in->o[n].reg]};
}

static bool plain(const struct insn *in, unsigned n)
{
    return in->o[n].kind == OPK_REG || (in->o[n].kind == OPK_IMM && (int64_t)in->imm == (int32_t)in->imm);
}

/* in writes flags: from what they can be made again, if from anything. v: before it, after: behind it. */
static struct producer producer_of(const struct tr_values *v, const struct tr_values *after, const struct insn *in)
{
    struct producer p = {.kind = RECIPE_NONE, .size = in->o[0].size};
    const bool same = in->nops > 1 && in->o[1].kind == OPK_REG && in->o[1].reg == in->o[0].reg;

    if (in->native || !in->nops || in->o[0].kind != OPK_REG)
        return p;
    switch (in->op) {
    case OP_CMP:
    case OP_TEST:
        if (!plain(in, 1))
            return p;
        p.kind = in->op == OP_CMP ? RECIPE_SUB : RECIPE_AND;
        p.a = source_of(v, in, 0);
        p.b = source_of(v, in, 1);
        return p;
    case OP_ADD:
    case OP_SUB:
        if (!plain(in, 1) || same)
            return p;
        p.kind = in->op == OP_ADD ? RECIPE_ADDED : RECIPE_SUBTRACTED;
        p.b = source_of(v, in, 1);
        break;
    case OP_AND:
    case OP_OR:
    case OP_XOR:
        p.kind = RECIPE_RESULT;
        if (in->op == OP_XOR && same) {
            p.a.constant = true;
            return p;
        }
        break;
    case OP_NEG:
        p.kind = RECIPE_NEGATED;
        break;
    case OP_INC:
    case OP_DEC:
        p.kind = in->op == OP_INC ? RECIPE_INC : RECIPE_DEC;
        break;
    default:
        return p;
    }
    p.a = source_of(after, in, 0);
    return p;
}

static bool holder(const struct tr_values *v, const struct source *s, uint8_t *reg, int32_t *offset)
{
    *reg = REG_NONE;
    *offset = s->offset;
    if (s->constant)
        return true;
    for (unsigned g = 0; g < 16; g++)
        if (v->value[g] == s->value) {
            *reg = g;
            *offset = s->offset - v->offset[g];
            return true;
        }
    return false;
}

static bool same(const struct jit_recipe *r, const struct jit_recipe *s)
{
    return !memcmp(r, s, sizeof(*r));
}

/* The number of a recipe for the producer's flags where registers hold v; 0: there is none. */
static uint32_t recipe(struct jit *j, const struct tr_values *v, const struct producer *p)
{
    struct jit_recipe r = {.kind = p->kind, .size = p->size};

    if (p->kind == RECIPE_NONE || !holder(v, &p->a, &r.a, &r.a_offset) || !holder(v, &p->b, &r.b, &r.b_offset))
        return 0;
    if (p->kind >= RECIPE_INC) {
        const struct producer carry = {.kind = p->carry_kind, .size = p->carry_size, .a = p->carry_a, .b = p->carry_b};

        if (!(r.carry = recipe(j, v, &carry)))
            return 0;
    }
    if (p->kind == RECIPE_SAVED)
        return RECIPE_OF_SAVED;
    for (uint32_t n = j->nrecipe - 1; n && n + 3 > j->nrecipe; n--)
        if (same(&j->recipe[n], &r))
            return n;
    j->recipe[j->nrecipe] = r;
    return j->nrecipe++;
}

static struct source source_at_start(const struct tr_values *v, uint8_t reg, int32_t offset)
{
    if (reg == REG_NONE)
        return (struct source){.constant = true, .offset = offset};
    return (struct source){.value = v->value[reg], .offset = v->offset[reg] + offset};
}

/* A recipe that holds where registers hold v. */
static struct producer from_recipe(const struct jit *j, const struct tr_values *v, uint32_t n)
{
    const struct jit_recipe *r = &j->recipe[n], *c = &j->recipe[r->carry];

    return (struct producer){.kind = r->kind,
                             .size = r->size,
                             .a = source_at_start(v, r->a, r->a_offset),
                             .b = source_at_start(v, r->b, r->b_offset),
                             .carry_kind = c->kind,
                             .carry_size = c->size,
                             .carry_a = source_at_start(v, c->a, c->a_offset),
                             .carry_b = source_at_start(v, c->b, c->b_offset)};
}

/* in writes flags: what makes all of them again from now on. */
static struct producer next_producer(const struct producer *p, const struct tr_values *v, const struct tr_values *after,
                                     const struct insn *in)
{
    struct producer next = producer_of(v, after, in);

    if (next.kind < RECIPE_INC)
        return next;
    if (p->kind < RECIPE_INC) {
        next.carry_kind = p->kind;
        next.carry_size = p->size;
        next.carry_a = p->a;
        next.carry_b = p->b;
    } else {
        next.carry_kind = p->carry_kind;
        next.carry_size = p->carry_size;
        next.carry_a = p->carry_a;
        next.carry_b = p->carry_b;
    }
    return next;
}

/* The flags in front of instruction i are dead. */
static bool dead(const struct block *b, unsigned i, bool dead_behind)
{
    for (; i < b->n; i++) {
        const struct insn *in = &b->insn[i];

        if (op_rows[in->op].rd & F_OSZAPC)
            return false;
        if (writes(in) == F_OSZAPC)
            return true;
        if (op_rows[in->op].must | op_rows[in->op].may)
            return false;
    }
    return dead_behind;
}

/* The instruction has a check of its own: no other one covers its accesses. (It may come otherwise, and cost more.) */
static bool checks(const struct tr *t, const struct block *b, unsigned i)
{
    const struct insn *in = &b->insn[i];
    const bool access[2] = {in->mem != 0xff && in->op != OP_LEA && in->op != OP_NOP, op_rows[in->op].attrs & A_STACK};

    for (unsigned k = 0; k < 2; k++) {
        const unsigned n = t->member[i][k];

        if (access[k] && (!n || t->group[n - 1].n < 2 || t->group[n - 1].first == i))
            return true;
    }
    return false;
}

/* Of each of the first places in the block (n + 1: all): its recipe; bits of those that may be left and have none (bit
 * n: the block's end). entry: the recipe of the flags in front of it. save: where they are saved, which needs them;
 * NULL: nowhere. */
static uint64_t block_recipes(struct tr *t, const struct block *b, uint32_t entry, unsigned places, uint32_t *recipes,
                              uint64_t *save, bool dead_behind)
{
    struct tr_values v, after;
    struct jit *j = t->j;
    struct producer p;
    uint64_t need = 0;

    tr_values_start(&v);
    p = from_recipe(j, &v, entry);
    for (unsigned i = 0; i < places; i++) {
        const struct insn *in = &b->insn[i];
        const bool end = i == b->n, leave = end || tr_may_leave(in, b->key);

        recipes[i] = leave ? recipe(j, &v, &p) : 0;
        if (leave && !recipes[i]) {
            need |= 1ull << i;
            if (save && !end && checks(t, b, i) && dead(b, i, dead_behind)) {
                *save |= 1ull << i;
                recipes[i] = RECIPE_OF_SAVED;
                p = (struct producer){.kind = RECIPE_SAVED, .a.constant = true, .b.constant = true};
            }
        }
        if (end)
            break;
        after = v;
        tr_values_step(&after, in);
        if (op_rows[in->op].must | op_rows[in->op].may)
            p = next_producer(&p, &v, &after, in);
        v = after;
    }
    return need;
}

/* ---- liveness ---- */

static uint32_t before(const struct insn *in, uint32_t live)
{
    return (live & ~writes(in)) | (op_rows[in->op].rd & F_OSZAPC);
}

/* What must be in EFLAGS in front of a block, given what must be behind it. */
static uint32_t block_live(const struct block *b, uint64_t need, uint32_t live)
{
    for (unsigned i = b->n; i--;)
        live = need >> i & 1 ? F_OSZAPC : before(&b->insn[i], live);
    return live;
}

static int32_t last_offset(const struct block *b)
{
    return (int32_t)(b->hva & ~PAGE_MASK) + b->bytes - b->insn[b->n - 1].len;
}

static uint32_t live_behind(const struct jit *j, const struct unit *u, unsigned i)
{
    const struct unit_exits x = unit_exits(u->b[i]);
    uint32_t live = x.unknown ? F_OSZAPC : 0;

    for (unsigned k = 0; k < x.n; k++) {
        const int to = unit_find(u, x.to[k]);
        const bool poll = x.to[k] <= last_offset(u->b[i]); /* may be left there */

        if (to < 0 || (poll && u->need[i] >> u->b[i]->n & 1))
            live = F_OSZAPC;
        else if (!unit_warm(j, u, i, (unsigned)to))
            live |= u->live_in[to];
        else if (u->clear[to])
            live |= u->live_out[to];
    }
    return live;
}

/* ---- heads ----
 * In front of the first instruction that writes all flags they are those of the block before. An edge that brings a
 * recipe for them leads to a head whose checks are free to use EFLAGS; all other ways into the block lead to a copy of
 * the head, which keeps EFLAGS. */

static uint32_t end_recipe(const struct unit *u, unsigned i)
{
    return u->recipe[u->recipes[i] + u->b[i]->n];
}

bool unit_warm(const struct jit *j, const struct unit *u, unsigned from, unsigned to)
{
    const uint32_t recipe = end_recipe(u, from);

    return u->entry[to] && recipe && same(&j->recipe[recipe], &j->recipe[u->entry[to]]) &&
           (u->fpu[from] || !u->fpu[to]);
}

static bool leads_to(const struct unit *u, unsigned from, unsigned to)
{
    const struct unit_exits x = unit_exits(u->b[from]);

    for (unsigned k = 0; k < x.n; k++)
        if (unit_find(u, x.to[k]) == (int)to)
            return true;
    return false;
}

/* Instructions up to the last one that may be left with the flags of the block before; 0: a copy would gain nothing.
 * clear: no instruction writes flags. */
static unsigned head_of(const struct block *b, uint64_t need, bool *clear)
{
    unsigned head = 0;

    *clear = false;

    for (unsigned i = 0; i < b->n; i++) {
        const struct insn *in = &b->insn[i];

        if (op_rows[in->op].rd & F_OSZAPC)
            return 0;
        if (need >> i & 1)
            head = i + 1;
        if (writes(in) == F_OSZAPC)
            return head;
        if (op_rows[in->op].must | op_rows[in->op].may)
            return 0;
    }
    *clear = true;
    return head;
}

/* Places that are left with flags in EFLAGS or saved ones. */
static uint64_t sites_of(const struct unit *u, unsigned i)
{
    uint64_t sites = u->need[i];

    for (unsigned k = 0; k < u->b[i]->n; k++)
        sites |= (uint64_t)(u->recipe[u->recipes[i] + k] == RECIPE_OF_SAVED) << k;
    return sites;
}

static bool all_inside(const struct unit *u, unsigned i)
{
    const struct unit_exits x = unit_exits(u->b[i]);
    bool inside = !x.unknown;

    for (unsigned k = 0; k < x.n; k++)
        inside &= unit_find(u, x.to[k]) >= 0;
    return inside;
}

/* The entry recipe: the lowest back edge's first. */
static void choose_head(struct tr *t, struct unit *u, unsigned i)
{
    const struct block *b = u->b[i];
    bool clear = false;
    const unsigned head =
        b->page2 || code_selfcheck(b) || (b->heat & HEAT_TWO) ? 0 : head_of(b, sites_of(u, i), &clear);
    uint32_t recipes[BLOCK_INSNS];

    if (clear && end_recipe(u, i) != RECIPE_OF_SAVED)
        return;

    for (unsigned k = 0; k < u->n && head; k++) {
        const unsigned from = u->n - 1 - k;
        const uint32_t entry = end_recipe(u, from);

        if (!entry || !leads_to(u, from, i) || (u->fpu[i] && !u->fpu[from]) || (clear && entry != RECIPE_OF_SAVED) ||
            block_recipes(t, b, entry, head, recipes, NULL, false))
            continue;
        u->clear[i] = clear;
        u->entry[i] = entry;
        u->head[i] = (uint8_t)head;
        memcpy(u->recipe + u->recipes[i], recipes, head * sizeof(recipes[0]));
        return;
    }
}

void unit_flags(struct tr *t)
{
    struct unit *u = &t->unit;
    unsigned first = 0;
    bool again;

    memset(u->live_in, 0, sizeof(u->live_in));
    memset(u->entry, 0, sizeof(u->entry));
    memset(u->head, 0, sizeof(u->head));
    memset(u->save, 0, sizeof(u->save));
    memset(u->clear, 0, sizeof(u->clear));
    for (unsigned i = 0; i < u->n; i++) {
        u->recipes[i] = first;
        u->fpu[i] = tr_needs_fpu(u->b[i]);
        t->b = u->b[i];
        tr_groups_find(t);
        u->need[i] = block_recipes(t, u->b[i], 0, u->b[i]->n + 1, u->recipe + first, &u->save[i], all_inside(u, i));
        first += u->b[i]->n + 1;
    }
    for (unsigned i = 0; i < u->n; i++)
        choose_head(t, u, i);
    do {
        again = false;
        for (unsigned i = u->n; i--;) {
            uint32_t live;

            u->live_out[i] = live_behind(t->j, u, i);
            live = code_selfcheck(u->b[i]) ? F_OSZAPC : block_live(u->b[i], u->need[i], u->live_out[i]);
            again |= live != u->live_in[i];
            u->live_in[i] = live;
        }
    } while (again);
}

/* live[i]: something that checks must leave alone is in EFLAGS before instruction i. */
void tr_flags_live(struct tr *t)
{
    const uint64_t need = t->unit.need[t->cur] & ~((1ull << t->unit.head[t->cur]) - 1);
    uint32_t live = t->jb->live_out;

    for (unsigned i = t->b->n; i--;) {
        const uint32_t after_save = before(&t->b->insn[i], live);

        live = need >> i & 1 ? F_OSZAPC : after_save;
        t->live[i] = (tr_saves(t, i) ? after_save : live) != 0;
    }
}

bool tr_saves(const struct tr *t, unsigned i)
{
    const uint64_t head = (1ull << t->unit.head[t->cur]) - 1;

    return t->unit.save[t->cur] & (t->outer ? head : ~head) & 1ull << i;
}

/* For the copy of a head. */
void tr_flags_outer(struct tr *t)
{
    bool live = true;

    for (unsigned i = 0; i < t->unit.head[t->cur]; i++) {
        live &= !tr_saves(t, i);
        t->live[i] = live || (t->unit.clear[t->cur] && t->jb->live_out);
    }
}

uint32_t tr_recipe(const struct tr *t, bool end)
{
    const uint64_t saves = t->unit.save[t->cur];

    if (t->outer && !end)
        return saves && t->i >= (unsigned)__builtin_ctzll(saves) ? RECIPE_OF_SAVED : 0;
    return t->unit.recipe[t->unit.recipes[t->cur] + (end ? t->b->n : t->i)];
}

/* ---- when a place is left ---- */

static uint64_t value(const struct cpu_state *s, uint8_t reg, int32_t offset)
{
    return (reg == REG_NONE ? 0 : s->gpr[reg]) + (int64_t)offset;
}

static uint64_t flags_of(uint64_t a, uint64_t b, uint64_t r, uint64_t carries, uint64_t overflow, unsigned size)
{
    const unsigned top = 8 * size - 1;

    return (carries >> top & 1 ? F_CF : 0) | (__builtin_parity((uint8_t)r) ? 0 : F_PF) | ((a ^ b ^ r) & F_AF) |
           (r << (63 - top) ? 0 : F_ZF) | (r >> top & 1 ? F_SF : 0) | (overflow >> top & 1 ? F_OF : 0);
}

void jit_flags_again(const struct jit *j, uint32_t n)
{
    const struct jit_recipe *p = &j->recipe[n];
    struct cpu_state *s = &j->cpu->s;
    uint64_t a = value(s, p->a, p->a_offset), b = value(s, p->b, p->b_offset), r;

    switch (p->kind) {
    case RECIPE_SAVED: /* by LAHF and SETO */
        r = j->cpu->saved_flags;
        s->flags = (r >> 8 & (F_OSZAPC & ~F_OF)) | (r & 1 ? F_OF : 0);
        return;
    case RECIPE_ADDED: /* a is the sum */
        r = a;
        a -= b;
        s->flags = flags_of(a, b, r, (a & b) | ((a | b) & ~r), (a ^ r) & (b ^ r), p->size);
        return;
    case RECIPE_NEGATED:
        b = -a;
        a = 0;
        break;
    case RECIPE_SUBTRACTED: /* a is the difference */
        a += b;
        break;
    case RECIPE_AND:
        r = a & b;
        s->flags = flags_of(r, 0, r, 0, 0, p->size);
        return;
    case RECIPE_RESULT:
        s->flags = flags_of(a, 0, a, 0, 0, p->size);
        return;
    case RECIPE_INC:
    case RECIPE_DEC:
        jit_flags_again(j, p->carry);
        b = p->kind == RECIPE_INC ? -1 : 1;
        s->flags = (s->flags & F_CF) |
                   (flags_of(a + b, 1, a, 0, p->kind == RECIPE_INC ? ~(a + b) & a : (a + b) & ~a, p->size));
        return;
    default: /* RECIPE_SUB */
        break;
    }
    r = a - b;
    s->flags = flags_of(a, b, r, (~a & b) | ((~a | b) & r), (a ^ b) & (a ^ r), p->size);
}
