"""The one exception that Graft raises."""

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
        return (GraftError, (self.code, str(self)))


def translated(error: RuntimeError) -> RuntimeError:
    """The GraftError that the library meant, or `error` itself if it is torch's own."""
    found = _FROM_LIBRARY.match(str(error))
    return GraftError(found[1], found[2]) if found else error
