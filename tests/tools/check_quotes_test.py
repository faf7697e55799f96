"""The quote check must see a quote that has drifted from its file."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECK = ROOT / "tools" / "check_quotes.py"
QUOTED = "examples/core/main.cc"


class CheckQuotes(unittest.TestCase):
    def run_check(self, text, *options):
        with tempfile.TemporaryDirectory() as scratch:
            document = Path(scratch) / "document.md"
            document.write_text(text, encoding="utf-8")
            result = subprocess.run([sys.executable, CHECK, *options, document], check=False,
                                    capture_output=True)
            return result.returncode, document.read_text(encoding="utf-8")

    def document(self, body):
        return f"Before.\n\n<!-- quote: {QUOTED} -->\n```cpp\n{body}```\nAfter.\n"

    def test_an_equal_quote_passes(self):
        text = self.document((ROOT / QUOTED).read_text(encoding="utf-8"))
        self.assertEqual(0, self.run_check(text)[0])

    def test_a_changed_quote_fails_and_fix_mends_it(self):
        text = self.document((ROOT / QUOTED).read_text(encoding="utf-8").replace("2.0f", "3.0f"))
        self.assertEqual(1, self.run_check(text)[0])
        _, mended = self.run_check(text, "--fix")
        self.assertEqual(0, self.run_check(mended)[0])

    def test_a_quote_without_its_block_fails(self):
        self.assertEqual(1, self.run_check(f"<!-- quote: {QUOTED} -->\nno block\n")[0])


if __name__ == "__main__":
    unittest.main()
