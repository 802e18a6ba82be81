/* SPDX-License-Identifier: MIT
 * code.h: decoded code. A block is an array of decoded instructions up to a branch, an instruction that may change mode
 * or mappings, the page's end or a limit. It is keyed by host address and mode bits, so it survives TLB flushes, CR3
 * switches and exec of the same page-cache page; a code page holds the blocks of one host page, shared by all vCPUs.
 *
 * How it stays right when code changes:
 * - A page with blocks is protected: no vCPU holds a write entry for it, so writes of vCPUs come to code_written(),
 * which kills the blocks that overlap. Every instruction of a dead block then has the function in_stale, so that a cpu
 * which is inside leaves before the next instruction.
 * - Writes by others (DMA, the monitor) are unseen: a block keeps its source bytes and compares them before it runs
 * when its stamp is old. Stamps age when an exec TLB entry of the page is filled and by cpu_code_unverify(). Without
 * paging blocks compare at each entry.
 * - A page that is written and executed in turn loses its protection for good: its blocks compare at each entry and end
 *   after each instruction that writes memory. They are translated too, with the comparison in front (jit/tr_self.c).
 *
 * An instruction over a page's end (64-bit mode) is a block of its own, registered in both pages: writes to either kill
 * it, stamps of both must be right, and its second page is translated at each look-up, for it may lie elsewhere.
 *
 * Memory: dead blocks are freed when each cpu that is in the run loop has emptied its look-up cache and holds none
 * (code_safepoint()). Where a translator counts, blocks that were interpreted a few times and not lately go first: what
 * runs once, at boot, is a large part. Everything is evicted when the limit is reached. */
#ifndef CPU_CODE_H
#define CPU_CODE_H

#include "insn/in_int.h"
#include "run/pool.h"

#define BLOCK_INSNS    32u
#define CODE_LIMIT     (256ull << 20) /* bytes of blocks and pages; at most about the same again waits to be freed */
#define CODE_SWEEP     (24ull << 20)  /* bytes from which blocks go that an engine with a translator has found cold */
#define SWEEP_BLOCKS   4u           /* for so many blocks that are made, a slot of the pages' hash is looked through */
#define CODE_RETIRE    (2ull << 20) /* dead bytes that are worth asking the cpus */
#define PAGE_BUCKETS   32u
#define PAGES_HASH     8192u
#define LOOKUP_CACHE   8192u
#define WRITES_TO_DROP 16u /* writes to a protected page before its blocks are dropped at once */
#define DROPS_TO_CHECK 24u /* such drops before the page is no longer protected */
#define MEMO           256u

struct code_page;

struct block {
    _Atomic hva_t hva; /* of its first byte; 0: dead */
    uint32_t key;      /* cpu_state.insn_key */
    uint16_t n;        /* instructions; 0: the one here crosses the page's end (run by bytes) */
    uint16_t bytes;
    _Atomic uint64_t verified; /* stamp: page->gen + pages->gen when the bytes were last the same */
    struct code_page *page;
    struct code_page *page2; /* one instruction that ends in this page: who runs it looks where rip's next page lies */
    _Atomic uint64_t verified2;      /* the same for it */
    struct block *cross_next;        /* in page2->cross */
    _Atomic(struct block *) succ[2]; /* successors in this page */
    unsigned rotate;                 /* which of them is replaced next */
    uint32_t size;                   /* of the allocation */
    uint32_t heat, swept;            /* the translator's: times it was interpreted; ... when it was last looked at */
    _Atomic bool translated;         /* an engine has made something of it */
    uint64_t serial;                 /* no two blocks of a domain have the same: memory is used again, this is not */
    _Atomic(struct block *) next;    /* in the bucket */
    uint8_t *src;                    /* source bytes, behind insn[n] */
    struct insn insn[];              /* n, then the function alone of one more: in_block_end */
};

enum page_state { PAGE_OPEN, PAGE_PENDING, PAGE_PROTECTED };

struct code_page {
    hva_t hva;
    _Atomic uint64_t gen;       /* grows when an exec entry is filled */
    _Atomic uint32_t state;     /* enum page_state */
    _Atomic bool selfcheck;     /* not protected any more: blocks compare at each entry */
    _Atomic uint64_t write_seq; /* grows with each write: a block made meanwhile is made again */
    uint64_t lines; /* 64-byte lines that blocks cover, one bit each; only grows until the page is dropped */
    uint32_t nblocks, writes, drops;
    struct block *cross; /* blocks of other pages that end here; they count in nblocks and lines too */
    _Atomic(struct code_page *) next;
    _Atomic(struct block *) bucket[PAGE_BUCKETS];
};

struct code_unit {
    struct block *cache[LOOKUP_CACHE]; /* by host address and key */
    struct insn memo[MEMO];            /* instructions run by bytes: page crossings, single steps */
    _Atomic uint64_t seen;             /* pages->reclaim when the cache was last emptied */
    _Atomic bool running;              /* in the run loop: may hold blocks */
};

#define KILL_RING 4096u
struct killed {
    hva_t hva; /* where the block was */
    uint32_t key;
    uint64_t serial;
};

struct code_pages {
    _Atomic uint64_t kills; /* translated blocks killed so far; the last of them are in the ring: an engine drops what
                               it made of them */
    struct killed kill_ring[KILL_RING];
    _Atomic uint32_t lock;             /* a spin lock: leaf, held for microseconds, never while waiting for a cpu */
    _Atomic uint64_t gen;              /* part of all stamps */
    uint64_t serial;                   /* of the last block */
    _Atomic uint64_t reclaim;          /* grows with each request to let go of dead blocks */
    uint64_t bytes, dead_bytes, limit; /* limit: CODE_LIMIT, less in tests */
    unsigned sweep;                    /* the next slot, times SWEEP_BLOCKS */
    struct pool pool;                  /* of blocks */
    struct block *dead, *waiting;      /* linked by next; waiting: until all cpus have seen reclaim */
    struct code_page *dead_pages, *waiting_pages;
    struct cpu *cpus[CPU_MAX];
    unsigned ncpus;
    _Atomic(struct code_page *) hash[PAGES_HASH];
};

insn_fn in_stale;     /* CPU_AGAIN: this block is dead */
insn_fn in_block_end; /* CPU_AGAIN: look up what follows */

/* The block at the cpu's rip, verified. CPU_OK: *b, or NULL where only code_single() will do. CPU_FAULT, CPU_VMEXIT. */
int code_lookup(struct cpu *, struct block **b);
/* Successor of a block in its own page (64-bit mode): NULL if it is elsewhere, not there, or must be verified. */
struct block *code_successor(struct cpu *, struct block *, gva_t page_gva);
/* The decoded block at hva in near's page: fresh, not over its end. NULL: none. */
struct block *code_peek(struct cpu *, const struct block *near, hva_t hva);
/* Decode the instruction at rip by its bytes. CPU_OK: *in, valid until the next call. CPU_FAULT, CPU_VMEXIT, CPU_AGAIN.
 */
int code_single(struct cpu *, const struct insn **in);
/* For an engine that runs something made of blocks: the stamp that a page's blocks must have been compared under;
 * compare one now (false: it was killed); blocks that compare at each entry. */
uint64_t code_stamp(const struct cpu *, const struct code_page *);
bool code_verify(struct cpu *, struct block *);
bool code_selfcheck(const struct block *);
/* Parts of interp.c for other engines: blocks from b on; one instruction, with and without its step effects. */
int interp_blocks(struct cpu *, struct block *b, uint64_t max); /* at most so many */
int interp_one(struct cpu *);
int interp_one_step(struct cpu *);
/* The cpu holds no block now. */
void code_run_begin(struct cpu *);
void code_run_end(struct cpu *);
/* ... and it polls. Asleep it does not hold up the freeing of blocks. */
int code_safepoint(struct cpu *);

#endif
