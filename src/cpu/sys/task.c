/* SPDX-License-Identifier: MIT
 * task.c: task switches. In VMX non-root operation each one exits (SDM 3C, "Treatment of Task Switches") after the
 * checks of the TSS descriptor. */
#include "sys/cpu_sys.h"
#include "mem/mem.h"
#include "vmx/vmx_int.h"

enum { TASK_CALL, TASK_IRET, TASK_JMP, TASK_GATE };

int task_switch(struct cpu *cpu, uint16_t sel, int source, bool has_error, uint32_t error)
{
    const unsigned vector = source == TASK_IRET ? VEC_TS : VEC_GP;
    const bool want_busy = source == TASK_IRET;
    uint64_t desc;
    int st;

    if (sel_null(sel) || (sel & 4))
        return seg_error(cpu, vector, sel);
    if ((st = seg_read_desc8(cpu, sel, &desc, vector)))
        return st;
    const unsigned type = desc_s(desc) ? 0 : desc_type(desc);
    if (type != (want_busy ? SYS_TSS32_BUSY : SYS_TSS32) && type != (want_busy ? SYS_TSS16_BUSY : SYS_TSS16))
        return seg_error(cpu, vector, sel);
    if (!desc_p(desc))
        return seg_error(cpu, VEC_NP, sel);
    if (desc_limit(desc) < (type & 8 ? 103u : 43u))
        return seg_error(cpu, VEC_TS, sel);
    return vmx_intercept_task_switch(cpu, cpu->task_insn, sel, source);
}
