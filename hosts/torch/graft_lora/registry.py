"""What the modules of the ops share: registering them, running them, and their second derivatives."""

from __future__ import annotations

import atexit
import functools
import weakref
from typing import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.utils._python_dispatch import _disable_current_modes

from .errors import GraftError, lost, translated
from .library import ops

_library = torch.library.Library("graft", "FRAGMENT")


def public_op(schema: str, check: Callable) -> Callable:
    """Registers a function made of the library's ops as torch.ops.graft.<its name>: torch differentiates,
    traces and compiles through it as through the function itself.

    `check` takes the same arguments and raises what is wrong with them. It runs when the function has
    failed: the library refuses all that it refuses, and asking first costs as much host time as a kernel's
    launch, but only `check` says it in torch's orientation.
    """

    def register(function):
        @functools.wraps(function)
        def explained(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except Exception as error:
                raise _explanation(error, check, args, kwargs) from None

        name = schema.split("(")[0]
        _library.define(schema)
        _library.impl(name, explained, "CompositeImplicitAutograd")
        op = getattr(ops, name).default

        @functools.wraps(function)
        def public(*args, **kwargs):
            # The op, not the function, is what a compiler is to see: handed an autograd.Function that is
            # given one tensor twice, torch 2.11's loses a gradient.
            if is_compiling():
                return op(*args, **kwargs)
            try:  # `explained` again, for the call that it saves
                return function(*args, **kwargs)
            except Exception as error:
                raise _explanation(error, check, args, kwargs) from None

        return public

    return register


def _explanation(error: Exception, check: Callable, args: tuple, kwargs: dict) -> Exception:
    """What a public function raises that has failed with `error`."""
    try:
        check(*args, **kwargs)
    except GraftError as better:
        return better
    return translated(error) if isinstance(error, RuntimeError) else error


def run(op, *arguments):
    """Calls an op of the library; raises GraftError where the library meant one."""
    try:
        return op(*arguments)
    except RuntimeError as error:
        raise translated(error) from None


def quick_apply(function: type[torch.autograd.Function]) -> Callable:
    """`function.apply` for calls that no compiler and no transform of torch.func sees: torch's own looks for
    these first, which takes the host half as long as a kernel's launch."""
    return super(torch.autograd.Function, function).apply


def wants_gradient(op: str, *tensors: Tensor | None) -> bool:
    """Whether the call has to go through its autograd.Function.

    The ops themselves are opaque to torch's transforms: a tangent would be lost without a word. So under
    forward-mode differentiation this raises, and under torch.func's transforms the Function refuses.
    """
    if forward_ad._current_level >= 0:
        if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
            raise GraftError(
                "unsupported", f"[{op}] has no forward-mode derivative: use torch's own operations for it"
            )
    if torch._C._are_functorch_transforms_active():
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def autocast(x: Tensor) -> Tensor:
    """x as torch.nn.functional.linear sees it under autocast."""
    if not torch._C._is_any_autocast_enabled():
        return x
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind):
        return x
    if torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(kind))
    return x


def asks_for_graph() -> bool:
    """Whether the gradients that are being computed will be differentiated themselves (create_graph)."""
    return torch.is_grad_enabled() and not is_compiling()


def composed_gradients(composed: Callable, inputs: tuple, outputs_grads: tuple, needs: tuple) -> tuple:
    """The gradients of `composed(*inputs)`, made of torch's own operations, so that they can be
    differentiated again; None where one is not needed."""
    # Aliases: one input may have been computed from another, whose share is not ours.
    aliases = tuple(t.view_as(t) if isinstance(t, Tensor) else t for t in inputs)
    results = composed(*aliases)
    results = results if isinstance(results, tuple) else (results,)
    pairs = [(y, dy) for y, dy in zip(results, outputs_grads) if dy is not None]
    wanted = [t for t, need in zip(aliases, needs) if need]
    found = iter(
        torch.autograd.grad([y for y, _ in pairs], wanted, [dy for _, dy in pairs], create_graph=True)
    )
    return tuple(next(found) if need else None for need in needs)


def as_rows(t: Tensor) -> Tensor:
    """(..., features) as (rows, features)."""
    return t.unsqueeze(0) if t.dim() == 1 else t.flatten(0, -2)


def cast_like(gradient: Tensor | None, like: Tensor | None) -> Tensor | None:
    """A gradient of float32 in the dtype of what it is of; None where it was not asked for. `to` takes a
    microsecond where there is nothing to do."""
    return gradient if gradient is None or gradient.dtype is like.dtype else gradient.to(like.dtype)


def bias_gradient(dy: Tensor, bias: Tensor | torch.dtype) -> Tensor:
    """The sum of dy's rows, in float32 and then of the bias's dtype."""
    return as_rows(dy).sum(0, dtype=torch.float32).to(bias)


def weight_gradient(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """dyᵀ·x over the rows, of the weight's dtype."""
    return (as_rows(dy).t() @ as_rows(x)).to(weight.dtype)


_watched: dict[int, weakref.ref] = {}  # the storages of the weights that have a packed copy, by address


def _forget(address: int, _storage=None) -> None:
    _watched.pop(address, None)
    with _disable_current_modes():  # memory may be freed while a graph is traced, which this is no part of
        ops.forget_weight(address)


def _watch(weight: Tensor) -> None:
    """Called by the library when it has packed a weight: the copy goes when the memory does."""
    try:
        _watch_storage(weight)
    except BaseException as error:  # Ctrl-C, say
        _forget(weight.data_ptr())
        lost.append(error)  # The library can't hand it on.
        raise


def _watch_storage(weight: Tensor) -> None:
    storage = weight.untyped_storage()
    memory = range(storage.data_ptr(), storage.data_ptr() + storage.nbytes())
    for address, seen in list(_watched.items()):
        if seen() is storage and address not in memory:  # it was resized, to other memory
            _forget(address)
    address = weight.data_ptr()
    _watched[address] = weakref.ref(storage, functools.partial(_forget, address))


_library.impl("watch_weight", _watch, "CPU")
atexit.register(_watched.clear)
