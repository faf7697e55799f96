#!/usr/bin/env python3
"""Runs the program on data that is missing or lies, and in folders where it may not work: each
gives one clear line, soon.

usage: hostile_data_test.py PROGRAM
"""

import json
import os
import unittest

from hostile_input import NESTED, NOBODY, HostileInput, command, run


class Data(HostileInput):
    good_line = '{"text": "a"}\n'

    def test_lines(self):
        good = self.good_line
        for line, words in (
                ("{", "not valid JSON at byte 2"), ("nonsense", "not valid JSON"),
                ('{"text": "a"', "not valid JSON"), ('{"text": "\\ud800"}', "not valid JSON"),
                ("[1]", "one object a line, not a list"), ("[", "one object a line, not a list"),
                ("{", "one object a line, whole on that line"), ("3", "JSON object"), ('"text"', "JSON object"),
                ('{"text": 1}', '"text" is not a string'), ('{"txt": "a"}', '"text" is missing'),
                ('{"text": "a", "text": "b"}', "twice"),
                ('{"text": "a", "x": 1e999}', "too large"),
                ('{"text": "a", "x": ' + NESTED + "}", "nested"),
                ('{"a":' * 100_000, "nested"),
                ("\0", "not valid JSON")):
            self.expect_data(good + line + "\n" + good, "train.jsonl:2: ", words)
        self.expect_data(good.encode() + b'{"text": "a\xff"}', "train.jsonl:2: ", "not valid UTF-8",
                         "at byte 12")
        self.expect_data(good.encode("utf-16"), "train.jsonl:1: ", "not valid UTF-8")
        self.expect_data('{"text": "' + "a" * (9 << 20), "train.jsonl:1: ", "more than 8 MiB")

    def test_chats(self):
        for line, words in (
                ('{"messages": []}', "messages"), ('{"messages": {}}', "messages"),
                ('{"messages": [[]]}', "a message is not"),
                ('{"messages": [{"role": "user"}]}', '"content" is missing'),
                ('{"messages": [{"role": "user", "content": []}]}', '"content" is not a string'),
                ('{"prompt": "a", "completion": null}', '"completion" is not a string'),
                ('{"prompt": "a"}', "expected")):
            self.expect_data(line, "train.jsonl:1: ", words)

    def test_empty(self):
        self.expect_data("", "no samples")
        self.expect_data("\n\n", "no samples")
        self.expect_data('{"text": ""}\n', "no sample has a token to train on")
        (self.at / "data/train.jsonl").write_text(self.good_line)
        (self.at / "data/valid.jsonl").write_text("")
        self.expect(self.finetune(self.at), "valid.jsonl", "no samples")

    def test_too_long(self):
        long = json.dumps({"prompt": "a", "completion": "b" * 200}) + "\n"
        short = '{"prompt": "a", "completion": "b"}\n'
        self.expect_data(short + long, "train.jsonl:2: ", "within 64", "--max-seq-length")
        # Text has no form that a cut could break.
        (self.at / "data/train.jsonl").write_text(json.dumps({"text": "a" * 200}) + "\n")
        done = run(self.finetune(self.at, "--iters", 0))
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertIn(b"1 samples cut off at 64 tokens, the first in line 1, the longest had 201", done.stdout)

    def test_no_file(self):
        for folder, words in (("none", "no such folder"), ("model.gguf", "not a folder"),
                              ("adapter", "train.jsonl")):
            self.expect(self.finetune(self.at, "--data", self.at / folder), folder, words)
        (self.at / "data/train.jsonl").unlink()
        (self.at / "data/train.jsonl").mkdir()
        self.expect(self.finetune(self.at), "train.jsonl", "a folder, expected a file")
        evaluate = ["evaluate", "--threads", 1, "--model", self.at / "model.gguf", "--data"]
        self.expect([*evaluate, self.at / "data"], "test.jsonl", "no such file; --split")
        self.expect([*evaluate, self.at / "none"], "no such file")
        self.expect([*evaluate, "/dev/zero"], "/dev/zero:1", "more than 8 MiB")
        (self.at / "data/train.jsonl").rmdir()
        os.mkfifo(self.at / "data/train.jsonl")
        self.expect(self.finetune(self.at), "train.jsonl", "not a regular file")


class Folders(HostileInput):
    """Nothing that was saved is lost, and nothing is trained in vain."""

    def saved(self):
        return {path.name: path.read_bytes() for path in (self.at / "adapter").iterdir()
                if path.is_file()}

    def test_in_the_way(self):
        before = self.saved()
        self.expect(self.finetune(self.at, "--adapter-path", self.at / "model.gguf"), "model.gguf")
        self.expect(self.finetune(self.at, "--record-batches", self.at / "data"), "data: ",
                    "Is a directory")
        self.assertEqual(before, self.saved())
        (self.at / "adapter/loss.svg").unlink()
        (self.at / "adapter/loss.svg").mkdir()
        del before["loss.svg"]
        self.expect(self.finetune(self.at), "loss.svg", "in the way")
        self.assertEqual(before, self.saved())
        (self.at / "adapter/adapter_model.safetensors").unlink()
        (self.at / "adapter/adapter_model.safetensors").mkdir()
        self.expect(self.finetune(self.at), "adapter_model.safetensors", "in the way")
        del before["adapter_model.safetensors"]
        self.assertEqual(before, self.saved())

    def test_ranks(self):
        self.expect(self.finetune(self.at, "--rank", 17), "rank: expected at most 16", "k_proj")
        self.expect(self.finetune(self.at, "--rank", 0), "--rank", status=2)
        self.expect(self.finetune(self.at, "--rank", "9" * 40), "--rank", status=2)

    def test_usage(self):
        for arguments, words in (([], "subcommand"), (["nonsense"], "subcommand"),
                                 (["generate", "--model", "x"], "--prompt"),
                                 (["info", "--nonsense"], "--nonsense"),
                                 (["info", "--rank", "x\ny"], "--rank")):
            self.expect(arguments, words, status=2)

    def test_permissions(self):
        user = None
        if os.geteuid() == 0:  # who may read and write everything
            user = NOBODY
            for path in (self.at.parent, *self.at.parent.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
            try:
                reachable = run(["--version"], user).returncode == 0
            except PermissionError:
                reachable = False
            if not reachable:
                self.skipTest("the program lies where an ordinary user cannot reach it")
        # All that is only read may be there to read only.
        read_only = [path for path in self.at.rglob("*") if path.is_file()]
        for path in read_only:
            path.chmod(0o444)
        done = run(self.with_adapter(), user)
        self.assertEqual(0, done.returncode, done.stderr)
        for path in read_only:
            path.chmod(0o644)
        before = self.saved()
        (self.at / "adapter").chmod(0o555)
        self.expect(self.finetune(self.at), "adapter", "Permission denied", user=user)
        self.expect(self.finetune(self.at, "--adapter-path", self.at / "adapter/new/deep"),
                    "adapter/new/deep", "Permission denied", user=user)
        (self.at / "adapter").chmod(0o755)
        self.assertEqual(before, self.saved())
        for path, arguments in (("model.gguf", self.generate()),
                                ("data/train.jsonl", self.finetune(self.at)),
                                ("data/valid.jsonl", self.finetune(self.at)),
                                ("adapter/adapter_config.json", self.with_adapter()),
                                ("adapter/adapter_model.safetensors", self.with_adapter()),
                                ("data", self.finetune(self.at)),
                                ("adapter", self.with_adapter())):
            mode = (self.at / path).stat().st_mode
            (self.at / path).chmod(0)
            self.expect(arguments, path, "Permission denied", user=user)
            (self.at / path).chmod(mode)
        self.assertEqual(before, self.saved())


if __name__ == "__main__":
    unittest.main()
