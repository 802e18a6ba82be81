/* SPDX-License-Identifier: MIT
 * irq_vm.h: a VM of interrupt controllers alone: src/kvm's models with mocks of the vCPU, no processor. */
#ifndef TESTS_IRQ_VM_H
#define TESTS_IRQ_VM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "../../src/kvm/kvm_host.h"
#include "../../src/kvm/lapic.h"

struct kvm *vm_new(int vcpus); /* PIC, IOAPIC, default routing, a reset local APIC a vCPU */
void vm_free(struct kvm *);

/* what the mocks saw */
extern _Atomic int mock_kicks, mock_nmis;
extern bool mock_x2apic, mock_tsc_deadline;
extern uint64_t mock_tsc_khz;
extern uint8_t mock_ram[4096]; /* guest memory at 0 */

/* registers, in the mode that the APIC is in */
uint32_t apic_r(struct kvm_vcpu *, unsigned reg);
void apic_w(struct kvm_vcpu *, unsigned reg, uint32_t value);
void apic_on(struct kvm_vcpu *);                                  /* SPIV: enabled, vector 0xff */
void apic_ipi(struct kvm_vcpu *, uint32_t dest, uint32_t low);    /* ICR */
bool apic_bit(struct kvm_vcpu *, unsigned base, unsigned vector); /* of IRR, ISR, TMR */
void to_x2apic(struct kvm_vcpu *);
uint32_t io_r(struct kvm_vcpu *, unsigned reg); /* IOAPIC */
void io_w(struct kvm_vcpu *, unsigned reg, uint32_t value);
void io_redir(struct kvm_vcpu *, unsigned pin, uint64_t entry);
uint8_t in8(struct kvm_vcpu *, uint16_t port);
void out8(struct kvm_vcpu *, uint16_t port, uint8_t value);
bool wait_until(bool (*done)(void *), void *arg, unsigned timeout_ms);
#define REDIR_LEVEL    (1ull << 15)
#define REDIR_MASKED   (1ull << 16)
#define REDIR_DEST(id) ((uint64_t)(id) << 56)

#endif
