"""What check_ptxas.py makes of ptxas's reports."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tools"))
from check_ptxas import faults_in  # noqa: E402

GOOD = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4softPf' for 'sm_90a'
ptxas info    : Function properties for _Z4softPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers
"""


class Report(unittest.TestCase):
    def test_a_good_one_has_no_faults(self):
        self.assertEqual(([], 1, 168), faults_in(GOOD))

    def test_a_spill_is_a_fault_of_its_kernel(self):
        faults, kernels, _ = faults_in(GOOD + GOOD.replace("soft", "norm").replace(
            "0 bytes spill loads", "16 bytes spill loads"))
        self.assertEqual(2, kernels)
        self.assertEqual(["_Z4normPf for sm_90a: spills 0 bytes, reads 16"], faults)

    def test_serialized_wgmma_is_a_fault(self):
        note = ("ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are "
                "serialized due to insufficient register resources\n")
        faults, _, _ = faults_in(GOOD + note)
        self.assertEqual(1, len(faults))
        self.assertIn("_Z4softPf for sm_90a: (C7510) Potential", faults[0])

    def test_a_report_of_nothing_has_no_kernels(self):
        self.assertEqual(([], 0, 0), faults_in("ninja: no work to do.\n"))


if __name__ == "__main__":
    unittest.main()
