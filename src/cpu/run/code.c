/* SPDX-License-Identifier: MIT
 * code.c: decoded code: finding, making, verifying, killing and freeing blocks (code.h). */
#include "run/code.h"
#include <stdlib.h>
#include <sys/syscall.h>

int in_stale(struct cpu *cpu, const struct insn *in)
{
    cpu->counters[CC_smc_stops]++;
    return CPU_AGAIN;
}

int in_block_end(struct cpu *cpu, const struct insn *in)
{
    return CPU_AGAIN;
}

/* ---- the lock ---- */
static void code_lock(struct code_pages *c)
{
    for (unsigned tries = 0; atomic_exchange_explicit(&c->lock, 1, memory_order_acquire); tries++) {
        if (tries < 100) {
            __asm__ volatile("pause");
        } else {
            long ret; /* its holder has no host cpu: no libc here */
            __asm__ volatile("syscall" : "=a"(ret) : "a"(SYS_sched_yield) : "rcx", "r11", "memory");
        }
    }
}

static void code_unlock(struct code_pages *c)
{
    atomic_store_explicit(&c->lock, 0, memory_order_release);
}

/* ---- finding ---- */
static unsigned page_slot(hva_t page)
{
    return (page >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 51; /* 13 bits */
}
_Static_assert(PAGES_HASH == 1 << 13, "page_slot");

static unsigned bucket_of(hva_t hva)
{
    return (hva >> 2 ^ hva >> 7) & (PAGE_BUCKETS - 1);
}

static struct code_page *page_find(struct code_pages *c, hva_t page)
{
    struct code_page *p = atomic_load_explicit(&c->hash[page_slot(page)], memory_order_acquire);

    while (p && p->hva != page)
        p = atomic_load_explicit(&p->next, memory_order_acquire);
    return p;
}

static struct block *block_find(struct code_page *p, hva_t hva, uint32_t key)
{
    struct block *b = atomic_load_explicit(&p->bucket[bucket_of(hva)], memory_order_acquire);

    while (b && (b->hva != hva || b->key != key))
        b = atomic_load_explicit(&b->next, memory_order_acquire);
    return b;
}

static struct block **cache_slot(struct cpu *cpu, hva_t hva, uint32_t key)
{
    return &cpu->code->cache[(hva ^ hva >> 11 ^ key << 3) & (LOOKUP_CACHE - 1)];
}

/* Bytes of a block in its second page, from that page's start on. */
static unsigned tail_of(const struct block *b)
{
    return b->bytes - (PAGE_SIZE - (b->hva & ~PAGE_MASK));
}

/* ---- killing and freeing ---- */
static void cross_unlink(struct block *b)
{
    struct block **link = &b->page2->cross;

    while (*link != b)
        link = &(*link)->cross_next;
    *link = b->cross_next;
    b->page2->nblocks--;
}

static void tell_engines(struct code_pages *c, const struct killed *k)
{
    c->kill_ring[c->kills % KILL_RING] = *k;
    atomic_fetch_add(&c->kills, 1);
    for (unsigned i = 0; i < c->ncpus; i++) /* they leave what they made of it */
        if (c->cpus[i]->code->running && c->cpus[i]->flatu)
            atomic_fetch_or(&c->cpus[i]->attention, ATT_UNVERIFY);
}

/* Take it out. alone: its page lives on, so that links to it must go. */
static void block_kill(struct code_pages *c, struct code_page *p, struct block *b, bool alone)
{
    const hva_t hva = b->hva;
    _Atomic(struct block *) *link = &p->bucket[bucket_of(hva)];

    while (*link != b)
        link = &(*link)->next;
    *link = b->next;
    if (b->page2)
        cross_unlink(b);
    atomic_store(&b->hva, 0);
    if (atomic_load(&b->translated)) /* who translates it says so first and looks at hva afterwards */
        tell_engines(c, &(struct killed){.hva = hva, .key = b->key, .serial = b->serial});
    for (unsigned i = 0; i <= b->n; i++)
        __atomic_store_n(&b->insn[i].fn, in_stale, __ATOMIC_RELEASE);
    p->nblocks--;
    /* nothing alive points at it: whoever links it now sees hva 0 afterwards and unlinks it (code_successor) */
    for (unsigned i = 0; i < PAGE_BUCKETS && alone; i++)
        for (struct block *o = p->bucket[i]; o; o = o->next)
            for (unsigned k = 0; k < 2; k++)
                if (o->succ[k] == b)
                    atomic_store(&o->succ[k], NULL);
    atomic_store(&b->next, c->dead); /* readers that stand on b end in the dead list, where no hva matches */
    c->dead = b;
    c->bytes -= b->size;
    c->dead_bytes += b->size;
}

static void page_kill_blocks(struct code_pages *c, struct code_page *p)
{
    for (unsigned i = 0; i < PAGE_BUCKETS; i++)
        while (p->bucket[i])
            block_kill(c, p, p->bucket[i], false);
    while (p->cross)
        block_kill(c, p->cross->page, p->cross, true);
    p->lines = 0;
}

static void page_remove(struct code_pages *c, struct code_page *p)
{
    _Atomic(struct code_page *) *link = &c->hash[page_slot(p->hva)];

    page_kill_blocks(c, p);
    atomic_store(&p->state, PAGE_OPEN);
    while (*link != p)
        link = &(*link)->next;
    *link = p->next;
    p->hva = 0;
    atomic_store(&p->next, c->dead_pages);
    c->dead_pages = p;
    c->bytes -= sizeof(*p);
    c->dead_bytes += sizeof(*p);
}

static bool all_have_seen(const struct code_pages *c)
{
    for (unsigned i = 0; i < c->ncpus; i++) {
        const struct code_unit *u = c->cpus[i]->code;
        if (u->running && u->seen < c->reclaim)
            return false;
    }
    return true;
}

static void block_free(struct code_pages *c, struct block *b)
{
    code_lock(c);
    pool_free(&c->pool, b, b->size);
    code_unlock(c);
}

static void free_chains(struct code_pages *c, struct block *b, struct code_page *p)
{
    while (b) {
        struct block *next = b->next;
        block_free(c, b);
        b = next;
    }
    while (p) {
        struct code_page *next = p->next;
        free(p);
        p = next;
    }
}

/* Free what was waiting when every cpu has let go of it; then let the newly dead wait. Not with a live guest FPU. */
static void code_reap(struct cpu *cpu, struct code_pages *c)
{
    struct block *b = NULL;
    struct code_page *p = NULL;

    code_lock(c);
    if ((c->waiting || c->waiting_pages) && all_have_seen(c)) {
        b = c->waiting;
        p = c->waiting_pages;
        c->waiting = NULL;
        c->waiting_pages = NULL;
    }
    if (!c->waiting && !c->waiting_pages && c->dead_bytes > CODE_RETIRE) {
        c->waiting = c->dead;
        c->waiting_pages = c->dead_pages;
        c->dead = NULL;
        c->dead_pages = NULL;
        c->dead_bytes = 0;
        atomic_fetch_add(&c->reclaim, 1);
        for (unsigned i = 0; i < c->ncpus; i++)
            if (c->cpus[i]->code->running)
                cpu_attend(c->cpus[i], ATT_UNVERIFY);
    }
    code_unlock(c);
    free_chains(c, b, p);
}

static void code_evict_all(struct code_pages *c)
{
    code_lock(c);
    for (unsigned i = 0; i < PAGES_HASH; i++)
        while (c->hash[i])
            page_remove(c, c->hash[i]);
    code_unlock(c);
}

static void code_evict(struct cpu *cpu)
{
    cpu->counters[CC_code_evictions]++;
    code_evict_all(cpu->domain->code);
}

static void page_sweep(struct code_pages *c, struct code_page *p)
{
    for (unsigned i = 0; i < PAGE_BUCKETS; i++) {
        struct block *next;

        for (struct block *b = p->bucket[i]; b; b = next) {
            const uint32_t heat = __atomic_load_n(&b->heat, __ATOMIC_RELAXED);

            next = b->next;
            if (!heat || atomic_load_explicit(&b->translated, memory_order_relaxed))
                continue;
            if (heat == b->swept)
                block_kill(c, p, b, true);
            else
                b->swept = heat;
        }
    }
}

static void code_sweep(struct code_pages *c)
{
    code_lock(c);
    if (c->sweep++ % SWEEP_BLOCKS == 0)
        for (struct code_page *p = c->hash[c->sweep / SWEEP_BLOCKS % PAGES_HASH]; p; p = p->next)
            page_sweep(c, p);
    code_unlock(c);
}

static void code_ack(struct cpu *cpu)
{
    struct code_unit *u = cpu->code;

    if (atomic_load(&cpu->attention) & ATT_UNVERIFY)
        atomic_fetch_and(&cpu->attention, ~ATT_UNVERIFY);
    if (u->seen == cpu->domain->code->reclaim)
        return;
    u->seen = cpu->domain->code->reclaim; /* read before the cache is emptied: what dies later waits for the next */
    memset(u->cache, 0, sizeof(u->cache));
}

void code_run_begin(struct cpu *cpu)
{
    atomic_store(&cpu->code->running, true);
    code_ack(cpu);
}

void code_run_end(struct cpu *cpu)
{
    atomic_store_explicit(&cpu->code->running, false, memory_order_release);
}

int code_safepoint(struct cpu *cpu)
{
    int st;

    if (likely(cpu->s.activity == ACTIVITY_ACTIVE)) {
        if (atomic_load(&cpu->attention) & ATT_UNVERIFY)
            code_ack(cpu);
        return cpu_poll(cpu);
    }
    code_run_end(cpu);
    st = cpu_poll(cpu);
    code_run_begin(cpu);
    return st;
}

/* ---- verifying ---- */
static uint64_t stamp_of(const struct code_pages *c, const struct code_page *p)
{
    return atomic_load_explicit(&p->gen, memory_order_acquire) + atomic_load_explicit(&c->gen, memory_order_relaxed);
}

static inline bool block_fresh(const struct cpu *cpu, const struct block *b)
{
    return atomic_load_explicit(&b->verified, memory_order_relaxed) == stamp_of(cpu->domain->code, b->page) &&
           likely(cpu->s.paging != PAGING_NONE) && likely(!b->page->selfcheck) &&
           (likely(!b->page2) ||
            (b->verified2 == stamp_of(cpu->domain->code, b->page2) && likely(!b->page2->selfcheck)));
}

/* Memory still holds the block's bytes (false too when it is gone). */
static bool bytes_same(hva_t hva, const uint8_t *src, unsigned n)
{
    uint64_t v;
    uint8_t byte;

    for (; n >= 8; n -= 8, hva += 8, src += 8)
        if (host_ld64((void *)hva, &v) || v != *(const uint64_t *)src)
            return false;
    for (; n; n--, hva++, src++)
        if (host_ld8((void *)hva, &byte) || byte != *src)
            return false;
    return true;
}

uint64_t code_stamp(const struct cpu *cpu, const struct code_page *p)
{
    return stamp_of(cpu->domain->code, p);
}

bool code_selfcheck(const struct block *b)
{
    return b->page->selfcheck || (b->page2 && b->page2->selfcheck);
}

static void kill_now(struct code_pages *c, struct block *b)
{
    code_lock(c);
    if (b->hva)
        block_kill(c, b->page, b, true);
    code_unlock(c);
}

/* The second page's address is read before hva is looked at again: a dead page has none. */
static bool block_same(const struct block *b, hva_t hva)
{
    const unsigned first = PAGE_SIZE - (hva & ~PAGE_MASK);
    const hva_t second = b->page2 ? b->page2->hva : 0;

    if (likely(!b->page2))
        return bytes_same(hva, b->src, b->bytes);
    return second && bytes_same(hva, b->src, first) && bytes_same(second, b->src + first, b->bytes - first);
}

static bool block_verify(struct cpu *cpu, struct block *b, hva_t hva)
{
    struct code_pages *c = cpu->domain->code;
    const uint64_t stamp = stamp_of(c, b->page), stamp2 = b->page2 ? stamp_of(c, b->page2) : 0;

    if (likely(block_same(b, hva))) {
        atomic_store_explicit(&b->verified, stamp, memory_order_relaxed);
        atomic_store_explicit(&b->verified2, stamp2, memory_order_relaxed);
        return true;
    }
    cpu->counters[CC_blocks_stale]++;
    kill_now(c, b);
    return false;
}

bool code_verify(struct cpu *cpu, struct block *b)
{
    const hva_t hva = b->hva;

    return hva && (block_fresh(cpu, b) || block_verify(cpu, b, hva));
}

/* ---- making ---- */
/* The page, protected. NULL: no memory. */
static struct code_page *page_prepare(struct cpu *cpu, hva_t page)
{
    struct code_pages *c = cpu->domain->code;
    struct code_page *p, *fresh = NULL;
    uint32_t state;

    if (!page_find(c, page))
        fresh = calloc(1, sizeof(*fresh));
    code_lock(c);
    p = page_find(c, page);
    if (!p && fresh) {
        p = fresh;
        fresh = NULL;
        p->hva = page;
        p->next = c->hash[page_slot(page)];
        atomic_store(&c->hash[page_slot(page)], p);
        c->bytes += sizeof(*p);
    }
    if (p) {
        p->writes = 0;
        if (p->drops > DROPS_TO_CHECK && !p->selfcheck) {
            p->selfcheck = true;
            cpu->counters[CC_selfchecks]++;
        }
        if (p->state == PAGE_OPEN && !p->selfcheck)
            atomic_store(&p->state, PAGE_PENDING);
    }
    code_unlock(c);
    free(fresh);
    if (!p || p->state != PAGE_PENDING)
        return p;
    /* the bit stands; every cpu gives up its write entries. Another cpu may be waiting for the same: that is harmless
     */
    mem_protect_host_page(cpu->domain, cpu, page);
    state = PAGE_PENDING;
    atomic_compare_exchange_strong(&p->state, &state, PAGE_PROTECTED);
    return p;
}

static bool ends_block(const struct insn *in, bool selfcheck)
{
    const uint32_t attrs = op_rows[in->op].attrs;

    if (in->op == OP_INVALID || (attrs & (A_BRANCH | A_SYS)))
        return true;
    if (!selfcheck)
        return false;
    return (attrs & (A_STRING | A_STACK)) || (in->mem != 0xff && (in->o[in->mem].rw & OPND_W));
}

/* Decode from buf; *bytes: what the instructions cover. Returns how many; 0: the first crosses the end. */
static unsigned decode_block(struct cpu *cpu, const uint8_t *buf, unsigned len, bool selfcheck, struct insn *out,
                             unsigned *bytes)
{
    unsigned n = 0, at = 0;

    while (n < BLOCK_INSNS && at < len) {
        const int result = insn_decode(buf + at, len - at, (enum cpu_mode)cpu->s.mode, &out[n]);

        if (result > 0)
            break;
        at += out[n].len;
        if (ends_block(&out[n++], selfcheck))
            break;
    }
    cpu->counters[CC_insns_decoded] += n;
    *bytes = n ? at : len;
    return n;
}

static struct block *block_alloc(struct code_pages *c, struct code_page *p, uint32_t key, const struct insn *insns,
                                 unsigned n, const uint8_t *src, unsigned bytes)
{
    /* of the instruction behind the last, there is a function only */
    const size_t size = sizeof(struct block) + n * sizeof(struct insn) + sizeof(insn_fn *) + bytes;
    struct block *b;

    code_lock(c);
    b = pool_alloc(&c->pool, size);
    code_unlock(c);
    if (!b)
        return NULL;
    memset(b, 0, sizeof(*b));
    b->key = key;
    b->n = n;
    b->bytes = bytes;
    b->page = p;
    b->size = (size + 63) & ~63ull;
    memcpy(b->insn, insns, n * sizeof(*insns));
    *(insn_fn **)&b->insn[n] = in_block_end;
    b->src = (uint8_t *)&b->insn[n] + sizeof(insn_fn *);
    memcpy(b->src, src, bytes);
    return b;
}

static uint64_t lines_of(hva_t hva, unsigned size)
{
    const unsigned first = (hva & ~PAGE_MASK) >> 6, last = ((hva & ~PAGE_MASK) + size - 1) >> 6;

    return (~0ull << first) & (~0ull >> (63 - (last > 63 ? 63 : last)));
}

/* What a block is made from: a page's state before its bytes are read. */
struct source {
    struct code_page *p;
    uint64_t seq, stamp;
};

static bool source_open(struct cpu *cpu, hva_t page, struct source *src)
{
    src->p = page_prepare(cpu, page);
    if (!src->p)
        return false;
    src->stamp = stamp_of(cpu->domain->code, src->p);
    src->seq = atomic_load(&src->p->write_seq);
    return true;
}

/* Not written, dropped or removed meanwhile. */
static bool source_same(const struct source *src)
{
    const struct code_page *p = src->p;

    return p->hva && p->write_seq == src->seq && (p->state == PAGE_PROTECTED || p->selfcheck);
}

static void cross_link(struct block *b, struct code_page *p)
{
    b->page2 = p;
    b->cross_next = p->cross;
    p->cross = b;
    p->nblocks++;
    p->lines |= 1;
}

/* Insert, unless a page changed. second: the page that its one instruction ends in, or NULL. */
static bool block_publish(struct code_pages *c, struct block *b, hva_t hva, const struct source *src,
                          const struct source *second)
{
    struct code_page *p = src->p;
    bool ok;

    code_lock(c);
    ok = source_same(src) && (!second || source_same(second)) && !block_find(p, hva, b->key);
    if (ok) {
        const unsigned k = bucket_of(hva);

        b->hva = hva;
        b->serial = ++c->serial;
        if (second)
            cross_link(b, second->p);
        b->next = p->bucket[k];
        atomic_store(&p->bucket[k], b);
        p->nblocks++;
        p->lines |= lines_of(hva, b->bytes);
        c->bytes += b->size;
    }
    code_unlock(c);
    return ok;
}

static void make_begin(struct cpu *cpu)
{
    struct code_pages *c = cpu->domain->code;

    host_fpu_save(cpu);
    if (unlikely(c->bytes > c->limit))
        code_evict(cpu);
    else if (unlikely(c->bytes > CODE_SWEEP))
        code_sweep(c);
    code_reap(cpu, c);
}

enum made { MADE, MADE_AGAIN, MADE_CROSSES, MADE_FAILED }; /* FAILED: run by bytes */

/* Decode the block at hva. */
static enum made block_make(struct cpu *cpu, hva_t hva, uint32_t key, struct block **found)
{
    const unsigned room = PAGE_SIZE - (hva & ~PAGE_MASK);
    struct insn insns[BLOCK_INSNS];
    uint8_t buf[BLOCK_INSNS * 15];
    const unsigned len = room < sizeof(buf) ? room : sizeof(buf);
    struct source src;
    struct block *b;
    unsigned n, bytes;

    make_begin(cpu);
    if (!source_open(cpu, hva & PAGE_MASK, &src) || host_copy(buf, (void *)hva, len))
        return MADE_FAILED;
    n = decode_block(cpu, buf, len, src.p->selfcheck, insns, &bytes);
    if (!n && cpu->s.mode == MODE_64)
        return MADE_CROSSES;
    b = block_alloc(cpu->domain->code, src.p, key, insns, n, buf, bytes);
    if (!b)
        return MADE_FAILED;
    b->verified = src.stamp;
    cpu->counters[CC_blocks_decoded]++;
    if (block_publish(cpu->domain->code, b, hva, &src, NULL)) {
        *found = b;
        return MADE;
    }
    block_free(cpu->domain->code, b);
    return MADE_AGAIN;
}

/* The instruction at hva that ends in the page at hva2. What is no instruction is left to code_single(). */
static enum made cross_make(struct cpu *cpu, hva_t hva, hva_t hva2, uint32_t key, struct block **found)
{
    const unsigned room = PAGE_SIZE - (hva & ~PAGE_MASK);
    struct source first, second;
    uint8_t buf[15];
    struct insn in;
    struct block *b;

    if ((hva & PAGE_MASK) == hva2)
        return MADE_FAILED;
    make_begin(cpu);
    if (!source_open(cpu, hva & PAGE_MASK, &first) || !source_open(cpu, hva2, &second) ||
        host_copy(buf, (void *)hva, room) || host_copy(buf + room, (void *)hva2, sizeof(buf) - room) ||
        insn_decode(buf, sizeof(buf), MODE_64, &in) || in.len <= room)
        return MADE_FAILED;
    cpu->counters[CC_insns_decoded]++;
    b = block_alloc(cpu->domain->code, first.p, key, &in, 1, buf, in.len);
    if (!b)
        return MADE_FAILED;
    b->verified = first.stamp;
    b->verified2 = second.stamp;
    cpu->counters[CC_blocks_decoded]++;
    if (block_publish(cpu->domain->code, b, hva, &first, &second)) {
        *found = b;
        return MADE;
    }
    block_free(cpu->domain->code, b);
    return MADE_AGAIN;
}

/* ---- look-up ---- */
/* rip is a linear address in 64-bit mode; else it is an offset in CS, checked against the limit. */
static int linear_rip(struct cpu *cpu, gva_t *gva)
{
    const struct cpu_state *s = &cpu->s;

    if (likely(s->mode == MODE_64)) {
        *gva = s->rip;
        return likely(cpu_canonical(s->rip)) ? CPU_OK : cpu_raise_err(cpu, VEC_GP, 0);
    }
    *gva = (uint32_t)(s->seg[SEG_CS].base + s->rip);
    return likely(s->rip <= s->seg[SEG_CS].limit) ? CPU_OK : cpu_raise_err(cpu, VEC_GP, 0);
}

/* An instruction over the page's end, b perhaps its block. The second page may lie elsewhere by now. */
static int cross_lookup(struct cpu *cpu, gva_t gva, hva_t hva, struct block *b, struct block **found)
{
    hva_t hva2;
    const int st = mem_exec_page(cpu, (gva | ~PAGE_MASK) + 1, &hva2);

    *found = NULL;
    if (unlikely(st != CPU_OK))
        return st;
    if (b && b->page2->hva == hva2 && (block_fresh(cpu, b) || block_verify(cpu, b, hva))) {
        *found = b;
        return CPU_OK;
    }
    if (b)
        kill_now(cpu->domain->code, b);
    for (unsigned tries = 0; tries < 4; tries++)
        if (cross_make(cpu, hva, hva2, cpu->s.insn_key, found) != MADE_AGAIN)
            break;
    return CPU_OK;
}

static int lookup_slow(struct cpu *cpu, gva_t gva, hva_t hva, uint32_t key, struct block **found)
{
    struct code_page *p = page_find(cpu->domain->code, hva & PAGE_MASK);
    struct block *b = p ? block_find(p, hva, key) : NULL;

    if (unlikely(b && b->page2))
        return cross_lookup(cpu, gva, hva, b, found);
    if (b && !block_fresh(cpu, b) && !block_verify(cpu, b, hva))
        b = NULL;
    for (unsigned tries = 0; !b && tries < 4; tries++) {
        const enum made made = block_make(cpu, hva, key, &b);

        if (made == MADE_CROSSES)
            return cross_lookup(cpu, gva, hva, NULL, found);
        if (made == MADE_FAILED)
            break;
    }
    if (b)
        *cache_slot(cpu, hva, key) = b;
    *found = b;
    return CPU_OK;
}

int code_lookup(struct cpu *cpu, struct block **found)
{
    const uint32_t key = cpu->s.insn_key;
    struct block *b;
    hva_t hva;
    gva_t gva;
    int st = linear_rip(cpu, &gva);

    cpu->counters[CC_block_lookups]++;
    if (likely(st == CPU_OK))
        st = mem_exec_page(cpu, gva, &hva);
    if (unlikely(st != CPU_OK))
        return st;
    hva |= gva & ~PAGE_MASK;
    b = *cache_slot(cpu, hva, key);
    if (unlikely(!b) || unlikely(b->hva != hva) || unlikely(b->key != key) || unlikely(!block_fresh(cpu, b))) {
        st = lookup_slow(cpu, gva, hva, key, &b);
        if (unlikely(st != CPU_OK))
            return st;
    }
    if (b && unlikely(!b->n))
        b = NULL;
    /* the limit cuts the block: instruction by instruction */
    if (b && unlikely(cpu->s.mode != MODE_64) && cpu->s.rip + b->bytes - 1 > cpu->s.seg[SEG_CS].limit)
        b = NULL;
    *found = b;
    return CPU_OK;
}

struct block *code_successor(struct cpu *cpu, struct block *b, gva_t page_gva)
{
    const gva_t rip = cpu->s.rip;
    const hva_t want = b->page->hva | (rip & ~PAGE_MASK);
    struct block *t;

    if ((rip & PAGE_MASK) != page_gva || cpu->s.insn_key != b->key || cpu->s.mode != MODE_64)
        return NULL;
    for (unsigned i = 0; i < 2; i++) {
        t = atomic_load_explicit(&b->succ[i], memory_order_acquire);
        if (t && t->hva == want && likely(block_fresh(cpu, t)))
            return t;
    }
    t = block_find(b->page, want, b->key);
    if (!t || !t->n || t->page2 || !block_fresh(cpu, t))
        return NULL;
    atomic_store(&b->succ[b->rotate++ & 1], t);
    if (unlikely(!t->hva)) { /* killed meanwhile: its killer may have looked here before */
        atomic_store(&b->succ[(b->rotate - 1) & 1], NULL);
        return NULL;
    }
    return t;
}

struct block *code_peek(struct cpu *cpu, const struct block *near, hva_t hva)
{
    struct block *b = block_find(near->page, hva, near->key);

    return b && b->n && !b->page2 && block_fresh(cpu, b) ? b : NULL;
}

/* ---- by bytes ---- */
static struct insn *memo_slot(struct cpu *cpu, const uint8_t *bytes)
{
    const uint64_t head = *(const uint32_t *)bytes ^ (uint64_t)cpu->s.mode << 32;

    return &cpu->code->memo[head * 0x9e3779b97f4a7c15ull >> 56];
}
_Static_assert(MEMO == 256, "memo_slot");

int code_single(struct cpu *cpu, const struct insn **found)
{
    uint8_t bytes[16] = {0};
    struct insn *in;
    unsigned got;
    gva_t gva;
    hva_t page;
    int st = linear_rip(cpu, &gva);

    if (st == CPU_OK)
        st = mem_fetch(cpu, gva, bytes, 15, &got);
    if (st != CPU_OK)
        return st;
    in = memo_slot(cpu, bytes);
    if (!in->fn || in->mode != cpu->s.mode || in->len > got || memcmp(in->bytes, bytes, in->len)) {
        host_fpu_save(cpu);
        cpu->counters[CC_insns_decoded]++;
        if (insn_decode(bytes, got, (enum cpu_mode)cpu->s.mode, in) > 0) {
            in->fn = NULL; /* the rest lies in a page that cannot be fetched from: its fault */
            st = mem_exec_page(cpu, cpu->s.mode == MODE_64 ? gva + got : (uint32_t)(gva + got), &page);
            return st == CPU_OK ? CPU_AGAIN : st;
        }
    }
    *found = in;
    if (unlikely(cpu->s.mode != MODE_64) && cpu->s.rip + in->len - 1 > cpu->s.seg[SEG_CS].limit)
        return cpu_raise_err(cpu, VEC_GP, 0);
    return CPU_OK;
}

/* ---- what mem.c and others tell ---- */
/* Callers need not be in the run loop, where pages cannot be freed: they take the lock. */
bool code_page_present(struct cpu_domain *d, hva_t page)
{
    struct code_pages *c = d->code;
    const struct code_page *p;
    bool present;

    code_lock(c);
    p = page_find(c, page & PAGE_MASK);
    present = p && p->state != PAGE_OPEN;
    code_unlock(c);
    return present;
}

/* Blocks that the write overlaps die. A page whose blocks are gone, or that is written again and again, is opened. */
static bool page_written(struct code_pages *c, struct code_page *p, hva_t hva, unsigned size)
{
    p->write_seq++;
    p->writes++;
    if (p->lines & lines_of(hva, size)) {
        for (unsigned i = 0; i < PAGE_BUCKETS; i++) {
            struct block *next;

            for (struct block *b = p->bucket[i]; b; b = next) {
                next = b->next;
                if (b->hva < hva + size && hva < b->hva + b->bytes)
                    block_kill(c, p, b, true);
            }
        }
        for (struct block *b = p->cross, *next; b; b = next) {
            next = b->cross_next;
            if ((hva & ~PAGE_MASK) < tail_of(b))
                block_kill(c, b->page, b, true);
        }
    }
    if (p->nblocks && p->writes <= WRITES_TO_DROP)
        return false;
    page_kill_blocks(c, p);
    p->drops++;
    p->writes = 0;
    atomic_store(&p->state, PAGE_OPEN);
    return true;
}

void code_written(struct cpu *cpu, hva_t hva, unsigned size)
{
    struct code_pages *c = cpu->domain->code;
    struct code_page *p;

    cpu->counters[CC_code_writes]++;
    code_lock(c);
    p = page_find(c, hva & PAGE_MASK);
    if (p && p->state != PAGE_OPEN)
        cpu->counters[CC_page_drops] += page_written(c, p, hva, size);
    code_unlock(c);
}

void code_page_filled(struct cpu *cpu, gva_t gva, hva_t page)
{
    struct code_pages *c = cpu->domain->code;
    struct code_page *p;

    code_lock(c);
    p = page_find(c, page);
    if (p)
        p->gen++;
    code_unlock(c);
}

void cpu_code_unverify(struct cpu *cpu)
{
    atomic_fetch_add(&cpu->domain->code->gen, 1);
}

/* The caller's host memory goes away: called outside of guest mode, after all cpus passed a safepoint. */
void code_drop_host_range(struct cpu_domain *d, hva_t hva, size_t size)
{
    struct code_pages *c = d->code;

    code_lock(c);
    for (unsigned i = 0; i < PAGES_HASH; i++) {
        struct code_page *next;

        for (struct code_page *p = c->hash[i]; p; p = next) {
            next = p->next;
            if (p->hva - (hva & PAGE_MASK) < size + (hva & ~PAGE_MASK))
                page_remove(c, p);
        }
    }
    code_unlock(c);
}

/* ---- making and destroying ---- */
int code_domain_init(struct cpu_domain *d)
{
    const char *wish = getenv("ANYKVM_CODE_CACHE"); /* MiB: tests reach the limit soon */
    const uint64_t limit = wish ? strtoull(wish, NULL, 0) << 20 : 0;

    d->code = calloc(1, sizeof(*d->code));
    if (!d->code)
        return -1;
    d->code->limit = limit && limit < CODE_LIMIT ? limit : CODE_LIMIT;
    return 0;
}

void code_domain_destroy(struct cpu_domain *d)
{
    if (!d->code)
        return;
    code_evict_all(d->code);
    free_chains(d->code, d->code->dead, d->code->dead_pages);
    free_chains(d->code, d->code->waiting, d->code->waiting_pages);
    pool_destroy(&d->code->pool);
    free(d->code);
    d->code = NULL;
}

int code_cpu_init(struct cpu *cpu)
{
    struct code_pages *c = cpu->domain->code;

    cpu->code = calloc(1, sizeof(*cpu->code));
    if (!cpu->code)
        return -1;
    code_lock(c);
    if (c->ncpus < CPU_MAX)
        c->cpus[c->ncpus++] = cpu;
    code_unlock(c);
    return 0;
}

void code_cpu_destroy(struct cpu *cpu)
{
    struct code_pages *c = cpu->domain->code;

    if (!cpu->code)
        return;
    code_lock(c);
    for (unsigned i = 0; i < c->ncpus; i++)
        if (c->cpus[i] == cpu) {
            c->cpus[i] = c->cpus[--c->ncpus];
            break;
        }
    code_unlock(c);
    free(cpu->code);
    cpu->code = NULL;
}
