/* SPDX-License-Identifier: MIT
 * emulate.h: one instruction of the interpreter, run outside of guest mode on KVM's behalf (MMIO, string I/O, writes to
 * read-only slots, real-mode corner cases). State is taken from cpu_state and the current VMCS and put back there.
 *
 * Accesses to guest-physical memory that the EPT maps (and allows) go to memory; all else goes to the callbacks. When a
 * callback answers EMUL_USER the instruction is kept, decoded, with the values that were already read and a mark at the
 * writes that were already delivered; cpu_emulate_resume() replays it. Nothing is fetched again. */
#ifndef CPU_EMULATE_H
#define CPU_EMULATE_H

#include "cpu.h"

enum emul {
    EMUL_DONE,  /* executed; RIP is past it (or on it again: an unfinished rep) */
    EMUL_USER,  /* a callback needs user space: call cpu_emulate_resume() with the answer */
    EMUL_FAULT, /* it raised an exception, to be queued by the caller: cpu_emulate_fault() */
    EMUL_FAIL,  /* cannot be emulated: KVM_EXIT_INTERNAL_ERROR */
    EMUL_EXIT   /* it would cause a VM exit that emulation cannot take (HLT ...): the caller re-enters the guest */
};

struct cpu_exception {
    uint8_t vector;
    bool has_error;
    uint32_t error;
    uint64_t payload; /* #PF: CR2; #DB: DR6 bits */
};

enum emul_answer { EA_DONE, EA_USER, EA_ERROR };

struct emul_ops {
    /* 1, 2, 4 or 8 bytes, not crossing a page; wider or crossing accesses come as several calls. */
    enum emul_answer (*mmio_read)(void *opaque, gpa_t gpa, void *data, unsigned size);
    enum emul_answer (*mmio_write)(void *opaque, gpa_t gpa, const void *data, unsigned size);
    /* count > 1: a rep ins/outs of that many elements at once; the callback may do fewer and says so in *done. */
    enum emul_answer (*pio_in)(void *opaque, uint16_t port, unsigned size, void *data, unsigned count, unsigned *done);
    enum emul_answer (*pio_out)(void *opaque, uint16_t port, unsigned size, const void *data, unsigned count,
                                unsigned *done);
};

enum emul cpu_emulate(struct cpu *, const struct emul_ops *, void *opaque);
/* data/size: what user space gave for a read; size 0 after a write. For pio: the `count * size` bytes. */
enum emul cpu_emulate_resume(struct cpu *, const struct emul_ops *, void *opaque, const void *data, unsigned size);
void cpu_emulate_cancel(struct cpu *); /* SET_SREGS, INIT, reset: the record is discarded */
bool cpu_emulate_pending(const struct cpu *);
const struct cpu_exception *cpu_emulate_fault(const struct cpu *);

/* Guest-virtual to guest-physical with the guest's own tables and current privilege (KVM_TRANSLATE, tracing).
 * 0; -1: *fault tells why; 1: the EPT does not map a paging structure, at *gpa: map it and ask again. */
/* access: ACC_READ, ACC_WRITE or ACC_EXEC; with ACC_SYSTEM as the processor's own access to descriptor tables and TSSs.
 */
#define ACC_SYSTEM 8u
int cpu_translate(struct cpu *, gva_t, unsigned access, gpa_t *, struct cpu_exception *fault);

#endif
