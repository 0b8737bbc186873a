"""Engines for one test each, with a time limit, and backends that really run tasks for them.

Those that do only what a test says are in `scripted`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from rhapsody.backends.base import BaseExecutionBackend, Capabilities
from rhapsody.backends.noop import NoopExecutionBackend
from rhapsody.data import link_into, make_sandbox
from rhapsody.engine.engine import Starting
from rhapsody.task import TaskDescription
from rhapsody.undeclared import copy_all
from tests._support.small_backend import SmallBackend

LIMIT = 30.0
"""Seconds after which a test counts as hanging."""


class Machine(SmallBackend):
    """Runs everything but services here; executables and files in sandboxes."""

    name = "machine"
    capabilities = Capabilities(
        cancel_async_functions="running",
        cancel_executables="running",
        sandboxes=True,
        cwd=True,
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
        left_out = src_task.get("left_out", ())
        copy_all(src_task["sandbox"], dst_task["sandbox"], left_out)


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


def create(*args: Any, **settings: Any) -> Starting:
    """Start an engine that leaves the signals to pytest, unless a test requests otherwise."""
    settings.setdefault("handle_signals", False)
    return WorkflowEngine.create(*args, **settings)


@asynccontextmanager
async def engine(
    backend: BaseExecutionBackend | str | None = None, **settings: Any
) -> AsyncIterator[WorkflowEngine]:
    """An engine for one test: with a time limit, and out of the way of pytest's signals.

    What is unfinished at the end is cancelled.
    """
    async with asyncio.timeout(LIMIT):
        flow = await create(backend or NoopExecutionBackend(), **settings)
        try:
            yield flow
        finally:
            await flow.shutdown()


def tools(flow: WorkflowEngine) -> tuple[Any, Any]:
    """A task that gives its argument back, and one that gives all of its own."""

    @flow.function_task
    def give(x: Any) -> Any:
        return x

    @flow.function_task
    def take(*args: Any, **kwargs: Any) -> Any:
        return (args, kwargs) if kwargs else args if len(args) > 1 else args[0]

    return give, take


def adder(flow: WorkflowEngine) -> Any:
    """Return a task that adds two numbers."""

    @flow.function_task
    async def add(x: int, y: int = 1) -> int:
        return x + y

    return add
