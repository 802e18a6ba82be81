/* SPDX-License-Identifier: MIT
 * start.S: a kernel (PVH) whose first instructions write 'K' to the debug port: the time from the command to the guest. */
    .section .note.pvh, "a", @note
    .long 4, 4, 18 /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long _start

    .text
    .code32
    .globl _start
_start:
    mov $'K', %al
    out %al, $0xe9
    mov $0x604, %dx /* ACPI: S5 */
    mov $(0x2000 | 5 << 10), %ax
    out %ax, %dx
    cli
1:  hlt
    jmp 1b

    .section .note.GNU-stack, "", @progbits
