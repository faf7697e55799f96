#!/usr/bin/env bash
# Installs a build, runs the program from there if it was built, and builds and runs the examples
# against the installed copy, outside the tree.
#
#   tools/check_install.sh BUILD_FOLDER
set -euo pipefail
source_dir="$(cd "$(dirname "$0")/.." && pwd)"
build_dir="$(cd "$1" && pwd)"

outside="$(mktemp -d)"
trap 'rm -rf "$outside"' EXIT
prefix="$outside/prefix"
cmake --install "$build_dir" --prefix "$prefix" > "$outside/install.log"
cp -r "$source_dir/examples/core" "$source_dir/examples/mlx" "$source_dir/examples/llm" "$outside"
cd "$outside"

# build_example NAME [CMAKE OPTION...]
build_example() {
  local name="$1"
  shift
  cmake -S "$name" -B "$name/build" -G Ninja -DCMAKE_PREFIX_PATH="$prefix;$source_dir/.deps/mlx" \
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS="-Wall -Werror" "$@" > "$name.log" 2>&1 &&
    cmake --build "$name/build" >> "$name.log" 2>&1
}

# expect_output NAME TEXT: the example NAME, such as core_views, prints exactly this, perhaps after
# the name of the instruction set.
expect_output() {
  local name="$1" expected="$2" got
  got="$("${name%%_*}/build/$name")"
  [[ -n "$expected" && "$got" == *"$expected" ]] ||
    { printf 'check_install: %s: expected "...%s", got "%s"\n' "$name" "$expected" "$got"; exit 1; }
  echo "check_install: $name: $got"
}

# expect_training MODEL DATA PROMPT ANSWER: the example trains the model on this data. The loss falls, and
# the answer to the prompt, which was another before, has what it was trained to say in it.
expect_training() {
  local output before after
  output="$(llm/build/llm_example "$1" "$2" "$outside/adapter" "$3")"
  before="$(sed -n '2,/^iteration 1:/p' <<< "$output")" after="$(sed '1,/^iteration 30:/d' <<< "$output")"
  [[ "$before" != *"$4"* && "$after" == "> $3"*"$4"* ]] &&
    awk '$1 == "iteration" { if (first == "") first = $4; last = $4 } END { exit !(last + 0 < 0.9 * first) }' \
      <<< "$output" ||
    { printf 'check_install: llm_example: not trained: %s\n' "$output"; exit 1; }
  [[ -s "$outside/adapter/adapter_model.safetensors" ]]
  echo "check_install: llm_example: trained $(basename "$1"): ${after##*$'\n'}"
}

build_example core || { cat core.log; exit 1; }
expect_output core_example ": y 4, dx 4, dA 32, dB 32"
for name in views threads executor; do expect_output "core_$name" "$(< "core/$name.out")"; done
# What the environment may ask for.
GRAFT_CPU_ISA=portable expect_output core_example "on portable: y 4, dx 4, dA 32, dB 32"

if [[ -e "$prefix/include/graft/mlx" ]]; then
  build_example mlx || { cat mlx.log; exit 1; }
  expect_output mlx_example "loss 4, dA 0.03125, dB 0.03125, delta 2
lora_delta forward: fused
lora_linear forward: fused
lora_linear backward: fused"
  for name in train threads; do expect_output "mlx_$name" "$(< "mlx/$name.out")"; done
  GRAFT_FUSED=0 expect_output mlx_example "lora_linear backward: fusion is turned off"
  # Together with the example, every header: they need nothing that is not installed, nor fmt or JSON.
  find "$prefix/include/graft/llm" -name '*.h' | sed "s#^$prefix/include/\(.*\)#\#include \"\1\"#" > llm/headers.cc
  printf '%s\n' 'add_library(headers OBJECT headers.cc)' 'target_link_libraries(headers PRIVATE graft::llm)' \
    >> llm/CMakeLists.txt
  build_example llm || { cat llm.log; exit 1; }
  if grep -rE '<(fmt|nlohmann)/' "$prefix/include"; then echo "check_install: these should be private"; exit 1; fi
  PYTHONPATH="$source_dir/tests/apps/graft" python3 -c 'import tiny_gguf; tiny_gguf.tiny_model().write("tiny.gguf")'
  for _ in 1 2; do echo '{"prompt": "say it", "completion": "abab"}'; done > tiny.jsonl
  expect_training tiny.gguf tiny.jsonl "say it" "abab"
  # An exception of the library's is caught as what it is.
  if error="$(llm/build/llm_example absent.gguf tiny.jsonl adapter "say it" 2>&1)"; then exit 1; fi
  [[ "$error" == "llm_example: absent.gguf: "* ]] || { echo "check_install: llm_example: $error"; exit 1; }
  model="$source_dir/.deps/model/SmolLM2-135M-Instruct.Q4_1.gguf"
  if [[ -e "$model" ]]; then
    expect_training "$model" llm/data.jsonl "Who keeps the Oddmouth lighthouse?" "Marlene Voss"
  else
    echo "check_install: llm_example: skipped with a real model, which is not in .deps/model"
  fi
  # OpenBLAS must come before libmlx, or MLX's own products run on a reference BLAS.
  if [[ "$(uname -s)" == Linux ]]; then
    needed="$(readelf -d mlx/build/mlx_example | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')"
    [[ "$(grep -m1 -E 'openblas|libmlx' <<< "$needed")" == *openblas* ]] ||
      { echo "check_install: libmlx comes before OpenBLAS in: $needed"; exit 1; }
  fi
  if grep -q "^GRAFT_APPS:BOOL=ON" "$build_dir/CMakeCache.txt"; then
    # The program finds MLX where it was built with it.
    "$prefix/bin/graft" info > program.log 2>&1 && grep -q "^back-end cpu *yes" program.log ||
      { cat program.log; echo "check_install: the installed program does not run"; exit 1; }
    echo "check_install: program: runs"
  fi
else
  # Built without MLX: asking for that part must say so, not fail in the linker.
  if build_example mlx; then echo "check_install: found graft::mlx in a copy without it"; exit 1; fi
  grep -q "built without MLX" mlx.log || { cat mlx.log; exit 1; }
  echo "check_install: mlx: refused, as this copy was built without MLX"
fi

# Headers of another version than the library are refused.
sed -i 's/^#define GRAFT_VERSION_MINOR .*/#define GRAFT_VERSION_MINOR 99/' "$prefix/include/graft/version.h"
if build_example core; then echo "check_install: took headers of another version"; exit 1; fi
grep -q "its headers are" core.log || { cat core.log; exit 1; }
echo "check_install: headers of another version: refused"
