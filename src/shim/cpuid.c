/* SPDX-License-Identifier: MIT
 * cpuid.c: a client that looks for VMX or SVM in its own CPUID must see it. CPUID cannot be made to fault here, so the
 * CPUID instructions of the program's text become UD2, and a SIGILL handler answers for them: the processor's answer
 * with one bit more. Only instructions whose place is certain: a function's start is taken from .eh_frame, and a linear
 * decode from there must arrive at the two bytes.
 *
 * ANYKVM_CPUID (anykvm exec --cpuid): auto, the default: a program that has "/dev/kvm" among its constants; on: any
 * program; off. Nothing is done on a processor that has the bit. */
#include "shim.h"
#include <Zydis/Zydis.h>
#include <cpuid.h>
#include <link.h>
#include <string.h>
#include <ucontext.h>

#define SITES_MAX 512
#define VMX_BIT   (1u << 5) /* leaf 1, ECX */
#define SVM_BIT   (1u << 2) /* leaf 0x80000001, ECX */

static const uint8_t cpuid_bytes[2] = {0x0f, 0xa2}, ud2_bytes[2] = {0x0f, 0x0b};
static uintptr_t sites[SITES_MAX]; /* ascending; complete before the first one is replaced */
static unsigned site_count;

/* ---- the answer ---- */
bool shim_vendor_is_amd(void)
{
    uint32_t a, b, c, d;

    __cpuid(0, a, b, c, d);
    return b == signature_AMD_ebx || (b == 0x6f677948 && d == 0x6e65476e); /* HygonGenuine */
}

static void answer(uint32_t *a, uint32_t *b, uint32_t *c, uint32_t *d)
{
    const uint32_t leaf = *a, subleaf = *c;

    __cpuid_count(leaf, subleaf, *a, *b, *c, *d);
    if (leaf == 1 && !shim_vendor_is_amd())
        *c |= VMX_BIT;
    else if (leaf == 0x80000001 && shim_vendor_is_amd())
        *c |= SVM_BIT;
}

bool shim_cpuid_has_bit(void)
{
    uint32_t a = shim_vendor_is_amd() ? 0x80000001 : 1, b, c = 0, d;

    __cpuid_count(a, c, a, b, c, d);
    return c & (shim_vendor_is_amd() ? SVM_BIT : VMX_BIT);
}

bool shim_cpuid_answer(ucontext_t *uc)
{
    greg_t *r = uc->uc_mcontext.gregs;
    unsigned lo = 0, hi = site_count;
    uint32_t a = (uint32_t)r[REG_RAX], b, c = (uint32_t)r[REG_RCX], d;

    while (lo < hi) {
        const unsigned mid = (lo + hi) / 2;

        if (sites[mid] < (uintptr_t)r[REG_RIP])
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == site_count || sites[lo] != (uintptr_t)r[REG_RIP])
        return false;
    answer(&a, &b, &c, &d);
    r[REG_RAX] = a;
    r[REG_RBX] = b;
    r[REG_RCX] = c;
    r[REG_RDX] = d;
    r[REG_RIP] += sizeof(cpuid_bytes);
    return true;
}

bool shim_cpuid_active(void)
{
    return site_count;
}

/* ---- functions: .eh_frame_hdr's table of starts (LSB, "Exception Frames") ---- */
struct eh_table {
    const uint8_t *hdr;
    const int32_t (*row)[2]; /* distances from hdr: a function's start, its frame description */
    uint32_t rows;
};

static bool eh_table(const struct dl_phdr_info *info, struct eh_table *t)
{
    enum { DATAREL_SDATA4 = 0x3b, PCREL_SDATA4 = 0x1b, UDATA4 = 0x03 };

    for (unsigned i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *ph = &info->dlpi_phdr[i];

        if (ph->p_type != PT_GNU_EH_FRAME || ph->p_memsz < 12)
            continue;
        t->hdr = (const uint8_t *)(info->dlpi_addr + ph->p_vaddr);
        if (t->hdr[0] != 1 || t->hdr[1] != PCREL_SDATA4 || t->hdr[2] != UDATA4 || t->hdr[3] != DATAREL_SDATA4)
            return false; /* the form that every linker writes */
        memcpy(&t->rows, t->hdr + 8, sizeof(t->rows));
        t->row = (const void *)(t->hdr + 12);
        return t->rows <= (ph->p_memsz - 12) / sizeof(*t->row);
    }
    return false;
}

static const uint8_t *skip_leb(const uint8_t *p)
{
    while (*p++ & 0x80)
        ;
    return p;
}

static bool four_bytes(uint8_t encoding)
{
    return (encoding & 0x0f) == 0x0b || (encoding & 0x0f) == 0x03; /* sdata4, udata4 */
}

/* How the frame descriptions of this common entry write a function's start and length: 4 bytes each? */
static bool four_byte_pointers(const uint8_t *cie)
{
    const char *aug = (const char *)cie + 9; /* length, id, version */
    const uint8_t *p = (const uint8_t *)aug + strlen(aug) + 1;

    if (aug[0] != 'z')
        return false;
    p = skip_leb(skip_leb(p));             /* alignment of code and data */
    p = cie[8] == 1 ? p + 1 : skip_leb(p); /* return address */
    p = skip_leb(p);                       /* length of what follows */
    for (aug++; *aug; aug++) {
        if (*aug == 'R')
            return four_bytes(*p);
        if (*aug == 'P' && four_bytes(*p))
            p += 5;
        else if (*aug == 'L')
            p++;
        else if (*aug != 'S')
            return false;
    }
    return false;
}

/* The function around `at`: false where none is described. */
static bool function_around(const struct eh_table *t, uintptr_t at, uintptr_t *start, uintptr_t *end)
{
    const intptr_t want = (intptr_t)(at - (uintptr_t)t->hdr);
    uint32_t lo = 0, hi = t->rows, back, length;
    const uint8_t *fde;

    while (lo < hi) {
        const uint32_t mid = (lo + hi) / 2;

        if (t->row[mid][0] <= want)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == 0)
        return false;
    fde = t->hdr + t->row[lo - 1][1];
    memcpy(&length, fde, sizeof(length));
    memcpy(&back, fde + 4, sizeof(back));
    if (length == UINT32_MAX || !four_byte_pointers(fde + 4 - back))
        return false;
    memcpy(&length, fde + 12, sizeof(length));
    *start = (uintptr_t)t->hdr + (uintptr_t)(intptr_t)t->row[lo - 1][0];
    *end = *start + length;
    return at + sizeof(cpuid_bytes) <= *end;
}

/* Does a linear decode of the function arrive at `at`? */
static bool is_instruction(const ZydisDecoder *decoder, uintptr_t start, uintptr_t end, uintptr_t at)
{
    ZydisDecodedInstruction in;

    while (start < at) {
        if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(decoder, NULL, (const void *)start, end - start, &in)))
            return false;
        start += in.length;
    }
    return start == at;
}

/* ---- the program ---- */
static void find_sites(const struct dl_phdr_info *info, const ElfW(Phdr) * ph, const struct eh_table *t,
                       const ZydisDecoder *decoder)
{
    const uint8_t *text = (const uint8_t *)(info->dlpi_addr + ph->p_vaddr), *end = text + ph->p_memsz, *p = text;
    uintptr_t first, last;

    while (site_count < SITES_MAX && (p = memmem(p, (size_t)(end - p), cpuid_bytes, sizeof(cpuid_bytes)))) {
        const uintptr_t at = (uintptr_t)p++;

        if (function_around(t, at, &first, &last) && first >= (uintptr_t)text && last <= (uintptr_t)end &&
            is_instruction(decoder, first, last, at))
            sites[site_count++] = at;
    }
}

static bool has_constant(const struct dl_phdr_info *info, const char *text)
{
    for (unsigned i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *ph = &info->dlpi_phdr[i];

        if (ph->p_type == PT_LOAD && (ph->p_flags & (PF_R | PF_W)) == PF_R &&
            memmem((const void *)(info->dlpi_addr + ph->p_vaddr), ph->p_memsz, text, strlen(text)))
            return true;
    }
    return false;
}

static void replace(const struct dl_phdr_info *info, const ElfW(Phdr) * ph)
{
    const uintptr_t text = info->dlpi_addr + ph->p_vaddr, end = text + ph->p_memsz;
    const int prot = PROT_EXEC | (ph->p_flags & PF_R ? PROT_READ : 0);
    unsigned i;

    for (i = 0; i < site_count; i++) {
        const uintptr_t page = sites[i] & ~4095ul;
        const size_t size = ((sites[i] + 1) & ~4095ul) - page + 4096;

        if (sites[i] < text || sites[i] >= end)
            continue;
        if (mprotect((void *)page, size, prot | PROT_READ | PROT_WRITE)) /* forbidden by policy: then not */
            return;
        memcpy((void *)sites[i], ud2_bytes, sizeof(ud2_bytes));
        mprotect((void *)page, size, prot);
    }
}

/* The first object is the program. */
static int on_program(struct dl_phdr_info *info, size_t size, void *always)
{
    ZydisDecoder decoder;
    struct eh_table table;

    if ((!always && !has_constant(info, "/dev/kvm")) || !eh_table(info, &table))
        return 1;
    ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    for (unsigned i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD && (info->dlpi_phdr[i].p_flags & PF_X))
            find_sites(info, &info->dlpi_phdr[i], &table, &decoder);
    if (!site_count)
        return 1;
    shim_claim_sigill();
    for (unsigned i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD && (info->dlpi_phdr[i].p_flags & PF_X))
            replace(info, &info->dlpi_phdr[i]);
    return 1;
}

__attribute__((constructor)) static void cpuid_init(void)
{
    const char *wish = getenv("ANYKVM_CPUID");

    if ((!wish || strcmp(wish, "off")) && !shim_cpuid_has_bit())
        dl_iterate_phdr(on_program, wish && !strcmp(wish, "on") ? (void *)1 : NULL);
}
