#!/usr/bin/env bash
# Counts anew what the Metal kernels move and compute, on a machine without a GPU, and writes the
# tables of docs/metal.md: some six minutes on two cores. scripts/setup.sh tests gets what it needs.
set -euo pipefail
cd "$(dirname "$0")/.."

cmake -S . -B build -G Ninja -DGRAFT_TESTS=ON > /dev/null
cmake --build build --target metal_costs
build/bin/metal_costs --csv build/metal-costs.csv
mv build/metal-costs.csv benchmarks/results/
python3 scripts/metal_costs_table.py --fix docs/metal.md
