/* SPDX-License-Identifier: MIT
 * fuzz_code.c: guests that execute random bytes, random instructions and mutated pieces of true code, in every mode and
 * ring. Their IDT catches each exception and goes on elsewhere with other registers. Whatever they do to their tables,
 * control registers and MSRs: KVM_RUN comes back in time, the process lives and does not grow. */
#include "fuzz_guest.h"

#define SLICE_US   10000 /* of one case */
#define CODE_SIZE  0x10000u
#define EXITS_MAX  400u
#define RESETS_MAX 12u

/* ---- a case ---- */
static uint64_t exits[64], caught, resets, slices;

static void reset(struct guest *g, struct rng *r)
{
    fuzz_fill_code(r, g->ram + G_CODE, CODE_SIZE);
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
        fuzz_fill_code(r, g->ram + G_CODE + (rnd(r) & 0xf000), 0x1000);
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

        fuzz_alarm_check();
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
    fuzz_check(caught > slices / 8, /* a busy host gives a slice little time */
               "guests that run catch exceptions: %llu in %llu cases", (unsigned long long)caught,
               (unsigned long long)slices);
}

int main(int argc, char **argv)
{
    static const struct fuzzer fuzzer = {
        .name = "fuzz_code", .seconds = 5, .case_seconds = 10, .one = one, .report = report};

    return fuzz_main(&fuzzer, argc, argv);
}
