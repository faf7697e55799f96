"""accelerate, restore and report: Graft's kernels under PEFT's LoRA layers.

Every call of a layer decides anew whether it can be fused, because anything may change between two
calls; what it looks at is read so that torch.compile guards it. If anything is not as PEFT makes it, PEFT's
own forward runs and the reason is counted.
"""

from __future__ import annotations

import math
import types
from typing import TextIO

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter
from torch.nn.modules import module as nn_module

from . import quantized
from .checks import MAX_RANK
from .errors import GraftError, translated
from .library import ops, why_not
from .lora import LoraLinear, draw_rng, linear_in_eager, plus_delta
from .report import Record, Row, print_table

_forward = ops.lora_linear_forward.default

_no_kernel: dict[tuple[torch.device, torch.dtype], str] = {}


def _why_no_kernel(dtype: torch.dtype, device: torch.device) -> str:
    """Why no kernel takes x in `dtype` on `device`; empty if one does."""
    return why_not("lora_linear", "forward", dtype, device) or why_not(
        "lora_linear", "backward", dtype, device
    )


def _kernel_reason(x: Tensor, dtype: torch.dtype) -> str:
    if is_dynamo_compiling():
        return _why_no_kernel(dtype, x.device)
    key = (x.device, dtype)
    reason = _no_kernel.get(key)
    if reason is None:
        reason = _no_kernel[key] = _why_no_kernel(dtype, x.device)
    return reason


def _any_stands_in(children: tuple[nn.Module, ...]) -> str:
    """What _stands_in() says of the first of `children` that it says something of."""
    compiling = is_dynamo_compiling()
    for child in children:
        own = child.__dict__  # modules have a __getattr__, which makes every attribute slow
        if (
            compiling
            or own["_forward_pre_hooks"]
            or own["_forward_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or "forward" in own
            or "_hf_tp_plan" in own
        ):
            reason = _stands_in(child)
            if reason:
                return reason
    return ""


def _stands_in(module: nn.Module) -> str:
    """What listens to `module` or takes the place of its forward; empty if nothing does."""
    if is_dynamo_compiling():
        module.forward  # has torch guard that the instance gets none; a look into __dict__ has not
    own = module.__dict__
    if "forward" in own and getattr(own["forward"], "__func__", None) is not type(module).forward:
        # The class's own stays there when accelerate's hooks have gone.
        return "has a forward of its own (offloaded or dispatched by accelerate's hooks?)"
    if "_hf_tp_plan" in own:
        return "is split by Transformers' tensor parallelism"
    if (
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        return "has hooks (a wrapper's, or a parametrization's)"
    return ""


def _state_reason(self: nn.Module, x: Tensor, args: tuple, kwargs: dict) -> str:
    """Why the layer's state or the call's arguments leave it to PEFT."""
    if self._disable_adapters:
        return "adapters are disabled"
    if self.merged_adapters:
        return "merged: unmerge_adapter() makes it fused again"
    if args or kwargs:
        for name, value in kwargs.items():
            if value is not None or name not in ("adapter_names", "alora_offsets"):
                return f"called with {name}"
        if args:
            return "called with more than x"
    if type(x) is not Tensor and type(x) is not Parameter:
        return f"x is a {type(x).__name__}"
    if not 1 <= x.dim() <= 8:
        return f"x has {x.dim()} dimensions: the kernels take 1 to 8"
    if not (x.is_cuda or x.is_cpu):
        return f"no kernels for {x.device.type}"
    if (
        nn_module._global_forward_hooks
        or nn_module._global_forward_pre_hooks
        or nn_module._global_backward_hooks
        or nn_module._global_backward_pre_hooks
    ):
        return "a global module hook listens to every call"
    if not is_dynamo_compiling() and (
        forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
    ):
        return "inside torch.jit.trace, forward-mode differentiation or a transform of torch.func"
    return ""


def _part(self: nn.Module, name: str, dtype: torch.dtype, casts: bool) -> tuple | str:
    """(A, B, B's bias, scaling, dropout) of the adapter `name`, which has a part in this layer; or why it is
    not plain LoRA as PEFT makes it, or does not fit products in `dtype`. `casts`: x may be cast to A's."""
    if name in self.lora_variant:
        return f"{type(self.lora_variant[name]).__name__} is not plain LoRA"
    modules = self._modules
    a_layer, b_layer = modules["lora_A"]._modules[name], modules["lora_B"]._modules[name]
    drop = modules["lora_dropout"]._modules[name]
    if type(a_layer) is not nn.Linear or type(b_layer) is not nn.Linear:
        return f"lora_A is {type(a_layer).__name__} and lora_B {type(b_layer).__name__}, not torch.nn.Linear"
    p = 0.0
    if type(drop) is nn.Dropout:
        if drop.training:
            p = drop.p
            if drop.inplace or p >= 1:
                return "the dropout is in place, or drops all"
    elif type(drop) is not nn.Identity:
        return f"the dropout is {type(drop).__name__}, not torch.nn.Dropout"
    reason = _any_stands_in((a_layer, b_layer, drop))
    if reason:
        return f"a part of the adapter {reason}"
    a_own, b_own = a_layer._parameters, b_layer._parameters
    a, b = a_own.get("weight"), b_own.get("weight")
    if type(a) is not Parameter or type(b) is not Parameter:
        return (
            f"lora_A's weight is a {type(a).__name__} and lora_B's a {type(b).__name__}, not plain parameters"
        )
    if a_own.get("bias") is not None:
        return "lora_A has a bias"
    a_dtype = a.dtype
    if a_dtype is not b.dtype or (a_dtype is not dtype and a_dtype is not torch.float32):
        return f"lora_A is {a_dtype} and lora_B {b.dtype}: expected both float32, or both {dtype} as x is"
    if a_dtype is not dtype and not casts:
        return "x is not cast to lora_A's dtype (disable_input_dtype_casting)"
    if not 1 <= a.shape[0] <= MAX_RANK:
        return f"rank {a.shape[0]}: the kernels take 1 to {MAX_RANK}"
    scaling = self.scaling[name]
    if type(scaling) is not float and type(scaling) is not int:
        if is_dynamo_compiling() or not isinstance(scaling, float):
            return "its scaling is a tensor (prepared for hot swapping?)"
        scaling = float(scaling)  # NumPy's, of an alpha that NumPy made
    # While torch traces, a scaling that has changed before has no value to look at.
    if not is_dynamo_compiling() and not math.isfinite(scaling):
        return f"its scaling is {scaling}"
    return a, b, b_own.get("bias"), scaling, p


def _parts(self: nn.Module, dtype: torch.dtype, casts: bool) -> list[tuple] | str:
    """The parts of the active adapters, in their order; or why one of them is not to be fused."""
    active = self._active_adapter
    a_layers = self._modules["lora_A"]._modules
    parts = []
    for name in (active,) if type(active) is str else active:
        if name in a_layers:
            part = _part(self, name, dtype, casts)
            if type(part) is str:
                return part
            parts.append(part)
    return parts or "no active adapter has a part in this layer"


def _dense(self: nn.Module, x: Tensor, args: tuple, kwargs: dict) -> Tensor | str:
    """What a layer over torch.nn.Linear gives, or why PEFT should give it."""
    reason = _state_reason(self, x, args, kwargs)
    if reason:
        return reason
    base = self._modules["base_layer"]
    if type(base) is not nn.Linear:
        return f"the base layer is {type(base).__name__}, not torch.nn.Linear"
    reason = _any_stands_in((base,))
    if reason:
        return f"the base layer {reason}"
    weight, bias = base._parameters.get("weight"), base._parameters.get("bias")
    if weight is None:
        return "the base weight is no parameter now (torch.nn.DataParallel? use DistributedDataParallel)"
    if type(weight) is not Parameter:
        return f"the base weight is a {type(weight).__name__}, not a plain parameter"
    if bias is not None and type(bias) is not Parameter:
        return f"the base bias is a {type(bias).__name__}, not a plain parameter"
    if weight.dim() != 2 or hasattr(weight, "ds_id"):
        return "the base weight comes and goes (DeepSpeed's ZeRO-3?)"
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight.shape[0]):
        return f"the base bias is {tuple(bias.shape)}, not a number an output"
    if weight.requires_grad:
        return "the base weight is trained; only a frozen one is fused"
    on_gpu = x.is_cuda
    if not (weight.is_cuda if on_gpu else weight.is_cpu):
        return f"x is on {x.device} and the base weight on {weight.device}"
    dtype = x.dtype
    autocast = torch.is_autocast_enabled("cuda" if on_gpu else "cpu")
    if autocast:
        if dtype is torch.float64 or weight.dtype is torch.float64:
            return "float64 under autocast"
        dtype = torch.get_autocast_dtype("cuda" if on_gpu else "cpu")
    elif dtype is not weight.dtype:
        return f"x is {dtype} and the base weight {weight.dtype}"
    reason = _kernel_reason(x, dtype)
    if reason:
        return reason
    parts = _parts(self, dtype, autocast or self.cast_input_dtype_enabled)
    if type(parts) is str:
        return parts

    compiling = is_dynamo_compiling()
    record = self._graft
    # FSDP gathers weights anew for each pass into memory that others use in between, and does not count
    # that as a new version.
    pack = record.pack and not on_gpu and "_is_fsdp_managed_module" not in base.__dict__
    counts = None if compiling else record
    for _, _, b_bias, scaling, _ in parts:
        if b_bias is not None:
            bias = b_bias * scaling if bias is None else torch.add(bias, b_bias, alpha=scaling)
    if x.dtype is not dtype:
        x = x.to(dtype)
    # The product of float32 on a GPU stays torch's, for its setting of TF32 is the user's.
    y = nn.functional.linear(x, weight, bias) if on_gpu and dtype is torch.float32 else None
    for a, b, _, scaling, p in parts:
        rng = draw_rng(x) if p > 0 else None
        if y is not None:
            in_place = not compiling and torch._C._len_torch_dispatch_stack() == 0 and y.is_contiguous()
            y = plus_delta(y, x, a, b, scaling, p, rng, counts, in_place)
        elif torch.is_grad_enabled() and (
            a.requires_grad or b.requires_grad or x.requires_grad or (bias is not None and bias.requires_grad)
        ):
            apply = LoraLinear.apply if compiling else linear_in_eager
            y = apply(x, weight, bias, a, b, scaling, p, rng, pack, counts)
        else:
            y = _forward(x, weight, bias, a, b, scaling, p, rng, False, pack)[0]
        counts = None  # a call's one backward pass, however many adapters it has
    return y


def _quantized(self: nn.Module, x: Tensor, args: tuple, kwargs: dict) -> Tensor | str:
    """What a layer over a quantized base gives, or why PEFT should give it."""
    reason = _state_reason(self, x, args, kwargs)
    if reason:
        return reason
    record = self._graft
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
    reason = quantized.why_not(self, record.kind, x) or _kernel_reason(x, dtype)
    if reason:
        return reason
    parts = _parts(self, dtype, autocast or self.cast_input_dtype_enabled)
    if type(parts) is str:
        return parts
    return quantized.forward(self, record.kind, x, parts, None if is_dynamo_compiling() else record)


def forward(self, x, *args, **kwargs):
    """What is bound to a layer in its class's place."""
    record = self._graft
    try:
        if type(record) is not Record:
            y = "copied without its record"
        elif record.kind is None:
            y = _dense(self, x, args, kwargs)
        else:
            y = _quantized(self, x, args, kwargs)
    except RuntimeError as error:
        raise translated(error) from None
    reason = y if type(y) is str else ""
    if type(record) is not Record:
        pass
    elif is_dynamo_compiling():
        record.traced(reason)
    elif reason:
        record.reasons[reason] += 1
    else:
        record.forward += 1
    return type(self).forward(self, x, *args, **kwargs) if reason else y


def _forget(module: nn.Module) -> None:
    """Drops the packed copy of the base weight, which may have been edited in ways that no one can see."""
    weight = module.base_layer._parameters.get("weight")
    if type(weight) is Parameter and weight.is_cpu:
        ops.forget_weight(weight.data_ptr())


def _change(name: str):
    """The class's method `name`, after which the base weight may be another."""

    def change(self, *args, **kwargs):
        try:
            return getattr(type(self), name)(self, *args, **kwargs)
        finally:
            _forget(self)

    change.__name__ = change.__qualname__ = name
    return change


def _replicate_for_data_parallel(self):
    """torch.nn.DataParallel copies __dict__: what is bound in there has to follow."""
    replica = type(self)._replicate_for_data_parallel(self)
    _bind(replica)
    return replica


#: What an instance gets in the place of its class's, by name; a pickle finds the class's by these names.
_BOUND = {
    "forward": forward,
    **{name: _change(name) for name in ("merge", "unmerge", "update_layer", "delete_adapter")},
    "_replicate_for_data_parallel": _replicate_for_data_parallel,
}


def _slot(module: nn.Module) -> str:
    """Where a module keeps the forward that its call ends in: accelerate's hooks stand before it."""
    return "_old_forward" if "_hf_hook" in module.__dict__ else "forward"


def _bind(module: nn.Module) -> None:
    for name, function in _BOUND.items():
        module.__dict__[_slot(module) if name == "forward" else name] = types.MethodType(function, module)


def _is_ours(method: object) -> bool:
    return getattr(method, "__func__", None) is forward


def _peft_class(module: nn.Module) -> type:
    """The class that PEFT gave the module: FSDP2 puts one of its own over it."""
    kind = type(module)
    return kind.__bases__[-1] if kind.__name__.startswith("FSDP") and len(kind.__bases__) == 2 else kind


def _bar(module: nn.Module) -> str:
    """Why no call of this LoRA layer can be fused; empty if some can."""
    from peft.tuners.lora import Linear

    kind = _peft_class(module)
    if kind is not Linear and quantized.kind_of(kind) is None:
        return f"{kind.__name__} has no fused kernel"
    missing = [name for name in ("lora_variant", "cast_input_dtype_enabled") if name not in module.__dict__]
    if missing:
        return f"was made by a PEFT older than 0.18: it has no {missing[0]}"
    own = module.__dict__.get(_slot(module))
    if own is not None and getattr(own, "__func__", None) is not type(module).forward:
        return "has a forward of its own; accelerate() has to come before what put it there"
    return ""


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise GraftError("invalid_argument", f"model: expected a torch.nn.Module, got {type(model).__name__}")


def _lora_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    try:
        from peft.tuners.lora import LoraLayer
    except ModuleNotFoundError as error:
        raise GraftError(
            "unsupported", f"{error}: what is accelerated are PEFT's layers (pip install peft)"
        ) from None

    _check_model(model)
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def accelerate(model: nn.Module, pack: bool = True) -> nn.Module:
    """Puts Graft's kernels under the LoRA layers of a PEFT model, in place.

    `model` is any module with LoRA layers in it: a PeftModel, a model with injected adapters, or a wrapper of
    one. Nothing but speed changes, and what cannot be fused runs as before: report() says what and why. Called
    again, it covers layers that were added since. `pack` keeps a packed copy of each frozen weight on the CPU
    (two where gradients flow through it); turn it off to save that memory, or if you edit single elements
    through `weight.data`. It means nothing on a GPU.

    Returns the model. Raises GraftError if there is no LoRA layer in it.
    """
    layers = _lora_layers(model)
    if not layers:
        raise GraftError(
            "invalid_argument",
            f"accelerate: {type(model).__name__} has no LoRA layers; "
            "give it adapters first (peft.get_peft_model, load_adapter, add_adapter)",
        )
    torch.compiler.assume_constant_result(Record.traced)
    torch.compiler.assume_constant_result(_why_no_kernel)
    for _, module in layers:
        record = module.__dict__.get("_graft")
        if type(record) is Record:
            if not pack:
                _forget(module)
            record.pack = pack
        elif not _bar(module):
            module.__dict__["_graft"] = Record(pack, quantized.kind_of(_peft_class(module)))
            _bind(module)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Takes off what accelerate() put on, and drops the packed weights; returns the model."""
    _check_model(model)
    for module in model.modules():
        record = module.__dict__.get("_graft")
        if record is None:
            continue
        _forget(module)
        del module.__dict__["_graft"]
        for name, function in _BOUND.items():
            if getattr(module.__dict__.get(name), "__func__", None) is function:
                del module.__dict__[name]
        if _is_ours(module.__dict__.get("_old_forward")):  # a hook of accelerate's was put over it
            module.__dict__["_old_forward"] = types.MethodType(type(module).forward, module)
    return model


def report(model: nn.Module, file: TextIO | None = None) -> list[Row]:
    """Prints how often each LoRA layer ran fused since accelerate(), and why it did not; returns the rows.

    Forward and backward passes are counted where they run; under torch.compile a graph is counted once, when
    it is traced. Layers that differ in their numbers alone and have the same counts share a line of the table;
    the rows are a layer's each.
    """
    rows = []
    for name, module in _lora_layers(model):
        record = module.__dict__.get("_graft")
        if type(record) is Record:
            fused = {"forward": record.forward, "backward": record.backward, "compiled": record.compiled}
            reasons = dict(record.reasons)
        else:
            fused = {"forward": 0, "backward": 0, "compiled": 0}
            reasons = {_bar(module) or "not accelerated: call graft_lora.accelerate(model)": 0}
        rows.append(Row(name, _peft_class(module).__name__, fused, reasons))
    print_table(rows, file)
    return rows
