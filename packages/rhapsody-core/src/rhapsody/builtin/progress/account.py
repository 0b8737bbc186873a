"""Summary of a run as text: the counts of its tasks, groups of similar failures, and results."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rhapsody.data import SavedFile
from rhapsody.errors import (
    DependencyFailureError,
    FailureKey,
    InsufficientWalltimeError,
)
from rhapsody.failures import MAX_LISTED, FailureGroups
from rhapsody.history.values import shown
from rhapsody.plugins.specs import Summary, TaskEvent
from rhapsody.resources import duration_text, size_text
from rhapsody.sdk.runs import BASE, LOG, RECORD
from rhapsody.states import TasksMainStates

PENDING, RUNNING = TasksMainStates.PENDING, TasksMainStates.RUNNING
DONE, FAILED = TasksMainStates.DONE, TasksMainStates.FAILED
CANCELED = TasksMainStates.CANCELED


@dataclass(slots=True)
class Row:
    """Numbers of tasks with one name, by state.

    Attributes:
        total: Number of tasks that were called.
        running: Number of tasks that are running.
        done: Number of tasks that succeeded.
        failed: Number of tasks that failed, except those counted as held or skipped.
        held: Number of tasks that were held back, because their backend would have ended too early.
        skipped: Number of tasks that did not run because a task that they depend on failed.
        cancelled: Number of tasks that were canceled.
        fallbacks: Number of tasks in `done` whose result is the fallback.
    """

    total: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    held: int = 0
    skipped: int = 0
    cancelled: int = 0
    fallbacks: int = 0

    @property
    def ended(self) -> int:
        """The number of tasks that have ended in any way."""
        return self.done + self.failed + self.held + self.skipped + self.cancelled

    @property
    def waiting(self) -> int:
        """The number of tasks that have neither started nor ended."""
        return self.total - self.running - self.ended


class Counts:
    """Counts of the tasks and blocks of a run.

    Attributes:
        rows: The counts for each task name, in the order of the first calls.
        held: The tasks that were held back: their names and the reasons, by uid.
        failures: The failures, in groups.
        fallbacks: The failures that fallbacks replaced, in groups.
    """

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.held: dict[str, tuple[str, InsufficientWalltimeError]] = {}
        self._running: set[str] = set()
        self.failures: FailureGroups = FailureGroups()
        self.fallbacks: FailureGroups = FailureGroups()
        self._failed: dict[str, FailureKey] = {}

    @property
    def all(self) -> Row:
        """The counts of all tasks together."""
        rows = list(self.rows.values())
        return Row(*(sum(getattr(row, name) for row in rows) for name in Row.__slots__))

    def add(self, events: Iterable[TaskEvent]) -> None:
        """Count the events of a batch."""
        for event in events:
            row = self.rows.get(event.name)
            if row is None:
                row = self.rows[event.name] = Row()
            if event.state is PENDING:
                row.total += 1
                continue
            uid = event.uid
            if uid in self._failed:  # another attempt follows
                self.failures.discard(self._failed.pop(uid), uid)
                row.failed -= 1
            elif self.held.pop(uid, None) is not None:  # another backend takes it
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
            if event.native == "fallback":
                row.fallbacks += 1
                assert event.failure is not None
                self.fallbacks.add(event.failure)
        elif event.state is CANCELED:
            row.cancelled += 1
        elif isinstance(event.error, DependencyFailureError):
            row.skipped += 1
        elif isinstance(event.error, InsufficientWalltimeError):
            row.held += 1
            self.held[event.uid] = f"{event.name} ({event.uid})", event.error
        else:
            row.failed += 1
            assert event.failure is not None
            self._failed[event.uid] = self.failures.add(event.failure)


_ENDS = frozenset({DONE, FAILED, CANCELED})


LARGE_DISK_USE = 10**9
"""Number of bytes above which the disk use of the runs is shown."""


def account(summary: Summary, counts: Counts, directory: Path) -> list[str]:
    """Return the lines of the summary that is printed at the end, the most important last.

    The list is empty if no task was called. Results are listed in this order: those with a
    destination, those in the engine's directory, and those that other tasks read.

    Args:
        summary: The engine's summary.
        counts: The counts of the engine's tasks.
        directory: The engine's directory. If its parent is directly in `.rhapsody`, this parent is
            the run's directory; otherwise, the engine's directory is. The lines name the run's
            directory if it contains more than its lock, its log and its record.
    """
    if not counts.rows:
        return []

    def order(file: SavedFile) -> tuple[bool, bool]:
        return file.intermediate, directory in file.path.parents

    lines = _listed("results", sorted(summary.results, key=order))
    lines += _listed("stale, from an earlier run", summary.stale)
    lines += _listed("missing, of reused tasks; --rerun writes them again", summary.missing)
    replaced = [f"  {group.summary}" for group in counts.fallbacks.latest[-MAX_LISTED:]]
    lines += ["done by fallback after:"] * bool(replaced) + replaced
    failures = counts.failures.lines()
    lines += ["failed:"] * bool(failures) + [f"  {line}" for line in failures]
    lines += _held_back(counts)
    run = directory.parent if directory.parent.parent.name == BASE else directory
    if _holds_files(run):
        count = sum(run in file.path.parents for file in summary.results)
        some = f", including {count} result{'s' * (count != 1)}" if count else ""
        lines.append(f"the run's files{some}: {shown(run)}")
    if summary.disk_use > LARGE_DISK_USE:
        base = run.parent if run is not directory else directory
        hint = ": rhapsody clean removes old files except results" if base.name == BASE else ""
        lines.append(f"{size_text(summary.disk_use)} in {shown(base)}{hint}")
    how = numbers(counts, summary.stats.retried, summary.stats.recorded)
    return [*lines, f"rhapsody: {how} in {duration_text(summary.seconds)}"]


def _holds_files(directory: Path) -> bool:
    """Return True if a run's directory contains more than its lock, its log and its record."""
    try:
        names = set(os.listdir(directory)) - {LOG, RECORD}
        return any(not name.startswith(".") for name in names)
    except OSError:
        return False


def numbers(counts: Counts, retried: int = 0, reused: int = 0) -> str:
    """Return text with the number of tasks for each outcome, omitting zeros except for `done`."""
    row = counts.all
    others = {
        "failed": row.failed,
        "held back": row.held,
        "skipped": row.skipped,
        "canceled": row.cancelled,
        "retried": retried,
    }
    parts = [f"{reused} of them reused"] if reused else []
    parts += [f"{row.fallbacks} by fallback"] if row.fallbacks else []
    done = f"{row.done} done ({', '.join(parts)})" if parts else f"{row.done} done"
    return ", ".join([done, *(f"{n} {word}" for word, n in others.items() if n)])


def _held_back(counts: Counts) -> list[str]:
    """Return a line for each backend that had too little walltime left for some tasks."""
    lines = []
    for backend in dict.fromkeys(error.backend for _, error in counts.held.values()):
        held = [each for each in counts.held.values() if each[1].backend == backend]
        one, (name, error) = len(held) == 1, held[0]
        which = name if one else f"the first of them, {name},"
        lines.append(
            f"{len(held)} {'task was' if one else 'tasks were'} held back: {backend!r} had "
            f"{duration_text(error.left)} left, but {which} needs {duration_text(error.needs)}"
        )
    return lines


def _listed(title: str, files: Sequence[SavedFile]) -> list[str]:
    """Return lines that list files, or the first of many files; none if there are no files."""
    if not files:
        return []
    lines = [f"{title} ({len(files)}):"]
    for file in files[:MAX_LISTED]:
        slash = "/" * file.path.is_dir()
        lines.append(f"  {shown(file.path)}{slash}  ({file.task}, {file.uid})")
    more = len(files) - MAX_LISTED
    return lines + [f"  ... and {more} more"] * (more > 0)
