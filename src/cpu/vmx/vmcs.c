/* SPDX-License-Identifier: MIT
 * vmcs.c: the fields of a VMCS: VMREAD and VMWRITE (SDM 3C, "VMREAD", "VMWRITE"; SDM 3D, "Field Encoding in VMCS"). */
#include "vmx/vmx_unit.h"

/* Bits of an encoding: 0 high access, 9:1 index, 11:10 type, 14:13 width; all others are 0. */
#define ENC_HIGH       1u
#define ENC_RESERVED   0xffff9000u
#define ENC_WIDTH(e)   ((e) >> 13 & 3u)
#define ENC_TYPE(e)    ((e) >> 10 & 3u)
#define ENC_INDEX(e)   ((e) >> 1 & 0x1ffu)
#define KEY_INDEX_BITS 5 /* the highest index that exists is below 32 */
#define ENC_KEY(e)     ((ENC_WIDTH(e) << 2 | ENC_TYPE(e)) << KEY_INDEX_BITS | ENC_INDEX(e))

struct field {
    const char *name;
    uint64_t mask;  /* its width */
    uint16_t stale; /* enum vmcs_stale */
    bool readonly;
    uint8_t wide; /* a 64-bit field: has a high half */
};

enum {
#define VMCS_FIELD(name, encoding, bits, area, access) SLOT_##name,
#include "vmcs.def"
#undef VMCS_FIELD
    SLOTS
};

#define MASK_16 0xffffull
#define MASK_32 0xffffffffull
#define MASK_64 ~0ull
#define MASK_N  ~0ull
#define WIDE_16 0
#define WIDE_32 0
#define WIDE_64 1
#define WIDE_N  0
#define RO_RW   false
#define RO_RO   true

static struct field fields[SLOTS] = {
#define VMCS_FIELD(name, encoding, bits, area, access) \
    [SLOT_##name] = {#name, MASK_##bits, STALE_ALL, RO_##access, WIDE_##bits},
#include "vmcs.def"
#undef VMCS_FIELD
};

static const uint32_t encodings[SLOTS] = {
#define VMCS_FIELD(name, encoding, bits, area, access) encoding,
#include "vmcs.def"
#undef VMCS_FIELD
};

static const uint8_t slot_of_key[1u << (4 + KEY_INDEX_BITS)] = {
/* slot + 1, or 0 */
#define VMCS_FIELD(name, encoding, bits, area, access) [ENC_KEY(encoding)] = SLOT_##name + 1,
#include "vmcs.def"
#undef VMCS_FIELD
};

/* What a write of a field makes stale: by its area, guest fields more finely. */
static uint16_t stale_of(unsigned slot)
{
    const uint32_t e = encodings[slot];

    switch (ENC_TYPE(e)) {
    case 0:
        return e == VM_ENTRY_INTR_INFO_FIELD || e == VM_ENTRY_EXCEPTION_ERROR_CODE || e == VM_ENTRY_INSTRUCTION_LEN
                   ? STALE_INJECT
                   : STALE_CONTROLS;
    case 1:
        return STALE_NONE; /* exit information: not written by VMWRITE */
    case 3:
        return STALE_HOST;
    }
    switch (e) {
    case GUEST_RIP:
        return STALE_RIP;
    case GUEST_RFLAGS:
        return STALE_RFLAGS;
    case GUEST_RSP:
    case GUEST_SMBASE:
    case VMX_PREEMPTION_TIMER_VALUE:
    case GUEST_INTR_STATUS:
        return STALE_NONE;
    case GUEST_INTERRUPTIBILITY_INFO:
    case GUEST_ACTIVITY_STATE:
    case GUEST_PENDING_DBG_EXCEPTIONS:
    case VMCS_LINK_POINTER:
        return STALE_NONREG;
    case GUEST_PDPTR0:
    case GUEST_PDPTR1:
    case GUEST_PDPTR2:
    case GUEST_PDPTR3:
        return STALE_PDPTE;
    case GUEST_GDTR_BASE:
    case GUEST_GDTR_LIMIT:
    case GUEST_IDTR_BASE:
    case GUEST_IDTR_LIMIT:
        return STALE_TABLES;
    case GUEST_CR0:
    case GUEST_CR3:
    case GUEST_CR4:
    case GUEST_DR7:
    case GUEST_IA32_DEBUGCTL:
    case GUEST_IA32_PAT:
    case GUEST_IA32_EFER:
    case GUEST_IA32_PERF_GLOBAL_CTRL:
    case GUEST_SYSENTER_CS:
    case GUEST_SYSENTER_ESP:
    case GUEST_SYSENTER_EIP:
        return STALE_CR;
    default:
        return STALE_SEG;
    }
}

__attribute__((constructor)) static void fill_stale(void)
{
    for (unsigned i = 0; i < SLOTS; i++)
        fields[i].stale = stale_of(i);
}

bool vmcs_lookup(uint32_t encoding, unsigned *index)
{
    unsigned slot;

    if (unlikely(encoding & ENC_RESERVED || ENC_INDEX(encoding) >> KEY_INDEX_BITS))
        return false;
    slot = slot_of_key[ENC_KEY(encoding)];
    if (unlikely(!slot || (encoding & ENC_HIGH && !fields[slot - 1].wide)))
        return false;
    *index = slot - 1;
    return true;
}

const char *vmcs_field_name(unsigned index)
{
    return index < SLOTS ? fields[index].name : NULL;
}

enum vmx_result vmx_read(struct cpu *cpu, unsigned level, uint32_t field, uint64_t *value)
{
    struct vmcs *v = cpu->vmx->level[level].cur;
    unsigned slot;

    if (unlikely(!v))
        return VMX_FAIL_INVALID;
    if (unlikely(!vmcs_lookup(field, &slot)))
        return vmx_fail(cpu, level, VMXERR_BAD_FIELD);
    *value = *vmcs_slot(v, slot) >> (field & ENC_HIGH ? 32 : 0);
    return VMX_OK;
}

enum vmx_result vmx_write(struct cpu *cpu, unsigned level, uint32_t field, uint64_t value)
{
    struct vmcs *v = cpu->vmx->level[level].cur;
    uint64_t *p;
    unsigned slot;

    if (unlikely(!v))
        return VMX_FAIL_INVALID;
    if (unlikely(!vmcs_lookup(field, &slot)))
        return vmx_fail(cpu, level, VMXERR_BAD_FIELD);
    if (unlikely(fields[slot].readonly))
        return vmx_fail(cpu, level, VMXERR_READONLY_FIELD);
    p = vmcs_slot(v, slot);
    value &= fields[slot].mask;
    if (unlikely(field & ENC_HIGH))
        value = (uint32_t)*p | value << 32;
    if (*p == value)
        return VMX_OK; /* what was checked is still true */
    *p = value;
    cpu->vmx->level[level].stale |= fields[slot].stale;
    return VMX_OK;
}

enum vmx_result cpu_vmread(struct cpu *cpu, uint32_t field, uint64_t *value)
{
    return vmx_read(cpu, 0, field, value);
}

enum vmx_result cpu_vmwrite(struct cpu *cpu, uint32_t field, uint64_t value)
{
    return vmx_write(cpu, 0, field, value);
}
