"""The picture of a run that is kept up to date on a terminal or in a notebook."""

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

from rhapsody.errors import describe_error
from rhapsody.observers.account import Counts, Row, duration
from rhapsody.sdk.capture import streams

log: logging.Logger = logging.getLogger("rhapsody.progress")

PAUSE = 0.25
"""Seconds between two pictures, at least."""

TICK = 1.0
"""Seconds between two pictures while tasks run and nothing happens, for the clock in it."""

PATIENCE = 5.0
"""Seconds that the end of a run waits for a terminal that takes nothing."""

FAILURES = 3
"""How many failures are shown."""

BESIDE = 12
"""Lines of the terminal that are left for all else than the names of tasks."""

OVER = 10.0
"""Seconds that the rate is measured over."""


class Picture:
    """What is seen of a run.

    Args:
        counts: What has become of its tasks.
        usage: How many cores tasks use and how many there are, `None` where that is not known.
    """

    def __init__(self, counts: Counts, usage: Callable[[], tuple[float, int] | None]) -> None:
        self._counts = counts
        self._usage = usage
        self._began = monotonic()
        self._ended: deque[tuple[float, int]] = deque([(self._began, 0)])

    def draw(self) -> RenderableType:
        """The picture as it is now."""
        every = self._counts.all
        picture = Table.grid()
        picture.add_column(max_width=get_terminal_size().columns - 3)  # Ctrl-C's ^C has room
        if not every.total:
            return picture
        picture.add_row(self._table(every))
        for failure in self._counts.failures.latest[-FAILURES:]:
            text = Text.assemble(("failed: ", "bold red"), failure.summary)
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
            table.add_column(name, justify="right", no_wrap=True, min_width=7)
        rows = list(self._counts.rows.items())
        shown = _most_telling(rows, max(4, get_terminal_size().lines - BESIDE))
        for name, row in shown:
            cells = [_cell(column, getattr(row, column)) for column in columns]
            table.add_row(Text(name), *cells)
        if len(rows) > len(shown):
            table.add_row(Text(f"and {len(rows) - len(shown)} more names", "dim"))
        return table

    def _bar(self, every: Row) -> Table:
        words = [f"{every.ended} of {every.total}", f"{self._rate(every.ended):.3g} a second"]
        usage = self._usage()
        if usage is not None:
            words.append(f"{usage[0]:g} of {usage[1]:g} cores in use")
        words.append(duration(monotonic() - self._began))
        line = Table.grid(padding=(0, 1))
        line.add_row(
            ProgressBar(
                total=max(every.total, 1), completed=every.ended, width=20, complete_style="green"
            ),
            Text(", ".join(words), no_wrap=True, overflow="ellipsis"),
        )
        return line

    def _rate(self, ended: int) -> float:
        """How many tasks ended in a second, of late."""
        now, times = monotonic(), self._ended
        times.append((now, ended))
        while len(times) > 2 and times[0][0] < now - OVER:
            times.popleft()
        (first, before), (last, after) = times[0], times[-1]
        return (after - before) / max(last - first, 0.1)


def _most_telling(rows: list[tuple[str, Row]], room: int) -> list[tuple[str, Row]]:
    """The rows that are shown, in their order: where something happens or failed, then others."""

    def weight(number: int) -> tuple[bool, bool, bool, bool]:
        row = rows[number][1]
        begun = row.ended > 0
        return row.running > 0, row.failed > 0, begun and row.waiting > 0, begun

    best = sorted(range(len(rows)), key=weight, reverse=True)[:room]
    return [rows[number] for number in sorted(best)]


_STYLES = {"running": "bold", "done": "green", "failed": "bold red", "skipped": "red"}


def _cell(column: str, count: int) -> Text:
    return Text(str(count), _STYLES.get(column, "") if count else "dim")


Line = tuple[str, str]
"""A line of what was printed: whose it is, and its text."""


_MOVES = re.compile(r"\x1b(?!\[[0-9;]*m)(\[[0-?]*[ -/]*[@-~])?|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]")
"""What would move the cursor, or worse; colours are left."""


class _Lines:
    """Lines as they were printed, for rich: reading the colours in them costs more than all else.

    Of a line that is written over itself, as progress bars are, the last.
    """

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = lines

    def __rich_console__(self, *_: object) -> Iterator[Segment]:
        for whose, text in self._lines:
            yield Segment(_MOVES.sub("", whose), _DIM)
            shown = _MOVES.sub("", text.rstrip("\r").rpartition("\r")[2])
            yield Segment(f"{shown}\x1b[0m\n" if "\x1b" in shown else f"{shown}\n")


_DIM = Style(dim=True)


class Terminal:
    """The terminal at standard error; the picture goes away in the end.

    Args:
        draw: Gives the picture.
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
        self._console.show_cursor(True)  # nobody would show it again after `kill -9`

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def print(self, lines: Sequence[Line]) -> None:
        """Shows lines above the picture, all at once: it is written again with each print."""
        if lines:
            self._console.print(_Lines(lines), crop=False)

    def draw(self) -> None:
        """Draws the picture as it is now."""
        self._live.refresh()


class Notebook:
    """An output of the cell that runs; the last picture stays.

    Args:
        draw: Gives the picture.
    """

    def __init__(self, draw: Callable[[], RenderableType]) -> None:
        self._draw = draw
        self._output = import_module("IPython.display").display(draw(), display_id=True)

    def __enter__(self) -> None:
        """Does nothing: it is there from the beginning."""

    def __exit__(self, *error: object) -> None:
        """Does nothing: it stays."""

    def print(self, lines: Sequence[Line]) -> None:
        """Prints lines as the program does: what functions print is in the notebook already."""
        if lines:
            print("\n".join(f"{whose}{text}" for whose, text in lines), flush=True)  # noqa: T201

    def draw(self) -> None:
        """Draws the picture as it is now."""
        self._output.update(self._draw())


class Display:
    """Keeps the picture up to date, on a thread of its own: a terminal may stop taking text.

    What the program prints meanwhile is shown above the picture, too. Any thread.

    Args:
        screen: Where it is drawn.
        busy: Whether the picture changes although nothing happens, as time passes.
    """

    def __init__(self, screen: Terminal | Notebook, busy: Callable[[], bool]) -> None:
        self._screen = screen
        self._busy = busy
        # What runs under it may print: a destructor, or the handler of a signal.
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._lines: list[Line] = []
        self._begun = ""
        self._gone = False
        self._news = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rhapsody progress", daemon=True)
        self._thread.start()
        if isinstance(screen, Terminal):
            streams.acquire()
            streams.terminal = self._write
        atexit.register(self.close)  # for programs that leave their engine as it is

    def changed(self, lines: Sequence[Line] = ()) -> None:
        """Draws the picture anew, soon, with some lines above it."""
        with self._lock:
            self._lines += lines
            gone = self._gone
        if gone:
            self._give_back()
        self._news.set()

    def _write(self, text: str) -> bool:
        """Takes what the program prints; the line that it is in is shown when it is whole.

        Returns:
            `False` where there is no picture: it has gone, or this is a forked child.
        """
        if os.getpid() != self._pid:
            return False
        with self._lock:
            if self._gone:
                return False
            *lines, begun = (self._begun + text).split("\n")
            self._begun = begun[begun.rfind("\r", 0, -1) + 1 :]
            self._lines += [("", line) for line in lines]
        if lines:
            self._news.set()
        return True

    def close(self) -> None:
        """Takes the picture away, after all that was printed; blocks for a moment.

        Twice is harmless, and so is a call in a forked child.
        """
        atexit.unregister(self.close)
        if self._over.is_set() or os.getpid() != self._pid:
            return
        if self._begun:
            self._write("\n")
        self._over.set()
        self._news.set()
        self._thread.join(PATIENCE)
        self._give_back()
        if isinstance(self._screen, Terminal):
            streams.terminal = None
            streams.release()

    def _run(self) -> None:
        try:
            with self._screen:
                while not self._over.is_set():
                    self._news.wait(TICK if self._busy() else None)
                    self._news.clear()
                    self._show()
                    self._over.wait(PAUSE)
                self._show()
        except Exception as error:  # the terminal may be gone; nobody else's text goes with it
            self._give_back()
            log.warning("the progress of the run is not shown any more: %s", describe_error(error))

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
        """Takes no more text; what was not shown goes to the terminal as it is."""
        with self._lock:
            self._gone = True
            lines, self._lines = self._lines, []
            rest, self._begun = self._begun, ""
        text = "".join(f"{whose}{line}\n" for whose, line in lines) + rest
        stream = streams.real("stderr")
        if text and stream is not None:
            with suppress(OSError, ValueError):  # it is closed, or nobody reads
                stream.write(text)
                stream.flush()
