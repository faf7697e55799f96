"""The include check must find what it is there to find."""

import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import check_includes  # noqa: E402


class CheckIncludes(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.root = Path(scratch.name).resolve()
        for header in ("include/graft/lora.h", "src/lora/cpu.h", "hosts/mlx/lora.h"):
            self.write(header, "")

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def faults_of(self, path, text):
        self.write(path, text)
        return list(check_includes.faults(self.root))

    def test_lets_the_arrows_pass(self):
        self.assertEqual([], self.faults_of("src/lora/lora.cc",
                                            '#include "graft/lora.h"\n#include "lora/cpu.h"\n'))
        self.assertEqual([], self.faults_of("hosts/mlx/lora.cc",
                                            '#include <mlx/mlx.h>\n#include "graft/mlx/lora.h"\n'))
        self.assertEqual([], self.faults_of("apps/graft/main.cc",
                                            '#include "graft/mlx/lora.h"\n#include <string>\n'))

    def test_finds_a_host_that_includes_the_rooms(self):
        faults = self.faults_of("hosts/mlx/lora.cc", '\n#include "lora/cpu.h"\n')
        self.assertEqual(["hosts/mlx/lora.cc:2: hosts/ may not include src/ (lora/cpu.h)"], faults)

    def test_finds_a_relative_way_around(self):
        self.assertEqual(1, len(self.faults_of("apps/graft/main.cc",
                                               '#  include "../../src/lora/cpu.h"\n')))

    def test_finds_a_room_that_includes_a_host(self):
        self.assertEqual(1, len(self.faults_of("src/lora/lora.cc", '#include "graft/mlx/lora.h"\n')))

    def test_finds_a_public_header_that_includes_a_room(self):
        self.assertEqual(1, len(self.faults_of("include/graft/a.h", '#include "lora/cpu.h"\n')))

    def test_finds_a_framework_in_the_core(self):
        self.assertEqual(1, len(self.faults_of("src/lora/lora.cc", "#include <mlx/array.h>\n")))


if __name__ == "__main__":
    unittest.main()
