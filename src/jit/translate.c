/* SPDX-License-Identifier: MIT
 * translate.c: a decoded block to host code: instruction by instruction, slow paths out of line, links at its ends. */
#include "tr.h"
#include <stdio.h>
#include <stdlib.h>

const uint8_t tr_host_reg[16] = {
    [R_RAX] = H_RAX, [R_RCX] = H_R10, [R_RDX] = H_RDX,  [R_RBX] = H_RBX,  [R_RSP] = H_R11,  [R_RBP] = H_RBP,
    [R_RSI] = H_RSI, [R_RDI] = H_RDI, [R_R8] = H_R8,    [R_R9] = H_R9,    [R_R10] = H_NONE, [R_R11] = H_NONE,
    [R_R12] = H_R12, [R_R13] = H_R13, [R_R14] = H_NONE, [R_R15] = H_NONE,
};

struct rm tr_reg_rm(unsigned g)
{
    return tr_pinned(g) ? rm_reg(tr_host_reg[g]) : rm_cpu(CPU_GPR(g));
}

static uint32_t offset(const struct tr *t, const uint8_t *w)
{
    return w - t->j->rw;
}

/* ---- descriptors and stubs ---- */

uint32_t tr_desc(struct tr *t, enum desc_kind kind, int32_t disp)
{
    const uint32_t n = t->j->ndesc++;

    t->j->desc[n] = (struct jit_desc){.jb = t->jb, .kind = kind, .disp = disp, .index = t->i};
    if (t->trace) /* flags are exact there */
        t->j->desc[n].kind = kind == DESC_INSN ? DESC_TRACE : kind;
    else if (kind == DESC_INSN || kind == DESC_POLL || kind == DESC_LOOP)
        t->j->desc[n].recipe = tr_recipe(t, kind != DESC_INSN);
    return n;
}

struct tr_stub *tr_stub_new(struct tr *t, uint32_t desc)
{
    assert(t->nstub < TR_STUBS);
    t->stub[t->nstub] = (struct tr_stub){.desc = desc};
    return &t->stub[t->nstub++];
}

struct tr_stub *tr_slow(struct tr *t)
{
    if (!t->insn_stub)
        t->insn_stub = tr_stub_new(t, tr_desc(t, DESC_INSN, t->off));
    return t->insn_stub;
}

static void stub_from(struct tr_stub *s, uint8_t *at)
{
    assert(s->nfrom < ARRAY_SIZE(s->from));
    s->from[s->nfrom++] = at;
}

void tr_jmp_stub(struct tr *t, struct tr_stub *s)
{
    stub_from(s, e_jmp_later(&t->e));
}

void tr_jcc_stub(struct tr *t, unsigned cc, struct tr_stub *s)
{
    stub_from(s, e_jcc_later(&t->e, cc));
}

void tr_jrcxz_stub(struct tr *t, struct tr_stub *s)
{
    t->shorts[t->nshorts++] = (struct tr_short){.at = e_jrcxz_later(&t->e), .stub = s};
}

/* jrcxz reaches 127 bytes: what waits lands on a jump here. */
void tr_islands(struct tr *t, bool behind_jump, unsigned room)
{
    uint8_t *over = NULL;

    /* an island: 2 bytes over it, 5 a landing */
    if (!t->nshorts || (!behind_jump && t->e.w - t->shorts[0].at + 5 * t->nshorts + room < 110 && t->nshorts < 8))
        return;
    if (!behind_jump) {
        e1(&t->e, 0xeb);
        e1(&t->e, 0);
        over = t->e.w - 1;
    }
    for (unsigned i = 0; i < t->nshorts; i++) {
        e_fix8(t->shorts[i].at, t->e.w);
        tr_jmp_stub(t, t->shorts[i].stub);
    }
    t->nshorts = 0;
    if (over)
        e_fix8(over, t->e.w);
}

void tr_site(struct tr *t)
{
    struct jit *j = t->j;

    /* .stub is filled in when the stubs are placed: until then it holds the stub's number */
    j->site[j->nsite++] = (struct jit_site){.rip = offset(t, t->e.w), .stub = tr_slow(t) - t->stub};
}

void tr_slow_exit(struct tr *t, uint32_t desc)
{
    if (t->trace)
        tr_loop_restore(t);
    e_mov_imm32(&t->e, T1, desc);
    e_jmp(&t->e, (uint64_t)(t->j->rx + t->j->slow));
}

#define STUB_BYTES 160u /* none is larger */
_Static_assert(TR_STUBS *STUB_BYTES <= JIT_CHUNK, "cache_cold: a chunk is enough");

/* Far from what runs: it is not to share lines and pages with them. */
void tr_place_stubs(struct tr *t, uint32_t first_site)
{
    uint8_t *const hot = t->e.w;
    uint32_t at[TR_STUBS];

    cache_cold(t->j, t->nstub * STUB_BYTES);
    t->e.w = t->j->rw + t->j->cold;
    for (unsigned i = 0; i < t->nstub; i++) {
        struct tr_stub *s = &t->stub[i];

        at[i] = offset(t, t->e.w);
        for (unsigned k = 0; k < s->nfrom; k++)
            e_fix32(&t->e, s->from[k], t->e.w);
        s->placed = t->e.w;
        if (s->kind == STUB_PAIR || s->kind == STUB_CALL)
            tr_pair_stub(t, s);
        else if (s->kind == STUB_STRING)
            tr_string_stub(t, s);
        else if (s->kind == STUB_LOOP)
            tr_loop_stub(t, s);
        else if (s->kind != STUB_PLAIN)
            tr_mem_stub(t, s);
        else
            tr_slow_exit(t, s->desc);
        assert(t->e.w - s->placed <= STUB_BYTES);
    }
    t->j->translated_bytes += offset(t, t->e.w) - t->j->cold;
    t->j->cold = offset(t, t->e.w);
    t->e.w = hot;
    for (uint32_t i = first_site; i < t->j->nsite; i++)
        t->j->site[i].stub = at[t->j->site[i].stub];
}

/* ---- going on ---- */

static void edge_at(struct tr *t, uint8_t *at, unsigned to, bool inner, bool warm)
{
    assert(t->nedge < sizeof(t->edge) / sizeof(t->edge[0]));
    t->edge[t->nedge++] = (struct tr_edge){.at = at, .to = (uint8_t)to, .inner = inner, .warm = warm};
}

void tr_edge(struct tr *t, uint8_t *at, int to, bool warm)
{
    edge_at(t, at, (unsigned)to, t->jb->uses_fpu, warm);
}

/* Where a displacement at `at` is to lead that waits for a link: the stub, until slow_exit() patches it. */
static void link_at(struct tr *t, uint8_t *at, int32_t disp)
{
    struct tr_stub *s = tr_stub_new(t, tr_desc(t, DESC_EXIT, disp));

    stub_from(s, at);
    t->j->desc[s->desc].patch = offset(t, at);
}

/* The displacement at `at` leads to page + disp, in this page. inner: the vector state is the block's; direct: the
 * flags are. */
static void lead_to(struct tr *t, uint8_t *at, int32_t disp, bool inner, bool direct)
{
    const int to = t->j->check ? -1 : unit_find(&t->unit, disp);
    const struct jit_block *other =
        t->j->check || to >= 0 ? NULL : jit_find(t->j, (t->b->hva & PAGE_MASK) | disp, t->jb->key);

    if (to >= 0)
        edge_at(t, at, to, inner, direct && unit_warm(t->j, &t->unit, t->cur, to));
    else if (other)
        e_fix32(&t->e, at, t->j->rw + other->code);
    else
        link_at(t, at, disp);
}

void tr_lead(struct tr *t, uint8_t *at, int32_t disp)
{
    lead_to(t, at, disp, t->jb->uses_fpu, true);
}

void tr_lead_entry(struct tr *t, uint8_t *at, int32_t disp)
{
    lead_to(t, at, disp, false, false);
}

/* Attention ends chains of blocks: asked on every way back. */
static void goto_backward(struct tr *t, int32_t disp)
{
    struct tr_stub *s = tr_stub_new(t, tr_desc(t, DESC_POLL, disp));
    const int to = t->j->check ? -1 : unit_find(&t->unit, disp);
    const bool warm = to >= 0 && unit_warm(t->j, &t->unit, t->cur, to);

    if (to >= 0 && (warm || !t->unit.live_in[to]) && tr_recipe(t, true)) {
        if (tr_loop_edge(t, s, disp, to, warm, false))
            return;
        e_op(&t->e, 0, 0, 0x83, 7, rm_cpu(CPU(attention))); /* cmp dword, 0 */
        e1(&t->e, 0);
        edge_at(t, e_jcc_later(&t->e, 4), to, t->jb->uses_fpu, warm);
        tr_jmp_stub(t, s);
        return;
    }
    if (to >= 0 && tr_loop_edge(t, s, disp, to, warm, true))
        return;
    e_mov_load32(&t->e, T1, rm_cpu(CPU(attention)));
    e1(&t->e, 0xe3);
    if (to >= 0 && to <= (int)t->cur && !t->unit.entry[to]) {
        const struct jit_block *head = t->jbs[to];
        const uint8_t *at = t->j->rw + (t->jb->uses_fpu ? head->inner : head->code);

        if (at - (t->e.w + 1) >= -128) {
            e1(&t->e, at - (t->e.w + 1));
            tr_jmp_stub(t, s);
            return;
        }
    }
    e1(&t->e, 5);
    tr_jmp_stub(t, s);
    tr_lead(t, e_jmp_later(&t->e), disp);
}

static void goto_same_page(struct tr *t, int32_t disp)
{
    if (disp <= (int32_t)t->off)
        goto_backward(t, disp);
    else
        tr_lead(t, e_jmp_later(&t->e), disp);
}

/* Goes on where salt and page are those of the number that is filled in (guard_set(), guard_clear()) and nobody wants
 * attention, else to the stub: mappings are what they were then, and it is the same of the addresses that user code may
 * have been mapped at, with other neighbours. T0 and T1 are lost. Returns where the number is. */
static uint8_t *guard(struct tr *t, struct tr_stub *s)
{
    struct emit *e = &t->e;
    uint8_t *number;

    e_mov_load(e, T1, rm_cpu(CPU(attention))); /* and the salt */
    e_mov_load(e, T0, rm_cpu(CPU_HOT(HOT_PAGE)));
    e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = T0});
    e1(e, 0x49); /* mov r14, imm64 */
    e1(e, 0xbe);
    number = e->w;
    e8(e, 0);
    e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = T0});
    e1(e, 0xe3); /* jrcxz */
    e1(e, 5);
    tr_jmp_stub(t, s);
    guard_clear(t->j, offset(t, number));
    t->j->desc[s->desc].patch = offset(t, number);
    return number;
}

void guard_number(struct jit *j, uint32_t at, uint64_t v)
{
    if (memcmp(j->rw + at, &v, 8)) /* writing into code costs, even the same */
        memcpy(j->rw + at, &v, 8);
}

void guard_set(struct jit *j, uint32_t patch, gva_t page)
{
    guard_number(j, patch, -(page + ((uint64_t)j->cpu->salt << 32)));
}

void guard_clear(struct jit *j, uint32_t patch)
{
    guard_number(j, patch, 0x800); /* pages are multiples of 4096, attention is < 128 */
}

#define CROSS_PAGE (8 + 4 + 2 + 5 + 2)      /* from the guard's number to the page behind it */
#define CROSS_JUMP (CROSS_PAGE + 8 + 4 + 1) /* ... to the jump's displacement */

static void goto_other_page(struct tr *t, int32_t disp)
{
    const uint8_t *number;
    uint8_t *jump;

    tr_loop_other_page(t, disp);
    number = guard(t, tr_stub_new(t, tr_desc(t, DESC_CROSS, disp)));
    e1(&t->e, 0x49); /* mov r14, imm64 */
    e1(&t->e, 0xbe);
    assert(t->e.w == number + CROSS_PAGE);
    e8(&t->e, 0);
    e_mov_store(&t->e, rm_cpu(CPU_HOT(HOT_PAGE)), T0);
    jump = e_jmp_later(&t->e);
    assert(jump == number + CROSS_JUMP);
    (void)jump;
}

void link_cross(struct jit *j, uint32_t desc, gva_t from, gva_t to, uint64_t target)
{
    const uint32_t patch = j->desc[desc].patch;

    link_list(j, desc, to);
    if (j->desc[desc].recipe) {
        pair_link(j, &j->desc[desc], from, to, target);
        return;
    }
    guard_number(j, patch + CROSS_PAGE, to);
    patch_jump(j, patch + CROSS_JUMP, target);
    guard_set(j, patch, from);
}

/* From a block over a page's end into its second page, which its guard has looked at. */
static void goto_second_page(struct tr *t, int32_t disp)
{
    struct tr_stub *s = tr_stub_new(t, tr_desc(t, DESC_EXIT, disp - (int32_t)PAGE_SIZE));
    uint8_t *at;

    e_mov_load(&t->e, T1, rm_cpu(CPU_HOT(HOT_PAGE)));
    e_lea(&t->e, T1, rm_mem(T1, PAGE_SIZE));
    e_mov_store(&t->e, rm_cpu(CPU_HOT(HOT_PAGE)), T1);
    at = e_jmp_later(&t->e);
    stub_from(s, at);
    t->j->desc[s->desc].patch = offset(t, at);
}

static bool in_page(int32_t disp)
{
    return disp >= 0 && disp < (int32_t)PAGE_SIZE;
}

void tr_goto(struct tr *t, int32_t disp)
{
    tr_islands(t, false, 100);
    if (t->jb->page2 && disp >= (int32_t)PAGE_SIZE && disp < 2 * (int32_t)PAGE_SIZE)
        goto_second_page(t, disp);
    else if (in_page(disp))
        goto_same_page(t, disp);
    else
        goto_other_page(t, disp);
    tr_islands(t, true, 0);
}

void tr_goto_if(struct tr *t, unsigned cc, int32_t disp)
{
    uint8_t *over;

    tr_islands(t, false, 110);
    if (in_page(disp) && disp > (int32_t)t->off) {
        tr_lead(t, e_jcc_later(&t->e, cc), disp);
        return;
    }
    over = e_jcc_later(&t->e, cc ^ 1);
    tr_goto(t, disp);
    e_fix32(&t->e, over, t->e.w);
}

void tr_goto_next(struct tr *t)
{
    const unsigned next = t->cur + 1;

    t->falls = !t->careful && !t->j->check && next < t->unit.n && t->unit.b[next]->hva == t->b->hva + t->b->bytes &&
               (!t->unit.entry[next] || unit_warm(t->j, &t->unit, t->cur, next));
    if (!t->falls)
        tr_goto(t, t->next_off);
}

bool tr_falls_entry(struct tr *t)
{
    const unsigned next = t->cur + 1;

    t->falls = !t->careful && !t->outer && next < t->unit.n && t->unit.b[next]->hva == t->b->hva + t->b->bytes &&
               !t->unit.entry[next] && !t->jbs[next]->uses_fpu && !t->jbs[next]->selfcheck;
    return t->falls;
}

uint8_t *tr_look_up(struct emit *e)
{
    uint8_t *found;

    e_push(e, H_RAX);
    e_rorx(e, H_RAX, T0, JC_SHIFT); /* jc_index() times the size of an entry */
    e_lea(e, H_RAX, (struct rm){.mem = true, .reg = H_RAX, .index = T0});
    e_pdep(e, H_RAX, H_RAX, rm_cpu(CPU_HOT(HOT_MASK_JC)));
    e_mov_load(e, T1, rm_cpu(CPU_HOT(HOT_JC)));
    e_lea(e, H_RAX, (struct rm){.mem = true, .reg = H_RAX, .index = T1});
    e_mov_load(e, T1, rm_cpu(CPU(attention))); /* and the salt */
    e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = T0});
    e_mov_load(e, T0, rm_mem(H_RAX, offsetof(struct jc_entry, key)));
    e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = T0});
    found = e_jrcxz_later(e);
    e_pop(e, H_RAX);
    return found;
}

void tr_look_up_found(struct emit *e, uint8_t *found)
{
    e_fix8(found, e->w);
    e_mov_load(e, T1, rm_mem(H_RAX, offsetof(struct jc_entry, page)));
    e_mov_store(e, rm_cpu(CPU_HOT(HOT_PAGE)), T1);
    e_mov_load(e, T0, rm_mem(H_RAX, offsetof(struct jc_entry, code)));
    e_pop(e, H_RAX);
}

void tr_goto_reg(struct tr *t)
{
    struct emit *e = &t->e;
    struct tr_stub *s = tr_stub_new(t, tr_desc(t, DESC_RIP, 0));
    uint8_t *found;

    tr_islands(t, false, 110);
    e_mov_store(e, rm_cpu(CPU(s.rip)), T0);
    found = tr_look_up(e);
    tr_jmp_stub(t, s);
    tr_look_up_found(e, found);
    e_jmp_reg(e, T0);
    tr_islands(t, true, 0);
}

/* ---- the block ---- */

/* In front of an instruction over a page's end: links in its own page lead here, whatever the next page is by now. */
static void cross_guard(struct tr *t)
{
    t->jb->guard = tr_desc(t, DESC_ENTER, t->off);
    guard(t, tr_stub_new(t, t->jb->guard));
}

/* Links and caches lead here whatever the vector state is. */
static void fpu_check(struct tr *t)
{
    struct tr_stub *s = tr_stub_new(t, tr_desc(t, DESC_FPU, t->b->hva & ~PAGE_MASK));

    e_op(&t->e, 0, 1, 0xb6, T1, rm_cpu(CPU(fpu_live))); /* movzx ecx, byte */
    tr_jrcxz_stub(t, s);
    t->j->desc[s->desc].resume = offset(t, t->e.w);
}

#define ENTRY_BYTES 10u /* what drop_one() writes */

static void entry_room(struct tr *t)
{
    while (t->last_entry && t->e.w < t->last_entry + ENTRY_BYTES)
        e1(&t->e, 0x90);
}

/* thunk: the entry is elsewhere (fpu_thunk()), for the block before runs into this one with the vector state live. */
static void block_head(struct tr *t, bool thunk)
{
    struct tr_stub *differs;
    uint8_t *fail;

    if (!thunk) {
        entry_room(t);
        if (t->jb->selfcheck)
            tr_self_fail(t, &differs, &fail);
        t->last_entry = t->e.w;
        t->jb->code = offset(t, t->e.w);
        if (t->jb->page2)
            cross_guard(t);
        if (t->jb->selfcheck)
            tr_self_compare(t, differs, fail);
        t->jb->body = offset(t, t->e.w);
        if (t->jb->uses_fpu)
            fpu_check(t);
    }
    t->jb->inner = t->jb->selfcheck ? t->jb->code : offset(t, t->e.w);
}

static void count_block(struct tr *t)
{
    const int32_t count = CPU(counters) + 8 * CC_insns_translated;

    if (!t->j->count)
        return;
    e_mov_load(&t->e, T1, rm_cpu(count));
    e_lea(&t->e, T1, rm_mem(T1, t->b->n));
    e_mov_store(&t->e, rm_cpu(count), T1);
}

static void fpu_thunk(struct tr *t)
{
    t->jb->code = t->jb->body = offset(t, t->e.w);
    fpu_check(t);
    e_jmp(&t->e, (uint64_t)(t->j->rx + t->jb->inner));
    tr_islands(t, true, 0);
}

/* The interpreter's function, called in line. */
static void emit_interpreted(struct tr *t)
{
    const uint32_t d = tr_desc(t, tr_may_leave(t->in, t->jb->key) ? DESC_INSN : DESC_STAY, t->off);

    e_mov_imm32(&t->e, T1, d);
    e_jmp(&t->e, (uint64_t)(t->j->rx + t->j->slow));
    tr_islands(t, true, 0);
    t->j->desc[d].resume = offset(t, t->e.w);
    tr_values_step(&t->values, t->in);
    tr_groups_hold(t, &t->j->desc[d]);
}

/* false: it is not emitted, and nothing was. */
bool tr_emit_one(struct tr *t, bool or_interpreted)
{
    tr_fn *fn = t->in->native ? tr_vec : tr_table[t->in->op];
    uint8_t *start = t->e.w;
    const unsigned nstub = t->nstub, nshorts = t->nshorts;
    const uint32_t ndesc = t->j->ndesc, nsite = t->j->nsite;

    t->insn_stub = NULL;
    t->ended = false;
    if (!fn || !fn(t)) {
        assert(t->e.w == start);
        t->nstub = nstub;
        t->nshorts = nshorts;
        t->j->ndesc = ndesc;
        t->j->nsite = nsite;
        t->insn_stub = NULL;
        if (!or_interpreted)
            return false;
        emit_interpreted(t);
    } else {
        tr_values_step(&t->values, t->in);
    }
    if (t->insn_stub) {
        struct jit_desc *d = &t->j->desc[t->insn_stub->desc];
        d->resume = offset(t, t->e.w);
        d->size = 1;
        tr_groups_hold(t, d);
    }
    tr_islands(t, false, 60);
    return true;
}

static struct jit_page *page_of(struct jit *j, hva_t page, const struct code_page *code, uint32_t key)
{
    struct jit_page **slot = &j->pages[((page ^ (uint64_t)key << 40) * 0x9e3779b97f4a7c15ull) >> 48]; /* JIT_PAGES */
    struct jit_page *p = *slot;

    while (p && (p->hva != page || p->key != key))
        p = p->next;
    if (p) {
        p->code = code; /* a page that was evicted comes back as another */
        return p;
    }
    p = pool_alloc(&j->pool, sizeof(*p));
    if (p) {
        memset(p, 0, offsetof(struct jit_page, copy));
        p->hva = page;
        p->key = key;
        p->code = code;
        p->stamp = code_stamp(j->cpu, code);
        p->next = *slot;
        *slot = p;
    }
    return p;
}

bool tr_needs_fpu(const struct block *b)
{
    for (unsigned i = 0; i < b->n; i++)
        if (tr_vec_wanted(&b->insn[i], b->key))
            return true;
    return false;
}

/* The block is to have a careful form, and there is room for its stubs. */
static bool two_forms(const struct tr *t)
{
    unsigned insns = t->careful_insns + t->b->n;

    for (unsigned i = 0; i < t->unit.n; i++)
        insns += t->unit.head[i] + (i < t->cur ? 0 : t->unit.b[i]->n);
    return t->b->heat & HEAT_TWO && !t->unit.entry[t->cur] && t->nstub + insns * INSN_STUBS <= TR_STUBS;
}

static void block_begin(struct tr *t)
{
    tr_groups_find(t);
    memset(t->slot, 0, sizeof(t->slot));
    t->off = t->b->hva & ~PAGE_MASK;
    t->i = 0;
}

/* RECIPE_SAVED */
static void save_flags(struct tr *t)
{
    struct emit *e = &t->e;

    e_op(e, EF_W, 0, 0x8b, T0, rm_reg(H_RAX));
    e1(e, 0x9f);                               /* lahf */
    e_op(e, EF_B8, 1, 0x90, 0, rm_reg(H_RAX)); /* seto al */
    e_mov_store(e, rm_cpu(CPU(saved_flags)), H_RAX);
    e_op(e, EF_W, 0, 0x8b, H_RAX, rm_reg(T0));
}

static void emit_insns(struct tr *t, unsigned n)
{
    for (t->i = 0; t->i < n; t->i++) {
        t->in = &t->b->insn[t->i];
        t->next_off = t->off + t->in->len;
        t->flags_live = t->live[t->i];
        if (t->careful)
            t->careful_at[t->cur][t->i] = offset(t, t->e.w);
        if (tr_saves(t, t->i))
            save_flags(t);
        if (t->careful)
            t->careful_check[t->cur][t->i] = offset(t, t->e.w);
        tr_emit_one(t, true);
        t->off = t->i + 1 < t->b->n ? t->next_off : t->off;
        if (t->i + 1 == t->unit.head[t->cur] && !t->outer) {
            tr_islands(t, false, 1000); /* none waits here */
            t->behind_head[t->cur] = offset(t, t->e.w);
        }
    }
}

static void translate_insns(struct tr *t)
{
    tr_flags_live(t);
    block_begin(t);
    emit_insns(t, t->b->n);
    if (!t->ended) {
        t->i = t->b->n - 1;
        tr_goto_next(t);
    }
}

static void translate_block(struct tr *t, unsigned n)
{
    bool thunk;

    t->cur = n;
    t->jb = t->jbs[n];
    t->b = t->jb->b;
    thunk = t->falls && t->jb->uses_fpu && t->jbs[n - 1]->uses_fpu;
    t->falls = false;
    t->two[n] = two_forms(t);
    t->gives_up = false;
    t->fast_desc[n][0] = t->j->ndesc;
    t->off = t->b->hva & ~PAGE_MASK;
    t->i = 0;
    t->jb->exit_desc = tr_desc(t, DESC_EXIT, t->off);
    if (t->unit.entry[n])
        t->warm[n] = offset(t, t->e.w);
    else
        block_head(t, thunk);
    count_block(t);
    translate_insns(t);
    for (unsigned k = 0; k < t->ngroups; k++)
        t->group_slot[n][k] = t->group[k].slot;
    t->jb->thunk = thunk && !t->unit.entry[n];
    t->fast_desc[n][1] = t->j->ndesc;
    t->two[n] = t->gives_up;
    t->careful_insns += t->two[n] ? t->b->n : 0;
}

uint64_t tr_careful(const struct tr *t, const struct tr_stub *s)
{
    assert(t->two[s->block]);
    return (uint64_t)(t->j->rx + t->careful_check[s->block][s->insn]);
}

/* The second form of a block, which is entered at any instruction whose merged check failed, and behind slow paths. */
static void careful_block(struct tr *t, unsigned n)
{
    t->cur = n;
    t->jb = t->jbs[n];
    t->b = t->jb->b;
    t->careful = true;
    translate_insns(t);
    t->careful = false;
    t->careful_at[n][t->b->n] = offset(t, t->e.w);
    for (uint32_t d = t->fast_desc[n][0]; d < t->fast_desc[n][1]; d++)
        if (t->j->desc[d].kind == DESC_INSN && t->j->desc[d].nheld)
            t->j->desc[d].patch = t->careful_at[n][t->j->desc[d].index + 1];
    tr_islands(t, true, 0);
}

/* The head once more, for all ways in that say nothing of the flags: it leaves them alone. */
static void emit_outer(struct tr *t)
{
    t->outer = true;
    block_begin(t);
    for (unsigned k = 0; k < t->ngroups; k++)
        t->group[k].slot = t->group_slot[t->cur][k];
    tr_flags_outer(t);
    block_head(t, false);
    count_block(t);
    emit_insns(t, t->unit.head[t->cur]);
    e_jmp(&t->e, (uint64_t)(t->j->rx + t->behind_head[t->cur]));
    tr_islands(t, true, 0);
    t->outer = false;
}

static void place_edges(struct tr *t)
{
    for (unsigned i = 0; i < t->unit.n; i++) {
        t->jb = t->jbs[i];
        t->b = t->jb->b;
        t->cur = i;
        if (t->jb->thunk)
            fpu_thunk(t);
        else if (t->unit.entry[i])
            emit_outer(t);
    }
    for (unsigned i = 0; i < t->nedge; i++) {
        const struct jit_block *to = t->jbs[t->edge[i].to];

        e_fix32(&t->e, t->edge[i].at,
                t->j->rw + (t->edge[i].warm    ? t->warm[t->edge[i].to]
                            : t->edge[i].inner ? to->inner
                                               : to->code));
    }
}

static struct jit_block *block_new(struct jit *j, struct block *b, uint32_t key)
{
    struct jit_block *jb = pool_alloc(&j->pool, sizeof(*jb));

    if (!jb)
        return NULL;
    *jb = (struct jit_block){.b = b,
                             .serial = b->serial,
                             .hva = b->hva,
                             .key = key,
                             .uses_fpu = tr_needs_fpu(b),
                             .selfcheck = code_selfcheck(b),
                             .page = page_of(j, b->hva & PAGE_MASK, b->page, key)};
    if (b->page2)
        jb->page2 = page_of(j, b->page2->hva, b->page2, key);
    if (!jb->page || (b->page2 && !jb->page2)) {
        pool_free(&j->pool, jb, sizeof(*jb));
        return NULL;
    }
    return jb;
}

static bool unit_begin(struct tr *t, struct jit *j, struct block *b, uint32_t key)
{
    struct unit *u = &t->unit;

    memset(t, 0, offsetof(struct tr, stub));
    t->nstub = t->nshorts = t->nedge = t->careful_insns = 0;
    memset(t->loop, 0, sizeof(t->loop));
    t->falls = false;
    t->j = j;
    t->e = (struct emit){.w = j->rw + j->used, .bias = (uint64_t)(j->rx - j->rw)};
    unit_collect(j, u, b, key);
    unit_flags(t);
    for (unsigned i = 0; i < u->n; i++) /* from here on their deaths are told */
        atomic_store(&u->b[i]->translated, true);
    for (unsigned i = 0; i < u->n; i++) {
        t->jbs[i] = block_new(j, u->b[i], key);
        if (!t->jbs[i]) {
            while (i--)
                pool_free(&j->pool, t->jbs[i], sizeof(*t->jbs[i]));
            return false;
        }
        t->jbs[i]->live_out = u->live_out[i];
    }
    for (unsigned i = 0; i < u->n; i++)
        t->jbs[i]->unit_next = t->jbs[(i + 1) % u->n];
    return true;
}

static void unit_publish(struct tr *t, gva_t rip)
{
    struct jit *j = t->j;

    for (unsigned i = 0; i < t->unit.n; i++) {
        struct jit_block *jb = t->jbs[i];

        jb->page_next = jb->page->blocks;
        jb->page->blocks = jb;
        page_cover(jb->page, jb);
        if (!j->alone)
            jit_add(j, jb);
        if (unlikely(j->map_fd >= 0))
            dprintf(j->map_fd, "%lx %x guest_%lx_%u\n", (uint64_t)(j->rx + jb->inner),
                    (i + 1 < t->unit.n ? t->jbs[i + 1]->inner : j->used) - jb->inner,
                    (uint64_t)((rip & PAGE_MASK) | (jb->hva & ~PAGE_MASK)), jb->b->n);
    }
    j->translated_blocks += t->unit.n;
    j->cpu->counters[CC_blocks_translated] += t->unit.n;
    j->cpu->counters[CC_insns_made] += t->unit.insns;
}

struct jit_block *jit_translate(struct jit *j, struct block *b, gva_t rip)
{
    struct tr *t = j->tr;
    const uint32_t first_site = j->nsite, start = j->used;

    cache_populate(j);
    if (cache_full(j) || !unit_begin(t, j, b, jit_key(b->key, rip)))
        return NULL;
    for (unsigned i = 0; i < t->unit.n; i++)
        translate_block(t, i);
    tr_islands(t, true, 0);
    entry_room(t);
    for (unsigned i = 0; i < t->unit.n; i++)
        if (t->two[i])
            careful_block(t, i);
    place_edges(t);
    entry_room(t); /* the next unit begins with one */
    tr_place_stubs(t, first_site);
    assert(t->e.w - (j->rw + start) < (long)JIT_BLOCK_MAX);
    j->used = (offset(t, t->e.w) + 15) & ~15u;
    j->translated_bytes += j->used - start;
    unit_publish(t, rip);
    for (unsigned i = 0; i < t->unit.n; i++) /* not by its address: it may be dead by now */
        if (t->unit.b[i] == b)
            return t->jbs[i];
    return NULL;
}
