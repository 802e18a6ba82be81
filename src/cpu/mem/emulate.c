/* SPDX-License-Identifier: MIT
 * emulate.c: one instruction of the interpreter on KVM's behalf, with callbacks for what is not memory. An instruction
 * whose callback needs user space commits nothing; it is kept decoded and runs again from its start when the answer is
 * there. Values that were read are found in a record by place and size, writes that were delivered are skipped. */
#include "emulate.h"
#include "insn/insn.h"
#include "mem/mem_int.h"
#include "vmx/vmx_int.h"
#include <stdlib.h>

/* The widest operand (an XSAVE area) to MMIO by 8 bytes; a gather has 16 elements. */
#define RECORDS 512u
#define PIO_MAX 4096u

struct record {
    gpa_t gpa;
    uint8_t size;
    bool write;
    bool used; /* matched in this run */
    uint64_t data;
};

struct pio_record {
    bool valid, in;
    uint16_t port;
    unsigned size, count, done;
    uint8_t data[PIO_MAX];
};

#define PENDING_DBG_ENABLED_BP (1ull << 12)

enum waiting_for { FOR_NOTHING, FOR_READ, FOR_WRITE, FOR_PIO };

struct emul_ctx {
    const struct emul_ops *ops;
    void *opaque;
    struct insn insn;
    enum waiting_for waiting;
    bool failed; /* a callback's error, or more accesses than fit the record */
    unsigned n;
    struct record rec[RECORDS];
    struct pio_record pio;
};

/* ---- callbacks: outside of guest mode, so that host memory can be dropped meanwhile ---- */

static int answered(struct emul_ctx *e, enum emul_answer a, enum waiting_for what)
{
    if (a == EA_DONE)
        return CPU_OK;
    if (a == EA_USER)
        e->waiting = what;
    else
        e->failed = true;
    return CPU_USER;
}

static struct record *record_find(struct emul_ctx *e, gpa_t gpa, unsigned size, bool write)
{
    for (unsigned i = 0; i < e->n; i++) {
        struct record *r = &e->rec[i];

        if (!r->used && r->gpa == gpa && r->size == size && r->write == write) {
            r->used = true;
            return r;
        }
    }
    return NULL;
}

static struct record *record_add(struct emul_ctx *e, gpa_t gpa, unsigned size, bool write)
{
    struct record *r = &e->rec[e->n];

    if (e->n == RECORDS) {
        e->failed = true;
        return NULL;
    }
    *r = (struct record){.gpa = gpa, .size = size, .write = write, .used = true};
    e->n++;
    return r;
}

/* The largest piece of 8, 4, 2 or 1 bytes that is left; an unaligned piece is not split further. */
static unsigned piece(unsigned left)
{
    return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

static int one_read(struct cpu *cpu, gpa_t gpa, void *data, unsigned size)
{
    struct emul_ctx *e = cpu->emul;
    struct record *r = record_find(e, gpa, size, false);
    int st = CPU_OK;

    if (!r) {
        r = record_add(e, gpa, size, false);
        if (!r)
            return CPU_USER;
        mem_guest_leave(cpu);
        st = answered(e, e->ops->mmio_read(e->opaque, gpa, &r->data, size), FOR_READ);
        mem_guest_enter(cpu);
    }
    if (st == CPU_OK)
        memcpy(data, &r->data, size);
    return st;
}

/* KVM may have written to memory that guests can execute, by a store of its own. */
static void tell_code(struct cpu *cpu, gpa_t gpa, unsigned size)
{
    struct ept_fault fault;
    unsigned perms;
    hva_t page;

    if (cpu->mem->eptp && ept_translate(cpu->mem, gpa, ACC_READ, &page, &perms, &fault) == 0 &&
        code_page_present(cpu->domain, page))
        code_written(cpu, page | (gpa & ~PAGE_MASK), size);
}

static int one_write(struct cpu *cpu, gpa_t gpa, const void *data, unsigned size)
{
    struct emul_ctx *e = cpu->emul;
    struct record *r = record_find(e, gpa, size, true);
    int st;

    if (r)
        return CPU_OK;
    r = record_add(e, gpa, size, true);
    if (!r)
        return CPU_USER;
    memcpy(&r->data, data, size);
    mem_guest_leave(cpu);
    st = answered(e, e->ops->mmio_write(e->opaque, gpa, data, size), FOR_WRITE);
    mem_guest_enter(cpu);
    if (st == CPU_OK)
        tell_code(cpu, gpa, size);
    return st;
}

int emul_mmio_read(struct cpu *cpu, gpa_t gpa, void *buf, unsigned size)
{
    uint8_t *p = buf;

    while (size) {
        const unsigned n = piece(size);
        int st = one_read(cpu, gpa, p, n);

        if (st != CPU_OK)
            return st;
        gpa += n;
        p += n;
        size -= n;
    }
    return CPU_OK;
}

int emul_mmio_write(struct cpu *cpu, gpa_t gpa, const void *buf, unsigned size)
{
    const uint8_t *p = buf;

    while (size) {
        const unsigned n = piece(size);
        int st = one_write(cpu, gpa, p, n);

        if (st != CPU_OK)
            return st;
        gpa += n;
        p += n;
        size -= n;
    }
    return CPU_OK;
}

/* Paging structures are RAM or the instruction cannot be emulated: user space is not asked. */
static int table_access(struct cpu *cpu, int st)
{
    if (st == CPU_USER)
        cpu->emul->failed = true;
    return st;
}

int emul_table_read(struct cpu *cpu, gpa_t gpa, void *buf, unsigned size)
{
    return table_access(cpu, emul_mmio_read(cpu, gpa, buf, size));
}

int emul_table_write(struct cpu *cpu, gpa_t gpa, const void *buf, unsigned size)
{
    return table_access(cpu, emul_mmio_write(cpu, gpa, buf, size));
}

bool emul_pio_begun(const struct cpu *cpu)
{
    return cpu->emul && cpu->emul->pio.valid;
}

/* An instruction has one port access, so one record is enough. */
int emul_pio(struct cpu *cpu, uint16_t port, unsigned size, bool in, void *buf, unsigned count, unsigned *done)
{
    struct emul_ctx *e = cpu->emul;
    struct pio_record *p = &e->pio;
    int st = CPU_OK;

    if (count > PIO_MAX / size)
        count = PIO_MAX / size;
    if (!p->valid) {
        *p = (struct pio_record){.valid = true, .in = in, .port = port, .size = size, .count = count, .done = count};
        if (!in)
            memcpy(p->data, buf, count * size);
        mem_guest_leave(cpu);
        st = answered(e,
                      in ? e->ops->pio_in(e->opaque, port, size, p->data, count, &p->done)
                         : e->ops->pio_out(e->opaque, port, size, p->data, count, &p->done),
                      FOR_PIO);
        mem_guest_enter(cpu);
        if (p->done > count)
            p->done = count;
    }
    if (st != CPU_OK)
        return st;
    *done = p->done < count ? p->done : count; /* the registers may be others when it is run again */
    if (in)
        memcpy(buf, p->data, (size_t)*done * size);
    return CPU_OK;
}

/* ---- moves ----
 * Nearly all accesses to devices are a MOV, MOVZX or MOVSX. The walk that met the EPT violation has checked rights and
 * set accessed and dirty flags, the instruction was decoded there, and its access is all that is left to do: no state
 * is loaded and nothing is fetched, decoded or walked again. */

static bool is_move(const struct cpu *cpu, const struct insn *in, const struct opnd *m, const struct opnd *other)
{
    const bool write = m == &in->o[0];

    if (in->op != OP_MOV && in->op != OP_MOVZX && in->op != OP_MOVSX && in->op != OP_MOVSXD)
        return false;
    if (m->kind != OPK_MEM || !(other->kind == OPK_REG || (write && other->kind == OPK_IMM)))
        return false;
    return write || other->reg != R_RSP; /* outside of guest mode RSP is in the VMCS */
}

/* The violation is that of the access's first byte, and all of it lies on that page. */
static bool is_whole_access(const struct cpu *cpu, const struct insn *in, unsigned size)
{
    const struct cpu_state *s = &cpu->s;
    const bool based = s->mode != MODE_64 || in->seg == SEG_FS || in->seg == SEG_GS;
    const gva_t gva = insn_ea(cpu, in) + (based ? s->seg[in->seg].base : 0);

    return ((gva ^ cpu->exit.gpa) & ~PAGE_MASK) == 0 && (gva & ~PAGE_MASK) + size <= PAGE_SIZE;
}

void emul_remember(struct cpu *cpu, const struct insn *in)
{
    const struct opnd *m = &in->o[in->mem & 1], *other = &in->o[!in->mem];
    const uint64_t qual = cpu->exit.qualification;
    struct cpu_state *s = &cpu->s;

    if (cpu->exit.reason != EXIT_REASON_EPT_VIOLATION || !(qual & EPTQ_GLA_XLAT) || in->mem > 1 ||
        !is_move(cpu, in, m, other) || !is_whole_access(cpu, in, m->size))
        return;
    if (s->rflags_sys & F_TF || s->dr7 & 0xff || cpu->delivering.valid) /* traps come with the whole of emulation */
        return;
    cpu->mem->move = (struct emul_move){
        .exit = cpu->counters[CC_exits] + 1, /* vmx_exit_commit() counts it */
        .rip = s->rip,
        .next_rip = (s->rip + in->len) & s->ip_mask,
        .gpa = cpu->exit.gpa,
        .data = other->kind == OPK_IMM ? in->imm : reg_read(cpu, other->reg, m->size),
        .size = m->size,
        .reg = other->reg,
        .reg_size = other->size,
        .write = in->mem == 0,
        .sign_extend = in->op == OP_MOVSX || in->op == OP_MOVSXD,
    };
}

static bool move_known(const struct cpu *cpu)
{
    const struct emul_move *move = &cpu->mem->move;

    return move->exit && move->exit == cpu->counters[CC_exits] && vmx_stopped_by_access(cpu, move->rip, move->gpa);
}

static enum emul move_done(struct cpu *cpu)
{
    struct emul_move *move = &cpu->mem->move;
    const unsigned unused = 64 - 8 * move->size;
    uint64_t v = move->data << unused;

    move->exit = 0;
    move->waiting = false;
    if (!move->write)
        reg_write(cpu, move->reg, move->reg_size, move->sign_extend ? (uint64_t)((int64_t)v >> unused) : v >> unused);
    vmx_retire(cpu, move->next_rip);
    return EMUL_DONE;
}

static enum emul move_run(struct cpu *cpu, const struct emul_ops *ops, void *opaque)
{
    struct emul_move *move = &cpu->mem->move;
    enum emul_answer a;

    if (move->write)
        a = ops->mmio_write(opaque, move->gpa, &move->data, move->size);
    else
        a = ops->mmio_read(opaque, move->gpa, &move->data, move->size);
    if (a == EA_DONE && move->write) {
        mem_guest_enter(cpu);
        tell_code(cpu, move->gpa, move->size);
        mem_guest_leave(cpu);
    }
    if (a == EA_DONE)
        return move_done(cpu);
    move->waiting = a == EA_USER;
    move->exit = 0; /* only once */
    return a == EA_USER ? EMUL_USER : EMUL_FAIL;
}

/* ---- one instruction ---- */

/* The EPT lets nobody execute there: memory that KVM has not mapped yet, or a device, which is no place for code. */
static int fetch_by_callback(struct cpu *cpu, gva_t gva, uint8_t *bytes, unsigned n, unsigned *got)
{
    const unsigned room = PAGE_SIZE - (gva & ~PAGE_MASK);
    struct xlat x;
    int st = mem_translate(cpu, gva, ACC_EXEC, &x);

    if (st != CPU_OK)
        return st;
    *got = n < room ? n : room;
    st = emul_mmio_read(cpu, x.gpa | (gva & ~PAGE_MASK), bytes, *got);
    if (st == CPU_USER)
        cpu->emul->failed = true;
    return st;
}

static int fetch(struct cpu *cpu, gva_t gva, uint8_t *bytes, unsigned n, unsigned *got)
{
    int st = mem_fetch(cpu, gva, bytes, n, got);

    return st == CPU_VMEXIT ? fetch_by_callback(cpu, gva, bytes, n, got) : st;
}

static int fetch_and_decode(struct cpu *cpu, struct insn *in)
{
    const struct cpu_state *s = &cpu->s;
    const gva_t gva = s->mode == MODE_64 ? s->rip : (uint32_t)(s->seg[SEG_CS].base + s->rip);
    uint8_t bytes[16];
    unsigned got, more;
    int st = fetch(cpu, gva, bytes, 15, &got);

    if (st != CPU_OK)
        return st;
    host_fpu_save(cpu);
    if (insn_decode(bytes, got, s->mode, in) <= 0)
        return CPU_OK; /* what is no instruction has a function that raises #UD */
    st = fetch(cpu, gva + got, bytes + got, 15 - got, &more); /* its rest lies on a page that faults */
    if (st == CPU_OK)
        insn_decode(bytes, got + more, s->mode, in);
    return st;
}

static void retire(struct cpu *cpu, const struct insn *in, int st, uint32_t shadow, bool tf)
{
    struct cpu_state *s = &cpu->s;

    if (st == CPU_OK || st == CPU_RESCAN)
        s->rip = (s->rip + in->len) & s->ip_mask;
    if (s->interruptibility == shadow) /* an instruction that is not STI or MOV SS ends their shadow */
        s->interruptibility &= ~(INTR_BLOCK_STI | INTR_BLOCK_MOVSS);
    s->rflags_sys &= ~F_RF;
    /* traps are delivered by the next VM entry (SDM 3C, "Pending Debug Exceptions") */
    if (tf)
        s->pending_dbg |= DR6_BS;
    if (cpu->data_hits)
        s->pending_dbg |= cpu->data_hits | PENDING_DBG_ENABLED_BP;
    cpu->data_hits = 0;
}

static enum emul finish(struct cpu *cpu, int st, uint32_t shadow, bool tf)
{
    struct emul_ctx *e = cpu->mem->emul;

    switch (st) {
    case CPU_OK:
    case CPU_RESCAN:
    case CPU_JUMP:
    case CPU_AGAIN:
        retire(cpu, &e->insn, st, shadow, tf);
        vmx_save_guest_state(cpu);
        return EMUL_DONE;
    case CPU_FAULT:
        cpu->emul_fault = (struct cpu_exception){cpu->pending.vector, cpu->pending.has_error, cpu->pending.error,
                                                 cpu->pending.payload};
        return EMUL_FAULT;
    case CPU_USER:
        return e->failed ? EMUL_FAIL : EMUL_USER;
    default:
        return EMUL_EXIT;
    }
}

static enum emul run(struct cpu *cpu, const struct emul_ops *ops, void *opaque, bool decode)
{
    struct emul_ctx *e = cpu->mem->emul;
    uint32_t shadow;
    enum emul result;
    bool tf;
    int st = CPU_OK;

    e->ops = ops;
    e->opaque = opaque;
    e->waiting = FOR_NOTHING;
    for (unsigned i = 0; i < e->n; i++)
        e->rec[i].used = false;
    host_enter(cpu);
    vmx_load_guest_state(cpu);
    mem_guest_enter(cpu);
    cpu->emul = e;
    if (vmx_vpid(cpu) == 0) /* entries and exits flush: nothing may be left of another guest state */
        tlb_flush(cpu, TLB_VPID, 0, 0, 0);
    cpu->data_hits = 0;
    shadow = cpu->s.interruptibility;
    tf = cpu->s.rflags_sys & F_TF;
    if (decode)
        st = fetch_and_decode(cpu, &e->insn);
    if (st == CPU_OK)
        st = e->insn.fn(cpu, &e->insn);
    result = decode && st == CPU_USER && !e->insn.fn ? EMUL_FAIL : finish(cpu, st, shadow, tf);
    cpu->emul = NULL;
    mem_guest_leave(cpu);
    host_leave(cpu);
    if (result != EMUL_USER)
        e->waiting = FOR_NOTHING;
    return result;
}

enum emul cpu_emulate(struct cpu *cpu, const struct emul_ops *ops, void *opaque)
{
    struct emul_ctx *e = cpu->mem->emul;

    if (move_known(cpu))
        return move_run(cpu, ops, opaque);
    if (!e) {
        e = cpu->mem->emul = calloc(1, sizeof(*e));
        if (!e)
            return EMUL_FAIL;
    }
    e->n = 0;
    e->failed = false;
    e->pio.valid = false;
    e->insn.fn = NULL;
    return run(cpu, ops, opaque, true);
}

enum emul cpu_emulate_resume(struct cpu *cpu, const struct emul_ops *ops, void *opaque, const void *data, unsigned size)
{
    struct emul_ctx *e = cpu->mem->emul;

    if (!cpu_emulate_pending(cpu))
        return EMUL_FAIL;
    if (cpu->mem->move.waiting) {
        if (!cpu->mem->move.write)
            memcpy(&cpu->mem->move.data, data, size < 8 ? size : 8);
        return move_done(cpu);
    }
    if (e->waiting == FOR_READ)
        memcpy(&e->rec[e->n - 1].data, data, size < 8 ? size : 8);
    else if (e->waiting == FOR_PIO && e->pio.in)
        memcpy(e->pio.data, data, size < PIO_MAX ? size : PIO_MAX);
    return run(cpu, ops, opaque, false);
}

void cpu_emulate_cancel(struct cpu *cpu)
{
    if (cpu->mem)
        cpu->mem->move.waiting = false;
    if (cpu->mem && cpu->mem->emul)
        cpu->mem->emul->waiting = FOR_NOTHING;
}

bool cpu_emulate_pending(const struct cpu *cpu)
{
    return cpu->mem->move.waiting || (cpu->mem->emul && cpu->mem->emul->waiting != FOR_NOTHING);
}

const struct cpu_exception *cpu_emulate_fault(const struct cpu *cpu)
{
    return &cpu->emul_fault;
}

void emul_destroy(struct mem_unit *m)
{
    free(m->emul);
    m->emul = NULL;
}

int cpu_translate(struct cpu *cpu, gva_t gva, unsigned access, gpa_t *gpa, struct cpu_exception *fault)
{
    uint32_t error = 0;
    struct xlat x;
    int st;

    vmx_load_guest_state(cpu);
    if (!cpu_canonical(gva)) {
        *fault = (struct cpu_exception){.vector = VEC_GP, .has_error = true};
        return -1;
    }
    mem_guest_enter(cpu);
    st = mem_walk(cpu, gva, access & ~ACC_SYSTEM, access & ACC_SYSTEM ? AM_SUPER : cpu->s.acc_mode,
                  WALK_NO_AD | WALK_QUIET, &x, &error);
    mem_guest_leave(cpu);
    if (st == CPU_VMEXIT) {
        *gpa = x.gpa;
        return 1;
    }
    if (st != CPU_OK) {
        *fault = (struct cpu_exception){.vector = VEC_PF, .has_error = true, .error = error, .payload = gva};
        return -1;
    }
    *gpa = x.gpa | (gva & ~PAGE_MASK);
    return 0;
}
