"""linear: the registered ops, their fake kernels, and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .checks import check_linear
from .library import ops
from .registry import (
    asks_for_graph,
    autocast,
    bias_gradient,
    composed_gradients,
    public_op,
    run,
    wants_gradient,
    weight_gradient,
)

_forward = ops.linear_forward.default
_backward = ops.linear_backward.default


def _composed(x, weight, bias):
    return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


class Linear(torch.autograd.Function):
    """y = x·Wᵀ + bias with the gradients of all three."""

    @staticmethod
    def forward(ctx, x, weight, bias, pack):
        ctx.save_for_backward(x, weight, bias)
        ctx.pack = pack
        return run(_forward, x, weight, bias, pack)

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias = ctx.saved_tensors
        if asks_for_graph():
            needs = ctx.needs_input_grad[:3]
            return *composed_gradients(_composed, (x, weight, bias), (dy,), needs), None
        need_dx, need_dw, need_dbias, _ = ctx.needs_input_grad
        dx = run(_backward, dy, weight, ctx.pack) if need_dx else None
        dw = weight_gradient(dy, x, weight) if need_dw else None
        return dx, dw, bias_gradient(dy, bias.dtype) if need_dbias else None, None


@torch.library.register_fake("graft::linear_forward")
def _(x, weight, bias, pack):
    _check(x, weight, bias)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.register_fake("graft::linear_backward")
def _(dy, weight, pack):
    return dy.new_empty((*dy.shape[:-1], weight.shape[1]))


def _check(x, weight, bias=None, pack=False):
    check_linear("linear", x, weight, bias)


@public_op("linear(Tensor x, Tensor weight, Tensor? bias=None, bool pack=False) -> Tensor", _check)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, pack: bool = False) -> Tensor:
    """y = x·Wᵀ + bias, as torch.nn.functional.linear, on the kernels that lora_linear runs on.

    x (..., in_features), W (out_features, in_features), bias (out_features) or None; y (..., out_features)
    in x's dtype. Each of them is float32, bfloat16 or (CUDA) float16, x of any strides and up to 8
    dimensions. Products multiply in x's dtype, and are summed in float32. `pack` keeps a packed copy of W
    on the CPU, for as long as W's memory lives: an edit through `.data` of less than all of W needs
    torch.ops.graft.forget_weight(W.data_ptr()). Under autocast x is cast as torch.nn.functional.linear
    casts it.

    Differentiable in x, W and bias, twice too (then by torch's own operations). Raises GraftError.
    """
    x = autocast(x)
    if wants_gradient("linear", x, weight, bias):
        return Linear.apply(x, weight, bias, pack)
    return _forward(x, weight, bias, pack)
