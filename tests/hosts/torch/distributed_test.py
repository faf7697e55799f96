"""accelerate() beside everything that wraps, shards, offloads or splits a model.

Two processes over gloo run every case of `CASES` once, and leave what they saw in files; the tests judge
it. The truth is one process training the same adapters in float64 with plain PEFT, on both processes'
examples: averaged gradients of half a batch each are the gradients of the whole. Two things of every case
must equal it: the losses, and the adapters after training.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import subprocess
import sys
import tempfile
import traceback
import types
import unittest

import torch
import torch.distributed as dist
from torch import nn

import graft_lora
from layers import IN, Block
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear

WORLD = 2
STEPS = 4
LAYERS = 3
PROJECTIONS = 2 * LAYERS
ROWS = 8
RATE = 0.05
TOLERANCE = 1e-5  # of float32 against float64, in losses and adapters


# ---- what is trained ----


class Net(nn.Module):
    """Blocks of equal shapes: where weights come and go, one's memory becomes the next one's."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def make_model(targets=("up", "down")):
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), init_lora_weights=False)
    return get_peft_model(Net(), config)


def lora_layers(model):
    return [module for module in model.modules() if isinstance(module, LoraLinear)]


def example(step):
    generator = torch.Generator().manual_seed(step + 1)
    return torch.randn(2, ROWS, IN, generator=generator, dtype=torch.float64).unbind()


def adapters_of(model):
    """{name: value}, whole and in one piece whatever holds them."""
    found = {}
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            continue
        value = parameter.detach()
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        for word in ("_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "module."):
            name = name.replace(word, "")
        found[name] = value.double().clone()
    return found


def train(model, parts=(slice(None),), after_backward=None, before_part=None, backward=None, optimizer=None):
    """The losses of STEPS steps on `parts` of each batch, whose gradients add up to the batch's."""
    optimizer = optimizer or torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    dtype = next(p.dtype for p in model.parameters())
    losses = []
    for step in range(STEPS):
        x, y = (value.to(dtype) for value in example(step))
        total = 0.0
        for number, part in enumerate(parts):
            context = before_part(number == len(parts) - 1) if before_part else None
            with context or contextlib.nullcontext():
                loss = (model(x[part]).to(dtype) - y[part]).square().mean() / len(parts)
                backward(loss) if backward else loss.backward()
            total += loss.item()
        if after_backward:
            after_backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


# ---- the cases; each runs in both processes ----


def mine():
    """This process's half of a batch."""
    half = ROWS // WORLD
    return slice(dist.get_rank() * half, (dist.get_rank() + 1) * half)


def quarters():
    quarter = ROWS // WORLD // 2
    start = mine().start
    return slice(start, start + quarter), slice(start + quarter, start + 2 * quarter)


def packed_bytes():
    gc.collect()
    return torch.ops.graft.packed_bytes()


def result_of(model, losses, **more):
    rows = graft_lora.report(model, file=open(os.devnull, "w"))
    losses = torch.tensor(losses, dtype=torch.float64)
    dist.all_reduce(losses)
    return {
        "losses": losses / WORLD,
        "adapters": adapters_of(model),
        "layers": len(rows),
        "fused": sum(row.fused["forward"] for row in rows),
        "fused_backward": sum(row.fused["backward"] for row in rows),
        "reasons": sorted({reason for row in rows for reason in row.reasons}),
        "fell_back": sum(sum(row.reasons.values()) for row in rows),
        "packed": packed_bytes() - PACKED_BEFORE,
        **more,
    }


def wrapped(when, wrap, model=None):
    """A model wrapped by `wrap` and accelerated "before" or "after" that, or "never"."""
    model = model or make_model()
    if when == "before":
        graft_lora.accelerate(model)
    model = wrap(model)
    if when == "after":
        graft_lora.accelerate(model)
    return model


def shard(model, units=Block, reshard=True, ignored=(), **options):
    """fully_shard on each module that is (or for which) `units`, then on the whole."""
    from torch.distributed.fsdp import fully_shard

    wanted = units if not isinstance(units, type) else lambda module: isinstance(module, units)
    ignored = set(ignored) or None
    for module in reversed(list(model.modules())):
        if module is not model and wanted(module):
            fully_shard(module, reshard_after_forward=reshard, ignored_params=ignored, **options)
    return fully_shard(model, reshard_after_forward=reshard, ignored_params=ignored, **options)


def ddp(when, **options):
    model = wrapped(when, lambda model: nn.parallel.DistributedDataParallel(model, **options))
    return result_of(model, train(model, [mine()]))


def ddp_accumulates(when):
    model = wrapped(when, nn.parallel.DistributedDataParallel)
    losses = train(model, quarters(), before_part=lambda last: None if last else model.no_sync())
    return result_of(model, losses)


def is_linear(module, trained):
    return type(module) is nn.Linear and module.weight.requires_grad == trained


def fsdp(when, **options):
    model = wrapped(when, lambda model: shard(model, **options))
    return result_of(model, train(model, [mine()]))


def fsdp_accumulates(when):
    model = wrapped(when, shard)
    losses = train(model, quarters(), before_part=lambda last: model.set_requires_gradient_sync(last))
    return result_of(model, losses)


def fsdp_replicated_adapters(when):
    """Adapters that FSDP2 leaves alone, whole on each process; their gradients are averaged by hand."""

    def wrap(model):
        return shard(model, ignored=[p for p in model.parameters() if p.requires_grad])

    model = wrapped(when, wrap)

    def average():
        for parameter in model.parameters():
            if parameter.requires_grad:
                dist.all_reduce(parameter.grad)
                parameter.grad /= WORLD

    return result_of(model, train(model, [mine()], after_backward=average))


def fsdp_replicated_base(when):
    """W whole on each process, the adapters sharded."""

    def wrap(model):
        return shard(model, ignored=[p for p in model.parameters() if not p.requires_grad])

    model = wrapped(when, wrap)
    return result_of(model, train(model, [mine()]))


def fsdp_checkpoints(when, inside):
    """Activation checkpointing inside each unit (as accelerate does it), or around it."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    def checkpoint(model):
        blocks = model.base_model.model.blocks
        for number, block in enumerate(blocks):
            blocks[number] = checkpoint_wrapper(block, preserve_rng_state=False)
        return model

    def wrap(model):
        if inside:
            units = [checkpoint(model).base_model.model.blocks[number] for number in range(LAYERS)]
            return shard(model, units=lambda module: any(module is unit for unit in units))
        return checkpoint(shard(model))

    model = wrapped(when, wrap)
    return result_of(model, train(model, [mine()]))


def compiled(when, how):
    """torch.compile of each block, wrapped or sharded."""
    torch.compiler.reset()

    def wrap(model):
        for block in model.base_model.model.blocks:
            block.compile(backend="aot_eager")
        return nn.parallel.DistributedDataParallel(model) if how == "ddp" else shard(model)

    model = wrapped(when, wrap)
    losses = train(model, [mine()])
    rows = graft_lora.report(model, file=open(os.devnull, "w"))
    return result_of(model, losses, compiled=sum(row.fused["compiled"] for row in rows))


def fsdp_mixed(when):
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return fsdp(when, mp_policy=policy)


def fsdp_evaluates(when):
    """No gradients; then a weight that changes between two calls, in the shards alone."""
    model = wrapped(when, shard)
    x = example(0)[0].float()[mine()]
    outputs = []
    with torch.no_grad():
        for factor in (1.0, 2.0):
            for layer in lora_layers(model):
                weight = layer.base_layer.weight
                weight.to_local().mul_(factor)
            outputs.append(model(x))
    return result_of(model, [0.0] * STEPS, outputs=outputs)


def fsdp_saves(when):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    model = wrapped(when, shard)
    train(model, [mine()])
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return result_of(model, [0.0] * STEPS, state=get_model_state_dict(model, options=options))


def with_accelerate(when, **options):
    """Hugging Face accelerate's prepare()."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, **options)
    model = make_model()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    if when == "before":
        graft_lora.accelerate(model)
    model, optimizer = accelerator.prepare(model, optimizer)
    if when == "after":
        graft_lora.accelerate(model)
    losses = train(model, [mine()], backward=accelerator.backward, optimizer=optimizer)
    return result_of(model, losses, wrapper=type(model).__name__)


def with_accelerate_fsdp(when):
    """What prepare() calls for FSDP2; on the CPU prepare() itself would choose DDP."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Block"],
        cpu_ram_efficient_loading=False,
    )
    accelerator = types.SimpleNamespace(
        state=types.SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",
        device=torch.device("cpu"),
        is_main_process=dist.get_rank() == 0,
    )
    model = wrapped(when, lambda model: fsdp2_prepare_model(accelerator, model))
    return result_of(model, train(model, [mine()]), wrapper=type(model).__name__)


def fsdp1(when):
    """The first FSDP: weights are views of one flat parameter."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    def wrap(model):
        policy = ModuleWrapPolicy([Block])
        return FullyShardedDataParallel(
            model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu")
        )

    model = wrapped(when, wrap)
    losses = train(model, [mine()])
    with FullyShardedDataParallel.summon_full_params(model):
        return result_of(model, losses)


def tensor_parallel(when):
    """torch's own: base and adapter as DTensors, behind hooks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (WORLD,))
    colwise, rowwise = ColwiseParallel, RowwiseParallel
    plan = {}
    for number in range(LAYERS):
        up, down = (f"base_model.model.blocks.{number}.{name}" for name in ("up", "down"))
        plan |= {f"{up}.base_layer": colwise(), f"{up}.lora_B.default": colwise()}
        plan |= {f"{down}.base_layer": rowwise(), f"{down}.lora_A.default": rowwise()}
    model = wrapped(when, lambda model: parallelize_module(model, mesh, plan))

    return result_of(model, train(model))


CASES = {
    "ddp": ddp,
    "ddp_static": lambda when: ddp(when, static_graph=True),
    "ddp_unused": lambda when: ddp(when, find_unused_parameters=True),
    "ddp_accumulates": ddp_accumulates,
    "fsdp": fsdp,
    "fsdp_keeps": lambda when: fsdp(when, reshard=False),
    "fsdp_whole": lambda when: fsdp(when, units=lambda module: False),
    "fsdp_lora_units": lambda when: fsdp(when, units=LoraLinear),
    "fsdp_lora_and_blocks": lambda when: fsdp(when, units=lambda m: isinstance(m, (Block, LoraLinear))),
    "fsdp_child_units": lambda when: fsdp(when, units=lambda m: is_linear(m, trained=True)),
    "fsdp_base_units": lambda when: fsdp(when, units=lambda m: is_linear(m, trained=False)),
    "fsdp_accumulates": fsdp_accumulates,
    "fsdp_replicated_adapters": fsdp_replicated_adapters,
    "fsdp_replicated_base": fsdp_replicated_base,
    "fsdp_checkpoint_inside": lambda when: fsdp_checkpoints(when, True),
    "fsdp_checkpoint_around": lambda when: fsdp_checkpoints(when, False),
    "ddp_compiled": lambda when: compiled(when, "ddp"),
    "fsdp_compiled": lambda when: compiled(when, "fsdp"),
    "fsdp_mixed": fsdp_mixed,
    "fsdp_evaluates": fsdp_evaluates,
    "fsdp_saves": fsdp_saves,
    "accelerate": with_accelerate,
    "accelerate_fsdp": with_accelerate_fsdp,
    "fsdp1": fsdp1,
    "tensor_parallel": tensor_parallel,
}
WHEN = ("never", "before", "after")


def work(folder):
    """One of the two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    gc.freeze()  # what is imported by now: collecting after each case is quick then
    for name in sys.argv[3:] or CASES:
        for when in WHEN:
            global PACKED_BEFORE
            PACKED_BEFORE = packed_bytes()
            try:
                result = CASES[name](when)
            except Exception:
                result = {"error": traceback.format_exc()}
            torch.save(result, os.path.join(folder, f"{name}.{when}.{dist.get_rank()}"))
            dist.barrier()
    dist.destroy_process_group()


# ---- the tests ----


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def run_processes(folder):
    """Both processes' exit codes, and the end of what they wrote if it went wrong."""
    environment = dict(
        os.environ,
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
        WORLD_SIZE=str(WORLD),
        OMP_NUM_THREADS="1",
    )
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the machine's name need not resolve
    command = [sys.executable, os.path.abspath(__file__), "--work", folder]
    with contextlib.ExitStack() as stack:
        workers = []
        for rank in range(WORLD):
            log = stack.enter_context(open(os.path.join(folder, f"log.{rank}"), "w+"))
            numbered = dict(environment, RANK=str(rank), LOCAL_RANK=str(rank))
            workers.append((subprocess.Popen(command, env=numbered, stdout=log, stderr=log), log))
        said = []
        for process, log in workers:
            try:
                process.wait(500)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.returncode != 0:
                log.seek(0)
                said.append(f"exit code {process.returncode}: {log.read()[-4000:]}")
    return "\n".join(said)


def setUpModule():
    global SAID, RESULTS, TRUTH
    if not (dist.is_available() and dist.is_gloo_available()):
        raise unittest.SkipTest("torch is built without gloo")
    RESULTS = {}
    with tempfile.TemporaryDirectory() as folder:
        SAID = run_processes(folder)
        for name in os.listdir(folder):
            if not name.startswith("log"):
                RESULTS[name] = torch.load(os.path.join(folder, name), weights_only=False)
    model = make_model().double()
    losses = train(model)
    TRUTH = {"losses": torch.tensor(losses, dtype=torch.float64), "adapters": adapters_of(model)}


class Processes(unittest.TestCase):
    """What two processes did."""

    def results(self, name, when):
        """Of both processes."""
        results = []
        for rank in range(WORLD):
            result = RESULTS.get(f"{name}.{when}.{rank}", {"error": SAID or "did not run"})
            if "error" in result:
                self.fail(f"process {rank}, {name}, {when}: {result['error']}")
            results.append(result)
        return results

    def assert_close(self, actual, expected, tolerance=TOLERANCE):
        self.assertEqual(actual.shape, expected.shape)
        worst = (actual.double() - expected).abs().max().item()
        self.assertTrue(worst <= tolerance, f"off by {worst}")  # false for NaN too

    def assert_right(self, result, tolerance=TOLERANCE):
        self.assert_close(result["losses"], TRUTH["losses"], tolerance)
        self.assertEqual(result["adapters"].keys(), TRUTH["adapters"].keys())
        for name, value in result["adapters"].items():
            self.assert_close(value, TRUTH["adapters"][name], tolerance)

    def assert_counts(self, result, calls, fused):
        """`calls` of the layers in all; all of them fused, both ways, or none."""
        self.assertEqual(result["layers"], PROJECTIONS)
        if fused:
            self.assertEqual((result["fused"], result["fell_back"]), (calls, 0), result["reasons"])
            self.assertEqual(result["reasons"], [])
        else:
            self.assertEqual((result["fused"], result["fell_back"]), (0, calls))
            self.assertEqual(len(result["reasons"]), 1)

    def assert_trains(self, name, fused=True, forwards=1, backwards=1):
        """Right with and without Graft; `forwards` and `backwards` of each layer a step."""
        for result in self.results(name, "never"):
            self.assert_right(result)
            self.assertEqual((result["fused"], result["fell_back"]), (0, 0))
        for when in ("before", "after"):
            for result in self.results(name, when):
                with self.subTest(when):
                    self.assert_right(result)
                    self.assert_counts(result, PROJECTIONS * STEPS * forwards, fused)
                    if fused:
                        self.assertEqual(result["fused_backward"], PROJECTIONS * STEPS * backwards)


class Ddp(Processes):
    def test_trains(self):
        self.assert_trains("ddp")

    def test_static_graph(self):
        self.assert_trains("ddp_static")

    def test_unused_parameters(self):
        self.assert_trains("ddp_unused")

    def test_accumulates(self):
        self.assert_trains("ddp_accumulates", forwards=2, backwards=2)

    def test_keeps_packed_weights(self):
        """W stays where it is: its packed copy is worth its memory."""
        for result in self.results("ddp", "after"):
            self.assertGreater(result["packed"], 0)


class FullyShard(Processes):
    def test_blocks(self):
        self.assert_trains("fsdp")

    def test_blocks_stay_whole_between_forward_and_backward(self):
        self.assert_trains("fsdp_keeps")

    def test_one_unit(self):
        self.assert_trains("fsdp_whole")

    def test_lora_layers_as_units(self):
        self.assert_trains("fsdp_lora_units")

    def test_lora_layers_as_units_inside_units(self):
        self.assert_trains("fsdp_lora_and_blocks")

    def test_adapters_as_units_fall_back(self):
        """lora_A and lora_B gather themselves in hooks of their own, which fusing would skip."""
        self.assert_trains("fsdp_child_units", fused=False)

    def test_base_layers_as_units_fall_back(self):
        self.assert_trains("fsdp_base_units", fused=False)

    def test_accumulates(self):
        self.assert_trains("fsdp_accumulates", forwards=2, backwards=2)

    def test_replicated_adapters(self):
        self.assert_trains("fsdp_replicated_adapters")

    def test_replicated_base(self):
        self.assert_trains("fsdp_replicated_base")

    def test_checkpointing(self):
        """Each block's first projection is computed twice; the second stops early, as all is there that
        its backward pass needs."""
        self.assert_trains("fsdp_checkpoint_inside", forwards=1.5)
        self.assert_trains("fsdp_checkpoint_around", forwards=1.5)

    def test_mixed_precision(self):
        """Held to what plain PEFT loses under the same policy: at most twice that and one rounding."""
        plain = self.results("fsdp_mixed", "never")[0]
        allowed = {"losses": 0.0, "adapters": 0.0}
        for key, of in (("losses", lambda r: {"": r["losses"]}), ("adapters", lambda r: r["adapters"])):
            for name, value in of(plain).items():
                error = (value - of(TRUTH)[name]).abs().max().item()
                allowed[key] = max(allowed[key], 2 * error)
        rounding = 2.0**-8 * TRUTH["losses"].max().item()
        for when in ("before", "after"):
            for result in self.results("fsdp_mixed", when):
                with self.subTest(when):
                    self.assert_close(result["losses"], TRUTH["losses"], allowed["losses"] + rounding)
                    for name, value in result["adapters"].items():
                        self.assert_close(value, TRUTH["adapters"][name], allowed["adapters"])
                    self.assert_counts(result, PROJECTIONS * STEPS, fused=True)

    def test_evaluates_what_the_shards_hold_now(self):
        plain = self.results("fsdp_evaluates", "never")
        self.assertGreater((plain[0]["outputs"][0] - plain[0]["outputs"][1]).abs().max().item(), 0.1)
        for when in ("before", "after"):
            for rank, result in enumerate(self.results("fsdp_evaluates", when)):
                with self.subTest(when):
                    for number, output in enumerate(result["outputs"]):
                        self.assert_close(output, plain[rank]["outputs"][number].double())
                    self.assert_counts(result, 2 * PROJECTIONS, fused=True)

    def test_keeps_no_packed_weights(self):
        """Gathered weights are freed after use: a copy of each would undo the sharding, and the next
        weight may come to lie at the same address."""
        for name in ("fsdp", "fsdp_keeps", "fsdp_lora_units", "fsdp_evaluates"):
            for when in ("before", "after"):
                for result in self.results(name, when):
                    with self.subTest(f"{name}, {when}"):
                        self.assertEqual(result["packed"], 0)

    def test_saves_what_it_would_save(self):
        plain = self.results("fsdp_saves", "never")[0]["state"]
        model = make_model()
        self.assertEqual(plain.keys(), model.state_dict().keys())
        for when in ("before", "after"):
            state = self.results("fsdp_saves", when)[0]["state"]
            self.assertEqual(list(state), list(plain))
            for name, value in state.items():
                self.assert_close(value, plain[name].double())
            model.load_state_dict(state)


class Compiled(Processes):
    def test_trains(self):
        for name in ("ddp_compiled", "fsdp_compiled"):
            for when in WHEN:
                for result in self.results(name, when):
                    with self.subTest(f"{name}, {when}"):
                        self.assert_right(result)
                        self.assertEqual((result["fused"], result["fell_back"]), (0, 0))
                        self.assertEqual(result["compiled"] > 0, when != "never", result["compiled"])
                        if name == "fsdp_compiled":
                            self.assertEqual(result["packed"], 0)


class HuggingFaceAccelerate(Processes):
    def test_prepares_ddp(self):
        self.assert_trains("accelerate")
        self.assertEqual(self.results("accelerate", "after")[0]["wrapper"], "DistributedDataParallel")

    def test_prepares_fsdp(self):
        self.assert_trains("accelerate_fsdp")
        self.assertEqual(self.results("accelerate_fsdp", "after")[0]["wrapper"], "FSDPPeftModel")


class FirstFsdp(Processes):
    def test_is_right(self):
        """Fused or not, as the views allow: right, and counted."""
        for when in WHEN:
            for result in self.results("fsdp1", when):
                with self.subTest(when):
                    self.assert_right(result)
                    if when != "never":
                        self.assertEqual(result["fused"] + result["fell_back"], PROJECTIONS * STEPS)
                        self.assertEqual(result["packed"], 0)


class TensorParallel(Processes):
    def test_falls_back(self):
        self.assert_trains("tensor_parallel", fused=False)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2])
    else:
        unittest.main()
