"""rms_norm and add_rms_norm: the registered ops, their fake kernels, and their gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .checks import check_like, check_rows, check_vector
from .library import ops
from .registry import asks_for_graph, cast_like, composed_gradients, public_op, run, wants_gradient

_forward = ops.rms_norm_forward.default
_backward = ops.rms_norm_backward.default


def _composed(x, weight, eps):
    scale = None if weight is None else weight.float()
    return functional.rms_norm(x.float(), x.shape[-1:], scale, eps).to(x.dtype)


def _composed_add(x, residual, weight, eps):
    s = x + residual
    return _composed(s, weight, eps), s


class RmsNorm(torch.autograd.Function):
    """y = x·rstd ∘ weight with the gradients of both."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        y, _, rstd = run(_forward, x, None, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, rstd = ctx.saved_tensors
        need_dx, need_dweight, _ = ctx.needs_input_grad
        if asks_for_graph():
            needs = (need_dx, need_dweight, False)
            return composed_gradients(_composed, (x, weight, ctx.eps), (dy,), needs)
        dx, dweight = run(_backward, dy, x, weight, rstd, None, ctx.eps, need_dx, need_dweight)
        return dx, cast_like(dweight, weight), None


class AddRmsNorm(torch.autograd.Function):
    """s = x + residual and y = s·rstd ∘ weight with the gradients of all three."""

    @staticmethod
    def forward(ctx, x, residual, weight, eps):
        y, s, rstd = run(_forward, x, residual, weight, eps)
        ctx.save_for_backward(x, residual, s, weight, rstd)
        ctx.eps = eps
        return y, s

    @staticmethod
    def backward(ctx, dy, dsum):
        x, residual, s, weight, rstd = ctx.saved_tensors
        need_dx, need_dresidual, need_dweight, _ = ctx.needs_input_grad
        if asks_for_graph():
            inputs = (x, residual, weight, ctx.eps)
            return composed_gradients(_composed_add, inputs, (dy, dsum), ctx.needs_input_grad)
        need_ds = need_dx or need_dresidual
        ds, dweight = run(_backward, dy, s, weight, rstd, dsum, ctx.eps, need_ds, need_dweight)
        return (
            ds if need_dx else None,
            ds if need_dresidual else None,
            cast_like(dweight, weight),
            None,
        )


def _check(op, x, residual, weight):
    check_rows(op, x)
    if residual is not None:
        check_like(op, "residual", residual, x)
    check_vector(op, "weight", weight, x, x.shape[-1])


@torch.library.register_fake("graft::rms_norm_forward")
def _(x, residual, weight, eps):
    _check("rms_norm", x, residual, weight)
    floats = torch.float32
    s = None if residual is None else x.new_empty(x.shape)
    return x.new_empty(x.shape), s, x.new_empty((math.prod(x.shape[:-1]),), dtype=floats)


@torch.library.register_fake("graft::rms_norm_backward")
def _(dy, s, weight, rstd, dsum, eps, need_ds, need_dweight):
    return (
        s.new_empty(s.shape) if need_ds else None,
        s.new_empty(s.shape[-1:], dtype=torch.float32) if need_dweight else None,
    )


def _check_norm(x, weight=None, eps=1e-5):
    _check("rms_norm", x, None, weight)


def _check_add(x, residual, weight=None, eps=1e-5):
    _check("add_rms_norm", x, residual, weight)


@public_op("rms_norm(Tensor x, Tensor? weight=None, float eps=1e-5) -> Tensor", _check_norm)
def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """y = x ∘ weight / √(mean(x²) + eps) over the last dimension.

    x (..., features) is float32, bfloat16 or (CUDA) float16, of any strides and up to 8 dimensions; weight
    (features) is one of these, maybe another than x's, or None for ones; y is like x, dense. Computed in
    float32, under autocast too.

    Differentiable in x and weight, twice too (then by torch's own operations). Raises GraftError.
    """
    if wants_gradient("rms_norm", x, weight):
        return RmsNorm.apply(x, weight, eps)
    return _forward(x, None, weight, eps)[0]


@public_op(
    "add_rms_norm(Tensor x, Tensor residual, Tensor? weight=None, float eps=1e-5) -> (Tensor y, Tensor sum)",
    _check_add,
)
def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """(rms_norm(s, weight, eps), s) with s = x + residual, in one pass: a block's residual stream.

    As rms_norm; residual and s are like x. The norm is that of s before it is rounded to x's dtype.
    """
    # The library sees rows: (2, 3, 8) and (6, 8) are alike to it.
    _check_add(x, residual, weight)
    if wants_gradient("add_rms_norm", x, residual, weight):
        return AddRmsNorm.apply(x, residual, weight, eps)
    return _forward(x, residual, weight, eps)[:2]
