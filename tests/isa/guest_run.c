/* SPDX-License-Identifier: MIT
 * guest_run.c: one instruction by the interpreter's function, as a user program in long mode: 4-level paging over a
 * copy of the arena, without EPT (what the processor calls physical are addresses of this process). */
#include "isa.h"
#include "../../src/jit/jit.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

static struct cpu *cpu;
static bool translated; /* by the engine "jit" */
static uint8_t *pages;
static uint64_t *tables; /* PML4, PDPT, PD, PT */

#define PTE_P 1u
#define PTE_W 2u
#define PTE_U 4u

uint8_t *guest_page(unsigned pg)
{
    return page_mapped(pg) ? pages + pg * PAGE_SIZE : NULL;
}

struct cpu *guest_cpu(void)
{
    return cpu;
}

bool guest_translated(void)
{
    return translated;
}

static void map_arena(void)
{
    uint64_t *pml4 = tables, *pdpt = tables + 512, *pd = tables + 1024, *pt = tables + 1536;

    pml4[ARENA >> 39 & 511] = (uint64_t)pdpt | PTE_P | PTE_W | PTE_U;
    pdpt[ARENA >> 30 & 511] = (uint64_t)pd | PTE_P | PTE_W | PTE_U;
    pd[ARENA >> 21 & 511] = (uint64_t)pt | PTE_P | PTE_W | PTE_U;
    for (unsigned pg = 0; pg < ARENA_PAGES; pg++)
        if (page_mapped(pg))
            pt[(ARENA >> 12 & 511) + pg] = (uint64_t)guest_page(pg) | PTE_P | PTE_U | (page_writable(pg) ? PTE_W : 0);
}

static struct segment flat(uint16_t sel, uint32_t attr)
{
    return (struct segment){.sel = sel, .limit = 0xffffffff, .attr = attr};
}

void guest_mode(enum cpu_mode mode)
{
    struct cpu_state *s = cpu_state(cpu);
    const bool native = host_has_mode(mode); /* if not: flat data, as the 64-bit code that it is compared with */
    const struct segment data = mode == MODE_COMPAT16 && native
                                    ? (struct segment){.sel = LDT_DATA16, .base = ARENA, .limit = 0xffff, .attr = 0xf3}
                                    : flat(0x2b, 0xc0f3);
    uint16_t cs, ss;

    segments_for(native ? mode : MODE_64, &cs, &ss);
    s->seg[SEG_DS] = s->seg[SEG_ES] = s->seg[SEG_SS] = data;
    s->seg[SEG_FS] = s->seg[SEG_GS] = (struct segment){.attr = AR_UNUSABLE};
    s->seg[SEG_CS] = mode == MODE_64 ? flat(cs, 0xa0fb)
                     : mode == MODE_COMPAT32
                         ? flat(cs, 0xc0fb)
                         : (struct segment){.sel = cs, .base = ARENA, .limit = 0xffff, .attr = 0xfb};
    cpu_mode_changed(cpu);
}

void guest_side_init(const char *engine)
{
    struct cpu_domain *domain = cpu_domain_create();
    struct cpu_state *s;

    cpu = domain ? cpu_create(domain, 0, engine) : NULL;
    pages = mmap(NULL, ARENA_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    tables = aligned_alloc(PAGE_SIZE, 4 * PAGE_SIZE);
    if (!cpu || pages == MAP_FAILED || !tables) {
        fprintf(stderr, "isa: no processor\n");
        exit(2);
    }
    memset(tables, 0, 4 * PAGE_SIZE);
    map_arena();
    s = cpu_state(cpu);
    cpu_reset(cpu, false);
    cpu->guest_maxphyaddr = 48;
    s->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_UMIP;
    s->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    s->cr3 = (uint64_t)tables;
    s->xcr0 = cpu_fpu_xcr0_mask();
    s->tr.limit = 0x67; /* no I/O permission map */
    s->tr.attr = 0x8b;
    s->ldtr.attr = AR_UNUSABLE;
    translated = !strcmp(engine, "jit");
    cpu_engine_start(cpu);
    host_enter(cpu);
    guest_mode(MODE_64);
}

/* A block of the instruction alone; or, in every second case of those that leave the flags alone, with one behind it
 * that writes them all: checks of memory operands are then emitted in another way. */
static int run_translated(const struct insn *in, const struct regs *r)
{
    static struct code_page page;
    static struct block *b;
    static bool with_test;
    const struct op_row *row = &op_rows[in->op];
    const uint64_t flags = cpu->s.flags;
    int st;

    if (!b && !(b = aligned_alloc(64, (sizeof(*b) + 4 * sizeof(*in)) & ~63ull)))
        exit(2);
    with_test = !with_test && !row->must && !row->may && !(row->attrs & (A_BRANCH | A_SYS));
    memset(b, 0, sizeof(*b));
    b->hva = (hva_t)guest_page(PG_CODE) + (r->rip & ~PAGE_MASK);
    b->key = cpu->s.insn_key;
    b->page = &page;
    b->n = 1 + with_test;
    b->bytes = in->len + 2 * with_test;
    b->src = guest_page(PG_CODE) + (r->rip & ~PAGE_MASK);
    b->insn[0] = *in;
    if (with_test)
        insn_decode((const uint8_t[]){0x85, 0xc0}, 2, MODE_64, &b->insn[1]);
    b->insn[b->n].fn = in_block_end;
    st = jit_run_alone(cpu, b);
    if (with_test) {
        cpu->s.flags = flags;
        if (cpu->s.rip == r->rip + in->len + 2)
            cpu->s.rip -= 2;
    }
    return st;
}

void guest_run(const struct insn *in, const struct regs *r, struct outcome *o)
{
    struct cpu_state *s = cpu_state(cpu);
    int st, steps = 0;

    memcpy(s->gpr, r->gpr, sizeof(s->gpr));
    s->rip = r->rip;
    cpu_put_rflags(s, r->rflags | F_TF | F_IF);
    host_fpu_save(cpu);
    memcpy(cpu->fpu->area, r->fpu, cpu_fpu_area_size());
    cpu->fpu->area->xstate_bv = fpu_layout()->mask;
    cpu->fpu->fip = cpu->fpu->fdp = cpu->fpu->fop = cpu->fpu->fcs = cpu->fpu->fds = 0;
    do
        st = translated ? run_translated(in, r) : in->fn(cpu, in);
    while (st == CPU_AGAIN && s->rip == r->rip && !(op_rows[in->op].attrs & A_BRANCH) && ++steps < MAX_STEPS);
    if (!translated && (st == CPU_OK || st == CPU_RESCAN))
        s->rip = (s->rip + in->len) & s->ip_mask;
    host_fpu_save(cpu);

    *o = (struct outcome){.vector = -1, .r.fpu = o->r.fpu};
    memcpy(o->r.gpr, s->gpr, sizeof(s->gpr));
    o->r.rip = s->rip;
    o->r.rflags = cpu_get_rflags(s);
    memcpy(o->r.fpu, fpu_sync(cpu), cpu_fpu_area_size());
    if (st == CPU_FAULT) {
        o->vector = cpu->pending.vector;
        o->error = cpu->pending.has_error ? cpu->pending.error : 0;
        o->cr2 = o->vector == VEC_PF ? cpu->pending.payload : 0;
        cpu->pending.valid = false;
    } else if (st == CPU_VMEXIT || st == CPU_USER) {
        o->vector = 1000 + st;
    }
}
