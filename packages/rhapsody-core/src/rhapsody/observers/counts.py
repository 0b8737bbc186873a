"""Counts tasks by their names and states, from the events that observers get."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rhapsody.errors import DependencyFailureError, InsufficientWalltimeError, is_a
from rhapsody.observers.failure_groups import FailureGroups, Key
from rhapsody.plugins.specs import TaskEvent
from rhapsody.states import TasksMainStates

PENDING, RUNNING = TasksMainStates.PENDING, TasksMainStates.RUNNING
DONE, FAILED = TasksMainStates.DONE, TasksMainStates.FAILED
CANCELED = TasksMainStates.CANCELED


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
        failures: The failures, equal ones together.
    """

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.held: dict[str, HeldBack] = {}
        self._running: set[str] = set()
        self.failures: FailureGroups = FailureGroups()
        self._failed: dict[str, Key] = {}

    @property
    def all(self) -> Row:
        """The counts of all tasks together."""
        rows = list(self.rows.values())
        return Row(*(sum(getattr(row, name) for row in rows) for name in Row.__slots__))

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
                self.failures.discard(self._failed.pop(uid), uid)
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
        elif is_a(event.error, InsufficientWalltimeError):
            row.held += 1
            name, error = f"{event.name} ({event.uid})", event.error
            self.held[event.uid] = HeldBack(name, error.backend, error.needs, error.left)
        else:
            row.failed += 1
            self._failed[event.uid] = self.failures.add(
                event.name, event.uid, event.error, attempt=event.attempt, sandbox=event.sandbox
            )


_ENDS = frozenset({DONE, FAILED, CANCELED})
