/* SPDX-License-Identifier: MIT
 * test_loops.c: random loops whose accesses move by constants, over pages that lie anywhere, are read-only, absent,
 * hold the loop itself or end the address space. The engine under test does what the interpreter does: registers,
 * flags, memory, accessed and dirty bits, where and with what it stops. */
#include "guest.h"
#include <pthread.h>
#include <unistd.h>

#define TABLES 0x100000u /* of the window: 64 KiB */
#define DATA   0x200000u
#define SAFE   0x300000u /* identity-mapped: what the end stores to */
#define PAGES  24u
#define CASES  1500u
#define CODE   0x400000u /* two pages a case: those that are written often would be translated otherwise */

static uint64_t rng;

static uint32_t rnd(uint32_t below)
{
    rng = rng * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(rng >> 33) % below;
}

/* ---- the loop ---- */

struct code {
    uint8_t b[512];
    unsigned n;
};

static void put(struct code *c, unsigned n, ...)
{
    va_list a;

    va_start(a, n);
    while (n--)
        c->b[c->n++] = (uint8_t)va_arg(a, int);
    va_end(a);
}

static void put4(struct code *c, int32_t v)
{
    memcpy(c->b + c->n, &v, 4);
    c->n += 4;
}

/* prefix (0: none), REX, opcode (0xf?? with 0F), reg, [base + disp32] or [base + index * 2^scale + disp32] */
static void op_mem(struct code *c, uint8_t prefix, bool w, uint16_t opcode, unsigned reg, unsigned base, int index,
                   unsigned scale, int32_t disp)
{
    const bool sib = index >= 0 || (base & 7) == 4;
    const unsigned x = index >= 0 ? (unsigned)index : 4;

    if (prefix)
        put(c, 1, prefix);
    put(c, 1, 0x40 | (w ? 8 : 0) | (reg & 8) >> 1 | (x & 8) >> 2 | (base & 8) >> 3);
    if (opcode & 0xf00)
        put(c, 1, 0x0f);
    put(c, 1, opcode & 0xff);
    put(c, 1, 0x80 | (reg & 7) << 3 | (sib ? 4 : base & 7));
    if (sib)
        put(c, 1, (int)(scale << 6 | (x & 7) << 3 | (base & 7)));
    put4(c, disp);
}

static void op_reg(struct code *c, bool w, uint8_t opcode, unsigned reg, unsigned rm)
{
    put(c, 3, 0x40 | (w ? 8 : 0) | (int)(reg & 8) >> 1 | (int)(rm & 8) >> 3, opcode,
        0xc0 | (int)(reg & 7) << 3 | (int)(rm & 7));
}

static const uint8_t bases[] = {R_RSI, R_RDI, R_RBX, R_R8, R_R10, R_RBP, R_R12, R_R13};
static const uint8_t datas[] = {R_RAX, R_R11, R_R9};
static const int32_t steps[] = {1,  2,  4,  8,  16,  32,  64,  256,  768,   4096, 5,
                                -1, -2, -4, -8, -16, -64, -96, -512, -4096, 0};
#define ONE_OF(a) ((a)[rnd(sizeof(a) / sizeof((a)[0]))])

static void memory(struct code *c)
{
    static const struct {
        uint8_t prefix;
        bool w;
        uint16_t opcode;
        bool vector;
    } forms[] = {
        {0, 1, 0x8b, 0},     {0, 0, 0x8b, 0},  {0, 1, 0x89, 0},     {0, 0, 0x89, 0},     {0, 0, 0x88, 0},
        {0, 0, 0xfb6, 0},    {0, 1, 0xfbe, 0}, {0, 1, 0x03, 0},     {0, 1, 0x01, 0},     {0, 0, 0x31, 0},
        {0, 0, 0x3b, 0},     {0, 1, 0x39, 0},  {0x66, 0, 0x89, 0},  {0, 0, 0xf10, 1},    {0, 0, 0xf11, 1},
        {0x66, 0, 0xfef, 1}, {0, 0, 0xf29, 1}, {0xf2, 0, 0xf58, 1}, {0xf3, 0, 0xf11, 1}, {0, 1, 0x13, 0},
    };
    const unsigned f = rnd(sizeof(forms) / sizeof(forms[0]));
    const int index = rnd(4) ? -1 : rnd(2) ? R_RCX : R_R14;
    const int32_t disp = rnd(3) ? (int32_t)rnd(64) * 4 - 128 : (int32_t)rnd(3000) - 1500;

    op_mem(c, forms[f].prefix, forms[f].w, forms[f].opcode, forms[f].vector ? rnd(3) : ONE_OF(datas), ONE_OF(bases),
           index, rnd(3), disp & (forms[f].opcode == 0xf29 || forms[f].opcode == 0xfef ? ~15 : ~0));
}

static void step(struct code *c, unsigned reg)
{
    const int32_t by = ONE_OF(steps);

    switch (rnd(4)) {
    case 0:
        op_reg(c, true, 0x81, 0, reg); /* add */
        put4(c, by);
        break;
    case 1:
        op_reg(c, true, 0x81, 5, reg); /* sub */
        put4(c, -by);
        break;
    case 2:
        op_mem(c, 0, true, 0x8d, reg, reg, -1, 0, by); /* lea */
        break;
    default:
        op_reg(c, true, 0xff, by < 0, reg); /* inc, dec */
    }
}

static void item(struct code *c, unsigned end[8], unsigned *nend)
{
    switch (rnd(12)) {
    case 0:
        op_reg(c, rnd(2), 0x01, ONE_OF(datas), ONE_OF(datas));
        break;
    case 1:
        op_reg(c, rnd(2), 0x31, ONE_OF(datas), ONE_OF(datas));
        break;
    case 2:
        op_reg(c, true, 0x89, ONE_OF(bases), ONE_OF(datas));
        break;
    case 3: /* a way out */
        if (*nend == 8 || rnd(2))
            break;
        put(c, 2, 0x3c, rnd(256)); /* cmp al, imm; je */
        put(c, 2, 0x0f, 0x84);
        end[(*nend)++] = c->n;
        put4(c, 0);
        break;
    case 4:
        step(c, rnd(4) ? ONE_OF(bases) : rnd(2) ? R_RCX : R_R14);
        break;
    case 5:
        op_reg(c, true, 0x89, ONE_OF(bases), rnd(8) ? R_R9 : ONE_OF(bases)); /* a copy of a base */
        break;
    case 6:
        put(c, 3, 0x90, 0x90, 0x90);
        break;
    default:
        memory(c);
    }
}

static void make_loop(struct code *c)
{
    unsigned end[8], nend = 0, n = 1 + rnd(7);

    c->n = 0;
    while (n--)
        item(c, end, &nend);
    for (n = rnd(3); n--;)
        step(c, ONE_OF(bases));
    if (rnd(2)) {
        put(c, 3, 0x48, 0xff, 0xca); /* dec rdx */
    } else {
        put(c, 4, 0x49, 0x83, 0xef, 1); /* sub r15, 1 */
    }
    put(c, 2, 0x0f, 0x85);
    put4(c, -(int32_t)c->n - 4);
    for (unsigned i = 0; i < nend; i++) {
        const int32_t d = (int32_t)(c->n - end[i] - 4);

        memcpy(c->b + end[i], &d, 4);
    }
    put(c, 8, 0x0f, 0x11, 0x04, 0x25, SAFE & 0xff, SAFE >> 8 & 0xff, SAFE >> 16, 0); /* movups [SAFE], xmm0 */
    put(c, 3, 0x0f, 0x01, 0xc1);                                                     /* vmcall */
}

/* ---- the window ---- */

static uint64_t *entry(struct guest *g, uint64_t gva, unsigned *used)
{
    uint64_t *table = (uint64_t *)(g->ram + GUEST_PML4);

    for (unsigned shift = 39; shift > 12; shift -= 9) {
        uint64_t *e = &table[gva >> shift & 511];

        if (!(*e & 1) || *e & 0x80)
            *e = (TABLES + 0x1000 * (uint64_t)(*used)++) | 7;
        table = (uint64_t *)(g->ram + (*e & 0xfffffff000));
    }
    return &table[gva >> 12 & 511];
}

static uint64_t window(void)
{
    static const uint64_t at[] = {0x40000000, 0x800000000000 - 0x8000, 0xffff800000000000 - 0x8000, -0x8000ull,
                                  0xffff0000};

    return rnd(2) ? at[0] : ONE_OF(at);
}

static void map(struct guest *g, uint64_t gva, uint64_t code, uint64_t seed)
{
    unsigned used = 0;

    rng = seed;
    memset(g->ram + TABLES, 0, 0x10000);
    guest_tables(g);
    for (unsigned i = 0; i < 512; i++) {
        if (i)
            ((uint64_t *)(g->ram + GUEST_PML4))[i] = 0;
        if (i)
            ((uint64_t *)(g->ram + GUEST_PDPT))[i] = 0;
    }
    for (unsigned i = 0; i < PAGES; i++, gva += 4096) {
        uint64_t page = DATA + 4096 * (uint64_t)(rnd(3) ? i : rnd(PAGES)), attr = 7;

        if (gva < 0x200000 || (gva >= 0x800000000000 && gva < 0xffff800000000000))
            continue;
        if (!rnd(12))
            attr = rnd(2) ? 5 : 0;
        else if (!rnd(20))
            page = code;
        *entry(g, gva, &used) = page | attr;
    }
}

/* ---- a case ---- */

static void start(struct guest *g, uint64_t gva, uint64_t code, uint64_t seed)
{
    rng = seed;
    for (unsigned r = 0; r < 16; r++)
        if (r != R_RSP)
            *guest_gpr(g, r) = rnd(0x7fffffff) * 0x10001ull;
    for (unsigned i = 0; i < sizeof(bases); i++)
        *guest_gpr(g, bases[i]) = gva + (rnd(3) ? rnd(PAGES) * 4096 - rnd(256) : rnd(PAGES * 4096) & ~15u);
    *guest_gpr(g, R_RCX) = rnd(600);
    *guest_gpr(g, R_R14) = rnd(600);
    *guest_gpr(g, R_R9) = gva + rnd(PAGES * 4096);
    *guest_gpr(g, R_RDX) = *guest_gpr(g, R_R15) = 1 + rnd(rnd(4) ? 300 : 6000);
    guest_w(g, EXCEPTION_BITMAP, ~0u);
    guest_w(g, GUEST_RIP, code);
    guest_w(g, GUEST_RSP, GUEST_STACK);
    guest_w(g, GUEST_RFLAGS, F_RESERVED);
}

static void compare(struct guest *a, struct guest *b, const struct code *c, uint64_t page, uint64_t seed)
{
    static const uint32_t fields[] = {VM_EXIT_REASON,     VM_EXIT_INTR_INFO, VM_EXIT_INTR_ERROR_CODE,
                                      EXIT_QUALIFICATION, GUEST_RIP,         GUEST_RFLAGS,
                                      GUEST_RSP};
    char where[64];
    bool same = true;

    for (unsigned i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
        if (guest_r(a, fields[i]) != guest_r(b, fields[i])) {
            print_message("field %x: %lx, interpreter %lx\n", fields[i], guest_r(a, fields[i]), guest_r(b, fields[i]));
            same = false;
        }
    for (unsigned r = 0; r < 16; r++)
        if (r != R_RSP && *guest_gpr(a, r) != *guest_gpr(b, r)) {
            print_message("r%u: %lx, interpreter %lx\n", r, *guest_gpr(a, r), *guest_gpr(b, r));
            same = false;
        }
    for (uint64_t n = 0; n < SAFE + 4096 - TABLES + 0x2000; n += 8) {
        const uint64_t at = n < 0x2000 ? page + n : TABLES + n - 0x2000;

        if (*(uint64_t *)(a->ram + at) != *(uint64_t *)(b->ram + at)) {
            print_message("%lx: %lx, interpreter %lx\n", at, *(uint64_t *)(a->ram + at), *(uint64_t *)(b->ram + at));
            same = false;
        }
    }
    for (uint32_t at = 0; at < SAFE + 4096; at += 4096)
        if ((*guest_ept_entry(a, at) ^ *guest_ept_entry(b, at)) & 0xfff) {
            print_message("EPT entry of %x: %lx, interpreter %lx\n", at, *guest_ept_entry(a, at),
                          *guest_ept_entry(b, at));
            same = false;
        }
    if (same)
        return;
    for (unsigned i = 0; i < c->n; i++)
        print_message("%02x ", c->b[i]);
    snprintf(where, sizeof(where), "seed %lu", seed);
    fail_msg("%s", where);
}

static void one(struct guest *a, struct guest *b, uint64_t seed, unsigned *stops)
{
    struct guest *const guests[] = {a, b};
    struct code c = {.n = 0};
    uint64_t gva, page, code, reason = 0;

    rng = seed * 0x9e3779b97f4a7c15ull + 1;
    make_loop(&c);
    gva = window();
    page = CODE + 0x2000 * (seed % 1024);
    code = page + (rnd(3) ? rnd(8) * 64 : 4095 - rnd(c.n));
    for (unsigned k = 0; k < 2; k++) {
        memset(guests[k]->ram + page, 0xf4, 0x2000);
        memcpy(guests[k]->ram + code, c.b, c.n);
        for (uint32_t i = 0; i < PAGES * 4096; i += 4)
            *(uint32_t *)(guests[k]->ram + DATA + i) = i * 2654435761u;
        map(guests[k], gva, page, seed);
        guest_invept(guests[k]);
        cpu_code_unverify(guests[k]->cpu);
    }
    for (unsigned turn = 0; turn < 3; turn++) {
        for (unsigned k = 0; k < 2; k++) {
            start(guests[k], gva, code, seed + turn);
            reason = guest_run(guests[k]);
        }
        compare(a, b, &c, page, seed);
    }
    stops[reason == EXIT_REASON_VMCALL]++;
}

static void random_loops_do_what_the_interpreter_does(void **state)
{
    struct guest *a = *state, b;
    const char *seed = getenv("LOOPS_SEED"), *count = getenv("LOOPS_COUNT");
    const uint64_t first = seed ? strtoull(seed, NULL, 0) : 1;
    unsigned stops[2] = {0, 0};

    guest_create(&b, "interp");
    for (uint64_t n = 0; n < (count ? strtoull(count, NULL, 0) : CASES); n++)
        one(a, &b, first + n, stops);
    print_message("%u came to an end, %u to an exception\n", stops[1], stops[0]);
    assert_true(count || (stops[0] > CASES / 20 && stops[1] > CASES / 20));
    guest_destroy(&b);
}

/* ---- a loop that does not end is left when somebody wants that ---- */

GUEST_ASM(sums, "1: mov $0x200000, %esi; mov $2000, %ecx; xor %eax, %eax; xor %edx, %edx\n"
                "2: add (%rsi), %rax; add $8, %rsi; inc %rdx; dec %rcx; jnz 2b; jmp 1b");
#define KICKS 300u

static void *kick(void *cpu)
{
    for (unsigned n = 0; n < KICKS; n++) {
        usleep(100);
        cpu_kick(cpu);
    }
    return NULL;
}

static void a_kick_is_seen_between_two_trips(void **state)
{
    struct guest *g = *state;
    unsigned amid = 0;
    pthread_t thread;

    for (uint32_t i = 0; i < 2000; i++)
        ((uint64_t *)(g->ram + DATA))[i] = 3;
    guest_code(g, sums, (size_t)(sums_end - sums));
    assert_int_equal(pthread_create(&thread, NULL, kick, g->cpu), 0);
    for (unsigned n = 0; n < KICKS / 4; n++) { /* two of them may be one */
        assert_int_equal(guest_run(g), EXIT_REASON_EXTERNAL_INTERRUPT);
        if (guest_r(g, GUEST_RIP) < GUEST_CODE + 14) /* the head of the outer loop */
            continue;
        amid++;
        assert_int_equal(*guest_gpr(g, R_RSI), DATA + 8 * *guest_gpr(g, R_RDX));
        assert_int_equal(*guest_gpr(g, R_RAX), 3 * *guest_gpr(g, R_RDX));
        assert_int_equal(*guest_gpr(g, R_RCX) + *guest_gpr(g, R_RDX), 2000);
    }
    assert_true(amid);
    pthread_join(thread, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_kick_is_seen_between_two_trips, guest_setup, guest_teardown),
        cmocka_unit_test_setup_teardown(random_loops_do_what_the_interpreter_does, guest_setup, guest_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
