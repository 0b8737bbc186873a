"""Backends that tests of the engine steer, and the time limit that each of them has.

`Scripted` ends its tasks when the test says so; `Machine` really runs them, on the
loop, in threads and in child processes. Neither is meant to be fast.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from rhapsody.backends.base import BaseExecutionBackend, Capabilities, ManagedBackend
from rhapsody.backends.noop import NoopExecutionBackend
from rhapsody.data import link_all, link_into, make_sandbox
from rhapsody.states import TasksMainStates
from rhapsody.task import TaskDescription
from tests.core.small_backend import SmallBackend

LIMIT = 30.0
"""Seconds after which a test counts as hanging."""

EVERYTHING = Capabilities(
    services=True,
    function_services=True,
    cancel_functions="running",
    cancel_async_functions="running",
    cancel_executables="running",
    cancel_services="running",
    shared_file_system=True,
    resources=frozenset({"cores", "gpus", "memory", "ranks", "walltime"}),
    reports_running=True,
)


class Scripted(ManagedBackend):
    """Takes tasks and does nothing with them until the test reports something.

    Args:
        name: The backend's name.
        capabilities: What it claims.
        obedient: Whether a task that is cancelled ends at once.

    Attributes:
        tasks: What was submitted, in order.
        cancelled: The uids it was asked to cancel, in order.
    """

    def __init__(
        self,
        name: str = "scripted",
        capabilities: Capabilities = EVERYTHING,
        *,
        obedient: bool = True,
    ) -> None:
        super().__init__()
        self.name = name
        self.capabilities = capabilities
        self.obedient = obedient
        self.tasks: list[TaskDescription] = []
        self.cancelled: list[str] = []
        self._change = asyncio.Event()

    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        self.require_running()
        for task in tasks:
            self.accept(task)
            self.tasks.append(task)
        self._changed()

    async def cancel_task(self, uid: str) -> bool:
        self.cancelled.append(uid)
        task = self._open.get(uid)
        if task is not None and self.obedient:
            self.task_state_cb(task, TasksMainStates.CANCELED)
        self._changed()
        return task is not None

    async def stop(self) -> None:
        for task in list(self._open.values()):
            self.task_state_cb(task, TasksMainStates.CANCELED)

    def _changed(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits until something that happens to this backend makes the condition true."""
        while not condition():
            await self._change.wait()

    async def given(self, name: str, attempt: int = 1) -> TaskDescription:
        """Waits for the task of this name and attempt and returns its description."""

        def found() -> TaskDescription | None:
            for task in self.tasks:
                if task["name"] == name and task.get("attempt", 1) == attempt:
                    return task
            return None

        await self.until(found)
        task = found()
        assert task is not None
        return task

    def names(self) -> list[str]:
        """The names of the tasks it got, in order."""
        return [task["name"] for task in self.tasks]

    def run(self, task: TaskDescription) -> None:
        """Reports that the task has started."""
        self.task_state_cb(task, TasksMainStates.RUNNING)

    def serve(self, task: TaskDescription) -> asyncio.Future[Any]:
        """Reports that a service has started, and gives what its readiness is put into."""
        handed: list[Any] = []
        self.task_state_cb(
            task, TasksMainStates.RUNNING, lambda future, task, state: handed.append(future)
        )
        (future,) = handed
        return future  # type: ignore[no-any-return]

    def finish(self, task: TaskDescription, value: Any = None) -> None:
        """Reports a task as done; the value is the output of an executable."""
        if task["function"] is None:
            task["stdout"], task["stderr"], task["exit_code"] = value or "", "", 0
        else:
            task["return_value"] = value
        self.task_state_cb(task, TasksMainStates.DONE)

    def fail(self, task: TaskDescription, error: BaseException) -> None:
        """Reports a task as failed."""
        task["exception"] = error
        self.task_state_cb(task, TasksMainStates.FAILED)


class Machine(SmallBackend):
    """Runs everything but services here; executables and files in sandboxes."""

    name = "machine"
    capabilities = Capabilities(
        cancel_async_functions="running",
        cancel_executables="running",
        sandboxes=True,
        files=True,
        shared_file_system=True,
        reports_running=True,
        resources=frozenset({"cores"}),
    )

    async def run_task(self, task: TaskDescription) -> Any:
        if "sandbox" in task:
            make_sandbox(task["sandbox"])
        return await super().run_task(task)

    def link_explicit_data_deps(
        self,
        src_task: Mapping[str, Any] | None = None,
        dst_task: TaskDescription | None = None,
        file_name: str | None = None,
        file_path: str | None = None,
    ) -> None:
        assert dst_task is not None
        assert file_name is not None
        path = file_path
        if src_task is not None:
            path = os.path.join(src_task["sandbox"], file_name)
        assert path is not None
        link_into(dst_task["sandbox"], file_name, path)

    def link_implicit_data_deps(self, src_task: Mapping[str, Any], dst_task: Any) -> None:
        link_all(src_task["sandbox"], dst_task["sandbox"])


def local_threads() -> BaseExecutionBackend:
    """The embedded backend as it is when nothing is said."""
    from rhapsody.backends.local import LocalExecutionBackend

    return LocalExecutionBackend()


def local_processes() -> BaseExecutionBackend:
    """The embedded backend with worker processes."""
    from rhapsody.backends.local import LocalExecutionBackend

    return LocalExecutionBackend("process", resources={"workers": 1})


on_machines = pytest.mark.parametrize(
    "machine", [pytest.param(Machine, id="machine"), pytest.param(local_threads, id="local")]
)
"""For what every backend does that runs functions and executables on this machine."""


@asynccontextmanager
async def engine(
    backend: BaseExecutionBackend | None = None, **settings: Any
) -> AsyncIterator[WorkflowEngine]:
    """An engine for one test: with a time limit, and out of the way of pytest's signals."""
    settings.setdefault("handle_signals", False)
    async with (
        asyncio.timeout(LIMIT),
        WorkflowEngine.create(backend or NoopExecutionBackend(), **settings) as flow,
    ):
        yield flow


async def outcome(awaitable: Awaitable[Any]) -> BaseException:
    """The error that awaiting something ends with."""
    try:
        value = await awaitable
    except (Exception, asyncio.CancelledError) as error:  # whatever it is, the test looks at it
        return error
    raise AssertionError(f"no error, but {value!r}")


async def turns(count: int = 5) -> None:
    """Lets the loop do what it has to do now."""
    for _ in range(count):
        await asyncio.sleep(0)


def tools(flow: WorkflowEngine) -> tuple[Any, Any]:
    """A task that gives its argument back, and one that gives all of its own."""

    @flow.function_task
    def give(x: Any) -> Any:
        return x

    @flow.function_task
    def take(*args: Any, **kwargs: Any) -> Any:
        return (args, kwargs) if kwargs else args if len(args) > 1 else args[0]

    return give, take
