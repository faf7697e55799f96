"""The one exception that Graft raises, the first time where there is no torch for it."""

from __future__ import annotations

import re

_FROM_LIBRARY = re.compile(r"graft (invalid_argument|unsupported|out_of_memory|device): (.*)", re.DOTALL)


class GraftError(RuntimeError):
    """What went wrong, with the op and the tensor's name in the message, and what to do.

    `code` is "invalid_argument" (a shape, dtype, device or value that the function does not take),
    "unsupported" (well-formed, but no kernel here does it), "out_of_memory", or "device" (a device or
    its driver failed).
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code

    def __reduce__(self):
        return (type(self), (self.code, str(self)))


class GraftImportError(GraftError, ImportError):
    """The package can't be used here: torch is missing or too old, or the libraries are not its own."""


try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise GraftImportError(
        "unsupported", "graft_lora needs torch 2.10 or later, and there is none here: pip install torch"
    ) from None


def check_torch(version: str) -> None:
    """Raises if the libraries can't run under this version of torch."""
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < (2, 10):
        raise GraftImportError(
            "unsupported",
            f"graft_lora needs torch 2.10 or later, since older ones lack the stable interface that it is "
            f"built on, and this is torch {version}: pip install --upgrade torch",
        )


check_torch(torch.__version__)


class OutOfMemory(GraftError, torch.OutOfMemoryError):
    """A GraftError that scripts which catch torch's own catch too."""


#: Exceptions raised in Python that the library called, of which it can only say that there was one.
lost: list[BaseException] = []


def translated(error: RuntimeError) -> BaseException:
    """The GraftError that the library meant, what Python raised under it, or `error` itself if it is torch's
    own."""
    found = _FROM_LIBRARY.match(str(error))
    if not found:
        return lost.pop() if lost and "graft::watch_weight" in str(error) else error
    kind = OutOfMemory if found[1] == "out_of_memory" else GraftError
    return kind(found[1], found[2])
