/* SPDX-License-Identifier: MIT
 * host_direct.h: one instruction on the host without a signal (host_direct.c, used by host_run.c and cases.c). */
#ifndef ISA_HOST_DIRECT_H
#define ISA_HOST_DIRECT_H
#include "isa.h"

struct direct_exit {
    uint64_t rip, rsp;
};

bool host_direct_can(const struct decoded *);
/* Write what comes behind the instruction: 14 bytes. */
void host_direct_end(uint8_t *code);
/* Run; a fault's handler goes on at host_direct_exit(), everything initial. Returns the vector state if there was none.
 */
const struct xsave_area *host_direct_call(const struct regs *in);
struct direct_exit host_direct_exit(void);
void host_direct_result(const struct regs *in, struct regs *out);

#endif
