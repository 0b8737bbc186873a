"""Report, at the end of a workflow, of how long its tasks ran, by task name."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rhapsody import TasksMainStates, WorkflowEngine, hookimpl
from rhapsody.plugins import TaskEvent

RUNNING = TasksMainStates.RUNNING
_began: dict[str, dict[str, float]] = {}  # for each engine, when its running tasks began
_spent: dict[str, dict[str, tuple[int, float]]] = {}  # attempts and seconds, by name


@hookimpl
def rhapsody_task_events(engine: WorkflowEngine, events: Sequence[TaskEvent]) -> None:
    """Add the seconds between the running state of an attempt and the next state."""
    began, spent = _began.setdefault(engine.uid, {}), _spent.setdefault(engine.uid, {})
    for event in events:
        if event.state is RUNNING:
            began[event.uid] = event.monotonic
        elif event.uid in began:
            count, seconds = spent.get(event.name, (0, 0.0))
            spent[event.name] = count + 1, seconds + event.monotonic - began.pop(event.uid)


@hookimpl
def rhapsody_workflow_finished(engine: WorkflowEngine) -> None:
    """Print the table."""
    _began.pop(engine.uid, None)
    for name, (count, seconds) in sorted(
        _spent.pop(engine.uid, {}).items(), key=lambda item: -item[1][1]
    ):
        print(f"{name:20} {count:6} attempts {seconds:10.2f} s", file=sys.stderr)
