#!/usr/bin/env python3
"""Times PEFT's LoRA on the CPU with and without graft_lora.accelerate.

    step    a training step (forward, backward, AdamW) of a Llama with SmolLM2-135M's shapes and random
            weights, 4 x 128 tokens, an adapter on all seven projections: `peft`; `graft`, the same
            accelerated; `floor`, the model with frozen linears and one trainable vector, which needs
            the same gradients of its activations; `graft_floor`, the floor on Graft's own linear.
            "graft_added/peft_added" is how much of what PEFT adds to the floor is still added
    layer   one lora.Linear of each of its shapes, 512 rows: forward without gradients, and forward
            with the gradients of x, A and B; beside nn.Linear, whose product is the `linear` that
            this PyTorch links (see "versions"), and Graft's own linear
    memory  what a process holds after such steps, and at its highest; the packed weights are the rest
    call    what a call costs before and after its kernels: a layer of 1 row and 64 features

Contenders take turns in one process; a ratio is the median of the rounds'. In bfloat16 the model is
bfloat16 and the adapter float32, PEFT's default. The machine should do nothing else meanwhile.

usage: bench_cpu.py [--parts step layer memory call] [--dtypes float32 bfloat16] [--rank 8]
                    [--rounds 5] [--threads 2] [--contenders ...] [--layers 30] [--csv results.csv]
"""

import argparse
import copy
import gc
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn
from turns import Results, added_share, facts_of, ratio, take_turns

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROWS = 512
BATCH, SEQUENCE = 4, 128
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LAYER_SHAPES = [(576, 576), (576, 192), (576, 1536), (1536, 576)]  # (in, out)
ROTATED_BYTES = 96 << 20  # more than the last-level cache of the machines measured


def accelerated(module: nn.Module) -> nn.Module:
    import graft_lora

    return graft_lora.accelerate(module)


def llama(dtype: torch.dtype, layers: int) -> nn.Module:
    """A Llama with SmolLM2-135M's shapes and random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=576,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        use_cache=False,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype)


def floor_of(model: nn.Module) -> nn.Module:
    """One vector, the bias of the first query, asks for the gradients that adapters ask for: of
    everything behind the first layer's input, but not of that."""
    model.requires_grad_(False)
    query = model.model.layers[0].self_attn.q_proj
    query.bias = nn.Parameter(torch.zeros(query.out_features, dtype=query.weight.dtype))
    return model


def peft_of(model: nn.Module, rank: int, dropout: float) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=PROJECTIONS)
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # of zeros, A has no gradient
            nn.init.normal_(parameter, std=0.02)
    return model


class Step:
    """A training step of one contender."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        generator = torch.Generator().manual_seed(2)
        self.tokens = torch.randint(49152, (BATCH, SEQUENCE), generator=generator)
        self.parts: dict[str, list[float]] = {"forward": [], "backward": [], "optimizer": []}

    def __call__(self) -> float:
        begin = time.perf_counter()
        loss = self.model(input_ids=self.tokens, labels=self.tokens).loss
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        end = time.perf_counter()
        for part, seconds in zip(
            self.parts.values(), (forward - begin, backward - forward, end - backward), strict=True
        ):
            part.append(seconds)
        return end - begin


def on_graft_linear(model: nn.Module) -> nn.Module:
    """Frozen linears on Graft's own product: what is left of the time is LoRA's."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in PROJECTIONS:
            module.forward = GraftLinear(module).forward
    return model


def contender(name: str, arguments: argparse.Namespace, model: nn.Module) -> Step:
    if name == "floor":
        return Step(floor_of(model))
    if name == "graft_floor":
        return Step(on_graft_linear(floor_of(model)))
    model = peft_of(model, arguments.rank, arguments.dropout)
    return Step(accelerated(model) if name == "graft" else model)


def of_model(arguments: argparse.Namespace) -> str:
    return f"SmolLM2-135M {arguments.layers} layers {BATCH * SEQUENCE} tokens r{arguments.rank}"


def measure_steps(results: Results, arguments: argparse.Namespace, name: str) -> None:
    case = f"step {of_model(arguments)} {name}"
    if arguments.dropout:
        case += f" dropout{arguments.dropout:.2f}"
    model = llama(DTYPES[name], arguments.layers)
    steps = {one: contender(one, arguments, copy.deepcopy(model)) for one in arguments.contenders}
    warm = 1
    times = take_turns(steps, arguments.rounds, warm)
    results.add_times(case, times, "ms")
    for one, step in steps.items():
        for part, found in step.parts.items():
            middle = sorted(found[warm:])[arguments.rounds // 2]
            results.add(case, f"{one}_{part}_ms", f"{middle * 1e3:.2f}")
    if "floor" in times and "peft" in times:
        results.add(case, "peft/floor", ratio(times["peft"], times["floor"]))
        if "graft" in times:
            results.add(case, "graft/floor", ratio(times["graft"], times["floor"]))
            results.add(case, "graft/peft", ratio(times["graft"], times["peft"]))
            results.add(case, "graft_added/peft_added", added_share(times, "graft"))
        if "graft" in times and "graft_floor" in times:
            results.add(case, "graft/graft_floor", ratio(times["graft"], times["graft_floor"]))


def lora_layer(base: nn.Linear, rank: int, dropout: float) -> nn.Module:
    """PEFT's layer around `base`, as get_peft_model makes it."""
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=dropout)
    layer = Linear(base, "default", config=config, r=rank, lora_alpha=2 * rank)
    for parameter in layer.base_layer.parameters():
        parameter.requires_grad_(False)
    layer.lora_A["default"].float()
    layer.lora_B["default"].float()
    nn.init.normal_(layer.lora_B["default"].weight, std=0.02)
    return layer.train()


class GraftLinear(nn.Module):
    """nn.Linear by Graft's own product."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        import graft_lora

        return graft_lora.linear(x, self.base.weight, self.base.bias, True)


class Layer:
    """Sets of tensors of one layer, together more than a cache holds, and one contender over them."""

    def __init__(
        self,
        make: Callable[[nn.Linear], nn.Module],
        shape: tuple[int, int],
        rows: int,
        dtype: torch.dtype,
        backward: bool,
    ) -> None:
        inputs, outputs = shape
        size = dtype.itemsize * (inputs * outputs + 2 * rows * (inputs + outputs))
        self.sets = []
        for _ in range(min(64, max(2, 1 + ROTATED_BYTES // (size * 3)))):
            base = nn.Linear(inputs, outputs, bias=False).to(dtype).requires_grad_(False)
            layer = make(base)
            x = (
                torch.randn(4, rows // 4, inputs).to(dtype)
                if rows >= 4
                else torch.randn(rows, inputs).to(dtype)
            )
            dy = torch.randn(*x.shape[:-1], outputs).to(dtype)
            leaves = [p for p in layer.parameters() if p.requires_grad]
            self.sets.append((layer, x.requires_grad_(backward), dy, [x, *leaves]))
        self.backward = backward

    def __call__(self) -> float:
        """Seconds of a call, one after the other on each set: as in a model, where a layer's code is at
        hand and its data is not."""
        begin = time.perf_counter()
        if self.backward:
            for layer, x, dy, leaves in self.sets:
                torch.autograd.grad(layer(x), leaves, dy)
        else:
            with torch.no_grad():
                for layer, x, _, _ in self.sets:
                    layer(x)
        return (time.perf_counter() - begin) / len(self.sets)


def layer_contenders(arguments: argparse.Namespace) -> dict[str, Callable[[nn.Linear], nn.Module]]:
    def peft(base: nn.Linear) -> nn.Module:
        return lora_layer(base, arguments.rank, arguments.dropout)

    makers: dict[str, Callable[[nn.Linear], nn.Module]] = {"linear": lambda base: base, "peft": peft}
    if "graft" in arguments.contenders:
        makers["graft"] = lambda base: accelerated(peft(base))
        makers["graft_linear"] = GraftLinear
    return makers


def measure_layer(
    results: Results, arguments: argparse.Namespace, name: str, shape: tuple[int, int], backward: bool
) -> None:
    inputs, outputs = shape
    passes = "forward+backward" if backward else "forward"
    case = f"{passes} {ROWS}x{inputs}>{outputs} r{arguments.rank} {name}"
    if arguments.dropout:
        case += f" dropout{arguments.dropout:.2f}"
    contenders = {
        one: Layer(make, shape, ROWS, DTYPES[name], backward)
        for one, make in layer_contenders(arguments).items()
    }
    rounds = arguments.layer_rounds
    times = take_turns(contenders, rounds, warm=2)
    results.add_times(case, times, "us")
    # Forward 2·M·r·(K+N) operations over 2·M·K·N; with backward three times as many over twice.
    floor = arguments.rank * (inputs + outputs) / (inputs * outputs) * (1.5 if backward else 1)
    results.add(case, "floor/linear", 1 + floor)
    for one in times:
        if one != "linear":
            results.add(case, f"{one}/linear", ratio(times[one], times["linear"]))
    if "graft" in times:
        results.add(case, "graft/graft_linear", ratio(times["graft"], times["graft_linear"]))


def measure_calls(results: Results, arguments: argparse.Namespace) -> None:
    """What a call costs with next to no arithmetic: the least of 20 medians."""
    for backward in (False, True):
        contenders = {
            one: Layer(make, (64, 64), 1, torch.float32, backward)
            for one, make in layer_contenders(arguments).items()
        }
        for layer in contenders.values():
            layer.sets = layer.sets[:1] * 50
        rounds = [take_turns(contenders, 9) for _ in range(20)]
        case = f"call {'forward+backward' if backward else 'forward'} 1x64>64 r{arguments.rank} float32"
        for one in contenders:
            least = min(median(times[one]) for times in rounds)
            results.add(case, f"{one}_host_us", f"{least * 1e6:.2f}")


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmRSS")


def hold_memory(arguments: argparse.Namespace) -> None:
    """In a process of its own: prints what it holds after three steps, and at its highest."""
    step = contender(arguments.hold, arguments, llama(DTYPES[arguments.dtypes[0]], arguments.layers))
    for _ in range(3):
        step()
    gc.collect()
    print(resident_mb(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure_memory(results: Results, arguments: argparse.Namespace, name: str) -> None:
    case = f"memory {of_model(arguments)} {name}"
    for one in ("floor", "peft", "graft"):
        run = subprocess.run(
            [
                sys.executable,
                __file__,
                "--hold",
                one,
                "--dtypes",
                name,
                "--rank",
                str(arguments.rank),
                "--layers",
                str(arguments.layers),
                "--threads",
                str(arguments.threads),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        resident, highest = map(float, run.stdout.split()[-2:])
        results.add(case, f"{one}_resident_mb", f"{resident:.0f}")
        results.add(case, f"{one}_peak_mb", f"{highest:.0f}")


def versions() -> dict[str, str]:
    import graft_lora  # noqa: F401  loads the library that says its version
    import peft
    import transformers

    settings = torch.__config__.show()
    blas = "MKL" if "BLAS_INFO=mkl" in settings else "OpenBLAS" if "open" in settings else "its own"
    return {
        "Graft": torch.ops.graft.version(),
        "torch": f"{torch.__version__} (float32 linear by {blas}, bfloat16 by oneDNN)",
        "peft": peft.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["step", "layer", "memory", "call"],
        choices=["step", "layer", "memory", "call"],
    )
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=["floor", "graft_floor", "peft", "graft"],
        choices=["floor", "graft_floor", "peft", "graft"],
    )
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=5, help="of steps")
    parser.add_argument("--layer-rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--csv", help="also write the lines there")
    parser.add_argument("--hold", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.hold:
        hold_memory(arguments)
        return
    dtypes = [name for name in arguments.dtypes]
    if "bfloat16" in dtypes and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        dtypes.remove("bfloat16")
        print("bench_cpu: bfloat16 left out: oneDNN has no kernels for it on this CPU", file=sys.stderr)
    results = Results()
    for name in dtypes:
        if "layer" in arguments.parts:
            for shape in LAYER_SHAPES:
                for backward in (False, True):
                    measure_layer(results, arguments, name, shape, backward)
        if "step" in arguments.parts:
            measure_steps(results, arguments, name)
        if "memory" in arguments.parts:
            measure_memory(results, arguments, name)
    if "call" in arguments.parts:
        measure_calls(results, arguments)
    results.write(arguments.csv, facts_of(arguments.threads, versions()))


if __name__ == "__main__":
    main()
