"""Tools for tests of workflows and plugins: a recorder of events, a table of capabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rhapsody.backends.base import Capabilities
from rhapsody.plugins.specs import TaskEvent, hookimpl
from rhapsody.states import TasksMainStates

if TYPE_CHECKING:
    from rhapsody import WorkflowEngine


class EventRecorder:
    """Observer that keeps every event: `WorkflowEngine.create(observers=[recorder])`.

    Attributes:
        events: Every event, in order.
        batches: The same in the batches in which they came.
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
        """Keep the engine."""
        self.started.append(engine)

    @hookimpl
    def rhapsody_task_events(self, engine: WorkflowEngine, events: Sequence[TaskEvent]) -> None:
        """Keep the batch."""
        self.batches.append(tuple(events))
        self.events.extend(events)

    @hookimpl
    def rhapsody_workflow_finished(self, engine: WorkflowEngine, summary: Any) -> None:
        """Keep the engine and its summary."""
        self.finished.append((engine, summary))

    def states(self, task: Any) -> list[TasksMainStates]:
        """Return the states that one task entered, in order.

        Args:
            task: A uid, a name, or a future with a `uid`.
        """
        return [event.state for event in self.of(task)]

    def of(self, task: Any) -> list[TaskEvent]:
        """Return the events of one task, or of all tasks of a name, in order."""
        key = getattr(task, "uid", task)
        return [event for event in self.events if key in (event.uid, event.name)]


_MEANINGS = {
    "functions": "coroutine functions",
    "sync_functions": "ordinary functions",
    "executables": "shell commands and programs",
    "services": "executables as services",
    "function_services": "functions as services",
    "cancel_functions": "cancels ordinary functions",
    "cancel_async_functions": "cancels coroutine functions",
    "cancel_executables": "cancels executables",
    "cancel_services": "cancels services",
    "sandboxes": "a directory for each executable",
    "cwd": "runs executables in a given directory",
    "files": "links files into sandboxes",
    "shared_file_system": "sees the engine's file system",
    "copies_files_out": "gives files out of sandboxes",
    "task_settings": "keys of `task_description`",
    "resources": "resources it honours",
    "binds": "of these, enforced",
    "captures_output": "keeps what functions print",
    "reports_running": "says when a task starts",
    "unfinished_dependencies": "takes unfinished tasks as arguments",
}


def capability_table(backend: Any) -> str:
    """Return what a backend declares as a table in Markdown, for its README.

    Args:
        backend: A backend, its class, or a `Capabilities`.

    Raises:
        TypeError: It is none of these.
    """
    capabilities = (
        backend if isinstance(backend, Capabilities) else getattr(backend, "capabilities", None)
    )
    if not isinstance(capabilities, Capabilities):
        raise TypeError(f"backend must have `capabilities`, got {backend!r}")
    rows = [("capability", "meaning", "declared"), ("---", "---", "---")]
    for key, value in capabilities.as_dict().items():
        rows.append((f"`{key}`", _MEANINGS.get(key, ""), _word(value)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "unchecked" if value is None else str(value)
