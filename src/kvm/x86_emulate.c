/* SPDX-License-Identifier: MIT
 * x86_emulate.c: what an exit asks KVM to do in the guest's stead: MMIO and string I/O by one instruction of the
 * processor's interpreter (cpu_emulate), IN and OUT, CPUID, MSRs, XSETBV, VMCALL. kvm_run is written by user space:
 * what comes back from there is read once. */
#include "x86.h"
#include <errno.h>
#include <linux/kvm_para.h>
#include <sched.h>
#include <string.h>

static uint8_t *pio_page(struct kvm_vcpu *vcpu)
{
    return (uint8_t *)vcpu->run + KVM_PIO_PAGE_OFFSET * PAGE_SIZE;
}

/* ---- ends of an instruction ---- */
int kvm_skip_emulated_instruction(struct kvm_vcpu *vcpu)
{
    const uint64_t rflags = kvm_x86_ops->get_rflags(vcpu);

    if (!kvm_x86_ops->skip_emulated_instruction(vcpu))
        return 0;
    return unlikely(rflags & F_TF) ? kvm_vcpu_do_singlestep(vcpu) : 1;
}

int kvm_complete_insn_gp(struct kvm_vcpu *vcpu, int err)
{
    if (err) {
        kvm_inject_gp(vcpu, 0);
        return 1;
    }
    return kvm_skip_emulated_instruction(vcpu);
}

int kvm_internal_error(struct kvm_vcpu *vcpu, uint32_t suberror, unsigned ndata, const uint64_t *data)
{
    struct kvm_run *run = vcpu->run;

    run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
    run->internal.suberror = suberror;
    run->internal.ndata = ndata;
    for (unsigned i = 0; i < ndata; i++)
        run->internal.data[i] = data[i];
    return 0;
}

/* ---- the instruction's bytes ---- */
static unsigned read_insn_bytes(struct kvm_vcpu *vcpu, uint8_t *buf, unsigned n)
{
    const gva_t rip = kvm_get_linear_rip(vcpu);
    unsigned got = 0;

    while (got < n) {
        const uint64_t left = PAGE_SIZE - ((rip + got) & ~PAGE_MASK);
        const unsigned chunk = n - got < left ? n - got : (unsigned)left;
        gpa_t gpa;

        if (kvm_mmu_gva_to_gpa(vcpu, rip + got, ACC_EXEC, &gpa) < 0 ||
            kvm_vcpu_read_guest(vcpu, gpa, buf + got, chunk) < 0)
            break;
        got += chunk;
    }
    return got;
}

/* api.rst, KVM_EXIT_INTERNAL_ERROR: with the instruction's bytes where they can be read. Code of CPL 3 hurts itself
 * only, unless the client wants to know (KVM_CAP_EXIT_ON_EMULATION_FAILURE). */
int kvm_emulation_failure(struct kvm_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    uint8_t bytes[15];
    const unsigned n = read_insn_bytes(vcpu, bytes, sizeof(bytes));

    if (!vcpu->kvm->arch.exit_on_emulation_error) {
        kvm_queue_exception(vcpu, VEC_UD);
        if (kvm_x86_ops->get_cpl(vcpu) != 0)
            return 1;
    }
    memset(&run->emulation_failure, 0, sizeof(run->emulation_failure));
    run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
    run->emulation_failure.suberror = KVM_INTERNAL_ERROR_EMULATION;
    run->emulation_failure.ndata = 1;
    if (n) {
        run->emulation_failure.ndata = 3; /* flags, and two words for size and bytes */
        run->emulation_failure.flags = KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;
        run->emulation_failure.insn_size = (uint8_t)n;
        memset(run->emulation_failure.insn_bytes, 0x90, sizeof(run->emulation_failure.insn_bytes));
        memcpy(run->emulation_failure.insn_bytes, bytes, n);
    }
    return 0;
}

/* ---- MMIO ---- */
static int complete_emulated_io(struct kvm_vcpu *vcpu);

/* A client may write back the registers that it read (QEMU's devices do so), and the access is then still finished. */
static void complete_later(struct kvm_vcpu *vcpu, int (*complete)(struct kvm_vcpu *))
{
    vcpu->arch.pio.linear_rip = kvm_get_linear_rip(vcpu);
    vcpu->arch.complete_userspace_io = complete;
}

static bool slot_for_write(struct kvm_vcpu *vcpu, gpa_t gpa)
{
    struct kvm *kvm = vcpu->kvm;
    const unsigned idx = srcu_read_lock(&kvm->srcu);
    const struct kvm_memory_slot *slot = gfn_to_memslot(kvm, kvm_arch_vcpu_memslots_id(vcpu), gpa >> PAGE_SHIFT);
    const bool ok = slot && !(slot->flags & KVM_MEM_READONLY);

    srcu_read_unlock(&kvm->srcu, idx);
    return ok;
}

static enum emul_answer exit_mmio(struct kvm_vcpu *vcpu, gpa_t gpa, unsigned size, bool write, const void *data)
{
    struct kvm_run *run = vcpu->run;

    vcpu->arch.mmio.needed = true;
    vcpu->arch.mmio.is_write = write;
    vcpu->arch.mmio.gpa = gpa;
    vcpu->arch.mmio.len = size;
    run->exit_reason = KVM_EXIT_MMIO;
    run->mmio.phys_addr = gpa;
    run->mmio.len = size;
    run->mmio.is_write = write;
    memset(run->mmio.data, 0, sizeof(run->mmio.data));
    if (write)
        memcpy(run->mmio.data, data, size);
    complete_later(vcpu, complete_emulated_io);
    return EA_USER;
}

/* RAM comes here too: pages that have no EPT entry yet, or none that allows writing. */
static enum emul_answer emul_mmio_read(void *opaque, gpa_t gpa, void *data, unsigned size)
{
    struct kvm_vcpu *vcpu = opaque;

    if (lapic_in_kernel(vcpu) && kvm_lapic_mmio_read(vcpu, gpa, (int)size, data) == 0)
        return EA_DONE;
    if (kvm_io_bus_read(vcpu, KVM_MMIO_BUS, gpa, (int)size, data) == 0)
        return EA_DONE;
    if (kvm_vcpu_read_guest(vcpu, gpa, data, size) == 0)
        return EA_DONE;
    return exit_mmio(vcpu, gpa, size, false, NULL);
}

static enum emul_answer emul_mmio_write(void *opaque, gpa_t gpa, const void *data, unsigned size)
{
    struct kvm_vcpu *vcpu = opaque;

    if (lapic_in_kernel(vcpu) && kvm_lapic_mmio_write(vcpu, gpa, (int)size, data) == 0)
        return EA_DONE;
    if (kvm_io_bus_write(vcpu, KVM_MMIO_BUS, gpa, (int)size, data) == 0)
        return EA_DONE;
    if (slot_for_write(vcpu, gpa) && kvm_vcpu_write_guest(vcpu, gpa, data, size) == 0)
        return EA_DONE;
    return exit_mmio(vcpu, gpa, size, true, data);
}

/* ---- string I/O: as many elements at a time as the data page holds ---- */
static enum emul_answer exit_pio(struct kvm_vcpu *vcpu, uint16_t port, unsigned size, bool in, unsigned count)
{
    struct kvm_run *run = vcpu->run;

    vcpu->arch.pio.active = true;
    vcpu->arch.pio.in = in;
    vcpu->arch.pio.size = (uint8_t)size;
    vcpu->arch.pio.count = count;
    vcpu->arch.pio.port = port;
    run->exit_reason = KVM_EXIT_IO;
    run->io.direction = in ? KVM_EXIT_IO_IN : KVM_EXIT_IO_OUT;
    run->io.size = (uint8_t)size;
    run->io.port = port;
    run->io.count = count;
    run->io.data_offset = KVM_PIO_PAGE_OFFSET * PAGE_SIZE;
    return EA_USER;
}

static enum emul_answer emul_pio_in(void *opaque, uint16_t port, unsigned size, void *data, unsigned count,
                                    unsigned *done)
{
    struct kvm_vcpu *vcpu = opaque;
    unsigned i;

    if (count > PAGE_SIZE / size)
        count = (unsigned)(PAGE_SIZE / size);
    for (i = 0; i < count; i++)
        if (kvm_io_bus_read(vcpu, KVM_PIO_BUS, port, (int)size, (uint8_t *)data + i * size))
            break;
    *done = i ?: count;
    if (i)
        return EA_DONE; /* the rest of the string comes as the next piece */
    complete_later(vcpu, complete_emulated_io);
    memset(pio_page(vcpu), 0, count * size);
    return exit_pio(vcpu, port, size, true, count);
}

static enum emul_answer emul_pio_out(void *opaque, uint16_t port, unsigned size, const void *data, unsigned count,
                                     unsigned *done)
{
    struct kvm_vcpu *vcpu = opaque;
    unsigned i;

    if (count > PAGE_SIZE / size)
        count = (unsigned)(PAGE_SIZE / size);
    for (i = 0; i < count; i++)
        if (kvm_io_bus_write(vcpu, KVM_PIO_BUS, port, (int)size, (const uint8_t *)data + i * size))
            break;
    *done = i ?: count;
    if (i)
        return EA_DONE;
    complete_later(vcpu, complete_emulated_io);
    memcpy(pio_page(vcpu), data, count * size);
    return exit_pio(vcpu, port, size, false, count);
}

static const struct emul_ops kvm_emul_ops = {emul_mmio_read, emul_mmio_write, emul_pio_in, emul_pio_out};

/* 1: the guest goes on, 0: to user space */
static int emulation_result(struct kvm_vcpu *vcpu, enum emul result)
{
    const struct cpu_exception *fault;

    switch (result) {
    case EMUL_DONE: /* a single-step trap is pending in the VMCS */
        return 1;
    case EMUL_EXIT: /* the guest meets the same instruction again and exits for it */
        return 1;
    case EMUL_USER:
        return 0;
    case EMUL_FAULT:
        fault = cpu_emulate_fault(vcpu->arch.cpu);
        if (fault->has_error)
            kvm_queue_exception_e_p(vcpu, fault->vector, fault->error, fault->payload);
        else if (fault->vector == VEC_DB)
            kvm_queue_exception_p(vcpu, fault->vector, fault->payload);
        else
            kvm_queue_exception(vcpu, fault->vector);
        return 1;
    default:
        return kvm_emulation_failure(vcpu);
    }
}

static int complete_emulated_io(struct kvm_vcpu *vcpu)
{
    uint8_t data[PAGE_SIZE]; /* a copy: user space may go on writing to its page */
    unsigned size = 0;

    if (vcpu->arch.mmio.needed && !vcpu->arch.mmio.is_write) {
        size = vcpu->arch.mmio.len;
        memcpy(data, vcpu->run->mmio.data, size);
    } else if (vcpu->arch.pio.active && vcpu->arch.pio.in) {
        size = vcpu->arch.pio.size * vcpu->arch.pio.count;
        memcpy(data, pio_page(vcpu), size);
    }
    vcpu->arch.mmio.needed = vcpu->arch.pio.active = false;
    if (!cpu_emulate_pending(vcpu->arch.cpu)) /* a reset came between */
        return 1;
    if (kvm_get_linear_rip(vcpu) != vcpu->arch.pio.linear_rip) { /* the client has set other registers */
        cpu_emulate_cancel(vcpu->arch.cpu);
        return 1;
    }
    return emulation_result(vcpu, cpu_emulate_resume(vcpu->arch.cpu, &kvm_emul_ops, vcpu, data, size));
}

int x86_emulate_instruction(struct kvm_vcpu *vcpu, gpa_t mmio_gpa)
{
    kvm_trace(TRACE_MMU, "vcpu %d: emulate for gpa %#llx", vcpu->vcpu_id, (unsigned long long)mmio_gpa);
    return emulation_result(vcpu, cpu_emulate(vcpu->arch.cpu, &kvm_emul_ops, vcpu));
}

void kvm_vcpu_emulation_cancel(struct kvm_vcpu *vcpu)
{
    cpu_emulate_cancel(vcpu->arch.cpu);
    vcpu->arch.complete_userspace_io = NULL;
    vcpu->arch.mmio.needed = vcpu->arch.pio.active = false;
}

/* ---- IN and OUT of one element ---- */
static void fast_pio_set_rax(struct kvm_vcpu *vcpu, int size, uint32_t value)
{
    const uint64_t rax = kvm_register_read(vcpu, R_RAX);
    const uint64_t mask = size == 4 ? ~0ull : (1ull << size * 8) - 1; /* a 32-bit result clears the upper half */

    kvm_register_write(vcpu, R_RAX, (rax & ~mask) | (value & mask));
}

static int complete_fast_pio(struct kvm_vcpu *vcpu)
{
    const bool in = vcpu->arch.pio.in;
    uint32_t value = 0;

    vcpu->arch.pio.active = false;
    if (kvm_get_linear_rip(vcpu) != vcpu->arch.pio.linear_rip) /* the client has set RIP: reset, or it did the skip */
        return 1;
    if (in) {
        memcpy(&value, pio_page(vcpu), vcpu->arch.pio.size);
        fast_pio_set_rax(vcpu, vcpu->arch.pio.size, value);
    }
    return kvm_skip_emulated_instruction(vcpu);
}

static int complete_fast_pio_7e(struct kvm_vcpu *vcpu)
{
    vcpu->arch.pio.active = false;
    return 1;
}

int kvm_fast_pio(struct kvm_vcpu *vcpu, int size, uint16_t port, bool in)
{
    uint32_t value = in ? 0 : (uint32_t)kvm_register_read(vcpu, R_RAX);

    if (in && kvm_io_bus_read(vcpu, KVM_PIO_BUS, port, size, &value) == 0) {
        fast_pio_set_rax(vcpu, size, value);
        return kvm_skip_emulated_instruction(vcpu);
    }
    if (!in && kvm_io_bus_write(vcpu, KVM_PIO_BUS, port, size, &value) == 0)
        return kvm_skip_emulated_instruction(vcpu);
    memcpy(pio_page(vcpu), &value, (unsigned)size);
    exit_pio(vcpu, port, (unsigned)size, in, 1);
    if (!in && port == 0x7e &&
        kvm_check_has_quirk(vcpu->kvm, KVM_X86_QUIRK_OUT_7E_INC_RIP)) { /* kvmvapic's port, QEMU reads RIP behind it */
        vcpu->arch.complete_userspace_io = complete_fast_pio_7e;
        kvm_x86_ops->skip_emulated_instruction(vcpu);
        return 0;
    }
    complete_later(vcpu, complete_fast_pio);
    return 0;
}

/* ---- CPUID, MSRs, XSETBV ---- */
int kvm_emulate_cpuid(struct kvm_vcpu *vcpu)
{
    uint32_t eax = (uint32_t)kvm_register_read(vcpu, R_RAX), ecx = (uint32_t)kvm_register_read(vcpu, R_RCX), ebx, edx;

    kvm_cpuid(vcpu, &eax, &ebx, &ecx, &edx);
    kvm_register_write(vcpu, R_RAX, eax);
    kvm_register_write(vcpu, R_RBX, ebx);
    kvm_register_write(vcpu, R_RCX, ecx);
    kvm_register_write(vcpu, R_RDX, edx);
    return kvm_skip_emulated_instruction(vcpu);
}

static void set_edx_eax(struct kvm_vcpu *vcpu, uint64_t value)
{
    kvm_register_write(vcpu, R_RAX, (uint32_t)value);
    kvm_register_write(vcpu, R_RDX, value >> 32);
}

static uint64_t get_edx_eax(struct kvm_vcpu *vcpu)
{
    return (uint32_t)kvm_register_read(vcpu, R_RAX) | kvm_register_read(vcpu, R_RDX) << 32;
}

static int complete_user_msr(struct kvm_vcpu *vcpu)
{
    const bool read = vcpu->arch.user_msr_read;
    const uint64_t data = *(volatile uint64_t *)&vcpu->run->msr.data;
    const uint8_t error = *(volatile uint8_t *)&vcpu->run->msr.error;

    vcpu->arch.user_msr_pending = false;
    if (!error && read)
        set_edx_eax(vcpu, data);
    return kvm_complete_insn_gp(vcpu, error);
}

/* KVM_CAP_X86_USER_SPACE_MSR: true when the client wants to decide */
static bool kvm_msr_user_space(struct kvm_vcpu *vcpu, uint32_t index, bool read, uint64_t data, int r)
{
    const uint32_t reason = r == KVM_MSR_RET_INVALID    ? KVM_MSR_EXIT_REASON_UNKNOWN
                            : r == KVM_MSR_RET_FILTERED ? KVM_MSR_EXIT_REASON_FILTER
                                                        : KVM_MSR_EXIT_REASON_INVAL;
    struct kvm_run *run = vcpu->run;

    if (!(vcpu->kvm->arch.user_space_msr_mask & reason))
        return false;
    run->exit_reason = read ? KVM_EXIT_X86_RDMSR : KVM_EXIT_X86_WRMSR;
    run->msr.error = 0;
    memset(run->msr.pad, 0, sizeof(run->msr.pad));
    run->msr.reason = reason;
    run->msr.index = index;
    run->msr.data = data;
    vcpu->arch.user_msr_pending = true;
    vcpu->arch.user_msr_read = read;
    vcpu->arch.complete_userspace_io = complete_user_msr;
    return true;
}

int kvm_emulate_rdmsr(struct kvm_vcpu *vcpu)
{
    const uint32_t index = (uint32_t)kvm_register_read(vcpu, R_RCX);
    uint64_t data = 0;
    const int r = kvm_get_msr(vcpu, index, &data, false);

    kvm_trace(TRACE_EXIT, "vcpu %d: rdmsr %#x = %#llx%s", vcpu->vcpu_id, index, (unsigned long long)data,
              r ? " #GP" : "");
    if (r && kvm_msr_user_space(vcpu, index, true, 0, r))
        return 0;
    if (!r)
        set_edx_eax(vcpu, data);
    return kvm_complete_insn_gp(vcpu, r);
}

int kvm_emulate_wrmsr(struct kvm_vcpu *vcpu)
{
    const uint32_t index = (uint32_t)kvm_register_read(vcpu, R_RCX);
    const uint64_t data = get_edx_eax(vcpu);
    const int r = kvm_set_msr(vcpu, index, data, false);

    kvm_trace(TRACE_EXIT, "vcpu %d: wrmsr %#x = %#llx%s", vcpu->vcpu_id, index, (unsigned long long)data,
              r ? " #GP" : "");
    if (r && kvm_msr_user_space(vcpu, index, false, data, r))
        return 0;
    return kvm_complete_insn_gp(vcpu, r);
}

int kvm_emulate_xsetbv(struct kvm_vcpu *vcpu)
{
    if (kvm_x86_ops->get_cpl(vcpu) != 0 ||
        kvm_set_xcr(vcpu, (uint32_t)kvm_register_read(vcpu, R_RCX), get_edx_eax(vcpu))) {
        kvm_inject_gp(vcpu, 0);
        return 1;
    }
    return kvm_skip_emulated_instruction(vcpu);
}

/* ---- hypercalls (Documentation/virt/kvm/x86/hypercalls.rst) ---- */
static int64_t hc_clock_pairing(struct kvm_vcpu *vcpu, gpa_t gpa, uint64_t type)
{
    struct kvm_clock_pairing pairing = {0};
    uint64_t real_ns = 0, best = ~0ull;

    if (type != KVM_CLOCK_PAIRING_WALLCLOCK)
        return -KVM_EOPNOTSUPP;
    for (unsigned i = 0; i < 8; i++) { /* the two of one moment: the pair that was read fastest */
        const uint64_t before = kvm_read_l1_tsc_now(vcpu), now = os_clock_real_ns();
        const uint64_t took = kvm_read_l1_tsc_now(vcpu) - before;

        if (took < best) {
            best = took;
            real_ns = now;
            pairing.tsc = before + took / 2;
        }
    }
    pairing.sec = (int64_t)(real_ns / 1000000000);
    pairing.nsec = (int64_t)(real_ns % 1000000000);
    return kvm_vcpu_write_guest(vcpu, gpa, &pairing, sizeof(pairing)) < 0 ? -KVM_EFAULT : 0;
}

bool guest_pv_has(struct kvm_vcpu *vcpu, unsigned feature)
{
    return !vcpu->arch.pv_cpuid_enforce || guest_cpuid_has(vcpu, 0x40000001, 'a', feature);
}

/* a0, a1: a bitmap of APIC IDs from a2 on; a3: the interrupt command. The count of those that were reached. */
static int64_t hc_send_ipi(struct kvm_vcpu *vcpu, const uint64_t *a)
{
    const unsigned bits = is_64_bit_mode(vcpu) ? 64 : 32;
    const struct kvm_lapic_irq irq = {
        .vector = a[3] & 0xff, .delivery_mode = a[3] & 0x700, .level = a[3] & 0x4000, .trig_mode = a[3] & 0x8000};
    int64_t count = 0;

    if (!lapic_in_kernel(vcpu))
        return -KVM_EOPNOTSUPP;
    if (a[3] & 0xc0800) /* a shorthand or a logical destination */
        return -KVM_EINVAL;
    for (unsigned i = 0; i < 2 * bits; i++) {
        struct kvm_vcpu *to = a[i / bits] >> i % bits & 1 ? kvm_apic_with_id(vcpu->kvm, (uint32_t)a[2] + i) : NULL;

        if (to)
            count += kvm_apic_set_irq(to, &irq, NULL) > 0;
    }
    return count;
}

/* The host's scheduler knows best whom to run: giving up the processor is all that there is to say. */
static int64_t hc_sched_yield(struct kvm_vcpu *vcpu, uint64_t apic_id)
{
    struct kvm_vcpu *to = lapic_in_kernel(vcpu) ? kvm_apic_with_id(vcpu->kvm, (uint32_t)apic_id) : NULL;

    if (to && to != vcpu)
        sched_yield();
    return 0;
}

static int complete_hypercall_exit(struct kvm_vcpu *vcpu)
{
    const uint64_t ret = *(volatile __u64 *)&vcpu->run->hypercall.ret;

    kvm_register_write(vcpu, R_RAX, is_64_bit_mode(vcpu) ? ret : (uint32_t)ret);
    return kvm_skip_hypercall(vcpu);
}

/* KVM_CAP_EXIT_HYPERCALL: gpa, pages, attributes. HC_TO_USER, or the guest's result */
#define HC_TO_USER INT64_MIN
static int64_t hc_map_gpa_range(struct kvm_vcpu *vcpu, const uint64_t *a)
{
    struct kvm_run *run = vcpu->run;
    const gfn_t gfn = a[0] >> PAGE_SHIFT;

    if (!(vcpu->kvm->arch.hypercall_exit_enabled & 1u << KVM_HC_MAP_GPA_RANGE))
        return -KVM_ENOSYS;
    if ((a[0] & ~PAGE_MASK) || !a[1] || gfn + a[1] <= gfn)
        return -KVM_EINVAL;
    run->exit_reason = KVM_EXIT_HYPERCALL;
    run->hypercall.nr = KVM_HC_MAP_GPA_RANGE;
    memset(run->hypercall.args, 0, sizeof(run->hypercall.args));
    memcpy(run->hypercall.args, a, 3 * sizeof(a[0]));
    run->hypercall.longmode = is_64_bit_mode(vcpu);
    vcpu->arch.complete_userspace_io = complete_hypercall_exit;
    return HC_TO_USER;
}

static int64_t do_hypercall(struct kvm_vcpu *vcpu, uint64_t nr, const uint64_t *a)
{
    if (kvm_x86_ops->get_cpl(vcpu) != 0)
        return -KVM_EPERM;
    switch (nr) {
    case KVM_HC_VAPIC_POLL_IRQ:
        return 0;
    case KVM_HC_CLOCK_PAIRING:
        return hc_clock_pairing(vcpu, a[0], a[1]);
    case KVM_HC_SEND_IPI:
        return guest_pv_has(vcpu, KVM_FEATURE_PV_SEND_IPI) ? hc_send_ipi(vcpu, a) : -KVM_ENOSYS;
    case KVM_HC_SCHED_YIELD:
        return guest_pv_has(vcpu, KVM_FEATURE_PV_SCHED_YIELD) ? hc_sched_yield(vcpu, a[0]) : -KVM_ENOSYS;
    case KVM_HC_MAP_GPA_RANGE:
        return hc_map_gpa_range(vcpu, a);
    }
    return -KVM_ENOSYS;
}

/* VMCALL and VMMCALL have the same length; an exit for #UD has none of its own. */
int kvm_skip_hypercall(struct kvm_vcpu *vcpu)
{
    const uint64_t rip = kvm_rip_read(vcpu) + 3, rflags = kvm_x86_ops->get_rflags(vcpu);

    kvm_rip_write(vcpu, is_64_bit_mode(vcpu) ? rip : (uint32_t)rip);
    kvm_x86_ops->set_interrupt_shadow(vcpu, 0);
    return unlikely(rflags & F_TF) ? kvm_vcpu_do_singlestep(vcpu) : 1;
}

static int make_hypercall(struct kvm_vcpu *vcpu)
{
    static const unsigned arg[] = {R_RAX, R_RBX, R_RCX, R_RDX, R_RSI};
    const bool wide = is_64_bit_mode(vcpu);
    uint64_t a[ARRAY_SIZE(arg)];
    int64_t ret;

    if (kvm_hv_hypercall_enabled(vcpu))
        return kvm_hv_hypercall(vcpu);
    for (unsigned i = 0; i < ARRAY_SIZE(arg); i++) {
        a[i] = kvm_register_read(vcpu, arg[i]);
        if (!wide)
            a[i] = (uint32_t)a[i];
    }
    ret = do_hypercall(vcpu, a[0], a + 1);
    if (ret == HC_TO_USER)
        return 0;
    kvm_register_write(vcpu, R_RAX, wide ? (uint64_t)ret : (uint32_t)ret);
    return kvm_skip_hypercall(vcpu);
}

static const uint8_t vmcall[3] = {0x0f, 0x01, 0xc1}, vmmcall[3] = {0x0f, 0x01, 0xd9};

/* The other vendor's instruction: as in Linux the right one is written over it and run again; where the guest's page is
 * read-only, the call is made. */
static int fix_hypercall(struct kvm_vcpu *vcpu)
{
    const uint8_t *native = kvm_guest_vendor_amd(vcpu) ? vmmcall : vmcall;
    const gva_t rip = kvm_get_linear_rip(vcpu);
    gpa_t gpa;

    if (!kvm_check_has_quirk(vcpu->kvm, KVM_X86_QUIRK_FIX_HYPERCALL_INSN)) {
        kvm_queue_exception(vcpu, VEC_UD);
        return 1;
    }
    if ((rip & ~PAGE_MASK) <= PAGE_SIZE - sizeof(vmcall) && kvm_mmu_gva_to_gpa(vcpu, rip, ACC_WRITE, &gpa) == 0 &&
        slot_for_write(vcpu, gpa) && kvm_vcpu_write_guest(vcpu, gpa, native, sizeof(vmcall)) == 0) {
        cpu_code_unverify(vcpu->arch.cpu);
        return 1;
    }
    return make_hypercall(vcpu);
}

/* VMCALL, which exits whatever the guest's vendor is */
int kvm_emulate_hypercall(struct kvm_vcpu *vcpu)
{
    return kvm_guest_vendor_amd(vcpu) ? fix_hypercall(vcpu) : make_hypercall(vcpu);
}

/* #UD is VMMCALL's, or RSM's, or the guest's own. */
int kvm_handle_ud(struct kvm_vcpu *vcpu)
{
    uint8_t bytes[3];

    if (vcpu->arch.in_smm && read_insn_bytes(vcpu, bytes, 2) == 2 && bytes[0] == 0x0f && bytes[1] == 0xaa)
        return kvm_emulate_rsm(vcpu);
    if (read_insn_bytes(vcpu, bytes, sizeof(bytes)) == sizeof(bytes) && !memcmp(bytes, vmmcall, sizeof(bytes)))
        return kvm_guest_vendor_amd(vcpu) ? make_hypercall(vcpu) : fix_hypercall(vcpu);
    kvm_queue_exception(vcpu, VEC_UD);
    return 1;
}
