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
    check "cpuinfo, --cpuid=off" 0 "$("$ANYKVM" exec --cpuid=off -- grep -cwE 'vmx|svm' /proc/cpuinfo)"
fi
"$ANYKVM" exec --cpuid=perhaps "$1" 2>/dev/null
check "--cpuid=perhaps" 2 $?
"$ANYKVM" exec "$1" status
check "exit status" 37 $?
check "arguments" "-a --engine x" "$("$ANYKVM" exec echo -a --engine x)"
"$ANYKVM" exec -- sh -c 'test -c /dev/kvm && test -r /dev/kvm && test -w /dev/kvm && test ! -x /dev/kvm'
check "test -c /dev/kvm" 0 $?
check "stat" "a:e8" "$("$ANYKVM" exec stat -c %t:%T /dev/kvm)"
check "ls -l /dev/kvm" "crw-rw-rw- 0" "$("$ANYKVM" exec ls -l /dev/kvm 2>&1 | cut -c1-10) $?"
check "ls /dev" 1 "$("$ANYKVM" exec ls /dev | grep -cx kvm)"
check "find /dev" 1 "$("$ANYKVM" exec find /dev/. -maxdepth 1 -name kvm -type c | wc -l)"
check "python's glob" "['/dev/kvm']" "$("$ANYKVM" exec python3 -c 'import glob; print(glob.glob("/dev/kv*"))')"
check "a listing twice, and rewound" "1 1 1" "$("$ANYKVM" exec python3 -c '
import os
fd = os.open("/dev", os.O_RDONLY | os.O_DIRECTORY)
print(*(os.listdir(d).count("kvm") for d in ("/dev", fd, fd)))')"
check "ls of another folder" "$(ls -f / | sort)" "$("$ANYKVM" exec ls -f / | sort)"
module=/sys/module/kvm_intel/parameters
check "parameters" "Y N Y" "$("$ANYKVM" exec cat $module/ept $module/nested $module/vpid | tr '\n' ' ' | sed 's/ $//')"
check "--kvm-params in parameters" "N Y" \
    "$("$ANYKVM" exec --kvm-params vpid=0,nested=1 cat $module/vpid $module/nested | tr '\n' ' ' | sed 's/ $//')"
"$ANYKVM" exec -- sh -c "test -d /sys/module/kvm && test -f $module/ept && test -r $module/ept && ! test -x $module/ept"
check "test -f of a parameter" 0 $?
"$ANYKVM" exec -- sh -c "echo N >$module/ept" 2>/dev/null && { echo "a parameter was written"; fail=1; }
"$ANYKVM" exec cat $module/no-such-parameter 2>/dev/null && { echo "a parameter that is none"; fail=1; }
cpus=$(grep -c '^processor' /proc/cpuinfo)
check "flags in cpuinfo" "$cpus" "$("$ANYKVM" exec grep -cwE 'vmx|svm' /proc/cpuinfo)"
check "the rest of cpuinfo" "$(sed -E 's/ (vmx|svm)\b//; /MHz/d' /proc/cpuinfo)" \
    "$("$ANYKVM" exec cat /proc/cpuinfo | sed -E 's/ (vmx|svm)\b//; /MHz/d')"
text=$("$ANYKVM" exec "$2" 2>&1)
check "static client" 126 $?
case $text in *"statically linked"*) ;; *) echo "message for a static client: $text"; fail=1 ;; esac
"$ANYKVM" exec no-such-client 2>/dev/null
check "no client" 127 $?
"$ANYKVM" exec --engine none "$1" 2>/dev/null
check "no engine" 2 $?
exit $fail
