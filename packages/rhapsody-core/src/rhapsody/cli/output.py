"""What commands share: printing, tables, and the errors that are the user's to mend."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

DONE = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130


class UsageError(Exception):
    """A mistake in what the user gave: shown without a traceback, exit code 2."""


class CommandError(Exception):
    """A command that failed for a known reason: shown without a traceback, exit code 1."""


def say(text: str = "") -> None:
    """Writes a line to standard output."""
    _write(sys.stdout, text)


def note(text: str) -> None:
    """Writes a line that is no output of the workflow's to standard error."""
    _write(sys.stderr, text)


def complain(text: str) -> None:
    """Writes an error to standard error."""
    _write(sys.stderr, f"rhapsody: {text}")


def _write(stream: TextIO | None, text: str) -> None:
    """Writes a line, to nowhere where the stream was closed before the start."""
    if stream is not None:
        stream.write(f"{text}\n")


def say_json(value: Any) -> None:
    """Writes a value as JSON."""
    say(json.dumps(value, indent=2))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in plain, aligned text."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
