#!/usr/bin/env python3
"""Times on an NVIDIA GPU what others run for the cases of graft-bench-cuda: PyTorch's own operators,
PEFT's layer, LoRAFusion's and Liger's kernels, those that can be imported.

Each contender is captured in a CUDA graph of at least 20 calls that go round sets of tensors of more
than 200 MB together; the graphs are replayed in turns, and a ratio is the median of those taken within
a round. Cases have the names that graft-bench-cuda gives them, and the same yardstick is measured
beside each, so that the two files can be laid side by side: over `cublas`, the plain product alone
(both products where there are two passes); `composed`, for the delta alone cuBLAS's two products; or
`copy`, which moves as many bytes. A peer that does
not run a case is left out, and standard error says why. Run it with a Python that has PyTorch for CUDA.

    torch       forward and gradients from PyTorch's operators in their best order
    peft        peft.tuners.lora's layer around nn.Linear, as get_peft_model makes it
    lorafusion  lorafusion.ops.lora_v1.fused_linear_lora; --path names a checkout of it. Its kernels
                by TMA call what Triton 3.4 took away: with that or later, its others run
    liger       liger_kernel's softmax, RMS norm and layer norm

usage: bench_cuda_peers.py [--rounds 7] [--only WORD...] [--path FOLDER...] [--csv results.csv]
"""

import argparse
import datetime
import math
import os
import statistics
import sys
import types
from importlib import import_module, metadata

import torch
import triton

WORKING_SET = 200e6
CALLS = 20
P = 0.1
SCALING = 2.0
RANK = 16
LAYERS = [
    # pass, rows, in, out, rank, A and B's type, dropout
    ("forward", 1, 4096, 4096, RANK, "bfloat16", 0),
    ("forward", 16, 4096, 4096, RANK, "bfloat16", 0),
    ("forward", 64, 4096, 4096, RANK, "bfloat16", 0),
    ("forward", 512, 4096, 4096, RANK, "bfloat16", 0),
    ("forward", 512, 4096, 14336, RANK, "bfloat16", 0),
    ("forward", 4096, 4096, 4096, RANK, "bfloat16", 0),
    ("forward", 8192, 4096, 4096, RANK, "bfloat16", 0),
    ("forward", 4096, 4096, 14336, RANK, "bfloat16", 0),
    ("forward", 4096, 4096, 4096, RANK, "float32", 0),
    ("forward", 8192, 2048, 2048, RANK, "bfloat16", 0),
    ("forward", 4096, 4096, 4096, 64, "bfloat16", 0),
    ("forward", 4096, 4096, 4096, RANK, "bfloat16", P),
    ("forward", 8192, 4096, 4096, RANK, "bfloat16", P),
    ("backward", 4096, 4096, 4096, RANK, "bfloat16", 0),
    ("backward", 8192, 4096, 4096, RANK, "bfloat16", 0),
    ("backward", 512, 4096, 4096, RANK, "bfloat16", 0),
    ("forward+backward", 4096, 4096, 4096, RANK, "bfloat16", P),
    ("forward+backward", 8192, 4096, 4096, RANK, "bfloat16", P),
]
DELTAS = [(rows, 8, dtype) for dtype in ("float32", "bfloat16")
          for rows in (32, 128, 512, 2048, 8192)]
ROWS = [(4096, 4096), (2048, 32768)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def random_of(*shape, dtype=torch.bfloat16, scale=1.0):
    return (torch.randn(*shape, device="cuda") * scale).to(dtype)


def import_lorafusion():
    """Its layer. With a Triton that lacks what its kernels by TMA are written in, without them; on
    a GPU that it has no settings for, with an H100's."""
    missing = [name for name in ("_experimental_descriptor_load", "_experimental_descriptor_store")
               if not hasattr(triton.language, name)]
    for name in missing:
        setattr(triton.language, name, None)
    if missing:
        os.environ["LORAFUSION_FORWARD_USE_TMA"] = "0"
        for name in ("fused_lora_xw_sb_tma", "fused_lora_dyw_dsa_tma"):
            sys.modules[f"lorafusion.ops.triton_ops.{name}"] = types.SimpleNamespace(**{name: None})
    config = import_module("lorafusion.ops.triton_ops.config")
    config.HARDWARE_CONFIGS.setdefault(config.get_device_short_name(), config.H100_CONFIG)
    return import_module("lorafusion.ops.lora_v1")


class Layer:
    """One set of tensors of a layer, and its contenders: functions that launch one call."""

    def __init__(self, passes, rows, inputs, outputs, rank, adapter, dropout):
        self.forward, self.backward = "forward" in passes, "backward" in passes
        self.rank, self.dropout, self.adapter = rank, dropout, DTYPES[adapter]
        self.x = random_of(rows, inputs).requires_grad_(self.backward)
        self.dy = random_of(rows, outputs)
        self.w = random_of(outputs, inputs, scale=inputs ** -0.5)
        self.a = random_of(rank, inputs, dtype=self.adapter, scale=inputs ** -0.5)
        self.b = random_of(outputs, rank, dtype=self.adapter)
        for adapter_tensor in (self.a, self.b):
            adapter_tensor.requires_grad_(self.backward)

    def contenders(self):
        return {"cublas": self.cublas, "torch": self.torch, "peft": self.peft,
                "lorafusion": self.lorafusion}

    def run(self, call, leaves):
        """A function that runs the passes that are asked for: `call` is the forward."""
        if not self.backward:
            def inference():
                with torch.no_grad():
                    call()
            return inference
        if self.forward:
            return lambda: torch.autograd.grad(call(), leaves, self.dy)
        y = call()
        return lambda: torch.autograd.grad(y, leaves, self.dy, retain_graph=True)

    def cublas(self):
        x, w, dy = self.x.detach(), self.w, self.dy

        def call():
            if self.forward:
                torch.mm(x, w.t())
            if self.backward:
                torch.mm(dy, w)
        return call

    def torch(self):
        def call():
            x = torch.nn.functional.dropout(self.x, self.dropout) if self.dropout else self.x
            h = x.to(self.adapter) @ self.a.t()
            return torch.addmm(self.x @ self.w.t(), h.to(self.x.dtype), self.b.t().to(self.x.dtype),
                               alpha=SCALING)
        return self.run(call, [self.x, self.a, self.b])

    def peft(self):
        linear_class = import_module("peft.tuners.lora").Linear
        config = import_module("peft").LoraConfig(
            r=self.rank, lora_alpha=int(SCALING * self.rank), lora_dropout=self.dropout)
        base = torch.nn.Linear(self.w.shape[1], self.w.shape[0], bias=False, device="cuda",
                               dtype=self.w.dtype)
        base.weight = torch.nn.Parameter(self.w, requires_grad=False)
        layer = linear_class(base, "default", config=config, r=self.rank,
                             lora_alpha=config.lora_alpha, lora_dropout=self.dropout)
        layer.to("cuda")
        layer.lora_A["default"].weight = torch.nn.Parameter(self.a.detach())
        layer.lora_B["default"].weight = torch.nn.Parameter(self.b.detach())
        layer.train()
        return self.run(lambda: layer(self.x), [self.x, layer.lora_A["default"].weight,
                                                layer.lora_B["default"].weight])

    def lorafusion(self):
        fused = import_lorafusion().fused_linear_lora

        def call():
            y = fused(self.x.unsqueeze(0), self.w, self.a, self.b, SCALING, 1, self.dropout)
            return y.squeeze(0)
        return self.run(call, [self.x, self.a, self.b])


class Delta:
    def __init__(self, rows, rank, dtype):
        self.x = random_of(rows, 512, dtype=DTYPES[dtype])
        self.a = random_of(512, rank, dtype=DTYPES[dtype])
        self.b = random_of(rank, 512, dtype=DTYPES[dtype])
        self.zeros = torch.zeros(512, dtype=DTYPES[dtype], device="cuda")

    def contenders(self):
        # cuBLAS's two products, the scaling in the second: what graft-bench-cuda calls composed too.
        return {"composed": lambda: lambda: torch.addmm(self.zeros, self.x @ self.a, self.b, beta=0,
                                                        alpha=SCALING),
                "torch": lambda: lambda: (self.x @ self.a @ self.b) * SCALING}


class RowOperation:
    """softmax, rms_norm or layer_norm on one matrix."""

    def __init__(self, op, backward, rows, features):
        self.op, self.backward = op, backward
        self.x = random_of(rows, features).requires_grad_(backward)
        self.dy = random_of(rows, features)
        self.weight = random_of(features).requires_grad_(backward)
        self.bias = random_of(features).requires_grad_(backward)
        # Forward moves two matrices, backward three more: a copy of half as many moves them too.
        self.source = torch.empty(rows * features * (5 if backward else 2) // 2,
                                  dtype=torch.bfloat16, device="cuda")
        self.target = torch.empty_like(self.source)
        self.leaves = [self.x, self.weight, self.bias][:{"softmax": 1, "rms_norm": 2}.get(op, 3)]

    def contenders(self):
        return {"copy": lambda: lambda: self.target.copy_(self.source), "torch": self.torch,
                "liger": self.liger}

    def run(self, call):
        if self.backward:
            return lambda: torch.autograd.grad(call(), self.leaves, self.dy)

        def inference():
            with torch.no_grad():
                call()
        return inference

    def torch(self):
        functional, features = torch.nn.functional, [self.x.shape[1]]
        return self.run({
            "softmax": lambda: torch.softmax(self.x, -1),
            "rms_norm": lambda: functional.rms_norm(self.x, features, self.weight, 1e-5),
            "layer_norm": lambda: functional.layer_norm(self.x, features, self.weight, self.bias,
                                                        1e-5),
        }[self.op])

    def liger(self):
        ops = import_module(f"liger_kernel.ops.{self.op}")
        return self.run({
            "softmax": lambda: ops.LigerSoftmaxFunction.apply(self.x),
            "rms_norm": lambda: ops.LigerRMSNormFunction.apply(self.x, self.weight, 1e-5, 0.0,
                                                               "llama", False),
            "layer_norm": lambda: ops.LigerLayerNormFunction.apply(self.x, self.weight, self.bias,
                                                                   1e-5),
        }[self.op])


def cases():
    """(name, bytes of one set, how to make it, what ratios are over)."""
    for passes, rows, inputs, outputs, rank, adapter, dropout in LAYERS:
        name = f"{passes} {rows}x{inputs}>{outputs} r{rank} bfloat16 {adapter}"
        name += f" dropout{dropout:.2f}" if dropout else ""
        size = 2 * (rows * inputs + rows * outputs + inputs * outputs)
        yield name, size, (Layer, passes, rows, inputs, outputs, rank, adapter, dropout), "cublas"
    for rows, rank, dtype in DELTAS:
        size = (rows * 1024 + rank * 1024) * DTYPES[dtype].itemsize
        yield f"delta {rows}x512>512 r{rank} {dtype} {dtype}", size, (Delta, rows, rank,
                                                                     dtype), "composed"
    for op in ("softmax", "rms_norm", "layer_norm"):
        for backward in (False, True):
            for rows, features in ROWS:
                name = f"{op}{'+backward' if backward else ''} {rows}x{features} bfloat16"
                yield name, 4 * rows * features, (RowOperation, op, backward, rows,
                                                  features), "copy"


def captured(make_calls, stream):
    """A graph of CALLS calls at least, going round those made; and how many they are. What is made
    eagerly and what is captured share a stream, since a gradient runs on that of its forward."""
    with torch.cuda.stream(stream):
        calls = [make() for make in make_calls]
        for call in calls[:2]:  # an error is to come here, not while a graph is captured
            for _ in range(2):
                call()
    torch.cuda.synchronize()
    count = len(calls) * math.ceil(CALLS / len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(count):
            calls[i % len(calls)]()
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    return graph, count


def replay_us(graph, count):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3 / count


def measure(name, size, recipe, rounds):
    """{contender: [µs of each round]}."""
    kind, *arguments = recipe
    sets = [kind(*arguments) for _ in range(min(200, max(2, math.ceil(WORKING_SET / size))))]
    torch.cuda.synchronize()
    graphs, stream = {}, torch.cuda.Stream()
    for contender in sets[0].contenders():
        try:
            graphs[contender] = captured([one.contenders()[contender] for one in sets], stream)
        except Exception as error:  # what a peer can't do is a finding, whatever it throws
            print(f"{name}: {contender} does not run: {type(error).__name__}: "
                  f"{str(error).splitlines()[:1]}", file=sys.stderr)
            torch.cuda.synchronize()
    times = {contender: [] for contender in graphs}
    for turn in range(rounds):
        for contender in list(graphs)[::1 if turn % 2 == 0 else -1]:
            times[contender].append(replay_us(*graphs[contender]))
    return times


def version_of(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def facts():
    versions = ", ".join(f"{name} {version_of(name)}"
                         for name in ("torch", "triton", "peft", "liger_kernel"))
    words = [word for word in sys.argv[1:]]
    for option in ("--csv", "--path"):  # where a user has these is no part of the measurement
        if option in words:
            del words[words.index(option):words.index(option) + 2]
    return {"device": torch.cuda.get_device_name(), "versions": versions,
            "date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
            "command": " ".join(["scripts/bench_cuda_peers.py", *words])}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", default=[], help="cases whose names have all of these")
    parser.add_argument("--path", nargs="+", default=[], help="folders to import peers from")
    parser.add_argument("--csv")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_cuda_peers: there is no NVIDIA GPU, or this PyTorch is not for one")
    chosen = [case for case in cases() if all(word in case[0] for word in arguments.only)]
    if not chosen:
        sys.exit(f"bench_cuda_peers: no case has {' '.join(arguments.only)!r} in its name")
    sys.path[:0] = arguments.path
    with open(arguments.csv or os.devnull, "w", encoding="utf-8") as file:
        file.writelines(f"# {name}: {value}\n" for name, value in facts().items())
        print("case,column,value", file=file)
        for name, size, recipe, yardstick in chosen:
            times = measure(name, size, recipe, arguments.rounds)
            for contender, taken in times.items():
                print(f"{name},{contender}_us,{statistics.median(taken):.2f}", file=file)
                if contender != yardstick and yardstick in times:
                    ratios = [one / base for one, base in zip(taken, times[yardstick])]
                    print(f"{name},{contender}/{yardstick},{statistics.median(ratios):.4f}",
                          file=file)
            file.flush()  # a run that is cut off keeps what it has
            print(name, *(f"{contender} {statistics.median(taken):.2f}"
                          for contender, taken in times.items()), flush=True)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
