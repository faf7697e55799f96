"""The faults that scripts/planted_faults.py plants can still be planted. Whether tests see them takes
an hour, and is tried by hand."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import planted_faults  # noqa: E402


class PlantedFaults(unittest.TestCase):
    def test_every_text_stands_where_it_should(self):
        run = subprocess.run([sys.executable, SCRIPTS / "planted_faults.py", "--check"],
                             capture_output=True, text=True, check=False)
        self.assertEqual("", run.stderr)
        self.assertEqual(0, run.returncode)
        self.assertGreaterEqual(len(planted_faults.FAULTS), 60)

    def test_code_that_has_moved_is_named(self):
        fault = planted_faults.Fault("name", "a.cc", "x = 1;", "x = 2;", "test")
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "src/backend/cpu").mkdir(parents=True)
            (root / planted_faults.FEWER_TARGETS[0]).write_text(planted_faults.FEWER_TARGETS[1])
            for text, words in (("x = 1;\n", []), ("x = 1; x = 1;", ["a.cc: found 2 times"]),
                                ("y = 1;", ["a.cc: found 0 times"]), (None, ["No such file"])):
                (root / "a.cc").unlink(missing_ok=True)
                if text is not None:
                    (root / "a.cc").write_text(text)
                wrong = planted_faults.check([fault], root)
                self.assertEqual(len(words), len(wrong), wrong)
                for word, line in zip(words, wrong):
                    self.assertIn(word, line)

    def test_every_fault_has_a_test_that_exists(self):
        root = SCRIPTS.parent
        cmake = "".join(path.read_text(encoding="utf-8") for path in
                        root.glob("tests/**/CMakeLists.txt"))
        for fault in planted_faults.FAULTS:
            self.assertTrue(fault.tests, fault.name)
            for test in fault.tests:
                program = test.partition(":")[0]
                room = program.removesuffix("_test")
                self.assertTrue((root / "tests/apps/graft" / program).is_file() or
                                f"graft_test({program}" in cmake or f"room_test({room}" in cmake or
                                f" {program})" in cmake or f"name {program} " in cmake, test)


if __name__ == "__main__":
    unittest.main()
