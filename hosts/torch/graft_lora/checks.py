"""What the ops ask of their tensors, in torch's orientation: A (rank, in_features), B (out_features, rank).

Each failure is a GraftError that names the op and the tensor, what was expected and what came. Numbers
(scaling, dropout, eps) are checked by the library.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import GraftError

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MAX_RANK = 256


def _tensor(op: str, name: str, tensor, like: Tensor | None = None) -> None:
    if not isinstance(tensor, Tensor):
        raise GraftError("invalid_argument", f"[{op}] {name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _FLOATS:
        raise GraftError(
            "unsupported", f"[{op}] {name}: expected float32, bfloat16 or float16, got {_name(tensor.dtype)}"
        )
    if like is not None and tensor.device != like.device:
        raise GraftError(
            "invalid_argument", f"[{op}] {name}: expected device {like.device}, as x's, got {tensor.device}"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape(op: str, name: str, tensor: Tensor, expected: tuple, words: str = "") -> None:
    """`expected` has a size a dimension, or a word where any will do."""
    got = tuple(tensor.shape)
    if len(got) == len(expected) and all(isinstance(e, str) or e == g for e, g in zip(expected, got)):
        return
    sizes = ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "")
    raise GraftError("invalid_argument", f"[{op}] {name}: expected ({sizes}){words}, got {got}")


def check_rows(op: str, x: Tensor, name: str = "x") -> None:
    _tensor(op, name, x)
    if x.dim() < 1:
        raise GraftError("invalid_argument", f"[{op}] {name}: expected (..., features), got a single number")
    if x.dim() > 8:
        raise GraftError("unsupported", f"[{op}] {name}: expected at most 8 dimensions, got {x.dim()}")


def check_vector(op: str, name: str, vector: Tensor | None, x: Tensor, size) -> None:
    if vector is not None:
        _tensor(op, name, vector, x)
        _shape(op, name, vector, (size,))


def check_like(op: str, name: str, tensor: Tensor, x: Tensor) -> None:
    """One more tensor beside x: of its shape and dtype, on its device."""
    _tensor(op, name, tensor, x)
    _shape(op, name, tensor, tuple(x.shape), ", as x")
    if tensor.dtype != x.dtype:
        raise GraftError(
            "invalid_argument", f"[{op}] {name}: expected {_name(x.dtype)}, as x, got {_name(tensor.dtype)}"
        )


def check_linear(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_rows(op, x)
    _tensor(op, "weight", weight, x)
    _shape(op, "weight", weight, ("out_features", x.shape[-1]))
    check_vector(op, "bias", bias, x, weight.shape[0])


def check_adapter(op: str, x: Tensor, a: Tensor, b: Tensor, out_features=None) -> None:
    """`out_features` of the layer; None where B alone says it."""
    _tensor(op, "a", a, x)
    _tensor(op, "b", b, x)
    _shape(op, "a", a, ("rank", x.shape[-1]))
    if not 1 <= a.shape[0] <= MAX_RANK:
        raise GraftError(
            "invalid_argument", f"[{op}] a: expected a rank of 1 to {MAX_RANK} rows, got {tuple(a.shape)}"
        )
    _shape(op, "b", b, ("out_features" if out_features is None else out_features, a.shape[0]))


def check_dropout(op: str, x: Tensor, dropout: float, rng: Tensor | None) -> None:
    if not 0 <= dropout < 1:
        raise GraftError("invalid_argument", f"[{op}] dropout: expected a chance in [0, 1), got {dropout}")
    if rng is not None and (rng.dtype != torch.int64 or tuple(rng.shape) != (2,) or rng.device != x.device):
        raise GraftError(
            "invalid_argument",
            f"[{op}] rng: expected two int64 numbers on {x.device}, as x, got {_name(rng.dtype)} "
            f"{tuple(rng.shape)} on {rng.device}",
        )
