"""What a newcomer does wrong: accelerate() says so, or the model does what it does without Graft."""

from __future__ import annotations

import io
import unittest

import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn

import graft_lora


def model_of(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8)).to(dtype)
    return get_peft_model(layers, LoraConfig(r=4, target_modules=["0", "2"], init_lora_weights=False))


def outcome(model: nn.Module, *arguments):
    """What a call gives: the result and the gradient of x, or the error's type and text."""
    leaf = arguments[0].clone().detach()
    if leaf.is_floating_point():
        leaf.requires_grad_()
    try:
        y = model(leaf, *arguments[1:])
        y.float().sum().backward()
    except Exception as error:
        return type(error), str(error)
    return y.detach(), leaf.grad


class Misuse(unittest.TestCase):
    def assert_as_peft(self, dtype, *arguments, fused=False):
        want = outcome(model_of(dtype), *arguments)
        model = graft_lora.accelerate(model_of(dtype))
        got = outcome(model, *arguments)
        if isinstance(want[0], type):
            self.assertEqual(want, got)
        else:
            for one, other in zip(want, got, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, check_device=True)
        for row in graft_lora.report(model, file=io.StringIO()):
            self.assertEqual(row.fused["forward"], int(fused), row.reasons)

    def test_no_model(self):
        for wrong in (None, {}, [nn.Linear(2, 2)], "model"):
            for function in (graft_lora.accelerate, graft_lora.restore, graft_lora.report):
                with (
                    self.subTest(wrong=wrong, function=function),
                    self.assertRaises(graft_lora.GraftError) as caught,
                ):
                    function(wrong)
                self.assertEqual(caught.exception.code, "invalid_argument")
                self.assertIn(type(wrong).__name__, str(caught.exception))

    def test_no_lora(self):
        ia3 = IA3Config(target_modules=["0"], feedforward_modules=["0"])
        for model in (nn.Linear(2, 2), get_peft_model(nn.Sequential(nn.Linear(2, 2)), ia3)):
            with self.assertRaises(graft_lora.GraftError) as caught:
                graft_lora.accelerate(model)
            self.assertIn("get_peft_model", str(caught.exception))
            file = io.StringIO()
            self.assertEqual(graft_lora.report(model, file=file), [])
            self.assertIn("no LoRA layers", file.getvalue())
            self.assertIs(graft_lora.restore(model), model)

    def test_twice_and_taken_off_twice(self):
        x = torch.randn(3, 16)
        want = outcome(model_of(), x)
        model = graft_lora.accelerate(graft_lora.accelerate(model_of()))
        for one, other in zip(want, outcome(model, x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        graft_lora.restore(graft_lora.restore(model))
        for one, other in zip(want, outcome(model, x), strict=True):
            self.assertTrue(torch.equal(one, other))

    def test_merged_before(self):
        x = torch.randn(3, 16)
        want = model_of()(x)
        model = model_of()
        model.merge_adapter()
        graft_lora.accelerate(model)
        torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)
        model.unmerge_adapter()
        torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)
        for row in graft_lora.report(model, file=io.StringIO()):
            self.assertEqual((row.fused["forward"], sum(row.reasons.values())), (1, 1))
        model.merge_and_unload()
        self.assertEqual(graft_lora.report(model.base_model.model, file=io.StringIO()), [])

    def test_types_without_kernels(self):
        self.assert_as_peft(torch.float16, torch.randn(3, 16).half())
        self.assert_as_peft(torch.float64, torch.randn(3, 16).double())
        self.assert_as_peft(torch.float32, torch.ones(3, 16, dtype=torch.int8))
        self.assert_as_peft(torch.bfloat16, torch.randn(3, 16))
        self.assert_as_peft(torch.float32, torch.randn(3, 16).bfloat16())

    def test_shapes(self):
        for shape in ((16,), (1, 16), (0, 16), (2, 0, 16), (1, 2, 1, 2, 1, 2, 1, 16)):
            with self.subTest(shape=shape):
                self.assert_as_peft(torch.float32, torch.randn(shape), fused=True)
        for shape in ((), (2,) * 9 + (16,)):
            with self.subTest(shape=shape):
                self.assert_as_peft(torch.float32, torch.randn(shape))

    def test_wrong_width(self):
        model = graft_lora.accelerate(model_of())
        with self.assertRaisesRegex(graft_lora.GraftError, r"x: expected .*16.*, got .*15"):
            model(torch.randn(3, 15))

    def test_meta(self):
        model = graft_lora.accelerate(model_of().to("meta"))
        y = model(torch.empty(3, 16, device="meta"))
        self.assertEqual((y.shape, y.device.type), ((3, 8), "meta"))

    def test_mixed_devices(self):
        model = graft_lora.accelerate(model_of())
        with self.assertRaises(RuntimeError):
            model(torch.empty(3, 16, device="meta")).cpu()


if __name__ == "__main__":
    unittest.main()
