/* SPDX-License-Identifier: MIT
 * vmcs.h: VMCS field encodings, control bits and exit reasons (SDM 3C, "Virtual Machine Control Structures"; SDM 3D,
 * "VMX Basic Exit Reasons"). Numbers only: both the processor and its hypervisor include this. */
#ifndef CPU_VMCS_H
#define CPU_VMCS_H

enum vmcs_field {
#define VMCS_FIELD(name, encoding, bits, area, access) name = encoding,
#include "vmcs.def"
#undef VMCS_FIELD
};

/* VM-execution controls, pin-based */
#define PIN_EXT_INTR_EXITING 0x00000001u
#define PIN_NMI_EXITING      0x00000008u
#define PIN_VIRTUAL_NMIS     0x00000020u
#define PIN_PREEMPTION_TIMER 0x00000040u
#define PIN_POSTED_INTR      0x00000080u
#define PIN_DEFAULT1         0x00000016u
/* primary processor-based */
#define CPU_INTR_WINDOW_EXITING 0x00000004u
#define CPU_USE_TSC_OFFSETTING  0x00000008u
#define CPU_HLT_EXITING         0x00000080u
#define CPU_INVLPG_EXITING      0x00000200u
#define CPU_MWAIT_EXITING       0x00000400u
#define CPU_RDPMC_EXITING       0x00000800u
#define CPU_RDTSC_EXITING       0x00001000u
#define CPU_CR3_LOAD_EXITING    0x00008000u
#define CPU_CR3_STORE_EXITING   0x00010000u
#define CPU_CR8_LOAD_EXITING    0x00080000u
#define CPU_CR8_STORE_EXITING   0x00100000u
#define CPU_TPR_SHADOW          0x00200000u
#define CPU_NMI_WINDOW_EXITING  0x00400000u
#define CPU_MOV_DR_EXITING      0x00800000u
#define CPU_UNCOND_IO_EXITING   0x01000000u
#define CPU_USE_IO_BITMAPS      0x02000000u
#define CPU_MONITOR_TRAP_FLAG   0x08000000u
#define CPU_USE_MSR_BITMAPS     0x10000000u
#define CPU_MONITOR_EXITING     0x20000000u
#define CPU_PAUSE_EXITING       0x40000000u
#define CPU_SECONDARY_CONTROLS  0x80000000u
#define CPU_DEFAULT1            0x0401e172u /* with the CR3 bits: clear in IA32_VMX_TRUE_PROCBASED_CTLS */
/* secondary processor-based */
#define CPU2_VIRTUALIZE_APIC    0x00000001u
#define CPU2_ENABLE_EPT         0x00000002u
#define CPU2_DESC_EXITING       0x00000004u
#define CPU2_ENABLE_RDTSCP      0x00000008u
#define CPU2_VIRTUALIZE_X2APIC  0x00000010u
#define CPU2_ENABLE_VPID        0x00000020u
#define CPU2_WBINVD_EXITING     0x00000040u
#define CPU2_UNRESTRICTED_GUEST 0x00000080u
#define CPU2_APIC_REGISTER_VIRT 0x00000100u
#define CPU2_VIRT_INTR_DELIVERY 0x00000200u
#define CPU2_PAUSE_LOOP_EXITING 0x00000400u
#define CPU2_RDRAND_EXITING     0x00000800u
#define CPU2_ENABLE_INVPCID     0x00001000u
#define CPU2_ENABLE_VMFUNC      0x00002000u
#define CPU2_SHADOW_VMCS        0x00004000u
#define CPU2_RDSEED_EXITING     0x00010000u
#define CPU2_ENABLE_PML         0x00020000u
#define CPU2_ENABLE_XSAVES      0x00100000u
#define CPU2_TSC_SCALING        0x02000000u
/* VM-exit controls */
#define EXIT_SAVE_DEBUG_CONTROLS   0x00000004u
#define EXIT_HOST_ADDR_SPACE_SIZE  0x00000200u
#define EXIT_LOAD_PERF_GLOBAL_CTRL 0x00001000u
#define EXIT_ACK_INTR              0x00008000u
#define EXIT_SAVE_PAT              0x00040000u
#define EXIT_LOAD_PAT              0x00080000u
#define EXIT_SAVE_EFER             0x00100000u
#define EXIT_LOAD_EFER             0x00200000u
#define EXIT_SAVE_PREEMPTION_TIMER 0x00400000u
#define EXIT_DEFAULT1              0x00036dffu
/* VM-entry controls */
#define ENTRY_LOAD_DEBUG_CONTROLS   0x00000004u
#define ENTRY_IA32E_MODE            0x00000200u
#define ENTRY_SMM                   0x00000400u
#define ENTRY_DEACT_DUAL_MONITOR    0x00000800u
#define ENTRY_LOAD_PERF_GLOBAL_CTRL 0x00002000u
#define ENTRY_LOAD_PAT              0x00004000u
#define ENTRY_LOAD_EFER             0x00008000u
#define ENTRY_DEFAULT1              0x000011ffu

/* Interruption information (entry, exit and IDT-vectoring use one format) */
#define INTR_INFO_VECTOR      0x000000ffu
#define INTR_INFO_TYPE        0x00000700u
#define INTR_INFO_ERROR_CODE  0x00000800u
#define INTR_INFO_NMI_UNBLOCK 0x00001000u /* exit, IDT-vectoring: "NMI unblocking due to IRET" */
#define INTR_INFO_VALID       0x80000000u
enum {
    INTR_EXT = 0,
    INTR_NMI = 2,
    INTR_HARD_EXC = 3,
    INTR_SOFT_INT = 4,
    INTR_PRIV_SW_EXC = 5,
    INTR_SOFT_EXC = 6,
    INTR_OTHER = 7
};

/* Exit qualification for EPT violations */
#define EPTQ_READ        0x001u
#define EPTQ_WRITE       0x002u
#define EPTQ_EXEC        0x004u
#define EPTQ_ENT_READ    0x008u
#define EPTQ_ENT_WRITE   0x010u
#define EPTQ_ENT_EXEC    0x020u
#define EPTQ_GLA_VALID   0x080u
#define EPTQ_GLA_XLAT    0x100u /* the access was to the page of the linear address, not to a paging structure */
#define EPTQ_NMI_UNBLOCK 0x1000u
/* EPT entries */
#define EPT_R          1ull
#define EPT_W          2ull
#define EPT_X          4ull
#define EPT_MEMTYPE_WB (6ull << 3)
#define EPT_IGNORE_PAT (1ull << 6)
#define EPT_LARGE      (1ull << 7)
#define EPT_ACCESSED   (1ull << 8)
#define EPT_DIRTY      (1ull << 9)
#define EPTP_WB        6ull
#define EPTP_WALK4     (3ull << 3)
#define EPTP_AD        (1ull << 6)

#define EXIT_REASON_FAILED_VMENTRY 0x80000000u
enum vmx_exit_reason {
#define EXIT(name, number) EXIT_REASON_##name = number,
#include "exits.def"
#undef EXIT
};

/* VM_INSTRUCTION_ERROR (SDM 3C, "VM Instruction Error Numbers") */
enum vmx_error {
    VMXERR_VMCALL_IN_ROOT = 1,
    VMXERR_VMCLEAR_BAD_ADDR = 2,
    VMXERR_VMCLEAR_VMXON_PTR = 3,
    VMXERR_VMLAUNCH_NOT_CLEAR = 4,
    VMXERR_VMRESUME_NOT_LAUNCHED = 5,
    VMXERR_VMRESUME_AFTER_VMXOFF = 6,
    VMXERR_BAD_CONTROLS = 7,
    VMXERR_BAD_HOST_STATE = 8,
    VMXERR_VMPTRLD_BAD_ADDR = 9,
    VMXERR_VMPTRLD_VMXON_PTR = 10,
    VMXERR_VMPTRLD_BAD_REVISION = 11,
    VMXERR_BAD_FIELD = 12,
    VMXERR_READONLY_FIELD = 13,
    VMXERR_VMXON_IN_ROOT = 15,
    VMXERR_ENTRY_BAD_EXECUTIVE = 16,
    VMXERR_ENTRY_NOT_LAUNCHED = 17,
    VMXERR_ENTRY_EXEC_NOT_VMXON = 18,
    VMXERR_VMCALL_NOT_CLEAR = 19,
    VMXERR_VMCALL_BAD_EXIT_CTLS = 20,
    VMXERR_VMCALL_BAD_MSEG = 22,
    VMXERR_VMXOFF_DUAL_MONITOR = 23,
    VMXERR_ENTRY_MOVSS = 26,
    VMXERR_INV_OPERAND = 28
};

/* capability MSRs */
#define MSR_IA32_FEATURE_CONTROL         0x3a
#define MSR_IA32_VMX_BASIC               0x480
#define MSR_IA32_VMX_PINBASED_CTLS       0x481
#define MSR_IA32_VMX_PROCBASED_CTLS      0x482
#define MSR_IA32_VMX_EXIT_CTLS           0x483
#define MSR_IA32_VMX_ENTRY_CTLS          0x484
#define MSR_IA32_VMX_MISC                0x485
#define MSR_IA32_VMX_CR0_FIXED0          0x486
#define MSR_IA32_VMX_CR0_FIXED1          0x487
#define MSR_IA32_VMX_CR4_FIXED0          0x488
#define MSR_IA32_VMX_CR4_FIXED1          0x489
#define MSR_IA32_VMX_VMCS_ENUM           0x48a
#define MSR_IA32_VMX_PROCBASED_CTLS2     0x48b
#define MSR_IA32_VMX_EPT_VPID_CAP        0x48c
#define MSR_IA32_VMX_TRUE_PINBASED_CTLS  0x48d
#define MSR_IA32_VMX_TRUE_PROCBASED_CTLS 0x48e
#define MSR_IA32_VMX_TRUE_EXIT_CTLS      0x48f
#define MSR_IA32_VMX_TRUE_ENTRY_CTLS     0x490
#define MSR_IA32_VMX_VMFUNC              0x491

#endif
