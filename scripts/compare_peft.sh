#!/usr/bin/env bash
# Checks training against PEFT and mlx-lm (compare_peft.py says how), and then that the check would
# notice a fault: a program with a wrong sign in dA has to fail it. Takes some minutes.
#
#   scripts/compare_peft.sh [--write docs/parity.md]
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
scripts/python_env.sh
cmake -S . -B build -G Ninja > /dev/null
cmake --build build --target graft_cli graft_logits graft_planted_fault

compare() {
  local program="$1"
  shift
  HF_HUB_OFFLINE=1 .venv/bin/python scripts/compare_peft.py --graft "build/bin/$program" \
    --logits build/bin/graft_logits --model .deps/model/SmolLM2-135M-Instruct.Q4_1.gguf "$@"
}

compare graft "$@"

printf '\nTen steps with a wrong sign in dA:\n'
status=0
output="$(compare graft_planted_fault --steps 10 2>&1)" || status=$?
echo "$output"
# Status 1 alone could be any error: the losses have to be what gave the fault away.
if ((status != 1)) || ! grep -qE '^loss .* TOO FAR$' <<< "$output"; then
  echo "compare_peft: the planted fault was not found" >&2
  exit 1
fi
echo "found, as it should be"
