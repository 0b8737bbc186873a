"""Work of a worker process on one task. Independent of MPI: it takes and returns bytes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from typing import Any

from rhapsody import TaskDescription
from rhapsody.backends import CompletedExecutable, LocalPrograms, Session
from rhapsody.sdk import CallSpec, Runner, TaskContext, known, task_context

LOOK = 0.2
"""Seconds between two looks whether a coroutine or a program is to stop."""


def work(packed: bytes) -> bytes:
    """Make a call; see `rhapsody.sdk.calls`."""
    return _Runner().run(packed)


class _Runner(Runner):
    """Stops a coroutine when there is the file that asks for it, the order's `stop`."""

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
        while not (await asyncio.wait([running], timeout=LOOK))[0]:
            if os.path.exists(self.stop):  # noqa: ASYNC240 - the worker has nothing else to do
                running.cancel()
        return await running


class _Context(TaskContext):
    """Context of a task on a worker. Whether the task should stop is checked on each access."""

    __slots__ = ("stop",)
    stop: str

    @property
    def cancelled(self) -> bool:
        """True if the task was canceled."""
        return os.path.exists(self.stop)


class _Programs(LocalPrograms):
    """Core's way to run a program on the machine one is on."""

    def __init__(self) -> None:
        self.session = Session()


async def run_program(task: TaskDescription) -> CompletedExecutable:
    """Run an executable task. It is sent like any other call."""
    return await _Programs().run_program(task)
