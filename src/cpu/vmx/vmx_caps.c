/* SPDX-License-Identifier: MIT
 * vmx_caps.c: the VMX capability MSRs (SDM 3D, "VMX Capability Reporting Facility"): what this processor's VMX can do.
 * A control is allowed to be 1 when intercept.c or vmx_run.c acts on it. */
#include "vmx/nested_int.h"

#define PIN_ALLOWED1 (PIN_DEFAULT1 | PIN_EXT_INTR_EXITING | PIN_NMI_EXITING | PIN_VIRTUAL_NMIS | PIN_PREEMPTION_TIMER)
#define CPU_ALLOWED1                                                                                                  \
    (CPU_DEFAULT1 | CPU_INTR_WINDOW_EXITING | CPU_USE_TSC_OFFSETTING | CPU_HLT_EXITING | CPU_INVLPG_EXITING |         \
     CPU_MWAIT_EXITING | CPU_RDPMC_EXITING | CPU_RDTSC_EXITING | CPU_CR3_LOAD_EXITING | CPU_CR3_STORE_EXITING |       \
     CPU_CR8_LOAD_EXITING | CPU_CR8_STORE_EXITING | CPU_TPR_SHADOW | CPU_NMI_WINDOW_EXITING | CPU_MOV_DR_EXITING |    \
     CPU_UNCOND_IO_EXITING | CPU_USE_IO_BITMAPS | CPU_MONITOR_TRAP_FLAG | CPU_USE_MSR_BITMAPS | CPU_MONITOR_EXITING | \
     CPU_PAUSE_EXITING | CPU_SECONDARY_CONTROLS)
#define CPU2_ALLOWED1                                                                                    \
    (CPU2_ENABLE_EPT | CPU2_DESC_EXITING | CPU2_ENABLE_RDTSCP | CPU2_ENABLE_VPID | CPU2_WBINVD_EXITING | \
     CPU2_UNRESTRICTED_GUEST | CPU2_PAUSE_LOOP_EXITING | CPU2_RDRAND_EXITING | CPU2_ENABLE_INVPCID |     \
     CPU2_RDSEED_EXITING | CPU2_TSC_SCALING)
#define EXIT_ALLOWED1                                                                                       \
    (EXIT_DEFAULT1 | EXIT_SAVE_DEBUG_CONTROLS | EXIT_HOST_ADDR_SPACE_SIZE | EXIT_SAVE_PAT | EXIT_LOAD_PAT | \
     EXIT_SAVE_EFER | EXIT_LOAD_EFER | EXIT_SAVE_PREEMPTION_TIMER)
#define ENTRY_ALLOWED1 \
    (ENTRY_DEFAULT1 | ENTRY_LOAD_DEBUG_CONTROLS | ENTRY_IA32E_MODE | ENTRY_LOAD_PAT | ENTRY_LOAD_EFER)

/* Default1 bits that the TRUE registers let be 0. */
#define CPU_TRUE0   (CPU_CR3_LOAD_EXITING | CPU_CR3_STORE_EXITING)
#define EXIT_TRUE0  EXIT_SAVE_DEBUG_CONTROLS
#define ENTRY_TRUE0 ENTRY_LOAD_DEBUG_CONTROLS

#define PAIR(allowed0, allowed1) ((uint64_t)(allowed1) << 32 | (allowed0))

#define BASIC_MEMTYPE_WB (6ull << 50)
#define BASIC_INS_OUTS   (1ull << 54)
#define BASIC_TRUE_CTLS  (1ull << 55)

#define MISC_SAVE_EFER_LMA (1ull << 5)
#define MISC_ACTIVITY_HLT  (1ull << 6)
#define MISC_CR3_TARGETS   (4ull << 16)
#define MISC_INJECT_LEN0   (1ull << 30)

#define CAP_EPT_EXEC_ONLY (1ull << 0)
#define CAP_EPT_WALK4     (1ull << 6)
#define CAP_EPT_UC        (1ull << 8)
#define CAP_EPT_WB        (1ull << 14)
#define CAP_EPT_2M        (1ull << 16)
#define CAP_EPT_1G        (1ull << 17)
#define CAP_INVEPT        (1ull << 20)
#define CAP_EPT_AD        (1ull << 21)
#define CAP_INVEPT_SINGLE (1ull << 25)
#define CAP_INVEPT_ALL    (1ull << 26)
#define CAP_INVVPID       (1ull << 32)
#define CAP_INVVPID_TYPES (15ull << 40)

#define CR4_KNOWN                                                                                          \
    (CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE | CR4_OSFXSR | \
     CR4_OSXMMEXCPT | CR4_UMIP | CR4_VMXE | CR4_FSGSBASE | CR4_PCIDE | CR4_OSXSAVE | CR4_SMEP | CR4_SMAP)

#define FEATURE_CONTROL_LOCKED_VMX 5 /* lock bit, VMX outside of SMX */

/* The highest index of a field, as bits 9:1. */
#define MAX_INDEX_FIELD TSC_MULTIPLIER
#define VMCS_FIELD(name, encoding, bits, area, access) \
    _Static_assert(((encoding)&0x3fe) <= (MAX_INDEX_FIELD & 0x3fe), #name " has a higher index: IA32_VMX_VMCS_ENUM");
#include "vmcs.def"
#undef VMCS_FIELD

static const uint64_t caps[MSR_IA32_VMX_TRUE_ENTRY_CTLS - MSR_IA32_VMX_BASIC + 1] = {
    [MSR_IA32_VMX_BASIC - MSR_IA32_VMX_BASIC] =
        VMCS_REVISION | (uint64_t)VMCS_SIZE << 32 | BASIC_MEMTYPE_WB | BASIC_INS_OUTS | BASIC_TRUE_CTLS,
    [MSR_IA32_VMX_PINBASED_CTLS - MSR_IA32_VMX_BASIC] = PAIR(PIN_DEFAULT1, PIN_ALLOWED1),
    [MSR_IA32_VMX_PROCBASED_CTLS - MSR_IA32_VMX_BASIC] = PAIR(CPU_DEFAULT1, CPU_ALLOWED1),
    [MSR_IA32_VMX_EXIT_CTLS - MSR_IA32_VMX_BASIC] = PAIR(EXIT_DEFAULT1, EXIT_ALLOWED1),
    [MSR_IA32_VMX_ENTRY_CTLS - MSR_IA32_VMX_BASIC] = PAIR(ENTRY_DEFAULT1, ENTRY_ALLOWED1),
    [MSR_IA32_VMX_MISC - MSR_IA32_VMX_BASIC] =
        VMX_TIMER_SHIFT | MISC_SAVE_EFER_LMA | MISC_ACTIVITY_HLT | MISC_CR3_TARGETS | MISC_INJECT_LEN0,
    [MSR_IA32_VMX_CR0_FIXED0 - MSR_IA32_VMX_BASIC] = CR0_PE | CR0_NE | CR0_PG,
    [MSR_IA32_VMX_CR0_FIXED1 - MSR_IA32_VMX_BASIC] = 0xffffffff,
    [MSR_IA32_VMX_CR4_FIXED0 - MSR_IA32_VMX_BASIC] = CR4_VMXE,
    [MSR_IA32_VMX_CR4_FIXED1 - MSR_IA32_VMX_BASIC] = CR4_KNOWN,
    [MSR_IA32_VMX_VMCS_ENUM - MSR_IA32_VMX_BASIC] = MAX_INDEX_FIELD & 0x3fe,
    [MSR_IA32_VMX_PROCBASED_CTLS2 - MSR_IA32_VMX_BASIC] = PAIR(0, CPU2_ALLOWED1),
    [MSR_IA32_VMX_EPT_VPID_CAP - MSR_IA32_VMX_BASIC] =
        CAP_EPT_EXEC_ONLY | CAP_EPT_WALK4 | CAP_EPT_UC | CAP_EPT_WB | CAP_EPT_2M | CAP_EPT_1G | CAP_INVEPT |
        CAP_EPT_AD | CAP_INVEPT_SINGLE | CAP_INVEPT_ALL | CAP_INVVPID | CAP_INVVPID_TYPES,
    [MSR_IA32_VMX_TRUE_PINBASED_CTLS - MSR_IA32_VMX_BASIC] = PAIR(PIN_DEFAULT1, PIN_ALLOWED1),
    [MSR_IA32_VMX_TRUE_PROCBASED_CTLS - MSR_IA32_VMX_BASIC] = PAIR(CPU_DEFAULT1 & ~CPU_TRUE0, CPU_ALLOWED1),
    [MSR_IA32_VMX_TRUE_EXIT_CTLS - MSR_IA32_VMX_BASIC] = PAIR(EXIT_DEFAULT1 & ~EXIT_TRUE0, EXIT_ALLOWED1),
    [MSR_IA32_VMX_TRUE_ENTRY_CTLS - MSR_IA32_VMX_BASIC] = PAIR(ENTRY_DEFAULT1 & ~ENTRY_TRUE0, ENTRY_ALLOWED1),
};

/* What a guest's own VMX has beside or instead: its VMCS is KVM's vmcs12, which has no fields for pause-loop exiting;
 * interrupts of its own are acknowledged by VM exits. */
static uint64_t nested_cap(uint32_t msr)
{
    const uint64_t cap = caps[msr - MSR_IA32_VMX_BASIC];

    switch (msr) {
    case MSR_IA32_VMX_BASIC:
        return (cap & ~0x7fffffffull) | VMCS12_REVISION;
    case MSR_IA32_VMX_EXIT_CTLS:
    case MSR_IA32_VMX_TRUE_EXIT_CTLS:
        return cap | PAIR(0, EXIT_ACK_INTR);
    case MSR_IA32_VMX_PROCBASED_CTLS2:
        return cap & ~PAIR(0, CPU2_PAUSE_LOOP_EXITING);
    default:
        return cap;
    }
}

int vmx_cap_msr(unsigned level, uint32_t msr, uint64_t *value)
{
    if (msr == MSR_IA32_FEATURE_CONTROL && !level) {
        *value = FEATURE_CONTROL_LOCKED_VMX;
        return 0;
    }
    if (msr - MSR_IA32_VMX_BASIC >= ARRAY_SIZE(caps))
        return -1;
    *value = level ? nested_cap(msr) : caps[msr - MSR_IA32_VMX_BASIC];
    return 0;
}

uint64_t vmx_cap(const struct cpu *cpu, unsigned level, uint32_t msr)
{
    return level ? cpu->vmx->nested->cap[msr - MSR_IA32_VMX_BASIC] : caps[msr - MSR_IA32_VMX_BASIC];
}

int cpu_rdmsr(uint32_t msr, uint64_t *value)
{
    return vmx_cap_msr(0, msr, value);
}
