#!/usr/bin/env python3
"""Runs `graft-bench lora --quick` and checks the form of what it writes: not how fast it is.

usage: bench_quick_test.py PROGRAM
"""

import csv
import math
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree
from pathlib import Path

PROGRAM = sys.argv.pop(1)


def bench(*options):
    # One thread: those of a BLAS would spin against the tests that run beside this one.
    command = [PROGRAM, "lora", "--quick", "--rounds", "1", "--block-ms", "0.1",
               "--threads", "1", *options]
    return subprocess.run(command, check=False, capture_output=True, text=True)


class BenchQuick(unittest.TestCase):
    def results(self, dtype):
        with tempfile.TemporaryDirectory() as scratch:
            table, plot = Path(scratch) / "r.csv", Path(scratch) / "r.svg"
            run = bench("--dtype", dtype, "--csv", str(table), "--svg", str(plot))
            self.assertEqual(0, run.returncode, run.stderr)
            xml.etree.ElementTree.parse(plot)
            lines = table.read_text(encoding="utf-8").splitlines()
        facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
        self.assertEqual(["device", "isa", "versions", "date", "command", "limits"], list(facts))
        self.assertNotIn("/tmp", facts["command"])
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
        # What stands in the file, and in the table on the terminal.
        self.assertIn(f"{rows[0]['batch']}x{rows[0]['sequence']}x{rows[0]['in']}", run.stdout)
        return rows

    def check(self, dtype):
        rows = self.results(dtype)
        kinds = {(row["what"], row["pass"], float(row["dropout"]) > 0) for row in rows}
        passes = ("forward", "forward+backward")
        self.assertEqual(
            {(what, one, False) for what in ("linear", "lora_delta", "lora_linear")
             for one in passes} | {("lora_linear", one, True) for one in passes}, kinds)
        for row in rows:
            self.assertNotIn(None, row, "a line with more columns than names")
            self.assertNotIn(None, row.values(), "a line with fewer columns than names")
            self.assertEqual(dtype, row["dtype"])
            # OpenBLAS multiplies float32 only, and drops nothing.
            peer = dtype == "f32" and float(row["dropout"]) == 0
            self.check_times(row, ["fused", "eval", "mlx"] + (["blas"] if peer else []))
            self.assertEqual(peer, row["blas_us"] != "")
            self.check_derived(row)

    def check_times(self, row, names):
        for name in names:
            low, middle, high = (float(row[f"{name}_{part}"]) for part in ("p10_us", "us", "p90_us"))
            self.assertTrue(0 < low <= middle <= high < math.inf, f"{name}: {row}")

    def check_derived(self, row):
        times = [float(row[name]) for name in ("blas_us", "mlx_us") if row[name]]
        fused = float(row["fused_us"])
        self.assertEqual(min(times), float(row["unfused_us"]))
        self.assertAlmostEqual(min(times) / fused, float(row["speed_up"]), delta=1e-2 * min(times))
        self.assertIn(row["bound"], ("fma", "traffic", "launch"))
        self.assertEqual(row["what"] == "lora_linear", row["overhead"] != "")
        if row["overhead"]:
            base = float(row["base_us"])
            self.assertAlmostEqual(fused / base - 1, float(row["overhead"]), delta=0.02)
            rank, wide, tall = (int(row[name]) for name in ("rank", "in", "out"))
            floor = rank * (wide + tall) / (wide * tall)
            times_base = 1.0 if row["pass"] == "forward" else 1.5
            self.assertAlmostEqual(floor * times_base, float(row["floor"]), places=4)

    def test_float32(self):
        self.check("f32")

    def test_bfloat16(self):
        self.check("bf16")

    def test_a_filter_that_finds_nothing_says_what_it_looks_into(self):
        run = bench("--filter", "no-such-word")
        self.assertEqual(1, run.returncode)
        self.assertIn("plan linear forward", run.stderr)

    def test_a_false_flag_is_a_usage_error(self):
        self.assertEqual(2, bench("--dtype", "f8").returncode)


if __name__ == "__main__":
    unittest.main()
