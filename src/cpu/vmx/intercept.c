/* SPDX-License-Identifier: MIT
 * intercept.c: which instructions and events leave VMX non-root operation, and what is recorded of them (SDM 3C, "VMX
 * Non-Root Operation"; "Basic VM-Exit Information" has the qualifications, "Information for VM Exits Due to Instruction
 * Execution" the instruction information). With a hypervisor inside of the guest, its controls are asked first, then
 * level 0's. */
#include "vmx/nested_int.h"

/* The levels whose guest runs, from the innermost outwards. */
#define FOR_LEVELS(cpu, n) for (unsigned n = (cpu)->vmx->depth + 1; n-- > 0;)

unsigned vmx_depth(const struct cpu *cpu)
{
    return cpu->vmx->depth;
}

bool vmx_unrestricted(const struct cpu *cpu)
{
    return cpu->vmx->level[cpu->vmx->depth].exec2 & CPU2_UNRESTRICTED_GUEST;
}

bool vmx_ept_enabled(const struct cpu *cpu)
{
    return cpu->vmx->level[0].exec2 & CPU2_ENABLE_EPT;
}

uint64_t vmx_eptp(const struct cpu *cpu)
{
    const struct vmcs *v = cpu->vmx->level[0].cur;

    return v ? v->EPT_POINTER : 0;
}

uint64_t vmx_nested_eptp(const struct cpu *cpu)
{
    const struct vmx_level *l = &cpu->vmx->level[1];

    return unlikely(cpu->vmx->depth) && l->exec2 & CPU2_ENABLE_EPT ? l->cur->EPT_POINTER : 0;
}

static uint16_t vpid_of(const struct vmx_level *l)
{
    return l->exec2 & CPU2_ENABLE_VPID && l->cur ? l->cur->VIRTUAL_PROCESSOR_ID : 0;
}

uint32_t vmx_vpid(const struct cpu *cpu)
{
    const struct vmx_unit *vmx = cpu->vmx;

    return likely(!vmx->depth) ? vpid_of(&vmx->level[0]) : TLB_TAG_NESTED | vpid_of(&vmx->level[1]);
}

static uint32_t any_exec(const struct cpu *cpu)
{
    return cpu->vmx->level[0].exec | (cpu->vmx->depth ? cpu->vmx->level[1].exec : 0);
}

static uint32_t any_exec2(const struct cpu *cpu)
{
    return cpu->vmx->level[0].exec2 | (cpu->vmx->depth ? cpu->vmx->level[1].exec2 : 0);
}

static uint32_t all_exec2(const struct cpu *cpu)
{
    return cpu->vmx->level[0].exec2 & (cpu->vmx->depth ? cpu->vmx->level[1].exec2 : ~0u);
}

static bool any_window(const struct cpu *cpu)
{
    return cpu->vmx->level[0].window || (cpu->vmx->depth && cpu->vmx->level[1].window);
}

/* A byte of a bitmap; where there is no memory, everything exits. */
static uint8_t map_byte(struct cpu *cpu, unsigned level, uint64_t map, uint32_t at)
{
    uint8_t byte;

    if (likely(!level))
        return ((const uint8_t *)map)[at];
    return vmx_phys_read(cpu, level, map + at, &byte, 1) ? 0xff : byte;
}

/* SDM 3C, "Time-Stamp Counter Offsetting": the multiplier has 48 fraction bits. */
uint64_t vmx_guest_tsc(struct cpu *cpu)
{
    uint64_t tsc = cpu_rdtsc();

    if (cpu->s.tsc_mult)
        tsc = (unsigned __int128)tsc * cpu->s.tsc_mult >> 48;
    return tsc + cpu->s.tsc_offset;
}

bool vmx_mtf(const struct cpu *cpu)
{
    return any_exec(cpu) & CPU_MONITOR_TRAP_FLAG;
}

int vmx_exit_mtf(struct cpu *cpu)
{
    const bool inner = cpu->vmx->depth && cpu->vmx->level[1].exec & CPU_MONITOR_TRAP_FLAG;

    return vmx_exit_at(cpu, inner, NULL, EXIT_REASON_MONITOR_TRAP_FLAG, 0);
}

void vmx_check_windows(struct cpu *cpu)
{
    if (any_window(cpu))
        cpu_attend(cpu, ATT_WINDOW);
}

void cpu_plain_changed(struct cpu *cpu)
{
    const uint32_t exec = any_exec(cpu);
    const bool tsc = !(exec & CPU_RDTSC_EXITING) && !cpu->s.tsc_mult && !(cpu->s.cr4 & CR4_TSD);

    cpu->plain[PLAIN_TSC] = tsc;
    cpu->plain[PLAIN_TSCP] = tsc && all_exec2(cpu) & CPU2_ENABLE_RDTSCP;
    cpu->plain[PLAIN_STI] = !any_window(cpu);
    cpu->plain[PLAIN_PAUSE] = !(exec & CPU_PAUSE_EXITING) && !(any_exec2(cpu) & CPU2_PAUSE_LOOP_EXITING);
    cpu->plain[PLAIN_FSGS] = !!(cpu->s.cr4 & CR4_FSGSBASE);
}

/* ---- instruction information ---- */

/* The opcode behind prefixes: 0f, x, modrm. Decoding has accepted the bytes, so they are there. */
static const uint8_t *opcode_of(const struct insn *in)
{
    const uint8_t *p = in->bytes, *last = in->bytes + in->len - 1;

    while (p < last && *p != 0x0f)
        p++; /* none of the instructions here has 0f as a prefix */
    return p;
}

static uint32_t memory_info(const struct insn *in)
{
    const uint32_t asize = in->asize == 8 ? 2 : in->asize == 4 ? 1 : 0;
    uint32_t info = in->scale | asize << 7 | (uint32_t)in->seg << 15;

    info |= in->index < 16 ? (uint32_t)in->index << 18 : 1u << 22;
    info |= in->base < 16 ? (uint32_t)in->base << 23 : 1u << 27;
    return info;
}

/* The displacement as these exits report it: RIP-relative operands include the next instruction's address. */
static uint64_t displacement(const struct cpu *cpu, const struct insn *in)
{
    if (in->mem == 0xff)
        return 0;
    return in->base == REG_RIP ? cpu->s.rip + in->len + (uint64_t)in->disp : (uint64_t)in->disp;
}

/* SGDT SIDT LGDT LIDT (0f 01 /0-3): identity 29:28, operand size 11. */
static uint32_t gdtr_idtr_info(const struct insn *in)
{
    const unsigned reg = opcode_of(in)[2] >> 3 & 3;

    return memory_info(in) | (in->opsize == 2 ? 0 : 1u << 11) | reg << 28;
}

/* SLDT STR LLDT LTR (0f 00 /0-3): register or memory (bit 10). */
static uint32_t ldtr_tr_info(const struct insn *in)
{
    const unsigned reg = opcode_of(in)[2] >> 3 & 3;

    return (in->mem == 0xff ? 1u << 10 | (uint32_t)in->o[0].reg << 3 : memory_info(in)) | reg << 28;
}

/* RDRAND, RDSEED: destination 6:3, operand size 12:11. */
static uint32_t rdrand_info(const struct insn *in)
{
    const uint32_t size = in->opsize == 8 ? 2 : in->opsize == 4 ? 1 : 0;

    return (uint32_t)in->o[0].reg << 3 | size << 11;
}

/* VMX instructions, INVPCID, INVEPT, INVVPID: Reg2 in 31:28; Reg1 in 6:3 for the register form of VMREAD and VMWRITE.
 */
static uint32_t vmx_info(const struct insn *in)
{
    uint32_t info = in->mem == 0xff ? 1u << 10 : memory_info(in);

    for (unsigned i = 0; i < in->nops && i < 2; i++) {
        /* VMREAD r/m, r (0f 78) and VMWRITE r, r/m (0f 79): the register operand that is not r/m is Reg2 */
        const bool rm = in->mem == 0xff && i == (opcode_of(in)[1] == 0x78 ? 0u : 1u);

        if (in->o[i].kind == OPK_REG)
            info |= (uint32_t)in->o[i].reg << (rm ? 3 : 28);
    }
    return info;
}

/* ---- instructions by exit reason ---- */

enum info_form { INFO_NONE, INFO_GDTR, INFO_LDTR, INFO_RDRAND, INFO_VMX };

struct row {
    bool known;
    bool always;    /* unconditional */
    uint32_t exec;  /* any of these primary controls makes it exit */
    uint32_t exec2; /* ... or of these secondary ones */
    uint32_t needs; /* #UD without this secondary control */
    uint8_t info;
};

static const struct row rows[] = {
    [EXIT_REASON_CPUID] = {true, .always = true},
    [EXIT_REASON_HLT] = {true, .exec = CPU_HLT_EXITING},
    [EXIT_REASON_INVD] = {true, .always = true},
    [EXIT_REASON_INVLPG] = {true, .exec = CPU_INVLPG_EXITING},
    [EXIT_REASON_RDPMC] = {true, .exec = CPU_RDPMC_EXITING},
    [EXIT_REASON_RDTSC] = {true, .exec = CPU_RDTSC_EXITING},
    [EXIT_REASON_RDTSCP] = {true, .exec = CPU_RDTSC_EXITING, .needs = CPU2_ENABLE_RDTSCP},
    [EXIT_REASON_VMCALL] = {true, .always = true},
    [EXIT_REASON_VMCLEAR] = {true, .always = true, .info = INFO_VMX},
    [EXIT_REASON_VMLAUNCH] = {true, .always = true},
    [EXIT_REASON_VMPTRLD] = {true, .always = true, .info = INFO_VMX},
    [EXIT_REASON_VMPTRST] = {true, .always = true, .info = INFO_VMX},
    [EXIT_REASON_VMREAD] = {true, .always = true, .info = INFO_VMX},
    [EXIT_REASON_VMRESUME] = {true, .always = true},
    [EXIT_REASON_VMWRITE] = {true, .always = true, .info = INFO_VMX},
    [EXIT_REASON_VMOFF] = {true, .always = true},
    [EXIT_REASON_VMON] = {true, .always = true, .info = INFO_VMX},
    [EXIT_REASON_MWAIT_INSTRUCTION] = {true, .exec = CPU_MWAIT_EXITING},
    [EXIT_REASON_MONITOR_INSTRUCTION] = {true, .exec = CPU_MONITOR_EXITING},
    [EXIT_REASON_PAUSE_INSTRUCTION] = {true, .exec = CPU_PAUSE_EXITING},
    [EXIT_REASON_GDTR_IDTR] = {true, .exec2 = CPU2_DESC_EXITING, .info = INFO_GDTR},
    [EXIT_REASON_LDTR_TR] = {true, .exec2 = CPU2_DESC_EXITING, .info = INFO_LDTR},
    [EXIT_REASON_INVEPT] = {true, .always = true, .info = INFO_VMX},
    [EXIT_REASON_INVVPID] = {true, .always = true, .info = INFO_VMX},
    [EXIT_REASON_WBINVD] = {true, .exec2 = CPU2_WBINVD_EXITING},
    [EXIT_REASON_XSETBV] = {true, .always = true},
    [EXIT_REASON_RDRAND] = {true, .exec2 = CPU2_RDRAND_EXITING, .info = INFO_RDRAND},
    [EXIT_REASON_INVPCID] = {true, .exec = CPU_INVLPG_EXITING, .needs = CPU2_ENABLE_INVPCID, .info = INFO_VMX},
    [EXIT_REASON_VMFUNC] = {true, .needs = CPU2_ENABLE_VMFUNC},
    [EXIT_REASON_RDSEED] = {true, .exec2 = CPU2_RDSEED_EXITING, .info = INFO_RDRAND},
};

static int exit_with_info(struct cpu *cpu, unsigned level, const struct insn *in, uint32_t reason,
                          uint64_t qualification)
{
    const unsigned form = rows[reason].info;
    uint32_t info = 0;

    if (form == INFO_GDTR || form == INFO_LDTR || form == INFO_VMX)
        qualification = displacement(cpu, in);
    switch (form) {
    case INFO_GDTR:
        info = gdtr_idtr_info(in);
        break;
    case INFO_LDTR:
        info = ldtr_tr_info(in);
        break;
    case INFO_RDRAND:
        info = rdrand_info(in);
        break;
    case INFO_VMX:
        info = vmx_info(in);
        break;
    }
    vmx_exit_at(cpu, level, in, reason, qualification);
    cpu->exit.insn_info = info;
    return CPU_VMEXIT;
}

/* Pause-loop exiting (SDM 3C, "Changes to Instruction Behavior in VMX Non-Root Operation"): at CPL 0, a loop whose
 * PAUSEs follow each other within PLE_Gap and which lasts longer than PLE_Window. */
static bool pause_loop(struct cpu *cpu, struct vmx_level *l)
{
    uint64_t now;

    if (!(l->exec2 & CPU2_PAUSE_LOOP_EXITING) || l->exec & CPU_PAUSE_EXITING || cpu->s.cpl)
        return false;
    now = cpu_rdtsc();
    if (now - l->ple_last > l->cur->PLE_GAP)
        l->ple_first = now;
    l->ple_last = now;
    if (now - l->ple_first <= l->cur->PLE_WINDOW)
        return false;
    l->ple_last = 0; /* a new loop begins after the exit */
    return true;
}

int vmx_intercept(struct cpu *cpu, const struct insn *in, uint32_t reason, uint64_t qualification)
{
    struct vmx_unit *vmx = cpu->vmx;
    const struct row *row = reason < ARRAY_SIZE(rows) && rows[reason].known ? &rows[reason] : NULL;

    if (unlikely(!row))
        return CPU_OK;
    if (unlikely(row->needs && !(all_exec2(cpu) & row->needs)))
        return cpu_raise(cpu, VEC_UD);
    if (cpu->emul && !row->always && reason != EXIT_REASON_HLT && reason != EXIT_REASON_MWAIT_INSTRUCTION)
        return CPU_OK; /* emulated for the hypervisor: only what it cannot take ends it */
    FOR_LEVELS(cpu, n)
    {
        struct vmx_level *l = &vmx->level[n];

        if (row->always || l->exec & row->exec || l->exec2 & row->exec2)
            return exit_with_info(cpu, n, in, reason, qualification);
        if (reason == EXIT_REASON_PAUSE_INSTRUCTION && pause_loop(cpu, l))
            return vmx_exit_at(cpu, n, in, reason, 0);
    }
    return CPU_OK;
}

/* ---- I/O (SDM 3C, "Exit Qualification for I/O Instructions") ---- */

static bool io_intercepted(struct cpu *cpu, unsigned level, uint32_t port, unsigned size)
{
    const struct vmx_level *l = &cpu->vmx->level[level];

    if (!(l->exec & CPU_USE_IO_BITMAPS))
        return l->exec & CPU_UNCOND_IO_EXITING;
    for (uint32_t p = port; p < port + size; p++) {
        const uint64_t map = p < 0x8000 ? l->cur->IO_BITMAP_A : l->cur->IO_BITMAP_B;

        /* an access that wraps around exits */
        if (p > 0xffff || map_byte(cpu, level, map, (p & 0x7fff) >> 3) >> (p & 7) & 1)
            return true;
    }
    return false;
}

/* The level to which it exits, or -1 */
static int io_level(struct cpu *cpu, uint32_t port, unsigned size)
{
    FOR_LEVELS(cpu, n)
    {
        if (io_intercepted(cpu, n, port, size))
            return (int)n;
    }
    return -1;
}

int vmx_intercept_io(struct cpu *cpu, const struct insn *in, uint16_t port, unsigned size, bool input, bool string,
                     bool rep, bool imm_port, gva_t linear)
{
    const int level = cpu->emul         ? -1
                      : cpu->vmx->depth ? io_level(cpu, port, size)
                                        : (io_intercepted(cpu, 0, port, size) ? 0 : -1);

    if (level < 0)
        return CPU_OK;
    vmx_exit_at(cpu, (unsigned)level, in, EXIT_REASON_IO_INSTRUCTION,
                (size - 1) | (uint64_t)input << 3 | (uint64_t)string << 4 | (uint64_t)rep << 5 |
                    (uint64_t)imm_port << 6 | (uint64_t)port << 16);
    if (string) {
        cpu->exit.linear = linear;
        cpu->exit.insn_info = (in->asize == 8   ? 2u
                               : in->asize == 4 ? 1u
                                                : 0u)
                                  << 7 |
                              (uint32_t)(input ? SEG_ES : in->seg) << 15;
    }
    return CPU_VMEXIT;
}

/* ---- MSRs (SDM 3C, "MSR-Bitmap Address") ---- */

#define MSR_BITMAP_RANGE 0x2000u
#define MSR_HIGH         0xc0000000u

static bool msr_intercepted(struct cpu *cpu, unsigned level, uint32_t msr, bool write)
{
    const struct vmx_level *l = &cpu->vmx->level[level];
    const bool high = msr >= MSR_HIGH;
    const uint32_t n = high ? msr - MSR_HIGH : msr;

    return !(l->exec & CPU_USE_MSR_BITMAPS) || n >= MSR_BITMAP_RANGE ||
           map_byte(cpu, level, l->cur->MSR_BITMAP, (write ? 2048u : 0) + (high ? 1024u : 0) + (n >> 3)) >> (n & 7) & 1;
}

int vmx_intercept_msr(struct cpu *cpu, const struct insn *in, uint32_t msr, bool write)
{
    FOR_LEVELS(cpu, n)
    {
        if (msr_intercepted(cpu, n, msr, write))
            return vmx_exit_at(cpu, n, in, write ? EXIT_REASON_MSR_WRITE : EXIT_REASON_MSR_READ, 0);
    }
    return CPU_OK;
}

int vmx_intercept_dr(struct cpu *cpu, const struct insn *in, unsigned dr, bool write, unsigned gpr)
{
    FOR_LEVELS(cpu, n)
    {
        if (cpu->vmx->level[n].exec & CPU_MOV_DR_EXITING)
            return vmx_exit_at(cpu, n, in, EXIT_REASON_DR_ACCESS, dr | (write ? 0 : 1u << 4) | gpr << 8);
    }
    return CPU_OK;
}

/* ---- control registers (SDM 3C, "Exit Qualification for Control-Register Accesses") ---- */

enum { CR_MOV_TO, CR_MOV_FROM, CR_CLTS, CR_LMSW };

static int exit_cr(struct cpu *cpu, unsigned level, const struct insn *in, unsigned cr, unsigned access, unsigned gpr)
{
    return vmx_exit_at(cpu, level, in, EXIT_REASON_CR_ACCESS, cr | access << 4 | gpr << 8);
}

/* Masks and shadows of CR0 and CR4 are those of the innermost hypervisor alone: nested.c. */
static const struct vmcs *mask_vmcs(const struct cpu *cpu)
{
    return cpu->vmx->level[cpu->vmx->depth].cur;
}

static uint64_t cr_mask(const struct vmcs *v, unsigned cr)
{
    return cr == 0 ? v->CR0_GUEST_HOST_MASK : v->CR4_GUEST_HOST_MASK;
}

static uint64_t cr_shadow(const struct vmcs *v, unsigned cr)
{
    return cr == 0 ? v->CR0_READ_SHADOW : v->CR4_READ_SHADOW;
}

static uint64_t cr_real(const struct cpu *cpu, unsigned cr)
{
    return cr == 0 ? cpu->s.cr0 : cpu->s.cr4;
}

uint64_t vmx_visible_cr(struct cpu *cpu, unsigned cr)
{
    const struct vmcs *v = mask_vmcs(cpu);
    const uint64_t mask = cr_mask(v, cr);

    return (cr_real(cpu, cr) & ~mask) | (cr_shadow(v, cr) & mask);
}

static bool cr3_intercepted(const struct vmx_level *l, uint64_t value)
{
    const struct vmcs *v = l->cur;
    const uint64_t targets[] = {v->CR3_TARGET_VALUE0, v->CR3_TARGET_VALUE1, v->CR3_TARGET_VALUE2, v->CR3_TARGET_VALUE3};

    if (!(l->exec & CPU_CR3_LOAD_EXITING))
        return false;
    for (unsigned i = 0; i < v->CR3_TARGET_COUNT && i < ARRAY_SIZE(targets); i++)
        if (targets[i] == value)
            return false;
    return true;
}

static int write_cr3(struct cpu *cpu, const struct insn *in, unsigned gpr, uint64_t value)
{
    FOR_LEVELS(cpu, n)
    {
        if (cr3_intercepted(&cpu->vmx->level[n], value))
            return exit_cr(cpu, n, in, 3, CR_MOV_TO, gpr);
    }
    return CPU_OK;
}

#define VIRTUAL_APIC_TPR 0x80u

/* The TPR shadow: CR8 is bits 7:4 of the virtual-APIC page's TPR. Lowering it below the threshold is a trap-like exit
 * (SDM 3C, "TPR Virtualization"). */
static int write_virtual_tpr(struct cpu *cpu, unsigned level, const struct insn *in, uint64_t value)
{
    const struct vmcs *v = cpu->vmx->level[level].cur;
    const uint32_t tpr = (uint32_t)value << 4;

    if (value & ~15ull) /* reserved bits: the caller raises #GP */
        return CPU_OK;
    vmx_phys_write(cpu, level, v->VIRTUAL_APIC_PAGE_ADDR + VIRTUAL_APIC_TPR, &tpr, sizeof(tpr));
    cpu->s.cr8 = value;
    if (value >= (v->TPR_THRESHOLD & 15))
        return CPU_OK;
    cpu->s.rip = (cpu->s.rip + in->len) & cpu->s.ip_mask;
    return vmx_exit_at(cpu, level, NULL, EXIT_REASON_TPR_BELOW_THRESHOLD, 0);
}

static int write_cr8(struct cpu *cpu, const struct insn *in, unsigned gpr, uint64_t value)
{
    FOR_LEVELS(cpu, n)
    {
        const uint32_t exec = cpu->vmx->level[n].exec;

        if (exec & CPU_CR8_LOAD_EXITING)
            return exit_cr(cpu, n, in, 8, CR_MOV_TO, gpr);
        if (exec & CPU_TPR_SHADOW)
            return write_virtual_tpr(cpu, n, in, value);
    }
    return CPU_OK;
}

int vmx_intercept_cr_write(struct cpu *cpu, const struct insn *in, unsigned cr, unsigned gpr, uint64_t *value)
{
    const struct vmcs *v = mask_vmcs(cpu);
    uint64_t mask;

    if (cr == 3)
        return write_cr3(cpu, in, gpr, *value);
    if (cr == 8)
        return write_cr8(cpu, in, gpr, *value);
    mask = cr_mask(v, cr);
    if ((*value ^ cr_shadow(v, cr)) & mask)
        return exit_cr(cpu, cpu->vmx->depth, in, cr, CR_MOV_TO, gpr);
    *value = (*value & ~mask) | (cr_real(cpu, cr) & mask);
    return CPU_OK;
}

int vmx_intercept_cr_read(struct cpu *cpu, const struct insn *in, unsigned cr, unsigned gpr)
{
    FOR_LEVELS(cpu, n)
    {
        const struct vmx_level *l = &cpu->vmx->level[n];

        if ((cr == 3 && l->exec & CPU_CR3_STORE_EXITING) || (cr == 8 && l->exec & CPU_CR8_STORE_EXITING))
            return exit_cr(cpu, n, in, cr, CR_MOV_FROM, gpr);
        if (cr != 8 || !(l->exec & CPU_TPR_SHADOW))
            continue;
        cpu->s.cr8 = map_byte(cpu, n, l->cur->VIRTUAL_APIC_PAGE_ADDR, VIRTUAL_APIC_TPR) >> 4;
        return CPU_OK;
    }
    return CPU_OK;
}

/* CPU_RESCAN: the host owns CR0.TS and shows it as 0: the instruction does nothing. */
int vmx_intercept_clts(struct cpu *cpu, const struct insn *in)
{
    const struct vmcs *v = mask_vmcs(cpu);

    if (!(v->CR0_GUEST_HOST_MASK & CR0_TS))
        return CPU_OK;
    return v->CR0_READ_SHADOW & CR0_TS ? exit_cr(cpu, cpu->vmx->depth, in, 0, CR_CLTS, 0) : CPU_RESCAN;
}

/* *cr0 becomes what LMSW loads: bits 3:0 only, PE can be set but not cleared. */
int vmx_intercept_lmsw(struct cpu *cpu, const struct insn *in, uint16_t source, gva_t linear, uint64_t *cr0)
{
    const struct vmcs *v = mask_vmcs(cpu);
    const uint64_t mask = v->CR0_GUEST_HOST_MASK, shadow = v->CR0_READ_SHADOW, old = cpu->s.cr0;
    const uint64_t low = CR0_MP | CR0_EM | CR0_TS;

    if (((source ^ shadow) & mask & low) || (mask & source & ~shadow & CR0_PE)) {
        const bool memory = linear != ~0ull;
        vmx_exit_at(cpu, cpu->vmx->depth, in, EXIT_REASON_CR_ACCESS,
                    CR_LMSW << 4 | (memory ? 1u << 6 : 0) | (uint64_t)source << 16);
        cpu->exit.linear = memory ? linear : 0;
        return CPU_VMEXIT;
    }
    *cr0 = (old & (~low | mask)) | (source & low & ~mask) | (source & CR0_PE & ~mask);
    return CPU_OK;
}

/* CR0.PE and CR0.PG may be 0 with an unrestricted guest (SDM 3C, "Restrictions on Guest ... in VMX Operation"). */
bool vmx_cr_allowed(const struct cpu *cpu, unsigned cr, uint64_t value)
{
    const unsigned level = cpu->vmx->depth;
    const uint64_t fixed1 = vmx_cap(cpu, level, cr == 0 ? MSR_IA32_VMX_CR0_FIXED1 : MSR_IA32_VMX_CR4_FIXED1);
    uint64_t fixed0 = vmx_cap(cpu, level, cr == 0 ? MSR_IA32_VMX_CR0_FIXED0 : MSR_IA32_VMX_CR4_FIXED0);

    if (cr == 0 && vmx_unrestricted(cpu))
        fixed0 &= ~(CR0_PE | CR0_PG);
    return (value & fixed0) == fixed0 && !(value & ~fixed1);
}

/* ---- events ---- */

bool vmx_exception_exits(const struct cpu *cpu, unsigned level, const struct event *ev)
{
    const struct vmx_level *l = &cpu->vmx->level[level];
    bool bit = l->exception_bitmap >> (ev->vector & 31) & 1;

    if (ev->vector == VEC_PF && ev->type == INTR_HARD_EXC &&
        (ev->error & l->cur->PAGE_FAULT_ERROR_CODE_MASK) != l->cur->PAGE_FAULT_ERROR_CODE_MATCH)
        bit = !bit;
    return bit;
}

/* The level to which it exits, or -1 */
static int exception_level(const struct cpu *cpu, const struct event *ev)
{
    FOR_LEVELS(cpu, n)
    {
        if (vmx_exception_exits(cpu, n, ev))
            return (int)n;
    }
    return -1;
}

int vmx_intercept_exception(struct cpu *cpu, const struct event *ev)
{
    const bool fault = ev->type == INTR_HARD_EXC;
    uint64_t qualification = 0;
    int level;

    if (cpu->emul || ev->type == INTR_SOFT_INT || ev->vector > 31 || (level = exception_level(cpu, ev)) < 0)
        return CPU_OK;
    if (fault && ev->vector == VEC_PF)
        qualification = ev->payload;
    else if (ev->vector == VEC_DB)
        qualification = ev->payload & (0xf | DR6_BD | DR6_BS);
    vmx_exit_at(cpu, (unsigned)level, NULL, EXIT_REASON_EXCEPTION_NMI, qualification);
    cpu->exit.intr_info = INTR_INFO_VALID | (uint32_t)ev->type << 8 | ev->vector |
                          (ev->has_error ? INTR_INFO_ERROR_CODE : 0) | (cpu->nmi_unblocked ? INTR_INFO_NMI_UNBLOCK : 0);
    cpu->exit.intr_error = ev->has_error ? ev->error : 0;
    if (!fault)
        cpu->exit.insn_len = ev->insn_len;
    return CPU_VMEXIT;
}

int vmx_intercept_task_switch(struct cpu *cpu, const struct insn *in, uint16_t sel, int source)
{
    return vmx_exit_at(cpu, cpu->vmx->depth, in, EXIT_REASON_TASK_SWITCH, sel | (uint64_t)(source & 3) << 30);
}
