/* SPDX-License-Identifier: MIT
 * accel.c: option -> configure_accelerator -> accel_init_machine -> kvm_init (QEMU's names for the same steps). */
#include "accel.h"
#include "vmm.h"
#include "anykvm.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static int libc_open(const char *path, int flags)
{
    return open(path, flags);
}

const struct kvm_api kvm_api_kernel = {"kvm", libc_open, ioctl, mmap, close, NULL};
const struct kvm_api kvm_api_soft = {"soft",      anykvm_open,  anykvm_ioctl,
                                     anykvm_mmap, anykvm_close, anykvm_signal_arrived};

/* What the monitor cannot do without; the macro keeps name and number together for the message. */
#define CAP(name)                        \
    {                                    \
        KVM_CAP_##name, "KVM_CAP_" #name \
    }
static const struct {
    int cap;
    const char *name;
} required_caps[] = {
    CAP(USER_MEMORY),
    CAP(DESTROY_MEMORY_REGION_WORKS),
    CAP(JOIN_MEMORY_REGIONS_WORKS),
    CAP(SET_TSS_ADDR),
    CAP(EXT_CPUID),
    CAP(IRQCHIP),
    CAP(MP_STATE),
    CAP(IRQ_ROUTING),
    CAP(PIT2),
};

int kvm_check_extension(struct accel *a, int cap)
{
    int ret = a->api->ioctl(a->kvm_fd, KVM_CHECK_EXTENSION, cap);

    return ret < 0 ? 0 : ret;
}

/* VM-wide settings before the first vCPU. */
static int kvm_arch_init(struct accel *a)
{
    uint64_t identity_map = 0xfeffc000;

    if (a->api->ioctl(a->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map) < 0)
        return vmm_error("KVM_SET_IDENTITY_MAP_ADDR: %s", strerror(errno));
    if (a->api->ioctl(a->vm_fd, KVM_SET_TSS_ADDR, 0xfeffd000ul) < 0)
        return vmm_error("KVM_SET_TSS_ADDR: %s", strerror(errno));
    return 0;
}

static int kvm_init(struct accel *a)
{
    int version, size;

    if (a->kvm_fd < 0) {
        a->kvm_fd = a->api->open("/dev/kvm", O_RDWR | O_CLOEXEC);
        if (a->kvm_fd < 0)
            return vmm_error("/dev/kvm: %s; use --accel soft", strerror(errno));
    }
    version = a->api->ioctl(a->kvm_fd, KVM_GET_API_VERSION, 0);
    if (version != KVM_API_VERSION)
        return vmm_error("/dev/kvm: API version %d, need %d", version, KVM_API_VERSION);
    for (size_t i = 0; i < sizeof(required_caps) / sizeof(required_caps[0]); i++)
        if (kvm_check_extension(a, required_caps[i].cap) <= 0)
            return vmm_error("/dev/kvm lacks %s; use --accel soft", required_caps[i].name);
    size = a->api->ioctl(a->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (size < (int)sizeof(struct kvm_run))
        return vmm_error("KVM_GET_VCPU_MMAP_SIZE: %d", size);
    a->run_size = size;
    a->immediate_exit = kvm_check_extension(a, KVM_CAP_IMMEDIATE_EXIT) > 0;
    a->vm_fd = a->api->ioctl(a->kvm_fd, KVM_CREATE_VM, 0ul);
    if (a->vm_fd < 0)
        return vmm_error("KVM_CREATE_VM: %s", strerror(errno));
    return kvm_arch_init(a);
}

static int accel_init_machine(struct accel *a, const struct kvm_api *api, int kvm_fd)
{
    a->api = api;
    a->kvm_fd = kvm_fd;
    a->vm_fd = -1;
    if (a->verbose)
        fprintf(stderr, "anykvm run: accelerator %s: kvm_init\n", api->name);
    return kvm_init(a);
}

int configure_accelerator(struct accel *a, enum accel_choice choice)
{
    const char *why;
    int fd;

    if (a->verbose)
        fprintf(stderr, "anykvm run: configure_accelerator: --accel %s\n",
                choice == ACCEL_AUTO  ? "auto"
                : choice == ACCEL_KVM ? "kvm"
                                      : "soft");
    if (choice == ACCEL_SOFT)
        return accel_init_machine(a, &kvm_api_soft, -1);
    fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (choice == ACCEL_KVM) {
        if (fd < 0)
            return vmm_error("/dev/kvm: %s; use --accel soft", strerror(errno));
        return accel_init_machine(a, &kvm_api_kernel, fd);
    }
    if (fd < 0) {
        if (errno != ENOENT)
            fprintf(stderr, "anykvm run: /dev/kvm: %s; using --accel soft\n", strerror(errno));
        return accel_init_machine(a, &kvm_api_soft, -1);
    }
    why = accel_probe(&kvm_api_kernel, fd);
    if (!why)
        return accel_init_machine(a, &kvm_api_kernel, fd);
    fprintf(stderr, "anykvm run: /dev/kvm: %s; using --accel soft\n", why);
    close(fd);
    return accel_init_machine(a, &kvm_api_soft, -1);
}

void accel_close(struct accel *a)
{
    if (a->vm_fd >= 0)
        a->api->close(a->vm_fd);
    if (a->kvm_fd >= 0)
        a->api->close(a->kvm_fd);
    a->vm_fd = a->kvm_fd = -1;
}
