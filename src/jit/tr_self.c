/* SPDX-License-Identifier: MIT
 * tr_self.c: in front of a block of a page that is written and run in turn (code.h): it compares its own bytes with
 * what memory holds, and leaves for the dispatcher where they differ. Such a block ends behind an instruction that
 * writes. */
#include "tr.h"

struct self {
    struct tr_stub *stub; /* to the dispatcher, which compares too, and finds or makes what is there now */
    uint8_t *fail;        /* a jump to it, in front of the entry */
};

static void site(struct tr *t, const struct self *s)
{
    struct jit *j = t->j;

    j->site[j->nsite++] = (struct jit_site){.rip = t->e.w - j->rw, .stub = s->stub - t->stub};
}

static uint32_t bytes_at(const struct tr *t, unsigned at, unsigned size)
{
    uint32_t v = 0;

    memcpy(&v, t->b->src + at, size);
    return v;
}

/* T0 = the block's host address. */
static void compare(struct tr *t, const struct self *s, unsigned at, unsigned size)
{
    const uint32_t v = bytes_at(t, at, size);
    struct emit *e = &t->e;

    site(t, s);
    if (size == 4)
        e_mov_load32(e, T1, rm_mem(T0, (int32_t)at));
    else
        e_op(e, 0, 1, size == 2 ? 0xb7 : 0xb6, T1, rm_mem(T0, (int32_t)at)); /* movzx */
    e_op(e, 0, 0, 0x8d, T1, rm_mem(T1, (int32_t)-v));                        /* lea ecx, [rcx - v] */
    e1(e, 0xe3);                                                             /* jrcxz */
    e1(e, 5);
    e_fix32(e, e_jmp_later(e), s->fail);
}

void tr_self_fail(struct tr *t, struct tr_stub **stub, uint8_t **fail)
{
    *stub = tr_stub_new(t, t->jb->exit_desc);
    *fail = t->e.w;
    tr_jmp_stub(t, *stub);
}

void tr_self_compare(struct tr *t, struct tr_stub *stub, uint8_t *fail)
{
    const struct self s = {.stub = stub, .fail = fail};
    const unsigned n = t->b->bytes;
    unsigned at = 0;

    e_mov_imm64(&t->e, T0, t->b->hva);
    for (; at + 4 <= n; at += 4)
        compare(t, &s, at, 4);
    if (at < n && n >= 4) {
        compare(t, &s, n - 4, 4);
        return;
    }
    if (n - at >= 2) {
        compare(t, &s, at, 2);
        at += 2;
    }
    if (n > at)
        compare(t, &s, at, 1);
}
