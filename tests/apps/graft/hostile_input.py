"""What the tests of hostile input share: the program, and files that are fine until spoilt."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from tiny_gguf import tiny_model

PROGRAM = os.path.abspath(sys.argv.pop(1))
SECONDS = 20
MOST_MEMORY = 1 << 30  # Of any run, in bytes; an honest one takes a tenth.
NOBODY = 65534
LONG = "x" * 500
NESTED = "[" * 200_000


def run(arguments, user=None):
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    other = {} if user is None else {"user": user}
    return subprocess.run([PROGRAM, *map(str, arguments)], check=False, capture_output=True,
                          timeout=SECONDS, env=environment, **other)


def command(name, flags, more):
    """Flags in `more` take the place of those in `flags`."""
    kept = [part for flag, value in flags.items() if flag not in more for part in (flag, value)]
    return [name, "--threads", 1, *kept, *more]


class HostileInput(unittest.TestCase):
    """A folder with a model, data and an adapter that are fine until a test spoils one."""

    @classmethod
    def setUpClass(cls):
        cls.good = Path(tempfile.mkdtemp(prefix="graft_hostile_"))
        (cls.good / "model.gguf").write_bytes(tiny_model().bytes())
        (cls.good / "data").mkdir()
        for split in ("train", "valid"):
            (cls.good / f"data/{split}.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
        made = run(cls.finetune(cls.good, "--iters", 1, "--rank", 2))
        assert made.returncode == 0, made.stderr

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.good)

    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory(prefix="graft_hostile_")
        self.addCleanup(self.scratch.cleanup)
        self.at = Path(self.scratch.name) / "a"
        shutil.copytree(self.good, self.at)

    def tearDown(self):
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        self.assertLess(peak * (1 if sys.platform == "darwin" else 1024), MOST_MEMORY)

    @staticmethod
    def finetune(at, *more):
        return command("finetune", {"--model": at / "model.gguf", "--data": at / "data",
                                    "--adapter-path": at / "adapter"}, more)

    def generate(self, *more):
        return command("generate", {"--model": self.at / "model.gguf", "--prompt": "hello",
                                    "--max-tokens": 2}, more)

    def with_adapter(self):
        return self.generate("--adapter-path", self.at / "adapter")

    def expect(self, arguments, *words, status=1, user=None):
        """One line on stderr with all the words, and that exit status: no signal."""
        done = run(arguments, user)
        line = done.stderr.decode(errors="strict")
        self.assertEqual(status, done.returncode, line[:2000])
        self.assertTrue(line.startswith("graft: "), line[:2000])
        self.assertEqual(line.find("\n"), len(line) - 1, line[:2000])
        self.assertLess(len(line), 1100)
        self.assertTrue(line[:-1].isprintable(), repr(line[:2000]))
        for word in words:
            self.assertIn(word, line)

    def expect_model(self, model, *words):
        data = model if isinstance(model, bytes) else model.bytes()
        (self.at / "model.gguf").write_bytes(data)
        self.expect(self.generate(), "model.gguf: ", *words)

    def expect_data(self, lines, *words, more=()):
        data = lines if isinstance(lines, bytes) else lines.encode()
        (self.at / "data/train.jsonl").write_bytes(data)
        self.expect(self.finetune(self.at, *more), "train.jsonl", *words)
