/* SPDX-License-Identifier: MIT
 * fuzz_isolation.h: the guest, its memory's neighbours and its layout, for fuzz_isolation.c (64-bit mode) and
 * fuzz_isolation_legacy.c (protected and real mode). */
#ifndef TESTS_FUZZ_ISOLATION_H
#define TESTS_FUZZ_ISOLATION_H

#include "fuzz.h"

#define RAM_SIZE    0x400000u
#define WINDOW_GPA  0x300000u /* a page of data, mapped at: */
#define WINDOW_LOW  0x123456789000ull
#define WINDOW_HIGH 0xffff87654321f000ull
#define EXEC_OFFSET 0x800 /* in the window and in canaries: code that comes back */

/* all below 64 KiB, for real mode */
#define PML4_GPA        0x1000u
#define GDT_GPA         0x8000u
#define IDT_GPA         0x9000u
#define TSS_GPA         0x9800u
#define LOOP_GVA        0xa000
#define SITE_GVA        0xb000
#define STUBS_GVA       0xb800
#define COUNTS          0xc000 /* a 64-bit counter a vector */
#define VAR_TOP         0xc400 /* the next upper part, */
#define VAR_END         0xc408 /* their end */
#define VAR_STRIDE      0xc410
#define VAR_BASE        0xc418 /* the address without it */
#define VAR_HOSTILE     0xc420 /* with it */
#define VAR_LEGIT       0xc428 /* a good one */
#define VAR_HOT         0xc430 /* first the good one, at the same site */
#define VAR_WARM        0xc438
#define VAR_SEGBASE     0xc440
#define VAR_OK          0xc448 /* accesses that succeeded */
#define VAR_RESULT      0xc450
#define VAR_WARM_FAULTS 0xc458
#define VAR_LOAD        0xc460
#define SCRATCH_GVA     0xc800
#define STACK_GVA       0xd800
#define IST_GVA         0xe800u

#define V(name) #name
#define STR(x)  V(x)

#define CANARIES 16
struct canary {
    const char *name;
    uint8_t *page;
};
extern struct canary canaries[CANARIES];
extern unsigned ncanaries;

struct iso {
    int sys, vm, vcpu;
    struct kvm_run *run;
    size_t run_size;
    uint8_t *ram;
    char what[160]; /* is being tried */
};
void iso_must(long result, const char *what);
void iso_create(struct iso *); /* RAM between two canaries, cleared; a vCPU with the offered CPUID */
void iso_destroy(struct iso *);
/* Runs until the guest's OUT to port 0x10. MMIO reads give `answer`; true: the accesses were within [gpa, gpa+size). */
bool iso_run(struct iso *, uint64_t answer, uint64_t gpa, uint64_t size, unsigned *mmio);
void iso_check_canaries(const struct iso *);
static inline uint64_t *iso_var(const struct iso *g, unsigned at)
{
    return (uint64_t *)(g->ram + at);
}
void iso_put_return(uint8_t *at, uint32_t ok); /* code: mov $ok, %eax; jmp *%eax */

void iso_legacy(uint64_t seed, struct rng *); /* one case in protected or real mode */

#endif
