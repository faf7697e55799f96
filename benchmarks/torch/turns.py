"""Contenders that take turns, and the lines `case,column,value` that they leave in a file of results."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from result_files import facts_of, write_results  # noqa: E402

Times = dict[str, list[float]]  # of each contender its seconds, one a round


def take_turns(contenders: dict[str, Callable[[], float]], rounds: int, warm: int = 1) -> Times:
    """Each contender runs once a round; where it stands in the order moves on by one a round."""
    for _ in range(warm):
        for run in contenders.values():
            run()
    names = list(contenders)
    times: Times = {name: [] for name in names}
    for turn in range(rounds):
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            times[name].append(contenders[name]())
    return times


def ratio(of: Sequence[float], over: Sequence[float]) -> float:
    """The median of what the rounds gave."""
    return median(a / b for a, b in zip(of, over, strict=True))


def spread(times: Sequence[float], unit: float) -> str:
    """The middle half of them, in `unit`."""
    ordered = sorted(times)
    quarter = len(ordered) // 4
    return f"{ordered[quarter] * unit:.4g}..{ordered[-1 - quarter] * unit:.4g}"


class Results:
    """Lines of a file of results, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []

    def add(self, case: str, column: str, value: object) -> None:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        self.rows.append({"case": case, "column": column, "value": text})
        print(f"{case},{column},{text}", flush=True)

    def add_times(self, case: str, times: Times, unit: str) -> None:
        factor = {"us": 1e6, "ms": 1e3}[unit]
        for name, found in times.items():
            self.add(case, f"{name}_{unit}", f"{median(found) * factor:.2f}")
            self.add(case, f"{name}_spread", spread(found, factor))

    def write(self, path: str | None, facts: list[tuple[str, str]]) -> None:
        if path:
            write_results(path, facts, self.rows)


def added_share(times: Times, name: str) -> float:
    """How much of what LoRA adds to PEFT's own step over the floor's is still added by `name`."""
    return median(
        (mine - floor) / (peft - floor)
        for mine, peft, floor in zip(times[name], times["peft"], times["floor"], strict=True)
    )


__all__ = ["Results", "Times", "added_share", "facts_of", "ratio", "spread", "take_turns"]
