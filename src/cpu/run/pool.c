/* SPDX-License-Identifier: MIT
 * pool.c: chunks of huge pages, free lists by size (pool.h). */
#include "run/pool.h"
#include <sys/mman.h>

#define HUGE  POOL_HUGE
#define READY (128ull << 10) /* populated at once where there are no huge pages */

void *pool_reserve(size_t size)
{
    uint8_t *p, *aligned;

    size = (size + HUGE - 1) & ~(HUGE - 1);
    p = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    aligned = (uint8_t *)(((uintptr_t)p + HUGE - 1) & ~(HUGE - 1));
    if (aligned > p)
        munmap(p, (size_t)(aligned - p));
    if (aligned < p + HUGE)
        munmap(aligned + size, (size_t)(p + HUGE - aligned));
    return aligned;
}

void *pool_map(size_t size)
{
    uint8_t *aligned = pool_reserve(size);

    if (!aligned)
        return NULL;
    size = (size + HUGE - 1) & ~(HUGE - 1);
    madvise(aligned, size, MADV_HUGEPAGE);
    madvise(aligned, size, MADV_DONTFORK);
    madvise(aligned, size, MADV_DONTDUMP);
    return aligned;
}

void pool_unmap(void *p, size_t size)
{
    if (p)
        munmap(p, (size + HUGE - 1) & ~(HUGE - 1));
}

static void use_chunk(struct pool *p, struct pool_chunk *c)
{
    p->current = c;
    p->at = (uint8_t *)c + 64;
    p->end = (uint8_t *)c + POOL_CHUNK;
    p->ready = (uint8_t *)c + READY;
}

static int next_chunk(struct pool *p)
{
    struct pool_chunk *c = p->current ? p->current->next : p->first;

    if (!c) {
        c = pool_map(POOL_CHUNK);
        if (!c)
            return -1;
        madvise(c, READY, MADV_POPULATE_WRITE);
        c->next = NULL;
        if (p->last)
            p->last->next = c;
        else
            p->first = c;
        p->last = c;
    }
    use_chunk(p, c);
    return 0;
}

void *pool_alloc(struct pool *p, size_t size)
{
    const size_t n = (size + 63) / 64;
    uint8_t *o;

    if (size > POOL_MAX)
        return NULL;
    if (p->free[n]) {
        o = p->free[n];
        p->free[n] = *(void **)o;
        return o;
    }
    if (p->at + n * 64 > p->end || !p->at) {
        if (next_chunk(p))
            return NULL;
    }
    o = p->at;
    p->at += n * 64;
    while (p->at > p->ready) {
        madvise(p->ready, READY, MADV_POPULATE_WRITE);
        p->ready += READY;
    }
    return o;
}

void pool_free(struct pool *p, void *o, size_t size)
{
    const size_t n = (size + 63) / 64;

    *(void **)o = p->free[n];
    p->free[n] = o;
}

void pool_reset(struct pool *p)
{
    for (size_t n = 0; n < sizeof(p->free) / sizeof(p->free[0]); n++)
        p->free[n] = NULL;
    p->current = NULL;
    p->at = p->end = p->ready = NULL;
}

void pool_destroy(struct pool *p)
{
    while (p->first) {
        struct pool_chunk *next = p->first->next;

        pool_unmap(p->first, POOL_CHUNK);
        p->first = next;
    }
    p->last = NULL;
    pool_reset(p);
}
