/* SPDX-License-Identifier: MIT
 * fuzz_engines.c: the same guest of random 64-bit code in ring 3 under the interpreter and the translator: at each exit
 * both have the same reason, registers, vector state and memory. A guest that loops forever is given up. Code is
 * read-only: when a rep instruction that writes over itself ends is the processor's own affair. */
#include "fuzz_guest.h"

#define CODE_SIZE 0x10000u
#define EXITS     24u
#define SLICE_US  60000
static const char *const engines[2] = {"interp", "jit"};
static uint64_t compared, given_up;
static bool two = true;

/* What answers differently each time: RDRAND, RDSEED, RDPID's kin do not fault in ring 3. */
static void scrub(uint8_t *code)
{
    for (unsigned i = 0; i + 2 < CODE_SIZE; i++)
        if (code[i] == 0x0f && code[i + 1] == 0xc7 && code[i + 2] >= 0xf0)
            code[i + 1] = 0xaf;
}

static void protect_code(struct guest *g)
{
    uint64_t *pd = (uint64_t *)(g->ram + G_TABLES + 0x2000), *pt = pd + 512;

    for (uint64_t i = 0; i < 512; i++)
        pt[i] = i << 12 | (i << 12 >= G_CODE && i << 12 < G_CODE + CODE_SIZE ? 5 : 7);
    pd[0] = (G_TABLES + 0x3000) | 7;
}

static bool create(struct guest *g, uint64_t seed, unsigned engine)
{
    struct rng r = {seed * 0x2545f4914f6cdd1dull};
    struct kvm_sregs s;
    char param[32];

    snprintf(param, sizeof(param), "engine=%s", engines[engine]);
    if (anykvm_set_params(param, NULL))
        return false;
    guest_create_mode(g, &r, GUEST_LONG_RING3);
    fuzz_fill_code(&r, g->ram + G_CODE, CODE_SIZE);
    scrub(g->ram + G_CODE);
    guest_tables(g, &r);
    protect_code(g);
    *(uint64_t *)(g->ram + G_FRAME + 16) = 2; /* no I/O from ring 3 */
    if (getenv("FUZZ_FINE")) {                /* an exit at each exception: test $63, %al -> test $0, %al */
        uint8_t *at = memmem(g->ram + G_HANDLER, 64, "\xa8\x3f", 2);

        if (at)
            at[1] = 0;
    }
    guest_registers(g, &r);
    if (anykvm_ioctl(g->vcpu, KVM_GET_SREGS, &s) < 0)
        fuzz_fail("KVM_GET_SREGS: %s", strerror(errno));
    s.cr4 |= 4;                                       /* TSD */
    if (anykvm_ioctl(g->vcpu, KVM_SET_SREGS, &s) < 0) /* a CPUID with fewer address bits than the APIC's base has */
        fuzz_check(errno == EINVAL, "KVM_SET_SREGS: %s", strerror(errno));
    return true;
}

/* false: it does not come to an exit in time */
static bool run(struct guest *g)
{
    int ret;

    fuzz_alarm(g->run, SLICE_US);
    ret = anykvm_ioctl(g->vcpu, KVM_RUN, 0);
    fuzz_alarm_off();
    return ret == 0 && !fuzz_alarm_rang;
}

static void answer(struct guest *g)
{
    struct kvm_run *run = g->run;
    struct rng r = {run->mmio.phys_addr};

    if (run->exit_reason == KVM_EXIT_MMIO && !run->mmio.is_write)
        rnd_bytes(&r, run->mmio.data, run->mmio.len);
}

static void show_bytes(const struct guest *g, const char *what, uint64_t rip)
{
    fprintf(stderr, "%s %#llx:", what, (unsigned long long)rip);
    for (uint64_t i = rip - 48; i < rip + 16 && rip > 48 && rip + 16 < G_RAM; i++)
        fprintf(stderr, "%s%02x", i == rip ? " | " : " ", g->ram[i]);
    fprintf(stderr, "\n");
}

/* Where the handler went before the exception that led here */
static void show_start(const struct guest *g)
{
    const uint32_t n = *(uint32_t *)(g->ram + G_COUNTER) - 1;

    show_bytes(g, "it began at", G_CODE + (n * 0x9e3779b1u >> 16));
}

static void compare_regs(struct guest *a, struct guest *b, unsigned n)
{
    static const char *const names[] = {"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8",
                                        "r9",  "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"};
    struct kvm_regs ra, rb;
    uint64_t *x = (uint64_t *)&ra, *y = (uint64_t *)&rb;

    anykvm_ioctl(a->vcpu, KVM_GET_REGS, &ra);
    anykvm_ioctl(b->vcpu, KVM_GET_REGS, &rb);
    if (memcmp(&ra, &rb, sizeof(ra)) == 0)
        return;
    for (unsigned i = 0; i < 18; i++)
        fprintf(stderr, "%-6s %016llx %016llx%s\n", names[i], (unsigned long long)x[i], (unsigned long long)y[i],
                x[i] == y[i] ? "" : " *");
    show_bytes(a, "now at", ra.rip);
    show_bytes(a, "last fault at", *(uint64_t *)(a->ram + G_STACK0 - 40)), show_start(a);
    fuzz_fail("exit %u, reason %u: registers differ (counter %u)", n, a->run->exit_reason,
              *(uint32_t *)(a->ram + G_COUNTER));
}

static void compare(struct guest *a, struct guest *b, unsigned n)
{
    static struct kvm_xsave xa, xb;
    struct kvm_sregs sa, sb;

    fuzz_check(a->run->exit_reason == b->run->exit_reason, "exit %u: reasons %u and %u (counters %u, %u)", n,
               a->run->exit_reason, b->run->exit_reason, *(uint32_t *)(a->ram + G_COUNTER),
               *(uint32_t *)(b->ram + G_COUNTER));
    compare_regs(a, b, n);
    if (a->run->exit_reason == KVM_EXIT_MMIO)
        fuzz_check(memcmp(&a->run->mmio, &b->run->mmio, sizeof(a->run->mmio)) == 0, "exit %u: MMIO differs", n);
    anykvm_ioctl(a->vcpu, KVM_GET_SREGS, &sa);
    anykvm_ioctl(b->vcpu, KVM_GET_SREGS, &sb);
    if (memcmp(&sa, &sb, sizeof(sa))) {
        fprintf(stderr, "CR2 %#llx %#llx\n", (unsigned long long)sa.cr2, (unsigned long long)sb.cr2);
        show_bytes(a, "last fault at", *(uint64_t *)(a->ram + G_STACK0 - 40)), show_start(a);
    }
    for (unsigned i = 0; i < sizeof(sa); i++)
        fuzz_check(((uint8_t *)&sa)[i] == ((uint8_t *)&sb)[i], "exit %u: byte %u of kvm_sregs differs", n, i);
    for (unsigned i = 0; i < G_RAM; i += 8) {
        if (*(uint64_t *)(a->ram + i) != *(uint64_t *)(b->ram + i))
            show_bytes(a, "last fault at", *(uint64_t *)(a->ram + G_STACK0 - 40)), show_start(a);
        fuzz_check(*(uint64_t *)(a->ram + i) == *(uint64_t *)(b->ram + i), "exit %u: memory differs at %#x: %llx, %llx",
                   n, i, *(unsigned long long *)(a->ram + i), *(unsigned long long *)(b->ram + i));
    }
    anykvm_ioctl(a->vcpu, KVM_GET_XSAVE, &xa);
    anykvm_ioctl(b->vcpu, KVM_GET_XSAVE, &xb);
    for (unsigned i = 0; i < sizeof(xa); i++)
        if (i / 8 != 64) /* XSTATE_BV: what is initial may be shown as in use */
            fuzz_check(((uint8_t *)&xa)[i] == ((uint8_t *)&xb)[i], "exit %u: byte %u of the XSAVE area: %02x, %02x", n,
                       i, ((uint8_t *)&xa)[i], ((uint8_t *)&xb)[i]);
    compared++;
}

static void one(uint64_t seed)
{
    struct guest g[2];

    if (!create(&g[0], seed, 0))
        return;
    if (!create(&g[1], seed, 1)) { /* a build without it */
        two = false;
        guest_destroy(&g[0]);
        return;
    }
    for (unsigned n = 0; n < (getenv("FUZZ_FINE") ? 100 : 1) * EXITS; n++) {
        if (!run(&g[0]) || !run(&g[1])) {
            given_up++;
            break;
        }
        compare(&g[0], &g[1], n);
        if (g[0].run->exit_reason != KVM_EXIT_MMIO && g[0].run->exit_reason != KVM_EXIT_IO)
            break;
        answer(&g[0]);
        answer(&g[1]);
    }
    guest_destroy(&g[0]);
    guest_destroy(&g[1]);
}

static void report(void)
{
    printf("fuzz_engines: %llu states compared, %llu guests given up%s\n", (unsigned long long)compared,
           (unsigned long long)given_up, two ? "" : "; this build has one engine");
    fuzz_check(!two || compared > 20, "hardly any exit was reached");
}

int main(int argc, char **argv)
{
    static const struct fuzzer fuzzer = {.name = "fuzz_engines",
                                         .seconds = 6,
                                         .count = 60,
                                         .case_seconds = 10,
                                         .one = one,
                                         .report = report,
                                         .once = true};

    return fuzz_main(&fuzzer, argc, argv);
}
