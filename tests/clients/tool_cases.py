# Tools that start QEMU by themselves, under anykvm exec as their manuals say: tool_cases.py [CASE ...]
import os, pty, re, select, shutil, subprocess, tempfile, time
from client import ANYKVM, ENGINE, Failed, deadline, initrd, kernel, main, need

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
        if status or "virt=kvm" not in text: # the echoed command has "virt=$("; bash may send escapes in front of the answer
            raise Failed(f"debvm-run: status {status}: {text[-6000:]}")


def libvirt():
    """virt-host-validate finds the processor able and the device there and accessible."""
    p = subprocess.run([ANYKVM, "exec", "--engine", ENGINE, "--", need("virt-host-validate"), "qemu"], timeout=60,
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for what in ("hardware virtualization", "device /dev/kvm exists", "device /dev/kvm is accessible"):
        if not re.search(rf"{what}\s+: (\x1b\S*)?PASS", p.stdout):
            raise Failed(f"virt-host-validate: {what}: {p.stdout}")


SYSTEM_CONF = """namespaces = []
cgroup_controllers = []
security_driver = "none"
stdio_handler = "file"
user = "root"
group = "root"
"""
# A system daemon of the test's own: its files lie in file systems that only this mount namespace sees.
SYSTEM_SCRIPT = """set -e
cd "$1"
printf 'libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin\\n' | cat /etc/passwd - >passwd
printf 'libvirt-qemu:x:64055:\\nkvm:x:64056:\\n' | cat /etc/group - >group
mount --bind passwd /etc/passwd
mount --bind group /etc/group
for d in /etc/libvirt /run/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt; do
    mkdir -p $d
    mount -t tmpfs none $d
done
cp qemu.conf /etc/libvirt/
"$2" exec --engine "$3" -- libvirtd -p "$1/pid" >daemon.log 2>&1 &
v="virsh -q -c qemu:///system"
for n in $(seq 60); do [ -S /run/libvirt/libvirt-sock ] && break; sleep 1; done
$v domcapabilities --virttype kvm >capabilities
$v create domain.xml
for n in $(seq 60); do grep -q guest-ready console && break; sleep 1; done
$v qemu-monitor-command --hmp anykvm-test 'info kvm' >kvm
$v destroy anykvm-test
kill "$(cat pid)"
wait
"""
DOMAIN = """<domain type='kvm'><name>anykvm-test</name><memory unit='MiB'>256</memory><vcpu>2</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{kernel}</kernel><initrd>{initrd}</initrd>
<cmdline>console=ttyS0 panic=-1 quiet</cmdline></os><cpu mode='host-passthrough' check='none'/><features><acpi/><apic/></features>
<devices><emulator>{qemu}</emulator><controller type='usb' model='none'/><memballoon model='none'/>
<serial type='file'><source path='{console}'/></serial></devices></domain>
"""


def libvirt_system():
    """qemu:///system: a daemon under anykvm exec starts a domain of type kvm, which boots."""
    need("libvirtd"), need("virsh")
    if os.geteuid() or subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"],
                                      stderr=subprocess.DEVNULL).returncode:
        print("a mount namespace of its own needs root")
        raise SystemExit(77)
    with tempfile.TemporaryDirectory() as tmp:
        k = kernel()
        for name, text in (("qemu.conf", SYSTEM_CONF), ("console", ""), ("script", SYSTEM_SCRIPT), (
                "domain.xml", DOMAIN.format(kernel=k + "/vmlinuz", initrd=initrd(k), console=tmp + "/console",
                                            qemu=need("qemu-system-x86_64")))):
            with open(f"{tmp}/{name}", "w") as f:
                f.write(text)
        run = ["unshare", "-m", "--fork", "--pid", "--mount-proc", "--kill-child", "sh", tmp + "/script", tmp]
        p = subprocess.run([*run, ANYKVM, ENGINE], timeout=280, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True)
        got = {n: open(f"{tmp}/{n}", errors="replace").read() if os.path.exists(f"{tmp}/{n}") else ""
               for n in ("console", "kvm", "capabilities", "daemon.log")}
        if p.returncode or "guest-ready" not in got["console"] or "kvm support: enabled" not in got["kvm"] or \
                "<domain>kvm</domain>" not in got["capabilities"]:
            raise Failed(f"status {p.returncode}: {p.stdout}\n{got['console']}\n{got['kvm']}\n{got['daemon.log']}")


main({"libvirt": libvirt, "libvirt-system": libvirt_system, "libguestfs": libguestfs, "debvm": debvm})
