"""Observers that the options of an engine request, and the log of each task."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rhapsody.errors import JournalError, describe_error
from rhapsody.journal import JournalOption
from rhapsody.observers.account import duration
from rhapsody.observers.progress import Progress
from rhapsody.observers.trace import Profiler, Trace
from rhapsody.plugins.specs import TaskEvent, hookimpl
from rhapsody.states import TasksMainStates
from rhapsody.tracebacks import as_lines, last_frames, location_of

log: logging.Logger = logging.getLogger("rhapsody.task")
"""Logger of tasks, at INFO, with `task_uid` and `task_name` in each record."""

journal_log: logging.Logger = logging.getLogger("rhapsody.journal")

PLACES = 1000
"""Number of places of failures that are remembered, so that each is shown in full only once."""

_ENDS = {
    TasksMainStates.DONE: "done",
    TasksMainStates.FAILED: "failed",
    TasksMainStates.CANCELED: "cancelled",
}


class TaskLog:
    """Log of the starts and ends of tasks, if INFO is enabled when the engine is created.

    Attributes:
        calls: Calls with their arguments by uid, filled by the engine before their events.
    """

    def __init__(self) -> None:
        self.calls: dict[str, str] = {}
        self._began: dict[str, float] = {}
        self._places: set[tuple[str, str, str | None]] = set()

    @hookimpl
    def rhapsody_task_events(self, events: Sequence[TaskEvent]) -> None:
        """Log a batch of events."""
        for event in events:
            text = self._text(event)
            if text:
                call = self.calls.get(event.uid, event.name)
                extra = {"task_uid": event.uid, "task_name": event.name}
                log.info("%s %s: %s", event.uid, call, text, extra=extra)
            if event.state in _ENDS:
                self.calls.pop(event.uid, None)
                self._began.pop(event.uid, None)

    def _text(self, event: TaskEvent) -> str:
        state, attempt = event.state, event.attempt
        where = "" if event.backend is None else f" on {event.backend}"
        where += "" if event.worker is None else f" ({event.worker})"
        where += "" if attempt == 1 else f", attempt {attempt}"
        if state is TasksMainStates.RUNNING:
            self._began[event.uid] = event.monotonic
            return f"begins{where}"
        if state not in _ENDS:
            return ""
        began = self._began.get(event.uid)
        took = "" if began is None else f" after {_duration(event.monotonic - began)}"
        if state is TasksMainStates.FAILED:
            return f"failed{where}{took}{self._error(event)}"
        return event.native if event.native == "reused" else f"{_ENDS[state]}{took}"

    def _error(self, event: TaskEvent) -> str:
        """Return the error and its place, with the last frames for the first error of a place."""
        error = event.error
        if error is None:
            return ""
        place = (event.name, type(error).__name__, location_of(error))
        text = f": {describe_error(error)}"
        text += f" ({place[2]})" if place[2] else ""
        if place not in self._places and len(self._places) < PLACES:
            self._places.add(place)
            text = "\n  ".join([text, *as_lines(last_frames(error))])
        return text


def _duration(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else f"{1000 * seconds:.0f} ms"


class BuiltIn:
    """The observers of one engine that its options request.

    Args:
        trace: The file of the trace, `None` for no trace.
        progress: As in `WorkflowEngine.create`.
        journal: See `rhapsody.journal.JournalOption`.

    Attributes:
        observers: The requested observers.
        prof: Writes the program's own events to the trace.
        task_log: The observer that logs each task, if INFO is enabled.

    Raises:
        OSError: The trace cannot be written.
        JournalError: The journal cannot be used.
    """

    def __init__(
        self,
        trace: Path | None,
        progress: bool | Literal["lines"] | Progress,
        journal: JournalOption,
    ) -> None:
        if progress and not isinstance(progress, Progress):
            progress = Progress(lines=progress == "lines")
        self._progress = progress if isinstance(progress, Progress) else None
        self._ends_journal = callable(journal)
        self._journal = journal() if callable(journal) else journal
        self._trace = None if trace is None else Trace(trace)
        self.prof: Profiler = Profiler(self._trace)
        self.task_log: TaskLog | None = TaskLog() if log.isEnabledFor(logging.INFO) else None
        every = (self.task_log, self._journal, self._trace, self._progress)
        self.observers: list[object] = [each for each in every if each is not None]

    @property
    def shows_output(self) -> bool:
        """True if one of them shows the output of tasks."""
        return self._progress is not None and self._progress.shows_output

    @property
    def shows_failures(self) -> bool:
        """True if one of them lists the failures at the end."""
        return self._progress is not None

    def close(self, how: Literal["done", "failed", "interrupted"] = "failed") -> None:
        """Close the observers at the end of the run."""
        if self._journal is not None and self._ends_journal:
            try:
                self._journal.end(how)
            except JournalError as error:  # the results are recorded
                journal_log.error("%s", error)
        if self._progress is not None:
            self._progress.close()
        if self._trace is not None:
            self._trace.close()
