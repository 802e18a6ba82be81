/* SPDX-License-Identifier: MIT
 * loader_bzimage.c: Linux's 64-bit boot protocol (Documentation/x86/boot.rst, "64-bit Boot Protocol"). */
#include "loader.h"
#include <asm/bootparam.h>
#include <string.h>

#define HEADER_OFFSET 0x1f1      /* within LOADER_HEAD */
#define HEADER_MAGIC  0x53726448 /* "HdrS" */
#define ENTRY_64      0x200      /* startup_64, from the protected-mode kernel's start */

static void identity_map(struct machine *m)
{
    uint64_t *pml4 = machine_ram(m, BOOT_PAGETABLE, 6 * 4096), *pdpt = pml4 + 512, *pd = pdpt + 512;

    memset(pml4, 0, 6 * 4096);
    pml4[0] = (BOOT_PAGETABLE + 4096) | 3;
    for (unsigned i = 0; i < 4; i++)
        pdpt[i] = (BOOT_PAGETABLE + (2 + i) * 4096) | 3;
    for (unsigned i = 0; i < 4 * 512; i++)
        pd[i] = i * (2 * MiB) | 0x83; /* present, writable, large */
}

static int check_header(const struct machine *m, const uint8_t *head, size_t size, struct setup_header *h)
{
    const char *path = m->config.kernel;
    size_t setup;

    if (size < HEADER_OFFSET + sizeof(*h) + 0x200)
        return vmm_error("--kernel %s: %zu bytes is too short for a Linux bzImage or an ELF file", path, size);
    memcpy(h, head + HEADER_OFFSET, sizeof(*h));
    if (h->boot_flag != 0xaa55 || h->header != HEADER_MAGIC)
        return vmm_error("--kernel %s: neither a Linux bzImage nor an ELF file", path);
    if (h->version < 0x20c || !(h->xloadflags & XLF_KERNEL_64))
        return vmm_error("--kernel %s: boot protocol %u.%02u without a 64-bit entry; need 2.12 of a 64-bit kernel",
                         path, h->version >> 8, h->version & 0xff);
    setup = ((h->setup_sects ? h->setup_sects : 4) + 1) * 512ul;
    if (size < setup + (size_t)h->syssize * 16)
        return vmm_error("--kernel %s: truncated: %zu bytes of %zu", path, size, setup + (size_t)h->syssize * 16);
    return 0;
}

/* Where the kernel goes: where it prefers to be if there is room, else as low as its alignment allows. */
static uint64_t kernel_place(struct machine *m, const struct setup_header *h)
{
    uint64_t align = h->kernel_alignment ? h->kernel_alignment : 0x200000;

    if (h->pref_address + h->init_size <= m->low_ram || !h->relocatable_kernel)
        return h->pref_address;
    return (MiB + align - 1) / align * align;
}

static int fill_params(struct machine *m, const struct setup_header *h, uint64_t kernel_end)
{
    struct boot_params *p = machine_ram(m, BOOT_PARAMS, sizeof(*p));
    const char *append = m->config.append ? m->config.append : "";
    struct e820_range ranges[E820_MAX_ENTRIES_ZEROPAGE];
    uint64_t limit = h->initrd_addr_max ? (uint64_t)h->initrd_addr_max + 1 : 0x38000000, gpa, size, rsdp;
    size_t max = h->cmdline_size < BOOT_CMDLINE_MAX ? h->cmdline_size : BOOT_CMDLINE_MAX - 1;

    if (strlen(append) > max)
        return vmm_error("--append: %zu characters, the kernel takes %zu", strlen(append), max);
    if (h->xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G)
        limit = m->low_ram;
    if (acpi_build(m, &rsdp) < 0 || load_initrd(m, limit, kernel_end, &gpa, &size) < 0)
        return -1;
    memset(p, 0, sizeof(*p));
    p->hdr = *h;
    p->hdr.type_of_loader = 0xff; /* none with a number of its own */
    p->hdr.cmd_line_ptr = BOOT_CMDLINE;
    p->hdr.ramdisk_image = gpa;
    p->hdr.ramdisk_size = size;
    p->hdr.loadflags |= CAN_USE_HEAP | LOADED_HIGH;
    p->hdr.heap_end_ptr = 0xfe00;
    p->acpi_rsdp_addr = rsdp;
    strcpy(machine_ram(m, BOOT_CMDLINE, BOOT_CMDLINE_MAX), append);
    p->e820_entries = machine_e820(m, ranges, ARRAY_SIZE(ranges));
    for (unsigned i = 0; i < p->e820_entries; i++) {
        p->e820_table[i].addr = ranges[i].start;
        p->e820_table[i].size = ranges[i].size;
        p->e820_table[i].type = ranges[i].type;
    }
    return 0;
}

int load_bzimage(struct machine *m, const uint8_t *head, int fd, size_t size)
{
    struct setup_header h;
    struct entry_state entry = {.rsi = BOOT_PARAMS, .cr3 = BOOT_PAGETABLE, .long_mode = true};
    size_t setup, image;
    uint64_t place;

    if (check_header(m, head, size, &h) < 0)
        return -1;
    setup = ((h.setup_sects ? h.setup_sects : 4) + 1) * 512ul;
    image = size - setup;
    place = kernel_place(m, &h);
    if (m->low_ram < BOOT_RAM_MIN || !machine_ram(m, place, image > h.init_size ? image : h.init_size))
        return vmm_error("--kernel %s: needs %llu MiB of RAM to start, -m gives %llu; use -m 256M", m->config.kernel,
                         (unsigned long long)((place + h.init_size + MiB - 1) / MiB),
                         (unsigned long long)(m->config.ram_size / MiB));
    if (read_part(fd, m->config.kernel, "--kernel", machine_ram(m, place, image), image, setup) < 0)
        return -1;
    if (h.init_size > image)
        ram_warm(m, place + image, h.init_size - image);
    identity_map(m);
    if (fill_params(m, &h, place + h.init_size) < 0)
        return -1;
    entry.rip = place + ENTRY_64;
    return loader_set_regs(m, &entry);
}
