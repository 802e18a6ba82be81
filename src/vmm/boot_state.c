/* SPDX-License-Identifier: MIT
 * boot_state.c: what KVM's part of a new machine looks like, kept so that a reset can put it back. */
#include "vmm.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct vcpu_boot_state {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_xsave xsave;
    struct kvm_xcrs xcrs;
    struct kvm_lapic_state lapic;
    struct kvm_vcpu_events events;
    struct kvm_debugregs debugregs;
    struct kvm_mp_state mp_state;
};

struct boot_state {
    struct kvm_irqchip chip[3];
    struct kvm_pit_state2 pit;
    struct vcpu_boot_state vcpu[];
};

/* get and set of one structure, in the order in which they are put back */
static const struct {
    const char *name;
    unsigned long get, set;
    size_t offset;
} vcpu_parts[] = {
#define PART(name, field)                                                              \
    {                                                                                  \
#name, KVM_GET_##name, KVM_SET_##name, offsetof(struct vcpu_boot_state, field) \
    }
    PART(SREGS, sregs), PART(REGS, regs),          PART(XSAVE, xsave),         PART(XCRS, xcrs),
    PART(LAPIC, lapic), PART(VCPU_EVENTS, events), PART(DEBUGREGS, debugregs), PART(MP_STATE, mp_state),
};

/* What firmware leaves, and what a guest sets that must be as at power-on when it starts again. MTRRs on, all memory
 * write-back: a kernel that finds them off gives up PAT too. */
static const struct kvm_msr_entry reset_msrs[] = {
    {.index = 0x4b564d01}, {.index = 0x4b564d00}, {.index = 0x4b564d04},
    {.index = 0x4b564d03}, {.index = 0x4b564d02}, {.index = 0x174},
    {.index = 0x175},      {.index = 0x176},      {.index = 0xc0000081},
    {.index = 0xc0000082}, {.index = 0xc0000083}, {.index = 0xc0000084},
    {.index = 0xc0000102}, {.index = 0x6e0},      {.index = 0x2ff, .data = 0xc06},
};

static int reset_one_msr(struct machine *m, struct vcpu *v, const struct kvm_msr_entry *entry)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } msrs = {.head.nmsrs = 1, .entry = *entry};

    return m->accel.api->ioctl(v->fd, KVM_SET_MSRS, &msrs);
}

static void set_msrs(struct machine *m, struct vcpu *v)
{
    for (unsigned k = 0; k < ARRAY_SIZE(reset_msrs); k++) /* one by one: a KVM may lack some */
        reset_one_msr(m, v, &reset_msrs[k]);
}

static int irqchips(struct machine *m, unsigned long request)
{
    for (unsigned i = 0; i < 3; i++) {
        m->boot_state->chip[i].chip_id = i;
        if (m->accel.api->ioctl(m->accel.vm_fd, request, &m->boot_state->chip[i]) < 0)
            return vmm_error("irqchip %u: %s", i, strerror(errno));
    }
    return 0;
}

int boot_state_save(struct machine *m)
{
    m->boot_state = calloc(1, sizeof(struct boot_state) + m->config.cpus * sizeof(struct vcpu_boot_state));
    if (!m->boot_state)
        return vmm_error("no memory");
    for (unsigned i = 0; i < m->config.cpus; i++) {
        set_msrs(m, &m->vcpus[i]);
        for (unsigned p = 0; p < ARRAY_SIZE(vcpu_parts); p++)
            if (m->accel.api->ioctl(m->vcpus[i].fd, vcpu_parts[p].get,
                                    (char *)&m->boot_state->vcpu[i] + vcpu_parts[p].offset) < 0)
                return vmm_error("KVM_GET_%s: %s", vcpu_parts[p].name, strerror(errno));
    }
    if (m->accel.api->ioctl(m->accel.vm_fd, KVM_GET_PIT2, &m->boot_state->pit) < 0)
        return vmm_error("KVM_GET_PIT2: %s", strerror(errno));
    return irqchips(m, KVM_GET_IRQCHIP);
}

int boot_state_restore(struct machine *m)
{
    for (unsigned i = 0; i < m->config.cpus; i++) {
        for (unsigned p = 0; p < ARRAY_SIZE(vcpu_parts); p++)
            if (m->accel.api->ioctl(m->vcpus[i].fd, vcpu_parts[p].set,
                                    (char *)&m->boot_state->vcpu[i] + vcpu_parts[p].offset) < 0)
                return vmm_error("KVM_SET_%s: %s", vcpu_parts[p].name, strerror(errno));
        set_msrs(m, &m->vcpus[i]);
    }
    if (m->accel.api->ioctl(m->accel.vm_fd, KVM_SET_PIT2, &m->boot_state->pit) < 0)
        return vmm_error("KVM_SET_PIT2: %s", strerror(errno));
    return irqchips(m, KVM_SET_IRQCHIP);
}
