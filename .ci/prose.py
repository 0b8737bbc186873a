"""Find wording that readers stumble over, in docstrings, comments, messages and Markdown.

The patterns are words and phrases with a plainer equivalent. A legitimate use goes into
`prose_allowed.txt`, as a line `file: text of the line`. This is advice and fails no session of
plain `nox`: as a gate, it cost contributors more time than it saved readers. Linters such as Vale
cannot be installed by pip, and their rules address other faults.

    python .ci/prose.py [FILE ...]
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALLOWED = Path(__file__).with_name("prose_allowed.txt")

PHRASES = re.compile(
    r"""(?xi)\b(?:
    (?:is|are|was|were|be|been|being|gets?|not|never|once)\ told | told\ (?:as|of|to|by|about)
    | hears?\ of | heard\ of | spoken\ of | speaks?\ of
    | nobody | somebody | whoever | whomever | whom | who\ asks
    | is\ gone | are\ gone | was\ gone | were\ gone | be\ gone | been\ gone | has\ gone | have\ gone
    | brought | brings | begun | whereof | thereof | thereby
    | beside | but\ for | in\ place\ of | that\ is\ all | all\ the\ same | at\ one\ go | in\ vain
    | by\ itself | of\ itself | by\ themselves | of\ their\ own\ accord
    | is\ there\ no\ more | no\ more\ than\ that | is\ over | are\ over | was\ over
    | time-outs? | cannot\ be\ meant | of\ no\ use | to\ no\ avail
    )\b"""
)
"""Phrases that are faults in every text."""

SUBJECTS = re.compile(
    r"(?i)\b(?:it|that|which|this|line|log|error|message|engine|backend|task|table|file|note)"
    r" (?:tells|tell)\b(?! apart)"
)
"""Subjects that cannot "tell" anything: write "says", "returns" or "reports"."""

STARTS = re.compile(
    r"(?:What|Whether|How|Has|Have|Had|Gives?|Gets|Lets|Makes sure|Where|When|Who|Whose|Why)\b"
)
"""First words of docstrings that neither name the object nor describe the function's action."""

RETURNS = re.compile(r"(?m)^ *Returns:\n +(?:Gives|Whether|What|How)\b")
"""A description of a return value that is a clause instead of a noun."""


def tracked_files() -> list[Path]:
    """Return the files of the repository with prose in them."""
    names = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "*.py", "*.md", "pyproject.toml", "**/pyproject.toml"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    return [ROOT / name for name in names if ROOT / name != Path(__file__)]


def faults(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line number and the wording of each fault in a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        texts = markdown(text)
    elif path.suffix == ".toml":
        texts = hashes(text)
    else:
        texts = python(text)
    for first, is_docstring, piece in texts:
        found = [match for rule in (PHRASES, SUBJECTS) for match in rule.finditer(piece)]
        if is_docstring:
            start = STARTS.match(piece)
            found += [*([start] if start else []), *RETURNS.finditer(piece)]
        for match in found:
            yield first + piece.count("\n", 0, match.start()), " ".join(match.group().split())


def strings(text: str) -> Iterator[tuple[int, int, bool, str]]:
    """Yield the strings of a module: line, column, whether it is a docstring, and the content.

    An f-string is one string, with `{}` for each value.
    """
    tree = ast.parse(text)
    docstrings, parts = set[ast.expr](), set[ast.expr]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts.update(node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            pieces = [str(e.value) if isinstance(e, ast.Constant) else "{}" for e in node.values]
            yield node.lineno, node.col_offset, False, "".join(pieces)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            yield node.lineno, node.col_offset, node in docstrings, node.value


def python(text: str) -> Iterator[tuple[int, bool, str]]:
    """Yield the docstrings, comments and messages of a module, with their first lines."""
    for line, _, is_docstring, string in strings(text):
        # Strings with fewer than two spaces are names and formats, not messages.
        if is_docstring or string.strip().count(" ") > 1:
            yield line, is_docstring, string
    block, first = "", 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            line = token.string.lstrip("#! ")
            if block and token.start[0] == first + block.count("\n") + 1:
                block += f"\n{line}"
            else:
                yield first, False, block
                block, first = line, token.start[0]
    yield first, False, block


def markdown(text: str) -> Iterator[tuple[int, bool, str]]:
    """Yield the text of a Markdown file without its code."""
    blank = re.sub(r"(?ms)^( *)(```|~~~).*?^\1\2 *$", lambda code: "\n" * code[0].count("\n"), text)
    yield 1, False, re.sub(r"`[^`]*`", lambda code: "`" + "\n" * code[0].count("\n") + "`", blank)


def hashes(text: str) -> Iterator[tuple[int, bool, str]]:
    """Yield the comments of a TOML file, line by line."""
    for number, line in enumerate(text.splitlines(), 1):
        if "#" in line:
            yield number, False, line.partition("#")[2]


def main() -> None:
    """Print the faults; exit with 1 if there are any, or an entry of the allow list is unused."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("files", nargs="*", type=Path, help="default: all tracked files")
    options = parser.parse_args()
    allowed = {line for line in ALLOWED.read_text(encoding="utf-8").splitlines() if line}
    unused, count = set(allowed), 0
    for path in [file.resolve() for file in options.files] or tracked_files():
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, wording in faults(path):
            line = f"{path.relative_to(ROOT)}: {lines[number - 1].strip()}"
            unused.discard(line)
            if line not in allowed:
                count += 1
                print(f"{path.relative_to(ROOT)}:{number}: {wording!r}")
    if unused and not options.files:
        print("unused entries of the allow list:", *sorted(unused), sep="\n  ")
        count += len(unused)
    if count:
        sys.exit(f"{count} places to reword")


if __name__ == "__main__":
    main()
