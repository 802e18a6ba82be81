/* SPDX-License-Identifier: MIT
 * fuzz_guest.h: a guest in one of all modes, whose IDT catches every exception and goes on at another place of the code
 * with other registers. */
#ifndef TESTS_FUZZ_GUEST_H
#define TESTS_FUZZ_GUEST_H

#include "fuzz.h"

#define G_RAM     0x200000u
#define G_TABLES  0x1000u /* page tables, 4 pages */
#define G_GDT     0x8000u
#define G_IDT     0x9000u
#define G_TSS     0xa000u
#define G_HANDLER 0xb000u
#define G_POOL    0xc000u  /* 16 sets of 16 registers */
#define G_FRAME   0xd000u  /* what the handler returns to: cs, flags, sp, ss */
#define G_COUNTER 0xd100u  /* exceptions that were caught */
#define G_STACK0  0xec00u  /* the handler's stack */
#define G_CODE    0x10000u /* 64 KiB */
#define G_DATA    0x30000u

struct guest_mode;
struct guest {
    int sys, vm, vcpu;
    struct kvm_run *run;
    size_t run_size;
    uint8_t *ram;
    const struct guest_mode *mode;
};
void guest_create(struct guest *, struct rng *); /* VM, RAM, a vCPU with or without the offered CPUID */
enum { GUEST_LONG_RING0 = 7, GUEST_LONG_RING3 = 8 };
void guest_create_mode(struct guest *, struct rng *, unsigned mode);
void guest_destroy(struct guest *);
void guest_tables(struct guest *, struct rng *);    /* descriptor and page tables, handlers, register pool */
void guest_registers(struct guest *, struct rng *); /* SREGS of a mode, REGS at a place of the code */
void guest_slot(struct guest *, unsigned flags);
void guest_hostile_sregs(struct guest *, struct rng *); /* changes some field; KVM may refuse */
/* Fills memory with random instructions (fuzz_insn.c). */
void fuzz_fill_code(struct rng *, uint8_t *code, size_t size);

#endif
