#!/usr/bin/env python3
"""Checks that libraries have no writable state of the process but what is argued for here.

State of the process is shared by everybody in it, so it belongs to an object (a Context, a layer) unless
there can only be one of it. Each entry below says why that is so; its source says it again, shorter.

usage: check_state.py LIBRARY...   (as objdump reads them: libgraft_core.a, libgraft_mlx.a, or shared)
"""

import re
import subprocess
import sys

ALLOWED = {
    # graft_core
    "graft::(anonymous namespace)::chosen()::isa":
        "the instruction set in use: Highway keeps its choice for the process",
    "graft::cpu::(anonymous namespace)::shared()::instance":
        "the pool: cores are the machine's, and two pools that spin against each other lose milliseconds",
    "graft::cpu::(anonymous namespace)::inside_task":
        "of a thread: whether it is running a task",
    "graft::cuda::(anonymous namespace)::devices()::all":
        "facts of the machine's CUDA devices, asked for once: they never change",
    "graft::cuda::(anonymous namespace)::encode()::found":
        "the driver's function that describes tensors, looked up once: there is one driver",
    "graft::cuda::(anonymous namespace)::allow_shared(int, void const*)::told":
        "kernels that were told once how much shared memory they may have: CUDA keeps that for the process",
    # graft_mlx
    "graft::mlx::(anonymous namespace)::fused_flag()::enabled":
        "the switch: for any code that calls the operations, as MLX's default device is",
    "graft::mlx::detail::Tallies::instance()::tallies":
        "counts of the nodes of any graph, which may outlive whoever made them",
    "graft::mlx::(anonymous namespace)::innermost":
        "of a thread: the scope that it is in",
    "graft::mlx::detail::FusedPrimitive::thread_context()::context":
        "of a thread: scratch of MLX's stream, whose thread it is",
    "graft::mlx::detail::on_cuda(mlx::core::Stream)::found":
        "whether there is a CUDA device, asked for once",
    "graft::mlx::detail::(anonymous namespace)::expect_same_mlx()::found":
        "the version of the MLX library in use, asked for once",
    "graft::mlx::detail::(anonymous namespace)::concatenation(mlx::core::Stream)::made":
        "of a thread: primitives that allocate, one for each of MLX's streams",
    "graft::mlx::detail::(anonymous namespace)::the_standin":
        "a test's GPU: as there is one Metal, there is one in its place",
}
# Of an object's symbols: flags, the section, the size, the name.
SYMBOL = re.compile(r"^[0-9a-f]{8,16} .{7} (\S+)\t[0-9a-f]+ +(?:\.hidden +)?(.*)$")
WRITABLE = re.compile(r"^\.(data|bss|tdata|tbss)(\.|$)")
# Written by the loader alone, before anything runs; references of exception tables; what compilers,
# linkers and sanitizers add.
FIXED = re.compile(r"^\.data\.rel\.ro|^\.data\.rel\.local\.DW\.ref")
NOT_OURS = re.compile(r"^(\.|__|_end|_edata|completed\.|DW\.ref|std::|guard variable for std::)")


def state_of(symbols):
    """Names of what is writable in `objdump --syms --demangle` of a library, guards of statics aside."""
    names = set()
    for line in symbols.splitlines():
        match = SYMBOL.match(line)
        if not match or not WRITABLE.match(match.group(1)) or FIXED.match(match.group(1)):
            continue
        name = match.group(2).removeprefix("guard variable for ").replace("[abi:cxx11]", "")
        if not NOT_OURS.match(name):
            names.add(name)
    return names


def main():
    found = set()
    for library in sys.argv[1:]:
        found |= state_of(subprocess.run(["objdump", "--syms", "--demangle", library], check=True,
                                         capture_output=True, text=True).stdout)
    if not found:
        sys.exit("check_state: no state found, not even the pool's: are these Graft's libraries?")
    for name in sorted(found - set(ALLOWED)):
        print(f"check_state: {name}: state of the process; let an object own it, or argue for it in"
              " tools/check_state.py")
    if found - set(ALLOWED):
        return 1
    print(f"check_state: {len(found)} pieces of state, each argued for")
    return 0


if __name__ == "__main__":
    sys.exit(main())
