# What the tests of unmodified clients share: a guest's serial console to talk to, QEMU's monitor, and QEMU itself under
# anykvm exec. A test that lacks a program exits with 77 (skipped).
import hashlib, json, os, re, shutil, signal, socket, subprocess, sys, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ANYKVM = os.environ.get("ANYKVM", os.path.join(ROOT, "build/anykvm"))
BUILD = os.environ.get("BUILD", os.path.join(ROOT, "build"))
ENGINE = os.environ.get("ENGINE", "jit")
MODULES = ["drivers/virtio/virtio", "drivers/virtio/virtio_ring", "drivers/virtio/virtio_pci",
           "drivers/virtio/virtio_pci_legacy_dev", "drivers/virtio/virtio_pci_modern_dev",
           "drivers/virtio/virtio_mmio", "drivers/block/virtio_blk", "drivers/net/virtio_net",
           "drivers/net/net_failover", "net/core/failover"]
BAD = re.compile(r"BUG:|Oops|Call Trace|WARNING:|Kernel panic|self-tests for .* failed")


ESCAPES = re.compile(r"\r|\x1b(\[[0-9;?=]*[A-Za-z]|c|[()][A-Z0-9])")


class Failed(Exception):
    pass


def need(program):
    path = shutil.which(program) or (program if os.path.exists(program) else None)
    if not path:
        print(f"{program} is not installed")
        sys.exit(77)
    return path


def kernel():
    return subprocess.run([ROOT + "/scripts/fetch-kernel"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                          check=True).stdout.strip()


def initrd(folder):
    """The guests' initrd, kept in the build folder: made anew when what it is made of changes."""
    init, made = os.path.join(ROOT, "tests/clients/guest_init"), os.path.join(BUILD, "tests/clients")
    key = hashlib.sha256(open(init, "rb").read() + folder.encode() + repr(MODULES).encode()).hexdigest()[:16]
    out = f"{made}/initrd-{key}.gz"
    if not os.path.exists(out):
        os.makedirs(made, exist_ok=True)
        args = [ROOT + "/scripts/mkinitrd", f"{out}.{os.getpid()}", "-i", init]
        for m in MODULES:
            args += ["-f", f"{folder}/modules/kernel/{m}.ko:{m.split('/')[-1]}.ko"]
        subprocess.run(args, check=True, stdin=subprocess.DEVNULL)
        os.rename(f"{out}.{os.getpid()}", out)
    return out


def linux(append="", quiet=True):
    """QEMU's arguments for Debian's cloud kernel and the initrd with a shell on the serial console"""
    k = kernel()
    return ["-kernel", k + "/vmlinuz", "-initrd", initrd(k), "-append",
            f"console=ttyS0 panic=-1 reboot=t {'quiet ' if quiet else ''}{append}"]


def deadline(seconds):
    return time.monotonic() + seconds * float(os.environ.get("PATIENCE", "1"))


class Console:
    """A byte stream with what was not yet looked at"""

    def __init__(self, path, until=None):
        self.text, self.seen, self.commands = "", 0, 0
        self.socket = connect(path, until)
        self.socket.setblocking(False)

    def pump(self, seconds=0.05):
        self.socket.settimeout(seconds)
        try:
            data = self.socket.recv(65536)
        except (TimeoutError, BlockingIOError):
            return True
        except ConnectionError:
            data = b""
        self.text = self.text[:self.seen] + ESCAPES.sub("", self.text[self.seen:] + data.decode("latin1"))
        return bool(data)

    def expect(self, pattern, seconds=60):
        """The match of a regular expression behind what was matched before"""
        end = deadline(seconds)
        while True:
            m = re.compile(pattern, re.M).search(self.text, self.seen)
            if m:
                self.seen = m.end()
                return m
            alive = self.pump()
            if (not alive and not re.compile(pattern, re.M).search(self.text, self.seen)) or time.monotonic() > end:
                raise Failed(f"console: no {pattern!r} in {seconds} s{'' if alive else ' (closed)'}")

    def send(self, text):
        self.socket.settimeout(10)
        self.socket.sendall(text.encode())

    def sh(self, command, seconds=60):
        """Run a command in the guest's shell: its output without the last newline"""
        self.commands += 1
        n = self.commands
        self.send(f"{command}\necho done-{n}=$?\n")
        start = self.seen
        m = self.expect(rf"done-{n}=(\d+)$", seconds)
        out = self.text[start:m.start()].strip("\n")
        if m[1] != "0":
            raise Failed(f"guest: {command}: status {m[1]}: {out}")
        return out


def connect(path, until=None):
    until = until or deadline(20)
    while True:
        s = socket.socket(socket.AF_UNIX)
        try:
            s.connect(path)
            return s
        except OSError:
            s.close()
            if time.monotonic() > until:
                raise Failed(f"nobody listens at {path}")
            time.sleep(0.02)


class Monitor:
    """QMP"""

    def __init__(self, path):
        self.file = connect(path).makefile("rw")
        json.loads(self.file.readline())
        self("qmp_capabilities")

    def __call__(self, command, **arguments):
        json.dump({"execute": command, "arguments": arguments}, self.file)
        self.file.write("\n")
        self.file.flush()
        while True:
            line = self.file.readline()
            if not line:
                raise Failed(f"QEMU ended during {command}")
            answer = json.loads(line)
            if "error" in answer:
                raise Failed(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def hmp(self, line):
        return self("human-monitor-command", **{"command-line": line}).replace("\r", "")


class Qemu:
    """QEMU with -accel kvm under anykvm exec; with Qemu(...) as q: q.console, q.monitor"""
    made = []

    def __init__(self, *args, machine="pc", cpu="host", memory="256", cpus=1, env=None, options=(), accel="kvm",
                 display=("-nodefaults", "-nographic")):
        self.tmp = tempfile.mkdtemp()
        name = lambda n: os.path.join(self.tmp, n)
        self.gdb, self.err = name("gdb"), open(name("err"), "w+")
        run = [need("qemu-system-x86_64"), "-accel", accel, "-M", machine, "-cpu", cpu, "-m", memory, "-smp", str(cpus),
               *display, "-no-reboot", "-chardev", f"socket,id=s,path={name('serial')},server=on,wait=on",
               "-serial", "chardev:s", "-qmp", f"unix:{name('qmp')},server=on,wait=off", *args]
        if accel.startswith("kvm"):
            run = [ANYKVM, "exec", "--engine", ENGINE, *options, "--", *run]
        self.process = subprocess.Popen(run, stdin=subprocess.DEVNULL, stdout=self.err, stderr=self.err,
                                        env={**os.environ, **(env or {})})
        Qemu.made.append(self)
        self.console = Console(name("serial"))
        self.monitor = Monitor(name("qmp"))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if not kind and BAD.search(self.console.text):
            raise Failed(f"guest: {BAD.search(self.console.text)[0]}")
        if not kind:
            shutil.rmtree(self.tmp)
            Qemu.made.remove(self)

    def boot(self, seconds=60):
        self.console.expect("guest-ready$", seconds) # SeaBIOS may have left its line open
        self.console.sh("true")
        return self.console

    def ends(self, seconds=20):
        """The guest powers off: QEMU's exit status must be 0"""
        end = deadline(seconds)
        while self.process.poll() is None and time.monotonic() < end:
            self.console.pump()
        if self.process.poll() != 0:
            raise Failed(f"QEMU's exit status is {self.process.poll()}")

    def power_off(self):
        self.console.send("poweroff -f\n")
        self.ends()

    def stat(self):
        return subprocess.run([ANYKVM, "stat", "-p", str(self.process.pid)], stdout=subprocess.PIPE, text=True).stdout

    def tell(self):
        self.console.pump()
        self.err.seek(0)
        print("--- console\n" + "\n".join(self.console.text.split("\n")[-40:]))
        print("--- QEMU\n" + self.err.read()[-4000:])
        print(self.stat() if self.process.poll() is None else f"exit status {self.process.poll()}")
        self.process.kill()
        shutil.rmtree(self.tmp)


def check(what, wanted, got):
    if wanted != got:
        raise Failed(f"{what}: wanted {wanted!r}, got {got!r}")


def main(cases):
    """NAME...: run these cases, all without a name"""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    status = 0
    for name in sys.argv[1:] or cases:
        start = time.monotonic()
        try:
            cases[name]()
            print(f"{name}: passed, {time.monotonic() - start:.1f} s")
        except (Failed, subprocess.SubprocessError, OSError, ValueError) as e:
            print(f"{name}: {type(e).__name__}: {e}")
            for q in Qemu.made:
                q.tell()
            status = 1
        finally:
            for q in Qemu.made:
                q.process.kill()
            Qemu.made.clear()
    sys.exit(status)
