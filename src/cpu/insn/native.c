/* SPDX-License-Identifier: MIT
 * native.c: runs vector and x87 instructions as re-encoded copies (native_encode.c) on the guest's state, which is live
 * in the host's registers. Memory operands are resolved, checked and made to point at host memory first. */
#include "insn/fpu.h"
#include "mem/mem.h"

/* What an instruction's class needs, as bits of the block key; where they differ, native_allowed() finds the exception.
 */
#define KEYS(mask, want)           \
    {                              \
        KEY_TS_EM | (mask), (want) \
    }
const uint32_t native_keys[NC_COUNT][2] = {
    [NC_NONE] = {0, 0},
    [NC_X87] = KEYS(0, 0),
    [NC_WAIT] = KEYS(0, 0),
    [NC_MMX] = KEYS(0, 0),
    [NC_SSE] = KEYS(KEY_OSFXSR, KEY_OSFXSR),
    [NC_VEX] = KEYS(KEY_OSXSAVE | KEY_XCR0_AVX, KEY_OSXSAVE | KEY_XCR0_AVX),
    [NC_EVEX] = KEYS(KEY_OSXSAVE | KEY_XCR0_512, KEY_OSXSAVE | KEY_XCR0_512),
};

/* SDM 3A, "Configurations of the x87 FPU", "Emulation of the FPU/SIMD Instructions"; SDM 2A, "Exceptions Type" tables.
 */
int native_allowed(struct cpu *cpu, enum native_class class)
{
    const struct cpu_state *s = &cpu->s;
    const bool ts = s->cr0 & CR0_TS, em = s->cr0 & CR0_EM;
    const uint64_t need = class == NC_EVEX ? XFEATURE_SSE | XFEATURE_AVX | XFEATURE_512 : XFEATURE_SSE | XFEATURE_AVX;

    switch (class) {
    case NC_NONE:
        return CPU_OK;
    case NC_X87:
        return ts || em ? cpu_raise(cpu, VEC_NM) : CPU_OK;
    case NC_WAIT:
        return ts && s->cr0 & CR0_MP ? cpu_raise(cpu, VEC_NM) : CPU_OK;
    case NC_SSE:
        if (!(s->cr4 & CR4_OSFXSR))
            return cpu_raise(cpu, VEC_UD);
        /* fall through */
    case NC_MMX:
        if (em)
            return cpu_raise(cpu, VEC_UD);
        break;
    default:
        if (!(s->cr4 & CR4_OSXSAVE) || (s->xcr0 & need) != need)
            return cpu_raise(cpu, VEC_UD);
    }
    return ts ? cpu_raise(cpu, VEC_NM) : CPU_OK;
}

int native_check_aligned(struct cpu *cpu, enum seg_reg seg, gva_t ea, unsigned mask, unsigned size, unsigned acc)
{
    gva_t gva;
    int st = seg_linear_slow(cpu, seg, ea, size, acc, &gva);

    return st || !(gva & mask) ? st : cpu_raise_err(cpu, VEC_GP, 0);
}

int native_raise(struct cpu *cpu, int result)
{
    switch (result) {
    case NR_OK:
        return CPU_OK;
    case NR_MF:
        return cpu_raise(cpu, VEC_MF);
    case NR_XM: /* SDM 3A, "Interrupt 19" */
        return cpu_raise(cpu, cpu->s.cr4 & CR4_OSXMMEXCPT ? VEC_XM : VEC_UD);
    case NR_GP:
        return cpu_raise_err(cpu, VEC_GP, 0);
    default:
        return cpu_raise(cpu, VEC_UD);
    }
}

/* Called in the signal handler, which has a fresh FPU: the guest's state lies in the signal frame and comes back with
 * it. Nothing of the instruction was committed, and a copy has nothing on its stack at that point. */
int native_fault(struct cpu *cpu, int sig, void *siginfo, void *ucontext)
{
    enum { REG_RIP_HOST = 16 /* insn.h has a REG_RIP of its own */ };
    enum { TRAP_GP = 13, TRAP_MF = 16, TRAP_XM = 19 };
    ucontext_t *uc = ucontext;
    greg_t *regs = uc->uc_mcontext.gregs;
    const long trap = regs[REG_TRAPNO];
    enum native_result r;

    if (!native_owns(regs[REG_RIP_HOST]))
        return 0;
    switch (sig) {
    case SIGFPE:
        r = trap == TRAP_MF ? NR_MF : NR_XM;
        break;
    case SIGSEGV:
        r = trap == TRAP_GP ? NR_GP : NR_HOST;
        break;
    case SIGBUS:
        r = NR_HOST;
        break;
    case SIGILL:
        r = NR_UD;
        break;
    default:
        return 0;
    }
    regs[REG_RAX] = r;
    regs[REG_RIP_HOST] = *(uint64_t *)regs[REG_RSP]; /* return from the copy */
    regs[REG_RSP] += 8;
    return 1;
}

/* x87 last-instruction pointers (SDM 1, "x87 FPU Instruction and Data (Operand) Pointers"). */
static void x87_pointers(struct cpu *cpu, const struct native *n, const struct insn *in)
{
    struct fpu_unit *f = cpu->fpu;

    if (n->x87 & NX_INIT) {
        f->fip = f->fdp = f->fop = f->fcs = f->fds = 0; /* what the area shows already */
        return;
    }
    f->fip = cpu->s.rip;
    f->fcs = cpu->s.seg[SEG_CS].sel;
    f->fop = x87_opcode(in);
    if (n->x87 & NX_MEM) {
        f->fdp = insn_ea(cpu, in);
        f->fds = cpu->s.seg[in->seg < SEG_NONE ? in->seg : SEG_DS].sel;
    }
    if (!cpu->fpu_live) /* eager builds */
        fpu_show_pointers(f);
}

static inline int run(struct cpu *cpu, const struct native *n, void *mem)
{
    int r;

    host_fpu_load(cpu);
    r = n->run(&cpu->s, mem);
    fpu_done(cpu);
    return r;
}

static inline int finish(struct cpu *cpu, const struct native *n, const struct insn *in)
{
    cpu->counters[CC_native]++;
    if (n->x87)
        x87_pointers(cpu, n, in);
    return CPU_OK;
}

/* The active part of a masked operand: bytes [*first, *end) of it; nothing active: both 0. */
static int active_bytes(struct cpu *cpu, const struct native *n, uint64_t *live, unsigned *first, unsigned *end)
{
    uint64_t mask = 0, folded = 0;
    int r;

    host_fpu_load(cpu);
    r = n->get_mask(&cpu->s, &mask);
    fpu_done(cpu);
    if (unlikely(r))
        return native_raise(cpu, r);
    if (n->mask_elems < 64)
        mask &= (1ull << n->mask_elems) - 1;
    if (n->mask == NM_COMPRESS) {
        const unsigned count = __builtin_popcountll(mask);

        folded = count >= 64 ? ~0ull : (1ull << count) - 1;
    } else if (n->elems >= 64) {
        folded = mask;
    } else {
        for (; mask; mask >>= n->elems)
            folded |= mask & ((1ull << n->elems) - 1);
    }
    *live = folded;
    *first = folded ? __builtin_ctzll(folded) * n->elem_size : 0;
    *end = folded ? (64 - __builtin_clzll(folded)) * n->elem_size : 0;
    return CPU_OK;
}

static int write_active(struct cpu *cpu, const struct native *n, struct rmw *m, const uint8_t *data, gva_t ea,
                        uint64_t live)
{
    for (unsigned i = 0; i < n->elems; i++) {
        const unsigned off = i * n->elem_size;
        int st = live >> i & 1 ? mem_write(cpu, m->seg, ea + off, data + off, n->elem_size, ACC_WRITE) : CPU_OK;

        if (st)
            return st;
    }
    return CPU_OK;
}

/* The host has no page under the operand (the client took it away): the copy works on a buffer, and the accessors,
 * which recover from host faults, say what becomes of the access. */
static int without_host_page(struct cpu *cpu, const struct native *n, const struct insn *in, gva_t ea, uint64_t live,
                             unsigned first, unsigned end)
{
    struct rmw m = {.seg = in->seg};
    uint8_t *data = m.buf + (ea + (in->seg < SEG_NONE ? cpu->s.seg[in->seg].base : 0)) % 64;
    int st = n->acc & ACC_READ ? mem_read(cpu, in->seg, ea + first, data + first, end - first, n->acc) : CPU_OK, r;

    if (st)
        return st;
    r = run(cpu, n, data);
    if (r)
        return native_raise(cpu, r);
    if (n->acc & ACC_WRITE)
        st = n->mask ? write_active(cpu, n, &m, data, ea, live) : mem_write(cpu, in->seg, ea, data, end, ACC_WRITE);
    return st ? st : finish(cpu, n, in);
}

/* AMD's MXCSR.MM switches the alignment check of legacy SSE operands off. */
static bool misaligned_allowed(struct cpu *cpu, const struct native *n)
{
    uint32_t mxcsr;

    host_fpu_load(cpu);
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    fpu_done(cpu);
    return n->class == NC_SSE && mxcsr & MXCSR_MM;
}

static int misaligned(struct cpu *cpu, const struct native *n, const struct insn *in, gva_t ea)
{
    const gva_t gva =
        cpu->s.mode != MODE_64 || in->seg == SEG_FS || in->seg == SEG_GS ? ea + cpu->s.seg[in->seg].base : ea;

    if (likely(!(gva & n->align)) || misaligned_allowed(cpu, n))
        return CPU_OK;
    return cpu_raise_err(cpu, VEC_GP, 0); /* before the segment's checks, on the host */
}

/* Active elements on two pages: a fault on the second one names the first active element there. */
static int probe_second_page(struct cpu *cpu, const struct native *n, const struct insn *in, gva_t ea, uint64_t live,
                             unsigned first, unsigned end)
{
    gva_t gva;
    int st = seg_linear_slow(cpu, in->seg, ea + first, end - first, n->acc, &gva);
    const unsigned room = PAGE_SIZE - ((gva - first) & ~PAGE_MASK); /* of the operand on its first page */

    if (st || first >= room || end <= room)
        return st;
    st = mem_probe(cpu, in->seg, ea + first, room - first, n->acc);
    for (unsigned i = room / n->elem_size; i < n->elems && !st; i++)
        if (live >> i & 1) {
            const unsigned off = i * n->elem_size < room ? room : i * n->elem_size;

            return mem_probe(cpu, in->seg, ea + off, 1, n->acc);
        }
    return st;
}

/* Masked-off elements do not fault and are not written (SDM 1, "Memory Fault Suppression"): only [first, end) is
 * resolved, which reaches a page if and only if an active element does. */
static int native_masked(struct cpu *cpu, const struct native *n, const struct insn *in, gva_t ea)
{
    struct rmw m;
    uint64_t live = 0;
    unsigned first = 0, end = 0;
    int st = active_bytes(cpu, n, &live, &first, &end), r;

    if (!st && n->mask_whole)
        st = mem_probe(cpu, in->seg, ea, n->mem_size, n->acc);
    if (st)
        return st;
    if (!live) {
        _Alignas(64) uint8_t nothing[64] = {0};

        r = run(cpu, n, nothing);
        return r ? native_raise(cpu, r) : finish(cpu, n, in);
    }
    st = misaligned(cpu, n, in, ea);
    if (!st)
        st = probe_second_page(cpu, n, in, ea, live, first, end);
    if (!st)
        st = mem_rmw_begin(cpu, in->seg, ea + first, end - first, n->acc, &m);
    if (st)
        return st;
    r = run(cpu, n, (uint8_t *)m.ptr - first);
    if (r)
        return r == NR_HOST ? without_host_page(cpu, n, in, ea, live, first, end) : native_raise(cpu, r);
    if (m.bounce && n->acc & ACC_WRITE)
        st = write_active(cpu, n, &m, (uint8_t *)m.ptr - first, ea, live);
    else
        st = mem_rmw_end(cpu, &m);
    return st ? st : finish(cpu, n, in);
}

static bool x87_pending(struct cpu *cpu)
{
    uint16_t fsw;

    host_fpu_load(cpu);
    __asm__ volatile("fnstsw %0" : "=m"(fsw));
    fpu_done(cpu);
    return fsw & FSW_ES;
}

static int native_slow(struct cpu *cpu, const struct native *n, const struct insn *in, gva_t ea)
{
    struct rmw m;
    int st, r;

    if (n->waits && x87_pending(cpu))
        return cpu_raise(cpu, VEC_MF);
    if (n->mask)
        return native_masked(cpu, n, in, ea);
    st = misaligned(cpu, n, in, ea);
    if (!st)
        st = mem_rmw_begin(cpu, in->seg, ea, n->mem_size, n->acc, &m);
    if (st)
        return st;
    r = run(cpu, n, m.ptr);
    if (r)
        return r == NR_HOST ? without_host_page(cpu, n, in, ea, 0, 0, n->mem_size) : native_raise(cpu, r);
    st = mem_rmw_end(cpu, &m); /* data breakpoints want reads as well */
    return st ? st : finish(cpu, n, in);
}

int in_native(struct cpu *cpu, const struct insn *in)
{
    const struct native *n = in->native;
    gva_t ea, gva;
    void *p;
    int r;

    if (unlikely((cpu->s.insn_key & n->key_mask) != n->key_want)) {
        r = native_allowed(cpu, n->class);
        if (r)
            return r;
    }
    if (!n->acc) {
        r = run(cpu, n, NULL);
        return unlikely(r) ? native_raise(cpu, r) : finish(cpu, n, in);
    }
    ea = insn_ea(cpu, in);
    if (likely(!n->mask && seg_linear_fast(cpu, in->seg, ea, &gva) && !(gva & n->align))) {
        p = tlb_lookup(cpu, gva, n->mem_size, n->acc & ACC_WRITE ? TLB_WRITE : TLB_READ);
        if (likely(p)) {
            r = run(cpu, n, p);
            if (likely(!r))
                return finish(cpu, n, in);
            if (r != NR_HOST)
                return native_raise(cpu, r);
        }
    }
    return native_slow(cpu, n, in, ea);
}

int in_native_unshared(struct cpu *cpu, const struct insn *in)
{
    struct insn copy = *in;

    host_fpu_save(cpu);
    copy.native = (void *)native_in_slot(cpu, in);
    return copy.native ? op_rows[in->op].interp(cpu, &copy) : cpu_raise(cpu, VEC_UD);
}
