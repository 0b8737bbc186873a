"""Ordinary log records of the begin and the end of each task."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rhapsody.errors import describe_error
from rhapsody.plugins.specs import TaskEvent, hookimpl
from rhapsody.states import TasksMainStates

log: logging.Logger = logging.getLogger("rhapsody.task")
"""Where they go, at INFO, with `task_uid` and `task_name` in each record."""


class TaskLog:
    """Logs that tasks begin and end. An engine has one where INFO is enabled when it is made."""

    @hookimpl
    def rhapsody_task_events(self, events: Sequence[TaskEvent]) -> None:
        """Logs what happened."""
        for event in events:
            text = _text(event)
            if text:
                extra = {"task_uid": event.uid, "task_name": event.name}
                log.info("%s %s: %s", event.uid, event.name, text, extra=extra)


def _text(event: TaskEvent) -> str:
    state, attempt = event.state, event.attempt
    where = "" if event.backend is None else f" on {event.backend}"
    where += "" if event.worker is None else f" ({event.worker})"
    where += "" if attempt == 1 else f", attempt {attempt}"
    if state is TasksMainStates.RUNNING:
        return f"begins{where}"
    if state is TasksMainStates.FAILED:
        error = "" if event.error is None else f": {describe_error(event.error)}"
        return f"failed{where}{error}"
    return {TasksMainStates.DONE: "done", TasksMainStates.CANCELED: "cancelled"}.get(state, "")
