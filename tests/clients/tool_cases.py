# Tools that start QEMU by themselves, under anykvm exec as their manuals say: tool_cases.py [CASE ...]
import os, pty, re, select, shutil, subprocess, tempfile, time
from client import ANYKVM, ENGINE, Failed, deadline, main, need

FISH = b"""run
part-disk /dev/sda mbr
mkfs ext4 /dev/sda1
mount /dev/sda1 /
write /hello "from the appliance"
cat /hello
"""


def libguestfs():
    """guestfish makes a file system on an image, in an appliance that supermin builds of this machine's packages."""
    need("guestfish")
    if not os.path.isdir("/lib/modules") or not any(n.startswith("vmlinuz-") for n in os.listdir("/boot")):
        print("the appliance needs a kernel package (linux-image-cloud-amd64)")
        raise SystemExit(77)
    with tempfile.TemporaryDirectory() as tmp:
        with open(tmp + "/image", "wb") as f:
            f.truncate(200 << 20)
        p = subprocess.run([ANYKVM, "exec", "--engine", ENGINE, "--", "guestfish", "-a", tmp + "/image"], input=FISH,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=580,
                           env={**os.environ, "LIBGUESTFS_BACKEND": "direct", "LIBGUESTFS_DEBUG": "1"})
        log = p.stderr.decode("latin1")
        if p.returncode or b"from the appliance" not in p.stdout or "kvm-clock: Using msrs" not in log:
            raise Failed(f"guestfish: status {p.returncode}: {p.stdout!r}\n{log[-3000:]}")


def debvm():
    """debvm-run boots an image of debvm-create (kept in the user's cache folder) to a root shell."""
    need("debvm-run")
    kept = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "anykvm/debvm.ext4")
    if not os.path.exists(kept):
        subprocess.run(["debvm-create", "-r", "bookworm", "-o", kept + ".new", "--", "--include=linux-image-cloud-amd64",
                        "http://deb.debian.org/debian"], check=True, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL)
        os.rename(kept + ".new", kept)
    with tempfile.TemporaryDirectory() as tmp:
        shutil.copy(kept, tmp + "/image")
        pid, fd = pty.fork()
        if pid == 0:
            os.execv(ANYKVM, [ANYKVM, "exec", "--engine", ENGINE, "--", "debvm-run", "-i", tmp + "/image"])
        text, end, asked = "", deadline(580), False
        while time.monotonic() < end:
            if select.select([fd], [], [], 1)[0]:
                try:
                    data = os.read(fd, 65536)
                except OSError:
                    break
                text += data.decode("latin1")
            if not asked and "root@testvm" in text:
                os.write(fd, b"echo virt=$(systemd-detect-virt); poweroff\n")
                asked = True
        else:
            os.kill(pid, 9)
        status = os.waitpid(pid, 0)[1]
        if status or not re.search(r"^virt=kvm", text, re.M):
            raise Failed(f"debvm-run: status {status}: {text[-2000:]}")


def libvirt():
    """virt-host-validate finds the processor able and the device there and accessible."""
    p = subprocess.run([ANYKVM, "exec", "--engine", ENGINE, "--", need("virt-host-validate"), "qemu"], timeout=60,
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for what in ("hardware virtualization", "device /dev/kvm exists", "device /dev/kvm is accessible"):
        if not re.search(rf"{what}\s+: (\x1b\S*)?PASS", p.stdout):
            raise Failed(f"virt-host-validate: {what}: {p.stdout}")


main({"libvirt": libvirt, "libguestfs": libguestfs, "debvm": debvm})
