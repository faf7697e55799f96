#!/usr/bin/env python3
"""Runs the program on models that are missing, cut off or lie: each gives one clear line, soon.

usage: hostile_model_test.py PROGRAM
"""

import math
import struct
import unittest

from hostile_input import LONG, HostileInput, run
from tiny_gguf import (ARRAY, BOOL, FLOAT32, I32, INT32, IQ1_S, Q8_0, STRING, UINT32, UINT64,
                       tiny_model)


class Models(HostileInput):
    def test_fine_without_a_fault(self):
        self.assertEqual(0, run(self.with_adapter()).returncode)

    def test_no_file(self):
        for path, words in {"none.gguf": "no such file", "data": "not a regular file",
                            "data/train.jsonl": "not a GGUF file",
                            "model.gguf/x": "no such file", "x" * 300: "too long"}.items():
            self.expect(["info", "--model", self.at / path], path[:100], words)
        self.expect(["info", "--model", "/dev/zero"], "not a regular file")
        self.expect(["info", "--model", self.at / "a\nb\x1b[31m"], "no such file")

    def test_cut_off(self):
        whole = tiny_model().bytes()
        self.expect_model(b"", "ends early")
        for length in (3, 20, 100, 5000, len(whole) // 2, len(whole) - 1):
            self.expect_model(whole[:length])

    def test_false_counts(self):
        for extra in (1, 1 << 19, 1 << 40, -1):
            for field in ("extra_tensors", "extra_metadata"):
                model = tiny_model()
                setattr(model, field, extra % (1 << 62))
                self.expect_model(model)
        for length in (1 << 25, 1 << 40, (1 << 64) - 1):
            model = tiny_model().bytes()
            at = model.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8
            lying = model[:at] + struct.pack("<Q", length) + model[at + 8:]
            self.expect_model(lying, "tokenizer.ggml.tokens", "do not fit")

    def test_false_shapes_and_types(self):
        name = "blk.0.attn_q.weight"
        for dims in ([1 << 31, 1 << 31, 1 << 31, 1 << 31], [(1 << 31) - 1, 1 << 30], [0, 32], [],
                     [32] * 5, [1 << 63, 32]):
            self.expect_model(tiny_model().tensor(name, dims, data=b"\0" * 4096), name)
        self.expect_model(tiny_model().tensor(name, [16, 64]), name, "(32, 32)", "(64, 16)")
        self.expect_model(tiny_model().tensor(name, [32, 32], 77, b"\0" * 4096), name, "type 77")
        self.expect_model(tiny_model().tensor(name, [32, 32], I32, b"\0" * 4096), name, "I32")
        self.expect_model(tiny_model().tensor(name, [256, 4], IQ1_S, b"\0" * 4096), name, "IQ1_S")
        self.expect_model(tiny_model().tensor("output_norm.weight", [32], Q8_0, b"\0" * 34),
                          "output_norm.weight", "Q8_0")
        self.expect_model(tiny_model().without(name), name, "is missing")
        self.expect_model(tiny_model().without("token_embd.weight"), "token_embd.weight")
        self.expect_model(tiny_model().tensor("blk.0.attn_q.bias", [32]), "attn_q.bias", "biases")
        self.expect_model(tiny_model().tensor("blk.1.attn_q.weight", [32, 32]), "blk.1.attn_q")

    def test_values_that_are_not_finite(self):
        name = "blk.0.attn_q.weight"
        dims, kind, data = tiny_model().tensors[name]
        for value in ("nan", "inf"):
            bad = struct.pack("<f", float(value)) + data[4:]
            self.expect_model(tiny_model().tensor(name, dims, kind, bad), name, "finite")

    def test_more_than_memory(self):
        # A file with holes says that it is as large as it likes, and takes no room.
        wide, long = 1 << 18, 1 << 20
        model = tiny_model().set("llama.feed_forward_length", UINT32, long)
        model.set("llama.embedding_length", UINT32, wide).without("output_norm.weight")
        model.tensor("output_norm.weight", [wide], data=4 * wide)
        model.tensor("token_embd.weight", [wide, 260], data=4 * 260 * wide)
        model.set("llama.attention.head_count", UINT32, wide >> 3)
        for name, dims in {"attn_norm": [wide], "ffn_norm": [wide], "attn_q": [wide, wide],
                           "attn_k": [wide, 16], "attn_v": [wide, 16], "attn_output": [wide, wide],
                           "ffn_gate": [wide, long], "ffn_up": [wide, long],
                           "ffn_down": [long, wide]}.items():
            model.tensor(f"blk.0.{name}.weight", dims, data=4 * math.prod(dims))
        try:
            model.write(self.at / "model.gguf")
        except OSError:
            self.skipTest("the file system takes no such files")
        self.expect(self.generate(), "model.gguf: ", "of memory")

    def test_duplicate_names(self):
        data = tiny_model().bytes()
        self.expect_model(data.replace(b"blk.0.ffn_up.weight", b"blk.0.attn_q.weight"), "")
        self.expect_model(data.replace(b"blk.0.attn_v", b"blk.0.attn_k"), "blk.0.attn_k.weight",
                          "twice")
        self.expect_model(data.replace(b"tokenizer.ggml.pre", b"tokenizer.ggml.foo").replace(
            b"llama.block_count", b"llama.block_count", 1)[:-1])
        key = b"llama.rope.freq_base"
        self.expect_model(data.replace(b"general.architecture", key), key.decode(), "twice")

    def test_config_that_lies(self):
        for key, kind, value, words in (
                ("general.architecture", STRING, "gpt-neox", "'gpt-neox' is not supported"),
                ("general.architecture", STRING, "a\nb\x1b[31m" + LONG, "is not supported"),
                ("general.architecture", UINT32, 3, "expected a string"),
                ("llama.block_count", UINT32, 2, "blk.1."),
                ("llama.block_count", UINT32, 0, "llama.block_count is 0"),
                ("llama.block_count", UINT32, 1 << 24, "blk.1."),
                ("llama.block_count", UINT64, 1 << 60, "llama.block_count"),
                ("llama.block_count", INT32, -1, "llama.block_count"),
                ("llama.embedding_length", UINT32, 64, "token_embd.weight"),
                ("llama.feed_forward_length", UINT32, 1 << 24, "ffn_gate"),
                ("llama.attention.head_count", UINT32, 5, "do not divide"),
                ("llama.attention.head_count_kv", UINT32, 3, "do not divide"),
                ("llama.attention.head_count_kv", UINT32, 4, "attn_k"),
                ("llama.context_length", UINT32, 0, "llama.context_length"),
                ("llama.rope.freq_base", FLOAT32, float("nan"), "positive number"),
                ("llama.rope.scaling.type", STRING, "yarn", "rotary embeddings of type 'yarn'"),
                ("llama.rope.scaling.type", STRING, "longrope\n", "rotary"),
                ("llama.rope.scaling.factor", FLOAT32, float("nan"), "positive number"),
                ("llama.rope.scaling.factor", FLOAT32, -4.0, "positive number"),
                ("llama.rope.scaling.attn_factor", FLOAT32, 1.2, "attn_factor is 1.2"),
                ("llama.rope.scaling.yarn_log_multiplier", FLOAT32, 0.1, "yarn_log_multiplier"),
                ("llama.attention.sliding_window", UINT32, 32, "attention.sliding_window"),
                ("llama.attention.scale", FLOAT32, 0.5, "'llama.attention.scale' is not known"),
                ("llama.attention.causal", BOOL, False, "attention.causal"),
                ("llama.logit_scale", FLOAT32, 2.0, "logit_scale"),
                ("llama.expert_count", UINT32, 8, "experts")):
            self.expect_model(tiny_model().set(key, kind, value), words)
        self.expect_model(tiny_model().without("general.architecture"), "general.architecture",
                          "missing")

    def test_tokenizer_that_lies(self):
        plain = tiny_model().metadata["tokenizer.ggml.tokens"][1][1]

        def tokens(**changed):
            listed = [changed.get(f"t{i}", token) for i, token in enumerate(plain)]
            return (STRING, listed)

        for key, kind, value, words in (
                ("model", STRING, "llama", "'llama' is not supported"),
                ("pre", STRING, "a\nb", "is not supported"),
                ("add_bos_token", BOOL, True, "add_bos_token"),
                ("add_sep_token", BOOL, True, "add_sep_token"),
                ("remove_extra_whitespaces", BOOL, True, "is not known"),
                ("tokens", ARRAY, (STRING, []), "vocabulary"),
                ("tokens", ARRAY, (STRING, plain[:-1]), "token"),
                ("tokens", ARRAY, (INT32, [1, 2]), "array of strings"),
                ("tokens", ARRAY, tokens(t9="a"), "are the same"),
                ("tokens", ARRAY, tokens(t9=b"\xff"), "token 9 is not valid UTF-8"),
                ("tokens", ARRAY, tokens(t1=LONG), "special token 1"),
                ("tokens", ARRAY, tokens(t2="<|end|>"), "'<|im_end|>'"),
                ("merges", ARRAY, (STRING, ["a b", "ab ab"]), "merge 1"),
                ("merges", ARRAY, (STRING, ["a b", "ab"]), "merge 1"),
                ("merges", ARRAY, (STRING, ["a b", "a b c"]), "merge 1"),
                ("merges", ARRAY, (STRING, ["a "]), "merge 0"),
                ("token_type", ARRAY, (INT32, [1]), "token_type"),
                ("token_type", ARRAY, (FLOAT32, [1.0] * 260), "whole numbers"),
                ("token_type", ARRAY, (INT32, [1] * 260), "special token"),
                ("eos_token_id", UINT32, 260, "eos_token_id"),
                ("eos_token_id", INT32, -1, "eos_token_id"),
                ("padding_token_id", UINT32, 1 << 31, "padding_token_id")):
            self.expect_model(tiny_model().set("tokenizer.ggml." + key, kind, value), words)
        for key in ("model", "tokens", "merges", "token_type", "eos_token_id"):
            self.expect_model(tiny_model().without("tokenizer.ggml." + key), key, "missing"
                              if key != "token_type" else "0 entries")

    def test_chat_templates(self):
        for template, words in (("{{ '[INST]' }}", "Mistral"), ("{% for", "not supported"),
                                ("{{" * 30_000, "not supported"), ("{{x}}" * 300_000, "bytes"),
                                (b"\xff\x00", "not supported")):
            self.expect_model(tiny_model().set("tokenizer.chat_template", STRING, template),
                              "chat template", words)
        self.expect_model(tiny_model().without("tokenizer.chat_template"), "no chat template")

    def test_info_ends_as_generate_would(self):
        for key, value, name in (("tokenizer.chat_template", "{{ '[INST]' }}", "chat template"),
                                 ("tokenizer.ggml.pre", "qwen2", "tokenizer"),
                                 ("tokenizer.ggml.model", "llama", "tokenizer")):
            path = self.at / "model.gguf"
            path.write_bytes(tiny_model().set(key, STRING, value).bytes())
            info = run(["info", "--model", path])
            answer = run(self.generate())
            self.assertEqual(1, info.returncode)
            self.assertEqual(answer.returncode, info.returncode)
            self.assertEqual(answer.stderr, info.stderr)
            self.assertRegex(info.stdout.decode(), name + " +does not run: ")
            # Text can be trained on without a template, and nothing without a tokenizer.
            self.assertEqual(name != "tokenizer", b"How it trains" in info.stdout)

    def test_prompts(self):
        self.expect(self.generate("--prompt", b"\xff".decode(errors="surrogateescape")), "--prompt",
                    status=2)
        self.expect(self.generate("--prompt", "a" * 100), "context holds 64")
        self.expect(self.generate("--prompt", "", "--ignore-chat-template"), "prompt is empty")


if __name__ == "__main__":
    unittest.main()
