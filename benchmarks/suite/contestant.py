"""Interface of the systems under test: start, submit calls with dependencies, wait.

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
"""Number of calls that every contestant runs in parallel."""


class Contestant(abc.ABC):
    """A system under test. The class describes it; an instance is a running system.

    Args:
        stack: The exit stack that stops the system.

    Attributes:
        title: The name in tables.
        needs: The required distribution; empty if that is core.
        module: A module of that distribution, if it has another name.
    """

    title: ClassVar[str]
    needs: ClassVar[str] = ""
    module: ClassVar[str] = ""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self.stack = stack

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls) -> AsyncIterator[Contestant]:
        """Run the system in the context."""
        async with contextlib.AsyncExitStack() as stack:
            contestant = cls(stack)
            await contestant.start()
            yield contestant

    @abc.abstractmethod
    async def start(self) -> None:
        """Start the system, and register its cleanup on the stack."""

    @abc.abstractmethod
    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Schedule a call for when the futures among its arguments are done; return its future."""

    @abc.abstractmethod
    async def wait(self, futures: Sequence[Any]) -> None:
        """Wait for all results and retrieve them."""

    async def run(self, graph: Graph) -> None:
        """Run all tasks of a graph."""
        await self.wait(self.submit_all(graph))

    def submit_all(self, graph: Graph) -> list[Any]:
        """Submit all tasks of a graph and return their futures."""
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
        """Return the version of the required distribution; `None` if it is not installed."""
        if not cls.needs:
            return ""
        try:
            there = importlib.util.find_spec(cls.module or cls.needs)
            return importlib.metadata.version(cls.needs) if there else None
        except (ModuleNotFoundError, importlib.metadata.PackageNotFoundError):
            return None
