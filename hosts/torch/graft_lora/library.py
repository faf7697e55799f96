"""Loads the compiled libraries, and says what they can do here."""

from __future__ import annotations

import functools
import pathlib
import platform
import struct
import sys

import torch

from .errors import GraftImportError

_HOW_TO_INSTALL = "in the environment that has torch, from a checkout of Graft: pip install ."
_MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}  # e_machine of ELF


def _find(name: str) -> pathlib.Path | None:
    """A library of this package, or None. It lies beside the Python files, also where those are links;
    an editable installation has a second folder for what is compiled."""
    for folder in sys.modules[__package__].__path__:
        if (path := pathlib.Path(folder).absolute() / name).is_file():
            return path
    return None


def _machine_of(library: pathlib.Path) -> str:
    """The machine that an ELF file is for, as platform.machine() calls it; "" if it is no such file."""
    with library.open("rb") as file:
        header = file.read(20)
    if len(header) < 20 or header[:4] != b"\x7fELF":
        return ""
    (machine,) = struct.unpack("<H" if header[5] == 1 else ">H", header[18:])
    return _MACHINES.get(machine, f"machine {machine}")


def _load(library: pathlib.Path) -> None:
    """Loads the library into torch. Raises OSError, whose text says why it can't be and what to do."""
    machine = _machine_of(library) if sys.platform == "linux" else platform.machine()
    if not machine:
        raise OSError(f"{library} is damaged. Install the package again, {_HOW_TO_INSTALL}")
    if machine != platform.machine():
        raise OSError(
            f"{library} is for {machine}, and this is {platform.machine()}. Install the package that was "
            f"built for it, or build it {_HOW_TO_INSTALL}"
        )
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise OSError(
            f"{library} can't be loaded: {error.__cause__ or error}. Install the package again, "
            f"{_HOW_TO_INSTALL}"
        ) from None


def _load_cpu() -> None:
    library = _find("libgraft_torch_cpu.so")
    if library is None:
        raise GraftImportError(
            "unsupported",
            f"libgraft_torch_cpu.so is not in {list(sys.modules[__package__].__path__)}: this is Graft's "
            f"source, or a broken installation. Install the package, {_HOW_TO_INSTALL}",
        )
    # torch ends the process when an op is registered twice. The same file again is no second time.
    if (
        hasattr(torch.ops.graft, "capabilities_cpu")
        and str(library.resolve()) not in torch.ops.loaded_libraries
    ):
        raise GraftImportError(
            "unsupported", f"another copy of graft_lora is loaded in this process; {library} can't be, too"
        )
    try:
        _load(library)
    except OSError as error:
        raise GraftImportError("unsupported", str(error)) from None


def _load_cuda() -> str:
    """Loads the CUDA kernels and returns "", or returns why there are none. Asks for no device, so that
    a process may still fork."""
    library = _find("libgraft_torch_cuda.so")
    if library is None:
        return (
            "this package was built without CUDA kernels (that takes nvcc of CUDA 13, and a torch with CUDA)"
        )
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        _load(library)
    except OSError as error:
        return str(error)
    return ""


_load_cpu()
_no_cuda = _load_cuda()

#: The ops as they are registered.
ops = torch.ops.graft


@functools.cache
def _capabilities(device_type: str, index: int) -> dict[tuple[str, str, torch.dtype], str]:
    """{(op, direction, dtype): "" if there is a kernel, else why not}."""
    if device_type == "cpu":
        lines = ops.capabilities_cpu()
    elif device_type == "cuda" and not _no_cuda:
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
        reason = f": {_no_cuda}" if device.type == "cuda" else ""
        return f"no kernels for {device.type} here{reason}"
    return table.get((op, direction, dtype), f"no kernel for {dtype}")


def _rows(device_type: str, index: int = 0) -> list[str]:
    """What runs on a device, a line an op, and why the rest does not."""
    table = {
        key: reason
        for key, reason in _capabilities(device_type, index).items()
        if hasattr(ops, f"{key[0]}_forward")
    }
    rows = []
    for op in dict.fromkeys(op for op, _, _ in table):
        cells = []
        for direction in ("forward", "backward"):
            runs = [
                str(dtype).removeprefix("torch.")
                for (one, way, dtype), reason in table.items()
                if (one, way) == (op, direction) and not reason
            ]
            cells.append(f"{direction} {' '.join(runs) or '-'}")
        rows.append(f"  {op:<12} {cells[0]:<34} {cells[1]}")
    return rows + [f"  not: {reason}" for reason in dict.fromkeys(filter(None, table.values()))]


def info() -> str:
    """What is built, what runs on this machine in which types, and why the rest does not, as text to
    print."""
    lines = [
        f"graft-lora {ops.version()}, torch {torch.__version__}, Python {platform.python_version()}",
        f"cpu: {platform.machine()}, {ops.cpu_isa()}, {torch.get_num_threads()} threads of torch",
        *_rows("cpu"),
    ]
    if _no_cuda:
        return "\n".join([*lines, f"cuda: no kernels: {_no_cuda}"])
    if not torch.cuda.is_available():
        return "\n".join(
            [*lines, "cuda: built, but torch finds no CUDA device here (torch.cuda.is_available())"]
        )
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        lines.append(f"cuda:{index}: {torch.cuda.get_device_name(index)}, compute capability {major}.{minor}")
        lines += _rows("cuda", index)
    return "\n".join(lines)
