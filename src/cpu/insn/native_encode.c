/* SPDX-License-Identifier: MIT
 * native_encode.c: host copies of vector and x87 instructions. A copy takes (struct cpu_state *rdi, void *mem rsi): the
 * memory operand became [rsi] without segment, index or displacement, explicit general registers became rax and rcx,
 * which are loaded from and stored to the state around it, and flags that it reads or writes are the state's.
 * Everything else of the encoding is the guest's. Copies are shared by all cpus and never freed: there are as many as
 * distinct instructions, up to a limit. What comes after that is made anew each time it runs, in a slot of the cpu.
 *
 * Runs outside of guest mode's vector state (the decoder's callers did host_fpu_save()): Zydis and libc are allowed. */
#include <Zydis/Zydis.h>
#include <sys/mman.h>
#include <stdlib.h>
#include <unistd.h>
#include "insn/fpu.h"
#include "mem/mem.h"

extern const uint32_t native_keys[NC_COUNT][2];

/* ---- the arena: one memfd, mapped writable and executable at two addresses ---- */
#define COPIES_MAX  (1u << 18) /* some 60 MB */
#define SHARED_SIZE (64u << 20)
#define SLOT_SIZE   1024u                             /* for the parts of a gather */
#define SLOTS       1024u                             /* the first is for trying */
#define ARENA_SIZE  (SHARED_SIZE + SLOTS * SLOT_SIZE) /* sparse */
static uint8_t *arena_w, *arena_x;
static size_t arena_used, arena_end = SHARED_SIZE; /* where the next copy goes; while a slot is filled: there */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

bool native_owns(uint64_t host_rip)
{
    return arena_x && host_rip - (uint64_t)arena_x < ARENA_SIZE;
}

static bool arena_init(void)
{
    void *w, *x;
    int fd;

    if (arena_x)
        return true;
    fd = memfd_create("anykvm-native", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, ARENA_SIZE) < 0)
        return false;
    w = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    x = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_NORESERVE, fd, 0);
    close(fd);
    if (w == MAP_FAILED || x == MAP_FAILED)
        return false;
    madvise(w, ARENA_SIZE, MADV_DONTDUMP);
    madvise(x, ARENA_SIZE, MADV_DONTDUMP);
    arena_w = w;
    arena_x = x;
    return true;
}

/* ---- emitting ---- */
struct code {
    uint8_t b[128];
    unsigned n;
};

static void put(struct code *c, const void *bytes, unsigned n)
{
    if (c->n + n <= sizeof(c->b))
        memcpy(c->b + c->n, bytes, n);
    c->n += n;
}
#define PUT(c, ...) put(c, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static native_fn *commit(struct code *c)
{
    uint8_t *x;

    PUT(c, 0x31, 0xc0, 0xc3); /* xor eax, eax; ret */
    if (c->n > sizeof(c->b) || !arena_init() || arena_used + sizeof(c->b) > arena_end)
        return NULL;
    memcpy(arena_w + arena_used, c->b, c->n);
    x = arena_x + arena_used;
    arena_used += (c->n + 15) & ~15u;
    return (native_fn *)x;
}

#define STATE_OFFSET(field) ((uint8_t)offsetof(struct cpu_state, field))
_Static_assert(offsetof(struct cpu_state, flags) + 8 <= 256, "state.def: flags in the hot part");

static void put_load_gpr(struct code *c, unsigned host, unsigned guest) /* mov host, [rdi + 8*guest]; host < 8 */
{
    PUT(c, 0x48, 0x8b, 0x47 | host << 3, STATE_OFFSET(gpr) + 8 * guest);
}

static void put_store_gpr(struct code *c, unsigned host, unsigned guest)
{
    PUT(c, 0x48, 0x89, 0x47 | host << 3, STATE_OFFSET(gpr) + 8 * guest);
}

static void put_disp32(struct code *c, uint32_t disp)
{
    put(c, &disp, 4);
}

static void put_load_flags(struct code *c) /* push qword [rdi + flags]; popfq */
{
    PUT(c, 0xff, 0xb7);
    put_disp32(c, offsetof(struct cpu_state, flags));
    PUT(c, 0x9d);
}

static void put_store_flags(struct code *c) /* pushfq; pop r8; and r8d, OSZAPC; mov [rdi + flags], r8 */
{
    PUT(c, 0x9c, 0x41, 0x58, 0x41, 0x81, 0xe0);
    put_disp32(c, F_OSZAPC);
    PUT(c, 0x4c, 0x89, 0x87);
    put_disp32(c, offsetof(struct cpu_state, flags));
}

/* vmovdqu between vector register reg and [rsi], by vl bytes (16, 32: VEX; 64 or reg > 15: EVEX vmovdqu64). */
static native_fn *copy_vector(bool store, unsigned reg, unsigned vl)
{
    const unsigned low = reg & 7;
    struct code c = {.n = 0};

    if (vl < 64 && reg < 16)
        PUT(&c, 0xc5, (reg < 8 ? 0x80 : 0) | 0x78 | (vl == 32 ? 4 : 0) | 2, store ? 0x7f : 0x6f, low << 3 | 6);
    else
        PUT(&c, 0x62, (reg & 8 ? 0 : 0x80) | 0x60 | (reg & 16 ? 0 : 0x10) | 1, 0xfe,
            (vl == 64   ? 0x48
             : vl == 32 ? 0x28
                        : 0x08),
            store ? 0x7f : 0x6f, low << 3 | 6);
    return commit(&c);
}

/* kmovq (kmovw without AVX512BW) between mask register k and [rsi]. */
static native_fn *copy_mask(bool store, unsigned k)
{
    const bool bw = cpu_has_feature(FEAT_AVX512BW);
    struct code c = {.n = 0};

    if (bw)
        PUT(&c, 0xc4, 0xe1, 0xf8, store ? 0x91 : 0x90, k << 3 | 6);
    else
        PUT(&c, 0xc5, 0xf8, store ? 0x91 : 0x90, k << 3 | 6);
    return commit(&c);
}

/* The sign bits of a vector register's elements of 4 or 8 bytes: vmovmskps/pd eax, reg; mov [rsi], rax. */
static native_fn *copy_signs(unsigned reg, unsigned vl, unsigned elem_size)
{
    struct code c = {.n = 0};

    PUT(&c, 0xc4, 0xc1 | (reg < 8 ? 0x20 : 0), 0x78 | (vl == 32 ? 4 : 0) | (elem_size == 8 ? 1 : 0), 0x50,
        0xc0 | (reg & 7), 0x48, 0x89, 0x06);
    return commit(&c);
}

/* ---- one guest instruction ---- */
struct form {
    const ZydisDecodedInstruction *zi;
    const ZydisDecodedOperand *ops, *mem; /* mem: the explicit one, or NULL */
    const struct insn *in;
};

static const struct {
    uint8_t isa, feature, also;
} isa_features[] = {
#define ISA(isa, feature)        {ZYDIS_ISA_SET_##isa, FEAT_##feature, FEAT_NONE},
#define ISA2(isa, feature, also) {ZYDIS_ISA_SET_##isa, FEAT_##feature, FEAT_##also},
#define ISA512(isa, feature) \
    ISA2(isa##_128, feature, AVX512VL) ISA2(isa##_256, feature, AVX512VL) ISA2(isa##_512, feature, AVX512F)
    /* clang-format off */
    ISA(X87, FPU) ISA2(FCMOV, FPU, CMOV) ISA2(PPRO, FPU, CMOV) ISA(PENTIUMMMX, MMX) ISA(SSE, SSE) ISA(SSEMXCSR, SSE)
    ISA(SSE2, SSE2) ISA(SSE2MMX, SSE2) ISA(SSE3, SSE3) ISA(SSE3X87, SSE3) ISA(SSSE3, SSSE3) ISA(SSSE3MMX, SSSE3)
    ISA(SSE4, SSE41) ISA(SSE42, SSE42) ISA(AES, AES) ISA(PCLMULQDQ, PCLMULQDQ) ISA(SHA, SHA) ISA(GFNI, GFNI)
    ISA(AVX, AVX) ISA(AVX2, AVX2) ISA(AVX2GATHER, AVX2) ISA(FMA, FMA) ISA(F16C, F16C) ISA2(AVXAES, AES, AVX)
    ISA2(AVX_GFNI, GFNI, AVX) ISA2(VAES, VAES, AVX) ISA2(VPCLMULQDQ, VPCLMULQDQ, AVX) ISA(AVX_VNNI, AVXVNNI)
    ISA2(MOVDIR, MOVDIRI, MOVDIR64B) ISA(FXSAVE, FXSR) ISA(FXSAVE64, FXSR) ISA(XSAVE, XSAVE) ISA(XSAVEOPT, XSAVEOPT)
    ISA(XSAVEC, XSAVEC) ISA(CLZERO, CLZERO)
    ISA512(AVX512F, AVX512F) ISA(AVX512F_128N, AVX512F) ISA(AVX512F_SCALAR, AVX512F) ISA(AVX512F_KOP, AVX512F)
    ISA512(AVX512DQ, AVX512DQ) ISA(AVX512DQ_128N, AVX512DQ) ISA(AVX512DQ_SCALAR, AVX512DQ) ISA(AVX512DQ_KOP, AVX512DQ)
    ISA512(AVX512BW, AVX512BW) ISA(AVX512BW_128N, AVX512BW) ISA(AVX512BW_KOP, AVX512BW)
    ISA512(AVX512CD, AVX512CD) ISA512(AVX512_IFMA, AVX512IFMA) ISA512(AVX512_VBMI, AVX512VBMI)
    ISA512(AVX512_VBMI2, AVX512VBMI2) ISA512(AVX512_VNNI, AVX512VNNI) ISA512(AVX512_BITALG, AVX512BITALG)
    ISA512(AVX512_VPOPCNTDQ, AVX512VPOPCNTDQ) ISA512(AVX512_BF16, AVX512BF16)
    ISA512(AVX512_VP2INTERSECT, AVX512VP2INTERSECT) ISA512(AVX512_GFNI, GFNI) ISA512(AVX512_VAES, VAES)
    ISA512(AVX512_VPCLMULQDQ, VPCLMULQDQ)
    /* clang-format on */
};

static bool form_offered(const struct form *f)
{
    if (f->zi->mnemonic == ZYDIS_MNEMONIC_MOVDIRI || f->zi->mnemonic == ZYDIS_MNEMONIC_MOVDIR64B)
        return true; /* the row's own feature is exact */
    for (unsigned i = 0; i < ARRAY_SIZE(isa_features); i++)
        if (isa_features[i].isa == f->zi->meta.isa_set)
            return cpu_has_feature(isa_features[i].feature) &&
                   (!isa_features[i].also || cpu_has_feature(isa_features[i].also));
    return false;
}

static bool is_gpr(const ZydisDecodedOperand *op)
{
    if (op->type != ZYDIS_OPERAND_TYPE_REGISTER)
        return false;
    switch (ZydisRegisterGetClass(op->reg.value)) {
    case ZYDIS_REGCLASS_GPR8:
    case ZYDIS_REGCLASS_GPR16:
    case ZYDIS_REGCLASS_GPR32:
    case ZYDIS_REGCLASS_GPR64:
        return true;
    default:
        return false;
    }
}

static bool uses_class(const struct form *f, ZydisRegisterClass class)
{
    for (unsigned i = 0; i < f->zi->operand_count; i++)
        if (f->ops[i].type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(f->ops[i].reg.value) == class)
            return true;
    return false;
}

static enum native_class class_of(const struct form *f)
{
    const ZydisDecodedInstruction *zi = f->zi;

    if (zi->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX)
        return NC_EVEX;
    if (zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
        return uses_class(f, ZYDIS_REGCLASS_MASK) ? NC_EVEX : NC_VEX;
    if (zi->mnemonic == ZYDIS_MNEMONIC_FWAIT)
        return NC_WAIT;
    if (op_rows[f->in->op].attrs & A_X87)
        return NC_X87;
    if (zi->meta.isa_set == ZYDIS_ISA_SET_MOVDIR)
        return NC_NONE;
    if (uses_class(f, ZYDIS_REGCLASS_MMX) && !uses_class(f, ZYDIS_REGCLASS_XMM))
        return NC_MMX;
    return zi->mnemonic == ZYDIS_MNEMONIC_EMMS ? NC_MMX : NC_SSE;
}

/* Memory operands whose width follows VEX.W/EVEX.W as a general register's would: 32 bits outside of 64-bit mode. */
static bool gpr_width_by_w(ZydisMnemonic m)
{
    return m == ZYDIS_MNEMONIC_VMOVD || m == ZYDIS_MNEMONIC_VPEXTRD || m == ZYDIS_MNEMONIC_VPINSRD ||
           m == ZYDIS_MNEMONIC_VCVTSI2SS || m == ZYDIS_MNEMONIC_VCVTSI2SD || m == ZYDIS_MNEMONIC_VCVTUSI2SS ||
           m == ZYDIS_MNEMONIC_VCVTUSI2SD;
}

/* What the copy names instead of the guest's operands. */
struct rename {
    bool gpr_reg, gpr_rm; /* ModRM's fields name general registers ... */
    uint8_t reg, rm;      /* ... that become these; with a memory operand, rm is its base (not xSP, xBP, R12 or R13) */
};

static void find_gprs(const struct form *f, struct rename *r)
{
    for (unsigned i = 0; i < f->zi->operand_count; i++) {
        if (f->ops[i].encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
            r->gpr_reg |= is_gpr(&f->ops[i]);
        if (f->ops[i].encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
            r->gpr_rm |= is_gpr(&f->ops[i]);
    }
}

static void put_rex(struct code *c, const struct form *f, const struct rename *r, uint8_t rex)
{
    if (f->mem || r->gpr_rm)
        rex = (rex & ~3) | r->rm >> 3; /* X, B */
    if (r->gpr_reg)
        rex = (rex & ~4) | r->reg >> 3 << 2;
    if (rex)
        PUT(c, 0x40 | rex);
}

/* n bytes of VEX or EVEX prefix */
static void put_vex(struct code *c, const struct form *f, const struct rename *r, const uint8_t *b, unsigned n)
{
    const bool evex = n == 4, base = f->mem || r->gpr_rm;
    uint8_t p[4] = {0};

    memcpy(p, b, n);
    if (n == 2 && base && r->rm & 8) { /* only the long form has B */
        p[2] = p[1] & 0x7f;
        p[1] = (p[1] & 0x80) | 0x61;
        p[0] = 0xc4;
        n = 3;
    }
    if (f->in->mode != MODE_64) { /* bits that only 64-bit mode has: no register above 7 */
        p[1] |= n == 2 ? 0x80 : evex ? 0xf0 : 0xe0;
        p[n == 2 ? 1 : 2] |= 0x40;
        if (evex)
            p[3] |= 8;
        if (n > 2 && (r->gpr_reg || r->gpr_rm || (f->mem && gpr_width_by_w(f->zi->mnemonic))))
            p[2] &= 0x7f;
    }
    if (n > 2 && base) /* X, B, inverted */
        p[1] = (p[1] & ~0x20) | 0x40 | (r->rm & 8 ? 0 : 0x20);
    if (r->gpr_reg)
        p[1] = (p[1] & ~0x80) | (r->reg & 8 ? 0 : 0x80) | (evex ? 0x10 : 0);
    put(c, p, n);
}

/* Prefixes and opcode of the copy up to ModRM. */
static void put_prefixes(struct code *c, const struct form *f, const struct rename *r)
{
    const ZydisDecodedInstruction *zi = f->zi;
    const uint8_t *b = f->in->bytes;
    unsigned i;

    for (i = 0; i < zi->raw.prefix_count; i++)
        if (b[i] == 0x66 || b[i] == 0xf2 || b[i] == 0xf3)
            PUT(c, b[i]);
    if (zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX || zi->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX) {
        const unsigned n = zi->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ? 4 : zi->raw.vex.size;

        put_vex(c, f, r, b + i, n);
        i += n;
    } else {
        put_rex(c, f, r, f->in->mode == MODE_64 && i && (b[i - 1] & 0xf0) == 0x40 ? b[i - 1] & 15 : 0);
    }
    put(c, b + i, zi->raw.modrm.offset ? zi->raw.modrm.offset - i : f->in->len - i);
}

/* The copied instruction: same opcode and immediates, renamed operands. */
static void put_copy(struct code *c, const struct form *f, const struct rename *r)
{
    const ZydisDecodedInstruction *zi = f->zi;
    uint8_t modrm;

    put_prefixes(c, f, r);
    if (!zi->raw.modrm.offset)
        return;
    modrm = f->in->bytes[zi->raw.modrm.offset];
    if (r->gpr_reg)
        modrm = (modrm & 0xc7) | (r->reg & 7) << 3;
    if (f->mem)
        modrm = (modrm & 0x38) | (r->rm & 7);
    else if (r->gpr_rm)
        modrm = (modrm & 0xf8) | (r->rm & 7);
    PUT(c, modrm);
    for (unsigned i = 0; i < 2; i++)
        if (zi->raw.imm[i].size)
            put(c, f->in->bytes + zi->raw.imm[i].offset, zi->raw.imm[i].size / 8);
}

/* The whole copy. NULL: not possible, or no room. */
static bool build(const struct form *f, struct code *c)
{
    const ZydisDecodedInstruction *zi = f->zi;
    const struct op_row *row = &op_rows[f->in->op];
    struct {
        uint8_t host, guest;
        bool read, written;
    } g[ZYDIS_MAX_OPERAND_COUNT];
    struct rename r = {.reg = R_RAX};
    unsigned n = 0;

    find_gprs(f, &r);
    r.rm = f->mem ? R_RSI : r.gpr_reg ? R_RCX : R_RAX;
    for (unsigned i = 0; i < zi->operand_count; i++) {
        const ZydisDecodedOperand *op = &f->ops[i];

        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && op != f->mem)
            return false; /* implicit memory */
        if (!is_gpr(op))
            continue;
        if (ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_GPR8)
            return false;
        g[n].guest = ZydisRegisterGetId(op->reg.value);
        g[n].host = g[n].guest;
        if (op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
            g[n].host = R_RAX;
        else if (op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
            g[n].host = r.rm;
        else if (g[n].guest > R_RDX)
            return false;
        g[n].read = true; /* also where only a part is written */
        g[n].written = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
        n++;
    }
    if (row->rd || (row->must | row->may))
        put_load_flags(c);
    for (unsigned i = 0; i < n; i++)
        if (g[i].read)
            put_load_gpr(c, g[i].host, g[i].guest);
    put_copy(c, f, &r);
    if (row->must | row->may)
        put_store_flags(c);
    for (unsigned i = 0; i < n; i++)
        if (g[i].written)
            put_store_gpr(c, g[i].host, g[i].guest);
    return c->n < sizeof(c->b) - 3;
}

/* ---- what the copy needs to be run ---- */
static bool suppresses_faults(const ZydisDecodedInstruction *zi)
{
    switch (zi->meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_E1NF:
    case ZYDIS_EXCEPTION_CLASS_E2NF:
    case ZYDIS_EXCEPTION_CLASS_E3NF:
    case ZYDIS_EXCEPTION_CLASS_E4NF:
    case ZYDIS_EXCEPTION_CLASS_E5NF:
    case ZYDIS_EXCEPTION_CLASS_E6NF:
    case ZYDIS_EXCEPTION_CLASS_E9NF:
    case ZYDIS_EXCEPTION_CLASS_E10NF:
    case ZYDIS_EXCEPTION_CLASS_E11NF:
        return false;
    default:
        break;
    }
    switch (zi->mnemonic) { /* whose class Zydis gives without NF */
    case ZYDIS_MNEMONIC_VDBPSADBW:
    case ZYDIS_MNEMONIC_VCVTNE2PS2BF16:
    case ZYDIS_MNEMONIC_VGF2P8AFFINEQB:
    case ZYDIS_MNEMONIC_VGF2P8AFFINEINVQB:
        return false;
    default:
        return true;
    }
}

static bool is_compress(ZydisMnemonic m)
{
    switch (m) {
    case ZYDIS_MNEMONIC_VCOMPRESSPS:
    case ZYDIS_MNEMONIC_VCOMPRESSPD:
    case ZYDIS_MNEMONIC_VPCOMPRESSB:
    case ZYDIS_MNEMONIC_VPCOMPRESSW:
    case ZYDIS_MNEMONIC_VPCOMPRESSD:
    case ZYDIS_MNEMONIC_VPCOMPRESSQ:
    case ZYDIS_MNEMONIC_VEXPANDPS:
    case ZYDIS_MNEMONIC_VEXPANDPD:
    case ZYDIS_MNEMONIC_VPEXPANDB:
    case ZYDIS_MNEMONIC_VPEXPANDW:
    case ZYDIS_MNEMONIC_VPEXPANDD:
    case ZYDIS_MNEMONIC_VPEXPANDQ:
        return true;
    default:
        return false;
    }
}

static bool is_maskmov(ZydisMnemonic m)
{
    return m == ZYDIS_MNEMONIC_VMASKMOVPS || m == ZYDIS_MNEMONIC_VMASKMOVPD || m == ZYDIS_MNEMONIC_VPMASKMOVD ||
           m == ZYDIS_MNEMONIC_VPMASKMOVQ;
}

/* EVEX {k}: how the mask's bits lie on the memory operand's elements. */
static bool set_evex_mask(struct native *n, const struct form *f)
{
    const ZydisDecodedInstruction *zi = f->zi;
    const ZydisDecodedOperand *vec = f->mem == &f->ops[0] ? &f->ops[2] : &f->ops[0];
    unsigned lanes;

    if (!zi->raw.evex.aaa || (!suppresses_faults(zi) && vec == &f->ops[0]))
        return true;
    n->mask_whole = !suppresses_faults(zi); /* a store: still, only active elements are written */
    if (ZydisRegisterGetClass(vec->reg.value) == ZYDIS_REGCLASS_MASK) /* a compare: lanes of what is compared */
        lanes = zi->mnemonic == ZYDIS_MNEMONIC_VPSHUFBITQMB ? zi->avx.vector_length / 8
                                                            : zi->avx.vector_length / f->mem->element_size;
    else
        lanes = vec->element_count;
    n->mask = is_compress(zi->mnemonic) ? NM_COMPRESS : NM_ELEMENTS;
    n->elems = f->mem->element_count;
    n->mask_elems = lanes;
    if (n->elems == 1 && zi->avx.broadcast.mode && lanes > zi->avx.vector_length / f->mem->element_size)
        n->mask_elems = zi->avx.vector_length / f->mem->element_size; /* narrowing: half of the register */
    if (!zi->avx.broadcast.mode) {
        if (n->elems > lanes || zi->mnemonic == ZYDIS_MNEMONIC_VPSHUFBITQMB)
            n->elems = lanes;
        n->mask_elems = n->elems;
    }
    n->elem_size = f->mem->size / 8 / n->elems;
    n->get_mask = copy_mask(true, zi->raw.evex.aaa);
    return n->get_mask != NULL;
}

static bool set_mask(struct native *n, const struct form *f)
{
    const ZydisDecodedInstruction *zi = f->zi;

    if (!f->mem)
        return true;
    if (zi->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX)
        return set_evex_mask(n, f);
    if (!is_maskmov(zi->mnemonic))
        return true;
    n->mask = NM_ELEMENTS;
    n->elem_size = zi->mnemonic == ZYDIS_MNEMONIC_VMASKMOVPS || zi->mnemonic == ZYDIS_MNEMONIC_VPMASKMOVD ? 4 : 8;
    n->elems = n->mask_elems = n->mem_size / n->elem_size;
    n->get_mask = copy_signs(ZydisRegisterGetId(f->ops[1].reg.value), n->mem_size, n->elem_size);
    return n->get_mask != NULL;
}

/* Instructions that leave the last-instruction pointers alone (SDM 1, "x87 FPU Instruction and Data Pointers"). */
static bool x87_control(ZydisMnemonic m)
{
    switch (m) {
    case ZYDIS_MNEMONIC_FNCLEX:
    case ZYDIS_MNEMONIC_FLDCW:
    case ZYDIS_MNEMONIC_FNSTCW:
    case ZYDIS_MNEMONIC_FNSTSW:
    case ZYDIS_MNEMONIC_FWAIT:
    case ZYDIS_MNEMONIC_FDISI8087_NOP:
    case ZYDIS_MNEMONIC_FENI8087_NOP:
    case ZYDIS_MNEMONIC_FSETPM287_NOP:
        return true;
    default:
        return false;
    }
}

static bool x87_no_wait(ZydisMnemonic m)
{
    return m == ZYDIS_MNEMONIC_FNSTCW || m == ZYDIS_MNEMONIC_FNSTSW || m == ZYDIS_MNEMONIC_FNCLEX ||
           m == ZYDIS_MNEMONIC_FNINIT;
}

/* #MF and #XM; the classes are those of SDM 2A, "Exceptions Type". */
static bool may_trap(const struct form *f)
{
    switch (f->zi->meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_SSE4:
    case ZYDIS_EXCEPTION_CLASS_SSE5:
    case ZYDIS_EXCEPTION_CLASS_SSE7:
    case ZYDIS_EXCEPTION_CLASS_AVX4:
    case ZYDIS_EXCEPTION_CLASS_AVX5:
    case ZYDIS_EXCEPTION_CLASS_AVX7:
    case ZYDIS_EXCEPTION_CLASS_AVX8:
    case ZYDIS_EXCEPTION_CLASS_E4:
    case ZYDIS_EXCEPTION_CLASS_E4NF:
    case ZYDIS_EXCEPTION_CLASS_E5:
    case ZYDIS_EXCEPTION_CLASS_E5NF:
    case ZYDIS_EXCEPTION_CLASS_E7NM:
    case ZYDIS_EXCEPTION_CLASS_E7NM128:
    case ZYDIS_EXCEPTION_CLASS_K20:
    case ZYDIS_EXCEPTION_CLASS_K21:
        return uses_class(f, ZYDIS_REGCLASS_MMX);
    default:
        return true;
    }
}

static void set_operands(struct native *n, const struct form *f)
{
    const ZydisDecodedInstruction *zi = f->zi;

    n->class = class_of(f);
    n->traps = may_trap(f);
    n->key_mask = native_keys[n->class][0];
    n->key_want = native_keys[n->class][1];
    if (f->mem) {
        n->mem_size = f->mem->size / 8;
        n->acc = (f->mem->actions & ZYDIS_OPERAND_ACTION_MASK_READ ? ACC_READ : 0) |
                 (f->mem->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE ? ACC_WRITE : 0);
        if (n->class == NC_X87 && n->acc & ACC_WRITE)
            n->acc |= ACC_READ; /* an unmasked exception leaves memory as it is: a bounce buffer must hold that */
        if (op_rows[f->in->op].attrs & A_ALIGN && n->mem_size >= 16)
            n->align = n->mem_size - 1;
    }
    n->waits = uses_class(f, ZYDIS_REGCLASS_MMX) || (n->class == NC_X87 && !x87_no_wait(zi->mnemonic));
    if (!(op_rows[f->in->op].attrs & A_X87) || x87_control(zi->mnemonic) || !zi->raw.modrm.offset)
        return;
    n->x87 = zi->mnemonic == ZYDIS_MNEMONIC_FNINIT ? NX_INIT : f->mem ? NX_POINTERS | NX_MEM : NX_POINTERS;
}

/* Gathers and scatters: the elements are moved one by one by in_vsib.c, which needs the registers' contents. */
static bool set_vsib(struct native *n, const struct form *f)
{
    const ZydisDecodedInstruction *zi = f->zi;
    const bool evex = zi->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX, scatter = f->mem == &f->ops[0];
    const ZydisDecodedOperand *data = scatter ? &f->ops[2] : &f->ops[0];
    const ZydisDecodedOperand *mask = evex ? &f->ops[1] : &f->ops[2];
    const unsigned whole = cpu_has_feature(FEAT_AVX512F) ? 64 : 32;
    const unsigned index = ZydisRegisterGetId(f->mem->mem.index), reg = ZydisRegisterGetId(data->reg.value);
    const char *name = op_rows[f->in->op].name, *at = strstr(name, "GATHER");
    const char *kind = at ? at + 6 : strstr(name, "SCATTER") + 7; /* D or Q: the index; then the element */
    struct native_vsib *v = calloc(1, sizeof(*v));

    if (!v)
        return false;
    v->index_size = kind[0] == 'D' ? 4 : 8;
    v->elem_size = f->mem->element_size / 8;
    v->elems = zi->avx.vector_length / 8 / (v->index_size > v->elem_size ? v->index_size : v->elem_size);
    v->vl = zi->avx.vector_length / 8;
    v->vector_mask = !evex;
    v->get_index = copy_vector(true, index, whole);
    v->get_data = copy_vector(true, reg, whole);
    v->put_data = scatter ? NULL : copy_vector(false, reg, whole);
    if (evex) {
        v->get_mask = copy_mask(true, ZydisRegisterGetId(mask->reg.value));
        v->put_mask = copy_mask(false, ZydisRegisterGetId(mask->reg.value));
    } else {
        v->get_mask = copy_vector(true, ZydisRegisterGetId(mask->reg.value), whole);
        v->put_mask = copy_vector(false, ZydisRegisterGetId(mask->reg.value), whole);
    }
    n->vsib = v;
    return v->get_index && v->get_data && (scatter || v->put_data) && v->get_mask && v->put_mask;
}

/* MASKMOVQ, MASKMOVDQU: bytes at DS:rDI where the mask's sign bits say so. */
static native_fn *copy_mmx(unsigned reg) /* movq [rsi], reg */
{
    struct code c = {.n = 0};

    PUT(&c, 0x0f, 0x7f, (reg & 7) << 3 | 6);
    return commit(&c);
}

static bool set_maskmov(struct native *n, const struct form *f)
{
    struct native_vsib *v = calloc(1, sizeof(*v));
    const unsigned reg[2] = {ZydisRegisterGetId(f->ops[0].reg.value), ZydisRegisterGetId(f->ops[1].reg.value)};
    const bool mmx = ZydisRegisterGetClass(f->ops[0].reg.value) == ZYDIS_REGCLASS_MMX;

    if (!v)
        return false;
    for (unsigned i = 0; i < 2; i++)
        if (f->ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY) /* Zydis may list the destination first */
            return false;
    v->elems = mmx ? 8 : 16;
    v->get_data = mmx ? copy_mmx(reg[0]) : copy_vector(true, reg[0], 16);
    v->get_mask = mmx ? copy_mmx(reg[1]) : copy_vector(true, reg[1], 16);
    n->vsib = v;
    return v->get_data && v->get_mask;
}

/* ---- one struct native for each distinct copy ---- */
#define BUCKETS 4096u
struct entry {
    struct entry *next;
    struct native native;
    uint16_t op;
    uint8_t len;
    uint8_t code[sizeof(((struct code *)0)->b)];
};
static struct entry *table[BUCKETS];

static struct entry **bucket(const struct insn *in, const struct code *c)
{
    uint64_t h = 14695981039346656037ull ^ in->op;

    for (unsigned i = 0; i < c->n; i++)
        h = (h ^ c->b[i]) * 1099511628211ull;
    return &table[(h ^ h >> 32) % BUCKETS];
}

static bool fill(struct native *n, const struct form *f, struct code *c)
{
    insn_fn *fn = op_rows[f->in->op].interp;

    set_operands(n, f);
    if (fn == in_gather || fn == in_scatter)
        return set_vsib(n, f);
    if (fn == in_maskmov)
        return set_maskmov(n, f);
    if (fn != in_native)
        return true;
    if (!set_mask(n, f) || (f->mem && !n->mask && f->mem->actions & ZYDIS_OPERAND_ACTION_CONDWRITE))
        return false;
    n->run = commit(c);
    return n->run != NULL;
}

static void put_registers(struct code *c, const struct form *f)
{
    PUT(c, f->zi->encoding, f->zi->avx.vector_length / 8);
    for (unsigned i = 0; i < f->zi->operand_count_visible; i++) {
        const ZydisDecodedOperand *op = &f->ops[i];

        PUT(c, op->type,
            op->type == ZYDIS_OPERAND_TYPE_REGISTER ? op->reg.value
            : op->type == ZYDIS_OPERAND_TYPE_MEMORY ? op->mem.index
                                                    : 0);
    }
}

/* ---- slots: when there are too many copies ---- */
unsigned native_copies_max = COPIES_MAX;
static unsigned copies;
static struct native slot[SLOTS];
static bool slot_taken[SLOTS];

static bool fill_slot(unsigned n, const struct form *f, struct code *c)
{
    const size_t used = arena_used;
    bool ok;

    free(slot[n].vsib);
    memset(&slot[n], 0, sizeof(slot[n]));
    arena_used = SHARED_SIZE + n * SLOT_SIZE;
    arena_end = arena_used + SLOT_SIZE;
    ok = fill(&slot[n], f, c);
    arena_used = used;
    arena_end = SHARED_SIZE;
    return ok;
}

static bool form_code(const struct form *f, struct code *c)
{
    if (op_rows[f->in->op].interp == in_native)
        return build(f, c);
    put_registers(c, f); /* these, the length and the row say all */
    return true;
}

/* *unshared: there is room for no more; this one can be made. */
static struct native *find(const struct form *f, bool *unshared)
{
    const struct insn *in = f->in;
    struct code c = {.n = 0};
    struct entry **b, *e;

    if (!form_code(f, &c))
        return NULL;
    b = bucket(in, &c);
    for (e = *b; e; e = e->next)
        if (e->op == in->op && e->len == c.n && !memcmp(e->code, c.b, c.n))
            return &e->native;
    if (copies >= native_copies_max || arena_used + SLOT_SIZE > SHARED_SIZE) {
        *unshared = fill_slot(0, f, &c);
        return NULL;
    }
    e = calloc(1, sizeof(*e));
    if (!e)
        return NULL;
    e->op = in->op;
    e->len = c.n;
    memcpy(e->code, c.b, c.n);
    if (!fill(&e->native, f, &c)) {
        free(e->native.vsib);
        free(e);
        return NULL;
    }
    e->next = *b;
    *b = e;
    copies++;
    return &e->native;
}

static const ZydisDecoder *decoder_for(enum cpu_mode mode)
{
    static ZydisDecoder decoders[3];
    static bool ready;

    if (!ready) {
        ZydisDecoderInit(&decoders[0], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
        ZydisDecoderInit(&decoders[1], ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
        ZydisDecoderInit(&decoders[2], ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
        ready = true;
    }
    return &decoders[mode == MODE_64 ? 0 : mode == MODE_PROT32 || mode == MODE_COMPAT32 ? 1 : 2];
}

static bool decode(struct form *f, ZydisDecodedInstruction *zi, ZydisDecodedOperand *ops)
{
    const struct insn *in = f->in;

    f->zi = zi;
    f->ops = ops;
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(decoder_for(in->mode), in->bytes, in->len, zi, ops)))
        return false;
    for (unsigned i = 0; i < zi->operand_count_visible; i++)
        if (ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
            f->mem = &ops[i];
    return true;
}

int native_prepare(struct insn *in)
{
    ZydisDecodedInstruction zi;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    struct form f = {.in = in};
    bool unshared = false;

    in->native = NULL;
    pthread_mutex_lock(&lock);
    if (decode(&f, &zi, ops)) {
        const bool real = in->mode == MODE_REAL || in->mode == MODE_V86;

        if (form_offered(&f) && !(in->pfx & PFX_LOCK) && !(real && zi.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY))
            in->native = find(&f, &unshared);
    }
    pthread_mutex_unlock(&lock);
    if (unshared)
        in->fn = in_native_unshared;
    return in->native || unshared ? 0 : -1;
}

static unsigned slot_of(struct cpu *cpu)
{
    for (unsigned n = 1; n < SLOTS && !cpu->fpu->slot; n++)
        if (!slot_taken[n]) {
            slot_taken[n] = true;
            cpu->fpu->slot = n;
        }
    return cpu->fpu->slot;
}

const struct native *native_in_slot(struct cpu *cpu, const struct insn *in)
{
    ZydisDecodedInstruction zi;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    struct form f = {.in = in};
    struct code c = {.n = 0};
    uint32_t leaf = 0, ecx = 0;
    unsigned n;
    bool ok;

    pthread_mutex_lock(&lock);
    n = slot_of(cpu);
    ok = n && decode(&f, &zi, ops) && form_code(&f, &c) && fill_slot(n, &f, &c);
    pthread_mutex_unlock(&lock);
    /* written at another address than it is run at (SDM 3A, "Handling Self- and Cross-Modifying Code") */
    __asm__ volatile("cpuid" : "+a"(leaf), "+c"(ecx) : : "ebx", "edx", "memory");
    return ok ? &slot[n] : NULL;
}

void native_release_slot(struct cpu *cpu)
{
    pthread_mutex_lock(&lock);
    if (cpu->fpu->slot)
        slot_taken[cpu->fpu->slot] = false;
    pthread_mutex_unlock(&lock);
}

/* ---- for translators ---- */

/* One general register of the guest by its host register, or by the scratch register. false: a second one for scratch.
 */
static bool place(const struct native_map *m, struct native_code *out, const ZydisDecodedOperand *op, bool fixed,
                  uint8_t *host)
{
    const uint8_t guest = ZydisRegisterGetId(op->reg.value);

    *host = m->host[guest];
    if (*host < 16 && (!fixed || *host == guest))
        return true;
    *host = m->scratch;
    if ((fixed && m->scratch != guest) || out->load != REG_NONE || out->store != REG_NONE)
        return false;
    out->load = guest; /* also where only a part is written */
    if (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
        out->store = guest;
    return true;
}

int native_recode(const struct insn *in, const struct native_map *m, struct native_code *out)
{
    ZydisDecodedInstruction zi;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    struct form f = {.in = in};
    struct rename r = {0};
    struct code c = {.n = 0};
    uint8_t host;
    bool ok;

    out->load = out->store = REG_NONE;
    pthread_mutex_lock(&lock);
    ok = decode(&f, &zi, ops);
    pthread_mutex_unlock(&lock);
    if (!ok)
        return -1;
    find_gprs(&f, &r);
    for (unsigned i = 0; i < zi.operand_count; i++) {
        const bool reg = ops[i].encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG,
                   rm = ops[i].encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM;

        if (!is_gpr(&ops[i]))
            continue;
        if (!place(m, out, &ops[i], !reg && !rm, &host))
            return -1;
        if (reg)
            r.reg = host;
        if (rm)
            r.rm = host;
    }
    if (f.mem)
        r.rm = m->base;
    put_copy(&c, &f, &r);
    if (c.n > sizeof(out->b))
        return -1;
    memcpy(out->b, c.b, c.n);
    out->n = c.n;
    return 0;
}
