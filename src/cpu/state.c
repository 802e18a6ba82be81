/* SPDX-License-Identifier: MIT
 * state.c: the register file: reset, comparison, save and restore, derived fields. */
#include "cpu_int.h"

struct cpu_state *cpu_state(struct cpu *cpu)
{
    return &cpu->s;
}
