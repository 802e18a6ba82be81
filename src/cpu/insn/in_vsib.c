/* SPDX-License-Identifier: MIT
 * in_vsib.c: vector accesses whose elements have addresses of their own, or that write what no register operand says:
 * gathers, scatters, MASKMOV, MOVDIR64B, CLZERO. */
#include "insn/fpu.h"
#include "mem/mem.h"

static int check(struct cpu *cpu, const struct native *n)
{
    if (likely((cpu->s.insn_key & n->key_mask) == n->key_want))
        return CPU_OK;
    return native_allowed(cpu, n->class);
}

union vec {
    _Alignas(64) uint8_t b[64];
    uint32_t d[16];
    uint64_t q[8];
};

static int get(struct cpu *cpu, native_fn *fn, union vec *v)
{
    int r;

    host_fpu_load(cpu);
    r = fn(&cpu->s, v);
    fpu_done(cpu);
    return unlikely(r) ? native_raise(cpu, r) : CPU_OK;
}

struct vsib {
    union vec index, data, mask;
    uint64_t live; /* elements still to be moved */
    bool moved;    /* one was */
};

static int begin(struct cpu *cpu, const struct native_vsib *v, struct vsib *x)
{
    int st;

    memset(x, 0, sizeof(*x));
    if ((st = get(cpu, v->get_index, &x->index)) || (st = get(cpu, v->get_data, &x->data)) ||
        (st = get(cpu, v->get_mask, &x->mask)))
        return st;
    if (!v->vector_mask)
        x->live = x->mask.q[0] & ((1ull << v->elems) - 1);
    else
        for (unsigned i = 0; i < v->elems; i++)
            x->live |= (uint64_t)(x->mask.b[(i + 1) * v->elem_size - 1] >> 7) << i;
    return CPU_OK;
}

static gva_t element_ea(struct cpu *cpu, const struct insn *in, const struct native_vsib *v, const struct vsib *x,
                        unsigned i)
{
    const int64_t index = v->index_size == 4 ? (int32_t)x->index.d[i] : (int64_t)x->index.q[i];
    const gva_t ea = insn_ea(cpu, in) + ((uint64_t)index << in->scale);

    return in->asize == 8 ? ea : (uint32_t)ea;
}

static void element_done(const struct native_vsib *v, struct vsib *x, unsigned i)
{
    x->live &= ~(1ull << i);
    if (v->vector_mask)
        memset(x->mask.b, 0, (i + 1) * v->elem_size); /* those that were passed over as well */
    else
        x->mask.q[0] &= ~(1ull << i);
}

/* Partial completion: what was moved before a fault stays, with its mask bits cleared, and the rest of the registers
 * keeps its value, but for what is beyond an EVEX vector length, as on the host (SDM 2C, "VPGATHERDD"). Complete: the
 * mask is 0, and so is what the elements do not fill. */
static int end(struct cpu *cpu, const struct native_vsib *v, struct vsib *x, int st)
{
    if (st == CPU_USER) /* replayed as a whole */
        return st;
    if (st == CPU_OK) {
        memset(&x->mask, 0, sizeof(x->mask));
        cpu->counters[CC_native]++;
    }
    if (st == CPU_OK)
        memset(x->data.b + v->elems * v->elem_size, 0, sizeof(x->data) - v->elems * v->elem_size);
    else if (x->moved && !v->vector_mask)
        memset(x->data.b + v->vl, 0, sizeof(x->data) - v->vl);
    if (v->put_data)
        get(cpu, v->put_data, &x->data);
    get(cpu, v->put_mask, &x->mask);
    return st;
}

int in_gather(struct cpu *cpu, const struct insn *in)
{
    const struct native *n = in->native;
    const struct native_vsib *v = n->vsib;
    struct vsib x;
    int st = check(cpu, n);

    if (st || (st = begin(cpu, v, &x)))
        return st;
    for (unsigned i = 0; i < v->elems && !st; i++) {
        if (!(x.live >> i & 1)) {
            element_done(v, &x, i);
            continue;
        }
        st = mem_read(cpu, in->seg, element_ea(cpu, in, v, &x, i), x.data.b + i * v->elem_size, v->elem_size, ACC_READ);
        if (!st) {
            element_done(v, &x, i);
            x.moved = true;
        }
    }
    return end(cpu, v, &x, st);
}

int in_scatter(struct cpu *cpu, const struct insn *in)
{
    const struct native *n = in->native;
    const struct native_vsib *v = n->vsib;
    struct vsib x;
    int st = check(cpu, n);

    if (st || (st = begin(cpu, v, &x)))
        return st;
    for (unsigned i = 0; i < v->elems && !st; i++) {
        if (!(x.live >> i & 1))
            continue;
        st = mem_write(cpu, in->seg, element_ea(cpu, in, v, &x, i), x.data.b + i * v->elem_size, v->elem_size,
                       ACC_WRITE);
        if (!st) {
            element_done(v, &x, i);
            x.moved = true;
        }
    }
    return end(cpu, v, &x, st);
}

static gva_t by_asize(const struct insn *in, gva_t ea)
{
    return in->asize == 8 ? ea : in->asize == 4 ? (uint32_t)ea : (uint16_t)ea;
}

int in_maskmov(struct cpu *cpu, const struct insn *in)
{
    const struct native *n = in->native;
    const struct native_vsib *v = n->vsib;
    const gva_t ea = by_asize(in, cpu->s.gpr[R_RDI]);
    union vec data, mask;
    int st = check(cpu, n);

    if (st || (st = get(cpu, v->get_data, &data)) || (st = get(cpu, v->get_mask, &mask)))
        return st;
    /* the host checks all of the operand, whatever the mask says (SDM 2B, "MASKMOVDQU": implementation-specific) */
    st = mem_probe(cpu, in->seg, ea, v->elems, ACC_WRITE);
    for (unsigned i = 0, e; i < v->elems && !st; i = e) {
        for (e = i; e < v->elems && mask.b[e] & 0x80; e++)
            ;
        if (e > i)
            st = mem_write(cpu, in->seg, ea + i, data.b + i, e - i, ACC_WRITE);
        else
            e++;
    }
    return st;
}

/* 64 bytes from memory to ES:reg, which must be aligned (SDM 2A, "MOVDIR64B"). */
int in_movdir64b(struct cpu *cpu, const struct insn *in)
{
    const gva_t dst = by_asize(in, cpu->s.gpr[in->o[0].reg]);
    uint8_t buf[64];
    int st;

    st = mem_read(cpu, in->seg, insn_ea(cpu, in), buf, sizeof(buf), ACC_READ);
    if (!st)
        st = native_check_aligned(cpu, SEG_ES, dst, 63, 64, ACC_WRITE);
    return st ? st : mem_write(cpu, SEG_ES, dst, buf, sizeof(buf), ACC_WRITE);
}

/* AMD64 Architecture Programmer's Manual 3, "CLZERO": the cache line that rAX points into. */
int in_clzero(struct cpu *cpu, const struct insn *in)
{
    static const uint8_t zero[64];

    return mem_write(cpu, in->seg, by_asize(in, cpu->s.gpr[R_RAX]) & ~63ull, zero, sizeof(zero), ACC_WRITE);
}
