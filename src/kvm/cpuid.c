/* SPDX-License-Identifier: MIT
 * cpuid.c: what a guest may be shown (KVM_GET_SUPPORTED_CPUID), what it is shown (KVM_SET_CPUID2), and how an
 * instruction finds its leaf. The processor says what it executes; KVM adds what it emulates itself. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <asm/kvm_para.h>
#include "ioctl.h"
#include "msr.h"

#define KVM_SIGNATURE_LEAF 0x40000000u
#define KVM_FEATURES_LEAF  0x40000001u
#define BIT(n)             (1u << (n))

/* leaf 1 */
#define ECX1_MWAIT      BIT(3)
#define ECX1_VMX        BIT(5)
#define ECX1_X2APIC     BIT(21)
#define ECX1_OSXSAVE    BIT(27)
#define ECX1_HYPERVISOR BIT(31)
#define EDX1_APIC       BIT(9)
/* leaf 7 */
#define EBX7_TSC_ADJUST        BIT(1)
#define EDX7_ARCH_CAPABILITIES BIT(29)
/* leaf 0xd, 1 */
#define EAXD_XSAVEC BIT(1)
#define EAXD_XSAVES BIT(3)

static const uint32_t kvm_pv_features =
    BIT(KVM_FEATURE_CLOCKSOURCE) | BIT(KVM_FEATURE_NOP_IO_DELAY) | BIT(KVM_FEATURE_CLOCKSOURCE2) |
    BIT(KVM_FEATURE_STEAL_TIME) | BIT(KVM_FEATURE_PV_EOI) | BIT(KVM_FEATURE_POLL_CONTROL) |
    BIT(KVM_FEATURE_PV_SEND_IPI) | BIT(KVM_FEATURE_PV_SCHED_YIELD) | BIT(KVM_FEATURE_CLOCKSOURCE_STABLE_BIT);

/* ---- KVM_GET_SUPPORTED_CPUID ---- */
struct entries {
    struct kvm_cpuid_entry2 *e;
    int n, room;
};

/* The next entry, filled from the processor; NULL: no room left. */
static struct kvm_cpuid_entry2 *add(struct entries *list, uint32_t function, uint32_t index, bool indexed)
{
    struct kvm_cpuid_entry2 *e;
    struct cpuid_regs r;

    if (list->n >= list->room)
        return NULL;
    e = &list->e[list->n++];
    cpu_cpuid(function, index, &r);
    *e = (struct kvm_cpuid_entry2){
        .function = function,
        .index = index,
        .flags = indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
        .eax = r.eax,
        .ebx = r.ebx,
        .ecx = r.ecx,
        .edx = r.edx,
    };
    return e;
}

static int leaf_1(struct entries *list)
{
    struct kvm_cpuid_entry2 *e = add(list, 1, 0, false);

    if (!e)
        return -E2BIG;
    e->ecx |= ECX1_X2APIC | ECX1_HYPERVISOR;
    if (!kvm_params.nested)
        e->ecx &= ~ECX1_VMX; /* the processor's own, for KVM */
    return 0;
}

/* Cache levels and topology extensions: subleaves until the type field is 0. */
static int leaf_caches(struct entries *list, uint32_t function)
{
    uint32_t index = 0;
    struct kvm_cpuid_entry2 *e;

    do {
        e = add(list, function, index, true);
        if (!e)
            return -E2BIG;
    } while ((e->eax & 0x1f) && ++index < 16);
    return 0;
}

static int leaf_7(struct entries *list)
{
    struct kvm_cpuid_entry2 *e = add(list, 7, 0, true);
    uint32_t index, last;

    if (!e)
        return -E2BIG;
    e->ebx |= EBX7_TSC_ADJUST;
    e->edx |= EDX7_ARCH_CAPABILITIES;
    last = e->eax;
    for (index = 1; index <= last; index++)
        if (!add(list, 7, index, true))
            return -E2BIG;
    return 0;
}

static int leaf_d(struct entries *list)
{
    const uint64_t xcr0 = cpu_fpu_xcr0_mask();
    uint32_t index;

    for (index = 0; index < 64; index++)
        if ((index < 2 || xcr0 >> index & 1) && !add(list, 0xd, index, true))
            return -E2BIG;
    return 0;
}

/* No topology of ours: subleaf 1 would announce one. */
static int leaf_topology(struct entries *list)
{
    struct kvm_cpuid_entry2 *e = add(list, 0xb, 0, true);

    if (!e)
        return -E2BIG;
    e->eax = e->ebx = e->ecx = e->edx = 0;
    return 0;
}

static int leaf_plain(struct entries *list, uint32_t function)
{
    return add(list, function, 0, false) ? 0 : -E2BIG;
}

static int basic_leaf(struct entries *list, uint32_t function)
{
    switch (function) {
    case 1:
        return leaf_1(list);
    case 4:
        return leaf_caches(list, function);
    case 7:
        return leaf_7(list);
    case 0xb:
        return leaf_topology(list);
    case 0xd:
        return leaf_d(list);
    case 0x8000001d:
        return leaf_caches(list, function);
    default:
        return leaf_plain(list, function);
    }
}

/* Function 0 or 0x80000000 and all up to the one that its EAX names. */
static int leaf_class(struct entries *list, uint32_t first)
{
    struct kvm_cpuid_entry2 *e = add(list, first, 0, false);
    uint32_t function, last;

    if (!e)
        return -E2BIG;
    if (first == 0 && e->eax < 0xb)
        e->eax = 0xb;
    last = e->eax;
    for (function = first + 1; function <= last && function - first < 0x40; function++)
        if (basic_leaf(list, function))
            return -E2BIG;
    return 0;
}

static int kvm_leaves(struct entries *list)
{
    struct kvm_cpuid_entry2 *e = add(list, KVM_SIGNATURE_LEAF, 0, false);

    if (!e)
        return -E2BIG;
    e->eax = KVM_FEATURES_LEAF;
    memcpy(&e->ebx, "KVMK", 4);
    memcpy(&e->ecx, "VMKV", 4);
    memcpy(&e->edx, "M\0\0\0", 4);
    e = add(list, KVM_FEATURES_LEAF, 0, false);
    if (!e)
        return -E2BIG;
    e->eax = kvm_pv_features;
    e->ebx = e->ecx = e->edx = 0;
    return 0;
}

int kvm_dev_ioctl_get_cpuid(struct kvm_cpuid_entry2 *entries, int *nent, bool emulated)
{
    struct entries list = {entries, 0, *nent};
    int r = 0;

    /* Emulated: executed although the processor does not offer it. Nothing is: it offers all that it executes. */
    if (!emulated) {
        r = leaf_class(&list, 0);
        if (!r)
            r = leaf_class(&list, 0x80000000);
        if (!r)
            r = kvm_leaves(&list);
    }
    *nent = list.n;
    return r;
}

/* ---- look-up ---- */
static struct kvm_cpuid_entry2 *find_in(struct kvm_cpuid_entry2 *e, int nent, uint32_t function, uint32_t index)
{
    int i;

    for (i = 0; i < nent; i++)
        if (e[i].function == function && (!(e[i].flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || e[i].index == index))
            return &e[i];
    return NULL;
}

struct kvm_cpuid_entry2 *kvm_find_cpuid_entry(struct kvm_vcpu *vcpu, uint32_t function, uint32_t index)
{
    return find_in(vcpu->arch.cpuid, vcpu->arch.cpuid_nent, function, index);
}

static bool vendor_is(const struct kvm_cpuid_entry2 *zero, const char *name)
{
    return zero && !memcmp(&zero->ebx, name, 4) && !memcmp(&zero->edx, name + 4, 4) && !memcmp(&zero->ecx, name + 8, 4);
}

bool kvm_guest_vendor_amd(struct kvm_vcpu *vcpu)
{
    const struct kvm_cpuid_entry2 *zero = kvm_find_cpuid_entry(vcpu, 0, 0);

    return vendor_is(zero, "AuthenticAMD") || vendor_is(zero, "HygonGenuine");
}

/* Intel: a function above its class's last answers as the last basic leaf; AMD: zeros (SDM 2A, "CPUID"; APM 3). */
static struct kvm_cpuid_entry2 *out_of_range(struct kvm_vcpu *vcpu, uint32_t *function, uint32_t index)
{
    struct kvm_cpuid_entry2 *basic = kvm_find_cpuid_entry(vcpu, 0, 0), *class;

    if (!basic || kvm_guest_vendor_amd(vcpu))
        return NULL;
    if (*function >= 0x40000000 && *function <= 0x4fffffff)
        class = kvm_find_cpuid_entry(vcpu, *function & 0xffffff00, 0);
    else if (*function >= 0xc0000000)
        class = kvm_find_cpuid_entry(vcpu, 0xc0000000, 0);
    else
        class = kvm_find_cpuid_entry(vcpu, *function & 0x80000000, 0);
    if (class && *function <= class->eax)
        return NULL;
    *function = basic->eax;
    return kvm_find_cpuid_entry(vcpu, basic->eax, index);
}

bool kvm_cpuid(struct kvm_vcpu *vcpu, uint32_t *eax, uint32_t *ebx, uint32_t *ecx, uint32_t *edx)
{
    const uint32_t asked = *eax, index = *ecx;
    uint32_t function = asked;
    struct kvm_cpuid_entry2 *e = kvm_find_cpuid_entry(vcpu, function, index);
    const bool exact = e != NULL;

    if (!e)
        e = out_of_range(vcpu, &function, index);
    *eax = *ebx = *ecx = *edx = 0;
    if (e) {
        *eax = e->eax;
        *ebx = e->ebx;
        *ecx = e->ecx;
        *edx = e->edx;
    } else if (function == 0xb || function == 0x1f) {
        /* ECX 7:0 comes back and EDX is the x2APIC id, even for subleaves that are not there */
        e = kvm_find_cpuid_entry(vcpu, function, 1);
        if (e) {
            *ecx = index & 0xff;
            *edx = e->edx;
        }
    }
    return exact;
}

/* ---- bits that follow the vCPU's state ---- */
static uint32_t xsave_size(uint64_t xcr0, bool compacted)
{
    uint32_t size = 512 + 64;
    unsigned i;

    for (i = 2; i < 63; i++) {
        struct cpuid_regs r;

        if (!(xcr0 >> i & 1))
            continue;
        cpu_cpuid(0xd, i, &r);
        if (compacted) {
            if (r.ecx & 2)
                size = (size + 63) & ~63u;
            size += r.eax;
        } else if (r.ebx + r.eax > size) {
            size = r.ebx + r.eax;
        }
    }
    return size;
}

static void put_bit(uint32_t *reg, uint32_t bit, bool on)
{
    *reg = on ? *reg | bit : *reg & ~bit;
}

static void update_runtime(struct kvm_vcpu *vcpu, struct kvm_cpuid_entry2 *list, int nent)
{
    struct kvm_cpuid_entry2 *e = find_in(list, nent, 1, 0);
    const uint64_t xcr0 = cpu_state(vcpu->arch.cpu)->xcr0;

    if (e) {
        put_bit(&e->ecx, ECX1_OSXSAVE, kvm_read_cr4(vcpu) & CR4_OSXSAVE);
        if (!kvm_check_has_quirk(vcpu->kvm, KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT))
            put_bit(&e->ecx, ECX1_MWAIT, vcpu->arch.ia32_misc_enable & MISC_ENABLE_MWAIT);
        put_bit(&e->edx, EDX1_APIC, vcpu->arch.apic_base & MSR_IA32_APICBASE_ENABLE);
    }
    e = find_in(list, nent, 0xd, 0);
    if (e)
        e->ebx = xsave_size(xcr0, false);
    e = find_in(list, nent, 0xd, 1);
    if (e && (e->eax & (EAXD_XSAVEC | EAXD_XSAVES)))
        e->ebx = xsave_size(xcr0, true);
}

void kvm_update_cpuid_runtime(struct kvm_vcpu *vcpu)
{
    update_runtime(vcpu, vcpu->arch.cpuid, vcpu->arch.cpuid_nent);
}

/* ---- KVM_SET_CPUID2 ---- */
static int check_cpuid(struct kvm_cpuid_entry2 *list, int nent)
{
    const struct kvm_cpuid_entry2 *e = find_in(list, nent, 0x80000008, 0);
    const unsigned bits = e ? (e->eax >> 8) & 0xff : 0;

    if (bits && bits != 48 && bits != 57)
        return because(-EINVAL, "%u linear address bits (leaf 0x80000008), 48 or 57 exist", bits);
    return 0;
}

static unsigned maxphyaddr_of(struct kvm_vcpu *vcpu)
{
    const struct kvm_cpuid_entry2 *e = kvm_find_cpuid_entry(vcpu, 0x80000000, 0);

    if (e && e->eax >= 0x80000008)
        e = kvm_find_cpuid_entry(vcpu, 0x80000008, 0);
    else
        e = NULL;
    return e && (e->eax & 0xff) ? e->eax & 0xff : 36;
}

static void after_set_cpuid(struct kvm_vcpu *vcpu)
{
    const struct kvm_cpuid_entry2 *d = kvm_find_cpuid_entry(vcpu, 0xd, 0);

    vcpu->arch.maxphyaddr = maxphyaddr_of(vcpu);
    vcpu->arch.guest_supported_xcr0 = d ? (d->eax | (uint64_t)d->edx << 32) & cpu_fpu_xcr0_mask() : 0;
    kvm_hv_cpuid_changed(vcpu);
    kvm_x86_ops->update_cpuid(vcpu);
    kvm_make_request(KVM_REQ_EVENT, vcpu);
}

/* After the first KVM_RUN nothing may change (api.rst 4.20): the same table again is accepted, for CPU hotplug. */
static int set_again(struct kvm_vcpu *vcpu, struct kvm_cpuid_entry2 *list, int nent)
{
    update_runtime(vcpu, list, nent);
    if (nent != vcpu->arch.cpuid_nent || (nent && memcmp(list, vcpu->arch.cpuid, (size_t)nent * sizeof(*list))))
        return because(-EINVAL, "the vCPU has run: its CPUID cannot change");
    return 0;
}

int kvm_vcpu_ioctl_set_cpuid2(struct kvm_vcpu *vcpu, const struct kvm_cpuid_entry2 *entries, int nent)
{
    const size_t size = (size_t)nent * sizeof(*entries);
    struct kvm_cpuid_entry2 *list = malloc(size ? size : 1);
    int r, i;

    if (!list)
        return -ENOMEM;
    memcpy(list, entries, size);
    for (i = 0; i < nent; i++) /* compared later: no noise in the padding */
        memset(list[i].padding, 0, sizeof(list[i].padding));
    r = check_cpuid(list, nent);
    if (!r && vcpu->arch.has_run) {
        r = set_again(vcpu, list, nent);
    } else if (!r) {
        update_runtime(vcpu, list, nent);
        free(vcpu->arch.cpuid);
        vcpu->arch.cpuid = list;
        vcpu->arch.cpuid_nent = nent;
        after_set_cpuid(vcpu);
        list = NULL;
    }
    free(list);
    return r;
}
