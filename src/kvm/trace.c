/* SPDX-License-Identifier: MIT
 * trace.c: what KVM says about itself: ANYKVM_TRACE=init,ioctl,exit,inject,vmcs,mmu,irq (or "all"), to stderr or to the
 * file that ANYKVM_TRACE_FILE names. One write a line, so lines of several vCPUs do not mix. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kvm_host.h"
#include "params.h"

unsigned kvm_trace_mask;
static int trace_fd = STDERR_FILENO;
static __thread unsigned depth;

static const struct {
    const char *name;
    unsigned mask;
} classes[] = {
    {"init", TRACE_INIT}, {"ioctl", TRACE_IOCTL}, {"exit", TRACE_EXIT}, {"inject", TRACE_INJECT},
    {"vmcs", TRACE_VMCS}, {"mmu", TRACE_MMU},     {"irq", TRACE_IRQ},   {"all", ~0u},
};

static unsigned class_mask(const char *name, size_t len)
{
    unsigned i;

    for (i = 0; i < ARRAY_SIZE(classes); i++)
        if (strlen(classes[i].name) == len && !memcmp(classes[i].name, name, len))
            return classes[i].mask;
    fprintf(stderr, "anykvm: ANYKVM_TRACE: \"%.*s\" is no class; known: init ioctl exit inject vmcs mmu irq all\n",
            (int)len, name);
    return 0;
}

static void cpu_line(const char *text)
{
    kvm_trace_write("%s", text);
}

void kvm_trace_init(void)
{
    const char *p = getenv("ANYKVM_TRACE"), *file = getenv("ANYKVM_TRACE_FILE");
    unsigned mask = 0;

    if (!p || !*p)
        return;
    for (; *p; p += strcspn(p, ","), p += *p == ',')
        if (strcspn(p, ","))
            mask |= class_mask(p, strcspn(p, ","));
    if (file && *file) {
        trace_fd = open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        if (trace_fd < 0) {
            fprintf(stderr, "anykvm: ANYKVM_TRACE_FILE %s: %s; tracing to stderr\n", file, strerror(errno));
            trace_fd = STDERR_FILENO;
        }
    }
    kvm_trace_mask = mask;
    if (mask & (TRACE_VMCS | TRACE_MMU))
        cpu_set_trace((mask & TRACE_VMCS ? CPU_TRACE_VMCS : 0) | (mask & TRACE_MMU ? CPU_TRACE_MMU : 0), cpu_line);
}

void kvm_trace_write(const char *format, ...)
{
    const int saved = errno;
    const unsigned indent = depth > 20 ? 20 : depth;
    char line[512];
    va_list ap;
    int n;

    memset(line, ' ', 2 * indent);
    va_start(ap, format);
    n = vsnprintf(line + 2 * indent, sizeof(line) - 2 * indent - 1, format, ap);
    va_end(ap);
    if (n >= 0) {
        n += (int)(2 * indent);
        if (n > (int)sizeof(line) - 2)
            n = sizeof(line) - 2;
        line[n] = '\n';
        if (write(trace_fd, line, (size_t)n + 1) < 0)
            kvm_trace_mask = 0; /* nobody reads it */
    }
    errno = saved;
}

void kvm_trace_call(const char *function)
{
    kvm_trace(TRACE_INIT, "%s", function);
    depth++;
}

void kvm_trace_return(void)
{
    depth--;
}
