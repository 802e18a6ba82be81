/* SPDX-License-Identifier: MIT
 * fuzz_code.c: guests that execute random bytes, random instructions and mutated pieces of true code, in every mode and
 * ring. Their IDT catches each exception and goes on elsewhere with other registers. Whatever they do to their tables,
 * control registers and MSRs: KVM_RUN comes back in time, the process lives and does not grow. */
#include "fuzz_guest.h"
#include <link.h>

#define SLICE_US   10000 /* of one case */
#define CODE_SIZE  0x10000u
#define EXITS_MAX  400u
#define RESETS_MAX 12u

/* ---- instructions ---- */
static struct {
    const uint8_t *at;
    size_t size;
} texts[16];
static unsigned ntexts;

/* Executable segments of this process: true code of compilers and of hand-written vector routines */
static int find_text(struct dl_phdr_info *info, size_t size, void *data)
{
    for (unsigned i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];

        if (p->p_type == PT_LOAD && (p->p_flags & PF_X) && (p->p_flags & PF_R) && p->p_filesz > 4096 && ntexts < 16) {
            texts[ntexts].at = (const uint8_t *)(info->dlpi_addr + p->p_vaddr);
            texts[ntexts++].size = p->p_filesz;
        }
    }
    return 0;
}

static unsigned put_modrm(struct rng *r, uint8_t *p)
{
    const uint8_t modrm = (uint8_t)rnd(r);
    unsigned n = 0;

    p[n++] = modrm;
    if (modrm >> 6 == 3)
        return n;
    if ((modrm & 7) == 4)
        p[n++] = (uint8_t)rnd(r);
    if (modrm >> 6 == 1) {
        p[n++] = (uint8_t)rnd(r);
    } else if (modrm >> 6 == 2 || (modrm & 7) == 5) {
        const uint32_t disp = (uint32_t)(one_in(r, 3) ? rnd_value(r) : rnd_below(r, 0x4000));

        memcpy(p + n, &disp, 4);
        n += 4;
    }
    return n;
}

/* prefixes, REX, VEX or EVEX, a map, an opcode, ModRM, an immediate: each with a fair chance to be valid */
static unsigned put_structured(struct rng *r, uint8_t *p)
{
    static const uint8_t prefixes[] = {0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65};
    unsigned n = 0;

    while (one_in(r, 3) && n < 4)
        p[n++] = rnd_of(r, prefixes);
    switch (rnd_below(r, 8)) {
    case 0: /* VEX */
        p[n++] = 0xc4;
        p[n++] = (uint8_t)((rnd(r) & 0xe0) | (1 + rnd_below(r, 3)));
        p[n++] = (uint8_t)rnd(r);
        break;
    case 1:
        p[n++] = 0xc5;
        p[n++] = (uint8_t)rnd(r);
        break;
    case 2: /* EVEX */
        p[n++] = 0x62;
        p[n++] = (uint8_t)((rnd(r) & 0xf0) | (1 + rnd_below(r, 6)));
        p[n++] = (uint8_t)(rnd(r) | 4);
        p[n++] = (uint8_t)rnd(r);
        break;
    default:
        if (one_in(r, 2))
            p[n++] = (uint8_t)(0x40 | rnd_below(r, 16));
        if (one_in(r, 2)) {
            p[n++] = 0x0f;
            if (one_in(r, 4))
                p[n++] = one_in(r, 2) ? 0x38 : 0x3a;
        }
    }
    p[n++] = (uint8_t)rnd(r);
    n += put_modrm(r, p + n);
    for (unsigned imm = (unsigned)rnd_below(r, 5); imm; imm--)
        p[n++] = (uint8_t)(one_in(r, 2) ? 0 : rnd(r));
    return n;
}

/* System instructions whose random chance is small */
static unsigned put_system(struct rng *r, uint8_t *p)
{
    static const uint8_t some[][4] = {
        {0x0f, 0x22, 0xc0, 3}, {0x0f, 0x22, 0xd8, 3}, {0x0f, 0x22, 0xe0, 3}, {0x0f, 0x20, 0xc0, 3},
        {0x0f, 0x30, 0, 2},    {0x0f, 0x32, 0, 2},    {0x0f, 0x01, 0xd1, 3}, {0x0f, 0x01, 0xf8, 3},
        {0x0f, 0x01, 0xc1, 3}, {0x0f, 0x05, 0, 2},    {0x0f, 0x07, 0, 2},    {0x0f, 0x34, 0, 2},
        {0x0f, 0x35, 0, 2},    {0xcf, 0, 0, 1},       {0xcb, 0, 0, 1},       {0x9d, 0, 0, 1},
        {0x8e, 0xd0, 0, 2},    {0x8e, 0xd8, 0, 2},    {0x0f, 0x00, 0xd8, 3}, {0x0f, 0x00, 0xd0, 3},
        {0x0f, 0x01, 0x10, 3}, {0x0f, 0x01, 0x18, 3}, {0x0f, 0x01, 0x38, 3}, {0xf4, 0, 0, 1},
        {0xcc, 0, 0, 1},       {0xcd, 0x80, 0, 2},    {0xf1, 0, 0, 1},       {0x0f, 0xa2, 0, 2},
        {0x0f, 0x31, 0, 2},    {0xff, 0x28, 0, 2},    {0xff, 0x18, 0, 2},    {0x0f, 0x23, 0xf8, 3},
        {0x0f, 0x23, 0xc0, 3}, {0x0f, 0xae, 0x00, 3}, {0x0f, 0xae, 0x08, 3}, {0x0f, 0xae, 0x28, 3},
        {0x0f, 0xae, 0x20, 3}, {0x0f, 0xc7, 0x08, 3}, {0xf3, 0xa4, 0, 2},    {0xf3, 0xab, 0, 2},
        {0xf3, 0x6c, 0, 2},    {0xf3, 0x6e, 0, 2},    {0xec, 0, 0, 1},       {0xee, 0, 0, 1},
        {0xc8, 0x10, 0x1f, 4}, {0x0f, 0x01, 0xc4, 3}, {0x0f, 0x01, 0xca, 3}, {0x0f, 0x01, 0xcb, 3},
        {0xfb, 0, 0, 1},       {0xfa, 0, 0, 1},
    };
    const uint8_t *s = rnd_of(r, some);

    memcpy(p, s, 3);
    return s[3] > 3 ? 3 : s[3];
}

/* At most 32 bytes */
static unsigned put_insn(struct rng *r, uint8_t *p)
{
    unsigned n;

    switch (rnd_below(r, 10)) {
    case 0:
        n = 1 + (unsigned)rnd_below(r, 12);
        rnd_bytes(r, p, n);
        return n;
    case 1:
        return put_system(r, p);
    case 2:
    case 3:
    case 4: {
        const unsigned t = (unsigned)rnd_below(r, ntexts);

        n = 4 + (unsigned)rnd_below(r, 28);
        memcpy(p, texts[t].at + rnd_below(r, texts[t].size - 64), n);
        if (one_in(r, 2))
            p[rnd_below(r, n)] ^= (uint8_t)(1u << rnd_below(r, 8));
        return n;
    }
    default:
        return put_structured(r, p);
    }
}

static void fill_code(struct rng *r, uint8_t *code, size_t size)
{
    size_t n = 0;

    while (n + 40 < size)
        n += put_insn(r, code + n);
    rnd_bytes(r, code + n, size - n);
}

/* ---- a case ---- */
static uint64_t exits[64], caught, resets, slices;

static void reset(struct guest *g, struct rng *r)
{
    fill_code(r, g->ram + G_CODE, CODE_SIZE);
    guest_tables(g, r);
    guest_registers(g, r);
}

/* The guest may have written over its counter. */
static void count_caught(const struct guest *g)
{
    const uint32_t n = *(uint32_t *)(g->ram + G_COUNTER);

    caught += n < 100000 ? n : 0;
}

/* What a client does between two runs */
static void meddle(struct guest *g, struct rng *r)
{
    struct kvm_interrupt irq = {.irq = (uint32_t)rnd_below(r, 256)};
    struct kvm_regs regs;
    struct kvm_vcpu_events events;

    switch (rnd_below(r, 8)) {
    case 0:
        anykvm_ioctl(g->vcpu, KVM_INTERRUPT, &irq);
        break;
    case 1:
        anykvm_ioctl(g->vcpu, KVM_NMI, 0);
        break;
    case 2: /* a debugger's breakpoint, or DMA into code */
        fill_code(r, g->ram + G_CODE + (rnd(r) & 0xf000), 0x1000);
        anykvm_ioctl(g->vcpu, KVM_GET_REGS, &regs);
        anykvm_ioctl(g->vcpu, KVM_SET_REGS, &regs);
        break;
    case 3: {
        struct kvm_guest_debug d = {.control = (uint32_t)(rnd(r) & 0x30003)};

        anykvm_ioctl(g->vcpu, KVM_SET_GUEST_DEBUG, &d);
        break;
    }
    case 4:
        anykvm_ioctl(g->vcpu, KVM_GET_VCPU_EVENTS, &events);
        events.exception.injected = one_in(r, 2);
        events.exception.nr = (uint8_t)rnd_below(r, 32);
        anykvm_ioctl(g->vcpu, KVM_SET_VCPU_EVENTS, &events);
        break;
    case 5:
        guest_slot(g, one_in(r, 2) ? KVM_MEM_LOG_DIRTY_PAGES : 0);
        break;
    case 6:
        guest_hostile_sregs(g, r);
        break;
    default:
        anykvm_ioctl(g->vcpu, KVM_GET_REGS, &regs);
        regs.rip = rnd_value(r);
        anykvm_ioctl(g->vcpu, KVM_SET_REGS, &regs);
    }
}

/* false: this guest is at its end */
static bool handle_exit(struct guest *g, struct rng *r)
{
    struct kvm_run *run = g->run;

    exits[run->exit_reason < 64 ? run->exit_reason : 0]++;
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        if (run->io.direction == KVM_EXIT_IO_IN)
            rnd_bytes(r, (uint8_t *)run + run->io.data_offset, (size_t)run->io.size * run->io.count);
        return true;
    case KVM_EXIT_MMIO:
        fuzz_check(run->mmio.len <= 8, "MMIO of %u bytes", run->mmio.len);
        if (!run->mmio.is_write)
            rnd_bytes(r, run->mmio.data, run->mmio.len);
        return true;
    case KVM_EXIT_HLT:
    case KVM_EXIT_DEBUG:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_SET_TPR:
    case KVM_EXIT_INTR:
    case KVM_EXIT_HYPERCALL:
        return true;
    case KVM_EXIT_SHUTDOWN:
    case KVM_EXIT_FAIL_ENTRY:
    case KVM_EXIT_INTERNAL_ERROR:
        count_caught(g);
        reset(g, r);
        return ++resets, true;
    }
    fuzz_fail("exit %u is unknown", run->exit_reason);
}

static void one(uint64_t seed)
{
    struct rng r = {seed * 0x2545f4914f6cdd1dull};
    struct guest g;
    unsigned n, before = (unsigned)resets;

    guest_create(&g, &r);
    reset(&g, &r);
    fuzz_alarm(g.run, SLICE_US);
    for (n = 0; n < EXITS_MAX && resets - before < RESETS_MAX && !fuzz_alarm_rang; n++) {
        const uint64_t start = fuzz_now_ns();
        const int ret = anykvm_ioctl(g.vcpu, KVM_RUN, 0);
        const int e = errno;

        fuzz_check(fuzz_now_ns() - start < 5000000000ull, "KVM_RUN for %llu ms",
                   (unsigned long long)(fuzz_now_ns() - start) / 1000000);
        if (ret < 0) {
            fuzz_check(e == EINTR || e == EFAULT || e == EINVAL || e == EAGAIN, "KVM_RUN: %s", strerror(e));
            if (e == EINTR)
                continue;
            reset(&g, &r);
            resets++;
            continue;
        }
        if (!handle_exit(&g, &r))
            break;
        if (one_in(&r, 8))
            meddle(&g, &r);
    }
    fuzz_alarm_off();
    slices++;
    count_caught(&g);
    guest_destroy(&g);
}

static void report(void)
{
    printf("fuzz_code: %llu exceptions caught by guests, %llu resets; exits:", (unsigned long long)caught,
           (unsigned long long)resets);
    for (unsigned i = 0; i < 64; i++)
        if (exits[i])
            printf(" %u:%llu", i, (unsigned long long)exits[i]);
    printf("\n");
    fuzz_check(caught > slices * 5, "guests that run catch exceptions: %llu in %llu cases", (unsigned long long)caught,
               (unsigned long long)slices);
}

int main(int argc, char **argv)
{
    static const struct fuzzer fuzzer = {
        .name = "fuzz_code", .seconds = 5, .case_seconds = 10, .one = one, .report = report};

    dl_iterate_phdr(find_text, NULL);
    return fuzz_main(&fuzzer, argc, argv);
}
