/* SPDX-License-Identifier: MIT
 * tr_loop.c: back edges that are counted, and traces of loops: the instructions of one trip, in a row, without checks
 * (loop.c says when it may run). What is added to a stream's addresses is in a register that the trip does not name,
 * which each way out loads again. EFLAGS is exact everywhere in a trace. */
#include "../cpu/insn/fpu.h"
#include "tr.h"
#include <stdio.h>

#define BORROWED_MAX 4u
#define SPAN_MAX     1024 /* bytes of a stream's range: two pages at most */
#define GAP_MAX      64   /* ... between what it accesses: rows of a picture are streams of their own */
#define RIP_VALUE    UINT32_MAX

struct access {
    uint32_t value, index; /* of the base, of the index, 0: none */
    int32_t lo;
    uint8_t scale, size, align;
    bool write;
};

struct tr_trace {
    struct jit_trace *c;
    struct tr_values start, end;
    struct access access[2 * LOOP_INSNS];
    unsigned naccesses;
    uint32_t used; /* general registers that the trip names */
    uint8_t borrowed[BORROWED_MAX];
    unsigned nborrowed;
    struct {
        uint8_t *at;
        int32_t to;
        struct jit_block *jb;
    } exit[LOOP_BLOCKS];
    unsigned nexits;
};

static uint64_t slot_address(const struct tr *t, uint32_t slot)
{
    return (uint64_t)&t->j->slots[slot];
}

/* ---- back edges ---- */

static struct tr_stub *loop_stub(struct tr *t, uint32_t loop, int32_t disp)
{
    struct tr_stub *s = tr_stub_new(t, tr_desc(t, DESC_LOOP, disp));

    t->j->desc[s->desc].held = loop;
    s->slot = t->j->loop[loop].slot;
    return s;
}

_Static_assert(CPU(attention) > 127, "tr_loop_plain(): 32-bit displacements");

static bool counts(const struct tr *t)
{
    return !t->j->hardened && !t->j->alone && !t->j->check;
}

/* Both forms of a block count together. */
static uint32_t loop_of(struct tr *t, bool word)
{
    if (!t->loop[t->cur])
        t->loop[t->cur] = loop_new(t->j, word);
    return t->loop[t->cur];
}

/* T1 = the counter, less 1 */
static void count_no_flags(struct tr *t, uint64_t counter, unsigned wide)
{
    struct emit *e = &t->e;

    e_op_rip(e, wide, 0x8b, T1, counter, 0);
    e_op(e, wide, 0, 0x8d, T1, rm_mem(T1, -1));
    e_op_rip(e, wide, 0x89, T1, counter, 0);
}

bool tr_loop_edge(struct tr *t, struct tr_stub *poll, int32_t disp, int to, bool warm, bool flags)
{
    struct emit *e = &t->e;
    struct tr_stub *s;
    uint32_t loop;

    if (!counts(t) || !(loop = loop_of(t, false)) || t->j->loop[loop].word)
        return false;
    s = loop_stub(t, loop, disp);
    s->kind = STUB_LOOP;
    s->slow = (uint16_t)(poll - t->stub);
    s->edge = &t->j->loop[loop].edge[t->careful];
    *s->edge = (struct jit_edge){.at = (uint32_t)(e->w - t->j->rw), .flags = flags};
    if (flags) {
        count_no_flags(t, slot_address(t, s->slot), 0);
        tr_jrcxz_stub(t, s);
        s->back = e->w;
        tr_edge(t, e_jmp_later(e), to, warm);
        return true;
    }
    e1(e, 0x40);                                          /* as long as the poll */
    e_op_rip(e, 0, 0x83, 5, slot_address(t, s->slot), 1); /* sub dword [slot], 1 */
    e1(e, 1);
    tr_edge(t, e_jcc_later(e, 5), to, warm);
    tr_jmp_stub(t, s);
    s->back = e->w;
    tr_edge(t, e_jmp_later(e), to, warm);
    return true;
}

static void count_again(struct tr *t, const struct tr_stub *s, uint32_t count)
{
    e_op_rip(&t->e, 0, 0xc7, 0, slot_address(t, s->slot), 4); /* mov dword */
    e4(&t->e, count);
}

static void stub_flags(struct tr *t, const struct tr_stub *s)
{
    struct emit *e = &t->e;
    uint8_t *often;

    count_again(t, s, 1);
    e_mov_load32(e, T1, rm_cpu(CPU(attention)));
    e1(e, 0xe3); /* jrcxz over the jump */
    e1(e, 5);
    e_jmp(e, (uint64_t)t->stub[s->slow].placed + e->bias);
    count_no_flags(t, slot_address(t, s->slot) + 4, 0);
    often = e_jrcxz_later(e);
    count_again(t, s, LOOP_PERIOD);
    e_jmp(e, (uint64_t)s->back + e->bias);
    e_fix8(often, e->w);
    tr_slow_exit(t, s->desc);
}

void tr_loop_stub(struct tr *t, const struct tr_stub *s)
{
    struct emit *e = &t->e;
    uint8_t *often;

    s->edge->stub = (uint32_t)(e->w - t->j->rw);
    if (s->edge->flags) {
        stub_flags(t, s);
        return;
    }
    count_again(t, s, 1);                           /* where this is left */
    e_op(e, 0, 0, 0x83, 7, rm_cpu(CPU(attention))); /* cmp dword, 0 */
    e1(e, 0);
    e_fix32(e, e_jcc_later(e, 5), t->stub[s->slow].placed);
    e_op_rip(e, 0, 0x83, 5, slot_address(t, s->slot) + 4, 1);
    e1(e, 1);
    often = e_jcc_later(e, 4);
    count_again(t, s, LOOP_PERIOD);
    e_jmp(e, (uint64_t)s->back + e->bias);
    e_fix32(e, often, e->w);
    tr_slow_exit(t, s->desc);
}

/* sub [slot]; jnz head; jmp stub  becomes  cmp [attention], 0; je head; jmp stub.
 * mov ecx, [slot] (6); lea; mov [slot], ecx (15); jrcxz stub (17); jmp head  becomes
 * mov ecx, [attention] (7); jrcxz (9) to head or to jmp head; jmp stub */
void tr_loop_plain(struct jit *j, const struct jit_edge *edge)
{
    uint8_t *const at = j->rw + edge->at;
    struct emit e = {.w = at, .bias = (uint64_t)(j->rx - j->rw)};
    int32_t head;

    if (!edge->flags) {
        e_op(&e, 0, 0, 0x83, 7, rm_cpu(CPU(attention)));
        e1(&e, 0);
        assert(e.w == at + 8);
        at[9] = 0x84;
        return;
    }
    memcpy(&head, at + 18, 4);
    head += 22 - 9;
    e_mov_load32(&e, T1, rm_cpu(CPU(attention)));
    e1(&e, 0xe3);
    e1(&e, head == (int8_t)head ? (uint8_t)head : 17 - 9);
    e_jmp(&e, (uint64_t)(j->rx + edge->stub));
    assert(e.w <= at + 17 && at[17] == 0xe9);
}

void tr_loop_other_page(struct tr *t, int32_t disp)
{
    struct tr_stub *s;
    uint32_t loop;

    if (disp >= 0 || disp < -2 * (int32_t)PAGE_SIZE || t->jb->page2 || !counts(t) || !(loop = loop_of(t, true)))
        return;
    if (!t->j->loop[loop].word) /* its other way leads back too */
        return;
    s = loop_stub(t, loop, disp);
    tr_islands(t, false, 110);
    count_no_flags(t, slot_address(t, s->slot), EF_W);
    tr_jrcxz_stub(t, s);
}

/* ---- what a trip accesses ---- */

static bool explicit_access(const struct insn *in, struct tr_member *m, uint8_t *align)
{
    const struct native *n = in->native;

    *align = 0;
    if (in->asize != 8 || in->seg == SEG_FS || in->seg == SEG_GS || (in->base >= 16 && in->base != REG_RIP) ||
        (in->base < 16 && (in->disp < -0x8000 || in->disp > 0x8000)))
        return false;
    *m = (struct tr_member){.base = in->base, .index = in->index, .scale = in->scale, .disp = (int32_t)in->disp};
    if (n) {
        m->size = n->mem_size;
        m->write = n->acc & ACC_WRITE;
        *align = n->align;
        return n->mem_size <= 64;
    }
    m->size = in->o[in->mem].size;
    m->write = in->o[in->mem].rw & OPND_W;
    return m->size && m->size <= 8 && !(in->op >= OP_BT && in->op <= OP_BTC);
}

static struct access place(const struct tr_values *v, const struct tr_member *m, int32_t disp)
{
    struct access a = {.size = m->size, .write = m->write, .lo = disp, .value = RIP_VALUE};

    if (m->base < 16) {
        a.value = v->value[m->base];
        a.lo += v->offset[m->base];
    }
    if (m->index < 16) {
        a.index = v->value[m->index];
        a.lo += v->offset[m->index] * (1 << m->scale);
        a.scale = m->scale;
    }
    return a;
}

static bool touches_memory(const struct insn *in)
{
    if (in->native)
        return ((const struct native *)in->native)->acc;
    return in->mem != 0xff && in->op != OP_LEA && in->op != OP_NOP;
}

static void use_registers(struct tr_trace *c, const struct insn *in)
{
    for (unsigned n = 0; n < in->nops; n++)
        if (in->o[n].kind == OPK_REG || in->o[n].kind == OPK_REG8H)
            c->used |= 1u << (in->o[n].reg & 15);
    if (in->base < 16)
        c->used |= 1u << in->base;
    if (in->index < 16)
        c->used |= 1u << in->index;
    c->used |= 1u << R_RAX | 1u << R_RDX | 1u << R_RCX; /* implicit operands */
    if (op_rows[in->op].attrs & A_STACK)
        c->used |= 1u << R_RSP;
}

/* false: not for a trace */
static bool look_at(struct tr_trace *c, struct tr_values *v, const struct insn *in, int32_t next_off)
{
    const struct native *n = in->native;
    struct tr_member m;
    uint8_t align;

    if (!tr_values_known(in) || (op_rows[in->op].attrs & A_SYS) || (n && n->vsib) ||
        (op_rows[in->op].attrs & A_BRANCH && tr_cond(in->op) < 0 && in->op != OP_JMP))
        return false;
    use_registers(c, in);
    if (touches_memory(in)) {
        if (!explicit_access(in, &m, &align))
            return false;
        c->access[c->naccesses] = place(v, &m, m.disp + (in->base == REG_RIP ? next_off : 0));
        c->access[c->naccesses++].align = align;
    }
    if (in->op == OP_PUSH || in->op == OP_POP) {
        m = (struct tr_member){.base = R_RSP,
                               .index = REG_NONE,
                               .size = 8,
                               .write = in->op == OP_PUSH,
                               .disp = in->op == OP_PUSH ? -8 : 0};
        c->access[c->naccesses++] = place(v, &m, m.disp);
    }
    tr_values_step(v, in);
    return true;
}

/* ---- streams ---- */

/* The register that held the value when the trip began; 16: none. Its change by a trip; false: not a constant one. */
static bool moves_by(const struct tr_trace *c, uint32_t value, uint8_t *reg, int32_t *step)
{
    for (*reg = 0; *reg < 16 && c->start.value[*reg] != value; (*reg)++)
        ;
    if (*reg == 16 || c->end.value[*reg] != value)
        return false;
    *step = c->end.offset[*reg];
    return true;
}

static bool stream_for(const struct tr_trace *c, const struct access *a, struct jit_stream *s)
{
    int32_t step = 0;

    *s = (struct jit_stream){.lo = a->lo,
                             .hi = a->lo + a->size,
                             .base = REG_RIP,
                             .index = REG_NONE,
                             .scale = a->scale,
                             .write = a->write,
                             .align = a->align,
                             .align_at = a->align ? a->lo : 0,
                             .n = 1};
    if (a->value != RIP_VALUE && !moves_by(c, a->value, &s->base, &s->step))
        return false;
    s->fixed = !s->step;
    if (a->index && !moves_by(c, a->index, &s->index, &step))
        return false;
    s->step += step * (1 << a->scale);
    return s->step > -0x10000 && s->step < 0x10000 && !(s->step & a->align);
}

static bool same_start(const struct jit_stream *s, const struct jit_stream *n)
{
    return s->base == n->base && s->index == n->index && (s->index >= 16 || s->scale == n->scale);
}

static bool join(struct jit_stream *s, const struct jit_stream *n)
{
    const int32_t lo = n->lo < s->lo ? n->lo : s->lo, hi = n->hi > s->hi ? n->hi : s->hi;

    if (!same_start(s, n) || hi - lo > SPAN_MAX || n->lo > s->hi + GAP_MAX)
        return false;
    if (s->align && n->align && ((s->align_at ^ n->align_at) & (s->align & n->align)))
        return false;
    if (n->align > s->align) {
        s->align = n->align;
        s->align_at = n->align_at;
    }
    s->lo = lo;
    s->hi = hi;
    s->write |= n->write;
    s->n++;
    return true;
}

static void sort(struct tr_trace *c)
{
    for (unsigned i = 1; i < c->naccesses; i++) {
        const struct access a = c->access[i];
        unsigned k = i;

        for (; k && c->access[k - 1].lo > a.lo; k--)
            c->access[k] = c->access[k - 1];
        c->access[k] = a;
    }
}

static bool streams(struct tr_trace *c)
{
    sort(c);
    for (unsigned i = 0; i < c->naccesses; i++) {
        struct jit_stream n;
        unsigned k = 0;

        if (!stream_for(c, &c->access[i], &n))
            return false;
        while (k < c->c->nstreams && !join(&c->c->stream[k], &n))
            k++;
        if (k < c->c->nstreams)
            continue;
        if (k == LOOP_STREAMS)
            return false;
        c->c->stream[c->c->nstreams++] = n;
    }
    return c->naccesses;
}

/* Registers for the words of the streams that are used most. */
static void borrow(struct tr_trace *c)
{
    for (unsigned g = 0; g < 16 && c->nborrowed < BORROWED_MAX; g++) {
        struct jit_stream *most = NULL;

        if (!tr_pinned(g) || (c->used >> g & 1))
            continue;
        for (struct jit_stream *s = c->c->stream; s < c->c->stream + c->c->nstreams; s++)
            if (s->host == H_NONE && (!most || s->n > most->n))
                most = s;
        if (!most)
            return;
        most->host = tr_host_reg[g];
        c->borrowed[c->nborrowed++] = (uint8_t)g;
    }
}

/* A register that counts the trips. */
static bool counter(struct tr_trace *c)
{
    for (unsigned g = 0; g < 16; g++)
        if (tr_pinned(g) && c->end.value[g] == c->start.value[g] && c->end.offset[g]) {
            c->c->reg = (uint8_t)g;
            c->c->step = c->end.offset[g];
            return true;
        }
    return false;
}

static bool analyse(struct tr *t, struct tr_trace *c)
{
    struct jit_trace *tc = c->c;

    tr_values_start(&c->start);
    c->end = c->start;
    for (unsigned k = 0; k < tc->nblocks; k++) {
        const struct block *b = tc->jb[k]->b;
        int32_t off = tc->delta[k] + (int32_t)(tc->jb[k]->hva & ~PAGE_MASK);

        for (unsigned i = 0; i < b->n; i++) {
            off += b->insn[i].len;
            if (!look_at(c, &c->end, &b->insn[i], off))
                return false;
        }
        tc->insns += b->n;
        tc->uses_fpu |= tc->jb[k]->uses_fpu;
    }
    if (!streams(c) || !counter(c))
        return false;
    for (unsigned i = 0; i < tc->nstreams; i++) {
        tc->stream[i].slot = t->j->nslot++;
        tc->stream[i].host = H_NONE;
    }
    tc->limit = t->j->nslot++;
    tc->left = t->j->nslot++;
    tc->then = t->j->nslot++;
    borrow(c);
    return true;
}

/* ---- the operand ---- */

static const struct jit_stream *stream_of(const struct tr *t, const struct access *a)
{
    const struct tr_trace *c = t->trace;
    struct jit_stream n;

    if (!stream_for(c, a, &n))
        return NULL;
    for (unsigned k = 0; k < c->c->nstreams; k++) {
        const struct jit_stream *s = &c->c->stream[k];

        if (same_start(s, &n) && n.lo >= s->lo && n.hi <= s->hi && (s->write || !n.write) &&
            (n.align & ~s->align) == 0 && !((n.align_at ^ s->align_at) & n.align))
            return s;
    }
    return NULL;
}

bool tr_loop_operand(struct tr *t, const struct tr_ea *a, const struct tr_member *m, unsigned align, struct rm *rm)
{
    const bool rip = a->key == TR_KEY_RIP;
    struct emit *e = &t->e;
    struct tr_member member = *m;
    const struct jit_stream *s;
    struct access at;
    uint8_t word = T0;

    if (!a->near || (m->base >= 16 && !rip))
        return false;
    if (rip)
        member.base = REG_RIP;
    at = place(&t->values, &member, a->rm.disp);
    at.align = (uint8_t)align;
    s = stream_of(t, &at);
    if (!s)
        return false;
    t->crossing = NULL;
    if (s->host == H_NONE)
        e_op_rip(e, EF_W, 0x8b, T0, slot_address(t, s->slot), 0);
    else
        word = s->host;
    *rm = a->rm;
    rm->disp--;
    if (s->fixed) { /* the base is in the word */
        rm->reg = word;
        rm->disp = at.lo - 1;
        if (m->index < 16)
            rm->disp -= t->values.offset[m->index] * (1 << m->scale);
        return true;
    }
    if (a->has_word) { /* no index then */
        if (word == T0) {
            e_mov_load(e, T1, rm_cpu(a->word));
            e_lea(e, T0, (struct rm){.mem = true, .reg = T0, .index = T1});
            rm->reg = T0;
        } else {
            e_mov_load(e, T0, rm_cpu(a->word));
            rm->reg = T0;
            rm->index = word;
        }
    } else if (rm->index == H_NONE) {
        rm->index = word;
        rm->scale = 0;
    } else {
        e_lea(e, T0, (struct rm){.mem = true, .reg = rm->reg, .index = word, .disp = rm->disp});
        rm->reg = T0;
        rm->disp = 0;
    }
    return true;
}

/* ---- the code ---- */

void tr_loop_restore(struct tr *t)
{
    const struct tr_trace *c = t->trace;

    for (unsigned i = 0; i < c->nborrowed; i++)
        e_mov_load(&t->e, tr_host_reg[c->borrowed[i]], rm_cpu(CPU_GPR(c->borrowed[i])));
}

/* The last instruction of block k, a branch: out where the trip does not go on. false: not as it was recorded. */
static bool branch(struct tr *t, unsigned k, int32_t next)
{
    struct tr_trace *c = t->trace;
    const struct insn *in = t->in;
    const int cc = tr_cond(in->op);
    const int64_t to = (int64_t)(int32_t)t->next_off + (int64_t)in->imm;
    unsigned n = c->nexits;

    if (in->o[0].kind != OPK_REL || in->opsize != 8 || to != (int32_t)to)
        return false;
    tr_islands(t, false, 100);
    if (cc < 0)
        return to == next;
    if (to == next && (int32_t)t->next_off == next)
        return true;
    if (to != next && (int32_t)t->next_off != next)
        return false;
    c->exit[n].to = to == next ? (int32_t)t->next_off : (int32_t)to;
    c->exit[n].jb = t->jb;
    if (k + 1 == c->c->nblocks && to == next) { /* the way back: the exit is what comes next */
        e_fix32(&t->e, e_jcc_later(&t->e, (unsigned)cc), t->last_entry);
        c->exit[n].at = e_jmp_later(&t->e);
    } else {
        c->exit[n].at = e_jcc_later(&t->e, (unsigned)(to == next ? cc ^ 1 : cc));
    }
    c->nexits++;
    return true;
}

static int32_t head_offset(const struct jit_trace *tc)
{
    return (int32_t)(tc->jb[0]->hva & ~PAGE_MASK);
}

static bool emit_block(struct tr *t, unsigned k)
{
    struct jit_trace *tc = t->trace->c;
    const int32_t next =
        k + 1 < tc->nblocks ? tc->delta[k + 1] + (int32_t)(tc->jb[k + 1]->hva & ~PAGE_MASK) : head_offset(tc);

    t->jb = tc->jb[k];
    t->b = t->jb->b;
    t->next_off = (uint32_t)(tc->delta[k] + (int32_t)(t->jb->hva & ~PAGE_MASK));
    for (t->i = 0; t->i < t->b->n; t->i++) {
        t->in = &t->b->insn[t->i];
        t->off = t->next_off;
        t->next_off = t->off + t->in->len;
        if (op_rows[t->in->op].attrs & A_BRANCH)
            return t->i + 1 == t->b->n && branch(t, k, next);
        if (!tr_emit_one(t, false))
            return false;
    }
    return (int32_t)t->next_off == next;
}

/* Out of the trace, to the head's page + exit's place: a link where that is one of the trace's pages. */
static void emit_exit(struct tr *t, uint8_t *at, int32_t to, struct jit_block *jb)
{
    struct jit_trace *tc = t->trace->c;
    const int32_t page = to & ~(int32_t)(PAGE_SIZE - 1);
    struct emit *e = &t->e;
    struct jit_block *other = NULL;
    struct tr_stub *s;
    bool known = false;

    e_fix32(e, at, e->w);
    tr_loop_restore(t);
    e_op_rip(e, EF_W, 0x89, tr_host_reg[tc->reg], slot_address(t, tc->left), 0);
    for (unsigned i = 0; i < tc->npages; i++)
        if (tc->page[i].delta == page) {
            known = true;
            other = jit_find(t->j, tc->page[i].page->hva | (hva_t)(to - page), jb->key);
        }
    t->jb = jb;
    t->i = jb->b->n - 1;
    if (known && page) {
        e_mov_load(e, T1, rm_cpu(CPU_HOT(HOT_PAGE)));
        e_lea(e, T1, rm_mem(T1, page));
        e_mov_store(e, rm_cpu(CPU_HOT(HOT_PAGE)), T1);
    }
    at = e_jmp_later(e);
    if (other && !other->page2) {
        e_fix32(e, at, t->j->rw + other->code);
        return;
    }
    s = tr_stub_new(t, tr_desc(t, DESC_EXIT, known ? to - page : to));
    s->from[s->nfrom++] = at;
    if (known)
        t->j->desc[s->desc].patch = (uint32_t)(at - t->j->rw);
}

static bool emit(struct tr *t, uint32_t loop)
{
    struct tr_trace *c = t->trace;
    struct jit_trace *tc = c->c;
    struct emit *e = &t->e;
    uint8_t *out, *over, *limit;

    t->jb = tc->jb[0];
    t->b = t->jb->b;
    tc->code = (uint32_t)(e->w - t->j->rw);
    for (unsigned i = 0; i < tc->nstreams; i++)
        if (tc->stream[i].host != H_NONE)
            e_op_rip(e, EF_W, 0x8b, tc->stream[i].host, slot_address(t, tc->stream[i].slot), 0);
    over = e_jmp_later(e);
    out = e->w;
    tc->limit_desc = tr_desc(t, DESC_LIMIT, head_offset(tc));
    t->j->desc[tc->limit_desc].held = loop;
    limit = e_jmp_later(e);
    e_fix32(e, over, e->w);
    t->last_entry = e->w; /* a trip */
    e_op_rip(e, EF_W, 0x8b, T1, slot_address(t, tc->limit), 0);
    e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = tr_host_reg[tc->reg]});
    e_fix8(e_jrcxz_later(e), out);
    for (unsigned k = 0; k < tc->nblocks; k++)
        if (!emit_block(t, k))
            return false;
    if (!c->nexits || c->exit[c->nexits - 1].at != e->w - 4 || e->w[-5] != 0xe9)
        e_jmp(e, (uint64_t)t->last_entry + e->bias);
    tr_islands(t, true, 0);
    e_fix32(e, limit, e->w);
    tr_loop_restore(t);
    e_mov_imm32(e, T1, tc->limit_desc);
    e_op_rip(e, 0, 0xff, 4, slot_address(t, tc->then), 0); /* jmp */
    for (unsigned i = 0; i < c->nexits; i++)
        emit_exit(t, c->exit[i].at, c->exit[i].to, c->exit[i].jb);
    return true;
}

bool tr_loop(struct jit *j, struct jit_trace *tc, uint32_t loop)
{
    struct tr_trace c = {.c = tc};
    struct tr *t = j->tr;
    const uint32_t ndesc = j->ndesc, nsite = j->nsite, nslot = j->nslot;

    cache_populate(j);
    if (cache_full(j))
        return false;
    memset(t, 0, offsetof(struct tr, stub));
    t->nstub = t->nshorts = t->nedge = 0;
    t->falls = t->outer = t->careful = false;
    t->cur = 0;
    t->unit.n = 0;
    memset(t->two, 0, sizeof(t->two));
    t->j = j;
    t->e = (struct emit){.w = j->rw + j->used, .bias = (uint64_t)(j->rx - j->rw)};
    t->trace = &c;
    t->flags_live = true;
    if (!analyse(t, &c)) {
        t->trace = NULL;
        return false;
    }
    t->values = c.start;
    if (!emit(t, loop)) {
        j->ndesc = ndesc;
        j->nsite = nsite;
        j->nslot = nslot;
        t->trace = NULL;
        return false;
    }
    tr_place_stubs(t, nsite);
    t->trace = NULL;
    if (unlikely(j->map_fd >= 0))
        dprintf(j->map_fd, "%lx %x trace_%lx_%u\n", (uint64_t)(j->rx + tc->code), (unsigned)(t->e.w - j->rw) - tc->code,
                (uint64_t)((j->cpu->s.rip & PAGE_MASK) | (tc->jb[0]->hva & ~PAGE_MASK)), tc->insns);
    j->used = ((uint32_t)(t->e.w - j->rw) + 15) & ~15u;
    return true;
}
