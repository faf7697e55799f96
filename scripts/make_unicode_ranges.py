#!/usr/bin/env python3
"""Writes llm/tokenizer/unicode_ranges.inc, the character classes of the pre-tokenizer.

Each code point is classified by asking Hugging Face `tokenizers` itself how it splits, because its
two Unicode tables (Rust's for Digits, Oniguruma's for the regular expression of ByteLevel) belong
to different versions of Unicode, and neither to the one of ICU or PCRE2 on any given system.

    python3 -m venv .venv && .venv/bin/pip install tokenizers==0.23.3
    .venv/bin/python scripts/make_unicode_ranges.py
"""

import pathlib
import sys

import tokenizers
from tokenizers import pre_tokenizers

OUT = pathlib.Path(__file__).parent.parent / "llm/tokenizer/unicode_ranges.inc"

byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
digits = pre_tokenizers.Digits(individual_digits=True)


def joins(splitter, before, char):
    """Whether `char` goes into the same piece as `before`."""
    return len(splitter.pre_tokenize_str(before + char)) == 1


def class_of(char):
    """A name of CharClass, or None for kOther."""
    if not joins(digits, "a", char):
        return "kDigit"
    classes = [("kLetter", "a"), ("kSpace", "\n"), (None, "!")]
    found = [name for name, before in classes if joins(byte_level, before, char)]
    # A number that Digits does not isolate would need a class of its own.
    assert len(found) == 1 and not joins(byte_level, "1", char), f"U+{ord(char):04X}: {found}"
    return found[0]


def ranges():
    start = previous = None
    for code in range(sys.maxunicode + 2):
        valid = code <= sys.maxunicode and not 0xD800 <= code <= 0xDFFF
        current = class_of(chr(code)) if valid else None
        if current != previous:
            if previous:
                yield start, code - 1, previous
            start, previous = code, current


def main():
    entries = [f"{{0x{a:X}, 0x{b:X}, CharClass::{name}}}," for a, b, name in ranges()]
    lines = [
        f"// Made by scripts/make_unicode_ranges.py with tokenizers {tokenizers.__version__}; "
        "do not edit."
    ]
    line = ""
    for entry in entries:
        if len(line) + 1 + len(entry) > 100:
            lines.append(line)
            line = ""
        line = f"{line} {entry}" if line else entry
    lines.append(line)
    OUT.write_text("\n".join(lines) + "\n")
    print(f"{OUT}: {len(entries)} ranges")


if __name__ == "__main__":
    main()
