"""Training steps of an adapter by PEFT and by mlx-lm, on batches that `graft finetune` recorded.

Both do what Graft does: AdamW with torch's defaults, the mean loss over a batch's targets,
gradients shortened to a norm of at most 1.

As a program, the mlx-lm side: it runs in a process of its own, with OpenBLAS under MLX, and trains
step by step as it is told (see MlxProcess).

usage: peer_training.py MODEL_DIRECTORY ADAPTER_DIRECTORY BATCHES LEARNING_RATE [--compile]
"""

import json
import os
import pathlib
import subprocess
import sys
import time

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORED = -100
MAX_GRAD_NORM = 1.0
WEIGHT_DECAY = 0.01


def read_batches(path):
    """[(tokens, targets)], lists of rows."""
    with open(path, encoding="utf-8") as file:
        return [(batch["tokens"], batch["targets"]) for batch in map(json.loads, file)]


class PeftTrainer:
    """Trains the adapter of a PEFT model."""

    def __init__(self, model, learning_rate):
        import torch

        self.torch = torch
        self.model = model.train()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, weight_decay=WEIGHT_DECAY
        )

    def step(self, tokens, targets):
        """The loss before the update."""
        torch = self.torch
        # Rows are padded at the end, where a causal model never looks, so there is no mask.
        logits = self.model(input_ids=torch.tensor(tokens), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.tensor(targets).flatten(), ignore_index=IGNORED
        )
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        self.optimizer.step()
        return loss.item()


def mlx_model(model_directory, adapter_directory):
    """mlx-lm's model in float32, with the adapter that PEFT saved."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm import load
    from mlx_lm.tuner.utils import linear_to_lora_layers

    config = json.loads(pathlib.Path(adapter_directory, "adapter_config.json").read_text())
    model, _ = load(str(model_directory))
    model.set_dtype(mx.float32)
    model.freeze()
    parameters = {
        "rank": config["r"],
        "scale": config["lora_alpha"] / config["r"],
        "dropout": 0.0,
        "keys": [("self_attn." if name[0] in "qkvo" else "mlp.") + name for name in MODULES],
    }
    linear_to_lora_layers(model, len(model.layers), parameters)
    pairs = []
    weights = mx.load(str(pathlib.Path(adapter_directory, "adapter_model.safetensors")))
    for name, value in weights.items():
        path = name.removeprefix("base_model.model.")
        path = path.replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b")
        pairs.append((path, value.T))
    known = {name for name, _ in tree_flatten(model.trainable_parameters())}
    if {name for name, _ in pairs} != known:
        raise ValueError("the adapter's tensors are not those of mlx-lm's LoRA layers")
    model.load_weights(pairs, strict=False)
    model.train()
    return model


class MlxTrainer:
    """Trains a model from mlx_model; compiled, as mlx_lm.lora does it, or not."""

    def __init__(self, model, learning_rate, compiled):
        import mlx.core as mx
        import mlx.nn as nn
        import mlx.optimizers as optim

        self.mx = mx
        optimizer = optim.AdamW(learning_rate, weight_decay=WEIGHT_DECAY, bias_correction=True)
        self.state = [model.state, optimizer.state]

        def mean_loss(model, tokens, targets):
            counted = targets != IGNORED
            losses = nn.losses.cross_entropy(model(tokens), mx.where(counted, targets, 0))
            return (losses * counted).sum() / counted.sum()

        value_and_grad = nn.value_and_grad(model, mean_loss)

        def update(tokens, targets):
            loss, gradients = value_and_grad(model, tokens, targets)
            gradients, _ = optim.clip_grad_norm(gradients, MAX_GRAD_NORM)
            optimizer.update(model, gradients)
            return loss

        self.update = mx.compile(update, self.state, self.state) if compiled else update

    def step(self, tokens, targets):
        """The loss before the update."""
        loss = self.update(self.mx.array(tokens), self.mx.array(targets))
        self.mx.eval(loss, self.state)
        return loss.item()


def openblas():
    """The path of OpenBLAS's shared library."""
    listing = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True).stdout
    for line in listing.splitlines():
        if line.split()[:1] == ["libopenblas.so.0"]:
            return line.split()[-1]
    raise SystemExit("OpenBLAS is missing (Debian package libopenblas0-pthread)")


class MlxProcess:
    """mlx-lm's training in a process where MLX's BLAS calls reach OpenBLAS.

    MLX's CPU wheel carries a reference BLAS, some forty times slower."""

    def __init__(self, model_directory, adapter, batches, learning_rate, threads, compiled=False):
        command = [sys.executable, __file__, model_directory, adapter, batches, learning_rate]
        self.process = subprocess.Popen(
            [*map(str, command), *(["--compile"] if compiled else [])],
            env=os.environ | {"LD_PRELOAD": openblas(), "OPENBLAS_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def steps(self, count):
        """[(loss, seconds)] of the next steps, one after another through the batches."""
        print(count, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("mlx-lm's process failed")
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def timed_step(trainer, batch):
    """(loss, seconds)"""
    start = time.perf_counter()
    loss = trainer.step(*batch)
    return loss, time.perf_counter() - start


def main():
    model_directory, adapter, path, learning_rate, *flags = sys.argv[1:]
    batches = read_batches(path)
    model = mlx_model(model_directory, adapter)
    trainer = MlxTrainer(model, float(learning_rate), "--compile" in flags)
    done = 0
    for line in sys.stdin:
        answer = []
        for _ in range(int(line)):
            answer.append(timed_step(trainer, batches[done % len(batches)]))
            done += 1
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
