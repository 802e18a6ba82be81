/* SPDX-License-Identifier: MIT
 * tr.h: the translator's inside: what the emitting files (tr_*.c) share. */
#ifndef JIT_TR_H
#define JIT_TR_H

#include "jit.h"

extern const uint8_t tr_host_reg[16]; /* guest register -> host register, H_NONE: it lives in the state */

#define T0 H_R14 /* address */
#define T1 H_RCX /* index, entry, value */

struct tr_stub { /* out of line: ecx = descriptor; jump to slow */
    uint32_t desc;
    uint8_t size; /* not 0: first, an access of so many bytes at T0 that may cross pages goes back where it does not, */
    bool write;   /* or where both pages are neighbours in host memory too. What is known: */
    bool unaligned; /* ... it is unaligned, flags are free */
    uint8_t align;  /* ... it is at a page's end, but perhaps aligned (mask); flags are not free */
    uint8_t *back;
    uint8_t *from[4]; /* 32-bit displacements that lead here */
    unsigned nfrom;
};
struct tr_short { /* a jrcxz whose landing is not placed yet */
    uint8_t *at;
    struct tr_stub *stub;
};

#define UNIT_BLOCKS 24u
#define UNIT_INSNS  192u
struct unit { /* blocks of one page, by address */
    struct block *b[UNIT_BLOCKS];
    unsigned n, insns;
    uint32_t live_in[UNIT_BLOCKS], live_out[UNIT_BLOCKS];
};
struct tr_edge { /* a 32-bit displacement that leads to a block of the unit */
    uint8_t *at;
    uint8_t to;
    bool inner;
};

#define TR_STUBS 1536
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
    uint8_t *last_entry;       /* of the block before */
    struct tr_stub *insn_stub; /* this instruction's slow path, made on demand */
    struct tr_stub stub[TR_STUBS];
    unsigned nstub;
    struct tr_short shorts[64];
    unsigned nshorts;
    struct unit unit;
    struct jit_block *jbs[UNIT_BLOCKS];
    unsigned cur; /* which of them */
    struct tr_edge edge[4 * UNIT_BLOCKS];
    unsigned nedge;
    bool falls; /* the block before runs into this one */
    bool ended; /* control flow never falls out of the last instruction */
};

typedef bool tr_fn(struct tr *); /* false: not emitted (nothing may have been): the interpreter's function runs it */
extern tr_fn *const tr_table[OP_COUNT];

/* ---- translate.c ---- */
uint32_t tr_desc(struct tr *, enum desc_kind, int32_t disp);
struct tr_stub *tr_stub_new(struct tr *, uint32_t desc);
struct tr_stub *tr_slow(struct tr *); /* the current instruction by the interpreter */
void tr_jmp_stub(struct tr *, struct tr_stub *);
void tr_jcc_stub(struct tr *, unsigned cc, struct tr_stub *);
void tr_jrcxz_stub(struct tr *, struct tr_stub *); /* rcx == 0; flags untouched */
/* Place what jrcxz waits for, if room more bytes would put it out of reach, or behind an unconditional jump. */
void tr_islands(struct tr *, bool behind_jump, unsigned room);
void tr_site(struct tr *); /* the next host instruction may fault: slow path is the fix-up */
/* Go on at page + disp: linked jumps; the same if a condition holds. */
void tr_goto(struct tr *, int32_t disp);
void tr_goto_if(struct tr *, unsigned cc, int32_t disp);
void tr_goto_next(struct tr *); /* the block's end: behind it */
/* Go on at the address in T0 (any value). */
void tr_goto_reg(struct tr *);

/* ---- tr_mem.c ---- */
/* T0 = offset of the memory operand in its segment, for a form that tr_address() emits; T1 is lost */
void tr_ea(struct tr *);
/* T0 = linear address of the memory operand. false: a form that is not emitted. */
bool tr_address(struct tr *);
/* T0 = host address for size bytes, checked for reading (or writing, which implies reading); T1 is lost. Out of line:
 * the slow path. */
void tr_check(struct tr *, unsigned size, bool write);
/* The same as an operand, which may take T1 too: keep_t1 where T1 is needed for something else. */
struct rm tr_checked(struct tr *, unsigned size, bool write, bool keep_t1);
/* address and check; then *rm is the operand */
bool tr_mem(struct tr *, unsigned size, bool write, struct rm *rm);
/* operand n as a register or state word of the guest register */
struct rm tr_reg_rm(unsigned guest_reg);

/* ---- tr_int.c ---- */
int tr_cond(unsigned op); /* the condition of Jcc, SETcc, CMOVcc; -1 for others */

/* ---- unit.c ---- */
void unit_collect(struct jit *, struct unit *, struct block *, uint32_t key);
int unit_find(const struct unit *, int32_t off); /* by page offset; -1 */
void unit_flags(struct unit *);

/* ---- tr_self.c: a block that compares its own bytes: where a difference leads, in front of its entry; the comparison
 */
void tr_self_fail(struct tr *, struct tr_stub **stub, uint8_t **fail);
void tr_self_compare(struct tr *, struct tr_stub *stub, uint8_t *fail);

/* ---- tr_vec.c: rows whose function is in_native ---- */
bool tr_vec_wanted(const struct insn *, uint32_t key);
tr_fn tr_vec;

/* ---- tr_bmi.c ---- */
tr_fn tr_bmi, tr_rorx, tr_mulx, tr_adx, tr_crc32, tr_movbe, tr_movnti, tr_cmpxchg8b;

/* ---- tr_sys.c ---- */
tr_fn tr_cli, tr_sti, tr_ac, tr_direction, tr_swapgs, tr_rdtsc, tr_pause, tr_base;

/* ---- the rest ---- */
tr_fn tr_none;
static inline bool tr_pinned(unsigned g)
{
    return tr_host_reg[g] != H_NONE;
}

#endif
