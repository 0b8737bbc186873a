"""Trace of a run: a file with all events of its tasks, for performance analysis.

It has JSON lines, each with `time` in seconds since the epoch, `event` and `uid`. For a task,
`event` is the state that it entered, and the other keys are the fields of `TaskEvent` that are set.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rhapsody.errors import describe_error
from rhapsody.plugins.specs import TaskEvent, hookimpl

log: logging.Logger = logging.getLogger("rhapsody.engine")

_FIELDS = ("name", "attempt", "native", "backend", "worker", "scope", "sandbox")


class Trace:
    """Writer of a trace. Methods may be called from any thread.

    An error while writing, such as a full disk, is logged once and ends the trace, not the run.

    Args:
        path: The file, which is created or replaced, private to the user.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._file: TextIO | None = os.fdopen(descriptor, "w", encoding="utf-8")

    @hookimpl
    def rhapsody_task_events(self, events: Sequence[TaskEvent]) -> None:
        """Write a batch of events."""
        self.write([_record(event) for event in events])

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write records; values that JSON has no form for are written as text."""
        text = "".join(json.dumps(record, default=str) + "\n" for record in records)
        with self._lock:
            if self._file is None:
                return
            try:
                self._file.write(text)
                self._file.flush()
            except OSError as error:
                log.error("%s: the trace ends here: %s", self._path, describe_error(error))
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
                log.error("%s: the trace is incomplete: %s", self._path, describe_error(error))


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
        trace: The trace.
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
            uid: The uid of its task, if any.
            **details: Values for JSON.
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
        """Write an event, with the arguments of radical.utils.

        Args:
            event: The event's name.
            uid: The uid of its task, if any.
            state: The task's state.
            msg: A message.
            ts: The time in seconds since the epoch; default: now.
            comp: The component.
        """
        given = {"state": state, "msg": msg, "comp": comp}
        details = {name: value for name, value in given.items() if value is not None}
        self._write(time.time() if ts is None else ts, event, uid, details)

    def _write(self, when: float, event: str, uid: str | None, details: Mapping[str, Any]) -> None:
        if self._trace is not None:
            self._trace.write([{"time": when, "event": event, "uid": uid, **details}])
