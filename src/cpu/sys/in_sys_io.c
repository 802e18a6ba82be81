/* SPDX-License-Identifier: MIT
 * in_sys_io.c: IN, OUT, INS, OUTS (SDM 1, "Input/Output"). No port is behind the processor itself: an access exits, is
 * emulated for the hypervisor, or reads as all ones. */
#include "sys/in_sys_int.h"
#include "mem/mem.h"

/* CPL > IOPL and virtual-8086 mode: the I/O permission bitmap of the TSS decides. */
static int io_permission(struct cpu *cpu, uint16_t port, unsigned size)
{
    const struct cpu_state *s = &cpu->s;
    const uint64_t base = long_mode(cpu) ? s->tr.base : (uint32_t)s->tr.base;
    uint16_t map, bits;
    int st;

    if (s->mode == MODE_REAL || (s->mode != MODE_V86 && s->cpl <= (s->rflags_sys & F_IOPL) >> 12))
        return CPU_OK;
    if ((s->tr.attr & AR_UNUSABLE) || !(AR_TYPE(s->tr.attr) & 8) || s->tr.limit < 103)
        return sys_gp0(cpu);
    if ((st = mem_read(cpu, SEG_NONE, base + 102, &map, 2, ACC_READ | ACCF_SUPER)))
        return st;
    const uint32_t off = map + port / 8u; /* two bytes are read, for the ports may lie in both */
    if (off + 1 > s->tr.limit)
        return sys_gp0(cpu);
    if ((st = mem_read(cpu, SEG_NONE, base + off, &bits, 2, ACC_READ | ACCF_SUPER)))
        return st;
    return bits >> (port & 7) & ((1u << size) - 1) ? sys_gp0(cpu) : CPU_OK;
}

static unsigned io_size(const struct insn *in)
{
    return in->opsize == 8 ? 4 : in->opsize;
}

/* imm8 or DX */
static uint16_t io_port(const struct cpu *cpu, const struct insn *in, bool *imm)
{
    for (unsigned i = 0; i < in->nops; i++) {
        if (in->o[i].kind == OPK_IMM) {
            *imm = true;
            return (uint8_t)in->imm;
        }
    }
    *imm = false;
    return (uint16_t)cpu->s.gpr[R_RDX];
}

int in_in(struct cpu *cpu, const struct insn *in)
{
    const unsigned size = io_size(in);
    bool imm;
    const uint16_t port = io_port(cpu, in, &imm);
    uint32_t value = 0xffffffff;
    unsigned done = 1;
    int st;

    if ((st = io_permission(cpu, port, size)) ||
        (st = vmx_intercept_io(cpu, in, port, size, true, false, false, imm, 0)))
        return st;
    if (cpu->emul && (st = emul_pio(cpu, port, size, true, &value, 1, &done)))
        return st;
    cpu_io_access(cpu, port, size);
    reg_write(cpu, R_RAX, size, value);
    return CPU_OK;
}

int in_out(struct cpu *cpu, const struct insn *in)
{
    const unsigned size = io_size(in);
    bool imm;
    const uint16_t port = io_port(cpu, in, &imm);
    uint32_t value = (uint32_t)reg_read(cpu, R_RAX, size);
    unsigned done = 1;
    int st;

    if ((st = io_permission(cpu, port, size)) ||
        (st = vmx_intercept_io(cpu, in, port, size, false, false, false, imm, 0)))
        return st;
    if (cpu->emul && (st = emul_pio(cpu, port, size, false, &value, 1, &done)))
        return st;
    cpu_io_access(cpu, port, size);
    return CPU_OK;
}

/* ---- string forms ---- */
#define BATCH_BYTES 1024u

struct io_string {
    uint16_t port;
    unsigned size, asize;
    bool rep, backward;
    enum seg_reg seg;
    unsigned index; /* register: rSI or rDI */
};

static struct io_string io_string(const struct cpu *cpu, const struct insn *in, bool input)
{
    return (struct io_string){
        .port = (uint16_t)cpu->s.gpr[R_RDX],
        .size = io_size(in),
        .asize = in->asize,
        .rep = in->pfx & (PFX_REP | PFX_REPNE),
        .backward = cpu->s.rflags_sys & F_DF,
        .seg = input ? SEG_ES : in->seg,
        .index = input ? R_RDI : R_RSI,
    };
}

/* Elements that go in one piece: one, or under emulation as many as lie in the page. An element in memory that KVM has
 * not mapped is an access of its own, which emulation has to remember, as it has each access to a paging structure. */
#define BATCH_UNMAPPED 32u
static unsigned batch(struct cpu *cpu, const struct io_string *s, enum tlb_kind kind)
{
    const uint64_t ea = reg_read(cpu, s->index, s->asize), count = reg_read(cpu, R_RCX, s->asize);
    const gva_t gva = sys_linear(cpu, s->seg, ea);
    const uint64_t left = PAGE_SIZE - (gva & ~PAGE_MASK);
    uint64_t n = (left < BATCH_BYTES ? left : BATCH_BYTES) / s->size;

    if (!s->rep || !cpu->emul || s->backward || n == 0)
        return 1;
    if (n > BATCH_UNMAPPED && !emul_pio_begun(cpu) && !tlb_lookup(cpu, gva, s->size, kind))
        n = BATCH_UNMAPPED;
    return (unsigned)(n < count ? n : count);
}

static int move_elements(struct cpu *cpu, const struct io_string *s, uint8_t *buf, unsigned count, bool to_memory)
{
    const uint64_t ea = reg_read(cpu, s->index, s->asize);

    for (unsigned i = 0; i < count; i++) {
        const uint64_t at = s->asize == 8   ? ea + i * s->size
                            : s->asize == 4 ? (uint32_t)(ea + i * s->size)
                                            : (uint16_t)(ea + i * s->size);
        int st = to_memory ? mem_write(cpu, s->seg, at, buf + i * s->size, s->size, ACC_WRITE)
                           : mem_read(cpu, s->seg, at, buf + i * s->size, s->size, ACC_READ);
        if (st)
            return st;
    }
    return CPU_OK;
}

static int advance(struct cpu *cpu, const struct io_string *s, unsigned done)
{
    const uint64_t bytes = (uint64_t)done * s->size;

    reg_write(cpu, s->index, s->asize, cpu->s.gpr[s->index] + (s->backward ? -bytes : bytes));
    cpu_io_access(cpu, s->port, s->size);
    if (!s->rep)
        return CPU_OK;
    reg_write(cpu, R_RCX, s->asize, cpu->s.gpr[R_RCX] - done);
    return reg_read(cpu, R_RCX, s->asize) ? CPU_AGAIN : CPU_OK;
}

static int io_string_check(struct cpu *cpu, const struct insn *in, const struct io_string *s, bool input)
{
    const gva_t gva = sys_linear(cpu, s->seg, reg_read(cpu, s->index, s->asize));
    int st = io_permission(cpu, s->port, s->size);

    return st ? st : vmx_intercept_io(cpu, in, s->port, s->size, input, true, s->rep, false, gva);
}

int in_ins(struct cpu *cpu, const struct insn *in)
{
    const struct io_string s = io_string(cpu, in, true);
    uint8_t buf[BATCH_BYTES];
    unsigned count, done;
    int st;

    if (s.rep && reg_read(cpu, R_RCX, s.asize) == 0)
        return CPU_OK;
    if ((st = io_string_check(cpu, in, &s, true)))
        return st;
    /* the port is read only when nothing can fault any more */
    if ((st = mem_probe(cpu, s.seg, reg_read(cpu, s.index, s.asize), s.size, ACC_WRITE)))
        return st;
    done = count = batch(cpu, &s, TLB_WRITE);
    for (unsigned i = 0; i < count * s.size; i++)
        buf[i] = 0xff;
    if (cpu->emul && (st = emul_pio(cpu, s.port, s.size, true, buf, count, &done)))
        return st;
    done = done < count ? done : count; /* the client may have set a lower RCX meanwhile */
    if ((st = move_elements(cpu, &s, buf, done, true)))
        return st;
    return advance(cpu, &s, done);
}

int in_outs(struct cpu *cpu, const struct insn *in)
{
    const struct io_string s = io_string(cpu, in, false);
    uint8_t buf[BATCH_BYTES];
    unsigned count, done;
    int st;

    if (s.rep && reg_read(cpu, R_RCX, s.asize) == 0)
        return CPU_OK;
    if ((st = io_string_check(cpu, in, &s, false)))
        return st;
    /* the first one's access makes its page known, if it is mapped; what the port has got is not read again */
    if (!emul_pio_begun(cpu) && (st = move_elements(cpu, &s, buf, 1, false)))
        return st;
    done = count = batch(cpu, &s, TLB_READ);
    if (count > 1 && !emul_pio_begun(cpu) && (st = move_elements(cpu, &s, buf, count, false)))
        return st;
    if (cpu->emul && (st = emul_pio(cpu, s.port, s.size, false, buf, count, &done)))
        return st;
    done = done < count ? done : count;
    return advance(cpu, &s, done);
}
