"""A backend that runs nothing: for dry runs, and to measure what an engine costs.

Every task is done the moment it is submitted, with a fixed result. Nothing is
started, no file is made and no thread is used.
"""

from __future__ import annotations

from collections.abc import Sequence

from rhapsody.backends.base import Capabilities, ManagedBackend
from rhapsody.states import TasksMainStates
from rhapsody.task import TaskDescription

DUMMY_OUTPUT = "Dummy Output"
"""What every task of the noop backend returns and prints."""

_DONE = TasksMainStates.DONE


class NoopExecutionBackend(ManagedBackend):
    """Completes each task at once, inside `submit_tasks`, with `"Dummy Output"`.

    A service is reported as running until it is cancelled. It accepts whatever a
    task asks for, so that any workflow can be walked through.

    Args:
        resources: Ignored; accepted so that the backend can stand in for another.
        name: What it is called in an engine; default `"noop"`.

    Attributes:
        output: What every task returns and prints.
    """

    name = "noop"
    dry = True
    shares_memory = True
    output: str = DUMMY_OUTPUT
    capabilities: Capabilities = Capabilities(
        services=True,
        function_services=True,
        cancel_services="running",
        cwd=True,
        files=True,
        shared_file_system=True,
        resources=frozenset({"cores", "gpus", "memory", "ranks", "walltime"}),
    )

    def __init__(self, resources: object = None, *, name: str | None = None) -> None:
        super().__init__(name=name)

    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        """Completes the tasks, before it returns."""
        for task in self.admit(tasks):
            if task["is_service"]:
                self.accept(task)
                self.task_state_cb(task, TasksMainStates.RUNNING)
                continue
            task["stdout"] = task["return_value"] = self.output
            if task["function"] is None:
                task["stderr"] = ""
                task["exit_code"] = 0
            self.report_state(task, _DONE)

    async def cancel_task(self, uid: str) -> bool:
        """Ends a service; any other task has ended already."""
        task = self.open_tasks.get(uid)
        if task is None:
            return False
        self.task_state_cb(task, TasksMainStates.CANCELED)
        return True

    async def shutdown(self) -> None:
        """Ends the services."""
        for uid in list(self.open_tasks):
            await self.cancel_task(uid)
        await super().shutdown()
