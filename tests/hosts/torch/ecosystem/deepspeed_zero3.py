"""DeepSpeed's ZeRO-3 and ZeRO-2 with and without accelerate(), two processes over gloo on the CPU. Under
ZeRO-3, which takes the weights apart, every call is PEFT's own: the same losses and adapters to the bit.
Under ZeRO-2 every call is fused: the same to rounding.

Needs deepspeed (0.19 or so; DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed). Exits with 77 and
says why where that is absent. The first run compiles DeepSpeed's own CPU collectives, about a minute.
"""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import tempfile

WORLD, ROWS, WIDTH, HIDDEN, LAYERS, STEPS = 2, 8, 32, 48, 3, 4
CALLS = 2 * LAYERS * STEPS


def train(stage, when, folder):
    import deepspeed
    import graft_lora
    import torch
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from peft import LoraConfig, get_peft_model
    from torch import nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(WIDTH, HIDDEN)
            self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

        def forward(self, x):
            return x + self.down(nn.functional.silu(self.up(x)))

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["up", "down"], init_lora_weights=False)
    model = get_peft_model(nn.Sequential(*[Block() for _ in range(LAYERS)]), config)
    if when == "before":
        graft_lora.accelerate(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=trained,
        optimizer=torch.optim.SGD(trained, lr=0.05),
        config={
            "train_micro_batch_size_per_gpu": ROWS // WORLD,
            "zero_optimization": {"stage": int(stage), "stage3_param_persistence_threshold": 0},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    if when == "after":
        graft_lora.accelerate(model)
    if stage == "3":
        assert all(p.ds_status == ZeroParamStatus.NOT_AVAILABLE for p in model.parameters())
    rank = int(os.environ["RANK"])
    part = slice(rank * ROWS // WORLD, (rank + 1) * ROWS // WORLD)
    losses = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(2, ROWS, WIDTH, generator=generator)[:, part]
        loss = (engine(x) - y).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    adapters = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with deepspeed.zero.GatheredParameters(parameter, enabled=stage == "3"):
                adapters[name] = parameter.detach().clone()
    rows = graft_lora.report(model, file=io.StringIO())
    result = {
        "losses": losses,
        "adapters": adapters,
        "fused": [sum(row.fused[way] for row in rows) for way in ("forward", "backward")],
        "others": sum(sum(row.reasons.values()) for row in rows),
        "reasons": sorted({reason for row in rows for reason in row.reasons}),
    }
    torch.save(result, os.path.join(folder, f"{stage}.{when}.{rank}"))


def run(stage, when, folder):
    """Two processes for each, as DeepSpeed keeps state of its own in a process."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    environment = dict(
        os.environ,
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE=str(WORLD),
        OMP_NUM_THREADS="1",
        DS_ACCELERATOR="cpu",
    )
    workers = []
    for rank in range(WORLD):
        numbered = dict(environment, RANK=str(rank), LOCAL_RANK=str(rank))
        with open(os.path.join(folder, f"log.{rank}"), "w") as log:
            command = [sys.executable, os.path.abspath(__file__), stage, when, folder]
            workers.append(subprocess.Popen(command, env=numbered, stdout=log, stderr=log))
    for rank, worker in enumerate(workers):
        if worker.wait(300) != 0:
            with open(os.path.join(folder, f"log.{rank}")) as log:
                sys.exit(f"deepspeed_zero3: ZeRO-{stage}, {when}, process {rank}: {log.read()[-3000:]}")


def main():
    try:
        import deepspeed
        import torch
    except ImportError as error:
        print(f"skipped: {error}")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        for stage, tolerance in (("3", 0.0), ("2", 1e-5)):
            for when in ("never", "before", "after"):
                run(stage, when, folder)
            for rank in range(WORLD):
                plain = torch.load(os.path.join(folder, f"{stage}.never.{rank}"))
                assert len(set(plain["losses"])) == STEPS, plain["losses"]  # it learns
                for when in ("before", "after"):
                    result = torch.load(os.path.join(folder, f"{stage}.{when}.{rank}"))
                    for loss, expected in zip(result["losses"], plain["losses"], strict=True):
                        assert abs(loss - expected) <= tolerance, (stage, when, loss, expected)
                    for name, value in plain["adapters"].items():
                        error = (result["adapters"][name] - value).abs().max().item()
                        assert value.numel() > 0 and error <= tolerance, (stage, when, name, error)
                    fused = 0 if stage == "3" else CALLS
                    assert (result["fused"], result["others"]) == ([fused] * 2, CALLS - fused), result
                    print(f"ZeRO-{stage}, process {rank}, {when}: right; fused {fused} of {CALLS}")
                    print("  ", *result["reasons"] or ["nothing fell back"])
    print(f"passed: deepspeed {deepspeed.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    train(*sys.argv[1:]) if len(sys.argv) == 4 else main()
