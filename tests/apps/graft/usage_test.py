"""What `graft` says of itself: help at any width, completions in a real shell, the manual page.

usage: usage_test.py PROGRAM
"""

import os
import shutil
import subprocess
import sys
import unittest

PROGRAM = ""
COMMANDS = ["finetune", "generate", "evaluate", "info", "bench", "completions", "man"]


def run(*arguments, columns="80"):
    environment = dict(os.environ, COLUMNS=columns)
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, env=environment,
                          check=False)


def flags_of(command):
    """The flags that help lists."""
    lines = run(*command, "--help").stdout.splitlines()
    return {line.split()[0].rstrip(",") for line in lines if line.startswith("  --")}


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
        self.assertEqual(self.complete("graft", "bench", ""), {"lora", "plan", "--help"})

    def test_flags_are_those_of_help(self):
        for command in (["finetune"], ["bench", "lora"]):
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
        for command in (["finetune"], ["generate"], ["evaluate"], ["info"], ["bench", "lora"]):
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
