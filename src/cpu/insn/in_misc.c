/* SPDX-License-Identifier: MIT
 * in_misc.c: flag instructions, SALC, CMPXCHG8B and 16B, RDRAND and RDSEED. */
#include "insn/in_int.h"

int in_clc(struct cpu *cpu, const struct insn *in)
{
    cpu->s.flags &= ~F_CF;
    return CPU_OK;
}

int in_stc(struct cpu *cpu, const struct insn *in)
{
    cpu->s.flags |= F_CF;
    return CPU_OK;
}

int in_cmc(struct cpu *cpu, const struct insn *in)
{
    cpu->s.flags ^= F_CF;
    return CPU_OK;
}

int in_cld(struct cpu *cpu, const struct insn *in)
{
    cpu->s.rflags_sys &= ~F_DF;
    return CPU_OK;
}

int in_std(struct cpu *cpu, const struct insn *in)
{
    cpu->s.rflags_sys |= F_DF;
    return CPU_OK;
}

int in_salc(struct cpu *cpu, const struct insn *in)
{
    reg_write(cpu, R_RAX, 1, cpu->s.flags & F_CF ? 0xff : 0);
    return CPU_OK;
}

/* a = memory, b = rDX:rAX, c = rCX:rBX; ZF alone changes. */
static uint64_t g_cmpxchg8b(uint64_t a, uint64_t b, uint64_t c, uint64_t *flags)
{
    *flags = (*flags & ~F_ZF) | (a == b ? F_ZF : 0);
    return a == b ? c : a;
}

int in_cmpxchg8b(struct cpu *cpu, const struct insn *in)
{
    const uint64_t *r = cpu->s.gpr;
    struct rmw_op op = {
        .fn = g_cmpxchg8b, .b = r[R_RDX] << 32 | (uint32_t)r[R_RAX], .c = r[R_RCX] << 32 | (uint32_t)r[R_RBX]};
    uint64_t flags;
    const int st = in_rmw_mem(cpu, in, insn_ea(cpu, in), 8, in->pfx & PFX_LOCK, &op, &flags);

    if (st != CPU_OK)
        return st;
    if (!(flags & F_ZF)) {
        reg_write(cpu, R_RAX, 4, op.old);
        reg_write(cpu, R_RDX, 4, op.old >> 32);
    }
    cpu->s.flags = flags;
    return CPU_OK;
}

struct wide_exchange {
    uint64_t lo, hi; /* expected; then what was there */
    uint64_t new_lo, new_hi;
    bool equal;
};

/* On host memory, atomic whether locked or not. -1: it is gone. */
static int host_cmpxchg16(void *p, struct wide_exchange *x)
{
    uint64_t lo = x->lo, hi = x->hi;
    uint8_t equal;

    __asm__ goto("1: lock cmpxchg16b %3\n\tsetz %2\n" HOST_EXTABLE("1b", "%l[fault]")
                 : "+a"(lo), "+d"(hi), "=&q"(equal), "+m"(*(unsigned __int128 *)p)
                 : "b"(x->new_lo), "c"(x->new_hi)
                 : "memory", "cc"
                 : fault);
    x->lo = lo;
    x->hi = hi;
    x->equal = equal;
    return 0;
fault:
    return -1;
}

/* #GP where it is not aligned to 16 bytes, so it never crosses a page. */
int in_cmpxchg16b(struct cpu *cpu, const struct insn *in)
{
    uint64_t *r = cpu->s.gpr;
    struct wide_exchange x = {.lo = r[R_RAX], .hi = r[R_RDX], .new_lo = r[R_RBX], .new_hi = r[R_RCX]};
    const gva_t ea = insn_ea(cpu, in), base = in->seg >= SEG_FS && in->seg <= SEG_GS ? cpu->s.seg[in->seg].base : 0;
    struct rmw m;
    int st;

    if ((ea + base) & 15)
        return cpu_raise_err(cpu, VEC_GP, 0);
    st = mem_rmw_begin(cpu, in->seg, ea, 16, ACC_READ | ACC_WRITE | (in->pfx & PFX_LOCK ? ACCF_LOCK : 0), &m);
    if (st == CPU_OK)
        st = host_cmpxchg16(m.ptr, &x) ? mem_read(cpu, in->seg, ea, m.buf, 16, ACC_READ | ACCF_RMW)
                                       : mem_rmw_end(cpu, &m);
    if (st != CPU_OK)
        return st;
    if (!x.equal) {
        r[R_RAX] = x.lo;
        r[R_RDX] = x.hi;
    }
    cpu->s.flags = (cpu->s.flags & ~F_ZF) | (x.equal ? F_ZF : 0);
    return CPU_OK;
}

/* CF tells success; the other flags are cleared (SDM 2, "RDRAND"). */
static int random(struct cpu *cpu, const struct insn *in, uint64_t v, bool ok)
{
    reg_write(cpu, in->o[0].reg, in->o[0].size, ok ? v : 0);
    cpu->s.flags = ok ? F_CF : 0;
    return CPU_OK;
}

int in_rdrand(struct cpu *cpu, const struct insn *in)
{
    const int st = vmx_intercept(cpu, in, EXIT_REASON_RDRAND, 0);
    uint64_t v;
    uint8_t ok;

    if (st != CPU_OK)
        return st;
    __asm__ volatile("rdrand %0\n\tsetc %1" : "=&r"(v), "=q"(ok) : : "cc");
    return random(cpu, in, v, ok);
}

int in_rdseed(struct cpu *cpu, const struct insn *in)
{
    const int st = vmx_intercept(cpu, in, EXIT_REASON_RDSEED, 0);
    uint64_t v;
    uint8_t ok;

    if (st != CPU_OK)
        return st;
    __asm__ volatile("rdseed %0\n\tsetc %1" : "=&r"(v), "=q"(ok) : : "cc");
    return random(cpu, in, v, ok);
}
