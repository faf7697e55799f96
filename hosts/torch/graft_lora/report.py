"""What is known of each accelerated module, and the table that says it."""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TextIO

from .quantized import Kind


class Record:
    """How often one module ran fused, and why it did not.

    It is the module's attribute `_graft`. Pickled it becomes an empty dict, so that a saved model loads
    without Graft; a deep copy starts at zero.
    """

    def __init__(self, pack: bool, kind: Kind | None):
        self.pack = pack
        self.kind = kind  # of a quantized layer
        self.forward = 0
        self.backward = 0
        self.compiled = 0
        self.reasons: Counter[str] = Counter()

    def __reduce__(self):
        return (dict, ())

    def __deepcopy__(self, memo):
        return Record(self.pack, self.kind)

    def traced(self, reason: str) -> None:
        """Counts a graph that holds the module; called while it is traced, not when it runs."""
        if reason:
            self.reasons[reason] += 1
        else:
            self.compiled += 1


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
    """Rows that say the same of layers of the same place, together; those of one place side by side."""
    places: dict[str, dict[tuple, list[Row]]] = {}
    for row in rows:
        place = places.setdefault(_NUMBER.sub("#", row.name), {})
        place.setdefault((row.layer, *row.fused.values(), *row.reasons.items()), []).append(row)
    return [group for place in places.values() for group in place.values()]


def _summary(rows: list[Row]) -> str:
    states = Counter(
        (any(row.fused.values()), bool(row.reasons)) for row in rows
    )  # (ran fused, ran as PEFT's own)
    words = {
        (True, False): "always fused",
        (True, True): "fused at times",
        (False, True): "not fused",
        (False, False): "not called",
    }
    layers = "1 LoRA layer" if len(rows) == 1 else f"{len(rows)} LoRA layers"
    return f"Graft: {layers}: " + ", ".join(
        f"{states[state]} {word}" for state, word in words.items() if states[state]
    )


def print_table(rows: list[Row], file: TextIO | None) -> None:
    """Prints `rows`, a line a group of layers, and what can be done about those that are not fused."""
    file = sys.stdout if file is None else file
    if not rows:
        print("Graft: no LoRA layers", file=file)
        return
    print(_summary(rows), file=file)
    groups = _groups(rows)
    compiled = any(row.fused["compiled"] for row in rows)
    head = ["module", "layers", "forward", "backward", *(["compiled"] if compiled else []), "PEFT's own"]
    why: dict[str, int] = {}
    lines = [head]
    for group in groups:
        row = group[0]
        marks = [
            (f"{count} " if count else "") + f"[{why.setdefault(reason, len(why) + 1)}]"
            for reason, count in row.reasons.items()
        ]
        counts = [str(count) for kind, count in row.fused.items() if compiled or kind != "compiled"]
        lines.append(
            [_group_name([r.name for r in group]), str(len(group)), *counts, ", ".join(marks) or "0"]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:-1], widths[1:-1])), line[-1]]
        print("  ".join(cells).rstrip(), file=file)
    if compiled and any(not any(row.fused.values()) and not row.reasons for row in rows):
        print(
            "A layer without counts was not called, or runs a graph compiled for a layer like it.", file=file
        )
    if len(rows) > len(groups):
        print("Counts are a layer's; layers that differ in number alone share a line.", file=file)
    for reason, number in why.items():
        print(f"[{number}] {reason}", file=file)
