/* SPDX-License-Identifier: MIT
 * decode.c: bytes -> struct insn by Zydis, and the table from Zydis's mnemonics to the rows of ops.def. Zydis uses
 * vector registers: callers have done host_fpu_save(). */
#include <Zydis/Zydis.h>
#include <pthread.h>
#include "insn/in_int.h"

/* Zydis calls the string and the SSE2 forms of MOVSD and CMPSD by one name: the string forms get rows of their own. */
enum { ZYDIS_MNEMONIC_MOVSD_STR = ZYDIS_MNEMONIC_MAX_VALUE + 1, ZYDIS_MNEMONIC_CMPSD_STR, MNEMONIC_COUNT };
static const uint16_t row_of_mnemonic[MNEMONIC_COUNT] = {
#define OP(mnemonic, interp, trans, rd, must, may, undef, attrs, feature) [ZYDIS_MNEMONIC_##mnemonic] = OP_##mnemonic,
#include "insn/ops.def"
#undef OP
};

#define MODES (MODE_64 + 1)
static ZydisDecoder decoders[MODES];
static ZydisFormatter formatter;

static void decoders_init(void)
{
    static const struct {
        ZydisMachineMode mode;
        ZydisStackWidth stack;
    } machine[MODES] = {
        [MODE_REAL] = {ZYDIS_MACHINE_MODE_REAL_16, ZYDIS_STACK_WIDTH_16},
        [MODE_V86] = {ZYDIS_MACHINE_MODE_REAL_16, ZYDIS_STACK_WIDTH_16},
        [MODE_PROT16] = {ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16},
        [MODE_PROT32] = {ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32},
        [MODE_COMPAT16] = {ZYDIS_MACHINE_MODE_LONG_COMPAT_16, ZYDIS_STACK_WIDTH_16},
        [MODE_COMPAT32] = {ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32},
        [MODE_64] = {ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64},
    };
    /* What is never offered decodes as on a processor without it (as NOP or WBINVD). LZCNT came with BMI1 (or before).
     */
    const bool bmi = cpu_has_feature(FEAT_BMI1);
    const bool lzcnt = bmi || cpu_has_feature(FEAT_LZCNT);

    for (unsigned i = 0; i < MODES; i++) {
        ZydisDecoder *d = &decoders[i];

        ZydisDecoderInit(d, machine[i].mode, machine[i].stack);
        ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
        ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
        ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_WBNOINVD, ZYAN_FALSE);
        ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
        ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_LZCNT, lzcnt);
        ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_TZCNT, bmi);
    }
    ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
}

static uint8_t gpr_number(ZydisRegister reg)
{
    switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_GPR16:
    case ZYDIS_REGCLASS_GPR32:
    case ZYDIS_REGCLASS_GPR64:
        return ZydisRegisterGetId(reg);
    case ZYDIS_REGCLASS_IP:
        return REG_RIP;
    default:
        return REG_NONE;
    }
}

static void set_register(struct opnd *o, ZydisRegister reg)
{
    static const uint8_t kinds[] = {
        [ZYDIS_REGCLASS_GPR16] = OPK_REG,   [ZYDIS_REGCLASS_GPR32] = OPK_REG,  [ZYDIS_REGCLASS_GPR64] = OPK_REG,
        [ZYDIS_REGCLASS_SEGMENT] = OPK_SEG, [ZYDIS_REGCLASS_CONTROL] = OPK_CR, [ZYDIS_REGCLASS_DEBUG] = OPK_DR,
        [ZYDIS_REGCLASS_MMX] = OPK_MMX,     [ZYDIS_REGCLASS_X87] = OPK_ST,     [ZYDIS_REGCLASS_XMM] = OPK_VEC,
        [ZYDIS_REGCLASS_YMM] = OPK_VEC,     [ZYDIS_REGCLASS_ZMM] = OPK_VEC,    [ZYDIS_REGCLASS_MASK] = OPK_MASK,
    };
    const unsigned class = ZydisRegisterGetClass(reg);

    if (class == ZYDIS_REGCLASS_GPR8) {
        /* the enumeration: AL CL DL BL, AH CH DH BH, SPL BPL SIL DIL, R8B ... R15B */
        const unsigned n = reg - ZYDIS_REGISTER_AL;

        o->kind = n >= 4 && n < 8 ? OPK_REG8H : OPK_REG;
        o->reg = n < 4 ? n : n - 4;
        return;
    }
    o->kind = class < ARRAY_SIZE(kinds) ? kinds[class] : OPK_NONE;
    o->reg = ZydisRegisterGetId(reg);
}

static void set_memory(struct insn *in, const ZydisDecodedOperandMem *mem)
{
    in->seg = ZydisRegisterGetId(mem->segment);
    in->base = gpr_number(mem->base);
    in->index = gpr_number(mem->index);
    in->scale = mem->scale > 1 ? __builtin_ctz(mem->scale) : 0;
    in->disp = mem->disp.has_displacement ? mem->disp.value : 0;
}

/* The segment of string instructions and XLAT: that of rSI or rBX, which a prefix overrides; else ES:rDI. */
static void set_hidden_memory(struct insn *in, const ZydisDecodedOperand *ops, unsigned first, unsigned count)
{
    for (unsigned i = first; i < count; i++) {
        if (ops[i].type != ZYDIS_OPERAND_TYPE_MEMORY)
            continue;
        const uint8_t base = gpr_number(ops[i].mem.base);

        in->seg = ZydisRegisterGetId(ops[i].mem.segment);
        if (base == R_RSI || base == R_RBX)
            return;
    }
}

static void set_operand(struct insn *in, unsigned n, const ZydisDecodedOperand *op)
{
    struct opnd *o = &in->o[n];

    o->size = op->size / 8;
    o->rw = (op->actions & ZYDIS_OPERAND_ACTION_MASK_READ ? OPND_R : 0) |
            (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE ? OPND_W : 0);
    switch (op->type) {
    case ZYDIS_OPERAND_TYPE_REGISTER:
        set_register(o, op->reg.value);
        break;
    case ZYDIS_OPERAND_TYPE_MEMORY:
        o->kind = OPK_MEM;
        in->mem = n;
        set_memory(in, &op->mem);
        break;
    case ZYDIS_OPERAND_TYPE_IMMEDIATE:
        o->kind = op->imm.is_relative ? OPK_REL : OPK_IMM;
        if (n && in->o[n - 1].kind == OPK_IMM)
            in->imm2 = op->imm.value.u;
        else
            in->imm = op->imm.value.u;
        break;
    case ZYDIS_OPERAND_TYPE_POINTER:
        o->kind = OPK_FAR;
        in->imm = op->ptr.offset;
        in->imm2 = op->ptr.segment;
        break;
    default:
        break;
    }
}

static void set_prefixes(struct insn *in, const ZydisDecodedInstruction *zi)
{
    for (unsigned i = 0; i < zi->raw.prefix_count; i++) {
        switch (zi->raw.prefixes[i].value) {
        case 0xf0:
            in->pfx |= PFX_LOCK;
            break;
        case 0xf2: /* of several the last one counts */
            in->pfx = (in->pfx & ~PFX_REP) | PFX_REPNE;
            break;
        case 0xf3:
            in->pfx = (in->pfx & ~PFX_REPNE) | PFX_REP;
            break;
        case 0x66:
            in->pfx |= PFX_OPSIZE;
            break;
        }
    }
    if (zi->attributes & ZYDIS_ATTRIB_HAS_REX && zi->raw.rex.W)
        in->pfx |= PFX_REX_W;
}

static int undefined(struct insn *in, insn_fn *fn)
{
    in->op = OP_INVALID;
    in->fn = fn;
    in->nops = 0;
    in->mem = 0xff;
    return -1;
}

static int failed(struct insn *in, ZyanStatus status, unsigned n)
{
    in->len = n < 1 ? 1 : n;
    if (status == ZYDIS_STATUS_NO_MORE_DATA && n < ZYDIS_MAX_INSTRUCTION_LENGTH)
        return 1;
    if (status == ZYDIS_STATUS_NO_MORE_DATA || status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG)
        return undefined(in, in_too_long);
    return undefined(in, in_ud);
}

static unsigned find_row(const ZydisDecodedInstruction *zi)
{
    unsigned mnemonic = zi->mnemonic;

    if (zi->meta.category == ZYDIS_CATEGORY_STRINGOP)
        mnemonic = mnemonic == ZYDIS_MNEMONIC_MOVSD   ? (unsigned)ZYDIS_MNEMONIC_MOVSD_STR
                   : mnemonic == ZYDIS_MNEMONIC_CMPSD ? (unsigned)ZYDIS_MNEMONIC_CMPSD_STR
                                                      : mnemonic;
    return row_of_mnemonic[mnemonic];
}

/* What Zydis cannot know: the modes and features of the row, and whether LOCK is allowed. */
static bool row_allows(const struct insn *in)
{
    const struct op_row *row = &op_rows[in->op];

    if (!in->op || (row->feature && !cpu_has_feature(row->feature)))
        return false;
    if ((row->attrs & A_NO64) && in->mode == MODE_64)
        return false;
    if ((row->attrs & A_NOREAL) && (in->mode == MODE_REAL || in->mode == MODE_V86))
        return false;
    return !(in->pfx & PFX_LOCK) || ((row->attrs & A_LOCKABLE) && in->mem == 0);
}

/* Encodings that Zydis knows under the names of rows but no x86 server processor has: Knights Corner's VEX forms of
 * POPCNT and its kin, and the prefetches of 0F 0D with a register. */
static bool never_offered(const ZydisDecodedInstruction *zi)
{
    if (zi->opcode_map == ZYDIS_OPCODE_MAP_0F && zi->opcode == 0x0d && zi->raw.modrm.mod == 3)
        return true;
    switch (zi->meta.isa_set) {
    case ZYDIS_ISA_SET_KNCE:
    case ZYDIS_ISA_SET_KNCJKBR:
    case ZYDIS_ISA_SET_KNCSTREAM:
    case ZYDIS_ISA_SET_KNCV:
    case ZYDIS_ISA_SET_KNC_MISC:
    case ZYDIS_ISA_SET_KNC_PF_HINT:
        return true;
    default:
        return false;
    }
}

int insn_decode(const uint8_t *bytes, unsigned n, enum cpu_mode mode, struct insn *in)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    ZydisDecodedInstruction zi;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    ZydisDecoderContext context;
    ZyanStatus status;

    pthread_once(&once, decoders_init);
    memset(in, 0, sizeof(*in));
    in->mode = mode;
    in->mem = 0xff;
    in->base = in->index = REG_NONE;
    in->seg = SEG_DS;
    if (n > ZYDIS_MAX_INSTRUCTION_LENGTH)
        n = ZYDIS_MAX_INSTRUCTION_LENGTH;
    memcpy(in->bytes, bytes, n);
    status = ZydisDecoderDecodeInstruction(&decoders[mode], &context, bytes, n, &zi);
    if (!ZYAN_SUCCESS(status))
        return failed(in, status, n);
    status = ZydisDecoderDecodeOperands(&decoders[mode], &context, &zi, ops, zi.operand_count);
    if (!ZYAN_SUCCESS(status))
        return failed(in, status, n);

    in->len = zi.length;
    memset(in->bytes + in->len, 0, sizeof(in->bytes) - in->len);
    in->op = find_row(&zi);
    in->opsize = zi.operand_width / 8;
    in->asize = zi.address_width / 8;
    in->vl = zi.avx.vector_length / 8;
    in->aux = zi.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
    set_prefixes(in, &zi);
    in->nops = zi.operand_count_visible < ARRAY_SIZE(in->o) ? zi.operand_count_visible : ARRAY_SIZE(in->o);
    for (unsigned i = 0; i < in->nops; i++)
        set_operand(in, i, &ops[i]);
    if (zi.raw.sib.offset && zi.raw.modrm.mod == 0 && zi.raw.sib.base == 5) {
        in->base = REG_NONE; /* whatever REX.B says; Zydis 4.0 sees R13D and no displacement with a 32-bit address */
        in->disp = zi.raw.disp.value;
    }
    if (in->mem == 0xff)
        set_hidden_memory(in, ops, in->nops, zi.operand_count);
    if (!row_allows(in) || never_offered(&zi))
        return undefined(in, in_ud);
    in_select(in);
    return 0;
}

int insn_print(const struct insn *in, gva_t rip, char *buf, size_t size)
{
    ZydisDecodedInstruction zi;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];

    if (!in->len || !ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoders[in->mode], in->bytes, in->len, &zi, ops)) ||
        !ZYAN_SUCCESS(
            ZydisFormatterFormatInstruction(&formatter, &zi, ops, zi.operand_count_visible, buf, size, rip, NULL))) {
        snprintf(buf, size, "(bad)");
        return -1;
    }
    return 0;
}
