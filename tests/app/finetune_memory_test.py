#!/usr/bin/env python3
"""That the peak memory of `graft finetune` stays flat over many steps and saves.

usage: finetune_memory_test.py PROGRAM WRITE_TINY_MODEL
"""

import json
import unittest

from finetune_runs import FinetuneCase

MOST_GROWTH = 3 << 20


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


if __name__ == "__main__":
    unittest.main()
