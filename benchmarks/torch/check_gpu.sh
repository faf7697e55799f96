#!/usr/bin/env bash
# Runs what of the PyTorch host's tests is for a GPU, all at once, and counts: under a minute.
#
#   benchmarks/torch/check_gpu.sh [FOLDER OF THE BUILT PACKAGE]     # build-torch/hosts/torch unless it is named
#
# CHECK_MEMORY=1 runs some of them under compute-sanitizer's memcheck too. PYTHON names the Python.
set -uo pipefail
root="$(realpath "$(dirname "$0")/../..")"
package="$(realpath "${1:-$root/build-torch/hosts/torch}")"
python="${PYTHON:-python3}"
logs="$(mktemp -d)"
trap 'rm -rf "$logs"' EXIT
export PYTHONPATH="$package" PYTHONDONTWRITEBYTECODE=1 GRAFT_TEST_DEVICE=cuda OMP_NUM_THREADS=1
cd "$root/tests/hosts/torch" || exit

jobs=(ops_test eligibility_test)
# What compiles, or starts processes, takes longest: each part has a process to itself.
for part in Opcheck Autocast Compiled Transforms BadInput; do jobs+=("ops_in_torch_test.$part"); done
for part in Numbers Refusals Streams Dropout Graphs Memory Compiled Models; do jobs+=("cuda_test.$part"); done
for job in "${jobs[@]}"; do
  { timeout 120 "$python" -m unittest "$job" > "$logs/$job" 2>&1 || echo "FAILED with status $?" >> "$logs/$job"; } &
done
if [[ -n "${CHECK_MEMORY:-}" ]]; then
  { PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 120 compute-sanitizer --tool memcheck --error-exitcode 9 \
    "$python" -m unittest cuda_test.Numbers cuda_test.Dropout > "$logs/memcheck" 2>&1 ||
    echo "FAILED with status $?" >> "$logs/memcheck"; } &
fi
wait

ran=0 skipped=0 failed=0
for log in "$logs"/*; do
  summary="$(grep -E '^Ran [0-9]+ tests? in ' "$log" | tail -1)"
  if [[ "$summary" =~ ^Ran\ ([0-9]+) ]]; then ran=$((ran + BASH_REMATCH[1])); fi
  not_run="$(sed -nE 's/^(OK|FAILED) \(.*skipped=([0-9]+).*\)$/\2/p' "$log" | tail -1)"
  skipped=$((skipped + ${not_run:-0}))
  if grep -q '^FAILED with status' "$log"; then
    failed=$((failed + 1))
    grep -v 'frame #' "$log" | tail -40
  fi
  echo "$(basename "$log"): $summary, $(tail -1 "$log")"
done
echo "check_gpu: $ran tests, $skipped of them skipped; $failed of ${#jobs[@]} processes failed"
exit $((failed > 0))
