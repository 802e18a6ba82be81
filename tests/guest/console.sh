#!/bin/sh
# The console: piped input is held until the guest reads it, its end does not quit; reboot restarts or ends; closed stdin.
set -u
cd "$(dirname "$0")/../.."
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
kernel=$(scripts/fetch-kernel </dev/null) || exit 1
scripts/mkinitrd "$tmp/initrd.gz" </dev/null
mkfifo "$tmp/in"
fail=0
run() { # FEEDER ARGS...: the feeder's output is the pipe on stdin
    "$1" >"$tmp/in" &
    shift
    timeout 200 "$ANYKVM" run --accel soft --kernel "$kernel/vmlinuz" --initrd "$tmp/initrd.gz" -m 256M \
        --append "console=ttyS0 quiet" "$@" <"$tmp/in" 2>"$tmp/err" >"$tmp/raw"
    status=$?
    wait
    tr -d '\r' <"$tmp/raw" >"$tmp/out"
}
check() { # LABEL TEXT
    [ $status = 0 ] || { echo "FAIL: $1: status $status"; fail=1; }
    grep -qxF -- "$2" "$tmp/out" || { echo "FAIL: $1: no line \"$2\""; tail -n 20 "$tmp/out" "$tmp/err"; fail=1; }
}

first() {
    printf 'echo one-$((40+2)); uname -r; poweroff -f\n'
}
run first
check "piped shell" "one-42"
check "piped shell" "$(cat "$kernel/release")"

no_reboot() {
    printf 'echo two-$((40+3)); reboot -f\n'
}
run no_reboot --no-reboot
check "--no-reboot" "two-43"

# after a reboot a second shell answers
twice() {
    printf 'echo first-$((1+1)); reboot -f\n'
    n=0
    while [ "$(grep -ac 'built-in shell' "$tmp/raw")" -lt 2 ] && [ $n -lt 180 ]; do
        sleep 1
        n=$((n + 1))
    done
    printf 'echo second-$((2+2)); poweroff -f\n'
}
: >"$tmp/raw"
run twice
check "reboot" "first-2"
check "reboot" "second-4"

# closed stdin quits nothing
timeout 200 "$ANYKVM" run --accel soft --kernel "$kernel/vmlinuz" -m 256M --append "console=ttyS0 quiet panic=-1" --no-reboot \
    <&- >"$tmp/raw" 2>"$tmp/err"
status=$?
tr -d '\r' <"$tmp/raw" >"$tmp/out"
grep -q "VFS: Unable to mount root fs" "$tmp/out" && [ $status = 0 ] || {
    echo "FAIL: closed stdin, no initrd: status $status"
    tail -n 5 "$tmp/out" "$tmp/err"
    fail=1
}
exit $fail
