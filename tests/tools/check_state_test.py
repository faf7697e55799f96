"""The check of writable state must find what it is there to find."""

import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import check_state  # noqa: E402

SOURCE = """
#include <string>
namespace graft {
namespace { int hidden = 1; }
int counter;
thread_local int of_thread;
const char* const kText = "constant";
const int kTable[] = {1, 2};
const int& once() { static const int value = counter; return value; }
const std::string& text() { static std::string value = "x"; ++hidden; ++of_thread; return value; }
template <class T> T& made() { static T value; return value; }
int& all() { return made<int>(); }
}
"""


class CheckState(unittest.TestCase):
    @unittest.skipUnless(sys.platform == "linux" and shutil.which("objdump") and shutil.which("c++"),
                         "needs objdump and a C++ compiler")
    def test_finds_writable_symbols_and_no_constants(self):
        with tempfile.TemporaryDirectory() as folder:
            made = str(Path(folder, "a.o"))
            subprocess.run(["c++", "-std=c++20", "-O1", "-fPIC", "-xc++", "-", "-c", "-o", made],
                           input=SOURCE, text=True, check=True)
            symbols = subprocess.run(["objdump", "--syms", "--demangle", made], check=True,
                                     capture_output=True, text=True).stdout
            run = subprocess.run([sys.executable, ROOT / "tools/check_state.py", made],
                                 capture_output=True, text=True)
        self.assertEqual({"graft::(anonymous namespace)::hidden", "graft::counter",
                          "graft::of_thread", "graft::once()::value", "graft::text()::value",
                          "graft::made<int>()::value"},
                         {name.removeprefix("int& ") for name in check_state.state_of(symbols)})
        self.assertEqual(1, run.returncode)
        self.assertIn("graft::counter: state of the process", run.stdout)

    def test_every_exception_has_a_reason(self):
        self.assertTrue(all(len(why) > 20 for why in check_state.ALLOWED.values()))


if __name__ == "__main__":
    unittest.main()
