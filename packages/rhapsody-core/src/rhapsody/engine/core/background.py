"""Clock, timers and coroutines of the engine itself.

An exception in a coroutine or in a timer's call is an internal error, and ends the engine.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from rhapsody.aio import Clock, Timer, eager_task

T = TypeVar("T")


class LoopClock:
    """Clock that shows real time and uses the event loop's timers.

    The time since the epoch is read once. Later times follow the monotonic clock, so that durations
    are right if the system's clock is set meanwhile.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoch = max(time.time() - time.monotonic() for _ in range(3))  # the least interrupted

    def time(self) -> float:
        """Return the seconds since the epoch."""
        return self._epoch + time.monotonic()

    @property
    def monotonic(self) -> Callable[[], float]:
        """The loop's method `time`, which every event of a task calls."""
        return self._loop.time

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` when `monotonic` reaches `when`."""
        return self._loop.call_at(when, callback)


class Background:
    """Runner of one engine's coroutines, timers and calls. Used on the engine's loop.

    Args:
        crashed: Function that is called with the name and the exception of a coroutine or call that
            failed.
        context: The context that each coroutine receives a copy of. It belongs to no block.
        clock: The engine's clock. Default: that of the loop.

    Attributes:
        loop: The engine's event loop.
        clock: The engine's clock.
    """

    def __init__(
        self,
        crashed: Callable[[str, BaseException], object],
        context: contextvars.Context,
        clock: Clock | None = None,
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.clock: Clock = clock or LoopClock(self.loop)
        self._crashed = crashed
        self._context = context
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(
        self, coroutine: Coroutine[Any, Any, T], name: str, *, at_once: bool = False
    ) -> asyncio.Task[T]:
        """Run a coroutine as an asyncio task. If it raises an exception, the engine ends.

        Args:
            coroutine: The coroutine.
            name: The name of the asyncio task.
            at_once: True to run the coroutine up to its first wait before returning.

        Returns:
            The asyncio task.
        """
        create = eager_task if at_once else self.loop.create_task
        task: asyncio.Task[T] = create(coroutine, name=name, context=self._context.copy())
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def outside_blocks(self, call: Callable[[], T]) -> T:
        """Return the result of a call in a context that belongs to no block."""
        return self._context.copy().run(call)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crashed(task.get_name(), error)

    def crash(self, where: str, error: BaseException) -> None:
        """End the engine because of an internal error; `where` names the part that failed."""
        self._crashed(where, error)

    def guarded(self, call: Callable[[], object]) -> None:
        """Call a function. If it raises an exception, the engine ends."""
        try:
            call()
        except Exception as error:  # the loop would only log it, and futures would stay pending
            self._crashed(getattr(call, "__qualname__", repr(call)), error)

    def soon(self, call: Callable[[], object]) -> None:
        """Schedule a call for the loop's next iteration. If it raises, the engine ends."""
        self.loop.call_soon(self.guarded, call)

    def soon_from_anywhere(self, call: Callable[[], object]) -> bool:
        """Schedule a call on the loop. May be called from any thread.

        If the call raises an exception, the engine ends.

        Returns:
            False if the loop is closed, so that the call is not made.
        """
        try:
            self.loop.call_soon_threadsafe(self.guarded, call)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def monotonic(self) -> float:
        """Return the time of the clock that `after` uses."""
        return self.clock.monotonic()

    def after(self, delay: float, call: Callable[[], object]) -> Timer:
        """Schedule a call after `delay` seconds. If it raises an exception, the engine ends.

        Each deadline is a timer of the loop, which removes canceled timers in bulk. A heap of our
        own with one timer for the earliest deadline took 7.5 µs to set and cancel a deadline
        instead of 4.3 with 1,000 deadlines, and 7.6 instead of 5.0 with 100,000.

        Returns:
            The timer, which can be canceled.
        """
        return self.clock.call_at(self.clock.monotonic() + delay, partial(self.guarded, call))

    async def settle(self, grace: float) -> None:
        """Wait for all spawned coroutines, and cancel those still running after `grace` seconds."""
        if self._running:
            _, late = await asyncio.wait(tuple(self._running), timeout=grace)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
