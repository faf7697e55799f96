#!/usr/bin/env python3
"""Prints a digest of the CUDA kernels' source, or checks that the figures on record are of it.

What counts is every file of src/ that is called cuda* or lies in a folder called cuda: comments too,
since nothing else can tell which change is harmless.

usage: cuda_digest.py                print the digest
       cuda_digest.py --header FILE  write it as a C++ header, if that does not say so yet
       cuda_digest.py --check        each benchmarks/results/cuda-*.csv has it in its line "# kernels:"
"""

import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def files():
    for path in sorted((ROOT / "src").rglob("*")):
        parts = path.relative_to(ROOT / "src").parts
        if path.is_file() and any(part == "cuda" or part.startswith("cuda.") for part in parts):
            yield path


def digest():
    total = hashlib.sha256()
    for path in files():
        text = path.read_bytes()
        total.update(f"{path.relative_to(ROOT).as_posix()} {len(text)}\n".encode())
        total.update(text)
    return total.hexdigest()[:16]


def check():
    now, faults = digest(), 0
    results = sorted((ROOT / "benchmarks/results").glob("cuda-*.csv"))
    for result in results:
        lines = result.read_text(encoding="utf-8").splitlines()
        if f"# kernels: {now}" not in lines:
            print(f"{result.relative_to(ROOT)}: measured with other kernels than these ({now}): "
                  "measure again, docs/cuda.md says how")
            faults += 1
    print(f"cuda_digest: {len(results)} files of figures, {faults} of other kernels")
    return 1 if faults else 0


def write_header(file):
    text = (f'#pragma once\n\n// Written by tools/cuda_digest.py: which kernels a figure is of.\n\n'
            f'inline constexpr const char* kCudaDigest = "{digest()}";\n')
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def main():
    match sys.argv[1:]:
        case []:
            print(digest())
        case ["--header", file]:
            write_header(Path(file))
        case ["--check"]:
            return check()
        case _:
            sys.exit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
