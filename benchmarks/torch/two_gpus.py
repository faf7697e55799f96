"""Llama shapes on two (or more) GPUs under DDP and FSDP2, with and without accelerate().

    torchrun --nproc-per-node 2 benchmarks/torch/two_gpus.py --out two_gpus.csv

Two models from the same seed, a bfloat16 base with float32 adapters on all linear layers, train on the same
tokens under the same wrapper, one of them accelerated; they take turns in blocks of steps. For each wrapper
a line: the largest relative difference of the two runs' losses, and for the small shapes that of plain PEFT
under bfloat16 autocast, which rounds where Graft does; first and last loss; fused and other calls of all
processes; the median step of each, their ratio with its spread over the turns, and peak memory of each. A
step's time is the slowest process's.
"""

from __future__ import annotations

import argparse
import datetime
import io
import os
import statistics
import time

import torch
import torch.distributed as dist

SIZES = {  # hidden, intermediate, layers, heads, key-value heads, batch a process, tokens
    "tiny": (256, 704, 4, 4, 2, 2, 256),
    "small": (2048, 8192, 8, 32, 8, 2, 1024),
}
RATE = 1e-3


def make_model(size, device):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, layers, heads, kv_heads, _, tokens = SIZES[size]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=8192,
        max_position_embeddings=tokens,
        use_cache=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
        torch.manual_seed(1)
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
        return get_peft_model(model, lora)


def decoder_layers(model):
    return list(model.base_model.model.model.layers)


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def wrap_ddp(model, device):
    return torch.nn.parallel.DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None
    )


def wrap_fsdp(model, device, replicated=False, reshard=True):
    from torch.distributed.fsdp import fully_shard

    ignored = set(trained(model)) if replicated else None
    for layer in decoder_layers(model):
        fully_shard(layer, reshard_after_forward=reshard, ignored_params=ignored)
    return fully_shard(model, ignored_params=ignored)


def wrap_fsdp_checkpointed(model, device):
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return wrap_fsdp(model, device)


def wrap_prepare(model, device):
    """Hugging Face accelerate's own FSDP2."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        cpu_ram_efficient_loading=False,
    )
    # It replaces the parameters, and takes an optimizer of them to do so.
    optimizer = torch.optim.AdamW(trained(model), lr=RATE)
    return Accelerator(fsdp_plugin=plugin).prepare(model, optimizer)[0]


WRAPPERS = {  # name: (how, accelerate() before it, adapters' gradients are averaged by hand)
    "ddp": (wrap_ddp, False, False),
    "ddp, accelerated before": (wrap_ddp, True, False),
    "fsdp2": (wrap_fsdp, False, False),
    "fsdp2, accelerated before": (wrap_fsdp, True, False),
    "fsdp2, no reshard": (lambda m, d: wrap_fsdp(m, d, reshard=False), False, False),
    "fsdp2, replicated adapters": (lambda m, d: wrap_fsdp(m, d, replicated=True), False, True),
    "fsdp2, checkpointing": (wrap_fsdp_checkpointed, False, False),
    "accelerate's prepare, fsdp2": (wrap_prepare, True, False),
}


class Run:
    """One model in training."""

    def __init__(self, size, wrapper, device, accelerated=False, autocast=False):
        import graft_lora

        how, before, self.average = WRAPPERS[wrapper]
        self.model = make_model(size, device)
        if accelerated and before:
            graft_lora.accelerate(self.model)
        self.model = how(self.model, device)
        if accelerated and not before:
            graft_lora.accelerate(self.model)
        self.optimizer = torch.optim.AdamW(trained(self.model), lr=RATE)
        self.device, self.autocast = device, autocast
        self.losses, self.times, self.peak = [], [], 0
        _, _, _, _, _, self.batch, self.tokens = SIZES[size]

    def step(self):
        generator = torch.Generator().manual_seed(1000 * (len(self.losses) % 4) + dist.get_rank())
        ids = torch.randint(0, 8192, (self.batch, self.tokens), generator=generator).to(self.device)
        synchronize(self.device)
        dist.barrier()
        start = time.perf_counter()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        if self.average:
            for parameter in trained(self.model):
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronize(self.device)
        self.times.append(time.perf_counter() - start)
        self.losses.append(loss.detach().double())

    def block(self, steps):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(steps):
            self.step()
        if self.device.type == "cuda":
            self.peak = max(self.peak, torch.cuda.max_memory_allocated())


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def slowest(times, device):
    times = torch.tensor(times, dtype=torch.float64, device=device)
    dist.all_reduce(times, dist.ReduceOp.MAX)
    return times.tolist()


def total(value, device):
    value = torch.as_tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(value)
    return value


def measure(size, wrapper, device, turns, steps):
    import graft_lora

    runs = [Run(size, wrapper, device, accelerated) for accelerated in (False, True)]
    warm = 2
    for run in runs:
        run.block(warm)
    for turn in range(turns):
        for run in runs if turn % 2 == 0 else reversed(runs):
            run.block(steps)
    plain, graft = (slowest(run.times[warm:], device) for run in runs)
    ratios = [
        statistics.median(graft[i : i + steps]) / statistics.median(plain[i : i + steps])
        for i in range(0, turns * steps, steps)
    ]
    cast = Run(size, wrapper, device, autocast=True) if size == "tiny" else None
    if cast:
        cast.block(len(runs[0].losses))
        runs.append(cast)
    losses = [total(torch.stack(run.losses), device) / dist.get_world_size() for run in runs]
    rows = graft_lora.report(runs[1].model, file=io.StringIO())
    forward = int(total(sum(row.fused["forward"] for row in rows), device))
    backward = int(total(sum(row.fused["backward"] for row in rows), device))
    others = int(total(sum(sum(row.reasons.values()) for row in rows), device))
    reasons = sorted({reason for row in rows for reason in row.reasons})
    return [
        size,
        f'"{wrapper}"',
        len(losses[0]),
        *(f"{((losses[0] - other).abs() / losses[0]).max().item():.1e}" for other in losses[1:]),
        *([] if cast else [""]),
        f"{losses[0][0].item():.4f}",
        f"{losses[0][-1].item():.4f}",
        f"{losses[1][-1].item():.4f}",
        forward,
        backward,
        others,
        f"{statistics.median(plain) * 1e3:.2f}",
        f"{statistics.median(graft) * 1e3:.2f}",
        f"{statistics.median(ratios):.3f}",
        f"{min(ratios):.3f}-{max(ratios):.3f}",
        f"{runs[0].peak / 2**20:.0f}",
        f"{runs[1].peak / 2**20:.0f}",
        f'"{"; ".join(reasons)}"',
    ]


COLUMNS = (
    "size,wrapper,steps,loss_difference,loss_difference_autocast,first_loss,last_loss_peft,last_loss_graft,"
    "fused_forward,fused_backward,fell_back,peft_ms,graft_ms,ratio,ratio_spread,peft_peak_mib,graft_peak_mib,"
    "reasons"
)


def facts(device, kernels):
    """What the numbers depend on, as result files have it."""
    import accelerate
    import peft
    import transformers

    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    modules = (torch, transformers, peft, accelerate)
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in modules)
    now = datetime.datetime.now(datetime.timezone.utc)
    return [
        ("device", f"{dist.get_world_size()} x {name}"),
        ("versions", versions),
        *([("kernels", kernels)] if kernels else []),
        ("date", f"{now:%Y-%m-%d %H:%M} UTC"),
        ("command", f"torchrun --nproc-per-node {dist.get_world_size()} benchmarks/torch/two_gpus.py"),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="/dev/stdout")
    parser.add_argument("--kernels", default="", help="digest of the kernels' sources, for the record")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--wrappers", nargs="+", default=list(WRAPPERS))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()

    device = torch.device(options.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(seconds=60)
    )
    import graft_lora

    out = open(options.out, "w") if dist.get_rank() == 0 else io.StringIO()
    for fact, value in facts(device, options.kernels):
        print(f"# {fact}: {value}", file=out)
    print(COLUMNS, file=out)
    for size in options.sizes:
        for wrapper in options.wrappers:
            try:
                line = ",".join(map(str, measure(size, wrapper, device, options.turns, options.steps)))
            except Exception as error:  # the others are worth having; every process raises alike
                line = f'{size},"{wrapper}",failed: {error!r}'
            print(line, file=out, flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
