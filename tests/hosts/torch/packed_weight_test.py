"""The packed copies of weights on the CPU: true after every kind of edit, and gone when the weight is."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import unittest
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

sys.path.insert(0, str(Path(__file__).resolve().parent))
from op_cases import DEVICE, draw  # noqa: E402

import graft_lora  # noqa: E402
from graft_lora import registry  # noqa: E402

ops = torch.ops.graft
OUT, IN = 48, 40


@unittest.skipIf(DEVICE != "cpu", "weights are packed on the CPU alone")
class PackedWeight(unittest.TestCase):
    def setUp(self):
        gc.collect()
        self.before = ops.packed_bytes()
        self.x = draw(7, IN)

    def held(self) -> int:
        gc.collect()
        return ops.packed_bytes() - self.before

    def assert_true(self, w, x=None, tolerance=1e-5):
        """y and dx of the packed weight are those of the weight as it is now."""
        x = (self.x if x is None else x).detach().requires_grad_()
        y = graft_lora.linear(x, w, pack=True)
        now = w.detach().to(x.dtype)
        torch.testing.assert_close(y, F.linear(x, now), rtol=tolerance, atol=tolerance * 10)
        dy = draw(*y.shape, seed=3).to(y.dtype)
        (dx,) = torch.autograd.grad(y, x, dy)
        torch.testing.assert_close(dx, dy @ now, rtol=tolerance, atol=tolerance * 10)

    def test_one_copy_a_weight(self):
        w = draw(OUT, IN)
        graft_lora.linear(self.x, w, pack=False)
        self.assertEqual(self.held(), 0)
        graft_lora.linear(self.x, w, pack=True)
        once = self.held()
        self.assertGreaterEqual(once, 4 * OUT * IN)
        self.assert_true(w)
        both = self.held()  # for dx too, kept from then on
        self.assertGreater(both, once)
        for _ in range(3):
            self.assert_true(w)
            graft_lora.lora_linear(self.x, w, None, draw(3, IN), draw(OUT, 3), pack=True)
        self.assertEqual(self.held(), both)
        other = draw(OUT, IN, seed=1)
        self.assert_true(other)
        self.assertEqual(self.held(), 2 * both)
        del other
        self.assertEqual(self.held(), both)
        ops.forget_weight(w.data_ptr())
        self.assertEqual(self.held(), 0)
        self.assert_true(w)
        del w
        self.assertEqual(self.held(), 0)

    def test_edits_in_place(self):
        w = draw(OUT, IN)
        self.assert_true(w)
        for edit in (
            lambda: w.mul_(2),
            lambda: w[3, 5].fill_(9.0),  # one element: the version tells
            lambda: w[:, 7].zero_(),
            lambda: w.view(-1)[11:12].add_(1),
            lambda: w.t()[2].copy_(torch.ones(OUT)),
            lambda: w.detach()[0].neg_(),
            lambda: w.copy_(draw(OUT, IN, seed=2)),
        ):
            edit()
            self.assert_true(w)

    def test_an_optimizers_steps(self):
        layer = nn.Linear(IN, OUT)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        for _ in range(3):
            graft_lora.linear(self.x, layer.weight, layer.bias, pack=True).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            self.assert_true(layer.weight)

    def test_edits_of_data(self):
        p = nn.Parameter(draw(OUT, IN), requires_grad=False)
        self.assert_true(p)
        for edit in (
            lambda: p.data.mul_(2),
            lambda: p.data.add_(draw(OUT, IN, seed=4), alpha=1e-3),
            lambda: p.data.add_(draw(OUT, 2, seed=5) @ draw(2, IN, seed=6)),  # as PEFT merges
            lambda: p.data.copy_(draw(OUT, IN, seed=7)),
            lambda: p.data.normal_(),
            lambda: p.data.zero_(),
        ):
            edit()
            self.assert_true(p)

    def test_new_data(self):
        p = nn.Parameter(draw(OUT, IN), requires_grad=False)
        self.assert_true(p)
        once = self.held()
        for i in range(5):
            p.data = draw(OUT, IN, seed=10 + i)
            self.assert_true(p)
            self.assertEqual(self.held(), once)  # the copy of the memory before is gone with it
        p.data = draw(OUT + 8, IN, seed=20)
        self.assert_true(p)
        p.data = p.data.t().contiguous().t()
        self.assert_true(p)
        p.data = p.data.bfloat16()
        self.assert_true(p, self.x.bfloat16(), 2e-2)
        with torch.no_grad():
            p.set_(draw(OUT, IN, dtype=torch.bfloat16, seed=21))
        self.assert_true(p, self.x.bfloat16(), 2e-2)
        del p
        self.assertEqual(self.held(), 0)

    def test_sparse_edits_of_data(self):
        p = nn.Parameter(draw(OUT, IN), requires_grad=False)
        self.assert_true(p)
        p.data[1, 1] = 5.0
        ops.forget_weight(p.data_ptr())
        self.assert_true(p)

    def test_samples_see_every_dense_edit_of_small_weights(self):
        for out, features in ((1, 1), (1, 5), (5, 1), (2, 3), (31, 2), (3, 200), (33, 33)):
            p = nn.Parameter(draw(out, features), requires_grad=False)
            x = draw(4, features)
            self.assert_true(p, x)
            p.data.add_(1)
            self.assert_true(p, x)
        for shape in ((0, 5), (5, 0), (0, 0)):
            p = nn.Parameter(draw(*shape), requires_grad=False)
            self.assertEqual(graft_lora.linear(draw(2, shape[1]), p, pack=True).shape, (2, shape[0]))

    def test_tensors_of_inference_mode_have_no_version(self):
        with torch.inference_mode():
            w = draw(OUT, IN)
            graft_lora.linear(self.x, w, pack=True)
            w.mul_(2)
            y = graft_lora.linear(self.x, w, pack=True)
            torch.testing.assert_close(y, F.linear(self.x, w), rtol=1e-5, atol=1e-4)

    def test_several_views_of_one_memory(self):
        whole = draw(3 * OUT, IN)
        q, k, v = whole.chunk(3)
        for _ in range(2):
            for w in (q, k, v, whole, whole[::3], whole[:IN].t(), q.t().contiguous().t()):
                self.assert_true(w, draw(7, w.shape[1]))
        whole.mul_(3)
        for w in (q, k, v, whole, whole[::3], whole[:IN].t()):
            self.assert_true(w, draw(7, w.shape[1]))
        del whole, q, k, v, w
        self.assertEqual(self.held(), 0)

    def test_both_types_of_products(self):
        w = draw(OUT, IN)
        for _ in range(2):
            self.assert_true(w)
            self.assert_true(w, self.x.bfloat16(), 2e-2)
            self.assert_true(w.bfloat16(), self.x)
            with torch.autocast("cpu", torch.bfloat16):
                y = graft_lora.linear(self.x, w, pack=True)
                torch.testing.assert_close(y, F.linear(self.x, w), rtol=2e-2, atol=2e-2)

    def test_other_type_at_the_same_address(self):
        memory = draw(OUT, IN)
        self.assert_true(memory)
        halves = memory.view(torch.bfloat16)[:, :IN]
        halves.copy_(draw(OUT, IN, dtype=torch.bfloat16, seed=1))
        self.assertEqual(halves.data_ptr(), memory.data_ptr())
        self.assert_true(halves, self.x.bfloat16(), 2e-2)

    def test_memory_that_another_tensor_gets(self):
        addresses = set()
        for i in range(50):
            w = draw(OUT, IN, seed=i)
            addresses.add(w.data_ptr())
            self.assert_true(w)
            del w
        self.assertLess(len(addresses), 50)  # so some were used again
        self.assertEqual(self.held(), 0)

    def test_resized(self):
        w = draw(OUT, IN)
        self.assert_true(w)
        w.resize_(OUT * 4, IN * 4).copy_(draw(OUT * 4, IN * 4, seed=1))
        self.assert_true(w, draw(7, IN * 4))
        w.resize_(OUT, IN).copy_(draw(OUT, IN, seed=2))
        self.assert_true(w)
        once = self.held()
        # As FSDP frees and gathers: the storage stays, its memory goes and comes.
        for i in range(6):
            size = w.untyped_storage().size()
            w.untyped_storage().resize_(0)
            w.untyped_storage().resize_(size)
            with torch.no_grad():
                w.copy_(draw(OUT, IN, seed=30 + i))
            self.assert_true(w)
            self.assertLessEqual(self.held(), 2 * once)
        del w
        self.assertEqual(self.held(), 0)

    def test_dies_with_whoever_holds_the_memory_last(self):
        layer = nn.Linear(IN, OUT, bias=False)
        view = layer.weight.detach()[:8]
        self.assert_true(layer.weight)
        del layer
        self.assertGreater(self.held(), 0)  # the view still holds it
        del view
        self.assertEqual(self.held(), 0)

    def test_dies_with_a_graph(self):
        x = draw(7, IN).requires_grad_()
        w = draw(OUT, IN)
        y = graft_lora.linear(x, w, pack=True)
        del w
        y.sum().backward(retain_graph=True)  # packs for dx
        self.assertGreater(self.held(), 0)
        del y
        self.assertEqual(self.held(), 0)

    def test_dies_with_a_compiled_model(self):
        torch._dynamo.reset()
        layer = nn.Linear(IN, OUT)
        compiled = torch.compile(lambda x: graft_lora.linear(x, layer.weight, pack=True), backend="aot_eager")
        with torch.no_grad():
            compiled(self.x)
        self.assertGreater(self.held(), 0)
        del compiled, layer
        torch._dynamo.reset()
        self.assertEqual(self.held(), 0)

    def test_dies_while_a_graph_is_traced(self):
        box = [draw(OUT, IN)]
        self.assert_true(box[0])

        def traced(x):
            box.clear()
            return x + 1

        with FakeTensorMode(allow_non_fake_inputs=True):
            graph = make_fx(traced, pre_dispatch=True)(self.x).graph
        self.assertEqual(self.held(), 0)
        self.assertNotIn("graft", str(graph))

    def test_models_are_copied_and_saved_as_ever(self):
        layer = nn.Linear(IN, OUT)
        before = len(pickle.dumps(layer))
        self.assert_true(layer.weight)
        self.assertEqual(len(pickle.dumps(layer)), before)
        twin = copy.deepcopy(layer)
        with torch.no_grad():
            twin.weight.add_(1)
        self.assert_true(twin.weight)
        self.assert_true(layer.weight)
        twin.load_state_dict(layer.state_dict())
        self.assert_true(twin.weight)

    def test_interrupted_while_a_copy_is_made(self):
        x, w = torch.randn(3, IN, requires_grad=True), torch.randn(OUT, IN)
        before = ops.packed_bytes()
        for mode in (torch.enable_grad, torch.no_grad):
            with mode(), mock.patch.object(registry.weakref, "ref", side_effect=KeyboardInterrupt):
                self.assertRaises(KeyboardInterrupt, graft_lora.linear, x, w, pack=True)
            self.assertEqual(ops.packed_bytes(), before)
        self.assertTrue(torch.allclose(graft_lora.linear(x, w, pack=True), F.linear(x, w), atol=1e-5))

    def test_a_weight_that_cannot_be_packed_leaves_nothing(self):
        with self.assertRaises(graft_lora.GraftError):
            graft_lora.linear(self.x, draw(OUT, IN).double(), pack=True)
        with self.assertRaises(graft_lora.GraftError):
            graft_lora.linear(self.x, draw(OUT, IN + 1), pack=True)
        self.assertEqual(self.held(), 0)


if __name__ == "__main__":
    unittest.main()
