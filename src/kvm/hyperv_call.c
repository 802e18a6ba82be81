/* SPDX-License-Identifier: MIT
 * hyperv_call.c: Hyper-V's hypercalls (TLFS, "Hypercall Interface"): flushes of other processors' translations, IPIs,
 * spin-wait notes; messages, events and debug data go to the client. */
#include "hyperv_int.h"
#include <sched.h>
#include <string.h>

enum {
    HC_FLUSH_SPACE = 0x02,
    HC_FLUSH_LIST = 0x03,
    HC_SPIN_WAIT = 0x08,
    HC_SEND_IPI = 0x0b,
    HC_FLUSH_SPACE_EX = 0x13,
    HC_FLUSH_LIST_EX = 0x14,
    HC_SEND_IPI_EX = 0x15,
    HC_POST_MESSAGE = 0x5c,
    HC_SIGNAL_EVENT = 0x5d,
    HC_POST_DEBUG = 0x69,
    HC_RETRIEVE_DEBUG = 0x6a,
    HC_RESET_DEBUG = 0x6b,
};
enum {
    HV_SUCCESS = 0,
    HV_INVALID_CODE = 2,
    HV_INVALID_INPUT = 3,
    HV_INVALID_ALIGNMENT = 4,
    HV_ACCESS_DENIED = 6,
    HV_OPERATION_DENIED = 8,
    HV_INVALID_CONNECTION = 18
};
#define HV_FLUSH_ALL_PROCESSORS 1ull
#define HV_SET_ALL              1u
#define SYNDBG_USE_HCALLS       (1ull << 2)
#define BANKS                   64u

struct call {
    uint64_t param, in, out; /* as in the registers; with `fast` in and out are the input itself */
    uint16_t code;
    bool fast, xmm;
    uint16_t var_count, rep_count;
    uint64_t regs[12]; /* XMM0-5 */
};

/* The call's input from byte `at` on; behind the two registers of a fast call come XMM0-5. */
static int read_input(struct kvm_vcpu *vcpu, const struct call *c, unsigned at, void *to, unsigned len)
{
    uint64_t words[14] = {c->in, c->out};

    if (!c->fast)
        return kvm_vcpu_read_guest(vcpu, c->in + at, to, len);
    memcpy(words + 2, c->regs, sizeof(c->regs));
    if (at + len > sizeof(words))
        return -1;
    memcpy(to, (const char *)words + at, len);
    return 0;
}

/* ---- sets of virtual processors: 64 banks of 64 ---- */
struct vp_set {
    bool all;
    uint64_t bank[BANKS];
};

static bool in_set(const struct vp_set *set, const struct kvm_vcpu *vcpu)
{
    const uint32_t vp = kvm_hv_vp_index(vcpu);

    return set->all || (vp / 64 < BANKS && set->bank[vp / 64] >> vp % 64 & 1);
}

/* HV_VP_SET at byte `at`: format, mask of valid banks, those banks */
static int read_sparse(struct kvm_vcpu *vcpu, const struct call *c, unsigned at, struct vp_set *set, bool *empty)
{
    uint64_t head[2];
    unsigned n = 0;

    if (read_input(vcpu, c, at, head, sizeof(head)))
        return HV_INVALID_INPUT;
    set->all = head[0] == HV_SET_ALL;
    if (c->var_count != (unsigned)__builtin_popcountll(head[1]))
        return HV_INVALID_INPUT;
    *empty = !set->all && !c->var_count;
    for (unsigned i = 0; i < BANKS && !set->all; i++)
        if (head[1] >> i & 1 && read_input(vcpu, c, at + 16 + 8 * n++, &set->bank[i], 8))
            return HV_INVALID_INPUT;
    return HV_SUCCESS;
}

/* ---- calls ---- */
static uint64_t flush(struct kvm_vcpu *vcpu, const struct call *c, bool ex)
{
    struct vp_set set = {0};
    uint64_t head[3]; /* address space, flags, processors */
    struct kvm_vcpu *other;
    bool empty = false;
    int i, r;

    if (read_input(vcpu, c, 0, head, ex ? 16 : 24))
        return HV_INVALID_INPUT;
    if (ex) {
        r = read_sparse(vcpu, c, 16, &set, &empty);
        if (r)
            return (uint64_t)r;
    } else {
        set.bank[0] = head[2];
    }
    set.all |= (head[1] & HV_FLUSH_ALL_PROCESSORS) != 0;
    kvm_for_each_vcpu(i, other, vcpu->kvm)
    {
        if (empty || !in_set(&set, other))
            continue;
        kvm_make_request(KVM_REQ_TLB_FLUSH, other);
        if (other != vcpu && atomic_load(&other->mode) == IN_GUEST_MODE)
            cpu_kick(other->arch.cpu);
    }
    cpu_epoch_wait(vcpu->kvm->domain); /* done when the call returns */
    return HV_SUCCESS | (uint64_t)c->rep_count << 32;
}

static uint64_t send_ipi(struct kvm_vcpu *vcpu, const struct call *c, bool ex)
{
    struct vp_set set = {0};
    struct kvm_lapic_irq irq = {.level = 1};
    uint64_t head[2]; /* vector and a reserved word, processors */
    struct kvm_vcpu *other;
    bool empty = false;
    int i, r;

    if (read_input(vcpu, c, 0, head, ex ? 8 : 16))
        return HV_INVALID_INPUT;
    if (ex) {
        r = read_sparse(vcpu, c, 8, &set, &empty);
        if (r || empty)
            return (uint64_t)r;
    } else {
        set.bank[0] = head[1];
        if (head[0] >> 32)
            return HV_INVALID_INPUT;
    }
    irq.vector = (uint32_t)head[0];
    if (irq.vector < 16 || irq.vector > 255)
        return HV_INVALID_INPUT;
    kvm_for_each_vcpu(i, other, vcpu->kvm)
    {
        if (in_set(&set, other) && other->arch.apic)
            kvm_apic_set_irq(other, &irq, NULL);
    }
    return HV_SUCCESS;
}

/* Rows: which bit grants a call, whether it is one with repetitions */
static const struct row {
    uint16_t code;
    uint8_t leaf; /* 3: EBX of 0x40000003, 4: EAX of 0x40000004, 5: EBX of 0x40000004 */
    bool rep, xmm;
    uint32_t bits;
} rows[] = {
    {HC_FLUSH_SPACE, 4, false, true, HV_TLB_FLUSH},
    {HC_FLUSH_LIST, 4, true, true, HV_TLB_FLUSH},
    {HC_SPIN_WAIT, 5, false, false, 0},
    {HC_SEND_IPI, 4, false, false, HV_CLUSTER_IPI},
    {HC_FLUSH_SPACE_EX, 4, false, true, HV_TLB_FLUSH | HV_EX_MASKS},
    {HC_FLUSH_LIST_EX, 4, true, true, HV_TLB_FLUSH | HV_EX_MASKS},
    {HC_SEND_IPI_EX, 4, false, true, HV_CLUSTER_IPI | HV_EX_MASKS},
    {HC_POST_MESSAGE, 3, false, false, HV_EBX_POST},
    {HC_SIGNAL_EVENT, 3, false, false, HV_EBX_SIGNAL},
    {HC_POST_DEBUG, 3, false, false, HV_EBX_DEBUG},
    {HC_RETRIEVE_DEBUG, 3, false, false, HV_EBX_DEBUG},
    {HC_RESET_DEBUG, 3, false, false, HV_EBX_DEBUG},
};

static bool granted(const struct kvm_vcpu_hv *hv, const struct row *row)
{
    if (!hv->enforce)
        return true;
    if (row->code >= HC_POST_DEBUG && row->code <= HC_RESET_DEBUG && !(hv->syndbg_eax & HV_SYNDBG_ALLOWED))
        return true; /* there is no such call then */
    switch (row->leaf) {
    case 3:
        return (hv->features_ebx & row->bits) == row->bits;
    case 4:
        return (hv->enlightenments_eax & row->bits) == row->bits;
    default:
        return hv->enlightenments_ebx && hv->enlightenments_ebx != ~0u;
    }
}

static void finish(struct kvm_vcpu *vcpu, uint64_t result)
{
    if (is_64_bit_mode(vcpu)) {
        kvm_register_write(vcpu, R_RAX, result);
    } else {
        kvm_register_write(vcpu, R_RDX, result >> 32);
        kvm_register_write(vcpu, R_RAX, (uint32_t)result);
    }
}

static int complete_by_client(struct kvm_vcpu *vcpu)
{
    finish(vcpu, *(volatile __u64 *)&vcpu->run->hyperv.u.hcall.result);
    return kvm_skip_hypercall(vcpu);
}

static int ask_client(struct kvm_vcpu *vcpu, const struct call *c)
{
    struct kvm_run *run = vcpu->run;

    run->exit_reason = KVM_EXIT_HYPERV;
    run->hyperv.type = KVM_EXIT_HYPERV_HCALL;
    run->hyperv.u.hcall.input = c->param;
    run->hyperv.u.hcall.params[0] = c->in;
    run->hyperv.u.hcall.params[1] = c->out;
    vcpu->arch.complete_userspace_io = complete_by_client;
    return 0;
}

/* The input is a connection, in bits 32-47 an event flag that only the client could know of. */
static uint64_t signal_event(struct kvm_vcpu *vcpu, const struct call *c)
{
    uint64_t event = c->in;

    if (!c->fast && ((c->in & 7) || kvm_vcpu_read_guest(vcpu, c->in, &event, sizeof(event)) < 0))
        return HV_INVALID_ALIGNMENT;
    if (event & 0xffff00000000ull)
        return HV_INVALID_CONNECTION;
    if (event & ~(uint64_t)KVM_HYPERV_CONN_ID_MASK)
        return HV_INVALID_INPUT;
    return kvm_hv_signal_eventfd(vcpu->kvm, (uint32_t)event) ? HV_SUCCESS : HV_INVALID_CONNECTION;
}

/* 1: *result is the answer; 0: the client has it */
static int dispatch(struct kvm_vcpu *vcpu, const struct call *c, uint64_t *result)
{
    const struct kvm_vcpu_hv *hv = &vcpu->arch.hv;

    switch (c->code) {
    case HC_SPIN_WAIT:
        sched_yield();
        *result = HV_SUCCESS;
        return 1;
    case HC_FLUSH_SPACE:
    case HC_FLUSH_LIST:
        *result = flush(vcpu, c, false);
        return 1;
    case HC_FLUSH_SPACE_EX:
    case HC_FLUSH_LIST_EX:
        *result = flush(vcpu, c, true);
        return 1;
    case HC_SEND_IPI:
    case HC_SEND_IPI_EX:
        *result = send_ipi(vcpu, c, c->code == HC_SEND_IPI_EX);
        return 1;
    case HC_SIGNAL_EVENT:
        *result = signal_event(vcpu, c);
        if (*result != HV_INVALID_CONNECTION)
            return 1;
        /* fall through */ /* the client may know the connection */
    case HC_POST_MESSAGE:
        *result = HV_INVALID_INPUT;
        return hv->synic_active ? ask_client(vcpu, c) : 1;
    default: /* debug data */
        *result = !(hv->syndbg_eax & HV_SYNDBG_ALLOWED) ? HV_INVALID_CODE : HV_OPERATION_DENIED;
        if (*result == HV_INVALID_CODE || !(vcpu->kvm->arch.hv.syndbg_options & SYNDBG_USE_HCALLS))
            return 1;
        return ask_client(vcpu, c);
    }
}

static void read_xmm(struct kvm_vcpu *vcpu, struct call *c)
{
    const char *area = cpu_fpu_area(vcpu->arch.cpu);
    uint64_t present;

    memcpy(&present, area + 512, sizeof(present)); /* SDM 1, "XSAVE Area": XSTATE_BV, and XMM0 at 160 */
    if (present & 2)
        memcpy(c->regs, area + 160, sizeof(c->regs));
}

static struct call decode(struct kvm_vcpu *vcpu)
{
    struct call c = {0};

    if (is_64_bit_mode(vcpu)) {
        c.param = kvm_register_read(vcpu, R_RCX);
        c.in = kvm_register_read(vcpu, R_RDX);
        c.out = kvm_register_read(vcpu, R_R8);
    } else {
        c.param = kvm_register_read(vcpu, R_RDX) << 32 | (uint32_t)kvm_register_read(vcpu, R_RAX);
        c.in = kvm_register_read(vcpu, R_RBX) << 32 | (uint32_t)kvm_register_read(vcpu, R_RCX);
        c.out = kvm_register_read(vcpu, R_RDI) << 32 | (uint32_t)kvm_register_read(vcpu, R_RSI);
    }
    c.code = (uint16_t)c.param;
    c.fast = c.param >> 16 & 1;
    c.var_count = c.param >> 17 & 0x3ff;
    c.rep_count = c.param >> 32 & 0xfff;
    return c;
}

bool kvm_hv_hypercall_enabled(struct kvm_vcpu *vcpu)
{
    return unlikely(vcpu->arch.hv.enabled) && vcpu->kvm->arch.hv.guest_os_id;
}

/* The guest is on the call's instruction. 1: it goes on behind it (or to #UD); 0: to user space */
int kvm_hv_hypercall(struct kvm_vcpu *vcpu)
{
    const struct kvm_vcpu_hv *hv = &vcpu->arch.hv;
    struct call c = decode(vcpu);
    const struct row *row = NULL;
    uint64_t result = HV_INVALID_CODE;

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        if (rows[i].code == c.code)
            row = &rows[i];
    if (!is_protmode(vcpu) || kvm_x86_ops->get_cpl(vcpu) != 0 ||
        (row && row->xmm && c.fast && hv->enforce && !(hv->features_edx & HV_EDX_XMM))) {
        kvm_queue_exception(vcpu, VEC_UD);
        return 1;
    }
    if (row && !granted(hv, row))
        result = HV_ACCESS_DENIED;
    else if (row && (row->rep != (c.rep_count != 0) || (c.var_count && !(row->bits & HV_EX_MASKS))))
        result = HV_INVALID_INPUT;
    else if (row) {
        if (row->xmm && c.fast)
            read_xmm(vcpu, &c);
        if (!dispatch(vcpu, &c, &result))
            return 0;
    }
    finish(vcpu, result);
    return kvm_skip_hypercall(vcpu);
}
