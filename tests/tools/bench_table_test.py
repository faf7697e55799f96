"""The tables of docs/BENCHMARKS.md are those of their files, and a drift is seen."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "bench_table.py"
DOCUMENT = ROOT / "docs" / "BENCHMARKS.md"

sys.path.insert(0, str(ROOT / "scripts"))
import bench_table  # noqa: E402
import result_files  # noqa: E402


def run(document, *options):
    return subprocess.run([sys.executable, SCRIPT, *options, document], check=False,
                          capture_output=True, text=True)


class BenchTable(unittest.TestCase):
    def test_the_document_agrees_with_its_files(self):
        result = run(DOCUMENT)
        self.assertEqual(0, result.returncode, result.stdout)

    def test_a_changed_figure_is_seen_and_mended(self):
        text = DOCUMENT.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as scratch:
            document = Path(scratch) / "document.md"
            document.write_text(text.replace(" µs |", " ns |", 1), encoding="utf-8")
            self.assertEqual(1, run(document).returncode)
            self.assertEqual(0, run(document, "--fix").returncode)
            self.assertEqual(text, document.read_text(encoding="utf-8"))

    def test_a_table_without_an_end_is_seen(self):
        with tempfile.TemporaryDirectory() as scratch:
            document = Path(scratch) / "document.md"
            document.write_text("<!-- table: facts a.csv -->\n", encoding="utf-8")
            self.assertEqual(1, run(document).returncode)

    def test_pytorch_counts_both_directions(self):
        row = {"op": "linear", "m": "512", "k": "576", "n": "192", "rank": "16",
               "dtype": "bfloat16"}
        times = bench_table.torch_times([{**row, "direction": "forward", "median_us": "10"},
                                         {**row, "direction": "backward", "median_us": "15"}])
        ours = {"what": "linear", "batch": "4", "sequence": "128", "in": "576", "out": "192",
                "rank": "0", "dtype": "bf16"}
        self.assertEqual(10.0, times[bench_table.torch_key({**ours, "pass": "forward"})])
        self.assertEqual(25.0, times[bench_table.torch_key({**ours, "pass": "forward+backward"})])


def row(fused, bound, peak_share="0.5"):
    """Of a linear."""
    return {"what": "linear", "pass": "forward", "batch": "1", "sequence": "128", "in": "512",
            "out": "512", "rank": "0", "dtype": "f32", "fused_us": fused, "blas_us": "",
            "gflops": "400", "peak_share": peak_share, "bound": "traffic", "bound_us": bound}


class Bounds(unittest.TestCase):
    def test_what_a_time_beats_is_no_bound(self):
        self.assertEqual("10.4 µs traffic, 104 %", bench_table.bound(row("10.0", "10.4")))
        for bound in ("10.6", "16.3", "inf"):
            with self.assertRaises(ValueError):
                bench_table.bound(row("10.0", bound))

    def test_nothing_is_faster_than_the_peak(self):
        self.assertIn(" 104 % ", bench_table.linear_table([row("10.0", "5.0", "1.04")], {}))
        with self.assertRaises(ValueError):
            bench_table.linear_table([row("10.0", "5.0", "1.33")], {})

    def test_no_file_has_a_row_that_beats_its_bound(self):
        checked = 0
        for path in sorted((ROOT / "benchmarks" / "results").glob("*.csv")):
            for found in bench_table.read_results(path)[1]:
                if "bound_us" in found:
                    bench_table.bound(found)
                    bench_table.held(float(found["peak_share"]), found)
                    checked += 1
        self.assertGreater(checked, 400)


class ResultFiles(unittest.TestCase):
    def test_parts_are_put_together(self):
        parts = [([("device", "a"), ("date", "1"), ("command", "x")], [{"n": "1"}]),
                 ([("device", "a"), ("date", "2"), ("command", "y")], [{"n": "2"}, {"n": "3"}])]
        with tempfile.TemporaryDirectory() as scratch:
            paths = [Path(scratch) / name for name in ("out.csv", "0.csv", "1.csv")]
            for path, part in zip(paths[1:], parts):
                result_files.write_results(path, *part)
            subprocess.run([sys.executable, ROOT / "scripts" / "result_files.py", *paths],
                           check=True)
            self.assertEqual(([("device", "a"), ("date", "1"), ("date", "2"), ("command", "x"),
                               ("command", "y")], [{"n": "1"}, {"n": "2"}, {"n": "3"}]),
                             result_files.read_results(paths[0]))

    def test_other_columns_are_refused(self):
        with self.assertRaises(ValueError):
            result_files.merged([([], [{"n": "1"}]), ([], [{"m": "1"}])])


if __name__ == "__main__":
    unittest.main()
