#!/usr/bin/env python3
"""The commands of the documents, run in the order in which they stand there, on a tiny model.

Each page has a scratch folder with the files that pages take for granted: MODEL.gguf, the data in
DIR, examples/, and what `prepare` adds; `graft` and `graft-bench` are on the PATH.
Every `sh` and `python` block runs there. A line `<!-- not run: WHY -->` before a block leaves it out, and `<!-- needs: MODULE... -->` says
what a Python block imports: it runs where there is a Python that has them, the tree's .venv or this
one, and otherwise its test is skipped.

usage: docs_test.py PROGRAM WRITE_TINY_MODEL BENCH_PROGRAM
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGES = ["finetune", "plots", "resume", "generate"]
MOST_NOT_RUN = 1  # blocks of all pages together, docs/library.md among them
FENCE = re.compile(r"^(?:<!-- (not run|needs): (.+?) -->\n)?```(\w*)\n(.*?)^```$", re.M | re.S)
WRITE_TINY_MODEL = ""
PROGRAMS = {}  # name -> path


class Block:
    def __init__(self, found):
        self.marker, self.reason, self.language, self.text = found.groups()

    @property
    def runs(self):
        return self.language in ("sh", "python") and self.marker != "not run"


def page_text(page):
    if page != "README":
        return (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.search(r"^## The program\n(.*?)^## ", text, re.M | re.S)[1]


def blocks_of(text):
    return [Block(found) for found in FENCE.finditer(text)]


def python_with(modules):
    """A Python that can import all of these, or None."""
    for python in (ROOT / ".venv" / "bin" / "python", sys.executable):
        code = f"import {', '.join(modules)}"
        if Path(python).exists() and subprocess.run([python, "-c", code], capture_output=True,
                                                    check=False).returncode == 0:
            return str(python)
    return None


def write_samples(path, count, first=0):
    with open(path, "w", encoding="utf-8") as file:
        for i in range(first, first + count):
            file.write(json.dumps({"prompt": f"say {i}", "completion": "ab" * (1 + i % 5)}) + "\n")


def help_of(*command, program="graft"):
    return subprocess.run([PROGRAMS[program], *command, "--help"], check=True, capture_output=True,
                          text=True).stdout


def entries_of_help(*command):
    """{"--flag": what help says of it}"""
    entries = re.findall(r"^  (--[a-z-]+)(.*(?:\n {4,}.*)*)", help_of(*command), re.M)
    return {flag: " ".join(text.split()) for flag, text in entries}


class PageCase:
    """Runs the page once; the tests then look at what it left."""

    page = ""

    @classmethod
    def setUpClass(cls):
        cls.scratch = Path(tempfile.mkdtemp(prefix="graft_test_"))
        cls.addClassCleanup(shutil.rmtree, cls.scratch, ignore_errors=True)
        subprocess.run([WRITE_TINY_MODEL, cls.scratch / "MODEL.gguf", "512"], check=True)
        (cls.scratch / "DIR").mkdir()
        for name, count in (("train", 11), ("valid", 3), ("test", 3)):
            write_samples(cls.scratch / "DIR" / f"{name}.jsonl", count)
        (cls.scratch / "examples").symlink_to(ROOT / "examples")
        (cls.scratch / "build" / "bin").mkdir(parents=True)
        for name, path in PROGRAMS.items():
            (cls.scratch / "build" / "bin" / name).symlink_to(path)
        cls.environment = dict(
            os.environ, PATH=f"{cls.scratch}/build/bin:{os.environ['PATH']}", HOME=str(cls.scratch),
            GRAFT_HOME=str(cls.scratch / "home"), GRAFT_NUM_THREADS="1", HF_HUB_OFFLINE="1")
        cls.environment.pop("PYTHONPATH", None)
        cls.prepare()
        cls.outputs, cls.skipped = [], []
        for block in blocks_of(page_text(cls.page)):
            if block.runs:
                cls.run_block(block)

    @classmethod
    def prepare(cls):
        pass

    @classmethod
    def run_block(cls, block):
        command = ["bash", "-euo", "pipefail", "-c", block.text]
        if block.language == "python":
            modules = (block.reason or "json").split()
            python = python_with(modules)
            if python is None:
                cls.skipped.append(f"no Python here has {', '.join(modules)}")
                return
            command = [python, "-W", "error::SyntaxWarning", "-c", block.text]
        run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240,
                             cwd=cls.scratch, env=cls.environment, stdin=subprocess.DEVNULL)
        if run.returncode != 0:
            raise AssertionError(f"{cls.page}: status {run.returncode} of\n{block.text}\n"
                                 f"{run.stdout[-2000:]}\n{run.stderr[-2000:]}")
        cls.outputs.append((block, run.stdout))

    @classmethod
    def graft(cls, *arguments):
        return subprocess.run([PROGRAMS["graft"], *map(str, arguments)], check=True, capture_output=True,
                              text=True, cwd=cls.scratch, env=cls.environment).stdout

    def test_has_commands(self):
        self.assertTrue(self.outputs)

    def test_every_block_ran(self):
        if self.skipped:
            self.skipTest("; ".join(self.skipped))

    def assert_files(self, *names):
        for name in names:
            self.assertTrue((self.scratch / name).is_file(), name)

    def metrics(self, folder):
        text = (self.scratch / folder / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


class Readme(PageCase, unittest.TestCase):
    page = "README"

    def test_leaves_an_adapter(self):
        self.assert_files("OUT/adapter_model.safetensors", "OUT/adapter_config.json",
                          "OUT/metrics.jsonl", "OUT/loss.svg")


class Finetune(PageCase, unittest.TestCase):
    page = "finetune"

    def test_the_folder_holds_what_the_page_says(self):
        table = re.search(r"^\| file \| what it is \|.*?\n\n", page_text(self.page), re.M | re.S)[0]
        names = re.findall(r"^\| `([^`]+)`", table, re.M)
        self.assertGreaterEqual(len(names), 4)
        for name in names:
            self.assertTrue((self.scratch / "OUT" / name).exists(), name)

    def test_the_complete_example_leaves_an_adapter(self):
        self.assert_files("dates-adapter/adapter_model.safetensors")
        counts = {name: len((self.scratch / "dates" / f"{name}.jsonl").read_text().splitlines())
                  for name in ("train", "valid", "test")}
        self.assertEqual({"train": 200, "valid": 20, "test": 40}, counts)

    def test_every_flag_of_the_command_is_documented(self):
        documents = "".join(path.read_text(encoding="utf-8")
                            for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
        named = set(re.findall(r"--[a-z][a-z-]*", documents))
        flags = set(entries_of_help("finetune")) - {"--help"}
        self.assertGreater(len(flags), 20)
        self.assertEqual(set(), flags - named, "flags that no document names")

    def test_the_defaults_of_the_page_are_those_of_the_help(self):
        """A row of the table of flags is `--flag`, default, meaning."""
        table = re.search(r"^\| flag \| default \|.*?\n\n", page_text(self.page), re.M | re.S)[0]
        rows = re.findall(r"^\| `(--[a-z-]+)` \| (\S+) \|", table, re.M)
        self.assertEqual(table.count("\n") - 3, len(rows))
        self.assertGreater(len(rows), 10)
        entries = entries_of_help("finetune")
        for flag, default in rows:
            with self.subTest(flag=flag):
                found = re.search(r"\[(.+)\]$", entries[flag])
                self.assertEqual(default, found[1] if found else default)
                self.assertEqual(default in ("none", "off"), found is None)

    def test_peft_answers_as_graft_does(self):
        answers = [output for block, output in self.outputs if "peft" in block.text]
        if not answers:
            self.skipTest("; ".join(self.skipped))
        prompt = "When is the library open?"
        ours = self.graft("generate", "--model", "MODEL.gguf", "--adapter-path", "OUT", "--prompt",
                          prompt, "--max-tokens", 30)
        self.assertEqual(answers[0].strip(), ours.strip())
        without = self.graft("generate", "--model", "MODEL.gguf", "--prompt", prompt,
                             "--max-tokens", 30)
        self.assertNotEqual(without.strip(), ours.strip())


class Plots(PageCase, unittest.TestCase):
    page = "plots"

    def test_the_keys_of_the_page_are_those_of_the_file(self):
        table = re.search(r"^\| key \|.*?\n\n", page_text(self.page), re.M | re.S)[0]
        documented = set(re.findall(r"^\| `(\w+)`", table, re.M))
        self.assertEqual(documented, set().union(*self.metrics("OUT")))

    def test_lines_come_when_the_page_says(self):
        lines = self.metrics("OUT")
        self.assertEqual([0, 30, 60], [line["iter"] for line in lines if "val_loss" in line])
        self.assertEqual([10, 20, 30, 40, 50, 60],
                         [line["iter"] for line in lines if "train_loss" in line])

    def test_pictures_that_the_page_shows_are_there(self):
        pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page_text(self.page))
        self.assertGreaterEqual(len(pictures), 2)
        for picture in pictures:
            self.assertTrue((ROOT / "docs" / picture).is_file(), picture)


class Resume(PageCase, unittest.TestCase):
    page = "resume"

    @classmethod
    def prepare(cls):
        """OUT as a run leaves it that was killed after its first save."""
        run = ["finetune", "--model", "MODEL.gguf", "--data", "DIR", "--iters", 200, "--dropout",
               "0.1", "--adapter-path"]
        cls.graft(*run, "whole")
        cls.graft(*run, "OUT")
        out = cls.scratch / "OUT"
        shutil.rmtree(out / "checkpoints" / "0000200")
        for name in ("adapter_model.safetensors", "metrics.jsonl"):
            shutil.copyfile(out / "checkpoints" / "0000100" / name, out / name)

    def test_the_resumed_run_is_that_of_one_that_nobody_interrupted(self):
        def losses(folder):
            return [(line["iter"], line.get("train_loss"), line.get("val_loss"))
                    for line in self.metrics(folder)]
        self.assertEqual(losses("whole"), losses("OUT"))
        name = "adapter_model.safetensors"
        self.assertEqual((self.scratch / "whole" / name).read_bytes(),
                         (self.scratch / "OUT" / name).read_bytes())

    def test_the_folder_is_as_the_page_draws_it(self):
        tree = re.search(r"^```\nOUT/\n(.*?)^```", page_text(self.page), re.M | re.S)[1]
        above, below = tree.split("checkpoints/0000100/")
        for part, folder in ((above, "OUT"), (below, "OUT/checkpoints/0000100")):
            names = re.findall(r"\w+\.(?:safetensors|jsonl?|svg)", part)
            self.assertGreaterEqual(len(names), 4)
            self.assert_files(*(f"{folder}/{name}" for name in names))


class Generate(PageCase, unittest.TestCase):
    page = "generate"

    @classmethod
    def prepare(cls):
        for name in ("question.txt", "report.txt"):
            (cls.scratch / name).write_text("Nobody wrote this.\n", encoding="utf-8")
        cls.graft("finetune", "--model", "MODEL.gguf", "--data", "DIR", "--iters", 1,
                  "--adapter-path", "OUT")

    def test_the_object_has_the_keys_of_the_page(self):
        output = self.outputs[0][1]
        found = json.loads(output[output.index("\n{\n"):])
        keys = set(found) | set(found["samples"][0])
        sentence = re.search(r"With `--json` there is one object.*?\n", page_text(self.page))[0]
        self.assertLessEqual(keys, set(re.findall(r"`(\w+)`", sentence)))

    def test_the_prompt_cache_is_written(self):
        self.assert_files("report.safetensors")

    def test_the_adapter_is_gone_from_the_registry(self):
        self.assertEqual([], list((self.scratch / "home" / "adapters").glob("cron*")))


class Documents(unittest.TestCase):
    def test_few_blocks_are_not_run_and_each_says_why(self):
        blocks = [block for page in PAGES for block in blocks_of(page_text(page))]
        self.assertGreater(sum(block.runs for block in blocks), 15)
        library = blocks_of(page_text("library"))  # no page here, so that it runs none
        self.assertEqual([], [block.text for block in library if block.runs])
        self.assertLessEqual(sum(block.marker == "not run" for block in blocks + library),
                             MOST_NOT_RUN)

    def test_commands_stand_in_blocks_that_are_run(self):
        for page in PAGES:
            for block in blocks_of(page_text(page)):
                if block.language != "sh":
                    self.assertNotRegex(block.text, r"(?m)^\s*(build/bin/)?graft ", page)
            outside = FENCE.sub("", page_text(page))
            self.assertNotIn("```", outside, f"{page}: a fence that no block was made of")
            self.assertNotRegex(outside, r"(?m)^(    |\t)\S", f"{page}: an indented block")

    def test_every_flag_that_a_page_names_exists(self):
        commands = [["finetune"], ["generate"], ["chat"], ["evaluate"], ["info"], ["adapter"],
                    ["adapter", "add"], ["adapter", "remove"]]
        helps = [*(help_of(*command) for command in commands),
                 help_of("lora", program="graft-bench")]
        every = set().union(*(re.findall(r"--[a-z][a-z-]*", text) for text in helps))
        for page in PAGES:
            named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page_text(page)))
            self.assertTrue(named, page)
            self.assertEqual(set(), named - every, page)

    def test_flags_of_commands_are_those_of_the_command(self):
        """Also in the blocks that are not run."""
        for page in [*PAGES, "README"]:
            for block in blocks_of(page_text(page)):
                if block.language != "sh":
                    continue
                text = re.sub(r"<<'(\w+)'.*?^\1$", "", block.text, flags=re.M | re.S)
                for line in text.replace("\\\n", " ").splitlines():
                    self.check_line(line, page)

    def check_line(self, line, page):
        for part in re.split(r"[|;]|&&", line):
            words = part.split()
            program = words[0].split("/")[-1] if words else ""
            if program not in PROGRAMS:
                continue
            depth = 2 if words[1] == "adapter" else 1
            named = {word.split("=")[0] for word in words if word.startswith("--")}
            known = set(re.findall(r"--[a-z][a-z-]*", help_of(*words[1:1 + depth], program=program)))
            self.assertEqual(set(), named - known, f"{page}: {line}")


if __name__ == "__main__":
    PROGRAMS["graft-bench"] = str(Path(sys.argv.pop(3)).resolve())
    WRITE_TINY_MODEL = sys.argv.pop(2)
    PROGRAMS["graft"] = str(Path(sys.argv.pop(1)).resolve())
    unittest.main(verbosity=2)  # says why a test is skipped
