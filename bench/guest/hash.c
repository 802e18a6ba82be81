/* SPDX-License-Identifier: MIT
 * hash.c: SHA-256 (FIPS 180-4) without the processor's SHA instructions, CRC-32 by table, and a hash table of strings.
 */
#include "bench.h"
#include <stdio.h>
#include <string.h>

#define SIZE  (1u << 20)
#define SLOTS (1u << 15)

const char bench_name[] = "hash";
static uint8_t *data;
static uint32_t crc_table[256], k256[64];
static struct slot {
    char key[16];
    uint32_t count;
} * slots;

/* The constants of SHA-256 are the fractions of cube roots of the first 64 primes; found in integers. */
static void make_k256(void)
{
    for (unsigned i = 0, n = 2; i < 64; n++) {
        unsigned d = 2;
        unsigned __int128 low = 0, high = (unsigned __int128)8 << 32; /* root * 2^32 */

        while (d * d <= n && n % d)
            d++;
        if (d * d <= n)
            continue;
        while (high - low > 1) {
            const unsigned __int128 m = (low + high) / 2;

            if (m * m * m <= (unsigned __int128)n << 96)
                low = m;
            else
                high = m;
        }
        k256[i++] = (uint32_t)low;
    }
}

void bench_setup(unsigned long scale)
{
    uint64_t random = 11;

    data = bench_alloc(SIZE);
    slots = bench_alloc(SLOTS * sizeof(*slots));
    for (unsigned i = 0; i < SIZE; i++)
        data[i] = (uint8_t)(bench_random(&random) >> 56);
    for (uint32_t i = 0; i < 256; i++) {
        crc_table[i] = i;
        for (int bit = 0; bit < 8; bit++)
            crc_table[i] = crc_table[i] >> 1 ^ (crc_table[i] & 1 ? 0xedb88320 : 0);
    }
    make_k256();
}

static inline uint32_t ror(uint32_t v, unsigned n)
{
    return v >> n | v << (32 - n);
}

static void sha256_block(uint32_t h[8], const uint8_t *p)
{
    uint32_t w[64], v[8];

    for (unsigned i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    for (unsigned i = 16; i < 64; i++)
        w[i] = w[i - 16] + w[i - 7] + (ror(w[i - 15], 7) ^ ror(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (ror(w[i - 2], 17) ^ ror(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(v, h, sizeof(v));
    for (unsigned i = 0; i < 64; i++) {
        const uint32_t t1 =
            v[7] + (ror(v[4], 6) ^ ror(v[4], 11) ^ ror(v[4], 25)) + ((v[4] & v[5]) ^ (~v[4] & v[6])) + k256[i] + w[i];
        const uint32_t t2 =
            (ror(v[0], 2) ^ ror(v[0], 13) ^ ror(v[0], 22)) + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));

        memmove(v + 1, v, 7 * sizeof(v[0]));
        v[4] += t1;
        v[0] = t1 + t2;
    }
    for (unsigned i = 0; i < 8; i++)
        h[i] += v[i];
}

static uint64_t sha256(void)
{
    uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

    for (unsigned i = 0; i < SIZE; i += 64)
        sha256_block(h, data + i);
    return (uint64_t)h[0] << 32 | h[7];
}

static uint32_t crc32(void)
{
    uint32_t crc = ~0u;

    for (unsigned i = 0; i < SIZE; i++)
        crc = crc >> 8 ^ crc_table[(crc ^ data[i]) & 0xff];
    return ~crc;
}

static uint64_t table(unsigned rounds)
{
    uint64_t probes = 0;

    for (unsigned i = 0; i < rounds; i++) {
        const uint32_t id = (uint32_t)(i * 2654435761u >> 18); /* 16384 keys */
        char key[16] = "key-";
        uint32_t hash = 2166136261u;
        unsigned n = 4;

        for (uint32_t v = id; v || n == 4; v /= 10)
            key[n++] = (char)('0' + v % 10);
        for (unsigned j = 0; j < n; j++)
            hash = (hash ^ (uint8_t)key[j]) * 16777619u;
        for (;; hash++, probes++) {
            struct slot *s = &slots[hash % SLOTS];

            if (!s->count)
                memcpy(s->key, key, sizeof(key));
            if (!strcmp(s->key, key)) {
                s->count++;
                break;
            }
        }
    }
    return probes;
}

uint64_t bench_run(unsigned long scale)
{
    uint64_t sum = 0;

    for (unsigned long round = 0; round < 8 * scale / 100; round++) {
        sum = bench_mix(sum, sha256());
        sum = bench_mix(sum, crc32());
        sum = bench_mix(sum, table(200000));
        data[round % SIZE]++;
    }
    return sum;
}
