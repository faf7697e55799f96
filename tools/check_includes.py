#!/usr/bin/env python3
"""Checks that includes point one way: benchmarks -> apps -> llm -> hosts -> include <- src, and within
src: rooms -> product -> weight -> backend.

Every quoted include of a file in one of these folders is looked up the way the compiler would, and
must land in a folder that the arrows allow. The core (include, src) takes no framework's header; its
rooms, the folders of src with an operation each, don't include each other, and neither do hosts. Of
torch only what is stable is included, so that one build serves many versions.
Prints one line a fault and exits with 1.

usage: check_includes.py [REPOSITORY]
"""

import re
import sys
from pathlib import Path

# Folder -> the folders its files may include.
ARROWS = {
    "include": {"include"},
    "src": {"include", "src"},
    "hosts": {"include", "hosts"},
    "llm": {"include", "hosts", "llm"},
    "apps": {"include", "hosts", "llm", "apps"},
    "benchmarks": {"include", "hosts", "llm", "apps", "benchmarks"},
    "examples": {"include", "hosts", "llm"},
}
# What measures a back-end from inside, and may include src too: how kernels are planned for other devices
# than the one that is here.
INSIDE = Path("benchmarks/cuda")
# Within src: folder -> the folders its files may include. Others are rooms, which may include their own
# files and all of these. What lies in src itself is for everybody.
SHARED = {
    "backend": {"backend"},
    "weight": {"weight", "backend"},
    "product": {"weight", "product", "backend"},
    "": {"backend"},
}
STABLE_TORCH = re.compile(r"^torch/(csrc/stable|headeronly|csrc/inductor/aoti_torch/c)/")
TORCH = re.compile(r"^(torch|ATen|c10)/|^Python\.h$")
FRAMEWORKS = re.compile(r"^(mlx|torch|ATen|c10|pybind11|nanobind|Python\.h)(/|$)")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
SOURCES = {".h", ".hpp", ".inc", ".cc", ".cpp", ".cu", ".cuh", ".metal", ".mm"}


def room_of(parts):
    """The folder within src that src/<parts> lies in; "" for a file of src itself."""
    return parts[1] if len(parts) > 2 else ""


def landing(root, file, name):
    """The parts of the path at which `name`, included from `file`, is found first, or None."""
    # Headers are named as they are installed: graft/mlx/lora.h is hosts/mlx/lora.h.
    parts = Path(name).parts
    if len(parts) > 2 and parts[:2] == ("graft", "llm"):
        return ("llm",)
    if len(parts) > 2 and parts[0] == "graft" and (root / "hosts" / parts[1]).is_dir():
        return ("hosts", parts[1])
    places = [file.parent, root, *(root / folder for folder in ARROWS)]
    for place in places:
        target = (place / name).resolve()
        if target.is_file() and target.is_relative_to(root):
            return target.relative_to(root).parts
    return None


def faults(root):
    for folder, allowed in ARROWS.items():
        for file in sorted((root / folder).rglob("*")):
            if file.suffix not in SOURCES or not file.is_file():
                continue
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
                if not (match := INCLUDE.match(line)):
                    continue
                name = match.group(2)
                where = f"{file.relative_to(root)}:{number}"
                if folder in ("include", "src") and FRAMEWORKS.match(name):
                    yield f"{where}: the core includes a framework's header, {name}"
                    continue
                if TORCH.match(name) and not STABLE_TORCH.match(name):
                    yield f"{where}: {name} is not of torch's stable interface"
                    continue
                found = landing(root, file, name)
                if not found or found[0] not in ARROWS:
                    continue
                inside = found[0] == "src" and file.relative_to(root).is_relative_to(INSIDE)
                if found[0] not in allowed and not inside:
                    yield f"{where}: {folder}/ may not include {found[0]}/ ({name})"
                elif folder == found[0] == "hosts":
                    host = file.relative_to(root).parts[1]
                    if len(found) > 1 and found[1] != host:
                        yield f"{where}: hosts/{host} may not include hosts/{found[1]}/ ({name})"
                elif folder == found[0] == "src":
                    room, other = room_of(file.relative_to(root).parts), room_of(found)
                    if other not in SHARED.get(room, {room, *SHARED}) | {""}:
                        yield f"{where}: src/{room or '*'} may not include src/{other}/ ({name})"


def main():
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
    found = list(faults(root))
    print("\n".join(found) if found else "check_includes: the arrows hold")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
