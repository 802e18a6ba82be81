/* SPDX-License-Identifier: MIT
 * cpuid.c: what this processor has: an allow-list (features.def) over the host's CPUID. A bit is offered when its rows
 * exist in ops.def and, where the host executes them, the host has it (SDM 2A, "CPUID"). */
#include <cpuid.h>
#include <string.h>
#include "sys/cpu_sys.h"

enum { REG_EAX, REG_EBX, REG_ECX, REG_EDX };

static const struct feature_row {
    uint32_t leaf, subleaf;
    uint8_t reg, bit, own;
} feature_rows[FEAT_COUNT] = {
#define FEATURE(name, leaf, sub, reg, bit, own) {leaf, sub, REG_##reg, bit, own},
#include "features.def"
#undef FEATURE
};
enum { FEAT_HOST_ROWS, FEAT_OWN_ROWS, FEAT_OWN, FEAT_HOST }; /* features.def, column own */

static const uint16_t features_of_rows[] = {
#define OP(mnemonic, interp, trans, rd, must, may, undef, attrs, feature) FEAT_##feature,
#include "insn/ops.def"
#undef OP
};

/* A feature is withdrawn where the other is not offered; in order, so chains work. */
static const struct {
    uint16_t feature, needs;
} dependencies[] = {
    {FEAT_SSE, FEAT_FXSR},
    {FEAT_SSE2, FEAT_SSE},
    {FEAT_AES, FEAT_SSE2},
    {FEAT_PCLMULQDQ, FEAT_SSE2},
    {FEAT_SHA, FEAT_SSE2},
    {FEAT_XSAVEOPT, FEAT_XSAVE},
    {FEAT_XSAVEC, FEAT_XSAVE},
    {FEAT_XGETBV1, FEAT_XSAVE},
    {FEAT_AVX, FEAT_XSAVE},
    {FEAT_AVX2, FEAT_AVX},
    {FEAT_FMA, FEAT_AVX},
    {FEAT_F16C, FEAT_AVX},
    {FEAT_VAES, FEAT_AVX},
    {FEAT_VPCLMULQDQ, FEAT_AVX},
    {FEAT_AVXVNNI, FEAT_AVX2},
    {FEAT_AVX512F, FEAT_AVX2},
    {FEAT_AVX512DQ, FEAT_AVX512F},
    {FEAT_AVX512IFMA, FEAT_AVX512F},
    {FEAT_AVX512CD, FEAT_AVX512F},
    {FEAT_AVX512BW, FEAT_AVX512F},
    {FEAT_AVX512VL, FEAT_AVX512F},
    {FEAT_AVX512VBMI, FEAT_AVX512BW},
    {FEAT_AVX512VBMI2, FEAT_AVX512BW},
    {FEAT_AVX512VNNI, FEAT_AVX512F},
    {FEAT_AVX512BITALG, FEAT_AVX512BW},
    {FEAT_AVX512BF16, FEAT_AVX512BW},
    {FEAT_AVX512VPOPCNTDQ, FEAT_AVX512F},
    {FEAT_AVX512VP2INTERSECT, FEAT_AVX512F},
};

static bool offered[FEAT_COUNT];
static uint32_t host_max, host_max_ext;
static bool host_amd;

static void host_cpuid(uint32_t leaf, uint32_t subleaf, struct cpuid_regs *r)
{
    *r = (struct cpuid_regs){0};
    if (leaf <= (leaf & 0x80000000 ? host_max_ext : host_max))
        __cpuid_count(leaf, subleaf, r->eax, r->ebx, r->ecx, r->edx);
}

static uint32_t *reg_of(struct cpuid_regs *r, unsigned reg)
{
    uint32_t *const regs[] = {&r->eax, &r->ebx, &r->ecx, &r->edx};

    return regs[reg];
}

static void find_offered(void)
{
    bool named[FEAT_COUNT] = {false};
    const uint64_t xcr0 = cpu_fpu_xcr0_mask();

    for (unsigned i = 0; i < ARRAY_SIZE(features_of_rows); i++)
        named[features_of_rows[i]] = true;
    for (unsigned i = 0; i < FEAT_COUNT; i++) {
        const struct feature_row *f = &feature_rows[i];
        struct cpuid_regs r;

        host_cpuid(f->leaf, f->subleaf, &r);
        offered[i] = (f->own == FEAT_OWN || f->own == FEAT_HOST || named[i]) &&
                     (f->own == FEAT_OWN || f->own == FEAT_OWN_ROWS || (*reg_of(&r, f->reg) >> f->bit & 1));
    }
    offered[FEAT_NONE] = true;
    offered[FEAT_AVX] &= (xcr0 & 6) == 6;
    offered[FEAT_AVX512F] &= (xcr0 & 0xe6) == 0xe6;
    for (unsigned i = 0; i < ARRAY_SIZE(dependencies); i++)
        offered[dependencies[i].feature] &= offered[dependencies[i].needs];
}

static void cpuid_init_once(void)
{
    struct cpuid_regs r;

    __cpuid(0, host_max, r.ebx, r.ecx, r.edx);
    host_amd = r.ebx == signature_AMD_ebx || r.ebx == 0x6f677948; /* AuthenticAMD, HygonGenuine */
    __cpuid(0x80000000, host_max_ext, r.ebx, r.ecx, r.edx);
    if (!(host_max_ext & 0x80000000))
        host_max_ext = 0;
    find_offered();
}

/* cpu_create() has been here before guest mode, where cpu_has_feature() may be asked: then it is one load. */
static void cpuid_init(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static _Atomic bool ready;

    if (likely(atomic_load_explicit(&ready, memory_order_acquire)))
        return;
    pthread_once(&once, cpuid_init_once);
    atomic_store_explicit(&ready, true, memory_order_release);
}

bool cpu_has_feature(enum feature f)
{
    cpuid_init();
    return f < FEAT_COUNT && offered[f];
}

/* The offered bits of one register; what no row of features.def covers stays 0. */
static uint32_t feature_bits(uint32_t leaf, uint32_t subleaf, unsigned reg)
{
    uint32_t bits = 0;

    for (unsigned i = FEAT_NONE + 1; i < FEAT_COUNT; i++) {
        const struct feature_row *f = &feature_rows[i];

        if (offered[i] && f->leaf == leaf && f->subleaf == subleaf && f->reg == reg)
            bits |= 1u << f->bit;
    }
    return bits;
}

static void leaf_features(uint32_t leaf, uint32_t subleaf, struct cpuid_regs *r)
{
    r->ebx = feature_bits(leaf, subleaf, REG_EBX);
    r->ecx = feature_bits(leaf, subleaf, REG_ECX);
    r->edx = feature_bits(leaf, subleaf, REG_EDX);
}

/* ---- leaves ---- */
static void leaf_0(uint32_t subleaf, struct cpuid_regs *r)
{
    host_cpuid(0, 0, r);
    r->eax = offered[FEAT_XSAVE] ? 0xd : 7;
}

static void leaf_1(uint32_t subleaf, struct cpuid_regs *r)
{
    host_cpuid(1, 0, r);
    const uint32_t eax = r->eax, clflush = r->ebx & 0xff00;

    leaf_features(1, 0, r);
    r->eax = eax;
    r->ebx = clflush | 1u << 16; /* APIC id and thread count are the hypervisor's */
}

static void leaf_host(uint32_t leaf, uint32_t subleaf, struct cpuid_regs *r)
{
    host_cpuid(leaf, subleaf, r);
}

/* Cache leaves as on the host, but for how many logical processors share each: that is the hypervisor's. */
static void leaf_cache(uint32_t leaf, uint32_t subleaf, struct cpuid_regs *r)
{
    host_cpuid(leaf, subleaf, r);
    r->eax &= 0x3fff;
}

static void leaf_7(uint32_t subleaf, struct cpuid_regs *r)
{
    if (subleaf == 0) {
        leaf_features(7, 0, r);
        r->eax = 1;
    } else if (subleaf == 1) {
        leaf_features(7, 1, r);
        r->eax = feature_bits(7, 1, REG_EAX);
    }
}

static void xsave_sizes(uint64_t mask, uint32_t *standard, uint32_t *compacted)
{
    struct cpuid_regs c;

    *standard = *compacted = 512 + 64;
    for (unsigned i = 2; i < 63; i++) {
        if (!(mask >> i & 1))
            continue;
        host_cpuid(0xd, i, &c);
        if (c.ebx + c.eax > *standard)
            *standard = c.ebx + c.eax;
        if (c.ecx & 2)
            *compacted = (*compacted + 63) & ~63u;
        *compacted += c.eax;
    }
}

static void leaf_d(uint32_t subleaf, struct cpuid_regs *r)
{
    const uint64_t mask = cpu_fpu_xcr0_mask();
    uint32_t standard, compacted;

    if (!offered[FEAT_XSAVE])
        return;
    xsave_sizes(mask, &standard, &compacted);
    if (subleaf == 0) {
        *r = (struct cpuid_regs){(uint32_t)mask, standard, standard, (uint32_t)(mask >> 32)};
    } else if (subleaf == 1) {
        r->eax = feature_bits(0xd, 1, REG_EAX);
        r->ebx = offered[FEAT_XSAVEC] ? compacted : 0;
    } else if (subleaf < 63 && (mask >> subleaf & 1)) {
        host_cpuid(0xd, subleaf, r);
        r->ecx &= 2; /* a user component; aligned in the compacted form or not */
        r->edx = 0;
    }
}

static void leaf_ext0(uint32_t subleaf, struct cpuid_regs *r)
{
    host_cpuid(0x80000000, 0, r);
    r->eax = host_amd ? 0x80000021 : 0x80000008;
}

/* On AMD some bits of leaf 1 EDX are repeated here. */
#define EXT1_EDX_OF_LEAF1 0x0183f3ffu

static void leaf_ext1(uint32_t subleaf, struct cpuid_regs *r)
{
    struct cpuid_regs one;

    host_cpuid(0x80000001, 0, r);
    const uint32_t eax = r->eax, package = r->ebx & 0xf0000000;

    leaf_features(0x80000001, 0, r);
    r->eax = eax;
    if (host_amd) {
        leaf_1(0, &one);
        r->ebx = package;
        r->edx |= one.edx & EXT1_EDX_OF_LEAF1;
    }
}

static void leaf_ext7(uint32_t subleaf, struct cpuid_regs *r)
{
    host_cpuid(0x80000007, 0, r);
    *r = (struct cpuid_regs){.edx = r->edx & 1u << 8}; /* the TSC is the host's: invariant if that is */
}

#define LINEAR_BITS   48 /* never LA57 */
#define PHYS_BITS_MAX 48 /* what an EPT of four levels maps */

static void leaf_ext8(uint32_t subleaf, struct cpuid_regs *r)
{
    host_cpuid(0x80000008, 0, r);
    uint32_t phys = r->eax & 0xff;

    if (phys < 36)
        phys = 36;
    if (phys > PHYS_BITS_MAX)
        phys = PHYS_BITS_MAX;
    *r = (struct cpuid_regs){.eax = phys | LINEAR_BITS << 8};
    if (host_amd)
        r->ebx = feature_bits(0x80000008, 0, REG_EBX);
}

static void leaf_ext21(uint32_t subleaf, struct cpuid_regs *r)
{
    r->eax = feature_bits(0x80000021, 0, REG_EAX);
}

static void leaf_6(uint32_t subleaf, struct cpuid_regs *r)
{
    r->eax = 4; /* ARAT: the APIC timer runs on in every C-state, for there are none */
}

enum { VENDOR_ANY, VENDOR_AMD, VENDOR_INTEL };
static const struct leaf_row {
    uint32_t leaf;
    uint8_t vendor;
    void (*fn)(uint32_t subleaf, struct cpuid_regs *);
    void (*host)(uint32_t leaf, uint32_t subleaf, struct cpuid_regs *);
} leaf_rows[] = {
    {0x0, VENDOR_ANY, leaf_0, NULL},
    {0x1, VENDOR_ANY, leaf_1, NULL},
    {0x2, VENDOR_INTEL, NULL, leaf_host},
    {0x4, VENDOR_INTEL, NULL, leaf_cache},
    {0x6, VENDOR_ANY, leaf_6, NULL},
    {0x7, VENDOR_ANY, leaf_7, NULL},
    {0xd, VENDOR_ANY, leaf_d, NULL},
    {0x80000000, VENDOR_ANY, leaf_ext0, NULL},
    {0x80000001, VENDOR_ANY, leaf_ext1, NULL},
    {0x80000002, VENDOR_ANY, NULL, leaf_host},
    {0x80000003, VENDOR_ANY, NULL, leaf_host},
    {0x80000004, VENDOR_ANY, NULL, leaf_host},
    {0x80000005, VENDOR_AMD, NULL, leaf_host},
    {0x80000006, VENDOR_ANY, NULL, leaf_host},
    {0x80000007, VENDOR_ANY, leaf_ext7, NULL},
    {0x80000008, VENDOR_ANY, leaf_ext8, NULL},
    {0x80000019, VENDOR_AMD, NULL, leaf_host},
    {0x8000001d, VENDOR_AMD, NULL, leaf_cache},
    {0x80000021, VENDOR_AMD, leaf_ext21, NULL},
};

void cpu_cpuid(uint32_t leaf, uint32_t subleaf, struct cpuid_regs *r)
{
    cpuid_init();
    *r = (struct cpuid_regs){0};
    for (unsigned i = 0; i < ARRAY_SIZE(leaf_rows); i++) {
        const struct leaf_row *row = &leaf_rows[i];

        if (row->leaf != leaf || (row->vendor != VENDOR_ANY && (row->vendor == VENDOR_AMD) != host_amd))
            continue;
        if (row->fn)
            row->fn(subleaf, r);
        else
            row->host(leaf, subleaf, r);
        return;
    }
}

/* ---- what depends on the CPUID that the hypervisor gives to the guest ---- */
static const struct {
    uint64_t cr4;
    uint8_t leaf, reg, bit; /* leaf: 1, 7, 0 always */
} cr4_bits[] = {
    {CR4_VME | CR4_PVI, 1, REG_EDX, 1}, {CR4_TSD, 1, REG_EDX, 4},    {CR4_DE, 1, REG_EDX, 2},
    {CR4_PSE, 1, REG_EDX, 3},           {CR4_PAE, 1, REG_EDX, 6},    {CR4_MCE, 1, REG_EDX, 7},
    {CR4_PGE, 1, REG_EDX, 13},          {CR4_PCE, 0, 0, 0},          {CR4_OSFXSR, 1, REG_EDX, 24},
    {CR4_OSXMMEXCPT, 1, REG_EDX, 25},   {CR4_UMIP, 7, REG_ECX, 2},   {CR4_VMXE, 0, 0, 0},
    {CR4_FSGSBASE, 7, REG_EBX, 0},      {CR4_PCIDE, 1, REG_ECX, 17}, {CR4_OSXSAVE, 1, REG_ECX, 26},
    {CR4_SMEP, 7, REG_EBX, 7},          {CR4_SMAP, 7, REG_EBX, 20},
};

/* CR4.VMXE counts as valid: it is 1 in the real register throughout VMX operation; vmx_cr_allowed() holds it there. */
static uint64_t cr4_valid(const struct cpuid_regs *leaf1, const struct cpuid_regs *leaf7)
{
    struct cpuid_regs one = *leaf1, seven = *leaf7;
    uint64_t valid = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(cr4_bits); i++) {
        const uint32_t bits = cr4_bits[i].leaf == 0   ? 1
                              : cr4_bits[i].leaf == 1 ? *reg_of(&one, cr4_bits[i].reg)
                                                      : *reg_of(&seven, cr4_bits[i].reg);
        if (bits >> cr4_bits[i].bit & 1)
            valid |= cr4_bits[i].cr4;
    }
    return valid;
}

static uint64_t efer_valid(const struct cpuid_regs *ext1, bool amd)
{
    uint64_t valid = 0;

    if (ext1->edx & 1u << 11)
        valid |= EFER_SCE;
    if (ext1->edx & 1u << 20)
        valid |= EFER_NXE;
    if (ext1->edx & 1u << 29)
        valid |= EFER_LME | EFER_LMA;
    if (amd && offered[FEAT_AUTO_IBRS])
        valid |= EFER_AIBRS;
    return valid;
}

void cpu_set_guest_cpuid(struct cpu *cpu, const struct cpuid_regs *leaf1, const struct cpuid_regs *leaf7_0,
                         const struct cpuid_regs *ext1, unsigned maxphyaddr, bool vendor_amd)
{
    cpu->guest_leaf1 = *leaf1;
    cpu->guest_leaf7 = *leaf7_0;
    cpu->guest_ext1 = *ext1;
    cpu->guest_cr4_valid = cr4_valid(leaf1, leaf7_0);
    cpu->guest_efer_valid = efer_valid(ext1, vendor_amd);
    cpu->guest_maxphyaddr = maxphyaddr < 32 ? 32 : maxphyaddr > 52 ? 52 : maxphyaddr;
    cpu->guest_amd = vendor_amd;
}

/* Until the hypervisor says otherwise the guest sees the processor's own. */
void cpuid_cpu_init(struct cpu *cpu)
{
    struct cpuid_regs leaf1, leaf7, ext1, ext8;

    cpu_cpuid(1, 0, &leaf1);
    cpu_cpuid(7, 0, &leaf7);
    cpu_cpuid(0x80000001, 0, &ext1);
    cpu_cpuid(0x80000008, 0, &ext8);
    cpu_set_guest_cpuid(cpu, &leaf1, &leaf7, &ext1, ext8.eax & 0xff, host_amd);
}
