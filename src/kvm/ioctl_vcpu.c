/* SPDX-License-Identifier: MIT
 * ioctl_vcpu.c: the ioctls of a vCPU's descriptor. The dispatcher holds the vCPU's lock and has loaded its VMCS. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "ioctl.h"

static bool lapic_in_kernel(const struct kvm_vcpu *vcpu)
{
    return vcpu->arch.apic != NULL;
}

/* ---- KVM_RUN, and the registers that travel in struct kvm_run (api.rst, KVM_CAP_SYNC_REGS) ---- */
static const struct sync_set {
    uint64_t bit;
    size_t at, size; /* in struct kvm_sync_regs */
    long (*get)(struct ioctl_call *), (*set)(struct ioctl_call *);
} sync_sets[] = {
#define SYNC(bit, field, get, set)                                                                       \
    {                                                                                                    \
        bit, offsetof(struct kvm_sync_regs, field), sizeof(((struct kvm_sync_regs *)0)->field), get, set \
    }
    SYNC(KVM_SYNC_X86_REGS, regs, vcpu_get_regs, vcpu_set_regs),
    SYNC(KVM_SYNC_X86_SREGS, sregs, vcpu_get_sregs, vcpu_set_sregs),
    SYNC(KVM_SYNC_X86_EVENTS, events, vcpu_get_events, vcpu_set_events),
#undef SYNC
};

/* The client's threads may write to struct kvm_run meanwhile: each set is copied once, then checked. */
static long sync_set_in(struct ioctl_call *c, const struct sync_set *set)
{
    uint64_t copy[sizeof(struct kvm_sync_regs) / 8 + 1];
    struct ioctl_call sub = {.kvm = c->kvm, .vcpu = c->vcpu, .data = copy};

    memcpy(copy, (char *)&c->vcpu->run->s.regs + set->at, set->size);
    return set->set(&sub) ? -EINVAL : 0;
}

static long sync_regs_in(struct ioctl_call *c)
{
    struct kvm_run *run = c->vcpu->run;
    const uint64_t valid = *(volatile __u64 *)&run->kvm_valid_regs, dirty = *(volatile __u64 *)&run->kvm_dirty_regs;
    unsigned i;

    if ((valid | dirty) & ~(uint64_t)KVM_SYNC_X86_VALID_FIELDS)
        return because(-EINVAL, "kvm_valid_regs 0x%llx, kvm_dirty_regs 0x%llx", (unsigned long long)valid,
                       (unsigned long long)dirty);
    for (i = 0; i < ARRAY_SIZE(sync_sets); i++) {
        if (!(dirty & sync_sets[i].bit))
            continue;
        if (sync_set_in(c, &sync_sets[i]))
            return -EINVAL;
        run->kvm_dirty_regs &= ~sync_sets[i].bit;
    }
    return 0;
}

static void sync_regs_out(struct ioctl_call *c)
{
    struct kvm_run *run = c->vcpu->run;
    const uint64_t valid = *(volatile __u64 *)&run->kvm_valid_regs;
    unsigned i;

    for (i = 0; i < ARRAY_SIZE(sync_sets); i++) {
        uint64_t copy[sizeof(struct kvm_sync_regs) / 8 + 1] = {0};
        struct ioctl_call sub = {.kvm = c->kvm, .vcpu = c->vcpu, .data = copy};

        if (!(valid & sync_sets[i].bit))
            continue;
        sync_sets[i].get(&sub);
        memcpy((char *)&run->s.regs + sync_sets[i].at, copy, sync_sets[i].size);
    }
}

static void count_user_exit(struct kvm_vcpu *vcpu, long r)
{
    const struct kvm_run *run = vcpu->run;
    uint64_t *stat = vcpu->stat;

    stat[STAT_user_exits]++;
    kvm_stat_time(vcpu, STAT_kernel_cycles);
    if (r == -EINTR) {
        stat[STAT_signal_exits]++;
    } else if (run->exit_reason == KVM_EXIT_IO) {
        stat[STAT_io_exits]++;
        kvm_stat_io(vcpu, false, run->io.port, run->io.direction == KVM_EXIT_IO_OUT, true);
    } else if (run->exit_reason == KVM_EXIT_MMIO) {
        stat[STAT_mmio_exits]++;
        kvm_stat_io(vcpu, true, run->mmio.phys_addr, run->mmio.is_write, true);
    }
    kvm_stat_sync(vcpu);
}

static long vcpu_run(struct ioctl_call *c)
{
    struct kvm_vcpu *vcpu = c->vcpu;
    long r = 0;

    if (c->arg)
        return because(-EINVAL, "the argument must be 0");
    atomic_store_explicit(&vcpu->signal_arrived, false, memory_order_relaxed);
    vcpu->arch.has_run = true;
    vcpu->stat_mark = cpu_rdtsc();
    if (unlikely(vcpu->run->kvm_valid_regs | vcpu->run->kvm_dirty_regs) &&
        vcpu->arch.mp_state != KVM_MP_STATE_UNINITIALIZED)
        r = sync_regs_in(c);
    if (!r)
        r = kvm_arch_vcpu_ioctl_run(vcpu);
    if (unlikely(vcpu->run->kvm_valid_regs))
        sync_regs_out(c);
    count_user_exit(vcpu, r);
    return r;
}

/* ---- interrupts ---- */
static long vcpu_interrupt(struct ioctl_call *c)
{
    return kvm_vcpu_ioctl_interrupt(c->vcpu, ((struct kvm_interrupt *)c->data)->irq);
}

static long vcpu_nmi(struct ioctl_call *c)
{
    kvm_inject_nmi(c->vcpu);
    return 0;
}

static long vcpu_smi(struct ioctl_call *c)
{
    vcpu_inject_smi(c->vcpu);
    return 0;
}

static long vcpu_get_lapic(struct ioctl_call *c)
{
    if (!lapic_in_kernel(c->vcpu))
        return because(-EINVAL, "no LAPIC in the kernel part");
    return kvm_apic_get_state(c->vcpu, c->data);
}

static long vcpu_set_lapic(struct ioctl_call *c)
{
    if (!lapic_in_kernel(c->vcpu))
        return because(-EINVAL, "no LAPIC in the kernel part");
    return kvm_apic_set_state(c->vcpu, c->data);
}

static long vcpu_tpr_access_reporting(struct ioctl_call *c)
{
    const struct kvm_tpr_access_ctl *ctl = c->data;

    if (ctl->flags)
        return because(-EINVAL, "unknown flags 0x%x", ctl->flags);
    c->vcpu->arch.tpr_access_reporting = ctl->enabled != 0;
    return 0;
}

static long vcpu_set_vapic_addr(struct ioctl_call *c)
{
    const struct kvm_vapic_addr *va = c->data;

    if (!lapic_in_kernel(c->vcpu))
        return because(-EINVAL, "no LAPIC in the kernel part");
    c->vcpu->arch.vapic_addr = va->vapic_addr;
    kvm_lapic_set_vapic_addr(c->vcpu, va->vapic_addr);
    return 0;
}

static long vcpu_get_mp_state(struct ioctl_call *c)
{
    const int r = lapic_in_kernel(c->vcpu) ? kvm_apic_accept_events(c->vcpu) : 0;

    ((struct kvm_mp_state *)c->data)->mp_state = (uint32_t)c->vcpu->arch.mp_state;
    return r < 0 ? r : 0;
}

static long vcpu_set_mp_state(struct ioctl_call *c)
{
    const uint32_t state = ((struct kvm_mp_state *)c->data)->mp_state;

    switch (state) {
    case KVM_MP_STATE_UNINITIALIZED:
    case KVM_MP_STATE_HALTED:
    case KVM_MP_STATE_AP_RESET_HOLD:
    case KVM_MP_STATE_INIT_RECEIVED:
    case KVM_MP_STATE_SIPI_RECEIVED:
        if (!lapic_in_kernel(c->vcpu))
            return because(-EINVAL, "state %u needs a LAPIC in the kernel part", state);
        if ((state == KVM_MP_STATE_INIT_RECEIVED || state == KVM_MP_STATE_SIPI_RECEIVED) &&
            (c->vcpu->arch.in_smm || c->vcpu->arch.smi_pending))
            return because(-EINVAL, "system management mode latches INIT");
        break;
    case KVM_MP_STATE_RUNNABLE:
        break;
    default:
        return because(-EINVAL, "no such state %u", state);
    }
    if (state == KVM_MP_STATE_SIPI_RECEIVED) { /* INIT was taken, the SIPI is taken by the next KVM_RUN */
        c->vcpu->arch.mp_state = KVM_MP_STATE_INIT_RECEIVED;
        kvm_apic_set_events(c->vcpu, false, true, kvm_apic_sipi_vector(c->vcpu));
    } else {
        c->vcpu->arch.mp_state = (int)state;
    }
    kvm_make_request(KVM_REQ_EVENT, c->vcpu);
    return 0;
}

/* A NULL pointer takes the mask away. */
static long vcpu_set_signal_mask(struct ioctl_call *c)
{
    const char *user = (const char *)c->arg;
    struct kvm_signal_mask head;
    uint64_t mask;

    if (!user) {
        c->vcpu->sigset_active = false;
        return 0;
    }
    if (os_copy_from_user(&head, user, sizeof(head)))
        return -EFAULT;
    if (head.len != sizeof(mask))
        return because(-EINVAL, "a mask of %u bytes, it has 8", head.len);
    if (os_copy_from_user(&mask, user + offsetof(struct kvm_signal_mask, sigset), sizeof(mask)))
        return -EFAULT;
    c->vcpu->sigset = mask & ~(1ull << 8 | 1ull << 18); /* SIGKILL and SIGSTOP cannot be blocked */
    c->vcpu->sigset_active = true;
    return 0;
}

/* ---- CPUID and MSRs ---- */
static long vcpu_set_cpuid2(struct ioctl_call *c)
{
    return kvm_vcpu_ioctl_set_cpuid2(c->vcpu, c->tail, (int)c->tail_count);
}

/* The older entry has no index: leaves with one have index 0. */
static long vcpu_set_cpuid(struct ioctl_call *c)
{
    const struct kvm_cpuid_entry *old = c->tail;
    struct kvm_cpuid_entry2 new[KVM_MAX_CPUID_ENTRIES];
    unsigned i;

    memset(new, 0, sizeof(new));
    for (i = 0; i < c->tail_count; i++) {
        new[i].function = old[i].function;
        new[i].eax = old[i].eax;
        new[i].ebx = old[i].ebx;
        new[i].ecx = old[i].ecx;
        new[i].edx = old[i].edx;
    }
    return kvm_vcpu_ioctl_set_cpuid2(c->vcpu, new, (int)c->tail_count);
}

static long vcpu_get_cpuid2(struct ioctl_call *c)
{
    struct kvm_cpuid2 *head = c->data;
    const struct kvm_vcpu_arch *a = &c->vcpu->arch;

    if (c->tail_count < (unsigned)a->cpuid_nent)
        return because(-E2BIG, "room for %u entries, there are %d", c->tail_count, a->cpuid_nent);
    head->nent = c->tail_count = (uint32_t)a->cpuid_nent;
    if (a->cpuid_nent)
        memcpy(c->tail, a->cpuid, (size_t)a->cpuid_nent * sizeof(*a->cpuid));
    return 0;
}

/* The count of MSRs that were taken: the first that is refused ends it. */
static long vcpu_get_msrs(struct ioctl_call *c)
{
    struct kvm_msr_entry *e = c->tail;
    unsigned i;

    for (i = 0; i < c->tail_count; i++)
        if (kvm_get_msr(c->vcpu, e[i].index, (uint64_t *)&e[i].data, true))
            break;
    if (i < c->tail_count)
        kvm_trace(TRACE_IOCTL, "api: vcpu %d KVM_GET_MSRS: MSR 0x%x cannot be read", c->vcpu->vcpu_id, e[i].index);
    return i;
}

static long vcpu_set_msrs(struct ioctl_call *c)
{
    const struct kvm_msr_entry *e = c->tail;
    unsigned i;

    for (i = 0; i < c->tail_count; i++)
        if (kvm_set_msr(c->vcpu, e[i].index, e[i].data, true))
            break;
    if (i < c->tail_count)
        kvm_trace(TRACE_IOCTL, "api: vcpu %d KVM_SET_MSRS: MSR 0x%x does not take 0x%llx", c->vcpu->vcpu_id, e[i].index,
                  (unsigned long long)e[i].data);
    return i;
}

/* ---- machine checks ---- */
static long vcpu_setup_mce(struct ioctl_call *c)
{
    const uint64_t cap = *(uint64_t *)c->data;
    const unsigned banks = cap & 0xff;
    struct kvm_vcpu_arch *a = &c->vcpu->arch;
    unsigned i;

    if (!banks || banks > KVM_MAX_MCE_BANKS)
        return because(-EINVAL, "%u banks, at most %u", banks, KVM_MAX_MCE_BANKS);
    if (cap & ~(KVM_MCE_CAP_SUPPORTED | 0xff | 0xff0000))
        return because(-EINVAL, "MCG_CAP 0x%llx has unsupported bits", (unsigned long long)cap);
    a->mcg_cap = cap;
    if (cap & MCG_CTL_P)
        a->mcg_ctl = ~0ull;
    for (i = 0; i < banks; i++)
        a->mce_banks[i * 4] = ~0ull;
    return 0;
}

#define MCI_STATUS_VAL  (1ull << 63)
#define MCI_STATUS_OVER (1ull << 62)
#define MCI_STATUS_UC   (1ull << 61)
#define MCG_STATUS_MCIP (1ull << 2)

static void put_bank(uint64_t *bank, const struct kvm_x86_mce *mce)
{
    uint64_t status = mce->status;

    if (bank[1] & MCI_STATUS_VAL)
        status |= MCI_STATUS_OVER;
    bank[1] = status;
    bank[2] = mce->addr;
    bank[3] = mce->misc;
}

/* SDM 3B, "Machine-Check Architecture": an uncorrected error raises #MC, which shuts down where it cannot be taken; a
 * corrected one is only logged, unless an uncorrected one is in the bank. */
static long vcpu_set_mce(struct ioctl_call *c)
{
    const struct kvm_x86_mce *mce = c->data;
    struct kvm_vcpu_arch *a = &c->vcpu->arch;
    uint64_t *bank;

    if (mce->bank >= (a->mcg_cap & 0xff) || !(mce->status & MCI_STATUS_VAL))
        return because(-EINVAL, "bank %u of %u, status 0x%llx", mce->bank, (unsigned)(a->mcg_cap & 0xff),
                       (unsigned long long)mce->status);
    bank = &a->mce_banks[mce->bank * 4];
    if (!(mce->status & MCI_STATUS_UC)) {
        if (!(bank[1] & MCI_STATUS_VAL) || !(bank[1] & MCI_STATUS_UC))
            put_bank(bank, mce);
        else
            bank[1] |= MCI_STATUS_OVER;
        return 0;
    }
    if (((a->mcg_cap & MCG_CTL_P) && a->mcg_ctl != ~0ull) || bank[0] != ~0ull)
        return 0; /* reporting is off */
    if ((a->mcg_status & MCG_STATUS_MCIP) || !(kvm_read_cr4(c->vcpu) & CR4_MCE)) {
        kvm_make_request(KVM_REQ_TRIPLE_FAULT, c->vcpu);
        return 0;
    }
    put_bank(bank, mce);
    a->mcg_status = mce->mcg_status;
    kvm_queue_exception(c->vcpu, VEC_MC);
    return 0;
}

/* ---- time ---- */
static long vcpu_set_tsc_khz(struct ioctl_call *c)
{
    const uint32_t khz = (uint32_t)c->arg;

    if (khz >= KVM_MAX_GUEST_TSC_KHZ)
        return because(-EINVAL, "%u kHz are too many", khz);
    return kvm_set_tsc_khz(c->vcpu, khz ? khz : cpu_tsc_khz());
}

static long vcpu_get_tsc_khz(struct ioctl_call *c)
{
    return (long)c->vcpu->arch.tsc_khz;
}

static long vcpu_kvmclock_ctrl(struct ioctl_call *c)
{
    const int r = kvm_set_guest_paused(c->vcpu);

    return r ? because(r, "the guest does not use kvmclock") : 0;
}

/* KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET (Documentation/virt/kvm/devices/vcpu.rst) */
static long vcpu_has_device_attr(struct ioctl_call *c)
{
    const struct kvm_device_attr *attr = c->data;

    return attr->group == KVM_VCPU_TSC_CTRL && attr->attr == KVM_VCPU_TSC_OFFSET ? 0 : -ENXIO;
}

static long vcpu_get_device_attr(struct ioctl_call *c)
{
    const struct kvm_device_attr *attr = c->data;
    const long r = vcpu_has_device_attr(c);

    return r ? r : os_copy_to_user((void *)attr->addr, &c->vcpu->arch.tsc_offset, sizeof(uint64_t));
}

static long vcpu_set_device_attr(struct ioctl_call *c)
{
    const struct kvm_device_attr *attr = c->data;
    uint64_t offset;
    long r = vcpu_has_device_attr(c);

    if (!r)
        r = os_copy_from_user(&offset, (void *)attr->addr, sizeof(offset));
    if (r)
        return r;
    kvm_vcpu_write_tsc_offset(c->vcpu, offset);
    kvm_make_request(KVM_REQ_CLOCK_UPDATE, c->vcpu);
    return 0;
}

/* ---- nested state: its size is the client's, in the header ---- */
static long vcpu_get_nested_state(struct ioctl_call *c)
{
    const uint32_t room = kvm_x86_ops->nested_state_size();
    struct kvm_nested_state *state = malloc(room);
    uint32_t size;
    long r = os_copy_from_user(&size, (char *)c->arg + offsetof(struct kvm_nested_state, size), sizeof(size));

    if (!state)
        return -ENOMEM;
    if (!r) {
        kvm_x86_ops->get_nested_state(c->vcpu, state);
        if (state->size > size)
            r = os_copy_to_user((char *)c->arg + offsetof(struct kvm_nested_state, size), &state->size, sizeof(size))
                    ?: -E2BIG;
        else
            r = os_copy_to_user((void *)c->arg, state, state->size);
    }
    free(state);
    return r;
}

static long vcpu_set_nested_state(struct ioctl_call *c)
{
    const uint32_t known = KVM_STATE_NESTED_RUN_PENDING | KVM_STATE_NESTED_GUEST_MODE | KVM_STATE_NESTED_EVMCS |
                           KVM_STATE_NESTED_MTF_PENDING | KVM_STATE_NESTED_GIF_SET;
    const uint32_t room = kvm_x86_ops->nested_state_size();
    struct kvm_nested_state *state = calloc(1, room);
    long r;

    if (!state)
        return -ENOMEM;
    r = os_copy_from_user(state, (void *)c->arg, sizeof(*state));
    if (!r && (state->size < sizeof(*state) || state->flags & ~known ||
               (state->flags & KVM_STATE_NESTED_RUN_PENDING && !(state->flags & KVM_STATE_NESTED_GUEST_MODE))))
        r = -EINVAL;
    if (!r) {
        const size_t more = (state->size < room ? state->size : room) - sizeof(*state);

        r = os_copy_from_user(&state->data, (char *)c->arg + sizeof(*state), more);
    }
    if (!r)
        r = kvm_x86_ops->set_nested_state(c->vcpu, state);
    free(state);
    return r;
}

/* ---- the rest ---- */
static long vcpu_translate(struct ioctl_call *c)
{
    struct kvm_translation *t = c->data;
    gpa_t gpa;

    t->valid = kvm_mmu_gva_to_gpa(c->vcpu, t->linear_address, ACC_READ, &gpa) == 0;
    t->physical_address = t->valid ? gpa : ~0ull;
    t->writeable = 1;
    t->usermode = 0;
    return 0;
}

static long vcpu_get_stats_fd(struct ioctl_call *c)
{
    return kvm_vcpu_stats_fd(c->vcpu);
}

#define MSR_TAIL(copy)                TAIL(kvm_msrs, nmsrs, struct kvm_msr_entry, KVM_MAX_IO_MSRS - 1, -E2BIG, copy)
#define CPUID_TAIL(kind, entry, copy) TAIL(kind, nent, struct entry, KVM_MAX_CPUID_ENTRIES, -E2BIG, copy)
#define CPUID_OUT                     TAIL(kvm_cpuid2, nent, struct kvm_cpuid_entry2, KVM_MAX_CPUID_ENTRIES, 0, OUT)

const struct ioctl_row vcpu_ioctls[] = {
    /* number, copied, structure, variable tail, handler, capability */
    ROW0(KVM_RUN, vcpu_run, CAP_ALWAYS),
    ROW(KVM_GET_REGS, OUT, struct kvm_regs, vcpu_get_regs, CAP_ALWAYS),
    ROW(KVM_SET_REGS, IN, struct kvm_regs, vcpu_set_regs, CAP_ALWAYS),
    ROW(KVM_GET_SREGS, OUT, struct kvm_sregs, vcpu_get_sregs, CAP_ALWAYS),
    ROW(KVM_SET_SREGS, IN, struct kvm_sregs, vcpu_set_sregs, CAP_ALWAYS),
    ROW(KVM_GET_SREGS2, OUT, struct kvm_sregs2, vcpu_get_sregs2, KVM_CAP_SREGS2),
    ROW(KVM_SET_SREGS2, IN, struct kvm_sregs2, vcpu_set_sregs2, KVM_CAP_SREGS2),
    ROW(KVM_GET_FPU, OUT, struct kvm_fpu, vcpu_get_fpu, CAP_ALWAYS),
    ROW(KVM_SET_FPU, IN, struct kvm_fpu, vcpu_set_fpu, CAP_ALWAYS),
    ROW(KVM_GET_XSAVE, OUT, struct kvm_xsave, vcpu_get_xsave, KVM_CAP_XSAVE),
    ROW0(KVM_GET_XSAVE2, vcpu_get_xsave2, KVM_CAP_XSAVE2),
    ROW0(KVM_SET_XSAVE, vcpu_set_xsave, KVM_CAP_XSAVE),
    ROW(KVM_GET_XCRS, OUT, struct kvm_xcrs, vcpu_get_xcrs, KVM_CAP_XCRS),
    ROW(KVM_SET_XCRS, IN, struct kvm_xcrs, vcpu_set_xcrs, KVM_CAP_XCRS),
    ROW_TAIL(KVM_GET_MSRS, INOUT, struct kvm_msrs, MSR_TAIL(INOUT), vcpu_get_msrs, CAP_ALWAYS),
    ROW_TAIL(KVM_SET_MSRS, IN, struct kvm_msrs, MSR_TAIL(IN), vcpu_set_msrs, CAP_ALWAYS),
    ROW_TAIL(KVM_SET_CPUID, IN, struct kvm_cpuid, CPUID_TAIL(kvm_cpuid, kvm_cpuid_entry, IN), vcpu_set_cpuid,
             CAP_ALWAYS),
    ROW_TAIL(KVM_SET_CPUID2, IN, struct kvm_cpuid2, CPUID_TAIL(kvm_cpuid2, kvm_cpuid_entry2, IN), vcpu_set_cpuid2,
             KVM_CAP_EXT_CPUID),
    ROW_TAIL(KVM_GET_CPUID2, INOUT, struct kvm_cpuid2, CPUID_OUT, vcpu_get_cpuid2, KVM_CAP_EXT_CPUID),
    ROW_TAIL(KVM_GET_SUPPORTED_HV_CPUID, INOUT, struct kvm_cpuid2, CPUID_OUT, ioctl_get_hv_cpuid, KVM_CAP_HYPERV_CPUID),
    ROW(KVM_GET_LAPIC, OUT, struct kvm_lapic_state, vcpu_get_lapic, KVM_CAP_IRQCHIP),
    ROW(KVM_SET_LAPIC, IN, struct kvm_lapic_state, vcpu_set_lapic, KVM_CAP_IRQCHIP),
    ROW(KVM_INTERRUPT, IN, struct kvm_interrupt, vcpu_interrupt, CAP_ALWAYS),
    ROW0(KVM_NMI, vcpu_nmi, KVM_CAP_USER_NMI),
    ROW0(KVM_SMI, vcpu_smi, KVM_CAP_X86_SMM),
    ROW0(KVM_SET_SIGNAL_MASK, vcpu_set_signal_mask, CAP_ALWAYS),
    ROW(KVM_TPR_ACCESS_REPORTING, INOUT, struct kvm_tpr_access_ctl, vcpu_tpr_access_reporting, KVM_CAP_VAPIC),
    ROW(KVM_SET_VAPIC_ADDR, IN, struct kvm_vapic_addr, vcpu_set_vapic_addr, KVM_CAP_VAPIC),
    ROW(KVM_GET_MP_STATE, OUT, struct kvm_mp_state, vcpu_get_mp_state, KVM_CAP_MP_STATE),
    ROW(KVM_SET_MP_STATE, IN, struct kvm_mp_state, vcpu_set_mp_state, KVM_CAP_MP_STATE),
    ROW(KVM_GET_VCPU_EVENTS, OUT, struct kvm_vcpu_events, vcpu_get_events, KVM_CAP_VCPU_EVENTS),
    ROW(KVM_SET_VCPU_EVENTS, IN, struct kvm_vcpu_events, vcpu_set_events, KVM_CAP_VCPU_EVENTS),
    ROW(KVM_GET_DEBUGREGS, OUT, struct kvm_debugregs, vcpu_get_debugregs, KVM_CAP_DEBUGREGS),
    ROW(KVM_SET_DEBUGREGS, IN, struct kvm_debugregs, vcpu_set_debugregs, KVM_CAP_DEBUGREGS),
    ROW(KVM_SET_GUEST_DEBUG, IN, struct kvm_guest_debug, vcpu_set_guest_debug, KVM_CAP_SET_GUEST_DEBUG),
    ROW(KVM_TRANSLATE, INOUT, struct kvm_translation, vcpu_translate, CAP_ALWAYS),
    ROW(KVM_X86_SETUP_MCE, IN, uint64_t, vcpu_setup_mce, KVM_CAP_MCE),
    ROW(KVM_X86_SET_MCE, IN, struct kvm_x86_mce, vcpu_set_mce, KVM_CAP_MCE),
    ROW0(KVM_SET_TSC_KHZ, vcpu_set_tsc_khz, KVM_CAP_TSC_CONTROL),
    ROW0(KVM_GET_TSC_KHZ, vcpu_get_tsc_khz, KVM_CAP_GET_TSC_KHZ),
    ROW0(KVM_KVMCLOCK_CTRL, vcpu_kvmclock_ctrl, KVM_CAP_KVMCLOCK_CTRL),
    ROW(KVM_ENABLE_CAP, IN, struct kvm_enable_cap, kvm_vcpu_enable_cap, KVM_CAP_ENABLE_CAP),
    ROW(KVM_GET_DEVICE_ATTR, IN, struct kvm_device_attr, vcpu_get_device_attr, KVM_CAP_VCPU_ATTRIBUTES),
    ROW(KVM_SET_DEVICE_ATTR, IN, struct kvm_device_attr, vcpu_set_device_attr, KVM_CAP_VCPU_ATTRIBUTES),
    ROW(KVM_HAS_DEVICE_ATTR, IN, struct kvm_device_attr, vcpu_has_device_attr, KVM_CAP_VCPU_ATTRIBUTES),
    ROW0(KVM_GET_NESTED_STATE, vcpu_get_nested_state, KVM_CAP_NESTED_STATE),
    ROW0(KVM_SET_NESTED_STATE, vcpu_set_nested_state, KVM_CAP_NESTED_STATE),
    ROW0(KVM_GET_STATS_FD, vcpu_get_stats_fd, KVM_CAP_BINARY_STATS_FD),
};
const unsigned vcpu_ioctls_count = ARRAY_SIZE(vcpu_ioctls);
