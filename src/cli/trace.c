/* SPDX-License-Identifier: MIT
 * trace.c: anykvm trace and anykvm stat -- COMMAND: run a subcommand of anykvm with tracing or counting on. */
#include "cli.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const classes[] = {"init", "ioctl", "exit", "inject", "vmcs", "mmu", "irq"};

static int trace_usage(void)
{
    fputs("usage: anykvm trace [--init] [--ioctl] [--exit] [--inject] [--vmcs] [--mmu] [--irq] [-o FILE] run ...\n"
          "  --init    the start of KVM and the creation of a VM as call chains\n"
          "  --ioctl   each ioctl with its result\n"
          "  --exit    each VM exit; --inject each event injected; --vmcs fields by name; --mmu EPT and page walks\n"
          "  without a class: init, ioctl, exit and inject\n",
          stderr);
    return 2;
}

static bool add_class(const char *name, char *list, size_t size)
{
    for (unsigned i = 0; i < sizeof(classes) / sizeof(classes[0]); i++)
        if (strcmp(name, classes[i]) == 0) {
            snprintf(list + strlen(list), size - strlen(list), "%s%s", *list ? "," : "", name);
            return true;
        }
    return false;
}

int cmd_trace(int argc, char **argv)
{
    char list[128] = "";
    int i;

    for (i = 1; i < argc && argv[i][0] == '-'; i++) {
        if (strcmp(argv[i], "--") == 0) {
            i++;
            break;
        }
        if (strcmp(argv[i], "-o") == 0 && i + 1 < argc) {
            setenv("ANYKVM_TRACE_FILE", argv[++i], 1);
        } else if (strncmp(argv[i], "--", 2) != 0 || !add_class(argv[i] + 2, list, sizeof(list))) {
            fprintf(stderr, "anykvm trace: no option \"%s\"\n", argv[i]);
            return trace_usage();
        }
    }
    if (i >= argc || strcmp(argv[i], "run") != 0)
        return trace_usage();
    setenv("ANYKVM_TRACE", *list ? list : "init,ioctl,exit,inject", 1);
    return cmd_run(argc - i, argv + i);
}
