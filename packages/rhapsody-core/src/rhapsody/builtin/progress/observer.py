"""Progress of a run on standard error, and the summary at its end."""

from __future__ import annotations

import asyncio
import builtins
import os
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from shutil import get_terminal_size
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from rhapsody.backends.programs import RERUN_SCRIPT
from rhapsody.builtin.progress.account import Counts, account, numbers
from rhapsody.context import running_task
from rhapsody.masking import escaped, mask
from rhapsody.plugins.specs import ObservedEngine, Summary, TaskEvent, hookimpl
from rhapsody.resources import duration_text
from rhapsody.sdk.runs import note_in_log

if TYPE_CHECKING:
    from rhapsody.builtin.progress.display import Display, Line

Place = Literal["terminal", "notebook"]

LINE_INTERVAL = 10.0
"""Seconds between two progress lines if there is no table."""

_taken = threading.Lock()
"""Lock that is held while a table is shown, because there can be only one at a time."""


MAX_PRINTED = 1 << 20
"""Maximum number of characters of a task's output that are shown."""


class Progress:
    """Observer that shows a run on standard error, as a live table or as lines at intervals.

    Args:
        lines: True to print lines even on a terminal or in a notebook.
        account: True to print the summary when the engine ends. Otherwise the caller prints it with
            `print_account`.

    Attributes:
        shows_output: True if the output of each task is printed above the table when the task ends.
        shows_failures: True, because the summary lists the failures.
    """

    shows_failures: bool = True

    def __init__(self, *, lines: bool = False, account: bool = True) -> None:
        place = None if lines else _place()
        self._shows_programs = (
            lines or place == "notebook"
        )  # the output of functions is shown in both cases anyway
        self._place = place if place is not None and _taken.acquire(blocking=False) else None
        self.shows_output: bool = self._place == "terminal"
        self._counts = Counts()
        self._prints = account
        self._account: list[str] = []
        self._display: Display | None = None
        self._began = monotonic()
        self._timer: asyncio.TimerHandle | None = None  # set only without a table

    @hookimpl
    def rhapsody_workflow_started(self, engine: ObservedEngine) -> None:
        """Draw the table, before any task prints."""
        if self._place is not None:
            self._display = self._open(engine, self._place)

    @hookimpl
    def rhapsody_task_events(self, engine: ObservedEngine, events: Sequence[TaskEvent]) -> None:
        """Count the events and show them."""
        self._counts.add(events)
        lines: list[Line] = []
        if (self.shows_output or self._shows_programs) and not engine.dry_run:
            lines = list(_printed(events, functions=self.shows_output))
        if self._display is not None:
            self._display.changed(lines)
            return
        if lines:  # there is no table, or it could not be opened
            _write([f"{prefix}{line}" for prefix, line in lines])
        if self._timer is None:
            self._timer = engine.loop.call_later(LINE_INTERVAL, self._print_line, engine.loop)

    @hookimpl
    def rhapsody_workflow_finished(self, engine: ObservedEngine, summary: Summary) -> None:
        """Erase the table, log the summary, and print it unless the caller prints it."""
        self.close()
        self._account = account(summary, self._counts, engine.work_dir)
        if self._account and not engine.dry_run:
            note_in_log(engine.work_dir, "\n".join(["summary of the run", *self._account]))
        if self._prints:
            self.print_account()

    @hookimpl
    def rhapsody_workflow_not_started(self) -> None:
        """Erase the table of an engine that could not be started."""
        self.close()

    def print_account(self) -> None:
        """Print the summary of a run that has ended. A second call prints nothing."""
        lines, self._account = self._account, []
        if lines and sys.stdout is not None:
            with suppress(OSError, ValueError):  # the interpreter reports it at exit
                sys.stdout.flush()  # the program's own output comes first
        _write([part for line in lines for part in _wrapped(line)])

    def close(self) -> None:
        """Erase the table, and stop printing progress lines."""
        if self._timer is not None:
            self._timer.cancel()
        display, self._display = self._display, None
        if display is not None:
            display.close()
        if self._place is not None:
            self._place = None
            _taken.release()

    def _print_line(self, loop: asyncio.AbstractEventLoop) -> None:
        """Print a line and schedule the next one, unless all tasks have ended."""
        every, self._timer = self._counts.all, None
        if every.ended < every.total:
            _write([self._line()])
            self._timer = loop.call_later(LINE_INTERVAL, self._print_line, loop)

    def _line(self) -> str:
        row = self._counts.all
        text = f"rhapsody: {numbers(self._counts)}, {row.running} running, {row.waiting} waiting"
        text += f" after {duration_text(monotonic() - self._began)}"
        failures = self._counts.failures.latest
        return f"{text}; last failure: {failures[-1].summary}" if failures else text

    def _open(self, engine: ObservedEngine, place: Place) -> Display:
        from rhapsody.builtin.progress.display import Display, Notebook, Picture, Terminal

        counts, backends = self._counts, list(engine.backends.values())
        draw = Picture(counts, lambda: _usage(backends)).draw
        screen = Terminal(draw) if place == "terminal" else Notebook(draw)
        return Display(screen, lambda: counts.all.running > 0)


def _printed(events: Sequence[TaskEvent], *, functions: bool) -> Iterator[Line]:
    """Yield the lines without secrets that tasks have printed, each with the task in a prefix.

    Args:
        events: The events of the tasks that ended.
        functions: True to include the output of functions.
    """
    for event in events:
        for printed in (event.stdout, event.stderr):
            if printed and (functions or event.kind == "executable"):
                prefix = f"{event.name} {event.uid.partition('.')[2]} | "
                if len(printed) > MAX_PRINTED:
                    yield prefix, f"[{len(printed) - MAX_PRINTED} characters are omitted here]"
                for line in mask(printed[-MAX_PRINTED:]).removesuffix("\n").split("\n"):
                    yield prefix, line


def _usage(backends: Sequence[Any]) -> tuple[float, int] | None:
    """Return the number of cores in use on all backends, and the total number of cores.

    The result is `None` if a backend does not report these numbers.
    """
    known = [backend.cores_in_use() for backend in backends if hasattr(backend, "cores_in_use")]
    known = [each for each in known if each is not None]
    if len(known) < len(backends):
        return None
    return sum(used for used, _ in known), sum(total for _, total in known)


def _place() -> Place | None:
    """Return where a live table can be shown; `None` if it cannot, or if called in a task."""
    if running_task() is not None:
        return None
    if hasattr(builtins, "__IPYTHON__"):
        shell: Any = sys.modules["IPython"].get_ipython()
        if shell is not None and shell.has_trait("kernel"):
            return "notebook"
    stream = sys.stderr
    if (
        stream is None
        or stream.closed
        or not stream.isatty()
        or os.environ.get("TERM", "dumb") == "dumb"
    ):
        return None
    return "terminal"


def _wrapped(line: str) -> list[str]:
    """Return a line as lines that fit on the terminal, broken between words.

    Commands that can be copied, and lines for anything but a terminal, stay as they are.
    """
    if sys.stderr is None or sys.stderr.closed or not sys.stderr.isatty() or RERUN_SCRIPT in line:
        return [line]
    width, indent = get_terminal_size().columns, " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _write(lines: Sequence[str]) -> None:
    stream = sys.stderr
    if stream is not None and lines:
        with suppress(OSError, ValueError):  # a full disk, or closed
            stream.write(escaped("\n".join(lines)) + "\n")
            stream.flush()
