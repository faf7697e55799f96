"""Transformers' Trainer on a tiny Llama with random weights: python examples/torch/trainer.py"""

import tempfile

import torch
import transformers
from peft import LoraConfig, get_peft_model

import graft_lora


def samples(count: int = 64, length: int = 24, vocabulary: int = 50) -> list[dict]:
    """Sequences that count upwards from a random start, which a model learns soon."""
    starts = torch.randint(vocabulary, (count, 1))
    ids = (starts + torch.arange(length)) % vocabulary
    return [{"input_ids": row, "labels": row} for row in ids]


def train(accelerated: bool = True, steps: int = 20) -> tuple[list[float], torch.nn.Module]:
    """The losses of each step, and the model."""
    transformers.set_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    if accelerated:
        graft_lora.accelerate(model)  # The one line.
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=samples())
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model


if __name__ == "__main__":
    losses, model = train()
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {len(losses)} steps")
    graft_lora.report(model)
