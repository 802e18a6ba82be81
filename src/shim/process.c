/* SPDX-License-Identifier: MIT
 * process.c: a program that is started with an environment of the caller's making finds /dev/kvm all the same: what
 * this process was started with (LD_PRELOAD, ANYKVM_...) is added where it is missing. Nothing here allocates: a vfork
 * child may call. */
#include "shim.h"
#include <stdlib.h>
#include <string.h>

#define KEPT 5
static const char *const kept_names[KEPT] = {
    "LD_PRELOAD=", "ANYKVM_PARAMS=", "ANYKVM_TRACE=", "ANYKVM_TRACE_FILE=", "ANYKVM_CPUID="};
static const char *kept[KEPT];

__attribute__((constructor)) static void keep(void)
{
    for (unsigned k = 0; k < KEPT; k++)
        for (char **e = environ; e && *e; e++)
            if (!strncmp(*e, kept_names[k], strlen(kept_names[k])) && (k || strstr(*e, "libanykvm-shim")))
                kept[k] = strdup(*e);
}

static bool has(char *const *env, const char *name)
{
    for (; *env; env++)
        if (!strncmp(*env, name, strlen(name)))
            return true;
    return false;
}

static size_t count(char *const *env)
{
    size_t n = 0;

    while (env[n])
        n++;
    return n;
}

/* to: room for count(env) + KEPT + 1 */
static char *const *complete(char *const *env, const char **to)
{
    size_t n = count(env);

    if (!kept[0] || has(env, kept_names[0]))
        return env;
    memcpy(to, env, n * sizeof(*to));
    for (unsigned k = 0; k < KEPT; k++)
        if (kept[k] && !has(env, kept_names[k]))
            to[n++] = kept[k];
    to[n] = NULL;
    return (char *const *)to;
}

#define ROOM(env) __builtin_alloca((count(env) + KEPT + 1) * sizeof(char *))

EXPORT int execve(const char *path, char *const argv[], char *const env[])
{
    return REAL(execve)(path, argv, env ? complete(env, ROOM(env)) : env);
}

EXPORT int execvpe(const char *file, char *const argv[], char *const env[])
{
    return REAL(execvpe)(file, argv, env ? complete(env, ROOM(env)) : env);
}

EXPORT int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                       const posix_spawnattr_t *attr, char *const argv[], char *const env[])
{
    return REAL(posix_spawn)(pid, path, actions, attr, argv, env ? complete(env, ROOM(env)) : env);
}

EXPORT int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
                        const posix_spawnattr_t *attr, char *const argv[], char *const env[])
{
    return REAL(posix_spawnp)(pid, file, actions, attr, argv, env ? complete(env, ROOM(env)) : env);
}
