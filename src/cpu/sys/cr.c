/* SPDX-License-Identifier: MIT
 * cr.c: writes of control registers with their checks (SDM 3A, "Control Registers", "Paging"). Intercepts and
 * host-owned bits are dealt with before (vmx_intercept_cr_write). */
#include "sys/cpu_sys.h"
#include "mem/mem.h"
#include "vmx/vmx_int.h"

static int gp0(struct cpu *cpu)
{
    return cpu_raise_err(cpu, VEC_GP, 0);
}

/* PAE: MOV CR3 and what else reloads them takes the four PDPTEs from memory; a reserved bit is #GP. */
static int load_pdptes(struct cpu *cpu, uint64_t cr3, uint64_t pdpte[4])
{
    const uint64_t reserved = 0x1e6 | ~((1ull << cpu->guest_maxphyaddr) - 1);
    const uint64_t *table = cpu_guest_phys(cpu, cr3 & 0xffffffe0, 32, ACC_READ);

    if (!table)
        return CPU_VMEXIT;
    for (unsigned i = 0; i < 4; i++) {
        if (host_ld64(&table[i], &pdpte[i]))
            return gp0(cpu);
        if ((pdpte[i] & 1) && (pdpte[i] & reserved))
            return gp0(cpu);
    }
    return CPU_OK;
}

/* All that CR0, CR4 or CR3 would be; loads PDPTEs where PAE paging is on afterwards. */
static int pdptes_for(struct cpu *cpu, uint64_t cr0, uint64_t cr3, uint64_t cr4, bool lma, uint64_t pdpte[4])
{
    if (!(cr0 & CR0_PG) || !(cr4 & CR4_PAE) || lma)
        return CPU_OK;
    return load_pdptes(cpu, cr3, pdpte);
}

static void flush_all(struct cpu *cpu)
{
    tlb_flush(cpu, TLB_VPID, vmx_vpid(cpu), 0, 0);
}

static int check_cr0(struct cpu *cpu, uint64_t value, bool *lma)
{
    const struct cpu_state *s = &cpu->s;

    if (value >> 32 || ((value & CR0_PG) && !(value & CR0_PE)) || ((value & CR0_NW) && !(value & CR0_CD)) ||
        !vmx_cr_allowed(cpu, 0, value))
        return gp0(cpu);
    *lma = s->efer & EFER_LMA;
    if (!((value ^ s->cr0) & CR0_PG))
        return CPU_OK;
    if (value & CR0_PG) {
        if (!(s->efer & EFER_LME))
            return CPU_OK;
        /* SDM 3A, "Initializing IA-32e Mode": PAE first, not from a segment with L, not with a 16-bit TSS */
        if (!(s->cr4 & CR4_PAE) || (s->seg[SEG_CS].attr & AR_L) || (AR_TYPE(s->tr.attr) & 8) == 0)
            return gp0(cpu);
        *lma = true;
    } else {
        if (s->mode == MODE_64 || (s->cr4 & CR4_PCIDE))
            return gp0(cpu);
        *lma = false;
    }
    return CPU_OK;
}

static int write_cr0(struct cpu *cpu, uint64_t value)
{
    struct cpu_state *s = &cpu->s;
    uint64_t pdpte[4] = {s->pdpte[0], s->pdpte[1], s->pdpte[2], s->pdpte[3]};
    bool lma = false;
    int st;

    value |= CR0_ET;
    if ((st = check_cr0(cpu, value, &lma)))
        return st;
    const uint64_t changed = value ^ s->cr0;
    if ((changed & (CR0_PG | CR0_CD | CR0_NW)) && (st = pdptes_for(cpu, value, s->cr3, s->cr4, lma, pdpte)))
        return st;
    for (unsigned i = 0; i < 4; i++)
        s->pdpte[i] = pdpte[i];
    s->efer = lma ? s->efer | EFER_LMA : s->efer & ~EFER_LMA;
    s->cr0 = value;
    if (changed & (CR0_PG | CR0_PE | CR0_WP))
        flush_all(cpu);
    cpu_mode_changed(cpu);
    return CPU_OK;
}

static int write_cr3(struct cpu *cpu, uint64_t value)
{
    struct cpu_state *s = &cpu->s;
    const bool pcide = s->cr4 & CR4_PCIDE, keep = pcide && (value >> 63);
    const uint64_t reserved = s->efer & EFER_LMA ? ~((1ull << cpu->guest_maxphyaddr) - 1) : ~0xffffffffull;
    uint64_t pdpte[4] = {s->pdpte[0], s->pdpte[1], s->pdpte[2], s->pdpte[3]};
    int st;

    if (pcide)
        value &= ~(1ull << 63);
    if (value & reserved)
        return gp0(cpu);
    if ((st = pdptes_for(cpu, s->cr0, value, s->cr4, s->efer & EFER_LMA, pdpte)))
        return st;
    for (unsigned i = 0; i < 4; i++)
        s->pdpte[i] = pdpte[i];
    s->cr3 = value;
    if (!keep)
        tlb_flush(cpu, TLB_PCID, vmx_vpid(cpu), pcide ? value & 0xfff : 0, 0);
    tlb_select(cpu);
    return CPU_OK;
}

static int check_cr4(struct cpu *cpu, uint64_t value)
{
    const struct cpu_state *s = &cpu->s;
    const bool lma = s->efer & EFER_LMA;

    if ((value & ~cpu->guest_cr4_valid) || !vmx_cr_allowed(cpu, 4, value))
        return gp0(cpu);
    if (lma && !(value & CR4_PAE))
        return gp0(cpu);
    if ((value & ~s->cr4 & CR4_PCIDE) && (!lma || (s->cr3 & 0xfff)))
        return gp0(cpu);
    return CPU_OK;
}

static int write_cr4(struct cpu *cpu, uint64_t value)
{
    struct cpu_state *s = &cpu->s;
    uint64_t pdpte[4] = {s->pdpte[0], s->pdpte[1], s->pdpte[2], s->pdpte[3]};
    int st;

    if ((st = check_cr4(cpu, value)))
        return st;
    const uint64_t changed = value ^ s->cr4;
    if ((changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP)) &&
        (st = pdptes_for(cpu, s->cr0, s->cr3, value, s->efer & EFER_LMA, pdpte)))
        return st;
    for (unsigned i = 0; i < 4; i++)
        s->pdpte[i] = pdpte[i];
    s->cr4 = value;
    if (changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP | CR4_SMAP | CR4_PCIDE))
        flush_all(cpu);
    cpu_mode_changed(cpu);
    return CPU_OK;
}

static int write_cr8(struct cpu *cpu, uint64_t value)
{
    if (value & ~15ull)
        return gp0(cpu);
    cpu->s.cr8 = value;
    return CPU_OK;
}

int cr_write(struct cpu *cpu, unsigned cr, uint64_t value)
{
    switch (cr) {
    case 0:
        return write_cr0(cpu, value);
    case 2:
        cpu->s.cr2 = value;
        return CPU_OK;
    case 3:
        return write_cr3(cpu, value);
    case 4:
        return write_cr4(cpu, value);
    case 8:
        return write_cr8(cpu, value);
    default:
        return cpu_raise(cpu, VEC_UD);
    }
}
