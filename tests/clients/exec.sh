#!/bin/sh
# anykvm exec: exec.sh CLIENT STATIC CPUID SANDBOX: a client's status and arguments, messages for what cannot work.
set -u
fail=0
check() { # WHAT WANTED GOT
    [ "$2" = "$3" ] || { echo "$1: wanted \"$2\", got \"$3\""; fail=1; }
}
for engine in interp jit; do
    "$ANYKVM" exec --engine $engine -- "$1"
    check "client on $engine" 0 $?
    "$ANYKVM" exec --engine $engine -- "$3"
    check "client that looks at its CPUID on $engine" 0 $?
    "$ANYKVM" exec --engine $engine -- "$4"
    check "client that restricts its system calls on $engine" 0 $?
done
if ! grep -qwE 'vmx|svm' /proc/cpuinfo; then
    "$ANYKVM" exec --cpuid=off -- "$3" 2>/dev/null
    check "client that looks at its CPUID, --cpuid=off" 2 $?
fi
"$ANYKVM" exec --cpuid=perhaps "$1" 2>/dev/null
check "--cpuid=perhaps" 2 $?
"$ANYKVM" exec "$1" status
check "exit status" 37 $?
check "arguments" "-a --engine x" "$("$ANYKVM" exec echo -a --engine x)"
"$ANYKVM" exec -- sh -c 'test -c /dev/kvm && test -r /dev/kvm && test -w /dev/kvm && test ! -x /dev/kvm'
check "test -c /dev/kvm" 0 $?
check "stat" "a:e8" "$("$ANYKVM" exec stat -c %t:%T /dev/kvm)"
text=$("$ANYKVM" exec "$2" 2>&1)
check "static client" 126 $?
case $text in *"statically linked"*) ;; *) echo "message for a static client: $text"; fail=1 ;; esac
"$ANYKVM" exec no-such-client 2>/dev/null
check "no client" 127 $?
"$ANYKVM" exec --engine none "$1" 2>/dev/null
check "no engine" 2 $?
exit $fail
