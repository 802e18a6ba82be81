/* SPDX-License-Identifier: MIT
 * timer.c: timer [SECONDS [HZ]]: a timerfd of 1 kHz; how late each wake-up is after its deadline (CLOCK_MONOTONIC). An
 * expiration that was missed counts with the time until it was seen. Prints percentiles, and what share was within 1
 * ms. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define US_MAX 100000 /* a bucket a microsecond; the last holds all above */

static uint64_t bucket[US_MAX + 1];

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static struct timespec to_ts(uint64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
}

static unsigned percentile(uint64_t total, double share)
{
    const uint64_t want = (uint64_t)((double)total * share);
    uint64_t seen = 0;

    for (unsigned us = 0; us <= US_MAX; us++) {
        seen += bucket[us];
        if (seen > want)
            return us;
    }
    return US_MAX;
}

int main(int argc, char **argv)
{
    const unsigned long seconds = argc > 1 ? strtoul(argv[1], NULL, 0) : 30,
                        hz = argc > 2 ? strtoul(argv[2], NULL, 0) : 1000;
    uint64_t period_ns, deadline_ns, total = 0, within = 0, max_ns = 0;
    struct itimerspec its;
    int fd = timerfd_create(CLOCK_MONOTONIC, 0);

    if (fd < 0 || !seconds || !hz) {
        fprintf(stderr, "usage: timer [SECONDS [HZ]]\n");
        return 2;
    }
    mlockall(MCL_CURRENT | MCL_FUTURE); /* as far as allowed: the program's own page faults are not measured */
    period_ns = 1000000000 / hz;
    deadline_ns = now_ns() + 10000000;
    its = (struct itimerspec){.it_interval = to_ts(period_ns), .it_value = to_ts(deadline_ns)};
    if (timerfd_settime(fd, TFD_TIMER_ABSTIME, &its, NULL)) {
        perror("timerfd_settime");
        return 1;
    }
    while (total < seconds * hz) {
        uint64_t n, seen_ns;

        if (read(fd, &n, sizeof(n)) != sizeof(n)) {
            perror("read");
            return 1;
        }
        for (seen_ns = now_ns(); n--; deadline_ns += period_ns, total++) {
            const uint64_t late_ns = seen_ns > deadline_ns ? seen_ns - deadline_ns : 0, us = late_ns / 1000;

            bucket[us > US_MAX ? US_MAX : us]++;
            within += late_ns <= 1000000;
            max_ns = late_ns > max_ns ? late_ns : max_ns;
        }
    }
    printf("timer %lu Hz: %llu expirations; late by 50%% %u us, 90%% %u us, 99%% %u us, 99.9%% %u us, max %llu us; "
           "%.3f%% within 1 ms\n",
           hz, (unsigned long long)total, percentile(total, 0.5), percentile(total, 0.9), percentile(total, 0.99),
           percentile(total, 0.999), (unsigned long long)max_ns / 1000, 100.0 * (double)within / (double)total);
    return 0;
}
