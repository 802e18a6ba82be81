/* SPDX-License-Identifier: MIT
 * in_fpu.c: instructions that save and load whole parts of the vector and x87 state: FXSAVE, XSAVE and their kin,
 * FNSTENV, FNSAVE, LDMXCSR. They work on the XSAVE area in memory: only there the host's masks, pointers and layout can
 * be kept from the guest. */
#include "insn/fpu.h"
#include "mem/mem.h"

static int read_block(struct cpu *cpu, enum seg_reg seg, gva_t ea, void *buf, unsigned size)
{
    int st = CPU_OK;

    for (unsigned off = 0, n; off < size && !st; off += n) {
        n = size - off < 64 ? size - off : 64;
        st = mem_read(cpu, seg, ea + off, (uint8_t *)buf + off, n, ACC_READ);
    }
    return st;
}

static int write_block(struct cpu *cpu, enum seg_reg seg, gva_t ea, const void *buf, unsigned size)
{
    int st = CPU_OK;

    for (unsigned off = 0, n; off < size && !st; off += n) {
        n = size - off < 64 ? size - off : 64;
        st = mem_write(cpu, seg, ea + off, (const uint8_t *)buf + off, n, ACC_WRITE);
    }
    return st;
}

static void fpu_clear_pointers(struct fpu_unit *f)
{
    f->fip = f->fdp = f->fop = f->fcs = f->fds = 0;
}

static int bad(struct cpu *cpu)
{
    return cpu_raise_err(cpu, VEC_GP, 0);
}

/* Control and status word as the processor takes them: reserved bits, and the summary of unmasked exceptions. */
static void x87_control(struct xsave_area *a, uint16_t fcw, uint16_t fsw)
{
    a->fcw = (fcw & 0x1f7f) | 0x40;
    a->fsw = fsw & ~(FSW_ES | FSW_B);
    if (a->fsw & ~a->fcw & 0x3f)
        a->fsw |= FSW_ES | FSW_B;
}

/* ---- FXSAVE and the legacy region ---- */
#define LEGACY_X87_HEAD 24u /* FCW to the data pointer */
#define LEGACY_ST       offsetof(struct xsave_area, st)
#define LEGACY_XMM      offsetof(struct xsave_area, xmm)

static unsigned xmm_bytes(const struct cpu *cpu)
{
    return cpu->s.mode == MODE_64 ? 256 : 128; /* XMM8-15 do not exist elsewhere */
}

/* Instruction and data pointers: 64 bits, or 32 bits and a selector each (SDM 1, "FXSAVE Area"). */
static void pointers_out(struct cpu *cpu, const struct insn *in, struct xsave_area *image)
{
    const struct fpu_unit *f = cpu->fpu;

    if ((in->mode == MODE_64 && in->pfx & PFX_REX_W) || !(fpu_layout()->saves_pointers || image->fsw & FSW_ES))
        return;
    image->fip = (uint32_t)image->fip | (uint64_t)f->fcs << 32;
    image->fdp = (uint32_t)image->fdp | (uint64_t)f->fds << 32;
}

static void pointers_in(struct cpu *cpu, const struct insn *in, const struct xsave_area *image)
{
    struct fpu_unit *f = cpu->fpu;

    f->fip = (int64_t)(image->fip << 7) >> 7; /* as far as linear addresses may go */
    f->fdp = (int64_t)(image->fdp << 7) >> 7;
    f->fop = image->fop & 0x7ff;
    f->fcs = f->fds = 0;
    if (in->mode != MODE_64 || !(in->pfx & PFX_REX_W)) {
        f->fcs = image->fip >> 32;
        f->fds = image->fdp >> 32;
        f->fip = (uint32_t)image->fip;
        f->fdp = (uint32_t)image->fdp;
    }
    fpu_show_pointers(f);
}

static int fx_begin(struct cpu *cpu, const struct insn *in, unsigned acc, gva_t *ea)
{
    if (cpu->s.cr0 & (CR0_EM | CR0_TS))
        return cpu_raise(cpu, VEC_NM);
    *ea = insn_ea(cpu, in);
    return native_check_aligned(cpu, in->seg, *ea, 15, 512, acc);
}

int in_fxsave(struct cpu *cpu, const struct insn *in)
{
    struct xsave_area image;
    gva_t ea;
    int st = fx_begin(cpu, in, ACC_WRITE, &ea);

    if (st || (st = mem_probe(cpu, in->seg, ea, 512, ACC_WRITE)))
        return st;
    memcpy(&image, fpu_sync(cpu), 512);
    fpu_done(cpu);
    pointers_out(cpu, in, &image);
    image.mxcsr_mask = fpu_layout()->mxcsr_mask;
    return write_block(cpu, in->seg, ea, &image, LEGACY_XMM + xmm_bytes(cpu));
}

int in_fxrstor(struct cpu *cpu, const struct insn *in)
{
    struct xsave_area image, *a;
    gva_t ea;
    int st = fx_begin(cpu, in, ACC_READ, &ea);

    if (st || (st = read_block(cpu, in->seg, ea, &image, 512)))
        return st;
    if (image.mxcsr & ~fpu_layout()->mxcsr_mask)
        return bad(cpu);
    host_fpu_save(cpu);
    a = fpu_sync(cpu);
    memcpy(a, &image, LEGACY_X87_HEAD);
    x87_control(a, image.fcw, image.fsw);
    a->mxcsr = image.mxcsr;
    memcpy(a->st, image.st, sizeof(a->st));
    memcpy(a->xmm, image.xmm, xmm_bytes(cpu));
    a->xstate_bv |= XFEATURE_X87 | XFEATURE_SSE;
    pointers_in(cpu, in, &image);
    return CPU_OK;
}

/* ---- XSAVE, XSAVEOPT, XSAVEC, XRSTOR (SDM 1, "Operation of XSAVE" and its neighbours) ---- */
#define XSAVE_HEADER  512u
#define XCOMP_COMPACT (1ull << 63)

static int xsave_begin(struct cpu *cpu, const struct insn *in, unsigned acc, gva_t *ea, uint64_t *rfbm)
{
    const struct cpu_state *s = &cpu->s;

    if (!(s->cr4 & CR4_OSXSAVE))
        return cpu_raise(cpu, VEC_UD);
    if (s->cr0 & CR0_TS)
        return cpu_raise(cpu, VEC_NM);
    *ea = insn_ea(cpu, in);
    *rfbm = ((uint64_t)(uint32_t)s->gpr[R_RDX] << 32 | (uint32_t)s->gpr[R_RAX]) & s->xcr0;
    if (s->mode == MODE_64) { /* processors see the alignment before an address that is not canonical: #GP, not #SS */
        const gva_t gva = in->seg == SEG_FS || in->seg == SEG_GS ? *ea + s->seg[in->seg].base : *ea;

        if (gva & 63)
            return cpu_raise_err(cpu, VEC_GP, 0);
    }
    return native_check_aligned(cpu, in->seg, *ea, 63, sizeof(struct xsave_area), acc);
}

/* Where component i lies in an area with these components, and how much of it exists in this mode. */
struct place {
    unsigned offset, size;
};

static struct place component(const struct cpu *cpu, unsigned i, uint64_t compacted)
{
    const struct fpu_layout *l = fpu_layout();
    struct place p = {.offset = l->comp[i].offset, .size = l->comp[i].size};

    if (compacted) {
        p.offset = sizeof(struct xsave_area);
        for (unsigned j = 2; j <= i; j++) {
            if (!(compacted >> j & 1))
                continue;
            if (l->comp[j].align64)
                p.offset = (p.offset + 63) & ~63u;
            if (j < i)
                p.offset += l->comp[j].size;
        }
    }
    if (cpu->s.mode != MODE_64) { /* registers 8 and up do not exist */
        if (1u << i & (XFEATURE_AVX | XFEATURE_HI256))
            p.size /= 2;
        else if (1u << i & XFEATURE_HI16)
            p.size = 0;
    }
    return p;
}

static unsigned area_end(const struct cpu *cpu, uint64_t mask, uint64_t compacted)
{
    unsigned end = sizeof(struct xsave_area);

    for (unsigned i = 2; i < XFEATURES; i++) {
        const struct place p = component(cpu, i, compacted);

        if (mask >> i & 1 && p.offset + p.size > end)
            end = p.offset + p.size;
    }
    return end;
}

struct xsave {
    gva_t ea;
    uint64_t rfbm, inuse, write; /* requested, not initial, to be written */
    bool compact;
};

static int xsave_legacy(struct cpu *cpu, const struct insn *in, const struct xsave *x, const struct xsave_area *a)
{
    struct xsave_area image;
    const enum seg_reg seg = in->seg;
    int st = CPU_OK;

    memcpy(&image, a, XSAVE_HEADER);
    image.mxcsr_mask = fpu_layout()->mxcsr_mask;
    pointers_out(cpu, in, &image);
    if (x->write & XFEATURE_X87) {
        st = write_block(cpu, seg, x->ea, &image, LEGACY_X87_HEAD);
        st = st ? st : write_block(cpu, seg, x->ea + LEGACY_ST, image.st, sizeof(image.st));
    }
    if (!st && (x->compact ? x->write & XFEATURE_SSE : x->rfbm & (XFEATURE_SSE | XFEATURE_AVX)))
        st = write_block(cpu, seg, x->ea + LEGACY_X87_HEAD, &image.mxcsr, 8);
    if (!st && x->write & XFEATURE_SSE)
        st = write_block(cpu, seg, x->ea + LEGACY_XMM, image.xmm, xmm_bytes(cpu));
    return st;
}

static int xsave_header(struct cpu *cpu, const struct insn *in, const struct xsave *x, uint64_t old_bv)
{
    uint64_t header[2] = {(old_bv & ~x->rfbm) | (x->inuse & x->rfbm), x->rfbm | XCOMP_COMPACT};

    if (x->compact)
        header[0] = x->inuse & x->rfbm;
    return write_block(cpu, in->seg, x->ea + XSAVE_HEADER, header, x->compact ? 16 : 8);
}

int in_xsave(struct cpu *cpu, const struct insn *in)
{
    const bool plain = in->op == OP_XSAVE || in->op == OP_XSAVE64;
    struct xsave x = {.compact = in->op == OP_XSAVEC || in->op == OP_XSAVEC64};
    struct xsave_area *a;
    uint64_t old_bv = 0;
    int st = xsave_begin(cpu, in, ACC_WRITE, &x.ea, &x.rfbm);

    if (st)
        return st;
    a = fpu_sync(cpu);
    x.inuse = a->xstate_bv;
    if (x.compact && a->mxcsr != MXCSR_INIT)
        x.inuse |= XFEATURE_SSE;
    x.write = plain ? x.rfbm : x.rfbm & x.inuse;
    st = mem_probe(cpu, in->seg, x.ea, area_end(cpu, x.rfbm, x.compact ? x.rfbm : 0), ACC_WRITE);
    if (!st && !x.compact)
        st = mem_read(cpu, in->seg, x.ea + XSAVE_HEADER, &old_bv, 8, ACC_READ);
    if (!st)
        st = xsave_legacy(cpu, in, &x, a);
    for (unsigned i = 2; i < XFEATURES && !st; i++) {
        const struct place from = component(cpu, i, 0), to = component(cpu, i, x.compact ? x.rfbm : 0);

        if (x.write >> i & 1)
            st = write_block(cpu, in->seg, x.ea + to.offset, (uint8_t *)a + from.offset, from.size);
    }
    if (!st)
        st = xsave_header(cpu, in, &x, old_bv);
    fpu_done(cpu);
    return st;
}

/* The header's checks (SDM 1, "Operation of XRSTOR"). */
static bool header_valid(const struct cpu *cpu, const struct xsave_area *h, bool compact)
{
    uint64_t reserved = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(h->reserved2); i++)
        reserved |= h->reserved2[i];
    if (compact)
        return cpu_has_feature(FEAT_XSAVEC) && !reserved && !(h->xcomp_bv & ~XCOMP_COMPACT & ~cpu->s.xcr0) &&
               !(h->xstate_bv & ~h->xcomp_bv);
    /* only the first two of the reserved words count in the standard form; XCOMP_BV must be 0 */
    return !h->xcomp_bv && !h->reserved2[0] && !(h->xstate_bv & ~cpu->s.xcr0);
}

/* One component from guest memory, or its initial value. */
static int restore_component(struct cpu *cpu, const struct insn *in, gva_t ea, unsigned i, bool present,
                             uint64_t compacted, struct xsave_area *a)
{
    const struct place from = component(cpu, i, compacted), to = component(cpu, i, 0);

    if (present)
        return read_block(cpu, in->seg, ea + from.offset, (uint8_t *)a + to.offset, from.size);
    memset((uint8_t *)a + to.offset, 0, to.size);
    return CPU_OK;
}

static void restore_legacy(struct cpu *cpu, const struct insn *in, const struct xsave_area *image, uint64_t rfbm,
                           bool compact, struct xsave_area *a)
{
    const uint64_t load = rfbm & image->xstate_bv;

    if (load & XFEATURE_X87) {
        memcpy(a, image, LEGACY_X87_HEAD);
        x87_control(a, image->fcw, image->fsw);
        memcpy(a->st, image->st, sizeof(a->st));
    } else if (rfbm & XFEATURE_X87) {
        fpu_area_init(a, XFEATURE_X87);
    }
    if (load & XFEATURE_SSE)
        memcpy(a->xmm, image->xmm, xmm_bytes(cpu));
    else if (rfbm & XFEATURE_SSE)
        memset(a->xmm, 0, xmm_bytes(cpu));
    if (compact ? load & XFEATURE_SSE : rfbm & (XFEATURE_SSE | XFEATURE_AVX))
        a->mxcsr = image->mxcsr;
    else if (compact && rfbm & XFEATURE_SSE)
        a->mxcsr = MXCSR_INIT;
}

int in_xrstor(struct cpu *cpu, const struct insn *in)
{
    struct xsave_area image, *a;
    uint64_t rfbm, compacted;
    bool compact;
    gva_t ea;
    int st = xsave_begin(cpu, in, ACC_READ, &ea, &rfbm);

    if (st || (st = read_block(cpu, in->seg, ea, &image, sizeof(image))))
        return st;
    compact = image.xcomp_bv & XCOMP_COMPACT;
    compacted = compact ? image.xcomp_bv & ~XCOMP_COMPACT : 0;
    if (!header_valid(cpu, &image, compact))
        return bad(cpu);
    st = mem_probe(cpu, in->seg, ea, area_end(cpu, rfbm & image.xstate_bv, compacted), ACC_READ);
    if (st)
        return st;
    if ((compact ? rfbm & image.xstate_bv & XFEATURE_SSE : rfbm & (XFEATURE_SSE | XFEATURE_AVX)) &&
        image.mxcsr & ~fpu_layout()->mxcsr_mask)
        return bad(cpu);
    host_fpu_save(cpu);
    a = fpu_sync(cpu);
    for (unsigned i = 2; i < XFEATURES && !st; i++)
        if (rfbm >> i & 1)
            st = restore_component(cpu, in, ea, i, image.xstate_bv >> i & 1, compacted, a);
    if (st)
        return st;
    restore_legacy(cpu, in, &image, rfbm, compact, a);
    /* in 32-bit modes the registers from 8 on keep what they had: the component is then not initial */
    a->xstate_bv = cpu->s.mode == MODE_64 ? (a->xstate_bv & ~rfbm) | (image.xstate_bv & rfbm)
                                          : a->xstate_bv | (image.xstate_bv & rfbm);
    if (rfbm & image.xstate_bv & XFEATURE_X87)
        pointers_in(cpu, in, &image);
    else if (rfbm & XFEATURE_X87)
        fpu_clear_pointers(cpu->fpu);
    return CPU_OK;
}

int in_ldmxcsr(struct cpu *cpu, const struct insn *in)
{
    uint32_t mxcsr;
    int st = native_allowed(cpu, in->op == OP_VLDMXCSR ? NC_VEX : NC_SSE);

    if (st || (st = mem_ld32(cpu, in->seg, insn_ea(cpu, in), &mxcsr)))
        return st;
    if (mxcsr & ~fpu_layout()->mxcsr_mask)
        return bad(cpu);
    host_fpu_load(cpu);
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
    fpu_done(cpu);
    return CPU_OK;
}

/* ---- the x87 environment (SDM 1, figures "x87 FPU State Image in Memory") ---- */
struct env { /* the 32-bit protected-mode format */
    uint32_t fcw, fsw, ftw, fip, fcs_fop, fdp, fds;
};
enum { ENV_MAX = 28, ST_BYTES = 80 };

static unsigned env_size(const struct insn *in)
{
    return in->opsize == 2 ? 14 : 28;
}

static bool env_real(const struct cpu *cpu)
{
    return cpu->s.mode == MODE_REAL || cpu->s.mode == MODE_V86;
}

/* Tag of one register: valid, zero, special (SDM 1, "x87 FPU Tag Word"). */
static unsigned tag_of(const uint8_t st[16])
{
    uint64_t mant;
    uint16_t exp;

    memcpy(&mant, st, 8);
    memcpy(&exp, st + 8, 2);
    exp &= 0x7fff;
    if (!exp && !mant)
        return 1;
    return exp == 0 || exp == 0x7fff || !(mant >> 63) ? 2 : 0;
}

static uint16_t full_tags(const struct xsave_area *a)
{
    const unsigned top = a->fsw >> 11 & 7;
    uint16_t tags = 0;

    for (unsigned phys = 0; phys < 8; phys++)
        tags |= (a->ftw >> phys & 1 ? tag_of(a->st[(phys - top) & 7]) : 3) << 2 * phys;
    return tags;
}

static unsigned env_build(const struct cpu *cpu, const struct insn *in, const struct xsave_area *a,
                          uint8_t buf[ENV_MAX])
{
    const struct fpu_unit *f = cpu->fpu;
    const uint32_t tags = full_tags(a), fip = f->fip, fdp = f->fdp;
    const uint32_t lip = ((uint32_t)f->fcs << 4) + fip, ldp = ((uint32_t)f->fds << 4) + fdp;
    const uint16_t fop = f->fop & 0x7ff;
    uint32_t e32[7] = {
        a->fcw | 0xffff0000, a->fsw | 0xffff0000, tags | 0xffff0000, fip, f->fcs | (uint32_t)fop << 16, fdp,
        f->fds | 0xffff0000};
    uint16_t e16[7] = {a->fcw, a->fsw, tags, fip, f->fcs, fdp, f->fds};

    if (env_real(cpu)) {
        e32[3] = lip | 0xffff0000;
        e32[4] = (lip >> 16 << 12) | fop;
        e32[5] = ldp | 0xffff0000;
        e32[6] = ldp >> 16 << 12;
        e16[3] = lip;
        e16[4] = (lip >> 16 << 12 & 0xf000) | fop;
        e16[5] = ldp;
        e16[6] = ldp >> 16 << 12 & 0xf000;
    }
    if (env_size(in) == 14)
        memcpy(buf, e16, 14);
    else
        memcpy(buf, e32, 28);
    return env_size(in);
}

/* ST(i) of an area is relative to TOP, which changes; the registers stay. */
static void set_top(struct xsave_area *a, uint16_t fsw)
{
    const unsigned move = ((fsw >> 11) - (a->fsw >> 11)) & 7;
    uint8_t st[8][16];

    memcpy(st, a->st, sizeof(st));
    for (unsigned i = 0; i < 8; i++)
        memcpy(a->st[i], st[(i + move) & 7], 16);
}

static void env_apply(struct cpu *cpu, const struct insn *in, const uint8_t *buf, struct xsave_area *a)
{
    struct fpu_unit *f = cpu->fpu;
    uint32_t e[7];
    uint16_t e16[7];

    memcpy(e, buf, env_size(in) == 14 ? 14 : 28);
    if (env_size(in) == 14) {
        memcpy(e16, buf, 14);
        for (unsigned i = 0; i < 7; i++)
            e[i] = e16[i];
        f->fop = env_real(cpu) ? e[4] & 0x7ff : 0;
    } else {
        f->fop = (env_real(cpu) ? e[4] : e[4] >> 16) & 0x7ff;
    }
    f->fcs = f->fds = 0;
    f->fip = e[3];
    f->fdp = e[5];
    if (env_real(cpu)) {
        const uint32_t low = 0xffff;

        f->fip = (e[3] & low) | (e[4] >> 12 << 16);
        f->fdp = (e[5] & low) | (e[6] >> 12 << 16);
    } else {
        f->fcs = e[4];
        f->fds = e[6];
    }
    set_top(a, e[1]);
    x87_control(a, e[0], e[1]);
    a->ftw = 0;
    for (unsigned phys = 0; phys < 8; phys++)
        a->ftw |= ((e[2] >> 2 * phys & 3) != 3) << phys;
    a->xstate_bv |= XFEATURE_X87;
    fpu_show_pointers(f);
}

/* Makes the area the truth; a waiting instruction raises a pending exception first. */
static int env_begin(struct cpu *cpu, bool waits, struct xsave_area **a)
{
    int st = native_allowed(cpu, NC_X87);

    if (st)
        return st;
    host_fpu_save(cpu);
    *a = fpu_sync(cpu);
    return waits && (*a)->fsw & FSW_ES ? cpu_raise(cpu, VEC_MF) : CPU_OK;
}

int in_fnstenv(struct cpu *cpu, const struct insn *in)
{
    uint8_t buf[ENV_MAX];
    struct xsave_area *a;
    int st = env_begin(cpu, false, &a);

    if (!st)
        st = mem_write(cpu, in->seg, insn_ea(cpu, in), buf, env_build(cpu, in, a, buf), ACC_WRITE);
    if (st)
        return st;
    a->fcw |= 0x3f; /* all exceptions masked */
    a->fsw &= ~(FSW_ES | FSW_B);
    a->xstate_bv |= XFEATURE_X87;
    fpu_show_pointers(cpu->fpu);
    return CPU_OK;
}

int in_fldenv(struct cpu *cpu, const struct insn *in)
{
    uint8_t buf[ENV_MAX];
    struct xsave_area *a;
    int st = env_begin(cpu, true, &a);

    if (st || (st = mem_read(cpu, in->seg, insn_ea(cpu, in), buf, env_size(in), ACC_READ)))
        return st;
    env_apply(cpu, in, buf, a);
    return CPU_OK;
}

int in_fnsave(struct cpu *cpu, const struct insn *in)
{
    uint8_t buf[ENV_MAX + ST_BYTES];
    struct xsave_area *a;
    unsigned n;
    int st = env_begin(cpu, false, &a);

    if (st)
        return st;
    n = env_build(cpu, in, a, buf);
    for (unsigned i = 0; i < 8; i++)
        memcpy(buf + n + 10 * i, a->st[i], 10);
    st = mem_probe(cpu, in->seg, insn_ea(cpu, in), n + ST_BYTES, ACC_WRITE);
    if (!st)
        st = write_block(cpu, in->seg, insn_ea(cpu, in), buf, n + ST_BYTES);
    if (st)
        return st;
    set_top(a, 0); /* as FNINIT: the registers keep their contents, tagged empty */
    x87_control(a, FCW_INIT, 0);
    a->ftw = 0;
    a->xstate_bv |= XFEATURE_X87;
    fpu_clear_pointers(cpu->fpu);
    fpu_show_pointers(cpu->fpu);
    return CPU_OK;
}

int in_frstor(struct cpu *cpu, const struct insn *in)
{
    uint8_t buf[ENV_MAX + ST_BYTES];
    struct xsave_area *a;
    int st = env_begin(cpu, true, &a);

    if (st || (st = read_block(cpu, in->seg, insn_ea(cpu, in), buf, env_size(in) + ST_BYTES)))
        return st;
    env_apply(cpu, in, buf, a);
    for (unsigned i = 0; i < 8; i++) {
        memset(a->st[i], 0, 16);
        memcpy(a->st[i], buf + env_size(in) + 10 * i, 10);
    }
    return CPU_OK;
}
