"""Values that stay on Dask's workers after their tasks have ended, and are fetched when asked for.

Which tasks these are is the backend's to say; how replies are fetched is in `outcome`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import cast
from weakref import WeakValueDictionary

from rhapsody import TaskDescription
from rhapsody_dask.calls import Call


class Held:
    """One value; Dask gives it up when this object goes (`rhapsody.task.HeldValue`).

    Args:
        call: The task, with the future that Dask keeps the value for.
        fetch: Brings the value into the description.
        release: Called when the object goes, on whatever thread.
    """

    __slots__ = ("__weakref__", "_fetch", "_release", "call")

    def __init__(
        self,
        call: Call,
        fetch: Callable[[Call], Awaitable[TaskDescription]],
        release: Callable[[Call], None],
    ) -> None:
        self.call: Call = call
        self._fetch = fetch
        self._release = release

    async def fetch(self) -> TaskDescription:
        """The description with the value in it, or with why it is lost."""
        return await self._fetch(self.call)

    def __del__(self) -> None:
        self._release(self.call)


class HeldValues:
    """The values of one backend's tasks that stay on the workers.

    Args:
        loop: The backend's event loop.
        calls: The tasks whose replies are awaited, by their keys.
        fetch: Has a reply fetched, given the task's key; raises where there is nobody to ask.
        release: Gives back a task's big arguments; called on the loop.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        calls: dict[str, Call],
        fetch: Callable[[str], None],
        release: Callable[[Call], None],
    ) -> None:
        self._loop = loop
        self._calls = calls
        self._fetch = fetch
        self._release = release
        self._values: WeakValueDictionary[str, Held] = WeakValueDictionary()

    def get(self, uid: str) -> Call | None:
        """The task of a value that is held."""
        held = self._values.get(uid)
        return None if held is None else held.call

    def lost(self, key: str, error: BaseException) -> None:
        """Note that a value will not come, for when it is asked for."""
        for held in list(self._values.values()):
            if held.call.key == key:
                held.call.error = error

    def hold(self, call: Call, tell: Callable[[Call], None]) -> None:
        """A task has ended whose value is not fetched.

        Its big arguments stay as well, so that Dask can make it again where the worker
        is lost that has it.

        Args:
            call: The task.
            tell: Reports its end.
        """
        task = call.task
        held = task["held"] = Held(call, self._bring, self._let_go)
        self._values[call.uid] = held
        tell(call)
        # The engine has what it needs of the description, and arguments may be big.
        kept = {key: task[key] for key in ("uid", "name", "function")}
        call.task = cast("TaskDescription", kept)

    async def _bring(self, call: Call) -> TaskDescription:
        if call.error is not None:
            call.task["exception"] = call.error
            return call.task
        call.waiter = self._loop.create_future()
        self._calls[call.key] = call
        try:
            self._fetch(call.key)
            await call.waiter
        finally:
            call.waiter = None
            self._calls.pop(call.key, None)
        return call.task

    @staticmethod
    def brought(call: Call) -> None:
        """A value that was asked for has come, or is lost."""
        if call.error is not None:
            call.task["exception"] = call.error
        if call.waiter is not None and not call.waiter.done():
            call.waiter.set_result(None)

    def _let_go(self, call: Call) -> None:
        if call.entries:
            try:
                self._loop.call_soon_threadsafe(partial(self._release, call))
            except RuntimeError:  # the loop is closed, and the backend with it
                return
