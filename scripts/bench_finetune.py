#!/usr/bin/env python3
"""Measures fine-tuning in tokens a second: Graft against PEFT and mlx-lm, on the same machine.

Batches of 4 samples with 128 tokens each, rank 8, all seven projections of all layers, float32, the
same batches and settings for all. The programs take turns, a few steps at a time, and wait while
another runs; the first steps of a program (or of each of Graft's runs, which are processes of their
own) are left out. mlx-lm is compiled, as its trainer does it, and has OpenBLAS under it.

Each round also measures the machine's peak of multiply-adds, for the bound: what a step would take
if it were its products alone, at that peak. Machines shared with others are slower at times, for
everybody.

Prints medians, spread, ratios and the bound; writes each step's time as CSV.

usage: .venv/bin/python scripts/bench_finetune.py --model M.gguf [--graft build/bin/graft]
           [--graft-bench build/bin/graft-bench] [--threads 2] [--rounds 5] [--steps 4] [--csv benchmarks/results/finetune-....csv]
"""

import argparse
import csv
import datetime
import importlib.metadata
import json
import os
import pathlib
import random
import re
import shlex
import statistics
import subprocess
import sys
import tempfile

import torch
from peft import LoraConfig, get_peft_model

import peer_training
from gguf_model import GgufModel
from result_files import cpu_name

BATCH_SIZE = 4
LENGTH = 128
RANK = 8
ALPHA = 16
LEARNING_RATE = 1e-4
WARM_UP = 2  # steps of each program before its first that counts
WORDS = "the of and to in is that for it as was with be by on not he his but at are this have from"


def write_data(directory):
    """Samples that are longer than what is kept of them, so that no batch has padding."""
    rng = random.Random(0)
    words = WORDS.split()
    with open(directory / "train.jsonl", "w", encoding="utf-8") as file:
        for _ in range(8 * BATCH_SIZE):
            text = " ".join(rng.choice(words) for _ in range(2 * LENGTH))
            file.write(json.dumps({"text": text}) + "\n")


class Graft:
    """Runs `graft finetune` anew for each turn."""

    def __init__(self, arguments, scratch, initial):
        self.out = scratch / "adapter"
        self.record = scratch / "batches.jsonl"
        command = [arguments.graft, "finetune", "--model", arguments.model, "--dtype", "f32"]
        command += ["--data", scratch, "--init-adapter", initial, "--adapter-path", self.out]
        # One token more than is fed: the last of a sample is only a target.
        command += ["--batch-size", BATCH_SIZE, "--max-seq-length", LENGTH + 1]
        command += ["--learning-rate", LEARNING_RATE, "--threads", arguments.threads]
        command += ["--steps-per-report", 1, "--val-batches", 0, "--record-batches", self.record]
        self.command = list(map(str, command))

    def steps(self, count):
        """Seconds of each step."""
        command = [*self.command, "--iters", str(WARM_UP + count)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with open(self.out / "metrics.jsonl", encoding="utf-8") as file:
            reports = [json.loads(line) for line in file]
        rates = [r["tokens_per_second"] for r in reports if "tokens_per_second" in r]
        return [BATCH_SIZE * LENGTH / rate for rate in rates[-count:]]


def peak_flops(program):
    """Floating-point operations a second that all cores can do, measured now."""
    command = [program, "lora", "--rounds", "1"]
    for word in ("plan", "linear", "forward"):
        command += ["--filter", word]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return 1e9 * float(re.search(r"^limits +([0-9.]+) GFLOP/s f32", run.stdout, re.MULTILINE)[1])


def flops_per_token(model):
    """Of the products of a training step: y and dx of each frozen weight, and of an adapter's A and
    B those two and its own gradient. Attention is left out."""
    head = model.get_output_embeddings().weight.numel()
    frozen = head + sum(p.numel() for name, p in model.named_parameters() if "base_layer" in name)
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return 4 * frozen + 6 * adapters


class Peer:
    """Goes on training where it stopped."""

    def __init__(self, steps):
        self.run = steps
        self.run(WARM_UP)

    def steps(self, count):
        return [seconds for _, seconds in self.run(count)]


def peft_steps(model, batches):
    trainer = peer_training.PeftTrainer(model, LEARNING_RATE)
    done = 0

    def steps(count):
        nonlocal done
        answer = []
        for _ in range(count):
            batch = batches[done % len(batches)]
            answer.append(peer_training.timed_step(trainer, batch))
            done += 1
        return answer

    return steps


def measure(arguments, scratch):
    """{program: [[seconds of a step] of a round]}, and the tokens a second of the bound, a round"""
    write_data(scratch)
    source = GgufModel(arguments.model)
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=peer_training.MODULES,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(source.torch_model(), config)
    initial = scratch / "initial"
    model.save_pretrained(initial)
    source.save(scratch / "model")

    graft = Graft(arguments, scratch, initial)
    graft.steps(8)
    batches = peer_training.read_batches(graft.record)[:8]
    for tokens, targets in batches:
        # What is compared is work per token, so there must be no padding, for anyone.
        full = all(len(row) == LENGTH and peer_training.IGNORED not in row for row in targets)
        if not full or len(tokens) != BATCH_SIZE:
            raise SystemExit(f"a batch is not {BATCH_SIZE} x {LENGTH} tokens")
    record = scratch / "fixed.jsonl"
    record.write_text("".join(json.dumps({"tokens": a, "targets": b}) + "\n" for a, b in batches))

    mlx_lm = peer_training.MlxProcess(
        scratch / "model", initial, record, LEARNING_RATE, arguments.threads, compiled=True
    )
    programs = {
        "graft": graft,
        "peft": Peer(peft_steps(model, batches)),
        "mlx-lm": Peer(mlx_lm.steps),
    }
    times = {name: [] for name in programs}
    names = list(programs)
    bounds = []
    for turn in range(arguments.rounds):
        bounds.append(peak_flops(arguments.graft_bench) / flops_per_token(model))
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            times[name].append(programs[name].steps(arguments.steps))
        rates = {n: BATCH_SIZE * LENGTH / statistics.median(times[n][-1]) for n in names}
        text = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
        text += f", bound {bounds[-1]:.0f}"
        print(f"round {turn + 1}/{arguments.rounds}: {text} tokens/s", flush=True)
    mlx_lm.close()
    return times, bounds


def describe(arguments):
    """What the numbers depend on, as lines of text."""
    version = subprocess.run([arguments.graft, "--version"], capture_output=True, text=True)
    versions = {"graft": version.stdout.strip().rpartition(" ")[2]}
    for package in ("torch", "transformers", "peft", "mlx", "mlx-lm"):
        versions[package] = importlib.metadata.version(package)
    return [
        f"device: {cpu_name()}, {arguments.threads} threads of {os.cpu_count()} cores",
        "versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()),
        f"date: {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
        f"model: {pathlib.Path(arguments.model).name}, float32, rank {RANK}, seven projections, "
        f"{BATCH_SIZE} x {LENGTH} tokens a step",
        # The command as it can be typed in a checkout, whatever this one's path is.
        "command: .venv/bin/python scripts/bench_finetune.py " + shlex.join(sys.argv[1:]),
    ]


def summarize(times, bounds):
    tokens = BATCH_SIZE * LENGTH
    lines = [f"{'program':9}{'median':>8}{'10 %':>8}{'90 %':>8}  tokens/s"]
    medians = {}
    for name, rounds in times.items():
        rates = sorted(tokens / seconds for part in rounds for seconds in part)
        medians[name] = statistics.median(rates)
        tenths = statistics.quantiles(rates, n=10, method="inclusive")
        lines.append(f"{name:9}{medians[name]:8.1f}{tenths[0]:8.1f}{tenths[-1]:8.1f}")
    for peer in ("peft", "mlx-lm"):
        lines.append(f"graft / {peer}: {medians['graft'] / medians[peer]:.2f}")
    for name, median in medians.items():
        lines.append(f"{name} / bound: {median / statistics.median(bounds):.2f}")
    return lines


def bound_fact(bounds):
    bound = statistics.median(bounds)
    return f"bound: {bound:.0f} tokens/s, a step's products alone at the peak measured meanwhile"


def write_csv(path, description, times):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.writelines(f"# {line}\n" for line in description)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["program", "round", "step", "seconds", "tokens_per_second"])
        for name, rounds in times.items():
            for turn, part in enumerate(rounds, 1):
                for step, seconds in enumerate(part, 1):
                    rate = BATCH_SIZE * LENGTH / seconds
                    writer.writerow([name, turn, step, f"{seconds:.4f}", f"{rate:.1f}"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the GGUF file")
    parser.add_argument("--graft", default="build/bin/graft", help="the program")
    parser.add_argument("--graft-bench", default="build/bin/graft-bench",
                        help="the program that measures the peak")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps a round that count")
    parser.add_argument("--csv", type=pathlib.Path)
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    description = describe(arguments)
    print("\n".join(description), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        times, bounds = measure(arguments, pathlib.Path(scratch))
    print("\n".join([*summarize(times, bounds), bound_fact(bounds)]))
    if arguments.csv:
        write_csv(arguments.csv, [*description, bound_fact(bounds)], times)


if __name__ == "__main__":
    main()
