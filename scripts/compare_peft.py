#!/usr/bin/env python3
"""Trains the same adapter with Graft and with PEFT, and checks that they agree.

Same weights (the GGUF file dequantized by the gguf package), same initial adapter (PEFT's), same
batches in the same order (recorded by Graft, checked against Hugging Face's tokenizer and chat
template), same settings: float32, AdamW, constant rate 1e-3, 50 steps, no dropout. Compared are the
loss of each step, the final A and B, and the logits with the adapter that Graft saved, loaded by
PEFT; against mlx-lm, the losses of the first steps. Exits with 1 if a limit is exceeded.

Run it through compare_peft.sh, which builds what it needs.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import peer_training
from gguf_model import GgufModel

RANK = 8
ALPHA = 16
STEPS = 50
MLX_STEPS = 5
LEARNING_RATE = 1e-3
BATCH_SIZE = 4
# Relative; norms for A and B, the largest logit for logits. From the tolerance of float32 sums in a
# different order, many times over, and far below what any wrong gradient does.
LIMITS = {"loss": 1e-3, "A": 1e-2, "B": 1e-2, "logits": 1e-3, "mlx-lm loss": 1e-3}
LEAST_FALL = 0.30  # of the loss, from the first five steps to the last five


def run(command):
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)


def train_graft(arguments, initial, out, batches):
    """Runs `graft finetune`; the loss of each step."""
    command = [arguments.graft, "finetune", "--model", arguments.model, "--data", arguments.data]
    command += ["--init-adapter", initial, "--adapter-path", out, "--record-batches", batches]
    command += ["--dtype", "f32", "--iters", arguments.steps, "--batch-size", BATCH_SIZE]
    command += ["--learning-rate", LEARNING_RATE, "--lr-schedule", "constant"]
    command += ["--max-grad-norm", peer_training.MAX_GRAD_NORM]
    command += ["--weight-decay", peer_training.WEIGHT_DECAY]
    run(command + ["--steps-per-report", 1, "--val-batches", 0])
    with open(out / "metrics.jsonl", encoding="utf-8") as file:
        reports = [json.loads(line) for line in file]
    return [report["train_loss"] for report in reports if "train_loss" in report]


def check_batches(batches, tokenizer, data):
    """Every row is a sample of the data, as Hugging Face tokenizes it, and padding."""
    samples = set()
    with open(pathlib.Path(data, "train.jsonl"), encoding="utf-8") as file:
        for line in file:
            messages = json.loads(line)["messages"]
            samples.add(tuple(tokenizer.apply_chat_template(messages, return_dict=False)))
    for tokens, targets in batches:
        for row, wanted in zip(tokens, targets):
            counted = [token for token in wanted if token != peer_training.IGNORED]
            if (row[0], *counted) not in samples or row[1 : len(counted)] != counted[:-1]:
                raise SystemExit("a row of Graft's batches is no sample of the data")
    return sum(len(tokens) for tokens, _ in batches)


def final_pairs(directory):
    """{"A": one vector of all A, "B": ...} of a saved adapter."""
    tensors = load_file(pathlib.Path(directory, "adapter_model.safetensors"))
    return {
        part: torch.cat([tensors[n].flatten() for n in sorted(tensors) if f"lora_{part}." in n])
        for part in "AB"
    }


def graft_logits(program, model, adapter, sequences, scratch, vocabulary):
    tokens, out = scratch / "tokens.txt", scratch / "logits.f32"
    tokens.write_text("".join(" ".join(map(str, row)) + "\n" for row in sequences))
    run([program, model, adapter, tokens, out])
    logits = np.fromfile(out, dtype=np.float32).reshape(-1, vocabulary)
    return np.split(logits, np.cumsum([len(row) for row in sequences])[:-1])


def logits_difference(peft_model, sequences, ours):
    """The largest difference of any logit, over the largest logit."""
    difference = largest = 0.0
    for row, logits in zip(sequences, ours):
        with torch.no_grad():
            theirs = peft_model(input_ids=torch.tensor([row])).logits[0].numpy()
        difference = max(difference, float(np.abs(theirs - logits).max()))
        largest = max(largest, float(np.abs(theirs).max()))
    return difference / largest


def relative(ours, theirs):
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def compare(arguments, scratch):
    """({what: worst difference}, lines that tell more)"""
    source = GgufModel(arguments.model)
    tokenizer = source.tokenizer()
    torch.manual_seed(0)
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=peer_training.MODULES,
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(source.torch_model(), config)
    initial, ours, theirs = scratch / "initial", scratch / "graft", scratch / "peft"
    peft_model.save_pretrained(initial)

    record = scratch / "batches.jsonl"
    graft_losses = train_graft(arguments, initial, ours, record)
    batches = peer_training.read_batches(record)
    rows = check_batches(batches, tokenizer, arguments.data)
    trainer = peer_training.PeftTrainer(peft_model, LEARNING_RATE)
    peft_losses = [trainer.step(*batch) for batch in batches]
    peft_model.save_pretrained(theirs)

    found = {"loss": relative(graft_losses, peft_losses)}
    graft_pairs, peft_pairs = final_pairs(ours), final_pairs(theirs)
    start = final_pairs(initial)
    moved = {}
    for part in "AB":
        norm = peft_pairs[part].norm()
        found[part] = float((graft_pairs[part] - peft_pairs[part]).norm() / norm)
        moved[part] = float((peft_pairs[part] - start[part]).norm() / norm)

    del peft_model, trainer
    loaded = PeftModel.from_pretrained(source.torch_model(), ours).eval()
    sequences = [row for tokens, _ in batches[:3] for row in tokens]
    logits = graft_logits(
        arguments.logits, arguments.model, ours, sequences, scratch, source.config.vocab_size
    )
    found["logits"] = logits_difference(loaded, sequences, logits)
    del loaded

    source.save(scratch / "model")
    mlx_lm = peer_training.MlxProcess(
        scratch / "model", initial, record, LEARNING_RATE, torch.get_num_threads()
    )
    mlx_losses = [loss for loss, _ in mlx_lm.steps(MLX_STEPS)]
    mlx_lm.close()
    found["mlx-lm loss"] = relative(graft_losses[:MLX_STEPS], mlx_losses)

    fall = 1 - sum(graft_losses[-5:]) / sum(graft_losses[:5])
    notes = [
        f"{rows} rows of {len(batches)} batches are samples as Hugging Face tokenizes them.",
        f"Loss of steps 1 to {MLX_STEPS}:",
        *(
            f"  {name:7}{' '.join(f'{loss:.6f}' for loss in losses[:MLX_STEPS])}"
            for name, losses in (
                ("Graft", graft_losses),
                ("PEFT", peft_losses),
                ("mlx-lm", mlx_losses),
            )
        ),
        f"Loss of step {arguments.steps}: Graft {graft_losses[-1]:.6f}, PEFT {peft_losses[-1]:.6f}; fell by "
        f"{fall:.0%} (mean of the first five steps to mean of the last five; at least "
        f"{LEAST_FALL:.0%} wanted).",
        f"Training moved A by {moved['A']:.0%} and B by {moved['B']:.0%} of their final norms.",
    ]
    return found, fall, notes


def report(found, notes):
    lines = [f"{'compared':14}{'difference':>12}{'limit':>9}"]
    for what, difference in found.items():
        verdict = "ok" if difference <= LIMITS[what] else "TOO FAR"
        lines.append(f"{what:14}{difference:12.1e}{LIMITS[what]:9.0e}  {verdict}")
    return "\n".join([*lines, "", *notes])


def write_document(path, text):
    """Puts the result between the two marks of a document."""
    document = path.read_text(encoding="utf-8")
    marks = r"(<!-- result -->\n).*(<!-- end of result -->)"
    if not re.search(marks, document, flags=re.S):
        raise SystemExit(f"{path} has no place for the result")
    path.write_text(
        re.sub(marks, lambda m: f"{m[1]}```\n{text}\n```\n{m[2]}", document, flags=re.S),
        encoding="utf-8",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the GGUF file")
    parser.add_argument("--data", default="examples/cron", help="folder with train.jsonl")
    parser.add_argument("--graft", type=pathlib.Path, required=True, help="the program")
    parser.add_argument("--logits", type=pathlib.Path, required=True, help="graft_logits")
    parser.add_argument("--steps", type=int, default=STEPS, help="fewer for a quick look")
    parser.add_argument("--write", type=pathlib.Path, help="document to put the result in")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="Could not find a config file")
    with tempfile.TemporaryDirectory() as scratch:
        found, fall, notes = compare(arguments, pathlib.Path(scratch))
    text = report(found, notes)
    print(text)
    # Written so that NaN fails.
    agrees = all(difference <= LIMITS[what] for what, difference in found.items())
    learns = fall >= LEAST_FALL or arguments.steps < STEPS
    if not (agrees and learns):
        sys.exit("compare_peft: Graft and its peers do not agree")
    if arguments.write:
        write_document(arguments.write, text)


if __name__ == "__main__":
    main()
