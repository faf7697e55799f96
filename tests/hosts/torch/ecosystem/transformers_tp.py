"""Transformers' tensor parallelism with and without accelerate(), two processes over gloo on the CPU: the
same losses and gradients to the bit, every call PEFT's own.

Needs a Transformers that PEFT's tensor-parallel LoRA works with: 5.4 to 5.14. Exits with 77 and says why
elsewhere.
"""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import tempfile

WORLD, STEPS, LAYERS = 2, 3, 2
TARGETS = ["q_proj", "o_proj", "up_proj", "down_proj"]
CALLS = len(TARGETS) * LAYERS * STEPS


def train(when, folder):
    import graft_lora
    import torch
    import torch.distributed as dist
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM
    from transformers.distributed import DistributedConfig

    dist.init_process_group("gloo")
    plan = DistributedConfig(tp_size=WORLD, tp_plan="auto")
    model = LlamaForCausalLM.from_pretrained(os.path.join(folder, "model"), distributed_config=plan)
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False))
    sharded = model.base_model.model.model.layers[0].mlp.up_proj.base_layer
    assert sharded.weight.shape[0] * WORLD == sharded.out_features or sharded._hf_tp_plan, "not sharded"
    if when == "accelerated":
        graft_lora.accelerate(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for step in range(STEPS):
        ids = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(step))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    rows = graft_lora.report(model, file=io.StringIO())
    result = {
        "losses": losses,
        "adapters": {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad},
        "fused": sum(row.fused["forward"] for row in rows),
        "others": sum(sum(row.reasons.values()) for row in rows),
        "reasons": sorted({reason for row in rows for reason in row.reasons}),
    }
    torch.save(result, os.path.join(folder, f"{when}.{dist.get_rank()}"))
    dist.destroy_process_group()


def run(when, folder):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    environment = dict(os.environ, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    workers = []
    for rank in range(WORLD):
        numbered = dict(environment, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD))
        with open(os.path.join(folder, f"log.{rank}"), "w") as log:
            command = [sys.executable, os.path.abspath(__file__), when, folder]
            workers.append(subprocess.Popen(command, env=numbered, stdout=log, stderr=log))
    for rank, worker in enumerate(workers):
        if worker.wait(300) != 0:
            with open(os.path.join(folder, f"log.{rank}")) as log:
                sys.exit(f"transformers_tp: {when}, process {rank}: {log.read()[-3000:]}")


def main():
    import torch
    import transformers
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.integrations import tensor_parallel

    if not hasattr(tensor_parallel, "add_tensor_parallel_hooks_to_module"):
        print(f"skipped: PEFT's tensor-parallel LoRA doesn't know transformers {transformers.__version__}")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=64,
        )
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(os.path.join(folder, "model"))
        for when in ("plain", "accelerated"):
            run(when, folder)
        for rank in range(WORLD):
            plain = torch.load(os.path.join(folder, f"plain.{rank}"))
            result = torch.load(os.path.join(folder, f"accelerated.{rank}"))
            assert result["losses"] == plain["losses"] and len(set(plain["losses"])) == STEPS, result
            for name, value in plain["adapters"].items():
                assert torch.equal(result["adapters"][name], value), name
            assert (result["fused"], result["others"]) == (0, CALLS), result
            print(f"process {rank}: {STEPS} steps as PEFT's to the bit; {result['reasons']}")
    print(f"passed: transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    train(*sys.argv[1:]) if len(sys.argv) == 3 else main()
