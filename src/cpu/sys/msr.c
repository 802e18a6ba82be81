/* SPDX-License-Identifier: MIT
 * msr.c: the MSRs that the processor holds for the guest, a row each (SDM 4, "Model-Specific Registers"). All others
 * belong to the hypervisor: without an intercept they are #GP. */
#include "sys/cpu_sys.h"
#include "mem/mem.h"
#include "vmx/vmx_int.h"

#define MSR_TSC            0x10
#define MSR_SPEC_CTRL      0x48
#define MSR_PRED_CMD       0x49
#define MSR_SYSENTER_CS    0x174
#define MSR_SYSENTER_ESP   0x175
#define MSR_SYSENTER_EIP   0x176
#define MSR_DEBUGCTL       0x1d9
#define MSR_PAT            0x277
#define MSR_EFER           0xc0000080
#define MSR_STAR           0xc0000081
#define MSR_LSTAR          0xc0000082
#define MSR_CSTAR          0xc0000083
#define MSR_SFMASK         0xc0000084
#define MSR_FS_BASE        0xc0000100
#define MSR_GS_BASE        0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102
#define MSR_TSC_AUX        0xc0000103

struct msr_row {
    uint32_t msr;
    uint16_t offset;   /* in struct cpu_state; NO_STATE: none */
    uint32_t vmcs;     /* the guest-state field that holds it outside of guest mode, or 0 */
    uint64_t writable; /* other bits: #GP */
    bool canonical;    /* value must be (writable is then ~0) */
    bool read_only, write_only;
    int (*write)(struct cpu *, uint64_t); /* instead of a store; CPU_OK or CPU_FAULT */
    uint64_t (*read)(struct cpu *);
};
#define NO_STATE  0xffff
#define AT(field) offsetof(struct cpu_state, field)

static int write_efer(struct cpu *cpu, uint64_t value)
{
    struct cpu_state *s = &cpu->s;
    const uint64_t old = s->efer;

    if (value & ~cpu->guest_efer_valid)
        return cpu_raise_err(cpu, VEC_GP, 0);
    if ((s->cr0 & CR0_PG) && ((value ^ old) & EFER_LME))
        return cpu_raise_err(cpu, VEC_GP, 0);
    s->efer = (value & ~EFER_LMA) | (old & EFER_LMA); /* LMA is the processor's */
    if ((s->efer ^ old) & EFER_NXE)
        tlb_flush(cpu, TLB_VPID, vmx_vpid(cpu), 0, 0);
    cpu_mode_changed(cpu);
    return CPU_OK;
}

static bool pat_valid(uint64_t value)
{
    const uint64_t pat = value & 0x0707070707070707ull;

    /* types 2 and 3 are reserved: bit 1 without bit 2 */
    return pat == value && !(pat >> 1 & ~(pat >> 2) & 0x0101010101010101ull);
}

static int write_pat(struct cpu *cpu, uint64_t value)
{
    if (!pat_valid(value))
        return cpu_raise_err(cpu, VEC_GP, 0);
    cpu->s.pat = value;
    return CPU_OK;
}

static int write_fs_base(struct cpu *cpu, uint64_t value)
{
    cpu->s.seg[SEG_FS].base = cpu->s.fs_base_hot = value;
    return CPU_OK;
}

static int write_gs_base(struct cpu *cpu, uint64_t value)
{
    cpu->s.seg[SEG_GS].base = cpu->s.gs_base_hot = value;
    return CPU_OK;
}

/* An indirect-branch barrier: nothing of the guest's is predicted by state of ours that another guest could have set.
 */
static int write_pred_cmd(struct cpu *cpu, uint64_t value)
{
    return CPU_OK;
}

static uint64_t read_tsc(struct cpu *cpu)
{
    return vmx_guest_tsc(cpu);
}

static const struct msr_row msr_rows[] = {
    {MSR_TSC, NO_STATE, 0, 0, .read_only = true, .read = read_tsc},
    {MSR_SPEC_CTRL, AT(spec_ctrl), 0, 7},
    {MSR_PRED_CMD, NO_STATE, 0, 1, .write_only = true, .write = write_pred_cmd},
    {MSR_SYSENTER_CS, AT(sysenter_cs), GUEST_SYSENTER_CS, 0xffffffff},
    {MSR_SYSENTER_ESP, AT(sysenter_esp), GUEST_SYSENTER_ESP, ~0ull, .canonical = true},
    {MSR_SYSENTER_EIP, AT(sysenter_eip), GUEST_SYSENTER_EIP, ~0ull, .canonical = true},
    {MSR_DEBUGCTL, AT(debugctl), GUEST_IA32_DEBUGCTL, 3},
    {MSR_PAT, AT(pat), GUEST_IA32_PAT, ~0ull, .write = write_pat},
    {MSR_EFER, AT(efer), GUEST_IA32_EFER, ~0ull, .write = write_efer},
    {MSR_STAR, AT(star), 0, ~0ull},
    {MSR_LSTAR, AT(lstar), 0, ~0ull, .canonical = true},
    {MSR_CSTAR, AT(cstar), 0, ~0ull, .canonical = true},
    {MSR_SFMASK, AT(sfmask), 0, 0xffffffff},
    {MSR_FS_BASE, AT(seg[SEG_FS].base), GUEST_FS_BASE, ~0ull, .canonical = true, .write = write_fs_base},
    {MSR_GS_BASE, AT(seg[SEG_GS].base), GUEST_GS_BASE, ~0ull, .canonical = true, .write = write_gs_base},
    {MSR_KERNEL_GS_BASE, AT(kernel_gs_base), 0, ~0ull, .canonical = true},
    {MSR_TSC_AUX, AT(tsc_aux), 0, 0xffffffff},
};

static const struct msr_row *find(uint32_t msr)
{
    for (unsigned i = 0; i < ARRAY_SIZE(msr_rows); i++)
        if (msr_rows[i].msr == msr)
            return &msr_rows[i];
    return NULL;
}

static uint64_t *state_of(struct cpu *cpu, const struct msr_row *row)
{
    return (uint64_t *)((char *)&cpu->s + row->offset);
}

int msr_read(struct cpu *cpu, uint32_t msr, uint64_t *value)
{
    const struct msr_row *row = find(msr);

    if (!row || row->write_only)
        return cpu_raise_err(cpu, VEC_GP, 0);
    *value = row->read ? row->read(cpu) : *state_of(cpu, row);
    return CPU_OK;
}

static bool value_allowed(const struct msr_row *row, uint64_t value)
{
    return !row->read_only && !(value & ~row->writable) && (!row->canonical || cpu_canonical(value));
}

int msr_write(struct cpu *cpu, uint32_t msr, uint64_t value)
{
    const struct msr_row *row = find(msr);

    if (!row || !value_allowed(row, value))
        return cpu_raise_err(cpu, VEC_GP, 0);
    if (row->write)
        return row->write(cpu, value);
    *state_of(cpu, row) = value;
    return CPU_OK;
}

/* ---- by the hypervisor, outside of guest mode: what is in the VMCS is read and written there ---- */
int cpu_guest_rdmsr(struct cpu *cpu, uint32_t msr, uint64_t *value)
{
    const struct msr_row *row = find(msr);

    if (!row || row->write_only || row->offset == NO_STATE)
        return -1;
    if (row->vmcs && !cpu->in_guest_mode)
        return cpu_vmread(cpu, row->vmcs, value) == VMX_OK ? 0 : -1;
    *value = *state_of(cpu, row);
    return 0;
}

int cpu_guest_wrmsr(struct cpu *cpu, uint32_t msr, uint64_t value)
{
    const struct msr_row *row = find(msr);

    if (!row || !value_allowed(row, value))
        return -1;
    if (row->offset == NO_STATE)
        return row->write_only ? 0 : -1;
    if (msr == MSR_PAT && !pat_valid(value))
        return -1;
    /* the hypervisor owns EFER's rules (LMA goes with the entry controls): it stores what it wants the guest to have */
    if (row->vmcs && !cpu->in_guest_mode)
        return cpu_vmwrite(cpu, row->vmcs, value) == VMX_OK ? 0 : -1;
    *state_of(cpu, row) = value;
    return 0;
}
