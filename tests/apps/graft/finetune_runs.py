"""Runs of `graft finetune` on the tiny model, for the tests beside this file.

usage of those: NAME_test.py PROGRAM WRITE_TINY_MODEL
"""

import json
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

WRITE_TINY_MODEL = sys.argv.pop(2)
PROGRAM = sys.argv.pop(1)
SAMPLES = 11  # six batches of two an epoch, the last of them smaller


def write_data(folder, completion="ab"):
    folder.mkdir()
    for name, count in (("train", SAMPLES), ("valid", 3)):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for i in range(count):
                sample = {"prompt": f"say {i}", "completion": completion * (1 + i % 5)}
                file.write(json.dumps(sample) + "\n")


def metrics_of(adapter):
    """The lines of metrics.jsonl without what depends on time and memory."""
    lines = (adapter / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    keys = ("iter", "train_loss", "val_loss", "learning_rate", "trained_tokens")
    return [{key: line.get(key) for key in keys} for line in map(json.loads, lines)]


def checkpoints_of(adapter):
    folder = adapter / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


class FinetuneCase(unittest.TestCase):
    def setUp(self):
        self.scratch = Path(tempfile.mkdtemp(prefix="graft_test_"))
        self.addCleanup(shutil.rmtree, self.scratch, ignore_errors=True)
        self.model = self.scratch / "tiny.gguf"
        subprocess.run([WRITE_TINY_MODEL, self.model], check=True)
        self.data = self.scratch / "data"
        write_data(self.data)

    def inputs(self):
        return ["--model", self.model, "--data", self.data]

    def command(self, adapter, *flags):
        # One thread: tests run beside each other.
        return [PROGRAM, "finetune", "--adapter-path", adapter, "--threads", "1",
                *(str(flag) for flag in flags)]

    def finetune(self, adapter, *flags, **options):
        return subprocess.run(self.command(adapter, *flags), check=False, capture_output=True,
                              text=True, **options)

    def succeed(self, adapter, *flags):
        run = self.finetune(adapter, *flags)
        self.assertEqual(0, run.returncode, run.stderr)
        return run

    def fail_with(self, words, adapter, *flags, status=1, **options):
        """A run that ends with this status and one line on stderr that has all `words`."""
        run = self.finetune(adapter, *flags, **options)
        self.assertEqual(status, run.returncode, run.stderr)
        self.assertEqual(1, run.stderr.count("\n"), run.stderr)
        for word in words:
            self.assertIn(word, run.stderr)
        return run

    def assert_same_run(self, one, other):
        self.assertEqual(metrics_of(one), metrics_of(other))
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            self.assertEqual((one / name).read_bytes(), (other / name).read_bytes(), name)
