#!/usr/bin/env python3
"""Runs the program on adapters that are missing, cut off, lie, or are of another model: each gives
one clear line, soon.

usage: hostile_adapter_test.py PROGRAM
"""

import json
import os
import struct
import unittest

from hostile_input import LONG, NESTED, HostileInput
from tiny_gguf import UINT32, tiny_model


class Adapters(HostileInput):
    def test_config(self):
        for key, value, *words in (
                ("r", 0, "json: r: ", "at least 1"), ("r", -1, "at least 1"),
                ("r", 2.5, "whole number"), ("r", "two", "whole number"),
                ("r", 1 << 70, "whole number"), ("r", 300, "json: ", "1 to 256"),
                ("r", 17, "json: ", "at most 16", "k_proj"),
                ("r", 3, "model.safetensors: ", "expected (3, 32), got (2, 32)"),
                ("lora_alpha", 0, "lora_alpha: ", "above 0"),
                ("lora_alpha", "sixteen", "lora_alpha: ", "number"),
                ("lora_dropout", 1.5, "lora_dropout: ", "below 1"),
                ("peft_type", "LOHA", "only LORA"), ("peft_type", None, "only LORA"),
                ("target_modules", ["c_attn"], "target_modules: \"c_attn\""),
                ("target_modules", ["a\nb" + LONG], "is not a module"),
                ("target_modules", [], "list"), ("target_modules", [["q_proj"]], "list"),
                ("target_modules", "q.*", "list"), ("use_dora", True, "expected false"),
                ("exclude_modules", ["x"], "exclude_modules: ", "empty"),
                ("layers_to_transform", [-1], "layer numbers"),
                ("layers_to_transform", [7], "json: adapter layer 7", "0 to 0"),
                ("base_model_name_or_path", 7, "name of a model")):
            path = self.at / "adapter/adapter_config.json"
            saved = json.loads((self.good / "adapter/adapter_config.json").read_text())
            path.write_text(json.dumps(saved | {key: value}))
            self.expect(self.with_adapter(), "adapter/adapter_", *words)

    def test_model_to_add_for_that_lies(self):
        model = self.at / "model.gguf"
        add = ["adapter", "add", "x", self.at / "adapter", "--model", model, "--registry", self.at]
        model.write_bytes(tiny_model().set("llama.block_count", UINT32, 1 << 24).bytes())
        self.expect(add, "model.gguf: ", "blk.1.")

    def test_config_that_is_none(self):
        path = self.at / "adapter/adapter_config.json"
        for content, words in (("", "not valid JSON"), ("{", "not valid JSON"), ("[]", "object"),
                               (NESTED, "nested"), ('{"r": 1, "r": 2}', "twice"),
                               (f'{{"target_modules": {NESTED}', "nested"),
                               (" " * (2 << 20), "larger")):
            path.write_text(content)
            self.expect(self.with_adapter(), "adapter_config.json: ", words)
        path.write_bytes(b'{"r": "\xff"}')
        self.expect(self.with_adapter(), "adapter_config.json: ", "UTF-8")
        path.unlink()
        self.expect(self.with_adapter(), "adapter_config.json: ", "no such file")
        os.mkfifo(path)
        self.expect(self.with_adapter(), "adapter_config.json: ", "not a regular file")
        path.unlink()
        path.mkdir()
        self.expect(self.with_adapter(), "adapter_config.json: ", "a folder")
        self.expect(self.generate("--adapter-path", self.at / "model.gguf"), "model.gguf")

    def weights(self):
        data = (self.good / "adapter/adapter_model.safetensors").read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        return json.loads(data[8:8 + length]), data[8 + length:]

    def expect_weights(self, data, *words):
        (self.at / "adapter/adapter_model.safetensors").write_bytes(data)
        self.expect(self.with_adapter(), "adapter_model.safetensors: ", *words)

    def expect_header(self, header, data, *words):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        self.expect_weights(struct.pack("<Q", len(text)) + text + data, *words)

    def test_weights(self):
        header, data = self.weights()
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        other = next(n for n in header if n not in (name, "__metadata__"))
        begin, end = header[name]["data_offsets"]
        for changed, words in (
                ({"shape": [2, 33]}, "offsets"), ({"shape": [1 << 31, 1 << 31]}, "shape"),
                ({"shape": [-2, 32]}, "malformed"), ({"shape": [1 << 62, 4]}, "shape"),
                ({"shape": [0, 1 << 30], "data_offsets": [0, 0]}, "expected (2, 32)"),
                ({"shape": [32, 2]}, "expected (2, 32), got (32, 2)"),
                ({"dtype": "I64"}, "type I64"), ({"dtype": "\n"}, "type ?"),
                ({"data_offsets": [begin, end + 4]}, "offsets"),
                ({"data_offsets": [end, begin]}, "offsets"),
                ({"data_offsets": [1 << 63, (1 << 63) + end - begin]}, "offsets"),
                ({"data_offsets": header[other]["data_offsets"]}, "")):
            self.expect_header(header | {name: header[name] | changed}, data, words)
        self.expect_header({k: v for k, v in header.items() if k != name}, data, name, "missing")
        self.expect_header(header | {"another": header[name]}, data, "another")
        self.expect_header(header | {"__metadata__": {"format": 1}}, data, "__metadata__")
        self.expect_header(header | {"__metadata__": 3}, data, "__metadata__")
        twice = json.dumps(header).replace("lora_B", "lora_A").encode()
        self.expect_header(twice, data, "twice")
        self.expect_header(b'{"a":' + NESTED.encode(), b"", "nested")
        self.expect_header(b"\xff{}", b"", "UTF-8")
        not_a_number = struct.pack("<f", float("nan"))
        self.expect_header(header, data[:begin] + not_a_number + data[begin + 4:], name, "finite")

    def test_weights_cut_off(self):
        whole = (self.good / "adapter/adapter_model.safetensors").read_bytes()
        for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
            self.expect_weights(whole[:length])
        self.expect_weights(struct.pack("<Q", 1 << 60) + whole[8:], "header claims")
        (self.at / "adapter/adapter_model.safetensors").unlink()
        self.expect(self.with_adapter(), "adapter_model.safetensors: ", "no such file")


if __name__ == "__main__":
    unittest.main()
