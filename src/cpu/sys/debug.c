/* SPDX-License-Identifier: MIT
 * debug.c: what happens between instructions: single steps, breakpoints by DR0-DR7, the resume flag, the shadows of STI
 * and MOV SS, the monitor trap flag (SDM 3B, "Debug Exceptions"). Engines come here only under ATT_STEP. */
#include "sys/cpu_sys.h"
#include "mem/mem.h"
#include "vmx/vmx_int.h"

#define SHADOWS                (INTR_BLOCK_STI | INTR_BLOCK_MOVSS)
#define PENDING_DBG_ENABLED_BP (1ull << 12)

enum { BP_EXEC, BP_WRITE, BP_IO, BP_DATA };

static unsigned bp_type(uint64_t dr7, unsigned n)
{
    return (unsigned)(dr7 >> (16 + 4 * n)) & 3;
}

static unsigned bp_size(uint64_t dr7, unsigned n)
{
    static const uint8_t sizes[] = {1, 2, 8, 4};

    return sizes[dr7 >> (18 + 4 * n) & 3];
}

static bool bp_enabled(uint64_t dr7, unsigned n)
{
    return dr7 >> (2 * n) & 3;
}

static bool any_bp(const struct cpu_state *s, unsigned type_mask)
{
    if (likely(!(s->dr7 & 0xff)))
        return false;
    for (unsigned n = 0; n < 4; n++)
        if (bp_enabled(s->dr7, n) && (type_mask >> bp_type(s->dr7, n) & 1))
            return true;
    return false;
}

bool cpu_data_breakpoints(const struct cpu *cpu)
{
    return any_bp(&cpu->s, 1u << BP_WRITE | 1u << BP_DATA);
}

bool cpu_steps_iterations(const struct cpu *cpu)
{
    const struct cpu_state *s = &cpu->s;

    return (s->rflags_sys & F_TF) || (s->interruptibility & SHADOWS) || any_bp(s, 0xf) ||
           (cpu->in_guest_mode && vmx_mtf(cpu));
}

void cpu_step_changed(struct cpu *cpu)
{
    const bool step = (cpu->s.rflags_sys & F_RF) || cpu_steps_iterations(cpu);
    const uint32_t now = atomic_load_explicit(&cpu->attention, memory_order_relaxed) & ATT_STEP;

    if (step && !now)
        cpu_attend(cpu, ATT_STEP);
    else if (!step && now)
        atomic_fetch_and_explicit(&cpu->attention, ~ATT_STEP, memory_order_seq_cst);
}

/* Breakpoints of the types in type_mask that [where, where + size) touches, as DR6 bits. DR6 B0-B3 are set for disabled
 * ones too when an enabled one fires (SDM 3B, "Debug Status Register"). */
static uint32_t matches(const struct cpu_state *s, uint64_t where, unsigned size, unsigned type_mask)
{
    uint32_t all = 0;
    bool fires = false;

    for (unsigned n = 0; n < 4; n++) {
        const uint64_t bp = s->dr[n] & ~(uint64_t)(bp_size(s->dr7, n) - 1);

        if (!(type_mask >> bp_type(s->dr7, n) & 1))
            continue;
        if (where < bp + bp_size(s->dr7, n) && bp < where + size) {
            all |= 1u << n;
            fires |= bp_enabled(s->dr7, n);
        }
    }
    return fires ? all : 0;
}

void cpu_data_access(struct cpu *cpu, gva_t gva, unsigned size, unsigned acc)
{
    if (!(acc & ACCF_SUPER))
        cpu->data_hits |= matches(&cpu->s, gva, size, acc & ACC_WRITE ? 1u << BP_WRITE | 1u << BP_DATA : 1u << BP_DATA);
}

/* I/O breakpoints need CR4.DE; IN and OUT call this. */
void cpu_io_access(struct cpu *cpu, uint16_t port, unsigned size)
{
    if (unlikely(cpu->s.dr7 & 0xff) && (cpu->s.cr4 & CR4_DE))
        cpu->data_hits |= matches(&cpu->s, port, size, 1u << BP_IO);
}

static gva_t linear_rip(const struct cpu_state *s)
{
    return s->mode == MODE_64 ? s->rip : (uint32_t)(s->rip + s->seg[SEG_CS].base);
}

int cpu_before_step(struct cpu *cpu)
{
    struct cpu_state *s = &cpu->s;
    uint32_t hits;

    cpu->data_hits = 0;
    cpu->step_taken = false;
    cpu->rf_before = s->rflags_sys & F_RF;
    if (cpu->rf_before || (s->interruptibility & INTR_BLOCK_MOVSS) || !any_bp(s, 1u << BP_EXEC))
        return CPU_OK;
    hits = matches(s, linear_rip(s), 1, 1u << BP_EXEC);
    return hits ? cpu_raise_db(cpu, hits) : CPU_OK;
}

int cpu_after_step(struct cpu *cpu, bool tf_before, uint32_t shadow_before)
{
    struct cpu_state *s = &cpu->s;
    const bool was_shadowed = shadow_before & SHADOWS;
    uint32_t hits = cpu->data_hits;

    s->interruptibility &= ~(shadow_before & SHADOWS);
    if (cpu->rf_before)
        s->rflags_sys &= ~F_RF;
    cpu->rf_before = false;
    if (was_shadowed)
        vmx_check_windows(cpu);
    if (tf_before && !cpu->step_taken)
        hits |= DR6_BS;
    if (s->interruptibility & INTR_BLOCK_MOVSS) {
        /* MOV SS holds back its debug exceptions until the next instruction has run: the data breakpoints then */
        cpu->s.pending_dbg |= hits & ~(uint32_t)DR6_BS;
        hits = 0;
    } else if (unlikely(s->pending_dbg)) {
        hits |= s->pending_dbg & (0xf | DR6_BS);
        s->pending_dbg = 0;
    }
    cpu->data_hits = 0;
    cpu_step_changed(cpu);
    if (unlikely(vmx_mtf(cpu))) {
        if (hits)
            s->pending_dbg = hits | (hits & 0xf ? PENDING_DBG_ENABLED_BP : 0);
        return vmx_exit_mtf(cpu);
    }
    return hits ? cpu_raise_db(cpu, hits) : CPU_OK;
}
