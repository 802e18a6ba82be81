/* SPDX-License-Identifier: MIT
 * vmx_msr_list.c: MSRs that VM entries and exits load and store (SDM 3C, "Loading MSRs", "Saving MSRs"). An entry is
 * copied before it is looked at: level 1's lists lie in its memory. */
#include "vmx/nested_int.h"

struct msr_entry {
    uint32_t index, reserved;
    uint64_t data;
};

static bool msr_loadable(const struct msr_entry *e)
{
    return !e->reserved && e->index != 0xc0000100 /* FS.base */ && e->index != 0xc0000101 /* GS.base */ &&
           e->index >> 8 != 8 /* x2APIC */;
}

/* An MSR that the processor does not hold is the hypervisor's of level 0: asked where level 1 uses it. */
static int load_one(struct cpu *cpu, unsigned level, const struct msr_entry *e)
{
    const struct vmx_nested *n = cpu->vmx->nested;

    if (msr_write(cpu, e->index, e->data) == CPU_OK)
        return 0;
    cpu->pending.valid = false;
    if (!level || !n->ops)
        return -1;
    host_fpu_save(cpu);
    return n->ops->wrmsr(n->opaque, e->index, e->data);
}

static int store_one(struct cpu *cpu, unsigned level, struct msr_entry *e)
{
    const struct vmx_nested *n = cpu->vmx->nested;

    if (msr_read(cpu, e->index, &e->data) == CPU_OK)
        return 0;
    cpu->pending.valid = false;
    if (!level || !n->ops)
        return -1;
    host_fpu_save(cpu);
    return n->ops->rdmsr(n->opaque, e->index, &e->data);
}

int vmx_msr_load(struct cpu *cpu, unsigned level, uint64_t list, uint64_t count, uint64_t *failed)
{
    for (unsigned i = 0; i < count; i++) {
        struct msr_entry e;

        *failed = i + 1;
        if (vmx_phys_read(cpu, level, list + i * sizeof(e), &e, sizeof(e)) || !msr_loadable(&e) ||
            load_one(cpu, level, &e))
            return -1;
    }
    return 0;
}

int vmx_exit_msr_store(struct cpu *cpu, unsigned level)
{
    const struct vmcs *v = cpu->vmx->level[level].cur;

    for (unsigned i = 0; i < v->VM_EXIT_MSR_STORE_COUNT; i++) {
        const uint64_t at = v->VM_EXIT_MSR_STORE_ADDR + i * sizeof(struct msr_entry);
        struct msr_entry e;

        if (vmx_phys_read(cpu, level, at, &e, sizeof(e)) || e.reserved || e.index >> 8 == 8 ||
            store_one(cpu, level, &e) ||
            vmx_phys_write(cpu, level, at + offsetof(struct msr_entry, data), &e.data, sizeof(e.data)))
            return -1;
    }
    return 0;
}
