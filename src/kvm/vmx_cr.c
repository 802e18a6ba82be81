/* SPDX-License-Identifier: MIT
 * vmx_cr.c: control registers and EFER of the guest: the real register, the read shadow and the guest/host mask (SDM
 * 3C, "Guest/Host Masks and Read Shadows for CR0 and CR4"). The bits that VMX operation fixes are hidden by the masks.
 */
#include "kvm_vmx.h"
#include <errno.h>

#define CR0_POSSIBLE_GUEST_BITS CR0_TS
#define CR4_POSSIBLE_GUEST_BITS \
    (CR4_PVI | CR4_DE | CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_PGE | CR4_TSD | CR4_FSGSBASE)

/* CR0.PG with EFER.LME enters or leaves IA-32e mode; the exit was taken for that (SDM 3A, "Initializing IA-32e Mode").
 */
static void update_long_mode(struct kvm_vcpu *vcpu, uint64_t old_cr0, uint64_t cr0)
{
    uint32_t tr_ar;

    if (!(vcpu->arch.efer & EFER_LME) || !((old_cr0 ^ cr0) & CR0_PG))
        return;
    if (!(cr0 & CR0_PG)) {
        vmx_set_efer(vcpu, vcpu->arch.efer & ~EFER_LMA);
        return;
    }
    tr_ar = (uint32_t)vmcs_read(vcpu, GUEST_TR_AR_BYTES);
    if (AR_TYPE(tr_ar) != 11) /* a 16-bit TSS would fail VM entry; on hardware the next task use would fault */
        vmcs_write(vcpu, GUEST_TR_AR_BYTES, (tr_ar & ~15u) | 11);
    vmx_set_efer(vcpu, vcpu->arch.efer | EFER_LMA);
}

void vmx_set_cr0(struct kvm_vcpu *vcpu, uint64_t cr0)
{
    const uint64_t fixed = vmcs_config.cr0_fixed0 & ~(CR0_PE | CR0_PG); /* unrestricted guest: both free */

    update_long_mode(vcpu, vcpu->arch.cr0, cr0);
    vmcs_write(vcpu, CR0_READ_SHADOW, cr0);
    vmcs_write(vcpu, GUEST_CR0, (cr0 & ~(CR0_NW | CR0_CD)) | fixed);
    vcpu->arch.cr0 = cr0;
    vcpu->arch.cr0_guest_owned_bits = CR0_POSSIBLE_GUEST_BITS;
    vmcs_write(vcpu, CR0_GUEST_HOST_MASK, ~vcpu->arch.cr0_guest_owned_bits);
}

void vmx_set_cr4(struct kvm_vcpu *vcpu, uint64_t cr4)
{
    vmcs_write(vcpu, CR4_READ_SHADOW, cr4);
    vmcs_write(vcpu, GUEST_CR4, cr4 | vmcs_config.cr4_fixed0);
    vcpu->arch.cr4 = cr4;
    vcpu->arch.cr4_guest_owned_bits = CR4_POSSIBLE_GUEST_BITS & kvm_valid_cr4_bits(vcpu);
    vmcs_write(vcpu, CR4_GUEST_HOST_MASK, ~vcpu->arch.cr4_guest_owned_bits);
}

void vmx_set_cr3(struct kvm_vcpu *vcpu, uint64_t cr3)
{
    vcpu->arch.cr3 = cr3;
    vmcs_write(vcpu, GUEST_CR3, cr3);
}

uint64_t vmx_get_cr3(struct kvm_vcpu *vcpu)
{
    return vcpu->arch.cr3 = vmcs_read(vcpu, GUEST_CR3);
}

void vmx_set_pdptrs(struct kvm_vcpu *vcpu, const uint64_t *pdptr)
{
    for (unsigned i = 0; i < 4; i++)
        vmcs_write(vcpu, GUEST_PDPTR0 + 2 * i, pdptr[i]);
}

void vmx_get_pdptrs(struct kvm_vcpu *vcpu, uint64_t *pdptr)
{
    for (unsigned i = 0; i < 4; i++)
        pdptr[i] = vmcs_read(vcpu, GUEST_PDPTR0 + 2 * i);
}

void vmx_decache_cr0_cr4(struct kvm_vcpu *vcpu)
{
    const uint64_t own0 = vcpu->arch.cr0_guest_owned_bits, own4 = vcpu->arch.cr4_guest_owned_bits;

    vcpu->arch.cr0 = (vcpu->arch.cr0 & ~own0) | (vmcs_read(vcpu, GUEST_CR0) & own0);
    vcpu->arch.cr4 = (vcpu->arch.cr4 & ~own4) | (vmcs_read(vcpu, GUEST_CR4) & own4);
}

int vmx_set_efer(struct kvm_vcpu *vcpu, uint64_t efer)
{
    const uint64_t entry = vmcs_read(vcpu, VM_ENTRY_CONTROLS);

    vcpu->arch.efer = efer;
    vmcs_write(vcpu, VM_ENTRY_CONTROLS,
               efer & EFER_LMA ? entry | ENTRY_IA32E_MODE : entry & ~(uint64_t)ENTRY_IA32E_MODE);
    vmcs_write(vcpu, GUEST_IA32_EFER, efer);
    return 0;
}
