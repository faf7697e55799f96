"""PEFT's LoRA layers over a quantized base: the base computes as ever, and the delta is added onto its result.

The base is called as a module, so what listens to it, offloads it or dequantizes it goes on as without
Graft. Its result is a fresh tensor that nobody else holds, so the delta is added in place, in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .lora import draw_rng, plus_delta


@dataclass(frozen=True)
class Kind:
    """How the forward of one of PEFT's classes treats types."""

    base: str  # the attribute that it calls for the base product
    promotes: bool  # under autocast the sum has the wider type of result and delta, not the result's


# As of PEFT 0.21. All convert x to A's type where autocast does not; the first three convert the delta to
# the result's type only then, and leave the sum's type to torch under autocast.
_KINDS = {
    ("peft.tuners.lora.bnb", "Linear8bitLt"): Kind("base_layer", promotes=True),
    ("peft.tuners.lora.bnb", "Linear4bit"): Kind("base_layer", promotes=True),
    ("peft.tuners.lora.awq", "AwqLoraLinear"): Kind("quant_linear_module", promotes=True),
    ("peft.tuners.lora.gptq", "GPTQLoraLinear"): Kind("quant_linear_module", promotes=False),
    ("peft.tuners.lora.torchao", "TorchaoLoraLinear"): Kind("base_layer", promotes=False),
}

# Whose results are known to be fresh: another base might return a buffer that it keeps.
_FRESH = ("bitsandbytes", "gptqmodel", "torch")


def kind_of(layer_class: type) -> Kind | None:
    """The kind of PEFT's class of LoRA layers over a quantized base; None for any other. Imports nothing."""
    return _KINDS.get((layer_class.__module__, layer_class.__qualname__))


def why_not(module: nn.Module, kind: Kind, x: Tensor) -> str:
    """Why this call is PEFT's, beyond what holds for every LoRA layer; empty if it can be fused."""
    if getattr(module, kind.base) is not module.base_layer:
        return "the base layer was exchanged"
    if torch.is_autocast_enabled() and not torch.is_autocast_enabled(x.device.type):
        return "autocast of another device"
    return ""


def forward(module: nn.Module, kind: Kind, x: Tensor, parts: list[tuple], counts=None) -> Tensor:
    """What the class's own forward returns, to rounding: A and B are rounded to the type that x is multiplied
    in, and the sum is rounded once. `parts` has (A, B, B's bias, scaling, dropout) of each active adapter.
    `counts.backward`, where there is one, goes up by one a backward pass."""
    base = getattr(module, kind.base)
    result = base(x)
    dtype = result.dtype
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
        if kind.promotes and torch.is_autocast_enabled():
            dtype = torch.promote_types(dtype, x.dtype)
    in_place = result.dtype == dtype == x.dtype and _is_fresh(base, result, x)
    for a, b, b_bias, scaling, p in parts:
        rng = draw_rng(x) if p > 0 else None
        result = plus_delta(result, x, a, b, scaling, p, rng, counts, in_place).to(dtype)
        if b_bias is not None:
            result = result + (b_bias * scaling).to(dtype)
        counts = None  # Adapters beyond the first are of the same call.
    return result


def _is_fresh(base: nn.Module, result: Tensor, x: Tensor) -> bool:
    """Whether `result` may be written to: nobody but this call has it."""
    return (
        type(base).__module__.partition(".")[0] in _FRESH
        and "forward" not in base.__dict__
        and not base._forward_hooks
        and not base._backward_hooks
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0  # selective checkpointing may keep it
        and result.is_contiguous()
        and result.data_ptr() != x.data_ptr()
    )
