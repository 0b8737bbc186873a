"""List every message of the distributions: errors, warnings, log records and help texts.

Reviewers can thus read all messages, and compare those of two commits.

    python .ci/messages.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from prose import ROOT, strings

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


if __name__ == "__main__":
    print(listing())
