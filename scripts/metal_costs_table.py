#!/usr/bin/env python3
"""Writes what `metal_costs` has counted as tables into documents.

The text between a line `<!-- table: KIND CSV -->` and the next `<!-- end of table -->` is made from
that file alone. KIND is one of
    delta     lora_delta, forward, at every shape and rank
    kernels   a row an operation and direction, pairs at rank 8, at three shapes
    decode    one row of x

Without --fix, exits with 1 if a document does not agree with its file.

usage: metal_costs_table.py [--fix] DOCUMENT...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bench_table import BLOCK, table  # noqa: E402
from result_files import read_results  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from document_parts import ROOT, check_or_fix  # noqa: E402

KERNELS_SHAPES = [("1", "32"), ("4", "128"), ("16", "512")]
KERNELS_RANKS = ("0", "8")


def amount(value):
    """Three digits and a unit: 1.07 M."""
    value = float(value)
    for unit in ("", " k", " M", " G"):
        if value < 999.5 or unit == " G":
            break
        value /= 1e3
    digits = 0 if unit == "" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}{unit}"


def size(value):
    text = amount(value)
    return text + ("B" if " " in text else " B")


def launches(row):
    copies = int(row["launches"]) - int(row["kernels"])
    kernels = row["kernels"] + (f" + {copies}" if copies else "")
    return f"{kernels} of {row['unfused_launches']}"


def share(row, of, to):
    """Nothing where nothing is known to be needed."""
    return f"{float(row[of]) / float(row[to]):.2f}×" if float(row[to]) else ""


def columns(row):
    return [row["rank"], launches(row), size(row["bytes"]), size(row["unfused_bytes"]),
            size(row["asked_bytes"]), amount(row["flops"]), amount(row["least_flops"])]


COLUMNS = ["rank", "launches", "bytes", "unfused", "asked for", "FLOPs", "least FLOPs"]


def is_decode(row):
    return row["batch"] == row["sequence"] == "1"


def delta_table(rows):
    wanted = [row for row in rows if row["op"] == "lora_delta" and row["direction"] == "forward"
              and not is_decode(row)]
    wanted.sort(key=lambda row: [int(row[name]) for name in ("batch", "sequence", "rank")])
    return table(["x", *COLUMNS],
                 [[f"({row['batch']}, {row['sequence']}, {row['in']})", *columns(row)]
                  for row in wanted])


def decode_table(rows):
    return table(["operation", "in → out", *COLUMNS],
                 [[f"`{row['op']}`", f"{row['in']} → {row['out']}", *columns(row)]
                  for row in rows if is_decode(row)])


def kernels_table(rows):
    found = {}
    for row in rows:
        shape = (row["batch"], row["sequence"])
        if row["rank"] in KERNELS_RANKS and shape in KERNELS_SHAPES:
            found.setdefault((row["op"], row["direction"]), {})[shape] = row
    lines = []
    for (op, direction), by_shape in found.items():
        of_shapes = [by_shape[shape] for shape in KERNELS_SHAPES]
        last = of_shapes[-1]
        moved = [f"{size(row['bytes'])}, {share(row, 'bytes', 'unfused_bytes')}"
                 for row in of_shapes]
        lines.append([f"`{op}`", direction, launches(last), *moved,
                      share(last, "asked_bytes", "bytes"), share(last, "flops", "least_flops"),
                      size(last["threadgroup_bytes"])])
    shapes = [f"({batch}, {sequence})" for batch, sequence in KERNELS_SHAPES]
    return table(["operation", "pass", "launches", *shapes, "asked for", "FLOPs",
                  "threadgroup memory"], lines)


TABLES = {"delta": delta_table, "kernels": kernels_table, "decode": decode_table}


def made_from(words):
    kind, path = words.split()
    return TABLES[kind](read_results(ROOT / path)[1])


def main():
    return check_or_fix(
        "<!-- table:", BLOCK, made_from, broken="a table has no end",
        stale="a table differs from its file; run scripts/metal_costs_table.py --fix")


if __name__ == "__main__":
    sys.exit(main())
