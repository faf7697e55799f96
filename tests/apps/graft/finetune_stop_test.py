#!/usr/bin/env python3
"""How `graft finetune` ends before its time: Ctrl-C, a full disk, a folder that cannot be written
to, losses that are no numbers. What had been saved must stay as it was.

usage: finetune_stop_test.py PROGRAM WRITE_TINY_MODEL
"""

import ctypes
import os
import resource
import shlex
import shutil
import signal
import subprocess
import time
import unittest

from finetune_runs import PROGRAM, FinetuneCase, checkpoints_of, metrics_of

FLAGS = ["--batch-size", 2, "--dropout", 0.2, "--steps-per-report", 1, "--steps-per-eval", 1000]
CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24


def bytes_of(folder):
    return {path.relative_to(folder): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def limit_file_size(limit):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def obey_permissions():
    """Root writes anywhere, unless it gives that up."""
    if os.geteuid() == 0:
        ctypes.CDLL(None, use_errno=True).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


class Stop(FinetuneCase):
    def start(self, adapter, *flags):
        """A run that has trained for a while."""
        run = subprocess.Popen(self.command(adapter, *self.inputs(), *FLAGS, *flags),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line in run.stdout:
            if line.startswith("iter") and "train loss" in line:
                return run
        raise AssertionError(run.communicate()[1])

    def test_ctrl_c_saves_and_says_how_to_go_on(self):
        for name in ("SIGINT", "SIGTERM"):
            with self.subTest(signal=name):
                adapter = self.scratch / name
                # So many that it cannot be done before the signal comes.
                run = self.start(adapter, "--iters", 1000000, "--save-every", 0)
                run.send_signal(getattr(signal, name))
                _, stderr = run.communicate(timeout=60)
                self.assertEqual(130, run.returncode, stderr)
                self.assertEqual(1, stderr.count("\n"), stderr)
                self.assertIn("interrupted and saved after iteration ", stderr)
                done = int(checkpoints_of(adapter)[-1])
                self.assertIn(f" {done} of 1000000", stderr)
                self.assertTrue((adapter / "adapter_model.safetensors").is_file())

                command = shlex.split(stderr.split("go on with: ")[1])
                subprocess.run([*command, "--iters", str(done + 5)], check=True,
                               capture_output=True)
                whole = self.scratch / f"whole-{name}"
                self.succeed(whole, *self.inputs(), *FLAGS, "--iters", done + 5)
                self.assertEqual(metrics_of(whole), metrics_of(adapter))

    def test_nobody_reads_the_progress(self):
        whole = self.scratch / "whole"
        flags = [*FLAGS, "--iters", 12, "--save-every", 0]
        self.succeed(whole, *self.inputs(), *flags)
        for more in ([], ["--json"]):
            adapter = self.scratch / f"adapter{len(more)}"
            run = subprocess.Popen(self.command(adapter, *self.inputs(), *flags, *more),
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL))
            run.stdout.close()
            _, stderr = run.communicate(timeout=60)
            self.assertEqual(1, run.returncode, stderr)
            self.assertIn("output", stderr)
            self.assert_same_run(whole, adapter)

    def test_no_room_for_the_progress(self):
        whole = self.scratch / "whole"
        flags = [*FLAGS, "--iters", 12, "--save-every", 0]
        self.succeed(whole, *self.inputs(), *flags)
        for more in ([], ["--json"]):
            adapter = self.scratch / f"adapter{len(more)}"
            with open("/dev/full", "w", encoding="utf-8") as full:
                run = subprocess.run(self.command(adapter, *self.inputs(), *flags, *more),
                                     stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            self.assertEqual(1, run.returncode, run.stderr)
            self.assertIn("output", run.stderr)
            self.assert_same_run(whole, adapter)

    def test_nobody_reads_the_error(self):
        with open("/dev/full", "w", encoding="utf-8") as full:
            run = subprocess.run([PROGRAM, "info", "--model", self.scratch / "none"], check=False,
                                 stdout=full, stderr=full)
        self.assertEqual(1, run.returncode)

    def test_a_closed_terminal_saves(self):
        adapter = self.scratch / "adapter"
        run = self.start(adapter, "--iters", 1000000, "--save-every", 0)
        run.send_signal(signal.SIGHUP)
        run.send_signal(signal.SIGHUP)
        _, stderr = run.communicate(timeout=60)
        self.assertEqual(130, run.returncode, stderr)
        self.assertIn("interrupted and saved after iteration ", stderr)
        self.assertEqual(1, len(checkpoints_of(adapter)))

    def test_an_ignored_signal_stays_ignored(self):
        adapter = self.scratch / "adapter"
        command = self.command(adapter, *self.inputs(), *FLAGS, "--iters", 200)
        run = subprocess.Popen(["sh", "-c", 'trap "" INT HUP; exec "$@"', "sh", *command],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line in run.stdout:
            if line.startswith("iter"):
                break
        run.send_signal(signal.SIGINT)
        run.send_signal(signal.SIGHUP)
        _, stderr = run.communicate(timeout=60)
        self.assertEqual(0, run.returncode, stderr)

    def test_a_path_that_no_file_could_quote(self):
        model = os.fsencode(self.scratch) + b"/mod\xe8le.gguf"
        shutil.copy(os.fsencode(self.model), model)
        run = subprocess.run(self.command(self.scratch / "adapter", "--data", self.data, *FLAGS)
                             + ["--model", model], check=False, capture_output=True, text=True)
        self.assertEqual(1, run.returncode, run.stderr)
        self.assertIn("not valid UTF-8", run.stderr)
        self.assertFalse((self.scratch / "adapter").exists())

    def test_ctrl_c_twice_stops_at_once(self):
        adapter = self.scratch / "adapter"
        # The second one comes while the first iteration after the first is being finished or saved:
        # a stopped program finds both when it goes on.
        run = self.start(adapter, "--iters", 1000000, "--save-every", 0)
        run.send_signal(signal.SIGSTOP)
        run.send_signal(signal.SIGINT)
        run.send_signal(signal.SIGTERM)
        run.send_signal(signal.SIGCONT)
        begin = time.monotonic()
        _, stderr = run.communicate(timeout=60)
        self.assertEqual(130, run.returncode)
        self.assertEqual("", stderr)
        self.assertLess(time.monotonic() - begin, 10)
        self.assertEqual([], [name for name in checkpoints_of(adapter) if "tmp" not in name])

    def test_a_file_that_may_not_grow(self):
        adapter = self.scratch / "adapter"
        flags = [*self.inputs(), *FLAGS, "--iters", 30, "--save-every", 2]
        self.succeed(self.scratch / "whole", *flags)
        self.succeed(adapter, *flags)
        for checkpoint in checkpoints_of(adapter)[3:]:
            shutil.rmtree(adapter / "checkpoints" / checkpoint)
        before = bytes_of(adapter / "checkpoints")
        # The adapter itself fits below the limit, the optimizer's moments do not.
        self.fail_with(["0000008/optimizer.safetensors", "File too large", "ulimit -f",
                        "kept: the checkpoint of iteration 6", "--resume"],
                       adapter, "--resume", preexec_fn=limit_file_size(40000))
        self.assertEqual(before, bytes_of(adapter / "checkpoints"))
        self.succeed(adapter, "--resume")
        self.assert_same_run(self.scratch / "whole", adapter)

    def test_a_full_disk(self):
        disk = self.scratch / "disk"
        disk.mkdir()
        inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec",
                  f'mount -t tmpfs -o size=600k none "{disk}"; "$@" && status=0 || status=$?; '
                  f'cp -r "{disk}/adapter" "{self.scratch}/left"; exit $status', "sh"]
        if subprocess.run([*inside[:-2], "true"], check=False, capture_output=True).returncode:
            self.skipTest("this system lets nobody mount a small disk")
        flags = [*self.inputs(), *FLAGS, "--iters", 30, "--save-every", 2]
        run = subprocess.run([*inside, *self.command(disk / "adapter", *flags)], check=False,
                             capture_output=True, text=True)
        self.assertEqual(1, run.returncode, run.stderr)
        self.assertEqual(1, run.stderr.count("\n"), run.stderr)
        for words in (str(disk), "No space left on device; free some space",
                      "kept: the checkpoint of iteration", "--resume"):
            self.assertIn(words, run.stderr)
        # What was kept goes on where there is room.
        left = self.scratch / "left"
        self.succeed(left, "--resume")
        self.succeed(self.scratch / "whole", *flags)
        self.assert_same_run(self.scratch / "whole", left)

    def test_a_folder_that_cannot_be_written_to(self):
        adapter = self.scratch / "locked"
        flags = [*self.inputs(), *FLAGS, "--iters", 4, "--save-every", 2]
        self.succeed(adapter, *flags)
        shutil.rmtree(adapter / "checkpoints" / "0000004")
        before = bytes_of(adapter)
        for folder in (adapter, adapter / "checkpoints"):
            folder.chmod(0o555)
            try:
                words = [str(folder), "Permission denied; choose a folder that you may write to"]
                self.fail_with(words, adapter, "--resume", preexec_fn=obey_permissions)
                if folder == adapter:
                    self.fail_with(words, folder / "new", *flags, preexec_fn=obey_permissions)
            finally:
                folder.chmod(0o755)
            self.assertEqual(before["checkpoints" / (adapter / "0000002" / "state.json")
                                    .relative_to(adapter)],
                             (adapter / "checkpoints/0000002/state.json").read_bytes())
        self.succeed(adapter, "--resume")

    def test_losses_that_are_no_numbers_end_the_run(self):
        adapter = self.scratch / "adapter"
        wild = ["--learning-rate", 1e30, "--max-grad-norm", 0]
        self.fail_with(["iteration 2: the loss is ", "lower --learning-rate", "nothing had been"],
                       adapter, *self.inputs(), *FLAGS, *wild, "--iters", 9)
        self.assertEqual([], checkpoints_of(adapter))

        # The rate climbs over the warm-up: the first saves are good.
        climbing = ["--learning-rate", 1e36, "--max-grad-norm", 0, "--warmup", 1000000]
        self.fail_with(["iteration 2: the loss is ", "kept: the checkpoint of iteration 1"],
                       adapter, *self.inputs(), *FLAGS, *climbing, "--iters", 9, "--save-every", 1)
        self.assertEqual(["0000001"], checkpoints_of(adapter))
        self.assertEqual((adapter / "checkpoints/0000001/adapter_model.safetensors").read_bytes(),
                         (adapter / "adapter_model.safetensors").read_bytes())

    def test_an_update_that_is_not_finite_is_never_saved(self):
        adapter = self.scratch / "adapter"
        self.fail_with(["iteration 1: the update is not finite"], adapter, *self.inputs(), *FLAGS,
                       "--learning-rate", 1e39, "--iters", 9, "--save-every", 1)
        self.assertFalse((adapter / "adapter_model.safetensors").exists())
        # A validation finds out what the update alone did not show, before the save.
        self.fail_with(["iteration 1: the validation loss is"], adapter, *self.inputs(),
                       *FLAGS[:-1], 1, "--learning-rate", 1e30, "--iters", 9, "--save-every", 1)
        self.assertFalse((adapter / "adapter_model.safetensors").exists())

    def test_two_runs_do_not_share_a_folder(self):
        adapter = self.scratch / "adapter"
        run = self.start(adapter, "--iters", 1000000, "--save-every", 0)
        self.fail_with(["another run is writing here"], adapter, *self.inputs(), *FLAGS)
        run.kill()
        run.communicate()


if __name__ == "__main__":
    unittest.main()
