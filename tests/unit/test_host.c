/* SPDX-License-Identifier: MIT
 * test_host.c: the border to the client's thread: moving bytes without vector registers, faults that are mended, and
 * signals that go on to whom they belonged before. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include "cpu_int.h"
#include "host/host.h"

void *cpu_memcpy(void *, const void *, size_t);
void *cpu_memmove(void *, const void *, size_t);
void *cpu_memset(void *, int, size_t);
int cpu_memcmp(const void *, const void *, size_t);

#define SPACE 300

static void pattern(uint8_t *p, unsigned seed)
{
    for (unsigned i = 0; i < SPACE; i++)
        p[i] = (uint8_t)(i * 13 + seed);
}

/* Every size to 130 and every distance, against libc's own. */
static void bytes_move_as_libc_moves_them(void **state)
{
    uint8_t mine[SPACE], libc[SPACE];

    for (unsigned n = 0; n <= 130; n++) {
        for (unsigned from = 60; from < 80; from++) {
            for (unsigned to = 0; to < 160; to += 3) {
                pattern(mine, n);
                pattern(libc, n);
                assert_ptr_equal(cpu_memmove(mine + to, mine + from, n), mine + to);
                memmove(libc + to, libc + from, n);
                assert_memory_equal(mine, libc, SPACE);
            }
        }
        pattern(libc, 1);
        memset(mine, 0, SPACE);
        cpu_memcpy(mine + 7, libc + 3, n);
        assert_memory_equal(mine + 7, libc + 3, n);
        assert_int_equal(mine[7 + n], 0);
        cpu_memset(mine, 0xa5, n);
        for (unsigned i = 0; i < n; i++)
            assert_int_equal(mine[i], 0xa5);
        for (unsigned i = 0; i < n; i++) {
            memcpy(mine, libc, SPACE);
            assert_int_equal(cpu_memcmp(mine, libc, n), 0);
            mine[i] ^= 0x80;
            assert_int_equal(cpu_memcmp(mine, libc, n) > 0, memcmp(mine, libc, n) > 0);
            assert_int_not_equal(cpu_memcmp(mine, libc, n), 0);
        }
    }
}

/* Each of these runs in a child, where the signals are as an ordinary client has them. The child's exit status tells.
 */
static int status_of(void (*child)(void))
{
    int status;
    const pid_t pid = fork();

    if (pid == 0) {
        const int all[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT};

        for (unsigned i = 0; i < ARRAY_SIZE(all); i++)
            signal(all[i], SIG_DFL);
        alarm(20);
        child();
        _exit(100);
    }
    assert_true(pid > 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void *gone_page(void)
{
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    munmap(p, 4096);
    return p;
}

static void child_mends(void)
{
    uint8_t *p = gone_page();
    uint64_t v64 = 0;
    uint32_t v32 = 0;
    uint16_t v16;
    uint8_t v8, buf[64];

    host_init();
    if (host_ld8(p, &v8) != -1 || host_ld16(p, &v16) != -1 || host_ld32(p, &v32) != -1 || host_ld64(p, &v64) != -1)
        _exit(1);
    if (host_st8(p, 0) != -1 || host_st16(p, 0) != -1 || host_st32(p, 0) != -1 || host_st64(p, 0) != -1)
        _exit(2);
    if (host_copy(buf, p, 64) != -1 || host_copy(p, buf, 64) != -1 || host_set(p, 0, 64) != -1)
        _exit(3);
    if (host_cmpxchg32(p, &v32, 1) != -1 || host_cmpxchg64(p, &v64, 1) != -1)
        _exit(4);
    if (host_ld64((void *)0x8000000000000000, &v64) != -1) /* not canonical: si_addr is 0 */
        _exit(5);
    v32 = 7;
    memcpy(buf, &v32, 4);
    v32 = 6;
    if (host_cmpxchg32(buf, &v32, 9) != 1 || v32 != 7 || host_cmpxchg32(buf, &v32, 9) != 0 || buf[0] != 9)
        _exit(6);
    _exit(0);
}

static void child_truncated_file(void)
{
    const int fd = memfd_create("t", 0);
    uint64_t v;
    void *p;

    if (ftruncate(fd, 4096))
        _exit(1);
    p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    host_init();
    if (host_ld64(p, &v) || ftruncate(fd, 0))
        _exit(2);
    _exit(host_ld64(p, &v) == -1 ? 0 : 3); /* SIGBUS */
}

static void child_own_fault(void)
{
    host_init();
    *(volatile char *)gone_page() = 1;
}

static void client_handler(int sig, siginfo_t *si, void *uc)
{
    _exit(sig == SIGSEGV && si->si_addr ? 42 : 43);
}

static void child_with_handler(void)
{
    const struct sigaction sa = {.sa_sigaction = client_handler, .sa_flags = SA_SIGINFO};

    sigaction(SIGSEGV, &sa, NULL);
    host_init();
    *(volatile char *)gone_page() = 1;
}

static void child_trap(void)
{
    host_init();
    __asm__ volatile("int3");
}

static void child_sent(void)
{
    host_init();
    kill(getpid(), SIGFPE);
    pause();
}

/* A client blocks everything in its vCPU threads; a blocked SIGSEGV kills even where a handler stands. */
static void child_blocked(void)
{
    static struct cpu cpu;
    sigset_t all;
    uint64_t v;

    host_init();
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    host_enter(&cpu);
    if (host_current() != &cpu || host_ld64(gone_page(), &v) != -1 || cpu.counters[CC_host_faults] != 1)
        _exit(1);
    host_leave(&cpu);
    _exit(host_current() ? 2 : 0);
}

/* A client's pointers may reach half a page into nothing. */
static void child_copies(void)
{
    char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
         buf[16] = "0123456789abcde";

    host_init();
    munmap(page + 4096, 4096);
    if (cpu_copy_user(page + 4080, buf, 16) || memcmp(page + 4080, buf, 16) || cpu_copy_user(buf, page + 4080, 16))
        _exit(1);
    if (cpu_copy_user(buf, page + 4081, 16) != -1 || cpu_copy_user(page + 4081, buf, 16) != -1)
        _exit(2);
    if (cpu_copy_user((void *)8, buf, 1) != -1 || cpu_copy_user(buf, NULL, 0))
        _exit(3);
    mprotect(page, 4096, PROT_READ);
    _exit(cpu_copy_user(page, buf, 1) == -1 && !cpu_copy_user(buf, page, 1) ? 0 : 4);
}

static void faults_and_signals(void **state)
{
    assert_int_equal(status_of(child_copies), 0);
    assert_int_equal(status_of(child_mends), 0);
    assert_int_equal(status_of(child_truncated_file), 0);
    assert_int_equal(status_of(child_blocked), 0);
    assert_int_equal(WTERMSIG(status_of(child_own_fault)), SIGSEGV);
    assert_int_equal(WEXITSTATUS(status_of(child_with_handler)), 42);
    assert_int_equal(WTERMSIG(status_of(child_trap)), SIGTRAP);
    assert_int_equal(WTERMSIG(status_of(child_sent)), SIGFPE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_move_as_libc_moves_them),
        cmocka_unit_test(faults_and_signals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
