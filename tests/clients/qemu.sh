#!/bin/sh
# QEMU with -accel kvm under the preload library: SeaBIOS to Debian's cloud kernel to a script in the initrd, which reads
# and writes a virtio disk and powers off: qemu.sh ENGINE CPUS MACHINE [QEMU's arguments]. Exit 77: no QEMU.
set -u
cd "$(dirname "$0")/../.."
engine=$1 cpus=$2 machine=$3
shift 3
qemu=$(command -v qemu-system-x86_64) || { echo "qemu-system-x86_64 is not installed"; exit 77; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
kernel=$(scripts/fetch-kernel </dev/null) || exit 1
cat >"$tmp/init" <<'INIT'
#!/bin/sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev 2>/dev/null
for m in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_mmio virtio_blk; do
    insmod /$m.ko
done
echo; echo "release=$(uname -r)"
echo "nproc=$(nproc)"
dmesg | grep -q 'Hypervisor detected: KVM' && echo "hypervisor=kvm"
echo "sum=$(seq 1 20000 | awk '{s+=$1} END {print s}')"
echo "disk=$(dd if=/dev/vda bs=64k count=16 2>/dev/null | sha256sum | cut -c1-16)"
tr '\000' x </dev/zero | dd of=/dev/vda bs=64k count=4 seek=16 conv=fsync iflag=fullblock 2>/dev/null
sleep 0.2 && echo "slept=yes"
dmesg | grep -iE 'BUG:|Oops|Call Trace|WARNING:|self-tests for .* failed' | head -5
poweroff -f
INIT
dd if=/dev/urandom of="$tmp/disk" bs=64k count=32 2>/dev/null
modules=
for m in "$kernel"/modules/kernel/drivers/virtio/virtio*.ko "$kernel/modules/kernel/drivers/block/virtio_blk.ko"; do
    modules="$modules -f $m:${m##*/}"
done
scripts/mkinitrd "$tmp/initrd.gz" -i "$tmp/init" $modules </dev/null
want_disk=$(dd if="$tmp/disk" bs=64k count=16 2>/dev/null | sha256sum | cut -c1-16)
timeout -k 2 120 "$ANYKVM" exec --engine "$engine" -- "$qemu" -accel kvm -cpu host -M "$machine" -smp "$cpus" -m 256 \
    -nodefaults -nographic -serial stdio -no-reboot -kernel "$kernel/vmlinuz" -initrd "$tmp/initrd.gz" \
    -append "console=ttyS0 quiet panic=-1 reboot=t" -drive "file=$tmp/disk,format=raw,if=none,id=d" \
    -device "${DISK:-virtio-blk-pci},drive=d" "$@" </dev/null >"$tmp/out" 2>"$tmp/err"
status=$?
tr -d '\r' <"$tmp/out" >"$tmp/text"
fail=0
[ $status = 0 ] || { echo "exit status $status, not 0"; fail=1; }
for want in "release=$(cat "$kernel/release")" "nproc=$cpus" "hypervisor=kvm" "sum=200010000" "disk=$want_disk" \
    "slept=yes"; do
    grep -qxF "$want" "$tmp/text" || { echo "missing: $want"; fail=1; }
done
written=$(dd if="$tmp/disk" bs=64k skip=16 count=4 2>/dev/null | tr -d x | wc -c)
[ "$written" = 0 ] || { echo "the disk lacks $written bytes that the guest wrote"; fail=1; }
if grep -nE 'BUG:|Oops|Call Trace|WARNING:|self-tests for .* failed|panic' "$tmp/text"; then
    fail=1
fi
[ $fail = 0 ] || { echo "--- stdout"; tail -n 60 "$tmp/text"; echo "--- stderr"; tail -n 30 "$tmp/err"; }
exit $fail
