"""TRL's SFTTrainer on a tiny Qwen2 with random weights: python examples/torch/sft_trainer.py"""

import tempfile

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from trl import SFTConfig, SFTTrainer

import graft_lora

DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", "after", "comes", *DAYS]
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def train(accelerated: bool = True, steps: int = 20) -> tuple[list[float], torch.nn.Module]:
    """The losses of each step, and the model."""
    transformers.set_seed(0)
    words = tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.Qwen2Config(vocab_size=len(words), num_key_value_heads=2, **sizes)
    data = [{"prompt": f"after {DAYS[n]} comes", "completion": f" {DAYS[(n + 1) % 7]}"} for n in range(7)] * 8
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=transformers.Qwen2ForCausalLM(config),
            args=SFTConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=4,
                learning_rate=1e-2,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                bf16=False,
            ),
            train_dataset=Dataset.from_list(data),
            processing_class=words,
            peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
        )
        if accelerated:
            graft_lora.accelerate(trainer.model)  # The one line; the trainer itself adds the adapters.
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], trainer.model


if __name__ == "__main__":
    losses, model = train()
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {len(losses)} steps")
    graft_lora.report(model)
