/* SPDX-License-Identifier: MIT
 * cpu.h: the closed list: what a hypervisor on hardware does by other means than VMX operations (vmx.h). With vmx.h,
 * vmcs.h, state.h and emulate.h, this is all of src/cpu that src/kvm may include. */
#ifndef CPU_CPU_H
#define CPU_CPU_H

#include <stdio.h>
#include <sys/types.h>
#include "state.h"

struct cpu;
struct cpu_domain; /* the processors of one VM: they share code pages, epochs and host-page bookkeeping */

enum acc { ACC_READ = 1, ACC_WRITE = 2, ACC_EXEC = 4 };

/* -------- creating and destroying -------- */
struct cpu_domain *cpu_domain_create(void); /* NULL: no memory */
void cpu_domain_destroy(struct cpu_domain *);
/* engine: "interp", "jit", "check", or NULL for the best one that the host supports. NULL on no memory/unknown engine.
 * A processor that finds no address space for the translator's tables at its first entry interprets.
 */
struct cpu *cpu_create(struct cpu_domain *, unsigned id, const char *engine);
extern bool cpu_hardened; /* of processors created from now on: no access of translated code runs ahead of its check */
void cpu_destroy(struct cpu *);
const char *cpu_engine_name(const struct cpu *);
bool cpu_engine_exists(const char *name);

/* -------- the hypervisor's own instructions -------- */
struct cpuid_regs {
    uint32_t eax, ebx, ecx, edx;
};
/* CPUID in root operation: what this processor has (an allow-list over the host's; SDM 2A, "CPUID"). */
void cpu_cpuid(uint32_t leaf, uint32_t subleaf, struct cpuid_regs *);
/* RDMSR in root operation (IA32_VMX_*, IA32_FEATURE_CONTROL ...). 0, or -1 for #GP. */
int cpu_rdmsr(uint32_t msr, uint64_t *value);
/* MSRs that the processor itself holds for the guest (STAR ... PAT, FS.base ...); a row each in msr.c. They apply to
 * cpu_state, or to the current VMCS for those that are in it. 0, or -1 for #GP / no such MSR. */
int cpu_guest_rdmsr(struct cpu *, uint32_t msr, uint64_t *value);
int cpu_guest_wrmsr(struct cpu *, uint32_t msr, uint64_t value);
uint64_t cpu_rdtsc(void);   /* the host's TSC */
uint64_t cpu_tsc_khz(void); /* calibrated over >= 64 ms once per boot, cached */
void cpu_set_guest_cpuid(struct cpu *, const struct cpuid_regs *leaf1, const struct cpuid_regs *leaf7_0,
                         const struct cpuid_regs *ext1, unsigned maxphyaddr, bool vendor_amd);
/* ^ what VMX cannot say: CPUID always exits, but reserved bits of CR4, EFER, page tables (MAXPHYADDR, NX, 1G pages) and
 *   vendor-specific behaviour depend on it. The hypervisor passes what it gave to the guest. */

/* -------- the host's IPI -------- */
/* Any thread: an external-interrupt exit at the next safepoint; remembered when the cpu is not in guest mode (the next
 * entry then exits at once). No signal, no system call. */
void cpu_kick(struct cpu *);
bool cpu_in_guest(const struct cpu *); /* a hint, may be stale */

/* -------- host signals (SEGV BUS FPE ILL TRAP) -------- */
struct sigaction;
/* sigaction() as the client means it: what the processor's handlers pass on to, once they are installed. */
int cpu_sigaction(int sig, const struct sigaction *act, struct sigaction *old);
void cpu_sigmask_changed(void); /* on this thread: looked at again when it next runs a cpu */

/* -------- guest FPU state: an XSAVE area in the host's own standard layout -------- */
void *cpu_fpu_area(struct cpu *); /* valid outside of guest mode; header XSTATE_BV tells what is not initial */
size_t cpu_fpu_area_size(void);   /* CPUID 0xd.0 EBX for all of the host's components that we offer */
uint64_t cpu_fpu_xcr0_mask(void); /* components that a guest may enable */

/* -------- host memory -------- */
/* The caller takes away or write-protects host memory [hva, hva+size) (slot deleted or moved, dirty log cleared): all
 * cached translations of the domain that reach it with access `what` are dropped before this returns; with ACC_EXEC
 * also the decoded code. Waits until every cpu in guest mode has passed a safepoint. Not to be called in guest mode. */
void cpu_drop_host_range(struct cpu_domain *, hva_t hva, size_t size, unsigned what);
/* The same in two parts, for a caller that has something else to wait for meanwhile: after the change of the tables,
 * and before the memory goes. */
void cpu_drop_ask(struct cpu_domain *);
void cpu_drop_wait(struct cpu_domain *, hva_t hva, size_t size, unsigned what);
/* memcpy between the client's memory and ours: 0, or -1 where it cannot be read or written. Outside of guest mode too;
 * a thread that blocks SIGSEGV and is no vCPU's dies of a bad pointer. */
int cpu_copy_user(void *dst, const void *src, size_t n);
/* The host's core that the calling thread runs on, as the kernel writes it into the thread's rseq area; ~0: not known.
 * A load. Waiting: who was last on this core has lost it to the waiter, so sleep; who is on another one answers sooner
 * than an interrupt between cores takes (50 us inside of a virtual machine), so look at it for a while. */
static inline uint32_t cpu_host_core(void)
{
    extern const ptrdiff_t __rseq_offset __attribute__((weak)); /* glibc 2.35 */
    extern const unsigned __rseq_size __attribute__((weak));
    uint32_t core = ~0u; /* cpu_id, the second word; below 0: not registered */

    if (&__rseq_size && &__rseq_offset && __rseq_size)
        __asm__ volatile("movl %%fs:4(%1), %0" : "=r"(core) : "r"(__rseq_offset));
    return core;
}
#define CPU_LOOK_CYCLES 131072u /* of the TSC */
/* Every cpu that is in guest mode now has passed a safepoint when this returns. */
void cpu_epoch_wait(struct cpu_domain *);
/* Code that was decoded is compared with memory again before it next runs (KVM_RUN after EINTR, SET_REGS ...). */
void cpu_code_unverify(struct cpu *);

/* -------- counters and trace -------- */
enum cpu_counter {
#define C(name, text) CC_##name,
#include "counters.def"
#undef C
    CC_COUNT
};
extern const char *const cpu_counter_names[CC_COUNT];
const uint64_t *cpu_counters(const struct cpu *); /* [CC_COUNT], written by the cpu's thread only */
/* mask bits: what the cpu reports by calling fn(opaque, what, ...) as text lines */
enum { CPU_TRACE_VMCS = 1, CPU_TRACE_MMU = 2, CPU_TRACE_INSN = 4, CPU_TRACE_EVENT = 8 };
void cpu_set_trace(unsigned mask, void (*line)(const char *text));
/* Registers in the form of a crash report (the monitor prints its own by KVM_GET_*). */
void cpu_dump(struct cpu *, FILE *);
/* The instruction text at the guest's rip, for a trace or error ("?" where it cannot be read). */
void cpu_insn_text(struct cpu *, char *buf, size_t size);

#endif
