#!/bin/bash
# `meson install` to a folder of its own: the installed command finds its libraries, the header compiles.
#   install.sh BUILD
set -e
build=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
DESTDIR=$dir meson install -C "$build" --no-rebuild --quiet
bin=$(find "$dir" -type f -path '*/bin/anykvm')
cd /
env -u LD_LIBRARY_PATH "$bin" check | grep -q '^host processor:'
env -u LD_LIBRARY_PATH "$bin" exec -- bash -c 'test -c /dev/kvm'
printf '#include <anykvm.h>\nint main(void) { return !anykvm_version(); }\n' > "$dir/t.c"
gcc -Wall -Werror -I"$(dirname "$(find "$dir" -name anykvm.h)")" "$dir/t.c" -o "$dir/t" \
  -L"$(dirname "$(find "$dir" -name libanykvm.so)")" -lanykvm -Wl,-rpath,"$(dirname "$(find "$dir" -name libanykvm.so)")"
"$dir/t"
