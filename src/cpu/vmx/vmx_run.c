/* SPDX-License-Identifier: MIT
 * vmx_run.c: VMLAUNCH and VMRESUME as level 0 executes them, injection, and the safepoint (cpu_poll): what happens
 * between two guest instructions (SDM 3C, "VM Entries", "Event Injection", "Special Features of VM Entry"). */
#include "engine.h"
#include "vmx/nested_int.h"
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define ATT_OF_ENTRY (ATT_WINDOW | ATT_STEP | ATT_TIMER) /* set up by each entry; meaningless after the exit */

/* ---- injection ---- */

/* Deliver the event of the entry interruption information (SDM 3C, "Event Injection"). */
int vmx_inject(struct cpu *cpu, unsigned level)
{
    struct cpu_state *s = &cpu->s;
    const struct vmcs *v = cpu->vmx->level[level].cur;
    const uint32_t info = v->VM_ENTRY_INTR_INFO_FIELD;
    struct event ev = {.vector = info & INTR_INFO_VECTOR, .type = (info & INTR_INFO_TYPE) >> 8, .valid = true};

    if (ev.type == INTR_OTHER) {
        cpu->vmx->level[level].mtf_pending = true;
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
    vmx_exit_commit(cpu, 0, true);
    return VMX_OK;
}

void vmx_timer_start(struct cpu *cpu, unsigned level)
{
    struct vmx_level *l = &cpu->vmx->level[level];

    l->timer_deadline = cpu_rdtsc() + (l->cur->VMX_PREEMPTION_TIMER_VALUE << VMX_TIMER_SHIFT);
}

static uint32_t timer_attention(struct cpu *cpu, const struct vmx_level *l)
{
    if (!(l->pin & PIN_PREEMPTION_TIMER))
        return 0;
    if (l->timer_deadline <= cpu_rdtsc())
        return ATT_TIMER;
    vmx_timer_arm(cpu, l->timer_deadline);
    return 0;
}

/* The alarm is one: with a hypervisor in the guest, the earlier deadline comes last here. */
void vmx_entry_attention(struct cpu *cpu)
{
    const struct cpu_state *s = &cpu->s;
    struct vmx_unit *vmx = cpu->vmx;
    uint32_t bits = 0;

    if (s->pending_dbg || s->activity != ACTIVITY_ACTIVE)
        bits |= ATT_WINDOW;
    for (unsigned n = 0; n <= vmx->depth; n++)
        bits |=
            (vmx->level[n].window || vmx->level[n].mtf_pending ? ATT_WINDOW : 0) | timer_attention(cpu, &vmx->level[n]);
    if (vmx->depth && vmx->level[0].pin & vmx->level[1].pin & PIN_PREEMPTION_TIMER &&
        vmx->level[0].timer_deadline < vmx->level[1].timer_deadline)
        bits |= timer_attention(cpu, &vmx->level[0]);
    if (bits)
        cpu_attend(cpu, bits);
    cpu_step_changed(cpu);
}

/* Until a VM exit to level 0. Exits to level 1 and its entries are taken in between, outside of the engine. */
static void run_guest(struct cpu *cpu)
{
    int status = CPU_OK;

    if (cpu->vmx->level[0].cur->VM_ENTRY_INTR_INFO_FIELD & INTR_INFO_VALID)
        status = vmx_inject(cpu, 0);
    for (;;) {
        /* The first boundary is here, so that an open window or a kick exits before any instruction. */
        if (status == CPU_OK && atomic_load_explicit(&cpu->attention, memory_order_acquire))
            status = cpu_poll(cpu);
        while (status != CPU_VMEXIT)
            status = cpu->engine->run(cpu);
        if (likely(!cpu->exit.level))
            return;
        status = vmx_nested_transition(cpu);
    }
}

/* With VPIDs off, entries and exits flush; the host has no entries here. */
static void entry_flush(struct cpu *cpu)
{
    if (cpu->vmx->level[0].exec2 & CPU2_ENABLE_VPID)
        return;
    tlb_flush(cpu, TLB_VPID, 0, 0, 0);
    if (cpu->vmx->nested)
        tlb_flush(cpu, TLB_NESTED, 0, 0, 0);
}

static enum vmx_result enter(struct cpu *cpu)
{
    struct vmx_level *l = &cpu->vmx->level[0];
    const uint32_t stale = l->stale; /* the check clears it */
    uint64_t qualification;

    if (unlikely(!cpu->engine))
        cpu_engine_start(cpu);
    cpu->vmx->failed_check = NULL;
    if (vmx_check_guest(cpu, 0, &qualification))
        return failed_entry(cpu, EXIT_REASON_INVALID_STATE, qualification);
    vmx_refresh_state(cpu, stale);
    if (l->cur->VM_ENTRY_MSR_LOAD_COUNT &&
        vmx_msr_load(cpu, 0, l->cur->VM_ENTRY_MSR_LOAD_ADDR, l->cur->VM_ENTRY_MSR_LOAD_COUNT, &qualification))
        return failed_entry(cpu, EXIT_REASON_MSR_LOAD_FAIL, qualification);
    l->cur->launch_state = VMCS_LAUNCHED;
    l->mtf_pending = false;
    if (l->pin & PIN_PREEMPTION_TIMER)
        vmx_timer_start(cpu, 0);
    cpu->pending.valid = cpu->delivering.valid = false;
    cpu->counters[CC_entries]++;

    host_enter(cpu);
    entry_flush(cpu);
    cpu->in_guest_mode = true;
    mem_guest_enter(cpu);
    vmx_entry_attention(cpu);
    run_guest(cpu);
    host_fpu_save(cpu);
    mem_guest_leave(cpu);
    cpu->in_guest_mode = false;
    host_leave(cpu);

    if (atomic_load_explicit(&cpu->attention, memory_order_relaxed) & ATT_OF_ENTRY)
        atomic_fetch_and_explicit(&cpu->attention, ~ATT_OF_ENTRY, memory_order_relaxed);
    vmx_exit_commit(cpu, 0, false);
    if (l->cur->VM_EXIT_MSR_STORE_COUNT && vmx_exit_msr_store(cpu, 0)) {
        l->cur->abort = 1; /* SDM 3C, "VMX Aborts": saving guest MSRs failed */
        l->cur = NULL;
        return VMX_FAIL_INVALID;
    }
    return VMX_OK;
}

enum vmx_result vmx_launch_check(struct cpu *cpu, unsigned level, bool launch)
{
    struct vmx_level *l = &cpu->vmx->level[level];

    if (!l->on || !l->cur)
        return VMX_FAIL_INVALID;
    if (l->cur->launch_state != (launch ? VMCS_CLEAR : VMCS_LAUNCHED))
        return vmx_fail(cpu, level, launch ? VMXERR_VMLAUNCH_NOT_CLEAR : VMXERR_VMRESUME_NOT_LAUNCHED);
    vmx_trace_entry(cpu, level, launch);
    return vmx_check_controls(cpu, level);
}

static enum vmx_result launch(struct cpu *cpu, bool launch)
{
    const enum vmx_result result = vmx_launch_check(cpu, 0, launch);

    return result == VMX_OK ? enter(cpu) : result;
}

enum vmx_result cpu_vmlaunch(struct cpu *cpu)
{
    return launch(cpu, true);
}

enum vmx_result cpu_vmresume(struct cpu *cpu)
{
    return launch(cpu, false);
}

/* ---- between two instructions ---- */

static bool timer_expired(const struct vmx_level *l)
{
    return l->pin & PIN_PREEMPTION_TIMER && cpu_rdtsc() >= l->timer_deadline;
}

/* Windows and debug exceptions that wait; a shadow leaves ATT_WINDOW set, for the next boundary may be free. */
static int poll_windows(struct cpu *cpu, unsigned level)
{
    struct cpu_state *s = &cpu->s;
    const struct vmx_level *l = &cpu->vmx->level[level];
    const uint32_t shadow = s->interruptibility & (INTR_BLOCK_STI | INTR_BLOCK_MOVSS);

    if (l->exec & CPU_NMI_WINDOW_EXITING && !(s->interruptibility & INTR_BLOCK_NMI)) {
        if (!(shadow & INTR_BLOCK_MOVSS))
            return vmx_exit_at(cpu, level, NULL, EXIT_REASON_NMI_WINDOW, 0);
        cpu_attend(cpu, ATT_WINDOW);
    }
    if (l->exec & CPU_INTR_WINDOW_EXITING && s->rflags_sys & F_IF) {
        if (!shadow)
            return vmx_exit_at(cpu, level, NULL, EXIT_REASON_INTERRUPT_WINDOW, 0);
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
    struct vmx_level *level = cpu->vmx->level;
    const unsigned depth = cpu->vmx->depth;
    int status;

    for (unsigned n = depth + 1; n-- > 0;) {
        if (!level[n].mtf_pending)
            continue;
        level[n].mtf_pending = false;
        return vmx_exit_at(cpu, n, NULL, EXIT_REASON_MONITOR_TRAP_FLAG, 0);
    }
    if ((status = poll_pending_debug(cpu)) != CPU_OK)
        return status;
    for (unsigned n = depth + 1; n-- > 0;) {
        if (timer_expired(&level[n]))
            return vmx_exit_at(cpu, n, NULL, EXIT_REASON_PREEMPTION_TIMER, 0);
        if ((status = poll_windows(cpu, n)) != CPU_OK)
            return status;
    }
    if (atomic_load_explicit(&cpu->attention, memory_order_acquire) & ATT_KICK) {
        atomic_fetch_and_explicit(&cpu->attention, ~ATT_KICK, memory_order_seq_cst);
        cpu->counters[CC_kicks]++;
        if (level[0].pin & PIN_EXT_INTR_EXITING)
            return vmx_exit(cpu, NULL, EXIT_REASON_EXTERNAL_INTERRUPT, 0);
    }
    return CPU_OK;
}

void cpu_wake(struct cpu *cpu)
{
    syscall(SYS_futex, &cpu->attention, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* When the first preemption timer runs out; ~0: none runs. */
static uint64_t first_deadline(const struct vmx_unit *vmx)
{
    uint64_t first = ~0ull;

    for (unsigned n = 0; n <= vmx->depth; n++)
        if (vmx->level[n].pin & PIN_PREEMPTION_TIMER && vmx->level[n].timer_deadline < first)
            first = vmx->level[n].timer_deadline;
    return first;
}

/* HLT without HLT exiting: nothing runs until another thread sets an attention bit or the preemption timer runs out.
 * Not in guest mode meanwhile: nobody waits for our safepoints. */
static void sleep_halted(struct cpu *cpu)
{
    const uint64_t now = cpu_rdtsc(), deadline = first_deadline(cpu->vmx);
    struct timespec ts = {1, 0}, *timeout = NULL;
    uint32_t seen;

    if (deadline != ~0ull) {
        const uint64_t ticks = deadline > now ? deadline - now : 0;
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
