"""PEFT's options of a LoRA layer under accelerate(), against PEFT itself: lora_bias, a trained base bias, rsLoRA,
alpha and rank patterns, and disable_input_dtype_casting."""

from __future__ import annotations

import copy
import io
import unittest
import warnings
from itertools import product

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import nn

import graft_lora


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(24, 40)
        self.down = nn.Linear(40, 24)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


def pair(dtype: torch.dtype = torch.float32, **options) -> tuple[nn.Module, nn.Module]:
    """PEFT's model, every parameter of its adapter random, and an accelerated copy."""
    options = {"r": 4, "lora_alpha": 12, "target_modules": ["up", "down"]} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = get_peft_model(Model().to(dtype), LoraConfig(**options))
    for name, parameter in plain.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return plain, graft_lora.accelerate(copy.deepcopy(plain))


def run(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """y and every gradient."""
    x = x.clone().requires_grad_()
    y = model(x)
    y.float().square().sum().backward()
    return {"y": y.detach(), "x": x.grad} | {
        n: p.grad for n, p in model.named_parameters() if p.grad is not None
    }


class Options(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(3)

    def assert_fused(self, model, calls):
        rows = graft_lora.report(model, file=io.StringIO())
        self.assertEqual(len(rows), 2)
        for row in rows:
            self.assertEqual(row.fused["forward"], calls, row.reasons)
            self.assertFalse(row.reasons)

    def assert_same(self, plain, fused, x):
        want, got = run(plain, x), run(fused, x)
        self.assertEqual(want.keys(), got.keys())
        for name, value in want.items():
            with self.subTest(name=name):
                self.assertEqual(value.dtype, got[name].dtype)
                error = (value - got[name]).abs().max() / value.abs().max()
                self.assertLess(error, 2e-6)
        return want

    def test_combinations(self):
        x = torch.randn(5, 24)
        for lora_bias, bias, rslora in product((False, True), ("none", "lora_only", "all"), (False, True)):
            if lora_bias and bias != "none":
                continue  # PEFT refuses it.
            with self.subTest(lora_bias=lora_bias, bias=bias, rslora=rslora):
                plain, fused = pair(lora_bias=lora_bias, bias=bias, use_rslora=rslora)
                want = self.assert_same(plain, fused, x)
                trained = [name for name in want if name.endswith("bias")]
                self.assertEqual(len(trained), 2 if lora_bias or bias != "none" else 0)
                self.assert_fused(fused, 1)

    def test_rslora_scales_as_it_says(self):
        plain, fused = pair(use_rslora=True, r=9, lora_alpha=6)
        self.assertEqual(plain.base_model.model.up.scaling["default"], 2.0)
        self.assert_same(plain, fused, torch.randn(3, 24))

    def test_patterns(self):
        plain, fused = pair(rank_pattern={"up": 1}, alpha_pattern={"down": 32})
        self.assert_same(plain, fused, torch.randn(3, 24))
        self.assert_fused(fused, 1)

    def test_scaling_changed(self):
        plain, fused = pair()
        for model in (plain, fused):
            model.base_model.model.up.set_scale("default", 0.25)
            model.base_model.model.down.scale_layer(-3.0)
        self.assert_same(plain, fused, torch.randn(3, 24))

    def assert_as_good(self, plain, got, x):
        """No further from the exact values than twice PEFT under autocast, and a rounding."""
        truth = run(copy.deepcopy(plain).double(), x.double())
        plain.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            judge = run(plain, x)
        self.assertEqual(judge.keys(), got.keys())
        for name, value in truth.items():
            with self.subTest(name=name):
                scale = value.abs().max()
                error = (got[name].double() - value).abs().max() / scale
                theirs = (judge[name].double() - value).abs().max() / scale
                self.assertLess(error, 2 * theirs + 2.0**-8)

    def test_lora_bias_in_bfloat16(self):
        # The delta's bias is float32 beside a bfloat16 base.
        x = torch.randn(7, 24).bfloat16()
        plain, fused = pair(torch.bfloat16, lora_bias=True)
        want, got = run(plain, x), run(fused, x)
        self.assertEqual({n: t.dtype for n, t in want.items()}, {n: t.dtype for n, t in got.items()})
        self.assert_as_good(plain, got, x)

    def test_lora_bias_trains(self):
        plain, fused = pair(lora_bias=True)
        x, target = torch.randn(16, 24), torch.randn(16, 24)
        for model in (plain, fused):
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
            for _ in range(5):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), target).backward()
                optimizer.step()
        want = plain.state_dict()
        for name, value in fused.state_dict().items():
            torch.testing.assert_close(value, want[name], rtol=1e-5, atol=1e-5)
        self.assert_fused(fused, 5)

    def test_casting_disabled_changes_nothing_where_types_agree(self):
        x = torch.randn(3, 24)
        plain, fused = pair()
        with disable_input_dtype_casting(plain), disable_input_dtype_casting(fused):
            self.assert_same(plain, fused, x)
        self.assert_fused(fused, 1)

    def test_casting_disabled_is_an_error_where_types_differ(self):
        x = torch.randn(3, 24).bfloat16()
        plain, fused = pair(torch.bfloat16)  # A and B are float32.
        for model in (plain, fused):
            model(x)
            with disable_input_dtype_casting(model), self.assertRaises(RuntimeError) as caught:
                model(x)
            message = str(caught.exception)
            if model is plain:
                want = message
        self.assertEqual(message, want)

    def test_casting_disabled_under_autocast(self):
        x = torch.randn(3, 24).bfloat16()
        plain, fused = pair(torch.bfloat16)
        with disable_input_dtype_casting(fused), torch.autocast("cpu", torch.bfloat16):
            got = run(fused, x)
        self.assert_as_good(plain, got, x)
        self.assert_fused(fused, 1)


if __name__ == "__main__":
    unittest.main()
