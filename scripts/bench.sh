#!/usr/bin/env bash
# Measures anew what docs/BENCHMARKS.md shows, and writes its tables: some fifteen minutes on a machine
# that does nothing else meanwhile. PyTorch is measured too if scripts/python_env.sh has made .venv.
# It goes by runs of less than a minute; BENCH_RUN is a command that each of them is given to
# (`taskset -c 0,1`, say).
#
#   scripts/bench.sh [NAME] [PART...]    results go to benchmarks/results/NAME-*; NAME is cpu by default,
#                                        parts are f32, bf16, torch, rows, promises; all by default
set -euo pipefail
cd "$(dirname "$0")/.."

name="${1:-cpu}"
results=benchmarks/results
threads="${GRAFT_NUM_THREADS:-$(nproc)}"
bench=build/bin/graft-bench
python=.venv/bin/python
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$results"
cmake -S . -B build -G Ninja > /dev/null
cmake --build build --target graft_bench_cli

run() { ${BENCH_RUN:-} "$@"; }
has_torch() { [[ -x "$python" ]] || { echo "bench: no .venv: $1 left out" >&2; return 1; }; }
# Files that a measurement was written to in parts, as one.
put_together() { python3 scripts/result_files.py "$1" "$scratch/$2"-*.csv; }

layers() {
  local dtype="$1"
  run "$bench" lora --dtype "$dtype" --rounds 5 --without grid --csv "$scratch/$dtype-0.csv" \
    --svg "$results/$name-$dtype.svg"
  for op in linear lora_delta lora_linear; do
    run "$bench" lora --dtype "$dtype" --rounds 5 --filter "grid $op" \
      --csv "$scratch/$dtype-$op.csv"
  done
  put_together "$results/$name-$dtype.csv" "$dtype"
}

peers() {
  has_torch PyTorch || return 0
  # The first command is complete before the file changes.
  run "$python" scripts/bench_torch.py --threads "$threads" --seconds 0.7 > "$scratch/torch-0.csv"
  put_together "$results/$name-torch.csv" torch
}

rows() {
  has_torch rows || return 0
  for shape in 128,4096 2048,576 32768,576; do
    run "$python" scripts/bench_rows.py --threads "$threads" --shapes "$shape" \
      --csv "$scratch/rows-$shape.csv"
  done
  put_together "$results/$name-rows.csv" rows
}

promises() {
  local missed=0
  check() { run python3 scripts/check_speed.py --threads "$threads" --csv "$@" || missed=1; }
  check "$scratch/promises-0.csv" --only delta
  for dtype in f32 bf16; do
    check "$scratch/promises-1-$dtype.csv" --only "$dtype" --recorded "$results/$name-$dtype.csv"
  done
  if has_torch "bfloat16 against PyTorch"; then
    for shape in '4x512x512>512' '4x128x576>1536' '4x128x576>576' '4x128x2048>2048' \
      '1x128x512>512' '4x128x576>49152'; do
      check "$scratch/promises-2${shape//>/-}.csv" --only torch --rounds 5 --turns 3 --shapes "$shape"
    done
  fi
  put_together "$results/$name-promises.csv" promises
  [[ "$missed" == 0 ]] || echo "bench: a promise was missed" >&2
}

parts=("${@:2}")
[[ ${#parts[@]} -gt 0 ]] || parts=(f32 bf16 torch rows promises)
for part in "${parts[@]}"; do
  case "$part" in
    f32 | bf16) layers "$part" ;;
    torch) peers ;;
    rows) rows ;;
    promises) promises ;;
    *) echo "bench: no such part: $part" >&2; exit 2 ;;
  esac
done
python3 scripts/bench_table.py --fix docs/BENCHMARKS.md
