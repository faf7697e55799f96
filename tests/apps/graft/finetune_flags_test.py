#!/usr/bin/env python3
"""What the flags of `graft finetune` do that say how it updates, when it ends, and what it prints.

usage: finetune_flags_test.py PROGRAM WRITE_TINY_MODEL
"""

import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import termios
import unittest

from finetune_runs import PROGRAM, FinetuneCase, checkpoints_of, metrics_of

FLAGS = ["--batch-size", 2, "--dropout", 0.1, "--learning-rate", 1e-2, "--steps-per-report", 1]


def losses_of(adapter, key="train_loss"):
    return [line[key] for line in metrics_of(adapter) if line[key] is not None]


def first_stop(losses, patience):
    """The iteration that ends a run with these validation losses; 0 is none."""
    best, since = float("inf"), 0
    for iteration, loss in sorted(losses.items()):
        best, since = (loss, 0) if loss < best else (best, since + 1)
        if since == patience:
            return iteration
    return 0


class Updates(FinetuneCase):
    def test_an_update_waits_for_its_gradients(self):
        adapter = self.scratch / "adapter"
        self.succeed(adapter, *self.inputs(), *FLAGS, "--iters", 5,
                     "--grad-accumulation-steps", 3, "--save-every", 1)
        weights = [(adapter / "checkpoints" / name / "adapter_model.safetensors").read_bytes()
                   for name in checkpoints_of(adapter)]
        self.assertEqual([False, True, False, False],
                         [one != next for one, next in zip(weights, weights[1:])])

    def test_the_last_iterations_may_make_no_update(self):
        run = self.succeed(self.scratch / "a", *self.inputs(), *FLAGS, "--iters", 5,
                           "--grad-accumulation-steps", 3)
        self.assertIn("the last 2 iterations make no update", run.stdout)
        run = self.succeed(self.scratch / "b", *self.inputs(), *FLAGS, "--iters", 6,
                           "--grad-accumulation-steps", 3)
        self.assertNotIn("no update", run.stdout)
        self.fail_with(["--grad-accumulation-steps 7", "--iters 6"], self.scratch / "c",
                       *self.inputs(), *FLAGS, "--iters", 6, "--grad-accumulation-steps", 7, status=2)

    def test_a_report_is_of_the_iterations_since_the_last(self):
        adapter = self.scratch / "adapter"
        # At a rate of 0 an epoch has the losses of the one before, in another order.
        self.succeed(adapter, *self.inputs(), "--batch-size", 2, "--learning-rate", 0,
                     "--steps-per-report", 1, "--iters", 12)
        losses = losses_of(adapter)
        self.assertEqual(sorted(losses[:6]), sorted(losses[6:]))
        self.assertEqual(6, len(set(losses)))

    def test_every_optimizer_goes_on_from_every_iteration(self):
        for optimizer in ("adamw", "adam", "sgd"):
            whole = self.scratch / optimizer
            self.succeed(whole, *self.inputs(), *FLAGS, "--iters", 8, "--optimizer", optimizer,
                         "--grad-accumulation-steps", 3, "--save-every", 1)
            self.assertLess(losses_of(whole)[-1], losses_of(whole)[0])
            for iteration in range(1, 8):
                with self.subTest(optimizer=optimizer, iteration=iteration):
                    cut = self.scratch / f"{optimizer}{iteration}"
                    shutil.copytree(whole, cut)
                    for name in checkpoints_of(cut)[iteration:]:
                        shutil.rmtree(cut / "checkpoints" / name)
                    self.succeed(cut, "--resume")
                    self.assert_same_run(whole, cut)
        self.assertNotEqual(losses_of(self.scratch / "adam"), losses_of(self.scratch / "sgd"))
        self.fail_with(["--optimizer is sgd", "has adam"], self.scratch / "adam3", "--resume",
                       "--optimizer", "sgd")

    def test_adam_is_adamw_without_decay(self):
        self.succeed(self.scratch / "adam", *self.inputs(), *FLAGS, "--iters", 5, "--optimizer",
                     "adam")
        self.succeed(self.scratch / "adamw", *self.inputs(), *FLAGS, "--iters", 5,
                     "--weight-decay", 0)
        self.assert_same_run(self.scratch / "adam", self.scratch / "adamw")
        self.fail_with(["--weight-decay", "adam has none", "--optimizer adamw"],
                       self.scratch / "none", *self.inputs(), "--optimizer", "adam",
                       "--weight-decay", 0.1, status=2)


class EarlyStop(FinetuneCase):
    PATIENCE = 3

    def setUp(self):
        super().setUp()
        # What is learned from the training samples is wrong here.
        with open(self.data / "valid.jsonl", "w", encoding="utf-8") as file:
            for i in range(3):
                file.write(json.dumps({"prompt": f"say {i}", "completion": "ba" * (1 + i)}) + "\n")
        self.flags = [*self.inputs(), *FLAGS, "--mask-prompt", "--iters", 400, "--steps-per-eval",
                      4, "--early-stop", self.PATIENCE]

    def test_the_best_adapter_is_the_one_kept(self):
        adapter = self.scratch / "adapter"
        run = self.succeed(adapter, *self.flags, "--save-every", 0)
        valid = {line["iter"]: line["val_loss"] for line in metrics_of(adapter)
                 if line["val_loss"] is not None and line["iter"] > 0}
        best = min(valid, key=valid.get)
        last = max(valid)
        self.assertLess(last, 400)
        self.assertEqual(last, first_stop(valid, self.PATIENCE))
        self.assertIn(f"stopped early after iteration {last} of 400", run.stdout)
        self.assertIn(f"that of iteration {best}, the best: validation loss {valid[best]:.4f}",
                      run.stdout)
        kept = adapter / "adapter_model.safetensors"
        checkpoints = adapter / "checkpoints"
        self.assertEqual((checkpoints / f"{best:07}/adapter_model.safetensors").read_bytes(),
                         kept.read_bytes())
        self.assertNotEqual((checkpoints / f"{last:07}/adapter_model.safetensors").read_bytes(),
                            kept.read_bytes())

        # A best adapter that was damaged since does not become the result.
        weights = checkpoints / f"{best:07}/adapter_model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        run = self.succeed(adapter, "--resume")
        self.assertIn(f"iteration {best}, the best, is gone", run.stdout)
        self.assertEqual((checkpoints / f"{last:07}/adapter_model.safetensors").read_bytes(),
                         kept.read_bytes())
        weights.write_bytes(whole)
        self.succeed(adapter, "--resume")
        self.assertEqual(whole, kept.read_bytes())

        # It is over: going on changes nothing, with more patience it does, and a new run may begin.
        before = metrics_of(adapter)
        self.succeed(adapter, "--resume")
        self.assertEqual(before, metrics_of(adapter))
        self.succeed(adapter, "--resume", "--early-stop", 4)
        self.assertEqual(before, metrics_of(adapter)[:len(before)])
        self.assertGreater(len(metrics_of(adapter)), len(before))
        self.succeed(adapter, *self.flags)

    def test_a_cut_run_stops_where_an_unbroken_one_does(self):
        whole = self.scratch / "whole"
        self.succeed(whole, *self.flags, "--save-every", 3)
        names = checkpoints_of(whole)
        for keep in range(1, len(names), 2):
            with self.subTest(after=names[keep - 1]):
                cut = self.scratch / f"cut{keep}"
                shutil.copytree(whole, cut)
                for name in names[keep:]:
                    shutil.rmtree(cut / "checkpoints" / name)
                self.succeed(cut, "--resume")
                self.assert_same_run(whole, cut)

    def test_an_equal_validation_is_no_better_one(self):
        adapter = self.scratch / "adapter"
        self.succeed(adapter, *self.inputs(), "--batch-size", 2, "--learning-rate", 0, "--iters", 40,
                     "--steps-per-eval", 2, "--early-stop", self.PATIENCE, "--json")
        losses = losses_of(adapter, "val_loss")
        self.assertEqual(1, len(set(losses)))
        # The first of all, before training, is not one to beat.
        self.assertEqual(1 + 1 + self.PATIENCE, len(losses))

    def test_without_the_best_checkpoint_the_last_adapter_stays(self):
        adapter = self.scratch / "adapter"
        self.succeed(adapter, *self.flags, "--save-every", 0)
        last = adapter / "checkpoints" / checkpoints_of(adapter)[-1]
        for name in checkpoints_of(adapter)[:-1]:
            shutil.rmtree(adapter / "checkpoints" / name)
        run = self.succeed(adapter, "--resume")
        self.assertIn("the best, is gone", run.stdout)
        self.assertEqual((last / "adapter_model.safetensors").read_bytes(),
                         (adapter / "adapter_model.safetensors").read_bytes())

    def test_it_needs_validation(self):
        self.fail_with(["--early-stop", "valid.jsonl"], self.scratch / "a", *self.flags,
                       "--val-batches", 0)
        (self.data / "valid.jsonl").unlink()
        self.fail_with(["--early-stop", "valid.jsonl"], self.scratch / "a", *self.flags)


class Test(FinetuneCase):
    def setUp(self):
        super().setUp()
        shutil.copy(self.data / "train.jsonl", self.data / "test.jsonl")

    def test_it_measures_what_evaluate_measures(self):
        adapter = self.scratch / "adapter"
        run = self.succeed(adapter, *self.inputs(), *FLAGS, "--iters", 4, "--test", "--json")
        [measured] = [event for event in map(json.loads, run.stdout.splitlines())
                      if event["event"] == "test"]
        evaluated = subprocess.run(
            [PROGRAM, "evaluate", "--model", self.model, "--adapter-path", adapter, "--data",
             self.data, "--max-tokens", "0", "--json"], check=True, capture_output=True, text=True)
        expected = json.loads(evaluated.stdout)["results"]["adapter"]
        self.assertEqual(expected["tokens"], measured["tokens"])
        self.assertAlmostEqual(expected["loss"], measured["test_loss"], places=5)
        self.assertAlmostEqual(expected["perplexity"] / measured["perplexity"], 1, places=5)
        text = self.succeed(adapter, "--resume")  # done, but --test was asked for
        self.assertIn(f"test loss {measured['test_loss']:.4f} over", text.stdout)

    def test_batches_of_it(self):
        flags = [*self.inputs(), *FLAGS, "--iters", 1, "--test"]
        tokens = []
        for batches in (1, 2, -1):
            run = self.succeed(self.scratch / "a", *flags, "--test-batches", batches, "--json")
            events = [json.loads(line) for line in run.stdout.splitlines()]
            tokens += [event["tokens"] for event in events if event["event"] == "test"]
        self.assertEqual(3, len(tokens))
        self.assertLess(tokens[0], tokens[1])
        self.assertLess(tokens[1], tokens[2])
        self.fail_with(["--test-batches"], self.scratch / "b", *flags, "--test-batches", 0)
        (self.data / "test.jsonl").unlink()
        self.fail_with(["--test needs a test.jsonl"], self.scratch / "b", *flags)
        self.assertFalse((self.scratch / "b").exists())


class Start(FinetuneCase):
    """What the adapter to start from decides."""

    def test_all_modules_are_those_of_no_flag(self):
        for name, *flags in (("none",), ("all", "--target-modules", "all"),
                             ("more", "--target-modules", "q_proj,all")):
            self.succeed(self.scratch / name, *self.inputs(), *FLAGS, "--iters", 2, *flags)
        self.assert_same_run(self.scratch / "none", self.scratch / "all")
        self.assert_same_run(self.scratch / "none", self.scratch / "more")
        self.succeed(self.scratch / "none", "--resume", "--target-modules", "all")

    def test_flags_do_not_change_it_in_silence(self):
        first = self.scratch / "first"
        sizes = ["--rank", 2, "--alpha", 5, "--num-layers", 1, "--target-modules", "v_proj,q_proj"]
        self.succeed(first, *self.inputs(), *FLAGS, "--iters", 1, *sizes)
        for source in (["--init-adapter", first],
                       ["--resume-adapter-file", first / "adapter_model.safetensors"]):
            flags = [*self.inputs(), *FLAGS, "--iters", 2, *source]
            for flag, value, has in (("--rank", 16, "has rank 2"), ("--alpha", 16, "has alpha 5"),
                                     ("--num-layers", 2, "has layers 1"),
                                     ("--num-layers", -1, "has layers 1"),
                                     ("--target-modules", "all", "has modules q_proj,v_proj"),
                                     ("--target-modules", "q_proj", "has modules q_proj,v_proj")):
                self.fail_with([f"{flag}: the adapter that the run starts from {has}", source[0]],
                               self.scratch / "next", *flags, flag, value, status=2)
                self.assertFalse((self.scratch / "next").exists())
            # Said again, they are right; left out, they are its own; and dropout may be another.
            self.succeed(self.scratch / "same", *flags, *sizes)
            self.succeed(self.scratch / "none", *flags)
            self.assert_same_run(self.scratch / "same", self.scratch / "none")
            self.succeed(self.scratch / "none", "--resume", "--rank", 2, "--target-modules",
                         "q_proj,v_proj")
            self.fail_with(["--rank is 8", "has 2"], self.scratch / "none", "--resume", "--rank", 8)


class LeftOut(FinetuneCase):
    """Samples that nothing can be learned from are counted, and said, in every kind of output."""

    TEXT = "2 of 4 samples left out: 2 with an empty answer (the first in line 2)"

    def setUp(self):
        super().setUp()
        lines = [json.dumps({"prompt": "a", "completion": text}) for text in ("b", "", "c", "")]
        (self.data / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
        shutil.copy(self.data / "train.jsonl", self.data / "test.jsonl")
        self.flags = [*self.inputs(), "--iters", 0]

    def test_plain(self):
        run = self.succeed(self.scratch / "a", *self.flags, "--test")
        self.assertEqual(2, run.stdout.count(self.TEXT))
        self.assertEqual("", run.stderr)

    def test_quiet(self):
        run = self.succeed(self.scratch / "a", *self.flags, "--quiet")
        self.assertEqual("", run.stdout)
        self.assertEqual(f"graft: {self.data}/train.jsonl: {self.TEXT}\n", run.stderr)

    def test_json(self):
        run = self.succeed(self.scratch / "a", *self.flags, "--json", "--test")
        start = json.loads(run.stdout.splitlines()[0])
        for split in ("train", "test"):
            self.assertEqual([{"reason": "empty answer", "samples": 2, "first_line": 2}],
                             start[split]["left_out"])
            self.assertEqual([2, 0], [start[split][key] for key in ("samples", "truncated")])
        self.assertEqual([], start["valid"]["left_out"])
        (self.data / "valid.jsonl").write_text('{"text": "a"}\n' + json.dumps({"text": "b" * 90}))
        run = self.succeed(self.scratch / "a", *self.flags, "--json", "--max-seq-length", 60)
        valid = json.loads(run.stdout.splitlines()[0])["valid"]
        self.assertEqual([1, 2], [valid[key] for key in ("truncated", "first_truncated_line")])

    def test_evaluate(self):
        evaluate = [PROGRAM, "evaluate", "--model", self.model, "--data", self.data]
        said = subprocess.run(evaluate, check=True, capture_output=True, text=True).stdout
        self.assertIn(self.TEXT, said)
        said = subprocess.run([*evaluate, "--json"], check=True, capture_output=True, text=True)
        self.assertEqual([{"reason": "empty answer", "samples": 2, "first_line": 2}],
                         json.loads(said.stdout)["left_out"])
        split = subprocess.run([*evaluate[:-1], self.data / "test.jsonl", "--split", "valid"],
                               check=False, capture_output=True, text=True)
        self.assertEqual(2, split.returncode)
        self.assertIn("--split", split.stderr)

    def test_nothing_is_left(self):
        (self.data / "train.jsonl").write_text('{"prompt": "a", "completion": ""}\n')
        self.fail_with(["no sample has a token to train on", "empty answer (in line 1)"],
                       self.scratch / "a", *self.flags)


class Unread(FinetuneCase):
    def test_files_that_no_flag_asks_for_are_not_read(self):
        flags = [*self.inputs(), *FLAGS, "--iters", 1]
        (self.data / "test.jsonl").write_text("{")
        self.succeed(self.scratch / "a", *flags)
        self.fail_with(["test.jsonl:1"], self.scratch / "b", *flags, "--test")
        (self.data / "valid.jsonl").write_text("{")
        self.fail_with(["valid.jsonl:1"], self.scratch / "b", *flags)
        self.succeed(self.scratch / "b", *flags, "--val-batches", 0)


class Output(FinetuneCase):
    def test_json_is_one_object_a_line(self):
        adapter = self.scratch / "adapter"
        run = self.succeed(adapter, *self.inputs(), *FLAGS, "--iters", 4, "--steps-per-eval", 2,
                           "--save-every", 2, "--json")
        events = [json.loads(line) for line in run.stdout.splitlines()]
        self.assertEqual(
            ["start", "memory", "validation", "train", "train", "validation", "saved", "train", "train",
             "validation", "saved", "end"], [event["event"] for event in events])
        self.assertEqual(11, events[0]["train"]["samples"])
        self.assertEqual(losses_of(adapter),
                         [event["train_loss"] for event in events if event["event"] == "train"])
        self.assertEqual(losses_of(adapter, "val_loss"),
                         [event["val_loss"] for event in events if event["event"] == "validation"])
        self.assertEqual(["finished", 4, 14, []],
                         [events[-1][key] for key in ("reason", "iter", "adapted_modules",
                                                      "unfused_modules")])
        for event in events:
            if event["event"] == "saved":
                self.assertTrue(os.path.isdir(event["path"]))

    def test_quiet_prints_nothing_but_errors(self):
        flags = [*self.inputs(), *FLAGS, "--iters", 3, "--quiet"]
        run = self.succeed(self.scratch / "a", *flags)
        self.assertEqual(["", ""], [run.stdout, run.stderr])
        (self.data / "train.jsonl").unlink()
        run = self.fail_with(["train.jsonl"], self.scratch / "b", *flags)
        self.assertEqual("", run.stdout)
        run = self.finetune(self.scratch / "b", *flags, "--json")
        self.assertEqual(2, run.returncode)
        self.assertIn("--quiet", run.stderr)

    def test_no_escape_codes_where_there_is_no_terminal(self):
        command = self.command(self.scratch / "a", *self.inputs(), *FLAGS, "--iters", 3)
        piped = subprocess.run(command, check=True, capture_output=True)
        self.assertNotIn(b"\x1b", piped.stdout)
        for flag, drawn in ((None, True), ("--quiet", False), ("--json", False)):
            shown = on_terminal([*command, *([flag] if flag else [])])
            self.assertEqual(drawn, "\x1b" in shown, flag)

    def test_no_line_is_wider_than_the_terminal(self):
        command = self.command(self.scratch / "a", *self.inputs(), *FLAGS, "--iters", 30)
        for columns in (36, 40, 80, 200):
            with self.subTest(columns=columns):
                shown = on_terminal(command, columns)
                bars = [part for part in shown.split("\r\x1b[2K") if "/30" in part]
                self.assertTrue(bars)
                for line in re.split(r"\r\x1b\[2K|\r?\n", shown.split("saved to")[0]):
                    self.assertLessEqual(len(line), columns, line)


def on_terminal(command, columns=80):
    """What a terminal of so many columns is sent."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(command, stdout=inner, env={**os.environ, "TERM": "xterm"}) as run:
        os.close(inner)
        shown = b""
        try:
            while chunk := os.read(outer, 65536):
                shown += chunk
        except OSError:  # how Linux says that the other side is closed
            pass
    os.close(outer)
    assert run.returncode == 0, shown
    return shown.decode()


class Config(FinetuneCase):
    def write(self, text):
        path = self.scratch / "config.json"
        path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
        return path

    def flags_of(self, adapter):
        state = adapter / "checkpoints" / checkpoints_of(adapter)[-1] / "state.json"
        return json.loads(state.read_text(encoding="utf-8"))["flags"]

    def test_a_file_of_flags_is_as_good_as_flags(self):
        config = {"model": str(self.model), "data": str(self.data), "batch_size": 2,
                  "learning-rate": 1e-2, "iters": 3, "steps_per_report": 1, "dropout": 0.1,
                  "target_modules": ["q_proj", "v_proj"], "mask_prompt": True,
                  "require_fused": False, "init_adapter": None, "lr_schedule": "linear"}
        self.succeed(self.scratch / "file", "--config", self.write(config))
        self.succeed(self.scratch / "line", *self.inputs(), *FLAGS, "--iters", 3,
                     "--target-modules", "q_proj,v_proj", "--mask-prompt", "--lr-schedule",
                     "linear")
        self.assert_same_run(self.scratch / "file", self.scratch / "line")
        self.assertEqual(self.flags_of(self.scratch / "file"), self.flags_of(self.scratch / "line"))

    def test_flags_win(self):
        config = self.write({"iters": 3, "rank": 4, "target_modules": ["q_proj"]})
        self.succeed(self.scratch / "a", *self.inputs(), "--config", config, "--rank", 2,
                     "--target-modules", "k_proj")
        flags = self.flags_of(self.scratch / "a")
        self.assertEqual([3, 2, ["k_proj"]],
                         [flags[name] for name in ("--iters", "--rank", "--target-modules")])

    def test_a_file_counts_as_flags_when_a_run_goes_on(self):
        self.succeed(self.scratch / "a", *self.inputs(), "--iters", 3, "--rank", 4)
        self.fail_with(["--rank is 2", "has 4"], self.scratch / "a", "--resume", "--config",
                       self.write({"rank": 2}))
        self.succeed(self.scratch / "a", "--resume", "--config", self.write({"rank": 4}))

    def test_what_is_wrong_is_named(self):
        for config, *words in (
                ({"rnk": 8}, "rnk", "no such flag", "--help"),
                ({"rank": 0}, "--rank", "0"),
                ({"rank": "many"}, "--rank", "many"),
                ({"rank": 2.5}, "--rank", "2.5"),
                ({"rank": [4, 8]}, "rank", "one value"),
                ({"rank": {"q_proj": 8}}, "rank", "a text or a number"),
                ({"rank": True}, "rank", "a text or a number"),
                ({"mask_prompt": 1}, "mask_prompt", "true or false"),
                ({"mask_prompt": "true"}, "mask_prompt", "true or false"),
                ({"target_modules": ["q_proj", "w_proj"]}, "--target-modules", "w_proj"),
                ({"target_modules": [["q_proj"]]}, "target_modules", "a text or a number"),
                ({"optimizer": "muon"}, "--optimizer", "muon"),
                ({"lr_schedule": "warp"}, "--lr-schedule", "warp"),
                ({"config": "config.json"}, "config", "no such flag"),
                ({"help": True}, "help", "no such flag"),
                ({"": 1}, "no such flag"),
                ({"quiet": True, "json": True}, "--quiet", "--json", "exclude"),
                ({"init_adapter": "a", "resume_adapter_file": "b"}, "exclude each other"),
                ([1], "object"),
                ('{"rank": 8, "rank": 4}', "rank"),
                ('{"rank": 8', "config.json"),
                ("", "config.json"),
        ):
            with self.subTest(config=config):
                self.fail_with(["config.json", *words], self.scratch / "a", *self.inputs(),
                               "--config", self.write(config))
        self.fail_with(["absent.json"], self.scratch / "a", "--config",
                       self.scratch / "absent.json")
        self.assertFalse((self.scratch / "a").exists())


if __name__ == "__main__":
    unittest.main()
