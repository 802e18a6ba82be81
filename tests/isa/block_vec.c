/* SPDX-License-Identifier: MIT
 * block_vec.c: vector, x87 and all other rows in random blocks (blocks.c): any form of forms.c whose memory operands
 * have the blocks' pointers as bases; the vector state that they start from, and how it is compared. */
#include "block_vec.h"
#include <stdio.h>
#include <stdlib.h>

/* Who writes what a context switch of the host may lose, loads what no block would, or aims at memory by registers that
 * are not the blocks' pointers. */
#define NOT_IN_BLOCKS                                                                                                  \
    " FLDENV FNSTENV FRSTOR FNSAVE FXSAVE FXSAVE64 FXRSTOR FXRSTOR64 XSAVE XSAVE64 XSAVEC XSAVEC64 XSAVEOPT "          \
    "XSAVEOPT64 XRSTOR XRSTOR64 MASKMOVQ MASKMOVDQU VMASKMOVDQU CLZERO POPF POPFQ POPFD PUSHF PUSHFQ ENTER XLATB UD1 " \
    "UD2 BT BTS BTR BTC "

static struct forms forms;
static unsigned first[OP_COUNT], *next, rows[OP_COUNT], nrows; /* numbers of forms + 1, by row */

static bool row_wanted(unsigned row)
{
    const uint32_t attrs = op_rows[row].attrs;
    char name[40];

    snprintf(name, sizeof(name), " %s ", op_rows[row].name);
    return row && !(attrs & (A_BRANCH | A_SYS | A_STRING)) && !row_skipped(row, MODE_64) &&
           !strstr(NOT_IN_BLOCKS, name);
}

void vec_init(void)
{
    forms_find(MODE_64, &forms);
    next = calloc(forms.n, sizeof(*next));
    if (!next)
        exit(2);
    for (unsigned i = 0; i < forms.n; i++) {
        const unsigned row = forms.f[i].row;

        if (!row_wanted(row) || form_skipped(MODE_64, &forms.f[i]))
            continue;
        if (!first[row])
            rows[nrows++] = row;
        next[i] = first[row];
        first[row] = i + 1;
    }
}

static const struct form *any_form(void)
{
    const unsigned row = rows[below(nrows)];
    unsigned n = 0, at = first[row];

    for (unsigned i = first[row]; i; i = next[i - 1])
        if (!below(++n))
            at = i;
    return &forms.f[at - 1];
}

static bool one_of(ZydisRegister reg, unsigned set)
{
    return ZydisRegisterGetClass(reg) == ZYDIS_REGCLASS_GPR64 && (set >> ZydisRegisterGetId(reg) & 1);
}

/* Memory is reached by the blocks' pointers and small indices alone. */
static bool operands_fit(const struct decoded *d, unsigned pointers, unsigned indices)
{
    for (unsigned i = 0; i < d->zi.operand_count; i++) {
        const ZydisDecodedOperand *op = &d->ops[i];

        if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_SEGMENT)
            return false; /* the two sides have different ones */
        if (op->type != ZYDIS_OPERAND_TYPE_MEMORY)
            continue;
        if (!one_of(op->mem.base, pointers) || op->mem.segment == ZYDIS_REGISTER_GS ||
            (op->mem.index != ZYDIS_REGISTER_NONE && !one_of(op->mem.index, indices)) ||
            (op->mem.disp.has_displacement && (op->mem.disp.value > 4096 || op->mem.disp.value < -4096)))
            return false;
    }
    return true;
}

unsigned vec_put(uint8_t *code, unsigned pointers, unsigned indices)
{
    const struct form *f = any_form();
    struct decoded d;
    uint8_t bytes[15];

    for (unsigned tries = 0; tries < 40; tries++) {
        if (!form_vary(MODE_64, f, bytes, &d))
            return 0;
        if (d.zi.raw.modrm.mod == 2 && d.zi.raw.disp.size == 32) { /* near */
            memcpy(bytes + d.zi.raw.disp.offset, &(int32_t){(int32_t)below(512) - 256}, 4);
            if (!form_decode(MODE_64, bytes, &d))
                return 0;
        }
        if (!operands_fit(&d, pointers, indices))
            continue;
        memcpy(code, bytes, d.zi.length);
        return d.zi.length;
    }
    return 0;
}

/* ---- state ---- */
static uint64_t lane(void)
{
    switch (below(4)) {
    case 0: /* two floats */
        return (rnd() & 0x807fffff807fffff) | (uint64_t)(100 + below(60)) << 55 | (uint64_t)(100 + below(60)) << 23;
    case 1:
        return (rnd() & 0x800fffffffffffff) | (uint64_t)(1000 + below(60)) << 52;
    default:
        return rnd_value();
    }
}

void vec_random(struct xsave_area *a)
{
    const struct fpu_layout *l = fpu_layout();

    memset(a, 0, cpu_fpu_area_size());
    a->fcw = 0x37f | below(4) << 10 | (below(8) ? 0 : below(4) << 8);
    a->fsw = rnd() & 0x7f00;
    a->ftw = below(4) ? 0xff : rnd();
    a->mxcsr = MXCSR_INIT | below(4) << 13 | (below(8) ? 0 : 0x8040);
    if (!below(24)) {
        a->mxcsr &= rnd() | 0xe040; /* some exceptions unmasked */
        a->fcw &= rnd() | 0xff40;
    }
    a->mxcsr_mask = l->mxcsr_mask;
    for (unsigned i = 0; i < 8; i++) {
        const uint16_t exp = 0x3fff - 40 + below(80) + (below(2) ? 0x8000 : 0);

        *(uint64_t *)a->st[i] = rnd() | 1ull << 63;
        memcpy(a->st[i] + 8, &exp, 2);
    }
    for (unsigned i = 0; i < 32; i++)
        ((uint64_t *)a->xmm)[i] = lane();
    for (unsigned i = 2; i < XFEATURES; i++)
        for (unsigned at = 0; l->mask >> i & 1 && at < l->comp[i].size; at += 8)
            *(uint64_t *)((uint8_t *)a + l->comp[i].offset + at) = i == 5 && below(2) ? below(256) : lane();
    a->xstate_bv = l->mask;
}

static bool bytes_differ(const char *name, const void *host, const void *soft, unsigned n)
{
    if (!memcmp(host, soft, n))
        return false;
    for (unsigned i = 0; i < n; i += 8)
        if (((const uint64_t *)host)[i / 8] != ((const uint64_t *)soft)[i / 8])
            printf("  %s +%u: host %#lx, engine %#lx\n", name, i, ((const uint64_t *)host)[i / 8],
                   ((const uint64_t *)soft)[i / 8]);
    return true;
}

bool vec_differ(const struct xsave_area *host, const struct xsave_area *soft)
{
    static const char *const names[XFEATURES] = {"x87", "sse", "ymm", "", "", "k", "zmm", "zmm16"};
    const struct fpu_layout *l = fpu_layout();
    bool bad = false;

    if (host->fcw != soft->fcw || host->fsw != soft->fsw || host->ftw != soft->ftw || host->mxcsr != soft->mxcsr) {
        printf("  fcw fsw ftw mxcsr: host %x %x %x %x, engine %x %x %x %x\n", host->fcw, host->fsw, host->ftw,
               host->mxcsr, soft->fcw, soft->fsw, soft->ftw, soft->mxcsr);
        bad = true;
    }
    for (unsigned i = 0; i < 8; i++)
        if (memcmp(host->st[i], soft->st[i], 10))
            bad |= bytes_differ("st", host->st[i], soft->st[i], 16);
    bad |= bytes_differ("xmm", host->xmm, soft->xmm, sizeof(host->xmm));
    for (unsigned i = 2; i < XFEATURES; i++)
        if (l->mask >> i & 1)
            bad |= bytes_differ(names[i] ? names[i] : "?", (const uint8_t *)host + l->comp[i].offset,
                                (const uint8_t *)soft + l->comp[i].offset, l->comp[i].size);
    return bad;
}
