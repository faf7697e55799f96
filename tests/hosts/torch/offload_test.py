"""accelerate() on models whose weights are elsewhere when nobody uses them: in main memory, on disk, on
the meta device, or in pieces on other machines. PEFT's own forward must run there, and be right."""

from __future__ import annotations

import collections
import io
import tempfile
import unittest

import torch
from torch import nn

import graft_lora
from layers import IN, Block
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear

LAYERS, ROWS = 2, 5
CALLS = 2 * LAYERS  # of LoRA layers in one forward pass
CHILDREN = ("base_layer", "lora_A.default", "lora_B.default")


def make_model():
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["up", "down"], init_lora_weights=False)
    return get_peft_model(nn.Sequential(*[Block() for _ in range(LAYERS)]), config)


def lora_layers(model):
    return [module for module in model.modules() if isinstance(module, LoraLinear)]


def make_input():
    return torch.randn(ROWS, IN, generator=torch.Generator().manual_seed(1))


class Checks(unittest.TestCase):
    def setUp(self):
        self.truth = make_model().double()(make_input().double()).detach()

    def counts(self, model):
        """Fused calls, others, and the reasons."""
        rows = graft_lora.report(model, file=io.StringIO())
        reasons = sum((collections.Counter(row.reasons) for row in rows), collections.Counter())
        return sum(row.fused["forward"] for row in rows), sum(reasons.values()), sorted(reasons)

    def assert_right(self, model):
        error = (model(make_input()).double() - self.truth).abs().max().item()
        self.assertLess(error, 1e-5)

    def assert_falls_back(self, offload):
        """`offload` the model before and after accelerate(): right, and PEFT's."""
        for before in (True, False):
            with self.subTest(before=before):
                model = make_model()
                if before:
                    graft_lora.accelerate(model)
                offload(model)
                if not before:
                    graft_lora.accelerate(model)
                self.assert_right(model)
                fused, others, reasons = self.counts(model)
                self.assertEqual((fused, others), (0, CALLS))
                self.assertEqual(len(reasons), 1)
                self.assertRegex(reasons[0], "hook|forward")
                yield model


class Offload(Checks):
    def test_main_memory(self):
        from accelerate import cpu_offload
        from accelerate.hooks import remove_hook_from_submodules

        def offload(model):
            cpu_offload(model, execution_device=torch.device("cpu"))
            for layer in lora_layers(model):
                self.assertEqual(layer.base_layer.weight.device.type, "meta")

        for model in self.assert_falls_back(offload):
            remove_hook_from_submodules(model)
            self.assert_right(model)
            self.assertEqual(self.counts(model)[:2], (CALLS, CALLS))

    def test_disk(self):
        from accelerate import disk_offload

        with tempfile.TemporaryDirectory() as folder:
            for _ in self.assert_falls_back(
                lambda model: disk_offload(model, folder, execution_device=torch.device("cpu"))
            ):
                pass

    def test_device_map(self):
        """accelerate puts hooks on every part of a model that it spreads, also where nothing is offloaded."""
        from accelerate import dispatch_model

        blocks = [f"base_model.model.{number}" for number in range(LAYERS)]
        for names in (blocks, [f"{block}.{child}" for block in blocks for child in ("up", "down")]):
            device_map = dict.fromkeys(names, "cpu")

            def dispatch(model):
                dispatch_model(model, device_map=device_map, main_device="cpu", force_hooks=True)

            for _ in self.assert_falls_back(dispatch):
                pass

    def test_restore_under_hooks(self):
        """Hooks of accelerate's keep the forward they found; restore() takes Graft's out of there too."""
        from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

        model = graft_lora.accelerate(make_model())
        for layer in lora_layers(model):
            add_hook_to_module(layer, ModelHook())
        self.assert_right(model)
        self.assertEqual(self.counts(model)[:2], (CALLS, 0))
        graft_lora.restore(model)
        self.assertEqual(self.counts(model), (0, 0, []))
        self.assert_right(model)
        for layer in lora_layers(model):
            remove_hook_from_module(layer)
            self.assertIs(layer.forward.__func__, LoraLinear.forward)
        self.assert_right(model)

    def test_hooks_on_a_lora_layer_itself_run(self):
        model = graft_lora.accelerate(make_model())
        seen = []
        for layer in lora_layers(model):
            layer.register_forward_pre_hook(lambda module, args: seen.append("before"))
            layer.register_forward_hook(lambda module, args, output: seen.append("after"))
        self.assert_right(model)
        self.assertEqual(seen, ["before", "after"] * CALLS)
        self.assertEqual(self.counts(model)[:2], (CALLS, 0))

    def test_meta(self):
        model = graft_lora.accelerate(make_model().to("meta"))
        output = model(make_input().to("meta"))
        self.assertEqual((output.device.type, output.shape), ("meta", (ROWS, IN)))

    def test_meta_then_loaded(self):
        state = make_model().state_dict()
        model = graft_lora.accelerate(make_model().to("meta"))
        model.load_state_dict(state, assign=True)
        self.assert_right(model)
        self.assertEqual(self.counts(model)[:2], (CALLS, 0))

    def test_local_shards_of_tensor_parallelism(self):
        """Transformers up to 5.14: plain parameters, a plan's name on the module, and hooks."""
        model = graft_lora.accelerate(make_model())
        for layer in lora_layers(model):
            layer.base_layer._hf_tp_plan = "colwise"
        self.assert_right(model)
        fused, others, reasons = self.counts(model)
        self.assertEqual((fused, others), (0, CALLS))
        self.assertRegex(reasons[0], "tensor.parallel|_hf_tp_plan")


class GatheringParameters(dict):
    """As DeepSpeed's ZeRO-3 has it: whoever reads an absent parameter makes all machines gather it."""

    gathered = 0

    def __getitem__(self, key):
        parameter = super().__getitem__(key)
        if parameter is not None and parameter.numel() == 0:
            GatheringParameters.gathered += 1
        return parameter


class Zero3(Checks):
    """A stand-in for DeepSpeed's ZeRO-3: parameters are empty but while their own module's hooks run."""

    def shard(self, model):
        for layer in lora_layers(model):
            for child in CHILDREN:
                module = layer.get_submodule(child)
                module._parameters = GatheringParameters(module._parameters)
                whole = {name: value.data for name, value in module._parameters.items() if value is not None}

                def gather(module, *args, whole=whole):
                    for name, value in whole.items():
                        dict.__getitem__(module._parameters, name).data = value

                def release(module, *args, whole=whole):
                    for name in whole:
                        dict.__getitem__(module._parameters, name).data = torch.empty(0)

                for name in whole:
                    module._parameters[name].ds_id = id(module)
                module.register_forward_pre_hook(gather)
                module.register_forward_hook(release)
                release(module)

    def test_falls_back(self):
        for model in self.assert_falls_back(self.shard):
            for layer in lora_layers(model):
                self.assertEqual(dict.__getitem__(layer.base_layer._parameters, "weight").numel(), 0)

    def test_gathers_nothing_of_its_own(self):
        """Looking at a layer must not read its weights: here each reading is a collective."""
        gathered = []
        for accelerated in (False, True):
            model = make_model()
            if accelerated:
                graft_lora.accelerate(model)
            self.shard(model)
            GatheringParameters.gathered = 0
            with torch.no_grad():
                model(make_input())
            gathered.append(GatheringParameters.gathered)
        self.assertEqual(gathered[0], gathered[1])


if __name__ == "__main__":
    unittest.main()
