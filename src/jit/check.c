/* SPDX-License-Identifier: MIT
 * check.c: the engine "check": runs blocks (each often, hot ones then now and then) by the interpreter and, from the
 * same state, translated, and compares registers, flags, vector state and the memory that was written. Stops the
 * process at the first difference. For one vCPU: others would see a block's writes taken back. Blocks that cannot be
 * run twice (strings, I/O, system instructions, writes to code or devices) are run by the interpreter alone. */
#include "../cpu/insn/fpu.h"
#include "jit.h"
#include <stdio.h>
#include <stdlib.h>

#define PIECES (4 * BLOCK_INSNS)
#define OFTEN  200u /* the first runs of a block are all checked, then one of SELDOM */
#define SELDOM 61u

struct piece { /* memory that the block writes, within a page */
    uint8_t *at;
    unsigned size;
    uint8_t old[64], new[64];
};

struct check {
    struct cpu_state before, first;
    struct event pending;
    struct exit_info exit;
    int status;
    bool once; /* something was written that cannot be taken back */
    struct piece piece[PIECES];
    unsigned n;
    uint8_t *fpu_before, *fpu_first;
};

/* ---- what can run twice ---- */

static bool twice(const struct insn *in)
{
    const struct op_row *row = &op_rows[in->op];

    if (in->op == OP_INVALID || (row->attrs & (A_SYS | A_STRING | A_PRIV | A_SENS | A_VMX)))
        return false;
    if (strstr(row->name, "GATHER") || strstr(row->name, "SCATTER") || strstr(row->name, "MASKMOV") ||
        !strncmp(row->name, "XSAVE", 5) || !strncmp(row->name, "XRSTOR", 6) || !strncmp(row->name, "FX", 2) ||
        !strncmp(row->name, "MOVDIR", 6) || !strncmp(row->name, "CL", 2))
        return false;
    if (in->op == OP_ENTER || in->op == OP_RDPID)
        return false;
    if (in->mem != 0xff && (in->o[in->mem].rw & OPND_W)) {
        const unsigned size = in->o[in->mem].size;

        return size && size <= 64 && in->asize == 8 &&
               !(in->op >= OP_BT && in->op <= OP_BTC && in->o[1].kind == OPK_REG);
    }
    return true;
}

static bool all_twice(const struct block *b)
{
    for (unsigned i = 0; i < b->n; i++)
        if (!twice(&b->insn[i]))
            return false;
    return true;
}

/* ---- the log of writes ---- */

static void note_piece(struct cpu *cpu, struct check *c, gva_t gva, unsigned size)
{
    struct piece *p = &c->piece[c->n];

    p->at = tlb_lookup(cpu, gva, size, TLB_WRITE);
    if (!p->at) {
        if (mem_probe(cpu, SEG_NONE, gva, size, ACC_WRITE) != CPU_OK) {
            cpu->pending.valid = false; /* the instruction finds it again */
            return;
        }
        p->at = tlb_lookup(cpu, gva, size, TLB_WRITE);
    }
    p->size = size;
    if (!p->at || c->n + 1 == PIECES || host_copy(p->old, p->at, size))
        c->once = true;
    else
        c->n++;
}

static void note_write(struct cpu *cpu, struct check *c, gva_t gva, unsigned size)
{
    const unsigned room = PAGE_SIZE - (gva & ~PAGE_MASK);

    if (!cpu_canonical(gva))
        return;
    note_piece(cpu, c, gva, size < room ? size : room);
    if (size > room)
        note_piece(cpu, c, gva + room, size - room);
}

static void note_writes(struct cpu *cpu, struct check *c, const struct insn *in)
{
    if (in->mem != 0xff && (in->o[in->mem].rw & OPND_W)) {
        gva_t gva = in_lin64(cpu, in);

        if (in->op == OP_POP && in->base == R_RSP)
            gva += in->opsize;
        note_write(cpu, c, gva, in->o[in->mem].size);
    }
    if (in->op == OP_PUSH || in->op == OP_CALL)
        note_write(cpu, c, cpu->s.gpr[R_RSP] - in->opsize, in->opsize);
}

/* ---- both runs ---- */

static int run_interpreted(struct cpu *cpu, struct check *c, const struct block *b)
{
    int st = CPU_OK;

    for (unsigned i = 0; i < b->n && st == CPU_OK; i++) {
        const struct insn *in = &b->insn[i];
        const unsigned len = in->len;

        note_writes(cpu, c, in);
        st = in->fn(cpu, in);
        if (st == CPU_OK || st == CPU_RESCAN)
            cpu->s.rip += len;
    }
    return st;
}

static void fpu_take(struct cpu *cpu, uint8_t *to)
{
    host_fpu_save(cpu);
    memcpy(to, fpu_sync(cpu), cpu_fpu_area_size());
}

static void fpu_put(struct cpu *cpu, const uint8_t *from)
{
    host_fpu_save(cpu);
    memcpy(cpu->fpu->area, from, cpu_fpu_area_size());
}

static void take_back(struct cpu *cpu, struct check *c)
{
    for (unsigned i = 0; i < c->n; i++)
        host_copy(c->piece[i].new, c->piece[i].at, c->piece[i].size);
    for (unsigned i = c->n; i--;)
        host_copy(c->piece[i].at, c->piece[i].old, c->piece[i].size);
    cpu->s = c->before;
}

/* ---- comparison ---- */

static bool ends(int st) /* with something pending */
{
    return st == CPU_FAULT || st == CPU_VMEXIT;
}

static bool state_same(const struct cpu_state *a, const struct cpu_state *b) /* the usual case, fast */
{
    return !memcmp(a, b, offsetof(struct cpu_state, fs_base_hot)) &&
           !memcmp(&a->seg, &b->seg, sizeof(*a) - offsetof(struct cpu_state, seg));
}

static bool same(struct cpu *cpu, const struct check *c, const struct jit_block *jb, int st, bool fpu, char *why,
                 size_t size)
{
    uint8_t now[64];

    if (ends(st) != ends(c->status) || (ends(st) && st != c->status)) {
        snprintf(why, size, "status %d != %d", c->status, st);
        return false;
    }
    if (st == CPU_FAULT && (cpu->pending.vector != c->pending.vector || cpu->pending.error != c->pending.error ||
                            cpu->pending.payload != c->pending.payload)) {
        snprintf(why, size, "exception %u(%x) != %u(%x)", c->pending.vector, c->pending.error, cpu->pending.vector,
                 cpu->pending.error);
        return false;
    }
    if (st == CPU_VMEXIT && cpu->exit.reason != c->exit.reason) {
        snprintf(why, size, "exit %u != %u", c->exit.reason, cpu->exit.reason);
        return false;
    }
    /* behind the block, what no successor in its unit could show */
    if (!state_same(&c->first, &cpu->s) &&
        !cpu_state_equal(&c->first, &cpu->s, ends(st) ? 0 : F_OSZAPC & ~jb->live_out, why, size))
        return false;
    for (unsigned i = 0; i < c->n; i++)
        if (host_copy(now, c->piece[i].at, c->piece[i].size) || memcmp(now, c->piece[i].new, c->piece[i].size)) {
            snprintf(why, size, "memory at %p", (void *)c->piece[i].at);
            return false;
        }
    snprintf(why, size, "vector or x87 state");
    return !fpu || !memcmp(c->fpu_first, cpu->fpu->area, cpu_fpu_area_size());
}

static void print_state(const char *name, const struct cpu_state *s)
{
    fprintf(stderr, "%s: rip %016lx flags %04lx\n", name, s->rip, s->flags);
    for (unsigned i = 0; i < 16; i++)
        fprintf(stderr, "  r%-2u %016lx%s", i, s->gpr[i], i % 4 == 3 ? "\n" : "");
}

static void report(struct cpu *cpu, const struct check *c, const struct block *b, const char *why)
{
    gva_t rip = c->before.rip;
    char text[96];

    fprintf(stderr, "check: interpreter and translator differ: %s\n", why);
    for (unsigned i = 0; i < b->n; rip += b->insn[i++].len) {
        insn_print(&b->insn[i], rip, text, sizeof(text));
        fprintf(stderr, "  %016lx  %s\n", rip, text);
    }
    print_state("before", &c->before);
    print_state("interpreter", &c->first);
    print_state("translator", &cpu->s);
    abort();
}

/* ---- the engine ---- */

/* The translator's counter is free: everything is translated at once. */
static void block_count(struct block *b)
{
    b->heat++;
}

static int check_block(struct jit *j, const struct jit_block *jb)
{
    static _Thread_local struct check *check;
    struct check *c;
    struct cpu *cpu = j->cpu;
    const struct block *b = jb->b;
    const uint64_t gen0 = cpu->exec_gen[0], gen1 = cpu->exec_gen[1];
    bool fpu = false;
    char why[160];
    int st;

    if (b->heat > OFTEN && b->heat % SELDOM) { /* it has shown what it does */
        block_count(jb->b);
        return jit_enter(j, jb);
    }
    block_count(jb->b);
    host_fpu_save(cpu);
    if (!check && !(check = calloc(1, sizeof(*check))))
        abort();
    c = check;
    for (unsigned i = 0; i < b->n; i++)
        fpu |= op_rows[b->insn[i].op].attrs & (A_VEC | A_X87);
    if (!c->fpu_before) {
        c->fpu_before = malloc(2 * cpu_fpu_area_size());
        if (!c->fpu_before)
            abort();
        c->fpu_first = c->fpu_before + cpu_fpu_area_size();
    }
    if (fpu)
        fpu_take(cpu, c->fpu_before);
    c->before = cpu->s;
    c->n = 0;
    c->once = !all_twice(b) || cpu->tlb_tag == TLB_TAG_SLOW;
    c->status = st = run_interpreted(cpu, c, b);
    if (c->once || st == CPU_AGAIN)
        return st;
    if (fpu)
        fpu_take(cpu, c->fpu_first);
    c->first = cpu->s;
    c->pending = cpu->pending;
    c->exit = cpu->exit;
    take_back(cpu, c);
    if (fpu)
        fpu_put(cpu, c->fpu_before);
    if (jb->uses_fpu)
        host_fpu_load(cpu);
    j->left_amid = false;
    st = jit_enter(j, jb);
    host_fpu_save(cpu);
    if (fpu)
        fpu_sync(cpu);
    if (j->left_amid ||
        (cpu->s.rip != c->first.rip && (jb->dead || cpu->exec_gen[0] != gen0 || cpu->exec_gen[1] != gen1)))
        return st; /* left amid the block, which goes on from there */
    if (!same(cpu, c, jb, st, fpu, why, sizeof(why)))
        report(cpu, c, b, why);
    cpu->s.flags = c->first.flags; /* the run loop shows them */
    return st;
}

static int check_init(struct cpu *cpu)
{
    const int st = jit_engine.init(cpu);

    if (st == 0) {
        ((struct jit *)cpu->engine_data)->check = check_block;
        ((struct jit *)cpu->engine_data)->heat = 0;
    }
    return st;
}

static bool check_supported(void)
{
    return jit_engine.supported();
}

static void check_destroy(struct cpu *cpu)
{
    jit_engine.destroy(cpu);
}

static int check_run(struct cpu *cpu)
{
    return jit_engine.run(cpu);
}

static int check_fault(struct cpu *cpu, int sig, void *siginfo, void *ucontext)
{
    return jit_engine.fault(cpu, sig, siginfo, ucontext);
}

static const struct engine check_engine = {.name = "check",
                                           .supported = check_supported,
                                           .init = check_init,
                                           .destroy = check_destroy,
                                           .run = check_run,
                                           .fault = check_fault};

__attribute__((constructor)) static void register_check(void)
{
    engine_register(&check_engine);
}
