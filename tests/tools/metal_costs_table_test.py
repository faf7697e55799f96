"""The tables of docs/metal.md are those of their file, and a drift is seen."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "metal_costs_table.py"
DOCUMENT = ROOT / "docs" / "metal.md"

sys.path.insert(0, str(ROOT / "scripts"))
import metal_costs_table  # noqa: E402


def run(document, *options):
    return subprocess.run([sys.executable, SCRIPT, *options, document], check=False,
                          capture_output=True, text=True)


def row(**changes):
    values = {"op": "lora_delta", "direction": "forward", "batch": "1", "sequence": "32",
              "in": "512", "out": "512", "rank": "8", "launches": "1", "kernels": "1",
              "unfused_launches": "3", "bytes": "165456", "unfused_bytes": "296960",
              "asked_bytes": "740000", "flops": "524288", "least_flops": "524288",
              "threadgroup_bytes": "256"}
    return {**values, **changes}


class MetalCostsTable(unittest.TestCase):
    def test_the_document_agrees_with_its_file(self):
        result = run(DOCUMENT)
        self.assertEqual(0, result.returncode, result.stdout)

    def test_a_changed_figure_is_seen_and_mended(self):
        text = DOCUMENT.read_text(encoding="utf-8")
        changed = text.replace(" MB |", " GB |", 1)
        self.assertTrue(text != changed)
        with tempfile.TemporaryDirectory() as scratch:
            document = Path(scratch) / "document.md"
            document.write_text(changed, encoding="utf-8")
            self.assertEqual(1, run(document).returncode)
            self.assertEqual(0, run(document, "--fix").returncode)
            self.assertEqual(text, document.read_text(encoding="utf-8"))

    def test_amounts_have_three_digits(self):
        sizes = {0: "0 B", 999: "999 B", 1000: "1.00 kB", 99949: "99.9 kB", 99950: "100 kB",
                 999400: "999 kB", 999600: "1.00 MB", 12345678: "12.3 MB", 5e12: "5000 GB"}
        for value, text in sizes.items():
            self.assertEqual(text, metal_costs_table.size(value))

    def test_copies_are_told_from_kernels(self):
        text = metal_costs_table.delta_table([row(launches="3")])
        self.assertIn("| (1, 32, 512) | 8 | 1 + 2 of 3 | 165 kB | 297 kB | 740 kB |", text)

    def test_each_table_has_its_rows(self):
        decode = row(sequence="1")
        plan = [row(batch=batch, sequence=sequence, rank=rank, op=op, least_flops=flops)
                for batch, sequence in metal_costs_table.KERNELS_SHAPES
                for op, rank, flops in [("lora_delta", "8", "524288"), ("lora_delta", "4", "1"),
                                        ("softmax", "0", "0")]]
        count = {kind: make(plan + [decode]).count("\n") - 2
                 for kind, make in metal_costs_table.TABLES.items()}
        self.assertEqual({"delta": 6, "kernels": 2, "decode": 1}, count)


if __name__ == "__main__":
    unittest.main()
