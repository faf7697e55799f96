"""layer_norm: the registered ops, their fake kernels, and their gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .checks import check_rows, check_vector
from .library import ops
from .registry import asks_for_graph, cast_like, composed_gradients, public_op, run, wants_gradient

_forward = ops.layer_norm_forward.default
_backward = ops.layer_norm_backward.default


def _composed(x, weight, bias, eps):
    scale = None if weight is None else weight.float()
    shift = None if bias is None else bias.float()
    return functional.layer_norm(x.float(), x.shape[-1:], scale, shift, eps).to(x.dtype)


class LayerNorm(torch.autograd.Function):
    """y = (x − mean)·rstd ∘ weight + bias with the gradients of all three."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        y, mean, rstd = run(_forward, x, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias, mean, rstd = ctx.saved_tensors
        if asks_for_graph():
            return composed_gradients(_composed, (x, weight, bias, ctx.eps), (dy,), ctx.needs_input_grad)
        need_dx, need_dweight, need_dbias, _ = ctx.needs_input_grad
        dx, dweight, dbias = run(
            _backward, dy, x, weight, mean, rstd, ctx.eps, need_dx, need_dweight, need_dbias
        )
        return dx, cast_like(dweight, weight), cast_like(dbias, bias), None


def _check(x, weight=None, bias=None, eps=1e-5):
    check_rows("layer_norm", x)
    check_vector("layer_norm", "weight", weight, x, x.shape[-1])
    check_vector("layer_norm", "bias", bias, x, x.shape[-1])


@torch.library.register_fake("graft::layer_norm_forward")
def _(x, weight, bias, eps):
    _check(x, weight, bias)
    rows = math.prod(x.shape[:-1])
    return (
        x.new_empty(x.shape),
        x.new_empty((rows,), dtype=torch.float32),
        x.new_empty((rows,), dtype=torch.float32),
    )


@torch.library.register_fake("graft::layer_norm_backward")
def _(dy, x, weight, mean, rstd, eps, need_dx, need_dweight, need_dbias):
    floats = torch.float32
    return (
        x.new_empty(x.shape) if need_dx else None,
        x.new_empty(x.shape[-1:], dtype=floats) if need_dweight else None,
        x.new_empty(x.shape[-1:], dtype=floats) if need_dbias else None,
    )


@public_op("layer_norm(Tensor x, Tensor? weight=None, Tensor? bias=None, float eps=1e-5) -> Tensor", _check)
def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """y = (x − mean(x)) / √(var(x) + eps) ∘ weight + bias over the last dimension.

    x (..., features) is float32, bfloat16 or (CUDA) float16, of any strides and up to 8 dimensions; weight
    and bias (features) are of these, maybe others than x's, or None; y is like x, dense. Computed in
    float32, under autocast too.

    Differentiable in x, weight and bias, twice too (then by torch's own operations). Raises GraftError.
    """
    if wants_gradient("layer_norm", x, weight, bias):
        return LayerNorm.apply(x, weight, bias, eps)
    return _forward(x, weight, bias, eps)[0]
