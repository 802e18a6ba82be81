/* SPDX-License-Identifier: MIT
 * rtc.c: an MC146818 clock: ports 0x70 (index) and 0x71 (data). The time is the host's, in UTC. */
#include "vmm.h"
#include <string.h>
#include <time.h>

enum {
    RTC_SEC,
    RTC_SEC_ALARM,
    RTC_MIN,
    RTC_MIN_ALARM,
    RTC_HOUR,
    RTC_HOUR_ALARM,
    RTC_WEEKDAY,
    RTC_DAY,
    RTC_MONTH,
    RTC_YEAR,
    RTC_A,
    RTC_B,
    RTC_C,
    RTC_D,
    RTC_CENTURY = 0x32
};
#define B_24H    0x02
#define B_BINARY 0x04
#define B_SET    0x80
#define A_UIP    0x80
#define D_VALID  0x80

struct rtc {
    struct device dev;
    uint8_t index;
    uint8_t ram[128];
    int64_t offset_s; /* guest clock minus host clock */
};

static uint8_t encode(const struct rtc *r, unsigned v)
{
    return r->ram[RTC_B] & B_BINARY ? v : v / 10 << 4 | v % 10;
}

static unsigned decode(const struct rtc *r, uint8_t v)
{
    return r->ram[RTC_B] & B_BINARY ? v : (v >> 4) * 10u + (v & 15);
}

static uint8_t hour(const struct rtc *r, unsigned h)
{
    if (r->ram[RTC_B] & B_24H)
        return encode(r, h);
    return encode(r, h % 12 ? h % 12 : 12) | (h >= 12 ? 0x80 : 0);
}

static void fill_time(struct rtc *r)
{
    time_t now = time(NULL) + r->offset_s;
    struct tm tm;

    if (r->ram[RTC_B] & B_SET)
        return; /* the guest is setting the clock: the registers stand */
    gmtime_r(&now, &tm);
    r->ram[RTC_SEC] = encode(r, tm.tm_sec);
    r->ram[RTC_MIN] = encode(r, tm.tm_min);
    r->ram[RTC_HOUR] = hour(r, tm.tm_hour);
    r->ram[RTC_WEEKDAY] = encode(r, tm.tm_wday + 1);
    r->ram[RTC_DAY] = encode(r, tm.tm_mday);
    r->ram[RTC_MONTH] = encode(r, tm.tm_mon + 1);
    r->ram[RTC_YEAR] = encode(r, tm.tm_year % 100);
    r->ram[RTC_CENTURY] = encode(r, 19 + tm.tm_year / 100);
}

/* The guest has written the clock's registers: keep the distance to the host's clock. */
static void take_time(struct rtc *r)
{
    uint8_t h = r->ram[RTC_HOUR];
    struct tm tm = {.tm_sec = decode(r, r->ram[RTC_SEC]),
                    .tm_min = decode(r, r->ram[RTC_MIN]),
                    .tm_mday = decode(r, r->ram[RTC_DAY]),
                    .tm_mon = decode(r, r->ram[RTC_MONTH]) - 1,
                    .tm_year = decode(r, r->ram[RTC_YEAR]) + (decode(r, r->ram[RTC_CENTURY]) - 19) * 100};

    if (r->ram[RTC_B] & B_24H)
        tm.tm_hour = decode(r, h);
    else
        tm.tm_hour = decode(r, h & 0x7f) % 12 + (h & 0x80 ? 12 : 0);
    r->offset_s = timegm(&tm) - time(NULL);
}

static uint64_t rtc_read(struct device *dev, uint64_t off, unsigned size)
{
    struct rtc *r = container_of(dev, struct rtc, dev);
    unsigned i = r->index & 0x7f;

    if (off == 0)
        return 0xff; /* the index cannot be read back */
    if (i <= RTC_YEAR || i == RTC_CENTURY)
        fill_time(r);
    if (i == RTC_A)
        return r->ram[RTC_A] & ~A_UIP;
    if (i == RTC_C) {
        uint8_t v = r->ram[RTC_C];
        r->ram[RTC_C] = 0;
        return v;
    }
    return i == RTC_D ? D_VALID : r->ram[i];
}

static void rtc_write(struct device *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct rtc *r = container_of(dev, struct rtc, dev);
    unsigned i = r->index & 0x7f;

    if (off == 0) {
        r->index = value;
        return;
    }
    if (i == RTC_C || i == RTC_D)
        return;
    if (i <= RTC_YEAR || i == RTC_CENTURY)
        fill_time(r);
    if (i == RTC_B && (value & B_SET))
        fill_time(r);
    r->ram[i] = value;
    if (i <= RTC_YEAR || i == RTC_CENTURY)
        take_time(r);
}

static void rtc_reset(struct device *dev)
{
    struct rtc *r = container_of(dev, struct rtc, dev);

    r->index = 0;
    r->ram[RTC_A] = 0x26; /* 32.768 kHz, 1024 Hz */
    r->ram[RTC_B] = (r->ram[RTC_B] & B_BINARY) | B_24H;
    r->ram[RTC_C] = 0;
}

static const struct state_field rtc_state[] = {
    STATE(struct rtc, index), STATE(struct rtc, ram), STATE(struct rtc, offset_s), {NULL, 0, 0}};
const struct device_type rtc_type = {.name = "rtc",
                                     .size = sizeof(struct rtc),
                                     .widths = W8,
                                     .reset = rtc_reset,
                                     .read = rtc_read,
                                     .write = rtc_write,
                                     .state = rtc_state};
