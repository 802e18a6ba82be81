/* SPDX-License-Identifier: MIT
 * isa.h: the differential harness: one instruction on the host CPU and by the processor's interpreter, from the same
 * registers and memory. host_run.c, guest_run.c, forms.c, cases.c, isa.c. */
#ifndef ISA_H
#define ISA_H

#include "../../src/cpu/insn/fpu.h"
#include "../../src/cpu/mem/mem.h"
#include <Zydis/Zydis.h>

/* The arena: ARENA_PAGES pages at one guest-virtual address; on the host side they are mapped at the same address. Data
 * pages: what an operand that lies in or crosses them meets. Everything around is unmapped. */
#define ARENA       0x20000000ull
#define ARENA_PAGES 12
enum arena_page {          /* 16-bit code reaches all of them: below 64 KB */
                  PG_CODE, /* readable, executable */
                  PG_GAP,  /* elements of a gather lie near the others, never in the code: its bytes differ (form_in_64)
                            */
                  PG_NONE0,
                  PG_RW0,
                  PG_RW1, /* readable, writable */
                  PG_NONE1,
                  PG_RO,
                  PG_NONE2,
                  PG_RW2,
                  PG_RO2, /* right behind: crossing into it faults on writes */
                  PG_NONE3
};
static inline bool page_mapped(unsigned pg)
{
    return pg == PG_CODE || pg == PG_RW0 || pg == PG_RW1 || pg == PG_RO || pg == PG_RW2 || pg == PG_RO2;
}
static inline bool page_writable(unsigned pg)
{
    return pg == PG_RW0 || pg == PG_RW1 || pg == PG_RW2;
}

struct regs {
    uint64_t gpr[16], rip, rflags;
    struct xsave_area *fpu; /* cpu_fpu_area_size() bytes */
};

struct outcome {
    int vector; /* -1: none */
    uint32_t error;
    uint64_t cr2;
    struct regs r;
};

/* ---- the two sides ---- */
void host_side_init(void);
/* host_run() in a process of its own: a translator's tables fill so much of this one that random addresses meet them.
 * Before a processor is made. */
void host_side_apart(void);
void host_signals_init(void);    /* after the processor's own handlers */
extern bool host_repeats;        /* RIP that stays means: not done yet */
extern bool host_free;           /* no trap flag: up to the first fault or INT3 */
extern unsigned host_direct_ok;  /* not 0: the length of an instruction that host_direct.c can run */
uint8_t *host_page(unsigned pg); /* writable whatever the instruction may do with the page; NULL if not mapped */
/* Registers in, one instruction (all steps of a string instruction), registers out. */
void host_run(enum cpu_mode, const struct regs *in, struct outcome *out);

/* 16 and 32-bit code can be run on this host (some virtual machines cannot). If not, an instruction is compared with
 * the 64-bit encoding of the same operation on the same operands, where there is one. */
bool host_has_mode(enum cpu_mode);

void guest_side_init(const char *engine);
bool guest_translated(void);
uint8_t *guest_page(unsigned pg);
struct cpu *guest_cpu(void);
void guest_mode(enum cpu_mode);
void guest_run(const struct insn *, const struct regs *in, struct outcome *out);
void segments_for(enum cpu_mode, uint16_t *cs, uint16_t *ss);
#define LDT_CODE16 0x07
#define LDT_DATA16 0x0f
#define MAX_STEPS  64

/* ---- random numbers ---- */
extern uint64_t rng_state;
static inline uint64_t rnd(void)
{
    uint64_t x = rng_state;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    rng_state = x;
    return x * 0x2545f4914f6cdd1dull;
}
static inline unsigned below(unsigned n)
{
    return (rnd() >> 33) % n;
}
uint64_t rnd_value(void);

/* ---- forms: encodings that differ in more than registers and constants ---- */
struct form {
    uint16_t row; /* enum op */
    uint16_t mnemonic;
    uint64_t signature;
    uint64_t group; /* row, length and operand kinds: forms of a group share the number of cases */
    uint8_t len;    /* of the pattern up to ModRM, with room for operand bytes after it */
    uint8_t bytes[15];
};
struct forms {
    struct form *f;
    unsigned n;
};
void forms_find(enum cpu_mode, struct forms *);
struct decoded {
    ZydisDecodedInstruction zi;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
};
bool form_decode(enum cpu_mode, const uint8_t *bytes, struct decoded *);
uint64_t form_signature(const struct decoded *);
/* Another encoding of the same form: other registers, addressing, immediates. False: none found, bytes is the pattern.
 */
bool form_vary(enum cpu_mode, const struct form *, uint8_t bytes[15], struct decoded *);
const char *form_skipped(enum cpu_mode, const struct form *); /* the same for one form */
/* The 64-bit encoding of the same operation; its length, or 0: none. */
unsigned form_in_64(enum cpu_mode, const uint8_t *bytes, const struct decoded *, uint8_t out[15]);
const char *row_skipped(unsigned row, enum cpu_mode); /* why a row cannot be compared, or NULL */

/* ---- cases ---- */
struct totals {
    unsigned long cases, faults, failures, not_comparable;
};
/* n cases of a form; failures are printed. */
void run_form(enum cpu_mode, const struct form *, unsigned n, struct totals *);
extern unsigned long row_cases[OP_COUNT];
extern unsigned verbose, max_reports;

#endif
