"""Console sessions of the documentation: files that a page shows, and commands with output."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

STEP = re.compile(
    r"^(?:<!-- *(?P<mark>(?:not run|file): [^\n]+?) *-->\n)?"
    r"```(?P<language>\w+)\n(?P<text>.*?)^```\n",
    re.MULTILINE | re.DOTALL,
)
COMMAND = re.compile(r"^\$ (?P<command>.*)\n(?P<output>(?:(?!\$ ).*\n)*)", re.MULTILINE)
BEGINNING = re.compile(r"^<!-- (?P<what>files of|continues): (?P<page>\S+) -->$", re.MULTILINE)
PROGRESS = re.compile(r"^rhapsody: .* running, .* waiting after .*\n", re.MULTILINE)
"""Lines that `rhapsody run` prints every ten seconds, which a slow machine adds to the output."""

VOLATILE = re.compile(
    r"\d{8}T\d{6}-\w+-[0-9a-f]{4}"  # name of a run
    r"|^[0-9a-f]{4} +\d\d-\d\d \d\d:\d\d "  # run and its start in a list
    r"|\d{4}-\d\d-\d\d|\d+:\d\d:\d\d"  # date; time or long duration
    r"|\d+(?:\.\d+)? (?:ms|s|%|kB|MB)(?!\w)"  # duration, share or size
)


class FileStep(NamedTuple):
    """A file that a page shows."""

    name: str
    text: str


class CommandStep(NamedTuple):
    """A command of a console session."""

    command: str
    output: str


def steps_of(page: Path, reason: str | None = None) -> Iterator[FileStep | CommandStep]:
    """Yield the files and commands of a page, in order; none if the page shows no file.

    Args:
        page: The path of the page.
        reason: Yield the commands that are marked as not run for this reason instead of those
            without a mark.
    """
    text = page.read_text()
    beginning = BEGINNING.search(text)
    if beginning is None and "<!-- file: " not in text:
        return
    if beginning is not None:
        before = steps_of(page.parent / beginning["page"])
        only_files = beginning["what"] == "files of"
        yield from (step for step in before if isinstance(step, FileStep) or not only_files)
    for match in STEP.finditer(text):
        kind, _, value = (match["mark"] or "").partition(": ")
        if kind == "file":
            yield FileStep(value, match["text"])
        elif match["language"] == "console" and reason == (value if kind else None):
            for command in COMMAND.finditer(match["text"]):
                yield CommandStep(command["command"], command["output"])


def continued_page(page: Path) -> Path | None:
    """Return the page whose session this page continues with its own commands."""
    beginning = BEGINNING.search(page.read_text())
    if beginning is None or beginning["what"] != "continues":
        return None
    return page.parent / beginning["page"]


def shows(expected: str, printed: str) -> bool:
    """Return True if the documented output of a command stands for what it printed."""

    def normalized(text: str) -> list[str]:
        return [" ".join(VOLATILE.sub("…", line).split()) for line in text.splitlines()]

    pattern = "".join(
        r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + r"\n"
        for line in normalized(expected)
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in normalized(printed))) is not None
