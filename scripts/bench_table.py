#!/usr/bin/env python3
"""Writes the results of `graft-bench lora` as tables into documents.

The text between a line `<!-- table: KIND CSV... -->` and the next `<!-- end of table -->` is made
from those files alone. KIND is one of
    facts     the machine, versions and command
    linear    the base product against its peers; a file of scripts/bench_torch.py may stand among them
    delta     the adapter's contribution alone, unfused and fused
    lora      a layer with its adapter: unfused, fused, what it adds to the layer, and the floor
    dropout   the same, with dropout
    finetune  files of scripts/bench_finetune.py: each program's speed, and Graft's against it
    promises  files of scripts/check_speed.py: each ratio beside its target
    rows      files of scripts/bench_rows.py: softmax and the norms beside PyTorch and a copy
    before    dropout's cost before and after its bits were made fewer

Without --fix, exits with 1 if a document does not agree with its files.

usage: bench_table.py [--fix] DOCUMENT...
"""

import re
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from document_parts import ROOT, check_or_fix  # noqa: E402
from result_files import read_results  # noqa: E402

BLOCK = re.compile(r"(<!-- table: ([^\n]+?) -->\n)(.*?)(<!-- end of table -->\n)", re.DOTALL)
TORCH_DTYPES = {"float32": "f32", "bfloat16": "bf16"}
NOISE = 1.05  # what the medians of one run differ by: graft-bench's own measure of a bound


def torch_times(rows):
    """{(what, pass, rows, in, out, rank, dtype): µs}; forward+backward is the sum of both."""
    times = {}
    for row in rows:
        rank = "0" if row["op"] == "linear" else row["rank"]
        key = (row["op"], row["m"], row["k"], row["n"], rank, TORCH_DTYPES[row["dtype"]])
        times.setdefault(key, {})[row["direction"]] = float(row["median_us"])
    found = {}
    for (what, *rest), both in times.items():
        if "forward" in both:
            found[(what, "forward", *rest)] = both["forward"]
        if len(both) == 2:
            found[(what, "forward+backward", *rest)] = sum(both.values())
    return found


def torch_key(row):
    rows = str(int(row["batch"]) * int(row["sequence"]))
    return (row["what"], row["pass"], rows, row["in"], row["out"], row["rank"], row["dtype"])


def shape(row):
    return f"({row['batch']}, {row['sequence']}, {row['in']}) → {row['out']}"


def time_text(us):
    if us == "":
        return ""
    us = float(us)
    if us < 999.5:
        return f"{us:.1f} µs" if us < 99.95 else f"{us:.0f} µs"
    return f"{us / 1e3:.2f} ms" if us < 9995 else f"{us / 1e3:.1f} ms"


def percent(share):
    return f"{100 * float(share):+.1f} %" if share != "" else ""


def times(ratio):
    return f"{ratio:.2f}×"


def held(share, row):
    """The share of a limit, which nothing is above: else it is no limit, and no table may say so."""
    if share > NOISE:
        raise ValueError(f"a limit of {100 * share:.0f} % is none: {row}")
    return share


def bound(row):
    share = held(float(row["bound_us"]) / float(row["fused_us"]), row)
    return f"{time_text(row['bound_us'])} {row['bound']}, {100 * share:.0f} %"


def table(titles, rows):
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    return "".join(line + "\n" for line in lines + ["| " + " | ".join(row) + " |" for row in rows])


def facts_table(files):
    lines = []
    for facts, _ in files:
        lines += [f"- {name}: `{value}`\n" for name, value in facts]
        lines.append("\n")
    return "".join(lines).rstrip("\n") + "\n"


def linear_table(rows, torch):
    # A shape may be in several lists; its first row is enough.
    unique = {torch_key(row): row for row in reversed(rows) if row["what"] == "linear"}
    lines = []
    for key, row in reversed(unique.items()):
        fused = float(row["fused_us"])
        blas = float(row["blas_us"]) if row["blas_us"] else None
        peer = torch.get(key)
        lines.append([shape(row), row["dtype"], row["pass"], time_text(row["fused_us"]),
                      f"{float(row['gflops']):.0f}", f"{100 * held(float(row['peak_share']), row):.0f} %",
                      times(blas / fused) if blas else "", times(peer / fused) if peer else ""])
    return table(["x → out", "dtype", "pass", "Graft", "GFLOP/s", "of the peak", "against OpenBLAS",
                  "against PyTorch"], lines)


def delta_table(rows):
    return table(
        ["x → out", "rank", "pass", "unfused", "fused", "speed-up", "MLX", "Graft in MLX",
         "speed-up in MLX", "bound"],
        [[shape(row), row["rank"], row["pass"], time_text(row["unfused_us"]),
          time_text(row["fused_us"]), times(float(row["speed_up"])), time_text(row["mlx_us"]),
          time_text(row["eval_us"]), times(float(row["eval_speed_up"])), bound(row)]
         for row in rows if row["what"] == "lora_delta"])


def lora_table(rows, with_dropout):
    return table(
        ["x → out", "rank", "pass", "unfused", "fused", "speed-up", "MLX", "Graft in MLX",
         "speed-up in MLX", "adds", "floor", "bound"],
        [[shape(row), row["rank"], row["pass"], time_text(row["unfused_us"]),
          time_text(row["fused_us"]), times(float(row["speed_up"])), time_text(row["mlx_us"]),
          time_text(row["eval_us"]), times(float(row["eval_speed_up"])), percent(row["overhead"]),
          percent(row["floor"]), bound(row)]
         for row in rows
         if row["what"] == "lora_linear" and (float(row["dropout"]) > 0) == with_dropout])


def finetune_table(paths, files):
    lines = []
    for path, (facts, rows) in zip(paths, files):
        rates = {}
        for row in rows:
            rates.setdefault(row["program"], []).append(float(row["tokens_per_second"]))
        bound = dict(facts).get("bound")
        ours = statistics.median(rates["graft"])
        for program, all_rates in rates.items():
            median = statistics.median(all_rates)
            tenths = statistics.quantiles(all_rates, n=10, method="inclusive")
            lines.append([Path(path).stem, program, f"{median:.0f}",
                          f"{tenths[0]:.0f} to {tenths[-1]:.0f}", times(ours / median),
                          f"{100 * median / float(bound.split()[0]):.0f} %" if bound else ""])
    return table(["file", "program", "tokens/s", "10 to 90 %", "Graft against it", "of the bound"],
                 lines)


def promises_table(rows):
    verdicts = {"": "", "ok": "yes", "missed": "**no**"}
    return table(["promise", "measured", "target", "met"],
                 [[row["name"], row["value"], row["target"], verdicts[row["verdict"]]]
                  for row in rows])


def rows_table(rows):
    return table(
        ["rows × features", "dtype", "op", "pass", "Graft", "PyTorch", "of PyTorch's time",
         "of a copy's time"],
        [[f"{row['rows']} × {row['features']}", row["dtype"], row["op"], row["direction"],
          time_text(row["graft_us"]), time_text(row["torch_us"]), times(float(row["of_torch"])),
          times(float(row["of_copy"]))] for row in rows])


def before_table(rows):
    def spread(row, name):
        least, most = row[f"{name}_least"], row[f"{name}_most"]
        return f"+{row[name]} % ({least} to {most})"

    return table(["instruction set", "layer", "pass", "floor", "before", "after"],
                 [[row["isa"], row["layer"].replace(">", " → "), row["pass"],
                   f"+{row['floor']} %", spread(row, "before"), spread(row, "after")]
                  for row in rows])


ROW_TABLES = {"promises": promises_table, "rows": rows_table, "before": before_table}


def make(kind, paths):
    files = [read_results(ROOT / path) for path in paths]
    if kind in ROW_TABLES:
        return ROW_TABLES[kind]([row for _, file_rows in files for row in file_rows])
    if kind == "finetune":
        return finetune_table(paths, files)
    ours = [file for file in files if "peer" not in file[1][0]]
    rows = [row for _, file_rows in ours for row in file_rows]
    if kind == "facts":
        return facts_table(files)
    if kind == "linear":
        peers = [row for _, file_rows in files for row in file_rows if "peer" in row]
        return linear_table(rows, torch_times(peers))
    if kind == "delta":
        return delta_table(rows)
    if kind in ("lora", "dropout"):
        return lora_table(rows, kind == "dropout")
    raise ValueError(f"unknown kind of table: {kind}")


def main():
    def made_from(words):
        kind, *paths = words.split()
        return make(kind, paths)

    return check_or_fix("<!-- table:", BLOCK, made_from, broken="a table has no end",
                        stale="a table differs from its file; run scripts/bench_table.py --fix")


if __name__ == "__main__":
    sys.exit(main())
