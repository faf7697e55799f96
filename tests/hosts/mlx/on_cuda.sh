#!/usr/bin/env bash
# on_cuda.sh PROGRAM [ARGUMENT...]: runs one of the host's test programs on MLX's CUDA device. Exits with
# 77 where libraries that MLX needs are missing, CUDA's driver first of all.
set -euo pipefail
missing="$(ldd "$1" | sed -n 's/^[[:space:]]*\(.*\) => not found$/\1/p' | paste -sd ' ')"
if [[ -n "$missing" ]]; then
  echo "skipped: MLX for CUDA does not start here, without $missing"
  exit 77
fi
# MLX's float32 products are to be float32 ones.
GRAFT_TEST_DEVICE=cuda MLX_ENABLE_TF32=0 exec "$@"
