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
    """Makes a call; see `rhapsody.sdk.calls`."""
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
    """What a function can know of itself; whether it is to stop is looked up each time."""

    __slots__ = ("stop",)
    stop: str

    @property
    def cancelled(self) -> bool:
        """Whether somebody cancelled the task."""
        return os.path.exists(self.stop)


class _Programs(LocalPrograms):
    """Core's way to run a program on the machine one is on."""

    def __init__(self) -> None:
        self.session = Session()


async def run_program(task: TaskDescription) -> CompletedExecutable:
    """Runs an executable task. A call like any other, so that it is shipped in the same way."""
    return await _Programs().run_program(task)
