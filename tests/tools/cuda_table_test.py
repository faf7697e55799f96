"""The tables of docs/cuda.md say what the file of figures says."""

import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import cuda_table  # noqa: E402

FIGURES = """\
# device: NVIDIA H200
case,column,value
delta 128x512>512 r8 float32 float32,path,small
delta 128x512>512 r8 float32 float32,graft_us,2.00
delta 128x512>512 r8 float32 float32,composed_us,13.00
delta 128x512>512 r8 float32 float32,graft/composed,0.1538
forward 4096x4096>4096 r16 bfloat16 float32,path,hopper
forward 4096x4096>4096 r16 bfloat16 float32,graft_us,200.00
forward 4096x4096>4096 r16 bfloat16 float32,cublas_us,199.00
forward 4096x4096>4096 r16 bfloat16 float32,graft/cublas,1.0050
chain 4x128 r8 float32,graft_us,20.00
chain 4x128 r8 float32,composed_us,61.00
chain 4x128 r8 float32,graph_us,1.75
chain 4x128 r8 float32,composed/graft,3.04
softmax 4096x4096 bfloat16,path,rows
softmax 4096x4096 bfloat16,graft_us,18.00
softmax 4096x4096 bfloat16,copy_us,17.00
softmax 4096x4096 bfloat16,graft/copy,1.0588
"""

PEERS = """\
case,column,value
forward 4096x4096>4096 r16 bfloat16 float32,cublas_us,180.00
forward 4096x4096>4096 r16 bfloat16 float32,peft_us,240.00
forward 4096x4096>4096 r16 bfloat16 float32,peft/cublas,1.3333
softmax 4096x4096 bfloat16,copy_us,17.10
softmax 4096x4096 bfloat16,torch/copy,3.1000
softmax 4096x4096 bfloat16,liger/copy,1.0200
"""


def read(text):
    with tempfile.NamedTemporaryFile("w", suffix=".csv", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        return cuda_table.read_cases(Path(file.name))


class Tables(unittest.TestCase):
    def setUp(self):
        self.cases = read(FIGURES)

    def rows(self, kind):
        return cuda_table.TABLES[kind](self.cases).splitlines()[2:]

    def test_a_delta_is_a_speed_up(self):
        self.assertEqual(["| 128 × 512 → 512 | 8 | float32 | small | 2.00 | 13.00 | 6.5× |"],
                         self.rows("delta"))

    def test_a_layer_is_held_against_each_that_was_measured(self):
        self.assertEqual(["| forward | 4096 × 4096 → 4096 | r16 bf16 f32 | hopper | 200.00 | 199.00 "
                          "| +0.5 % |  |  |"], self.rows("products"))

    def test_a_chain_under_mlx_is_a_speed_up(self):
        self.assertEqual(["| 4 × 128 | 8 | float32 | 20.00 | 61.00 | 3.0× | 1.75 |"],
                         self.rows("mlx"))

    def test_a_row_operation_is_held_against_a_copy(self):
        self.assertEqual(["| `softmax` | 4096 × 4096 | 18.00 | 17.00 | 1.06 |"], self.rows("rows"))

    def test_peers_stand_beside_graft_by_what_both_runs_measured(self):
        self.assertEqual(
            ["| forward | 4096 × 4096 → 4096 | r16 bf16 f32 | cublas | 180.00 | 1.005 |  | 1.333 |  |"
             "  |",
             "| softmax | 4096 × 4096 | bf16 | copy | 17.10 | 1.059 | 3.100 |  |  | 1.020 |"],
            cuda_table.peers_table(read(PEERS), self.cases).splitlines()[2:])


if __name__ == "__main__":
    unittest.main()
