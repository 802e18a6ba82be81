/* SPDX-License-Identifier: MIT
 * in_operand.c: explicit operands of integer instructions: reading, writing, read-modify-write with and without LOCK.
 */
#include "insn/in_int.h"

int insn_read(struct cpu *cpu, const struct insn *in, unsigned n, uint64_t *v)
{
    const struct opnd *o = &in->o[n];

    switch (o->kind) {
    case OPK_REG:
        *v = reg_read(cpu, o->reg, o->size);
        return CPU_OK;
    case OPK_REG8H:
        *v = cpu->s.gpr[o->reg] >> 8 & 0xff;
        return CPU_OK;
    case OPK_IMM:
        *v = in->imm;
        return CPU_OK;
    case OPK_MEM:
        return mem_ld(cpu, in->seg, insn_ea(cpu, in), o->size, v);
    default:
        return cpu_raise(cpu, VEC_UD);
    }
}

int insn_write(struct cpu *cpu, const struct insn *in, unsigned n, uint64_t v)
{
    const struct opnd *o = &in->o[n];

    switch (o->kind) {
    case OPK_REG:
        reg_write(cpu, o->reg, o->size, v);
        return CPU_OK;
    case OPK_REG8H:
        cpu->s.gpr[o->reg] = (cpu->s.gpr[o->reg] & ~0xff00ull) | (v & 0xff) << 8;
        return CPU_OK;
    case OPK_MEM:
        return mem_st(cpu, in->seg, insn_ea(cpu, in), o->size, v);
    default:
        return cpu_raise(cpu, VEC_UD);
    }
}

/* lock cmpxchg of the exact width: 1 exchanged, 0 differs (*old = what is there), -1 the host's memory is gone. */
#define CMPXCHG(bits, sfx)                                                                        \
    static int cmpxchg##bits(void *p, uint64_t *old, uint64_t val)                                \
    {                                                                                             \
        uint##bits##_t a = *old;                                                                  \
        uint8_t done;                                                                             \
                                                                                                  \
        __asm__ goto("1: lock cmpxchg" sfx " %3, %2\n\tsetz %1\n" HOST_EXTABLE("1b", "%l[fault]") \
                     : "+a"(a), "=&q"(done), "+m"(*(uint##bits##_t *)p)                           \
                     : "q"((uint##bits##_t)val)                                                   \
                     : "memory", "cc"                                                             \
                     : fault);                                                                    \
        *old = a;                                                                                 \
        return done;                                                                              \
    fault:                                                                                        \
        return -1;                                                                                \
    }
CMPXCHG(8, "b")
CMPXCHG(16, "w")
CMPXCHG(32, "l")
CMPXCHG(64, "q")

static int host_cmpxchg(void *p, unsigned size, uint64_t *old, uint64_t val)
{
    switch (size) {
    case 8:
        return cmpxchg64(p, old, val);
    case 4:
        return cmpxchg32(p, old, val);
    case 2:
        return cmpxchg16(p, old, val);
    default:
        return cmpxchg8(p, old, val);
    }
}

static int host_load(const void *p, unsigned size, uint64_t *v)
{
    uint8_t b = 0;
    uint16_t w = 0;
    uint32_t d = 0;
    int err;

    switch (size) {
    case 8:
        return host_ld64(p, v);
    case 4:
        err = host_ld32(p, &d);
        *v = d;
        return err;
    case 2:
        err = host_ld16(p, &w);
        *v = w;
        return err;
    default:
        err = host_ld8(p, &b);
        *v = b;
        return err;
    }
}

static int host_store(void *p, unsigned size, uint64_t v)
{
    return size == 8 ? host_st64(p, v) : size == 4 ? host_st32(p, v) : size == 2 ? host_st16(p, v) : host_st8(p, v);
}

/* The operation on host memory: 0, or -1 where that is gone. */
static int rmw_at(void *p, unsigned size, bool locked, uint64_t old_flags, struct rmw_op *op, uint64_t *flags)
{
    uint64_t val;
    int done;

    if (host_load(p, size, &op->old))
        return -1;
    do {
        *flags = old_flags;
        val = op->fn(op->old, op->b, op->c, flags);
        if (!locked)
            return host_store(p, size, val);
        done = host_cmpxchg(p, size, &op->old, val);
    } while (!done);
    return done < 0 ? -1 : 0;
}

/* Memory that the client took away meanwhile: let mem.c find it out again and say so. */
static int rmw_gone(struct cpu *cpu, const struct rmw *m)
{
    uint64_t v;
    const int st = mem_read(cpu, m->seg, m->ea, &v, m->size, ACC_READ | ACCF_RMW);

    return st == CPU_OK ? CPU_AGAIN : st;
}

int in_rmw_mem(struct cpu *cpu, const struct insn *in, gva_t ea, unsigned size, bool locked, struct rmw_op *op,
               uint64_t *flags)
{
    const unsigned acc = ACC_READ | ACC_WRITE | (locked ? ACCF_LOCK : 0);
    struct rmw m;
    int st = mem_rmw_begin(cpu, in->seg, ea, size, acc, &m); /* locked and over two pages: the others stand still */

    if (st != CPU_OK)
        return st;
    if (rmw_at(m.ptr, size, locked && !m.bounce, cpu->s.flags, op, flags))
        return rmw_gone(cpu, &m);
    return mem_rmw_end(cpu, &m);
}

int in_rmw(struct cpu *cpu, const struct insn *in, struct rmw_op *op)
{
    uint64_t flags = cpu->s.flags;
    int st;

    if (in->o[0].kind == OPK_MEM) {
        st = in_rmw_mem(cpu, in, insn_ea(cpu, in), in->o[0].size, in->pfx & PFX_LOCK, op, &flags);
        if (st != CPU_OK)
            return st;
    } else {
        insn_read(cpu, in, 0, &op->old);
        insn_write(cpu, in, 0, op->fn(op->old, op->b, op->c, &flags));
    }
    cpu->s.flags = flags;
    return CPU_OK;
}
