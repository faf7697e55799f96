#!/usr/bin/env python3
"""Times PyTorch's linear and composed LoRA layers on the CPU, as peers of `graft-bench lora`.

For each shape (M, K, N, r) and dtype: x·Wᵀ, and x·Wᵀ + s·(x·A)·B as PEFT composes it; forward,
and backward as Graft's benchmark counts it (dx alone for the base; dx, dA and dB for LoRA). float32
is MKL's, bfloat16 oneDNN's. Inputs rotate through sets that together do not fit the caches, and the
operations take turns, so that no one of them has a warmer machine than another.

Writes a file of results to standard output, one row a shape, dtype, operation and direction:

    peer,op,direction,dtype,m,k,n,rank,threads,median_us,p10_us,p90_us,gflops
    torch 2.11.0,lora_linear,forward,float32,2048,512,512,8,2,5210.4,5190.0,5300.1,212.4

op is linear or lora_linear; direction is forward or backward; gflops counts the operation's own
products, those of the low-rank pair included.

usage: bench_torch.py [--threads 2] [--seconds 1.0] [--shapes 2048,512,512,8 ...]
                      [--dtypes float32 bfloat16] [--ops linear lora_linear]
"""

import argparse
import csv
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from result_files import facts_of, write_facts  # noqa: E402

SHAPES = [
    (2048, 512, 512, 8),
    (512, 576, 1536, 16),
    (512, 576, 576, 16),
    (512, 2048, 2048, 16),
    (128, 512, 512, 8),
]
OPS = ["linear", "lora_linear"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROTATED_BYTES = 96 << 20  # more than the last-level cache of the machines measured
LEAST_ROUNDS = 15
SCALING = 2.0


class Inputs:
    """One set of tensors of a shape."""

    def __init__(self, shape, dtype):
        m, k, n, r = shape

        def tensor(*size, grad=False):
            return (torch.randn(size) / 8).to(dtype).requires_grad_(grad)

        self.x = tensor(m, k, grad=True)
        self.w = tensor(n, k)
        self.a = tensor(r, k, grad=True)  # as PEFT stores them
        self.b = tensor(n, r, grad=True)
        self.dy = tensor(m, n)

    def linear(self):
        return torch.nn.functional.linear(self.x, self.w)

    def lora_linear(self):
        functional = torch.nn.functional
        delta = functional.linear(functional.linear(self.x, self.a), self.b)
        return functional.linear(self.x, self.w) + delta * SCALING


def timed(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def forward(inputs, op):
    with torch.no_grad():
        return timed(getattr(inputs, op))


def backward(inputs, op):
    y = getattr(inputs, op)()
    wanted = [inputs.x] if op == "linear" else [inputs.x, inputs.a, inputs.b]
    return timed(lambda: torch.autograd.grad(y, wanted, inputs.dy))


def flops(op, direction, shape):
    m, k, n, r = shape
    base = 2 * m * k * n
    pair = 2 * m * r * (k + n)
    if op == "linear":
        return base
    return base + (pair if direction == "forward" else 2 * pair)


def measure(shape, dtype, ops, seconds):
    """{(op, direction): times}, in seconds."""
    m, k, n, r = shape
    set_bytes = dtype.itemsize * (m * k + n * k + 2 * m * n + r * (k + n))
    sets = [Inputs(shape, dtype) for _ in range(max(2, 1 + ROTATED_BYTES // set_bytes))]
    cases = [(op, direction) for op in ops for direction in (forward, backward)]
    times = {case: [] for case in cases}
    for inputs in sets[:2]:
        for op, direction in cases:
            direction(inputs, op)
    stop = time.perf_counter() + seconds * len(cases)
    rounds = 0
    while time.perf_counter() < stop or rounds < LEAST_ROUNDS:
        # Each operation comes first, second, ... equally often.
        for place in range(len(cases)):
            op, direction = case = cases[(place + rounds) % len(cases)]
            inputs = sets[(rounds * len(cases) + place) % len(sets)]
            times[case].append(direction(inputs, op))
        rounds += 1
    return {(op, direction.__name__): found for (op, direction), found in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each operation")
    parser.add_argument("--shapes", nargs="*", help="M,K,N,r; those of docs/ by default")
    parser.add_argument("--dtypes", nargs="*", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--ops", nargs="*", choices=OPS, default=OPS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    shapes = SHAPES
    if arguments.shapes:
        shapes = [tuple(map(int, shape.split(","))) for shape in arguments.shapes]

    dtypes = {name: DTYPES[name] for name in arguments.dtypes}
    if "bfloat16" in dtypes and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        del dtypes["bfloat16"]
        print("bench_torch: bfloat16 left out: oneDNN has no kernels for it on this CPU",
              file=sys.stderr)
    write_facts(sys.stdout, facts_of(arguments.threads, {"torch": torch.__version__}))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(
        "peer op direction dtype m k n rank threads median_us p10_us p90_us gflops".split()
    )
    for shape in shapes:
        for name, dtype in dtypes.items():
            for (op, direction), times in measure(
                    shape, dtype, arguments.ops, arguments.seconds).items():
                median = statistics.median(times)
                tenths = statistics.quantiles(times, n=10)
                writer.writerow(
                    [f"torch {torch.__version__.partition('+')[0]}", op, direction, name, *shape]
                    + [arguments.threads]
                    + [f"{t * 1e6:.1f}" for t in (median, tenths[0], tenths[-1])]
                    + [f"{flops(op, direction, shape) / median / 1e9:.1f}"]
                )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
