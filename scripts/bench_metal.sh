#!/usr/bin/env bash
# Measures the kernels on this Mac's GPU: installs and builds what that needs, then prints what
# `graft-bench plan --help` defines, some minutes on a machine that does nothing else meanwhile.
#
#   scripts/bench_metal.sh [NAME]   results go to benchmarks/results/metal-NAME.csv; NAME is the chip's
#                                   by default
#
# Runs in the bash 3.2 of macOS.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "bench_metal: $*" >&2; exit 1; }

case "${1:-}" in
  -*) echo "usage: scripts/bench_metal.sh [NAME]" >&2; exit 2 ;;
esac
if [[ "$(uname -s)" != Darwin || "$(uname -m)" != arm64 ]]; then
  die "needs Metal, a Mac with Apple silicon; this is $(uname -s) on $(uname -m)"
fi

scripts/setup.sh
cmake -S . -B build -G Ninja > /dev/null
cmake --build build --target graft_cli graft_bench_cli

# "Apple M2 Pro" becomes apple-m2-pro.
chip="$(sysctl -n machdep.cpu.brand_string | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9' '-')"
chip="${chip%-}"
results="benchmarks/results/metal-${1:-$chip}.csv"
mkdir -p benchmarks/results

build/bin/graft info
echo
status=0
build/bin/graft-bench plan --device gpu --csv "$results" || status=$?
if [[ -f "$results" ]]; then echo "written to $results"; fi
exit "$status"
