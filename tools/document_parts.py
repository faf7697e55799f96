"""Parts of documents that are made from files: checked, or with --fix written anew."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def check_or_fix(opening, part, make, broken, stale):
    """Goes through the documents that the command line names, and returns the exit status.

    `part` matches a whole part: (head)(what says how it is made)(its text)(tail), and `make` gives
    the text for the second of these. `opening` is how each part begins; a document with more of them
    than parts is reported with `broken`, one whose text is not what it should be with `stale`.
    """
    fix = "--fix" in sys.argv
    wrong = False
    for document in (Path(argument) for argument in sys.argv[1:] if argument != "--fix"):
        text = document.read_text(encoding="utf-8")
        if text.count(opening) != len(part.findall(text)):
            print(f"{document}: {broken}")
            wrong = True
        expected = part.sub(lambda found: found[1] + make(found[2]) + found[4], text)
        if expected == text:
            continue
        if fix:
            document.write_text(expected, encoding="utf-8")
        else:
            print(f"{document}: {stale}")
            wrong = True
    return 1 if wrong else 0
