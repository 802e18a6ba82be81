/* SPDX-License-Identifier: MIT
 * vmx.c: the vendor module kvm_intel: capability MSRs, a vCPU's VMCS, VM entry. The processor that it drives is
 * src/cpu; each access to a VMCS is a VMREAD or VMWRITE. */
#include "kvm_vmx.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct vmcs_config vmcs_config;
static pthread_mutex_t vpid_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t vpid_bitmap[65536 / 64] = {1}; /* VPID 0 is the hypervisor's own */

#define PIN_REQUIRED (PIN_EXT_INTR_EXITING | PIN_NMI_EXITING | PIN_VIRTUAL_NMIS)
#define CPU_REQUIRED                                                                                               \
    (CPU_HLT_EXITING | CPU_USE_TSC_OFFSETTING | CPU_MOV_DR_EXITING | CPU_UNCOND_IO_EXITING | CPU_MWAIT_EXITING |   \
     CPU_MONITOR_EXITING | CPU_INVLPG_EXITING | CPU_RDPMC_EXITING | CPU_CR3_LOAD_EXITING | CPU_CR3_STORE_EXITING | \
     CPU_CR8_LOAD_EXITING | CPU_CR8_STORE_EXITING | CPU_USE_MSR_BITMAPS | CPU_SECONDARY_CONTROLS)
#define CPU2_REQUIRED (CPU2_ENABLE_EPT | CPU2_UNRESTRICTED_GUEST)
#define CPU2_WISHED                                                                                         \
    (CPU2_ENABLE_VPID | CPU2_ENABLE_RDTSCP | CPU2_ENABLE_INVPCID | CPU2_TSC_SCALING | CPU2_RDRAND_EXITING | \
     CPU2_RDSEED_EXITING)
#define EXIT_REQUIRED  (EXIT_SAVE_DEBUG_CONTROLS | EXIT_HOST_ADDR_SPACE_SIZE | EXIT_LOAD_PAT | EXIT_LOAD_EFER)
#define ENTRY_REQUIRED (ENTRY_LOAD_DEBUG_CONTROLS | ENTRY_LOAD_PAT | ENTRY_LOAD_EFER)

void vmcs_write_error(struct kvm_vcpu *vcpu, uint32_t field, uint64_t value)
{
    kvm_trace(TRACE_VMCS, "vcpu %d: VMWRITE %#x = %#llx failed, error %llu", vcpu->vcpu_id, field,
              (unsigned long long)value, (unsigned long long)vmcs_read(vcpu, VM_INSTRUCTION_ERROR));
}

/* SDM 3D, "VM-Execution Controls": bits 31:0 of a capability MSR must be 1, bits 63:32 may be 1. */
static int adjust_vmx_controls(uint32_t required, uint32_t wished, uint32_t msr, uint32_t *result)
{
    uint64_t cap;
    uint32_t ctl;

    if (cpu_rdmsr(msr, &cap) < 0)
        return -EIO;
    ctl = ((required | wished) & (uint32_t)(cap >> 32)) | (uint32_t)cap;
    if (required & ~ctl)
        return -EIO;
    *result = ctl;
    return 0;
}

static int setup_vmcs_config(struct vmcs_config *c)
{
    uint64_t basic, ept_vpid;
    int r = 0;

    if (cpu_rdmsr(MSR_IA32_VMX_BASIC, &basic) < 0)
        return -EOPNOTSUPP;
    c->revision = (uint32_t)basic & 0x7fffffff;
    r = r ?: adjust_vmx_controls(PIN_REQUIRED, 0, MSR_IA32_VMX_PINBASED_CTLS, &c->pin);
    r = r ?: adjust_vmx_controls(CPU_REQUIRED, 0, MSR_IA32_VMX_PROCBASED_CTLS, &c->cpu);
    r = r ?: adjust_vmx_controls(CPU2_REQUIRED, CPU2_WISHED, MSR_IA32_VMX_PROCBASED_CTLS2, &c->cpu2);
    r = r ?: adjust_vmx_controls(EXIT_REQUIRED, 0, MSR_IA32_VMX_EXIT_CTLS, &c->exit);
    r = r ?: adjust_vmx_controls(ENTRY_REQUIRED, 0, MSR_IA32_VMX_ENTRY_CTLS, &c->entry);
    if (r)
        return r;
    /* With EPT neither CR3 accesses nor INVLPG need to exit: "may be 0" by the TRUE capability MSRs. */
    c->cpu &= ~(CPU_CR3_LOAD_EXITING | CPU_CR3_STORE_EXITING | CPU_INVLPG_EXITING);
    if (cpu_rdmsr(MSR_IA32_VMX_EPT_VPID_CAP, &ept_vpid) < 0 || cpu_rdmsr(MSR_IA32_VMX_CR0_FIXED0, &c->cr0_fixed0) < 0 ||
        cpu_rdmsr(MSR_IA32_VMX_CR0_FIXED1, &c->cr0_fixed1) < 0 ||
        cpu_rdmsr(MSR_IA32_VMX_CR4_FIXED0, &c->cr4_fixed0) < 0 ||
        cpu_rdmsr(MSR_IA32_VMX_CR4_FIXED1, &c->cr4_fixed1) < 0)
        return -EIO;
    c->ept_2m = ept_vpid & (1ull << 16);
    c->vpid = kvm_params.vpid && (c->cpu2 & CPU2_ENABLE_VPID) && (ept_vpid & (1ull << 32));
    c->tsc_scaling = c->cpu2 & CPU2_TSC_SCALING;
    return 0;
}

static int vmx_check_processor_compat(void)
{
    struct cpuid_regs leaf1;
    struct vmcs_config now = {0};
    int r;

    cpu_cpuid(1, 0, &leaf1);
    if (!(leaf1.ecx & (1u << 5))) /* SDM 3C, "Discovering Support for VMX" */
        return -EOPNOTSUPP;
    r = setup_vmcs_config(&now);
    if (!r && memcmp(&now, &vmcs_config, sizeof(now)))
        r = -EIO;
    return r;
}

static int vmx_hardware_setup(void)
{
    if (!kvm_params.ept || !kvm_params.unrestricted_guest)
        return -EOPNOTSUPP; /* shadow paging and real mode by emulation are not there */
    memset(&vmcs_config, 0, sizeof(vmcs_config));
    return setup_vmcs_config(&vmcs_config);
}

static void *alloc_vmcs_page(void)
{
    uint32_t *page = os_alloc_pages(PAGE_SIZE);

    if (page)
        page[0] = vmcs_config.revision;
    return page;
}

static int vmx_hardware_enable(struct kvm_vcpu *vcpu)
{
    struct cpu_state *s = cpu_state(vcpu->arch.cpu);

    s->cr0 = (s->cr0 | vmcs_config.cr0_fixed0) & vmcs_config.cr0_fixed1;
    s->cr4 |= vmcs_config.cr4_fixed0; /* CR4.VMXE */
    return cpu_vmxon(vcpu->arch.cpu, (hpa_t)vcpu->arch.vmx->vmxon) == VMX_OK ? 0 : -EBUSY;
}

static void vmx_hardware_disable(struct kvm_vcpu *vcpu)
{
    cpu_vmxoff(vcpu->arch.cpu);
    cpu_state(vcpu->arch.cpu)->cr4 &= ~CR4_VMXE;
}

static uint16_t allocate_vpid(void)
{
    uint16_t vpid = 0;

    if (!vmcs_config.vpid)
        return 0;
    pthread_mutex_lock(&vpid_lock);
    for (unsigned i = 0; i < ARRAY_SIZE(vpid_bitmap) && !vpid; i++) {
        if (~vpid_bitmap[i]) {
            const unsigned bit = (unsigned)__builtin_ctzll(~vpid_bitmap[i]);

            vpid_bitmap[i] |= 1ull << bit;
            vpid = (uint16_t)(i * 64 + bit);
        }
    }
    pthread_mutex_unlock(&vpid_lock);
    return vpid;
}

static void free_vpid(uint16_t vpid)
{
    if (!vpid)
        return;
    pthread_mutex_lock(&vpid_lock);
    vpid_bitmap[vpid / 64] &= ~(1ull << vpid % 64);
    pthread_mutex_unlock(&vpid_lock);
}

/* ---- MSR bitmap: which MSRs the guest reaches without an exit ---- */
static const struct passthrough {
    uint32_t msr;
    bool read, write;
} passthrough_msrs[] = {
    {0x10, true, false},                                /* IA32_TIME_STAMP_COUNTER, with the offset */
    {0xc0000100, true, true}, {0xc0000101, true, true}, /* FS.base, GS.base */
    {0xc0000102, true, true},                           /* KERNEL_GS_BASE */
    {0x174, true, true},      {0x175, true, true},      /* SYSENTER_CS, _ESP */
    {0x176, true, true},                                /* SYSENTER_EIP */
};

/* SDM 3C, "MSR-Bitmap Address": read low, read high, write low, write high, 1 KiB each; a set bit exits. */
static void msr_bitmap_set(uint8_t *bitmap, uint32_t msr, bool write, bool intercept)
{
    const uint32_t bit = msr & 0x1fff;
    uint8_t *byte = bitmap + (msr >= 0xc0000000 ? 1024 : 0) + (write ? 2048 : 0) + bit / 8;

    if (intercept)
        *byte |= (uint8_t)(1u << bit % 8);
    else
        *byte &= (uint8_t) ~(1u << bit % 8);
}

static void vmx_update_msr_intercepts(struct kvm_vcpu *vcpu)
{
    const struct kvm_cpuid_entry2 *leaf7 = kvm_find_cpuid_entry(vcpu, 7, 0);
    const struct kvm_cpuid_entry2 *ext8 = kvm_find_cpuid_entry(vcpu, 0x80000008, 0);
    const bool spec_ctrl = (leaf7 && leaf7->edx & (1u << 26)) || (ext8 && ext8->ebx & ((1u << 14) | (1u << 12)));
    const bool filtered = vcpu->kvm->arch.msr_filter != NULL; /* a filter sees every access */

    memset(vcpu->arch.vmx->msr_bitmap, 0xff, PAGE_SIZE);
    if (filtered)
        return;
    for (unsigned i = 0; i < ARRAY_SIZE(passthrough_msrs); i++) {
        msr_bitmap_set(vcpu->arch.vmx->msr_bitmap, passthrough_msrs[i].msr, false, !passthrough_msrs[i].read);
        msr_bitmap_set(vcpu->arch.vmx->msr_bitmap, passthrough_msrs[i].msr, true, !passthrough_msrs[i].write);
    }
    msr_bitmap_set(vcpu->arch.vmx->msr_bitmap, 0x48, false, !spec_ctrl);
    msr_bitmap_set(vcpu->arch.vmx->msr_bitmap, 0x48, true, !spec_ctrl);
}

/* ---- VMCS of a vCPU ---- */
/* Root operation in this process has no segments, tables or page tables of its own: the host-state area holds what the
 * checks ask for (SDM 3C, "Checks on the Host-State Area"), and an exit returns to the caller of VMLAUNCH. */
static void vmx_set_constant_host_state(struct kvm_vcpu *vcpu)
{
    static const struct {
        uint32_t field;
        uint64_t value;
    } host[] = {
        {HOST_CR3, 0},
        {HOST_CS_SELECTOR, 0x10},
        {HOST_SS_SELECTOR, 0x18},
        {HOST_DS_SELECTOR, 0},
        {HOST_ES_SELECTOR, 0},
        {HOST_FS_SELECTOR, 0},
        {HOST_GS_SELECTOR, 0},
        {HOST_TR_SELECTOR, 0x40},
        {HOST_FS_BASE, 0},
        {HOST_GS_BASE, 0},
        {HOST_TR_BASE, 0},
        {HOST_GDTR_BASE, 0},
        {HOST_IDTR_BASE, 0},
        {HOST_IA32_SYSENTER_CS, 0},
        {HOST_IA32_SYSENTER_ESP, 0},
        {HOST_RSP, 0},
        {HOST_IA32_SYSENTER_EIP, 0},
        {HOST_RIP, 0},
        {HOST_IA32_EFER, EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE},
        {HOST_IA32_PAT, 0x0007040600070406ull},
    };

    vmcs_write(vcpu, HOST_CR0, (CR0_PG | CR0_WP | CR0_NE | CR0_ET | CR0_MP | CR0_PE) | vmcs_config.cr0_fixed0);
    vmcs_write(vcpu, HOST_CR4, CR4_PAE | CR4_PGE | vmcs_config.cr4_fixed0);
    for (unsigned i = 0; i < ARRAY_SIZE(host); i++)
        vmcs_write(vcpu, host[i].field, host[i].value);
}

static bool guest_cpuid_bit(struct kvm_vcpu *vcpu, uint32_t leaf, char reg, unsigned bit)
{
    const struct kvm_cpuid_entry2 *e = kvm_find_cpuid_entry(vcpu, leaf, 0);

    return e && ((reg == 'b' ? e->ebx : reg == 'c' ? e->ecx : e->edx) >> bit & 1);
}

static uint32_t vmx_secondary_exec_control(struct kvm_vcpu *vcpu)
{
    uint32_t ctl = vmcs_config.cpu2;

    if (!vcpu->arch.vmx->vpid)
        ctl &= ~CPU2_ENABLE_VPID;
    if (!vcpu->arch.tsc_multiplier)
        ctl &= ~CPU2_TSC_SCALING;
    if (!guest_cpuid_bit(vcpu, 0x80000001, 'd', 27) && !guest_cpuid_bit(vcpu, 7, 'c', 22))
        ctl &= ~CPU2_ENABLE_RDTSCP;
    if (!guest_cpuid_bit(vcpu, 7, 'b', 10) || !guest_cpuid_bit(vcpu, 1, 'c', 17))
        ctl &= ~CPU2_ENABLE_INVPCID;
    if (guest_cpuid_bit(vcpu, 1, 'c', 30))
        ctl &= ~CPU2_RDRAND_EXITING;
    if (guest_cpuid_bit(vcpu, 7, 'b', 18))
        ctl &= ~CPU2_RDSEED_EXITING;
    return ctl;
}

static void vmx_set_secondary(struct kvm_vcpu *vcpu)
{
    vcpu->arch.vmx->cpu2_ctl = vmx_secondary_exec_control(vcpu);
    vmcs_write(vcpu, SECONDARY_VM_EXEC_CONTROL, vcpu->arch.vmx->cpu2_ctl);
}

static struct cpuid_regs guest_leaf(struct kvm_vcpu *vcpu, uint32_t leaf)
{
    const struct kvm_cpuid_entry2 *e = kvm_find_cpuid_entry(vcpu, leaf, 0);

    return e ? (struct cpuid_regs){e->eax, e->ebx, e->ecx, e->edx} : (struct cpuid_regs){0};
}

/* KVM_SET_CPUID2: the controls that follow CPUID, and what VMX has no field for. */
static void vmx_update_cpuid(struct kvm_vcpu *vcpu)
{
    const struct cpuid_regs leaf0 = guest_leaf(vcpu, 0), leaf1 = guest_leaf(vcpu, 1), leaf7 = guest_leaf(vcpu, 7);
    const struct cpuid_regs ext1 = guest_leaf(vcpu, 0x80000001);
    const bool amd = (leaf0.ebx == 0x68747541 && leaf0.edx == 0x69746e65 && leaf0.ecx == 0x444d4163) ||
                     (leaf0.ebx == 0x6f677948 && leaf0.edx == 0x6e65476e && leaf0.ecx == 0x656e6975);

    vmx_set_secondary(vcpu);
    vmx_update_msr_intercepts(vcpu);
    vmx_nested_changed(vcpu);
    cpu_set_guest_cpuid(vcpu->arch.cpu, &leaf1, &leaf7, &ext1, vcpu->arch.maxphyaddr, amd);
    vmx_set_cr4(vcpu, kvm_read_cr4(vcpu)); /* which bits the guest may own */
}

static void vmx_update_exception_bitmap(struct kvm_vcpu *vcpu)
{
    uint32_t bitmap = (1u << VEC_UD) | (1u << VEC_MC) | (1u << VEC_DB) | (1u << VEC_AC);
    const uint32_t sw_bp = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;

    if ((vcpu->arch.guest_debug & sw_bp) == sw_bp)
        bitmap |= 1u << VEC_BP;
    vmcs_write(vcpu, EXCEPTION_BITMAP, bitmap);
}

static void vmx_load_mmu_pgd(struct kvm_vcpu *vcpu)
{
    const uint64_t root = vcpu->kvm->arch.ept_root[kvm_arch_vcpu_memslots_id(vcpu)];

    vmcs_write(vcpu, EPT_POINTER, root | EPTP_WB | EPTP_WALK4);
}

/* PAUSE never exits. A processor that halts in guest mode sleeps until it is kicked. */
static uint32_t vmx_exec_control(const struct kvm_vcpu *vcpu)
{
    const bool hlt_in_guest = vcpu->kvm->arch.disabled_exits & KVM_X86_DISABLE_EXITS_HLT;

    return hlt_in_guest ? vmcs_config.cpu & ~CPU_HLT_EXITING : vmcs_config.cpu;
}

static void init_vmcs(struct kvm_vcpu *vcpu)
{
    struct vcpu_vmx *vmx = vcpu->arch.vmx;

    vmcs_write(vcpu, PIN_BASED_VM_EXEC_CONTROL, vmcs_config.pin);
    vmcs_set_cpu_ctl(vcpu, vmx_exec_control(vcpu));
    vmx_set_secondary(vcpu);
    vmcs_write(vcpu, VM_EXIT_CONTROLS, vmcs_config.exit);
    vmcs_write(vcpu, VM_ENTRY_CONTROLS, vmcs_config.entry & ~ENTRY_IA32E_MODE);
    vmcs_write(vcpu, PAGE_FAULT_ERROR_CODE_MASK, 0);
    vmcs_write(vcpu, PAGE_FAULT_ERROR_CODE_MATCH, 0);
    vmcs_write(vcpu, CR3_TARGET_COUNT, 0);
    vmcs_write(vcpu, VM_EXIT_MSR_STORE_COUNT, 0);
    vmcs_write(vcpu, VM_EXIT_MSR_LOAD_COUNT, 0);
    vmcs_write(vcpu, VM_ENTRY_MSR_LOAD_COUNT, 0);
    vmcs_write(vcpu, VM_ENTRY_INTR_INFO_FIELD, 0);
    vmcs_write(vcpu, VMCS_LINK_POINTER, ~0ull);
    vmcs_write(vcpu, MSR_BITMAP, (hpa_t)vmx->msr_bitmap);
    vmcs_write(vcpu, VIRTUAL_PROCESSOR_ID, vmx->vpid);
    vmx_load_mmu_pgd(vcpu);
    vmcs_write(vcpu, GUEST_IA32_PAT, 0x0007040600070406ull);
    vmcs_write(vcpu, GUEST_IA32_DEBUGCTL, 0);
    vmcs_write(vcpu, TSC_OFFSET, vcpu->arch.tsc_offset);
    vmx_set_constant_host_state(vcpu);
    vmx_update_exception_bitmap(vcpu);
    vmx_update_msr_intercepts(vcpu);
}

static void vmx_vcpu_free(struct kvm_vcpu *vcpu)
{
    struct vcpu_vmx *vmx = vcpu->arch.vmx;

    if (!vmx)
        return;
    if (vmx->vmcs)
        cpu_vmclear(vcpu->arch.cpu, (hpa_t)vmx->vmcs);
    vmx_hardware_disable(vcpu);
    os_free_pages(vmx->vmcs, PAGE_SIZE);
    os_free_pages(vmx->vmxon, PAGE_SIZE);
    os_free_pages(vmx->msr_bitmap, PAGE_SIZE);
    free_vpid(vmx->vpid);
    free(vmx);
    vcpu->arch.vmx = NULL;
}

static int vmx_vcpu_create(struct kvm_vcpu *vcpu)
{
    struct vcpu_vmx *vmx = calloc(1, sizeof(*vmx));
    int r;

    if (!vmx)
        return -ENOMEM;
    vcpu->arch.vmx = vmx;
    vmx->vmcs = alloc_vmcs_page();
    vmx->vmxon = alloc_vmcs_page();
    vmx->msr_bitmap = os_alloc_pages(PAGE_SIZE);
    r = vmx->vmcs && vmx->vmxon && vmx->msr_bitmap ? vmx_hardware_enable(vcpu) : -ENOMEM;
    if (!r && (cpu_vmclear(vcpu->arch.cpu, (hpa_t)vmx->vmcs) != VMX_OK ||
               cpu_vmptrld(vcpu->arch.cpu, (hpa_t)vmx->vmcs) != VMX_OK))
        r = -EIO;
    if (!r)
        r = vmx_nested_create(vcpu);
    if (r) {
        vmx_vcpu_free(vcpu);
        return r;
    }
    vmx->vpid = allocate_vpid();
    init_vmcs(vcpu);
    return 0;
}

/* Power-on and INIT: what is in the VMCS (SDM 3A, "Processor State After Reset"). */
static void vmx_vcpu_reset(struct kvm_vcpu *vcpu, bool init_event)
{
    vmx_reset_segments(vcpu);
    vmcs_write(vcpu, GUEST_SYSENTER_CS, 0);
    vmcs_write(vcpu, GUEST_SYSENTER_ESP, 0);
    vmcs_write(vcpu, GUEST_SYSENTER_EIP, 0);
    vmcs_write(vcpu, GUEST_IA32_DEBUGCTL, 0);
    if (!init_event)
        vmcs_write(vcpu, GUEST_IA32_PAT, 0x0007040600070406ull);
    vmcs_write(vcpu, GUEST_ACTIVITY_STATE, ACTIVITY_ACTIVE);
    vmcs_write(vcpu, GUEST_INTERRUPTIBILITY_INFO, 0);
    vmcs_write(vcpu, GUEST_PENDING_DBG_EXCEPTIONS, 0);
    vmcs_write(vcpu, VM_ENTRY_INTR_INFO_FIELD, 0);
    vmx_update_exception_bitmap(vcpu);
}

static void vmx_vcpu_load(struct kvm_vcpu *vcpu)
{
    const hpa_t vmcs = (hpa_t)vcpu->arch.vmx->vmcs;

    if (cpu_vmptrst(vcpu->arch.cpu) != vmcs)
        cpu_vmptrld(vcpu->arch.cpu, vmcs);
}

/* The VMCS stays current: each vCPU has a processor of its own. */
static void vmx_vcpu_put(struct kvm_vcpu *vcpu) {}

static int vmx_vcpu_run(struct kvm_vcpu *vcpu)
{
    struct vcpu_vmx *vmx = vcpu->arch.vmx;
    struct cpu *cpu = vcpu->arch.cpu;

    vmx->fail = (vcpu->launched ? cpu_vmresume(cpu) : cpu_vmlaunch(cpu)) != VMX_OK;
    if (unlikely(vmx->fail)) {
        vmx->exit_reason = EXIT_REASON_FAILED_VMENTRY;
        vmx->idt_vectoring_info = 0;
        return 0;
    }
    if (unlikely(cpu_nested_moved(cpu)))
        vmx_nested_sync(vcpu);
    vmx->exit_reason = (uint32_t)vmcs_read(vcpu, VM_EXIT_REASON);
    if (unlikely(vmx->exit_reason & EXIT_REASON_FAILED_VMENTRY)) {
        vmx->idt_vectoring_info = 0;
        return 0;
    }
    vcpu->launched = true;
    vmx_complete_interrupts(vcpu);
    return 0;
}

/* ---- small registers ---- */
static uint64_t vmx_get_rip(struct kvm_vcpu *vcpu)
{
    return vmcs_read(vcpu, GUEST_RIP);
}

static void vmx_set_rip(struct kvm_vcpu *vcpu, uint64_t rip)
{
    vmcs_write(vcpu, GUEST_RIP, rip);
}

static uint64_t vmx_get_rsp(struct kvm_vcpu *vcpu)
{
    return vmcs_read(vcpu, GUEST_RSP);
}

static void vmx_set_rsp(struct kvm_vcpu *vcpu, uint64_t rsp)
{
    vmcs_write(vcpu, GUEST_RSP, rsp);
}

static uint64_t vmx_get_rflags(struct kvm_vcpu *vcpu)
{
    return vmcs_read(vcpu, GUEST_RFLAGS);
}

static void vmx_set_rflags(struct kvm_vcpu *vcpu, uint64_t rflags)
{
    vmcs_write(vcpu, GUEST_RFLAGS, rflags);
}

static void vmx_set_dr7(struct kvm_vcpu *vcpu, uint64_t dr7)
{
    vmcs_write(vcpu, GUEST_DR7, dr7);
}

/* Past the instruction that exited; the shadow of STI and MOV SS ends with it. */
static bool vmx_skip_emulated_instruction(struct kvm_vcpu *vcpu)
{
    uint64_t rip = vmcs_read(vcpu, GUEST_RIP) + vmcs_read(vcpu, VM_EXIT_INSTRUCTION_LEN);

    if (!(vcpu->arch.efer & EFER_LMA) || !(vmcs_read(vcpu, GUEST_CS_AR_BYTES) & AR_L))
        rip = (uint32_t)rip;
    vmcs_write(vcpu, GUEST_RIP, rip);
    vmx_set_interrupt_shadow(vcpu, 0);
    return true;
}

static void vmx_flush_tlb_all(struct kvm_vcpu *vcpu)
{
    cpu_invept(vcpu->arch.cpu, INVEPT_GLOBAL, 0);
    if (vcpu->arch.vmx->vpid)
        cpu_invvpid(vcpu->arch.cpu, INVVPID_CONTEXT, vcpu->arch.vmx->vpid, 0);
    else
        cpu_invvpid(vcpu->arch.cpu, INVVPID_ALL, 0, 0);
}

static void vmx_write_tsc_offset(struct kvm_vcpu *vcpu, uint64_t offset)
{
    vmcs_write(vcpu, TSC_OFFSET, offset);
}

static void vmx_write_tsc_multiplier(struct kvm_vcpu *vcpu, uint64_t multiplier)
{
    vmx_set_secondary(vcpu);
    if (multiplier && vmcs_config.tsc_scaling)
        vmcs_write(vcpu, TSC_MULTIPLIER, multiplier);
}

/* Without a TPR shadow every access to CR8 exits: there is no threshold to keep. */
static void vmx_update_cr8_intercept(struct kvm_vcpu *vcpu) {}

/* MSRs that the processor or the VMCS holds: the processor knows which is where. */
static int vmx_get_msr(struct kvm_vcpu *vcpu, uint32_t index, uint64_t *data)
{
    return cpu_guest_rdmsr(vcpu->arch.cpu, index, data) < 0;
}

static int vmx_set_msr(struct kvm_vcpu *vcpu, uint32_t index, uint64_t data)
{
    return cpu_guest_wrmsr(vcpu->arch.cpu, index, data) < 0;
}

const struct kvm_x86_ops vmx_x86_ops = {
    .name = "kvm_intel",
#define KVM_X86_OP(ret, op, ...) .op = vmx_##op,
#define vmx_dump_vmcs            dump_vmcs
#include "kvm-x86-ops.h"
#undef KVM_X86_OP
};
