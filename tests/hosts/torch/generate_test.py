"""Generation with a key-value cache, and evaluation without gradients: PEFT's tokens and numbers."""

import copy
import unittest

import torch

import graft_lora
import models

TOKENS = 12


class Generate(unittest.TestCase):
    def check(self, family, fused=True, **options):
        model = models.build(family).eval()
        plain = copy.deepcopy(model)
        graft_lora.accelerate(model)
        # Prompts of two lengths: the shorter one is padded on the left.
        ids = models.batch(family)["input_ids"]
        mask = torch.ones_like(ids)
        ids[1, :4], mask[1, :4] = 0, 0
        settings = dict(
            attention_mask=mask, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, pad_token_id=0
        )
        expected = plain.generate(input_ids=ids, **settings, **options)
        with models.Counted(model) as counted:
            tokens = model.generate(input_ids=ids, **settings, **options)
        self.assertEqual((2, 12 + TOKENS), tuple(tokens.shape))
        self.assertEqual(expected.tolist(), tokens.tolist())
        if fused:
            models.assert_fused(self, counted, TOKENS, 0)  # The prompt, then a token a call.

    def test_llama(self):
        self.check("llama")

    def test_qwen2(self):
        self.check("qwen2")

    def test_gemma(self):
        self.check("gemma")

    def test_gpt2(self):
        self.check("gpt2", fused=False)

    def test_beams(self):
        self.check("llama", num_beams=3)

    def test_without_a_cache(self):
        self.check("llama", use_cache=False)


class WithoutGradients(unittest.TestCase):
    def check(self, context):
        model = models.build("qwen2", dropout=0.1).eval()
        plain, truth = copy.deepcopy(model), models.double(model)
        graft_lora.accelerate(model)
        inputs = models.batch("qwen2")
        with context(), models.Counted(model) as counted:
            logits = model(**inputs).logits
        models.assert_fused(self, counted, 1, 0)
        self.assertFalse(logits.requires_grad)
        with torch.no_grad():
            models.assert_as_good(self, logits, plain(**inputs).logits, truth(**inputs).logits, torch.float32)
        # And with gradients, after it: the copies that a call made without them serve.
        plain(**inputs).loss.backward()
        truth(**inputs).loss.backward()
        with models.Counted(model) as counted:
            model(**inputs).loss.backward()
        models.assert_fused(self, counted, 1, 1)
        models.assert_as_good(self, *(models.gradients(one) for one in (model, plain, truth)), torch.float32)

    def test_no_grad(self):
        self.check(torch.no_grad)

    def test_inference_mode(self):
        self.check(torch.inference_mode)

    def test_saves_nothing_for_backward(self):
        model, _ = models.one_layer()
        graft_lora.accelerate(model)
        kept = []
        with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):
            model(torch.randn(4, 48))
        self.assertEqual([], kept)

    def test_frozen_adapters_give_dx_alone(self):
        model, _ = models.one_layer()
        model.requires_grad_(False)
        plain, truth = copy.deepcopy(model), models.double(model)
        graft_lora.accelerate(model)
        found = []
        for one in (model, plain, truth):
            x = torch.randn(4, 48, generator=torch.Generator().manual_seed(1)).to(
                next(one.parameters()).dtype
            )
            x.requires_grad_()
            one(x).square().sum().backward()
            self.assertEqual({}, models.gradients(one))
            found.append(x.grad)
        models.assert_as_good(self, *found, torch.float32)


if __name__ == "__main__":
    unittest.main()
