"""An observer that keeps every task event, for tests that ask what happened.

It is an ordinary plugin on the hooks that third parties use, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rhapsody.plugins.specs import TaskEvent, hookimpl
from rhapsody.states import TasksMainStates

if TYPE_CHECKING:
    from rhapsody import WorkflowEngine


class EventRecorder:
    """Keeps what an engine tells its observers: `WorkflowEngine.create(observers=[recorder])`.

    Attributes:
        events: Every event, in the order they came.
        batches: The same in the batches they came in.
        started: The engines that started.
        finished: The engines that finished, with their summaries.
    """

    def __init__(self) -> None:
        self.events: list[TaskEvent] = []
        self.batches: list[tuple[TaskEvent, ...]] = []
        self.started: list[WorkflowEngine] = []
        self.finished: list[tuple[WorkflowEngine, Any]] = []

    @hookimpl
    def rhapsody_workflow_started(self, engine: WorkflowEngine) -> None:
        """Keeps the engine."""
        self.started.append(engine)

    @hookimpl
    def rhapsody_task_events(self, engine: WorkflowEngine, events: Sequence[TaskEvent]) -> None:
        """Keeps the batch."""
        self.batches.append(tuple(events))
        self.events.extend(events)

    @hookimpl
    def rhapsody_workflow_finished(self, engine: WorkflowEngine, summary: Any) -> None:
        """Keeps the engine and its summary."""
        self.finished.append((engine, summary))

    def states(self, task: Any) -> list[TasksMainStates]:
        """The states that one task entered, in order.

        Args:
            task: A uid, a name, or a future with a `uid`.
        """
        return [event.state for event in self.of(task)]

    def of(self, task: Any) -> list[TaskEvent]:
        """The events of one task, in order; of all tasks of that name, where it is one."""
        key = getattr(task, "uid", task)
        return [event for event in self.events if key in (event.uid, event.name)]
