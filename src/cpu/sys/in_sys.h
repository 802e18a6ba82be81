/* SPDX-License-Identifier: MIT
 * in_sys.h: forms of MOV, PUSH, POP, JMP, CALL and RET that belong to the system instructions: in_select() picks them
 * by operand kinds; their mnemonics' rows are in ops_int.def. */
#ifndef CPU_IN_SYS_H
#define CPU_IN_SYS_H

#include "insn/insn.h"

insn_fn in_mov_sreg;  /* MOV with an OPK_SEG operand, either direction */
insn_fn in_mov_cr;    /* MOV with an OPK_CR operand, either direction */
insn_fn in_mov_dr;    /* MOV with an OPK_DR operand, either direction */
insn_fn in_push_sreg; /* PUSH with an OPK_SEG operand */
insn_fn in_pop_sreg;  /* POP with an OPK_SEG operand */
insn_fn in_jmp_far;   /* JMP ptr16:16/32 (OPK_FAR) and JMP m16:16/32/64 */
insn_fn in_call_far;
insn_fn in_ret_far; /* RETF, RETF imm16 */

#endif
