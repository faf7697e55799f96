#!/usr/bin/env bash
# Builds the PyTorch host against the torch of .venv, which is made if need be, runs its tests, and
# installs the package as a user does.
#
#   tools/check_torch.sh BUILD_FOLDER [CMAKE OPTION...]
#
# Exits with 77 where there is no .venv and none can be made: no PyPI, or Python is older than 3.11.
set -euo pipefail
cd "$(dirname "$0")/.."
build_dir="$1"
shift
mkdir -p "$build_dir"

if ! scripts/python_env.sh > "$build_dir/python_env.log" 2>&1; then
  if ! python3 -m pip download --quiet --no-deps --dest "$build_dir/probe" packaging > /dev/null 2>&1; then
    echo "check_torch: skipped: there is no .venv, and PyPI can't be reached"
    exit 77
  fi
  if grep "is older than Python" "$build_dir/python_env.log"; then exit 77; fi
  cat "$build_dir/python_env.log"
  exit 1
fi
python="$PWD/.venv/bin/python"
cmake -S . -B "$build_dir" -G Ninja -DGRAFT_TORCH=ON -DGRAFT_MLX=OFF -DGRAFT_TESTS=OFF \
  -DGRAFT_WERROR=ON "-DPython_EXECUTABLE=$python" "$@" > /dev/null
cmake --build "$build_dir" > "$build_dir/build.log" || { cat "$build_dir/build.log"; exit 1; }

# Each file is a process of its own, several at once: none waits for another's threads by spinning.
logs="$build_dir/logs"
rm -rf "$logs"
mkdir -p "$logs"
export OMP_WAIT_POLICY=PASSIVE PYTHONPATH="$PWD/$build_dir/hosts/torch" PYTHONDONTWRITEBYTECODE=1
begin="$SECONDS"
(cd tests/hosts/torch && printf '%s\n' *_test.py) | xargs -P "$(getconf _NPROCESSORS_ONLN)" -I {} bash -c '
  cd tests/hosts/torch
  log="$2/$(basename "$1" .py).log"
  "$3" -m unittest "$1" > "$log" 2>&1 || echo "FAILED with status $?: $1" >> "$log"' _ {} "$PWD/$logs" "$python"
seconds=$((SECONDS - begin))
unset PYTHONPATH
ran=0 skipped=0 failed=0
for log in "$logs"/*.log; do
  if [[ "$(grep -E '^Ran [0-9]+ tests? in ' "$log" | tail -1)" =~ ^Ran\ ([0-9]+) ]]; then
    ran=$((ran + BASH_REMATCH[1]))
  fi
  not_run="$(sed -nE 's/^OK \(.*skipped=([0-9]+).*\)$/\1/p' "$log" | tail -1)"
  skipped=$((skipped + ${not_run:-0}))
  if grep -q '^FAILED with status' "$log"; then
    failed=$((failed + 1))
    cat "$log"
  fi
  echo "check_torch: $(basename "$log" .log): $(grep -E '^Ran [0-9]+ tests? in ' "$log" | tail -1), $(tail -1 "$log")"
done

# What pip makes of the checkout, in an environment that has torch and nothing of Graft. What is built
# once is in the cache: it is compiled by the same commands.
options=("build-dir=$build_dir-pip" cmake.define.GRAFT_CUDA=OFF cmake.define.GRAFT_WERROR=ON)
for option in "$@"; do options+=("cmake.define.${option#-D}"); done
"$python" -m venv --clear "$build_dir/venv"
site="$("$build_dir/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/torch.pth"
begin="$SECONDS"
"$build_dir/venv/bin/pip" install --disable-pip-version-check . "${options[@]/#/--config-settings=}" \
  > "$build_dir/pip.log" 2>&1 ||
  { cat "$build_dir/pip.log"; exit 1; }
echo "check_torch: pip install . took $((SECONDS - begin)) s"
(cd / && "$OLDPWD/$build_dir/venv/bin/python" -m graft_lora)

echo "Ran $ran tests in ${seconds}s"
if ((failed)); then exit 1; fi
if ((skipped)); then echo "OK (skipped=$skipped)"; else echo OK; fi
