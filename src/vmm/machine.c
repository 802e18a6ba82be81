/* SPDX-License-Identifier: MIT
 * machine.c: RAM, the device table, start, reset and end of a machine. */
#include "vmm.h"
#include "anykvm.h"
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The devices of the machine, in the order of their creation. */
static const struct device_row machine_devices[] = {
    {&serial_type, PIO, 0x3f8, 8, 4},           {&rtc_type, PIO, 0x70, 2, 8},        {&i8042_type, PIO, 0x60, 5, -1},
    {&reset_type, PIO, 0xcf9, 1, -1},           {&pci_host_type, PIO, 0xcf8, 8, -1}, /* after the reset port: it is a
                                                                                        byte inside */
    {&acpi_pm_type, PIO, PM_BASE, 12, SCI_IRQ}, {&debugcon_type, PIO, 0xe9, 1, -1},
};

int vmm_error(const char *format, ...)
{
    va_list args;

    fputs("anykvm run: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    return -1;
}

void machine_request(struct machine *m, enum request request)
{
    pthread_mutex_lock(&m->lock);
    if (request > m->request)
        m->request = request;
    pthread_cond_broadcast(&m->cond);
    pthread_mutex_unlock(&m->lock);
}

void machine_fail(struct machine *m, const char *format, ...)
{
    va_list args;

    fputs("anykvm run: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    machine_request(m, REQ_FAIL);
}

void machine_set_irq(struct machine *m, int gsi, int level)
{
    struct kvm_irq_level irq = {.irq = gsi, .level = level};

    if (gsi >= 0 && m->accel.api->ioctl(m->accel.vm_fd, KVM_IRQ_LINE, &irq) < 0)
        vmm_error("KVM_IRQ_LINE %d: %s", gsi, strerror(errno));
}

void *machine_ram(struct machine *m, uint64_t gpa, uint64_t size)
{
    if (gpa < m->low_ram && size <= m->low_ram - gpa)
        return (char *)m->ram + gpa;
    if (gpa >= HIGH_RAM_BASE && gpa - HIGH_RAM_BASE < m->high_ram && size <= m->high_ram - (gpa - HIGH_RAM_BASE))
        return (char *)m->ram + m->low_ram + (gpa - HIGH_RAM_BASE);
    return NULL;
}

unsigned machine_e820(struct machine *m, struct e820_range *r, unsigned max)
{
    const struct e820_range all[] = {
        {0, 0x9fc00, 1},
        {0x9fc00, 0x100000 - 0x9fc00, 2}, /* EBDA, option ROMs, ACPI tables */
        {0x100000, m->low_ram - 0x100000, 1},
        {0xfeffc000, 0x4000, 2}, /* KVM's identity map and TSS */
        {HIGH_RAM_BASE, m->high_ram, 1},
    };
    unsigned n = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(all) && n < max; i++)
        if (all[i].size)
            r[n++] = all[i];
    return n;
}

static int add_slot(struct machine *m, unsigned slot, uint64_t gpa, uint64_t size, void *hva)
{
    struct kvm_userspace_memory_region region = {
        .slot = slot, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (uintptr_t)hva};

    if (size && m->accel.api->ioctl(m->accel.vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0)
        return vmm_error("KVM_SET_USER_MEMORY_REGION %u: %s", slot, strerror(errno));
    return 0;
}

/* Private memory between guards, where a huge page may begin: a guest touches its RAM all over, and a host fault for
 * each 4 KiB costs more than to clear 2 MiB at once. */
static void *ram_map(uint64_t size)
{
    const uint64_t align = 2 * MiB;
    char *all = mmap(NULL, size + 2 * align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *ram = (char *)(((uintptr_t)all + align) & ~(align - 1));

    if (all == MAP_FAILED || mprotect(ram, size, PROT_READ | PROT_WRITE) < 0)
        return NULL;
    madvise(ram, size, MADV_HUGEPAGE);
    return ram;
}

static int ram_init(struct machine *m)
{
    uint64_t size = m->config.ram_size;

    m->low_ram = size < LOW_RAM_MAX ? size : LOW_RAM_MAX;
    m->high_ram = size - m->low_ram;
    m->ram = ram_map(size);
    if (!m->ram)
        return vmm_error("-m: no room for %llu MiB: %s; use a smaller -m", (unsigned long long)(size / MiB),
                         strerror(errno));
    if (add_slot(m, 0, 0, m->low_ram, m->ram) < 0)
        return -1;
    return add_slot(m, 1, HIGH_RAM_BASE, m->high_ram, (char *)m->ram + m->low_ram);
}

/* The kernel part of the machine: controllers, timer, vCPUs. */
static int kvm_machine_init(struct machine *m)
{
    const struct kvm_api *api = m->accel.api;
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};

    if (api->ioctl(m->accel.vm_fd, KVM_CREATE_IRQCHIP, 0) < 0)
        return vmm_error("KVM_CREATE_IRQCHIP: %s", strerror(errno));
    if (api->ioctl(m->accel.vm_fd, KVM_CREATE_PIT2, &pit) < 0)
        return vmm_error("KVM_CREATE_PIT2: %s", strerror(errno));
    for (unsigned i = 0; i < m->config.cpus; i++)
        if (vcpu_create(m, i) < 0)
            return -1;
    return 0;
}

static int machine_init(struct machine *m)
{
    const char *bad;

    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->cond, NULL);
    if (m->config.engine) {
        char param[64];
        snprintf(param, sizeof(param), "engine=%s", m->config.engine);
        if (anykvm_set_params(param, &bad) < 0)
            return vmm_error("--engine %s: no such engine", m->config.engine);
    }
    if (m->config.hardened && anykvm_set_params("hardened=1", &bad) < 0)
        return vmm_error("--hardened: not known");
    if (m->config.kvm_params && anykvm_set_params(m->config.kvm_params, &bad) < 0)
        return vmm_error("--kvm-params: bad parameter at \"%s\"", bad);
    m->accel.verbose = m->config.verbose;
    if (configure_accelerator(&m->accel, m->config.accel) < 0)
        return -1;
    if (ram_init(m) < 0 || kvm_machine_init(m) < 0)
        return -1;
    for (unsigned i = 0; i < ARRAY_SIZE(machine_devices); i++)
        if (bus_add(m, &machine_devices[i]) < 0)
            return -1;
    m->serial = bus_find(m, "serial");
    if (boot_state_save(m) < 0)
        return -1;
    return load_guest(m);
}

/* All vCPU threads stand still (m->lock held). */
static void wait_parked(struct machine *m)
{
    while (m->parked < m->config.cpus) {
        struct timespec deadline;

        vcpu_kick_all(m);
        clock_gettime(CLOCK_REALTIME, &deadline);
        deadline.tv_nsec += 20 * 1000000;
        if (deadline.tv_nsec >= 1000000000) {
            deadline.tv_nsec -= 1000000000;
            deadline.tv_sec++;
        }
        pthread_cond_timedwait(&m->cond, &m->lock, &deadline);
    }
}

/* Everything as after power-on, the guest loaded again. */
static int machine_reset(struct machine *m)
{
    for (unsigned i = 0; i < m->config.cpus; i++) { /* I/O that is under way is completed before state is set */
        m->vcpus[i].run->immediate_exit = 1;
        m->accel.api->ioctl(m->vcpus[i].fd, KVM_RUN, 0);
    }
    bus_reset(m);
    if (boot_state_restore(m) < 0)
        return -1;
    return load_guest(m);
}

/* Serve requests until the machine ends; the exit status. */
static int machine_loop(struct machine *m)
{
    int status = -1;

    pthread_mutex_lock(&m->lock);
    while (status < 0) {
        while (m->request == REQ_NONE)
            pthread_cond_wait(&m->cond, &m->lock);
        if (m->request == REQ_FAIL) {
            status = 1;
        } else if (m->request == REQ_SHUTDOWN || m->config.no_reboot) {
            status = 0;
        } else {
            wait_parked(m);
            if (machine_reset(m) < 0)
                status = 1;
            m->request = REQ_NONE;
            pthread_cond_broadcast(&m->cond);
        }
    }
    m->stop = true;
    pthread_cond_broadcast(&m->cond);
    pthread_mutex_unlock(&m->lock);
    return status;
}

static void machine_destroy(struct machine *m)
{
    for (unsigned i = 0; i < m->ndevices; i++) {
        if (m->devices[i]->type->destroy)
            m->devices[i]->type->destroy(m->devices[i]);
        free(m->devices[i]);
    }
    for (unsigned i = 0; i < m->config.cpus; i++) {
        if (m->vcpus[i].run && m->vcpus[i].run != MAP_FAILED)
            munmap(m->vcpus[i].run, m->accel.run_size);
        if (m->vcpus[i].fd > 0)
            m->accel.api->close(m->vcpus[i].fd);
    }
    accel_close(&m->accel);
    if (m->ram)
        munmap(m->ram, m->config.ram_size);
    free(m->boot_state);
    free(m);
}

int machine_run(const struct machine_config *config)
{
    struct machine *m = calloc(1, sizeof(*m));
    int status = 1;

    if (!m)
        return vmm_error("no memory"), 1;
    m->config = *config;
    m->accel.kvm_fd = m->accel.vm_fd = -1;
    if (machine_init(m) == 0 && console_start(m) == 0) {
        vcpu_init_signals(m->accel.api);
        for (unsigned i = 0; i < m->config.cpus; i++)
            if (vcpu_start(&m->vcpus[i]) < 0)
                machine_request(m, REQ_FAIL);
        status = machine_loop(m);
        for (unsigned i = 0; i < m->config.cpus; i++)
            vcpu_join(&m->vcpus[i]);
        console_stop();
    }
    machine_destroy(m);
    return status;
}
