"""Counts tasks by their names and states, from the events that observers get."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from textwrap import dedent

from rhapsody.errors import (
    DependencyFailureError,
    TaskHeldBackError,
    describe_error,
    first_call,
    is_a,
    text_of,
    vars_of,
)
from rhapsody.plugins.specs import TaskEvent
from rhapsody.states import TasksMainStates

PENDING, RUNNING = TasksMainStates.PENDING, TasksMainStates.RUNNING
DONE, FAILED = TasksMainStates.DONE, TasksMainStates.FAILED
CANCELED = TasksMainStates.CANCELED

LAST = 20
"""How many failures are kept, the newest ones."""


@dataclass(slots=True)
class Row:
    """How many tasks of one name there are, and of them, how many in which state.

    Attributes:
        total: All that were called.
        held: Those that were held back, as their backend ends before they would.
        skipped: Those that did not run, because one that they depend on has failed.
    """

    total: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    held: int = 0
    skipped: int = 0
    cancelled: int = 0

    @property
    def ended(self) -> int:
        """How many have ended, in whatever way."""
        return self.done + self.failed + self.held + self.skipped + self.cancelled

    @property
    def waiting(self) -> int:
        """How many have neither ended nor begun."""
        return self.total - self.running - self.ended


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that has failed.

    Attributes:
        name: Its name.
        uid: Its uid.
        call: The call as it stands in the program, shortened, and the uid.
        error: Its exception in words.
        sandbox: The directory that it ran in, where it had one.
        attempt: Which attempt it was, from 1.
        stdout: The end of what it wrote to standard output, as its exception's note has it.
    """

    name: str
    uid: str
    call: str
    error: str
    sandbox: str | None
    attempt: int
    stdout: str


@dataclass(frozen=True, slots=True)
class HeldBack:
    """A task that was held back, in seconds.

    Attributes:
        name: The task's name and uid.
        backend: The backend that ends too soon.
        needs: How long it takes.
        left: How long the backend had left.
    """

    name: str
    backend: str
    needs: float
    left: float


class Counts:
    """What has become of the tasks and blocks of a run so far.

    Attributes:
        rows: The counts by the tasks' names, in the order of their first calls.
        held: The tasks that were held back, by their uids.
    """

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.held: dict[str, HeldBack] = {}
        self._running: set[str] = set()
        self._failed: set[str] = set()
        self._last: dict[str, Failure] = {}

    @property
    def all(self) -> Row:
        """The counts of all tasks together."""
        rows = list(self.rows.values())
        return Row(*(sum(getattr(row, name) for row in rows) for name in Row.__slots__))

    @property
    def failures(self) -> list[Failure]:
        """The last tasks that have failed, oldest first."""
        return list(self._last.values())

    def add(self, events: Iterable[TaskEvent]) -> None:
        """Counts what happened."""
        for event in events:
            row = self.rows.get(event.name)
            if row is None:
                row = self.rows[event.name] = Row()
            if event.state is PENDING:
                row.total += 1
                continue
            uid = event.uid
            if uid in self._failed:  # that was an attempt, and here is the next one
                self._failed.discard(uid)
                self._last.pop(uid, None)
                row.failed -= 1
            elif self.held.pop(uid, None) is not None:  # it waits for another backend after all
                row.held -= 1
            if event.state is RUNNING:
                row.running += 1
                self._running.add(uid)
            elif event.state in _ENDS:
                if uid in self._running:
                    self._running.discard(uid)
                    row.running -= 1
                self._end(row, event)

    def _end(self, row: Row, event: TaskEvent) -> None:
        if event.state is DONE:
            row.done += 1
        elif event.state is CANCELED:
            row.cancelled += 1
        elif is_a(event.error, DependencyFailureError):
            row.skipped += 1
        elif is_a(event.error, TaskHeldBackError):
            row.held += 1
            name, error = f"{event.name} ({event.uid})", event.error
            self.held[event.uid] = HeldBack(name, error.backend, error.needs, error.left)
        else:
            row.failed += 1
            self._failed.add(event.uid)
            call, own = first_call(event.error), f"({event.uid})"
            if call is None or not (event.uid.startswith("block.") or call.endswith(own)):
                call = f"{event.name} {own}"  # others have raised that exception, too
            self._last[event.uid] = Failure(
                event.name,
                event.uid,
                call,
                _in_words(event),
                event.sandbox,
                event.attempt,
                _stdout(event.error),
            )
            if len(self._last) > LAST:
                del self._last[next(iter(self._last))]


def _stdout(error: BaseException | None) -> str:
    """What the note on an exception says of standard output, in which secrets are hidden."""
    notes = None if error is None else vars_of(error).get("__notes__")
    for note in notes if type(notes) is list else ():
        _, found, rest = str(note).partition("  standard output ended with:\n")
        if found:
            return dedent(rest.partition("\n  standard error ended with:\n")[0])
    return ""


def _in_words(event: TaskEvent) -> str:
    """The error of a task, without the name of the task, which some of ours begin with."""
    if event.error is None:
        return ""
    text = text_of(event.error)
    for kind in ("task", "service"):
        own = f"{kind} {event.name!r} ({event.uid}) "
        if text.startswith(own):
            return text.removeprefix(own)
    return describe_error(event.error)


_ENDS = frozenset({DONE, FAILED, CANCELED})
