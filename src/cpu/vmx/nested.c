/* SPDX-License-Identifier: MIT
 * nested.c: a hypervisor inside of the guest: level 1. Its VM entries and its guest's VM exits, which happen inside of
 * one VM entry of level 0; and what level 0 may ask or do from outside (vmx.h). Checks, loading and saving of state,
 * injection and intercepts are those of level 0, given the other VMCS.
 *
 * There is one register file: while level 1's guest runs, it is that guest's, and so is what level 0's VMCS shows. Of
 * level 1 itself nothing is kept but what its own VMCS says as host state. */
#include "vmx/nested_int.h"
#include <errno.h>
#include <stdlib.h>

/* SDM 3C, "VMX Aborts" */
#define ABORT_SAVE_MSRS  1u
#define ABORT_HOST_PDPTE 2u
#define ABORT_LOAD_MSRS  4u

/* ---- transitions ---- */

static void vpid_flush(struct cpu *cpu)
{
    const struct vmx_level *l = &cpu->vmx->level[1];
    const uint32_t own = cpu->vmx->level[0].exec2 & CPU2_ENABLE_VPID && cpu->vmx->level[0].cur
                             ? cpu->vmx->level[0].cur->VIRTUAL_PROCESSOR_ID
                             : 0;

    if (l->exec2 & CPU2_ENABLE_VPID)
        return;
    /* SDM 3C, "Operations that Invalidate Cached Mappings": VPID 0000H, level 1's own and its guest's */
    tlb_flush(cpu, TLB_VPID, TLB_TAG_NESTED, 0, 0);
    tlb_flush(cpu, TLB_VPID, own, 0, 0);
}

/* The state of another guest is loaded. Level 0 shows CR0 and CR4 as they are. */
static void arrived(struct cpu *cpu, unsigned depth)
{
    struct vmx_unit *vmx = cpu->vmx;

    vmx->depth = depth;
    vmx_take_controls(cpu, depth);
    vmx->level[0].cur->CR0_READ_SHADOW = cpu->s.cr0;
    vmx->level[0].cur->CR4_READ_SHADOW = cpu->s.cr4;
    vmx->nested->moved = true;
    cpu->pending.valid = cpu->delivering.valid = false;
    cpu->nmi_unblocked = false;
    cpu->data_hits = 0;
    cpu_mode_changed(cpu);
    vpid_flush(cpu);
}

static int vmx_abort(struct cpu *cpu, uint32_t why)
{
    struct vmx_level *l = &cpu->vmx->level[1];

    cpu->vmx->depth = 0;
    l->cur->abort = why;
    vmx_phys_write(cpu, 1, l->cur_pa + offsetof(struct vmcs, abort), &why, sizeof(why));
    return vmx_exit(cpu, NULL, EXIT_REASON_TRIPLE_FAULT, 0); /* shutdown */
}

/* Level 1 goes on where its host-state area says. The guest's state and the exit information are saved. */
static int to_host(struct cpu *cpu)
{
    struct vmx_unit *vmx = cpu->vmx;
    const struct vmcs *v = vmx->level[1].cur;
    uint64_t failed;

    if (vmx_load_host_state(cpu))
        return vmx_abort(cpu, ABORT_HOST_PDPTE);
    arrived(cpu, 0);
    if (v->VM_EXIT_MSR_LOAD_COUNT) {
        if (vmx_msr_load(cpu, 1, v->VM_EXIT_MSR_LOAD_ADDR, v->VM_EXIT_MSR_LOAD_COUNT, &failed))
            return vmx_abort(cpu, ABORT_LOAD_MSRS);
        vmx_take_controls(cpu, 0);
    }
    vmx_entry_attention(cpu);
    return CPU_OK;
}

static int failed_entry(struct cpu *cpu, uint32_t reason, uint64_t qualification)
{
    vmx_exit_at(cpu, 1, NULL, reason | EXIT_REASON_FAILED_VMENTRY, qualification);
    vmx_exit_commit(cpu, 1, true);
    return to_host(cpu);
}

/* Blocking by NMI of level 1 itself comes back with its guest's exit where its guest's is virtual. */
static void enter_nmi(struct cpu *cpu, uint32_t before)
{
    cpu->vmx->nested->nmi_blocked = before & INTR_BLOCK_NMI;
}

static int nested_entry(struct cpu *cpu)
{
    struct vmx_level *l = &cpu->vmx->level[1];
    struct vmcs *v = l->cur;
    const uint32_t before = cpu->s.interruptibility;
    uint64_t qualification;

    if (vmx_check_guest(cpu, 1, &qualification))
        return failed_entry(cpu, EXIT_REASON_INVALID_STATE, qualification);
    enter_nmi(cpu, before);
    cpu->vmx->depth = 1;
    vmx_load_state(cpu, 1);
    arrived(cpu, 1);
    if (v->VM_ENTRY_MSR_LOAD_COUNT) {
        if (vmx_msr_load(cpu, 1, v->VM_ENTRY_MSR_LOAD_ADDR, v->VM_ENTRY_MSR_LOAD_COUNT, &qualification))
            return failed_entry(cpu, EXIT_REASON_MSR_LOAD_FAIL, qualification);
        vmx_take_controls(cpu, 0);
        vmx_take_controls(cpu, 1);
    }
    v->launch_state = VMCS_LAUNCHED;
    l->mtf_pending = false;
    if (l->pin & PIN_PREEMPTION_TIMER)
        vmx_timer_start(cpu, 1);
    cpu->counters[CC_nested_entries]++;
    vmx_entry_attention(cpu);
    return v->VM_ENTRY_INTR_INFO_FIELD & INTR_INFO_VALID ? vmx_inject(cpu, 1) : CPU_OK;
}

/* SDM 3C, "Saving Non-Register State", "VMX Non-Root Operation": with virtual NMIs the guest's blocking by NMI is not
 * level 1's; an NMI that exits blocks level 1. */
static void exit_nmi(struct cpu *cpu, bool nmi)
{
    struct cpu_state *s = &cpu->s;

    if (cpu->vmx->level[1].pin & PIN_VIRTUAL_NMIS) {
        s->interruptibility &= ~INTR_BLOCK_NMI;
        if (cpu->vmx->nested->nmi_blocked)
            s->interruptibility |= INTR_BLOCK_NMI;
    }
    if (nmi)
        s->interruptibility |= INTR_BLOCK_NMI;
}

static int nested_exit(struct cpu *cpu)
{
    const struct exit_info *x = &cpu->exit;
    const bool nmi = x->reason == EXIT_REASON_EXCEPTION_NMI && (x->intr_info & INTR_INFO_TYPE) >> 8 == INTR_NMI;

    vmx_exit_commit(cpu, 1, false);
    exit_nmi(cpu, nmi);
    if (cpu->vmx->level[1].cur->VM_EXIT_MSR_STORE_COUNT && vmx_exit_msr_store(cpu, 1))
        return vmx_abort(cpu, ABORT_SAVE_MSRS);
    return to_host(cpu);
}

int vmx_nested_transition(struct cpu *cpu)
{
    return cpu->exit.level == EXIT_TO_NESTED_ENTRY ? nested_entry(cpu) : nested_exit(cpu);
}

bool vmx_runs_vmx(const struct cpu *cpu)
{
    return unlikely(cpu->vmx->nested) && vmx_nested_on(cpu) && !cpu->vmx->depth && !cpu->emul;
}

/* ---- what level 0 says and asks ---- */

int cpu_nested_init(struct cpu *cpu, const struct cpu_nested_ops *ops, void *opaque)
{
    struct vmx_nested *n = calloc(1, sizeof(*n));

    if (!n)
        return -1;
    n->ops = ops;
    n->opaque = opaque;
    for (unsigned i = 0; i < NESTED_CAPS; i++)
        vmx_cap_msr(1, MSR_IA32_VMX_BASIC + i, &n->cap[i]);
    cpu->vmx->nested = n;
    return 0;
}

/* INIT, reset, another nested state: nothing is written back. */
void vmx_nested_reset(struct cpu *cpu)
{
    struct vmx_nested *n = cpu->vmx->nested;

    if (!n)
        return;
    cpu->vmx->depth = 0;
    cpu->vmx->level[1] = (struct vmx_level){0};
    n->suspended = n->suspended_in_guest = n->suspended_on = false;
    n->nmi_blocked = false;
    n->moved = true;
}

void cpu_nested_allow(struct cpu *cpu, bool vmx_in_cpuid, uint64_t feature_control)
{
    struct vmx_nested *n = cpu->vmx->nested;

    if (!n)
        return;
    n->allowed = vmx_in_cpuid;
    n->feature_control = feature_control;
}

static bool cap_exists(uint32_t msr)
{
    return msr - MSR_IA32_VMX_BASIC < NESTED_CAPS;
}

int cpu_nested_default_cap(uint32_t msr, uint64_t *value)
{
    return cap_exists(msr) ? vmx_cap_msr(1, msr, value) : -1;
}

int cpu_nested_cap(const struct cpu *cpu, uint32_t msr, uint64_t *value)
{
    if (!cpu->vmx->nested || !cap_exists(msr))
        return -1;
    *value = cpu->vmx->nested->cap[msr - MSR_IA32_VMX_BASIC];
    return 0;
}

int cpu_nested_set_cap(struct cpu *cpu, uint32_t msr, uint64_t value)
{
    if (!cpu->vmx->nested || !cap_exists(msr))
        return -1;
    cpu->vmx->nested->cap[msr - MSR_IA32_VMX_BASIC] = value;
    cpu->vmx->level[1].stale = STALE_ALL;
    return 0;
}

bool cpu_nested_vmxon(const struct cpu *cpu)
{
    return cpu->vmx->level[1].on;
}

bool cpu_nested_in_guest(const struct cpu *cpu)
{
    return cpu->vmx->depth;
}

bool cpu_nested_moved(struct cpu *cpu)
{
    struct vmx_nested *n = cpu->vmx->nested;
    const bool moved = n && n->moved;

    if (unlikely(moved))
        n->moved = false;
    return moved;
}

bool cpu_nested_cr_allowed(const struct cpu *cpu, unsigned cr, uint64_t value)
{
    const struct vmx_unit *vmx = cpu->vmx;
    uint64_t fixed0;

    if (!vmx->level[1].on)
        return true;
    fixed0 = vmx_cap(cpu, 1, cr == 0 ? MSR_IA32_VMX_CR0_FIXED0 : MSR_IA32_VMX_CR4_FIXED0);
    if (cr == 0 && vmx->depth && vmx->level[1].exec2 & CPU2_UNRESTRICTED_GUEST)
        fixed0 &= ~(CR0_PE | CR0_PG);
    return (value & fixed0) == fixed0;
}

unsigned cpu_nested_wants(const struct cpu *cpu)
{
    const struct vmx_level *l = &cpu->vmx->level[1];
    unsigned wants = 0;

    if (!cpu->vmx->depth)
        return 0;
    if (l->pin & PIN_EXT_INTR_EXITING)
        wants |= NESTED_INTR | (l->cur->VM_EXIT_CONTROLS & EXIT_ACK_INTR ? NESTED_INTR_ACK : 0);
    if (l->pin & PIN_NMI_EXITING)
        wants |= NESTED_NMI;
    if (l->pin & PIN_VIRTUAL_NMIS && cpu->vmx->nested->nmi_blocked)
        wants |= NESTED_NMI_BLOCKED;
    return wants;
}

bool cpu_nested_wants_exception(const struct cpu *cpu, unsigned vector, uint32_t error)
{
    const struct event ev = {.vector = (uint8_t)vector, .type = INTR_HARD_EXC, .error = error};

    return cpu->vmx->depth && vmx_exception_exits(cpu, 1, &ev);
}

/* Outside of guest mode the VMCS of level 0 is the truth: into the registers, the exit, and back. */
int cpu_nested_exit(struct cpu *cpu, uint32_t reason, uint64_t qualification, uint32_t intr_info, uint32_t intr_error)
{
    int status;

    if (!cpu->vmx->depth)
        return 0;
    host_enter(cpu);
    vmx_load_state(cpu, 0);
    mem_guest_enter(cpu);
    cpu->delivering.valid = false;
    vmx_exit_at(cpu, 1, NULL, reason, qualification);
    cpu->exit.intr_info = intr_info;
    cpu->exit.intr_error = intr_error;
    status = nested_exit(cpu);
    host_fpu_save(cpu);
    mem_guest_leave(cpu);
    host_leave(cpu);
    atomic_fetch_and_explicit(&cpu->attention, ~(ATT_WINDOW | ATT_STEP | ATT_TIMER), memory_order_relaxed);
    vmx_save_state(cpu, 0);
    return status == CPU_OK ? 0 : -1;
}

void cpu_nested_suspend(struct cpu *cpu, bool suspend)
{
    struct vmx_nested *n = cpu->vmx->nested;

    if (!n || n->suspended == suspend)
        return;
    n->suspended = suspend;
    if (suspend) {
        n->suspended_on = cpu->vmx->level[1].on;
        n->suspended_in_guest = cpu->vmx->depth;
        cpu->vmx->level[1].on = false;
        cpu->vmx->depth = 0;
    } else {
        cpu->vmx->level[1].on = n->suspended_on;
        cpu->vmx->depth = n->suspended_in_guest;
        n->suspended_on = n->suspended_in_guest = false;
    }
    tlb_flush(cpu, TLB_NESTED, 0, 0, 0);
}

/* ---- saved and loaded (KVM_GET_NESTED_STATE, KVM_SET_NESTED_STATE) ---- */

/* The guest that runs is in the register file's VMCS, level 0's. */
static void sync_guest(struct cpu *cpu)
{
    vmx_load_state(cpu, 0);
    vmx_save_state(cpu, 1);
}

void cpu_nested_get(struct cpu *cpu, struct cpu_nested_state *st, uint8_t *vmcs)
{
    const struct vmx_nested *n = cpu->vmx->nested;
    const struct vmx_level *l = &cpu->vmx->level[1];
    const bool on = l->on || (n && n->suspended_on);

    *st = (struct cpu_nested_state){.vmxon = CPU_NESTED_NONE, .vmcs = CPU_NESTED_NONE};
    if (!on)
        return;
    st->vmxon = l->vmxon;
    st->in_guest = cpu->vmx->depth;
    st->smm_vmxon = n->suspended_on;
    st->smm_in_guest = n->suspended_in_guest;
    if (!l->cur)
        return;
    st->vmcs = l->cur_pa;
    if (cpu->vmx->depth)
        sync_guest(cpu);
    if (cpu->vmx->depth && l->pin & PIN_PREEMPTION_TIMER) {
        const uint64_t now = cpu_rdtsc();
        st->timer_deadline = vmx_guest_tsc(cpu) + (l->timer_deadline > now ? l->timer_deadline - now : 0);
    }
    memcpy(vmcs, n->raw, VMCS12_SIZE);
    vmcs12_encode(vmcs, &n->copy);
}

static int enter_saved(struct cpu *cpu, const struct cpu_nested_state *st)
{
    struct vmx_nested *n = cpu->vmx->nested;
    struct vmx_level *l = &cpu->vmx->level[1];
    uint64_t qualification;
    int r = -1;

    if (!st->run_pending) /* it has been injected, and the guest may have gone on */
        n->copy.VM_ENTRY_INTR_INFO_FIELD &= ~(uint64_t)INTR_INFO_VALID;
    host_enter(cpu);
    vmx_load_state(cpu, 0);
    mem_guest_enter(cpu);
    if (vmx_check_controls(cpu, 1) == VMX_OK && !vmx_check_guest(cpu, 1, &qualification)) {
        cpu->vmx->depth = 1;
        vmx_load_state(cpu, 1);
        arrived(cpu, 1);
        if (l->pin & PIN_PREEMPTION_TIMER) {
            const uint64_t now = vmx_guest_tsc(cpu);

            vmx_timer_start(cpu, 1);
            if (st->timer_deadline)
                l->timer_deadline = cpu_rdtsc() + (st->timer_deadline > now ? st->timer_deadline - now : 0);
        }
        r = 0;
    }
    host_fpu_save(cpu);
    mem_guest_leave(cpu);
    host_leave(cpu);
    if (r)
        return r;
    vmx_save_state(cpu, 0);
    if (st->run_pending) {
        struct vmcs *v = cpu->vmx->level[0].cur;

        v->VM_ENTRY_INTR_INFO_FIELD = n->copy.VM_ENTRY_INTR_INFO_FIELD;
        v->VM_ENTRY_EXCEPTION_ERROR_CODE = n->copy.VM_ENTRY_EXCEPTION_ERROR_CODE;
        v->VM_ENTRY_INSTRUCTION_LEN = n->copy.VM_ENTRY_INSTRUCTION_LEN;
    }
    return 0;
}

int cpu_nested_set(struct cpu *cpu, const struct cpu_nested_state *st, const uint8_t *vmcs)
{
    struct vmx_nested *n = cpu->vmx->nested;
    struct vmx_level *l = &cpu->vmx->level[1];

    vmx_nested_reset(cpu);
    tlb_flush(cpu, TLB_NESTED, 0, 0, 0);
    if (st->vmxon == CPU_NESTED_NONE)
        return 0;
    l->on = true;
    l->vmxon = st->vmxon;
    if (st->vmcs != CPU_NESTED_NONE) {
        memcpy(n->raw, vmcs, VMCS12_SIZE);
        vmcs12_decode(&n->copy, n->raw);
        l->cur = &n->copy;
        l->cur_pa = st->vmcs;
        l->stale = STALE_ALL;
    }
    if (st->in_guest && (!l->cur || enter_saved(cpu, st)))
        return -1;
    if (st->smm_vmxon) {
        cpu_nested_suspend(cpu, true);
        n->suspended_in_guest = st->smm_in_guest && l->cur;
        if (st->smm_in_guest && l->cur)
            vmx_take_controls(cpu, 1);
    }
    return 0;
}
