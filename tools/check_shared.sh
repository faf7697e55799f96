#!/usr/bin/env bash
# Builds the core as a shared library, checks its SONAME and that it shows nothing but what the public
# headers declare, and uses an installed copy.
#
#   tools/check_shared.sh BUILD_FOLDER [CMAKE OPTION...]
set -euo pipefail
source_dir="$(cd "$(dirname "$0")/.." && pwd)"
build_dir="$1"
shift

cmake -S "$source_dir" -B "$build_dir" -G Ninja -DBUILD_SHARED_LIBS=ON -DGRAFT_MLX=OFF \
  -DGRAFT_TESTS=OFF "$@" > /dev/null
cmake --build "$build_dir" > "$build_dir/build.log" || { cat "$build_dir/build.log"; exit 1; }

library="$build_dir/src/libgraft_core.so"
version="$(sed -n 's/^#define GRAFT_VERSION_M[AI][JN]OR //p' "$source_dir/include/graft/version.h" | paste -sd.)"
soname="$(readelf -d "$library" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')"
[[ "$soname" == "libgraft_core.so.$version" ]] ||
  { echo "check_shared: expected SONAME libgraft_core.so.$version, got $soname"; exit 1; }
shown="$(nm -DC --defined-only "$library")"
grep -q 'graft::lora_linear_forward(graft::Context&' <<< "$shown" ||
  { echo "check_shared: lora_linear_forward is hidden"; exit 1; }
if grep -E 'graft::(cpu|cuda|reference)::|graft::(Check|require|entry_of)\b|hwy::' <<< "$shown"; then
  echo "check_shared: these should be hidden"
  exit 1
fi
echo "check_shared: $soname shows what the public headers declare"
"$source_dir/tools/check_install.sh" "$build_dir"
