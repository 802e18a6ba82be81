#!/bin/sh
# Boot Debian's cloud kernel, run a script in the guest and check what it printed: boot.sh ENGINE CPUS [more for the
# kernel's command line]
set -u
cd "$(dirname "$0")/../.."
engine=$1
cpus=$2
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
kernel=$(scripts/fetch-kernel </dev/null) || exit 1
cat >"$tmp/init" <<'INIT'
#!/bin/sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev 2>/dev/null
echo "release=$(uname -r)"
echo "nproc=$(nproc)"
echo "sum=$(seq 1 20000 | awk '{s+=$1} END {print s}')"
dd if=/dev/urandom of=/tmp/a bs=64k count=16 2>/dev/null
gzip -c /tmp/a | gunzip -c | cmp - /tmp/a && echo "gzip=same"
echo "sha=$(seq 1 5000 | sha256sum | cut -c1-16)"
echo "sorted=$(seq 1 3000 | sort -rn | head -1)"
i=0; while [ $i -lt 20 ]; do (exit $((i % 7))); [ $? = $((i % 7)) ] || echo "status wrong"; i=$((i + 1)); done
echo "children=done"
sleep 0.2 && echo "slept=yes"
dmesg | grep -q 'kvm-clock' && echo "clock=kvm"
dmesg | grep -iE 'BUG:|Oops|Call Trace|WARNING:|self-tests for .* failed' | head -5
poweroff -f
INIT
scripts/mkinitrd "$tmp/initrd.gz" -i "$tmp/init" </dev/null
timeout 240 "$ANYKVM" run --accel soft --engine "$engine" --cpus "$cpus" -m 512M --kernel "$kernel/vmlinuz" \
    --initrd "$tmp/initrd.gz" --append "console=ttyS0 quiet panic=-1 ${3:-}" </dev/null >"$tmp/out" 2>"$tmp/err"
status=$?
tr -d '\r' <"$tmp/out" >"$tmp/text"
fail=0
[ $status = 0 ] || { echo "exit status $status, not 0"; fail=1; }
for want in "release=$(cat "$kernel/release")" "nproc=$cpus" "sum=200010000" "gzip=same" \
    "sha=$(seq 1 5000 | sha256sum | cut -c1-16)" "sorted=3000" "children=done" "slept=yes" "clock=kvm"; do
    grep -qxF "$want" "$tmp/text" || { echo "missing: $want"; fail=1; }
done
if grep -nE 'BUG:|Oops|Call Trace|WARNING:|status wrong|self-tests for .* failed|panic' "$tmp/text"; then
    fail=1
fi
[ $fail = 0 ] || { echo "--- stdout"; tail -n 80 "$tmp/text"; echo "--- stderr"; tail -n 40 "$tmp/err"; }
exit $fail
