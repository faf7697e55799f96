"""accelerate, restore and report: Graft's kernels under PEFT's LoRA layers."""

from __future__ import annotations

import types
import weakref
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import nn

from .library import ops, why_not
from .lora import LoraLinear, draw_rng

_forward = ops.lora_linear_forward.default

#: What of an instance is replaced, besides `forward`: each drops the packed weight, then calls the class's.
_CHANGES = ("merge", "unmerge", "update_layer", "delete_adapter")


@dataclass
class Layer:
    """What is known of one accelerated module."""

    name: str
    fused: Counter = field(default_factory=Counter)  # {"forward": n, "backward": n}
    reasons: Counter = field(default_factory=Counter)  # {why PEFT's own forward ran: n}


def _is_plain(module: nn.Module, kinds: tuple[type, ...]) -> bool:
    """Exactly one of `kinds`, and nothing listens to it or stands in for it."""
    return type(module) in kinds and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def _why_not(module: nn.Module, x: torch.Tensor, args: tuple, kwargs: dict) -> str:
    """Why this call is PEFT's; empty if it can be fused."""
    if args or kwargs:
        return "unknown arguments"
    if module.disable_adapters:
        return "adapters are disabled"
    if module.merged:
        return "merged"
    if len(module.active_adapters) != 1:
        return "not one active adapter"
    name = module.active_adapters[0]
    if name not in module.lora_A:
        return "the active adapter has no part in this layer"
    if name in module.lora_variant:
        return f"variant {type(module.lora_variant[name]).__name__}"
    base = module.base_layer
    if not _is_plain(base, (nn.Linear,)):
        return "the base layer is not a plain torch.nn.Linear"
    if base.weight.requires_grad:
        return "the base weight is trained"
    if not _is_plain(module.lora_A[name], (nn.Linear,)) or not _is_plain(module.lora_B[name], (nn.Linear,)):
        return "lora_A or lora_B is not a plain torch.nn.Linear"
    if not _is_plain(module.lora_dropout[name], (nn.Dropout, nn.Identity)):
        return "the dropout is not torch.nn.Dropout"
    if module.lora_bias[name]:
        return "lora_bias"
    if torch.is_autocast_enabled(x.device.type):
        return "autocast"
    if x.dtype != base.weight.dtype:
        return "x and W differ in dtype"
    return why_not("lora_linear", "forward", x.dtype, x.device)


def _make_forward(layer: Layer):
    def forward(self, x, *args, **kwargs):
        reason = _why_not(self, x, args, kwargs)
        if reason:
            layer.reasons[reason] += 1
            return type(self).forward(self, x, *args, **kwargs)
        name = self.active_adapters[0]
        base = self.base_layer
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        drop = self.lora_dropout[name]
        p = drop.p if type(drop) is nn.Dropout and drop.training else 0.0
        rng = draw_rng(x) if p > 0 else None
        layer.fused["forward"] += 1
        if torch.is_grad_enabled() and (x.requires_grad or a.requires_grad or b.requires_grad):
            return LoraLinear.apply(x, base.weight, base.bias, a, b, self.scaling[name], p, rng, True)
        return _forward(x, base.weight, base.bias, a, b, self.scaling[name], p, rng, False, True)[0]

    forward._graft_layer = layer
    return forward


def _make_change(name: str):
    def change(self, *args, **kwargs):
        ops.forget_weight(self.base_layer.weight.data_ptr())
        try:
            return getattr(type(self), name)(self, *args, **kwargs)
        finally:
            ops.forget_weight(self.base_layer.weight.data_ptr())

    change.__name__ = change.__qualname__ = name
    return change


_CHANGE_FUNCTIONS = {name: _make_change(name) for name in _CHANGES}


def accelerate(model: nn.Module) -> nn.Module:
    """Puts Graft's kernels under every eligible LoRA layer of a PEFT model; returns the model."""
    from peft.tuners.lora import Linear

    for name, module in model.named_modules():
        if isinstance(module, Linear) and "forward" not in module.__dict__:
            module.forward = types.MethodType(_make_forward(Layer(name)), module)
            for change, function in _CHANGE_FUNCTIONS.items():
                module.__dict__[change] = types.MethodType(function, module)
            weakref.finalize(module, lambda: None)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Takes off what accelerate() put on; returns the model."""
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if hasattr(getattr(forward, "__func__", None), "_graft_layer"):
            ops.forget_weight(module.base_layer.weight.data_ptr())
            for name in ("forward", *_CHANGES):
                module.__dict__.pop(name, None)
    return model


def report(model: nn.Module, file=None) -> list[Layer]:
    """Prints which layers ran fused, how often, and why the others did not; returns the rows."""
    rows = [
        module.__dict__["forward"].__func__._graft_layer
        for module in model.modules()
        if hasattr(getattr(module.__dict__.get("forward"), "__func__", None), "_graft_layer")
    ]
    for row in rows:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in row.reasons.items())
        print(f"{row.name}  fused {row.fused['forward']}  {reasons}", file=file)
    return rows
