"""Report of the running times of tasks by name, printed at the end of a workflow."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rhapsody import TasksMainStates, WorkflowEngine, hookimpl
from rhapsody.plugins import TaskEvent

RUNNING = TasksMainStates.RUNNING
_started: dict[str, dict[str, float]] = {}  # by engine and task: start time of a running task
_spent: dict[str, dict[str, tuple[int, float]]] = {}  # by engine and name: attempts and seconds


@hookimpl
def rhapsody_task_events(engine: WorkflowEngine, events: Sequence[TaskEvent]) -> None:
    """Add the time from the running state of each attempt to its next state."""
    started, spent = _started.setdefault(engine.uid, {}), _spent.setdefault(engine.uid, {})
    for event in events:
        if event.state is RUNNING:
            started[event.uid] = event.monotonic
        elif event.uid in started:
            count, seconds = spent.get(event.name, (0, 0.0))
            spent[event.name] = count + 1, seconds + event.monotonic - started.pop(event.uid)


@hookimpl
def rhapsody_workflow_finished(engine: WorkflowEngine) -> None:
    """Print the table."""
    _started.pop(engine.uid, None)
    for name, (count, seconds) in sorted(
        _spent.pop(engine.uid, {}).items(), key=lambda item: -item[1][1]
    ):
        print(f"{name:20} {count:6} attempts {seconds:10.2f} s", file=sys.stderr)
