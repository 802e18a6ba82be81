/* SPDX-License-Identifier: MIT
 * fuzz.c: the parent watches a child that runs the cases, one engine after the other. */
#include "fuzz.h"
#include <dirent.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>

#define WARM_UP       40         /* cases after which the process has its usual size */
#define GROWTH_MAX_KB (64 << 10) /* and what it may then still gain */
#define KICK_MAX_MS   200        /* of the process's time, which other load does not lengthen */

struct progress { /* shared by parent and child */
    volatile uint64_t seed, cases;
    volatile int done;
};
static struct progress *progress;

struct options {
    const char *engine;
    uint64_t seed;
    unsigned seconds, count;
};

void fuzz_fail(const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    fprintf(stderr, "case %#llx: ", (unsigned long long)progress->seed);
    vfprintf(stderr, format, ap);
    fputc('\n', stderr);
    va_end(ap);
    _exit(1);
}

uint64_t rnd_value(struct rng *r)
{
    static const uint64_t edges[] = {0,
                                     1,
                                     0x7f,
                                     0xff,
                                     0xfff,
                                     0x1000,
                                     0xffff,
                                     0x7fffffff,
                                     0x80000000,
                                     0xffffffff,
                                     1ull << 32,
                                     0x7fffffffffff,
                                     1ull << 47,
                                     1ull << 48,
                                     0xffff800000000000,
                                     0xffff7fffffffffff,
                                     0x7fffffffffffffff,
                                     1ull << 63,
                                     ~0ull,
                                     ~0ull - 0xfff};

    switch (rnd_below(r, 6)) {
    case 0:
        return rnd(r);
    case 1:
        return rnd_of(r, edges) + rnd_below(r, 17) - 8;
    case 2:
        return rnd_below(r, 256);
    case 3:
        return -rnd_below(r, 256);
    case 4:
        return 1ull << rnd_below(r, 64);
    default:
        return rnd(r) >> rnd_below(r, 64);
    }
}

void rnd_bytes(struct rng *r, void *buf, size_t n)
{
    uint8_t *p = buf;

    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(rnd(r) >> 24);
}

uint64_t fuzz_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- the alarm ---- */
static struct kvm_run *alarm_run;
volatile int fuzz_alarm_rang;
static volatile uint64_t alarm_cpu_ns; /* when it rang */

static uint64_t cpu_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void on_alarm(int sig)
{
    alarm_cpu_ns = cpu_ns();
    fuzz_alarm_rang = 1;
    if (alarm_run)
        *(volatile uint8_t *)&alarm_run->immediate_exit = 1;
    anykvm_signal_arrived();
}

void fuzz_alarm(struct kvm_run *run, unsigned us)
{
    const struct itimerval t = {.it_value = {.tv_sec = us / 1000000, .tv_usec = us % 1000000}};
    struct sigaction sa = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};

    alarm_run = run;
    fuzz_alarm_rang = 0;
    run->immediate_exit = 0;
    sigaction(SIGALRM, &sa, NULL);
    setitimer(ITIMER_REAL, &t, NULL);
}

void fuzz_alarm_check(void)
{
    const uint64_t late = fuzz_alarm_rang ? (cpu_ns() - alarm_cpu_ns) / 1000000 : 0;

    fuzz_check(late < KICK_MAX_MS * (FUZZ_SANITIZED ? 10 : 1), "KVM_RUN went on for %llu ms after a kick",
               (unsigned long long)late);
}

void fuzz_alarm_off(void)
{
    const struct itimerval none = {{0}, {0}};

    setitimer(ITIMER_REAL, &none, NULL);
    alarm_run = NULL;
}

/* ---- what the process holds ---- */
static long resident_kb(void)
{
    long total = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    if (f && fscanf(f, "%ld %ld", &total, &resident) != 2)
        resident = 0;
    if (f)
        fclose(f);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static int entries(const char *folder)
{
    DIR *d = opendir(folder);
    int n = 0;

    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

static int mappings(void)
{
    FILE *f = fopen("/proc/self/maps", "r");
    int n = 0, c;

    while (f && (c = fgetc(f)) != EOF)
        n += c == '\n';
    if (f)
        fclose(f);
    return n;
}

static void run_cases(const struct fuzzer *fuzzer, const struct options *o)
{
    const uint64_t end = fuzz_now_ns() + o->seconds * 1000000000ull;
    long kb = 0;
    int fds = 0, threads = 0, maps = 0;
    uint64_t n = 0;

    for (; (!o->count || n < o->count) && (o->count || fuzz_now_ns() < end); n++) {
        progress->seed = o->seed + n;
        fuzzer->one(progress->seed);
        progress->cases = n + 1;
        if (n == WARM_UP) {
            kb = resident_kb();
            fds = entries("/proc/self/fd");
            threads = entries("/proc/self/task");
            maps = mappings();
        }
    }
    if (n > 2 * WARM_UP) {
        usleep(100 * 1000); /* threads that end */
        fuzz_check(entries("/proc/self/fd") <= fds, "%d descriptors, %d after %d cases", entries("/proc/self/fd"), fds,
                   WARM_UP);
        fuzz_check(entries("/proc/self/task") <= threads, "%d threads, %d after %d cases", entries("/proc/self/task"),
                   threads, WARM_UP);
        fuzz_check(FUZZ_SANITIZED || mappings() <= maps + 64, "%d mappings, %d after %d cases", mappings(), maps,
                   WARM_UP);
        fuzz_check(FUZZ_SANITIZED || resident_kb() - kb < GROWTH_MAX_KB, "%ld KB resident, %ld KB after %d cases",
                   resident_kb(), kb, WARM_UP);
    }
    if (fuzzer->report && !(o->count && n < 100))
        fuzzer->report();
    printf("%s: %llu cases from seed %#llx, %ld KB resident\n", fuzzer->name, (unsigned long long)n,
           (unsigned long long)o->seed, resident_kb());
    fflush(stdout);
}

/* The child's status: 0, or what is to be reported. A case that stands still is a failure too. */
static int watch(const struct fuzzer *fuzzer, const char *engine, pid_t child)
{
    const unsigned limit = fuzzer->case_seconds * (FUZZ_SANITIZED ? 4 : 1) + 20;
    uint64_t cases = ~0ull, since = 0;
    int status;

    while (waitpid(child, &status, WNOHANG) == 0) {
        if (cases != progress->cases) {
            cases = progress->cases;
            since = fuzz_now_ns();
        }
        if (fuzz_now_ns() - since > limit * 1000000000ull) {
            fprintf(stderr, "%s: case %#llx hangs\n", fuzzer->name, (unsigned long long)progress->seed);
            kill(child, SIGABRT);
            usleep(500 * 1000);
            kill(child, SIGKILL);
        }
        usleep(20 * 1000);
    }
    if (status == 0)
        return 0;
    if (WIFSIGNALED(status))
        fprintf(stderr, "%s: case %#llx ended by signal %d (%s)\n", fuzzer->name, (unsigned long long)progress->seed,
                WTERMSIG(status), strsignal(WTERMSIG(status)));
    fprintf(stderr, "%s: to repeat: --engine %s --seed %#llx --count 1\n", fuzzer->name, engine,
            (unsigned long long)progress->seed);
    return 1;
}

static int run_engine(const struct fuzzer *fuzzer, const struct options *o, const char *engine)
{
    char param[64];
    pid_t child;

    progress->cases = 0;
    progress->seed = o->seed;
    fflush(NULL);
    child = fork();
    if (child < 0)
        return 1;
    if (child == 0) {
        snprintf(param, sizeof(param), "engine=%s", engine);
        if (anykvm_set_params(param, NULL))
            _exit(1);
        printf("%s: engine %s, seed %#llx\n", fuzzer->name, engine, (unsigned long long)o->seed);
        run_cases(fuzzer, o);
        exit(0); /* the leak check of a sanitizer runs here */
    }
    return watch(fuzzer, engine, child);
}

/* Is the engine in this build? Asked in a child, for the parameter stays. */
static bool engine_exists(const char *engine)
{
    char param[64];
    int status;
    const pid_t child = fork();

    if (child == 0) {
        snprintf(param, sizeof(param), "engine=%s", engine);
        _exit(anykvm_set_params(param, NULL) != 0);
    }
    return waitpid(child, &status, 0) == child && status == 0;
}

static struct options parse(const struct fuzzer *fuzzer, int argc, char **argv)
{
    struct options o = {.seed = 0x5eed, .seconds = fuzzer->seconds, .count = fuzzer->count};
    int i;

    if (getenv("FUZZ_SECONDS")) {
        o.seconds = (unsigned)strtoul(getenv("FUZZ_SECONDS"), NULL, 0);
        o.count = 0;
    }
    for (i = 1; i + 1 < argc; i += 2) {
        const uint64_t n = strtoull(argv[i + 1], NULL, 0);

        if (!strcmp(argv[i], "--engine"))
            o.engine = argv[i + 1];
        else if (!strcmp(argv[i], "--seed"))
            o.seed = n;
        else if (!strcmp(argv[i], "--seconds"))
            o.seconds = (unsigned)n, o.count = 0;
        else if (!strcmp(argv[i], "--count"))
            o.count = (unsigned)n;
        else
            break;
    }
    if (i < argc) {
        fprintf(stderr, "usage: %s [--engine NAME] [--seed N] [--seconds N] [--count N]\n", argv[0]);
        exit(2);
    }
    return o;
}

int fuzz_main(const struct fuzzer *fuzzer, int argc, char **argv)
{
    static const char *const engines[] = {"interp", "jit"};
    const struct options o = parse(fuzzer, argc, argv);
    int failed = 0, ran = 0;
    unsigned i;

    progress = mmap(NULL, sizeof(*progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (progress == MAP_FAILED)
        return 1;
    if (o.engine || fuzzer->once)
        return run_engine(fuzzer, &o, o.engine ? o.engine : engines[0]);
    for (i = 0; i < sizeof(engines) / sizeof(engines[0]); i++)
        if (engine_exists(engines[i])) {
            failed |= run_engine(fuzzer, &o, engines[i]);
            ran++;
        }
    return failed || !ran;
}
