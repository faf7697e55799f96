"""lora_linear and lora_delta: registered ops, their fake kernels, and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .errors import translated
from .library import ops

_forward = ops.lora_linear_forward.default
_backward = ops.lora_linear_backward.default
_delta_forward = ops.lora_delta_forward.default
_delta_add = ops.lora_delta_add_.default
_delta_backward = ops.lora_delta_backward.default


def draw_rng(x: Tensor) -> Tensor:
    """Seed and offset of one dropout mask, from torch's generator of x's device."""
    return torch.randint(2**62, (2,), dtype=torch.int64, device=x.device)


class LoraLinear(torch.autograd.Function):
    """y = x·Wᵀ + bias + scaling·(drop(x)·Aᵀ)·Bᵀ with the gradients of x, A, B and whatever else asks.

    `counts.backward`, where there is one, goes up by one a backward pass; so it does below.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scaling, dropout, rng, pack, counts=None):
        y, h = _forward(x, weight, bias, a, b, scaling, dropout, rng, True, pack)
        ctx.save_for_backward(x, weight, a, b, h, rng)
        ctx.scaling, ctx.dropout, ctx.pack, ctx.counts = scaling, dropout, pack, counts
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, a, b, h, rng = ctx.saved_tensors
        if ctx.counts is not None:
            ctx.counts.backward += 1
        need_dx, need_dw, need_dbias, need_da, need_db = ctx.needs_input_grad[:5]
        dx = da = db = dw = dbias = None
        if need_dx or need_da or need_db:
            dx, da, db = _backward(
                dy, x, h, weight, a, b, ctx.scaling, ctx.dropout, rng, need_dx, need_da, need_db, ctx.pack
            )
        if need_dw:
            dw = (dy.flatten(0, -2).t() @ x.flatten(0, -2)).to(weight.dtype)
        if need_dbias:
            dbias = dy.sum(dim=tuple(range(dy.dim() - 1)), dtype=torch.float32).to(ctx.bias_dtype)
        return (
            dx if need_dx else None,
            dw,
            dbias,
            da.to(a.dtype) if need_da else None,
            db.to(b.dtype) if need_db else None,
            None,
            None,
            None,
            None,
            None,
        )


class LoraDelta(torch.autograd.Function):
    """y = scaling·(drop(x)·Aᵀ)·Bᵀ with the gradients of x, A and B."""

    @staticmethod
    def forward(ctx, x, a, b, scaling, dropout, rng, counts=None):
        y, h = _delta_forward(x, a, b, scaling, dropout, rng, True)
        ctx.save_for_backward(x, a, b, h, rng)
        ctx.scaling, ctx.dropout, ctx.counts = scaling, dropout, counts
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return *_delta_gradients(ctx, dy, ctx.needs_input_grad[:3]), None, None, None, None


class LoraDeltaAdd(torch.autograd.Function):
    """y += scaling·(drop(x)·Aᵀ)·Bᵀ, in place, with the gradients of y, x, A and B."""

    @staticmethod
    def forward(ctx, y, x, a, b, scaling, dropout, rng, counts=None):
        h = _delta_add(y, x, a, b, scaling, dropout, rng, True)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, a, b, h, rng)
        ctx.scaling, ctx.dropout, ctx.counts = scaling, dropout, counts
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return dy, *_delta_gradients(ctx, dy, ctx.needs_input_grad[1:4]), None, None, None, None


def _delta_gradients(ctx, dy, needs):
    if ctx.counts is not None:
        ctx.counts.backward += 1
    x, a, b, h, rng = ctx.saved_tensors
    need_dx, need_da, need_db = needs
    if not (need_dx or need_da or need_db):
        return None, None, None
    dx, da, db = _delta_backward(
        dy, x, h, a, b, ctx.scaling, ctx.dropout, rng, need_dx, need_da, need_db
    )
    return (
        dx if need_dx else None,
        da.to(a.dtype) if need_da else None,
        db.to(b.dtype) if need_db else None,
    )


@torch.library.register_fake("graft::lora_linear_forward")
def _(x, weight, bias, a, b, scaling, dropout, rng, save_h, pack):
    return x.new_empty((*x.shape[:-1], weight.shape[0])), _fake_h(x, a, save_h)


@torch.library.register_fake("graft::lora_linear_backward")
def _(dy, x, h, weight, a, b, scaling, dropout, rng, need_dx, need_da, need_db, pack):
    return _fake_gradients(x, a, b, need_dx, need_da, need_db)


@torch.library.register_fake("graft::lora_delta_forward")
def _(x, a, b, scaling, dropout, rng, save_h):
    return x.new_empty((*x.shape[:-1], b.shape[0])), _fake_h(x, a, save_h)


@torch.library.register_fake("graft::lora_delta_add_")
def _(y, x, a, b, scaling, dropout, rng, save_h):
    return _fake_h(x, a, save_h)


@torch.library.register_fake("graft::lora_delta_backward")
def _(dy, x, h, a, b, scaling, dropout, rng, need_dx, need_da, need_db):
    return _fake_gradients(x, a, b, need_dx, need_da, need_db)


def _fake_h(x, a, save_h):
    rows = 1
    for size in x.shape[:-1]:
        rows = rows * size
    return x.new_empty((rows, a.shape[0]) if save_h else (0,), dtype=torch.float32)


def _fake_gradients(x, a, b, need_dx, need_da, need_db):
    floats = torch.float32
    return (
        x.new_empty(x.shape) if need_dx else x.new_empty((0,), dtype=floats),
        a.new_empty(a.shape, dtype=floats) if need_da else x.new_empty((0,), dtype=floats),
        b.new_empty(b.shape, dtype=floats) if need_db else x.new_empty((0,), dtype=floats),
    )


def _any_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scaling: float = 1.0,
    dropout: float = 0.0,
    rng: Tensor | None = None,
    pack: bool = False,
) -> Tensor:
    """y = x·Wᵀ + bias + scaling·(drop(x)·Aᵀ)·Bᵀ in one pass over y.

    x (..., in_features), W (out_features, in_features), bias (out_features), A (rank, in_features), B
    (out_features, rank), as PEFT keeps them; y (..., out_features) in x's dtype. x and W are float32,
    bfloat16 or (CUDA) float16; A and B may be float32 beside any of them. `dropout` is the chance that an
    element of x is dropped on its way to A; the mask is made of `rng`, two int64 numbers on x's device,
    drawn from torch's generator if absent. `pack` keeps a packed copy of W on the CPU. Under autocast x is
    cast as torch.nn.functional.linear casts it; A and B are not.

    Raises GraftError.
    """
    if dropout > 0 and rng is None:
        rng = draw_rng(x)
    try:
        if _any_gradient(x, weight, bias, a, b):
            return LoraLinear.apply(x, weight, bias, a, b, scaling, dropout, rng, pack)
        return _forward(x, weight, bias, a, b, scaling, dropout, rng, False, pack)[0]
    except RuntimeError as error:
        raise translated(error) from None


def lora_delta(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: float = 1.0,
    dropout: float = 0.0,
    rng: Tensor | None = None,
) -> Tensor:
    """y = scaling·(drop(x)·Aᵀ)·Bᵀ, the adapter's part alone; arguments as of lora_linear."""
    if dropout > 0 and rng is None:
        rng = draw_rng(x)
    try:
        if _any_gradient(x, a, b):
            return LoraDelta.apply(x, a, b, scaling, dropout, rng)
        return _delta_forward(x, a, b, scaling, dropout, rng, False)[0]
    except RuntimeError as error:
        raise translated(error) from None
