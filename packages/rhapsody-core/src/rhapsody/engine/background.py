"""The engine's own coroutines and calls, none of whose errors goes unnoticed."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from rhapsody.aio import begun

T = TypeVar("T")


class Background:
    """What one engine does beside the calls of its users. Used on its loop.

    Args:
        crashed: Called with where something of the engine's own failed, and how.
        context: The context of its coroutines, which are in no block of any user.

    Attributes:
        loop: The engine's event loop.
    """

    def __init__(
        self, crashed: Callable[[str, BaseException], object], context: contextvars.Context
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._crashed = crashed
        self._context = context
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(
        self, coroutine: Coroutine[Any, Any, T], name: str, *, at_once: bool = False
    ) -> asyncio.Task[T]:
        """Runs a coroutine, whose error ends the engine, loudly.

        Args:
            coroutine: What to run.
            name: Its task's name.
            at_once: Whether it runs to its first wait before this returns.
        """
        create = begun if at_once else self.loop.create_task
        task: asyncio.Task[T] = create(coroutine, name=name, context=self._context.copy())
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crashed(task.get_name(), error)

    def guarded(self, call: Callable[[], object]) -> None:
        """Makes a call from the loop; what it raises ends the engine."""
        try:
            call()
        except Exception as error:  # else the loop would log it and every caller wait
            self._crashed(getattr(call, "__qualname__", repr(call)), error)

    def soon(self, call: Callable[[], object]) -> None:
        """Makes a call in the loop's next turn."""
        self.loop.call_soon(self.guarded, call)

    def soon_from_anywhere(self, call: Callable[[], object]) -> bool:
        """Makes a call on the loop, from any thread; `False` where the loop is closed."""
        try:
            self.loop.call_soon_threadsafe(self.guarded, call)
        except RuntimeError:  # nobody waits any more
            return False
        return True

    async def settle(self, grace: float) -> None:
        """Waits for the coroutines, and cancels those that take longer than `grace` seconds."""
        if self._running:
            _, late = await asyncio.wait(tuple(self._running), timeout=grace)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
