/* SPDX-License-Identifier: MIT
 * forms.c: every form of every row, found by decoding all opcodes with all prefixes that select instructions, and
 * variants of a form with other registers, addressing and immediates. */
#include "isa.h"
#include <stdio.h>
#include <stdlib.h>

static ZydisDecoder decoders[MODE_64 + 1];
static uint16_t row_of[ZYDIS_MNEMONIC_MAX_VALUE + 3];

/* The string forms of two mnemonics that SSE2 has as well (decode.c). */
enum { MOVSD_STR = ZYDIS_MNEMONIC_MAX_VALUE + 1, CMPSD_STR };
#define ZYDIS_MNEMONIC_MOVSD_STR MOVSD_STR
#define ZYDIS_MNEMONIC_CMPSD_STR CMPSD_STR

static void init(void)
{
    static const uint16_t rows[] = {
#define OP(mnemonic, interp, trans, rd, must, may, undef, attrs, feature) [ZYDIS_MNEMONIC_##mnemonic] = OP_##mnemonic,
#include "../../src/cpu/insn/ops.def"
#undef OP
    };
    static bool ready;
    static const struct {
        enum cpu_mode mode;
        ZydisMachineMode machine;
        ZydisStackWidth stack;
    } modes[] = {
        {MODE_64, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64},
        {MODE_COMPAT32, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32},
        {MODE_COMPAT16, ZYDIS_MACHINE_MODE_LONG_COMPAT_16, ZYDIS_STACK_WIDTH_16},
    };

    if (ready)
        return;
    ready = true;
    memcpy(row_of, rows, sizeof(rows));
    for (unsigned i = 0; i < ARRAY_SIZE(modes); i++) {
        ZydisDecoder *d = &decoders[modes[i].mode];

        ZydisDecoderInit(d, modes[i].machine, modes[i].stack);
        ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
        ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
        ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
        ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_LZCNT, cpu_has_feature(FEAT_BMI1) || cpu_has_feature(FEAT_LZCNT));
        ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_TZCNT, cpu_has_feature(FEAT_BMI1));
    }
}

bool form_decode(enum cpu_mode mode, const uint8_t *bytes, struct decoded *d)
{
    ZydisDecoderContext context;

    return ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&decoders[mode], &context, bytes, 15, &d->zi)) &&
           ZYAN_SUCCESS(ZydisDecoderDecodeOperands(&decoders[mode], &context, &d->zi, d->ops, d->zi.operand_count));
}

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9e3779b97f4a7c15ull;
    return h ^ h >> 29;
}

uint64_t form_signature(const struct decoded *d)
{
    const ZydisDecodedInstruction *zi = &d->zi;
    uint64_t h = mix(1, zi->mnemonic);

    h = mix(h, zi->encoding | zi->operand_width << 8 | zi->avx.vector_length << 16);
    h = mix(h, zi->avx.broadcast.mode | zi->avx.rounding.mode << 8 | zi->avx.mask.mode << 16 | zi->avx.has_sae << 24);
    h = mix(h, (zi->attributes &
                (ZYDIS_ATTRIB_HAS_LOCK | ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)));
    for (unsigned i = 0; i < zi->operand_count_visible; i++) {
        const ZydisDecodedOperand *op = &d->ops[i];
        const unsigned class =
            op->type == ZYDIS_OPERAND_TYPE_REGISTER ? (unsigned)ZydisRegisterGetClass(op->reg.value) : 0;
        const bool fixed = op->type == ZYDIS_OPERAND_TYPE_REGISTER && op->encoding == ZYDIS_OPERAND_ENCODING_NONE;

        h = mix(h, op->type | class << 8 | op->size << 16 | (uint64_t)op->element_size << 32);
        h = mix(h, op->encoding | (fixed ? op->reg.value << 8 : 0));
    }
    return h;
}

/* What "a form and operand size" means for the number of cases: masking, broadcast and rounding share it. */
static uint64_t form_group(const struct decoded *d, unsigned row)
{
    uint64_t h = mix(2, row | d->zi.operand_width << 16 | (uint64_t)d->zi.avx.vector_length << 32);

    for (unsigned i = 0; i < d->zi.operand_count_visible; i++)
        if (d->ops[i].encoding != ZYDIS_OPERAND_ENCODING_MASK)
            h = mix(h, d->ops[i].type);
    return h;
}

static unsigned row_for(const struct decoded *d)
{
    unsigned m = d->zi.mnemonic;

    if (d->zi.meta.category == ZYDIS_CATEGORY_STRINGOP)
        m = m == ZYDIS_MNEMONIC_MOVSD ? MOVSD_STR : m == ZYDIS_MNEMONIC_CMPSD ? CMPSD_STR : m;
    return row_of[m];
}

/* ---- finding ---- */
#define TABLE 65536u
static struct finder {
    enum cpu_mode mode;
    struct forms *out;
    uint64_t seen[TABLE];
} finder;

static void add(const uint8_t *bytes, unsigned n)
{
    struct decoded d;
    struct form *f;
    uint64_t s;
    unsigned row;

    if (!form_decode(finder.mode, bytes, &d) || !(row = row_for(&d)))
        return;
    s = form_signature(&d);
    for (unsigned i = s % TABLE;; i = (i + 1) % TABLE) {
        if (finder.seen[i] == s)
            return;
        if (!finder.seen[i]) {
            finder.seen[i] = s;
            break;
        }
    }
    if (finder.out->n % 256 == 0)
        finder.out->f = realloc(finder.out->f, (finder.out->n + 256) * sizeof(*f));
    f = &finder.out->f[finder.out->n++];
    *f = (struct form){.row = row, .mnemonic = d.zi.mnemonic, .signature = s, .group = form_group(&d, row), .len = n};
    memcpy(f->bytes, bytes, 15);
}

static bool is_prefix(uint8_t b)
{
    return (b & 0xe7) == 0x26 || (b & 0xfc) == 0x64 || b == 0xf0 || b == 0xf2 || b == 0xf3;
}

static void find_legacy(void)
{
    static const uint8_t prefixes[][3] = {{0},    {0x66},       {0xf3},       {0xf2},
                                          {0xf0}, {0xf0, 0x66}, {0x66, 0xf3}, {0x66, 0xf2}};

    for (unsigned p = 0; p < ARRAY_SIZE(prefixes); p++)
        for (unsigned rex = 0; rex < (finder.mode == MODE_64 ? 3 : 1); rex++)
            for (unsigned map = 0; map < 4; map++)
                for (unsigned op = 0; op < 256; op++)
                    for (unsigned m = 0; m < 80; m++) {
                        uint8_t b[16] = {0};
                        unsigned n = 0;

                        if (map == 0 && is_prefix(op))
                            continue;
                        for (unsigned i = 0; prefixes[p][i]; i++)
                            b[n++] = prefixes[p][i];
                        if (rex)
                            b[n++] = rex == 1 ? 0x48 : 0x40;
                        if (map)
                            b[n++] = 0x0f;
                        if (map > 1)
                            b[n++] = map == 2 ? 0x38 : 0x3a;
                        b[n++] = op;
                        b[n] = m < 64   ? 0xc0 + m
                               : m < 72 ? (m - 64) << 3 | 3
                                        : (m - 72) << 3 | 4; /* registers; [rbx]; SIB */
                        if (m >= 72)
                            b[n + 1] = 0x03;
                        add(b, n);
                    }
}

static void find_vex(void)
{
    static const uint8_t modrms[] = {0xc1, 0x03, 0x04};

    for (unsigned v = 0; v < 4 * 4 * 2 * 2 * 2; v++)
        for (unsigned op = 0; op < 256; op++)
            for (unsigned m = 0; m < 24; m++) {
                const unsigned map = v & 3, pp = v >> 2 & 3, w = v >> 4 & 1, l = v >> 5 & 1, vv = v >> 6 & 1;
                uint8_t b[16] = {0xc4, 0xe0 | map, w << 7 | (vv ? 15 : 13) << 3 | l << 2 | pp, op,
                                 modrms[m % 3] | m / 3 << 3};

                if (m % 3 == 2)
                    b[5] = 0x1b; /* base rbx, index register 3 */
                if (map)
                    add(b, 4);
            }
}

static void find_evex(void)
{
    static const uint8_t modrms[] = {0xc1, 0x03, 0x04};

    for (unsigned v = 0; v < 4 * 4 * 2 * 3 * 2 * 2 * 2 * 2; v++)
        for (unsigned op = 0; op < 256; op++)
            for (unsigned m = 0; m < 24; m++) {
                const unsigned map = v & 3, pp = v >> 2 & 3, w = v >> 4 & 1, bc = v >> 5 & 1, k = v >> 6 & 1;
                const unsigned z = v >> 7 & 1, vv = v >> 8 & 1, l = v >> 9;
                uint8_t b[16] = {0x62,
                                 0xf0 | map,
                                 w << 7 | (vv ? 15 : 13) << 3 | 4 | pp,
                                 z << 7 | l << 5 | bc << 4 | 8 | k,
                                 op,
                                 modrms[m % 3] | m / 3 << 3};

                if (z && !k)
                    continue;
                if (m / 3 > 1 && !(op >= 0x71 && op <= 0x73) && m / 3 != 2) /* groups are at these opcodes */
                    continue;
                if (m % 3 == 2)
                    b[6] = 0x1b;
                if (map)
                    add(b, 5);
            }
}

void forms_find(enum cpu_mode mode, struct forms *out)
{
    init();
    memset(&finder, 0, sizeof(finder));
    finder.mode = mode;
    finder.out = out;
    *out = (struct forms){0};
    find_legacy();
    find_vex();
    find_evex();
}

/* ---- varying ---- */
static void vary_vex(uint8_t *b, bool evex, bool m64)
{
    if (m64)
        b[1] = (b[1] & (evex ? 0x0f : 0x1f)) | (rnd() & (evex ? 0xf0 : 0xe0));
    if (b[2] >> 3 & 15 && (b[2] & 0x78) != 0x78)
        b[2] = (b[2] & 0x87) | (m64 ? rnd() & 0x78 : 0x40 | (rnd() & 0x38));
    if (!evex)
        return;
    if (m64)
        b[3] = (b[3] & ~8u) | (rnd() & 8);
    if (b[3] & 7)
        b[3] = (b[3] & ~7u) | (1 + below(7));
}

static void vary_bytes(enum cpu_mode mode, const struct form *f, uint8_t *b)
{
    const bool m64 = mode == MODE_64, wide = mode == MODE_COMPAT16 && !host_has_mode(mode);
    const unsigned modrm = f->len;
    uint8_t m = f->bytes[f->len];

    memcpy(b, f->bytes, 15);
    if (b[0] == 0xc4 && f->len == 4 && (b[1] & 0x1f) && (b[1] & 0x1f) < 4)
        vary_vex(b, false, m64);
    else if (b[0] == 0x62 && f->len == 5)
        vary_vex(b, true, m64);
    else if (m64) /* REX, if it is there; or a new one before the opcode */
        for (unsigned i = 0; i < f->len; i++)
            if ((b[i] & 0xf0) == 0x40) {
                b[i] |= rnd() & 7;
                break;
            }
    if (m < 0xc0) {
        static const uint8_t mods[] = {0, 1, 2, 1};

        m = (m & 0x38) | mods[below(4)] << 6 | ((f->bytes[modrm] & 7) == 4 ? 4 : below(8));
    } else {
        m = (m & 0xf8) | below(8);
    }
    if (below(4))
        m = (m & 0xc7) | below(8) << 3;
    b[modrm] = m;
    for (unsigned i = modrm + 1; i < 15; i++)
        b[i] = rnd();
    /* prefixes that change the address: GS has base 0 here, 67 truncates it; 16-bit code has 64-bit twins only with 67
     */
    if ((wide || !below(8)) && f->len < 8) {
        memmove(b + 1, b, 14);
        b[0] = wide || (below(2) && mode != MODE_COMPAT16) ? 0x67 : 0x3e;
    }
}

bool form_vary(enum cpu_mode mode, const struct form *f, uint8_t bytes[15], struct decoded *d)
{
    for (unsigned i = 0; i < 24; i++) {
        vary_bytes(mode, f, bytes);
        if (form_decode(mode, bytes, d) && form_signature(d) == f->signature &&
            !(d->zi.attributes & ZYDIS_ATTRIB_HAS_SEGMENT_FS)) /* FS: libc's */
            return true;
    }
    memcpy(bytes, f->bytes, 15);
    form_decode(mode, bytes, d);
    return false;
}

/* ---- what the host cannot be asked ---- */
const char *row_skipped(unsigned row, enum cpu_mode mode)
{
    static const struct {
        const char *names, *why;
    } skips[] = {
        {" SYSCALL SYSENTER SYSEXIT SYSRET INT INT3 INT1 INTO UD0 ", "enters the kernel"},
        {" SGDT SIDT SLDT STR SMSW ", "the host's kernel emulates it (UMIP)"},
        {" RDTSC RDTSCP RDPMC RDRAND RDSEED RDPID ", "differs from run to run"},
        {" CPUID XGETBV RDMSR WRMSR HLT INVD WBINVD ", "always or often a VM exit; not the host's answer"},
        {" LAR LSL VERR VERW LDS LES LFS LGS LSS RETF IRET IRETD IRETQ ARPL LLDT LTR ", "the host's descriptor tables"},
        {" VMCALL VMCLEAR VMLAUNCH VMPTRLD VMPTRST VMREAD VMRESUME VMWRITE VMXOFF VMXON VMFUNC INVEPT INVVPID VMMCALL ",
         "tests/unit has VMX"},
        {" MONITOR MWAIT MONITORX MWAITX ", "never offered"},
        {" IN OUT INSB INSW INSD OUTSB OUTSW OUTSD CLI STI ", "port access and IF belong to the host's kernel"},
        {" SWAPGS WRFSBASE WRGSBASE RDFSBASE RDGSBASE ", "the host's FS base is libc's"},
    };
    char name[40];

    if (op_rows[row].attrs & (A_PRIV | A_VMX))
        return "privileged";
    snprintf(name, sizeof(name), " %s ", op_rows[row].name);
    for (unsigned i = 0; i < ARRAY_SIZE(skips); i++)
        if (strstr(skips[i].names, name))
            return skips[i].why;
    return NULL;
}

const char *form_skipped(enum cpu_mode mode, const struct form *f)
{
    struct decoded d;

    if (!host_has_mode(mode) && (op_rows[f->row].interp == in_fxsave || op_rows[f->row].interp == in_fxrstor ||
                                 op_rows[f->row].interp == in_xsave || op_rows[f->row].interp == in_xrstor))
        return "64-bit code saves more registers";
    if (!form_decode(mode, f->bytes, &d) || d.zi.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
        return "the host's descriptor tables";
    for (unsigned i = 0; i < d.zi.operand_count_visible; i++) {
        const ZydisRegisterClass c =
            d.ops[i].type == ZYDIS_OPERAND_TYPE_REGISTER ? ZydisRegisterGetClass(d.ops[i].reg.value) : 0;

        if (c == ZYDIS_REGCLASS_SEGMENT && d.ops[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
            return "the host's descriptor tables";
        if (c == ZYDIS_REGCLASS_CONTROL || c == ZYDIS_REGCLASS_DEBUG)
            return "privileged";
    }
    return NULL;
}

/* ---- 16 and 32-bit code on a host that runs only 64-bit code ---- */
static bool is_flags(const ZydisDecodedOperand *op)
{
    return ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_FLAGS;
}

static bool same_operand(const ZydisDecodedOperand *a, const ZydisDecodedOperand *b)
{
    if (a->type == ZYDIS_OPERAND_TYPE_REGISTER && b->type == a->type && is_flags(a) && is_flags(b))
        return true; /* EFLAGS or RFLAGS */
    if (a->type != b->type || a->size != b->size || a->visibility != b->visibility)
        return false;
    switch (a->type) {
    case ZYDIS_OPERAND_TYPE_REGISTER:
        return a->reg.value == b->reg.value;
    case ZYDIS_OPERAND_TYPE_MEMORY:
        return a->mem.base == b->mem.base && a->mem.index == b->mem.index && a->mem.scale == b->mem.scale &&
               a->mem.disp.value == b->mem.disp.value;
    case ZYDIS_OPERAND_TYPE_IMMEDIATE:
        return a->imm.is_relative == b->imm.is_relative && (uint32_t)a->imm.value.u == (uint32_t)b->imm.value.u;
    default:
        return false;
    }
}

static bool has_vsib(const struct decoded *d)
{
    for (unsigned i = 0; i < d->zi.operand_count; i++)
        if (d->ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY && d->ops[i].mem.type == ZYDIS_MEMOP_TYPE_VSIB)
            return true;
    return false;
}

unsigned form_in_64(enum cpu_mode mode, const uint8_t *bytes, const struct decoded *d, uint8_t out[15])
{
    static const uint8_t prefixes[][3] = {{0}, {0x67}, {0x66}, {0x66, 0x67}};
    uint8_t rest[15];
    unsigned n = 0;

    for (unsigned i = 0; i < d->zi.length; i++) { /* without 66 and 67: they are chosen anew */
        if (i >= d->zi.raw.prefix_count || (bytes[i] != 0x66 && bytes[i] != 0x67))
            rest[n++] = bytes[i];
    }
    for (unsigned p = 0; p < ARRAY_SIZE(prefixes); p++) {
        struct decoded e;
        unsigned k = 0, i;

        for (; prefixes[p][k]; k++)
            out[k] = prefixes[p][k];
        if (n + k > 14)
            return 0;
        memcpy(out + k, rest, n);
        memset(out + k + n, 0, 15 - n - k);
        if (!form_decode(MODE_64, out, &e) || e.zi.mnemonic != d->zi.mnemonic || e.zi.length != n + k ||
            e.zi.operand_count != d->zi.operand_count)
            continue;
        if (has_vsib(d) && e.zi.address_width != d->zi.address_width) /* no operand shows it: [xmm1+1234h] */
            continue;
        for (i = 0; i < e.zi.operand_count && same_operand(&e.ops[i], &d->ops[i]); i++)
            ;
        if (i == e.zi.operand_count)
            return n + k;
    }
    return 0;
}
