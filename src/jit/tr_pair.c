/* SPDX-License-Identifier: MIT
 * tr_pair.c: calls and returns of the guest are paired on the stack of translated code, so that the host's return
 * predictor works and a return asks no table, which misses the host's caches where a program is large.
 *
 * A call pushes what identifies the guest's return address, inverted (rip + salt, as in the indirect-branch cache), and
 * makes a host call over the code that goes on behind the guest's call. A return of the guest sums up the same from
 * what it read, and makes a host return: the code there compares. The stack holds hints and decides nothing: who finds
 * another address looks a few frames further (the interpreter calls and returns without frames) and goes on by the
 * cache. Frames are dropped when PAIR_BYTES of them are there, and when code or salts start anew. */
#include "tr.h"
#include <sys/mman.h>

#define PAIR_LOOK 4u /* frames that a return looks at behind the first */
#define FRAME     16

static void number_of(struct emit *e, uint8_t rip) /* T1 */
{
    e_mov_load(e, T1, rm_cpu(CPU(attention))); /* and the salt */
    e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = rip});
}

/* Not a call at a page's end: its return address is another page's, or none. */
static bool pairs(const struct tr *t)
{
    return !t->j->alone && !t->j->check && !t->jb->page2 && t->next_off < PAGE_SIZE;
}

/* In front of a call: frames begin anew where there is no room. T1 is lost. */
void tr_pair_room(struct tr *t)
{
    struct tr_stub *s;

    if (!pairs(t))
        return;
    s = tr_stub_new(t, 0);
    s->kind = STUB_PAIR;
    tr_islands(t, false, 80);
    e1(&t->e, 0x0f); /* movzx ecx, sp */
    e1(&t->e, 0xb7);
    e1(&t->e, 0xcc);
    tr_jrcxz_stub(t, s);
    s->back = t->e.w;
}

void tr_pair_stub(struct tr *t, const struct tr_stub *s)
{
    e_mov_load(&t->e, H_RSP, rm_cpu(CPU(pair.first)));
    e_jmp(&t->e, (uint64_t)s->back + t->e.bias);
}

/* Behind the guest's push; T1 is the return address, T0 is lost. What follows is the called one's. */
void tr_pair_call(struct tr *t)
{
    struct emit *e = &t->e;
    uint8_t *over, *same;

    if (!pairs(t))
        return;
    tr_islands(t, false, 110);
    e_mov_load(e, T0, rm_cpu(CPU(attention)));
    e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = T0});
    e_op(e, EF_W, 0, 0xf7, 2, rm_reg(T1)); /* not */
    e_push(e, T1);
    e1(e, 0xe8); /* call */
    over = e->w;
    e4(e, 0);
    e_pop(e, T0); /* from here on: returned */
    e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = T0, .disp = 1});
    same = e_jrcxz_later(e);
    e_jmp(e, (uint64_t)(t->j->rx + t->j->pair_other));
    e_fix8(same, e->w);
    e_mov_load(e, T1, rm_cpu(CPU(s.rip)));
    e_lea(e, T1, rm_mem(T1, -(int32_t)t->next_off));
    e_mov_store(e, rm_cpu(CPU_HOT(HOT_PAGE)), T1);
    tr_lead_entry(t, e_jmp_later(e), t->next_off);
    tr_islands(t, true, 0);
    e_fix32(e, over, e->w);
}

/* T0: where the guest returns to. */
void tr_pair_return(struct tr *t)
{
    struct emit *e = &t->e;

    if (t->j->alone || t->j->check) {
        tr_goto_reg(t);
        return;
    }
    e_mov_store(e, rm_cpu(CPU(s.rip)), T0);
    e_op(e, 0, 0, 0xc7, 0, rm_cpu(CPU_HOT(HOT_RETURN))); /* mov dword, imm32 */
    e4(e, tr_desc(t, DESC_RIP, 0));
    number_of(e, T0);
    e1(e, 0xc3); /* ret */
    tr_islands(t, true, 0);
}

/* ---- trampolines ---- */

/* A frame was another call's; it lies below rsp. T1: the number, s.rip: where to. Flags are untouched. */
static void emit_other(struct jit *j, struct emit *e)
{
    uint8_t *hit[PAIR_LOOK], *none, *found;

    j->pair_other = e->w - j->rw;
    e_mov_load(e, T1, rm_cpu(CPU(s.rip)));
    e_mov_load(e, T0, rm_cpu(CPU(attention)));
    e_lea(e, T0, (struct rm){.mem = true, .reg = T0, .index = T1, .disp = 1});
    for (unsigned n = 0; n < PAIR_LOOK; n++) {
        e_mov_load(e, T1, rm_mem(H_RSP, (int32_t)(FRAME * n + 8)));
        e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = T0});
        hit[n] = e_jrcxz_later(e);
    }
    none = e_jmp_later(e);
    for (unsigned n = PAIR_LOOK; n--;) {
        e_fix8(hit[n], e->w);
        if (n)
            e_lea(e, H_RSP, rm_mem(H_RSP, FRAME));
    }
    e_lea(e, T1, rm_mem(T0, -1));
    e1(e, 0xc3);
    e_fix32(e, none, e->w);
    e_lea(e, H_RSP, rm_mem(H_RSP, -FRAME));
    e_mov_load(e, T0, rm_cpu(CPU(s.rip)));
    found = tr_look_up(e);
    e_mov_load32(e, T1, rm_cpu(CPU_HOT(HOT_RETURN)));
    e_jmp(e, (uint64_t)(j->rx + j->slow));
    tr_look_up_found(e, found);
}

/* The first frames: what returns here finds none. */
static void emit_none(struct jit *j, struct emit *e)
{
    j->pair_none = e->w - j->rw;
    e_pop(e, T0);
    e_jmp(e, (uint64_t)(j->rx + j->pair_other));
}

void pair_trampolines(struct jit *j, struct emit *e)
{
    emit_other(j, e);
    emit_none(j, e);
}

/* ---- memory ---- */

/* Signals' frames lie below those of calls. A frame at a multiple of PAIR_BYTES is the last. */
int pair_init(struct jit *j)
{
    uint64_t top;

    j->pairs = mmap(NULL, PAIR_MAP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (j->pairs == MAP_FAILED) {
        j->pairs = NULL;
        return -1;
    }
    madvise(j->pairs, PAIR_MAP, MADV_NOHUGEPAGE);
    madvise(j->pairs, PAIR_MAP, MADV_DONTFORK);
    madvise(j->pairs, PAIR_MAP, MADV_DONTDUMP);
    top = ((uint64_t)j->pairs + PAIR_MAP) & ~(PAIR_BYTES - 1ull);
    j->cpu->pair.first = top - FRAME * (PAIR_LOOK + 2);
    for (uint64_t *frame = (uint64_t *)j->cpu->pair.first; frame < (uint64_t *)top; frame += 2) {
        frame[0] = (uint64_t)(j->rx + j->pair_none);
        frame[1] = 0; /* of no address: -1 is not canonical, and no salt makes it so */
    }
    pair_reset(j);
    return 0;
}

void pair_reset(struct jit *j)
{
    j->cpu->pair.guest = j->cpu->pair.first;
}

void pair_destroy(struct jit *j)
{
    if (j->pairs)
        munmap(j->pairs, PAIR_MAP);
}
