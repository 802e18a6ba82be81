/* SPDX-License-Identifier: MIT
 * cpu.c: domains and cpus are made and destroyed here; engines, kick, counters, trace, dump and the TSC's frequency. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "sys/cpu_sys.h"
#include "engine.h"
#include "mem/mem.h"
#include "vmx/vmx_int.h"

struct cpu *cpu_current_debug;

/* ---- engines ---- */
#define ENGINE_MAX 8
static const struct engine *engines[ENGINE_MAX];
static unsigned nengines;

void engine_register(const struct engine *engine)
{
    if (nengines < ENGINE_MAX)
        engines[nengines++] = engine;
}

/* From the fastest to the plainest; check is only taken by name. */
static const char *const preferred[] = {"jit", "interp"};

static const struct engine *engine_by_name(const char *name)
{
    for (unsigned i = 0; i < nengines; i++)
        if (strcmp(engines[i]->name, name) == 0 && (!engines[i]->supported || engines[i]->supported()))
            return engines[i];
    return NULL;
}

const struct engine *engine_find(const char *name)
{
    const struct engine *e = NULL;

    if (name)
        return engine_by_name(name);
    for (unsigned i = 0; i < ARRAY_SIZE(preferred) && !e; i++)
        e = engine_by_name(preferred[i]);
    return e;
}

bool cpu_hardened;

bool cpu_engine_exists(const char *name)
{
    return name && engine_by_name(name);
}

const char *cpu_engine_name(const struct cpu *cpu)
{
    return cpu->engine_chosen->name;
}

/* ---- domains ---- */
struct cpu_domain *cpu_domain_create(void)
{
    struct cpu_domain *d = calloc(1, sizeof(*d));

    if (!d)
        return NULL;
    host_init();
    if (pthread_mutex_init(&d->lock, NULL))
        goto free_domain;
    if (pthread_mutex_init(&d->exclusive, NULL))
        goto destroy_lock;
    if (mem_domain_init(d))
        goto destroy_exclusive;
    if (code_domain_init(d))
        goto destroy_mem;
    return d;

destroy_mem:
    mem_domain_destroy(d);
destroy_exclusive:
    pthread_mutex_destroy(&d->exclusive);
destroy_lock:
    pthread_mutex_destroy(&d->lock);
free_domain:
    free(d);
    return NULL;
}

/* Every cpu of it is destroyed already. */
void cpu_domain_destroy(struct cpu_domain *d)
{
    if (!d)
        return;
    code_domain_destroy(d);
    mem_domain_destroy(d);
    pthread_mutex_destroy(&d->exclusive);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

/* ---- cpus ---- */
static const struct cpu_unit {
    int (*init)(struct cpu *);
    void (*destroy)(struct cpu *);
} units[] = {
    {mem_cpu_init, mem_cpu_destroy},
    {code_cpu_init, code_cpu_destroy},
    {fpu_cpu_init, fpu_cpu_destroy},
    {vmx_cpu_init, vmx_cpu_destroy},
};

static void destroy_units(struct cpu *cpu, unsigned n)
{
    while (n-- > 0)
        units[n].destroy(cpu);
}

static bool domain_add(struct cpu_domain *d, struct cpu *cpu)
{
    bool added = false;

    pthread_mutex_lock(&d->lock);
    if (d->ncpus < CPU_MAX) {
        d->cpus[d->ncpus++] = cpu;
        added = true;
    }
    pthread_mutex_unlock(&d->lock);
    return added;
}

static void domain_remove(struct cpu_domain *d, struct cpu *cpu)
{
    pthread_mutex_lock(&d->lock);
    for (unsigned i = 0; i < d->ncpus; i++) {
        if (d->cpus[i] != cpu)
            continue;
        d->cpus[i] = d->cpus[--d->ncpus];
        d->cpus[d->ncpus] = NULL;
        break;
    }
    pthread_mutex_unlock(&d->lock);
}

/* In a file, so that the flat tables can have it mapped in front of each (flat.h). */
static struct cpu *struct_alloc(void)
{
    const int fd = memfd_create("anykvm-cpu", MFD_CLOEXEC);
    struct cpu *cpu = MAP_FAILED;

    if (fd >= 0 && ftruncate(fd, CPU_SPAN) == 0)
        cpu = mmap(NULL, CPU_SPAN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (cpu == MAP_FAILED) {
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    close(fd);
    madvise(cpu, CPU_SPAN, MADV_DONTFORK);
    return cpu;
}

static void struct_free(struct cpu *cpu)
{
    munmap(cpu, CPU_SPAN);
}

struct cpu *cpu_create(struct cpu_domain *domain, unsigned id, const char *engine_name)
{
    const struct engine *engine = engine_find(engine_name);
    struct cpu *cpu;
    unsigned n = 0;

    if (!engine)
        return NULL;
    cpu = struct_alloc();
    if (!cpu)
        return NULL;
    cpu->id = id;
    cpu->domain = domain;
    cpu->engine_chosen = engine;
    cpuid_cpu_init(cpu);
    for (; n < ARRAY_SIZE(units); n++)
        if (units[n].init(cpu))
            goto fail;
    cpu_reset(cpu, false);
    if (!domain_add(domain, cpu))
        goto fail;
    cpu_current_debug = cpu;
    return cpu;

fail:
    destroy_units(cpu, n);
    struct_free(cpu);
    return NULL;
}

/* An engine may need much address space (flat.h): a processor has its share from its first entry on, for a VM may have
 * hundreds that never run. Where none is left, the interpreter serves. */
void cpu_engine_start(struct cpu *cpu)
{
    const struct engine *engine = cpu->engine_chosen;

    if (engine->init && engine->init(cpu)) {
        if (engine->destroy)
            engine->destroy(cpu);
        engine = &interp_engine;
    }
    cpu->engine = engine;
    tlb_select(cpu);
}

void cpu_destroy(struct cpu *cpu)
{
    if (!cpu)
        return;
    if (cpu_current_debug == cpu)
        cpu_current_debug = NULL;
    domain_remove(cpu->domain, cpu);
    cpu_emulate_cancel(cpu);
    if (cpu->engine && cpu->engine->destroy)
        cpu->engine->destroy(cpu);
    destroy_units(cpu, ARRAY_SIZE(units));
    struct_free(cpu);
}

void cpu_kick(struct cpu *cpu)
{
    cpu_attend(cpu, ATT_KICK);
}

bool cpu_in_guest(const struct cpu *cpu)
{
    return __atomic_load_n(&cpu->in_guest_mode, __ATOMIC_RELAXED);
}

/* ---- counters and trace ---- */
const char *const cpu_counter_names[CC_COUNT] = {
#define C(name, text) text,
#include "counters.def"
#undef C
};

const uint64_t *cpu_counters(const struct cpu *cpu)
{
    return cpu->counters;
}

unsigned cpu_trace_mask;
static void (*trace_line)(const char *text);

void cpu_set_trace(unsigned mask, void (*line)(const char *text))
{
    trace_line = line;
    cpu_trace_mask = line ? mask : 0;
}

void cpu_trace(struct cpu *cpu, const char *format, ...)
{
    void (*const line)(const char *text) = trace_line;
    char text[256];
    va_list args;
    int n;

    if (!line)
        return;
    host_fpu_save(cpu);
    n = snprintf(text, sizeof(text), "cpu%u: ", cpu->id);
    va_start(args, format);
    vsnprintf(text + n, sizeof(text) - (size_t)n, format, args);
    va_end(args);
    line(text);
}

/* ---- dump ---- */
/* Outside of guest mode the VMCS is the truth. What is looked at must leave no trace in the cpu. */
struct look {
    struct cpu_state s;
    struct event pending;
    struct exit_info exit;
    bool outside;
};

static void look_begin(struct cpu *cpu, struct look *look)
{
    host_fpu_save(cpu);
    look->s = cpu->s;
    look->pending = cpu->pending;
    look->exit = cpu->exit;
    look->outside = !cpu->in_guest_mode;
    if (!look->outside)
        return;
    if (cpu_vmptrst(cpu) != ~0ull)
        vmx_load_guest_state(cpu);
    mem_guest_enter(cpu); /* translations are used: whoever takes memory away waits for us */
}

static void look_end(struct cpu *cpu, const struct look *look)
{
    cpu->s = look->s;
    cpu->pending = look->pending;
    cpu->exit = look->exit;
    cpu_mode_changed(cpu);
    if (look->outside)
        mem_guest_leave(cpu);
}

static void insn_text(struct cpu *cpu, char *buf, size_t size)
{
    const gva_t gva = cpu->s.mode == MODE_64 ? cpu->s.rip : (uint32_t)(cpu->s.rip + cpu->s.seg[SEG_CS].base);
    uint8_t bytes[15];
    unsigned got = 0;
    struct insn in;

    snprintf(buf, size, "?");
    if (mem_fetch(cpu, gva, bytes, sizeof(bytes), &got) != CPU_OK || got == 0)
        return;
    host_fpu_save(cpu);
    if (insn_decode(bytes, got, (enum cpu_mode)cpu->s.mode, &in) == 0)
        insn_print(&in, cpu->s.rip, buf, size);
}

void cpu_insn_text(struct cpu *cpu, char *buf, size_t size)
{
    struct look look;

    look_begin(cpu, &look);
    insn_text(cpu, buf, size);
    look_end(cpu, &look);
}

static void dump_segment(FILE *f, const char *name, const struct segment *seg)
{
    fprintf(f, "%-4s %04x base %016llx limit %08x attr %05x\n", name, seg->sel, (unsigned long long)seg->base,
            seg->limit, seg->attr);
}

void cpu_dump(struct cpu *cpu, FILE *f)
{
    static const char *const gprs[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                       "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    static const char *const segs[] = {"es", "cs", "ss", "ds", "fs", "gs"};
    const struct cpu_state *s = &cpu->s;
    struct look look;
    char text[128];

    look_begin(cpu, &look);
    insn_text(cpu, text, sizeof(text));
    fprintf(f, "cpu%u %s rip %016llx rflags %08llx cpl %u mode %u: %s\n", cpu->id, cpu_engine_name(cpu),
            (unsigned long long)s->rip, (unsigned long long)cpu_get_rflags(s), s->cpl, s->mode, text);
    for (unsigned i = 0; i < 16; i++)
        fprintf(f, "%-3s %016llx%c", gprs[i], (unsigned long long)s->gpr[i], i % 4 == 3 ? '\n' : ' ');
    for (unsigned i = 0; i < 6; i++)
        dump_segment(f, segs[i], &s->seg[i]);
    dump_segment(f, "ldtr", &s->ldtr);
    dump_segment(f, "tr", &s->tr);
    fprintf(f, "gdt %016llx/%04x idt %016llx/%04x\n", (unsigned long long)s->gdtr.base, s->gdtr.limit,
            (unsigned long long)s->idtr.base, s->idtr.limit);
    fprintf(f, "cr0 %08llx cr2 %016llx cr3 %016llx cr4 %08llx efer %04llx xcr0 %llx\n", (unsigned long long)s->cr0,
            (unsigned long long)s->cr2, (unsigned long long)s->cr3, (unsigned long long)s->cr4,
            (unsigned long long)s->efer, (unsigned long long)s->xcr0);
    fprintf(f, "interruptibility %x activity %u attention %x delivering %x\n", s->interruptibility, s->activity,
            atomic_load(&cpu->attention), cpu->delivering.valid ? cpu->delivering.vector : 0xffffffff);
    look_end(cpu, &look);
}

/* ---- time ---- */
uint64_t cpu_rdtsc(void)
{
    return __builtin_ia32_rdtsc();
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* A pair of TSC and clock: of several, the one whose clock reading took the fewest cycles. */
static void tsc_pair(uint64_t *tsc, uint64_t *ns)
{
    uint64_t best = ~0ull;

    for (unsigned i = 0; i < 16; i++) {
        const uint64_t before = cpu_rdtsc(), t = now_ns(), after = cpu_rdtsc();

        if (after - before >= best)
            continue;
        best = after - before;
        *tsc = before + best / 2;
        *ns = t;
    }
}

#define CALIBRATION_NS 64000000

static uint64_t calibrate(void)
{
    struct timespec wait = {0, CALIBRATION_NS};
    uint64_t tsc0, ns0, tsc1, ns1;

    tsc_pair(&tsc0, &ns0);
    while (nanosleep(&wait, &wait) && errno == EINTR)
        ;
    tsc_pair(&tsc1, &ns1);
    return (uint64_t)((unsigned __int128)(tsc1 - tsc0) * 1000000u / (ns1 - ns0));
}

static bool read_line(const char *path, char *buf, size_t size)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    ssize_t n;

    if (fd < 0)
        return false;
    n = read(fd, buf, size - 1);
    close(fd);
    if (n <= 0)
        return false;
    buf[n] = '\0';
    buf[strcspn(buf, "\n")] = '\0';
    return true;
}

/* $XDG_CACHE_HOME/anykvm/tsc or ~/.cache/anykvm/tsc: "<boot id> <kHz>". */
static bool cache_path(char *path, size_t size)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n;

    if (xdg && xdg[0] == '/') {
        n = snprintf(path, size, "%s", xdg);
    } else {
        if (!home || home[0] != '/')
            return false;
        n = snprintf(path, size, "%s/.cache", home);
    }
    if (n < 0 || (size_t)n + sizeof("/anykvm/tsc.4294967295") > size)
        return false;
    mkdir(path, 0700);
    snprintf(path + n, size - (size_t)n, "/anykvm");
    mkdir(path, 0700);
    snprintf(path + n, size - (size_t)n, "/anykvm/tsc");
    return true;
}

static bool plausible(uint64_t khz)
{
    return khz >= 100000 && khz <= 20000000;
}

static uint64_t cached_khz(const char *path, const char *boot)
{
    char line[128], *space;
    uint64_t khz;

    if (!read_line(path, line, sizeof(line)))
        return 0;
    space = strchr(line, ' ');
    if (!space || (size_t)(space - line) != strlen(boot) || strncmp(line, boot, strlen(boot)) != 0)
        return 0;
    khz = strtoull(space + 1, NULL, 10);
    return plausible(khz) ? khz : 0;
}

static void store_khz(const char *path, const char *boot, uint64_t khz)
{
    char temp[4200];
    int fd;

    snprintf(temp, sizeof(temp), "%s.%u", path, (unsigned)getpid());
    fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return;
    const bool written = dprintf(fd, "%s %llu\n", boot, (unsigned long long)khz) > 0;
    close(fd);
    if (!written || rename(temp, path)) /* whole or not at all, for other processes read it */
        unlink(temp);
}

static uint64_t tsc_khz_once(void)
{
    char path[4096], boot[64];
    const bool cached =
        read_line("/proc/sys/kernel/random/boot_id", boot, sizeof(boot)) && cache_path(path, sizeof(path));
    uint64_t khz = cached ? cached_khz(path, boot) : 0;

    if (khz)
        return khz;
    khz = calibrate();
    if (cached)
        store_khz(path, boot, khz);
    return khz;
}

uint64_t cpu_tsc_khz(void)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static uint64_t khz;

    pthread_mutex_lock(&lock);
    if (!khz)
        khz = tsc_khz_once();
    pthread_mutex_unlock(&lock);
    return khz;
}
