"""A model of two LoRA layers, and what a call of it gives and says, for the tests of accelerate()."""

from __future__ import annotations

import copy
import io
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import graft_lora

IN, MIDDLE, OUT = 24, 40, 16
DEVICE = os.environ.get("GRAFT_TEST_DEVICE", "cpu")  # "cuda" runs these tests there
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}


class Block(nn.Module):
    """Two layers beside a residual path: as many of them as wanted, one behind the other."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(IN, MIDDLE)
        self.down = nn.Linear(MIDDLE, IN, bias=False)

    def forward(self, x):
        return x + self.down(nn.functional.silu(self.up(x)))


class Two(nn.Module):
    """first, a nonlinearity, second: so that a layer's dx reaches another's parameters."""

    def __init__(self, bias: bool = True):
        super().__init__()
        self.first = nn.Linear(IN, MIDDLE, bias=bias)
        self.second = nn.Linear(MIDDLE, OUT, bias=bias)

    def forward(self, x, **kwargs):
        return self.second(torch.tanh(self.first(x, **kwargs)), **kwargs)


def build(
    dtype: torch.dtype = torch.float32, base_bias: bool = True, adapters: int = 1, **options
) -> nn.Module:
    """PEFT's model with `adapters` adapters ("default", "more1", ...), every B and bias drawn at random."""
    torch.manual_seed(3)
    settings = dict(r=4, lora_alpha=6, target_modules=["first", "second"], init_lora_weights=False) | options
    keep = settings.pop("autocast_adapter_dtype", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(Two(base_bias).to(dtype), LoraConfig(**settings), autocast_adapter_dtype=keep)
        for i in range(1, adapters):
            model.add_adapter(f"more{i}", LoraConfig(**(settings | {"r": 4 + i})))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and name.endswith("bias"):
                parameter.normal_()
    return model.to(DEVICE)


def layers_of(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The two LoRA layers."""
    two = model.get_base_model()
    return two.first, two.second


def input_of(model: nn.Module, *shape: int) -> torch.Tensor:
    torch.manual_seed(5)
    dtype = layers_of(model)[0].get_base_layer().weight.dtype
    return torch.randn(*(shape or (2, 7, IN))).to(DEVICE, dtype)


def call(
    model: nn.Module, x: torch.Tensor, inside: Callable = nullcontext, **kwargs
) -> dict[str, torch.Tensor]:
    """y and every gradient of one forward and backward pass."""
    x = x.detach().clone()
    if x.is_floating_point():
        x.requires_grad_()
    model.zero_grad(set_to_none=True)
    with inside():
        y = model(x, **kwargs)
    found = {"y": y.detach()}
    if y.requires_grad:
        torch.manual_seed(7)
        y.backward(torch.randn(y.shape).to(y.device, y.dtype))
        found["dx"] = x.grad
        found |= {f"d {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found


def rows_of(model: nn.Module):
    return graft_lora.report(model, file=io.StringIO())


def fused(model: nn.Module) -> int:
    """Fused calls of all layers together."""
    return sum(row.fused["forward"] for row in rows_of(model))


def reasons(model: nn.Module) -> list[str]:
    """Why layers ran PEFT's own forward, each reason once."""
    return sorted({reason for row in rows_of(model) for reason in row.reasons})


def accelerated(model: nn.Module) -> nn.Module:
    """A copy of the model with Graft's kernels under it."""
    return graft_lora.accelerate(copy.deepcopy(model))
