"""List every message of the distributions: errors, warnings, log records and help texts.

The list, `tests/messages/messages.txt`, is the only place that pins the whole wording of messages.
It lets reviewers read all messages, and every change of a message.

    python .ci/messages.py [--check]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from prose import ROOT, strings

LIST = ROOT / "tests" / "messages" / "messages.txt"
CODE = re.compile(r"(?m)^ *(SELECT|INSERT|CREATE|UPDATE|DELETE|PRAGMA|import|from|def|class|#!)\b")


def messages(path: Path) -> Iterator[str]:
    """Yield the messages of a module, in their order: strings of three words or more."""
    for _, _, is_docstring, text in sorted(strings(path.read_text(encoding="utf-8"))):
        words = len(re.findall(r"[A-Za-z]{2,}", text))
        if not is_docstring and words > 2 and " " in text.strip() and not CODE.search(text):
            yield " ".join(text.split())


def listing() -> str:
    """Return the messages of all distributions, grouped by module."""
    lines = []
    for path in sorted(ROOT.glob("packages/*/src/**/*.py")):
        found = list(messages(path))
        if found:
            lines += [f"# {path.relative_to(ROOT / 'packages')}", *found, ""]
    return "\n".join(lines)


def main() -> None:
    """Write the list, or check it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if the list is outdated")
    if not parser.parse_args().check:
        LIST.write_text(listing(), encoding="utf-8")
    elif listing() != LIST.read_text(encoding="utf-8"):
        sys.exit(
            "tests/messages/messages.txt is outdated: run python .ci/messages.py and review it"
        )


if __name__ == "__main__":
    main()
