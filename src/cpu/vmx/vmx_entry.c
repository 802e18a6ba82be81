/* SPDX-License-Identifier: MIT
 * vmx_entry.c: what VM entry checks (SDM 3C, "Checks on VMX Controls and Host-State Area", "Checking and Loading Guest
 * State"). A check is one line; when it fails, its own text goes to vmx->failed_check and the trace. Groups that no
 * VMWRITE has touched since they passed are skipped: what the processor saved itself needs no check. */
#include "vmx/vmx_unit.h"

#define REQUIRE(condition)          \
    do {                            \
        if (unlikely(!(condition))) \
            return #condition;      \
    } while (0)

#define MSR_LIST_MAX     512u /* IA32_VMX_MISC 27:25 = 0 */
#define CR3_TARGETS_MAX  4u
#define EFER_KNOWN       (EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | EFER_AIBRS | (1ull << 12) | (1ull << 13) | (1ull << 14))
#define DEBUGCTL_KNOWN   0x3ull /* LBR, BTF */
#define VIRTUAL_APIC_TPR 0x80u
#define LINK_NONE        ~0ull

/* Whose VMCS is looked at, and by which rules. */
struct check {
    struct cpu *cpu;
    unsigned level;
    struct vmcs *v;
    uint64_t limit;               /* physical addresses are below */
    uint64_t cr4_fixed1, efer_ok; /* bits that CR4 and EFER may have */
};

static struct check check_of(struct cpu *cpu, unsigned level)
{
    const uint64_t fixed1 = vmx_cap(cpu, level, MSR_IA32_VMX_CR4_FIXED1);

    return (struct check){
        .cpu = cpu,
        .level = level,
        .v = cpu->vmx->level[level].cur,
        .limit = vmx_phys_limit(cpu, level),
        .cr4_fixed1 = level ? fixed1 & (cpu->guest_cr4_valid | CR4_VMXE) : fixed1,
        .efer_ok = level ? (cpu->guest_efer_valid & EFER_KNOWN) | EFER_LMA : EFER_KNOWN,
    };
}

static bool page_ok(const struct check *c, uint64_t pa)
{
    return !(pa & ~PAGE_MASK) && pa < c->limit;
}

static bool controls_ok(const struct check *c, uint64_t value, uint32_t msr)
{
    const uint64_t cap = vmx_cap(c->cpu, c->level, msr);
    const uint32_t must = (uint32_t)cap, may = cap >> 32;

    return ((uint32_t)value & must) == must && !((uint32_t)value & ~may);
}

static bool msr_list_ok(const struct check *c, uint64_t pa, uint64_t count)
{
    return !count || (count <= MSR_LIST_MAX && !(pa & 15) && pa < c->limit && pa + count * 16 <= c->limit);
}

static bool pat_ok(uint64_t pat)
{
    for (unsigned i = 0; i < 8; i++) {
        const unsigned type = pat >> (8 * i) & 0xff;
        if (type > 7 || type == 2 || type == 3)
            return false;
    }
    return true;
}

static uint32_t exec2_of(const struct vmcs *v)
{
    return v->CPU_BASED_VM_EXEC_CONTROL & CPU_SECONDARY_CONTROLS ? (uint32_t)v->SECONDARY_VM_EXEC_CONTROL : 0;
}

static bool tpr_at_threshold(const struct check *c)
{
    const struct vmcs *v = c->v;
    uint8_t tpr = 0xff;

    vmx_phys_read(c->cpu, c->level, v->VIRTUAL_APIC_PAGE_ADDR + VIRTUAL_APIC_TPR, &tpr, 1);
    return (v->TPR_THRESHOLD & 15) <= tpr >> 4;
}

/* SDM 3C, "VM-Execution Control Fields" */
static const char *check_execution(const struct check *c)
{
    const struct vmcs *v = c->v;
    const uint32_t pin = v->PIN_BASED_VM_EXEC_CONTROL, exec = v->CPU_BASED_VM_EXEC_CONTROL, exec2 = exec2_of(v);

    REQUIRE(controls_ok(c, pin, MSR_IA32_VMX_TRUE_PINBASED_CTLS));
    REQUIRE(controls_ok(c, exec, MSR_IA32_VMX_TRUE_PROCBASED_CTLS));
    REQUIRE(controls_ok(c, exec2, MSR_IA32_VMX_PROCBASED_CTLS2));
    REQUIRE(v->CR3_TARGET_COUNT <= CR3_TARGETS_MAX);
    REQUIRE(!(exec & CPU_USE_IO_BITMAPS) || page_ok(c, v->IO_BITMAP_A));
    REQUIRE(!(exec & CPU_USE_IO_BITMAPS) || page_ok(c, v->IO_BITMAP_B));
    REQUIRE(!(exec & CPU_USE_MSR_BITMAPS) || page_ok(c, v->MSR_BITMAP));
    REQUIRE(!(exec & CPU_TPR_SHADOW) || (page_ok(c, v->VIRTUAL_APIC_PAGE_ADDR) && v->VIRTUAL_APIC_PAGE_ADDR));
    REQUIRE(!(exec & CPU_TPR_SHADOW) || !(v->TPR_THRESHOLD & ~15ull));
    REQUIRE(!(pin & PIN_VIRTUAL_NMIS) || pin & PIN_NMI_EXITING);
    REQUIRE(!(exec & CPU_NMI_WINDOW_EXITING) || pin & PIN_VIRTUAL_NMIS);
    REQUIRE(!(exec2 & CPU2_ENABLE_VPID) || v->VIRTUAL_PROCESSOR_ID != 0);
    REQUIRE(!(exec2 & CPU2_ENABLE_EPT) || (v->EPT_POINTER & 7) == EPTP_WB || (v->EPT_POINTER & 7) == 0);
    REQUIRE(!(exec2 & CPU2_ENABLE_EPT) || (v->EPT_POINTER & (7 << 3)) == EPTP_WALK4);
    REQUIRE(!(exec2 & CPU2_ENABLE_EPT) || !(v->EPT_POINTER & 0xf80));
    REQUIRE(!(exec2 & CPU2_ENABLE_EPT) || v->EPT_POINTER < c->limit);
    REQUIRE(!(exec2 & CPU2_UNRESTRICTED_GUEST) || exec2 & CPU2_ENABLE_EPT);
    return NULL;
}

/* SDM 3C, "VM-Exit Control Fields", "VM-Entry Control Fields" */
static const char *check_exit_entry(const struct check *c)
{
    const struct vmcs *v = c->v;

    REQUIRE(controls_ok(c, v->VM_EXIT_CONTROLS, MSR_IA32_VMX_TRUE_EXIT_CTLS));
    REQUIRE(!(v->VM_EXIT_CONTROLS & EXIT_SAVE_PREEMPTION_TIMER) || v->PIN_BASED_VM_EXEC_CONTROL & PIN_PREEMPTION_TIMER);
    REQUIRE(msr_list_ok(c, v->VM_EXIT_MSR_STORE_ADDR, v->VM_EXIT_MSR_STORE_COUNT));
    REQUIRE(msr_list_ok(c, v->VM_EXIT_MSR_LOAD_ADDR, v->VM_EXIT_MSR_LOAD_COUNT));
    REQUIRE(controls_ok(c, v->VM_ENTRY_CONTROLS, MSR_IA32_VMX_TRUE_ENTRY_CTLS));
    REQUIRE(msr_list_ok(c, v->VM_ENTRY_MSR_LOAD_ADDR, v->VM_ENTRY_MSR_LOAD_COUNT));
    return NULL;
}

static bool vector_has_error(unsigned vector)
{
    return vector < 32 && (1u << vector & (1u << VEC_DF | 1u << VEC_TS | 1u << VEC_NP | 1u << VEC_SS | 1u << VEC_GP |
                                           1u << VEC_PF | 1u << VEC_AC));
}

/* SDM 3C, "VM-Entry Control Fields": the entry interruption information when it is valid */
static const char *check_injection(const struct vmcs *v)
{
    const uint32_t info = v->VM_ENTRY_INTR_INFO_FIELD, vector = info & INTR_INFO_VECTOR;
    const uint32_t type = (info & INTR_INFO_TYPE) >> 8;
    const bool protected = !(exec2_of(v) & CPU2_UNRESTRICTED_GUEST) || v->GUEST_CR0 & CR0_PE;

    REQUIRE(type != 1);
    REQUIRE(type != INTR_NMI || vector == VEC_NMI);
    REQUIRE(type != INTR_HARD_EXC || vector < 32);
    REQUIRE(type != INTR_OTHER || vector == 0);
    REQUIRE(!!(info & INTR_INFO_ERROR_CODE) == (type == INTR_HARD_EXC && vector_has_error(vector) && protected));
    REQUIRE(!(info & 0x7ffff000));
    REQUIRE(!(info & INTR_INFO_ERROR_CODE) || !(v->VM_ENTRY_EXCEPTION_ERROR_CODE & 0xffff0000));
    REQUIRE(type < INTR_SOFT_INT || type > INTR_SOFT_EXC || v->VM_ENTRY_INSTRUCTION_LEN <= 15);
    return NULL;
}

/* SDM 3C, "Checks on Host Control Registers, MSRs, and SSP", "... Segment and Descriptor-Table Registers",
 * "Checks Related to Address-Space Size". The host of level 0 is this process: always in 64-bit mode. */
static const char *check_host(const struct check *c)
{
    const struct vmcs *v = c->v;
    const uint32_t exit = v->VM_EXIT_CONTROLS;
    const uint64_t fixed = CR0_PE | CR0_NE | CR0_PG;
    const bool long64 = exit & EXIT_HOST_ADDR_SPACE_SIZE;

    REQUIRE((v->HOST_CR0 & fixed) == fixed && !(v->HOST_CR0 >> 32));
    REQUIRE(v->HOST_CR4 & CR4_VMXE && !(v->HOST_CR4 & ~c->cr4_fixed1));
    REQUIRE(c->level ? v->HOST_CR3 < c->limit : !(v->HOST_CR3 >> 52));
    REQUIRE(cpu_canonical(v->HOST_IA32_SYSENTER_ESP));
    REQUIRE(cpu_canonical(v->HOST_IA32_SYSENTER_EIP));
    REQUIRE(!(exit & EXIT_LOAD_PAT) || pat_ok(v->HOST_IA32_PAT));
    REQUIRE(!(exit & EXIT_LOAD_EFER) || !(v->HOST_IA32_EFER & ~c->efer_ok));
    REQUIRE(!(exit & EXIT_LOAD_EFER) || !!(v->HOST_IA32_EFER & EFER_LMA) == long64);
    REQUIRE(!(exit & EXIT_LOAD_EFER) || !!(v->HOST_IA32_EFER & EFER_LME) == long64);
    REQUIRE(!((v->HOST_ES_SELECTOR | v->HOST_CS_SELECTOR | v->HOST_SS_SELECTOR | v->HOST_DS_SELECTOR |
               v->HOST_FS_SELECTOR | v->HOST_GS_SELECTOR | v->HOST_TR_SELECTOR) &
              7));
    REQUIRE(v->HOST_CS_SELECTOR != 0);
    REQUIRE(v->HOST_TR_SELECTOR != 0);
    REQUIRE(long64 || v->HOST_SS_SELECTOR != 0);
    REQUIRE(cpu_canonical(v->HOST_FS_BASE));
    REQUIRE(cpu_canonical(v->HOST_GS_BASE));
    REQUIRE(cpu_canonical(v->HOST_GDTR_BASE));
    REQUIRE(cpu_canonical(v->HOST_IDTR_BASE));
    REQUIRE(cpu_canonical(v->HOST_TR_BASE));
    REQUIRE(!!(exit & EXIT_HOST_ADDR_SPACE_SIZE) == (!c->level || c->cpu->s.efer & EFER_LMA));
    REQUIRE(long64 || !(v->VM_ENTRY_CONTROLS & ENTRY_IA32E_MODE));
    REQUIRE(long64 || (!(v->HOST_CR4 & CR4_PCIDE) && !(v->HOST_RIP >> 32)));
    REQUIRE(!long64 || v->HOST_CR4 & CR4_PAE);
    REQUIRE(cpu_canonical(v->HOST_RIP));
    return NULL;
}

static enum vmx_result fail_check(const struct check *c, const char *text, enum vmx_error error)
{
    c->cpu->vmx->failed_check = text;
    vmx_trace_failed_check(c->cpu, text);
    return vmx_fail(c->cpu, c->level, error);
}

static bool nothing_to_check(const struct vmx_level *l)
{
    const struct vmcs *v = l->cur;

    return !(l->stale & (STALE_CONTROLS | STALE_HOST)) && !(v->CPU_BASED_VM_EXEC_CONTROL & CPU_TPR_SHADOW) &&
           !(v->VM_ENTRY_INTR_INFO_FIELD & INTR_INFO_VALID);
}

enum vmx_result vmx_check_controls(struct cpu *cpu, unsigned level)
{
    if (likely(!level && nothing_to_check(&cpu->vmx->level[0])))
        return VMX_OK;

    const struct check c = check_of(cpu, level);
    const uint32_t stale = cpu->vmx->level[level].stale;
    const struct vmcs *v = c.v;
    const char *text;

    if (stale & STALE_CONTROLS && ((text = check_execution(&c)) || (text = check_exit_entry(&c))))
        return fail_check(&c, text, VMXERR_BAD_CONTROLS);
    if (v->CPU_BASED_VM_EXEC_CONTROL & CPU_TPR_SHADOW && !tpr_at_threshold(&c)) /* looks at memory: each time */
        return fail_check(&c, "tpr_at_threshold(&c)", VMXERR_BAD_CONTROLS);
    if (v->VM_ENTRY_INTR_INFO_FIELD & INTR_INFO_VALID && (text = check_injection(v)))
        return fail_check(&c, text, VMXERR_BAD_CONTROLS);
    if ((stale & (STALE_HOST | STALE_CONTROLS) || level) &&
        (text = check_host(&c))) /* level 1's own mode is looked at */
        return fail_check(&c, text, VMXERR_BAD_HOST_STATE);
    return VMX_OK;
}

/* ---- guest state ---- */

struct guest_view { /* what several guest checks ask for */
    bool unrestricted, ept, ia32e, pe, pg, v86;
    uint32_t entry, inject; /* entry controls; interruption information or 0 */
    unsigned inject_type;
};

static struct guest_view view_of(const struct vmcs *v)
{
    const uint32_t exec2 = exec2_of(v), info = v->VM_ENTRY_INTR_INFO_FIELD;

    return (struct guest_view){
        .unrestricted = exec2 & CPU2_UNRESTRICTED_GUEST,
        .ept = exec2 & CPU2_ENABLE_EPT,
        .entry = v->VM_ENTRY_CONTROLS,
        .ia32e = v->VM_ENTRY_CONTROLS & ENTRY_IA32E_MODE,
        .pe = v->GUEST_CR0 & CR0_PE,
        .pg = v->GUEST_CR0 & CR0_PG,
        .v86 = v->GUEST_RFLAGS & F_VM,
        .inject = info & INTR_INFO_VALID ? info : 0,
        .inject_type = info & INTR_INFO_VALID ? (info & INTR_INFO_TYPE) >> 8 : ~0u,
    };
}

/* SDM 3C, "Checks on Guest Control Registers, Debug Registers, and MSRs" */
static const char *check_cr(const struct check *c, const struct guest_view *g)
{
    const struct vmcs *v = c->v;
    const uint64_t fixed = g->unrestricted ? CR0_NE : CR0_PE | CR0_NE | CR0_PG;

    REQUIRE((v->GUEST_CR0 & fixed) == fixed && !(v->GUEST_CR0 >> 32));
    REQUIRE(!g->pg || g->pe);
    REQUIRE(v->GUEST_CR4 & CR4_VMXE && !(v->GUEST_CR4 & ~c->cr4_fixed1));
    REQUIRE(!(g->entry & ENTRY_LOAD_DEBUG_CONTROLS) || !(v->GUEST_IA32_DEBUGCTL & ~DEBUGCTL_KNOWN));
    REQUIRE(!g->ia32e || (g->pg && v->GUEST_CR4 & CR4_PAE));
    REQUIRE(g->ia32e || !(v->GUEST_CR4 & CR4_PCIDE));
    REQUIRE(c->level ? v->GUEST_CR3 < c->limit : !(v->GUEST_CR3 >> 52));
    REQUIRE(!(g->entry & ENTRY_LOAD_DEBUG_CONTROLS) || !(v->GUEST_DR7 >> 32));
    REQUIRE(cpu_canonical(v->GUEST_SYSENTER_ESP));
    REQUIRE(cpu_canonical(v->GUEST_SYSENTER_EIP));
    REQUIRE(!(g->entry & ENTRY_LOAD_PAT) || pat_ok(v->GUEST_IA32_PAT));
    REQUIRE(!(g->entry & ENTRY_LOAD_EFER) || !(v->GUEST_IA32_EFER & ~c->efer_ok));
    REQUIRE(!(g->entry & ENTRY_LOAD_EFER) || !!(v->GUEST_IA32_EFER & EFER_LMA) == g->ia32e);
    REQUIRE(!(g->entry & ENTRY_LOAD_EFER) || !g->pg || !!(v->GUEST_IA32_EFER & EFER_LME) == g->ia32e);
    return NULL;
}

static bool granularity_ok(uint64_t limit, uint64_t ar)
{
    return ((limit & 0xfff) == 0xfff || !(ar & AR_G)) && (!(limit >> 20) || ar & AR_G);
}

static bool usable(uint64_t ar)
{
    return !(ar & AR_UNUSABLE);
}

static const char *check_seg_v86(uint64_t sel, uint64_t base, uint64_t limit, uint64_t ar)
{
    REQUIRE(base == sel << 4);
    REQUIRE(limit == 0xffff);
    REQUIRE(ar == 0xf3);
    return NULL;
}

static const char *check_cs(const struct vmcs *v, const struct guest_view *g)
{
    const uint64_t ar = v->GUEST_CS_AR_BYTES, type = AR_TYPE(ar), dpl = AR_DPL(ar),
                   ss_dpl = AR_DPL(v->GUEST_SS_AR_BYTES);

    REQUIRE(!(v->GUEST_CS_BASE >> 32));
    REQUIRE(type == 9 || type == 11 || type == 13 || type == 15 || (type == 3 && g->unrestricted));
    REQUIRE(ar & AR_S);
    REQUIRE(type != 3 || dpl == 0);
    REQUIRE((type != 9 && type != 11) || dpl == ss_dpl);
    REQUIRE((type != 13 && type != 15) || dpl <= ss_dpl);
    REQUIRE(ar & AR_P);
    REQUIRE(!(ar & 0xfffe0f00));
    REQUIRE(!g->ia32e || !(ar & AR_L) || !(ar & AR_DB));
    REQUIRE(granularity_ok(v->GUEST_CS_LIMIT, ar));
    return NULL;
}

static const char *check_ss(const struct vmcs *v, const struct guest_view *g)
{
    const uint64_t ar = v->GUEST_SS_AR_BYTES, rpl = v->GUEST_SS_SELECTOR & 3;

    REQUIRE(g->unrestricted || rpl == (v->GUEST_CS_SELECTOR & 3));
    REQUIRE(g->unrestricted || AR_DPL(ar) == rpl);
    REQUIRE((AR_TYPE(v->GUEST_CS_AR_BYTES) != 3 && g->pe) || AR_DPL(ar) == 0);
    REQUIRE(!(ar & 0xfffe0000));
    if (!usable(ar))
        return NULL;
    REQUIRE(!(v->GUEST_SS_BASE >> 32));
    REQUIRE(AR_TYPE(ar) == 3 || AR_TYPE(ar) == 7);
    REQUIRE(ar & AR_S);
    REQUIRE(ar & AR_P);
    REQUIRE(!(ar & 0xf00));
    REQUIRE(granularity_ok(v->GUEST_SS_LIMIT, ar));
    return NULL;
}

static const char *check_data_seg(const struct guest_view *g, uint64_t sel, uint64_t base, uint64_t limit, uint64_t ar,
                                  bool base32)
{
    const uint64_t type = AR_TYPE(ar);

    REQUIRE(!(ar & 0xfffe0000));
    REQUIRE(base32 || cpu_canonical(base)); /* FS, GS: also when unusable */
    if (!usable(ar))
        return NULL;
    REQUIRE(!base32 || !(base >> 32));
    REQUIRE(type & 1);
    REQUIRE(!(type & 8) || type & 2);
    REQUIRE(ar & AR_S);
    REQUIRE(g->unrestricted || type > 11 || AR_DPL(ar) >= (sel & 3));
    REQUIRE(ar & AR_P);
    REQUIRE(!(ar & 0xf00));
    REQUIRE(granularity_ok(limit, ar));
    return NULL;
}

static const char *check_tr_ldtr(const struct vmcs *v, const struct guest_view *g)
{
    const uint64_t tr = v->GUEST_TR_AR_BYTES, ldtr = v->GUEST_LDTR_AR_BYTES;

    REQUIRE(!(v->GUEST_TR_SELECTOR & 4));
    REQUIRE(cpu_canonical(v->GUEST_TR_BASE));
    REQUIRE(AR_TYPE(tr) == 11 || (AR_TYPE(tr) == 3 && !g->ia32e));
    REQUIRE(!(tr & AR_S));
    REQUIRE(tr & AR_P);
    REQUIRE(!(tr & 0xffff0f00)); /* unusable (bit 16) among them */
    REQUIRE(granularity_ok(v->GUEST_TR_LIMIT, tr));
    if (!usable(ldtr))
        return NULL;
    REQUIRE(!(v->GUEST_LDTR_SELECTOR & 4));
    REQUIRE(cpu_canonical(v->GUEST_LDTR_BASE));
    REQUIRE(AR_TYPE(ldtr) == 2);
    REQUIRE(!(ldtr & AR_S));
    REQUIRE(ldtr & AR_P);
    REQUIRE(!(ldtr & 0xfffe0f00));
    REQUIRE(granularity_ok(v->GUEST_LDTR_LIMIT, ldtr));
    return NULL;
}

/* SDM 3C, "Checks on Guest Segment Registers" */
static const char *check_segments(const struct vmcs *v, const struct guest_view *g)
{
    const char *text;

#define SEG(name) \
    v->GUEST_##name##_SELECTOR, v->GUEST_##name##_BASE, v->GUEST_##name##_LIMIT, v->GUEST_##name##_AR_BYTES
    if (g->v86) {
        if ((text = check_seg_v86(SEG(ES))) || (text = check_seg_v86(SEG(CS))) || (text = check_seg_v86(SEG(SS))) ||
            (text = check_seg_v86(SEG(DS))) || (text = check_seg_v86(SEG(FS))) || (text = check_seg_v86(SEG(GS))))
            return text;
        return check_tr_ldtr(v, g);
    }
    if ((text = check_cs(v, g)) || (text = check_ss(v, g)) || (text = check_data_seg(g, SEG(DS), true)) ||
        (text = check_data_seg(g, SEG(ES), true)) || (text = check_data_seg(g, SEG(FS), false)) ||
        (text = check_data_seg(g, SEG(GS), false)))
        return text;
#undef SEG
    return check_tr_ldtr(v, g);
}

/* SDM 3C, "Checks on Guest Descriptor-Table Registers" */
static const char *check_tables(const struct vmcs *v)
{
    REQUIRE(cpu_canonical(v->GUEST_GDTR_BASE));
    REQUIRE(cpu_canonical(v->GUEST_IDTR_BASE));
    REQUIRE(!(v->GUEST_GDTR_LIMIT >> 16));
    REQUIRE(!(v->GUEST_IDTR_LIMIT >> 16));
    return NULL;
}

/* SDM 3C, "Checks on Guest RIP, RFLAGS, and SSP" */
static const char *check_rip(const struct vmcs *v, const struct guest_view *g)
{
    const bool long64 = g->ia32e && v->GUEST_CS_AR_BYTES & AR_L;
    const uint64_t high = v->GUEST_RIP >> 48;

    REQUIRE(long64 || !(v->GUEST_RIP >> 32));
    REQUIRE(high == 0 || high == 0xffff); /* bit 47 itself is not looked at: a jump there faults in the guest */
    return NULL;
}

static const char *check_rflags(const struct vmcs *v, const struct guest_view *g)
{
    REQUIRE(!(v->GUEST_RFLAGS & ~0x3f7fd7ull));
    REQUIRE(v->GUEST_RFLAGS & F_RESERVED);
    REQUIRE(!(v->GUEST_RFLAGS & F_VM) || (!g->ia32e && g->pe));
    REQUIRE(g->inject_type != INTR_EXT || v->GUEST_RFLAGS & F_IF);
    return NULL;
}

static bool activity_takes(const struct vmcs *v, const struct guest_view *g)
{
    const unsigned vector = g->inject & INTR_INFO_VECTOR;

    if (!g->inject || v->GUEST_ACTIVITY_STATE == ACTIVITY_ACTIVE)
        return true;
    return g->inject_type == INTR_EXT || g->inject_type == INTR_NMI || g->inject_type == INTR_OTHER ||
           (g->inject_type == INTR_HARD_EXC && (vector == VEC_DB || vector == VEC_MC)); /* HLT */
}

/* SDM 3C, "Checks on Guest Non-Register State" */
static const char *check_nonreg(const struct vmcs *v, const struct guest_view *g)
{
    const uint64_t intr = v->GUEST_INTERRUPTIBILITY_INFO, activity = v->GUEST_ACTIVITY_STATE;
    const uint64_t pending = v->GUEST_PENDING_DBG_EXCEPTIONS, rflags = v->GUEST_RFLAGS;
    const bool shadow = intr & (INTR_BLOCK_STI | INTR_BLOCK_MOVSS), btf = v->GUEST_IA32_DEBUGCTL & 2;

    REQUIRE(activity <= ACTIVITY_HLT); /* the others are not offered: IA32_VMX_MISC */
    REQUIRE(activity != ACTIVITY_HLT || AR_DPL(v->GUEST_SS_AR_BYTES) == 0);
    REQUIRE(activity == ACTIVITY_ACTIVE || !shadow);
    REQUIRE(activity_takes(v, g));
    REQUIRE(!(intr & ~0xfull));
    REQUIRE((intr & (INTR_BLOCK_STI | INTR_BLOCK_MOVSS)) != (INTR_BLOCK_STI | INTR_BLOCK_MOVSS));
    REQUIRE(!(intr & INTR_BLOCK_STI) || rflags & F_IF);
    REQUIRE(g->inject_type != INTR_EXT || !shadow);
    REQUIRE(g->inject_type != INTR_NMI || !(intr & INTR_BLOCK_MOVSS));
    REQUIRE(!(intr & INTR_BLOCK_SMI)); /* never in system-management mode */
    REQUIRE(g->inject_type != INTR_NMI || !(v->PIN_BASED_VM_EXEC_CONTROL & PIN_VIRTUAL_NMIS) ||
            !(intr & INTR_BLOCK_NMI));
    REQUIRE(!(pending & ~0x500full));
    REQUIRE(!(shadow || activity == ACTIVITY_HLT) || !!(pending & DR6_BS) == (rflags & F_TF && !btf));
    return NULL;
}

static const char *check_link(const struct vmcs *v)
{
    REQUIRE(v->VMCS_LINK_POINTER == LINK_NONE); /* VMCS shadowing is not offered */
    return NULL;
}

static bool pae_paging(const struct vmcs *v, const struct guest_view *g)
{
    return g->pg && v->GUEST_CR4 & CR4_PAE && !g->ia32e;
}

#define PDPTE_RESERVED (6ull | 0x1e0ull | ~((1ull << 52) - 1))

/* SDM 3C, "Checks on Guest Page-Directory-Pointer-Table Entries" */
static const char *check_pdptes(const struct vmcs *v)
{
    REQUIRE(!(v->GUEST_PDPTR0 & 1) || !(v->GUEST_PDPTR0 & PDPTE_RESERVED));
    REQUIRE(!(v->GUEST_PDPTR1 & 1) || !(v->GUEST_PDPTR1 & PDPTE_RESERVED));
    REQUIRE(!(v->GUEST_PDPTR2 & 1) || !(v->GUEST_PDPTR2 & PDPTE_RESERVED));
    REQUIRE(!(v->GUEST_PDPTR3 & 1) || !(v->GUEST_PDPTR3 & PDPTE_RESERVED));
    return NULL;
}

/* Without EPT the PDPTEs come from memory at CR3, as MOV CR3 takes them (SDM 3C, "Loading Page-Directory-Pointer-Table
 * Entries"); they are read into the guest-state fields, from which entry loads them. */
static const char *read_pdptes(struct cpu *cpu, unsigned level)
{
    struct vmcs *v = cpu->vmx->level[level].cur;
    uint64_t pdpte[4];

    REQUIRE(vmx_phys_read(cpu, level, v->GUEST_CR3 & ~31ull, pdpte, sizeof(pdpte)) == 0);
    v->GUEST_PDPTR0 = pdpte[0];
    v->GUEST_PDPTR1 = pdpte[1];
    v->GUEST_PDPTR2 = pdpte[2];
    v->GUEST_PDPTR3 = pdpte[3];
    return check_pdptes(v);
}

enum { QUAL_PDPTE = 2, QUAL_LINK = 4 }; /* SDM 3C, "VM-Entry Failures During or After Loading Guest State" */

int vmx_check_guest(struct cpu *cpu, unsigned level, uint64_t *qualification)
{
    struct vmx_level *l = &cpu->vmx->level[level];
    const struct vmcs *v = l->cur;
    const struct guest_view g = view_of(v);
    uint32_t stale = l->stale;
    const char *text = NULL;

    *qualification = 0;
    if (g.inject) /* what may be injected depends on these */
        stale |= STALE_NONREG | STALE_RFLAGS;
    if (unlikely(stale & (STALE_CR | STALE_CONTROLS))) {
        const struct check c = check_of(cpu, level);

        text = check_cr(&c, &g);
    }
    if (!text && stale & (STALE_SEG | STALE_RFLAGS | STALE_CR | STALE_CONTROLS))
        text = check_segments(v, &g);
    if (!text && stale & STALE_TABLES)
        text = check_tables(v);
    if (!text && stale & (STALE_RIP | STALE_SEG | STALE_CONTROLS))
        text = check_rip(v, &g);
    if (!text && stale & (STALE_RFLAGS | STALE_CR | STALE_CONTROLS))
        text = check_rflags(v, &g);
    if (!text && stale & (STALE_NONREG | STALE_RFLAGS | STALE_SEG | STALE_CR | STALE_CONTROLS))
        text = check_nonreg(v, &g);
    if (!text && stale & STALE_NONREG && (text = check_link(v)))
        *qualification = QUAL_LINK;
    if (!text && pae_paging(v, &g) && (!g.ept || stale & (STALE_PDPTE | STALE_CR | STALE_CONTROLS)) &&
        (text = g.ept ? check_pdptes(v) : read_pdptes(cpu, level)))
        *qualification = QUAL_PDPTE;
    if (!text) {
        l->stale = STALE_NONE;
        return 0;
    }
    cpu->vmx->failed_check = text;
    vmx_trace_failed_check(cpu, text);
    return -1;
}
