/* SPDX-License-Identifier: MIT
 * test_interp_host.c: integer instructions with random registers, flags and memory, compared with the host that runs
 * the same bytes at the same addresses. A quick net of every row of ops_int.def; the long one is tests/isa. */
#include "guest.h"
#include <stdio.h>

#define CASES_EACH 60
#define DATA       ((uint8_t *)(uintptr_t)GUEST_DATA)
#define DATA_SIZE  0x1000u
#define MID        (GUEST_DATA + 0x800u)

/* ---- native side: registers in, instruction, registers out; a template that is copied as a whole ---- */
__asm__(".pushsection .data\n .balign 64\n"
        "native_start:\n"
        "n_gpr: .skip 128\n"
        "n_flags: .quad 0\n"
        "n_host: .quad 0\n"
        "native_entry:\n"
        " push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        " mov %rsp, n_host(%rip)\n"
        " pushq n_flags(%rip); popfq\n"
        " mov n_gpr+0(%rip), %rax; mov n_gpr+8(%rip), %rcx; mov n_gpr+16(%rip), %rdx; mov n_gpr+24(%rip), %rbx\n"
        " mov n_gpr+32(%rip), %rsp; mov n_gpr+40(%rip), %rbp; mov n_gpr+48(%rip), %rsi; mov n_gpr+56(%rip), %rdi\n"
        " mov n_gpr+64(%rip), %r8; mov n_gpr+72(%rip), %r9; mov n_gpr+80(%rip), %r10; mov n_gpr+88(%rip), %r11\n"
        " mov n_gpr+96(%rip), %r12; mov n_gpr+104(%rip), %r13; mov n_gpr+112(%rip), %r14; mov n_gpr+120(%rip), %r15\n"
        "native_hole: .fill 64, 1, 0x90\n"
        " mov %rax, n_gpr+0(%rip); mov %rcx, n_gpr+8(%rip); mov %rdx, n_gpr+16(%rip); mov %rbx, n_gpr+24(%rip)\n"
        " mov %rsp, n_gpr+32(%rip); mov %rbp, n_gpr+40(%rip); mov %rsi, n_gpr+48(%rip); mov %rdi, n_gpr+56(%rip)\n"
        " mov %r8, n_gpr+64(%rip); mov %r9, n_gpr+72(%rip); mov %r10, n_gpr+80(%rip); mov %r11, n_gpr+88(%rip)\n"
        " mov %r12, n_gpr+96(%rip); mov %r13, n_gpr+104(%rip); mov %r14, n_gpr+112(%rip); mov %r15, n_gpr+120(%rip)\n"
        " mov n_host(%rip), %rsp\n"
        " pushfq; popq n_flags(%rip)\n"
        " cld; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n"
        "native_end:\n .popsection\n");
extern uint8_t native_start[], native_entry[], native_hole[], native_end[];

struct regs {
    uint64_t gpr[16], flags;
};

/* ---- the instructions ---- */
struct isa_case {
    const uint8_t *start, *end;
    const char *text;
};
extern const struct isa_case __start_isa_cases[], __stop_isa_cases[];
#define I(text)                                                                       \
    __asm__(".pushsection isa_cases, \"aw\"\n .quad 661f, 662f, 663f\n .popsection\n" \
            ".pushsection .rodata\n661: " text "\n662:\n663: .asciz \"" text "\"\n .popsection\n");
/* clang-format off */
#define I_SIZES(op) I(op "b %cl, %al") I(op "w %cx, %ax") I(op "l %ecx, %eax") I(op "q %rcx, %rax") I(op "b %ah, %bh")  \
    I(op "b %cl, (%rsi)") I(op "w %cx, 8(%rsi,%r8,2)") I(op "l %ecx, (%rsi)") I(op "q %rcx, -8(%rsi,%r8,8)")           \
    I(op "b $0x85, %dl") I(op "w $0x1234, (%rsi)") I(op "l $-5, %r9d") I(op "q $-77, 16(%rsi)") I(op "q $0x12345, %r10")
#define I_LOAD(op) I(op "b (%rsi), %ch") I(op "w 2(%rsi), %ax") I(op "l (%rsi,%r8,4), %eax") I(op "q 64(%rsi), %r11")
#define I_LOCK(op) I("lock " op "b %cl, (%rsi)") I("lock " op "w %cx, 1(%rsi)") I("lock " op "l %ecx, (%rsi)") I("lock " op "q %rcx, (%rsi)")
#define I_UNARY(op) I(op "b %al") I(op "b %dh") I(op "w %cx") I(op "l %r8d") I(op "q %rbx") I(op "b (%rsi)") I(op "w (%rsi)") \
    I(op "l 4(%rsi)") I(op "q (%rsi,%r8)")
#define I_SHIFT(op) I(op "b %cl, %al") I(op "w %cl, %dx") I(op "l %cl, %eax") I(op "q %cl, %rax") I(op "b $3, %ah")     \
    I(op "w $17, %r9w") I(op "l $1, %eax") I(op "q $63, %rdx") I(op "l %cl, (%rsi)") I(op "q $5, (%rsi)")              \
    I(op "b %cl, (%rsi)") I(op "w $1, (%rsi)") I(op "b $9, %bl") I(op "l $0, %edx") I(op "w $18, %bx")
#define I_BT(op) I(op "w %cx, %ax") I(op "l %ecx, %eax") I(op "q %rcx, %rax") I(op "w $5, %ax") I(op "l $37, %eax")     \
    I(op "q $62, (%rsi)") I("movsbl %cl, %ecx; " op "l %ecx, (%rsi)") I("movsbq %cl, %rcx; " op "q %rcx, (%rsi)")      \
    I("movsbw %cl, %cx; " op "w %cx, (%rsi)")
#define I_SCAN(op) I(op "w %cx, %ax") I(op "l %ecx, %eax") I(op "q %rcx, %rax") I(op "l (%rsi), %edx") I("xor %ecx, %ecx; " op "l %ecx, %eax") \
    I("xor %ecx, %ecx; " op "q %rcx, %rax") I("xor %ecx, %ecx; " op "w %cx, %ax")
#define I_VEX3(op) I(op "l %ecx, %edx, %eax") I(op "q %rcx, %rdx, %rax")
#define I_CC(op, tail) I(op "o" tail) I(op "no" tail) I(op "b" tail) I(op "nb" tail) I(op "z" tail) I(op "nz" tail) I(op "be" tail) \
    I(op "nbe" tail) I(op "s" tail) I(op "ns" tail) I(op "p" tail) I(op "np" tail) I(op "l" tail) I(op "nl" tail) I(op "le" tail) I(op "nle" tail)
#define I_REP(op) I(op "b") I(op "w") I(op "l") I(op "q") I("std; " op "b; cld") I("std; " op "q; cld") I("lea 1(%rdi), %rsi; " op "b")

I_SIZES("add") I_SIZES("or") I_SIZES("adc") I_SIZES("sbb") I_SIZES("and") I_SIZES("sub") I_SIZES("xor") I_SIZES("cmp") I_SIZES("test")
I_LOAD("add") I_LOAD("or") I_LOAD("adc") I_LOAD("sbb") I_LOAD("and") I_LOAD("sub") I_LOAD("xor") I_LOAD("cmp")
I_LOCK("add") I_LOCK("adc") I_LOCK("sbb") I_LOCK("or") I_LOCK("and") I_LOCK("sub") I_LOCK("xor") I_LOCK("xadd") I_LOCK("cmpxchg")
I_UNARY("inc") I_UNARY("dec") I_UNARY("neg") I_UNARY("not") I("lock incl (%rsi)") I("lock notq (%rsi)") I("lock negw (%rsi)") I("lock decb (%rsi)") I_UNARY("mul") I_UNARY("imul")
I("xor %eax, %eax") I("xor %r9, %r9") I("sub %ecx, %ecx") I("xorw %ax, %ax") I("xorb %ah, %ah") I("sbb %eax, %eax")
I_SHIFT("shl") I_SHIFT("shr") I_SHIFT("sar") I_SHIFT("rol") I_SHIFT("ror") I_SHIFT("rcl") I_SHIFT("rcr")
I("shld $7, %cx, %ax") I("shld %cl, %edx, %eax") I("shld %cl, %rdx, %rax") I("shrd $33, %rdx, (%rsi)") I("shrd %cl, %dx, %ax")
I("shrd %cl, %edx, (%rsi)") I("shrd $0, %edx, %eax") I("shld $20, %cx, %ax") I("shrd %cl, %rdx, %rax")
I("imul %ecx, %eax") I("imul (%rsi), %rax") I("imul %cx, %ax") I("imul $-7, %edx, %eax") I("imul $1000000, (%rsi), %r8") I("imul $300, %cx, %ax")
I("xor %edx, %edx; div %ecx") I("xor %edx, %edx; divq (%rsi)") I("mov %eax, %edx; shr $1, %edx; or $1, %ecx; shl $8, %rcx; or %rax, %rcx; xor %edx, %edx; div %rcx")
I("cltd; or $0x80, %ecx; idiv %ecx") I("cqto; or $0x100, %rcx; idiv %rcx") I("cwtd; or $0x100, %cx; idiv %cx") I("movzbl %al, %eax; or $1, %cl; div %cl")
I("movsbw %al, %ax; or $3, %cl; and $0x7f, %cl; idiv %cl") I("mov $3, %edx; or $0x80000000, %ecx; div %ecx") I("mov $3, %edx; mov $0x8000000000000000, %rcx; div %rcx")
I_BT("bt") I_BT("bts") I_BT("btr") I_BT("btc") I("movsbl %dl, %edx; lock btsl %edx, %cs:0x20840") I("lock btcq $13, (%rsi)")
I_SCAN("bsf") I_SCAN("bsr") I_SCAN("tzcnt") I_SCAN("lzcnt") I_SCAN("popcnt")
I_VEX3("andn") I_VEX3("pdep") I_VEX3("pext") I_VEX3("bextr") I_VEX3("bzhi") I_VEX3("sarx") I_VEX3("shlx") I_VEX3("shrx") I_VEX3("mulx")
I("blsi %ecx, %eax") I("blsi %rcx, %rax") I("blsr (%rsi), %eax") I("blsr %rcx, %rax") I("blsmsk %ecx, %eax") I("blsmsk %rcx, %rax")
I("rorx $13, %ecx, %eax") I("rorx $33, (%rsi), %rax") I("rorx $0, %rcx, %rax") I("bzhi %eax, (%rsi), %ecx") I("pdep (%rsi), %rdx, %rax") I("mulx (%rsi), %rax, %rax") I("andn (%rsi), %rcx, %rax") I("sarx %rcx, (%rsi), %rbx")
I("adcx %rcx, %rax") I("adcx (%rsi), %eax") I("adox %ecx, %eax") I("adox (%rsi), %rax")
I("crc32b %cl, %eax") I("crc32w %cx, %eax") I("crc32l (%rsi), %eax") I("crc32q %rcx, %rax") I("crc32b (%rsi), %rax")
I_CC("set", " %al") I_CC("set", " (%rsi)") I_CC("cmov", " %ecx, %eax") I_CC("cmov", " %rcx, %rdx") I_CC("cmov", " (%rsi), %cx") I_CC("cmov", " (%rsi), %r9d") I_CC("j", " 1f; inc %rax; 1:") I_CC("j", " 1f; .fill 40, 1, 0x90; 1:")
I("movb %ah, %cl") I("movb %cl, %bh") I("movw %cx, %ax") I("movl %ecx, %eax") I("movq %rcx, %r15") I("movb $5, %dh") I("movw $5, %dx") I("movl $-5, %r12d")
I("movq $-5, %r12") I("movabs $0x123456789abcdef0, %r13") I("movabs 0x20810, %rax") I("movabs %al, 0x20811") I("movabs %eax, 0x20814") I("movabs 0x20817, %ax")
I("movb (%rsi), %ah") I("movb %ch, (%rsi)") I("movw %cx, (%rsi)") I("movl %ecx, 5(%rsi)") I("movq %rcx, (%rsi)") I("movb $7, (%rsi)") I("movw $0x8123, (%rsi)") I("movl $-9, (%rsi)") I("movq $-9, (%rsi)")
I("movl 8(%rsi), %eax") I("movq (%rsi,%r8,8), %rax") I("movw (%rsi), %ax") I("movl 0x20820(,%r8,4), %edx") I("movl 8(%esi), %eax") I("addl %ecx, (%esi,%r8d,2)")
I("movzbl %cl, %eax") I("movzbl %ch, %eax") I("movzbq %cl, %rax") I("movzbw %cl, %ax") I("movzwl %cx, %eax") I("movzwq (%rsi), %rax") I("movzbl (%rsi), %r9d") I("movzwl (%rsi), %eax") I("movzbw (%rsi), %ax") I("movzbq (%rsi), %rdx")
I("movsbl %cl, %eax") I("movsbq (%rsi), %rax") I("movsbw %ch, %ax") I("movswl (%rsi), %eax") I("movswq %cx, %rax") I("movslq %ecx, %rax") I("movslq (%rsi), %rax") I("movsbl (%rsi), %eax") I(".byte 0x63, 0xc1") I(".byte 0x66, 0x63, 0xc1") I("movswq (%rsi), %rbx") I("movswl %cx, %eax") I("movsbq %cl, %rax")
I("lea 5(%rsi,%rcx,4), %rax") I("lea 5(%rsi,%rcx,4), %eax") I("lea 5(%rsi,%rcx,4), %ax") I("lea 5(%esi,%ecx,4), %rax") I("lea -8(%r13), %r14")
I("xchg %al, %ah") I("xchg %ecx, %eax") I("xchg %rcx, (%rsi)") I("xchg %cl, (%rsi)") I("xchg %cx, 3(%rsi)") I("xchg %r8, %rax") I("xchg %ecx, 1(%rsi)")
I("xadd %al, %cl") I("xadd %ecx, %eax") I("xadd %rax, %rax") I("xadd %rcx, (%rsi)") I("xadd %eax, %eax")
I("cmpxchg %ecx, %edx") I("mov %edx, %eax; cmpxchg %ecx, %edx") I("cmpxchg %rcx, (%rsi)") I("mov (%rsi), %rax; cmpxchg %rcx, (%rsi)") I("cmpxchg %cl, %dl") I("mov (%rsi), %al; lock cmpxchg %cl, (%rsi)") I("cmpxchg %rcx, %rdx")
I("cmpxchg8b (%rsi)") I("mov (%rsi), %eax; mov 4(%rsi), %edx; lock cmpxchg8b (%rsi)") I("cmpxchg16b (%rsi)") I("mov (%rsi), %rax; mov 8(%rsi), %rdx; lock cmpxchg16b (%rsi)")
I("bswap %ecx") I("bswap %r9") I(".byte 0x66, 0x0f, 0xc8") I("movbe (%rsi), %eax") I("movbe (%rsi), %cx") I("movbe %rcx, (%rsi)") I("movbe (%rsi), %r9") I("movnti %ecx, (%rsi)") I("movnti %rcx, (%rsi)")
I("cbtw") I("cwtl") I("cltq") I("cwtd") I("cltd") I("cqto") I("mov %rsi, %rbx; xlat") I("lahf") I("sahf") I("clc") I("stc") I("cmc")
I("push %rcx") I("push %ax") I("push $-5") I("push $0x12345678") I("push (%rsi)") I("pushw (%rsi)") I("pop %rcx") I("pop %cx") I("pop (%rsi)") I("popw 8(%rsi)") I("pop %rsp") I("push %rsp") I("pop 8(%rsp)") I("push 8(%rsp)")
I("pushf; andw $0xcd5, (%rsp)") I("enter $32, $0") I("enter $16, $1") I("lea 0x20a00, %rbp; enter $16, $3") I("lea 24(%rsp), %rbp; enter $16, $7") I("lea -16(%rsp), %rbp; enter $8, $9") I("lea -4(%rsp), %rbp; enterw $8, $9") I("lea 0x20a00, %rbp; leave") I("lea 0x20a00, %rbp; enterw $16, $2") I("mov %rsp, %rbp; leave")
I("call 1f; inc %rax; 1: pop %rdx; xor %edx, %edx; movq $0, -8(%rsp)") I("lea 1f(%rip), %rax; jmp *%rax; ud2; 1: xor %eax, %eax") I("lea 1f(%rip), %rax; push %rax; ret; ud2; 1: xor %eax, %eax; movq $0, -8(%rsp)") I("lea 1f(%rip), %rax; mov %rax, (%rsi); call *(%rsi); ud2; 1: xor %eax, %eax; mov %rax, (%rsi); mov %rax, (%rsp)")
I("mov $3, %ecx; 1: add %rcx, %rax; loop 1b") I("and $7, %ecx; or $1, %ecx; 1: dec %edx; loopne 1b") I("and $7, %ecx; or $1, %ecx; 1: cmp %edx, %edx; loope 1b") I(".byte 0xf3, 0xe0, 3; inc %rax") I(".byte 0xf2, 0xe0, 3; inc %rax") I(".byte 0xf3, 0xe1, 3; inc %rax") I(".byte 0xf2, 0xe1, 3; inc %rax") I(".byte 0xf2, 0xe2, 3; inc %rax") I("and $1, %ecx; jrcxz 1f; inc %rax; 1:") I("jecxz 1f; inc %rax; 1:")
I("setb %ch") I("setno %bh") I("rolb %cl, %ch") I("shrb $3, %ch") I("rcrb $2, %dh") I("incb %ch") I("negb %bh") I("notb %ch") I("xchg %ch, %bh") I("xchg %cl, %ch") I("xchg %dl, %r9b") I("xchg %cx, %r11w") I("testb $4, %ch") I("andb $2, %ch") I("addb %dl, %ch") I("cmpb (%rsi), %ch") I("movb $9, %ch") I("movb %ch, %ch") I("sbbb %ch, %bh")
I("mov $300, %ecx; lock btsq %rcx, (%rsi)") I("mov $-9, %r10; lock btcq %r10, (%rsi)") I("mov $77, %r11d; btr %r11d, 8(%rsi,%r8,2)") I("mov $-70, %edx; bt %edx, (%rsi)") I("mov $999, %r14; bts %r14, -16(%rsi)")
I("movsb; stosq; lodsw") I("lodsl; stosl; lodsl; stosl") I("mov %al, (%rdi); movsw; movb %ah, (%rsi)") I("cmp %rdx, %rax; movsq; setb %dl") I("cmp %rdx, %rax; mov $9, %ecx; rep stosq; adc %rdx, %rbx") I("xor %ecx, %ecx; rep stosb") I("xorps %xmm5, %xmm5; rep movsb") I("xorps %xmm5, %xmm5; rep stosq") I("xorps %xmm5, %xmm5; movsb") I("xorps %xmm5, %xmm5; bts %r8, (%rsi)") I("cmp %rdx, %rax; mov (%rsi), %bl; rep movsb; adc %rdx, %rbx") I("mov $0x2000, %ecx; and $0x3f, %ecx; rep movsq")
I("movsb") I("movsw") I("movsl") I("movsq") I("stosb") I("stosq") I("lodsb") I("lodsw") I("lodsl") I("lodsq") I("cmpsb") I("cmpsq") I("scasb") I("scasl")
I_REP("rep movs") I_REP("rep stos") I_REP("rep lods") I_REP("repe cmps") I_REP("repne cmps") I_REP("repe scas") I_REP("repne scas")
I("mov %rsi, %rdi; repe cmpsb") I("mov %rsi, %rdi; repe cmpsl") I("lea 3(%rsi), %rdi; rep movsb") I("lea 8(%rsi), %rdi; rep movsl") I("lea -1(%rsi), %rdi; rep movsq") I("lea 65(%rsi), %rdi; rep movsb") I("xor %eax, %eax; rep stosw") I("mov (%rdi), %al; repe scasb") I("xor %ecx, %ecx; repe cmpsb") I(".byte 0xf2, 0xa4") I("addr32 rep movsb") I("addr32 stosb")
I("nop") I("nopw 0(%rax,%rax,1)") I("pause") I("endbr64") I("prefetcht0 (%rsi)") I("prefetchw (%rsi)") I("mfence") I("lfence") I("sfence") I("clflush (%rsi)") I("clflushopt (%rsi)") I("clwb (%rsi)") I("std; cld") I("rdsspq %rax")

    /* clang-format on */

    static uint64_t rng_state = 88172645463325252ull;

static uint64_t rng(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    return rng_state ^= rng_state << 17;
}

/* Values with many corner cases. */
static uint64_t interesting(void)
{
    static const uint64_t corners[] = {0,          1,          ~0ull,      0x80,       0x7f, 0x8000, 0x7fff,
                                       0x80000000, 0x7fffffff, 1ull << 63, ~0ull >> 1, 0xff, 0x100};
    const uint64_t r = rng();

    return r & 3 ? rng() >> (r >> 8 & 63) : corners[(r >> 8) % (sizeof(corners) / sizeof(corners[0]))];
}

static void random_state(struct regs *r, uint8_t *mem)
{
    for (unsigned i = 0; i < 16; i++)
        r->gpr[i] = interesting();
    for (unsigned i = 0; i < DATA_SIZE; i += 8)
        *(uint64_t *)(mem + i) = interesting();
    r->gpr[R_RSP] = MID + 0x400;
    r->gpr[R_RSI] = MID + (rng() & 1 ? 0x10 : 0);
    r->gpr[R_RDI] = MID + 0x80 + (rng() & 0x1f);
    r->gpr[R_R8] = rng() & 7;
    if (rng() & 1)
        r->gpr[R_RCX] = rng() & 0x1f;
    r->flags = (rng() & F_OSZAPC) | F_RESERVED;
}

static void run_native(struct regs *r, const struct isa_case *c)
{
    static uint8_t *page;
    const size_t hole = native_hole - native_start;

    if (!page) {
        page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_true(page != MAP_FAILED);
        memcpy(page, native_start, native_end - native_start);
    }
    memset(page + hole, 0x90, 64);
    memcpy(page + hole, c->start, c->end - c->start);
    memcpy(page, r, sizeof(*r));
    ((void (*)(void))(page + (native_entry - native_start)))();
    memcpy(r, page, sizeof(*r));
}

static void run_guest(struct guest *g, struct regs *r, const struct isa_case *c)
{
    memset(g->ram + GUEST_CODE, 0x90, 80);
    memcpy(g->ram + GUEST_CODE, c->start, c->end - c->start);
    memcpy(g->ram + GUEST_CODE + 64, "\x0f\x0b", 2);
    cpu_code_unverify(g->cpu);
    for (unsigned i = 0; i < 16; i++)
        *guest_gpr(g, i) = r->gpr[i];
    guest_w(g, GUEST_RSP, r->gpr[R_RSP]);
    guest_w(g, GUEST_RIP, GUEST_CODE);
    guest_w(g, GUEST_RFLAGS, r->flags);
    assert_int_equal(guest_run(g), EXIT_REASON_EXCEPTION_NMI);
    for (unsigned i = 0; i < 16; i++)
        r->gpr[i] = *guest_gpr(g, i);
    r->gpr[R_RSP] = guest_r(g, GUEST_RSP);
    r->flags = guest_r(g, GUEST_RFLAGS) & (F_OSZAPC | F_DF | F_RESERVED);
}

/* true: differs, printed. */
static bool differs(const struct isa_case *c, const struct regs *in, const struct regs *host, const struct regs *soft,
                    const uint8_t *host_mem, const uint8_t *soft_mem, uint64_t rip)
{
    static const char names[16][4] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                      "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    bool bad = rip != GUEST_CODE + 64;

    if (bad)
        print_message("%s: stopped at rip %lx\n", c->text, rip);
    for (unsigned i = 0; i < 16; i++)
        if (host->gpr[i] != soft->gpr[i]) {
            print_message("%s: %s %lx -> host %lx, soft %lx (rax %lx rcx %lx flags %lx)\n", c->text, names[i],
                          in->gpr[i], host->gpr[i], soft->gpr[i], in->gpr[R_RAX], in->gpr[R_RCX], in->flags);
            bad = true;
        }
    if ((host->flags ^ soft->flags) & (F_OSZAPC | F_DF)) {
        print_message("%s: flags %lx -> host %lx, soft %lx (rax %lx rcx %lx rdx %lx)\n", c->text, in->flags,
                      (uint64_t)(host->flags & (F_OSZAPC | F_DF)), soft->flags, in->gpr[R_RAX], in->gpr[R_RCX],
                      in->gpr[R_RDX]);
        bad = true;
    }
    for (unsigned i = 0; i < DATA_SIZE; i++)
        if (host_mem[i] != soft_mem[i]) {
            print_message("%s: byte %x: host %02x, soft %02x\n", c->text, GUEST_DATA + i, host_mem[i], soft_mem[i]);
            return true;
        }
    return bad;
}

static void integer_rows_equal_the_host(void **state)
{
    struct guest g;
    unsigned failed = 0, count = 0;

    assert_ptr_equal(
        mmap(DATA, DATA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0), DATA);
    guest_create(&g, guest_engine());
    guest_w(&g, EXCEPTION_BITMAP, ~0u);
    for (const struct isa_case *c = __start_isa_cases; c < __stop_isa_cases; c++, count++) {
        for (unsigned i = 0; i < CASES_EACH; i++) {
            struct regs in, host, soft;

            random_state(&in, DATA);
            if (strstr(c->text, "rep") || strstr(c->text, "0xf2"))
                in.gpr[R_RCX] &= 0x1f;
            if (strstr(c->text, "div"))
                in.gpr[R_RCX] |= 1, *(uint64_t *)(uintptr_t)in.gpr[R_RSI] |= 1;
            memcpy(g.ram + GUEST_DATA, DATA, DATA_SIZE);
            host = soft = in;
            run_native(&host, c);
            run_guest(&g, &soft, c);
            if (differs(c, &in, &host, &soft, DATA, g.ram + GUEST_DATA, guest_r(&g, GUEST_RIP))) {
                failed++;
                break;
            }
        }
    }
    guest_destroy(&g);
    munmap(DATA, DATA_SIZE);
    print_message("%u forms, %u cases each\n", count, CASES_EACH);
    assert_int_equal(failed, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(integer_rows_equal_the_host)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
