/* SPDX-License-Identifier: MIT
 * cpu_sys.h: shared by the system files (exception.c, seg.c, far.c, cr.c, in_sys*.c): descriptors, TSS, helpers. */
#ifndef CPU_SYS_H
#define CPU_SYS_H

#include "insn/insn.h"

void cpuid_cpu_init(struct cpu *);
void cpu_io_access(struct cpu *, uint16_t port, unsigned size);

/* ---- descriptors (SDM 3A, "Segment Descriptors", "System Descriptor Types") ---- */
enum {
    SYS_TSS16 = 1,
    SYS_LDT = 2,
    SYS_TSS16_BUSY = 3,
    SYS_CALL16 = 4,
    SYS_TASK = 5,
    SYS_INT16 = 6,
    SYS_TRAP16 = 7,
    SYS_TSS32 = 9,
    SYS_TSS32_BUSY = 11,
    SYS_CALL32 = 12,
    SYS_INT32 = 14,
    SYS_TRAP32 = 15
};
static inline unsigned desc_type(uint64_t d)
{
    return d >> 40 & 15;
}
static inline bool desc_s(uint64_t d)
{
    return d >> 44 & 1;
}
static inline unsigned desc_dpl(uint64_t d)
{
    return d >> 45 & 3;
}
static inline bool desc_p(uint64_t d)
{
    return d >> 47 & 1;
}
static inline bool desc_l(uint64_t d)
{
    return d >> 53 & 1;
}
static inline bool desc_db(uint64_t d)
{
    return d >> 54 & 1;
}
static inline bool desc_code(uint64_t d)
{
    return desc_s(d) && (desc_type(d) & 8);
}
static inline bool desc_conforming(uint64_t d) /* code */
{
    return desc_type(d) & 4;
}
static inline bool desc_data(uint64_t d)
{
    return desc_s(d) && !(desc_type(d) & 8);
}
static inline bool desc_writable_data(uint64_t d)
{
    return desc_data(d) && (desc_type(d) & 2);
}
uint64_t desc_base(uint64_t);
uint32_t desc_limit(uint64_t);

static inline bool sel_null(uint16_t sel)
{
    return (sel & ~3) == 0;
}
static inline unsigned sel_rpl(uint16_t sel)
{
    return sel & 3;
}
static inline bool long_mode(const struct cpu *cpu)
{
    return cpu->s.efer & EFER_LMA;
}

/* ---- seg.c ---- */
bool seg_in_table(const struct cpu *, uint16_t sel, unsigned size); /* the descriptor lies within its table's limit */
/* 8 bytes of the descriptor table; CPU_FAULT with vector and the selector as error code where it is beyond the limit.
 */
int seg_read_desc8(struct cpu *, uint16_t sel, uint64_t *desc, unsigned vector);
int seg_set_accessed(struct cpu *, uint16_t sel, uint64_t desc);
int seg_set_type(struct cpu *, uint16_t sel, unsigned clear, unsigned set); /* TSS busy bit */
void seg_make_null(struct segment *, uint16_t sel);
void seg_load_real(struct cpu *, enum seg_reg, uint16_t sel);
int seg_error(struct cpu *, unsigned vector, uint16_t sel); /* sel's error code; returns CPU_FAULT */
/* A new stack for privilege level dpl: ss from the TSS, checked (#TS, #SS); in long mode a null selector. */
int seg_check_stack(struct cpu *, uint16_t sel, unsigned dpl, unsigned vector, struct segment *);
/* The inner stack's SS:rSP of the TSS for level dpl; not in long mode. */
int tss_read_stack(struct cpu *, unsigned dpl, uint16_t *ss, uint32_t *esp);
/* Long mode: RSPn (n 0-2) or ISTn (n 1-7, ist). */
int tss_read_rsp(struct cpu *, unsigned n, bool ist, uint64_t *rsp);

/* ---- pushes to a stack that may not be loaded yet (far.c) ---- */
struct stack {
    struct segment ss;
    uint64_t sp;         /* moves with each push or pop; committed by the caller */
    uint64_t mask;       /* 0xffff, 0xffffffff, ~0 */
    unsigned acc;        /* ACCF_*: whose access it is */
    unsigned vector_sel; /* error code of #SS: the selector for a stack of an inner level, else 0 */
    bool is64;
};
void stack_current(struct cpu *, struct stack *);
void stack_new(struct cpu *, struct stack *, const struct segment *ss, uint64_t sp, bool is64, bool user);
int stack_push(struct cpu *, struct stack *, unsigned size, uint64_t v);
int stack_pop(struct cpu *, struct stack *, unsigned size, uint64_t *v);
#define STACK_BLOCK 8u /* values of one access */
int stack_push_many(struct cpu *, struct stack *, unsigned size, const uint64_t *v, unsigned n);
int stack_pop_many(struct cpu *, struct stack *, unsigned size, uint64_t *v, unsigned n);
/* Put sp into rSP as wide as the stack is. */
void stack_commit_sp(struct cpu *, const struct stack *);

#endif
