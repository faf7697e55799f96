#!/usr/bin/env python3
"""That `graft finetune --resume` goes on bit for bit, and what it refuses.

usage: finetune_resume_test.py PROGRAM WRITE_TINY_MODEL
"""

import json
import shutil
import unittest

from finetune_runs import FinetuneCase, checkpoints_of, metrics_of, write_data

FLAGS = ["--batch-size", 2, "--dropout", 0.2, "--learning-rate", 1e-2, "--lr-schedule", "cosine",
         "--warmup", 3, "--iters", 20, "--steps-per-report", 3, "--steps-per-eval", 8]


class Resume(FinetuneCase):
    def setUp(self):
        super().setUp()
        self.whole = self.scratch / "whole"
        self.succeed(self.whole, *self.inputs(), *FLAGS, "--save-every", 1)

    def cut(self, iteration, name="cut"):
        """What a run would have left that was killed after the save of this iteration."""
        adapter = self.scratch / name
        shutil.copytree(self.whole, adapter)
        for checkpoint in (adapter / "checkpoints").iterdir():
            if int(checkpoint.name) > iteration:
                shutil.rmtree(checkpoint)
        return adapter

    def test_from_every_iteration_the_rest_is_the_same_bit_for_bit(self):
        # Epochs end at 6, 12 and 18, validations come at 8 and 16, reports every 3.
        for iteration in range(1, 21):
            with self.subTest(iteration=iteration):
                adapter = self.cut(iteration, f"cut{iteration}")
                run = self.succeed(adapter, "--resume", "--save-every", 0)
                self.assertIn(f"after iteration {iteration} of 20", run.stdout)
                self.assert_same_run(self.whole, adapter)

    def test_the_same_command_with_resume_goes_on(self):
        adapter = self.cut(7)
        self.succeed(adapter, *self.inputs(), *FLAGS, "--save-every", 1, "--resume")
        self.assert_same_run(self.whole, adapter)

    def test_a_log_of_batches_goes_on(self):
        logs = [self.scratch / "whole.jsonl", self.scratch / "cut.jsonl"]
        for name, log in zip(("one", "two"), logs):
            self.succeed(self.scratch / name, *self.inputs(), *FLAGS, "--save-every", 5,
                         "--record-batches", log)
        shutil.rmtree(self.scratch / "two" / "checkpoints" / "0000020")
        self.succeed(self.scratch / "two", "--resume")
        self.assertEqual(20, len(logs[1].read_text(encoding="utf-8").splitlines()))
        self.assertEqual(logs[0].read_bytes(), logs[1].read_bytes())
        # One that begins in the middle would be cut off at the wrong line.
        self.fail_with(["--record-batches", "has nothing"], self.cut(7), "--resume",
                       "--record-batches", logs[0])

    def test_flags_that_would_change_the_losses_are_refused(self):
        adapter = self.cut(7)
        for flag, value, before in (
                ("--rank", 4, "8"), ("--alpha", 8, "16"), ("--dropout", 0.1, "0.2"),
                ("--num-layers", 1, "-1"), ("--target-modules", "q_proj", "q_proj,k_proj"),
                ("--batch-size", 3, "2"), ("--learning-rate", 2e-2, "0.01"),
                ("--lr-schedule", "linear", "cosine"), ("--warmup", 0, "3"), ("--iters", 30, "20"),
                ("--weight-decay", 0, "0.01"), ("--max-grad-norm", 2, "1"), ("--seed", 1, "0"),
                ("--max-seq-length", 8, "2048"), ("--dtype", "bf16", "f32"),
                ("--val-batches", 1, "25")):
            with self.subTest(flag=flag):
                self.fail_with([f"{flag} is {value}", f"has {before}", "leave it out"], adapter,
                               "--resume", flag, value)
        self.fail_with(["--mask-prompt is true"], adapter, "--resume", "--mask-prompt")
        # What changes no loss may change.
        self.succeed(adapter, "--resume", "--save-every", 0, "--dropout", 0.2)
        self.assert_same_run(self.whole, adapter)
        self.assertEqual("0000020", checkpoints_of(adapter)[-1])

    def test_other_data_or_another_model_is_refused(self):
        adapter = self.cut(7)
        other = self.scratch / "other"
        write_data(other, completion="ba")
        self.fail_with(["--data", "training samples changed"], adapter, "--resume", "--data", other)
        changed = bytearray(self.model.read_bytes())
        changed[-1] ^= 1
        (self.scratch / "other.gguf").write_bytes(changed)
        self.fail_with(["--model", "model changed"], adapter, "--resume", "--model",
                       self.scratch / "other.gguf")
        # The same contents elsewhere are the same.
        shutil.move(self.data, self.scratch / "moved")
        self.succeed(adapter, "--resume", "--data", self.scratch / "moved")
        self.assert_same_run(self.whole, adapter)
        shutil.move(self.model, self.scratch / "moved.gguf")
        adapter = self.cut(7, "moved_too")
        self.succeed(adapter, "--resume", "--data", self.scratch / "moved", "--model",
                     self.scratch / "moved.gguf")
        self.assertEqual(metrics_of(self.whole), metrics_of(adapter))

    def test_a_constant_rate_may_go_on_for_longer(self):
        flags = [*self.inputs(), "--batch-size", 2, "--dropout", 0.2, "--steps-per-report", 1]
        self.succeed(self.scratch / "long", *flags, "--iters", 12)
        self.succeed(self.scratch / "short", *flags, "--iters", 7)
        self.succeed(self.scratch / "short", "--resume", "--iters", 12)
        losses = [[line["train_loss"] for line in metrics_of(self.scratch / name)
                   if line["train_loss"] is not None] for name in ("long", "short")]
        self.assertEqual(losses[0], losses[1])

    def test_a_damaged_checkpoint_is_passed_over(self):
        adapter = self.cut(9)
        weights = adapter / "checkpoints" / "0000009" / "optimizer.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        run = self.succeed(adapter, "--resume")
        self.assertIn("0000009", run.stderr)
        self.assertIn("after iteration 8 of 20", run.stdout)
        self.assert_same_run(self.whole, adapter)

    def test_a_state_that_lies(self):
        adapter = self.cut(7)
        path = adapter / "checkpoints" / "0000007" / "state.json"
        honest = json.loads(path.read_text(encoding="utf-8"))
        for number in range(1, 7):
            shutil.rmtree(adapter / "checkpoints" / f"{number:07}")

        def lie(*keys, value):
            state = json.loads(json.dumps(honest))
            inner = state
            for key in keys[:-1]:
                inner = inner[key]
            inner[keys[-1]] = value
            return json.dumps(state)

        for text, word in (
                ("[" * 200000, "no whole checkpoint"),
                ('{"a":' * 200000, "no whole checkpoint"),
                ("[]", "no whole checkpoint"),
                (lie("format", value=-1), "no whole checkpoint"),
                (lie("format", value=4), "state.json: its format is 4"),
                (lie("dropout", "generator", value="dice"), "dropout's generator is not philox"),
                (lie("iteration", value=-1), "no whole checkpoint"),
                (lie("flags", value=[]), "--model is missing"),
                (lie("flags", "--batch-size", value=0), "--batch-size is 0; expected 1 or more"),
                (lie("flags", "--grad-accumulation-steps", value=0), "expected 1 or more"),
                (lie("flags", "--steps-per-report", value=-3), "expected 1 or more"),
                (lie("flags", "--max-seq-length", value=0), "expected 2 or more"),
                (lie("flags", "--optimizer", value="x"), "no optimizer 'x'"),
                (lie("flags", "--lr-schedule", value="x"), "got 'x'"),
                (lie("flags", "--dtype", value="f8"), "f8"),
                (lie("dropout", "offsets", value=[0]), "dropout")):
            with self.subTest(text=text[:200], word=word):
                path.write_text(text, encoding="utf-8")
                run = self.finetune(adapter, "--resume")
                self.assertEqual(1, run.returncode, run.stderr)
                self.assertIn(word, run.stderr)
                # Not even a new run takes its place without a word.
                self.assertEqual(1, self.finetune(adapter, *self.inputs(), *FLAGS).returncode)
                self.assertTrue(path.is_file())

    def test_a_checkpoint_with_the_dropout_of_older_versions_is_refused(self):
        adapter = self.cut(3)
        for path in (adapter / "checkpoints").glob("*/state.json"):
            state = json.loads(path.read_text(encoding="utf-8"))
            state["format"] = 2
            state["dropout"]["generator"] = "philox4x32-10"
            path.write_text(json.dumps(state), encoding="utf-8")
        newest = adapter / "checkpoints" / "0000003"
        weights = newest / "adapter_model.safetensors"
        words = [f"{newest / 'state.json'}: its format is 2", f"--resume-adapter-file {weights}"]
        self.fail_with(words, adapter, "--resume")
        self.fail_with(words, adapter, *self.inputs(), *FLAGS)
        # What it learned is not lost.
        self.succeed(self.scratch / "anew", *self.inputs(), *FLAGS, "--resume-adapter-file", weights)

    def test_a_run_without_a_whole_checkpoint_is_not_written_over(self):
        adapter = self.cut(2)
        for checkpoint in (adapter / "checkpoints").iterdir():
            (checkpoint / "state.json").unlink()
        run = self.finetune(adapter, *self.inputs(), *FLAGS)
        self.assertEqual(1, run.returncode)
        self.assertIn("no checkpoint can be read", run.stderr)
        self.assertEqual(2, len(checkpoints_of(adapter)))

    def test_an_interrupted_run_is_not_written_over(self):
        adapter = self.cut(7)
        self.fail_with(["after iteration 7 of 20", "--resume"], adapter, *self.inputs(), *FLAGS)
        self.assertEqual(7, len(checkpoints_of(adapter)))
        # A finished one is.
        self.succeed(self.whole, *self.inputs(), "--iters", 2, "--save-every", 0)
        self.assertEqual(["0000002"], checkpoints_of(self.whole))

    def test_without_a_checkpoint_there_is_nothing_to_resume(self):
        self.fail_with(["no whole checkpoint", "without --resume"], self.scratch / "x", "--resume")

    def test_a_checkpoint_is_an_adapter_too(self):
        checkpoint = self.whole / "checkpoints" / "0000004"
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        self.assertEqual({"seed": 0, "batches_per_epoch": 6, "epoch": 0, "position": 4},
                         state["data"])
        self.assertEqual(14, len(state["dropout"]["offsets"]))
        weights = (checkpoint / "adapter_model.safetensors")
        for source in (["--init-adapter", checkpoint], ["--resume-adapter-file", weights]):
            adapter = self.scratch / source[0].strip("-")
            self.succeed(adapter, *self.inputs(), *source, "--iters", 0)
            self.assertEqual(weights.read_bytes(),
                             (adapter / "adapter_model.safetensors").read_bytes())

    def test_weights_alone_take_their_shape_from_the_flags(self):
        weights = self.scratch / "alone.safetensors"
        shutil.copy(self.whole / "adapter_model.safetensors", weights)
        start = [*self.inputs(), "--resume-adapter-file", weights, "--iters", 1]
        self.fail_with(["alone.safetensors", "expected (4, 32), got (8, 32)"], self.scratch / "a",
                       *start, "--rank", 4)
        self.succeed(self.scratch / "a", *start)


if __name__ == "__main__":
    unittest.main()
