/* SPDX-License-Identifier: MIT
 * tiny.S: a PVH guest of a few instructions; what it does is chosen when it is assembled. */
        .section .note.pvh, "a", @note
        .long 4, 4, 18              /* name, descriptor, XEN_ELFNOTE_PHYS32_ENTRY */
        .asciz "Xen"
        .long start

        .text
        .code32
        .globl start
start:  mov $'S', %al
        out %al, $0xe9
#if defined(POWEROFF)
        mov $0x604, %dx             /* PM1 control: SLP_TYP 5, SLP_EN */
        mov $0x3400, %ax
        out %ax, %dx
1:      jmp 1b
#elif defined(TRIPLE)
        lidt nothing
        ud2
nothing: .word 0
        .long 0
#elif defined(NOWHERE)
        mov $0xd0000000, %eax       /* no RAM, no device: reads as ones, which is no instruction */
        jmp *%eax
#elif defined(GARBAGE)
        mov $0x200000, %edi
        mov $0x12345678, %eax
        mov $0x10000, %ecx
2:      imul $1103515245, %eax, %eax
        add $12345, %eax
        mov %eax, (%edi)
        add $4, %edi
        loop 2b
        mov $0x200000, %eax
        jmp *%eax
#elif defined(HALTED)
        cli
        hlt
#elif defined(RESET)
        mov $0xcf9, %dx
        mov $6, %al
        out %al, %dx
3:      jmp 3b
#elif defined(SPIN)
4:      jmp 4b
#endif
