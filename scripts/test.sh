#!/usr/bin/env bash
# Sets up, then runs every check and every test, a stage at a time, with the minutes each takes.
#
#   scripts/test.sh                 everything
#   scripts/test.sh STAGE...        only these stages; the names are in the list at the end
#
# A failed stage does not stop the later ones. The full output of a stage is in build/logs.
set -uo pipefail
cd "$(dirname "$0")/.."

jobs="$(getconf _NPROCESSORS_ONLN)"
logs="$PWD/build/logs"
mkdir -p "$logs"
export CTEST_OUTPUT_ON_FAILURE=1

stages=()  # "name<TAB>result<TAB>minutes"
passed=0 failed=0 skipped=0
wanted=("$@")

# run_stage NAME COMMAND...: runs the command, shows and keeps its output, and counts its tests: the
# cases that CTest or Python's unittest reports, or one for a stage that is itself one check. Status
# 77 says that the check could not be made here.
run_stage() {
  local name="$1" begin="$SECONDS" log="$logs/$1.log"
  shift
  if ((${#wanted[@]})) && [[ " ${wanted[*]} " != *" $name "* ]]; then return; fi
  printf '\n== %s\n' "$name"
  "$@" 2>&1 | tee "$log"
  local status="${PIPESTATUS[0]}"
  local seconds=$((SECONDS - begin)) result=passed
  if ((status == 77)); then result=skipped; elif ((status != 0)); then result=FAILED; fi

  local summary
  summary="$(grep -E '[0-9]+% tests passed, [0-9]+ tests? failed out of [0-9]+' "$log" | tail -1)"
  if [[ "$summary" =~ ,\ ([0-9]+)\ tests?\ failed\ out\ of\ ([0-9]+) ]]; then
    local bad="${BASH_REMATCH[1]}" all="${BASH_REMATCH[2]}" not_run
    not_run="$(grep -cE '^ *[0-9]+/[0-9]+ Test +#[0-9]+: .*\*\*\*Skipped' "$log")"
    passed=$((passed + all - bad - not_run)) failed=$((failed + bad)) skipped=$((skipped + not_run))
    if ((status != 0 && bad == 0)); then failed=$((failed + 1)); fi
  elif ((status == 77)); then
    skipped=$((skipped + 1))
  elif ((status != 0)); then
    failed=$((failed + 1))
  elif [[ "$(grep -E '^Ran [0-9]+ tests? in ' "$log" | tail -1)" =~ ^Ran\ ([0-9]+) ]]; then
    local ran="${BASH_REMATCH[1]}" not_run
    not_run="$(sed -nE 's/^OK \(.*skipped=([0-9]+).*\)$/\1/p' "$log" | tail -1)"
    passed=$((passed + ran - ${not_run:-0})) skipped=$((skipped + ${not_run:-0}))
  else
    passed=$((passed + 1))
  fi
  stages+=("$(printf '%-14s %-7s %3d:%02d' "$name" "$result" $((seconds / 60)) $((seconds % 60)))")
}

# Where ccache is, what one stage compiled serves another that compiles the same.
launcher=()
if command -v ccache > /dev/null; then
  launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  export CCACHE_BASEDIR="${CCACHE_BASEDIR:-$PWD}" CCACHE_NOHASHDIR=1
  # Without this it compiles whatever has a precompiled header anew.
  export CCACHE_SLOPPINESS="${CCACHE_SLOPPINESS:-pch_defines,time_macros}"
fi

# build_and_test FOLDER TARGET [CMAKE OPTION...]
build_and_test() {
  local folder="$1" target="$2"
  shift 2
  cmake -S . -B "$folder" -G Ninja -DGRAFT_TESTS=ON -DGRAFT_WERROR=ON ${launcher[@]+"${launcher[@]}"} "$@" &&
    cmake --build "$folder" -j "$jobs" --target "$target" &&
    ctest --test-dir "$folder" --no-tests=error -j "$jobs"
}

run_stage setup scripts/setup.sh tests
run_stage format tools/check_format.sh
run_stage includes tools/check_includes.py
run_stage shaders tools/check_shaders.py
run_stage quotes tools/check_quotes.py README.md docs/library.md
run_stage docs doxygen tools/Doxyfile
run_stage tools python3 -m unittest discover -s tests/tools -p '*_test.py'
# This stage alone compiles every file by itself, and so sees an include that a file lacks.
run_stage release build_and_test build all -DGRAFT_MLX=ON -DGRAFT_UNITY=OFF
run_stage install tools/check_install.sh build
run_stage core-alone build_and_test build-core all -DGRAFT_MLX=OFF
run_stage core-install tools/check_install.sh build-core
run_stage torch tools/check_torch.sh build-torch ${launcher[@]+"${launcher[@]}"}
# What release compiled is in the cache: these are the same commands, and only link anew.
run_stage shared tools/check_shared.sh build-shared -DGRAFT_UNITY=OFF -DGRAFT_WERROR=ON ${launcher[@]+"${launcher[@]}"}
run_stage cuda tools/check_cuda.sh build-cuda ${launcher[@]+"${launcher[@]}"} \
  ${launcher[@]+"${launcher[@]/CXX/CUDA}"}
run_stage fuzz scripts/fuzz.sh 10
run_stage macos tools/check_macos.sh build-macos
run_stage asan build_and_test build-asan graft_tests -DGRAFT_MLX=ON -DGRAFT_SANITIZE=address
run_stage tsan build_and_test build-tsan graft_tests -DGRAFT_MLX=ON -DGRAFT_SANITIZE=thread

printf '\n== summary (minutes)\n'
printf '%s\n' "${stages[@]}"
printf '%-22s %3d:%02d\n' total $((SECONDS / 60)) $((SECONDS % 60))
printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
((failed == 0))
