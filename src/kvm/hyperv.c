/* SPDX-License-Identifier: MIT
 * hyperv.c: Hyper-V's interface for guests (Microsoft's Hypervisor Top Level Functional Specification): CPUID, MSRs and
 * the reference counter. Its hypercalls are in hyperv_call.c, its interrupt controller and timers in hyperv_synic.c. */
#include "hyperv_int.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define HV_SIGNATURE     0x31237648u /* "Hv#1" */
#define SYNDBG_SIGNATURE 0x31235356u /* "VS#1" */
#define HYPERCALL_ENABLE 1ull
#define TSC_PAGE_ENABLE  1ull
#define CRASH_NOTIFY     (1ull << 63)
#define APIC_BUS_HZ      1000000000ull
#define HV_MAX_LEAF      0x40000082u

/* ---- KVM_GET_SUPPORTED_HV_CPUID ---- */
static bool smt_possible(void)
{
    FILE *f = fopen("/sys/devices/system/cpu/smt/control", "re");
    char text[16] = "";

    if (f) {
        if (!fgets(text, sizeof(text), f))
            text[0] = 0;
        fclose(f);
    }
    return strncmp(text, "forceoff", 8) && strncmp(text, "notsupported", 12);
}

static void name_leaf(struct kvm_cpuid_entry2 *e, uint32_t last, const char name[12])
{
    e->eax = last;
    memcpy(&e->ebx, name, 4);
    memcpy(&e->ecx, name + 4, 4);
    memcpy(&e->edx, name + 8, 4);
}

int kvm_get_hv_cpuid(struct kvm_cpuid_entry2 *list, int *nent)
{
    struct kvm_cpuid_entry2 leaves[] = {
        {.function = 0x40000000},
        {.function = 0x40000001, .eax = HV_SIGNATURE},
        {.function = 0x40000002, .eax = 0x3839, .ebx = 0xa0000},
        {.function = 0x40000003, .eax = HV_EAX_ALL, .ebx = HV_EBX_ALL, .edx = HV_EDX_ALL},
        {.function = 0x40000004, .eax = HV_ENLIGHTENMENTS_ALL, .ebx = 0xfff},
        {.function = 0x40000005, .eax = KVM_MAX_VCPUS, .ebx = 64},
        {.function = 0x4000000a, .eax = 1u << 19},
        {.function = 0x40000080},
        {.function = 0x40000081, .eax = SYNDBG_SIGNATURE},
        {.function = 0x40000082, .eax = HV_SYNDBG_ALLOWED},
    };

    name_leaf(&leaves[0], HV_MAX_LEAF, "Linux KVM Hv");
    name_leaf(&leaves[7], HV_MAX_LEAF, "Microsoft VS");
    if (!smt_possible())
        leaves[4].eax |= 1u << 18; /* siblings are never others' */
    if (*nent < (int)ARRAY_SIZE(leaves))
        return -E2BIG;
    memcpy(list, leaves, sizeof(leaves));
    *nent = ARRAY_SIZE(leaves);
    return 0;
}

void kvm_hv_cpuid_changed(struct kvm_vcpu *vcpu)
{
    struct kvm_vcpu_hv *hv = &vcpu->arch.hv;
    const struct kvm_cpuid_entry2 *e = kvm_find_cpuid_entry(vcpu, 0x40000001, 0);

    hv->enabled = e && e->eax == HV_SIGNATURE;
    e = hv->enabled ? kvm_find_cpuid_entry(vcpu, 0x40000003, 0) : NULL;
    hv->features_eax = e ? e->eax : 0;
    hv->features_ebx = e ? e->ebx : 0;
    hv->features_edx = e ? e->edx : 0;
    e = hv->enabled ? kvm_find_cpuid_entry(vcpu, 0x40000004, 0) : NULL;
    hv->enlightenments_eax = e ? e->eax : 0;
    hv->enlightenments_ebx = e ? e->ebx : 0;
    e = hv->enabled ? kvm_find_cpuid_entry(vcpu, 0x40000081, 0) : NULL;
    e = e && e->eax == SYNDBG_SIGNATURE ? kvm_find_cpuid_entry(vcpu, 0x40000082, 0) : NULL;
    hv->syndbg_eax = e ? e->eax : 0;
}

/* ---- the reference counter: kvmclock in units of 100 ns, by the page's formula while the guest uses the page ---- */
static uint64_t by_page(const struct kvm_vm_hv *hv, uint64_t tsc)
{
    return (uint64_t)((unsigned __int128)tsc * hv->tsc_scale >> 64) + hv->tsc_offset;
}

uint64_t kvm_hv_reference_time(struct kvm *kvm)
{
    const struct kvm_vm_hv *hv = &kvm->arch.hv;

    if (hv->tsc_scale && kvm->vcpus[0])
        return by_page(hv, kvm_read_l1_tsc_now(kvm->vcpus[0]));
    return get_kvmclock_ns(kvm) / 100;
}

/* The guest reads sequence, fields, sequence; sequence 0: not valid now. */
static void write_tsc_page(struct kvm *kvm)
{
    struct kvm_vm_hv *hv = &kvm->arch.hv;
    struct {
        uint32_t sequence, reserved;
        uint64_t scale, offset;
    } page = {0};
    const gpa_t gpa = hv->tsc_page & PAGE_MASK;

    if (kvm_write_guest(kvm, gpa, &page.sequence, sizeof(page.sequence)) < 0)
        return;
    atomic_thread_fence(memory_order_seq_cst);
    page.scale = hv->tsc_scale;
    page.offset = hv->tsc_offset;
    kvm_write_guest(kvm, gpa + 4, &page.reserved, sizeof(page) - 4);
    atomic_thread_fence(memory_order_seq_cst);
    hv->tsc_sequence = hv->tsc_sequence + 1 ? hv->tsc_sequence + 1 : 1;
    kvm_write_guest(kvm, gpa, &hv->tsc_sequence, sizeof(hv->tsc_sequence));
}

static void start_tsc_page(struct kvm_vcpu *vcpu)
{
    struct kvm_vm_hv *hv = &vcpu->kvm->arch.hv;
    const uint64_t khz = vcpu->arch.tsc_multiplier ? vcpu->arch.tsc_khz : cpu_tsc_khz();

    hv->tsc_scale = hv->tsc_offset = 0;
    if ((hv->tsc_page & TSC_PAGE_ENABLE) && khz > 10000) {
        const uint64_t host = cpu_rdtsc(), ref = get_kvmclock_ns(vcpu->kvm) / 100;

        hv->tsc_scale = (uint64_t)(((unsigned __int128)10000 << 64) / khz);
        hv->tsc_offset = ref - by_page(hv, kvm_read_l1_tsc(vcpu, host));
        write_tsc_page(vcpu->kvm);
    }
}

/* KVM_SET_CLOCK. With reenlightenment the guest has asked that the page stays as it is until it was told. */
void kvm_hv_clock_changed(struct kvm *kvm)
{
    if (kvm->vcpus[0] && kvm->arch.hv.tsc_scale && !kvm->arch.hv.tsc_emulation_control)
        start_tsc_page(kvm->vcpus[0]);
}

/* ---- MSRs ---- */
static int set_hypercall(struct kvm_vcpu *vcpu, uint64_t data)
{
    static const uint8_t intel[] = {0x0f, 0x01, 0xc1, 0xc3}, amd[] = {0x0f, 0x01, 0xd9, 0xc3}; /* call, RET */
    struct kvm_vm_hv *hv = &vcpu->kvm->arch.hv;

    if (!hv->guest_os_id)
        return 0;
    hv->hypercall = data;
    if (!(data & HYPERCALL_ENABLE))
        return 0;
    return kvm_vcpu_write_guest(vcpu, data & PAGE_MASK, kvm_guest_vendor_amd(vcpu) ? amd : intel, 4) < 0;
}

static uint64_t thread_runtime(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * 10000000 + (uint64_t)ts.tv_nsec / 100;
}

static int set_vp_assist(struct kvm_vcpu *vcpu, uint64_t data, bool host)
{
    const uint32_t none = 0;

    vcpu->arch.hv.vp_assist = data;
    if (!vcpu->arch.apic)
        return 0;
    if (!(data & 1))
        return kvm_lapic_set_pv_eoi(vcpu, 0);
    if (!host && kvm_vcpu_write_guest(vcpu, data & PAGE_MASK, &none, sizeof(none)) < 0)
        return 1;
    return kvm_lapic_set_pv_eoi(vcpu, (data & PAGE_MASK) | 1); /* its first word is KVM's flag */
}

static int set_vp_index(struct kvm_vcpu *vcpu, uint64_t data, bool host)
{
    if (!host || data >= KVM_MAX_VCPUS)
        return 1;
    vcpu->arch.hv.vp_index = (uint32_t)data;
    vcpu->arch.hv.vp_index_set = true;
    return 0;
}

uint32_t kvm_hv_vp_index(const struct kvm_vcpu *vcpu)
{
    return vcpu->arch.hv.vp_index_set ? vcpu->arch.hv.vp_index : (uint32_t)vcpu->vcpu_idx;
}

static int set_crash_ctl(struct kvm_vcpu *vcpu, uint64_t data, bool host)
{
    if (host)
        vcpu->kvm->arch.hv.crash_ctl = data & CRASH_NOTIFY;
    else if (data & CRASH_NOTIFY)
        kvm_make_request(KVM_REQ_HV_CRASH, vcpu);
    return 0;
}

static int set_syndbg(struct kvm_vcpu *vcpu, uint32_t index, uint64_t data, bool host)
{
    uint64_t *s = vcpu->kvm->arch.hv.syndbg;

    if (index == HV_MSR_SYNDBG_OPTIONS) {
        vcpu->kvm->arch.hv.syndbg_options = data;
        return 0;
    }
    s[index - HV_MSR_SYNDBG_CONTROL] = data;
    if (index == HV_MSR_SYNDBG_CONTROL && !host) {
        vcpu->run->hyperv.type = KVM_EXIT_HYPERV_SYNDBG;
        vcpu->run->hyperv.u.syndbg.msr = index;
        vcpu->run->hyperv.u.syndbg.control = data;
        vcpu->run->hyperv.u.syndbg.status = s[1];
        vcpu->run->hyperv.u.syndbg.send_page = s[2];
        vcpu->run->hyperv.u.syndbg.recv_page = s[3];
        vcpu->run->hyperv.u.syndbg.pending_page = s[4];
        kvm_make_request(KVM_REQ_HV_EXIT, vcpu);
    }
    return 0;
}

/* Which feature bit grants an MSR: of leaf 0x40000003 EAX, or EDX from 32 on */
static const struct {
    uint32_t first, last;
    uint8_t bit;
} grants[] = {
    {0x40000000, 0x40000001, 5},       {0x40000002, 0x40000002, 6},       {0x40000003, 0x40000003, 7},
    {0x40000010, 0x40000010, 0},       {0x40000020, 0x40000020, 1},       {0x40000021, 0x40000021, 9},
    {0x40000022, 0x40000023, 11},      {0x40000070, 0x40000073, 4},       {0x40000080, 0x40000084, 2},
    {0x40000090, 0x4000009f, 2},       {0x400000b0, 0x400000b7, 3},       {0x400000f1, 0x400000f5, 32 + 11},
    {0x400000ff, 0x400000ff, 32 + 11}, {0x40000100, 0x40000105, 32 + 10}, {0x40000106, 0x40000108, 13},
};

static bool granted(struct kvm_vcpu *vcpu, uint32_t index, bool host)
{
    const struct kvm_vcpu_hv *hv = &vcpu->arch.hv;
    const uint64_t bits = hv->features_eax | (uint64_t)hv->features_edx << 32;

    if (host)
        return true;
    if (!hv->enabled)
        return false;
    if ((index >= HV_MSR_SYNDBG_CONTROL && index <= HV_MSR_SYNDBG_OPTIONS) && !(hv->syndbg_eax & HV_SYNDBG_ALLOWED))
        return false;
    for (unsigned i = 0; i < ARRAY_SIZE(grants); i++)
        if (index >= grants[i].first && index <= grants[i].last)
            return !hv->enforce || bits >> grants[i].bit & 1;
    return false;
}

/* Those that are a word of the VM's state */
static uint64_t *plain(struct kvm *kvm, uint32_t index)
{
    struct kvm_vm_hv *hv = &kvm->arch.hv;

    switch (index) {
    case 0x40000000:
        return &hv->guest_os_id;
    case 0x40000001:
        return &hv->hypercall;
    case 0x40000021:
        return &hv->tsc_page;
    case 0x400000f1 ... 0x400000f5:
        return &hv->syndbg[index - 0x400000f1];
    case 0x400000ff:
        return &hv->syndbg_options;
    case 0x40000100 ... 0x40000104:
        return &hv->crash_param[index - 0x40000100];
    case 0x40000105:
        return &hv->crash_ctl;
    case 0x40000106:
        return &hv->reenlightenment_control;
    case 0x40000107:
        return &hv->tsc_emulation_control;
    case 0x40000108:
        return &hv->tsc_emulation_status;
    }
    return NULL;
}

int kvm_hv_get_msr(struct kvm_vcpu *vcpu, uint32_t index, uint64_t *data, bool host)
{
    const uint64_t *word = plain(vcpu->kvm, index);

    *data = 0;
    if (!granted(vcpu, index, host))
        return 1;
    if (word) {
        *data = *word;
        return 0;
    }
    switch (index) {
    case 0x40000002:
        *data = kvm_hv_vp_index(vcpu);
        return 0;
    case 0x40000003: /* reset: reads as "no" */
        return 0;
    case 0x40000010:
        *data = thread_runtime() + vcpu->arch.hv.runtime_offset;
        return 0;
    case 0x40000020:
        *data = kvm_hv_reference_time(vcpu->kvm);
        return 0;
    case 0x40000022:
        *data = vcpu->arch.tsc_khz * 1000;
        return 0;
    case 0x40000023:
        *data = APIC_BUS_HZ;
        return 0;
    case 0x40000070: /* EOI is written only */
        return !host;
    case 0x40000071 ... 0x40000072:
        return kvm_hv_apic_read(vcpu, index, data);
    case 0x40000073:
        *data = vcpu->arch.hv.vp_assist;
        return 0;
    case 0x40000080 ... 0x400000b7:
        return kvm_hv_synic_get(vcpu, index, data, host);
    }
    return 1;
}

static int set_word(struct kvm_vcpu *vcpu, uint64_t *word, uint32_t index, uint64_t data, bool host)
{
    struct kvm_vm_hv *hv = &vcpu->kvm->arch.hv;

    switch (index) {
    case 0x40000000:
        hv->guest_os_id = data;
        if (!data) /* a guest that says so has no page any more */
            hv->hypercall &= ~HYPERCALL_ENABLE;
        return 0;
    case 0x40000001:
        return set_hypercall(vcpu, data);
    case 0x40000021:
        hv->tsc_page = data;
        start_tsc_page(vcpu);
        return 0;
    case 0x400000f1 ... 0x400000ff:
        return set_syndbg(vcpu, index, data, host);
    case 0x40000105:
        return set_crash_ctl(vcpu, data, host);
    case 0x40000107:
        if (data & ~1ull)
            return 1;
        break;
    case 0x40000108:
        if (data && !host)
            return 1;
        break;
    }
    *word = data;
    return 0;
}

int kvm_hv_set_msr(struct kvm_vcpu *vcpu, uint32_t index, uint64_t data, bool host)
{
    uint64_t *word = plain(vcpu->kvm, index);

    if (!granted(vcpu, index, host))
        return 1;
    if (word)
        return set_word(vcpu, word, index, data, host);
    switch (index) {
    case 0x40000002:
        return set_vp_index(vcpu, data, host);
    case 0x40000003:
        if (data == 1 && !host)
            kvm_make_request(KVM_REQ_HV_RESET, vcpu);
        return 0;
    case 0x40000010:
        vcpu->arch.hv.runtime_offset = data - thread_runtime();
        return !host;
    case 0x40000020: /* read only; a client may put back what it read */
    case 0x40000022 ... 0x40000023:
        return !host;
    case 0x40000070 ... 0x40000072:
        return host ? 0 : kvm_hv_apic_write(vcpu, index, data);
    case 0x40000073:
        return set_vp_assist(vcpu, data, host);
    case 0x40000080 ... 0x400000b7:
        return kvm_hv_synic_set(vcpu, index, data, host);
    }
    return 1;
}

/* ---- exits that a request brings. 0: to user space ---- */
int kvm_hv_requests(struct kvm_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    const struct kvm_vm_hv *hv = &vcpu->kvm->arch.hv;

    if (kvm_check_request(KVM_REQ_HV_STIMER, vcpu))
        kvm_hv_process_stimers(vcpu);
    if (kvm_check_request(KVM_REQ_HV_EXIT, vcpu)) {
        run->exit_reason = KVM_EXIT_HYPERV;
        return 0;
    }
    if (kvm_check_request(KVM_REQ_HV_CRASH, vcpu)) {
        run->exit_reason = KVM_EXIT_SYSTEM_EVENT;
        run->system_event.type = KVM_SYSTEM_EVENT_CRASH;
        run->system_event.ndata = 5;
        memcpy(run->system_event.data, hv->crash_param, sizeof(hv->crash_param));
        return 0;
    }
    if (kvm_check_request(KVM_REQ_HV_RESET, vcpu)) {
        run->exit_reason = KVM_EXIT_SYSTEM_EVENT;
        run->system_event.type = KVM_SYSTEM_EVENT_RESET;
        run->system_event.ndata = 0;
        return 0;
    }
    return 1;
}
