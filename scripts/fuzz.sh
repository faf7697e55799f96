#!/usr/bin/env bash
# Builds the fuzzers under AddressSanitizer and UndefinedBehaviorSanitizer, and runs each, one a core at a time.
#
#   scripts/fuzz.sh                 ten minutes each
#   scripts/fuzz.sh SECONDS         so long each
#   scripts/fuzz.sh SECONDS NAME... only these; the names are in the list below
#
# What they find stays in build-fuzz/found, and what they learn in build-fuzz/corpus, for the next
# run. The last lines read as those of Python's unittest, which scripts/test.sh counts.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds="${1:-600}"
shift || true
names=("$@")
((${#names[@]})) || names=(adapter_config dataset gguf safetensors tokenizer)
folder="$PWD/build-fuzz"
jobs="$(getconf _NPROCESSORS_ONLN)"
begin="$SECONDS"

skip() {
  printf '%s\nRan %d tests in 0s\nOK (skipped=%d)\n' "$1" "${#names[@]}" "${#names[@]}"
  exit 0
}

command -v clang++ > /dev/null || skip "Fuzzing is skipped: there is no clang++ here."
launcher=()
if command -v ccache > /dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
mkdir -p "$folder"
cmake -S . -B "$folder" -G Ninja -DGRAFT_FUZZ=ON -DGRAFT_TESTS=ON -DCMAKE_CXX_COMPILER=clang++ \
  ${launcher[@]+"${launcher[@]}"} > "$folder/configure.log" || { cat "$folder/configure.log"; exit 1; }
if reason="$(grep 'Fuzzing is skipped' "$folder/configure.log")"; then skip "$reason"; fi
cmake --build "$folder" -j "$jobs" --target graft_fuzzers
"$folder/bin/fuzz_seeds" "$folder/seeds"

# fuzz NAME
fuzz() {
  local name="$1" log="$folder/$1.log" runs
  mkdir -p "$folder/corpus/$name" "$folder/found"
  # A line or a list that says it is long must not make anything long: no allocation above 256 MB.
  if "$folder/bin/${name}_fuzz" "$folder/corpus/$name" "$folder/seeds/$name" \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=256 -max_len=32768 \
    -dict=tests/fuzz/json.dict -artifact_prefix="$folder/found/$name-" -print_final_stats=1 > "$log" 2>&1; then
    runs="$(sed -nE 's/^stat::number_of_executed_units: *//p' "$log")"
    printf '%-16s clean: %s runs in %s s\n' "$name" "$runs" "$seconds"
  else
    tail -40 "$log"
    printf '%-16s FAILED; its whole output: %s\n' "$name" "$log"
    return 1
  fi
}
export -f fuzz
export folder seconds

status=0
printf '%s\n' "${names[@]}" | xargs -P "$jobs" -I NAME bash -c 'fuzz NAME' || status=1
printf 'Ran %d tests in %ds\n' "${#names[@]}" $((SECONDS - begin))
if ((status)); then exit 1; fi
echo OK
