/* SPDX-License-Identifier: MIT
 * exec.c: anykvm exec: start a KVM client that finds /dev/kvm: sets LD_PRELOAD and becomes the client. */
#include "cli.h"
#include <anykvm.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SHIM "libanykvm-shim.so"

enum { OPT_ENGINE = 256, OPT_KVM_PARAMS, OPT_HARDENED, OPT_CPUID, OPT_HELP };

static const struct option options[] = {
    {"engine", required_argument, NULL, OPT_ENGINE}, {"kvm-params", required_argument, NULL, OPT_KVM_PARAMS},
    {"hardened", no_argument, NULL, OPT_HARDENED},   {"cpuid", required_argument, NULL, OPT_CPUID},
    {"help", no_argument, NULL, OPT_HELP},           {NULL, 0, NULL, 0},
};

static int usage(FILE *to)
{
    fputs(
        "usage: anykvm exec [OPTIONS] [--] CLIENT [ARGS...]\n"
        "  starts CLIENT (QEMU, kvmtool, ...), which finds a working /dev/kvm; the exit status is the client's\n"
        "  --engine NAME      of the software processor: interp, jit (default: the best one)\n"
        "  --kvm-params LIST  ept=0,vpid=0 ... as for ANYKVM_PARAMS\n"
        "  --hardened         the translator's accesses never run ahead of their checks (docs/security.md)\n"
        "  --cpuid auto|on|off\n"
        "                     CLIENT's own CPUID instructions show VMX or SVM (default auto: those of a program that\n"
        "                     names /dev/kvm)\n",
        to);
    return 2;
}

/* ---- the preload library: beside the command in a build folder, in the library folder when installed ---- */
static bool find_shim(char path[PATH_MAX])
{
    static const char *const places[] = {"%s/" SHIM, "%s/../lib/" SHIM, "%s/../" ANYKVM_LIBDIR "/" SHIM};
    char self[PATH_MAX], candidate[PATH_MAX + 64];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

    if (n < 0)
        return false;
    self[n] = 0;
    *strrchr(self, '/') = 0;
    for (unsigned i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        snprintf(candidate, sizeof(candidate), places[i], self);
        if (realpath(candidate, path))
            return true;
    }
    return false;
}

/* ---- can a library be preloaded into the client? ---- */
static bool find_client(const char *name, char *path, size_t size)
{
    const char *dirs = getenv("PATH"), *end;

    if (strchr(name, '/'))
        return (size_t)snprintf(path, size, "%s", name) < size;
    for (dirs = dirs ? dirs : "/bin:/usr/bin"; dirs; dirs = *end ? end + 1 : NULL) {
        end = strchrnul(dirs, ':');
        snprintf(path, size, "%.*s/%s", (int)(end - dirs), dirs, name);
        if (!access(path, X_OK))
            return true;
    }
    return false;
}

static const char *elf_problem(int fd, const Elf64_Ehdr *eh)
{
    if (eh->e_ident[EI_CLASS] != ELFCLASS64 || eh->e_machine != EM_X86_64)
        return "it is no x86-64 program; install its amd64 version";
    for (unsigned i = 0; i < eh->e_phnum; i++) {
        Elf64_Phdr ph;

        if (pread(fd, &ph, sizeof(ph), (off_t)(eh->e_phoff + (uint64_t)i * eh->e_phentsize)) != sizeof(ph))
            return "its program headers are cut off";
        if (ph.p_type == PT_INTERP)
            return NULL;
    }
    return "it is statically linked, and a library cannot be preloaded into it; use a dynamically linked build "
           "(Rust: a *-linux-gnu target; Go: CGO_ENABLED=1; musl-static: the distribution's package)";
}

/* NULL: it can, or the system will say what is wrong. A script is judged by its interpreter. */
static const char *problem_of(const char *path, int depth)
{
    union {
        Elf64_Ehdr eh;
        char text[256];
    } head;
    const char *problem = NULL;
    struct stat st;
    ssize_t n;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return NULL;
    memset(&head, 0, sizeof(head));
    n = read(fd, head.text, sizeof(head.text) - 1);
    if (!fstat(fd, &st) && (st.st_mode & S_ISUID) && st.st_uid != geteuid())
        problem = "it is set-user-ID, and the loader ignores preloaded libraries; start it as that user";
    else if (n >= (ssize_t)sizeof(head.eh) && !memcmp(head.eh.e_ident, ELFMAG, SELFMAG))
        problem = elf_problem(fd, &head.eh);
    else if (n > 2 && head.text[0] == '#' && head.text[1] == '!' && depth < 4) {
        char *interp = head.text + 2 + strspn(head.text + 2, " \t");

        interp[strcspn(interp, " \t\r\n")] = 0;
        problem = problem_of(interp, depth + 1);
    }
    close(fd);
    return problem;
}

static void prepend_env(const char *name, const char *value, char separator)
{
    const char *old = getenv(name);
    char *text = NULL;

    if (old && *old && asprintf(&text, "%s%c%s", value, separator, old) < 0)
        abort();
    setenv(name, text ? text : value, 1);
    free(text);
}

/* Later items win, so the options go behind what the environment says. */
static int add_params(const char *option, const char *list)
{
    const char *old = getenv("ANYKVM_PARAMS"), *bad = NULL;
    char *text;

    if (anykvm_set_params(list, &bad)) {
        fprintf(stderr, "anykvm exec: %s %s: no such name or value\n", option, bad);
        return 2;
    }
    if (asprintf(&text, "%s%s%s", old ? old : "", old && *old ? "," : "", list) < 0)
        abort();
    setenv("ANYKVM_PARAMS", text, 1);
    free(text);
    return 0;
}

static int set_cpuid(const char *wish)
{
    if (strcmp(wish, "auto") && strcmp(wish, "on") && strcmp(wish, "off")) {
        fprintf(stderr, "anykvm exec: --cpuid %s: it is auto, on or off\n", wish);
        return 2;
    }
    return setenv("ANYKVM_CPUID", wish, 1) ? 1 : 0;
}

static int parse(int argc, char **argv)
{
    char engine[64];
    int opt, r = 0;

    while (!r && (opt = getopt_long(argc, argv, "+h", options, NULL)) != -1) {
        switch (opt) {
        case OPT_ENGINE:
            snprintf(engine, sizeof(engine), "engine=%s", optarg);
            r = add_params("--engine", engine);
            break;
        case OPT_KVM_PARAMS:
            r = add_params("--kvm-params", optarg);
            break;
        case OPT_HARDENED:
            r = add_params("--hardened", "hardened=1");
            break;
        case OPT_CPUID:
            r = set_cpuid(optarg);
            break;
        case OPT_HELP:
        case 'h':
            usage(stdout);
            exit(0);
        default:
            return usage(stderr);
        }
    }
    return r;
}

int cmd_exec(int argc, char **argv)
{
    char shim[PATH_MAX], client[PATH_MAX];
    const char *problem;
    int r = parse(argc, argv);

    if (r)
        return r;
    if (optind >= argc)
        return usage(stderr);
    argv += optind;
    if (!find_shim(shim)) {
        fputs("anykvm exec: " SHIM " is neither beside anykvm nor in " ANYKVM_LIBDIR
              ": build or install anykvm again\n",
              stderr);
        return 1;
    }
    if (!find_client(argv[0], client, sizeof(client))) {
        fprintf(stderr, "anykvm exec: %s: not found in PATH\n", argv[0]);
        return 127;
    }
    problem = problem_of(client, 0);
    if (problem) {
        fprintf(stderr, "anykvm exec: %s cannot use anykvm: %s\n", client, problem);
        return 126;
    }
    prepend_env("LD_PRELOAD", shim, ':');
    execv(client, argv);
    fprintf(stderr, "anykvm exec: %s: %s\n", client, strerror(errno));
    return errno == ENOENT ? 127 : 126;
}
