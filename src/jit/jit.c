/* SPDX-License-Identifier: MIT
 * jit.c: the engine's run loop: finds blocks, has hot ones translated, serves the slow paths of translated code, and
 * keeps translations right when code changes. */
#include "jit.h"
#include "tr.h"
#include <cpuid.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <ucontext.h>

static uint64_t code_address(const struct jit *j, const struct jit_block *jb)
{
    return (uint64_t)(j->rx + jb->code);
}

/* Where to go right now: next_block() has looked at what the guard asks. */
static uint64_t body_address(const struct jit *j, const struct jit_block *jb)
{
    return (uint64_t)(j->rx + jb->body);
}

static unsigned hash_of(hva_t hva, uint32_t key)
{
    return ((hva ^ (uint64_t)key << 40) * 0x9e3779b97f4a7c15ull) >> 46;
}
_Static_assert(JIT_HASH == 1 << 18, "hash_of");

struct jit_block *jit_find(struct jit *j, hva_t hva, uint32_t key)
{
    struct jit_block *jb = j->hash[hash_of(hva, key)];

    while (jb && (jb->hva != hva || jb->key != key))
        jb = jb->hash_next;
    return jb;
}

/* ---- code that changes ---- */

/* A dead block's entry leads to the dispatcher. Ten bytes (ENTRY_BYTES); who is inside is past them. */
static void entry_close(struct jit *j, const struct jit_block *jb)
{
    struct emit e = {.w = j->rw + jb->code, .bias = (uint64_t)(j->rx - j->rw)};

    e_mov_imm32(&e, H_RCX, jb->exit_desc);
    e_jmp(&e, (uint64_t)(j->rx + j->slow));
}

/* Links to a dead block stay: its entry leads on to the block that was made anew from the same place. */
static void entry_forward(struct jit *j, struct jit_block *dead, struct jit_block *jb)
{
    struct emit e = {.w = j->rw + dead->code, .bias = (uint64_t)(j->rx - j->rw)};

    if (dead->hva != jb->hva || dead->key != jb->key)
        return;
    dead->forward_next = jb->forwards;
    jb->forwards = dead;
    e_jmp(&e, code_address(j, jb));
}

/* Nothing finds it any more. */
static void drop_one(struct jit *j, struct jit_block *jb)
{
    struct jit_block **link = &j->hash[hash_of(jb->hva, jb->key)];

    while (*link && *link != jb)
        link = &(*link)->hash_next;
    if (*link)
        *link = jb->hash_next;
    jb->dead = true;
    entry_close(j, jb);
    for (struct jit_block *d = jb->forwards; d; d = d->forward_next)
        entry_close(j, d);
    jb->forwards = NULL;
}

/* With its unit: the others may jump into it, and keep no flags that it does not read. */
static void block_drop(struct jit *j, struct jit_block *jb)
{
    for (; !jb->dead; jb = jb->unit_next)
        drop_one(j, jb);
}

void jit_add(struct jit *j, struct jit_block *jb)
{
    struct jit_block **head = &j->hash[hash_of(jb->hva, jb->key)];

    jb->hash_next = *head;
    *head = jb;
}

static void drop_all(struct jit *j)
{
    for (unsigned i = 0; i < JIT_HASH; i++)
        while (j->hash[i])
            block_drop(j, j->hash[i]);
}

/* Kills that happened since: of all cpus' blocks. A killed block's memory may be another's by now: nothing of it is
 * read. */
void jit_process_kills(struct jit *j)
{
    const struct code_pages *c = j->cpu->domain->code;
    const uint64_t now = atomic_load_explicit(&c->kills, memory_order_acquire);

    if (likely(now == j->kills_seen))
        return;
    for (uint64_t k = now - j->kills_seen <= KILL_RING ? j->kills_seen : now; k != now; k++) {
        const struct killed *d = &c->kill_ring[k % KILL_RING];

        for (uint32_t place = 0; place < KEY_PLACES; place++) {
            struct jit_block *jb = jit_find(j, d->hva, d->key | place * KEY_EDGE);

            if (jb && jb->serial == d->serial)
                block_drop(j, jb);
        }
    }
    /* the writer may have gone round the ring meanwhile; it fills a slot before it counts */
    if (atomic_load(&c->kills) - j->kills_seen >= KILL_RING)
        drop_all(j);
    j->kills_seen = now;
}

static bool page_same(const struct jit_page *p)
{
    uint64_t v;

    for (uint64_t lines = p->lines; lines; lines &= lines - 1) {
        const unsigned at = __builtin_ctzll(lines) * 64;

        for (unsigned i = at; i < at + 64; i += 8)
            if (host_ld64((void *)(p->hva + i), &v) || v != *(const uint64_t *)(p->copy + i))
                return false;
    }
    return true;
}

/* Bytes of the block in its (first) page. */
static unsigned bytes_in_page(const struct jit_block *jb)
{
    const unsigned room = PAGE_SIZE - (jb->hva & ~PAGE_MASK);

    return jb->b->bytes < room ? jb->b->bytes : room;
}

static bool block_same(const struct jit_page *p, const struct jit_block *jb)
{
    return !memcmp(p->copy + (jb->hva & ~PAGE_MASK), jb->b->src, bytes_in_page(jb));
}

void page_cover(struct jit_page *p, const struct jit_block *jb)
{
    const unsigned first = (jb->hva & ~PAGE_MASK) >> 6, last = ((jb->hva & ~PAGE_MASK) + bytes_in_page(jb) - 1) >> 6;

    if (unlikely(!p->hva)) { /* the block died while it was translated */
        p->stale = true;
        return;
    }
    for (unsigned n = first; n <= last; n++) {
        if (p->lines >> n & 1)
            continue;
        if (host_copy(p->copy + 64 * n, (void *)(p->hva + 64 * n), 64))
            p->stale = true;
        p->lines |= 1ull << n;
    }
    if (!block_same(p, jb))
        p->stale = true;
}

/* An executable page was entered anew: links inside of it lead to blocks that nobody compared. */
static void verify_page(struct jit *j, struct jit_page *p, uint64_t stamp)
{
    p->stamp = stamp;
    if (likely(!p->stale && page_same(p)))
        return;
    p->stale = false;
    for (unsigned n = 0; n < 64; n++)
        if ((p->lines >> n & 1) && host_copy(p->copy + 64 * n, (void *)(p->hva + 64 * n), 64))
            p->stale = true;
    for (struct jit_block **link = &p->blocks, *jb; (jb = *link);) {
        if (!jb->dead && (!code_verify(j->cpu, jb->b) || !block_same(p, jb)))
            block_drop(j, jb);
        if (jb->dead) { /* descriptors still name it */
            *link = jb->page_next;
            jb->page_next = p->dead;
            p->dead = jb;
        } else {
            link = &jb->page_next;
        }
    }
}

/* Somebody may have written guest memory without a word (cpu_code_unverify()): links between pages end, so that each
 * page is entered through next_block() again, where its stamp is looked at. */
static void process_unverify(struct jit *j)
{
    const uint64_t now = atomic_load(&j->cpu->domain->code->gen);

    if (likely(now == j->unverify_seen))
        return;
    j->unverify_seen = now;
    flat_exec_changed(j->cpu);
}

/* ---- finding what runs next ---- */

/* Not an instruction over a page's end whose bytes must be compared at each entry. */
static bool translatable(const struct block *b)
{
    return !b->page2 || !code_selfcheck(b);
}

/* ANYKVM_STAT's time of decoding and translating is this thread's, a system call: one of so many is measured. */
#define SAMPLE 16u

static uint64_t time_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* 0: this one is not measured. The vector state is saved. */
static uint64_t time_begin(struct jit *j)
{
    return unlikely(j->count) && j->sample++ % SAMPLE == 0 ? time_now() : 0;
}

static void time_end(struct jit *j, uint64_t start)
{
    if (unlikely(start))
        j->cpu->counters[CC_translate_ns] += (time_now() - start) * SAMPLE;
}

static struct jit_block *translate_now(struct jit *j, struct block *b, gva_t rip)
{
    const uint32_t key = jit_key(b->key, rip);
    struct jit_block *jb = jit_find(j, b->hva, key);
    uint64_t start;

    if (jb && unlikely(jb->serial != b->serial)) { /* killed by another cpu this moment */
        block_drop(j, jb);
        jb = NULL;
    }
    if (jb)
        return jb;
    if (b->heat < j->heat) {
        b->heat++;
        return NULL;
    }
    host_fpu_save(j->cpu);
    start = time_begin(j);
    jb = jit_translate(j, b, rip);
    time_end(j, start);
    for (struct jit_block *x = jb; x;) {
        const hva_t hva = atomic_load(&x->b->hva);

        if (!hva || hva != x->hva) { /* killed by another cpu, perhaps before it was told that this is translated */
            block_drop(j, jb);
            return NULL;
        }
        x = x->unit_next == jb ? NULL : x->unit_next;
    }
    return jb;
}

/* code_lookup(), with the time that it takes when it decodes. */
static int lookup(struct jit *j, struct block **b)
{
    struct cpu *cpu = j->cpu;
    const uint64_t decoded = cpu->counters[CC_insns_decoded];
    uint64_t start;
    int st;

    if (likely(!j->count))
        return code_lookup(cpu, b);
    host_fpu_save(cpu);
    start = time_begin(j);
    st = code_lookup(cpu, b);
    if (cpu->counters[CC_insns_decoded] != decoded)
        time_end(j, start);
    return st;
}

void jit_page_current(struct jit *j, struct jit_page *p)
{
    const uint64_t stamp = code_stamp(j->cpu, p->code);

    if (unlikely(p->stamp != stamp))
        verify_page(j, p, stamp);
}

/* false: it is not what memory holds any more. A block that is new leads to older ones of its page. */
static bool page_fresh(struct jit *j, struct jit_block *jb)
{
    jit_page_current(j, jb->page);
    return likely(!jb->dead);
}

/* A block over a page's end, at rip: its second page must be where it was, and its links lead to blocks there. */
static bool second_page_same(struct jit *j, const struct jit_block *jb)
{
    const gva_t gva2 = (j->cpu->s.rip | ~PAGE_MASK) + 1;
    hva_t hva2;

    j->status = mem_exec_page(j->cpu, gva2, &hva2);
    return j->status == CPU_OK && hva2 == jb->page2->hva && code_verify(j->cpu, jb->b);
}

static void second_page_enter(struct jit *j, const struct jit_block *jb)
{
    struct cpu *cpu = j->cpu;
    const gva_t rip = cpu->s.rip;
    const uint64_t stamp = code_stamp(cpu, jb->page2->code);

    if (unlikely(jb->page2->stamp != stamp))
        verify_page(j, jb->page2, stamp);
    flat_note_exec(cpu, (rip | ~PAGE_MASK) + 1);
    link_list(j, jb->guard, (rip | ~PAGE_MASK) + 1);
    guard_set(j, j->desc[jb->guard].patch, rip & PAGE_MASK);
}

/* What was translated already, without asking code.c: its page is compared as a whole when it was entered anew. */
static struct jit_block *find_translated(struct jit *j)
{
    struct cpu *cpu = j->cpu;
    const gva_t rip = cpu->s.rip;
    struct jit_block *jb;
    hva_t hva;

    if (cpu->s.mode != MODE_64 || !cpu_canonical(rip) || cpu->s.paging == PAGING_NONE)
        return NULL;
    j->status = mem_exec_page(cpu, rip, &hva);
    if (unlikely(j->status != CPU_OK))
        return NULL;
    jb = jit_find(j, hva | (rip & ~PAGE_MASK), jit_key(cpu->s.insn_key, rip));
    if (!jb || (unlikely(jb->selfcheck) && !code_verify(cpu, jb->b)))
        return NULL;
    if (unlikely(jb->page2) && !second_page_same(j, jb))
        return NULL;
    return page_fresh(j, jb) ? jb : NULL;
}

static uint64_t jc_key(const struct jit *j, gva_t rip)
{
    return -(rip + ((uint64_t)j->cpu->salt << 32));
}

/* They are 16 bits: nothing keeps one from before. */
static void salts_restart(struct jit *j)
{
    pair_reset(j);
    memset(j->jc, 0, JC_BYTES);
    memset(j->salts, 0, sizeof(j->salts));
    for (uint32_t i = 0; i < j->ndesc; i++)
        if ((j->desc[i].kind == DESC_CROSS || j->desc[i].kind == DESC_ENTER) && j->desc[i].patch)
            guard_clear(j, j->desc[i].patch);
    j->next_salt = 0;
}

static struct jit_salt *salt_new(struct jit *j, const struct jit_salt *want)
{
    struct jit_salt *s;

    for (s = j->salts; s < j->salts + JIT_SALTS; s++)
        if (s->salt && s->key == want->key && s->gen[0] == want->gen[0] && s->gen[1] == want->gen[1])
            return s;
    if (unlikely(j->next_salt == SALT_MAX))
        salts_restart(j);
    s = &j->salts[j->salt_victim++ % JIT_SALTS];
    *s = *want;
    s->salt = ++j->next_salt;
    return s;
}

/* What an indirect branch or a link to another page may use depends on mode and mappings: each combination has a number
 * of its own. Code of the lower half, and user code, sees both halves' generations; other code caches targets in the
 * upper half only. */
static void choose_salt(struct jit *j)
{
    struct cpu *cpu = j->cpu;
    const uint32_t key = cpu->s.insn_key;
    const bool both = (key & KEY_CPL3) || !(cpu->s.rip >> 63);
    const struct jit_salt want = {.gen = {both ? cpu->exec_gen[0] : 0, cpu->exec_gen[1]}, .key = key};
    const bool user = key & KEY_CPL3;
    struct jit_salt *s = j->salt[user];
    bool other = false;

    if (unlikely(!s || !s->salt || s->key != key || s->gen[0] != want.gen[0] || s->gen[1] != want.gen[1])) {
        other = true;
        s = j->salt[user] = salt_new(j, &want);
    }
    pair_select(j, user, other);
    cpu->salt = s->salt << 16; /* the upper 16 bits of the word that attention begins */
    cpu->s.hot_spare[HOT_SALT] = (uint64_t)s->salt << 48;
    cpu->s.hot_spare[HOT_JC] = (uint64_t)jc_base(j, s->salt);
}

static void remember(struct jit *j, gva_t rip, const struct jit_block *jb)
{
    struct jc_entry *e = &((struct jc_entry *)j->cpu->s.hot_spare[HOT_JC])[jc_index(rip)];

    e->key = jc_key(j, rip);
    e->code = code_address(j, jb);
    e->page = rip & PAGE_MASK;
}

/* The translation of what is at rip now; NULL: only the interpreter, or a status. */
static struct jit_block *next_block(struct jit *j, struct block **interpreted)
{
    struct cpu *cpu = j->cpu;
    struct jit_block *jb;
    struct block *b = NULL;

    *interpreted = NULL;
    jit_process_kills(j);
    j->status = CPU_OK;
    jb = find_translated(j);
    if (unlikely(!jb)) {
        if (j->status != CPU_OK)
            return NULL;
        j->status = lookup(j, &b);
        if (j->status != CPU_OK || !b)
            return NULL;
        if (cpu->s.mode == MODE_64 && cpu->s.paging != PAGING_NONE && translatable(b))
            jb = translate_now(j, b, cpu->s.rip);
        if (!jb || !page_fresh(j, jb)) {
            *interpreted = b;
            return NULL;
        }
    }
    flat_note_room(cpu);
    choose_salt(j);
    if (unlikely(jb->page2))
        second_page_enter(j, jb);
    flat_note_exec(cpu, cpu->s.rip); /* links and caches will lead here without a look into the TLB */
    cpu->s.hot_spare[HOT_PAGE] = cpu->s.rip & PAGE_MASK;
    if (jb->uses_fpu && !cpu->fpu_live)
        host_fpu_load(cpu);
    return jb;
}

/* What an indirect branch to rip would find, for who knows mode and mappings only now. */
static uint64_t remembered(struct jit *j)
{
    struct cpu_state *s = &j->cpu->s;
    const struct jc_entry *e;

    choose_salt(j);
    e = &((struct jc_entry *)s->hot_spare[HOT_JC])[jc_index(s->rip)];
    if (e->key != jc_key(j, s->rip))
        return 0;
    s->hot_spare[HOT_PAGE] = e->page;
    return e->code;
}

/* Only ATT_STEP: a shadow or RF is over after one instruction, which need not leave for the run loop. false: leave. */
static bool step_over(struct jit *j)
{
    struct cpu *cpu = j->cpu;
    uint32_t att = atomic_load_explicit(&cpu->attention, memory_order_relaxed);

    for (unsigned n = 0; unlikely(att == ATT_STEP) && n < 2; n++) {
        const int st = interp_one_step(cpu);

        if (st == CPU_FAULT || st == CPU_VMEXIT) {
            j->status = st;
            return false;
        }
        att = atomic_load_explicit(&cpu->attention, memory_order_relaxed);
    }
    return likely(!att);
}

/* From a slow path: on in translated code, or 0 to leave to the run loop. */
static uint64_t go_on(struct jit *j)
{
    struct block *b;
    struct jit_block *jb;
    uint64_t code;

    j->status = CPU_AGAIN;
    if (unlikely(j->check) || !step_over(j))
        return 0;
    code = remembered(j);
    if (likely(code))
        return code;
    jb = next_block(j, &b);
    if (!jb)
        return 0;
    remember(j, j->cpu->s.rip, jb);
    return body_address(j, jb);
}

/* ---- slow paths ---- */

void patch_jump(struct jit *j, uint32_t at, uint64_t target)
{
    const int32_t d = (int32_t)(target - ((uint64_t)(j->rx + at) + 4));

    memcpy(j->rw + at, &d, 4);
}

static unsigned insn_offset(const struct jit_block *jb, unsigned index)
{
    unsigned at = jb->hva & ~PAGE_MASK;

    for (unsigned i = 0; i < index; i++)
        at += jb->b->insn[i].len;
    return at;
}

/* A branch whose target is not canonical faults itself, with nothing done: take back the stack pointer, and let the
 * interpreter raise it. (Calls look before they push.) */
static bool branch_undo(struct jit *j, const struct jit_desc *d)
{
    struct cpu_state *s = &j->cpu->s;
    const struct insn *in = &d->jb->b->insn[d->index];
    gva_t at;

    if (likely(cpu_canonical(s->rip)) || !(op_rows[in->op].attrs & A_BRANCH))
        return false;
    at = s->hot_spare[HOT_PAGE] + insn_offset(d->jb, d->index);
    if (s->rip == at + in->len) /* fell out at the end */
        return false;
    if (in->op == OP_CALL)
        s->gpr[R_RSP] += 8;
    else if (in->op == OP_RET)
        s->gpr[R_RSP] -= 8 + (in->nops ? (uint16_t)in->imm : 0);
    s->rip = at;
    j->status = in->fn(j->cpu, in);
    return true;
}

/* A jump inside of a page, or behind a guard: link it when its target is translated. */
static uint64_t slow_exit(struct jit *j, const struct jit_desc *d)
{
    struct cpu *cpu = j->cpu;
    const struct jit_desc desc = *d;
    const uint64_t resets = j->resets;
    struct block *b;
    struct jit_block *jb;

    const gva_t from = cpu->s.hot_spare[HOT_PAGE];

    __builtin_prefetch(j->rw + desc.patch, 1); /* read from memory while the target is looked for */
    __builtin_prefetch(desc.jb);
    cpu->s.rip = from + (int64_t)desc.disp;
    if (unlikely(branch_undo(j, d)))
        return 0;
    j->status = CPU_AGAIN;
    if (atomic_load_explicit(&cpu->attention, memory_order_relaxed) || j->check)
        return 0;
    jb = next_block(j, &b);
    if (!jb)
        return 0;
    if (j->resets == resets && unlikely(desc.jb->dead) && d == &j->desc[desc.jb->exit_desc])
        entry_forward(j, desc.jb, jb);
    if (desc.patch && j->resets == resets && !desc.jb->dead && jb->key == desc.jb->key) {
        if (desc.kind == DESC_CROSS)
            link_cross(j, (uint32_t)(d - j->desc), from, cpu->s.rip & PAGE_MASK, code_address(j, jb));
        else if (desc.kind == DESC_EXIT)
            patch_jump(j, desc.patch, code_address(j, jb));
    }
    return body_address(j, jb);
}

static bool is_string(const struct insn *in)
{
    return op_rows[in->op].attrs & A_STRING;
}

/* Of a string instruction the destination. */
static gva_t access_address(const struct cpu *cpu, const struct insn *in)
{
    const unsigned size = in->o[0].size;

    if (is_string(in))
        return cpu->s.gpr[R_RDI];
    if (in->mem == 0 && in->op >= OP_BT && in->op <= OP_BTC && in->o[1].kind == OPK_REG) { /* a bit string */
        const uint64_t bit = cpu->s.gpr[in->o[1].reg];

        return in_lin64(cpu, in) + (uint64_t)((size == 8 ? (int64_t)bit : (int32_t)bit) >> 3 & -(int64_t)size);
    }
    if (in->mem != 0xff)
        return in_lin64(cpu, in);
    return cpu->s.gpr[R_RSP] - (op_rows[in->op].attrs & A_STACK && (in->o[0].rw & OPND_W) ? 0 : 8);
}

/* What translated code looks at for it. */
static void looked_at(struct cpu *cpu, const struct insn *in, gva_t gva)
{
    flat_looked_at(cpu, gva);
    flat_looked_at(cpu, gva + 63); /* what it reaches into */
    if (!is_string(in))
        return;
    flat_looked_at(cpu, cpu->s.gpr[R_RSI]);
    flat_looked_at(cpu, cpu->s.gpr[R_RSI] + 7);
}

/* The page of an access, and the one behind it that it may reach into. */
static void fill(struct cpu *cpu, gva_t gva)
{
    flat_fill(cpu, gva);
    if ((gva & ~PAGE_MASK) > PAGE_SIZE - 64)
        flat_fill(cpu, (gva | ~PAGE_MASK) + 1);
}

static void fill_access(struct cpu *cpu, const struct insn *in, gva_t gva)
{
    fill(cpu, gva);
    if (is_string(in)) /* done, upwards: */
        fill(cpu, cpu->s.gpr[R_RSI] - in->opsize);
}

/* What the rest of the block accesses without a check, looked at again: true where it may go on. */
static bool held_ok(struct jit *j, const struct jit_desc *d)
{
    struct cpu_state *s = &j->cpu->s;

    for (uint32_t n = d->held; n < d->held + d->nheld; n++) {
        const struct jit_held *h = &j->held[n];
        const gva_t lo = s->gpr[h->base] + (h->index < 16 ? s->gpr[h->index] << h->scale : 0) + (int64_t)h->lo,
                    last = lo + h->span - 1;
        bool apart; /* two pages, and not as far from each other as in the host */
        uint64_t word;

        flat_looked_at(j->cpu, lo);
        flat_looked_at(j->cpu, last);
        word = flat_word(j->cpu, lo, h->write);
        apart = flat_word(j->cpu, last, h->write) != word;

        if (unlikely(apart) && !d->patch && ++d->jb->lost == GROUPS_LOST && !d->jb->dead) {
            __atomic_fetch_or(&d->jb->b->heat, HEAT_TWO, __ATOMIC_RELAXED);
            block_drop(j, d->jb);
        }
        if (apart || !word || !cpu_canonical(lo))
            return false;
        if (h->slot)
            j->slots[h->slot].word = word;
        else
            s->hot_spare[d->jb->key & KEY_CPL3 ? HOT_STACK_USER : HOT_STACK_SUPER] = word;
    }
    return true;
}

static uint64_t slow_insn(struct jit *j, const struct jit_desc *d)
{
    struct cpu *cpu = j->cpu;
    struct cpu_state *s = &cpu->s;
    struct block *b = d->jb->b;
    const struct insn *in = &b->insn[d->index];
    const uint64_t gen0 = cpu->exec_gen[0], gen1 = cpu->exec_gen[1], drops = j->page_drops;
    uint64_t resume = (uint64_t)(j->rx + d->resume);
    gva_t gva = 0;
    int st;

    s->rip = s->hot_spare[HOT_PAGE] + (int64_t)d->disp;
    if (d->recipe)
        jit_flags_again(j, d->recipe);
    if (d->size) {
        gva = access_address(cpu, in);
        looked_at(cpu, in, gva);
    }
    j->slow_ops[in->op]++;
    st = in->fn(cpu, in);
    cpu->counters[CC_insns]++;
    if (likely(st == CPU_OK)) {
        s->rip += in->len;
        if (unlikely(j->kills_seen != atomic_load_explicit(&cpu->domain->code->kills, memory_order_relaxed)))
            jit_process_kills(j);
        if (d->size)
            fill_access(cpu, in, gva);
        cpu->counters[CC_smc_stops] += d->jb->dead;
        if (d->jb->dead || d->kind == DESC_TRACE || gen0 != cpu->exec_gen[0] || gen1 != cpu->exec_gen[1] ||
            drops != j->page_drops)
            return go_on(j);
        if (unlikely(d->nheld && !held_ok(j, d))) {
            if (!d->patch) {
                j->left_amid = true;
                return go_on(j);
            }
            resume = (uint64_t)(j->rx + d->patch);
        }
        if (d->jb->uses_fpu && !cpu->fpu_live)
            host_fpu_load(cpu);
        return resume;
    }
    if (st == CPU_RESCAN)
        s->rip += in->len;
    if (st == CPU_RESCAN || st == CPU_JUMP || st == CPU_AGAIN) {
        if (d->size)
            fill(cpu, gva);
        return go_on(j);
    }
    cpu->counters[CC_insns]--;
    if (st == CPU_VMEXIT)
        emul_remember(cpu, in);
    if (st == CPU_FAULT && likely(!j->check) && !atomic_load_explicit(&cpu->attention, memory_order_relaxed))
        st = cpu_exception(cpu);
    if (st == CPU_OK)
        return go_on(j);
    j->status = st;
    return 0;
}

/* Only general registers and flags: there is no reason to leave, and dead flags need not be right. */
static uint64_t slow_stay(struct jit *j, const struct jit_desc *d)
{
    const struct insn *in = &d->jb->b->insn[d->index];

    j->cpu->s.rip = j->cpu->s.hot_spare[HOT_PAGE] + (int64_t)d->disp; /* a source of LEA */
    j->slow_ops[in->op]++;
    in->fn(j->cpu, in);
    j->cpu->counters[CC_insns]++;
    if (d->jb->uses_fpu && !j->cpu->fpu_live)
        host_fpu_load(j->cpu);
    return (uint64_t)(j->rx + d->resume);
}

/* A site's prediction failed SLOT_PERIOD times since the last look: often, or it is to be seen how often; or that was
 * seen. */
static uint64_t slow_miss(struct jit *j, const struct jit_desc *d)
{
    struct jit_slot *slot = &j->slots[d->disp];
    const uint32_t now = (uint32_t)(__builtin_ia32_rdtsc() >> 6);
    const bool sampled = tr_sampled(j, d), often = sampled ? !slot->left : now - slot->since < SLOT_OFTEN;

    if (often) {
        tr_make_plain(j, d);
        j->cpu->counters[CC_sites_plain]++;
    } else {
        tr_sample(j, d, !sampled);
    }
    if (often || sampled)
        *slot = (struct jit_slot){.word = slot->word, .left = sampled ? SLOT_LATER : SLOT_PERIOD, .since = now};
    else
        *slot = (struct jit_slot){.word = slot->word, .left = SAMPLE_MISSES, .since = SAMPLE_HITS};
    return (uint64_t)(j->rx + d->resume);
}

uint64_t jit_slow(struct cpu *cpu, uint32_t desc)
{
    struct jit *j = cpu->engine_data;
    const struct jit_desc *d = &j->desc[desc];

    j->slow_kinds[d->kind]++;
    switch (d->kind) {
    case DESC_INSN:
    case DESC_TRACE:
        return slow_insn(j, d);
    case DESC_STAY:
        return slow_stay(j, d);
    case DESC_EXIT:
    case DESC_ENTER:
    case DESC_CROSS:
        return slow_exit(j, d);
    case DESC_RIP:
        return unlikely(branch_undo(j, d)) ? 0 : go_on(j);
    case DESC_FPU:
        host_fpu_load(cpu);
        return (uint64_t)(j->rx + d->resume);
    case DESC_MISS:
        return slow_miss(j, d);
    case DESC_LOOP:
        return loop_back_edge(j, d);
    case DESC_LIMIT:
        return loop_limit(j, d);
    default: /* DESC_POLL */
        cpu->s.rip = cpu->s.hot_spare[HOT_PAGE] + (int64_t)d->disp;
        if (d->recipe)
            jit_flags_again(j, d->recipe);
        j->status = CPU_AGAIN;
        return 0;
    }
}

/* ---- the engine ---- */

static int jit_init(struct cpu *cpu)
{
    const char *heat = getenv("ANYKVM_JIT_HEAT"); /* 0: tests have each block's first execution translated */
    struct jit *j = pool_map(sizeof(*j));

    if (!j || flat_init(cpu) < 0) {
        pool_unmap(j, sizeof(*j));
        return -1;
    }
    j->cpu = cpu;
    j->heat = heat ? (uint32_t)strtoul(heat, NULL, 0) : JIT_HEAT;
    j->loop_first = j->heat ? LOOP_FIRST : 1;
    j->hardened = cpu_hardened || getenv("ANYKVM_JIT_HARDENED"); /* the variable is the tests' */
    cpu->engine_data = j;
    if (cache_init(j) < 0)
        return -1;
    slow_stat_add(j);
    return 0;
}

static void jit_destroy(struct cpu *cpu)
{
    struct jit *j = cpu->engine_data;

    if (!j)
        return;
    slow_stat_remove(j);
    cache_destroy(j);
    flat_destroy(cpu);
    pool_unmap(j, sizeof(*j));
    cpu->engine_data = NULL;
}

static bool jit_supported(void)
{
    unsigned a, b, c, d;

    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & 1u << 8); /* BMI2: pext */
}

int jit_enter(struct jit *j, const struct jit_block *jb)
{
    struct cpu *cpu = j->cpu;
    void (*enter)(uint64_t, uint64_t) = (void (*)(uint64_t, uint64_t))(j->rx + j->enter);

    enter(body_address(j, jb), cpu->flat);
    return j->status;
}

static int safepoint(struct jit *j)
{
    process_unverify(j);
    j->record.loop = 0;
    return code_safepoint(j->cpu);
}

/* Links hold 31 bits of them. */
static void restart_generations(struct jit *j)
{
    cache_reset(j);
    memset(j->salts, 0, sizeof(j->salts));
    memset(j->salt, 0, sizeof(j->salt));
    flat_restart_generations(j->cpu);
}

static int run_some(struct jit *j)
{
    struct cpu *cpu = j->cpu;
    struct jit_block *jb;
    struct block *b;
    int st;

    if (unlikely(atomic_load_explicit(&cpu->attention, memory_order_relaxed))) {
        st = safepoint(j);
        if (st != CPU_OK)
            return st;
        if (atomic_load(&cpu->attention) & ATT_STEP)
            return interp_one_step(cpu);
    }
    if (unlikely(cpu_trace_mask & CPU_TRACE_INSN))
        return interp_one_step(cpu);
    if (unlikely(cache_full(j)))
        cache_reset(j);
    else if (unlikely((cpu->exec_gen[0] | cpu->exec_gen[1]) >> 30))
        restart_generations(j);
    if (unlikely(j->record.loop))
        return loop_record(j);
    jb = next_block(j, &b);
    if (jb)
        return unlikely(j->check) ? j->check(j, jb) : jit_enter(j, jb);
    if (j->status != CPU_OK)
        return j->status;
    if (!b)
        return interp_one(cpu);
    /* one block, where it may be translated or lead to something that is: a loop would stay in the interpreter */
    return interp_blocks(cpu, b, cpu->s.mode == MODE_64 && translatable(b) ? 1 : UINT64_MAX);
}

/* The hot words are derived state: a reset clears them. */
static void hot_words(struct jit *j)
{
    struct cpu *cpu = j->cpu;

    cpu->s.hot_spare[HOT_MASK] = FLAT_INDEX_MASK;
    cpu->s.hot_spare[HOT_MASK_ROR] = FLAT_INDEX_MASK >> 8;
    cpu->s.hot_spare[HOT_MASK_JC] = (uint64_t)(JC_SLOTS - 1) * sizeof(struct jc_entry);
    cpu->s.hot_spare[HOT_SLOW] = (uint64_t)jit_slow;
    for (unsigned n = HOT_STACK_USER; n <= HOT_STACK_SUPER; n++)
        if (!cpu->s.hot_spare[n])
            cpu->s.hot_spare[n] = SLOT_COLD;
}

int jit_run_alone(struct cpu *cpu, struct block *b)
{
    struct jit *j = cpu->engine_data;
    struct jit_block *jb;

    host_fpu_save(cpu);
    j->alone = true;
    if (j->translated_blocks & 1) /* both ways */
        b->heat |= HEAT_TWO;
    if (!(jb = jit_translate(j, b, cpu->s.rip))) {
        cache_reset(j);
        jb = jit_translate(j, b, cpu->s.rip);
    }
    j->alone = false;
    hot_words(j);
    choose_salt(j);
    cpu->s.hot_spare[HOT_PAGE] = cpu->s.rip & PAGE_MASK;
    cpu_attend(cpu, ATT_KICK); /* nothing runs behind it */
    if (jb->uses_fpu)
        host_fpu_load(cpu);
    return jit_enter(j, jb);
}

static int jit_run(struct cpu *cpu)
{
    struct jit *j = cpu->engine_data;
    int st;

    hot_words(j);
    j->record.loop = 0;
    code_run_begin(cpu);
    process_unverify(j);
    do {
        st = run_some(j);
        if (st == CPU_FAULT)
            st = cpu_exception(cpu);
    } while (st != CPU_VMEXIT);
    code_run_end(cpu);
    return st;
}

/* A host fault of translated code: its instruction goes to the slow path, where the interpreter finds the cause. */
static int jit_fault(struct cpu *cpu, int sig, void *siginfo, void *ucontext)
{
    struct jit *j = cpu->engine_data;
    greg_t *regs = ((ucontext_t *)ucontext)->uc_mcontext.gregs;
    const uint64_t off = (uint64_t)regs[16 /* RIP */] - (uint64_t)j->rx;
    uint32_t lo = 0, hi = j->nsite;

    if (off >= j->used)
        return 0;
    if (off >= j->bounce[0] && off < j->bounce_out_end) {
        regs[16] = (greg_t)(j->rx + (off < j->bounce_end ? j->bounce_end : j->bounce_out_end));
        return 1;
    }
    while (lo < hi) {
        const uint32_t mid = (lo + hi) / 2;
        if (j->site[mid].rip < off)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == j->nsite || j->site[lo].rip != off)
        return 0;
    regs[16] = (greg_t)(j->rx + j->site[lo].stub);
    return 1;
}

const struct engine jit_engine = {.name = "jit",
                                  .supported = jit_supported,
                                  .init = jit_init,
                                  .destroy = jit_destroy,
                                  .run = jit_run,
                                  .page_dropped = link_page_dropped,
                                  .fault = jit_fault};

__attribute__((constructor)) static void register_jit(void)
{
    engine_register(&jit_engine);
}
