#!/usr/bin/env python3
"""Compares the memory that `graft finetune` says it will need with what it then took.

usage: check_memory.py --model MODEL.gguf [--graft PROGRAM] [--tiny WRITE_TINY_MODEL]
                       [--filter WORDS] [--csv FILE]

Runs one iteration for each case, with a save, of samples that all fill the length, and prints the
estimate, the peak that was measured, and their ratio. --tiny adds cases on the model that the tests
use, written by the given program. With --filter only cases with all of the words are run. Ends in
an error if a ratio is off by more than 15 %.
"""

import argparse
import csv
import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

MOST_OFF = 0.15
COLUMNS = ("case", "estimated_bytes", "measured_bytes", "ratio")

# Batch size, length in tokens, other flags.
SMOL_CASES = (
    (1, 64, ""),
    (1, 64, "--dtype bf16"),
    (1, 256, ""),
    (1, 256, "--dtype bf16"),
    (1, 1024, ""),
    (1, 1024, "--grad-checkpoint"),
    (4, 64, ""),
    (4, 128, ""),
    (4, 128, "--dtype bf16"),
    (4, 128, "--dropout 0.1"),
    (4, 128, "--rank 64"),
    (4, 128, "--rank 64 --dropout 0.1 --grad-checkpoint"),
    (4, 128, "--num-layers 8"),
    (4, 128, "--target-modules q_proj,v_proj"),
    (4, 128, "--target-modules q_proj,v_proj --num-layers 8 --grad-checkpoint"),
    (4, 128, "--grad-checkpoint"),
    (4, 128, "--grad-checkpoint --dtype bf16"),
    (4, 512, "--dtype bf16"),
    (4, 512, "--target-modules q_proj,v_proj"),
    (4, 512, "--num-layers 8"),
    (8, 64, ""),
    (8, 512, ""),
    (8, 512, "--grad-checkpoint"),
    (8, 1024, "--grad-checkpoint --dtype bf16"),
)
TINY_CASES = (
    (1, 64, ""),
    (8, 120, ""),
    (256, 120, ""),
    (256, 120, "--grad-checkpoint"),
    (256, 120, "--dropout 0.1 --rank 16"),
    (1024, 120, "--dtype bf16"),
)


def write_data(folder, samples, length):
    text = Path(__file__).resolve().parent.parent.joinpath("README.md").read_text(encoding="utf-8")
    folder.mkdir()
    with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
        for i in range(samples):
            words = f"{i} {text}"
            while len(words) < 8 * length:
                words += text
            file.write(json.dumps({"text": words[:8 * length]}) + "\n")


def run_case(graft, model, batch_size, length, flags):
    """The estimate and the peak, in bytes."""
    with tempfile.TemporaryDirectory(prefix="graft_memory_") as scratch:
        write_data(Path(scratch) / "data", batch_size, length)
        adapter = Path(scratch) / "adapter"
        command = [graft, "finetune", "--model", model, "--data", Path(scratch) / "data",
                   "--adapter-path", adapter, "--batch-size", batch_size, "--iters", 1,
                   "--max-seq-length", length + 1, "--json", *shlex.split(flags)]
        run = subprocess.run([str(word) for word in command], check=False, capture_output=True,
                             text=True)
        if run.returncode != 0:
            sys.exit(f"{shlex.join(map(str, command))}: {run.stderr.strip()}")
        events = {event["event"]: event for event in map(json.loads, run.stdout.splitlines())}
        return events["memory"]["peak_memory_bytes"], events["end"]["peak_memory_bytes"]


def device():
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return f"{found[1] if found else platform.machine()}, {os.cpu_count()} threads"


def version(graft):
    run = subprocess.run([graft, "--version"], check=True, capture_output=True, text=True)
    return run.stdout.strip()


def write_csv(path, graft, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(f"# device: {device()}\n")
        file.write(f"# versions: graft {version(graft)}\n")
        now = datetime.datetime.now(datetime.timezone.utc)
        file.write(f"# date: {now:%Y-%m-%d %H:%M} UTC\n")
        file.write(f"# command: {shlex.join(['scripts/check_memory.py', *sys.argv[1:]])}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--graft", default="build/bin/graft")
    parser.add_argument("--tiny")
    parser.add_argument("--filter", default="")
    parser.add_argument("--csv")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="graft_memory_") as scratch:
        cases = [("SmolLM2", arguments.model, *case) for case in SMOL_CASES]
        if arguments.tiny:
            tiny = str(Path(scratch) / "tiny.gguf")
            subprocess.run([arguments.tiny, tiny], check=True)
            cases += [("tiny", tiny, *case) for case in TINY_CASES]
        rows = []
        for name, model, batch_size, length, flags in cases:
            case = f"{name} {batch_size}x{length} {flags}".strip()
            if not all(word in case for word in arguments.filter.split()):
                continue
            estimated, measured = run_case(arguments.graft, model, batch_size, length, flags)
            rows.append((case, estimated, measured, f"{estimated / measured:.3f}"))
            print(f"{case:<90} {estimated / 1e6:8.0f} MB {measured / 1e6:8.0f} MB "
                  f"{estimated / measured:6.3f}", flush=True)
    if arguments.csv:
        write_csv(arguments.csv, arguments.graft, rows)
    worst = max(abs(float(row[-1]) - 1) for row in rows)
    print(f"worst: off by {100 * worst:.1f} %")
    return worst > MOST_OFF


if __name__ == "__main__":
    sys.exit(main())
