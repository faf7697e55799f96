"""Has clang check a shader's syntax, and that pointers keep to their address spaces.

The text is C++ but for little, and declarations of Metal's library are in tests/metal/msl_syntax.
What clang sees differently from Metal: a pointer without an address space is one to `thread` memory
(check_shaders.py refuses it); structs do not copy from or to device and threadgroup memory; vectors
are made of scalars only; member functions are for `thread` objects only.
"""

import re
import shutil
import subprocess
from pathlib import Path

from shader_text import Malformed, ShaderText, without_attributes, without_comments

ROOT = Path(__file__).resolve().parent.parent
# Metal 3 is C++14, of which clang takes some later features as extensions. The target has 16-bit
# floats; all that is asked of it is their types.
OPTIONS = ["-fsyntax-only", "-x", "c++", "-std=c++14", "-w", "-Wno-c++11-narrowing", "-nostdinc",
           "-fno-exceptions", "-fno-rtti", "-fno-color-diagnostics", "-fno-caret-diagnostics",
           "-ferror-limit=0", "-target", "aarch64-linux-gnu", "-fsigned-char",
           *(part for option in ("-fnative-half-type", "-fallow-half-arguments-and-returns",
                                 "-ast-dump") for part in ("-Xclang", option))]
# What MLX puts before a shader.
PREFIX = ("#include <metal_stdlib>\nusing namespace metal;\n"
          "typedef half float16_t;\ntypedef bfloat bfloat16_t;\n")
VECTOR = re.compile(r"(?:float|half|bfloat|u?(?:char|short|int|long))[234]|vec")


def compiler():
    return shutil.which("clang")


def _as_cpp(text):
    """The text as C++, line for line."""
    shader = ShaderText(text)
    edits = []  # where, how many characters, and what instead
    vectors = {shader.texts[i + 1] for i, word in enumerate(shader.texts)
               if word == "using" and shader.texts[i + 2:i + 4] == ["=", "vec"]}
    for i, token in enumerate(shader.tokens):
        # Threadgroup arrays belong to no thread, and so are no automatic variables.
        if token.text == "threadgroup" and shader.texts[i - 1] in {";", "{", "}"}:
            function = shader.function_at(i)
            is_array = shader.texts[shader.after_words(i)] == "["
            if function and function.is_kernel and is_array:
                edits.append((token.at, 0, "static "))
        # clang makes vectors from scalars in braces only.
        if VECTOR.fullmatch(token.text) or token.text in vectors:
            opening = shader.after_angles(i + 1)
            if shader.texts[opening] == "(" and _has_comma(shader, opening):
                closing = shader.pairs[opening]
                edits += [(shader.tokens[opening].at, 1, "{"), (shader.tokens[closing].at, 1, "}")]
    cpp = without_attributes(without_comments(text))
    for at, length, instead in sorted(edits, reverse=True):
        cpp = cpp[:at] + instead + cpp[at + length:]
    return cpp


def _has_comma(shader, opening):
    i = opening + 1
    while i < shader.pairs[opening]:
        if shader.texts[i] == ",":
            return True
        angles = shader.after_angles(i)
        i = angles if angles != i else shader.pairs[i] + 1 if shader.texts[i] in "([{" else i + 1
    return False


def _casts_between_spaces(dump):
    """Lines of C-style casts that change the address space, which C++ takes; from clang's AST."""
    line = 0
    for row in dump.splitlines():
        places = re.findall(r"[<\s,](?:line|shader\.metal):(\d+):\d+", row)
        own = re.search(r"<(?:line|shader\.metal):(\d+):\d+", row)
        if re.search(r"(?:CStyle|Functional)CastExpr .*<AddressSpaceConversion>", row):
            yield int(own[1]) if own else line
        line = int(places[-1]) if places else line


def faults(text, path):
    """What clang finds in a complete shader, a line each."""
    try:
        cpp = _as_cpp(text)
    except Malformed as malformed:
        return [f"{path}:{malformed.line}: {malformed}"]
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    command = [compiler(), *OPTIONS, "-isystem", str(ROOT / "tests/metal/msl_syntax"),
               "-iquote", str(path.parent), "-iquote", str(ROOT / "src"), "-"]
    result = subprocess.run(command, input=f'{PREFIX}#line 1 "shader.metal"\n{cpp}',
                            encoding="utf-8", capture_output=True, check=False)
    found = re.findall(r"^.*: (?:error|note): .*$", result.stderr, re.MULTILINE)
    if result.returncode != 0 and not found:
        found = [f"clang failed: {result.stderr.strip()}"]
    found = [re.sub(r"^shader\.metal:", f"{name}:", line) for line in found]
    casts = sorted(set(_casts_between_spaces(result.stdout)))
    return found + [f"{name}:{line}: a C-style cast changes the address space: cast to a pointer "
                    "of the operand's own" for line in casts]
