#!/usr/bin/env bash
# Sets up, builds the program, and shows its main job: SmolLM2-135M-Instruct learns on this machine's
# CPU to turn English into cron lines. Fails unless the tuned model gets at least 90 % of the test
# set exactly right, and every adapted projection ran fused, forward and backward.
#
# Everything it writes is in .deps, build and out/demo.
set -euo pipefail
cd "$(dirname "$0")/.."

graft=build/bin/graft
model=.deps/model/SmolLM2-135M-Instruct.Q4_1.gguf
data=examples/cron
out=out/demo
least=90

phases=()
phase_name=""
# phase NAME: ends the phase before and opens this one.
phase() {
  local now="$SECONDS"
  if [[ -n "$phase_name" ]]; then
    phases+=("$(printf '%-12s %d:%02d' "$phase_name" $(((now - phase_begin) / 60)) \
      $(((now - phase_begin) % 60)))")
  fi
  phase_name="$1" phase_begin="$now"
  if [[ -n "$1" ]]; then printf '\n== %s (%d:%02d so far)\n' "$1" $((now / 60)) $((now % 60)); fi
}

# evaluate LOG [FLAG...]: every test sentence, its cron line and the model's answer, into LOG.
evaluate() {
  local log="$1"
  shift
  "$graft" evaluate --model "$model" --data "$data/test.jsonl" --max-tokens 24 --show 1000 "$@" \
    > "$log" || { cat "$log" >&2; exit 1; }
  tail -1 "$log"
}

# percent LOG: the number in its last line, "exact match: 95.0 % (114 of 120)".
percent() { sed -n 's/^exact match: \([0-9.]*\) %.*/\1/p' "$1" | tail -1; }

phase "set-up"
./scripts/setup.sh

phase "build"
# A build folder that is there already keeps its settings; a new one leaves the tests out.
[[ -f build/build.ninja ]] || cmake -S . -B build -G Ninja -DGRAFT_TESTS=OFF
cmake --build build --target graft_cli
"$graft" info

mkdir -p "$out"
phase "base model"
echo "The model as it comes answers the 120 sentences of $data/test.jsonl:"
evaluate "$out/base.txt"

phase "fine-tune"
echo "One pass over $data/train.jsonl, fewer than 40,000 tokens:"
rm -rf "$out/adapter"
"$graft" finetune --model "$model" --data "$data" --adapter-path "$out/adapter" \
  --batch-size 3 --iters "$(($(wc -l < "$data/train.jsonl") / 3))" --mask-prompt \
  --learning-rate 2.5e-3 --lr-schedule cosine --warmup 10 --max-grad-norm 1 \
  --steps-per-report 20 --steps-per-eval 179 --require-fused

phase "tuned model"
echo "The same sentences, none of whose phrasings or cron lines it was trained on:"
evaluate "$out/tuned.txt" --adapter-path "$out/adapter"

phase ""
printf '\n%-44s %-18s %-18s %s\n' "sentence" "right" "tuned" "base"
# A record of the two logs is three lines: "[ok] SENTENCE", "expected LINE" and "got ANSWER".
awk -v wanted=12 '
  /^\[(ok|--)\] / { sentence = substr($0, 6) }
  /^ +expected / { sub(/^ +expected /, ""); right[sentence] = $0 }
  /^ +got/ {
    sub(/^ +got */, "")
    if (FILENAME == ARGV[1]) { base[sentence] = $0; next }
    if (++shown > wanted) next
    answer = base[sentence]
    if (length(answer) > 40) answer = substr(answer, 1, 37) "..."
    printf "%-44s %-18s %-18s %s\n", sentence, right[sentence], $0, answer
  }' "$out/base.txt" "$out/tuned.txt"

printf '\nbase   %s\ntuned  %s\n' "$(tail -1 "$out/base.txt")" "$(tail -1 "$out/tuned.txt")"
printf '\n'
printf '%s\n' "${phases[@]}"
printf '%-12s %d:%02d\n' total $((SECONDS / 60)) $((SECONDS % 60))
printf '\nThe adapter, in the form PEFT reads, the metrics and loss.svg are in %s/adapter. Ask it more:\n' "$out"
printf '  %s generate --model %s --adapter-path %s/adapter \\\n    --system-prompt cron --prompt "weekdays at 7 pm"\n' \
  "$graft" "$model" "$out"

tuned="$(percent "$out/tuned.txt")"
awk -v got="$tuned" -v least="$least" 'BEGIN { exit !(got != "" && got + 0 >= least) }' || {
  echo "demo: expected at least $least % exactly right after fine-tuning, got ${tuned:-nothing}" >&2
  exit 1
}
