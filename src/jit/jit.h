/* SPDX-License-Identifier: MIT
 * jit.h: the engine "jit": same-ISA translation of decoded blocks (src/cpu/run/code.h) of 64-bit mode.
 *
 * What translated code may rely on, and must keep:
 *   rsp         a valid host stack of its own, 16-byte aligned: frames of calls (tr_pair.c), below them scratch
 *   r15         cpu->flat: 128 bytes into struct cpu, mapped in front of the flat table of the current access mode
 *   rcx, r14    scratch
 *   the others  guest registers (tr_host_reg); guest r10 r11 r14 r15 live in the state
 *   EFLAGS      the guest's six arithmetic flags, nothing else
 *   vectors     the guest's, in blocks with vector instructions (made live at entry)
 * State in memory is exact only where slow_common has spilled. An instruction that is not emitted, misses the flat
 * table or faults is run by its interpreter function through a descriptor: jit_slow(). Nothing of it is visible before
 * that.
 *
 * The cache belongs to one cpu: only its thread writes or runs it. It is mapped twice, writable and executable. */
#ifndef JIT_JIT_H
#define JIT_JIT_H

#include "../cpu/run/code.h"
#include "../cpu/engine.h"
#include "../cpu/mem/flat.h"
#include "emit.h"

#define JIT_CACHE     (160u << 20) /* bytes of code; $ANYKVM_JIT_CACHE: fewer MiB, at least */
#define JIT_CACHE_MIN 2u
#define JIT_BLOCK_MAX 131072u      /* bytes that one unit can need, without its stubs */
#define JIT_CHUNK     (256u << 10) /* what is populated at once; a unit's stubs are less */
#define JIT_DESCS     (1u << 22)
#define JIT_SLOTS     (1u << 21)
#define JIT_HASH      (1u << 18)
#define JIT_PAGES     (1u << 16)
#define JIT_HEAT      3u /* times that a block is interpreted before it is translated; $ANYKVM_JIT_HEAT */
#define JC_SLOTS      (1u << 16)
#define JIT_LINKS     (1u << 14) /* lists of links by page */
#define JIT_LOOPS     (1u << 16)

enum desc_kind {
    DESC_INSN,  /* run insn[index] by the interpreter, then resume */
    DESC_STAY,  /* the same; it never leaves the block */
    DESC_EXIT,  /* go on at page + disp; patch: link this jump to it */
    DESC_CROSS, /* the same for another page: patch a guarded link */
    DESC_RIP,   /* go on at s->rip */
    DESC_FPU,   /* make the vector state live, then resume */
    DESC_ENTER, /* the guard of a block over a page's end: look where the second page lies now, go on behind the guard
                 */
    DESC_POLL,  /* attention: go on at page + disp after a safepoint */
    DESC_MISS,  /* a prediction failed SLOT_PERIOD times; patch: its site; then resume */
    DESC_LOOP,  /* a back edge was taken often: go on at page + disp, perhaps in the loop's trace (loop.c); held: the
                   loop */
    DESC_LIMIT, /* a trace has made the trips that its checks were for */
    DESC_TRACE, /* as INSN, in a trace: it is left behind the instruction */
    DESC_KINDS
};

struct jit_desc {
    struct jit_block *jb;
    union {
        uint32_t resume; /* offset in the cache */
        uint32_t before; /* CROSS, ENTER: the one before of the list, 0: it is the first */
    };
    uint32_t patch; /* offset of a jump's displacement (CROSS, ENTER: of the guard's number), 0: none; INSN: of where
                       its block's careful form goes on behind it */
    int32_t disp;   /* guest rip minus page address: of the instruction (INSN), of the target (EXIT, POLL) */
    uint16_t index;
    uint8_t kind, size;
    uint32_t nheld : 8, recipe : 24; /* INSN, POLL: how the flags are made again; 0: EFLAGS is right. CROSS: of a call:
                                        where it returns to, by its page; 0: of a jump */
    uint32_t held;                   /* INSN: first of nheld; CROSS, ENTER: the next of the list */
    uint32_t list;                   /* CROSS, ENTER: number of its list (link.c) + 1 */
};

enum recipe_kind {
    RECIPE_NONE,
    RECIPE_SUB,
    RECIPE_AND,
    RECIPE_ADDED,
    RECIPE_SUBTRACTED,
    RECIPE_RESULT,
    RECIPE_NEGATED,
    RECIPE_SAVED,
    RECIPE_INC,
    RECIPE_DEC
};
#define RECIPE_OF_SAVED 1u /* its number */
struct jit_recipe {        /* flags of an operation on a and b: general registers plus an offset; REG_NONE: constants */
    uint8_t kind, size, a, b;
    int32_t a_offset, b_offset;
    uint32_t carry; /* INC, DEC: the recipe of CF */
};

struct jit_held { /* bytes that code behind a slow path accesses without a check: they are checked there (held_ok()) */
    int32_t lo;   /* from general register base */
    uint16_t span;
    uint8_t base;
    bool write;
    uint8_t index, scale; /* index above 15: none */
    uint32_t slot;        /* gets the table's word; 0: the stack's hot word */
};

struct jit_site { /* host instruction that may fault -> its slow path */
    uint32_t rip, stub;
};

struct jit_slot {   /* the predicted table word of a block's accesses by one base register */
    uint64_t word;  /* never 0: an empty entry does not equal it */
    uint32_t left;  /* misses to the next look */
    uint32_t since; /* the clock then; of a sampled site: hits to the next look */
};
#define PAIR_BYTES 65536u                     /* of frames of calls (tr_pair.c) */
#define PAIR_MAP   (2 * PAIR_BYTES + 262144u) /* and room for signals */
/* slots 1 to 11 hold masks: bits of a page offset that are 0 in its first 1, 2, 4 ... 1024 bytes */
#define SLOT_MASKS    11u
#define SLOT_COLD     0x8000000000000001ull /* in no table: makes a canonical address non-canonical */
#define SLOT_PERIOD   16u
#define SLOT_LATER    1024u
#define SLOT_OFTEN    (SLOT_PERIOD * 128 >> 6) /* a miss in 128 cycles, on average: not worth predicting */
#define SAMPLE_MISSES 16u                      /* ... nor is one in 32 */
#define SAMPLE_HITS   512u

struct jit_page {
    hva_t hva;
    const struct code_page *code; /* as long as a block here is not dead */
    uint32_t key;
    uint64_t stamp; /* as of code.c: blocks were compared then */
    uint64_t lines; /* 64-byte lines that blocks cover: copy has them */
    bool stale;     /* a block is not what copy has */
    struct jit_block *blocks, *dead;
    struct jit_page *next;
    uint8_t copy[PAGE_SIZE]; /* what blocks were made from: one run over it compares them all */
};

struct jit_block {
    struct jit_block *hash_next; /* what a look-up reads comes first */
    hva_t hva;
    uint32_t key;               /* jit_key() */
    uint32_t code;              /* offset of the entry */
    uint32_t body;              /* ... of what is behind its guard and comparison; code where there is none */
    bool dead, uses_fpu, thunk; /* thunk: the entry is not in front of inner */
    bool selfcheck;             /* code_selfcheck() */
    uint16_t lost;              /* times that its merged checks found two pages */
    struct jit_page *page;
    struct jit_page *page2; /* one instruction that ends there: a guard in front compares page and salt */
    struct block *b;        /* may be freed once its death is in the kill ring: serial is what tells */
    uint64_t serial;
    uint32_t inner;                            /* behind its look at the vector state, for edges that know it live */
    uint32_t live_out;                         /* flags that hold behind it; the others nobody reads */
    struct jit_block *unit_next;               /* a ring: they die together */
    uint32_t exit_desc;                        /* DESC_EXIT to itself: what a killed block's entry becomes */
    uint32_t guard;                            /* descriptor of the guard in front of it */
    struct jit_block *forwards, *forward_next; /* dead blocks whose entries lead here, a list */
    struct jit_block *page_next;
};
#define HEAT_TWO    0x80000000u /* of struct block's heat: translated in two forms (tr_group.c) */
#define GROUPS_LOST 8u
#define KEY_UPPER   0x80000000u /* translated for the upper half of the address space */
#define KEY_EDGE    0x40000000u /* ... for where a relative branch may lead out of either half */
#define KEY_PLACES  4u          /* combinations of them */

static inline uint32_t jit_key(uint32_t insn_key, gva_t rip)
{
    const gva_t from_edge = rip >> 63 ? rip - (-1ull << 47) : (1ull << 47) - 1 - rip;

    return insn_key | (rip >> 63 ? KEY_UPPER : 0) | (from_edge >> 32 ? 0 : KEY_EDGE);
}

/* Where an indirect branch goes: a cache by 16 bits of the address (jc_index()). key: -(rip + (salt << 48)); with it no
 * other rip of the slot gives 0, nor does the right one with attention, which is < 128. */
struct jc_entry {
    uint64_t key;
    uint64_t code; /* host address */
    uint64_t page; /* rip's page */
    uint64_t spare;
};

struct jit_salt { /* who may use an entry or a link to another page: mode and mappings have a number */
    uint64_t gen[2];
    uint32_t key, salt;
};
#define SALT_MAX  65535u /* then all that was made by salts goes (salts_restart()) */
#define JIT_SALTS 64u
#define JC_BYTES  (2 * JC_SLOTS * sizeof(struct jc_entry)) /* a salt begins anywhere in the first half */

/* ---- loops (loop.c, tr_loop.c) ---- */
#define LOOP_BLOCKS  16u
#define LOOP_PAGES   4u
#define LOOP_INSNS   128u
#define LOOP_STREAMS 8u
struct jit_stream { /* accesses of a trip: bytes [lo, hi) from base + (index << scale) as they are when it begins */
    int32_t lo, hi, step; /* step: what they move by each trip */
    int32_t align_at;     /* ... of them that must be aligned */
    uint8_t base, index, scale, align;
    uint8_t host;      /* register that holds the word (and an unchanged base), H_NONE: none */
    bool write, fixed; /* fixed: the base does not change, the word has it added */
    uint32_t slot;
    uint32_t n;
};
struct jit_trace {
    uint32_t code;
    uint8_t nblocks, npages, nstreams, reg; /* reg: general register that moves by step each trip: tells them apart */
    bool uses_fpu;
    uint16_t insns;
    int32_t step;
    uint32_t limit, left;      /* slots: minus reg's value where the trace ends, its value where it was left */
    uint32_t then, limit_desc; /* ... the host address behind the limit */
    struct jit_block *jb[LOOP_BLOCKS];
    int32_t delta[LOOP_BLOCKS]; /* of the block's page, from the head's */
    struct {
        int32_t delta;
        struct jit_page *page;
    } page[LOOP_PAGES];
    struct jit_stream stream[LOOP_STREAMS];
    gva_t gva;              /* pages were looked at for this head's page ... */
    uint64_t gen[2], drops; /* ... with these mappings */
};
struct jit_loop { /* a back edge */
    struct jit_trace *trace;
    uint32_t slot; /* counts it */
    bool word;     /* ... in all 64 bits */
    struct jit_edge {
        uint32_t at, stub; /* offsets of the code that counts, 0: none; of what follows it */
        bool flags;        /* ... keeps flags */
    } edge[2];             /* in both forms of its block */
    bool in_trace;         /* was entered, not accounted for yet */
    uint8_t entries;
    uint32_t n, trips, penalty;
    uint64_t start;
};
struct loop_record { /* one trip by the interpreter */
    uint32_t loop;   /* 0: none */
    gva_t head;
    unsigned n, insns;
    struct block *b[LOOP_BLOCKS];
    gva_t rip[LOOP_BLOCKS];
};

struct jit {
    struct cpu *cpu;
    struct tr *tr; /* the translator's workspace: too large for every thread of a client to have one */
    uint8_t *rw, *rx;
    uint32_t used, base, limit;  /* bytes; base: behind the trampolines */
    uint32_t cold, cold_end;     /* of the chunk that stubs go to: chunks are taken from the end of the cache ... */
    uint32_t cold_low;           /* ... down to here */
    uint32_t enter, leave, slow; /* trampolines' offsets */
    uint32_t pair_other, pair_none;
    void *pairs[2]; /* stacks of translated code: of supervisor, of user code */
    uint64_t pair_first[2], pair_saved[2];
    bool pair_user;                 /* which one is cpu->pair's */
    uint32_t neighbours[2];         /* ... for reading, writing */
    uint32_t bounce[2], bounce_end; /* ... for reading, writing, and where they give up */
    uint32_t bounce_out, bounce_out_end;
    struct jit_desc *desc;
    uint32_t ndesc;
    struct jit_site *site;
    uint32_t nsite;
    struct jit_slot *slots; /* behind the executable mapping: rip-relative operands reach them */
    uint32_t nslot;
    struct jit_held *held;
    uint32_t nheld;
    uint32_t link_to[JIT_LINKS]; /* descriptors; 0: none */
    uint64_t page_drops;
    struct jit_recipe *recipe;
    uint32_t nrecipe;
    struct jit_block *hash[JIT_HASH];
    struct jit_page *pages[JIT_PAGES];
    struct pool pool; /* of blocks and pages: all of them go at a reset */
    uint32_t populated, cold_populated;
    struct jc_entry *jc;
    struct jit_loop *loop;
    uint32_t nloop;
    uint32_t loop_first; /* back edges, in LOOP_PERIODs, before a trip is recorded */
    struct loop_record record;
    uint64_t kills_seen, unverify_seen;
    uint32_t heat;                              /* JIT_HEAT */
    struct jit_salt salts[JIT_SALTS], *salt[2]; /* the last ones of supervisor and user code */
    uint64_t next_salt;
    unsigned salt_victim;
    int (*check)(struct jit *, const struct jit_block *); /* check mode (check.c): runs each block; nothing is linked */
    bool alone;                                           /* jit_run_alone(): units of one block, which nothing finds */
    bool left_amid;                                       /* ... a block was left where merged checks failed */
    int status;                                           /* why translated code was left */
    uint64_t resets, translated_blocks, translated_bytes;
    bool hardened; /* no access runs ahead of its check: no predictions, no merged checks */
    bool count;    /* ANYKVM_STAT: each block counts its instructions, a quarter of the time of short blocks */
    unsigned sample;
    int map_fd; /* ANYKVM_JIT_MAP=FILE: a line a block (host address, size, guest address) for profiles; -1: none */
    uint64_t slow_kinds[DESC_KINDS]; /* ... by kind of descriptor */
    uint64_t slow_ops[OP_COUNT];     /* slow paths by row (slow_stat.c) */
    struct jit *next_live;
};

/* hot words of the state (state.def, hot_spare) */
enum {
    HOT_PAGE,
    HOT_MASK,
    HOT_JC,
    HOT_MASK_JC,
    HOT_MASK_ROR,
    HOT_SLOW,
    HOT_SALT, /* the salt alone, where attention has it */
    HOT_STACK_USER,
    HOT_STACK_SUPER,
    HOT_RETURN, /* descriptor of the last return */
    HOT_COUNT
};
_Static_assert(HOT_COUNT <= 10, "state.def: hot_spare");

#define CPU(field) ((int32_t)offsetof(struct cpu, field) - FLAT_BASE)
#define CPU_GPR(g) ((int32_t)(offsetof(struct cpu, s.gpr) + 8 * (g)) - FLAT_BASE)
#define CPU_HOT(n) ((int32_t)(offsetof(struct cpu, s.hot_spare) + 8 * (n)) - FLAT_BASE)

_Static_assert(offsetof(struct cpu, attention) % 8 == 0 &&
                   offsetof(struct cpu, salt) == offsetof(struct cpu, attention) + 4,
               "one word");

/* Two processes that run one program do not share slots: each salt has its own place for low bits 0. No two have the
 * same: an address that is not canonical could be told from another salt's by nothing else. */
static inline struct jc_entry *jc_base(const struct jit *j, uint32_t salt)
{
    return &j->jc[(uint16_t)(salt * 0x9e37u)];
}
_Static_assert(JC_SLOTS == 1 << 16 && sizeof(struct jc_entry) == 32, "jc_base, HOT_MASK_JC");

/* ... and from there on, by bits that differ between functions, which begin at multiples of 16 to 64. Addresses less
 * than 128 apart never meet: attention in the key cannot make one of the other. */
#define JC_SHIFT 11
static inline uint32_t jc_index(gva_t rip)
{
    return (rip + (rip >> JC_SHIFT)) & (JC_SLOTS - 1);
}

/* jit.c */
struct jit_block *jit_find(struct jit *, hva_t hva, uint32_t key);
int jit_run_alone(struct cpu *, struct block *); /* translate and run one block, for tests: CPU_AGAIN, or its fault */
uint64_t jit_slow(struct cpu *, uint32_t desc); /* called by translated code: where to go on (host address), 0: leave */
void page_cover(struct jit_page *, const struct jit_block *); /* the page's copy has the block's bytes */
int jit_enter(struct jit *, const struct jit_block *); /* run translated code from this block on; enum cpu_status */
extern const struct engine jit_engine;
void jit_flags_again(const struct jit *, uint32_t recipe); /* tr_flags.c: registers were spilled */
/* cache.c */
static inline bool cache_full(const struct jit *j) /* no room for the next block for certain */
{
    return j->used + JIT_BLOCK_MAX + JIT_CHUNK > j->cold_low || j->ndesc > JIT_DESCS - 2048 ||
           j->nsite > JIT_DESCS - 2048 || j->nslot > JIT_SLOTS - 2048 || j->nheld > JIT_DESCS - 8192 ||
           j->nrecipe > JIT_DESCS - 2048;
}
int cache_init(struct jit *);
void cache_destroy(struct jit *);
void cache_reset(struct jit *);
void cache_trampolines(struct jit *);
void cache_populate(struct jit *);            /* memory for the next block is there */
void cache_cold(struct jit *, uint32_t size); /* ... for stubs */
/* loop.c */
#define LOOP_PERIOD 64u /* back edges between two looks at attention */
#define LOOP_FIRST  256u
uint32_t loop_new(struct jit *, bool word);
uint64_t loop_back_edge(struct jit *, const struct jit_desc *);
uint64_t loop_limit(struct jit *, const struct jit_desc *);
int loop_record(struct jit *); /* the next block of the trip */
/* tr_loop.c: the trace's code; false: not worth it, or not possible */
void tr_loop_plain(struct jit *, const struct jit_edge *); /* it only polls */
bool tr_loop(struct jit *, struct jit_trace *, uint32_t loop);
/* jit.c */
void jit_process_kills(struct jit *);
void jit_page_current(struct jit *, struct jit_page *); /* its blocks are what memory holds, or dead */
/* link.c */
void link_list(struct jit *, uint32_t desc, gva_t page);
bool link_page_dropped(struct cpu *, gva_t page);
/* tr_pair.c */
void pair_trampolines(struct jit *, struct emit *);
int pair_init(struct jit *);
void pair_destroy(struct jit *);
/* A call's guard lets in who is where it was linked (link_cross()). */
void pair_link(struct jit *, const struct jit_desc *, gva_t from, gva_t to, uint64_t target);
void pair_reset(struct jit *);                         /* no frame that was made returns any more */
void pair_select(struct jit *, bool user, bool reset); /* that stack, emptied if its salt is another one now */
/* slow_stat.c */
void slow_stat_add(struct jit *);
void slow_stat_remove(struct jit *);
/* translate.c: a guarded link: its 64-bit number is at patch; it holds for the salt in force and the page it was made
 * in */
void link_cross(struct jit *, uint32_t desc, gva_t from, gva_t to, uint64_t target);
void guard_set(struct jit *, uint32_t patch, gva_t page);    /* the guard there lets in who has this salt and page */
void guard_clear(struct jit *, uint32_t patch);              /* ... nobody */
void guard_number(struct jit *, uint32_t at, uint64_t v);    /* patches 64 bits */
void patch_jump(struct jit *, uint32_t at, uint64_t target); /* jit.c: the 32-bit displacement at `at` */
/* tr_mem.c: a site that does not predict any more; one whose executions are counted */
void tr_make_plain(struct jit *, const struct jit_desc *);
void tr_sample(struct jit *, const struct jit_desc *, bool on);
bool tr_sampled(struct jit *, const struct jit_desc *);
/* translate.c: a block and what is translated with it; NULL when the cache is full. All of them are found from then on.
 */
struct jit_block *jit_translate(struct jit *, struct block *, gva_t rip);
void jit_add(struct jit *, struct jit_block *); /* jit.c: it is found */

#endif
