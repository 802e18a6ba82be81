/* SPDX-License-Identifier: MIT
 * cache.c: the code cache of a cpu: memory, the trampolines between C and translated code, look-up by block, kills. */
#include "jit.h"
#include "tr.h"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

_Static_assert(JIT_CHUNK >= JIT_BLOCK_MAX && JIT_CACHE % JIT_CHUNK == 0, "cache_populate: once a block is enough");
#define SLOT_BYTES (JIT_SLOTS * sizeof(struct jit_slot))

static int cache_map(uint8_t *at, int prot, int fd)
{
    return mmap(at, JIT_CACHE, prot, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, 0) == MAP_FAILED ? -1 : 0;
}

/* ANYKVM_JIT_CACHE=MiB: tests have it full soon. */
static uint32_t cache_limit(void)
{
    const char *wish = getenv("ANYKVM_JIT_CACHE");
    const unsigned long mib = wish ? strtoul(wish, NULL, 0) : 0;

    return mib >= JIT_CACHE_MIN && mib < JIT_CACHE >> 20 ? (uint32_t)mib << 20 : JIT_CACHE;
}

int cache_init(struct jit *j)
{
    const int fd = memfd_create("anykvm-jit", MFD_CLOEXEC);

    j->map_fd = -1;
    j->limit = cache_limit();
    j->tr = calloc(1, sizeof(*j->tr));
    j->desc = pool_map(JIT_DESCS * sizeof(*j->desc));
    j->held = pool_map(JIT_DESCS * sizeof(*j->held));
    j->site = pool_map(JIT_DESCS * sizeof(*j->site));
    j->recipe = pool_map(JIT_DESCS * sizeof(*j->recipe));
    j->jc = pool_map(JC_BYTES);
    j->loop = pool_map(JIT_LOOPS * sizeof(*j->loop));
    if (fd < 0)
        return -1;
    if (ftruncate(fd, JIT_CACHE) < 0 || !j->tr || !j->desc || !j->held || !j->site || !j->recipe || !j->jc || !j->loop) {
        close(fd);
        return -1;
    }
    j->rw = pool_reserve(JIT_CACHE);
    j->rx = pool_reserve(JIT_CACHE + SLOT_BYTES);
    if (!j->rw || !j->rx || cache_map(j->rw, PROT_READ | PROT_WRITE, fd) ||
        cache_map(j->rx, PROT_READ | PROT_EXEC, fd)) {
        close(fd);
        return -1;
    }
    close(fd);
    j->slots = (struct jit_slot *)(j->rx + JIT_CACHE);
    madvise(j->rw, JIT_CACHE, MADV_DONTDUMP);
    madvise(j->rw, JIT_CACHE, MADV_DONTFORK);
    madvise(j->rx, JIT_CACHE + SLOT_BYTES, MADV_DONTDUMP);
    madvise(j->rx, JIT_CACHE + SLOT_BYTES, MADV_DONTFORK);
    madvise(j->slots, SLOT_BYTES, MADV_NOHUGEPAGE);
    cache_trampolines(j);
    if (pair_init(j))
        return -1;
    j->count = getenv("ANYKVM_STAT");
    j->map_fd =
        getenv("ANYKVM_JIT_MAP") ? open(getenv("ANYKVM_JIT_MAP"), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
    return 0;
}

/* A file has no huge pages unless one asks for each: code that is spread over a hundred MB spends a tenth of its time
 * waiting for small ones' translations. Linux before 6.1 has no such call, then pages are made in runs. */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static bool populate_huge(struct jit *j, uint32_t at)
{
    return at % POOL_HUGE == 0 && !madvise(j->rw + at, POOL_HUGE, MADV_COLLAPSE) &&
           !madvise(j->rx + at, POOL_HUGE, MADV_COLLAPSE);
}

/* Pages of a file are made one by one, at a fault for each of the two mappings: in runs they cost a fraction. */
static void populate(struct jit *j, uint32_t at)
{
    madvise(j->rw + at, JIT_CHUNK, MADV_POPULATE_WRITE);
    madvise(j->rx + at, JIT_CHUNK, MADV_POPULATE_READ);
}

void cache_populate(struct jit *j)
{
    if (likely(j->used + JIT_BLOCK_MAX <= j->populated) || j->populated >= j->limit)
        return;
    if (populate_huge(j, j->populated)) {
        j->populated += POOL_HUGE;
        return;
    }
    populate(j, j->populated);
    j->populated += JIT_CHUNK;
}

/* Slow paths have pages of their own: what runs is dense. */
void cache_cold(struct jit *j, uint32_t size)
{
    if (likely(j->cold_end - j->cold >= size))
        return;
    j->cold_low -= JIT_CHUNK;
    j->cold = j->cold_low;
    j->cold_end = j->cold + JIT_CHUNK;
    if (j->cold >= j->cold_populated)
        return;
    if (populate_huge(j, j->cold_populated - POOL_HUGE)) {
        j->cold_populated -= POOL_HUGE;
        return;
    }
    populate(j, j->cold);
    j->cold_populated = j->cold;
}

static void cold_reset(struct jit *j)
{
    j->cold = j->cold_end = j->cold_low = j->limit;
}

static void forget_blocks(struct jit *j)
{
    memset(j->link_to, 0, sizeof(j->link_to));
    memset(j->hash, 0, sizeof(j->hash));
    memset(j->pages, 0, sizeof(j->pages));
    pool_reset(&j->pool);
}

void cache_destroy(struct jit *j)
{
    free(j->tr);
    pool_destroy(&j->pool);
    pool_unmap(j->desc, JIT_DESCS * sizeof(*j->desc));
    pool_unmap(j->held, JIT_DESCS * sizeof(*j->held));
    pool_unmap(j->site, JIT_DESCS * sizeof(*j->site));
    pool_unmap(j->recipe, JIT_DESCS * sizeof(*j->recipe));
    pool_unmap(j->jc, JC_BYTES);
    pool_unmap(j->loop, JIT_LOOPS * sizeof(*j->loop));
    pair_destroy(j);
    pool_unmap(j->rw, JIT_CACHE);
    pool_unmap(j->rx, JIT_CACHE + SLOT_BYTES);
    if (j->map_fd >= 0)
        close(j->map_fd);
}

/* Everything is translated anew. Never while translated code of this cpu is on the stack. */
void cache_reset(struct jit *j)
{
    host_fpu_save(j->cpu);
    forget_blocks(j);
    pair_reset(j);
    j->used = j->base;
    cold_reset(j);
    j->ndesc = 1;
    j->nsite = 0;
    j->nslot = SLOT_MASKS + 1;
    j->nheld = 0;
    j->nloop = 1;
    j->record.loop = 0;
    j->nrecipe = RECIPE_OF_SAVED + 1;
    memset(j->jc, 0, JC_BYTES);
    j->resets++;
    j->cpu->counters[CC_cache_resets]++;
}

/* ---- trampolines ---- */

static void emit_reload(struct emit *e)
{
    e_mov_load(e, H_R15, rm_cpu(CPU(flat))); /* from any of its mappings */
    e_mov_load(e, H_R14, rm_cpu(CPU(s.flags)));
    e_push(e, H_R14);
    e1(e, 0x9d); /* popfq */
    for (unsigned g = 0; g < 16; g++)
        if (tr_host_reg[g] != H_NONE)
            e_mov_load(e, tr_host_reg[g], rm_cpu(CPU_GPR(g)));
}

static void emit_spill(struct emit *e)
{
    for (unsigned g = 0; g < 16; g++)
        if (tr_host_reg[g] != H_NONE)
            e_mov_store(e, rm_cpu(CPU_GPR(g)), tr_host_reg[g]);
    e1(e, 0x9c); /* pushfq */
    e_pop(e, H_R14);
    e_op(e, 0, 0, 0x81, 4, rm_reg(H_R14)); /* and r14d, imm32 */
    e4(e, F_OSZAPC);
    e_mov_store(e, rm_cpu(CPU(s.flags)), H_R14);
}

static const uint8_t saved[] = {H_RBX, H_RBP, H_R12, H_R13, H_R14, H_R15};

/* void enter(uint64_t code, uint64_t flat) */
static void emit_enter(struct jit *j, struct emit *e)
{
    j->enter = e->w - j->rw;
    for (unsigned i = 0; i < sizeof(saved); i++)
        e_push(e, saved[i]);
    e_lea(e, H_RSP, rm_mem(H_RSP, -8));           /* aligned: a call may follow */
    e_op(e, EF_W, 0, 0x89, H_RDI, rm_reg(H_RCX)); /* mov rcx, rdi */
    e_op(e, EF_W, 0, 0x89, H_RSI, rm_reg(H_R15));
    e_mov_store(e, rm_cpu(CPU(pair.host)), H_RSP);
    e_mov_load(e, H_RSP, rm_cpu(CPU(pair.guest)));
    emit_reload(e);
    e_jmp_reg(e, H_RCX);
    j->leave = e->w - j->rw;
    e_lea(e, H_RSP, rm_mem(H_RSP, 8));
    for (unsigned i = sizeof(saved); i--;)
        e_pop(e, saved[i]);
    e1(e, 0xc3);
}

/* ecx = descriptor: spill, ask jit_slow(), go where it says. */
static void emit_slow(struct jit *j, struct emit *e)
{
    uint8_t *leave;

    j->slow = e->w - j->rw;
    emit_spill(e);
    e_op(e, 0, 0, 0x89, H_RCX, rm_reg(H_RSI)); /* mov esi, ecx */
    e_mov_imm64(e, H_RDI, (uint64_t)j->cpu);
    e_mov_store(e, rm_cpu(CPU(pair.guest)), H_RSP);
    e_mov_load(e, H_RSP, rm_cpu(CPU(pair.host)));
    e_call_rm(e, rm_cpu(CPU_HOT(HOT_SLOW)));
    e_test_reg(e, H_RAX);
    leave = e_jcc_later(e, 4);
    e_mov_load(e, H_RSP, rm_cpu(CPU(pair.guest)));
    e_op(e, EF_W, 0, 0x89, H_RAX, rm_reg(H_RCX)); /* mov rcx, rax */
    emit_reload(e);
    e_jmp_reg(e, H_RCX);
    e_fix32(e, leave, j->rw + j->leave);
}

/* rcx = 0 where the pages of the linear addresses T0 and T0 + rcx are both in the table, or both are not, and as far
 * from each other in host memory: an access to both can be made at once. Flags are untouched. */
static void emit_neighbours(struct jit *j, struct emit *e, bool write)
{
    struct rm word = {.mem = true, .reg = H_R15, .scale = 3, .disp = (int32_t)CPU_SPAN - FLAT_BASE + (write ? 8 : 0)};

    j->neighbours[write] = e->w - j->rw;
    e_push(e, H_RAX);
    e_lea(e, H_RAX, (struct rm){.mem = true, .reg = T0, .index = T1});
    e_pext(e, H_RAX, H_RAX, rm_cpu(CPU_HOT(HOT_MASK)));
    e_lea(e, H_RAX, (struct rm){.mem = true, .reg = H_RAX, .index = H_RAX});
    word.index = H_RAX;
    e_mov_load(e, H_RAX, word);
    e_op(e, EF_W, 0, 0xf7, 2, rm_reg(H_RAX)); /* not */
    e_pext(e, T1, T0, rm_cpu(CPU_HOT(HOT_MASK)));
    e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = T1});
    word.index = T1;
    e_mov_load(e, T1, word);
    e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = H_RAX, .disp = 1});
    e_pop(e, H_RAX);
    e1(e, 0xc3);
}

static void emit_bounce_word(struct emit *e, uint8_t page, bool write)
{
    e_pext(e, H_RAX, page, rm_cpu(CPU_HOT(HOT_MASK)));
    e_lea(e, H_RAX, (struct rm){.mem = true, .reg = H_RAX, .index = H_RAX});
    e_mov_load(e, H_RAX,
               (struct rm){.mem = true,
                           .reg = H_R15,
                           .index = H_RAX,
                           .scale = 3,
                           .disp = (int32_t)CPU_SPAN - FLAT_BASE + (write ? 8 : 0)});
    e_test_reg(e, H_RAX);
}

/* 64 bytes from the page's edge rdx on, or before it (from = -64), by the page's word in rax */
static void emit_bounce_copy(struct emit *e, int32_t from)
{
    for (int32_t i = 0; i < 64; i += 8) {
        e_mov_load(e, T1, (struct rm){.mem = true, .reg = H_RDX, .index = H_RAX, .disp = from + i - 1});
        e_mov_store(e, rm_cpu(CPU(bounce) + 64 + from + i), T1);
    }
}

static void emit_bounce_begin(struct emit *e)
{
    e_push(e, H_RAX);
    e_push(e, H_RDX);
    e_lea(e, H_RDX, rm_mem(T0, 64));
    e_op(e, EF_W, 0, 0x81, 4, rm_reg(H_RDX)); /* and rdx, -4096: where the second page begins */
    e4(e, (uint32_t)-4096);
}

static void emit_bounce_return(struct emit *e, uint32_t result)
{
    e_mov_imm32(e, T1, result);
    e_pop(e, H_RDX);
    e_pop(e, H_RAX);
    e1(e, 0xc3);
}

static void emit_bounce_done(struct emit *e)
{
    e_op(e, EF_W, 0, 0x2b, T0, rm_reg(H_RDX)); /* sub */
    e_lea(e, T0, (struct rm){.mem = true, .reg = H_R15, .index = T0, .disp = CPU(bounce) + 64});
    emit_bounce_return(e, 0);
}

/* T0 = linear address of a read of at most 64 bytes over two pages. Both pages are there: T0 = host address of a copy
 * with the same low 6 bits, rcx = 0. Else rcx is not 0. Flags are lost. A host fault inside leads to bounce_end. */
static void emit_bounce(struct jit *j, struct emit *e)
{
    uint8_t *none[2];

    j->bounce[0] = e->w - j->rw;
    emit_bounce_begin(e);
    emit_bounce_word(e, H_RDX, false);
    none[0] = e_jcc_later(e, 4);
    emit_bounce_copy(e, 0);
    emit_bounce_word(e, T0, false);
    none[1] = e_jcc_later(e, 4);
    emit_bounce_copy(e, -64);
    emit_bounce_done(e);
    j->bounce_end = e->w - j->rw;
    e_fix32(e, none[0], e->w);
    e_fix32(e, none[1], e->w);
    emit_bounce_return(e, 1);
}

/* The same for a write, which is made to the buffer: nothing is copied yet, both words are kept. */
static void emit_bounce_write(struct jit *j, struct emit *e)
{
    j->bounce[1] = e->w - j->rw;
    emit_bounce_begin(e);
    for (unsigned second = 2; second--;) {
        emit_bounce_word(e, second ? H_RDX : T0, true);
        e_fix32(e, e_jcc_later(e, 4), j->rw + j->bounce_end);
        e_mov_store(e, rm_cpu(CPU(bounce_word) + 8 * (int32_t)second), H_RAX);
    }
    e_mov_store(e, rm_cpu(CPU(bounce_gva)), T0);
    emit_bounce_done(e);
}

static const uint8_t out_saved[] = {H_RAX, H_RDX, H_RSI, H_RDI};

static void emit_out_return(struct emit *e, uint32_t result)
{
    e_mov_imm32(e, T1, result);
    for (unsigned i = sizeof(out_saved); i--;)
        e_pop(e, out_saved[i]);
    e1(e, 0xc3);
}

/* ecx bytes at T0, in the buffer, to where bounce_gva and bounce_word say: rcx = 0. Where a host page is not there (a
 * host fault leads to bounce_out_end) nothing is written and rcx is not 0. Flags are lost. */
static void emit_bounce_out(struct jit *j, struct emit *e)
{
    j->bounce_out = e->w - j->rw;
    for (unsigned i = 0; i < sizeof(out_saved); i++)
        e_push(e, out_saved[i]);
    e_op(e, 0, 0, 0x8b, H_RDX, rm_reg(T1));
    e_mov_load(e, H_RDI, rm_cpu(CPU(bounce_gva)));
    e_lea(e, H_RAX, rm_mem(H_RDI, 64));
    e_op(e, EF_W, 0, 0x81, 4, rm_reg(H_RAX)); /* and rax, -4096: the second page */
    e4(e, (uint32_t)-4096);
    e_op(e, EF_W, 0, 0x8b, H_RCX, rm_reg(H_RAX));
    e_op(e, EF_W, 0, 0x2b, H_RCX, rm_reg(H_RDI)); /* bytes in the first */
    e_op(e, 0, 0, 0x2b, H_RDX, rm_reg(H_RCX));    /* ... in the second */
    e_op(e, EF_W, 0, 0x03, H_RAX, rm_cpu(CPU(bounce_word) + 8));
    e_op(e, EF_LOCK, 0, 0x80, 1, rm_mem(H_RAX, -1)); /* or byte, 0: may it be written? */
    e1(e, 0);
    e_op(e, EF_W, 0, 0x03, H_RDI, rm_cpu(CPU(bounce_word)));
    e_lea(e, H_RDI, rm_mem(H_RDI, -1));
    e_op(e, EF_W, 0, 0x8b, H_RSI, rm_reg(T0));
    e1(e, 0xf3); /* rep movsb */
    e1(e, 0xa4);
    e_lea(e, H_RDI, rm_mem(H_RAX, -1));
    e_op(e, 0, 0, 0x8b, H_RCX, rm_reg(H_RDX));
    e1(e, 0xf3);
    e1(e, 0xa4);
    emit_out_return(e, 0);
    j->bounce_out_end = e->w - j->rw;
    emit_out_return(e, 1);
}

void cache_trampolines(struct jit *j)
{
    struct emit e = {.w = j->rw, .bias = (uint64_t)(j->rx - j->rw)};

    emit_enter(j, &e);
    emit_slow(j, &e);
    emit_neighbours(j, &e, false);
    emit_neighbours(j, &e, true);
    emit_bounce(j, &e);
    emit_bounce_write(j, &e);
    emit_bounce_out(j, &e);
    pair_trampolines(j, &e);
    j->base = (e.w - j->rw + 63) & ~63u;
    j->used = j->base;
    j->cold_populated = j->limit;
    cold_reset(j);
    j->ndesc = 1;
    j->nloop = 1;
    j->nrecipe = RECIPE_OF_SAVED + 1;
    j->recipe[RECIPE_OF_SAVED] = (struct jit_recipe){.kind = RECIPE_SAVED, .a = REG_NONE, .b = REG_NONE};
    j->nslot = SLOT_MASKS + 1;
    j->slots[0].word = SLOT_COLD;
    for (unsigned n = 0; n < SLOT_MASKS; n++)
        j->slots[1 + n].word = (PAGE_SIZE - 1) & ~((1ull << n) - 1);
}
