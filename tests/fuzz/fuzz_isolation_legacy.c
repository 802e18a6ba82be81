/* SPDX-License-Identifier: MIT
 * fuzz_isolation_legacy.c: protected mode, where base + offset wraps at 4 GiB whatever the base is, and real mode,
 * where an offset above the limit faults. */
#include "fuzz_isolation.h"

/* The guest loads FS with a descriptor whose base's upper half is VAR_TOP, and aims at VAR_BASE through it. */
__asm__(
    ".pushsection .rodata\n.code32\n.globl iso_loop32, iso_loop32_end\niso_loop32:\n"
    "next32: mov $" STR(STACK_GVA) ", %esp; mov " STR(VAR_TOP) ", %eax; cmp " STR(
        VAR_END) ", %eax; jae finished32\n"
                 "mov %eax, %ecx; add " STR(VAR_STRIDE) ", %ecx; mov %ecx, " STR(
                     VAR_TOP) "\n"
                              "mov " STR(VAR_SEGBASE) ", %ecx; cmpl $0, " STR(
                                  VAR_LOAD) "; je 1f\n"
                                            "shl $16, %eax; mov %ax, %cx; mov " STR(
                                                VAR_SEGBASE) ", %cx; and $0xffff, %ecx; or %eax, %ecx\n"
                                                             "mov %ecx, %eax; mov %ax, 0x8032; shr $16, %eax; mov %al, "
                                                             "0x8034; mov %ah, 0x8037; mov $0x33, %eax; mov %eax, %fs\n"
                                                             "1: mov " STR(
                                                                 VAR_BASE) ", %ebx; sub %ecx, %ebx; mov "
                                                                           "$" STR(
                                                                               SITE_GVA) ", %eax; jmp *%eax\n"
                                                                                         "ok32: incl " STR(
                                                                                             VAR_OK) "; jmp "
                                                                                                     "next32"
                                                                                                     "\n"
                                                                                                     "finishe"
                                                                                                     "d32: "
                                                                                                     "out "
                                                                                                     "%al, "
                                                                                                     "$0x10; "
                                                                                                     "jmp "
                                                                                                     "finishe"
                                                                                                     "d32\n"
                                                                                                     ".globl "
                                                                                                     "iso_"
                                                                                                     "common3"
                                                                                                     "2\niso_"
                                                                                                     "common3"
                                                                                                     "2: "
                                                                                                     "xchg "
                                                                                                     "%eax, "
                                                                                                     "(%esp);"
                                                                                                     " incl"
                                                                                                     " " STR(
                                                                                                         COUNTS) "(,%"
                                                                                                                 "eax,"
                                                                                                                 "8)\n"
                                                                                                                 "movl "
                                                                                                                 "$next"
                                                                                                                 "32 - "
                                                                                                                 "iso_"
                                                                                                                 "loop3"
                                                                                                                 "2 "
                                                                                                                 "+"
                                                                                                                 " " STR(
                                                                                                                     LOOP_GVA) ", 8(%esp); pop %eax; add $4, %esp; iretl\n"
                                                                                                                               "iso_loop32_end:\n.globl iso_ok32\niso_ok32 = ok32\n"
                                                                                                                               ".code16\n.globl iso_loop16, iso_loop16_end\niso_loop16:\n"
                                                                                                                               "next16: mov $" STR(STACK_GVA) ", %sp; mov " STR(VAR_TOP) ", %eax; cmp " STR(
                                                                                                                                   VAR_END) ", %eax; jae finished16\n"
                                                                                                                                            "mov %eax, %ecx; add " STR(VAR_STRIDE) ", %ecx; mov %ecx, " STR(
                                                                                                                                                VAR_TOP) "\n"
                                                                                                                                                         "shl $16, %eax; mov " STR(VAR_BASE) ", %ebx; or %eax, %ebx; mov $" STR(
                                                                                                                                                             SITE_GVA) ", %ax; jmp *%ax\n"
                                                                                                                                                                       "ok16: incl " STR(
                                                                                                                                                                           VAR_OK) "; jmp next16\n"
                                                                                                                                                                                   "finished16: out %al, $0x10; jmp finished16\n"
                                                                                                                                                                                   "iso_loop16_end:\n.globl iso_ok16\niso_ok16 = ok16\n"
                                                                                                                                                                                   ".code64\n.popsection\n");
extern const uint8_t iso_loop32[], iso_loop32_end[], iso_common32[], iso_ok32[];
extern const uint8_t iso_loop16[], iso_loop16_end[], iso_ok16[];

struct kind {
    const char *name;
    const uint8_t *code, *end;
};
#define KIND(bits, id, text)                                                                                      \
    extern const uint8_t l_##id[], l_##id##_end[];                                                                \
    __asm__(".pushsection .rodata\n.code" #bits "\n.globl l_" #id ", l_" #id "_end\nl_" #id ":\n" text "\nl_" #id \
            "_end:\n.code64\n.popsection\n")
KIND(32, read8, "mov %fs:(%ebx), %al");
KIND(32, read32, "mov %fs:(%ebx), %eax");
KIND(32, write32, "mov %eax, %fs:(%ebx)");
KIND(32, add, "lock addl $5, %fs:(%ebx)");
KIND(32, disp, "lea 0x1000(%ebx), %edx; mov %fs:-0x1000(%edx), %eax");
KIND(32, movs, "mov %ebx, %esi; mov $" STR(SCRATCH_GVA) ", %edi; mov $3, %ecx; rep movsl %fs:(%esi), %es:(%edi)");
KIND(32, movups, "movups %fs:(%ebx), %xmm0");
KIND(32, movups_to, "movups %xmm0, %fs:(%ebx)");
KIND(32, push, "pushl %fs:(%ebx)");
KIND(32, fld, "fninit; fldl %fs:(%ebx)");
KIND(16, real_read, "addr32 mov (%ebx), %al");
KIND(16, real_write, "addr32 mov %ecx, (%ebx)");
KIND(16, real_movs, "mov %ebx, %esi; mov $" STR(SCRATCH_GVA) ", %edi; mov $2, %ecx; addr32 rep movsb");
KIND(16, real_fld, "fninit; addr32 fldl (%ebx)");
KIND(16, real_movups, "addr32 movups (%ebx), %xmm0");
#define K(id)                     \
    {                             \
#id, l_##id, l_##id##_end \
    }
static const struct kind kinds32[] = {K(read8), K(read32), K(write32),   K(add),  K(disp),
                                      K(movs),  K(movups), K(movups_to), K(push), K(fld)};
static const struct kind kinds16[] = {K(real_read), K(real_write), K(real_movs), K(real_fld), K(real_movups)};

static void put_site(struct iso *g, const struct kind *k, unsigned bits, uint32_t ok)
{
    const size_t n = (size_t)(k->end - k->code);
    uint8_t *site = g->ram + SITE_GVA;

    memcpy(site, k->code, n);
    site[n] = 0xe9;
    if (bits == 16)
        *(int16_t *)(site + n + 1) = (int16_t)(ok - (SITE_GVA + n + 3));
    else
        *(int32_t *)(site + n + 1) = (int32_t)(ok - (SITE_GVA + n + 5));
}

static void registers(struct iso *g, struct kvm_sregs *s, uint64_t flags)
{
    struct kvm_regs regs = {.rip = LOOP_GVA, .rsp = STACK_GVA, .rflags = flags};

    s->gdt.base = GDT_GPA;
    s->gdt.limit = 0x3f;
    s->cr4 = 0x600;
    iso_must(anykvm_ioctl(g->vcpu, KVM_SET_SREGS, s), "KVM_SET_SREGS");
    iso_must(anykvm_ioctl(g->vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

/* ---- protected mode, 32-bit paging: the first 4 MiB but for the window's neighbours; the window at 0xb0000000 too
 * ---- */
#define WINDOW32 0xb0003000u

static void tables32(struct iso *g)
{
    static const uint64_t gdt[] = {0,
                                   0x00cf9b000000ffff,
                                   0x00cf93000000ffff,
                                   0x00cffb000000ffff,
                                   0x00cff3000000ffff,
                                   0x00008b0000000067 | (uint64_t)TSS_GPA << 16,
                                   0x00cff3000000ffff};
    uint32_t *pd = (uint32_t *)(g->ram + PML4_GPA), *low = pd + 1024, *window = pd + 2048;
    uint64_t *idt = (uint64_t *)(g->ram + IDT_GPA);
    uint8_t *stub = g->ram + STUBS_GVA;

    pd[0] = (PML4_GPA + 0x1000) | 7;
    pd[WINDOW32 >> 22] = (PML4_GPA + 0x2000) | 7;
    for (uint32_t i = 0; i < 16; i++)
        low[i] = i << 12 | 7;
    window[WINDOW32 >> 12 & 1023] = WINDOW_GPA | 7;
    memcpy(g->ram + GDT_GPA, gdt, sizeof(gdt));
    *(uint32_t *)(g->ram + TSS_GPA + 4) = IST_GVA;
    *(uint32_t *)(g->ram + TSS_GPA + 8) = 0x10;
    memcpy(g->ram + LOOP_GVA, iso_loop32, (size_t)(iso_loop32_end - iso_loop32));
    for (unsigned v = 0; v < 32; v++, stub += 16) {
        unsigned n = 0;

        if (!(0x40227d00u >> v & 1))
            stub[n++] = 0x6a, stub[n++] = 0;
        stub[n++] = 0x6a;
        stub[n++] = (uint8_t)v;
        stub[n++] = 0xe9;
        *(int32_t *)(stub + n) = (int32_t)(LOOP_GVA + (iso_common32 - iso_loop32) - (STUBS_GVA + v * 16 + n + 4));
        idt[v] = (uint64_t)(STUBS_GVA + v * 16) | 8ull << 16 | 0xee00ull << 32;
    }
}

static int start32(struct iso *g, unsigned ring, uint64_t fs_base)
{
    struct kvm_segment code = {.limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .db = 1, .g = 1};
    struct kvm_segment data = {.limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    struct kvm_sregs s;

    iso_must(anykvm_ioctl(g->vcpu, KVM_GET_SREGS, &s), "KVM_GET_SREGS");
    if (ring) {
        code.selector = 0x1b;
        data.selector = 0x23;
        code.dpl = data.dpl = 3;
    }
    s.cs = code;
    s.ds = s.es = s.fs = s.gs = s.ss = data;
    s.fs.base = fs_base;
    s.tr = (struct kvm_segment){.base = TSS_GPA, .limit = 0x67, .selector = 0x28, .type = 11, .present = 1};
    s.idt.base = IDT_GPA;
    s.idt.limit = 0xff;
    s.cr0 = 0x80010033;
    s.cr3 = PML4_GPA;
    s.efer = 0;
    registers(g, &s, ring ? 0x3002 : 2);
    return 0;
}

static uint32_t choose32(struct iso *g, struct rng *r, bool *bad)
{
    const uint64_t ram = (uint64_t)g->ram;
    const unsigned c = (unsigned)rnd_below(r, ncanaries);
    uint32_t gva = (uint32_t)((uint64_t)canaries[c].page - ram - (one_in(r, 2) ? WINDOW_GPA - WINDOW32 : 0));

    *bad = true;
    if (one_in(r, 3) || gva < 0x10000 || (gva & ~0xfffu) == WINDOW32) {
        gva = WINDOW32;
        *bad = false;
    }
    return gva + (uint32_t)rnd_below(r, 16) * 64;
}

static void check32(struct iso *g, uint64_t n, bool bad)
{
    for (unsigned v = 0; v < 32; v++)
        fuzz_check(iso_var(g, COUNTS)[v] == (v == 14 && bad ? n : 0), "%s: vector %u %llu times of %llu", g->what, v,
                   (unsigned long long)iso_var(g, COUNTS)[v], (unsigned long long)n);
    fuzz_check(*iso_var(g, VAR_OK) == (bad ? 0 : n), "%s: %llu of %llu accesses succeeded", g->what,
               (unsigned long long)*iso_var(g, VAR_OK), (unsigned long long)n);
}

static void protected_mode(struct iso *g, struct rng *r)
{
    const struct kind *k = &rnd_of(r, kinds32);
    const unsigned ring = one_in(r, 2) ? 3 : 0, c = (unsigned)rnd_below(r, ncanaries);
    const uint64_t stride = FUZZ_SANITIZED ? 4096 : one_in(r, 4) ? 1 : 256;
    const bool from_client = one_in(r, 2);
    /* a base of 64 bits: FS and GS take one at VM entry (SDM 3C, "Checks on Guest Segment Registers") */
    uint64_t fs_base = (uint64_t)canaries[c].page - (uint64_t)g->ram, n = 0x10000 / stride;
    bool bad;
    const uint32_t gva = choose32(g, r, &bad);

    if (one_in(r, 2))
        fs_base |= 0xffff800000000000;
    tables32(g);
    put_site(g, k, 32, LOOP_GVA + (uint32_t)(iso_ok32 - iso_loop32));
    *iso_var(g, VAR_END) = from_client ? 1 : 0x10000;
    *iso_var(g, VAR_STRIDE) = stride;
    *iso_var(g, VAR_BASE) = gva;
    *iso_var(g, VAR_LOAD) = !from_client;
    *iso_var(g, VAR_SEGBASE) = from_client ? (uint32_t)fs_base : rnd(r) & 0xffff;
    snprintf(g->what, sizeof(g->what), "protected mode, ring %u, %s of %#x, FS base %#llx", ring, k->name, gva,
             (unsigned long long)(from_client ? fs_base : 0));
    start32(g, ring, from_client ? (uint64_t)((int64_t)(fs_base << 16) >> 16) : 0);
    fuzz_check(iso_run(g, 0, 0, 0, NULL), "%s: exit %u", g->what, g->run->exit_reason);
    check32(g, from_client ? 1 : n, bad);
}

/* ---- real mode: offsets of 32 bits against limits of 64 KiB ---- */
static void real_mode(struct iso *g, struct rng *r)
{
    const struct kind *k = &rnd_of(r, kinds16);
    const uint64_t stride = FUZZ_SANITIZED ? 4096 : 1, n = 0x10000 / stride;
    struct kvm_sregs s;
    struct kvm_segment data = {.limit = 0xffff, .type = 3, .present = 1, .s = 1};
    uint32_t *ivt = (uint32_t *)g->ram;

    for (unsigned v = 0; v < 32; v++) { /* incl count; jmp next */
        const uint8_t stub[] = {0x66, 0xff, 0x06, (uint8_t)(COUNTS + v * 8), (COUNTS + v * 8) >> 8, 0xe9};
        uint8_t *at = g->ram + STUBS_GVA + v * 16;

        memcpy(at, stub, sizeof(stub));
        *(int16_t *)(at + 6) = (int16_t)(LOOP_GVA - (STUBS_GVA + v * 16 + 8));
        ivt[v] = STUBS_GVA + v * 16;
    }
    memcpy(g->ram + LOOP_GVA, iso_loop16, (size_t)(iso_loop16_end - iso_loop16));
    put_site(g, k, 16, LOOP_GVA + (uint32_t)(iso_ok16 - iso_loop16));
    *iso_var(g, VAR_END) = 0x10000;
    *iso_var(g, VAR_STRIDE) = stride;
    *iso_var(g, VAR_BASE) = SCRATCH_GVA + rnd_below(r, 0x100);
    snprintf(g->what, sizeof(g->what), "real mode, %s", k->name);
    iso_must(anykvm_ioctl(g->vcpu, KVM_GET_SREGS, &s), "KVM_GET_SREGS");
    s.ds = s.es = s.fs = s.gs = s.ss = s.cs = data;
    s.cs.type = 11;
    s.idt.base = 0;
    s.idt.limit = 0x3ff;
    s.cr0 = 0x12;
    registers(g, &s, 2);
    fuzz_check(iso_run(g, 0, 0, 0, NULL), "%s: exit %u", g->what, g->run->exit_reason);
    for (unsigned v = 0; v < 32; v++)
        fuzz_check(iso_var(g, COUNTS)[v] == (v == 13 ? n - 1 : 0), "%s: vector %u %llu times of %llu", g->what, v,
                   (unsigned long long)iso_var(g, COUNTS)[v], (unsigned long long)n);
    fuzz_check(*iso_var(g, VAR_OK) == 1, "%s: %llu accesses succeeded", g->what,
               (unsigned long long)*iso_var(g, VAR_OK));
}

void iso_legacy(uint64_t seed, struct rng *r)
{
    struct iso g;

    iso_create(&g);
    if (seed % 3)
        protected_mode(&g, r);
    else
        real_mode(&g, r);
    iso_check_canaries(&g);
    iso_destroy(&g);
}
