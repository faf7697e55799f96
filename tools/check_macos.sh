#!/usr/bin/env bash
# Compiles the core, the MLX host, llm and the program for macOS on Apple silicon, unoptimized, and
# links them with MLX's library for Metal. Nothing is run. An undefined symbol is an error unless it is
# macOS's, libmlx's or Highway's.
#
#   tools/check_macos.sh BUILD_FOLDER
#
# The compiler is zig, which brings macOS's C headers and names of libraries. fmt, nlohmann_json and
# CLI11 are this machine's headers, and so are Highway's, whose symbols are those of this machine's
# library. Exits with 77 where the compiler or MLX cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."
source_dir="$PWD"
mkdir -p "$1"
build_dir="$(cd "$1" && pwd)"
deps="$source_dir/.deps/macos"

status=0
scripts/fetch_deps.py --macos || status=$?
if ((status == 3)); then echo "check_macos: skipped: what it takes cannot be had"; exit 77; fi
((status == 0)) || exit "$status"

# tbd FILE INSTALL_NAME [SYMBOL...]: what the linker has to know of a library that is not here.
tbd() {
  local file="$1" name="$2"
  shift 2
  mkdir -p "$(dirname "$file")"
  {
    printf '%s\n' '--- !tapi-tbd' 'tbd-version: 4' 'targets: [ arm64-macos ]' "install-name: '$name'"
    if (($#)); then
      printf 'exports:\n  - targets: [ arm64-macos ]\n    symbols:\n'
      printf "      - '%s'\n" "$@"
    fi
    echo ...
  } > "$file"
}

export ZIG_GLOBAL_CACHE_DIR="$build_dir/zig" ZIG_LOCAL_CACHE_DIR="$build_dir/zig"
mkdir -p "$build_dir/bin"
for command in c++ ar ranlib; do
  flags=""
  if [[ "$command" == c++ ]]; then flags=" -target aarch64-macos.14.0 -fno-sanitize=undefined"; fi
  printf '#!/bin/sh\nexec "%s" %s%s "$@"\n' "$deps/zig/zig" "$command" "$flags" > "$build_dir/bin/$command"
  chmod +x "$build_dir/bin/$command"
done

sdk="$build_dir/sdk"
mkdir -p "$sdk/include" "$sdk/lib/cmake" "$sdk/lib/pkgconfig"
framework() {
  tbd "$sdk/frameworks/$1.framework/$1.tbd" "/System/Library/Frameworks/$1.framework/Versions/A/$1" "${@:2}"
}
for name in Accelerate Metal QuartzCore; do framework "$name"; done
# It gives Objective-C's run-time along, which metal-cpp's inline members call.
framework Foundation _objc_msgSend
mapfile -t symbols < <(nm -D --defined-only "$(pkg-config --variable=libdir libhwy)/libhwy.so" |
  sed -n 's/.* [TDBRVWu] \(_ZN[K]*3hwy[^@]*\).*/_\1/p')
((${#symbols[@]})) || { echo "check_macos: found no symbols of Highway's"; exit 1; }
tbd "$sdk/lib/libhwy.tbd" /opt/homebrew/opt/highway/lib/libhwy.1.dylib "${symbols[@]}"
for package in CLI fmt hwy nlohmann; do ln -sfn "/usr/include/$package" "$sdk/include/$package"; done
printf '%s\n' "Name: libhwy" "Description: Highway" "Version: $(pkg-config --modversion libhwy)" \
  "Libs: -L$sdk/lib -lhwy" "Cflags: -I$sdk/include -DHWY_SHARED_DEFINE" > "$sdk/lib/pkgconfig/libhwy.pc"
for package in CLI11 fmt nlohmann_json; do
  mkdir -p "$sdk/lib/cmake/$package"
  printf '%s\n' "add_library($package::$package INTERFACE IMPORTED)" \
    "target_include_directories($package::$package SYSTEM INTERFACE \"$sdk/include\")" \
    > "$sdk/lib/cmake/$package/${package}Config.cmake"
done
echo 'target_compile_definitions(fmt::fmt INTERFACE FMT_HEADER_ONLY)' >> "$sdk/lib/cmake/fmt/fmtConfig.cmake"

export PKG_CONFIG_LIBDIR="$sdk/lib/pkgconfig"
cmake -S . -B "$build_dir" -G Ninja -DCMAKE_TOOLCHAIN_FILE="$source_dir/tools/macos/toolchain.cmake" \
  -DGRAFT_MACOS_DIR="$build_dir" -DMLX_ROOT="$deps/mlx" -DCMAKE_BUILD_TYPE=Debug \
  -DCMAKE_CXX_FLAGS_DEBUG=-O0 -DGRAFT_MLX=ON -DGRAFT_TESTS=OFF -DGRAFT_WERROR=ON > /dev/null
cmake --build "$build_dir"
file_type="$(od -An -tx4 -N16 "$build_dir/bin/graft" | tr -s ' ')"
[[ "$file_type" == " feedfacf 0100000c "*" 00000002" ]] ||
  { echo "check_macos: bin/graft is no program for macOS on arm64:$file_type"; exit 1; }
echo "check_macos: the program for macOS is built and linked with MLX"
