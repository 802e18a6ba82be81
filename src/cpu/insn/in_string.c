/* SPDX-License-Identifier: MIT
 * in_string.c: MOVS STOS LODS CMPS SCAS with repeat prefixes.
 *
 * Each iteration is a commit point: rCX, rSI and rDI are exact wherever an iteration faults, exits or is interrupted.
 * Forward copies and fills go page-sized chunks at a time by the host's rep movsb and stosb; an overlap closer than a
 * cache line, DF = 1 and everything that is not plain RAM go element by element. Between chunks cpu->attention is
 * polled: CPU_AGAIN leaves rip on the instruction. */
#include "insn/in_int.h"

#define REP_ANY     (PFX_REP | PFX_REPNE)
#define NEAR_BYTES  64 /* overlaps under this distance: element by element */
#define POLL_PERIOD 64 /* elements between two looks at cpu->attention */

struct string {
    uint64_t mask; /* of the address size */
    int64_t step;
    unsigned size, asize;
    bool rep;
};

static struct string string_of(const struct cpu *cpu, const struct insn *in)
{
    const unsigned size = in->opsize;

    return (struct string){.mask = size_mask(in->asize),
                           .step = cpu->s.rflags_sys & F_DF ? -(int64_t)size : (int64_t)size,
                           .size = size,
                           .asize = in->asize,
                           .rep = in->pfx & REP_ANY};
}

static uint64_t pointer(const struct cpu *cpu, const struct string *s, unsigned reg)
{
    return cpu->s.gpr[reg] & s->mask;
}

static void advance(struct cpu *cpu, const struct string *s, unsigned reg, uint64_t elements)
{
    reg_write(cpu, reg, s->asize, cpu->s.gpr[reg] + elements * (uint64_t)s->step);
}

/* Count n iterations; true when none is left. */
static bool count_down(struct cpu *cpu, const struct string *s, uint64_t n)
{
    if (!s->rep)
        return true;
    reg_write(cpu, R_RCX, s->asize, cpu->s.gpr[R_RCX] - n);
    return (cpu->s.gpr[R_RCX] & s->mask) == 0;
}

static bool nothing_to_do(const struct cpu *cpu, const struct string *s)
{
    return s->rep && (cpu->s.gpr[R_RCX] & s->mask) == 0;
}

/* Traps between two iterations and emulation take one at a time. RF alone, which a fault in the middle of a long fill
 * leaves, does not. */
static bool one_at_a_time(struct cpu *cpu)
{
    return cpu->emul ||
           ((atomic_load_explicit(&cpu->attention, memory_order_relaxed) & ATT_STEP) && cpu_steps_iterations(cpu));
}

static bool attention(struct cpu *cpu)
{
    return (atomic_load_explicit(&cpu->attention, memory_order_relaxed) & ~ATT_STEP) != 0;
}

/* One element; CPU_OK: done and committed but for the count. */
typedef int element_fn(struct cpu *, const struct insn *, const struct string *);

/* Iterations one by one: CPU_OK at the end, CPU_AGAIN when somebody wants attention. */
static int by_element(struct cpu *cpu, const struct insn *in, const struct string *s, element_fn *element, unsigned max)
{
    const bool single = one_at_a_time(cpu);

    for (unsigned i = 0; i < max; i++) {
        const int st = element(cpu, in, s);

        if (st != CPU_OK)
            return st;
        if (count_down(cpu, s, 1))
            return CPU_OK;
        if (single || attention(cpu))
            return CPU_AGAIN;
    }
    return CPU_AGAIN;
}

/* How many whole elements fit in len bytes from offset on, before the address wraps and within the count. */
static uint64_t chunk_elements(const struct cpu *cpu, const struct string *s, uint64_t offset, size_t len)
{
    const uint64_t left = s->mask - offset; /* bytes to the wrap, minus 1 */
    const uint64_t count = cpu->s.gpr[R_RCX] & s->mask;
    uint64_t n = len / s->size;

    if (left < len && n > (left + 1) / s->size)
        n = (left + 1) / s->size;
    return n < count ? n : count;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* ---- MOVS ---- */
static int movs_element(struct cpu *cpu, const struct insn *in, const struct string *s)
{
    uint64_t v;
    int st = mem_ld(cpu, in->seg, pointer(cpu, s, R_RSI), s->size, &v);

    if (st == CPU_OK)
        st = mem_st(cpu, SEG_ES, pointer(cpu, s, R_RDI), s->size, v);
    if (st == CPU_OK) {
        advance(cpu, s, R_RSI, 1);
        advance(cpu, s, R_RDI, 1);
    }
    return st;
}

/* *n: elements copied, 0 where only element by element will do. */
static int movs_chunk(struct cpu *cpu, const struct insn *in, const struct string *s, uint64_t *n)
{
    const gva_t from = pointer(cpu, s, R_RSI), to = pointer(cpu, s, R_RDI);
    void *src, *dst;
    size_t src_len, dst_len;
    uint64_t distance;
    int st = mem_chunk(cpu, in->seg, from, ACC_READ, &src, &src_len);

    *n = 0;
    if (st == CPU_OK && src_len < s->size) /* the source goes over a page's end: its fault comes first */
        return CPU_OK;
    if (st == CPU_OK && src)
        st = mem_chunk(cpu, SEG_ES, to, ACC_WRITE, &dst, &dst_len);
    if (st != CPU_OK || !src || !dst)
        return st;
    distance = (uint64_t)((char *)dst - (char *)src);
    if (distance < NEAR_BYTES)
        return CPU_OK;
    *n = min_u64(chunk_elements(cpu, s, from, src_len), chunk_elements(cpu, s, to, dst_len));
    if (*n && host_copy(dst, src, *n * s->size))
        *n = 0;
    return CPU_OK;
}

int in_movs(struct cpu *cpu, const struct insn *in)
{
    const struct string s = string_of(cpu, in);
    uint64_t n;

    if (nothing_to_do(cpu, &s))
        return CPU_OK;
    if (!s.rep || s.step < 0 || one_at_a_time(cpu))
        return by_element(cpu, in, &s, movs_element, POLL_PERIOD);
    for (;;) {
        int st = movs_chunk(cpu, in, &s, &n);

        if (st != CPU_OK)
            return st;
        if (n) {
            advance(cpu, &s, R_RSI, n);
            advance(cpu, &s, R_RDI, n);
            if (count_down(cpu, &s, n))
                return CPU_OK;
        } else {
            st = by_element(cpu, in, &s, movs_element, POLL_PERIOD);
            if (st != CPU_AGAIN)
                return st;
        }
        if (attention(cpu))
            return CPU_AGAIN;
    }
}

/* ---- STOS ---- */
static int stos_element(struct cpu *cpu, const struct insn *in, const struct string *s)
{
    const int st = mem_st(cpu, SEG_ES, pointer(cpu, s, R_RDI), s->size, cpu->s.gpr[R_RAX]);

    if (st == CPU_OK)
        advance(cpu, s, R_RDI, 1);
    return st;
}

/* n elements of the accumulator at host memory; -1: it is gone. */
static int fill(void *dst, uint64_t v, unsigned size, uint64_t n)
{
    const uint64_t mask = size_mask(size);

    if (((v ^ (v & 0xff) * 0x0101010101010101ull) & mask) == 0)
        return host_set(dst, v & 0xff, n * size);
    for (uint64_t i = 0; i < n; i++) {
        char *p = (char *)dst + i * size;

        if (size == 8 ? host_st64(p, v) : size == 4 ? host_st32(p, v) : host_st16(p, v))
            return -1;
    }
    return 0;
}

static int stos_chunk(struct cpu *cpu, const struct string *s, uint64_t *n)
{
    const gva_t to = pointer(cpu, s, R_RDI);
    void *dst;
    size_t len;
    const int st = mem_chunk(cpu, SEG_ES, to, ACC_WRITE, &dst, &len);

    *n = 0;
    if (st != CPU_OK || !dst)
        return st;
    *n = chunk_elements(cpu, s, to, len);
    if (*n && fill(dst, cpu->s.gpr[R_RAX], s->size, *n))
        *n = 0;
    return CPU_OK;
}

int in_stos(struct cpu *cpu, const struct insn *in)
{
    const struct string s = string_of(cpu, in);
    uint64_t n;

    if (nothing_to_do(cpu, &s))
        return CPU_OK;
    if (!s.rep || s.step < 0 || one_at_a_time(cpu))
        return by_element(cpu, in, &s, stos_element, POLL_PERIOD);
    for (;;) {
        int st = stos_chunk(cpu, &s, &n);

        if (st != CPU_OK)
            return st;
        if (n) {
            advance(cpu, &s, R_RDI, n);
            if (count_down(cpu, &s, n))
                return CPU_OK;
        } else {
            st = by_element(cpu, in, &s, stos_element, POLL_PERIOD);
            if (st != CPU_AGAIN)
                return st;
        }
        if (attention(cpu))
            return CPU_AGAIN;
    }
}

/* ---- LODS ---- */
static int lods_element(struct cpu *cpu, const struct insn *in, const struct string *s)
{
    uint64_t v;
    const int st = mem_ld(cpu, in->seg, pointer(cpu, s, R_RSI), s->size, &v);

    if (st == CPU_OK) {
        reg_write(cpu, R_RAX, s->size, v);
        advance(cpu, s, R_RSI, 1);
    }
    return st;
}

int in_lods(struct cpu *cpu, const struct insn *in)
{
    const struct string s = string_of(cpu, in);

    return nothing_to_do(cpu, &s) ? CPU_OK : by_element(cpu, in, &s, lods_element, POLL_PERIOD);
}

/* ---- CMPS and SCAS: flags of the last iteration; with rCX = 0 all flags stay ---- */
#define COMPARE(bits, sfx)                                                               \
    static uint64_t compare##bits(uint64_t a_, uint64_t b_)                              \
    {                                                                                    \
        uint##bits##_t a = a_, b = b_;                                                   \
        uint32_t ax;                                                                     \
        __asm__("cmp" sfx " %2, %1\n\t" FLAGS_SAVE : "=&a"(ax) : "q"(a), "q"(b) : "cc"); \
        return flags_of_ax(ax);                                                          \
    }
COMPARE(8, "b")
COMPARE(16, "w")
COMPARE(32, "l")
COMPARE(64, "q")

static uint64_t compare(uint64_t a, uint64_t b, unsigned size)
{
    return size == 8 ? compare64(a, b) : size == 4 ? compare32(a, b) : size == 2 ? compare16(a, b) : compare8(a, b);
}

static int cmps_element(struct cpu *cpu, const struct insn *in, const struct string *s)
{
    uint64_t a, b;
    int st = mem_ld(cpu, in->seg, pointer(cpu, s, R_RSI), s->size, &a);

    if (st == CPU_OK)
        st = mem_ld(cpu, SEG_ES, pointer(cpu, s, R_RDI), s->size, &b);
    if (st == CPU_OK) {
        cpu->s.flags = compare(a, b, s->size);
        advance(cpu, s, R_RSI, 1);
        advance(cpu, s, R_RDI, 1);
    }
    return st;
}

static int scas_element(struct cpu *cpu, const struct insn *in, const struct string *s)
{
    uint64_t b;
    const int st = mem_ld(cpu, SEG_ES, pointer(cpu, s, R_RDI), s->size, &b);

    if (st == CPU_OK) {
        cpu->s.flags = compare(cpu->s.gpr[R_RAX], b, s->size);
        advance(cpu, s, R_RDI, 1);
    }
    return st;
}

/* REPE goes on while ZF = 1, REPNE while ZF = 0. */
static int compare_string(struct cpu *cpu, const struct insn *in, element_fn *element)
{
    const struct string s = string_of(cpu, in);
    const uint64_t go_on = in->pfx & PFX_REP ? F_ZF : 0;
    const bool single = one_at_a_time(cpu);

    if (nothing_to_do(cpu, &s))
        return CPU_OK;
    for (unsigned i = 0; i < POLL_PERIOD; i++) {
        const int st = element(cpu, in, &s);

        if (st != CPU_OK)
            return st;
        if (count_down(cpu, &s, 1) || (cpu->s.flags & F_ZF) != go_on)
            return CPU_OK;
        if (single)
            break;
    }
    return CPU_AGAIN;
}

int in_cmps(struct cpu *cpu, const struct insn *in)
{
    return compare_string(cpu, in, cmps_element);
}

int in_scas(struct cpu *cpu, const struct insn *in)
{
    return compare_string(cpu, in, scas_element);
}
