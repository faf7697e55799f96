"""Training under torch.compile: one graph for all steps, PEFT's numbers, and fused."""

import copy
import unittest

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import graft_lora
import models

STEPS = 20


class Compiled(unittest.TestCase):
    """AOTAutograd's graphs without Inductor's kernels, but in the test that says so: they compile faster."""

    def setUp(self):
        torch._dynamo.reset()

    def compile(self, module, backend="aot_eager", **options):
        """(the compiled module, the counter of its graphs)"""
        counter = CompileCounterWithBackend(backend)
        return torch.compile(module, fullgraph=True, backend=counter, **options), counter

    def assert_compiled(self, model, graphs=1):
        names = models.lora_layers(model)
        self.assertEqual(dict.fromkeys(names, graphs), models.compiled(model), models.reasons(model))
        self.assertEqual(dict.fromkeys(names, {}), models.reasons(model))

    def check_training(self, family, backend, layers=2, **lora):
        model = models.build(family, layers=layers, **lora)
        plain, truth = copy.deepcopy(model), models.double(model)
        step, counter = self.compile(graft_lora.accelerate(model), backend)
        optimizers = [
            torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=3e-3)
            for one in (model, plain, truth)
        ]
        losses, gradients = ([], [], []), ([], [], [])
        with torch._dynamo.config.patch(error_on_recompile=True):
            for index in range(STEPS):
                for which, one in enumerate((step, plain, truth)):
                    loss = one(**models.batch(family, index % 2)).loss
                    loss.backward()
                    losses[which].append(loss.detach())
                    optimizers[which].step()
                    gradients[which].extend(models.gradients(one).values())
        models.assert_as_good(self, *losses, torch.float32, "losses")
        models.assert_as_good(self, *gradients, torch.float32, "gradients")
        self.assertEqual(1, counter.frame_count)
        self.assert_compiled(model)

    def test_twenty_steps_are_one_graph(self):
        self.check_training("llama", "aot_eager")

    def test_inductor(self):
        self.check_training("vit", "inductor", layers=1)

    def layer(self, **options):
        model, _ = models.one_layer(**options)
        return graft_lora.accelerate(model)

    def step(self, run, model, x):
        x = x.clone().requires_grad_()
        y = run(x)
        y.square().sum().backward()
        return y.detach(), models.gradients(model) | {"x": x.grad}

    def test_other_batch_sizes(self):
        # The second size makes a graph for all sizes; a third one finds it.
        model = self.layer()
        run, counter = self.compile(model)
        for rows in (5, 9, 33, 17):
            x = torch.randn(rows, 48, generator=torch.Generator().manual_seed(rows))
            y, gradients = self.step(run, model, x)
            expected, expected_gradients = self.step(model, model, x)
            torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
            self.assertEqual(expected_gradients.keys(), gradients.keys())
            for name, gradient in expected_gradients.items():
                torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5)
        self.assertEqual(2, counter.frame_count)

    def test_low_precision_under_autocast(self):
        model = self.layer(dtype=torch.bfloat16)
        run, counter = self.compile(model)
        x = torch.randn(6, 48, generator=torch.Generator().manual_seed(1)).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            y, gradients = self.step(run, model, x)
            expected, expected_gradients = self.step(model, model, x)
        self.assertEqual(torch.bfloat16, y.dtype)
        self.assertTrue(torch.equal(expected, y))
        for name, gradient in expected_gradients.items():
            self.assertTrue(torch.equal(gradient, gradients[name]), name)
        self.assertEqual(1, counter.frame_count)

    def check_dropout(self, checkpointed, backend):
        # W = 0 and A = B = 1 show the mask: forward's, and that backward used the same.
        model, layer = models.one_layer(32, 32, bias=False, dropout=0.25, r=32, lora_alpha=32)
        with torch.no_grad():
            layer.base_layer.weight.zero_()
            for adapter in (layer.lora_A, layer.lora_B):
                adapter["default"].weight.copy_(torch.eye(32))
        graft_lora.accelerate(model)
        run, counter = self.compile(
            (lambda x: checkpoint(model, x, use_reentrant=False)) if checkpointed else model, backend
        )
        seen = []
        for seed in (1, 2, 3, 1):
            torch.manual_seed(seed)
            x = torch.ones(64, 32, requires_grad=True)
            y = run(x)
            y.sum().backward()
            self.assertEqual([0.0, torch.tensor(1 / 0.75).item()], y.unique().tolist())
            self.assertTrue(torch.equal(y, x.grad))
            seen.append(y.detach())
        same = [torch.equal(seen[0], other) for other in seen]
        self.assertEqual([True, False, False, True], same)
        self.assertEqual(1, counter.frame_count)
        model.eval()
        self.assertTrue(torch.equal(torch.ones(64, 32), run(torch.ones(64, 32))))

    def test_dropout(self):
        self.check_dropout(False, "aot_eager")

    def test_dropout_that_is_run_again(self):
        self.check_dropout(True, "aot_eager")

    def test_dropout_in_inductor(self):
        self.check_dropout(True, "inductor")


if __name__ == "__main__":
    unittest.main()
