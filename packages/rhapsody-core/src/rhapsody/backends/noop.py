"""Backend that runs nothing, for dry runs and for measurements of the engine's overhead.

Every task except a service is done as soon as it is submitted, with a fixed result. The backend
starts nothing, creates no file and uses no thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from rhapsody.backends.base import Capabilities, ManagedBackend
from rhapsody.states import TasksMainStates
from rhapsody.task import TaskDescription

DUMMY_OUTPUT = "Dummy Output"
"""Return value and output of every task of the noop backend."""

_DONE = TasksMainStates.DONE


class NoopExecutionBackend(ManagedBackend):
    """Backend that completes tasks inside `submit_tasks`, with the result `"Dummy Output"`.

    A service is reported as running, and ends only when it is canceled. Any request for resources
    is accepted, so that any workflow can be tried.

    Args:
        resources: Ignored; accepted so that the backend can replace another.
        name: The backend's name in an engine. Default: `"noop"`.

    Attributes:
        output: Return value and output of every task.
    """

    name = "noop"
    dry = True
    shares_memory = True
    output: str = DUMMY_OUTPUT
    capabilities: Capabilities = Capabilities(
        services=True,
        function_services=True,
        function_environments=True,
        cancel_services="running",
        cwd=True,
        files=True,
        shared_file_system=True,
        mpi_functions=True,
        resources=frozenset({"cores", "gpus", "memory", "ranks", "walltime"}),
    )

    def __init__(self, resources: object = None, *, name: str | None = None) -> None:
        super().__init__(name=name)

    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        """Complete all tasks except services, and report the services as running."""
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
        """End a service. Return False for any other task, because it has already ended."""
        task = self.open_tasks.get(uid)
        if task is None:
            return False
        self.task_state_cb(task, TasksMainStates.CANCELED)
        return True

    async def shutdown(self) -> None:
        """End the services and shut the backend down."""
        for uid in list(self.open_tasks):
            await self.cancel_task(uid)
        await super().shutdown()
