/* SPDX-License-Identifier: MIT
 * slow_stat.c: with ANYKVM_STAT=1, which rows of instructions took the slow path most: printed when the process ends.
 */
#include "jit.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define TOP 20

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct jit *live;
static const char *const kind_names[DESC_KINDS] = {
    [DESC_INSN] = "an instruction by the interpreter",
    [DESC_STAY] = "one on registers by the interpreter",
    [DESC_EXIT] = "jump inside of a page, not linked",
    [DESC_CROSS] = "jump to another page, not linked",
    [DESC_RIP] = "indirect branch, not in the cache",
    [DESC_FPU] = "vector state not live",
    [DESC_ENTER] = "instruction over a page's end, guard",
    [DESC_POLL] = "attention",
    [DESC_MISS] = "prediction that failed often",
    [DESC_LOOP] = "back edge, counted",
    [DESC_LIMIT] = "trace, more trips",
    [DESC_TRACE] = "an instruction of a trace",
};
static uint64_t gone_kinds[DESC_KINDS];
static pid_t owner;             /* a fork's child has none of this memory */
static uint64_t gone[OP_COUNT]; /* counted by cpus that no longer exist */

static void print(void)
{
    uint64_t sum[OP_COUNT], kinds[DESC_KINDS], all = 0;

    if (getpid() != owner)
        return;
    pthread_mutex_lock(&lock);
    memcpy(sum, gone, sizeof(sum));
    memcpy(kinds, gone_kinds, sizeof(kinds));
    for (const struct jit *j = live; j; j = j->next_live) { /* the process ends: other threads may still count */
        for (unsigned k = 0; k < DESC_KINDS; k++)
            kinds[k] += j->slow_kinds[k];
        for (unsigned op = 0; op < OP_COUNT; op++)
            sum[op] += j->slow_ops[op];
    }
    pthread_mutex_unlock(&lock);
    for (unsigned op = 0; op < OP_COUNT; op++)
        all += sum[op];
    if (all)
        fprintf(stderr, "slow paths of translated code: %llu\n", (unsigned long long)all);
    for (unsigned k = 0; k < DESC_KINDS && all; k++)
        fprintf(stderr, "  %-40s %20llu\n", kind_names[k], (unsigned long long)kinds[k]);
    for (unsigned n = 0; n < TOP && all; n++) {
        unsigned most = 0;

        for (unsigned op = 1; op < OP_COUNT; op++)
            if (sum[op] > sum[most])
                most = op;
        if (!sum[most])
            break;
        fprintf(stderr, "  %-40s %20llu\n", op_rows[most].name, (unsigned long long)sum[most]);
        sum[most] = 0;
    }
}

static void init_once(void)
{
    const char *wish = getenv("ANYKVM_STAT");

    owner = getpid();
    if (wish && *wish && strcmp(wish, "0"))
        atexit(print);
}

void slow_stat_add(struct jit *j)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, init_once);
    pthread_mutex_lock(&lock);
    j->next_live = live;
    live = j;
    pthread_mutex_unlock(&lock);
}

void slow_stat_remove(struct jit *j)
{
    struct jit **link = &live;

    pthread_mutex_lock(&lock);
    while (*link && *link != j)
        link = &(*link)->next_live;
    if (*link)
        *link = j->next_live;
    for (unsigned op = 0; op < OP_COUNT; op++)
        gone[op] += j->slow_ops[op];
    for (unsigned k = 0; k < DESC_KINDS; k++)
        gone_kinds[k] += j->slow_kinds[k];
    pthread_mutex_unlock(&lock);
}
