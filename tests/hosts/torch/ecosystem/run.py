"""Trainers and quantizers with and without accelerate(), and a table of what ran fused and how far apart they end.

usage: run.py [--csv FILE] [CASE...]      (scripts/test_torch_ecosystem.sh makes the environment)

Each case trains twice from the same seeds, in a process of its own, on the CPU or, where there is one, a GPU. In
float32 losses and adapters have to be equal to rounding. In bfloat16 the case trains a third time, PEFT under
autocast, and Graft may be twice as far from PEFT as that is.

The quantized models are tiny Llamas of random weights, whose linear layers the quantizer's own classes hold. What is
not installed is skipped and said so; tests/hosts/torch/quantized_test.py has PEFT's classes around a stand-in then.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import io
import json
import os
import pathlib
import subprocess
import sys
import warnings

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[3]
LIMIT = 1e-4  # of the relative difference in float32, after all steps of an optimizer that divides by noise
EXAMPLES = {"trainer": "transformers", "sft_trainer": "trl", "diffusers_unet": "diffusers"}
QUANTIZERS = {
    "bitsandbytes_4bit_float32": "bitsandbytes",
    "bitsandbytes_4bit_bfloat16": "bitsandbytes",
    "bitsandbytes_8bit_float32": "bitsandbytes",
    "bitsandbytes_8bit_bfloat16": "bitsandbytes",
    "torchao_int8_float32": "torchao",
    "torchao_int8_bfloat16": "torchao",
    "gptq_bfloat16": "gptqmodel",
    "awq_bfloat16": "gptqmodel",
}
SCRIPTS = {"deepspeed_zero3": "deepspeed", "transformers_tp": "transformers"}
CASES = EXAMPLES | QUANTIZERS | SCRIPTS
SKIPPED = 77  # exit status


def adapters_of(model):
    return {name: p.detach().float().cpu().clone() for name, p in model.named_parameters() if "lora_" in name}


def differences(run, other) -> tuple[float, float]:
    """The largest relative difference of a step's loss, and of an adapter's tensor in the norm."""
    losses = max(abs(a - b) / abs(a) for a, b in zip(run[0], other[0], strict=True))
    tensors = max(float((a - other[1][name]).norm() / a.norm()) for name, a in run[1].items())
    return losses, tensors


def counted(model) -> dict:
    import graft_lora

    rows = graft_lora.report(model, file=io.StringIO())
    reasons = sorted({reason for row in rows for reason in row.reasons})
    return {
        "layers": len(rows),
        "fused": sum(row.fused["forward"] for row in rows),
        "fused_backward": sum(row.fused["backward"] for row in rows),
        "by_peft": sum(sum(row.reasons.values()) for row in rows),
        "why": "; ".join(reasons),
    }


def example(name: str) -> dict:
    sys.path.insert(0, str(ROOT / "examples/torch"))
    train = __import__(name).train
    losses, model = train(accelerated=False)
    plain = losses, adapters_of(model)
    losses, model = train(accelerated=True)
    loss, adapter = differences(plain, (losses, adapters_of(model)))
    assert losses[-1] < losses[0], losses
    return counted(model) | {"loss": loss, "adapter": adapter, "limit": LIMIT, "steps": len(losses)}


def quantized_model(kind: str, dtype):
    """A tiny Llama of random weights with every linear layer but the head quantized."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.LlamaForCausalLM(config).to(dtype)
    linear = [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and name != "lm_head"
    ]
    if kind == "torchao_int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        names = {name for name, _ in linear}
        quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda module, name: name in names)
        return model.to(device)
    for name, module in linear:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, quantized_layer(kind, module, dtype, device))
    model.is_loaded_in_4bit = kind == "bitsandbytes_4bit"  # what from_pretrained sets, and PEFT asks for
    model.is_loaded_in_8bit = kind == "bitsandbytes_8bit"
    return model.to(device)


def quantized_layer(kind: str, module, dtype, device):
    import torch

    size = module.in_features, module.out_features
    if kind.startswith("bitsandbytes"):
        import bitsandbytes

        if kind == "bitsandbytes_4bit":
            layer = bitsandbytes.nn.Linear4bit(*size, bias=False, compute_dtype=dtype, quant_type="nf4")
        else:
            layer = bitsandbytes.nn.Linear8bitLt(*size, bias=False, has_fp16_weights=False, threshold=6.0)
        layer.load_state_dict(module.state_dict())
        return layer.to(device)  # Quantizes.
    if kind == "gptq":
        from gptqmodel.nn_modules.qlinear.torch import TorchLinear as Layer
    else:
        from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear as Layer
    layer = Layer(
        bits=4,
        group_size=32,
        sym=False,
        desc_act=False,
        in_features=size[0],
        out_features=size[1],
        bias=False,
        pack_dtype=torch.int32,
        register_buffers=True,
        dtype=dtype,
    )
    for packed in (layer.qweight, layer.qzeros):  # Eight numbers of four bits in each.
        packed.copy_(torch.randint(-(2**31), 2**31, packed.shape).to(torch.int32))
    layer.scales.copy_(torch.rand(layer.scales.shape) * 0.02)
    layer.post_init()
    return layer


def quantized(name: str, steps: int = 10) -> dict:
    import torch
    from peft import LoraConfig, get_peft_model

    import graft_lora

    kind, _, dtype = name.rpartition("_")
    dtype = getattr(torch, dtype)
    targets = [f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")]

    def train(accelerated: bool, autocast: bool = False):
        torch.manual_seed(0)
        model = get_peft_model(
            quantized_model(kind, dtype), LoraConfig(r=8, lora_alpha=8, target_modules=targets)
        )
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.02)
        if accelerated:
            graft_lora.accelerate(model)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, momentum=0.9)
        losses = []
        ids = torch.randint(64, (4, 24), device=model.device)
        for _ in range(steps):
            with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0], losses
        return (losses, adapters_of(model)), model

    plain, model = train(False)
    classes = {type(module).__name__ for module in model.modules() if hasattr(module, "lora_A")}
    graft, model = train(True)
    loss, adapter = differences(plain, graft)
    found = counted(model) | {"loss": loss, "adapter": adapter, "limit": LIMIT, "steps": steps}
    found["class"] = " ".join(sorted(classes))
    if dtype is not torch.float32:
        judge = differences(plain, train(False, autocast=True)[0])
        found["limit"] = 2 * max(judge)
    return found


def child(name: str) -> None:
    """Runs a case and prints what it found as a line of JSON."""
    warnings.filterwarnings("ignore")
    try:
        found = example(name) if name in EXAMPLES else quantized(name)
    except ImportError as error:
        print(f"skipped: {error}")
        sys.exit(SKIPPED)
    print(json.dumps(found))


def run(name: str) -> dict:
    """The row of a case."""
    command = (
        [sys.executable, HERE / f"{name}.py"]
        if name in SCRIPTS
        else [sys.executable, __file__, "--child", name]
    )
    environment = dict(os.environ, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    if CASES[name] == "gptqmodel":
        # Kept apart: where it is installed Transformers imports it, for half a minute.
        paths = (environment.get("PYTHONPATH"), environment.get("GRAFT_GPTQMODEL"))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    row = dict.fromkeys(COLUMNS, "") | {"case": name}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired:
        return row | {"result": "failed: not done after 15 minutes"}
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode == SKIPPED:
        return row | {"result": last}
    if done.returncode != 0:
        print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr)
        return row | {"result": "failed"}
    if name in SCRIPTS:
        return row | {"result": last}
    found = json.loads(last)
    worst = max(found["loss"], found["adapter"])
    good = worst <= found["limit"] and found["layers"] > 0
    for key in ("loss", "adapter", "limit"):
        found[key] = f"{found[key]:.1e}"
    return row | found | {"result": "passed" if good else "too far"}


COLUMNS = (
    *("case", "result", "class", "layers", "steps", "fused", "fused_backward", "by_peft"),
    *("loss", "adapter", "limit", "why"),
)


def versions() -> str:
    path = [*sys.path, *filter(None, [os.environ.get("GRAFT_GPTQMODEL")])]
    found = {d.name.lower(): d.version for d in importlib.metadata.distributions(path=path)}
    names = ("torch", "peft", "transformers", "accelerate", *sorted({*CASES.values()} - {"transformers"}))
    return ", ".join(f"{name} {found.get(name, 'not installed')}" for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--csv", type=pathlib.Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child)
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no such case: {' '.join(unknown)}")
    rows = []
    for name in options.cases or CASES:
        rows.append(run(name))
        row = rows[-1]
        print(f"{name:28} {row['result']}", end="")
        if row["layers"]:
            print(f": {row['fused']} calls fused, {row['by_peft']} by PEFT, apart by", end=" ")
            print(f"{row['loss']} (loss) and {row['adapter']} (adapter) of {row['limit']}", end="")
        print(flush=True)
    if options.csv:
        sys.path.insert(0, str(ROOT / "scripts"))
        from result_files import cpu_name, write_results

        import torch

        device = f"{cpu_name()}, {torch.get_num_threads()} threads"
        if torch.cuda.is_available():
            device = torch.cuda.get_device_name()
        facts = [
            ("device", device),
            ("versions", versions()),
            ("date", f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC"),
            ("command", "scripts/test_torch_ecosystem.sh --record"),
        ]
        write_results(options.csv, facts, rows)
    sys.exit(any(row["result"].startswith(("failed", "too far")) for row in rows))


if __name__ == "__main__":
    main()
