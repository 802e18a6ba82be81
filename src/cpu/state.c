/* SPDX-License-Identifier: MIT
 * state.c: the register file: reset, comparison, save and restore, derived fields. */
#include <stdio.h>
#include <string.h>
#include "insn/insn.h"
#include "mem/mem.h"
#include "vmx/vmx_int.h"

struct cpu_state *cpu_state(struct cpu *cpu)
{
    return &cpu->s;
}

/* ---- the list as a table ---- */
#define GROUP_HOT  1
#define GROUP_ARCH 1
#define GROUP_DER  0

static const struct field {
    const char *name;
    uint16_t offset, size, count;
    bool saved;
} fields[] = {
#define S(type, name, count, group) {#name, offsetof(struct cpu_state, name), sizeof(type), count, GROUP_##group},
#include "state.def"
#undef S
};

#define SNAPSHOT_MAGIC 0x31555043u /* "CPU1": change it with the layout of state.def */
struct snapshot_head {
    uint32_t magic, size;
};

static size_t snapshot_size(void)
{
    size_t size = sizeof(struct snapshot_head);

    for (unsigned i = 0; i < ARRAY_SIZE(fields); i++)
        if (fields[i].saved)
            size += (size_t)fields[i].size * fields[i].count;
    return size;
}

size_t cpu_state_save(const struct cpu_state *s, void *buf, size_t size)
{
    const struct snapshot_head head = {SNAPSHOT_MAGIC, (uint32_t)snapshot_size()};
    uint8_t *out = buf;

    if (!buf || size < head.size)
        return head.size;
    memcpy(out, &head, sizeof(head));
    out += sizeof(head);
    for (unsigned i = 0; i < ARRAY_SIZE(fields); i++) {
        const size_t n = (size_t)fields[i].size * fields[i].count;

        if (!fields[i].saved)
            continue;
        memcpy(out, (const uint8_t *)s + fields[i].offset, n);
        out += n;
    }
    return head.size;
}

int cpu_state_restore(struct cpu_state *s, const void *buf, size_t size)
{
    const uint8_t *in = buf;
    struct snapshot_head head;

    if (!buf || size < sizeof(head))
        return -1;
    memcpy(&head, in, sizeof(head));
    if (head.magic != SNAPSHOT_MAGIC || head.size != snapshot_size() || size < head.size)
        return -1;
    in += sizeof(head);
    for (unsigned i = 0; i < ARRAY_SIZE(fields); i++) {
        const size_t n = (size_t)fields[i].size * fields[i].count;

        if (!fields[i].saved)
            continue;
        memcpy((uint8_t *)s + fields[i].offset, in, n);
        in += n;
    }
    return 0;
}

static void explain(const struct field *f, unsigned element, const uint8_t *a, const uint8_t *b, char *why, size_t size)
{
    static const char *const gprs[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                       "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    uint64_t x = 0, y = 0;
    char name[40];

    if (f->offset == offsetof(struct cpu_state, gpr))
        snprintf(name, sizeof(name), "%s", gprs[element]);
    else
        snprintf(name, sizeof(name), f->count > 1 ? "%s[%u]" : "%s", f->name, element);
    if (f->size <= 8) {
        memcpy(&x, a, f->size);
        memcpy(&y, b, f->size);
        snprintf(why, size, "%s: %#llx != %#llx", name, (unsigned long long)x, (unsigned long long)y);
        return;
    }
    for (unsigned i = 0; i < f->size; i += 8) {
        memcpy(&x, a + i, 8);
        memcpy(&y, b + i, 8);
        if (x != y)
            break;
    }
    snprintf(why, size, "%s: %#llx != %#llx (a part of it)", name, (unsigned long long)x, (unsigned long long)y);
}

static bool element_equal(const struct field *f, const uint8_t *a, const uint8_t *b, uint64_t undefined_flags)
{
    uint64_t x, y;

    if (f->offset != offsetof(struct cpu_state, flags))
        return memcmp(a, b, f->size) == 0;
    memcpy(&x, a, sizeof(x));
    memcpy(&y, b, sizeof(y));
    return ((x ^ y) & ~undefined_flags) == 0;
}

bool cpu_state_equal(const struct cpu_state *a, const struct cpu_state *b, uint64_t undefined_flags, char *why,
                     size_t size)
{
    for (unsigned i = 0; i < ARRAY_SIZE(fields); i++) {
        const struct field *f = &fields[i];

        if (!f->saved)
            continue;
        for (unsigned n = 0; n < f->count; n++) {
            const uint8_t *pa = (const uint8_t *)a + f->offset + (size_t)n * f->size;
            const uint8_t *pb = (const uint8_t *)b + f->offset + (size_t)n * f->size;

            if (element_equal(f, pa, pb, undefined_flags))
                continue;
            if (why && size)
                explain(f, n, pa, pb, why, size);
            return false;
        }
    }
    return true;
}

/* ---- derived fields ---- */
static enum cpu_mode mode_of(const struct cpu_state *s)
{
    const uint32_t cs = s->seg[SEG_CS].attr;

    if (!(s->cr0 & CR0_PE))
        return MODE_REAL;
    if (s->efer & EFER_LMA)
        return cs & AR_L ? MODE_64 : cs & AR_DB ? MODE_COMPAT32 : MODE_COMPAT16;
    if (s->rflags_sys & F_VM)
        return MODE_V86;
    return cs & AR_DB ? MODE_PROT32 : MODE_PROT16;
}

static uint32_t key_of(const struct cpu_state *s)
{
    uint32_t key = s->mode;

    if (s->mode != MODE_64 && (s->seg[SEG_SS].attr & AR_DB))
        key |= KEY_SS32;
    if (s->cpl == 3)
        key |= KEY_CPL3;
    if (s->cr0 & (CR0_TS | CR0_EM))
        key |= KEY_TS_EM;
    if (s->cr4 & CR4_OSFXSR)
        key |= KEY_OSFXSR;
    if (s->cr4 & CR4_OSXSAVE)
        key |= KEY_OSXSAVE;
    if ((s->xcr0 & 6) == 6)
        key |= KEY_XCR0_AVX;
    if ((s->xcr0 & 0xe6) == 0xe6)
        key |= KEY_XCR0_512;
    return key;
}

static uint32_t flat_segments(const struct cpu_state *s)
{
    /* usable, present, data, writable, expand-up; the accessed bit does not count */
    const uint32_t mask = AR_UNUSABLE | AR_P | AR_S | 0xe, want = AR_P | AR_S | 2;
    uint32_t flat = 0;

    for (unsigned i = 0; i < 6; i++)
        if (s->seg[i].base == 0 && s->seg[i].limit == 0xffffffff && (s->seg[i].attr & mask) == want)
            flat |= 1u << i;
    return flat;
}

void cpu_mode_changed(struct cpu *cpu)
{
    struct cpu_state *s = &cpu->s;

    s->mode = (uint8_t)mode_of(s);
    s->cpl = s->mode == MODE_REAL ? 0 : s->mode == MODE_V86 ? 3 : (uint8_t)AR_DPL(s->seg[SEG_SS].attr);
    if (s->cpl == 3)
        s->acc_mode = AM_USER;
    else
        s->acc_mode = (s->cr4 & CR4_SMAP) && !(s->rflags_sys & F_AC) ? AM_SUPER : AM_SUPER_USER;
    if (!(s->cr0 & CR0_PG))
        s->paging = PAGING_NONE;
    else if (!(s->cr4 & CR4_PAE))
        s->paging = PAGING_32;
    else
        s->paging = s->efer & EFER_LMA ? PAGING_4LEVEL : PAGING_PAE;
    s->insn_key = key_of(s);
    s->seg_flat = flat_segments(s);
    /* Only branches with a 16-bit operand wrap at 64 KiB: 16-bit code runs on to its segment's limit, above 64 KiB too
     * (SMM handlers do), or into #GP (SDM 3B, "Wraparound"). */
    s->ip_mask = s->mode == MODE_64 ? ~0ull : 0xffffffff;
    s->fs_base_hot = s->seg[SEG_FS].base;
    s->gs_base_hot = s->seg[SEG_GS].base;
    cpu_step_changed(cpu);
    cpu_plain_changed(cpu);
    tlb_select(cpu);
}

/* Control registers are as they were. What is left out is not looked at in 64-bit mode: seg_flat. */
void cpu_privilege_changed(struct cpu *cpu)
{
    struct cpu_state *s = &cpu->s;
    const uint32_t att = atomic_load_explicit(&cpu->attention, memory_order_relaxed);

    if (unlikely(s->mode != MODE_64 || !(s->seg[SEG_CS].attr & AR_L))) {
        cpu_mode_changed(cpu);
        return;
    }
    s->cpl = (uint8_t)AR_DPL(s->seg[SEG_SS].attr);
    s->insn_key &= ~KEY_CPL3;
    if (s->cpl == 3) {
        s->acc_mode = AM_USER;
        s->insn_key |= KEY_CPL3;
    } else {
        s->acc_mode = (s->cr4 & CR4_SMAP) && !(s->rflags_sys & F_AC) ? AM_SUPER : AM_SUPER_USER;
    }
    s->fs_base_hot = s->seg[SEG_FS].base;
    s->gs_base_hot = s->seg[SEG_GS].base;
    if (unlikely((att & ATT_STEP) || (s->rflags_sys & (F_TF | F_RF)) || s->interruptibility))
        cpu_step_changed(cpu);
    tlb_select_access(cpu);
}

/* ---- reset ---- */
#define PAT_RESET 0x0007040600070406ull

static void reset_segments(struct cpu_state *s)
{
    for (unsigned i = 0; i < 6; i++)
        s->seg[i] = (struct segment){.limit = 0xffff, .attr = AR_P | AR_S | 3};
    s->seg[SEG_CS] = (struct segment){.base = 0xffff0000, .limit = 0xffff, .attr = AR_P | AR_S | 11, .sel = 0xf000};
    s->ldtr = (struct segment){.limit = 0xffff, .attr = AR_P | 2};
    s->tr = (struct segment){.limit = 0xffff, .attr = AR_P | 11};
    s->gdtr = s->idtr = (struct dtable){.limit = 0xffff};
}

/* SDM 3A, "Processor State After Reset" */
void cpu_reset(struct cpu *cpu, bool init)
{
    struct cpu_state *s = &cpu->s, old = *s;
    struct cpuid_regs id;

    memset(s, 0, sizeof(*s));
    cpu_cpuid(1, 0, &id);
    s->gpr[R_RDX] = cpu->guest_leaf1.eax ? cpu->guest_leaf1.eax : id.eax;
    s->rip = 0xfff0;
    cpu_put_rflags(s, F_RESERVED);
    reset_segments(s);
    s->cr0 = CR0_ET | (init ? old.cr0 & (CR0_CD | CR0_NW) : CR0_CD | CR0_NW);
    s->xcr0 = 1;
    s->dr6 = DR6_FIXED;
    s->dr7 = DR7_FIXED;
    s->pat = PAT_RESET;
    s->tsc_offset = old.tsc_offset;
    s->tsc_mult = old.tsc_mult;
    if (init) {
        s->xcr0 = old.xcr0;
        s->star = old.star;
        s->lstar = old.lstar;
        s->cstar = old.cstar;
        s->sfmask = old.sfmask;
        s->kernel_gs_base = old.kernel_gs_base;
        s->sysenter_cs = old.sysenter_cs;
        s->sysenter_esp = old.sysenter_esp;
        s->sysenter_eip = old.sysenter_eip;
        s->tsc_aux = old.tsc_aux;
        s->pat = old.pat;
        s->spec_ctrl = old.spec_ctrl;
    } else {
        fpu_cpu_reset(cpu);
    }
    cpu->pending.valid = cpu->delivering.valid = false;
    cpu->data_hits = 0;
    vmx_nested_reset(cpu);
    vmx_forget_state(cpu);
    tlb_flush(cpu, TLB_ALL, 0, 0, 0);
    cpu_mode_changed(cpu);
}
