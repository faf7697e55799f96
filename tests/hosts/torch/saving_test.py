"""What is trained with Graft is PEFT's: it is saved, copied and loaded without Graft."""

import copy
import io
import os
import pickle
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import torch

import graft_lora
import models

# Of a fresh interpreter, in the folder where everything was saved. One for all: it imports for seconds.
WITHOUT_GRAFT = """
import sys

sys.modules["graft_lora"] = None  # Installed or not, it cannot be imported.

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

expected = torch.load("expected.pt")


def base():
    return transformers.LlamaForCausalLM.from_pretrained("base")


def save_pretrained():
    return PeftModel.from_pretrained(base(), "adapter")


def state_dict():
    model = get_peft_model(base(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    model.load_state_dict(torch.load("state.pt", weights_only=True))
    return model


def whole_model():
    return torch.load("model.pt", weights_only=False)


def merged():
    return transformers.LlamaForCausalLM.from_pretrained("merged")


for load in (save_pretrained, state_dict, whole_model, merged):
    with torch.no_grad():
        logits = load().eval()(expected["inputs"]).logits
    for name in ("plain", "accelerated"):
        torch.testing.assert_close(
            logits, expected[name], rtol=1e-4, atol=1e-4, msg=lambda text: f"{load.__name__}, {name}: {text}"
        )
    print(load.__name__)
"""


class WithoutGraft(unittest.TestCase):
    def test_what_was_trained_here_loads(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        folder = Path(scratch.name)
        model = models.build("llama")
        torch.manual_seed(0)  # As build() does: the same base.
        models.base("llama").save_pretrained(folder / "base")
        untrained = copy.deepcopy(model).eval()
        graft_lora.accelerate(model)
        models.train(model, "llama", steps=4)
        model.eval()
        inputs = models.batch("llama", 7)["input_ids"]
        with torch.no_grad():
            accelerated = model(inputs).logits
            plain = graft_lora.restore(copy.deepcopy(model))(inputs).logits
            self.assertGreater(models.error(untrained(inputs).logits, plain), 1e-2)
        torch.save({"inputs": inputs, "accelerated": accelerated, "plain": plain}, folder / "expected.pt")

        model.save_pretrained(folder / "adapter")
        torch.save(model.state_dict(), folder / "state.pt")
        torch.save(model, folder / "model.pt")
        copy.deepcopy(model).merge_and_unload().save_pretrained(folder / "merged")
        self.assertNotIn(
            "graft", (folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8").lower()
        )

        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        result = subprocess.run(
            [sys.executable, "-c", WITHOUT_GRAFT],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(0, result.returncode, result.stderr)
        self.assertEqual(["save_pretrained", "state_dict", "whole_model", "merged"], result.stdout.split())


class Copies(unittest.TestCase):
    def setUp(self):
        self.model = graft_lora.accelerate(models.two_layers())
        self.x = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
        self.y = self.model(self.x).detach()

    def check_independent(self, other):
        """Whether `other` gives the same, is fused after accelerate(), and neither feels the other's fate."""
        graft_lora.accelerate(other)
        with models.Counted(self.model) as untouched, models.Counted(other) as counted:
            torch.testing.assert_close(other(self.x), self.y, rtol=1e-5, atol=1e-5)
        models.assert_fused(self, counted, 1, 0)
        self.assertEqual({(0, 0)}, set(untouched.fused.values()))
        for layer in models.lora_layers(other).values():
            layer.base_layer.weight.data.zero_()
            layer.lora_B["default"].weight.data.zero_()
        self.assertGreater(models.error(other(self.x), self.y), 1e-3)
        self.assertTrue(torch.equal(self.model(self.x), self.y))
        graft_lora.restore(other)
        with models.Counted(self.model) as counted:
            self.model(self.x)
        models.assert_fused(self, counted, 1, 0)

    def test_deepcopy(self):
        self.check_independent(copy.deepcopy(self.model))

    def test_deepcopy_of_a_layer_is_its_own(self):
        layer = self.model.base_model.model.first
        other = copy.deepcopy(layer)
        other.base_layer.weight.data.zero_()
        other.base_layer.bias.data.zero_()
        other.lora_B["default"].weight.data.zero_()
        self.assertEqual(0.0, other(self.x).abs().max().item())  # Not the first one's forward.

    def test_pickle(self):
        self.check_independent(pickle.loads(pickle.dumps(self.model)))

    def test_torch_save(self):
        file = io.BytesIO()
        torch.save(self.model, file)
        self.assertNotIn(b"graft_lora", file.getvalue())
        file.seek(0)
        self.check_independent(torch.load(file, weights_only=False))

    def test_pickle_of_a_restored_model(self):
        plain = models.two_layers()
        expected = pickle.dumps(plain)
        graft_lora.accelerate(plain)
        plain(self.x)
        graft_lora.restore(plain)
        self.assertEqual(expected, pickle.dumps(plain))


class Training(unittest.TestCase):
    def test_goes_on_where_it_was_saved(self):
        """Four steps, save, load into a new accelerated model, four more: as eight in one go."""
        straight = graft_lora.accelerate(models.two_layers())
        halves = graft_lora.accelerate(models.two_layers())

        def run(model, optimizer, steps):
            for step in steps:
                x = torch.randn(6, 40, generator=torch.Generator().manual_seed(step))
                model(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()

        def optimizer_of(model):
            return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

        run(straight, optimizer_of(straight), range(8))
        optimizer = optimizer_of(halves)
        run(halves, optimizer, range(4))
        file = io.BytesIO()
        torch.save({"model": halves.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        resumed = graft_lora.accelerate(models.two_layers(seed=3))
        resumed.load_state_dict(state["model"])
        optimizer = optimizer_of(resumed)
        optimizer.load_state_dict(state["optimizer"])
        run(resumed, optimizer, range(4, 8))
        for name, value in models.trainable(straight).items():
            self.assertTrue(torch.equal(value, models.trainable(resumed)[name]), name)


if __name__ == "__main__":
    unittest.main()
