/* SPDX-License-Identifier: MIT
 * in_mov.c: data movement without flags: MOV and its extending, swapping and conditional kin, LEA, XCHG, SETcc, CBW
 * ..., BSWAP, XLAT, and the hints (NOP, prefetches, fences). */
#include "insn/in_int.h"

/* ---- general forms ---- */
int in_mov(struct cpu *cpu, const struct insn *in)
{
    uint64_t v;
    const int st = insn_read(cpu, in, 1, &v);

    return st != CPU_OK ? st : insn_write(cpu, in, 0, v);
}

int in_movsx(struct cpu *cpu, const struct insn *in)
{
    uint64_t v;
    const int st = insn_read(cpu, in, 1, &v);

    return st != CPU_OK ? st : insn_write(cpu, in, 0, sign_extend(v, in->o[1].size));
}

static uint64_t swap_bytes(uint64_t v, unsigned size)
{
    return size == 8 ? __builtin_bswap64(v) : size == 4 ? __builtin_bswap32(v) : __builtin_bswap16(v);
}

int in_movbe(struct cpu *cpu, const struct insn *in)
{
    uint64_t v;
    const int st = insn_read(cpu, in, 1, &v);

    return st != CPU_OK ? st : insn_write(cpu, in, 0, swap_bytes(v, in->o[0].size));
}

/* With a 16-bit operand, which is undefined, processors give 0. */
int in_bswap(struct cpu *cpu, const struct insn *in)
{
    const unsigned size = in->o[0].size;

    reg_write(cpu, in->o[0].reg, size, size == 2 ? 0 : swap_bytes(cpu->s.gpr[in->o[0].reg], size));
    return CPU_OK;
}

int in_lea(struct cpu *cpu, const struct insn *in)
{
    reg_write(cpu, in->o[0].reg, in->o[0].size, insn_ea(cpu, in));
    return CPU_OK;
}

static uint64_t g_xchg(uint64_t a, uint64_t b, uint64_t c, uint64_t *flags)
{
    return b;
}

/* With memory it is locked without a prefix (SDM 2, "XCHG"). */
int in_xchg(struct cpu *cpu, const struct insn *in)
{
    const unsigned m = in->mem == 1, r = !m;
    struct rmw_op op = {.fn = g_xchg};
    uint64_t flags;
    int st;

    insn_read(cpu, in, r, &op.b);
    if (in->mem == 0xff) {
        insn_read(cpu, in, 0, &op.old);
        insn_read(cpu, in, 1, &op.b);
        insn_write(cpu, in, 0, op.b);
        return insn_write(cpu, in, 1, op.old);
    }
    st = in_rmw_mem(cpu, in, insn_ea(cpu, in), in->o[m].size, true, &op, &flags);
    return st != CPU_OK ? st : insn_write(cpu, in, r, op.old);
}

/* The source is read in any case; a 32-bit destination is zero-extended in any case. */
int in_cmov(struct cpu *cpu, const struct insn *in)
{
    uint64_t v;
    const int st = insn_read(cpu, in, 1, &v);

    if (st != CPU_OK)
        return st;
    if (!flags_cond(cpu->s.flags, in->aux))
        v = reg_read(cpu, in->o[0].reg, in->o[0].size);
    return insn_write(cpu, in, 0, v);
}

int in_setcc(struct cpu *cpu, const struct insn *in)
{
    return insn_write(cpu, in, 0, flags_cond(cpu->s.flags, in->aux));
}

/* CBW CWDE CDQE: the lower half of the accumulator is extended; CWD CDQ CQO: its sign fills rDX. */
int in_cbw(struct cpu *cpu, const struct insn *in)
{
    reg_write(cpu, R_RAX, in->opsize, sign_extend(cpu->s.gpr[R_RAX], in->opsize / 2));
    return CPU_OK;
}

int in_cwd(struct cpu *cpu, const struct insn *in)
{
    const uint64_t a = sign_extend(cpu->s.gpr[R_RAX], in->opsize);

    reg_write(cpu, R_RDX, in->opsize, (int64_t)a < 0 ? ~0ull : 0);
    return CPU_OK;
}

int in_xlat(struct cpu *cpu, const struct insn *in)
{
    const gva_t ea = (cpu->s.gpr[R_RBX] + (cpu->s.gpr[R_RAX] & 0xff)) & size_mask(in->asize);
    uint8_t v;
    const int st = mem_ld8(cpu, in->seg, ea, &v);

    if (st == CPU_OK)
        reg_write(cpu, R_RAX, 1, v);
    return st;
}

int in_lahf(struct cpu *cpu, const struct insn *in)
{
    cpu->s.gpr[R_RAX] = (cpu->s.gpr[R_RAX] & ~0xff00ull) | (cpu->s.flags & 0xd5) << 8 | F_RESERVED << 8;
    return CPU_OK;
}

int in_sahf(struct cpu *cpu, const struct insn *in)
{
    cpu->s.flags = (cpu->s.flags & F_OF) | (cpu->s.gpr[R_RAX] >> 8 & 0xd5);
    return CPU_OK;
}

int in_nop(struct cpu *cpu, const struct insn *in)
{
    return CPU_OK;
}

int in_ud(struct cpu *cpu, const struct insn *in)
{
    return cpu_raise(cpu, VEC_UD);
}

int in_too_long(struct cpu *cpu, const struct insn *in)
{
    return cpu_raise_err(cpu, VEC_GP, 0);
}

/* Fences: stores of this thread are the vCPU's own, so the host's fence is the guest's. */
int in_fence(struct cpu *cpu, const struct insn *in)
{
    atomic_thread_fence(memory_order_seq_cst);
    __asm__ volatile("lfence" ::: "memory");
    return CPU_OK;
}

/* CLFLUSH and its kin touch the line like a byte read (SDM 2, "CLFLUSH"); guests' caches are the host's, coherent. */
int in_clflush(struct cpu *cpu, const struct insn *in)
{
    uint8_t v;

    return mem_ld8(cpu, in->seg, insn_ea(cpu, in), &v);
}

/* ---- specialised forms ---- */
#define MOV_FORMS(bits)                                                           \
    static int x_mov##bits##_rr(struct cpu *cpu, const struct insn *in)           \
    {                                                                             \
        reg_write(cpu, in->o[0].reg, bits / 8, cpu->s.gpr[in->o[1].reg]);         \
        return CPU_OK;                                                            \
    }                                                                             \
    static int x_mov##bits##_ri(struct cpu *cpu, const struct insn *in)           \
    {                                                                             \
        reg_write(cpu, in->o[0].reg, bits / 8, in->imm);                          \
        return CPU_OK;                                                            \
    }                                                                             \
    static int x_mov##bits##_rm(struct cpu *cpu, const struct insn *in)           \
    {                                                                             \
        uint##bits##_t v;                                                         \
        const void *p = tlb_lookup(cpu, in_lin64(cpu, in), bits / 8, TLB_READ);   \
        if (unlikely(!p) || unlikely(host_ld##bits(p, &v)))                       \
            return in_mov(cpu, in);                                               \
        reg_write(cpu, in->o[0].reg, bits / 8, v);                                \
        return CPU_OK;                                                            \
    }                                                                             \
    static int x_mov##bits##_mr(struct cpu *cpu, const struct insn *in)           \
    {                                                                             \
        void *p = tlb_lookup(cpu, in_lin64(cpu, in), bits / 8, TLB_WRITE);        \
        if (unlikely(!p) || unlikely(host_st##bits(p, cpu->s.gpr[in->o[1].reg]))) \
            return in_mov(cpu, in);                                               \
        return CPU_OK;                                                            \
    }                                                                             \
    static int x_mov##bits##_mi(struct cpu *cpu, const struct insn *in)           \
    {                                                                             \
        void *p = tlb_lookup(cpu, in_lin64(cpu, in), bits / 8, TLB_WRITE);        \
        if (unlikely(!p) || unlikely(host_st##bits(p, in->imm)))                  \
            return in_mov(cpu, in);                                               \
        return CPU_OK;                                                            \
    }
MOV_FORMS(8)
MOV_FORMS(16)
MOV_FORMS(32)
MOV_FORMS(64)

/* MOVZX, MOVSX, MOVSXD to 16, 32, 64 bits. */
#define EXTEND_FORMS(name, type, from, to)                                              \
    static int x_##name##from##to##_r(struct cpu *cpu, const struct insn *in)           \
    {                                                                                   \
        reg_write(cpu, in->o[0].reg, to / 8, (uint64_t)(type)cpu->s.gpr[in->o[1].reg]); \
        return CPU_OK;                                                                  \
    }                                                                                   \
    static int x_##name##from##to##_m(struct cpu *cpu, const struct insn *in)           \
    {                                                                                   \
        uint##from##_t v;                                                               \
        const void *p = tlb_lookup(cpu, in_lin64(cpu, in), from / 8, TLB_READ);         \
        if (unlikely(!p) || unlikely(host_ld##from(p, &v)))                             \
            return in_##name(cpu, in);                                                  \
        reg_write(cpu, in->o[0].reg, to / 8, (uint64_t)(type)v);                        \
        return CPU_OK;                                                                  \
    }
#define in_movzx in_mov
EXTEND_FORMS(movzx, uint8_t, 8, 32)
EXTEND_FORMS(movzx, uint8_t, 8, 64)
EXTEND_FORMS(movzx, uint16_t, 16, 32)
EXTEND_FORMS(movzx, uint16_t, 16, 64)
EXTEND_FORMS(movsx, int8_t, 8, 32)
EXTEND_FORMS(movsx, int8_t, 8, 64)
EXTEND_FORMS(movsx, int16_t, 16, 32)
EXTEND_FORMS(movsx, int16_t, 16, 64)
EXTEND_FORMS(movsx, int32_t, 32, 64)

static int x_lea64(struct cpu *cpu, const struct insn *in)
{
    const uint64_t *word = (const uint64_t *)&cpu->s;

    cpu->s.gpr[in->o[0].reg] = (uint64_t)in->fdisp + word[in->fbase] + (word[in->findex] << in->scale);
    return CPU_OK;
}

static int x_lea32(struct cpu *cpu, const struct insn *in)
{
    const uint64_t *word = (const uint64_t *)&cpu->s;

    cpu->s.gpr[in->o[0].reg] = (uint32_t)((uint64_t)in->fdisp + word[in->fbase] + (word[in->findex] << in->scale));
    return CPU_OK;
}

#define CMOV_FORMS(cc)                                                            \
    static int x_cmov##cc(struct cpu *cpu, const struct insn *in)                 \
    {                                                                             \
        const unsigned from = flags_cond(cpu->s.flags, cc) ? 1 : 0;               \
        reg_write(cpu, in->o[0].reg, in->o[0].size, cpu->s.gpr[in->o[from].reg]); \
        return CPU_OK;                                                            \
    }                                                                             \
    static int x_set##cc(struct cpu *cpu, const struct insn *in)                  \
    {                                                                             \
        reg_write(cpu, in->o[0].reg, 1, flags_cond(cpu->s.flags, cc));            \
        return CPU_OK;                                                            \
    }
#define FOR_CC(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
FOR_CC(CMOV_FORMS)

#define CMOV_NAME(cc) x_cmov##cc,
#define SET_NAME(cc)  x_set##cc,
static insn_fn *const cmov_fns[16] = {FOR_CC(CMOV_NAME)};
static insn_fn *const set_fns[16] = {FOR_CC(SET_NAME)};

#define MOV_ROW(form)                                                 \
    {                                                                 \
        x_mov8_##form, x_mov16_##form, x_mov32_##form, x_mov64_##form \
    }

static insn_fn *select_plain_mov(const struct insn *in)
{
    static insn_fn *const rr[4] = MOV_ROW(rr), *const ri[4] = MOV_ROW(ri), *const rm[4] = MOV_ROW(rm),
                          *const mr[4] = MOV_ROW(mr), *const mi[4] = MOV_ROW(mi);
    const struct opnd *a = &in->o[0], *b = &in->o[1];
    const unsigned i = size_index(a->size);
    const bool flat = in->mode == MODE_64 && in->asize == 8;

    if (a->kind == OPK_REG)
        return b->kind == OPK_REG ? rr[i] : b->kind == OPK_IMM ? ri[i] : b->kind == OPK_MEM && flat ? rm[i] : NULL;
    if (a->kind == OPK_MEM && flat)
        return b->kind == OPK_REG ? mr[i] : b->kind == OPK_IMM ? mi[i] : NULL;
    return NULL;
}

#define EXTEND_ROW(name, from)                         \
    {                                                  \
        {x_##name##from##32_r, x_##name##from##32_m},  \
        {                                              \
            x_##name##from##64_r, x_##name##from##64_m \
        }                                              \
    }

static insn_fn *select_extension(const struct insn *in)
{
    static insn_fn *const zx[2][2][2] = {EXTEND_ROW(movzx, 8), EXTEND_ROW(movzx, 16)};
    static insn_fn *const sx[2][2][2] = {EXTEND_ROW(movsx, 8), EXTEND_ROW(movsx, 16)};
    const struct opnd *a = &in->o[0], *b = &in->o[1];
    const bool flat = in->mode == MODE_64 && in->asize == 8, mem = b->kind == OPK_MEM;

    if (a->size < 4 || (mem && !flat) || (!mem && b->kind != OPK_REG))
        return NULL;
    if (b->size == 4)
        return a->size != 8 || in->op == OP_MOVZX ? NULL : mem ? x_movsx3264_m : x_movsx3264_r;
    return (in->op == OP_MOVZX ? zx : sx)[b->size == 2][a->size == 8][mem];
}

insn_fn *in_select_mov(const struct insn *in)
{
    switch (in->op) {
    case OP_MOV:
        return select_plain_mov(in);
    case OP_MOVZX:
    case OP_MOVSX:
    case OP_MOVSXD:
        return select_extension(in);
    case OP_LEA:
        if (in->asize != 8 || in->mode != MODE_64)
            return NULL;
        return in->o[0].size == 8 ? x_lea64 : in->o[0].size == 4 ? x_lea32 : NULL;
    default: /* CMOVcc, SETcc */
        if (in->nops == 1)
            return in->o[0].kind == OPK_REG ? set_fns[in->aux] : NULL;
        return in->o[0].kind == OPK_REG && in->o[1].kind == OPK_REG ? cmov_fns[in->aux] : NULL;
    }
}
