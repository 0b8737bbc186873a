"""Shows what a run is doing, and at its end what has become of it."""

from __future__ import annotations

import asyncio
import builtins
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from rhapsody.context import running_task
from rhapsody.observers.account import Counts, account, duration, numbers
from rhapsody.plugins.specs import ObservedEngine, Summary, TaskEvent, hookimpl
from rhapsody.staging.runs import note_in_log

if TYPE_CHECKING:
    from rhapsody.observers.display import Display, Line

Place = Literal["terminal", "notebook"]

EVERY = 10.0
"""Seconds between two lines."""

_taken = threading.Lock()
"""Held by the one whose table is on the terminal."""


class Progress:
    """Shows a run on standard error: by a table there, or by a line now and then.

    Args:
        lines: Lines, on a terminal and in a notebook, too.
        account: Whether the account is printed when the engine ends; else by `print_account`.

    Attributes:
        shows_output: Whether what tasks print is shown above the table, whole, when they end.
    """

    def __init__(self, *, lines: bool = False, account: bool = True) -> None:
        place = None if lines else _place()
        self._shows_programs = lines or place == "notebook"  # what functions print is there already
        self._place = place if place is not None and _taken.acquire(blocking=False) else None
        self.shows_output: bool = self._place == "terminal"
        self._counts = Counts()
        self._prints = account
        self._account: list[str] = []
        self._display: Display | None = None
        self._began = monotonic()
        self._timer: asyncio.TimerHandle | None = None  # while tasks are open and there is no table

    @hookimpl
    def rhapsody_workflow_started(self, engine: ObservedEngine) -> None:
        """Begins to draw the table, before any task prints."""
        if self._place is not None:
            self._display = self._open(engine, self._place)

    @hookimpl
    def rhapsody_task_events(self, engine: ObservedEngine, events: Sequence[TaskEvent]) -> None:
        """Counts what happened, and shows it."""
        self._counts.add(events)
        lines: list[Line] = []
        if (self.shows_output or self._shows_programs) and not engine.dry_run:
            lines = list(_printed(events, functions=self.shows_output))
        if self._display is not None:
            self._display.changed(lines)
            return
        if lines:  # in place of a table, or it could not be opened
            _write([f"{whose}{line}" for whose, line in lines])
        if self._timer is None:
            self._timer = engine.loop.call_later(EVERY, self._tell, engine.loop)

    @hookimpl
    def rhapsody_workflow_finished(self, engine: ObservedEngine, summary: Summary) -> None:
        """Takes the table away, and gives the account."""
        self.close()
        self._account = account(summary, self._counts, engine.work_dir)
        if self._account and not engine.dry_run:
            note_in_log(engine.work_dir, "\n".join(["summary of the run", *self._account]))
        if self._prints:
            self.print_account()

    def print_account(self) -> None:
        """Prints the account of a run that has ended, once."""
        lines, self._account = self._account, []
        if lines and sys.stdout is not None:
            with suppress(OSError, ValueError):  # who closes it in the end says so
                sys.stdout.flush()  # what the program has printed comes first
        _write(lines)

    def close(self) -> None:
        """Takes the table away."""
        if self._timer is not None:
            self._timer.cancel()
        display, self._display = self._display, None
        if display is not None:
            display.close()
        if self._place is not None:
            self._place = None
            _taken.release()

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        """Writes a line, and the next one later where tasks are open."""
        every, self._timer = self._counts.all, None
        if every.ended < every.total:
            _write([self._line()])
            self._timer = loop.call_later(EVERY, self._tell, loop)

    def _line(self) -> str:
        row = self._counts.all
        text = f"rhapsody: {numbers(self._counts)}, {row.running} running, {row.waiting} waiting"
        text += f" after {duration(monotonic() - self._began)}"
        failures = self._counts.failures.latest
        return f"{text}; last failure: {failures[-1].summary}" if failures else text

    def _open(self, engine: ObservedEngine, place: Place) -> Display:
        from rhapsody.observers.display import Display, Notebook, Picture, Terminal

        counts, backends = self._counts, list(engine.backends.values())
        draw = Picture(counts, lambda: _usage(backends)).draw
        screen = Terminal(draw) if place == "terminal" else Notebook(draw)
        return Display(screen, lambda: counts.all.running > 0)


def _printed(events: Sequence[TaskEvent], *, functions: bool) -> Iterator[Line]:
    """What tasks that have ended have printed, each line led by its task.

    Args:
        events: What happened.
        functions: Whether to give what functions have printed as well.
    """
    for event in events:
        for printed in (event.stdout, event.stderr):
            if printed and (functions or event.kind == "executable"):
                whose = f"{event.name} {event.uid.partition('.')[2]} | "
                for line in printed.removesuffix("\n").split("\n"):
                    yield whose, line


def _usage(backends: Sequence[Any]) -> tuple[float, int] | None:
    """How many cores tasks use and how many there are, on all backends together."""
    known = [backend.cores_in_use() for backend in backends if hasattr(backend, "cores_in_use")]
    known = [each for each in known if each is not None]
    if len(known) < len(backends):
        return None
    return sum(used for used, _ in known), sum(there for _, there in known)


def _place() -> Place | None:
    """Where a table can be kept up to date, `None` for nowhere: in a task there is one already."""
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


def _write(lines: Sequence[str]) -> None:
    stream = sys.stderr
    if stream is not None and lines:
        with suppress(OSError, ValueError):  # a full disk, a pipe that nobody reads, or closed
            stream.write("\n".join(lines) + "\n")
            stream.flush()
