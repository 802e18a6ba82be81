/* SPDX-License-Identifier: MIT
 * smm.c: system management mode (SDM 3C, "System Management Mode"): an SMI saves the processor's state in SMRAM and
 * goes on in it, RSM loads it back. As in Linux's KVM the save area has AMD's layouts (AMD64 Architecture Programmer's
 * Manual 2, "SMM State-Save Area"), which firmware tells from Intel's by the revision, and the processor sees memory
 * slots of its own meanwhile (address space 1). RSM is #UD to the processor: the exit for that comes here. */
#include "x86.h"
#include <string.h>

#define SMM_AREA       0xfe00u /* from SMBASE; 512 bytes */
#define SMM_ENTRY      0x8000u
#define SMM_REVISION64 0x00020064u /* bit 17: SMBASE is taken from the area */
#define SMM_REVISION32 0x00020000u
#define SMM_SEG_TR     6
#define SMM_SEG_LDTR   7

struct smram_seg64 {
    uint16_t selector, attributes;
    uint32_t limit;
    uint64_t base;
};
struct smram64 { /* fe00 */
    struct smram_seg64 seg[6], gdtr, ldtr, idtr, tr;
    uint64_t io_restart[5]; /* fea0 */
    uint8_t io_flag, auto_halt_restart, reserved1, int_shadow, reserved2[4];
    uint64_t efer; /* fed0 */
    uint64_t svm[4];
    uint32_t reserved3;
    uint32_t revision, smbase; /* fefc, ff00 */
    uint32_t reserved4[17];
    uint64_t cr4, cr3, cr0, dr7, dr6, rflags, rip; /* ff48 */
    uint64_t gpr[16];                              /* r15 ... rax */
};

struct smram_seg32 {
    uint32_t attributes, limit, base;
};
struct smram32 {             /* fe00 */
    uint8_t reserved1[0xf8]; /* smbase: fef8 */
    uint32_t smbase, revision;
    uint16_t io_flag, auto_halt_restart; /* ff00 */
    uint32_t reserved2[4];
    uint32_t cr4; /* ff14 */
    uint32_t reserved3[5];
    struct smram_seg32 dsfsgs[3]; /* ff2c */
    uint32_t reserved4;
    uint32_t idt_limit, idt_base; /* ff54 */
    struct smram_seg32 tr;        /* ff5c */
    uint32_t reserved5[2];
    uint32_t gdt_limit, gdt_base;       /* ff70 */
    struct smram_seg32 ldtr, escsss[3]; /* ff78 */
    uint32_t selector[6];               /* ffa8 */
    uint32_t ldtr_selector, tr_selector, dr7, dr6, gpr[8], eip, eflags, cr3, cr0;
};

union smram {
    uint8_t bytes[512];
    struct smram64 b64;
    struct smram32 b32;
};
_Static_assert(offsetof(struct smram64, efer) == 0xd0 && offsetof(struct smram64, revision) == 0xfc &&
                   offsetof(struct smram64, cr4) == 0x148 && sizeof(struct smram64) == 512,
               "AMD64 SMM State-Save Area");
_Static_assert(offsetof(struct smram32, cr4) == 0x114 && offsetof(struct smram32, dsfsgs) == 0x12c &&
                   offsetof(struct smram32, tr) == 0x15c && offsetof(struct smram32, gdt_limit) == 0x170 &&
                   offsetof(struct smram32, selector) == 0x1a8 && sizeof(struct smram32) == 512,
               "legacy SMM state-save area");

void kvm_smm_changed(struct kvm_vcpu *vcpu, bool in_smm)
{
    if (vcpu->arch.in_smm == in_smm)
        return;
    vcpu->arch.in_smm = in_smm;
    kvm_x86_ops->nested_smm(vcpu, in_smm);
    kvm_x86_ops->load_mmu_pgd(vcpu);
    kvm_make_request(KVM_REQ_TLB_FLUSH, vcpu);
    if (!in_smm) /* a latched INIT, or an SMI that came meanwhile */
        kvm_make_request(KVM_REQ_EVENT, vcpu);
}

/* ---- segments in the area's form ---- */
static struct kvm_segment *segment_of(struct kvm_sregs *s, unsigned seg)
{
    struct kvm_segment *const by_number[] = {&s->es, &s->cs, &s->ss, &s->ds, &s->fs, &s->gs, &s->tr, &s->ldt};

    return by_number[seg];
}

static uint32_t attributes_of(const struct kvm_segment *s)
{
    return (uint32_t)(s->type | s->s << 4 | s->dpl << 5 | s->present << 7 | s->avl << 12 | s->l << 13 | s->db << 14 |
                      s->g << 15);
}

static void put_segment(struct kvm_segment *s, uint32_t selector, uint32_t attributes, uint32_t limit, uint64_t base)
{
    *s = (struct kvm_segment){
        .base = base,
        .limit = limit,
        .selector = (uint16_t)selector,
        .type = attributes & 15,
        .s = attributes >> 4 & 1,
        .dpl = attributes >> 5 & 3,
        .present = attributes >> 7 & 1,
        .avl = attributes >> 12 & 1,
        .l = attributes >> 13 & 1,
        .db = attributes >> 14 & 1,
        .g = attributes >> 15 & 1,
        .unusable = !(attributes >> 7 & 1),
    };
}

static struct smram_seg64 to_seg64(const struct kvm_segment *s)
{
    return (struct smram_seg64){s->selector, (uint16_t)attributes_of(s), s->limit, s->base};
}

static void from_seg64(struct kvm_segment *s, const struct smram_seg64 *m)
{
    put_segment(s, m->selector, m->attributes, m->limit, m->base);
}

static struct smram_seg32 to_seg32(const struct kvm_segment *s)
{
    return (struct smram_seg32){attributes_of(s), s->limit, (uint32_t)s->base};
}

static void from_seg32(struct kvm_segment *s, uint32_t selector, const struct smram_seg32 *m)
{
    put_segment(s, selector, m->attributes, m->limit, m->base);
}

static struct smram_seg32 *hidden32(struct smram32 *m, unsigned seg)
{
    return seg < 3 ? &m->escsss[seg] : &m->dsfsgs[seg - 3];
}

/* ---- entry ---- */
static void save64(struct kvm_vcpu *vcpu, struct kvm_sregs *s, struct smram64 *m)
{
    unsigned i;

    for (i = 0; i < 16; i++)
        m->gpr[15 - i] = kvm_register_read(vcpu, i);
    for (i = 0; i < 6; i++)
        m->seg[i] = to_seg64(segment_of(s, i));
    m->tr = to_seg64(&s->tr);
    m->ldtr = to_seg64(&s->ldt);
    m->gdtr = (struct smram_seg64){.limit = s->gdt.limit, .base = s->gdt.base};
    m->idtr = (struct smram_seg64){.limit = s->idt.limit, .base = s->idt.base};
    m->rip = kvm_rip_read(vcpu);
    m->rflags = kvm_get_rflags(vcpu);
    m->dr6 = kvm_get_dr(vcpu, 6);
    m->dr7 = kvm_get_dr(vcpu, 7);
    m->cr0 = s->cr0;
    m->cr3 = s->cr3;
    m->cr4 = s->cr4;
    m->efer = s->efer;
    m->int_shadow = (uint8_t)kvm_x86_ops->get_interrupt_shadow(vcpu);
    m->revision = SMM_REVISION64;
    m->smbase = (uint32_t)vcpu->arch.smbase;
}

static void save32(struct kvm_vcpu *vcpu, struct kvm_sregs *s, struct smram32 *m)
{
    unsigned i;

    for (i = 0; i < 8; i++)
        m->gpr[i] = (uint32_t)kvm_register_read(vcpu, i);
    for (i = 0; i < 6; i++) {
        m->selector[i] = segment_of(s, i)->selector;
        *hidden32(m, i) = to_seg32(segment_of(s, i));
    }
    m->tr_selector = s->tr.selector;
    m->tr = to_seg32(&s->tr);
    m->ldtr_selector = s->ldt.selector;
    m->ldtr = to_seg32(&s->ldt);
    m->gdt_base = (uint32_t)s->gdt.base;
    m->gdt_limit = s->gdt.limit;
    m->idt_base = (uint32_t)s->idt.base;
    m->idt_limit = s->idt.limit;
    m->eip = (uint32_t)kvm_rip_read(vcpu);
    m->eflags = (uint32_t)kvm_get_rflags(vcpu);
    m->dr6 = (uint32_t)kvm_get_dr(vcpu, 6);
    m->dr7 = (uint32_t)kvm_get_dr(vcpu, 7);
    m->cr0 = (uint32_t)s->cr0;
    m->cr3 = (uint32_t)s->cr3;
    m->cr4 = (uint32_t)s->cr4;
    m->revision = SMM_REVISION32;
    m->smbase = (uint32_t)vcpu->arch.smbase;
}

/* SDM 3C, "SMM Handler Execution Environment" */
static void handler_environment(struct kvm_vcpu *vcpu, struct kvm_sregs *s)
{
    const uint64_t smbase = vcpu->arch.smbase;
    unsigned i;

    for (i = 0; i < 6; i++)
        *segment_of(s, i) = (struct kvm_segment){.limit = 0xffffffff, .type = 3, .s = 1, .present = 1, .g = 1};
    s->cs.selector = (uint16_t)(smbase >> 4);
    s->cs.base = smbase;
    s->idt = (struct kvm_dtable){0};
    s->cr0 &= ~(uint64_t)(CR0_PE | CR0_EM | CR0_TS | CR0_PG);
    s->cr4 = 0;
    s->efer = 0;
    kvm_set_sregs(vcpu, s);
    kvm_rip_write(vcpu, SMM_ENTRY);
    kvm_set_rflags(vcpu, F_RESERVED);
    kvm_x86_ops->set_interrupt_shadow(vcpu, 0);
    kvm_set_dr(vcpu, 7, DR7_FIXED);
}

void enter_smm(struct kvm_vcpu *vcpu)
{
    union smram area = {{0}};
    struct kvm_sregs s = {0};

    kvm_trace(TRACE_INJECT, "vcpu %d: SMI", vcpu->vcpu_id);
    kvm_get_sregs(vcpu, &s);
    if (guest_cpuid_has(vcpu, 0x80000001, 'd', 29))
        save64(vcpu, &s, &area.b64);
    else
        save32(vcpu, &s, &area.b32);
    kvm_smm_changed(vcpu, true);
    kvm_vcpu_write_guest(vcpu, vcpu->arch.smbase + SMM_AREA, &area, sizeof(area)); /* no RAM there: no way back */
    vcpu->arch.smm_inside_nmi = kvm_x86_ops->get_nmi_mask(vcpu);
    kvm_x86_ops->set_nmi_mask(vcpu, true);
    kvm_x86_ops->clear_hlt(vcpu);
    handler_environment(vcpu, &s);
}

/* ---- RSM ---- */
static void load64(struct kvm_vcpu *vcpu, struct kvm_sregs *s, struct smram64 *m)
{
    unsigned i;

    for (i = 0; i < 16; i++)
        kvm_register_write(vcpu, i, m->gpr[15 - i]);
    for (i = 0; i < 6; i++)
        from_seg64(segment_of(s, i), &m->seg[i]);
    from_seg64(&s->tr, &m->tr);
    from_seg64(&s->ldt, &m->ldtr);
    s->gdt = (struct kvm_dtable){.base = m->gdtr.base, .limit = (uint16_t)m->gdtr.limit};
    s->idt = (struct kvm_dtable){.base = m->idtr.base, .limit = (uint16_t)m->idtr.limit};
    s->cr0 = m->cr0;
    s->cr3 = m->cr3;
    s->cr4 = m->cr4;
    s->efer = m->efer;
    vcpu->arch.smbase = m->smbase;
}

static void load32(struct kvm_vcpu *vcpu, struct kvm_sregs *s, struct smram32 *m)
{
    unsigned i;

    for (i = 0; i < 8; i++)
        kvm_register_write(vcpu, i, m->gpr[i]);
    for (i = 0; i < 6; i++)
        from_seg32(segment_of(s, i), m->selector[i], hidden32(m, i));
    from_seg32(&s->tr, m->tr_selector, &m->tr);
    from_seg32(&s->ldt, m->ldtr_selector, &m->ldtr);
    s->gdt = (struct kvm_dtable){.base = m->gdt_base, .limit = (uint16_t)m->gdt_limit};
    s->idt = (struct kvm_dtable){.base = m->idt_base, .limit = (uint16_t)m->idt_limit};
    s->cr0 = m->cr0;
    s->cr3 = m->cr3;
    s->cr4 = m->cr4;
    s->efer = 0;
    vcpu->arch.smbase = m->smbase;
}

/* SDM 3C, "Exiting From SMM": a state that cannot be is a shutdown. */
int kvm_emulate_rsm(struct kvm_vcpu *vcpu)
{
    const bool wide = guest_cpuid_has(vcpu, 0x80000001, 'd', 29);
    struct kvm_sregs s = {0};
    union smram area;
    bool bad;

    kvm_trace(TRACE_INJECT, "vcpu %d: RSM", vcpu->vcpu_id);
    bad = kvm_vcpu_read_guest(vcpu, vcpu->arch.smbase + SMM_AREA, &area, sizeof(area)) < 0;
    if (!bad) {
        if (!vcpu->arch.smm_inside_nmi)
            kvm_x86_ops->set_nmi_mask(vcpu, false);
        vcpu->arch.smm_inside_nmi = false;
        kvm_smm_changed(vcpu, false);
        kvm_get_sregs(vcpu, &s); /* what the area does not hold */
        if (wide)
            load64(vcpu, &s, &area.b64);
        else
            load32(vcpu, &s, &area.b32);
        bad = kvm_set_sregs(vcpu, &s) < 0;
        kvm_rip_write(vcpu, wide ? area.b64.rip : area.b32.eip);
        kvm_set_rflags(vcpu, (wide ? area.b64.rflags & ((1ull << 22) - 1) : area.b32.eflags) | F_RESERVED);
        kvm_set_dr(vcpu, 6, wide ? (uint32_t)area.b64.dr6 : area.b32.dr6);
        kvm_set_dr(vcpu, 7, wide ? (uint32_t)area.b64.dr7 : area.b32.dr7);
        if (wide)
            kvm_x86_ops->set_interrupt_shadow(vcpu, area.b64.int_shadow);
    }
    if (bad)
        kvm_make_request(KVM_REQ_TRIPLE_FAULT, vcpu);
    kvm_make_request(KVM_REQ_EVENT, vcpu);
    return 1;
}
