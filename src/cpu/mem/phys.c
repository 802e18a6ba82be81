/* SPDX-License-Identifier: MIT
 * phys.c: physical memory of level 1 as its VMX uses it (VMCS regions, bitmaps, MSR lists, virtual-APIC pages): through
 * level 0's EPT, whatever runs now. What the EPT does not map or allow yet the hypervisor reads and writes itself, by
 * callbacks outside of guest mode; where there is no memory at all, -1. */
#include "mem/mem_int.h"
#include "vmx/nested_int.h"

/* The page's host address, or 0. */
static hva_t phys_page(struct cpu *cpu, gpa_t gpa, unsigned acc)
{
    struct ept_fault fault;
    unsigned perms;
    hva_t page;

    if (!cpu->mem->eptp || ept_translate_level0(cpu->mem, gpa, acc, &page, &perms, &fault))
        return 0;
    return page;
}

static int by_hypervisor(struct cpu *cpu, gpa_t gpa, void *buf, size_t n, bool write)
{
    const struct vmx_nested *x = cpu->vmx->nested;
    int r;

    if (!x->ops)
        return -1;
    host_fpu_save(cpu);
    mem_guest_leave(cpu);
    r = write ? x->ops->write(x->opaque, gpa, buf, n) : x->ops->read(x->opaque, gpa, buf, n);
    mem_guest_enter(cpu);
    return r;
}

static int in_page(struct cpu *cpu, gpa_t gpa, void *buf, size_t n, bool write)
{
    const hva_t page = phys_page(cpu, gpa, write ? ACC_WRITE : ACC_READ), hva = page | (gpa & ~PAGE_MASK);

    if (!page)
        return by_hypervisor(cpu, gpa, buf, n, write);
    if (write ? host_copy((void *)hva, buf, n) : host_copy(buf, (void *)hva, n))
        return -1;
    if (write && code_page_present(cpu->domain, page))
        code_written(cpu, hva, (unsigned)n);
    return 0;
}

static int phys_move(struct cpu *cpu, gpa_t gpa, void *buf, size_t n, bool write)
{
    uint8_t *p = buf;

    while (n) {
        const size_t room = PAGE_SIZE - (gpa & ~PAGE_MASK), part = n < room ? n : room;

        if (in_page(cpu, gpa, p, part, write))
            return -1;
        gpa += part;
        p += part;
        n -= part;
    }
    return 0;
}

int vmx_phys_read(struct cpu *cpu, unsigned level, uint64_t pa, void *buf, size_t n)
{
    return level ? phys_move(cpu, pa, buf, n, false) : host_copy(buf, (const void *)pa, n);
}

int vmx_phys_write(struct cpu *cpu, unsigned level, uint64_t pa, const void *buf, size_t n)
{
    return level ? phys_move(cpu, pa, (void *)buf, n, true) : host_copy((void *)pa, buf, n);
}
