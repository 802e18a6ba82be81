/* SPDX-License-Identifier: MIT
 * vmx_nested.c: kvm_intel's part of VMX inside of the guest (nested=1). The processor runs the guest hypervisor's VMX
 * itself (src/cpu/vmx.h); here is what KVM has to add: the guest's physical memory and MSRs, events of KVM's own that
 * go to that hypervisor instead of its guest, the capability MSRs, and KVM_GET/SET_NESTED_STATE. */
#include "kvm_vmx.h"
#include "x86.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- what the processor asks ---- */
static int nested_read(void *opaque, gpa_t gpa, void *data, size_t len)
{
    return kvm_vcpu_read_guest(opaque, gpa, data, len) < 0 ? -1 : 0;
}

static int nested_write(void *opaque, gpa_t gpa, const void *data, size_t len)
{
    return kvm_vcpu_write_guest(opaque, gpa, data, len) < 0 ? -1 : 0;
}

static int nested_rdmsr(void *opaque, uint32_t index, uint64_t *data)
{
    return kvm_get_msr(opaque, index, data, false) ? -1 : 0;
}

static int nested_wrmsr(void *opaque, uint32_t index, uint64_t data)
{
    return kvm_set_msr(opaque, index, data, false) ? -1 : 0;
}

static const struct cpu_nested_ops nested_ops = {nested_read, nested_write, nested_rdmsr, nested_wrmsr};

int vmx_nested_create(struct kvm_vcpu *vcpu)
{
    if (!kvm_params.nested)
        return 0;
    return cpu_nested_init(vcpu->arch.cpu, &nested_ops, vcpu) ? -ENOMEM : 0;
}

static bool nested_vmx_allowed(struct kvm_vcpu *vcpu)
{
    return kvm_params.nested && guest_cpuid_has(vcpu, 1, 'c', 5);
}

/* CPUID or IA32_FEATURE_CONTROL has changed. */
void vmx_nested_changed(struct kvm_vcpu *vcpu)
{
    if (kvm_params.nested)
        cpu_nested_allow(vcpu->arch.cpu, nested_vmx_allowed(vcpu), vcpu->arch.feature_control);
}

/* VM entries and exits of the guest's hypervisor change registers that KVM keeps copies of. */
void vmx_nested_sync(struct kvm_vcpu *vcpu)
{
    const uint64_t own0 = vcpu->arch.cr0_guest_owned_bits, own4 = vcpu->arch.cr4_guest_owned_bits;

    vcpu->arch.cr0 = (vmcs_read(vcpu, CR0_READ_SHADOW) & ~own0) | (vmcs_read(vcpu, GUEST_CR0) & own0);
    vcpu->arch.cr4 = (vmcs_read(vcpu, CR4_READ_SHADOW) & ~own4) | (vmcs_read(vcpu, GUEST_CR4) & own4);
    vcpu->arch.efer = vmcs_read(vcpu, GUEST_IA32_EFER);
    if (!(vcpu->arch.guest_debug & KVM_GUESTDBG_USE_HW_BP))
        vcpu->arch.dr7 = vmcs_read(vcpu, GUEST_DR7);
    kvm_update_cpuid_runtime(vcpu);
}

/* ---- events ---- */
static int nested_exit(struct kvm_vcpu *vcpu, uint32_t reason, uint64_t qualification, uint32_t info, uint32_t error)
{
    kvm_trace(TRACE_INJECT, "vcpu %d: exit %s to the guest's hypervisor, event %#x", vcpu->vcpu_id,
              vmx_exit_name(reason), info);
    if (cpu_nested_exit(vcpu->arch.cpu, reason, qualification, info, error)) {
        kvm_make_request(KVM_REQ_TRIPLE_FAULT, vcpu);
        return -EIO;
    }
    if (cpu_nested_moved(vcpu->arch.cpu))
        vmx_nested_sync(vcpu);
    kvm_make_request(KVM_REQ_EVENT, vcpu);
    return 0;
}

bool vmx_nested_triple_fault(struct kvm_vcpu *vcpu)
{
    if (!cpu_nested_in_guest(vcpu->arch.cpu))
        return false;
    kvm_clear_queues(vcpu);
    return nested_exit(vcpu, EXIT_REASON_TRIPLE_FAULT, 0, 0, 0) == 0;
}

bool vmx_nested_wants_exception(struct kvm_vcpu *vcpu, unsigned vector, uint32_t error)
{
    return cpu_nested_wants_exception(vcpu->arch.cpu, vector, error);
}

static int exception_exit(struct kvm_vcpu *vcpu)
{
    const struct kvm_queued_exception ex = vcpu->arch.exception;
    const bool soft = ex.vector == VEC_BP || ex.vector == VEC_OF;
    uint32_t info = ex.vector | (soft ? INTR_SOFT_EXC : INTR_HARD_EXC) << 8 | INTR_INFO_VALID;
    uint64_t qualification = 0;

    if (ex.vector == VEC_PF)
        qualification = ex.has_payload ? ex.payload : cpu_state(vcpu->arch.cpu)->cr2;
    else if (ex.vector == VEC_DB)
        qualification = (ex.has_payload ? ex.payload : vcpu->arch.dr6 ^ DR6_FIXED) & 0xf00f;
    if (ex.has_error_code)
        info |= INTR_INFO_ERROR_CODE;
    vcpu->arch.exception = (struct kvm_queued_exception){0};
    return nested_exit(vcpu, EXIT_REASON_EXCEPTION_NMI, qualification, info,
                       ex.has_error_code ? (uint16_t)ex.error_code : 0);
}

static int interrupt_exit(struct kvm_vcpu *vcpu, unsigned wants)
{
    uint32_t info = 0;

    if (wants & NESTED_INTR_ACK) {
        const int vector = kvm_cpu_get_interrupt(vcpu);

        if (vector < 0)
            return 0;
        info = (uint32_t)vector | INTR_INFO_VALID;
    }
    return nested_exit(vcpu, EXIT_REASON_EXTERNAL_INTERRUPT, 0, info, 0);
}

/* What is new is offered to the guest's hypervisor (SDM 3C, "Other Causes of VM Exits"); an event whose delivery was
 * interrupted goes in first, and then the processor comes back at once. 0 or a negative errno. */
int vmx_nested_check_events(struct kvm_vcpu *vcpu)
{
    const unsigned wants = cpu_nested_wants(vcpu->arch.cpu);
    const struct kvm_queued_exception *ex = &vcpu->arch.exception;
    const bool exception = ex->pending && vmx_nested_wants_exception(vcpu, ex->vector, ex->error_code);
    const bool nmi = vcpu->arch.nmi_pending && wants & NESTED_NMI && !(wants & NESTED_NMI_BLOCKED);
    const bool interrupt = wants & NESTED_INTR && kvm_cpu_has_injectable_intr(vcpu);

    if (!exception && !nmi && !interrupt)
        return 0;
    if (kvm_event_needs_reinjection(vcpu) || (ex->pending && !exception)) {
        cpu_kick(vcpu->arch.cpu);
        return 0;
    }
    if (exception)
        return exception_exit(vcpu);
    if (nmi) {
        vcpu->arch.nmi_pending--;
        return nested_exit(vcpu, EXIT_REASON_EXCEPTION_NMI, 0, INTR_INFO_VALID | INTR_NMI << 8 | VEC_NMI, 0);
    }
    return interrupt_exit(vcpu, wants);
}

bool vmx_nested_in_guest(struct kvm_vcpu *vcpu)
{
    return cpu_nested_in_guest(vcpu->arch.cpu);
}

bool vmx_nested_wants_interrupt(struct kvm_vcpu *vcpu)
{
    return cpu_nested_wants(vcpu->arch.cpu) & NESTED_INTR;
}

bool vmx_nested_cr_allowed(struct kvm_vcpu *vcpu, unsigned cr, uint64_t value)
{
    return cpu_nested_cr_allowed(vcpu->arch.cpu, cr, value);
}

/* ---- capability MSRs (SDM 3D, "VMX Capability Reporting Facility") ---- */
#define LOW_HALF  0xffffffffull
#define HIGH_HALF (LOW_HALF << 32)

#define BASIC_FEATURES ((1ull << 49) | (1ull << 54) | (1ull << 55))
#define BASIC_32BIT    (1ull << 48)
#define BASIC_SIZE(x)  ((x) >> 32 & 0x1fff)
#define MISC_FEATURES  ((1ull << 5) | (7ull << 6) | (1ull << 14) | (1ull << 15) | (1ull << 28) | (3ull << 29))

static bool subset(uint64_t of, uint64_t value, uint64_t mask)
{
    return !(value & ~of & mask);
}

/* The MSRs without TRUE have the default1 bits set. */
static uint64_t default1_of(uint32_t msr)
{
    static const uint32_t default1[] = {PIN_DEFAULT1, CPU_DEFAULT1, EXIT_DEFAULT1, ENTRY_DEFAULT1};

    return default1[msr - MSR_IA32_VMX_PINBASED_CTLS];
}

static bool is_plain_control(uint32_t msr)
{
    return msr >= MSR_IA32_VMX_PINBASED_CTLS && msr <= MSR_IA32_VMX_ENTRY_CTLS;
}

int vmx_nested_get_msr(struct kvm_vcpu *vcpu, uint32_t msr, uint64_t *data)
{
    int r;

    if (msr == MSR_IA32_VMX_VMFUNC) {
        *data = 0;
        return 0;
    }
    if (!is_plain_control(msr))
        r = cpu_nested_cap(vcpu->arch.cpu, msr, data);
    else
        r = cpu_nested_cap(vcpu->arch.cpu, msr + MSR_IA32_VMX_TRUE_PINBASED_CTLS - MSR_IA32_VMX_PINBASED_CTLS, data);
    if (!r && is_plain_control(msr))
        *data |= default1_of(msr);
    if (!r && msr == MSR_IA32_VMX_CR4_FIXED1)
        *data &= kvm_valid_cr4_bits(vcpu) | CR4_VMXE;
    return r;
}

/* May a client restrict the capability so? `max` is what there is. */
static bool cap_allowed(uint32_t msr, uint64_t data, uint64_t max)
{
    switch (msr) {
    case MSR_IA32_VMX_BASIC:
        return subset(max, data, BASIC_FEATURES | ~((1ull << 56) - 1) | (7ull << 45) | (1ull << 31)) &&
               !(data & BASIC_32BIT) && (uint32_t)data == (uint32_t)max && BASIC_SIZE(data) >= BASIC_SIZE(max);
    case MSR_IA32_VMX_TRUE_PINBASED_CTLS:
    case MSR_IA32_VMX_TRUE_PROCBASED_CTLS:
    case MSR_IA32_VMX_TRUE_EXIT_CTLS:
    case MSR_IA32_VMX_TRUE_ENTRY_CTLS:
    case MSR_IA32_VMX_PROCBASED_CTLS2: /* must be 1: no fewer; may be 1: no more */
        return subset(data, max, LOW_HALF) && subset(max, data, HIGH_HALF);
    case MSR_IA32_VMX_MISC:
        return subset(max, data, MISC_FEATURES) && !((data ^ max) & ~(MISC_FEATURES | (0x1ffull << 16)));
    case MSR_IA32_VMX_CR0_FIXED0:
    case MSR_IA32_VMX_CR4_FIXED0:
        return subset(data, max, ~0ull);
    case MSR_IA32_VMX_EPT_VPID_CAP:
        return subset(max, data, ~0ull);
    case MSR_IA32_VMX_VMCS_ENUM:
        return true;
    default: /* made from others, or from CPUID */
        return false;
    }
}

int vmx_nested_set_msr(struct kvm_vcpu *vcpu, uint32_t msr, uint64_t data)
{
    uint64_t max;

    if (msr == MSR_IA32_VMX_VMFUNC)
        return data ? -1 : 0;
    if (cpu_nested_vmxon(vcpu->arch.cpu) || cpu_nested_default_cap(msr, &max) || !cap_allowed(msr, data, max))
        return -1;
    return cpu_nested_set_cap(vcpu->arch.cpu, msr, data);
}

/* ---- system management mode ---- */
void vmx_nested_smm(struct kvm_vcpu *vcpu, bool in_smm)
{
    cpu_nested_suspend(vcpu->arch.cpu, in_smm);
}

/* ---- KVM_GET_NESTED_STATE, KVM_SET_NESTED_STATE: 0 or a negative errno ---- */
_Static_assert(sizeof(((struct kvm_nested_state *)0)->data.vmx[0].vmcs12) == CPU_NESTED_VMCS_SIZE, "vmcs12");

uint32_t vmx_nested_state_size(void)
{
    return sizeof(struct kvm_nested_state) + sizeof(struct kvm_vmx_nested_state_data);
}

/* state: room for vmx_nested_state_size() bytes */
void vmx_get_nested_state(struct kvm_vcpu *vcpu, struct kvm_nested_state *state)
{
    struct cpu_nested_state st;

    memset(state, 0, vmx_nested_state_size());
    cpu_nested_get(vcpu->arch.cpu, &st, (uint8_t *)state->data.vmx[0].vmcs12);
    state->format = KVM_STATE_NESTED_FORMAT_VMX;
    state->size = sizeof(*state);
    state->hdr.vmx.vmxon_pa = st.vmxon;
    state->hdr.vmx.vmcs12_pa = st.vmcs;
    if (st.vmcs != CPU_NESTED_NONE)
        state->size += CPU_NESTED_VMCS_SIZE;
    state->flags = st.in_guest ? KVM_STATE_NESTED_GUEST_MODE : 0;
    state->hdr.vmx.smm.flags =
        (st.smm_vmxon ? KVM_STATE_NESTED_SMM_VMXON : 0) | (st.smm_in_guest ? KVM_STATE_NESTED_SMM_GUEST_MODE : 0);
    if (st.timer_deadline) {
        state->hdr.vmx.flags = KVM_STATE_VMX_PREEMPTION_TIMER_DEADLINE;
        state->hdr.vmx.preemption_timer_deadline = st.timer_deadline;
    }
}

static bool page_address_valid(struct kvm_vcpu *vcpu, gpa_t gpa)
{
    return !(gpa & ~PAGE_MASK) && !(gpa >> vcpu->arch.maxphyaddr);
}

#define STATE_SMM (KVM_STATE_NESTED_SMM_GUEST_MODE | KVM_STATE_NESTED_SMM_VMXON)

static bool header_valid(struct kvm_vcpu *vcpu, const struct kvm_nested_state *s)
{
    const uint16_t smm = s->hdr.vmx.smm.flags;

    if (s->format != KVM_STATE_NESTED_FORMAT_VMX)
        return false;
    if (s->hdr.vmx.vmxon_pa == CPU_NESTED_NONE) {
        if (smm || s->hdr.vmx.vmcs12_pa != CPU_NESTED_NONE || s->flags & ~KVM_STATE_NESTED_EVMCS)
            return false;
    } else if (!nested_vmx_allowed(vcpu) || !page_address_valid(vcpu, s->hdr.vmx.vmxon_pa)) {
        return false;
    }
    if ((smm & KVM_STATE_NESTED_SMM_GUEST_MODE && s->flags & KVM_STATE_NESTED_GUEST_MODE) || smm & ~STATE_SMM ||
        s->hdr.vmx.flags & ~KVM_STATE_VMX_PREEMPTION_TIMER_DEADLINE)
        return false;
    if (vcpu->arch.in_smm ? s->flags & (KVM_STATE_NESTED_GUEST_MODE | KVM_STATE_NESTED_RUN_PENDING) : smm)
        return false;
    if (smm & KVM_STATE_NESTED_SMM_GUEST_MODE && !(smm & KVM_STATE_NESTED_SMM_VMXON))
        return false;
    return !(s->flags & KVM_STATE_NESTED_EVMCS); /* not enabled */
}

static int leave_nested(struct kvm_vcpu *vcpu)
{
    const struct cpu_nested_state none = {.vmxon = CPU_NESTED_NONE, .vmcs = CPU_NESTED_NONE};

    return cpu_nested_set(vcpu->arch.cpu, &none, NULL);
}

int vmx_set_nested_state(struct kvm_vcpu *vcpu, const struct kvm_nested_state *s)
{
    struct cpu_nested_state st = {.vmxon = s->hdr.vmx.vmxon_pa, .vmcs = s->hdr.vmx.vmcs12_pa};
    const uint8_t *vmcs = (const uint8_t *)s->data.vmx[0].vmcs12;
    const uint16_t smm = s->hdr.vmx.smm.flags;

    if (!header_valid(vcpu, s) || leave_nested(vcpu))
        return -EINVAL;
    st.smm_vmxon = smm & KVM_STATE_NESTED_SMM_VMXON;
    st.smm_in_guest = smm & KVM_STATE_NESTED_SMM_GUEST_MODE;
    st.in_guest = s->flags & KVM_STATE_NESTED_GUEST_MODE;
    st.run_pending = s->flags & KVM_STATE_NESTED_RUN_PENDING;
    if (s->hdr.vmx.flags & KVM_STATE_VMX_PREEMPTION_TIMER_DEADLINE)
        st.timer_deadline = s->hdr.vmx.preemption_timer_deadline;
    if (st.vmxon == CPU_NESTED_NONE)
        return 0;
    if (s->size < sizeof(*s) + CPU_NESTED_VMCS_SIZE) {
        if (st.in_guest || st.vmcs != CPU_NESTED_NONE)
            return -EINVAL;
        return cpu_nested_set(vcpu->arch.cpu, &st, NULL);
    }
    if (st.vmcs == CPU_NESTED_NONE || st.vmcs == st.vmxon || !page_address_valid(vcpu, st.vmcs))
        return -EINVAL;
    if (*(const uint32_t *)vmcs != (uint32_t)CPU_NESTED_REVISION)
        return -EINVAL;
    if (cpu_nested_set(vcpu->arch.cpu, &st, vmcs)) {
        leave_nested(vcpu);
        return -EINVAL;
    }
    if (cpu_nested_moved(vcpu->arch.cpu))
        vmx_nested_sync(vcpu);
    kvm_make_request(KVM_REQ_TLB_FLUSH, vcpu);
    kvm_make_request(KVM_REQ_EVENT, vcpu);
    return 0;
}
