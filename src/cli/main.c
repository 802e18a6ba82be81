/* SPDX-License-Identifier: MIT
 * main.c: the anykvm command: finds the subcommand in a table. */
#include "cli.h"
#include "anykvm.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    int (*fn)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"run", cmd_run, "start a virtual machine"},
    {"exec", cmd_exec, "start any KVM client (QEMU ...), which finds a working /dev/kvm"},
    {"check", cmd_check, "show what this machine has and what will be used"},
    {"stat", cmd_stat, "run a command and print exits, entries and time by mode; -p PID: of a running one"},
    {"trace", cmd_trace, "run a command and print ioctls, call chains, exits and injections"},
};
#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static int usage(FILE *to)
{
    fputs("usage: anykvm COMMAND [OPTIONS]\n", to);
    for (unsigned i = 0; i < COMMANDS; i++)
        fprintf(to, "  %-8s %s\n", commands[i].name, commands[i].help);
    fputs("  --version\n", to);
    return 2;
}

bool parse_size(const char *text, uint64_t *bytes)
{
    char *end;
    unsigned long long n;
    unsigned shift = 20;

    if (*text < '0' || *text > '9')
        return false;
    n = strtoull(text, &end, 10);
    switch (*end) {
    case 'k':
    case 'K':
        shift = 10;
        end++;
        break;
    case 'm':
    case 'M':
        end++;
        break;
    case 'g':
    case 'G':
        shift = 30;
        end++;
        break;
    }
    if (*end || n >> (63 - shift))
        return false;
    *bytes = n << shift;
    return true;
}

int main(int argc, char **argv)
{
    if (argc >= 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0))
        return usage(stdout), 0;
    if (argc >= 2 && strcmp(argv[1], "--version") == 0)
        return puts(anykvm_version()), 0;
    if (argc < 2)
        return usage(stderr);
    for (unsigned i = 0; i < COMMANDS; i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].fn(argc - 1, argv + 1);
    fprintf(stderr, "anykvm: no command \"%s\"\n", argv[1]);
    return usage(stderr);
}
