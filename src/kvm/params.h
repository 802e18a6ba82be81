/* SPDX-License-Identifier: MIT
 * params.h: what kvm_init() asks of params.c, trace.c and stat.c before anything else runs. */
#ifndef KVM_PARAMS_H
#define KVM_PARAMS_H

int kvm_params_init(void); /* ANYKVM_PARAMS; 0 or -EINVAL with a message on stderr */
void kvm_trace_init(void); /* ANYKVM_TRACE, ANYKVM_TRACE_FILE */
void kvm_stat_init(void);  /* ANYKVM_STAT and the memfd that `anykvm stat` reads */

#endif
