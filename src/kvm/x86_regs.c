/* SPDX-License-Identifier: MIT
 * x86_regs.c: registers of a vCPU: control registers with the checks of MOV CR (SDM 2B, "MOV - Move to/from Control
 * Registers"), XCR0, debug registers, general registers, reset. */
#include "x86.h"
#include <string.h>

#define CR0_DEFINED (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)
#define CR4_ALWAYS                                                                                         \
    (CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE | CR4_OSFXSR | \
     CR4_OSXMMEXCPT)
/* Cached translations are wrong after a change of these; MOV CR3 and CR4.PGE are the processor's own business. */
#define CR0_FLUSH (CR0_PG | CR0_WP)
#define CR4_FLUSH (CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP)

/* ---- control registers ---- */
uint64_t kvm_read_cr0(struct kvm_vcpu *vcpu)
{
    kvm_x86_ops->decache_cr0_cr4(vcpu);
    return vcpu->arch.cr0;
}

uint64_t kvm_read_cr4(struct kvm_vcpu *vcpu)
{
    kvm_x86_ops->decache_cr0_cr4(vcpu);
    return vcpu->arch.cr4;
}

uint64_t kvm_read_cr3(struct kvm_vcpu *vcpu)
{
    return kvm_x86_ops->get_cr3(vcpu);
}

static uint64_t reserved_gpa_bits(struct kvm_vcpu *vcpu)
{
    return ~0ull << vcpu->arch.maxphyaddr;
}

/* SDM 3A, "PAE Paging with CR3": four entries, 32-byte aligned; a present one must not have reserved bits. */
bool load_pdptrs(struct kvm_vcpu *vcpu, uint64_t cr3)
{
    uint64_t pdpte[4];

    if (kvm_vcpu_read_guest(vcpu, cr3 & 0xffffffe0u, pdpte, sizeof(pdpte)) < 0)
        return false;
    for (unsigned i = 0; i < 4; i++)
        if ((pdpte[i] & 1) && (pdpte[i] & (reserved_gpa_bits(vcpu) | 0x1e6)))
            return false;
    kvm_x86_ops->set_pdptrs(vcpu, pdpte);
    return true;
}

static bool is_pae_paging(uint64_t cr0, uint64_t cr4, uint64_t efer)
{
    return (cr0 & CR0_PG) && (cr4 & CR4_PAE) && !(efer & EFER_LMA);
}

int kvm_set_cr0(struct kvm_vcpu *vcpu, uint64_t cr0)
{
    const uint64_t old = kvm_read_cr0(vcpu), cr4 = kvm_read_cr4(vcpu), efer = vcpu->arch.efer;

    cr0 |= CR0_ET;
    if (cr0 >> 32)
        return 1;
    cr0 &= CR0_DEFINED;
    if (((cr0 & CR0_NW) && !(cr0 & CR0_CD)) || ((cr0 & CR0_PG) && !(cr0 & CR0_PE)))
        return 1;
    if ((cr0 & CR0_PG) && !(old & CR0_PG) && (efer & EFER_LME)) {
        struct kvm_segment cs;

        kvm_x86_ops->get_segment(vcpu, &cs, SEG_CS);
        if (!(cr4 & CR4_PAE) || cs.l)
            return 1;
    }
    if (!(efer & EFER_LME) && (cr0 & CR0_PG) && (cr4 & CR4_PAE) && ((cr0 ^ old) & (CR0_PG | CR0_CD | CR0_NW)) &&
        !load_pdptrs(vcpu, kvm_read_cr3(vcpu)))
        return 1;
    if (!(cr0 & CR0_PG) && (is_64_bit_mode(vcpu) || (cr4 & CR4_PCIDE)))
        return 1;
    if (!kvm_x86_ops->nested_cr_allowed(vcpu, 0, cr0))
        return 1;
    kvm_x86_ops->set_cr0(vcpu, cr0);
    if ((cr0 ^ old) & CR0_FLUSH)
        kvm_make_request(KVM_REQ_TLB_FLUSH, vcpu);
    return 0;
}

int kvm_set_cr3(struct kvm_vcpu *vcpu, uint64_t cr3)
{
    const uint64_t cr0 = kvm_read_cr0(vcpu), cr4 = kvm_read_cr4(vcpu);

    if (cr4 & CR4_PCIDE)
        cr3 &= ~(1ull << 63); /* "do not invalidate" is no part of the value */
    if (is_long_mode(vcpu) && (cr3 & reserved_gpa_bits(vcpu)))
        return 1;
    if (is_pae_paging(cr0, cr4, vcpu->arch.efer) && !load_pdptrs(vcpu, cr3))
        return 1;
    kvm_x86_ops->set_cr3(vcpu, cr3);
    kvm_make_request(KVM_REQ_TLB_FLUSH, vcpu);
    return 0;
}

static bool processor_has(uint32_t leaf, char reg, unsigned bit)
{
    struct cpuid_regs r;

    cpu_cpuid(leaf, 0, &r);
    return (reg == 'b' ? r.ebx : r.ecx) >> bit & 1;
}

uint64_t kvm_valid_cr4_bits(struct kvm_vcpu *vcpu)
{
    static const struct {
        uint64_t bit;
        uint32_t leaf;
        char reg;
        uint8_t shift;
    } rows[] = {
        {CR4_UMIP, 7, 'c', 2}, {CR4_FSGSBASE, 7, 'b', 0}, {CR4_PCIDE, 1, 'c', 17}, {CR4_OSXSAVE, 1, 'c', 26},
        {CR4_SMEP, 7, 'b', 7}, {CR4_SMAP, 7, 'b', 20},    {CR4_VMXE, 1, 'c', 5},
    };
    const bool any = !vcpu->arch.cpuid; /* before KVM_SET_CPUID2: what the processor has */
    uint64_t valid = CR4_ALWAYS;

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        if (any ? processor_has(rows[i].leaf, rows[i].reg, rows[i].shift)
                : guest_cpuid_has(vcpu, rows[i].leaf, rows[i].reg, rows[i].shift))
            valid |= rows[i].bit;
    return any && !kvm_params.nested ? valid & ~CR4_VMXE : valid;
}

bool kvm_is_valid_cr4(struct kvm_vcpu *vcpu, uint64_t cr4)
{
    return !(cr4 & ~kvm_valid_cr4_bits(vcpu));
}

int kvm_set_cr4(struct kvm_vcpu *vcpu, uint64_t cr4)
{
    const uint64_t old = kvm_read_cr4(vcpu), cr0 = kvm_read_cr0(vcpu);

    if (!kvm_is_valid_cr4(vcpu, cr4) || !kvm_x86_ops->nested_cr_allowed(vcpu, 4, cr4))
        return 1;
    if (is_long_mode(vcpu)) {
        if (!(cr4 & CR4_PAE))
            return 1;
    } else if (is_pae_paging(cr0, cr4, vcpu->arch.efer) && ((cr4 ^ old) & (CR4_PGE | CR4_PSE | CR4_PAE | CR4_SMEP)) &&
               !load_pdptrs(vcpu, kvm_read_cr3(vcpu))) {
        return 1;
    }
    if ((cr4 & CR4_PCIDE) && !(old & CR4_PCIDE) && (!is_long_mode(vcpu) || (kvm_read_cr3(vcpu) & 0xfff)))
        return 1;
    kvm_x86_ops->set_cr4(vcpu, cr4);
    if ((cr4 ^ old) & CR4_FLUSH)
        kvm_make_request(KVM_REQ_TLB_FLUSH, vcpu);
    if ((cr4 ^ old) & CR4_OSXSAVE)
        kvm_update_cpuid_runtime(vcpu);
    return 0;
}

int kvm_set_cr8(struct kvm_vcpu *vcpu, uint64_t cr8)
{
    if (cr8 & ~15ull)
        return 1;
    if (lapic_in_kernel(vcpu))
        kvm_lapic_set_tpr(vcpu, (unsigned long)cr8);
    else
        vcpu->arch.cr8 = cr8;
    return 0;
}

uint64_t kvm_get_cr8(struct kvm_vcpu *vcpu)
{
    return lapic_in_kernel(vcpu) ? kvm_lapic_get_cr8(vcpu) : vcpu->arch.cr8;
}

/* SDM 1, "Extended Control Registers (Including XCR0)": components that need each other */
int kvm_set_xcr(struct kvm_vcpu *vcpu, uint32_t index, uint64_t xcr0)
{
    const uint64_t x87 = 1, sse = 2, ymm = 4, avx512 = 7ull << 5;

    if (index != 0 || !(xcr0 & x87) || ((xcr0 & ymm) && !(xcr0 & sse)))
        return 1;
    if ((xcr0 & avx512) && ((xcr0 & avx512) != avx512 || !(xcr0 & ymm)))
        return 1;
    if (xcr0 & ~(vcpu->arch.guest_supported_xcr0 | x87))
        return 1;
    cpu_state(vcpu->arch.cpu)->xcr0 = xcr0;
    kvm_update_cpuid_runtime(vcpu);
    return 0;
}

/* ---- debug registers ---- */
void kvm_update_dr0123(struct kvm_vcpu *vcpu)
{
    if (!(vcpu->arch.guest_debug & KVM_GUESTDBG_USE_HW_BP))
        memcpy(vcpu->arch.eff_db, vcpu->arch.db, sizeof(vcpu->arch.eff_db));
}

void kvm_update_dr7(struct kvm_vcpu *vcpu)
{
    const bool debugged = vcpu->arch.guest_debug & KVM_GUESTDBG_USE_HW_BP;

    kvm_x86_ops->set_dr7(vcpu, (debugged ? vcpu->arch.guest_debug_dr7 : vcpu->arch.dr7) | DR7_FIXED);
}

int kvm_set_dr(struct kvm_vcpu *vcpu, int dr, uint64_t value)
{
    switch (dr) {
    case 0 ... 3:
        vcpu->arch.db[dr] = value;
        kvm_update_dr0123(vcpu);
        return 0;
    case 4:
    case 6:
        if (value >> 32)
            return 1;
        vcpu->arch.dr6 = ((value & 0xe00full) | DR6_FIXED);
        return 0;
    default:
        if (value >> 32)
            return 1;
        vcpu->arch.dr7 = (value & 0xffff2bffull) | DR7_FIXED;
        kvm_update_dr7(vcpu);
        return 0;
    }
}

uint64_t kvm_get_dr(struct kvm_vcpu *vcpu, int dr)
{
    if (dr < 4)
        return vcpu->arch.db[dr];
    return dr == 4 || dr == 6 ? vcpu->arch.dr6 : vcpu->arch.dr7;
}

/* ---- general registers ---- */
uint64_t kvm_register_read(struct kvm_vcpu *vcpu, unsigned reg)
{
    return reg == R_RSP ? kvm_x86_ops->get_rsp(vcpu) : cpu_state(vcpu->arch.cpu)->gpr[reg];
}

void kvm_register_write(struct kvm_vcpu *vcpu, unsigned reg, uint64_t value)
{
    if (reg == R_RSP)
        kvm_x86_ops->set_rsp(vcpu, value);
    else
        cpu_state(vcpu->arch.cpu)->gpr[reg] = value;
}

uint64_t kvm_rip_read(struct kvm_vcpu *vcpu)
{
    return kvm_x86_ops->get_rip(vcpu);
}

void kvm_rip_write(struct kvm_vcpu *vcpu, uint64_t rip)
{
    kvm_x86_ops->set_rip(vcpu, rip);
}

uint64_t kvm_get_rflags(struct kvm_vcpu *vcpu)
{
    const uint64_t rflags = kvm_x86_ops->get_rflags(vcpu);

    return vcpu->arch.guest_debug & KVM_GUESTDBG_SINGLESTEP ? rflags & ~F_TF : rflags;
}

void kvm_set_rflags(struct kvm_vcpu *vcpu, uint64_t rflags)
{
    if ((vcpu->arch.guest_debug & KVM_GUESTDBG_SINGLESTEP) && kvm_get_linear_rip(vcpu) == vcpu->arch.singlestep_rip)
        rflags |= F_TF;
    kvm_x86_ops->set_rflags(vcpu, rflags | F_RESERVED);
    kvm_make_request(KVM_REQ_EVENT, vcpu);
}

/* ---- reset ---- */
static void reset_debug_registers(struct kvm_vcpu *vcpu)
{
    memset(vcpu->arch.db, 0, sizeof(vcpu->arch.db));
    kvm_update_dr0123(vcpu);
    vcpu->arch.dr6 = DR6_FIXED;
    vcpu->arch.dr7 = DR7_FIXED;
    kvm_update_dr7(vcpu);
}

/* Power-on (init_event false) or INIT (SDM 3A, "Processor State After Reset") */
void kvm_vcpu_reset(struct kvm_vcpu *vcpu, bool init_event)
{
    const struct kvm_cpuid_entry2 *leaf1 = kvm_find_cpuid_entry(vcpu, 1, 0);
    struct cpu_state *s = cpu_state(vcpu->arch.cpu);
    const uint64_t old_cr0 = vcpu->arch.cr0;

    kvm_vcpu_emulation_cancel(vcpu);
    if (lapic_in_kernel(vcpu))
        kvm_lapic_reset(vcpu, init_event);
    vcpu->arch.smi_pending = vcpu->arch.triple_fault_pending = false;
    vcpu->arch.smm_inside_nmi = false;
    kvm_smm_changed(vcpu, false);
    atomic_store(&vcpu->arch.nmi_queued, 0);
    vcpu->arch.nmi_pending = 0;
    kvm_clear_queues(vcpu);
    cpu_reset(vcpu->arch.cpu, init_event);
    memset(s->gpr, 0, sizeof(s->gpr));
    s->gpr[R_RDX] = leaf1 ? leaf1->eax : 0x600;
    s->cr2 = 0;
    if (!init_event) {
        vcpu->arch.smbase = 0x30000;
        vcpu->arch.msr_misc_features = 0;
        s->xcr0 = 1;
    }
    reset_debug_registers(vcpu);
    kvm_x86_ops->vcpu_reset(vcpu, init_event);
    kvm_x86_ops->set_rsp(vcpu, 0);
    kvm_x86_ops->set_rip(vcpu, 0xfff0);
    kvm_x86_ops->set_rflags(vcpu, F_RESERVED);
    kvm_x86_ops->set_cr3(vcpu, 0);
    /* INIT keeps CD and NW; leaving IA-32e mode goes with CR0.PG */
    kvm_x86_ops->set_cr0(vcpu, CR0_ET | (init_event ? old_cr0 & (CR0_NW | CR0_CD) : CR0_NW | CR0_CD));
    kvm_x86_ops->set_cr4(vcpu, 0);
    kvm_x86_ops->set_efer(vcpu, 0);
    vcpu->arch.cr8 = 0;
    kvm_x86_ops->update_exception_bitmap(vcpu);
    kvm_update_cpuid_runtime(vcpu);
    kvm_make_request(KVM_REQ_TLB_FLUSH, vcpu);
    kvm_make_request(KVM_REQ_EVENT, vcpu);
}
