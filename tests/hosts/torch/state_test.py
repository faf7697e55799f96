"""Whatever PEFT or its user does to a model after accelerate(), the next step counts with it, and runs fused.

Truth is the same model after restore(), which is PEFT's alone, and in float64. Every test runs a step first,
so that whatever Graft keeps of a weight is there to be wrong.
"""

import copy
import unittest
from unittest import mock

import torch
from peft import LoraConfig
from torch import nn

import graft_lora
import models

LAYERS = ("first", "second")


def layers_of(model):
    return [getattr(model.base_model.model, name) for name in LAYERS]


def inputs(seed=0):
    return torch.randn(3, 7, 40, generator=torch.Generator().manual_seed(seed))


def step(model, x=None):
    """(y, {name: gradient})"""
    x = inputs() if x is None else x
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    return y.detach(), models.gradients(model) | {"x": x.grad}


class State(unittest.TestCase):
    def model(self, **options):
        """TwoLayers, accelerated, after a step."""
        model = graft_lora.accelerate(models.two_layers(**options))
        self.before, _ = step(model)
        return model

    def check(self, model, fused=True, reason="", changed=True):
        """Whether a step of `model` is what PEFT makes of its state; `reason`: a part of why not fused."""
        with models.Counted(model) as counted:
            y, gradients = step(model)
        if fused:
            models.assert_fused(self, counted, 1, 1)
        else:
            for name, reasons in counted.reasons.items():
                self.assertEqual((0, 0), counted.fused[name], name)
                self.assertEqual([1], list(reasons.values()), name)
                self.assertIn(reason, next(iter(reasons)))
        if changed:  # A stale copy of a weight would be seen.
            self.assertGreater(models.error(y, self.before), 1e-3)
        truth, true_gradients = step(models.double(model), inputs().double())
        plain, plain_gradients = step(graft_lora.restore(copy.deepcopy(model)))
        models.assert_as_good(self, y, plain, truth, torch.float32, "y")
        self.assertEqual(plain_gradients.keys(), gradients.keys())
        for name, gradient in gradients.items():
            models.assert_as_good(
                self, gradient, plain_gradients[name], true_gradients[name], torch.float32, name
            )


class Merging(State):
    def test_merged_is_peft_s(self):
        for safe in (False, True):
            with self.subTest(safe_merge=safe):
                model = self.model()
                model.merge_adapter(safe_merge=safe)
                y, _ = step(model)
                torch.testing.assert_close(y, self.before, rtol=1e-4, atol=1e-4)
                with models.Counted(model) as counted:
                    model(inputs())
                for name, reasons in counted.reasons.items():
                    self.assertEqual([1], list(reasons.values()), name)
                    self.assertIn("merged", next(iter(reasons)))

    def test_unmerged_is_fused_again(self):
        for safe in (False, True):
            with self.subTest(safe_merge=safe):
                model = self.model()
                model.merge_adapter(safe_merge=safe)
                step(model)
                model.unmerge_adapter()
                self.check(model, changed=False)
                torch.testing.assert_close(step(model)[0], self.before, rtol=1e-4, atol=1e-4)

    def test_merged_and_unmerged_without_a_step_between(self):
        # The address and the version of W are what they were, its values are not quite.
        model = self.model()
        layers_of(model)[0].merge()
        with torch.no_grad():  # Unmerging takes another delta off than merging put on.
            layers_of(model)[0].lora_B["default"].weight.mul_(3)
        layers_of(model)[0].unmerge()
        with torch.no_grad():
            layers_of(model)[0].lora_B["default"].weight.div_(3)
        self.check(model)

    def test_merge_and_unload(self):
        model = self.model()
        expected = step(graft_lora.restore(copy.deepcopy(model)))[0]
        with torch.no_grad():
            merged = model.merge_and_unload()(inputs())
        torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)

    def test_disabled_while_merged(self):
        # PEFT unmerges inside forward then.
        model = self.model()
        model.merge_adapter()
        with model.disable_adapter():
            bare = model(inputs())
        self.assertGreater(models.error(bare, self.before), 1e-3)
        self.check(model, changed=False)


class Initialisation(State):
    """Ways to initialise an adapter that change W, of a second adapter on a model that has run."""

    def check_added(self, init, **options):
        model = self.model()
        torch.manual_seed(9)
        config = LoraConfig(r=4, lora_alpha=6, target_modules=list(LAYERS))
        config.init_lora_weights, config.loftq_config = init, options  # Past the check for LoftQ's packages.
        weights = [layer.base_layer.weight.clone() for layer in layers_of(model)]
        model.add_adapter("second", config)
        for layer, weight in zip(layers_of(model), weights):
            self.assertFalse(torch.equal(weight, layer.base_layer.weight), f"{init} left W as it was")
        # W has lost what the second adapter is; with the first alone both layers give something else.
        self.check(model)
        model.set_adapter("second")
        self.check(model)

    def test_pissa(self):
        self.check_added("pissa")

    def test_pissa_with_few_iterations(self):
        self.check_added("pissa_niter_4")

    def test_olora(self):
        self.check_added("olora")

    def test_loftq(self):
        # PEFT's own needs bitsandbytes on a GPU. What it does with the result, setting W, A and B, is what
        # counts here: a quantization to multiples of 1/32 stands in.
        def quantize(weight, num_bits, reduced_rank, num_iter):
            rounded = (weight.detach() * 32).round() / 32
            u, s, v = torch.linalg.svd(weight.detach() - rounded, full_matrices=False)
            root = s[:reduced_rank].sqrt()
            return rounded, root[:, None] * v[:reduced_rank], u[:, :reduced_rank] * root

        with mock.patch("peft.tuners.lora.layer.loftq_init", quantize):
            self.check_added("loftq", loftq_bits=4, loftq_iter=1)

    def test_before_accelerate(self):
        for init in ("pissa", "olora"):
            with self.subTest(init):
                model = self.model(init_lora_weights=init)
                self.check(model, changed=False)


class Edits(State):
    """Of base weights, in every way that PyTorch has."""

    def weights(self, model):
        return [layer.base_layer.weight for layer in layers_of(model)]

    def test_data_in_place(self):
        model = self.model()
        for weight in self.weights(model):
            weight.data.mul_(2)  # Neither the address nor the version changes.
        self.check(model)

    def test_data_replaced(self):
        model = self.model()
        for weight in self.weights(model):
            weight.data = torch.randn_like(weight)
        self.check(model)

    def test_data_replaced_at_the_same_address(self):
        # A freed block is the next one of its size: address, shape and version are the old weight's.
        model = self.model()
        seen = set()
        for round in range(8):
            for weight in self.weights(model):
                weight.data = torch.empty(0)
            for weight, (out_features, in_features) in zip(self.weights(model), ((56, 40), (24, 56))):
                weight.data = torch.randn(out_features, in_features)
                seen.add(weight.data_ptr())
            self.check(model)
            self.before, _ = step(model)
        self.assertLess(len(seen), 16, "no address came again: nothing was tested")

    def test_copied_under_no_grad(self):
        model = self.model()
        with torch.no_grad():
            for weight in self.weights(model):
                weight.copy_(torch.randn_like(weight))
        self.check(model)

    def test_a_new_parameter(self):
        model = self.model()
        for layer in layers_of(model):
            layer.base_layer.weight = nn.Parameter(
                torch.randn_like(layer.base_layer.weight), requires_grad=False
            )
        self.check(model)

    def test_bias(self):
        model = self.model()
        for layer in layers_of(model):
            layer.base_layer.bias.data.add_(1)
        self.check(model)

    def test_adapter(self):
        model = self.model()
        for layer in layers_of(model):
            layer.lora_A["default"].weight.data.mul_(2)
            layer.lora_B["default"].weight.data = torch.randn_like(layer.lora_B["default"].weight)
        self.check(model)

    def test_sparse_through_autograd_s_eyes(self):
        # One number of W, seen by its version.
        model = self.model()
        with torch.no_grad():
            self.weights(model)[0][5, 3] += 10
        self.check(model)

    def test_sparse_behind_autograd_s_back(self):
        # Nothing but a look at all of W could see this one: pack=False is for who does so.
        model = graft_lora.accelerate(models.two_layers(), pack=False)
        self.before, _ = step(model)
        self.weights(model)[0].data[5, 3] += 10
        self.check(model)

    def test_other_strides(self):
        model = self.model()
        weight = self.weights(model)[0]
        weight.data = torch.randn(40, 56).t()
        self.assertFalse(weight.is_contiguous())
        self.check(model)

    def test_another_dtype_and_back(self):
        model = self.model()
        model.to(torch.bfloat16)
        model(inputs().bfloat16())
        model.float()
        self.check(model)  # What the trip cost W is in W.

    def test_a_trained_base_is_peft_s_or_right(self):
        model = self.model()
        for weight in self.weights(model):
            weight.requires_grad_(True)
        y, gradients = step(model)
        plain, plain_gradients = step(graft_lora.restore(copy.deepcopy(model)))
        torch.testing.assert_close(y, plain, rtol=1e-5, atol=1e-5)
        for name, gradient in plain_gradients.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-4)


class Loading(State):
    def test_load_state_dict(self):
        other = models.two_layers(seed=5)
        for assign in (False, True):
            with self.subTest(assign=assign):
                model = self.model()
                model.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
                for layer in layers_of(model):  # assign makes parameters that train of all that is loaded.
                    layer.base_layer.requires_grad_(False)
                self.check(model)
                torch.testing.assert_close(step(model)[0], step(other)[0], rtol=1e-5, atol=1e-5)

    def test_state_dict_is_the_same(self):
        model = models.two_layers()
        keys = list(model.state_dict())
        names = [name for name, _ in model.named_parameters()]
        modules = [name for name, _ in model.named_modules()]
        graft_lora.accelerate(model)
        step(model)
        self.assertEqual(keys, list(model.state_dict()))
        self.assertEqual(names, [name for name, _ in model.named_parameters()])
        self.assertEqual(modules, [name for name, _ in model.named_modules()])


class Adapters(State):
    def add(self, model, name="other", **options):
        torch.manual_seed(17)
        config = LoraConfig(r=6, lora_alpha=3, target_modules=list(LAYERS), **options)
        model.add_adapter(name, config)
        models.fill(model, name)

    def test_added(self):
        model = self.model()
        self.add(model)
        self.check(model, changed=False)

    def test_set(self):
        model = self.model()
        self.add(model)
        model.set_adapter("other")
        self.check(model)
        model.set_adapter("default")
        self.check(model, changed=False)

    def test_deleted(self):
        model = self.model()
        self.add(model)
        model.set_adapter("other")
        step(model)
        model.delete_adapter("default")
        self.check(model)

    def test_added_again_under_the_same_name(self):
        model = self.model()
        self.add(model)
        model.set_adapter("other")
        model.delete_adapter("default")
        self.add(model, "default")
        model.set_adapter("default")
        model.delete_adapter("other")
        self.check(model)

    def test_several_active(self):
        model = self.model()
        self.add(model)
        model.base_model.set_adapter(["default", "other"])
        self.check(model)

    def test_weighted_sum_of_adapters(self):
        model = self.model()
        self.add(model)
        model.add_weighted_adapter(["default", "other"], [0.7, -0.4], "sum", combination_type="cat")
        model.set_adapter("sum")
        self.check(model)

    def test_none_is_active_in_a_layer(self):
        model = self.model()
        torch.manual_seed(17)
        model.add_adapter("part", LoraConfig(r=3, target_modules=["first"]))
        models.fill(model, "part")
        model.set_adapter("part")
        y, _ = step(model)
        plain, _ = step(graft_lora.restore(copy.deepcopy(model)))
        self.assertGreater(models.error(y, self.before), 1e-3)
        torch.testing.assert_close(y, plain, rtol=1e-5, atol=1e-5)

    def test_disabled_in_a_context(self):
        model = self.model()
        with model.disable_adapter():
            self.check(model, fused=False, reason="disabled")
        self.check(model, changed=False)

    def test_disabled_and_enabled(self):
        model = self.model()
        model.base_model.disable_adapter_layers()
        self.check(model, fused=False, reason="disabled")
        model.base_model.enable_adapter_layers()
        self.check(model, changed=False)

    def test_scaled(self):
        def set_scale(layer):
            layer.set_scale("default", 0.25)

        def scale(layer):
            layer.scale_layer(3.0)

        def write(layer):
            layer.scaling["default"] = -1.5

        for change in (set_scale, scale, write):
            with self.subTest(change.__name__):
                model = self.model()
                for layer in layers_of(model):
                    change(layer)
                self.check(model)
                for layer in layers_of(model):
                    layer.unscale_layer()
                self.check(model, changed=False)

    def test_modules_to_save(self):
        model = self.model(targets=["first"], modules_to_save=["second"])
        self.check(model, changed=False)
        with torch.no_grad():
            model.base_model.model.second.modules_to_save["default"].weight.mul_(2)
        self.check(model)

    def test_dora_falls_back(self):
        model = self.model(use_dora=True)
        self.check(model, fused=False, reason="ora", changed=False)

    def test_a_batch_of_several_adapters_falls_back(self):
        model = self.model()
        self.add(model)
        model.eval()
        names = ["default", "other", "__base__"]
        with models.Counted(model) as counted:
            y = model(inputs(), adapter_names=names)
        self.assertEqual({(0, 0)}, set(counted.fused.values()))
        plain = graft_lora.restore(copy.deepcopy(model))
        self.assertTrue(torch.equal(plain(inputs(), adapter_names=names), y))


if __name__ == "__main__":
    unittest.main()
