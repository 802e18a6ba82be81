/* SPDX-License-Identifier: MIT
 * msr.c: model-specific registers, a row each: those that KVM keeps, those in the VMCS or the processor (the vendor
 * module's), constants, and what kernels of either vendor read or write at boot and KVM answers without effect. A read
 * or write that no row takes is #GP for a guest, or an exit to user space where the client asked for it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <asm/kvm_para.h>
#include "ioctl.h"
#include "msr.h"

struct msr_access {
    uint32_t index;
    uint64_t data;
    bool host; /* KVM_GET_MSRS, KVM_SET_MSRS: not the guest */
};
struct msr_row {
    uint32_t first, last;
    uint16_t field;    /* offset in struct kvm_vcpu_arch, 8 bytes a register; NO_FIELD: none */
    uint64_t writable; /* other bits: #GP */
    uint64_t constant; /* read, where neither field nor get is */
    uint8_t flags;
    int (*get)(struct kvm_vcpu *, struct msr_access *); /* 0, or 1: #GP */
    int (*set)(struct kvm_vcpu *, const struct msr_access *);
};
#define NO_FIELD 0xffff
enum {
    LISTED = 1,    /* in KVM_GET_MSR_INDEX_LIST: state that a migration carries */
    READ_ONLY = 2, /* #GP on a guest's write */
    IGNORED = 4,   /* a write has no effect */
    HOST_SET = 8   /* only the client may write; with IGNORED a guest's write has no effect */
};

/* ---- TSC ---- */
static int get_tsc(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    m->data = kvm_read_l1_tsc_now(vcpu);
    return 0;
}

static int set_tsc(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    int64_t delta;

    if (m->host) {
        kvm_synchronize_tsc(vcpu, m->data);
        return 0;
    }
    delta = (int64_t)(m->data - kvm_read_l1_tsc_now(vcpu));
    kvm_vcpu_write_tsc_offset(vcpu, vcpu->arch.tsc_offset + (uint64_t)delta);
    vcpu->arch.tsc_adjust += (uint64_t)delta; /* SDM 3B, "Time-Stamp Counter Adjustment" */
    return 0;
}

static int set_tsc_adjust(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    if (!m->host)
        kvm_vcpu_write_tsc_offset(vcpu, vcpu->arch.tsc_offset + m->data - vcpu->arch.tsc_adjust);
    vcpu->arch.tsc_adjust = m->data;
    return 0;
}

static int get_tsc_deadline(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    m->data = vcpu->arch.apic ? kvm_get_lapic_tscdeadline_msr(vcpu) : 0;
    return 0;
}

static int set_tsc_deadline(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    if (vcpu->arch.apic)
        kvm_set_lapic_tscdeadline_msr(vcpu, m->data);
    return 0;
}

/* ---- APIC ---- */
static int set_apic_base(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    const uint64_t old = vcpu->arch.apic_base;

    if (kvm_set_apic_base(vcpu, m->data, m->host))
        return 1;
    if ((old ^ vcpu->arch.apic_base) & MSR_IA32_APICBASE_ENABLE)
        kvm_update_cpuid_runtime(vcpu);
    return 0;
}

static int get_x2apic(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    return !vcpu->arch.apic || kvm_x2apic_msr_read(vcpu, m->index, &m->data);
}

static int set_x2apic(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    return !vcpu->arch.apic || kvm_x2apic_msr_write(vcpu, m->index, m->data);
}

/* ---- EFER: what the guest's CPUID allows; LMA follows CR0.PG (SDM 3A, "IA-32e Mode Operation") ---- */
static uint64_t guest_efer_bits(struct kvm_vcpu *vcpu)
{
    const struct kvm_cpuid_entry2 *e = kvm_find_cpuid_entry(vcpu, 0x80000001, 0);
    const struct kvm_cpuid_entry2 *x = kvm_find_cpuid_entry(vcpu, 0x80000021, 0);
    uint64_t bits = 0;

    if (e && e->edx >> 11 & 1)
        bits |= EFER_SCE;
    if (e && e->edx >> 20 & 1)
        bits |= EFER_NXE;
    if (e && e->edx >> 29 & 1)
        bits |= EFER_LME | EFER_LMA;
    if (x && x->eax >> 8 & 1)
        bits |= EFER_AIBRS;
    return bits;
}

static int get_efer(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    m->data = vcpu->arch.efer;
    return 0;
}

static int set_efer(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    const uint64_t old = vcpu->arch.efer, known = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | EFER_AIBRS;

    if (m->data & ~(m->host ? known : guest_efer_bits(vcpu)))
        return 1;
    if (!m->host && (kvm_read_cr0(vcpu) & CR0_PG) && ((old ^ m->data) & EFER_LME))
        return 1;
    return kvm_x86_ops->set_efer(vcpu, m->host ? m->data : (m->data & ~EFER_LMA) | (old & EFER_LMA));
}

/* ---- in the VMCS or the processor ---- */
static int get_processor(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    return kvm_x86_ops->get_msr(vcpu, m->index, &m->data) != 0;
}

static int set_processor(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    return kvm_x86_ops->set_msr(vcpu, m->index, m->data) != 0;
}

static bool guest_has(struct kvm_vcpu *vcpu, uint32_t function, unsigned reg, unsigned bit)
{
    const struct kvm_cpuid_entry2 *e = kvm_find_cpuid_entry(vcpu, function, 0);

    return e && (&e->eax)[reg] >> bit & 1;
}
enum { EAX, EBX, ECX, EDX };

static int get_tsc_aux(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    if (!m->host && !guest_has(vcpu, 0x80000001, EDX, 27) && !guest_has(vcpu, 7, ECX, 22))
        return 1;
    return get_processor(vcpu, m);
}

static int set_tsc_aux(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    if (!m->host && !guest_has(vcpu, 0x80000001, EDX, 27) && !guest_has(vcpu, 7, ECX, 22))
        return 1;
    return set_processor(vcpu, m);
}

/* IBRS and STIBP by either vendor's leaf */
static bool guest_has_spec_ctrl(struct kvm_vcpu *vcpu)
{
    return guest_has(vcpu, 7, EDX, 26) || guest_has(vcpu, 7, EDX, 27) || guest_has(vcpu, 7, EDX, 31) ||
           guest_has(vcpu, 0x80000008, EBX, 14) || guest_has(vcpu, 0x80000008, EBX, 15) ||
           guest_has(vcpu, 0x80000008, EBX, 24);
}

static int get_spec_ctrl(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    return !m->host && !guest_has_spec_ctrl(vcpu) ? 1 : get_processor(vcpu, m);
}

static int set_spec_ctrl(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    return !m->host && !guest_has_spec_ctrl(vcpu) ? 1 : set_processor(vcpu, m);
}

static int set_pred_cmd(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    if (!m->host && !guest_has(vcpu, 7, EDX, 26) && !guest_has(vcpu, 0x80000008, EBX, 12))
        return 1;
    return set_processor(vcpu, m);
}

/* ---- MTRRs (SDM 3A, "Memory Type Range Registers"): kept, for the guest's own use; memory is write-back ---- */
static bool mtrr_type_valid(unsigned type)
{
    return type < 7 && (0x73u >> type & 1); /* UC WC WT WP WB */
}

static int set_mtrr_fixed(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    static const uint32_t numbers[] = {0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f};
    unsigned i;

    for (i = 0; i < 8; i++)
        if (!mtrr_type_valid(m->data >> 8 * i & 0xff))
            return 1;
    for (i = 0; i < ARRAY_SIZE(numbers); i++)
        if (numbers[i] == m->index)
            vcpu->arch.mtrr_fixed[i] = m->data;
    return 0;
}

static int get_mtrr_fixed(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    m->data = vcpu->arch.mtrr_fixed[m->index == 0x250 ? 0 : m->index < 0x260 ? m->index - 0x257 : m->index - 0x265];
    return 0;
}

static int set_mtrr_def(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    if ((m->data & ~0xcffull) || !mtrr_type_valid(m->data & 0xff))
        return 1;
    vcpu->arch.mtrr_def = m->data;
    return 0;
}

static int set_mtrr_var(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    const uint64_t above = ~0ull << vcpu->arch.maxphyaddr;

    if (m->index & 1 ? (m->data & (above | 0x7ff)) : (m->data & (above | 0xf00)) || !mtrr_type_valid(m->data & 0xff))
        return 1;
    vcpu->arch.mtrr_var[m->index - 0x200] = m->data;
    return 0;
}

/* ---- machine checks ---- */
static int get_mcg_ctl(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    if (!(vcpu->arch.mcg_cap & MCG_CTL_P) && !m->host)
        return 1;
    m->data = vcpu->arch.mcg_ctl;
    return 0;
}

static int set_mcg_ctl(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    if (!(vcpu->arch.mcg_cap & MCG_CTL_P) && (m->data || !m->host))
        return 1;
    if (m->data != 0 && m->data != ~0ull)
        return 1;
    vcpu->arch.mcg_ctl = m->data;
    return 0;
}

static uint64_t *mce_bank(struct kvm_vcpu *vcpu, uint32_t index)
{
    const unsigned i = index - MSR_MC0_CTL;

    return i / 4 < (vcpu->arch.mcg_cap & 0xff) ? &vcpu->arch.mce_banks[i] : NULL;
}

static int get_mc(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    const uint64_t *bank = mce_bank(vcpu, m->index);

    if (bank)
        m->data = *bank;
    return !bank;
}

/* CTL is all or nothing (but for bit 0, and bit 10 of AMD's bank 4, that old Linux clears); STATUS is only cleared, but
 * where AMD's HWCR.McStatusWrEn is set. */
static int set_mc(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    uint64_t *bank = mce_bank(vcpu, m->index);

    if (!bank)
        return 1;
    if ((m->index & 3) == 0 && m->data != 0 && (m->data | 1 << 10 | 1) != ~0ull)
        return 1;
    if (!m->host && (m->index & 3) == 1 && m->data != 0 && !(vcpu->arch.amd_hwcr & HWCR_MC_STATUS_WR_EN))
        return 1;
    *bank = m->data;
    return 0;
}

/* ---- AMD ---- */
static int set_hwcr(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    /* without effect: flush filter disable, ignore IGNNE, TLB cache disable */
    const uint64_t data = m->data & ~(0x40ull | 0x100 | 0x8), kept = HWCR_TSC_FREQ_SEL;

    if (data & ~(HWCR_MC_STATUS_WR_EN | kept))
        return 1;
    if (!m->host && ((data ^ vcpu->arch.amd_hwcr) & kept & data))
        return 1;
    vcpu->arch.amd_hwcr = m->host ? data : (data & ~kept) | (vcpu->arch.amd_hwcr & kept);
    return 0;
}

/* LFENCE is serializing and stays so. */
static int set_de_cfg(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    if (m->data & ~DE_CFG_LFENCE_SERIALIZE)
        return 1;
    vcpu->arch.amd_de_cfg = m->data;
    return 0;
}

static int amd_only(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    m->data = 0;
    return !m->host && !kvm_guest_vendor_amd(vcpu);
}

static int amd_only_set(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    return !m->host && !kvm_guest_vendor_amd(vcpu);
}

/* ---- Intel and common ---- */
/* SDM 4: ENABLE_MONITOR_FSM shows in CPUID, where the client asked for that */
static int set_misc_enable(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    const bool mwait = (vcpu->arch.ia32_misc_enable ^ m->data) & MISC_ENABLE_MWAIT;

    if (mwait && !kvm_check_has_quirk(vcpu->kvm, KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT)) {
        if (!guest_has(vcpu, 1, ECX, 0)) /* SSE3 */
            return 1;
        vcpu->arch.ia32_misc_enable = m->data;
        kvm_update_cpuid_runtime(vcpu);
    }
    vcpu->arch.ia32_misc_enable = m->data;
    return 0;
}

static int get_platform_info(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    if (!m->host && !vcpu->kvm->arch.guest_can_read_msr_platform_info)
        return 1;
    m->data = vcpu->arch.platform_info;
    return 0;
}

/* SDM 4: readable in system management mode only */
static int get_smbase(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    m->data = vcpu->arch.smbase;
    return !m->host && !vcpu->arch.in_smm;
}

static int get_arch_capabilities(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    if (!m->host && !guest_has(vcpu, 7, EDX, 29))
        return 1;
    m->data = vcpu->arch.arch_capabilities;
    return 0;
}

static int set_feature_control(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    const uint64_t vmx = guest_has(vcpu, 1, ECX, 5) ? FEAT_CTL_VMX_OUTSIDE_SMX : 0;

    if (m->data & ~(FEAT_CTL_LOCKED | vmx))
        return 1;
    if (!m->host && (vcpu->arch.feature_control & FEAT_CTL_LOCKED))
        return 1;
    vcpu->arch.feature_control = m->data;
    kvm_x86_ops->nested_changed(vcpu);
    return 0;
}

static int get_vmx_capability(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    if (!kvm_params.nested || (!m->host && !guest_has(vcpu, 1, ECX, 5)))
        return 1;
    return kvm_x86_ops->nested_get_msr(vcpu, m->index, &m->data) != 0;
}

static int set_vmx_capability(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    return !kvm_params.nested || !m->host || kvm_x86_ops->nested_set_msr(vcpu, m->index, m->data) != 0;
}

/* ---- KVM's paravirtual MSRs (Documentation/virt/kvm/x86/msr.rst) ---- */
static bool pv_allowed(struct kvm_vcpu *vcpu, bool host, unsigned feature)
{
    return host || !vcpu->arch.pv_cpuid_enforce || guest_has(vcpu, 0x40000001, EAX, feature);
}

static unsigned clock_feature(uint32_t index)
{
    return index == MSR_KVM_WALL_CLOCK || index == MSR_KVM_SYSTEM_TIME ? KVM_FEATURE_CLOCKSOURCE
                                                                       : KVM_FEATURE_CLOCKSOURCE2;
}

static int get_wall_clock(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    m->data = vcpu->arch.wall_clock_msr;
    return !pv_allowed(vcpu, m->host, clock_feature(m->index));
}

static int set_wall_clock(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    if (!pv_allowed(vcpu, m->host, clock_feature(m->index)))
        return 1;
    vcpu->arch.wall_clock_msr = m->data;
    kvm_write_wall_clock(vcpu->kvm, m->data);
    return 0;
}

static int get_system_time(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    m->data = vcpu->arch.kvmclock_msr;
    return !pv_allowed(vcpu, m->host, clock_feature(m->index));
}

static int set_system_time(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    if (!pv_allowed(vcpu, m->host, clock_feature(m->index)))
        return 1;
    vcpu->arch.kvmclock_msr = m->data;
    kvm_make_request(KVM_REQ_CLOCK_UPDATE, vcpu);
    return 0;
}

static int get_steal_time(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    m->data = vcpu->arch.steal_msr;
    return !pv_allowed(vcpu, m->host, KVM_FEATURE_STEAL_TIME);
}

static int get_pv_eoi(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    m->data = vcpu->arch.pv_eoi_msr;
    return !pv_allowed(vcpu, m->host, KVM_FEATURE_PV_EOI);
}

static int get_poll_control(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    m->data = vcpu->arch.poll_control;
    return !pv_allowed(vcpu, m->host, KVM_FEATURE_POLL_CONTROL);
}

static int set_steal_time(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    if (!pv_allowed(vcpu, m->host, KVM_FEATURE_STEAL_TIME) || (m->data & KVM_STEAL_RESERVED_MASK))
        return 1;
    vcpu->arch.steal_msr = m->data;
    if (m->data & KVM_MSR_ENABLED)
        kvm_make_request(KVM_REQ_STEAL_UPDATE, vcpu);
    return 0;
}

static int set_pv_eoi(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    if (!pv_allowed(vcpu, m->host, KVM_FEATURE_PV_EOI) || kvm_lapic_set_pv_eoi(vcpu, m->data))
        return 1;
    vcpu->arch.pv_eoi_msr = m->data;
    return 0;
}

static int set_poll_control(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    if (!pv_allowed(vcpu, m->host, KVM_FEATURE_POLL_CONTROL) || (m->data & ~1ull))
        return 1;
    vcpu->arch.poll_control = m->data;
    return 0;
}

static int get_hv(struct kvm_vcpu *vcpu, struct msr_access *m)
{
    return kvm_hv_get_msr(vcpu, m->index, &m->data, m->host);
}

static int set_hv(struct kvm_vcpu *vcpu, const struct msr_access *m)
{
    return kvm_hv_set_msr(vcpu, m->index, m->data, m->host);
}

/* ---- the table, by number ---- */
#define ARCH(field) offsetof(struct kvm_vcpu_arch, field)
#define ALL         (~0ull)
/*  first[, last], what it is */
#define KEPT(n, f, writable, flags)                   \
    {                                                 \
        n, n, ARCH(f), writable, 0, flags, NULL, NULL \
    }
#define KEPT_SET(n, f, flags, set)              \
    {                                           \
        n, n, ARCH(f), ALL, 0, flags, NULL, set \
    }
#define KEPT_GET(n, f, writable, flags, get)         \
    {                                                \
        n, n, ARCH(f), writable, 0, flags, get, NULL \
    }
#define BY(n, last, flags, get, set)               \
    {                                              \
        n, last, NO_FIELD, ALL, 0, flags, get, set \
    }
#define PROCESSOR(n, last, flags) BY(n, last, flags, get_processor, set_processor)
#define CONST(n, last, value, flags)                     \
    {                                                    \
        n, last, NO_FIELD, ALL, value, flags, NULL, NULL \
    }

static const struct msr_row rows[] = {
    CONST(0x0, 0x1, 0, IGNORED),              /* P5_MC_ADDR, P5_MC_TYPE */
    BY(0x10, 0x10, LISTED, get_tsc, set_tsc), /* IA32_TIME_STAMP_COUNTER */
    BY(MSR_KVM_WALL_CLOCK, MSR_KVM_WALL_CLOCK, LISTED, get_wall_clock, set_wall_clock),
    BY(MSR_KVM_SYSTEM_TIME, MSR_KVM_SYSTEM_TIME, LISTED, get_system_time, set_system_time),
    CONST(0x17, 0x17, 0, IGNORED),                                            /* IA32_PLATFORM_ID */
    KEPT_SET(0x1b, apic_base, 0, set_apic_base),                              /* IA32_APIC_BASE */
    CONST(0x2a, 0x2a, 0, IGNORED),                                            /* EBL_CR_POWERON */
    CONST(0x2c, 0x2c, 1 << 24, READ_ONLY),                                    /* EBC_FREQUENCY_ID */
    KEPT(0x34, smi_count, ALL, LISTED | HOST_SET),                            /* MSR_SMI_COUNT */
    KEPT_SET(0x3a, feature_control, LISTED, set_feature_control),             /* IA32_FEATURE_CONTROL */
    KEPT_SET(0x3b, tsc_adjust, LISTED, set_tsc_adjust),                       /* IA32_TSC_ADJUST */
    BY(0x48, 0x48, LISTED, get_spec_ctrl, set_spec_ctrl),                     /* IA32_SPEC_CTRL */
    BY(0x49, 0x49, 0, NULL, set_pred_cmd),                                    /* IA32_PRED_CMD: write only */
    CONST(0x79, 0x79, 0, IGNORED),                                            /* IA32_BIOS_UPDT_TRIG */
    KEPT(0x8b, microcode, ALL, LISTED | HOST_SET | IGNORED),                  /* IA32_BIOS_SIGN_ID, AMD PATCH_LEVEL */
    KEPT_GET(0x9e, smbase, 0xffffffff, LISTED | HOST_SET, get_smbase),        /* IA32_SMBASE */
    CONST(0xc1, 0xc2, 0, IGNORED),                                            /* PERFCTR0-1: no performance counters */
    CONST(0xcd, 0xcd, 3, READ_ONLY),                                          /* FSB_FREQ */
    KEPT_GET(0xce, platform_info, ALL, LISTED | HOST_SET, get_platform_info), /* MSR_PLATFORM_INFO */
    CONST(0xfe, 0xfe, 0x508, READ_ONLY), /* IA32_MTRRCAP: 8 ranges, fixed ones, WC */
    KEPT_GET(0x10a, arch_capabilities, ALL, LISTED | HOST_SET, get_arch_capabilities),
    KEPT(0x140, msr_misc_features, 0, LISTED),                     /* MISC_FEATURE_ENABLES: no CPUID faulting */
    PROCESSOR(0x174, 0x176, LISTED),                               /* IA32_SYSENTER_CS, ESP, EIP */
    KEPT(0x179, mcg_cap, 0, READ_ONLY),                            /* IA32_MCG_CAP */
    KEPT(0x17a, mcg_status, ALL, LISTED),                          /* IA32_MCG_STATUS */
    BY(0x17b, 0x17b, LISTED, get_mcg_ctl, set_mcg_ctl),            /* IA32_MCG_CTL */
    CONST(0x186, 0x187, 0, IGNORED),                               /* IA32_PERFEVTSEL0-1 */
    CONST(0x198, 0x198, 1000ull | 4ull << 40, READ_ONLY),          /* IA32_PERF_STATUS, as Linux's KVM */
    CONST(0x199, 0x199, 0, IGNORED),                               /* IA32_PERF_CTL */
    KEPT_SET(0x1a0, ia32_misc_enable, LISTED, set_misc_enable),    /* IA32_MISC_ENABLE */
    PROCESSOR(0x1d9, 0x1d9, 0),                                    /* IA32_DEBUGCTL */
    CONST(0x1db, 0x1de, 0, READ_ONLY),                             /* LASTBRANCHFROMIP ... LASTINTTOIP: no LBR */
    KEPT(0x1fc, power_ctl, ALL, LISTED),                           /* MSR_POWER_CTL */
    {0x200, 0x20f, ARCH(mtrr_var), ALL, 0, 0, NULL, set_mtrr_var}, /* IA32_MTRR_PHYSBASE0 ... PHYSMASK7 */
    BY(0x250, 0x250, 0, get_mtrr_fixed, set_mtrr_fixed),           /* IA32_MTRR_FIX64K_00000 */
    BY(0x258, 0x259, 0, get_mtrr_fixed, set_mtrr_fixed),           /* IA32_MTRR_FIX16K_80000, A0000 */
    BY(0x268, 0x26f, 0, get_mtrr_fixed, set_mtrr_fixed),           /* IA32_MTRR_FIX4K_C0000 ... F8000 */
    PROCESSOR(0x277, 0x277, LISTED),                               /* IA32_PAT */
    KEPT_SET(0x2ff, mtrr_def, 0, set_mtrr_def),                    /* IA32_MTRR_DEF_TYPE */
    BY(MSR_MC0_CTL, MSR_MC0_CTL + 4 * KVM_MAX_MCE_BANKS - 1, 0, get_mc, set_mc),
    BY(0x480, 0x491, 0, get_vmx_capability, set_vmx_capability),  /* IA32_VMX_BASIC ... VMFUNC */
    BY(0x6e0, 0x6e0, LISTED, get_tsc_deadline, set_tsc_deadline), /* IA32_TSC_DEADLINE */
    BY(0x800, 0x8ff, 0, get_x2apic, set_x2apic),
    /* Hyper-V (hyperv.c) */
    BY(0x40000000, 0x40000003, LISTED, get_hv, set_hv), /* GUEST_OS_ID, HYPERCALL, VP_INDEX, RESET */
    BY(0x40000010, 0x40000010, LISTED, get_hv, set_hv), /* VP_RUNTIME */
    BY(0x40000020, 0x40000023, LISTED, get_hv, set_hv), /* TIME_REF_COUNT, REFERENCE_TSC, TSC and APIC frequency */
    BY(0x40000070, 0x40000072, 0, get_hv, set_hv),      /* EOI, ICR, TPR */
    BY(0x40000073, 0x40000073, LISTED, get_hv, set_hv), /* VP_ASSIST_PAGE */
    BY(0x40000080, 0x40000080, LISTED, get_hv, set_hv), /* SCONTROL */
    BY(0x40000081, 0x40000084, 0, get_hv, set_hv),      /* SVERSION, SIEFP, SIMP, EOM */
    BY(0x40000090, 0x4000009f, 0, get_hv, set_hv),      /* SINT0-15 */
    BY(0x400000b0, 0x400000b0, LISTED, get_hv, set_hv), /* STIMER0_CONFIG */
    BY(0x400000b1, 0x400000b7, 0, get_hv, set_hv),      /* STIMER0_COUNT ... STIMER3_COUNT */
    BY(0x400000f1, 0x400000f5, LISTED, get_hv, set_hv), /* SYNDBG_CONTROL ... PENDING_BUFFER */
    BY(0x400000ff, 0x400000ff, LISTED, get_hv, set_hv), /* SYNDBG_OPTIONS */
    BY(0x40000100, 0x40000105, LISTED, get_hv, set_hv), /* CRASH_P0-4, CRASH_CTL */
    BY(0x40000106, 0x40000108, LISTED, get_hv, set_hv), /* REENLIGHTENMENT_CONTROL, TSC_EMULATION_* */
    BY(MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_WALL_CLOCK_NEW, LISTED, get_wall_clock, set_wall_clock),
    BY(MSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_SYSTEM_TIME_NEW, LISTED, get_system_time, set_system_time),
    BY(MSR_KVM_STEAL_TIME, MSR_KVM_STEAL_TIME, LISTED, get_steal_time, set_steal_time),
    BY(MSR_KVM_PV_EOI_EN, MSR_KVM_PV_EOI_EN, LISTED, get_pv_eoi, set_pv_eoi),
    BY(MSR_KVM_POLL_CONTROL, MSR_KVM_POLL_CONTROL, LISTED, get_poll_control, set_poll_control),
    BY(0xc0000080, 0xc0000080, 0, get_efer, set_efer),             /* IA32_EFER */
    PROCESSOR(0xc0000081, 0xc0000084, LISTED),                     /* STAR, LSTAR, CSTAR, FMASK */
    PROCESSOR(0xc0000100, 0xc0000101, 0),                          /* FS.base, GS.base: in SREGS for the client */
    PROCESSOR(0xc0000102, 0xc0000102, LISTED),                     /* KERNEL_GS_BASE */
    BY(0xc0000103, 0xc0000103, LISTED, get_tsc_aux, set_tsc_aux),  /* TSC_AUX */
    CONST(0xc0010000, 0xc0010007, 0, IGNORED),                     /* K7 EVNTSEL0-3, PERFCTR0-3 */
    BY(0xc0010010, 0xc0010010, 0, amd_only, amd_only_set),         /* SYSCFG: no memory encryption */
    KEPT_SET(0xc0010015, amd_hwcr, LISTED, set_hwcr),              /* HWCR */
    CONST(0xc001001f, 0xc001001f, 0, IGNORED),                     /* NB_CFG */
    CONST(0xc0010020, 0xc0010020, 0, IGNORED),                     /* PATCH_LOADER */
    CONST(0xc0010055, 0xc0010055, 0, IGNORED),                     /* INT_PENDING_MSG */
    {0xc0010058, 0xc0010058, NO_FIELD, 0, 0, IGNORED, NULL, NULL}, /* MMIO_CONF_BASE: off */
    CONST(0xc0010112, 0xc0010113, 0, IGNORED),                     /* TSEG_ADDR, TSEG_MASK */
    BY(0xc0010114, 0xc0010114, 0, amd_only, amd_only_set),         /* VM_CR */
    BY(0xc0010140, 0xc0010141, 0, amd_only, amd_only_set),         /* OSVW_ID_LENGTH, STATUS: no known errata */
    CONST(0xc0011022, 0xc0011023, 0, IGNORED),                     /* DC_CFG, TW_CFG */
    KEPT_SET(0xc0011029, amd_de_cfg, LISTED, set_de_cfg),          /* DE_CFG */
    CONST(0xc001102a, 0xc001102a, 0, IGNORED),                     /* BU_CFG2 */
    CONST(0xc001102c, 0xc001102c, 0, IGNORED),                     /* F15H_EX_CFG */
};

static const struct msr_row *find_row(uint32_t index)
{
    unsigned lo = 0, hi = ARRAY_SIZE(rows);

    while (lo < hi) {
        const unsigned mid = (lo + hi) / 2;

        if (rows[mid].last < index)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < ARRAY_SIZE(rows) && rows[lo].first <= index ? &rows[lo] : NULL;
}

static uint64_t *field_of(struct kvm_vcpu *vcpu, const struct msr_row *row, uint32_t index)
{
    return (uint64_t *)((char *)&vcpu->arch + row->field) + (index - row->first);
}

static int read_row(struct kvm_vcpu *vcpu, const struct msr_row *row, struct msr_access *m)
{
    if (row->get)
        return row->get(vcpu, m);
    if (row->field != NO_FIELD)
        m->data = *field_of(vcpu, row, m->index);
    else if (row->set) /* write only */
        return 1;
    else
        m->data = row->constant;
    return 0;
}

static int write_row(struct kvm_vcpu *vcpu, const struct msr_row *row, const struct msr_access *m)
{
    const uint64_t changed = m->data & ~row->writable;

    if ((row->flags & HOST_SET) && !m->host)
        return !(row->flags & IGNORED);
    if (row->flags & READ_ONLY) { /* a client may put back what it read */
        struct msr_access now = *m;

        return !m->host || read_row(vcpu, row, &now) || now.data != m->data;
    }
    if (changed)
        return 1;
    if (row->set)
        return row->set(vcpu, m);
    if (row->field != NO_FIELD)
        *field_of(vcpu, row, m->index) = m->data;
    else if (!(row->flags & IGNORED))
        return 1;
    return 0;
}

/* ---- KVM_X86_SET_MSR_FILTER: immutable once published, read in a section of kvm->srcu ---- */
struct msr_filter_range {
    uint32_t base, nmsrs, flags;
    uint8_t *bitmap;
};
struct kvm_msr_filter_set {
    bool default_allow;
    unsigned count;
    struct msr_filter_range range[KVM_MSR_FILTER_MAX_RANGES];
};
#define FILTER_MAX_BITMAP 0x600u

static void filter_free(struct kvm_msr_filter_set *f)
{
    unsigned i;

    for (i = 0; f && i < f->count; i++)
        free(f->range[i].bitmap);
    free(f);
}

static int filter_add(struct kvm_msr_filter_set *f, const struct kvm_msr_filter_range *user)
{
    struct msr_filter_range *r = &f->range[f->count];
    const size_t size = (user->nmsrs + 63) / 64 * 8;

    if (!user->nmsrs)
        return 0;
    if (!user->flags || (user->flags & ~(KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE)))
        return because(-EINVAL, "range flags 0x%x", user->flags);
    if (!size || size > FILTER_MAX_BITMAP)
        return because(-EINVAL, "a range of %u MSRs", user->nmsrs);
    r->bitmap = malloc(size);
    if (!r->bitmap)
        return -ENOMEM;
    f->count++;
    r->base = user->base;
    r->nmsrs = user->nmsrs;
    r->flags = user->flags;
    return os_copy_from_user(r->bitmap, user->bitmap, size);
}

int kvm_set_msr_filter(struct kvm *kvm, const struct kvm_msr_filter *user)
{
    struct kvm_msr_filter_set *f, *old;
    int r = 0;
    unsigned i;

    if (user->flags & ~KVM_MSR_FILTER_DEFAULT_DENY)
        return because(-EINVAL, "unknown flags 0x%x", user->flags);
    f = calloc(1, sizeof(*f));
    if (!f)
        return -ENOMEM;
    f->default_allow = !(user->flags & KVM_MSR_FILTER_DEFAULT_DENY);
    for (i = 0; i < KVM_MSR_FILTER_MAX_RANGES && !r; i++)
        r = filter_add(f, &user->ranges[i]);
    if (!r && !f->count && !f->default_allow)
        r = because(-EINVAL, "deny by default, and no range");
    if (r) {
        filter_free(f);
        return r;
    }
    pthread_mutex_lock(&kvm->lock);
    old = atomic_exchange(&kvm->arch.msr_filter, f);
    srcu_synchronize(&kvm->srcu);
    pthread_mutex_unlock(&kvm->lock);
    filter_free(old);
    kvm_make_all_cpus_request(kvm, KVM_REQ_MSR_FILTER_CHANGED, false);
    return 0;
}

void kvm_msr_filter_free(struct kvm *kvm)
{
    filter_free(atomic_exchange(&kvm->arch.msr_filter, NULL));
}

bool kvm_msr_allowed(struct kvm *kvm, uint32_t index, bool write)
{
    const uint32_t want = write ? KVM_MSR_FILTER_WRITE : KVM_MSR_FILTER_READ;
    unsigned token, i;
    const struct kvm_msr_filter_set *f;
    bool allowed = true;

    if (likely(!atomic_load_explicit(&kvm->arch.msr_filter, memory_order_relaxed)) ||
        (index >= 0x800 && index <= 0x8ff))
        return true;
    token = srcu_read_lock(&kvm->srcu);
    f = atomic_load(&kvm->arch.msr_filter);
    if (f)
        allowed = f->default_allow;
    for (i = 0; f && i < f->count; i++) {
        const struct msr_filter_range *r = &f->range[i];

        if (index - r->base < r->nmsrs && (r->flags & want)) {
            allowed = r->bitmap[(index - r->base) / 8] >> (index - r->base) % 8 & 1;
            break;
        }
    }
    srcu_read_unlock(&kvm->srcu, token);
    return allowed;
}

/* ---- the API and RDMSR, WRMSR ---- */
int kvm_get_msr(struct kvm_vcpu *vcpu, uint32_t index, uint64_t *data, bool host_initiated)
{
    const struct msr_row *row = find_row(index);
    struct msr_access m = {index, 0, host_initiated};

    if (!host_initiated && !kvm_msr_allowed(vcpu->kvm, index, false))
        return KVM_MSR_RET_FILTERED;
    if (!row)
        return KVM_MSR_RET_INVALID;
    if (read_row(vcpu, row, &m))
        return 1;
    *data = m.data;
    return 0;
}

int kvm_set_msr(struct kvm_vcpu *vcpu, uint32_t index, uint64_t data, bool host_initiated)
{
    const struct msr_row *row = find_row(index);
    const struct msr_access m = {index, data, host_initiated};

    if (!host_initiated && !kvm_msr_allowed(vcpu->kvm, index, true))
        return KVM_MSR_RET_FILTERED;
    if (!row)
        return KVM_MSR_RET_INVALID;
    return write_row(vcpu, row, &m) != 0;
}

/* ---- lists ---- */
unsigned kvm_msr_index_list(const uint32_t **list)
{
    static uint32_t numbers[256];
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    unsigned n = 0, i;

    pthread_mutex_lock(&lock);
    for (i = 0; i < ARRAY_SIZE(rows); i++) {
        uint32_t msr;

        for (msr = rows[i].first; (rows[i].flags & LISTED) && msr <= rows[i].last; msr++)
            numbers[n++] = msr;
    }
    pthread_mutex_unlock(&lock);
    *list = numbers;
    return n;
}

/* What a software processor may honestly deny: a guest's loads are checked in software before they are made, so the
 * host's CPU holds nothing of another privilege level at an address that the guest can name (RDCL, L1TF, MDS, TAA and
 * the stale-data family). Store bypass and branch prediction are the host's own: those bits stay clear. */
#define ARCH_CAPABILITIES_HONEST                                                                         \
    (ARCH_CAP_RDCL_NO | ARCH_CAP_SKIP_L1DFL | ARCH_CAP_MDS_NO | ARCH_CAP_PSCHANGE_NO | ARCH_CAP_TAA_NO | \
     ARCH_CAP_SBDR_NO | ARCH_CAP_FBSDP_NO | ARCH_CAP_PSDP_NO | ARCH_CAP_GDS_NO | ARCH_CAP_RFDS_NO)

static bool host_is_amd(void)
{
    struct cpuid_regs r;

    cpu_cpuid(0, 0, &r);
    return !memcmp(&r.ebx, "Auth", 4) || !memcmp(&r.ebx, "Hygo", 4);
}

static const uint32_t feature_msrs[] = {0x8b,  0x10a, 0xc0011029, 0x345, 0x480, 0x481, 0x482,
                                        0x483, 0x484, 0x485,      0x486, 0x487, 0x488, 0x489,
                                        0x48a, 0x48b, 0x48c,      0x48d, 0x48e, 0x48f, 0x490};
#define FEATURE_MSRS_PLAIN 4 /* the others are there with nested=1 */

unsigned kvm_msr_feature_index_list(const uint32_t **list)
{
    *list = feature_msrs;
    return kvm_params.nested ? ARRAY_SIZE(feature_msrs) : FEATURE_MSRS_PLAIN;
}

int kvm_get_msr_feature(uint32_t index, uint64_t *data)
{
    switch (index) {
    case 0x8b:
        *data = host_is_amd() ? 0x01000065 : 0x100000000ull; /* as Linux's KVM without the client's own */
        return 0;
    case 0x10a:
        *data = ARCH_CAPABILITIES_HONEST;
        return 0;
    case 0xc0011029:
        *data = DE_CFG_LFENCE_SERIALIZE;
        return 0;
    case 0x345: /* IA32_PERF_CAPABILITIES: as a KVM with enable_pmu=0 */
        *data = 0;
        return 0;
    default:
        return kvm_params.nested && index >= 0x480 && index <= 0x490 ? cpu_nested_default_cap(index, data) : -1;
    }
}

/* A new vCPU's values; kvm_vcpu_reset() has no part in them. */
void kvm_msr_vcpu_init(struct kvm_vcpu *vcpu)
{
    struct kvm_vcpu_arch *a = &vcpu->arch;

    a->maxphyaddr = 36;
    a->mcg_cap = KVM_MAX_MCE_BANKS;
    a->ia32_misc_enable = MISC_ENABLE_PEBS_UNAVAIL | MISC_ENABLE_BTS_UNAVAIL;
    a->poll_control = 1;
    a->amd_hwcr = host_is_amd() ? HWCR_TSC_FREQ_SEL : 0; /* the TSC counts at its nominal frequency */
    kvm_get_msr_feature(0x8b, &a->microcode);
    kvm_get_msr_feature(0x10a, &a->arch_capabilities);
    kvm_get_msr_feature(0xc0011029, &a->amd_de_cfg);
}
