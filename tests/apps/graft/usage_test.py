"""What `graft` says of itself: help at any width, completions in a real shell, the manual page.

usage: usage_test.py PROGRAM
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

PROGRAM = ""
COMMANDS = ["finetune", "generate", "evaluate", "info", "completions", "man"]


def run(*arguments, columns="80"):
    environment = dict(os.environ, COLUMNS=columns)
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, env=environment,
                          check=False)


def flags_of(command):
    """The flags that help lists."""
    lines = run(*command, "--help").stdout.splitlines()
    return {line.split()[0].rstrip(",") for line in lines if line.startswith("  --")}


def entries_of(help_text):
    """(flag, what its value is called, text) of every flag that help lists."""
    entries = []
    for line in help_text.splitlines():
        if found := re.match(r"  (--[a-z-]+)(?: ([^ ,]+))?(?:, --?[a-z-]+)*(?:  +(.*))?$", line):
            entries.append([found[1], found[2] or "", found[3] or ""])
        elif line.startswith(" " * 20) and entries:
            entries[-1][2] += " " + line.strip()
    return entries


def all_commands(*words):
    """The words of every command that has no commands of its own."""
    text = run(*words, "--help").stdout
    inner = re.findall(r"^  ([a-z]+) ", text.partition("\nCommands:\n")[2], re.M)
    return [found for name in inner for found in all_commands(*words, name)] or [list(words)]


class ValuesCase:
    """Which values the flags of a program's commands take. Runs end in an error soon: what they need
    is not there."""

    NEEDED = {}  # a command's words -> what it must be given
    DEFAULTS = NUMBERS = 0  # the program has more flags of these kinds

    def setUp(self):
        scratch = tempfile.TemporaryDirectory(prefix="graft_usage_")
        self.addCleanup(scratch.cleanup)
        self.registry = scratch.name
        self.addCleanup(os.environ.pop, "GRAFT_FUSED", None)
        os.environ["GRAFT_FUSED"] = "0"  # with which there is nothing to measure

    def run_with(self, command, *flags):
        where = ["--registry", self.registry] if command[0] == "adapter" else []
        return run(*command, *self.NEEDED.get(" ".join(command), []), *where, *flags)

    def refused(self, command, flag, value):
        result = self.run_with(command, f"{flag}={value}")
        self.assertEqual(2, result.returncode, (command, flag, value, result.stderr))
        self.assertEqual(1, result.stderr.count("\n"), result.stderr)
        self.assertIn(f"{flag}: expected a ", result.stderr)
        said = result.stderr.partition(", got ")[0]
        self.assertIsNone(re.search(r"\d{21}|inf|nan", said), said)
        self.assertLess(len(result.stderr), 160)

    def test_every_default_that_help_shows_can_be_given(self):
        given = 0
        for command in all_commands():
            plain = self.run_with(command)
            self.assertNotEqual(2, plain.returncode, (command, plain.stderr))
            for flag, _, text in entries_of(run(*command, "--help").stdout):
                if found := re.search(r" \[([^\]]*)\]$", text):
                    result = self.run_with(command, flag, found[1])
                    self.assertEqual((plain.returncode, plain.stderr),
                                     (result.returncode, result.stderr), (command, flag, found[1]))
                    given += 1
        self.assertGreater(given, self.DEFAULTS)

    def test_numbers_are_refused_in_words(self):
        numbers = 0
        for command in all_commands():
            for flag, value, _ in entries_of(run(*command, "--help").stdout):
                if value == "N":
                    for wrong in ("nan", "-1e30", "1e999"):
                        self.refused(command, flag, wrong)
                    numbers += 1
        self.assertGreater(numbers, self.NUMBERS)


class Values(ValuesCase, unittest.TestCase):
    NEEDED = {"finetune": ["--model", "/no", "--data", "/no"], "chat": ["--model", "/no"],
              "generate": ["--model", "/no", "--prompt", "x"],
              "evaluate": ["--model", "/no", "--data", "/no"], "adapter add": ["x", "/no"],
              "adapter remove": ["x"], "adapter use": ["x"], "completions": ["bash"]}
    DEFAULTS, NUMBERS = 40, 30

    def test_ranges(self):
        largest = str((1 << 31) - 1)
        for command, flag, good, bad in (
                ("finetune", "--rank", ["1", "256"], ["0", "-1", "257", "1.5"]),
                ("finetune", "--alpha", ["1e-30", "16"], ["0", "-1", "1e39", "-nan"]),
                ("finetune", "--dropout", ["0", "0.999"], ["-0.1", "1", "NaN"]),
                ("finetune", "--num-layers", ["-1", "3"], ["-2"]),
                ("finetune", "--batch-size", ["1", largest], ["0", "-1", "2147483648"]),
                ("finetune", "--iters", ["0"], ["-1", "1.5", "99999999999"]),
                ("finetune", "--grad-accumulation-steps", ["1"], ["0", "-1"]),
                ("finetune", "--learning-rate", ["0", "2e-4"], ["-1", "-1e-300", "Infinity"]),
                ("finetune", "--warmup", ["0"], ["-1"]),
                ("finetune", "--weight-decay", ["0"], ["-1"]),
                ("finetune", "--max-grad-norm", ["0"], ["-1"]),
                ("finetune", "--early-stop", ["0"], ["-1"]),
                ("finetune", "--max-seq-length", ["2", "1048576"], ["1", "1048577"]),
                ("finetune", "--steps-per-report", ["1"], ["0"]),
                ("finetune", "--steps-per-eval", ["1"], ["0"]),
                ("finetune", "--val-batches", ["-1", "0"], ["-2"]),
                ("finetune", "--test-batches", ["-1", "0"], ["-2"]),
                ("finetune", "--save-every", ["0"], ["-1"]),
                ("finetune", "--seed", ["0", "18446744073709551615"],
                 ["-1", "18446744073709551616"]),
                ("finetune", "--threads", ["0", "2"], ["-1"]),
                ("generate", "--temp", ["0", "1.5"], ["-1", "-1e-9"]),
                ("generate", "--top-k", ["0"], ["-1"]),
                ("generate", "--top-p", ["1", "0.1"], ["0", "1.1"]),
                ("generate", "--min-p", ["0", "1"], ["-0.1", "1.1"]),
                ("generate", "--repetition-penalty", ["0.5"], ["0", "-1"]),
                ("generate", "--repetition-context-size", ["0"], ["-1"]),
                ("generate", "--max-tokens", ["0"], ["-1"]),
                ("generate", "--num-samples", ["1"], ["0"]),
                ("generate", "--seed", ["18446744073709551615"], ["-1"]),
                ("evaluate", "--max-seq-length", ["2"], ["1"]),
                ("evaluate", "--batch-size", ["1"], ["0"]),
                ("evaluate", "--max-tokens", ["0"], ["-1"]),
                ("evaluate", "--show", ["0"], ["-1"]),
                ("info", "--rank", ["1"], ["0"])):
            for value in good:
                result = self.run_with([command], flag, value)
                self.assertNotEqual(2, result.returncode, (command, flag, value, result.stderr))
            for value in bad:
                self.refused([command], flag, value)

    def test_a_flag_that_another_overrules_is_refused(self):
        for command, *flags in (
                ("generate", "--system-prompt", "x", "--ignore-chat-template"),
                ("generate", "--adapter", "x", "--no-adapter"),
                ("evaluate", "--adapter", "x", "--adapter-path", "y"),
                ("finetune", "--init-adapter", "x", "--resume-adapter-file", "y"),
                ("adapter use", "--none")):
            result = self.run_with(command.split(), *flags)
            self.assertEqual(2, result.returncode, (command, flags, result.stderr))


class Help(unittest.TestCase):
    def test_every_command_has_it_on_stdout(self):
        for command in COMMANDS:
            result = run(command, "--help")
            self.assertEqual((result.returncode, result.stderr), (0, ""), command)
            self.assertIn(f"Usage: graft {command}", result.stdout)
            self.assertLessEqual(max(map(len, result.stdout.splitlines())), 80, command)

    def test_flags_say_their_defaults_by_group(self):
        text = run("finetune", "--help").stdout
        for heading in ("Model:", "Data:", "Adapter:", "Training:", "Output:"):
            self.assertIn(f"\n{heading}\n", text)
        self.assertIn("--rank N                Rank of A and B [8]", text)
        self.assertIn("--dtype f32|bf16", text)
        self.assertIn("Projections to adapt [all]", text)

    def test_wrong_words_are_usage_errors(self):
        for words in (["fly"], ["completions", "tcsh"], ["completions"], ["info", "--rank", "x"]):
            result = run(*words)
            self.assertEqual(result.returncode, 2, words)
            self.assertEqual(result.stdout, "", words)

    def test_lost_output_is_an_error(self):
        for words in (["man"], ["info"], ["completions", "bash"], ["--help"], ["info", "--help"]):
            with open("/dev/full", "w", encoding="utf-8") as full:
                result = subprocess.run([PROGRAM, *words], stdout=full, stderr=subprocess.PIPE,
                                        text=True, check=False)
            self.assertEqual(result.returncode, 1, words)
            self.assertIn("output", result.stderr)
            self.assertEqual(result.stderr.count("\n"), 1, words)


class Completions(unittest.TestCase):
    def complete(self, *words):
        """What bash offers for the last word."""
        script = run("completions", "bash").stdout
        line = " ".join(f"'{word}'" for word in words)
        script += f"\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _graft\n"
        script += 'printf "%s\\n" "${COMPREPLY[@]}"\n'
        result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        self.assertEqual(result.stderr, "")
        return set(result.stdout.split())

    def test_commands(self):
        self.assertEqual(self.complete("graft", "fin"), {"finetune"})
        self.assertLessEqual(set(COMMANDS), self.complete("graft", ""))
        self.assertEqual(self.complete("graft", "adapter", "u"), {"use"})

    def test_flags_are_those_of_help(self):
        for command in (["finetune"], ["adapter", "add"]):
            self.assertEqual(self.complete("graft", *command, "--"), flags_of(command), command)

    def test_choices(self):
        self.assertEqual(self.complete("graft", "finetune", "--dtype", ""), {"f32", "bf16"})
        self.assertEqual(self.complete("graft", "completions", "f"), {"fish"})

    def test_files(self):
        name = os.path.basename(__file__)
        here = os.path.dirname(os.path.abspath(__file__))
        self.assertIn(f"{here}/{name}", self.complete("graft", "info", "--model", f"{here}/usage"))

    def test_other_shells_read_theirs(self):
        self.assertTrue(run("completions", "zsh").stdout.startswith("#compdef graft\n"))
        fish = run("completions", "fish").stdout
        self.assertIn("-l rank", fish)
        for shell, text in (("zsh", run("completions", "zsh").stdout), ("fish", fish)):
            if shutil.which(shell):
                subprocess.run([shell, "-n"], input=text, text=True, check=True)


class ManPage(unittest.TestCase):
    def test_has_every_flag_of_every_command(self):
        page = run("man").stdout.replace("\\-", "-")
        self.assertTrue(page.startswith(".TH GRAFT 1 "))
        for command in (["finetune"], ["generate"], ["evaluate"], ["info"], ["adapter", "add"]):
            self.assertIn(f'.SS "graft {" ".join(command)}"', page)
            for flag in flags_of(command):
                self.assertIn(f"\\fB{flag}", page)

    def test_roff_has_no_complaint(self):
        if shutil.which("groff") is None:
            self.skipTest("there is no groff here")
        result = subprocess.run(["groff", "-man", "-Tutf8", "-ww"], input=run("man").stdout,
                                capture_output=True, text=True, check=True)
        self.assertEqual(result.stderr, "")
        self.assertIn("Train a LoRA adapter", result.stdout)


if __name__ == "__main__":
    PROGRAM = sys.argv.pop(1)
    unittest.main()
