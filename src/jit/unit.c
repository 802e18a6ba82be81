/* SPDX-License-Identifier: MIT
 * unit.c: which blocks are translated together: those of one page that direct branches lead to and that were decoded,
 * for they were executed. Edges inside of a unit need no link, and flags that no successor reads are free. When one of
 * its blocks dies all do. */
#include "tr.h"

/* ---- where a block goes on ---- */

static bool is_jcc(unsigned op)
{
    return tr_cond(op) >= 0;
}

struct unit_exits unit_exits(const struct block *b)
{
    const struct insn *in = &b->insn[b->n - 1];
    const uint32_t attrs = op_rows[in->op].attrs;
    const int32_t next = (int32_t)(b->hva & ~PAGE_MASK) + b->bytes;
    const int64_t target = next + (int64_t)in->imm;
    const bool direct = in->o[0].kind == OPK_REL && in->opsize == 8 && target == (int32_t)target;
    struct unit_exits x = {.after = -1};

    if (!(attrs & A_BRANCH) || is_jcc(in->op))
        x.to[x.n++] = next;
    if (attrs & A_BRANCH) {
        if (direct)
            x.to[x.n++] = (int32_t)target;
        if (in->op == OP_CALL)
            x.after = next;
        x.unknown = !(direct && (is_jcc(in->op) || in->op == OP_JMP || in->op == OP_CALL));
    }
    x.unknown |= (attrs & A_SYS) != 0;
    return x;
}

/* ---- the blocks ---- */

static int find(const struct unit *u, hva_t hva)
{
    for (unsigned i = 0; i < u->n; i++)
        if (u->b[i]->hva == hva)
            return (int)i;
    return -1;
}

static void add(struct jit *j, struct unit *u, uint32_t key, int32_t off)
{
    const hva_t hva = (u->b[0]->hva & PAGE_MASK) | off;
    struct block *b;

    if (off < 0 || off >= (int32_t)PAGE_SIZE || u->n == UNIT_BLOCKS || find(u, hva) >= 0 || jit_find(j, hva, key))
        return;
    b = code_peek(j->cpu, u->b[0], hva);
    if (!b || u->insns + b->n > UNIT_INSNS)
        return;
    u->insns += b->n;
    u->b[u->n++] = b;
}

static void sort(struct unit *u)
{
    for (unsigned i = 1; i < u->n; i++) {
        struct block *b = u->b[i];
        unsigned k = i;

        for (; k && u->b[k - 1]->hva > b->hva; k--)
            u->b[k] = u->b[k - 1];
        u->b[k] = b;
    }
}

void unit_collect(struct jit *j, struct unit *u, struct block *b, uint32_t key)
{
    u->b[0] = b;
    u->n = 1;
    u->insns = b->n;
    if (b->page2 || j->alone)
        return;
    for (unsigned i = 0; i < u->n; i++) {
        const struct unit_exits x = unit_exits(u->b[i]);

        for (unsigned k = 0; k < x.n; k++)
            add(j, u, key, x.to[k]);
        add(j, u, key, x.after);
    }
    sort(u);
}

int unit_find(const struct unit *u, int32_t off)
{
    return off < 0 || off >= (int32_t)PAGE_SIZE ? -1 : find(u, (u->b[0]->hva & PAGE_MASK) | off);
}
