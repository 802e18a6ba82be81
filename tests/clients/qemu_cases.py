# QEMU's own features with -accel kvm under anykvm exec: qemu_cases.py [CASE ...]. A case is a function; main() names it.
import os, re, shutil, subprocess, tempfile, time
from client import Failed, Qemu, check, deadline, linux, main, need


def gdb(q, *commands, seconds=120):
    args = [need("gdb"), "-nx", "-batch", "-ex", "set architecture i386:x86-64", "-ex", f"target remote {q.gdb}"]
    for c in commands:
        args += ["-ex", c]
    return subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=seconds).stdout


def symbol(console, name):
    return int(console.sh(f"grep ' {name}$' /proc/kallsyms").split()[0], 16)


def gdb_stub():
    """Breakpoints of both kinds, single steps, a watchpoint; then the guest goes on."""
    need("gdb")
    for kind, cpus in (("break", 1), ("hbreak", 2)):
        with Qemu(*linux("nokaslr"), cpus=cpus) as q:
            c = q.boot()
            c.sh("echo 1 >/proc/sys/kernel/printk")
            at = symbol(c, "__x64_sys_newuname")
            q.monitor.hmp(f"gdbserver unix:{q.gdb},server=on,wait=off")
            c.sh("while echo $((n=n+1)) >/tmp/new; mv /tmp/new /tmp/n; do uname -r >/tmp/release; sleep 0.1; done &")
            out = gdb(q, f"{kind} *{at:#x}", "continue", "continue", "printf \"at=%lx\\n\", $rip", "x/4i $rip", "stepi",
                      "printf \"one=%lx\\n\", $rip", "stepi 20", "printf \"many=%lx\\n\", $rip", "delete",
                      "set $sp0 = $rsp - 8", "watch *(long *)$sp0", "continue",
                      "printf \"watch=%lx\\n\", $rip", "delete", "detach")
            got = dict(line.split("=", 1) for line in out.splitlines() if "=" in line and " " not in line)
            if got.get("at") != f"{at:x}" or "one" not in got or not 0 < int(got["one"], 16) - at <= 15 or \
                    "many" not in got or "watch" not in got or "Hardware watchpoint" not in out:
                raise Failed(f"gdb said: {out}")
            n = int(c.sh("sleep 1; cat /tmp/n"))
            if int(c.sh("sleep 1; cat /tmp/n")) <= n:
                raise Failed("the guest's loop stands still after gdb")
            q.power_off()


def snapshot():
    """savevm, some life, loadvm: the guest is back where it was and goes on."""
    with tempfile.TemporaryDirectory() as tmp:
        disk = tmp + "/disk.qcow2"
        subprocess.run([need("qemu-img"), "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
        for cpus in (1, 2):
            with Qemu(*linux(), "-drive", f"file={disk},if=none,id=d", "-device", "virtio-blk-pci,drive=d",
                      cpus=cpus) as q:
                c = q.boot()
                c.sh("x=before; echo before | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null")
                c.sh("while :; do echo $((n=n+1)) >/tmp/new; mv /tmp/new /tmp/n; done &")
                said = q.monitor.hmp("savevm one")
                check("savevm", "", said)
                n = int(c.sh("sleep 0.2; cat /tmp/n"))
                c.sh("x=after; echo after | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null")
                check("shell", "after after", c.sh("echo $x `head -n 1 /dev/vda`"))
                check("loadvm", "", q.monitor.hmp("loadvm one"))
                c.pump(0.3)
                c.seen = len(c.text)
                check("shell after loadvm", "before", c.sh("echo $x"))
                c.sh("echo 3 >/proc/sys/vm/drop_caches")
                check("disk after loadvm", "before", c.sh("head -n 1 /dev/vda"))
                back = int(c.sh("cat /tmp/n"))
                time.sleep(0.3)
                if int(c.sh("sleep 0.2; cat /tmp/n")) <= back:
                    raise Failed("the counter stands still after loadvm")
                if n <= 0:
                    raise Failed("the counter stood still")
                check("delvm", "", q.monitor.hmp("delvm one"))
                q.power_off()


def migration():
    """A guest that writes its memory all the time moves to another QEMU by a socket; nothing is lost. The last time
    dirty pages come by rings."""
    for cpus, accel in ((1, "kvm"), (2, "kvm"), (2, "kvm,dirty-ring-size=4096")):
        with tempfile.TemporaryDirectory() as tmp:
            to = f"unix:{tmp}/migrate"
            with Qemu(*linux(), cpus=cpus, accel=accel) as a, Qemu(*linux(), "-incoming", to, cpus=cpus,
                                                                   accel=accel) as b:
                c = a.boot()
                c.sh("mkdir /m; mount -t tmpfs none /m; dd if=/dev/urandom of=/m/data bs=1M count=48 2>/dev/null")
                want = c.sh("sha256sum /m/data")
                # the writer: a file of equal lines, rewritten with the next number; a page left behind shows
                c.sh("cat >/w <<'E'\nn=0\nwhile :; do\n n=$((n+1))\n yes `printf %07d $n` | head -c 1000000 >/m/new\n"
                     " mv /m/new /m/cur\n echo $n >/m/m\n mv /m/m /m/n\ndone\nE")
                c.sh("sh /w &\nticks=$!")
                c.sh("sleep 1")
                before = int(c.sh("cat /m/n"))
                a.monitor("migrate-set-parameters", **{"max-bandwidth": 400 << 20, "downtime-limit": 500})
                a.monitor("migrate", uri=to)
                end = deadline(90)
                while True:
                    info = a.monitor("query-migrate")
                    if info["status"] in ("completed", "failed"):
                        break
                    if time.monotonic() > end:
                        raise Failed(f"migration takes too long: {info}")
                    time.sleep(0.1)
                check("migration", "completed", info["status"])
                d = b.console
                after = int(d.sh("cat /m/n"))
                if after < before:
                    raise Failed(f"the counter went back: {before}, {after}")
                check("data after migration", want, d.sh("sha256sum /m/data"))
                d.sh("sleep 1")
                if int(d.sh("cat /m/n")) <= after:
                    raise Failed("the counter stands still after migration")
                d.sh("kill $ticks; wait $ticks; true")
                check("lines", "1", d.sh("uniq /m/cur | grep -c ."))
                print(f"migration: -accel {accel}, {cpus} vCPU: {info['ram']['transferred'] >> 20} MiB in {info['total-time']} ms, down "
                      f"{info['downtime']} ms, {info['ram']['dirty-sync-count']} rounds")
                a.monitor("quit")
                b.power_off()


def counter(q, name):
    m = re.search(rf"^\s*{name}\s+(\d+)", q.stat(), re.M)
    return int(m[1]) if m else 0


def devices():
    """A virtio disk whose notifications go by ioeventfd and whose interrupts come by irqfd, and a network card."""
    with tempfile.TemporaryDirectory() as tmp:
        with open(tmp + "/disk", "wb") as f:
            f.truncate(64 << 20)
        with open(tmp + "/hello", "w") as f:
            f.write("over the net\n")
        for machine, cpus in (("q35", 2), ("pc,kernel-irqchip=split", 1)):
            with Qemu(*linux(), "-drive", f"file={tmp}/disk,format=raw,if=none,id=d", "-object", "iothread,id=t",
                      "-device", "virtio-blk-pci,drive=d,iothread=t", "-netdev", f"user,id=n,tftp={tmp}",
                      "-device", "virtio-net-pci,netdev=n,romfile=", machine=machine, cpus=cpus) as q:
                c = q.boot()
                before = counter(q, "ioeventfd_signals"), counter(q, "irqfd_signals"), counter(q, "mmio_exits")
                c.sh("dd if=/dev/vda of=/dev/null bs=64k count=256 iflag=direct 2>/dev/null")
                after = counter(q, "ioeventfd_signals"), counter(q, "irqfd_signals"), counter(q, "mmio_exits")
                kicks, interrupts, exits = (y - x for x, y in zip(before, after))
                print(f"devices: 256 reads: {kicks} ioeventfds, {interrupts} irqfds, {exits} MMIO exits")
                if kicks < 200 or interrupts < 200 or exits > 50:
                    raise Failed("the disk's queue does not go by ioeventfd and irqfd")
                c.sh("ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up")
                c.sh("sleep 1; ping -c 3 10.0.2.2 >/dev/null")
                c.sh("cd /tmp; tftp -g -r hello 10.0.2.2")
                check("tftp", "over the net", c.sh("cat /tmp/hello"))
                q.power_off()


def ovmf():
    """UEFI firmware to its shell, and from there, by -kernel, to Linux."""
    code = need("/usr/share/OVMF/OVMF_CODE.fd")
    with tempfile.TemporaryDirectory() as tmp:
        shutil.copy("/usr/share/OVMF/OVMF_VARS.fd", tmp + "/vars")
        flash = ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}", "-drive",
                 f"if=pflash,unit=1,format=raw,file={tmp}/vars"]
        with Qemu(*flash, machine="q35") as q:
            q.console.expect("^Shell> ", 60)
            q.console.send("ver\r")
            q.console.expect("UEFI Interactive Shell v2", 20)
            q.console.send("reset -s\r")
            q.ends()
        for machine, cpus in (("q35", 2), ("pc", 1)):
            with Qemu(*flash, *linux(), machine=machine, cpus=cpus) as q:
                c = q.boot(90)
                c.sh("dmesg | grep -q 'efi: EFI v2'")
                check("processors", str(cpus), c.sh("nproc"))
                q.power_off()


def ovmf_smm():
    """Secure boot's firmware: its variables are written by code in system management mode alone."""
    code = need("/usr/share/OVMF/OVMF_CODE.secboot.fd")
    name = "anykvm-was-here"
    for cpus in (1, 2):
        with tempfile.TemporaryDirectory() as tmp:
            shutil.copy("/usr/share/OVMF/OVMF_VARS.fd", tmp + "/vars")
            flash = ["-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1",
                     "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}",
                     "-drive", f"if=pflash,unit=1,format=raw,file={tmp}/vars"]
            with Qemu(*flash, machine="q35,smm=on", cpus=cpus) as q:
                q.console.expect("^Shell> ", 200)
                q.console.send(f"setvar {name} -guid 12345678-1234-1234-1234-123456789abc -bs -rt -nv =0x2a\r")
                q.console.expect("^Shell> ", 30)
                q.console.send("reset -s\r")
                q.ends()
            with open(tmp + "/vars", "rb") as f:
                check("the variable is in the flash", True, name.encode("utf-16-le") in f.read())
            with Qemu(*flash, *linux(), machine="q35,smm=on", cpus=cpus) as q:
                c = q.boot(200)
                c.sh("dmesg | grep -q 'efi: EFI v2'")
                check("processors", str(cpus), c.sh("nproc"))
                q.power_off()


def sandbox():
    """QEMU's own seccomp filters, all of them"""
    with Qemu(*linux(), "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
              cpus=2) as q:
        check("sum", "200010000", q.boot().sh("seq 1 20000 | awk '{s+=$1} END {print s}'"))
        q.power_off()


def killed():
    """SIGKILL: no process, no file, no shared memory is left."""
    with tempfile.TemporaryDirectory() as tmp:
        shared = set(os.listdir("/dev/shm"))
        with Qemu(*linux(), cpus=2, env={"TMPDIR": tmp}) as q:
            q.boot()
            pid = q.process.pid
            children = open(f"/proc/{pid}/task/{pid}/children").read()
            q.process.kill()
            q.process.wait()
            check("children", "", children)
            check("temporary files", [], os.listdir(tmp))
            check("shared memory", set(), set(os.listdir("/dev/shm")) - shared)


def memtest():
    """memtest86+ passes once over a small memory. Its bit fade test alone waits 160 s."""
    image = need("/boot/memtest86+x64.bin")
    with Qemu("-kernel", image, "-append", "console=ttyS0,115200", memory="16") as q:
        q.console.expect("Memtest86", 30)
        q.console.expect(r"Status: Pass +.", 400)
        check("errors", "0", q.console.expect(r"Pass: +1 +Errors: +(\d+)", 20)[1])
        q.monitor("quit")


def installer():
    """Debian's installer shows its first menu on the serial console."""
    folder = "/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64"
    need(folder + "/linux")
    with Qemu("-kernel", folder + "/linux", "-initrd", folder + "/initrd.gz", "-append", "console=ttyS0,115200n8",
              memory="1024") as q:
        q.console.expect("Select a language", 120)
        q.console.expect("English", 20)
        q.monitor("quit")


main({"gdb": gdb_stub, "snapshot": snapshot, "migration": migration, "devices": devices, "ovmf": ovmf, "ovmf-smm": ovmf_smm,
      "sandbox": sandbox, "killed": killed, "installer": installer, "memtest": memtest})
