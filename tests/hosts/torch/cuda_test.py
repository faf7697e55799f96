"""What is special about CUDA: streams, graphs, the caching allocator, devices, compiled code. Needs a GPU."""

from __future__ import annotations

import gc
import io
import subprocess
import sys
import textwrap
import threading
import unittest

import torch
import torch.nn.functional as F

import graft_lora
from graft_lora import GraftError
from graft_lora.library import ops, why_not

CUDA = torch.cuda.is_available()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def make(rows, n_in, n_out, rank, dtype, adapter_dtype=None, seed=0):
    """x, W, bias, A, B, dy on the GPU; outputs are of the size of one."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def draw(*shape, dtype=dtype, scale=1.0):
        return (torch.randn(shape, generator=generator, device="cuda") * scale).to(dtype)

    adapter_dtype = adapter_dtype or dtype
    return (
        draw(rows, n_in),
        draw(n_out, n_in, scale=n_in**-0.5),
        draw(n_out),
        draw(rank, n_in, dtype=adapter_dtype, scale=n_in**-0.5),
        draw(n_out, rank, dtype=adapter_dtype, scale=rank**-0.5),
        draw(rows, n_out),
    )


def distance(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def gradients(forward, dy, *tensors):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    y = forward(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


def run_alone(script: str) -> str:
    """What it prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120
    )
    return done.stdout.strip() or done.stderr


def drop_all(p=0.5, width=64, rows=256):
    """y = drop(x) of ones exactly: W is 0, A and B are the identity."""
    x = torch.ones(rows, width, device="cuda", requires_grad=True)
    weight = torch.zeros(width, width, device="cuda")
    eye = torch.eye(width, device="cuda")
    return x, lambda: graft_lora.lora_linear(x, weight, None, eye, eye, 1.0, p)


@unittest.skipUnless(CUDA, "no CUDA device")
class Numbers(unittest.TestCase):
    def test_every_dtype_against_float64(self):
        for dtype in DTYPES:
            for adapter_dtype in {dtype, torch.float32}:
                for rows, n_in, n_out, rank in ((128, 512, 512, 8), (1, 256, 384, 16), (333, 72, 200, 3)):
                    with self.subTest(dtype=dtype, adapter=adapter_dtype, rows=rows):
                        self.check_layer(rows, n_in, n_out, rank, dtype, adapter_dtype)

    def check_layer(self, rows, n_in, n_out, rank, dtype, adapter_dtype):
        x, w, bias, a, b, dy = make(rows, n_in, n_out, rank, dtype, adapter_dtype)

        def fused(x, a, b):
            return graft_lora.lora_linear(x, w, bias, a, b, 0.5)

        def plain(x, a, b):  # in x's dtype, as PEFT under autocast
            a, b = a.to(x.dtype), b.to(x.dtype)
            return F.linear(x, w.to(x.dtype), bias.to(x.dtype)) + F.linear(F.linear(x, a), b) * 0.5

        got = gradients(fused, dy, x, a, b)
        low = gradients(plain, dy, x, a, b)
        true = gradients(plain, dy.double(), x.double(), a.double(), b.double())
        for name, mine, torchs, exact in zip(("y", "dx", "da", "db"), got, low, true):
            self.assertEqual(mine.dtype, torchs.dtype, name)
            bound = 2 * distance(torchs, exact) + 4 * torch.finfo(torch.float32).eps
            self.assertLessEqual(distance(mine, exact), bound, name)

    def test_delta_into_a_base(self):
        for dtype in DTYPES:
            x, _, _, a, b, base = make(128, 512, 384, 8, dtype)
            y = base.clone()
            ops.lora_delta_add_(y, x, a, b, 2.0, 0.0, None, False)
            exact = base.double() + 2 * (x.double() @ a.double().t()) @ b.double().t()
            low = base + 2 * F.linear(F.linear(x, a), b)
            self.assertLessEqual(distance(y, exact), 2 * distance(low, exact) + 5e-7)

    def test_same_bits_every_time(self):
        x, w, bias, a, b, dy = make(512, 1024, 1024, 16, torch.bfloat16, torch.float32)
        run = lambda: gradients(lambda x, a, b: graft_lora.lora_linear(x, w, bias, a, b), dy, x, a, b)
        first = run()
        for _ in range(20):
            for one, other in zip(first, run()):
                self.assertTrue(torch.equal(one, other))


@unittest.skipUnless(CUDA, "no CUDA device")
class Refusals(unittest.TestCase):
    def refused(self, code, words, run):
        with self.assertRaises(GraftError) as caught:
            run()
        self.assertEqual(caught.exception.code, code)
        self.assertEqual(isinstance(caught.exception, torch.OutOfMemoryError), code == "out_of_memory")
        self.assertIn(words, str(caught.exception))

    def test_tensors_of_two_devices(self):
        x, w, bias, a, b, _ = make(4, 64, 64, 8, torch.float32)
        layer = [x, w, bias, a, b]
        for i, name in enumerate(("x", "weight", "bias", "a", "b")):
            mixed = [t.cpu() if j == i else t for j, t in enumerate(layer)]
            with self.subTest(on_cpu=name):
                self.refused("invalid_argument", "device", lambda: graft_lora.lora_linear(*mixed))
            mixed = [t if j == i else t.cpu() for j, t in enumerate(layer)]
            with self.subTest(on_gpu=name):
                self.refused("invalid_argument", "device", lambda: graft_lora.lora_linear(*mixed))
        y = torch.empty_like(x).cpu()
        with self.assertRaises(RuntimeError):
            ops.lora_delta_add_(y, x, a, b, 1.0, 0.0, None, False)

    def test_random_numbers_of_another_device(self):
        x, w, bias, a, b, _ = make(4, 64, 64, 8, torch.float32)
        rng = torch.zeros(2, dtype=torch.int64)
        self.refused(
            "invalid_argument", "rng", lambda: graft_lora.lora_linear(x, w, bias, a, b, 1.0, 0.5, rng)
        )

    def test_what_no_kernel_takes(self):
        x, w, bias, a, b, _ = make(4, 64, 64, 8, torch.float64)
        self.refused("unsupported", "float32", lambda: graft_lora.lora_linear(x, w, bias, a, b))
        self.refused(
            "invalid_argument", "a", lambda: graft_lora.lora_delta(x.float(), a.float()[:0], b.float()[:, :0])
        )

    def test_the_next_call_works(self):
        x, w, bias, a, b, _ = make(4, 64, 64, 8, torch.float32)
        with self.assertRaises(GraftError):
            graft_lora.lora_linear(x, w.cpu(), bias, a, b)
        graft_lora.lora_linear(x, w, bias, a, b)
        torch.cuda.synchronize()

    def test_capabilities_of_a_device_that_is_not_here(self):
        self.assertIn("is not here", ops.capabilities_cuda(77))
        device = torch.device("cuda", 0)
        for dtype in DTYPES:
            self.assertEqual(why_not("lora_linear", "backward", dtype, device), "")

    def test_too_much_memory(self):
        torch.cuda.set_per_process_memory_fraction(0.02)
        try:
            x = torch.empty(1, 64, device="cuda").expand(2**26, 64)
            a, b = torch.zeros(8, 64, device="cuda"), torch.zeros(512, 8, device="cuda")
            self.refused("out_of_memory", " out of memory.", lambda: graft_lora.lora_delta(x, a, b))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()


@unittest.skipUnless(CUDA, "no CUDA device")
class Streams(unittest.TestCase):
    def layer(self, seed):
        x, w, bias, a, b, dy = make(512, 1024, 1024, 16, torch.bfloat16, torch.float32, seed)
        return lambda: gradients(lambda x, a, b: graft_lora.lora_linear(x, w, bias, a, b), dy, x, a, b)

    def test_kernels_run_on_the_current_stream(self):
        x, w, bias, a, b, _ = make(64, 512, 512, 8, torch.bfloat16)
        side = torch.cuda.Stream()
        source, want = x.clone(), graft_lora.lora_linear(x, w, bias, a, b)
        x.zero_()
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(20_000_000)  # 10 ms: a call on another stream would read zeros
            x.copy_(source)
            y = graft_lora.lora_linear(x, w, bias, a, b)
        side.synchronize()
        self.assertTrue(torch.equal(y, want))

    def test_many_streams_at_once(self):
        runs = [self.layer(seed) for seed in range(4)]
        want = [run() for run in runs]
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in runs]
        for _ in range(10):
            got = []
            for run, stream in zip(runs, streams):
                with torch.cuda.stream(stream):
                    got.append(run())
            torch.cuda.synchronize()
            for one, other in zip(got, want):
                for mine, true in zip(one, other):
                    self.assertTrue(torch.equal(mine, true))

    def test_first_call_of_a_thread(self):
        script = """
            import threading, torch, graft_lora
            x = torch.randn(512, 1024, device="cuda", dtype=torch.bfloat16)
            w = torch.randn(1024, 1024, device="cuda", dtype=torch.bfloat16)
            a, b = torch.randn(16, 1024, device="cuda"), torch.randn(1024, 16, device="cuda")
            want = graft_lora.lora_linear(x, w, None, a, b)
            got = []
            thread = threading.Thread(target=lambda: got.append(graft_lora.lora_linear(x, w, None, a, b)))
            thread.start()
            thread.join()
            print("right" if torch.equal(want, got[0]) else "wrong")
        """
        self.assertEqual(run_alone(script), "right")

    def test_many_threads(self):
        runs = [self.layer(seed) for seed in range(4)]
        want = [run() for run in runs]
        torch.cuda.synchronize()
        wrong = []

        def work(i):
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(10):
                    got = runs[i]()
                    torch.cuda.current_stream().synchronize()
                    if not all(torch.equal(mine, true) for mine, true in zip(got, want[i])):
                        wrong.append(i)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])


@unittest.skipUnless(CUDA, "no CUDA device")
class Dropout(unittest.TestCase):
    def test_forward_and_backward_draw_one_mask(self):
        x, run = drop_all(0.25)
        y = run()
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        self.assertTrue(torch.equal(y, dx))
        self.assertAlmostEqual((y == 0).float().mean().item(), 0.25, delta=0.03)

    def test_seeded_as_torch_is(self):
        _, run = drop_all()
        torch.manual_seed(3)
        one, other = run(), run()
        torch.manual_seed(3)
        self.assertTrue(torch.equal(run(), one))
        self.assertTrue(torch.equal(run(), other))
        self.assertFalse(torch.equal(one, other))

    def test_as_on_the_cpu(self):
        x, w, bias, a, b, _ = make(37, 64, 64, 8, torch.float32)
        rng = torch.tensor([-5, 1 << 40], device="cuda")
        got = graft_lora.lora_linear(x, w, bias, a, b, 2.0, 0.3, rng)
        want = graft_lora.lora_linear(x.cpu(), w.cpu(), bias.cpu(), a.cpu(), b.cpu(), 2.0, 0.3, rng.cpu())
        torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=1e-5)


@unittest.skipUnless(CUDA, "no CUDA device")
class Graphs(unittest.TestCase):
    def test_each_replay_draws_a_mask_and_backward_has_it(self):
        x, run = drop_all()

        def step():
            y = run()
            (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
            return y, dx

        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, dx = step()
        masks = []
        for _ in range(5):
            graph.replay()
            torch.cuda.synchronize()
            self.assertTrue(torch.equal(y, dx))
            self.assertAlmostEqual((y == 0).float().mean().item(), 0.5, delta=0.03)
            masks.append(y.clone())
        for i in range(5):
            for j in range(i):
                self.assertFalse(torch.equal(masks[i], masks[j]))

    def test_replay_beside_eager_calls(self):
        for dtype in DTYPES:
            x, w, bias, a, b, dy = make(512, 1024, 768, 32, dtype)
            for t in (x, a, b):
                t.requires_grad_()

            def step():
                y = graft_lora.lora_linear(x, w, bias, a, b, 0.5)
                return y, *torch.autograd.grad(y, (x, a, b), dy)

            step()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = step()
            for _ in range(3):
                with torch.no_grad():
                    x.copy_(torch.randn_like(x))
                graph.replay()
                eager = step()
                for one, other in zip(captured, eager):
                    self.assertTrue(torch.equal(one, other))

    def test_captured_without_a_call_before(self):
        script = """
            import torch, graft_lora
            x = torch.randn(300, 512, device="cuda", dtype=torch.bfloat16)
            w = torch.randn(512, 512, device="cuda", dtype=torch.bfloat16)
            a, b = torch.randn(16, 512, device="cuda"), torch.randn(512, 16, device="cuda")
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = graft_lora.lora_linear(x, w, None, a, b)
                z = graft_lora.lora_delta(x, a, b)
            graph.replay()
            assert torch.equal(y, graft_lora.lora_linear(x, w, None, a, b))
            assert torch.equal(z, graft_lora.lora_delta(x, a, b))
            print("right")
        """
        self.assertEqual(run_alone(script), "right")


@unittest.skipUnless(CUDA, "no CUDA device")
class Memory(unittest.TestCase):
    ROWS, FEATURES, RANK = 4096, 1024, 16

    def setUp(self):
        gc.collect()
        self.x, self.w, self.bias, self.a, self.b, self.dy = make(
            self.ROWS, self.FEATURES, self.FEATURES, self.RANK, torch.bfloat16, torch.float32
        )
        self.layer()  # kernels are loaded
        torch.cuda.synchronize()
        self.before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()

    def layer(self):
        return graft_lora.lora_linear(self.x, self.w, self.bias, self.a, self.b)

    def peak(self):
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - self.before

    def test_a_call_holds_y_and_little_else(self):
        y = self.layer()
        self.assertLess(self.peak(), y.nbytes + self.ROWS * self.RANK * 4 * 4 + 2**20)

    def test_training_holds_y_h_and_gradients(self):
        for t in (self.x, self.a, self.b):
            t.requires_grad_()
        y = self.layer()
        h = self.ROWS * self.RANK * 4
        held = torch.cuda.memory_allocated() - self.before
        self.assertLess(held, y.nbytes + h + 2**16)
        torch.autograd.grad(y, (self.x, self.a, self.b), self.dy)
        whole = y.nbytes + self.x.nbytes + self.a.nbytes + self.b.nbytes
        self.assertLess(self.peak(), whole + 8 * h + 4 * 2**20)

    def test_nothing_leaks(self):
        for t in (self.x, self.a, self.b):
            t.requires_grad_()
        for i in range(60):
            y = self.layer()
            torch.autograd.grad(y, (self.x, self.a, self.b), self.dy)
            del y
            if i == 10:
                settled = torch.cuda.memory_reserved()
        self.assertEqual(torch.cuda.memory_allocated(), self.before)
        self.assertEqual(torch.cuda.memory_reserved(), settled)

    def test_a_tensor_freed_before_its_kernel_ran(self):
        want = self.layer()
        torch.cuda._sleep(20_000_000)
        x = self.x.clone()
        y = graft_lora.lora_linear(x, self.w, self.bias, self.a, self.b)
        del x
        trash = torch.full_like(self.x, float("nan"))  # takes x's memory, in the order of the stream
        self.assertTrue(torch.equal(y, want))
        del trash


@unittest.skipUnless(CUDA, "no CUDA device")
class Compiled(unittest.TestCase):
    def check(self, mode, dropout):
        torch._dynamo.reset()
        x, w, bias, a, b, dy = make(128, 512, 512, 8, torch.bfloat16, torch.float32)

        def layer(x, a, b):
            return graft_lora.lora_linear(F.silu(x), w, bias, a, b, 2.0, dropout)

        compiled = torch.compile(layer, fullgraph=True, mode=mode)
        for seed in range(4):
            torch.manual_seed(seed)
            got = [t.clone() for t in gradients(compiled, dy, x, a, b)]
            if dropout == 0:
                for one, other in zip(got, gradients(layer, dy, x, a, b)):
                    self.assertLess(distance(one, other), 5e-3)
            else:
                self.assertTrue(all(t.isfinite().all() for t in got))

    def test_fullgraph(self):
        self.check("default", 0.0)
        self.check("default", 0.1)

    def test_reduce_overhead(self):
        self.check("reduce-overhead", 0.0)
        self.check("reduce-overhead", 0.1)

    def test_masks_of_compiled_code(self):
        torch._dynamo.reset()
        x, run = drop_all()
        compiled = torch.compile(run, fullgraph=True)
        seen = []
        for _ in range(4):
            y = compiled()
            (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
            self.assertTrue(torch.equal(y, dx))
            seen.append(y.detach().clone())
        self.assertFalse(torch.equal(seen[0], seen[1]))
        self.assertFalse(torch.equal(seen[2], seen[3]))


@unittest.skipUnless(CUDA, "no CUDA device")
class Models(unittest.TestCase):
    """A small Llama under PEFT, against the same in float64, which errs as little as PEFT's own does."""

    def model(self, dtype=torch.float32):
        from peft import LoraConfig, get_peft_model
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=256,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            attn_implementation="sdpa",
        )
        base = LlamaForCausalLM(config).to(torch.bfloat16).to(dtype)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = get_peft_model(base, LoraConfig(r=8, target_modules=targets, init_lora_weights=False))
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                with torch.no_grad():
                    parameter.copy_(torch.randn(parameter.shape) * 0.05)
        return model.cuda()

    def step(self, model, autocast=None):
        ids = torch.arange(2 * 48, device="cuda").view(2, 48) % 251
        with torch.autocast("cuda", dtype=autocast, enabled=autocast is not None):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        gradients = [p.grad.double().flatten() for n, p in model.named_parameters() if "lora_" in n]
        model.zero_grad()
        return loss.detach().double(), torch.cat(gradients)

    def check(self, dtype, autocast):
        loss, gradient = self.step(self.model().double())
        plain_loss, plain = self.step(self.model(dtype), autocast)
        model = graft_lora.accelerate(self.model(dtype))
        fused_loss, fused = self.step(model, autocast)
        self.assertLessEqual(distance(fused, gradient), 2 * distance(plain, gradient) + 1e-6)
        bound = 2 * (plain_loss - loss).abs() + 4 * torch.finfo(autocast or dtype).eps * loss
        self.assertLessEqual((fused_loss - loss).abs().item(), bound.item())
        for row in graft_lora.report(model, file=io.StringIO()):
            self.assertEqual((row.fused["forward"], row.fused["backward"]), (1, 1), row)

    def test_float32(self):
        self.check(torch.float32, None)

    def test_bfloat16(self):
        self.check(torch.bfloat16, torch.bfloat16)

    def test_float16(self):
        self.check(torch.float16, torch.float16)

    def test_autocast_of_float32(self):
        self.check(torch.float32, torch.bfloat16)

    def test_steps_in_a_graph(self):
        model = graft_lora.accelerate(self.model(torch.bfloat16))
        ids = torch.arange(2 * 48, device="cuda").view(2, 48) % 251
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, capturable=True)

        def step():
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(input_ids=ids).logits[0, :-1].float(), ids[0, 1:])
            loss.backward()
            optimizer.step()
            return loss

        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = step()
        losses = []
        for _ in range(10):
            graph.replay()
            losses.append(loss.item())
        self.assertLess(losses[-1], losses[0] - 0.5, losses)


if __name__ == "__main__":
    unittest.main()
