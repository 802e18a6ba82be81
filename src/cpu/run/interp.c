/* SPDX-License-Identifier: MIT
 * interp.c: the engine "interp": runs decoded blocks (code.h) until a VM exit. */
#include "run/code.h"
#include "engine.h"

static void trace_insn(struct cpu *cpu, const struct insn *in)
{
    char text[96];

    host_fpu_save(cpu);
    insn_print(in, cpu->s.rip, text, sizeof(text));
    cpu_trace(cpu, "%016lx  %s", cpu->s.rip, text);
}

static bool wants_bytes(const struct cpu *cpu)
{
    return (cpu->s.rflags_sys & F_TF) || (cpu->s.dr7 & 0xff) || (cpu_trace_mask & CPU_TRACE_INSN);
}

/* The one instruction at rip, without its step effects. A short shadow (STI, MOV SS) or RF takes it from its block. */
static int find_one(struct cpu *cpu, const struct insn **in)
{
    struct block *b = NULL;

    if (likely(!wants_bytes(cpu))) {
        const int st = code_lookup(cpu, &b);

        if (st != CPU_OK)
            return st;
    }
    if (!b)
        return code_single(cpu, in);
    *in = b->insn;
    return CPU_OK;
}

int interp_one(struct cpu *cpu)
{
    const struct insn *in;
    int st = find_one(cpu, &in);

    if (st != CPU_OK)
        return st;
    if (unlikely(cpu_trace_mask & CPU_TRACE_INSN))
        trace_insn(cpu, in);
    st = in->fn(cpu, in);
    if (st == CPU_OK || st == CPU_RESCAN)
        cpu->s.rip = (cpu->s.rip + in->len) & cpu->s.ip_mask;
    if (st == CPU_OK || st == CPU_RESCAN || st == CPU_JUMP)
        cpu->counters[CC_insns]++;
    return st;
}

/* With everything that happens around an instruction: breakpoints, TF, shadows, MTF. */
int interp_one_step(struct cpu *cpu)
{
    const bool tf_before = cpu->s.rflags_sys & F_TF;
    const uint32_t shadow_before = cpu->s.interruptibility;
    int st = cpu_before_step(cpu);

    if (st == CPU_OK)
        st = interp_one(cpu);
    if (st == CPU_AGAIN)
        cpu->rf_before = false; /* an unfinished rep keeps RF, or its own breakpoint would fire again */
    if (st == CPU_OK || st == CPU_RESCAN || st == CPU_JUMP || st == CPU_AGAIN)
        st = cpu_after_step(cpu, tf_before, shadow_before);
    return st;
}

static uint32_t attention(const struct cpu *cpu)
{
    return atomic_load_explicit(&cpu->attention, memory_order_relaxed) | (cpu_trace_mask & CPU_TRACE_INSN);
}

/* Blocks from b on, while nobody wants attention and the successor is at hand. */
int interp_blocks(struct cpu *cpu, struct block *b, uint64_t max)
{
    struct cpu_state *s = &cpu->s;
    const uint64_t ip_mask = s->ip_mask;
    const gva_t page_gva = s->rip & PAGE_MASK;
    const struct insn *in;
    gva_t rip;
    int st;

    do {
        in = b->insn;
        rip = s->rip;
        while (likely((st = in->fn(cpu, in)) == CPU_OK)) {
            rip = (rip + in->len) & ip_mask;
            s->rip = rip;
            in++;
        }
        cpu->counters[CC_insns] += (in - b->insn) + (st == CPU_JUMP);
        if (st != CPU_JUMP && st != CPU_AGAIN)
            break;
    } while (--max && likely(!attention(cpu)) && (b = code_successor(cpu, b, page_gva)));
    if (st == CPU_RESCAN) {
        s->rip = (rip + in->len) & s->ip_mask;
        cpu->counters[CC_insns]++;
    }
    if (st == CPU_VMEXIT)
        emul_remember(cpu, in);
    return st;
}

static int run_some(struct cpu *cpu)
{
    struct block *b;
    int st;

    if (unlikely(attention(cpu))) {
        st = code_safepoint(cpu);
        if (st != CPU_OK)
            return st;
        if (atomic_load(&cpu->attention) & ATT_STEP)
            return interp_one_step(cpu);
        if (cpu_trace_mask & CPU_TRACE_INSN)
            return interp_one(cpu);
    }
    st = code_lookup(cpu, &b);
    if (unlikely(st != CPU_OK))
        return st;
    return likely(b) ? interp_blocks(cpu, b, UINT64_MAX) : interp_one(cpu);
}

static int interp_run(struct cpu *cpu)
{
    int st;

    code_run_begin(cpu);
    do {
        st = run_some(cpu);
        if (st == CPU_FAULT)
            st = cpu_exception(cpu);
    } while (st != CPU_VMEXIT);
    code_run_end(cpu);
    return st;
}

/* For emulation, outside of the run loop: by bytes, no block is held. */
int interp_step(struct cpu *cpu, unsigned max)
{
    int st = CPU_OK;

    for (unsigned i = 0; i < max && st != CPU_VMEXIT; i++) {
        const struct insn *in;

        st = code_single(cpu, &in);
        if (st == CPU_OK)
            st = in->fn(cpu, in);
        if (st == CPU_OK || st == CPU_RESCAN) {
            cpu->s.rip = (cpu->s.rip + in->len) & cpu->s.ip_mask;
            cpu->counters[CC_insns]++;
        }
        if (st == CPU_FAULT) {
            if (cpu->emul)
                return st;
            st = cpu_exception(cpu);
        }
        if (st == CPU_USER)
            return st;
    }
    return st == CPU_VMEXIT ? st : CPU_OK;
}

const struct engine interp_engine = {.name = "interp", .run = interp_run};

__attribute__((constructor)) static void register_interp(void)
{
    engine_register(&interp_engine);
}
