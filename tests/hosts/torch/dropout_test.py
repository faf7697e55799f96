"""Dropout before A: drawn as theory says, from torch's generator, and the same mask again in backward."""

import copy
import unittest

import torch
from torch.utils.checkpoint import set_checkpoint_early_stop

import graft_lora
import models


def mask_layer(features: int = 32, p: float = 0.25):
    """A layer that shows its masks: W = 0, A = B = 1, scaling 1, so that y = drop(x)."""
    model, layer = models.one_layer(
        features, features, bias=False, dropout=p, r=features, lora_alpha=features
    )
    with torch.no_grad():
        layer.base_layer.weight.zero_()
        for adapter in (layer.lora_A, layer.lora_B):
            adapter["default"].weight.copy_(torch.eye(features))
    return graft_lora.accelerate(model), layer


class Mask(unittest.TestCase):
    def draw(self, model, rows=64):
        return model(torch.ones(rows, 32)).detach()

    def test_is_zero_or_the_inverse_of_what_is_kept(self):
        model, _ = mask_layer(p=0.25)
        with models.Counted(model) as counted:
            mask = self.draw(model, rows=1000)
        models.assert_fused(self, counted, 1, 0)
        self.assertEqual([0.0, torch.tensor(1 / 0.75).item()], mask.unique().tolist())
        # 32,000 draws: five standard deviations are 0.012.
        self.assertAlmostEqual(0.25, (mask == 0).double().mean().item(), delta=0.012)

    def test_is_another_one_each_step(self):
        model, _ = mask_layer()
        self.assertFalse(torch.equal(self.draw(model), self.draw(model)))

    def test_is_another_one_in_each_layer(self):
        (first, _), (second, _) = mask_layer(), mask_layer()
        torch.manual_seed(3)
        self.assertFalse(torch.equal(self.draw(first), self.draw(second)))

    def test_does_not_overlap_with_the_next_one(self):
        # Two draws must not be one stream read at two places: no row of one is a row of the other. A row
        # is 32 draws of which two agree with a chance of 0.625: 64 · 64 pairs agree with one of 0.001.
        model, _ = mask_layer()
        first, second = self.draw(model), self.draw(model)
        self.assertFalse((first[:, None] == second[None]).all(dim=-1).any())

    def test_follows_the_seed(self):
        model, _ = mask_layer()
        torch.manual_seed(3)
        first, second = self.draw(model), self.draw(model)
        torch.manual_seed(3)
        self.assertTrue(torch.equal(first, self.draw(model)))
        state = torch.get_rng_state()
        self.assertTrue(torch.equal(second, self.draw(model)))
        torch.set_rng_state(state)
        self.assertTrue(torch.equal(second, self.draw(model)))
        torch.manual_seed(4)
        self.assertFalse(torch.equal(first, self.draw(model)))

    def test_moves_the_generator_on(self):
        # Who draws something else between two steps must not get numbers that a mask was made of.
        model, _ = mask_layer()
        torch.manual_seed(3)
        state = torch.get_rng_state()
        self.draw(model)
        self.assertFalse(torch.equal(state, torch.get_rng_state()))

    def test_is_none_in_evaluation(self):
        model, _ = mask_layer()
        model.eval()
        state = torch.get_rng_state()
        with models.Counted(model) as counted:
            self.assertTrue(torch.equal(torch.ones(64, 32), self.draw(model)))
        models.assert_fused(self, counted, 1, 0)
        self.assertTrue(torch.equal(state, torch.get_rng_state()))

    def test_without_dropout_the_generator_stays(self):
        model, _ = models.one_layer()
        graft_lora.accelerate(model)
        state = torch.get_rng_state()
        model(torch.randn(3, 48, generator=torch.Generator().manual_seed(1))).sum().backward()
        self.assertTrue(torch.equal(state, torch.get_rng_state()))


class Moments(unittest.TestCase):
    """Of the delta s·(drop(x)·A)·B over 1,000 draws, against theory."""

    DRAWS = 1000

    def check(self, p, draw):
        model, layer = models.one_layer(32, 40, bias=False, dropout=p, seed=1)
        with torch.no_grad():
            layer.base_layer.weight.zero_()
        x = torch.randn(32, generator=torch.Generator().manual_seed(2))
        torch.manual_seed(7)
        graft_lora.accelerate(model)
        with torch.no_grad():
            deltas = draw(model, x).double()
        self.assertEqual((self.DRAWS, 40), deltas.shape)

        a, b = (part["default"].weight.detach().double() for part in (layer.lora_A, layer.lora_B))
        terms = layer.scaling["default"] * (b @ a) * x.double()  # (40, 32): drop picks among 32.
        mean, variance = terms.sum(1), terms.square().sum(1) * p / (1 - p)
        # An estimate's own standard deviations; 5 of them leave 80 outputs a chance of 0.00005.
        fourth = (
            terms.pow(4).sum(1)
            * (p * (1 - p) * (1 - 3 * p * (1 - p)) - 3 * (p * (1 - p)) ** 2)
            / (1 - p) ** 4
        )
        of_mean = (variance / self.DRAWS).sqrt()
        of_variance = ((2 * variance.square() + fourth) / self.DRAWS).sqrt()
        self.assertLess(((deltas.mean(0) - mean).abs() / of_mean).max().item(), 5)
        self.assertLess(((deltas.var(0) - variance).abs() / of_variance).max().item(), 5)

    def steps(self, model, x):
        return torch.stack([model(x[None])[0] for _ in range(self.DRAWS)])

    def rows(self, model, x):
        return model(x.expand(self.DRAWS, -1))

    def test_over_steps(self):
        for p in (0.05, 0.5):
            with self.subTest(p=p):
                self.check(p, self.steps)

    def test_over_rows(self):
        for p in (0.05, 0.5):
            with self.subTest(p=p):
                self.check(p, self.rows)


class Gradients(unittest.TestCase):
    """With the mask frozen: the generator is set to one seed before every forward."""

    def setUp(self):
        self.model, self.layer = models.one_layer(12, 10, dropout=0.3, seed=4)
        graft_lora.accelerate(self.model)
        generator = torch.Generator().manual_seed(6)
        self.x = torch.randn(9, 12, generator=generator).requires_grad_()
        self.dy = torch.randn(9, 10, generator=generator)
        self.parameters = {
            "x": self.x,
            "A": self.layer.lora_A["default"].weight,
            "B": self.layer.lora_B["default"].weight,
        }

    def loss(self):
        torch.manual_seed(11)
        return (self.model(self.x) * self.dy).sum()

    def test_against_finite_differences(self):
        with models.Counted(self.model) as counted:
            self.loss().backward()
        models.assert_fused(self, counted, 1, 1)
        for name, parameter in self.parameters.items():
            # The loss is linear in each of the three: a step of 1 has no error but rounding.
            differences = torch.empty_like(parameter, dtype=torch.float64)
            with torch.no_grad():
                for index in range(parameter.numel()):
                    entry = parameter.view(-1)[index]
                    value = entry.item()
                    sides = []
                    for step in (1.0, -1.0):
                        parameter.view(-1)[index] = value + step
                        sides.append(self.loss().double())
                    parameter.view(-1)[index] = value
                    differences.view(-1)[index] = (sides[0] - sides[1]) / 2
            torch.testing.assert_close(
                parameter.grad.double(), differences, rtol=1e-4, atol=1e-4, msg=lambda text: f"{name}: {text}"
            )

    def test_against_the_mask_that_forward_used(self):
        # The mask itself, from the same generator, the same shape, through a layer that shows it.
        shows, _ = mask_layer(12, 0.3)
        torch.manual_seed(11)
        mask = shows(torch.ones(9, 12)).detach().double()
        layer, scaling = self.layer, self.layer.scaling["default"]
        x = self.x.detach().double().requires_grad_()
        a = self.parameters["A"].detach().double().requires_grad_()
        b = self.parameters["B"].detach().double().requires_grad_()
        weight, bias = layer.base_layer.weight.double(), layer.base_layer.bias.double()
        truth = x @ weight.T + bias + scaling * ((mask * x) @ a.T) @ b.T
        torch.manual_seed(11)
        y = self.model(self.x)
        torch.testing.assert_close(y.double(), truth, rtol=1e-5, atol=1e-5)
        y.backward(self.dy)
        truth.backward(self.dy.double())
        for name, leaf in (("x", x), ("A", a), ("B", b)):
            torch.testing.assert_close(
                self.parameters[name].grad.double(),
                leaf.grad,
                rtol=1e-5,
                atol=1e-5,
                msg=lambda text: f"{name}: {text}",
            )


class Checkpointing(unittest.TestCase):
    """Forward is run again inside backward: it must draw the mask that it drew before."""

    def gradients(self, checkpointing, dropout=0.2):
        model = models.build("llama", dropout=dropout)
        model.enable_input_require_grads()
        if checkpointing is not None:
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        graft_lora.accelerate(model)
        torch.manual_seed(21)
        # Forward is run again to its end, so that every layer is counted twice.
        with models.Counted(model) as counted, set_checkpoint_early_stop(False):
            loss = model(**models.batch("llama"), use_cache=False).loss
            loss.backward()
        models.assert_fused(self, counted, 1 if checkpointing is None else 2, 1)
        return loss.item(), models.gradients(model)

    def check(self, use_reentrant):
        expected_loss, expected = self.gradients(None)
        loss, gradients = self.gradients(use_reentrant)
        self.assertEqual(expected_loss, loss)
        for name, gradient in expected.items():
            self.assertTrue(torch.equal(gradient, gradients[name]), name)
        # And the mask counts.
        self.assertNotEqual(expected_loss, self.gradients(use_reentrant, dropout=0.0)[0])

    def test_reentrant(self):
        self.check(True)

    def test_not_reentrant(self):
        self.check(False)

    def test_without_dropout_as_peft(self):
        for use_reentrant in (True, False):
            with self.subTest(use_reentrant=use_reentrant):
                model = models.build("qwen2")
                model.enable_input_require_grads()
                model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
                truth, plain = models.double(model), copy.deepcopy(model)
                graft_lora.accelerate(model)
                found = []
                for one in (model, plain, truth):
                    one(**models.batch("qwen2"), use_cache=False).loss.backward()
                    found.append(models.gradients(one))
                models.assert_as_good(self, *found, torch.float32)


if __name__ == "__main__":
    unittest.main()
