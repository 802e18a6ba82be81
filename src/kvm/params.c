/* SPDX-License-Identifier: MIT
 * params.c: module parameters, with the names that they have in kvm and kvm_intel: ANYKVM_PARAMS="ept=0,vpid=0", or
 * anykvm_set_params() before the first open. */
#include <anykvm.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kvm_host.h"
#include "params.h"

struct kvm_params kvm_params = {.ept = true, .vpid = true, .nested = false, .unrestricted_guest = true};

static int param_bool(void *where, const char *value, size_t len)
{
    const bool yes = len == 1 && strchr("1yY", *value), no = len == 1 && strchr("0nN", *value);

    if (!yes && !no)
        return -EINVAL;
    *(bool *)where = yes;
    return 0;
}

static int param_engine(void *where, const char *value, size_t len)
{
    char name[sizeof(kvm_params.engine)];

    if (len >= sizeof(name))
        return -EINVAL;
    memcpy(name, value, len);
    name[len] = 0;
    if (len && !cpu_engine_exists(name))
        return -EINVAL;
    memcpy(where, name, sizeof(name));
    return 0;
}

static const struct {
    const char *name;
    int (*set)(void *where, const char *value, size_t len);
    void *where;
} params[] = {
    {"ept", param_bool, &kvm_params.ept},        {"vpid", param_bool, &kvm_params.vpid},
    {"nested", param_bool, &kvm_params.nested},  {"unrestricted_guest", param_bool, &kvm_params.unrestricted_guest},
    {"engine", param_engine, kvm_params.engine}, {"hardened", param_bool, &kvm_params.hardened},
};

static int param_set(const char *item, size_t len)
{
    const char *equals = memchr(item, '=', len);
    const size_t name_len = equals ? (size_t)(equals - item) : len;
    unsigned i;

    for (i = 0; i < ARRAY_SIZE(params); i++)
        if (strlen(params[i].name) == name_len && !memcmp(params[i].name, item, name_len))
            return equals ? params[i].set(params[i].where, equals + 1, len - name_len - 1) : -EINVAL;
    return -EINVAL;
}

int kvm_params_set(const char *text, const char **bad)
{
    const char *p = text;

    while (*p) {
        const size_t len = strcspn(p, ",");

        if (len && param_set(p, len)) {
            if (bad)
                *bad = p;
            return -EINVAL;
        }
        p += len + (p[len] == ',');
    }
    return 0;
}

static bool set_by_call, environment_read;

int anykvm_set_params(const char *text, const char **bad)
{
    const int r = kvm_params_set(text, bad);

    set_by_call |= r == 0;
    errno = r ? EINVAL : errno;
    return r ? -1 : 0;
}

/* The environment comes first, so that what the program itself asked for wins. */
int kvm_params_init(void)
{
    const struct kvm_params asked = kvm_params;
    const char *text = getenv("ANYKVM_PARAMS"), *bad = NULL;

    environment_read = true;
    if (text && kvm_params_set(text, &bad)) {
        fprintf(stderr,
                "anykvm: ANYKVM_PARAMS: \"%s\" is no parameter or has no such value; known: ept vpid nested "
                "unrestricted_guest hardened (0 or 1), engine (interp, jit, check)\n",
                bad);
        return -EINVAL;
    }
    if (set_by_call)
        kvm_params = asked;
    return 0;
}

const char *anykvm_version(void)
{
    return "anykvm 0.1";
}

static const char *engine_in_force(void)
{
    static const char *const best[] = {"jit", "interp"};
    unsigned i;

    if (kvm_params.engine[0])
        return kvm_params.engine;
    for (i = 0; i < ARRAY_SIZE(best); i++)
        if (cpu_engine_exists(best[i]))
            return best[i];
    return "none";
}

int anykvm_describe(char *buf, size_t size)
{
    if (!environment_read) /* the device has not been opened yet */
        kvm_params_init();
    return snprintf(
        buf, size, "version=%s\nvendor=%s\nengine=%s\nept=%c\nvpid=%c\nnested=%c\nunrestricted_guest=%c\nhardened=%c\n",
        anykvm_version(), "kvm_intel", engine_in_force(), kvm_params.ept ? 'Y' : 'N', kvm_params.vpid ? 'Y' : 'N',
        kvm_params.nested ? 'Y' : 'N', kvm_params.unrestricted_guest ? 'Y' : 'N', kvm_params.hardened ? 'Y' : 'N');
}
