"""The package itself: what info() says, and what happens where it can't be used."""

import importlib
import pathlib
import pickle
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import torch

import graft_lora
from graft_lora import library
from graft_lora.errors import GraftImportError, check_torch

PACKAGE = pathlib.Path(graft_lora.__file__).parent
CPU, CUDA = "libgraft_torch_cpu.so", "libgraft_torch_cuda.so"


def run(code):
    """What Python prints of `code`; it must come to its end."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tempfile.gettempdir(),
    )
    if done.returncode != 0:
        raise AssertionError(f"exit status {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


# Prints what importing the package says, from each of `folders` in turn.
IMPORT = """
for folder in folders:
    for name in [name for name in sys.modules if name.startswith("graft_lora")]:
        del sys.modules[name]
    sys.path.insert(0, folder)
    try:
        import graft_lora
    except ImportError as error:
        print(*(kind.__name__ for kind in type(error).__mro__[:2]), getattr(error, "code", ""), error)
    else:
        print("imported", graft_lora.info().replace("\\n", " | "))
    sys.path.remove(folder)
"""


class Copied(unittest.TestCase):
    """Copies of the package in folders of their own."""

    def copy(self, cpu=None, cuda=None, torch_module=None):
        """A folder with a copy of the package: with what it has for libraries, and for torch."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        package = pathlib.Path(folder.name, "graft_lora")
        package.mkdir()
        for file in PACKAGE.glob("*.py"):
            shutil.copy(file, package)
        if (bundled := PACKAGE.with_name("graft_lora.libs")).exists():  # in a wheel: what Linux may lack
            shutil.copytree(bundled, package.with_name(bundled.name))
        for name, content in ((CPU, cpu), (CUDA, cuda), ("../torch.py", torch_module)):
            if content is not None:
                (package / name).write_bytes(content)
        return folder.name

    def printed(self, folders, before=""):
        lines = run(f"folders = {folders}\n{before}\n{IMPORT}").splitlines()
        self.assertEqual(len(lines), len(folders), lines)
        return lines

    def test_without_a_torch_that_serves(self):
        (line,) = self.printed([self.copy()], before="sys.modules['torch'] = None")
        self.assertTrue(line.startswith("GraftImportError GraftError unsupported "), line)
        self.assertIn("needs torch 2.10 or later, and there is none here: pip install torch", line)
        for version in ("2.9.1+cu128", "1.13.0"):
            (line,) = self.printed([self.copy(torch_module=f"__version__ = '{version}'".encode())])
            self.assertTrue(line.startswith("GraftImportError GraftError unsupported "), line)
            self.assertIn(f"this is torch {version}: pip install --upgrade torch", line)
        for version in ("2.10.0", "2.10.0a0+git1234", "2.11.0+cu130", "3.0"):
            check_torch(version)

    def test_a_torch_that_is_broken_speaks_for_itself(self):
        (line,) = self.printed([self.copy(torch_module=b"import no_such_package")])
        self.assertTrue(line.startswith("ModuleNotFoundError"), line)
        self.assertIn("no_such_package", line)

    def test_libraries_that_cannot_be_loaded(self):
        good = library._find(CPU).read_bytes()
        machine = 62 if struct.unpack("<H", good[18:20])[0] == 183 else 183
        cases = [
            (None, [CPU, "broken installation", "pip install"]),
            (b"", ["is damaged", "pip install"]),
            (b"not a library at all, but a text", ["is damaged", "pip install"]),
            (
                good[:18] + struct.pack("<H", machine) + good[20:],
                [f"is for {library._MACHINES[machine]}, and this is {platform.machine()}", "build it"],
            ),
            (
                good.replace(b"\0libc.so.6\0", b"\0libZ.so.6\0"),
                ["libZ.so.6: cannot open shared object file", "Install the package again"],
            ),
        ]
        folders = [self.copy(cpu=content) for content, _ in cases]
        for folder, (_, words), line in zip(folders, cases, self.printed(folders)):
            self.assertTrue(line.startswith("GraftImportError GraftError unsupported "), line)
            for word in [folder, *words]:
                self.assertIn(word, line)

    def test_a_second_copy_and_cuda_kernels_that_cannot_be_loaded(self):
        good = library._find(CPU).read_bytes()
        folders = [self.copy(cpu=good, cuda=b"no library"), self.copy(cpu=good)]
        first, second = self.printed(folders)
        self.assertRegex(first, r"^imported .*lora_linear +forward float32")
        # A torch without CUDA is not even asked to load them.
        reason = "damaged" if torch.version.cuda else "built without CUDA"
        self.assertRegex(first, f"cuda: no kernels: .*{reason}")
        self.assertIn("another copy of graft_lora is loaded in this process", second)


class Info(unittest.TestCase):
    def test_it_says_the_version_of_the_header(self):
        header = pathlib.Path(__file__).parents[3] / "include/graft/version.h"
        version = ".".join(re.findall(r"#define GRAFT_VERSION_\w+ (\d+)", header.read_text()))
        self.assertIn(f"graft-lora {version}, torch {torch.__version__}", graft_lora.info())

    def test_its_table_is_what_the_layers_ask(self):
        printed = graft_lora.info()
        for op in ("lora_linear", "lora_delta"):
            (row,) = re.findall(rf"^  {op} .*$", printed.split("cuda:")[0], re.MULTILINE)
            forward, backward = row.split("backward")
            for direction, cell in ("forward", forward), ("backward", backward):
                for dtype in (torch.float32, torch.bfloat16, torch.float16):
                    runs = not library.why_not(op, direction, dtype, torch.device("cpu"))
                    self.assertEqual(str(dtype)[6:] in cell.split(), runs, (row, dtype))
        self.assertIn("float16 has no CPU kernel", printed)

    def test_the_command_prints_it(self):
        code = f"import runpy\nsys.path.insert(0, {str(PACKAGE.parent)!r})\n"
        printed = run(code + "runpy.run_module('graft_lora', run_name='__main__')")
        self.assertEqual(printed, graft_lora.info() + "\n")

    def test_it_says_why_there_is_no_cuda(self):
        if library._find(CUDA) is None:
            self.assertIn("built without CUDA kernels", graft_lora.info())
            self.assertIn(
                "built without CUDA kernels",
                library.why_not("lora_linear", "forward", torch.float32, torch.device("cuda")),
            )
        elif not torch.cuda.is_available():
            self.assertIn("torch finds no CUDA device here", graft_lora.info())
        else:
            self.assertIn("cuda:0: ", graft_lora.info())
        with mock.patch.object(torch.version, "cuda", None):
            with mock.patch.object(library, "_find", lambda name: PACKAGE / name):
                self.assertIn("is built without CUDA", library._load_cuda())

    def test_a_gpu_without_kernels_says_why(self):
        reason = "cuda:0 has compute capability 7.5, the kernels need 8.0 (Ampere) or later"
        lines = f"lora_linear forward float16 no {reason}\nlora_linear backward float16 no {reason}\n"
        library._capabilities.cache_clear()
        self.addCleanup(library._capabilities.cache_clear)
        ops = mock.Mock(wraps=library.ops, capabilities_cuda=lambda index: lines)
        cuda = dict(
            is_available=lambda: True,
            device_count=lambda: 1,
            get_device_capability=lambda index: (7, 5),
            get_device_name=lambda index: "Some GPU",
        )
        with mock.patch.object(library, "ops", ops), mock.patch.object(library, "_no_cuda", ""):
            with mock.patch.multiple(torch.cuda, **cuda):
                self.assertEqual(
                    library.why_not("lora_linear", "forward", torch.float16, torch.device("cuda")), reason
                )
                printed = graft_lora.info()
        self.assertIn("cuda:0: Some GPU, compute capability 7.5\n", printed)
        self.assertRegex(printed, r"lora_linear +forward - +backward -\n")
        self.assertIn(f"  not: {reason}", printed)

    def test_other_devices_have_no_kernels(self):
        self.assertEqual(
            library.why_not("lora_linear", "forward", torch.float32, torch.device("meta")),
            "no kernels for meta here",
        )


class Errors(unittest.TestCase):
    def test_they_keep_their_code_when_pickled(self):
        for kind in (graft_lora.GraftError, GraftImportError):
            again = pickle.loads(pickle.dumps(kind("device", "what it said")))
            self.assertIs(type(again), kind)
            self.assertEqual((again.code, str(again)), ("device", "what it said"))

    def test_the_module_can_be_loaded_again(self):
        importlib.reload(library)
        self.assertIn("graft-lora", library.info())


if __name__ == "__main__":
    unittest.main()
