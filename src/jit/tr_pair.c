/* SPDX-License-Identifier: MIT
 * tr_pair.c: calls and returns of the guest are paired on the stack of translated code, so that the host's return
 * predictor works and a return asks no table, which misses the host's caches where a program is large.
 *
 * A call pushes what identifies the guest's return address, inverted (rip + salt), and makes a host call; behind it is
 * the code that goes on behind the guest's call. A return of the guest sums up the same from what it read, and makes a
 * host return: the code there compares. The stack holds hints and decides nothing: who finds another address looks a
 * few frames further (the interpreter calls and returns without frames) and goes on by the cache. Attention is no part
 * of it, or rip + attention would be another's return address: a loop polls elsewhere, for each return in it takes a
 * frame that a call of it made.
 *
 * Frames are dropped when PAIR_BYTES of them are there, and when code or salts start anew. Supervisor and user code
 * have a stack each, which is empty when its salt becomes another one: a return to an address that is not canonical
 * could sum up to the number of any address under another salt. */
#include "tr.h"
#include <sys/mman.h>

#define PAIR_LOOK 4u /* frames that a return looks at behind the first */
#define FRAME     16

static void number_of(struct emit *e, uint8_t rip) /* T1 */
{
    e_mov_load(e, T1, rm_cpu(CPU_HOT(HOT_SALT)));
    e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = rip});
}

static void push_number(struct emit *e) /* T1 */
{
    e_op(e, EF_W, 0, 0xf7, 2, rm_reg(T1)); /* not */
    e_push(e, T1);
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
    tr_islands(t, false, 30);
    e1(&t->e, 0x0f); /* movzx ecx, sp */
    e1(&t->e, 0xb7);
    e1(&t->e, 0xcc);
    tr_jrcxz_stub(t, s);
    s->back = t->e.w;
}

/* A call that does not go where it is linked to: with its frame to the slow path. size: HOT_PAGE's offset of the return
 * address where the frame has no number yet. */
static void stub_call(struct tr *t, const struct tr_stub *s)
{
    struct emit *e = &t->e;
    uint8_t *over;

    if (s->size) {
        e_mov_load(e, T0, rm_cpu(CPU_HOT(HOT_PAGE)));
        number_of(e, T0);
        e_lea(e, T1, rm_mem(T1, s->size));
        push_number(e);
    }
    e1(e, 0xe8);
    over = e->w;
    e4(e, 0);
    e_jmp(e, (uint64_t)s->back + e->bias);
    e_fix32(e, over, e->w);
    tr_slow_exit(t, s->desc);
}

void tr_pair_stub(struct tr *t, const struct tr_stub *s)
{
    if (s->kind == STUB_CALL) {
        stub_call(t, s);
        return;
    }
    e_mov_load(&t->e, H_RSP, rm_cpu(CPU(pair.first)));
    e_jmp(&t->e, (uint64_t)s->back + t->e.bias);
}

/* Behind the host's call: T1 is the number of what returned here. */
static void landing(struct tr *t)
{
    struct emit *e = &t->e;
    uint8_t *same;

    e_pop(e, T0);
    e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = T0, .disp = 1});
    same = e_jrcxz_later(e);
    e_jmp(e, (uint64_t)(t->j->rx + t->j->pair_other));
    tr_islands(t, true, 0);
    e_fix8(same, e->w);
    e_mov_load(e, T1, rm_cpu(CPU(s.rip)));
    e_lea(e, T1, rm_mem(T1, -(int32_t)t->next_off));
    e_mov_store(e, rm_cpu(CPU_HOT(HOT_PAGE)), T1);
    if (!tr_falls_entry(t))
        tr_lead_entry(t, e_jmp_later(e), t->next_off);
}

/* T1 is the return address. Attention is asked on every way back. */
static void call_same_page(struct tr *t, int32_t disp)
{
    struct emit *e = &t->e;

    if (disp <= (int32_t)t->off) {
        e_op(e, EF_W, 0, 0x8b, T0, rm_reg(T1));
        e_mov_load32(e, T1, rm_cpu(CPU(attention)));
        e1(e, 0xe3);
        e1(e, 5);
        tr_jmp_stub(t, tr_stub_new(t, tr_desc(t, DESC_POLL, disp)));
        number_of(e, T0);
    } else {
        e_mov_load(e, T0, rm_cpu(CPU_HOT(HOT_SALT)));
        e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = T0});
    }
    push_number(e);
    e1(e, 0xe8);
    e4(e, 0);
    tr_lead(t, e->w - 4, disp);
}

/* One comparison for all that a link to another page asks (translate.c, guard()) and the frame: the number that the
 * guard is patched with is the frame's. */
#define CALL_PAGE (8 + 5 + 2 + 5 + 2 + 2) /* from the guard's number to the page behind it */
#define CALL_JUMP (CALL_PAGE + 8 + 4 + 1) /* ... to the call's displacement */

static struct tr_stub *call_other_page(struct tr *t, int32_t disp)
{
    struct tr_stub *s = tr_stub_new(t, tr_desc(t, DESC_CROSS, disp));
    struct emit *e = &t->e;
    uint8_t *number;

    s->kind = STUB_CALL;
    s->size = t->next_off;
    e_mov_load(e, T0, rm_cpu(CPU(attention))); /* and the salt */
    e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = T0});
    e1(e, 0x49); /* mov r14, imm64 */
    e1(e, 0xbe);
    number = e->w;
    e8(e, 0);
    e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = T0, .disp = 1});
    e1(e, 0xe3); /* jrcxz */
    e1(e, 5);
    tr_jmp_stub(t, s);
    e_push(e, T0);
    e1(e, 0x49);
    e1(e, 0xbe);
    assert(e->w == number + CALL_PAGE);
    e8(e, 0);
    e_mov_store(e, rm_cpu(CPU_HOT(HOT_PAGE)), T0);
    e1(e, 0xe8);
    assert(e->w == number + CALL_JUMP);
    e4(e, 0);
    t->j->desc[s->desc].patch = number - t->j->rw;
    t->j->desc[s->desc].recipe = t->next_off;
    guard_clear(t->j, number - t->j->rw);
    return s;
}

void pair_link(struct jit *j, const struct jit_desc *d, gva_t from, gva_t to, uint64_t target)
{
    guard_number(j, d->patch + CALL_PAGE, to);
    patch_jump(j, d->patch + CALL_JUMP, target);
    guard_number(j, d->patch, ~(from + d->recipe + ((uint64_t)j->cpu->salt << 32)));
}

void tr_pair_direct(struct tr *t, int32_t disp)
{
    struct tr_stub *s;

    if (!pairs(t)) {
        tr_goto(t, disp);
        return;
    }
    tr_islands(t, false, 75); /* up to the landing's */
    if (disp >= 0 && disp < (int32_t)PAGE_SIZE) {
        call_same_page(t, disp);
        landing(t);
    } else {
        s = call_other_page(t, disp);
        s->back = t->e.w;
        landing(t);
    }
    tr_islands(t, !t->falls, 0);
}

/* s.rip is where to. */
void tr_pair_indirect(struct tr *t)
{
    struct emit *e = &t->e;
    struct tr_stub *s;
    uint8_t *found;

    if (!pairs(t)) {
        e_mov_load(e, T0, rm_cpu(CPU(s.rip)));
        tr_goto_reg(t);
        return;
    }
    tr_islands(t, false, 65);
    s = tr_stub_new(t, tr_desc(t, DESC_RIP, 0));
    s->kind = STUB_CALL;
    e_mov_load(e, T0, rm_cpu(CPU_HOT(HOT_SALT)));
    e_lea(e, T1, (struct rm){.mem = true, .reg = T1, .index = T0});
    push_number(e);
    e_mov_load(e, T0, rm_cpu(CPU(s.rip)));
    found = tr_look_up(e);
    tr_jmp_stub(t, s);
    tr_islands(t, true, 0);
    tr_look_up_found(e, found);
    e1(e, 0x41); /* call r14 */
    e1(e, 0xff);
    e1(e, 0xd6);
    s->back = e->w;
    landing(t);
    tr_islands(t, !t->falls, 0);
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
    e_mov_load(e, T0, rm_cpu(CPU_HOT(HOT_SALT)));
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
    e_jmp_reg(e, T0);
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

static int init_one(struct jit *j, unsigned user)
{
    uint64_t top;
    void *p = mmap(NULL, PAIR_MAP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED)
        return -1;
    j->pairs[user] = p;
    madvise(p, PAIR_MAP, MADV_NOHUGEPAGE);
    madvise(p, PAIR_MAP, MADV_DONTFORK);
    madvise(p, PAIR_MAP, MADV_DONTDUMP);
    top = ((uint64_t)p + PAIR_MAP) & ~(PAIR_BYTES - 1ull);
    j->pair_first[user] = top - FRAME * (PAIR_LOOK + 2);
    for (uint64_t *frame = (uint64_t *)j->pair_first[user]; frame < (uint64_t *)top; frame += 2) {
        frame[0] = (uint64_t)(j->rx + j->pair_none);
        frame[1] = 0;
    }
    return 0;
}

/* Signals' frames lie below those of calls. A frame at a multiple of PAIR_BYTES is the last. */
int pair_init(struct jit *j)
{
    if (init_one(j, 0) || init_one(j, 1))
        return -1;
    pair_reset(j);
    return 0;
}

void pair_reset(struct jit *j)
{
    j->pair_saved[0] = j->pair_first[0];
    j->pair_saved[1] = j->pair_first[1];
    j->cpu->pair.first = j->cpu->pair.guest = j->pair_first[j->pair_user];
}

void pair_select(struct jit *j, bool user, bool reset)
{
    if (unlikely(user != j->pair_user)) {
        j->pair_saved[!user] = j->cpu->pair.guest;
        j->pair_user = user;
        j->cpu->pair.first = j->pair_first[user];
        j->cpu->pair.guest = j->pair_saved[user];
    }
    if (unlikely(reset))
        j->cpu->pair.guest = j->cpu->pair.first;
}

void pair_destroy(struct jit *j)
{
    for (unsigned user = 0; user < 2; user++)
        if (j->pairs[user])
            munmap(j->pairs[user], PAIR_MAP);
}
