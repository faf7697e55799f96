#!/usr/bin/env python3
"""Writes tests/data/gguf_golden.json: what the gguf package reads in the header of the test model, and
in blocks of quantized types.

    python3 -m venv .venv && .venv/bin/pip install gguf==0.19.0
    .venv/bin/python scripts/make_gguf_golden.py
"""

import importlib.metadata
import json
import pathlib
import sys

import gguf
import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
MODEL = ROOT / ".deps/model/SmolLM2-135M-Instruct.Q4_1.gguf"
OUT = ROOT / "tests/data/gguf_golden.json"


def random_blocks():
    """Two rows of 256 elements of each type: random bits, with scales that are plain numbers."""
    random = np.random.default_rng(7)
    for name, scales in (("BF16", ()), ("Q4_0", (0,)), ("Q4_1", (0, 2)), ("Q8_0", (0,)),
                         ("Q4_K", (0, 2)), ("Q6_K", (208,))):
        kind = gguf.GGMLQuantizationType[name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (2 * 256 // elements, size), dtype=np.uint8)
        if not scales:
            blocks[:, 1] = 0x3C  # no number but a finite one
        for at in scales:
            blocks[:, at + 1] %= 0x38
        data = blocks.reshape(2, -1)
        values = gguf.quants.dequantize(data, kind)
        yield [name, data.tobytes().hex(), [float(value) for value in values.reshape(-1)]]


def main():
    reader = gguf.GGUFReader(sys.argv[1] if len(sys.argv) > 1 else MODEL)
    tensors = [[t.name, t.tensor_type.name, [int(n) for n in reversed(t.shape)],
                int(t.data_offset), int(t.n_bytes)] for t in reader.tensors]
    metadata = {key: field.contents() for key, field in reader.fields.items()
                if not key.startswith("GGUF.") and not isinstance(field.contents(), list)}
    lengths = {key: len(field.contents()) for key, field in reader.fields.items()
               if isinstance(field.contents(), list)}
    golden = {"made_by": "scripts/make_gguf_golden.py",
              "versions": {"gguf": importlib.metadata.version("gguf")},
              "metadata": metadata, "array_lengths": lengths, "tensors": tensors,
              "blocks": list(random_blocks())}
    text = json.dumps(golden, separators=(",", ":"))
    OUT.write_text(text.replace("],[", "],\n[").replace(',"', ',\n"', 1) + "\n")
    assert json.loads(OUT.read_text()) == golden
    print(f"{OUT}: {len(metadata) + len(lengths)} metadata entries, {len(tensors)} tensors")


if __name__ == "__main__":
    main()
