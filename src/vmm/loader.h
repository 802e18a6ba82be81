/* SPDX-License-Identifier: MIT
 * loader.h: where the loaders put things in low memory, and the state in which a guest starts. */
#ifndef VMM_LOADER_H
#define VMM_LOADER_H

#include "vmm.h"

#define BOOT_GDT         0x00500
#define BOOT_START       0x06000 /* hvm_start_info and its memory map (PVH) */
#define BOOT_PARAMS      0x07000 /* the zero page (bzImage) */
#define BOOT_PAGETABLE   0x08000 /* PML4, PDPT, four page directories: identity map of 4 GiB */
#define BOOT_CMDLINE     0x20000
#define BOOT_CMDLINE_MAX 0x1000
#define BOOT_RAM_MIN     (4 * MiB)

struct entry_state {
    uint64_t rip, rsi, rbx, cr3;
    bool long_mode; /* 64-bit with paging; else 32-bit protected mode without */
};
#define LOADER_HEAD 4096u /* bytes of a kernel's file that tell what it is */
/* 0, or -1 after a message */
int read_part(int fd, const char *path, const char *option, void *to, size_t size, size_t offset);
int loader_set_regs(struct machine *, const struct entry_state *);
void ram_warm(struct machine *, uint64_t gpa, uint64_t size); /* host memory for it is made in the background */

#endif
