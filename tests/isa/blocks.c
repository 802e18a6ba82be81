/* SPDX-License-Identifier: MIT
 * blocks.c: random sequences of instructions on the host CPU and by an engine, from the same registers and memory, with
 * accesses over page ends and such as fault. isa.c looks at rows one by one; here the translator's work between them is
 * met: flags that must survive checks, registers that live in memory, links, faults in the middle of a block.
 *
 * blocks [-e engine] [-n blocks] [-s seed] [-i] [-l] [-v]; -i: integer instructions of the table here alone; -l: loops,
 * which go round a few times, so that blocks are translated together */
#define guest_run isa_guest_run /* of isa.h */
#include "block_vec.h"
#undef guest_run
#include "../unit/guest.h"
#include "../../src/cpu/engine.h"
#include "../../src/cpu/run/code.h"
#include <stdio.h>
#include <unistd.h>

unsigned verbose;
uint64_t rng_state = 0x9876543212345678ull;

uint64_t rnd_value(void)
{
    switch (below(4)) {
    case 0:
        return below(2) ? below(70) : -(uint64_t)below(70);
    case 1:
        return rnd() >> below(64);
    default:
        return rnd();
    }
}

/* ---- the code ---- */
#define POINTERS ((1u << R_RBX) | (1u << R_RSI) | (1u << R_R10) | (1u << R_R13) | (1u << R_R14) | (1u << R_RSP))
static const uint8_t pointers[] = {R_RBX, R_RSI, R_R10, R_R13, R_R14, R_RSP}, indices[] = {R_R9, R_R12, R_R15, R_RCX};
static uint8_t code[512];
static unsigned len;
static bool all_rows = true, loops;

static void put(uint64_t v, unsigned n)
{
    memcpy(code + len, &v, n);
    len += n;
}

enum { IMM_NONE, IMM_8, IMM_OP, IMM_64 };
#define E_BYTE  1u /* byte operands when the lowest bit of the opcode is 0 */
#define E_GROUP 2u /* ModRM.reg is part of the opcode: below n */
#define E_LOCK  4u
#define E_MEM   8u
#define E_LOW3  16u /* a register in the opcode's lowest bits, no ModRM */
#define E_PLAIN 32u /* no ModRM */
#define E_NO66  64u
#define E_COND  128u /* any condition in the lowest 4 bits */

static const struct encoding {
    uint8_t map, opcode, prefix, imm, flags, n; /* n: bit set of the group's members */
    uint8_t weight;
} encodings[] = {
    {0, 0x00, 0, 0, E_BYTE | E_LOCK, 0, 4},
    {0, 0x01, 0, 0, E_LOCK, 0, 6},
    {0, 0x02, 0, 0, E_BYTE, 0, 3},
    {0, 0x03, 0, 0, 0, 0, 8},
    {0, 0x04, 0, IMM_8, E_PLAIN, 0, 1},
    {0, 0x05, 0, IMM_OP, E_PLAIN, 0, 1}, /* opcode | 8 * (0-7) for all six */
    {0, 0x80, 0, IMM_8, E_BYTE | E_GROUP | E_LOCK, 0xff, 3},
    {0, 0x81, 0, IMM_OP, E_GROUP | E_LOCK, 0xff, 4},
    {0, 0x83, 0, IMM_8, E_GROUP | E_LOCK, 0xff, 6},
    {0, 0x84, 0, 0, E_BYTE, 0, 2},
    {0, 0x85, 0, 0, 0, 0, 2},
    {0, 0x86, 0, 0, E_BYTE | E_LOCK, 0, 2},
    {0, 0x87, 0, 0, E_LOCK, 0, 2},
    {0, 0x88, 0, 0, E_BYTE, 0, 4},
    {0, 0x89, 0, 0, 0, 0, 8},
    {0, 0x8a, 0, 0, E_BYTE, 0, 4},
    {0, 0x8b, 0, 0, 0, 0, 8},
    {0, 0x8d, 0, 0, E_MEM, 0, 4},
    {0, 0xc6, 0, IMM_8, E_BYTE | E_GROUP, 1, 2},
    {0, 0xc7, 0, IMM_OP, E_GROUP, 1, 3},
    {0, 0xb8, 0, IMM_64, E_LOW3, 0, 3},
    {0, 0xb0, 0, IMM_8, E_LOW3 | E_BYTE, 0, 2},
    {0, 0xd0, 0, 0, E_BYTE | E_GROUP, 0xff, 2},
    {0, 0xd1, 0, 0, E_GROUP, 0xff, 2},
    {0, 0xd2, 0, 0, E_BYTE | E_GROUP, 0xff, 2},
    {0, 0xd3, 0, 0, E_GROUP, 0xff, 4},
    {0, 0xc0, 0, IMM_8, E_BYTE | E_GROUP, 0xff, 2},
    {0, 0xc1, 0, IMM_8, E_GROUP, 0xff, 4},
    {0, 0xf6, 0, 0, E_BYTE | E_GROUP, 0xfc, 3},
    {0, 0xf7, 0, 0, E_GROUP, 0xfc, 6},
    {0, 0xf6, 0, IMM_8, E_BYTE | E_GROUP, 3, 1},
    {0, 0xf7, 0, IMM_OP, E_GROUP, 3, 1},
    {0, 0xfe, 0, 0, E_BYTE | E_GROUP | E_LOCK, 3, 2},
    {0, 0xff, 0, 0, E_GROUP | E_LOCK, 3, 3},
    {0, 0xff, 0, 0, E_GROUP, 0x40, 2},
    {0, 0x8f, 0, 0, E_GROUP, 1, 1},
    {0, 0x50, 0, 0, E_LOW3, 0, 3},
    {0, 0x58, 0, 0, E_LOW3, 0, 3},
    {0, 0x68, 0, IMM_OP, E_PLAIN, 0, 1},
    {0, 0x6a, 0, IMM_8, E_PLAIN, 0, 1},
    {0, 0xc9, 0, 0, E_PLAIN, 0, 1},
    {0, 0x69, 0, IMM_OP, 0, 0, 2},
    {0, 0x6b, 0, IMM_8, 0, 0, 2},
    {1, 0xaf, 0, 0, 0, 0, 3},
    {0, 0x63, 0, 0, 0, 0, 2},
    {1, 0xa3, 0, 0, 0, 0, 1},
    {1, 0xab, 0, 0, E_LOCK, 0, 1},
    {1, 0xb3, 0, 0, E_LOCK, 0, 1},
    {1, 0xbb, 0, 0, E_LOCK, 0, 1},
    {1, 0xba, 0, IMM_8, E_GROUP | E_LOCK, 0xf0, 3},
    {1, 0xbc, 0, 0, 0, 0, 1},
    {1, 0xbd, 0, 0, 0, 0, 1},
    {1, 0xbc, 0xf3, 0, 0, 0, 1},
    {1, 0xbd, 0xf3, 0, 0, 0, 1},
    {1, 0xb8, 0xf3, 0, 0, 0, 1},
    {1, 0xb0, 0, 0, E_BYTE | E_LOCK, 0, 2},
    {1, 0xb1, 0, 0, E_LOCK, 0, 3},
    {1, 0xc0, 0, 0, E_BYTE | E_LOCK, 0, 2},
    {1, 0xc1, 0, 0, E_LOCK, 0, 3},
    {1, 0xa4, 0, IMM_8, 0, 0, 2},
    {1, 0xa5, 0, 0, 0, 0, 2},
    {1, 0xac, 0, IMM_8, 0, 0, 2},
    {1, 0xad, 0, 0, 0, 0, 2},
    {1, 0x90, 0, 0, E_COND | E_BYTE, 0, 4},
    {1, 0x40, 0, 0, E_COND, 0, 4},
    {1, 0xb6, 0, 0, 0, 0, 2},
    {1, 0xb7, 0, 0, 0, 0, 2},
    {1, 0xbe, 0, 0, 0, 0, 2},
    {1, 0xbf, 0, 0, 0, 0, 2},
    {1, 0xc8, 0, 0, E_LOW3 | E_NO66, 0, 2},
    {0, 0x98, 0, 0, E_PLAIN, 0, 1},
    {0, 0x99, 0, 0, E_PLAIN, 0, 1},
    {0, 0x9e, 0, 0, E_PLAIN, 0, 1},
    {0, 0x9f, 0, 0, E_PLAIN, 0, 1},
    {0, 0xf5, 0, 0, E_PLAIN, 0, 1},
    {0, 0xf8, 0, 0, E_PLAIN, 0, 1},
    {0, 0xf9, 0, 0, E_PLAIN, 0, 1},
    {1, 0x1f, 0, 0, E_GROUP, 1, 1},
    {1, 0x38, 0, 0, 0, 0, 0},
};

static unsigned any_reg(void)
{
    unsigned r;

    do
        r = below(16);
    while ((POINTERS >> r & 1) && below(24)); /* pointers mostly stay */
    return r;
}

static void put_modrm(unsigned rex, unsigned reg, bool mem, unsigned at_rex)
{
    unsigned base, index, mod = below(3), scale = below(4);
    bool sib;

    rex |= (reg & 8) >> 1;
    if (!mem) {
        const unsigned rm = any_reg();

        code[at_rex] = rex | (rm & 8) >> 3;
        put(0xc0 | (reg & 7) << 3 | (rm & 7), 1);
        return;
    }
    base = pointers[below(sizeof(pointers))];
    index = below(3) ? 4 : indices[below(sizeof(indices))];
    sib = index != 4 || (base & 7) == 4 || !below(8);
    if (mod == 0 && (base & 7) == 5)
        mod = 1;
    code[at_rex] = rex | (index & 8) >> 2 | (base & 8) >> 3;
    put(mod << 6 | (reg & 7) << 3 | (sib ? 4 : base & 7), 1);
    if (sib)
        put(scale << 6 | (index & 7) << 3 | (base & 7), 1);
    if (mod == 1)
        put(below(64) - 32, 1);
    else if (mod == 2)
        put((int64_t)below(4096) - 2048, 4);
}

static const struct encoding *choose(void)
{
    static unsigned total;
    int at;

    for (unsigned i = 0; !total || (i && i < ARRAY_SIZE(encodings)); i++) {
        total = i ? total : 0;
        for (unsigned k = 0; k < ARRAY_SIZE(encodings); k++)
            total += encodings[k].weight;
        break;
    }
    at = below(total);
    for (unsigned k = 0; k < ARRAY_SIZE(encodings); k++)
        if ((at -= encodings[k].weight) < 0)
            return &encodings[k];
    return &encodings[0];
}

static void put_insn(void)
{
    const struct encoding *e = choose();
    const bool mem = (e->flags & E_MEM) || below(2), plain = e->flags & (E_PLAIN | E_LOW3);
    unsigned opcode = e->opcode, rex = 0x40, at_rex, opsize = 4, reg = any_reg();

    if (!below(64))
        put(below(2) ? 0xf2 : 0x3e, 1); /* means nothing here */
    if (!below(32) && !plain)
        put(0x67, 1);
    if (!(e->flags & E_NO66) && !below(8)) {
        put(0x66, 1);
        opsize = 2;
    }
    if ((mem && !plain && (e->flags & E_LOCK)) ? !below(5) : !below(200))
        put(0xf0, 1);
    if (e->prefix)
        put(e->prefix, 1);
    if (below(2)) {
        rex |= 8;
        opsize = 8;
    }
    if (!e->map && opcode < 8)
        opcode |= below(8) << 3;
    if (e->flags & E_COND)
        opcode |= below(16);
    if (e->flags & E_GROUP)
        do
            reg = below(8);
        while (!(e->n >> reg & 1));
    at_rex = len;
    put(rex, 1);
    if (e->map)
        put(0x0f, 1);
    if (e->flags & E_LOW3) {
        code[at_rex] |= (reg & 8) >> 3;
        put(opcode | (reg & 7), 1);
    } else {
        put(opcode, 1);
    }
    if (!plain)
        put_modrm(rex, reg, mem, at_rex);
    if (code[at_rex] == 0x40 && below(2)) { /* without REX: AH CH DH BH for some */
        memmove(code + at_rex, code + at_rex + 1, len - at_rex - 1);
        len--;
    }
    if (e->imm == IMM_8)
        put(rnd_value(), 1);
    else if (e->imm == IMM_64 && opsize == 8)
        put(rnd_value(), 8);
    else if (e->imm)
        put(rnd_value(), opsize == 2 ? 2 : 4);
}

/* Host kernels do not go back to a stack pointer that is not canonical, and a loop's counter is its own. */
static bool unwanted(const struct insn *in)
{
    for (unsigned n = 0; n < in->nops; n++) {
        const struct opnd *o = &in->o[n];

        if (o->kind != OPK_REG || !(o->rw & OPND_W))
            continue;
        if (loops && o->reg == R_R8)
            return true;
        if (o->reg == R_RSP && o->size == 8 && in->o[in->nops - 1].kind != OPK_IMM)
            return true;
    }
    return in->op == OP_LEAVE || (in->op == OP_IMUL && in->o[0].reg == R_RSP) ||
           (in->op >= OP_SHL && in->op <= OP_RCR && in->o[0].kind == OPK_REG && in->o[0].reg == R_RSP);
}

static void put_any(void)
{
    const unsigned at = len;
    struct insn in;

    do {
        unsigned n = 0;

        len = at;
        if (all_rows && !below(3))
            n = vec_put(code + len, POINTERS & ~(1u << R_RSP), 1u << R_R9 | 1u << R_R12);
        len += n;
        if (!n)
            put_insn();
    } while (insn_decode(code + at, len - at, MODE_64, &in) == 0 && unwanted(&in));
}

/* R8 goes down by one; jump to top while it is not 0. The flags that the loop's head sees come from here. */
static void put_loop_end(unsigned top)
{
    switch (below(6)) {
    case 0:
        put(0xc8ff41, 3); /* dec r8d */
        break;
    case 1:
        put(0x01e88341, 4); /* sub r8d, 1 */
        break;
    case 2:
        put(0xff408d45, 4); /* lea r8d, [r8 - 1] */
        put(0xc08545, 3);   /* test r8d, r8d */
        break;
    case 3:
        put(0xff408d4d, 4); /* lea r8, [r8 - 1] */
        put(0x00f88349, 4); /* cmp r8, 0 */
        break;
    case 4:
        put(0xff408d45, 4);
        put(0xc00945, 3); /* or r8d, r8d */
        break;
    default:
        put(0xffc08349, 4); /* add r8, -1 */
        break;
    }
    put(0x850f, 2); /* jnz */
    put((uint64_t)top - len - 4, 4);
}

static void put_some(unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        const unsigned kind = below(16);

        if (kind == 0) { /* jcc over the next */
            const unsigned at = len;
            put(0x70 | below(16), 2);
            put_any();
            code[at + 1] = len - at - 2;
        } else if (kind == 1 && below(2)) { /* call over the next; its pop may come */
            const unsigned at = len;
            put(0xe8, 5);
            put_any();
            code[at + 1] = len - at - 5;
        } else {
            put_any();
        }
    }
}

/* Up to 12 instructions; some are jumped over. */
static void make_code(void)
{
    const unsigned n = 1 + below(12);
    unsigned top;

    len = 0;
    if (loops) {
        put(0xb841, 2); /* mov r8d, imm32 */
        put(2 + below(6), 4);
        top = len;
        put_some(1 + below(4));
        put_loop_end(top);
    }
    put_some(n);
    if (!below(24))
        put(0xc3, 1);
    put(0xcc, 1);
}

/* ---- the guest: a user program over a copy of the arena ---- */
#define ARENA_GPA 0x400000u
#define ARENA_PT  0x7000u
static struct guest g;
static struct outcome host, soft;
static struct regs before;

static uint8_t *soft_page(unsigned pg)
{
    return g.ram + ARENA_GPA + pg * PAGE_SIZE;
}

static void soft_init(const char *engine)
{
    uint64_t *pd, *pt;

    guest_create(&g, engine);
    pd = (uint64_t *)(g.ram + GUEST_PD);
    pt = (uint64_t *)(g.ram + ARENA_PT);
    for (unsigned i = 0; i < 512; i++) /* nothing else: no event is delivered through tables */
        pd[i] = 0;
    pd[ARENA >> 21 & 511] = ARENA_PT | 7;
    for (unsigned pg = 0; pg < ARENA_PAGES; pg++)
        if (page_mapped(pg))
            pt[(ARENA >> 12 & 511) + pg] =
                (ARENA_GPA + pg * PAGE_SIZE) | 5 | (page_writable(pg) ? 2 : 0) | (pg == PG_CODE ? 0 : 1ull << 63);
    guest_w(&g, EXCEPTION_BITMAP, ~0u);
    guest_w(&g, PAGE_FAULT_ERROR_CODE_MASK, 0);
    guest_w(&g, PAGE_FAULT_ERROR_CODE_MATCH, 0);
    guest_w(&g, GUEST_CR4, guest_r(&g, GUEST_CR4) | CR4_OSXSAVE);
    for (unsigned n = 0; n < 6; n++)
        guest_seg(&g, n, GUEST_SEL_SS3, 0, 0xffffffff, 0xc0f3);
    guest_seg(&g, SEG_CS, GUEST_SEL_CS3, 0, 0xffffffff, 0xa0fb);
}

static void soft_run(const struct regs *in, struct outcome *out)
{
    struct cpu_state *s = cpu_state(g.cpu);

    memcpy(s->gpr, in->gpr, sizeof(s->gpr));
    guest_w(&g, GUEST_RSP, in->gpr[R_RSP]);
    guest_w(&g, GUEST_RIP, in->rip);
    guest_w(&g, GUEST_RFLAGS, in->rflags | F_RESERVED);
    s->xcr0 = cpu_fpu_xcr0_mask();
    memcpy(cpu_fpu_area(g.cpu), in->fpu, cpu_fpu_area_size());
    if (guest_run(&g) != EXIT_REASON_EXCEPTION_NMI) {
        out->vector = 1000 + (int)guest_r(&g, VM_EXIT_REASON);
    } else {
        const uint32_t info = (uint32_t)guest_r(&g, VM_EXIT_INTR_INFO);
        out->vector = info & 0xff;
        out->error = info & 1u << 11 ? (uint32_t)guest_r(&g, VM_EXIT_INTR_ERROR_CODE) : 0;
        out->cr2 = out->vector == VEC_PF ? guest_r(&g, EXIT_QUALIFICATION) : 0;
    }
    memcpy(out->r.gpr, s->gpr, sizeof(s->gpr));
    out->r.gpr[R_RSP] = guest_r(&g, GUEST_RSP);
    out->r.rip = guest_r(&g, GUEST_RIP) + (out->vector == VEC_BP);
    out->r.rflags = guest_r(&g, GUEST_RFLAGS);
    out->r.fpu = cpu_fpu_area(g.cpu);
}

/* ---- a case ---- */
static uint64_t rnd_pointer(void)
{
    static const uint8_t pages[] = {PG_RW0, PG_RW1, PG_RW0, PG_RW1, PG_RW0, PG_RW1, PG_RW2, PG_RO, PG_RO2, PG_NONE1};
    const uint64_t page = ARENA + pages[below(below(4) ? 6 : sizeof(pages))] * PAGE_SIZE;
    uint64_t p = page + (below(3) ? below(PAGE_SIZE) : below(2) ? below(16) : PAGE_SIZE - 1 - below(16));

    if (below(2))
        p &= ~7ull;
    return below(200) ? p : p | 1ull << (48 + below(16));
}

static void rnd_state(void)
{
    for (unsigned i = 0; i < 16; i++)
        before.gpr[i] = POINTERS >> i & 1 ? rnd_pointer() : rnd_value();
    before.gpr[R_RSP] = (uint64_t)((int64_t)(before.gpr[R_RSP] << 16) >> 16); /* no host kernel goes to another */
    before.gpr[R_RBP] = below(4) ? rnd_pointer() : before.gpr[R_RBP];
    before.gpr[R_R9] = below(64);
    before.gpr[R_R12] = below(4) ? below(64) : before.gpr[R_R12];
    before.rflags = rnd() & F_OSZAPC;
    before.rip = ARENA + PG_CODE * PAGE_SIZE;
    if (all_rows)
        vec_random(before.fpu);
    for (unsigned pg = 0; pg < ARENA_PAGES; pg++)
        for (unsigned i = 0; page_mapped(pg) && pg != PG_CODE && i < PAGE_SIZE; i += 8)
            *(uint64_t *)(host_page(pg) + i) = i % 64 ? i * 0x9e3779b97f4a7c15ull ^ before.gpr[0] : rnd();
    for (unsigned pg = 0; pg < ARENA_PAGES; pg++)
        if (page_mapped(pg) && pg != PG_CODE)
            memcpy(soft_page(pg), host_page(pg), PAGE_SIZE);
}

static void load_code(void)
{
    memset(host_page(PG_CODE), 0xcc, PAGE_SIZE);
    memcpy(host_page(PG_CODE), code, len);
    memcpy(soft_page(PG_CODE), host_page(PG_CODE), PAGE_SIZE);
    cpu_code_unverify(g.cpu);
}

static bool differ(const char *what, uint64_t h, uint64_t s)
{
    if (h == s)
        return false;
    printf("  %s: host %#lx, engine %#lx\n", what, h, s);
    return true;
}

static bool compare(void)
{
    static const char *const names[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                        "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    /* Linux hides from programs whether its own pages are present */
    const uint32_t hidden = host.cr2 >> 47 ? PF_P : 0;
    bool bad = differ("vector", host.vector, soft.vector) | differ("rip", host.r.rip, soft.r.rip) |
               differ("error", host.error & ~hidden, soft.error & ~hidden) | differ("cr2", host.cr2, soft.cr2);

    for (unsigned i = 0; i < 16; i++)
        bad |= differ(names[i], host.r.gpr[i], soft.r.gpr[i]);
    bad |= differ("flags", host.r.rflags & F_OSZAPC, soft.r.rflags & F_OSZAPC);
    bad |= vec_differ(host.r.fpu, soft.r.fpu);
    for (unsigned pg = 0; pg < ARENA_PAGES; pg++)
        for (unsigned i = 0; page_mapped(pg) && i < PAGE_SIZE; i += 8)
            if (differ("memory", *(uint64_t *)(host_page(pg) + i), *(uint64_t *)(soft_page(pg) + i))) {
                printf("  at page %u + %#x\n", pg, i);
                return true;
            }
    return bad;
}

static void print_case(void)
{
    char text[96];
    struct insn in;

    for (unsigned at = 0; at < len; at += in.len) {
        insn_decode(code + at, len - at, MODE_64, &in);
        insn_print(&in, before.rip + at, text, sizeof(text));
        printf("  %#lx  ", before.rip + at);
        for (unsigned i = 0; i < in.len; i++)
            printf("%02x", code[at + i]);
        printf("  %s\n", text);
    }
    for (unsigned i = 0; i < 16; i++)
        printf("  r%-2u %016lx%s", i, before.gpr[i], i % 4 == 3 ? "\n" : "");
    printf("  flags %lx; host: vector %d rip %#lx\n", before.rflags, host.vector, host.r.rip);
}

int main(int argc, char **argv)
{
    const char *engine = "jit";
    unsigned long n = 20000, faults = 0, failures = 0, outside = 0;
    int c;

    while ((c = getopt(argc, argv, "e:n:s:ilv")) != -1) {
        if (c == 'e')
            engine = optarg;
        else if (c == 'n')
            n = strtoul(optarg, NULL, 0);
        else if (c == 's')
            rng_state ^= strtoull(optarg, NULL, 0) * 0x9e3779b97f4a7c15ull;
        else if (c == 'i')
            all_rows = false;
        else if (c == 'l')
            loops = true;
        else if (c == 'v')
            verbose = 1;
        else
            return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!engine_find(engine)) {
        printf("no engine %s on this host\n", engine);
        return 77;
    }
    host_free = true;
    if (all_rows)
        vec_init();
    host_side_init();
    host_side_apart();
    soft_init(engine);
    host_signals_init();
    before.fpu = aligned_alloc(64, (cpu_fpu_area_size() + 63) & ~63ull);
    host.r.fpu = aligned_alloc(64, (cpu_fpu_area_size() + 63) & ~63ull);
    memset(before.fpu, 0, cpu_fpu_area_size());
    fpu_area_init(before.fpu, fpu_layout()->mask);
    before.fpu->fcw = 0x37f;
    before.fpu->mxcsr = MXCSR_INIT;
    for (unsigned long i = 0; i < n && failures < 10; i++) {
        make_code();
        load_code();
        for (unsigned k = 0; k < 3; k++) {
            rnd_state();
            soft = (struct outcome){0};
            soft_run(&before, &soft);
            if (soft.vector == VEC_PF && soft.cr2 < 1ull << 47 && soft.cr2 - ARENA > ARENA_PAGES * PAGE_SIZE) {
                outside++; /* the harness itself may lie there */
                continue;
            }
            host_run(MODE_64, &before, &host);
            if (host.vector < 0) /* POPF in the middle of an instruction */
                host.vector = VEC_DB;
            faults += host.vector != VEC_BP;
            if (verbose)
                print_case();
            if (compare()) {
                printf("block %lu, state %u:\n", i, k);
                print_case();
                failures++;
                break;
            }
        }
    }
    printf("%s: %lu blocks, 3 states each, %lu runs ended in a fault, %lu not run on the host, %lu differ\n", engine, n,
           faults, outside, failures);
    return failures != 0;
}
