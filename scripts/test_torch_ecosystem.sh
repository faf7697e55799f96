#!/usr/bin/env bash
# Trains with Transformers' Trainer, TRL, Diffusers, DeepSpeed and over the layers of bitsandbytes, torchao and
# GPTQModel (GPTQ and AWQ), with and without graft_lora.accelerate(), and compares losses and adapters. Takes some
# minutes; fetches 0.2 GB from PyPI, no model. What can't be installed is skipped and said so.
#
#   scripts/test_torch_ecosystem.sh [--record] [CASE...]    --record writes benchmarks/results/torch-ecosystem.csv
set -euo pipefail
cd "$(dirname "$0")/.."

record=()
if [[ "${1:-}" == --record ]]; then
  record=(--csv benchmarks/results/torch-ecosystem.csv)
  shift
fi

scripts/python_env.sh
cmake -S . -B build-torch -G Ninja -DGRAFT_TORCH=ON -DGRAFT_MLX=OFF -DGRAFT_TESTS=OFF \
  "-DPython_EXECUTABLE=$PWD/.venv/bin/python" > /dev/null
cmake --build build-torch

# An environment of its own on top of .venv's.
environment=.deps/torch-ecosystem
python="$environment/bin/python"
pip=(.venv/bin/python -m pip --python "$python" install --quiet --disable-pip-version-check --no-deps --no-compile)
requirements=scripts/torch_ecosystem_requirements.txt
gptqmodel="$environment/gptqmodel"
if ! cmp -s "$requirements" "$environment/requirements.txt"; then
  .venv/bin/python -m venv --clear --without-pip "$environment"
  site_packages="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  .venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site_packages/base.pth"
  "${pip[@]}" -r "$requirements"
  # Built from source, without the compiled parts that are for GPUs.
  "${pip[@]}" wheel==0.48.0 einops==0.8.2 hjson==3.1.0 msgpack==1.2.4 ninja==1.13.2 py-cpuinfo==9.0.0
  DS_BUILD_OPS=0 "${pip[@]}" --no-build-isolation deepspeed==0.19.8 ||
    echo "test_torch_ecosystem: deepspeed can't be built here" >&2
  # GPTQModel says that it needs a newer torch and Transformers; its plain torch layers run with these.
  BUILD_CUDA_EXT=0 "${pip[@]}" --no-build-isolation --target "$gptqmodel" gptqmodel==7.7.0 defuser==0.0.28 \
    device-smi==0.5.7 logbar==0.4.15 optimum==2.3.0 pypcre==0.6.4 threadpoolctl==3.8.0 tokenicer==0.0.14 ||
    echo "test_torch_ecosystem: gptqmodel can't be built here" >&2
  cp "$requirements" "$environment/requirements.txt"
fi

PATH="$PWD/$environment/bin:$PATH" PYTHONPATH="$PWD/build-torch/hosts/torch" GRAFT_GPTQMODEL="$PWD/$gptqmodel" \
  "$python" tests/hosts/torch/ecosystem/run.py "${record[@]}" "$@"
