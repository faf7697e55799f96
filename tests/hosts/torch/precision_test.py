"""Low precision: as near to the truth as PEFT's own computation, and without the copies that PEFT makes.

Truth is PEFT in float64 on the same numbers; what may be lost is twice what PEFT loses, and one rounding.
"""

import contextlib
import copy
import unittest

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import graft_lora
import models

BFLOAT16 = torch.bfloat16


def autocast(on: bool):
    return torch.autocast("cpu", BFLOAT16) if on else contextlib.nullcontext()


def run(model, x, dy, on):
    """(y, {name: gradient}), among the gradients that of x."""
    x = x.clone().requires_grad_()
    with autocast(on):
        y = model(x)
    y.backward(dy.to(y.dtype))
    return y.detach(), models.gradients(model) | {"x": x.grad}


class Saved:
    """The tensors that autograd keeps for backward while this is entered, each storage once, a model's own
    aside."""

    def __init__(self, model):
        self.own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.tensors = {}

    def keep(self, tensor):
        storage = tensor.untyped_storage().data_ptr()
        if storage not in self.own and tensor.numel() > 0:
            self.tensors[storage] = tensor  # Alive, so that no other gets its address.
        return tensor

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.keep, lambda tensor: tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *_):
        self.hooks.__exit__(*_)

    def bytes(self):
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors.values())


class OneLayer(unittest.TestCase):
    """(37, 48) times (56, 48), in every mixture of types that PEFT's users meet."""

    def check(self, *, base, x, on, **lora):
        model, layer = models.one_layer(dtype=base, **lora)
        generator = torch.Generator().manual_seed(5)
        inputs = torch.randn(37, 48, generator=generator).to(x)
        dy = torch.randn(37, 56, generator=generator).to(BFLOAT16)
        truth, true_gradients = run(models.double(model), inputs.double(), dy.double(), False)
        plain, plain_gradients = run(copy.deepcopy(model), inputs, dy, on)
        # Graft multiplies in x's type. PEFT does so under autocast; without it it multiplies the adapter's
        # part in A's type, which y, rounded to bf16, does not show, but gradients in f32 do.
        _, as_good = run(copy.deepcopy(model), inputs, dy, on or x == BFLOAT16)
        graft_lora.accelerate(model)
        with models.Counted(model) as counted:
            y, gradients = run(model, inputs, dy, on)
        models.assert_fused(self, counted, 1, 1)

        self.assertEqual(plain.dtype, y.dtype)
        models.assert_as_good(self, y, plain, truth, y.dtype, "y")
        self.assertEqual(plain_gradients.keys(), gradients.keys())
        for name, gradient in gradients.items():
            self.assertEqual(plain_gradients[name].dtype, gradient.dtype, name)
            models.assert_as_good(self, gradient, as_good[name], true_gradients[name], gradient.dtype, name)

    def test_base_in_bf16_under_autocast(self):
        self.check(base=BFLOAT16, x=BFLOAT16, on=True)

    def test_base_in_bf16_without_autocast(self):
        self.check(base=BFLOAT16, x=BFLOAT16, on=False)

    def test_all_in_bf16(self):
        for on in (False, True):
            with self.subTest(autocast=on):
                self.check(base=BFLOAT16, x=BFLOAT16, on=on, adapters_in_f32=False)

    def test_base_in_f32_under_autocast(self):
        for x in (torch.float32, BFLOAT16):
            with self.subTest(x=x):
                self.check(base=torch.float32, x=x, on=True)

    def test_all_in_f32(self):
        self.check(base=torch.float32, x=torch.float32, on=False)

    def test_biases_of_the_adapter(self):
        for on in (False, True):
            with self.subTest(autocast=on):
                self.check(base=BFLOAT16, x=BFLOAT16, on=on, lora_bias=True)


class WholeModels(unittest.TestCase):
    """The default: a model in bf16, of which PEFT keeps the adapters in f32."""

    def check(self, family, on):
        model = models.build(family, dtype=BFLOAT16)
        for name, parameter in model.named_parameters():
            self.assertEqual(torch.float32 if "lora_" in name else BFLOAT16, parameter.dtype)
        inputs = {
            key: value.to(BFLOAT16) if value.is_floating_point() else value
            for key, value in models.batch(family).items()
        }

        def loss_and_gradients(model, on):
            with autocast(on):
                loss = model(**inputs).loss
            loss.backward()
            return loss.detach(), models.gradients(model)

        truth = models.double(model)
        inputs_of_truth = {
            key: value.double() if value.is_floating_point() else value for key, value in inputs.items()
        }
        exact_loss = truth(**inputs_of_truth).loss
        exact_loss.backward()
        exact = models.gradients(truth)
        plain_loss, plain = loss_and_gradients(copy.deepcopy(model), on)
        graft_lora.accelerate(model)
        with models.Counted(model) as counted:
            loss, gradients = loss_and_gradients(model, on)
        models.assert_fused(self, counted, 1, 1)
        self.assertEqual(plain_loss.dtype, loss.dtype)
        models.assert_as_good(self, loss, plain_loss, exact_loss, BFLOAT16, "loss")
        models.assert_as_good(self, gradients, plain, exact, BFLOAT16, "gradients")

    def test_under_autocast(self):
        for family in ("llama", "qwen2", "gemma", "vit"):
            with self.subTest(family):
                self.check(family, on=True)

    def test_without_autocast(self):
        for family in ("llama", "qwen2", "gemma", "vit"):
            with self.subTest(family):
                self.check(family, on=False)


class Widest(TorchDispatchMode):
    """The most float32 numbers that one tensor, made while this is entered, holds."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        for tensor in torch.utils._pytree.tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                self.numbers = max(self.numbers, tensor.numel())
        return made


class Memory(unittest.TestCase):
    """A layer in bf16 with adapters in f32, 512 rows: what it makes and what it keeps."""

    def used(self, model, x, on):
        """(what is kept, the widest float32 tensor made)"""
        with Saved(model) as saved, Widest() as widest, autocast(on):
            y = model(x)
            y.backward(y.detach())
        return saved, widest.numbers

    def check(self, on):
        model, layer = models.one_layer(dtype=BFLOAT16)
        x = torch.randn(512, 48).to(BFLOAT16).requires_grad_()
        plain, plain_widest = self.used(copy.deepcopy(model), x, on)
        graft_lora.accelerate(model)
        with models.Counted(model) as counted:
            ours, widest = self.used(model, x, on)
        models.assert_fused(self, counted, 1, 1)
        h = 512 * layer.r["default"]
        self.assertGreaterEqual(plain_widest, x.numel())  # What there is to save.
        self.assertLessEqual(widest, h)
        self.assertLessEqual(ours.bytes(), x.nbytes + 4 * h)
        if not on:
            self.assertGreaterEqual(plain.bytes(), 4 * x.numel())

    def test_no_f32_copy_of_the_input_without_autocast(self):
        self.check(False)

    def test_no_f32_copy_of_the_input_under_autocast(self):
        self.check(True)


if __name__ == "__main__":
    unittest.main()
