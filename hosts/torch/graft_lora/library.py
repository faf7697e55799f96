"""Loads the compiled libraries, and says what they can do here."""

from __future__ import annotations

import functools
import pathlib

import torch

from .errors import GraftError

# Not resolved: in a build folder these files are links, and the libraries lie beside the links.
_FOLDER = pathlib.Path(__file__).parent.absolute()
_CPU = _FOLDER / "libgraft_torch_cpu.so"
_CUDA = _FOLDER / "libgraft_torch_cuda.so"

torch.ops.load_library(_CPU)
if _CUDA.exists() and torch.cuda.is_available():
    torch.ops.load_library(_CUDA)

#: The ops as they are registered.
ops = torch.ops.graft


@functools.cache
def _capabilities(device_type: str, index: int) -> dict[tuple[str, str, torch.dtype], str]:
    """{(op, direction, dtype): "" if there is a kernel, else why not}."""
    if device_type == "cpu":
        lines = ops.capabilities_cpu()
    elif device_type == "cuda" and torch.cuda.is_available() and _CUDA.exists():
        lines = ops.capabilities_cuda(index)
    else:
        return {}
    table = {}
    for line in lines.splitlines():
        op, direction, dtype, yes, *reason = line.split(" ", 4)
        table[op, direction, getattr(torch, dtype)] = "" if yes == "yes" else " ".join(reason)
    return table


def why_not(op: str, direction: str, dtype: torch.dtype, device: torch.device) -> str:
    """Why no kernel does `op` ("lora_linear", ...) in `direction` ("forward", "backward") and `dtype` on
    `device`; empty if one does."""
    table = _capabilities(device.type, device.index or 0)
    if not table:
        return f"no kernels for {device.type} here"
    return table.get((op, direction, dtype), f"no kernel for {dtype}")


def info() -> str:
    """What is built and what runs here, as text to print."""
    lines = [f"graft-lora with torch {torch.__version__}", f"cpu: {_CPU.name}"]
    lines.append(f"cuda: {_CUDA.name if _CUDA.exists() else 'not built'}")
    return "\n".join(lines)


__all__ = ["GraftError", "info", "ops", "why_not"]
