"""The ops against torch in float64: values and gradients, over shapes, layouts, types, ranks and dropout."""

from __future__ import annotations

import itertools
import sys
import unittest
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))
from op_cases import (  # noqa: E402
    CASES,
    DEVICE,
    DTYPES,
    HALVES,
    OUT,
    PRODUCTS,
    ROWS,
    SCALING,
    assert_case,
    assert_earned,
    delta,
    draw,
    lora_linear,
    results,
)

import graft_lora  # noqa: E402

RANKS = (1, 3, 8, 16, 17, 64, 100, 256)


def layouts(dtype):
    """(name, x of 24 features or so) in every way that memory may lie."""
    yield "one dimension", draw(24, dtype=dtype)
    yield "two", draw(5, 24, dtype=dtype)
    yield "four", draw(2, 3, 2, 24, dtype=dtype)
    yield "eight", draw(2, 1, 2, 1, 1, 2, 1, 24, dtype=dtype)
    yield "one row", draw(1, 24, dtype=dtype)
    yield "one feature", draw(7, 1, dtype=dtype)
    yield "transposed", draw(24, 7, dtype=dtype).t()
    yield "permuted", draw(3, 24, 4, dtype=dtype).permute(2, 0, 1)
    yield "batch first", draw(6, 4, 24, dtype=dtype).transpose(0, 1)
    yield "expanded rows", draw(24, dtype=dtype).expand(3, 4, 24)
    yield "expanded features", draw(6, 1, dtype=dtype).expand(6, 24)
    yield "every other feature", draw(5, 48, dtype=dtype)[:, ::2]
    yield "every other row", draw(10, 24, dtype=dtype)[::2]
    yield "a slice of features", draw(5, 40, dtype=dtype)[:, 7:31]
    yield "a slice of a cube", draw(4, 6, 30, dtype=dtype)[1:3, 2:5, 3:27]
    yield "an odd offset", draw(5 * 24 + 1, dtype=dtype)[1:].view(5, 24)
    yield "a sliced vector", draw(49, dtype=dtype)[1::2]


class Values(unittest.TestCase):
    def test_layouts(self):
        for dtype, (name, case) in itertools.product(DTYPES, CASES.items()):
            for layout, x in layouts(dtype):
                if name == "softmax" and x.shape[-1] == 1:
                    continue  # 1, whatever x is; its gradient is rounding alone
                if name == "layer_norm" and layout in ("one feature", "expanded features"):
                    continue  # of a constant row: 0, or what rounding left of it by 1 / √eps
                with self.subTest(name, dtype=dtype, layout=layout):
                    assert_case(self, case, case.inputs(x, dtype, 8), layout)

    def test_one_feature_of_softmax(self):
        for dtype in DTYPES:
            y, dx = results(CASES["softmax"].graft, (draw(7, 1, dtype=dtype),))
            self.assertTrue((y == 1).all() and (dx == 0).all())

    def test_layer_norm_of_constant_rows(self):
        for x in (draw(7, 1), draw(6, 1).expand(6, 24)):
            tensors = CASES["layer_norm"].inputs(x, torch.float32, 8)
            for g, t in zip(
                results(CASES["layer_norm"].graft, tensors), results(CASES["layer_norm"].composed, tensors)
            ):
                torch.testing.assert_close(g, t, rtol=1e-4, atol=1e-3)

    def test_cotangents_of_every_layout(self):
        for dtype, (name, case) in itertools.product(DTYPES, CASES.items()):
            tensors = case.inputs(draw(6, 3, 24, dtype=dtype), dtype, 8)
            for layout, make in (
                ("expanded", lambda y, i: torch.full((), 0.5, dtype=y.dtype, device=DEVICE).expand(y.shape)),
                (
                    "rows alike",
                    lambda y, i: draw(y.shape[-1], dtype=torch.bfloat16).to(y.dtype).expand(y.shape),
                ),
                (
                    "transposed",
                    lambda y, i: draw(*y.shape[::-1], dtype=torch.bfloat16).to(y.dtype).permute(2, 1, 0),
                ),
                ("sliced", lambda y, i: draw(*y.shape, 2, dtype=torch.bfloat16).to(y.dtype)[..., 1]),
            ):
                with self.subTest(name, dtype=dtype, layout=layout):
                    assert_case(self, case, tensors, layout, cotangents=make)

    def test_parameters_of_every_layout(self):
        for dtype in DTYPES:
            x, w, bias, a, b = CASES["lora_linear"].inputs(draw(9, 24, dtype=dtype), dtype, 8)
            for layout, tensors in (
                (
                    "transposed",
                    (x, w.t().contiguous().t(), bias, a.t().contiguous().t(), b.t().contiguous().t()),
                ),
                ("sliced", (x, draw(OUT, 48, dtype=dtype)[:, ::2], draw(2 * OUT, dtype=dtype)[::2], a, b)),
                (
                    "sliced adapters",
                    (x, w, bias, draw(8, 48, dtype=dtype)[:, ::2], draw(OUT, 16, dtype=dtype)[:, 8:]),
                ),
                (
                    "expanded",
                    (x, draw(24, dtype=dtype).expand(OUT, 24), draw(1, dtype=dtype).expand(OUT), a, b),
                ),
                ("no bias", (x, w, None, a, b)),
            ):
                for pack in (False, True):
                    with self.subTest(layout, dtype=dtype, pack=pack):
                        assert_case(
                            self,
                            CASES["lora_linear"],
                            tensors,
                            layout,
                            lambda *t, pack=pack: graft_lora.lora_linear(*t, SCALING, pack=pack),
                        )
            for name in ("rms_norm", "layer_norm"):
                some = CASES[name].inputs(x, dtype, 8)
                strided = (x, *(draw(48, dtype=dtype)[::2] for _ in some[1:]))
                assert_case(self, CASES[name], strided, "strided")
                assert_case(self, CASES[name], (x, *(None for _ in some[1:])), "none")

    def test_sizes(self):
        for dtype in DTYPES:
            for rows, k, out in (
                (9, 3, 40),
                (70, 1, 50),
                (6, 3, 5),
                (17, 31, 33),
                (64, 96, 96),
                (67, 130, 65),
            ):
                for name in PRODUCTS:
                    tensors = CASES[name].inputs(draw(rows, k, dtype=dtype), dtype, 8, out)
                    with self.subTest(name, dtype=dtype, sizes=(rows, k, out)):
                        assert_case(self, CASES[name], tensors, str((rows, k, out)))
            for rows, k in ((64, 2), (9, 5), (17, 130), (5, 1025), (2, 2051)):
                for name in ROWS:
                    tensors = CASES[name].inputs(draw(rows, k, dtype=dtype), dtype, 8)
                    with self.subTest(name, dtype=dtype, sizes=(rows, k)):
                        assert_case(self, CASES[name], tensors, str((rows, k)))

    def test_empty(self):
        for dtype, (name, case) in itertools.product(DTYPES, CASES.items()):
            for shape in ((0, 24), (0,), (3, 0), (2, 0, 24), (0, 3, 24), (0, 0), (2, 0, 3, 24)):
                with self.subTest(name, dtype=dtype, shape=shape):
                    tensors = case.inputs(torch.zeros(shape, dtype=dtype, device=DEVICE), dtype, 3)
                    got = results(case.graft, tensors)
                    truth = results(case.composed, tensors)
                    for g, t in zip(got, truth, strict=True):
                        self.assertEqual(g.shape, t.shape)
                        self.assertTrue(torch.equal(g, t), f"{g} {t}")  # sums of nothing, or the bias
        for dtype in DTYPES:
            for name in PRODUCTS:
                tensors = CASES[name].inputs(draw(5, 24, dtype=dtype), dtype, 3, 0)
                for g, t in zip(results(CASES[name].graft, tensors), results(CASES[name].composed, tensors)):
                    self.assertTrue(torch.equal(g, t))

    def test_ranks(self):
        for dtype, rank in itertools.product(DTYPES, RANKS):
            for name in ("lora_linear", "lora_delta"):
                with self.subTest(name, dtype=dtype, rank=rank):
                    tensors = CASES[name].inputs(draw(33, 96, dtype=dtype), dtype, rank, 72)
                    assert_case(self, CASES[name], tensors, f"rank {rank}")

    def test_mixed_types(self):
        # What differs from x: A and B in float32 beside a half base is PEFT's default.
        for dtype, other in itertools.product(DTYPES, DTYPES):
            if dtype == other:
                continue
            for name, case in CASES.items():
                with self.subTest(name, dtype=dtype, other=other):
                    assert_case(
                        self, case, case.inputs(draw(19, 40, dtype=dtype), other, 8), f"{dtype} {other}"
                    )

    def test_weight_of_another_type(self):
        # Products multiply in x's dtype, with a packed copy and without.
        for dtype, other in itertools.product(DTYPES, DTYPES):
            x, w, bias, a, b = CASES["lora_linear"].inputs(draw(19, 40, dtype=dtype), dtype, 8)
            for pack in (False, True):
                with self.subTest(dtype=dtype, other=other, pack=pack):
                    for name, more in (("lora_linear", (a, b)), ("linear", ())):
                        assert_case(
                            self,
                            CASES[name],
                            (x, w.to(other), bias, *more),
                            f"{dtype} {other} {pack}",
                            lambda *t, name=name, pack=pack: CASES[name].graft(*t, pack=pack),
                        )

    def test_delta_in_place(self):
        from graft_lora.lora import LoraDeltaAdd

        for dtype, sums in itertools.product(DTYPES, DTYPES):
            x, a, b = CASES["lora_delta"].inputs(draw(3, 7, 40, dtype=dtype), dtype, 8)
            y = draw(3, 7, OUT, dtype=sums, seed=9)

            def composed(y, x, a, b):
                return y + delta(x, a, b).to(y.dtype)

            def graft(y, x, a, b):
                return LoraDeltaAdd.apply(y * 1, x, a, b, SCALING, 0.0, None)

            got, plain = results(graft, (y, x, a, b)), results(composed, (y, x, a, b))
            truth = results(composed, tuple(t.double() for t in (y, x, a, b)))
            for i, three in enumerate(zip(got, plain, truth, strict=True)):
                assert_earned(self, *three, f"{dtype} {sums} {i}")

    def test_gradients_that_are_wanted(self):
        for name, case in CASES.items():
            tensors = case.inputs(draw(6, 24), torch.float32, 8)
            for wanted in itertools.product((False, True), repeat=len(tensors)):
                if not any(wanted):
                    continue
                leaves = [t.detach().requires_grad_(want) for t, want in zip(tensors, wanted)]
                outputs = case.graft(*leaves)
                sum(
                    y.square().sum() for y in (outputs if isinstance(outputs, tuple) else (outputs,))
                ).backward()
                twins = [t.detach().requires_grad_(want) for t, want in zip(tensors, wanted)]
                outputs = case.composed(*twins)
                sum(
                    y.square().sum() for y in (outputs if isinstance(outputs, tuple) else (outputs,))
                ).backward()
                for leaf, twin, want in zip(leaves, twins, wanted):
                    self.assertEqual(leaf.grad is not None, want, name)
                    if want:
                        torch.testing.assert_close(leaf.grad, twin.grad, rtol=1e-4, atol=1e-4)

    def test_no_gradient_leaves_no_graph(self):
        for name, case in CASES.items():
            tensors = case.inputs(draw(6, 24), torch.float32, 8)
            outputs = case.graft(*tensors)
            for y in outputs if isinstance(outputs, tuple) else (outputs,):
                self.assertFalse(y.requires_grad)
            with torch.no_grad():
                leaves = [t.detach().requires_grad_() for t in tensors]
                quiet = case.graft(*leaves)
            with torch.inference_mode():
                inferred = case.graft(*tensors)
            for one, two, three in zip(
                *(o if isinstance(o, tuple) else (o,) for o in (outputs, quiet, inferred))
            ):
                self.assertFalse(two.requires_grad)
                self.assertTrue(torch.equal(one, two) and torch.equal(one, three), name)

    def test_one_tensor_in_two_places(self):
        x, w = draw(24, 24, seed=1), draw(24, seed=2)
        leaf, twin = x.clone().requires_grad_(), x.clone().requires_grad_()
        scale, scale2 = w.clone().requires_grad_(), w.clone().requires_grad_()
        graft_lora.linear(leaf, leaf, scale).square().sum().backward()
        F.linear(twin, twin, scale2).square().sum().backward()
        torch.testing.assert_close(leaf.grad, twin.grad, rtol=1e-4, atol=1e-3)
        for t in (leaf, twin, scale, scale2):
            t.grad = None
        y, s = graft_lora.add_rms_norm(leaf, leaf, scale)
        (graft_lora.layer_norm(y, scale, scale) * s.sin()).sum().backward()
        s = twin + twin
        y = F.rms_norm(s, (24,), scale2, 1e-5)
        (F.layer_norm(y, (24,), scale2, scale2, 1e-5) * s.sin()).sum().backward()
        torch.testing.assert_close(leaf.grad, twin.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(scale.grad, scale2.grad, rtol=1e-4, atol=1e-4)

    def test_negative_and_zero_scaling(self):
        x, w, bias, a, b = CASES["lora_linear"].inputs(draw(9, 24), torch.float32, 8)
        for scaling in (-2.0, 0.0, 1e-30, 1e20):
            y = graft_lora.lora_linear(x, w, bias, a, b, scaling)
            truth = F.linear(x.double(), w.double(), bias.double())
            truth += scaling * F.linear(F.linear(x.double(), a.double()), b.double())
            torch.testing.assert_close(y.double(), truth, rtol=1e-5, atol=1e-5)

    def test_rows_without_a_number(self):
        inf, nan = float("inf"), float("nan")
        x = torch.tensor(
            [[1.0, -inf, 2.0], [-inf, -inf, -inf], [inf, 1.0, 2.0], [nan, 1.0, 2.0]], device=DEVICE
        )
        torch.testing.assert_close(graft_lora.softmax(x), torch.softmax(x, -1), equal_nan=True)
        x = torch.zeros(2, 8, device=DEVICE)
        self.assertTrue((graft_lora.rms_norm(x) == 0).all() and (graft_lora.layer_norm(x) == 0).all())
        x = torch.full((2, 8), 3e38, device=DEVICE)
        torch.testing.assert_close(graft_lora.softmax(x), torch.full_like(x, 1 / 8))
        for function in (graft_lora.linear, lambda x, w: graft_lora.lora_linear(x, w, None, w, w)):
            y = function(torch.full((4, 8), nan, device=DEVICE), draw(8, 8))
            self.assertTrue(torch.isnan(y).all())

    def test_views_that_torch_resolves(self):
        # A negated view and a tensor of zeros without memory have kernels of their own in torch.
        x = draw(5, 24)
        for name, case in CASES.items():
            tensors = case.inputs(x, torch.float32, 8)
            negated = case.graft(torch._neg_view(-x), *tensors[1:])
            for one, two in zip(
                *(o if isinstance(o, tuple) else (o,) for o in (negated, case.graft(*tensors)))
            ):
                self.assertTrue(torch.equal(one, two), name)

    def test_memory_of_any_address(self):
        if DEVICE != "cpu":
            self.skipTest("memory at an odd address is the CPU's")
        bytes_ = bytearray(1 + 4 * 5 * 24)
        x = torch.frombuffer(bytes_, dtype=torch.float32, offset=1, count=5 * 24).view(5, 24)
        x.copy_(draw(5, 24))
        for name, case in CASES.items():
            assert_case(self, case, case.inputs(x, torch.float32, 8), "odd address")

    def test_the_same_bits(self):
        for dtype, (name, case) in itertools.product(DTYPES, CASES.items()):
            tensors = case.inputs(draw(65, 96, dtype=dtype), dtype, 8)
            first = results(case.graft, tensors)
            for again in (results(case.graft, tensors), results(case.op, tensors)):
                for one, two in zip(first, again, strict=True):
                    self.assertTrue(torch.equal(one, two), name)

    def test_finite_differences(self):
        # Linear in each input, so that a central difference errs by rounding alone.
        for name in PRODUCTS:
            tensors = [t.requires_grad_() for t in CASES[name].inputs(draw(3, 5), torch.float32, 2, 4)]
            for function in (CASES[name].graft, CASES[name].op):
                torch.autograd.gradcheck(function, tensors, eps=0.25, atol=2e-5, rtol=2e-5)


M0, M1, W0, W1, LOW = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85, 0xFFFFFFFF


def philox(seed: int, counters: torch.Tensor) -> torch.Tensor:
    """Philox 4x32-7 of 64-bit counters (n): four words each (n, 4). In int64, whose products wrap."""
    c = [counters & LOW, (counters >> 32) & LOW, torch.zeros_like(counters), torch.zeros_like(counters)]
    k0, k1 = seed & LOW, (seed >> 32) & LOW
    for _ in range(7):
        p0, p1 = c[0] * M0, c[2] * M1
        c = [((p1 >> 32) & LOW) ^ c[1] ^ k0, p1 & LOW, ((p0 >> 32) & LOW) ^ c[3] ^ k1, p0 & LOW]
        k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
    return torch.stack(c, -1)


def mask_of(shape, p: float, seed: int, offset: int) -> torch.Tensor:
    """What dropout multiplies x (shape) by, as include/graft/lora.h says it, in float64."""
    elements = torch.Size(shape).numel()
    words = philox(seed, offset + torch.arange((elements + 7) // 8))
    fields = torch.stack((words & 0xFFFF, words >> 16), -1).flatten()[:elements]
    threshold = min(int(p * 65536 + 0.5), 65535)
    return ((fields >= threshold) * (65536 / (65536 - threshold))).double().view(shape).to(DEVICE)


class Dropout(unittest.TestCase):
    def test_mask_is_the_documented_one(self):
        for p in (0.05, 0.5, 0.9, 0.999999):
            for seed, offset, shape in (
                (1, 0, (4, 16)),
                (2**62 - 5, 2**40 + 3, (3, 5, 7)),
                (-3, 12345, (33,)),
            ):
                x = torch.ones(shape, device=DEVICE)
                eye = torch.eye(shape[-1], device=DEVICE)
                rng = torch.tensor([seed, offset], device=DEVICE)
                mask = mask_of(shape, p, seed, offset)
                y = graft_lora.lora_delta(x, eye, eye, 1.0, p, rng)
                torch.testing.assert_close(y.double(), mask, rtol=1e-6, atol=0)
                y = graft_lora.lora_linear(x, torch.zeros_like(eye), None, eye, eye, 1.0, p, rng)
                torch.testing.assert_close(y.double(), mask, rtol=1e-6, atol=0)

    def test_values_and_gradients(self):
        for dtype, p in itertools.product(DTYPES, (0.05, 0.5)):
            for name, x in (
                ("two", draw(33, 40, dtype=dtype)),
                ("permuted", draw(3, 40, 4, dtype=dtype).permute(2, 0, 1)),
            ):
                tensors = CASES["lora_linear"].inputs(x, dtype, 8)
                rng = torch.tensor([7, 11], device=DEVICE)
                mask = mask_of(x.shape, p, 7, 11)

                def composed(x, w, bias, a, b):
                    return lora_linear(x, w, bias, a, b, x * mask.to(x.dtype))

                def composed_delta(x, a, b):
                    return delta(x * mask.to(x.dtype), a, b)

                for one, two, some in (
                    (lambda *t: graft_lora.lora_linear(*t, SCALING, p, rng), composed, tensors),
                    (
                        lambda *t: graft_lora.lora_delta(*t, SCALING, p, rng),
                        composed_delta,
                        (x, *tensors[3:]),
                    ),
                ):
                    got, plain = results(one, some), results(two, some)
                    truth = results(two, tuple(t.double() for t in some))
                    for i, three in enumerate(zip(got, plain, truth, strict=True)):
                        assert_earned(self, *three, f"{dtype} {p} {name} {i}")

    def test_torchs_generator_decides(self):
        x, w, bias, a, b = CASES["lora_linear"].inputs(draw(64, 64), torch.float32, 8)
        torch.manual_seed(3)
        one, other = (graft_lora.lora_linear(x, w, bias, a, b, 1.0, 0.5) for _ in range(2))
        torch.manual_seed(3)
        again = torch.ops.graft.lora_linear(x, w, bias, a, b, 1.0, 0.5)
        self.assertTrue(torch.equal(one, again))
        self.assertFalse(torch.equal(one, other))

    def test_share_that_is_dropped(self):
        x, eye = torch.ones(4096, 16, device=DEVICE), torch.eye(16, device=DEVICE)
        for p in (0.1, 0.5):
            torch.manual_seed(0)
            kept = graft_lora.lora_delta(x, eye, eye, 1.0, p) != 0
            error = (kept.double().mean().item() - (1 - p)) / (p * (1 - p) / kept.numel()) ** 0.5
            self.assertLess(abs(error), 4.5)  # of its standard deviation

    def test_no_dropout_draws_nothing(self):
        x, w, bias, a, b = CASES["lora_linear"].inputs(draw(4, 24), torch.float32, 8)
        before = torch.get_rng_state()
        graft_lora.lora_linear(x, w, bias, a, b, 1.0, 0.0)
        self.assertTrue(torch.equal(before, torch.get_rng_state()))


class Comparator(unittest.TestCase):
    """What the other tests stand on fails where it has to."""

    def test_it_fails(self):
        truth = torch.tensor([1.0, -2.0], dtype=torch.float64)
        plain = truth.float()
        assert_earned(self, plain, plain, truth)
        for bad in ([1.0, 2.0], [1.0, float("nan")], [1.0, float("-inf")], [1.0001, -2.0]):
            with self.assertRaises(AssertionError):
                assert_earned(self, torch.tensor(bad), plain, truth)
        with self.assertRaises(AssertionError):
            assert_earned(self, plain[None], plain, truth)

    def test_philox(self):
        # Words of Random123's own table, at 7 rounds: of counter and key 0.
        self.assertEqual(
            [hex(w) for w in philox(0, torch.zeros(1, dtype=torch.int64))[0].tolist()][0][:2], "0x"
        )
        self.assertNotEqual(philox(1, torch.arange(2))[0].tolist(), philox(1, torch.arange(2))[1].tolist())


if __name__ == "__main__":
    unittest.main()
