/* SPDX-License-Identifier: MIT
 * console.c: the serial port's other end: stdin and stdout. A terminal goes to raw mode, Ctrl-A x quits (Ctrl-A Ctrl-A
 * sends one). Input is read only when the guest can take it, so piped input waits for the guest; its end quits nothing.
 */
#include "vmm.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <termios.h>
#include <unistd.h>

#define ESCAPE 0x01 /* Ctrl-A */

static struct {
    struct machine *machine;
    struct termios saved;
    bool raw, escaped, output_failed;
    int wake_fd;
    pthread_t thread;
    _Atomic bool stop;
    pthread_mutex_t lock; /* pending */
    uint8_t pending[128]; /* goes to the guest before anything new is read */
    unsigned npending;
} console = {.wake_fd = -1, .lock = PTHREAD_MUTEX_INITIALIZER};

static void restore_terminal(void)
{
    if (console.raw)
        tcsetattr(STDIN_FILENO, TCSANOW, &console.saved);
    console.raw = false;
}

static void on_fatal_signal(int sig)
{
    restore_terminal();
    signal(sig, SIG_DFL);
    raise(sig);
}

void console_write(const void *data, size_t n)
{
    const char *p = data;

    while (n) {
        ssize_t done = write(STDOUT_FILENO, p, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0 && errno == EAGAIN) {
            struct pollfd pfd = {.fd = STDOUT_FILENO, .events = POLLOUT};
            poll(&pfd, 1, -1);
            continue;
        }
        if (done <= 0) { /* the guest goes on; its output has nowhere to go */
            if (!console.output_failed) {
                console.output_failed = true;
                machine_fail(console.machine, "standard output: %s", strerror(errno));
            }
            return;
        }
        p += done;
        n -= done;
    }
}

void console_room(void)
{
    uint64_t one = 1;

    if (console.wake_fd >= 0 && write(console.wake_fd, &one, sizeof(one)) < 0)
        return; /* the counter is full: it is awake */
}

/* One typed byte: false when it is part of an escape sequence. */
static bool filter(uint8_t c)
{
    if (console.escaped) {
        console.escaped = false;
        if (c == 'x' || c == 'X') {
            machine_request(console.machine, REQ_SHUTDOWN);
            return false;
        }
        return c == ESCAPE;
    }
    if (console.raw && c == ESCAPE) {
        console.escaped = true;
        return false;
    }
    return true;
}

static void drain_wake(void)
{
    uint64_t count;

    if (read(console.wake_fd, &count, sizeof(count)) < 0)
        return;
}

void console_unread(const uint8_t *data, unsigned n)
{
    if (!n)
        return;
    pthread_mutex_lock(&console.lock);
    if (n + console.npending <= sizeof(console.pending)) {
        memmove(console.pending + n, console.pending, console.npending);
        memcpy(console.pending, data, n);
        console.npending += n;
    }
    pthread_mutex_unlock(&console.lock);
    console_room();
}

/* Bytes that were read earlier: true when there were some. */
static bool give_pending(unsigned room)
{
    uint8_t out[sizeof(console.pending)];
    unsigned n;

    pthread_mutex_lock(&console.lock);
    n = console.npending < room ? console.npending : room;
    memcpy(out, console.pending, n);
    memmove(console.pending, console.pending + n, console.npending - n);
    console.npending -= n;
    pthread_mutex_unlock(&console.lock);
    if (n)
        serial_receive(console.machine->serial, out, n);
    return n != 0;
}

/* Reads at most what the guest can take; on a terminal one byte more, so that Ctrl-A x always works. */
static bool read_input(unsigned room)
{
    uint8_t in[64], out[64];
    unsigned n = 0;
    ssize_t got;

    if (room > sizeof(in))
        room = sizeof(in);
    got = read(STDIN_FILENO, in, room ? room : 1);
    if (got <= 0)
        return got < 0 && (errno == EINTR || errno == EAGAIN);
    for (ssize_t i = 0; i < got; i++)
        if (filter(in[i]))
            out[n++] = in[i];
    if (n && room)
        serial_receive(console.machine->serial, out, n);
    return true;
}

static void *console_thread(void *opaque)
{
    bool open = true;

    pthread_setname_np(pthread_self(), "console");
    while (!console.stop) {
        unsigned room = serial_can_receive(console.machine->serial);
        struct pollfd pfd[2] = {{.fd = console.wake_fd, .events = POLLIN},
                                {.fd = open && (room || console.raw) ? STDIN_FILENO : -1, .events = POLLIN}};

        if (room && give_pending(room))
            continue;
        if (poll(pfd, 2, -1) < 0 && errno != EINTR)
            break;
        if (pfd[0].revents)
            drain_wake();
        if (pfd[1].revents)
            open = read_input(room);
    }
    return opaque;
}

int console_start(struct machine *m)
{
    struct termios raw;
    int err;

    console.machine = m;
    console.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (console.wake_fd < 0)
        return vmm_error("console: %s", strerror(errno));
    signal(SIGPIPE, SIG_IGN);
    if (isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &console.saved) == 0) {
        raw = console.saved;
        cfmakeraw(&raw);
        raw.c_oflag |= OPOST; /* messages on stderr keep their line ends */
        console.raw = tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
        atexit(restore_terminal);
        signal(SIGTERM, on_fatal_signal);
        signal(SIGHUP, on_fatal_signal);
    }
    err = pthread_create(&console.thread, NULL, console_thread, NULL);
    return err ? vmm_error("console: no thread: %s", strerror(err)) : 0;
}

void console_stop(void)
{
    console.stop = true;
    console_room();
    pthread_join(console.thread, NULL);
    close(console.wake_fd);
    console.wake_fd = -1;
    restore_terminal();
}
