"""Plugin that writes the events of tasks to a file: the engine option `trace`."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rhapsody.builtin.paths import checked_path
from rhapsody.errors import describe_error
from rhapsody.fsutil import lock_file, open_own
from rhapsody.masking import mask, mask_value, secrets_of
from rhapsody.plugins.specs import EngineOption, Summary, TaskEvent, UsageError, hookimpl

log: logging.Logger = logging.getLogger("rhapsody.engine")


@hookimpl
def rhapsody_engine_options() -> Sequence[EngineOption]:
    """Declare the option `trace`."""
    return [
        EngineOption(
            name="trace",
            help="File for the events of all tasks, and for those that the program passes to "
            "`prof`, as JSON lines. Only its owner can read it; an existing file is replaced.",
            check=lambda value: checked_path("trace", value),
            is_path=True,
        )
    ]


@hookimpl
def rhapsody_observers(engine_options: Mapping[str, Any]) -> Sequence[object] | None:
    """Add the writer to an engine with the option."""
    path = engine_options["trace"]
    if path is None:
        return None
    try:
        return [Trace(path)]
    except BlockingIOError:
        text = f"trace: another engine is writing {path}; pass another path for each engine"
        raise UsageError(text) from None
    except OSError as error:
        raise UsageError(f"trace: {describe_error(error)}") from error


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
        BlockingIOError: Another engine is writing the file.
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        descriptor = open_own(path, os.O_WRONLY)
        self._file: TextIO | None = os.fdopen(descriptor, "w", encoding="utf-8")
        try:
            lock_file(descriptor)
            if os.fstat(descriptor).st_size:
                os.ftruncate(descriptor, 0)
        except BaseException:
            self._file.close()
            raise

    @hookimpl
    def rhapsody_task_events(self, events: Sequence[TaskEvent]) -> None:
        """Write a batch of events."""
        self.write([_record(event) for event in events])

    @hookimpl
    def rhapsody_program_event(
        self, time: float, name: str, uid: str | None, details: Mapping[str, Any]
    ) -> None:
        """Write an event of the program."""
        self.write([{"time": time, "event": name, "uid": uid, **details}])

    @hookimpl(trylast=True)
    def rhapsody_workflow_finished(self, summary: Summary) -> None:
        """Close the file."""
        self.close()

    @hookimpl
    def rhapsody_workflow_not_started(self) -> None:
        """Close the file of an engine that could not be started."""
        self.close()

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
                log.error(
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
                log.error(
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
