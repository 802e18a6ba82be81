/* SPDX-License-Identifier: MIT
 * exception.c: raising exceptions and delivering events through the IDT in each mode, with double and triple faults
 * (SDM 3A, "Interrupt and Exception Handling", "64-Bit Mode Interrupt and Exception Handling"). */
#include "sys/cpu_sys.h"
#include "mem/mem.h"
#include "vmx/vmx_int.h"

/* ---- raising ---- */
static bool soft(const struct event *ev)
{
    return ev->type == INTR_SOFT_INT || ev->type == INTR_SOFT_EXC || ev->type == INTR_PRIV_SW_EXC;
}

/* Error codes say EXT = 1 when an event that the program did not ask for was being delivered. */
static uint32_t ext_bit(const struct cpu *cpu)
{
    const struct event *ev = &cpu->delivering;

    return ev->valid && ev->type != INTR_SOFT_INT && ev->type != INTR_SOFT_EXC;
}

static int raise_event(struct cpu *cpu, unsigned vector, bool has_error, uint32_t error, uint64_t payload)
{
    cpu->pending = (struct event){
        .vector = (uint8_t)vector,
        .type = INTR_HARD_EXC,
        .has_error = has_error && (cpu->s.cr0 & CR0_PE), /* in real mode there are no error codes */
        .valid = true,
        .error = error,
        .payload = payload,
    };
    return CPU_FAULT;
}

int cpu_raise(struct cpu *cpu, unsigned vector)
{
    return raise_event(cpu, vector, false, 0, 0);
}

int cpu_raise_err(struct cpu *cpu, unsigned vector, uint32_t error)
{
    return raise_event(cpu, vector, true, vector >= VEC_TS && vector <= VEC_GP ? error | ext_bit(cpu) : error, 0);
}

int cpu_raise_pf(struct cpu *cpu, gva_t gva, uint32_t error)
{
    return raise_event(cpu, VEC_PF, true, error, gva);
}

int cpu_raise_db(struct cpu *cpu, uint64_t dr6_bits)
{
    return raise_event(cpu, VEC_DB, false, 0, dr6_bits);
}

/* ---- gates ---- */
struct gate {
    uint64_t off;
    uint16_t sel;
    uint8_t type, dpl, ist, vector;
    bool present;
};

static int gate_error(struct cpu *cpu, unsigned fault, unsigned vector)
{
    return cpu_raise_err(cpu, fault, vector << 3 | 2);
}

static int gate_read(struct cpu *cpu, unsigned vector, struct gate *g)
{
    const struct dtable *idtr = &cpu->s.idtr;
    const bool lm = long_mode(cpu);
    const unsigned size = lm ? 16 : 8;
    uint64_t d[2] = {0, 0};
    int st;

    if (vector * size + size - 1 > idtr->limit)
        return gate_error(cpu, VEC_GP, vector);
    const gva_t gva = idtr->base + vector * size;
    if ((st = mem_read(cpu, SEG_NONE, lm ? gva : (uint32_t)gva, d, size, ACC_READ | ACCF_SUPER)))
        return st;
    *g = (struct gate){
        .off = (d[0] & 0xffff) | (d[0] >> 48 & 0xffff) << 16 | d[1] << 32,
        .sel = (uint16_t)(d[0] >> 16),
        .type = (uint8_t)(desc_type(d[0]) | (desc_s(d[0]) ? 0x10 : 0)),
        .dpl = (uint8_t)desc_dpl(d[0]),
        .ist = lm ? d[0] >> 32 & 7 : 0,
        .vector = (uint8_t)vector,
        .present = desc_p(d[0]),
    };
    if (g->type == SYS_INT16 || g->type == SYS_TRAP16)
        g->off &= 0xffff;
    return CPU_OK;
}

static bool gate_type_valid(const struct cpu *cpu, unsigned type)
{
    if (type == SYS_INT32 || type == SYS_TRAP32)
        return true;
    return !long_mode(cpu) && (type == SYS_INT16 || type == SYS_TRAP16 || type == SYS_TASK);
}

static int gate_check(struct cpu *cpu, const struct event *ev, const struct gate *g)
{
    if (!gate_type_valid(cpu, g->type))
        return gate_error(cpu, VEC_GP, g->vector);
    if ((ev->type == INTR_SOFT_INT || ev->type == INTR_SOFT_EXC) && g->dpl < cpu->s.cpl)
        return gate_error(cpu, VEC_GP, g->vector);
    return g->present ? CPU_OK : gate_error(cpu, VEC_NP, g->vector);
}

/* ---- the handler's code segment and stack ---- */
struct handler {
    struct segment cs;
    struct stack stack;
    unsigned cpl, width; /* width of what is pushed */
    bool inner;          /* a stack of another level */
};

static int handler_cs(struct cpu *cpu, const struct gate *g, struct handler *h)
{
    uint64_t d;
    int st;

    if (sel_null(g->sel))
        return cpu_raise_err(cpu, VEC_GP, 0);
    if ((st = seg_read_desc8(cpu, g->sel, &d, VEC_GP)))
        return st;
    if (!desc_code(d) || desc_dpl(d) > cpu->s.cpl || (long_mode(cpu) && (!desc_l(d) || desc_db(d))))
        return seg_error(cpu, VEC_GP, g->sel);
    if (!desc_p(d))
        return seg_error(cpu, VEC_NP, g->sel);
    h->cpl = desc_conforming(d) ? cpu->s.cpl : desc_dpl(d);
    if (cpu->s.mode == MODE_V86 && h->cpl != 0)
        return seg_error(cpu, VEC_GP, g->sel);
    if ((st = seg_set_accessed(cpu, g->sel, d)))
        return st;
    seg_from_desc(&h->cs, (uint16_t)((g->sel & ~3) | h->cpl), d | 1ull << 40);
    h->inner = h->cpl < cpu->s.cpl;
    h->width = long_mode(cpu) ? 8 : g->type & 8 ? 4 : 2;
    return CPU_OK;
}

static int handler_stack(struct cpu *cpu, const struct gate *g, struct handler *h)
{
    struct segment ss = cpu->s.seg[SEG_SS];
    uint64_t sp = cpu->s.gpr[R_RSP];
    uint16_t sel;
    uint32_t esp;
    int st;

    if (long_mode(cpu)) {
        if ((g->ist || h->inner) && (st = tss_read_rsp(cpu, g->ist ? g->ist : h->cpl, g->ist, &sp)))
            return st;
        if (h->inner) {
            seg_make_null(&ss, (uint16_t)h->cpl);
            ss.attr |= h->cpl << 5;
        }
        stack_new(cpu, &h->stack, &ss, sp & ~15ull, true, h->inner);
        h->stack.vector_sel = 0;
        return CPU_OK;
    }
    if (!h->inner) {
        stack_current(cpu, &h->stack);
        return CPU_OK;
    }
    if ((st = tss_read_stack(cpu, h->cpl, &sel, &esp)) || (st = seg_check_stack(cpu, sel, h->cpl, VEC_TS, &ss)))
        return st;
    stack_new(cpu, &h->stack, &ss, esp, false, true);
    return CPU_OK;
}

/* The flags that are pushed: RF = 1 for faults, so that an instruction breakpoint does not fire again; not for #DB (SDM
 * 3B, "Resume Flag"). */
static uint64_t pushed_flags(const struct cpu *cpu, const struct event *ev)
{
    uint64_t flags = cpu_get_rflags(&cpu->s);

    if (ev->type == INTR_HARD_EXC && ev->vector != VEC_DB && ev->vector != VEC_BP && ev->vector != VEC_OF)
        flags |= F_RF;
    else if (soft(ev))
        flags &= ~F_RF;
    return flags;
}

static int push_frame(struct cpu *cpu, const struct event *ev, struct handler *h)
{
    static const uint8_t v86_segs[] = {SEG_GS, SEG_FS, SEG_DS, SEG_ES};
    const struct cpu_state *s = &cpu->s;
    uint64_t frame[10];
    unsigned n = 0;

    if (s->mode == MODE_V86)
        for (unsigned i = 0; i < ARRAY_SIZE(v86_segs); i++)
            frame[n++] = s->seg[v86_segs[i]].sel;
    if (h->inner || long_mode(cpu)) {
        frame[n++] = s->seg[SEG_SS].sel;
        frame[n++] = s->gpr[R_RSP];
    }
    frame[n++] = pushed_flags(cpu, ev);
    frame[n++] = s->seg[SEG_CS].sel;
    frame[n++] = s->rip;
    if (ev->has_error)
        frame[n++] = ev->error;
    return stack_push_many(cpu, &h->stack, h->width, frame, n);
}

static void enter_handler(struct cpu *cpu, const struct gate *g, const struct handler *h)
{
    struct cpu_state *s = &cpu->s;

    if (s->mode == MODE_V86)
        for (unsigned i = 0; i < 6; i++)
            if (i != SEG_CS && i != SEG_SS)
                seg_make_null(&s->seg[i], 0);
    s->seg[SEG_CS] = h->cs;
    s->seg[SEG_SS] = h->stack.ss;
    stack_commit_sp(cpu, &h->stack);
    s->rip = g->off;
    s->rflags_sys &= ~(F_TF | F_NT | F_VM | F_RF);
    if (g->type == SYS_INT16 || g->type == SYS_INT32)
        s->rflags_sys &= ~F_IF;
}

static int deliver_protected(struct cpu *cpu, const struct event *ev)
{
    struct handler h = {0};
    struct gate g;
    int st;

    if ((st = gate_read(cpu, ev->vector, &g)) || (st = gate_check(cpu, ev, &g)))
        return st;
    if (g.type == SYS_TASK)
        return task_switch(cpu, g.sel, 3, ev->has_error, ev->error);
    if ((st = handler_cs(cpu, &g, &h)) || (st = handler_stack(cpu, &g, &h)) || (st = push_frame(cpu, ev, &h)))
        return st;
    if (long_mode(cpu) ? !cpu_canonical(g.off) : g.off > h.cs.limit)
        return cpu_raise_err(cpu, VEC_GP, 0);
    enter_handler(cpu, &g, &h);
    return CPU_OK;
}

static int deliver_real(struct cpu *cpu, const struct event *ev)
{
    struct cpu_state *s = &cpu->s;
    struct stack stack;
    uint32_t vector;
    int st;

    if (ev->vector * 4u + 3 > s->idtr.limit)
        return gate_error(cpu, VEC_GP, ev->vector);
    if ((st = mem_read(cpu, SEG_NONE, (uint32_t)(s->idtr.base + ev->vector * 4u), &vector, 4, ACC_READ | ACCF_SUPER)))
        return st;
    stack_current(cpu, &stack);
    if ((st = stack_push(cpu, &stack, 2, pushed_flags(cpu, ev))) ||
        (st = stack_push(cpu, &stack, 2, s->seg[SEG_CS].sel)) || (st = stack_push(cpu, &stack, 2, s->rip)))
        return st;
    stack_commit_sp(cpu, &stack);
    seg_load_real(cpu, SEG_CS, (uint16_t)(vector >> 16));
    s->rip = vector & 0xffff;
    s->rflags_sys &= ~(F_IF | F_TF | F_AC | F_RF);
    return CPU_OK;
}

static int deliver_once(struct cpu *cpu, const struct event *ev)
{
    struct cpu_state *s = &cpu->s;
    int st = s->mode == MODE_REAL ? deliver_real(cpu, ev) : deliver_protected(cpu, ev);

    if (st)
        return st;
    s->interruptibility &= ~(INTR_BLOCK_STI | INTR_BLOCK_MOVSS);
    if (ev->type == INTR_NMI)
        s->interruptibility |= INTR_BLOCK_NMI;
    s->activity = ACTIVITY_ACTIVE;
    cpu->nmi_unblocked = false;
    cpu->data_hits = 0;
    cpu->rf_before = false;
    cpu->step_taken = true;
    cpu_privilege_changed(cpu);
    return CPU_OK;
}

/* ---- nested faults (SDM 3A, "Interrupt 8--Double Fault Exception") ---- */
enum severity { BENIGN, CONTRIBUTORY, PAGE_FAULT, DOUBLE_FAULT };

static enum severity severity(const struct event *ev)
{
    if (ev->type != INTR_HARD_EXC)
        return BENIGN;
    switch (ev->vector) {
    case VEC_DE:
    case VEC_TS:
    case VEC_NP:
    case VEC_SS:
    case VEC_GP:
        return CONTRIBUTORY;
    case VEC_PF:
        return PAGE_FAULT;
    case VEC_DF:
        return DOUBLE_FAULT;
    default:
        return BENIGN;
    }
}

enum combined { SERIAL, DOUBLE, TRIPLE };

static enum combined combine(const struct event *first, const struct event *second)
{
    const enum severity a = severity(first), b = severity(second);

    if (b != CONTRIBUTORY && b != PAGE_FAULT)
        return SERIAL;
    if (a == DOUBLE_FAULT)
        return TRIPLE;
    if (a == PAGE_FAULT || (a == CONTRIBUTORY && b == CONTRIBUTORY))
        return DOUBLE;
    return SERIAL;
}

/* What an exception does to CR2, DR6 and DR7 when it is taken. An injected event does not come here. */
static void side_effects(struct cpu *cpu, const struct event *ev)
{
    struct cpu_state *s = &cpu->s;

    cpu->counters[CC_exceptions]++;
    if (ev->type != INTR_HARD_EXC)
        return;
    if (ev->vector == VEC_PF) {
        s->cr2 = ev->payload;
    } else if (ev->vector == VEC_DB) {
        if (ev->payload & (0xf | DR6_BD))
            s->dr6 &= ~0xfull;
        s->dr6 |= ev->payload & (0xf | DR6_BD | DR6_BS | DR6_BT);
        s->dr7 &= ~DR7_GD;
        s->debugctl &= ~1ull;
    }
}

static int nested_fault(struct cpu *cpu, struct event *ev)
{
    const struct event fault = cpu->pending;
    const enum combined how = combine(ev, &fault);
    int st;

    /* The second fault's own intercept comes first; the exit then tells what was being delivered. */
    if ((st = vmx_intercept_exception(cpu, &fault)))
        return st;
    cpu->delivering.valid = false;
    if (how == TRIPLE)
        return vmx_triple_fault(cpu);
    if (how == DOUBLE) {
        if (severity(&fault) == PAGE_FAULT)
            cpu->s.cr2 = fault.payload;
        *ev = (struct event){.vector = VEC_DF, .type = INTR_HARD_EXC, .has_error = cpu->s.cr0 & CR0_PE, .valid = true};
        if ((st = vmx_intercept_exception(cpu, ev)))
            return st;
    } else {
        *ev = fault;
    }
    side_effects(cpu, ev);
    return CPU_OK;
}

/* RIP is the return address: past the instruction that asked for a software event, on which it is again when the event
 * could not be delivered. */
int cpu_deliver(struct cpu *cpu, const struct event *event)
{
    struct event ev = *event;
    int st;

    for (;;) {
        ev.valid = true;
        cpu->delivering = ev;
        st = deliver_once(cpu, &ev);
        if (st == CPU_OK) {
            cpu->delivering.valid = false;
            return CPU_OK;
        }
        if (soft(&ev))
            cpu->s.rip = (cpu->s.rip - ev.insn_len) & cpu->s.ip_mask;
        if (st != CPU_FAULT)
            return st;
        if ((st = nested_fault(cpu, &ev)))
            return st;
    }
}

int cpu_exception(struct cpu *cpu)
{
    struct event ev = cpu->pending;
    int st = vmx_intercept_exception(cpu, &ev);

    if (st)
        return st;
    cpu->pending.valid = false;
    cpu->nmi_unblocked = false;
    if (unlikely(cpu_trace_mask & CPU_TRACE_EVENT))
        cpu_trace(cpu, "exception %u error %#x payload %#llx rip %#llx", ev.vector, ev.error,
                  (unsigned long long)ev.payload, (unsigned long long)cpu->s.rip);
    side_effects(cpu, &ev);
    st = cpu_deliver(cpu, &ev);
    if (st == CPU_OK && unlikely(vmx_mtf(cpu))) /* an event's delivery ends at a boundary too */
        return vmx_exit_mtf(cpu);
    return st;
}

/* INT3, INTO and INT1 are exceptions that the bitmap may intercept; INT n is not (SDM 3C, "Instructions That Cause VM
 * Exits"). CPU_FAULT only under emulation: there the caller queues it. */
int cpu_soft_interrupt(struct cpu *cpu, const struct insn *in, unsigned vector, unsigned type)
{
    struct event ev = {.vector = (uint8_t)vector, .type = (uint8_t)type, .valid = true, .insn_len = in->len};
    int st;

    if (type == INTR_SOFT_INT) {
        if (cpu->s.mode == MODE_V86 && (cpu->s.rflags_sys & F_IOPL) != F_IOPL)
            return cpu_raise_err(cpu, VEC_GP, 0);
    } else if ((st = vmx_intercept_exception(cpu, &ev))) {
        return st;
    }
    const uint64_t rip = cpu->s.rip;

    cpu->s.rip = (rip + in->len) & cpu->s.ip_mask;
    if (!cpu->emul) {
        st = cpu_deliver(cpu, &ev);
        return st == CPU_OK ? CPU_JUMP : st;
    }
    cpu->delivering = ev;
    st = deliver_once(cpu, &ev);
    cpu->delivering.valid = false;
    if (st == CPU_OK)
        return CPU_JUMP;
    cpu->s.rip = rip;
    return st;
}
