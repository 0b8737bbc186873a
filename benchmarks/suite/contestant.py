"""Interface of a contestant: a system that is started, takes calls with dependencies, and waits.

The loop that submits a graph is the same for all contestants, so that only the systems differ.
"""

from __future__ import annotations

import abc
import contextlib
import importlib.metadata
import importlib.util
import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ClassVar

from benchmarks.suite.graphs import Graph

SLOTS = os.cpu_count() or 1
"""Number of calls that run at once, for every contestant."""


class Contestant(abc.ABC):
    """A system, described by the class and running in its instances.

    Args:
        stack: Is closed at the end.

    Attributes:
        title: Its name in tables.
        needs: The distribution that must be installed; empty if core is enough.
        module: A module of that distribution.
    """

    title: ClassVar[str]
    needs: ClassVar[str] = ""
    module: ClassVar[str] = ""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self.stack = stack

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls) -> AsyncIterator[Contestant]:
        """Starts the system, and stops it at the end."""
        async with contextlib.AsyncExitStack() as stack:
            contestant = cls(stack)
            await contestant.start()
            yield contestant

    @abc.abstractmethod
    async def start(self) -> None:
        """Starts the system; what must be done at the end goes on the stack."""

    @abc.abstractmethod
    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function when the futures among its arguments are done; returns its future."""

    @abc.abstractmethod
    async def wait(self, futures: Sequence[Any]) -> None:
        """Waits for all results, and takes them."""

    async def run(self, graph: Graph) -> None:
        """Run all tasks of a graph."""
        await self.wait(self.submit_all(graph))

    def submit_all(self, graph: Graph) -> list[Any]:
        """Calls all tasks of a graph; returns their futures."""
        submit, futures = self.submit, list[Any]()
        for task in graph:
            if task.parents:
                values = [futures[parent] for parent in task.parents]
                futures.append(submit(task.function, *task.arguments, *values))
            else:
                futures.append(submit(task.function, *task.arguments))
        return futures

    @classmethod
    def version(cls) -> str | None:
        """The version of what it needs; `None` where that is not installed."""
        if not cls.needs:
            return ""
        try:
            there = importlib.util.find_spec(cls.module or cls.needs)
            return importlib.metadata.version(cls.needs) if there else None
        except (ModuleNotFoundError, importlib.metadata.PackageNotFoundError):
            return None
