/* SPDX-License-Identifier: MIT
 * check.c: anykvm check: what this machine has and what anykvm will use. */
#include "cli.h"
#include "../vmm/accel.h"
#include "anykvm.h"
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static void host_processor(void)
{
    unsigned a, b, c, d, vmx = 0, svm = 0;
    char vendor[13] = "", brand[49] = "";

    if (__get_cpuid(0, &a, &b, &c, &d)) {
        memcpy(vendor, &b, 4);
        memcpy(vendor + 4, &d, 4);
        memcpy(vendor + 8, &c, 4);
    }
    for (unsigned i = 0; i < 3; i++)
        if (__get_cpuid(0x80000002 + i, &a, &b, &c, &d)) {
            memcpy(brand + 16 * i, &a, 4);
            memcpy(brand + 16 * i + 4, &b, 4);
            memcpy(brand + 16 * i + 8, &c, 4);
            memcpy(brand + 16 * i + 12, &d, 4);
        }
    if (__get_cpuid(1, &a, &b, &c, &d))
        vmx = c >> 5 & 1;
    if (__get_cpuid(0x80000001, &a, &b, &c, &d))
        svm = c >> 2 & 1;
    printf("host processor:     %s, %s\n", vendor, brand);
    printf("  virtualization:   VT-x %s, AMD-V %s\n", vmx ? "yes" : "no", svm ? "yes" : "no");
}

/* Returns whether --accel auto would take it. */
static bool dev_kvm(void)
{
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    const char *why;

    if (fd < 0) {
        printf("/dev/kvm:           %s\n", strerror(errno));
        return false;
    }
    printf("/dev/kvm:           API version %d\n", ioctl(fd, KVM_GET_API_VERSION, 0));
    why = accel_probe(&kvm_api_kernel, fd);
    printf("  64-bit probe:     %s\n", why ? why : "passed");
    close(fd);
    return !why;
}

int cmd_check(int argc, char **argv)
{
    char text[4096];
    bool kernel;
    char *line, *save;

    if (argc > 1) {
        fprintf(stderr, "anykvm check: takes no arguments, got \"%s\"\n", argv[1]);
        return 2;
    }
    printf("%s\n", anykvm_version());
    host_processor();
    kernel = dev_kvm();
    printf("software processor:\n");
    anykvm_describe(text, sizeof(text));
    for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        printf("  %s\n", line);
    printf("--accel auto uses:  %s\n", kernel ? "kvm" : "soft");
    return 0;
}
