#!/usr/bin/env python3
"""Times softmax, layer norm and RMS norm on the CPU: Graft's core beside PyTorch and beside a copy.

The two programs take turns; a ratio is the median of the turns'. PyTorch's operators are called
below autograd, and its allocator is told to keep memory. "of copy" is Graft's time over that of a
copy with plain stores that moves as many bytes (forward two matrices, backward three).

Measures with `graft-bench rows`; run it with a Python that has PyTorch. The machine should do
nothing else meanwhile.

usage: bench_rows.py [--program build/bin/graft-bench] [--shapes 128,4096 ...]
                     [--dtypes float32 bfloat16] [--threads 2] [--turns 5] [--milliseconds 40]
                     [--csv results.csv]
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from result_files import facts_of, write_results  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
EPSILON = 1e-5
DTYPES = {"float32": "f32", "bfloat16": "bf16"}


def torch_calls(torch, rows, features, dtype):
    """{(op, direction): call} on one set of tensors."""
    aten = torch.ops.aten
    x, dy = (torch.randn(rows, features).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(features).to(dtype) for _ in range(2))
    y, dx = torch.empty_like(x), torch.empty_like(x)
    y.copy_(torch.softmax(x, -1))
    _, mean, rstd = aten.native_layer_norm(x, [features], weight, bias, EPSILON)
    scale = torch.randn(features).to(dtype).requires_grad_()
    leaf = x.clone().requires_grad_()
    normed = torch.nn.functional.rms_norm(leaf, [features], scale, EPSILON)

    def rms_norm():
        with torch.no_grad():
            torch.nn.functional.rms_norm(x, [features], scale, EPSILON)

    return {
        ("softmax", "forward"): lambda: aten._softmax.out(x, -1, False, out=y),
        ("softmax", "backward"): lambda: aten._softmax_backward_data.out(
            dy, y, -1, dtype, grad_input=dx),
        ("layer_norm", "forward"): lambda: aten.native_layer_norm(
            x, [features], weight, bias, EPSILON),
        ("layer_norm", "backward"): lambda: aten.native_layer_norm_backward(
            dy, x, [features], mean, rstd, weight, bias, [True, True, True]),
        ("rms_norm", "forward"): rms_norm,
        ("rms_norm", "backward"): lambda: torch.autograd.grad(
            normed, [leaf, scale], dy, retain_graph=True),
    }


def median_us(call, milliseconds):
    for _ in range(3):
        call()
    times, stop = [], time.perf_counter() + milliseconds / 1e3
    while time.perf_counter() < stop or len(times) < 9:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def graft_us(arguments, rows, features, dtype):
    command = [arguments.program, "rows", str(rows), str(features), "--dtype", DTYPES[dtype],
               "--milliseconds", str(arguments.milliseconds), "--threads", str(arguments.threads)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return {(line[0], line[1]): float(line[5]) for line in csv.reader(run.stdout.splitlines())}


def compare(arguments, torch, rows, features, dtype):
    """A line for each operation and direction."""
    calls = torch_calls(torch, rows, features, getattr(torch, dtype))
    turns = []
    for _ in range(arguments.turns):
        graft = graft_us(arguments, rows, features, dtype)
        peer = {key: median_us(call, arguments.milliseconds) for key, call in calls.items()}
        turns.append((graft, peer))
    for op, direction in calls:
        matrices = 2 if direction == "forward" else 3
        key = (op, direction)
        yield {
            "op": op, "direction": direction, "dtype": dtype, "rows": rows, "features": features,
            "graft_us": f"{statistics.median(g[key] for g, _ in turns):.1f}",
            "torch_us": f"{statistics.median(p[key] for _, p in turns):.1f}",
            "of_torch": f"{statistics.median(g[key] / p[key] for g, p in turns):.2f}",
            "of_copy": "%.2f" % statistics.median(
                g[key] / (g["copy", "forward"] * matrices / 2) for g, _ in turns),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default=str(ROOT / "build" / "bin" / "graft-bench"))
    parser.add_argument("--shapes", nargs="*", default=["128,4096", "2048,576"])
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--milliseconds", type=int, default=40, help="for each operation and turn")
    parser.add_argument("--csv", help="also write the lines there")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):
        # Read by the allocator when the process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    import torch  # pylint: disable=import-outside-toplevel

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    lines = []
    for shape in arguments.shapes:
        rows, features = map(int, shape.split(","))
        for dtype in arguments.dtypes:
            for line in compare(arguments, torch, rows, features, dtype):
                print("{op:<11}{direction:<9}{dtype:<9} {rows:>6} x {features:<5} {graft_us:>9} us, "
                      "PyTorch {torch_us:>9} us: {of_torch}x; of copy {of_copy}x".format(**line),
                      flush=True)
                lines.append(line)
    if arguments.csv:
        version = subprocess.run([arguments.program, "--version"], check=True, capture_output=True,
                                 text=True).stdout.strip()
        versions = {"graft": version, "torch": torch.__version__}
        write_results(arguments.csv, facts_of(arguments.threads, versions), lines)


if __name__ == "__main__":
    main()
