/* SPDX-License-Identifier: MIT
 * cpu_int.h: the processor's inside: struct cpu, statuses and events. For src/cpu and src/jit only. */
#ifndef CPU_INT_H
#define CPU_INT_H

#include "cpu.h"
#include "emulate.h"
#include "vmx.h"
#include "vmcs.h"
#include <pthread.h>
#include <stdatomic.h>

#define likely(x)                       __builtin_expect(!!(x), 1)
#define unlikely(x)                     __builtin_expect(!!(x), 0)
#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
#define ARRAY_SIZE(a)                   (sizeof(a) / sizeof((a)[0]))

/* What every function that executes guest work returns. First all that may fault, then commit. */
enum cpu_status {
    CPU_OK,     /* done; the run loop advances RIP */
    CPU_JUMP,   /* done; RIP was set by the callee */
    CPU_RESCAN, /* done, RIP to be advanced; mode, mappings or interruptibility changed: leave the block */
    CPU_AGAIN,  /* partly done and committed (rep): RIP stays, poll for attention, execute it again */
    CPU_FAULT,  /* nothing committed; cpu->pending holds the exception */
    CPU_VMEXIT, /* nothing committed (but for traps); cpu->exit holds reason and information */
    CPU_USER    /* emulation only: a callback needs user space; nothing committed */
};

/* An exception, interrupt or NMI on its way; type has the encoding of the interruption information (INTR_*). */
struct event {
    uint8_t vector;
    uint8_t type;
    bool has_error;
    bool valid;
    uint8_t insn_len; /* software interrupts and exceptions */
    uint32_t error;
    uint64_t payload; /* #PF: linear address for CR2; #DB: new DR6 bits */
};

struct exit_info { /* what vmx_exit_save() writes to the exit-information area */
    uint32_t reason;
    uint32_t intr_info, intr_error;
    uint32_t insn_len, insn_info;
    uint64_t qualification, linear, gpa;
    uint64_t io_rcx, io_rsi, io_rdi, io_rip;
    uint8_t level; /* of the hypervisor that it goes to: vmx_unit.h */
};

/* cpu->attention: polled at block entries and loop heads; any bit makes the engine return to cpu_poll(). */
#define ATT_KICK     0x01u /* cpu_kick(): external-interrupt exit */
#define ATT_FLUSH    0x02u /* another thread asks for a TLB flush (domain->flush protocol, mem.c) */
#define ATT_EPOCH    0x04u /* somebody waits for a safepoint */
#define ATT_WINDOW   0x08u /* interrupt or NMI window, or an event to re-examine after STI/MOV SS/IRET/POPF */
#define ATT_STEP     0x10u /* TF, RF, a shadow, MTF or breakpoints: one instruction at a time */
#define ATT_TIMER    0x20u /* VMX-preemption timer may have run out */
#define ATT_UNVERIFY 0x40u /* cpu_code_unverify() */

enum tlb_kind { TLB_READ, TLB_WRITE, TLB_EXEC, TLB_KINDS };
struct tlb_entry { /* tag: linear page | cpu->tlb_tag; host address = gva + delta */
    uint64_t tag[TLB_KINDS];
    uint64_t delta;
};
#define TLB_ENTRIES 1024u

struct engine;
struct insn;
struct emul_ctx;  /* emulate.c */
struct vmx_unit;  /* vmx_int.h */
struct mem_unit;  /* mem.c: per-cpu bookkeeping of translations (address-space tags, PDPTE cache ...) */
struct code_unit; /* code.c: per-cpu block look-up cache */
struct fpu_unit;  /* fpu.c */

/* What translated code may do itself instead of asking the interpreter's function: 0, no; 1, yes. Controls and CR4
 * decide: cpu_plain_changed(). */
enum cpu_plain {
    PLAIN_TSC,   /* RDTSC: not intercepted, not denied by CR4.TSD at any level, not scaled */
    PLAIN_TSCP,  /* RDTSCP: the same, and there */
    PLAIN_STI,   /* STI: nobody waits for a window */
    PLAIN_PAUSE, /* PAUSE: neither exits nor is counted */
    PLAIN_FSGS,  /* RDFSBASE and its like: CR4.FSGSBASE */
    PLAIN_COUNT
};

/* What a change of AC at CPL 0 selects. */
struct access_view {
    uint64_t acc_mode, tlb_tag, flat;
    struct tlb_entry *tlb;
};

struct cpu {
    struct cpu_state s;         /* first: translated code addresses it */
    _Atomic uint32_t attention; /* an engine may read salt with it, as one word */
    uint32_t salt;              /* engine-private */
    uint64_t tlb_tag;           /* low 12 bits of the tags that match now; TLB_TAG_SLOW matches nothing */
    uint64_t flat;              /* flat.h: the table of the current access mode; used only where flatu is there */
    uint64_t exec_gen[2];       /* lower and upper half: changes whenever a page there may show other code */
    struct flat_unit *flatu;
    struct tlb_entry *tlb;       /* direct mapped by page number, of the current access mode (mem.h) */
    struct access_view view[2];  /* AC = 0, AC = 1; kept while CPL is not 3 */
    uint64_t plain[PLAIN_COUNT]; /* enum cpu_plain */
    uint64_t counters[CC_COUNT];
    bool fpu_live;           /* the guest's vector and x87 state is in the host's registers now */
    bool in_guest_mode;      /* between VM entry and VM exit */
    struct event pending;    /* valid with CPU_FAULT */
    struct event delivering; /* being delivered through the IDT: becomes IDT-vectoring information on an exit */
    struct exit_info exit;   /* valid with CPU_VMEXIT */
    bool nmi_unblocked;      /* the IRET that runs now ended blocking by NMI: an exit or fault of it reports that */
    _Atomic bool asleep;     /* halted in a futex on attention: cpu_attend() wakes it */
    struct emul_ctx *emul;   /* set while cpu_emulate() runs */
    /* what the hypervisor told by cpu_set_guest_cpuid() */
    struct cpuid_regs guest_leaf1, guest_leaf7, guest_ext1;
    uint64_t guest_cr4_valid, guest_efer_valid;
    unsigned guest_maxphyaddr;
    bool guest_amd;
    _Atomic uint64_t epoch; /* odd: in guest mode; changes at each safepoint */
    unsigned id;
    struct cpu_domain *domain;
    const struct engine *engine, *engine_chosen; /* engine: NULL until the first entry */
    void *engine_data;
    struct vmx_unit *vmx;
    struct mem_unit *mem;
    struct code_unit *code;
    struct fpu_unit *fpu;
    struct cpu_exception emul_fault;
    uint32_t data_hits;           /* debug.c: data and I/O breakpoints that the running instruction met: DR6 bits */
    bool step_taken;              /* debug.c: an event was delivered or TF was cleared: no single-step trap after it */
    const struct insn *task_insn; /* far.c: the instruction that switches tasks, for the exit's length; NULL: a gate */
    bool rf_before;               /* debug.c: RFLAGS.RF was 1 before the instruction: it is cleared after it */
    _Alignas(64) uint8_t bounce[128]; /* an engine's: both ends of an access over two pages */
    uint64_t bounce_gva, bounce_word[2];
    struct {
        uint64_t guest, host, first;
    } pair;               /* an engine's: stacks of translated code and of who runs it; where the former begins */
    uint64_t saved_flags; /* an engine's: RAX behind LAHF and SETO AL */
};

#define CPU_SPAN ((sizeof(struct cpu) + 4095) & ~4095ull) /* bytes of its file */

#define CPU_MAX 1024
struct cpu_domain {
    pthread_mutex_t lock; /* the list of cpus; epoch waits take it, guest mode never */
    struct cpu *cpus[CPU_MAX];
    unsigned ncpus;
    struct code_pages *code;   /* code.c: host page -> decoded code, with a lock of its own */
    struct mem_shared *mem;    /* mem.c: which cpus may hold write entries of a host page */
    pthread_mutex_t exclusive; /* split locks and locked MMIO: cpu_exclusive_begin/end */
};
extern struct cpu *cpu_current_debug; /* for a debugger only */

/* ---- raising (exception.c) ---- */
int cpu_raise(struct cpu *, unsigned vector);                     /* no error code; returns CPU_FAULT */
int cpu_raise_err(struct cpu *, unsigned vector, uint32_t error); /* returns CPU_FAULT */
int cpu_raise_pf(struct cpu *, gva_t gva, uint32_t error);        /* CR2 is loaded at delivery; returns CPU_FAULT */
int cpu_raise_db(struct cpu *, uint64_t dr6_bits);                /* a trap: RIP is past the instruction already */
/* ---- delivery (exception.c) ---- */
/* cpu->pending was raised: ask the exception bitmap, else deliver through the IDT, with double and triple faults.
 * CPU_OK: delivered, RIP is the handler's. CPU_VMEXIT. Called by engines on CPU_FAULT. */
int cpu_exception(struct cpu *);
/* INT n, INT3, INTO, INT1: executed by an instruction of insn_len bytes. CPU_JUMP, CPU_FAULT, CPU_VMEXIT. */
int cpu_soft_interrupt(struct cpu *, const struct insn *, unsigned vector, unsigned type);
/* Deliver an event through the IDT (real, protected, long mode; task gates) without intercept checks: injection uses
 * it. On a nested fault the double-fault rules apply inside. CPU_OK or CPU_VMEXIT. */
int cpu_deliver(struct cpu *, const struct event *);
void cpu_engine_start(struct cpu *); /* before the first entry, outside of guest mode */
/* Safepoint: called by engines when cpu->attention is not 0, at an instruction boundary. Handles epochs, flushes,
 * windows, timer and kick. CPU_OK: go on (attention may still have ATT_STEP), or CPU_VMEXIT. (vmx_run.c) */
int cpu_poll(struct cpu *);
/* After an instruction under ATT_STEP: TF trap, MTF, breakpoints, end of shadows. CPU_OK, CPU_FAULT (then
 * cpu_exception) or CPU_VMEXIT. before: RFLAGS.TF at its start. (debug.c) */
int cpu_after_step(struct cpu *, bool tf_before, uint32_t shadow_before);
/* Instruction breakpoints at rip under ATT_STEP: CPU_OK or CPU_FAULT. (debug.c) */
int cpu_before_step(struct cpu *);
/* RFLAGS.TF or RF, DR7, the interruptibility or MTF changed: sets or clears ATT_STEP. cpu_mode_changed() ends with it;
 * POPF and IRET call it. (debug.c) */
void cpu_step_changed(struct cpu *);
/* CS, SS and RFLAGS were changed: cpu_mode_changed() for SYSCALL, IRET and their like, cheap from 64-bit mode to 64-bit
 * mode. (state.c) */
void cpu_privilege_changed(struct cpu *);
void cpu_plain_changed(struct cpu *); /* execution controls or CR4: cpu->plain (intercept.c) */
/* Under ATT_STEP: something may happen between two iterations of a repeated instruction: all of that but RF. (debug.c)
 */
bool cpu_steps_iterations(const struct cpu *);
/* mem.c's slow path reports each explicit data access while DR7 has data breakpoints (cpu_data_breakpoints()); a match
 * becomes a #DB trap after the instruction. (debug.c) */
void cpu_data_access(struct cpu *, gva_t gva, unsigned size, unsigned acc);
bool cpu_data_breakpoints(const struct cpu *);

/* ---- segmentation (seg.c, far.c) ---- */
int seg_load(struct cpu *, enum seg_reg, uint16_t sel); /* MOV/POP Sreg, LDS ... not CS */
int seg_read_desc(struct cpu *, uint16_t sel, uint64_t desc[2], unsigned vector_on_fault);
void seg_from_desc(struct segment *, uint16_t sel, uint64_t desc);
int far_jump(struct cpu *, const struct insn *, uint16_t sel, uint64_t off);
int far_call(struct cpu *, const struct insn *, uint16_t sel, uint64_t off);
int far_ret(struct cpu *, const struct insn *, unsigned pop_bytes);
int far_iret(struct cpu *, const struct insn *);
int task_switch(struct cpu *, uint16_t sel, int source, bool has_error,
                uint32_t error); /* source: 0 call 1 iret 2 jmp 3 gate */

/* ---- control registers and MSRs (cr.c, msr.c) ---- */
int cr_write(struct cpu *, unsigned cr, uint64_t value);   /* with all #GP checks; value as the CPU holds it */
int msr_read(struct cpu *, uint32_t msr, uint64_t *value); /* no intercepts; CPU_OK or CPU_FAULT (#GP) */
int msr_write(struct cpu *, uint32_t msr, uint64_t value);

/* ---- trace (cpu.c): if (unlikely(cpu_trace_mask & CPU_TRACE_x)) cpu_trace(cpu, ...) ---- */
extern unsigned cpu_trace_mask;
void cpu_trace(struct cpu *, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- units of a cpu, made by cpu_create() in this order and destroyed in the reverse one; 0 or negative errno ---- */
int code_domain_init(struct cpu_domain *); /* code.c: domain->code */
void code_domain_destroy(struct cpu_domain *);
int code_cpu_init(struct cpu *); /* code.c: cpu->code */
void code_cpu_destroy(struct cpu *);
int fpu_cpu_init(struct cpu *); /* fpu.c: cpu->fpu, the XSAVE area in its initial state */
void fpu_cpu_destroy(struct cpu *);
void fpu_cpu_reset(struct cpu *); /* fpu.c: power-on reset: x87, SSE and AVX state initial */

/* ---- emulation (emulate.c) ----
 * While cpu->emul is set, one instruction runs on KVM's behalf. Intercepts do not fire (the vmx_intercept functions
 * answer CPU_OK) but for what emulation cannot take: HLT, task switches, triple faults, VMX instructions, MWAIT:
 * CPU_VMEXIT, which becomes EMUL_EXIT. Port I/O goes to emul_pio(), which returns CPU_OK or CPU_USER: count elements of
 * size bytes at buf; *done tells how many were done (at least 1, perhaps fewer than count). When the instruction is
 * replayed the same call is answered from the record. String instructions stop after each element or chunk (CPU_AGAIN):
 * nothing may be committed when a later part of the same call answers CPU_USER. INS probes its memory operand before it
 * reads the port. */
void emul_remember(struct cpu *, const struct insn *); /* engines: this instruction made the exit that is recorded */
int emul_pio(struct cpu *, uint16_t port, unsigned size, bool in, void *buf, unsigned count, unsigned *done);
bool emul_pio_begun(const struct cpu *); /* under emulation: this instruction's call was made before */
/* A host fault in a re-encoded guest instruction (native.c): 1 = ours, the context was mended. */
int native_fault(struct cpu *, int sig, void *siginfo, void *ucontext);

void cpu_wake(struct cpu *); /* vmx_run.c */
static inline void cpu_attend(struct cpu *cpu, uint32_t bits)
{
    atomic_fetch_or_explicit(&cpu->attention, bits, memory_order_seq_cst);
    if (unlikely(atomic_load_explicit(&cpu->asleep, memory_order_seq_cst)))
        cpu_wake(cpu);
}

static inline bool cpu_canonical(uint64_t a)
{
    return (uint64_t)((int64_t)(a << 16) >> 16) == a;
}

#endif
