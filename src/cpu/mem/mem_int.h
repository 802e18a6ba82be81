/* SPDX-License-Identifier: MIT
 * mem_int.h: the inside of the memory unit, shared by mem.c, paging.c, ept.c, tlb.c, epoch.c and emulate.c only.
 *
 * Per cpu: the tagged TLB (an array for each access mode), address-space records that own tags, an EPT cache
 * (guest-physical page -> host page), a paging-structure cache (2 MB of linear space -> its page table), requests from
 * other threads, the emulation record. All of it belongs to the cpu's thread but for the requests. */
#ifndef CPU_MEM_INT_H
#define CPU_MEM_INT_H

#include "mem/mem.h"

#define PHYS_MASK 0x000ffffffffff000ull

/* Which writes may be cached where: a domain-wide filter. Bit index % 64 of slot hash(page) says that a cpu may hold
 * write entries of pages that hash there; set before the code bit is looked at, cleared by that cpu alone. */
#define WFILTER_SLOTS 16384u

struct mem_shared {
    _Atomic uint64_t wfilter[WFILTER_SLOTS];
    pthread_mutex_t lock;                     /* the list's writers */
    _Atomic(struct mem_unit *) unit[CPU_MAX]; /* read without a lock; a unit is freed after an epoch wait */
    _Atomic unsigned nunits;                  /* high-water mark of unit[] */
    uint64_t since[CPU_MAX];                  /* under the lock: the epochs that a wait began at */
    _Atomic(struct cpu *) exclusive;          /* the only cpu that may run guest code, or NULL */
};

/* An address space: what makes two cached translations comparable. ctl: the control bits that a walk depends on, so a
 * change of one selects another record instead of trusting a flush. */
struct space_key {
    uint64_t eptp, eptp12, ctl; /* eptp12: of level 1, whose guest's space it is */
    uint32_t vpid;              /* with TLB_TAG_NESTED for such a guest's */
    uint32_t pcid;              /* as wide: one comparison reads both as they were stored */
};
struct space {
    struct space_key key;
    uint32_t generation; /* 1-1023, in bits 11:2 of a tag; 0: the record holds nothing */
    uint64_t psc_id;     /* tag of its entries in the paging-structure cache; never used again after a flush */
    uint64_t last_used;
};
#define SPACES         32u
#define GENERATION_MAX 1023u

struct ept_cached {
    uint64_t gpa; /* page, or ~0 */
    hva_t hva;    /* page */
    uint64_t generation;
    uint32_t perms;
    gpa_t level0; /* in nested[]: the page's physical address at level 1 */
};
#define EPT_CACHE 1024u

struct psc_entry {
    uint64_t id, prefix; /* space's psc_id, gva >> 21 */
    hva_t table;
    gpa_t table_gpa;
    uint32_t perms; /* WPERM_*: of the levels above, combined */
    bool writable;  /* A/D bits may be set through table */
};
#define PSC_ENTRIES 128u

#define REQUESTS 16u
struct mem_requests { /* from other threads, under its spin lock */
    _Atomic uint32_t lock;
    unsigned npages;
    _Atomic bool all;     /* every translation; looked at without the lock too */
    bool writes;          /* every write entry: more pages than fit */
    hva_t page[REQUESTS]; /* write entries of these host pages */
};

/* A translation that ended at a guest-physical page that the EPT does not map: a device's, or RAM that KVM has not
 * mapped yet. Cached as far as there, and flushed as any other; the EPT is looked at each time, and so is the last
 * entry of the guest's tables, for an EPT violation ends what is cached of its address (SDM 3C, "Operations that
 * Invalidate Cached Mappings"). */
struct io_page {
    uint64_t tag; /* as in the TLB; 0: none */
    gpa_t gpa;
    hva_t pte; /* 0: no paging */
    uint64_t val;
    uint8_t pte_size;
    unsigned perms;
};
#define IO_PAGES 4u

/* The move that an EPT violation stopped, without its decoding: what KVM needs to do it (emulate.c). */
struct emul_move {
    uint64_t exit; /* the counter of exits after it; 0: none. Any other exit since then makes it old */
    gva_t rip, next_rip;
    gpa_t gpa;
    uint64_t data;               /* to be written */
    uint8_t size, reg, reg_size; /* of the access; where a read goes */
    bool write, sign_extend;
    bool waiting; /* for user space */
};

struct mem_unit {
    struct cpu *cpu;
    unsigned index;           /* in mem_shared.unit[] */
    struct tlb_entry *arrays; /* [AM_COUNT][TLB_ARRAY] */
    struct space *space;      /* the current one */
    struct space spaces[SPACES];
    uint32_t generations; /* handed out since the arrays were wiped */
    uint64_t clock;       /* psc ids and least use */
    /* taken from the VMCS and control registers by tlb_select() */
    uint64_t eptp; /* 0: no EPT, physical addresses are host addresses */
    bool ept_ad;
    uint64_t eptp12; /* of level 1, whose guest runs; 0: none: its physical addresses are level 1's */
    bool slow;       /* breakpoints or alignment checks: cpu->tlb_tag matches nothing */
    uint64_t rsvd;   /* reserved in every 64-bit paging-structure entry */
    unsigned maxphyaddr;
    uint64_t ept_generation;
    struct ept_cached ept[EPT_CACHE];
    uint64_t nested_generation, nested_eptp; /* nested: physical addresses of level 1's guest under this EPTP */
    struct ept_cached nested[EPT_CACHE];
    struct psc_entry psc[PSC_ENTRIES];
    /* linear 2 MB regions with entries from large pages: INVLPG has to look for them */
    uint64_t large[64];
    uint64_t huge; /* the same for 1 GB pages */
    struct io_page io[IO_PAGES];
    struct mem_requests req;
    _Atomic uint32_t core;   /* of the host: where the cpu's thread was when it last entered guest mode, or polled */
    _Atomic uint32_t waited; /* futex word: 1: somebody sleeps until this cpu passes a safepoint */
    _Atomic bool waiting;    /* at an instruction boundary, waiting for others in mem_protect_host_page() */
    struct emul_ctx *emul;   /* allocated at the first cpu_emulate() */
    struct emul_move move;
};

#define TLB_ARRAY (TLB_ENTRIES + ITLB_ENTRIES)

static inline unsigned wfilter_slot(hva_t page)
{
    return (uint32_t)(((page >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull) >> 50) & (WFILTER_SLOTS - 1);
}

/* ---- ept.c ---- */
struct ept_fault {
    uint32_t reason; /* EXIT_REASON_EPT_VIOLATION or _MISCONFIG */
    uint32_t ent;    /* EPTQ_ENT_*: what the entries allow */
    unsigned level;  /* of the hypervisor whose EPT it is */
    bool table;      /* level 0's: met while an EPT entry of level 1 was read or marked */
    unsigned acc;
    gpa_t gpa; /* that EPT's input */
};
/* Host page of a guest-physical page for all of acc; *perms what else may be cached. 0, or -1 with *fault. While the
 * guest of level 1 runs, through both EPTs. */
int ept_translate(struct mem_unit *, gpa_t, unsigned acc, hva_t *page, unsigned *perms, struct ept_fault *);
int ept_translate_level0(struct mem_unit *, gpa_t, unsigned acc, hva_t *page, unsigned *perms, struct ept_fault *);
/* The address by which level 0 knows what was just translated. */
gpa_t ept_level0_gpa(const struct mem_unit *, gpa_t);
static inline void ept_forget(struct mem_unit *m)
{
    m->ept_generation++;
    m->nested_generation++;
}

/* ---- paging.c ---- */
#define WALK_NO_AD 1u /* no accessed or dirty bits (KVM_TRANSLATE) */
#define WALK_QUIET 2u /* record no exit, raise no exception: *error tells */
#define WPERM_U    1u
#define WPERM_W    2u
#define WPERM_NX   4u
/* am: the mode whose rights count. CPU_OK: x->hva may be 0 only under emulation (nothing there: x->gpa goes to KVM).
 * With WALK_QUIET: CPU_FAULT, *error is the #PF error code; CPU_VMEXIT: the EPT lacks the paging structure at x->gpa.
 */
int mem_walk(struct cpu *, gva_t, unsigned acc, enum acc_mode am, unsigned flags, struct xlat *, uint32_t *error);
/* CPU_VMEXIT: that access to a page in mem_unit.io[] made its EPT violation; CPU_OK: walk. */
int mem_io_page(struct cpu *, gva_t, unsigned acc, enum acc_mode am);
/* Host memory behind a mapped guest page is gone: an exit that makes KVM look, or a #PF exit without EPT. */
int mem_host_gone(struct cpu *, gva_t, gpa_t, unsigned acc, bool translated);

/* ---- tlb.c ---- */
struct tlb_entry *tlb_slot(struct mem_unit *, gva_t, enum acc_mode, enum tlb_kind);
/* Cache a translation for what acc asked; returns the host page. *code: a write to a page with decoded code. */
hva_t tlb_fill(struct cpu *, gva_t, enum acc_mode, const struct xlat *, unsigned acc, bool *code);
bool tlb_fill_global_exec(struct cpu *, gva_t, enum acc_mode, hva_t *page); /* false: not known as global */
void tlb_drop_writes(struct mem_unit *, hva_t page); /* write entries of pages that share its filter slot; 0: all */
void tlb_flush_all(struct mem_unit *);
void tlb_drop_page(struct mem_unit *, gva_t); /* of every space and mode */

static inline uint64_t tlb_real_tag(const struct mem_unit *m, enum acc_mode am)
{
    return (uint64_t)m->space->generation << 2 | am;
}

/* ---- epoch.c ---- */
void mem_registry_add(struct mem_unit *);
void mem_registry_remove(struct mem_unit *);

/* ---- emulate.c ---- */
int emul_mmio_read(struct cpu *, gpa_t, void *, unsigned size); /* any size inside one page */
int emul_mmio_write(struct cpu *, gpa_t, const void *, unsigned size);
int emul_table_read(struct cpu *, gpa_t, void *buf, unsigned size);
int emul_table_write(struct cpu *, gpa_t, const void *buf, unsigned size);
void emul_destroy(struct mem_unit *);

#endif
