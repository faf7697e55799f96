#!/usr/bin/env bash
# Measures anew everything that docs/BENCHMARKS.md shows, and writes its tables: some ten minutes on a
# machine that does nothing else meanwhile. PyTorch is measured too if scripts/python_env.sh has made
# .venv.
#
#   scripts/bench.sh [NAME]      results go to benchmarks/results/NAME-*; NAME is cpu by default
set -euo pipefail
cd "$(dirname "$0")/.."

name="${1:-cpu}"
results=benchmarks/results
mkdir -p "$results"
cmake -S . -B build -G Ninja > /dev/null
cmake --build build --target graft_bench_cli

for dtype in f32 bf16; do
  build/bin/graft-bench lora --dtype "$dtype" \
    --csv "$results/$name-$dtype.csv" --svg "$results/$name-$dtype.svg"
done
if [[ -x .venv/bin/python ]]; then
  # The first command is complete before the file changes.
  torch="$(.venv/bin/python scripts/bench_torch.py --threads "${GRAFT_NUM_THREADS:-$(nproc)}")"
  printf '%s\n' "$torch" > "$results/$name-torch.csv"
fi
python3 scripts/bench_table.py --fix docs/BENCHMARKS.md
