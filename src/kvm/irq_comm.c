/* SPDX-License-Identifier: MIT
 * irq_comm.c: from a GSI or a message to local APICs: the routing table (api.rst, KVM_SET_GSI_ROUTING), MSIs,
 * destination matching (SDM 3A, "Determining IPI Destination"), and who is told of EOIs. */
#include "kvm_host.h"
#include "lapic.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define NR_CHIPS          3
#define NR_ROUTES_PER_GSI 3 /* PIC master or slave, IOAPIC; or one MSI */
#define PIC_PINS          16

struct kvm_irq_routing_table { /* immutable once published */
    unsigned count, nr_gsis;
    uint16_t *first;                            /* [nr_gsis + 1]: a GSI's entries in entry[] */
    struct kvm_irq_routing_entry *entry;        /* sorted by GSI; the PIC slave's pins are 8-15 */
    int gsi_of[NR_CHIPS][KVM_IRQCHIP_NUM_PINS]; /* -1: none */
    uint64_t level_msi[4]; /* split irqchip: vectors that the monitor's IOAPIC uses level-triggered */
};

/* ---- destinations ---- */
static bool match_physical(struct kvm_lapic *target, uint32_t dest)
{
    const uint32_t broadcast = apic_x2apic_mode(target) ? X2APIC_BROADCAST : XAPIC_BROADCAST;

    if (dest == broadcast)
        return true;
    if (apic_x2apic_mode(target) || dest > 0xff)
        return dest == (uint32_t)vcpu_id_of(target->vcpu);
    return dest == apic_get(target, APIC_ID) >> 24;
}

/* SDM 3A, "Logical Destination Mode": xAPIC flat and cluster model, x2APIC cluster */
static bool match_logical(struct kvm_lapic *target, uint32_t dest)
{
    const uint32_t ldr = apic_get(target, APIC_LDR);

    if (apic_x2apic_mode(target))
        return dest == X2APIC_BROADCAST || (ldr >> 16 == dest >> 16 && (ldr & dest & 0xffff));
    if (dest == XAPIC_BROADCAST)
        return true;
    if (apic_get(target, APIC_DFR) >> 28 == 0xf)
        return ldr >> 24 & dest;
    return ldr >> 28 == (dest >> 4 & 0xf) && (ldr >> 24 & dest & 0xf);
}

bool kvm_apic_match_dest(struct kvm_vcpu *vcpu, struct kvm_lapic *source, int shorthand, uint32_t dest, int dest_mode)
{
    struct kvm_lapic *target = vcpu_apic(vcpu);

    if (!target)
        return false;
    switch ((uint32_t)shorthand) {
    case 0:
        /* devices say "all" with 8 bits, also to APICs in x2APIC mode (as KVM without X2APIC_API's quirk bit) */
        if (!source && dest == XAPIC_BROADCAST && apic_x2apic_mode(target))
            dest = X2APIC_BROADCAST;
        return dest_mode ? match_logical(target, dest) : match_physical(target, dest);
    case APIC_DEST_SELF:
        return target == source;
    case APIC_DEST_ALLINC:
        return true;
    default:
        return target != source;
    }
}

struct kvm_vcpu *kvm_apic_with_id(struct kvm *kvm, uint32_t apic_id)
{
    for (int i = 0; i < kvm_vcpus_online(kvm); i++) {
        struct kvm_vcpu *vcpu = kvm_vcpu_at(kvm, i);
        struct kvm_lapic *apic = vcpu ? vcpu_apic(vcpu) : NULL;

        if (apic && apic_id == (apic_x2apic_mode(apic) ? (uint32_t)vcpu_id_of(vcpu) : apic_get(apic, APIC_ID) >> 24))
            return vcpu;
    }
    return NULL;
}

void kvm_dest_map_add(void *dest_map, struct kvm_vcpu *vcpu, uint8_t vector)
{
    struct kvm_dest_map *map = dest_map;
    const unsigned i = (unsigned)vcpu_index_of(vcpu);

    map->vcpus[i / 64] |= 1ull << i % 64;
    map->vector = vector;
}

/* The one vCPU that a physical destination names, without a loop; NULL: loop. */
static struct kvm_vcpu *single_target(struct kvm *kvm, struct kvm_lapic *source, const struct kvm_lapic_irq *irq)
{
    struct kvm_vcpu *vcpu;

    if (irq->shorthand == APIC_DEST_SELF)
        return source ? source->vcpu : NULL;
    if (irq->shorthand || irq->dest_mode || irq->dest_id == XAPIC_BROADCAST || irq->dest_id == X2APIC_BROADCAST ||
        atomic_load_explicit(kvm_chips(kvm).apic_ids_moved, memory_order_relaxed))
        return NULL;
    vcpu = kvm_vcpu_with_id(kvm, irq->dest_id);
    return vcpu && vcpu_apic(vcpu) ? vcpu : NULL;
}

/* SDM 3A, "Lowest Priority Delivery Mode": among those enabled the one that was chosen least often, as KVM. */
static int deliver_lowest(struct kvm *kvm, struct kvm_lapic *source, const struct kvm_lapic_irq *irq, void *dest_map)
{
    struct kvm_lapic *best = NULL;

    for (int i = 0; i < kvm_vcpus_online(kvm); i++) {
        struct kvm_vcpu *vcpu = kvm_vcpu_at(kvm, i);
        struct kvm_lapic *apic = vcpu ? vcpu_apic(vcpu) : NULL;

        if (!apic || !apic_enabled(apic) ||
            !kvm_apic_match_dest(vcpu, source, (int)irq->shorthand, irq->dest_id, (int)irq->dest_mode))
            continue;
        if (!best || (int32_t)(atomic_load(&apic->arb_prio) - atomic_load(&best->arb_prio)) < 0)
            best = apic;
    }
    return best ? kvm_apic_set_irq(best->vcpu, irq, dest_map) : -1;
}

/* -1: no such destination; else the number of APICs that took it. Any thread, no lock. */
int kvm_irq_delivery_to_apic(struct kvm *kvm, struct kvm_lapic *source, const struct kvm_lapic_irq *irq, void *dest_map)
{
    struct kvm_vcpu *vcpu = single_target(kvm, source, irq);
    const bool lowest = irq->delivery_mode == APIC_DM_LOWEST || irq->msi_redir_hint;
    int r = -1;

    if (vcpu)
        return kvm_apic_set_irq(vcpu, irq, dest_map);
    if (irq->shorthand == APIC_DEST_SELF)
        return -1;
    /* physical broadcast with lowest priority is everybody's */
    if (lowest && (irq->dest_mode || irq->dest_id != XAPIC_BROADCAST))
        return deliver_lowest(kvm, source, irq, dest_map);
    for (int i = 0; i < kvm_vcpus_online(kvm); i++) {
        vcpu = kvm_vcpu_at(kvm, i);
        if (vcpu && kvm_apic_match_dest(vcpu, source, (int)irq->shorthand, irq->dest_id, (int)irq->dest_mode))
            r = (r < 0 ? 0 : r) + kvm_apic_set_irq(vcpu, irq, dest_map);
    }
    return r;
}

/* ---- messages (SDM 3A, "Message Signalled Interrupts") ---- */
static int deliver_msi(struct kvm *kvm, uint32_t address_lo, uint32_t address_hi, uint32_t data)
{
    const struct kvm_lapic_irq irq = {
        .vector = data & 0xff,
        .delivery_mode = data & APIC_MODE_MASK,
        .trig_mode = data >> 15 & 1,
        .level = 1,
        .dest_mode = address_lo & 4 ? APIC_DEST_LOGICAL : 0,
        .msi_redir_hint = address_lo & 8,
        .dest_id = (address_lo >> 12 & 0xff) | (kvm_chips(kvm).x2apic_format ? address_hi & 0xffffff00 : 0),
    };

    return kvm_irq_delivery_to_apic(kvm, NULL, &irq, NULL);
}

static bool msi_invalid(struct kvm *kvm, uint32_t address_hi)
{
    return kvm_chips(kvm).x2apic_format && address_hi & 0xff;
}

bool kvm_arch_can_set_irq(struct kvm *kvm)
{
    const struct kvm_chips chips = kvm_chips(kvm);

    return *chips.ioapic || chips.split;
}

/* KVM_SIGNAL_MSI */
int kvm_send_userspace_msi(struct kvm *kvm, const struct kvm_msi *msi)
{
    if (!kvm_arch_can_set_irq(kvm) || msi->flags || msi_invalid(kvm, msi->address_hi))
        return -EINVAL;
    return deliver_msi(kvm, msi->address_lo, msi->address_hi, msi->data);
}

/* ---- GSIs ---- */
static int set_route(struct kvm *kvm, const struct kvm_irq_routing_entry *e, int source, int level, bool line_status)
{
    const struct kvm_chips chips = kvm_chips(kvm);

    if (e->type == KVM_IRQ_ROUTING_MSI)
        return level ? deliver_msi(kvm, e->u.msi.address_lo, e->u.msi.address_hi, e->u.msi.data) : -1;
    if (e->u.irqchip.irqchip == KVM_IRQCHIP_IOAPIC)
        return *chips.ioapic
                   ? kvm_ioapic_set_irq_status(*chips.ioapic, (int)e->u.irqchip.pin, source, level, line_status)
                   : -1;
    return *chips.pic ? kvm_pic_set_irq(*chips.pic, (int)e->u.irqchip.pin, source, level) : -1;
}

int kvm_set_irq(struct kvm *kvm, int source, uint32_t gsi, int level, bool line_status)
{
    const unsigned token = srcu_read_lock(&kvm->srcu);
    const struct kvm_irq_routing_table *rt = atomic_load(&kvm->irq_routing);
    int ret = -1;

    kvm_trace(TRACE_IRQ, "irq: gsi %u level %d source %d", gsi, level, source);
    if (rt && gsi < rt->nr_gsis)
        for (unsigned i = rt->first[gsi]; i < rt->first[gsi + 1]; i++) {
            const int r = set_route(kvm, &rt->entry[i], source, level, line_status);

            if (r >= 0)
                ret = r + (ret < 0 ? 0 : ret);
        }
    srcu_read_unlock(&kvm->srcu, token);
    return ret;
}

bool kvm_split_handles_vector(struct kvm *kvm, int vector)
{
    const unsigned token = srcu_read_lock(&kvm->srcu);
    const struct kvm_irq_routing_table *rt = atomic_load(&kvm->irq_routing);
    const bool r = rt && kvm_chips(kvm).split && rt->level_msi[(unsigned)vector / 64] >> vector % 64 & 1;

    srcu_read_unlock(&kvm->srcu, token);
    return r;
}

/* ---- who is told of EOIs ---- */
void kvm_register_irq_ack_notifier(struct kvm *kvm, struct kvm_irq_ack_notifier *n)
{
    pthread_mutex_lock(&kvm->irq_lock);
    n->next = atomic_load(&kvm->irq_ack_notifiers);
    atomic_store(&kvm->irq_ack_notifiers, n);
    pthread_mutex_unlock(&kvm->irq_lock);
    kvm_ioapic_rescan(kvm);
}

void kvm_unregister_irq_ack_notifier(struct kvm *kvm, struct kvm_irq_ack_notifier *n)
{
    struct kvm_irq_ack_notifier *i;

    pthread_mutex_lock(&kvm->irq_lock);
    i = atomic_load(&kvm->irq_ack_notifiers);
    if (i == n)
        atomic_store(&kvm->irq_ack_notifiers, n->next);
    for (; i; i = i->next)
        if (i->next == n)
            __atomic_store_n(&i->next, n->next, __ATOMIC_SEQ_CST);
    srcu_synchronize(&kvm->srcu);
    pthread_mutex_unlock(&kvm->irq_lock);
    kvm_ioapic_rescan(kvm);
}

/* In a section of the caller's. */
static int gsi_of_pin(struct kvm *kvm, unsigned irqchip, unsigned pin)
{
    const struct kvm_irq_routing_table *rt = atomic_load(&kvm->irq_routing);

    return rt && irqchip < NR_CHIPS && pin < KVM_IRQCHIP_NUM_PINS ? rt->gsi_of[irqchip][pin] : -1;
}

static bool for_each_notifier(struct kvm *kvm, int gsi, bool call)
{
    struct kvm_irq_ack_notifier *n = gsi < 0 ? NULL : atomic_load(&kvm->irq_ack_notifiers);
    bool found = false;

    for (; n; n = __atomic_load_n(&n->next, __ATOMIC_SEQ_CST))
        if (n->gsi == (uint32_t)gsi) {
            found = true;
            if (call)
                n->irq_acked(n);
        }
    return found;
}

bool kvm_irq_has_notifier(struct kvm *kvm, unsigned irqchip, unsigned pin)
{
    const unsigned token = srcu_read_lock(&kvm->srcu);
    const bool r = for_each_notifier(kvm, gsi_of_pin(kvm, irqchip, pin), false);

    srcu_read_unlock(&kvm->srcu, token);
    return r;
}

void kvm_notify_acked_irq(struct kvm *kvm, unsigned irqchip, unsigned pin)
{
    const unsigned token = srcu_read_lock(&kvm->srcu);

    for_each_notifier(kvm, gsi_of_pin(kvm, irqchip, pin), true);
    srcu_read_unlock(&kvm->srcu, token);
}

/* The split irqchip's monitor ended it (KVM_EXIT_IOAPIC_EOI, or a resample of its own). */
void kvm_notify_acked_gsi(struct kvm *kvm, uint32_t gsi)
{
    const unsigned token = srcu_read_lock(&kvm->srcu);

    for_each_notifier(kvm, (int)gsi, true);
    srcu_read_unlock(&kvm->srcu, token);
}

/* ---- building a table ---- */
static int check_entry(struct kvm *kvm, struct kvm_irq_routing_entry *e)
{
    const unsigned pin = e->u.irqchip.pin;

    if (e->gsi >= KVM_MAX_IRQ_ROUTES || e->flags)
        return -EINVAL;
    if (e->type == KVM_IRQ_ROUTING_MSI)
        return msi_invalid(kvm, e->u.msi.address_hi) ? -EINVAL : 0;
    if (e->type != KVM_IRQ_ROUTING_IRQCHIP || kvm_chips(kvm).split)
        return -EINVAL; /* Hyper-V's SynIC, Xen's event channels and s390's adapters are not there */
    switch (e->u.irqchip.irqchip) {
    case KVM_IRQCHIP_PIC_SLAVE:
        e->u.irqchip.pin += 8;
        return pin < PIC_PINS / 2 ? 0 : -EINVAL;
    case KVM_IRQCHIP_PIC_MASTER:
        return pin < PIC_PINS / 2 ? 0 : -EINVAL;
    case KVM_IRQCHIP_IOAPIC:
        return pin < KVM_IRQCHIP_NUM_PINS ? 0 : -EINVAL;
    default:
        return -EINVAL;
    }
}

static int by_gsi(const void *a, const void *b)
{
    const struct kvm_irq_routing_entry *x = a, *y = b;

    return x->gsi < y->gsi ? -1 : x->gsi > y->gsi;
}

/* One GSI may reach several chips, a pin of each; or it is one message. */
static int check_group(const struct kvm_irq_routing_entry *e, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        for (unsigned j = 0; j < i; j++)
            if (e[i].type != KVM_IRQ_ROUTING_IRQCHIP || e[j].type != KVM_IRQ_ROUTING_IRQCHIP ||
                e[i].u.irqchip.irqchip == e[j].u.irqchip.irqchip)
                return -EINVAL;
    return 0;
}

static void table_free(struct kvm_irq_routing_table *rt)
{
    if (rt) {
        free(rt->first);
        free(rt->entry);
        free(rt);
    }
}

static struct kvm_irq_routing_table *table_alloc(const struct kvm_irq_routing_entry *entries, unsigned n)
{
    struct kvm_irq_routing_table *rt = calloc(1, sizeof(*rt));

    if (!rt)
        return NULL;
    rt->count = n;
    for (unsigned i = 0; i < n; i++)
        if (entries[i].gsi < KVM_MAX_IRQ_ROUTES && entries[i].gsi >= rt->nr_gsis)
            rt->nr_gsis = entries[i].gsi + 1;
    rt->first = calloc(rt->nr_gsis + 1, sizeof(*rt->first));
    rt->entry = calloc(n ? n : 1, sizeof(*rt->entry));
    if (!rt->first || !rt->entry) {
        table_free(rt);
        return NULL;
    }
    if (n)
        memcpy(rt->entry, entries, n * sizeof(*entries));
    memset(rt->gsi_of, -1, sizeof(rt->gsi_of));
    return rt;
}

static int table_index(struct kvm *kvm, struct kvm_irq_routing_table *rt)
{
    unsigned i = 0;

    for (unsigned k = 0; k < rt->count; k++) {
        const int err = check_entry(kvm, &rt->entry[k]);

        if (err)
            return err;
    }
    qsort(rt->entry, rt->count, sizeof(*rt->entry), by_gsi);
    for (unsigned gsi = 0; gsi < rt->nr_gsis; gsi++) {
        const unsigned first = i;

        rt->first[gsi] = (uint16_t)i;
        for (; i < rt->count && rt->entry[i].gsi == gsi; i++) {
            const struct kvm_irq_routing_entry *e = &rt->entry[i];

            if (i - first >= NR_ROUTES_PER_GSI)
                return -EINVAL;
            if (e->type == KVM_IRQ_ROUTING_IRQCHIP)
                rt->gsi_of[e->u.irqchip.irqchip][e->u.irqchip.pin] = (int)gsi;
            else if (gsi < (unsigned)atomic_load(&kvm->arch.nr_irqs_reserved) && e->u.msi.data & 1 << 15)
                rt->level_msi[(e->u.msi.data & 0xff) / 64] |= 1ull << (e->u.msi.data & 63);
        }
        if (check_group(&rt->entry[first], i - first))
            return -EINVAL;
    }
    rt->first[rt->nr_gsis] = (uint16_t)i;
    return 0;
}

/* An entry's check is what KVM's is; the old table serves until no reader holds it. */
int kvm_set_irq_routing(struct kvm *kvm, const struct kvm_irq_routing_entry *entries, unsigned n, unsigned flags)
{
    struct kvm_irq_routing_table *rt, *old;
    int err;

    if (n > KVM_MAX_IRQ_ROUTES || flags)
        return -EINVAL;
    for (unsigned i = 0; i < n; i++)
        if (entries[i].gsi >= KVM_MAX_IRQ_ROUTES)
            return -EINVAL;
    rt = table_alloc(entries, n);
    if (!rt)
        return -ENOMEM;
    err = table_index(kvm, rt);
    if (err) {
        table_free(rt);
        return err;
    }
    pthread_mutex_lock(&kvm->irq_lock);
    old = atomic_exchange(&kvm->irq_routing, rt);
    srcu_synchronize(&kvm->srcu);
    pthread_mutex_unlock(&kvm->irq_lock);
    table_free(old);
    kvm_irq_routing_update(kvm);
    return 0;
}

/* Which pins have notifiers changed with the table; irqfds keep no copy of a route. */
void kvm_irq_routing_update(struct kvm *kvm)
{
    kvm_ioapic_rescan(kvm);
}

/* GSIs 0-15: PIC and IOAPIC, 16-23: IOAPIC */
int kvm_setup_default_irq_routing(struct kvm *kvm)
{
    struct kvm_irq_routing_entry e[PIC_PINS + KVM_IRQCHIP_NUM_PINS] = {0};
    unsigned n = 0;

    for (unsigned gsi = 0; gsi < KVM_IRQCHIP_NUM_PINS; gsi++) {
        e[n++] = (struct kvm_irq_routing_entry){
            .gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = {.irqchip = KVM_IRQCHIP_IOAPIC, .pin = gsi}};
        if (gsi < PIC_PINS)
            e[n++] = (struct kvm_irq_routing_entry){
                .gsi = gsi,
                .type = KVM_IRQ_ROUTING_IRQCHIP,
                .u.irqchip = {.irqchip = gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, .pin = gsi & 7}};
    }
    return kvm_set_irq_routing(kvm, e, n, 0);
}

int kvm_setup_empty_irq_routing(struct kvm *kvm)
{
    return kvm_set_irq_routing(kvm, NULL, 0, 0);
}

void kvm_free_irq_routing(struct kvm *kvm)
{
    table_free(atomic_exchange(&kvm->irq_routing, NULL));
}
