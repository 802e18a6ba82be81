/* SPDX-License-Identifier: MIT
 * host_run.c: one instruction on the host CPU. A breakpoint's signal frame is changed into the registers wanted, with
 * the trap flag; the step's or fault's frame holds the result. So every register, CS included, can be set and seen. */
#include "isa.h"
#include "host_direct.h"
#include <asm/ldt.h>
#include <errno.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define G_RIP 16 /* of glibc's gregs; insn.h took the name */
static const int greg_of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
bool host_repeats, host_free;
unsigned host_direct_ok;
static uint8_t *alias; /* the arena's pages, all writable */

static struct {
    volatile enum { IDLE, ENTER, RUN } phase;
    enum cpu_mode mode;
    const struct regs *in;
    struct outcome *out;
    unsigned steps;
    bool direct; /* host_direct.c runs it */
    gregset_t saved;
} job;

static void put_fpu(ucontext_t *uc, const struct xsave_area *from)
{
    struct xsave_area *to = (struct xsave_area *)uc->uc_mcontext.fpregs;

    memcpy(to, from, offsetof(struct xsave_area, reserved1)); /* bytes after it are the kernel's */
    to->mxcsr_mask = fpu_layout()->mxcsr_mask;
    to->xstate_bv = (to->xstate_bv & ~fpu_layout()->mask) | fpu_layout()->mask;
    for (unsigned i = 2; i < XFEATURES; i++)
        if (fpu_layout()->mask >> i & 1)
            memcpy((uint8_t *)to + fpu_layout()->comp[i].offset, (const uint8_t *)from + fpu_layout()->comp[i].offset,
                   fpu_layout()->comp[i].size);
}

static void get_fpu(const struct xsave_area *from, struct xsave_area *to)
{
    memcpy(to, from, cpu_fpu_area_size());
    fpu_area_init(to, fpu_layout()->mask & ~from->xstate_bv);
}

void segments_for(enum cpu_mode mode, uint16_t *cs, uint16_t *ss)
{
    *cs = mode == MODE_64 ? 0x33 : mode == MODE_COMPAT32 ? 0x23 : LDT_CODE16;
    *ss = mode == MODE_COMPAT16 ? LDT_DATA16 : 0x2b;
}

static void enter(ucontext_t *uc)
{
    greg_t *g = uc->uc_mcontext.gregs;
    uint16_t cs, ss;

    memcpy(job.saved, g, sizeof(job.saved));
    for (unsigned i = 0; i < 16; i++)
        g[greg_of[i]] = job.in->gpr[i];
    g[G_RIP] = job.in->rip;
    g[REG_EFL] = job.in->rflags | (host_free ? 0 : F_TF) | F_IF;
    segments_for(job.mode, &cs, &ss);
    g[REG_CSGSFS] = (g[REG_CSGSFS] & 0x0000ffffffff0000ll) | cs | (greg_t)ss << 48;
    uc->uc_flags |= 6; /* UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS: SS is taken from the frame */
    put_fpu(uc, job.in->fpu);
    job.phase = RUN;
}

static void leave(ucontext_t *uc)
{
    greg_t *g = uc->uc_mcontext.gregs;
    struct outcome *o = job.out;

    for (unsigned i = 0; i < 16; i++)
        o->r.gpr[i] = g[greg_of[i]];
    o->r.rip = g[G_RIP];
    o->r.rflags = g[REG_EFL];
    o->vector = g[REG_TRAPNO];
    o->error = g[REG_ERR];
    o->cr2 = g[REG_CR2];
    get_fpu((const struct xsave_area *)uc->uc_mcontext.fpregs, o->r.fpu);
    if (job.direct) {
        const struct direct_exit e = host_direct_exit();

        o->r.gpr[R_RSP] = job.in->gpr[R_RSP];
        g[G_RIP] = e.rip;
        g[REG_RSP] = e.rsp;
        g[REG_EFL] = F_IF | F_RESERVED;
    } else {
        memcpy(g, job.saved, sizeof(job.saved));
    }
    uc->uc_flags |= 6;
    ((struct xsave_area *)uc->uc_mcontext.fpregs)->xstate_bv = 0; /* C code: everything initial */
    ((struct xsave_area *)uc->uc_mcontext.fpregs)->mxcsr = MXCSR_INIT;
    job.phase = IDLE;
}

static void on_signal(int sig, siginfo_t *si, void *context)
{
    ucontext_t *uc = context;

    if (job.phase == ENTER) {
        enter(uc);
        return;
    }
    if (job.phase == RUN) {
        if (host_repeats && uc->uc_mcontext.gregs[REG_TRAPNO] == VEC_DB &&
            (uint64_t)uc->uc_mcontext.gregs[G_RIP] == job.in->rip && ++job.steps < MAX_STEPS)
            return; /* a string instruction goes on */
        leave(uc);
        return;
    }
    if (host_fault(sig, si, uc))
        return;
    fprintf(stderr, "isa: signal %d at %#llx in the harness\n", sig, (long long)uc->uc_mcontext.gregs[G_RIP]);
    signal(sig, SIG_DFL);
}

__attribute__((noinline)) static void breakpoint(void)
{
    __asm__ volatile("int3" ::: "memory");
}

static void run_here(enum cpu_mode mode, const struct regs *in, struct outcome *out)
{
    const uint16_t data = mode == MODE_COMPAT16 ? LDT_DATA16 : 0x2b;

    job.mode = mode;
    job.in = in;
    job.out = out;
    job.steps = 0;
    __asm__ volatile("mov %0, %%ds\n mov %0, %%es" : : "r"((uint32_t)data));
    job.direct = host_direct_ok;
    if (job.direct) {
        const struct xsave_area *fpu;

        job.phase = RUN;
        fpu = host_direct_call(in);
        if (job.phase == RUN) { /* no signal */
            host_direct_result(in, &out->r);
            out->r.rip = in->rip + host_direct_ok;
            out->vector = -1;
            get_fpu(fpu, out->r.fpu);
            job.phase = IDLE;
        }
    } else {
        job.phase = ENTER;
        breakpoint();
    }
    if (out->vector == VEC_DB)
        out->vector = -1;
    if (out->vector != VEC_PF)
        out->cr2 = 0;
    if (out->vector < 0)
        out->error = 0;
}

/* ---- in another process ---- */
static struct remote {
    _Atomic uint32_t turn; /* odd: the other process's */
    enum cpu_mode mode;
    bool repeats, free;
    unsigned direct;
    struct regs in;
    struct outcome out;
    _Alignas(64) uint8_t in_fpu[PAGE_SIZE], out_fpu[PAGE_SIZE];
} * remote;
static pid_t remote_pid;

static void wait_while(uint32_t turn)
{
    const struct timespec second = {.tv_sec = 1};

    while (atomic_load(&remote->turn) == turn) {
        if (!syscall(SYS_futex, &remote->turn, FUTEX_WAIT, turn, &second, NULL, 0) || errno != ETIMEDOUT ||
            !remote_pid || !waitpid(remote_pid, NULL, WNOHANG))
            continue;
        fprintf(stderr, "isa: the host's side has died\n");
        exit(2);
    }
}

static void next_turn(void)
{
    atomic_fetch_add(&remote->turn, 1);
    syscall(SYS_futex, &remote->turn, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void serve(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (unsigned pg = 0; pg < ARENA_PAGES; pg++) /* error codes say whether a page is present */
        if (page_mapped(pg))
            madvise((void *)(ARENA + pg * PAGE_SIZE), PAGE_SIZE, MADV_POPULATE_READ);
    host_signals_init();
    remote->in.fpu = (struct xsave_area *)remote->in_fpu;
    remote->out.r.fpu = (struct xsave_area *)remote->out_fpu;
    for (uint32_t turn = 0;; turn += 2) {
        wait_while(turn);
        host_repeats = remote->repeats;
        host_free = remote->free;
        host_direct_ok = remote->direct;
        run_here(remote->mode, &remote->in, &remote->out);
        next_turn();
    }
}

void host_side_apart(void)
{
    remote = mmap(NULL, sizeof(*remote), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (remote == MAP_FAILED || cpu_fpu_area_size() > PAGE_SIZE || (remote_pid = fork()) < 0) {
        perror("isa: the host's process");
        exit(2);
    }
    if (!remote_pid)
        serve();
}

static void run_apart(enum cpu_mode mode, const struct regs *in, struct outcome *out)
{
    struct xsave_area *fpu = out->r.fpu;

    remote->mode = mode;
    remote->repeats = host_repeats;
    remote->free = host_free;
    remote->direct = host_direct_ok;
    memcpy(remote->in.gpr, in->gpr, sizeof(in->gpr));
    remote->in.rip = in->rip;
    remote->in.rflags = in->rflags;
    memcpy(remote->in_fpu, in->fpu, cpu_fpu_area_size());
    next_turn();
    wait_while(atomic_load(&remote->turn) | 1);
    *out = remote->out;
    out->r.fpu = fpu;
    memcpy(fpu, remote->out_fpu, cpu_fpu_area_size());
}

void host_run(enum cpu_mode mode, const struct regs *in, struct outcome *out)
{
    if (remote)
        run_apart(mode, in, out);
    else
        run_here(mode, in, out);
}

bool host_has_mode(enum cpu_mode mode)
{
    uint32_t cs, rights;
    uint16_t sel, ss;
    bool ok;

    segments_for(mode, &sel, &ss);
    cs = sel;
    __asm__("lar %2, %0\n setz %1" : "=&r"(rights), "=q"(ok) : "r"(cs) : "cc");
    return ok;
}

uint8_t *host_page(unsigned pg)
{
    return page_mapped(pg) ? alias + pg * PAGE_SIZE : NULL;
}

static void ldt_entry(unsigned index, bool code)
{
    struct user_desc d = {
        .entry_number = index, .base_addr = ARENA, .limit = 0xffff, .contents = code ? 2 : 0, .useable = 1};

    syscall(SYS_modify_ldt, 1, &d, sizeof(d)); /* host_has_mode() sees whether it worked */
}

void host_signals_init(void)
{
    static const int sigs[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    struct sigaction sa = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};

    for (unsigned i = 0; i < ARRAY_SIZE(sigs); i++)
        sigaction(sigs[i], &sa, NULL);
}

/* Everything below 2 GB around the arena is reserved, so that a stray access faults. */
void host_side_init(void)
{
    stack_t ss = {.ss_size = 256 << 10};
    const int fd = memfd_create("isa-arena", MFD_CLOEXEC);

    ss.ss_sp = mmap(NULL, ss.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fd < 0 || ftruncate(fd, ARENA_PAGES * PAGE_SIZE) || ss.ss_sp == MAP_FAILED || sigaltstack(&ss, NULL)) {
        perror("isa: arena");
        exit(2);
    }
    alias = mmap(NULL, ARENA_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    mmap((void *)(ARENA - (64 << 20)), 128 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    for (unsigned pg = 0; pg < ARENA_PAGES; pg++) {
        const int prot = pg == PG_CODE ? PROT_READ | PROT_EXEC : page_writable(pg) ? PROT_READ | PROT_WRITE : PROT_READ;

        if (page_mapped(pg) && mmap((void *)(ARENA + pg * PAGE_SIZE), PAGE_SIZE, prot,
                                    MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, pg * PAGE_SIZE) == MAP_FAILED) {
            perror("isa: arena page");
            exit(2);
        }
    }
    ldt_entry(LDT_CODE16 >> 3, true);
    ldt_entry(LDT_DATA16 >> 3, false);
}
