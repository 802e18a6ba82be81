/* SPDX-License-Identifier: MIT
 * ioctl_system.c: the ioctls of /dev/kvm itself. */
#include <errno.h>
#include <string.h>
#include "ioctl.h"

static long sys_get_api_version(struct ioctl_call *c)
{
    return c->arg ? because(-EINVAL, "the argument must be 0") : KVM_API_VERSION;
}

static long sys_create_vm(struct ioctl_call *c)
{
    return kvm_dev_ioctl_create_vm(c->arg);
}

static long sys_check_extension(struct ioctl_call *c)
{
    return kvm_check_extension(NULL, (long)c->arg);
}

static long sys_get_vcpu_mmap_size(struct ioctl_call *c)
{
    return c->arg ? because(-EINVAL, "the argument must be 0") : (long)(KVM_VCPU_MMAP_PAGES * PAGE_SIZE);
}

/* api.rst: the count goes back in any case, so that the caller can ask again with enough room. */
static long msr_list(struct ioctl_call *c, const uint32_t *list, unsigned count)
{
    struct kvm_msr_list *head = c->data;
    const unsigned room = head->nmsrs;

    head->nmsrs = count;
    c->always_out = true;
    if (room < count)
        return because(-E2BIG, "room for %u MSRs, there are %u", room, count);
    return os_copy_to_user((char *)c->arg + sizeof(*head), list, count * sizeof(*list));
}

static long sys_get_msr_index_list(struct ioctl_call *c)
{
    const uint32_t *list;
    const unsigned count = kvm_msr_index_list(&list);

    return msr_list(c, list, count);
}

static long sys_get_msr_feature_index_list(struct ioctl_call *c)
{
    const uint32_t *list;
    const unsigned count = kvm_msr_feature_index_list(&list);

    return msr_list(c, list, count);
}

/* The count of MSRs that were read: the first that is none ends it. */
static long sys_get_msrs(struct ioctl_call *c)
{
    struct kvm_msr_entry *e = c->tail;
    unsigned i;

    for (i = 0; i < c->tail_count; i++)
        if (kvm_get_msr_feature(e[i].index, (uint64_t *)&e[i].data))
            break;
    return i;
}

static long get_cpuid(struct ioctl_call *c, bool emulated)
{
    struct kvm_cpuid2 *head = c->data;
    int nent = (int)c->tail_count, r;

    if (nent < 1)
        return because(-E2BIG, "room for no entry");
    r = kvm_dev_ioctl_get_cpuid(c->tail, &nent, emulated);
    if (r)
        return because(r, "more entries than the %u that there is room for", c->tail_count);
    head->nent = c->tail_count = (uint32_t)nent;
    return 0;
}

static long sys_get_supported_cpuid(struct ioctl_call *c)
{
    return get_cpuid(c, false);
}

static long sys_get_emulated_cpuid(struct ioctl_call *c)
{
    return get_cpuid(c, true);
}

/* Of a vCPU too */
long ioctl_get_hv_cpuid(struct ioctl_call *c)
{
    struct kvm_cpuid2 *head = c->data;
    int nent = (int)c->tail_count, r = kvm_get_hv_cpuid(c->tail, &nent);

    if (r)
        return because(r, "room for %u entries", c->tail_count);
    head->nent = c->tail_count = (uint32_t)nent;
    return 0;
}

static long sys_get_mce_cap(struct ioctl_call *c)
{
    *(uint64_t *)c->data = KVM_MCE_CAP_SUPPORTED;
    return 0;
}

/* KVM_CAP_SYS_ATTRIBUTES: group 0, attribute KVM_X86_XCOMP_GUEST_SUPP, the XCR0 bits that a guest may use. */
static long sys_has_device_attr(struct ioctl_call *c)
{
    const struct kvm_device_attr *attr = c->data;

    if (attr->group)
        return -ENXIO;
    return attr->attr == KVM_X86_XCOMP_GUEST_SUPP ? 0 : -ENXIO;
}

static long sys_get_device_attr(struct ioctl_call *c)
{
    const struct kvm_device_attr *attr = c->data;
    const uint64_t xcr0 = cpu_fpu_xcr0_mask();
    const long r = sys_has_device_attr(c);

    return r ? r : os_copy_to_user((void *)attr->addr, &xcr0, sizeof(xcr0));
}

#define MSR_TAIL(copy) TAIL(kvm_msrs, nmsrs, struct kvm_msr_entry, KVM_MAX_IO_MSRS - 1, -E2BIG, copy)
#define CPUID_TAIL     TAIL(kvm_cpuid2, nent, struct kvm_cpuid_entry2, KVM_MAX_CPUID_ENTRIES, 0, OUT)

const struct ioctl_row system_ioctls[] = {
    /* number, copied, structure, variable tail, handler, capability */
    ROW0(KVM_GET_API_VERSION, sys_get_api_version, CAP_ALWAYS),
    ROW0(KVM_CREATE_VM, sys_create_vm, CAP_ALWAYS),
    ROW0(KVM_CHECK_EXTENSION, sys_check_extension, CAP_ALWAYS),
    ROW0(KVM_GET_VCPU_MMAP_SIZE, sys_get_vcpu_mmap_size, CAP_ALWAYS),
    ROW(KVM_GET_MSR_INDEX_LIST, INOUT, struct kvm_msr_list, sys_get_msr_index_list, CAP_ALWAYS),
    ROW(KVM_GET_MSR_FEATURE_INDEX_LIST, INOUT, struct kvm_msr_list, sys_get_msr_feature_index_list,
        KVM_CAP_GET_MSR_FEATURES),
    ROW_TAIL(KVM_GET_MSRS, INOUT, struct kvm_msrs, MSR_TAIL(INOUT), sys_get_msrs, KVM_CAP_GET_MSR_FEATURES),
    ROW_TAIL(KVM_GET_SUPPORTED_CPUID, INOUT, struct kvm_cpuid2, CPUID_TAIL, sys_get_supported_cpuid, KVM_CAP_EXT_CPUID),
    ROW_TAIL(KVM_GET_EMULATED_CPUID, INOUT, struct kvm_cpuid2, CPUID_TAIL, sys_get_emulated_cpuid,
             KVM_CAP_EXT_EMUL_CPUID),
    ROW_TAIL(KVM_GET_SUPPORTED_HV_CPUID, INOUT, struct kvm_cpuid2, CPUID_TAIL, ioctl_get_hv_cpuid,
             KVM_CAP_SYS_HYPERV_CPUID),
    ROW(KVM_X86_GET_MCE_CAP_SUPPORTED, OUT, uint64_t, sys_get_mce_cap, KVM_CAP_MCE),
    ROW(KVM_GET_DEVICE_ATTR, IN, struct kvm_device_attr, sys_get_device_attr, KVM_CAP_SYS_ATTRIBUTES),
    ROW(KVM_HAS_DEVICE_ATTR, IN, struct kvm_device_attr, sys_has_device_attr, KVM_CAP_SYS_ATTRIBUTES),
};
const unsigned system_ioctls_count = ARRAY_SIZE(system_ioctls);
