/* SPDX-License-Identifier: MIT
 * run.c: anykvm run: options to a machine. */
#include "cli.h"
#include "../vmm/vmm.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    OPT_KERNEL = 256,
    OPT_INITRD,
    OPT_APPEND,
    OPT_CPUS,
    OPT_ACCEL,
    OPT_ENGINE,
    OPT_NO_REBOOT,
    OPT_KVM_PARAMS,
    OPT_HARDENED,
    OPT_HELP
};

static const struct option options[] = {
    {"kernel", required_argument, NULL, OPT_KERNEL}, {"initrd", required_argument, NULL, OPT_INITRD},
    {"append", required_argument, NULL, OPT_APPEND}, {"memory", required_argument, NULL, 'm'},
    {"cpus", required_argument, NULL, OPT_CPUS},     {"accel", required_argument, NULL, OPT_ACCEL},
    {"engine", required_argument, NULL, OPT_ENGINE}, {"kvm-params", required_argument, NULL, OPT_KVM_PARAMS},
    {"hardened", no_argument, NULL, OPT_HARDENED},   {"no-reboot", no_argument, NULL, OPT_NO_REBOOT},
    {"help", no_argument, NULL, OPT_HELP},           {NULL, 0, NULL, 0},
};

static int usage(FILE *to)
{
    fputs("usage: anykvm run --kernel FILE [OPTIONS]\n"
          "  --kernel FILE      Linux bzImage (64-bit entry) or ELF kernel (PVH entry)\n"
          "  --initrd FILE      initial RAM disk\n"
          "  --append TEXT      kernel command line\n"
          "  -m SIZE            RAM: MiB, or with suffix K, M, G (default 512M)\n"
          "  --cpus N           vCPUs, 1 to 64 (default 1)\n"
          "  --accel WHICH      auto (default), kvm (a real /dev/kvm), soft (the software processor)\n"
          "  --engine NAME      of the software processor: jit (default where the host has BMI2), interp, check\n"
          "  --kvm-params LIST  ept=0,vpid=0 ... as for ANYKVM_PARAMS\n"
          "  --hardened         the translator's accesses never run ahead of their checks (docs/security.md)\n"
          "  --no-reboot        a reboot of the guest ends the command with 0\n"
          "  -v                 show the steps of the start\n"
          "On a terminal, Ctrl-A x quits.\n",
          to);
    return 2;
}

static int bad(const char *option, const char *value, const char *what)
{
    fprintf(stderr, "anykvm run: %s %s: %s\n", option, value, what);
    return 2;
}

static int parse_memory(const char *text, struct machine_config *c)
{
    if (!parse_size(text, &c->ram_size))
        return bad("-m", text, "not a size; use MiB or a number with K, M or G");
    if (c->ram_size < MiB || c->ram_size > 1024 * GiB)
        return bad("-m", text, "must be from 1M to 1024G");
    c->ram_size &= ~4095ull;
    return 0;
}

static int parse_cpus(const char *text, struct machine_config *c)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);

    if (*text < '0' || *text > '9' || *end || n < 1 || n > MAX_VCPUS)
        return bad("--cpus", text, "must be a number from 1 to 64");
    c->cpus = n;
    return 0;
}

static int parse_accel(const char *text, struct machine_config *c)
{
    if (strcmp(text, "auto") == 0)
        c->accel = ACCEL_AUTO;
    else if (strcmp(text, "kvm") == 0)
        c->accel = ACCEL_KVM;
    else if (strcmp(text, "soft") == 0)
        c->accel = ACCEL_SOFT;
    else
        return bad("--accel", text, "must be auto, kvm or soft");
    return 0;
}

static int parse_option(int opt, struct machine_config *c)
{
    switch (opt) {
    case OPT_KERNEL:
        c->kernel = optarg;
        return 0;
    case OPT_INITRD:
        c->initrd = optarg;
        return 0;
    case OPT_APPEND:
        c->append = optarg;
        return 0;
    case OPT_ENGINE:
        c->engine = optarg;
        return 0;
    case OPT_KVM_PARAMS:
        c->kvm_params = optarg;
        return 0;
    case OPT_HARDENED:
        c->hardened = true;
        return 0;
    case OPT_NO_REBOOT:
        c->no_reboot = true;
        return 0;
    case 'v':
        c->verbose = true;
        return 0;
    case 'm':
        return parse_memory(optarg, c);
    case OPT_CPUS:
        return parse_cpus(optarg, c);
    case OPT_ACCEL:
        return parse_accel(optarg, c);
    default:
        return usage(stderr);
    }
}

int cmd_run(int argc, char **argv)
{
    struct machine_config config = {.ram_size = 512 * MiB, .cpus = 1};
    int opt, ret;

    while ((opt = getopt_long(argc, argv, "m:v", options, NULL)) != -1) {
        if (opt == OPT_HELP)
            return usage(stdout), 0;
        ret = parse_option(opt, &config);
        if (ret)
            return ret;
    }
    if (optind < argc) {
        fprintf(stderr, "anykvm run: \"%s\" is no option\n", argv[optind]);
        return usage(stderr);
    }
    if (!config.kernel) {
        fputs("anykvm run: --kernel FILE is needed\n", stderr);
        return usage(stderr);
    }
    return machine_run(&config);
}
