#!/usr/bin/env python3
"""Stand-ins for the CUDA libraries that PyPI's torch wheel links, for use on the CPU alone.

The wheel loads about 2.5 GB of CUDA packages when it is imported, also on a machine without a GPU.
Nothing in them runs there, so that empty libraries of the same names, with the symbols and symbol
versions that torch asks for, do as well. The functions return cudaErrorNoDevice, so that
torch.cuda.is_available() is False.

usage: .venv/bin/python scripts/cuda_stubs.py      (for the torch of that Python)
"""

import pathlib
import re
import subprocess
import sysconfig
import tempfile

NO_DEVICE = 100  # cudaErrorNoDevice
# Loaded only when a CUDA tensor exists, so its own dependencies are of no concern.
LAZY = {"libtorch_cuda_linalg.so", "libcaffe2_nvrtc.so"}
PLAIN_C = re.compile(r"^(cu|nccl|nv)[A-Za-z0-9_]+$")
SYSTEM = re.compile(r"^(ld-linux|lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|gomp)\.so)")


def needed(library):
    dump = subprocess.run(["readelf", "-dW", library], check=True, capture_output=True, text=True)
    return re.findall(r"\(NEEDED\).*\[(.+?)\]", dump.stdout)


def symbols(library):
    """Two sets of the library's dynamic symbols: what it defines, and (name, version or None) of
    what it expects from others."""
    dump = subprocess.run(
        ["readelf", "--dyn-syms", "-W", library], check=True, capture_output=True, text=True
    )
    defined, wanted = set(), set()
    for line in dump.stdout.splitlines():
        fields = line.split()
        if len(fields) < 8 or fields[4] not in ("GLOBAL", "WEAK", "UNIQUE"):
            continue
        name, _, version = fields[7].partition("@")
        if fields[6] != "UND":
            defined.add(name)
        elif fields[4] == "GLOBAL":
            wanted.add((name, version.lstrip("@") or None))
    return defined, wanted


def version_owners(library):
    """{symbol version: the library that the dynamic linker expects it in}."""
    dump = subprocess.run(["readelf", "-VW", library], check=True, capture_output=True, text=True)
    owners, soname = {}, None
    for line in dump.stdout.splitlines():
        if match := re.search(r"File: (\S+)", line):
            soname = match[1]
        elif soname and (match := re.search(r"Name: (\S+)\s+Flags", line)):
            owners[match[1]] = soname
    return owners


def stub_function(name):
    if name.endswith(("ErrorString", "ErrorName")):
        return f'const char* {name}(void) {{ return "stand-in for CUDA"; }}\n'
    # torch asks this without asking for a device first; 0 with the status left alone says no.
    result = 0 if name == "cudaStreamIsCapturing" else NO_DEVICE
    return f"int {name}(void) {{ return {result}; }}\n"


def write_stub(directory, soname, group):
    by_version = {}
    for name, version in sorted(group, key=str):
        by_version.setdefault(version, []).append(name)
    with tempfile.TemporaryDirectory() as scratch:
        source = pathlib.Path(scratch, "stub.c")
        script = pathlib.Path(scratch, "stub.map")
        source.write_text("".join(stub_function(name) for name in sorted({n for n, _ in group})))
        script.write_text(
            "".join(
                f"{version} {{ global: {'; '.join(names)}; }};\n"
                for version, names in by_version.items()
                if version
            )
        )
        command = ["cc", "-shared", "-fPIC", "-w", "-fno-builtin", str(source)]
        command.append(f"-Wl,-soname,{soname}")
        if script.stat().st_size:
            command.append(f"-Wl,--version-script={script}")
        subprocess.run([*command, "-o", str(directory / soname)], check=True)


def main():
    directory = pathlib.Path(sysconfig.get_path("purelib"), "torch", "lib")
    libraries = [path for path in directory.glob("libtorch*.so") if path.name not in LAZY]
    libraries += list(directory.glob("libc10*.so"))
    defined, wanted, owners, names = set(), set(), {}, set()
    for path in libraries:
        here, there = symbols(path)
        defined |= here
        wanted |= there
        owners |= version_owners(path)
        names |= {name for name in needed(path) if not SYSTEM.match(name)}
    missing = sorted(names - {path.name for path in libraries} - {"libshm.so"})
    stubs = {soname: set() for soname in missing}
    for name, version in wanted:
        if owners.get(version) in stubs:
            stubs[owners[version]].add((name, version))
        elif version is None and name not in defined and PLAIN_C.match(name):
            # Which library an unversioned symbol belongs to is nowhere written, and any will do.
            stubs[missing[0]].add((name, None))
    for soname, group in stubs.items():
        write_stub(directory, soname, group)
    print(f"{len(stubs)} CUDA libraries stood in for: {' '.join(stubs)}")


if __name__ == "__main__":
    main()
