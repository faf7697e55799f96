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


if __name__ == "__main__":
    unittest.main()
