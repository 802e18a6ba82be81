/* SPDX-License-Identifier: MIT
 * in_sys_int.h: the functions of ops_sys.def's rows, and what in_sys*.c share. */
#ifndef CPU_IN_SYS_INT_H
#define CPU_IN_SYS_INT_H

#include "sys/cpu_sys.h"
#include "sys/in_sys.h"
#include "vmx/vmx_int.h"

insn_fn in_hlt, in_cli, in_sti, in_clac, in_stac, in_pause, in_monitor, in_mwait, in_cpuid, in_rdtsc, in_rdtscp,
    in_rdpmc, in_rdpid, in_rdmsr, in_wrmsr, in_invd, in_wbinvd, in_invlpg, in_invpcid, in_xgetbv, in_xsetbv, in_vmcall,
    in_vmx;
insn_fn in_in, in_out, in_ins, in_outs;
insn_fn in_clts, in_lmsw, in_smsw, in_lgdt, in_lidt, in_sgdt, in_sidt, in_lldt, in_ltr, in_sldt, in_str, in_swapgs,
    in_rdfsbase, in_rdgsbase, in_wrfsbase, in_wrgsbase;
insn_fn in_lar, in_lsl, in_verr, in_verw, in_arpl, in_lseg;
insn_fn in_syscall, in_sysret, in_sysenter, in_sysexit, in_iret, in_int, in_int1, in_int3, in_into;

int sys_gp0(struct cpu *);                                    /* #GP(0); CPU_FAULT */
int sys_cpl0(struct cpu *);                                   /* #GP(0) unless CPL is 0 */
gva_t sys_linear(const struct cpu *, enum seg_reg, gva_t ea); /* without checks of limit */

#endif
