/* SPDX-License-Identifier: MIT
 * json.c: parses about 1 MB of JSON text into a tree of small allocations, walks it, writes it out, frees it. */
#include "bench.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum kind { NIL, BOOL, NUMBER, STRING, ARRAY, OBJECT };
struct value {
    enum kind kind;
    double number;
    char *text; /* a string; a member's name is of the value before */
    struct value *first, *next;
};

const char bench_name[] = "json";
static char *text, *out;
static size_t length, capacity = 4u << 20;

static void add(const char *s)
{
    const size_t n = strlen(s);

    if (length + n + 1 > capacity)
        bench_fail("text");
    memcpy(text + length, s, n + 1);
    length += n;
}

void bench_setup(unsigned long scale)
{
    uint64_t random = 17;
    char item[256];

    text = bench_alloc(capacity);
    out = bench_alloc(capacity);
    add("{\"items\": [");
    for (unsigned i = 0; i < 8000; i++) {
        const uint64_t r = bench_random(&random);

        snprintf(item, sizeof(item),
                 "%s{\"id\": %u, \"name\": \"item \\\"%llx\\\"\\n\", \"on\": %s, \"size\": [%d, %d.%03u, %ue-2], "
                 "\"none\": null, \"tag\": {\"a\": \"\\u0041b\", \"b\": []}}",
                 i ? ", " : "", i, (unsigned long long)r, r & 1 ? "true" : "false", (int)(r >> 40) - 8000000,
                 (int)(r >> 50), (unsigned)(r >> 20 & 511), (unsigned)(r & 0xffff));
        add(item);
    }
    add("]}");
}

static const char *parse(const char *p, struct value **to);

static struct value *new_value(enum kind kind)
{
    struct value *v = bench_alloc(sizeof(*v));

    v->kind = kind;
    return v;
}

static const char *space(const char *p)
{
    while (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r')
        p++;
    return p;
}

static const char *parse_string(const char *p, char **to)
{
    const char *end = p;
    char *d;

    while (*end && *end != '"')
        end += *end == '\\' ? 2 : 1;
    *to = d = bench_alloc((size_t)(end - p) + 1);
    while (p < end) {
        if (*p != '\\') {
            *d++ = *p++;
        } else if (p[1] == 'u') {
            const char hex[5] = {p[2], p[3], p[4], p[5], 0};

            *d++ = (char)strtoul(hex, NULL, 16);
            p += 6;
        } else {
            *d++ = p[1] == 'n' ? '\n' : p[1];
            p += 2;
        }
    }
    return end + 1;
}

static const char *parse_number(const char *p, struct value *v)
{
    const double sign = *p == '-' ? -1 : 1;
    double n = 0, scale = 1;
    int exponent = 0;

    for (p += *p == '-'; *p >= '0' && *p <= '9'; p++)
        n = n * 10 + (*p - '0');
    if (*p == '.')
        for (p++; *p >= '0' && *p <= '9'; p++)
            n += (*p - '0') * (scale /= 10);
    if (*p == 'e') {
        const int down = p[1] == '-';

        for (p += 1 + down; *p >= '0' && *p <= '9'; p++)
            exponent = exponent * 10 + (*p - '0');
        while (exponent-- > 0)
            n = down ? n / 10 : n * 10;
    }
    v->number = sign * n;
    return p;
}

static const char *parse_members(const char *p, struct value *v, char close)
{
    struct value **at = &v->first;

    for (p = space(p); *p && *p != close; p = space(p)) {
        if (close == '}') {
            *at = new_value(STRING);
            p = space(parse_string(p + 1, &(*at)->text)) + 1; /* the colon */
            at = &(*at)->next;
        }
        p = space(parse(p, at));
        at = &(*at)->next;
        p += *p == ',';
    }
    return p + 1;
}

static const char *parse(const char *p, struct value **to)
{
    p = space(p);
    switch (*p) {
    case '{':
        *to = new_value(OBJECT);
        return parse_members(p + 1, *to, '}');
    case '[':
        *to = new_value(ARRAY);
        return parse_members(p + 1, *to, ']');
    case '"':
        *to = new_value(STRING);
        return parse_string(p + 1, &(*to)->text);
    case 't':
    case 'f':
        *to = new_value(BOOL);
        (*to)->number = *p == 't';
        return p + (*p == 't' ? 4 : 5);
    case 'n':
        *to = new_value(NIL);
        return p + 4;
    default:
        *to = new_value(NUMBER);
        return parse_number(p, *to);
    }
}

static char *print_string(char *d, const char *s)
{
    for (*d++ = '"'; *s; s++) {
        if (*s == '"' || *s == '\n')
            *d++ = '\\';
        *d++ = *s == '\n' ? 'n' : *s;
    }
    *d++ = '"';
    return d;
}

static char *print_number(char *d, double n)
{
    char digits[24];
    unsigned count = 0;
    uint64_t v = (uint64_t)((n < 0 ? -n : n) * 1000);

    if (n < 0)
        *d++ = '-';
    do
        digits[count++] = (char)('0' + v % 10);
    while (v /= 10);
    while (count)
        *d++ = digits[--count];
    return d;
}

static char *print(char *d, const struct value *v)
{
    switch (v->kind) {
    case STRING:
        return print_string(d, v->text);
    case NUMBER:
        return print_number(d, v->number);
    case BOOL:
        *d++ = v->number ? 't' : 'f';
        return d;
    case NIL:
        *d++ = 'n';
        return d;
    default:
        *d++ = v->kind == ARRAY ? '[' : '{';
        for (const struct value *m = v->first; m; m = m->next) {
            d = print(d, m);
            *d++ = ',';
        }
        *d++ = v->kind == ARRAY ? ']' : '}';
        return d;
    }
}

static void free_value(struct value *v)
{
    while (v) {
        struct value *next = v->next;

        free_value(v->first);
        free(v->text);
        free(v);
        v = next;
    }
}

uint64_t bench_run(unsigned long scale)
{
    uint64_t sum = 0;

    for (unsigned long round = 0; round < 8 * scale / 100; round++) {
        struct value *root;
        char *end;

        parse(text, &root);
        end = print(out, root);
        for (const char *p = out; p < end; p++)
            sum = sum * 31 + (uint8_t)*p;
        free_value(root);
    }
    return sum;
}
