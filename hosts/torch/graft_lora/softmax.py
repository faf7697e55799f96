"""softmax: the registered ops, their fake kernels, and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_rows
from .library import ops
from .registry import asks_for_graph, public_op, run, wants_gradient

_forward = ops.softmax_forward.default
_backward = ops.softmax_backward.default


class Softmax(torch.autograd.Function):
    """y = softmax(scale·x) over the last dimension with the gradient of x."""

    @staticmethod
    def forward(ctx, x, scale):
        y = run(_forward, x, scale)
        ctx.save_for_backward(y)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved_tensors
        if asks_for_graph():
            y, dy, dtype = y.float(), dy.float(), y.dtype
            return (ctx.scale * y * (dy - (dy * y).sum(-1, keepdim=True))).to(dtype), None
        return run(_backward, dy, y, ctx.scale), None


@torch.library.register_fake("graft::softmax_forward")
def _(x, scale):
    _check(x)
    return x.new_empty(x.shape)


@torch.library.register_fake("graft::softmax_backward")
def _(dy, y, scale):
    return y.new_empty(y.shape)


def _check(x, scale=1.0):
    check_rows("softmax", x)


@public_op("softmax(Tensor x, float scale=1.0) -> Tensor", _check)
def softmax(x: Tensor, scale: float = 1.0) -> Tensor:
    """y = softmax(scale·x) over the last dimension; `scale` is positive (attention's 1 / √d).

    x (..., features) is float32, bfloat16 or (CUDA) float16, of any strides and up to 8 dimensions; y is
    like x, dense. Computed in float32, under autocast too. Where x is −∞, y is 0; a row of nothing but −∞,
    or with a NaN or +∞ in it, is all NaN, as torch.softmax has it.

    Differentiable, twice too (then by torch's own operations). Raises GraftError.
    """
    if wants_gradient("softmax", x):
        return Softmax.apply(x, scale)
    return _forward(x, scale)
