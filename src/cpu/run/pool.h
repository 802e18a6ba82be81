/* SPDX-License-Identifier: MIT
 * pool.h: memory for what is made in great numbers (decoded blocks, translations): chunks of huge pages, made in runs,
 * for a fresh page by a fault each costs more than what is put into it. Not to be called with a live guest FPU. */
#ifndef CPU_POOL_H
#define CPU_POOL_H

#include <stddef.h>
#include <stdint.h>

#define POOL_MAX   8192u /* largest object; sizes are rounded up to multiples of 64, and aligned so */
#define POOL_CHUNK (2ull << 20)
#define POOL_HUGE  (2ull << 20)

struct pool_chunk {
    struct pool_chunk *next;
};
struct pool {
    struct pool_chunk *first, *last; /* in use: first to current; the rest waits for its turn again */
    struct pool_chunk *current;
    uint8_t *at, *ready, *end; /* in the current chunk; ready: populated up to here */
    void *free[POOL_MAX / 64 + 1];
};

void *pool_alloc(struct pool *, size_t size); /* not zeroed; NULL: no memory */
void pool_free(struct pool *, void *, size_t size);
void pool_reset(struct pool *); /* all objects are gone; the chunks stay */
void pool_destroy(struct pool *);

/* Zeroed memory for a large table that is filled here and there: huge pages where the host has them, not in a fork's
 * child, not in a core dump. NULL: no memory. */
void *pool_map(size_t size);
void pool_unmap(void *, size_t size);
/* The same without huge pages, for a mapping that is put over it: aligned to them. */
void *pool_reserve(size_t size);

#endif
