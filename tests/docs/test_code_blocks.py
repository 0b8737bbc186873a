"""Tests of the programs and console sessions in the documentation: they print what the pages show.

Each Python block is a program that runs in an empty directory. A `text` block directly after it
contains its output. A comment on the line before a block changes this:

- `<!-- continues -->` prepends the previous program.
- `<!-- not run: reason -->` skips the block.
- `<!-- file: NAME -->` writes the block, of any language, to a file.

On a page with such files, the lines of `console` blocks that begin with `$ ` are run by a shell in
the directory of the files, in the order of the page. Each must print the lines that follow it. In
these, `…` stands for any text, and a line that consists of `…` for any number of lines. Durations,
times, shares and the names of runs may differ, and so may the number of spaces, because columns are
as wide as their values. `<!-- files of: PAGE -->` starts the session with another page's files, and
`<!-- continues: PAGE -->` with its files and commands.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests._support.sessions import (
    PROGRESS,
    CommandStep,
    FileStep,
    continued_page,
    shows,
    steps_of,
)

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("packages/*/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(
    r"^(?:<!-- *(?P<mark>continues|(?:not run|file): [^\n]+?) *-->\n)?"
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
        if mark.startswith(("not run", "file")):
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


CONTINUED = {continued_page(page) for page in PAGES if page.exists()}
SESSIONS = [
    pytest.param(steps, id=str(page.relative_to(ROOT)))
    for page in PAGES
    if page.exists() and page not in CONTINUED and (steps := list(steps_of(page)))
]


@pytest.mark.parametrize("steps", SESSIONS)
def test_the_commands_of_a_page_print_the_documented_output(
    steps: list[FileStep | CommandStep], tmp_path: Path
) -> None:
    project, home = tmp_path / "project", tmp_path / "home"
    project.mkdir()
    home.mkdir()
    environment = {key: each for key, each in os.environ.items() if not key.startswith("RHAPSODY_")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment |= {"HOME": str(home), "XDG_CONFIG_HOME": str(home / "configuration")}
    for step in steps:
        if isinstance(step, FileStep):
            file = project / step.name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(step.text)
            continue
        done = subprocess.run(
            ["/bin/sh", "-c", step.command],
            cwd=project,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=200,
            check=False,
        )
        printed = PROGRESS.sub("", done.stdout)
        assert shows(step.output, printed), f"$ {step.command}\n{printed}"


@pytest.mark.parametrize(
    ("expected", "printed", "matches"),
    [
        pytest.param("a  1\n", "a     1\n", True, id="spaces"),
        pytest.param("run …\n", "run 7f3a\n", True, id="part of a line"),
        pytest.param("a\n…\nb\n", "a\n1\n2\nb\n", True, id="any lines"),
        pytest.param("1 done in 2.5 s\n", "1 done in 30 ms\n", True, id="duration"),
        pytest.param("1 done in 2.5 s\n", "2 done in 2.5 s\n", False, id="another number"),
        pytest.param("a\n", "a\nb\n", False, id="another line"),
        pytest.param("run …\n", "run\nlog\n", False, id="another line after part of one"),
    ],
)
def test_documented_output_stands_for_what_was_printed(
    expected: str, printed: str, matches: bool
) -> None:
    assert shows(expected, printed) is matches


def test_files_and_commands_are_found_in_the_order_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "one.md").write_text(
        "<!-- file: a.txt -->\n```text\n1\n```\n\n```console\n$ cat a.txt\n1\n$ true\n```\n"
    )
    (tmp_path / "two.md").write_text(
        "<!-- files of: one.md -->\n\n"
        "<!-- not run: it needs a cluster -->\n```console\n$ sbatch job.sh\n```\n\n"
        "```console\n$ wc -l < a.txt\n1\n```\n"
    )
    file = FileStep("a.txt", "1\n")
    first = [file, CommandStep("cat a.txt", "1\n"), CommandStep("true", "")]
    assert list(steps_of(tmp_path / "one.md")) == first
    last = CommandStep("wc -l < a.txt", "1\n")
    assert list(steps_of(tmp_path / "two.md")) == [file, last]
    two = (tmp_path / "two.md").read_text()
    (tmp_path / "two.md").write_text(two.replace("files of", "continues"))
    assert list(steps_of(tmp_path / "two.md")) == [*first, last]
    assert continued_page(tmp_path / "two.md") == tmp_path / "one.md"
    assert continued_page(tmp_path / "one.md") is None


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
