#!/usr/bin/env python3
"""Checks Metal shaders on a machine without Metal.

From the text alone, it refuses what Metal's compiler, MLX or the stand-in that runs shaders in
tests (tests/metal) does not take, and pointers and references that do not say what memory they are
to. What macros expand to is not seen. Prints one line a fault, and exits with 1.

--syntax has clang check, besides, complete shaders as MLX generates them: above all that address
spaces are not mixed. Without clang it says so and exits with 3.

usage: check_shaders.py [--syntax] [--body] [FILE...]

FILE is a shader, or - for standard input; without any, all of src/**/*.metal are checked. --body
says that each is just the text of a kernel's body.
"""

import argparse
import re
import sys
from pathlib import Path

import shader_syntax
from shader_text import (SPACES, Malformed, ShaderText, is_word, raw_strings, without_comments)

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r"^[ \t]*#[ \t]*(?:include|include_next|import)\b[ \t]*(.*?)[ \t]*$", re.M)
REFUSED_WORDS = {
    "double": "Metal has no double: use float",
    "goto": "Metal has no goto: use a loop or a function",
    "new": "Metal has no new: use an array of fixed size",
    "delete": "Metal has no delete: use an array of fixed size",
    "virtual": "Metal has no virtual functions: use a template",
    "try": "Metal has no exceptions",
    "catch": "Metal has no exceptions",
    "throw": "Metal has no exceptions",
}
# In C++, in which tests run shaders, a double: it computes with more digits than Metal.
UNMARKED_FLOAT = re.compile(
    r"(?<![\w.])(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)(?![\w.])")
REFUSED_WORD = re.compile(rf"\b(?:{'|'.join(REFUSED_WORDS)})\b|\bdouble[234]\b")
# The one form of a threadgroup array that the stand-in knows (tests/metal/source.cc).
ARRAY = re.compile(r"threadgroup\s+[\w:]+(?:<[^<>;]*>)?\s+\w+\s*(?:\[[^\]]*\])+\s*;")
DECLARATORS = {"*", "&", "&&"}
BEFORE_TYPE = {"const", "constexpr", "volatile", "static", "inline", "typedef", "typename",
               "friend", "extern", "kernel", "explicit"} | SPACES
BEFORE_VALUE = {"return", "else", "do", "case"}  # words that an expression may follow
NOT_A_TYPE = BEFORE_VALUE | {"if", "for", "while", "switch", "operator", "sizeof", "template"}


def word_faults(shader):
    for number, line in enumerate(shader.code.splitlines(), start=1):
        if INCLUDE.match(line):
            continue
        for match in REFUSED_WORD.finditer(line):
            yield number, REFUSED_WORDS[match[0].rstrip("234")]
        for match in UNMARKED_FLOAT.finditer(line):
            yield number, f"{match[0]} is a double in C++, where tests run shaders: end it with f"


def lambda_faults(shader):
    for i, text in enumerate(shader.texts):
        if text != "[":
            continue
        before = shader.texts[i - 1] if i > 0 else ""
        subscript = before in {")", "]", ">"} or is_word(before) and before not in BEFORE_VALUE
        binding = before in DECLARATORS and shader.texts[i - 2] == "auto"
        if not subscript and not binding:
            yield shader.tokens[i].line, "Metal has no lambdas: write a function"


def static_faults(shader):
    for i, text in enumerate(shader.texts):
        if text == "static" and shader.function_at(i):
            yield shader.tokens[i].line, "Metal has no static locals: leave out static"


def calls_of(shader, function, definitions):
    """The functions of this text, as (owner, name), that `function` seems to call."""
    for i in range(function.begin, function.end):
        name, before = shader.texts[i], shader.texts[i - 1]
        if not is_word(name) or shader.texts[shader.after_angles(i + 1)] != "(":
            continue
        if before in {".", "->"}:
            yield from {d for d in definitions if d[0] and d[1] == name}
        elif before == "::":
            of = shader.texts[i - 2]
            yield from {(of, name), ("", name)} & definitions if of != "metal" else ()
        elif not is_word(before) or before in BEFORE_VALUE:
            yield from {(function.owner, name), ("", name)} & definitions


def recursion_faults(shader):
    definitions = {(f.owner, f.name) for f in shader.functions}
    calls = {}
    for function in shader.functions:
        called = calls.setdefault((function.owner, function.name), set())
        called.update(calls_of(shader, function, definitions))

    def way(from_, to, seen):
        """The calls by which `from_` reaches `to`."""
        for called in sorted(calls[from_]):
            if called == to:
                return [to]
            if called not in seen:
                seen.add(called)
                rest = way(called, to, seen)
                if rest:
                    return [called, *rest]
        return []

    reported = set()
    for function in sorted(shader.functions, key=lambda f: f.line):
        key = (function.owner, function.name)
        path = way(key, key, set())
        if path and not reported & set(path):
            names = " -> ".join(name for _, name in [key, *path])
            yield function.line, (f"Metal has no recursion ({names}): use a loop; a function that "
                                  "calls another of its name counts: give that one another name")
        reported.update(path)


def threadgroup_faults(shader):
    for i, text in enumerate(shader.texts):
        if text != "threadgroup":
            continue
        end = shader.after_words(i + 1)
        pointer = {shader.texts[end], *shader.texts[end + 1:end + 2]} & DECLARATORS
        is_qualifier = end == i + 1  # of a member function
        if shader.texts[end] not in {";", ",", "=", "[", "{", "("} or pointer or is_qualifier:
            continue
        function = shader.function_at(i)
        begins = i == 0 or shader.texts[i - 1] in {";", "{", "}"}
        if shader.texts[end] == "," and not begins:
            continue  # a template argument
        if not function or not function.is_kernel:
            yield shader.tokens[i].line, ("a threadgroup array outside a kernel's body: declare it "
                                          "in the kernel and hand down a pointer to it")
        elif not begins or not ARRAY.match(shader.code, shader.tokens[i].at):
            yield shader.tokens[i].line, ("threadgroup memory of a form that tests cannot run: "
                                          "write threadgroup T name[..]; one to a statement")


def type_before(shader, index):
    """The words of the type that a * or & at `index` is of, innermost first."""
    words, i = [], index - 1
    if i >= 0 and shader.texts[i] == "(":  # T (&name)[8]
        i -= 1
    while i >= 0:
        text = shader.texts[i]
        if text == ">" and shader.before_angles(i) != i:
            words.append("<>")
            i = shader.before_angles(i)
        elif text == ")" and shader.texts[shader.pairs[i] - 1] in {"decltype", "alignas"}:
            i = shader.pairs[i] - 1
        elif text == "::" or is_word(text) and text not in NOT_A_TYPE:
            words.append(text)
            i -= 1
        else:
            break
    return words


def declarators_without_name(shader):
    """Each * and & that nothing can be multiplied by, as in a cast or a template's argument."""
    for i, text in enumerate(shader.texts):
        if text in DECLARATORS:
            after = i + 1
            while shader.texts[after] in {"const", "volatile"}:
                after += 1
            named_type = type_before(shader, i) or shader.texts[i - 1] == "*"
            if shader.texts[after] in {")", ",", ">", ";"} and named_type and i > 0:
                yield i


def declarators_of_parameters(shader, begin, end):
    i, in_default = begin, False
    while i < end:
        text = shader.texts[i]
        in_default = text == "=" or in_default and text != ","
        if text in DECLARATORS and not in_default:
            yield i
        if text == "<":
            i = max(shader.after_angles(i), i + 1)
        elif text == "[" or text == "(" and (in_default or shader.texts[i + 1] not in DECLARATORS):
            i = shader.pairs[i]
        else:
            i += 1


def declarators_of_statement(shader, statement):
    """Each * and & of the first declaration in a statement, if that is what it begins with."""
    i, texts = statement.begin, shader.texts
    while texts[i] in BEFORE_TYPE:
        i += 1
    begin = i
    i = shader.after_words(i, NOT_A_TYPE)
    if i == begin:
        return []
    if texts[i] == "(" and texts[i + 1] in DECLARATORS and texts[shader.pairs[i] + 1] == "[":
        return [i + 1]
    found = []
    while texts[i] in DECLARATORS or found and texts[i] in BEFORE_TYPE:
        found += [i] if texts[i] in DECLARATORS else []
        i += 1
    after = {"=", ":"} if statement.in_parentheses else {"=", ":", ";", ",", "(", "[", "{", "::"}
    declares = is_word(texts[i]) and texts[shader.after_angles(i + 1)] in after
    return found if declares or texts[i] == "operator" else []


def address_space_faults(shader):
    found = set(declarators_without_name(shader))
    for begin, end in shader.parameter_lists:
        found.update(declarators_of_parameters(shader, begin, end))
    for statement in shader.statements:
        found.update(declarators_of_statement(shader, statement))
    for i in sorted(found):
        words = type_before(shader, i)
        if not SPACES & set(words):
            name = " ".join(reversed(words)).replace(" <>", "<..>").replace(" :: ", "::")
            name = name or shader.texts[i - 1]
            yield shader.tokens[i].line, (f"'{name}{shader.texts[i]}' names no address space: "
                                          "write device, constant, threadgroup or thread before it")


def text_faults(text):
    """Faults that are not about the language's form."""
    for number, line in enumerate(text.splitlines(), start=1):
        strange = next((c for c in line if ord(c) > 126), None)
        if strange:
            yield number, f"U+{ord(strange):04X} is not ASCII, which MLX refuses, even in comments"
    for at in raw_strings(text):
        yield text.count("\n", 0, at) + 1, "a raw string: nothing in it is checked, so leave it out"


def includes(text, folder):
    """Of each #include: its line, the shader header it names or None, and what is wrong with it."""
    code = without_comments(text)
    for match in INCLUDE.finditer(code):
        line, name = code.count("\n", 0, match.start(1)) + 1, match[1]
        if re.fullmatch(r"<metal_\w+>", name):
            continue
        places = [place / name[1:-1] for place in (folder, ROOT / "src")]
        header = next((place for place in places if place.is_file()), None)
        if not re.fullmatch(r'"[^"]+"', name) or header is None:
            yield line, None, f"{name} is neither a <metal_...> header nor one of Graft's shaders'"
        else:
            yield line, header.resolve(), None


def faults(text, path, body=False, seen=None):
    """All that is wrong with a shader and with the headers it includes, a line each.

    `body`: the text is that of a kernel's body, without the braces.
    """
    seen = set() if seen is None else seen
    found = list(text_faults(text))
    below = []
    folder = path.parent if path.is_file() else ROOT / "src"
    for line, header, wrong in includes(text, folder):
        if wrong:
            found.append((line, wrong))
        elif header not in seen:
            seen.add(header)
            below += faults(header.read_text(encoding="utf-8"), header, seen=seen)
    try:
        shader = ShaderText("[[kernel]] void body() {" + text + "\n}" if body else text)
        for rule in (word_faults, lambda_faults, static_faults, recursion_faults,
                     threadgroup_faults, address_space_faults):
            found += rule(shader)
    except Malformed as malformed:
        found.append((malformed.line, f"{malformed}, counting every branch of an #if"))
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return [f"{name}:{line}: {what}" for line, what in sorted(set(found))] + below


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].splitlines()[0])
    parser.add_argument("--syntax", action="store_true")
    parser.add_argument("--body", action="store_true")
    parser.add_argument("files", nargs="*")
    options = parser.parse_args()
    if options.syntax and options.body:
        parser.error("--syntax needs complete shaders")
    if options.syntax and not shader_syntax.compiler():
        print("check_shaders: clang is not installed, so syntax is not checked", file=sys.stderr)
        return 3

    names = options.files or sorted((ROOT / "src").rglob("*.metal"))
    found = []
    for name in names:
        path = Path("stdin") if name == "-" else Path(name).resolve()
        text = sys.stdin.read() if name == "-" else path.read_text(encoding="utf-8")
        found += faults(text, path, options.body)
        if options.syntax:
            found += shader_syntax.faults(text, path)
    print("\n".join(found) if found else f"check_shaders: nothing wrong in {len(names)} shaders")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
