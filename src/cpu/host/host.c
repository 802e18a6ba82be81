/* SPDX-License-Identifier: MIT
 * host.c: moving bytes without vector registers, and with recovery where host memory may be gone. */
#include "cpu_int.h"
#include "host/host.h"

/* rep movsb starts slowly (some 20-40 cycles); short blocks, most of all, are moved by words. */
#define SHORT_COPY 64

void *memcpy(void *restrict dst, const void *restrict src, size_t n)
{
    unsigned char *d = dst;
    const unsigned char *s = src;
    uint64_t t;

    if (n <= SHORT_COPY) {
        for (; n >= 8; n -= 8, d += 8, s += 8)
            __asm__ volatile("movq %2, %0\n movq %0, %1" : "=&r"(t), "=m"(*(uint64_t *)d) : "m"(*(const uint64_t *)s));
        for (; n; n--, d++, s++)
            __asm__ volatile("movb %b2, %b0\n movb %b0, %1" : "=&q"(t), "=m"(*d) : "m"(*s));
        return dst;
    }
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
    return dst;
}

void *memmove(void *dst, const void *src, size_t n)
{
    unsigned char *d = dst;
    const unsigned char *s = src;

    if ((uintptr_t)d - (uintptr_t)s >= n)
        return memcpy(dst, src, n);
    d += n;
    s += n;
    while (n--) {
        unsigned char t = *--s;
        __asm__ volatile("movb %1, %0" : "=m"(*--d) : "q"(t)); /* a loop that the compiler does not turn into memmove */
    }
    return dst;
}

void *memset(void *dst, int byte, size_t n)
{
    void *d = dst;

    __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(byte) : "memory");
    return dst;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const unsigned char *p = a, *q = b;

    for (; n >= 8; n -= 8, p += 8, q += 8) {
        if (*(const uint64_t *)p != *(const uint64_t *)q)
            break;
    }
    for (; n; n--, p++, q++) {
        if (*p != *q)
            return *p - *q;
    }
    return 0;
}

int host_copy(void *dst, const void *src, size_t n)
{
    __asm__ volatile goto("1: rep movsb\n" HOST_EXTABLE("1b", "%l[fault]")
                          : "+D"(dst), "+S"(src), "+c"(n)
                          :
                          : "memory"
                          : fault);
    return 0;
fault:
    return -1;
}

int cpu_copy_user(void *dst, const void *src, size_t n)
{
    return host_copy(dst, src, n);
}

int host_set(void *dst, int byte, size_t n)
{
    __asm__ volatile goto("1: rep stosb\n" HOST_EXTABLE("1b", "%l[fault]")
                          : "+D"(dst), "+c"(n)
                          : "a"(byte)
                          : "memory"
                          : fault);
    return 0;
fault:
    return -1;
}

#define CMPXCHG(bits, suffix)                                                                      \
    int host_cmpxchg##bits(void *p, uint##bits##_t *old, uint##bits##_t val)                       \
    {                                                                                              \
        const uint##bits##_t want = *old;                                                          \
        uint##bits##_t seen = want;                                                                \
                                                                                                   \
        __asm__ volatile goto("1: lock cmpxchg" suffix " %2, %1\n" HOST_EXTABLE("1b", "%l[fault]") \
                              : "+a"(seen), "+m"(*(uint##bits##_t *)p)                             \
                              : "r"(val)                                                           \
                              : "memory", "cc"                                                     \
                              : fault);                                                            \
        *old = seen;                                                                               \
        return seen != want;                                                                       \
    fault:                                                                                         \
        return -1;                                                                                 \
    }
CMPXCHG(32, "l")
CMPXCHG(64, "q")
