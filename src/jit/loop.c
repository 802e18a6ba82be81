/* SPDX-License-Identifier: MIT
 * loop.c: loops that run long. A back edge is counted; when it was taken often, one trip is run by the interpreter and
 * its blocks are noted, and where all of its accesses move by constants a second version is made of them, the trace
 * (tr_loop.c). It has no checks: before it is entered each stream of accesses is looked up here, and the trips are
 * counted that stay in pages which allow them and lie as far from each other in the host. So many are made, at most
 * LOOP_MAX instructions, then attention and the tables are looked at again.
 *
 * Why that is right: between two safepoints an entry of the tables goes away only by what this cpu does itself, which
 * is a slow path, and behind each slow path of a trace it is left. Writes to pages of code have no entry. */
#include "jit.h"
#include "tr.h"

#define LOOP_MAX         16384u /* instructions of an entry */
#define LOOP_PAGES_AHEAD 16u
#define LOOKED_AT        (PAGE_SIZE / FLAT_ENTRY * PAGE_SIZE) /* guest memory whose entries are a page of a table */
#define LOOP_AGAIN       16384u     /* back edges until a trip is recorded again: something came between */
#define LOOP_NEVER       (1u << 30) /* ... it cannot be a trace */
#define LOOP_BATCH       32u        /* entries that are judged together */
#define LOOP_PENALTY     16384u     /* trips for which it is left alone, more: for good */
#define LOOP_WORTH       1200u      /* instructions that an entry must have made, on average */

static uint64_t *word(struct jit *j, uint32_t slot)
{
    return &j->slots[slot].word;
}

/* So many more back edges until it is looked at again. */
static void count_set(struct jit *j, const struct jit_loop *l, uint32_t trips)
{
    const uint64_t periods = trips / LOOP_PERIOD;

    if (l->word)
        *word(j, l->slot) = trips;
    else
        *word(j, l->slot) = periods ? periods << 32 | LOOP_PERIOD : 1ull << 32 | trips;
}

/* It only looks at attention from now on. */
static void never(struct jit *j, const struct jit_loop *l)
{
    count_set(j, l, LOOP_NEVER);
    for (unsigned i = 0; i < 2; i++)
        if (l->edge[i].at)
            tr_loop_plain(j, &l->edge[i]);
}

uint32_t loop_new(struct jit *j, bool word)
{
    struct jit_loop *l = &j->loop[j->nloop];

    if (j->nloop == JIT_LOOPS)
        return 0;
    *l = (struct jit_loop){.slot = j->nslot++, .word = word};
    count_set(j, l, j->loop_first);
    return j->nloop++;
}

/* ---- entering ---- */

static bool near(gva_t a, gva_t b)
{
    return !((a ^ b) >> 47);
}

struct look {      /* at the streams */
    uint32_t n;    /* trips that they allow */
    uint32_t skip; /* then: to be made with checks */
};

/* Trips until the access from lo on has left its page. */
static uint32_t trips_over(const struct jit_stream *st, gva_t lo, gva_t last)
{
    if (!st->step)
        return LOOP_PERIOD;
    if (st->step > 0)
        return (uint32_t)(((lo | ~PAGE_MASK) - lo) / (uint32_t)st->step) + 1;
    return (uint32_t)((last & ~PAGE_MASK) / (uint32_t)-st->step) + 1;
}

/* Its word is set. */
static void look_at(struct jit *j, const struct jit_stream *st, struct look *k)
{
    struct cpu *cpu = j->cpu;
    const uint64_t base = st->base == REG_RIP ? cpu->s.rip & PAGE_MASK : cpu->s.gpr[st->base];
    const gva_t at = base + (st->index < 16 ? cpu->s.gpr[st->index] << st->scale : 0);
    const gva_t lo = at + (int64_t)st->lo, last = at + (int64_t)st->hi - 1;
    const uint32_t step = (uint32_t)(st->step < 0 ? -st->step : st->step);
    gva_t edge = st->step < 0 ? lo & PAGE_MASK : last | ~PAGE_MASK;
    uint64_t w;

    if (!cpu_canonical(lo) || !near(lo, last) || ((at + (int64_t)st->align_at) & st->align)) {
        *k = (struct look){.skip = LOOP_PERIOD};
        return;
    }
    flat_looked_at(cpu, lo);
    if ((lo ^ last) / LOOKED_AT)
        flat_looked_at(cpu, last);
    w = flat_word(cpu, lo, st->write);
    if (!w || flat_word(cpu, last, st->write) != w) {
        *k = (struct look){.skip = w ? trips_over(st, lo, last) : 1};
        return;
    }
    *word(j, st->slot) = w + (st->fixed ? base : 0);
    if (!step)
        return;
    for (unsigned n = 0; n < LOOP_PAGES_AHEAD; n++) {
        const gva_t next = st->step < 0 ? edge - 1 : edge + 1;

        if ((st->step < 0 ? lo - edge : edge - last) >= (uint64_t)step * k->n || !near(next, lo))
            break;
        if ((next ^ edge) / LOOKED_AT)
            flat_looked_at(cpu, next);
        if (flat_word(cpu, next, st->write) != w)
            break;
        edge += st->step < 0 ? -PAGE_SIZE : PAGE_SIZE;
    }
    w = (uint32_t)(st->step < 0 ? lo - edge : edge - last) / step + 1;
    if (w > k->n)
        return;
    k->n = (uint32_t)w;
    k->skip = (uint32_t)(st->hi - st->lo - 2) / step + 1; /* over the page's end */
}

static struct look trips_allowed(struct jit *j, const struct jit_trace *t)
{
    struct look k = {.n = LOOP_MAX / t->insns};

    for (unsigned i = 0; i < t->nstreams && k.n; i++)
        look_at(j, &t->stream[i], &k);
    return k;
}

static bool dead(const struct jit_trace *t)
{
    for (unsigned i = 0; i < t->nblocks; i++)
        if (t->jb[i]->dead)
            return true;
    return false;
}

/* The trace's pages are where they were, and hold what it was made from. */
static bool current(struct jit *j, struct jit_trace *t)
{
    struct cpu *cpu = j->cpu;
    const gva_t gva = cpu->s.rip & PAGE_MASK;
    hva_t hva;

    jit_process_kills(j);
    if (t->gva != gva || t->gen[0] != cpu->exec_gen[0] || t->gen[1] != cpu->exec_gen[1] || t->drops != j->page_drops) {
        t->gva = 0;
        flat_note_room(cpu);
        for (unsigned i = 0; i < t->npages; i++) {
            const gva_t at = gva + (int64_t)t->page[i].delta;

            if (mem_exec_page(cpu, at, &hva) != CPU_OK) {
                cpu->pending.valid = false; /* who goes there finds it again */
                return false;
            }
            if (hva != t->page[i].page->hva)
                return false;
            flat_note_exec(cpu, at);
        }
        t->gva = gva;
        t->gen[0] = cpu->exec_gen[0];
        t->gen[1] = cpu->exec_gen[1];
        t->drops = j->page_drops;
    }
    for (unsigned i = 0; i < t->npages; i++)
        jit_page_current(j, t->page[i].page);
    return !dead(t);
}

/* What the last entry gave; true: it is to be entered again now. */
static bool account(struct jit *j, struct jit_loop *l)
{
    const struct jit_trace *t = l->trace;
    uint64_t done = 0;

    if (l->in_trace) {
        done = (uint64_t)((int64_t)(*word(j, t->left) - l->start) / t->step);
        if (done > l->n)
            done = l->n;
        l->in_trace = false;
    }
    l->trips += (uint32_t)done;
    j->cpu->counters[CC_insns_translated] += done * t->insns;
    if (++l->entries < LOOP_BATCH)
        return true;
    l->penalty = l->trips * t->insns >= LOOP_BATCH * LOOP_WORTH ? 0 : l->penalty ? l->penalty * 4 : LOOP_PERIOD;
    if (l->penalty > LOOP_PENALTY) {
        l->penalty = LOOP_NEVER;
        never(j, l);
    }
    l->trips = 0;
    l->entries = 0;
    return !l->penalty;
}

static uint64_t enter(struct jit *j, struct jit_loop *l)
{
    struct jit_trace *t = l->trace;
    struct cpu *cpu = j->cpu;
    const bool again = account(j, l);
    struct look k = {.skip = l->penalty};

    if (!current(j, t)) {
        if (dead(t))
            l->trace = NULL;
        count_set(j, l, LOOP_AGAIN);
        return 0;
    }
    if (again)
        k = trips_allowed(j, t);
    cpu->s.hot_spare[HOT_PAGE] = cpu->s.rip & PAGE_MASK;
    count_set(j, l, k.skip ? k.skip : 1);
    if (k.n < 2)
        return (uint64_t)(j->rx + t->jb[0]->code);
    l->start = cpu->s.gpr[t->reg];
    l->n = k.n;
    l->in_trace = true;
    *word(j, t->left) = l->start + (uint64_t)k.n * (uint64_t)(int64_t)t->step;
    *word(j, t->limit) = -*word(j, t->left);
    *word(j, t->then) = (uint64_t)(j->rx + (k.skip ? t->jb[0]->code : j->slow));
    if (t->uses_fpu && !cpu->fpu_live)
        host_fpu_load(cpu);
    return (uint64_t)(j->rx + t->code);
}

uint64_t loop_back_edge(struct jit *j, const struct jit_desc *d)
{
    struct cpu *cpu = j->cpu;
    struct jit_loop *l = &j->loop[d->held];

    cpu->s.rip = cpu->s.hot_spare[HOT_PAGE] + (int64_t)d->disp;
    if (d->recipe)
        jit_flags_again(j, d->recipe);
    j->status = CPU_AGAIN;
    count_set(j, l, 1);
    if (d->jb->dead || atomic_load_explicit(&cpu->attention, memory_order_relaxed))
        return 0;
    if (l->trace)
        return enter(j, l);
    count_set(j, l, LOOP_AGAIN);
    j->record = (struct loop_record){.loop = d->held, .head = cpu->s.rip};
    return 0;
}

uint64_t loop_limit(struct jit *j, const struct jit_desc *d)
{
    struct cpu *cpu = j->cpu;

    cpu->s.rip = cpu->s.hot_spare[HOT_PAGE] + (int64_t)d->disp;
    j->status = CPU_AGAIN;
    if (atomic_load_explicit(&cpu->attention, memory_order_relaxed) || !j->loop[d->held].trace)
        return 0;
    return enter(j, &j->loop[d->held]);
}

/* ---- recording a trip ---- */

static bool add_page(struct jit_trace *t, int32_t delta, struct jit_page *page)
{
    for (unsigned i = 0; i < t->npages; i++)
        if (t->page[i].delta == delta)
            return t->page[i].page == page;
    if (t->npages == LOOP_PAGES)
        return false;
    t->page[t->npages].delta = delta;
    t->page[t->npages++].page = page;
    return true;
}

static bool add_block(struct jit *j, struct jit_trace *t, struct block *b, gva_t rip)
{
    const uint32_t key = jit_key(b->key, rip);
    const int64_t delta = (int64_t)((rip & PAGE_MASK) - (j->record.head & PAGE_MASK));
    struct jit_block *jb = jit_find(j, b->hva, key);

    if ((key & KEY_EDGE) || delta < -0x10000 || delta > 0x10000)
        return false;
    if (!jb)
        jb = jit_translate(j, b, rip);
    if (!jb || jb->serial != b->serial || (t->nblocks && jb->key != t->jb[0]->key))
        return false;
    t->jb[t->nblocks] = jb;
    t->delta[t->nblocks++] = (int32_t)delta;
    return add_page(t, (int32_t)delta, jb->page) &&
           (!jb->page2 || (t->nblocks > 1 && add_page(t, (int32_t)delta + (int32_t)PAGE_SIZE, jb->page2)));
}

static void build(struct jit *j)
{
    const struct loop_record *r = &j->record;
    struct jit_loop *l = &j->loop[r->loop];
    struct jit_trace *t;

    host_fpu_save(j->cpu);
    t = pool_alloc(&j->pool, sizeof(*t));
    if (!t)
        return;
    *t = (struct jit_trace){.nblocks = 0};
    for (unsigned i = 0; i < r->n; i++)
        if (!add_block(j, t, r->b[i], r->rip[i]))
            return;
    if (!current(j, t))
        return;
    if (!tr_loop(j, t, r->loop)) {
        never(j, l);
        return;
    }
    l->trace = t;
    count_set(j, l, 1);
}

/* The trip goes on with b; false: it is none. */
static bool note(struct jit *j, struct block *b)
{
    struct loop_record *r = &j->record;

    if (!b || !b->n || code_selfcheck(b) || r->n == LOOP_BLOCKS || r->insns + b->n > LOOP_INSNS)
        return false;
    for (unsigned i = 0; i < r->n; i++) /* a loop inside */
        if (r->rip[i] == j->cpu->s.rip)
            return false;
    r->b[r->n] = b;
    r->rip[r->n++] = j->cpu->s.rip;
    r->insns += b->n;
    return true;
}

int loop_record(struct jit *j)
{
    struct loop_record *r = &j->record;
    struct cpu *cpu = j->cpu;
    struct block *b = NULL;
    int st;

    if (r->n && cpu->s.rip == r->head) {
        build(j);
        r->loop = 0;
        return CPU_AGAIN;
    }
    st = cpu->s.mode == MODE_64 ? code_lookup(cpu, &b) : CPU_AGAIN;
    if (st == CPU_OK && note(j, b)) {
        st = interp_blocks(cpu, b, 1);
        if (st != CPU_FAULT && st != CPU_VMEXIT)
            return st;
    } else if (st == CPU_OK) {
        never(j, &j->loop[r->loop]);
        st = CPU_AGAIN;
    }
    r->loop = 0;
    return st;
}
