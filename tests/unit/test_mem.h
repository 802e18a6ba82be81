/* SPDX-License-Identifier: MIT
 * test_mem.h: a processor with memory and tables of its own, and no other room behind it: what the memory unit asks of
 * code.c, exceptions and the decoder is answered by the test (linked with --wrap). */
#ifndef TEST_MEM_H
#define TEST_MEM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "mem/mem_int.h"
#include "vmx/vmx_unit.h"

#define RAM_SIZE (8u << 20)
#define EPT_POOL (1u << 20)

struct vm {
    struct cpu_domain domain;
    struct cpu *cpu[2];
    struct vmx_unit vmx[2];
    struct vmcs vmcs;
    uint8_t *ram; /* guest-physical 0 to 8 MB */
    uint8_t *ept; /* tables, the root first */
    size_t ept_used;
    uint64_t table_gpa; /* next page for guest tables */
};

/* answers of the other rooms */
extern hva_t code_page; /* the one page with decoded code, or 0 */
extern unsigned code_writes, code_fills, code_drops;
extern hva_t code_write_hva;

struct vm *vm_new(void);
void vm_free(struct vm *);
void vm_catch_faults(void);
uint64_t *vm_ept_entry(struct vm *, gpa_t, int level); /* makes the tables above */
void vm_ept_map(struct vm *, gpa_t, hva_t, uint64_t flags, int level);
gpa_t vm_table(struct vm *); /* a cleared page of guest memory */
/* the entry of gva at a level (0: page) of 64-bit tables whose root has the given top level; makes tables with flags */
uint64_t *vm_pte(struct vm *, gpa_t root, int top, gva_t, int level, uint64_t flags);
uint32_t *vm_pte32(struct vm *, gpa_t root, gva_t, int level, uint32_t flags);
void vm_mode64(struct cpu *, gpa_t cr3, unsigned cpl);
void vm_changed(struct cpu *); /* recompute what core derives; then tlb_select() */
void vm_flush(struct cpu *);

#define assert_pf(cpu, status, where, code)              \
    do {                                                 \
        assert_int_equal(status, CPU_FAULT);             \
        assert_int_equal((cpu)->pending.vector, VEC_PF); \
        assert_int_equal((cpu)->pending.error, code);    \
        assert_true((cpu)->pending.payload == (where));  \
    } while (0)
#define assert_ept_exit(cpu, status, why, qual, where)     \
    do {                                                   \
        assert_int_equal(status, CPU_VMEXIT);              \
        assert_int_equal((cpu)->exit.reason, why);         \
        assert_int_equal((cpu)->exit.qualification, qual); \
        assert_true((cpu)->exit.gpa == (where));           \
    } while (0)

enum { P = 1, RW = 2, US = 4, A = 0x20, D = 0x40, PS = 0x80, G = 0x100 };
#define NX (1ull << 63)

#endif
