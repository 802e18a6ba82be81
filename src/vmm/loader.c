/* SPDX-License-Identifier: MIT
 * loader.c: the guest's kernel and initrd: reads files, tells kinds apart, places the initrd, sets the first registers.
 */
#include "vmm.h"
#include "loader.h"
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int open_file(const char *path, const char *option, size_t *size)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || fstat(fd, &st) < 0) {
        vmm_error("%s %s: %s", option, path, strerror(errno));
    } else if (!S_ISREG(st.st_mode) || st.st_size == 0) {
        vmm_error("%s %s: %s", option, path, S_ISREG(st.st_mode) ? "the file is empty" : "not a regular file");
    } else {
        *size = (size_t)st.st_size;
        return fd;
    }
    if (fd >= 0)
        close(fd);
    return -1;
}

int read_part(int fd, const char *path, const char *option, void *to, size_t size, size_t offset)
{
    for (size_t got = 0; got < size;) {
        ssize_t n = pread(fd, (char *)to + got, size - got, (off_t)(offset + got));

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return vmm_error("%s %s: %s", option, path, n < 0 ? strerror(errno) : "became shorter while it was read");
        got += (size_t)n;
    }
    return 0;
}

int load_initrd(struct machine *m, uint64_t limit, uint64_t kernel_end, uint64_t *gpa, uint64_t *size)
{
    const char *path = m->config.initrd;
    uint64_t top = limit < m->low_ram ? limit : m->low_ram;
    size_t n;
    int fd, ret;

    *gpa = *size = 0;
    if (!path)
        return 0;
    fd = open_file(path, "--initrd", &n);
    if (fd < 0)
        return -1;
    if (n > top || ((top - n) & ~0xfffull) < kernel_end) {
        close(fd);
        return vmm_error("--initrd %s: %llu MiB does not fit beside the kernel in %llu MiB of RAM; use -m %lluM", path,
                         (unsigned long long)((n + MiB - 1) / MiB), (unsigned long long)(m->config.ram_size / MiB),
                         (unsigned long long)((kernel_end + n) / MiB + 64));
    }
    *gpa = (top - n) & ~0xfffull;
    *size = n;
    ret = read_part(fd, path, "--initrd", machine_ram(m, *gpa, n), n, 0);
    close(fd);
    return ret;
}

/* ---- memory that the guest is certain to need ---- */
struct warm {
    char *from;
    size_t size;
};

static void *warm_thread(void *arg)
{
    struct warm w = *(struct warm *)arg;

    free(arg);
    for (size_t at = 0; at < w.size; at += MiB)
        madvise(w.from + at, w.size - at < MiB ? w.size - at : MiB, MADV_POPULATE_WRITE);
    return NULL;
}

/* Meanwhile, by another thread: making and clearing host memory is a good part of a boot. Contents stay. */
void ram_warm(struct machine *m, uint64_t gpa, uint64_t size)
{
    const uint64_t first = (gpa + 0xfff) & ~0xfffull;
    char *from = machine_ram(m, first, size);
    struct warm *w = from ? malloc(sizeof(*w)) : NULL;
    pthread_t thread;

    if (!w)
        return;
    *w = (struct warm){.from = from, .size = size & ~0xfffull};
    if (pthread_create(&thread, NULL, warm_thread, w) == 0)
        pthread_detach(thread);
    else
        free(w);
}

int loader_set_regs(struct machine *m, const struct entry_state *e)
{
    const struct kvm_api *api = m->accel.api;
    int fd = m->vcpus[0].fd;
    struct kvm_regs regs = {.rip = e->rip, .rsi = e->rsi, .rbx = e->rbx, .rflags = 2};
    struct kvm_sregs sregs;
    struct kvm_segment code = {.selector = 0x10, .limit = 0xffffffff, .type = 11, .present = 1, .s = 1, .g = 1};
    struct kvm_segment data = {.selector = 0x18, .limit = 0xffffffff, .type = 3, .present = 1, .s = 1, .g = 1, .db = 1};
    struct kvm_segment tss = {.selector = 0x20, .limit = 0x67, .type = 11, .present = 1};
    uint64_t *gdt = machine_ram(m, BOOT_GDT, 64);
    static const uint64_t descriptors[] = {0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00008b0000000067, 0};

    if (!gdt || api->ioctl(fd, KVM_GET_SREGS, &sregs) < 0)
        return vmm_error("KVM_GET_SREGS: %s", strerror(errno));
    memcpy(gdt, descriptors, sizeof(descriptors));
    code.l = e->long_mode;
    code.db = !e->long_mode;
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.tr = tss;
    sregs.gdt.base = BOOT_GDT;
    sregs.gdt.limit = sizeof(descriptors) - 1;
    sregs.idt.limit = 0;
    sregs.cr0 = e->long_mode ? 0x80000031 : 0x31; /* PE, ET, NE (and PG) */
    sregs.cr4 = e->long_mode ? 0x20 : 0;          /* PAE */
    sregs.efer = e->long_mode ? 0x500 : 0;        /* LME, LMA */
    sregs.cr3 = e->cr3;
    if (api->ioctl(fd, KVM_SET_SREGS, &sregs) < 0)
        return vmm_error("KVM_SET_SREGS: %s", strerror(errno));
    if (api->ioctl(fd, KVM_SET_REGS, &regs) < 0)
        return vmm_error("KVM_SET_REGS: %s", strerror(errno));
    return 0;
}

static int load_elf_file(struct machine *m, int fd, size_t size)
{
    const char *path = m->config.kernel;
    void *file = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int ret;

    if (file == MAP_FAILED)
        return vmm_error("--kernel %s: no memory for %zu bytes", path, size);
    ret = read_part(fd, path, "--kernel", file, size, 0);
    if (ret == 0)
        ret = load_pvh(m, file, size);
    munmap(file, size);
    return ret;
}

int load_guest(struct machine *m)
{
    const char *path = m->config.kernel;
    uint8_t head[LOADER_HEAD] = {0};
    size_t size;
    int fd = open_file(path, "--kernel", &size), ret;

    if (fd < 0)
        return -1;
    ret = read_part(fd, path, "--kernel", head, size < sizeof(head) ? size : sizeof(head), 0);
    if (ret == 0)
        ret = memcmp(head, ELFMAG, SELFMAG) == 0 ? load_elf_file(m, fd, size) : load_bzimage(m, head, fd, size);
    close(fd);
    return ret;
}
