"""What report() counts, returns and prints."""

from __future__ import annotations

import contextlib
import io
import unittest

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

import graft_lora
from layers import DEVICE, Two, accelerated, build, input_of, layers_of, rows_of


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Stack(nn.Module):
    def __init__(self, blocks: int):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return x


def stack(blocks: int = 30, targets=("up", "down", "embed")) -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(Stack(blocks), LoraConfig(r=2, target_modules=list(targets)))


def table(model: nn.Module) -> list[str]:
    file = io.StringIO()
    graft_lora.report(model, file)
    return file.getvalue().splitlines()


class Counts(unittest.TestCase):
    def test_forward_and_backward(self):
        model = accelerated(build())
        x = input_of(model)
        for _ in range(3):
            model(x).sum().backward()
        with torch.no_grad():
            model(x)
        model(x)  # no backward pass
        for row in rows_of(model):
            self.assertEqual(row.fused, {"forward": 5, "backward": 3, "compiled": 0})
            self.assertEqual(row.reasons, {})

    def test_a_call_with_several_adapters_is_one(self):
        model = accelerated(build(adapters=3))
        model.base_model.set_adapter(["default", "more1", "more2"])
        model(input_of(model)).sum().backward()
        self.assertEqual(
            [(r.fused["forward"], r.fused["backward"]) for r in rows_of(model)], [(1, 1), (1, 1)]
        )

    def test_checkpointing_runs_forward_twice(self):
        for reentrant in (True, False):
            model = accelerated(build())
            x = input_of(model).requires_grad_()
            checkpoint(model, x, use_reentrant=reentrant).sum().backward()
            # Without reentrance torch stops recomputing once it has what was saved, within the last layer.
            self.assertEqual([r.fused["forward"] for r in rows_of(model)], [2, 2] if reentrant else [2, 1])
            self.assertEqual([r.fused["backward"] for r in rows_of(model)], [1, 1])

    def test_reasons(self):
        model = accelerated(build())
        x = input_of(model)
        model(x)
        with model.disable_adapter():
            model(x), model(x)
        model.merge_adapter()
        model(x)
        for row in rows_of(model):
            self.assertEqual(row.fused["forward"], 1)
            self.assertEqual(list(row.reasons.values()), [2, 1])

    def test_a_call_that_raises_is_not_counted(self):
        model = accelerated(build())
        with self.assertRaises(RuntimeError):
            model(torch.zeros(2, 5, device=DEVICE))
        self.assertEqual(rows_of(model)[0].fused["forward"], 0)

    def test_rows(self):
        model = accelerated(build())
        names = {name for name, module in model.named_modules() if module in layers_of(model)}
        self.assertEqual({row.name for row in rows_of(model)}, names)
        self.assertEqual({row.layer for row in rows_of(model)}, {"Linear"})
        part = layers_of(model)[0]
        self.assertEqual([row.name for row in rows_of(part)], [""])
        with self.assertRaises(AttributeError):
            rows_of(model)[0].name = "other"


class Table(unittest.TestCase):
    def test_many_layers_print_few_lines(self):
        model = graft_lora.accelerate(stack())
        for _ in range(20):
            model(torch.arange(5)).sum().backward()
        rows = rows_of(model)
        self.assertEqual(len(rows), 61)
        self.assertEqual(
            table(model),
            [
                "Graft: 61 LoRA layers: 60 always fused, 1 not fused",
                "module                             layers  forward  backward  PEFT's own",
                "base_model.model.embed                  1        0         0  [1]",
                "base_model.model.blocks.0-29.up        30       20        20  0",
                "base_model.model.blocks.0-29.down      30       20        20  0",
                "Counts are a layer's; layers that differ in number alone share a line.",
                "[1] Embedding has no fused kernel",
            ],
        )

    def test_layers_that_differ_stand_apart(self):
        model = graft_lora.accelerate(stack(12, ["up"]))
        for i in (3, 7, 8):
            model.get_base_model().blocks[i].up.base_layer.weight.requires_grad_(True)
        model(torch.arange(5))
        self.assertEqual(
            table(model),
            [
                "Graft: 12 LoRA layers: 9 always fused, 3 not fused",
                "module                                   layers  forward  backward  PEFT's own",
                "base_model.model.blocks.0-2,4-6,9-11.up       9        1         0  0",
                "base_model.model.blocks.3,7-8.up              3        0         0  1 [1]",
                "Counts are a layer's; layers that differ in number alone share a line.",
                "[1] the base weight is trained; only a frozen one is fused",
            ],
        )

    def test_layers_with_several_reasons(self):
        model = graft_lora.accelerate(stack(3, ["up"]))
        tokens = torch.arange(5)
        model(tokens)
        with model.disable_adapter():
            model(tokens), model(tokens)
        model.get_base_model().blocks[1].up.base_layer.weight.requires_grad_(True)
        model(tokens)
        graft_lora.accelerate(model)
        self.assertEqual(
            table(model),
            [
                "Graft: 3 LoRA layers: 3 fused at times",
                "module                          layers  forward  backward  PEFT's own",
                "base_model.model.blocks.0,2.up       2        2         0  2 [1]",
                "base_model.model.blocks.1.up         1        1         0  2 [1], 1 [2]",
                "Counts are a layer's; layers that differ in number alone share a line.",
                "[1] adapters are disabled",
                "[2] the base weight is trained; only a frozen one is fused",
            ],
        )
        self.assertEqual(table(accelerated(build()))[0], "Graft: 2 LoRA layers: 2 not called")

    def test_before_accelerate(self):
        model = build()
        lines = table(model)
        self.assertEqual(lines[0], "Graft: 2 LoRA layers: 2 not fused")
        self.assertEqual(lines[-1], "[1] not accelerated: call graft_lora.accelerate(model)")

    def test_without_lora(self):
        lines = table(nn.Linear(2, 2))
        self.assertEqual(lines, ["Graft: no LoRA layers"])
        self.assertEqual(rows_of(Two()), [])

    def test_where_it_is_printed(self):
        model = accelerated(build())
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            graft_lora.report(model)
        self.assertIn("2 LoRA layers", out.getvalue())


if __name__ == "__main__":
    unittest.main()
