/* SPDX-License-Identifier: MIT
 * stat.c: what KVM counts about itself. */
#include "ioctl.h"

void kvm_stat_init(void)
{
}

void kvm_stat_vm_gone(struct kvm *kvm)
{
}
