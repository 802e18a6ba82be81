/* SPDX-License-Identifier: MIT
 * mix.c: what a compiler is made of: many small functions, trees of small allocations, string tables, indirect calls.
 * It reads programs of a small language, folds constants, emits code for a stack machine and runs it. */
#include "bench.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FUNCTIONS 400
#define MAX_CODE  262144
#define SYMBOLS   1024

const char bench_name[] = "mix";
static char *source;

/* ---- the source ---- */
static char *gen(char *d, uint64_t *random, int depth)
{
    const unsigned kind = (unsigned)(bench_random(random) >> 60);

    if (depth == 0 || kind < 3)
        return kind & 1 ? d + sprintf(d, "v%u", (unsigned)(bench_random(random) >> 60))
                        : d + sprintf(d, "%u", (unsigned)(bench_random(random) >> 56));
    if (kind < 12) {
        *d++ = '(';
        d = gen(d, random, depth - 1);
        *d++ = "+-*^&|<+-"[kind - 3];
        d = gen(d, random, depth - 1);
        *d++ = ')';
        return d;
    }
    *d++ = "?!~?"[kind & 3];
    return gen(d, random, depth - 1);
}

void bench_setup(unsigned long scale)
{
    uint64_t random = 23;
    char *d;

    d = source = bench_alloc(8u << 20);
    for (unsigned f = 0; f < FUNCTIONS; f++) {
        d += sprintf(d, "def f%u {\n", f);
        for (unsigned s = 0; s < 12; s++) {
            d += sprintf(d, "  v%u = ", (unsigned)(bench_random(&random) >> 60));
            d = gen(d, &random, 5);
            d += sprintf(d, ";\n");
        }
        d += sprintf(d, "}\n");
    }
}

/* ---- tokens ---- */
struct lexer {
    const char *p;
    int kind; /* a character, 'i': identifier, 'n': number, 0: end */
    unsigned value;
};
static struct symbol {
    char name[16];
    unsigned uses;
    struct symbol *next;
} * symbols[SYMBOLS];

static unsigned hash_name(const char *name, size_t n)
{
    unsigned h = 5381;

    while (n--)
        h = h * 33 + (uint8_t)*name++;
    return h;
}

static struct symbol *intern(const char *name, size_t n)
{
    struct symbol **at = &symbols[hash_name(name, n) % SYMBOLS];

    while (*at && (strncmp((*at)->name, name, n) || (*at)->name[n]))
        at = &(*at)->next;
    if (!*at) {
        *at = bench_alloc(sizeof(**at));
        memcpy((*at)->name, name, n < 15 ? n : 15);
    }
    (*at)->uses++;
    return *at;
}

static int is_letter(int c)
{
    return (c >= 'a' && c <= 'z') || c == '_';
}

static int is_digit(int c)
{
    return c >= '0' && c <= '9';
}

static void advance(struct lexer *l)
{
    const char *start;

    while (*l->p == ' ' || *l->p == '\n')
        l->p++;
    start = l->p;
    if (is_letter(*start)) {
        while (is_letter(*l->p) || is_digit(*l->p))
            l->p++;
        l->kind = 'i';
        l->value = (unsigned)strtoul(intern(start, (size_t)(l->p - start))->name + 1, NULL, 10);
    } else if (is_digit(*start)) {
        for (l->value = 0; is_digit(*l->p); l->p++)
            l->value = l->value * 10 + (unsigned)(*l->p - '0');
        l->kind = 'n';
    } else {
        l->kind = *start;
        l->p += *start != 0;
    }
}

/* ---- trees ---- */
struct node {
    int op; /* 'n', 'v' or an operator */
    uint32_t value;
    struct node *left, *right;
};

static struct node *node(int op, uint32_t value, struct node *left, struct node *right)
{
    struct node *n = bench_alloc(sizeof(*n));

    *n = (struct node){op, value, left, right};
    return n;
}

static struct node *expression(struct lexer *l)
{
    struct node *left, *right;
    const unsigned value = l->value;
    int op = l->kind;

    advance(l);
    switch (op) {
    case 'n':
        return node('n', value, NULL, NULL);
    case 'i':
        return node('v', value & 15, NULL, NULL);
    case '(':
        left = expression(l);
        op = l->kind;
        advance(l);
        right = expression(l);
        advance(l);
        return node(op, 0, left, right);
    default:
        return node(op, 0, expression(l), NULL);
    }
}

/* ---- operators: one function each, called through a table by the folder and by the machine ---- */
typedef uint32_t operator_fn(uint32_t a, uint32_t b);
#define OPERATOR(name, expr)                     \
    static uint32_t name(uint32_t a, uint32_t b) \
    {                                            \
        return expr;                             \
    }
OPERATOR(op_add, a + b)
OPERATOR(op_sub, a - b)
OPERATOR(op_mul, a *b)
OPERATOR(op_xor, a ^ b)
OPERATOR(op_and, a &b)
OPERATOR(op_or, a | b)
OPERATOR(op_less, a < b)
OPERATOR(op_not, !a + b - b)
OPERATOR(op_inv, ~a + b - b)
OPERATOR(op_abs, ((int32_t)a < 0 ? -a : a) + b - b)
static operator_fn *const operators[128] = {
    ['+'] = op_add, ['-'] = op_sub,  ['*'] = op_mul, ['^'] = op_xor, ['&'] = op_and,
    ['|'] = op_or,  ['<'] = op_less, ['!'] = op_not, ['~'] = op_inv, ['?'] = op_abs,
};

static int is_constant(const struct node *n)
{
    return n->op == 'n';
}

static void fold(struct node *n)
{
    if (n->op == 'n' || n->op == 'v')
        return;
    fold(n->left);
    if (n->right)
        fold(n->right);
    if (!is_constant(n->left) || (n->right && !is_constant(n->right)))
        return;
    n->value = operators[n->op](n->left->value, n->right ? n->right->value : 0);
    n->op = 'n';
    free(n->left);
    free(n->right);
    n->left = n->right = NULL;
}

/* ---- code ---- */
struct machine {
    uint32_t stack[64], var[16];
    unsigned sp;
};
struct instruction {
    void (*run)(struct machine *, uint32_t);
    uint32_t operand;
};
static struct instruction code[MAX_CODE];
static unsigned ncode;

static void run_push(struct machine *m, uint32_t v)
{
    m->stack[m->sp++ & 63] = v;
}

static void run_load(struct machine *m, uint32_t v)
{
    run_push(m, m->var[v & 15]);
}

static void run_store(struct machine *m, uint32_t v)
{
    m->var[v & 15] = m->stack[--m->sp & 63];
}

static void run_unary(struct machine *m, uint32_t op)
{
    m->stack[(m->sp - 1) & 63] = operators[op](m->stack[(m->sp - 1) & 63], 0);
}

static void run_binary(struct machine *m, uint32_t op)
{
    m->sp--;
    m->stack[(m->sp - 1) & 63] = operators[op](m->stack[(m->sp - 1) & 63], m->stack[m->sp & 63]);
}

static void emit(void (*run)(struct machine *, uint32_t), uint32_t operand)
{
    if (ncode == MAX_CODE)
        bench_fail("code");
    code[ncode++] = (struct instruction){run, operand};
}

static void generate(struct node *n)
{
    if (n->op == 'n') {
        emit(run_push, n->value);
    } else if (n->op == 'v') {
        emit(run_load, n->value);
    } else {
        generate(n->left);
        if (n->right)
            generate(n->right);
        emit(n->right ? run_binary : run_unary, (uint32_t)n->op);
    }
}

static void release(struct node *n)
{
    if (!n)
        return;
    release(n->left);
    release(n->right);
    free(n);
}

static void function(struct lexer *l)
{
    advance(l); /* its name */
    advance(l);
    for (advance(l); l->kind == 'i';) {
        const unsigned target = l->value & 15;
        struct node *n;

        advance(l);
        advance(l); /* = */
        n = expression(l);
        fold(n);
        generate(n);
        emit(run_store, target);
        release(n);
        advance(l); /* ; */
    }
    advance(l); /* } */
}

uint64_t bench_run(unsigned long scale)
{
    struct machine m = {0};
    uint64_t sum = 0;

    for (unsigned long round = 0; round < 10 * scale / 100; round++) {
        struct lexer l = {.p = source};

        ncode = 0;
        for (advance(&l); l.kind == 'i';)
            function(&l);
        for (int pass = 0; pass < 10; pass++)
            for (unsigned i = 0; i < ncode; i++)
                code[i].run(&m, code[i].operand);
        for (unsigned i = 0; i < 16; i++)
            sum = bench_mix(sum, m.var[i]);
        sum = bench_mix(sum, ncode);
    }
    return sum;
}
