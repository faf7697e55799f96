"""lora_linear and lora_delta: the registered ops, their fake kernels, and their gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .checks import check_adapter, check_dropout, check_linear, check_rows
from .errors import GraftError
from .library import ops
from .registry import (
    asks_for_graph,
    autocast,
    bias_gradient,
    cast_like,
    composed_gradients,
    public_op,
    quick_apply,
    run,
    wants_gradient,
    weight_gradient,
)

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
        y, h = run(_forward, x, weight, bias, a, b, scaling, dropout, rng, True, pack)
        needs = ctx.needs_input_grad
        ctx.save_for_backward(x if needs[1] or needs[3] or needs[4] else None, weight, a, b, h, rng)
        ctx.scaling, ctx.dropout, ctx.pack, ctx.counts = scaling, dropout, pack, counts
        ctx.x_dtype = x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, a, b, h, rng = ctx.saved_tensors
        if x is None:
            x = _any_x(dy, a, ctx.x_dtype)
        if ctx.counts is not None:
            ctx.counts.backward += 1
        need_dx, need_dw, need_dbias, need_da, need_db = ctx.needs_input_grad[:5]
        dx = da = db = dw = None
        dbias = bias_gradient(dy, ctx.bias_dtype) if need_dbias else None
        if asks_for_graph():
            dx, dw, da, db, _ = composed_gradients(
                _composed_for(ctx),
                (x, weight, a, b, ctx.scaling),
                (dy,),
                (need_dx, need_dw, need_da, need_db, False),
            )
            return dx, dw, dbias, da, db, None, None, None, None, None
        if need_dx or need_da or need_db:
            dx, da, db = run(
                _backward,
                *(dy, x, h, weight, a, b, ctx.scaling, ctx.dropout, rng, need_dx, need_da, need_db, ctx.pack),
            )
        if need_dw:
            dw = weight_gradient(dy, x, weight)
        return (
            dx,
            dw,
            dbias,
            cast_like(da, a),
            cast_like(db, b),
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
        y, h = run(_delta_forward, x, a, b, scaling, dropout, rng, True)
        needs = ctx.needs_input_grad
        ctx.save_for_backward(x if needs[1] or needs[2] else None, a, b, h, rng)
        ctx.scaling, ctx.dropout, ctx.counts, ctx.x_dtype = scaling, dropout, counts, x.dtype
        return y

    @staticmethod
    def backward(ctx, dy):
        return *_delta_gradients(ctx, dy, ctx.needs_input_grad[:3]), None, None, None, None


class LoraDeltaAdd(torch.autograd.Function):
    """y + scaling·(drop(x)·Aᵀ)·Bᵀ in y's memory, with the gradients of y, x, A and B.

    Nobody but the caller may hold y. It is written through an alias and not marked dirty, because y is often
    a view: one made inside a Function (bitsandbytes) may not be marked, and any other (a linear layer with
    bias) would make backward copy dy twice. The alias shares y's version, so a backward that needs y raises
    torch's error instead of computing with the sum.
    """

    @staticmethod
    def forward(ctx, y, x, a, b, scaling, dropout, rng, counts=None):
        total = y.detach()
        h = run(_delta_add, total, x, a, b, scaling, dropout, rng, True)
        needs = ctx.needs_input_grad
        ctx.save_for_backward(x if needs[2] or needs[3] else None, a, b, h, rng)
        ctx.scaling, ctx.dropout, ctx.counts, ctx.x_dtype = scaling, dropout, counts, x.dtype
        return total

    @staticmethod
    def backward(ctx, dy):
        return dy, *_delta_gradients(ctx, dy, ctx.needs_input_grad[1:4]), None, None, None, None


linear_in_eager = quick_apply(LoraLinear)
_add_in_eager = quick_apply(LoraDeltaAdd)


def plus_delta(y, x, a, b, scaling, dropout, rng, counts, in_place) -> Tensor:
    """y + scaling·(drop(x)·Aᵀ)·Bᵀ, in y's memory if `in_place`, which is for eager code
    outside torch.func's transforms."""
    if torch.is_grad_enabled() and (y.requires_grad or x.requires_grad or a.requires_grad or b.requires_grad):
        if in_place:
            return _add_in_eager(y, x, a, b, scaling, dropout, rng, counts)
        return y + LoraDelta.apply(x, a, b, scaling, dropout, rng, counts)
    if in_place:
        run(_delta_add, y, x, a, b, scaling, dropout, rng, False)
        return y
    return y + run(_delta_forward, x, a, b, scaling, dropout, rng, False)[0]


def _delta_gradients(ctx, dy, needs):
    if ctx.counts is not None:
        ctx.counts.backward += 1
    x, a, b, h, rng = ctx.saved_tensors
    need_dx, need_da, need_db = needs
    if not (need_dx or need_da or need_db):
        return None, None, None
    if x is None:
        x = _any_x(dy, a, ctx.x_dtype)
    if asks_for_graph():
        inputs = (x, None, a, b, ctx.scaling)
        found = composed_gradients(
            _composed_for(ctx), inputs, (dy,), (need_dx, False, need_da, need_db, False)
        )
        return found[0], found[2], found[3]
    dx, da, db = run(
        _delta_backward, dy, x, h, a, b, ctx.scaling, ctx.dropout, rng, need_dx, need_da, need_db
    )
    return dx, cast_like(da, a), cast_like(db, b)


def _any_x(dy, a, dtype):
    """What stands for an x that was not kept, since dx alone is wanted, which does not depend on it."""
    x = dy.new_empty((*dy.shape[:-1], a.shape[1]), dtype=dtype)
    return x.requires_grad_() if asks_for_graph() else x


def _composed(x, weight, a, b, scaling):
    delta = functional.linear(functional.linear(x, a.to(x.dtype)), b.to(x.dtype)) * scaling
    return delta if weight is None else functional.linear(x, weight.to(x.dtype)) + delta


def _composed_for(ctx):
    if ctx.dropout > 0:
        raise GraftError(
            "unsupported",
            "[lora] has no second derivatives with dropout, whose mask is not stored: set dropout to 0, or "
            "leave create_graph out",
        )
    return _composed


@torch.library.register_fake("graft::lora_linear_forward")
def _(x, weight, bias, a, b, scaling, dropout, rng, save_h, pack):
    _check_linear(x, weight, bias, a, b, scaling, dropout, rng)
    return x.new_empty((*x.shape[:-1], weight.shape[0])), _fake_h(x, a, save_h)


@torch.library.register_fake("graft::lora_linear_backward")
def _(dy, x, h, weight, a, b, scaling, dropout, rng, need_dx, need_da, need_db, pack):
    return _fake_gradients(x, a, b, need_dx, need_da, need_db)


@torch.library.register_fake("graft::lora_delta_forward")
def _(x, a, b, scaling, dropout, rng, save_h):
    _check_delta(x, a, b, scaling, dropout, rng)
    return x.new_empty((*x.shape[:-1], b.shape[0])), _fake_h(x, a, save_h)


@torch.library.register_fake("graft::lora_delta_add_")
def _(y, x, a, b, scaling, dropout, rng, save_h):
    check_rows("lora_delta_add", x)
    check_adapter("lora_delta_add", x, a, b, y.shape[-1])
    check_dropout("lora_delta_add", x, dropout, rng)
    return _fake_h(x, a, save_h)


@torch.library.register_fake("graft::lora_delta_backward")
def _(dy, x, h, a, b, scaling, dropout, rng, need_dx, need_da, need_db):
    return _fake_gradients(x, a, b, need_dx, need_da, need_db)


def _fake_h(x, a, save_h):
    return x.new_empty((math.prod(x.shape[:-1]), a.shape[0]), dtype=torch.float32) if save_h else None


def _fake_gradients(x, a, b, need_dx, need_da, need_db):
    return (
        x.new_empty(x.shape) if need_dx else None,
        a.new_empty(a.shape, dtype=torch.float32) if need_da else None,
        b.new_empty(b.shape, dtype=torch.float32) if need_db else None,
    )


def _check_linear(x, weight, bias, a, b, scaling=1.0, dropout=0.0, rng=None, pack=False):
    check_linear("lora_linear", x, weight, bias)
    check_adapter("lora_linear", x, a, b, weight.shape[0])
    check_dropout("lora_linear", x, dropout, rng)


def _check_delta(x, a, b, scaling=1.0, dropout=0.0, rng=None):
    check_rows("lora_delta", x)
    check_adapter("lora_delta", x, a, b)
    check_dropout("lora_delta", x, dropout, rng)


@public_op(
    "lora_linear(Tensor x, Tensor weight, Tensor? bias, Tensor a, Tensor b, float scaling=1.0, "
    "float dropout=0.0, Tensor? rng=None, bool pack=False) -> Tensor",
    _check_linear,
)
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

    x (..., in_features), W (out_features, in_features), bias (out_features) or None, A (rank, in_features),
    B (out_features, rank), as PEFT keeps them; y (..., out_features) in x's dtype. Ranks are 1 to 256. Each
    of them is float32, bfloat16 or (CUDA) float16, and A and B may be float32 beside a half type; x is of
    any strides and up to 8 dimensions. Products multiply in x's dtype, and are summed in float32.

    `dropout` is the chance that an element of x is dropped on its way to A, and the rest is scaled up; the
    mask is made of `rng`, two int64 numbers on x's device, seed and offset (graft/lora.h has the rule), which
    are drawn from torch's generator if absent. `pack` keeps a packed copy of W on the CPU, for as long as W's
    memory lives: an edit through `.data` of less than all of W needs torch.ops.graft.forget_weight(
    W.data_ptr()). Under autocast x is cast as torch.nn.functional.linear casts it.

    Differentiable in x, W, bias, A and B; twice too, without dropout (then by torch's own operations).
    Raises GraftError.
    """
    x = autocast(x)
    if dropout > 0 and rng is None:
        rng = draw_rng(x)
    if wants_gradient("lora_linear", x, weight, bias, a, b):
        return LoraLinear.apply(x, weight, bias, a, b, scaling, dropout, rng, pack)
    return _forward(x, weight, bias, a, b, scaling, dropout, rng, False, pack)[0]


@public_op(
    "lora_delta(Tensor x, Tensor a, Tensor b, float scaling=1.0, float dropout=0.0, Tensor? rng=None) -> "
    "Tensor",
    _check_delta,
)
def lora_delta(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: float = 1.0,
    dropout: float = 0.0,
    rng: Tensor | None = None,
) -> Tensor:
    """y = scaling·(drop(x)·Aᵀ)·Bᵀ, the adapter's part alone; all else as of lora_linear."""
    x = autocast(x)
    if dropout > 0 and rng is None:
        rng = draw_rng(x)
    if wants_gradient("lora_delta", x, a, b):
        return LoraDelta.apply(x, a, b, scaling, dropout, rng)
    return _delta_forward(x, a, b, scaling, dropout, rng, False)[0]
