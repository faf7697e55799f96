"""The ops beside the same computation composed from torch's own, and how near to each other they have to be.

GRAFT_TEST_DEVICE says where the tests run: "cpu", or "cuda".
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import graft_lora

DEVICE = os.environ.get("GRAFT_TEST_DEVICE", "cpu")
DTYPES = (torch.float32, torch.bfloat16) + ((torch.float16,) if DEVICE == "cuda" else ())
HALVES = DTYPES[1:]
ROUNDING = {dtype: torch.finfo(dtype).eps / 2 for dtype in (torch.float32, torch.bfloat16, torch.float16)}
SCALING = 0.75


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 7919 * sum(shape) + len(shape))
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)


class InOrder(torch.autograd.Function):
    """x·Wᵀ + bias as a plain loop has it: one running sum. A BLAS may sum in blocks, and errs less."""

    @staticmethod
    def forward(ctx, x, w, bias):
        ctx.save_for_backward(x, w)
        y = InOrder.product(x.flatten(0, -2), w.t(), bias)
        return y.view(*x.shape[:-1], w.shape[0])

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dy = dy.flatten(0, -2)
        dbias = dy.sum(0) if ctx.needs_input_grad[2] else None
        return InOrder.product(dy, w).view(x.shape), InOrder.product(dy.t(), x.flatten(0, -2)), dbias

    @staticmethod
    def product(p, q, start=None):
        total = p.new_zeros(p.shape[0], q.shape[1])
        if start is not None:
            total += start
        for i in range(p.shape[1]):
            total = torch.addcmul(total, p[:, i : i + 1], q[i])
        return total


def linear(x, w, bias=None):
    w, bias = w.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if x.dtype != torch.float32:
        return F.linear(x, w, bias)
    y = InOrder.apply(x if x.dim() > 1 else x[None], w, bias)
    return y if x.dim() > 1 else y[0]


def delta(x, a, b):
    return linear(linear(x, a) * SCALING, b)


def lora_linear(x, w, bias, a, b, dropped=None):
    """Of drop(x), if it is given. In float32 the delta goes on where the base product's sum ends."""
    dropped = x if dropped is None else dropped
    if x.dtype != torch.float32:
        return linear(x, w, bias) + delta(dropped, a, b)
    h = linear(dropped, a) * SCALING
    return linear(torch.cat((x, h), -1), torch.cat((w.to(x.dtype), b.to(x.dtype)), 1), bias)


def add_rms_norm(x, residual, w):
    s = x + residual
    return F.rms_norm(s, s.shape[-1:], None if w is None else w.to(x.dtype), 1e-5), s


@dataclass(frozen=True)
class Case:
    """An op: Graft's function, the registered op, and the same of torch's in the inputs' dtypes."""

    name: str
    graft: Callable
    op: Callable
    composed: Callable
    inputs: Callable  # (x, dtype of the other tensors, rank) -> all tensors


def _like(t: Tensor, *shape: int, dtype=None, seed: int, scale: float = 1.0) -> Tensor:
    return draw(*shape, dtype=dtype or t.dtype, seed=seed, scale=scale)


OUT = 20


def _linear_inputs(x, dtype, rank, out=OUT):
    k = x.shape[-1]
    return x, _like(x, out, k, seed=1, scale=max(k, 1) ** -0.5), _like(x, out, dtype=dtype, seed=2)


def _lora_inputs(x, dtype, rank, out=OUT):
    return *_linear_inputs(x, dtype, rank, out), *_delta_inputs(x, dtype, rank, out)[1:]


def _delta_inputs(x, dtype, rank, out=OUT):
    k = x.shape[-1]
    a = _like(x, rank, k, dtype=dtype, seed=3, scale=max(k, 1) ** -0.5)
    return x, a, _like(x, out, rank, dtype=dtype, seed=4, scale=rank**-0.5)


_ops = torch.ops.graft
CASES = {
    case.name: case
    for case in (
        Case("linear", graft_lora.linear, _ops.linear, linear, _linear_inputs),
        Case(
            "lora_linear",
            lambda x, w, bias, a, b, **more: graft_lora.lora_linear(x, w, bias, a, b, SCALING, **more),
            lambda x, w, bias, a, b, **more: _ops.lora_linear(x, w, bias, a, b, SCALING, **more),
            lora_linear,
            _lora_inputs,
        ),
        Case(
            "lora_delta",
            lambda x, a, b, **more: graft_lora.lora_delta(x, a, b, SCALING, **more),
            lambda x, a, b, **more: _ops.lora_delta(x, a, b, SCALING, **more),
            delta,
            _delta_inputs,
        ),
        Case(
            "softmax",
            lambda x: graft_lora.softmax(x, SCALING),
            lambda x: _ops.softmax(x, SCALING),
            lambda x: torch.softmax(x * SCALING, -1),
            lambda x, dtype, rank: (x,),
        ),
        Case(
            "rms_norm",
            graft_lora.rms_norm,
            _ops.rms_norm,
            lambda x, w: F.rms_norm(x, x.shape[-1:], None if w is None else w.to(x.dtype), 1e-5),
            lambda x, dtype, rank: (x, _like(x, x.shape[-1], dtype=dtype, seed=5)),
        ),
        Case(
            "add_rms_norm",
            graft_lora.add_rms_norm,
            _ops.add_rms_norm,
            add_rms_norm,
            lambda x, dtype, rank: (
                x,
                _like(x, *x.shape, seed=6),
                _like(x, x.shape[-1], dtype=dtype, seed=5),
            ),
        ),
        Case(
            "layer_norm",
            graft_lora.layer_norm,
            _ops.layer_norm,
            lambda x, w, bias: F.layer_norm(
                x,
                x.shape[-1:],
                None if w is None else w.to(x.dtype),
                None if bias is None else bias.to(x.dtype),
                1e-5,
            ),
            lambda x, dtype, rank: (
                x,
                _like(x, x.shape[-1], dtype=dtype, seed=5),
                _like(x, x.shape[-1], dtype=dtype, seed=7),
            ),
        ),
    )
}
PRODUCTS = ("linear", "lora_linear", "lora_delta")
ROWS = ("softmax", "rms_norm", "add_rms_norm", "layer_norm")


def results(function: Callable, tensors: tuple, cotangents: Callable | None = None) -> list[Tensor | None]:
    """Outputs, and gradients of all tensors that are given, for cotangents made from the outputs."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    dys = [(cotangents or random_cotangent)(y, i) for i, y in enumerate(outputs)]
    wanted = [t for t in leaves if t is not None]
    gradients = torch.autograd.grad(outputs, wanted, dys)
    return [*(y.detach() for y in outputs), *gradients]


def random_cotangent(y: Tensor, i: int) -> Tensor:
    # Of halves in every dtype, so that all three computations are given the same numbers.
    return draw(*y.shape, dtype=torch.bfloat16, seed=50 + i).to(y.dtype)


def doubles(tensors: tuple) -> tuple:
    return tuple(None if t is None else t.double() for t in tensors)


def assert_earned(test, got: Tensor, plain: Tensor, truth: Tensor, what: str = "") -> None:
    """The error against float64, in the Frobenius norm, is at most twice that of plain operations in the same
    dtype, and one rounding."""
    test.assertEqual(got.shape, truth.shape, what)
    test.assertEqual(got.dtype, plain.dtype, what)
    if truth.numel() == 0:
        return
    test.assertTrue(torch.isfinite(truth).all(), what)
    error = (got.double() - truth).norm().item()
    allowed = 2 * (plain.double() - truth).norm().item() + ROUNDING[got.dtype] * truth.norm().item()
    test.assertLessEqual(error, allowed, what)


def assert_case(
    test, case: Case, tensors: tuple, what: str = "", graft: Callable | None = None, cotangents=None
):
    """Outputs and all gradients of the case, with these tensors."""
    got = results(graft or case.graft, tensors, cotangents)
    plain = results(case.composed, tensors, cotangents)
    truth = results(case.composed, doubles(tensors), cotangents)
    for i, three in enumerate(zip(got, plain, truth, strict=True)):
        assert_earned(test, *three, f"{case.name} {what} result {i}")
