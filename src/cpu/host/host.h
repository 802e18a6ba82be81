/* SPDX-License-Identifier: MIT
 * host.h: the border to the client's thread: accesses to host memory that may be gone, host signals, and the few
 * services of the operating system that src/cpu and src/kvm use.
 *
 * While a cpu is in guest mode its vector and x87 state may be live in the host's registers (cpu->fpu_live). So src/cpu
 * is compiled with -mgeneral-regs-only, and whoever calls libc, Zydis or other outside code calls host_fpu_save()
 * first. */
#ifndef CPU_HOST_H
#define CPU_HOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct cpu;

void host_init(void);             /* once: CPU features, signal handlers (chained to earlier ones), page size */
void host_enter(struct cpu *);    /* KVM_RUN begins guest work on this thread: TLS pointer, signal mask */
void host_leave(struct cpu *);    /* saves a live guest FPU, restores the client's MXCSR and FCW */
void host_fpu_save(struct cpu *); /* guest state goes to its area if it is live; cheap if it is not */
void host_fpu_load(struct cpu *); /* makes it live (vector rows call this) */
/* The signal handlers' entry for SEGV, BUS, FPE, ILL, TRAP: 1 = ours and mended, 0 = the client's. */
int host_fault(int sig, void *siginfo, void *ucontext);
struct cpu *host_current(void); /* the cpu that this thread runs, or NULL */

/* One instruction of the exact width: single-copy atomic; a host fault returns -1 (exception table), nothing moved. */
#define HOST_EXTABLE(insn_label, fixup_label) \
    ".pushsection ak_extable, \"a\"\n .balign 4\n .long " insn_label " - ., " fixup_label " - .\n .popsection\n"

#define HOST_TYPED(bits, constraint, mov, w)                                       \
    static inline int host_ld##bits(const void *p, uint##bits##_t *v)              \
    {                                                                              \
        uint##bits##_t t;                                                          \
        __asm__ volatile goto("1: " mov " %1, %" w "0\n" HOST_EXTABLE("1b", "%l2") \
                              : "=" constraint(t)                                  \
                              : "m"(*(const uint##bits##_t *)p)                    \
                              : "memory"                                           \
                              : fault);                                            \
        *v = t;                                                                    \
        return 0;                                                                  \
    fault:                                                                         \
        return -1;                                                                 \
    }                                                                              \
    static inline int host_st##bits(void *p, uint##bits##_t v)                     \
    {                                                                              \
        __asm__ volatile goto("1: " mov " %" w "0, %1\n" HOST_EXTABLE("1b", "%l2") \
                              :                                                    \
                              : constraint(v), "m"(*(uint##bits##_t *)p)           \
                              : "memory"                                           \
                              : fault);                                            \
        return 0;                                                                  \
    fault:                                                                         \
        return -1;                                                                 \
    }
HOST_TYPED(8, "q", "movb", "b")
HOST_TYPED(16, "r", "movw", "w")
HOST_TYPED(32, "r", "movl", "k")
HOST_TYPED(64, "r", "movq", "q")

int host_copy(void *dst, const void *src, size_t n); /* rep movsb; -1 when either side faults */
int host_set(void *dst, int byte, size_t n);
/* lock cmpxchg of size 4 or 8: 0 exchanged, 1 differs (*old = what is there), -1 fault */
int host_cmpxchg32(void *p, uint32_t *old, uint32_t val);
int host_cmpxchg64(void *p, uint64_t *old, uint64_t val);

#endif
