#!/bin/sh
# Bad input gets a clear message and the right exit status; a hostile or broken guest ends as hardware would.
set -u
cd "$(dirname "$0")/../.."
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
kernel=$(scripts/fetch-kernel </dev/null)/vmlinuz || exit 1
fail=0

# want STATUS TEXT COMMAND...: exit status and a text on stderr
want() {
    status=$1 text=$2
    shift 2
    timeout 60 "$@" </dev/null >"$tmp/out" 2>"$tmp/err"
    got=$?
    if [ $got != "$status" ] || ! grep -qF -- "$text" "$tmp/err"; then
        echo "FAIL: $*: status $got (want $status), stderr: $(head -c 300 "$tmp/err") (want: $text)"
        fail=1
    fi
}
run="$ANYKVM run --accel soft"

want 2 "--kernel FILE is needed" $run
want 1 "No such file" $run --kernel "$tmp/none"
: >"$tmp/empty"
want 1 "the file is empty" $run --kernel "$tmp/empty"
want 1 "not a regular file" $run --kernel "$tmp"
head -c 4096 /dev/zero >"$tmp/zero"
want 1 "neither a Linux bzImage nor an ELF file" $run --kernel "$tmp/zero"
head -c 2000000 "$kernel" >"$tmp/short"
want 1 "truncated" $run --kernel "$tmp/short"
printf '\177ELF' >"$tmp/elf"
want 1 "truncated ELF header" $run --kernel "$tmp/elf"
want 1 "No such file" $run --kernel "$kernel" --initrd "$tmp/none"
truncate -s 700M "$tmp/big"
want 1 "does not fit beside the kernel" $run --kernel "$kernel" --initrd "$tmp/big"
want 2 "must be from 1M" $run --kernel "$kernel" -m 0
want 2 "not a size" $run --kernel "$kernel" -m lots
want 2 "not a size" $run --kernel "$kernel" -m 5X
want 2 "must be from 1M" $run --kernel "$kernel" -m 99999G
want 1 "of RAM to start" $run --kernel "$kernel" -m 16M
want 2 "must be a number" $run --kernel "$kernel" --cpus 0
want 2 "must be a number" $run --kernel "$kernel" --cpus many
want 2 "must be auto, kvm or soft" $run --kernel "$kernel" --accel hard
want 1 "no such engine" $run --kernel "$kernel" --engine warp
want 1 "bad parameter" $run --kernel "$kernel" --kvm-params ept=7
want 2 "unrecognized option" $run --kernel "$kernel" --frobnicate
want 2 "no command" "$ANYKVM" frobnicate
want 1 "characters, the kernel takes" $run --kernel "$kernel" --append "$(head -c 5000 /dev/zero | tr '\0' a)"
if [ ! -e /dev/kvm ]; then
    want 1 "/dev/kvm: No such file" "$ANYKVM" run --accel kvm --kernel "$kernel"
fi
# output to a full disk
if [ -e /dev/full ]; then
    timeout 60 $run --kernel "$kernel" --append "console=ttyS0 earlyprintk=ttyS0" </dev/null >/dev/full 2>"$tmp/err"
    got=$?
    [ $got = 1 ] && grep -q "No space left" "$tmp/err" || { echo "FAIL: full disk: status $got"; cat "$tmp/err"; fail=1; }
fi
[ $fail = 0 ] && echo "all bad inputs answered"
exit $fail
