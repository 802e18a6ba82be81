/* SPDX-License-Identifier: MIT
 * dir.c: /dev/kvm in a listing of /dev, behind the other entries. A stream of /dev is known by the name that it was
 * opened by, or by its entry "." (its inode number is a small one: no system call for other folders, but for the roots
 * of file systems). */
#include "shim.h"
#include <stdatomic.h>
#include <string.h>

#define SMALL_INO 64
#define STREAMS   16 /* of /dev that are open at once; further ones do not show it */

static struct stream {
    _Atomic(DIR *) dir;
    bool listed; /* the entry was there, or was made */
    struct dirent64 entry;
} streams[STREAMS];
static _Atomic unsigned open_streams;

/* struct dirent and struct dirent64 are one on x86-64 */
_Static_assert(sizeof(struct dirent) == sizeof(struct dirent64), "x86-64");

static struct stream *stream_of(DIR *dir)
{
    if (!atomic_load_explicit(&open_streams, memory_order_relaxed))
        return NULL;
    for (unsigned i = 0; i < STREAMS; i++)
        if (atomic_load(&streams[i].dir) == dir)
            return &streams[i];
    return NULL;
}

static void note(DIR *dir)
{
    if (stream_of(dir))
        return;
    for (unsigned i = 0; i < STREAMS; i++) {
        DIR *none = NULL;

        if (!atomic_compare_exchange_strong(&streams[i].dir, &none, dir))
            continue;
        streams[i].listed = false;
        atomic_fetch_add(&open_streams, 1);
        return;
    }
}

static bool is_dev(DIR *dir)
{
    const int saved = errno;
    struct stat64 dev, st;
    const bool same = REAL(stat64)("/dev", &dev) == 0 && REAL(fstat64)(dirfd(dir), &st) == 0 &&
                      st.st_ino == dev.st_ino && st.st_dev == dev.st_dev;

    errno = saved;
    return same;
}

static struct dirent64 *made(struct stream *s)
{
    s->listed = true;
    s->entry = (struct dirent64){.d_ino = KVM_INO, .d_type = DT_CHR, .d_name = "kvm"};
    s->entry.d_reclen = (unsigned short)((offsetof(struct dirent64, d_name) + sizeof("kvm") + 7) & ~7ul);
    return &s->entry;
}

/* What libc answered at this place of the stream */
static struct dirent64 *answer(DIR *dir, struct dirent64 *e, int before)
{
    struct stream *s;

    if (e && e->d_name[0] == '.' && !e->d_name[1] && e->d_ino <= SMALL_INO && is_dev(dir))
        note(dir);
    s = stream_of(dir);
    if (!s)
        return e;
    if (e && !strcmp(e->d_name, "kvm"))
        s->listed = true;
    return e || s->listed || errno != before ? e : made(s);
}

EXPORT struct dirent64 *readdir64(DIR *dir)
{
    const int before = errno;

    return answer(dir, REAL(readdir64)(dir), before);
}

EXPORT struct dirent *readdir(DIR *dir)
{
    const int before = errno;

    return (struct dirent *)answer(dir, (struct dirent64 *)REAL(readdir)(dir), before);
}

EXPORT DIR *opendir(const char *path)
{
    DIR *dir = REAL(opendir)(path);

    if (dir && (shim_same_path(path, "/dev") || shim_same_path(path, "/dev/")))
        note(dir);
    return dir;
}

EXPORT int closedir(DIR *dir)
{
    struct stream *s = stream_of(dir);

    if (s) {
        atomic_fetch_sub(&open_streams, 1);
        atomic_store(&s->dir, NULL);
    }
    return REAL(closedir)(dir);
}

static void again(DIR *dir)
{
    struct stream *s = stream_of(dir);

    if (s)
        s->listed = false;
}

EXPORT void rewinddir(DIR *dir)
{
    again(dir);
    REAL(rewinddir)(dir);
}

EXPORT void seekdir(DIR *dir, long place)
{
    again(dir);
    REAL(seekdir)(dir, place);
}
