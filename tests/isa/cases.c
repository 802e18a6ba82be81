/* SPDX-License-Identifier: MIT
 * cases.c: operands for a form: registers, flags, vector state and memory of every kind, with addresses that lie inside
 * pages, cross them, or fault; runs both sides and compares all that an instruction may change. */
#include "isa.h"
#include "host_direct.h"
#include <stdio.h>
#include <stdlib.h>

uint64_t rng_state = 0x1234567887654321ull;
unsigned long row_cases[OP_COUNT];
unsigned verbose, max_reports = 200;
static unsigned reports, row_reports[OP_COUNT];

static struct regs before;
static unsigned guest_len, host_len; /* of the instruction, where the two sides run different encodings */
static uint64_t host_rip;
static struct outcome host, guest;

uint64_t rnd_value(void)
{
    static const uint64_t edges[] = {0,
                                     1,
                                     2,
                                     0x7f,
                                     0x80,
                                     0xff,
                                     0x7fff,
                                     0x8000,
                                     0xffff,
                                     0x7fffffff,
                                     0x80000000,
                                     0xffffffff,
                                     0x100000000ull,
                                     INT64_MAX,
                                     (uint64_t)INT64_MIN,
                                     ~0ull,
                                     ~1ull};

    switch (below(4)) {
    case 0:
        return edges[below(ARRAY_SIZE(edges))];
    case 1:
        return rnd() >> below(64);
    default:
        return rnd();
    }
}

/* ---- vector state ---- */
static uint32_t rnd_float(void)
{
    static const uint32_t edges[] = {0,          0x80000000, 0x3f800000, 0xbf800000, 0x7f800000,
                                     0xff800000, 0x7fc00000, 0x7f800001, 1,          0x807fffff,
                                     0x00800000, 0x4f000000, 0xcf000000, 0x7f7fffff};

    return below(3) ? (rnd() & 0x807fffff) | (100 + below(60)) << 23 : edges[below(ARRAY_SIZE(edges))];
}

static uint64_t rnd_double(void)
{
    static const uint64_t edges[] = {0,
                                     0x8000000000000000,
                                     0x3ff0000000000000,
                                     0x7ff0000000000000,
                                     0xfff0000000000000,
                                     0x7ff8000000000000,
                                     0x7ff0000000000001,
                                     1,
                                     0x0010000000000000,
                                     0x41e0000000000000,
                                     0xc1e0000000000000,
                                     0x43e0000000000000,
                                     0x47efffffe0000000,
                                     0x36a0000000000000};

    return below(3) ? (rnd() & 0x800fffffffffffff) | (uint64_t)(1000 + below(60)) << 52
                    : edges[below(ARRAY_SIZE(edges))];
}

static void fill_vector(void *to, unsigned size)
{
    const unsigned kind = below(5);
    uint64_t *q = to;

    for (unsigned i = 0; i < size / 8; i++)
        q[i] = kind == 0   ? rnd_float() | (uint64_t)rnd_float() << 32
               : kind == 1 ? rnd_double()
               : kind == 2 ? rnd_value()
                           : rnd();
}

static void fill_st(uint8_t st[16])
{
    static const uint16_t exps[] = {0, 0x3fff, 0xbfff, 0x7fff, 0xffff, 0x8000, 1};
    uint64_t mant = rnd() | 1ull << 63;
    uint16_t exp = 0x3fff - 40 + below(80) + (below(2) ? 0x8000 : 0);

    if (!below(4)) {
        exp = exps[below(ARRAY_SIZE(exps))];
        mant = below(2) ? below(2) * (1ull << 63) : rnd();
    }
    memset(st, 0, 16);
    memcpy(st, &mant, 8);
    memcpy(st + 8, &exp, 2);
}

static void fill_fpu(struct xsave_area *a)
{
    const struct fpu_layout *l = fpu_layout();

    memset(a, 0, sizeof(*a));
    a->fcw = 0x37f | below(4) << 10;
    if (!below(8))
        a->fcw = (a->fcw & ~0x33f) | (rnd() & 0x33f);
    a->fsw = rnd() & 0x7f00;
    if (!below(4))
        a->fsw |= rnd() & 0x3f;
    if (a->fsw & ~a->fcw & 0x3f) {
        if (below(4))
            a->fsw &= ~0x3f;
        else
            a->fsw |= FSW_ES | FSW_B;
    }
    a->ftw = below(4) ? 0xff : rnd();
    a->mxcsr = MXCSR_INIT | below(4) << 13;
    if (!below(4))
        a->mxcsr |= rnd() & 0x803f;
    if (!below(8))
        a->mxcsr = rnd() & 0xffff;
    for (unsigned i = 0; i < 8; i++)
        fill_st(a->st[i]);
    for (unsigned i = 0; i < 16; i++)
        fill_vector(a->xmm[i], 16);
    for (unsigned i = 2; i < XFEATURES; i++)
        for (unsigned at = 0; l->mask >> i & 1 && at < l->comp[i].size; at += 16)
            fill_vector((uint8_t *)a + l->comp[i].offset + at, l->comp[i].size - at < 16 ? 8 : 16);
    if (l->mask & XFEATURE_OPMASK) /* few or all lanes as well */
        for (unsigned i = 0; i < 8; i++)
            if (below(2))
                *(uint64_t *)((uint8_t *)a + l->comp[5].offset + 8 * i) = below(2) ? below(16) : rnd() & rnd() & rnd();
    a->xstate_bv = l->mask;
    a->mxcsr_mask = l->mxcsr_mask;
}

/* Element n, of size bytes, of vector register reg. */
static uint8_t *vector_element(struct xsave_area *a, unsigned reg, unsigned n, unsigned size)
{
    const struct fpu_layout *l = fpu_layout();
    const unsigned at = n * size;
    uint8_t *base = (uint8_t *)a;

    if (reg >= 16)
        return base + l->comp[7].offset + (reg - 16) * 64 + at;
    return at < 16   ? a->xmm[reg] + at
           : at < 32 ? base + l->comp[2].offset + reg * 16 + at - 16
                     : base + l->comp[6].offset + reg * 32 + at - 32;
}

/* ---- memory operands ---- */
static uint64_t segment_base(enum cpu_mode mode)
{
    return mode == MODE_COMPAT16 && host_has_mode(mode) ? ARENA : 0;
}

/* A linear address for an operand of size bytes. */
static uint64_t rnd_target(enum cpu_mode mode, unsigned size, bool may_fault)
{
    static const uint8_t data[] = {PG_RW0, PG_RW1, PG_RO, PG_RW2};
    const uint64_t page = ARENA + (uint64_t)data[below(may_fault ? 4 : 2)] * PAGE_SIZE;
    const unsigned kind = below(may_fault ? 8 : 5);

    size = size ? size : 8;
    switch (kind) {
    case 0:
    case 1: /* aligned as vectors are */
        return page + (below(PAGE_SIZE) & ~63u);
    case 2: /* the last bytes of a page */
        return page + PAGE_SIZE - (size < PAGE_SIZE ? size : 64);
    case 3:
    case 4:
        return page + 256 + below(PAGE_SIZE - 1024);
    case 5: /* over its end, or to the unmapped page before it */
        return page + PAGE_SIZE - 1 - below(size > 1 ? size - 1 : 1);
    case 6:
        return page - 1 - below(size);
    default:
        if (mode == MODE_64 && !below(3))
            return (rnd() | 1ull << 60) &
                   (INT64_MAX - (1ull << 47) + 1); /* not canonical; no page of ours in its low bits */
        return ARENA + PG_NONE0 * PAGE_SIZE + below(PAGE_SIZE);
    }
}

static int gpr_id(ZydisRegister reg)
{
    const ZydisRegisterClass c = ZydisRegisterGetClass(reg);

    return c == ZYDIS_REGCLASS_GPR16 || c == ZYDIS_REGCLASS_GPR32 || c == ZYDIS_REGCLASS_GPR64 ? ZydisRegisterGetId(reg)
                                                                                               : -1;
}

static void set_gpr(uint64_t *gpr, int id, uint64_t v, unsigned width)
{
    const uint64_t high = width >= 64 ? 0 : rnd() << width;

    gpr[id] = v & (width >= 64 ? ~0ull : (1ull << width) - 1);
    if (width < 64 && below(2)) /* an address size leaves the rest of a register alone */
        gpr[id] |= high;
}

/* Indices of a gather or scatter: most near the target. */
static void aim_vsib(const ZydisDecodedOperandMem *mem, uint64_t to, bool absolute, unsigned index_size)
{
    const unsigned reg = ZydisRegisterGetId(mem->index),
                   width = ZydisRegisterGetWidth(ZYDIS_MACHINE_MODE_LONG_64, mem->index);

    for (unsigned i = 0; i < width / 8 / index_size; i++) {
        int64_t v = (int64_t)below(below(6) ? 400 : 9000) - (below(2) ? 200 : 0);

        v = v / mem->scale + (absolute ? (int64_t)to / mem->scale : 0);
        memcpy(vector_element(before.fpu, reg, i, index_size), &v, index_size);
    }
}

/* Choose registers so that the operand is at the linear address to (or near it). */
static void aim(enum cpu_mode mode, const struct decoded *d, const ZydisDecodedOperand *op, uint64_t to)
{
    const ZydisDecodedOperandMem *mem = &op->mem;
    const unsigned width = d->zi.address_width;
    const bool no_base = d->zi.raw.sib.offset && d->zi.raw.modrm.mod == 0 && d->zi.raw.sib.base == 5; /* Zydis errs */
    const int base = no_base ? -1 : gpr_id(mem->base), index = gpr_id(mem->index);
    const uint64_t disp = no_base ? d->zi.raw.disp.value : mem->disp.has_displacement ? mem->disp.value : 0;
    const uint64_t ea = to - segment_base(mode) - disp;

    if (ZydisRegisterGetClass(mem->index) >= ZYDIS_REGCLASS_XMM &&
        ZydisRegisterGetClass(mem->index) <= ZYDIS_REGCLASS_ZMM) {
        const char *name = ZydisMnemonicGetString(d->zi.mnemonic);
        const char *at = strstr(name, "gather") ? strstr(name, "gather") + 6 : strstr(name, "scatter") + 7;

        aim_vsib(mem, ea, base < 0, *at == 'd' ? 4 : 8);
        if (base >= 0)
            set_gpr(before.gpr, base, ea, width);
        return;
    }
    if (base >= 0 && index >= 0 && base == index) {
        set_gpr(before.gpr, base, ea / (1 + mem->scale), width);
    } else if (base >= 0 && index >= 0) {
        uint64_t i = below(4) ? below(64) : rnd_value();

        if (mode == MODE_64 && width == 32)
            i = below(64);
        set_gpr(before.gpr, index, i, width);
        set_gpr(before.gpr, base, ea - i * mem->scale, width);
    } else if (base >= 0) {
        set_gpr(before.gpr, base, ea, width);
    } else if (index >= 0) {
        set_gpr(before.gpr, index, ea / mem->scale, width);
    }
}

/* Operands without registers: the displacement says where; once for each encoding. */
static void patch_displacement(enum cpu_mode mode, uint8_t *bytes, struct decoded *d, uint64_t rip)
{
    for (unsigned i = 0; i < d->zi.operand_count; i++) {
        const ZydisDecodedOperand *op = &d->ops[i];
        uint64_t disp;

        if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || op->mem.index != ZYDIS_REGISTER_NONE ||
            gpr_id(op->mem.base) >= 0 || !d->zi.raw.disp.size)
            continue;
        disp = rnd_target(mode, op->size / 8, below(3) == 0) - segment_base(mode);
        if (disp >> 31)
            disp = 0x12345678; /* nothing there */
        if (ZydisRegisterGetClass(op->mem.base) == ZYDIS_REGCLASS_IP)
            disp -= rip + d->zi.length;
        memcpy(bytes + d->zi.raw.disp.offset, &disp, d->zi.raw.disp.size / 8);
        form_decode(mode, bytes, d);
        return;
    }
}

/* ---- registers ---- */
static void scrub_memory(uint64_t gva)
{
    for (unsigned i = 0; i < 160; i += 8) {
        const uint64_t at = (gva & ~7ull) - 16 + i, pg = (at - ARENA) / PAGE_SIZE;
        uint8_t v[8];

        if (at < ARENA || pg >= ARENA_PAGES || pg == PG_CODE || !page_mapped(pg))
            continue;
        fill_vector(v, 8);
        memcpy(host_page(pg) + at % PAGE_SIZE, v, 8);
        memcpy(guest_page(pg) + at % PAGE_SIZE, v, 8);
    }
}

static void poke(uint64_t gva, const void *v, unsigned n)
{
    for (unsigned i = 0; i < n; i++, gva++) {
        const uint64_t pg = (gva - ARENA) / PAGE_SIZE;

        if (gva < ARENA || pg >= ARENA_PAGES || pg == PG_CODE || !page_mapped(pg))
            continue;
        host_page(pg)[gva % PAGE_SIZE] = ((const uint8_t *)v)[i];
        guest_page(pg)[gva % PAGE_SIZE] = ((const uint8_t *)v)[i];
    }
}

static bool named(const struct form *f, const char *list)
{
    char name[40];

    snprintf(name, sizeof(name), " %s ", op_rows[f->row].name);
    return strstr(list, name);
}

/* A small number in a register that the operand's address is made of leads over the 4 GB edge: the limit's #GP in
 * 32-bit code, but not in its 64-bit twin. */
static bool addresses_by(const struct decoded *d, int gpr)
{
    for (unsigned i = 0; i < d->zi.operand_count; i++)
        if (d->ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY &&
            (gpr_id(d->ops[i].mem.base) == gpr || gpr_id(d->ops[i].mem.index) == gpr))
            return true;
    return false;
}

/* Values that a random choice would hardly hit, or that keep both sides inside the arena. */
static void special_operands(enum cpu_mode mode, const struct form *f, const struct decoded *d, uint64_t target)
{
    uint64_t *g = before.gpr;

    if (d->zi.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE))
        g[R_RCX] = below(20) | (d->zi.address_width < 64 && below(2) ? rnd() << 32 : 0);
    if (named(f, " BT BTS BTR BTC ") && d->ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY &&
        gpr_id(d->ops[1].reg.value) >= 0) {
        const int id = gpr_id(d->ops[1].reg.value);

        if (id != gpr_id(d->ops[0].mem.base) && id != gpr_id(d->ops[0].mem.index))
            g[id] = (uint64_t)((int64_t)below(20000) - 10000);
    }
    if (named(f, " CLZERO ")) /* its operand is nobody's in Zydis's list */
        g[R_RAX] = rnd_target(mode, 64, !target) - segment_base(mode);
    if (named(f, " DIV IDIV ") && below(2) && (host_has_mode(mode) || !addresses_by(d, R_RDX)))
        g[R_RDX] = below(2) ? 0 : (uint64_t)((int64_t)g[R_RAX] >> 63);
    if (named(f, " IDIV ") && !below(16) && !addresses_by(d, R_RAX) &&
        !addresses_by(d, R_RDX)) { /* the least quotient, from a dividend that is not sign-extended */
        const unsigned size = d->ops[0].size / 8;
        const int divisor = gpr_id(d->ops[0].reg.value);

        g[R_RAX] = 1ull << (8 * size - 1);
        g[R_RDX] = 0;
        if (target)
            poke(target, &(uint64_t){~0ull}, size);
        else if (divisor >= 0)
            g[divisor] = ~0ull;
    }
    if (named(f, " POPF POPFD POPFQ ")) {
        const uint64_t flags = rnd() & ~(F_AC | F_NT | F_ID); /* AC would fault in the host's signal handler */

        poke(target, &flags, 8);
    }
    if (named(f, " FLDENV FRSTOR FXRSTOR FXRSTOR64 ") && below(4)) /* a valid MXCSR, few unmasked exceptions */
        poke(target + 24, &(uint32_t){rnd() & 0xffff}, 4);
    if (named(f, " LDMXCSR VLDMXCSR ") && below(4))
        poke(target, &(uint32_t){rnd() & 0xffff}, 4);
    if (named(f, " ENTER "))
        g[R_RBP] = rnd_target(mode, 64, false) - segment_base(mode);
    if (named(f, " PCMPESTRI PCMPESTRM VPCMPESTRI VPCMPESTRM ") && below(2)) {
        if (host_has_mode(mode) || !addresses_by(d, R_RAX))
            g[R_RAX] = below(40) - 20;
        if (host_has_mode(mode) || !addresses_by(d, R_RDX))
            g[R_RDX] = below(40) - 20;
    }
}

static void xsave_operand(const struct form *f, uint64_t target)
{
    uint64_t header[8] = {rnd() & fpu_layout()->mask, 0};

    if (!named(f, " XRSTOR XRSTOR64 ") || target < ARENA)
        return;
    if (!below(4)) {
        header[1] = 1ull << 63 | (rnd() & fpu_layout()->mask) | header[0];
    } else if (!below(6)) {
        header[below(8)] |= 1ull << below(64);
    }
    for (unsigned i = 0; i < 2700; i += 8)
        poke((target & ~63ull) + i, &(uint64_t){rnd()}, 8);
    poke((target & ~63ull) + 512, header, 64);
    if (below(8))
        poke((target & ~63ull) + 24, &(uint32_t){rnd() & 0xffff}, 4);
}

static void random_state(enum cpu_mode mode, const struct form *f, const struct decoded *d)
{
    for (unsigned i = 0; i < 16; i++)
        before.gpr[i] = mode == MODE_64 ? rnd_value() : i < 8 ? (uint32_t)rnd_value() : 0;
    before.rflags = (rnd() & F_OSZAPC) | (below(6) ? 0 : F_DF) | F_RESERVED;
    fill_fpu(before.fpu);
    for (unsigned i = 0; i < d->zi.operand_count; i++) {
        const ZydisDecodedOperand *op = &d->ops[i];
        uint64_t target;

        if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || op->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
            continue;
        target = rnd_target(mode, op->size / 8, below(3) == 0);
        if (named(f, " XSAVE XSAVE64 XSAVEC XSAVEC64 XSAVEOPT XSAVEOPT64 XRSTOR XRSTOR64 ")) {
            target = below(4) ? ARENA + PG_RW0 * PAGE_SIZE + below(2000) * 64 % 5000 : target;
            target &= below(16) ? ~63ull : ~0ull;
        }
        aim(mode, d, op, target);
        if (gpr_id(op->mem.base) < 0 && op->mem.index == ZYDIS_REGISTER_NONE)
            target = segment_base(mode) + op->mem.disp.value +
                     (ZydisRegisterGetClass(op->mem.base) == ZYDIS_REGCLASS_IP ? before.rip + d->zi.length : 0);
        scrub_memory(target);
        special_operands(mode, f, d, target);
        xsave_operand(f, target);
    }
    special_operands(mode, f, d, 0);
    before.gpr[R_RSP] &= (1ull << 47) - 1; /* the host's IRET to the instruction takes no other */
    if (mode != MODE_64)
        for (unsigned i = 0; i < 16; i++)
            before.gpr[i] = i < 8 ? (uint32_t)before.gpr[i] : 0;
}

/* ---- comparing ---- */
static char why[400];

#define DIFFER(...)                              \
    do {                                         \
        snprintf(why, sizeof(why), __VA_ARGS__); \
        return true;                             \
    } while (0)

static bool bytes_differ(const char *name, const void *a, const void *b, unsigned n)
{
    const uint8_t *x = a, *y = b;

    for (unsigned i = 0; i < n; i++)
        if (x[i] != y[i]) {
            const unsigned at = i & ~7u;

            DIFFER("%s +%u: host %016llx, interpreter %016llx", name, at, *(const unsigned long long *)(x + at),
                   *(const unsigned long long *)(y + at));
        }
    return false;
}

/* All else is equal. A context switch of the host between the step and its signal may lose these pointers. */
static bool only_pointers;

static bool fpu_differs(const struct xsave_area *a, const struct xsave_area *b)
{
    const struct fpu_layout *l = fpu_layout();
    static const char *const names[] = {"x87", "sse", "ymm", "", "", "k", "zmm", "zmm16"};

    if (a->fcw != b->fcw || a->fsw != b->fsw || a->ftw != b->ftw)
        DIFFER("x87: host fcw %x fsw %x ftw %x, interpreter %x %x %x", a->fcw, a->fsw, a->ftw, b->fcw, b->fsw, b->ftw);
    if (a->mxcsr != b->mxcsr)
        DIFFER("mxcsr: host %x, interpreter %x", a->mxcsr, b->mxcsr);
    for (unsigned i = 0; i < 8; i++)
        if (memcmp(a->st[i], b->st[i], 10))
            return bytes_differ("st", a->st, b->st, sizeof(a->st));
    if (bytes_differ("xmm", a->xmm, b->xmm, sizeof(a->xmm)))
        return true;
    for (unsigned i = 2; i < XFEATURES; i++)
        if (l->mask >> i & 1 && bytes_differ(names[i], (const uint8_t *)a + l->comp[i].offset,
                                             (const uint8_t *)b + l->comp[i].offset, l->comp[i].size))
            return true;
    if (host_rip != before.rip)
        return false;
    only_pointers = true;
    if (a->fop != b->fop || a->fip != b->fip || a->fdp != b->fdp)
        DIFFER("x87 pointers: host fop %x fip %llx fdp %llx, interpreter %x %llx %llx", a->fop,
               (unsigned long long)a->fip, (unsigned long long)a->fdp, b->fop, (unsigned long long)b->fip,
               (unsigned long long)b->fdp);
    return false;
}

static bool memory_differs(void)
{
    for (unsigned pg = 0; pg < ARENA_PAGES; pg++)
        if (page_writable(pg) && memcmp(host_page(pg), guest_page(pg), PAGE_SIZE)) {
            char name[16];

            snprintf(name, sizeof(name), "page %u", pg);
            return bytes_differ(name, host_page(pg), guest_page(pg), PAGE_SIZE);
        }
    return false;
}

static void resync(void)
{
    for (unsigned pg = 0; pg < ARENA_PAGES; pg++)
        if (page_writable(pg))
            memcpy(guest_page(pg), host_page(pg), PAGE_SIZE);
}

#define LONG_OPERANDS                                                                                         \
    " FLDENV FNSTENV FRSTOR FNSAVE FXSAVE FXSAVE64 FXRSTOR FXRSTOR64 XSAVE XSAVE64 XSAVEC XSAVEC64 XSAVEOPT " \
    "XSAVEOPT64 "                                                                                             \
    "XRSTOR XRSTOR64 MASKMOVQ MASKMOVDQU VMASKMOVDQU "
static bool differs(const struct form *f)
{
    static const char *const names[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                        "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    /* translated code checks operands with the flags of an instruction that is going to write them all */
    const uint64_t faulted = guest_translated() ? op_rows[f->row].must : 0;
    const uint64_t masked = (host.vector < 0 ? op_rows[f->row].undef : faulted) | F_TF | F_RF;

    if (named(f, LONG_OPERANDS) && host.vector == VEC_PF) {
        /* which part of a long operand the host touches first is its own business, and how much of it XRSTOR reads */
        if (guest.vector == VEC_PF || named(f, " XRSTOR XRSTOR64 "))
            return memory_differs();
    }
    if (host.cr2 >> 46) /* what the kernel maps there does not count */
        host.error |= PF_P, guest.error |= PF_P;
    if (named(f, " ENTER ") && host.vector == VEC_PF &&
        guest.vector == VEC_PF) /* several pushes and reads: any first */
        guest.error = host.error, guest.cr2 = host.cr2;
    if (named(f, " CALL ") && host.vector == VEC_PF && guest.vector == VEC_GP) /* both apply: stack, and target */
        return false;
    if (host.vector != guest.vector || host.error != guest.error || host.cr2 != guest.cr2)
        DIFFER("host: vector %d error %x cr2 %llx, interpreter: %d %x %llx", host.vector, host.error,
               (unsigned long long)host.cr2, guest.vector, guest.error, (unsigned long long)guest.cr2);
    for (unsigned i = 0; i < 16; i++)
        if (host.r.gpr[i] != guest.r.gpr[i])
            DIFFER("%s: host %llx, interpreter %llx (before %llx)", names[i], (unsigned long long)host.r.gpr[i],
                   (unsigned long long)guest.r.gpr[i], (unsigned long long)before.gpr[i]);
    if (host_len == guest_len
            ? host.r.rip - host_rip != guest.r.rip - before.rip
            : host.vector < 0 && host.r.rip - host_rip - host_len != guest.r.rip - before.rip - guest_len)
        DIFFER("rip: host %llx, interpreter %llx", (unsigned long long)host.r.rip, (unsigned long long)guest.r.rip);
    if ((host.r.rflags ^ guest.r.rflags) & ~masked)
        DIFFER("rflags: host %llx, interpreter %llx", (unsigned long long)host.r.rflags,
               (unsigned long long)guest.r.rflags);
    if (host.vector >= 0 &&
        named(f, " ENTER ")) /* the host has pushed a part of the display when a later push faults */
        resync();
    return memory_differs() || fpu_differs(host.r.fpu, guest.r.fpu);
}

static void report(enum cpu_mode mode, const uint8_t *bytes, const struct decoded *d, const struct insn *in)
{
    char text[120] = "?", hex[40] = "";
    struct insn copy = *in;

    memcpy(copy.bytes, bytes, 15);
    copy.len = d->zi.length;
    copy.mode = mode;
    insn_print(&copy, before.rip, text, sizeof(text));
    for (unsigned i = 0; i < d->zi.length; i++)
        sprintf(hex + 2 * i, "%02x", bytes[i]);
    printf("  %s-bit %-30s %s\n      [%d] %s\n",
           mode == MODE_64         ? "64"
           : mode == MODE_COMPAT32 ? "32"
                                   : "16",
           hex, text, host.vector, why);
    if (verbose) {
        for (unsigned i = 0; i < 16; i++)
            printf("      r%-2u %016llx%s", i, (unsigned long long)before.gpr[i], i % 4 == 3 ? "\n" : "");
        printf("      rflags %llx mxcsr %x fcw %x fsw %x\n", (unsigned long long)before.rflags, before.fpu->mxcsr,
               before.fpu->fcw, before.fpu->fsw);
    }
}

static void alloc_states(void)
{
    const size_t size = (cpu_fpu_area_size() + 4095) & ~4095ul;

    if (before.fpu)
        return;
    before.fpu = aligned_alloc(64, size);
    host.r.fpu = aligned_alloc(64, size);
    guest.r.fpu = aligned_alloc(64, size);
    memset(before.fpu, 0, size);
}

/* Put the bytes on both code pages. False: this host cannot be asked about them. */
static bool place(enum cpu_mode mode, const uint8_t *bytes, const struct decoded *d, unsigned at)
{
    uint8_t other[15];

    guest_len = host_len = d->zi.length;
    if (!host_has_mode(mode)) {
        host_len = form_in_64(mode, bytes, d, other);
        if (!host_len)
            return false;
    }
    memcpy(host_page(PG_CODE) + at, host_has_mode(mode) ? bytes : other, host_len);
    host_direct_end(host_page(PG_CODE) + at + host_len);
    memcpy(guest_page(PG_CODE) + at, bytes, guest_len);
    host_rip = host_has_mode(mode) ? before.rip : ARENA + at;
    return true;
}

static void run_host(enum cpu_mode mode, const struct decoded *d)
{
    struct regs r = before;

    r.rip = host_rip;
    host_repeats = d->zi.meta.branch_type == ZYDIS_BRANCH_TYPE_NONE; /* strings, and gathers */
    host_direct_ok = (mode == MODE_64 || !host_has_mode(mode)) && host_direct_can(d) ? host_len : 0;
    host_run(host_has_mode(mode) ? mode : MODE_64, &r, &host);
}

void run_form(enum cpu_mode mode, const struct form *f, unsigned n, struct totals *t)
{
    const unsigned each = 8;
    bool reported = false;

    alloc_states();
    if (verbose > 1)
        fprintf(stderr, "%s\n", op_rows[f->row].name);
    for (unsigned i = 0; i < n; i += each) {
        uint8_t bytes[15];
        struct decoded d;
        struct insn in;
        const unsigned at = 64 + below(3900);

        if (i == 0) {
            memcpy(bytes, f->bytes, 15);
            form_decode(mode, bytes, &d);
        } else {
            form_vary(mode, f, bytes, &d);
        }
        before.rip = (mode == MODE_COMPAT16 ? 0 : ARENA) + at;
        patch_displacement(mode, bytes, &d, before.rip);
        if (!place(mode, bytes, &d, at)) {
            t->not_comparable++;
            continue;
        }
        host_fpu_save(guest_cpu());
        insn_decode(bytes, d.zi.length, mode, &in);
        for (unsigned j = 0; j < each; j++) {
            random_state(mode, f, &d);
            run_host(mode, &d);
            guest_run(&in, &before, &guest);
            only_pointers = false;
            if (differs(f) && only_pointers) { /* so ask again */
                run_host(mode, &d);
                guest_run(&in, &before, &guest);
            }
            t->cases++;
            row_cases[f->row]++;
            t->faults += host.vector >= 0;
            if (!differs(f))
                continue;
            t->failures++;
            if (!reported && reports < max_reports && row_reports[f->row]++ < 3) {
                report(mode, bytes, &d, &in);
                reports++;
                reported = true;
            }
            resync();
        }
    }
}
