/* SPDX-License-Identifier: MIT
 * mem.h: the only code that turns a guest address into a pointer. Fast path: the tagged TLB; slow path: mem.c (segment
 * checks, canonical checks, page walk with A/D bits, EPT walk, page crossing, MMIO under emulation, code pages).
 *
 * Each function returns CPU_OK, CPU_FAULT, CPU_VMEXIT or (under emulation) CPU_USER. seg gives base, limit and the
 * vector of a violation (#SS for SS, else #GP); SEG_NONE takes ea as a linear address. */
#ifndef CPU_MEM_H
#define CPU_MEM_H

#include "cpu_int.h"
#include "host/host.h"

#define PAGE_SIZE    4096ull
#define PAGE_SHIFT   12
#define PAGE_MASK    (~(PAGE_SIZE - 1))
#define TLB_TAG_SLOW 0xfffull /* a tag that no entry has: data breakpoints, alignment checks: everything goes slow */

enum acc_flags {
    ACCF_SUPER =
        8, /* implicit supervisor access (descriptor tables, TSS, IDT): CPL does not count, never SMAP-allowed */
    ACCF_RMW = 16, /* read for a later write: faults as a write */
    ACCF_LOCK = 32,
    ACCF_USER = 64 /* accessed as CPL 3 whatever CPL is (shadow-stack-like uses; pushes to a user stack) */
};

/* Slow paths, any size up to 64 bytes; acc is ACC_READ/ACC_WRITE with ACCF_*. */
int mem_read(struct cpu *, enum seg_reg seg, gva_t ea, void *buf, unsigned size, unsigned acc);
int mem_write(struct cpu *, enum seg_reg seg, gva_t ea, const void *buf, unsigned size, unsigned acc);
/* All checks of an access, with A/D bits set, but nothing moved (ENTER, FXSAVE, probes of both pages of a push). */
int mem_probe(struct cpu *, enum seg_reg seg, gva_t ea, unsigned size, unsigned acc);
/* Segment part alone: ea to linear. */
int seg_linear_slow(struct cpu *, enum seg_reg seg, gva_t ea, unsigned size, unsigned acc, gva_t *gva);

/* Read-modify-write and native vector operands: verified before anything is visible.
 * ptr points at guest memory itself (usable with lock prefixes), or at buf when the access crosses a page or is MMIO;
 * then mem_rmw_end() writes it back. A begin that answered CPU_OK must be followed by the end, with nothing in between
 * that polls: a locked access over two pages (ACCF_LOCK) stops the domain's other cpus from begin to end. */
struct rmw {
    void *ptr;
    bool bounce;
    bool code;      /* lies on a page with decoded code: the end tells code.c */
    bool exclusive; /* locked over two pages: the end lets the others go */
    uint8_t size;
    unsigned acc;
    enum seg_reg seg;
    gva_t ea, gva;
    _Alignas(64) uint8_t buf[128]; /* the data is at buf + (gva & 63): same low address bits as the guest's */
};
/* acc: ACC_READ, ACC_WRITE (contents need not be read) or ACC_READ|ACC_WRITE. size up to 64. */
int mem_rmw_begin(struct cpu *, enum seg_reg seg, gva_t ea, unsigned size, unsigned acc, struct rmw *);
int mem_rmw_end(struct cpu *, struct rmw *); /* cannot fault for the guest; CPU_OK, or CPU_USER/VMEXIT for MMIO */
/* A host pointer valid for *len bytes (to the end of the page) of plain RAM, for rep string chunks; CPU_OK with
 * *ptr = NULL where only mem_read/mem_write will do (MMIO, code page, slow mode). */
int mem_chunk(struct cpu *, enum seg_reg seg, gva_t ea, unsigned acc, void **ptr, size_t *len);

/* Instruction bytes at linear address gva: up to n bytes, fewer where the next page is not executable.
 * *got >= 1 or CPU_FAULT / CPU_VMEXIT. */
int mem_fetch(struct cpu *, gva_t gva, uint8_t *buf, unsigned n, unsigned *got);
/* The executable page at gva: its host address (page aligned). Through the exec entries; a fill calls
 * code_page_filled(). */
int mem_exec_page_slow(struct cpu *, gva_t gva, hva_t *page);

/* level 0: pa is an hva. Through EPT when guest physical. NULL: not mapped (cpu->exit is set when fault is true). */
void *cpu_guest_phys(struct cpu *, gpa_t gpa, size_t size, unsigned acc);

struct xlat { /* result of a walk */
    gpa_t gpa;
    hva_t hva;      /* page; 0 where the EPT maps nothing (MMIO) */
    unsigned perms; /* ACC_* that may be cached: W only with D set */
    uint64_t page_size;
    bool global;
};
/* Walk guest tables and EPT, setting A/D. gva: linear. */
int mem_translate(struct cpu *, gva_t gva, unsigned acc, struct xlat *);

/* ---- flushes: by the cpu's own thread ---- */
enum tlb_scope {
    TLB_ALL,    /* everything of every tag */
    TLB_NESTED, /* all of level 1's guests */
    TLB_VPID,   /* all of a VPID (INVVPID single context; MOV CR0/CR4 changes: with globals) */
    TLB_VPID_NONGLOBAL,
    TLB_PCID, /* non-global entries of one PCID (MOV CR3, INVPCID) */
    TLB_PAGE  /* one linear address in the current PCID, globals too (INVLPG) */
};
void tlb_flush(struct cpu *, enum tlb_scope, uint32_t vpid, uint16_t pcid, gva_t);
/* VPID, EPTP, CR3/PCID or access mode changed: choose cpu->tlb_tag. Cheap. cpu_mode_changed() ends with it. */
void tlb_select(struct cpu *);
void tlb_select_access(struct cpu *); /* the access mode alone changed */
/* ---- by any thread ---- */
/* Take away write entries of a host page on all cpus and wait for their safepoints, except self (in guest mode). */
void mem_protect_host_page(struct cpu_domain *, struct cpu *self, hva_t page);
int mem_cpu_init(struct cpu *);
void mem_cpu_destroy(struct cpu *);
int mem_domain_init(struct cpu_domain *);
void mem_domain_destroy(struct cpu_domain *);
void mem_poll(struct cpu *);        /* cpu_poll's part: ATT_FLUSH, ATT_EPOCH */
void mem_guest_enter(struct cpu *); /* epoch becomes odd; after it flush requests are looked at */
void mem_guest_leave(struct cpu *);
/* Only this cpu runs guest code of the domain until the end call (split locks). Not from inside an epoch wait. */
void cpu_exclusive_begin(struct cpu *);
void cpu_exclusive_end(struct cpu *);

/* ---- code pages (code.c implements, mem.c calls) ---- */
bool code_page_present(struct cpu_domain *, hva_t page); /* has decoded code: gets no write entry */
/* Code was decoded from [hva, +size) and somebody is about to write there through mem.c. Blocks that overlap die. */
void code_written(struct cpu *, hva_t hva, unsigned size);
void code_page_filled(struct cpu *, gva_t gva, hva_t page);    /* an exec entry was filled: verify anew */
void code_drop_host_range(struct cpu_domain *, hva_t, size_t); /* source memory goes away */

/* ---- fast paths ---- */
/* Data entries are the first TLB_ENTRIES of the array that cpu->tlb points at, execution has its own behind them: a
 * data page never pushes out a code page, whose refill means that its bytes are compared. */
#define ITLB_ENTRIES 512u

static inline bool seg_linear_fast(const struct cpu *cpu, enum seg_reg seg, gva_t ea, gva_t *gva)
{
    const struct cpu_state *s = &cpu->s;

    if (likely(s->mode == MODE_64)) {
        *gva = seg == SEG_FS || seg == SEG_GS ? ea + s->seg[seg].base : ea;
        return true;
    }
    if (seg == SEG_NONE) { /* descriptor tables of a 64-bit kernel under compatibility-mode code */
        *gva = s->efer & EFER_LMA ? ea : (uint32_t)ea;
        return true;
    }
    *gva = (uint32_t)ea;
    return s->seg_flat >> seg & 1;
}

static inline void *tlb_lookup(const struct cpu *cpu, gva_t gva, unsigned size, enum tlb_kind kind)
{
    const struct tlb_entry *e = kind == TLB_EXEC ? &cpu->tlb[TLB_ENTRIES + (gva >> PAGE_SHIFT & (ITLB_ENTRIES - 1))]
                                                 : &cpu->tlb[gva >> PAGE_SHIFT & (TLB_ENTRIES - 1)];

    if (likely(e->tag[kind] == ((gva & PAGE_MASK) | cpu->tlb_tag) && (gva & ~PAGE_MASK) <= PAGE_SIZE - size))
        return (void *)(gva + e->delta);
    return NULL;
}

#define MEM_TYPED(bits)                                                                                               \
    static inline int mem_ld##bits(struct cpu *cpu, enum seg_reg seg, gva_t ea, uint##bits##_t *v)                    \
    {                                                                                                                 \
        gva_t gva;                                                                                                    \
        void *p;                                                                                                      \
        if (likely(seg_linear_fast(cpu, seg, ea, &gva)) && likely((p = tlb_lookup(cpu, gva, bits / 8, TLB_READ))) &&  \
            likely(host_ld##bits(p, v) == 0))                                                                         \
            return CPU_OK;                                                                                            \
        return mem_read(cpu, seg, ea, v, bits / 8, ACC_READ);                                                         \
    }                                                                                                                 \
    static inline int mem_st##bits(struct cpu *cpu, enum seg_reg seg, gva_t ea, uint##bits##_t v)                     \
    {                                                                                                                 \
        gva_t gva;                                                                                                    \
        void *p;                                                                                                      \
        if (likely(seg_linear_fast(cpu, seg, ea, &gva)) && likely((p = tlb_lookup(cpu, gva, bits / 8, TLB_WRITE))) && \
            likely(host_st##bits(p, v) == 0))                                                                         \
            return CPU_OK;                                                                                            \
        return mem_write(cpu, seg, ea, &v, bits / 8, ACC_WRITE);                                                      \
    }
MEM_TYPED(8)
MEM_TYPED(16)
MEM_TYPED(32)
MEM_TYPED(64)

static inline int mem_exec_page(struct cpu *cpu, gva_t gva, hva_t *page)
{
    void *p = tlb_lookup(cpu, gva, 1, TLB_EXEC);

    if (likely(p)) {
        *page = (hva_t)p & PAGE_MASK;
        return CPU_OK;
    }
    return mem_exec_page_slow(cpu, gva, page);
}

#endif
