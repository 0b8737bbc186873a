"""Observers that engine options enable, among them the trace and the log of each task."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from rhapsody.errors import JournalError, describe_error
from rhapsody.journal import JournalOption
from rhapsody.masking import mask, mask_value, secrets_of
from rhapsody.observers.progress import Progress
from rhapsody.plugins.specs import ObservedEngine, TaskCall, TaskEvent, hookimpl
from rhapsody.resources import duration_text
from rhapsody.staging.fsutil import open_own
from rhapsody.states import TasksMainStates
from rhapsody.tracebacks import as_lines, last_frames, location_of

if TYPE_CHECKING:
    from rhapsody.history.recorder import Recorder

engine_log: logging.Logger = logging.getLogger("rhapsody.engine")

log: logging.Logger = logging.getLogger("rhapsody.task")
"""Logger of tasks, at INFO, with `task_uid` and `task_name` in each record."""


_FIELDS = ("name", "attempt", "native", "backend", "worker", "scope", "sandbox")


class Trace:
    """Writer of a file with all events of a run's tasks. Methods may be called from any thread.

    The file contains one JSON object per line, with the keys `time` (seconds since the epoch),
    `event` and `uid`. For a task, `event` is the state that it entered, and the other keys are the
    fields of `TaskEvent` that are set.

    An error while writing, such as a full disk, is logged once and ends the trace, not the run.

    Args:
        path: The file, which is created or replaced. Only the user can read it.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        descriptor = open_own(path, os.O_WRONLY | os.O_TRUNC)
        self._file: TextIO | None = os.fdopen(descriptor, "w", encoding="utf-8")

    @hookimpl
    def rhapsody_task_events(self, events: Sequence[TaskEvent]) -> None:
        """Write a batch of events."""
        self.write([_record(event) for event in events])

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write records without secrets; values that JSON cannot represent are written as text."""
        secrets = secrets_of()
        text = "".join(
            json.dumps(mask_value(record, secrets), default=lambda value: mask(str(value))) + "\n"
            for record in records
        )
        with self._lock:
            if self._file is None:
                return
            try:
                self._file.write(text)
                self._file.flush()
            except OSError as error:
                engine_log.error(
                    "trace %s: disabled, later events are lost (%s)",
                    self._path,
                    describe_error(error),
                )
                self._end()

    def close(self) -> None:
        """Close the file; later records are dropped."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:  # while writing its buffer
                engine_log.error(
                    "trace %s is incomplete: the file could not be closed (%s)",
                    self._path,
                    describe_error(error),
                )


def _record(event: TaskEvent) -> dict[str, Any]:
    record = {"time": event.time, "event": event.state, "uid": event.uid}
    values = ((name, getattr(event, name)) for name in _FIELDS)
    record |= {name: value for name, value in values if value is not None}
    if event.error is not None:
        record["error"] = describe_error(event.error)
    return record


class Profiler:
    """Writer of the program's own named events to the trace; without a trace it does nothing.

    Methods may be called from any thread.

    Args:
        trace: The trace; `None` to write nothing.
    """

    def __init__(self, trace: Trace | None = None) -> None:
        self._trace = trace

    @property
    def enabled(self) -> bool:
        """True if events are written."""
        return self._trace is not None

    def event(self, name: str, uid: str | None = None, **details: Any) -> None:
        """Write an event with the current time.

        Args:
            name: The event's name.
            uid: The uid of the event's task, if any.
            **details: Further values, which are written as JSON.
        """
        self._write(time.time(), name, uid, details)

    def prof(
        self,
        event: str,
        uid: str | None = None,
        state: str | None = None,
        msg: str | None = None,
        ts: float | None = None,
        comp: str | None = None,
    ) -> None:
        """Write an event. The parameters are those of the profiler in radical.utils.

        Args:
            event: The event's name.
            uid: The uid of the event's task, if any.
            state: The task's state, if any.
            msg: A message, if any.
            ts: The time in seconds since the epoch. Default: the current time.
            comp: The component, if any.
        """
        given = {"state": state, "msg": msg, "comp": comp}
        details = {name: value for name, value in given.items() if value is not None}
        self._write(time.time() if ts is None else ts, event, uid, details)

    def _write(self, when: float, event: str, uid: str | None, details: Mapping[str, Any]) -> None:
        if self._trace is not None:
            self._trace.write([{"time": when, "event": event, "uid": uid, **details}])


journal_log: logging.Logger = logging.getLogger("rhapsody.journal")

MAX_LOCATIONS = 1000
"""Maximum number of lines of code for which the last frames of the first failure are logged."""

_ENDS = {
    TasksMainStates.DONE: "done",
    TasksMainStates.FAILED: "failed",
    TasksMainStates.CANCELED: "canceled",
}


class TaskLog:
    """Observer that logs the start and end of each task. Created only if INFO is enabled."""

    def __init__(self) -> None:
        self._calls: dict[str, str] = {}
        self._began: dict[str, float] = {}
        self._places: set[tuple[str, str, str | None]] = set()

    @hookimpl
    def rhapsody_task_calls(self, calls: Sequence[TaskCall]) -> None:
        """Store the text of each call until its task ends."""
        self._calls.update((call.uid, call.call) for call in calls)

    @hookimpl
    def rhapsody_task_events(self, events: Sequence[TaskEvent]) -> None:
        """Log a batch of events."""
        for event in events:
            text = self._text(event)
            if text:
                call = self._calls.get(event.uid, event.name)
                extra = {"task_uid": event.uid, "task_name": event.name}
                log.info("%s %s: %s", event.uid, call, text, extra=extra)
            if event.state in _ENDS and not event.retried:
                self._calls.pop(event.uid, None)
            if event.state in _ENDS:
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
        if event.native == "fallback":
            return f"done by fallback, failed{where}{took}{self._error(event)}"
        return event.native if event.native == "reused" else f"{_ENDS[state]}{took}"

    def _error(self, event: TaskEvent) -> str:
        """Describe an error and its line of code. For a line's first error, add the last frames."""
        error = event.error
        if error is None:
            return ""
        place = (event.name, type(error).__name__, location_of(error))
        text = f": {describe_error(error)}"
        text += f" ({place[2]})" if place[2] else ""
        if place not in self._places and len(self._places) < MAX_LOCATIONS:
            self._places.add(place)
            text = "\n  ".join([text, *as_lines(last_frames(error))])
        return text


def _duration(seconds: float) -> str:
    return duration_text(seconds) if seconds >= 1 else f"{1000 * seconds:.0f} ms"


class BuiltIn:
    """The observers that the options of one engine enable.

    Args:
        trace: The path of the trace file, or `None` for no trace.
        progress: As in `WorkflowEngine.create`.
        journal: See `rhapsody.journal.JournalOption`.
        record: As in `WorkflowEngine.create`.

    Attributes:
        observers: The enabled observers.
        prof: The `Profiler`, which writes the program's own events to the trace.

    Raises:
        OSError: The trace cannot be written.
        JournalError: The journal cannot be used.
    """

    def __init__(
        self,
        trace: Path | None,
        progress: bool | Literal["lines"] | Progress,
        journal: JournalOption,
        record: bool | Path = False,
    ) -> None:
        if progress and not isinstance(progress, Progress):
            progress = Progress(lines=progress == "lines")
        self._progress = progress if isinstance(progress, Progress) else None
        self._ends_journal = callable(journal)
        self._journal = journal() if callable(journal) else journal
        self._trace = None if trace is None else Trace(trace)
        self._record: Recorder | None = None
        if record is not False:
            from rhapsody.history.recorder import Recorder

            self._record = Recorder(None if record is True else record)
        self.prof: Profiler = Profiler(self._trace)
        task_log = TaskLog() if log.isEnabledFor(logging.INFO) else None
        every = (task_log, self._journal, self._trace, self._record, self._progress)
        self.observers: list[object] = [each for each in every if each is not None]

    @property
    def journal(self) -> str:
        """The path of the journal, or an empty string."""
        return "" if self._journal is None else str(self._journal.path)

    @property
    def shows_output(self) -> bool:
        """True if one of the observers shows the output of tasks."""
        return self._progress is not None and self._progress.shows_output

    @property
    def shows_failures(self) -> bool:
        """True if one of the observers lists the failures at the end."""
        return self._progress is not None

    def open(self, engine: ObservedEngine) -> None:
        """Begin to record an engine that has started.

        Raises:
            OSError: The record cannot be written at the given path.
        """
        if self._record is not None:
            self._record.open(engine)

    def close(self, how: Literal["done", "failed", "interrupted"] = "failed") -> None:
        """Close the observers at the end of the run.

        Args:
            how: The outcome of the run, which the journal and the record contain.
        """
        if self._journal is not None and self._ends_journal:
            try:
                self._journal.end(how)
            except JournalError as error:  # the results themselves have been recorded
                journal_log.error("%s", error)
        if self._progress is not None:
            self._progress.close()
        if self._trace is not None:
            self._trace.close()
        if self._record is not None:
            self._record.close(how)
