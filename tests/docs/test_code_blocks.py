"""Tests of the Python blocks in the documentation: each runs and prints the documented output.

Each block is a program that runs in an empty directory. A `text` block directly after it contains
its output. `<!-- continues -->` on the line before a block prepends the previous program;
`<!-- not run: reason -->` skips the block.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("packages/*/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(
    r"^(?:<!-- *(?P<mark>continues|not run: [^\n]+?) *-->\n)?"
    r"```python\n(?P<code>.*?)^```\n"
    r"(?:\n*```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """One program of a page."""

    code: str
    output: str | None


def blocks_of(text: str) -> Iterator[tuple[int, Block]]:
    """Yield the programs of a page with their first lines."""
    before = ""
    for match in FENCE.finditer(text):
        mark = match["mark"] or ""
        if mark.startswith("not run"):
            continue
        before = before + match["code"] if mark == "continues" else match["code"]
        line = text.count("\n", 0, match.start("code")) + 1
        yield line, Block(before, match["output"])


ALL = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}:{line}")
    for page in PAGES
    if page.exists()
    for line, block in blocks_of(page.read_text())
]


@pytest.mark.parametrize("block", ALL)
def test_a_block_of_the_documentation_runs_and_prints_the_documented_output(
    block: Block, tmp_path: Path
) -> None:
    program = tmp_path / "block.py"
    program.write_text(block.code)
    done = subprocess.run(
        [sys.executable, "-W", "error", program.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if block.output is not None:
        assert done.stdout == block.output


def test_blocks_are_found_with_their_output_and_marks() -> None:
    page = (
        "```python\nx = 1\n```\n\ntext\n\n"
        "<!-- continues -->\n```python\nprint(x)\n```\n\n```text\n1\n```\n\n"
        "<!-- not run: needs a cluster -->\n```python\nraise SystemExit\n```\n"
    )
    assert list(blocks_of(page)) == [
        (2, Block("x = 1\n", None)),
        (9, Block("x = 1\nprint(x)\n", "1\n")),
    ]
