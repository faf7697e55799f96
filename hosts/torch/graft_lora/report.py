"""What is known of each accelerated module, and the table that says it."""

from __future__ import annotations

import re
import sys
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import TextIO

import torch
from torch import nn

from .library import ops
from .quantized import Kind


def forget_weight(address: int) -> None:
    """Drops the packed copy of the weight at `address`, whatever mode the caller is in."""
    if address:
        with torch._C._DisableTorchDispatch():
            ops.forget_weight(address)


class Record:
    """How often one module ran fused, why it did not, and where its packed weight is.

    It is the module's attribute `_graft`. Pickled it becomes an empty dict, so that a saved model loads
    without Graft; a deep copy starts at zero and belongs to the copied module.
    """

    def __init__(self, module: nn.Module, pack: bool, kind: Kind | None):
        self.pack = pack
        self.kind = kind  # of a quantized layer
        self.forward = 0
        self.backward = 0
        self.compiled = 0
        self.reasons: Counter[str] = Counter()
        self.address = 0
        self._module = weakref.ref(module)
        self._finalizer = weakref.finalize(module, Record.forget, self)
        self._finalizer.atexit = False

    def __reduce__(self):
        return (dict, ())

    def __deepcopy__(self, memo):
        module = memo.get(id(self._module()))
        return {} if module is None else Record(module, self.pack, self.kind)

    def moved(self, address: int) -> None:
        """The base weight is at `address` now, or nowhere that is packed (0)."""
        forget_weight(self.address)
        self.address = address

    def forget(self) -> None:
        """Drops the packed copy of the base weight."""
        self.moved(0)

    def close(self) -> None:
        """Ends it: the module runs PEFT's own forward again."""
        self._finalizer.detach()
        self.forget()

    def traced(self, reason: str) -> None:
        """Counts a graph that holds the module; called while it is traced, not when it runs."""
        if reason:
            self.reasons[reason] += 1
            return
        self.compiled += 1
        module = self._module()
        if module is not None and self.kind is None:
            weight = module._modules["base_layer"]._parameters["weight"]
            address = weight.data_ptr() if self.pack and weight.is_cpu else 0
            if address != self.address:
                self.moved(address)


@dataclass(frozen=True)
class Row:
    """One LoRA layer of report()."""

    name: str  #: as model.named_modules() has it
    layer: str  #: its class
    fused: dict[str, int]  #: "forward" and "backward": calls; "compiled": graphs of torch.compile
    reasons: dict[str, int]  #: {why PEFT's own forward ran: calls, or graphs; 0: it can't but}


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)")


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _group_name(names: list[str]) -> str:
    """Names that differ in their numbers alone, as one: "layers.0-29.q_proj"."""
    found = [[int(number) for number in _NUMBER.findall(name)] for name in names]
    columns = [sorted(set(column)) for column in zip(*found)]
    texts = iter(_ranges(column) for column in columns)
    return _NUMBER.sub(lambda _: next(texts), names[0])


def _groups(rows: list[Row]) -> list[list[Row]]:
    """Rows that say the same of layers of the same place, together."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        key = (_NUMBER.sub("#", row.name), row.layer, *row.fused.values(), *row.reasons.items())
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def print_table(rows: list[Row], file: TextIO | None) -> None:
    """Prints `rows`, a line a group of layers, and what can be done about those that are not fused."""
    file = sys.stdout if file is None else file
    ran = sum(any(row.fused.values()) for row in rows)
    fell = sum(bool(row.reasons) for row in rows)
    layers = "1 LoRA layer" if len(rows) == 1 else f"{len(rows)} LoRA layers"
    print(f"Graft: {layers}, {ran} ran fused, {fell} ran as PEFT's own", file=file)
    groups = _groups(rows)
    compiled = any(row.fused["compiled"] for row in rows)
    head = ["module", "layers", "forward", "backward", *(["compiled"] if compiled else []), "PEFT's own"]
    why: dict[str, int] = {}
    lines = [head]
    for group in groups:
        row = group[0]
        marks = [f"{count or ''}[{why.setdefault(reason, len(why) + 1)}]" for reason, count in row.reasons.items()]
        counts = [str(count) for kind, count in row.fused.items() if compiled or kind != "compiled"]
        lines.append([_group_name([r.name for r in group]), str(len(group)), *counts, " ".join(marks) or "0"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:-1], widths[1:-1])), line[-1]]
        print("  ".join(cells).rstrip(), file=file)
    if compiled and any(not any(row.fused.values()) and not row.reasons for row in rows):
        print("A layer without counts was not called, or runs a graph compiled for a layer like it.", file=file)
    if len(rows) > len(groups):
        print("Counts are a layer's; layers that differ in number alone share a line.", file=file)
    for reason, number in why.items():
        print(f"[{number}] {reason}", file=file)
