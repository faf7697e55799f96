"""Twenty steps of training go as PEFT's own do, on every family of models."""

import copy
import unittest

import torch

import graft_lora
import models

STEPS = 20


class Training(unittest.TestCase):
    def trained(self, family: str, autocast: torch.dtype | None = None, **options):
        """What ran fused, then (losses, final adapters) with Graft, by PEFT alone, and by PEFT in float64."""
        model = models.build(family, **options)
        plain = copy.deepcopy(model)
        truth = models.double(model)
        graft_lora.accelerate(model)
        with models.Counted(model) as counted:
            losses = models.train(model, family, STEPS, autocast=autocast)
        ours = losses, models.trainable(model)
        peft = models.train(plain, family, STEPS, autocast=autocast), models.trainable(plain)
        exact = models.train(truth, family, STEPS), models.trainable(truth)
        return counted, ours, peft, exact

    def check(self, family: str, **options):
        counted, (losses, adapters), (peft_losses, peft_adapters), exact = self.trained(family, **options)
        models.assert_fused(self, counted, forward=STEPS, backward=STEPS)
        self.assertLess(sum(peft_losses[-2:]), 0.9 * sum(peft_losses[:2]), "it learned nothing")

        # To rounding: no further from float64's losses than twice the furthest of PEFT's, and a rounding.
        truth = torch.tensor(exact[0], dtype=torch.float64)
        ours = (torch.tensor(losses, dtype=torch.float64) - truth).abs().max()
        theirs = (torch.tensor(peft_losses, dtype=torch.float64) - truth).abs().max()
        rounding = models.EPSILON[torch.float32] * truth.abs().max()
        self.assertLessEqual(ours, 2 * theirs + rounding)

        self.assertEqual(peft_adapters.keys(), adapters.keys())
        for name, theirs in peft_adapters.items():
            torch.testing.assert_close(
                adapters[name], theirs, rtol=0.0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )

    def test_llama(self):
        self.check("llama")

    def test_qwen2(self):
        self.check("qwen2")

    def test_gemma(self):
        self.check("gemma")

    def test_vit(self):
        self.check("vit")

    def test_biases_of_the_adapters_train_too(self):
        # Not k's: attention is the same whatever is added to all keys, so its gradient is rounding alone.
        self.check(
            "vit", lora_bias=True, use_rslora=True, targets=["q_proj", "v_proj", "o_proj", "fc1", "fc2"]
        )

    def test_trainable_biases_of_the_base(self):
        self.check("qwen2", bias="lora_only", targets=["q_proj", "v_proj", "up_proj"])

    def check_low_precision(self, family: str, autocast: torch.dtype | None):
        """A model in bf16, of which PEFT keeps the adapters in f32."""
        counted, *runs = self.trained(family, autocast, dtype=torch.bfloat16)
        models.assert_fused(self, counted, forward=STEPS, backward=STEPS)
        losses = [torch.tensor(losses) for losses, _ in runs]
        models.assert_as_good(self, *losses, torch.bfloat16, "losses")
        models.assert_as_good(self, *(adapters for _, adapters in runs), torch.bfloat16, "adapters")

    def test_low_precision_under_autocast(self):
        for family in ("llama", "qwen2", "gemma", "vit"):
            with self.subTest(family):
                self.check_low_precision(family, torch.bfloat16)

    def test_low_precision_without_autocast(self):
        self.check_low_precision("llama", None)

    def test_gpt2_falls_back_and_says_why(self):
        counted, ours, peft, _ = self.trained("gpt2")
        layers = models.lora_layers(counted.model)
        self.assertEqual(8, len(layers))
        self.assertEqual(dict.fromkeys(layers, (0, 0)), counted.fused)
        for name, reasons in counted.reasons.items():
            self.assertEqual([STEPS], list(reasons.values()), name)
            self.assertIn("Conv1D", next(iter(reasons)), name)
        self.assertEqual(peft[0], ours[0])  # The same computation, so to the bit.
        for name, theirs in peft[1].items():
            self.assertTrue(torch.equal(theirs, ours[1][name]), name)


if __name__ == "__main__":
    unittest.main()
