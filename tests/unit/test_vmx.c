/* SPDX-License-Identifier: MIT
 * test_vmx.c: VMX instructions, fields and the checks of VM entry. */
#include "script.h"

/* ---- VMXON, VMPTRLD, VMREAD, VMWRITE ---- */

static void vmx_instructions_fail_as_the_manual_says(void **state)
{
    struct guest *g = *state;
    struct cpu *cpu = g->cpu;
    const hpa_t vmcs = (hpa_t)g->pages->vmcs, other = (hpa_t)g->pages->io_a;

    assert_int_equal(cpu_vmptrst(cpu), vmcs);
    assert_int_equal(cpu_vmxon(cpu, (hpa_t)g->pages->vmxon), VMX_FAIL_VALID);
    assert_int_equal(guest_r(g, VM_INSTRUCTION_ERROR), VMXERR_VMXON_IN_ROOT);
    assert_int_equal(cpu_vmptrld(cpu, vmcs + 8), VMX_FAIL_VALID);
    assert_int_equal(guest_r(g, VM_INSTRUCTION_ERROR), VMXERR_VMPTRLD_BAD_ADDR);
    assert_int_equal(cpu_vmptrld(cpu, (hpa_t)g->pages->vmxon), VMX_FAIL_VALID);
    assert_int_equal(guest_r(g, VM_INSTRUCTION_ERROR), VMXERR_VMPTRLD_VMXON_PTR);
    assert_int_equal(cpu_vmptrld(cpu, other), VMX_FAIL_VALID);
    assert_int_equal(guest_r(g, VM_INSTRUCTION_ERROR), VMXERR_VMPTRLD_BAD_REVISION);
    assert_int_equal(cpu_vmclear(cpu, vmcs + 8), VMX_FAIL_VALID);
    assert_int_equal(guest_r(g, VM_INSTRUCTION_ERROR), VMXERR_VMCLEAR_BAD_ADDR);
    assert_int_equal(cpu_vmclear(cpu, (hpa_t)g->pages->vmxon), VMX_FAIL_VALID);
    assert_int_equal(guest_r(g, VM_INSTRUCTION_ERROR), VMXERR_VMCLEAR_VMXON_PTR);
    assert_int_equal(cpu_vmresume(cpu), VMX_FAIL_VALID);
    assert_int_equal(guest_r(g, VM_INSTRUCTION_ERROR), VMXERR_VMRESUME_NOT_LAUNCHED);
    assert_int_equal(guest_run(g), EXIT_REASON_HLT);
    assert_int_equal(cpu_vmlaunch(cpu), VMX_FAIL_VALID);
    assert_int_equal(guest_r(g, VM_INSTRUCTION_ERROR), VMXERR_VMLAUNCH_NOT_CLEAR);
    assert_int_equal(cpu_vmclear(cpu, vmcs), VMX_OK);
    assert_int_equal(cpu_vmptrst(cpu), ~0ull);
    assert_int_equal(cpu_vmlaunch(cpu), VMX_FAIL_INVALID);
    assert_int_equal(cpu_vmwrite(cpu, GUEST_RIP, 0), VMX_FAIL_INVALID);
    assert_int_equal(cpu_vmxoff(cpu), VMX_OK);
    assert_int_equal(cpu_vmptrld(cpu, vmcs), VMX_FAIL_INVALID);
    assert_int_equal(cpu_vmxon(cpu, (hpa_t)g->pages->io_a), VMX_FAIL_INVALID); /* no revision there */
}

static const struct {
    uint32_t encoding;
    const char *name;
    unsigned bits; /* 0: natural width */
    bool readonly;
} all_fields[] = {
#define BITS_16                                        16
#define BITS_32                                        32
#define BITS_64                                        64
#define BITS_N                                         0
#define READONLY_RW                                    false
#define READONLY_RO                                    true
#define VMCS_FIELD(name, encoding, bits, area, access) {encoding, #name, BITS_##bits, READONLY_##access},
#include "../../src/cpu/vmcs.def"
#undef VMCS_FIELD
};

/* Each field holds what was written, as wide as it is, and no other field changes. */
static void fields_hold_their_width(void **state)
{
    struct guest *g = *state;

    for (size_t i = 0; i < ARRAY_SIZE(all_fields); i++) {
        const uint64_t value = 0x1122334455667788ull + i;
        const uint32_t e = all_fields[i].encoding;

        if (all_fields[i].readonly) {
            assert_int_equal(cpu_vmwrite(g->cpu, e, value), VMX_FAIL_VALID);
            assert_int_equal(guest_r(g, VM_INSTRUCTION_ERROR), VMXERR_READONLY_FIELD);
        } else {
            guest_w(g, e, value);
        }
    }
    for (size_t i = 0; i < ARRAY_SIZE(all_fields); i++) {
        const uint64_t value = 0x1122334455667788ull + i;
        const uint32_t e = all_fields[i].encoding;
        const unsigned bits = all_fields[i].bits;

        if (all_fields[i].readonly)
            continue;
        assert_int_equal(guest_r(g, e), bits == 16 ? (uint16_t)value : bits == 32 ? (uint32_t)value : value);
        if (bits == 64) {
            assert_int_equal(guest_r(g, e | 1), value >> 32);
            guest_w(g, e | 1, 0xffffffff00000005);
            assert_int_equal(guest_r(g, e), 5ull << 32 | (uint32_t)value);
        }
    }
}

static bool field_exists(uint32_t encoding)
{
    for (size_t i = 0; i < ARRAY_SIZE(all_fields); i++)
        if (encoding == all_fields[i].encoding ||
            (all_fields[i].bits == 64 && encoding == (all_fields[i].encoding | 1)))
            return true;
    return false;
}

static void other_encodings_are_refused(void **state)
{
    struct guest *g = *state;
    unsigned found = 0;
    uint64_t value;

    for (uint32_t e = 0; e < 0x20000; e++) {
        if (field_exists(e)) {
            found++;
            assert_int_equal(cpu_vmread(g->cpu, e, &value), VMX_OK);
            continue;
        }
        assert_int_equal(cpu_vmread(g->cpu, e, &value), VMX_FAIL_VALID);
        assert_int_equal(guest_r(g, VM_INSTRUCTION_ERROR), VMXERR_BAD_FIELD);
        assert_int_equal(cpu_vmwrite(g->cpu, e, 0), VMX_FAIL_VALID);
        assert_int_equal(guest_r(g, VM_INSTRUCTION_ERROR), VMXERR_BAD_FIELD);
    }
    assert_true(found > ARRAY_SIZE(all_fields));
    assert_int_equal(cpu_vmread(g->cpu, 0x80006820, &value), VMX_FAIL_VALID);
}

/* ---- entry checks ---- */

struct set {
    uint32_t field;
    uint64_t value;
};

enum { CTL = VMXERR_BAD_CONTROLS, HOST = VMXERR_BAD_HOST_STATE, GUEST = 33, MSRS = 34 };

struct check {
    struct set bad;
    int expect;       /* VM-instruction error, or basic exit reason of a failed entry */
    const char *text; /* part of the failed check's text */
    uint64_t qualification;
    struct set with[4]; /* set before */
};

#define PIN(bits)                  (PIN_DEFAULT1 | (bits))
#define EXEC(bits)                 ((CPU_DEFAULT1 & ~(CPU_CR3_LOAD_EXITING | CPU_CR3_STORE_EXITING)) | CPU_SECONDARY_CONTROLS | (bits))
#define EXEC2(bits)                (CPU2_ENABLE_EPT | CPU2_ENABLE_VPID | (bits))
#define XCTL(bits)                 (EXIT_DEFAULT1 | EXIT_HOST_ADDR_SPACE_SIZE | (bits))
#define NCTL(bits)                 (ENTRY_DEFAULT1 | ENTRY_IA32E_MODE | ENTRY_LOAD_EFER | (bits))
#define INJECT(type, vector, more) (INTR_INFO_VALID | (type) << 8 | (vector) | (more))
#define NONCANON                   0x800000000000ull
#define BIG                        (1ull << 52)
#define RESTRICTED                          \
    {                                       \
        SECONDARY_VM_EXEC_CONTROL, EXEC2(0) \
    }
#define LEGACY                                                                                               \
    {VM_ENTRY_CONTROLS, ENTRY_DEFAULT1 | ENTRY_LOAD_DEBUG_CONTROLS | ENTRY_LOAD_EFER}, {GUEST_IA32_EFER, 0}, \
    {                                                                                                        \
        GUEST_CS_AR_BYTES, 0xc09b                                                                            \
    }
#define AR(seg, ar)                \
    {                              \
        GUEST_##seg##_AR_BYTES, ar \
    }

static const struct check checks[] = {
    /* execution controls */
    {{PIN_BASED_VM_EXEC_CONTROL, PIN(0) & ~0x2u}, CTL, "PINBASED"},
    {{PIN_BASED_VM_EXEC_CONTROL, PIN(PIN_POSTED_INTR)}, CTL, "PINBASED"},
    {{CPU_BASED_VM_EXEC_CONTROL, EXEC(0) & ~0x2u}, CTL, "PROCBASED"},
    {{CPU_BASED_VM_EXEC_CONTROL, EXEC(1)}, CTL, "PROCBASED"},
    {{SECONDARY_VM_EXEC_CONTROL, EXEC2(CPU2_VIRT_INTR_DELIVERY)}, CTL, "PROCBASED_CTLS2"},
    {{SECONDARY_VM_EXEC_CONTROL, EXEC2(CPU2_ENABLE_XSAVES)}, CTL, "PROCBASED_CTLS2"},
    {{CR3_TARGET_COUNT, 5}, CTL, "CR3_TARGET"},
    {{IO_BITMAP_A, 0x10008}, CTL, "IO_BITMAP_A", .with = {{CPU_BASED_VM_EXEC_CONTROL, EXEC(CPU_USE_IO_BITMAPS)}}},
    {{IO_BITMAP_B, 1ull << 60}, CTL, "IO_BITMAP_B", .with = {{CPU_BASED_VM_EXEC_CONTROL, EXEC(CPU_USE_IO_BITMAPS)}}},
    {{MSR_BITMAP, 0x10001}, CTL, "MSR_BITMAP"},
    {{VIRTUAL_APIC_PAGE_ADDR, 0x1001},
     CTL,
     "VIRTUAL_APIC",
     .with = {{CPU_BASED_VM_EXEC_CONTROL, EXEC(CPU_TPR_SHADOW)}}},
    {{TPR_THRESHOLD, 0x10}, CTL, "TPR_THRESHOLD", .with = {{CPU_BASED_VM_EXEC_CONTROL, EXEC(CPU_TPR_SHADOW)}}},
    {{TPR_THRESHOLD, 1}, CTL, "tpr_at_threshold", .with = {{CPU_BASED_VM_EXEC_CONTROL, EXEC(CPU_TPR_SHADOW)}}},
    {{PIN_BASED_VM_EXEC_CONTROL, PIN(PIN_VIRTUAL_NMIS)}, CTL, "VIRTUAL_NMIS"},
    {{CPU_BASED_VM_EXEC_CONTROL, EXEC(CPU_NMI_WINDOW_EXITING)},
     CTL,
     "NMI_WINDOW",
     .with = {{PIN_BASED_VM_EXEC_CONTROL, PIN(PIN_NMI_EXITING)}}},
    {{VIRTUAL_PROCESSOR_ID, 0}, CTL, "VIRTUAL_PROCESSOR_ID"},
    {{EPT_POINTER, 0x1000 | EPTP_WALK4 | 5}, CTL, "EPT_POINTER & 7"},
    {{EPT_POINTER, 0x1000 | 2 << 3 | EPTP_WB}, CTL, "EPTP_WALK4"},
    {{EPT_POINTER, 0x1000 | EPTP_WALK4 | EPTP_WB | 0x80}, CTL, "0xf80"},
    {{EPT_POINTER, 1ull << 60 | EPTP_WALK4 | EPTP_WB}, CTL, "c->limit"},
    {{SECONDARY_VM_EXEC_CONTROL, CPU2_UNRESTRICTED_GUEST}, CTL, "UNRESTRICTED"},
    /* exit and entry controls */
    {{VM_EXIT_CONTROLS, XCTL(0) & ~1u}, CTL, "EXIT_CTLS"},
    {{VM_EXIT_CONTROLS, XCTL(EXIT_LOAD_PERF_GLOBAL_CTRL)}, CTL, "EXIT_CTLS"},
    {{VM_EXIT_CONTROLS, XCTL(EXIT_SAVE_PREEMPTION_TIMER)}, CTL, "SAVE_PREEMPTION"},
    {{VM_EXIT_MSR_STORE_COUNT, 1}, CTL, "MSR_STORE", .with = {{VM_EXIT_MSR_STORE_ADDR, 8}}},
    {{VM_EXIT_MSR_LOAD_COUNT, 513}, CTL, "EXIT_MSR_LOAD"},
    {{VM_EXIT_MSR_LOAD_COUNT, 1}, CTL, "EXIT_MSR_LOAD", .with = {{VM_EXIT_MSR_LOAD_ADDR, 1ull << 60}}},
    {{VM_ENTRY_CONTROLS, NCTL(0) & ~1u}, CTL, "ENTRY_CTLS"},
    {{VM_ENTRY_CONTROLS, NCTL(ENTRY_SMM)}, CTL, "ENTRY_CTLS"},
    {{VM_ENTRY_MSR_LOAD_COUNT, 1}, CTL, "ENTRY_MSR_LOAD", .with = {{VM_ENTRY_MSR_LOAD_ADDR, 4}}},
    /* injection */
    {{VM_ENTRY_INTR_INFO_FIELD, INJECT(1, 32, 0)}, CTL, "type != 1"},
    {{VM_ENTRY_INTR_INFO_FIELD, INJECT(INTR_NMI, 3, 0)}, CTL, "VEC_NMI"},
    {{VM_ENTRY_INTR_INFO_FIELD, INJECT(INTR_HARD_EXC, 32, 0)}, CTL, "vector < 32"},
    {{VM_ENTRY_INTR_INFO_FIELD, INJECT(INTR_OTHER, 1, 0)}, CTL, "INTR_OTHER"},
    {{VM_ENTRY_INTR_INFO_FIELD, INJECT(INTR_HARD_EXC, 13, 0)}, CTL, "vector_has_error"},
    {{VM_ENTRY_INTR_INFO_FIELD, INJECT(INTR_HARD_EXC, 6, INTR_INFO_ERROR_CODE)}, CTL, "vector_has_error"},
    {{VM_ENTRY_INTR_INFO_FIELD, INJECT(INTR_SOFT_INT, 13, INTR_INFO_ERROR_CODE)}, CTL, "vector_has_error"},
    {{VM_ENTRY_INTR_INFO_FIELD, INJECT(INTR_HARD_EXC, 6, 1 << 12)}, CTL, "0x7ffff000"},
    {{VM_ENTRY_INTR_INFO_FIELD, INJECT(INTR_HARD_EXC, 13, INTR_INFO_ERROR_CODE)},
     CTL,
     "EXCEPTION_ERROR_CODE",
     .with = {{VM_ENTRY_EXCEPTION_ERROR_CODE, 0x10000}}},
    {{VM_ENTRY_INTR_INFO_FIELD, INJECT(INTR_SOFT_INT, 0x80, 0)},
     CTL,
     "INSTRUCTION_LEN",
     .with = {{VM_ENTRY_INSTRUCTION_LEN, 16}}},
    /* host state */
    {{HOST_CR0, CR0_PE | CR0_PG}, HOST, "HOST_CR0"},
    {{HOST_CR4, CR4_PAE}, HOST, "CR4_VMXE"},
    {{HOST_CR4, CR4_VMXE}, HOST, "CR4_PAE"},
    {{HOST_CR3, BIG}, HOST, "HOST_CR3"},
    {{HOST_IA32_SYSENTER_ESP, NONCANON}, HOST, "SYSENTER_ESP"},
    {{HOST_IA32_SYSENTER_EIP, NONCANON}, HOST, "SYSENTER_EIP"},
    {{HOST_IA32_PAT, 2}, HOST, "HOST_IA32_PAT"},
    {{HOST_IA32_EFER, EFER_LMA | EFER_LME | 2}, HOST, "efer_ok"},
    {{HOST_IA32_EFER, EFER_LMA}, HOST, "EFER_LME"},
    {{HOST_CS_SELECTOR, 0}, HOST, "HOST_CS_SELECTOR != 0"},
    {{HOST_TR_SELECTOR, 0}, HOST, "HOST_TR_SELECTOR != 0"},
    {{HOST_DS_SELECTOR, 3}, HOST, "& 7"},
    {{HOST_SS_SELECTOR, 4}, HOST, "& 7"},
    {{HOST_FS_BASE, NONCANON}, HOST, "HOST_FS_BASE"},
    {{HOST_GS_BASE, NONCANON}, HOST, "HOST_GS_BASE"},
    {{HOST_GDTR_BASE, NONCANON}, HOST, "HOST_GDTR_BASE"},
    {{HOST_IDTR_BASE, NONCANON}, HOST, "HOST_IDTR_BASE"},
    {{HOST_TR_BASE, NONCANON}, HOST, "HOST_TR_BASE"},
    {{VM_EXIT_CONTROLS, EXIT_DEFAULT1}, HOST, "ADDR_SPACE_SIZE"},
    {{HOST_RIP, NONCANON}, HOST, "HOST_RIP"},
    /* guest control registers and MSRs */
    {{GUEST_CR0, CR0_PE | CR0_PG}, GUEST, "GUEST_CR0"},
    {{GUEST_CR0, CR0_PE | CR0_PG | CR0_NE | 1ull << 32}, GUEST, "GUEST_CR0"},
    {{GUEST_CR0, CR0_PG | CR0_NE}, GUEST, "g->pe"},
    {{GUEST_CR0, CR0_PE | CR0_NE}, GUEST, "GUEST_CR0", .with = {RESTRICTED}},
    {{GUEST_CR4, CR4_PAE}, GUEST, "CR4_VMXE"},
    {{GUEST_CR4, CR4_PAE | CR4_VMXE | 1 << 12}, GUEST, "cr4_fixed1"},
    {{GUEST_CR4, CR4_VMXE}, GUEST, "CR4_PAE"},
    {{GUEST_CR0, CR0_PE | CR0_NE}, GUEST, "g->pg"},
    {{GUEST_CR4, CR4_VMXE | CR4_PAE | CR4_PCIDE}, GUEST, "PCIDE", .with = {LEGACY}},
    {{GUEST_IA32_DEBUGCTL, 4}, GUEST, "DEBUGCTL"},
    {{GUEST_CR3, BIG}, GUEST, "GUEST_CR3"},
    {{GUEST_DR7, 1ull << 32}, GUEST, "DR7"},
    {{GUEST_SYSENTER_ESP, NONCANON}, GUEST, "SYSENTER_ESP"},
    {{GUEST_SYSENTER_EIP, NONCANON}, GUEST, "SYSENTER_EIP"},
    {{GUEST_IA32_PAT, 0x0307}, GUEST, "GUEST_IA32_PAT"},
    {{GUEST_IA32_EFER, EFER_LMA | EFER_LME | 2}, GUEST, "efer_ok"},
    {{GUEST_IA32_EFER, EFER_LME}, GUEST, "EFER_LMA"},
    {{GUEST_IA32_EFER, EFER_LMA}, GUEST, "EFER_LME"},
    /* segments */
    {AR(CS, 0xa091), GUEST, "type == 9"},
    {AR(CS, 0xa093), GUEST, "type == 9", .with = {RESTRICTED}},
    {AR(CS, 0xa08b), GUEST, "AR_S"},
    {AR(CS, 0xc0f3), GUEST, "dpl == 0", .with = {LEGACY, AR(SS, 0xc0f3)}},
    {AR(CS, 0xa0fb), GUEST, "dpl == ss_dpl"},
    {AR(CS, 0xa0ff), GUEST, "dpl <= ss_dpl"},
    {AR(CS, 0xa01b), GUEST, "AR_P"},
    {AR(CS, 0xa19b), GUEST, "0xfffe0f00"},
    {AR(CS, 0xe09b), GUEST, "AR_DB"},
    {AR(CS, 0x209b), GUEST, "granularity"},
    {{GUEST_CS_LIMIT, 0xfffff00}, GUEST, "granularity"},
    {{GUEST_CS_BASE, 1ull << 32}, GUEST, "GUEST_CS_BASE"},
    {{GUEST_CS_SELECTOR, 0xb}, GUEST, "rpl ==", .with = {RESTRICTED}},
    {{GUEST_SS_AR_BYTES, 0xc0f3}, GUEST, "AR_DPL(ar) == rpl", .with = {RESTRICTED, AR(CS, 0xa09f)}},
    {AR(SS, 0xc0f3), GUEST, "AR_DPL(ar) == 0", .with = {LEGACY, AR(CS, 0xc093)}},
    {AR(SS, 0xc091), GUEST, "AR_TYPE(ar) == 3"},
    {AR(SS, 0xc083), GUEST, "AR_S"},
    {AR(SS, 0xc013), GUEST, "AR_P"},
    {AR(SS, 0xc193), GUEST, "0xf00"},
    {AR(SS, 0x4093), GUEST, "granularity"},
    {AR(SS, 0x2c093), GUEST, "0xfffe0000"},
    {{GUEST_SS_BASE, 1ull << 32}, GUEST, "GUEST_SS_BASE"},
    {AR(DS, 0xc092), GUEST, "type & 1"},
    {AR(ES, 0xc099), GUEST, "type & 2"},
    {AR(FS, 0xc083), GUEST, "AR_S"},
    {{GUEST_GS_SELECTOR, 0x13}, GUEST, "AR_DPL(ar) >=", .with = {RESTRICTED}},
    {AR(DS, 0xc013), GUEST, "AR_P"},
    {AR(ES, 0xc393), GUEST, "0xf00"},
    {AR(FS, 0x4093), GUEST, "granularity"},
    {AR(GS, 0x4c093), GUEST, "0xfffe0000"},
    {{GUEST_DS_BASE, 1ull << 40}, GUEST, "base32 || !(base"},
    {{GUEST_FS_BASE, NONCANON}, GUEST, "cpu_canonical(base)"},
    {{GUEST_GS_BASE, NONCANON}, GUEST, "cpu_canonical(base)"},
    {{GUEST_TR_SELECTOR, 4}, GUEST, "GUEST_TR_SELECTOR"},
    {{GUEST_TR_BASE, NONCANON}, GUEST, "GUEST_TR_BASE"},
    {AR(TR, 0x83), GUEST, "AR_TYPE(tr)"},
    {AR(TR, 0x89), GUEST, "AR_TYPE(tr)"},
    {AR(TR, 0x9b), GUEST, "tr & AR_S"},
    {AR(TR, 0x0b), GUEST, "tr & AR_P"},
    {AR(TR, 0x1008b), GUEST, "0xffff0f00"},
    {{GUEST_TR_LIMIT, 0x100000}, GUEST, "GUEST_TR_LIMIT"},
    {{GUEST_LDTR_SELECTOR, 4}, GUEST, "LDTR_SELECTOR", .with = {AR(LDTR, 0x82)}},
    {{GUEST_LDTR_BASE, NONCANON}, GUEST, "LDTR_BASE", .with = {AR(LDTR, 0x82)}},
    {AR(LDTR, 0x83), GUEST, "AR_TYPE(ldtr)"},
    {AR(LDTR, 0x92), GUEST, "ldtr & AR_S"},
    {AR(LDTR, 0x02), GUEST, "ldtr & AR_P"},
    {AR(LDTR, 0x182), GUEST, "0xfffe0f00"},
    {AR(LDTR, 0x8082), GUEST, "LDTR_LIMIT"},
    /* descriptor tables, RIP, RFLAGS */
    {{GUEST_GDTR_BASE, NONCANON}, GUEST, "GDTR_BASE"},
    {{GUEST_IDTR_BASE, NONCANON}, GUEST, "IDTR_BASE"},
    {{GUEST_GDTR_LIMIT, 0x10000}, GUEST, "GDTR_LIMIT"},
    {{GUEST_IDTR_LIMIT, 0x10000}, GUEST, "IDTR_LIMIT"},
    {{GUEST_RIP, 1ull << 32}, GUEST, "long64", .with = {LEGACY}},
    {{GUEST_RIP, 1ull << 50}, GUEST, "high"},
    {{GUEST_RFLAGS, 2 | 1 << 15}, GUEST, "0x3f7fd7"},
    {{GUEST_RFLAGS, 2 | 1 << 22}, GUEST, "0x3f7fd7"},
    {{GUEST_RFLAGS, 0}, GUEST, "F_RESERVED"},
    {{VM_ENTRY_INTR_INFO_FIELD, INJECT(INTR_EXT, 32, 0)}, GUEST, "F_IF"},
    /* non-register state */
    {{GUEST_ACTIVITY_STATE, ACTIVITY_SHUTDOWN}, GUEST, "ACTIVITY_HLT"},
    {{GUEST_ACTIVITY_STATE, ACTIVITY_HLT}, GUEST, "GUEST_SS_AR", .with = {AR(SS, 0xc0f3), AR(CS, 0xa0fb)}},
    {{GUEST_ACTIVITY_STATE, ACTIVITY_HLT}, GUEST, "!shadow", .with = {{GUEST_INTERRUPTIBILITY_INFO, INTR_BLOCK_MOVSS}}},
    {{VM_ENTRY_INTR_INFO_FIELD, INJECT(INTR_HARD_EXC, 6, 0)},
     GUEST,
     "activity_takes",
     .with = {{GUEST_ACTIVITY_STATE, ACTIVITY_HLT}}},
    {{GUEST_INTERRUPTIBILITY_INFO, 0x10}, GUEST, "~0xf"},
    {{GUEST_INTERRUPTIBILITY_INFO, 3}, GUEST, "INTR_BLOCK_STI | INTR_BLOCK_MOVSS", .with = {{GUEST_RFLAGS, 2 | F_IF}}},
    {{GUEST_INTERRUPTIBILITY_INFO, INTR_BLOCK_STI}, GUEST, "F_IF"},
    {{VM_ENTRY_INTR_INFO_FIELD, INJECT(INTR_EXT, 32, 0)},
     GUEST,
     "!shadow",
     .with = {{GUEST_INTERRUPTIBILITY_INFO, INTR_BLOCK_STI}, {GUEST_RFLAGS, 2 | F_IF}}},
    {{VM_ENTRY_INTR_INFO_FIELD, INJECT(INTR_NMI, 2, 0)},
     GUEST,
     "INTR_BLOCK_MOVSS",
     .with = {{GUEST_INTERRUPTIBILITY_INFO, INTR_BLOCK_MOVSS}}},
    {{VM_ENTRY_INTR_INFO_FIELD, INJECT(INTR_NMI, 2, 0)},
     GUEST,
     "INTR_BLOCK_NMI",
     .with = {{GUEST_INTERRUPTIBILITY_INFO, INTR_BLOCK_NMI}}},
    {{GUEST_INTERRUPTIBILITY_INFO, INTR_BLOCK_SMI}, GUEST, "INTR_BLOCK_SMI"},
    {{GUEST_PENDING_DBG_EXCEPTIONS, 0x10}, GUEST, "0x500f"},
    {{GUEST_PENDING_DBG_EXCEPTIONS, DR6_BS},
     GUEST,
     "DR6_BS",
     .with = {{GUEST_INTERRUPTIBILITY_INFO, INTR_BLOCK_MOVSS}}},
    {{VMCS_LINK_POINTER, 0}, GUEST, "LINK", .qualification = 4},
    {{GUEST_PDPTR0, 1 | 1 << 8}, GUEST, "PDPTR0", .qualification = 2, .with = {LEGACY}},
    {{GUEST_PDPTR1, 5}, GUEST, "PDPTR1", .qualification = 2, .with = {LEGACY}},
    {{GUEST_PDPTR2, 3}, GUEST, "PDPTR2", .qualification = 2, .with = {LEGACY}},
    {{GUEST_PDPTR3, BIG | 1}, GUEST, "PDPTR3", .qualification = 2, .with = {LEGACY}},
};

static void apply(struct guest *g, const struct check *c)
{
    for (size_t i = 0; i < ARRAY_SIZE(c->with); i++)
        if (c->with[i].field)
            guest_w(g, c->with[i].field, c->with[i].value);
}

static void expect_failure(struct guest *g, const struct check *c, enum vmx_result result)
{
    const char *text = g->cpu->vmx->failed_check;

    if (!text || !strstr(text, c->text))
        fail_msg("field %#x = %#llx: expected a failure of \"%s\", got \"%s\"", c->bad.field,
                 (unsigned long long)c->bad.value, c->text, text ? text : "none");
    if (c->expect == CTL || c->expect == HOST) {
        assert_int_equal(result, VMX_FAIL_VALID);
        assert_int_equal(guest_r(g, VM_INSTRUCTION_ERROR), c->expect);
        return;
    }
    assert_int_equal(result, VMX_OK);
    assert_int_equal(guest_r(g, VM_EXIT_REASON), EXIT_REASON_FAILED_VMENTRY | (unsigned)c->expect);
    assert_int_equal(guest_r(g, EXIT_QUALIFICATION), c->qualification);
}

/* Each row: the entry works, fails for exactly the named check when one field is bad, and works again when it is
 * mended: so the skipping of groups that no VMWRITE touched is tested as well. */
static void each_entry_check_fails_by_name(void **state)
{
    struct guest *g = *state;

    for (size_t i = 0; i < ARRAY_SIZE(checks); i++) {
        const struct check *c = &checks[i];
        uint64_t good;

        guest_vmcs_controls(g);
        guest_vmcs_host(g);
        guest_vmcs_state(g);
        if (c->with[0].field == 0)
            assert_int_equal(guest_run(g), EXIT_REASON_HLT);
        apply(g, c);
        good = guest_r(g, c->bad.field);
        guest_w(g, c->bad.field, c->bad.value);
        script_runs = 0;
        expect_failure(g, c, guest_enter(g));
        assert_int_equal(script_runs, 0);
        guest_w(g, c->bad.field, good);
        if (c->with[0].field == 0) {
            assert_int_equal(guest_run(g), EXIT_REASON_HLT);
            assert_int_equal(script_runs, 1);
        }
    }
}

static void v86_state(struct guest *g)
{
    static const struct check legacy = {.with = {LEGACY}};

    guest_vmcs_controls(g);
    guest_vmcs_state(g);
    apply(g, &legacy);
    for (unsigned n = 0; n < 6; n++)
        guest_seg(g, n, 0x1000 + n, (0x1000 + n) << 4, 0xffff, 0xf3);
    guest_w(g, GUEST_RFLAGS, F_RESERVED | F_VM);
}

static void virtual_8086_segments_are_fixed(void **state)
{
    static const struct check bad[] = {
        {{GUEST_DS_BASE, 0x10000}, GUEST, "sel << 4"}, {{GUEST_GS_LIMIT, 0xfffff}, GUEST, "0xffff"},
        {AR(SS, 0x93), GUEST, "ar == 0xf3"},           {AR(CS, 0xfb), GUEST, "ar == 0xf3"},
        {{GUEST_CR0, CR0_NE}, GUEST, "F_VM"},
    };
    struct guest *g = *state;

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        v86_state(g);
        assert_int_equal(guest_run(g), EXIT_REASON_HLT);
        guest_w(g, bad[i].bad.field, bad[i].bad.value);
        expect_failure(g, &bad[i], guest_enter(g));
    }
}

/* Without EPT the PDPTEs are read from memory at CR3, an address of this process. */
static void without_ept_pdptes_come_from_memory(void **state)
{
    static const struct check bad = {.expect = GUEST, .text = "PDPTR2", .qualification = 2, .with = {LEGACY}};
    static const struct check gone = {.expect = GUEST, .text = "vmx_phys_read", .qualification = 2};
    struct guest *g = *state;
    uint64_t *table = (uint64_t *)(g->ram + GUEST_DATA);

    apply(g, &bad);
    guest_w(g, SECONDARY_VM_EXEC_CONTROL, 0);
    guest_w(g, GUEST_CR3, (uint64_t)table);
    table[3] = 0x5001;
    assert_int_equal(guest_run(g), EXIT_REASON_HLT);
    assert_int_equal(guest_r(g, GUEST_PDPTR3), 0x5001);
    table[2] = 0x5001 | 1 << 5;
    expect_failure(g, &bad, guest_enter(g)); /* memory changed, no VMWRITE: looked at all the same */
    sigaction(SIGSEGV, &host_segv, NULL);
    guest_w(g, GUEST_CR3, 0x1000); /* nothing is mapped there */
    expect_failure(g, &gone, guest_enter(g));
}

/* ---- an entry loads what is in the VMCS, whatever the exit before has left in the processor ---- */

static struct cpu_state entered, whole; /* as the guest found it; as a load of everything makes it */
static void (*in_guest)(struct cpu *);

static int script_look(struct cpu *cpu)
{
    entered = cpu->s;
    vmx_load_guest_state(cpu);
    whole = cpu->s;
    if (in_guest)
        in_guest(cpu);
    return script_hlt(cpu);
}

static void guest_changes_unsaved(struct cpu *cpu)
{
    cpu->s.efer &= ~EFER_SCE;
    cpu->s.pat = 0x0606060606060606;
    cpu->s.dr7 |= 0x400 | 1;
    cpu->s.debugctl = 1;
}

static void guest_changes_segments(struct cpu *cpu)
{
    cpu->s.seg[SEG_FS].base = 0x1234000;
    cpu->s.gdtr.limit = 0x17;
    cpu->s.rflags_sys |= F_AC | F_DF;
    cpu->s.cr3 = 0x8000;
    cpu->s.sysenter_cs = 0x10;
    cpu_mode_changed(cpu);
}

static void expect_loaded(struct guest *g, const char *what)
{
    char why[200] = "";

    in_guest = NULL;
    assert_int_equal(guest_enter(g), VMX_OK);
    assert_int_equal(guest_r(g, VM_EXIT_REASON), EXIT_REASON_HLT);
    if (!cpu_state_equal(&entered, &whole, 0, why, sizeof(why)))
        fail_msg("after %s: %s", what, why);
    if (entered.mode != whole.mode || entered.cpl != whole.cpl || entered.insn_key != whole.insn_key ||
        entered.seg_flat != whole.seg_flat || entered.tsc_offset != whole.tsc_offset ||
        entered.acc_mode != whole.acc_mode || entered.ip_mask != whole.ip_mask)
        fail_msg("after %s: a derived field", what);
}

static void each_guest_field_reaches_the_guest(void **state)
{
    static const struct {
        uint32_t field;
        uint64_t value;
    } change[] = {
        {GUEST_CR3, 0x7000},
        {GUEST_CR4, CR4_PAE | CR4_VMXE | CR4_SMAP},
        {GUEST_DR7, 0x402},
        {GUEST_IA32_DEBUGCTL, 1},
        {GUEST_IA32_PAT, 0x0606},
        {GUEST_IA32_EFER, EFER_LME | EFER_LMA},
        {GUEST_SYSENTER_CS, 8},
        {GUEST_SYSENTER_ESP, 0x111},
        {GUEST_SYSENTER_EIP, 0x222},
        {GUEST_ES_SELECTOR, 0x18},
        {GUEST_FS_BASE, 0x7f0000000},
        {GUEST_GS_BASE, 0x7e0000000},
        {GUEST_DS_LIMIT, 0xffff0fff},
        {GUEST_CS_AR_BYTES, 0xc09b},
        {GUEST_LDTR_SELECTOR, 0x38},
        {GUEST_TR_BASE, 0x6100},
        {GUEST_GDTR_BASE, 0x4100},
        {GUEST_GDTR_LIMIT, 55},
        {GUEST_IDTR_BASE, 0x5100},
        {GUEST_IDTR_LIMIT, 0x7ff},
        {GUEST_RSP, 0x8888},
        {GUEST_RIP, GUEST_CODE + 0x40},
        {GUEST_RFLAGS, 0x202},
        {GUEST_RFLAGS, 0x40002 | 0x41},
        {GUEST_INTERRUPTIBILITY_INFO, 8},
        {TSC_OFFSET, 12345},
    };
    struct guest *g = *state;

    script = script_look;
    guest_w(g, CPU_BASED_VM_EXEC_CONTROL, guest_r(g, CPU_BASED_VM_EXEC_CONTROL) | CPU_USE_TSC_OFFSETTING);
    for (size_t i = 0; i < ARRAY_SIZE(change); i++) {
        char name[32];

        guest_vmcs_state(g);
        assert_int_equal(guest_run(g), EXIT_REASON_HLT);
        expect_loaded(g, "nothing");
        guest_w(g, change[i].field, change[i].value);
        snprintf(name, sizeof(name), "row %zu", i);
        expect_loaded(g, name);
    }
}

static void what_no_vmwrite_changed_is_loaded_too(void **state)
{
    struct guest *g = *state;

    script = script_look;
    for (unsigned saved = 0; saved < 2; saved++) {
        guest_w(g, VM_EXIT_CONTROLS,
                saved ? guest_r(g, VM_EXIT_CONTROLS) | EXIT_SAVE_DEBUG_CONTROLS | EXIT_SAVE_PAT | EXIT_SAVE_EFER
                      : guest_r(g, VM_EXIT_CONTROLS) & ~(EXIT_SAVE_DEBUG_CONTROLS | EXIT_SAVE_PAT | EXIT_SAVE_EFER));
        guest_vmcs_state(g);
        assert_int_equal(guest_run(g), EXIT_REASON_HLT);
        in_guest = guest_changes_unsaved;
        assert_int_equal(guest_enter(g), VMX_OK);
        expect_loaded(g, "what the guest wrote and the exit may not save");
    }
    guest_vmcs_state(g);
    assert_int_equal(guest_run(g), EXIT_REASON_HLT);
    in_guest = guest_changes_segments;
    assert_int_equal(guest_enter(g), VMX_OK);
    expect_loaded(g, "segments that the guest changed");
    assert_int_equal(guest_enter(g), VMX_OK);
    g->cpu->s.xcr0 = 7;
    expect_loaded(g, "XCR0 by the hypervisor");
    assert_int_equal(guest_enter(g), VMX_OK);
    cpu_reset(g->cpu, true);
    expect_loaded(g, "INIT");
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        SCRIPT_TEST(each_guest_field_reaches_the_guest),
        SCRIPT_TEST(what_no_vmwrite_changed_is_loaded_too),
        SCRIPT_TEST(vmx_instructions_fail_as_the_manual_says),
        SCRIPT_TEST(fields_hold_their_width),
        SCRIPT_TEST(other_encodings_are_refused),
        SCRIPT_TEST(each_entry_check_fails_by_name),
        SCRIPT_TEST(virtual_8086_segments_are_fixed),
        SCRIPT_TEST(without_ept_pdptes_come_from_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
