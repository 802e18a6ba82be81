/* SPDX-License-Identifier: MIT
 * vmcs12.c: the VMCS regions of level 1: where each field lies. The places, widths and the revision are those of
 * Linux's KVM (its vmcs12), so that a saved nested state goes from one to the other. What runs is a copy in the form of
 * struct vmcs: read by VMPTRLD, written back by VMCLEAR, VMXOFF and the next VMPTRLD; level 1 cannot change it by
 * stores. */
#include "vmx/nested_int.h"

static const struct row {
    uint16_t copy, at; /* offsets in struct vmcs (64 bits) and in the region */
    uint8_t size;
} rows[] = {
#define F(name, at, size)                     \
    {                                         \
        offsetof(struct vmcs, name), at, size \
    }
    F(IO_BITMAP_A, 40, 8),
    F(IO_BITMAP_B, 48, 8),
    F(MSR_BITMAP, 56, 8),
    F(VM_EXIT_MSR_STORE_ADDR, 64, 8),
    F(VM_EXIT_MSR_LOAD_ADDR, 72, 8),
    F(VM_ENTRY_MSR_LOAD_ADDR, 80, 8),
    F(TSC_OFFSET, 88, 8),
    F(VIRTUAL_APIC_PAGE_ADDR, 96, 8),
    F(APIC_ACCESS_ADDR, 104, 8),
    F(EPT_POINTER, 120, 8),
    F(EOI_EXIT_BITMAP0, 128, 8),
    F(EOI_EXIT_BITMAP1, 136, 8),
    F(EOI_EXIT_BITMAP2, 144, 8),
    F(EOI_EXIT_BITMAP3, 152, 8),
    F(XSS_EXIT_BITMAP, 160, 8),
    F(GUEST_PHYSICAL_ADDRESS, 168, 8),
    F(VMCS_LINK_POINTER, 176, 8),
    F(GUEST_IA32_DEBUGCTL, 184, 8),
    F(GUEST_IA32_PAT, 192, 8),
    F(GUEST_IA32_EFER, 200, 8),
    F(GUEST_IA32_PERF_GLOBAL_CTRL, 208, 8),
    F(GUEST_PDPTR0, 216, 8),
    F(GUEST_PDPTR1, 224, 8),
    F(GUEST_PDPTR2, 232, 8),
    F(GUEST_PDPTR3, 240, 8),
    F(HOST_IA32_PAT, 256, 8),
    F(HOST_IA32_EFER, 264, 8),
    F(HOST_IA32_PERF_GLOBAL_CTRL, 272, 8),
    F(TSC_MULTIPLIER, 328, 8),
    F(CR0_GUEST_HOST_MASK, 344, 8),
    F(CR4_GUEST_HOST_MASK, 352, 8),
    F(CR0_READ_SHADOW, 360, 8),
    F(CR4_READ_SHADOW, 368, 8),
    F(CR3_TARGET_VALUE0, 376, 8),
    F(CR3_TARGET_VALUE1, 384, 8),
    F(CR3_TARGET_VALUE2, 392, 8),
    F(CR3_TARGET_VALUE3, 400, 8),
    F(EXIT_QUALIFICATION, 408, 8),
    F(GUEST_LINEAR_ADDRESS, 416, 8),
    F(GUEST_CR0, 424, 8),
    F(GUEST_CR3, 432, 8),
    F(GUEST_CR4, 440, 8),
    F(GUEST_ES_BASE, 448, 8),
    F(GUEST_CS_BASE, 456, 8),
    F(GUEST_SS_BASE, 464, 8),
    F(GUEST_DS_BASE, 472, 8),
    F(GUEST_FS_BASE, 480, 8),
    F(GUEST_GS_BASE, 488, 8),
    F(GUEST_LDTR_BASE, 496, 8),
    F(GUEST_TR_BASE, 504, 8),
    F(GUEST_GDTR_BASE, 512, 8),
    F(GUEST_IDTR_BASE, 520, 8),
    F(GUEST_DR7, 528, 8),
    F(GUEST_RSP, 536, 8),
    F(GUEST_RIP, 544, 8),
    F(GUEST_RFLAGS, 552, 8),
    F(GUEST_PENDING_DBG_EXCEPTIONS, 560, 8),
    F(GUEST_SYSENTER_ESP, 568, 8),
    F(GUEST_SYSENTER_EIP, 576, 8),
    F(HOST_CR0, 584, 8),
    F(HOST_CR3, 592, 8),
    F(HOST_CR4, 600, 8),
    F(HOST_FS_BASE, 608, 8),
    F(HOST_GS_BASE, 616, 8),
    F(HOST_TR_BASE, 624, 8),
    F(HOST_GDTR_BASE, 632, 8),
    F(HOST_IDTR_BASE, 640, 8),
    F(HOST_IA32_SYSENTER_ESP, 648, 8),
    F(HOST_IA32_SYSENTER_EIP, 656, 8),
    F(HOST_RSP, 664, 8),
    F(HOST_RIP, 672, 8),
    F(PIN_BASED_VM_EXEC_CONTROL, 744, 4),
    F(CPU_BASED_VM_EXEC_CONTROL, 748, 4),
    F(EXCEPTION_BITMAP, 752, 4),
    F(PAGE_FAULT_ERROR_CODE_MASK, 756, 4),
    F(PAGE_FAULT_ERROR_CODE_MATCH, 760, 4),
    F(CR3_TARGET_COUNT, 764, 4),
    F(VM_EXIT_CONTROLS, 768, 4),
    F(VM_EXIT_MSR_STORE_COUNT, 772, 4),
    F(VM_EXIT_MSR_LOAD_COUNT, 776, 4),
    F(VM_ENTRY_CONTROLS, 780, 4),
    F(VM_ENTRY_MSR_LOAD_COUNT, 784, 4),
    F(VM_ENTRY_INTR_INFO_FIELD, 788, 4),
    F(VM_ENTRY_EXCEPTION_ERROR_CODE, 792, 4),
    F(VM_ENTRY_INSTRUCTION_LEN, 796, 4),
    F(TPR_THRESHOLD, 800, 4),
    F(SECONDARY_VM_EXEC_CONTROL, 804, 4),
    F(VM_INSTRUCTION_ERROR, 808, 4),
    F(VM_EXIT_REASON, 812, 4),
    F(VM_EXIT_INTR_INFO, 816, 4),
    F(VM_EXIT_INTR_ERROR_CODE, 820, 4),
    F(IDT_VECTORING_INFO_FIELD, 824, 4),
    F(IDT_VECTORING_ERROR_CODE, 828, 4),
    F(VM_EXIT_INSTRUCTION_LEN, 832, 4),
    F(VMX_INSTRUCTION_INFO, 836, 4),
    F(GUEST_ES_LIMIT, 840, 4),
    F(GUEST_CS_LIMIT, 844, 4),
    F(GUEST_SS_LIMIT, 848, 4),
    F(GUEST_DS_LIMIT, 852, 4),
    F(GUEST_FS_LIMIT, 856, 4),
    F(GUEST_GS_LIMIT, 860, 4),
    F(GUEST_LDTR_LIMIT, 864, 4),
    F(GUEST_TR_LIMIT, 868, 4),
    F(GUEST_GDTR_LIMIT, 872, 4),
    F(GUEST_IDTR_LIMIT, 876, 4),
    F(GUEST_ES_AR_BYTES, 880, 4),
    F(GUEST_CS_AR_BYTES, 884, 4),
    F(GUEST_SS_AR_BYTES, 888, 4),
    F(GUEST_DS_AR_BYTES, 892, 4),
    F(GUEST_FS_AR_BYTES, 896, 4),
    F(GUEST_GS_AR_BYTES, 900, 4),
    F(GUEST_LDTR_AR_BYTES, 904, 4),
    F(GUEST_TR_AR_BYTES, 908, 4),
    F(GUEST_INTERRUPTIBILITY_INFO, 912, 4),
    F(GUEST_ACTIVITY_STATE, 916, 4),
    F(GUEST_SYSENTER_CS, 920, 4),
    F(HOST_IA32_SYSENTER_CS, 924, 4),
    F(VMX_PREEMPTION_TIMER_VALUE, 928, 4),
    F(VIRTUAL_PROCESSOR_ID, 960, 2),
    F(POSTED_INTR_NV, 962, 2),
    F(GUEST_ES_SELECTOR, 964, 2),
    F(GUEST_CS_SELECTOR, 966, 2),
    F(GUEST_SS_SELECTOR, 968, 2),
    F(GUEST_DS_SELECTOR, 970, 2),
    F(GUEST_FS_SELECTOR, 972, 2),
    F(GUEST_GS_SELECTOR, 974, 2),
    F(GUEST_LDTR_SELECTOR, 976, 2),
    F(GUEST_TR_SELECTOR, 978, 2),
    F(GUEST_INTR_STATUS, 980, 2),
    F(HOST_ES_SELECTOR, 982, 2),
    F(HOST_CS_SELECTOR, 984, 2),
    F(HOST_SS_SELECTOR, 986, 2),
    F(HOST_DS_SELECTOR, 988, 2),
    F(HOST_FS_SELECTOR, 990, 2),
    F(HOST_GS_SELECTOR, 992, 2),
    F(HOST_TR_SELECTOR, 994, 2),
#undef F
};

#define AT_REVISION     0
#define AT_ABORT        4
#define AT_LAUNCH_STATE 8 /* = offsetof(struct vmcs, launch_state): VMCLEAR */
_Static_assert(offsetof(struct vmcs, launch_state) == AT_LAUNCH_STATE, "vmx_clear() writes it");

void vmcs12_decode(struct vmcs *v, const uint8_t *raw)
{
    memset(v, 0, sizeof(*v));
    memcpy(&v->revision, raw + AT_REVISION, 4);
    memcpy(&v->abort, raw + AT_ABORT, 4);
    memcpy(&v->launch_state, raw + AT_LAUNCH_STATE, 4);
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        memcpy((uint8_t *)v + rows[i].copy, raw + rows[i].at, rows[i].size); /* little-endian */
}

void vmcs12_encode(uint8_t *raw, const struct vmcs *v)
{
    memcpy(raw + AT_REVISION, &v->revision, 4);
    memcpy(raw + AT_ABORT, &v->abort, 4);
    memcpy(raw + AT_LAUNCH_STATE, &v->launch_state, 4);
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        memcpy(raw + rows[i].at, (const uint8_t *)v + rows[i].copy, rows[i].size);
}

int vmcs12_get(struct cpu *cpu, uint64_t pa)
{
    struct vmx_nested *n = cpu->vmx->nested;

    if (vmx_phys_read(cpu, 1, pa, n->raw, sizeof(n->raw)))
        return -1;
    vmcs12_decode(&n->copy, n->raw);
    cpu->vmx->level[1].cur = &n->copy;
    return 0;
}

void vmcs12_put(struct cpu *cpu)
{
    struct vmx_nested *n = cpu->vmx->nested;
    struct vmx_level *l = &cpu->vmx->level[1];

    if (!l->cur)
        return;
    vmcs12_encode(n->raw, &n->copy);
    vmx_phys_write(cpu, 1, l->cur_pa, n->raw, sizeof(n->raw));
    l->cur = NULL;
}
