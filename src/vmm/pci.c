/* SPDX-License-Identifier: MIT
 * pci.c: PCI configuration by mechanism 1 (PCI Local Bus 3.0, "Configuration Mechanism"): address at 0xcf8, data at
 * 0xcfc. Bus 0 has the host bridge. */
#include "vmm.h"
#include <string.h>

#define CONFIG_ENABLE 0x80000000u

struct pci_host {
    struct device dev;
    uint32_t address;
};

/* The host bridge's header: vendor and device (i440FX), class 0600, type 0. */
static uint8_t host_bridge_read(unsigned reg)
{
    static const uint8_t header[16] = {0x86, 0x80, 0x37, 0x12, 0, 0, 0, 0x02, 0x02, 0, 0x00, 0x06, 0, 0, 0, 0};

    return reg < sizeof(header) ? header[reg] : 0;
}

static uint64_t config_read(const struct pci_host *p, uint64_t off, unsigned size)
{
    unsigned device = p->address >> 8 & 0xffff; /* bus, device, function */
    unsigned reg = (p->address & 0xfc) + off;
    uint64_t v = 0;

    if (!(p->address & CONFIG_ENABLE) || device != 0)
        return ~0ull;
    for (unsigned i = 0; i < size; i++)
        v |= (uint64_t)host_bridge_read(reg + i) << 8 * i;
    return v;
}

static uint64_t pci_read(struct device *dev, uint64_t off, unsigned size)
{
    struct pci_host *p = container_of(dev, struct pci_host, dev);

    if (off >= 4)
        return config_read(p, off - 4, size);
    return off == 0 && size == 4 ? p->address : ~0ull;
}

static void pci_write(struct device *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct pci_host *p = container_of(dev, struct pci_host, dev);

    if (off == 0 && size == 4) /* the address register takes whole double words only */
        p->address = value & ~3u;
}

static void pci_reset(struct device *dev)
{
    container_of(dev, struct pci_host, dev)->address = 0;
}

static const struct state_field pci_state[] = {STATE(struct pci_host, address), {NULL, 0, 0}};
const struct device_type pci_host_type = {.name = "pci-host",
                                          .size = sizeof(struct pci_host),
                                          .widths = W8 | W16 | W32,
                                          .reset = pci_reset,
                                          .read = pci_read,
                                          .write = pci_write,
                                          .state = pci_state};
