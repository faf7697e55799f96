#!/usr/bin/env python3
"""Kills `graft finetune` at random moments, goes on with --resume until it is done, and compares
every loss with an unbroken run, bit for bit.

usage: resume_after_kill_test.py PROGRAM WRITE_TINY_MODEL
       GRAFT_TEST_SEED=N repeats the moments of another run as closely as timing allows
"""

import os
import random
import subprocess
import time
import unittest

from finetune_runs import FinetuneCase

KILLS = 50
ITERS = 30  # five epochs
FLAGS = ["--batch-size", 2, "--dropout", 0.2, "--learning-rate", 1e-2, "--lr-schedule", "cosine",
         "--iters", ITERS, "--steps-per-report", 1, "--steps-per-eval", 7, "--save-every", 1,
         "--grad-accumulation-steps", 4]


def whole_checkpoints(adapter):
    folder = adapter / "checkpoints"
    return [name for name in os.listdir(folder) if name.isdigit()] if folder.is_dir() else []


def is_saving(adapter):
    folder = adapter / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return any(name.endswith("tmp") for name in names)


class ResumeAfterKill(FinetuneCase):
    def setUp(self):
        super().setUp()
        seed = int(os.environ.get("GRAFT_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
        print(f"GRAFT_TEST_SEED={seed}", flush=True)
        self.random = random.Random(seed)
        self.kills = self.kills_while_saving = 0
        self.longest = 0.5  # seconds until a kill, fitted to the machine as it goes

    def begin(self, adapter):
        flags = ["--resume"] if whole_checkpoints(adapter) else [*self.inputs(), *FLAGS]
        return subprocess.Popen(self.command(adapter, *flags), stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, text=True)

    def kill_at_a_random_moment(self, run, adapter):
        """Half of the moments are any, half within a save. False if the run was done before."""
        try:
            run.wait(self.random.uniform(0, self.longest))
        except subprocess.TimeoutExpired:
            if self.random.random() < 0.5:
                # Looking takes time: how far the save gets meanwhile differs.
                while run.poll() is None and not is_saving(adapter):
                    time.sleep(2e-4)
            run.kill()
        stderr = run.communicate()[1]
        if run.returncode == 0:
            self.longest *= 0.7
            return False
        self.longest *= 1.05
        self.assertEqual(-9, run.returncode, stderr)
        self.kills += 1
        self.kills_while_saving += is_saving(adapter)
        return True

    def test_the_losses_are_those_of_an_unbroken_run(self):
        whole = self.scratch / "whole"
        self.succeed(whole, *self.inputs(), *FLAGS)
        rounds = 0
        while self.kills < KILLS:
            adapter = self.scratch / f"round{rounds}"
            while self.kill_at_a_random_moment(self.begin(adapter), adapter):
                if self.kills == KILLS:
                    self.succeed(adapter, *(["--resume"] if whole_checkpoints(adapter) else
                                            [*self.inputs(), *FLAGS]))
                    break
            self.assert_same_run(whole, adapter)
            self.assertFalse(is_saving(adapter), "what killed saves left was not removed")
            self.assertEqual(ITERS, len(whole_checkpoints(adapter)))
            rounds += 1
        print(f"{self.kills} kills in {rounds} runs, {self.kills_while_saving} within a save")


if __name__ == "__main__":
    unittest.main()
