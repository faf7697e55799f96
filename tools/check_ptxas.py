#!/usr/bin/env python3
"""Reads what ptxas said of the kernels (nvcc -Xptxas -v) and fails where it made one slow.

A fault is a kernel that keeps registers in memory (spills), and one whose wgmma instructions ptxas
runs one after another, which it says in notes C7500 to C7599. Prints one line a fault, the number of
kernels and the largest of each figure.

usage: check_ptxas.py LOG
"""

import re
import sys
from pathlib import Path

FUNCTION = re.compile(r"Compiling entry function '([^']+)' for '([^']+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
SERIALIZED = re.compile(r"\(C75\d\d\).*")


def faults_in(text):
    """The faults, the number of kernels, and the most registers of one."""
    faults, kernels, registers, current = [], set(), 0, "?"
    for line in text.splitlines():
        if match := FUNCTION.search(line):
            current = f"{match.group(1)} for {match.group(2)}"
            kernels.add(current)
        elif match := SPILLS.search(line):
            if int(match.group(2)) or int(match.group(3)):
                faults.append(f"{current}: spills {match.group(2)} bytes, reads {match.group(3)}")
        elif match := REGISTERS.search(line):
            registers = max(registers, int(match.group(1)))
        if match := SERIALIZED.search(line):
            faults.append(f"{current}: {match.group(0)}")
    return faults, len(kernels), registers


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    faults, kernels, registers = faults_in(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for fault in faults:
        print(fault)
    if not kernels:
        print("check_ptxas: no report of any kernel: was it compiled with -Xptxas -v?")
        return 1
    print(f"check_ptxas: {kernels} kernels, at most {registers} registers, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
