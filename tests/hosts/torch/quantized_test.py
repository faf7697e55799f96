"""accelerate() on PEFT's LoRA layers over quantized bases, against PEFT's own forward of the same layer."""

from __future__ import annotations

import copy
import functools
import io
import os
import unittest
import warnings

import torch
import torch._dynamo
from peft import LoraConfig
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import graft_lora
from quantized_layers import KINDS, StandIn, randomize, wrap

DEVICE = os.environ.get("GRAFT_TEST_DEVICE", "cpu")  # "cuda" runs these tests there
IN, OUT = 48, 40
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}


def config_of(**options) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, **options)


def pair(kind: str, bias: bool = False, **options) -> tuple[nn.Module, nn.Module]:
    """PEFT's layer, and a copy of it that is accelerated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = wrap(kind, StandIn(IN, OUT, bias), config_of(**options))
    fused = copy.deepcopy(plain)
    graft_lora.accelerate(fused)
    return plain, fused


def run(layer: nn.Module, x: torch.Tensor, dy: torch.Tensor, autocast: bool) -> dict[str, torch.Tensor]:
    """y and every gradient of one forward and backward pass."""
    x = x.clone().requires_grad_()
    layer.zero_grad(set_to_none=True)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        y = layer(x)
    y.backward(dy.to(y.dtype))
    found = {"y": y.detach(), "dx": x.grad}
    found |= {f"d{name}": p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return found


def exact(layer: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same from the definition, in float64."""
    base = layer.base_layer
    x = x.double().requires_grad_()
    y = x @ (base.qweight.double() * base.scale.double()).t()
    if base.bias is not None:
        y = y + base.bias.double()
    leaves = {name: p.detach().double().requires_grad_() for name, p in layer.named_parameters()}
    for name in layer.active_adapters:
        delta = x @ leaves[f"lora_A.{name}.weight"].t() @ leaves[f"lora_B.{name}.weight"].t()
        if f"lora_B.{name}.bias" in leaves:
            delta = delta + leaves[f"lora_B.{name}.bias"]
        y = y + delta * layer.scaling[name]
    y.backward(dy.double())
    return {"y": y.detach(), "dx": x.grad} | {f"d{name}": leaf.grad for name, leaf in leaves.items()}


def rows_of(layer: nn.Module):
    return graft_lora.report(layer, file=io.StringIO())


class Quantized(unittest.TestCase):
    def setUp(self):
        self.enterContext(torch.device(DEVICE))
        torch.manual_seed(1)

    def assert_as_good(self, layer, x, dy, autocast, peft, graft):
        """No further from the exact values than twice PEFT under autocast (in float32: PEFT), and a rounding."""
        truth = exact(layer, x, dy)
        self.assertEqual(peft.keys(), graft.keys())
        low = autocast or x.dtype == torch.bfloat16
        judge = run(layer, x, dy, True) if low else peft
        for name, want in truth.items():
            if want is None:
                continue
            with self.subTest(name=name):
                self.assertEqual(graft[name].dtype, peft[name].dtype)
                self.assertEqual(graft[name].shape, peft[name].shape)
                # In the norm: the largest of a few hundred errors says more of luck than of either.
                error = (graft[name].double() - want).norm() / want.norm()
                theirs = (judge[name].double() - want).norm() / want.norm()
                self.assertLessEqual(error, 2 * theirs + 2 * ROUNDING[graft[name].dtype], name)

    def test_forward_and_gradients(self):
        for kind in KINDS:
            for dtype in (torch.float32, torch.bfloat16):
                for autocast in (False, True):
                    for options in ({}, {"bias": True}, {"use_rslora": True}):
                        with self.subTest(kind=kind, dtype=dtype, autocast=autocast, **options):
                            plain, fused = pair(kind, **options)
                            x = torch.randn(2, 5, IN).to(dtype)
                            dy = torch.randn(2, 5, OUT).to(dtype)
                            peft = run(plain, x, dy, autocast)
                            graft = run(fused, x, dy, autocast)
                            self.assert_as_good(plain, x, dy, autocast, peft, graft)
                            (row,) = rows_of(fused)
                            self.assertEqual((row.fused["forward"], row.fused["backward"]), (1, 1))
                            self.assertFalse(row.reasons)

    def test_types_of_adapters(self):
        for kind in KINDS:
            with self.subTest(kind=kind):
                plain, fused = pair(kind)
                plain.bfloat16(), fused.bfloat16()
                plain.base_layer.scale = fused.base_layer.scale = plain.base_layer.scale.float()
                x, dy = torch.randn(7, IN).bfloat16(), torch.randn(7, OUT).bfloat16()
                self.assert_as_good(plain, x, dy, False, run(plain, x, dy, False), run(fused, x, dy, False))

    def test_shapes(self):
        for kind in KINDS:
            for shape in ((IN,), (0, IN), (1, IN), (2, 0, IN), (2, 1, 3, IN)):
                with self.subTest(kind=kind, shape=shape):
                    plain, fused = pair(kind)
                    x = torch.randn(shape)
                    peft, graft = plain(x), fused(x)
                    self.assertEqual(peft.shape, graft.shape)
                    torch.testing.assert_close(graft, peft, rtol=1e-5, atol=1e-5)
                    with torch.no_grad():
                        torch.testing.assert_close(fused(x), peft.detach(), rtol=1e-5, atol=1e-5)

    def test_lora_bias(self):
        for kind in KINDS:
            if kind == "torchao":  # Refuses lora_bias itself.
                continue
            with self.subTest(kind=kind):
                plain, fused = pair(kind, bias=True, lora_bias=True)
                x, dy = torch.randn(6, IN), torch.randn(6, OUT)
                peft, graft = run(plain, x, dy, False), run(fused, x, dy, False)
                self.assertIn("dlora_B.default.bias", graft)
                self.assert_as_good(plain, x, dy, False, peft, graft)

    def test_several_adapters(self):
        for kind in KINDS:
            with self.subTest(kind=kind):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    plain = wrap(kind, StandIn(IN, OUT), config_of())
                plain.update_layer("second", 3, lora_alpha=2, config=config_of())
                randomize(plain)
                plain.set_adapter(["default", "second"])
                fused = graft_lora.accelerate(copy.deepcopy(plain))
                x, dy = torch.randn(6, IN), torch.randn(6, OUT)
                peft, graft = run(plain, x, dy, False), run(fused, x, dy, False)
                self.assert_as_good(plain, x, dy, False, peft, graft)
                fused.set_adapter("second"), plain.set_adapter("second")
                torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-5)
                self.assertFalse(rows_of(fused)[0].reasons)

    def test_in_place_only_where_it_is_right(self):
        x = torch.randn(3, IN)
        for kind in KINDS:
            with self.subTest(kind=kind):
                plain, fused = pair(kind)
                for grad in (True, False):
                    with torch.set_grad_enabled(grad):
                        y = fused(x)
                    self.assertEqual(y.data_ptr(), fused.base_layer.last)
                kept = []
                fused.base_layer.register_forward_hook(lambda module, args, result: kept.append(result))
                torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(kept[0], plain.base_layer(x), rtol=0, atol=0)

    def test_a_result_that_backward_needs(self):
        class SavesItsResult(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                y = x.exp()
                ctx.save_for_backward(y)
                return y

            @staticmethod
            def backward(ctx, dy):
                return dy * ctx.saved_tensors[0]

        for kind in KINDS:
            with self.subTest(kind=kind):
                _, fused = pair(kind)
                fused.base_layer.forward = (
                    None  # Set below; an instance's forward is not trusted to be fresh.
                )
                product = type(fused.base_layer).forward
                layer = fused.base_layer
                layer.forward = lambda x: SavesItsResult.apply(product(layer, x))
                x = torch.randn(3, IN, requires_grad=True)
                fused(x).sum().backward()
                want = x.grad.clone()
                graft_lora.restore(fused)
                x.grad = None
                fused(x).sum().backward()
                torch.testing.assert_close(want, x.grad, rtol=1e-5, atol=1e-5)

    def test_written_after(self):
        for kind in KINDS:
            with self.subTest(kind=kind):
                plain, fused = pair(kind)
                x = torch.randn(3, IN)
                found = []
                for layer in (plain, fused):
                    leaf = x.clone().requires_grad_()
                    layer(leaf).add_(1.0).square().sum().backward()
                    found.append(leaf.grad)
                torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)

    def test_checkpointing_and_dropout(self):
        for kind in KINDS:
            for reentrant in (False, True):
                with self.subTest(kind=kind, reentrant=reentrant):
                    _, fused = pair(kind, lora_dropout=0.5)
                    x, dy = torch.randn(6, IN), torch.randn(6, OUT)
                    found = []
                    for call in (fused, lambda x: checkpoint(fused, x, use_reentrant=reentrant)):
                        torch.manual_seed(5)
                        leaf = x.clone().requires_grad_()
                        fused.zero_grad()
                        y = call(leaf)
                        y.backward(dy)
                        grads = [p.grad for p in fused.parameters() if p.requires_grad]
                        found.append((y.detach(), leaf.grad, *grads))
                    for one, other in zip(*found, strict=True):
                        torch.testing.assert_close(one, other, rtol=0, atol=0)
                    self.assertFalse(torch.equal(fused(x), fused(x)))  # New masks.
                    fused.eval()
                    self.assertTrue(torch.equal(fused(x), fused(x)))

    def test_selective_checkpointing(self):
        # It keeps results, and refuses what writes into them.
        keep = functools.partial(create_selective_checkpoint_contexts, [torch.ops.aten.mm.default])
        for kind in KINDS:
            with self.subTest(kind=kind):
                plain, fused = pair(kind)
                x = torch.randn(6, IN)
                found = []
                for call in (plain, lambda x: checkpoint(fused, x, use_reentrant=False, context_fn=keep)):
                    leaf = x.clone().requires_grad_()
                    y = call(leaf)
                    y.sum().backward()
                    found.append((y.detach(), leaf.grad))
                for one, other in zip(*found, strict=True):
                    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
                self.assertFalse(rows_of(fused)[0].reasons)

    def test_dropout_mean(self):
        plain, fused = pair("bnb_4bit", lora_dropout=0.25)
        x = torch.randn(2, IN)
        with torch.no_grad():
            draws = torch.stack([fused(x) for _ in range(2000)])
            plain.eval()
            error = (draws.mean(0) - plain(x)).abs() / (draws.std(0) / len(draws) ** 0.5)
        self.assertLess(error.max(), 5.0)

    def test_compiled(self):
        for kind in KINDS:
            with self.subTest(kind=kind):
                torch._dynamo.reset()
                torch._dynamo.utils.counters.clear()
                plain, fused = pair(kind)
                function = torch.compile(fused, backend="aot_eager", fullgraph=True)
                for _ in range(3):
                    x, dy = torch.randn(6, IN), torch.randn(6, OUT)
                    found = []
                    for call, layer in ((plain, plain), (function, fused)):
                        layer.zero_grad(set_to_none=True)
                        leaf = x.clone().requires_grad_()
                        y = call(leaf)
                        y.backward(dy)
                        grads = [p.grad for p in layer.parameters() if p.requires_grad]
                        found.append((y.detach(), leaf.grad, *grads))
                    for one, other in zip(*found, strict=True):
                        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
                self.assertEqual(torch._dynamo.utils.counters["stats"]["unique_graphs"], 1)
                (row,) = rows_of(fused)
                self.assertEqual((row.fused["forward"], row.fused["compiled"], row.reasons), (0, 1, {}))

    def test_state_and_restore(self):
        for kind in KINDS:
            with self.subTest(kind=kind):
                plain, fused = pair(kind)
                before = dict(plain.state_dict())
                after = fused.state_dict()
                self.assertEqual(before.keys(), after.keys())
                keys = plain.__dict__.keys()
                graft_lora.restore(fused)
                self.assertEqual(keys, fused.__dict__.keys())

    def test_disabled(self):
        for kind in KINDS:
            with self.subTest(kind=kind):
                plain, fused = pair(kind)
                x = torch.randn(3, IN)
                fused.enable_adapters(False), plain.enable_adapters(False)
                self.assertTrue(torch.equal(fused(x), plain(x)))
                self.assertEqual(sum(rows_of(fused)[0].reasons.values()), 1)

    def test_casting_disabled(self):
        for kind in KINDS:
            with self.subTest(kind=kind):
                plain, fused = pair(kind)
                plain.cast_input_dtype_enabled = fused.cast_input_dtype_enabled = False
                x = torch.randn(3, IN).bfloat16()
                for layer in (plain, fused):
                    with self.assertRaises(RuntimeError):
                        layer(x)
                torch.testing.assert_close(fused(x.float()), plain(x.float()), rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    unittest.main()
