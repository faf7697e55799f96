"""Where a call's microseconds go: calls of Graft's ops under PyTorch, eager and in CUDA graphs.

Eager: calls one after the other, nobody waits for the device; of a shape so small that the host is what
takes the time. Graph: 50 calls captured, a replay's time over 50. Medians of turns taken.

    python benchmarks/torch/launch_cost.py [--rows 128] [--dtype bfloat16 float32] [--peft]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

import graft_lora
from graft_lora.library import ops
from graft_lora.lora import draw_rng

CAPTURED = 50  # calls in a graph


def eager_us(run, calls: int) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls * 1e6


def graph_us(graph: torch.cuda.CUDAGraph, replays: int, calls: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3 / replays / calls


def capture(run, calls: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    return graph


def cases(rows: int, features: int, rank: int, dtype: torch.dtype) -> dict:
    draw = lambda *shape, dtype=dtype: torch.randn(shape, device="cuda", dtype=dtype)
    x, w, bias = draw(1, rows, features), draw(features, features), draw(features)
    a, b, dy = draw(rank, features), draw(features, rank), draw(1, rows, features)
    xg, ag, bg = (t.clone().requires_grad_() for t in (x, a, b))
    rng = torch.zeros(2, dtype=torch.int64, device="cuda")
    empty = x[:, :0]
    delta, linear = ops.lora_delta_forward.default, ops.lora_linear_forward.default
    backward = ops.lora_delta_backward.default
    _, h = delta(x, a, b, 1.0, 0.0, None, True)
    no_grad = torch.no_grad()

    def frozen(run):
        @no_grad
        def wrapped():
            return run()

        return wrapped

    def step(forward):
        def run():
            torch.autograd.grad(forward(), (xg, ag, bg), dy)

        return run

    composed_delta = lambda x, a, b: F.linear(F.linear(x, a), b) * 2.0
    composed_layer = lambda x, a, b: F.linear(x, w, bias) + F.linear(F.linear(x, a), b) * 2.0
    return {
        "torch.empty(rows, features)": lambda: torch.empty(1, rows, features, device="cuda", dtype=dtype),
        "torch.add": frozen(lambda: x + x),
        "linear, torch": frozen(lambda: F.linear(x, w, bias)),
        "dropout's two numbers": lambda: draw_rng(x),
        "delta op, no rows": lambda: delta(empty, a, b, 2.0, 0.0, None, False),
        "delta op": lambda: delta(x, a, b, 2.0, 0.0, None, False),
        "delta op, h kept": lambda: delta(x, a, b, 2.0, 0.0, None, True),
        "delta op, dropout": lambda: delta(x, a, b, 2.0, 0.1, rng, False),
        "delta backward op": lambda: backward(dy, x, h, a, b, 2.0, 0.0, None, True, True, True),
        "lora_linear op": lambda: linear(x, w, bias, a, b, 2.0, 0.0, None, False, False),
        "lora_linear op, dropout": lambda: linear(x, w, bias, a, b, 2.0, 0.1, rng, False, False),
        "delta forward": frozen(lambda: graft_lora.lora_delta(x, a, b, 2.0)),
        "delta forward, composed": frozen(lambda: composed_delta(x, a, b)),
        "delta forward, grad": lambda: graft_lora.lora_delta(xg, ag, bg, 2.0),
        "delta forward, grad, composed": lambda: composed_delta(xg, ag, bg),
        "delta step": step(lambda: graft_lora.lora_delta(xg, ag, bg, 2.0)),
        "delta step, composed": step(lambda: composed_delta(xg, ag, bg)),
        "layer forward": frozen(lambda: graft_lora.lora_linear(x, w, bias, a, b, 2.0)),
        "layer forward, composed": frozen(lambda: composed_layer(x, a, b)),
        "layer step": step(lambda: graft_lora.lora_linear(xg, w, bias, ag, bg, 2.0)),
        "layer step, composed": step(lambda: composed_layer(xg, ag, bg)),
    }


def peft_cases(rows: int, features: int, rank: int, dtype: torch.dtype) -> dict:
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    def layer():
        torch.manual_seed(0)
        base = torch.nn.Linear(features, features, device="cuda", dtype=dtype)
        base.weight.requires_grad_(False), base.bias.requires_grad_(False)
        made = Linear(base, "default", LoraConfig(r=rank), r=rank, lora_alpha=16, lora_dropout=0.0)
        return made.to("cuda", dtype)

    plain, fused = layer(), graft_lora.accelerate(torch.nn.Sequential(layer()))[0]
    x = torch.randn(1, rows, features, device="cuda", dtype=dtype, requires_grad=True)
    dy = torch.randn_like(x)
    no_grad = torch.no_grad()
    made = {}
    for name, module in (("", fused), (", PEFT", plain)):
        module.eval()
        parameters = [p for p in module.parameters() if p.requires_grad]

        @no_grad
        def forward(module=module):
            return module(x)

        def step(module=module, parameters=parameters):
            torch.autograd.grad(module(x), (x, *parameters), dy)

        made["PEFT layer forward" + name], made["PEFT layer step" + name] = forward, step
    return made


def measure(arguments, dtype: torch.dtype) -> None:
    shape = (arguments.rows, arguments.features, arguments.rank, dtype)
    runs = cases(*shape)
    if arguments.peft:
        runs.update(peft_cases(*shape))
    for run in runs.values():
        for _ in range(20):
            run()
    torch.cuda.synchronize()
    graphs = {
        name: capture(run, CAPTURED)
        for name, run in runs.items()
        if "no rows" not in name and "empty" not in name
    }
    eager = {name: [] for name in runs}
    graph = {name: [] for name in graphs}
    for _ in range(arguments.turns):
        for name, run in runs.items():
            eager[name].append(eager_us(run, arguments.calls))
        for name, captured in graphs.items():
            graph[name].append(graph_us(captured, 5, CAPTURED))
    print(f"(1, {arguments.rows}, {arguments.features}) rank {arguments.rank} {str(dtype)[6:]}, ", end="")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; microseconds, median (least)")
    print(f"{'':34}{'eager':>16}{'in a graph':>16}")
    for name in runs:
        line = f"{name:34}{statistics.median(eager[name]):9.2f} ({min(eager[name]):.2f})"
        if name in graph:
            line += f"{statistics.median(graph[name]):9.2f} ({min(graph[name]):.2f})"
        print(line, flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"])
    parser.add_argument("--peft", action="store_true", help="a lora.Linear of PEFT's too")
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    for dtype in arguments.dtype:
        measure(arguments, getattr(torch, dtype))


if __name__ == "__main__":
    main()
