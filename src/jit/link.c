/* SPDX-License-Identifier: MIT
 * link.c: links between pages by the page that they lead to. A guest drops the translation of one page (INVLPG) each
 * time it changes what a page allows; compilers in the guest do that with pages of code. Then what leads there ends,
 * and all other links and what the indirect-branch cache knows stay. */
#include "jit.h"

static uint32_t *bucket_of(struct jit *j, gva_t page)
{
    return &j->link_to[(page >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 50];
}
_Static_assert(JIT_LINKS == 1 << 14, "bucket_of");

static void unlist(struct jit *j, const struct jit_desc *d)
{
    if (d->before)
        j->desc[d->before].held = d->held;
    else
        j->link_to[d->list - 1] = d->held;
    if (d->held)
        j->desc[d->held].before = d->before;
}

/* The guard of descriptor n lets in who goes to this page from now on. */
void link_list(struct jit *j, uint32_t n, gva_t page)
{
    struct jit_desc *d = &j->desc[n];
    uint32_t *bucket = bucket_of(j, page);
    const uint32_t list = (uint32_t)(bucket - j->link_to) + 1;

    if (d->list == list)
        return;
    if (d->list)
        unlist(j, d);
    d->list = list;
    d->held = *bucket;
    d->before = 0;
    if (*bucket)
        j->desc[*bucket].before = n;
    *bucket = n;
}

/* Guards of the list are closed: some lead to other pages, and open again at their next use. */
static void close_links(struct jit *j, gva_t page)
{
    for (uint32_t n = *bucket_of(j, page); n; n = j->desc[n].held)
        guard_clear(j, j->desc[n].patch);
}

static void forget_targets(struct jit *j, gva_t page)
{
    for (const struct jit_salt *s = j->salts; s < j->salts + JIT_SALTS; s++) {
        struct jc_entry *base = jc_base(j, s->salt), *e;
        const uint64_t first = page + ((uint64_t)s->salt << 48);

        if (!s->salt || s->gen[0] != j->cpu->exec_gen[0])
            continue;
        for (unsigned i = 0; i < PAGE_SIZE; i++) {
            e = &base[jc_index(page + i)];
            if (e->key == -(first + i))
                e->key = 0;
        }
    }
}

/* A page of the lower half, in the selected address space: false where all that leads anywhere is to end. */
bool link_page_dropped(struct cpu *cpu, gva_t page)
{
    struct jit *j = cpu->engine_data;

    if (!j || j->check)
        return false;
    close_links(j, page & PAGE_MASK);
    forget_targets(j, page & PAGE_MASK);
    pair_reset(j);
    j->page_drops++;
    return true;
}
