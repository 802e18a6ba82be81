/* SPDX-License-Identifier: MIT
 * vmx_exit.c: recording a VM exit and writing it to the VMCS (SDM 3C, "VM Exits": "Recording VM-Exit Information",
 * "Saving Guest State", "Saving MSRs"). At level 0 the host is this process: there is no host state to load. */
#include "vmx/nested_int.h"

int vmx_exit(struct cpu *cpu, const struct insn *in, uint32_t reason, uint64_t qualification)
{
    cpu->exit = (struct exit_info){.reason = reason, .qualification = qualification, .insn_len = in ? in->len : 0};
    return CPU_VMEXIT;
}

int vmx_exit_ept(struct cpu *cpu, uint32_t reason, uint64_t qualification, gva_t linear, gpa_t gpa)
{
    cpu->exit = (struct exit_info){.reason = reason, .qualification = qualification, .linear = linear, .gpa = gpa};
    return CPU_VMEXIT;
}

int vmx_exit_at(struct cpu *cpu, unsigned level, const struct insn *in, uint32_t reason, uint64_t qualification)
{
    vmx_exit(cpu, in, reason, qualification);
    cpu->exit.level = (uint8_t)level;
    return CPU_VMEXIT;
}

int vmx_triple_fault(struct cpu *cpu)
{
    return vmx_exit_at(cpu, cpu->vmx->depth, NULL, EXIT_REASON_TRIPLE_FAULT, 0);
}

/* ---- guest-state area ---- */

#define FOR_SEGMENTS(X)   \
    X(ES, s->seg[SEG_ES]) \
    X(CS, s->seg[SEG_CS]) \
    X(SS, s->seg[SEG_SS]) \
    X(DS, s->seg[SEG_DS]) X(FS, s->seg[SEG_FS]) X(GS, s->seg[SEG_GS]) X(LDTR, s->ldtr) X(TR, s->tr)

static void load_segments(struct cpu_state *s, const struct vmcs *v)
{
#define LOAD(name, seg)                   \
    seg.sel = v->GUEST_##name##_SELECTOR; \
    seg.base = v->GUEST_##name##_BASE;    \
    seg.limit = v->GUEST_##name##_LIMIT;  \
    seg.attr = v->GUEST_##name##_AR_BYTES;
    FOR_SEGMENTS(LOAD)
#undef LOAD
    s->gdtr.base = v->GUEST_GDTR_BASE;
    s->gdtr.limit = v->GUEST_GDTR_LIMIT;
    s->idtr.base = v->GUEST_IDTR_BASE;
    s->idtr.limit = v->GUEST_IDTR_LIMIT;
}

static void save_segments(const struct cpu_state *s, struct vmcs *v)
{
#define SAVE(name, seg)                   \
    v->GUEST_##name##_SELECTOR = seg.sel; \
    v->GUEST_##name##_BASE = seg.base;    \
    v->GUEST_##name##_LIMIT = seg.limit;  \
    v->GUEST_##name##_AR_BYTES = seg.attr;
    FOR_SEGMENTS(SAVE)
#undef SAVE
    v->GUEST_GDTR_BASE = s->gdtr.base;
    v->GUEST_GDTR_LIMIT = s->gdtr.limit;
    v->GUEST_IDTR_BASE = s->idtr.base;
    v->GUEST_IDTR_LIMIT = s->idtr.limit;
}

static uint64_t dr7_of(const struct vmcs *v)
{
    return (v->GUEST_DR7 & ~0xd000ull) | DR7_FIXED; /* bits 12, 14, 15 are always 0 */
}

static void load_msrs(struct cpu_state *s, const struct vmcs *v)
{
    const uint32_t entry = v->VM_ENTRY_CONTROLS;

    if (entry & ENTRY_LOAD_DEBUG_CONTROLS) {
        s->dr7 = dr7_of(v);
        s->debugctl = v->GUEST_IA32_DEBUGCTL;
    }
    if (entry & ENTRY_LOAD_PAT)
        s->pat = v->GUEST_IA32_PAT;
    if (entry & ENTRY_LOAD_EFER) {
        s->efer = v->GUEST_IA32_EFER;
    } else {
        const uint64_t lma = entry & ENTRY_IA32E_MODE ? EFER_LMA : 0;
        const uint64_t both = s->cr0 & CR0_PG ? EFER_LMA | EFER_LME : EFER_LMA;
        s->efer = (s->efer & ~both) | lma | (s->cr0 & CR0_PG && lma ? EFER_LME : 0);
    }
    s->sysenter_cs = v->GUEST_SYSENTER_CS;
    s->sysenter_esp = v->GUEST_SYSENTER_ESP;
    s->sysenter_eip = v->GUEST_SYSENTER_EIP;
}

static void save_msrs(const struct cpu_state *s, struct vmcs *v)
{
    const uint32_t exit = v->VM_EXIT_CONTROLS;

    if (exit & EXIT_SAVE_DEBUG_CONTROLS) {
        v->GUEST_DR7 = s->dr7;
        v->GUEST_IA32_DEBUGCTL = s->debugctl;
    }
    if (exit & EXIT_SAVE_PAT)
        v->GUEST_IA32_PAT = s->pat;
    if (exit & EXIT_SAVE_EFER)
        v->GUEST_IA32_EFER = s->efer;
    v->VM_ENTRY_CONTROLS = (v->VM_ENTRY_CONTROLS & ~(uint64_t)ENTRY_IA32E_MODE) |
                           (s->efer & EFER_LMA ? ENTRY_IA32E_MODE : 0); /* IA32_VMX_MISC bit 5 */
    v->GUEST_SYSENTER_CS = s->sysenter_cs;
    v->GUEST_SYSENTER_ESP = s->sysenter_esp;
    v->GUEST_SYSENTER_EIP = s->sysenter_eip;
}

/* One level's offset and multiplier on top of what the levels below make of the host's TSC (SDM 3C, "Time-Stamp
 * Counter Offsetting"): ((host * m0 + o0) * m1 + o1) is host * (m0 * m1) + (o0 * m1 + o1). */
static void add_tsc(struct cpu_state *s, const struct vmx_level *l)
{
    const struct vmcs *v = l->cur;

    if (!(l->exec & CPU_USE_TSC_OFFSETTING))
        return;
    if (l->exec2 & CPU2_TSC_SCALING) {
        const uint64_t m = v->TSC_MULTIPLIER;
        const bool negative = (int64_t)s->tsc_offset < 0;
        const uint64_t size = negative ? -s->tsc_offset : s->tsc_offset;
        const uint64_t scaled = (unsigned __int128)size * m >> 48;

        s->tsc_offset = negative ? -scaled : scaled;
        s->tsc_mult = s->tsc_mult ? (unsigned __int128)s->tsc_mult * m >> 48 : m;
    }
    s->tsc_offset += v->TSC_OFFSET;
}

static void select_tsc(struct cpu *cpu)
{
    const struct vmx_level *l = &cpu->vmx->level[0];

    if (likely(!cpu->vmx->depth)) {
        const bool offset = l->exec & CPU_USE_TSC_OFFSETTING;

        cpu->s.tsc_offset = offset ? l->cur->TSC_OFFSET : 0;
        cpu->s.tsc_mult = offset && l->exec2 & CPU2_TSC_SCALING ? l->cur->TSC_MULTIPLIER : 0;
        return;
    }
    cpu->s.tsc_offset = cpu->s.tsc_mult = 0;
    for (unsigned n = 0; n <= cpu->vmx->depth; n++)
        add_tsc(&cpu->s, &cpu->vmx->level[n]);
}

void vmx_take_controls(struct cpu *cpu, unsigned level)
{
    struct vmx_level *l = &cpu->vmx->level[level];
    const struct vmcs *v = l->cur;

    l->pin = v->PIN_BASED_VM_EXEC_CONTROL;
    l->exec = v->CPU_BASED_VM_EXEC_CONTROL;
    l->exec2 = l->exec & CPU_SECONDARY_CONTROLS ? v->SECONDARY_VM_EXEC_CONTROL : 0;
    l->exception_bitmap = v->EXCEPTION_BITMAP;
    l->window = l->exec & (CPU_INTR_WINDOW_EXITING | CPU_NMI_WINDOW_EXITING);
    select_tsc(cpu);
}

void vmx_load_guest_state(struct cpu *cpu)
{
    vmx_load_state(cpu, 0);
}

void vmx_save_guest_state(struct cpu *cpu)
{
    vmx_save_state(cpu, 0);
}

/* What every exit moves */
static void load_position(struct cpu_state *s, const struct vmcs *v)
{
    s->gpr[R_RSP] = v->GUEST_RSP;
    s->rip = v->GUEST_RIP;
    cpu_put_rflags(s, v->GUEST_RFLAGS);
    s->interruptibility = v->GUEST_INTERRUPTIBILITY_INFO;
    s->activity = v->GUEST_ACTIVITY_STATE;
    s->pending_dbg = v->GUEST_PENDING_DBG_EXCEPTIONS;
}

void vmx_load_state(struct cpu *cpu, unsigned level)
{
    struct cpu_state *s = &cpu->s;
    const struct vmcs *v = cpu->vmx->level[level].cur;

    vmx_forget_state(cpu);
    vmx_take_controls(cpu, level);
    s->cr0 = v->GUEST_CR0 | CR0_ET;
    s->cr3 = v->GUEST_CR3;
    s->cr4 = v->GUEST_CR4;
    load_segments(s, v);
    load_msrs(s, v);
    load_position(s, v);
    s->pdpte[0] = v->GUEST_PDPTR0; /* looked at with PAE paging only */
    s->pdpte[1] = v->GUEST_PDPTR1;
    s->pdpte[2] = v->GUEST_PDPTR2;
    s->pdpte[3] = v->GUEST_PDPTR3;
    cpu_mode_changed(cpu);
}

#define STALE_MODE (STALE_CONTROLS | STALE_CR | STALE_SEG | STALE_TABLES | STALE_PDPTE) /* loaded as a whole */

void vmx_refresh_state(struct cpu *cpu, uint32_t stale)
{
    struct cpu_state *s = &cpu->s;
    const struct vmx_level *l = &cpu->vmx->level[0];
    const uint64_t deriving = F_VM | F_AC;

    if (l->mirror != s->xcr0 || stale & STALE_MODE || (s->rflags_sys ^ l->cur->GUEST_RFLAGS) & deriving)
        vmx_load_state(cpu, 0);
    else
        load_position(s, l->cur);
}

/* What an exit need not save is what an entry would load; PDPTEs and level 1's state have writers of their own. */
static void mirror_state(struct cpu *cpu)
{
    const struct cpu_state *s = &cpu->s;
    struct vmx_level *l = &cpu->vmx->level[0];
    const struct vmcs *v = l->cur;
    const bool same = (v->VM_EXIT_CONTROLS & EXIT_SAVE_DEBUG_CONTROLS ||
                       (s->dr7 == dr7_of(v) && s->debugctl == v->GUEST_IA32_DEBUGCTL)) &&
                      s->pat == v->GUEST_IA32_PAT && s->efer == v->GUEST_IA32_EFER;

    l->mirror = same && !cpu->vmx->nested && s->paging != PAGING_PAE ? s->xcr0 : 0;
}

void vmx_forget_state(struct cpu *cpu)
{
    cpu->vmx->level[0].mirror = 0;
}

/* Level 0 did not see the transitions of level 1: what it otherwise writes itself (EFER, PAT) is saved for it. Its
 * masks are not for the guest of level 1, whose CR0 and CR4 are all of level 1's making: what it shows of them follows.
 */
static void show_nested(struct cpu *cpu)
{
    struct vmcs *v = cpu->vmx->level[0].cur;

    v->GUEST_IA32_EFER = cpu->s.efer;
    v->GUEST_IA32_PAT = cpu->s.pat;
    if (!cpu->vmx->depth || (v->CR0_READ_SHADOW == cpu->s.cr0 && v->CR4_READ_SHADOW == cpu->s.cr4))
        return;
    v->CR0_READ_SHADOW = cpu->s.cr0;
    v->CR4_READ_SHADOW = cpu->s.cr4;
    cpu->vmx->nested->moved = true;
}

void vmx_save_state(struct cpu *cpu, unsigned level)
{
    const struct cpu_state *s = &cpu->s;
    struct vmcs *v = cpu->vmx->level[level].cur;

    if (unlikely(cpu->vmx->nested) && !level)
        show_nested(cpu);
    v->GUEST_CR0 = s->cr0;
    v->GUEST_CR3 = s->cr3;
    v->GUEST_CR4 = s->cr4;
    save_segments(s, v);
    save_msrs(s, v);
    v->GUEST_RSP = s->gpr[R_RSP];
    v->GUEST_RIP = s->rip;
    v->GUEST_RFLAGS = cpu_get_rflags(s);
    v->GUEST_INTERRUPTIBILITY_INFO = s->interruptibility;
    v->GUEST_ACTIVITY_STATE = s->activity;
    v->GUEST_PENDING_DBG_EXCEPTIONS = s->pending_dbg;
    if (s->paging == PAGING_PAE) {
        v->GUEST_PDPTR0 = s->pdpte[0];
        v->GUEST_PDPTR1 = s->pdpte[1];
        v->GUEST_PDPTR2 = s->pdpte[2];
        v->GUEST_PDPTR3 = s->pdpte[3];
    }
}

/* ---- exit information ---- */

/* The exit happened while an event was on its way through the IDT (SDM 3C, "Information for VM Exits That Occur During
 * Event Delivery"); a double or triple fault that ends the guest's run does not count. */
static bool during_delivery(const struct cpu *cpu)
{
    const struct exit_info *x = &cpu->exit;

    if (!cpu->delivering.valid || x->reason == EXIT_REASON_TRIPLE_FAULT)
        return false;
    return x->reason != EXIT_REASON_EXCEPTION_NMI || (x->intr_info & INTR_INFO_VECTOR) != VEC_DF ||
           (x->intr_info & INTR_INFO_TYPE) >> 8 != INTR_HARD_EXC;
}

static bool soft_event(unsigned type)
{
    return type == INTR_SOFT_INT || type == INTR_PRIV_SW_EXC || type == INTR_SOFT_EXC;
}

static void save_delivery(struct cpu *cpu, struct vmcs *v)
{
    const struct event *ev = &cpu->delivering;

    if (likely(!during_delivery(cpu))) {
        v->IDT_VECTORING_INFO_FIELD = 0;
        return;
    }
    v->IDT_VECTORING_INFO_FIELD =
        INTR_INFO_VALID | (uint32_t)ev->type << 8 | ev->vector | (ev->has_error ? INTR_INFO_ERROR_CODE : 0);
    v->IDT_VECTORING_ERROR_CODE = ev->has_error ? ev->error : 0;
    if (soft_event(ev->type))
        cpu->exit.insn_len = ev->insn_len;
}

static bool fault_like(uint32_t intr_info, uint64_t qualification)
{
    const unsigned vector = intr_info & INTR_INFO_VECTOR;

    if ((intr_info & INTR_INFO_TYPE) >> 8 != INTR_HARD_EXC)
        return false;
    return vector != VEC_DF && (vector != VEC_DB || !(qualification & (DR6_BS | DR6_BT | 0xf)));
}

/* RF as saved (SDM 3C, "Saving RIP, RSP, RFLAGS, and SSP"). */
static void save_rf(struct cpu *cpu, struct vmcs *v)
{
    const struct exit_info *x = &cpu->exit;
    bool rf = v->GUEST_RFLAGS & F_RF;

    switch (x->reason) {
    case EXIT_REASON_EXCEPTION_NMI:
        rf |= fault_like(x->intr_info, x->qualification);
        break;
    case EXIT_REASON_EPT_VIOLATION:
    case EXIT_REASON_EPT_MISCONFIG:
        rf |= !during_delivery(cpu) || cpu->delivering.type == INTR_HARD_EXC;
        break;
    case EXIT_REASON_EXTERNAL_INTERRUPT:
    case EXIT_REASON_TRIPLE_FAULT:
    case EXIT_REASON_INTERRUPT_WINDOW:
    case EXIT_REASON_NMI_WINDOW:
    case EXIT_REASON_PREEMPTION_TIMER:
    case EXIT_REASON_MONITOR_TRAP_FLAG:
    case EXIT_REASON_TASK_SWITCH:
    case EXIT_REASON_TPR_BELOW_THRESHOLD:
        break;
    default: /* an instruction that caused it */
        rf = false;
    }
    v->GUEST_RFLAGS = (v->GUEST_RFLAGS & ~F_RF) | (rf ? F_RF : 0);
}

static void save_information(struct cpu *cpu, struct vmcs *v)
{
    const struct exit_info *x = &cpu->exit;

    save_delivery(cpu, v);
    if (unlikely(cpu->nmi_unblocked) && x->reason == EXIT_REASON_EPT_VIOLATION)
        cpu->exit.qualification |= EPTQ_NMI_UNBLOCK; /* known only when IRET is over: not in vmx_exit_ept() */
    v->VM_EXIT_REASON = x->reason;
    v->EXIT_QUALIFICATION = x->qualification;
    v->VM_EXIT_INTR_INFO = x->intr_info;
    v->VM_EXIT_INTR_ERROR_CODE = x->intr_error;
    v->VM_EXIT_INSTRUCTION_LEN = x->insn_len;
    v->VMX_INSTRUCTION_INFO = x->insn_info;
    v->GUEST_LINEAR_ADDRESS = x->linear;
    v->GUEST_PHYSICAL_ADDRESS = x->gpa;
    v->EXIT_IO_RCX = x->io_rcx;
    v->EXIT_IO_RSI = x->io_rsi;
    v->EXIT_IO_RDI = x->io_rdi;
    v->EXIT_IO_RIP = x->io_rip;
}

/* A timer that ran out stays at 0, whatever other exit came first. */
static void save_timer(const struct vmx_level *l, struct vmcs *v)
{
    const uint64_t now = cpu_rdtsc();

    v->VMX_PREEMPTION_TIMER_VALUE = now >= l->timer_deadline ? 0 : (l->timer_deadline - now) >> VMX_TIMER_SHIFT;
}

void vmx_exit_commit(struct cpu *cpu, unsigned level, bool failed_entry)
{
    struct vmcs *v = cpu->vmx->level[level].cur;

    save_information(cpu, v);
    if (!failed_entry) {
        v->VM_ENTRY_INTR_INFO_FIELD &= ~(uint64_t)INTR_INFO_VALID;
        vmx_save_state(cpu, level);
        if (!level)
            mirror_state(cpu);
        save_rf(cpu, v);
        if (v->VM_EXIT_CONTROLS & EXIT_SAVE_PREEMPTION_TIMER)
            save_timer(&cpu->vmx->level[level], v);
    }
    cpu->delivering.valid = false;
    cpu->nmi_unblocked = false;
    cpu->counters[CC_exits]++;
    vmx_trace_exit(cpu, level);
}

bool vmx_stopped_by_access(const struct cpu *cpu, gva_t rip, gpa_t gpa)
{
    const struct vmcs *v = cpu->vmx->level[0].cur;

    return v->VM_EXIT_REASON == EXIT_REASON_EPT_VIOLATION && v->GUEST_RIP == rip && v->GUEST_PHYSICAL_ADDRESS == gpa &&
           !(v->IDT_VECTORING_INFO_FIELD & INTR_INFO_VALID);
}

void vmx_retire(struct cpu *cpu, gva_t next_rip)
{
    struct vmcs *v = cpu->vmx->level[0].cur;

    v->GUEST_RIP = next_rip;
    v->GUEST_RFLAGS &= ~F_RF;
    v->GUEST_INTERRUPTIBILITY_INFO &= ~(uint64_t)(INTR_BLOCK_STI | INTR_BLOCK_MOVSS);
}
