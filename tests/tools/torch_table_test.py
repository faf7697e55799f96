"""The tables of docs/pytorch.md say what the files of figures say."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import torch_table  # noqa: E402

FIGURES = """\
# device: NVIDIA H200
case,column,value
forward 512x576>192 r8 bfloat16,linear_us,180.00
forward 512x576>192 r8 bfloat16,floor/linear,1.056
forward 512x576>192 r8 bfloat16,peft/linear,1.943
forward 512x576>192 r8 bfloat16,graft/linear,0.954
forward 512x576>192 r8 bfloat16,graft_linear/linear,0.81
forward 512x576>192 r8 bfloat16,graft/graft_linear,1.171
forward 1x4096>4096 r16 bfloat16 float32,linear_graph_us,12.68
forward 1x4096>4096 r16 bfloat16 float32,peft_graph_us,22.89
forward 1x4096>4096 r16 bfloat16 float32,graft_graph_us,12.43
forward 1x4096>4096 r16 bfloat16 float32,kernels_graph_us,12.40
forward 1x4096>4096 r16 bfloat16 float32,peft/linear_graph,1.8053
forward 1x4096>4096 r16 bfloat16 float32,graft/linear_graph,0.98
step Llama-3.2-1B 16 layers 4096 tokens r16 eager dropout0.05,floor_ms,69.00
step Llama-3.2-1B 16 layers 4096 tokens r16 eager dropout0.05,peft_ms,122.00
step Llama-3.2-1B 16 layers 4096 tokens r16 eager dropout0.05,graft_ms,76.00
step Llama-3.2-1B 16 layers 4096 tokens r16 eager dropout0.05,peft/floor,1.768
step Llama-3.2-1B 16 layers 4096 tokens r16 eager dropout0.05,graft/floor,1.101
step Llama-3.2-1B 16 layers 4096 tokens r16 eager dropout0.05,graft_added/peft_added,0.1321
step Llama-3.2-1B 16 layers 4096 tokens r16 eager dropout0.05,graft_peak_mb,15527
memory SmolLM2-135M 30 layers 512 tokens r8 float32,peft_resident_mb,2186
call delta 1x128x512 r8 float32,torch_add_host_us,9.00
call delta 1x128x512 r8 float32,composed_host_us,62.00
call delta 1x128x512 r8 float32,graft_host_us,12.00
"""


class Tables(unittest.TestCase):
    def rows(self, kind):
        with tempfile.NamedTemporaryFile("w", suffix=".csv", encoding="utf-8") as file:
            file.write(FIGURES)
            file.flush()
            return torch_table.make(f"{kind} {file.name}").splitlines()[2:]

    def test_a_layer_on_the_cpu(self):
        self.assertEqual(["| forward | 512 × 576 → 192 | r8, bf16 | 180.00 | +94.3 % | -4.6 % | +5.6 % "
                          "| -19.0 % | +17.1 % |"], self.rows("cpu"))

    def test_a_layer_on_a_gpu_stands_in_the_table_of_its_mode_alone(self):
        self.assertEqual(["| forward | 1 × 4096 → 4096 | r16, bf16, f32 | 12.68 | 22.89 | 12.43 | 12.40 "
                          "| +80.5 % | -2.0 % |"], self.rows("graph"))
        self.assertEqual([], self.rows("eager"))

    def test_steps(self):
        self.assertEqual(["| Llama-3.2-1B, 16 layers, 4096 tokens, rank 16 | eager, dropout 0.05 | 69.00 "
                          "| 122.00 | 76.00 |  | +76.8 % | +10.1 % | 0.13 |  |"], self.rows("steps"))
        self.assertEqual(["| Llama-3.2-1B, 16 layers, 4096 tokens, rank 16 | eager, dropout 0.05 |  |  "
                          "| 15.5 |  |"], self.rows("peaks"))

    def test_memory_and_calls(self):
        self.assertEqual(["| SmolLM2-135M, 30 layers, 512 tokens, rank 8 | f32 |  | 2.2 |  |  |  |  |"],
                         self.rows("memory"))
        self.assertEqual(["| delta | 1 × 128 × 512 | r8, f32 | 9.00 | 62.00 |  | 12.00 |"],
                         self.rows("calls"))

    def test_the_document_agrees_with_its_files(self):
        run = subprocess.run([sys.executable, ROOT / "scripts" / "torch_table.py",
                              ROOT / "docs" / "pytorch.md"], check=False, capture_output=True, text=True)
        self.assertEqual((0, ""), (run.returncode, run.stdout + run.stderr))


if __name__ == "__main__":
    unittest.main()
