/* SPDX-License-Identifier: MIT
 * vcpu_state.c: a vCPU's registers, segments, FPU state, events and debug registers in the form of the API. Checks come
 * before any change; Linux's order of both is kept where a client can see it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "ioctl.h"

#define ops kvm_x86_ops

/* ---- KVM_GET_REGS, KVM_SET_REGS ---- */
static const struct {
    uint8_t reg;
    uint16_t at;
} gprs[] = {
    {R_RAX, offsetof(struct kvm_regs, rax)}, {R_RBX, offsetof(struct kvm_regs, rbx)},
    {R_RCX, offsetof(struct kvm_regs, rcx)}, {R_RDX, offsetof(struct kvm_regs, rdx)},
    {R_RSI, offsetof(struct kvm_regs, rsi)}, {R_RDI, offsetof(struct kvm_regs, rdi)},
    {R_RSP, offsetof(struct kvm_regs, rsp)}, {R_RBP, offsetof(struct kvm_regs, rbp)},
    {R_R8, offsetof(struct kvm_regs, r8)},   {R_R9, offsetof(struct kvm_regs, r9)},
    {R_R10, offsetof(struct kvm_regs, r10)}, {R_R11, offsetof(struct kvm_regs, r11)},
    {R_R12, offsetof(struct kvm_regs, r12)}, {R_R13, offsetof(struct kvm_regs, r13)},
    {R_R14, offsetof(struct kvm_regs, r14)}, {R_R15, offsetof(struct kvm_regs, r15)},
};

long vcpu_get_regs(struct ioctl_call *c)
{
    struct kvm_regs *regs = c->data;
    unsigned i;

    for (i = 0; i < ARRAY_SIZE(gprs); i++)
        *(uint64_t *)((char *)regs + gprs[i].at) = kvm_register_read(c->vcpu, gprs[i].reg);
    regs->rip = kvm_rip_read(c->vcpu);
    regs->rflags = kvm_get_rflags(c->vcpu);
    return 0;
}

long vcpu_set_regs(struct ioctl_call *c)
{
    const struct kvm_regs *regs = c->data;
    unsigned i;

    for (i = 0; i < ARRAY_SIZE(gprs); i++)
        kvm_register_write(c->vcpu, gprs[i].reg, *(const uint64_t *)((const char *)regs + gprs[i].at));
    kvm_rip_write(c->vcpu, regs->rip);
    kvm_set_rflags(c->vcpu, regs->rflags | F_RESERVED);
    c->vcpu->arch.exception.pending = false;
    cpu_code_unverify(c->vcpu->arch.cpu);
    kvm_make_request(KVM_REQ_EVENT, c->vcpu);
    return 0;
}

/* ---- KVM_GET_SREGS, KVM_SET_SREGS and their second edition: the first has the same layout up to apic_base ---- */
#define SEG_TR   6
#define SEG_LDTR 7
static const struct {
    uint8_t seg;
    uint16_t at;
} segments[] = {
    {SEG_CS, offsetof(struct kvm_sregs, cs)}, {SEG_DS, offsetof(struct kvm_sregs, ds)},
    {SEG_ES, offsetof(struct kvm_sregs, es)}, {SEG_FS, offsetof(struct kvm_sregs, fs)},
    {SEG_GS, offsetof(struct kvm_sregs, gs)}, {SEG_SS, offsetof(struct kvm_sregs, ss)},
    {SEG_TR, offsetof(struct kvm_sregs, tr)}, {SEG_LDTR, offsetof(struct kvm_sregs, ldt)},
};
_Static_assert(offsetof(struct kvm_sregs, interrupt_bitmap) == offsetof(struct kvm_sregs2, flags), "common part");

void kvm_get_sregs(struct kvm_vcpu *vcpu, struct kvm_sregs *s)
{
    unsigned i;

    for (i = 0; i < ARRAY_SIZE(segments); i++)
        ops->get_segment(vcpu, (struct kvm_segment *)((char *)s + segments[i].at), segments[i].seg);
    ops->get_gdt(vcpu, &s->gdt);
    ops->get_idt(vcpu, &s->idt);
    s->cr0 = kvm_read_cr0(vcpu);
    s->cr2 = cpu_state(vcpu->arch.cpu)->cr2;
    s->cr3 = kvm_read_cr3(vcpu);
    s->cr4 = kvm_read_cr4(vcpu);
    s->cr8 = kvm_get_cr8(vcpu);
    s->efer = vcpu->arch.efer;
    s->apic_base = vcpu->arch.apic_base;
}

long vcpu_get_sregs(struct ioctl_call *c)
{
    struct kvm_sregs *s = c->data;
    const struct kvm_queued_interrupt *irq = &c->vcpu->arch.interrupt;

    kvm_get_sregs(c->vcpu, s);
    if (irq->injected && !irq->soft)
        s->interrupt_bitmap[irq->nr / 64] |= 1ull << irq->nr % 64;
    return 0;
}

static bool pae_paging(uint64_t cr0, uint64_t cr4, uint64_t efer)
{
    return (cr0 & CR0_PG) && (cr4 & CR4_PAE) && !(efer & EFER_LMA);
}

long vcpu_get_sregs2(struct ioctl_call *c)
{
    struct kvm_sregs2 *s = c->data;

    kvm_get_sregs(c->vcpu, (struct kvm_sregs *)s);
    if (pae_paging(s->cr0, s->cr4, s->efer)) {
        ops->get_pdptrs(c->vcpu, (uint64_t *)s->pdptrs);
        s->flags |= KVM_SREGS2_FLAGS_PDPTRS_VALID;
    }
    return 0;
}

/* SDM 3A, "Control Registers" and "Paging Modes and Control Bits" */
static int check_sregs(struct kvm_vcpu *vcpu, const struct kvm_sregs *s)
{
    const bool lme_pg = (s->efer & EFER_LME) && (s->cr0 & CR0_PG);

    if (lme_pg && (!(s->cr4 & CR4_PAE) || !(s->efer & EFER_LMA)))
        return because(-EINVAL,
                       "EFER.LME=1, CR0.PG=1, CR4.PAE=%d, EFER.LMA=%d (SDM 3A, \"Paging Modes and Control "
                       "Bits\")",
                       !!(s->cr4 & CR4_PAE), !!(s->efer & EFER_LMA));
    if (lme_pg && s->cr3 >> vcpu->arch.maxphyaddr)
        return because(-EINVAL, "CR3=0x%llx, the guest has %u physical address bits", (unsigned long long)s->cr3,
                       vcpu->arch.maxphyaddr);
    if (!lme_pg && ((s->efer & EFER_LMA) || s->cs.l))
        return because(-EINVAL, "EFER.LMA=%d, CS.L=%d without EFER.LME=1 and CR0.PG=1", !!(s->efer & EFER_LMA),
                       s->cs.l);
    if (!kvm_is_valid_cr4(vcpu, s->cr4))
        return because(-EINVAL, "CR4=0x%llx, allowed are 0x%llx", (unsigned long long)s->cr4,
                       (unsigned long long)kvm_valid_cr4_bits(vcpu));
    if ((s->cr0 >> 32) || ((s->cr0 & CR0_NW) && !(s->cr0 & CR0_CD)) || ((s->cr0 & CR0_PG) && !(s->cr0 & CR0_PE)))
        return because(-EINVAL, "CR0=0x%llx (SDM 3A, \"Control Registers\")", (unsigned long long)s->cr0);
    return 0;
}

/* Older clients reset the boot processor by SET_SREGS alone and expect it to run. */
static void unhalt_after_reset(struct kvm_vcpu *vcpu, const struct kvm_sregs *s)
{
    if (vcpu->vcpu_id == vcpu->kvm->arch.bsp_vcpu_id && kvm_rip_read(vcpu) == 0xfff0 && s->cs.selector == 0xf000 &&
        s->cs.base == 0xffff0000 && !(s->cr0 & CR0_PE))
        vcpu->arch.mp_state = KVM_MP_STATE_RUNNABLE;
}

static int set_sregs_common(struct kvm_vcpu *vcpu, const struct kvm_sregs *s, const uint64_t *pdptrs)
{
    int r = check_sregs(vcpu, s);
    unsigned i;

    if (!r && kvm_set_apic_base(vcpu, s->apic_base, true))
        r = because(-EINVAL, "IA32_APIC_BASE=0x%llx", (unsigned long long)s->apic_base);
    if (r)
        return r;
    ops->set_idt(vcpu, &s->idt);
    ops->set_gdt(vcpu, &s->gdt);
    cpu_state(vcpu->arch.cpu)->cr2 = s->cr2;
    kvm_set_cr8(vcpu, s->cr8);
    ops->set_efer(vcpu, s->efer);
    ops->set_cr0(vcpu, s->cr0);
    vcpu->arch.cr0 = s->cr0;
    ops->set_cr4(vcpu, s->cr4);
    vcpu->arch.cr4 = s->cr4;
    ops->set_cr3(vcpu, s->cr3);
    vcpu->arch.cr3 = s->cr3;
    if (pae_paging(s->cr0, s->cr4, s->efer)) {
        if (pdptrs)
            ops->set_pdptrs(vcpu, pdptrs);
        else
            load_pdptrs(vcpu, s->cr3);
    }
    for (i = 0; i < ARRAY_SIZE(segments); i++)
        ops->set_segment(vcpu, (const struct kvm_segment *)((const char *)s + segments[i].at), segments[i].seg);
    ops->update_cr8_intercept(vcpu);
    ops->flush_tlb_all(vcpu);
    kvm_update_cpuid_runtime(vcpu);
    unhalt_after_reset(vcpu, s);
    cpu_code_unverify(vcpu->arch.cpu);
    kvm_make_request(KVM_REQ_EVENT, vcpu);
    return 0;
}

int kvm_set_sregs(struct kvm_vcpu *vcpu, struct kvm_sregs *s)
{
    return set_sregs_common(vcpu, s, NULL);
}

long vcpu_set_sregs(struct ioctl_call *c)
{
    struct kvm_sregs *s = c->data;
    const int r = kvm_set_sregs(c->vcpu, s);
    unsigned nr;

    if (r)
        return r;
    for (nr = 0; nr < 256; nr++)
        if (s->interrupt_bitmap[nr / 64] >> nr % 64 & 1) {
            kvm_queue_interrupt(c->vcpu, (uint8_t)nr, false);
            break;
        }
    return 0;
}

long vcpu_set_sregs2(struct ioctl_call *c)
{
    const struct kvm_sregs2 *s = c->data;
    const bool pdptrs = s->flags & KVM_SREGS2_FLAGS_PDPTRS_VALID;

    if (s->flags & ~KVM_SREGS2_FLAGS_PDPTRS_VALID)
        return because(-EINVAL, "unknown flags 0x%llx", (unsigned long long)s->flags);
    if (pdptrs && !pae_paging(s->cr0, s->cr4, s->efer))
        return because(-EINVAL, "PDPTEs without PAE paging");
    return set_sregs_common(c->vcpu, c->data, pdptrs ? (const uint64_t *)s->pdptrs : NULL);
}

/* ---- FPU: the processor keeps an XSAVE area in the standard layout (SDM 1, "XSAVE Area") ---- */
#define XSAVE_LEGACY    512
#define XSAVE_HEADER_AT 512
#define XSAVE_MXCSR_AT  24
#define XSTATE_FP       1ull
#define XSTATE_SSE      2ull
#define XSTATE_AVX      4ull
#define MXCSR_INIT      0x1f80u
#define FCW_INIT        0x37fu

struct fx_area { /* SDM 1, "FXSAVE Area" */
    uint16_t fcw, fsw;
    uint8_t ftw, reserved;
    uint16_t fop;
    uint64_t rip, rdp;
    uint32_t mxcsr, mxcsr_mask;
    uint8_t st[8][16], xmm[16][16];
};

static struct fx_area *fx_of(struct kvm_vcpu *vcpu)
{
    return cpu_fpu_area(vcpu->arch.cpu);
}

static uint64_t *xstate_bv(void *area)
{
    return (uint64_t *)((char *)area + XSAVE_HEADER_AT);
}

/* What XSTATE_BV calls initial need not be in the area: put it there. MXCSR is always there. */
static void fx_materialise(struct fx_area *fx, uint64_t bv)
{
    if (!(bv & XSTATE_FP)) {
        memset(fx, 0, XSAVE_MXCSR_AT);
        memset(fx->st, 0, sizeof(fx->st));
        fx->fcw = FCW_INIT;
    }
    if (!(bv & XSTATE_SSE))
        memset(fx->xmm, 0, sizeof(fx->xmm));
}

long vcpu_get_fpu(struct ioctl_call *c)
{
    struct kvm_fpu *fpu = c->data;
    struct fx_area fx = *fx_of(c->vcpu);

    fx_materialise(&fx, *xstate_bv(cpu_fpu_area(c->vcpu->arch.cpu)));
    memcpy(fpu->fpr, fx.st, sizeof(fpu->fpr));
    fpu->fcw = fx.fcw;
    fpu->fsw = fx.fsw;
    fpu->ftwx = fx.ftw;
    fpu->last_opcode = fx.fop;
    fpu->last_ip = fx.rip;
    fpu->last_dp = fx.rdp;
    memcpy(fpu->xmm, fx.xmm, sizeof(fx.xmm));
    return 0;
}

long vcpu_set_fpu(struct ioctl_call *c)
{
    const struct kvm_fpu *fpu = c->data;
    struct fx_area *fx = fx_of(c->vcpu);

    fx_materialise(fx, *xstate_bv(fx));
    memcpy(fx->st, fpu->fpr, sizeof(fpu->fpr));
    fx->fcw = fpu->fcw;
    fx->fsw = fpu->fsw;
    fx->ftw = fpu->ftwx;
    fx->fop = fpu->last_opcode;
    fx->rip = fpu->last_ip;
    fx->rdp = fpu->last_dp;
    memcpy(fx->xmm, fpu->xmm, sizeof(fx->xmm));
    *xstate_bv(fx) |= XSTATE_FP | XSTATE_SSE;
    return 0;
}

struct xcomp {
    uint32_t at, size;
};

static struct xcomp xcomp_of(unsigned i)
{
    struct cpuid_regs r;

    if (i < 2)
        return (struct xcomp){i ? 160 : 32, i ? 256 : 128};
    cpu_cpuid(0xd, i, &r);
    return (struct xcomp){r.ebx, r.eax};
}

/* The client sees initial components as their initial values, whatever lies in the area. */
static void xsave_copy(struct kvm_vcpu *vcpu, void *out, size_t room)
{
    const size_t size = cpu_fpu_area_size();
    const uint64_t mask = cpu_fpu_xcr0_mask();
    uint64_t bv = *xstate_bv(cpu_fpu_area(vcpu->arch.cpu));
    unsigned i;

    memcpy(out, cpu_fpu_area(vcpu->arch.cpu), size < room ? size : room);
    fx_materialise(out, bv);
    /* where all vectors are 0, XSAVE may call SSE initial whatever MXCSR holds; who reads the area skips MXCSR then */
    if (!(bv & (XSTATE_SSE | XSTATE_AVX)) && ((struct fx_area *)out)->mxcsr != MXCSR_INIT)
        bv |= XSTATE_SSE;
    for (i = 2; i < 63; i++) {
        const struct xcomp x = mask >> i & 1 && !(bv >> i & 1) ? xcomp_of(i) : (struct xcomp){0};

        if (x.size && x.at + x.size <= room)
            memset((char *)out + x.at, 0, x.size);
    }
    memset((char *)out + XSAVE_HEADER_AT, 0, 64);
    *xstate_bv(out) = bv & mask;
}

static size_t xsave_uabi_size(void)
{
    const size_t size = cpu_fpu_area_size();

    return size < sizeof(struct kvm_xsave) ? sizeof(struct kvm_xsave) : size;
}

/* The structure is 4 KiB; where the state is larger (AMX), only KVM_GET_XSAVE2 can carry it. */
long vcpu_get_xsave(struct ioctl_call *c)
{
    if (xsave_uabi_size() > sizeof(struct kvm_xsave))
        return because(-EINVAL, "the state is larger than 4 KiB: KVM_GET_XSAVE2");
    xsave_copy(c->vcpu, c->data, sizeof(struct kvm_xsave));
    return 0;
}

long vcpu_get_xsave2(struct ioctl_call *c)
{
    const size_t size = xsave_uabi_size();
    void *area = calloc(1, size);
    long r;

    if (!area)
        return -ENOMEM;
    xsave_copy(c->vcpu, area, size);
    r = os_copy_to_user((void *)c->arg, area, size);
    free(area);
    return r;
}

static long xsave_put(struct kvm_vcpu *vcpu, void *area)
{
    const uint64_t bv = *xstate_bv(area), *header = xstate_bv(area);
    const struct fx_area *fx = area;
    unsigned i;

    if (bv & ~cpu_fpu_xcr0_mask())
        return because(-EINVAL, "XSTATE_BV=0x%llx, offered are 0x%llx", (unsigned long long)bv,
                       (unsigned long long)cpu_fpu_xcr0_mask());
    for (i = 1; i < 8; i++) /* XCOMP_BV and the reserved bytes */
        if (header[i])
            return because(-EINVAL, "the XSAVE header is not in the standard form");
    if (fx->mxcsr & ~0xffffu)
        return because(-EINVAL, "MXCSR=0x%x", fx->mxcsr);
    memcpy(cpu_fpu_area(vcpu->arch.cpu), area, cpu_fpu_area_size());
    if (!(bv & (XSTATE_SSE | XSTATE_AVX)))
        fx_of(vcpu)->mxcsr = MXCSR_INIT;
    return 0;
}

long vcpu_set_xsave(struct ioctl_call *c)
{
    const size_t size = xsave_uabi_size();
    void *area = calloc(1, size);
    long r;

    if (!area)
        return -ENOMEM;
    r = os_copy_from_user(area, (void *)c->arg, size);
    if (!r)
        r = xsave_put(c->vcpu, area);
    free(area);
    return r;
}

long vcpu_get_xcrs(struct ioctl_call *c)
{
    struct kvm_xcrs *x = c->data;

    x->nr_xcrs = 1;
    x->xcrs[0].value = cpu_state(c->vcpu->arch.cpu)->xcr0;
    return 0;
}

long vcpu_set_xcrs(struct ioctl_call *c)
{
    const struct kvm_xcrs *x = c->data;
    unsigned i;

    if (x->nr_xcrs > KVM_MAX_XCRS || x->flags)
        return because(-EINVAL, "%u registers, flags 0x%x", x->nr_xcrs, x->flags);
    for (i = 0; i < x->nr_xcrs; i++)
        if (x->xcrs[i].xcr == 0)
            return kvm_set_xcr(c->vcpu, 0, x->xcrs[i].value)
                       ? because(-EINVAL, "XCR0=0x%llx", (unsigned long long)x->xcrs[i].value)
                       : 0;
    return 0;
}

/* ---- KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS ---- */
static bool soft_exception(unsigned nr)
{
    return nr == VEC_BP || nr == VEC_OF;
}

long vcpu_get_events(struct ioctl_call *c)
{
    struct kvm_vcpu_arch *a = &c->vcpu->arch;
    struct kvm_vcpu_events *e = c->data;
    struct kvm_queued_exception *x = &a->exception;
    const bool payloads = c->kvm->arch.exception_payload_enabled;

    if (kvm_check_request(KVM_REQ_SMI, c->vcpu)) {
        a->smi_pending = true;
        kvm_make_request(KVM_REQ_EVENT, c->vcpu);
    }
    /* without payloads the client cannot carry CR2 and DR6 along: they go to the registers now */
    if (!payloads && x->pending && x->has_payload)
        kvm_deliver_exception_payload(c->vcpu, x);
    if (!soft_exception(x->vector)) {
        e->exception.injected = x->injected || (!payloads && x->pending);
        e->exception.pending = x->pending;
    }
    e->exception.nr = x->vector;
    e->exception.has_error_code = x->has_error_code;
    e->exception.error_code = x->error_code;
    e->exception_has_payload = x->has_payload;
    e->exception_payload = x->payload;
    e->interrupt.injected = a->interrupt.injected && !a->interrupt.soft;
    e->interrupt.nr = a->interrupt.nr;
    e->interrupt.shadow = (uint8_t)ops->get_interrupt_shadow(c->vcpu);
    e->nmi.injected = a->nmi_injected;
    e->nmi.pending = a->nmi_pending || atomic_load(&a->nmi_queued);
    e->nmi.masked = ops->get_nmi_mask(c->vcpu);
    e->smi.smm = a->in_smm;
    e->smi.pending = a->smi_pending;
    e->smi.smm_inside_nmi = a->smm_inside_nmi;
    e->smi.latched_init = kvm_apic_init_pending(c->vcpu);
    e->flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM;
    if (payloads)
        e->flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
    if (c->kvm->arch.triple_fault_event) {
        e->triple_fault.pending = !!(atomic_load(&c->vcpu->requests) & 1ull << KVM_REQ_TRIPLE_FAULT);
        e->flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    }
    return 0;
}

static int check_events(struct kvm_vcpu *vcpu, struct kvm_vcpu_events *e)
{
    const struct kvm *kvm = vcpu->kvm;
    const uint32_t known = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR |
                           KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM | KVM_VCPUEVENT_VALID_PAYLOAD |
                           KVM_VCPUEVENT_VALID_TRIPLE_FAULT;

    if (e->flags & ~known)
        return because(-EINVAL, "unknown flags 0x%x", e->flags & ~known);
    if (e->flags & KVM_VCPUEVENT_VALID_PAYLOAD) {
        if (!kvm->arch.exception_payload_enabled)
            return because(-EINVAL, "KVM_CAP_EXCEPTION_PAYLOAD is not enabled");
        if (e->exception.pending)
            e->exception.injected = 0;
        else
            e->exception_has_payload = 0;
    } else {
        e->exception.pending = 0;
        e->exception_has_payload = 0;
    }
    if ((e->exception.injected || e->exception.pending) && (e->exception.nr > 31 || e->exception.nr == VEC_NMI))
        return because(-EINVAL, "exception %u", e->exception.nr);
    if ((e->flags & KVM_VCPUEVENT_VALID_SMM) && (e->smi.smm || e->smi.pending) &&
        vcpu->arch.mp_state == KVM_MP_STATE_INIT_RECEIVED)
        return because(-EINVAL, "system management mode latches INIT: the vCPU cannot be waiting for a SIPI");
    if ((e->flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) && !kvm->arch.triple_fault_event)
        return because(-EINVAL, "KVM_CAP_X86_TRIPLE_FAULT_EVENT is not enabled");
    return 0;
}

/* A latched INIT comes with the state of system management mode, for that is what latches it. */
static void put_init_sipi(struct kvm_vcpu *vcpu, const struct kvm_vcpu_events *e)
{
    const bool init_now = kvm_apic_init_pending(vcpu), sipi = kvm_apic_pending_init_sipi(vcpu) && !init_now;
    const bool init = e->flags & KVM_VCPUEVENT_VALID_SMM ? e->smi.latched_init : init_now;

    kvm_apic_set_events(vcpu, init, sipi,
                        e->flags & KVM_VCPUEVENT_VALID_SIPI_VECTOR ? (uint8_t)e->sipi_vector
                                                                   : kvm_apic_sipi_vector(vcpu));
}

long vcpu_set_events(struct ioctl_call *c)
{
    struct kvm_vcpu_arch *a = &c->vcpu->arch;
    struct kvm_vcpu_events *e = c->data;
    const int r = check_events(c->vcpu, e);

    if (r)
        return r;
    a->exception = (struct kvm_queued_exception){
        .pending = e->exception.pending,
        .injected = e->exception.injected,
        .vector = e->exception.nr,
        .has_error_code = e->exception.has_error_code,
        .error_code = e->exception.error_code,
        .has_payload = e->exception_has_payload,
        .payload = e->exception_payload,
    };
    a->interrupt = (struct kvm_queued_interrupt){
        .injected = e->interrupt.injected,
        .nr = e->interrupt.nr,
        .soft = e->interrupt.soft,
    };
    if (e->flags & KVM_VCPUEVENT_VALID_SHADOW)
        ops->set_interrupt_shadow(c->vcpu, e->interrupt.shadow);
    a->nmi_injected = e->nmi.injected;
    if (e->flags & KVM_VCPUEVENT_VALID_NMI_PENDING) {
        atomic_store(&a->nmi_queued, 0);
        a->nmi_pending = e->nmi.pending;
        if (a->nmi_pending)
            kvm_make_request(KVM_REQ_NMI, c->vcpu);
    }
    ops->set_nmi_mask(c->vcpu, e->nmi.masked);
    if (e->flags & KVM_VCPUEVENT_VALID_SMM) {
        kvm_smm_changed(c->vcpu, e->smi.smm);
        a->smi_pending = e->smi.pending;
        a->smm_inside_nmi = e->smi.smm && e->smi.smm_inside_nmi;
    }
    if (a->apic && (e->flags & (KVM_VCPUEVENT_VALID_SMM | KVM_VCPUEVENT_VALID_SIPI_VECTOR)))
        put_init_sipi(c->vcpu, e);
    if (e->flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) {
        if (e->triple_fault.pending)
            kvm_make_request(KVM_REQ_TRIPLE_FAULT, c->vcpu);
        else
            kvm_check_request(KVM_REQ_TRIPLE_FAULT, c->vcpu);
    }
    kvm_make_request(KVM_REQ_EVENT, c->vcpu);
    return 0;
}

/* ---- debug registers ---- */
long vcpu_get_debugregs(struct ioctl_call *c)
{
    struct kvm_debugregs *d = c->data;
    unsigned i;

    for (i = 0; i < 4; i++)
        d->db[i] = kvm_get_dr(c->vcpu, (int)i);
    d->dr6 = kvm_get_dr(c->vcpu, 6);
    d->dr7 = kvm_get_dr(c->vcpu, 7);
    return 0;
}

long vcpu_set_debugregs(struct ioctl_call *c)
{
    const struct kvm_debugregs *d = c->data;
    struct kvm_vcpu_arch *a = &c->vcpu->arch;

    if (d->flags)
        return because(-EINVAL, "unknown flags 0x%llx", (unsigned long long)d->flags);
    if (d->dr6 >> 32 || d->dr7 >> 32)
        return because(-EINVAL, "DR6=0x%llx, DR7=0x%llx", (unsigned long long)d->dr6, (unsigned long long)d->dr7);
    memcpy(a->db, d->db, sizeof(a->db));
    kvm_update_dr0123(c->vcpu);
    a->dr6 = d->dr6;
    a->dr7 = d->dr7;
    kvm_update_dr7(c->vcpu);
    return 0;
}

static int queue_debug_exception(struct kvm_vcpu *vcpu, uint32_t control)
{
    if (vcpu->arch.exception.pending)
        return because(-EBUSY, "an exception is pending");
    if (control & KVM_GUESTDBG_INJECT_DB)
        kvm_queue_exception(vcpu, VEC_DB);
    else
        kvm_queue_exception(vcpu, VEC_BP);
    return 0;
}

long vcpu_set_guest_debug(struct ioctl_call *c)
{
    const struct kvm_guest_debug *dbg = c->data;
    struct kvm_vcpu *vcpu = c->vcpu;
    struct kvm_vcpu_arch *a = &vcpu->arch;
    const uint64_t rflags = kvm_get_rflags(vcpu); /* without the TF of an older single step */
    int r = 0;

    if (dbg->control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP))
        r = queue_debug_exception(vcpu, dbg->control);
    if (r)
        return r;
    a->guest_debug = dbg->control & KVM_GUESTDBG_ENABLE ? dbg->control : 0;
    if (a->guest_debug & KVM_GUESTDBG_USE_HW_BP) {
        memcpy(a->eff_db, dbg->arch.debugreg, sizeof(a->eff_db));
        a->guest_debug_dr7 = dbg->arch.debugreg[7];
    } else {
        memcpy(a->eff_db, a->db, sizeof(a->eff_db));
    }
    kvm_update_dr0123(vcpu);
    kvm_update_dr7(vcpu);
    if (a->guest_debug & KVM_GUESTDBG_SINGLESTEP) {
        struct kvm_segment cs;

        ops->get_segment(vcpu, &cs, SEG_CS);
        a->singlestep_rip = kvm_rip_read(vcpu) + (cs.l ? 0 : cs.base);
    }
    kvm_set_rflags(vcpu, rflags); /* adds TF when stepping */
    ops->update_exception_bitmap(vcpu);
    cpu_code_unverify(a->cpu);
    return 0;
}
