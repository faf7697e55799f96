#!/usr/bin/env python3
"""Times PEFT's LoRA on an NVIDIA GPU with and without graft_lora.accelerate.

    layer   one lora.Linear in bfloat16 with A and B in bfloat16 and float32: forward without gradients,
            and forward with the gradients of x, A and B. `graph`: in CUDA graphs, which go round tensors
            of more than 200 MB; `eager`: calls one after the other, the host's time where that is the
            longer; `compiled`: the same through torch.compile
    call    what the host takes for a call of next to no arithmetic: (1, 128, 512), rank 8
    step    a training step (forward, backward, AdamW) of a model with random weights in bfloat16 and a
            float32 adapter on all linear layers, PEFT's default: time and peak memory

`linear` (layer) and `floor` (step, with one trainable vector) are the same without LoRA; `peft`;
`graft`, the same accelerated; `axolotl`, PEFT's modules under axolotl's LoRA kernels, if --path names
the folder of its package. Contenders take turns in one process; a ratio is the median of the rounds'.

usage: bench_gpu.py [--parts layer call step] [--models llama qwen] [--tokens 4096] [--layers N]
                    [--modes eager compiled graph] [--dropouts 0 0.05] [--checkpointing 0 1]
                    [--contenders floor peft graft axolotl] [--rounds 5] [--only WORD...]
                    [--path FOLDER...] [--kernels DIGEST] [--csv results.csv]
"""

import argparse
import copy
import datetime
import gc
import logging
import math
import signal
import sys
import time
import types
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from statistics import median

import torch
from torch import nn
from turns import Results, Times, added_share, ratio, take_turns

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from bench_cpu import accelerated, lora_layer, peft_of  # noqa: E402
from bench_cuda_peers import captured, replay_us  # noqa: E402

WORKING_SET = 200e6
RANK = 16
# pass, rows, in, out, A and B's type, dropout: what the CUDA kernels are measured with too
LAYERS = [
    ("forward", 1, 4096, 4096, "bfloat16", 0.0),
    ("forward", 16, 4096, 4096, "bfloat16", 0.0),
    ("forward", 64, 4096, 4096, "bfloat16", 0.0),
    ("forward", 512, 4096, 4096, "bfloat16", 0.0),
    ("forward", 4096, 4096, 4096, "bfloat16", 0.0),
    ("forward", 4096, 4096, 4096, "float32", 0.0),
    ("forward", 8192, 4096, 4096, "float32", 0.0),
    ("forward", 4096, 4096, 14336, "float32", 0.0),
    ("forward+backward", 512, 4096, 4096, "float32", 0.0),
    ("forward+backward", 4096, 4096, 4096, "bfloat16", 0.0),
    ("forward+backward", 4096, 4096, 4096, "float32", 0.0),
    ("forward+backward", 4096, 4096, 4096, "float32", 0.1),
    ("forward+backward", 8192, 4096, 4096, "float32", 0.0),
    ("forward+backward", 4096, 4096, 14336, "float32", 0.0),
]
COMPILED = [LAYERS[0], LAYERS[5], LAYERS[10]]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MODELS = {
    "llama": (
        "Llama-3.2-1B",
        "Llama",
        {
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 8192,
            "vocab_size": 128256,
            "tie_word_embeddings": True,
        },
    ),
    "qwen": (
        "Qwen2.5-7B",
        "Qwen2",
        {
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
    ),
}


class Layer:
    """One set of tensors of a layer, with a contender that runs once on them."""

    def __init__(self, contender: str, case: tuple, compiled: bool) -> None:
        passes, rows, inputs, outputs, adapter, dropout = case
        self.backward = "backward" in passes
        base = nn.Linear(inputs, outputs, bias=False, device="cuda", dtype=torch.bfloat16)
        layer: nn.Module = base.requires_grad_(False)
        if contender != "linear":
            layer = lora_layer(base, RANK, dropout).to("cuda")
            layer.lora_A.to(DTYPES[adapter])
            layer.lora_B.to(DTYPES[adapter])
        if contender == "graft":
            accelerated(layer)
        self.leaves = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        self.x = torch.randn(rows, inputs, device="cuda").bfloat16().requires_grad_(self.backward)
        self.dy = torch.randn(rows, outputs, device="cuda").bfloat16()
        self.layer = torch.compile(layer, fullgraph=True, dynamic=False) if compiled else layer
        self.dropout = dropout
        self.kernels = contender == "kernels"
        self.rng = torch.zeros(2, dtype=torch.int64, device="cuda") if dropout else None

    def run_kernels(self) -> None:
        """What the accelerated layer launches, and nothing else."""
        ops = torch.ops.graft
        a, b = self.layer.lora_A["default"].weight, self.layer.lora_B["default"].weight
        weight, rest = self.layer.base_layer.weight, (2.0, self.dropout, self.rng)
        _, h = ops.lora_linear_forward(self.x, weight, None, a, b, *rest, self.backward, False)
        if self.backward:
            ops.lora_linear_backward(self.dy, self.x, h, weight, a, b, *rest, True, True, True, False)

    def __call__(self) -> None:
        if self.kernels:
            with torch.no_grad():
                self.run_kernels()
        elif self.backward:
            torch.autograd.grad(self.layer(self.x), [self.x, *self.leaves], self.dy)
        else:
            with torch.no_grad():
                self.layer(self.x)


def name_of(case: tuple) -> str:
    passes, rows, inputs, outputs, adapter, dropout = case
    name = f"{passes} {rows}x{inputs}>{outputs} r{RANK} bfloat16 {adapter}"
    return name + (f" dropout{dropout:.2f}" if dropout else "")


def sets_of(contender: str, case: tuple, compiled: bool) -> list[Layer]:
    _, rows, inputs, outputs, *_ = case
    size = 2 * (rows * inputs + rows * outputs + inputs * outputs)
    count = 1 if compiled else min(16, max(2, math.ceil(WORKING_SET / size)))
    return [Layer(contender, case, compiled) for _ in range(count)]


def eager_seconds(calls: list[Layer]) -> Callable[[], float]:
    """Of one call, of enough calls in a row that waiting for the last one is nothing."""
    for call in calls[:4]:
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for call in calls[:4]:
        call()
    torch.cuda.synchronize()
    one = (time.perf_counter() - begin) / len(calls[:4])
    count = max(8, min(200, int(0.02 / one)))

    def run() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for i in range(count):
            calls[i % len(calls)]()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    return run


def graph_seconds(calls: list[Layer], stream: torch.cuda.Stream) -> Callable[[], float]:
    graph, count = captured([lambda call=call: call for call in calls], stream)

    # The graph has addresses alone: what lies there lives as long as `calls`.
    def run(_: list[Layer] = calls) -> float:
        return replay_us(graph, count) * 1e-6

    return run


def add_layer_ratios(results: Results, case: str, times: Times, mode: str) -> None:
    for contender, found in times.items():
        results.add(case, f"{contender}_{mode}_us", f"{median(found) * 1e6:.2f}")
        if contender != "linear" and "linear" in times:
            results.add(case, f"{contender}/linear_{mode}", ratio(found, times["linear"]))


def measure_layers(results: Results, arguments: argparse.Namespace) -> None:
    wanted = ["linear", *(name for name in arguments.contenders if name in ("peft", "graft"))]
    stream = torch.cuda.Stream()
    for mode in arguments.modes:
        names = [*wanted, "kernels"] if mode == "graph" and "graft" in wanted else wanted
        for case in COMPILED if mode == "compiled" else LAYERS:
            name = name_of(case)
            if not all(word in name for word in arguments.only):
                continue
            runs = {}
            for contender in names:
                try:
                    runs[contender] = seconds_of(contender, case, mode, stream)
                except Exception as error:  # one that fails must not end the others
                    complain(f"{name} {mode}", contender, error)
            add_layer_ratios(results, name, take_turns(runs, arguments.rounds), mode)
            del runs
            torch.compiler.reset()
            gc.collect()


def seconds_of(contender: str, case: tuple, mode: str, stream: torch.cuda.Stream) -> Callable[[], float]:
    with torch.cuda.stream(stream):
        calls = sets_of(contender, case, mode == "compiled")
        if mode == "graph":
            return graph_seconds(calls, stream)
        run = eager_seconds(calls)

    def on_stream() -> float:
        with torch.cuda.stream(stream):
            return run()

    return on_stream


def complain(case: str, contender: str, error: Exception) -> None:
    print(
        f"{case}: {contender} does not run: {type(error).__name__}: {str(error)[:600]}",
        file=sys.stderr,
        flush=True,
    )


def measure_calls(results: Results, arguments: argparse.Namespace) -> None:
    """The host's time for a call, the least of many rounds: nothing waits for the device."""
    import graft_lora

    x = torch.randn(1, 128, 512, device="cuda")
    a = torch.randn(8, 512, device="cuda")
    b = torch.randn(512, 8, device="cuda")

    def composed() -> torch.Tensor:
        return torch.nn.functional.linear(torch.nn.functional.linear(x, a), b) * 2.0

    def fused() -> torch.Tensor:
        return graft_lora.lora_delta(x, a, b, 2.0)

    layers = {}
    for contender in ("linear", "peft", "graft"):
        base = nn.Linear(512, 512, bias=False, device="cuda", dtype=torch.bfloat16)
        layer: nn.Module = base.requires_grad_(False)
        if contender != "linear":
            layer = lora_layer(base, 8, 0.0).to("cuda")
        layers[contender] = accelerated(layer) if contender == "graft" else layer
    half = x.bfloat16()
    leaf = half.clone().requires_grad_()
    dy = torch.randn_like(half)

    def forward(layer: nn.Module) -> Callable[[], object]:
        return lambda: layer(half)

    def both(layer: nn.Module) -> Callable[[], object]:
        leaves = [leaf, *(p for p in layer.parameters() if p.requires_grad)]
        return lambda: torch.autograd.grad(layer(leaf), leaves, dy)

    parts = [
        (
            "call delta 1x128x512 r8 float32",
            {"torch_add": lambda: x + x, "composed": composed, "graft": fused},
            False,
        ),
        (
            "call forward 1x128x512 r8 bfloat16 float32",
            {name: forward(layer) for name, layer in layers.items()},
            False,
        ),
        (
            "call forward+backward 1x128x512 r8 bfloat16 float32",
            {name: both(layer) for name, layer in layers.items()},
            True,
        ),
    ]
    for case, calls, gradients in parts:
        with torch.set_grad_enabled(gradients):
            times: Times = {name: [] for name in calls}
            for _ in range(3 * arguments.rounds):
                for name, call in calls.items():
                    for _ in range(10):
                        call()
                    torch.cuda.synchronize()
                    begin = time.perf_counter()
                    for _ in range(100):
                        call()
                    times[name].append((time.perf_counter() - begin) / 100)
                    torch.cuda.synchronize()
            for name, found in times.items():
                results.add(case, f"{name}_host_us", f"{min(found) * 1e6:.2f}")


def import_axolotl() -> types.ModuleType:
    """Its kernels, without its program: of bitsandbytes and of its logging they need names alone, as
    long as no weight is quantized."""
    try:
        import_module("bitsandbytes")
    except ImportError:
        functional = types.ModuleType("bitsandbytes.functional")
        functional.QuantState = type("QuantState", (), {})
        functional.get_ptr = None
        functional.lib = types.SimpleNamespace(
            **dict.fromkeys(
                f"cdequantize_blockwise_{kind}" for kind in ("fp32", "fp16_nf4", "bf16_nf4", "fp32_nf4")
            )
        )
        package = types.ModuleType("bitsandbytes")
        package.functional = functional
        sys.modules.update({"bitsandbytes": package, "bitsandbytes.functional": functional})
    log = types.ModuleType("axolotl.utils.logging")
    log.get_logger = logging.getLogger
    utils = types.ModuleType("axolotl.utils")
    utils.__path__ = []
    sys.modules.update({"axolotl.utils": utils, "axolotl.utils.logging": log})
    return import_module("axolotl.kernels.lora")


def with_axolotl(model: nn.Module) -> nn.Module:
    """Puts axolotl's functions where its own patches put them: q, k and v together, o, and the MLP."""
    kernels = import_axolotl()

    def first_of_three(attention: nn.Module) -> None:
        made: dict[str, torch.Tensor] = {}

        def q(x: torch.Tensor) -> torch.Tensor:
            made["q"], made["k"], made["v"] = kernels.apply_lora_qkv(attention, x)
            return made.pop("q")

        attention.q_proj.forward = q
        attention.k_proj.forward = lambda x: made.pop("k")
        attention.v_proj.forward = lambda x: made.pop("v")
        attention.o_proj.forward = lambda x: kernels.apply_lora_o(attention, x)

    for layer in model.base_model.model.model.layers:
        first_of_three(layer.self_attn)
        layer.mlp.forward = types.MethodType(kernels.apply_lora_mlp_swiglu, layer.mlp)
    return model


def make_model(kind: str, layers: int | None) -> nn.Module:
    import transformers

    _, family, settings = MODELS[kind]
    if layers:
        settings = {**settings, "num_hidden_layers": layers}
    config = getattr(transformers, f"{family}Config")(**settings, use_cache=False)
    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return getattr(transformers, f"{family}ForCausalLM")(config)
    finally:
        torch.set_default_dtype(before)


def shared_copy(model: nn.Module) -> nn.Module:
    """Another model over the same weights."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


class Step:
    """A training step of one contender, and the memory that it takes."""

    def __init__(
        self,
        contender: str,
        base: nn.Module,
        arguments: argparse.Namespace,
        dropout: float,
        checkpointing: bool,
        compiled: bool,
    ) -> None:
        model = shared_copy(base)
        decoder = model.model
        if contender == "floor":
            query = decoder.layers[0].self_attn.q_proj
            query.bias = nn.Parameter(query.weight.new_zeros(query.out_features))
        else:
            with torch.device("cuda"):  # where PEFT is to draw A
                model = peft_of(model, RANK, dropout)
            if contender == "graft":
                accelerated(model)
            elif contender == "axolotl":
                with_axolotl(model)
        if checkpointing:
            decoder.gradient_checkpointing_enable({"use_reentrant": False})
        if compiled:
            for layer in decoder.layers:
                layer.compile(fullgraph=True, dynamic=False)
        self.model = model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        self.tokens = torch.randint(1000, (1, arguments.tokens), device="cuda")
        self.transient = 0

    def __call__(self) -> float:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        begin = time.perf_counter()
        self.model(input_ids=self.tokens, labels=self.tokens).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        self.transient = torch.cuda.max_memory_allocated() - held
        return seconds

    def peak_mb(self) -> float:
        """As if it were alone: what its tensors hold, and the most that a step adds to that."""
        state = [tensor for values in self.optimizer.state.values() for tensor in values.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *state]
        return (sum(tensor.nbytes for tensor in tensors) + self.transient) / 1e6


def measure_steps(results: Results, arguments: argparse.Namespace) -> None:
    for kind in arguments.models:
        base = make_model(kind, arguments.layers).requires_grad_(False)
        for mode in arguments.modes:
            if mode == "graph":
                continue
            for checkpointing in arguments.checkpointing:
                for dropout in arguments.dropouts:
                    measure_step(results, arguments, base, kind, mode, bool(checkpointing), dropout)


def measure_step(
    results: Results,
    arguments: argparse.Namespace,
    base: nn.Module,
    kind: str,
    mode: str,
    checkpointing: bool,
    dropout: float,
) -> None:
    layers = len(base.model.layers)
    case = f"step {MODELS[kind][0]} {layers} layers {arguments.tokens} tokens r{RANK} {mode}"
    case += " checkpointing" if checkpointing else ""
    case += f" dropout{dropout:.2f}" if dropout else ""
    steps = {}
    for name in arguments.contenders:
        try:
            step = Step(name, base, arguments, dropout, checkpointing, mode == "compiled")
            for _ in range(2):
                step()
            steps[name] = step
        except Exception as error:  # what a contender can't do is a finding, whatever it throws
            complain(case, name, error)
    times = take_turns(steps, arguments.rounds, warm=0)
    results.add_times(case, times, "ms")
    for name, step in steps.items():
        results.add(case, f"{name}_peak_mb", f"{step.peak_mb():.0f}")
    if "floor" in times:
        for name in times:
            if name != "floor":
                results.add(case, f"{name}/floor", ratio(times[name], times["floor"]))
        if "peft" in times:
            for name in times:
                if name not in ("floor", "peft"):
                    results.add(case, f"{name}_added/peft_added", added_share(times, name))
    del steps
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def kernels_digest() -> str:
    from cuda_digest import digest, files

    return digest() if any(files()) else "unknown"


def facts(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "peft", "transformers", "triton")]
    if hasattr(torch.ops.graft, "version"):  # accelerate() has loaded it
        versions.insert(0, f"Graft {torch.ops.graft.version()}")
    words = sys.argv[1:]
    for option in ("--csv", "--path", "--kernels"):  # where a user has these is no part of the figures
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    return [
        ("device", torch.cuda.get_device_name()),
        ("versions", ", ".join(versions)),
        ("kernels", arguments.kernels or kernels_digest()),
        ("date", f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC"),
        ("command", " ".join(["benchmarks/torch/bench_gpu.py", *words])),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--parts", nargs="+", default=["layer", "call", "step"], choices=["layer", "call", "step"]
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument(
        "--modes", nargs="+", default=["graph", "eager", "compiled"], choices=["graph", "eager", "compiled"]
    )
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=["floor", "peft", "graft", "axolotl"],
        choices=["floor", "peft", "graft", "axolotl"],
    )
    parser.add_argument("--dropouts", nargs="+", type=float, default=[0.0, 0.05])
    parser.add_argument("--checkpointing", nargs="+", type=int, default=[0, 1], choices=[0, 1])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--layers", type=int, help="fewer decoder layers than the model has")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[], help="layers whose names have all of these")
    parser.add_argument("--path", nargs="+", default=[], help="folders to import peers from")
    parser.add_argument("--kernels", help="digest of the kernels, where the tree is not at hand")
    parser.add_argument("--csv", help="also write the lines there, as they come")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_gpu: there is no NVIDIA GPU, or this PyTorch is not for one")
    sys.path[:0] = arguments.path
    if not arguments.path and "axolotl" in arguments.contenders:
        arguments.contenders.remove("axolotl")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench_gpu: was told to end"))
    results = Results()
    try:
        if "call" in arguments.parts:
            measure_calls(results, arguments)
        if "layer" in arguments.parts:
            measure_layers(results, arguments)
        if "step" in arguments.parts:
            measure_steps(results, arguments)
    finally:
        if results.rows:
            results.write(arguments.csv, facts(arguments))


if __name__ == "__main__":
    main()
