"""Values that stay on Dask's workers after their tasks have ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from rhapsody.task import TaskDescription

if TYPE_CHECKING:
    from rhapsody_dask.calls import Call

Fetch = Callable[["Call"], Awaitable[TaskDescription]]


class Held:
    """One value; Dask gives it up when this object goes (`rhapsody.task.HeldValue`).

    Args:
        call: The task, with the future that Dask keeps the value for.
        fetch: Brings the reply of a task whose value is held.
        release: Told when the object goes, on whatever thread.
    """

    __slots__ = ("__weakref__", "_fetch", "_release", "call")

    def __init__(self, call: Call, fetch: Fetch, release: Callable[[Call], None]) -> None:
        self.call = call
        self._fetch = fetch
        self._release = release

    async def fetch(self) -> TaskDescription:
        """The description with the value in it, or with why it is lost."""
        return await self._fetch(self.call)

    def __del__(self) -> None:
        self._release(self.call)
