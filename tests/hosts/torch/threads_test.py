"""The ops on the CPU's threads: torch's number of them, several callers at once, forked children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent))
from op_cases import CASES, DEVICE, assert_case, draw, results  # noqa: E402

import graft_lora  # noqa: E402


def cases(rows: int = 64, features: int = 96):
    for name, case in CASES.items():
        yield name, case, case.inputs(draw(rows, features), torch.float32, 8)


def everything() -> list[torch.Tensor]:
    """All results of all ops, with a packed weight among them."""
    found = []
    for name, case, tensors in cases():
        found += results(case.graft, tensors)
    _, case, tensors = next(iter(cases()))
    return found + results(lambda *t: case.graft(*t, pack=True), tensors)


class Rows(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        x, w = draw(4, 96, seed=i), draw(32, 96)
        return graft_lora.rms_norm(graft_lora.linear(x, w, pack=True))


@unittest.skipIf(DEVICE != "cpu", "these are the CPU's threads")
class Threads(unittest.TestCase):
    def setUp(self):
        threads = torch.get_num_threads()
        self.addCleanup(torch.set_num_threads, threads)

    def test_any_number_of_torchs_threads(self):
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            for name, case, tensors in cases():
                assert_case(self, case, tensors, f"{threads} threads")
            first, again = everything(), everything()
            for one, two in zip(first, again, strict=True):
                self.assertTrue(torch.equal(one, two))

    def test_callers_at_once(self):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            # A pool of one too: a thread of its own, with its own settings of torch.
            with ThreadPoolExecutor(1) as alone:
                expected = alone.submit(everything).result()
            weight = draw(64, 96, seed=40)
            barrier = threading.Barrier(4)

            def work():
                barrier.wait()
                for _ in range(3):
                    found = everything()
                    y = graft_lora.linear(draw(5, 96), weight, pack=True)
                return found, y

            with ThreadPoolExecutor(4) as pool:
                for found, y in [f.result(timeout=120) for f in [pool.submit(work) for _ in range(4)]]:
                    for one, two in zip(found, expected, strict=True):
                        self.assertTrue(torch.equal(one, two))
                    torch.testing.assert_close(y, draw(5, 96) @ weight.t(), rtol=1e-5, atol=1e-4)

    def test_weights_that_die_while_others_are_packed(self):
        stop = time.monotonic() + 1.0

        def work(seed):
            while time.monotonic() < stop:
                w = draw(40, 96, seed=seed)
                y = graft_lora.linear(draw(3, 96), w, pack=True)
                torch.testing.assert_close(y, draw(3, 96) @ w.t(), rtol=1e-5, atol=1e-4)

        before = torch.ops.graft.packed_bytes()
        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(work, i) for i in range(4)]:
                future.result(timeout=60)
        self.assertEqual(torch.ops.graft.packed_bytes(), before)

    def in_child(self, code: str) -> None:
        """Runs a script that forks; it must end by itself."""
        script = "import sys; sys.path.insert(0, sys.argv[1])\n" + textwrap.dedent(code)
        here = str(Path(__file__).resolve().parent)
        child = subprocess.Popen([sys.executable, "-c", script, here], start_new_session=True)
        try:
            self.assertEqual(child.wait(timeout=120), 0)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            self.fail("it hangs")

    def test_forked_child(self):
        # After use on two threads; the child's torch is told to use one, as DataLoader's workers are.
        self.in_child("""
            import os, torch, threads_test
            torch.set_num_threads(2)
            expected = threads_test.everything()
            pid = os.fork()
            if pid == 0:
                torch.set_num_threads(1)
                found = threads_test.everything()
                close = all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(found, expected))
                os._exit(0 if close else 3)
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            """)

    def test_child_that_is_forked_while_others_pack(self):
        self.in_child("""
            import os, threading, torch, graft_lora
            from op_cases import draw
            torch.set_num_threads(1)
            stop = False
            def pack():
                while not stop:
                    graft_lora.linear(draw(2, 256), torch.ones(512, 256), pack=True)
            threads = [threading.Thread(target=pack) for _ in range(2)]
            for t in threads: t.start()
            codes = []
            for _ in range(10):
                pid = os.fork()
                if pid == 0:
                    y = graft_lora.linear(draw(2, 64), torch.ones(32, 64), pack=True)
                    os._exit(0 if y.shape == (2, 32) else 3)
                codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            stop = True
            for t in threads: t.join()
            sys.exit(max(codes))
            """)

    def test_workers_of_a_data_loader(self):
        expected = [Rows()[i] for i in range(8)]
        for i, batch in enumerate(DataLoader(Rows(), batch_size=4, num_workers=2, timeout=100)):
            for one, two in zip(batch, expected[4 * i :]):
                torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)

    def test_end_of_the_process(self):
        # Copies, watched weights and running threads at exit: no crash, nothing on stderr.
        code = (
            "import threading, torch, graft_lora\n"
            "w = torch.randn(64, 32)\n"
            "graft_lora.linear(torch.randn(3, 32), w, pack=True)\n"
            "layer = torch.nn.Linear(32, 64)\n"
            "graft_lora.linear(torch.randn(3, 32), layer.weight, pack=True).sum().backward()\n"
            "layer.cycle = layer\n"
        )
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120
        )
        self.assertEqual((ended.returncode, ended.stderr), (0, ""))


if __name__ == "__main__":
    unittest.main()
