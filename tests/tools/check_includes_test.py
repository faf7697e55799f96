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
        for header in ("include/graft/lora.h", "src/lora/cpu.h", "src/linear/cpu.h", "src/checks.h",
                       "src/backend/table.h", "src/weight/weight.h", "src/product/cpu/run.h",
                       "hosts/mlx/lora.h"):
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

    def test_finds_a_host_that_includes_another(self):
        self.assertEqual(1, len(self.faults_of("hosts/torch/lora.cc", '#include "graft/mlx/lora.h"\n')))
        self.assertEqual(1, len(self.faults_of("hosts/torch/lora.cc", '#include "../mlx/lora.h"\n')))

    def test_finds_what_is_not_of_torchs_stable_interface(self):
        for header in ("ATen/ATen.h", "torch/extension.h", "c10/util/Half.h", "Python.h"):
            self.assertEqual(1, len(self.faults_of("hosts/torch/lora.cc", f"#include <{header}>\n")))
        self.assertEqual([], self.faults_of("hosts/torch/lora.cc",
                                            "#include <torch/csrc/stable/tensor.h>\n"))

    def test_finds_a_relative_way_around(self):
        self.assertEqual(1, len(self.faults_of("apps/graft/main.cc",
                                               '#  include "../../src/lora/cpu.h"\n')))

    def test_finds_a_program_that_includes_what_measures_it(self):
        self.write("apps/graft/help.h", "")
        self.write("benchmarks/graft_bench/timing.h", "")
        self.assertEqual([], self.faults_of("benchmarks/graft_bench/main.cc",
                                            '#include "apps/graft/help.h"\n'))
        self.assertEqual(1, len(self.faults_of("apps/graft/main.cc",
                                               '#include "benchmarks/graft_bench/timing.h"\n')))

    def test_lets_the_benchmark_of_cuda_alone_look_inside(self):
        line = '#include "lora/cpu.h"\n'
        self.assertEqual([], self.faults_of("benchmarks/cuda/run.cc", line))
        self.assertEqual(1, len(self.faults_of("benchmarks/graft_bench/run.cc", line)))

    def test_finds_a_room_that_includes_a_host(self):
        self.assertEqual(1, len(self.faults_of("src/lora/lora.cc", '#include "graft/mlx/lora.h"\n')))

    def test_finds_a_public_header_that_includes_a_room(self):
        self.assertEqual(1, len(self.faults_of("include/graft/a.h", '#include "lora/cpu.h"\n')))

    def test_lets_rooms_include_what_is_shared(self):
        shared = ("checks.h", "backend/table.h", "weight/weight.h", "product/cpu/run.h")
        text = "".join(f'#include "{name}"\n' for name in shared)
        self.assertEqual([], self.faults_of("src/lora/lora.cc", text))
        self.assertEqual([], self.faults_of("src/product/cpu/run.cc", text))
        self.assertEqual([], self.faults_of("src/weight/weight.cc",
                                            '#include "backend/table.h"\n#include "checks.h"\n'))
        self.assertEqual([], self.faults_of("src/backend/table.cc",
                                            '#include "backend/table.h"\n#include "checks.h"\n'))

    def test_finds_a_room_that_includes_another(self):
        faults = self.faults_of("src/lora/lora.cc", '#include "linear/cpu.h"\n')
        self.assertEqual(["src/lora/lora.cc:1: src/lora may not include src/linear/ (linear/cpu.h)"],
                         faults)

    def test_finds_a_room_below_the_rooms(self):
        for file in ("src/backend/cpu/a.cc", "src/product/a.cc", "src/weight/a.cc", "src/a.cc"):
            faults = self.faults_of(file, '#include "linear/cpu.h"\n')
            self.assertEqual(1, sum(fault.startswith(file) for fault in faults), file)

    def test_finds_a_back_end_that_includes_what_stands_on_it(self):
        self.assertEqual(2, len(self.faults_of(
            "src/backend/a.cc", '#include "weight/weight.h"\n#include "product/cpu/run.h"\n')))

    def test_finds_a_weight_that_includes_what_reads_it(self):
        faults = self.faults_of("src/weight/a.cc", '#include "product/cpu/run.h"\n')
        self.assertEqual(
            ["src/weight/a.cc:1: src/weight may not include src/product/ (product/cpu/run.h)"],
            faults)

    def test_finds_a_framework_in_the_core(self):
        self.assertEqual(1, len(self.faults_of("src/lora/lora.cc", "#include <mlx/array.h>\n")))


if __name__ == "__main__":
    unittest.main()
