#!/usr/bin/env python3
"""Writes what benchmarks/torch has measured as tables into documents.

The text between a line `<!-- table: KIND CSV... -->` and the next `<!-- end of table -->` is made
from these files alone. KIND is one of
    facts     where, when and with what
    cpu       layers on the CPU: what LoRA adds to nn.Linear, by PEFT's own forward and accelerated
    graph, eager, compiled    layers on a GPU, run so
    steps     training steps
    peaks     the memory of those on a GPU
    memory    the memory of those on the CPU
    calls     what the host takes for a call
    ecosystem trainers and quantizers: what ran fused, and how far from PEFT they end

Without --fix, exits with 1 if a document does not agree with its file.

usage: torch_table.py [--fix] DOCUMENT...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bench_table import BLOCK, facts_table, table  # noqa: E402
from cuda_table import read_cases, words  # noqa: E402
from result_files import read_results  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from document_parts import ROOT, check_or_fix  # noqa: E402


def short(text):
    return text.replace("bfloat16", "bf16").replace("float32", "f32").replace("dropout", "dropout ")


def added(columns, name):
    """`graft/linear`, a ratio, as what it adds."""
    ratio = columns.get(name)
    return f"{(float(ratio) - 1) * 100:+.1f} %" if ratio else ""


def cpu_table(cases):
    lines = []
    for case, columns in cases.items():
        if "floor/linear" in columns:
            work, shape, *kind = words(case)
            lines.append([work, shape, short(", ".join(kind)), columns["linear_us"],
                          added(columns, "peft/linear"), added(columns, "graft/linear"),
                          added(columns, "floor/linear"), added(columns, "graft_linear/linear"),
                          added(columns, "graft/graft_linear")])
    return table(["work", "rows × in → out", "rank, type", "`nn.Linear` µs", "PEFT", "accelerated",
                  "arithmetic", "Graft's own linear", "accelerated over that"], lines)


def layers_table(mode):
    titles = ["kernels alone µs"] if mode == "graph" else []

    def kernels(columns):
        return [columns.get("kernels_graph_us", "") for _ in titles]

    def make(cases):
        lines = []
        for case, columns in cases.items():
            if f"linear_{mode}_us" in columns:
                work, shape, *kind = words(case)
                lines.append([work, shape, short(", ".join(kind)), columns[f"linear_{mode}_us"],
                              columns.get(f"peft_{mode}_us", ""),
                              columns.get(f"graft_{mode}_us", ""), *kernels(columns),
                              added(columns, f"peft/linear_{mode}"),
                              added(columns, f"graft/linear_{mode}")])
        return table(["work", "rows × in → out", "rank, x, A", "`nn.Linear` µs", "PEFT µs",
                      "accelerated µs", *titles, "PEFT adds", "accelerated adds"], lines)
    return make


def model_of(case):
    """`step Llama-3.2-1B 16 layers 4096 tokens r16 eager dropout0.05`, as two cells."""
    _, model, layers, _, tokens, _, rank, *how = case.split()
    return [f"{model}, {layers} layers, {tokens} tokens, rank {rank[1:]}", short(", ".join(how))]


def steps_table(cases):
    lines = []
    for case, columns in cases.items():
        if case.startswith("step "):
            share = columns.get("graft_added/peft_added")
            peer = columns.get("axolotl_added/peft_added")
            lines.append([*model_of(case), *(columns.get(f"{name}_ms", "")
                                             for name in ("floor", "peft", "graft", "axolotl")),
                          added(columns, "peft/floor"), added(columns, "graft/floor"),
                          f"{float(share):.2f}" if share else "",
                          f"{float(peer):.2f}" if peer else ""])
    return table(["model", "how", "without LoRA ms", "PEFT ms", "accelerated ms", "axolotl ms",
                  "PEFT adds", "accelerated adds", "of what PEFT adds", "axolotl of it"], lines)


def gigabytes(columns, name):
    return f"{float(columns[name]) / 1e3:.1f}" if name in columns else ""


def peaks_table(cases):
    return table(["model", "how", "without LoRA GB", "PEFT GB", "accelerated GB", "axolotl GB"],
                 [[*model_of(case), *(gigabytes(columns, f"{name}_peak_mb")
                                      for name in ("floor", "peft", "graft", "axolotl"))]
                  for case, columns in cases.items() if case.startswith("step ")])


def memory_table(cases):
    names = ("floor", "peft", "graft")
    return table(["model", "how", *(f"{name} {what} GB" for what in ("held", "at most")
                                    for name in ("without LoRA", "PEFT", "accelerated"))],
                 [[*model_of(case), *(gigabytes(columns, f"{name}_{what}_mb")
                                      for what in ("resident", "peak") for name in names)]
                  for case, columns in cases.items() if case.startswith("memory ")])


def calls_table(cases):
    lines = []
    for case, columns in cases.items():
        if case.startswith("call "):
            _, work, shape, *kind = case.split()
            bare = columns.get("linear_host_us", columns.get("composed_host_us", ""))
            lines.append([work, shape.replace("x", " × ").replace(">", " → "), short(", ".join(kind)),
                          columns.get("torch_add_host_us", ""), bare,
                          columns.get("peft_host_us", ""), columns["graft_host_us"]])
    return table(["work", "shape", "rank, type", "`torch.add` µs", "`nn.Linear` µs, or composed",
                  "PEFT µs", "accelerated µs"], lines)


def ecosystem_table(rows):
    names = ("result", "steps", "fused", "by_peft", "loss", "adapter", "limit")
    return table(["case", "result", "steps", "calls fused", "by PEFT", "losses apart by",
                  "adapters apart by", "limit"],
                 [[short(row["case"].replace("_", " ")), *(row[name] for name in names)]
                  for row in rows])


TABLES = {"cpu": cpu_table, "steps": steps_table, "peaks": peaks_table, "memory": memory_table,
          "calls": calls_table, **{mode: layers_table(mode) for mode in ("graph", "eager", "compiled")}}


def make(words_of_table):
    kind, *paths = words_of_table.split()
    if kind == "facts":
        return facts_table([read_results(ROOT / path) for path in paths])
    if kind == "ecosystem":
        return ecosystem_table([row for path in paths for row in read_results(ROOT / path)[1]])
    return TABLES[kind](*(read_cases(ROOT / path) for path in paths))


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    sys.exit(check_or_fix("<!-- table: ", BLOCK, make,
                          "a table has no end",
                          "its tables are not those of its file: scripts/torch_table.py --fix"))
