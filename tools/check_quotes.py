#!/usr/bin/env python3
"""Checks that what the documents quote is what the repository holds.

A fenced block right after a line `<!-- quote: PATH -->` must be the text of that file.
`--fix` writes the files' text into the documents instead.

usage: check_quotes.py [--fix] DOCUMENT...
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUOTE = re.compile(r"(<!-- quote: (\S+) -->\n```\w*\n)(.*?)(```\n)", re.DOTALL)


def main():
    fix = "--fix" in sys.argv
    wrong = False
    for document in (Path(argument) for argument in sys.argv[1:] if argument != "--fix"):
        text = document.read_text(encoding="utf-8")
        if text.count("<!-- quote:") != len(QUOTE.findall(text)):
            print(f"{document}: a quote is not followed by a fenced block")
            wrong = True

        def current(match):
            return match.group(1) + (ROOT / match.group(2)).read_text("utf-8") + match.group(4)

        expected = QUOTE.sub(current, text)
        if expected != text:
            if fix:
                document.write_text(expected, encoding="utf-8")
            else:
                print(f"{document}: a quote differs from its file; run tools/check_quotes.py --fix")
                wrong = True
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
