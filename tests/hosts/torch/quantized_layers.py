"""PEFT's LoRA layers over quantized bases: the real ones where a quantizer is installed, else PEFT's own class
around a stand-in base that casts and returns views as the quantizer's does.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from unittest import mock

import peft
import torch
from peft import LoraConfig
from torch import Tensor, nn

KINDS = ("bnb_8bit", "bnb_4bit", "gptq", "awq", "torchao")


class _Product(torch.autograd.Function):
    """x·Wᵀ of an int8 weight, as a view made inside a Function, which autograd lets nobody write to."""

    @staticmethod
    def forward(ctx, x, weight, scale, dtype):
        ctx.save_for_backward(weight, scale)
        y = x.reshape(-1, x.shape[-1]).float() @ (weight.float() * scale).t()
        return y.to(dtype).reshape(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx, dy):
        weight, scale = ctx.saved_tensors
        return (dy.float() @ (weight.float() * scale)).to(dy.dtype), None, None, None


class StandIn(nn.Module):
    """A layer of int8 weights. `last` is the address of its newest result."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer(
            "qweight", torch.randint(-127, 128, (out_features, in_features), dtype=torch.int8)
        )
        self.register_buffer("scale", torch.rand(out_features, 1) / 127)
        self.register_buffer("bias", torch.randn(out_features) if bias else None)
        self.last = None

    def forward(self, x: Tensor) -> Tensor:
        y = _Product.apply(x, self.qweight, self.scale, x.dtype)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        if not torch.compiler.is_compiling():
            self.last = y.data_ptr()
        return y


StandIn.__module__ = "bitsandbytes.nn"  # One of the packages whose results are known to be fresh.


def lora_class(kind: str) -> type:
    """PEFT's class for that kind, also where its quantizer is not installed."""
    if kind == "gptq":
        return peft.tuners.lora.gptq.GPTQLoraLinear
    if kind == "awq":
        return peft.tuners.lora.awq.AwqLoraLinear
    if kind == "torchao":
        return peft.tuners.lora.torchao.TorchaoLoraLinear
    return getattr(_bnb_module(), {"bnb_8bit": "Linear8bitLt", "bnb_4bit": "Linear4bit"}[kind])


_bnb = None


def _bnb_module():
    """PEFT's module of bitsandbytes layers, read with an empty package in bitsandbytes' place."""
    global _bnb
    if _bnb is None:
        name = "peft.tuners.lora.bnb"
        path = importlib.util.find_spec("peft.tuners.lora").submodule_search_locations[0] + "/bnb.py"
        spec = importlib.util.spec_from_file_location(name, path)
        _bnb = importlib.util.module_from_spec(spec)
        empty = types.ModuleType("bitsandbytes")
        empty.nn = types.SimpleNamespace(Linear8bitLt=StandIn, Linear4bit=StandIn)
        with (
            mock.patch.dict(sys.modules, {"bitsandbytes": empty}),
            mock.patch("peft.import_utils.is_bnb_available", lambda: True),
            mock.patch("peft.import_utils.is_bnb_4bit_available", lambda: True),
        ):
            spec.loader.exec_module(_bnb)
    return _bnb


def wrap(kind: str, base: nn.Module, config: LoraConfig) -> nn.Module:
    """PEFT's LoRA layer of that kind around `base`, A and B random."""
    cls = lora_class(kind)
    more = {"get_apply_tensor_subclass": None} if kind == "torchao" else {}
    with mock.patch.object(cls, "_check_dtype_supported", lambda self: None, create=True):
        layer = cls(base, "default", config=config, r=config.r, lora_alpha=config.lora_alpha, **more)
    randomize(layer)
    return layer


def randomize(layer: nn.Module) -> None:
    for name in layer.lora_A:
        nn.init.normal_(layer.lora_A[name].weight, std=layer.in_features**-0.5)
        nn.init.normal_(layer.lora_B[name].weight, std=0.5)
        if layer.lora_B[name].bias is not None:
            nn.init.normal_(layer.lora_B[name].bias)
