"""Execution of tasks in a worker process. It is independent of MPI: it takes and returns bytes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from typing import Any

from rhapsody import TaskDescription
from rhapsody.backends import CompletedExecutable, LocalPrograms, Session
from rhapsody.sdk import CallSpec, Runner, TaskContext, known, task_context

POLL_INTERVAL = 0.2
"""Seconds between two checks for the stop file of a coroutine or a program."""


def work(packed: bytes) -> bytes:
    """Execute a packed call and return the packed result; see `rhapsody.sdk.calls`."""
    return _Runner().run(packed)


class _Runner(Runner):
    """Runner that stops a coroutine when its stop file, `more["stop"]` of the call, exists."""

    stop: str

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(self._until_stopped(coroutine))

    def context(self, order: CallSpec) -> AbstractContextManager[Any]:
        self.stop = order.more["stop"]
        context = _Context(**known(order))
        context.stop = self.stop
        return task_context(context)

    async def _until_stopped(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        running = asyncio.ensure_future(coroutine)
        while not (await asyncio.wait([running], timeout=POLL_INTERVAL))[0]:
            if os.path.exists(self.stop):  # noqa: ASYNC240 - nothing else runs on this loop
                running.cancel()
        return await running


class _Context(TaskContext):
    """Context of a task on a worker. `cancelled` checks for the stop file on each access."""

    __slots__ = ("stop",)
    stop: str

    @property
    def cancelled(self) -> bool:
        """True if the task has been canceled."""
        return os.path.exists(self.stop)


class _Programs(LocalPrograms):
    """Runner of programs on this machine, from core."""

    def __init__(self) -> None:
        self.session = Session()


async def run_program(task: TaskDescription) -> CompletedExecutable:
    """Run an executable task, which the backend sends as an ordinary call."""
    return await _Programs().run_program(task)
