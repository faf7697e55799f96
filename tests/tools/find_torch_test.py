"""cmake/GraftTorch.cmake must find torch where pip would, and say what to do where it can't be used."""

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = f"""cmake_minimum_required(VERSION 3.22)
project(find_torch LANGUAGES NONE)
include({ROOT}/cmake/GraftTorch.cmake)
message(STATUS "cuda: ${{GRAFT_CUDA}}")
"""


@unittest.skipIf(sys.version_info < (3, 10), "the package is for Python 3.10 and later")
class FindTorch(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.root = Path(scratch.name).resolve()
        (self.root / "CMakeLists.txt").write_text(PROJECT, encoding="utf-8")

    def torch(self, version, libraries=("torch_cpu",), header=True):
        """A folder with as much of torch as is looked at."""
        folder = self.root / f"site-{version}" / "torch"
        (folder / "lib").mkdir(parents=True)
        (folder / "version.py").write_text(f"__version__ = '{version}+cu130'\n", encoding="utf-8")
        if header:
            (folder / "include/torch/headeronly").mkdir(parents=True)
            lines = [f"#define TORCH_VERSION_{part} {number}\n"
                     for part, number in zip(("MAJOR", "MINOR", "PATCH"), version.split("."))]
            (folder / "include/torch/headeronly/version.h").write_text("".join(lines), encoding="utf-8")
        for name in libraries:
            (folder / f"lib/lib{name}.so").touch()
        return folder

    def configure(self, *options, **environment):
        """(whether CMake took it, what it printed with its line breaks undone)."""
        done = subprocess.run(
            ["cmake", "-S", self.root, "-B", self.root / "build", f"-DPython_EXECUTABLE={sys.executable}",
             "-DCMAKE_FIND_LIBRARY_SUFFIXES=.so", "-DCMAKE_FIND_LIBRARY_PREFIXES=lib", *options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            env={**os.environ, **environment})
        return done.returncode == 0, " ".join(done.stdout.split())

    def test_finds_it_on_the_path_and_where_it_is_told(self):
        folder = self.torch("2.10.0")
        for options, environment in (([], {"PYTHONPATH": str(folder.parent)}),
                                     ([f"-DTORCH_ROOT={folder}"], {})):
            found, printed = self.configure(*options, **environment)
            self.assertTrue(found, printed)
            self.assertIn(f"Found torch 2.10.0: {folder}", printed)

    def test_says_what_to_do_with_one_that_is_too_old(self):
        for version, header in (("2.9.1", True), ("2.4.0", False)):
            found, printed = self.configure(f"-DTORCH_ROOT={self.torch(version, header=header)}")
            self.assertFalse(found, printed)
            self.assertIn(f"torch {version} in {self.root}/site-{version}/torch is too old", printed)
            self.assertIn("Install torch 2.10 or later", printed)

    def test_says_what_to_do_without_one(self):
        for folder in (self.root, self.torch("2.11.0", libraries=())):
            found, printed = self.configure(f"-DTORCH_ROOT={folder}")
            self.assertFalse(found, printed)
            self.assertRegex(printed, "GRAFT_TORCH: there is no (torch|libtorch_cpu) in")
            self.assertIn("--no-build-isolation", printed)

    def test_one_without_cuda_leaves_out_kernels_that_are_not_asked_for(self):
        plain, cuda = self.torch("2.11.0"), self.torch("2.10.0", libraries=("torch_cpu", "torch_cuda"))
        for folder, wanted, expected in ((plain, "AUTO", "OFF"), (plain, "ON", "ON"), (cuda, "AUTO", "AUTO")):
            found, printed = self.configure(f"-DTORCH_ROOT={folder}", f"-DGRAFT_CUDA={wanted}")
            self.assertTrue(found, printed)
            self.assertIn(f"cuda: {expected}", printed)


if __name__ == "__main__":
    unittest.main()
