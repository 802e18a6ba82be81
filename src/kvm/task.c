/* SPDX-License-Identifier: MIT
 * task.c: task switches through a TSS (SDM 3A, "Task Management"). In VMX non-root operation each of them exits, so the
 * hypervisor does what the processor would: saves the old task in its TSS, loads the new one from its own. The
 * processor has made the checks on the selector and the TSS descriptor before it exited. */
#include "x86.h"
#include <errno.h>
#include <string.h>

enum task_source { TASK_CALL, TASK_IRET, TASK_JMP, TASK_GATE }; /* as in the exit qualification */

struct tss32 {
    uint32_t link, sp0[6], cr3, eip, eflags;
    uint32_t gpr[8]; /* eax ecx edx ebx esp ebp esi edi, as encoded */
    uint32_t seg[6]; /* es cs ss ds fs gs, as encoded */
    uint32_t ldt;
    uint16_t trap, io_map;
};
struct tss16 {
    uint16_t link, sp0[6], ip, flags, gpr[8], seg[4], ldt;
};
_Static_assert(sizeof(struct tss32) == 104 && sizeof(struct tss16) == 44, "SDM 3A, Task-State Segment (TSS)");

#define TSS_BUSY   2u
#define TSS_32     8u
#define DESC_BYTE5 5u /* type, S, DPL, P */
#define SEG_LDTR   7
#define SEG_TR     6
#define DR7_LOCAL  0x155ull

/* What a step says: 0 go on; 1 an exception is queued; < 0 the tables are no RAM, nothing can go on. */
static int access_linear(struct kvm_vcpu *vcpu, gva_t gva, void *data, unsigned len, unsigned access)
{
    char *p = data;

    while (len) {
        const unsigned room = (unsigned)(PAGE_SIZE - (gva & ~PAGE_MASK)), n = len < room ? len : room;
        struct cpu_exception fault;
        gpa_t gpa;
        int r;

        if (kvm_mmu_gva_to_gpa_fault(vcpu, gva, access, &gpa, &fault) < 0) {
            if (!fault.vector)
                return -EFAULT;
            kvm_queue_exception_e_p(vcpu, fault.vector, fault.error, fault.payload);
            return 1;
        }
        r = access & ACC_WRITE ? kvm_vcpu_write_guest(vcpu, gpa, p, n) : kvm_vcpu_read_guest(vcpu, gpa, p, n);
        if (r < 0)
            return r;
        gva += n;
        p += n;
        len -= n;
    }
    return 0;
}

static int read_system(struct kvm_vcpu *vcpu, gva_t gva, void *data, unsigned len)
{
    return access_linear(vcpu, (uint32_t)gva, data, len, ACC_READ | ACC_SYSTEM);
}

static int write_system(struct kvm_vcpu *vcpu, gva_t gva, const void *data, unsigned len)
{
    return access_linear(vcpu, (uint32_t)gva, (void *)data, len, ACC_WRITE | ACC_SYSTEM);
}

static int fault_on(struct kvm_vcpu *vcpu, unsigned vector, uint16_t sel)
{
    kvm_queue_exception_e(vcpu, vector, sel & 0xfffc);
    return 1;
}

/* ---- descriptors ---- */
static struct kvm_segment segment_of(uint64_t desc, uint16_t sel)
{
    struct kvm_segment s = {
        .base = (desc >> 16 & 0xffffff) | (desc >> 56 & 0xff) << 24,
        .limit = (uint32_t)((desc & 0xffff) | (desc >> 32 & 0xf0000)),
        .selector = sel,
        .type = desc >> 40 & 15,
        .s = desc >> 44 & 1,
        .dpl = desc >> 45 & 3,
        .present = desc >> 47 & 1,
        .avl = desc >> 52 & 1,
        .l = desc >> 53 & 1,
        .db = desc >> 54 & 1,
        .g = desc >> 55 & 1,
    };

    if (s.g)
        s.limit = s.limit << 12 | 0xfff;
    return s;
}

/* Where the descriptor lies, or #TS */
static int find_desc(struct kvm_vcpu *vcpu, uint16_t sel, gva_t *gva)
{
    struct kvm_segment ldt;
    struct kvm_dtable gdt;

    if (sel & 4) {
        kvm_x86_ops->get_segment(vcpu, &ldt, SEG_LDTR);
        if (ldt.unusable)
            return fault_on(vcpu, VEC_TS, sel);
        gdt.base = ldt.base;
        gdt.limit = (uint16_t)(ldt.limit > 0xffff ? 0xffff : ldt.limit);
    } else {
        kvm_x86_ops->get_gdt(vcpu, &gdt);
    }
    if ((sel | 7u) > gdt.limit)
        return fault_on(vcpu, VEC_TS, sel);
    *gva = gdt.base + (sel & 0xfff8);
    return 0;
}

static int set_busy(struct kvm_vcpu *vcpu, uint16_t sel, bool busy)
{
    uint8_t byte;
    gva_t gva;
    int r = find_desc(vcpu, sel, &gva);

    if (!r)
        r = read_system(vcpu, gva + DESC_BYTE5, &byte, 1);
    if (r)
        return r;
    byte = (uint8_t)(busy ? byte | TSS_BUSY : byte & ~TSS_BUSY);
    return write_system(vcpu, gva + DESC_BYTE5, &byte, 1);
}

/* ---- segments of the new task ---- */
/* Type and privilege (SDM 3A, "Task Switching": Table "Exception Conditions Checked During a Task Switch") */
static bool segment_suits(const struct kvm_segment *s, int seg, unsigned rpl, unsigned cpl)
{
    const bool code = s->type & 8, conforming = code && (s->type & 4);

    if (!s->s)
        return false;
    switch (seg) {
    case SEG_CS:
        return code && (conforming ? s->dpl <= rpl : s->dpl == rpl);
    case SEG_SS:
        return !code && (s->type & 2) && rpl == cpl && s->dpl == cpl;
    }
    return (!code || (s->type & 2)) && (conforming || (s->dpl >= rpl && s->dpl >= cpl));
}

static int load_segment(struct kvm_vcpu *vcpu, int seg, uint16_t sel, unsigned cpl)
{
    struct kvm_segment s = {.selector = sel, .unusable = 1};
    uint64_t desc;
    gva_t gva;
    int r;

    if (!(sel & ~3u)) {
        if (seg == SEG_CS || seg == SEG_SS)
            return fault_on(vcpu, VEC_TS, sel);
        kvm_x86_ops->set_segment(vcpu, &s, seg);
        return 0;
    }
    if ((r = find_desc(vcpu, sel, &gva)) || (r = read_system(vcpu, gva, &desc, sizeof(desc))))
        return r;
    s = segment_of(desc, sel);
    if (!segment_suits(&s, seg, sel & 3, cpl))
        return fault_on(vcpu, VEC_TS, sel);
    if (!s.present)
        return fault_on(vcpu, seg == SEG_SS ? VEC_SS : VEC_NP, sel);
    if (!(s.type & 1)) {
        const uint8_t byte = (uint8_t)(desc >> 40) | 1;

        s.type |= 1;
        if ((r = write_system(vcpu, gva + DESC_BYTE5, &byte, 1)))
            return r;
    }
    kvm_x86_ops->set_segment(vcpu, &s, seg);
    return 0;
}

static int load_ldt(struct kvm_vcpu *vcpu, uint16_t sel)
{
    struct kvm_segment s = {.selector = sel, .unusable = 1};
    uint64_t desc;
    gva_t gva;
    int r;

    if (sel & ~3u) {
        if (sel & 4)
            return fault_on(vcpu, VEC_TS, sel);
        if ((r = find_desc(vcpu, sel, &gva)) || (r = read_system(vcpu, gva, &desc, sizeof(desc))))
            return r;
        s = segment_of(desc, sel);
        if (s.s || s.type != 2 || !s.present)
            return fault_on(vcpu, VEC_TS, sel);
    }
    kvm_x86_ops->set_segment(vcpu, &s, SEG_LDTR);
    return 0;
}

static void load_v86_segments(struct kvm_vcpu *vcpu, const struct tss32 *t)
{
    for (int seg = 0; seg < 6; seg++) {
        const struct kvm_segment s = {.base = (uint64_t)(uint16_t)t->seg[seg] << 4,
                                      .limit = 0xffff,
                                      .selector = (uint16_t)t->seg[seg],
                                      .type = 3,
                                      .s = 1,
                                      .dpl = 3,
                                      .present = 1};

        kvm_x86_ops->set_segment(vcpu, &s, seg);
    }
}

static int load_segments(struct kvm_vcpu *vcpu, const struct tss32 *t)
{
    static const int order[] = {SEG_CS, SEG_SS, SEG_DS, SEG_ES, SEG_FS, SEG_GS};
    int r = load_ldt(vcpu, (uint16_t)t->ldt);

    if (!r && (t->eflags & F_VM)) {
        load_v86_segments(vcpu, t);
        return 0;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(order) && !r; i++)
        r = load_segment(vcpu, order[i], (uint16_t)t->seg[order[i]], t->seg[SEG_CS] & 3);
    return r;
}

/* ---- TSS ---- */
static void widen(const struct tss16 *s, struct tss32 *t)
{
    memset(t, 0, sizeof(*t));
    t->link = s->link;
    t->eip = s->ip;
    t->eflags = s->flags;
    for (unsigned i = 0; i < 8; i++)
        t->gpr[i] = s->gpr[i] | 0xffff0000;
    for (unsigned i = 0; i < 4; i++)
        t->seg[i] = s->seg[i];
    t->ldt = s->ldt;
}

static int read_tss(struct kvm_vcpu *vcpu, const struct kvm_segment *tr, struct tss32 *t)
{
    struct tss16 narrow;
    int r;

    if (tr->type & TSS_32)
        return read_system(vcpu, tr->base, t, sizeof(*t));
    r = read_system(vcpu, tr->base, &narrow, sizeof(narrow));
    if (!r)
        widen(&narrow, t);
    return r;
}

/* EIP up to GS of the old task; CR3 and the stacks of inner rings stay as they are in the TSS. */
static int save_task(struct kvm_vcpu *vcpu, const struct kvm_segment *tr, uint32_t eflags)
{
    uint32_t regs[16] = {(uint32_t)kvm_rip_read(vcpu), eflags};
    uint16_t narrow[14];

    for (unsigned i = 0; i < 8; i++)
        regs[2 + i] = (uint32_t)kvm_register_read(vcpu, i);
    for (int seg = 0; seg < 6; seg++) {
        struct kvm_segment s;

        kvm_x86_ops->get_segment(vcpu, &s, seg);
        regs[10 + seg] = s.selector;
    }
    if (tr->type & TSS_32)
        return write_system(vcpu, tr->base + offsetof(struct tss32, eip), regs, sizeof(regs));
    for (unsigned i = 0; i < ARRAY_SIZE(narrow); i++)
        narrow[i] = (uint16_t)regs[i];
    return write_system(vcpu, tr->base + offsetof(struct tss16, ip), narrow, sizeof(narrow));
}

/* Registers of the new task; from here on a fault is the new task's. */
static int load_task(struct kvm_vcpu *vcpu, const struct kvm_segment *tr, const struct tss32 *t,
                     enum task_source source)
{
    const bool nested = source == TASK_CALL || source == TASK_GATE;

    kvm_x86_ops->set_segment(vcpu, tr, SEG_TR);
    kvm_x86_ops->set_cr0(vcpu, kvm_read_cr0(vcpu) | CR0_TS);
    vcpu->arch.dr7 &= ~DR7_LOCAL;
    kvm_update_dr7(vcpu);
    if ((tr->type & TSS_32) && (kvm_read_cr0(vcpu) & CR0_PG) && kvm_set_cr3(vcpu, t->cr3))
        return fault_on(vcpu, VEC_TS, tr->selector);
    kvm_rip_write(vcpu, t->eip);
    kvm_x86_ops->set_rflags(vcpu, (t->eflags & ~0xffc08028ull) | F_RESERVED | (nested ? F_NT : 0));
    for (unsigned i = 0; i < 8; i++)
        kvm_register_write(vcpu, i, t->gpr[i]);
    return load_segments(vcpu, t);
}

static int push_error(struct kvm_vcpu *vcpu, const struct kvm_segment *tr, uint32_t error)
{
    const unsigned size = tr->type & TSS_32 ? 4 : 2;
    struct kvm_segment ss;
    uint64_t sp, mask;

    kvm_x86_ops->get_segment(vcpu, &ss, SEG_SS);
    mask = ss.db ? 0xffffffff : 0xffff;
    sp = (kvm_register_read(vcpu, R_RSP) - size) & mask;
    kvm_register_write(vcpu, R_RSP, (kvm_register_read(vcpu, R_RSP) & ~mask) | sp);
    return access_linear(vcpu, (uint32_t)(ss.base + sp), &error, size, ACC_WRITE);
}

static int do_task_switch(struct kvm_vcpu *vcpu, uint16_t sel, enum task_source source, const uint32_t *error)
{
    uint64_t rflags = kvm_x86_ops->get_rflags(vcpu), desc;
    struct kvm_segment old, new;
    struct tss32 task;
    gva_t gva;
    int r;

    kvm_x86_ops->get_segment(vcpu, &old, SEG_TR);
    if ((r = find_desc(vcpu, sel, &gva)) || (r = read_system(vcpu, gva, &desc, sizeof(desc))))
        return r;
    new = segment_of(desc, sel);
    new.type |= TSS_BUSY | 1;
    if ((r = read_tss(vcpu, &new, &task)))
        return r;
    if (source == TASK_IRET || source == TASK_JMP)
        r = set_busy(vcpu, old.selector, false);
    if (source == TASK_IRET)
        rflags &= ~F_NT;
    if (r || (r = save_task(vcpu, &old, (uint32_t)rflags)))
        return r;
    if ((source == TASK_CALL || source == TASK_GATE) && (r = write_system(vcpu, new.base, &old.selector, 2)))
        return r;
    if (source != TASK_IRET && (r = set_busy(vcpu, sel, true)))
        return r;
    r = load_task(vcpu, &new, &task, source);
    if (!r && error)
        r = push_error(vcpu, &new, *error);
    if (!r && (new.type &TSS_32) && (task.trap & 1))
        kvm_queue_exception_p(vcpu, VEC_DB, DR6_BT);
    return r;
}

/* 1: resume the guest, 0: to user space */
int kvm_task_switch(struct kvm_vcpu *vcpu, uint16_t sel, int source, const uint32_t *error)
{
    const int r = do_task_switch(vcpu, sel, (enum task_source)source, error);

    kvm_make_request(KVM_REQ_EVENT, vcpu);
    return r < 0 ? kvm_internal_error(vcpu, KVM_INTERNAL_ERROR_EMULATION, 0, NULL) : 1;
}
