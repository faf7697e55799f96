"""Tiny models with PEFT's LoRA, and what the tests of whole models ask of them.

Every builder is deterministic: the same arguments give the same parameters. lora_B is drawn at random, not
zero as PEFT leaves it, so that every part of a layer counts from the first step.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterable

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

import graft_lora

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
os.environ.setdefault("HF_HUB_OFFLINE", "1")

VOCABULARY = 64
CLASSES = 7
FAMILIES = ("llama", "qwen2", "gemma", "gpt2", "vit")
EPSILON = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}  # Of one rounding, to the nearest.


def base(family: str, layers: int = 2) -> nn.Module:
    """A transformer of that family with random weights, without dropout of its own."""
    decoder = dict(
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    if family == "llama":
        config = transformers.LlamaConfig(
            hidden_size=48, intermediate_size=80, num_key_value_heads=2, **decoder
        )
        return transformers.LlamaForCausalLM(config)
    if family == "qwen2":  # Biases on q, k and v.
        config = transformers.Qwen2Config(
            hidden_size=32, intermediate_size=72, num_key_value_heads=2, **decoder
        )
        return transformers.Qwen2ForCausalLM(config)
    if family == "gemma":  # Heads that are wider together than the model.
        config = transformers.GemmaConfig(
            hidden_size=40, intermediate_size=64, num_key_value_heads=1, head_dim=16, **decoder
        )
        return transformers.GemmaForCausalLM(config)
    if family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=64,
            n_embd=48,
            n_layer=layers,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=0.2,
            bos_token_id=1,
            eos_token_id=2,
        )
        return transformers.GPT2LMHeadModel(config)
    assert family == "vit"
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=16,
        patch_size=8,
        initializer_range=0.2,
        num_labels=CLASSES,
        problem_type="single_label_classification",
    )
    return transformers.ViTForImageClassification(config)


def with_lora(
    model: nn.Module, *, dropout: float = 0.0, targets="all-linear", adapters_in_f32: bool = True, **options
) -> nn.Module:
    """PEFT's LoRA on `model`; `options` are LoraConfig's. Adapters are in f32, as PEFT has them, or in the
    model's type."""
    settings = dict(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=targets) | options
    with warnings.catch_warnings():
        # PEFT finds by itself which way round Conv1D's weights lie.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        model = get_peft_model(model, LoraConfig(**settings), autocast_adapter_dtype=adapters_in_f32)
    fill(model)
    return model


def fill(model: nn.Module, adapter: str = "default") -> None:
    """Draws that adapter's B, at a size at which the delta is a fair part of a layer's output.

    Not larger: neurons far in GELU's tail have gradients that are rounding alone, and AdamW makes full steps
    of them.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"lora_B.{adapter}.weight" in name:
                parameter.normal_(std=0.3)
            elif f"lora_B.{adapter}.bias" in name:
                parameter.normal_(std=0.05)


def build(
    family: str, *, seed: int = 0, layers: int = 2, dtype: torch.dtype = torch.float32, **lora
) -> nn.Module:
    """The family's tiny model of that type with LoRA on every linear layer, in training mode."""
    torch.manual_seed(seed)
    return with_lora(base(family, layers).to(dtype), **lora).train()


class TwoLayers(nn.Module):
    """What is true of one layer and of its neighbour, without a transformer's own rounding."""

    def __init__(self, features: int = 40, hidden: int = 56, classes: int = 24, bias: bool = True):
        super().__init__()
        self.first = nn.Linear(features, hidden, bias=bias)
        self.second = nn.Linear(hidden, classes, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def two_layers(*, seed: int = 0, bias: bool = True, dtype: torch.dtype = torch.float32, **lora) -> nn.Module:
    """TwoLayers with LoRA on both, in training mode; it takes x (..., 40) and gives (..., 24)."""
    torch.manual_seed(seed)
    settings = dict(targets=["first", "second"]) | lora
    return with_lora(TwoLayers(bias=bias).to(dtype), **settings).train()


def one_layer(
    in_features: int = 48,
    out_features: int = 56,
    *,
    seed: int = 0,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
    **lora,
) -> tuple[nn.Module, nn.Module]:
    """A model of one linear layer, and that layer: PEFT's lora.Linear."""
    torch.manual_seed(seed)
    model = nn.Sequential(OrderedDict(linear=nn.Linear(in_features, out_features, bias=bias)))
    model = with_lora(model.to(dtype), targets=["linear"], **lora).train()
    return model, model.base_model.model.linear


def lora_layers(model: nn.Module) -> OrderedDict[str, nn.Module]:
    """PEFT's layers by name."""
    return OrderedDict((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A"))


def batch(family: str, step: int = 0, rows: int = 2, tokens: int = 12) -> dict[str, torch.Tensor]:
    """Inputs and labels of that step; the same every time."""
    generator = torch.Generator().manual_seed(1000 + step)
    if family == "vit":
        return {
            "pixel_values": torch.randn(rows, 3, 16, 16, generator=generator),
            "labels": torch.randint(CLASSES, (rows,), generator=generator),
        }
    ids = torch.randint(3, VOCABULARY, (rows, tokens), generator=generator)
    return {"input_ids": ids, "labels": ids.clone()}


def double(model: nn.Module) -> nn.Module:
    """The same model, as it is now, computed by PEFT in float64."""
    plain = copy.deepcopy(model)
    graft_lora.restore(plain)
    return plain.double()


def trainable(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the parameters that train."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """The gradients that there are; taken off the model."""
    taken = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            taken[name] = parameter.grad
            parameter.grad = None
    return taken


def train(
    model: nn.Module,
    family: str,
    steps: int = 20,
    learning_rate: float = 2e-3,
    autocast: torch.dtype | None = None,
) -> list[float]:
    """The losses of so many steps of AdamW over two batches, taken in turns."""
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=learning_rate
    )
    dtype = next(model.parameters()).dtype
    losses = []
    for step in range(steps):
        inputs = {
            key: value.to(dtype) if value.is_floating_point() else value
            for key, value in batch(family, step % 2).items()
        }
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def flat(tensors: torch.Tensor | dict[str, torch.Tensor] | Iterable[torch.Tensor]) -> torch.Tensor:
    """All of them as one vector in float64."""
    if isinstance(tensors, torch.Tensor):
        tensors = [tensors]
    elif isinstance(tensors, dict):
        tensors = [tensors[name] for name in sorted(tensors)]
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def error(got, truth) -> float:
    """The norm of `got` less `truth` over the truth's; infinite if `got` is not finite."""
    got, truth = flat(got), flat(truth)
    assert got.shape == truth.shape, f"{got.shape} against {truth.shape}"
    if not torch.isfinite(got).all():
        return float("inf")
    return (torch.linalg.vector_norm(got - truth) / torch.linalg.vector_norm(truth)).item()


def assert_as_good(test, got, plain, truth, dtype: torch.dtype, what: str = "") -> None:
    """Whether `got` errs at most twice as much as PEFT's own `plain` does, plus a rounding to `dtype`."""
    allowed = 2 * error(plain, truth) + EPSILON[dtype]
    test.assertLess(allowed, 0.1, f"{what}: a truth that PEFT itself is so far from says nothing")
    test.assertLessEqual(error(got, truth), allowed, what)


def counts(model: nn.Module) -> dict[str, tuple[int, int]]:
    """How often each of PEFT's layers ran fused so far, forward and backward."""
    with open(os.devnull, "w") as nowhere:
        return {
            row.name: (row.fused["forward"], row.fused["backward"])
            for row in graft_lora.report(model, file=nowhere)
        }


def compiled(model: nn.Module) -> dict[str, int]:
    """Into how many graphs torch.compile has put each of PEFT's layers fused."""
    with open(os.devnull, "w") as nowhere:
        return {row.name: row.fused["compiled"] for row in graft_lora.report(model, file=nowhere)}


def reasons(model: nn.Module) -> dict[str, dict[str, int]]:
    """Why each of PEFT's layers ran PEFT's own forward, and how often."""
    with open(os.devnull, "w") as nowhere:
        return {row.name: dict(row.reasons) for row in graft_lora.report(model, file=nowhere)}


class Counted:
    """Counts what runs fused while it is entered."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __enter__(self) -> Counted:
        self.before = counts(self.model)
        self.reasons_before = reasons(self.model)
        return self

    def __exit__(self, *_) -> None:
        zero = (0, 0)
        self.fused = {
            name: (now[0] - self.before.get(name, zero)[0], now[1] - self.before.get(name, zero)[1])
            for name, now in counts(self.model).items()
        }
        self.reasons = {
            name: {
                reason: count - self.reasons_before.get(name, {}).get(reason, 0)
                for reason, count in now.items()
                if count != self.reasons_before.get(name, {}).get(reason, 0)
            }
            for name, now in reasons(self.model).items()
        }


def assert_fused(test, counted: Counted, forward: int, backward: int) -> None:
    """Whether every one of PEFT's layers ran fused exactly so often, and none ran PEFT's own forward."""
    names = lora_layers(counted.model).keys()
    test.assertGreater(len(names), 0)
    test.assertEqual(names, counted.fused.keys())
    wrong = [
        f"{name}: {counted.fused[name]} {counted.reasons[name]}"
        for name in names
        if counted.fused[name] != (forward, backward) or counted.reasons[name]
    ]
    test.assertFalse(
        wrong, f"{len(wrong)} layers of {len(names)} not fused {(forward, backward)} times: {wrong[:2]}"
    )
