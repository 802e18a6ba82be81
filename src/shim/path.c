/* SPDX-License-Identifier: MIT
 * path.c: /dev/kvm by name: a character device 10:232 that anybody may open; and the files of files.c. */
#include "shim.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#define KVM_RDEV makedev(10, 232)

/* "/dev//./kvm" is "/dev/kvm" */
bool shim_same_path(const char *path, const char *plain)
{
    while (*path == *plain) {
        if (!*path)
            return true;
        if (*path == '/')
            while (path[1] == '/' || (path[1] == '.' && path[2] == '/'))
                path += path[1] == '/' ? 1 : 2;
        path++;
        plain++;
    }
    return false;
}

bool shim_is_kvm(int dirfd, const char *path)
{
    char link[40], dir[PATH_MAX];
    ssize_t n;

    if (!path)
        return false;
    if (path[0] == '/')
        return shim_same_path(path, "/dev/kvm");
    if (!shim_same_path(path, "kvm") && !shim_same_path(path, "./kvm"))
        return false;
    if (dirfd == AT_FDCWD)
        strcpy(link, "/proc/self/cwd");
    else
        snprintf(link, sizeof(link), "/proc/self/fd/%d", dirfd);
    n = readlink(link, dir, sizeof(dir));
    return n == 4 && !memcmp(dir, "/dev", 4);
}

/* ---- open ---- */
static int open_kvm(int flags)
{
    if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL)) {
        errno = EEXIST;
        return -1;
    }
    if (flags & O_DIRECTORY) {
        errno = ENOTDIR;
        return -1;
    }
    return anykvm_open("/dev/kvm", flags);
}

#define OPEN(dirfd, path, flags, other) \
    (shim_is_kvm(dirfd, path) ? open_kvm(flags) : shim_file(path) != FILE_OTHER ? shim_file_open(path, flags) : (other))

#define MODE(flags)                                                \
    ({                                                             \
        mode_t mode_ = 0;                                          \
        if ((flags)&O_CREAT || ((flags)&O_TMPFILE) == O_TMPFILE) { \
            va_list ap_;                                           \
            va_start(ap_, flags);                                  \
            mode_ = va_arg(ap_, mode_t);                           \
            va_end(ap_);                                           \
        }                                                          \
        mode_;                                                     \
    })

EXPORT int open(const char *path, int flags, ...)
{
    return OPEN(AT_FDCWD, path, flags, REAL(open)(path, flags, MODE(flags)));
}

EXPORT int open64(const char *path, int flags, ...)
{
    return OPEN(AT_FDCWD, path, flags, REAL(open64)(path, flags, MODE(flags)));
}

EXPORT int openat(int dirfd, const char *path, int flags, ...)
{
    return OPEN(dirfd, path, flags, REAL(openat)(dirfd, path, flags, MODE(flags)));
}

EXPORT int openat64(int dirfd, const char *path, int flags, ...)
{
    return OPEN(dirfd, path, flags, REAL(openat64)(dirfd, path, flags, MODE(flags)));
}

EXPORT int __open_2(const char *path, int flags)
{
    return OPEN(AT_FDCWD, path, flags, REAL(__open_2)(path, flags));
}

EXPORT int __open64_2(const char *path, int flags)
{
    return OPEN(AT_FDCWD, path, flags, REAL(__open64_2)(path, flags));
}

EXPORT int __openat_2(int dirfd, const char *path, int flags)
{
    return OPEN(dirfd, path, flags, REAL(__openat_2)(dirfd, path, flags));
}

EXPORT int __openat64_2(int dirfd, const char *path, int flags)
{
    return OPEN(dirfd, path, flags, REAL(__openat64_2)(dirfd, path, flags));
}

static bool is_ours(const char *path)
{
    return shim_is_kvm(AT_FDCWD, path) || shim_file(path) != FILE_OTHER;
}

static FILE *fopen_ours(const char *path, const char *mode)
{
    const int cloexec = strchr(mode, 'e') ? O_CLOEXEC : 0;
    const int file = mode[0] == 'r' && !strchr(mode, '+') ? O_RDONLY : O_RDWR;
    const int fd = shim_is_kvm(AT_FDCWD, path) ? open_kvm(O_RDWR | cloexec) : shim_file_open(path, file | cloexec);
    FILE *f = fd < 0 ? NULL : fdopen(fd, mode);

    if (fd >= 0 && !f)
        anykvm_close(fd);
    return f;
}

EXPORT FILE *fopen(const char *path, const char *mode)
{
    return is_ours(path) ? fopen_ours(path, mode) : REAL(fopen)(path, mode);
}

EXPORT FILE *fopen64(const char *path, const char *mode)
{
    return is_ours(path) ? fopen_ours(path, mode) : REAL(fopen64)(path, mode);
}

/* libc closes the descriptor by itself */
EXPORT int fclose(FILE *f)
{
    const int fd = f ? fileno(f) : -1;

    if (fd >= 0 && anykvm_known(fd))
        anykvm_forget(fd);
    return REAL(fclose)(f);
}

/* ---- access ---- */
static int access_kvm(int mode)
{
    if (mode & ~(R_OK | W_OK)) {
        errno = mode & ~(R_OK | W_OK | X_OK) ? EINVAL : EACCES;
        return -1;
    }
    return 0;
}

/* files.c's: read-only, folders may be entered. /proc/cpuinfo is the system's in this. */
static int access_file(enum shim_file kind, int mode)
{
    if (mode & ~(R_OK | W_OK | X_OK)) {
        errno = EINVAL;
        return -1;
    }
    if ((mode & W_OK) || (kind == FILE_OURS && (mode & X_OK))) {
        errno = EACCES;
        return -1;
    }
    return 0;
}

static bool only_ours(const char *path)
{
    const enum shim_file kind = shim_file(path);

    return kind == FILE_OURS || kind == FILE_FOLDER;
}

#define ACCESS(dirfd, path, mode, other) \
    (shim_is_kvm(dirfd, path) ? access_kvm(mode) : only_ours(path) ? access_file(shim_file(path), mode) : (other))

EXPORT int access(const char *path, int mode)
{
    return ACCESS(AT_FDCWD, path, mode, REAL(access)(path, mode));
}

EXPORT int eaccess(const char *path, int mode)
{
    return ACCESS(AT_FDCWD, path, mode, REAL(eaccess)(path, mode));
}

EXPORT int euidaccess(const char *path, int mode)
{
    return eaccess(path, mode);
}

EXPORT int faccessat(int dirfd, const char *path, int mode, int flags)
{
    return ACCESS(dirfd, path, mode, REAL(faccessat)(dirfd, path, mode, flags));
}

/* ---- stat: struct stat and struct stat64 are one on x86-64 ---- */
_Static_assert(sizeof(struct stat) == sizeof(struct stat64), "x86-64");

static int stat_kvm(void *buf)
{
    struct stat64 st;

    if (REAL(stat64)("/dev", &st))
        return -1;
    st.st_mode = S_IFCHR | 0666;
    st.st_rdev = KVM_RDEV;
    st.st_ino = KVM_INO;
    st.st_nlink = 1;
    st.st_uid = st.st_gid = 0;
    st.st_size = st.st_blocks = 0;
    *(struct stat64 *)buf = st;
    return 0;
}

static mode_t mode_of(enum shim_file kind)
{
    return kind == FILE_FOLDER ? S_IFDIR | 0755 : S_IFREG | 0444;
}

static int stat_file(const char *path, void *buf)
{
    struct stat64 st;

    if (REAL(stat64)("/sys", &st))
        return -1;
    st.st_mode = mode_of(shim_file(path));
    st.st_ino = 0x6b766d00 + strlen(path); /* any number serves */
    st.st_nlink = 1;
    st.st_uid = st.st_gid = 0;
    st.st_size = shim_file(path) == FILE_OURS ? 4096 : 0; /* as sysfs says */
    st.st_blocks = 0;
    *(struct stat64 *)buf = st;
    return 0;
}

#define STAT(dirfd, path, buf, other) \
    (shim_is_kvm(dirfd, path) ? stat_kvm(buf) : only_ours(path) ? stat_file(path, buf) : (other))

#define STAT_FUNCTION(name, type)                                \
    EXPORT int name(const char *path, struct type *buf)          \
    {                                                            \
        return STAT(AT_FDCWD, path, buf, REAL(name)(path, buf)); \
    }
STAT_FUNCTION(stat, stat)
STAT_FUNCTION(stat64, stat64)
STAT_FUNCTION(lstat, stat)
STAT_FUNCTION(lstat64, stat64)

#define XSTAT_FUNCTION(name, type)                                        \
    EXPORT int name(int version, const char *path, struct type *buf)      \
    {                                                                     \
        return STAT(AT_FDCWD, path, buf, REAL(name)(version, path, buf)); \
    }
XSTAT_FUNCTION(__xstat, stat)
XSTAT_FUNCTION(__xstat64, stat64)
XSTAT_FUNCTION(__lxstat, stat)
XSTAT_FUNCTION(__lxstat64, stat64)

#define FSTAT_FUNCTION(name, type)                                         \
    EXPORT int name(int fd, struct type *buf)                              \
    {                                                                      \
        return anykvm_is_device(fd) ? stat_kvm(buf) : REAL(name)(fd, buf); \
    }
FSTAT_FUNCTION(fstat, stat)
FSTAT_FUNCTION(fstat64, stat64)

#define FXSTAT_FUNCTION(name, type)                                                 \
    EXPORT int name(int version, int fd, struct type *buf)                          \
    {                                                                               \
        return anykvm_is_device(fd) ? stat_kvm(buf) : REAL(name)(version, fd, buf); \
    }
FXSTAT_FUNCTION(__fxstat, stat)
FXSTAT_FUNCTION(__fxstat64, stat64)

/* By name below dirfd, or, with AT_EMPTY_PATH and no name, dirfd itself */
static bool names_kvm(int dirfd, const char *path, int flags)
{
    if ((flags & AT_EMPTY_PATH) && (!path || !*path))
        return anykvm_is_device(dirfd);
    return shim_is_kvm(dirfd, path);
}

#define STATAT_FUNCTION(name, type)                                           \
    EXPORT int name(int dirfd, const char *path, struct type *buf, int flags) \
    {                                                                         \
        return names_kvm(dirfd, path, flags) ? stat_kvm(buf)                  \
               : only_ours(path)             ? stat_file(path, buf)           \
                                             : REAL(name)(dirfd, path, buf, flags);       \
    }
STATAT_FUNCTION(fstatat, stat)
STATAT_FUNCTION(fstatat64, stat64)

#define XSTATAT_FUNCTION(name, type)                                                       \
    EXPORT int name(int version, int dirfd, const char *path, struct type *buf, int flags) \
    {                                                                                      \
        return STAT(dirfd, path, buf, REAL(name)(version, dirfd, path, buf, flags));       \
    }
XSTATAT_FUNCTION(__fxstatat, stat)
XSTATAT_FUNCTION(__fxstatat64, stat64)

EXPORT int statx(int dirfd, const char *path, int flags, unsigned mask, struct statx *buf)
{
    int r;

    if (only_ours(path)) {
        r = REAL(statx)(AT_FDCWD, "/sys", 0, mask, buf);
        buf->stx_mode = (uint16_t)mode_of(shim_file(path));
        buf->stx_size = shim_file(path) == FILE_OURS ? 4096 : 0;
        buf->stx_ino = 0x6b766d00 + strlen(path);
        return r;
    }
    if (!names_kvm(dirfd, path, flags))
        return REAL(statx)(dirfd, path, flags, mask, buf);
    r = REAL(statx)(AT_FDCWD, "/dev", flags & ~AT_EMPTY_PATH, mask, buf);
    if (r)
        return r;
    buf->stx_mode = S_IFCHR | 0666;
    buf->stx_rdev_major = 10;
    buf->stx_rdev_minor = 232;
    buf->stx_ino = KVM_INO;
    buf->stx_nlink = 1;
    buf->stx_uid = buf->stx_gid = 0;
    buf->stx_size = buf->stx_blocks = 0;
    return 0;
}

/* ---- extended attributes: `ls -l` looks at them: none ---- */
static ssize_t no_attribute(void)
{
    errno = ENODATA;
    return -1;
}

#define XATTR_FUNCTION(name)                                                                      \
    EXPORT ssize_t name(const char *path, const char *key, void *value, size_t size)              \
    {                                                                                             \
        return shim_is_kvm(AT_FDCWD, path) ? no_attribute() : REAL(name)(path, key, value, size); \
    }
XATTR_FUNCTION(getxattr)
XATTR_FUNCTION(lgetxattr)

#define LISTXATTR_FUNCTION(name)                                               \
    EXPORT ssize_t name(const char *path, char *list, size_t size)             \
    {                                                                          \
        return shim_is_kvm(AT_FDCWD, path) ? 0 : REAL(name)(path, list, size); \
    }
LISTXATTR_FUNCTION(listxattr)
LISTXATTR_FUNCTION(llistxattr)
