/* SPDX-License-Identifier: MIT
 * vmx_run.c: VMLAUNCH and VMRESUME as level 0 executes them, injection, and the safepoint (cpu_poll): what happens
 * between two guest instructions (SDM 3C, "VM Entries", "Event Injection", "Special Features of VM Entry"). */
#include "engine.h"
#include "vmx/vmx_unit.h"
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define ATT_OF_ENTRY (ATT_WINDOW | ATT_STEP | ATT_TIMER) /* set up by each entry; meaningless after the exit */

/* ---- injection ---- */

/* Deliver the event of the entry interruption information (SDM 3C, "Event Injection"). */
int vmx_inject(struct cpu *cpu)
{
    struct cpu_state *s = &cpu->s;
    const struct vmcs *v = cpu->vmx->cur;
    const uint32_t info = v->VM_ENTRY_INTR_INFO_FIELD;
    struct event ev = {.vector = info & INTR_INFO_VECTOR, .type = (info & INTR_INFO_TYPE) >> 8, .valid = true};

    if (ev.type == INTR_OTHER) {
        cpu->vmx->mtf_pending = true;
        cpu_attend(cpu, ATT_WINDOW);
        return CPU_OK;
    }
    ev.has_error = info & INTR_INFO_ERROR_CODE;
    ev.error = ev.has_error ? v->VM_ENTRY_EXCEPTION_ERROR_CODE : 0;
    ev.payload =
        ev.vector == VEC_PF && ev.type == INTR_HARD_EXC ? s->cr2 : 0; /* CR2, DR6 are the hypervisor's to set */
    if (ev.type == INTR_NMI)
        s->interruptibility |= INTR_BLOCK_NMI; /* before delivery: a nested exit shows it */
    if (ev.type >= INTR_SOFT_INT) {
        ev.insn_len = v->VM_ENTRY_INSTRUCTION_LEN;
        s->rip = (s->rip + ev.insn_len) & s->ip_mask; /* cpu_deliver() takes it back on an exit */
    }
    s->interruptibility &= ~(INTR_BLOCK_STI | INTR_BLOCK_MOVSS);
    s->activity = ACTIVITY_ACTIVE;
    s->pending_dbg = 0;
    cpu->counters[CC_interrupts]++;
    return cpu_deliver(cpu, &ev);
}

/* ---- entry ---- */

static enum vmx_result failed_entry(struct cpu *cpu, uint32_t reason, uint64_t qualification)
{
    vmx_exit(cpu, NULL, reason | EXIT_REASON_FAILED_VMENTRY, qualification);
    vmx_exit_commit(cpu, true);
    return VMX_OK;
}

/* What the engine must look at before its first instruction. */
static void entry_attention(struct cpu *cpu)
{
    const struct cpu_state *s = &cpu->s;
    struct vmx_unit *vmx = cpu->vmx;
    uint32_t bits = 0;

    if (vmx->window || s->pending_dbg || s->activity != ACTIVITY_ACTIVE)
        bits |= ATT_WINDOW;
    if (vmx->pin & PIN_PREEMPTION_TIMER) {
        vmx->timer_deadline = cpu_rdtsc() + (vmx->cur->VMX_PREEMPTION_TIMER_VALUE << VMX_TIMER_SHIFT);
        if (!vmx->cur->VMX_PREEMPTION_TIMER_VALUE)
            bits |= ATT_TIMER;
        else
            vmx_timer_arm(cpu, vmx->timer_deadline);
    }
    if (bits)
        cpu_attend(cpu, bits);
    cpu_step_changed(cpu);
}

static void run_guest(struct cpu *cpu)
{
    int status = CPU_OK;

    if (cpu->vmx->cur->VM_ENTRY_INTR_INFO_FIELD & INTR_INFO_VALID)
        status = vmx_inject(cpu);
    /* The first boundary is here, so that an open window or a kick exits before any instruction. */
    if (status == CPU_OK && atomic_load_explicit(&cpu->attention, memory_order_acquire))
        status = cpu_poll(cpu);
    while (status != CPU_VMEXIT)
        status = cpu->engine->run(cpu);
}

static enum vmx_result enter(struct cpu *cpu)
{
    struct vmx_unit *vmx = cpu->vmx;
    uint64_t qualification;

    if (unlikely(!cpu->engine))
        cpu_engine_start(cpu);
    vmx->failed_check = NULL;
    if (vmx_check_guest(cpu, &qualification))
        return failed_entry(cpu, EXIT_REASON_INVALID_STATE, qualification);
    vmx_load_guest_state(cpu);
    if (vmx->cur->VM_ENTRY_MSR_LOAD_COUNT && vmx_entry_msr_load(cpu, &qualification))
        return failed_entry(cpu, EXIT_REASON_MSR_LOAD_FAIL, qualification);
    vmx->cur->launch_state = VMCS_LAUNCHED;
    vmx->mtf_pending = false;
    cpu->pending.valid = cpu->delivering.valid = false;
    cpu->counters[CC_entries]++;

    host_enter(cpu);
    if (!(vmx->exec2 & CPU2_ENABLE_VPID))
        tlb_flush(cpu, TLB_VPID, 0, 0, 0); /* with VPIDs off, entries and exits flush; the host has no entries here */
    cpu->in_guest_mode = true;
    mem_guest_enter(cpu);
    entry_attention(cpu);
    run_guest(cpu);
    host_fpu_save(cpu);
    mem_guest_leave(cpu);
    cpu->in_guest_mode = false;
    host_leave(cpu);

    atomic_fetch_and_explicit(&cpu->attention, ~ATT_OF_ENTRY, memory_order_relaxed);
    vmx_exit_commit(cpu, false);
    if (vmx->cur->VM_EXIT_MSR_STORE_COUNT && vmx_exit_msr_store(cpu)) {
        vmx->cur->abort = 1; /* SDM 3C, "VMX Aborts": saving guest MSRs failed */
        vmx->cur = NULL;
        return VMX_FAIL_INVALID;
    }
    return VMX_OK;
}

static enum vmx_result launch(struct cpu *cpu, uint32_t wanted, enum vmx_error otherwise)
{
    struct vmx_unit *vmx = cpu->vmx;
    enum vmx_result result;

    if (!vmx->on || !vmx->cur)
        return VMX_FAIL_INVALID;
    if (vmx->cur->launch_state != wanted)
        return vmx_fail(cpu, otherwise);
    vmx_trace_entry(cpu, wanted == VMCS_CLEAR);
    result = vmx_check_controls(cpu);
    return result == VMX_OK ? enter(cpu) : result;
}

enum vmx_result cpu_vmlaunch(struct cpu *cpu)
{
    return launch(cpu, VMCS_CLEAR, VMXERR_VMLAUNCH_NOT_CLEAR);
}

enum vmx_result cpu_vmresume(struct cpu *cpu)
{
    return launch(cpu, VMCS_LAUNCHED, VMXERR_VMRESUME_NOT_LAUNCHED);
}

/* ---- between two instructions ---- */

void vmx_check_windows(struct cpu *cpu)
{
    if (cpu->vmx->window)
        cpu_attend(cpu, ATT_WINDOW);
}

static bool timer_expired(const struct vmx_unit *vmx)
{
    return vmx->pin & PIN_PREEMPTION_TIMER && cpu_rdtsc() >= vmx->timer_deadline;
}

/* Windows and debug exceptions that wait; a shadow leaves ATT_WINDOW set, for the next boundary may be free. */
static int poll_windows(struct cpu *cpu)
{
    struct cpu_state *s = &cpu->s;
    const struct vmx_unit *vmx = cpu->vmx;
    const uint32_t shadow = s->interruptibility & (INTR_BLOCK_STI | INTR_BLOCK_MOVSS);

    if (vmx->exec & CPU_NMI_WINDOW_EXITING && !(s->interruptibility & INTR_BLOCK_NMI)) {
        if (!(shadow & INTR_BLOCK_MOVSS))
            return vmx_exit(cpu, NULL, EXIT_REASON_NMI_WINDOW, 0);
        cpu_attend(cpu, ATT_WINDOW);
    }
    if (vmx->exec & CPU_INTR_WINDOW_EXITING && s->rflags_sys & F_IF) {
        if (!shadow)
            return vmx_exit(cpu, NULL, EXIT_REASON_INTERRUPT_WINDOW, 0);
        cpu_attend(cpu, ATT_WINDOW);
    }
    return CPU_OK;
}

static int poll_pending_debug(struct cpu *cpu)
{
    struct cpu_state *s = &cpu->s;
    const uint64_t bits = s->pending_dbg & (DR6_BS | 0xf);

    if (!s->pending_dbg)
        return CPU_OK;
    if (s->interruptibility & INTR_BLOCK_MOVSS) {
        cpu_attend(cpu, ATT_WINDOW);
        return CPU_OK;
    }
    s->pending_dbg = 0;
    if (!bits)
        return CPU_OK;
    s->activity = ACTIVITY_ACTIVE;
    cpu_raise_db(cpu, bits);
    return cpu_exception(cpu);
}

/* In the order of SDM 3A, "Priority Among Concurrent Events", and SDM 3C, "Other Causes of VM Exits". */
static int poll_events(struct cpu *cpu)
{
    struct vmx_unit *vmx = cpu->vmx;
    int status;

    if (vmx->mtf_pending) {
        vmx->mtf_pending = false;
        return vmx_exit(cpu, NULL, EXIT_REASON_MONITOR_TRAP_FLAG, 0);
    }
    if ((status = poll_pending_debug(cpu)) != CPU_OK)
        return status;
    if (timer_expired(vmx))
        return vmx_exit(cpu, NULL, EXIT_REASON_PREEMPTION_TIMER, 0);
    if ((status = poll_windows(cpu)) != CPU_OK)
        return status;
    if (atomic_load_explicit(&cpu->attention, memory_order_acquire) & ATT_KICK) {
        atomic_fetch_and_explicit(&cpu->attention, ~ATT_KICK, memory_order_seq_cst);
        cpu->counters[CC_kicks]++;
        if (vmx->pin & PIN_EXT_INTR_EXITING)
            return vmx_exit(cpu, NULL, EXIT_REASON_EXTERNAL_INTERRUPT, 0);
    }
    return CPU_OK;
}

void cpu_wake(struct cpu *cpu)
{
    syscall(SYS_futex, &cpu->attention, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* HLT without HLT exiting: nothing runs until another thread sets an attention bit or the preemption timer runs out.
 * Not in guest mode meanwhile: nobody waits for our safepoints. */
static void sleep_halted(struct cpu *cpu)
{
    const struct vmx_unit *vmx = cpu->vmx;
    const uint64_t now = cpu_rdtsc();
    struct timespec ts = {1, 0}, *timeout = NULL;
    uint32_t seen;

    if (vmx->pin & PIN_PREEMPTION_TIMER) {
        const uint64_t ticks = vmx->timer_deadline > now ? vmx->timer_deadline - now : 0;
        const uint64_t ns = ticks / (cpu_tsc_khz() / 1000) * 1000;
        if (ns < 1000000000)
            ts = (struct timespec){0, ns};
        timeout = &ts;
    }
    host_fpu_save(cpu);
    mem_guest_leave(cpu);
    atomic_store_explicit(&cpu->asleep, true, memory_order_seq_cst);
    seen = atomic_load_explicit(&cpu->attention, memory_order_seq_cst);
    if (!(seen & ~(ATT_STEP | ATT_WINDOW | ATT_UNVERIFY)))
        syscall(SYS_futex, &cpu->attention, FUTEX_WAIT_PRIVATE, seen, timeout, NULL, 0);
    atomic_store_explicit(&cpu->asleep, false, memory_order_relaxed);
    mem_guest_enter(cpu);
}

int cpu_poll(struct cpu *cpu)
{
    for (;;) {
        const uint32_t seen = atomic_load_explicit(&cpu->attention, memory_order_acquire);
        int status = CPU_OK;

        if (seen & (ATT_FLUSH | ATT_EPOCH))
            mem_poll(cpu);
        if (seen & (ATT_WINDOW | ATT_TIMER))
            atomic_fetch_and_explicit(&cpu->attention, ~(ATT_WINDOW | ATT_TIMER), memory_order_relaxed);
        if (seen & (ATT_WINDOW | ATT_TIMER | ATT_KICK))
            status = poll_events(cpu);
        if (likely(status != CPU_OK || cpu->s.activity == ACTIVITY_ACTIVE))
            return status;
        sleep_halted(cpu);
        cpu_attend(cpu, ATT_WINDOW);
    }
}
