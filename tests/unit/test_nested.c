/* SPDX-License-Identifier: MIT
 * test_nested.c: a hypervisor inside of the guest. Level 1 is a few instructions at GUEST_CODE: VMXON, a VMCS filled
 * from a list, VMLAUNCH; wherever its guest exits to it, it makes a VMCALL to the test (level 0) and then a VMRESUME.
 * The test is level 0, and looks into level 1's VMCS. */
#include "guest.h"
#include "../../src/cpu/vmx/nested_int.h"

#define L1_LIST  0x28000u /* pairs of encoding and value, to an encoding of all ones */
#define L1_VMXON 0x40000u
#define L1_VMCS  0x41000u
#define L1_VMCS2 0x42000u
#define L1_PTRS  0x43000u /* addresses of the three */
#define L1_STACK 0x44000u
#define L1_MAPS  0x48000u /* I/O bitmaps, MSR bitmap, virtual-APIC page, a page each */
#define L1_MSRS  0x4c000u
#define L2_CODE  0x50000u
#define L2_DATA  0x51000u
#define L2_STACK 0x60000u
#define L1_EPT   0x100000u /* PML4, PDPT, PD, then a table for the first 2 MiB */
#define L2_SHIFT 0x400000u /* with EPT: its physical addresses from 4 MiB on are level 1's from 0 */

/* level 1: rsi = list, rdi = addresses */
__asm__(".pushsection .rodata\n"
        "l1_begin: vmxon (%rdi)\n"
        "jbe 9f\n"
        "vmclear 8(%rdi)\n"
        "jbe 9f\n"
        "vmptrld 8(%rdi)\n"
        "jbe 9f\n"
        "1: lodsq\n"
        "cmp $-1, %rax\n"
        "je 2f\n"
        "mov %rax, %rdx\n"
        "lodsq\n"
        "vmwrite %rax, %rdx\n"
        "jbe 9f\n"
        "jmp 1b\n"
        "2: xor %eax, %eax\n"
        "vmlaunch\n"
        "9: pushf\n"
        "pop %rax\n"
        "l1_failed: vmcall\n" /* an instruction failed: RFLAGS in rax */
        "hlt\n"
        "l1_host: vmcall\n" /* HOST_RIP */
        "vmresume\n"
        "jmp 9b\n"
        "l1_end:\n"
        ".popsection\n");
extern const uint8_t l1_begin[], l1_failed[], l1_host[], l1_end[];

struct nested {
    struct guest g;
    uint64_t *list;
    bool ept;
};

static uint32_t control(struct nested *t, uint32_t msr, uint32_t bits)
{
    uint64_t cap = 0;

    assert_int_equal(cpu_nested_cap(t->g.cpu, msr, &cap), 0);
    assert_int_equal(bits & ~(uint32_t)(cap >> 32), 0);
    return bits | (uint32_t)cap;
}

static void put(struct nested *t, uint64_t field, uint64_t value)
{
    *t->list++ = field;
    *t->list++ = value;
    *t->list = ~0ull;
}

static void put_seg(struct nested *t, unsigned n, uint16_t sel, uint64_t base, uint32_t limit, uint32_t ar)
{
    put(t, GUEST_ES_SELECTOR + 2 * n, sel);
    put(t, GUEST_ES_BASE + 2 * n, base);
    put(t, GUEST_ES_LIMIT + 2 * n, limit);
    put(t, GUEST_ES_AR_BYTES + 2 * n, ar);
}

static void put_controls(struct nested *t)
{
    const uint32_t ept = t->ept ? CPU2_ENABLE_EPT | CPU2_ENABLE_VPID : 0;

    put(t, PIN_BASED_VM_EXEC_CONTROL, control(t, MSR_IA32_VMX_TRUE_PINBASED_CTLS, PIN_EXT_INTR_EXITING));
    put(t, CPU_BASED_VM_EXEC_CONTROL,
        control(t, MSR_IA32_VMX_TRUE_PROCBASED_CTLS,
                CPU_HLT_EXITING | CPU_USE_IO_BITMAPS | CPU_USE_MSR_BITMAPS | CPU_SECONDARY_CONTROLS |
                    CPU_USE_TSC_OFFSETTING));
    put(t, SECONDARY_VM_EXEC_CONTROL, CPU2_ENABLE_RDTSCP | CPU2_ENABLE_INVPCID | ept);
    put(t, VM_EXIT_CONTROLS,
        control(t, MSR_IA32_VMX_TRUE_EXIT_CTLS,
                EXIT_HOST_ADDR_SPACE_SIZE | EXIT_SAVE_EFER | EXIT_LOAD_EFER | EXIT_ACK_INTR));
    put(t, VM_ENTRY_CONTROLS, control(t, MSR_IA32_VMX_TRUE_ENTRY_CTLS, ENTRY_IA32E_MODE | ENTRY_LOAD_EFER));
    put(t, IO_BITMAP_A, L1_MAPS);
    put(t, IO_BITMAP_B, L1_MAPS + 0x1000);
    put(t, MSR_BITMAP, L1_MAPS + 0x2000);
    put(t, VIRTUAL_APIC_PAGE_ADDR, L1_MAPS + 0x3000);
    put(t, VMCS_LINK_POINTER, ~0ull);
    put(t, TSC_OFFSET, 1ull << 40);
    put(t, VIRTUAL_PROCESSOR_ID, 7);
    put(t, EPT_POINTER, L1_EPT | EPTP_WALK4 | EPTP_WB | EPTP_AD);
}

static void put_host(struct nested *t)
{
    put(t, HOST_CR0, CR0_PE | CR0_PG | CR0_NE | CR0_ET | CR0_WP);
    put(t, HOST_CR3, GUEST_PML4);
    put(t, HOST_CR4, CR4_PAE | CR4_VMXE | CR4_PGE | CR4_OSFXSR);
    put(t, HOST_IA32_EFER, EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE);
    put(t, HOST_CS_SELECTOR, GUEST_SEL_CS0);
    put(t, HOST_SS_SELECTOR, GUEST_SEL_SS0);
    put(t, HOST_TR_SELECTOR, GUEST_SEL_TR);
    put(t, HOST_TR_BASE, GUEST_TSS);
    put(t, HOST_GDTR_BASE, GUEST_GDT);
    put(t, HOST_IDTR_BASE, GUEST_IDT);
    put(t, HOST_RSP, L1_STACK);
    put(t, HOST_RIP, GUEST_CODE + (l1_host - l1_begin));
}

static void put_guest(struct nested *t)
{
    put(t, GUEST_CR0, CR0_PE | CR0_PG | CR0_NE | CR0_ET);
    put(t, GUEST_CR3, GUEST_PML4);
    put(t, GUEST_CR4, CR4_PAE | CR4_VMXE | CR4_OSFXSR);
    put(t, GUEST_IA32_EFER, EFER_LME | EFER_LMA);
    for (unsigned n = 0; n < 6; n++)
        put_seg(t, n, GUEST_SEL_SS0, 0, 0xffffffff, 0xc093);
    put_seg(t, SEG_CS, GUEST_SEL_CS0, 0, 0xffffffff, 0xa09b);
    put_seg(t, 6, 0, 0, 0, AR_UNUSABLE);
    put_seg(t, 7, GUEST_SEL_TR, GUEST_TSS, 0x67, 0x8b);
    put(t, GUEST_GDTR_BASE, GUEST_GDT);
    put(t, GUEST_GDTR_LIMIT, 63);
    put(t, GUEST_IDTR_BASE, GUEST_IDT);
    put(t, GUEST_IDTR_LIMIT, 0xfff);
    put(t, GUEST_RSP, L2_STACK);
    put(t, GUEST_RIP, L2_CODE);
    put(t, GUEST_RFLAGS, F_RESERVED);
    put(t, GUEST_DR7, DR7_FIXED);
}

/* Level 1's EPT: 4 MiB as they are, and again from 4 MiB on; its guest's first 2 MiB by small pages. */
static void make_ept(struct nested *t)
{
    uint64_t *pml4 = (uint64_t *)(t->g.ram + L1_EPT), *pdpt = pml4 + 512, *pd = pdpt + 512, *pt = pd + 512;

    memset(pml4, 0, 4 * 4096);
    pml4[0] = (L1_EPT + 0x1000) | 7;
    pdpt[0] = (L1_EPT + 0x2000) | 7;
    pd[0] = (L1_EPT + 0x3000) | 7;
    for (uint64_t i = 1; i < 4; i++)
        pd[i] = (i & 1) << 21 | EPT_LARGE | EPT_MEMTYPE_WB | 7;
    for (uint64_t i = 0; i < 512; i++)
        pt[i] = i << 12 | EPT_MEMTYPE_WB | 7;
}

static uint64_t *ept_entry(struct nested *t, uint64_t gpa)
{
    return (uint64_t *)(t->g.ram + L1_EPT + 0x3000) + (gpa >> 12);
}

static int phys_none(void *opaque, gpa_t gpa, void *p, size_t n)
{
    return -1;
}

static int phys_none_w(void *opaque, gpa_t gpa, const void *p, size_t n)
{
    return -1;
}

static int msr_none(void *opaque, uint32_t msr, uint64_t *v)
{
    return -1;
}

static int msr_none_w(void *opaque, uint32_t msr, uint64_t v)
{
    return -1;
}

static const struct cpu_nested_ops ops = {phys_none, phys_none_w, msr_none, msr_none_w};

static void create(struct nested *t, bool ept)
{
    struct guest *g = &t->g;
    uint64_t basic = 0;

    guest_create(g, guest_engine());
    assert_int_equal(cpu_nested_init(g->cpu, &ops, g), 0);
    cpu_nested_allow(g->cpu, true, 5);
    guest_w(g, CR4_READ_SHADOW, CR4_VMXE);
    assert_int_equal(cpu_nested_cap(g->cpu, MSR_IA32_VMX_BASIC, &basic), 0);
    assert_int_equal(basic & 0x7fffffff, 0x11e57ed0);
    *(uint32_t *)(g->ram + L1_VMXON) = *(uint32_t *)(g->ram + L1_VMCS) = (uint32_t)basic & 0x7fffffff;
    *(uint32_t *)(g->ram + L1_VMCS2) = (uint32_t)basic & 0x7fffffff;
    ((uint64_t *)(g->ram + L1_PTRS))[0] = L1_VMXON;
    ((uint64_t *)(g->ram + L1_PTRS))[1] = L1_VMCS;
    ((uint64_t *)(g->ram + L1_PTRS))[2] = L1_VMCS2;
    memset(g->ram + L1_MAPS, 0, 4 * 4096);
    t->ept = ept;
    t->list = (uint64_t *)(g->ram + L1_LIST);
    make_ept(t);
    put_controls(t);
    put_host(t);
    put_guest(t);
}

static int setup(void **state)
{
    static struct nested t;

    memset(&t, 0, sizeof(t));
    create(&t, false);
    *state = &t;
    return 0;
}

static int setup_ept(void **state)
{
    static struct nested t;

    memset(&t, 0, sizeof(t));
    create(&t, true);
    *state = &t;
    return 0;
}

static int teardown(void **state)
{
    guest_destroy(*state); /* begins with the guest */
    return 0;
}

static uint64_t r1(struct nested *t, uint32_t field)
{
    uint64_t value = 0;

    assert_int_equal(vmx_read(t->g.cpu, 1, field, &value), VMX_OK);
    return value;
}

static void w1(struct nested *t, uint32_t field, uint64_t value)
{
    assert_int_equal(vmx_write(t->g.cpu, 1, field, value), VMX_OK);
}

static void l2_code(struct nested *t, const void *bytes, size_t n)
{
    memset(t->g.ram + L2_CODE, 0xf4, 64);
    memcpy(t->g.ram + L2_CODE, bytes, n);
    cpu_code_unverify(t->g.cpu);
}
#define L2(t, code) l2_code(t, code, sizeof(code) - 1)

/* Level 0 sees level 1's VMCALL at HOST_RIP: its guest has exited to it. */
static void at_host(struct nested *t)
{
    assert_int_equal(guest_r(&t->g, VM_EXIT_REASON), EXIT_REASON_VMCALL);
    assert_int_equal(guest_r(&t->g, GUEST_RIP), GUEST_CODE + (l1_host - l1_begin));
    assert_false(cpu_nested_in_guest(t->g.cpu));
    assert_int_equal(guest_r(&t->g, GUEST_RSP), L1_STACK);
    assert_int_equal(guest_r(&t->g, GUEST_CS_AR_BYTES), 0xa09b);
    assert_int_equal(guest_r(&t->g, GUEST_IA32_EFER), EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE);
}

static uint32_t start(struct nested *t)
{
    guest_code(&t->g, l1_begin, (size_t)(l1_end - l1_begin));
    *guest_gpr(&t->g, R_RSI) = L1_LIST;
    *guest_gpr(&t->g, R_RDI) = L1_PTRS;
    guest_w(&t->g, GUEST_RSP, L1_STACK);
    return guest_run(&t->g);
}

/* VMXON to the first exit of level 1's guest; its reason. */
static uint32_t launch(struct nested *t)
{
    start(t);
    at_host(t);
    return (uint32_t)r1(t, VM_EXIT_REASON);
}

static uint32_t resume(struct nested *t)
{
    guest_skip(&t->g);
    guest_run(&t->g);
    at_host(t);
    return (uint32_t)r1(t, VM_EXIT_REASON);
}

static void skip1(struct nested *t)
{
    w1(t, GUEST_RIP, r1(t, GUEST_RIP) + r1(t, VM_EXIT_INSTRUCTION_LEN));
}

/* ---- exits that level 1 asked for ---- */

static void exits_go_to_level_1(void **state)
{
    struct nested *t = *state;

    /* cpuid; in al, 0x70; mov ecx, 0x174; rdmsr; ud2; hlt */
    L2(t, "\x0f\xa2\xe4\x70\xb9\x74\x01\x00\x00\x0f\x32\x0f\x0b\xf4");
    t->g.ram[L1_MAPS + 0x70 / 8] = 1 << 0;
    t->g.ram[L1_MAPS + 0x2000 + 0x174 / 8] = 1 << (0x174 & 7);
    put(t, EXCEPTION_BITMAP, 1u << VEC_UD);
    *guest_gpr(&t->g, R_RAX) = 0;
    assert_int_equal(launch(t), EXIT_REASON_CPUID);
    assert_int_equal(r1(t, GUEST_RIP), L2_CODE);
    assert_int_equal(r1(t, GUEST_CR4), CR4_PAE | CR4_VMXE | CR4_OSFXSR);
    skip1(t);
    assert_int_equal(resume(t), EXIT_REASON_IO_INSTRUCTION);
    assert_int_equal(r1(t, EXIT_QUALIFICATION), 0x70u << 16 | 1 << 6 | 1 << 3);
    skip1(t);
    assert_int_equal(resume(t), EXIT_REASON_MSR_READ);
    skip1(t);
    assert_int_equal(resume(t), EXIT_REASON_EXCEPTION_NMI);
    assert_int_equal(r1(t, VM_EXIT_INTR_INFO), INTR_INFO_VALID | INTR_HARD_EXC << 8 | VEC_UD);
    w1(t, GUEST_RIP, r1(t, GUEST_RIP) + 2);
    assert_int_equal(resume(t), EXIT_REASON_HLT);
    assert_int_equal(r1(t, GUEST_RIP), L2_CODE + 13);
}

/* ---- what level 1 lets pass is level 0's ---- */

static void other_exits_go_to_level_0(void **state)
{
    struct nested *t = *state;

    /* mov al, 5; out 0x71, al; hlt */
    L2(t, "\xb0\x05\xe6\x71\xf4");
    assert_int_equal(start(t), EXIT_REASON_IO_INSTRUCTION);
    assert_true(cpu_nested_in_guest(t->g.cpu));
    assert_true(cpu_nested_moved(t->g.cpu));
    assert_int_equal(guest_r(&t->g, GUEST_RIP), L2_CODE + 2);
    assert_int_equal(guest_r(&t->g, GUEST_RSP), L2_STACK);
    assert_int_equal(guest_r(&t->g, GUEST_IA32_EFER), EFER_LME | EFER_LMA);
    assert_int_equal(guest_r(&t->g, CR4_READ_SHADOW), CR4_PAE | CR4_VMXE | CR4_OSFXSR);
    assert_int_equal((uint8_t)*guest_gpr(&t->g, R_RAX), 5);
    guest_skip(&t->g);
    guest_run(&t->g);
    at_host(t);
    assert_int_equal(r1(t, VM_EXIT_REASON), EXIT_REASON_HLT);
}

/* By level 0's preemption timer, once level 1's guest runs; it does not exit by itself. */
static void interrupt_guest(struct nested *t)
{
    do {
        guest_w(&t->g, VMX_PREEMPTION_TIMER_VALUE, cpu_tsc_khz() * 5 >> VMX_TIMER_SHIFT);
        assert_int_equal(guest_run(&t->g), EXIT_REASON_PREEMPTION_TIMER);
    } while (!cpu_nested_in_guest(t->g.cpu));
}

/* A kick is level 0's, an interrupt is offered to level 1. */
static void interrupts_are_offered(void **state)
{
    struct nested *t = *state;

    L2(t, "\xeb\xfe"); /* jmp . */
    cpu_kick(t->g.cpu);
    guest_code(&t->g, l1_begin, (size_t)(l1_end - l1_begin));
    *guest_gpr(&t->g, R_RSI) = L1_LIST;
    *guest_gpr(&t->g, R_RDI) = L1_PTRS;
    guest_w(&t->g, GUEST_RSP, L1_STACK);
    assert_int_equal(guest_run(&t->g), EXIT_REASON_EXTERNAL_INTERRUPT); /* at the first boundary */
    assert_int_equal(cpu_nested_wants(t->g.cpu), 0);
    /* in level 1's guest: the preemption timer of level 0 brings us out */
    guest_w(&t->g, PIN_BASED_VM_EXEC_CONTROL, guest_r(&t->g, PIN_BASED_VM_EXEC_CONTROL) | PIN_PREEMPTION_TIMER);
    interrupt_guest(t);
    assert_int_equal(cpu_nested_wants(t->g.cpu), NESTED_INTR | NESTED_INTR_ACK);
    assert_int_equal(cpu_nested_exit(t->g.cpu, EXIT_REASON_EXTERNAL_INTERRUPT, 0, INTR_INFO_VALID | 0x33, 0), 0);
    assert_false(cpu_nested_in_guest(t->g.cpu));
    guest_w(&t->g, VMX_PREEMPTION_TIMER_VALUE, 0xffffffff);
    guest_run(&t->g);
    at_host(t);
    assert_int_equal(r1(t, VM_EXIT_REASON), EXIT_REASON_EXTERNAL_INTERRUPT);
    assert_int_equal(r1(t, VM_EXIT_INTR_INFO), INTR_INFO_VALID | 0x33);
    assert_int_equal(r1(t, GUEST_RIP), L2_CODE);
    /* one that is injected again goes straight in: the handler's VMCALL is level 1's */
    w1(t, GUEST_RFLAGS, F_RESERVED | F_IF);
    guest_skip(&t->g);
    interrupt_guest(t);
    guest_w(&t->g, VMX_PREEMPTION_TIMER_VALUE, 0xffffffff);
    guest_inject(&t->g, INTR_EXT, 0x44);
    guest_run(&t->g);
    at_host(t);
    assert_int_equal(r1(t, VM_EXIT_REASON), EXIT_REASON_VMCALL);
    assert_int_equal(r1(t, GUEST_RIP), GUEST_HANDLER + 16 * 0x44);
}

/* ---- memory ---- */

static void memory_goes_through_both_epts(void **state)
{
    struct nested *t = *state;
    uint64_t *pd = (uint64_t *)(t->g.ram + GUEST_PD);

    /* mov eax, [0x451000]; mov [0x451004], eax; mov ebx, [0x52000]; hlt */
    L2(t, "\x8b\x04\x25\x00\x10\x45\x00\x89\x04\x25\x04\x10\x45\x00\x8b\x1c\x25\x00\x20\x05\x00\xf4");
    *(uint32_t *)(t->g.ram + L2_DATA) = 0x1234abcd;
    *(uint32_t *)(t->g.ram + 0x52000) = 0x77;
    *ept_entry(t, 0x52000) = 0;
    assert_int_equal(pd[2] & ~0x60ull, 0x400000 | 0x87); /* its own tables: virtual is physical */
    assert_int_equal(launch(t), EXIT_REASON_EPT_VIOLATION);
    assert_int_equal((uint32_t)*guest_gpr(&t->g, R_RAX), 0x1234abcd);
    assert_int_equal(*(uint32_t *)(t->g.ram + L2_DATA + 4), 0x1234abcd);
    assert_int_equal(r1(t, GUEST_PHYSICAL_ADDRESS), 0x52000);
    assert_int_equal(r1(t, GUEST_LINEAR_ADDRESS), 0x52000);
    assert_int_equal(r1(t, EXIT_QUALIFICATION), EPTQ_READ | EPTQ_GLA_VALID | EPTQ_GLA_XLAT);
    assert_true(*ept_entry(t, L2_CODE) & EPT_ACCESSED);
    assert_false(*ept_entry(t, 0x53000) & EPT_ACCESSED);
    *ept_entry(t, 0x52000) = 0x52000 | 7; /* a right that is added needs no INVEPT */
    assert_int_equal(resume(t), EXIT_REASON_HLT);
    assert_int_equal((uint32_t)*guest_gpr(&t->g, R_RBX), 0x77);
    *ept_entry(t, 0x52000) = 0x52000 | EPT_W; /* write without read */
    w1(t, GUEST_RIP, L2_CODE + 14);
    assert_int_equal(vmx_invept(t->g.cpu, 1, INVEPT_GLOBAL, 0), VMX_OK);
    assert_int_equal(resume(t), EXIT_REASON_EPT_MISCONFIG);
    assert_int_equal(r1(t, GUEST_PHYSICAL_ADDRESS), 0x52000);
}

/* Level 0's own EPT violations under level 1's guest: the page, and a table of level 1's EPT. */
static void level_0_maps_what_it_lacks(void **state)
{
    struct nested *t = *state;
    const uint64_t data = *guest_ept_entry(&t->g, L2_DATA), table = *guest_ept_entry(&t->g, L1_EPT + 0x3000);

    /* mov eax, [0x451000]; hlt */
    L2(t, "\x8b\x04\x25\x00\x10\x45\x00\xf4");
    *(uint32_t *)(t->g.ram + L2_DATA) = 0xfeed;
    *guest_ept_entry(&t->g, L2_DATA) = 0;
    *guest_ept_entry(&t->g, L1_EPT + 0x3000) = 0;
    assert_int_equal(start(t), EXIT_REASON_EPT_VIOLATION);
    assert_true(cpu_nested_in_guest(t->g.cpu));
    assert_int_equal(guest_r(&t->g, GUEST_PHYSICAL_ADDRESS) & ~0xfffull, L1_EPT + 0x3000);
    *guest_ept_entry(&t->g, L1_EPT + 0x3000) = table;
    assert_int_equal(guest_run(&t->g), EXIT_REASON_EPT_VIOLATION);
    assert_int_equal(guest_r(&t->g, GUEST_PHYSICAL_ADDRESS), L2_DATA);
    assert_int_equal(guest_r(&t->g, GUEST_LINEAR_ADDRESS), L2_SHIFT + L2_DATA);
    assert_int_equal(guest_r(&t->g, EXIT_QUALIFICATION), EPTQ_READ | EPTQ_GLA_VALID | EPTQ_GLA_XLAT);
    *guest_ept_entry(&t->g, L2_DATA) = data;
    guest_run(&t->g);
    at_host(t);
    assert_int_equal(r1(t, VM_EXIT_REASON), EXIT_REASON_HLT);
    assert_int_equal((uint32_t)*guest_gpr(&t->g, R_RAX), 0xfeed);
}

/* Level 1 and its guest have one linear address for two pages; neither may see the other's translation or code. */
static void translations_are_apart(void **state)
{
    struct nested *t = *state;

    *(uint32_t *)(t->g.ram + L2_DATA) = 0x11111111;
    *(uint32_t *)(t->g.ram + L2_DATA + 0x1000) = 0x22222222;
    *ept_entry(t, L2_DATA) = (L2_DATA + 0x1000) | EPT_MEMTYPE_WB | 7;
    /* mov eax, [0x51000]; cpuid; jmp back */
    L2(t, "\x8b\x04\x25\x00\x10\x05\x00\x0f\xa2\xeb\xf5");
    assert_int_equal(launch(t), EXIT_REASON_CPUID);
    for (unsigned i = 0; i < 300; i++) {
        assert_int_equal((uint32_t)*guest_gpr(&t->g, R_RAX), 0x22222222);
        /* level 1 reads the same address: its VMCALL is a mov eax, [0x51000]; vmcall; vmresume */
        memcpy(t->g.ram + GUEST_CODE + (l1_host - l1_begin), "\x8b\x04\x25\x00\x10\x05\x00\x0f\x01\xc1\x0f\x01\xc3",
               13);
        cpu_code_unverify(t->g.cpu);
        guest_w(&t->g, GUEST_RIP, GUEST_CODE + (l1_host - l1_begin));
        assert_int_equal(guest_run(&t->g), EXIT_REASON_VMCALL);
        assert_int_equal((uint32_t)*guest_gpr(&t->g, R_RAX), 0x11111111);
        guest_skip(&t->g);
        skip1(t);
        assert_int_equal(guest_run(&t->g), EXIT_REASON_VMCALL);
        assert_int_equal(r1(t, VM_EXIT_REASON), EXIT_REASON_CPUID);
        assert_int_equal((uint32_t)*guest_gpr(&t->g, R_RAX), 0x11111111); /* read by level 1 on arrival */
        guest_w(&t->g, GUEST_RIP, GUEST_CODE + (l1_host - l1_begin));
        memcpy(t->g.ram + GUEST_CODE + (l1_host - l1_begin), "\x0f\x01\xc1\x0f\x01\xc3\xeb\xfe", 8);
        cpu_code_unverify(t->g.cpu);
        assert_int_equal(guest_run(&t->g), EXIT_REASON_VMCALL);
        skip1(t);
        assert_int_equal(resume(t), EXIT_REASON_CPUID);
    }
}

/* ---- state, time, injection ---- */

static void injection_and_nested_faults(void **state)
{
    struct nested *t = *state;

    L2(t, "\xf4");
    put(t, VM_ENTRY_INTR_INFO_FIELD, INTR_INFO_VALID | INTR_HARD_EXC << 8 | INTR_INFO_ERROR_CODE | VEC_GP);
    put(t, VM_ENTRY_EXCEPTION_ERROR_CODE, 0x18);
    assert_int_equal(launch(t), EXIT_REASON_VMCALL); /* the handler's */
    assert_int_equal(r1(t, GUEST_RIP), GUEST_HANDLER + 16 * VEC_GP);
    assert_int_equal(*(uint64_t *)(t->g.ram + r1(t, GUEST_RSP)), 0x18);
    assert_false(r1(t, VM_ENTRY_INTR_INFO_FIELD) & INTR_INFO_VALID);
    /* on a stack that is not there: #PF while it is delivered */
    w1(t, GUEST_RSP, 0x7000000000);
    w1(t, EXCEPTION_BITMAP, 1u << VEC_PF);
    w1(t, VM_ENTRY_INTR_INFO_FIELD, INTR_INFO_VALID | INTR_HARD_EXC << 8 | VEC_UD);
    assert_int_equal(resume(t), EXIT_REASON_EXCEPTION_NMI);
    assert_int_equal(r1(t, VM_EXIT_INTR_INFO), INTR_INFO_VALID | INTR_HARD_EXC << 8 | INTR_INFO_ERROR_CODE | VEC_PF);
    assert_int_equal(r1(t, IDT_VECTORING_INFO_FIELD), INTR_INFO_VALID | INTR_HARD_EXC << 8 | VEC_UD);
    w1(t, EXCEPTION_BITMAP, 0);
    w1(t, VM_ENTRY_INTR_INFO_FIELD, INTR_INFO_VALID | INTR_HARD_EXC << 8 | VEC_UD);
    assert_int_equal(resume(t), EXIT_REASON_TRIPLE_FAULT);
}

static void time_adds_up(void **state)
{
    struct nested *t = *state;
    uint64_t tsc, now;

    guest_w(&t->g, CPU_BASED_VM_EXEC_CONTROL, guest_r(&t->g, CPU_BASED_VM_EXEC_CONTROL) | CPU_USE_TSC_OFFSETTING);
    guest_w(&t->g, TSC_OFFSET, 1ull << 44);
    L2(t, "\x0f\x31\xf4"); /* rdtsc; hlt */
    assert_int_equal(launch(t), EXIT_REASON_HLT);
    tsc = (uint32_t)*guest_gpr(&t->g, R_RAX) | *guest_gpr(&t->g, R_RDX) << 32;
    now = cpu_rdtsc() + (1ull << 44) + (1ull << 40);
    assert_true(tsc <= now && now - tsc < cpu_tsc_khz() * 10000);
}

static void preemption_timer_of_level_1(void **state)
{
    struct nested *t = *state;

    L2(t, "\xeb\xfe");
    put(t, PIN_BASED_VM_EXEC_CONTROL,
        control(t, MSR_IA32_VMX_TRUE_PINBASED_CTLS, PIN_EXT_INTR_EXITING | PIN_PREEMPTION_TIMER));
    put(t, VMX_PREEMPTION_TIMER_VALUE, cpu_tsc_khz() >> VMX_TIMER_SHIFT);
    assert_int_equal(launch(t), EXIT_REASON_PREEMPTION_TIMER);
}

static void control_registers_are_level_1s(void **state)
{
    struct nested *t = *state;

    /* mov rax, cr4; or eax, 0x80; mov cr4, rax; mov rbx, cr4; in al, 0x10; mov cr4, rdx; hlt */
    L2(t, "\x0f\x20\xe0\x0d\x80\x00\x00\x00\x0f\x22\xe0\x0f\x20\xe3\xe4\x10\x0f\x22\xe2\xf4");
    put(t, CR4_GUEST_HOST_MASK, CR4_VMXE | CR4_PCE);
    put(t, CR4_READ_SHADOW, CR4_PCE);
    assert_int_equal(start(t), EXIT_REASON_IO_INSTRUCTION);
    assert_int_equal(*guest_gpr(&t->g, R_RBX), CR4_PAE | CR4_OSFXSR | CR4_PGE | CR4_PCE); /* PCE by the shadow */
    assert_int_equal(guest_r(&t->g, GUEST_CR4), CR4_PAE | CR4_OSFXSR | CR4_PGE | CR4_VMXE);
    assert_int_equal(guest_r(&t->g, CR4_READ_SHADOW), guest_r(&t->g, GUEST_CR4));
    *guest_gpr(&t->g, R_RDX) = CR4_PAE; /* without PCE: level 1's bit */
    guest_skip(&t->g);
    guest_run(&t->g);
    at_host(t);
    assert_int_equal(r1(t, VM_EXIT_REASON), EXIT_REASON_CR_ACCESS);
    assert_int_equal(r1(t, EXIT_QUALIFICATION), 4 | R_RDX << 8);
    assert_int_equal(guest_r(&t->g, CR4_READ_SHADOW), CR4_PAE | CR4_VMXE | CR4_PGE | CR4_OSFXSR);
}

static void msr_lists(void **state)
{
    struct nested *t = *state;
    uint32_t *list = (uint32_t *)(t->g.ram + L1_MSRS);

    L2(t, "\xf4");
    memset(list, 0, 4096);
    list[0] = 0xc0000082; /* LSTAR: at entry */
    list[2] = 0x4000;
    list[64] = 0xc0000082;  /* stored at exit */
    list[128] = 0xc0000082; /* and level 1's own */
    list[130] = 0x8000;
    put(t, VM_ENTRY_MSR_LOAD_ADDR, L1_MSRS);
    put(t, VM_ENTRY_MSR_LOAD_COUNT, 1);
    put(t, VM_EXIT_MSR_STORE_ADDR, L1_MSRS + 256);
    put(t, VM_EXIT_MSR_STORE_COUNT, 1);
    put(t, VM_EXIT_MSR_LOAD_ADDR, L1_MSRS + 512);
    put(t, VM_EXIT_MSR_LOAD_COUNT, 1);
    assert_int_equal(launch(t), EXIT_REASON_HLT);
    assert_int_equal(list[66], 0x4000);
    assert_int_equal(cpu_state(t->g.cpu)->lstar, 0x8000);
    w1(t, VM_ENTRY_MSR_LOAD_COUNT, 2); /* the second: reserved bits */
    list[5] = 1;
    assert_int_equal(resume(t), EXIT_REASON_MSR_LOAD_FAIL | EXIT_REASON_FAILED_VMENTRY);
    assert_int_equal(r1(t, EXIT_QUALIFICATION), 2);
}

/* ---- failures ---- */

static void failures_have_their_numbers(void **state)
{
    struct nested *t = *state;

    L2(t, "\xf4");
    put(t, CR3_TARGET_COUNT, 5);
    assert_int_equal(start(t), EXIT_REASON_VMCALL);
    assert_int_equal(guest_r(&t->g, GUEST_RIP), GUEST_CODE + (l1_failed - l1_begin));
    assert_int_equal(*guest_gpr(&t->g, R_RAX) & (F_CF | F_ZF), F_ZF);
    assert_int_equal(r1(t, VM_INSTRUCTION_ERROR), VMXERR_BAD_CONTROLS);
    w1(t, CR3_TARGET_COUNT, 0);
    w1(t, HOST_CR4, CR4_PAE);
    guest_w(&t->g, GUEST_RIP, GUEST_CODE + (l1_failed - l1_begin) - 5); /* vmlaunch */
    guest_run(&t->g);
    assert_int_equal(r1(t, VM_INSTRUCTION_ERROR), VMXERR_BAD_HOST_STATE);
    w1(t, HOST_CR4, CR4_PAE | CR4_VMXE | CR4_PGE | CR4_OSFXSR);
    w1(t, GUEST_RFLAGS, 0);
    guest_w(&t->g, GUEST_RIP, GUEST_CODE + (l1_failed - l1_begin) - 5);
    guest_run(&t->g);
    at_host(t);
    assert_int_equal(r1(t, VM_EXIT_REASON), EXIT_REASON_INVALID_STATE | EXIT_REASON_FAILED_VMENTRY);
    guest_skip(&t->g);
    guest_run(&t->g); /* it was never launched: VMRESUME fails */
    assert_int_equal(guest_r(&t->g, GUEST_RIP), GUEST_CODE + (l1_failed - l1_begin));
    assert_int_equal(r1(t, VM_INSTRUCTION_ERROR), VMXERR_VMRESUME_NOT_LAUNCHED);
}

static uint32_t one(struct nested *t, const void *code, size_t n)
{
    guest_code(&t->g, code, n);
    guest_w(&t->g, GUEST_RFLAGS, F_RESERVED);
    *guest_gpr(&t->g, R_RDI) = L1_PTRS;
    return guest_run(&t->g);
}
#define ONE(t, code) one(t, code, sizeof(code) - 1)
#define FLAGS(t)     (guest_r(&(t)->g, GUEST_RFLAGS) & (F_CF | F_ZF))

static void instructions_fail_as_the_manual_says(void **state)
{
    struct nested *t = *state;
    uint64_t *ptr = (uint64_t *)(t->g.ram + L1_PTRS);

    /* outside of VMX operation: #UD (its handler's VMCALL), and VMXON #GP without IA32_FEATURE_CONTROL */
    guest_w(&t->g, EXCEPTION_BITMAP, 1u << VEC_UD | 1u << VEC_GP);
    assert_int_equal(ONE(t, "\x0f\xc7\x37"), EXIT_REASON_EXCEPTION_NMI); /* vmptrld [rdi] */
    assert_int_equal(guest_r(&t->g, VM_EXIT_INTR_INFO) & 0xff, VEC_UD);
    cpu_nested_allow(t->g.cpu, true, 0);
    assert_int_equal(ONE(t, "\xf3\x0f\xc7\x37"), EXIT_REASON_EXCEPTION_NMI); /* vmxon [rdi] */
    assert_int_equal(guest_r(&t->g, VM_EXIT_INTR_INFO) & 0xff, VEC_GP);
    cpu_nested_allow(t->g.cpu, true, 5);
    ptr[0] = L1_VMXON + 4;
    assert_int_equal(ONE(t, "\xf3\x0f\xc7\x37"), EXIT_REASON_VMCALL);
    assert_int_equal(FLAGS(t), F_CF);
    ptr[0] = GUEST_DATA; /* no revision there */
    assert_int_equal(ONE(t, "\xf3\x0f\xc7\x37"), EXIT_REASON_VMCALL);
    assert_int_equal(FLAGS(t), F_CF);
    ptr[0] = L1_VMXON;
    assert_int_equal(ONE(t, "\xf3\x0f\xc7\x37"), EXIT_REASON_VMCALL);
    assert_int_equal(FLAGS(t), 0);
    assert_int_equal(ONE(t, "\xf3\x0f\xc7\x37"), EXIT_REASON_VMCALL); /* in root operation, no current VMCS */
    assert_int_equal(FLAGS(t), F_CF);
    assert_int_equal(ONE(t, "\x0f\x01\xc2"), EXIT_REASON_VMCALL); /* vmlaunch */
    assert_int_equal(FLAGS(t), F_CF);
    assert_int_equal(ONE(t, "\x0f\xc7\x77\x08"), EXIT_REASON_VMCALL); /* vmptrld [rdi+8] */
    assert_int_equal(FLAGS(t), 0);
    assert_int_equal(ONE(t, "\xf3\x0f\xc7\x37"), EXIT_REASON_VMCALL);
    assert_int_equal(FLAGS(t), F_ZF);
    assert_int_equal(r1(t, VM_INSTRUCTION_ERROR), VMXERR_VMXON_IN_ROOT);
    assert_int_equal(ONE(t, "\x0f\xc7\x37"), EXIT_REASON_VMCALL); /* the VMXON region */
    assert_int_equal(r1(t, VM_INSTRUCTION_ERROR), VMXERR_VMPTRLD_VMXON_PTR);
    ptr[0] = 1ull << 60;
    assert_int_equal(ONE(t, "\x0f\xc7\x37"), EXIT_REASON_VMCALL);
    assert_int_equal(r1(t, VM_INSTRUCTION_ERROR), VMXERR_VMPTRLD_BAD_ADDR);
    ptr[0] = GUEST_RAM + 0x1000; /* no memory: all ones */
    assert_int_equal(ONE(t, "\x0f\xc7\x37"), EXIT_REASON_VMCALL);
    assert_int_equal(r1(t, VM_INSTRUCTION_ERROR), VMXERR_VMPTRLD_BAD_REVISION);
    assert_int_equal(ONE(t, "\x66\x0f\xc7\x37"), EXIT_REASON_VMCALL); /* vmclear there: nothing happens */
    assert_int_equal(FLAGS(t), 0);
    *guest_gpr(&t->g, R_RDX) = 0x2ffe;
    assert_int_equal(ONE(t, "\x0f\x79\xd0"), EXIT_REASON_VMCALL); /* vmwrite rdx, rax */
    assert_int_equal(r1(t, VM_INSTRUCTION_ERROR), VMXERR_BAD_FIELD);
    *guest_gpr(&t->g, R_RDX) = VM_EXIT_REASON;
    assert_int_equal(ONE(t, "\x0f\x79\xd0"), EXIT_REASON_VMCALL);
    assert_int_equal(r1(t, VM_INSTRUCTION_ERROR), VMXERR_READONLY_FIELD);
    *guest_gpr(&t->g, R_RDX) = 9;
    assert_int_equal(ONE(t, "\x66\x0f\x38\x80\x17"), EXIT_REASON_VMCALL); /* invept rdx, [rdi] */
    assert_int_equal(r1(t, VM_INSTRUCTION_ERROR), VMXERR_INV_OPERAND);
    assert_int_equal(ONE(t, "\x66\x0f\x38\x81\x17"), EXIT_REASON_VMCALL); /* invvpid rdx, [rdi] */
    assert_int_equal(FLAGS(t), F_ZF);
    assert_int_equal(ONE(t, "\x0f\x01\xc4"), EXIT_REASON_VMCALL); /* vmxoff */
    assert_int_equal(FLAGS(t), 0);
    assert_int_equal(ONE(t, "\x0f\x01\xc4"), EXIT_REASON_EXCEPTION_NMI);
}

/* A VMCS goes back to its region and comes again, in KVM's layout. */
static void regions_hold_the_layout(void **state)
{
    struct nested *t = *state;
    const uint8_t *raw = t->g.ram + L1_VMCS;

    L2(t, "\xf4");
    assert_int_equal(launch(t), EXIT_REASON_HLT);
    *guest_gpr(&t->g, R_RDX) = GUEST_RIP;
    *guest_gpr(&t->g, R_RDI) = L1_PTRS;
    /* vmclear [rdi+16]; vmptrld [rdi+16]; vmptrld [rdi+8]; vmread rax, rdx; vmptrst [rdi+24] */
    assert_int_equal(ONE(t, "\x66\x0f\xc7\x77\x10\x0f\xc7\x77\x10\x0f\xc7\x77\x08\x0f\x78\xd0\x0f\xc7\x7f\x18"),
                     EXIT_REASON_VMCALL);
    assert_int_equal(*guest_gpr(&t->g, R_RAX), L2_CODE);
    assert_int_equal(*(uint64_t *)(t->g.ram + L1_PTRS + 24), L1_VMCS);
    assert_int_equal(*(uint32_t *)(raw + 0), 0x11e57ed0);
    assert_int_equal(*(uint32_t *)(raw + 8), VMCS_LAUNCHED);
    assert_int_equal(*(uint64_t *)(raw + 544), L2_CODE);         /* guest_rip */
    assert_int_equal(*(uint32_t *)(raw + 812), EXIT_REASON_HLT); /* vm_exit_reason */
    assert_int_equal(*(uint16_t *)(raw + 966), GUEST_SEL_CS0);   /* guest_cs_selector */
    assert_int_equal(*(uint64_t *)(raw + 176), ~0ull);           /* vmcs_link_pointer */
    assert_int_equal(r1(t, VM_EXIT_REASON), EXIT_REASON_HLT);
}

static void state_is_saved_and_loaded(void **state)
{
    struct nested *t = *state;
    struct cpu_nested_state st;
    uint8_t vmcs[CPU_NESTED_VMCS_SIZE];

    /* mov ebx, 5; out 0x71, al; add ebx, 1; hlt */
    L2(t, "\xbb\x05\x00\x00\x00\xe6\x71\x83\xc3\x01\xf4");
    assert_int_equal(start(t), EXIT_REASON_IO_INSTRUCTION);
    guest_skip(&t->g);
    cpu_nested_get(t->g.cpu, &st, vmcs);
    assert_true(st.in_guest && st.vmxon == L1_VMXON && st.vmcs == L1_VMCS);
    assert_int_equal(*(uint64_t *)(vmcs + 544), L2_CODE + 7);
    guest_vmcs_state(&t->g); /* another machine's: level 0's VMCS shows nothing of it */
    vmx_nested_reset(t->g.cpu);
    *guest_gpr(&t->g, R_RBX) = 5;
    assert_int_equal(cpu_nested_set(t->g.cpu, &st, vmcs), 0);
    assert_int_equal(guest_r(&t->g, GUEST_RIP), L2_CODE + 7);
    guest_run(&t->g);
    at_host(t);
    assert_int_equal(r1(t, VM_EXIT_REASON), EXIT_REASON_HLT);
    assert_int_equal(*guest_gpr(&t->g, R_RBX), 6);
    memset(vmcs + 424, 0, 8); /* guest_cr0 */
    assert_int_equal(cpu_nested_set(t->g.cpu, &st, vmcs), -1);
}

/* ---- hostile: whatever the fields say, level 0 gets an exit and nothing outside of RAM is touched ---- */

static uint64_t next_random(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

static const uint32_t hostile_fields[] = {
#define VMCS_FIELD(name, encoding, bits, area, access) encoding,
#include "../../src/cpu/vmcs.def"
#undef VMCS_FIELD
};

/* A value near what is valid, an address in or beyond RAM, or anything. */
static uint64_t hostile_value(struct nested *t, uint32_t field, uint64_t *x)
{
    const uint64_t now = r1(t, field), r = next_random(x);

    switch (r & 7) {
    case 0:
        return next_random(x);
    case 1:
        return next_random(x) & (2 * GUEST_RAM - 1) & ~0xfffull;
    case 2:
        return now ^ (1ull << (r >> 8 & 63));
    case 3:
        return 1ull << (r >> 8 & 63);
    default:
        return now ^ (1ull << (r >> 8 & 15));
    }
}

static void hostile_vmcs(void **state)
{
    struct nested *t = *state;
    const unsigned rounds = getenv("ANYKVM_FUZZ_ROUNDS") ? (unsigned)atoi(getenv("ANYKVM_FUZZ_ROUNDS")) : 300;
    uint64_t x = 0x9e3779b97f4a7c15;
    unsigned entered = 0;

    L2(t, "\x0f\xa2\xe4\x70\xf4\xeb\xf9");
    launch(t);
    const struct vmcs good = t->g.cpu->vmx->nested->copy;
    guest_w(&t->g, PIN_BASED_VM_EXEC_CONTROL, guest_r(&t->g, PIN_BASED_VM_EXEC_CONTROL) | PIN_PREEMPTION_TIMER);
    for (unsigned i = 0; i < rounds; i++) {
        struct vmcs *v = &t->g.cpu->vmx->nested->copy;

        *v = good;
        t->g.cpu->vmx->level[1].cur = v;
        for (unsigned n = next_random(&x) % 6; n > 0; n--) {
            const uint32_t field = hostile_fields[next_random(&x) % (sizeof(hostile_fields) / 4)];

            vmx_write(t->g.cpu, 1, field, hostile_value(t, field, &x));
        }
        if (t->ept && !(i & 3)) /* and its EPT */
            ((uint64_t *)(t->g.ram + L1_EPT))[next_random(&x) & 2047] = next_random(&x);
        t->g.cpu->vmx->level[1].stale = STALE_ALL;
        guest_vmcs_state(&t->g);
        guest_w(&t->g, CR4_READ_SHADOW, CR4_VMXE);
        guest_w(&t->g, GUEST_RIP, GUEST_CODE + (l1_host - l1_begin) + 3); /* vmresume */
        t->g.cpu->vmx->depth = 0;
        guest_w(&t->g, VMX_PREEMPTION_TIMER_VALUE, 1000000 >> VMX_TIMER_SHIFT);
        guest_run(&t->g);
        entered += guest_r(&t->g, GUEST_RIP) != GUEST_CODE + (uint64_t)(l1_failed - l1_begin);
        if (t->ept && !(i & 3)) {
            make_ept(t);
            vmx_invept(t->g.cpu, 1, INVEPT_GLOBAL, 0);
        }
    }
    assert_true(entered > rounds / 10);
}

#define BOTH(f)                                          \
    cmocka_unit_test_setup_teardown(f, setup, teardown), \
    {                                                    \
#f " (EPT)", f, setup_ept, teardown, NULL        \
    }
#define EPT(f) cmocka_unit_test_setup_teardown(f, setup_ept, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(exits_go_to_level_1),
        BOTH(other_exits_go_to_level_0),
        BOTH(interrupts_are_offered),
        EPT(memory_goes_through_both_epts),
        EPT(level_0_maps_what_it_lacks),
        EPT(translations_are_apart),
        BOTH(injection_and_nested_faults),
        BOTH(time_adds_up),
        BOTH(preemption_timer_of_level_1),
        BOTH(control_registers_are_level_1s),
        BOTH(msr_lists),
        BOTH(failures_have_their_numbers),
        BOTH(instructions_fail_as_the_manual_says),
        BOTH(regions_hold_the_layout),
        BOTH(state_is_saved_and_loaded),
        BOTH(hostile_vmcs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
