#!/usr/bin/env python3
"""Writes what graft-bench-cuda and graft-bench-mlx have measured as tables into documents.

The text between a line `<!-- table: KIND CSV... -->` and the next `<!-- end of table -->` is made
from these files alone. KIND is one of
    products  layers: times, and Graft's over cuBLAS's, its own linear's and the composed calls'
    delta     lora_delta over the plan's shapes
    delta_backward  its gradients
    rows      softmax and the norms beside a copy of their bytes
    mlx       chains of lora_delta through MLX's eval, over the plan's shapes
    peers     a file of scripts/bench_cuda_peers.py, then Graft's: each over the yardstick of its run

Without --fix, exits with 1 if a document does not agree with its file.

usage: cuda_table.py [--fix] DOCUMENT...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bench_table import BLOCK, table  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from document_parts import ROOT, check_or_fix  # noqa: E402

ROW_OPERATIONS = ("softmax", "rms_norm", "layer_norm")


def read_cases(path):
    """Of each case its columns, in the order of the file."""
    cases = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or line == "case,column,value":
            continue
        case, column, value = line.split(",", 2)
        cases.setdefault(case, {})[column] = value
    return cases


def us(columns, name):
    return columns.get(f"{name}_us", "")


def percent(columns, name):
    ratio = columns.get(f"graft/{name}")
    return f"{(float(ratio) - 1) * 100:+.1f} %" if ratio else ""


def times(columns, name):
    ratio = columns.get(f"graft/{name}")
    return f"{1 / float(ratio):.1f}×" if ratio else ""


def words(case):
    """`forward 4096x4096>4096 r16 bfloat16 float32 dropout0.10`, as the cells of a table."""
    work, shape, *rest = case.split()
    return [work, shape.replace("x", " × ").replace(">", " → "), *rest]


def products_table(cases):
    lines = []
    for case, columns in cases.items():
        work, shape, *rest = words(case)
        if work.split("+")[0] in ROW_OPERATIONS or work == "chain" or work.startswith("delta"):
            continue
        kind = " ".join(rest).replace("bfloat16", "bf16").replace("float", "f")
        lines.append([work, shape, kind, columns["path"], us(columns, "graft"),
                      us(columns, "cublas"), percent(columns, "cublas"),
                      percent(columns, "linear"), percent(columns, "composed")])
    return table(["work", "rows × in → out", "rank, x, A", "path", "Graft µs", "cuBLAS µs",
                  "over cuBLAS", "over own linear", "over composed"], lines)


def delta_table(cases, wanted="delta"):
    lines = []
    for case, columns in cases.items():
        work, shape, rank, dtype, _ = (words(case) + ["", ""])[:5]
        if work == wanted:
            lines.append([shape, rank[1:], dtype, columns["path"], us(columns, "graft"),
                          us(columns, "composed"), times(columns, "composed")])
    return table(["rows × in → out", "rank", "type", "path", "Graft µs", "composed µs", "speed-up"],
                 lines)


def delta_backward_table(cases):
    return delta_table(cases, "delta_backward")


def rows_table(cases):
    lines = []
    for case, columns in cases.items():
        work, shape, dtype, *_ = words(case)
        if work.split("+")[0] in ROW_OPERATIONS:
            ratio = columns.get("graft/copy")
            lines.append([f"`{work}`", shape, us(columns, "graft"), us(columns, "copy"),
                          f"{float(ratio):.2f}" if ratio else ""])
    return table(["operation", "rows × features", "Graft µs", "copy µs", "of the copy"], lines)


def mlx_table(cases):
    lines = []
    for case, columns in cases.items():
        work, shape, *rest = words(case)
        if work == "chain":
            lines.append([shape, rest[0][1:], rest[1], us(columns, "graft"), us(columns, "composed"),
                          f"{float(columns['composed/graft']):.1f}×", us(columns, "graph")])
    return table(["batch × sequence", "rank", "type", "fused µs", "unfused µs", "speed-up",
                  "bare graph µs"], lines)


def peers_table(cases, of_graft):
    """`cases` and `of_graft` are of two runs: only ratios to what both measured stand side by side."""
    lines = []
    for case, columns in cases.items():
        ratios = dict(column.split("/") for column in columns if "/" in column)
        for yardstick in set(ratios.values()):
            graft = of_graft.get(case, {}).get(f"graft/{yardstick}")
            found = [columns.get(f"{peer}/{yardstick}") for peer in PEERS]
            work, shape, *rest = words(case)
            kind = " ".join(rest).replace("bfloat16", "bf16").replace("float", "f")
            lines.append([work, shape, kind, yardstick, us(columns, yardstick),
                          *(f"{float(ratio):.3f}" if ratio else "" for ratio in [graft, *found])])
    return table(["work", "shape", "kind", "over", "its µs", "Graft", *PEERS.values()], lines)


PEERS = {"torch": "PyTorch", "peft": "PEFT", "lorafusion": "LoRAFusion", "liger": "Liger"}
TABLES = {"products": products_table, "delta": delta_table,
          "delta_backward": delta_backward_table, "rows": rows_table, "mlx": mlx_table,
          "peers": peers_table}


def make(words_of_table):
    kind, *paths = words_of_table.split()
    return TABLES[kind](*(read_cases(ROOT / path) for path in paths))


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    sys.exit(check_or_fix("<!-- table: ", BLOCK, make,
                          "a table has no end",
                          "its tables are not those of its file: scripts/cuda_table.py --fix"))
