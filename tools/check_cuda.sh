#!/usr/bin/env bash
# Builds the CUDA back-end and the MLX host on top of it, with their tests and benchmarks, for every
# architecture there are kernels for; reads what ptxas says of them; holds figures and tables to the
# kernels they are of; and runs what needs no GPU. With a GPU the tests of the kernels run too.
#
#   tools/check_cuda.sh BUILD_FOLDER [CMAKE OPTION...]
#
# Exits with 77 where there is no CUDA compiler; without MLX for CUDA, which is fetched, goes on without
# the host.
set -euo pipefail
cd "$(dirname "$0")/.."
build_dir="$1"
shift

if ! command -v nvcc > /dev/null && [[ ! -x /usr/local/cuda/bin/nvcc && -z "${CUDACXX:-}" ]]; then
  echo "check_cuda: skipped: there is no CUDA compiler (nvcc) here"
  exit 77
fi
tools/cuda_digest.py --check
scripts/cuda_table.py docs/cuda.md
host=ON targets=(graft_tests graft_bench_cuda graft_bench_mlx) status=0
scripts/fetch_deps.py --cuda || status=$?
if ((status == 3)); then
  echo "check_cuda: MLX for CUDA cannot be had: without the MLX host"
  host=OFF targets=(graft_tests graft_bench_cuda)
elif ((status != 0)); then
  exit "$status"
fi
cmake -S . -B "$build_dir" -G Ninja -DGRAFT_CUDA=ON -DGRAFT_MLX=$host -DGRAFT_APPS=OFF \
  -DMLX_ROOT="$PWD/.deps/mlx-cuda" -DGRAFT_TESTS=ON -DGRAFT_WERROR=ON \
  "-DCMAKE_CUDA_FLAGS=-Xptxas=-v" "$@" > /dev/null
# The report is of what is compiled, so that all is compiled anew; what ccache has comes with its report.
log="$build_dir/compile.log"
cmake --build "$build_dir" --target clean > /dev/null
cmake --build "$build_dir" --target "${targets[@]}" > "$log" 2>&1 || { cat "$log"; exit 1; }
tools/check_ptxas.py "$log"
ctest --test-dir "$build_dir" -L cuda --no-tests=error
