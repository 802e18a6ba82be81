/* SPDX-License-Identifier: MIT
 * stubs.c: weak bodies that abort, so that each room links and is tested alone until the others are filled. Gone with
 * the last of them. */
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#pragma GCC diagnostic ignored "-Wbuiltin-declaration-mismatch"
void abort(void) __attribute__((noreturn));
int puts(const char *);
#define STUB(name)                                                                                                     \
    __attribute__((weak)) void name(void);                                                                             \
    void name(void)                                                                                                    \
    {                                                                                                                  \
        puts("not there yet: " #name);                                                                                 \
        abort();                                                                                                       \
    }
STUB(in_hlt)
STUB(code_page_present)
STUB(code_written)
STUB(code_page_filled)
STUB(code_drop_host_range)
STUB(cpu_code_unverify)
STUB(interp_step)
STUB(insn_decode)
STUB(insn_print)
STUB(in_select)
STUB(in_ud)
STUB(insn_read)
STUB(insn_write)
STUB(in_nop)
STUB(code_domain_init)
STUB(code_domain_destroy)
STUB(code_cpu_init)
STUB(code_cpu_destroy)
STUB(in_mov_sreg)
STUB(in_mov_cr)
STUB(in_mov_dr)
STUB(in_push_sreg)
STUB(in_pop_sreg)
STUB(in_jmp_far)
STUB(in_call_far)
STUB(in_ret_far)
__attribute__((weak)) const char op_rows[1 << 16] = {0}; /* the table of ops.def, until the decoder has it */
