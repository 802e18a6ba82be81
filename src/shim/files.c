/* SPDX-License-Identifier: MIT
 * files.c: where else clients look for KVM: the parameters of its modules in /sys, and the processor's flags in
 * /proc/cpuinfo. A file is a memfd with the text, sealed; /proc/cpuinfo is the system's with one flag more. Names are
 * compared as they stand: no system call for a program that opens other files. */
#include "shim.h"
#include <cpuid.h>
#include <string.h>

#define SYS "/sys/module/kvm"
#define CPU "/proc/cpuinfo"

/* key: a line of anykvm_describe(); text: what it is always; neither: a folder */
static const struct file {
    const char *path, *key, *text;
} files[] = {
    {SYS, NULL, NULL},
    {SYS "/parameters", NULL, NULL},
    {SYS "/parameters/halt_poll_ns", NULL, "0\n"},
    {SYS "_intel", NULL, NULL},
    {SYS "_intel/parameters", NULL, NULL},
    {SYS "_intel/parameters/ept", "\nept=", NULL},
    {SYS "_intel/parameters/nested", "\nnested=", NULL},
    {SYS "_intel/parameters/unrestricted_guest", "\nunrestricted_guest=", NULL},
    {SYS "_intel/parameters/vpid", "\nvpid=", NULL},
};

static const struct file *file_of(const char *path)
{
    if (strncmp(path, SYS, sizeof(SYS) - 1))
        return NULL;
    for (unsigned i = 0; i < sizeof(files) / sizeof(files[0]); i++)
        if (!strcmp(path, files[i].path))
            return &files[i];
    return NULL;
}

/* The processor's own flag, or CPUID is to stay as it is */
static bool cpuinfo_is_right(void)
{
    const char *wish = getenv("ANYKVM_CPUID");

    return (wish && !strcmp(wish, "off")) || shim_cpuid_has_bit();
}

enum shim_file shim_file(const char *path)
{
    const struct file *f;

    if (!path || path[0] != '/')
        return FILE_OTHER;
    if (path[1] == 'p' && !strcmp(path, CPU))
        return cpuinfo_is_right() ? FILE_OTHER : FILE_CHANGED;
    f = path[1] == 's' ? file_of(path) : NULL;
    return !f ? FILE_OTHER : f->key || f->text ? FILE_OURS : FILE_FOLDER;
}

static int text_fd(const char *name, const char *text, size_t size, int flags)
{
    const int fd = memfd_create(name, MFD_ALLOW_SEALING | (flags & O_CLOEXEC ? MFD_CLOEXEC : 0));

    if (fd < 0)
        return -1;
    if (write(fd, text, size) != (ssize_t)size || lseek(fd, 0, SEEK_SET) ||
        REAL(fcntl)(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL)) {
        REAL(close)(fd);
        errno = ENOMEM;
        return -1;
    }
    return fd;
}

static int open_parameter(const struct file *f, int flags)
{
    char described[512], text[] = "N\n";
    const char *at;

    if (f->text)
        return text_fd("anykvm-parameter", f->text, strlen(f->text), flags);
    anykvm_describe(described, sizeof(described));
    at = strstr(described, f->key);
    if (at)
        text[0] = at[strlen(f->key)];
    return text_fd("anykvm-parameter", text, 2, flags);
}

static char *read_all(int fd, size_t *size)
{
    size_t room = 1 << 16;
    char *text = malloc(room);
    ssize_t n;

    *size = 0;
    while (text && (n = read(fd, text + *size, room - *size)) > 0) {
        char *more;

        *size += (size_t)n;
        if (*size < room)
            continue;
        more = realloc(text, room *= 2);
        if (!more)
            free(text);
        text = more;
    }
    return text;
}

/* Each line "flags : ..." gets one more word. */
static int open_cpuinfo(int flags)
{
    const int real = REAL(open)(CPU, O_RDONLY | O_CLOEXEC);
    size_t size = 0, n = 0;
    char *text = real < 0 ? NULL : read_all(real, &size), *out, *at, *end;
    const char *flag = shim_vendor_is_amd() ? " svm" : " vmx";
    int fd;

    if (real >= 0)
        REAL(close)(real);
    out = text ? malloc(size + size / 8 + 64) : NULL; /* a processor's part is much longer than 32 bytes */
    if (!out) {
        free(text);
        errno = real < 0 ? errno : ENOMEM;
        return -1;
    }
    for (at = text; at < text + size; at = end) {
        end = memchr(at, '\n', (size_t)(text + size - at));
        end = end ? end : text + size;
        memcpy(out + n, at, (size_t)(end - at));
        n += (size_t)(end - at);
        if (end - at > 5 && !memcmp(at, "flags", 5) && (at[5] == '\t' || at[5] == ' ')) {
            memcpy(out + n, flag, 4);
            n += 4;
        }
        if (end < text + size) {
            out[n++] = '\n';
            end++;
        }
    }
    fd = text_fd("anykvm-cpuinfo", out, n, flags);
    free(out);
    free(text);
    return fd;
}

/* Of FILE_OURS, FILE_CHANGED and FILE_FOLDER */
int shim_file_open(const char *path, int flags)
{
    const struct file *f = file_of(path);

    if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL)) {
        errno = EEXIST;
    } else if (f && !f->key && !f->text) { /* nobody could list it */
        errno = flags & (O_WRONLY | O_RDWR) ? EISDIR : EACCES;
    } else if (flags & O_DIRECTORY) {
        errno = ENOTDIR;
    } else if (flags & (O_WRONLY | O_RDWR)) {
        errno = EACCES;
    } else {
        return f ? open_parameter(f, flags) : open_cpuinfo(flags);
    }
    return -1;
}
