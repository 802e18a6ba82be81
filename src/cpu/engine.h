/* SPDX-License-Identifier: MIT
 * engine.h: an engine runs guest code over cpu_state. interp, jit and check are rows; cpu includes no header of theirs.
 */
#ifndef CPU_ENGINE_H
#define CPU_ENGINE_H

#include "cpu_int.h"

struct engine {
    const char *name;
    bool (*supported)(void);   /* the host has what it needs */
    int (*init)(struct cpu *); /* 0 or negative errno; cpu->engine_data is the engine's */
    void (*destroy)(struct cpu *);
    int (*run)(struct cpu *);                           /* until CPU_VMEXIT (which it returns) */
    void (*drop_code)(struct cpu_domain *, hva_t page); /* source bytes changed or went: no block of it runs again */
    void (*flush)(struct cpu *); /* translations changed (TLB flush): drop what depends on them */
    /* code was run from this page of the lower half and its translation is dropped. true: nothing that was made leads
     * there without a look-up any more; else, or without the function, exec_gen[0] changes */
    bool (*page_dropped)(struct cpu *, gva_t);
    int (*fault)(struct cpu *, int sig, void *siginfo,
                 void *ucontext); /* 1: a host fault of the engine's code, mended */
};
void engine_register(const struct engine *);        /* called by a constructor in the engine's own file */
const struct engine *engine_find(const char *name); /* NULL name: the best supported one */

/* interp: execute at most max instructions at cpu_state's rip. CPU_OK, CPU_VMEXIT or, with cpu->emul set, CPU_FAULT. */
int interp_step(struct cpu *, unsigned max);
extern const struct engine interp_engine;

#endif
