#!/bin/sh
# Tiny guests that go wrong: each ends as hardware would, with the right status, and can always be ended: hostile.sh ENGINE
set -u
cd "$(dirname "$0")/../.."
engine=$1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
fail=0

make_guest() {
    gcc \
        -c -m64 -D"$1" -o "$tmp/$1.o" tests/guest/tiny.S &&
        ld -m elf_x86_64 -Ttext=0x100000 -e start -o "$tmp/$1" "$tmp/$1.o" || exit 1
}

# guest NAME STATUS TEXT: status and a text on stderr; STATUS 124: it goes on until it is killed
guest() {
    make_guest "$1"
    timeout 5 "$ANYKVM" run --accel soft --engine "$engine" --kernel "$tmp/$1" -m 64M --no-reboot </dev/null \
        >"$tmp/out" 2>"$tmp/err"
    got=$?
    if [ $got != "$2" ] || ! grep -qaF -- "$3" "$tmp/err"; then
        echo "FAIL: $1: status $got, want $2; stderr: $(head -c 400 "$tmp/err") (want: $3)"
        fail=1
    fi
}

guest POWEROFF 0 "S"
guest RESET 0 "S"
guest TRIPLE 1 "triple fault"
guest NOWHERE 1 "vCPU 0"
guest HALTED 124 "S"
guest SPIN 124 "S"
make_guest GARBAGE # anything but a crash of the monitor or a hang that a signal cannot end
timeout 5 "$ANYKVM" run --accel soft --engine "$engine" --kernel "$tmp/GARBAGE" -m 64M --no-reboot </dev/null \
    >"$tmp/out" 2>"$tmp/err"
got=$?
case $got in
0 | 1 | 124) ;;
*) echo "FAIL: GARBAGE: status $got: $(head -c 400 "$tmp/err")"; fail=1 ;;
esac
# a halted machine with all interrupts off costs no processor time
make_guest HALTED
"$ANYKVM" run --accel soft --engine "$engine" --kernel "$tmp/HALTED" -m 64M </dev/null >"$tmp/out" 2>"$tmp/err" &
pid=$!
sleep 1
before=$(awk '{print $14 + $15}' /proc/$pid/stat)
sleep 2
after=$(awk '{print $14 + $15}' /proc/$pid/stat)
[ $((after - before)) -le 4 ] || { echo "FAIL: a halted machine used $((after - before)) ticks in 2 s"; fail=1; }
kill $pid
wait $pid 2>/dev/null
exit $fail
