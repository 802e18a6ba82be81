/* SPDX-License-Identifier: MIT
 * fuzz_isolation.c: a guest that computes addresses which a careless translation would turn into the monitor's memory.
 *
 * Canary pages lie before and behind guest RAM, 4 GiB away from it, low and high in the process. For a host page C and
 * a distance D = host address - guest address that is in use, the guest tries ((C - D) modulo 2^48) under each of the
 * 2^16 upper parts, with every kind of access, cold and after a good access at the same site. The guest counts the
 * outcomes: one part is canonical and faults as not present, all others are #GP or #SS, and no access succeeds. Then
 * canaries and guest memory are looked through. Legacy modes: the 32-bit wrap of base + offset, limits, and bases that
 * only KVM_SET_SREGS can load. Physical addresses: page tables that point where the host's memory would be. */
#include "fuzz_isolation.h"

/* ---- 64-bit mode ---- */
__asm__(
    ".pushsection .rodata\n.globl iso_loop, iso_loop_end\niso_loop:\n"
    "next: mov " STR(VAR_TOP) ", %rax; cmp " STR(
        VAR_END) ", %rax; jae finished\n"
                 "mov %rax, %rcx; add " STR(VAR_STRIDE) ", %rcx; mov %rcx, " STR(
                     VAR_TOP) "\n"
                              "shl $48, %rax; or " STR(VAR_BASE) ", %rax; mov %rax, " STR(
                                  VAR_HOSTILE) "\n"
                                               "cmpl $0, " STR(
                                                   VAR_HOT) "; je cold\n"
                                                            "movl $1, " STR(VAR_WARM) "; mov " STR(
                                                                VAR_LEGIT) ", %rbx; jmp access\n"
                                                                           "cold: movl $0, " STR(VAR_WARM) "; mov " STR(
                                                                               VAR_HOSTILE) ", %rbx\n"
                                                                                            "access: sub " STR(VAR_SEGBASE) ", %rbx; mov $" STR(STACK_GVA) ", %esp; mov $" STR(
                                                                                                SITE_GVA) ", %eax; jmp "
                                                                                                          "*%rax\n"
                                                                                                          "ok: mov "
                                                                                                          "$" STR(STACK_GVA) ", %esp; mov %rax, " STR(VAR_RESULT) "; cmpl $0, " STR(
                                                                                                              VAR_WARM) "; jne cold\n"
                                                                                                                        "incq " STR(
                                                                                                                            VAR_OK) "; jmp next\n"
                                                                                                                                    "finished: out %al, $0x10; jmp finished\n"
                                                                                                                                    /* vector and error code are on the stack; IST, so the stack is a good one whatever RSP was */
                                                                                                                                    ".globl iso_common\niso_common: push %rax; mov 8(%rsp), %rax\n"
                                                                                                                                    "cmpl $0, " STR(
                                                                                                                                        VAR_WARM) "; jne 1f\n"
                                                                                                                                                  "incq " STR(COUNTS) "(,%rax,8); movq $next - iso_loop + " STR(
                                                                                                                                                      LOOP_GVA) ", 24(%rsp); jmp 2f\n"
                                                                                                                                                                "1: incq " STR(VAR_WARM_FAULTS) "; movq $cold - iso_loop + " STR(
                                                                                                                                                                    LOOP_GVA) ", 24(%rsp)\n"
                                                                                                                                                                              "2: andl $0xfffbfbff, 40(%rsp); movq $" STR(
                                                                                                                                                                                  STACK_GVA) ", 48(%rsp); pop %rax; add $16, %rsp; iretq\n"
                                                                                                                                                                                             "iso_loop_end:\n.globl iso_ok\niso_ok = ok\n.popsection\n");
extern const uint8_t iso_loop[], iso_loop_end[], iso_common[], iso_ok[];

static uint32_t ok_gva(void)
{
    return LOOP_GVA + (uint32_t)(iso_ok - iso_loop);
}

/* A way to touch memory at RBX. size 0: a jump there. */
enum { STACK_FAULT = 1, SEGMENT_BASE = 2, ALIGNED = 4 };
struct kind {
    const char *name;
    const uint8_t *code, *end;
    unsigned size, flags;
};
#define KIND(id, text)                                                                            \
    extern const uint8_t k_##id[], k_##id##_end[];                                                \
    __asm__(".pushsection .rodata\n.globl k_" #id ", k_" #id "_end\nk_" #id ":\n" text "\nk_" #id \
            "_end:\n.popsection\n")
#define GOOD STR(SCRATCH_GVA)
KIND(read8, "mov (%rbx), %al");
KIND(read16, "mov (%rbx), %ax");
KIND(read32, "mov (%rbx), %eax");
KIND(read64, "mov (%rbx), %rax");
KIND(read_index, "xor %ecx, %ecx; mov (%rcx,%rbx,1), %rax");
KIND(read_moved, "lea -0x7f0000(%rbx), %rdx; mov 0x7f0000(%rdx), %rax");
KIND(read_rbp, "mov %rbx, %rbp; mov (%rbp), %rax");
KIND(read_fs, "mov %fs:(%rbx), %rax");
KIND(read_gs, "mov %gs:(%rbx), %rax");
KIND(movzx, "movzbl (%rbx), %eax");
KIND(write8, "mov %al, (%rbx)");
KIND(write32, "movl $0x1234567, (%rbx)");
KIND(write64, "mov %rcx, (%rbx)");
KIND(write_gs, "mov %rcx, %gs:(%rbx)");
KIND(add, "add %ecx, (%rbx)");
KIND(lock_xadd, "lock xadd %rcx, (%rbx)");
KIND(xchg, "xchg %rcx, (%rbx)");
KIND(cmpxchg16b, "lock cmpxchg16b (%rbx)");
KIND(bts, "lock btsq $3, (%rbx)");
KIND(bt_far, "lea -0x1000(%rbx), %rdx; mov $0x8000, %ecx; bt %rcx, (%rdx)");
KIND(push, "lea 8(%rbx), %rsp; push %rax");
KIND(pop, "mov %rbx, %rsp; pop %rcx");
KIND(pop_mem, "popq (%rbx)");
KIND(push_mem, "pushq (%rbx)");
KIND(movs_from, "mov %rbx, %rsi; mov $" GOOD ", %edi; mov $16, %ecx; rep movsb");
KIND(movs_to, "mov %rbx, %rdi; mov $" GOOD ", %esi; mov $2, %ecx; rep movsq");
KIND(stos, "mov %rbx, %rdi; mov $16, %ecx; rep stosb");
KIND(lods, "mov %rbx, %rsi; lodsq");
KIND(cmps, "mov %rbx, %rsi; mov $" GOOD ", %edi; cmpsq");
KIND(movups, "movups (%rbx), %xmm0; movq %xmm0, %rax");
KIND(movaps_to, "movaps %xmm0, (%rbx)");
KIND(paddd, "paddd (%rbx), %xmm0; movq %xmm0, %rax");
KIND(vmovdqu, "vmovdqu (%rbx), %ymm0; vmovq %xmm0, %rax");
KIND(vmovdqu_to, "vmovdqu %ymm0, (%rbx)");
KIND(gather, "vpcmpeqd %xmm1, %xmm1, %xmm1; vpxor %xmm2, %xmm2, %xmm2; vpgatherqq %xmm1, (%rbx,%xmm2,1), %xmm0; vmovq "
             "%xmm0, %rax");
KIND(fld, "fninit; fldl (%rbx)");
KIND(fstp, "fninit; fld1; fstpl (%rbx)");
KIND(fxsave, "and $-64, %rbx; fxsave64 (%rbx)");
KIND(jump, "add $" STR(EXEC_OFFSET) ", %rbx; jmp *%rbx");
KIND(call_mem, "call *(%rbx)");
#define K(id, size, flags)                     \
    {                                          \
#id, k_##id, k_##id##_end, size, flags \
    }
static const struct kind kinds[] = {
    K(read8, 1, 0),
    K(read16, 2, 0),
    K(read32, 4, 0),
    K(read64, 8, 0),
    K(read_index, 8, 0),
    K(read_moved, 8, 0),
    K(read_rbp, 8, STACK_FAULT),
    K(read_fs, 8, SEGMENT_BASE),
    K(read_gs, 8, SEGMENT_BASE),
    K(movzx, 1, 0),
    K(write8, 1, 0),
    K(write32, 4, 0),
    K(write64, 8, 0),
    K(write_gs, 8, SEGMENT_BASE),
    K(add, 4, 0),
    K(lock_xadd, 8, 0),
    K(xchg, 8, 0),
    K(cmpxchg16b, 16, ALIGNED),
    K(bts, 8, 0),
    K(bt_far, 8, 0),
    K(push, 8, STACK_FAULT),
    K(pop, 8, STACK_FAULT),
    K(pop_mem, 8, 0),
    K(push_mem, 8, 0),
    K(movs_from, 16, 0),
    K(movs_to, 16, 0),
    K(stos, 16, 0),
    K(lods, 8, 0),
    K(cmps, 8, 0),
    K(movups, 16, 0),
    K(movaps_to, 16, ALIGNED),
    K(paddd, 16, ALIGNED),
    K(vmovdqu, 32, 0),
    K(vmovdqu_to, 32, 0),
    K(gather, 8, 0),
    K(fld, 8, 0),
    K(fstp, 8, 0),
    K(fxsave, 512, ALIGNED),
    K(jump, 0, 0),
    K(call_mem, 8, 0),
};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static void map_page(struct iso *g, uint64_t gva, uint64_t gpa, unsigned table)
{
    uint64_t *pml4 = (uint64_t *)(g->ram + PML4_GPA), *pdpt = (uint64_t *)(g->ram + table), *pd = pdpt + 512,
             *pt = pd + 512;

    pml4[gva >> 39 & 511] = table | 7;
    pdpt[gva >> 30 & 511] = (table + 0x1000) | 7;
    pd[gva >> 21 & 511] = (table + 0x2000) | 7;
    pt[gva >> 12 & 511] = gpa | 7;
}

/* One to one for the first 2 MiB; the window's page at two other addresses with nothing beside them. The page behind it
 * and the one before are the guest's, but not mapped. */
static void tables64(struct iso *g)
{
    static const uint64_t gdt[] = {0,
                                   0x00af9b000000ffff,
                                   0x00cf93000000ffff,
                                   0x00cff3000000ffff,
                                   0x00affb000000ffff,
                                   0x00008b0000000067 | (uint64_t)TSS_GPA << 16,
                                   0};
    uint64_t *pml4 = (uint64_t *)(g->ram + PML4_GPA), *idt = (uint64_t *)(g->ram + IDT_GPA);
    uint8_t *stub = g->ram + STUBS_GVA;

    pml4[0] = 0x2000 | 7;
    *(uint64_t *)(g->ram + 0x2000) = 0x3000 | 7;
    *(uint64_t *)(g->ram + 0x3000) = 0x87;
    map_page(g, WINDOW_LOW, WINDOW_GPA, 0x200000);
    map_page(g, WINDOW_HIGH, WINDOW_GPA, 0x210000);
    memcpy(g->ram + GDT_GPA, gdt, sizeof(gdt));
    *(uint64_t *)(g->ram + TSS_GPA + 36) = IST_GVA;
    memcpy(g->ram + LOOP_GVA, iso_loop, (size_t)(iso_loop_end - iso_loop));
    for (unsigned v = 0; v < 32; v++, stub += 16) {
        const bool has_error = 0x40227d00u >> v & 1;
        unsigned n = 0;

        if (!has_error)
            stub[n++] = 0x6a, stub[n++] = 0;
        stub[n++] = 0x6a;
        stub[n++] = (uint8_t)v;
        stub[n++] = 0xe9;
        *(int32_t *)(stub + n) = (int32_t)(LOOP_GVA + (iso_common - iso_loop) - (STUBS_GVA + v * 16 + n + 4));
        idt[2 * v] = (uint64_t)(STUBS_GVA + v * 16) | 8ull << 16 | 0xee01ull << 32;
        idt[2 * v + 1] = 0;
    }
    for (unsigned i = 0; i < 2; i++) /* both addresses that choose() tries */
        iso_put_return(g->ram + WINDOW_GPA + EXEC_OFFSET + 0x40 * i, ok_gva());
    for (unsigned i = 0; i < EXEC_OFFSET; i += 8) /* call through it comes back too */
        *(uint64_t *)(g->ram + WINDOW_GPA + i) = ok_gva();
}

static void start64(struct iso *g, unsigned ring, uint64_t segment_base)
{
    struct kvm_regs regs = {.rip = LOOP_GVA, .rsp = STACK_GVA, .rflags = ring ? 0x3002 : 2};
    struct kvm_segment code = {.limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    struct kvm_segment data = {.limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    struct kvm_sregs s;

    iso_must(anykvm_ioctl(g->vcpu, KVM_GET_SREGS, &s), "KVM_GET_SREGS");
    if (ring) {
        code.selector = 0x23;
        data.selector = 0x1b;
        code.dpl = data.dpl = 3;
    }
    s.cs = code;
    s.ds = s.es = s.fs = s.gs = s.ss = data;
    s.fs.base = s.gs.base = segment_base;
    s.tr = (struct kvm_segment){.base = TSS_GPA, .limit = 0x67, .selector = 0x28, .type = 11, .present = 1};
    s.gdt.base = GDT_GPA;
    s.gdt.limit = 0x3f;
    s.idt.base = IDT_GPA;
    s.idt.limit = 0xfff;
    s.cr0 = 0x80010033;
    s.cr3 = PML4_GPA;
    s.cr4 = 0x40620;
    s.efer = 0x500;
    iso_must(anykvm_ioctl(g->vcpu, KVM_SET_SREGS, &s), "KVM_SET_SREGS");
    iso_must(anykvm_ioctl(g->vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

static void put_site(struct iso *g, const struct kind *k)
{
    const size_t n = (size_t)(k->end - k->code);
    uint8_t *site = g->ram + SITE_GVA;

    memcpy(site, k->code, n);
    site[n] = 0xe9;
    *(int32_t *)(site + n + 1) = (int32_t)(ok_gva() - (SITE_GVA + (uint32_t)n + 5));
}

#define LOW48 ((1ull << 48) - 1)

/* An address of 48 bits to try. *bad: nothing is mapped there. */
static uint64_t choose(struct iso *g, struct rng *r, const struct kind *k, bool *bad)
{
    const uint64_t ram = (uint64_t)g->ram, window = one_in(r, 2) ? WINDOW_LOW : WINDOW_HIGH & LOW48;
    const uint64_t deltas[] = {0, ram, ram + WINDOW_GPA - WINDOW_LOW, ram + WINDOW_GPA - WINDOW_HIGH};
    const unsigned how = (unsigned)rnd_below(r, 6), c = (unsigned)rnd_below(r, ncanaries);
    uint64_t gva = 0;

    *bad = how != 0;
    if (how == 0) {
        snprintf(g->what, sizeof(g->what), "%s of mapped memory", k->name);
        return window + rnd_below(r, 2) * 0x40;
    }
    if (how == 1 && k->size > 1 && !(k->flags & ALIGNED)) { /* over the page's end: nothing is mapped behind it */
        snprintf(g->what, sizeof(g->what), "%s over a page's end", k->name);
        return window + 4096 - 1 - rnd_below(r, k->size - 1);
    }
    for (unsigned d = (unsigned)rnd_below(r, 4), n = 0; n < 4; n++) {
        gva = ((uint64_t)canaries[c].page - deltas[(d + n) % 4]) & LOW48;
        if (gva >= RAM_SIZE)
            break;
    }
    snprintf(g->what, sizeof(g->what), "%s aimed at canary %s by %#llx", k->name, canaries[c].name,
             (unsigned long long)gva);
    if ((gva & ~0xfffull) == WINDOW_LOW || (gva & ~0xfffull) == (WINDOW_HIGH & LOW48))
        *bad = false;
    return gva + rnd_below(r, 2) * 0x40;
}

static void check_counts(const struct iso *g, const struct kind *k, uint64_t gva48, bool bad, uint64_t n, bool hot)
{
    const uint64_t top = gva48 >> 47 ? 0xffff : 0, stride = *iso_var(g, VAR_STRIDE);
    const uint64_t canonical = top % stride == 0, ok = bad ? 0 : canonical;
    const unsigned other = k->flags & STACK_FAULT ? 12 : 13;

    for (unsigned v = 0; v < 32; v++) {
        const uint64_t want = v == other ? n - canonical : v == 14 ? canonical - ok : 0, is = iso_var(g, COUNTS)[v];

        fuzz_check(is == want, "%s (stride %u%s): vector %u %llu times, not %llu", g->what, (unsigned)stride,
                   hot ? ", hot" : "", v, (unsigned long long)is, (unsigned long long)want);
    }
    fuzz_check(*iso_var(g, VAR_OK) == ok, "%s: %llu accesses succeeded, not %llu", g->what,
               (unsigned long long)*iso_var(g, VAR_OK), (unsigned long long)ok);
    fuzz_check(*iso_var(g, VAR_WARM_FAULTS) == 0, "%s: %llu faults of good accesses", g->what,
               (unsigned long long)*iso_var(g, VAR_WARM_FAULTS));
}

/* All 2^16 upper parts of one address */
static void tops(struct iso *g, struct rng *r, const struct kind *k)
{
    const bool hot = one_in(r, 2);
    const unsigned ring = one_in(r, 2) ? 3 : 0;
    const uint64_t segment_base = k->flags & SEGMENT_BASE ? (uint64_t)((int64_t)(rnd(r) << 16) >> 16) : 0;
    uint64_t stride = FUZZ_SANITIZED ? 0xffff / 15 : 1, n, gva48;
    bool bad;

    gva48 = choose(g, r, k, &bad);
    n = (0x10000 + stride - 1) / stride;
    *iso_var(g, VAR_END) = 0x10000;
    *iso_var(g, VAR_STRIDE) = stride;
    *iso_var(g, VAR_BASE) = gva48;
    *iso_var(g, VAR_LEGIT) = one_in(r, 2) ? WINDOW_LOW : WINDOW_HIGH;
    *iso_var(g, VAR_HOT) = hot;
    *iso_var(g, VAR_SEGBASE) = segment_base;
    start64(g, ring, segment_base);
    fuzz_check(iso_run(g, 0, 0, 0, NULL), "%s, ring %u: exit %u", g->what, ring, g->run->exit_reason);
    check_counts(g, k, gva48, bad, n, hot);
}

/* A page table that points where no slot is: a device's access, whatever lies there in the host. */
static void physical(struct iso *g, struct rng *r, const struct kind *k)
{
    const unsigned c = (unsigned)rnd_below(r, ncanaries);
    const uint64_t ram = (uint64_t)g->ram, page = (uint64_t)canaries[c].page;
    const uint64_t choices[] = {RAM_SIZE, page - ram, page, 1ull << (22 + rnd_below(r, 30)), (page - ram) & 0xffffffff};
    const uint64_t gpa = rnd_of(r, choices) & 0xffffffffff000, gva = WINDOW_LOW + 0x2000;
    unsigned mmio = 0;
    bool finished;

    if (gpa < RAM_SIZE || (gpa & ~0xfffull) == 0xfee00000)
        return;
    snprintf(g->what, sizeof(g->what), "%s of physical %#llx, canary %s", k->name, (unsigned long long)gpa,
             canaries[c].name);
    map_page(g, gva, gpa, 0x200000);
    *iso_var(g, VAR_END) = 1;
    *iso_var(g, VAR_STRIDE) = 1;
    *iso_var(g, VAR_BASE) = gva;
    start64(g, 0, 0);
    finished = iso_run(g, ok_gva(), gpa, 4096, &mmio);
    if (!finished) /* code or a wide locked access there: KVM does not emulate it */
        fuzz_check(g->run->exit_reason == KVM_EXIT_INTERNAL_ERROR, "%s: exit %u", g->what, g->run->exit_reason);
    else if (*iso_var(g, VAR_OK))
        fuzz_check(mmio > 0, "%s: succeeded without an exit", g->what);
    else
        fuzz_check(iso_var(g, COUNTS)[14] + iso_var(g, COUNTS)[6] == 1, "%s: neither done nor a fault", g->what);
}

/* The paging structures themselves lie where no slot is. */
static void structures(struct iso *g, struct rng *r, const struct kind *k)
{
    const unsigned c = (unsigned)rnd_below(r, ncanaries), level = (unsigned)rnd_below(r, 3);
    const uint64_t ram = (uint64_t)g->ram, page = (uint64_t)canaries[c].page;
    const uint64_t gpa = (one_in(r, 2) ? page - ram : page) & 0xffffffffff000;
    unsigned mmio = 0;

    snprintf(g->what, sizeof(g->what), "%s through a table at physical %#llx", k->name, (unsigned long long)gpa);
    if (gpa < RAM_SIZE)
        return;
    if (level == 0)
        iso_var(g, PML4_GPA)[WINDOW_LOW >> 39 & 511] = gpa | 7;
    else if (level == 1)
        iso_var(g, 0x200000)[WINDOW_LOW >> 30 & 511] = gpa | 7;
    else
        iso_var(g, 0x201000)[WINDOW_LOW >> 21 & 511] = gpa | 7;
    *iso_var(g, VAR_END) = 1;
    *iso_var(g, VAR_STRIDE) = 1;
    *iso_var(g, VAR_BASE) = WINDOW_LOW;
    start64(g, 0, 0);
    iso_run(g, 0, 0, ~0ull, &mmio);
    fuzz_check(*iso_var(g, VAR_OK) == 0 || mmio, "%s: succeeded", g->what);
}

static void one(uint64_t seed)
{
    struct rng r = {seed * 0x2545f4914f6cdd1dull};
    const struct kind *k = &kinds[seed % KINDS];
    struct iso g;

    static void (*const tests[])(struct iso *, struct rng *, const struct kind *) = {tops, physical, structures};
    for (unsigned i = 0; i < 3; i++) {
        iso_create(&g);
        tables64(&g);
        put_site(&g, k);
        tests[i](&g, &r, k);
        iso_check_canaries(&g);
        iso_destroy(&g);
    }
    iso_legacy(seed, &r);
}

int main(int argc, char **argv)
{
    static const struct fuzzer fuzzer = {
        .name = "fuzz_isolation", .seconds = 10, .count = KINDS, .case_seconds = 60, .one = one};

    return fuzz_main(&fuzzer, argc, argv);
}
