/* SPDX-License-Identifier: MIT
 * flat.h: flat tables of translations for translated code: one a vCPU and access mode, two words a linear page: what to
 * add to an address to read there, and to write there, plus 1; 0 = not there. A cache over the tagged TLB: an entry is
 * copied from it, and every drop in tlb.c comes here too. The index is bits 47:12 of the address whatever the rest is,
 * so it never leaves the table. In front of each table struct cpu is mapped once more: one register reaches both, and a
 * change of mode is a change of that register. A non-canonical address gives a non-canonical host address, which
 * faults. */
#ifndef CPU_FLAT_H
#define CPU_FLAT_H

#include "cpu_int.h"

#define FLAT_INDEX_MASK 0x0000fffffffff000ull
#define FLAT_BASE       128   /* cpu->flat = the mapping of struct cpu + this: short displacements */
#define FLAT_ENTRY      16ull /* bytes: read word, write word */
#define FLAT_SIZE       ((1ull << 36) * FLAT_ENTRY) /* bytes of address space a table */

struct xlat;
struct mem_unit;
int flat_init(struct cpu *); /* reserves the tables; -1 where the address space has no room (then there is no jit) */
void flat_destroy(struct cpu *);
/* Copy what the tagged TLB knows of gva's page in the current access mode. */
void flat_fill(struct cpu *, gva_t gva);
/* Translated code looked at the entry of this address, which need not be there: bounds what that costs the host. */
void flat_looked_at(struct cpu *, gva_t gva);

/* The table's word for gva in the current access mode. */
static inline uint64_t flat_word(const struct cpu *cpu, gva_t gva, bool write)
{
    return ((const uint64_t *)(cpu->flat - FLAT_BASE + CPU_SPAN + (gva & FLAT_INDEX_MASK) / 4096 * FLAT_ENTRY))[write];
}

/* What to add to gva, plus 1, for an access in the current mode; 0: the tables do not know. They reach further than the
 * tagged TLB does. */
uint64_t flat_find(struct cpu *, gva_t gva, bool write);
/* The same for any address; 0 too where the tables have no memory yet, and for a mode that is not the current one. */
uint64_t flat_peek(struct cpu *, gva_t gva, enum acc_mode, bool write);

/* The engine keeps a way to gva's page that it guards by exec_gen alone. */
void flat_note_exec(struct cpu *, gva_t gva);
void flat_note_room(struct cpu *); /* before exec_gen is read for such a way: its pages can be noted */
/* Small numbers again: the engine has forgotten all that it guarded by them. */
void flat_restart_generations(struct cpu *);
/* What pages show may have changed without a flush: all such ways end. */
void flat_exec_changed(struct cpu *);

/* ---- tlb.c tells ---- */
void flat_note_global(struct cpu *, gva_t gva, enum acc_mode, bool global); /* the walk behind the TLB entry of gva */
/* world: what entries of global pages depend on too: EPT pointer, control bits, VPID, EPT pointer of level 1. */
void flat_select(struct cpu *, const void *space, uint32_t generation, const uint64_t world[4]);
uint64_t flat_base(const struct cpu *, enum acc_mode, bool slow); /* cpu->flat of a mode of the selected space */
void flat_note_exec_fill(struct cpu *, gva_t gva, bool global);   /* an exec entry was filled */
void flat_forget_spaces(struct cpu *); /* a page went in address spaces that are not selected now */
/* Where the executable global page of gva lies, 0: not known. */
hva_t flat_global_exec(struct cpu *, gva_t gva, unsigned am);
void flat_global_exec_set(struct cpu *, gva_t gva, unsigned am, hva_t page);
void flat_drop_all(struct cpu *);
void flat_world_flushed(struct cpu *); /* ... and no translation of code of the selected world is cached any more */
void flat_drop_page(struct cpu *, gva_t gva);
void flat_drop_writes(struct cpu *, hva_t page); /* of all pages that share its filter slot; 0: all */

#endif
