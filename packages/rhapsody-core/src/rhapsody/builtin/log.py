"""Plugin that logs the start and end of each task, if INFO is enabled."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rhapsody.errors import FailureKey
from rhapsody.plugins.specs import TaskCall, TaskEvent, hookimpl
from rhapsody.resources import duration_text
from rhapsody.states import TasksMainStates
from rhapsody.tracebacks import as_lines

log: logging.Logger = logging.getLogger("rhapsody.task")
"""Logger of tasks, at INFO, with `task_uid` and `task_name` in each record."""


@hookimpl
def rhapsody_observers() -> Sequence[object] | None:
    """Add the log to an engine if it is enabled."""
    return [TaskLog()] if log.isEnabledFor(logging.INFO) else None


MAX_KEYS = 1000
"""Maximum number of kinds of failures whose first one is logged with its last frames."""

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
        self._keys: set[FailureKey] = set()

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
        """Describe a failure. For the first one of its kind, add the last frames."""
        failure = event.failure
        if failure is None:
            return ""
        where = "" if failure.place is None else f" ({failure.place})"
        lines = [f": {failure.text}{where}", *failure.details()]
        if failure.key not in self._keys and len(self._keys) < MAX_KEYS:
            self._keys.add(failure.key)
            lines += as_lines(failure.frames)
        return "\n  ".join(lines)


def _duration(seconds: float) -> str:
    return duration_text(seconds) if seconds >= 1 else f"{1000 * seconds:.0f} ms"
