"""Rhapsody as a contestant, on each of its backends."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from benchmarks.suite.contestant import SLOTS, Contestant
from benchmarks.suite.graphs import program


class Ours(Contestant):
    """An engine, and one task for each function."""

    options: ClassVar[dict[str, Any]] = {}
    settings: ClassVar[dict[str, Any]] = {}

    async def start(self) -> None:
        """Starts an engine."""
        from rhapsody import WorkflowEngine

        flow = WorkflowEngine.create(self.backend(), handle_signals=False, **self.options)
        self.flow = await self.stack.enter_async_context(flow)
        self.tasks: dict[Callable[..., Any], Callable[..., Any]] = {}

    def backend(self) -> Any:
        """Return the backend."""
        raise NotImplementedError

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the task for a function; programs are tasks of their own kind."""
        if function is program:
            made: Any = self.flow.executable_task(command)
        else:
            made = self.flow.function_task(**self.settings)(function)
        self.tasks[function] = made
        return made  # type: ignore[no-any-return]

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a task."""
        return (self.tasks.get(function) or self.task(function))(*arguments)

    async def wait(self, futures: Sequence[Any]) -> None:
        """Awaits them all."""
        await asyncio.gather(*futures)


def command(words: list[str] | str) -> list[str] | str:
    """Return the command of an executable task."""
    return words


class Noop(Ours):
    """The engine alone: nothing is run."""

    title = "Rhapsody, noop"

    def backend(self) -> Any:
        """The noop backend."""
        from rhapsody import NoopExecutionBackend

        return NoopExecutionBackend()


class Threads(Ours):
    """Threads of this process."""

    title = "Rhapsody, threads"

    def backend(self) -> Any:
        """The local backend."""
        from rhapsody import LocalExecutionBackend

        return LocalExecutionBackend(resources={"workers": SLOTS})


class Async(Threads):
    """The same with coroutine functions, each in a thread."""

    title = "Rhapsody, async functions"

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the task for a coroutine function that calls the function."""

        async def call(*arguments: Any) -> Any:
            return function(*arguments)

        made: Callable[..., Any] = self.flow.function_task(call)
        self.tasks[function] = made
        return made


class Coroutines(Threads):
    """Coroutine functions that wait side by side in one thread."""

    title = "Rhapsody, coroutines"
    settings: ClassVar[dict[str, Any]] = {"resources": {"cores": 0}}


class Processes(Ours):
    """Worker processes of this machine."""

    title = "Rhapsody, processes"

    def backend(self) -> Any:
        """The local backend."""
        from rhapsody import LocalExecutionBackend

        return LocalExecutionBackend("process", resources={"workers": SLOTS})


class OnDask(Ours):
    """Two workers of Dask on this machine."""

    title = "Rhapsody, Dask"
    needs = "rhapsody-dask"
    module = "rhapsody_dask"

    def backend(self) -> Any:
        """The Dask backend, which starts a cluster."""
        dask: Any = importlib.import_module("rhapsody_dask")
        return dask.DaskExecutionBackend({"n_workers": SLOTS, "threads_per_worker": 1})
