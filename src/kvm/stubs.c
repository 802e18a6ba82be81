/* SPDX-License-Identifier: MIT
 * stubs.c: weak bodies that abort, so that each room links and is tested alone until the others are filled. Gone with
 * the last of them. */
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#pragma GCC diagnostic ignored "-Wbuiltin-declaration-mismatch"
void abort(void) __attribute__((noreturn));
int puts(const char *);
__attribute__((weak)) const void *kvm_x86_ops;
__attribute__((weak)) unsigned kvm_trace_mask;
__attribute__((weak)) char kvm_params[64];
#define STUB(name)                                                                                                     \
    __attribute__((weak)) void name(void);                                                                             \
    void name(void)                                                                                                    \
    {                                                                                                                  \
        puts("not there yet: " #name);                                                                                 \
        abort();                                                                                                       \
    }
STUB(kvm_init)
STUB(kvm_exit)
STUB(kvm_create_vm)
STUB(kvm_get_kvm)
STUB(kvm_put_kvm)
STUB(gfn_to_memslot)
STUB(id_to_memslot)
STUB(kvm_set_memory_region)
STUB(gfn_to_hva)
STUB(mark_page_dirty)
STUB(kvm_read_guest)
STUB(kvm_write_guest)
STUB(kvm_get_vcpu_by_id)
STUB(kvm_get_running_vcpu)
__attribute__((visibility("default"))) STUB(anykvm_open)
__attribute__((visibility("default"))) STUB(anykvm_close)
__attribute__((visibility("default"))) STUB(anykvm_ioctl)
__attribute__((visibility("default"))) STUB(anykvm_mmap)
__attribute__((visibility("default"))) STUB(anykvm_owns)
__attribute__((visibility("default"))) STUB(anykvm_signal_arrived)
__attribute__((visibility("default"))) STUB(anykvm_describe)
__attribute__((visibility("default"))) STUB(anykvm_version)
__attribute__((visibility("default"))) STUB(anykvm_set_params)
STUB(kvm_params_set)
STUB(kvm_trace_write)
STUB(kvm_trace_call)
STUB(kvm_trace_return)
STUB(kvm_get_msr)
STUB(kvm_set_msr)
STUB(kvm_cpuid)
STUB(kvm_find_cpuid_entry)
STUB(kvm_vcpu_ioctl_set_cpuid2)
STUB(kvm_update_cpuid_runtime)
STUB(kvm_dev_ioctl_get_cpuid)
STUB(kvm_async_pf_init)
STUB(apic_has_pending_timer)
STUB(kvm_inject_apic_timer_irqs)
