#!/usr/bin/env python3
"""The memory that `graft finetune` takes: that its peak stays flat over many steps and saves, that
it is what was said before, and that a run that cannot fit is refused with flags that make it fit.

usage: finetune_memory_test.py PROGRAM WRITE_TINY_MODEL
"""

import json
import math
import os
import re
import resource
import shlex
import subprocess
import unittest

from finetune_runs import WRITE_TINY_MODEL, FinetuneCase, metrics_of
from tiny_gguf import UINT32, tiny_model

MOST_GROWTH = 3 << 20
MOST_OFF = 0.15
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
# So large that activations outweigh the process itself, and many layers one layer's transients.
LAYERS = 12
LARGE = {"--batch-size": 64, "--max-seq-length": 121, "--iters": 1}


def bytes_in(text, before, after=""):
    found = re.search(rf"{before}([\d.]+) ([kMG]B){after}", text)
    return float(found[1]) * UNITS[found[2]]


class Memory(FinetuneCase):
    def test_the_peak_stays_flat(self):
        adapter = self.scratch / "adapter"
        self.succeed(adapter, *self.inputs(), "--batch-size", 2, "--dropout", 0.1, "--iters", 500,
                     "--steps-per-report", 50, "--steps-per-eval", 25, "--save-every", 25)
        lines = (adapter / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        peaks = {line["iter"]: line["peak_memory_bytes"] for line in map(json.loads, lines)}
        print(f"peak after 50 steps {peaks[50]} bytes, after 500 {peaks[500]}")
        self.assertGreater(peaks[50], 1 << 20)
        self.assertLess(peaks[500] - peaks[50], MOST_GROWTH)


class Estimate(FinetuneCase):
    def setUp(self):
        super().setUp()
        subprocess.run([WRITE_TINY_MODEL, self.model, "128", str(LAYERS)], check=True)
        for name, count in (("train", 64), ("valid", 3)):
            with open(self.data / f"{name}.jsonl", "w", encoding="utf-8") as file:
                for i in range(count):
                    file.write(json.dumps({"text": f"{i} " + "words and more " * 10}) + "\n")

    def large(self, name, *flags, **options):
        large = [word for pair in LARGE.items() if pair[0] not in flags for word in pair]
        return self.finetune(self.scratch / name, *self.inputs(), *large, *flags, **options)

    def estimate_and_peak(self, name, *flags):
        run = self.large(name, *flags)
        self.assertEqual(0, run.returncode, run.stderr)
        estimate = bytes_in(run.stdout, r"memory +about ", " at the peak")
        peak = bytes_in(run.stdout, "peak memory ")
        print(f"{name}: estimated {estimate / 1e6:.0f} MB, measured {peak / 1e6:.0f} MB")
        self.assertLess(abs(estimate / peak - 1), MOST_OFF, name)
        return estimate, peak

    def test_the_estimate_is_right(self):
        for name, *flags in (("rank", "--rank", 16), ("dropout", "--dropout", 0.1),
                             ("bf16", "--dtype", "bf16"), ("layers", "--num-layers", 5),
                             ("modules", "--target-modules", "q_proj,v_proj")):
            self.estimate_and_peak(name, *flags)

    def test_the_estimate_is_right_for_batches_of_many_lengths(self):
        with open(self.data / "train.jsonl", "w", encoding="utf-8") as file:
            for i in range(320):
                file.write(json.dumps({"text": "x" * (3 * (i % 40) + 2)}) + "\n")
        self.estimate_and_peak("lengths", "--batch-size", 8, "--iters", 320, "--save-every", 0)

    def test_checkpointing_takes_less_for_the_same_losses(self):
        estimate, peak = self.estimate_and_peak("kept")
        less, lower = self.estimate_and_peak("recomputed", "--grad-checkpoint")
        self.assertLess(less, 0.6 * estimate)
        self.assertLess(lower, 0.6 * peak)
        self.assertEqual(metrics_of(self.scratch / "kept"), metrics_of(self.scratch / "recomputed"))

    @staticmethod
    def with_limit(limit):
        """Options of a run that may have so many bytes of data memory, as on a small machine."""
        def set_limits():
            resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20))  # which counts as data
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

        # OpenBLAS maps 128 MB for each of its threads, and tries for ever where it may not.
        return {"preexec_fn": set_limits, "env": os.environ | {"OPENBLAS_NUM_THREADS": "1"}}

    def refused(self, name, limit):
        """What a run that cannot fit needs, what there is, and what it says to do."""
        run = self.large(name, **self.with_limit(limit))
        self.assertEqual(1, run.returncode, run.stderr)
        self.assertEqual(1, run.stderr.count("\n"), run.stderr)
        self.assertFalse((self.scratch / name).exists())
        need = bytes_in(run.stderr, "training needs about ", " of memory and ulimit -d leaves it")
        left = bytes_in(run.stderr, "leaves it ")
        return need, left, run.stderr.split("; ", 1)[1]

    def test_what_cannot_fit_is_refused_with_flags_that_fit(self):
        low = 16 << 20
        need, left, _ = self.refused("low", low)
        less, _ = self.estimate_and_peak("recomputed", "--grad-checkpoint")
        for name, room, flags in (("checkpoint", (need + 2 * less) / 3, "--grad-checkpoint"),
                                  ("batch", 0.7 * less, "--batch-size")):
            limit = int(low + room - left)
            _, now, advice = self.refused(name, limit)
            self.assertLess(abs(now / room - 1), 0.1)
            print(f"{now / 1e6:.0f} MB: {advice.strip()}")
            first = re.match(r"it would fit with (--.*?) \(about [\d.]+ [kMG]B\)", advice)[1]
            self.assertTrue(first.startswith(flags), advice)
            again = self.large(name, *shlex.split(first), **self.with_limit(limit))
            self.assertEqual(0, again.returncode, f"{first}: {again.stderr}")

    def test_a_resumed_run_keeps_its_losses(self):
        estimate, _ = self.estimate_and_peak("adapter", "--grad-checkpoint")
        self.fail_with(["no flag that a resumed run may change makes it fit"],
                       self.scratch / "adapter", "--resume", "--iters", 2,
                       **self.with_limit(int(0.75 * estimate)))

    def test_weights_that_cannot_fit_are_not_read(self):
        wide, long = 1 << 12, 1 << 16
        model = tiny_model().set("llama.feed_forward_length", UINT32, long)
        model.set("llama.embedding_length", UINT32, wide)
        model.set("llama.attention.head_count", UINT32, wide >> 3)
        for name, dims in {"token_embd": [wide, 260], "output_norm": [wide],
                           "blk.0.attn_norm": [wide], "blk.0.ffn_norm": [wide],
                           "blk.0.attn_q": [wide, wide], "blk.0.attn_k": [wide, 16],
                           "blk.0.attn_v": [wide, 16], "blk.0.attn_output": [wide, wide],
                           "blk.0.ffn_gate": [wide, long], "blk.0.ffn_up": [wide, long],
                           "blk.0.ffn_down": [long, wide]}.items():
            model.tensor(f"{name}.weight", dims, data=4 * math.prod(dims))
        model.write(self.model)  # with holes
        run = self.large("adapter", **self.with_limit(5 << 30))
        self.assertEqual(1, run.returncode, run.stderr)
        self.assertRegex(run.stderr, r"tiny.gguf: its weights take 6[\d.]+ GB of memory in f32 and "
                                     r"ulimit -d leaves [\d.]+ GB; --dtype bf16 takes 3[\d.]+ GB")
        self.assertEqual("", run.stdout)


if __name__ == "__main__":
    unittest.main()
