#!/usr/bin/env bash
# Makes .venv, with the Python programs that Graft is compared with: PyTorch, transformers, PEFT,
# mlx-lm. All of it is from PyPI, at pinned versions, for the CPU: about 0.7 GB to fetch and 1.4 GB
# on disk. Nothing that Graft builds, tests or runs needs it.
#
#   scripts/python_env.sh [PYTHON]      a Python 3.11 or later; python3 by default
set -euo pipefail
cd "$(dirname "$0")/.."

python="${1:-python3}"
requirements=scripts/python_requirements.txt
stamp=.venv/requirements.txt
if cmp -s "$requirements" "$stamp"; then
  echo "python_env: .venv is up to date"
  exit
fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "python_env: $python is older than Python 3.11" >&2; exit 1; }
for tool in cc readelf; do
  command -v "$tool" > /dev/null ||
    { echo "python_env: needs $tool (Debian packages gcc and binutils)" >&2; exit 1; }
done
"$python" -m venv --clear .venv 2> /dev/null ||
  { echo "python_env: needs Python's venv module (Debian package python3-venv)" >&2; exit 1; }
.venv/bin/pip install --quiet --disable-pip-version-check --no-compile --no-deps -r "$requirements"
.venv/bin/python scripts/cuda_stubs.py
.venv/bin/python -c 'import mlx_lm, peft, torch, transformers; torch.zeros(2, 2) @ torch.ones(2, 2)'
cp "$requirements" "$stamp"
