#!/usr/bin/env python3
"""Runs `graft-bench plan --quick` on the CPU and checks the form of what it writes: not how fast it
is. And that what cannot run, `--device gpu` and scripts/bench_metal.sh, says so.

usage: bench_plan_quick_test.py PROGRAM
"""

import csv
import math
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

PROGRAM = sys.argv.pop(1)
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_metal.sh"
ON_A_MAC = sys.platform == "darwin"

TIMES = ["unfused", "fused", "mlx", "fused_together", "mlx_together"]
LABELS = ["table", "op", "pass", "batch", "sequence", "in", "out", "rank", "dtype", "sets"]


def run(*command):
    return subprocess.run(command, check=False, capture_output=True, text=True)


def bench(*options):
    # One thread: those of a BLAS would spin against the tests that run beside this one.
    return run(PROGRAM, "plan", "--quick", "--rounds", "1", "--block-ms", "0.1",
               "--threads", "1", *options)


class BenchPlanQuick(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with tempfile.TemporaryDirectory() as scratch:
            table = Path(scratch) / "r.csv"
            cls.ran = bench("--device", "cpu", "--csv", str(table))
            lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
        cls.facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
        cls.rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))

    def test_it_runs(self):
        self.assertEqual(0, self.ran.returncode, self.ran.stderr)
        self.assertEqual(["device", "system", "versions", "date", "command"], list(self.facts))
        self.assertTrue(self.facts["device"].startswith("CPU "), self.facts)
        self.assertNotIn("/tmp", self.facts["command"])

    def test_both_tables_have_their_rows(self):
        kinds = {(row["table"], row["op"], row["pass"]) for row in self.rows}
        both = ("forward", "forward+backward")
        ops = ("lora_linear", "linear", "softmax", "rms_norm", "layer_norm")
        self.assertEqual({("plan", "lora_delta", "forward")} |
                         {("kernels", op, one) for op in ops for one in both}, kinds)
        # A decoder's single row is among them.
        self.assertEqual(set(ops), {row["op"] for row in self.rows if row["sequence"] == "1"})

    def test_every_row_has_every_column(self):
        for row in self.rows:
            self.assertNotIn(None, row, "a line with more columns than names")
            self.assertNotIn(None, row.values(), "a line with fewer columns than names")
            self.assertLessEqual(set(LABELS), set(row))
            for name in TIMES:
                self.check_time(row, name)
            self.assertGreaterEqual(int(row["together"]), 4)

    def check_time(self, row, name):
        measured = (name in ("mlx", "mlx_together") or
                    (row["table"] == "plan" if name == "unfused" else row["objection"] == ""))
        parts = [row[f"{name}_{part}"] for part in ("p10_us", "us", "p90_us")]
        if not measured:
            self.assertEqual(["", "", ""], parts, f"{name}: {row}")
            return
        low, middle, high = (float(part) for part in parts)
        self.assertTrue(0 < low <= middle <= high < math.inf, f"{name}: {row}")

    def test_every_op_runs_fused_on_the_cpu(self):
        for row in self.rows:
            self.assertEqual("", row["objection"], row)
            self.assertNotEqual("", row["of_mlx"], row)
        self.assertNotIn("did not run fused", self.ran.stdout)

    def test_ratios_are_those_of_the_medians(self):
        for row in self.rows:
            self.check_ratio(row, "speed_up", "unfused_us", "fused_us")
            self.check_ratio(row, "of_mlx", "fused_us", "mlx_us")
            self.check_ratio(row, "of_mlx_together", "fused_together_us", "mlx_together_us")

    def check_ratio(self, row, name, over, under):
        self.assertEqual(row[over] != "" and row[under] != "", row[name] != "", row)
        if row[name]:
            ratio = float(row[over]) / float(row[under])
            self.assertAlmostEqual(ratio, float(row[name]), delta=0.01 * ratio)

    def test_the_terminal_shows_the_tables(self):
        lines = self.ran.stdout.splitlines()
        self.assertTrue(any(line.startswith("1x128x512>512 ") for line in lines), lines)
        self.assertTrue(any(line.startswith("lora_linear f+b  16x64 ") for line in lines))
        self.assertTrue(any(line.startswith("speed-up ") for line in lines))

    def test_the_help_defines_its_columns(self):
        text = run(PROGRAM, "plan", "--help").stdout
        for words in ("three waits", "mx::compile", "6x to 10x", "95% to 110%", "made once"):
            self.assertIn(words, text)

    def test_a_false_flag_is_a_usage_error(self):
        self.assertEqual(2, bench("--device", "tpu").returncode)
        self.assertEqual(2, bench("--device", "cpu", "--rounds", "0").returncode)

    @unittest.skipIf(ON_A_MAC, "there may be a GPU")
    def test_no_gpu_is_one_clear_line(self):
        refused = bench("--device", "gpu")
        self.assertEqual(1, refused.returncode)
        self.assertEqual("", refused.stdout)
        self.assertRegex(refused.stderr, r"\Agraft-bench: --device gpu: [^\n]+\n\Z")

    @unittest.skipIf(ON_A_MAC, "it would run there")
    def test_the_script_needs_metal_and_says_so(self):
        refused = run("bash", str(SCRIPT))
        self.assertEqual(1, refused.returncode)
        self.assertEqual("", refused.stdout)
        self.assertRegex(refused.stderr, r"\Abench_metal: [^\n]+\n\Z")

    def test_a_false_name_of_the_script_is_a_usage_error(self):
        self.assertEqual(2, run("bash", str(SCRIPT), "--no-such-flag").returncode)


if __name__ == "__main__":
    unittest.main()
