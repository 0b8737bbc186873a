"""Contestants that run Rhapsody, one for each backend."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from benchmarks.suite.contestant import SLOTS, Contestant
from benchmarks.suite.graphs import program


class Ours(Contestant):
    """An engine with one task for each function."""

    options: ClassVar[dict[str, Any]] = {}
    settings: ClassVar[dict[str, Any]] = {}

    async def start(self) -> None:
        """Start an engine."""
        from rhapsody import WorkflowEngine

        flow = WorkflowEngine.create(self.backend(), handle_signals=False, **self.options)
        self.flow = await self.stack.enter_async_context(flow)
        self.tasks: dict[Callable[..., Any], Callable[..., Any]] = {}

    def backend(self) -> Any:
        """Return the backend."""
        raise NotImplementedError

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the task for a function; `program` is an executable task."""
        if function is program:
            made: Any = self.flow.executable_task(command)
        else:
            made = self.flow.function_task(**self.settings)(function)
        self.tasks[function] = made
        return made  # type: ignore[no-any-return]

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a task."""
        return (self.tasks.get(function) or self.task(function))(*arguments)

    async def wait(self, futures: Sequence[Any]) -> None:
        """Await all futures."""
        await asyncio.gather(*futures)


def command(words: list[str] | str) -> list[str] | str:
    """Return the command of an executable task."""
    return words


class Noop(Ours):
    """The engine alone, which runs no task."""

    title = "Rhapsody, noop"

    def backend(self) -> Any:
        """Return the noop backend."""
        from rhapsody import NoopExecutionBackend

        return NoopExecutionBackend()


class Threads(Ours):
    """Functions on threads."""

    title = "Rhapsody, threads"

    def backend(self) -> Any:
        """Return the local backend."""
        from rhapsody import LocalExecutionBackend

        return LocalExecutionBackend(resources={"workers": SLOTS})


class Async(Threads):
    """Coroutine functions on threads."""

    title = "Rhapsody, async functions"

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the task for a coroutine function that calls the function."""

        async def call(*arguments: Any) -> Any:
            return function(*arguments)

        made: Callable[..., Any] = self.flow.function_task(call)
        self.tasks[function] = made
        return made


class Coroutines(Threads):
    """Coroutine functions that share one thread."""

    title = "Rhapsody, coroutines"
    settings: ClassVar[dict[str, Any]] = {"resources": {"cores": 0}}


class Processes(Ours):
    """Functions in worker processes."""

    title = "Rhapsody, processes"

    def backend(self) -> Any:
        """Return the local backend."""
        from rhapsody import LocalExecutionBackend

        return LocalExecutionBackend("process", resources={"workers": SLOTS})


class OnDask(Ours):
    """Functions on Dask workers on this machine."""

    title = "Rhapsody, Dask"
    needs = "rhapsody-dask"
    module = "rhapsody_dask"

    def backend(self) -> Any:
        """Return the Dask backend, which starts a cluster."""
        dask: Any = importlib.import_module("rhapsody_dask")
        return dask.DaskExecutionBackend({"n_workers": SLOTS, "threads_per_worker": 1})
