/* SPDX-License-Identifier: MIT
 * host_direct.c: the quick way for an instruction that neither branches nor uses RSP: registers are loaded, the code
 * page is jumped into, and the jump behind the instruction comes back. A signal is paid for by faults alone. */
#include "isa.h"
#include "host_direct.h"
#include <stdlib.h>

struct direct {
    uint64_t gpr[16]; /* RSP's is not loaded */
    uint64_t rflags, rip, rsp, mask;
    struct xsave_area *fpu, *out, *initial;
};
struct direct host_direct __attribute__((visibility("hidden")));
void host_direct_run(void);
void host_direct_back(void);
void host_direct_fault(void);

#define AT(field) "host_direct+" field "(%rip)"
#define FOR_GPRS(X) \
    X("rax", "0")   \
    X("rcx", "8")   \
    X("rdx", "16")  \
    X("rbx", "24")  \
    X("rbp", "40")  \
    X("rsi", "48")  \
    X("rdi", "56")  \
    X("r8", "64")   \
    X("r9", "72")   \
    X("r10", "80")  \
    X("r11", "88") X("r12", "96") X("r13", "104") X("r14", "112") X("r15", "120")
#define LOAD(reg, at)  "mov " AT(at) ", %" reg "\n"
#define STORE(reg, at) "mov %" reg ", " AT(at) "\n"
_Static_assert(offsetof(struct direct, rflags) == 128 && offsetof(struct direct, fpu) == 160 &&
                   offsetof(struct direct, initial) == 176,
               "the offsets below");

__asm__(
    ".text\n"
    "host_direct_run:\n"
    "push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
    "mov %rsp, " AT(
        "144") "\n"
               "mov " AT("152") ", %eax\n mov " AT(
                   "156") ", %edx\n"
                          "mov " AT(
                              "160") ", %rcx\n xrstor64 (%rcx)\n"
                                     "push " AT("128") "\n popfq\n" FOR_GPRS(LOAD) "jmp *" AT(
                                         "136") "\n"
                                                "host_direct_back:\n" FOR_GPRS(STORE) "pushfq\n pop " AT(
                                                    "128") "\n"
                                                           "mov " AT("152") ", %eax\n mov " AT(
                                                               "156") ", %edx\n"
                                                                      "mov " AT(
                                                                          "168") ", %rcx\n xsave64 (%rcx)\n"
                                                                                 "host_direct_fault:\n"
                                                                                 "cld\n"
                                                                                 "mov " AT("152") ", %eax\n mov " AT(
                                                                                     "156") ", %edx\n"
                                                                                            "mov " AT(
                                                                                                "176") ", %rcx\n "
                                                                                                       "xrstor64 "
                                                                                                       "(%rcx)\n"
                                                                                                       "pop %r15\n pop "
                                                                                                       "%r14\n pop "
                                                                                                       "%r13\n pop "
                                                                                                       "%r12\n pop "
                                                                                                       "%rbp\n pop "
                                                                                                       "%rbx\n"
                                                                                                       "ret\n");

static struct xsave_area *new_area(void)
{
    const size_t size = (cpu_fpu_area_size() + 63) & ~63ull;
    struct xsave_area *a = aligned_alloc(64, size);

    memset(a, 0, size);
    a->mxcsr = MXCSR_INIT;
    return a;
}

static bool is_rsp(ZydisRegister r)
{
    return ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, r) == ZYDIS_REGISTER_RSP;
}

bool host_direct_can(const struct decoded *d)
{
    if (d->zi.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE || d->zi.meta.category == ZYDIS_CATEGORY_STRINGOP)
        return false;
    for (unsigned i = 0; i < d->zi.operand_count; i++) {
        const ZydisDecodedOperand *op = &d->ops[i];

        if ((op->type == ZYDIS_OPERAND_TYPE_REGISTER && is_rsp(op->reg.value)) ||
            (op->type == ZYDIS_OPERAND_TYPE_MEMORY && (is_rsp(op->mem.base) || is_rsp(op->mem.index))))
            return false;
    }
    return true;
}

void host_direct_end(uint8_t *code)
{
    static const uint8_t jmp[] = {0xff, 0x25, 0, 0, 0, 0}; /* jmp [rip] */
    void (*const back)(void) = host_direct_back;

    memcpy(code, jmp, sizeof(jmp));
    memcpy(code + sizeof(jmp), &back, sizeof(back));
}

struct direct_exit host_direct_exit(void)
{
    return (struct direct_exit){.rip = (uint64_t)host_direct_fault, .rsp = host_direct.rsp};
}

const struct xsave_area *host_direct_call(const struct regs *in)
{
    struct direct *x = &host_direct;

    if (!x->fpu) {
        x->fpu = new_area();
        x->out = new_area();
        x->initial = new_area();
        x->mask = fpu_layout()->mask;
    }
    memcpy(x->gpr, in->gpr, sizeof(x->gpr));
    x->rflags = in->rflags | F_IF;
    x->rip = in->rip;
    memcpy(x->fpu, in->fpu, cpu_fpu_area_size());
    memset(x->fpu->reserved1, 0, sizeof(x->fpu->reserved1));
    x->fpu->mxcsr_mask = fpu_layout()->mxcsr_mask;
    x->fpu->xstate_bv = x->mask;
    x->fpu->xcomp_bv = 0;
    memset(x->fpu->reserved2, 0, sizeof(x->fpu->reserved2));
    host_direct_run();
    return x->out;
}

void host_direct_result(const struct regs *in, struct regs *out)
{
    memcpy(out->gpr, host_direct.gpr, sizeof(out->gpr));
    out->gpr[R_RSP] = in->gpr[R_RSP];
    out->rflags = host_direct.rflags;
}
