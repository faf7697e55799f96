"""Accelerated models under torch.compile: one graph, guards that see every change, and PEFT's numbers."""

from __future__ import annotations

import copy
import unittest

import torch
import torch._dynamo
from peft import LoraConfig
from torch import nn

import graft_lora
from layers import DEVICE, Two, accelerated, build, call, input_of, layers_of, reasons, rows_of


class Compiled(unittest.TestCase):
    def setUp(self):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        self.enterContext(torch._dynamo.config.patch(recompile_limit=64))

    def graphs(self) -> int:
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    def compiled(self, model: nn.Module, backend: str = "aot_eager"):
        """The model, compiled; a break of the graph is an error."""
        return torch.compile(model, backend=backend, fullgraph=True)

    def assert_same(self, found: dict, want: dict) -> None:
        self.assertEqual(found.keys(), want.keys())
        for name, value in want.items():
            scale = max(1.0, value.abs().max().item())
            self.assertLess((found[name] - value).abs().max().item(), 2e-5 * scale, name)

    def step(self, function, model: nn.Module, x: torch.Tensor) -> dict:
        model.zero_grad()
        x = x.detach().clone().requires_grad_()
        y = function(x)
        y.square().mean().backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {"y": y.detach(), "dx": x.grad} | grads

    def test_twenty_steps_are_one_graph(self):
        for options in ({}, {"lora_bias": True, "bias": "all"}, {"adapters": 2}):
            with self.subTest(**options):
                self.setUp()
                plain = build(**options)
                model = accelerated(plain)
                function = self.compiled(model)
                optimizers = [
                    torch.optim.SGD((p for p in m.parameters() if p.requires_grad), 1e-4)
                    for m in (plain, model)
                ]
                x = input_of(plain)
                for _ in range(20):
                    self.assert_same(self.step(function, model, x), self.step(plain, plain, x))
                    for optimizer in optimizers:
                        optimizer.step()
                self.assertEqual(self.graphs(), 1)
                self.assertFalse(torch._dynamo.utils.counters["graph_break"])
                for row in rows_of(model):
                    self.assertEqual(row.fused, {"forward": 0, "backward": 0, "compiled": 1})
                    self.assertFalse(row.reasons)

    def test_every_change_is_seen(self):
        plain = build(adapters=2)
        model = accelerated(plain)
        function = self.compiled(model)
        x = input_of(plain)
        self.assert_same(self.step(function, model, x), self.step(plain, plain, x))

        def hook(layer):
            layer.lora_B["default"].forward = Doubled(layer.lora_B["default"])

        def scale(layer):
            layer.scale_layer(2)

        changes = {
            "set_adapter": lambda m: m.set_adapter("more1"),
            "both": lambda m: m.base_model.set_adapter(["default", "more1"]),
            "disable": lambda m: m.base_model.disable_adapter_layers(),
            "enable": lambda m: m.base_model.enable_adapter_layers(),
            "merge": lambda m: m.merge_adapter(),
            "unmerge": lambda m: m.unmerge_adapter(),
            "eval": lambda m: m.eval(),
            "one": lambda m: m.set_adapter("default"),
            "scale": lambda m: [scale(layer) for layer in layers_of(m)],
            "weights": lambda m: [p.data.mul_(0.9) for p in m.parameters()],
            "new data": lambda m: [setattr(p, "data", p.data * 1.1) for p in m.parameters()],
            "delete": lambda m: m.delete_adapter("more1"),
            "instance forward": lambda m: [hook(layer) for layer in layers_of(m)],
        }
        for name, change in changes.items():
            with self.subTest(change=name):
                for one in (plain, model):
                    change(one)
                self.assert_same(self.step(function, model, x), self.step(plain, plain, x))
        self.assertIn("merged: unmerge_adapter() makes it fused again", reasons(model))

    def test_dropout_draws_anew_and_eval_does_not(self):
        model = accelerated(build(lora_dropout=0.5))
        function = self.compiled(model)
        x = input_of(model)
        self.assertFalse(torch.equal(function(x), function(x)))
        model.eval()
        self.assertTrue(torch.equal(function(x), function(x)))
        self.assertEqual(reasons(model), [])

    def test_without_gradients(self):
        plain = build()
        model = accelerated(plain)
        function = self.compiled(model)
        x = input_of(plain)
        for inside in (torch.no_grad, torch.inference_mode):
            with inside():
                self.assertTrue(torch.allclose(function(x), plain(x), atol=1e-5))
        self.assertEqual({row.fused["compiled"] for row in rows_of(model)}, {2})

    def test_autocast_is_guarded(self):
        plain = build()
        model = accelerated(plain)
        function = self.compiled(model)
        x = input_of(plain)
        self.assertTrue(torch.allclose(function(x), plain(x), atol=1e-5))
        with torch.autocast(DEVICE, torch.bfloat16):
            y, want = function(x), plain(x)
        self.assertEqual((y.dtype, want.dtype), (torch.bfloat16, torch.bfloat16))
        self.assertLess((y - want).abs().max(), 0.05 * want.abs().max())
        self.assertTrue(torch.allclose(function(x), plain(x), atol=1e-5))
        self.assertEqual(reasons(model), [])

    def test_blocks_compiled_apart_share_their_graph(self):
        model = graft_lora.accelerate(stack(12))
        plain = graft_lora.restore(copy.deepcopy(model))
        for block in model.get_base_model().blocks:
            block.compile(backend="aot_eager", fullgraph=True)
        x = torch.randn(3, 24, device=DEVICE)
        for _ in range(2):
            self.assertTrue(torch.allclose(model(x), plain(x), atol=1e-4))
        # The first block's x has no gradient.
        self.assertEqual(self.graphs(), 2)

    def test_accelerate_and_restore_after_compile(self):
        plain = build()
        model = build()
        function = self.compiled(model)
        x = input_of(plain)
        for change in (lambda m: m, graft_lora.accelerate, graft_lora.restore, graft_lora.accelerate):
            change(model)
            self.assert_same(self.step(function, model, x), self.step(plain, plain, x))
            counts = {row.fused["compiled"] for row in rows_of(function)}
            self.assertLessEqual(counts, {0, 1})  # 0: the first time's graph fits again

    def test_fallbacks_are_traced_too(self):
        for options in ({"use_dora": True}, {"r": 257}):
            plain = build(**options)
            model = accelerated(plain)
            x = input_of(plain)
            self.assertTrue(torch.allclose(self.compiled(model)(x), plain(x), atol=1e-5))
            self.assertEqual([list(row.reasons.values()) for row in rows_of(model)], [[1], [1]])

    def test_dynamic_shapes(self):
        plain = build()
        model = accelerated(plain)
        function = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
        for rows in (3, 5, 8, 13):
            x = input_of(plain, 2, rows, 24)
            self.assert_same(self.step(function, model, x), self.step(plain, plain, x))
        self.assertEqual(self.graphs(), 1)

    def test_inductor(self):
        plain = build(adapters=2, lora_bias=True)
        plain.base_model.set_adapter(["default", "more1"])
        model = accelerated(plain)
        x = input_of(plain)
        function = self.compiled(model, "inductor")
        self.assert_same(self.step(function, model, x), self.step(plain, plain, x))

    def test_checkpointing(self):
        from torch.utils.checkpoint import checkpoint

        plain = build()
        model = accelerated(plain)
        function = self.compiled(lambda x: checkpoint(model, x, use_reentrant=False))
        x = input_of(plain)
        self.assert_same(self.step(function, model, x), self.step(plain, plain, x))
        self.assertEqual(reasons(model), [])

    def test_export_holds_torch_s_ops_alone(self):
        plain = build().eval()
        model = accelerated(plain)
        x = input_of(plain)
        program = torch.export.export(model, (x,))
        self.assertNotIn("graft", str(program.graph))
        self.assertTrue(torch.allclose(program.module()(x), plain(x), atol=1e-5))


def stack(blocks: int) -> nn.Module:
    from peft import get_peft_model

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Wrapped() for _ in range(blocks))

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    torch.manual_seed(4)
    config = LoraConfig(r=4, target_modules=["first", "second"], init_lora_weights=False)
    return get_peft_model(Stack(), config).to(DEVICE)


class Wrapped(Two):
    def forward(self, x):
        return nn.functional.pad(super().forward(x), (0, 8))


class Doubled:
    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, x):
        return type(self.module).forward(self.module, x) * 2


if __name__ == "__main__":
    unittest.main()
