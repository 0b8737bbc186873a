"""Exit codes, printing and tables for all commands."""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, TextIO

DONE = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
"""Exit code that a shell reports for a program that was killed by SIGPIPE."""

ENDED_BY: dict[object, str] = {128 + each: each.name for each in (signal.SIGTERM, signal.SIGHUP)}
"""Names of the signals that may end a run, by the exit code of the run."""


class CommandError(Exception):
    """Failure of a command for a known reason: printed without a traceback, with exit code 1."""


class HelpParser(argparse.ArgumentParser):
    """Argument parser whose help has colors on a terminal, as rich decides.

    rich reads `NO_COLOR`, `FORCE_COLOR` and `TERM`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.color = False  # the colors of Python 3.14

    def print_help(self, file: Any = None) -> None:
        """Print the help to a file, by default standard output."""
        from rich.console import Console
        from rich.text import Text

        text = Text(self.format_help())
        text.highlight_regex(r"(?m)^[\w ]+:", "bold")
        text.highlight_regex(r"(?<![\w-])--?[a-z][\w-]*", "cyan")
        console = Console(file=file)
        with console.capture() as captured:
            console.print(text, end="", soft_wrap=True)
        self._print_message(captured.get(), sys.stdout if file is None else file)


def say(text: str = "") -> None:
    """Write a line to standard output."""
    _write(sys.stdout, text)


def note(text: str) -> None:
    """Write a line to standard error, separate from the output of the workflow."""
    with suppress(BrokenPipeError):
        _write(sys.stderr, text)


def complain(text: str) -> None:
    """Write an error or a warning to standard error."""
    note(f"rhapsody: {text}")


def _write(stream: TextIO | None, text: str) -> None:
    """Write a line, unless the stream was closed before Python started."""
    if stream is not None:
        stream.write(f"{text}\n")


def reader_is_closed() -> bool:
    """Return True if standard output is a pipe whose read end is closed."""
    poll = select.poll()
    try:
        poll.register(sys.stdout, 0)
    except (OSError, ValueError, TypeError):  # closed, or not a file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def flush() -> bool:
    """Write the buffered output. Discard the output of a stream whose reader has exited.

    Returns:
        False if the reader of standard output has exited.
    """
    read = True
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BrokenPipeError:  # Python would report it at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            read = read and stream is not sys.stdout
    return read


def say_json(value: Any) -> None:
    """Write a value as JSON to standard output."""
    say(json.dumps(value, indent=2))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table with aligned columns."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
