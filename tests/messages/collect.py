"""List every message of the distributions: errors, warnings, log records and help texts.

The list, `messages.txt`, is the only place that pins the whole wording of messages. It shows in
one place how they read, and each change of one in review.

    python tests/messages/collect.py [--check]
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("messages.txt")
CODE = re.compile(r"(?m)^ *(SELECT|INSERT|CREATE|UPDATE|DELETE|import|from|def|class|#!)\b")


def messages(path: Path) -> Iterator[str]:
    """Yield the messages of a module, in their order: strings of three words or more."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.expr] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(node.value)  # a docstring
        if isinstance(node, ast.JoinedStr):
            skipped.update(node.values)  # parts of an f-string
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(map(placeholder, node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        words = len(re.findall(r"[A-Za-z]{2,}", text))
        if node not in skipped and words > 2 and " " in text.strip() and not CODE.search(text):
            found.append((node.lineno, node.col_offset, text))
    for _, _, text in sorted(found):
        yield " ".join(text.split())


def placeholder(part: ast.expr) -> str:
    """Return a part of an f-string, with `{}` for each value."""
    return str(part.value) if isinstance(part, ast.Constant) else "{}"


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
        sys.exit("messages.txt is outdated: run python tests/messages/collect.py and review it")


if __name__ == "__main__":
    main()
