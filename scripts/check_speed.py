#!/usr/bin/env python3
"""Measures what Graft promises of its speed, and prints each ratio beside its target.

- linear: at least as fast as OpenBLAS in float32 and as PyTorch's oneDNN in bfloat16 (0.97 of that
  counts, for noise).
- lora_linear: adds to its base product at most the arithmetic floor and 2 points forward, 6 points
  forward+backward. With dropout: printed, without a target.
- The adapter's contribution alone at (1, 128, 512), rank 8: 14 µs in the core with its data in cache,
  and through MLX's eval 0.6 of MLX's own ops.

Measures with build/bin/graft-bench; PyTorch with the Python of .venv (scripts/python_env.sh), if it is
there. Exits with 1 if a target is missed. The machine should do nothing else meanwhile.

usage: check_speed.py [--program build/bin/graft-bench] [--rounds 7] [--no-torch]
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bench_table import ROOT, read_results, torch_key, torch_times  # noqa: E402

# Words of a --filter, and the same shape as bench_torch.py takes it: M, K, N, rank.
SHAPES = [
    ("wide 4x512x512>512", "2048,512,512,8"),
    ("model 4x128x576>1536", "512,576,1536,16"),
    ("model 4x128x576>576", "512,576,576,16"),
    ("wide 4x128x2048>2048", "512,2048,2048,16"),
    ("plan 1x128x512>512", "128,512,512,8"),
]
# What bench_torch.py goes round in: the two are compared on the same terms.
TORCH_ROTATES_MB = 100
TORCH_TURNS = 5
SLACK = {"forward": 0.02, "forward+backward": 0.06}


class Report:
    def __init__(self):
        self.missed = 0

    def line(self, name, value, target="", met=None):
        verdict = "" if met is None else "ok" if met else "MISSED"
        self.missed += met is False
        print(f"{name:<62} {value:>9}  {target:<22} {verdict}", flush=True)


def bench(arguments, dtype, words, *options):
    filters = [part for word in words.split() for part in ("--filter", word)]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "results.csv"
        command = [arguments.program, "lora", "--dtype", dtype, "--rounds",
                   str(arguments.rounds), "--csv", str(path), *filters, *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return read_results(path)[1]


def name_of(row):
    dropout = f" dropout {row['dropout']}" if float(row["dropout"]) > 0 else ""
    rank = f" r{row['rank']}" if row["rank"] != "0" else ""
    size = f"{row['batch']}x{row['sequence']}x{row['in']}>{row['out']}"
    return f"{row['what']} {row['dtype']} {size}{rank} {row['pass']}{dropout}"


def check_base(report, row, peer, ratio):
    report.line(f"{name_of(row)}, {peer}", f"{ratio:.2f}x", "at least 1.00 (0.97)", ratio >= 0.97)


def check_overhead(report, row):
    measured, floor = float(row["overhead"]), float(row["floor"])
    value = f"{100 * measured:+.1f} %"
    if float(row["dropout"]) > 0:
        report.line(name_of(row), value, f"(floor {100 * floor:+.1f} %)")
        return
    most = floor + SLACK[row["pass"]]
    target = f"at most {100 * most:+.1f} % ({100 * floor:.1f})"
    report.line(name_of(row), value, target, measured <= most)


def check_layers(report, arguments, dtype):
    for words, _ in SHAPES:
        for row in bench(arguments, dtype, words):
            if row["what"] == "linear" and dtype == "f32":
                check_base(report, row, "OpenBLAS", float(row["blas_us"]) / float(row["fused_us"]))
            if row["what"] == "lora_linear":
                check_overhead(report, row)


def torch_rows(python, shape):
    command = [python, ROOT / "scripts" / "bench_torch.py", "--dtypes", "bfloat16", "--seconds",
               "0.3", "--shapes", shape]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return torch_times(csv.DictReader(run.stdout.splitlines()))


def check_torch(report, arguments):
    """The two programs take turns on each shape; a ratio is the median of the turns'."""
    python = ROOT / ".venv" / "bin" / "python"
    if arguments.no_torch or not python.exists():
        report.line("linear bf16 against PyTorch", "not run", "no .venv, or --no-torch")
        return
    for words, shape in SHAPES:
        turns = {}
        for _ in range(TORCH_TURNS):
            peers = torch_rows(python, shape)
            if not peers:
                report.line("linear bf16 against PyTorch", "not run", "oneDNN: no bf16 here")
                return
            options = ("--filter", "linear", "--rotate-mb", str(TORCH_ROTATES_MB))
            for row in bench(arguments, "bf16", words, *options):
                ratio = peers[torch_key(row)] / float(row["fused_us"])
                turns.setdefault(row["pass"], []).append((ratio, row))
        for found in turns.values():
            ratio = statistics.median(ratio for ratio, _ in found)
            check_base(report, found[0][1], "PyTorch", ratio)


def check_delta(report, arguments):
    words = "plan lora_delta forward"
    (cached,) = bench(arguments, "f32", words, "--rotate-mb", "0")
    (rotated,) = bench(arguments, "f32", words)
    us = float(cached["fused_us"])
    report.line(f"{name_of(cached)}, in cache", f"{us:.1f} us", "at most 14 us", us <= 14.0)
    report.line(f"{name_of(rotated)}, inputs rotated", f"{float(rotated['fused_us']):.1f} us")
    share = float(rotated["eval_us"]) / float(rotated["mlx_us"])
    report.line(f"{name_of(rotated)}, in MLX, of MLX's ops", f"{share:.2f}x", "at most 0.60",
                share <= 0.6)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default=str(ROOT / "build" / "bin" / "graft-bench"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-torch", action="store_true")
    arguments = parser.parse_args()
    report = Report()
    check_delta(report, arguments)
    check_layers(report, arguments, "f32")
    check_layers(report, arguments, "bf16")
    check_torch(report, arguments)
    print(f"{report.missed} targets missed" if report.missed else "every target met")
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
