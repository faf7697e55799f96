#!/usr/bin/env bash
# Builds the libraries as shared ones, checks their SONAMEs and that they show nothing but what the
# installed headers declare, and uses an installed copy.
#
#   tools/check_shared.sh BUILD_FOLDER [CMAKE OPTION...]
set -euo pipefail
source_dir="$(cd "$(dirname "$0")/.." && pwd)"
build_dir="$1"
shift

cmake -S "$source_dir" -B "$build_dir" -G Ninja -DBUILD_SHARED_LIBS=ON -DGRAFT_TESTS=OFF \
  -DGRAFT_APPS=OFF "$@" > /dev/null
cmake --build "$build_dir" > "$build_dir/build.log" || { cat "$build_dir/build.log"; exit 1; }
version="$(sed -n 's/^#define GRAFT_VERSION_M[AI][JN]OR //p' "$source_dir/include/graft/version.h" | paste -sd.)"

# check_symbols FOLDER NAME SHOWN HIDDEN: libNAME.so shows SHOWN, and nothing that HIDDEN (extended
# regular expressions) matches.
check_symbols() {
  local library="$build_dir/$1/lib$2.so" shown soname
  soname="$(readelf -d "$library" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')"
  [[ "$soname" == "lib$2.so.$version" ]] ||
    { echo "check_shared: expected SONAME lib$2.so.$version, got $soname"; exit 1; }
  shown="$(nm -DC --defined-only "$library")"
  grep -qE "$3" <<< "$shown" || { echo "check_shared: $2 hides $3"; exit 1; }
  if grep -E "$4" <<< "$shown"; then
    echo "check_shared: $2 should hide these"
    exit 1
  fi
  echo "check_shared: $soname shows what the installed headers declare"
}

check_symbols src graft_core 'graft::lora_linear_forward\(graft::Context&' \
  'graft::(cpu|cuda|reference)::|graft::(Check|require|entry_of)\b|hwy::'
check_symbols hosts/mlx graft_mlx ' graft::mlx::lora_linear\(' 'graft::mlx::detail::| graft::cpu::'
check_symbols llm graft_llm ' graft::llm::LanguageModel::LanguageModel\(' \
  ' graft::llm::(GgufParser|printable|parse_json_object|read_safetensors|write_file_atomically)\b|nlohmann::| fmt::'
"$source_dir/tools/check_install.sh" "$build_dir"
