"""Exit codes, printing and tables for all commands."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from rhapsody.masking import escaped, mask

if TYPE_CHECKING:
    from rich.text import Text

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

    rich reads `NO_COLOR`, `FORCE_COLOR` and `TERM`. Only the finished text is colored:
    rich-argparse overrides private methods of argparse and interprets brackets in help texts.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.color = False  # the colors of Python 3.14

    def print_help(self, file: Any = None) -> None:
        """Print the help to a file, by default standard output."""
        from rich.console import Console
        from rich.text import Text

        text = Text(self.format_help())
        text.highlight_regex(r"(?m)^\w[\w ]*:", "bold")
        text.highlight_regex(r"(?<![\w-])--?[a-z][\w-]*", "cyan")
        console = Console(file=file)
        with console.capture() as captured:
            console.print(text, end="", soft_wrap=True)
        self._print_message(captured.get(), sys.stdout if file is None else file)


def say(text: str = "") -> None:
    """Write a line to standard output; control characters are escaped."""
    _write(sys.stdout, escaped(text))


def note(text: str, *, masked: bool = True) -> None:
    """Write a line to standard error, separate from the output of the workflow.

    Control characters are escaped.

    Args:
        text: The line.
        masked: True to mask secrets.
    """
    with suppress(BrokenPipeError):
        _write(sys.stderr, escaped(mask(text) if masked else text))


def complain(text: str) -> None:
    """Write an error or a warning to standard error."""
    note(f"rhapsody: {text}")


def write(text: str) -> None:
    """Write text to standard output as it is, without a line break at its end."""
    _write(sys.stdout, text, end="")


def write_bytes(data: bytes) -> None:
    """Write to standard output, in any encoding.

    The data is written in pieces, because a stream without a buffer reports only when the next one
    is written that its reader has exited.

    Raises:
        BrokenPipeError: The reader of standard output has exited.
    """
    if sys.stdout is None:
        return
    sys.stdout.flush()
    for start in range(0, len(data), PIECE):
        sys.stdout.buffer.write(data[start : start + PIECE])


PIECE = 1 << 16
"""Number of bytes that are written at a time."""


def _write(stream: TextIO | None, text: str, *, end: str = "\n") -> None:
    """Write a line, unless the stream was closed before Python started.

    Characters that the stream cannot encode are escaped.
    """
    if stream is None:
        return
    try:
        stream.write(f"{text}{end}")
    except UnicodeEncodeError:
        encoding = stream.encoding
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        stream.write(f"{text}{end}")


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


def flush_stdout() -> None:
    """Flush standard output while the command is still running.

    Raises:
        BrokenPipeError: The reader of standard output has exited.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


def say_json(value: Any) -> None:
    """Write a value as JSON to standard output."""
    say(json.dumps(value, indent=2))


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Collection[str] = (),
    flexible: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> list[str]:
    """Return the lines of a table with aligned columns.

    `rich.table.Table` takes 82 ms for 200 rows of eight columns and 4.8 s for 10,000, instead of
    0.7 and 36 ms, and does not shorten chosen columns or leave some out.

    Args:
        header: The names of the columns.
        rows: The cells.
        numbers: The names of the columns that are aligned to the right.
        flexible: The names of the columns that are shortened, in this order, until the table fits
            on the terminal.
        optional: The names of the columns that are left out, those without values first, if the
            others would have to be shortened too much.
    """
    from rhapsody.history.values import printable  # not needed by all commands

    lines = [tuple(header), *(tuple(map(printable, row)) for row in rows)]
    columns = dict(zip(header, zip(*lines, strict=True), strict=True))
    widths = {name: max(map(text_width, cells)) for name, cells in columns.items()}
    limit = terminal_width()
    if limit is not None:
        least = {name: min(widths[name], READABLE) for name in flexible}
        for name in sorted(optional, key=lambda name: any(x != "-" for x in columns[name][1:])):
            if _total({**widths, **least}) > limit:
                del columns[name], widths[name]
                least.pop(name, None)
        for name in least:
            width = widths[name] - max(0, _total(widths) - limit)
            widths[name] = max(min(widths[name], MIN_COLUMN), width)
    padded = [
        [_cell(cell, widths[name], right=name in numbers) for cell in cells]
        for name, cells in columns.items()
    ]
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]


def _total(widths: Mapping[str, int]) -> int:
    """Return the width of a table."""
    return sum(widths.values()) + 2 * (len(widths) - 1)


MIN_COLUMN, READABLE = 8, 16
"""Width to which a column is shortened at most, and while there are optional columns."""


def _cell(text: str, width: int, *, right: bool) -> str:
    text = shortened(text, width)
    space = " " * (width - text_width(text))
    return space + text if right else text + space


def shortened(text: str, width: int | None) -> str:
    """Shorten text to at most this width on a terminal; `None` for no limit."""
    if width is None or text_width(text) <= width:
        return text
    from rich.cells import set_cell_size

    return f"{set_cell_size(text, max(0, width - 3)).rstrip()}..."


def wrapped(line: str) -> list[str]:
    """Return a line of text as lines that fit on the terminal, broken between words."""
    width = terminal_width()
    if width is None or text_width(line) <= width:
        return [line]
    import textwrap

    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def text_width(text: str) -> int:
    """Return the number of columns that text takes on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def terminal_width() -> int | None:
    """Return the width of the terminal; `None` if standard output is not a terminal."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


STYLES = {
    r"(?<![\w.])(done)(?![\w.])": "green",
    r"(?<![\w.])(failed|killed)(?![\w.])": "red",
    r"(?<![\w.])(running)(?![\w.])": "cyan",
    r"(?<![\w.])(interrupted|canceled|skipped)(?![\w.])": "yellow",
    r"^[A-Z][A-Z0-9 ]+$": "bold",
    r"^[a-z][a-z ]*:$|^[a-z ]+ \(\d+\):": "bold",
}
"""Styles of states, headers of tables and titles on a terminal, by pattern."""


def styled(lines: Iterable[str]) -> Text:
    """Return lines with the styles of their states, headers and titles."""
    from rich.text import Text

    text = Text(escaped("\n".join(lines)))
    for pattern, style in STYLES.items():
        text.highlight_regex(f"(?m){pattern}", style)
    return text


def say_lines(lines: Iterable[str]) -> None:
    """Write lines to standard output, with colors on a terminal, as rich decides."""
    from rich.console import Console

    console = Console()
    if console.color_system is None or sys.stdout is None:
        say("\n".join(lines))
        return
    with console.capture() as captured:
        console.print(styled(lines), soft_wrap=True)
    _write(sys.stdout, captured.get().removesuffix("\n"))
