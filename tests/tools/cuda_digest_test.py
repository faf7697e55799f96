"""Which files cuda_digest.py takes, and when figures are of other kernels."""

import contextlib
import io
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tools"))
import cuda_digest  # noqa: E402


class Digest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root, before = Path(folder.name), cuda_digest.ROOT
        self.addCleanup(setattr, cuda_digest, "ROOT", before)
        cuda_digest.ROOT = self.root
        for name in ("src/lora/cuda.cu", "src/lora/cpu.cc", "src/product/cuda/tile.cuh"):
            self.write(name, name)

    def write(self, name, text):
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text, encoding="utf-8")

    def check(self):
        with contextlib.redirect_stdout(io.StringIO()) as told:
            return cuda_digest.check(), told.getvalue()

    def test_kernels_change_it_and_other_files_do_not(self):
        first = cuda_digest.digest()
        self.write("src/lora/cpu.cc", "changed")
        self.assertEqual(first, cuda_digest.digest())
        self.write("src/product/cuda/tile.cuh", "changed")
        self.assertNotEqual(first, cuda_digest.digest())

    def test_a_renamed_kernel_changes_it(self):
        first = cuda_digest.digest()
        (self.root / "src/lora/cuda.cu").rename(self.root / "src/lora/cuda.cc")
        self.assertNotEqual(first, cuda_digest.digest())

    def test_figures_of_other_kernels_are_a_fault(self):
        self.write("benchmarks/results/cuda-h200.csv", f"# kernels: {cuda_digest.digest()}\n1,2\n")
        self.assertEqual(0, self.check()[0])
        self.write("src/lora/cuda.cu", "changed")
        status, told = self.check()
        self.assertEqual(1, status)
        self.assertIn("benchmarks/results/cuda-h200.csv", told)


if __name__ == "__main__":
    unittest.main()
