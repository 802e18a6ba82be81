#!/bin/sh
# Linux's KVM selftests under the preload library, a line each and a count: selftests.sh [PROGRAM ...]. The environment:
# ANYKVM (build/anykvm), ENGINE (jit), VERBOSE (the output of those that fail).
# The table says what is expected; exit 1 for a program that fails or skips against it, or that ran longer than 120 s.
set -u
cd "$(dirname "$0")/../.."
ANYKVM=$(realpath "${ANYKVM:-build/anykvm}")
tests=$(scripts/fetch-selftests </dev/null) || exit 1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0 skipped=0 wrong=0
limit=120
# Programs that take it for granted that they get a processor when they want one run in another scheduling class, with
# turns of 100 ms and before what else the machine does. hardware_disable_test: 512 children start 68 threads each that
# never sleep; without any KVM that takes 200 to 270 s on 2 processors, where the thread that starts them waits its turn
# again and again. dirty_log_test: a vCPU that gets no processor for two turns of 10 ms still holds the value of three
# turns ago. max_guest_memory_test is 35 s of processor time, memslot_perf_test has an
# alarm of its own.
turns=' hardware_disable_test dirty_log_test max_guest_memory_test memslot_perf_test '
rr=
chrt -r 1 true 2>/dev/null && rr='chrt -r 1'

# The line that says why: what an assertion asserts, with its file and line, and what it says last; a skip's reason; others
reason() {
    if grep -aq 'Assertion Failure' "$tmp/out"; then
        grep -aA 20 'Assertion Failure' "$tmp/out" | sed -n '2p;$p' | tr -s ' \t\n' ' ' | cut -c1-160
        return
    fi
    grep -aE 'Assertion Failure|SKIP|not supported|requires|errno|failed' "$tmp/out" | head -n 1 | tr -s ' \t' ' ' | cut -c1-160
}

while read -r name class expected why; do
    case $name in '' | '#'*) continue ;; esac
    if [ $# -gt 0 ]; then
        case " $* " in *" $name "*) ;; *) continue ;; esac
    fi
    start=$(date +%s) with=
    case $turns in *" $name "*) with=$rr ;; esac
    params=${ANYKVM_PARAMS:-}
    [ "$class" = nested ] && params=nested=1
    if [ -x "$tests/$name" ]; then
        (cd "$tests/$(dirname "$name")" && ANYKVM_PARAMS=$params timeout -k 5 $limit $with "$ANYKVM" exec --engine "${ENGINE:-jit}" -- \
            "./$(basename "$name")") >"$tmp/out" 2>&1 </dev/null
        status=$?
    else
        echo "was not built" >"$tmp/out"
        status=1
    fi
    seconds=$(($(date +%s) - start))
    case $status in
    0) result=passed passed=$((passed + 1)) ;;
    4) result=skipped skipped=$((skipped + 1)) ;;
    *) result=failed failed=$((failed + 1)) ;;
    esac
    note=
    case $result in
    skipped) note=$(reason) ;;
    failed)
        note="status $status: $(reason)"
        [ $status = 124 ] && note="longer than $limit s"
        ;;
    esac
    case $result:${expected:-pass} in
    passed:pass | skipped:skip | failed:fail) [ -n "${why:-}" ] && note="$why${note:+ ($note)}" ;;
    passed:*) note="the table says that it does not pass" ;;
    *) note="NOT EXPECTED: $note"; wrong=$((wrong + 1)) ;;
    esac
    printf '%-48s %-8s %-7s %3d s %s\n' "$name" "$class" "$result" "$seconds" "$note"
    [ "$result" = failed ] && [ -n "${VERBOSE:-}" ] && cat "$tmp/out"
done <tests/clients/selftests.tab
echo "selftests: $passed passed, $failed failed, $skipped skipped"
[ $wrong = 0 ]
