/* SPDX-License-Identifier: MIT
 * loader.c: the guest's kernel and initrd: reads files, tells kinds apart, places the initrd, sets the first registers.
 */
#include "vmm.h"
#include "loader.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

void free_file(void *data, size_t size)
{
    munmap(data, size);
}

void *read_file(const char *path, const char *option, size_t *size)
{
    struct stat st;
    char *data;
    size_t got = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || fstat(fd, &st) < 0) {
        vmm_error("%s %s: %s", option, path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    if (!S_ISREG(st.st_mode) || st.st_size == 0) {
        vmm_error("%s %s: %s", option, path, S_ISREG(st.st_mode) ? "the file is empty" : "not a regular file");
        close(fd);
        return NULL;
    }
    data = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        data = NULL;
    else
        madvise(data, st.st_size, MADV_HUGEPAGE);
    while (data && got < (size_t)st.st_size) {
        ssize_t n = read(fd, data + got, st.st_size - got);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            vmm_error("%s %s: %s", option, path, n < 0 ? strerror(errno) : "became shorter while it was read");
            free_file(data, st.st_size);
            close(fd);
            return NULL;
        }
        got += n;
    }
    close(fd);
    if (!data)
        vmm_error("%s %s: no memory for %zu bytes", option, path, (size_t)st.st_size);
    *size = got;
    return data;
}

int load_initrd(struct machine *m, uint64_t limit, uint64_t kernel_end, uint64_t *gpa, uint64_t *size)
{
    const char *path = m->config.initrd;
    uint64_t top = limit < m->low_ram ? limit : m->low_ram;
    size_t n;
    void *data, *to;

    *gpa = *size = 0;
    if (!path)
        return 0;
    data = read_file(path, "--initrd", &n);
    if (!data)
        return -1;
    if (n > top || ((top - n) & ~0xfffull) < kernel_end) {
        free_file(data, n);
        return vmm_error("--initrd %s: %llu MiB does not fit beside the kernel in %llu MiB of RAM; use -m %lluM", path,
                         (unsigned long long)((n + MiB - 1) / MiB), (unsigned long long)(m->config.ram_size / MiB),
                         (unsigned long long)((kernel_end + n) / MiB + 64));
    }
    *gpa = (top - n) & ~0xfffull;
    *size = n;
    to = machine_ram(m, *gpa, n);
    memcpy(to, data, n);
    free_file(data, n);
    return 0;
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

int load_guest(struct machine *m)
{
    size_t size;
    uint8_t *file = read_file(m->config.kernel, "--kernel", &size);
    int ret;

    if (!file)
        return -1;
    if (size >= 4 && memcmp(file,
                            "\x7f"
                            "ELF",
                            4) == 0)
        ret = load_pvh(m, file, size);
    else
        ret = load_bzimage(m, file, size);
    free_file(file, size);
    return ret;
}
