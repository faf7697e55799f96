"""What accelerate() puts on a model, what restore() takes off, and what becomes of packed weights."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import unittest
import warnings

import torch
from peft import LoraConfig, LoHaConfig, PeftMixedModel, get_peft_model, inject_adapter_in_model
from torch import nn

import graft_lora
from layers import Two, accelerated, build, fused, input_of, layers_of, reasons, rows_of


def packed_bytes() -> int:
    gc.collect()
    return torch.ops.graft.packed_bytes()


def dicts_of(model: nn.Module) -> list[dict]:
    return [dict(module.__dict__) for module in model.modules()]


class Restore(unittest.TestCase):
    def assert_same(self, before: list[dict], after: list[dict]) -> None:
        self.assertEqual(len(before), len(after))
        for one, other in zip(before, after):
            self.assertEqual(list(one), list(other))
            self.assertTrue(all(one[key] is other[key] for key in one))

    def test_leaves_the_objects_as_they_were(self):
        model = build()
        before = dicts_of(model)
        self.assertIs(graft_lora.accelerate(model), model)
        self.assertNotEqual([list(d) for d in before], [list(d) for d in dicts_of(model)])
        model(input_of(model)).sum().backward()
        self.assertIs(graft_lora.restore(model), model)
        self.assert_same(before, dicts_of(model))
        self.assert_same(before, dicts_of(graft_lora.restore(model)))

    def test_nothing_else_is_touched(self):
        model = build()
        keys = list(model.state_dict())
        names = [name for name, _ in model.named_modules()], [name for name, _ in model.named_parameters()]
        classes = [type(module) for module in model.modules()]
        text = repr(model)
        graft_lora.accelerate(model)
        self.assertEqual(list(model.state_dict()), keys)
        self.assertEqual([type(module) for module in model.modules()], classes)
        self.assertEqual(repr(model), text)
        self.assertEqual(
            ([n for n, _ in model.named_modules()], [n for n, _ in model.named_parameters()]), names
        )

    def test_gives_peft_s_bits_again(self):
        plain = build()
        model = accelerated(plain)
        x = input_of(plain)
        model(x)
        self.assertTrue(torch.equal(graft_lora.restore(model)(x), plain(x)))

    def test_accelerate_again(self):
        model = accelerated(build())
        x = input_of(model)
        model(x)
        before = dicts_of(model)
        graft_lora.accelerate(model)
        self.assert_same(before, dicts_of(model))
        self.assertEqual(fused(model), 2)
        graft_lora.accelerate(graft_lora.restore(model))
        self.assertEqual(fused(model), 0)
        model(x)
        self.assertEqual(fused(model), 2)

    def test_a_model_without_lora(self):
        for model in (Two(), get_peft_model(Two(), LoHaConfig(target_modules=["first"]))):
            with self.assertRaisesRegex(
                graft_lora.GraftError, "has no LoRA layers.*get_peft_model"
            ) as caught:
                graft_lora.accelerate(model)
            self.assertEqual(caught.exception.code, "invalid_argument")
            graft_lora.restore(model)

    def test_layers_added_later(self):
        torch.manual_seed(0)
        model = get_peft_model(Two(), LoraConfig(target_modules=["first"], init_lora_weights=False))
        graft_lora.accelerate(model)
        both = LoraConfig(target_modules=["first", "second"], init_lora_weights=False)
        model.add_adapter("more", both)
        model.set_adapter("more")
        x = input_of(model)
        want = graft_lora.restore(copy.deepcopy(model))(x)
        self.assertTrue(torch.allclose(model(x), want, atol=1e-5))
        self.assertEqual(fused(model), 1)
        self.assertEqual(reasons(model), ["not accelerated: call graft_lora.accelerate(model)"])
        graft_lora.accelerate(model)
        self.assertTrue(torch.allclose(model(x), want, atol=1e-5))
        self.assertEqual([row.fused["forward"] for row in rows_of(model)], [2, 1])

    def test_kinds_of_models(self):
        def injected():
            config = LoraConfig(target_modules=["first", "second"], init_lora_weights=False)
            return inject_adapter_in_model(config, Two())

        def mixed():
            config = LoraConfig(target_modules=["first", "second"], init_lora_weights=False)
            return PeftMixedModel(Two(), config)

        def mixed_with_another():
            model = mixed()
            model.add_adapter("loha", LoHaConfig(target_modules=["first"], init_weights=False))
            model.set_adapter(["default", "loha"])
            return model

        x = torch.randn(3, 24)
        for make, count in ((injected, 2), (mixed, 2), (mixed_with_another, None)):
            torch.manual_seed(1)
            plain = make()
            model = accelerated(plain)
            self.assertTrue(torch.allclose(model(x), plain(x), atol=1e-5), make.__name__)
            if count is not None:
                self.assertEqual(fused(model), count, make.__name__)

    def test_one_layer_alone(self):
        model = build()
        layer = layers_of(model)[0]
        graft_lora.accelerate(layer)
        model(input_of(model))
        self.assertEqual([row.fused["forward"] for row in rows_of(model)], [1, 0])

    def test_modules_to_save(self):
        torch.manual_seed(2)
        plain = get_peft_model(
            Two(), LoraConfig(target_modules=["first"], modules_to_save=["second"], init_lora_weights=False)
        )
        model = accelerated(plain)
        x = torch.randn(3, 24)
        model(x).sum().backward(), plain(x).sum().backward()
        for (name, one), (_, other) in zip(model.named_parameters(), plain.named_parameters()):
            self.assertEqual(one.grad is None, other.grad is None, name)
            if one.grad is not None:
                self.assertTrue(torch.allclose(one.grad, other.grad, atol=1e-5), name)
        self.assertEqual(fused(model), 1)


class Copies(unittest.TestCase):
    def test_deepcopy_stays_accelerated_on_its_own(self):
        model = accelerated(build())
        x = input_of(model)
        model(x)
        twin = copy.deepcopy(model)
        self.assertEqual(fused(twin), 0)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(2)
        y, z = twin(x), model(x)
        self.assertEqual((fused(twin), fused(model)), (2, 4))
        self.assertTrue(torch.allclose(y, graft_lora.restore(copy.deepcopy(twin))(x), atol=1e-4))
        self.assertFalse(torch.allclose(y, z))
        graft_lora.restore(twin)
        model(x)
        self.assertEqual(fused(model), 6)

    def test_pickles_as_peft_s(self):
        model = accelerated(build())
        x = input_of(model)
        model(x)
        file = io.BytesIO()
        torch.save(model, file)
        for data in (pickle.dumps(model), file.getvalue()):
            self.assertNotIn(b"graft_lora", data)
        file.seek(0)
        for loaded in (pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
            self.assertTrue(torch.equal(loaded(x), graft_lora.restore(copy.deepcopy(model))(x)))
            graft_lora.accelerate(loaded)
            self.assertTrue(torch.equal(loaded(x), model(x)))
            self.assertEqual(fused(loaded), 2)
            loaded.merge_adapter(), loaded.unmerge_adapter()
            loaded(x)
            self.assertEqual(fused(loaded), 4)
            graft_lora.restore(loaded)
            self.assertTrue(
                all("_graft" not in m.__dict__ and "forward" not in m.__dict__ for m in loaded.modules())
            )

    def test_state_dict_goes_to_and_fro(self):
        one, other = build(), accelerated(build())
        x = input_of(one)
        with torch.no_grad():
            for parameter in one.parameters():
                parameter.add_(0.1)
        other(x)
        for assign in (False, True):
            other.load_state_dict(one.state_dict(), assign=assign)
            self.assertTrue(torch.allclose(other(x), one(x), atol=1e-5))
        self.assertEqual((fused(other), reasons(other)), (6, []))

    def test_replicas_of_data_parallel(self):
        """torch.nn.DataParallel runs copies of __dict__; without GPUs here, made as it makes them."""
        plain = build()
        model = accelerated(plain)
        layer = layers_of(model)[0]
        replica = layer._replicate_for_data_parallel()
        for module in ("base_layer", "lora_A", "lora_B"):
            replica._modules[module] = copy.deepcopy(layer._modules[module])
        replica.base_layer.weight.data.mul_(2)
        self.assertIs(replica.forward.__self__, replica)
        self.assertIs(layer.forward.__self__, layer)
        x = input_of(model)
        want = nn.functional.linear(x, replica.base_layer.weight, replica.base_layer.bias)
        self.assertFalse(torch.allclose(replica(x), layer(x)))
        delta = layers_of(plain)[0](x) - layer.base_layer(x)
        self.assertTrue(torch.allclose(replica(x), want + delta, atol=1e-5))


class Hooks(unittest.TestCase):
    """Hugging Face accelerate's hooks, which exchange an instance's forward."""

    def setUp(self):
        try:
            from accelerate import hooks
        except ImportError:
            self.skipTest("accelerate is not installed")
        self.hooks = hooks

    def hook(self):
        class Hook(self.hooks.ModelHook):
            def post_forward(self, module, output):
                return output + 1

        return Hook()

    def test_on_the_layer(self):
        for before in (True, False):
            with self.subTest(hook_before_accelerate=before):
                plain, model = build(), build()
                if not before:
                    graft_lora.accelerate(model)
                for one in (plain, model):
                    for layer in layers_of(one):
                        self.hooks.add_hook_to_module(layer, self.hook())
                graft_lora.accelerate(model)
                x = input_of(plain)
                self.assertTrue(torch.allclose(model(x), plain(x), atol=1e-5))
                graft_lora.restore(model)
                self.assertTrue(torch.equal(model(x), plain(x)))
                for one in (plain, model):
                    for layer in layers_of(one):
                        self.hooks.remove_hook_from_module(layer)
                self.assertTrue(torch.equal(model(x), plain(x)))
                self.assertFalse(
                    any(
                        type(v).__module__.startswith("graft_lora")
                        for d in dicts_of(model)
                        for v in d.values()
                    )
                )

    def test_on_the_base_layer(self):
        plain, model = build(), accelerated(build())
        for one in (plain, model):
            for layer in layers_of(one):
                self.hooks.add_hook_to_module(layer.base_layer, self.hook())
        x = input_of(plain)
        self.assertTrue(torch.equal(model(x), plain(x)))
        self.assertEqual(fused(model), 0)
        for layer in layers_of(model):
            self.hooks.remove_hook_from_module(layer.base_layer)
        model(x)
        self.assertEqual(fused(model), 2)  # although the class's own forward stays behind in __dict__


class PackedWeights(unittest.TestCase):
    def setUp(self):
        self.before = packed_bytes()

    def held(self) -> int:
        return packed_bytes() - self.before

    def test_comes_with_the_first_call_and_goes(self):
        model = accelerated(build())
        self.assertEqual(self.held(), 0)
        model(input_of(model))
        self.assertGreater(self.held(), 0)
        graft_lora.restore(model)
        self.assertEqual(self.held(), 0)
        graft_lora.accelerate(model)(input_of(model))
        self.assertGreater(self.held(), 0)
        del model
        self.assertEqual(self.held(), 0)

    def test_without_packing(self):
        model = graft_lora.accelerate(build(), pack=False)
        x = input_of(model)
        want = graft_lora.restore(copy.deepcopy(model))(x)
        model(x).sum().backward()
        self.assertEqual((self.held(), fused(model)), (0, 2))
        self.assertTrue(torch.allclose(model(x), want, atol=1e-5))
        graft_lora.accelerate(model)(x)
        self.assertGreater(self.held(), 0)
        graft_lora.accelerate(model, pack=False)
        self.assertEqual(self.held(), 0)
        with torch.no_grad():  # the edit that no sample of values has to see
            layers_of(model)[0].base_layer.weight.data[3, 5] += 100
        want = graft_lora.restore(copy.deepcopy(model))(x)
        self.assertTrue(torch.allclose(model(x), want, atol=1e-4))

    def test_dropped_by_changes(self):
        model = accelerated(build(adapters=2))
        x = input_of(model)
        changes = (
            lambda: model.merge_adapter(),
            lambda: model.unmerge_adapter(),
            lambda: model.add_adapter("new", LoraConfig(r=2, target_modules=["first", "second"])),
            lambda: model.delete_adapter("more1"),
        )
        for change in changes:
            with torch.no_grad():
                model(x)
            self.assertEqual(self.held() > 0, not layers_of(model)[0].merged)
            change()
            self.assertEqual(self.held(), 0)
        del model

    def test_one_copy_a_weight(self):
        model = accelerated(build())
        x = input_of(model)
        model(x).sum().backward()
        one = self.held()
        for _ in range(3):
            for layer in layers_of(model):
                layer.base_layer.weight.data = layer.base_layer.weight.data.clone()
            model(x).sum().backward()
            self.assertEqual(self.held(), one)
        model.to(torch.bfloat16)
        model(x.bfloat16()).sum().backward()
        self.assertLess(self.held(), one)
        model.double()
        model(x.double())
        self.assertEqual(self.held(), 0)

    def test_a_hundred_cycles_leak_nothing(self):
        for i in range(100):
            model = build()
            graft_lora.accelerate(model)
            x = input_of(model)
            model(x).sum().backward()
            if i % 4 == 0:
                graft_lora.restore(model)
            elif i % 4 == 1:
                model.add_adapter("new", LoraConfig(r=2, target_modules=["first", "second"]))
                model.delete_adapter("default")
                model(x)
            elif i % 4 == 2:
                model = model.merge_and_unload()
            del model
        self.assertEqual(self.held(), 0)

    def test_one_model_a_hundred_times(self):
        model = build()
        x = input_of(model)
        for _ in range(100):
            graft_lora.accelerate(model)(x)
            graft_lora.restore(model)
            self.assertEqual(torch.ops.graft.packed_bytes(), self.before)

    def test_edits_through_data(self):
        plain = build()
        model = accelerated(plain)
        x = input_of(plain)
        for edit in (lambda w: w.data.mul_(2), lambda w: w.data.add_(1), lambda w: w.data.zero_()):
            model(x)
            for one in (plain, model):
                for layer in layers_of(one):
                    edit(layer.base_layer.weight)
            self.assertTrue(torch.allclose(model(x), plain(x), atol=1e-4))
        self.assertEqual(reasons(model), [])


if __name__ == "__main__":
    unittest.main()
