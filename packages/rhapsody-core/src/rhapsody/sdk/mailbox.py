"""Hands items from any thread to one event loop, in order and in batches.

Backends' threads and the engine use it for updates. It is not a queue to wait
on: the loop is told when there is something, and an empty mailbox never wakes it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Generic, TypeVar

__all__ = ["Mailbox"]

T = TypeVar("T")

TURN = 0.005
"""Seconds of work after which a drain lets the loop do something else."""


class Mailbox(Generic[T]):
    """A box that any thread puts into and that one loop empties.

    However many items are put, one wake-up of the loop is under way at a time.

    Args:
        loop: The loop that `deliver` is called on.
        deliver: Called with each item, in the order of `put` for each thread. An
            exception goes to the loop's exception handler, and the other items
            are delivered all the same.

    Attributes:
        lost: How many items were dropped because the loop was closed.
    """

    __slots__ = ("_deliver", "_items", "_loop", "_woken", "lost")

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[T], object]) -> None:
        self._loop = loop
        self._deliver = deliver
        self._items: deque[T] = deque()
        self._woken = False
        self.lost: int = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Adds an item, from any thread. Where the loop is closed it is counted as lost."""
        self._items.append(item)
        if self._woken:
            return
        # Two threads may both come here: that is one drain too many, never one too few,
        # because `drain` takes the flag down before it looks for items.
        self._woken = True
        try:
            self._loop.call_soon_threadsafe(self.drain)
        except RuntimeError:  # the loop is closed
            self._woken = False
            self._drop()

    def drain(self) -> None:
        """Delivers what is there, for about 5 ms, and leaves the rest to the loop's next turn.

        On the loop's thread. The mailbox calls it by itself; calling it earlier is
        allowed, also from within `deliver`.
        """
        self._woken = False
        items = self._items
        end = 0.0
        try:
            while items:
                item = items.popleft()
                try:
                    self._deliver(item)
                except Exception as error:
                    # Whatever one receiver does wrong, the others get theirs.
                    self._loop.call_exception_handler(
                        {"message": f"{self._deliver!r} failed for {item!r}", "exception": error}
                    )
                del item  # not kept alive until the next one comes
                now = perf_counter()
                if not end:
                    end = now + TURN
                elif now > end:
                    return
        finally:
            if items and not self._woken:
                self._woken = True
                self._loop.call_soon(self.drain)

    def _drop(self) -> None:
        while True:
            try:
                self._items.popleft()
            except IndexError:
                return
            self.lost += 1
