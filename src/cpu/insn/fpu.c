/* SPDX-License-Identifier: MIT
 * fpu.c: the guest's x87, SSE and AVX state. It is loaded into the host's registers by the first vector instruction
 * after something that needed libc, and stays there. No other code in guest mode touches these registers. */
#include <errno.h>
#include <stdlib.h>
#include "insn/fpu.h"

static struct fpu_layout layout;

static void cpuid(uint32_t leaf, uint32_t sub, uint32_t r[4])
{
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}

static uint64_t xgetbv(uint32_t n)
{
    uint32_t lo, hi;

    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(n));
    return (uint64_t)hi << 32 | lo;
}

static void layout_init(struct fpu_layout *l)
{
    _Alignas(64) struct xsave_area probe;
    uint16_t fcw;
    uint32_t r[4];

    __asm__ volatile("fnstcw %0" : "=m"(fcw));
    __asm__ volatile("fninit\n fld1\n fxsave64 %0\n fninit" : "=m"(probe)); /* the x87 stack is empty in C code */
    __asm__ volatile("fldcw %0" : : "m"(fcw));
    l->saves_pointers = probe.fip;
    l->mxcsr_mask = probe.mxcsr_mask ? probe.mxcsr_mask : 0xffbf; /* SDM 1, "Guidelines for Writing to MXCSR" */
    l->mask = XFEATURE_X87 | XFEATURE_SSE;
    l->size = sizeof(struct xsave_area);
    cpuid(1, 0, r);
    if (!(r[2] & 1u << 27)) /* OSXSAVE */
        return;
    l->xsave = true;
    l->mask = xgetbv(0) & (XFEATURE_X87 | XFEATURE_SSE | XFEATURE_AVX | XFEATURE_512);
    if ((l->mask & XFEATURE_512) != XFEATURE_512 || !(l->mask & XFEATURE_AVX))
        l->mask &= ~(uint64_t)XFEATURE_512;
    for (unsigned i = 2; i < XFEATURES; i++) {
        if (!(l->mask >> i & 1))
            continue;
        cpuid(0xd, i, r);
        l->comp[i] = (struct xfeature){.offset = r[1], .size = r[0], .align64 = r[2] & 2};
        if (r[0] + r[1] > l->size)
            l->size = r[0] + r[1];
    }
}

const struct fpu_layout *fpu_layout(void)
{
    if (unlikely(!__atomic_load_n(&layout.size, __ATOMIC_ACQUIRE))) {
        struct fpu_layout l = {0};
        const uint32_t size = (layout_init(&l), l.size);

        l.size = 0; /* every thread computes the same; the size is published last */
        layout = l;
        __atomic_store_n(&layout.size, size, __ATOMIC_RELEASE);
    }
    return &layout;
}

size_t cpu_fpu_area_size(void)
{
    return fpu_layout()->size;
}

uint64_t cpu_fpu_xcr0_mask(void)
{
    return fpu_layout()->mask;
}

void *cpu_fpu_area(struct cpu *cpu)
{
    return fpu_sync(cpu);
}

int fpu_cpu_init(struct cpu *cpu)
{
    const size_t size = (cpu_fpu_area_size() + 63) & ~63ull;

    cpu->fpu = calloc(1, sizeof(*cpu->fpu));
    if (!cpu->fpu)
        return -ENOMEM;
    cpu->fpu->area = aligned_alloc(64, size);
    if (!cpu->fpu->area) {
        free(cpu->fpu);
        cpu->fpu = NULL;
        return -ENOMEM;
    }
    memset(cpu->fpu->area, 0, size);
    fpu_cpu_reset(cpu);
    return 0;
}

void fpu_cpu_destroy(struct cpu *cpu)
{
    if (cpu->fpu) {
        native_release_slot(cpu);
        free(cpu->fpu->area);
    }
    free(cpu->fpu);
    cpu->fpu = NULL;
}

void fpu_area_init(struct xsave_area *a, uint64_t mask)
{
    const struct fpu_layout *l = fpu_layout();

    if (mask & XFEATURE_X87) {
        memset(a, 0, offsetof(struct xsave_area, mxcsr));
        memset(a->st, 0, sizeof(a->st));
        a->fcw = FCW_INIT;
    }
    if (mask & XFEATURE_SSE)
        memset(a->xmm, 0, sizeof(a->xmm));
    for (unsigned i = 2; i < XFEATURES; i++)
        if (mask >> i & 1)
            memset((uint8_t *)a + l->comp[i].offset, 0, l->comp[i].size);
}

/* As after FNINIT (KVM's choice; the manual's power-up FCW of 0x40 differs only until firmware's FNINIT). */
void fpu_cpu_reset(struct cpu *cpu)
{
    struct fpu_unit *f = cpu->fpu;

    host_fpu_save(cpu);
    memset(f->area, 0, cpu_fpu_area_size());
    fpu_area_init(f->area, cpu_fpu_xcr0_mask());
    f->area->mxcsr = MXCSR_INIT;
    f->area->mxcsr_mask = fpu_layout()->mxcsr_mask;
    f->fip = f->fdp = f->fop = f->fcs = f->fds = 0;
}

static void host_save(struct xsave_area *a)
{
    if (likely(layout.xsave)) {
        __asm__ volatile("xsave64 %0" : "+m"(*a) : "a"((uint32_t)layout.mask), "d"(0) : "memory");
        return;
    }
    __asm__ volatile("fxsave64 %0" : "+m"(*a) : : "memory");
    a->xstate_bv = XFEATURE_X87 | XFEATURE_SSE;
}

static void host_restore(struct xsave_area *a)
{
    if (likely(layout.xsave))
        __asm__ volatile("xrstor64 %0" : : "m"(*a), "a"((uint32_t)layout.mask), "d"(0) : "memory");
    else
        __asm__ volatile("fxrstor64 %0" : : "m"(*a) : "memory");
}

static bool pointers_shown(const struct fpu_unit *f)
{
    const struct xsave_area *a = f->area;

    return a->xstate_bv & XFEATURE_X87 && (layout.saves_pointers || a->fsw & FSW_ES);
}

void fpu_show_pointers(struct fpu_unit *f)
{
    const bool shown = pointers_shown(f);

    f->area->fip = shown ? f->fip : 0;
    f->area->fdp = shown ? f->fdp : 0;
    f->area->fop = shown ? f->fop : 0;
}

/* The area was perhaps written by the hypervisor: pointers that differ from what was shown are its own. */
static void take_pointers(struct fpu_unit *f)
{
    const struct xsave_area *a = f->area;
    const bool shown = pointers_shown(f);

    if (a->fip == (shown ? f->fip : 0) && a->fdp == (shown ? f->fdp : 0) && a->fop == (shown ? f->fop : 0))
        return;
    f->fip = a->fip;
    f->fdp = a->fdp;
    f->fop = a->fop;
}

static void area_from_host(struct fpu_unit *f)
{
    host_save(f->area);
    fpu_show_pointers(f);
}

void host_fpu_save(struct cpu *cpu)
{
    struct fpu_unit *f = cpu->fpu;

    if (!cpu->fpu_live)
        return;
    area_from_host(f);
    cpu->fpu_live = false;
    cpu->counters[CC_fpu_saves]++;
    /* what C code may rely on: its own control words, an empty x87 stack, no dirty upper halves */
    __asm__ volatile("fninit\n fldcw %0\n ldmxcsr %1" : : "m"(f->client_fcw), "m"(f->client_mxcsr));
    if (layout.mask & XFEATURE_AVX)
        __asm__ volatile("vzeroupper");
}

void host_fpu_load(struct cpu *cpu)
{
    struct fpu_unit *f = cpu->fpu;
    struct xsave_area *a = f->area;

    if (likely(cpu->fpu_live))
        return;
    __asm__ volatile("fnstcw %0\n stmxcsr %1" : "=m"(f->client_fcw), "=m"(f->client_mxcsr));
    /* the area is open to the hypervisor: nothing in it may make XRSTOR fault */
    a->mxcsr &= layout.mxcsr_mask;
    a->xstate_bv &= layout.mask;
    a->xcomp_bv = 0;
    memset(a->reserved2, 0, sizeof(a->reserved2));
    if (unlikely(!layout.xsave))
        fpu_area_init(a, ~a->xstate_bv & layout.mask);
    host_restore(a);
    take_pointers(f);
    cpu->fpu_live = true;
    cpu->counters[CC_fpu_loads]++;
}

struct xsave_area *fpu_sync(struct cpu *cpu)
{
    struct xsave_area *a = cpu->fpu->area;

    if (cpu->fpu_live)
        area_from_host(cpu->fpu);
    else
        fpu_area_init(a, ~a->xstate_bv & layout.mask);
    return a;
}
