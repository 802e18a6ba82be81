/* SPDX-License-Identifier: MIT
 * guest.h: a flat 64-bit guest on the raw VMX operations, for unit tests of src/cpu. No KVM: RAM, EPT, page tables and
 * a VMCS are made here, and the test plays the hypervisor.
 *
 *     struct guest g;
 *     guest_create(&g, guest_engine());
 *     guest_code(&g, "\x0f\xa2", 2);                  // cpuid, at GUEST_CODE
 *     assert_int_equal(guest_run(&g), EXIT_REASON_CPUID);
 *     guest_skip(&g);                                 // RIP past it
 *     guest_destroy(&g);
 *
 * Guest-virtual = guest-physical, 16 MiB of RAM mapped by EPT pages of 4 KiB. Above RAM the EPT maps nothing. */
#ifndef TEST_GUEST_H
#define TEST_GUEST_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "../../src/cpu/cpu_int.h"
#include "../../src/cpu/vmx.h"

#define GUEST_RAM      (16u << 20)
#define GUEST_PML4     0x1000u /* identity map of the first GiB by 2 MiB pages, user-accessible */
#define GUEST_PDPT     0x2000u
#define GUEST_PD       0x3000u
#define GUEST_GDT      0x4000u
#define GUEST_IDT      0x5000u /* 256 gates to GUEST_HANDLER + 16 * vector */
#define GUEST_TSS      0x6000u
#define GUEST_STACK    0x9000u /* RSP starts here and grows down */
#define GUEST_HANDLER  0xa000u /* each handler: vmcall; iretq */
#define GUEST_CODE     0x10000u
#define GUEST_DATA     0x20000u
#define GUEST_STACK0   0x30000u /* RSP0 of the TSS */
#define GUEST_SEL_CS0  0x08u
#define GUEST_SEL_SS0  0x10u
#define GUEST_SEL_CS3  0x1bu
#define GUEST_SEL_SS3  0x23u
#define GUEST_SEL_CS32 0x28u
#define GUEST_SEL_TR   0x30u
#define GUEST_PTS      (GUEST_RAM >> 21)

struct guest_pages { /* what the hypervisor owns; page aligned */
    uint64_t ept_pml4[512], ept_pdpt[512], ept_pd[512], ept_pt[GUEST_PTS][512];
    uint8_t vmxon[4096], vmcs[4096], io_a[4096], io_b[4096], msr_bitmap[4096], virtual_apic[4096];
};

struct guest {
    struct cpu_domain *domain;
    struct cpu *cpu;
    uint8_t *ram;
    struct guest_pages *pages;
    bool launched;
};

static inline void guest_w(struct guest *g, uint32_t field, uint64_t value)
{
    assert_int_equal(cpu_vmwrite(g->cpu, field, value), VMX_OK);
}

static inline uint64_t guest_r(struct guest *g, uint32_t field)
{
    uint64_t value = 0;

    assert_int_equal(cpu_vmread(g->cpu, field, &value), VMX_OK);
    return value;
}

/* A control word with the bits that must be 1, by its TRUE capability MSR; asks that all of `bits` are allowed. */
static inline uint32_t guest_controls(uint32_t msr, uint32_t bits)
{
    uint64_t cap = 0;

    assert_int_equal(cpu_rdmsr(msr, &cap), 0);
    assert_int_equal(bits & ~(uint32_t)(cap >> 32), 0);
    return bits | (uint32_t)cap;
}

static inline void guest_gate(struct guest *g, unsigned vector, uint64_t handler, unsigned ist, unsigned type_dpl)
{
    uint64_t *gate = (uint64_t *)(g->ram + GUEST_IDT + 16 * vector);

    gate[0] = (handler & 0xffff) | (uint64_t)GUEST_SEL_CS0 << 16 | (uint64_t)ist << 32 | (uint64_t)type_dpl << 40 |
              (handler >> 16 & 0xffff) << 48;
    gate[1] = handler >> 32;
}

static inline void guest_tables(struct guest *g)
{
    static const uint64_t gdt[] = {0,
                                   0x00af9b000000ffff,
                                   0x00cf93000000ffff,
                                   0x00affb000000ffff,
                                   0x00cff3000000ffff,
                                   0x00cf9b000000ffff,
                                   0x00008b0000000067 | (uint64_t)GUEST_TSS << 16,
                                   0};
    uint64_t *pml4 = (uint64_t *)(g->ram + GUEST_PML4), *pdpt = (uint64_t *)(g->ram + GUEST_PDPT);
    uint64_t *pd = (uint64_t *)(g->ram + GUEST_PD);
    const uint64_t rsp0 = GUEST_STACK0;

    pml4[0] = GUEST_PDPT | 7;
    pdpt[0] = GUEST_PD | 7;
    for (uint64_t i = 0; i < 512; i++)
        pd[i] = i << 21 | 0x87;
    memcpy(g->ram + GUEST_GDT, gdt, sizeof(gdt));
    memcpy(g->ram + GUEST_TSS + 4, &rsp0, 8);
    g->ram[GUEST_TSS + 0x66] = 0x68; /* no I/O permission bitmap */
    for (unsigned v = 0; v < 256; v++) {
        guest_gate(g, v, GUEST_HANDLER + 16 * v, 0, 0x8e);
        memcpy(g->ram + GUEST_HANDLER + 16 * v, "\x0f\x01\xc1\x48\xcf", 5);
    }
}

static inline void guest_ept(struct guest *g)
{
    struct guest_pages *p = g->pages;

    p->ept_pml4[0] = (uint64_t)p->ept_pdpt | 7;
    p->ept_pdpt[0] = (uint64_t)p->ept_pd | 7;
    for (unsigned i = 0; i < GUEST_PTS; i++) {
        p->ept_pd[i] = (uint64_t)p->ept_pt[i] | 7;
        for (unsigned j = 0; j < 512; j++)
            p->ept_pt[i][j] = ((uint64_t)g->ram + ((uint64_t)i << 21) + (j << 12)) | EPT_MEMTYPE_WB | 7;
    }
}

/* The EPT entry of a guest-physical page of RAM; after a change that takes rights away: guest_invept(). */
static inline uint64_t *guest_ept_entry(struct guest *g, uint64_t gpa)
{
    return &g->pages->ept_pt[gpa >> 21][gpa >> 12 & 511];
}

static inline uint64_t guest_eptp(struct guest *g)
{
    return (uint64_t)g->pages->ept_pml4 | EPTP_WALK4 | EPTP_WB | EPTP_AD;
}

static inline void guest_invept(struct guest *g)
{
    assert_int_equal(cpu_invept(g->cpu, INVEPT_CONTEXT, guest_eptp(g)), VMX_OK);
}

static inline void guest_vmcs_controls(struct guest *g)
{
    guest_w(g, PIN_BASED_VM_EXEC_CONTROL,
            guest_controls(MSR_IA32_VMX_TRUE_PINBASED_CTLS, PIN_EXT_INTR_EXITING | PIN_NMI_EXITING | PIN_VIRTUAL_NMIS));
    guest_w(g, CPU_BASED_VM_EXEC_CONTROL,
            guest_controls(MSR_IA32_VMX_TRUE_PROCBASED_CTLS,
                           CPU_HLT_EXITING | CPU_UNCOND_IO_EXITING | CPU_USE_MSR_BITMAPS | CPU_SECONDARY_CONTROLS));
    guest_w(g, SECONDARY_VM_EXEC_CONTROL,
            guest_controls(MSR_IA32_VMX_PROCBASED_CTLS2, CPU2_ENABLE_EPT | CPU2_ENABLE_VPID | CPU2_UNRESTRICTED_GUEST |
                                                             CPU2_ENABLE_RDTSCP | CPU2_ENABLE_INVPCID));
    guest_w(g, VM_EXIT_CONTROLS,
            guest_controls(MSR_IA32_VMX_TRUE_EXIT_CTLS, EXIT_HOST_ADDR_SPACE_SIZE | EXIT_SAVE_DEBUG_CONTROLS |
                                                            EXIT_SAVE_EFER | EXIT_LOAD_EFER | EXIT_SAVE_PAT |
                                                            EXIT_LOAD_PAT));
    guest_w(g, VM_ENTRY_CONTROLS,
            guest_controls(MSR_IA32_VMX_TRUE_ENTRY_CTLS,
                           ENTRY_IA32E_MODE | ENTRY_LOAD_DEBUG_CONTROLS | ENTRY_LOAD_EFER | ENTRY_LOAD_PAT));
    guest_w(g, EPT_POINTER, guest_eptp(g));
    guest_w(g, VIRTUAL_PROCESSOR_ID, 1);
    guest_w(g, IO_BITMAP_A, (uint64_t)g->pages->io_a);
    guest_w(g, IO_BITMAP_B, (uint64_t)g->pages->io_b);
    guest_w(g, MSR_BITMAP, (uint64_t)g->pages->msr_bitmap);
    guest_w(g, VIRTUAL_APIC_PAGE_ADDR, (uint64_t)g->pages->virtual_apic);
    guest_w(g, VMCS_LINK_POINTER, ~0ull);
    guest_w(g, CR0_GUEST_HOST_MASK, CR0_NE);
    guest_w(g, CR0_READ_SHADOW, 0);
    guest_w(g, CR4_GUEST_HOST_MASK, CR4_VMXE);
    guest_w(g, CR4_READ_SHADOW, 0);
}

static inline void guest_vmcs_host(struct guest *g)
{
    guest_w(g, HOST_CR0, 0x80050033);
    guest_w(g, HOST_CR3, 0x1000);
    guest_w(g, HOST_CR4, CR4_PAE | CR4_VMXE);
    guest_w(g, HOST_IA32_EFER, EFER_SCE | EFER_LME | EFER_LMA);
    guest_w(g, HOST_IA32_PAT, 0x0007040600070406);
    guest_w(g, HOST_CS_SELECTOR, 0x10);
    guest_w(g, HOST_SS_SELECTOR, 0x18);
    guest_w(g, HOST_TR_SELECTOR, 0x40);
    guest_w(g, HOST_RIP, 0xffffffff81000000);
}

static inline void guest_seg(struct guest *g, unsigned n, uint16_t sel, uint64_t base, uint32_t limit, uint32_t ar)
{
    guest_w(g, GUEST_ES_SELECTOR + 2 * n, sel); /* n: 0-5 as enum seg_reg, 6 LDTR, 7 TR */
    guest_w(g, GUEST_ES_BASE + 2 * n, base);
    guest_w(g, GUEST_ES_LIMIT + 2 * n, limit);
    guest_w(g, GUEST_ES_AR_BYTES + 2 * n, ar);
}

/* Guest state at GUEST_CODE, CPL 0, 64-bit, interrupts off. Also resets what an earlier run left. */
static inline void guest_vmcs_state(struct guest *g)
{
    guest_w(g, GUEST_CR0, CR0_PE | CR0_PG | CR0_NE | CR0_ET | CR0_MP | CR0_WP);
    guest_w(g, GUEST_CR3, GUEST_PML4);
    guest_w(g, GUEST_CR4, CR4_PAE | CR4_VMXE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_PGE);
    guest_w(g, GUEST_IA32_EFER, EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE);
    guest_w(g, GUEST_IA32_PAT, 0x0007040600070406);
    guest_w(g, GUEST_DR7, DR7_FIXED);
    guest_w(g, GUEST_IA32_DEBUGCTL, 0);
    for (unsigned n = 0; n < 6; n++)
        guest_seg(g, n, GUEST_SEL_SS0, 0, 0xffffffff, 0xc093);
    guest_seg(g, SEG_CS, GUEST_SEL_CS0, 0, 0xffffffff, 0xa09b);
    guest_seg(g, 6, 0, 0, 0, AR_UNUSABLE);
    guest_seg(g, 7, GUEST_SEL_TR, GUEST_TSS, 0x67, 0x8b);
    guest_w(g, GUEST_GDTR_BASE, GUEST_GDT);
    guest_w(g, GUEST_GDTR_LIMIT, 63);
    guest_w(g, GUEST_IDTR_BASE, GUEST_IDT);
    guest_w(g, GUEST_IDTR_LIMIT, 0xfff);
    guest_w(g, GUEST_RSP, GUEST_STACK);
    guest_w(g, GUEST_RIP, GUEST_CODE);
    guest_w(g, GUEST_RFLAGS, F_RESERVED);
    guest_w(g, GUEST_INTERRUPTIBILITY_INFO, 0);
    guest_w(g, GUEST_ACTIVITY_STATE, ACTIVITY_ACTIVE);
    guest_w(g, GUEST_PENDING_DBG_EXCEPTIONS, 0);
    guest_w(g, VM_ENTRY_INTR_INFO_FIELD, 0);
    guest_w(g, VM_ENTRY_CONTROLS, guest_r(g, VM_ENTRY_CONTROLS) | ENTRY_IA32E_MODE);
}

/* The tests run once for each engine that runs guest code (meson.build). */
static inline const char *guest_engine(void)
{
    const char *name = getenv("ANYKVM_TEST_ENGINE");

    return name ? name : "interp";
}

/* A processor of g's domain with a VMCS and EPT of its own. */
static inline void guest_add_cpu(struct guest *g, unsigned id, const char *engine)
{
    uint64_t basic = 0;

    g->launched = false;
    g->pages = aligned_alloc(4096, sizeof(*g->pages));
    assert_non_null(g->pages);
    memset(g->pages, 0, sizeof(*g->pages));
    g->cpu = cpu_create(g->domain, id, engine);
    assert_non_null(g->cpu);
    assert_int_equal(cpu_rdmsr(MSR_IA32_VMX_BASIC, &basic), 0);
    *(uint32_t *)g->pages->vmxon = *(uint32_t *)g->pages->vmcs = basic & 0x7fffffff;
    assert_int_equal(cpu_vmxon(g->cpu, (hpa_t)g->pages->vmxon), VMX_OK);
    assert_int_equal(cpu_vmclear(g->cpu, (hpa_t)g->pages->vmcs), VMX_OK);
    assert_int_equal(cpu_vmptrld(g->cpu, (hpa_t)g->pages->vmcs), VMX_OK);
    guest_ept(g);
    guest_vmcs_controls(g);
    guest_vmcs_host(g);
    guest_vmcs_state(g);
}

static inline void guest_create(struct guest *g, const char *engine)
{
    memset(g, 0, sizeof(*g));
    g->ram = mmap(NULL, GUEST_RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(g->ram != MAP_FAILED);
    g->domain = cpu_domain_create();
    assert_non_null(g->domain);
    guest_tables(g);
    guest_add_cpu(g, 0, engine);
}

/* A second processor of first's machine; destroy its cpu and free its pages alone. */
static inline void guest_create_second(struct guest *g, const struct guest *first, const char *engine)
{
    *g = *first;
    guest_add_cpu(g, 1, engine);
}

static inline void guest_destroy(struct guest *g)
{
    cpu_destroy(g->cpu);
    cpu_domain_destroy(g->domain);
    free(g->pages);
    munmap(g->ram, GUEST_RAM);
}

/* For cmocka: a guest of its own for each test. */
static inline int guest_setup(void **state)
{
    static struct guest g;

    guest_create(&g, guest_engine());
    *state = &g;
    return 0;
}

static inline int guest_teardown(void **state)
{
    guest_destroy(*state);
    return 0;
}

/* name..name_end: bytes of a piece of guest code; it may begin with .code16 or .code32. */
#define GUEST_ASM(name, text)                  \
    extern const uint8_t name[], name##_end[]; \
    __asm__(".pushsection .rodata\n.code64\n" #name ":\n" text "\n.code64\n" #name "_end:\n.byte 0\n.popsection\n")

/* Code at GUEST_CODE, followed by a VMCALL; RIP there. */
static inline void guest_code(struct guest *g, const void *bytes, size_t n)
{
    memcpy(g->ram + GUEST_CODE, bytes, n);
    memcpy(g->ram + GUEST_CODE + n, "\x0f\x01\xc1", 3);
    cpu_code_unverify(g->cpu); /* written from outside of the guest */
    guest_w(g, GUEST_RIP, GUEST_CODE);
}

static inline enum vmx_result guest_enter(struct guest *g)
{
    const enum vmx_result result = g->launched ? cpu_vmresume(g->cpu) : cpu_vmlaunch(g->cpu);

    if (result == VMX_OK && !(guest_r(g, VM_EXIT_REASON) & EXIT_REASON_FAILED_VMENTRY))
        g->launched = true;
    return result;
}

/* Enter, and return the exit reason (with bit 31 for a failed entry). */
static inline uint32_t guest_run(struct guest *g)
{
    const enum vmx_result result = guest_enter(g);

    if (result != VMX_OK)
        fail_msg("VM entry: result %d, VM-instruction error %d", result, (int)guest_r(g, VM_INSTRUCTION_ERROR));
    return guest_r(g, VM_EXIT_REASON);
}

static inline void guest_skip(struct guest *g)
{
    guest_w(g, GUEST_RIP, guest_r(g, GUEST_RIP) + guest_r(g, VM_EXIT_INSTRUCTION_LEN));
}

static inline void guest_inject(struct guest *g, unsigned type, unsigned vector)
{
    guest_w(g, VM_ENTRY_INTR_INFO_FIELD, INTR_INFO_VALID | type << 8 | vector);
}

static inline uint64_t *guest_gpr(struct guest *g, unsigned reg)
{
    return &cpu_state(g->cpu)->gpr[reg]; /* not RSP: GUEST_RSP */
}

/* From gpa on to the next VMCALL. */
static inline void guest_to_vmcall(struct guest *g, uint64_t gpa)
{
    guest_w(g, GUEST_RIP, gpa);
    guest_w(g, GUEST_RSP, GUEST_STACK);
    assert_int_equal(guest_run(g), EXIT_REASON_VMCALL);
}

static inline uint64_t guest_counter(struct guest *g, enum cpu_counter c)
{
    return cpu_counters(g->cpu)[c];
}

#endif
