/* SPDX-License-Identifier: MIT
 * i8254.c: the interval timer (Intel 8254 datasheet): counters 0-2 at 1.193182 MHz computed from the clock when looked
 * at, counter 0's interrupt by ktimer on GSI 0, the speaker port 0x61; state as of KVM_GET_PIT2. */
#include "iodev.h"
#include "irq.h"
#include "os.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define PIT_HZ        1193182u
#define MIN_PERIOD_NS 200000 /* as the local APIC's: KVM's min_timer_period_us */
#define PIT_BASE      0x40
#define SPEAKER_PORT  0x61

enum rw { RW_LATCH, RW_LSB, RW_MSB, RW_WORD0, RW_WORD1 }; /* KVM's encoding of read_state, write_state, count_latched */

struct kvm_pit {
    struct kvm_io_device dev, speaker;
    struct kvm *kvm;
    pthread_mutex_t lock;
    struct kvm_pit_channel_state c[3];
    bool no_count[3];         /* a control word came, no count yet: status' "null count" */
    uint64_t frozen_ticks[3]; /* modes 0 and 4 with the gate low: ticks so far */
    uint32_t flags;
    bool speaker_on;
    struct ktimer timer;         /* counter 0 */
    uint64_t next_ns, period_ns; /* next_ns 0: not armed; period_ns 0: once */
    struct kvm_irq_ack_notifier ack;
    _Atomic bool reinject;
    _Atomic bool irq_acked;   /* the last tick's EOI was seen */
    _Atomic uint32_t pending; /* ticks that wait for it */
};

/* ---- counting ---- */
static uint64_t ns_to_ticks(uint64_t ns)
{
    return (uint64_t)((unsigned __int128)ns * PIT_HZ / 1000000000);
}

static uint64_t ticks_to_ns(uint64_t ticks)
{
    return (ticks * 1000000000 + PIT_HZ / 2) / PIT_HZ;
}

static uint32_t bcd_to_bin(uint32_t v)
{
    return (v & 15) + (v >> 4 & 15) * 10 + (v >> 8 & 15) * 100 + (v >> 12 & 15) * 1000;
}

static uint32_t bin_to_bcd(uint32_t v)
{
    return v % 10 | v / 10 % 10 << 4 | v / 100 % 10 << 8 | v / 1000 % 10 << 12;
}

static uint32_t modulus(const struct kvm_pit_channel_state *c)
{
    return c->bcd ? 10000 : 0x10000;
}

static bool gate_pauses(const struct kvm_pit_channel_state *c)
{
    return c->mode == 0 || c->mode == 4;
}

static uint64_t ticks(const struct kvm_pit *pit, unsigned ch)
{
    const struct kvm_pit_channel_state *c = &pit->c[ch];
    const int64_t ns = (int64_t)os_clock_ns() - c->count_load_time;

    if (gate_pauses(c) && !c->gate)
        return pit->frozen_ticks[ch];
    return ns > 0 ? ns_to_ticks((uint64_t)ns) : 0;
}

/* 8254 datasheet, "Mode Definitions" */
static uint16_t counter(const struct kvm_pit *pit, unsigned ch)
{
    const struct kvm_pit_channel_state *c = &pit->c[ch];
    const uint64_t t = ticks(pit, ch);
    const uint32_t count = c->count ? c->count : modulus(c);
    uint32_t value;

    switch (c->mode) {
    case 2:
        value = count - (uint32_t)(t % count);
        break;
    case 3: /* by twos */
        value = (count - (uint32_t)(2 * t % count)) & ~1u;
        break;
    default: /* through zero and on */
        value = (uint32_t)((count + modulus(c) - t % modulus(c)) % modulus(c));
    }
    value %= modulus(c);
    return (uint16_t)(c->bcd ? bin_to_bcd(value) : value);
}

static bool output(const struct kvm_pit *pit, unsigned ch)
{
    const struct kvm_pit_channel_state *c = &pit->c[ch];
    const uint64_t t = ticks(pit, ch);
    const uint32_t count = c->count ? c->count : modulus(c);

    if (pit->no_count[ch])
        return c->mode != 0;
    switch (c->mode) {
    case 2:
        return t % count != count - 1;
    case 3:
        return t % count < (count + 1) / 2;
    case 4:
    case 5:
        return t != count;
    default:
        return t >= count;
    }
}

/* ---- counter 0's interrupt ---- */
/* An edge on GSI 0, and on local APICs that take it as an NMI (Linux' watchdog of old). */
static void tick(struct kvm_pit *pit)
{
    if (atomic_load(&pit->reinject) && !atomic_exchange(&pit->irq_acked, false))
        return;
    kvm_set_irq(pit->kvm, KVM_PIT_IRQ_SOURCE_ID, 0, 1, false);
    kvm_set_irq(pit->kvm, KVM_PIT_IRQ_SOURCE_ID, 0, 0, false);
    for (int i = 0; i < kvm_vcpus_online(pit->kvm); i++)
        kvm_apic_nmi_wd_deliver(kvm_vcpu_at(pit->kvm, i));
}

/* The guest ended a tick: one that came meanwhile is due now. */
static void irq_acked(struct kvm_irq_ack_notifier *n)
{
    struct kvm_pit *pit = (struct kvm_pit *)((char *)n - offsetof(struct kvm_pit, ack));
    uint32_t pending = atomic_load(&pit->pending);

    atomic_store(&pit->irq_acked, true);
    while (pending && !atomic_compare_exchange_weak(&pit->pending, &pending, pending - 1))
        ;
    if (pending > 1)
        tick(pit);
}

/* Timer thread. The settings may have changed since it was armed: next_ns decides. */
static void timer_fn(struct ktimer *timer)
{
    struct kvm_pit *pit = timer->opaque;
    const uint64_t now_ns = os_clock_ns();
    uint32_t due = 0;

    pthread_mutex_lock(&pit->lock);
    if (pit->next_ns && now_ns >= pit->next_ns) {
        due = 1;
        if (pit->period_ns) {
            due += (uint32_t)((now_ns - pit->next_ns) / pit->period_ns);
            pit->next_ns += due * pit->period_ns;
        } else {
            pit->next_ns = 0;
        }
    }
    if (pit->next_ns)
        ktimer_start(timer, pit->next_ns);
    pthread_mutex_unlock(&pit->lock);
    if (!due)
        return;
    if (atomic_load(&pit->reinject))
        atomic_fetch_add(&pit->pending, due);
    tick(pit);
}

/* With the lock held: a callback that is on its way finds next_ns changed. */
static void arm(struct kvm_pit *pit)
{
    const struct kvm_pit_channel_state *c = &pit->c[0];
    const uint32_t count = c->count ? c->count : modulus(c);
    const uint64_t ns = ticks_to_ns(count);

    pit->next_ns = pit->period_ns = 0;
    atomic_store(&pit->pending, 0);
    atomic_store(&pit->irq_acked, true);
    if (pit->flags & KVM_PIT_FLAGS_HPET_LEGACY)
        return;
    switch (c->mode) {
    case 0:
    case 4:
        pit->next_ns = (uint64_t)c->count_load_time + ns;
        break;
    case 2:
    case 3:
        pit->period_ns = ns < MIN_PERIOD_NS ? MIN_PERIOD_NS : ns;
        pit->next_ns = (uint64_t)c->count_load_time + pit->period_ns;
        break;
    default: /* 1 and 5 start by a rising gate: counter 0's is always high */
        return;
    }
    ktimer_start(&pit->timer, pit->next_ns);
}

/* ---- ports 0x40-0x43 ---- */
static void load_count(struct kvm_pit *pit, unsigned ch, uint32_t value)
{
    struct kvm_pit_channel_state *c = &pit->c[ch];

    if (c->bcd)
        value = bcd_to_bin(value);
    c->count = value ? value : modulus(c);
    c->count_load_time = (int64_t)os_clock_ns();
    pit->no_count[ch] = false;
    pit->frozen_ticks[ch] = 0;
    if (ch == 0)
        arm(pit);
}

static void latch_count(struct kvm_pit *pit, unsigned ch)
{
    struct kvm_pit_channel_state *c = &pit->c[ch];

    if (!c->count_latched) {
        c->latched_count = counter(pit, ch);
        c->count_latched = c->rw_mode;
    }
}

static void latch_status(struct kvm_pit *pit, unsigned ch)
{
    struct kvm_pit_channel_state *c = &pit->c[ch];

    if (!c->status_latched) {
        c->status = (uint8_t)(output(pit, ch) << 7 | pit->no_count[ch] << 6 | c->rw_mode << 4 | c->mode << 1 | c->bcd);
        c->status_latched = 1;
    }
}

static void write_control(struct kvm_pit *pit, uint8_t val)
{
    const unsigned ch = val >> 6;
    struct kvm_pit_channel_state *c = &pit->c[ch % 3];

    if (ch == 3) { /* read-back */
        for (unsigned i = 0; i < 3; i++) {
            if (val & 2u << i && !(val & 0x20))
                latch_count(pit, i);
            if (val & 2u << i && !(val & 0x10))
                latch_status(pit, i);
        }
        return;
    }
    if ((val >> 4 & 3) == RW_LATCH) {
        latch_count(pit, ch);
        return;
    }
    c->rw_mode = c->read_state = c->write_state = val >> 4 & 3;
    c->mode = (val >> 1 & 7) > 5 ? (val >> 1 & 7) - 4 : val >> 1 & 7;
    c->bcd = val & 1;
    c->count_latched = c->status_latched = 0;
    pit->no_count[ch] = true;
    if (ch == 0)
        pit->next_ns = 0;
}

static void write_count(struct kvm_pit *pit, unsigned ch, uint8_t val)
{
    struct kvm_pit_channel_state *c = &pit->c[ch];

    switch (c->write_state) {
    case RW_MSB:
        load_count(pit, ch, (uint32_t)val << 8);
        break;
    case RW_WORD0:
        c->write_latch = val;
        c->write_state = RW_WORD1;
        break;
    case RW_WORD1:
        c->write_state = RW_WORD0;
        load_count(pit, ch, c->write_latch | (uint32_t)val << 8);
        break;
    default:
        load_count(pit, ch, val);
    }
}

static uint8_t read_latched(struct kvm_pit_channel_state *c)
{
    const uint16_t value = c->latched_count;

    switch (c->count_latched) {
    case RW_WORD0:
        c->count_latched = RW_MSB;
        return (uint8_t)value;
    case RW_MSB:
        c->count_latched = 0;
        return (uint8_t)(value >> 8);
    default:
        c->count_latched = 0;
        return (uint8_t)value;
    }
}

static uint8_t read_counter(struct kvm_pit *pit, unsigned ch)
{
    struct kvm_pit_channel_state *c = &pit->c[ch];

    if (c->status_latched) {
        c->status_latched = 0;
        return c->status;
    }
    if (c->count_latched)
        return read_latched(c);
    switch (c->read_state) {
    case RW_MSB:
        return (uint8_t)(counter(pit, ch) >> 8);
    case RW_WORD0:
        c->read_state = RW_WORD1;
        return (uint8_t)counter(pit, ch);
    case RW_WORD1:
        c->read_state = RW_WORD0;
        return (uint8_t)(counter(pit, ch) >> 8);
    default:
        return (uint8_t)counter(pit, ch);
    }
}

static int pit_write(struct kvm_vcpu *vcpu, struct kvm_io_device *dev, uint64_t port, int len, const void *val)
{
    struct kvm_pit *pit = (struct kvm_pit *)dev;
    const uint8_t byte = *(const uint8_t *)val; /* of a wider access the low byte, as KVM */

    pthread_mutex_lock(&pit->lock);
    if ((port & 3) == 3)
        write_control(pit, byte);
    else
        write_count(pit, port & 3, byte);
    pthread_mutex_unlock(&pit->lock);
    return 0;
}

static int pit_read(struct kvm_vcpu *vcpu, struct kvm_io_device *dev, uint64_t port, int len, void *val)
{
    struct kvm_pit *pit = (struct kvm_pit *)dev;

    memset(val, 0, (size_t)len);
    if ((port & 3) == 3) /* write only */
        return 0;
    pthread_mutex_lock(&pit->lock);
    *(uint8_t *)val = read_counter(pit, port & 3);
    pthread_mutex_unlock(&pit->lock);
    return 0;
}

/* ---- port 0x61: counter 2's gate, the speaker, counter 2's output (ICH9 datasheet, "NMI_SC") ---- */
static void set_gate(struct kvm_pit *pit, unsigned ch, bool gate)
{
    struct kvm_pit_channel_state *c = &pit->c[ch];

    if (gate_pauses(c)) {
        if (c->gate && !gate)
            pit->frozen_ticks[ch] = ticks(pit, ch);
        else if (!c->gate && gate)
            c->count_load_time = (int64_t)(os_clock_ns() - ticks_to_ns(pit->frozen_ticks[ch]));
    } else if (!c->gate && gate) { /* a rising edge starts it anew */
        c->count_load_time = (int64_t)os_clock_ns();
    }
    c->gate = gate;
}

static int speaker_write(struct kvm_vcpu *vcpu, struct kvm_io_device *dev, uint64_t port, int len, const void *val)
{
    struct kvm_pit *pit = (struct kvm_pit *)((char *)dev - offsetof(struct kvm_pit, speaker));
    const uint8_t byte = *(const uint8_t *)val;

    pthread_mutex_lock(&pit->lock);
    pit->speaker_on = byte >> 1 & 1;
    set_gate(pit, 2, byte & 1);
    pthread_mutex_unlock(&pit->lock);
    return 0;
}

/* Bit 4 toggles with memory refresh, about every 15 us. */
static int speaker_read(struct kvm_vcpu *vcpu, struct kvm_io_device *dev, uint64_t port, int len, void *val)
{
    struct kvm_pit *pit = (struct kvm_pit *)((char *)dev - offsetof(struct kvm_pit, speaker));

    memset(val, 0, (size_t)len);
    pthread_mutex_lock(&pit->lock);
    *(uint8_t *)val =
        (uint8_t)(pit->speaker_on << 1 | pit->c[2].gate | output(pit, 2) << 5 | (os_clock_ns() / 15085 & 1) << 4);
    pthread_mutex_unlock(&pit->lock);
    return 0;
}

static const struct kvm_io_device_ops pit_ops = {.read = pit_read, .write = pit_write};
static const struct kvm_io_device_ops speaker_ops = {.read = speaker_read, .write = speaker_write};

/* ---- creation and state ---- */
static void reset(struct kvm_pit *pit)
{
    for (unsigned ch = 0; ch < 3; ch++) {
        pit->c[ch].mode = 3;
        pit->c[ch].gate = ch != 2;
        pit->c[ch].rw_mode = pit->c[ch].read_state = pit->c[ch].write_state = RW_LSB;
        pit->c[ch].count = 0x10000;
        pit->c[ch].count_load_time = (int64_t)os_clock_ns();
        pit->no_count[ch] = true;
    }
}

struct kvm_pit *kvm_create_pit(struct kvm *kvm, uint32_t flags)
{
    struct kvm_pit *pit = calloc(1, sizeof(*pit));
    struct ktimer_thread *timers = kvm_timer_thread(kvm);

    if (!pit || !timers) {
        free(pit);
        return NULL;
    }
    pit->dev.ops = &pit_ops;
    pit->speaker.ops = &speaker_ops;
    pit->kvm = kvm;
    pthread_mutex_init(&pit->lock, NULL);
    ktimer_init(&pit->timer, timers, timer_fn, pit);
    reset(pit);
    pit->ack = (struct kvm_irq_ack_notifier){.gsi = 0, .irq_acked = irq_acked};
    *kvm_chips(kvm).pit = pit;
    kvm_pit_set_reinject(kvm, true);
    if (kvm_io_bus_register_dev(kvm, KVM_PIO_BUS, PIT_BASE, 4, &pit->dev) ||
        (flags & KVM_PIT_SPEAKER_DUMMY && kvm_io_bus_register_dev(kvm, KVM_PIO_BUS, SPEAKER_PORT, 1, &pit->speaker))) {
        kvm_free_pit(kvm);
        return NULL;
    }
    return pit;
}

void kvm_free_pit(struct kvm *kvm)
{
    struct kvm_pit *pit = *kvm_chips(kvm).pit;

    if (!pit)
        return;
    kvm_io_bus_unregister_dev(kvm, KVM_PIO_BUS, &pit->dev);
    kvm_io_bus_unregister_dev(kvm, KVM_PIO_BUS, &pit->speaker);
    kvm_pit_set_reinject(kvm, false);
    ktimer_cancel_sync(&pit->timer);
    *kvm_chips(kvm).pit = NULL;
    pthread_mutex_destroy(&pit->lock);
    free(pit);
}

/* Without reinjection a tick that meets an unacknowledged one is lost, and no EOI is watched (lazy EOIs stay lazy). */
int kvm_pit_set_reinject(struct kvm *kvm, bool reinject)
{
    struct kvm_pit *pit = *kvm_chips(kvm).pit;

    if (!pit)
        return -ENXIO;
    if (atomic_load(&pit->reinject) == reinject)
        return 0;
    atomic_store(&pit->pending, 0);
    atomic_store(&pit->irq_acked, true);
    if (reinject)
        kvm_register_irq_ack_notifier(kvm, &pit->ack);
    else
        kvm_unregister_irq_ack_notifier(kvm, &pit->ack);
    atomic_store(&pit->reinject, reinject);
    return 0;
}

int kvm_get_pit2(struct kvm *kvm, struct kvm_pit_state2 *state)
{
    struct kvm_pit *pit = *kvm_chips(kvm).pit;

    if (!pit)
        return -ENXIO;
    memset(state, 0, sizeof(*state));
    pthread_mutex_lock(&pit->lock);
    memcpy(state->channels, pit->c, sizeof(state->channels));
    state->flags = pit->flags | (pit->speaker_on ? KVM_PIT_FLAGS_SPEAKER_DATA_ON : 0);
    pthread_mutex_unlock(&pit->lock);
    return 0;
}

/* A client's values are not trusted: they index nothing and divide nothing that is 0. */
static void sanitize(struct kvm_pit_channel_state *c)
{
    const int64_t now_ns = (int64_t)os_clock_ns();

    c->bcd &= 1;
    c->mode = c->mode > 5 ? 3 : c->mode;
    c->gate = !!c->gate;
    if (c->count == 0 || c->count > modulus(c))
        c->count = modulus(c);
    if (c->count_load_time > now_ns || c->count_load_time < 0)
        c->count_load_time = now_ns; /* another host's clock */
}

int kvm_set_pit2(struct kvm *kvm, const struct kvm_pit_state2 *state)
{
    struct kvm_pit *pit = *kvm_chips(kvm).pit;

    if (!pit)
        return -ENXIO;
    pthread_mutex_lock(&pit->lock);
    memcpy(pit->c, state->channels, sizeof(pit->c));
    pit->flags = state->flags & KVM_PIT_FLAGS_HPET_LEGACY;
    pit->speaker_on = state->flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON;
    for (unsigned ch = 0; ch < 3; ch++) {
        sanitize(&pit->c[ch]);
        pit->no_count[ch] = false;
        pit->frozen_ticks[ch] = ns_to_ticks(os_clock_ns() - (uint64_t)pit->c[ch].count_load_time);
    }
    pit->c[0].count_load_time = (int64_t)os_clock_ns();
    arm(pit);
    pthread_mutex_unlock(&pit->lock);
    return 0;
}
