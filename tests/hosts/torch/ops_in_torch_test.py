"""The ops inside torch: opcheck, autocast, compiled, differentiated twice, transformed; and bad input."""

from __future__ import annotations

import sys
import unittest
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parent))
from op_cases import (  # noqa: E402
    CASES,
    DEVICE,
    DTYPES,
    HALVES,
    PRODUCTS,
    SCALING,
    assert_earned,
    draw,
    lora_linear,
    random_cotangent,
    results,
)

import graft_lora  # noqa: E402
from graft_lora import GraftError  # noqa: E402
from graft_lora.lora import LoraDelta, LoraDeltaAdd, LoraLinear  # noqa: E402

ops = torch.ops.graft


def leaves(tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


class Opcheck(unittest.TestCase):
    def test_differentiable_ops(self):
        for name, case in CASES.items():
            for shape in ((5, 24), (2, 3, 24)):
                tensors = leaves(case.inputs(draw(*shape), torch.float32, 3))
                numbers = {"softmax": (SCALING,), "lora_linear": (SCALING,), "lora_delta": (SCALING,)}.get(
                    name, ()
                )
                with self.subTest(name, shape=shape):
                    torch.library.opcheck(getattr(ops, name).default, (*tensors, *numbers))

    def test_forward_and_backward_ops(self):
        for dtype in DTYPES:
            x, w, bias, a, b = CASES["lora_linear"].inputs(draw(2, 3, 24, dtype=dtype), torch.float32, 3)
            y, h = ops.lora_linear_forward(x, w, bias, a, b, SCALING, 0.0, None, True, False)
            rng = torch.tensor([1, 2], device=DEVICE)
            n = draw(24, seed=8)
            _, mean, rstd = ops.layer_norm_forward(x, n, n, 1e-5)
            _, s, rms = ops.rms_norm_forward(x, x, n, 1e-5)
            calls = [
                (ops.linear_forward, (x, w, bias, False)),
                (ops.linear_forward, (x, w, None, True)),
                (ops.linear_backward, (y, w, False)),
                (ops.lora_linear_forward, (x, w, bias, a, b, SCALING, 0.0, None, True, True)),
                (ops.lora_linear_forward, (x, w, None, a, b, SCALING, 0.1, rng, False, False)),
                (ops.lora_linear_backward, (y, x, h, w, a, b, SCALING, 0.1, rng, True, True, True, False)),
                (ops.lora_linear_backward, (y, x, h, w, a, b, SCALING, 0.0, None, False, True, False, False)),
                (ops.lora_delta_forward, (x, a, b, SCALING, 0.0, None, True)),
                (ops.lora_delta_add_, (y.clone(), x, a, b, SCALING, 0.0, None, True)),
                (ops.lora_delta_backward, (y, x, h, a, b, SCALING, 0.0, None, True, True, True)),
                (ops.softmax_forward, (x, SCALING)),
                (ops.softmax_backward, (x, x, SCALING)),
                (ops.rms_norm_forward, (x, None, None, 1e-5)),
                (ops.rms_norm_forward, (x, x, n, 1e-5)),
                (ops.rms_norm_backward, (x, s, n, rms, x, 1e-5, True, True)),
                (ops.rms_norm_backward, (x, s, None, rms, None, 1e-5, True, False)),
                (ops.layer_norm_forward, (x, n, None, 1e-5)),
                (ops.layer_norm_backward, (x, x, n, mean, rstd, 1e-5, True, True, False)),
            ]
            for op, arguments in calls:
                with self.subTest(str(op), dtype=dtype):
                    torch.library.opcheck(op.default, arguments)


class Autocast(unittest.TestCase):
    def test_values_and_gradients(self):
        # x in float32 is cast once, W too unless it is packed; A and B stay in float32, their gradients too.
        for half in HALVES:
            for pack, w_dtype in ((False, torch.float32), (True, torch.float32), (False, half), (True, half)):
                x, w, bias, a, b = CASES["lora_linear"].inputs(draw(2, 9, 40), torch.float32, 8)
                w = w.to(w_dtype)
                for name, tensors in (
                    ("lora_linear", (x, w, bias, a, b)),
                    ("linear", (x, w, bias)),
                    ("lora_delta", (x, a, b)),
                ):
                    more = {} if name == "lora_delta" else {"pack": pack}
                    for function in (CASES[name].graft, CASES[name].op):

                        def graft(*t):
                            with torch.autocast(DEVICE, half):
                                return function(*t, **more)

                        def plain(*t):
                            return CASES[name].composed(t[0].to(half), *t[1:])

                        got, composed = results(graft, tensors), results(plain, tensors)
                        truth = results(CASES[name].composed, tuple(t.double() for t in tensors))
                        self.assertEqual(got[0].dtype, half)
                        for i, three in enumerate(zip(got, composed, truth, strict=True)):
                            with self.subTest(name, half=half, pack=pack, w=w_dtype):
                                assert_earned(self, *three, f"{name} {i}")

    def test_as_linear_is_cast(self):
        x, w = draw(5, 24), draw(20, 24)
        for half in HALVES:
            with torch.autocast(DEVICE, half):
                self.assertEqual(graft_lora.linear(x, w).dtype, F.linear(x, w).dtype)
                self.assertEqual(graft_lora.linear(x.to(half), w).dtype, F.linear(x.to(half), w).dtype)
                with torch.autocast(DEVICE, enabled=False):
                    self.assertEqual(graft_lora.linear(x, w).dtype, torch.float32)
                for name in ("softmax", "rms_norm", "layer_norm"):
                    self.assertEqual(CASES[name].graft(*CASES[name].inputs(x, half, 8)).dtype, torch.float32)

    def test_backward_within(self):
        x, w, bias, a, b = leaves(CASES["lora_linear"].inputs(draw(9, 40), torch.float32, 8))
        with torch.autocast(DEVICE, torch.bfloat16):
            y = graft_lora.lora_linear(x, w, bias, a, b)
            dy = draw(9, 20, dtype=torch.bfloat16)
            inside = torch.autograd.grad(y, (x, w, bias, a, b), dy, retain_graph=True)
        outside = torch.autograd.grad(y, (x, w, bias, a, b), dy)
        for one, two in zip(inside, outside):
            self.assertTrue(torch.equal(one, two))


class Compiled(unittest.TestCase):
    """With fullgraph=True, against eager: the same bits, as the same kernels run."""

    SHAPES = ((3, 4, 24), (5, 7, 24), (6, 9, 24), (24,), (2, 0, 24))

    def setUp(self):
        torch._dynamo.reset()
        limit = torch._dynamo.config.patch(
            recompile_limit=20
        )  # a graph of each kind of shape, with grad and without
        limit.__enter__()
        self.addCleanup(limit.__exit__, None, None, None)

    def compare(self, function, parameters, shapes=SHAPES, backend="aot_eager", dynamic=None):
        compiled = torch.compile(function, fullgraph=True, backend=backend, dynamic=dynamic)
        for shape in shapes:
            x = draw(*shape).requires_grad_()
            one, two = function(x, *parameters), compiled(x, *parameters)
            torch.testing.assert_close(one, two, rtol=0, atol=0)
            dy = random_cotangent(one, 0)
            wanted = (x, *(t for t in parameters if t.requires_grad))
            for g, h in zip(
                torch.autograd.grad(one, wanted, dy), torch.autograd.grad(two, wanted, dy), strict=True
            ):
                torch.testing.assert_close(g, h, rtol=1e-6, atol=1e-6)
            with torch.no_grad():
                self.assertTrue(torch.equal(function(x, *parameters), compiled(x, *parameters)))

    def test_functions_and_ops(self):
        for name, case in CASES.items():
            for function, dynamic in ((case.graft, None), (case.op, True)):
                torch._dynamo.reset()

                def run(x, *more, function=function):
                    y = function(x.sin(), *more)
                    return (y[0] * y[1] if isinstance(y, tuple) else y) * 2

                tensors = leaves(case.inputs(draw(24), torch.float32, 8)[1:])
                shapes = self.SHAPES[:3] if dynamic else self.SHAPES
                if name == "add_rms_norm":  # whose residual is of one shape

                    def run(x, w, function=function):
                        y, s = function(x.sin(), x.cos(), w)
                        return y * s

                    tensors = tensors[-1:]
                with self.subTest(name, dynamic=dynamic, op=function is case.op):
                    self.compare(run, tensors, shapes, dynamic=dynamic)

    def test_functions_that_peft_goes_through(self):
        w, bias, a, b = leaves(CASES["lora_linear"].inputs(draw(24), torch.float32, 8)[1:])
        self.compare(
            lambda x, w, bias, a, b: LoraLinear.apply(x.sin(), w, bias, a, b, SCALING, 0.0, None, True).sin(),
            (w.detach(), bias, a, b),
        )
        torch._dynamo.reset()
        self.compare(lambda x, a, b: LoraDelta.apply(x.sin(), a, b, SCALING, 0.0, None).sin(), (a, b))
        torch._dynamo.reset()
        self.compare(
            lambda x, a, b: LoraDeltaAdd.apply(x[..., :20].cos(), x.sin(), a, b, SCALING, 0.0, None).sin(),
            (a, b),
        )

    def test_one_tensor_in_two_places(self):
        # torch 2.11 loses a gradient if a compiled autograd.Function is given one tensor twice.
        scale = draw(24, seed=3).requires_grad_()
        self.compare(lambda x, w: graft_lora.layer_norm(x, w, w), (scale,))
        torch._dynamo.reset()
        self.compare(lambda x, w: graft_lora.add_rms_norm(x, x, w)[0] * x, (scale,))

    def test_dropout(self):
        w, bias, a, b = leaves(CASES["lora_linear"].inputs(draw(24), torch.float32, 8)[1:])
        rng = torch.tensor([3, 4], device=DEVICE)
        self.compare(
            lambda x, w, bias, a, b: graft_lora.lora_linear(x, w, bias, a, b, SCALING, 0.5, rng),
            (w, bias, a, b),
        )
        torch._dynamo.reset()
        compiled = torch.compile(graft_lora.lora_delta, fullgraph=True, backend="aot_eager")
        x = torch.ones(64, 24, device=DEVICE)
        torch.manual_seed(0)
        one, two = compiled(x, a, b, 1.0, 0.5), compiled(x, a, b, 1.0, 0.5)
        self.assertFalse(torch.equal(one, two))  # a new mask each time
        torch.manual_seed(0)
        self.assertTrue(torch.equal(compiled(x, a, b, 1.0, 0.5), one))

    def test_autocast(self):
        w, bias, a, b = leaves(CASES["lora_linear"].inputs(draw(24), torch.float32, 8)[1:])
        for pack in (False, True):

            def run(x, w, bias, a, b):
                with torch.autocast(DEVICE, torch.bfloat16):
                    return graft_lora.lora_linear(x, w, bias, a, b, SCALING, pack=pack).float()

            torch._dynamo.reset()
            self.compare(run, (w, bias, a, b))

    def test_with_inductor(self):
        import shutil

        if DEVICE == "cpu" and shutil.which("g++") is None:
            self.skipTest("inductor needs g++ on the CPU")
        w, bias, a, b = leaves(CASES["lora_linear"].inputs(draw(24), torch.float32, 8)[1:])
        norm = leaves((draw(20, seed=5),))[0]

        def run(x, w, bias, a, b, norm):
            y = ops.lora_linear(x * 2, w, bias, a, b, SCALING) + graft_lora.lora_delta(x.sin(), a, b)
            y, s = graft_lora.add_rms_norm(y, y * 2, norm)
            return graft_lora.layer_norm(graft_lora.softmax(y), norm, norm) + s

        compiled = torch.compile(run, fullgraph=True)
        for shape in ((3, 4, 24), (5, 4, 24), (6, 9, 24)):
            x = draw(*shape).requires_grad_()
            one, two = run(x, w, bias, a, b, norm), compiled(x, w, bias, a, b, norm)
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
            dy = random_cotangent(one, 0)
            wanted = (x, w, bias, a, b, norm)
            for g, h in zip(torch.autograd.grad(one, wanted, dy), torch.autograd.grad(two, wanted, dy)):
                torch.testing.assert_close(g, h, rtol=1e-4, atol=1e-4)

    def test_checks_are_made_while_tracing(self):
        compiled = torch.compile(graft_lora.lora_delta, fullgraph=True, backend="aot_eager")
        with self.assertRaisesRegex(Exception, r"b: expected \(out_features, 3\), got \(20, 4\)"):
            compiled(draw(5, 24), draw(3, 24), draw(20, 4))


class Transforms(unittest.TestCase):
    def test_second_derivatives(self):
        for name, case in CASES.items():
            for function in (case.graft, case.op):

                def second(f, tensors):
                    tensors = [t.detach().requires_grad_() for t in tensors]
                    y = f(*tensors)
                    y = y[0] * y[1].cos() if isinstance(y, tuple) else y
                    first = torch.autograd.grad(y.sin().sum(), tensors, create_graph=True)
                    penalty = sum(g.square().sum() for g in first)
                    return torch.autograd.grad(penalty + y.sum(), tensors)

                tensors = case.inputs(draw(33, 24), torch.float32, 3)
                composed = _doubly.get(name, case.composed)
                got, plain = second(function, tensors), second(composed, tensors)
                truth = second(composed, [t.double() for t in tensors])
                for i, three in enumerate(zip(got, plain, truth, strict=True)):
                    assert_earned(self, *three, f"{name} {i}")

    def test_second_derivative_of_a_sum(self):
        # dy needs no gradient here: torch's once_differentiable would miss that dx depends on W.
        x, w = draw(4, 8).requires_grad_(), draw(8, 8).requires_grad_()
        (dx,) = torch.autograd.grad(graft_lora.linear(x, w).sum(), x, create_graph=True)
        (dw,) = torch.autograd.grad(dx.square().sum(), w)
        (dx2,) = torch.autograd.grad(F.linear(x, w).sum(), x, create_graph=True)
        torch.testing.assert_close(dw, torch.autograd.grad(dx2.square().sum(), w)[0], rtol=1e-4, atol=1e-4)

    def test_inputs_that_depend_on_each_other(self):
        # The gradient of x must not take in what reaches x through W.
        x = draw(8, 8).requires_grad_()

        def penalty(linear, x):
            y = linear(x, x.sin() @ x)
            (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            return torch.autograd.grad(dx.square().sum(), x)[0]

        torch.testing.assert_close(penalty(graft_lora.linear, x), penalty(F.linear, x), rtol=1e-3, atol=1e-2)

    def test_second_derivatives_with_dropout_are_refused(self):
        tensors = leaves(CASES["lora_linear"].inputs(draw(6, 24), torch.float32, 3))
        y = graft_lora.lora_linear(*tensors, SCALING, 0.5)
        with self.assertRaisesRegex(GraftError, "second derivatives") as caught:
            torch.autograd.grad(y.sum(), tensors, create_graph=True)
        self.assertEqual(caught.exception.code, "unsupported")

    def test_functional_transforms_are_refused(self):
        for name, case in CASES.items():
            tensors = case.inputs(draw(6, 24), torch.float32, 3)

            def loss(x, *rest):
                y = case.graft(x, *rest)
                return (y[0] if isinstance(y, tuple) else y).sum()

            for transform in (
                lambda: torch.func.grad(loss)(*tensors),
                lambda: torch.func.jvp(lambda x: loss(x, *tensors[1:]), tensors[:1], tensors[:1]),
                lambda: torch.func.jacrev(loss)(*tensors),
                lambda: torch.func.jacfwd(loss)(*tensors),
                lambda: torch.func.hessian(loss)(*tensors),
                lambda: torch.vmap(lambda row: loss(row[None], *tensors[1:]))(tensors[0]),
            ):
                with self.subTest(name), self.assertRaises(RuntimeError):
                    transform()
            with self.subTest(name), forward_ad.dual_level(), self.assertRaises(GraftError) as caught:
                loss(forward_ad.make_dual(tensors[0], tensors[0]), *tensors[1:])
            self.assertEqual(caught.exception.code, "unsupported")

    def test_checkpointing(self):
        for reentrant in (False, True):
            tensors = leaves(CASES["lora_linear"].inputs(draw(6, 24), torch.float32, 3))

            def run(*t):
                return graft_lora.lora_linear(*t, SCALING, 0.5).sin()

            torch.manual_seed(1)
            plain = torch.autograd.grad(run(*tensors).sum(), tensors)
            torch.manual_seed(1)
            y = checkpoint(run, *tensors, use_reentrant=reentrant)
            y.sum().backward()  # the mask is drawn again, the same
            for g, t in zip(plain, tensors):
                self.assertTrue(torch.equal(g, t.grad))

    def test_meta_and_fake(self):
        for name, case in CASES.items():
            tensors = case.inputs(draw(2, 3, 24), torch.float32, 3)
            real = case.graft(*tensors)
            meta = case.graft(*(t.to("meta").requires_grad_() for t in tensors))
            for one, two in zip(*(o if isinstance(o, tuple) else (o,) for o in (real, meta))):
                self.assertEqual(
                    (one.shape, one.dtype, one.stride()), (two.shape, two.dtype, two.stride()), name
                )
                self.assertEqual(two.device.type, "meta")

    def test_saved_tensors_are_watched(self):
        # An input that is written between forward and backward is found out, as torch's own ops find it.
        for name in PRODUCTS:
            tensors = leaves(CASES[name].inputs(draw(6, 24), torch.float32, 3))
            y = CASES[name].graft(*tensors)
            with torch.no_grad():
                tensors[1].mul_(2)
            with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation"):
                y.sum().backward()

    def test_an_input_that_is_no_leaf_and_an_output_that_is_written(self):
        x, w, bias, a, b = leaves(CASES["lora_linear"].inputs(draw(6, 24), torch.float32, 3))
        y = graft_lora.lora_linear(x * 2, w, bias, a, b, SCALING)
        y.mul_(3)
        one = torch.autograd.grad(y.sum(), (x, a))
        two = torch.autograd.grad((lora_linear(x * 2, w, bias, a, b) * 3).sum(), (x, a))
        for g, h in zip(one, two):
            torch.testing.assert_close(g, h, rtol=1e-5, atol=1e-4)


# Made of what torch differentiates twice.
_doubly = {
    "linear": F.linear,
    "lora_linear": lambda x, w, bias, a, b: F.linear(x, w, bias) + F.linear(F.linear(x, a), b) * SCALING,
    "lora_delta": lambda x, a, b: F.linear(F.linear(x, a), b) * SCALING,
}


class BadInput(unittest.TestCase):
    def refused(self, code, pattern, function, *arguments, **more):
        with self.assertRaisesRegex(GraftError, pattern) as caught:
            function(*arguments, **more)
        self.assertEqual(caught.exception.code, code)

    def test_shapes(self):
        x, w, bias, a, b = CASES["lora_linear"].inputs(draw(6, 24), torch.float32, 3)
        bad = "invalid_argument"
        for f in (graft_lora.lora_linear, ops.lora_linear):
            self.refused(
                bad, r"\[lora_linear\] a: expected \(rank, 24\), got \(24, 3\)", f, x, w, bias, a.t(), b
            )
            self.refused(
                bad, r"\[lora_linear\] b: expected \(20, 3\), got \(3, 20\)", f, x, w, bias, a, b.t()
            )
            self.refused(
                bad, r"weight: expected \(out_features, 24\), got \(24, 20\)", f, x, w.t(), bias, a, b
            )
            self.refused(
                bad, r"weight: expected \(out_features, 24\), got \(20,\)", f, x, w[:, 0], bias, a, b
            )
            self.refused(bad, r"bias: expected \(20,\), got \(1,\)", f, x, w, bias[:1], a, b)
            self.refused(bad, r"bias: expected \(20,\), got \(\)", f, x, w, bias[0], a, b)
            self.refused(bad, r"x: expected \(\.\.\., features\)", f, x[0, 0], w, bias, a, b)
            self.refused(bad, r"rank of 1 to 256 rows, got \(0, 24\)", f, x, w, bias, a[:0], b[:, :0])
            wide = draw(257, 24), draw(20, 257)
            self.refused(bad, r"rank of 1 to 256 rows, got \(257, 24\)", f, x, w, bias, *wide)
            many = x.reshape(1, 1, 1, 1, 1, 1, 1, 6, 24)
            self.refused("unsupported", "at most 8 dimensions, got 9", f, many, w, bias, a, b)
        for f in (graft_lora.lora_delta, ops.lora_delta):
            self.refused(
                bad, r"\[lora_delta\] b: expected \(out_features, 3\), got \(20, 2\)", f, x, a, b[:, :2]
            )
        n = draw(24)
        self.refused(
            bad, r"\[rms_norm\] weight: expected \(24,\), got \(23,\)", graft_lora.rms_norm, x, n[:23]
        )
        self.refused(
            bad, r"residual: expected \(6, 24\), as x, got \(5, 24\)", graft_lora.add_rms_norm, x, x[:5], n
        )
        self.refused(bad, r"bias: expected \(24,\), got \(1, 24\)", graft_lora.layer_norm, x, n, n[None])
        self.refused(bad, r"\[softmax\] x: expected \(\.\.\., features\)", graft_lora.softmax, x[0, 0])

    def test_types(self):
        x, w, bias, a, b = CASES["lora_linear"].inputs(draw(6, 24), torch.float32, 3)
        for dtype in (torch.float64, torch.int64, torch.int32, torch.bool, torch.complex64, torch.int8):
            name = str(dtype).removeprefix("torch.")
            for i, tensor in enumerate(("x", "weight", "bias", "a", "b")):
                tensors = [t.to(dtype) if i == j else t for j, t in enumerate((x, w, bias, a, b))]
                self.refused("unsupported", rf"{tensor}: .*got {name}", graft_lora.lora_linear, *tensors)
            self.refused("unsupported", f"x: .*got {name}", graft_lora.softmax, x.to(dtype))
            self.refused("unsupported", f"weight: .*got {name}", graft_lora.layer_norm, x, draw(24).to(dtype))
        half = x.bfloat16()
        self.refused("invalid_argument", "residual: expected float32, as x", graft_lora.add_rms_norm, x, half)

    def test_halves_without_a_kernel(self):
        if DEVICE != "cpu":
            self.skipTest("CUDA has kernels for float16")
        for name, case in CASES.items():
            tensors = case.inputs(draw(6, 24, dtype=torch.float16), torch.float16, 3)
            for function in (case.graft, case.op):
                self.refused("unsupported", "float16 has no CPU kernel", function, *tensors)
        x, w = draw(6, 24), draw(20, 24)
        with torch.autocast("cpu", torch.float16):
            self.refused("unsupported", "float16", graft_lora.linear, x, w, pack=True)

    def test_numbers(self):
        x, w, bias, a, b = CASES["lora_linear"].inputs(draw(6, 24), torch.float32, 3)
        nan, inf = float("nan"), float("inf")
        for scaling in (nan, inf, -inf, 1e300):
            self.refused("invalid_argument", "scaling", graft_lora.lora_linear, x, w, bias, a, b, scaling)
            self.refused("invalid_argument", "scaling", graft_lora.lora_delta, x, a, b, scaling)
        for p in (-0.1, 1.0, 1.5, nan, inf):
            self.refused("invalid_argument", "dropout", graft_lora.lora_linear, x, w, bias, a, b, 1.0, p)
        for scale in (0.0, -1.0, nan, inf):
            self.refused("invalid_argument", "scale", graft_lora.softmax, x, scale)
        for eps in (-1e-5, nan, inf):
            self.refused("invalid_argument", "eps", graft_lora.rms_norm, x, None, eps)
            self.refused("invalid_argument", "eps", graft_lora.layer_norm, x, None, None, eps)

    def test_rng(self):
        x, w, bias, a, b = CASES["lora_linear"].inputs(draw(6, 24), torch.float32, 3)
        for rng in (
            torch.tensor([1], device=DEVICE),
            torch.tensor([1, 2, 3], device=DEVICE),
            torch.tensor([1.0, 2.0], device=DEVICE),
            torch.tensor([1, 0, 2, 0], device=DEVICE)[::2],
            torch.tensor([1, 2], device="meta"),
        ):
            with self.assertRaises((GraftError, RuntimeError, NotImplementedError)):
                graft_lora.lora_linear(x, w, bias, a, b, 1.0, 0.5, rng)
        with self.assertRaises(RuntimeError):
            ops.lora_linear_forward(x, w, bias, a, b, 1.0, 0.5, None, True, False)

    def test_devices(self):
        x, w, bias, a, b = CASES["lora_linear"].inputs(draw(6, 24), torch.float32, 3)
        other = "cpu" if DEVICE == "cuda" else "meta"
        for i, name in enumerate(("weight", "bias", "a", "b"), 1):
            tensors = [t.to(other) if i == j else t for j, t in enumerate((x, w, bias, a, b))]
            self.refused(
                "invalid_argument", f"{name}: expected device {DEVICE}", graft_lora.lora_linear, *tensors
            )
        self.refused("invalid_argument", "weight: expected device meta", graft_lora.linear, x.to("meta"), w)

    def test_what_is_no_tensor(self):
        x, w = draw(6, 24), draw(20, 24)
        self.refused(
            "invalid_argument", "weight: expected a tensor, got list", graft_lora.linear, x, w.tolist()
        )
        self.refused(
            "invalid_argument", "a: expected a tensor, got NoneType", graft_lora.lora_delta, x, None, w
        )

    def test_layouts_of_torchs_own(self):
        x, w = draw(6, 24), draw(20, 24)
        for strange in (x.to_sparse(), torch.quantize_per_tensor(x.cpu(), 0.1, 0, torch.qint8)):
            with self.assertRaises((RuntimeError, NotImplementedError)):
                graft_lora.linear(strange, w)
            with self.assertRaises((RuntimeError, NotImplementedError)):
                graft_lora.softmax(strange)

    def test_ops_of_the_library_refuse_too(self):
        # Nobody has checked for these: still an error, never a crash.
        x, w, bias, a, b = CASES["lora_linear"].inputs(draw(6, 24), torch.float32, 3)
        one = torch.tensor(1.0, device=DEVICE)
        for call in (
            lambda: ops.linear_forward(one, w, None, False),
            lambda: ops.linear_forward(x, one, None, False),
            lambda: ops.linear_forward(x, one, None, True),
            lambda: ops.linear_forward(x, w[0], None, True),
            lambda: ops.linear_forward(x, w[None], None, True),
            lambda: ops.linear_forward(x, w, one, False),
            lambda: ops.linear_backward(one, w, False),
            lambda: ops.linear_backward(x, w, False),
            lambda: ops.lora_delta_forward(one, a, b, 1.0, 0.0, None, True),
            lambda: ops.lora_delta_forward(x, one, b, 1.0, 0.0, None, True),
            lambda: ops.lora_delta_forward(x, a, one, 1.0, 0.0, None, True),
            lambda: ops.lora_delta_forward(x, a, b[None], 1.0, 0.0, None, True),
            lambda: ops.lora_delta_add_(one, x, a, b, 1.0, 0.0, None, True),
            lambda: ops.lora_delta_add_(draw(6, 19), x, a, b, 1.0, 0.0, None, True),
            lambda: ops.lora_delta_add_(draw(5, 20), x, a, b, 1.0, 0.0, None, True),
            lambda: ops.lora_delta_add_(draw(20, 6).t(), x, a, b, 1.0, 0.0, None, True),
            lambda: ops.lora_delta_add_(draw(6, 1).expand(6, 20), x, a, b, 1.0, 0.0, None, True),
            lambda: ops.lora_delta_backward(x, x, draw(6, 3), a, b, 1.0, 0.0, None, True, True, True),
            lambda: ops.lora_delta_backward(
                draw(6, 20), x[:5], draw(6, 3), a, b, 1.0, 0.0, None, True, True, True
            ),
            lambda: ops.lora_delta_backward(
                draw(6, 20), x, draw(6, 4), a, b, 1.0, 0.0, None, True, True, True
            ),
            lambda: ops.lora_linear_backward(
                draw(6, 20), one, draw(6, 3), w, a, b, 1.0, 0.0, None, True, True, True, False
            ),
            lambda: ops.softmax_forward(one, 1.0),
            lambda: ops.softmax_backward(x, x[:5], 1.0),
            lambda: ops.softmax_backward(x, x.bfloat16(), 1.0),
            lambda: ops.rms_norm_forward(x, one, None, 1e-5),
            lambda: ops.rms_norm_forward(x, None, one, 1e-5),
            lambda: ops.rms_norm_backward(x, x, None, draw(5), None, 1e-5, True, True),
            lambda: ops.layer_norm_forward(x, one, None, 1e-5),
            lambda: ops.layer_norm_backward(x, x, None, draw(5), draw(5), 1e-5, True, True, True),
            lambda: ops.layer_norm_backward(x, x[:3], None, draw(6), draw(6), 1e-5, True, True, True),
        ):
            with self.assertRaises(RuntimeError):
                call()

    def test_delta_is_not_added_to_what_it_is_made_of(self):
        memory = draw(6, 24)
        a, b = draw(3, 24, seed=1), draw(24, 3, seed=2)
        with self.assertRaisesRegex(RuntimeError, "y: expected memory of its own, got some of x's"):
            ops.lora_delta_add_(memory, memory, a, b, 1.0, 0.0, None, True)
        whole = draw(10, 24)
        ops.lora_delta_add_(whole[:5], whole[5:], a, b, 1.0, 0.0, None, True)  # side by side is apart

    def test_gradients_of_integers_are_torchs_to_refuse(self):
        with self.assertRaises(RuntimeError):
            graft_lora.softmax(torch.ones(3, dtype=torch.int64, requires_grad=True))

    def test_errors_of_backward_are_graft_errors(self):
        x, w, bias, a, b = leaves(CASES["lora_linear"].inputs(draw(6, 24), torch.float32, 3))
        y = LoraLinear.apply(x, w, bias, a, b, SCALING, 0.0, None, False)
        y.grad_fn.scaling = float("nan")
        self.refused("invalid_argument", "scaling", y.sum().backward)

    def test_errors_travel(self):
        import pickle

        with self.assertRaises(GraftError) as caught:
            graft_lora.softmax(draw(3), -1.0)
        again = pickle.loads(pickle.dumps(caught.exception))
        self.assertEqual((str(again), again.code), (str(caught.exception), "invalid_argument"))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    unittest.main()
