"""Live display of a run on a terminal or in a notebook, drawn with rich on a separate thread.

A terminal may accept no text for some time (Ctrl-S, a slow connection), so only this thread waits.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from shutil import get_terminal_size
from time import monotonic

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from rhapsody.builtin.progress.account import Counts, Row
from rhapsody.errors import describe_error
from rhapsody.masking import escaped
from rhapsody.resources import duration_text
from rhapsody.sdk.capture import streams

log: logging.Logger = logging.getLogger("rhapsody.progress")

MIN_UPDATE_INTERVAL = 0.25
"""Minimum number of seconds between two updates."""

CLOCK_INTERVAL = 1.0
"""Seconds between two updates of the elapsed time while tasks are running and nothing changes."""

CLOSE_TIMEOUT = 5.0
"""Maximum number of seconds for which `close` waits for a terminal that accepts no text."""

MAX_FAILURES = 3
"""Maximum number of failure groups that are shown."""

OTHER_LINES = 12
"""Number of lines of the terminal that are not used for the names of tasks."""

RATE_PERIOD = 10.0
"""Seconds over which the completion rate is measured."""


class Picture:
    """Content of the progress display: a table of tasks, the last failures, and a progress bar.

    Args:
        counts: The counts of the run's tasks.
        usage: Function that returns the number of cores in use and the total number of cores, or
            `None` if they are unknown.
    """

    def __init__(self, counts: Counts, usage: Callable[[], tuple[float, int] | None]) -> None:
        self._counts = counts
        self._usage = usage
        self._began = monotonic()
        self._ended: deque[tuple[float, int]] = deque([(self._began, 0)])

    def draw(self) -> RenderableType:
        """Return the content that the progress display should show now."""
        every = self._counts.all
        picture = Table.grid()
        picture.add_column(max_width=get_terminal_size().columns - 3)  # leave room for ^C
        if not every.total:
            return picture
        picture.add_row(self._table(every))
        for failure in self._counts.failures.latest[-MAX_FAILURES:]:
            text = Text.assemble(("failed: ", "bold bright_red"), escaped(failure.summary))
            text.no_wrap, text.overflow = True, "ellipsis"
            picture.add_row(text)
        picture.add_row(self._bar(every))
        return picture

    def _table(self, every: Row) -> Table:
        columns = ["waiting", "running", "done", "failed"]
        columns += [name for name in ("held", "skipped", "cancelled") if getattr(every, name)]
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("task", no_wrap=True, overflow="ellipsis")
        for name in columns:
            heading = "canceled" if name == "cancelled" else name
            table.add_column(heading, justify="right", no_wrap=True, min_width=7)
        rows = list(self._counts.rows.items())
        shown = _most_active(rows, max(4, get_terminal_size().lines - OTHER_LINES))
        for name, row in shown:
            cells = [_cell(column, getattr(row, column)) for column in columns]
            table.add_row(Text(escaped(name)), *cells)
        if len(rows) > len(shown):
            table.add_row(Text(f"and {len(rows) - len(shown)} more names", "dim"))
        return table

    def _bar(self, every: Row) -> Table:
        words = [f"{every.ended} of {every.total}", f"{self._rate(every.ended):.3g} a second"]
        usage = self._usage()
        if usage is not None:
            words.append(f"{usage[0]:g} of {usage[1]:g} cores in use")
        words.append(duration_text(monotonic() - self._began))
        line = Table.grid(padding=(0, 1))
        line.add_row(
            ProgressBar(
                total=max(every.total, 1), completed=every.ended, width=20, complete_style="green"
            ),
            Text(", ".join(words), no_wrap=True, overflow="ellipsis"),
        )
        return line

    def _rate(self, ended: int) -> float:
        """Return the recent completion rate, in tasks per second."""
        now, times = monotonic(), self._ended
        times.append((now, ended))
        while len(times) > 2 and times[0][0] < now - RATE_PERIOD:
            times.popleft()
        (first, before), (last, after) = times[0], times[-1]
        return (after - before) / max(last - first, 0.1)


def _most_active(rows: list[tuple[str, Row]], room: int) -> list[tuple[str, Row]]:
    """Return at most `room` rows in order, preferring those with running or failed tasks."""

    def weight(number: int) -> tuple[bool, bool, bool, bool]:
        row = rows[number][1]
        started = row.ended > 0
        return row.running > 0, row.failed > 0, started and row.waiting > 0, started

    best = sorted(range(len(rows)), key=weight, reverse=True)[:room]
    return [rows[number] for number in sorted(best)]


_STYLES = {"running": "bold", "done": "green", "failed": "bold bright_red", "skipped": "bright_red"}


def _cell(column: str, count: int) -> Text:
    return Text(str(count), _STYLES.get(column, "") if count else "dim")


Line = tuple[str, str]
"""A printed line: the prefix that names its task, and the text."""


_COLORS = re.compile(r"(\x1b\[[0-9;]*m)")
_MOVES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]")
"""Escape sequences that move the cursor, which are removed, and control characters."""


def _harmless(text: str) -> str:
    """Return text without control characters and escape sequences other than those of colors."""
    if "\x1b" not in text:
        return escaped(_MOVES.sub("", text))
    parts = _COLORS.split(text)
    parts[::2] = [escaped(_MOVES.sub("", part)) for part in parts[::2]]
    return "".join(parts)


class _Lines:
    """Rich renderable of printed lines. Color codes are not parsed, because parsing is slow.

    If a line overwrites itself, as a progress bar does, its last state is shown.
    """

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = lines

    def __rich_console__(self, *_: object) -> Iterator[Segment]:
        for prefix, text in self._lines:
            yield Segment(_harmless(prefix), _DIM)
            shown = _harmless(text.rstrip("\r").rpartition("\r")[2])
            yield Segment(f"{shown}\x1b[0m\n" if "\x1b" in shown else f"{shown}\n")


_DIM = Style(dim=True)


class Terminal:
    """Progress display on the terminal of standard error, erased when the `with` block ends.

    Args:
        draw: Function that returns the display's current content.
    """

    def __init__(self, draw: Callable[[], RenderableType]) -> None:
        self._console = Console(file=streams.real("stderr"))
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            get_renderable=draw,
        )

    def __enter__(self) -> None:
        self._live.start()
        self._console.show_cursor(True)  # it would stay hidden after `kill -9`

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def print(self, lines: Sequence[Line]) -> None:
        """Print lines above the display, all at once, because each call redraws the display."""
        if lines:
            self._console.print(_Lines(lines), crop=False)

    def draw(self) -> None:
        """Redraw the display with its current content."""
        self._live.refresh()


class Notebook:
    """Progress display in the output of the running notebook cell. It is not erased on exit.

    Args:
        draw: Function that returns the display's current content.
    """

    def __init__(self, draw: Callable[[], RenderableType]) -> None:
        self._draw = draw
        self._output = import_module("IPython.display").display(draw(), display_id=True)

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, *error: object) -> None:
        """Do nothing, so that the display remains."""

    def print(self, lines: Sequence[Line]) -> None:
        """Print lines of executables' output. The notebook itself shows the output of functions."""
        if lines:
            print("\n".join(f"{prefix}{text}" for prefix, text in lines), flush=True)  # noqa: T201

    def draw(self) -> None:
        """Redraw the display with its current content."""
        self._output.update(self._draw())


class Display:
    """Updater of the progress display. It has its own thread: writing to a terminal may block.

    The program's own output is printed above the display. Methods may be called from any thread.

    Args:
        screen: The terminal or notebook.
        busy: Function that returns True if the elapsed time must be updated even while no task
            changes its state.
    """

    def __init__(self, screen: Terminal | Notebook, busy: Callable[[], bool]) -> None:
        self._screen = screen
        self._busy = busy
        # Destructors and signal handlers may print while the lock is held.
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._lines: list[Line] = []
        self._partial = ""
        self._closed = False
        self._changes = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rhapsody progress", daemon=True)
        self._thread.start()
        if isinstance(screen, Terminal):
            streams.acquire()
            streams.terminal = self._write
        atexit.register(self.close)  # for programs that do not shut down their engine

    def changed(self, lines: Sequence[Line] = ()) -> None:
        """Schedule an update of the display, which first prints `lines` above it."""
        with self._lock:
            self._lines += lines
            closed = self._closed
        if closed:
            self._give_back()
        self._changes.set()

    def _write(self, text: str) -> bool:
        """Accept text that the program prints; each line is shown once it is complete.

        Returns:
            True if the text was accepted; False in a forked child, or if the display has ended.
        """
        if os.getpid() != self._pid:
            return False
        with self._lock:
            if self._closed:
                return False
            *lines, partial = (self._partial + text).split("\n")
            self._partial = partial[partial.rfind("\r", 0, -1) + 1 :]
            self._lines += [("", line) for line in lines]
        if lines:
            self._changes.set()
        return True

    def close(self) -> None:
        """Print the remaining lines and end the display.

        May block for up to `CLOSE_TIMEOUT` seconds. A second call, or a call in a forked child, has
        no effect.
        """
        atexit.unregister(self.close)
        if self._stopping.is_set() or os.getpid() != self._pid:
            return
        if self._partial:
            self._write("\n")
        self._stopping.set()
        self._changes.set()
        self._thread.join(CLOSE_TIMEOUT)
        self._give_back()
        if isinstance(self._screen, Terminal):
            streams.terminal = None
            streams.release()

    def _run(self) -> None:
        try:
            with self._screen:
                while not self._stopping.is_set():
                    self._changes.wait(CLOCK_INTERVAL if self._busy() else None)
                    self._changes.clear()
                    self._show()
                    self._stopping.wait(MIN_UPDATE_INTERVAL)
                self._show()
        except Exception as error:  # a closed terminal must not stop the program's output
            self._give_back()
            log.warning("progress display stopped: %s", describe_error(error))

    def _show(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
        try:
            self._screen.print(lines)
        except BaseException:
            with self._lock:
                self._lines[:0] = lines
            raise
        self._screen.draw()

    def _give_back(self) -> None:
        """Stop accepting text, and write the lines that were not shown to standard error."""
        with self._lock:
            self._closed = True
            lines, self._lines = self._lines, []
            rest, self._partial = self._partial, ""
        text = "".join(f"{prefix}{line}\n" for prefix, line in lines) + rest
        stream = streams.real("stderr")
        if text and stream is not None:
            with suppress(OSError, ValueError):  # the stream or its reader is closed
                stream.write(text)
                stream.flush()
