/* SPDX-License-Identifier: MIT
 * vmm.h: the monitor: machine, devices, buses, vCPU threads. Speaks only the KVM API (accel.h). */
#ifndef VMM_VMM_H
#define VMM_VMM_H

#include "accel.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MiB                             (1ull << 20)
#define GiB                             (1ull << 30)
#define ARRAY_SIZE(a)                   (sizeof(a) / sizeof((a)[0]))
#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

/* Physical map: RAM from 0 to at most 3 GiB, a hole for devices below 4 GiB, the rest of RAM from 4 GiB. */
#define LOW_RAM_MAX   (3 * GiB)
#define HIGH_RAM_BASE (4 * GiB)
#define IOAPIC_BASE   0xfec00000ull
#define LAPIC_BASE    0xfee00000ull
#define ACPI_BASE     0x000e0000ull /* RSDP and tables: inside the range that an operating system scans */
#define ACPI_SIZE     0x00010000ull
#define PM_BASE       0x600 /* ACPI PM1 event, control, timer */
#define SCI_IRQ       9
#define SLP_TYP_S5    5 /* what \_S5 names and PM1 control takes */

struct machine;
struct device;

enum bus { PIO, MMIO };
#define W8  1u /* access widths that a device takes; others read as ones and write nowhere */
#define W16 2u
#define W32 4u
#define W64 8u

/* Saved state of a device: the fields that a reset does not tell (machine.c saves and restores them by this list). */
struct state_field {
    const char *name;
    size_t offset, size;
};
#define STATE(type, field)                                        \
    {                                                             \
#field, offsetof(type, field), sizeof(((type *)0)->field) \
    }

/* off is relative to the region's base; size is 1, 2, 4 or 8, one that .widths has. Called with the device's lock held.
 */
struct device_type {
    const char *name;
    size_t size;
    unsigned widths;
    int (*init)(struct device *);
    void (*reset)(struct device *);
    uint64_t (*read)(struct device *, uint64_t off, unsigned size);
    void (*write)(struct device *, uint64_t off, unsigned size, uint64_t value);
    void (*destroy)(struct device *);
    const struct state_field *state; /* ends with a NULL name */
};

struct device {
    const struct device_type *type;
    struct machine *machine;
    enum bus bus;
    uint64_t base, len;
    int irq; /* GSI, -1: none */
    pthread_mutex_t lock;
};

/* A row of the machine's device table. */
struct device_row {
    const struct device_type *type;
    enum bus bus;
    uint64_t base, len;
    int irq;
};

struct machine_config {
    const char *kernel, *initrd, *append;
    uint64_t ram_size; /* bytes */
    unsigned cpus;
    enum accel_choice accel;
    bool no_reboot, verbose;
    const char *engine, *kvm_params;
    bool hardened;
};

enum request { REQ_NONE, REQ_RESET, REQ_SHUTDOWN, REQ_FAIL };

struct vcpu {
    struct machine *machine;
    unsigned id;
    int fd;
    struct kvm_run *run;
    pthread_t thread;
    _Atomic bool parked;
};

#define MAX_VCPUS 64
struct machine {
    struct machine_config config;
    struct accel accel;
    void *ram; /* one mapping; guest-physical RAM below and above the hole */
    uint64_t low_ram, high_ram;
    struct vcpu vcpus[MAX_VCPUS];
    struct device *devices[32];
    unsigned ndevices;
    struct device *serial; /* the console */
    pthread_mutex_t lock;  /* request, parking */
    pthread_cond_t cond;
    enum request request;
    int exit_status;
    unsigned parked;
    bool stop; /* vCPU threads end */
    struct boot_state *boot_state;
};

/* "anykvm run: " text on stderr; returns -1. */
int vmm_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* machine.c */
int machine_run(const struct machine_config *); /* exit status of the process */
void machine_request(struct machine *, enum request);
void machine_fail(struct machine *, const char *format, ...) __attribute__((format(printf, 2, 3)));
void machine_set_irq(struct machine *, int gsi, int level);
/* A pointer to RAM at [gpa, gpa + size), NULL when that is not all RAM. */
void *machine_ram(struct machine *, uint64_t gpa, uint64_t size);

/* bus.c */
int bus_add(struct machine *, const struct device_row *);
void bus_access(struct machine *, enum bus, uint64_t where, unsigned size, bool write, void *data);
void bus_reset(struct machine *);
struct device *bus_find(struct machine *, const char *name);

/* vcpu.c */
int vcpu_create(struct machine *, unsigned id);
int vcpu_start(struct vcpu *);
void vcpu_join(struct vcpu *);
void vcpu_kick_all(struct machine *);
void vcpu_dump(struct vcpu *);
void vcpu_init_signals(const struct kvm_api *);

/* boot_state.c: what a reset puts back: the state that the kernel part has when it is new */
int boot_state_save(struct machine *);
int boot_state_restore(struct machine *);

/* loaders */
int load_guest(struct machine *); /* loader.c: by the file's kind; sets vCPU 0's registers */
int load_bzimage(struct machine *, const uint8_t *head, int fd, size_t size);
int load_pvh(struct machine *, const uint8_t *file, size_t size);
int load_initrd(struct machine *, uint64_t limit, uint64_t kernel_end, uint64_t *gpa, uint64_t *size);
struct e820_range {
    uint64_t start, size;
    uint32_t type; /* 1 RAM, 2 reserved, 3 ACPI */
};
unsigned machine_e820(struct machine *, struct e820_range *, unsigned max);

/* acpi.c */
int acpi_build(struct machine *, uint64_t *rsdp);

/* console.c: stdin and stdout; raw mode on a terminal, Ctrl-A x quits */
int console_start(struct machine *);
void console_stop(void);
void console_write(const void *, size_t);
void console_unread(const uint8_t *, unsigned n); /* bytes that the guest was given but has not read */
void console_room(void);                          /* the serial port can take input again */

/* serial.c */
unsigned serial_can_receive(struct device *); /* bytes that the guest can take now */
void serial_receive(struct device *, const uint8_t *, unsigned n);
extern const struct device_type serial_type, rtc_type, i8042_type, acpi_pm_type, reset_type, debugcon_type,
    pci_host_type;

#endif
