/* SPDX-License-Identifier: MIT
 * loader_pvh.c: an ELF kernel by the PVH boot protocol (Xen's "x86/HVM direct boot ABI"): segments at their physical
 * addresses, the 32-bit entry from the note, EBX = struct hvm_start_info. */
#include "loader.h"
#include <elf.h>
#include <string.h>

#define XEN_ELFNOTE_PHYS32_ENTRY 18
#define HVM_START_MAGIC          0x336ec578

struct hvm_start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr;
    uint32_t memmap_entries, reserved;
};
struct hvm_modlist_entry {
    uint64_t paddr, size, cmdline_paddr, reserved;
};
struct hvm_memmap_entry {
    uint64_t addr, size;
    uint32_t type, reserved;
};

/* The entry point from a PT_NOTE segment, 0 if this one has none. */
static uint64_t find_entry(const uint8_t *note, size_t size)
{
    while (size >= sizeof(Elf64_Nhdr)) {
        Elf64_Nhdr n;
        size_t name, desc;

        memcpy(&n, note, sizeof(n));
        name = ((size_t)n.n_namesz + 3) & ~3ul;
        desc = ((size_t)n.n_descsz + 3) & ~3ul;
        if (name > size - sizeof(n) || desc > size - sizeof(n) - name)
            return 0;
        if (n.n_type == XEN_ELFNOTE_PHYS32_ENTRY && n.n_namesz == 4 && memcmp(note + sizeof(n), "Xen", 4) == 0) {
            uint64_t v = 0;
            memcpy(&v, note + sizeof(n) + name, n.n_descsz < 8 ? n.n_descsz : 8);
            return v;
        }
        note += sizeof(n) + name + desc;
        size -= sizeof(n) + name + desc;
    }
    return 0;
}

static int load_segment(struct machine *m, const uint8_t *file, size_t size, const Elf64_Phdr *ph, uint64_t *end)
{
    uint8_t *to = machine_ram(m, ph->p_paddr, ph->p_memsz);

    if (ph->p_filesz > ph->p_memsz || ph->p_offset > size || ph->p_filesz > size - ph->p_offset)
        return vmm_error("--kernel %s: truncated: a segment ends behind the file", m->config.kernel);
    if (!to)
        return vmm_error("--kernel %s: a segment at %#llx does not fit in %llu MiB of RAM; use a larger -m",
                         m->config.kernel, (unsigned long long)ph->p_paddr,
                         (unsigned long long)(m->config.ram_size / MiB));
    memcpy(to, file + ph->p_offset, ph->p_filesz);
    memset(to + ph->p_filesz, 0, ph->p_memsz - ph->p_filesz);
    if (ph->p_paddr + ph->p_memsz > *end)
        *end = ph->p_paddr + ph->p_memsz;
    return 0;
}

static int load_elf(struct machine *m, const uint8_t *file, size_t size, uint64_t *entry, uint64_t *end)
{
    Elf64_Ehdr eh;

    if (size < sizeof(eh))
        return vmm_error("--kernel %s: truncated ELF header", m->config.kernel);
    memcpy(&eh, file, sizeof(eh));
    if (eh.e_ident[EI_CLASS] != ELFCLASS64 || eh.e_machine != EM_X86_64 || eh.e_phentsize != sizeof(Elf64_Phdr))
        return vmm_error("--kernel %s: not an x86-64 ELF file", m->config.kernel);
    if (eh.e_phoff > size || eh.e_phnum * sizeof(Elf64_Phdr) > size - eh.e_phoff)
        return vmm_error("--kernel %s: truncated program headers", m->config.kernel);
    for (unsigned i = 0; i < eh.e_phnum; i++) {
        Elf64_Phdr ph;

        memcpy(&ph, file + eh.e_phoff + i * sizeof(ph), sizeof(ph));
        if (ph.p_type == PT_LOAD && ph.p_memsz && load_segment(m, file, size, &ph, end) < 0)
            return -1;
        if (ph.p_type == PT_NOTE && ph.p_offset <= size && ph.p_filesz <= size - ph.p_offset && !*entry)
            *entry = find_entry(file + ph.p_offset, ph.p_filesz);
    }
    return *entry ? 0 : vmm_error("--kernel %s: no PVH entry note; need a kernel with CONFIG_PVH", m->config.kernel);
}

static int fill_start_info(struct machine *m, uint64_t kernel_end)
{
    struct hvm_start_info *s = machine_ram(m, BOOT_START, 4096);
    struct hvm_modlist_entry *mod = (void *)(s + 1);
    struct hvm_memmap_entry *map = (void *)(mod + 1);
    const char *append = m->config.append ? m->config.append : "";
    struct e820_range ranges[16];
    uint64_t gpa, size, rsdp;

    if (strlen(append) >= BOOT_CMDLINE_MAX)
        return vmm_error("--append: %zu characters, at most %d", strlen(append), BOOT_CMDLINE_MAX - 1);
    if (acpi_build(m, &rsdp) < 0 || load_initrd(m, m->low_ram, kernel_end, &gpa, &size) < 0)
        return -1;
    strcpy(machine_ram(m, BOOT_CMDLINE, BOOT_CMDLINE_MAX), append);
    memset(s, 0, 4096);
    *mod = (struct hvm_modlist_entry){.paddr = gpa, .size = size};
    s->magic = HVM_START_MAGIC;
    s->version = 1;
    s->nr_modules = size != 0;
    s->modlist_paddr = BOOT_START + sizeof(*s);
    s->cmdline_paddr = BOOT_CMDLINE;
    s->rsdp_paddr = rsdp;
    s->memmap_paddr = BOOT_START + sizeof(*s) + sizeof(*mod);
    s->memmap_entries = machine_e820(m, ranges, ARRAY_SIZE(ranges));
    for (unsigned i = 0; i < s->memmap_entries; i++)
        map[i] = (struct hvm_memmap_entry){.addr = ranges[i].start, .size = ranges[i].size, .type = ranges[i].type};
    return 0;
}

int load_pvh(struct machine *m, const uint8_t *file, size_t size)
{
    uint64_t entry = 0, end = MiB;
    struct entry_state e = {.rbx = BOOT_START};

    if (m->low_ram < BOOT_RAM_MIN)
        return vmm_error("-m: at least 4M for a kernel");
    if (load_elf(m, file, size, &entry, &end) < 0 || fill_start_info(m, end) < 0)
        return -1;
    e.rip = entry;
    return loader_set_regs(m, &e);
}
