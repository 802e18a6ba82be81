/* SPDX-License-Identifier: MIT
 * isa.c: every row of ops.def against the host CPU.
 *
 * isa [-n cases per form] [-m 64|32|16] [-r regex-free row name prefix] [-s seed] [-v] [-q rows|vec|int] [-e engine]
 * [-u] -u: as if there were too many copies of vector instructions */
#include "isa.h"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static bool wanted(const struct form *f, const char *prefix, const char *set)
{
    const bool vec = op_rows[f->row].attrs & (A_VEC | A_X87);

    if (prefix && strncmp(op_rows[f->row].name, prefix, strlen(prefix)))
        return false;
    return !set || (!strcmp(set, "vec") ? vec : !vec);
}

/* Rows of the set that this mode has no case for, and why. */
static bool has_form(const struct forms *forms, unsigned row)
{
    for (unsigned i = 0; i < forms->n; i++)
        if (forms->f[i].row == row)
            return true;
    return false;
}

static void print_uncovered(enum cpu_mode mode, const struct forms *forms, const char *prefix, const char *set)
{
    unsigned n = 0;

    for (unsigned row = 1; row < OP_COUNT; row++) {
        const struct form f = {.row = row};
        const char *why = row_skipped(row, mode);

        if (row_cases[row] || !wanted(&f, prefix, set))
            continue;
        if (!why)
            why = op_rows[row].attrs & A_NO64 && mode == MODE_64 ? "not in 64-bit mode"
                  : has_form(forms, row) ? "no 64-bit code does the same, and the host runs no other"
                                         : "no form decodes in this mode";
        printf("  %-18s %s\n", op_rows[row].name, why);
        n++;
    }
    printf("%u rows not covered\n", n);
}

/* n cases for each group of forms, but at least LEAST for each form. */
#define LEAST 8u
static unsigned cases_of(const struct forms *forms, unsigned i, unsigned n)
{
    enum { SLOTS = 1 << 16 };
    static struct {
        uint64_t group;
        unsigned forms;
    } table[SLOTS];
    static bool counted;
    unsigned at;

    for (unsigned j = 0; !counted && j < forms->n; j++) {
        for (at = forms->f[j].group % SLOTS; table[at].forms && table[at].group != forms->f[j].group;)
            at = (at + 1) % SLOTS;
        table[at].group = forms->f[j].group;
        table[at].forms++;
    }
    counted = true;
    for (at = forms->f[i].group % SLOTS; table[at].group != forms->f[i].group;)
        at = (at + 1) % SLOTS;
    n = (n + table[at].forms - 1) / table[at].forms;
    return n < LEAST ? LEAST : n;
}

int main(int argc, char **argv)
{
    const char *prefix = NULL, *set = NULL, *engine = "interp";
    enum cpu_mode mode = MODE_64;
    struct totals total = {0};
    struct forms forms;
    unsigned n = 200;
    int c;

    while ((c = getopt(argc, argv, "n:m:r:s:q:e:uv")) != -1) {
        switch (c) {
        case 'n':
            n = atoi(optarg);
            break;
        case 'm':
            mode = atoi(optarg) == 64 ? MODE_64 : atoi(optarg) == 32 ? MODE_COMPAT32 : MODE_COMPAT16;
            break;
        case 'r':
            prefix = optarg;
            break;
        case 's':
            rng_state ^= strtoull(optarg, NULL, 0) * 0x9e3779b97f4a7c15ull;
            break;
        case 'q':
            set = optarg;
            break;
        case 'e':
            engine = optarg;
            break;
        case 'u':
            native_copies_max = 0;
            break;
        case 'v':
            verbose++;
            break;
        default:
            return 2;
        }
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    host_side_init();
    if (!strcmp(engine, "jit"))
        host_side_apart();
    guest_side_init(engine);
    host_signals_init();
    guest_mode(mode);
    forms_find(mode, &forms);
    for (unsigned i = 0; i < forms.n; i++)
        if (wanted(&forms.f[i], prefix, set) && !row_skipped(forms.f[i].row, mode) && !form_skipped(mode, &forms.f[i]))
            run_form(mode, &forms.f[i], cases_of(&forms, i, n), &total);
    print_uncovered(mode, &forms, prefix, set);
    printf("%u forms found, %lu cases, %lu of them faults, %lu differ", forms.n, total.cases, total.faults,
           total.failures);
    if (!host_has_mode(mode))
        printf("; compared with 64-bit code, %lu encodings have none", total.not_comparable);
    putchar('\n');
    return total.failures ? 1 : 0;
}
