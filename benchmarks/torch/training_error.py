"""How far twenty steps of training end from float64's, by PEFT alone and with Graft: a table for docs/pytorch.md.

    PYTHONPATH=build-torch/hosts/torch .venv/bin/python benchmarks/torch/training_error.py

The models and steps are those of tests/hosts/torch/training_test.py, three seeds each; an error is the norm of the
difference from PEFT in float64 over the norm, of the twenty losses, and of the adapters at the end.
"""

import copy
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "hosts" / "torch"))
import graft_lora  # noqa: E402
import models  # noqa: E402


def errors(family: str, seed: int, dtype: torch.dtype, autocast: torch.dtype | None) -> list[float]:
    """Of the losses with Graft and by PEFT, then of the adapters."""
    model = models.build(family, seed=seed, dtype=dtype)
    plain, truth = copy.deepcopy(model), models.double(model)
    graft_lora.accelerate(model)
    losses = [models.train(one, family, autocast=autocast) for one in (model, plain)]
    losses = [torch.tensor(run, dtype=torch.float64) for run in (*losses, models.train(truth, family))]
    adapters = [models.trainable(one) for one in (model, plain, truth)]
    return [models.error(one, run[2]) for run in (losses, adapters) for one in run[:2]]


def main() -> None:
    print("| model | types | losses: Graft | PEFT | adapters: Graft | PEFT |")
    print("|---|---|---|---|---|---|")
    kinds = (
        ("float32", torch.float32, None),
        ("bfloat16, adapters in float32", torch.bfloat16, None),
        ("the same under autocast", torch.bfloat16, torch.bfloat16),
    )
    for name, dtype, autocast in kinds:
        for family in ("llama", "qwen2", "gemma", "vit"):
            seeds = [errors(family, seed, dtype, autocast) for seed in range(3)]
            row = [f"{max(column):.1e}" for column in zip(*seeds)]
            print(f"| {family} | {name} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
