/* SPDX-License-Identifier: MIT
 * acpi.c: the tables that a stock kernel needs (ACPI 6.4, "ACPI Software Programming Model"): RSDP, XSDT, FADT with
 * power off and reset, MADT with the interrupt controllers, DSDT with \_S5, the serial port and the clock. */
#include "vmm.h"
#include <string.h>

struct sdt_header {
    char signature[4];
    uint32_t length;
    uint8_t revision, checksum;
    char oem_id[6], oem_table_id[8];
    uint32_t oem_revision;
    char creator_id[4];
    uint32_t creator_revision;
} __attribute__((packed));

/* Where the next table goes, and the XSDT's entries so far. */
struct tables {
    struct machine *m;
    uint8_t *base;
    size_t used;
    uint64_t entry[8];
    unsigned entries;
};

static void put(struct tables *t, const void *data, size_t n)
{
    if (t->used + n <= ACPI_SIZE)
        memcpy(t->base + t->used, data, n);
    t->used += n;
}

static void put_le(struct tables *t, uint64_t v, unsigned n)
{
    put(t, &v, n);
}

static void put_zero(struct tables *t, size_t n)
{
    while (n--)
        put_le(t, 0, 1);
}

static uint8_t checksum(const uint8_t *p, size_t n)
{
    uint8_t sum = 0;

    while (n--)
        sum += *p++;
    return -sum;
}

static size_t table_begin(struct tables *t, const char *signature, uint8_t revision)
{
    struct sdt_header h = {.revision = revision,
                           .oem_id = "ANYKVM",
                           .oem_table_id = "ANYKVM  ",
                           .oem_revision = 1,
                           .creator_id = "AKVM",
                           .creator_revision = 1};
    size_t start;

    t->used = (t->used + 15) & ~15ul;
    start = t->used;
    memcpy(h.signature, signature, 4);
    put(t, &h, sizeof(h));
    return start;
}

/* Length and checksum; returns the table's guest-physical address. */
static uint64_t table_end(struct tables *t, size_t start)
{
    struct sdt_header *h = (struct sdt_header *)(t->base + start);

    if (t->used > ACPI_SIZE)
        return 0;
    h->length = t->used - start;
    h->checksum = checksum(t->base + start, h->length);
    return ACPI_BASE + start;
}

/* Generic address structure: system I/O */
static void put_gas_io(struct tables *t, uint16_t port, uint8_t bits, uint8_t access)
{
    put_le(t, 1, 1);
    put_le(t, bits, 1);
    put_le(t, 0, 1);
    put_le(t, access, 1);
    put_le(t, port, 8);
}

static uint64_t build_fadt(struct tables *t, uint64_t facs, uint64_t dsdt)
{
    size_t start = table_begin(t, "FACP", 6);

    put_le(t, facs, 4);
    put_le(t, dsdt, 4);
    put_le(t, 0, 1); /* reserved */
    put_le(t, 0, 1); /* preferred profile: unspecified */
    put_le(t, SCI_IRQ, 2);
    put_le(t, 0, 4);       /* SMI_CMD: always in ACPI mode */
    put_zero(t, 4);        /* ACPI_ENABLE, DISABLE, S4BIOS_REQ, PSTATE_CNT */
    put_le(t, PM_BASE, 4); /* PM1a event */
    put_le(t, 0, 4);
    put_le(t, PM_BASE + 4, 4); /* PM1a control */
    put_le(t, 0, 4);
    put_le(t, 0, 4);           /* PM2 control */
    put_le(t, PM_BASE + 8, 4); /* PM timer */
    put_zero(t, 8);            /* GPE0, GPE1 */
    put_le(t, 4, 1);           /* PM1_EVT_LEN */
    put_le(t, 2, 1);           /* PM1_CNT_LEN */
    put_le(t, 0, 1);
    put_le(t, 4, 1);     /* PM_TMR_LEN */
    put_zero(t, 4);      /* GPE lengths and base, CST_CNT */
    put_le(t, 0xfff, 2); /* C2, C3: none */
    put_le(t, 0xfff, 2);
    put_zero(t, 4);                /* FLUSH_SIZE, FLUSH_STRIDE */
    put_zero(t, 4);                /* DUTY, DAY_ALRM, MON_ALRM */
    put_le(t, 0x32, 1);            /* CENTURY */
    put_le(t, 1 << 2 | 1 << 3, 2); /* IAPC_BOOT_ARCH: no VGA, no MSI restriction bit; bit 1 clear: no 8042 */
    put_le(t, 0, 1);
    put_le(t, 1 << 0 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 10, 4); /* WBINVD, C1, no power and sleep buttons, RESET_REG */
    put_gas_io(t, 0xcf9, 8, 1);
    put_le(t, 6, 1); /* RESET_VALUE */
    put_zero(t, 2);  /* ARM_BOOT_ARCH */
    put_le(t, 0, 1); /* minor version */
    put_le(t, 0, 8); /* X_FIRMWARE_CTRL: the 32-bit field counts */
    put_le(t, dsdt, 8);
    put_gas_io(t, PM_BASE, 32, 2);
    put_zero(t, 12);
    put_gas_io(t, PM_BASE + 4, 16, 2);
    put_zero(t, 12);
    put_zero(t, 12);
    put_gas_io(t, PM_BASE + 8, 32, 3);
    put_zero(t, 12 + 12); /* GPE0, GPE1 */
    put_zero(t, 12 + 12); /* sleep control and status */
    put_zero(t, 8);       /* hypervisor vendor identity */
    return table_end(t, start);
}

static uint64_t build_madt(struct tables *t)
{
    size_t start = table_begin(t, "APIC", 4);
    static const struct {
        uint8_t irq, gsi;
        uint16_t flags;
    } overrides[] = {{0, 2, 0}, {SCI_IRQ, SCI_IRQ, 0x000d /* active high, level */}};

    put_le(t, LAPIC_BASE, 4);
    put_le(t, 1, 4); /* PCAT_COMPAT: two 8259s as well */
    for (unsigned i = 0; i < t->m->config.cpus; i++) {
        put_le(t, 0x0800, 2); /* type 0, length 8 */
        put_le(t, i, 1);
        put_le(t, i, 1);
        put_le(t, 1, 4); /* enabled */
    }
    put_le(t, 0x0c01, 2); /* IOAPIC */
    put_le(t, 0, 2);      /* its id */
    put_le(t, IOAPIC_BASE, 4);
    put_le(t, 0, 4);
    for (unsigned i = 0; i < ARRAY_SIZE(overrides); i++) {
        put_le(t, 0x0a02, 2);
        put_le(t, 0, 1);
        put_le(t, overrides[i].irq, 1);
        put_le(t, overrides[i].gsi, 4);
        put_le(t, overrides[i].flags, 2);
    }
    put_le(t, 0x0604, 2); /* LINT1 of all processors is NMI */
    put_le(t, 0xff, 1);
    put_le(t, 0, 2);
    put_le(t, 1, 1);
    return table_end(t, start);
}

/* ---- AML (ACPI 6.4, "ACPI Machine Language Specification") ---- */
static void aml_name(struct tables *t, const char *seg)
{
    put_le(t, 0x08, 1);
    put(t, seg, 4);
}

static void aml_dword(struct tables *t, uint32_t v)
{
    put_le(t, 0x0c, 1);
    put_le(t, v, 4);
}

/* A package length of the two-byte form, for contents of n bytes. */
static void aml_length(struct tables *t, unsigned n)
{
    n += 2;
    put_le(t, 0x40 | (n & 15), 1);
    put_le(t, n >> 4, 1);
}

/* "PNP0501" as a compressed id (ACPI 6.4, "EISAID") */
static uint32_t eisa_id(const char *id)
{
    uint32_t v = (uint32_t)(id[0] - 0x40) << 26 | (uint32_t)(id[1] - 0x40) << 21 | (uint32_t)(id[2] - 0x40) << 16;

    for (int i = 0; i < 4; i++) {
        char c = id[3 + i];
        v |= (uint32_t)(c <= '9' ? c - '0' : c - 'A' + 10) << (12 - 4 * i);
    }
    return __builtin_bswap32(v);
}

/* Device (name) { _HID, _UID, _CRS { IO (base, len) IRQ (irq) } } */
static void aml_isa_device(struct tables *t, const char *name, const char *hid, uint16_t base, uint8_t len, int irq)
{
    const unsigned res = 8 + 3 + 2, buffer = 1 + 2 + 2 + res, body = 4 + (5 + 5) + (5 + 2) + (5 + buffer);

    put_le(t, 0x825b, 2); /* DeviceOp */
    aml_length(t, body);
    put(t, name, 4);
    aml_name(t, "_HID");
    aml_dword(t, eisa_id(hid));
    aml_name(t, "_UID");
    put_le(t, 0x010a, 2);
    aml_name(t, "_CRS");
    put_le(t, 0x11, 1); /* Buffer */
    aml_length(t, 2 + res);
    put_le(t, 0x0a, 1);
    put_le(t, res, 1);
    put_le(t, 0x0147, 2); /* I/O port descriptor, 16-bit decode */
    put_le(t, base, 2);
    put_le(t, base, 2);
    put_le(t, 1, 1);
    put_le(t, len, 1);
    put_le(t, 0x22, 1); /* IRQ descriptor */
    put_le(t, 1u << irq, 2);
    put_le(t, 0x79, 1); /* end tag; checksum 0: not used */
    put_le(t, 0, 1);
}

static uint64_t build_dsdt(struct tables *t)
{
    size_t start = table_begin(t, "DSDT", 2), scope;
    static const uint8_t s5[] = {0x12, 0x08, 0x04, 0x0a, SLP_TYP_S5, 0x0a, SLP_TYP_S5, 0x00, 0x00};

    aml_name(t, "_S5_");
    put(t, s5, sizeof(s5));
    put_le(t, 0x10, 1); /* Scope (\_SB) */
    scope = t->used;
    put_le(t, 0, 2);
    put(t, "\\_SB_", 5);
    aml_isa_device(t, "COM1", "PNP0501", 0x3f8, 8, 4);
    aml_isa_device(t, "RTC0", "PNP0B00", 0x70, 2, 8);
    t->base[scope] = 0x40 | ((t->used - scope) & 15);
    t->base[scope + 1] = (t->used - scope) >> 4;
    return table_end(t, start);
}

static uint64_t build_facs(struct tables *t)
{
    size_t start;

    t->used = (t->used + 63) & ~63ul;
    start = t->used;
    put(t, "FACS", 4);
    put_le(t, 64, 4);
    put_zero(t, 24);
    put_le(t, 2, 1);
    put_zero(t, 31);
    return ACPI_BASE + start;
}

int acpi_build(struct machine *m, uint64_t *rsdp)
{
    struct tables t = {.m = m, .base = machine_ram(m, ACPI_BASE, ACPI_SIZE)};
    uint64_t facs, dsdt, xsdt;
    uint8_t *r;
    size_t start;

    if (!t.base)
        return vmm_error("-m: too little RAM for firmware tables; use at least 2M");
    memset(t.base, 0, ACPI_SIZE);
    t.used = 64; /* the RSDP comes first */
    facs = build_facs(&t);
    dsdt = build_dsdt(&t);
    t.entry[t.entries++] = build_fadt(&t, facs, dsdt);
    t.entry[t.entries++] = build_madt(&t);
    start = table_begin(&t, "XSDT", 1);
    put(&t, t.entry, t.entries * sizeof(t.entry[0]));
    xsdt = table_end(&t, start);
    if (!xsdt)
        return vmm_error("ACPI tables need more than %llu bytes", (unsigned long long)ACPI_SIZE);
    r = t.base;
    memcpy(r, "RSD PTR ", 8);
    memcpy(r + 9, "ANYKVM", 6);
    r[15] = 2;
    r[20] = 36;
    memcpy(r + 24, &xsdt, 8);
    r[8] = checksum(r, 20);
    r[32] = checksum(r, 36);
    *rsdp = ACPI_BASE;
    return 0;
}
