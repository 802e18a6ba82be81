/* SPDX-License-Identifier: MIT
 * vmx_host.c: the host state that a VM exit to level 1 loads (SDM 3C, "Loading Host State"). At level 0 the host is
 * this process: there is none to load. */
#include "vmx/nested_int.h"

#define HOST_TR_LIMIT 0x67u

static void load_segments(struct cpu_state *s, const struct vmcs *v, bool long64)
{
    const struct segment flat = {.limit = 0xffffffff, .attr = AR_G | AR_DB | AR_P | AR_S | 3};
    const uint16_t sel[] = {
        [SEG_ES] = v->HOST_ES_SELECTOR, [SEG_CS] = v->HOST_CS_SELECTOR, [SEG_SS] = v->HOST_SS_SELECTOR,
        [SEG_DS] = v->HOST_DS_SELECTOR, [SEG_FS] = v->HOST_FS_SELECTOR, [SEG_GS] = v->HOST_GS_SELECTOR,
    };

    for (unsigned i = 0; i < 6; i++) {
        s->seg[i] = flat;
        s->seg[i].sel = sel[i];
        if (!sel[i] && i != SEG_CS && i != SEG_SS)
            s->seg[i].attr |= AR_UNUSABLE;
    }
    s->seg[SEG_CS].attr = AR_G | AR_P | AR_S | 11 | (long64 ? AR_L : AR_DB);
    if (!sel[SEG_SS]) /* 64-bit mode: a null SS is usable */
        s->seg[SEG_SS].attr |= AR_UNUSABLE;
    s->seg[SEG_FS].base = v->HOST_FS_BASE;
    s->seg[SEG_GS].base = v->HOST_GS_BASE;
    s->tr = (struct segment){.base = v->HOST_TR_BASE, .limit = HOST_TR_LIMIT, .attr = AR_P | 11};
    s->tr.sel = v->HOST_TR_SELECTOR;
    s->ldtr = (struct segment){.attr = AR_UNUSABLE};
    s->gdtr = (struct dtable){.base = v->HOST_GDTR_BASE, .limit = 0xffff};
    s->idtr = (struct dtable){.base = v->HOST_IDTR_BASE, .limit = 0xffff};
}

static void load_control_registers(struct cpu_state *s, const struct vmcs *v, bool long64)
{
    const uint64_t kept = CR0_ET | CR0_CD | CR0_NW | 0x1ffaffc0ull; /* not modified; reserved bits */

    s->cr0 = (s->cr0 & kept) | (v->HOST_CR0 & ~kept) | CR0_ET;
    s->cr3 = v->HOST_CR3;
    s->cr4 = v->HOST_CR4;
    if (long64)
        s->cr4 |= CR4_PAE;
    else
        s->cr4 &= ~CR4_PCIDE;
    s->dr7 = DR7_FIXED;
}

static void load_msrs(struct cpu_state *s, const struct vmcs *v, bool long64)
{
    const uint32_t exit = v->VM_EXIT_CONTROLS;
    const uint64_t both = EFER_LMA | EFER_LME;

    s->debugctl = 0;
    s->sysenter_cs = (uint32_t)v->HOST_IA32_SYSENTER_CS;
    s->sysenter_esp = v->HOST_IA32_SYSENTER_ESP;
    s->sysenter_eip = v->HOST_IA32_SYSENTER_EIP;
    s->efer = exit & EXIT_LOAD_EFER ? v->HOST_IA32_EFER : (s->efer & ~both) | (long64 ? both : 0);
    if (exit & EXIT_LOAD_PAT)
        s->pat = v->HOST_IA32_PAT;
}

/* PAE paging in the host: its PDPTEs come from memory (SDM 3C, "Checking and Loading Host Page-Directory-Pointer-Table
 * Entries"). */
static int load_pdptes(struct cpu *cpu)
{
    struct cpu_state *s = &cpu->s;
    const uint64_t reserved = 0x1e6 | ~((1ull << cpu->guest_maxphyaddr) - 1);

    if (s->efer & EFER_LMA || !(s->cr4 & CR4_PAE))
        return 0;
    if (vmx_phys_read(cpu, 1, s->cr3 & 0xffffffe0, s->pdpte, sizeof(s->pdpte)))
        return -1;
    for (unsigned i = 0; i < 4; i++)
        if (s->pdpte[i] & 1 && s->pdpte[i] & reserved)
            return -1;
    return 0;
}

int vmx_load_host_state(struct cpu *cpu)
{
    struct cpu_state *s = &cpu->s;
    const struct vmcs *v = cpu->vmx->level[1].cur;
    const bool long64 = v->VM_EXIT_CONTROLS & EXIT_HOST_ADDR_SPACE_SIZE;

    load_control_registers(s, v, long64);
    load_msrs(s, v, long64);
    load_segments(s, v, long64);
    s->rip = v->HOST_RIP;
    s->gpr[R_RSP] = v->HOST_RSP;
    cpu_put_rflags(s, F_RESERVED);
    s->interruptibility &= ~(INTR_BLOCK_STI | INTR_BLOCK_MOVSS);
    s->activity = ACTIVITY_ACTIVE;
    s->pending_dbg = 0;
    return load_pdptes(cpu);
}
