#!/usr/bin/env python3
"""Checks that what the documents quote is what the repository holds.

A fenced block right after a line `<!-- quote: PATH -->` must be the text of that file.
`--fix` writes the files' text into the documents instead.

usage: check_quotes.py [--fix] DOCUMENT...
"""

import re
import sys

from document_parts import ROOT, check_or_fix

QUOTE = re.compile(r"(<!-- quote: (\S+) -->\n```\w*\n)(.*?)(```\n)", re.DOTALL)


def main():
    return check_or_fix("<!-- quote:", QUOTE, lambda path: (ROOT / path).read_text("utf-8"),
                        broken="a quote is not followed by a fenced block",
                        stale="a quote differs from its file; run tools/check_quotes.py --fix")


if __name__ == "__main__":
    sys.exit(main())
