"""Which calls of a LoRA layer are fused and which are PEFT's, and that both give PEFT's numbers."""

from __future__ import annotations

import copy
import unittest
import warnings
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy
import torch
from peft import LoraConfig
from peft.helpers import disable_input_dtype_casting
from torch import nn
from torch.nn.utils import parametrize, prune

import graft_lora
from layers import (
    DEVICE,
    IN,
    MIDDLE,
    ROUNDING,
    Two,
    accelerated,
    build,
    call,
    fused,
    input_of,
    layers_of,
    reasons,
)

LOW = (torch.bfloat16, torch.float16) if DEVICE == "cuda" else (torch.bfloat16,)


def autocast_to(dtype: torch.dtype):
    return partial(torch.autocast, DEVICE, dtype)


class Calls(unittest.TestCase):
    def assert_as_good(self, plain: nn.Module, x: torch.Tensor, found: dict, inside=None, **kwargs) -> None:
        """No further from float64 than twice what PEFT is (in bfloat16: PEFT under autocast), and the
        rounding that another order of summation brings."""
        judges = [call(plain, x, **({"inside": inside} if inside else {}), **kwargs)]
        if inside is None and x.dtype in LOW:
            judges.append(call(plain, x, inside=autocast_to(x.dtype), **kwargs))
        exact = inside if inside in (torch.no_grad, torch.inference_mode) else nullcontext
        truth = call(copy.deepcopy(plain).double(), x.double(), inside=exact, **kwargs)
        self.assertEqual(found.keys(), judges[0].keys())
        self.assertEqual(found.keys(), truth.keys())
        for name, want in truth.items():
            with self.subTest(name=name):
                got = found[name]
                self.assertEqual((got.dtype, got.shape), (judges[0][name].dtype, judges[0][name].shape))
                error = (got.double() - want).norm()
                theirs = max((judge[name].double() - want).norm() for judge in judges)
                # In float32 sums of IN and then of MIDDLE terms; else the outputs of both layers are rounded.
                roundings = (IN + MIDDLE) ** 0.5 if got.dtype is torch.float32 else 2
                self.assertLessEqual(error, 2 * theirs + roundings * ROUNDING[got.dtype] * want.norm())

    def assert_fused(
        self, plain: nn.Module, x: torch.Tensor | None = None, inside=None, **kwargs
    ) -> nn.Module:
        """Both layers run fused, and are as good as PEFT."""
        x = input_of(plain) if x is None else x
        model = accelerated(plain)
        found = call(model, x, **({"inside": inside} if inside else {}), **kwargs)
        self.assertEqual(reasons(model), [])
        self.assertEqual(fused(model), 2)
        self.assert_as_good(plain, x, found, inside, **kwargs)
        return model

    def assert_own(self, plain: nn.Module, why: str, x: torch.Tensor | None = None, **kwargs) -> None:
        """The layers run PEFT's own forward for that reason, so that each bit is PEFT's."""
        x = input_of(plain) if x is None else x
        model = accelerated(plain)
        torch.manual_seed(11)
        found = call(model, x, **kwargs)
        torch.manual_seed(11)
        want = call(plain, x, **kwargs)
        self.assertIn(why, ", ".join(reasons(model)))
        self.assertEqual(fused(model), 0)
        self.assertEqual(found.keys(), want.keys())
        for name in want:
            self.assertTrue(torch.equal(found[name], want[name]), name)


class Fused(Calls):
    def test_configurations(self):
        for options in (
            {},
            {"base_bias": False},
            {"lora_bias": True},
            {"bias": "lora_only"},
            {"bias": "all"},
            {"bias": "all", "lora_bias": True},
            {"use_rslora": True},
            {"r": 1},
            {"rank_pattern": {"second": 9}, "alpha_pattern": {"first": 1}},
            {"adapters": 3},
            {"init_lora_weights": "pissa"},
            {"init_lora_weights": "orthogonal"},
        ):
            with self.subTest(**options):
                self.assert_fused(build(**options))

    def test_biases_are_trained(self):
        model = self.assert_fused(build(bias="all", lora_bias=True))
        names = {name for name, p in model.named_parameters() if p.grad is not None and name.endswith("bias")}
        self.assertEqual(len(names), 4)

    def test_lora_bias_without_a_base_bias(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = build(base_bias=False, lora_bias=True)
        self.assert_fused(plain)

    def test_types(self):
        for dtype in LOW:
            for options in ({}, {"autocast_adapter_dtype": False}, {"lora_bias": True}, {"bias": "all"}):
                with self.subTest(dtype=dtype, **options):
                    self.assert_fused(build(dtype, **options))

    def test_autocast(self):
        for low in LOW:
            for dtype in (torch.float32, low):
                for x_dtype in (torch.float32, low):
                    for options in (
                        {},
                        {"autocast_adapter_dtype": False},
                        {"lora_bias": True},
                        {"adapters": 2},
                    ):
                        with self.subTest(dtype=dtype, x=x_dtype, autocast=low, **options):
                            plain = build(dtype, **options)
                            self.assert_fused(plain, input_of(plain).to(x_dtype), inside=autocast_to(low))

    def test_casting_disabled(self):
        @contextmanager
        def disabled():
            with disable_input_dtype_casting(model):
                yield

        for dtype, options in ((torch.float32, {}), (torch.bfloat16, {"autocast_adapter_dtype": False})):
            plain = build(dtype, **options)
            model = graft_lora.accelerate(copy.deepcopy(plain))
            found = call(model, input_of(plain), inside=disabled)
            self.assertEqual((fused(model), reasons(model)), (2, []))
            self.assert_as_good(plain, input_of(plain), found)

    def test_shapes(self):
        for shape in ((IN,), (1, IN), (0, IN), (2, 0, IN), (3, 1, 5, IN), (1, 1, 1, 2, IN)):
            with self.subTest(shape=shape):
                plain = build()
                self.assert_fused(plain, input_of(plain, *shape))

    def test_strides(self):
        plain = build()
        wide = input_of(plain, 5, 3, 2 * IN)
        for x in (
            wide[..., ::2],
            wide[..., :IN].transpose(0, 1),
            wide[:, 1:, IN:],
            wide[:1, :, :IN].expand(4, 3, IN),
        ):
            self.assert_fused(plain, x)

    def test_several_active_adapters(self):
        for dtype in (torch.float32, torch.bfloat16):
            for active in (["more1", "default"], ["more1"], ["default", "more2", "more1"]):
                with self.subTest(dtype=dtype, active=active):
                    plain = build(dtype, adapters=3, lora_bias=True)
                    plain.base_model.set_adapter(active)
                    self.assert_fused(plain)

    def test_an_adapter_of_one_layer(self):
        plain = build()
        plain.add_adapter("partial", LoraConfig(r=2, target_modules=["second"], init_lora_weights=False))
        plain.base_model.set_adapter(["partial", "default"])
        self.assert_fused(plain)
        plain.set_adapter("partial")
        model = accelerated(plain)
        found = call(model, input_of(plain))
        self.assertEqual((fused(model), reasons(model)), (1, ["no active adapter has a part in this layer"]))
        self.assert_as_good(plain, input_of(plain), found)

    def test_without_gradients(self):
        plain = build(adapters=2)
        plain.base_model.set_adapter(["default", "more1"])
        for inside in (torch.no_grad, torch.inference_mode):
            self.assert_fused(plain, inside=inside)

    def test_only_x_or_only_adapters_have_gradients(self):
        frozen = build()
        frozen.requires_grad_(False)
        self.assert_fused(frozen)
        for part in ("lora_A", "lora_B"):
            plain = build()
            for name, parameter in plain.named_parameters():
                parameter.requires_grad_(part in name)
            self.assert_fused(plain)

    def test_x_is_a_parameter(self):
        plain = build()
        model = accelerated(plain)
        x = nn.Parameter(input_of(plain))
        model(x).sum().backward()
        self.assertEqual(fused(model), 2)
        self.assertEqual(x.grad.shape, x.shape)

    def test_scaling(self):
        plain = build()
        for layer in layers_of(plain):
            layer.scale_layer(3)
            layer.set_scale("default", 2)
        self.assert_fused(plain)

    def test_scaling_of_an_alpha_that_numpy_made(self):
        plain = build()
        for layer in layers_of(plain):
            layer.scaling["default"] = numpy.float64(8) / 4
        self.assert_fused(plain)

    def test_arguments_that_say_nothing(self):
        plain = build()
        model = accelerated(plain)
        layers_of(model)[0](input_of(plain), adapter_names=None, alora_offsets=None)
        self.assertEqual(fused(model), 1)
        layers_of(model)[0](x=input_of(plain))
        self.assertEqual(fused(model), 2)

    def test_after_state_changes(self):
        plain = build(adapters=2)
        model = accelerated(plain)
        x = input_of(plain)
        changes = (
            lambda m: m.eval(),
            lambda m: m.set_adapter("more1"),
            lambda m: (m.merge_adapter(), m.unmerge_adapter()),
            lambda m: m.set_adapter("default"),
            lambda m: m.delete_adapter("more1"),
            lambda m: m.add_adapter("new", LoraConfig(r=2, target_modules=["first", "second"])),
            lambda m: m.set_adapter("new"),
            lambda m: [setattr(p, "data", p.data * 2) for p in m.parameters()],
            lambda m: [p.data.mul_(0.5) for p in m.parameters()],
            lambda m: m.train(),
        )
        for i, change in enumerate(changes):
            for one in (plain, model):
                torch.manual_seed(i)
                change(one)
            before = fused(model)
            self.assert_as_good(plain, x, call(model, x))
            self.assertEqual(fused(model), before + 2)
        self.assertEqual(reasons(model), [])

    def test_float32_base_product_apart(self):
        """What runs on a GPU in float32: torch's product, then the delta in place. The CPU can do it too."""
        from graft_lora import lora

        plain = build(adapters=2, lora_bias=True)
        plain.base_model.set_adapter(["default", "more1"])
        x = input_of(plain)
        for layer in layers_of(plain):
            x = x if layer.in_features == IN else torch.tanh(y)
            x = x.detach().requires_grad_()
            base = layer.base_layer
            y = nn.functional.linear(x, base.weight, base.bias)
            for name in layer.active_adapters:
                a, b = layer.lora_A[name], layer.lora_B[name]
                y = lora.plus_delta(y, x, a.weight, b.weight, layer.scaling[name], 0.0, None, None, True)
                y = y + layer.scaling[name] * b.bias
            want = layer(x)
            got = torch.autograd.grad(y.sum(), [x, *layer.lora_A.parameters()])
            expected = torch.autograd.grad(want.sum(), [x, *layer.lora_A.parameters()])
            self.assertLess((y - want).abs().max(), 1e-5)
            for one, other in zip(got, expected):
                self.assertLess((one - other).abs().max(), 1e-5 * other.abs().max())


class Own(Calls):
    def test_disabled(self):
        plain = build()
        with plain.disable_adapter():
            self.assert_own(plain, "disabled")

    def test_merged(self):
        plain = build(adapters=2)
        plain.merge_adapter()
        self.assert_own(plain, "unmerge_adapter()")

    def test_disabled_while_merged(self):
        plain = build()
        plain.merge_adapter()
        plain.base_model.disable_adapter_layers()
        self.assert_own(plain, "disabled")

    def test_bias_that_is_broadcast(self):
        plain = build()
        for layer in layers_of(plain):
            layer.base_layer.bias = nn.Parameter(torch.tensor([0.5], device=DEVICE), requires_grad=False)
        self.assert_own(plain, "the base bias is (1,)")

    def test_scaling_without_a_value(self):
        plain = build()
        model = accelerated(plain)
        for one in (plain, model):
            for layer in layers_of(one):
                layer.scaling["default"] = float("nan")
        self.assertTrue(model(input_of(plain)).isnan().all())
        self.assertIn("its scaling is nan", ", ".join(reasons(model)))

    def test_variants(self):
        self.assert_own(build(use_dora=True), "DoraLinearVariant is not plain LoRA")

    def test_one_variant_among_adapters(self):
        plain = build()
        dora = LoraConfig(r=2, target_modules=["first", "second"], use_dora=True)
        plain.add_adapter("dora", dora)
        self.assert_fused(plain)
        plain.base_model.set_adapter(["default", "dora"])
        self.assert_own(plain, "DoraLinearVariant")

    def test_layers_of_an_older_peft(self):
        model = build()
        for layer in layers_of(model):
            del layer.lora_variant
        graft_lora.accelerate(model)
        self.assertEqual(reasons(model), ["was made by a PEFT older than 0.18: it has no lora_variant"])
        self.assertNotIn("_graft", layers_of(model)[0].__dict__)

    def test_no_active_adapter(self):
        plain = build()
        for layer in layers_of(plain):
            layer.set_adapter([])
        self.assert_own(plain, "no active adapter")

    def test_hooks_on_children(self):
        kinds = (
            lambda m: m.register_forward_hook(lambda module, x, y: y * 2),
            lambda m: m.register_forward_pre_hook(lambda module, x: (x[0] * 2,)),
            lambda m: m.register_full_backward_hook(lambda module, dx, dy: (dx[0] * 2,)),
            lambda m: m.register_full_backward_pre_hook(lambda module, dy: (dy[0] * 2,)),
        )
        children = (
            lambda layer: layer.base_layer,
            lambda layer: layer.lora_A["default"],
            lambda layer: layer.lora_B["default"],
            lambda layer: layer.lora_dropout["default"],
        )
        for hook in kinds:
            for child in children:
                plain = build(lora_dropout=0.1)
                for layer in layers_of(plain):
                    hook(child(layer))
                self.assert_own(plain, "has hooks")

    def test_a_hook_that_comes_and_goes(self):
        plain = build()
        model = accelerated(plain)
        x = input_of(plain)
        model(x)
        handle = layers_of(model)[0].lora_B["default"].register_forward_hook(lambda module, x, y: y + 1)
        self.assertFalse(torch.allclose(model(x), plain(x)))
        handle.remove()
        self.assertTrue(torch.allclose(model(x), plain(x), atol=1e-5))
        self.assertEqual(fused(model), 5)

    def test_hooks_on_the_layer_itself_are_no_hindrance(self):
        plain = build()
        for layer in layers_of(plain):
            layer.register_forward_hook(lambda module, x, y: y * 2)
            layer.register_full_backward_hook(lambda module, dx, dy: (dx[0] * 3,))
        self.assert_fused(plain)

    def test_global_hooks(self):
        seen = []
        handle = nn.modules.module.register_module_forward_hook(lambda module, x, y: seen.append(module))
        try:
            self.assert_own(build(), "global module hook")
        finally:
            handle.remove()
        self.assertTrue(any(type(module) is nn.Linear for module in seen))

    def test_children_of_other_classes(self):
        class Double(nn.Linear):
            def forward(self, x):
                return super().forward(x) * 2

        class Drop(nn.Dropout):
            pass

        def base(layer):
            layer.base_layer.__class__ = Double

        def a(layer):
            layer.lora_A["default"].__class__ = Double

        def b(layer):
            layer.lora_B["default"].__class__ = Double

        def drop(layer):
            layer.lora_dropout["default"] = Drop(0.5)

        def alpha(layer):
            layer.lora_dropout["default"] = nn.AlphaDropout(0.5)

        for change, why in (
            (base, "Double"),
            (a, "Double"),
            (b, "Double"),
            (drop, "Drop"),
            (alpha, "AlphaDropout"),
        ):
            plain = build()
            for layer in layers_of(plain):
                change(layer)
            self.assert_own(plain, why)

    def test_a_forward_of_its_own(self):
        for part in ("base_layer", "lora_A", "lora_B"):
            plain = build()
            for layer in layers_of(plain):
                child = getattr(layer, part)
                child = child if part == "base_layer" else child["default"]
                child.forward = DoubledForward(child)
            self.assert_own(plain, "forward of its own")

    def test_parametrizations(self):
        class Twice(nn.Module):
            def forward(self, w):
                return 2 * w

        changes = (
            lambda layer: parametrize.register_parametrization(layer.lora_A["default"], "weight", Twice()),
            lambda layer: nn.utils.parametrizations.weight_norm(layer.lora_B["default"]),
            lambda layer: prune.l1_unstructured(layer.lora_A["default"], "weight", amount=0.3),
        )
        for change in changes:
            plain = build()
            for layer in layers_of(plain):
                change(layer)
            model = plain  # none of these can be copied deeply with gradients in them; compare in turns
            want = call(model, input_of(model))
            graft_lora.accelerate(model)
            found = call(model, input_of(model))
            self.assertEqual((fused(model), len(reasons(model))), (0, 1))
            self.assertTrue(all(torch.equal(found[name], want[name]) for name in want))

    def test_a_trained_base(self):
        plain = build()
        for layer in layers_of(plain):
            layer.base_layer.weight.requires_grad_(True)
        self.assert_own(plain, "trained")

    def test_tensor_subclasses(self):
        class Mine(torch.Tensor):
            def __deepcopy__(self, memo):
                return nn.Parameter(self.detach().as_subclass(torch.Tensor).clone().as_subclass(Mine), False)

        for part in ("base_layer", "lora_A", "lora_B"):
            plain = build()
            for layer in layers_of(plain):
                child = getattr(layer, part)
                child = child if part == "base_layer" else child["default"]
                child.weight = nn.Parameter(child.weight.detach().as_subclass(Mine), requires_grad=False)
            self.assert_own(plain, "Mine")
        plain = build()
        self.assert_own(plain, "x is a Mine", input_of(plain).as_subclass(Mine))

    def test_arguments(self):
        plain = build(adapters=2)
        plain.eval()
        names = ["default", "__base__"]
        x = input_of(plain)
        model = accelerated(plain)
        want, found = plain(x, adapter_names=names), model(x, adapter_names=names)
        self.assertTrue(torch.equal(want, found))
        self.assertEqual(reasons(model), ["called with adapter_names"])
        with self.assertRaises(TypeError):  # nn.Linear's own
            layers_of(model)[0](x, 1.0)
        with self.assertRaises(TypeError):
            layers_of(model)[0](x, scale=1.0)

    def test_types_without_a_kernel(self):
        self.assert_own(build(torch.float64), "no kernel")
        if DEVICE == "cpu":
            self.assert_own(build(torch.float16), "float16")

    def test_types_that_differ(self):
        low = build()
        for layer in layers_of(low):
            layer.lora_A.bfloat16(), layer.lora_B.bfloat16()
        self.assert_own(low, "expected both float32")
        mixed = build()
        for layer in layers_of(mixed):
            layer.lora_A.bfloat16()
        with self.assertRaisesRegex(RuntimeError, "dtype"):
            mixed(input_of(mixed))
        with self.assertRaisesRegex(RuntimeError, "dtype"):
            accelerated(mixed)(input_of(mixed))

    def test_errors_are_peft_s(self):
        plain = build(torch.bfloat16)
        model = accelerated(plain)
        cases = (
            lambda m: m(input_of(plain).float()),
            lambda m: m(input_of(plain).long()),
            lambda m: with_casting_disabled(m, input_of(plain)),
        )
        for case in cases:
            with self.assertRaises(RuntimeError) as theirs:
                case(plain)
            with self.assertRaises(RuntimeError) as ours:
                case(model)
            self.assertEqual(str(theirs.exception), str(ours.exception))
        self.assertEqual(fused(model), 0)

    def test_a_wrong_shape_is_an_error(self):
        model = accelerated(build())
        for shape in ((2, IN + 1), (), (0,), (3, 0)):
            with self.assertRaises(RuntimeError):
                model(torch.zeros(shape, device=DEVICE))

    def test_dropouts_that_are_not_the_kernel_s(self):
        for drop in (nn.Dropout(0.5, inplace=True), nn.Dropout(1.0)):
            plain = build()
            for layer in layers_of(plain):
                layer.lora_dropout["default"] = drop
            model = accelerated(plain)
            x = torch.tanh(input_of(plain))
            torch.manual_seed(1)
            want = plain(x.clone())
            torch.manual_seed(1)
            self.assertTrue(torch.equal(model(x.clone()), want))
            self.assertEqual(reasons(model), ["the dropout is in place, or drops all"])

    def test_wide_ranks(self):
        self.assert_fused(build(r=256))
        self.assert_own(build(r=257), "rank 257")

    def test_scaling_of_a_hot_swap(self):
        plain = build()
        for layer in layers_of(plain):
            layer.scaling["default"] = torch.tensor(1.5)
        self.assert_own(plain, "hot swap")

    def test_transforms(self):
        plain = build()
        model = accelerated(plain)
        x = input_of(plain)
        self.assertTrue(torch.allclose(torch.vmap(model)(x), plain(x), atol=1e-6))
        one = torch.func.grad(lambda v: model(v).sum())(x)
        other = torch.func.grad(lambda v: plain(v).sum())(x)
        self.assertTrue(torch.allclose(one, other, atol=1e-6))
        self.assertEqual(fused(model), 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(model, x, check_trace=False)
        self.assertNotIn("graft", str(traced.inlined_graph))
        self.assertTrue(torch.allclose(traced(x), plain(x), atol=1e-6))

    def test_forward_mode(self):
        plain = build()
        model = accelerated(plain)
        x = input_of(plain)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            want = torch.autograd.forward_ad.unpack_dual(plain(dual)).tangent
            got = torch.autograd.forward_ad.unpack_dual(model(dual)).tangent
        self.assertTrue(torch.equal(got, want))
        self.assertEqual(fused(model), 0)

    def test_other_devices(self):
        model = accelerated(build())
        y = model.to("meta")(torch.zeros(3, IN, device="meta"))
        self.assertEqual(y.device.type, "meta")
        self.assertIn("meta", reasons(model)[0])
        self.assertEqual(fused(model), 0)

    def test_fake_tensors(self):
        from torch._subclasses.fake_tensor import FakeTensorMode

        model = accelerated(build())
        with FakeTensorMode(allow_non_fake_inputs=True):
            self.assertEqual(model(torch.zeros(3, IN, device=DEVICE)).shape, (3, 16))
            self.assertEqual(fused(model), 0)

    def test_gpt2_s_layer(self):
        from transformers.pytorch_utils import Conv1D

        plain = Two()
        plain.first, plain.second = Conv1D(MIDDLE, IN), Conv1D(16, MIDDLE)
        from peft import get_peft_model

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = LoraConfig(
                r=2, target_modules=["first", "second"], fan_in_fan_out=True, init_lora_weights=False
            )
            plain = get_peft_model(plain, config).to(DEVICE)
        x = torch.randn(3, IN, device=DEVICE)
        self.assert_own(plain, "Conv1D", x)


def with_casting_disabled(model: nn.Module, x: torch.Tensor):
    with disable_input_dtype_casting(model):
        return model(x)


class DoubledForward:
    """An instance's forward, as accelerate's hooks put one; follows its module through a deep copy."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, x):
        return type(self.module).forward(self.module, x) * 2


class Dropout(unittest.TestCase):
    def test_eval_and_zero_draw_nothing(self):
        for model in (accelerated(build(lora_dropout=0.5)).eval(), accelerated(build())):
            x = input_of(model)
            get_state = torch.cuda.get_rng_state if DEVICE == "cuda" else torch.get_rng_state
            state = get_state()
            model(x)
            self.assertTrue(torch.equal(state, get_state()))

    def test_draws_are_torch_s(self):
        model = accelerated(build(lora_dropout=0.5))
        x = input_of(model)
        torch.manual_seed(1)
        one = model(x)
        other = model(x)
        torch.manual_seed(1)
        self.assertTrue(torch.equal(model(x), one))
        self.assertFalse(torch.equal(one, other))

    def test_checkpointing_draws_the_same_mask(self):
        from torch.utils.checkpoint import checkpoint

        model = accelerated(build(lora_dropout=0.5, adapters=2))
        model.base_model.set_adapter(["default", "more1"])
        x = input_of(model).requires_grad_()
        torch.manual_seed(1)
        y = model(x)
        y.square().sum().backward()
        want = [x.grad] + [p.grad.clone() for p in model.parameters() if p.grad is not None]
        for reentrant in (True, False):
            x.grad = None
            model.zero_grad()
            torch.manual_seed(1)
            again = checkpoint(model, x, use_reentrant=reentrant)
            self.assertTrue(torch.equal(again, y))
            torch.randn(100, device=DEVICE)  # the generator goes on before backward
            again.square().sum().backward()
            found = [x.grad] + [p.grad for p in model.parameters() if p.grad is not None]
            self.assertTrue(all(torch.equal(one, other) for one, other in zip(found, want, strict=True)))
        self.assertEqual(reasons(model), [])

    def test_selective_checkpointing(self):
        from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

        def save_all(context, op, *args, **kwargs):
            return CheckpointPolicy.MUST_SAVE

        plain = build(adapters=2)
        plain.base_model.set_adapter(["default", "more1"])
        model = accelerated(plain)
        x = input_of(model)
        want = call(plain, x)
        contexts = partial(create_selective_checkpoint_contexts, save_all)
        found = {}
        x = x.requires_grad_()
        y = checkpoint(model, x, use_reentrant=False, context_fn=contexts)
        torch.manual_seed(7)
        y.backward(torch.randn(y.shape).to(DEVICE))
        found = {"y": y.detach(), "dx": x.grad}
        for name in found:
            self.assertTrue(torch.allclose(found[name], want[name], atol=1e-5), name)
        self.assertEqual(reasons(model), [])


@unittest.skipUnless(DEVICE == "cuda", "needs a GPU: GRAFT_TEST_DEVICE=cuda")
class Gpu(Calls):
    def test_the_base_product_of_float32_is_torch_s(self):
        """Bit for bit, whatever the setting of TF32: B is zero here, and the product wide enough to differ."""
        torch.manual_seed(0)
        layer = nn.Linear(512, 512, device="cuda")
        from peft import get_peft_model

        model = get_peft_model(nn.Sequential(layer), LoraConfig(target_modules=["0"]))
        x = torch.randn(64, 512, device="cuda")
        graft_lora.accelerate(model)
        results = []
        for allowed in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            try:
                results.append(model(x))
                self.assertTrue(torch.equal(results[-1], layer(x)))
            finally:
                torch.backends.cuda.matmul.allow_tf32 = False
        self.assertFalse(torch.equal(*results))
        self.assertEqual(fused(model), 2)

    def test_replayed_graphs_draw_new_masks(self):
        for dtype in (torch.float32, torch.bfloat16):
            model = accelerated(build(dtype, lora_dropout=0.5))
            x = input_of(model).requires_grad_()
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for _ in range(3):
                    model(x).square().sum().backward()
            torch.cuda.synchronize()
            model.zero_grad(set_to_none=True)
            x.grad = None
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = model(x)
                y.square().sum().backward()
            seen = []
            for _ in range(2):
                graph.replay()
                seen.append((y.clone(), x.grad.clone()))
            self.assertFalse(torch.equal(seen[0][0], seen[1][0]))
            self.assertFalse(torch.equal(seen[0][1], seen[1][1]))
            self.assertTrue(seen[0][0].isfinite().all())

    def test_data_parallel(self):
        plain = build()
        model = accelerated(plain)
        x = input_of(plain)
        devices = list(range(torch.cuda.device_count()))
        y = nn.DataParallel(model, devices)(x)
        self.assertTrue(torch.allclose(y, plain(x), atol=1e-5))
        if len(devices) > 1:
            y.sum().backward()
            self.assertEqual(fused(model), 0)

    def test_weights_elsewhere(self):
        plain = build()
        plain.get_base_model().first.base_layer.cpu()
        model = accelerated(plain)
        for one in (plain, model):
            with self.assertRaises(RuntimeError):
                one(input_of(build()))
        self.assertEqual(fused(model), 0)

    def test_moves_between_devices(self):
        plain = build()
        model = accelerated(plain)
        for device in ("cpu", "cuda", "cpu"):
            plain.to(device), model.to(device)
            x = input_of(plain).to(device)
            self.assertTrue(torch.allclose(model(x), plain(x), atol=1e-5))
        self.assertEqual((fused(model), reasons(model)), (6, []))


if __name__ == "__main__":
    unittest.main()
