"""The commands that run a model, as a user calls them: generate, chat, evaluate, adapter.

usage: run_commands_test.py PROGRAM
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from tiny_gguf import tiny_model

PROGRAM = os.path.abspath(sys.argv.pop(1))


class RunCommands(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.at = Path(tempfile.mkdtemp(prefix="graft_run_"))
        cls.model = cls.at / "model.gguf"
        cls.model.write_bytes(tiny_model().bytes())
        (cls.at / "data").mkdir()
        for split in ("train", "valid", "test"):
            (cls.at / f"data/{split}.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
        cls.adapter = cls.at / "adapter"
        cls.ok("finetune", "--model", cls.model, "--data", cls.at / "data", "--iters", 3,
               "--rank", 2, "--adapter-path", cls.adapter, "--learning-rate", 0.05)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.at)

    @classmethod
    def run_program(cls, *words, stdin=""):
        environment = os.environ | {"GRAFT_HOME": str(cls.at / "home"), "OPENBLAS_NUM_THREADS": "1"}
        return subprocess.run([PROGRAM, *map(str, words)], input=stdin, capture_output=True,
                              text=True, timeout=60, env=environment, check=False)

    @classmethod
    def ok(cls, *words, stdin=""):
        done = cls.run_program(*words, stdin=stdin)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def refused(self, *words, said=(), status=1, stdin=""):
        done = self.run_program(*words, stdin=stdin)
        self.assertEqual(done.returncode, status, done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        for word in said:
            self.assertIn(word, done.stderr)

    def generate(self, *more, stdin=""):
        return self.ok("generate", "--model", self.model, "--max-tokens", 6, *more, stdin=stdin)

    def test_generate_reads_stdin_and_repeats_a_seed(self):
        sampled = ["--prompt", "hello", "--temp", 1, "--seed", 5, "--num-samples", 2, "--json"]
        once, again = (json.loads(self.generate(*sampled))["samples"] for _ in range(2))
        self.assertEqual(once, again)
        self.assertEqual(len(once), 2)
        self.assertEqual(self.generate("--prompt", "hello"), self.generate("--prompt", "-",
                                                                           stdin="hello"))

    def test_generate_stops_before_a_text(self):
        whole = json.loads(self.generate("--prompt", "hello", "--json"))["samples"][0]
        self.assertGreater(len(whole["text"]), 1)
        stop = whole["text"][1:]
        cut = json.loads(self.generate("--prompt", "hello", "--stop", stop, "--json"))["samples"][0]
        self.assertEqual(cut["text"], whole["text"][:whole["text"].index(stop)])

    def test_a_prompt_cache_changes_no_answer(self):
        cache = self.at / "cache.safetensors"
        plain = self.generate("--prompt", "hello")
        self.assertEqual(self.generate("--prompt", "hello", "--prompt-cache", cache), plain)
        self.assertEqual(self.generate("--prompt", "hello", "--prompt-cache", cache), plain)
        self.refused("generate", "--model", self.model, "--adapter-path", self.adapter, "--prompt",
                     "hello", "--prompt-cache", cache, said=["cache.safetensors"])

    def test_chat_takes_a_line_a_turn(self):
        said = self.ok("chat", "--model", self.model, "--max-tokens", 4, stdin="hello\nagain\n/quit\n")
        self.assertGreaterEqual(said.count("\n"), 2)
        self.assertNotIn("\x1b", said)  # not a terminal: no decoration

    def test_evaluate_measures_with_and_without(self):
        words = ["evaluate", "--model", self.model, "--data", self.at / "data", "--json",
                 "--max-tokens", 2]
        base = json.loads(self.ok(*words))
        both = json.loads(self.ok(*words, "--adapter-path", self.adapter, "--compare-base"))
        self.assertIn("loss", json.dumps(base))
        self.assertIn("perplexity", json.dumps(both))

    def test_the_registry_keeps_adapters_under_names(self):
        self.ok("adapter", "add", "mine", self.adapter, "--model", self.model)
        self.assertIn("mine", self.ok("adapter", "list"))
        self.refused("adapter", "add", "mine", self.adapter, "--model", self.model, said=["mine"])
        named = self.generate("--prompt", "hello", "--adapter", "mine")
        self.assertEqual(named, self.generate("--prompt", "hello", "--adapter-path", self.adapter))
        self.ok("adapter", "use", "mine")
        self.assertEqual(named, self.generate("--prompt", "hello"))
        self.ok("adapter", "use", "--none")
        self.refused("adapter", "remove", "mine", said=["--yes"])
        self.ok("adapter", "remove", "mine", "--yes")
        self.refused("generate", "--model", self.model, "--prompt", "x", "--adapter", "mine",
                     said=["mine"])


if __name__ == "__main__":
    unittest.main()
