#!/bin/bash
# work.sh TURNS: loops, arrays, arithmetic, substitutions, subshells, pipes
declare -A h
sum=0
for ((t = 0; t < $1; t++)); do
    for ((i = 0; i < 300; i++)); do
        s="k$((i * 7 % 13))_$t"
        h[${s%_*}]=$((${h[${s%_*}]:-0} + i))
        case $s in k1*) sum=$((sum + 3)) ;; *[5-9]_*) sum=$((sum ^ i)) ;; esac
        s=${s//k/qq}; ((sum += ${#s}))
    done
    x=$(echo "$sum" | cat | (read -r y; echo $((y + 1))))
    sum=$((x % 1000003))
done
for k in $(printf '%s\n' "${!h[@]}" | sort); do echo "$k ${h[$k]}"; done
echo $sum
