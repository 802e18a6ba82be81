/* SPDX-License-Identifier: MIT
 * fuzz_insn.c: random instructions: bytes, structure with random fields, mutated true code. */
#include "fuzz_guest.h"
#include <link.h>

static struct {
    const uint8_t *at;
    size_t size;
} texts[16];
static unsigned ntexts;

/* Executable segments of other people's libraries: true code of compilers and of hand-written vector routines, the same
 * for a seed whatever was built last */
static int find_text(struct dl_phdr_info *info, size_t size, void *data)
{
    if (!strstr(info->dlpi_name, "/libc.so") && !strstr(info->dlpi_name, "Zydis"))
        return 0;
    for (unsigned i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];

        if (p->p_type == PT_LOAD && (p->p_flags & PF_X) && (p->p_flags & PF_R) && p->p_filesz > 4096 && ntexts < 16) {
            texts[ntexts].at = (const uint8_t *)(info->dlpi_addr + p->p_vaddr);
            texts[ntexts++].size = p->p_filesz;
        }
    }
    return 0;
}

static unsigned put_modrm(struct rng *r, uint8_t *p)
{
    const uint8_t modrm = (uint8_t)rnd(r);
    unsigned n = 0;

    p[n++] = modrm;
    if (modrm >> 6 == 3)
        return n;
    if ((modrm & 7) == 4)
        p[n++] = (uint8_t)rnd(r);
    if (modrm >> 6 == 1) {
        p[n++] = (uint8_t)rnd(r);
    } else if (modrm >> 6 == 2 || (modrm & 7) == 5) {
        const uint32_t disp = (uint32_t)(one_in(r, 3) ? rnd_value(r) : rnd_below(r, 0x4000));

        memcpy(p + n, &disp, 4);
        n += 4;
    }
    return n;
}

/* prefixes, REX, VEX or EVEX, a map, an opcode, ModRM, an immediate: each with a fair chance to be valid */
static unsigned put_structured(struct rng *r, uint8_t *p)
{
    static const uint8_t prefixes[] = {0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65};
    unsigned n = 0;

    while (one_in(r, 3) && n < 4)
        p[n++] = rnd_of(r, prefixes);
    switch (rnd_below(r, 8)) {
    case 0: /* VEX */
        p[n++] = 0xc4;
        p[n++] = (uint8_t)((rnd(r) & 0xe0) | (1 + rnd_below(r, 3)));
        p[n++] = (uint8_t)rnd(r);
        break;
    case 1:
        p[n++] = 0xc5;
        p[n++] = (uint8_t)rnd(r);
        break;
    case 2: /* EVEX */
        p[n++] = 0x62;
        p[n++] = (uint8_t)((rnd(r) & 0xf0) | (1 + rnd_below(r, 6)));
        p[n++] = (uint8_t)(rnd(r) | 4);
        p[n++] = (uint8_t)rnd(r);
        break;
    default:
        if (one_in(r, 2))
            p[n++] = (uint8_t)(0x40 | rnd_below(r, 16));
        if (one_in(r, 2)) {
            p[n++] = 0x0f;
            if (one_in(r, 4))
                p[n++] = one_in(r, 2) ? 0x38 : 0x3a;
        }
    }
    p[n++] = (uint8_t)rnd(r);
    n += put_modrm(r, p + n);
    for (unsigned imm = (unsigned)rnd_below(r, 5); imm; imm--)
        p[n++] = (uint8_t)(one_in(r, 2) ? 0 : rnd(r));
    return n;
}

/* System instructions whose random chance is small */
static unsigned put_system(struct rng *r, uint8_t *p)
{
    static const uint8_t some[][4] = {
        {0x0f, 0x22, 0xc0, 3}, {0x0f, 0x22, 0xd8, 3}, {0x0f, 0x22, 0xe0, 3}, {0x0f, 0x20, 0xc0, 3},
        {0x0f, 0x30, 0, 2},    {0x0f, 0x32, 0, 2},    {0x0f, 0x01, 0xd1, 3}, {0x0f, 0x01, 0xf8, 3},
        {0x0f, 0x01, 0xc1, 3}, {0x0f, 0x05, 0, 2},    {0x0f, 0x07, 0, 2},    {0x0f, 0x34, 0, 2},
        {0x0f, 0x35, 0, 2},    {0xcf, 0, 0, 1},       {0xcb, 0, 0, 1},       {0x9d, 0, 0, 1},
        {0x8e, 0xd0, 0, 2},    {0x8e, 0xd8, 0, 2},    {0x0f, 0x00, 0xd8, 3}, {0x0f, 0x00, 0xd0, 3},
        {0x0f, 0x01, 0x10, 3}, {0x0f, 0x01, 0x18, 3}, {0x0f, 0x01, 0x38, 3}, {0xf4, 0, 0, 1},
        {0xcc, 0, 0, 1},       {0xcd, 0x80, 0, 2},    {0xf1, 0, 0, 1},       {0x0f, 0xa2, 0, 2},
        {0x0f, 0x31, 0, 2},    {0xff, 0x28, 0, 2},    {0xff, 0x18, 0, 2},    {0x0f, 0x23, 0xf8, 3},
        {0x0f, 0x23, 0xc0, 3}, {0x0f, 0xae, 0x00, 3}, {0x0f, 0xae, 0x08, 3}, {0x0f, 0xae, 0x28, 3},
        {0x0f, 0xae, 0x20, 3}, {0x0f, 0xc7, 0x08, 3}, {0xf3, 0xa4, 0, 2},    {0xf3, 0xab, 0, 2},
        {0xf3, 0x6c, 0, 2},    {0xf3, 0x6e, 0, 2},    {0xec, 0, 0, 1},       {0xee, 0, 0, 1},
        {0xc8, 0x10, 0x1f, 4}, {0x0f, 0x01, 0xc4, 3}, {0x0f, 0x01, 0xca, 3}, {0x0f, 0x01, 0xcb, 3},
        {0xfb, 0, 0, 1},       {0xfa, 0, 0, 1},
    };
    const uint8_t *s = rnd_of(r, some);

    memcpy(p, s, 3);
    return s[3] > 3 ? 3 : s[3];
}

/* At most 32 bytes */
static unsigned put_insn(struct rng *r, uint8_t *p)
{
    unsigned n;

    switch (rnd_below(r, 10)) {
    case 0:
        n = 1 + (unsigned)rnd_below(r, 12);
        rnd_bytes(r, p, n);
        return n;
    case 1:
        return put_system(r, p);
    case 2:
    case 3:
    case 4: {
        if (!ntexts)
            return put_structured(r, p);
        const unsigned t = (unsigned)rnd_below(r, ntexts);

        n = 4 + (unsigned)rnd_below(r, 28);
        memcpy(p, texts[t].at + rnd_below(r, texts[t].size - 64), n);
        if (one_in(r, 2))
            p[rnd_below(r, n)] ^= (uint8_t)(1u << rnd_below(r, 8));
        return n;
    }
    default:
        return put_structured(r, p);
    }
}

void fuzz_fill_code(struct rng *r, uint8_t *code, size_t size)
{
    size_t n = 0;

    if (!ntexts)
        dl_iterate_phdr(find_text, NULL);
    while (n + 40 < size)
        n += put_insn(r, code + n);
    rnd_bytes(r, code + n, size - n);
}
