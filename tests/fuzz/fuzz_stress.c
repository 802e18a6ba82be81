/* SPDX-License-Identifier: MIT
 * fuzz_stress.c: guests that are hard on what an engine keeps: code that rewrites itself in a tight loop (by each kind
 * of store, through an alias too), a new mapping for every access, the whole address space mapped, code on every page
 * of memory and more of it than the caches hold, one page of code at thousands of addresses. Results are exact, kicks
 * are answered at once, the process stays within bounds. */
#include "fuzz.h"

#define RAM     (64u << 20)
#define TABLES  0x1000u
#define PT      0x8000u /* the page table of ALIAS */
#define CODE    0x10000u
#define VARS    0x20000u
#define ALIAS   0x40000000ull /* 2 MiB whose pages the guest maps */
#define PROGRAM 0x1000000u    /* 32 MiB of generated code and data */

#define V(name) #name
#define STR(x)  V(x)
#define GUEST(id, text)                                                                \
    extern const uint8_t s_##id[], s_##id##_end[];                                     \
    __asm__(".pushsection .rodata\n.globl s_" #id ", s_" #id "_end\ns_" #id ":\n" text \
            "\n1: out %al, $0x10; jmp 1b\ns_" #id "_end:\n.popsection\n")

/* RCX times: the immediate of the instruction at 2: becomes RCX by the store at STORE, and is then added up. R8 is the
 * address of the immediate, R9 the one that is stored to (an alias perhaps). */
#define SELF(id, store)                                                                          \
    GUEST(id, "xor %eax, %eax; lea 2f+1(%rip), %r8; lea -" STR(CODE) "(%r8,%r9), %r9; lea " STR( \
                  VARS) ", %rsi\n"                                                               \
                        "3: " store "\n2: mov $0x11111111, %edx; add %rdx, %rax; dec %rcx; jnz 3b")
SELF(self32, "mov %ecx, (%r9)");
SELF(self_locked, "lock andl $0, (%r9); lock orl %ecx, (%r9)");
SELF(self_bytes, "mov %ecx, %edx; mov %dl, (%r9); shr $8, %edx; mov %dl, 1(%r9); shr $8, %edx; mov %dl, 2(%r9);"
                 "shr $8, %edx; mov %dl, 3(%r9)");
SELF(self_movs, "mov %ecx, (%rsi); mov %r9, %rdi; movsl; lea " STR(VARS) ", %rsi");
SELF(self_rep, "mov %ecx, (%rsi); mov %r9, %rdi; mov %rcx, %rbx; mov $4, %ecx; rep movsb; mov %rbx, %rcx; lea " STR(
                   VARS) ", %rsi");
SELF(self_xmm, "movups -4(%r9), %xmm0; pinsrw $2, %ecx, %xmm0; mov %ecx, %edx; shr $16, %edx; pinsrw $3, %edx, %xmm0;"
               "movups %xmm0, -4(%r9)");
SELF(self_push,
     "mov %rsp, %rbx; lea 8(%r9), %rsp; mov 4(%r9), %edx; shl $32, %rdx; or %rcx, %rdx; push %rdx; mov %rbx, %rsp");
SELF(self_cmpxchg, "mov %rax, %rbx; 4: mov (%r9), %eax; lock cmpxchg %ecx, (%r9); jne 4b; mov %rbx, %rax");
/* A page table entry, INVLPG and a store for each of RCX pages; then all of them are read back one to one. */
GUEST(map,
      "xor %eax, %eax; mov %rcx, %r10; mov $" STR(
          PROGRAM) ", %r8d\n"
                   "3: mov %ecx, %edx; and $511, %edx; lea " STR(
                       PT) "(,%rdx,8), %rbx; lea 3(%r8), %rdi; mov %rdi, (%rbx)\n"
                           "shl $12, %edx; add $" STR(
                               ALIAS) ", %rdx; invlpg (%rdx); mov %rcx, 8(%rdx); add $4096, %r8; dec %rcx; jnz 3b\n"
                                      "mov $" STR(PROGRAM) ", %r8d; mov %r10, %rcx; 4: add 8(%r8), %rax; add $4096, "
                                                           "%r8; dec %rcx; jnz 4b");
/* Calls of RCX functions, R9 bytes apart */
GUEST(calls, "xor %eax, %eax; mov %rcx, %r10; mov $2, %r11d; 5: mov %r10, %rcx; mov $" STR(
                 PROGRAM) ", %r8d\n"
                          "3: call *%r8; add %rdx, %rax; add %r9, %r8; dec %rcx; jnz 3b; dec %r11; jnz 5b");
/* One page of code at RCX addresses in turn, and other code on it the second time */
GUEST(aliases, "xor %eax, %eax; mov %rcx, %r10; mov $2, %r11d; 5: mov %r10, %rcx\n"
               "3: mov %ecx, %edx; and $511, %edx; lea " STR(PT) "(,%rdx,8), %rbx; movq $" STR(
                   PROGRAM) " + 3, (%rbx)\n"
                            "shl $12, %edx; add $" STR(
                                ALIAS) ", %rdx; mov %rdx, %rdi; call *%rdi; add %rdx, %rax; dec %rcx; jnz 3b\n"
                                       "addl $5, " STR(PROGRAM) " + 1; dec %r11; jnz 5b");

/* Everything is mapped, to RAM again and again: RCX pages R9 bytes apart, all over both halves, are read and written.
 */
GUEST(span, "xor %eax, %eax\n3: mov %rcx, %rdx; imul %r9, %rdx; shl $16, %rdx; sar $16, %rdx; mov %ecx, %ebx;"
            "and $4095, %ebx; shl $12, %ebx; lea " STR(PROGRAM) "(%rdx,%rbx), %rdx; mov (%rdx), %ebx;"
                                                                "mov %ebx, (%rdx); add %rbx, %rax; dec %rcx; jnz 3b");

#define G(id) s_##id, s_##id##_end
static const struct {
    const char *name;
    const uint8_t *code, *end;
    enum { SELF, MAP, CALLS, DECODED, TRANSLATED, ALIASES, SPAN } what;
} programs[] = {
    {"self32", G(self32), SELF},
    {"self_locked", G(self_locked), SELF},
    {"self_bytes", G(self_bytes), SELF},
    {"self_movs", G(self_movs), SELF},
    {"self_rep", G(self_rep), SELF},
    {"self_xmm", G(self_xmm), SELF},
    {"self_push", G(self_push), SELF},
    {"self_cmpxchg", G(self_cmpxchg), SELF},
    {"map", G(map), MAP},
    {"calls", G(calls), CALLS},
    {"aliases", G(aliases), ALIASES},
    {"decoded", G(calls), DECODED},
    {"translated", G(calls), TRANSLATED},
    {"span", G(span), SPAN},
};
#define PROGRAMS (sizeof(programs) / sizeof(programs[0]))

static int sys_fd, vm, vcpu;
static struct kvm_run *run;
static size_t run_size;
static uint8_t *ram;

#define GROWTH_MAX_KB (48 << 10) /* beside the guest's memory */

static void must(long result, const char *what)
{
    if (result < 0)
        fuzz_fail("%s: %s", what, strerror(errno));
}

static void create(void)
{
    struct kvm_userspace_memory_region m = {.memory_size = RAM};

    ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    fuzz_check(ram != MAP_FAILED, "no memory");
    must(sys_fd = anykvm_open("/dev/kvm", O_RDWR | O_CLOEXEC), "open");
    must(vm = anykvm_ioctl(sys_fd, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    m.userspace_addr = (uintptr_t)ram;
    must(anykvm_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &m), "slot");
    must(vcpu = anykvm_ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    run_size = (size_t)anykvm_ioctl(sys_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    run = anykvm_mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    fuzz_check(run != MAP_FAILED, "kvm_run");
}

static void destroy(void)
{
    munmap(run, run_size);
    anykvm_close(vcpu);
    anykvm_close(vm);
    anykvm_close(sys_fd);
    munmap(ram, RAM);
}

/* A counter of the vCPU's, by how the name that KVM_GET_STATS_FD gives it begins */
static uint64_t counter(const char *name)
{
    const int fd = anykvm_ioctl(vcpu, KVM_GET_STATS_FD, 0);
    struct kvm_stats_header h;
    uint64_t value = ~0ull;

    must(fd, "KVM_GET_STATS_FD");
    fuzz_check(pread(fd, &h, sizeof(h), 0) == sizeof(h), "statistics");
    for (uint32_t i = 0; i < h.num_desc; i++) {
        struct {
            struct kvm_stats_desc d;
            char name[128];
        } s = {0};
        const size_t size = sizeof(s.d) + h.name_size;

        fuzz_check(h.name_size < sizeof(s.name) &&
                       pread(fd, &s, size, h.desc_offset + i * (off_t)size) == (ssize_t)size,
                   "statistics");
        if (!strncmp(s.name, name, strlen(name)))
            fuzz_check(pread(fd, &value, 8, h.data_offset + s.d.offset) == 8, "statistics");
    }
    close(fd);
    fuzz_check(value != ~0ull, "no counter %s", name);
    return value;
}

/* Resident memory and page tables */
static long held_kb(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[128];
    long kb, sum = 0;

    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "VmRSS: %ld", &kb) == 1 || sscanf(line, "VmPTE: %ld", &kb) == 1)
            sum += kb;
    if (f)
        fclose(f);
    return sum;
}

static void map_everything(void)
{
    uint64_t *pml4 = (uint64_t *)(ram + TABLES), *pdpt = pml4 + 512, *pd = pml4 + 1024;

    for (uint64_t i = 0; i < 512; i++) {
        pml4[i] = (TABLES + 0x1000) | 3;
        pdpt[i] = (TABLES + 0x2000) | 3;
        pd[i] = (i << 21) % RAM | 0x83;
    }
}

static void start(struct kvm_regs regs)
{
    struct kvm_segment code = {.limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    struct kvm_segment data = {.limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    uint64_t *pml4 = (uint64_t *)(ram + TABLES), *pdpt = pml4 + 512, *pd = pml4 + 1024, *pd_alias = pml4 + 1536;
    struct kvm_sregs s;

    pml4[0] = (TABLES + 0x1000) | 3;
    pdpt[0] = (TABLES + 0x2000) | 3;
    pdpt[ALIAS >> 30] = (TABLES + 0x3000) | 3;
    pd_alias[0] = PT | 3;
    for (uint64_t i = 0; i < RAM >> 21; i++)
        pd[i] = i << 21 | 0x83;
    must(anykvm_ioctl(vcpu, KVM_GET_SREGS, &s), "KVM_GET_SREGS");
    s.cs = code;
    s.ds = s.es = s.fs = s.gs = s.ss = data;
    s.cr0 = 0x80010033;
    s.cr3 = TABLES;
    s.cr4 = 0x620;
    s.efer = 0x500;
    must(anykvm_ioctl(vcpu, KVM_SET_SREGS, &s), "KVM_SET_SREGS");
    regs.rip = CODE;
    regs.rsp = 0xf000;
    regs.rflags = 2;
    must(anykvm_ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

/* mov $n, %edx; ret, every `step` bytes */
static uint64_t put_functions(struct rng *r, uint64_t n, uint64_t step)
{
    uint64_t sum = 0;

    for (uint64_t i = 0; i < n; i++) {
        uint8_t *p = ram + PROGRAM + i * step;
        const uint32_t value = (uint32_t)rnd(r);

        p[0] = 0xba;
        memcpy(p + 1, &value, 4);
        p[5] = 0xc3;
        sum += value;
    }
    return sum;
}

/* What the guest is to find, and the sum that it comes to */
static uint64_t prepare(struct rng *r, unsigned p, struct kvm_regs *regs)
{
    const uint64_t slow = FUZZ_SANITIZED ? 10 : 1;
    uint64_t n, value, sum = 0;

    switch (programs[p].what) {
    case SELF:
        n = (20000 + rnd_below(r, 1000)) / slow;
        if (one_in(r, 2)) { /* through another linear address */
            *(uint64_t *)(ram + PT) = CODE | 3;
            regs->r9 = ALIAS;
        }
        sum = n * (n + 1) / 2;
        break;
    case MAP:
        n = 8192 / slow;
        sum = n * (n + 1) / 2;
        break;
    case CALLS:
    case DECODED:
    case TRANSLATED:
        regs->r9 = 16 + rnd_below(r, 200);
        n = programs[p].what == CALLS ? 100000 / slow : 100000; /* the others are to fill what is small already */
        sum = 2 * put_functions(r, n, regs->r9);
        break;
    case ALIASES:
        n = 5000 / slow;
        value = put_functions(r, 1, 16);
        sum = n * (value + (uint32_t)(value + 5));
        break;
    default:
        n = 10000 / slow;
        regs->r9 = (rnd_below(r, 1u << 21) * 2 + 1) * RAM;
        put_functions(r, 4096, 4096);
        for (uint64_t i = 1; i <= n; i++)
            sum += *(uint32_t *)(ram + PROGRAM + (i % 4096 << 12));
        break;
    }
    regs->rcx = n;
    return sum;
}

/* To the port, through kicks */
static void run_guest(struct rng *r, const char *name)
{
    const uint64_t begin = fuzz_now_ns();
    unsigned us = one_in(r, 2) ? 500 + (unsigned)rnd_below(r, 5000) : 20 * 1000000;
    int ret;

    do {
        fuzz_alarm(run, us);
        us += us / 8; /* a busy host gives us little of it */
        ret = anykvm_ioctl(vcpu, KVM_RUN, 0);
        fuzz_alarm_check();
        fuzz_check(fuzz_now_ns() - begin < 60 * 1000000000ull, "%s: does not end", name);
    } while (ret < 0 && errno == EINTR);
    fuzz_alarm_off();
    must(ret, name);
    fuzz_check(run->exit_reason == KVM_EXIT_IO, "%s: exit %u", name, run->exit_reason);
}

static void check_bounds(unsigned p, long before)
{
    const long grew = held_kb() - before;

    if (programs[p].what == DECODED)
        fuzz_check(counter("decoded code evicted") >= 2, "decoded code was not evicted");
    if (programs[p].what == TRANSLATED && counter("blocks translated"))
        fuzz_check(counter("translations dropped") >= 2, "the code cache was emptied %llu times",
                   (unsigned long long)counter("translations dropped"));
    fuzz_check(FUZZ_SANITIZED || grew < (long)(RAM >> 10) + GROWTH_MAX_KB, "%s: grew by %ld KB", programs[p].name,
               grew);
}

static void one(uint64_t seed)
{
    struct rng r = {seed * 0x2545f4914f6cdd1dull};
    const unsigned p = (unsigned)(seed % PROGRAMS);
    struct kvm_regs regs = {.r9 = CODE};
    const long before = held_kb();
    uint64_t want;

    if (programs[p].what == DECODED)
        setenv("ANYKVM_CODE_CACHE", "4", 1);
    if (programs[p].what == TRANSLATED)
        setenv("ANYKVM_JIT_CACHE", "2", 1);
    create();
    memcpy(ram + CODE, programs[p].code, (size_t)(programs[p].end - programs[p].code));
    want = prepare(&r, p, &regs);
    start(regs);
    if (programs[p].what == SPAN)
        map_everything();
    run_guest(&r, programs[p].name);
    unsetenv("ANYKVM_CODE_CACHE");
    unsetenv("ANYKVM_JIT_CACHE");
    must(anykvm_ioctl(vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
    fuzz_check(regs.rax == want, "%s: %#llx, not %#llx", programs[p].name, (unsigned long long)regs.rax,
               (unsigned long long)want);
    check_bounds(p, before);
    destroy();
}

int main(int argc, char **argv)
{
    static const struct fuzzer fuzzer = {
        .name = "fuzz_stress", .seconds = 10, .count = 2 * PROGRAMS, .case_seconds = 60, .one = one};

    return fuzz_main(&fuzzer, argc, argv);
}
