#!/usr/bin/env python3
"""What `graft-bench` says of itself and how it refuses: as `graft` does, with its own name.

usage: bench_usage_test.py PROGRAM
"""

import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "graft"))
import usage_test  # noqa: E402
from usage_test import run  # noqa: E402


class Values(usage_test.ValuesCase, unittest.TestCase):
    NEEDED = {"lora": ["--filter", "nosuchcase"], "rows": ["1", "16"]}
    DEFAULTS, NUMBERS = 10, 10


class Usage(unittest.TestCase):
    def test_help_of_every_command(self):
        self.assertEqual([["lora"], ["plan"], ["rows"]], usage_test.all_commands())
        for words in ([], ["lora"], ["plan"], ["rows"]):
            result = run(*words, "--help")
            self.assertEqual((0, ""), (result.returncode, result.stderr))
            self.assertIn(" ".join(["Usage: graft-bench", *words]), result.stdout)
            self.assertLessEqual(max(map(len, result.stdout.splitlines())), 80, words)

    def test_version_is_that_of_the_tree(self):
        header = Path(__file__).resolve().parents[2] / "include" / "graft" / "version.h"
        parts = [line.split()[2] for line in header.read_text(encoding="utf-8").splitlines()
                 if line.startswith("#define GRAFT_VERSION_") and len(line.split()) == 3][:3]
        self.assertEqual(".".join(parts) + "\n", run("--version").stdout)

    def test_wrong_words_are_usage_errors(self):
        for words in ([], ["fly"], ["bench", "lora"], ["rows", "4"], ["rows", "0", "64"],
                      ["rows", "4", "64", "--dtype", "float32"], ["plan", "--device", "tpu"]):
            result = run(*words)
            self.assertEqual((2, ""), (result.returncode, result.stdout), words)
            self.assertRegex(result.stderr, r"\Agraft-bench: [^\n]+\n\Z")

    def test_lost_output_is_an_error(self):
        for words in (["--help"], ["rows", "1", "16", "--milliseconds", "0.1"]):
            with open("/dev/full", "w", encoding="utf-8") as full:
                result = subprocess.run([usage_test.PROGRAM, *words], stdout=full,
                                        stderr=subprocess.PIPE, text=True, check=False)
            self.assertEqual(1, result.returncode, words)
            self.assertRegex(result.stderr, r"\Agraft-bench: the output [^\n]+\n\Z")


class Rows(unittest.TestCase):
    def test_has_a_line_for_each_operation(self):
        for dtype in ("f32", "bf16"):
            result = run("rows", "4", "64", "--dtype", dtype, "--milliseconds", "0.1",
                         "--threads", "1")
            self.assertEqual((0, ""), (result.returncode, result.stderr))
            lines = [line.split(",") for line in result.stdout.splitlines()]
            expected = [(op, direction) for op in ("softmax", "layer_norm", "rms_norm")
                        for direction in ("forward", "backward")]
            expected += [("copy", "forward"), ("memcpy", "forward")]
            self.assertEqual(expected, [tuple(line[:2]) for line in lines])
            for line in lines:
                self.assertEqual([dtype, "4", "64"], line[2:5])
                median, low, high = map(float, line[5:])
                self.assertTrue(0 <= low <= median <= high, line)


if __name__ == "__main__":
    usage_test.PROGRAM = sys.argv.pop(1)
    unittest.main()
