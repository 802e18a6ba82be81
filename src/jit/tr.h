/* SPDX-License-Identifier: MIT
 * tr.h: the translator's inside: what the emitting files (tr_*.c) share. */
#ifndef JIT_TR_H
#define JIT_TR_H

#include "jit.h"

extern const uint8_t tr_host_reg[16]; /* guest register -> host register, H_NONE: it lives in the state */

#define T0 H_R14 /* address */
#define T1 H_RCX /* index, entry, value */

struct tr_ea {    /* a memory operand's address */
    struct rm rm; /* base, index and displacement in host registers */
    bool near;    /* that and at most one word of the state are all of it */
    bool has_word;
    int32_t word; /* ... to add: of the cpu */
    uint8_t key;  /* whose prediction it shares: a base register, or: */
};
enum { TR_KEY_RIP = 16, TR_KEY_NONE, TR_KEY_SEG, TR_KEYS = TR_KEY_SEG + 2 };

enum tr_stub_kind {
    STUB_PLAIN,
    STUB_CROSS,       /* an access of size bytes may cross pages: back where it does not, or where that is no matter */
    STUB_CROSS_FLAGS, /* ... flags are live; T0 is its last byte */
    STUB_MISS,        /* the table's word is not the predicted one */
    STUB_CAREFUL,     /* a merged check failed: on in the block's careful form */
    STUB_PAIR,        /* no room for frames of calls */
    STUB_CALL,        /* a call whose guard is closed */
    STUB_STRING,      /* a host fault in a repeated string instruction */
    STUB_LOOP         /* a back edge was counted down */
};
struct tr_stub { /* out of line: ecx = descriptor; jump to slow */
    uint32_t desc;
    uint8_t kind;
    uint16_t size;
    bool write;
    uint8_t back_reg;      /* CROSS: T1 is the address again */
    uint16_t slow;         /* MISS: the stub of an empty entry */
    struct jit_edge *edge; /* LOOP */
    bool careful;          /* CROSS, CAREFUL: gives up to the careful form of: */
    uint8_t block, insn;
    uint32_t slot; /* ... its prediction, or */
    int32_t hot;   /* ... a word of the cpu */
    struct tr_ea ea;
    uint8_t *back;
    uint8_t *bounced; /* CROSS: the access itself, T0 is its host address: may be one of a copy; NULL: it cannot */
    uint8_t *behind;  /* ... a write's end */
    uint8_t *from[8]; /* 32-bit displacements that lead here */
    unsigned nfrom;
    uint8_t *placed;
};
struct tr_short { /* a jrcxz whose landing is not placed yet */
    uint8_t *at;
    struct tr_stub *stub;
};

/* ---- tr_group.c ---- */
struct tr_values { /* general registers: numbers of unknown values, and offsets from them */
    uint32_t value[16], next;
    int32_t offset[16];
};
struct tr_member { /* an access at a register + disp, perhaps + another << scale */
    uint8_t base, size, index, scale;
    bool write, stack; /* stack: the implicit one of a push or pop */
    int32_t disp;
};
struct tr_group {          /* accesses that one check lets pass: bytes [lo, hi) from a value */
    uint32_t value, index; /* of the register; of the index register, 0: none */
    uint8_t scale;
    int32_t lo, hi;
    uint32_t slot; /* what to add to addresses; 0: the stack's hot word */
    uint16_t first, last;
    uint8_t n;
    bool write, stack, closed;
    bool checked; /* the check was emitted */
};
#define TR_GROUPS     16
#define TR_GROUP_SPAN 256  /* bytes: a page holds the range of most */
#define TR_TWO_SPAN   1024 /* ... where there is a careful form beside it */

#define UNIT_BLOCKS 24u
#define UNIT_INSNS  192u
struct unit { /* blocks of one page, by address */
    struct block *b[UNIT_BLOCKS];
    unsigned n, insns;
    uint32_t live_in[UNIT_BLOCKS], live_out[UNIT_BLOCKS]; /* flags that must be in EFLAGS */
    uint64_t need[UNIT_BLOCKS];                           /* tr_flags.c, block_recipes() */
    uint32_t recipes[UNIT_BLOCKS];                        /* where a block's are: one a place, n + 1 places */
    uint32_t recipe[UNIT_INSNS + BLOCK_INSNS + UNIT_BLOCKS];
    uint32_t entry[UNIT_BLOCKS]; /* the recipe of its flags that its head knows, 0: any flags are in EFLAGS */
    uint8_t head[UNIT_BLOCKS];   /* ... instructions that are emitted once more for other ways in */
    bool clear[UNIT_BLOCKS];     /* ... and leaves the flags as they are: saved ones */
    uint64_t save[UNIT_BLOCKS];  /* bits: flags are saved in front of that instruction */
    bool fpu[UNIT_BLOCKS];
};
struct unit_exits { /* where a block goes on */
    int32_t to[2];  /* page offsets, perhaps outside of the page */
    unsigned n;
    bool unknown;  /* and elsewhere */
    int32_t after; /* where a call returns to; -1: none */
};
struct tr_edge { /* a 32-bit displacement that leads to a block of the unit */
    uint8_t *at;
    uint8_t to;
    bool inner, warm;
};

#define TR_STUBS   1600
#define INSN_STUBS 10u /* no instruction has more */
struct tr {
    struct jit *j;
    struct emit e;
    struct block *b;
    struct jit_block *jb;
    const struct insn *in; /* the instruction being translated */
    unsigned i;
    uint32_t off, next_off; /* page offsets of it and of the one behind it */
    bool flags_live;        /* before it: checks must leave EFLAGS alone */
    uint8_t live[BLOCK_INSNS + 1];
    uint8_t *last_entry;     /* of the block before */
    uint32_t slot[TR_KEYS];  /* the block's predictions, 0: none yet */
    struct tr_values values; /* before the current instruction */
    struct tr_group group[TR_GROUPS];
    unsigned ngroups;
    uint8_t member[BLOCK_INSNS][2]; /* number of the group + 1 of the explicit access, of the stack's */
    int32_t lo;                     /* of the access that is emitted, in terms of values */
    struct tr_stub *crossing;       /* the access's CROSS stub, if it is this instruction's alone */
    uint8_t element;                /* bytes: the operand's address moves by a number of them, which is in s.rip */
    struct tr_stub *insn_stub;      /* this instruction's slow path, made on demand */
    struct tr_trace *trace;         /* a loop's trace is emitted (tr_loop.c) */
    bool careful;                   /* the second form of a block is emitted: no merged checks */
    struct tr_stub stub[TR_STUBS];
    unsigned nstub;
    struct tr_short shorts[64];
    unsigned nshorts;
    struct unit unit;
    struct jit_block *jbs[UNIT_BLOCKS];
    unsigned cur;                                         /* which of them */
    uint32_t warm[UNIT_BLOCKS], behind_head[UNIT_BLOCKS]; /* offsets of a block that has a head twice */
    uint32_t group_slot[UNIT_BLOCKS][TR_GROUPS];
    bool outer; /* the copy is being emitted */
    struct tr_edge edge[4 * UNIT_BLOCKS];
    unsigned nedge;
    bool two[UNIT_BLOCKS]; /* they get a careful form */
    bool gives_up;         /* ... and something of this one leads there */
    unsigned careful_insns;
    uint32_t fast_desc[UNIT_BLOCKS][2];
    uint32_t careful_at[UNIT_BLOCKS][BLOCK_INSNS + 1]; /* offsets of instructions in the careful form */
    uint32_t careful_check[UNIT_BLOCKS][BLOCK_INSNS];  /* ... behind the saving of flags in front of them */
    bool falls;                                        /* the block before runs into this one */
    bool ended;                                        /* control flow never falls out of the last instruction */
    uint32_t loop[UNIT_BLOCKS];                        /* of a block's back edge; 0: none */
};

typedef bool tr_fn(struct tr *); /* false: not emitted (nothing may have been): the interpreter's function runs it */
extern tr_fn *const tr_table[OP_COUNT];

/* ---- translate.c ---- */
uint32_t tr_desc(struct tr *, enum desc_kind, int32_t disp);
struct tr_stub *tr_stub_new(struct tr *, uint32_t desc);
struct tr_stub *tr_slow(struct tr *);                           /* the current instruction by the interpreter */
uint64_t tr_careful(const struct tr *, const struct tr_stub *); /* where a CAREFUL stub leads */
void tr_jmp_stub(struct tr *, struct tr_stub *);
void tr_jcc_stub(struct tr *, unsigned cc, struct tr_stub *);
void tr_jrcxz_stub(struct tr *, struct tr_stub *); /* rcx == 0; flags untouched */
/* Place what jrcxz waits for, if room more bytes would put it out of reach, or behind an unconditional jump. */
void tr_islands(struct tr *, bool behind_jump, unsigned room);
void tr_slow_exit(struct tr *, uint32_t desc); /* ten bytes: to jit_slow(desc) */
void tr_site(struct tr *);                     /* the next host instruction may fault: slow path is the fix-up */
/* Go on at page + disp: linked jumps; the same if a condition holds. */
void tr_goto(struct tr *, int32_t disp);
void tr_goto_if(struct tr *, unsigned cc, int32_t disp);
void tr_edge(struct tr *, uint8_t *at, int to, bool warm); /* the displacement at `at` leads to block to of the unit */
void tr_place_stubs(struct tr *, uint32_t first_site);
bool tr_emit_one(struct tr *, bool or_interpreted);
void tr_goto_next(struct tr *); /* the block's end: behind it */
/* Go on at the address in T0 (any value). */
void tr_goto_reg(struct tr *);
/* ... by the cache: what follows is for an address that is not there; then tr_look_up_found() with what it returned */
uint8_t *tr_look_up(struct emit *);
void tr_look_up_found(struct emit *, uint8_t *found); /* T0: host address to go to */
/* The displacement at `at` leads to page + disp, in this page; entry: whatever the vector state and flags are. */
void tr_lead(struct tr *, uint8_t *at, int32_t disp);
void tr_lead_entry(struct tr *, uint8_t *at, int32_t disp);
bool tr_falls_entry(struct tr *); /* the block behind this one comes next, and may be run into so */

/* ---- tr_mem.c ---- */
/* T0 = offset of the memory operand in its segment, for a form that tr_address() emits; T1 is lost */
void tr_ea(struct tr *);
/* T0 = linear address of the memory operand. false: a form that is not emitted. */
bool tr_address_ok(const struct insn *);
bool tr_address(struct tr *);
/* The instruction's memory operand, checked for reading (or writing, which implies reading): *rm is on T0, and on T1
 * too if that is not to be kept free. align: address bits that must be 0, else the slow path. The site is the caller's,
 * who may load registers first. false: an address that is not emitted. */
bool tr_access(struct tr *, unsigned size, bool write, unsigned align, bool keep_t1, struct rm *rm);
/* The same for one that is s.rip's operands of this size further; T1 is free. */
struct rm tr_access_element(struct tr *, unsigned size, bool write);
/* The same and the site, where nothing is to be loaded. */
bool tr_mem(struct tr *, unsigned size, bool write, struct rm *rm);
/* 8 bytes at a pinned guest register + disp */
struct rm tr_stack(struct tr *, unsigned guest_reg, int32_t disp, bool write, bool keep_t1);
/* size bytes at a pinned guest register */
struct rm tr_at(struct tr *, unsigned guest_reg, unsigned size, bool write, bool keep_t1);
void tr_mem_stub(struct tr *, const struct tr_stub *); /* what comes out of line for it */
/* operand n as a register or state word of the guest register */
struct rm tr_reg_rm(unsigned guest_reg);

void tr_groups_find(struct tr *);
struct tr_group *tr_group_of(struct tr *, const struct tr_member *);
void tr_groups_hold(struct tr *, struct jit_desc *); /* values are those behind the instruction by then */
void tr_groups_stack(struct tr *);                   /* the stack's hot word is written */
int32_t tr_member_lo(const struct tr_values *, const struct tr_member *);
void tr_values_start(struct tr_values *);
void tr_values_step(struct tr_values *, const struct insn *);
bool tr_values_known(const struct insn *); /* what it writes is known */

/* ---- tr_flags.c ---- */
bool tr_may_leave(const struct insn *, uint32_t key);
void unit_flags(struct tr *);
void tr_flags_live(struct tr *);
void tr_flags_outer(struct tr *);
bool tr_saves(const struct tr *, unsigned i);
bool unit_warm(const struct jit *, const struct unit *, unsigned from, unsigned to);
uint32_t tr_recipe(const struct tr *, bool end); /* of the current instruction, of the block's end */

/* ---- tr_int.c ---- */
int tr_cond(unsigned op); /* the condition of Jcc, SETcc, CMOVcc; -1 for others */

/* ---- unit.c ---- */
void unit_collect(struct jit *, struct unit *, struct block *, uint32_t key);
int unit_find(const struct unit *, int32_t off); /* by page offset; -1 */
struct unit_exits unit_exits(const struct block *);

/* ---- tr_self.c: a block that compares its own bytes: where a difference leads, in front of its entry; the comparison
 */
void tr_self_fail(struct tr *, struct tr_stub **stub, uint8_t **fail);
void tr_self_compare(struct tr *, struct tr_stub *stub, uint8_t *fail);

bool tr_needs_fpu(const struct block *); /* translate.c */

/* ---- tr_vec.c: rows whose function is in_native ---- */
bool tr_vec_wanted(const struct insn *, uint32_t key);
tr_fn tr_vec;

/* ---- tr_bmi.c ---- */
tr_fn tr_bmi, tr_rorx, tr_mulx, tr_adx, tr_crc32, tr_movbe, tr_movnti, tr_cmpxchg8b;

/* ---- tr_str.c ---- */
tr_fn tr_string;
void tr_string_stub(struct tr *, const struct tr_stub *);

/* ---- tr_sys.c ---- */
tr_fn tr_cli, tr_sti, tr_ac, tr_direction, tr_swapgs, tr_rdtsc, tr_pause, tr_base;

/* ---- tr_pair.c ---- */
void tr_pair_room(struct tr *);
/* Behind the guest's push: T1 is the return address, T0 is lost; on at page + disp, at s.rip. */
void tr_pair_direct(struct tr *, int32_t disp);
void tr_pair_indirect(struct tr *);
void tr_pair_return(struct tr *);
void tr_pair_stub(struct tr *, const struct tr_stub *);

/* ---- tr_loop.c ---- */
/* A counted back edge to page + disp; flags: they are kept; to: the block in this unit. false: not counted. */
bool tr_loop_edge(struct tr *, struct tr_stub *poll, int32_t disp, int to, bool warm, bool flags);
void tr_loop_other_page(struct tr *, int32_t disp); /* in front of a link to another page: counts a back edge */
void tr_loop_stub(struct tr *, const struct tr_stub *);
/* A trace's access: true: it needs no check, *rm is the operand. */
bool tr_loop_operand(struct tr *, const struct tr_ea *, const struct tr_member *, unsigned align, struct rm *rm);
void tr_loop_restore(struct tr *); /* in front of an exit of a trace */

/* ---- the rest ---- */
tr_fn tr_none;
static inline bool tr_pinned(unsigned g)
{
    return tr_host_reg[g] != H_NONE;
}

#endif
