"""What autograd and torch.func can ask of a model beside a step of training: right, or a clear refusal."""

import copy
import unittest

import torch

import graft_lora
import models
from graft_lora.lora import plus_delta


class Asked(unittest.TestCase):
    def setUp(self):
        self.model = models.two_layers()
        self.plain = copy.deepcopy(self.model)
        self.truth = models.double(self.model)
        graft_lora.accelerate(self.model)
        self.x = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))

    def right_or_refused(self, ask):
        """Whether `ask(model, x)` is as good with Graft as with PEFT, or a GraftError says why not."""
        truth, plain = ask(self.truth, self.x.double()), ask(self.plain, self.x)
        try:
            got = ask(self.model, self.x)
        except graft_lora.GraftError as error:
            self.assertEqual("unsupported", error.code)
            return
        models.assert_as_good(self, got, plain, truth, torch.float32)

    def right(self, ask):
        truth, plain = ask(self.truth, self.x.double()), ask(self.plain, self.x)
        models.assert_as_good(self, ask(self.model, self.x), plain, truth, torch.float32)

    def test_gradients_of_some_only(self):
        def of(names):
            def ask(model, x):
                x = x.clone().requires_grad_()
                wanted = [
                    p
                    for n, p in model.named_parameters()
                    if p.requires_grad and any(part in n for part in names)
                ]
                wanted += [x] if "x" in names else []
                return torch.autograd.grad(model(x).square().sum(), wanted)

            return ask

        for names in (
            ["x"],
            ["lora_A"],
            ["lora_B"],
            ["lora_A", "lora_B"],
            ["second.lora_A"],
            ["x", "lora_B"],
        ):
            with self.subTest(names):
                self.right(of(names))

    def test_two_backwards_of_one_forward(self):
        def ask(model, x):
            loss = model(x).square().sum()
            loss.backward(retain_graph=True)
            loss.backward()
            return models.gradients(model)

        self.right(ask)

    def test_frozen_adapters(self):
        """What x is does not matter to dx, so as with PEFT x may be written to afterwards."""

        def first(model, x):
            x = x.clone().requires_grad_()
            inner = x * 2
            y = model(inner)
            inner.add_(1)
            return torch.autograd.grad(y.square().sum(), x)

        def second(model, x):
            x = x.clone().requires_grad_()
            (dx,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
            return torch.autograd.grad(dx.square().sum(), x)

        for model in (self.model, self.plain, self.truth):
            model.requires_grad_(False)
        self.right(first)
        self.right(second)

    def test_frozen_adapters_keep_no_x(self):
        a, b = torch.randn(4, 40), torch.randn(24, 4)
        x = torch.randn(3, 40, requires_grad=True)
        calls = {
            "lora_linear": lambda a: graft_lora.lora_linear(x, torch.ones(24, 40), None, a, b),
            "lora_delta": lambda a: graft_lora.lora_delta(x, a, b),
            "lora_delta_add": lambda a: plus_delta(torch.zeros(3, 24), x, a, b, 1.0, 0.0, None, None, True),
        }
        for name, call in calls.items():
            for frozen in (True, False):
                with self.subTest(name, frozen=frozen):
                    kept = []
                    with torch.autograd.graph.saved_tensors_hooks(
                        lambda t: kept.append(t.data_ptr()) or t, lambda t: t
                    ):
                        y = call(a if frozen else a.clone().requires_grad_())
                    self.assertEqual(x.data_ptr() not in kept, frozen)
                    (dx,) = torch.autograd.grad(y.sum(), x)
                    want = (b @ a).sum(0) + (24 if name == "lora_linear" else 0)
                    self.assertLess((dx - want).norm(), 1e-5 * want.norm() * 3**0.5)

    def test_gradients_accumulate(self):
        def ask(model, x):
            for part in (x, 2 * x):
                model(part).square().sum().backward()
            return models.gradients(model)

        self.right(ask)

    def test_one_layer_called_twice(self):
        def ask(model, x):
            (model(x) * model(x + 1)).sum().backward()
            return models.gradients(model)

        self.right(ask)

    def test_second_derivatives(self):
        def ask(model, x):
            x = x.clone().requires_grad_()
            (first,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
            return torch.autograd.grad(first.square().sum(), x)

        self.right_or_refused(ask)

    def test_penalty_on_the_gradient(self):
        def ask(model, x):
            x = x.clone().requires_grad_()
            (first,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
            first.square().sum().backward()
            return models.gradients(model)

        self.right_or_refused(ask)

    def test_penalty_on_the_gradient_of_a_linear_loss(self):
        # dy is a constant: backward sees nothing that asks for gradients but what it saved.
        def ask(model, x):
            wanted = [p for p in model.parameters() if p.requires_grad]
            loss = model(x).sum()
            first = torch.autograd.grad(loss, wanted, create_graph=True)
            (loss + sum(g.square().sum() for g in first)).backward()
            return models.gradients(model)

        self.right(ask)

    def test_second_derivatives_with_dropout_are_refused(self):
        model = graft_lora.accelerate(models.two_layers(dropout=0.2))
        wanted = [p for p in model.parameters() if p.requires_grad]
        with self.assertRaisesRegex(graft_lora.GraftError, "dropout"):
            torch.autograd.grad(model(self.x).sum(), wanted, create_graph=True)

    def parameters(self, model):
        return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def test_vmap(self):
        self.right_or_refused(lambda model, x: torch.func.vmap(model)(torch.stack([x, x + 1])))

    def test_gradients_of_each_sample(self):
        def ask(model, x):
            def loss(parameters, row):
                return torch.func.functional_call(model, parameters, (row[None],)).square().sum()

            return torch.func.vmap(torch.func.grad(loss), (None, 0))(self.parameters(model), x)

        self.right_or_refused(ask)

    def test_functional_call(self):
        def ask(model, x):
            with torch.no_grad():
                parameters = {name: 2 * p for name, p in self.parameters(model).items()}
                return torch.func.functional_call(model, parameters, (x,))

        self.right(ask)

    def test_functional_call_with_other_base_weights(self):
        def ask(model, x):
            with torch.no_grad():
                weights = {name: 2 * p for name, p in model.named_parameters() if "base_layer" in name}
                return torch.func.functional_call(model, weights, (x,))

        self.right(ask)

    def test_forward_mode(self):
        def ask(model, x):
            return torch.func.jvp(model, (x,), (torch.ones_like(x),))[1]

        self.right_or_refused(ask)

    def test_forward_mode_of_autograd(self):
        def ask(model, x):
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
                tangent = torch.autograd.forward_ad.unpack_dual(model(dual)).tangent
                self.assertIsNotNone(tangent, "the tangent was lost in silence")
                return tangent.clone()

        self.right_or_refused(ask)
        with torch.no_grad():
            self.right_or_refused(ask)

    def test_hessian(self):
        def ask(model, x):
            return torch.func.hessian(lambda x: model(x).square().sum())(x[:1])

        self.right_or_refused(ask)

    def test_jit_trace(self):
        plain = torch.jit.trace(self.plain, self.x)
        traced = torch.jit.trace(self.model, self.x, check_trace=False)
        other = self.x + 1
        torch.testing.assert_close(traced(other), plain(other), rtol=1e-5, atol=1e-5)

    def test_export(self):
        program = torch.export.export(self.model.eval(), (self.x,))
        other = self.x + 1
        torch.testing.assert_close(program.module()(other), self.plain(other), rtol=1e-5, atol=1e-5)

    def test_inputs_of_every_kind(self):
        shapes = {
            "one dimension": self.x[0],
            "four dimensions": self.x.reshape(1, 3, 1, 40),
            "no rows": self.x[:0],
            "strided": torch.cat([self.x, self.x], 1)[:, ::2],
            "transposed": self.x.t().contiguous().t(),
            "expanded": self.x[:1].expand(5, 40),
        }
        for name, x in shapes.items():
            with self.subTest(name):
                with models.Counted(self.model) as counted:
                    y = self.model(x)
                models.assert_fused(self, counted, 1, 0)
                self.assertEqual(self.plain(x).shape, y.shape)
                torch.testing.assert_close(y, self.plain(x), rtol=1e-5, atol=1e-5)
                y.square().sum().backward()
                self.plain(x).square().sum().backward()
                expected = models.gradients(self.plain)
                for key, gradient in models.gradients(self.model).items():
                    torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    unittest.main()
