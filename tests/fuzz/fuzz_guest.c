/* SPDX-License-Identifier: MIT
 * fuzz_guest.c: fuzz_guest.h's guest. */
#include "fuzz_guest.h"

enum {
    CODE64_0 = 8,
    DATA_0 = 0x10,
    CODE32_0 = 0x18,
    CODE16_0 = 0x20,
    CODE64_3 = 0x33,
    DATA_3 = 0x3b,
    CODE32_3 = 0x43,
    TSS = 0x48,
    TASK = 0x58,
    GATE = 0x60,
    GDT_BYTES = 0x80
};
enum { REAL = 16, PROTECTED = 32, LONG = 64 };

struct guest_mode {
    const char *name;
    unsigned kind; /* whose handler */
    bool paging, pae;
    uint16_t cs, ss;
    uint32_t flags; /* of the code */
};
static const struct guest_mode modes[] = {
    {"real", REAL, false, false, G_CODE >> 4, 0, 2},
    {"protected 16-bit", PROTECTED, false, false, CODE16_0, DATA_0, 2},
    {"protected 32-bit", PROTECTED, false, false, CODE32_0, DATA_0, 0x202},
    {"protected 32-bit, ring 3", PROTECTED, true, false, CODE32_3, DATA_3, 0x3202},
    {"PAE", PROTECTED, true, true, CODE32_0, DATA_0, 2},
    {"PAE, ring 3", PROTECTED, true, true, CODE32_3, DATA_3, 0x202},
    {"virtual-8086", PROTECTED, true, false, G_CODE >> 4, 0, 0x23202},
    {"long, ring 0", LONG, true, true, CODE64_0, DATA_0, 0x202},
    {"long, ring 3", LONG, true, true, CODE64_3, DATA_3, 0x3202},
    {"compatibility, ring 3", LONG, true, true, CODE32_3, DATA_3, 0x202},
};

#define HANDLER(name, bits, text)              \
    extern const uint8_t name[], name##_end[]; \
    __asm__(".pushsection .rodata\n.code" bits "\n" #name ":\n" text "\n" #name "_end:\n.code64\n.popsection\n")

/* Where to: a hash of the counter, within the code */
#define NEXT "imul $0x9e3779b1, %eax, %eax; shr $16, %eax;"
#define SET  "and $15, %eax; shl $7, %eax;"
HANDLER(handler16, "16",
        "xor %ax, %ax; mov %ax, %ds; mov %ax, %ss; mov $0xec00, %sp; incl 0xd100; mov 0xd100, %eax;" NEXT
        "pushw 0xd010; pushw 0xd008; pushw %ax; mov 0xd100, %eax;" SET
        "mov %ax, %bx; add $0xc000, %bx; mov 0(%bx), %eax; mov 8(%bx), %ecx; mov 16(%bx), %edx; mov 40(%bx), %ebp;"
        "mov 48(%bx), %esi; mov 56(%bx), %edi; mov 62(%bx), %es; mov 24(%bx), %ebx; iretw");
HANDLER(
    handler32, "32",
    "mov $0x10, %eax; mov %eax, %ds; mov %eax, %es; mov %eax, %ss; mov $0xec00, %esp; incl 0xd100; mov 0xd100, %eax;"
    "pushl $0x3000; pushl $0; pushl $0x2000; pushl $0x1000; pushl 0xd020; pushl 0xd018; pushl 0xd010; pushl "
    "0xd008;" NEXT "add 0xd028, %eax; pushl %eax; mov 0xd100, %eax;" SET
    "lea 0xc000(%eax), %ebx; mov 0(%ebx), %eax; mov 8(%ebx), %ecx; mov 16(%ebx), %edx; mov 40(%ebx), %ebp;"
    "mov 48(%ebx), %esi; mov 56(%ebx), %edi; mov 24(%ebx), %ebx; iretl");
HANDLER(handler64, "64",
        "mov $0xec00, %esp; incl 0xd100; mov 0xd100, %eax; test $63, %al; jnz 1f; out %al, $0x11; 1: pushq 0xd020; "
        "pushq 0xd018; pushq 0xd010; pushq 0xd008;" NEXT "add 0xd028, %eax; push %rax; mov 0xd100, %eax;" SET
        "lea 0xc000(%rax), %rbx; mov 0(%rbx), %rax; mov 8(%rbx), %rcx; mov 16(%rbx), %rdx; mov 40(%rbx), %rbp;"
        "mov 48(%rbx), %rsi; mov 56(%rbx), %rdi; mov 64(%rbx), %r8; mov 72(%rbx), %r9; mov 80(%rbx), %r10;"
        "mov 88(%rbx), %r11; mov 96(%rbx), %r12; mov 104(%rbx), %r13; mov 112(%rbx), %r14; mov 120(%rbx), %r15;"
        "mov 24(%rbx), %rbx; iretq");

static void must(long result, const char *what)
{
    if (result < 0)
        fuzz_fail("%s: %s", what, strerror(errno));
}

void guest_slot(struct guest *g, unsigned flags)
{
    struct kvm_userspace_memory_region m = {.memory_size = G_RAM, .userspace_addr = (uintptr_t)g->ram, .flags = flags};

    must(anykvm_ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &m), "slot");
}

static void offer_cpuid(struct guest *g, struct rng *r)
{
    struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 256 * sizeof(c->entries[0]));

    c->nent = 256;
    must(anykvm_ioctl(g->sys, KVM_GET_SUPPORTED_CPUID, c), "KVM_GET_SUPPORTED_CPUID");
    if (one_in(r, 4)) /* a CPUID that lacks something */
        ((uint32_t *)&c->entries[rnd_below(r, c->nent)].eax)[rnd_below(r, 4)] &= (uint32_t)rnd(r);
    anykvm_ioctl(g->vcpu, KVM_SET_CPUID2, c);
    free(c);
}

void guest_create(struct guest *g, struct rng *r)
{
    guest_create_mode(g, r, (unsigned)rnd_below(r, sizeof(modes) / sizeof(modes[0])));
}

void guest_create_mode(struct guest *g, struct rng *r, unsigned mode)
{
    *g = (struct guest){.mode = &modes[mode]};
    must(g->sys = anykvm_open("/dev/kvm", O_RDWR | O_CLOEXEC), "open");
    must(g->vm = anykvm_ioctl(g->sys, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    if (one_in(r, 3))
        must(anykvm_ioctl(g->vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
    g->ram = mmap(NULL, G_RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fuzz_check(g->ram != MAP_FAILED, "no memory");
    guest_slot(g, 0);
    must(g->vcpu = anykvm_ioctl(g->vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    must(g->run_size = (size_t)anykvm_ioctl(g->sys, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
    g->run = anykvm_mmap(NULL, g->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu, 0);
    fuzz_check(g->run != MAP_FAILED, "kvm_run");
    if (!one_in(r, 8))
        offer_cpuid(g, r);
    if (!one_in(r, 4)) {
        struct kvm_xcrs x;

        must(anykvm_ioctl(g->vcpu, KVM_GET_XCRS, &x), "KVM_GET_XCRS");
        x.nr_xcrs = 1;
        x.xcrs[0].xcr = 0;
        x.xcrs[0].value = one_in(r, 2) ? 0xe7 : 7;
        anykvm_ioctl(g->vcpu, KVM_SET_XCRS, &x);
    }
}

void guest_destroy(struct guest *g)
{
    munmap(g->run, g->run_size);
    anykvm_close(g->vcpu);
    anykvm_close(g->vm);
    anykvm_close(g->sys);
    munmap(g->ram, G_RAM);
}

/* ---- tables ---- */
static void page_tables(struct guest *g, struct rng *r)
{
    const bool user = (g->mode->cs & 3) == 3 || (g->mode->flags & 0x20000) || one_in(r, 2);
    const uint64_t attr = 3 | (user ? 4 : 0);
    uint64_t *pml4 = (uint64_t *)(g->ram + G_TABLES), *pdpt = pml4 + 512, *pd = pml4 + 1024;
    uint32_t *pd32 = (uint32_t *)(g->ram + G_TABLES);

    memset(pml4, 0, 4 * 4096);
    if (g->mode->pae) {
        pml4[0] = (G_TABLES + 0x1000) | attr;
        pml4[511] = pml4[0];
        pdpt[0] = (G_TABLES + 0x2000) | (g->mode->kind == LONG ? attr : 1);
        for (uint64_t i = 0; i < 512; i++)
            pd[i] = i << 21 | attr | 0x80;
        return;
    }
    for (uint32_t i = 0; i < 1024; i++)
        pd32[i] = i << 22 | (uint32_t)attr | 0x80;
}

static void descriptors(struct guest *g)
{
    static const uint64_t common[] = {
        0,
        0x00af9b000000ffff, /* code64, ring 0 */
        0x00cf93000000ffff,
        0x00cf9b000000ffff, /* code32 */
        0x008f9b000000ffff, /* code16 */
        0x008f93000000ffff,
        0x00affb000000ffff, /* code64, ring 3 */
        0x00cff3000000ffff,
        0x00cffb000000ffff,                                              /* code32, ring 3 */
        0x00008b0000000067 | (uint64_t)(G_TSS & 0xffff) << 16,           /* the TSS, busy */
        0,                                                               /* its upper half in long mode */
        0x0000890000000067 | (uint64_t)((G_TSS + 0x200) & 0xffff) << 16, /* another task */
        0x0000ec0000180000 | (G_HANDLER & 0xffff),                       /* a call gate */
        0x0000e50000580000,                                              /* a task gate */
    };

    _Static_assert(sizeof(common) <= GDT_BYTES, "the table's limit");
    memcpy(g->ram + G_GDT, common, sizeof(common));
}

static void task_segments(struct guest *g)
{
    uint32_t *tss = (uint32_t *)(g->ram + G_TSS), *other = (uint32_t *)(g->ram + G_TSS + 0x200);

    memset(tss, 0, 0x400);
    if (g->mode->kind == LONG) {
        tss[1] = G_STACK0; /* RSP0 */
        tss[9] = G_STACK0; /* IST1 */
        tss[25] = 0x680000;
        return;
    }
    tss[1] = G_STACK0;
    tss[2] = DATA_0;
    tss[25] = 0x680000;
    other[7] = G_TABLES; /* CR3 */
    other[8] = G_HANDLER;
    other[9] = 2;
    other[14] = G_STACK0;
    for (unsigned i = 18; i <= 23; i++)
        other[i] = i == 19 ? CODE32_0 : DATA_0;
    other[25] = 0x680000;
}

static void interrupt_tables(struct guest *g)
{
    uint64_t *idt = (uint64_t *)(g->ram + G_IDT);
    uint32_t *ivt = (uint32_t *)g->ram;

    switch (g->mode->kind) {
    case REAL:
        for (unsigned i = 0; i < 256; i++)
            ivt[i] = G_HANDLER;
        memcpy(g->ram + G_HANDLER, handler16, (size_t)(handler16_end - handler16));
        break;
    case PROTECTED:
        for (unsigned i = 0; i < 256; i++)
            idt[i] = 0x0000ee0000000000ull | (uint64_t)CODE32_0 << 16 | (G_HANDLER & 0xffff);
        memcpy(g->ram + G_HANDLER, handler32, (size_t)(handler32_end - handler32));
        break;
    default:
        for (unsigned i = 0; i < 256; i++) {
            idt[2 * i] = 0x0000ee0100000000ull | (uint64_t)CODE64_0 << 16 | (G_HANDLER & 0xffff);
            idt[2 * i + 1] = 0;
        }
        memcpy(g->ram + G_HANDLER, handler64, (size_t)(handler64_end - handler64));
    }
}

static uint64_t pool_value(struct rng *r)
{
    switch (rnd_below(r, 5)) {
    case 0:
        return rnd_value(r);
    case 1:
        return G_CODE + rnd_below(r, 0x10000);
    case 2:
        return rnd_below(r, 64);
    case 3: /* at the end of a page */
        return G_DATA + (rnd(r) & 0xf000) + 0xfc0 + rnd_below(r, 64);
    default:
        return G_DATA + (rnd(r) & 0xfff8);
    }
}

void guest_tables(struct guest *g, struct rng *r)
{
    uint64_t *pool = (uint64_t *)(g->ram + G_POOL), *frame = (uint64_t *)(g->ram + G_FRAME);

    memset(g->ram + G_TABLES, 0, G_CODE - G_TABLES);
    if (g->mode->paging)
        page_tables(g, r);
    descriptors(g);
    task_segments(g);
    interrupt_tables(g);
    for (unsigned i = 0; i < 256; i++)
        pool[i] = g->mode->kind == REAL ? rnd(r) & 0xffff : pool_value(r);
    frame[1] = g->mode->cs;
    frame[2] = g->mode->flags;
    frame[3] = G_DATA + 0x8000;
    frame[4] = g->mode->ss;
    frame[5] = g->mode->flags & 0x20000 ? 0 : G_CODE;
    if (g->mode->flags & 0x20000)
        frame[3] = 0x8000;
}

/* ---- registers ---- */
static struct kvm_segment segment(uint16_t sel, unsigned type, unsigned l, unsigned db)
{
    return (struct kvm_segment){.limit = ~0u,
                                .selector = sel,
                                .type = (uint8_t)type,
                                .present = 1,
                                .s = 1,
                                .dpl = sel & 3,
                                .l = (uint8_t)l,
                                .db = (uint8_t)db,
                                .g = 1};
}

static struct kvm_segment segment_real(uint16_t sel)
{
    return (struct kvm_segment){
        .base = (uint64_t)sel << 4, .limit = 0xffff, .selector = sel, .type = 3, .present = 1, .s = 1};
}

static void segments(struct guest *g, struct kvm_sregs *s)
{
    const uint16_t cs = g->mode->cs;

    if (g->mode->kind == REAL || (g->mode->flags & 0x20000)) {
        s->cs = segment_real(cs);
        s->ss = segment_real(g->mode->ss);
        s->ds = s->es = s->fs = s->gs = segment_real(0);
        if (g->mode->flags & 0x20000) {
            struct kvm_segment *all[] = {&s->cs, &s->ss, &s->ds, &s->es, &s->fs, &s->gs};

            for (unsigned i = 0; i < 6; i++)
                all[i]->dpl = 3;
        } else {
            s->cs.type = 11;
        }
        return;
    }
    s->cs = segment(cs, 11, cs == CODE64_0 || cs == CODE64_3, cs == CODE32_0 || cs == CODE32_3);
    s->ss = segment(g->mode->ss, 3, 0, 1);
    s->ds = s->es = s->fs = s->gs = segment(g->mode->ss, 3, 0, 1);
}

static void control_registers(struct guest *g, struct rng *r, struct kvm_sregs *s)
{
    static const uint64_t cr4_bits[] = {1 << 2, 1 << 3, 1 << 7, 1 << 8, 1 << 11, 1 << 16, 1 << 20, 1 << 21};

    s->cr0 = g->mode->kind == REAL ? 0x10 : 0x11;
    s->cr4 = 0;
    s->efer = 0;
    if (!one_in(r, 4)) {
        s->cr4 |= 0x600;
        s->cr0 |= 2;
    }
    if (!one_in(r, 3))
        s->cr4 |= 1 << 18;
    for (unsigned n = (unsigned)rnd_below(r, 3); n; n--)
        s->cr4 |= rnd_of(r, cr4_bits);
    if (g->mode->paging) {
        s->cr0 |= 0x80000000;
        s->cr3 = g->mode->kind == LONG ? G_TABLES : g->mode->pae ? G_TABLES + 0x1000 : G_TABLES;
        s->cr4 |= g->mode->pae ? 0x20 : 0x10;
        if (one_in(r, 2))
            s->cr0 |= 0x50020; /* AM, WP, NE */
    }
    if (g->mode->kind == LONG) {
        s->efer = 0x501 | (one_in(r, 2) ? 0x800 : 0);
        if (one_in(r, 4))
            s->cr4 |= 1 << 17;
    }
}

void guest_registers(struct guest *g, struct rng *r)
{
    struct kvm_regs regs;
    struct kvm_sregs s;
    uint64_t *gpr = (uint64_t *)&regs;
    const struct kvm_vcpu_events none = {.flags = 0};
    const struct kvm_mp_state runnable = {KVM_MP_STATE_RUNNABLE};

    must(anykvm_ioctl(g->vcpu, KVM_GET_SREGS, &s), "KVM_GET_SREGS");
    segments(g, &s);
    control_registers(g, r, &s);
    s.gdt.base = G_GDT;
    s.gdt.limit = GDT_BYTES - 1;
    s.idt.base = g->mode->kind == REAL ? 0 : G_IDT;
    s.idt.limit = 0xfff;
    s.tr = (struct kvm_segment){.base = G_TSS, .limit = 0x67, .selector = TSS, .type = 11, .present = 1};
    s.ldt = (struct kvm_segment){.unusable = 1};
    memset(s.interrupt_bitmap, 0, sizeof(s.interrupt_bitmap));
    if (anykvm_ioctl(g->vcpu, KVM_SET_SREGS, &s)) { /* the CPUID may lack some bit */
        s.cr4 &= 0x630;
        s.efer &= 0x500;
        if (anykvm_ioctl(g->vcpu, KVM_SET_SREGS, &s))
            fuzz_check(errno == EINVAL, "KVM_SET_SREGS: %s", strerror(errno));
    }
    for (unsigned i = 0; i < 16; i++)
        gpr[i] = g->mode->kind == REAL ? rnd(r) & 0xffff : pool_value(r);
    regs.rip = rnd_below(r, 0x10000) + (g->mode->kind == REAL || (g->mode->flags & 0x20000) ? 0 : G_CODE);
    regs.rflags = g->mode->flags;
    regs.rsp = g->mode->kind == REAL ? 0x8000 : G_DATA + 0x8000;
    anykvm_ioctl(g->vcpu, KVM_SET_VCPU_EVENTS, &none);
    anykvm_ioctl(g->vcpu, KVM_SET_MP_STATE, &runnable);
    must(anykvm_ioctl(g->vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

void guest_hostile_sregs(struct guest *g, struct rng *r)
{
    struct kvm_sregs s;
    struct kvm_segment *segs[] = {&s.cs, &s.ds, &s.es, &s.fs, &s.gs, &s.ss, &s.tr, &s.ldt};
    __u64 *crs[] = {&s.cr0, &s.cr2, &s.cr3, &s.cr4, &s.cr8, &s.efer, &s.gdt.base, &s.idt.base};
    struct kvm_segment *seg = rnd_of(r, segs);

    must(anykvm_ioctl(g->vcpu, KVM_GET_SREGS, &s), "KVM_GET_SREGS");
    switch (rnd_below(r, 5)) {
    case 0:
        seg->base = rnd_value(r);
        break;
    case 1:
        seg->limit = (uint32_t)rnd_value(r);
        seg->g = one_in(r, 2);
        break;
    case 2:
        ((uint8_t *)&seg->selector)[rnd_below(r, 12)] = (uint8_t)rnd(r);
        break;
    case 3:
        *rnd_of(r, crs) = rnd_value(r);
        break;
    default:
        *rnd_of(r, crs) ^= 1ull << rnd_below(r, 32);
    }
    if (anykvm_ioctl(g->vcpu, KVM_SET_SREGS, &s))
        fuzz_check(errno == EINVAL, "KVM_SET_SREGS: %s", strerror(errno));
}
