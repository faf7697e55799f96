#!/usr/bin/env python3
"""Measures what Graft promises of its speed, and prints each ratio beside its target.

- linear: at least as fast as OpenBLAS in float32 and as PyTorch's oneDNN in bfloat16 (0.97 of that
  counts, for noise).
- lora_linear: adds to its base product at most the arithmetic floor and 2 points forward, 6 points
  forward+backward. With dropout: printed, without a target.
- The adapter's contribution alone at (1, 128, 512), rank 8: 14 µs in the core with its data in cache,
  and through MLX's eval 0.6 of MLX's own ops.

Measures with build/bin/graft-bench; PyTorch with the Python of .venv (scripts/python_env.sh), if it is
there. Exits with 1 if a target is missed. The machine should do nothing else meanwhile. --csv writes
the lines to a file of results; files of parts (--only, --shapes) are put together by
scripts/result_files.py.

usage: check_speed.py [--program build/bin/graft-bench] [--rounds 7] [--turns 5] [--threads 2]
                      [--only delta f32 bf16 torch] [--shapes '4x128x576>49152' ...]
                      [--recorded FILE...] [--csv FILE]
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bench_table import ROOT, torch_key, torch_times  # noqa: E402
from result_files import facts_of, read_results, write_results  # noqa: E402

# Words of a --filter, and the same shape as bench_torch.py takes it: M, K, N, rank.
SHAPES = [
    ("wide 4x512x512>512", "2048,512,512,8"),
    ("model 4x128x576>1536", "512,576,1536,16"),
    ("model 4x128x576>576", "512,576,576,16"),
    ("wide 4x128x2048>2048", "512,2048,2048,16"),
    ("plan 1x128x512>512", "128,512,512,8"),
    ("model 4x128x576>49152", "512,576,49152,8"),  # the output head: no adapter
]
# What bench_torch.py goes round in: the two are compared on the same terms.
TORCH_ROTATES_MB = 100
SLACK = {"forward": 0.02, "forward+backward": 0.06}


class Report:
    def __init__(self):
        self.lines = []

    def line(self, name, value, target="", met=None):
        verdict = "" if met is None else "ok" if met else "missed"
        self.lines.append({"name": name, "value": value, "target": target, "verdict": verdict})
        print(f"{name:<62} {value:>9}  {target:<22} {verdict.replace('missed', 'MISSED')}",
              flush=True)

    def missed(self):
        return sum(line["verdict"] == "missed" for line in self.lines)


def bench(arguments, dtype, words, *options):
    filters = [part for word in words.split() for part in ("--filter", word)]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "results.csv"
        command = [arguments.program, "lora", "--dtype", dtype, "--rounds",
                   str(arguments.rounds), "--threads", str(arguments.threads), "--csv", str(path),
                   *filters, *options]
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


def shapes_of(arguments):
    return [(words, shape) for words, shape in SHAPES
            if not arguments.shapes or words.split()[1] in arguments.shapes]


def recorded(paths, dtype, words):
    """Of files of `graft-bench lora`, the rows of a shape."""
    name, size = words.split()
    return [row for path in paths for row in read_results(path)[1]
            if (row["dtype"], row["set"]) == (dtype, name) and
            f"{row['batch']}x{row['sequence']}x{row['in']}>{row['out']}" == size]


def check_layers(report, arguments, dtype):
    for words, _ in shapes_of(arguments):
        rows = (recorded(arguments.recorded, dtype, words) if arguments.recorded
                else bench(arguments, dtype, words))
        for row in rows:
            if row["what"] == "linear" and dtype == "f32":
                check_base(report, row, "OpenBLAS", float(row["blas_us"]) / float(row["fused_us"]))
            if row["what"] == "lora_linear":
                check_overhead(report, row)


def torch_rows(arguments, python, shape):
    """(times, version)"""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "torch.csv"
        command = [python, ROOT / "scripts" / "bench_torch.py", "--dtypes", "bfloat16", "--ops",
                   "linear", "--seconds", "0.3", "--threads", str(arguments.threads), "--shapes",
                   shape]
        with open(path, "w", encoding="utf-8") as file:
            subprocess.run(command, check=True, stdout=file, stderr=subprocess.DEVNULL)
        facts, rows = read_results(path)
    return torch_times(rows), dict(facts)["versions"]


def check_torch(report, arguments):
    """The two programs take turns on each shape; a ratio is the median of the turns'. Returns the
    version of PyTorch, if it is there."""
    python = ROOT / ".venv" / "bin" / "python"
    version = ""
    if not python.exists():
        report.line("linear bf16 against PyTorch", "not run", "no .venv")
        return version
    for words, shape in shapes_of(arguments):
        turns = {}
        for _ in range(arguments.turns):
            peers, version = torch_rows(arguments, python, shape)
            if not peers:
                report.line("linear bf16 against PyTorch", "not run", "oneDNN: no bf16 here")
                return version
            options = ("--filter", "linear", "--rotate-mb", str(TORCH_ROTATES_MB))
            for row in bench(arguments, "bf16", words, *options):
                ratio = peers[torch_key(row)] / float(row["fused_us"])
                turns.setdefault(row["pass"], []).append((ratio, row))
        for found in turns.values():
            ratio = statistics.median(ratio for ratio, _ in found)
            check_base(report, found[0][1], "PyTorch", ratio)
    return version


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


def versions_of(arguments, torch):
    run = subprocess.run([arguments.program, "--version"], check=True, capture_output=True,
                         text=True)
    return {"graft": run.stdout.strip(), **dict([torch.split(" ", 1)] if torch else [])}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default=str(ROOT / "build" / "bin" / "graft-bench"))
    parser.add_argument("--rounds", type=int, default=7, help="of graft-bench")
    parser.add_argument("--turns", type=int, default=5, help="that PyTorch and Graft take")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parts = ["delta", "f32", "bf16", "torch"]
    parser.add_argument("--only", nargs="*", choices=parts, default=parts)
    parser.add_argument("--shapes", nargs="*", help="as graft-bench writes them")
    parser.add_argument("--recorded", nargs="*", metavar="FILE",
                        help="files of `graft-bench lora`, in place of its f32 and bf16 runs")
    parser.add_argument("--csv", help="also write the lines there")
    arguments = parser.parse_args()
    report = Report()
    torch = ""
    if "delta" in arguments.only:
        check_delta(report, arguments)
    for dtype in ("f32", "bf16"):
        if dtype in arguments.only:
            check_layers(report, arguments, dtype)
    if "torch" in arguments.only:
        torch = check_torch(report, arguments)
    missed = report.missed()
    print(f"{missed} targets missed" if missed else "every target met")
    if arguments.csv:
        facts = facts_of(arguments.threads, versions_of(arguments, torch))
        write_results(arguments.csv, facts, report.lines)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
