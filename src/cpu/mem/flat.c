/* SPDX-License-Identifier: MIT
 * flat.c: flat tables of translations (flat.h). Filled entries are logged, so that a flush costs what the fills cost.
 * Entries of global pages in the upper half survive a change of address space. The others are put aside then, for the
 * next time that this space is selected without a flush (PCIDs): what drops entries of the tables drops those too. */
#include "mem/flat.h"
#include "engine.h"
#include "mem/mem_int.h"
#include <stdlib.h>
#include <sys/mman.h>

#define LOG_MAX     (1u << 17)
#define CHUNK       32768ull /* bytes of a table that are populated at once: 2,048 pages, 8 MB of linear space */
#define CHUNKS_MAX  2048u    /* then everything is dropped and given back: 64 MB of tables */
#define CHUNK_SLOTS 8192u
#define CHUNKS_KEEP 128u /* of the upper half, at least */
#define CHUNKS_LOW  64u  /* of the lower half: then they are given back, or each process that was would stay */
#define OFTEN       256u
/* What a page of the host's page tables maps of ours: 512 MB of linear space; only unmapping gives such pages back. */
#define REGION_BITS 29u
#define REGIONS     (1u << (48 - REGION_BITS)) /* a table */
#define REGIONS_MAX 2048u
#define GLOBALS     1024u
#define GLOBAL_EXEC 1024u
#define EXEC_SEEN   (1u << 18) /* bits: a large program has ten thousand pages of code */
#define SETS        16u        /* address spaces whose entries are put aside */
#define SET_MAX     128u       /* entries of one, the youngest: to put back what is not used costs as well */
#define SET_FILTER  512u

struct flat_log {
    uint32_t n;
    uint64_t index[LOG_MAX]; /* linear page << 2 | access mode */
};

struct flat_saved {
    uint64_t index, word[2];
};
struct flat_set { /* entries of an address space that is not selected */
    const void *space;
    uint32_t generation;
    uint32_t n;                       /* the last n of entry[SET_MAX] */
    uint64_t age;                     /* of its last use */
    uint64_t filter[SET_FILTER / 64]; /* linear pages */
    struct flat_saved *entry;
};

struct flat_unit {
    uint8_t *table[AM_COUNT + 1]; /* the last stays empty: nothing may be cached (breakpoints, alignment checks) */
    const void *space;
    uint32_t generation;
    uint64_t world[4];
    uint64_t next_gen;
    uint64_t exec_seen[EXEC_SEEN / 64]; /* a filter: pages that flat_note_exec() named since exec_gen[1] changed */
    uint32_t exec_noted;                /* bits that are set in it */
    bool upper_local;                   /* code of the upper half that is not global was seen */
    struct flat_log local, global;
    struct flat_set set[SETS];
    struct flat_saved saved[SETS][SET_MAX];
    uint64_t set_clock;
    struct chunk {
        uint64_t at;      /* 0: free */
        bool filled;      /* all of it is there: not just what was looked at, which costs a page on some hosts */
    } chunk[CHUNK_SLOTS]; /* hash set */
    unsigned chunks, low[AM_COUNT + 1]; /* low: of them, the lower half's of each table */
    uint32_t changes, emptied;          /* of address space; when all chunks were last given back */
    unsigned keep;                      /* more chunks than that in the upper half: all are */
    unsigned regions;
    uint64_t region[(AM_COUNT + 1) * REGIONS / 64]; /* bit set: looked at */
    uint64_t global_page[GLOBALS];                  /* linear page | 1: the last walk found it global */
    struct {
        gva_t page; /* | access mode */
        hva_t hva;
    } global_exec[GLOBAL_EXEC]; /* executable global pages: valid in every address space, like the tables' globals */
    struct {
        const void *space;
        uint32_t generation;
        uint64_t gen;
    } spaces[32]; /* exec_gen[0] of recent address spaces */
    unsigned space_victim;
};

static uint64_t hash(uint64_t n, unsigned bits)
{
    return n * 0x9e3779b97f4a7c15ull >> (64 - bits);
}

static uint64_t base_of(const struct flat_unit *f, unsigned am)
{
    return (uint64_t)f->table[am] - CPU_SPAN + FLAT_BASE;
}

static void *reserve(void *at, size_t size)
{
    void *p = mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at ? MAP_FIXED : 0),
                   -1, 0);

    if (p == MAP_FAILED)
        return p;
    madvise(p, size, MADV_NOHUGEPAGE);
    madvise(p, size, MADV_DONTFORK);
    madvise(p, size, MADV_DONTDUMP);
    return p;
}

int flat_init(struct cpu *cpu)
{
    struct flat_unit *f = calloc(1, sizeof(*f));

    if (!f)
        return -1;
    for (unsigned i = 0; i <= AM_COUNT; i++) {
        uint8_t *p = reserve(NULL, CPU_SPAN + FLAT_SIZE);

        if (p == MAP_FAILED ||
            mremap(cpu, 0, CPU_SPAN, MREMAP_MAYMOVE | MREMAP_FIXED, p) == MAP_FAILED) { /* old size 0: once more */
            while (i--)
                munmap(f->table[i] - CPU_SPAN, CPU_SPAN + FLAT_SIZE);
            free(f);
            return -1;
        }
        madvise(p, CPU_SPAN, MADV_DONTFORK);
        madvise(p, CPU_SPAN, MADV_DONTDUMP);
        f->table[i] = p + CPU_SPAN;
    }
    for (unsigned i = 0; i < SETS; i++)
        f->set[i].entry = f->saved[i];
    f->next_gen = 256;
    f->keep = CHUNKS_KEEP;
    f->emptied = -OFTEN;
    cpu->exec_gen[0] = cpu->exec_gen[1] = 128; /* multiples of 128: attention bits are below */
    cpu->flatu = f;
    cpu->flat = base_of(f, AM_COUNT);
    return 0;
}

void flat_destroy(struct cpu *cpu)
{
    struct flat_unit *f = cpu->flatu;

    if (!f)
        return;
    for (unsigned i = 0; i <= AM_COUNT; i++)
        munmap(f->table[i] - CPU_SPAN, CPU_SPAN + FLAT_SIZE);
    free(f);
    cpu->flatu = NULL;
}

static uint64_t *entry(struct flat_unit *f, unsigned am, gva_t gva)
{
    return (uint64_t *)(f->table[am] + (gva & FLAT_INDEX_MASK) / PAGE_SIZE * FLAT_ENTRY);
}

static struct chunk *chunk_find(struct flat_unit *f, uint64_t at)
{
    unsigned i = hash(at / CHUNK, 13);

    while (f->chunk[i].at && f->chunk[i].at != at)
        i = (i + 1) % CHUNK_SLOTS;
    return &f->chunk[i];
}
_Static_assert(CHUNK_SLOTS == 1 << 13, "chunk_find");

static gva_t index_gva(uint64_t index)
{
    return (uint64_t)((int64_t)(index >> 2 << 28) >> 16);
}

static void log_clear(struct flat_unit *f, struct flat_log *log)
{
    for (uint32_t i = 0; i < log->n; i++) {
        uint64_t *e = entry(f, log->index[i] & 3, log->index[i] >> 2 << PAGE_SHIFT);
        e[0] = e[1] = 0;
    }
    log->n = 0;
}

/* ---- entries put aside ---- */

static void sets_drop(struct flat_unit *f)
{
    for (struct flat_set *s = f->set; s < f->set + SETS; s++)
        s->n = 0;
}

static uint64_t index_page(uint64_t index)
{
    return index >> 2;
}

static unsigned set_bit(uint64_t page)
{
    return hash(page, 9);
}
_Static_assert(SET_FILTER == 1 << 9, "set_bit");

/* In every space: the page may be global, or another PCID's. */
static void sets_drop_page(struct flat_unit *f, gva_t gva)
{
    const uint64_t page = (gva & FLAT_INDEX_MASK) >> PAGE_SHIFT;
    const unsigned bit = set_bit(page);

    for (struct flat_set *s = f->set; s < f->set + SETS; s++) {
        if (likely(!s->n || !(s->filter[bit / 64] >> bit % 64 & 1)))
            continue;
        for (struct flat_saved *e = s->entry + SET_MAX - s->n; e < s->entry + SET_MAX; e++)
            if (index_page(e->index) == page)
                e->word[0] = e->word[1] = 0;
    }
}

static struct flat_set *set_of_selected(struct flat_unit *f)
{
    for (struct flat_set *s = f->set; s < f->set + SETS; s++)
        if (s->n && s->space == f->space && s->generation == f->generation)
            return s;
    return NULL;
}

/* One that has nothing, or what was not used for longest. */
static struct flat_set *set_free(struct flat_unit *f)
{
    struct flat_set *victim = f->set;

    for (struct flat_set *s = f->set; s < f->set + SETS; s++) {
        if (!s->n || s->space == f->space) /* an older generation's: nobody comes back to it */
            return s;
        if (s->age < victim->age)
            victim = s;
    }
    return victim;
}

/* The local entries go, the youngest of them aside. */
static void set_save(struct flat_unit *f)
{
    struct flat_set *s = set_free(f);
    unsigned n = 0;

    s->space = f->space;
    s->generation = f->generation;
    s->age = ++f->set_clock;
    memset(s->filter, 0, sizeof(s->filter));
    for (uint32_t i = f->local.n; i-- > 0;) {
        const uint64_t index = f->local.index[i];
        uint64_t *e = entry(f, index & 3, index_page(index) << PAGE_SHIFT);

        if ((e[0] | e[1]) && n < SET_MAX) { /* once: it is cleared */
            s->entry[SET_MAX - ++n] = (struct flat_saved){index, {e[0], e[1]}};
            s->filter[set_bit(index_page(index)) / 64] |= 1ull << set_bit(index_page(index)) % 64;
        }
        e[0] = e[1] = 0;
    }
    f->local.n = 0;
    s->n = n;
}

/* The space is selected again, with nothing flushed since: its entries, but where the table's memory was given back. */
static void set_restore(struct flat_unit *f)
{
    struct flat_set *s = set_of_selected(f);
    const struct chunk *known = NULL;

    if (!s)
        return;
    for (const struct flat_saved *saved = s->entry + SET_MAX - s->n; saved < s->entry + SET_MAX; saved++) {
        uint64_t *e = entry(f, saved->index & 3, index_page(saved->index) << PAGE_SHIFT);
        const uint64_t at = (uint64_t)e & ~(CHUNK - 1);

        if (!known || known->at != at) {
            struct chunk *c = chunk_find(f, at);

            if (!c->at || !c->filled)
                continue;
            known = c;
        }
        if (e[0] | e[1] || !(saved->word[0] | saved->word[1])) /* a global page's stays */
            continue;
        e[0] = saved->word[0];
        e[1] = saved->word[1];
        f->local.index[f->local.n++] = saved->index;
    }
    s->n = 0;
}

static void sets_drop_writes(struct flat_unit *f, hva_t page)
{
    for (struct flat_set *s = f->set; s < f->set + SETS; s++)
        for (struct flat_saved *e = s->entry + SET_MAX - s->n; e < s->entry + SET_MAX; e++)
            if (e->word[1] && (!page || wfilter_slot(index_gva(e->index) + e->word[1] - 1) == wfilter_slot(page)))
                e->word[1] = 0;
}

/* ---- generations of what code is where ---- */

static void exec_gen_global(struct cpu *cpu)
{
    cpu->counters[CC_exec_gens]++;
    cpu->exec_gen[0] = (cpu->flatu->next_gen += 128);
    cpu->exec_gen[1] = cpu->exec_gen[0];
    memset(cpu->flatu->spaces, 0, sizeof(cpu->flatu->spaces));
    memset(cpu->flatu->exec_seen, 0, sizeof(cpu->flatu->exec_seen));
    cpu->flatu->exec_noted = 0;
}

void flat_restart_generations(struct cpu *cpu)
{
    cpu->flatu->next_gen = 0;
    exec_gen_global(cpu);
}

static uint64_t exec_slot(gva_t gva)
{
    return hash(gva >> PAGE_SHIFT, 18);
}
_Static_assert(EXEC_SEEN == 1 << 18, "exec_slot");

static bool exec_seen(const struct flat_unit *f, gva_t gva)
{
    return f->exec_seen[exec_slot(gva) >> 6] >> (exec_slot(gva) & 63) & 1;
}

void flat_note_exec(struct cpu *cpu, gva_t gva)
{
    struct flat_unit *f = cpu->flatu;

    if (exec_seen(f, gva))
        return;
    f->exec_seen[exec_slot(gva) >> 6] |= 1ull << (exec_slot(gva) & 63);
    f->exec_noted++;
}

void flat_note_room(struct cpu *cpu)
{
    if (unlikely(cpu->flatu->exec_noted >= EXEC_SEEN / 8)) /* each dropped page would seem to be one of code */
        exec_gen_global(cpu);
}

void flat_exec_changed(struct cpu *cpu)
{
    exec_gen_global(cpu);
}

/* exec_gen[1] outlives a change of address space: that is right for global pages alone. */
void flat_note_exec_fill(struct cpu *cpu, gva_t gva, bool global)
{
    if (cpu->flatu && gva >> 63 && !global)
        cpu->flatu->upper_local = true;
}

void flat_world_flushed(struct cpu *cpu)
{
    flat_drop_all(cpu);
    if (cpu->flatu)
        cpu->flatu->upper_local = false;
}

void flat_forget_spaces(struct cpu *cpu)
{
    if (cpu->flatu)
        exec_gen_global(cpu);
}

/* ---- executable global pages: no walk, no comparison, when another address space goes there ---- */

static unsigned global_exec_slot(gva_t gva, unsigned am)
{
    return (gva >> PAGE_SHIFT ^ (uint64_t)am << 8) & (GLOBAL_EXEC - 1);
}

void flat_global_exec_set(struct cpu *cpu, gva_t gva, unsigned am, hva_t page)
{
    struct flat_unit *f = cpu->flatu;
    const unsigned n = global_exec_slot(gva, am);

    if (!f || am == AM_USER || !(gva >> 63))
        return;
    f->global_exec[n].page = (gva & PAGE_MASK) | am;
    f->global_exec[n].hva = page;
}

hva_t flat_global_exec(struct cpu *cpu, gva_t gva, unsigned am)
{
    const struct flat_unit *f = cpu->flatu;
    const unsigned n = global_exec_slot(gva, am);

    return f && am != AM_USER && f->global_exec[n].page == ((gva & PAGE_MASK) | am) ? f->global_exec[n].hva : 0;
}

void flat_drop_all(struct cpu *cpu)
{
    struct flat_unit *f = cpu->flatu;

    if (!f)
        return;
    log_clear(f, &f->local);
    log_clear(f, &f->global);
    sets_drop(f);
    memset(f->global_exec, 0, sizeof(f->global_exec));
    exec_gen_global(cpu);
}

/* This generation of the selected space is another one now, for later returns to it too. */
static void exec_gen_local(struct cpu *cpu)
{
    struct flat_unit *f = cpu->flatu;

    cpu->counters[CC_exec_gens]++;
    cpu->exec_gen[0] = (f->next_gen += 128);
    for (unsigned i = 0; i < ARRAY_SIZE(f->spaces); i++)
        if (f->spaces[i].space == f->space && f->spaces[i].generation == f->generation)
            f->spaces[i].gen = cpu->exec_gen[0];
}

void flat_drop_page(struct cpu *cpu, gva_t gva)
{
    struct flat_unit *f = cpu->flatu;

    if (!f)
        return;
    sets_drop_page(f, gva);
    for (unsigned am = 0; am < AM_COUNT; am++) {
        uint64_t *e = entry(f, am, gva);
        const unsigned n = global_exec_slot(gva, am);

        if (f->global_exec[n].page == ((gva & PAGE_MASK) | am))
            f->global_exec[n].page = 0;
        if (chunk_find(f, (uint64_t)e & ~(CHUNK - 1))->at) /* a look at an untouched page costs one on some hosts */
            e[0] = e[1] = 0;
    }
    if (!exec_seen(f, gva))
        return;
    if (gva >> 63) {
        exec_gen_global(cpu);
    } else if (!cpu->engine || !cpu->engine->page_dropped || !cpu->engine->page_dropped(cpu, gva)) {
        exec_gen_local(cpu);
    }
}

static void log_drop_writes(struct flat_unit *f, struct flat_log *log, hva_t page)
{
    for (uint32_t i = 0; i < log->n; i++) {
        const gva_t gva = index_gva(log->index[i]);
        uint64_t *e = entry(f, log->index[i] & 3, gva);

        if (e[1] && (!page || wfilter_slot(gva + e[1] - 1) == wfilter_slot(page)))
            e[1] = 0;
    }
}

void flat_drop_writes(struct cpu *cpu, hva_t page)
{
    if (!cpu->flatu)
        return;
    log_drop_writes(cpu->flatu, &cpu->flatu->local, page);
    log_drop_writes(cpu->flatu, &cpu->flatu->global, page);
    sets_drop_writes(cpu->flatu, page);
}

static uint64_t space_gen(struct flat_unit *f, const void *space, uint32_t generation)
{
    unsigned i;

    for (i = 0; i < ARRAY_SIZE(f->spaces); i++)
        if (f->spaces[i].space == space && f->spaces[i].generation == generation)
            return f->spaces[i].gen;
    i = f->space_victim++ % ARRAY_SIZE(f->spaces);
    f->spaces[i].space = space;
    f->spaces[i].generation = generation;
    f->spaces[i].gen = (f->next_gen += 128);
    return f->spaces[i].gen;
}

static void trim(struct cpu *);

void flat_select(struct cpu *cpu, const void *space, uint32_t generation, const uint64_t world[4])
{
    struct flat_unit *f = cpu->flatu;

    if (!f)
        return;
    if (unlikely(world[0] != f->world[0] || world[1] != f->world[1] || world[2] != f->world[2] ||
                 world[3] != f->world[3])) {
        if (world[0] != f->world[0] || world[2] != f->world[2] || world[3] != f->world[3])
            f->upper_local = true; /* what was cached in that world is not known */
        memcpy(f->world, world, sizeof(f->world));
        f->space = NULL;
        flat_drop_all(cpu);
    }
    if (space != f->space || generation != f->generation) {
        if (f->space && space != f->space)
            set_save(f);
        log_clear(f, &f->local);
        f->space = space;
        f->generation = generation;
        f->changes++;
        trim(cpu);
        if (unlikely(f->upper_local))
            exec_gen_global(cpu);
        cpu->exec_gen[0] = space_gen(f, space, generation);
        set_restore(f);
    }
}

uint64_t flat_base(const struct cpu *cpu, enum acc_mode am, bool slow)
{
    return cpu->flatu ? base_of(cpu->flatu, slow ? AM_COUNT : am) : 0;
}

/* ---- filling ---- */

void flat_note_global(struct cpu *cpu, gva_t gva, enum acc_mode am, bool global)
{
    struct flat_unit *f = cpu->flatu;
    const uint64_t page = gva & PAGE_MASK;

    if (f && am != AM_USER)
        f->global_page[hash(page, 10)] = global ? page | 1 : 0;
}

/* One call for all of it: each tells the host's other processors. */
static void table_empty(struct flat_unit *f, unsigned table, size_t size)
{
    if (reserve(f->table[table], size) == MAP_FAILED)
        madvise(f->table[table], size, MADV_DONTNEED); /* no room for the moment: what is mapped stays */
}

/* Give everything back: a guest may touch a page in each of very many chunks, or look at addresses all over. */
static void give_back(struct cpu *cpu)
{
    struct flat_unit *f = cpu->flatu;

    host_fpu_save(cpu);
    flat_drop_all(cpu);
    for (unsigned i = 0; i <= AM_COUNT; i++)
        table_empty(f, i, FLAT_SIZE);
    memset(f->chunk, 0, sizeof(f->chunk));
    memset(f->region, 0, sizeof(f->region));
    memset(f->low, 0, sizeof(f->low));
    f->chunks = f->regions = 0;
}

static unsigned chunks_low(const struct flat_unit *f)
{
    unsigned n = 0;

    for (unsigned i = 0; i <= AM_COUNT; i++)
        n += f->low[i];
    return n;
}

static unsigned table_of(const struct flat_unit *f, uint64_t at)
{
    unsigned i = 0;

    while (at - (uint64_t)f->table[i] >= FLAT_SIZE)
        i++;
    return i;
}

/* The lower half, whose entries are local. */
static void give_back_low(struct cpu *cpu)
{
    struct flat_unit *f = cpu->flatu;
    struct chunk keep[CHUNKS_MAX];
    unsigned n = 0;

    host_fpu_save(cpu);
    log_clear(f, &f->local);
    sets_drop(f);
    for (const struct chunk *c = f->chunk; c < f->chunk + CHUNK_SLOTS; c++)
        if (c->at && c->at - (uint64_t)f->table[table_of(f, c->at)] >= FLAT_SIZE / 2)
            keep[n++] = *c;
    for (unsigned i = 0; i <= AM_COUNT; i++) {
        uint64_t *region = &f->region[i * REGIONS / 64];

        if (!f->low[i])
            continue;
        f->low[i] = 0;
        table_empty(f, i, FLAT_SIZE / 2);
        for (unsigned k = 0; k < REGIONS / 2 / 64; k++) {
            f->regions -= (unsigned)__builtin_popcountll(region[k]);
            region[k] = 0;
        }
    }
    memset(f->chunk, 0, sizeof(f->chunk));
    f->chunks = n;
    while (n--)
        *chunk_find(f, keep[n].at) = keep[n];
}

/* At a change of address space. Entries of global pages stay for good: once in a while they go as well. A guest that
 * soon has as many again is given more room. */
static void trim(struct cpu *cpu)
{
    struct flat_unit *f = cpu->flatu;
    const unsigned low = chunks_low(f);
    const uint32_t since = f->changes - f->emptied;

    if (unlikely(low > CHUNKS_LOW))
        give_back_low(cpu);
    if (likely(f->chunks - low <= f->keep || low > CHUNKS_LOW))
        return;
    if (since < OFTEN && f->keep < CHUNKS_MAX)
        f->keep *= 2;
    else if (since > 4 * OFTEN && f->keep > CHUNKS_KEEP)
        f->keep /= 2;
    f->emptied = f->changes;
    give_back(cpu);
}

static struct chunk *chunk_touch(struct cpu *cpu, unsigned table, gva_t gva)
{
    struct flat_unit *f = cpu->flatu;
    const uint64_t at = (uint64_t)entry(f, table, gva) & ~(CHUNK - 1);
    const uint32_t region = table * REGIONS | (uint32_t)((gva & FLAT_INDEX_MASK) >> REGION_BITS);
    struct chunk *c = chunk_find(f, at);

    if (unlikely(!c->at)) {
        const bool known = f->region[region / 64] >> region % 64 & 1;

        if (f->chunks == CHUNKS_MAX || (!known && f->regions == REGIONS_MAX)) {
            give_back(cpu);
            c = chunk_find(f, at);
        }
        f->regions += !known;
        f->region[region / 64] |= 1ull << region % 64;
        *c = (struct chunk){.at = at};
        f->chunks++;
        f->low[table] += !(gva >> 47 & 1);
    }
    return c;
}

void flat_looked_at(struct cpu *cpu, gva_t gva)
{
    const unsigned am = cpu->s.acc_mode;

    chunk_touch(cpu, likely(cpu->flat == base_of(cpu->flatu, am)) ? am : AM_COUNT, gva);
}

uint64_t flat_find(struct cpu *cpu, gva_t gva, bool write)
{
    const enum acc_mode am = cpu->s.acc_mode;

    if (!cpu->flatu || cpu->flat != base_of(cpu->flatu, am))
        return 0;
    chunk_touch(cpu, am, gva);
    return flat_word(cpu, gva, write);
}

uint64_t flat_peek(struct cpu *cpu, gva_t gva, enum acc_mode am, bool write)
{
    struct flat_unit *f = cpu->flatu;

    if (!f || am != cpu->s.acc_mode || cpu->flat != base_of(f, am) || !cpu_canonical(gva) ||
        !chunk_find(f, (uint64_t)entry(f, am, gva) & ~(CHUNK - 1))->filled)
        return 0;
    return flat_word(cpu, gva, write);
}

void flat_fill(struct cpu *cpu, gva_t gva)
{
    struct flat_unit *f = cpu->flatu;
    const unsigned am = cpu->s.acc_mode;
    const uint64_t page = gva & PAGE_MASK, tag = page | cpu->tlb_tag;
    const struct tlb_entry *t = &cpu->tlb[gva >> PAGE_SHIFT & (TLB_ENTRIES - 1)];
    const bool global = gva >> 63 && f->global_page[hash(page, 10)] == (page | 1);
    struct flat_log *log = global ? &f->global : &f->local;
    uint64_t *e, read, write;
    struct chunk *c;

    if (cpu->flat != base_of(f, am) || !cpu_canonical(gva))
        return;
    read = t->tag[TLB_READ] == tag ? t->delta + 1 : 0;
    write = t->tag[TLB_WRITE] == tag ? t->delta + 1 : 0;
    if (!(read | write))
        return;
    e = entry(f, am, gva);
    c = chunk_touch(cpu, am, gva);
    if (!c->filled) {
        host_fpu_save(cpu);
        madvise((void *)c->at, CHUNK, MADV_POPULATE_WRITE);
        c->filled = true;
    }
    if (!(e[0] | e[1])) {
        if (log->n == LOG_MAX)
            log_clear(f, log);
        log->index[log->n++] = (page & FLAT_INDEX_MASK) >> PAGE_SHIFT << 2 | am;
    }
    e[0] = read;
    e[1] = write;
}
