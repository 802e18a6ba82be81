/* SPDX-License-Identifier: MIT
 * vmx_unit.h: the VMX unit of a processor and the layout of a VMCS region. For vmcs.c, vmxon.c, vmx_*.c and
 * intercept.c. */
#ifndef CPU_VMX_UNIT_H
#define CPU_VMX_UNIT_H

#include "mem/mem.h"
#include "vmx/vmx_int.h"

#define VMCS_REVISION 0x1d0f0001u /* changes with the layout: with any change of vmcs.def */
#define VMCS_SIZE     4096u

enum { VMCS_CLEAR, VMCS_LAUNCHED };

/* A VMCS region (SDM 3C, "Format of the VMCS Region"). One 64-bit slot a field, in vmcs.def's order, so that looking
 * one up is an index and the processor's own accesses are plain members: v->GUEST_RIP. Narrow fields keep their upper
 * bits 0. */
struct vmcs {
    uint32_t revision;
    uint32_t abort;
    uint32_t launch_state;
    uint32_t reserved;
#define VMCS_FIELD(name, encoding, bits, area, access) uint64_t name;
#include "vmcs.def"
#undef VMCS_FIELD
};
_Static_assert(sizeof(struct vmcs) <= VMCS_SIZE, "a VMCS region is 4 KiB");

/* What a VMWRITE may have made untrue; each group of entry checks names the areas that it looks at. */
enum vmcs_stale {
    STALE_CONTROLS = 1u << 0, /* execution, exit and entry controls, addresses, counts */
    STALE_HOST = 1u << 1,
    STALE_CR = 1u << 2, /* CR0 CR3 CR4 DR7 and the MSRs */
    STALE_SEG = 1u << 3,
    STALE_TABLES = 1u << 4, /* GDTR, IDTR */
    STALE_RIP = 1u << 5,
    STALE_RFLAGS = 1u << 6,
    STALE_NONREG = 1u << 7, /* activity, interruptibility, pending debug exceptions, link pointer */
    STALE_PDPTE = 1u << 8,
    STALE_INJECT = 1u << 9, /* entry interruption information: checked at each entry that injects */
    STALE_NONE = 0,
    STALE_ALL = 0x3ff
};

/* VMX operation of one level. 0: this process, whose physical addresses are its own; 1: its guest, whose physical
 * addresses go through level 0's EPT. */
struct vmx_level {
    bool on;
    uint64_t vmxon, cur_pa;
    struct vmcs *cur; /* current VMCS, NULL: none. Level 0: the region itself; level 1: a copy (vmcs12.c) */
    uint32_t stale;   /* enum vmcs_stale, of the current VMCS */
    /* Level 0, after a VM exit: XCR0 as it was while cpu_state mirrors the guest-state area but for what VMWRITE made
     * stale since; 0: it does not */
    uint64_t mirror;
    /* copies of the current VMCS's controls, taken by VM entry */
    uint32_t pin, exec, exec2, exception_bitmap;
    bool window;                  /* an interrupt or NMI window was asked for */
    bool mtf_pending;             /* injected "pending MTF VM exit" */
    uint64_t timer_deadline;      /* host TSC at which the VMX-preemption timer reaches 0 */
    uint64_t ple_first, ple_last; /* pause-loop exiting: TSC of the loop's first and latest PAUSE */
};
#define VMX_LEVELS 2

struct vmx_nested; /* nested_int.h */

struct vmx_unit {
    struct vmx_level level[VMX_LEVELS];
    unsigned depth;              /* of who runs now: 0, level 0's guest; 1, the guest of level 1 */
    struct vmx_nested *nested;   /* NULL: the guest has no VMX */
    struct vmx_unit *alarm_next; /* vmx_timer.c */
    struct cpu *alarm_cpu;
    _Atomic uint64_t alarm;
    const char *failed_check; /* text of the entry check that failed last, or NULL */
};

/* cpu->exit.level: whose VM exit it is, or this: level 1 enters its guest */
#define EXIT_TO_NESTED_ENTRY 255

static inline const struct vmx_level *vmx_current(const struct cpu *cpu, unsigned n)
{
    return &cpu->vmx->level[n];
}

/* Physical memory of a level: 0, or -1 where there is none. Level 1: in guest mode or between mem_guest_enter() and
 * mem_guest_leave(). */
int vmx_phys_read(struct cpu *, unsigned level, uint64_t pa, void *, size_t);
int vmx_phys_write(struct cpu *, unsigned level, uint64_t pa, const void *, size_t);
uint64_t vmx_phys_limit(const struct cpu *, unsigned level); /* physical addresses are below */

/* VM entries go through these; a failed one is named in vmx->failed_check and the trace. */
enum vmx_result vmx_check_controls(struct cpu *, unsigned level);           /* VMX_OK, or VMfailValid with its number */
int vmx_check_guest(struct cpu *, unsigned level, uint64_t *qualification); /* 0, or -1 */
/* Load the count MSRs of a list. 0, or -1: *failed is the entry's number from 1 */
int vmx_msr_load(struct cpu *, unsigned level, uint64_t list, uint64_t count, uint64_t *failed);
int vmx_inject(struct cpu *, unsigned level); /* CPU_OK or CPU_VMEXIT */
void vmx_entry_attention(struct cpu *);       /* what the engine must look at before its next instruction */
void vmx_timer_start(struct cpu *, unsigned level);
/* Write exit information and guest state into the VMCS. failed: the entry failed, guest state stays as it was. */
void vmx_exit_commit(struct cpu *, unsigned level, bool failed_entry);
int vmx_exit_msr_store(struct cpu *, unsigned level); /* -1: VMX abort */
void vmx_load_state(struct cpu *, unsigned level);    /* controls and guest-state area -> cpu_state */
void vmx_refresh_state(struct cpu *, uint32_t stale); /* the same at level 0, where a VM exit has saved most of it */
void vmx_save_state(struct cpu *, unsigned level);
void vmx_take_controls(struct cpu *, unsigned level);
bool vmx_exception_exits(const struct cpu *, unsigned level, const struct event *);

/* VMX instructions at a level (vmxon.c, vmcs.c) */
enum vmx_result vmx_on(struct cpu *, unsigned level, uint64_t region);
enum vmx_result vmx_off(struct cpu *, unsigned level);
enum vmx_result vmx_clear(struct cpu *, unsigned level, uint64_t vmcs);
enum vmx_result vmx_ptrld(struct cpu *, unsigned level, uint64_t vmcs);
enum vmx_result vmx_read(struct cpu *, unsigned level, uint32_t field, uint64_t *);
enum vmx_result vmx_write(struct cpu *, unsigned level, uint32_t field, uint64_t);
enum vmx_result vmx_invept(struct cpu *, unsigned level, uint64_t type, uint64_t eptp);
enum vmx_result vmx_invvpid(struct cpu *, unsigned level, uint64_t type, uint64_t vpid, gva_t);
/* VMLAUNCH, VMRESUME: all that may fail before guest state is looked at */
enum vmx_result vmx_launch_check(struct cpu *, unsigned level, bool launch);
enum vmx_result vmx_fail(struct cpu *, unsigned level, enum vmx_error); /* VMfail: valid with a current VMCS, or not */
bool vmcs_lookup(uint32_t encoding, unsigned *index);                   /* index of the 64-bit slot */
const char *vmcs_field_name(unsigned index);
const char *vmx_reason_name(uint32_t reason);
void vmx_trace_exit_slow(struct cpu *, unsigned level);
void vmx_trace_entry_slow(struct cpu *, unsigned level, bool launch);
void vmx_trace_insn_slow(struct cpu *, const char *name, hpa_t operand);
static inline void vmx_trace_exit(struct cpu *cpu, unsigned level)
{
    if (unlikely(cpu_trace_mask & CPU_TRACE_VMCS))
        vmx_trace_exit_slow(cpu, level);
}
static inline void vmx_trace_entry(struct cpu *cpu, unsigned level, bool launch)
{
    if (unlikely(cpu_trace_mask & CPU_TRACE_VMCS))
        vmx_trace_entry_slow(cpu, level, launch);
}
static inline void vmx_trace_insn(struct cpu *cpu, const char *name, hpa_t operand)
{
    if (unlikely(cpu_trace_mask & CPU_TRACE_VMCS))
        vmx_trace_insn_slow(cpu, name, operand);
}
void vmx_trace_failed_check(struct cpu *, const char *text);

uint64_t vmx_cap(const struct cpu *, unsigned level, uint32_t msr); /* a capability MSR as that level sees it */
int vmx_cap_msr(unsigned level, uint32_t msr, uint64_t *value);     /* ... of any processor; -1: not one of them */
#define VMX_TIMER_SHIFT 5 /* the preemption timer counts at TSC >> 5 (IA32_VMX_MISC) */

void vmx_timer_arm(struct cpu *, uint64_t deadline); /* ATT_TIMER no later than this host TSC (vmx_timer.c) */
void vmx_timer_disarm(struct cpu *);

static inline uint64_t *vmcs_slot(struct vmcs *v, unsigned index)
{
    return &(&v->VIRTUAL_PROCESSOR_ID)[index];
}

#endif
