/* SPDX-License-Identifier: MIT
 * vmx_segment.c: segment and descriptor-table registers of the guest-state area in the API's form. */
#include "kvm_vmx.h"

/* In the API's order: ES CS SS DS FS GS TR LDTR. */
static const struct {
    uint32_t selector, base, limit, ar;
} fields[8] = {
#define SEG(s)                                                                          \
    {                                                                                   \
        GUEST_##s##_SELECTOR, GUEST_##s##_BASE, GUEST_##s##_LIMIT, GUEST_##s##_AR_BYTES \
    }
    SEG(ES), SEG(CS), SEG(SS), SEG(DS), SEG(FS), SEG(GS), SEG(TR), SEG(LDTR),
#undef SEG
};
enum { VCPU_SREG_TR = 6, VCPU_SREG_LDTR = 7 };

void vmx_get_segment(struct kvm_vcpu *vcpu, struct kvm_segment *var, int seg)
{
    const uint32_t ar = (uint32_t)vmcs_read(vcpu, fields[seg].ar);

    *var = (struct kvm_segment){
        .base = vmcs_read(vcpu, fields[seg].base),
        .limit = (uint32_t)vmcs_read(vcpu, fields[seg].limit),
        .selector = (uint16_t)vmcs_read(vcpu, fields[seg].selector),
        .unusable = (ar & AR_UNUSABLE) != 0,
        .type = AR_TYPE(ar),
        .s = (ar & AR_S) != 0,
        .dpl = AR_DPL(ar),
        /* Unusable and present in the same register would be odd for a client: as Linux, not present. */
        .present = !(ar & AR_UNUSABLE),
        .avl = (ar & AR_AVL) != 0,
        .l = (ar & AR_L) != 0,
        .db = (ar & AR_DB) != 0,
        .g = (ar & AR_G) != 0,
    };
}

static uint32_t segment_access_rights(const struct kvm_segment *var, int seg)
{
    uint32_t ar = var->type & 15u;

    if (seg != VCPU_SREG_LDTR) /* VM entry wants the accessed (busy) bit: SDM 3C, "Checks on Guest Segment Registers" */
        ar |= 1;
    ar |= (var->s & 1u) << 4 | (var->dpl & 3u) << 5 | (var->present & 1u) << 7 | (var->avl & 1u) << 12;
    ar |= (var->l & 1u) << 13 | (var->db & 1u) << 14 | (var->g & 1u) << 15;
    if (var->unusable || !var->present)
        ar |= AR_UNUSABLE;
    return ar;
}

void vmx_set_segment(struct kvm_vcpu *vcpu, const struct kvm_segment *var, int seg)
{
    vmcs_write(vcpu, fields[seg].base, var->base);
    vmcs_write(vcpu, fields[seg].limit, var->limit);
    vmcs_write(vcpu, fields[seg].selector, var->selector);
    vmcs_write(vcpu, fields[seg].ar, segment_access_rights(var, seg));
}

int vmx_get_cpl(struct kvm_vcpu *vcpu)
{
    if (!(kvm_read_cr0(vcpu) & CR0_PE))
        return 0;
    return (int)AR_DPL(vmcs_read(vcpu, GUEST_SS_AR_BYTES));
}

void vmx_get_gdt(struct kvm_vcpu *vcpu, struct kvm_dtable *dt)
{
    *dt = (struct kvm_dtable){.base = vmcs_read(vcpu, GUEST_GDTR_BASE),
                              .limit = (uint16_t)vmcs_read(vcpu, GUEST_GDTR_LIMIT)};
}

void vmx_set_gdt(struct kvm_vcpu *vcpu, const struct kvm_dtable *dt)
{
    vmcs_write(vcpu, GUEST_GDTR_BASE, dt->base);
    vmcs_write(vcpu, GUEST_GDTR_LIMIT, dt->limit);
}

void vmx_get_idt(struct kvm_vcpu *vcpu, struct kvm_dtable *dt)
{
    *dt = (struct kvm_dtable){.base = vmcs_read(vcpu, GUEST_IDTR_BASE),
                              .limit = (uint16_t)vmcs_read(vcpu, GUEST_IDTR_LIMIT)};
}

void vmx_set_idt(struct kvm_vcpu *vcpu, const struct kvm_dtable *dt)
{
    vmcs_write(vcpu, GUEST_IDTR_BASE, dt->base);
    vmcs_write(vcpu, GUEST_IDTR_LIMIT, dt->limit);
}

/* SDM 3A, "Processor State After Reset" */
void vmx_reset_segments(struct kvm_vcpu *vcpu)
{
    const struct kvm_dtable dt = {.base = 0, .limit = 0xffff};

    for (int seg = 0; seg < 8; seg++) {
        struct kvm_segment var = {.limit = 0xffff, .type = 3, .s = 1, .present = 1};

        if (seg == SEG_CS) {
            var.selector = 0xf000;
            var.base = 0xffff0000;
            var.type = 11;
        } else if (seg == VCPU_SREG_TR || seg == VCPU_SREG_LDTR) {
            var.type = seg == VCPU_SREG_TR ? 11 : 2;
            var.s = 0;
        }
        vmx_set_segment(vcpu, &var, seg);
    }
    vmx_set_gdt(vcpu, &dt);
    vmx_set_idt(vcpu, &dt);
}
